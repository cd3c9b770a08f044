#include "engine/soft/emit.h"

unsigned emit_rex(unsigned reg, const struct host_mem *m, bool w)
{
	unsigned rex = (w ? 8 : 0) | (reg & 8 ? 4 : 0);

	if (m->index != H_NONE && (m->index & 8))
		rex |= 2;
	if (m->base != H_NONE && (m->base & 8))
		rex |= 1;
	return rex;
}

void emit_modrm_mem(struct emitter *e, unsigned reg, const struct host_mem *m)
{
	emit_modrm_mem_scaled(e, reg, m, 1);
}

void emit_modrm_mem_scaled(struct emitter *e, unsigned reg, const struct host_mem *m, unsigned scale)
{
	int32_t units = m->disp / (int32_t)scale;
	unsigned r = (reg & 7) << 3, mod;
	bool sib = m->base == H_NONE || m->index != H_NONE || (m->base & 7) == 4;

	if (m->base == H_NONE)
		mod = 0;
	else if (m->disp == 0 && (m->base & 7) != 5)
		mod = 0;
	else if (units == (int8_t)units && units * (int32_t)scale == m->disp)
		mod = 1;
	else
		mod = 2;
	e1(e, mod << 6 | r | (sib ? 4 : m->base & 7));
	if (sib)
		e1(e, m->scale << 6 | (m->index == H_NONE ? 4 : m->index & 7) << 3 |
		      (m->base == H_NONE ? 5 : m->base & 7));
	if (mod == 1)
		e1(e, (uint8_t)units);
	else if (mod == 2 || m->base == H_NONE)
		e_u32(e, (uint32_t)m->disp);
}

static void emit_segment(struct emitter *e, struct host_mem *m)
{
	if (m->gs && e->low)
		m->disp += (int32_t)e->low;
	else if (m->gs)
		e1(e, 0x65);
}

void emit_op_mem(struct emitter *e, bool w, uint8_t opcode, unsigned reg, struct host_mem m)
{
	unsigned rex = emit_rex(reg, &m, w);

	emit_segment(e, &m);
	if (rex)
		e1(e, 0x40 | rex);
	e1(e, opcode);
	emit_modrm_mem(e, reg, &m);
}

void emit_op_mem2(struct emitter *e, uint8_t opcode, unsigned reg, struct host_mem m)
{
	unsigned rex = emit_rex(reg, &m, false);

	emit_segment(e, &m);
	if (rex)
		e1(e, 0x40 | rex);
	e2(e, 0x0f, opcode);
	emit_modrm_mem(e, reg, &m);
}

void emit_op_reg(struct emitter *e, bool w, uint8_t opcode, unsigned reg, unsigned rm)
{
	unsigned rex = (w ? 8 : 0) | (reg & 8 ? 4 : 0) | (rm & 8 ? 1 : 0);

	if (rex)
		e1(e, 0x40 | rex);
	e2(e, opcode, 0xc0 | (reg & 7) << 3 | (rm & 7));
}

void emit_push(struct emitter *e, unsigned reg, bool pop)
{
	if (reg & 8)
		e1(e, 0x41);
	e1(e, (pop ? 0x58 : 0x50) | (reg & 7));
}

void emit_store_imm32(struct emitter *e, struct host_mem m, uint32_t imm)
{
	emit_op_mem(e, false, 0xc7, 0, m);
	e_u32(e, imm);
}

void emit_store_imm8(struct emitter *e, struct host_mem m, uint8_t imm)
{
	emit_op_mem(e, false, 0xc6, 0, m);
	e1(e, imm);
}

void emit_mov_imm(struct emitter *e, unsigned reg, uint64_t imm)
{
	if (imm == (uint32_t)imm) {
		if (reg & 8)
			e1(e, 0x41);
		e1(e, 0xb8 | (reg & 7));
		e_u32(e, (uint32_t)imm);
	} else if ((int64_t)imm == (int32_t)imm) {
		e3(e, reg & 8 ? 0x49 : 0x48, 0xc7, 0xc0 | (reg & 7));
		e_u32(e, (uint32_t)imm);
	} else {
		e2(e, reg & 8 ? 0x49 : 0x48, 0xb8 | (reg & 7));
		e_u64(e, imm);
	}
}

void emit_cmp_imm8(struct emitter *e, bool byte, struct host_mem m, uint8_t imm)
{
	emit_op_mem(e, false, byte ? 0x80 : 0x83, 7, m);
	e1(e, imm);
}

uint8_t *emit_jmp(struct emitter *e)
{
	e1(e, 0xe9);
	e->p += 4;
	return e->p - 4;
}

uint8_t *emit_jcc(struct emitter *e, unsigned cc)
{
	e2(e, 0x0f, 0x80 | cc);
	e->p += 4;
	return e->p - 4;
}

uint8_t *emit_jcc8(struct emitter *e, unsigned cc)
{
	e2(e, 0x70 | cc, 0);
	return e->p - 1;
}

uint8_t *emit_jrcxz(struct emitter *e)
{
	e2(e, 0xe3, 0);
	return e->p - 1;
}

uint8_t *emit_jmp8(struct emitter *e)
{
	e2(e, 0xeb, 0);
	return e->p - 1;
}

void emit_jmp_to(struct emitter *e, const uint8_t *target)
{
	patch32(emit_jmp(e), target);
}

void emit_call_to(struct emitter *e, const uint8_t *target)
{
	e1(e, 0xe8);
	e->p += 4;
	patch32(e->p - 4, target);
}
