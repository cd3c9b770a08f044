/* Far control flow: JMP, CALL, RET, IRET through segments and gates; SDM vol. 3 5.8, 6.12, vol. 2 IRET. */
#include "engine/soft/handlers.h"

static bool real_or_v86(const struct vcpu *v)
{
	return !(v->s.cr0 & CR0_PE) || (v->s.rflags & FLAG_VM);
}

static _Noreturn void gp(struct vcpu *v, uint32_t error) { vcpu_raise_error(v, EXC_GP, error); }

static void set_cs(struct vcpu *v, uint16_t sel, struct descriptor *d, uint64_t gva, unsigned cpl)
{
	desc_set_accessed(v, d, gva);
	seg_from_desc(&v->s.seg[SEG_CS], (uint16_t)((sel & ~3u) | cpl), d);
}

/* May `target` be an instruction pointer in the code segment d? */
static void check_target(struct vcpu *v, const struct descriptor *d, uint64_t target)
{
	if (state_long(&v->s) && desc_long(d)) {
		if (!va_canonical(v, target))
			gp(v, 0);
	} else if (target > desc_limit(d)) {
		gp(v, 0);
	}
}

/* In long mode L and D together are reserved. */
static bool code_mode_valid(struct vcpu *v, const struct descriptor *d)
{
	return !(state_long(&v->s) && desc_long(d) && desc_big(d));
}

/* A direct far transfer keeps the CPL. */
static void check_code_direct(struct vcpu *v, uint16_t sel, const struct descriptor *d)
{
	unsigned cpl = state_cpl(&v->s);

	if (desc_conforming(d) ? desc_dpl(d) > cpl : (sel & 3u) > cpl || desc_dpl(d) != cpl)
		gp(v, SEL_ERR(sel));
	if (!code_mode_valid(v, d))
		gp(v, SEL_ERR(sel));
	if (!desc_present(d))
		vcpu_raise_error(v, EXC_NP, SEL_ERR(sel));
}

static void far_real(struct vcpu *v, const struct insn *in, uint16_t sel, uint64_t off, bool call)
{
	off &= size_mask(in->opsize);
	if (off > v->s.seg[SEG_CS].limit)
		gp(v, 0);
	if (call) {
		mem_probe_store(v, SEG_SS, (v->s.gpr[REG_RSP] - 2 * in->opsize) & stack_mask(v), in->opsize);
		push(v, v->s.seg[SEG_CS].selector, in->opsize);
		push(v, v->s.rip + in->len, in->opsize);
	}
	seg_load_real(v, SEG_CS, sel);
	v->s.rip = off;
}

static void far_code(struct vcpu *v, const struct insn *in, uint16_t sel, uint64_t off, bool call,
		     struct descriptor *d, uint64_t gva)
{
	uint64_t next = v->s.rip + in->len;
	unsigned n = in->opsize;

	check_code_direct(v, sel, d);
	off &= size_mask(n);
	check_target(v, d, off);
	if (call) {
		mem_probe_store(v, SEG_SS, (v->s.gpr[REG_RSP] - 2 * n) & stack_mask(v), n);
		push(v, v->s.seg[SEG_CS].selector, n);
		push(v, next, n);
	}
	set_cs(v, sel, d, gva, state_cpl(&v->s));
	v->s.rip = off;
}

/* A call gate in long mode is 16 bytes, with a 64-bit offset. */
static uint64_t gate_offset(struct vcpu *v, uint16_t sel, const struct descriptor *g, uint64_t gva, uint16_t *code)
{
	uint64_t off = (g->lo & 0xffff) | (g->hi & 0xffff0000u), upper = 0;

	*code = (uint16_t)(g->lo >> 16);
	if (state_long(&v->s)) {
		if (!desc_read_upper(v, sel, gva, &upper) || (upper >> 40 & 0x1f))
			gp(v, SEL_ERR(sel));
		off |= upper << 32;
	} else if (desc_type(g) == 4) {
		off &= 0xffff;
	}
	return off;
}

struct inner_stack { struct x86_segment ss; uint64_t sp, mask; };

static void inner_push(struct vcpu *v, struct inner_stack *st, uint64_t value, unsigned n)
{
	uint64_t sp = (st->sp - n) & st->mask;

	if (!state_long(&v->s) && sp + n - 1 > st->ss.limit)
		vcpu_raise_error(v, EXC_SS, SEL_ERR(st->ss.selector));
	lin_store(v, TLB_KERNEL_AC, state_long(&v->s) ? sp : (uint32_t)(st->ss.base + sp), n, value);
	st->sp = sp;
}

static void inner_stack_open(struct vcpu *v, unsigned cpl, struct inner_stack *st)
{
	struct descriptor d;
	uint64_t gva;
	uint16_t sel;
	uint32_t esp;

	if (state_long(&v->s)) {
		st->sp = tss_stack64(v, cpl);
		st->mask = ~0ull;
		seg_null(&st->ss, (uint16_t)cpl, cpl);
		return;
	}
	tss_stack(v, cpl, &sel, &esp);
	seg_check_ss(v, sel, cpl, EXC_TS, &d, &gva);
	desc_set_accessed(v, &d, gva);
	seg_from_desc(&st->ss, sel, &d);
	st->mask = desc_big(&d) ? 0xffffffffull : 0xffff;
	st->sp = esp & st->mask;
}

static void gate_call_inner(struct vcpu *v, const struct insn *in, unsigned cpl, unsigned n, unsigned params)
{
	struct inner_stack st;
	uint64_t sp = v->s.gpr[REG_RSP], m = stack_mask(v);

	inner_stack_open(v, cpl, &st);
	inner_push(v, &st, v->s.seg[SEG_SS].selector, n);
	inner_push(v, &st, sp & m, n);
	for (unsigned i = params; i-- > 0;)
		inner_push(v, &st, mem_ld(v, SEG_SS, (sp + i * n) & m, n), n);
	inner_push(v, &st, v->s.seg[SEG_CS].selector, n);
	inner_push(v, &st, v->s.rip + in->len, n);
	v->s.seg[SEG_SS] = st.ss;
	v->s.gpr[REG_RSP] = st.mask == 0xffff ? (sp & ~0xffffull) | st.sp : st.sp;
}

static void far_gate(struct vcpu *v, const struct insn *in, uint16_t sel, bool call, const struct descriptor *g,
		     uint64_t gva)
{
	unsigned cpl = state_cpl(&v->s), n = state_long(&v->s) ? 8 : desc_type(g) == 12 ? 4 : 2, new_cpl;
	struct descriptor d;
	uint16_t code;
	uint64_t off, code_gva;

	if (desc_dpl(g) < cpl || desc_dpl(g) < (sel & 3u))
		gp(v, SEL_ERR(sel));
	if (!desc_present(g))
		vcpu_raise_error(v, EXC_NP, SEL_ERR(sel));
	off = gate_offset(v, sel, g, gva, &code);
	if (!(code & 0xfffc))
		gp(v, 0);
	desc_fetch(v, code, &d, &code_gva, EXC_GP);
	if (!desc_code(&d) || desc_dpl(&d) > cpl || (state_long(&v->s) && (!desc_long(&d) || desc_big(&d))))
		gp(v, SEL_ERR(code));
	if (!call && !desc_conforming(&d) && desc_dpl(&d) != cpl)
		gp(v, SEL_ERR(code));
	if (!desc_present(&d))
		vcpu_raise_error(v, EXC_NP, SEL_ERR(code));
	check_target(v, &d, off);
	new_cpl = desc_conforming(&d) ? cpl : desc_dpl(&d);
	if (call && new_cpl < cpl) {
		gate_call_inner(v, in, new_cpl, n, state_long(&v->s) ? 0 : g->hi & 31);
	} else if (call) {
		mem_probe_store(v, SEG_SS, (v->s.gpr[REG_RSP] - 2 * n) & stack_mask(v), n);
		push(v, v->s.seg[SEG_CS].selector, n);
		push(v, v->s.rip + in->len, n);
	}
	set_cs(v, code, &d, code_gva, new_cpl);
	v->s.rip = off;
}

static void far_task(struct vcpu *v, const struct insn *in, uint16_t sel, const struct descriptor *d, bool call)
{
	unsigned cpl = state_cpl(&v->s);

	if (desc_dpl(d) < cpl || desc_dpl(d) < (sel & 3u))
		gp(v, SEL_ERR(sel));
	if (!desc_present(d))
		vcpu_raise_error(v, EXC_NP, SEL_ERR(sel));
	if (desc_type(d) == 5)
		sel = (uint16_t)(d->lo >> 16);
	v->s.rip += in->len;
	task_switch(v, sel, call ? TASK_CALL : TASK_JMP, false, 0);
}

static void far_jump(struct vcpu *v, const struct insn *in, uint16_t sel, uint64_t off, bool call)
{
	struct descriptor d;
	uint64_t gva;

	if (real_or_v86(v)) {
		far_real(v, in, sel, off, call);
		return;
	}
	if (!(sel & 0xfffc))
		gp(v, 0);
	desc_fetch(v, sel, &d, &gva, EXC_GP);
	if (!desc_system(&d)) {
		if (!desc_code(&d))
			gp(v, SEL_ERR(sel));
		far_code(v, in, sel, off, call, &d, gva);
	} else if (desc_type(&d) == 12 || (desc_type(&d) == 4 && !state_long(&v->s))) {
		far_gate(v, in, sel, call, &d, gva);
	} else if (!state_long(&v->s) && (desc_type(&d) == 5 || desc_type(&d) == 1 || desc_type(&d) == 9)) {
		far_task(v, in, sel, &d, call);
	} else {
		gp(v, SEL_ERR(sel));
	}
	vcpu_update_mode(v);
}

static void far_operand(struct vcpu *v, const struct insn *in, bool call)
{
	uint64_t off, ea;
	uint16_t sel;

	if (in->ops[0].kind == OPK_FAR) {
		off = in->imm;
		sel = in->far_selector;
	} else {
		ea = mem_ea(v, in);
		off = mem_ld(v, in->mem.seg, ea, in->opsize);
		sel = (uint16_t)mem_ld(v, in->mem.seg, ea + in->opsize, 2);
	}
	far_jump(v, in, sel, off, call);
}

INTERP_HANDLER(op_jmpf) { far_operand(v, in, false); }
INTERP_HANDLER(op_callf) { far_operand(v, in, true); }

/* --- returns --- */

struct far_return {
	uint64_t rip, rsp, rflags;
	uint16_t cs, ss;
	bool pops_ss;		/* to an outer level, or any IRET in 64-bit mode */
};

/* Checks a return's CS; gives its descriptor. */
static void return_check_cs(struct vcpu *v, const struct far_return *r, struct descriptor *d, uint64_t *gva)
{
	unsigned rpl = r->cs & 3;

	if (!(r->cs & 0xfffc))
		gp(v, 0);
	desc_fetch(v, r->cs, d, gva, EXC_GP);
	if (!desc_code(d) || rpl < state_cpl(&v->s) || !code_mode_valid(v, d))
		gp(v, SEL_ERR(r->cs));
	if (desc_conforming(d) ? desc_dpl(d) > rpl : desc_dpl(d) != rpl)
		gp(v, SEL_ERR(r->cs));
	if (!desc_present(d))
		vcpu_raise_error(v, EXC_NP, SEL_ERR(r->cs));
	check_target(v, d, r->rip);
}

static void return_load_ss(struct vcpu *v, const struct far_return *r, const struct descriptor *cs,
			   struct x86_segment *out)
{
	unsigned rpl = r->cs & 3;
	struct descriptor d;
	uint64_t gva;

	if (!(r->ss & 0xfffc)) {
		if (!state_long(&v->s) || !desc_long(cs) || rpl == 3 || (r->ss & 3u) != rpl)
			gp(v, 0);
		seg_null(out, r->ss, rpl);
		return;
	}
	seg_check_ss(v, r->ss, rpl, EXC_GP, &d, &gva);
	desc_set_accessed(v, &d, gva);
	seg_from_desc(out, r->ss, &d);
}

/* Commits a return to protected or long mode code. */
static void return_commit(struct vcpu *v, const struct far_return *r, unsigned release)
{
	struct x86_segment ss = v->s.seg[SEG_SS];
	unsigned cpl = state_cpl(&v->s), rpl = r->cs & 3;
	struct descriptor cs;
	uint64_t gva;

	return_check_cs(v, r, &cs, &gva);
	if (r->pops_ss)
		return_load_ss(v, r, &cs, &ss);
	set_cs(v, r->cs, &cs, gva, rpl);
	v->s.rip = r->rip;
	if (r->pops_ss) {
		v->s.seg[SEG_SS] = ss;
		vcpu_update_mode(v);
		rsp_set(v, r->rsp + release);
	}
	if (rpl > cpl)
		seg_drop_inner(v, rpl);
	vcpu_update_mode(v);
}

INTERP_HANDLER(op_retf)
{
	unsigned n = in->opsize, release = in->nops ? in->imm & 0xffff : 0;
	struct far_return r = { .rip = stack_peek(v, 0, n), .cs = (uint16_t)stack_peek(v, n, n) };

	if (real_or_v86(v)) {
		if (r.rip > v->s.seg[SEG_CS].limit)
			gp(v, 0);
		seg_load_real(v, SEG_CS, r.cs);
		v->s.rip = r.rip;
		rsp_add(v, 2 * n + release);
		return;
	}
	if ((r.cs & 3u) > state_cpl(&v->s)) {
		r.rsp = stack_peek(v, 2 * n + release, n);
		r.ss = (uint16_t)stack_peek(v, 3 * n + release, n);
		r.pops_ss = true;
		return_commit(v, &r, release);
	} else {
		uint64_t sp = v->s.gpr[REG_RSP] + 2 * n + release;
		return_commit(v, &r, 0);
		rsp_set(v, sp);
	}
}

/* --- IRET --- */

static void iret_flags(struct vcpu *v, uint64_t image, unsigned n, unsigned cpl)
{
	uint64_t mask = FLAGS_ARITH | FLAG_TF | FLAG_DF | FLAG_NT;

	if (n >= 4)
		mask |= FLAG_RF | FLAG_AC | FLAG_ID;
	if (cpl <= (v->s.rflags >> 12 & 3))
		mask |= FLAG_IF;
	if (cpl == 0)
		mask |= FLAG_IOPL | (n >= 4 ? FLAG_VIF | FLAG_VIP : 0);
	flags_set(v, mask, image);
	interp_of(v)->keep_rf = true;
}

static void iret_real(struct vcpu *v, const struct insn *in)
{
	unsigned n = in->opsize;
	uint64_t rip = stack_peek(v, 0, n), cs = stack_peek(v, n, n), fl = stack_peek(v, 2 * n, n);
	uint64_t mask = FLAGS_ARITH | FLAG_TF | FLAG_IF | FLAG_DF | FLAG_NT;

	if (rip > v->s.seg[SEG_CS].limit)
		gp(v, 0);
	mask |= v->s.rflags & FLAG_VM ? 0 : FLAG_IOPL;
	mask |= n == 4 ? FLAG_RF | FLAG_AC | FLAG_ID : 0;
	seg_load_real(v, SEG_CS, (uint16_t)cs);
	v->s.rip = rip;
	rsp_add(v, 3 * n);
	flags_set(v, mask, fl);
	interp_of(v)->keep_rf = true;
}

/* IRET in V86 mode: IOPL 3, or with VME the 16-bit form on the virtual IF. */
static void iret_v86(struct vcpu *v, const struct insn *in)
{
	uint64_t fl;

	if ((v->s.rflags & FLAG_IOPL) == FLAG_IOPL) {
		iret_real(v, in);
		return;
	}
	if (!(v->s.cr4 & CR4_VME) || in->opsize != 2)
		gp(v, 0);
	fl = stack_peek(v, 4, 2);
	if ((fl & FLAG_TF) || ((fl & FLAG_IF) && (v->s.rflags & FLAG_VIP)))
		gp(v, 0);
	{
		uint64_t keep = v->s.rflags & FLAG_IF;
		iret_real(v, in);
		flags_set(v, FLAG_IF | FLAG_VIF, keep | (fl & FLAG_IF ? FLAG_VIF : 0));
	}
}

static void iret_to_v86(struct vcpu *v, const struct far_return *r)
{
	static const uint8_t order[] = { SEG_ES, SEG_DS, SEG_FS, SEG_GS };
	uint16_t sel[SEG_COUNT];
	uint64_t rsp = stack_peek(v, 12, 4);

	sel[SEG_CS] = r->cs;
	sel[SEG_SS] = (uint16_t)stack_peek(v, 16, 4);
	for (unsigned i = 0; i < 4; i++)
		sel[order[i]] = (uint16_t)stack_peek(v, 20 + 4 * i, 4);
	if (r->rip > 0xffff)
		gp(v, 0);
	flags_set(v, 0x3fffff & ~FLAG_FIXED, r->rflags);
	v->s.rflags |= FLAG_VM;
	interp_of(v)->keep_rf = true;
	seg_load_v86_all(v, sel);
	v->s.gpr[REG_RSP] = (uint32_t)rsp;
	v->s.rip = r->rip & 0xffff;
	vcpu_update_mode(v);
}

static void iret_task(struct vcpu *v, const struct insn *in)
{
	uint16_t link = (uint16_t)sys_load(v, v->s.tr.base, 2);

	if (link & 4)
		vcpu_raise_error(v, EXC_TS, SEL_ERR(link));
	v->s.rip += in->len;
	task_switch(v, link, TASK_IRET, false, 0);
}

static void iret_protected(struct vcpu *v, const struct insn *in)
{
	unsigned n = in->opsize, cpl = state_cpl(&v->s);
	struct far_return r = { .rip = stack_peek(v, 0, n), .cs = (uint16_t)stack_peek(v, n, n),
				.rflags = stack_peek(v, 2 * n, n) };
	uint64_t sp = v->s.gpr[REG_RSP] + 3 * n;

	if (n == 4 && (r.rflags & FLAG_VM) && cpl == 0 && !state_long(&v->s)) {
		iret_to_v86(v, &r);
		return;
	}
	r.pops_ss = v->insn_mode == INSN_64 || (r.cs & 3u) > cpl;
	if (r.pops_ss) {
		r.rsp = stack_peek(v, 3 * n, n);
		r.ss = (uint16_t)stack_peek(v, 4 * n, n);
		return_commit(v, &r, 0);
	} else {
		return_commit(v, &r, 0);
		rsp_set(v, sp);
	}
	iret_flags(v, r.rflags, n, cpl);
	vcpu_update_mode(v);
}

/* A 64-bit code segment (or for !code a writable data segment) of the GDT with DPL = RPL and its accessed bit set. */
static bool quick_segment(struct vcpu *v, uint16_t sel, bool code, struct x86_segment *out)
{
	struct descriptor d;
	uint64_t gva;

	if ((sel & 4) || !(sel & 0xfffc) || !desc_read(v, sel, &d, &gva) || desc_dpl(&d) != (sel & 3u))
		return false;
	if (code ? (d.hi & 0x609d00) != 0x209900 : (d.hi & 0x9b00) != 0x9300)
		return false;
	seg_from_desc(out, sel, &d);
	return true;
}

static bool quick_stack(struct vcpu *v, uint16_t sel, unsigned rpl, struct x86_segment *out)
{
	if ((sel & 3u) != rpl)
		return false;
	if (sel & 0xfffc)
		return quick_segment(v, sel, false, out);
	if (rpl == 3)
		return false;
	seg_null(out, sel, rpl);
	return true;
}

bool iret_quick(struct vcpu *v)
{
	struct x86_state *s = &v->s;
	const struct tlb_entry *t = tlb_at(v, v->tlb_mode, false, s->gpr[REG_RSP]);
	struct x86_segment cs, ss;
	uint64_t frame[5];	/* RIP, CS, RFLAGS, RSP, SS */
	unsigned cpl = state_cpl(s), rpl;

	if (!tlb_hit(t, s->gpr[REG_RSP], sizeof frame) || (s->rflags & FLAG_NT) || s->nmi_blocked)
		return false;
	memcpy(frame, (const void *)(s->gpr[REG_RSP] + t->addend), sizeof frame);
	rpl = frame[1] & 3;
	if ((frame[2] & FLAG_TF) || rpl < cpl || !va_canonical(v, frame[0]) ||
	    !quick_segment(v, (uint16_t)frame[1], true, &cs) || !quick_stack(v, (uint16_t)frame[4], rpl, &ss))
		return false;
	s->seg[SEG_CS] = cs;
	s->seg[SEG_SS] = ss;
	s->rip = frame[0];
	s->gpr[REG_RSP] = frame[3];
	if (rpl > cpl)
		seg_drop_inner(v, rpl);
	iret_flags(v, frame[2], 8, cpl);
	vcpu_update_mode(v);
	if ((s->rflags & FLAG_IF) && v->w.irq_pending(v->w.opaque))
		interp_of(v)->check_events = true;
	return true;
}

INTERP_HANDLER(op_iret)
{
	if (!(v->s.cr0 & CR0_PE))
		iret_real(v, in);
	else if (v->s.rflags & FLAG_VM)
		iret_v86(v, in);
	else if ((v->s.rflags & FLAG_NT) && state_long(&v->s))
		gp(v, 0);
	else if (v->s.rflags & FLAG_NT)
		iret_task(v, in);
	else
		iret_protected(v, in);
	if (v->s.nmi_blocked)
		nmi_latch(v);		/* as of before: at most one */
	v->s.nmi_blocked = 0;
	interp_of(v)->check_events = true;
	debug_update(v);
}
