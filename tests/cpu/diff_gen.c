/*
 * Random cases. A row of the table gives prefixes, opcode and ModR/M; what follows is random bytes of which the
 * decoder says how many belong to the instruction. Then registers or displacements are turned so that the memory
 * operand lies where something is mapped, or crosses into where nothing is.
 */
#include <string.h>

#include "diff.h"

/* What user mode cannot run, depends on time or the host's kernel, or shows the host's own addresses. */
static const char *const excluded[] = {
	"CALLF", "JMPF", "RETF", "INT", "IRET", "SYSCALL", "SYSENTER", "SYSRET", "SYSEXIT", "MONITOR", "MWAIT", "SGDT",
	"SIDT", "SLDT", "STR", "SMSW", "RDTSC", "RDTSCP", "RDPMC", "RDPID", "CPUID", "XGETBV", "RDPKRU", "WRPKRU", "RSM",
	"POP_SEG", "MOV_SEG", "LFS", "LGS", "LSS", "RDFSBASE", "RDGSBASE", "WRFSBASE", "WRGSBASE", "LAR", "LSL", "VERR",
	"VERW", "VMCALL", "VMMCALL", "XSAVE", "XSAVEOPT", "XSAVEC", "XSAVES", "XRSTOR", "XRSTORS", "RDRAND", "RDSEED",
	"INT1", "POPF", "FXSAVE", "FNSTENV", "FNSAVE", "CLZERO",
	"FBLD",		/* of digits that are none, as random ones are, the result is undefined */
};

static bool row_usable(const struct gen *g, const struct x86_opcode *r)
{
	const char *name = x86_op_name(r->op);
	if ((r->attr & ROW_I64) || (r->feature && !cpu_model_has(g->model, r->feature)))
		return false;
	if (g->filter && strcmp(g->filter, name))
		return false;
	for (unsigned i = 0; i < sizeof excluded / sizeof *excluded; i++)
		if (!strcmp(name, excluded[i]))
			return false;
	return true;
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
	g->nrows = g->ncommon = 0;
	for (unsigned i = 0; i < x86_optable_rows; i++) {
		if (!row_usable(g, &x86_optable[i]))
			continue;
		g->rows[g->nrows++] = i;
		if (is_common(x86_optable[i].op) && g->ncommon < sizeof g->common / sizeof *g->common)
			g->common[g->ncommon++] = i;
	}
}

uint64_t gen_u64(struct gen *g)
{
	uint64_t z = g->seed += 0x9e3779b97f4a7c15ull;
	z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9ull;
	z = (z ^ z >> 27) * 0x94d049bb133111ebull;
	return z ^ z >> 31;
}
static unsigned below(struct gen *g, unsigned n) { return (unsigned)((gen_u64(g) >> 32) * n >> 32); }
static bool one_in(struct gen *g, unsigned n) { return below(g, n) == 0; }

/* --- values --- */

static uint64_t int_value(struct gen *g)
{
	uint64_t r = gen_u64(g);
	switch (below(g, 8)) {
	case 0: return r & 0xff;
	case 1: return 0 - (r & 0xff);
	case 2: return 1ull << (r & 63);
	case 3: return (1ull << (r & 63)) - 1;
	case 4: return (uint64_t)(int64_t)(int32_t)r;
	case 5: return r & 0xffffffff;
	default: return r;
	}
}

/* IEEE bits with `e` exponent and `m` mantissa bits: zeros, denormals, ones, infinities, NaNs. */
static uint64_t float_value(struct gen *g, unsigned e, unsigned m)
{
	uint64_t r = gen_u64(g), mantissa = r & ((1ull << m) - 1), all = (1ull << e) - 1, bias = all >> 1, exponent;
	switch (below(g, 10)) {
	case 0: exponent = 0; break;
	case 1: exponent = 0; mantissa = 0; break;
	case 2: exponent = all; break;
	case 3: exponent = all; mantissa = one_in(g, 2) ? 0 : 1ull << (m - 1); break;
	case 4: exponent = bias + below(g, 70) - 3; mantissa &= ~0ull << below(g, m); exponent &= all; break;
	case 5: exponent = bias; mantissa = 0; break;
	case 6: case 7: exponent = bias - 8 + below(g, 16); exponent &= all; break;
	case 8: exponent = one_in(g, 2) ? 1 + below(g, 4) : all - 1 - below(g, 4); exponent &= all; break;
	default: exponent = gen_u64(g) & all; break;
	}
	return (r >> 63) << (e + m) | exponent << m | mantissa;
}

static void vector_value(struct gen *g, uint8_t *p)
{
	uint64_t q[2];
	unsigned kind = below(g, 4);
	for (unsigned i = 0; i < 2; i++)
		q[i] = kind == 0 ? int_value(g) : kind == 1 ? float_value(g, 11, 52) :
		       kind == 2 ? float_value(g, 8, 23) | float_value(g, 8, 23) << 32 : gen_u64(g);
	memcpy(p, q, 16);
}

static void x87_value(struct gen *g, uint8_t *p)
{
	uint64_t r = gen_u64(g), mantissa = float_value(g, 11, 52) << 11;
	uint16_t se = (uint16_t)gen_u64(g);
	unsigned kind = below(g, 12);
	switch (kind) {
	case 0: mantissa = 0; se &= 0x8000; break;
	case 1: se |= 0x7fff; mantissa = r | 1ull << 63; break;
	case 2: se |= 0x7fff; mantissa = 1ull << 63; break;
	case 3: se &= 0x8000; mantissa = r; break;
	case 4: mantissa = r; break;
	case 5: se |= 0x7fff; mantissa = r; break;
	default:
		se = (uint16_t)((se & 0x8000) | (0x3fff - 16 + below(g, 84)));
		mantissa = (kind & 1 ? r : r & ~0ull << below(g, 63)) | 1ull << 63;
		break;
	}
	memcpy(p, &mantissa, 8);
	memcpy(p + 8, &se, 2);
	memset(p + 10, 0, 6);
}

void gen_memory(struct gen *g, uint8_t *p, unsigned n)
{
	for (unsigned i = 0; i < n; i += 16)
		vector_value(g, p + i);
}

void gen_stack(struct gen *g, uint8_t *p)
{
	for (unsigned i = 0; i < STACK_BYTES; i += 8) {
		uint64_t q = one_in(g, 4) ? int_value(g) : CODE_VA + SLOT_BYTES * below(g, DIFF_CASES) + 8 + below(g, 32);
		memcpy(p + i, &q, 8);
	}
}

static void fpu_value(struct gen *g, uint8_t *fpu)
{
	struct x86_xsave *f = (struct x86_xsave *)fpu;
	memset(fpu, 0, XSAVE_BYTES);
	f->fcw = (uint16_t)(0x37f | (gen_u64(g) & 0xc00));
	if (one_in(g, 4))
		f->fcw = (uint16_t)((f->fcw & ~0x300) | (one_in(g, 2) ? 0x200 : 0));
	if (one_in(g, 8))
		f->fcw &= (uint16_t)~(gen_u64(g) & 0x3f);
	f->fsw = (uint16_t)(gen_u64(g) & 0x7f00);
	if (one_in(g, 2))
		f->fsw |= gen_u64(g) & 0x7f & (one_in(g, 8) ? 0x7f : f->fcw | 0x40);
	if (f->fsw & ~f->fcw & 0x3f)
		f->fsw |= 0x8080;
	f->ftw_abridged = one_in(g, 2) ? 0xff : (uint8_t)gen_u64(g);
	f->mxcsr = 0x1f80 | (uint32_t)(one_in(g, 2) ? gen_u64(g) & 0xe07f : 0);
	if (one_in(g, 8))
		f->mxcsr &= ~(uint32_t)(gen_u64(g) & 0x1380);	/* I, D, Z, P */
	f->mxcsr_mask = 0xffff;
	for (unsigned i = 0; i < 8; i++)
		x87_value(g, f->st[i].b);
	for (unsigned i = 0; i < 16; i++) {
		vector_value(g, f->xmm[i].b);
		vector_value(g, f->ymmh[i].b);
	}
	f->xstate_bv = 7;
}

/* --- encodings --- */

static void encode_vex(struct gen *g, const struct x86_opcode *r, uint8_t **p)
{
	unsigned pp = r->prefixes & PREFIX_P66 ? 1 : r->prefixes & PREFIX_F3 ? 2 : r->prefixes & PREFIX_F2 ? 3 : 0;
	unsigned w = r->attr & ROW_W0 ? 0 : r->attr & ROW_W1 ? 1 : below(g, 2);
	unsigned l = r->attr & ROW_L0 ? 0 : r->attr & ROW_L1 ? 1 : below(g, 2);
	unsigned vvvv = one_in(g, 3) ? 15 : below(g, 16), rxb = below(g, 8);
	if (r->prefixes & PREFIX_NP && pp && one_in(g, 2))
		pp = 0;
	*(*p)++ = 0xc4;
	*(*p)++ = (uint8_t)(rxb << 5 | r->map);
	*(*p)++ = (uint8_t)(w << 7 | vvvv << 3 | l << 2 | pp);
}

/* Prefixes that the next ones undo: REX not right before the opcode, F2 and F3 before the other. */
static void encode_dead(struct gen *g, bool rep, uint8_t **p)
{
	if (one_in(g, 4))
		*(*p)++ = one_in(g, 2) ? 0x2e : 0x3e;
	if (rep && one_in(g, 2))
		*(*p)++ = one_in(g, 2) ? 0xf2 : 0xf3;
	*(*p)++ = (uint8_t)(0x40 | below(g, 16));
	if (one_in(g, 2))
		*(*p)++ = one_in(g, 2) ? 0x2e : 0x3e;
}

static void encode_legacy(struct gen *g, const struct x86_opcode *r, uint8_t **p)
{
	bool rep = r->trans == TRANS_STRING || r->prefixes == PREFIX_F2 || r->prefixes == PREFIX_F3;
	if (one_in(g, 16))
		encode_dead(g, rep, p);
	if (one_in(g, 16))
		*(*p)++ = one_in(g, 2) ? 0x64 : 0x65;
	if (one_in(g, 24))
		*(*p)++ = 0x67;
	if (r->lockable && one_in(g, 8))
		*(*p)++ = 0xf0;
	if (r->prefixes == PREFIX_ANY) {
		if (one_in(g, 4))
			*(*p)++ = 0x66;
		if (one_in(g, 16) || ((r->trans == TRANS_STRING) && one_in(g, 2)))
			*(*p)++ = one_in(g, 2) ? 0xf2 : 0xf3;
	} else if (r->prefixes & PREFIX_NP) {
		if ((r->prefixes & PREFIX_P66) && one_in(g, 3))
			*(*p)++ = 0x66;
		else if ((r->prefixes & PREFIX_F2) && one_in(g, 16))
			*(*p)++ = 0xf2;
	} else {
		if (one_in(g, 8))
			*(*p)++ = 0x66;
		if (!(r->prefixes & PREFIX_P66))
			*(*p)++ = r->prefixes & PREFIX_F3 ? 0xf3 : 0xf2;
		else
			*(*p)++ = 0x66;
	}
	if (one_in(g, 2) || (r->attr & (ROW_W1 | ROW_B1)))
		*(*p)++ = (uint8_t)(0x40 | below(g, 16) | (r->attr & ROW_W1 ? 8 : 0));
	if (r->map)
		*(*p)++ = 0x0f;
	if (r->map > 1)
		*(*p)++ = r->map == 2 ? 0x38 : 0x3a;
}

static uint8_t encode_modrm(struct gen *g, const struct x86_opcode *r)
{
	uint8_t m = (uint8_t)gen_u64(g);
	bool reg = r->modrm_forms == MODRM_REG || (r->modrm_forms == (MODRM_REG | MODRM_MEM) && one_in(g, 2));
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

/* At most 15 bytes + random tail at p; decoded into *in. */
static bool encode(struct gen *g, const struct x86_opcode *r, uint8_t *p, struct insn *in, uint8_t **modrm)
{
	uint8_t *w = p;
	if (r->vex)
		encode_vex(g, r, &w);
	else
		encode_legacy(g, r, &w);
	*w++ = r->opcode;
	*modrm = w;
	if (r->modrm_forms)
		*w++ = encode_modrm(g, r);
	for (unsigned i = 0; i < 14; i++)
		*w++ = (uint8_t)gen_u64(g);
	if (insn_decode(in, p, (unsigned)(w - p), INSN_64) != DECODE_OK || in->row != r)
		return false;
	if (in->map == 1 && in->opcode == 0x0d && in->modrm >= 0xc0)
		return false;		/* a NOP on Intel, #UD on AMD */
	if (in->op == X86_XCHG && in->opcode == 0x90 && in->rep)
		return false;		/* PAUSE on Intel whatever REX.B says */
	if (in->op == X86_MOVSXD && in->opsize == 2)
		return false;		/* reads 2 bytes on Intel, 4 on AMD */
	if (double_shift16(in) &&
	    (in->opcode & 1 ? in->mem.base == REG_RCX || in->mem.index == REG_RCX : (in->imm & 31) > 16))
		return false;
	if ((in->op == X86_LOOPE || in->op == X86_LOOPNE) && (memchr(p, 0xf2, in->len - 2u) || memchr(p, 0xf3, in->len - 2u)))
		return false;		/* a repeat prefix changes the condition on AMD */
	if (in->op == X86_CALL && in->mem.base == REG_RSP && in->modrm < 0xc0)
		return false;		/* aim() would move the stack */
	if (unchecked_alignment(in) && in->modrm < 0xc0 &&
	    (in->mem.base == INSN_REG_NONE || in->mem.index != INSN_REG_NONE))
		return false;		/* cannot be aimed at an aligned address */
	if ((in->op == X86_MASKMOVQ || in->op == X86_MASKMOVDQU) && in->addrsize != 8)
		return false;
	return !(in->p66 && (r->attr & ROW_F64));	/* Intel ignores 66 at near branches, AMD does not */
}

static uint64_t pick_address(struct gen *g, unsigned size)
{
	unsigned align = one_in(g, 3) ? 0 : 63;
	if (!size)
		size = 8;
	switch (below(g, 16)) {
	case 0: return DATA_VA + DATA_BYTES - below(g, 2 * size);	/* runs into nothing */
	case 1: return DATA_VA - below(g, size + 1);
	case 2: case 3: return DATA_VA + 4096 - below(g, size + 1);	/* crosses pages */
	case 4: return ROM_VA + (below(g, 4000) & ~align);
	case 5: return one_in(g, 4) ? gen_u64(g) : DATA_VA + below(g, DATA_BYTES);
	default: return DATA_VA + 0x100 + (below(g, DATA_BYTES - 0x400) & ~align);
	}
}

/* Of masked bytes: whether an empty mask faults, and what a fault leaves of the x87 state, is the CPU's choice. */
static uint64_t masked_address(struct gen *g) { return DATA_VA + 0x200 + below(g, 0x1c00); }

static uint64_t seg_base(const struct insn *in)
{
	return in->mem.seg == SEG_FS ? FS_BASE : in->mem.seg == SEG_GS ? GS_BASE : 0;
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

static uint64_t inner_address(struct gen *g) { return DATA_VA + 0x400 + below(g, DATA_BYTES - 0x800); }

/* A register added to itself is not aimed, but must not hit the code, where the exits of native and engine differ. */
static void avoid_code(const struct insn *in, uint64_t *gpr)
{
	uint64_t r = gpr[in->mem.base], va = seg_base(in) + r + (r << in->mem.scale) + (uint64_t)in->mem.disp;
	if ((uint32_t)va - CODE_VA + 0x1000 < CODE_BYTES + 0x1000)
		gpr[in->mem.base] = 0;
}

/* Turns displacement or base so that the operand is at `target`. */
static void aim(struct gen *g, struct insn *in, uint8_t *code, const uint8_t *modrm, uint64_t va, uint64_t *gpr,
		uint64_t target, uint8_t *fpu)
{
	uint64_t offset = target - seg_base(in);
	uint32_t disp = (uint32_t)(in->mem.rip ? target - seg_base(in) - va - in->len : offset);
	if (memory_operand(in)->kind == OPK_MOFFS) {
		memcpy(code + (modrm - code), &offset, in->addrsize);
	} else if (in->mem.base == INSN_REG_NONE) {
		bool sib = !in->mem.rip && in->has_modrm && (in->modrm & 7) == 4;
		if (!in->has_modrm)
			return;
		memcpy(code + (modrm - code) + 1 + sib, &disp, 4);
		if (in->mem.index != INSN_REG_NONE && !(in->row->attr & ROW_VSIB))
			gpr[in->mem.index] = below(g, 64);
	} else {
		uint64_t index = 0;
		if (in->mem.index != INSN_REG_NONE && !(in->row->attr & ROW_VSIB)) {
			if (in->mem.index == in->mem.base) {
				avoid_code(in, gpr);
				return;
			}
			index = gpr[in->mem.index] << in->mem.scale;
		}
		gpr[in->mem.base] = offset - index - (uint64_t)in->mem.disp;
	}
	if (in->row->attr & ROW_VSIB) {
		struct x86_xsave *f = (struct x86_xsave *)fpu;
		for (unsigned i = 0; i < 4; i++) {
			uint32_t near = below(g, 64) * (one_in(g, 16) ? 64 : 1);
			bool wide = in->opcode & 1;	/* 91, 93: quadword indices */
			f->xmm[in->mem.index].d[i] = wide && (i & 1) ? 0 : near;
			f->ymmh[in->mem.index].d[i] = wide && (i & 1) ? 0 : near + 64;
		}
	}
}

/* Jumps go into the slot's INT3s: before the code or behind it. */
static void aim_branch(struct gen *g, uint8_t *code, unsigned len, unsigned rel_bytes)
{
	int32_t rel = one_in(g, 4) ? 0 : one_in(g, 2) ? 20 + (int32_t)below(g, 60) : -64 - (int32_t)below(g, 40);
	memcpy(code + len - rel_bytes, &rel, rel_bytes);
}

static void aim_registers(struct gen *g, const struct insn *in, struct diff_state *s)
{
	uint64_t *gpr = s->gpr;
	if (in->row->trans == TRANS_STRING) {
		gpr[REG_RSI] = pick_address(g, 8);
		gpr[REG_RDI] = one_in(g, 4) ? gpr[REG_RSI] + below(g, 16) : pick_address(g, 8);
		gpr[REG_RCX] = one_in(g, 8) && !compares(in) ? below(g, 5000) : below(g, 40);
		if (compares(in))
			gpr[REG_RDI] = inner_address(g);
		gpr[REG_RSI] &= pointer_mask(in, (uint32_t)gpr[REG_RCX]);
		gpr[REG_RDI] &= pointer_mask(in, (uint32_t)gpr[REG_RCX]);
	}
	if (in->op == X86_MASKMOVQ || in->op == X86_MASKMOVDQU)
		gpr[REG_RDI] = masked_address(g) - seg_base(in);
	if (double_shift16(in))
		gpr[REG_RCX] &= ~16ull;
	if (in->op == X86_CALL)		/* a bad stack and a bad target: which faults first is the CPU's choice */
		gpr[REG_RSP] = STACK_VA + 0x400 + (below(g, 0x800) & ~7u);
	if (in->op == X86_XLAT)
		gpr[REG_RBX] = pick_address(g, 256);
	if (in->op == X86_LEAVE)
		gpr[REG_RBP] = STACK_VA + 0x400 + (below(g, 0x800) & ~7u);
	if (in->row->trans == TRANS_BRANCH || in->row->trans == TRANS_CALL)
		for (unsigned i = 0; i < in->nops; i++)
			if (in->ops[i].kind == OPK_GPR)
				gpr[in->ops[i].reg] = CODE_VA + SLOT_BYTES * below(g, DIFF_CASES) + below(g, 64);
}

static void registers(struct gen *g, struct diff_state *s)
{
	for (unsigned i = 0; i < 16; i++)
		s->gpr[i] = int_value(g);
	s->gpr[REG_RSP] = STACK_VA + 0x400 + (below(g, 0x800) & ~7u);
	if (one_in(g, 32))
		s->gpr[REG_RSP] = STACK_VA + (one_in(g, 2) ? 0 : STACK_BYTES) + below(g, 9) - 4;
	s->rflags = FLAG_FIXED | FLAG_IF | (gen_u64(g) & (FLAGS_ARITH | (one_in(g, 4) ? FLAG_DF : 0)));
	fpu_value(g, s->fpu);
}

static unsigned rel_operand(const struct insn *in)
{
	for (unsigned i = 0; i < in->nops; i++)
		if (in->ops[i].kind == OPK_REL)
			return in->map == 0 && in->opcode != 0xe8 && in->opcode != 0xe9 ? 1 : 4;
	return 0;
}

static bool is_dot_product(const struct insn *in)
{
	return in->op == X86_DPPS || in->op == X86_DPPD;
}

static void gen_single(struct gen *g, struct diff_case *c, struct diff_state *s)
{
	uint8_t *code = c->code + SLOT_START, *modrm;
	struct insn in;
	registers(g, s);
	do
		memset(code, 0xcc, 32);
	while (!encode(g, &x86_optable[g->rows[below(g, g->nrows)]], code, &in, &modrm));
	memset(code + in.len, 0xcc, 32);
	aim_registers(g, &in, s);
	if (rel_operand(&in))
		aim_branch(g, code, in.len, rel_operand(&in));
	const struct operand *m = memory_operand(&in);
	if (m && in.row->trans != TRANS_STRING && in.op != X86_MASKMOVQ && in.op != X86_MASKMOVDQU && in.op != X86_XLAT)
		aim(g, &in, code, modrm, s->rip, s->gpr,
		    pick_address(g, m->size) & ~(unchecked_alignment(&in) ? 15ull : 0), s->fpu);
	c->len = in.len;
	c->insns = 1;
	c->dot_product = is_dot_product(&in);
	c->flags_undefined = in.row->flags_undefined;
	c->many_fields = m && (m->size == 0 || m->size > 10) && in.row->cls != CLASS_SSE && in.row->cls != CLASS_AVX;
}

/* --- sequences --- */

static void mov_imm(uint8_t **p, unsigned reg, uint64_t value)
{
	*(*p)++ = (uint8_t)(0x48 | reg >> 3);
	*(*p)++ = (uint8_t)(0xb8 | (reg & 7));
	memcpy(*p, &value, 8);
	*p += 8;
}

/* Fit for the middle of a sequence: keeps RSP in its page, leaves nothing undefined but flags. */
static bool fits(const struct insn *in)
{
	for (unsigned i = 0; i < in->nops; i++)
		if (in->ops[i].kind == OPK_GPR && in->ops[i].write && in->ops[i].reg == REG_RSP && !in->ops[i].high_byte)
			return false;
	if (in->op == X86_ENTER || in->op == X86_LEAVE || in->op == X86_PUSHF || in->op == X86_LAHF ||
	    (double_shift16(in) && (in->opcode & 1)))
		return false;
	return !(in->row->attr & ROW_VSIB) && in->mem.base != REG_RSP && in->row->trans != TRANS_SYSTEM;
}

static void prepare_memory(struct gen *g, uint8_t **p, const struct insn *in, unsigned size)
{
	uint64_t index = 0, align = unchecked_alignment(in) ? 15 : 0;
	uint64_t target = (pick_address(g, size) & ~align) - seg_base(in);
	if (in->op == X86_MASKMOVQ || in->op == X86_MASKMOVDQU)
		target = masked_address(g) - seg_base(in);
	if (in->mem.index != INSN_REG_NONE) {
		index = below(g, 64);
		mov_imm(p, in->mem.index, index);
	}
	mov_imm(p, in->mem.base, target - (index << in->mem.scale) - (uint64_t)in->mem.disp);
}

static void define_flags(struct gen *g, uint8_t **p)
{
	unsigned r = below(g, 8);
	*(*p)++ = 0x48;
	*(*p)++ = 0x39;
	*(*p)++ = (uint8_t)(0xc0 | below(g, 8) << 3 | r);
}

/* --- accesses off one base, which the translator checks together --- */

static void base_pick(struct gen *g, uint8_t **p)
{
	static const uint8_t regs[] = { REG_RBX, REG_RBP, REG_R8, REG_R10, REG_R13, REG_R15, REG_RSP };
	static const uint64_t at[] = { DATA_VA + 0x800, DATA_VA + 0x1000, DATA_VA + 0x1000, DATA_VA + DATA_BYTES - 0x80,
				       DATA_VA + DATA_BYTES, DATA_VA, ROM_VA + 0x100, ROM_VA };

	g->base = INSN_REG_NONE;
	if (g->filter || one_in(g, 2))
		return;
	g->base = regs[below(g, sizeof regs)];
	g->base_value = at[below(g, sizeof at / sizeof *at)] + below(g, 0x80);
	if (g->base != REG_RSP)
		mov_imm(p, g->base, g->base_value);
}

/* Makes the operand [base + disp8]; false: it cannot be. RSP stays in its page, so that displacements only rise. */
static bool base_share(struct gen *g, uint8_t *bytes, uint8_t *modrm, struct insn *in)
{
	const struct x86_opcode *row = in->row;

	if (unchecked_alignment(in) || double_shift16(in) || in->addrsize != 8 || in->op == X86_CALL || seg_base(in))
		return false;
	*modrm = (uint8_t)((*modrm & 0x38) | 0x40 | (g->base & 7));
	if (g->base == REG_RSP) {
		modrm[1] = 0x24;
		modrm[2] &= 0x7f;
	}
	return insn_decode(in, bytes, 15, INSN_64) == DECODE_OK && in->row == row && in->mem.base == g->base &&
	       in->mem.index == INSN_REG_NONE && (g->base == REG_RSP || fits(in));
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
		mov_imm(p, g->base, g->base_value);
	} else if (one_in(g, 4)) {	/* add base, n or lea base, [base + n] */
		bool lea = one_in(g, 2);
		*(*p)++ = (uint8_t)(0x48 | (lea && g->base >= 8 ? 4 : 0) | g->base >> 3);
		*(*p)++ = lea ? 0x8d : 0x83;
		*(*p)++ = (uint8_t)((lea ? 0x40 | (g->base & 7) << 3 : 0xc0) | (g->base & 7));
		*(*p)++ = (uint8_t)(below(g, 65) - 32);
	}
}

static unsigned row_pick(struct gen *g)
{
	if (g->base != INSN_REG_NONE && !one_in(g, 3))
		return g->common[below(g, g->ncommon)];
	return g->rows[below(g, g->nrows)];
}

/* One more instruction at *p, with what it needs before; the end of its relative branch in *branch. */
static void append(struct gen *g, struct diff_case *c, uint8_t **p, uint8_t **branch, unsigned *rel)
{
	uint8_t bytes[48], *modrm;
	struct insn in;
	const struct operand *m;
	bool shared = false;
	for (;;) {
		if (!encode(g, &x86_optable[row_pick(g)], bytes, &in, &modrm) || !fits(&in))
			continue;
		m = memory_operand(&in);
		if (!m || in.row->trans == TRANS_STRING)
			break;
		shared = g->base != INSN_REG_NONE && m->kind == OPK_MEM && in.has_modrm && in.modrm < 0xc0 && !one_in(g, 6);
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
		uint32_t count = below(g, 20);
		mov_imm(p, REG_RSI, pick_address(g, 8) & pointer_mask(&in, count));
		mov_imm(p, REG_RDI, (compares(&in) ? inner_address(g) : pick_address(g, 8)) & pointer_mask(&in, count));
		mov_imm(p, REG_RCX, count);
	} else if (m && !shared) {
		prepare_memory(g, p, &in, m->size);
	}
	memcpy(*p, bytes, in.len);
	*p += in.len;
	*branch = *p;
	if (in.row->flags_undefined)
		define_flags(g, p);
	if (g->base != INSN_REG_NONE && m && !shared && in.mem.base == g->base)
		mov_imm(p, g->base, g->base_value);
	else
		base_follow(g, p, &in);
}

static void gen_sequence(struct gen *g, struct diff_case *c, struct diff_state *s)
{
	uint8_t *p = c->code + SLOT_START, *at[16], *branch[16];
	unsigned n = 2 + below(g, 9), rel[16];
	registers(g, s);
	s->gpr[REG_RSP] = STACK_VA + 0x400 + (below(g, 0x800) & ~7u);
	((struct x86_xsave *)s->fpu)->fcw |= 0x3f;
	((struct x86_xsave *)s->fpu)->fsw &= 0x7f7f;
	base_pick(g, &p);
	for (unsigned i = 0; i < n && p < c->code + SLOT_BYTES - 80; i++) {
		at[i] = p;
		append(g, c, &p, &branch[i], &rel[i]);
		c->insns = i + 1;
	}
	at[c->insns] = p;
	for (unsigned i = 0; i < c->insns; i++)		/* forwards only: every case ends */
		if (rel[i]) {
			unsigned to = i + 1 + below(g, c->insns - i);
			int32_t d = (int32_t)(at[to] - branch[i]);
			if (rel[i] == 1 && d > 127)
				d = 0;
			memcpy(branch[i] - rel[i], &d, rel[i]);
		}
	c->len = (unsigned)(p - c->code - SLOT_START);
	c->flags_undefined = 0;
	c->many_fields = true;
}

void gen_case(struct gen *g, unsigned slot, bool sequence, struct diff_case *c, struct diff_state *s)
{
	memset(c->code, 0xcc, sizeof c->code);
	c->dot_product = false;
	memset(s, 0, sizeof *s);
	s->rip = CODE_VA + slot * SLOT_BYTES + SLOT_START;
	if (sequence)
		gen_sequence(g, c, s);
	else
		gen_single(g, c, s);
}
