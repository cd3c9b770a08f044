/*
 * Hardware task switches, SDM vol. 3 chapter 7. Legacy mode only.
 *
 *   32-bit TSS: 0 link | 1C CR3 | 20 EIP | 24 EFLAGS | 28 EAX..EDI | 48 ES CS SS DS FS GS | 60 LDT | 64 T
 *   16-bit TSS: 0 link | 0E IP | 10 FLAGS | 12 AX..DI | 22 ES CS SS DS | 2A LDT
 */
#include "engine/soft/operand.h"

struct task_image {
	uint32_t cr3, eip, eflags, gpr[8];
	uint16_t seg[SEG_COUNT], ldt;
	bool trap;
};

static void busy_set(struct vcpu *v, uint64_t gva, uint32_t hi, bool busy)
{
	hi = busy ? hi | 0x200 : hi & ~0x200u;
	sys_store(v, gva + 4, 4, hi);
}

static void image_save(struct vcpu *v, uint32_t eflags)
{
	struct x86_state *s = &v->s;
	uint64_t base = s->tr.base;

	if (s->tr.attr & 8) {
		sys_store(v, base + 0x20, 4, s->rip);
		sys_store(v, base + 0x24, 4, eflags);
		for (unsigned i = 0; i < 8; i++)
			sys_store(v, base + 0x28 + 4 * i, 4, s->gpr[i]);
		for (unsigned i = 0; i < SEG_COUNT; i++)
			sys_store(v, base + 0x48 + 4 * i, 2, s->seg[i].selector);
	} else {
		sys_store(v, base + 0x0e, 2, s->rip);
		sys_store(v, base + 0x10, 2, eflags);
		for (unsigned i = 0; i < 8; i++)
			sys_store(v, base + 0x12 + 2 * i, 2, s->gpr[i]);
		for (unsigned i = 0; i < 4; i++)
			sys_store(v, base + 0x22 + 2 * i, 2, s->seg[i].selector);
	}
}

static void image_load(struct vcpu *v, uint64_t base, bool big, struct task_image *t)
{
	memset(t, 0, sizeof(*t));
	if (big) {
		t->cr3 = (uint32_t)sys_load(v, base + 0x1c, 4);
		t->eip = (uint32_t)sys_load(v, base + 0x20, 4);
		t->eflags = (uint32_t)sys_load(v, base + 0x24, 4);
		for (unsigned i = 0; i < 8; i++)
			t->gpr[i] = (uint32_t)sys_load(v, base + 0x28 + 4 * i, 4);
		for (unsigned i = 0; i < SEG_COUNT; i++)
			t->seg[i] = (uint16_t)sys_load(v, base + 0x48 + 4 * i, 2);
		t->ldt = (uint16_t)sys_load(v, base + 0x60, 2);
		t->trap = sys_load(v, base + 0x64, 2) & 1;
		return;
	}
	t->eip = (uint32_t)sys_load(v, base + 0x0e, 2);
	t->eflags = (uint32_t)sys_load(v, base + 0x10, 2);
	for (unsigned i = 0; i < 8; i++)
		t->gpr[i] = (uint32_t)sys_load(v, base + 0x12 + 2 * i, 2) | 0xffff0000u;
	for (unsigned i = 0; i < 4; i++)
		t->seg[i] = (uint16_t)sys_load(v, base + 0x22 + 2 * i, 2);
	t->ldt = (uint16_t)sys_load(v, base + 0x2a, 2);
}

static void load_ldt(struct vcpu *v, uint16_t sel)
{
	struct descriptor d;
	uint64_t gva;

	seg_null(&v->s.ldtr, sel, 0);
	if (!(sel & 0xfffc))
		return;
	if ((sel & 4) || !desc_read(v, sel, &d, &gva) || !desc_system(&d) || desc_type(&d) != 2 || !desc_present(&d))
		vcpu_raise_error(v, EXC_TS, SEL_ERR(sel));
	seg_from_desc(&v->s.ldtr, sel, &d);
}

static void load_cs(struct vcpu *v, uint16_t sel)
{
	struct descriptor d;
	uint64_t gva;
	unsigned rpl = sel & 3;

	if (!(sel & 0xfffc))
		vcpu_raise_error(v, EXC_TS, 0);
	desc_fetch(v, sel, &d, &gva, EXC_TS);
	if (!desc_code(&d) || (desc_conforming(&d) ? desc_dpl(&d) > rpl : desc_dpl(&d) != rpl))
		vcpu_raise_error(v, EXC_TS, SEL_ERR(sel));
	if (!desc_present(&d))
		vcpu_raise_error(v, EXC_NP, SEL_ERR(sel));
	desc_set_accessed(v, &d, gva);
	seg_from_desc(&v->s.seg[SEG_CS], sel, &d);
}

static void load_data(struct vcpu *v, unsigned seg, uint16_t sel, unsigned cpl)
{
	struct descriptor d;
	uint64_t gva;

	if (seg == SEG_SS) {
		seg_check_ss(v, sel, cpl, EXC_TS, &d, &gva);
	} else {
		if (!(sel & 0xfffc))
			return;
		desc_fetch(v, sel, &d, &gva, EXC_TS);
		if (desc_system(&d) || (desc_code(&d) && !(d.hi & 0x200)) ||
		    (!(desc_code(&d) && desc_conforming(&d)) && (desc_dpl(&d) < (sel & 3u) || desc_dpl(&d) < cpl)))
			vcpu_raise_error(v, EXC_TS, SEL_ERR(sel));
		if (!desc_present(&d))
			vcpu_raise_error(v, EXC_NP, SEL_ERR(sel));
	}
	desc_set_accessed(v, &d, gva);
	seg_from_desc(&v->s.seg[seg], sel, &d);
}

/* The selectors are loaded first, unusable; faults from here on happen in the new task. */
static void load_segments(struct vcpu *v, const struct task_image *t)
{
	unsigned cpl = t->seg[SEG_CS] & 3;

	if (t->eflags & FLAG_VM) {
		load_ldt(v, t->ldt);
		seg_load_v86_all(v, t->seg);
		return;
	}
	for (unsigned i = 0; i < SEG_COUNT; i++)
		seg_null(&v->s.seg[i], t->seg[i], cpl);
	load_ldt(v, t->ldt);
	load_cs(v, t->seg[SEG_CS]);
	load_data(v, SEG_SS, t->seg[SEG_SS], cpl);
	for (unsigned i = 0; i < SEG_COUNT; i++)
		if (i != SEG_CS && i != SEG_SS)
			load_data(v, i, t->seg[i], cpl);
}

static void tss_check(struct vcpu *v, uint16_t sel, enum task_why why, struct descriptor *d, uint64_t *gva)
{
	uint8_t vector = why == TASK_IRET ? EXC_TS : EXC_GP;
	unsigned want = why == TASK_IRET ? 3 : 1;

	if ((sel & 4) || !(sel & 0xfffc) || !desc_read(v, sel, d, gva))
		vcpu_raise_error(v, vector, SEL_ERR(sel));
	if (!desc_system(d) || (desc_type(d) & 7) != want)
		vcpu_raise_error(v, vector, SEL_ERR(sel));
	if (!desc_present(d))
		vcpu_raise_error(v, EXC_NP, SEL_ERR(sel));
	if (desc_limit(d) < (desc_type(d) & 8 ? 0x67u : 0x2bu))
		vcpu_raise_error(v, EXC_TS, SEL_ERR(sel));
}

static void task_commit(struct vcpu *v, const struct task_image *t, bool big)
{
	struct x86_state *s = &v->s;

	if (big && (s->cr0 & CR0_PG) && t->cr3 != s->cr3) {
		s->cr3 = t->cr3;
		tlb_flush_non_global(v);
		if (s->cr4 & CR4_PAE)
			sys_load_pdptes(v);
	}
	for (unsigned i = 0; i < 8; i++)
		s->gpr[i] = t->gpr[i];
	s->rip = t->eip;
	s->rflags = (t->eflags & 0x3f7fd5) | FLAG_FIXED;
	s->cr0 |= CR0_TS;
	s->dr[7] &= ~0x155ull;	/* the local breakpoint enables */
	interp_of(v)->keep_rf = true;
}

void task_switch(struct vcpu *v, uint16_t sel, enum task_why why, bool has_error, uint32_t error)
{
	struct x86_state *s = &v->s;
	uint32_t eflags = (uint32_t)s->rflags;
	uint16_t old_sel = s->tr.selector;
	struct descriptor d, old;
	uint64_t gva, old_gva;
	struct task_image t;
	bool big;

	tss_check(v, sel, why, &d, &gva);
	big = desc_type(&d) & 8;
	sys_probe(v, s->tr.base, s->tr.attr & 8 ? 0x68 : 0x2c);
	image_load(v, desc_base(&d), big, &t);
	if (why == TASK_IRET)
		eflags &= ~FLAG_NT;
	if (why == TASK_JMP || why == TASK_IRET)
		if (desc_read(v, old_sel, &old, &old_gva))
			busy_set(v, old_gva, old.hi, false);
	image_save(v, eflags);
	if (why == TASK_CALL || why == TASK_EVENT) {
		sys_store(v, desc_base(&d), 2, old_sel);
		t.eflags |= FLAG_NT;
	}
	if (why != TASK_IRET) {
		d.hi |= 0x200;
		busy_set(v, gva, d.hi, true);
	}
	seg_from_desc(&s->tr, sel, &d);
	task_commit(v, &t, big);
	load_segments(v, &t);
	vcpu_update_mode(v);
	if (t.eip > s->seg[SEG_CS].limit)
		vcpu_raise_error(v, EXC_GP, 0);
	if (has_error)
		push(v, error, big ? 4 : 2);
	if (t.trap)
		interp_of(v)->db_pending |= 1u << 15;
	debug_update(v);
}
