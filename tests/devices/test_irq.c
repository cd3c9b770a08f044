/* LAPIC, IO-APIC and 8259. */
#include "chipset.h"

static uint32_t apic_get(struct chipset *c, unsigned cpu, unsigned reg)
{
	c->current = cpu;
	return (uint32_t)map_load(c->map, LAPIC_GPA + reg, 4);
}
static void apic_put(struct chipset *c, unsigned cpu, unsigned reg, uint32_t v)
{
	c->current = cpu;
	map_store(c->map, LAPIC_GPA + reg, 4, v);
}
static void apic_on(struct chipset *c)
{
	for (unsigned i = 0; i < 4; i++)
		apic_put(c, i, 0xf0, 0x1ff);
}
static void rte_put(struct chipset *c, unsigned pin, uint64_t v)
{
	map_store(c->map, IOAPIC_GPA, 4, 0x11 + 2 * pin);
	map_store(c->map, IOAPIC_GPA + 0x10, 4, v >> 32);
	map_store(c->map, IOAPIC_GPA, 4, 0x10 + 2 * pin);
	map_store(c->map, IOAPIC_GPA + 0x10, 4, (uint32_t)v);
}
static uint32_t rte_get(struct chipset *c, unsigned pin)
{
	map_store(c->map, IOAPIC_GPA, 4, 0x10 + 2 * pin);
	return (uint32_t)map_load(c->map, IOAPIC_GPA + 0x10, 4);
}

static void test_ipi(void **state)
{
	struct chipset *c = *state;
	apic_on(c);
	apic_put(c, 0, 0x310, 2u << 24);
	apic_put(c, 0, 0x300, 0x4041);
	assert_false(lapic_pending(c->lapics, 1));
	assert_true(lapic_pending(c->lapics, 2));
	assert_int_equal(atomic_load(&c->kicks[2]), 1);
	assert_int_equal(lapic_ack(c->lapics, 2), 0x41);
	assert_int_equal(lapic_ack(c->lapics, 2), -1);
	apic_put(c, 2, 0xb0, 0);
	apic_put(c, 1, 0x300, 0xc4042);			/* all but self */
	for (unsigned i = 0; i < 4; i++)
		assert_int_equal(lapic_ack(c->lapics, i), i == 1 ? -1 : 0x42);
	apic_put(c, 0, 0x300, 0xc4500);			/* INIT, then SIPI, then NMI to all others */
	apic_put(c, 0, 0x300, 0xc4609);
	apic_put(c, 0, 0x300, 0xc4400);
	for (unsigned i = 1; i < 4; i++) {
		assert_int_equal(atomic_load(&c->inits[i]), 1);
		assert_int_equal(atomic_load(&c->sipis[i]), 9);
		assert_int_equal(atomic_load(&c->nmis[i]), 1);
		assert_int_equal(apic_get(c, i, 0xf0), 0xff);	/* INIT resets the registers */
	}
	assert_int_equal(atomic_load(&c->inits[0]), 0);
}

static void test_priority(void **state)
{
	struct chipset *c = *state;
	apic_on(c);
	apic_put(c, 0, 0x300, 0x44051);			/* to self */
	apic_put(c, 0, 0x300, 0x44061);
	assert_int_equal(lapic_ack(c->lapics, 0), 0x61);
	assert_int_equal(apic_get(c, 0, 0xa0), 0x60);
	assert_int_equal(lapic_ack(c->lapics, 0), -1);	/* 51 waits for 61 to end */
	apic_put(c, 0, 0xb0, 0);
	apic_put(c, 0, 0x80, 0x50);
	assert_false(lapic_pending(c->lapics, 0));	/* and for the TPR to fall */
	apic_put(c, 0, 0x80, 0x40);
	assert_int_equal(lapic_ack(c->lapics, 0), 0x51);
	apic_put(c, 0, 0x300, 0x44005);			/* an illegal vector */
	apic_put(c, 0, 0x280, 0);
	assert_int_equal(apic_get(c, 0, 0x280), 0x60);
	apic_put(c, 0, 0xf0, 0xff);			/* off: accepts nothing */
	apic_put(c, 1, 0x300, 0x4071);
	assert_false(lapic_pending(c->lapics, 0));
}

static void test_timer(void **state)
{
	struct chipset *c = *state;
	uint64_t v;
	apic_on(c);
	apic_put(c, 0, 0x3e0, 0xb);
	apic_put(c, 0, 0x320, 0x70);
	apic_put(c, 0, 0x380, 1000000);
	assert_true(wait_count(&c->kicks[0], 1));
	assert_int_equal(lapic_ack(c->lapics, 0), 0x70);
	apic_put(c, 0, 0xb0, 0);
	assert_int_equal(apic_get(c, 0, 0x390), 0);
	apic_put(c, 0, 0x320, 0x20071);
	apic_put(c, 0, 0x380, 1);			/* 1 ns: held to a rate the host can bear */
	usleep(20000);
	unsigned ticks = atomic_load(&c->kicks[0]);
	assert_in_range(ticks, 2, 1500);
	apic_put(c, 0, 0x320, 0x40072);
	while (lapic_ack(c->lapics, 0) >= 0)
		apic_put(c, 0, 0xb0, 0);
	assert_true(lapic_msr_write(c->lapics, 0, 0x6e0, clock_now_ns() + 5000000));
	assert_false(lapic_pending(c->lapics, 0));
	ticks = atomic_load(&c->kicks[0]);
	assert_true(wait_count(&c->kicks[0], ticks + 1));
	assert_int_equal(lapic_ack(c->lapics, 0), 0x72);
	assert_true(lapic_msr_read(c->lapics, 0, 0x6e0, &v) && !v);
	apic_put(c, 0, 0xb0, 0);
	assert_true(lapic_msr_write(c->lapics, 0, 0x6e0, 1));	/* past */
	assert_int_equal(lapic_ack(c->lapics, 0), 0x72);
}

/* The count goes on when the mode changes, as periodic it comes again, as one-shot it does not. */
static void test_timer_modes(void **state)
{
	struct chipset *c = *state;
	apic_on(c);
	apic_put(c, 0, 0x3e0, 0xb);
	apic_put(c, 0, 0x320, 0x70);
	apic_put(c, 0, 0x380, 1000000);
	apic_put(c, 0, 0x320, 0x20070);
	for (unsigned i = 0; i < 3; i++) {
		while (lapic_ack(c->lapics, 0) != 0x70)
			usleep(100);
		apic_put(c, 0, 0xb0, 0);
	}
	apic_put(c, 0, 0x320, 0x70);
	while (apic_get(c, 0, 0x390))
		usleep(100);
	usleep(10000);
	while (lapic_ack(c->lapics, 0) >= 0)
		apic_put(c, 0, 0xb0, 0);
	unsigned ticks = atomic_load(&c->kicks[0]);
	usleep(10000);
	assert_int_equal(lapic_ack(c->lapics, 0), -1);
	assert_int_equal(atomic_load(&c->kicks[0]), ticks);
	apic_put(c, 0, 0x320, 0x20070);				/* over is over */
	assert_int_equal(apic_get(c, 0, 0x390), 0);
	apic_put(c, 0, 0x3e0, 0xa);
	apic_put(c, 0, 0x380, 0x80000000);
	uint32_t count = apic_get(c, 0, 0x390);
	assert_in_range(count, 1, 0x80000000);
	apic_put(c, 0, 0x3e0, 0xb);				/* the count stays */
	assert_in_range(apic_get(c, 0, 0x390), 1, count);
}

static void test_base(void **state)
{
	struct chipset *c = *state;
	const uint64_t elsewhere = 0xfed40000;
	uint64_t v;
	apic_on(c);
	assert_true(lapic_msr_write(c->lapics, 1, 0x1b, elsewhere | 0x800));
	assert_true(lapic_msr_read(c->lapics, 1, 0x1b, &v) && v == (elsewhere | 0x800));
	for (unsigned cpu = 0; cpu < 2; cpu++) {		/* each finds its own, and only that */
		c->current = cpu;
		assert_int_equal(map_load(c->map, LAPIC_GPA + 0x30, 4), cpu ? 0xffffffff : 0x50014);
		assert_int_equal(map_load(c->map, elsewhere + 0x30, 4), cpu ? 0x50014 : 0xffffffff);
	}
	map_store(c->map, elsewhere + 0x80, 4, 0x30);
	assert_int_equal(lapic_tpr(c->lapics, 1), 0x30);
	map_store(c->map, LAPIC_GPA + 0x80, 4, 0x40);		/* nothing there, for this one */
	assert_int_equal(lapic_tpr(c->lapics, 1), 0x30);
	assert_int_equal(lapic_tpr(c->lapics, 0), 0);
	assert_true(lapic_msr_write(c->lapics, 0, 0x1b, elsewhere | 0x900));
	c->current = 0;						/* two at one place */
	assert_int_equal(map_load(c->map, elsewhere + 0x20, 4), 0);
	c->current = 1;
	assert_int_equal(map_load(c->map, elsewhere + 0x20, 4), 1u << 24);
	assert_true(lapic_msr_write(c->lapics, 1, 0x1b, 0x1000 | 0x800));	/* onto RAM, which wins; and on */
	map_store(c->map, 0x1030, 4, 7);
	assert_int_equal(map_load(c->map, 0x1030, 4), 7);
	assert_true(lapic_msr_write(c->lapics, 1, 0x1b, 0xfed50000 | 0x800));
	assert_int_equal(map_load(c->map, 0xfed50030, 4), 0x50014);
	lapic_reset(c->lapics, 1);
	assert_int_equal(apic_get(c, 1, 0x20), 1u << 24);
	assert_int_equal(map_load(c->map, 0xfed50030, 4), 0xffffffff);
}

static void test_x2apic(void **state)
{
	struct chipset *c = *state;
	static const uint16_t missing[] = { 0x800, 0x801, 0x804, 0x807, 0x809, 0x80c, 0x80e, 0x829, 0x82f, 0x831, 0x83a, 0x840 };
	uint64_t v;
	assert_true(lapic_msr_read(c->lapics, 1, 0x1b, &v));
	assert_false(lapic_msr_read(c->lapics, 1, 0x802, &v));
	assert_false(lapic_msr_write(c->lapics, 1, 0x1b, 0xfee00400));	/* x2APIC without the APIC */
	assert_true(lapic_msr_write(c->lapics, 1, 0x1b, 0xfee00000));
	assert_false(lapic_msr_write(c->lapics, 1, 0x1b, 0xfee00c00));	/* from disabled to x2APIC at once */
	assert_true(lapic_msr_write(c->lapics, 1, 0x1b, 0xfee00800));
	for (unsigned i = 0; i < 4; i++) {
		assert_true(lapic_msr_write(c->lapics, i, 0x1b, 0xfee00c00));
		assert_true(lapic_msr_write(c->lapics, i, 0x80f, 0x1ff));
	}
	assert_false(lapic_msr_write(c->lapics, 1, 0x1b, 0xfee00800));	/* not back to xAPIC */
	for (unsigned i = 0; i < sizeof missing / sizeof *missing; i++) {
		assert_false(lapic_msr_read(c->lapics, 0, missing[i], &v));
		assert_false(lapic_msr_write(c->lapics, 0, missing[i], 0));
	}
	assert_true(lapic_msr_read(c->lapics, 0, 0x80a, &v));		/* PPR: only read */
	assert_false(lapic_msr_write(c->lapics, 0, 0x80a, 0));
	assert_false(lapic_msr_write(c->lapics, 0, 0x83f, 0x100));	/* reserved bits */
	assert_true(lapic_msr_read(c->lapics, 3, 0x802, &v) && v == 3);
	assert_true(lapic_msr_read(c->lapics, 3, 0x80d, &v) && v == 8);
	assert_int_equal(apic_get(c, 1, 0x20), 0xffffffff);
	assert_true(lapic_msr_write(c->lapics, 0, 0x830, 3ull << 32 | 0x4055));
	assert_int_equal(lapic_ack(c->lapics, 3), 0x55);
	assert_true(lapic_msr_write(c->lapics, 0, 0x830, 0x6ull << 32 | 0x4856));	/* logical: 1 and 2 */
	for (unsigned i = 0; i < 3; i++)
		assert_int_equal(lapic_ack(c->lapics, i), i ? 0x56 : -1);
	assert_true(lapic_msr_write(c->lapics, 0, 0x83f, 0x57));
	assert_int_equal(lapic_ack(c->lapics, 0), 0x57);
	assert_false(lapic_msr_write(c->lapics, 0, 0x80b, 1));
	assert_true(lapic_msr_write(c->lapics, 0, 0x80b, 0));
}

static void test_ioapic(void **state)
{
	struct chipset *c = *state;
	apic_on(c);
	rte_put(c, 5, 1ull << 56 | 0x8048);		/* level, to CPU 1 */
	ioapic_set(c->ioapic, 5, true);
	assert_int_equal(lapic_ack(c->lapics, 1), 0x48);
	assert_true(rte_get(c, 5) & 0x4000);
	ioapic_set(c->ioapic, 5, true);
	assert_int_equal(lapic_ack(c->lapics, 1), -1);	/* one at a time */
	apic_put(c, 1, 0xb0, 0);
	assert_int_equal(atomic_load(&c->eois), 1);
	assert_int_equal(lapic_ack(c->lapics, 1), 0x48);	/* the line is still high */
	ioapic_set(c->ioapic, 5, false);
	apic_put(c, 1, 0xb0, 0);
	assert_int_equal(lapic_ack(c->lapics, 1), -1);
	assert_false(rte_get(c, 5) & 0x4000);
	rte_put(c, 6, 0x49);				/* edge, to CPU 0 */
	ioapic_set(c->ioapic, 6, true);
	ioapic_set(c->ioapic, 6, true);
	assert_int_equal(lapic_ack(c->lapics, 0), 0x49);
	apic_put(c, 0, 0xb0, 0);
	assert_int_equal(lapic_ack(c->lapics, 0), -1);
	assert_int_equal(atomic_load(&c->eois), 2);	/* edges are not broadcast */
	rte_put(c, 7, 0x1804a);				/* masked level */
	ioapic_set(c->ioapic, 7, true);
	assert_int_equal(lapic_ack(c->lapics, 0), -1);
	rte_put(c, 7, 0x804a);
	assert_int_equal(lapic_ack(c->lapics, 0), 0x4a);
	ioapic_set(c->ioapic, 99, true);
}

static void test_pic(void **state)
{
	struct chipset *c = *state;
	static const uint8_t init[][2] = { { 0x20, 0x11 }, { 0x21, 0x20 }, { 0x21, 4 }, { 0x21, 1 }, { 0xa0, 0x11 },
		{ 0xa1, 0x28 }, { 0xa1, 2 }, { 0xa1, 1 }, { 0x21, 0 }, { 0xa1, 0 } };
	for (unsigned i = 0; i < sizeof init / 2; i++)
		out8(c, init[i][0], init[i][1]);
	pic_set(c->pic, 10, true);
	pic_set(c->pic, 1, true);
	assert_true(atomic_load(&c->output));
	assert_int_equal(pic_ack(c->pic), 0x21);
	assert_false(pic_pending(c->pic));
	out8(c, 0x20, 0x20);
	assert_int_equal(pic_ack(c->pic), 0x2a);
	out8(c, 0xa0, 0x0b);
	assert_int_equal(in8(c, 0xa0), 4);
	out8(c, 0xa0, 0x20);
	out8(c, 0x20, 0x20);
	assert_int_equal(pic_ack(c->pic), 0x27);	/* spurious */
	out8(c, 0x4d0, 0xff);
	assert_int_equal(in8(c, 0x4d0), 0xf8);
	pic_set(c->pic, 5, true);
	assert_int_equal(pic_ack(c->pic), 0x25);
	out8(c, 0x20, 0x20);
	assert_int_equal(pic_ack(c->pic), 0x25);	/* level: again */
	pic_set(c->pic, 5, false);
	out8(c, 0x20, 0x65);
	assert_false(pic_pending(c->pic));
	out8(c, 0x21, 0x08);
	pic_set(c->pic, 3, true);
	assert_false(pic_pending(c->pic));
}

int main(void)
{
#define T(n) cmocka_unit_test_setup_teardown(n, chipset_setup, chipset_teardown)
	const struct CMUnitTest tests[] = { T(test_ipi), T(test_priority), T(test_timer), T(test_timer_modes),
					    T(test_base), T(test_x2apic), T(test_ioapic),
					    T(test_pic) };
	return cmocka_run_group_tests(tests, NULL, NULL);
}
