/*
 * Floating point and vectors in the interpreter.
 *
 *   fp.c         which instruction goes where; gating by CR0, CR4, XCR0; pending exceptions
 *   fp_native.c  runs one instruction on the host's own units, operands moved into reach
 *   fp_control.c control and status words, MXCSR
 *   fp_vector.c  per-element memory access: gathers, masked moves
 *   fp_evex.c    likewise with AVX-512's masks
 *   fp_state.c   FXSAVE and XSAVE families
 *
 * The host is x86-64, so its own FPU and vector units are the exact reference: an instruction runs there, on
 * the guest's register image, with all exceptions masked; what the guest has unmasked is raised afterwards,
 * before anything is committed.
 */
#ifndef VIXEN_ENGINE_SOFT_FP_H
#define VIXEN_ENGINE_SOFT_FP_H

#include "cpu/optable.h"
#include "engine/soft/vcpu.h"

#define MXCSR_FLAGS 0x3fu
#define MXCSR_MASKS 0x1f80u
#define MXCSR_UE 0x10u
#define MXCSR_UM 0x800u
#define MXCSR_FZ 0x8000u
#define MXCSR_VALID 0xffffu
#define FSW_FLAGS 0x3fu
#define FSW_ES 0x80u
#define FSW_B 0x8000u
#define XSTATE_X87 1u
#define XSTATE_SSE 2u
#define XSTATE_AVX 4u
#define XSTATE_OPMASK 0x20u
#define XSTATE_ZMM_HI256 0x40u	/* bits 511:256 of ZMM0-15 */
#define XSTATE_HI16_ZMM 0x80u	/* ZMM16-31 */
#define XSTATE_AVX512 (XSTATE_OPMASK | XSTATE_ZMM_HI256 | XSTATE_HI16_ZMM)

/* Extended components, ascending: where in our image (and in the standard format), and how much of that instructions see in
 * 64-bit code and elsewhere. */
#define FP_COMPONENTS 4
struct fp_component { uint8_t number; uint16_t at, bytes, bytes32; };
extern const struct fp_component fp_components[FP_COMPONENTS];

/* Recomputes ES and B from flags and masks. */
void fp_update_es(struct x86_xsave *f);
/* The memory operand's linear address obeys `align` bytes, or #GP(0). */
void fp_check_align(struct vcpu *v, const struct insn *in, unsigned align);

/* Has it an MMX register as operand? */
bool fp_has_mmx(const struct insn *in);
/* TOP becomes 0, st[] turns with it, all tags valid (SDM vol. 3, 12.2). */
void fp_enter_mmx(struct x86_xsave *f);

void fp_native(struct vcpu *v, const struct insn *in);
bool fp_control(struct vcpu *v, const struct insn *in);	/* false: not one of its */
bool fp_vector_memory(struct vcpu *v, const struct insn *in);
/* Of an element of a masked operand. The operand is one piece, as others are: behind the last 16-bit address, and in 64-bit code
 * the last 32-bit one, it goes on. In 32-bit code such an operand does not break the limit of 4 GiB. */
static inline uint64_t fp_element_offset(const struct vcpu *v, uint64_t offset)
{
	return v->insn_mode == INSN_64 ? offset : (uint32_t)offset;
}
/* Does a mask decide what is accessed of the memory operand? Then these do it, at `offset`, for a stand-in of it. */
bool fp_masked(const struct insn *in);
bool fp_masked_any(const struct vcpu *v, const struct insn *in, const struct operand *m);	/* is there anything to access? */
void fp_masked_load(struct vcpu *v, const struct insn *in, const struct operand *m, uint64_t offset, uint8_t *to);
void fp_masked_probe(struct vcpu *v, const struct insn *in, const struct operand *m, uint64_t offset);
void fp_masked_store(struct vcpu *v, const struct insn *in, const struct operand *m, uint64_t offset, const uint8_t *from);
bool fp_evex_vsib(struct vcpu *v, const struct insn *in);	/* false: neither gather nor scatter */
/* Has the instruction, which has run, rounded to an FP16 result that is tiny? One that is inexact told by itself. memory: what
 * it would store. */
bool fp_half_tiny(const struct vcpu *v, const struct insn *in, const uint8_t *memory);
bool fp_state(struct vcpu *v, const struct insn *in);

#endif
