/* The opcode table put together from ops.def and optable.def. */
#include "cpu/optable.h"

enum {
#define X(name, read, written, undefined) READ_##name = (read), WRITTEN_##name = (written), UNDEF_##name = (undefined),
	X86_FLAG_PROFILES(X)
#undef X
};

/* Per mnemonic, so that the rows below can name them by pasting. */
enum {
#define X86_OP(name, flags, priv, trans, lockable) \
	OP_READ_##name = READ_##flags, OP_WRITTEN_##name = WRITTEN_##flags, OP_UNDEF_##name = UNDEF_##flags, \
	OP_PRIV_##name = PRIV_##priv, OP_TRANS_##name = TRANS_##trans, OP_LOCK_##name = lockable,
#include "cpu/ops.def"
#undef X86_OP
};

/* The attribute and ModR/M words of optable.def. */
#define I64 ROW_I64
#define O64 ROW_O64
#define D64 ROW_D64
#define F64 ROW_F64
#define W0 ROW_W0
#define W1 ROW_W1
#define L0 ROW_L0
#define L1 ROW_L1
#define LIG ROW_LIG
#define WGPR ROW_WGPR
#define B0 ROW_B0
#define B1 ROW_B1
#define AV ROW_AV
#define A16 ROW_A16
#define A64 ROW_A64
#define L2 ROW_L2
#define L12 ROW_L12
#define K8 ROW_K8
#define K16 ROW_K16
#define K32 ROW_K32
#define K64 ROW_K64
#define KS ROW_KS
#define KM ROW_KM
#define KR ROW_KR
#define B16 ROW_B16
#define B32 ROW_B32
#define B64 ROW_B64
#define ER ROW_ER
#define SAE ROW_SAE
#define NF ROW_NF
#define T1S ROW_T1S
#define SB ROW_SB
#define UQ ROW_UQ
#define ROW_ALIGN(attr) \
	((attr) & ROW_AV ? ALIGN_VECTOR : (attr) & ROW_A16 ? ALIGN_16 : (attr) & ROW_A64 ? ALIGN_64 : ALIGN_NONE)

#define ROW_HAS_VSIB(code) ((code) == OC_VXd || (code) == OC_VXq ? ROW_VSIB : 0)

#define MODRM(forms, mask, value) .modrm_forms = (forms), .modrm_mask = (mask), .modrm_value = (value)
#define FORM_NONE MODRM(0, 0, 0)
#define FORM_ANYRM MODRM(MODRM_MEM | MODRM_REG, 0, 0)
#define FORM_MEM_ MODRM(MODRM_MEM, 0, 0)
#define FORM_REG_ MODRM(MODRM_REG, 0, 0)
#define FORM_REG(n) MODRM(MODRM_MEM | MODRM_REG, 0x38, (n) << 3)
#define FORM_MEM(n) MODRM(MODRM_MEM, 0x38, (n) << 3)
#define FORM_RM(n) MODRM(MODRM_REG, 0x38, (n) << 3)
#define FORM_BYTE(b) MODRM(MODRM_REG, 0xff, b)

const struct x86_opcode x86_optable[] = {
#define X86_ROW(vex_, map_, opc, pfx, form, mnemonic, acc, o1, o2, o3, o4, feat, class_, attr_) { \
	.op = X86_##mnemonic, .vex = vex_, .map = map_, .opcode = opc, .prefixes = PREFIX_##pfx, FORM_##form, \
	.access = ACCESS_##acc, .operand = { OC_##o1, OC_##o2, OC_##o3, OC_##o4 }, .feature = FEATURE_##feat, \
	.cls = CLASS_##class_, .priv = OP_PRIV_##mnemonic, .trans = OP_TRANS_##mnemonic, .align = ROW_ALIGN(attr_), \
	.lockable = OP_LOCK_##mnemonic, .attr = (attr_) | ROW_HAS_VSIB(OC_##o1) | ROW_HAS_VSIB(OC_##o2), .flags_read = OP_READ_##mnemonic, \
	.flags_written = OP_WRITTEN_##mnemonic, .flags_undefined = OP_UNDEF_##mnemonic },
#include "cpu/optable.def"
#define X86_EVEX(map, opc, pfx, form, mnemonic, acc, o1, o2, o3, o4, feat, attr) \
	X86_ROW(ENCODING_EVEX, map, opc, pfx, form, mnemonic, acc, o1, o2, o3, o4, feat, AVX512, attr)
#include "cpu/optable_evex.def"
#undef X86_EVEX
#undef X86_ROW
};
const unsigned x86_optable_rows = sizeof(x86_optable) / sizeof(x86_optable[0]);

/* Row numbers by their line in optable.def and optable_evex.def. */
#define PASTE2(a, b) a##b
#define PASTE(a, b) PASTE2(a, b)
enum {
#define X86_ROW(...) PASTE(ROW_AT_, __LINE__),
#include "cpu/optable.def"
#undef X86_ROW
#define X86_EVEX(...) PASTE(EVEX_AT_, __LINE__),
#include "cpu/optable_evex.def"
#undef X86_EVEX
};

/* The end of each opcode's rows: of several initialisers of one element the last counts. */
#define MAPS 8
#define SLOT(vex, map, opc) (((vex) * MAPS + (map)) << 8 | (opc))
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Woverride-init"
static const uint16_t row_end[ENCODINGS * MAPS * 256] = {
#define X86_ROW(vex_, map_, opc, ...) [SLOT(vex_, map_, opc)] = PASTE(ROW_AT_, __LINE__) + 1,
#include "cpu/optable.def"
#undef X86_ROW
#define X86_EVEX(map_, opc, ...) [SLOT(ENCODING_EVEX, map_, opc)] = PASTE(EVEX_AT_, __LINE__) + 1,
#include "cpu/optable_evex.def"
#undef X86_EVEX
};
#pragma GCC diagnostic pop

void x86_optable_find(enum x86_encoding vex, unsigned map, uint8_t opcode, unsigned *first, unsigned *end)
{
	unsigned n = *end = row_end[SLOT(vex, map, opcode)];

	while (n > 0 && x86_optable[n - 1].opcode == opcode && x86_optable[n - 1].map == map &&
	       x86_optable[n - 1].vex == vex)
		n--;
	*first = n;
}

const struct x86_operand_spec x86_operand_specs[OC_COUNT] = {
#define X(code, where_, size_) [OC_##code] = { AT_##where_, SIZE_##size_ },
	X86_OPERAND_CODES(X)
#undef X
};

static const char *const op_names[X86_OP_COUNT] = {
	[X86_INVALID] = "(bad)",
#define X86_OP(name, ...) [X86_##name] = #name,
#include "cpu/ops.def"
#undef X86_OP
};

const char *x86_op_name(enum x86_op op)
{
	return (unsigned)op < X86_OP_COUNT ? op_names[op] : op_names[X86_INVALID];
}
