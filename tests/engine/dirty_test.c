/*
 * The dirty log while vCPUs write: a mirror that copies what each fetch names must end up as the guest's memory,
 * as migration needs it.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>

#include "machine.h"

#define RAM_BYTES (4u << 20)
#define PAGES (RAM_BYTES / GUEST_PAGE_SIZE)
#define TABLES 0x10000u		/* identity, 2 MiB pages */
#define CODE 0x100000u
#define DATA 0x200000u
#define DATA_PAGES 64u
#define VCPUS 2u
#define FETCHES 100

struct mirrored {
	struct map *map;
	struct cpu_model *model;
	struct engine *en;
	struct vcpu *v[VCPUS];
	pthread_t thread[VCPUS];
	atomic_bool stop;
	uint8_t mirror[RAM_BYTES] __attribute__((aligned(8)));
};

struct runner { struct mirrored *m; struct vcpu *v; };

/* RBX: where this vCPU's first cell is. Each round writes its number to the next page's cell, by a plain store, a
 * locked one and a string one, and then to the first page's second cell, so that one page is never left alone. */
__asm__(".pushsection .rodata\n"
	"writer:\n"
	"	inc %rcx\n"
	"	imul $7, %rcx, %rdx\n"
	"	and $63, %edx\n"
	"	shl $12, %edx\n"
	"	mov %rcx, (%rbx,%rdx)\n"
	"	lock addq $1, 64(%rbx,%rdx)\n"
	"	lea 128(%rbx,%rdx), %rdi\n"
	"	mov %rcx, %rax\n"
	"	stosq\n"
	"	mov %rcx, 256(%rbx)\n"
	"	jmp writer\n"
	"writer_end:\n"
	".popsection\n");
extern const char writer[], writer_end[];

static void state_prepare(struct mirrored *m, unsigned i)
{
	struct x86_state s;

	engine_soft.get_state(m->v[i], &s);
	s.cr0 = CR0_PE | CR0_PG | CR0_NE | CR0_ET | CR0_WP | CR0_MP;
	s.cr3 = TABLES;
	s.cr4 = CR4_PAE;
	s.efer = EFER_LME | EFER_LMA;
	for (unsigned k = 0; k < SEG_COUNT; k++)
		s.seg[k] = (struct x86_segment){ .limit = 0xffffffff, .selector = 0x10, .attr = 0xc093 };
	s.seg[SEG_CS].selector = 8;
	s.seg[SEG_CS].attr = 0xa09b;
	s.rip = CODE;
	s.rflags = FLAG_FIXED;
	s.gpr[REG_RBX] = DATA + 8 * i;
	s.activity = ACTIVITY_RUNNING;
	engine_soft.set_state(m->v[i], &s);
}

static struct mirrored *machine_new(bool interpret_only)
{
	struct cpu_model_config mc = { .name = "x86-64-v2", .tsc_hz = 1000000000 };
	struct engine_config cfg = { .vcpus = VCPUS, .tsc_hz = 1000000000, .interpret_only = interpret_only };
	struct mirrored *m = calloc(1, sizeof *m);

	assert_non_null(m);
	m->map = map_new();
	assert_non_null(m->map);
	assert_int_equal(map_add_ram(m->map, 0, RAM_BYTES, NULL), 0);
	assert_int_equal(cpu_model_new(&m->model, &mc, NULL), 0);
	cfg.map = m->map;
	cfg.model = m->model;
	assert_int_equal(engine_soft.create(&m->en, &cfg, NULL), 0);
	tables_identity(m->map, TABLES);
	assert_true(map_write(m->map, CODE, writer, (size_t)(writer_end - writer)));
	for (unsigned i = 0; i < VCPUS; i++) {
		struct vcpu_wiring w = vcpu_quiet;
		w.index = i;
		assert_int_equal(engine_soft.vcpu_create(&m->v[i], m->en, &w, NULL), 0);
		state_prepare(m, i);
	}
	return m;
}

static void machine_free(struct mirrored *m)
{
	for (unsigned i = 0; i < VCPUS; i++)
		engine_soft.vcpu_destroy(m->v[i]);
	engine_soft.destroy(m->en);
	cpu_model_free(m->model);
	map_free(m->map);
	free(m);
}

static void *vcpu_main(void *opaque)
{
	struct runner *r = opaque;

	while (!atomic_load(&r->m->stop))
		engine_soft.run(r->v, NULL);
	free(r);
	return NULL;
}

static void machine_start(struct mirrored *m)
{
	for (unsigned i = 0; i < VCPUS; i++) {
		struct runner *r = malloc(sizeof *r);
		assert_non_null(r);
		*r = (struct runner){ m, m->v[i] };
		assert_int_equal(pthread_create(&m->thread[i], NULL, vcpu_main, r), 0);
	}
}

static void machine_stop(struct mirrored *m)
{
	atomic_store(&m->stop, true);
	for (unsigned i = 0; i < VCPUS; i++) {
		engine_soft.kick(m->v[i]);
		pthread_join(m->thread[i], NULL);
	}
}

static volatile uint64_t *cell(struct mirrored *m, uint64_t gpa) { return map_ptr(m->map, gpa, 8, false); }

static bool bit_of(const uint64_t *bits, uint64_t gpa)
{
	uint64_t page = gpa / GUEST_PAGE_SIZE;

	return bits[page / 64] >> (page % 64) & 1;
}

/* Fetches once and copies the pages it names. Cells are aligned words: no copy can be torn in a way that matters,
 * as a page written while it is copied is named again. */
static void mirror_update(struct mirrored *m)
{
	uint64_t bits[(PAGES + 63) / 64];

	map_dirty_fetch(m->map, bits);
	for (uint64_t gpa = 0; gpa < RAM_BYTES; gpa += GUEST_PAGE_SIZE) {
		volatile uint64_t *from = cell(m, gpa);
		uint64_t *to = (uint64_t *)(m->mirror + gpa);
		for (unsigned i = 0; bit_of(bits, gpa) && i < GUEST_PAGE_SIZE / 8; i++)
			to[i] = from[i];
	}
}

static void mirror_run(bool interpret_only)
{
	struct mirrored *m = machine_new(interpret_only);

	for (unsigned i = 0; i < RAM_BYTES / 8; i++)
		((uint64_t *)m->mirror)[i] = cell(m, 0)[i];
	map_dirty_reset(m->map);
	machine_start(m);
	while (!*cell(m, DATA + 256) || !*cell(m, DATA + 256 + 8))
		sched_yield();
	for (unsigned i = 0; i < FETCHES; i++)
		mirror_update(m);
	machine_stop(m);
	mirror_update(m);
	for (uint64_t gpa = 0; gpa < RAM_BYTES; gpa += 8)
		if (*cell(m, gpa) != *(uint64_t *)(m->mirror + gpa))
			fail_msg("%#llx: the guest has %llu, the mirror %llu", (unsigned long long)gpa,
				 (unsigned long long)*cell(m, gpa), *(unsigned long long *)(m->mirror + gpa));
	machine_free(m);
}

/* What changed between two fetches is in the second. */
static void rearm_run(bool interpret_only)
{
	struct mirrored *m = machine_new(interpret_only);
	uint64_t bits[(PAGES + 63) / 64];

	machine_start(m);
	for (unsigned i = 0; i < FETCHES; i++) {
		uint64_t before;
		map_dirty_fetch(m->map, bits);
		before = *cell(m, DATA + 256);
		while (*cell(m, DATA + 256) == before)
			sched_yield();
		map_dirty_fetch(m->map, bits);
		assert_true(bit_of(bits, DATA));
		assert_false(bit_of(bits, 0x3ff000));
	}
	machine_stop(m);
	map_dirty_reset(m->map);
	map_dirty_fetch(m->map, bits);
	for (unsigned i = 0; i < PAGES / 64; i++)
		assert_int_equal(bits[i], 0);
	machine_free(m);
}

static void test_mirror_interpreted(void **state) { mirror_run(true); }
static void test_mirror_translated(void **state) { mirror_run(false); }
static void test_rearm_interpreted(void **state) { rearm_run(true); }
static void test_rearm_translated(void **state) { rearm_run(false); }

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_mirror_interpreted), cmocka_unit_test(test_mirror_translated),
		cmocka_unit_test(test_rearm_interpreted), cmocka_unit_test(test_rearm_translated),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
