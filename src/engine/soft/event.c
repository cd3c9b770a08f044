/*
 * Delivery of exceptions and interrupts through the IDT, SDM vol. 3 chapter 6.
 *
 * Everything that can fault is read and checked before the first register changes; stack writes happen before
 * the commit, so a fault while pushing leaves registers as they were.
 */
#include "engine/soft/operand.h"

struct event {
	uint8_t vector;
	enum event_kind kind;
	bool has_error;
	uint32_t error;
	uint32_t ext;		/* EXT bit for errors met on the way */
	uint64_t rflags;	/* image to be pushed */
	uint64_t rip;		/* likewise: after an INT n, at a faulting instruction */
};

static _Noreturn void gate_fault(struct vcpu *v, const struct event *e, uint8_t vector, uint32_t error)
{
	vcpu_raise_error(v, vector, error | e->ext);
}

static uint32_t idt_error(const struct event *e) { return e->vector * 8u + 2u; }

/* Where pushes go: linear base and mask of a stack, and its privilege. */
struct frame { uint64_t base, sp, mask; uint32_t limit; bool expand_down; enum tlb_mode mode; };

static void frame_push(struct vcpu *v, const struct event *e, struct frame *f, uint64_t value, unsigned size)
{
	uint64_t sp = (f->sp - size) & f->mask, last = sp + size - 1;

	if (f->expand_down ? sp <= f->limit || last > f->mask : last > f->limit)
		gate_fault(v, e, EXC_SS, 0);
	lin_store(v, f->mode, state_long(&v->s) ? f->base + sp : (uint32_t)(f->base + sp), size, value);
	f->sp = sp;
}

static void frame_from_seg(struct frame *f, const struct x86_segment *ss, uint64_t sp, unsigned cpl)
{
	f->base = ss->base;
	f->mask = ss->attr & SEG_ATTR_DB ? 0xffffffffull : 0xffff;
	f->sp = sp & f->mask;
	f->limit = ss->limit;
	f->expand_down = (ss->attr & 0xc) == 4;
	f->mode = cpl == 3 ? TLB_USER : TLB_KERNEL_AC;
}

/* --- real mode --- */

static void deliver_real(struct vcpu *v, const struct event *e)
{
	struct x86_state *s = &v->s;
	struct frame f;
	uint32_t entry;

	if (e->vector * 4u + 3 > s->idtr.limit)
		gate_fault(v, e, EXC_GP, 0);
	entry = (uint32_t)sys_load(v, s->idtr.base + e->vector * 4u, 4);
	frame_from_seg(&f, &s->seg[SEG_SS], s->gpr[REG_RSP], 0);
	frame_push(v, e, &f, e->rflags & 0xffff, 2);
	frame_push(v, e, &f, s->seg[SEG_CS].selector, 2);
	frame_push(v, e, &f, e->rip & 0xffff, 2);
	rsp_set(v, f.sp);
	s->rflags &= ~(uint64_t)(FLAG_IF | FLAG_TF | FLAG_AC | FLAG_RF);
	seg_load_real(v, SEG_CS, (uint16_t)(entry >> 16));
	s->rip = entry & 0xffff;
	vcpu_update_mode(v);
}

/* --- protected mode, 32 bits --- */

struct gate { uint16_t sel; uint64_t offset; unsigned type, dpl, ist; bool present; };

static void gate_read(struct vcpu *v, const struct event *e, struct gate *g)
{
	bool lm = state_long(&v->s);
	unsigned size = lm ? 16 : 8;
	uint64_t q, hi = 0, at = v->s.idtr.base + e->vector * size;

	if (e->vector * size + size - 1 > v->s.idtr.limit)
		gate_fault(v, e, EXC_GP, idt_error(e));
	q = sys_load(v, at, 8);
	if (lm)
		hi = sys_load(v, at + 8, 8);
	g->sel = (uint16_t)(q >> 16);
	g->offset = (q & 0xffff) | (q >> 32 & 0xffff0000u) | hi << 32;
	g->type = q >> 40 & 0x1f;
	g->dpl = q >> 45 & 3;
	g->ist = lm ? q >> 32 & 7 : 0;
	g->present = q >> 47 & 1;
}

static void gate_check(struct vcpu *v, const struct event *e, const struct gate *g)
{
	bool lm = state_long(&v->s);
	bool ok = g->type == 14 || g->type == 15 || (!lm && (g->type == 5 || g->type == 6 || g->type == 7));

	if (!ok || (e->kind == EVENT_SOFT && g->dpl < state_cpl(&v->s)))
		gate_fault(v, e, EXC_GP, idt_error(e));
	if (!g->present)
		gate_fault(v, e, EXC_NP, idt_error(e));
}

/* Code segment of the handler; returns the CPL it runs at. */
static unsigned handler_code(struct vcpu *v, const struct event *e, const struct gate *g, struct descriptor *d,
			     uint64_t *gva)
{
	unsigned cpl = state_cpl(&v->s);

	if (!(g->sel & 0xfffc))
		gate_fault(v, e, EXC_GP, 0);
	if (!desc_read(v, g->sel, d, gva))
		gate_fault(v, e, EXC_GP, SEL_ERR(g->sel));
	if (!desc_code(d) || desc_dpl(d) > cpl ||
	    (state_long(&v->s) && (!desc_long(d) || desc_big(d))))
		gate_fault(v, e, EXC_GP, SEL_ERR(g->sel));
	if (!desc_present(d))
		gate_fault(v, e, EXC_NP, SEL_ERR(g->sel));
	return desc_conforming(d) ? cpl : desc_dpl(d);
}

/* Flags cleared on entry: TF, NT, RF, VM; IF too through an interrupt gate. */
static void handler_flags(struct vcpu *v, const struct gate *g)
{
	v->s.rflags &= ~(uint64_t)(FLAG_TF | FLAG_NT | FLAG_RF | FLAG_VM);
	if (!(g->type & 1))
		v->s.rflags &= ~(uint64_t)FLAG_IF;
}

static void handler_enter(struct vcpu *v, const struct gate *g, struct descriptor *d, uint64_t gva, unsigned cpl)
{
	desc_set_accessed(v, d, gva);
	handler_flags(v, g);
	seg_from_desc(&v->s.seg[SEG_CS], (uint16_t)((g->sel & ~3u) | cpl), d);
}

static void push_v86_segments(struct vcpu *v, const struct event *e, struct frame *f, unsigned n)
{
	static const uint8_t order[] = { SEG_GS, SEG_FS, SEG_DS, SEG_ES };

	for (unsigned i = 0; i < 4; i++)
		frame_push(v, e, f, v->s.seg[order[i]].selector, n);
}

static void deliver_protected(struct vcpu *v, const struct event *e, const struct gate *g)
{
	struct x86_state *s = &v->s;
	struct x86_segment new_ss = s->seg[SEG_SS];
	struct descriptor cs, ss;
	struct frame f;
	uint64_t cs_gva, ss_gva = 0, eip = g->offset & (g->type & 8 ? 0xffffffffull : 0xffff);
	unsigned cpl = state_cpl(s), n = g->type & 8 ? 4 : 2;
	unsigned new_cpl = handler_code(v, e, g, &cs, &cs_gva);
	bool v86 = s->rflags & FLAG_VM;
	bool inner = new_cpl < cpl;

	if (v86 && new_cpl != 0)
		gate_fault(v, e, EXC_GP, SEL_ERR(g->sel));
	if (inner) {
		uint16_t sel;
		uint32_t esp;
		tss_stack(v, new_cpl, &sel, &esp);
		seg_check_ss(v, sel, new_cpl, EXC_TS, &ss, &ss_gva);
		desc_set_accessed(v, &ss, ss_gva);
		seg_from_desc(&new_ss, sel, &ss);
		frame_from_seg(&f, &new_ss, esp, new_cpl);
		if (v86)
			push_v86_segments(v, e, &f, n);
		frame_push(v, e, &f, s->seg[SEG_SS].selector, n);
		frame_push(v, e, &f, s->gpr[REG_RSP], n);
	} else {
		frame_from_seg(&f, &s->seg[SEG_SS], s->gpr[REG_RSP], cpl);
	}
	frame_push(v, e, &f, e->rflags, n);
	frame_push(v, e, &f, s->seg[SEG_CS].selector, n);
	frame_push(v, e, &f, e->rip, n);
	if (e->has_error)
		frame_push(v, e, &f, e->error, n);
	if (eip > desc_limit(&cs))
		gate_fault(v, e, EXC_GP, 0);

	handler_enter(v, g, &cs, cs_gva, new_cpl);
	if (v86)
		for (unsigned i = 0; i < SEG_COUNT; i++)
			if (i != SEG_CS && i != SEG_SS)
				seg_null(&s->seg[i], 0, 0);
	s->seg[SEG_SS] = new_ss;
	s->gpr[REG_RSP] = f.mask == 0xffff ? (s->gpr[REG_RSP] & ~0xffffull) | f.sp : f.sp;
	s->rip = eip;
	vcpu_update_mode(v);
}

/* --- long mode --- */

static void deliver_long(struct vcpu *v, const struct event *e, const struct gate *g)
{
	struct x86_state *s = &v->s;
	struct descriptor cs;
	struct frame f = { .mask = ~0ull, .limit = ~0u };
	uint64_t cs_gva;
	unsigned cpl = state_cpl(s), new_cpl = handler_code(v, e, g, &cs, &cs_gva);
	uint64_t rsp = s->gpr[REG_RSP];
	uint64_t values[6];
	unsigned n = 0;

	if (g->ist)
		rsp = tss_stack64(v, 3 + g->ist);
	else if (new_cpl < cpl)
		rsp = tss_stack64(v, new_cpl);
	if (!va_canonical(v, g->offset))
		gate_fault(v, e, EXC_GP, 0);
	rsp &= ~15ull;
	if (!va_canonical(v, rsp - 48))
		gate_fault(v, e, EXC_SS, 0);
	values[n++] = s->seg[SEG_SS].selector;
	values[n++] = s->gpr[REG_RSP];
	values[n++] = e->rflags;
	values[n++] = s->seg[SEG_CS].selector;
	values[n++] = e->rip;
	if (e->has_error)
		values[n++] = e->error;
	f.mode = new_cpl == 3 ? TLB_USER : TLB_KERNEL_AC;
	for (unsigned i = 0; i < n; i++) {
		rsp -= 8;
		lin_store(v, f.mode, rsp, 8, values[i]);
	}
	handler_enter(v, g, &cs, cs_gva, new_cpl);
	if (new_cpl != cpl)
		seg_null(&s->seg[SEG_SS], (uint16_t)new_cpl, new_cpl);
	s->gpr[REG_RSP] = rsp;
	s->rip = g->offset;
	vcpu_update_mode(v);
}

static void deliver_task(struct vcpu *v, const struct event *e, const struct gate *g)
{
	v->s.rip = e->rip;
	task_switch(v, g->sel, TASK_EVENT, e->has_error, e->error);
}

/* SDM vol. 3 17.3.1.1: fault-class exceptions push RF set, unless it is an instruction breakpoint. */
static uint64_t flags_image(struct vcpu *v, uint8_t vector, enum event_kind kind)
{
	uint64_t fl = v->s.rflags | FLAG_FIXED;

	if (kind == EVENT_EXCEPTION && vector != EXC_DB && vector != EXC_BP && vector != EXC_OF)
		return fl | FLAG_RF;
	return fl;
}

void event_deliver(struct vcpu *v, uint8_t vector, enum event_kind kind, bool has_error, uint32_t error)
{
	struct event e = { .vector = vector, .kind = kind, .has_error = has_error, .error = error,
			   .ext = kind != EVENT_SOFT, .rflags = flags_image(v, vector, kind), .rip = v->s.rip };
	struct gate g;

	if (kind == EVENT_SOFT || kind == EVENT_ICEBP)
		e.rip += interp_of(v)->soft_len;
	v->s.shadow = 0;
	if (!(v->s.cr0 & CR0_PE)) {
		deliver_real(v, &e);
	} else {
		gate_read(v, &e, &g);
		gate_check(v, &e, &g);
		if (state_long(&v->s))
			deliver_long(v, &e, &g);
		else if (g.type == 5)
			deliver_task(v, &e, &g);
		else
			deliver_protected(v, &e, &g);
	}
	if (kind == EVENT_NMI)
		v->s.nmi_blocked = 1;
}
