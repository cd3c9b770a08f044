/*
 * The differential tester: random instructions from the opcode table, run natively and by the software engine.
 *
 *   diff.c         command line, comparison, reproducers
 *   diff_gen.c     random cases: code bytes, registers, addresses that hit or just miss mapped pages
 *   diff_value.c   values
 *   diff_native.c  a child process with the guest's pages at the guest's addresses
 *   diff_choice.c  what the manuals leave to the CPU
 *   diff_soft.c    the software engine, in long mode user mode, with the same pages at the same addresses
 *   diff_rows.c    which rows of the table are tried, why not, and whether they were
 *
 *	CODE   DIFF_CASES slots of 512 bytes, filled with INT3, each case followed by its exit; those from SLOT_WRITABLE on
 *	       lie in pages that may be written
 *	EXIT   where exits lead: out of the case
 *	DATA   two writable pages and, after a hole, a read-only one
 *	PLAIN  after another hole, a writable page, and behind it
 *	DEVICE a page that is a device of the guest's, which behaves like memory
 *	NEXT   two writable pages, 64 KiB behind DATA: where 16-bit addresses of FS and GS end
 *	HIGH   two writable pages, 4 GiB behind DATA: where 32-bit addresses of FS and GS end, in 64-bit code
 *	STACK  one writable page
 *
 *	slot   | INT3, where wild RETs land | WINDOW: data | INT3 | SLOT_START: code | exit | INT3 |
 */
#ifndef VIXEN_TESTS_CPU_DIFF_H
#define VIXEN_TESTS_CPU_DIFF_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "cpu/model.h"
#include "cpu/optable.h"
#include "cpu/state.h"

#define DIFF_CASES 256u
#define SLOT_BYTES 512u
#define SLOT_START 0x80u		/* the case's first byte in its slot */
#define WINDOW_START 0x30u		/* data in a slot, never run */
#define WINDOW_BYTES 0x40u
#define SLOT_WRITABLE 224u		/* first slot in writable pages */
#define EXIT_BYTES 7u
#define EXIT_VA 0x68000000ull		/* no sum of two of the others */
#define EXIT_PAGE_BYTES 4096u
#define CODE_VA 0x10000000ull
#define CODE_BYTES (DIFF_CASES * SLOT_BYTES)
#define WRITABLE_VA (CODE_VA + SLOT_WRITABLE * SLOT_BYTES)
#define WRITABLE_BYTES (CODE_BYTES - SLOT_WRITABLE * SLOT_BYTES)
#define DATA_VA 0x20000000ull
#define DATA_BYTES 0x2000u
#define ROM_VA (DATA_VA + 0x3000)
#define ROM_BYTES 0x1000u
#define PLAIN_VA (DATA_VA + 0x5000)
#define PLAIN_BYTES 0x1000u
#define DEVICE_VA (PLAIN_VA + PLAIN_BYTES)
#define DEVICE_BYTES 0x1000u
#define END_BYTES 0x2000u
#define NEXT_VA (DATA_VA + 0x10000)
#define HIGH_VA (DATA_VA + 0x100000000ull)
#define STACK_VA 0x30000000ull
#define STACK_BYTES 0x1000u
#define FS_BASE (DATA_VA + 0x340)
#define GS_BASE (DATA_VA + 0x1560)
#define CANONICAL_END 0x800000000000ull
#define VSYSCALL_VA 0xffffffffff600000ull
#define XSAVE_BYTES 2688u		/* x87, SSE, AVX, AVX-512: standard format */
#define VECTOR_EXIT 0xff		/* ran to its end */
/* Selectors as Linux has them, and two of the LDT. */
#define SEL_CODE32 0x23u
#define SEL_DATA 0x2bu
#define SEL_CODE64 0x33u
#define SEL_FS 0x07u
#define SEL_GS 0x0fu

struct diff_state {
	uint8_t fpu[XSAVE_AREA_SIZE] __attribute__((aligned(64)));	/* XSAVE_BYTES are used */
	uint64_t gpr[16], rip, rflags, cr2;
	uint32_t vector, error;
	uint64_t below_rsp;		/* native only: what lies under RSP where that is on the stack */
};

struct diff_case {
	uint8_t code[SLOT_BYTES];	/* the slot, without the exit */
	unsigned len;			/* bytes from SLOT_START to the exit */
	bool wide;			/* 64-bit code; else 32-bit */
	unsigned insns;
	uint64_t flags_undefined;
	bool dot_product;		/* some flags of an unmasked exception in its middle are the CPU's choice */
	bool many_fields;		/* an image in memory: which part of it faults first is the CPU's choice */
};

/* Shared with the child; mapped by it at the fixed addresses as well. */
struct diff_shared {
	uint8_t code[CODE_BYTES], data[DATA_BYTES], rom[ROM_BYTES], plain[PLAIN_BYTES], device[DEVICE_BYTES];
	uint8_t next[END_BYTES], high[END_BYTES], stack[STACK_BYTES], exit[EXIT_PAGE_BYTES];
	struct diff_state in[DIFF_CASES], out[DIFF_CASES];
	bool wide[DIFF_CASES];
};

/* What a case may write. */
enum diff_area { AREA_DATA, AREA_PLAIN, AREA_DEVICE, AREA_NEXT, AREA_HIGH, AREA_STACK, AREA_CODE /* the writable slots */, AREAS };
struct area { uint64_t va; unsigned bytes; size_t offset; /* in struct diff_shared */ };
extern const struct area diff_areas[AREAS];

/* --- diff_native.c --- */
struct native;
/* components: of XSAVE, which cases have. NULL: errno says why. */
struct native *native_new(uint64_t components);
void native_free(struct native *n);
struct diff_shared *native_shared(struct native *n);
/* Where the code at EXIT_VA jumps to. Nothing is mapped there in the engines. */
uint64_t native_exit(void);
/* Runs cases [first, first + count) on shared->in; false: the child died at case *at. */
bool native_run(struct native *n, unsigned first, unsigned count, unsigned *at);

/* --- diff_soft.c --- */
struct soft;
struct soft *soft_new(const struct cpu_model *model, bool interpret_only);
void soft_free(struct soft *s);
uint8_t *soft_code(struct soft *s);
uint8_t *soft_rom(struct soft *s);
uint8_t *soft_exit(struct soft *s);	/* the page at EXIT_VA */
uint8_t *soft_area(struct soft *s, enum diff_area area);
void soft_code_changed(struct soft *s);
bool soft_run_case(struct soft *s, bool wide, const struct diff_state *in, struct diff_state *out);

/* --- diff_gen.c --- */
struct gen {
	uint64_t seed;
	const char *filter;		/* mnemonic; NULL: all */
	const struct cpu_model *model;
	bool wide;			/* the case is 64-bit code */
	struct rows {
		unsigned row[4096], n;
		unsigned common[512], ncommon;	/* those that compilers use most */
	} rows[2];			/* of 32-bit code, of 64-bit code */
	uint32_t tried[2][4096];	/* how often */
	unsigned base;			/* register that a sequence's accesses share; INSN_REG_NONE: each has its own */
	uint64_t base_value;
	uint64_t slot_va;
	bool writable;			/* the case's slot is */
	struct { uint8_t b[16]; } vector[512], x87[64];		/* values, new for each batch */
};
void gen_init(struct gen *g);		/* collects the rows that can run in user mode */
static inline uint64_t gen_u64(struct gen *g)
{
	uint64_t z = g->seed += 0x9e3779b97f4a7c15ull;
	z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9ull;
	z = (z ^ z >> 27) * 0x94d049bb133111ebull;
	return z ^ z >> 31;
}
static inline unsigned gen_below(struct gen *g, unsigned n) { return (unsigned)((gen_u64(g) >> 32) * n >> 32); }
static inline bool gen_one_in(struct gen *g, unsigned n) { return gen_below(g, n) == 0; }
/* A single instruction, or a sequence, of 64-bit or 32-bit code, in the slot of that index. */
void gen_case(struct gen *g, unsigned slot, bool sequence, bool wide, struct diff_case *c, struct diff_state *in);

/* --- diff_value.c --- */
void gen_values(struct gen *g);		/* the batch's */
uint64_t gen_int(struct gen *g);
void gen_fpu(struct gen *g, uint8_t *fpu);
void gen_memory(struct gen *g, uint8_t *p, unsigned n);
void gen_stack(struct gen *g, uint8_t *p);

/* --- diff_rows.c --- */
/* NULL: the row can be tried in this mode. Else why not. */
const char *row_exempt(const struct cpu_model *model, const struct x86_opcode *r, bool wide);
/* Prints the rows that neither mode tries, and why. Returns how many rows should have been tried and were not. */
unsigned rows_report(const struct gen *g, bool print);

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
