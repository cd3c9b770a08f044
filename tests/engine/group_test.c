/*
 * Accesses that share one check (translate_group.c), on pages that lie elsewhere in memory than they seem to.
 *
 * Random programs work on scattered.h's pages through few registers, close to the pages' ends, and are run on both
 * engines: registers, flags, memory, dirty bits, and where a fault stopped them.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "scattered.h"

#define PROGRAMS 8000
#define PROGRAMS_LONG 600	/* after them: such as make long blocks */
#define ENDLESS 7150	/* this one writes into its own code, and then loops for ever */

static unsigned pick_base(struct program *p)
{
	static const uint8_t regs[] = { REG_RBX, REG_RBX, REG_RBP, REG_RSP, REG_R8, REG_R14, REG_R10, REG_R11 };

	return regs[rnd(p, sizeof regs)];
}
static unsigned pick_value(struct program *p)
{
	static const uint8_t regs[] = { REG_RAX, REG_RCX, REG_RDX, REG_R9, REG_R15 };

	return regs[rnd(p, sizeof regs)];
}

static uint64_t pick_address(struct program *p)
{
	unsigned page = rnd(p, 2) ? rnd(p, 2) : rnd(p, PAGES);

	switch (rnd(p, 24)) {
	case 0: return 0x0000800000000000ull - rnd(p, 64);
	case 1: return 0 - (uint64_t)rnd(p, 64);
	case 2: return (VA ^ 1ull << 63) + rnd(p, 4096);
	case 3: case 4: case 5: return VA + page * 4096 + 0x800;
	default: return VA + page * 4096 + 4096 - rnd(p, 160);
	}
}

/* [base + disp], REX included by the caller's choice of reg. */
static void operand(struct program *p, unsigned reg, unsigned base, int32_t disp)
{
	put(p, (rnd(p, 4) ? 0x40 : 0x80) | (reg & 7) << 3 | (base & 7));
	if ((base & 7) == 4)
		put(p, 0x24);
	if ((p->b[p->n - 1 - ((base & 7) == 4)] >> 6) == 1)
		put(p, (uint8_t)disp);
	else
		put32(p, (uint32_t)disp);
}

/* Mostly near; far ones make more than one group of one value. */
static int32_t pick_disp(struct program *p)
{
	return rnd(p, 6) ? (int32_t)rnd(p, 96) - 32 : (int32_t)rnd(p, 1200) - 600;
}

static void access_insn(struct program *p)
{
	static const uint8_t ops[] = { 0x8b, 0x89, 0x8b, 0x89, 0x8a, 0x88, 0x03, 0x01, 0x39, 0x3b };
	unsigned reg = pick_value(p), base = pick_base(p), w = rnd(p, 3);

	if (w == 2)
		put(p, 0x66);
	put(p, 0x40 | (w == 1 ? 8 : 0) | (reg & 8 ? 4 : 0) | (base & 8 ? 1 : 0));
	put(p, ops[rnd(p, sizeof ops)]);
	operand(p, reg, base, pick_disp(p));
}

static void vector_insn(struct program *p)
{
	unsigned base = pick_base(p);

	put(p, 0x40 | (base & 8 ? 1 : 0)), put(p, 0x0f), put(p, rnd(p, 2) ? 0x10 : 0x11);	/* movups */
	operand(p, rnd(p, 8), base, (int32_t)rnd(p, 96) - 32);
}

/* mov rcx, index ; op reg, [base + rcx * scale + disp], or without a base. */
static void indexed_insn(struct program *p)
{
	static const uint8_t ops[] = { 0x8b, 0x89, 0x03, 0x01, 0x39, 0x3b };
	unsigned reg = pick_value(p), base = pick_base(p), scale = rnd(p, 4), rex = 0x48 | (reg & 8 ? 4 : 0);
	bool alone = !rnd(p, 4);

	mov_imm(p, REG_RCX, alone ? pick_address(p) >> scale : (uint64_t)rnd(p, 64) - 32);
	put(p, alone ? rex : rex | base >> 3), put(p, ops[rnd(p, sizeof ops)]);
	put(p, (alone ? 0x04 : 0x44) | (reg & 7) << 3), put(p, scale << 6 | REG_RCX << 3 | (alone ? 5 : base & 7));
	if (alone)
		put32(p, rnd(p, 64) - 32);
	else
		put(p, rnd(p, 64) - 32);
}

/* and base, -16 ; movaps [base + disp]: now and then of a misaligned address. */
static void aligned_insn(struct program *p)
{
	unsigned base = pick_base(p);

	if (rnd(p, 16))
		put(p, 0x48 | base >> 3), put(p, 0x83), put(p, 0xe0 | (base & 7)), put(p, 0xf0);
	put(p, 0x40 | base >> 3), put(p, 0x0f), put(p, rnd(p, 2) ? 0x28 : 0x29);
	operand(p, rnd(p, 8), base, rnd(p, 24) ? ((int32_t)rnd(p, 8) - 3) * 16 : 8);
}

/* AH, CH, DH or BH and memory. */
static void high_byte_insn(struct program *p)
{
	static const uint8_t ops[] = { 0x88, 0x88, 0x8a, 0x00, 0x02, 0x38, 0x3a, 0x84, 0x86 };

	put(p, ops[rnd(p, sizeof ops)]);
	operand(p, 4 + rnd(p, 3), rnd(p, 2) ? REG_RBX : REG_RBP, pick_disp(p));
}

/* Moves a base by a number, to another base, or somewhere else. */
static void base_insn(struct program *p)
{
	unsigned base = pick_base(p), from = pick_base(p), rex = 0x48 | base >> 3;

	switch (rnd(p, 12)) {
	case 0: case 9: put(p, rex), put(p, 0x83), put(p, 0xc0 | (base & 7)), put(p, rnd(p, 128) - 64); break;	/* add */
	case 1: case 10: put(p, rex), put(p, 0x83), put(p, 0xe8 | (base & 7)), put(p, rnd(p, 128) - 64); break;	/* sub */
	case 2: put(p, rex), put(p, 0xff), put(p, (rnd(p, 2) ? 0xc0 : 0xc8) | (base & 7)); break;	/* inc, dec */
	case 3:		/* lea base, [from + n] */
		put(p, 0x48 | (base & 8 ? 4 : 0) | from >> 3), put(p, 0x8d);
		operand(p, base, from, (int32_t)rnd(p, 128) - 64);
		break;
	case 4: put(p, 0x48 | (from & 8 ? 4 : 0) | base >> 3), put(p, 0x89), put(p, 0xc0 | (from & 7) << 3 | (base & 7)); break;
	case 5:		/* 32 and 16 bits of it */
		if (rnd(p, 2))
			put(p, 0x66);
		put(p, 0x40 | base >> 3), put(p, 0x83), put(p, 0xc0 | (base & 7)), put(p, rnd(p, 16));
		break;
	case 6:		/* xchg, xadd: of two bases */
		put(p, 0x48 | (from & 8 ? 4 : 0) | base >> 3);
		if (rnd(p, 2))
			put(p, 0x0f), put(p, 0xc1);
		else
			put(p, 0x87);
		put(p, 0xc0 | (from & 7) << 3 | (base & 7));
		break;
	default: mov_imm(p, base, pick_address(p)); break;
	}
}

static void stack_run(struct program *p)
{
	unsigned op = rnd(p, 2) ? 0x50 : 0x58;

	for (unsigned n = 2 + rnd(p, 9); n; n--) {
		unsigned reg = pick_value(p);
		put(p, 0x40 | reg >> 3), put(p, op | (reg & 7));
	}
}

static void stack_insn(struct program *p)
{
	unsigned reg = rnd(p, 3) ? pick_value(p) : pick_base(p);

	if (!rnd(p, 4)) {
		stack_run(p);
		return;
	}

	switch (rnd(p, 10)) {
	case 8: case 9:		/* push [base + n], with or without an index: two accesses */
		reg = pick_base(p);
		if (rnd(p, 2)) {
			put(p, 0x40 | reg >> 3), put(p, 0xff), operand(p, 6, reg, (int32_t)rnd(p, 96) - 32);
		} else {
			put(p, 0xff), put(p, 0x34), put(p, 0x08 | REG_RBX);	/* [rbx + rcx] */
		}
		break;
	case 0: case 1: case 2: put(p, 0x40 | reg >> 3), put(p, 0x50 | (reg & 7)); break;
	case 3: case 4: put(p, 0x40 | reg >> 3), put(p, 0x58 | (reg & 7)); break;
	case 5: put(p, 0x6a), put(p, rnd(p, 256)); break;
	case 6: put(p, rnd(p, 4) ? 0x9c : 0xc9); break;		/* pushf, leave */
	default: put(p, 0xe8), put32(p, 0); break;		/* call the next instruction */
	}
}

/* Flags that live across accesses. */
static void flags_insn(struct program *p)
{
	if (rnd(p, 2)) {
		put(p, 0x48), put(p, 0x39), put(p, 0xc0 | rnd(p, 3) << 3 | rnd(p, 3));	/* cmp */
	} else {
		put(p, 0x0f), put(p, 0x90 | rnd(p, 16)), put(p, 0xc0 | rnd(p, 3));	/* setcc */
	}
}

/* Calls what moves a base and comes back. */
static void call_insn(struct program *p)
{
	unsigned base = pick_base(p);

	base = base == REG_RSP ? REG_RBX : base;
	put(p, 0xe8), put32(p, 2), put(p, 0xeb), put(p, 8);	/* call f; jmp over f */
	put(p, 0x48 | base >> 3), put(p, 0x81), put(p, 0xc0 | (base & 7)), put32(p, rnd(p, 3) ? rnd(p, 400) - 200 : 4096);
	put(p, 0xc3);
}

/* Jumps over an access, or not. */
static void skip_insn(struct program *p)
{
	unsigned from;

	put(p, 0x70 | rnd(p, 16)), put(p, 0);
	from = p->n;
	access_insn(p);
	p->b[from - 1] = (uint8_t)(p->n - from);
}

/* Nothing that jumps: a block may be long then. Bases stay in their page, mostly. */
static void straight_insn(struct program *p)
{
	switch (rnd(p, 8)) {
	case 0: vector_insn(p); break;
	case 1: aligned_insn(p); break;
	case 2: flags_insn(p); break;
	case 3: put(p, 0x48), put(p, 0x83), put(p, 0xc0 | REG_RBX), put(p, rnd(p, 32) - 16); break;	/* add rbx, n */
	default: access_insn(p); break;
	}
}

/* Three times the same, so that what missed at first hits later. */
static void program_make(struct program *p, uint64_t seed)
{
	unsigned loop;

	memset(p->b, 0x90, sizeof p->b);
	p->seed = seed * 0x9e3779b97f4a7c15ull + 1;
	p->n = rnd(p, 4) ? 0 : 4096 - 64;	/* or across a page's end; NOPs before */
	mov_imm(p, REG_R12, 3);
	loop = p->n;
	mov_imm(p, REG_RSP, pick_address(p));
	mov_imm(p, REG_RBX, pick_address(p));
	mov_imm(p, REG_RBP, pick_address(p));
	mov_imm(p, REG_R8, pick_address(p));
	mov_imm(p, REG_R14, pick_address(p));
	mov_imm(p, REG_R10, pick_address(p));
	mov_imm(p, REG_R11, pick_address(p));
	for (unsigned i = seed > PROGRAMS ? 160 : 0; i; i--)
		straight_insn(p);
	for (unsigned i = 4 + rnd(p, 24); i; i--)
		switch (rnd(p, 15)) {
		case 10: indexed_insn(p); break;
		case 11: aligned_insn(p); break;
		case 12: high_byte_insn(p); break;
		case 0: case 9: base_insn(p); break;
		case 1: case 2: stack_insn(p); break;
		case 3: flags_insn(p); break;
		case 4: vector_insn(p); break;
		case 13: call_insn(p); break;
		case 14: skip_insn(p); break;
		default: access_insn(p); break;
		}
	put(p, 0x49), put(p, 0xff), put(p, 0xcc);		/* dec r12 */
	put(p, 0x0f), put(p, 0x85), put32(p, loop - (p->n + 4));
	put(p, 0xf4);
}

static void test_groups(void **state)
{
	static struct program p;
	struct machine a, b;
	struct x86_state sa, sb;
	unsigned ends[2] = { 0, 0 };

	machine_init(&a, true);
	machine_init(&b, false);
	for (unsigned i = 1; i <= PROGRAMS + PROGRAMS_LONG; i++) {
		if (i == ENDLESS)
			continue;
		program_make(&p, i);
		run(&a, &p, &sa);
		run(&b, &p, &sb);
		compare(i, &a, &b, &sa, &sb);
		ends[sa.activity == ACTIVITY_HALTED]++;
	}
	assert_true(ends[0] > PROGRAMS / 20 && ends[1] > PROGRAMS / 20);
	machine_fini(&a);
	machine_fini(&b);
}

/* Runs of PUSH or POP whose slots are the last ones of one group and the first ones of another, which has accesses behind
 * the run: its check stands inside of it. */
static void test_group_begins_in_run(void **state)
{
	static struct program p;
	struct machine a, b;
	struct x86_state sa, sb;

	machine_init(&a, true);
	machine_init(&b, false);
	for (unsigned i = 0; i < 64; i++) {
		bool push = i & 1;
		int32_t far = (push ? 512 : -512) + 8 * (int32_t)(i / 2 % 16) - 64;
		memset(p.b, 0x90, sizeof p.b);
		p.n = 0;
		mov_imm(&p, REG_RSP, VA + (i & 32 ? 4096 : 0) + 0x800);
		put(&p, 0xeb), put(&p, 0);			/* a block of its own */
		put(&p, 0x48), put(&p, 0x8b), put(&p, 0x8c), put(&p, 0x24), put32(&p, (uint32_t)far);	/* mov rcx, [rsp + far] */
		for (unsigned k = 0; k < 8; k++)
			put(&p, push ? 0x51 : 0x58);		/* push rcx; pop rax */
		put(&p, 0x48), put(&p, 0x8b), put(&p, 0x54), put(&p, 0x24), put(&p, 8);		/* mov rdx, [rsp + 8] */
		put(&p, 0x48), put(&p, 0x89), put(&p, 0x44), put(&p, 0x24), put(&p, 0xf8);	/* mov [rsp - 8], rax */
		put(&p, 0x31), put(&p, 0xf6);			/* xor esi, esi */
		put(&p, 0xf4);
		run(&a, &p, &sa);
		run(&b, &p, &sb);
		assert_int_equal(sa.activity, ACTIVITY_HALTED);
		compare(i, &a, &b, &sa, &sb);
	}
	machine_fini(&a);
	machine_fini(&b);
}

int main(void)
{
	const struct CMUnitTest tests[] = { cmocka_unit_test(test_groups), cmocka_unit_test(test_group_begins_in_run) };

	return cmocka_run_group_tests(tests, NULL, NULL);
}
