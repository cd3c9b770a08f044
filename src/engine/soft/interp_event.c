/* INT and its kin, BOUND, SYSCALL, SYSENTER and their returns. */
#include "engine/soft/handlers.h"

static void soft_event(struct vcpu *v, const struct insn *in, uint8_t vector, enum event_kind kind)
{
	interp_of(v)->soft_len = in->len;
	event_deliver(v, vector, kind, false, 0);
	interp_of(v)->no_trap = true;	/* TF was cleared on entry: no step trap for the INT itself */
}

/* SDM vol. 3 20.3.3: a clear bit in the TSS's 32-byte map sends INT n to the 8086 program's own table. */
static bool redirected(struct vcpu *v, uint8_t vector)
{
	uint64_t map;

	if (!(v->s.cr4 & CR4_VME))
		return false;
	map = sys_load(v, v->s.tr.base + 0x66, 2);
	if (map < 32 || map - 32 + vector / 8 > v->s.tr.limit)
		return false;
	return !(sys_load(v, v->s.tr.base + map - 32 + vector / 8, 1) >> (vector & 7) & 1);
}

static void int_v86_redirect(struct vcpu *v, const struct insn *in, uint8_t vector)
{
	uint64_t fl = v->s.rflags & 0xffff, entry = lin_load(v, TLB_USER, vector * 4u, 4);
	bool virtual = (v->s.rflags & FLAG_IOPL) != FLAG_IOPL;

	if (virtual)
		fl = (fl & ~(uint64_t)FLAG_IF) | FLAG_IOPL | (v->s.rflags & FLAG_VIF ? FLAG_IF : 0);
	mem_probe_store(v, SEG_SS, (v->s.gpr[REG_RSP] - 6) & 0xffff, 2);
	push(v, fl, 2);
	push(v, v->s.seg[SEG_CS].selector, 2);
	push(v, v->s.rip + in->len, 2);
	v->s.rflags &= ~(uint64_t)(FLAG_TF | FLAG_NT | (virtual ? FLAG_VIF : FLAG_IF));
	seg_load_real(v, SEG_CS, (uint16_t)(entry >> 16));
	v->s.rip = entry & 0xffff;
	vcpu_update_mode(v);
}

INTERP_HANDLER(op_int)
{
	uint8_t vector = (uint8_t)in->imm;

	if (v->s.rflags & FLAG_VM) {
		if (redirected(v, vector)) {
			int_v86_redirect(v, in, vector);
			return;
		}
		if ((v->s.rflags & FLAG_IOPL) != FLAG_IOPL)
			vcpu_raise_error(v, EXC_GP, 0);
	}
	soft_event(v, in, vector, EVENT_SOFT);
}

INTERP_HANDLER(op_int3) { soft_event(v, in, EXC_BP, EVENT_SOFT); }

/* What a MOV SS before it has put off is told along with it. */
INTERP_HANDLER(op_int1)
{
	debug_show(v);
	soft_event(v, in, EXC_DB, EVENT_ICEBP);
}

INTERP_HANDLER(op_into)
{
	if (v->s.rflags & FLAG_OF)
		soft_event(v, in, EXC_OF, EVENT_SOFT);
	else
		v->s.rip += in->len;
}

INTERP_HANDLER(op_bound)
{
	unsigned n = in->opsize;
	uint64_t ea = mem_ea(v, in);
	int64_t lo = sign_extend(mem_ld(v, in->mem.seg, ea, n), n);
	int64_t hi = sign_extend(mem_ld(v, in->mem.seg, ea + n, n), n);
	int64_t i = sign_extend(reg_read(v, &in->ops[0]), n);

	if (i < lo || i > hi)
		vcpu_raise(v, EXC_BR);
}

INTERP_HANDLER(op_ud) { vcpu_raise(v, EXC_UD); }

/* --- fast system calls --- */

#define ATTR_CODE64 0xa09b
#define ATTR_CODE32 0xc09b
#define ATTR_DATA32 0xc093

static void flat_segment(struct vcpu *v, unsigned seg, uint16_t sel, uint16_t attr, unsigned dpl)
{
	v->s.seg[seg] = (struct x86_segment){ .base = 0, .limit = ~0u, .selector = sel,
					      .attr = (uint16_t)(attr | dpl << 5) };
}

/* In compatibility and legacy mode an AMD CPU has SYSCALL, an Intel one does not. */
INTERP_HANDLER(op_syscall)
{
	struct x86_state *s = &v->s;
	uint16_t sel = (uint16_t)(s->star >> 32) & 0xfffc;
	uint64_t next = s->rip + in->len;

	if (!(s->efer & EFER_SCE) || (v->insn_mode != INSN_64 && !interp_of(v)->amd) || !(s->cr0 & CR0_PE))
		vcpu_raise(v, EXC_UD);
	if (state_long(s)) {
		s->gpr[REG_RCX] = next;
		s->gpr[REG_R11] = s->rflags & ~(uint64_t)FLAG_RF;
		s->rip = v->insn_mode == INSN_64 ? s->lstar : s->cstar;
		if (s->sfmask & FLAG_TF)
			interp_of(v)->no_trap = true;
		s->rflags = (s->rflags & ~(s->sfmask | FLAG_RF)) | FLAG_FIXED;
		flat_segment(v, SEG_CS, sel, ATTR_CODE64, 0);
	} else {
		s->gpr[REG_RCX] = (uint32_t)next;
		s->rip = (uint32_t)s->star;
		s->rflags &= ~(uint64_t)(FLAG_IF | FLAG_RF | FLAG_VM);
		flat_segment(v, SEG_CS, sel, ATTR_CODE32, 0);
	}
	flat_segment(v, SEG_SS, sel + 8, ATTR_DATA32, 0);
	vcpu_update_mode(v);
}

INTERP_HANDLER(op_sysret)
{
	struct x86_state *s = &v->s;
	uint16_t sel = (uint16_t)(s->star >> 48);

	if (!(s->efer & EFER_SCE) || (v->insn_mode != INSN_64 && !interp_of(v)->amd) || !(s->cr0 & CR0_PE))
		vcpu_raise(v, EXC_UD);
	if (state_cpl(s) != 0)
		vcpu_raise_error(v, EXC_GP, 0);
	if (v->insn_mode == INSN_64 && in->opsize == 8) {
		if (!va_canonical(v, s->gpr[REG_RCX]))
			vcpu_raise_error(v, EXC_GP, 0);
		flat_segment(v, SEG_CS, (uint16_t)((sel + 16) | 3), ATTR_CODE64, 3);
		s->rip = s->gpr[REG_RCX];
	} else {
		flat_segment(v, SEG_CS, sel | 3, ATTR_CODE32, 3);
		s->rip = (uint32_t)s->gpr[REG_RCX];
	}
	if (state_long(s))
		s->rflags = (s->gpr[REG_R11] & 0x3c7fd7) | FLAG_FIXED;
	else
		s->rflags |= FLAG_IF;
	flat_segment(v, SEG_SS, (uint16_t)((sel + 8) | 3), ATTR_DATA32, 3);
	interp_of(v)->check_events = true;
	vcpu_update_mode(v);
}

/* An AMD CPU has no SYSENTER in long mode. */
INTERP_HANDLER(op_sysenter)
{
	struct x86_state *s = &v->s;
	uint16_t sel = (uint16_t)s->sysenter_cs & 0xfffc;
	bool lm = state_long(s);

	if (lm && interp_of(v)->amd)
		vcpu_raise(v, EXC_UD);
	if (!(s->cr0 & CR0_PE) || !sel)
		vcpu_raise_error(v, EXC_GP, 0);
	s->rflags &= ~(uint64_t)(FLAG_VM | FLAG_IF | FLAG_RF);
	flat_segment(v, SEG_CS, sel, lm ? ATTR_CODE64 : ATTR_CODE32, 0);
	flat_segment(v, SEG_SS, sel + 8, ATTR_DATA32, 0);
	s->gpr[REG_RSP] = lm ? s->sysenter_esp : (uint32_t)s->sysenter_esp;
	s->rip = lm ? s->sysenter_eip : (uint32_t)s->sysenter_eip;
	vcpu_update_mode(v);
}

INTERP_HANDLER(op_sysexit)
{
	struct x86_state *s = &v->s;
	uint16_t sel = (uint16_t)s->sysenter_cs & 0xfffc;
	bool wide = v->insn_mode == INSN_64 && in->opsize == 8;

	if (state_long(s) && interp_of(v)->amd)
		vcpu_raise(v, EXC_UD);
	if (!(s->cr0 & CR0_PE) || !sel || state_cpl(s) != 0)
		vcpu_raise_error(v, EXC_GP, 0);
	if (wide && (!va_canonical(v, s->gpr[REG_RDX]) || !va_canonical(v, s->gpr[REG_RCX])))
		vcpu_raise_error(v, EXC_GP, 0);
	sel = (uint16_t)(sel + (wide ? 32 : 16));
	flat_segment(v, SEG_CS, sel | 3, wide ? ATTR_CODE64 : ATTR_CODE32, 3);
	flat_segment(v, SEG_SS, (uint16_t)((sel + 8) | 3), ATTR_DATA32, 3);
	s->gpr[REG_RSP] = wide ? s->gpr[REG_RCX] : (uint32_t)s->gpr[REG_RCX];
	s->rip = wide ? s->gpr[REG_RDX] : (uint32_t)s->gpr[REG_RDX];
	vcpu_update_mode(v);
}
