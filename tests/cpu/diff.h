/*
 * The differential tester: random instructions from the opcode table, run natively and by the software engine.
 *
 *   diff.c         command line, comparison, reproducers
 *   diff_gen.c     random cases: code bytes, registers, addresses that hit or just miss mapped pages
 *   diff_native.c  a child process with the guest's pages at the guest's addresses
 *   diff_choice.c  what the manuals leave to the CPU
 *   diff_soft.c    the software engine, in long mode user mode, with the same pages at the same addresses
 *
 *	CODE   DIFF_CASES slots of 512 bytes, filled with INT3, each case followed by its exit
 *	DATA   two writable pages and, after a hole, a read-only one
 *	STACK  one writable page
 */
#ifndef VIXEN_TESTS_CPU_DIFF_H
#define VIXEN_TESTS_CPU_DIFF_H

#include <stdbool.h>
#include <stdint.h>

#include "cpu/model.h"
#include "cpu/optable.h"
#include "cpu/state.h"

#define DIFF_CASES 256u
#define SLOT_BYTES 512u
#define SLOT_START 0x80u		/* the case's first byte in its slot */
#define EXIT_BYTES 14u
#define CODE_VA 0x10000000ull
#define CODE_BYTES (DIFF_CASES * SLOT_BYTES)
#define DATA_VA 0x20000000ull
#define DATA_BYTES 0x2000u
#define ROM_VA (DATA_VA + 0x3000)
#define ROM_BYTES 0x1000u
#define STACK_VA 0x30000000ull
#define STACK_BYTES 0x1000u
#define FS_BASE (DATA_VA + 0x340)
#define GS_BASE (DATA_VA + 0x1560)
#define VSYSCALL_VA 0xffffffffff600000ull
#define XSAVE_BYTES 832u		/* x87, SSE, AVX: standard format */
#define VECTOR_EXIT 0xff		/* ran to its end */

struct diff_state {
	uint8_t fpu[XSAVE_AREA_SIZE] __attribute__((aligned(64)));	/* XSAVE_BYTES are used */
	uint64_t gpr[16], rip, rflags, cr2;
	uint32_t vector, error;
	uint64_t below_rsp;		/* native only: what lies under RSP where that is on the stack */
};

struct diff_case {
	uint8_t code[SLOT_BYTES];	/* the slot, without the exit */
	unsigned len;			/* bytes from SLOT_START to the exit */
	unsigned insns;
	uint64_t flags_undefined;
	bool dot_product;		/* some flags of an unmasked exception in its middle are the CPU's choice */
	bool many_fields;		/* an image in memory: which part of it faults first is the CPU's choice */
};

/* Shared with the child; mapped by it at the fixed addresses as well. */
struct diff_shared {
	uint8_t code[CODE_BYTES], data[DATA_BYTES], rom[ROM_BYTES], stack[STACK_BYTES];
	struct diff_state in[DIFF_CASES], out[DIFF_CASES];
};

/* --- diff_native.c --- */
struct native;
struct native *native_new(void);	/* NULL: errno says why */
void native_free(struct native *n);
struct diff_shared *native_shared(struct native *n);
/* Runs cases [first, first + count) on shared->in; false: the child died at case *at. */
bool native_run(struct native *n, unsigned first, unsigned count, unsigned *at);

/* --- diff_soft.c --- */
struct soft;
struct soft *soft_new(const struct cpu_model *model, bool interpret_only);
void soft_free(struct soft *s);
uint8_t *soft_code(struct soft *s);
uint8_t *soft_data(struct soft *s);
uint8_t *soft_rom(struct soft *s);
uint8_t *soft_stack(struct soft *s);
void soft_code_changed(struct soft *s);
bool soft_run_case(struct soft *s, const struct diff_state *in, struct diff_state *out);

/* --- diff_gen.c --- */
struct gen {
	uint64_t seed;
	const char *filter;		/* mnemonic; NULL: all */
	const struct cpu_model *model;
	unsigned rows[2048], nrows;
	unsigned common[512], ncommon;	/* those that compilers use most */
	unsigned base;			/* register that a sequence's accesses share; INSN_REG_NONE: each has its own */
	uint64_t base_value;
};
void gen_init(struct gen *g);		/* collects the rows that can run in user mode */
uint64_t gen_u64(struct gen *g);
void gen_memory(struct gen *g, uint8_t *p, unsigned n);
void gen_stack(struct gen *g, uint8_t *p);
/* A single instruction, or a sequence. slot: its index, for branch targets. */
void gen_case(struct gen *g, unsigned slot, bool sequence, struct diff_case *c, struct diff_state *in);

/* --- diff_choice.c --- */
struct choice {
	uint64_t va;			/* memory that may have been written; bytes 0: none */
	unsigned bytes;
	bool known;			/* and what the host has written there */
	uint64_t value;
	uint64_t flags;			/* of RFLAGS, not to be compared */
};
/* Turns the soft engine's outcome into the host's where they may differ. false: the case cannot be compared. */
bool choice_apply(const struct diff_case *c, const struct diff_state *in, struct diff_state *native,
		  struct diff_state *soft, struct choice *ch);

#endif
