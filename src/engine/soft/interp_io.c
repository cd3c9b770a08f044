/* Port I/O, the interrupt flag, flags images, HLT and its kin. */
#include <sched.h>

#include "engine/soft/handlers.h"

static bool io_bitmap_allows(struct vcpu *v, uint16_t port, unsigned size)
{
	const struct x86_segment *tr = &v->s.tr;
	uint32_t map, at;
	uint64_t bits;

	if (!(tr->attr & SEG_ATTR_P) || !(tr->attr & 8) || tr->limit < 0x67)
		return false;
	map = (uint32_t)sys_load(v, tr->base + 0x66, 2);
	at = map + port / 8;
	if (at + 1 > tr->limit)
		return false;
	bits = sys_load(v, tr->base + at, 2);
	return !(bits >> (port & 7) & ((1u << size) - 1));
}

void sys_check_io(struct vcpu *v, uint16_t port, unsigned size)
{
	const struct x86_state *s = &v->s;

	if (!(s->cr0 & CR0_PE))
		return;
	if ((s->rflags & FLAG_VM || state_cpl(s) > (s->rflags >> 12 & 3)) && !io_bitmap_allows(v, port, size))
		vcpu_raise_error(v, EXC_GP, 0);
}

uint32_t sys_in(struct vcpu *v, uint16_t port, unsigned size)
{
	interp_of(v)->check_events = true;
	debug_io_access(v, port, size);
	return pio_load(v->en->map, port, size);
}

void sys_out(struct vcpu *v, uint16_t port, unsigned size, uint32_t value)
{
	interp_of(v)->check_events = true;
	debug_io_access(v, port, size);
	pio_store(v->en->map, port, size, value);
}

static uint16_t port_of(struct vcpu *v, const struct insn *in, unsigned i)
{
	if (in->ops[i].kind == OPK_IMM)
		return in->imm & 0xff;
	return (uint16_t)v->s.gpr[REG_RDX];
}

INTERP_HANDLER(op_in)
{
	unsigned size = in->ops[0].size;
	uint16_t port = port_of(v, in, 1);

	sys_check_io(v, port, size);
	gpr_set(v, REG_RAX, size, sys_in(v, port, size));
}

INTERP_HANDLER(op_out)
{
	unsigned size = in->ops[1].size;
	uint16_t port = port_of(v, in, 0);

	sys_check_io(v, port, size);
	sys_out(v, port, size, (uint32_t)gpr_get(v, REG_RAX, size));
}

/* --- the interrupt flag --- */

enum if_kind { IF_REAL, IF_VIRTUAL, IF_FAULT };

/* What CLI and STI act on: SDM vol. 3 20.3, 20.4. */
static enum if_kind interrupt_flag(const struct vcpu *v)
{
	const struct x86_state *s = &v->s;
	unsigned cpl = state_cpl(s), iopl = s->rflags >> 12 & 3;

	if (!(s->cr0 & CR0_PE) || cpl <= iopl)
		return IF_REAL;
	if (s->rflags & FLAG_VM)
		return s->cr4 & CR4_VME ? IF_VIRTUAL : IF_FAULT;
	return cpl == 3 && (s->cr4 & CR4_PVI) ? IF_VIRTUAL : IF_FAULT;
}

INTERP_HANDLER(op_cli)
{
	switch (interrupt_flag(v)) {
	case IF_REAL: v->s.rflags &= ~(uint64_t)FLAG_IF; break;
	case IF_VIRTUAL: v->s.rflags &= ~(uint64_t)FLAG_VIF; break;
	default: vcpu_raise_error(v, EXC_GP, 0);
	}
}

INTERP_HANDLER(op_sti)
{
	switch (interrupt_flag(v)) {
	case IF_REAL:
		if (!(v->s.rflags & FLAG_IF))
			v->s.shadow |= SHADOW_STI;
		v->s.rflags |= FLAG_IF;
		interp_of(v)->check_events = true;
		break;
	case IF_VIRTUAL:
		if (v->s.rflags & FLAG_VIP)
			vcpu_raise_error(v, EXC_GP, 0);
		v->s.rflags |= FLAG_VIF;
		break;
	default:
		vcpu_raise_error(v, EXC_GP, 0);
	}
}

/* V86 mode below IOPL 3: the 16-bit forms work on VIF if VME is on. */
static bool v86_virtual(struct vcpu *v, const struct insn *in)
{
	if (!(v->s.rflags & FLAG_VM) || (v->s.rflags & FLAG_IOPL) == FLAG_IOPL)
		return false;
	if (!(v->s.cr4 & CR4_VME) || in->opsize != 2)
		vcpu_raise_error(v, EXC_GP, 0);
	return true;
}

INTERP_HANDLER(op_pushf)
{
	uint64_t fl = (v->s.rflags | FLAG_FIXED) & ~(uint64_t)(FLAG_VM | FLAG_RF);

	if (v86_virtual(v, in))
		fl = (fl & ~(uint64_t)FLAG_IF) | FLAG_IOPL | (fl & FLAG_VIF ? FLAG_IF : 0);
	push(v, fl, in->opsize);
}

INTERP_HANDLER(op_popf)
{
	uint64_t image = stack_peek(v, 0, in->opsize);
	uint64_t mask = FLAGS_ARITH | FLAG_TF | FLAG_DF | FLAG_NT;
	unsigned cpl = state_cpl(&v->s);

	if (in->opsize > 2)
		mask |= FLAG_AC | FLAG_ID | FLAG_RF;
	if (v86_virtual(v, in)) {
		if ((image & FLAG_TF) || ((image & FLAG_IF) && (v->s.rflags & FLAG_VIP)))
			vcpu_raise_error(v, EXC_GP, 0);
		flags_set(v, FLAG_VIF, image & FLAG_IF ? FLAG_VIF : 0);
	} else if (cpl <= (v->s.rflags >> 12 & 3)) {
		mask |= FLAG_IF;
	}
	if (cpl == 0)
		mask |= FLAG_IOPL;
	rsp_add(v, in->opsize);
	flags_set(v, mask, image & ~(uint64_t)FLAG_RF);
	interp_of(v)->check_events = true;
	vcpu_update_mode(v);
}

/* CLAC, STAC: above CPL 0 it is #UD, not #GP. */
INTERP_HANDLER(op_clac)
{
	if (state_cpl(&v->s))
		vcpu_raise(v, EXC_UD);
	v->s.rflags &= ~(uint64_t)FLAG_AC;
	vcpu_update_mode(v);
}

INTERP_HANDLER(op_stac)
{
	if (state_cpl(&v->s))
		vcpu_raise(v, EXC_UD);
	v->s.rflags |= FLAG_AC;
	vcpu_update_mode(v);
}

INTERP_HANDLER(op_hlt)
{
	v->s.activity = ACTIVITY_HALTED;
	interp_of(v)->check_events = true;
}

/* Who spins waits for another vCPU, and that may be waiting for this thread's core. */
#define PAUSES_PER_YIELD 1024

INTERP_HANDLER(op_pause)
{
	if (v->hot.pauses_left > 0) {
		v->hot.pauses_left--;
		__builtin_ia32_pause();
	} else {
		v->hot.pauses_left = PAUSES_PER_YIELD;
		sched_yield();
	}
}

INTERP_HANDLER(op_fence) { atomic_thread_fence(memory_order_seq_cst); }

/* CLFLUSH, CLWB: a read as far as faults go. */
INTERP_HANDLER(op_clflush) { mem_ld(v, in->mem.seg, mem_ea(v, in), 1); }

/* MONITOR faults as a load; MWAIT then is a PAUSE, which the architecture allows. */
INTERP_HANDLER(op_monitor)
{
	unsigned seg = in->seg_override != SEG_NONE ? in->seg_override : SEG_DS;

	if (gpr_get(v, REG_RCX, 4))
		vcpu_raise_error(v, EXC_GP, 0);
	mem_ld(v, seg, v->s.gpr[REG_RAX] & size_mask(in->addrsize), 1);
}
