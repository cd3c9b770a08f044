/* Control and debug registers, MSRs, CPUID, TSC, TLB invalidation. */
#include "engine/soft/handlers.h"

#include "cpu/mmu.h"
#include "cpu/model.h"

static _Noreturn void gp(struct vcpu *v) { vcpu_raise_error(v, EXC_GP, 0); }

/* --- control registers --- */

/* PAE paging caches the four PDPTEs: SDM vol. 3 4.4.1. Faults before anything changes. */
static void load_pdptes_from(struct vcpu *v, uint64_t cr3)
{
	uint64_t e[4];

	if (!mmu_load_pdpte(v->en->map, cr3, e))
		gp(v);
	memcpy(v->s.pdpte, e, sizeof(e));
}

void sys_load_pdptes(struct vcpu *v) { load_pdptes_from(v, v->s.cr3); }

static bool pae_paging(const struct x86_state *s)
{
	return (s->cr0 & CR0_PG) && (s->cr4 & CR4_PAE) && !(s->efer & EFER_LME);
}

static void paging_on_check(struct vcpu *v)
{
	const struct x86_state *s = &v->s;

	if ((s->efer & EFER_LME) && (!(s->cr4 & CR4_PAE) || (s->seg[SEG_CS].attr & SEG_ATTR_L)))
		gp(v);
}

void sys_set_cr0(struct vcpu *v, uint64_t value)
{
	struct x86_state *s = &v->s;
	uint64_t old = s->cr0, changed;

	if (value >> 32 || ((value & CR0_PG) && !(value & CR0_PE)) || ((value & CR0_NW) && !(value & CR0_CD)))
		gp(v);
	value = (value & 0xe005003f) | CR0_ET;
	changed = old ^ value;
	if ((changed & CR0_PG) && (value & CR0_PG))
		paging_on_check(v);
	if ((changed & CR0_PG) && !(value & CR0_PG) && (v->insn_mode == INSN_64 || (s->cr4 & CR4_PCIDE)))
		gp(v);
	s->cr0 = value;
	if (pae_paging(s) && (changed & (CR0_PG | CR0_CD | CR0_NW))) {
		s->cr0 = old;	/* as it must be if a PDPTE faults */
		sys_load_pdptes(v);
		s->cr0 = value;
	}
	if (changed & CR0_PG) {
		if ((value & CR0_PG) && (s->efer & EFER_LME))
			s->efer |= EFER_LMA;
		else
			s->efer &= ~(uint64_t)EFER_LMA;
	}
	if (changed & (CR0_PG | CR0_WP | CR0_PE))
		tlb_flush_all(v);
	vcpu_update_mode(v);
	vcpu_update_system(v);
}

static void set_cr3(struct vcpu *v, uint64_t value)
{
	struct x86_state *s = &v->s;
	bool keep = state_long(s) && (s->cr4 & CR4_PCIDE) && (value & CR3_KEEP);

	if (state_long(s)) {
		if (keep)
			value &= ~CR3_KEEP;
		if (value >> cpu_model_phys_bits(v->en->model))
			gp(v);
	} else {
		value = (uint32_t)value;
	}
	if (pae_paging(s))
		load_pdptes_from(v, value);
	s->cr3 = value;
	tlb_switch(v, keep);
}

static void set_cr4(struct vcpu *v, uint64_t value)
{
	struct x86_state *s = &v->s;
	uint64_t known = cpu_model_cr4_mask(v->en->model), old = s->cr4, changed = old ^ value;

	if (value & ~known)
		gp(v);
	if (state_long(s) && (!(value & CR4_PAE) || (changed & CR4_LA57)))
		gp(v);
	if ((changed & value & CR4_PCIDE) && (!state_long(s) || (s->cr3 & 0xfff)))
		gp(v);
	s->cr4 = value;
	if (pae_paging(s) && (changed & (CR4_PAE | CR4_PSE | CR4_PGE | CR4_SMEP))) {
		s->cr4 = old;
		sys_load_pdptes(v);
		s->cr4 = value;
	}
	if (changed & (CR4_PAE | CR4_PSE | CR4_PGE | CR4_SMEP | CR4_SMAP | CR4_PCIDE | CR4_LA57 | CR4_PKE))
		tlb_flush_all(v);
	debug_update(v);
	vcpu_update_mode(v);
	vcpu_update_system(v);
}

static uint64_t cr_read(struct vcpu *v, unsigned cr)
{
	switch (cr) {
	case 0: return v->s.cr0;
	case 2: return v->s.cr2;
	case 3: return v->s.cr3;
	case 4: return v->s.cr4;
	case 8: return v->w.get_tpr(v->w.opaque);
	default: vcpu_raise(v, EXC_UD);
	}
}

static void cr_write(struct vcpu *v, unsigned cr, uint64_t value)
{
	switch (cr) {
	case 0: sys_set_cr0(v, value); break;
	case 2: v->s.cr2 = value; break;
	case 3: set_cr3(v, value); break;
	case 4: set_cr4(v, value); break;
	case 8:
		if (value & ~0xfull)
			gp(v);
		v->w.set_tpr(v->w.opaque, (uint8_t)value);
		interp_of(v)->check_events = true;
		break;
	default: vcpu_raise(v, EXC_UD);
	}
}

static unsigned sys_reg_size(const struct vcpu *v) { return v->insn_mode == INSN_64 ? 8 : 4; }

INTERP_HANDLER(op_mov_cr)
{
	const struct operand *d = &in->ops[0], *s = &in->ops[1];

	if (d->kind == OPK_CR)
		cr_write(v, d->reg, gpr_get(v, s->reg, sys_reg_size(v)));
	else
		gpr_set(v, d->reg, sys_reg_size(v), cr_read(v, s->reg));
}

INTERP_HANDLER(op_lmsw)
{
	uint64_t value = op_read(v, in, 0) & 0xf;

	sys_set_cr0(v, (v->s.cr0 & ~0xeull) | value);	/* PE can be set, not cleared */
}

INTERP_HANDLER(op_clts) { v->s.cr0 &= ~(uint64_t)CR0_TS; }

/* --- debug registers --- */

#define DR6_FIXED 0xffff0ff0u
#define DR7_FIXED 0x400u

static unsigned dr_number(struct vcpu *v, unsigned dr)
{
	if (dr == 4 || dr == 5) {
		if (v->s.cr4 & CR4_DE)
			vcpu_raise(v, EXC_UD);
		dr += 2;
	}
	if (dr > 7)
		vcpu_raise(v, EXC_UD);
	return dr;
}

static void dr_write(struct vcpu *v, unsigned dr, uint64_t value)
{
	if (dr >= 6 && value >> 32)
		gp(v);
	if (dr == 6)
		value = (value & 0xe00f) | DR6_FIXED;
	else if (dr == 7)
		value = (value & 0xffff2bffu) | DR7_FIXED;
	else if (v->insn_mode == INSN_64 && !va_canonical(v, value))
		gp(v);
	v->s.dr[dr] = value;
	debug_update(v);
}

INTERP_HANDLER(op_mov_dr)
{
	const struct operand *d = &in->ops[0], *s = &in->ops[1];
	unsigned dr = dr_number(v, d->kind == OPK_DR ? d->reg : s->reg);

	if (v->s.dr[7] & 0x2000) {	/* general detect */
		v->s.dr[6] |= 0x2000;
		v->s.dr[7] &= ~0x2000ull;
		vcpu_raise(v, EXC_DB);
	}
	if (d->kind == OPK_DR)
		dr_write(v, dr, gpr_get(v, s->reg, sys_reg_size(v)));
	else
		gpr_set(v, d->reg, sys_reg_size(v), v->s.dr[dr]);
}

/* --- TLB --- */

INTERP_HANDLER(op_invlpg)
{
	uint64_t va = mem_ea(v, in);

	if (v->insn_mode != INSN_64 || in->mem.seg >= SEG_FS)
		va += v->s.seg[in->mem.seg].base;
	tlb_flush_page(v, va);
}

INTERP_HANDLER(op_invpcid)
{
	uint64_t type = reg_read(v, &in->ops[0]), ea = mem_ea(v, in);
	uint64_t pcid = mem_ld(v, in->mem.seg, ea, 8), va = mem_ld(v, in->mem.seg, ea + 8, 8);

	if (type > 3 || (type < 2 && (pcid >> 12 || ((pcid & 0xfff) && !(v->s.cr4 & CR4_PCIDE)))))
		gp(v);
	if (type == 0) {
		if (!cpu_model_canonical(v->en->model, va))
			gp(v);
		tlb_flush_pcid_page(v, (unsigned)pcid, va);
	} else if (type == 1) {
		tlb_flush_pcid(v, (unsigned)pcid);
	} else if (type == 2) {
		tlb_flush_all(v);
	} else {
		tlb_flush_non_global(v);
	}
}

/* --- MSRs, CPUID, counters --- */

INTERP_HANDLER(op_rdmsr)
{
	uint32_t msr = (uint32_t)v->s.gpr[REG_RCX];
	uint64_t value;

	if (!msr_load(v, msr, &value))
		gp(v);
	v->s.gpr[REG_RAX] = (uint32_t)value;
	v->s.gpr[REG_RDX] = value >> 32;
}

INTERP_HANDLER(op_wrmsr)
{
	uint32_t msr = (uint32_t)v->s.gpr[REG_RCX];

	if (!msr_store(v, msr, gpr_get(v, REG_RAX, 4) | v->s.gpr[REG_RDX] << 32))
		gp(v);
}

INTERP_HANDLER(op_cpuid)
{
	struct x86_state *s = &v->s;
	struct cpuid_memo *m = cpuid_memo(v);

	*m = (struct cpuid_memo){ .leaf = (uint32_t)s->gpr[REG_RAX], .subleaf = (uint32_t)s->gpr[REG_RCX], .used = true,
				  .cr4 = s->cr4, .xcr0 = s->xcr0, .xss = s->xss, .apic_base = s->apic_base };
	cpu_model_cpuid(v->en->model, m->leaf, m->subleaf, s, v->w.index, v->en->vcpu_total, m->out);
	s->gpr[REG_RAX] = m->out[0];
	s->gpr[REG_RBX] = m->out[1];
	s->gpr[REG_RCX] = m->out[2];
	s->gpr[REG_RDX] = m->out[3];
}

static void check_tsd(struct vcpu *v)
{
	if ((v->s.cr4 & CR4_TSD) && state_cpl(&v->s) > 0)
		gp(v);
}

INTERP_HANDLER(op_rdtsc)
{
	uint64_t t;

	check_tsd(v);
	t = soft_tsc(v);
	v->s.gpr[REG_RAX] = (uint32_t)t;
	v->s.gpr[REG_RDX] = t >> 32;
}

INTERP_HANDLER(op_rdtscp)
{
	op_rdtsc(v, in);
	v->s.gpr[REG_RCX] = (uint32_t)v->s.tsc_aux;
}

INTERP_HANDLER(op_rdpid) { gpr_set(v, in->ops[0].reg, sys_reg_size(v), v->s.tsc_aux); }

/* No performance counters. */
INTERP_HANDLER(op_rdpmc) { gp(v); }
