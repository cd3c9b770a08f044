/*
 * The host is suspended for an hour, as far as this process can tell: CLOCK_BOOTTIME jumps, CLOCK_MONOTONIC does not, and
 * what the kernel would let expire at the end of it expires. All clocks of the guest go on as if it had run.
 */
#include <sys/syscall.h>
#include <sys/timerfd.h>
#include <time.h>

#include "chipset.h"
#include "cpu/model.h"
#include "engine/engine.h"

#define HOUR_NS 3600000000000ull

static atomic_uint_fast64_t jump_ns;
static atomic_int alarm_fd = -1;

int clock_gettime(clockid_t id, struct timespec *t)
{
	long ret = syscall(SYS_clock_gettime, id, t);
	uint64_t ns = (uint64_t)t->tv_nsec + (id == CLOCK_BOOTTIME ? jump_ns : 0);
	t->tv_sec += (time_t)(ns / 1000000000u);
	t->tv_nsec = (long)(ns % 1000000000u);
	return (int)ret;
}

int timerfd_create(clockid_t id, int flags)
{
	if (id == CLOCK_BOOTTIME)
		alarm_fd = (int)syscall(SYS_timerfd_create, id, flags);
	return id == CLOCK_BOOTTIME ? alarm_fd : (int)syscall(SYS_timerfd_create, id, flags);
}

/* Deadlines that lie behind the jump come when it does. */
int timerfd_settime(int fd, int flags, const struct itimerspec *in, struct itimerspec *out)
{
	struct itimerspec real = *in;
	real.it_value.tv_sec -= (time_t)(jump_ns / 1000000000u);
	return (int)syscall(SYS_timerfd_settime, fd, flags, &real, out);
}

static void suspend(void)
{
	struct itimerspec set, now = { .it_value = { 0, 1 } };
	atomic_fetch_add(&jump_ns, HOUR_NS);
	assert_int_equal(syscall(SYS_timerfd_gettime, alarm_fd, &set), 0);
	if (set.it_value.tv_sec && (uint64_t)set.it_value.tv_sec * 1000000000u <= HOUR_NS)
		assert_int_equal(syscall(SYS_timerfd_settime, alarm_fd, TFD_TIMER_ABSTIME, &now, NULL), 0);
}

static void apic_put(struct chipset *c, unsigned reg, uint32_t v) { map_store(c->map, LAPIC_GPA + reg, 4, v); }

/* Ten minutes are over when the host wakes up: the interrupt comes at once. */
static void test_timer(void **state)
{
	struct chipset *c = *state;
	apic_put(c, 0xf0, 0x1ff);
	apic_put(c, 0x3e0, 0xa);
	apic_put(c, 0x320, 0x70);
	apic_put(c, 0x380, 0xffffffff);			/* by 128: nine minutes */
	usleep(50000);
	assert_int_equal(lapic_ack(c->lapics, 0), -1);
	suspend();
	assert_int_equal(map_load(c->map, LAPIC_GPA + 0x390, 4), 0);
	assert_true(wait_count(&c->kicks[0], 1));
	assert_int_equal(lapic_ack(c->lapics, 0), 0x70);
}

/* A tick each second: the 3,600 that were missed are one. */
static void test_ticks(void **state)
{
	struct chipset *c = *state;
	apic_put(c, 0xf0, 0x1ff);
	apic_put(c, 0x3e0, 0xb);
	apic_put(c, 0x320, 0x20070);
	apic_put(c, 0x380, 1000000000);
	suspend();
	assert_true(wait_count(&c->kicks[0], 1));
	assert_int_equal(lapic_ack(c->lapics, 0), 0x70);
	assert_in_range(atomic_load(&c->kicks[0]), 1, 3);
}

static void test_counter(void **state)
{
	struct chipset *c = *state;
	map_store(c->map, HPET_GPA + 0x10, 4, 1);
	uint64_t hpet = map_load(c->map, HPET_GPA + 0xf0, 8);
	suspend();
	uint64_t ticks = map_load(c->map, HPET_GPA + 0xf0, 8) - hpet;
	assert_in_range(ticks, HOUR_NS / 10, HOUR_NS / 10 + 6000000000);	/* a minute for a slow host */
}

static atomic_int gaps, kicks_at_gap;
static void on_gap(void *opaque)
{
	kicks_at_gap = (int)atomic_load(&((struct chipset *)opaque)->kicks[0]);
	gaps++;
}
static void listen(void *opaque) { loop_on_gap(((struct chipset *)opaque)->loop, on_gap, opaque); }

/* Who wants to know of it hears of it, once, and before the timers that came due. */
static void test_gap(void **state)
{
	struct chipset *c = *state;
	loop_post(c->loop, listen, c);
	apic_put(c, 0xf0, 0x1ff);
	apic_put(c, 0x3e0, 0xa);
	apic_put(c, 0x320, 0x70);
	apic_put(c, 0x380, 0xffffffff);
	usleep(50000);
	assert_int_equal(gaps, 0);
	suspend();
	assert_true(wait_count(&c->kicks[0], 1));
	assert_int_equal(gaps, 1);
	assert_int_equal(kicks_at_gap, 0);
}

static bool never(void *opaque) { return false; }

static void test_tsc(void **state)
{
	const struct cpu_model_config mc = { .name = "x86-64-v2", .tsc_hz = 2000000000 };
	struct chipset *c = *state;
	struct engine_config cfg = { .vcpus = 1, .tsc_hz = 2000000000, .map = c->map };
	struct vcpu_wiring w = { .irq_pending = never, .nmi_take = never };
	struct cpu_model *model;
	struct engine *en;
	struct vcpu *v;
	assert_int_equal(cpu_model_new(&model, &mc, NULL), 0);
	cfg.model = model;
	assert_int_equal(engine_soft.create(&en, &cfg, NULL), 0);
	assert_int_equal(engine_soft.vcpu_create(&v, en, &w, NULL), 0);
	uint64_t before = engine_soft.tsc(v);
	suspend();
	assert_in_range(engine_soft.tsc(v) - before, 2 * HOUR_NS, 2 * HOUR_NS + 120000000000);
	engine_soft.vcpu_destroy(v);
	engine_soft.destroy(en);
	cpu_model_free(model);
}

int main(void)
{
#define T(n) cmocka_unit_test_setup_teardown(n, chipset_setup, chipset_teardown)
	const struct CMUnitTest tests[] = { T(test_timer), T(test_ticks), T(test_counter), T(test_tsc), T(test_gap) };
	return cmocka_run_group_tests(tests, NULL, NULL);
}
