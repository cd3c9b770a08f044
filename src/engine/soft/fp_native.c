/*
 * One instruction on the host's own units.
 *
 * A stub is made for it (and kept, by its bytes):
 *
 *	push rbx; mov rbx, rdi			frame
 *	push [rbx + flags]; popfq
 *	mov rax, rcx, rdx, rdi from the frame	rdi: the memory operand's stand-in
 *	INSTRUCTION				its memory operand is [rdi], its integer operand is rax
 *	mov [rbx + ..], rax, rcx
 *	pushfq; pop [rbx + flags]
 *	pop rbx; ret
 *
 * and called between XRSTOR of the guest's image and XSAVE back into it.
 */
#include <pthread.h>
#include <stddef.h>
#include <string.h>

#include "cpu/model.h"
#include "engine/soft/fp.h"
#include "engine/soft/fp_stub.h"
#include "engine/soft/soft.h"

#define MXCSR_DEFAULT 0x1f80u
#define EXC_BEFORE 7u		/* invalid, denormal, divide by zero: the operation does not take place */

struct writer { uint8_t *p; };
static void put(struct writer *w, const void *b, unsigned n)
{
	memcpy(w->p, b, n);
	w->p += n;
}
static void put8(struct writer *w, unsigned b) { *w->p++ = (uint8_t)b; }

/* The ModR/M byte with the memory operand as [rdi] and an integer register as rax; rex gets R, X, B. */
static uint8_t modrm_rewrite(const struct insn *in, uint8_t *rex)
{
	uint8_t mod = in->modrm >> 6, reg = in->modrm >> 3 & 7, rm = in->modrm & 7;
	bool gpr_reg = false, gpr_rm = false;
	for (unsigned i = 0; i < in->nops; i++) {
		enum operand_where at = x86_operand_specs[in->row->operand[i]].where;
		gpr_reg |= in->ops[i].kind == OPK_GPR && at == AT_G;
		gpr_rm |= in->ops[i].kind == OPK_GPR && (at == AT_E || at == AT_R);
	}
	*rex = in->rex & 0xf;
	if (gpr_reg) {
		reg = 0;
		*rex &= (uint8_t)~4;
	}
	if (mod != 3) {
		*rex &= (uint8_t)~3;
		return (uint8_t)(reg << 3 | 7);			/* [rdi] */
	}
	if (gpr_rm) {
		rm = 0;
		*rex &= (uint8_t)~1;
	}
	return (uint8_t)(0xc0 | reg << 3 | rm);
}

static unsigned vector_prefix(const struct insn *in)
{
	return in->mandatory == 0x66 ? 1 : in->mandatory == 0xf3 ? 2 : in->mandatory == 0xf2 ? 3 : 0;
}

static void emit_evex(struct writer *w, const struct insn *in, uint8_t rex)
{
	put8(w, 0x62);
	put8(w, (~rex & 7) << 5 | !in->evex_r << 4 | in->map);
	put8(w, (rex & 8) << 4 | (~in->vvvv & 15) << 3 | 4 | vector_prefix(in));
	put8(w, in->evex_z << 7 | in->vex_l << 5 | in->evex_b << 4 | !(in->vvvv & 16) << 3 | in->evex_mask);
}

static void emit_instruction(struct writer *w, const struct insn *in)
{
	uint8_t rex = 0, modrm = in->has_modrm ? modrm_rewrite(in, &rex) : 0;
	if (in->evex) {
		emit_evex(w, in, rex);
	} else if (in->vex) {
		put8(w, 0xc4);
		put8(w, ((~rex & 7) << 5) | in->map);
		put8(w, (rex & 8) << 4 | (~in->vvvv & 15) << 3 | in->vex_l << 2 | vector_prefix(in));
	} else {
		if (in->mandatory)
			put8(w, in->mandatory);
		else if (in->p66 && in->row->cls == CLASS_X87)
			put8(w, 0x66);
		if (rex)
			put8(w, 0x40 | rex);
		if (in->map)
			put8(w, 0x0f);
		if (in->map > 1)
			put8(w, in->map == 2 ? 0x38 : 0x3a);
	}
	put8(w, in->opcode);
	if (in->has_modrm)
		put8(w, modrm);
	for (unsigned i = 0; i < in->nops; i++) {
		enum operand_where at = x86_operand_specs[in->row->operand[i]].where;
		if (at == AT_I || at == AT_IS)
			put8(w, (uint8_t)in->imm);
		else if (at == AT_L)
			put8(w, (unsigned)in->ops[i].reg << 4);
	}
}

static unsigned emit_stub(uint8_t *out, const struct insn *in)
{
	static const uint8_t enter[] = {
		0x53, 0x48, 0x89, 0xfb,				/* push rbx; mov rbx, rdi */
		0xff, 0x73, offsetof(struct fp_frame, flags), 0x9d,	/* push [rbx+flags]; popfq */
		0x48, 0x8b, 0x43, offsetof(struct fp_frame, rax),
		0x48, 0x8b, 0x4b, offsetof(struct fp_frame, rcx),
		0x48, 0x8b, 0x53, offsetof(struct fp_frame, rdx),
		0x48, 0x8b, 0x7b, offsetof(struct fp_frame, memory),
	}, leave[] = {
		0x48, 0x89, 0x43, offsetof(struct fp_frame, rax),
		0x48, 0x89, 0x4b, offsetof(struct fp_frame, rcx),
		0x9c, 0x8f, 0x43, offsetof(struct fp_frame, flags),	/* pushfq; pop [rbx+flags] */
		0x5b, 0xc3,
	};
	struct writer w = { out };
	put(&w, enter, sizeof enter);
	emit_instruction(&w, in);
	put(&w, leave, sizeof leave);
	return (unsigned)(w.p - out);
}

/* What lies in the host's registers meanwhile; XCR0's bits are of the host's, cpu/model.c sees to that. */
static uint32_t host_components(const struct vcpu *v)
{
	return XSTATE_X87 | XSTATE_SSE | XSTATE_AVX | (v->s.xcr0 & cpu_model_xcr0_mask(v->en->model) & XSTATE_AVX512);
}

/* No vector or x87 code of the compiler's may come between XRSTOR and XSAVE. */
static __attribute__((noinline)) void call_on_guest_state(const void *stub, struct fp_frame *frame,
							  struct x86_xsave *image, uint32_t components)
{
	uint32_t mxcsr = MXCSR_DEFAULT;
	__asm__ volatile(
		"xrstor64 (%[image])\n\t"
		"call *%[stub]\n\t"
		"movl %[components], %%eax\n\t"
		"xorl %%edx, %%edx\n\t"
		"xsave64 (%[image])\n\t"
		"fninit\n\t"
		"vzeroupper\n\t"
		"ldmxcsr %[mxcsr]\n\t"
		"cld\n\t"
		: "+D"(frame)
		: [image] "r"(image), [stub] "r"(stub), "a"(components), "d"(0), [components] "m"(components),
		  [mxcsr] "m"(mxcsr)
		: "rcx", "rsi", "r8", "r9", "r10", "r11", "memory", "cc", "st", "st(1)", "st(2)", "st(3)", "st(4)",
		  "st(5)", "st(6)", "st(7)", "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", "xmm8",
		  "xmm9", "xmm10", "xmm11", "xmm12", "xmm13", "xmm14", "xmm15");
}

struct operands { int memory, gpr; };
static struct operands find_operands(const struct insn *in)
{
	struct operands o = { -1, -1 };
	for (int i = 0; i < in->nops; i++) {
		if (in->ops[i].kind == OPK_MEM)
			o.memory = i;
		else if (in->ops[i].kind == OPK_GPR && x86_operand_specs[in->row->operand[i]].where != AT_RAX)
			o.gpr = i;
	}
	return o;
}

/* After the run: which exceptions has the guest unmasked? Raises them, with nothing but flags committed. */
static void settle_vector(struct vcpu *v, const struct insn *in, const struct x86_xsave *before, uint32_t guest)
{
	struct x86_xsave *f = &v->s.fpu;
	uint32_t raised = f->mxcsr & MXCSR_FLAGS, unmasked = raised & ~(guest >> 7);
	if (in->row->attr & ROW_UQ)		/* products of complex FP16 numbers set flags but never fault */
		unmasked = 0;
	if (unmasked) {
		if (unmasked & EXC_BEFORE)	/* then none looks at what the results would have been */
			raised &= EXC_BEFORE;
		memcpy(f->raw, before->raw, sizeof f->raw);
		f->mxcsr = guest | raised;
		if (fp_has_mmx(in))
			fp_enter_mmx(f);
		vcpu_raise(v, v->s.cr4 & CR4_OSXMMEXCPT ? EXC_XM : EXC_UD);
	}
	f->mxcsr = guest | raised;
}

/* Can a tiny result raise an exception? VREDUCE and VRCP14 have none for it, and EVEX.b beside registers suppresses all. */
static bool underflows(const struct insn *in)
{
	switch (in->op) {
	case X86_VREDUCEPD: case X86_VREDUCEPS: case X86_VREDUCEPH: case X86_VREDUCESD: case X86_VREDUCESS: case X86_VREDUCESH:
	case X86_VRCP14PD: case X86_VRCP14PS: case X86_VRCP14SD: case X86_VRCP14SS:
		return false;
	default:
		return !(in->evex_b && in->modrm >= 0xc0);
	}
}

/* x87 exceptions are taken at the next waiting instruction, so x87 runs with the guest's own masks: what an unmasked
 * one leaves in registers and memory is exact. */
static void run(struct vcpu *v, const struct insn *in, struct fp_frame *frame)
{
	struct x86_xsave *f = &v->s.fpu, before;
	uint32_t mxcsr = f->mxcsr;
	if ((mxcsr & MXCSR_MASKS) != MXCSR_MASKS)
		memcpy(before.raw, f->raw, sizeof before.raw);
	f->mxcsr = (mxcsr & ~MXCSR_FLAGS) | MXCSR_MASKS;
	bool tiny_counts = !(mxcsr & MXCSR_UM) && underflows(in);
	if (tiny_counts)
		f->mxcsr |= MXCSR_FZ;	/* a tiny result then sets UE even if it is exact, as it does unmasked (SDM vol. 1, 4.9.1.5) */
	fp_update_es(f);
	call_on_guest_state(fp_stub(v, in, emit_stub), frame, f, host_components(v));
	if (tiny_counts && fp_half_tiny(v, in, frame->memory))		/* FP16 ignores FZ */
		f->mxcsr |= MXCSR_UE;
	settle_vector(v, in, &before, mxcsr);
}

static void memory_probe(struct vcpu *v, const struct insn *in, const struct operand *m, uint64_t offset)
{
	if (fp_masked(in))
		fp_masked_probe(v, in, m, offset);
	else
		mem_probe_store(v, in->mem.seg, offset, m->size);
}

static void memory_load(struct vcpu *v, const struct insn *in, const struct operand *m, uint64_t offset, uint8_t *to)
{
	if (fp_masked(in))
		fp_masked_load(v, in, m, offset, to);
	else
		mem_load_n(v, in->mem.seg, offset, to, m->size);
}

static void memory_store(struct vcpu *v, const struct insn *in, const struct operand *m, uint64_t offset,
			 const uint8_t *from)
{
	if (fp_masked(in))
		fp_masked_store(v, in, m, offset, from);
	else
		mem_store_n(v, in->mem.seg, offset, from, m->size);
}

void fp_native(struct vcpu *v, const struct insn *in)
{
	struct operands o = find_operands(in);
	uint8_t memory[512] __attribute__((aligned(64)));
	struct fp_frame frame = {
		.rax = v->s.gpr[REG_RAX], .rcx = v->s.gpr[REG_RCX], .rdx = v->s.gpr[REG_RDX],
		.memory = memory, .flags = (v->s.rflags & FLAGS_ARITH) | FLAG_FIXED,
	};
	const struct operand *m = o.memory >= 0 ? &in->ops[o.memory] : NULL, *g = o.gpr >= 0 ? &in->ops[o.gpr] : NULL;
	uint64_t offset = m ? mem_effective(v, in) : 0;
	ASSERT(!m || m->size <= sizeof memory);
	if (m && m->write)
		memory_probe(v, in, m, offset);
	/* A store that an unmasked x87 exception stops leaves what was there. */
	if (m && (m->read || (in->row->cls == CLASS_X87 && (v->s.fpu.fcw & FSW_FLAGS) != FSW_FLAGS)))
		memory_load(v, in, m, offset, memory);
	if (g)
		frame.rax = v->s.gpr[g->reg];
	run(v, in, &frame);
	if (m && m->write)
		memory_store(v, in, m, offset, memory);
	if (g && g->write)
		v->s.gpr[g->reg] = frame.rax;
	if (in->op == X86_PCMPESTRI || in->op == X86_PCMPISTRI)
		v->s.gpr[REG_RCX] = frame.rcx;
	uint64_t written = in->row->flags_written & FLAGS_ARITH;
	v->s.rflags = (v->s.rflags & ~written) | (frame.flags & written);
}
