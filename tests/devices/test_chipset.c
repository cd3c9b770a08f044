/* Timers, serial port, keyboard controller, power management, firmware configuration. */
#include "chipset.h"

static uint64_t hpet_get(struct chipset *c, unsigned reg) { return map_load(c->map, HPET_GPA + reg, 8); }
static void hpet_put(struct chipset *c, unsigned reg, uint64_t v) { map_store(c->map, HPET_GPA + reg, 8, v); }

static void test_hpet(void **state)
{
	struct chipset *c = *state;
	assert_int_equal((uint32_t)hpet_get(c, 0), 0x8086a201);
	assert_int_equal(hpet_get(c, 0) >> 32, 10000000);
	assert_int_equal(hpet_get(c, 0xf0), 0);
	hpet_put(c, 0xf0, 0x100000000);
	assert_int_equal(map_load(c->map, HPET_GPA + 0xf4, 4), 1);
	assert_int_equal(hpet_get(c, 0x100) >> 32, 0xf00000);
	hpet_put(c, 0x100, 1 << 2 | 20 << 9);			/* one-shot, edge, pin 20 */
	hpet_put(c, 0x10, 1);
	hpet_put(c, 0x108, hpet_get(c, 0xf0) + 200000);
	assert_int_equal(atomic_load(&c->rises[20]), 0);
	assert_true(wait_count(&c->rises[20], 1));
	assert_false(atomic_load(&c->level[20]));
	hpet_put(c, 0x120, 1 << 1 | 1 << 2 | 21 << 9);		/* level */
	hpet_put(c, 0x128, hpet_get(c, 0xf0) + 100000);
	assert_true(wait_count(&c->rises[21], 1));
	assert_int_equal(hpet_get(c, 0x20), 2);
	assert_true(atomic_load(&c->level[21]));
	hpet_put(c, 0x20, 2);
	assert_false(atomic_load(&c->level[21]));
	hpet_put(c, 0x100, 1 << 2 | 1 << 3 | 1 << 6);		/* periodic, in legacy mode */
	hpet_put(c, 0x10, 3);
	assert_true(atomic_load(&c->hpet_legacy));
	hpet_put(c, 0x108, hpet_get(c, 0xf0) + 100000);
	assert_false(hpet_get(c, 0x100) & 1 << 6);
	hpet_put(c, 0x108, 1);					/* 10 ns: held to a rate the host can bear */
	assert_true(wait_count(&c->rises[0], 3));
	unsigned n = atomic_load(&c->rises[0]);
	usleep(20000);
	assert_in_range(atomic_load(&c->rises[0]) - n, 1, 2500);
	hpet_put(c, 0x10, 0);
	assert_false(atomic_load(&c->hpet_legacy));
	uint64_t stopped = hpet_get(c, 0xf0);
	usleep(100);
	assert_int_equal(hpet_get(c, 0xf0), stopped);
}

static void test_pit(void **state)
{
	struct chipset *c = *state;
	out8(c, 0x43, 0x34);
	out8(c, 0x40, 0xa9);
	out8(c, 0x40, 0x04);					/* 1 kHz */
	assert_true(wait_count(&c->rises[0], 10));
	out8(c, 0x43, 0xe2);					/* status of channel 0 */
	assert_int_equal(in8(c, 0x40) & 0x3f, 0x34);
	out8(c, 0x43, 0x34);					/* stops until a count is loaded */
	unsigned n = atomic_load(&c->rises[0]);
	usleep(10000);
	assert_in_range(atomic_load(&c->rises[0]) - n, 0, 1);
	n = atomic_load(&c->rises[0]);
	out8(c, 0x40, 2);
	out8(c, 0x40, 0);
	usleep(20000);
	assert_in_range(atomic_load(&c->rises[0]) - n, 1, 2500);
	out8(c, 0x61, 1);
	out8(c, 0x43, 0xb0);					/* channel 2, mode 0: the TSC calibration's way */
	out8(c, 0x42, 0xa9);
	out8(c, 0x42, 0x04);
	assert_false(in8(c, 0x61) & 0x20);
	usleep(3000);
	assert_true(in8(c, 0x61) & 0x20);
}

static uint16_t pit_count(struct chipset *c)
{
	out8(c, 0x43, 0x80);					/* latch channel 2 */
	uint8_t low = in8(c, 0x42);
	return (uint16_t)(in8(c, 0x42) << 8 | low);
}

static void test_pit_bcd(void **state)
{
	struct chipset *c = *state;
	out8(c, 0x61, 1);
	out8(c, 0x43, 0xb5);					/* channel 2, mode 2, BCD */
	out8(c, 0x42, 0x00);
	out8(c, 0x42, 0x70);
	for (unsigned i = 0; i < 2000; i++) {
		uint16_t n = pit_count(c);
		assert_in_range(n, 1, 0x7000);
		for (unsigned digit = 0; digit < 16; digit += 4)
			assert_in_range(n >> digit & 15, 0, 9);
	}
	out8(c, 0x43, 0xb1);					/* mode 0: 0 stands for 10000, which is 8.4 ms */
	out8(c, 0x42, 0);
	out8(c, 0x42, 0);
	assert_false(in8(c, 0x61) & 0x20);
	usleep(9000);
	assert_true(in8(c, 0x61) & 0x20);
	assert_in_range(pit_count(c) & 15, 0, 9);		/* below 0 it goes on at 9999 */
}

/* January of the year 0000, less one month: December of the year before, as two digits and two. */
static void test_rtc_before_year_0(void **state)
{
	struct chipset *c = *state;
	static const uint8_t set[][2] = { { 7, 0x01 }, { 9, 0 }, { 0x32, 0 }, { 8, 0 } };
	for (unsigned i = 0; i < sizeof set / 2; i++) {
		out8(c, 0x70, set[i][0]);
		out8(c, 0x71, set[i][1]);
	}
	out8(c, 0x70, 9);
	assert_int_equal(in8(c, 0x71), 0x99);
	out8(c, 0x70, 0x32);
	assert_int_equal(in8(c, 0x71), 0x99);
}

static void test_rtc(void **state)
{
	struct chipset *c = *state;
	out8(c, 0x70, 0x0b);
	assert_int_equal(in8(c, 0x71), 2);
	out8(c, 0x71, 0x82);					/* stopped while the time is set */
	static const uint8_t set[][2] = { { 0, 0x58 }, { 2, 0x59 }, { 4, 0x23 }, { 7, 0x31 }, { 8, 0x12 }, { 9, 0x99 },
		{ 0x32, 0x19 } };
	for (unsigned i = 0; i < sizeof set / 2; i++) {
		out8(c, 0x70, set[i][0]);
		out8(c, 0x71, set[i][1]);
	}
	out8(c, 0x70, 8);
	assert_int_equal(in8(c, 0x71), 0x12);
	out8(c, 0x70, 0x0b);
	out8(c, 0x71, 0x12);					/* run; an interrupt a second */
	assert_true(wait_count(&c->rises[8], 1));
	assert_true(atomic_load(&c->level[8]));
	out8(c, 0x70, 0x0c);
	assert_int_equal(in8(c, 0x71) & 0x90, 0x90);
	assert_false(atomic_load(&c->level[8]));
	assert_int_equal(in8(c, 0x71), 0);
	unsigned n = atomic_load(&c->rises[8]);
	out8(c, 0x70, 0x0b);
	out8(c, 0x71, 0x42);					/* 1024 Hz */
	out8(c, 0x70, 0x0c);
	for (int i = 0; i < 5; i++) {
		assert_true(wait_count(&c->rises[8], ++n));
		in8(c, 0x71);
	}
	usleep(2500000);
	out8(c, 0x70, 0x32);
	assert_int_equal(in8(c, 0x71), 0x20);			/* the century has turned */
}

static void test_uart(void **state)
{
	struct chipset *c = *state;
	out8(c, 0x3fb, 0x80);
	out8(c, 0x3f8, 3);
	assert_int_equal(in8(c, 0x3f8), 3);
	out8(c, 0x3fb, 3);
	out8(c, 0x3f8, 'a');
	assert_true(c->sent_count == 1 && c->sent[0] == 'a');
	out8(c, 0x3fc, 8);
	out8(c, 0x3fa, 7);
	out8(c, 0x3f9, 2);
	assert_true(atomic_load(&c->level[4]));			/* transmitter empty */
	unsigned n = atomic_load(&c->rises[4]);
	out8(c, 0x3f8, 'b');
	assert_int_equal(atomic_load(&c->rises[4]), n + 1);	/* a new edge without IIR having been read */
	assert_int_equal(in8(c, 0x3fa), 0xc2);
	assert_false(atomic_load(&c->level[4]));
	out8(c, 0x3f9, 1);
	assert_int_equal(uart_receive(c->uart, (const uint8_t *)"0123456789abcdefgh", 18), 16);
	assert_true(in8(c, 0x3fd) & 1);
	for (int i = 0; i < 16; i++)
		assert_int_equal(in8(c, 0x3f8), "0123456789abcdef"[i]);
	assert_false(in8(c, 0x3fd) & 1);
	assert_false(atomic_load(&c->level[4]));
	out8(c, 0x3fc, 0x10);					/* loop-back */
	out8(c, 0x3f8, 'z');
	assert_int_equal(in8(c, 0x3f8), 'z');
	assert_int_equal(c->sent_count, 2);
}

static void test_i8042(void **state)
{
	struct chipset *c = *state;
	out8(c, 0x64, 0xaa);
	assert_int_equal(in8(c, 0x64) & 1, 1);
	assert_int_equal(in8(c, 0x60), 0x55);
	assert_int_equal(in8(c, 0x64) & 1, 0);
	out8(c, 0x64, 0xab);
	assert_int_equal(in8(c, 0x60), 0);
	out8(c, 0x64, 0xa9);
	assert_int_not_equal(in8(c, 0x60), 0);			/* no mouse */
	out8(c, 0x64, 0x60);
	out8(c, 0x60, 0x45);
	out8(c, 0x64, 0x20);
	assert_int_equal(in8(c, 0x60), 0x45);
	unsigned n = atomic_load(&c->rises[1]);
	out8(c, 0x60, 0xff);
	assert_int_equal(in8(c, 0x60), 0xfa);
	assert_int_equal(in8(c, 0x60), 0xaa);
	assert_int_equal(atomic_load(&c->rises[1]), n + 2);	/* an edge for each byte */
	assert_true(i8042_key(c->i8042, 0x1c));
	assert_int_equal(in8(c, 0x60), 0x1e);			/* 'a', translated */
	out8(c, 0x64, 0xad);
	assert_true(i8042_key(c->i8042, 0x1c));
	assert_int_equal(in8(c, 0x64) & 1, 0);			/* held off */
	out8(c, 0x64, 0xae);
	assert_int_equal(in8(c, 0x60), 0x1e);
	for (int i = 0; i < 100; i++)
		out8(c, 0x60, 0xee);				/* nobody reads: bounded */
	assert_false(i8042_key(c->i8042, 0x1c));
	assert_int_equal(atomic_load(&c->resets), 0);
	out8(c, 0x64, 0xfe);
	out8(c, 0x92, 1);
	assert_int_equal(atomic_load(&c->resets), 2);
}

static void test_acpi_pm(void **state)
{
	struct chipset *c = *state;
	uint32_t t = pio_load(c->map, ACPI_PM_BASE + 8, 4);
	usleep(10000);
	assert_in_range((pio_load(c->map, ACPI_PM_BASE + 8, 4) - t) & 0xffffff, 35000, 3500000);
	pio_store(c->map, ACPI_PM_BASE + 2, 2, 0x100);
	acpi_pm_button(c->pm);
	assert_true(atomic_load(&c->level[ACPI_SCI_IRQ]));
	assert_int_equal(pio_load(c->map, ACPI_PM_BASE, 2), 0x100);
	pio_store(c->map, ACPI_PM_BASE, 2, 0x100);
	assert_false(atomic_load(&c->level[ACPI_SCI_IRQ]));
	pio_store(c->map, ACPI_PM_BASE + 4, 2, 0x2001 | 1 << 10);
	assert_int_equal(atomic_load(&c->offs), 0);		/* S1 is not there */
	pio_store(c->map, ACPI_PM_BASE + 4, 2, 0x2001);
	assert_int_equal(atomic_load(&c->offs), 1);
	out8(c, 0xcf9, 6);
	assert_int_equal(atomic_load(&c->resets), 1);
}

static void be32(uint8_t *p, uint32_t v)
{
	v = __builtin_bswap32(v);
	memcpy(p, &v, 4);
}

/* Runs a descriptor at 1000h; returns its control word afterwards. */
static uint32_t dma(struct chipset *c, uint32_t control, uint32_t len, uint64_t gpa)
{
	uint8_t d[16];
	be32(d, control);
	be32(d + 4, len);
	be32(d + 8, (uint32_t)(gpa >> 32));
	be32(d + 12, (uint32_t)gpa);
	map_write(c->map, 0x1000, d, sizeof d);
	pio_store(c->map, 0x514, 4, 0);
	pio_store(c->map, 0x518, 4, __builtin_bswap32(0x1000));
	map_read(c->map, 0x1000, d, 4);
	return (uint32_t)d[0] << 24 | (uint32_t)d[1] << 16 | (uint32_t)d[2] << 8 | d[3];
}

static void test_fw_cfg(void **state)
{
	struct chipset *c = *state;
	char b[68];
	assert_int_equal(fw_cfg_file(c->fw_cfg, "opt/test", "hello", 5), 0);
	assert_true(fw_cfg_file(c->fw_cfg, "a-name-of-more-than-fifty-five-bytes-is-not-to-be-stored-here", "", 0) < 0);
	pio_store(c->map, 0x510, 2, 0);
	for (int i = 0; i < 6; i++)
		b[i] = (char)in8(c, 0x511);
	assert_memory_equal(b, "QEMU\0", 6);
	pio_store(c->map, 0x510, 2, 1);
	assert_int_equal(in8(c, 0x511), 3);
	assert_int_equal(pio_load(c->map, 0x514, 4), __builtin_bswap32(0x51454d55));
	assert_int_equal(dma(c, 0x19u << 16 | 8 | 2, sizeof b, 0x2000), 0);
	map_read(c->map, 0x2000, b, sizeof b);
	assert_memory_equal(b, "\0\0\0\1\0\0\0\5\0\x20\0\0opt/test", 21);
	assert_int_equal(dma(c, 0x20u << 16 | 8 | 4, 1, 0), 0);			/* skip */
	assert_int_equal(dma(c, 2, 8, 0x2000), 0);
	map_read(c->map, 0x2000, b, 8);
	assert_memory_equal(b, "ello\0\0\0", 8);
	assert_int_equal(dma(c, 0x20u << 16 | 8 | 2, ~0u, 0x2000), 1);		/* too long */
	assert_int_equal(dma(c, 0x20u << 16 | 8 | 2, 5, ~0ull - 2), 1);		/* wraps */
	assert_int_equal(dma(c, 0x20u << 16 | 8 | 2, 5, 16 << 20), 1);		/* no RAM */
	assert_int_equal(dma(c, 0x20u << 16 | 8 | 16, 5, 0x2000), 1);		/* a write */
	assert_int_equal(dma(c, 0xffffu << 16 | 8 | 2, 5, 0x2000), 0);		/* no such item: zeros */
	assert_int_equal(dma(c, 4, ~0u, 0), 0);
	pio_store(c->map, 0x514, 4, ~0u);
	pio_store(c->map, 0x518, 4, ~0u);					/* a descriptor nowhere */
}

int main(void)
{
#define T(n) cmocka_unit_test_setup_teardown(n, chipset_setup, chipset_teardown)
	const struct CMUnitTest tests[] = { T(test_hpet), T(test_pit), T(test_pit_bcd), T(test_rtc),
					    T(test_rtc_before_year_0), T(test_uart), T(test_i8042), T(test_acpi_pm),
					    T(test_fw_cfg) };
	return cmocka_run_group_tests(tests, NULL, NULL);
}
