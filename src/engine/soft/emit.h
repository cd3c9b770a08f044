/*
 * Host code, byte by byte. No checks of room: the caller keeps EMIT_SLACK bytes free.
 */
#ifndef VIXEN_ENGINE_SOFT_EMIT_H
#define VIXEN_ENGINE_SOFT_EMIT_H

#include <stdbool.h>
#include <stdint.h>
#include <string.h>

enum host_reg { H_RAX, H_RCX, H_RDX, H_RBX, H_RSP, H_RBP, H_RSI, H_RDI, H_R8, H_R9, H_R10, H_R11, H_R12, H_R13,
		H_T0 /* r14 */, H_T1 /* r15 */, H_NONE = 0xff };

/* low: where GS points, if 32-bit displacements reach that without a segment: loads are faster by a cycle so.
 * 0: they do not. */
struct emitter { uint8_t *p; uint32_t low; };

/* A host memory operand: [base + index * 2^scale + disp], with gs from where GS points. */
struct host_mem { uint8_t base, index, scale; bool gs; int32_t disp; };

static inline struct host_mem hm_gs(uint64_t off)
{
	return (struct host_mem){ H_NONE, H_NONE, 0, true, (int32_t)off };
}
static inline struct host_mem hm_base(unsigned base, int32_t disp)
{
	return (struct host_mem){ (uint8_t)base, H_NONE, 0, false, disp };
}

static inline void e1(struct emitter *e, uint8_t b) { *e->p++ = b; }
static inline void e2(struct emitter *e, uint8_t a, uint8_t b) { e1(e, a); e1(e, b); }
static inline void e3(struct emitter *e, uint8_t a, uint8_t b, uint8_t c) { e2(e, a, b); e1(e, c); }
static inline void e_u32(struct emitter *e, uint32_t v) { memcpy(e->p, &v, 4); e->p += 4; }
static inline void e_u64(struct emitter *e, uint64_t v) { memcpy(e->p, &v, 8); e->p += 8; }

/* REX bits for the fields of a ModR/M operand. */
unsigned emit_rex(unsigned reg, const struct host_mem *m, bool w);
/* ModR/M, SIB and displacement of a memory operand. */
void emit_modrm_mem(struct emitter *e, unsigned reg, const struct host_mem *m);
/* Likewise where disp8 counts units of `scale` bytes (EVEX). */
void emit_modrm_mem_scaled(struct emitter *e, unsigned reg, const struct host_mem *m, unsigned scale);
/* One-byte opcode with a memory operand / two registers (reg field, rm field). */
void emit_op_mem(struct emitter *e, bool w, uint8_t opcode, unsigned reg, struct host_mem m);
/* 0F xx, 32-bit register. */
void emit_op_mem2(struct emitter *e, uint8_t opcode, unsigned reg, struct host_mem m);
void emit_op_reg(struct emitter *e, bool w, uint8_t opcode, unsigned reg, unsigned rm);

static inline void emit_load(struct emitter *e, unsigned reg, struct host_mem m) { emit_op_mem(e, true, 0x8b, reg, m); }
static inline void emit_store(struct emitter *e, unsigned reg, struct host_mem m) { emit_op_mem(e, true, 0x89, reg, m); }
static inline void emit_lea(struct emitter *e, unsigned reg, struct host_mem m) { emit_op_mem(e, true, 0x8d, reg, m); }
void emit_push(struct emitter *e, unsigned reg, bool pop);
/* mov dword [m], imm / mov byte [m], imm */
void emit_store_imm32(struct emitter *e, struct host_mem m, uint32_t imm);
void emit_store_imm8(struct emitter *e, struct host_mem m, uint8_t imm);
void emit_mov_imm(struct emitter *e, unsigned reg, uint64_t imm);
/* cmp dword [m], imm8 / cmp byte */
void emit_cmp_imm8(struct emitter *e, bool byte, struct host_mem m, uint8_t imm);

/* Jumps whose target is not known yet: return where the displacement lies. */
uint8_t *emit_jmp(struct emitter *e);
uint8_t *emit_jcc(struct emitter *e, unsigned cc);
uint8_t *emit_jcc8(struct emitter *e, unsigned cc);
uint8_t *emit_jrcxz(struct emitter *e);
uint8_t *emit_jmp8(struct emitter *e);
static inline void patch8(uint8_t *at, const uint8_t *target) { *at = (uint8_t)(target - (at + 1)); }
static inline void patch32(uint8_t *at, const uint8_t *target)
{
	int32_t d = (int32_t)(target - (at + 4));
	memcpy(at, &d, 4);
}
void emit_jmp_to(struct emitter *e, const uint8_t *target);
void emit_call_to(struct emitter *e, const uint8_t *target);

enum { CC_O, CC_NO, CC_B, CC_AE, CC_E, CC_NE, CC_BE, CC_A, CC_S, CC_NS, CC_P, CC_NP, CC_L, CC_GE, CC_LE, CC_G };

#endif
