/* kvmclock's records, as the host writes them: seen by who reads, by the dirty log, by nobody where they do not fit. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "cpu/msr.h"
#include "machine.h"

#define RAM_BYTES (1u << 20)
#define RECORD 0x5040u
#define STABLE 1
#define STOPPED 2

struct record {
	uint32_t version, pad;
	uint64_t tsc_timestamp, system_time;
	uint32_t mul;
	int8_t shift;
	uint8_t flags, pad2[2];
};

static struct record *record_at(struct machine *m, uint64_t gpa) { return map_ptr(m->map, gpa, sizeof(struct record), false); }

static void system_time_set(struct machine *m, uint64_t value)
{
	struct x86_state *s = malloc(sizeof *s);

	engine_soft.get_state(m->v, s);
	s->kvm_system_time = value;
	engine_soft.set_state(m->v, s);
	free(s);
}

static void test_dirty(void **state)
{
	uint64_t bits[RAM_BYTES / GUEST_PAGE_SIZE / 64] = { 0 };
	struct machine m;

	machine_open(&m, "x86-64-v2", RAM_BYTES, (struct engine_config){ 0 });
	map_dirty_reset(m.map);
	system_time_set(&m, RECORD | 1);
	map_dirty_fetch(m.map, bits);
	assert_true(bits[0] >> (RECORD / GUEST_PAGE_SIZE) & 1);
	map_dirty_fetch(m.map, bits);
	assert_false(bits[0] >> (RECORD / GUEST_PAGE_SIZE) & 1);
	engine_soft.stood_still(m.v);
	map_dirty_fetch(m.map, bits);
	assert_true(bits[0] >> (RECORD / GUEST_PAGE_SIZE) & 1);
	machine_fini(&m);
}

/* The guest is told once, and it is for the guest to take it back. */
static void test_stopped(void **state)
{
	struct machine m;
	struct record *r;

	machine_open(&m, "x86-64-v2", RAM_BYTES, (struct engine_config){ 0 });
	engine_soft.stood_still(m.v);
	r = record_at(&m, RECORD);
	assert_int_equal(r->version, 0);
	system_time_set(&m, RECORD | 1);
	assert_int_equal(r->version, 2);
	assert_int_equal(r->flags, STABLE);
	engine_soft.stood_still(m.v);
	assert_int_equal(r->version, 4);
	assert_int_equal(r->flags, STABLE | STOPPED);
	engine_soft.stood_still(m.v);
	assert_int_equal(r->version, 4);
	system_time_set(&m, RECORD);
	system_time_set(&m, RECORD | 1);
	assert_int_equal(r->flags, STABLE | STOPPED);
	r->flags = 0xff & ~STOPPED;
	engine_soft.stood_still(m.v);
	assert_int_equal(r->flags, STABLE | STOPPED);
	system_time_set(&m, 0);
	r->flags = 0;
	engine_soft.stood_still(m.v);
	assert_int_equal(r->flags, 0);
	machine_fini(&m);
}

/* The rate is what it says, for rates whose factors are on both sides of 1; and Linux gets the TSC's back from it. */
static void test_scale(void **state)
{
	static const uint32_t mhz[] = { 1, 800, 999, 1000, 1001, 1999, 2000, 2001, 2445, 2600, 3999, 4000, 4100, 5700 };

	for (unsigned i = 0; i < sizeof mhz / sizeof *mhz; i++) {
		struct machine m;
		machine_open_at(&m, "x86-64-v2", RAM_BYTES, mhz[i] * 1000000ull, (struct engine_config){ 0 });
		system_time_set(&m, RECORD | 1);
		struct record *r = record_at(&m, RECORD);
		uint64_t ticks = mhz[i] * 3600000000ull, khz = (1000000ull << 32) / r->mul;
		assert_true(r->mul >> 31);
		khz = r->shift < 0 ? khz << -r->shift : khz >> r->shift;
		assert_int_equal(khz, mhz[i] * 1000);
		ticks = r->shift < 0 ? ticks >> -r->shift : ticks << r->shift;
		assert_in_range((unsigned __int128)ticks * r->mul >> 32, 3600000000000 - 2000, 3600000000000);
		machine_fini(&m);
	}
}

static void test_init(void **state)
{
	struct x86_state *s = malloc(sizeof *s);

	state_reset(s, false);
	s->kvm_system_time = RECORD | 1;
	state_init(s, false);
	assert_int_equal(s->kvm_system_time, 0);
	free(s);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_dirty), cmocka_unit_test(test_stopped), cmocka_unit_test(test_scale), cmocka_unit_test(test_init),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
