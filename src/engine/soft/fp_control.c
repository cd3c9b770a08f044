/* x87 control, and MXCSR: what must see the guest's own masks, so cannot run with them overridden. */
#include "engine/soft/fp.h"

static unsigned mem_operand(const struct insn *in) { return in->ops[0].kind == OPK_MEM ? in->ops[0].size : 0; }

static void store_word(struct vcpu *v, const struct insn *in, uint16_t word)
{
	if (mem_operand(in))
		mem_store(v, in->mem.seg, mem_effective(v, in), 2, word);
	else
		v->s.gpr[REG_RAX] = (v->s.gpr[REG_RAX] & ~0xffffull) | word;
}

static void mxcsr_load(struct vcpu *v, const struct insn *in)
{
	uint32_t value = (uint32_t)mem_load(v, in->mem.seg, mem_effective(v, in), 4);
	if (value & ~MXCSR_VALID)
		vcpu_raise_error(v, EXC_GP, 0);
	v->s.fpu.mxcsr = value;
}

static void mxcsr_gate(struct vcpu *v, const struct insn *in)
{
	bool ok = in->vex ? (v->s.cr4 & CR4_OSXSAVE) && (v->s.xcr0 & XSTATE_AVX)
			  : !(v->s.cr0 & CR0_EM) && (v->s.cr4 & CR4_OSFXSR);
	if (!ok)
		vcpu_raise(v, EXC_UD);
	if (v->s.cr0 & CR0_TS)
		vcpu_raise(v, EXC_NM);
}

bool fp_control(struct vcpu *v, const struct insn *in)
{
	struct x86_xsave *f = &v->s.fpu;
	switch (in->op) {
	case X86_LDMXCSR:
		mxcsr_gate(v, in);
		mxcsr_load(v, in);
		return true;
	case X86_STMXCSR:
		mxcsr_gate(v, in);
		mem_store(v, in->mem.seg, mem_effective(v, in), 4, f->mxcsr);
		return true;
	case X86_FNSTCW: store_word(v, in, f->fcw); return true;
	case X86_FNSTSW: store_word(v, in, f->fsw); return true;
	case X86_FLDCW:
		f->fcw = (uint16_t)((mem_load(v, in->mem.seg, mem_effective(v, in), 2) & 0x1f7f) | 0x40);
		f->xstate_bv |= XSTATE_X87;
		fp_update_es(f);
		return true;
	case X86_FNCLEX:
		f->fsw &= 0x7f00;
		return true;
	case X86_FWAIT: case X86_FNENI: case X86_FNDISI: case X86_FNSETPM: return true;
	default: return false;
	}
}
