/* Instructions on segment registers, descriptors and descriptor tables. */
#include "cpu/model.h"
#include "engine/soft/handlers.h"

static _Noreturn void ud(struct vcpu *v) { vcpu_raise(v, EXC_UD); }

static void shadow_ss(struct vcpu *v, unsigned seg)
{
	if (seg == SEG_SS)
		v->s.shadow |= SHADOW_MOV_SS;
}

INTERP_HANDLER(op_mov_seg)
{
	const struct operand *d = &in->ops[0];

	if (d->kind == OPK_SEG) {
		if (d->reg == SEG_CS || d->reg >= SEG_COUNT)
			ud(v);
		seg_load(v, d->reg, (uint16_t)op_read(v, in, 1));
		shadow_ss(v, d->reg);
		vcpu_update_mode(v);
		return;
	}
	if (in->ops[1].reg >= SEG_COUNT)
		ud(v);
	if (is_mem(d))
		mem_st(v, in->mem.seg, mem_ea(v, in), 2, v->s.seg[in->ops[1].reg].selector);
	else
		gpr_set(v, d->reg, in->opsize, v->s.seg[in->ops[1].reg].selector);
}

INTERP_HANDLER(op_push_seg) { push(v, v->s.seg[in->ops[0].reg].selector, in->opsize); }

INTERP_HANDLER(op_pop_seg)
{
	uint64_t sp = v->s.gpr[REG_RSP] + in->opsize, m = stack_mask(v), old = v->s.gpr[REG_RSP];

	seg_load(v, in->ops[0].reg, (uint16_t)stack_peek(v, 0, in->opsize));
	v->s.gpr[REG_RSP] = m == 0xffff ? (old & ~m) | (sp & m) : sp & m;
	shadow_ss(v, in->ops[0].reg);
	vcpu_update_mode(v);
}

static void load_far_pointer(struct vcpu *v, const struct insn *in, unsigned seg)
{
	uint64_t ea = mem_ea(v, in), off = mem_ld(v, in->mem.seg, ea, in->opsize);
	uint16_t sel = (uint16_t)mem_ld(v, in->mem.seg, ea + in->opsize, 2);

	seg_load(v, seg, sel);
	gpr_set(v, in->ops[0].reg, in->opsize, off);
	vcpu_update_mode(v);
}

INTERP_HANDLER(op_lds) { load_far_pointer(v, in, SEG_DS); }
INTERP_HANDLER(op_les) { load_far_pointer(v, in, SEG_ES); }
INTERP_HANDLER(op_lfs) { load_far_pointer(v, in, SEG_FS); }
INTERP_HANDLER(op_lgs) { load_far_pointer(v, in, SEG_GS); }
INTERP_HANDLER(op_lss) { load_far_pointer(v, in, SEG_SS); }

/* --- GDT, IDT, LDT, TR --- */

static unsigned table_base_size(const struct vcpu *v) { return v->insn_mode == INSN_64 ? 8 : 4; }

static void table_load(struct vcpu *v, const struct insn *in, struct x86_table *t)
{
	uint64_t ea = mem_ea(v, in), limit = mem_ld(v, in->mem.seg, ea, 2);
	uint64_t base = mem_ld(v, in->mem.seg, ea + 2, table_base_size(v));

	if (v->insn_mode != INSN_64 && in->opsize == 2)
		base &= 0xffffff;
	if (v->insn_mode == INSN_64 && !cpu_model_canonical(v->en->model, base))
		vcpu_raise_error(v, EXC_GP, 0);
	t->base = base;
	t->limit = (uint16_t)limit;
}

static void table_store(struct vcpu *v, const struct insn *in, const struct x86_table *t)
{
	uint64_t ea = mem_ea(v, in);
	unsigned n = table_base_size(v);

	mem_probe_store(v, in->mem.seg, ea, 2 + n);
	mem_st(v, in->mem.seg, ea, 2, t->limit);
	mem_st(v, in->mem.seg, ea + 2, n, t->base);
}

static void check_umip(struct vcpu *v)
{
	if ((v->s.cr4 & CR4_UMIP) && state_cpl(&v->s) > 0)
		vcpu_raise_error(v, EXC_GP, 0);
}

INTERP_HANDLER(op_lgdt) { table_load(v, in, &v->s.gdtr); }
INTERP_HANDLER(op_lidt) { table_load(v, in, &v->s.idtr); }
INTERP_HANDLER(op_sgdt) { check_umip(v); table_store(v, in, &v->s.gdtr); }
INTERP_HANDLER(op_sidt) { check_umip(v); table_store(v, in, &v->s.idtr); }

/* To a register: the operand size; to memory: 16 bits. */
static void store_word(struct vcpu *v, const struct insn *in, uint64_t value)
{
	check_umip(v);
	if (is_mem(&in->ops[0]))
		mem_st(v, in->mem.seg, mem_ea(v, in), 2, value);
	else
		gpr_set(v, in->ops[0].reg, in->opsize, value);
}

INTERP_HANDLER(op_sldt) { store_word(v, in, v->s.ldtr.selector); }
INTERP_HANDLER(op_str) { store_word(v, in, v->s.tr.selector); }
INTERP_HANDLER(op_smsw) { store_word(v, in, v->s.cr0); }

/* LDT and TSS descriptors are 16 bytes in long mode. */
static uint64_t system_base(struct vcpu *v, uint16_t sel, const struct descriptor *d, uint64_t gva)
{
	uint64_t upper;

	if (!state_long(&v->s))
		return desc_base(d);
	if (!desc_read_upper(v, sel, gva, &upper) || (upper >> 40 & 0x1f))
		vcpu_raise_error(v, EXC_GP, SEL_ERR(sel));
	if (!cpu_model_canonical(v->en->model, desc_base(d) | upper << 32))
		vcpu_raise_error(v, EXC_GP, SEL_ERR(sel));
	return desc_base(d) | upper << 32;
}

INTERP_HANDLER(op_lldt)
{
	uint16_t sel = (uint16_t)op_read(v, in, 0);
	struct descriptor d;
	uint64_t gva, base;

	if (!(sel & 0xfffc)) {
		seg_null(&v->s.ldtr, sel, 0);
		return;
	}
	if (sel & 4)
		vcpu_raise_error(v, EXC_GP, SEL_ERR(sel));
	desc_fetch(v, sel, &d, &gva, EXC_GP);
	if (!desc_system(&d) || desc_type(&d) != 2)
		vcpu_raise_error(v, EXC_GP, SEL_ERR(sel));
	if (!desc_present(&d))
		vcpu_raise_error(v, EXC_NP, SEL_ERR(sel));
	base = system_base(v, sel, &d, gva);
	seg_from_desc(&v->s.ldtr, sel, &d);
	v->s.ldtr.base = base;
}

INTERP_HANDLER(op_ltr)
{
	uint16_t sel = (uint16_t)op_read(v, in, 0);
	struct descriptor d;
	uint64_t gva, base;

	if (!(sel & 0xfffc))
		vcpu_raise_error(v, EXC_GP, 0);
	if (sel & 4)
		vcpu_raise_error(v, EXC_GP, SEL_ERR(sel));
	desc_fetch(v, sel, &d, &gva, EXC_GP);
	if (!desc_system(&d) || (desc_type(&d) != 9 && (desc_type(&d) != 1 || state_long(&v->s))))
		vcpu_raise_error(v, EXC_GP, SEL_ERR(sel));
	if (!desc_present(&d))
		vcpu_raise_error(v, EXC_NP, SEL_ERR(sel));
	base = system_base(v, sel, &d, gva);
	d.hi |= 0x200;
	sys_store(v, gva + 4, 4, d.hi);
	seg_from_desc(&v->s.tr, sel, &d);
	v->s.tr.base = base;
}

/* --- LAR, LSL, VERR, VERW, ARPL --- */

/* Finds a descriptor for the probing instructions: no fault, just false. */
static bool probe(struct vcpu *v, uint16_t sel, struct descriptor *d)
{
	uint64_t gva;
	unsigned cpl = state_cpl(&v->s);

	if (!(sel & 0xfffc) || !desc_read(v, sel, d, &gva))
		return false;
	if (desc_code(d) && desc_conforming(d))
		return true;
	return desc_dpl(d) >= cpl && desc_dpl(d) >= (sel & 3u);
}

static void set_zf(struct vcpu *v, bool on) { flags_set(v, FLAG_ZF, on ? FLAG_ZF : 0); }

INTERP_HANDLER(op_lar)
{
	/* Valid system types: 1-5, 9, 11, 12; in long mode 2, 9, 11, 12. */
	uint16_t types = state_long(&v->s) ? 0x1a04 : 0x1a3e;
	struct descriptor d;
	bool ok = probe(v, (uint16_t)op_read(v, in, 1), &d) && (!desc_system(&d) || types >> desc_type(&d) & 1);

	if (ok)
		gpr_set(v, in->ops[0].reg, in->opsize, d.hi & 0xf0ff00);
	set_zf(v, ok);
}

INTERP_HANDLER(op_lsl)
{
	uint16_t types = state_long(&v->s) ? 0x0a04 : 0x0a0e;
	struct descriptor d;
	bool ok = probe(v, (uint16_t)op_read(v, in, 1), &d) && (!desc_system(&d) || types >> desc_type(&d) & 1);

	if (ok)
		gpr_set(v, in->ops[0].reg, in->opsize, desc_limit(&d));
	set_zf(v, ok);
}

INTERP_HANDLER(op_verr)
{
	struct descriptor d;

	set_zf(v, probe(v, (uint16_t)op_read(v, in, 0), &d) && !desc_system(&d) &&
	       (!desc_code(&d) || (d.hi & 0x200)));
}

INTERP_HANDLER(op_verw)
{
	struct descriptor d;

	set_zf(v, probe(v, (uint16_t)op_read(v, in, 0), &d) && !desc_system(&d) && !desc_code(&d) &&
	       (d.hi & 0x200));
}

INTERP_HANDLER(op_arpl)
{
	uint64_t d = op_read(v, in, 0), s = op_read(v, in, 1);
	bool raise = (d & 3) < (s & 3);

	if (raise)		/* else nothing is written: the segment may be read-only */
		op_write(v, in, 0, (d & ~3ull) | (s & 3));
	set_zf(v, raise);
}

/* --- FS and GS bases --- */

static void check_fsgsbase(struct vcpu *v)
{
	if (!(v->s.cr4 & CR4_FSGSBASE))
		ud(v);
}

INTERP_HANDLER(op_rdfsbase) { check_fsgsbase(v); reg_write(v, &in->ops[0], v->s.seg[SEG_FS].base); }
INTERP_HANDLER(op_rdgsbase) { check_fsgsbase(v); reg_write(v, &in->ops[0], v->s.seg[SEG_GS].base); }

static void write_base(struct vcpu *v, const struct insn *in, unsigned seg)
{
	uint64_t base = reg_read(v, &in->ops[0]);

	check_fsgsbase(v);
	if (!va_canonical(v, base))
		vcpu_raise_error(v, EXC_GP, 0);
	v->s.seg[seg].base = base;
}

INTERP_HANDLER(op_wrfsbase) { write_base(v, in, SEG_FS); }
INTERP_HANDLER(op_wrgsbase) { write_base(v, in, SEG_GS); }

INTERP_HANDLER(op_swapgs)
{
	uint64_t base = v->s.seg[SEG_GS].base;

	v->s.seg[SEG_GS].base = v->s.kernel_gs_base;
	v->s.kernel_gs_base = base;
}
