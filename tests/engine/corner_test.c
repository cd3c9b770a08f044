/*
 * What seldom happens: branches out of the address space, and what is asked of a vCPU while it looks at something else.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "engine/soft/soft.h"
#include "machine.h"

#define RAM_BYTES (4u << 20)
#define TABLES 0x10000u
#define PAGE 0x200000u			/* its last bytes hold the code, the next page HLTs */
#define STACK 0x300000u
#define HIGH (0x0000800000000000ull - PAGE)	/* where the same 2 MiB are mapped again: nothing lies behind them */

static void tables_build(struct machine *m)
{
	uint64_t *t = (uint64_t *)ram(m, TABLES);

	t[0] = (TABLES + 0x1000) | 7;
	t[255] = (TABLES + 0x3000) | 7;
	t[512] = (TABLES + 0x2000) | 7;
	t[1024] = 0x87;
	t[1025] = PAGE | 0x87;
	t[3 * 512 + 511] = (TABLES + 0x4000) | 7;
	t[4 * 512 + 511] = 0x87;
}

static void machine_init(struct machine *m, bool interpret_only)
{
	machine_open(m, "x86-64-v2", RAM_BYTES, (struct engine_config){ .interpret_only = interpret_only });
	tables_build(m);
	memset(ram(m, PAGE), 0xf4, 0x1000);
}

/* In the kernel of long mode, with no IDT: a fault shuts down where it happened. */
static void run_at(struct machine *m, uint64_t rip, uint64_t rcx, struct x86_state *s)
{
	enum exit_reason why;

	engine_soft.get_state(m->v, s);
	s->cr0 = CR0_PE | CR0_PG | CR0_NE | CR0_ET | CR0_WP;
	s->cr3 = TABLES;
	s->cr4 = CR4_PAE | CR4_OSFXSR;
	s->efer = EFER_LME | EFER_LMA;
	for (unsigned i = 0; i < SEG_COUNT; i++)
		s->seg[i] = (struct x86_segment){ .limit = ~0u, .selector = 0x10, .attr = 0xc093 };
	s->seg[SEG_CS] = (struct x86_segment){ .limit = ~0u, .selector = 8, .attr = 0xa09b };
	s->idtr = (struct x86_table){ 0, 0 };
	s->rip = rip;
	s->rflags = FLAG_FIXED;
	s->gpr[REG_RSP] = STACK;
	s->gpr[REG_RCX] = rcx;
	s->activity = ACTIVITY_RUNNING;
	engine_soft.set_state(m->v, s);
	do
		why = engine_soft.run(m->v, NULL);
	while (why == EXIT_KICKED);
	engine_soft.get_state(m->v, s);
}

/* Direct branches out of the lower half fault before they begin: not yet linked, and linked by the other mapping, from
 * where the same bytes lead to a HLT. What only goes on there faults there. */
static void branches_out(bool interpret_only)
{
	static const struct { uint8_t code[6]; unsigned n; uint64_t rcx; bool goes_on; } branches[] = {
		{ { 0xe9, 0x20, 0, 0, 0 }, 5, 5, false },		/* jmp */
		{ { 0xeb, 0x20 }, 2, 5, false },
		{ { 0x0f, 0x85, 0x20, 0, 0, 0 }, 6, 5, false },		/* jnz */
		{ { 0x75, 0x20 }, 2, 5, false },
		{ { 0xe8, 0x20, 0, 0, 0 }, 5, 5, false },		/* call */
		{ { 0xe2, 0x20 }, 2, 5, false },			/* loop */
		{ { 0xe3, 0x20 }, 2, 0, false },			/* jrcxz */
		{ { 0x74, 0x20, 0x90, 0x90, 0x90 }, 5, 5, true },	/* jz, not taken */
	};

	for (unsigned i = 0; i < 2 * sizeof branches / sizeof *branches; i++) {
		unsigned k = i / 2;
		uint64_t at = PAGE - (branches[k].goes_on ? branches[k].n : 16), rcx = branches[k].rcx;
		struct machine m;
		struct x86_state s;

		machine_init(&m, interpret_only);
		memcpy(ram(&m, at), branches[k].code, branches[k].n);
		for (unsigned warm = 0; warm < i % 2 * 3; warm++) {
			run_at(&m, at, rcx, &s);
			assert_int_equal(s.activity, ACTIVITY_HALTED);
		}
		run_at(&m, HIGH + at, rcx, &s);
		assert_int_equal(s.activity, ACTIVITY_SHUTDOWN);
		assert_int_equal(s.rip, branches[k].goes_on ? HIGH + PAGE : HIGH + at);
		assert_int_equal(s.gpr[REG_RSP], STACK);
		assert_int_equal(s.gpr[REG_RCX], rcx);
		machine_fini(&m);
	}
}

static void test_branches_out(void **state) { branches_out(false); }
static void test_branches_out_interpreter(void **state) { branches_out(true); }

/* Who makes code watched serves what others ask of the TLB, in the middle of a block: a new layout is not done then. */
static void test_layout(void **state)
{
	static const struct io_ops ops = { 0 };
	struct machine m;
	struct x86_state s;

	machine_init(&m, false);
	run_at(&m, PAGE, 0, &s);
	assert_int_equal(atomic_load(&m.v->request), 0);
	assert_non_null(map_add_mmio(m.map, RAM_BYTES, 0x1000, &ops, NULL, "test"));
	vcpu_request(m.v, REQUEST_DROP_WRITES);
	vcpu_service(m.v);
	assert_int_equal(atomic_load(&m.v->request), REQUEST_LAYOUT);
	run_at(&m, PAGE, 0, &s);
	assert_int_equal(atomic_load(&m.v->request), 0);
	machine_fini(&m);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_branches_out), cmocka_unit_test(test_branches_out_interpreter),
		cmocka_unit_test(test_layout),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
