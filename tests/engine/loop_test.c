/*
 * Loops whose body repeats no checks (translate_loop.c).
 *
 * Random loops walk over scattered.h's pages: up, down and standing still, by pointers and by indices that are any number,
 * in steps that hit the pages' ends and that jump over them, with accesses and branches between. Both engines must
 * agree on everything. Then loops that write themselves, and one whose page is moved while it runs.
 */
#include <pthread.h>
#include <sched.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "scattered.h"

#define PROGRAMS 6000

static const uint8_t pointers[] = { REG_RBX, REG_RBP, REG_RSP, REG_R8, REG_R14, REG_R9, REG_R10 };
static const uint8_t indices[] = { REG_RSI, REG_RDI, REG_R15, REG_R11 };
static const uint8_t values[] = { REG_RAX, REG_RCX, REG_RDX };

#define PICK(p, from) ((from)[rnd(p, sizeof (from))])

/* In a program that crosses into the next page, nothing comes near to what of it lies there: it would never end. */
static uint64_t pick_address(struct program *p, bool crosses)
{
	unsigned page = rnd(p, 3) ? rnd(p, 2) : rnd(p, PAGES);

	switch (rnd(p, 16)) {
	case 0: return TOP_VA + 4096 - rnd(p, 256);
	case 1: return rnd(p, 512);
	case 2: return 0x0000800000000000ull - rnd(p, 64);
	case 3: return crosses ? VA + 4096 : VA + page * 4096 + rnd(p, 4096);
	default: return VA + page * 4096 + 4096 - rnd(p, 256);
	}
}

static uint64_t pick_index(struct program *p)
{
	static const uint64_t starts[] = { 0, 1ull << 63, 1ull << 62, 3ull << 62, 1ull << 60, 0xffffffff };
	uint64_t at = starts[rnd(p, 6)];

	return rnd(p, 4) ? at + rnd(p, 1024) - 512 : at * rnd(p, 7) + (uint64_t)rnd(p, 1u << 20) * 8;
}

static void op_reg(struct program *p, unsigned opcode, unsigned reg, unsigned rm)
{
	put(p, 0x48 | (reg >> 3) << 2 | rm >> 3), put(p, opcode), put(p, 0xc0 | (reg & 7) << 3 | (rm & 7));
}

/* add reg, n */
static void add_imm(struct program *p, unsigned reg, int32_t n)
{
	put(p, 0x48 | reg >> 3), put(p, 0x81), put(p, 0xc0 | (reg & 7)), put32(p, (uint32_t)n);
}

/* What an access of a walk adds to the opcode: index INSN_REG_NONE for none. */
struct walk { unsigned base, index, scale; bool fs; int32_t step; };

static void prefixed(struct program *p, const struct walk *w, unsigned rex, unsigned reg)
{
	put(p, rex | (reg >> 3) << 2 | (w->index != INSN_REG_NONE ? (w->index >> 3) << 1 : 0) | w->base >> 3);
}

static void operand(struct program *p, const struct walk *w, unsigned reg, int32_t disp)
{
	bool sib = w->index != INSN_REG_NONE || (w->base & 7) == 4;

	put(p, 0x80 | (reg & 7) << 3 | (sib ? 4 : w->base & 7));
	if (sib)
		put(p, w->scale << 6 | (w->index == INSN_REG_NONE ? 4 : w->index & 7) << 3 | (w->base & 7));
	put32(p, (uint32_t)disp);
}

static void access_insn(struct program *p, const struct walk *w)
{
	static const uint8_t ops[] = { 0x8b, 0x89, 0x8b, 0x89, 0x8a, 0x88, 0x03, 0x01, 0x39, 0x13, 0x11, 0x87 };
	unsigned kind = rnd(p, 8), reg = kind ? PICK(p, values) : rnd(p, 8);
	int32_t disp = rnd(p, 3) ? (int32_t)rnd(p, 64) - 32 : ((int32_t)rnd(p, 8) - 4) * 16;

	if (w->fs)
		put(p, 0x64);
	if (kind == 1)
		put(p, 0x66);
	prefixed(p, w, kind == 2 ? 0x48 : 0x40, reg);
	if (!kind)
		put(p, 0x0f), put(p, rnd(p, 4) ? 0x10 | rnd(p, 2) : 0x28 | rnd(p, 2));	/* movups, movaps */
	else
		put(p, ops[rnd(p, sizeof ops)]);
	operand(p, w, reg, disp);
}

/* mov rdx, [..]: flags stay. */
static void load_insn(struct program *p, const struct walk *w)
{
	if (w->fs)
		put(p, 0x64);
	prefixed(p, w, 0x48, REG_RDX);
	put(p, 0x8b);
	operand(p, w, REG_RDX, (int32_t)rnd(p, 64) - 32);
}

static int32_t pick_step(struct program *p)
{
	static const int16_t steps[] = { 0, 0, 1, 2, 4, 8, 8, 16, 16, 64, 24, 128, 256, 264, 1280, 4096 };
	int32_t n = steps[rnd(p, 16)];

	return rnd(p, 3) ? n : -n;
}

/* A walk starts where it says: base and index are set so. */
static struct walk walk_make(struct program *p, bool crosses)
{
	struct walk w = { .base = PICK(p, pointers), .index = INSN_REG_NONE, .fs = !rnd(p, 8), .step = pick_step(p) };
	uint64_t at = pick_address(p, crosses), index;

	if (w.fs)
		at -= FS_BASE;
	if (w.base != REG_RSP && !rnd(p, 6)) {		/* by one register alone */
		w.index = w.base;
		w.scale = rnd(p, 4);
		at = (uint64_t)((int64_t)at / (1 + (1 << w.scale)));
	} else if (!rnd(p, 3)) {
		w.index = PICK(p, indices);
		w.scale = rnd(p, 4);
		index = pick_index(p);
		mov_imm(p, w.index, index);
		at -= index << w.scale;
	}
	mov_imm(p, w.base, at);
	return w;
}

static void step_insn(struct program *p, const struct walk *w)
{
	unsigned reg = w->index != INSN_REG_NONE && rnd(p, 3) ? w->index : w->base;

	if (!w->step)
		return;
	if (w->index != INSN_REG_NONE && !rnd(p, 8))
		add_imm(p, reg == w->base ? w->index : w->base, w->step);
	if (rnd(p, 8))
		add_imm(p, reg, w->step);
	else
		op_reg(p, 0x01, REG_RAX, reg);		/* by who knows how much */
}

static void other_insn(struct program *p, const struct walk *w, unsigned start)
{
	unsigned a = PICK(p, values), b = PICK(p, values);

	switch (rnd(p, 8)) {
	case 0: op_reg(p, 0x39, a, b); break;			/* cmp */
	case 1: put(p, 0x0f), put(p, 0x90 | rnd(p, 16)), put(p, 0xc0 | a); break;	/* setcc */
	case 2: put(p, 0x48), put(p, 0x0f), put(p, 0x40 | rnd(p, 16)), put(p, 0xc0 | a << 3 | b); break;	/* cmovcc */
	case 3: op_reg(p, 0x11, a, b); break;			/* adc */
	case 4: op_reg(p, 0x89, w->base, PICK(p, pointers)); break;	/* mov pointer, pointer */
	case 5: put(p, 0x48), put(p, 0x8b), put(p, 0x05 | a << 3), put32(p, start + rnd(p, 32) - (p->n + 4)); break;
	case 6: put(p, 0x83), put(p, 0xf8 | a), put(p, rnd(p, 256)), put(p, 0x72), put(p, 0); break;	/* cmp, jb */
	default: op_reg(p, 0x29, a, b); break;			/* sub */
	}
}

/* Twice the same loop, after which the registers show how far it came. */
static void program_make(struct program *p, uint64_t seed)
{
	struct walk walks[3];
	unsigned outer, top, n;
	bool crosses;

	memset(p->b, 0x90, sizeof p->b);
	p->seed = seed * 0x9e3779b97f4a7c15ull + 1;
	crosses = !rnd(p, 4);
	p->n = crosses ? 4096 - 64 : 0;
	mov_imm(p, REG_R13, 2);
	outer = p->n;
	n = 1 + rnd(p, 3);
	for (unsigned i = 0; i < n; i++)
		walks[i] = walk_make(p, crosses);
	mov_imm(p, REG_R12, 1 + rnd(p, crosses ? 12 : rnd(p, 2) ? 30 : 700));
	top = p->n;
	put(p, 0x31), put(p, 0xc9);				/* xor ecx, ecx: flags are dead */
	for (unsigned i = 2 + rnd(p, 6); i; i--)
		if (rnd(p, 4))
			access_insn(p, &walks[rnd(p, n)]);
		else
			other_insn(p, &walks[rnd(p, n)], top);
	for (unsigned i = 0; i < n; i++)
		step_insn(p, &walks[i]);
	put(p, 0x49), put(p, 0xff), put(p, 0xcc);		/* dec r12 */
	if (!rnd(p, 3))
		load_insn(p, &walks[rnd(p, n)]);
	put(p, 0x0f), put(p, 0x85), put32(p, top - (p->n + 4));
	if (rnd(p, 2)) {
		load_insn(p, &walks[rnd(p, n)]);
		put(p, 0x0f), put(p, 0x90 | rnd(p, 16)), put(p, 0xc0);	/* setcc al */
	}
	for (unsigned i = rnd(p, 4); i; i--)
		access_insn(p, &walks[rnd(p, n)]);
	put(p, 0x49), put(p, 0xff), put(p, 0xcd);		/* dec r13 */
	put(p, 0x0f), put(p, 0x85), put32(p, outer - (p->n + 4));
	put(p, 0xf4);
}

static void test_loops(void **state)
{
	static struct program p;
	struct machine a, b;
	struct x86_state sa, sb;
	unsigned ends[2] = { 0, 0 };

	machine_init(&a, true);
	machine_init(&b, false);
	for (unsigned i = 1; i <= PROGRAMS; i++) {
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

/* mov rax, [rbx + rsi] ; add rcx, rax ; add rsi, step: from one page to the next, and RSI over the end of signed numbers. */
static void wrapper_make(struct program *p, unsigned to_wrap, unsigned to_end, int32_t step)
{
	uint64_t index = step > 0 ? (1ull << 63) - to_wrap : (1ull << 63) + to_wrap;
	unsigned top;

	memset(p->b, 0x90, sizeof p->b);
	p->n = 0;
	mov_imm(p, REG_RSI, index);
	mov_imm(p, REG_RBX, (step > 0 ? VA + 4096 - to_end : VA + 4096 + to_end) - index);
	mov_imm(p, REG_R12, 24);
	mov_imm(p, REG_RCX, 0);
	put(p, 0xeb), put(p, 0);
	top = p->n;
	put(p, 0x48), put(p, 0x8b), put(p, 0x04), put(p, 0x33);
	op_reg(p, 0x01, REG_RAX, REG_RCX);
	add_imm(p, REG_RSI, step);
	put(p, 0x49), put(p, 0xff), put(p, 0xcc);		/* dec r12 */
	put(p, 0x0f), put(p, 0x85), put32(p, top - (p->n + 4));
	put(p, 0xf4);
}

static void test_index_wraps(void **state)
{
	static struct program p;
	struct machine a, b;
	struct x86_state sa, sb;

	machine_init(&a, true);
	machine_init(&b, false);
	for (unsigned i = 0; i < 2 * 24 * 24; i++) {
		wrapper_make(&p, i / 2 % 24 * 8, i / 48 * 8, i & 1 ? -16 : 16);
		run(&a, &p, &sa);
		run(&b, &p, &sb);
		assert_int_equal(sa.activity, ACTIVITY_HALTED);
		compare(i, &a, &b, &sa, &sb);
	}
	machine_fini(&a);
	machine_fini(&b);
}

/* A loop that copies another version of itself over itself, where it is mapped a second time. */
static void copier_make(struct program *p, unsigned round, unsigned lead)
{
	unsigned top;

	memset(p->b, 0x90, sizeof p->b);
	p->n = 4096;
	mov_imm(p, REG_RSI, VA + 4096 - lead);
	mov_imm(p, REG_RBX, VA + PAGE_CODE * 4096 + 128 - lead);
	mov_imm(p, REG_R12, 128 + 2 * lead);
	mov_imm(p, REG_RAX, 0);
	while (p->n < 4096 + 128)
		put(p, 0x90);
	top = p->n;
	put(p, 0x48), put(p, 0x83), put(p, 0xc0), put(p, round);	/* add rax, round */
	put(p, 0x8a), put(p, 0x16);				/* mov dl, [rsi] */
	put(p, 0x88), put(p, 0x13);				/* mov [rbx], dl */
	add_imm(p, REG_RSI, 1);
	add_imm(p, REG_RBX, 1);
	put(p, 0x49), put(p, 0xff), put(p, 0xcc);		/* dec r12 */
	put(p, 0x0f), put(p, 0x85), put32(p, top - (p->n + 4));
	put(p, 0xf4);
}

static void copier_run(struct machine *m, unsigned lead, struct x86_state *s)
{
	static struct program old, new;
	static const uint8_t jump[] = { 0xe9, 0xfb, 0x0f, 0, 0 };	/* to the next page */

	copier_make(&old, 1, lead);
	copier_make(&new, 2, lead);
	memcpy(old.b, jump, sizeof jump);
	map_write(m->map, CODE, old.b, old.n);
	tables_build(m);
	map_write(m->map, GPA(0), new.b + 4096 + 128 - 4096, 4096);
	map_write(m->map, GPA(1), new.b + 4096 + 128, sizeof new.b - 4096 - 128);
	engine_soft.get_state(m->v, s);
	state_prepare(s);
	engine_soft.set_state(m->v, s);
	for (unsigned i = 0; i < 10; i++)
		if (engine_soft.run(m->v, NULL) != EXIT_KICKED)
			break;
	engine_soft.get_state(m->v, s);
}

static void test_loop_copies_over_itself(void **state)
{
	struct machine a, b;
	struct x86_state sa, sb;

	machine_init(&a, true);
	machine_init(&b, false);
	for (unsigned lead = 0; lead < 128; lead++) {
		copier_run(&a, lead, &sa);
		copier_run(&b, lead, &sb);
		assert_int_equal(sa.activity, ACTIVITY_HALTED);
		assert_true(sa.gpr[REG_RAX] > sa.gpr[REG_R12] + 128);
		compare(lead, &a, &b, &sa, &sb);
	}
	machine_fini(&a);
	machine_fini(&b);
}

/* --- a page that is moved --- */

#define HANDLER (CODE + 0x800)
#define IDT 0x30000u
#define GDT 0x31000u
#define VECTOR 0x20

struct moved { struct machine m; atomic_bool interrupt, done; };

static void *moved_main(void *opaque)
{
	struct moved *t = opaque;
	struct x86_state s;

	do {
		engine_soft.run(t->m.v, NULL);
		if (atomic_exchange(&t->interrupt, false))
			t->m.irq = VECTOR;
		engine_soft.get_state(t->m.v, &s);
	} while (s.activity == ACTIVITY_RUNNING && !atomic_load(&t->done));
	return NULL;
}

/* 1: inc qword [rdi] ; cmp qword [rbx], 0 ; je 1b ; hlt. The handler: invlpg [rbx] ; iretq. */
static void moved_prepare(struct moved *t)
{
	static const uint8_t code[] = { 0x48, 0xff, 0x07, 0x48, 0x83, 0x3b, 0x00, 0x74, 0xf7, 0xf4 };
	static const uint8_t handler[] = { 0x0f, 0x01, 0x3b, 0x48, 0xcf };
	uint64_t gdt[2] = { 0, 0x00af9b000000ffffull };
	uint64_t gate[2] = { (HANDLER & 0xffffull) | 8u << 16 | 0x8e00ull << 32 | (uint64_t)(HANDLER >> 16) << 48, 0 };
	struct x86_state s;

	machine_init(&t->m, false);
	tables_build(&t->m);
	map_write(t->m.map, CODE, code, sizeof code);
	map_write(t->m.map, HANDLER, handler, sizeof handler);
	map_write(t->m.map, GDT, gdt, sizeof gdt);
	map_write(t->m.map, IDT + 16 * VECTOR, gate, sizeof gate);
	((uint64_t *)ram(&t->m, TABLES))[3072 + (IDT >> 12)] = IDT | 3;
	((uint64_t *)ram(&t->m, TABLES))[3072 + (GDT >> 12)] = GDT | 3;
	engine_soft.get_state(t->m.v, &s);
	state_prepare(&s);
	s.rflags |= FLAG_IF;
	s.idtr = (struct x86_table){ .base = IDT, .limit = 0xfff };
	s.gdtr = (struct x86_table){ .base = GDT, .limit = 15 };
	s.gpr[REG_RBX] = VA;
	s.gpr[REG_RDI] = VA + 4096;
	s.gpr[REG_RSP] = VA + 7 * 4096 + 0x800;
	engine_soft.set_state(t->m.v, &s);
}

/* The loop would go on for ever if it kept to the page that it has checked once. */
static void test_page_moves(void **state)
{
	static struct moved t;
	volatile uint64_t *rounds, before;
	uint64_t one = 1;
	pthread_t thread;

	moved_prepare(&t);
	map_write(t.m.map, GPA(3), &one, 8);
	rounds = (volatile uint64_t *)ram(&t.m, GPA(1));
	assert_int_equal(pthread_create(&thread, NULL, moved_main, &t), 0);
	for (before = *rounds; *rounds < before + 1000; )
		sched_yield();
	((volatile uint64_t *)ram(&t.m, TABLES))[1536] = GPA(3) | 3;
	atomic_store(&t.interrupt, true);
	engine_soft.kick(t.m.v);
	pthread_join(thread, NULL);
	machine_fini(&t.m);
}

int main(void)
{
	const struct CMUnitTest tests[] = { cmocka_unit_test(test_loops), cmocka_unit_test(test_index_wraps),
					    cmocka_unit_test(test_loop_copies_over_itself), cmocka_unit_test(test_page_moves) };

	return cmocka_run_group_tests(tests, NULL, NULL);
}
