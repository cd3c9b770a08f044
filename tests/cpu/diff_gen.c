/*
 * Random cases. A row of the table gives prefixes, opcode and ModR/M; what follows is random bytes of which the
 * decoder says how many belong to the instruction. Then registers or displacements are turned so that the memory
 * operand lies where something is mapped, or crosses into where nothing is.
 */
#include <string.h>

#include "diff.h"

static bool row_usable(const struct gen *g, const struct x86_opcode *r, bool wide)
{
	if (g->filter && strcmp(g->filter, x86_op_name(r->op)))
		return false;
	return !row_exempt(g->model, r, wide);
}

static bool is_common(unsigned op)
{
	static const uint16_t ops[] = { X86_MOV, X86_MOVZX, X86_MOVSXD, X86_LEA, X86_ADD, X86_SUB, X86_AND, X86_XOR, X86_CMP,
					X86_TEST, X86_INC, X86_PUSH, X86_POP, X86_CMOVCC, X86_SETCC, X86_JCC, X86_MOVUPS };

	for (unsigned i = 0; i < sizeof ops / sizeof *ops; i++)
		if (ops[i] == op)
			return true;
	return false;
}

void gen_init(struct gen *g)
{
	for (unsigned wide = 0; wide < 2; wide++) {
		struct rows *s = &g->rows[wide];

		for (unsigned i = 0; i < x86_optable_rows; i++) {
			if (!row_usable(g, &x86_optable[i], wide))
				continue;
			s->row[s->n++] = i;
			if (is_common(x86_optable[i].op) && s->ncommon < sizeof s->common / sizeof *s->common)
				s->common[s->ncommon++] = i;
		}
	}
}

static unsigned word(const struct gen *g) { return g->wide ? 8 : 4; }
static uint64_t cut(const struct gen *g, uint64_t v) { return g->wide ? v : (uint32_t)v; }
static enum insn_mode mode_of(const struct gen *g) { return g->wide ? INSN_64 : INSN_32; }

/* --- encodings --- */

static uint64_t seg_base(const struct insn *in)
{
	return in->mem.seg == SEG_FS ? FS_BASE : in->mem.seg == SEG_GS ? GS_BASE : 0;
}

static void encode_address(struct gen *g, uint8_t **p)
{
	if (gen_one_in(g, 16))
		*(*p)++ = gen_one_in(g, 2) ? 0x64 : 0x65;
	if (gen_one_in(g, 24))
		*(*p)++ = 0x67;
}

static void encode_vex(struct gen *g, const struct x86_opcode *r, uint8_t **p)
{
	unsigned pp = r->prefixes & PREFIX_P66 ? 1 : r->prefixes & PREFIX_F3 ? 2 : r->prefixes & PREFIX_F2 ? 3 : 0;
	unsigned w = r->attr & ROW_W0 ? 0 : r->attr & ROW_W1 ? 1 : gen_below(g, 2);
	unsigned l = r->attr & ROW_L0 ? 0 : r->attr & ROW_L1 ? 1 : gen_below(g, 2);
	unsigned vvvv = gen_one_in(g, 3) ? 15 : gen_below(g, 16);
	unsigned rxb = gen_below(g, 8) | (g->wide ? 0 : 6);	/* R and X clear: else it is LES or LDS */
	if (r->prefixes & PREFIX_NP && pp && gen_one_in(g, 2))
		pp = 0;
	encode_address(g, p);
	*(*p)++ = 0xc4;
	*(*p)++ = (uint8_t)(rxb << 5 | r->map);
	*(*p)++ = (uint8_t)(w << 7 | vvvv << 3 | l << 2 | pp);
}

static bool has_operand_at(const struct x86_opcode *r, enum operand_where where)
{
	for (unsigned i = 0; i < INSN_MAX_OPS; i++)
		if (x86_operand_specs[r->operand[i]].where == where)
			return true;
	return false;
}

static unsigned pick_length(struct gen *g, const struct x86_opcode *r)
{
	if (r->attr & ROW_L12)
		return 1 + gen_below(g, 2);
	return r->attr & ROW_L0 ? 0 : r->attr & ROW_L1 ? 1 : r->attr & ROW_L2 ? 2 : gen_below(g, 3);
}

/* R, X, B, R' (inverted), as far as they make no other instruction. */
static unsigned pick_rxb(struct gen *g, const struct x86_opcode *r)
{
	unsigned rxb = gen_below(g, 16);

	if (!g->wide)
		rxb |= 12;		/* else it is BOUND */
	if (has_operand_at(r, AT_KG) || has_operand_at(r, AT_G))
		rxb |= 9;		/* no such register */
	return rxb;
}

/* Mostly valid. */
static void encode_evex(struct gen *g, const struct x86_opcode *r, bool regs, uint8_t **p)
{
	unsigned pp = r->prefixes & PREFIX_P66 ? 1 : r->prefixes & PREFIX_F3 ? 2 : r->prefixes & PREFIX_F2 ? 3 : 0;
	unsigned w = r->attr & ROW_W0 ? 0 : r->attr & ROW_W1 ? 1 : gen_below(g, 2), l = pick_length(g, r);
	unsigned v = has_operand_at(r, AT_H) || gen_one_in(g, 32) ? gen_below(g, 32) : 0, rxb = pick_rxb(g, r);
	unsigned mask = r->attr & ROW_MASK && (r->attr & ROW_KR || !gen_one_in(g, 4)) ? gen_below(g, 8) : 0, z = 0;
	bool b = r->attr & (regs ? ROW_ER | ROW_SAE : ROW_BROADCAST) && gen_one_in(g, 3);
	if (r->attr & ROW_VSIB)
		v = gen_below(g, 2) << 4;
	if (!g->wide)
		v &= 15;
	if (mask && !(r->attr & ROW_KM) && gen_one_in(g, 3))
		z = 1;
	if (b && regs)
		l = gen_below(g, 4);
	encode_address(g, p);
	*(*p)++ = 0x62;
	*(*p)++ = (uint8_t)(rxb << 4 | r->map);
	*(*p)++ = (uint8_t)(w << 7 | (~v & 15) << 3 | 4 | pp);
	*(*p)++ = (uint8_t)(z << 7 | l << 5 | b << 4 | (v & 16 ? 0 : 8) | mask);
}

/* Prefixes that the next ones undo: REX not right before the opcode, F2 and F3 before the other. */
static void encode_dead(struct gen *g, bool rep, uint8_t **p)
{
	if (gen_one_in(g, 4))
		*(*p)++ = gen_one_in(g, 2) ? 0x2e : 0x3e;
	if (rep && gen_one_in(g, 2))
		*(*p)++ = gen_one_in(g, 2) ? 0xf2 : 0xf3;
	if (g->wide)
		*(*p)++ = (uint8_t)(0x40 | gen_below(g, 16));
	if (gen_one_in(g, 2))
		*(*p)++ = gen_one_in(g, 2) ? 0x2e : 0x3e;
}

static void encode_legacy(struct gen *g, const struct x86_opcode *r, uint8_t **p)
{
	bool rep = r->trans == TRANS_STRING || r->prefixes == PREFIX_F2 || r->prefixes == PREFIX_F3;
	if (gen_one_in(g, 16))
		encode_dead(g, rep, p);
	encode_address(g, p);
	if (r->lockable && gen_one_in(g, 8))
		*(*p)++ = 0xf0;
	if (r->prefixes == PREFIX_ANY) {
		if (gen_one_in(g, 4))
			*(*p)++ = 0x66;
		if (gen_one_in(g, 16) || ((r->trans == TRANS_STRING) && gen_one_in(g, 2)))
			*(*p)++ = gen_one_in(g, 2) ? 0xf2 : 0xf3;
	} else if (r->prefixes & PREFIX_NP) {
		if ((r->prefixes & PREFIX_P66) && gen_one_in(g, 3))
			*(*p)++ = 0x66;
		else if ((r->prefixes & PREFIX_F2) && gen_one_in(g, 16))
			*(*p)++ = 0xf2;
	} else {
		if (gen_one_in(g, 8))
			*(*p)++ = 0x66;
		if (!(r->prefixes & PREFIX_P66))
			*(*p)++ = r->prefixes & PREFIX_F3 ? 0xf3 : 0xf2;
		else
			*(*p)++ = 0x66;
	}
	if (g->wide && (gen_one_in(g, 2) || (r->attr & (ROW_W1 | ROW_B1))))
		*(*p)++ = (uint8_t)(0x40 | gen_below(g, 16) | (r->attr & ROW_W1 ? 8 : 0));
	if (r->map)
		*(*p)++ = 0x0f;
	if (r->map > 1)
		*(*p)++ = r->map == 2 ? 0x38 : 0x3a;
}

static uint8_t encode_modrm(struct gen *g, const struct x86_opcode *r)
{
	uint8_t m = (uint8_t)gen_u64(g);
	bool reg = r->modrm_forms == MODRM_REG || (r->modrm_forms == (MODRM_REG | MODRM_MEM) && gen_one_in(g, 2));
	m = (uint8_t)((m & ~r->modrm_mask) | r->modrm_value);
	if (r->modrm_mask == 0xff)
		return m;
	if (reg)
		return m | 0xc0;
	return m >= 0xc0 ? (uint8_t)(m & 0x7f) : m;
}

/* Not all CPUs check the alignment of these. */
static bool unchecked_alignment(const struct insn *in)
{
	return in->row->feature == FEATURE_SHA;
}

/* Shifts of 16 bits by more than 16: the result is undefined. */
static bool double_shift16(const struct insn *in)
{
	return (in->op == X86_SHLD || in->op == X86_SHRD) && in->opsize == 2;
}

/* What would write elsewhere than where its operand is aimed must not be aimed at code, which the host is to run. */
static bool code_safe(const struct insn *in)
{
	bool bits = in->op == X86_BT || in->op == X86_BTS || in->op == X86_BTR || in->op == X86_BTC;

	return !in->has_modrm || in->modrm >= 0xc0 || (in->mem.base != REG_RSP && !(bits && in->opcode != 0xba));
}

/* At most 15 bytes + random tail at p; decoded into *in. */
static bool encode(struct gen *g, const struct x86_opcode *r, uint8_t *p, struct insn *in, uint8_t **modrm)
{
	uint8_t *w = p, m = encode_modrm(g, r);
	if (r->vex == ENCODING_EVEX)
		encode_evex(g, r, m >= 0xc0, &w);
	else if (r->vex)
		encode_vex(g, r, &w);
	else
		encode_legacy(g, r, &w);
	*w++ = r->opcode;
	*modrm = w;
	if (r->modrm_forms)
		*w++ = m;
	for (unsigned i = 0; i < 14; i++)
		*w++ = (uint8_t)gen_u64(g);
	if (insn_decode(in, p, (unsigned)(w - p), mode_of(g)) != DECODE_OK || in->row != r)
		return false;
	if (in->map == 1 && in->opcode == 0x0d && in->modrm >= 0xc0)
		return false;		/* a NOP on Intel, #UD on AMD */
	if (in->op == X86_XCHG && in->opcode == 0x90 && in->rep)
		return false;		/* PAUSE on Intel whatever REX.B says */
	if (in->op == X86_MOVSXD && in->opsize == 2 && g->wide)
		return false;		/* reads 2 bytes on Intel, 4 on AMD */
	if (!g->wide && in->op == X86_PUSH_SEG && in->opsize == 4)
		return false;		/* writes 2 bytes on Intel, 4 on AMD */
	if (in->addrsize == 2 && seg_base(in) && (in->row->cls == CLASS_X87 || in->row->cls == CLASS_FPSTATE || in->op == X86_BOUND))
		return false;		/* aim_short() would not keep them from where such addresses end: one_piece() */
	if (in->addrsize == 2 && (in->op == X86_CMPS || in->op == X86_FXRSTOR || in->op == X86_FRSTOR))
		return false;		/* nothing lies there, and of two operands, or many fields, any may fault first */
	if (double_shift16(in) &&
	    (in->opcode & 1 ? in->mem.base == REG_RCX || in->mem.index == REG_RCX : (in->imm & 31) > 16))
		return false;
	if ((in->op == X86_LOOPE || in->op == X86_LOOPNE) && (memchr(p, 0xf2, in->len - 2u) || memchr(p, 0xf3, in->len - 2u)))
		return false;		/* a repeat prefix changes the condition on AMD */
	if (in->op == X86_CALL && in->mem.base == REG_RSP && in->modrm < 0xc0)
		return false;		/* aim() would move the stack */
	if (g->writable && !code_safe(in))
		return false;
	if (unchecked_alignment(in) && in->modrm < 0xc0 &&
	    (in->mem.base == INSN_REG_NONE || in->mem.index != INSN_REG_NONE))
		return false;		/* cannot be aimed at an aligned address */
	if ((in->op == X86_MASKMOVQ || in->op == X86_MASKMOVDQU) && (in->addrsize != word(g) ? !seg_base(in) : in->mem.seg == SEG_CS))
		return false;		/* with no byte to store, a bad segment or address faults or not */
	return !(g->wide && in->p66 && (r->attr & ROW_F64));	/* Intel ignores 66 at near branches, AMD does not */
}

/* Of code: what may be read, and in some slots written, without being run. */
static uint64_t code_address(struct gen *g, unsigned size)
{
	if (g->writable && !gen_one_in(g, 4))
		return g->slot_va + WINDOW_START + (size < WINDOW_BYTES ? gen_below(g, WINDOW_BYTES - size) : 0);
	return CODE_VA + gen_below(g, SLOT_WRITABLE * SLOT_BYTES - 0x400);
}

static uint64_t pick_address(struct gen *g, unsigned size)
{
	unsigned align = gen_one_in(g, 3) ? 0 : 63;
	if (!size)
		size = 8;
	if (g->writable && gen_one_in(g, 3) && size <= WINDOW_BYTES)
		return code_address(g, size);
	switch (gen_below(g, 20)) {
	case 0: return DATA_VA + DATA_BYTES - gen_below(g, 2 * size);	/* runs into nothing */
	case 1: return DATA_VA - gen_below(g, size + 1);
	case 2: case 3: return DATA_VA + 4096 - gen_below(g, size + 1);	/* crosses pages */
	case 4: return ROM_VA + (gen_below(g, 4000) & ~align);
	case 5: return gen_one_in(g, 4) ? cut(g, gen_u64(g)) : DATA_VA + gen_below(g, DATA_BYTES);
	case 6: return DEVICE_VA - gen_below(g, size + 1);		/* crosses into a device, or out of it */
	case 7: return gen_one_in(g, 2) ? DEVICE_VA + DEVICE_BYTES - gen_below(g, 2 * size) : code_address(g, size);
	case 8: case 9: return DEVICE_VA + (gen_below(g, DEVICE_BYTES - 0x200) & ~align);
	default: return DATA_VA + 0x100 + (gen_below(g, DATA_BYTES - 0x400) & ~align);
	}
}

/* Of strings, which go on: never into the slot's own code. */
static uint64_t string_address(struct gen *g)
{
	bool writable = g->writable;
	uint64_t va;

	g->writable = false;
	va = pick_address(g, 8);
	g->writable = writable;
	return va;
}

/* Of scatters: they may be interrupted between elements (SDM vol. 2, VPSCATTERDD), and then fetched anew. So not into their own
 * bytes. */
static uint64_t scatter_address(struct gen *g, unsigned size)
{
	uint64_t va;

	do
		va = pick_address(g, size);
	while (g->writable && va - CODE_VA < CODE_BYTES);
	return va;
}

/* Of masked bytes: whether an empty mask faults, and what a fault leaves of the x87 state, is the CPU's choice. */
static uint64_t masked_address(struct gen *g) { return DATA_VA + 0x200 + gen_below(g, 0x1c00); }

/* Likewise, of FS or GS, where short addresses end. */
static uint64_t masked_end(struct gen *g, const struct insn *in)
{
	return seg_base(in) + (in->addrsize == 2 ? UINT16_MAX : UINT32_MAX) - gen_below(g, 32);
}

static const struct operand *memory_operand(const struct insn *in)
{
	for (unsigned i = 0; i < in->nops; i++)
		if (in->ops[i].kind == OPK_MEM || in->ops[i].kind == OPK_MOFFS)
			return &in->ops[i];
	return NULL;
}

/* CMPS: which of two bad operands faults is the CPU's choice, so one is good. */
static bool compares(const struct insn *in) { return in->op == X86_CMPS; }

/* With 32-bit addresses and nothing to do, whether the upper halves of the pointers stay is the CPU's choice. */
static uint64_t pointer_mask(const struct insn *in, uint32_t count)
{
	return in->addrsize == 4 && !count ? 0xffffffff : ~0ull;
}

static uint64_t inner_address(struct gen *g) { return DATA_VA + 0x400 + gen_below(g, DATA_BYTES - 0x800); }

/* A register added to itself is not aimed, but must not hit the code, which is to run. */
static void avoid_code(const struct insn *in, uint64_t *gpr)
{
	uint64_t r = gpr[in->mem.base], va = seg_base(in) + r + (r << in->mem.scale) + (uint64_t)in->mem.disp;
	if ((uint32_t)va - CODE_VA + 0x1000 < CODE_BYTES + 0x1000)
		gpr[in->mem.base] = 0;
}

/* Of gathers and scatters: near each other, mostly. */
static void aim_indices(struct gen *g, const struct insn *in, struct x86_xsave *f)
{
	unsigned reg = in->mem.index, wide = in->opcode & 1;	/* 91, 93: quadword indices */
	uint32_t d[16];
	for (unsigned i = 0; i < 16; i++)
		d[i] = wide && (i & 1) ? 0 : gen_below(g, 64) * (gen_one_in(g, 16) ? 64 : 1) + (i >= 4 ? 64 : 0);
	if (reg >= 16) {
		memcpy(f->zmm16[reg - 16].b, d, 64);
		return;
	}
	memcpy(f->xmm[reg].b, d, 16);
	memcpy(f->ymmh[reg].b, d + 4, 16);
	if (f->xstate_bv & 0x40)
		memcpy(f->zmmh[reg].b, d + 8, 32);
}

/* Some operands are more than one piece, each of which begins again where short addresses end: on Intel's those of the x87. */
static bool one_piece(const struct insn *in)
{
	return in->row->cls == CLASS_MMX || in->row->cls == CLASS_SSE || in->row->cls == CLASS_AVX || in->row->cls == CLASS_AVX512;
}

/* A 32-bit address of FS or GS in 64-bit code, where such addresses end or begin. */
static uint64_t offset_32(struct gen *g, const struct insn *in)
{
	uint64_t offset = one_piece(in) && gen_one_in(g, 2) ? UINT32_MAX - gen_below(g, 64) : gen_below(g, 0x800);

	return offset & ~(unchecked_alignment(in) ? 15ull : 0);
}

/* A 16-bit address of FS or GS, mostly at the end of what these reach. */
static void aim_short(struct gen *g, const struct insn *in, uint8_t *modrm, uint64_t *gpr)
{
	unsigned reg = in->mem.base != INSN_REG_NONE ? in->mem.base : in->mem.index;
	uint16_t to = (uint16_t)-(gen_one_in(g, 4) ? gen_below(g, DATA_BYTES) : 1 + gen_below(g, 64)), now = (uint16_t)in->mem.disp;

	if (!seg_base(in) || (in->row->attr & ROW_VSIB) || !one_piece(in))
		return;
	if (reg == INSN_REG_NONE) {
		memcpy(modrm + 1, &to, 2);
		return;
	}
	if (in->mem.index != INSN_REG_NONE && in->mem.index != reg)
		now += (uint16_t)gpr[in->mem.index];
	gpr[reg] = (gpr[reg] & ~0xffffull) | (uint16_t)(to - now);
}

/* Turns displacement or base so that the operand is at `target`. */
static void aim(struct gen *g, struct insn *in, uint8_t *code, const uint8_t *modrm, uint64_t va, uint64_t *gpr,
		uint64_t target, uint8_t *fpu)
{
	uint64_t offset = g->wide && in->addrsize == 4 && seg_base(in) ? offset_32(g, in) : target - seg_base(in);
	uint32_t disp = (uint32_t)(in->mem.rip ? offset - va - in->len : offset);
	if (in->addrsize == 2) {
		aim_short(g, in, code + (modrm - code), gpr);
		return;
	} else if (memory_operand(in)->kind == OPK_MOFFS) {
		memcpy(code + (modrm - code), &offset, in->addrsize);
	} else if (in->mem.base == INSN_REG_NONE) {
		bool sib = !in->mem.rip && in->has_modrm && (in->modrm & 7) == 4;
		if (!in->has_modrm)
			return;
		memcpy(code + (modrm - code) + 1 + sib, &disp, 4);
		if (in->mem.index != INSN_REG_NONE && !(in->row->attr & ROW_VSIB))
			gpr[in->mem.index] = gen_below(g, 64);
	} else {
		uint64_t index = 0;
		if (in->mem.index != INSN_REG_NONE && !(in->row->attr & ROW_VSIB)) {
			if (in->mem.index == in->mem.base) {
				avoid_code(in, gpr);
				return;
			}
			index = gpr[in->mem.index] << in->mem.scale;
		}
		gpr[in->mem.base] = cut(g, offset - index - (uint64_t)in->mem.disp);
	}
	if (in->row->attr & ROW_VSIB)
		aim_indices(g, in, (struct x86_xsave *)fpu);
}

/* Jumps go into the slot's INT3s: before the code or behind it. */
static void aim_branch(struct gen *g, uint8_t *code, unsigned len, unsigned rel_bytes)
{
	int32_t back = (int32_t)(8 + gen_below(g, 32)) - (int32_t)(SLOT_START + len);
	int32_t rel = gen_one_in(g, 4) ? 0 : gen_one_in(g, 2) ? 20 + (int32_t)gen_below(g, 60) : back;
	if (rel_bytes == 1 && rel < -128)
		rel = 20;
	memcpy(code + len - rel_bytes, &rel, rel_bytes);
}

static void aim_registers(struct gen *g, const struct insn *in, struct diff_state *s)
{
	uint64_t *gpr = s->gpr;
	if (in->row->trans == TRANS_STRING) {
		gpr[REG_RSI] = string_address(g);
		gpr[REG_RDI] = gen_one_in(g, 4) ? gpr[REG_RSI] + gen_below(g, 16) : string_address(g);
		gpr[REG_RCX] = gen_one_in(g, 8) && !compares(in) ? gen_below(g, 5000) : gen_below(g, 40);
		if (compares(in))
			gpr[REG_RDI] = inner_address(g);
		gpr[REG_RSI] &= pointer_mask(in, (uint32_t)gpr[REG_RCX]);
		gpr[REG_RDI] &= pointer_mask(in, (uint32_t)gpr[REG_RCX]);
	}
	if (in->op == X86_MASKMOVQ || in->op == X86_MASKMOVDQU)
		gpr[REG_RDI] = (in->addrsize == word(g) ? masked_address(g) : masked_end(g, in)) - seg_base(in);
	if (double_shift16(in))
		gpr[REG_RCX] &= ~16ull;
	if (in->op == X86_CALL)		/* a bad stack and a bad target: which faults first is the CPU's choice */
		gpr[REG_RSP] = STACK_VA + 0x400 + (gen_below(g, 0x800) & ~7u);
	if (in->op == X86_XLAT)
		gpr[REG_RBX] = pick_address(g, 256);
	if (in->op == X86_LEAVE)
		gpr[REG_RBP] = STACK_VA + 0x400 + (gen_below(g, 0x800) & ~7u);
	if (in->row->trans == TRANS_BRANCH || in->row->trans == TRANS_CALL)
		for (unsigned i = 0; i < in->nops; i++)
			if (in->ops[i].kind == OPK_GPR)
				gpr[in->ops[i].reg] = CODE_VA + SLOT_BYTES * gen_below(g, DIFF_CASES) + gen_below(g, 40);
}

static void registers(struct gen *g, struct diff_state *s)
{
	for (unsigned i = 0; i < 2 * word(g); i++)
		s->gpr[i] = cut(g, gen_int(g));
	s->gpr[REG_RSP] = STACK_VA + 0x400 + (gen_below(g, 0x800) & ~7u);
	if (gen_one_in(g, 32))
		s->gpr[REG_RSP] = STACK_VA + (gen_one_in(g, 2) ? 0 : STACK_BYTES) + gen_below(g, 9) - 4;
	s->rflags = FLAG_FIXED | FLAG_IF | (gen_u64(g) & (FLAGS_ARITH | (gen_one_in(g, 4) ? FLAG_DF : 0)));
	gen_fpu(g, s->fpu);
}

static unsigned rel_operand(const struct insn *in)
{
	for (unsigned i = 0; i < in->nops; i++)
		if (in->ops[i].kind == OPK_REL)
			return in->map == 0 && in->opcode != 0xe8 && in->opcode != 0xe9 ? 1 : in->opsize == 2 ? 2 : 4;
	return 0;
}

static bool is_dot_product(const struct insn *in)
{
	return in->op == X86_DPPS || in->op == X86_DPPD;
}

static unsigned row_any(struct gen *g) { return g->rows[g->wide].row[gen_below(g, g->rows[g->wide].n)]; }

static void row_note(struct gen *g, const struct insn *in) { g->tried[g->wide][in->row - x86_optable]++; }

static uint64_t single_address(struct gen *g, const struct insn *in, unsigned size)
{
	if ((in->row->attr & ROW_VSIB) && in->ops[0].kind == OPK_MEM)
		return scatter_address(g, size);
	if (g->wide && in->addrsize == 8 && one_piece(in) && !(in->row->attr & ROW_VSIB) && gen_one_in(g, 64))
		return CANONICAL_END - gen_below(g, 2 * size + 1);
	return pick_address(g, size) & ~(unchecked_alignment(in) ? 15ull : 0);
}

static void gen_single(struct gen *g, struct diff_case *c, struct diff_state *s)
{
	uint8_t *code = c->code + SLOT_START, *modrm;
	struct insn in;
	registers(g, s);
	do
		memset(code, 0xcc, 32);
	while (!encode(g, &x86_optable[row_any(g)], code, &in, &modrm));
	row_note(g, &in);
	memset(code + in.len, 0xcc, 32);
	aim_registers(g, &in, s);
	if (rel_operand(&in))
		aim_branch(g, code, in.len, rel_operand(&in));
	const struct operand *m = memory_operand(&in);
	if (m && in.row->trans != TRANS_STRING && in.op != X86_MASKMOVQ && in.op != X86_MASKMOVDQU && in.op != X86_XLAT)
		aim(g, &in, code, modrm, s->rip, s->gpr, single_address(g, &in, m->size), s->fpu);
	c->len = in.len;
	c->insns = 1;
	c->dot_product = is_dot_product(&in);
	c->flags_undefined = in.row->flags_undefined;
	c->many_fields = m && (m->size == 0 || m->size > 10) && in.row->cls != CLASS_SSE && in.row->cls != CLASS_AVX &&
			 in.row->cls != CLASS_AVX512;
}

/* --- sequences --- */

static void mov_imm(const struct gen *g, uint8_t **p, unsigned reg, uint64_t value)
{
	if (g->wide)
		*(*p)++ = (uint8_t)(0x48 | reg >> 3);
	*(*p)++ = (uint8_t)(0xb8 | (reg & 7));
	memcpy(*p, &value, word(g));
	*p += word(g);
}
static unsigned mov_imm_bytes(const struct gen *g) { return g->wide ? 10 : 5; }

/* Fit for the middle of a sequence: keeps RSP in its page, leaves nothing undefined but flags. */
static bool fits(const struct gen *g, const struct insn *in)
{
	for (unsigned i = 0; i < in->nops; i++)
		if (in->ops[i].kind == OPK_GPR && in->ops[i].write && in->ops[i].reg == REG_RSP && !in->ops[i].high_byte)
			return false;
	if (in->op == X86_ENTER || in->op == X86_LEAVE || in->op == X86_PUSHF || in->op == X86_LAHF ||
	    (double_shift16(in) && (in->opcode & 1)) || in->addrsize == 2 || (!g->wide && in->opsize == 2 && rel_operand(in)))
		return false;
	if (g->writable && (in->row->trans == TRANS_BRANCH || in->row->trans == TRANS_CALL) && in->ops[0].kind == OPK_GPR)
		return false;		/* registers hold addresses of the slot: it might jump back for ever */
	return !(in->row->attr & ROW_VSIB) && in->mem.base != REG_RSP && in->row->trans != TRANS_SYSTEM;
}

/* site: where the operand is to lie; 0: anywhere. */
static void prepare_memory(struct gen *g, uint8_t **p, const struct insn *in, unsigned size, uint64_t site)
{
	uint64_t index = 0, align = unchecked_alignment(in) ? 15 : 0;
	uint64_t target = (site ? site : pick_address(g, size) & ~align) - seg_base(in);
	if (in->op == X86_MASKMOVQ || in->op == X86_MASKMOVDQU)
		target = masked_address(g) - seg_base(in);
	else if (g->wide && in->addrsize == 4 && seg_base(in) && !one_piece(in))
		target = offset_32(g, in);
	if (in->mem.index != INSN_REG_NONE) {
		index = gen_below(g, 64);
		mov_imm(g, p, in->mem.index, index);
	}
	mov_imm(g, p, in->mem.base, target - (index << in->mem.scale) - (uint64_t)in->mem.disp);
}

static void define_flags(struct gen *g, uint8_t **p)
{
	unsigned r = gen_below(g, 8);
	if (g->wide)
		*(*p)++ = 0x48;
	*(*p)++ = 0x39;
	*(*p)++ = (uint8_t)(0xc0 | gen_below(g, 8) << 3 | r);
}

/* --- accesses off one base, which the translator checks together --- */

static void base_pick(struct gen *g, uint8_t **p)
{
	static const uint8_t regs[] = { REG_RBX, REG_RBP, REG_R8, REG_R10, REG_R13, REG_R15, REG_RSP };
	static const uint64_t at[] = { DATA_VA + 0x800, DATA_VA + 0x1000, DATA_VA + 0x1000, DATA_VA + DATA_BYTES - 0x80,
				       DATA_VA + DATA_BYTES, DATA_VA, ROM_VA + 0x100, ROM_VA, DEVICE_VA, DEVICE_VA - 0x100 };

	g->base = INSN_REG_NONE;
	if (g->filter || gen_one_in(g, 2))
		return;
	do
		g->base = regs[gen_below(g, sizeof regs)];
	while (!g->wide && g->base >= 8);
	g->base_value = at[gen_below(g, sizeof at / sizeof *at)] + gen_below(g, 0x80);
	if (g->base != REG_RSP)
		mov_imm(g, p, g->base, g->base_value);
}

/* Makes the operand [base + disp8]; false: it cannot be. RSP stays in its page, so that displacements only rise. */
static bool base_share(struct gen *g, uint8_t *bytes, uint8_t *modrm, struct insn *in)
{
	const struct x86_opcode *row = in->row;

	if (unchecked_alignment(in) || double_shift16(in) || in->addrsize != word(g) || in->op == X86_CALL || seg_base(in))
		return false;
	*modrm = (uint8_t)((*modrm & 0x38) | 0x40 | (g->base & 7));
	if (g->base == REG_RSP) {
		modrm[1] = 0x24;
		modrm[2] &= 0x7f;
	}
	return insn_decode(in, bytes, 15, mode_of(g)) == DECODE_OK && in->row == row && in->mem.base == g->base &&
	       in->mem.index == INSN_REG_NONE && (g->base == REG_RSP || fits(g, in));
}

/* Moves the base now and then, and back to where it was if the instruction has written it. */
static void base_follow(struct gen *g, uint8_t **p, const struct insn *in)
{
	bool written = false;

	if (g->base == INSN_REG_NONE || g->base == REG_RSP)
		return;
	for (unsigned i = 0; i < in->nops; i++) {
		const struct operand *o = &in->ops[i];
		written |= o->kind == OPK_GPR && o->write && o->reg == g->base;
	}
	if (written) {
		mov_imm(g, p, g->base, g->base_value);
	} else if (gen_one_in(g, 4)) {	/* add base, n or lea base, [base + n] */
		bool lea = gen_one_in(g, 2);
		if (g->wide)
			*(*p)++ = (uint8_t)(0x48 | (lea && g->base >= 8 ? 4 : 0) | g->base >> 3);
		*(*p)++ = lea ? 0x8d : 0x83;
		*(*p)++ = (uint8_t)((lea ? 0x40 | (g->base & 7) << 3 : 0xc0) | (g->base & 7));
		*(*p)++ = (uint8_t)(gen_below(g, 65) - 32);
	}
}

static unsigned row_pick(struct gen *g)
{
	const struct rows *s = &g->rows[g->wide];

	if (g->base != INSN_REG_NONE && !gen_one_in(g, 3))
		return s->common[gen_below(g, s->ncommon)];
	return row_any(g);
}

/* Now and then an instruction in a writable slot has its operand in the immediate of the MOV that comes next. at: offset in
 * the slot. Returns the operand's address, or 0. */
static uint64_t patch_site(struct gen *g, ptrdiff_t at, const struct insn *in, unsigned size)
{
	unsigned room = word(g), before = (in->mem.index != INSN_REG_NONE ? 2 : 1) * mov_imm_bytes(g);
	unsigned behind = in->row->flags_undefined ? g->wide ? 3 : 2 : 0;

	if (!g->writable || !size || size > room || rel_operand(in) || in->row->trans == TRANS_CALL ||
	    in->row->trans == TRANS_BRANCH || unchecked_alignment(in) || !gen_one_in(g, 3))
		return 0;
	return g->slot_va + (uint64_t)at + before + in->len + behind + mov_imm_bytes(g) - room + gen_below(g, room - size + 1);
}

/* One more instruction at *p, with what it needs before; the end of its relative branch in *branch. false: of the rows that there
 * are (g->filter) none seems to fit. */
#define APPEND_TRIES 200u
static bool append(struct gen *g, struct diff_case *c, uint8_t **p, uint8_t **branch, unsigned *rel)
{
	uint8_t bytes[48], *modrm;
	struct insn in;
	const struct operand *m;
	bool shared = false;
	uint64_t site = 0;
	for (unsigned tries = 0;; tries++) {
		if (tries == APPEND_TRIES)
			return false;
		if (!encode(g, &x86_optable[row_pick(g)], bytes, &in, &modrm) || !fits(g, &in))
			continue;
		m = memory_operand(&in);
		if (!m || in.row->trans == TRANS_STRING)
			break;
		shared = g->base != INSN_REG_NONE && m->kind == OPK_MEM && in.has_modrm && in.modrm < 0xc0 && !gen_one_in(g, 6);
		if (shared && base_share(g, bytes, modrm, &in))
			break;
		if (shared)
			continue;
		if (in.mem.base != INSN_REG_NONE && in.mem.base != in.mem.index && m->kind == OPK_MEM && in.has_modrm)
			break;
	}
	*rel = rel_operand(&in);
	c->dot_product |= is_dot_product(&in);
	if (in.row->trans == TRANS_STRING) {
		uint32_t count = gen_below(g, 20);
		mov_imm(g, p, REG_RSI, string_address(g) & pointer_mask(&in, count));
		mov_imm(g, p, REG_RDI, (compares(&in) ? inner_address(g) : string_address(g)) & pointer_mask(&in, count));
		mov_imm(g, p, REG_RCX, count);
	} else if (m && !shared) {
		site = patch_site(g, *p - c->code, &in, m->size);
		prepare_memory(g, p, &in, m->size, site);
	}
	row_note(g, &in);
	memcpy(*p, bytes, in.len);
	*p += in.len;
	*branch = *p;
	if (in.row->flags_undefined)
		define_flags(g, p);
	if (site)
		mov_imm(g, p, REG_RDX, gen_u64(g));
	if (g->base != INSN_REG_NONE && m && !shared && in.mem.base == g->base)
		mov_imm(g, p, g->base, g->base_value);
	else
		base_follow(g, p, &in);
	return true;
}

/* false: see append(). */
static bool gen_sequence(struct gen *g, struct diff_case *c, struct diff_state *s)
{
	uint8_t *p = c->code + SLOT_START, *at[16], *branch[16];
	unsigned n = 2 + gen_below(g, 9), rel[16];
	registers(g, s);
	s->gpr[REG_RSP] = STACK_VA + 0x400 + (gen_below(g, 0x800) & ~7u);
	((struct x86_xsave *)s->fpu)->fcw |= 0x3f;
	((struct x86_xsave *)s->fpu)->fsw &= 0x7f7f;
	base_pick(g, &p);
	for (unsigned i = 0; i < n && p < c->code + SLOT_BYTES - 80; i++) {
		at[i] = p;
		if (!append(g, c, &p, &branch[i], &rel[i]))
			return false;
		c->insns = i + 1;
	}
	at[c->insns] = p;
	for (unsigned i = 0; i < c->insns; i++)		/* forwards only: every case ends */
		if (rel[i]) {
			unsigned to = i + 1 + gen_below(g, c->insns - i);
			int32_t d = (int32_t)(at[to] - branch[i]);
			if (rel[i] == 1 && d > 127)
				d = 0;
			memcpy(branch[i] - rel[i], &d, rel[i]);
		}
	c->len = (unsigned)(p - c->code - SLOT_START);
	c->flags_undefined = 0;
	c->many_fields = true;
	return true;
}

void gen_case(struct gen *g, unsigned slot, bool sequence, bool wide, struct diff_case *c, struct diff_state *s)
{
	g->wide = c->wide = wide;
	g->writable = slot >= SLOT_WRITABLE;
	g->slot_va = CODE_VA + slot * SLOT_BYTES;
	memset(c->code, 0xcc, sizeof c->code);
	c->dot_product = false;
	memset(s, 0, sizeof *s);
	s->rip = g->slot_va + SLOT_START;
	if (!sequence || !gen_sequence(g, c, s))
		gen_single(g, c, s);
}
