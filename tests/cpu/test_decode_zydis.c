/*
 * The decoder against Zydis: every opcode with every ModR/M byte under every
 * prefix that matters, then random bytes, in the three modes.  Validity, length,
 * operands, their access and the flags must agree for all that the table covers.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <Zydis/Zydis.h>
#include <cmocka.h>

#include "cpu/optable.h"

struct oracle {
	ZydisDecoder dec[3];
	uint64_t rng;
	uint64_t compared, valid;
	unsigned differences;
};

static uint64_t rng_next(struct oracle *o)
{
	o->rng ^= o->rng << 13;
	o->rng ^= o->rng >> 7;
	o->rng ^= o->rng << 17;
	return o->rng;
}

/* Instruction sets that are not in the table: #UD here. */
static bool isa_absent(const ZydisDecodedInstruction *z)
{
	switch (z->meta.isa_ext) {
	case ZYDIS_ISA_EXT_AMD3DNOW: case ZYDIS_ISA_EXT_AMD_INVLPGB: case ZYDIS_ISA_EXT_AMX_BF16:
	case ZYDIS_ISA_EXT_AMX_INT8: case ZYDIS_ISA_EXT_AMX_TILE: case ZYDIS_ISA_EXT_CET:
	case ZYDIS_ISA_EXT_CLZERO: case ZYDIS_ISA_EXT_ENQCMD: case ZYDIS_ISA_EXT_FMA4:
	case ZYDIS_ISA_EXT_HRESET: case ZYDIS_ISA_EXT_KEYLOCKER:
	case ZYDIS_ISA_EXT_KEYLOCKER_WIDE: case ZYDIS_ISA_EXT_KNC: case ZYDIS_ISA_EXT_KNCE:
	case ZYDIS_ISA_EXT_KNCV: case ZYDIS_ISA_EXT_MCOMMIT: case ZYDIS_ISA_EXT_MONITORX:
	case ZYDIS_ISA_EXT_MOVDIR: case ZYDIS_ISA_EXT_MPX: case ZYDIS_ISA_EXT_PADLOCK:
	case ZYDIS_ISA_EXT_PCONFIG: case ZYDIS_ISA_EXT_PT: case ZYDIS_ISA_EXT_RDPRU: case ZYDIS_ISA_EXT_RTM:
	case ZYDIS_ISA_EXT_SERIALIZE: case ZYDIS_ISA_EXT_SGX: case ZYDIS_ISA_EXT_SGX_ENCLV:
	case ZYDIS_ISA_EXT_SMX: case ZYDIS_ISA_EXT_SNP: case ZYDIS_ISA_EXT_SSE4A: case ZYDIS_ISA_EXT_SVM:
	case ZYDIS_ISA_EXT_TBM: case ZYDIS_ISA_EXT_TDX: case ZYDIS_ISA_EXT_TSX_LDTRK:
	case ZYDIS_ISA_EXT_UINTR: case ZYDIS_ISA_EXT_VMFUNC: case ZYDIS_ISA_EXT_VTX: case ZYDIS_ISA_EXT_WAITPKG:
	case ZYDIS_ISA_EXT_XOP:
		return true;
	default:
		return false;
	}
}

static bool instruction_absent(const ZydisDecodedInstruction *z)
{
	switch (z->meta.isa_set) {
	case ZYDIS_ISA_SET_AVX512ER_512: case ZYDIS_ISA_SET_AVX512ER_SCALAR: case ZYDIS_ISA_SET_AVX512PF_512:
	case ZYDIS_ISA_SET_AVX512_4FMAPS_512: case ZYDIS_ISA_SET_AVX512_4FMAPS_SCALAR:
	case ZYDIS_ISA_SET_AVX512_4VNNIW_512: case ZYDIS_ISA_SET_AVX512_VP2INTERSECT_128:
	case ZYDIS_ISA_SET_AVX512_VP2INTERSECT_256: case ZYDIS_ISA_SET_AVX512_VP2INTERSECT_512:
		return true;
	default:
		return isa_absent(z);
	}
}

static const char *hex(const uint8_t *p, unsigned n)
{
	static char buf[64];

	for (unsigned i = 0; i < n; i++)
		snprintf(buf + 3 * i, 4, "%02x ", p[i]);
	return buf;
}

static void report(struct oracle *o, const char *what, const uint8_t *p, enum insn_mode mode,
		   enum decode_result r, const struct insn *in, bool zok, const ZydisDecodedInstruction *z)
{
	static unsigned seen[2048];
	unsigned key = zok ? z->mnemonic : 2000;

	o->differences++;
	if (seen[key]++ > 2)
		return;
	printf("%s: mode %d: %s ours %d %s len %d, zydis %d %s len %d\n", what, 16 << mode, hex(p, 15), r,
	       r == DECODE_OK ? x86_op_name(in->op) : "-", in->len, zok,
	       zok ? ZydisMnemonicGetString(z->mnemonic) : "-", zok ? z->length : 0);
}

/* Our operand as a Zydis register, NONE if it is none. */
static ZydisRegister operand_register(const struct operand *op)
{
	switch (op->kind) {
	case OPK_GPR:
		if (op->high_byte)
			return ZYDIS_REGISTER_AH + op->reg;
		if (op->size == 1)
			return ZydisRegisterEncode(ZYDIS_REGCLASS_GPR8, op->reg < 4 ? op->reg : op->reg + 4);
		return ZydisRegisterEncode(op->size == 2 ? ZYDIS_REGCLASS_GPR16 : op->size == 4 ? ZYDIS_REGCLASS_GPR32 :
					   ZYDIS_REGCLASS_GPR64, op->reg);
	case OPK_SEG: return ZydisRegisterEncode(ZYDIS_REGCLASS_SEGMENT, op->reg);
	case OPK_CR: return ZydisRegisterEncode(ZYDIS_REGCLASS_CONTROL, op->reg);
	case OPK_DR: return ZydisRegisterEncode(ZYDIS_REGCLASS_DEBUG, op->reg);
	case OPK_MMX: return ZydisRegisterEncode(ZYDIS_REGCLASS_MMX, op->reg);
	case OPK_MASK: return ZydisRegisterEncode(ZYDIS_REGCLASS_MASK, op->reg);
	case OPK_XMM: return ZydisRegisterEncode(op->size == 64 ? ZYDIS_REGCLASS_ZMM : op->size == 32 ? ZYDIS_REGCLASS_YMM : ZYDIS_REGCLASS_XMM, op->reg);
	case OPK_ST: return ZydisRegisterEncode(ZYDIS_REGCLASS_X87, op->reg);
	default: return ZYDIS_REGISTER_NONE;
	}
}

/* Zydis gives these the size of a cache line or of nothing. */
static bool line_operation(unsigned op)
{
	return op == X86_CLFLUSH || op == X86_CLFLUSHOPT || op == X86_CLWB || op == X86_PREFETCH || op == X86_INVLPG;
}

static bool is_vector(ZydisRegister r)
{
	return ZydisRegisterGetClass(r) == ZYDIS_REGCLASS_XMM || ZydisRegisterGetClass(r) == ZYDIS_REGCLASS_YMM ||
	       ZydisRegisterGetClass(r) == ZYDIS_REGCLASS_ZMM;
}

/* NULL if they agree. */
static const char *memory_compare(const struct insn *in, const struct operand *op, const ZydisDecodedOperand *zo)
{
	ZydisRegister base = zo->mem.base, index = zo->mem.index;
	unsigned b = base == ZYDIS_REGISTER_NONE || base == ZYDIS_REGISTER_RIP || base == ZYDIS_REGISTER_EIP ?
		INSN_REG_NONE : (unsigned)ZydisRegisterGetId(base);
	unsigned i = index == ZYDIS_REGISTER_NONE ? INSN_REG_NONE : (unsigned)ZydisRegisterGetId(index);

	if (in->addrsize == 4 && in->rex & 1 && in->mem.base == INSN_REG_NONE)
		return NULL;	/* Zydis 4.0 lets REX.B make a base of SIB's "none" here, SDM 2.2.1.2 does not */
	if (b != in->mem.base || (base == ZYDIS_REGISTER_RIP || base == ZYDIS_REGISTER_EIP) != in->mem.rip)
		return "base";
	if (i != in->mem.index || (i != INSN_REG_NONE && zo->mem.scale != 1 << in->mem.scale))
		return "index";
	if (op->kind == OPK_MOFFS ? (uint64_t)(zo->mem.disp.value ^ in->mem.disp) << (64 - 8 * in->addrsize) != 0 :
	    zo->mem.disp.value != in->mem.disp)
		return "displacement";
	if (in->op != X86_LEA && zo->mem.segment != ZYDIS_REGISTER_NONE &&
	    ZydisRegisterGetId(zo->mem.segment) != (int)in->mem.seg)
		return "segment";
	if (op->size && zo->size / 8 != op->size && in->row->trans != TRANS_INTERP && !line_operation(in->op))
		return "memory size";
	return NULL;
}

static const char *operand_compare(const struct insn *in, const struct operand *op, const ZydisDecodedOperand *zo)
{
	uint64_t imm = op == &in->ops[1] && in->op == X86_ENTER ? in->imm2 : in->imm;
	uint64_t mask = op->size >= 8 ? ~0ull : (1ull << 8 * op->size) - 1;
	ZydisRegister r;

	switch (zo->type) {
	case ZYDIS_OPERAND_TYPE_REGISTER:
		r = operand_register(op);
		if (is_vector(r) && is_vector(zo->reg.value))
			return ZydisRegisterGetId(r) == ZydisRegisterGetId(zo->reg.value) ? NULL : "vector register";
		return r == zo->reg.value ? NULL : "register";
	case ZYDIS_OPERAND_TYPE_MEMORY:
		if (op->kind != OPK_MEM && op->kind != OPK_MOFFS)
			return "kind";
		return memory_compare(in, op, zo);
	case ZYDIS_OPERAND_TYPE_POINTER:
		return op->kind == OPK_FAR && zo->ptr.segment == in->far_selector && zo->ptr.offset == (uint32_t)in->imm ?
			NULL : "pointer";
	case ZYDIS_OPERAND_TYPE_IMMEDIATE:
		if (op->kind == OPK_REL)
			return zo->imm.value.u == in->imm ? NULL : "displacement of branch";
		return op->kind == OPK_IMM && ((zo->imm.value.u ^ imm) & mask) == 0 ? NULL : "immediate";
	default:
		return "kind";
	}
}

/* Not for x87 (ST(0) may be both operands), nor for what is no real access. */
static const char *access_compare(const struct insn *in, const struct operand *op, const ZydisDecodedOperand *zo)
{
	bool reads = zo->actions & ZYDIS_OPERAND_ACTION_MASK_READ, writes = zo->actions & ZYDIS_OPERAND_ACTION_MASK_WRITE;

	if (zo->type != ZYDIS_OPERAND_TYPE_REGISTER && zo->type != ZYDIS_OPERAND_TYPE_MEMORY)
		return NULL;
	if (in->row->cls == CLASS_X87 || in->row->cls == CLASS_FPSTATE || line_operation(in->op))
		return NULL;
	if (writes != op->write)
		return "operand written";
	if (in->evex_mask && op->write)
		return NULL;	/* what is not wanted stays: memory is not read for that, nor a zeroed register */
	return reads && !op->read ? "operand read" : NULL;
}

/* Zydis' explicit operands must be among ours, in order; we also list implied ones. */
static const char *operands_compare(const struct insn *in, const ZydisDecodedInstruction *z,
				    const ZydisDecodedOperand *zo)
{
	unsigned n = 0;

	if (in->op == X86_UD0 || in->op == X86_UD1 || in->op == X86_NOP)
		return NULL;	/* sizes are moot */
	if (in->op == X86_LAR || in->op == X86_LSL || in->op == X86_MOVMSKPS || in->op == X86_MOVMSKPD ||
	    (in->op == X86_MOVSXD && in->opsize == 2))
		return NULL;	/* the width of the register is moot */
	for (unsigned i = 0; i < z->operand_count; i++) {
		const char *why = "operand count", *first = NULL;

		if (zo[i].visibility != ZYDIS_OPERAND_VISIBILITY_EXPLICIT || zo[i].encoding == ZYDIS_OPERAND_ENCODING_MASK)
			continue;
		while (why && n < in->nops) {
			why = operand_compare(in, &in->ops[n++], &zo[i]);
			if (!why && (why = access_compare(in, &in->ops[n - 1], &zo[i])) != NULL)
				return why;
			first = first ? first : why;
		}
		if (why)
			return first ? first : why;
	}
	return NULL;
}

static const char *evex_compare(const struct insn *in, const ZydisDecodedInstruction *z)
{
	bool zeroes = z->avx.mask.mode == ZYDIS_MASK_MODE_ZEROING || z->avx.mask.mode == ZYDIS_MASK_MODE_CONTROL_ZEROING;

	if (in->evex != (z->encoding == ZYDIS_INSTRUCTION_ENCODING_EVEX))
		return "encoding";
	if (!in->evex)
		return NULL;
	if (in->evex_mask != (z->avx.mask.reg ? ZydisRegisterGetId(z->avx.mask.reg) : 0))
		return "mask";
	return zeroes == in->evex_z || in->ops[0].kind == OPK_MASK ? NULL : "zeroing";
}

/* What our table says of the arithmetic flags: reads at least what Zydis says is read (pass-through counts),
 * writes nothing that Zydis leaves alone, and misses nothing that changes. */
static const char *flags_compare(const struct insn *in, const ZydisDecodedInstruction *z)
{
	uint32_t changed, ours = (in->row->flags_written | in->row->flags_undefined) & FLAGS_ARITH;
	uint32_t passes = in->row->flags_read;

	/* Zydis misses that PTEST clears OF, SF, AF and PF; RSM's row does not try. */
	if (!z->cpu_flags || in->op == X86_PTEST || in->op == X86_VTESTPS || in->op == X86_VTESTPD || in->op == X86_RSM)
		return NULL;
	changed = z->cpu_flags->modified | z->cpu_flags->set_0 | z->cpu_flags->set_1 | z->cpu_flags->undefined;
	changed &= FLAGS_ARITH;
	if (z->cpu_flags->tested & FLAGS_ARITH & ~in->row->flags_read)
		return "flags read";
	if (ours & ~changed & ~passes)
		return "flags written that do not change";
	return changed & ~ours ? "flags changed" : NULL;
}

static void compare(struct oracle *o, const uint8_t *p, enum insn_mode mode)
{
	ZydisDecodedOperand zo[ZYDIS_MAX_OPERAND_COUNT];
	ZydisDecodedInstruction z;
	struct insn in;
	enum decode_result r = insn_decode(&in, p, 15, mode);
	bool zok = ZYAN_SUCCESS(ZydisDecoderDecodeFull(&o->dec[mode], p, 15, &z, zo));
	const char *why;

	o->compared++;
	if (zok && instruction_absent(&z)) {
		return;
	}
	/* Zydis 4.0 refuses R' beside a general register in 32-bit code, of FP16 alone; CPUs ignore it. */
	if (!zok && r == DECODE_OK && mode != INSN_64 && in.map >= 5 && in.ops[0].kind == OPK_GPR)
		return;
	if (zok != (r == DECODE_OK)) {
		report(o, "validity", p, mode, r, &in, zok, &z);
		return;
	}
	if (!zok)
		return;
	o->valid++;
	if (z.length != in.len)
		why = "length";
	else
		why = operands_compare(&in, &z, zo);
	if (!why)
		why = evex_compare(&in, &z);
	if (!why)
		why = flags_compare(&in, &z);
	if (why)
		report(o, why, p, mode, r, &in, zok, &z);
}

static void oracle_init(struct oracle *o)
{
	memset(o, 0, sizeof(*o));
	o->rng = 0x9e3779b97f4a7c15;
	ZydisDecoderInit(&o->dec[0], ZYDIS_MACHINE_MODE_LEGACY_16, ZYDIS_STACK_WIDTH_16);
	ZydisDecoderInit(&o->dec[1], ZYDIS_MACHINE_MODE_LEGACY_32, ZYDIS_STACK_WIDTH_32);
	ZydisDecoderInit(&o->dec[2], ZYDIS_MACHINE_MODE_LONG_64, ZYDIS_STACK_WIDTH_64);
	for (unsigned i = 0; i < 3; i++) {	/* these are NOPs here */
		ZydisDecoderEnableMode(&o->dec[i], ZYDIS_DECODER_MODE_MPX, false);
		ZydisDecoderEnableMode(&o->dec[i], ZYDIS_DECODER_MODE_CET, false);
		ZydisDecoderEnableMode(&o->dec[i], ZYDIS_DECODER_MODE_CLDEMOTE, false);
	}
}

/* One opcode after given prefix bytes, with all ModR/M bytes and random rest. */
static void sweep_opcode(struct oracle *o, const uint8_t *pre, unsigned n, uint8_t opcode, enum insn_mode mode)
{
	for (unsigned modrm = 0; modrm < 256; modrm++) {
		uint8_t p[24];
		uint64_t r1 = rng_next(o), r2 = rng_next(o);

		memcpy(p, pre, n);
		p[n] = opcode;
		p[n + 1] = modrm;
		memcpy(p + n + 2, &r1, 8);
		memcpy(p + n + 10, &r2, 15 - n - 10 > 8 ? 8 : 15 - n - 10);
		compare(o, p, mode);
	}
}

static const struct { uint8_t n, b[4]; } legacy_prefixes[] = {
	{ 0 }, { 1, { 0x66 } }, { 1, { 0xf3 } }, { 1, { 0xf2 } }, { 1, { 0x67 } }, { 1, { 0xf0 } }, { 1, { 0x64 } },
	{ 1, { 0x48 } }, { 1, { 0x47 } }, { 1, { 0x41 } }, { 2, { 0x66, 0x4c } }, { 2, { 0xf3, 0x48 } }, { 2, { 0xf2, 0x49 } },
	{ 2, { 0x66, 0xf2 } }, { 2, { 0xf3, 0x66 } }, { 2, { 0xf2, 0xf3 } }, { 2, { 0x48, 0x66 } }, { 2, { 0x2e, 0x67 } },
	{ 2, { 0xf0, 0xf3 } }, { 3, { 0x67, 0x66, 0x42 } }, { 2, { 0x65, 0x36 } },
};

static void test_legacy(void **state)
{
	static const uint8_t maps[4][3] = { { 0 }, { 1, 0x0f }, { 2, 0x0f, 0x38 }, { 2, 0x0f, 0x3a } };
	struct oracle o;

	(void)state;
	oracle_init(&o);
	for (enum insn_mode mode = INSN_16; mode <= INSN_64; mode++)
		for (unsigned k = 0; k < sizeof(legacy_prefixes) / sizeof(legacy_prefixes[0]); k++)
			for (unsigned map = 0; map < 4; map++)
				for (unsigned opcode = 0; opcode < 256; opcode++) {
					uint8_t pre[8];
					unsigned n = legacy_prefixes[k].n;

					memcpy(pre, legacy_prefixes[k].b, n);
					memcpy(pre + n, maps[map] + 1, maps[map][0]);
					sweep_opcode(&o, pre, n + maps[map][0], opcode, mode);
				}
	printf("%lu compared, %lu valid\n", o.compared, o.valid);
	assert_int_equal(o.differences, 0);
}

static void test_vex(void **state)
{
	struct oracle o;

	(void)state;
	oracle_init(&o);
	for (enum insn_mode mode = INSN_16; mode <= INSN_64; mode++)
		for (unsigned k = 0; k < 24; k++)
			for (unsigned map = 0; map < 5; map++)
				for (unsigned opcode = 0; opcode < 256; opcode++) {
					uint64_t r = rng_next(&o);
					uint8_t w_pp_l = (k & 7) | (k & 8 ? 0x80 : 0);
					uint8_t vvvv = k & 16 ? (r & 15) << 3 : 0x78;
					uint8_t c4[3] = { 0xc4, map | (r >> 8 & 0xe0), w_pp_l | vvvv };
					uint8_t c5[2] = { 0xc5, w_pp_l | vvvv };

					sweep_opcode(&o, c4, 3, opcode, mode);
					if (map == 0)
						sweep_opcode(&o, c5, 2, opcode, mode);
				}
	printf("%lu compared, %lu valid\n", o.compared, o.valid);
	assert_int_equal(o.differences, 0);
}

/* Masks, broadcast, rounding, lengths and the high registers' bits at random. */
static void evex_sweep(struct oracle *o, enum insn_mode mode, unsigned map, unsigned w_pp)
{
	for (unsigned opcode = 0; opcode < 256; opcode++) {
		uint64_t r = rng_next(o);
		uint8_t p0 = (uint8_t)((r & 0xf0) | map | (r >> 8 & 31 ? 0 : 8) | (mode == INSN_64 ? 0 : 0xc0));
		uint8_t p1 = (uint8_t)((w_pp & 4) << 5 | (w_pp & 3) | (r >> 13 & 31 ? 4 : 0) | (r & 1 ? 0x78 : r >> 20 & 0x78));
		uint8_t pre[4] = { 0x62, p0, p1, (uint8_t)(r >> 32 | (r >> 40 & 3 ? 8 : 0)) };

		if (r >> 42 & 3)
			pre[3] &= 0x7f;		/* no zeroing */
		if (r >> 44 & 3)
			pre[3] &= 0xef;		/* no EVEX.b */
		if (r >> 46 & 1)
			pre[3] &= 0x78;		/* no mask */
		sweep_opcode(o, pre, 4, (uint8_t)opcode, mode);
	}
}

static void test_evex(void **state)
{
	struct oracle o;

	(void)state;
	oracle_init(&o);
	for (unsigned k = 0; k < 12; k++)
		for (unsigned map = 1; map < 7; map++)
			for (unsigned w_pp = 0; w_pp < 8; w_pp++)
				evex_sweep(&o, k < 10 ? INSN_64 : k == 10 ? INSN_32 : INSN_16, map, w_pp);
	printf("%lu compared, %lu valid\n", o.compared, o.valid);
	assert_int_equal(o.differences, 0);
}

static void test_random(void **state)
{
	struct oracle o;

	(void)state;
	oracle_init(&o);
	for (unsigned k = 0; k < 3000000; k++) {
		uint64_t r[2] = { rng_next(&o), rng_next(&o) };

		compare(&o, (uint8_t *)r, k % 3);
	}
	printf("%lu compared, %lu valid\n", o.compared, o.valid);
	assert_int_equal(o.differences, 0);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_legacy),
		cmocka_unit_test(test_vex),
		cmocka_unit_test(test_evex),
		cmocka_unit_test(test_random),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
