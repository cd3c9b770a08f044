/*
 * Handlers for the most frequent exact operand combinations, picked when an instruction is decoded.
 * They do what the general ones do, with kinds and sizes known.
 */
#include "cpu/optable.h"
#include "engine/soft/handlers.h"

#define R0 v->s.gpr[in->ops[0].reg]
#define R1 v->s.gpr[in->ops[1].reg]

static INTERP_HANDLER(mov_r64_r64) { R0 = R1; }
static INTERP_HANDLER(mov_r32_r32) { R0 = (uint32_t)R1; }
static INTERP_HANDLER(mov_r_imm) { R0 = in->imm & size_mask(in->ops[0].size); }

#define LOADS(n) \
	static INTERP_HANDLER(mov_r_m##n) { R0 = mem_ld(v, in->mem.seg, mem_ea(v, in), n); } \
	static INTERP_HANDLER(mov_m##n##_r) { mem_st(v, in->mem.seg, mem_ea(v, in), n, R1); }
LOADS(8) LOADS(4)
static INTERP_HANDLER(mov_m1_r)
{
	mem_st(v, in->mem.seg, mem_ea(v, in), 1, reg_read(v, &in->ops[1]));
}

#define MOVZX_M(n) \
	static INTERP_HANDLER(movzx_r_m##n) { R0 = mem_ld(v, in->mem.seg, mem_ea(v, in), n); }
MOVZX_M(1) MOVZX_M(2)

static INTERP_HANDLER(lea_64) { R0 = mem_ea(v, in); }

static INTERP_HANDLER(push_r64)
{
	uint64_t sp = v->s.gpr[REG_RSP] - 8;

	mem_st(v, SEG_SS, sp, 8, R0);
	v->s.gpr[REG_RSP] = sp;
}

static INTERP_HANDLER(pop_r64)
{
	uint64_t value = mem_ld(v, SEG_SS, v->s.gpr[REG_RSP], 8);

	v->s.gpr[REG_RSP] += 8;
	R0 = value;
}

/* ALU on registers, 4 and 8 bytes; the source is a register, an immediate or memory. */
#define FLAGS_COMMIT v->s.rflags = (v->s.rflags & ~(uint64_t)FLAGS_ARITH) | fl
#define SRC_r(n) (R1 & size_mask(n))
#define SRC_i(n) (in->imm & size_mask(n))
#define SRC_m(n) mem_ld(v, in->mem.seg, mem_ea(v, in), n)
#define ALU_FORM(name, src, n, body) \
	static INTERP_HANDLER(name##_##src##n) \
	{ \
		uint64_t fl, b = SRC_##src(n), a = R0 & size_mask(n); \
		body; \
		FLAGS_COMMIT; \
	}
#define ALU_FORMS(name, body4, body8) \
	ALU_FORM(name, r, 4, body4) ALU_FORM(name, i, 4, body4) ALU_FORM(name, m, 4, body4) \
	ALU_FORM(name, r, 8, body8) ALU_FORM(name, i, 8, body8) ALU_FORM(name, m, 8, body8)
ALU_FORMS(add, R0 = (uint32_t)alu_add(a, b, 0, 4, &fl), R0 = alu_add(a, b, 0, 8, &fl))
ALU_FORMS(sub, R0 = (uint32_t)alu_sub(a, b, 0, 4, &fl), R0 = alu_sub(a, b, 0, 8, &fl))
ALU_FORMS(cmp, alu_sub(a, b, 0, 4, &fl), alu_sub(a, b, 0, 8, &fl))
ALU_FORMS(and, R0 = a & b; fl = flags_szp(R0, 4), R0 = a & b; fl = flags_szp(R0, 8))
ALU_FORMS(or, R0 = a | b; fl = flags_szp(R0, 4), R0 = a | b; fl = flags_szp(R0, 8))
ALU_FORMS(xor, R0 = a ^ b; fl = flags_szp(R0, 4), R0 = a ^ b; fl = flags_szp(R0, 8))
ALU_FORMS(test, fl = flags_szp(a & b, 4), fl = flags_szp(a & b, 8))

/* CMP and TEST with memory first. */
#define CMP_MEM(n) \
	static INTERP_HANDLER(cmp_mi##n) \
	{ \
		uint64_t fl; \
		alu_sub(mem_ld(v, in->mem.seg, mem_ea(v, in), n), in->imm & size_mask(n), 0, n, &fl); \
		FLAGS_COMMIT; \
	} \
	static INTERP_HANDLER(cmp_mr##n) \
	{ \
		uint64_t fl; \
		alu_sub(mem_ld(v, in->mem.seg, mem_ea(v, in), n), R1 & size_mask(n), 0, n, &fl); \
		FLAGS_COMMIT; \
	}
CMP_MEM(4) CMP_MEM(8)

static interp_fn *pick_mov(const struct insn *in, interp_fn *general)
{
	const struct operand *d = &in->ops[0], *s = &in->ops[1];

	if (d->kind == OPK_GPR && s->kind == OPK_GPR)
		return d->size == 8 ? mov_r64_r64 : d->size == 4 ? mov_r32_r32 : general;
	if (d->kind == OPK_GPR && s->kind == OPK_IMM)
		return d->size >= 4 ? mov_r_imm : general;
	if (d->kind == OPK_GPR && s->kind == OPK_MEM)
		return d->size == 8 ? mov_r_m8 : d->size == 4 ? mov_r_m4 : general;
	if (d->kind == OPK_MEM && s->kind == OPK_GPR)
		return d->size == 8 ? mov_m8_r : d->size == 4 ? mov_m4_r : d->size == 1 ? mov_m1_r : general;
	return general;
}

#define PICK(name) \
	if (s->kind == OPK_GPR) return wide ? name##_r8 : name##_r4; \
	if (s->kind == OPK_IMM) return wide ? name##_i8 : name##_i4; \
	if (s->kind == OPK_MEM) return wide ? name##_m8 : name##_m4; \
	return general

static interp_fn *pick_alu(const struct insn *in, interp_fn *general)
{
	const struct operand *d = &in->ops[0], *s = &in->ops[1];
	bool wide = d->size == 8;

	if (d->size < 4)
		return general;
	if (d->kind == OPK_MEM && in->op == X86_CMP)
		return s->kind == OPK_IMM ? wide ? cmp_mi8 : cmp_mi4 : wide ? cmp_mr8 : cmp_mr4;
	if (d->kind != OPK_GPR)
		return general;
	switch (in->op) {
	case X86_ADD: PICK(add);
	case X86_SUB: PICK(sub);
	case X86_CMP: PICK(cmp);
	case X86_AND: PICK(and);
	case X86_OR: PICK(or);
	case X86_XOR: PICK(xor);
	case X86_TEST: PICK(test);
	default: return general;
	}
}

static interp_fn *pick_jcc(const struct insn *in, interp_fn *general)
{
	switch (in->opcode & 15) {
	case 2: return op_jcc_c;
	case 3: return op_jcc_nc;
	case 4: return op_jcc_z;
	case 5: return op_jcc_nz;
	default: return general;
	}
}

interp_fn *interp_specialise(const struct insn *in, interp_fn *general)
{
	const struct operand *d = &in->ops[0], *s = &in->ops[1];

	switch (in->op) {
	case X86_MOV: return pick_mov(in, general);
	case X86_ADD: case X86_SUB: case X86_CMP: case X86_AND: case X86_OR: case X86_XOR: case X86_TEST:
		return pick_alu(in, general);
	case X86_JCC: return pick_jcc(in, general);
	case X86_LEA: return d->size == 8 ? lea_64 : general;
	case X86_MOVZX:
		if (s->kind == OPK_MEM && d->size >= 4)
			return s->size == 1 ? movzx_r_m1 : movzx_r_m2;
		return general;
	case X86_PUSH: return d->kind == OPK_GPR && d->size == 8 ? push_r64 : general;
	case X86_POP: return d->kind == OPK_GPR && d->size == 8 ? pop_r64 : general;
	default: return general;
	}
}
