/*
 * The opcode table: rows in the SDM's notation (vol. 2 appendix A).
 *
 *   ops.def       what depends on the mnemonic alone: flags, privilege, translation
 *   optable.def   one line per encoding: opcode, prefixes, ModR/M, operands, feature
 *   optable_evex.def  those of AVX-512
 *   features.def  the CPUID bits that gate them
 *
 * All const; any thread.
 */
#ifndef VIXEN_CPU_OPTABLE_H
#define VIXEN_CPU_OPTABLE_H

#include <stdbool.h>
#include <stdint.h>

#include "cpu/insn.h"
#include "cpu/state.h"

enum x86_op {
	X86_INVALID,
#define X86_OP(name, ...) X86_##name,
#include "cpu/ops.def"
#undef X86_OP
	X86_OP_COUNT
};

enum x86_feature {
	FEATURE_NONE,		/* every CPU */
#define X86_FEATURE(name, ...) FEATURE_##name,
#include "cpu/features.def"
#undef X86_FEATURE
	FEATURE_COUNT
};

/* What the CPL must be. Virtual-8086 exceptions beyond this are the interpreter's business. */
enum x86_priv {
	PRIV_NONE,
	PRIV_CPL0,		/* CPL 0, else #GP(0) */
	PRIV_IOPL,		/* CPL <= IOPL; IN/OUT/INS/OUTS: else the TSS bitmap; CLI/STI: or VME/PVI */
	PRIV_IOPL_V86,		/* in virtual-8086 mode only: IOPL 3 (or VME), else #GP(0) */
	PRIV_UMIP,		/* CPL 0 if CR4.UMIP */
};

/* How the translator treats it. */
enum x86_trans {
	TRANS_COPY,		/* runs as itself; registers and memory operand rewritten */
	TRANS_STACK,		/* implicit accesses through rSP */
	TRANS_BRANCH,		/* JMP (near, direct or indirect), Jcc, LOOP, JrCXZ */
	TRANS_CALL, TRANS_RET,	/* near */
	TRANS_STRING,		/* rSI/rDI, possibly repeated */
	TRANS_SYSTEM,		/* changes or reads system state; ends the block unless inlined */
	TRANS_INTERP,		/* leave it to the interpreter or a helper; does not end the block */
};

/* Which register file it needs, hence which of CR0.EM/TS, CR4.OSFXSR/OSXSAVE, XCR0 gate it. */
enum x86_class { CLASS_GPR, CLASS_X87, CLASS_MMX, CLASS_SSE, CLASS_AVX, CLASS_AVX512 /* EVEX, mask registers */,
		 CLASS_VEX_GPR /* BMI: VEX-coded, integer registers */,
		 CLASS_FPSTATE /* FXSAVE, XSAVE..: gated by their own rules */ };

/* Memory operand alignment that raises #GP(0) (CLASS_SSE/AVX) whatever CR0.AM says. */
enum x86_align { ALIGN_NONE, ALIGN_VECTOR /* the operand's size, 16 to 64 */, ALIGN_16, ALIGN_64 };

/* How operands are accessed; those not named are read. */
enum x86_access {
	ACCESS_R,		/* all read */
	ACCESS_W,		/* first written */
	ACCESS_RW,		/* first read and written */
	ACCESS_RWRW,		/* first two read and written: XCHG, XADD */
	ACCESS_WW,		/* first two written: MULX */
	ACCESS_RW2,		/* first and third read and written: gathers */
	ACCESS_N,		/* first neither: INVLPG, PREFETCH, NOP (LEA's M is told by its size 0) */
};

/* Profiles of flag use: X(name, read, written, undefined). "written" are defined afterwards.
 * "read" includes flags that may pass through unchanged (a shift by zero), so that liveness is right. */
#define XF_C FLAG_CF
#define XF_P FLAG_PF
#define XF_A FLAG_AF
#define XF_Z FLAG_ZF
#define XF_S FLAG_SF
#define XF_O FLAG_OF
#define XF_ALL FLAGS_ARITH
#define X86_FLAG_PROFILES(X) \
	X(NONE, 0, 0, 0) \
	X(ALU, 0, XF_ALL, 0) \
	X(ADC, XF_C, XF_ALL, 0) \
	X(LOGIC, 0, XF_ALL & ~XF_A, XF_A) \
	X(INC, 0, XF_ALL & ~XF_C, 0) \
	X(MUL, 0, XF_C | XF_O, XF_P | XF_A | XF_Z | XF_S) \
	X(DIV, 0, 0, XF_ALL) \
	X(SHIFT, XF_ALL, XF_C | XF_P | XF_Z | XF_S, XF_O | XF_A) \
	X(ROT, XF_C | XF_O, XF_C, XF_O) \
	X(RCL, XF_C | XF_O, XF_C, XF_O) \
	X(BT, 0, XF_C, XF_O | XF_S | XF_A | XF_P) \
	X(BSF, 0, XF_Z, XF_C | XF_O | XF_S | XF_A | XF_P) \
	X(TZCNT, 0, XF_C | XF_Z, XF_O | XF_S | XF_A | XF_P) \
	X(DAA, XF_C | XF_A, XF_ALL & ~XF_O, XF_O) \
	X(AAA, XF_A, XF_C | XF_A, XF_O | XF_S | XF_Z | XF_P) \
	X(AAM, 0, XF_S | XF_Z | XF_P, XF_O | XF_A | XF_C) \
	X(SALC, XF_C, 0, 0) \
	X(COND, XF_C | XF_P | XF_Z | XF_S | XF_O, 0, 0) \
	X(SAHF, 0, XF_ALL & ~XF_O, 0) \
	X(LAHF, XF_ALL & ~XF_O, 0, 0) \
	X(CMC, XF_C, XF_C, 0) \
	X(CLC, 0, XF_C, 0) \
	X(DF, 0, FLAG_DF, 0) \
	X(IF, 0, FLAG_IF, 0) \
	X(AC, 0, FLAG_AC, 0) \
	X(ZF, 0, XF_Z, 0) \
	X(ZR, XF_Z, 0, 0) \
	X(ANDN, 0, XF_C | XF_O | XF_S | XF_Z, XF_A | XF_P) \
	X(BEXTR, 0, XF_C | XF_O | XF_Z, XF_A | XF_P | XF_S) \
	X(ADCX, XF_C, XF_C, 0) \
	X(ADOX, XF_O, XF_O, 0) \
	X(RDRAND, 0, XF_ALL, 0) \
	X(PUSHF, ~0u, 0, 0) \
	X(POPF, 0, XF_ALL | FLAG_TF | FLAG_IF | FLAG_DF | FLAG_IOPL | FLAG_NT | FLAG_AC | FLAG_ID, 0) \
	X(EVENT, ~0u, XF_ALL, 0) \
	X(INTO, ~0u, XF_ALL, 0) \
	X(STRING, FLAG_DF, 0, 0) \
	X(STRCMP, XF_ALL | FLAG_DF, XF_ALL, 0) \
	X(COMI, 0, XF_ALL, 0) \
	X(FCOMI, XF_ALL, XF_C | XF_P | XF_Z, XF_O | XF_S | XF_A) \
	X(FCMOV, XF_C | XF_P | XF_Z, 0, 0)

/* Operand codes: X(code, where it is, size), SDM vol. 2 A.2.1 and A.2.2 with these additions:
 * size f: 8 in 64-bit mode else 4; h, qtr, oct: half, quarter, eighth of x; Ibs: sign-extended imm8;
 * Evw, Edb, Edw: the first size for a register, the second for memory. */
#define X86_OPERAND_CODES(X) \
	X(_, NONE, 0) \
	X(AL, RAX, b) X(AX, RAX, w) X(eAX, RAX, z) X(rAX, RAX, v) X(CL, RCX, b) X(DX, RDX, w) \
	X(ES, SEGFIX, w) X(CS, SEGFIX, w) X(SS, SEGFIX, w) X(DS, SEGFIX, w) X(FS, SEGFIX, w) X(GS, SEGFIX, w) \
	X(Zb, OPREG, b) X(Zv, OPREG, v) \
	X(Eb, E, b) X(Ew, E, w) X(Ed, E, d) X(Eq, E, q) X(Ev, E, v) X(Ey, E, y) \
	X(Evw, E, vw) X(Edb, E, db) X(Edw, E, dw) \
	X(Rv, E, v) X(Ry, E, y) X(Rf, R, f) \
	X(Gb, G, b) X(Gw, G, w) X(Gd, G, d) X(Gv, G, v) X(Gy, G, y) X(Gf, G, f) X(By, B, y) \
	X(M, M, 0) X(Ma, M, a) X(Mb, M, b) X(Mw, M, w) X(Md, M, d) X(Mq, M, q) X(Mdq, M, dq) X(Mqq, M, qq) \
	X(Mx, M, x) X(Mv, M, v) X(My, M, y) X(Mp, M, p) X(Ms, M, s) X(Mt, M, t) X(Mss, M, d) X(Msd, M, q) \
	X(Menv, M, env) X(Mfpu, M, fpu) X(Mfx, M, 0) X(Mxs, M, 0) X(VXd, VSIB, d) X(VXq, VSIB, q) \
	X(Ib, I, b) X(Ibs, IS, v) X(Iw, I, w) X(Iz, IZ, v) X(Iv, IV, v) X(One, ONE, b) \
	X(Jb, J, b) X(Jz, J, z) X(Ap, A, p) \
	X(Ob, O, b) X(Ov, O, v) \
	X(Sw, S, w) X(Cf, C, f) X(Df, D, f) \
	X(Xb, X, b) X(Xv, X, v) X(Xz, X, z) X(Yb, Y, b) X(Yv, Y, v) X(Yz, Y, z) \
	X(BXb, BX, b) X(AXm, AXMEM, 0) X(DIq, DI, q) X(DIdq, DI, dq) \
	X(ST0, ST0, t) X(STi, STI, t) \
	X(Pd, P, d) X(Pq, P, q) X(Qd, Q, d) X(Qq, Q, q) X(Nq, Q, q) \
	X(Vd, V, d) X(Vq, V, q) X(Vdq, V, dq) X(Vqq, V, qq) X(Vx, V, x) X(Vh, V, h) X(Vss, V, d) X(Vsd, V, q) \
	X(Hdq, H, dq) X(Hqq, H, qq) X(Hx, H, x) X(Hh, H, h) X(Hss, H, d) X(Hsd, H, q) \
	X(Wb, W, b) X(Ww, W, w) X(Wd, W, d) X(Wq, W, q) X(Wdq, W, dq) X(Wqq, W, qq) X(Wx, W, x) \
	X(Wh, W, h) X(Wqtr, W, qtr) X(Woct, W, oct) X(Wss, W, d) X(Wsd, W, q) \
	X(Ud, W, d) X(Uq, W, q) X(Udq, W, dq) X(Uqq, W, qq) X(Ux, W, x) X(Uss, W, d) X(Usd, W, q) \
	X(Ldq, L, dq) X(Lqq, L, qq) X(Lx, L, x) X(XMM0, XMM0, dq) \
	X(Kq, KG, q) X(KHq, KH, q) X(Uk, KE, q) X(KEb, KE, b) X(KEw, KE, w) X(KEd, KE, d) X(KEq, KE, q) \
	X(Gq, G, q)
enum x86_operand_code {
#define X(code, where, size) OC_##code,
	X86_OPERAND_CODES(X)
#undef X
	OC_COUNT
};

/* x86_opcode.prefixes: which mandatory prefix selects the row */
#define PREFIX_NP 1u
#define PREFIX_P66 2u
#define PREFIX_F3 4u
#define PREFIX_F2 8u
#define PREFIX_NP66 (PREFIX_NP | PREFIX_P66)
#define PREFIX_NOF3 (PREFIX_NP | PREFIX_P66 | PREFIX_F2)
#define PREFIX_ANY 15u

/* x86_opcode.attr */
#define ROW_I64 1u		/* invalid in 64-bit mode */
#define ROW_O64 2u		/* only in 64-bit mode */
#define ROW_D64 4u		/* operand size defaults to 64 bits there, 32 is not encodable */
#define ROW_F64 8u		/* operand size is 64 bits there, 66 is ignored */
#define ROW_W0 0x10u
#define ROW_W1 0x20u
#define ROW_L0 0x40u
#define ROW_L1 0x80u
#define ROW_LIG 0x100u
#define ROW_WGPR 0x200u		/* VEX.W is ignored outside 64-bit mode */
#define ROW_B0 0x400u		/* REX.B clear */
#define ROW_B1 0x800u
#define ROW_AV 0x1000u		/* ALIGN_VECTOR */
#define ROW_A16 0x2000u
#define ROW_A64 0x4000u
#define ROW_VSIB 0x8000u	/* has a vector index */

#define ROW_L2 0x10000u		/* EVEX: 512 bits only */
#define ROW_L12 0x20000u	/* not 128 */
#define ROW_MASK 0x1c0000u	/* 0: cannot be masked */
#define ROW_K8 0x40000u		/* masked in elements of 8 bits */
#define ROW_K16 0x80000u
#define ROW_K32 0xc0000u
#define ROW_K64 0x100000u
#define ROW_KS 0x140000u	/* scalar */
#define ROW_KM 0x200000u	/* merging only */
#define ROW_KR 0x400000u	/* a mask is required */
#define ROW_BROADCAST 0x1800000u
#define ROW_B16 0x800000u
#define ROW_B32 0x1000000u
#define ROW_B64 0x1800000u
#define ROW_ER 0x2000000u	/* static rounding */
#define ROW_SAE 0x4000000u
#define ROW_NF 0x8000000u	/* no fault suppression */
#define ROW_T1S 0x10000000u	/* packed elements in memory */
#define ROW_SB 0x20000000u	/* the memory operand is repeated */
#define ROW_UQ 0x40000000u	/* destination and sources differ */

#define MODRM_MEM 1u		/* mod 0..2 */
#define MODRM_REG 2u		/* mod 3 */

enum x86_encoding { ENCODING_LEGACY, ENCODING_VEX, ENCODING_EVEX, ENCODINGS };

struct x86_opcode {
	uint16_t op;			/* enum x86_op */
	uint8_t vex, map, opcode;	/* vex: enum x86_encoding */
	uint8_t prefixes;		/* PREFIX_* */
	uint8_t modrm_forms;		/* MODRM_*; 0: no ModR/M byte */
	uint8_t modrm_mask, modrm_value;
	uint8_t access;			/* enum x86_access */
	uint8_t operand[INSN_MAX_OPS];	/* enum x86_operand_code */
	uint8_t feature;		/* enum x86_feature */
	uint8_t cls;			/* enum x86_class */
	uint8_t priv;			/* enum x86_priv */
	uint8_t trans;			/* enum x86_trans */
	uint8_t align;			/* enum x86_align */
	bool lockable;
	uint32_t attr;			/* ROW_* */
	uint32_t flags_read, flags_written, flags_undefined;
};

extern const struct x86_opcode x86_optable[];
extern const unsigned x86_optable_rows;

/* Rows of one opcode: x86_optable[first..end), empty if none. */
void x86_optable_find(enum x86_encoding vex, unsigned map, uint8_t opcode, unsigned *first, unsigned *end);

/* What each operand code means, for the decoder. */
enum operand_where {
	AT_NONE, AT_RAX, AT_RCX, AT_RDX, AT_SEGFIX, AT_OPREG, AT_E, AT_R, AT_G, AT_B, AT_M, AT_VSIB,
	AT_I, AT_IS, AT_IZ, AT_IV, AT_ONE, AT_J, AT_A, AT_O, AT_S, AT_C, AT_D, AT_X, AT_Y, AT_BX, AT_AXMEM, AT_DI,
	AT_ST0, AT_STI, AT_P, AT_Q, AT_V, AT_H, AT_W, AT_L, AT_XMM0,
	AT_KG, AT_KH, AT_KE,	/* mask registers: ModRM.reg, vvvv, ModRM.rm */
};
enum operand_size {
	SIZE_0, SIZE_b, SIZE_w, SIZE_d, SIZE_q, SIZE_t, SIZE_dq, SIZE_qq,	/* fixed */
	SIZE_v, SIZE_z, SIZE_y, SIZE_f, SIZE_p, SIZE_s, SIZE_a, SIZE_env, SIZE_fpu,
	SIZE_x, SIZE_h, SIZE_qtr, SIZE_oct,
	SIZE_vw, SIZE_db, SIZE_dw,						/* register, memory */
};
/* Bytes of an element that a mask's bit stands for; 0: cannot be masked, or scalar. */
static inline unsigned row_mask_element(const struct x86_opcode *row)
{
	unsigned k = row->attr & ROW_MASK;

	return !k || k == ROW_KS ? 0 : 1u << (k / ROW_K8 - 1);
}
/* Bytes that a broadcast reads; 0: it cannot. */
static inline unsigned row_broadcast(const struct x86_opcode *row)
{
	unsigned b = row->attr & ROW_BROADCAST;

	return b ? 1u << b / ROW_B16 : 0;
}

struct x86_operand_spec { uint8_t where, size; };
extern const struct x86_operand_spec x86_operand_specs[OC_COUNT];

const char *x86_op_name(enum x86_op op);	/* "ADD"; VEX forms without their V */

#endif
