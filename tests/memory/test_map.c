/* The guest-physical map: overlap, holes, accesses that leave a region; executable memory. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <stdio.h>
#include <string.h>

#include "host/execmem.h"
#include "memory/map.h"

static uint64_t dev_read(void *opaque, uint64_t offset, unsigned size) { return 0xa0 + offset; }
static void dev_write(void *opaque, uint64_t offset, unsigned size, uint64_t value) { *(uint64_t *)opaque += value; }
static const struct io_ops bytes = { .read = dev_read, .write = dev_write, .min_size = 1, .max_size = 1 };

static struct map *board(uint64_t *sum)
{
	struct map *m = map_new();

	assert_non_null(m);
	assert_int_equal(map_add_ram(m, 0, 0x4000, NULL), 0);
	assert_int_equal(map_add_ram(m, 0x8000, 0x2000, NULL), 0);
	assert_int_equal(map_add_rom(m, 0x10000, "rom", 4, NULL), 0);
	assert_non_null(map_add_mmio(m, 0x3000, 0x2000, &bytes, sum, "half under RAM"));
	return m;
}

static void test_overlap_and_holes(void **state)
{
	uint64_t sum = 0;
	struct map *m = board(&sum);

	map_store(m, 0x3ff8, 8, 0x1122334455667788);
	assert_true(map_load(m, 0x3ff8, 8) == 0x1122334455667788);	/* RAM wins */
	assert_int_equal(sum, 0);
	assert_int_equal(map_load(m, 0x4001, 1), 0xa1);		/* 0xa0 + 0x1001, a byte wide */
	assert_true(map_load(m, 0x6000, 4) == 0xffffffff);
	map_store(m, 0x6000, 4, 1);
	map_store(m, 0x10000, 1, 'x');
	assert_int_equal(map_load(m, 0x10000, 1), 'r');
	/* out of RAM into the device, bytewise */
	assert_int_equal(map_load(m, 0x3ffe, 4) & 0xffff, 0x1122);
	map_store(m, 0x3fff, 2, 0x0507);
	assert_int_equal(sum, 5);
	assert_null(map_page(m, 0x6000).ro_hva);
	assert_null(map_page(m, 0x10000).rw_hva);
	assert_true(map_load(m, UINT64_MAX, 8) == UINT64_MAX);
	map_free(m);
}

static void test_copies(void **state)
{
	uint64_t sum = 0;
	struct map *m = board(&sum);
	uint8_t buf[16];

	assert_non_null(map_ptr(m, 0, 0x4000, true));
	assert_null(map_ptr(m, 1, 0x4000, true));
	assert_null(map_ptr(m, 0x10000, 1, true));
	assert_null(map_ptr(m, 0, SIZE_MAX, true));
	assert_false(map_read(m, 0x9ff8, buf, 16));
	assert_int_equal(buf[15], 0xff);
	assert_false(map_write(m, 0x9ff8, buf, 16));
	assert_false(map_read(m, UINT64_MAX - 3, buf, 16));
	map_free(m);
}

static void test_dirty(void **state)
{
	uint64_t sum = 0, bits = 0;
	struct map *m = board(&sum);

	map_dirty_reset(m);
	assert_true(map_write(m, 0x1ffe, "abcd", 4));
	map_store(m, 0x8000, 1, 1);
	map_store(m, 0x10000, 1, 1);
	map_dirty_fetch(m, &bits);
	assert_int_equal(bits, 1u << 1 | 1u << 2 | 1u << 4);
	map_dirty_fetch(m, &bits);
	assert_int_equal(bits, 0);
	map_free(m);
}

/* No mapping of this process is writable and executable. */
static void test_wx(void **state)
{
	struct execmem x;
	char line[512], perms[8];
	FILE *f;

	assert_int_equal(execmem_init(&x, 1 << 16, NULL), 0);
	memcpy(x.rw, "\xb8\x2a\0\0\0\xc3", 6);
	assert_int_equal(((int (*)(void))(uintptr_t)x.rx)(), 42);
	f = fopen("/proc/self/maps", "r");
	assert_non_null(f);
	while (fgets(line, sizeof line, f))
		if (sscanf(line, "%*s %7s", perms) == 1)
			assert_false(perms[1] == 'w' && perms[2] == 'x');
	fclose(f);
	execmem_fini(&x);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_overlap_and_holes), cmocka_unit_test(test_copies), cmocka_unit_test(test_dirty),
		cmocka_unit_test(test_wx),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
