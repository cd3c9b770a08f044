/*
 * The opcode table: rows in the SDM's notation (vol. 2 appendix A).
 *
 *   ops.def       what depends on the mnemonic alone: flags, privilege, translation
 *   optable.def   one line per encoding: opcode, prefixes, ModR/M, operands, feature
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
enum x86_class { CLASS_GPR, CLASS_X87, CLASS_MMX, CLASS_SSE, CLASS_AVX,
		 CLASS_VEX_GPR /* BMI: VEX-coded, integer registers */,
		 CLASS_FPSTATE /* FXSAVE, XSAVE..: gated by their own rules */ };

/* Memory operand alignment that raises #GP(0) (CLASS_SSE/AVX) whatever CR0.AM says. */
enum x86_align { ALIGN_NONE, ALIGN_VECTOR /* the operand's size, 16 or 32 */, ALIGN_16, ALIGN_64 };

/* How operands are accessed; those not named are read. */
enum x86_access {
	ACCESS_R,		/* all read */
	ACCESS_W,		/* first written */
	ACCESS_RW,		/* first read and written */
	ACCESS_RWRW,		/* first two read and written: XCHG, XADD */
	ACCESS_WW,		/* first two written: MULX */
	ACCESS_N,		/* first neither (address only): LEA's second, INVLPG, PREFETCH */
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

const char *x86_op_name(enum x86_op op);	/* "ADD"; VEX forms without their V */

#endif
