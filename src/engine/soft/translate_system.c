/*
 * System instructions: SYSCALL, SYSRET, SWAPGS, STAC, CLAC, segment bases, reads of control registers, selectors and
 * the TSC.
 *
 * What they depend on besides registers (EFER, STAR, CR4) is boiled down to hot.syscall_* by
 * vcpu_update_mode(); whatever is out of the ordinary steps in the interpreter. Those that change the TLB mode end
 * their block and look the next one up in the other mode's jump cache.
 */
#include "engine/soft/translate_private.h"

#define OFF_S(f) offsetof(struct vcpu, s.f)
#define OFF_SEG(n) (offsetof(struct vcpu, s.seg) + (n) * sizeof(struct x86_segment))
/* Limit, selector and attributes, as one 64-bit word. */
#define OFF_SEG_REST(n) (OFF_SEG(n) + offsetof(struct x86_segment, limit))
#define SYSRET_FLAGS 0x3c7fd7u

static void step_if(struct block_build *b, struct block_insn *bi, unsigned cc)
{
	block_stub(b, STUB_STEP, emit_jcc(&b->e, cc), bi->offset)->flags_saved = true;
}

static void emit_copy(struct emitter *e, uint64_t from, uint64_t to)
{
	emit_load(e, H_T1, hm_gs(from));
	emit_store(e, H_T1, hm_gs(to));
}

static void emit_zero(struct emitter *e, uint64_t off)
{
	emit_op_mem(e, true, 0xc7, 0, hm_gs(off));
	e_u32(e, 0);
}

/* Flat CS and SS. */
static void emit_segments(struct emitter *e, uint64_t cs, uint64_t ss)
{
	emit_zero(e, OFF_SEG(SEG_CS));
	emit_copy(e, cs, OFF_SEG_REST(SEG_CS));
	emit_zero(e, OFF_SEG(SEG_SS));
	emit_copy(e, ss, OFF_SEG_REST(SEG_SS));
}

/* Afterwards NE if reg is no canonical address. temp: T0 or T1. */
static void emit_canonical_cmp(struct emitter *e, unsigned reg, unsigned temp, bool la57)
{
	unsigned bits = la57 ? 7 : 16;

	emit_op_reg(e, true, 0x89, reg, temp);
	e3(e, 0x49, 0xc1, 0xe0 | (temp & 7)), e1(e, bits);	/* shl temp, bits */
	e3(e, 0x49, 0xc1, 0xf8 | (temp & 7)), e1(e, bits);	/* sar temp, bits */
	emit_op_reg(e, true, 0x39, reg, temp);			/* cmp temp, reg */
}

/* The block's mode with another TLB mode; false: no jump cache for it. */
static bool other_mode(struct block_build *b, unsigned tlb_mode, unsigned *mode)
{
	*mode = TMODE(tlb_mode, TMODE_FP(b->mode)) | (b->mode & TMODE_CODE32);
	return jump_cache_need(b->v, *mode) == 0;
}

static enum insn_result syscall_translate(struct block_build *b, struct block_insn *bi)
{
	struct emitter *e = &b->e;
	uint8_t ready = b->v->hot.syscall_mode;
	unsigned mode;

	if (!ready || !other_mode(b, ready & ~SYSCALL_LA57, &mode))
		return INSN_STEP;
	emit_flags_save(e);
	emit_cmp_imm8(e, true, hm_gs(OFF_HOT(syscall_mode)), ready);
	step_if(b, bi, CC_NE);
	emit_rflags_whole(e);
	emit_store(e, H_T0, hm_gs(OFF_GPR(REG_R11)));
	emit_load(e, H_T1, hm_gs(OFF_S(sfmask)));
	e3(e, 0x49, 0xf7, 0xd7);				/* not t1 */
	emit_op_reg(e, false, 0x21, H_T1, H_T0);		/* and t0d, t1d */
	e3(e, 0x41, 0x83, 0xce), e1(e, FLAG_FIXED);		/* or t0d, 2 */
	emit_store(e, H_T0, hm_gs(OFF_S(rflags)));
	emit_segments(e, OFF_HOT(syscall_cs), OFF_HOT(syscall_ss));
	emit_store_imm8(e, hm_gs(offsetof(struct vcpu, tlb_mode)), ready & ~SYSCALL_LA57);
	emit_store(e, H_RAX, hm_gs(OFF_HOT(save_rax)));
	emit_flags_load(e);
	emit_load(e, H_RAX, hm_gs(OFF_HOT(save_rax)));
	emit_page_address(b, H_RCX, bi->offset + bi->in.len);
	emit_load(e, H_T0, hm_gs(OFF_S(lstar)));
	jump_indirect_mode(b, mode);
	return INSN_ENDS;
}

/* The 64-bit form. TF and AC are the interpreter's, and so is anything that may let an interrupt in. */
static enum insn_result sysret_translate(struct block_build *b, struct block_insn *bi)
{
	struct emitter *e = &b->e;
	uint8_t ready = b->v->hot.syscall_mode;
	unsigned mode;

	if (!ready || b->tlb_mode == TLB_USER || bi->in.opsize != 8 || !other_mode(b, TLB_USER, &mode))
		return INSN_STEP;
	emit_flags_save(e);
	emit_cmp_imm8(e, true, hm_gs(OFF_HOT(syscall_mode)), ready);
	step_if(b, bi, CC_NE);
	emit_cmp_imm8(e, true, hm_gs(OFF_HOT(irq_hint)), 0);
	step_if(b, bi, CC_NE);
	emit_canonical_cmp(e, H_RCX, H_T0, ready & SYSCALL_LA57);
	step_if(b, bi, CC_NE);
	emit_load(e, H_T0, hm_gs(OFF_GPR(REG_R11)));
	e3(e, 0x41, 0xf7, 0xc6), e_u32(e, FLAG_TF | FLAG_AC);	/* test t0d, .. */
	step_if(b, bi, CC_NE);
	e3(e, 0x41, 0x81, 0xe6), e_u32(e, SYSRET_FLAGS);	/* and t0d, .. */
	e3(e, 0x41, 0x83, 0xce), e1(e, FLAG_FIXED);		/* or t0d, 2 */
	emit_store(e, H_T0, hm_gs(OFF_S(rflags)));
	emit_segments(e, OFF_HOT(sysret_cs), OFF_HOT(sysret_ss));
	emit_store_imm8(e, hm_gs(offsetof(struct vcpu, tlb_mode)), TLB_USER);
	emit_store(e, H_RAX, hm_gs(OFF_HOT(save_rax)));
	emit_op_reg(e, true, 0x89, H_RCX, H_T0);
	emit_flags_load(e);
	emit_op_reg(e, true, 0x89, H_T0, H_RCX);
	emit_load(e, H_RAX, hm_gs(OFF_HOT(save_rax)));
	jump_indirect_mode(b, mode);
	return INSN_ENDS;
}

static enum insn_result swapgs_translate(struct block_build *b)
{
	struct emitter *e = &b->e;

	if (b->tlb_mode == TLB_USER)
		return INSN_STEP;
	emit_load(e, H_T0, hm_gs(OFF_SEG(SEG_GS)));
	emit_load(e, H_T1, hm_gs(OFF_S(kernel_gs_base)));
	emit_store(e, H_T0, hm_gs(OFF_S(kernel_gs_base)));
	emit_store(e, H_T1, hm_gs(OFF_SEG(SEG_GS)));
	return INSN_NEXT;
}

/* STAC, CLAC while CR4.SMAP is set: a bit, and the next instruction in the other mode. */
static enum insn_result smap_translate(struct block_build *b, struct block_insn *bi, bool set)
{
	struct emitter *e = &b->e;
	unsigned tlb_mode = set ? TLB_KERNEL_AC : TLB_KERNEL, mode;

	if (b->tlb_mode == TLB_USER || !(b->v->s.cr4 & CR4_SMAP) || !other_mode(b, tlb_mode, &mode))
		return INSN_STEP;
	emit_flags_save(e);
	emit_cmp_imm8(e, true, hm_gs(OFF_HOT(smap)), 1);
	step_if(b, bi, CC_NE);
	emit_op_mem(e, false, 0x81, set ? 1 : 4, hm_gs(OFF_S(rflags)));
	e_u32(e, set ? FLAG_AC : ~FLAG_AC);
	emit_store_imm8(e, hm_gs(offsetof(struct vcpu, tlb_mode)), (uint8_t)tlb_mode);
	emit_flags_restore(e);
	emit_page_address(b, H_T0, bi->offset + bi->in.len);
	jump_indirect_mode(b, mode);
	return INSN_ENDS;
}

static enum insn_result pause_translate(struct block_build *b, struct block_insn *bi)
{
	struct emitter *e = &b->e;

	if (bi->in.lock)
		return INSN_STEP;
	emit_flags_save(e);
	emit_op_mem(e, false, 0x83, 5, hm_gs(OFF_HOT(pauses_left)));	/* sub .., 1 */
	e1(e, 1);
	step_if(b, bi, CC_S);
	e2(e, 0xf3, 0x90);
	emit_flags_restore(e);
	return INSN_NEXT;
}

bool system_goes_on(const struct insn *in)
{
	switch (in->op) {
	case X86_CPUID: case X86_XSAVES: case X86_XRSTORS: case X86_SWAPGS: case X86_RDTSC: case X86_RDTSCP: case X86_PAUSE:
	case X86_RDFSBASE: case X86_RDGSBASE: case X86_WRFSBASE: case X86_WRGSBASE:
		return true;
	case X86_MOV_CR: return in->ops[1].kind == OPK_CR;
	case X86_MOV_SEG: return in->ops[1].kind == OPK_SEG;
	default: return false;
	}
}

static void emit_gpr_store(struct emitter *e, unsigned guest, unsigned temp)
{
	if (host_reg_of(guest) == H_NONE)
		emit_store(e, temp, hm_gs(OFF_GPR(guest)));
}

static struct host_mem selector_field(unsigned seg)
{
	return hm_gs(OFF_SEG(seg) + offsetof(struct x86_segment, selector));
}

/* A selector into a register: zero-extended, but for a 16-bit one; or into 16 bits of memory. */
static enum insn_result selector_translate(struct block_build *b, struct block_insn *bi)
{
	struct emitter *e = &b->e;
	const struct operand *d = &bi->in.ops[0], *s = &bi->in.ops[1];
	unsigned h, spare;
	struct host_mem m;

	if (s->kind != OPK_SEG || s->reg >= SEG_COUNT || bi->in.lock)
		return INSN_STEP;
	if (d->kind == OPK_MEM) {
		if (!mem_translatable(b, &bi->in))
			return INSN_STEP;
		m = mem_translate(b, bi, 2, true, &spare);
		emit_op_mem2(e, 0xb7, spare, selector_field(s->reg));	/* movzx */
		e1(e, 0x66);
		emit_op_mem(e, false, 0x89, spare, m);
		return INSN_NEXT;
	}
	h = host_reg_of(d->reg) == H_NONE ? (unsigned)H_T0 : host_reg_of(d->reg);
	if (d->size == 2) {
		if (h == H_T0)
			emit_load(e, H_T0, hm_gs(OFF_GPR(d->reg)));
		e1(e, 0x66);
		emit_op_mem(e, false, 0x8b, h, selector_field(s->reg));
	} else {
		emit_op_mem2(e, 0xb7, h, selector_field(s->reg));
	}
	emit_gpr_store(e, d->reg, H_T0);
	return INSN_NEXT;
}

/* RDFSBASE and kin, if CR4 still has them. */
static enum insn_result base_translate(struct block_build *b, struct block_insn *bi, unsigned seg, bool write)
{
	struct emitter *e = &b->e;
	const struct operand *o = &bi->in.ops[0];
	unsigned h = host_reg_of(o->reg);
	uint8_t ready = b->v->s.cr4 & CR4_LA57 ? FSGSBASE_LA57 : FSGSBASE_LA48;
	bool wide = o->size == 8;

	if (o->kind != OPK_GPR || bi->in.lock)
		return INSN_STEP;
	emit_flags_save(e);
	emit_cmp_imm8(e, true, hm_gs(OFF_HOT(fsgsbase)), ready);
	step_if(b, bi, CC_NE);
	if (h == H_NONE)
		emit_load(e, H_T0, hm_gs(OFF_GPR(o->reg)));
	if (write) {
		if (h != H_NONE)
			emit_op_reg(e, wide, 0x89, h, H_T0);
		else if (!wide)
			emit_op_reg(e, false, 0x89, H_T0, H_T0);
		emit_canonical_cmp(e, H_T0, H_T1, ready == FSGSBASE_LA57);
		step_if(b, bi, CC_NE);
		emit_store(e, H_T0, hm_gs(OFF_SEG(seg)));
	} else {
		emit_op_mem(e, wide, 0x8b, h == H_NONE ? (unsigned)H_T0 : h, hm_gs(OFF_SEG(seg)));
		emit_gpr_store(e, o->reg, H_T0);
	}
	emit_flags_restore(e);
	return INSN_NEXT;
}

/* --- visits: C is called, the guest's registers and vector state stay where they are --- */

/* NE if fn(v, T0, T1) has done it. */
static void emit_visit(struct vcpu *v, struct emitter *e, bool (*fn)(struct vcpu *, uint64_t, uint64_t))
{
	static const uint8_t saved[] = { H_RAX, H_RCX, H_RDX, H_RSI, H_RDI, H_R8, H_R9, H_R10, H_R11 };

	emit_store(e, H_RAX, hm_gs(OFF_GPR(REG_RAX)));
	emit_store(e, H_RCX, hm_gs(OFF_GPR(REG_RCX)));
	emit_store(e, H_RDX, hm_gs(OFF_GPR(REG_RDX)));
	for (unsigned i = 0; i < sizeof saved; i++)	/* nothing there asks for an aligned stack */
		emit_push(e, saved[i], false);
	emit_mov_imm(e, H_RDI, (uint64_t)(uintptr_t)v);
	emit_op_reg(e, true, 0x89, H_T0, H_RSI);
	emit_op_reg(e, true, 0x89, H_T1, H_RDX);
	emit_mov_imm(e, H_RAX, (uint64_t)(uintptr_t)fn);
	e2(e, 0xff, 0xd0);				/* call rax */
	e2(e, 0x84, 0xc0);				/* test al, al */
	for (unsigned i = sizeof saved; i-- > 0; )
		emit_push(e, saved[i], true);
	e1(e, 0xc3);
}

static void emit_visits(struct vcpu *v, struct emitter *e)
{
	static bool (*const fn[VISIT_COUNT])(struct vcpu *, uint64_t, uint64_t) = {
		[VISIT_CPUID] = cpuid_quick, [VISIT_CR3] = cr3_quick, [VISIT_STATE] = state_quick,
	};

	for (unsigned i = 0; i < VISIT_COUNT; i++) {
		trans_of(v)->visit[i] = e->p;
		emit_visit(v, e, fn[i]);
	}
}

static enum insn_result cpuid_translate(struct block_build *b, struct block_insn *bi)
{
	static const uint8_t out[] = { REG_RAX, REG_RBX, REG_RCX, REG_RDX };
	struct emitter *e = &b->e;

	if (bi->in.lock)
		return INSN_STEP;
	emit_flags_save(e);
	emit_call_to(e, b->t->visit[VISIT_CPUID]);
	step_if(b, bi, CC_E);
	for (unsigned i = 0; i < sizeof out; i++)
		emit_load(e, host_reg_of(out[i]), hm_gs(OFF_GPR(out[i])));
	emit_flags_restore(e);
	return INSN_NEXT;
}

/* What comes behind it is looked up: it may lie elsewhere now. */
static enum insn_result cr3_translate(struct block_build *b, struct block_insn *bi)
{
	const struct operand *s = &bi->in.ops[1];
	struct emitter *e = &b->e;
	unsigned h = host_reg_of(s->reg);

	if (b->tlb_mode == TLB_USER || !b->wide || bi->in.lock)
		return INSN_STEP;
	emit_flags_save(e);
	if (h == H_NONE)
		emit_load(e, H_T0, hm_gs(OFF_GPR(s->reg)));
	else
		emit_op_reg(e, true, 0x89, h, H_T0);
	emit_call_to(e, b->t->visit[VISIT_CR3]);
	step_if(b, bi, CC_E);
	b->flags_at = FLAGS_PARKED;
	emit_page_address(b, H_T0, bi->offset + bi->in.len);
	jump_indirect(b);
	return INSN_ENDS;
}

static unsigned state_what(const struct insn *in)
{
	unsigned wide = in->rex & 8 ? STATE_WIDE : 0;

	switch (in->op) {
	case X86_XSAVEOPT: return wide | STATE_USED;
	case X86_XSAVEC: return wide | STATE_USED | STATE_COMPACT;
	case X86_XSAVES: return wide | STATE_USED | STATE_COMPACT | STATE_SUPERVISOR;
	case X86_XRSTOR: return wide | STATE_LOAD;
	case X86_XRSTORS: return wide | STATE_LOAD | STATE_SUPERVISOR;
	default: return wide;
	}
}

/* The mode says that CR4.OSXSAVE is set, and CR0.TS clear. */
enum insn_result state_translate(struct block_build *b, struct block_insn *bi)
{
	const struct insn *in = &bi->in;
	struct emitter *e = &b->e;
	unsigned what = state_what(in), seg = in->mem.seg;

	if (!b->wide || TMODE_FP(b->mode) < FP_AVX || in->lock || !mem_translatable(b, in) ||
	    ((what & STATE_SUPERVISOR) && b->tlb_mode == TLB_USER))
		return INSN_STEP;
	flags_only_host(b);
	emit_flags_save(e);
	address_translate(b, in, H_T0, bi->offset + in->len, true);
	if (seg == SEG_FS || seg == SEG_GS)
		emit_op_mem(e, true, 0x03, H_T0, hm_gs(OFF_SEG(seg)));
	emit_mov_imm(e, H_T1, what);
	emit_call_to(e, b->t->visit[VISIT_STATE]);
	step_if(b, bi, CC_E);
	emit_flags_restore(e);
	return INSN_NEXT;
}

/*
 * RDX, RAX := the TSC; flags are lost. A call from translated code with the guest's registers where they are, vector
 * state too: soft_tsc() leaves that alone.
 */
void system_emit_visits(struct vcpu *v, struct emitter *e)
{
	static const uint8_t saved[] = { H_RCX, H_RSI, H_RDI, H_R8, H_R9, H_R10, H_R11, H_RBP };

	trans_of(v)->visit_tsc = e->p;
	for (unsigned i = 0; i < sizeof saved; i++)
		emit_push(e, saved[i], false);
	e3(e, 0x48, 0x89, 0xe5);			/* mov rbp, rsp */
	e2(e, 0x48, 0x83), e2(e, 0xe4, 0xf0);		/* and rsp, -16 */
	emit_mov_imm(e, H_RDI, (uint64_t)(uintptr_t)v);
	emit_mov_imm(e, H_RAX, (uint64_t)(uintptr_t)soft_tsc);
	e2(e, 0xff, 0xd0);				/* call rax */
	emit_op_reg(e, true, 0x89, H_RAX, H_RDX);
	e2(e, 0x48, 0xc1), e2(e, 0xea, 32);		/* shr rdx, 32 */
	emit_op_reg(e, false, 0x89, H_RAX, H_RAX);
	e3(e, 0x48, 0x89, 0xec);			/* mov rsp, rbp */
	for (unsigned i = sizeof saved; i-- > 0; )
		emit_push(e, saved[i], true);
	e1(e, 0xc3);
	emit_visits(v, e);
}

static enum insn_result tsc_translate(struct block_build *b, struct block_insn *bi)
{
	struct emitter *e = &b->e;
	bool user = b->tlb_mode == TLB_USER, live = bi->live_in & FLAGS_ARITH;

	if (live || user)
		emit_flags_save(e);
	if (user) {
		emit_op_mem(e, false, 0xf7, 0, hm_gs(OFF_S(cr4)));	/* test */
		e_u32(e, CR4_TSD);
		step_if(b, bi, CC_NE);
	}
	emit_call_to(e, b->t->visit_tsc);
	if (bi->in.op == X86_RDTSCP)
		emit_op_mem(e, false, 0x8b, H_RCX, hm_gs(OFF_S(tsc_aux)));
	if (live || user)
		emit_flags_restore(e);
	return INSN_NEXT;
}

static enum insn_result cr_read_translate(struct block_build *b, const struct insn *in)
{
	static const uint64_t off[] = { [0] = OFF_S(cr0), [2] = OFF_S(cr2), [3] = OFF_S(cr3), [4] = OFF_S(cr4) };
	const struct operand *d = &in->ops[0], *s = &in->ops[1];
	unsigned h;

	if (in->lock || b->tlb_mode == TLB_USER || s->kind != OPK_CR || s->reg > 4 || s->reg == 1)
		return INSN_STEP;
	h = host_reg_of(d->reg);
	emit_op_mem(&b->e, b->wide, 0x8b, h == H_NONE ? (unsigned)H_T0 : h, hm_gs(off[s->reg]));
	if (h == H_NONE)
		emit_store(&b->e, H_T0, hm_gs(OFF_GPR(d->reg)));
	return INSN_NEXT;
}

static enum insn_result mov_cr_translate(struct block_build *b, struct block_insn *bi)
{
	const struct operand *d = &bi->in.ops[0];

	if (d->kind == OPK_CR)
		return d->reg == 3 ? cr3_translate(b, bi) : INSN_STEP;
	return cr_read_translate(b, &bi->in);
}

/* C does it, which is quicker than a step. */
static enum insn_result iret_translate(struct block_build *b, struct block_insn *bi)
{
	struct exit_data d = { .offset = bi->offset };

	if (bi->in.opsize != 8)
		return INSN_STEP;
	emit_call_to(&b->e, b->t->exit_to[TEXIT_IRET]);
	memcpy(b->e.p, &d, sizeof d);
	b->e.p += sizeof d;
	return INSN_ENDS;
}

static enum insn_result inline_translate(struct block_build *b, struct block_insn *bi)
{
	switch (bi->in.op) {
	case X86_SYSCALL: return syscall_translate(b, bi);
	case X86_SYSRET: return sysret_translate(b, bi);
	case X86_PAUSE: return pause_translate(b, bi);
	case X86_IRET: return iret_translate(b, bi);
	case X86_SWAPGS: return swapgs_translate(b);
	case X86_STAC: return smap_translate(b, bi, true);
	case X86_CLAC: return smap_translate(b, bi, false);
	case X86_CPUID: return cpuid_translate(b, bi);
	case X86_MOV_CR: return mov_cr_translate(b, bi);
	case X86_MOV_SEG: return selector_translate(b, bi);
	case X86_RDFSBASE: return base_translate(b, bi, SEG_FS, false);
	case X86_RDGSBASE: return base_translate(b, bi, SEG_GS, false);
	case X86_WRFSBASE: return base_translate(b, bi, SEG_FS, true);
	case X86_WRGSBASE: return base_translate(b, bi, SEG_GS, true);
	case X86_RDTSC: case X86_RDTSCP: return tsc_translate(b, bi);
	default: return INSN_STEP;
	}
}

enum insn_result system_translate(struct block_build *b, struct block_insn *bi)
{
	/* Those below differ in 32-bit code, or do not exist. */
	if (b->wide || bi->in.op == X86_STAC || bi->in.op == X86_CLAC || bi->in.op == X86_MOV_CR ||
	    bi->in.op == X86_CPUID || bi->in.op == X86_MOV_SEG || bi->in.op == X86_RDTSC || bi->in.op == X86_RDTSCP || bi->in.op == X86_PAUSE)
		return inline_translate(b, bi);
	return INSN_STEP;
}
