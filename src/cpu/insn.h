/*
 * One decoded instruction, and the opcode table's row it came from.
 *
 * The table (cpu/optable.def, an X-macro in the SDM's notation) is the one place
 * that knows operands, sizes, prefixes, CPUID feature, privilege, flags read and
 * written, and how the translator may treat an instruction.  Interpreter,
 * translator, disassembler and random-instruction tester all read it.
 *
 * enum x86_op has one value per SDM mnemonic: X86_ADD, X86_MOVAPS, X86_PADDB...
 * A VEX form of a legacy SSE instruction shares its value (VPADDB is X86_PADDB
 * with insn.vex); only AVX-born instructions have their own (X86_VBROADCASTSS).
 * Conditional ones (Jcc, SETcc, CMOVcc) are one value with the condition in
 * insn.opcode & 15.  String instructions: X86_MOVS, X86_CMPS, X86_STOS, X86_LODS,
 * X86_SCAS, X86_INS, X86_OUTS, element size in ops[0].size (1, 2, 4, 8).
 *
 * Operands are in Intel's order and include the implied ones that the table names
 * (AL, DX, ST(0), XMM0, MASKMOVDQU's [rDI], XLAT's [rBX]).  MOVS and CMPS have two
 * memory operands: insn.mem is the one at [rSI]; the other is always ES:[rDI].
 * INS, STOS, SCAS: insn.mem is ES:[rDI].  8-bit immediates that the SDM does not
 * sign-extend (imm8 counts, ports, ADD Eb,Ib) are zero-extended in insn.imm.
 */
#ifndef VIXEN_CPU_INSN_H
#define VIXEN_CPU_INSN_H

#include <stdbool.h>
#include <stdint.h>

enum operand_kind {
	OPK_NONE,
	OPK_GPR,	/* reg 0..15; high_byte: AH, CH, DH, BH (reg 0..3) */
	OPK_MEM,	/* insn.mem describes it */
	OPK_IMM,	/* value already sign/zero-extended to 64 bits in .imm */
	OPK_REL,	/* branch displacement, sign-extended, in .imm */
	OPK_FAR,	/* ptr16:16/32: .imm offset, .reg2 selector in insn.far_selector */
	OPK_SEG,	/* segment register */
	OPK_CR, OPK_DR,
	OPK_MMX,	/* reg 0..7 */
	OPK_XMM,	/* reg 0..31; size 16, 32 (YMM) or 64 (ZMM) or the scalar's bytes */
	OPK_MASK,	/* mask register 0..7 */
	OPK_ST,		/* ST(reg) */
	OPK_MOFFS,	/* absolute offset: also in insn.mem, no base or index */
};

struct operand {
	uint8_t kind;		/* enum operand_kind */
	uint8_t reg;
	uint8_t size;		/* bytes accessed: 1 2 4 6 8 10 16 32 64; 0 for LEA-like/none */
	uint8_t high_byte : 1, read : 1, write : 1;
};

#define INSN_MAX_OPS 4
#define INSN_REG_NONE 0xff

struct x86_opcode;

struct insn {
	uint16_t op;			/* enum x86_op */
	uint8_t len;			/* bytes, 1..15 */
	uint8_t imm_at;			/* where the immediates begin; len: there are none */
	uint8_t map;			/* 0 one-byte, 1 0F, 2 0F38, 3 0F3A; EVEX: 5, 6 */
	uint8_t opcode;			/* last opcode byte */
	uint8_t modrm; bool has_modrm;
	uint8_t rex;			/* 0x40..0x4f or 0; for VEX: the equivalent W,R,X,B */
	bool vex; uint8_t vex_l;	/* VEX or EVEX; 0: 128, 1: 256, 2: 512; with EVEX.b and registers maybe the rounding, 3 */
	uint8_t vvvv;			/* VEX second source register; EVEX: with V', unless that belongs to the index */
	bool evex, evex_r, evex_v;	/* R' and V', as bits of register numbers */
	uint8_t evex_mask;		/* aaa */
	bool evex_z, evex_b;		/* zeroing; broadcast, or rounding or no exceptions */
	uint8_t opsize;			/* effective operand size 2, 4, 8 */
	uint8_t addrsize;		/* 2, 4, 8 */
	bool p66, lock, rep, repne;	/* rep: F3, repne: F2, the last of them (also when mandatory) */
	uint8_t mandatory;		/* prefix consumed as part of the opcode: 0, 0x66, 0xf3, 0xf2 */
	uint8_t seg_override;		/* SEG_* or SEG_NONE */
	uint8_t nops;
	struct operand ops[INSN_MAX_OPS];
	struct {
		uint8_t seg;		/* effective segment (override applied, SS default for rBP/rSP) */
		uint8_t base, index;	/* 0..15 or INSN_REG_NONE; for VSIB index is a vector register, 0..31 */
		uint8_t scale;		/* 0..3: shift */
		bool rip;		/* RIP-relative: add address of next instruction */
		int64_t disp;		/* EVEX: disp8 is scaled already */
	} mem;
	uint64_t imm;			/* first immediate (sign-extended to operand size, then to 64 bits) */
	uint64_t imm2;			/* ENTER's level, /is4 register... */
	uint16_t far_selector;
	const struct x86_opcode *row;
};

enum insn_mode { INSN_16, INSN_32, INSN_64 };	/* CS.D / CS.L */

enum decode_result {
	DECODE_OK,
	DECODE_SHORT,		/* needs more bytes than given (fetch more, or #PF on the next page) */
	DECODE_TOO_LONG,	/* over 15 bytes: #GP(0) */
	DECODE_UD,		/* invalid: #UD */
};

/* Decodes the bytes at p. Independent of CPUID: the caller checks row->feature. Pure; any thread. */
enum decode_result insn_decode(struct insn *in, const uint8_t *p, unsigned avail, enum insn_mode mode);

#endif
