#include "engine/soft/fp.h"

#include "cpu/model.h"
#include "engine/soft/soft.h"

void fp_update_es(struct x86_xsave *f)
{
	if (f->fsw & ~f->fcw & FSW_FLAGS)
		f->fsw |= FSW_ES | FSW_B;
	else
		f->fsw &= (uint16_t)~(FSW_ES | FSW_B);
}

void fp_check_align(struct vcpu *v, const struct insn *in, unsigned align)
{
	uint64_t base = v->insn_mode == INSN_64 && in->mem.seg < SEG_FS ? 0 : v->s.seg[in->mem.seg].base;
	if ((mem_effective(v, in) + base) & (align - 1))
		vcpu_raise_error(v, EXC_GP, 0);
}

/* Those that look at the state without waiting for pending exceptions (SDM vol. 1, 8.6). */
static bool non_waiting(unsigned op)
{
	switch (op) {
	case X86_FNINIT: case X86_FNCLEX: case X86_FNSTCW: case X86_FNSTSW: case X86_FNSTENV: case X86_FNSAVE:
	case X86_FNENI: case X86_FNDISI: case X86_FNSETPM: return true;
	default: return false;
	}
}

static void gate_x87(struct vcpu *v, const struct insn *in)
{
	uint64_t cr0 = v->s.cr0;
	if (in->op == X86_FWAIT) {
		if ((cr0 & (CR0_MP | CR0_TS)) == (CR0_MP | CR0_TS))
			vcpu_raise(v, EXC_NM);
	} else if (cr0 & (CR0_EM | CR0_TS)) {
		vcpu_raise(v, EXC_NM);
	}
	if (!non_waiting(in->op) && (v->s.fpu.fsw & FSW_ES))
		vcpu_raise(v, EXC_MF);
}

static void gate_mmx(struct vcpu *v)
{
	if (v->s.cr0 & CR0_EM)
		vcpu_raise(v, EXC_UD);
	if (v->s.cr0 & CR0_TS)
		vcpu_raise(v, EXC_NM);
	if (v->s.fpu.fsw & FSW_ES)
		vcpu_raise(v, EXC_MF);
}

static void gate_sse(struct vcpu *v)
{
	if ((v->s.cr0 & CR0_EM) || !(v->s.cr4 & CR4_OSFXSR))
		vcpu_raise(v, EXC_UD);
	if (v->s.cr0 & CR0_TS)
		vcpu_raise(v, EXC_NM);
}

static void gate_avx(struct vcpu *v, uint64_t components)
{
	bool protected_mode = (v->s.cr0 & CR0_PE) && !(v->s.rflags & FLAG_VM);
	if (!protected_mode || !(v->s.cr4 & CR4_OSXSAVE) || (v->s.xcr0 & components) != components)
		vcpu_raise(v, EXC_UD);
	if (v->s.cr0 & CR0_TS)
		vcpu_raise(v, EXC_NM);
}

static void gate(struct vcpu *v, const struct insn *in)
{
	switch (in->row->cls) {
	case CLASS_X87: gate_x87(v, in); break;
	case CLASS_MMX:
		if (in->op == X86_CVTPI2PS || in->op == X86_CVTPI2PD)
			gate_sse(v);		/* and only their register form is an MMX instruction */
		if ((in->op != X86_CVTPI2PS && in->op != X86_CVTPI2PD) || fp_has_mmx(in))
			gate_mmx(v);
		break;
	case CLASS_SSE:
		gate_sse(v);
		for (unsigned i = 0; i < in->nops; i++)		/* CVTPI2PS and kin touch MMX registers too */
			if (in->ops[i].kind == OPK_MMX && (v->s.fpu.fsw & FSW_ES))
				vcpu_raise(v, EXC_MF);
		break;
	case CLASS_AVX: gate_avx(v, XSTATE_SSE | XSTATE_AVX); break;
	case CLASS_AVX512: gate_avx(v, XSTATE_SSE | XSTATE_AVX | XSTATE_AVX512); break;
	default: break;
	}
}

static void check_alignment(struct vcpu *v, const struct insn *in)
{
	if (in->row->align != ALIGN_VECTOR)
		return;
	for (unsigned i = 0; i < in->nops; i++)
		if (in->ops[i].kind == OPK_MEM && (!fp_masked(in) || fp_masked_any(v, in, &in->ops[i])))
			fp_check_align(v, in, in->ops[i].size);
}

bool fp_execute(struct vcpu *v, const struct insn *in)
{
	if (in->row->feature && !cpu_model_has(v->en->model, (enum x86_feature)in->row->feature))
		vcpu_raise(v, EXC_UD);
	if (fp_state(v, in))
		return true;
	if (in->row->cls == CLASS_GPR || in->row->cls == CLASS_VEX_GPR || in->row->cls == CLASS_FPSTATE)
		return in->row->cls == CLASS_FPSTATE && fp_control(v, in);
	gate(v, in);
	check_alignment(v, in);
	if (!fp_control(v, in) && !fp_evex_vsib(v, in) && !fp_vector_memory(v, in))
		fp_native(v, in);
	return true;
}
