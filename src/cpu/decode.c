/*
 * The instruction decoder, SDM vol. 2 chapter 2.
 *
 *   prefixes* [REX | VEX | EVEX] opcode [ModR/M [SIB] [disp]] [imm]
 *
 * Prefix and opcode bytes are read by hand; operands follow from the table's row.
 */
#include "cpu/optable.h"

#include <string.h>

#define INSN_MAX_LEN 15
#define REX_B 1u
#define REX_X 2u
#define REX_R 4u
#define REX_W 8u

struct decoder {
	struct insn *in;
	const uint8_t *p;
	unsigned pos, avail;
	enum insn_mode mode;
	enum decode_result error;	/* sticky */
	uint8_t vex_pp;
	uint8_t last_rep;		/* 0xf2, 0xf3 or 0 */
	bool vsib;			/* a SIB byte is required and its index is a vector register */
	uint8_t disp8_scale;		/* EVEX: disp8 counts operands (SDM vol. 2 2.7.5) */
};

static bool fail(struct decoder *d, enum decode_result why)
{
	if (d->error == DECODE_OK)
		d->error = why;
	return false;
}

/* n little-endian bytes, zero-extended; 0 with the error set when they are not there. */
static inline uint64_t fetch(struct decoder *d, unsigned n)
{
	uint64_t value = 0;

	if (d->pos + n > INSN_MAX_LEN && d->avail >= INSN_MAX_LEN) {
		fail(d, DECODE_TOO_LONG);
		return 0;
	}
	if (d->pos + n > d->avail) {
		fail(d, DECODE_SHORT);
		return 0;
	}
	if (d->pos + 8 <= d->avail) {		/* one load, most of the time */
		memcpy(&value, d->p + d->pos, 8);
		value &= ~0ull >> (64 - 8 * n);
	} else {
		for (unsigned i = 0; i < n; i++)
			value |= (uint64_t)d->p[d->pos + i] << 8 * i;
	}
	d->pos += n;
	return value;
}

static int64_t sign_extend(uint64_t value, unsigned bytes)
{
	unsigned shift = 64 - 8 * bytes;

	return bytes ? (int64_t)(value << shift) >> shift : 0;
}

static unsigned rex_bit(const struct insn *in, unsigned bit)
{
	return in->rex & bit ? 8 : 0;
}

/* True while b is a prefix. A REX counts only as the last byte before the opcode. */
static bool prefix_take(struct decoder *d, uint8_t b)
{
	struct insn *in = d->in;
	uint8_t rex = 0;

	switch (b) {
	case 0x66: in->p66 = true; break;
	case 0x67: in->addrsize = 0; break;	/* toggled when all are known */
	case 0xf0: in->lock = true; break;
	case 0xf2: case 0xf3:
		in->rep = b == 0xf3;
		in->repne = b == 0xf2;
		d->last_rep = b;
		break;
	case 0x26: case 0x2e: case 0x36: case 0x3e:
		if (d->mode != INSN_64)		/* ignored there, 3.4.2.1 */
			in->seg_override = (b >> 3) & 3;
		break;
	case 0x64: in->seg_override = SEG_FS; break;
	case 0x65: in->seg_override = SEG_GS; break;
	default:
		if (d->mode != INSN_64 || (b & 0xf0) != 0x40)
			return false;
		rex = b;
	}
	in->rex = rex;
	return true;
}

static unsigned address_size(enum insn_mode mode, bool toggled)
{
	switch (mode) {
	case INSN_16: return toggled ? 4 : 2;
	case INSN_32: return toggled ? 2 : 4;
	default: return toggled ? 4 : 8;
	}
}

/* C4, C5 and 62 are LES, LDS and BOUND outside 64-bit mode unless the next byte has mod == 3. */
static bool vex_follows(struct decoder *d, uint8_t b)
{
	if (b != 0xc4 && b != 0xc5 && b != 0x62)
		return false;
	if (d->mode == INSN_64)
		return true;
	if (d->pos >= d->avail || d->pos >= INSN_MAX_LEN) {
		fetch(d, 1);
		return false;
	}
	return d->p[d->pos] >= 0xc0;
}

/* C5 R vvvv L pp  |  C4 R X B mmmmm, W vvvv L pp  (R, X, B, vvvv inverted), SDM vol. 2 2.3.5 */
static bool vex_take(struct decoder *d, uint8_t b)
{
	struct insn *in = d->in;
	uint8_t p0, p1, rxb, w = 0, map = 1;

	p0 = p1 = fetch(d, 1);
	rxb = ~p0 >> 5 & REX_R;		/* bit 7 to bit 2 */
	if (b == 0xc4) {
		p1 = fetch(d, 1);
		rxb = ~p0 >> 5 & (REX_R | REX_X | REX_B);
		map = p0 & 31;
		w = p1 >> 7 ? REX_W : 0;
	}
	if (d->error != DECODE_OK)
		return false;
	if (in->p66 || in->lock || d->last_rep || in->rex || map < 1 || map > 3)
		return fail(d, DECODE_UD);
	if (d->mode != INSN_64)
		rxb = 0;
	in->vex = true;
	in->map = map;
	in->rex = 0x40 | w | rxb;
	in->vvvv = (~p1 >> 3) & 15;
	in->vex_l = p1 >> 2 & 1;
	d->vex_pp = p1 & 3;
	in->opcode = fetch(d, 1);
	return d->error == DECODE_OK;
}

/* 62  R X B R' 0 mmm  W vvvv 1 pp  z L'L b V' aaa  (R, X, B, R', vvvv, V' inverted), SDM vol. 2 2.7.1 */
static bool evex_take(struct decoder *d)
{
	struct insn *in = d->in;
	uint8_t p0 = fetch(d, 1), p1 = fetch(d, 1), p2 = fetch(d, 1);
	uint8_t rxb = ~p0 >> 5 & (REX_R | REX_X | REX_B), map = p0 & 7;

	if (d->error != DECODE_OK)
		return false;
	if (in->p66 || in->lock || d->last_rep || in->rex || p0 & 8 || !(p1 & 4) || map == 0 || map == 4 || map == 7 ||
	    (d->mode != INSN_64 && !(p2 & 8)))
		return fail(d, DECODE_UD);
	in->vex = in->evex = true;
	in->map = map;
	in->rex = 0x40 | (p1 >> 7 ? REX_W : 0) | (d->mode == INSN_64 ? rxb : 0);
	in->evex_r = d->mode == INSN_64 && !(p0 & 0x10);
	in->evex_v = !(p2 & 8);
	in->vvvv = (~p1 >> 3) & 15;
	in->vex_l = p2 >> 5 & 3;
	in->evex_z = p2 >> 7;
	in->evex_b = p2 >> 4 & 1;
	in->evex_mask = p2 & 7;
	d->vex_pp = p1 & 3;
	in->opcode = fetch(d, 1);
	return d->error == DECODE_OK;
}

static bool opcode_take(struct decoder *d)
{
	struct insn *in = d->in;
	uint8_t b;

	do {
		b = fetch(d, 1);
		if (d->error != DECODE_OK)
			return false;
	} while (prefix_take(d, b));
	in->addrsize = address_size(d->mode, in->addrsize == 0);
	if (vex_follows(d, b))
		return b == 0x62 ? evex_take(d) : vex_take(d, b);
	if (b == 0x0f) {
		in->map = 1;
		b = fetch(d, 1);
		if (b == 0x38 || b == 0x3a) {
			in->map = b == 0x38 ? 2 : 3;
			b = fetch(d, 1);
		}
	}
	in->opcode = b;
	return d->error == DECODE_OK;
}

/* F2 and F3 take precedence over 66; the last of them wins. */
static unsigned prefix_key(const struct decoder *d)
{
	static const uint8_t by_pp[4] = { PREFIX_NP, PREFIX_P66, PREFIX_F3, PREFIX_F2 };

	if (d->in->vex)
		return by_pp[d->vex_pp];
	if (d->last_rep)
		return d->last_rep == 0xf3 ? PREFIX_F3 : PREFIX_F2;
	return d->in->p66 ? PREFIX_P66 : PREFIX_NP;
}

static bool registers_only(const struct insn *in) { return in->modrm >= 0xc0; }

/* 0: 128, 1: 256, 2: 512. Beside a rounding mode, or instead of it, 512 bits are implied. */
static unsigned vector_length(const struct insn *in)
{
	return in->evex_b && registers_only(in) ? 2 : in->vex_l;
}

static bool length_fits(const struct insn *in, uint32_t attr)
{
	unsigned l = vector_length(in);

	if (attr & ROW_L12)
		return l != 0;
	return l == (attr & ROW_L2 ? 2 : attr & ROW_L1 ? 1 : 0);
}

static bool attr_fits(const struct decoder *d, uint32_t attr)
{
	const struct insn *in = d->in;
	bool w = in->rex & REX_W;

	if (attr & ROW_WGPR && d->mode != INSN_64)
		w = false;
	if (attr & (d->mode == INSN_64 ? ROW_I64 : ROW_O64))
		return false;
	if (attr & (ROW_W0 | ROW_W1) && w != !!(attr & ROW_W1))
		return false;
	if (attr & (ROW_L0 | ROW_L1 | ROW_L2 | ROW_L12) && !length_fits(in, attr))
		return false;
	if (attr & (ROW_B0 | ROW_B1) && !!(in->rex & REX_B) != !!(attr & ROW_B1))
		return false;
	return true;
}

static bool row_fits(const struct decoder *d, const struct x86_opcode *row, unsigned key)
{
	const struct insn *in = d->in;

	if (!(row->prefixes & key))
		return false;
	if (row->modrm_forms) {
		unsigned form = in->modrm >= 0xc0 ? MODRM_REG : MODRM_MEM;

		if (!(row->modrm_forms & form) || (in->modrm & row->modrm_mask) != row->modrm_value)
			return false;
	}
	return !row->attr || attr_fits(d, row->attr);
}

/* Finds the row; reads the ModR/M byte if the opcode has one. */
static bool row_take(struct decoder *d)
{
	struct insn *in = d->in;
	unsigned n, end, key = prefix_key(d);

	x86_optable_find(in->evex ? ENCODING_EVEX : in->vex ? ENCODING_VEX : ENCODING_LEGACY, in->map, in->opcode, &n, &end);
	for (unsigned i = n; i < end && !in->has_modrm; i++) {
		if (!x86_optable[i].modrm_forms || (x86_optable[i].attr & ROW_I64 && d->mode == INSN_64))
			continue;
		in->modrm = fetch(d, 1);
		in->has_modrm = true;
	}
	if (d->error != DECODE_OK)
		return false;
	for (; n < end; n++) {
		if (row_fits(d, &x86_optable[n], key)) {
			in->row = &x86_optable[n];
			in->op = in->row->op;
			return true;
		}
	}
	return fail(d, DECODE_UD);
}

static void operand_size_set(struct decoder *d)
{
	struct insn *in = d->in;
	const struct x86_opcode *row = in->row;
	bool p66 = in->p66;

	in->mandatory = 0;
	if (row->prefixes == PREFIX_P66) {
		in->mandatory = 0x66;
		p66 = false;
	} else if (row->prefixes == PREFIX_F3) {
		in->mandatory = 0xf3;
	} else if (row->prefixes == PREFIX_F2) {
		in->mandatory = 0xf2;
	}
	if (row->attr & ROW_WGPR && d->mode != INSN_64)
		in->rex &= (uint8_t)~REX_W;
	if (d->mode == INSN_16)
		in->opsize = p66 ? 4 : 2;
	else if (d->mode == INSN_32)
		in->opsize = p66 ? 2 : 4;
	else if (in->rex & REX_W || row->attr & ROW_F64)
		in->opsize = 8;
	else if (row->attr & ROW_D64)
		in->opsize = p66 ? 2 : 8;
	else
		in->opsize = p66 ? 2 : 4;
}

static void mem16_take(struct decoder *d, unsigned mod, unsigned rm)
{
	static const uint8_t base[8] = { REG_RBX, REG_RBX, REG_RBP, REG_RBP, REG_RSI, REG_RDI, REG_RBP, REG_RBX };
	static const uint8_t index[4] = { REG_RSI, REG_RDI, REG_RSI, REG_RDI };
	struct insn *in = d->in;

	in->mem.base = base[rm];
	if (rm < 4)
		in->mem.index = index[rm];
	if (mod == 0 && rm == 6) {
		in->mem.base = INSN_REG_NONE;
		in->mem.disp = sign_extend(fetch(d, 2), 2);
	} else if (mod == 1) {
		in->mem.disp = sign_extend(fetch(d, 1), 1) * d->disp8_scale;
	} else if (mod == 2) {
		in->mem.disp = sign_extend(fetch(d, 2), 2);
	}
	in->mem.seg = in->mem.base == REG_RBP ? SEG_SS : SEG_DS;
}

static void sib_take(struct decoder *d, unsigned mod, unsigned *base)
{
	struct insn *in = d->in;
	uint8_t sib = fetch(d, 1);
	unsigned index = (sib >> 3 & 7) | rex_bit(in, REX_X) | (d->vsib && in->evex_v && d->mode == INSN_64 ? 16 : 0);

	*base = sib & 7;
	in->mem.scale = sib >> 6;
	if (index != 4 || d->vsib)
		in->mem.index = index;
	if (*base == 5 && mod == 0)
		in->mem.base = INSN_REG_NONE;
	else
		in->mem.base = *base | rex_bit(in, REX_B);
}

static void mem32_take(struct decoder *d, unsigned mod, unsigned rm)
{
	struct insn *in = d->in;
	unsigned base = rm;

	if (rm == 4)
		sib_take(d, mod, &base);
	else if (rm == 5 && mod == 0)
		in->mem.rip = d->mode == INSN_64;
	else
		in->mem.base = rm | rex_bit(in, REX_B);
	if (mod == 1)
		in->mem.disp = sign_extend(fetch(d, 1), 1) * d->disp8_scale;
	else if (mod == 2 || (mod == 0 && base == 5))
		in->mem.disp = sign_extend(fetch(d, 4), 4);
	in->mem.seg = in->mem.base == REG_RSP || in->mem.base == REG_RBP ? SEG_SS : SEG_DS;
}

static unsigned operand_bytes(const struct decoder *d, enum operand_size size, bool reg)
{
	const struct insn *in = d->in;
	unsigned v = in->opsize, x = in->vex ? 16u << vector_length(in) : 16;

	switch (size) {
	case SIZE_0: return 0;
	case SIZE_b: return 1;
	case SIZE_w: return 2;
	case SIZE_d: return 4;
	case SIZE_q: return 8;
	case SIZE_t: return 10;
	case SIZE_dq: return 16;
	case SIZE_qq: return 32;
	case SIZE_v: return v;
	case SIZE_z: return v == 2 ? 2 : 4;
	case SIZE_y: return in->rex & REX_W && d->mode == INSN_64 ? 8 : 4;
	case SIZE_f: return d->mode == INSN_64 ? 8 : 4;
	case SIZE_p: return v + 2;
	case SIZE_s: return d->mode == INSN_64 ? 10 : 6;
	case SIZE_a: return 2 * v;
	case SIZE_env: return v == 2 ? 14 : 28;
	case SIZE_fpu: return v == 2 ? 94 : 108;
	case SIZE_x: return x;
	case SIZE_h: return x / 2;
	case SIZE_qtr: return x / 4;
	case SIZE_oct: return x / 8;
	case SIZE_vw: return reg ? v : 2;
	case SIZE_db: return reg ? 4 : 1;
	case SIZE_dw: return reg ? 4 : 2;
	}
	return 0;
}

static bool in_memory(enum operand_where where)
{
	return where == AT_E || where == AT_M || where == AT_VSIB || where == AT_W || where == AT_KE;
}

/* What one step of disp8 is: the memory operand, or its part that is read once. */
static uint8_t disp8_scale(const struct decoder *d)
{
	const struct x86_opcode *row = d->in->row;

	if (row->attr & ROW_T1S)
		return row_mask_element(row);
	if (d->in->evex_b)
		return row_broadcast(row);
	for (unsigned i = 0; i < INSN_MAX_OPS; i++) {
		struct x86_operand_spec spec = x86_operand_specs[row->operand[i]];

		if (in_memory(spec.where))
			return operand_bytes(d, spec.size, false);
	}
	return 1;
}

/* The memory form of ModR/M: SIB and displacement into in->mem. */
static bool modrm_memory_take(struct decoder *d)
{
	struct insn *in = d->in;
	unsigned mod = in->modrm >> 6, rm = in->modrm & 7;

	d->vsib = in->row->attr & ROW_VSIB;
	if (d->vsib && (in->addrsize == 2 || rm != 4))
		return fail(d, DECODE_UD);
	d->disp8_scale = in->evex ? disp8_scale(d) : 1;
	if (in->addrsize == 2)
		mem16_take(d, mod, rm);
	else
		mem32_take(d, mod, rm);
	return d->error == DECODE_OK;
}

static void operand_gpr(const struct decoder *d, struct operand *o, unsigned reg)
{
	o->kind = OPK_GPR;
	o->reg = reg;
	if (o->size == 1 && !d->in->rex && reg >= 4) {	/* AH, CH, DH, BH */
		o->reg = reg - 4;
		o->high_byte = 1;
	}
}

static void operand_vector(const struct decoder *d, struct operand *o, unsigned reg)
{
	o->kind = OPK_XMM;
	o->reg = d->mode == INSN_64 ? reg : reg & 7;
}

static void operand_memory(const struct insn *in, struct operand *o)
{
	o->kind = OPK_MEM;
	if (in->evex_b)
		o->size = row_broadcast(in->row);
}

static bool operand_mask(const struct decoder *d, struct operand *o, unsigned reg)
{
	o->kind = OPK_MASK;
	o->reg = reg & 7;
	return d->mode != INSN_64 || reg < 8;
}

/* A memory operand whose address is a fixed register (or two). */
static void operand_fixed_memory(struct decoder *d, struct operand *o, unsigned base, bool es)
{
	struct insn *in = d->in;

	o->kind = OPK_MEM;
	in->mem.base = base;
	in->mem.seg = es ? SEG_ES : SEG_DS;
}

static bool operand_system(struct decoder *d, struct operand *o, enum operand_where where)
{
	unsigned reg = d->in->modrm >> 3 & 7;

	if (where == AT_S) {
		o->kind = OPK_SEG;
		o->reg = reg;
		return reg < SEG_COUNT;
	}
	reg |= rex_bit(d->in, REX_R);
	o->reg = reg;
	if (where == AT_D) {
		o->kind = OPK_DR;
		return reg < 8;
	}
	o->kind = OPK_CR;
	return reg == 0 || (reg >= 2 && reg <= 4) || reg == 8;
}

static void imm_set(struct decoder *d, struct operand *o, uint64_t value)
{
	o->kind = OPK_IMM;
	if (d->in->row->operand[0] == OC_Iw && o != d->in->ops)	/* ENTER's level */
		d->in->imm2 = value;
	else
		d->in->imm = value;
}

static void operand_immediate(struct decoder *d, struct operand *o, enum operand_where where)
{
	struct insn *in = d->in;
	unsigned n = in->opsize;

	switch (where) {
	case AT_I: imm_set(d, o, fetch(d, o->size)); break;
	case AT_IS: imm_set(d, o, sign_extend(fetch(d, 1), 1)); break;
	case AT_IZ: n = n == 8 ? 4 : n; imm_set(d, o, sign_extend(fetch(d, n), n)); break;
	case AT_IV: imm_set(d, o, sign_extend(fetch(d, n), n)); break;
	case AT_ONE: imm_set(d, o, 1); break;
	case AT_J:
		o->kind = OPK_REL;
		in->imm = sign_extend(fetch(d, o->size), o->size);
		break;
	case AT_A:
		o->kind = OPK_FAR;
		in->imm = fetch(d, n);
		in->far_selector = fetch(d, 2);
		break;
	case AT_O:
		o->kind = OPK_MOFFS;
		in->mem.disp = fetch(d, in->addrsize);
		in->mem.seg = SEG_DS;
		break;
	default:			/* AT_L: register in an immediate's upper half */
		in->imm2 = fetch(d, 1) >> 4;
		operand_vector(d, o, in->imm2);
		in->imm2 = o->reg;
	}
}

static bool operand_take(struct decoder *d, struct operand *o, enum x86_operand_code code)
{
	struct insn *in = d->in;
	struct x86_operand_spec spec = x86_operand_specs[code];
	bool rm_reg = in->modrm >= 0xc0;
	unsigned reg = (in->modrm >> 3 & 7) | rex_bit(in, REX_R), rm = (in->modrm & 7) | rex_bit(in, REX_B);
	unsigned vvvv = d->mode == INSN_64 ? in->vvvv : in->vvvv & 7;
	unsigned reg32 = reg | (in->evex_r ? 16 : 0), rm32 = rm | (in->evex && in->rex & REX_X ? 16 : 0);

	o->size = operand_bytes(d, spec.size, rm_reg);
	switch ((enum operand_where)spec.where) {
	case AT_NONE: break;
	case AT_RAX: operand_gpr(d, o, REG_RAX); break;
	case AT_RCX: operand_gpr(d, o, REG_RCX); break;
	case AT_RDX: operand_gpr(d, o, REG_RDX); break;
	case AT_SEGFIX: o->kind = OPK_SEG; o->reg = code - OC_ES; break;
	case AT_OPREG: operand_gpr(d, o, (in->opcode & 7) | rex_bit(in, REX_B)); break;
	case AT_R: operand_gpr(d, o, rm); break;	/* mod is ignored: MOV CRn */
	case AT_G: operand_gpr(d, o, reg); return !in->evex_r;
	case AT_B: operand_gpr(d, o, vvvv); break;
	case AT_E:
		if (rm_reg)
			operand_gpr(d, o, rm);
		else
			o->kind = OPK_MEM;
		break;
	case AT_M: operand_memory(in, o); return !rm_reg;
	case AT_VSIB: o->kind = OPK_MEM; return !rm_reg;
	case AT_S: case AT_C: case AT_D: return operand_system(d, o, spec.where);
	case AT_X: operand_fixed_memory(d, o, REG_RSI, false); break;
	case AT_Y:			/* beside an X operand, mem describes that one */
		o->kind = OPK_MEM;
		if (in->row->op != X86_MOVS && in->row->op != X86_CMPS)
			operand_fixed_memory(d, o, REG_RDI, true);
		break;
	case AT_BX: operand_fixed_memory(d, o, REG_RBX, false); break;
	case AT_AXMEM: operand_fixed_memory(d, o, REG_RAX, false); break;
	case AT_DI: operand_fixed_memory(d, o, REG_RDI, false); break;
	case AT_ST0: o->kind = OPK_ST; break;
	case AT_STI: o->kind = OPK_ST; o->reg = in->modrm & 7; break;
	case AT_P: o->kind = OPK_MMX; o->reg = reg & 7; break;
	case AT_Q: o->kind = rm_reg ? OPK_MMX : OPK_MEM; o->reg = rm_reg ? rm & 7 : 0; break;
	case AT_V: operand_vector(d, o, reg32); break;
	case AT_H: operand_vector(d, o, vvvv); break;
	case AT_XMM0: operand_vector(d, o, 0); break;
	case AT_W:
		if (rm_reg)
			operand_vector(d, o, rm32);
		else
			operand_memory(in, o);
		break;
	case AT_KG: return operand_mask(d, o, reg32);
	case AT_KH: return operand_mask(d, o, vvvv);
	case AT_KE:
		if (rm_reg)
			return operand_mask(d, o, in->modrm & 7);
		o->kind = OPK_MEM;
		break;
	default: operand_immediate(d, o, spec.where);
	}
	return true;
}

static void access_set(struct insn *in)
{
	unsigned access = in->row->access;

	for (unsigned i = 0; i < in->nops; i++) {
		struct operand *o = &in->ops[i];

		o->read = access != ACCESS_N;
		if (i == 0 && access != ACCESS_R && access != ACCESS_N) {
			o->write = 1;
			o->read = access != ACCESS_W && access != ACCESS_WW;
		} else if (i == 1 && (access == ACCESS_RWRW || access == ACCESS_WW)) {
			o->write = 1;
			o->read = access == ACCESS_RWRW;
		} else if (i == 2 && access == ACCESS_RW2) {
			o->write = 1;
		}
		if (o->kind == OPK_MEM && o->size == 0 && in->op == X86_LEA)
			o->read = 0;
	}
}

/* SDM vol. 2 2.7.11.1 */
static bool evex_mask_holds(const struct insn *in)
{
	uint32_t attr = in->row->attr;

	if (in->evex_mask ? !(attr & ROW_MASK) : in->evex_z || (attr & ROW_KR))
		return false;
	return !in->evex_z || !((attr & ROW_KM) || in->ops[0].kind == OPK_MEM);
}

static bool evex_holds(const struct decoder *d)
{
	const struct insn *in = d->in;
	uint32_t attr = in->row->attr;
	bool regs = registers_only(in), rounds = in->evex_b && regs;

	if (in->evex_b && !(attr & (regs ? ROW_ER | ROW_SAE : ROW_BROADCAST)))
		return false;
	if (in->vex_l == 3 && !rounds)
		return false;
	if (attr & ROW_VSIB && in->ops[0].kind == OPK_XMM && in->ops[0].reg == in->mem.index)
		return false;
	if (attr & ROW_UQ && (in->ops[0].reg == in->ops[1].reg || (regs && in->ops[0].reg == in->ops[2].reg)))
		return false;
	return evex_mask_holds(in);
}

static bool operands_take(struct decoder *d)
{
	struct insn *in = d->in;
	bool uses_vvvv = false;

	for (unsigned i = 0; i < INSN_MAX_OPS && in->row->operand[i] != OC__; i++) {
		unsigned where = x86_operand_specs[in->row->operand[i]].where;

		if (!operand_take(d, &in->ops[i], in->row->operand[i]))
			return fail(d, DECODE_UD);
		uses_vvvv |= where == AT_H || where == AT_B || where == AT_KH;
		in->nops = i + 1;
	}
	if (in->vex && !uses_vvvv && in->vvvv)
		return fail(d, DECODE_UD);
	if (d->mode != INSN_64)
		in->vvvv &= 7;		/* its highest bit is ignored (SDM vol. 2, 2.3.5.6) */
	if (in->evex && !evex_holds(d))
		return fail(d, DECODE_UD);
	access_set(in);
	return d->error == DECODE_OK;
}

/* What the row cannot say. */
static bool restrictions_hold(const struct decoder *d)
{
	const struct insn *in = d->in;

	if (in->lock && (!in->row->lockable || in->ops[0].kind != OPK_MEM))
		return false;
	if (in->op == X86_MOV_SEG && in->ops[0].kind == OPK_SEG && in->ops[0].reg == SEG_CS)
		return false;
	if (d->vsib && !in->evex) {		/* destination, index and mask must differ */
		unsigned dst = in->ops[0].reg, mask = in->ops[2].reg, index = in->mem.index;

		return dst != mask && dst != index && mask != index;
	}
	return true;
}

static bool takes_memory_by_modrm(const struct insn *in)
{
	return in->has_modrm && in->modrm < 0xc0 && in->op != X86_MOV_CR && in->op != X86_MOV_DR;
}

static bool decode(struct decoder *d)
{
	struct insn *in = d->in;

	if (!opcode_take(d) || !row_take(d))
		return false;
	in->has_modrm = in->row->modrm_forms != 0;
	if (in->evex_v && !(in->row->attr & ROW_VSIB))
		in->vvvv |= 16;
	operand_size_set(d);
	if (takes_memory_by_modrm(in) && !modrm_memory_take(d))
		return false;
	in->imm_at = d->pos;
	if (!operands_take(d))
		return false;
	if (!restrictions_hold(d))
		return fail(d, DECODE_UD);
	if (in->seg_override != SEG_NONE && !(in->mem.seg == SEG_ES && in->mem.base == REG_RDI))
		in->mem.seg = in->seg_override;		/* ES:rDI of strings cannot be overridden */
	in->len = d->pos;
	return true;
}

enum decode_result insn_decode(struct insn *in, const uint8_t *p, unsigned avail, enum insn_mode mode)
{
	struct decoder d = { .in = in, .p = p, .avail = avail, .mode = mode };

	memset(in, 0, sizeof(*in));
	in->seg_override = SEG_NONE;
	in->addrsize = 8;		/* any but 0, which stands for "67 seen" until opcode_take() is done */
	in->mem.seg = SEG_DS;
	in->mem.base = in->mem.index = INSN_REG_NONE;
	decode(&d);
	return d.error;
}
