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

/* Code at CODE is written through one address or another before it is watched, called, and written through both: each time
 * the call must see it. */
#define CODE 0x100000u
enum { LOW_FIRST = 1, FLUSH = 2, HIGH_TOO = 4 };

static unsigned put(uint8_t *p, const void *bytes, unsigned n)
{
	memcpy(p, bytes, n);
	return n;
}

static unsigned put_store(uint8_t *p, bool high, uint8_t value)
{
	const uint8_t store[] = { 0xc7, high ? 0x43 : 0x41, 1, value, 0, 0, 0 };	/* mov dword [rcx or rbx + 1], value */

	return put(p, store, sizeof store);
}

static void writers_program(uint8_t *p, unsigned how)
{
	static const uint8_t rbx[] = { 0x48, 0xbb }, flush[] = { 0x0f, 0x20, 0xd8, 0x0f, 0x22, 0xd8 };
	static const uint8_t call_esi[] = { 0xff, 0xd1, 0x89, 0xc6 }, call_edi[] = { 0xff, 0xd1, 0x89, 0xc7 }, call_hlt[] = { 0xff, 0xd1, 0xf4 };
	const uint64_t high = HIGH + CODE;

	p += put(p, rbx, sizeof rbx);
	p += put(p, &high, sizeof high);
	if (how & LOW_FIRST)
		p += put_store(p, false, 1);
	if (how & FLUSH)
		p += put(p, flush, sizeof flush);
	if (how & HIGH_TOO)
		p += put_store(p, true, 1);
	p += put(p, call_esi, sizeof call_esi);
	p += put_store(p, how & LOW_FIRST, 2);
	p += put(p, call_edi, sizeof call_edi);
	p += put_store(p, !(how & LOW_FIRST), 3);
	p += put(p, call_hlt, sizeof call_hlt);
}

static void test_writers_of_code(void **state)
{
	static const uint8_t code[] = { 0xb8, 1, 0, 0, 0, 0xc3 };	/* mov eax, 1; ret */

	for (unsigned how = 1; how < 8; how++) {
		struct machine m;
		struct x86_state s;

		machine_init(&m, false);
		memcpy(ram(&m, CODE), code, sizeof code);
		writers_program(ram(&m, PAGE), how);
		run_at(&m, PAGE, CODE, &s);
		assert_int_equal(s.activity, ACTIVITY_HALTED);
		assert_int_equal(s.gpr[REG_RSI], 1);
		assert_int_equal(s.gpr[REG_RDI], 2);
		assert_int_equal(s.gpr[REG_RAX], 3);
		machine_fini(&m);
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_branches_out), cmocka_unit_test(test_branches_out_interpreter),
		cmocka_unit_test(test_layout), cmocka_unit_test(test_writers_of_code),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
