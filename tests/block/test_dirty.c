/* Dirty bits against an array of bytes, with random ranges. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "block/dirty.h"

#define GRAN_BITS 9u
#define SIZE (513u * 512 + 100)
#define BITS 514u

static void agree(const struct dirty *d, const bool *model, uint64_t nbits)
{
	uint64_t at = 0, len, count = 0, i = 0;

	for (uint64_t k = 0; k < nbits; k++)
		count += model[k];
	assert_int_equal(d->nbits, nbits);
	assert_int_equal(d->count, count);
	while (dirty_next(d, at, &at, &len)) {
		for (; i < at >> GRAN_BITS; i++)
			assert_false(model[i]);
		assert_true(len && at + len <= d->size_bytes);
		for (at += len; i << GRAN_BITS < at; i++)
			assert_true(model[i]);
	}
	for (; i < nbits; i++)
		assert_false(model[i]);
}

static void random_range(uint64_t *offset, uint64_t *len)
{
	*offset = (uint64_t)random() % SIZE;
	*len = (uint64_t)random() % (random() % 3 ? 3000 : SIZE);
}

static void test_against_model(void **state)
{
	bool model[BITS] = { 0 };
	struct dirty d;

	(void)state;
	assert_int_equal(dirty_init(&d, SIZE, GRAN_BITS), 0);
	for (unsigned n = 0; n < 4000; n++) {
		uint64_t offset, len;
		bool set = random() % 2, all = true, any = false;

		random_range(&offset, &len);
		for (uint64_t i = offset >> GRAN_BITS; len && i < BITS && i << GRAN_BITS < offset + len; i++) {
			all &= model[i];
			any |= model[i];
			model[i] = set;
		}
		assert_int_equal(dirty_all_set(&d, offset, len), all);
		assert_int_equal(dirty_any_set(&d, offset, len), any);
		(set ? dirty_set : dirty_clear)(&d, offset, len);
		agree(&d, model, BITS);
	}
	dirty_fini(&d);
}

static void test_bytes_of_the_last_granule(void **state)
{
	struct dirty d;

	(void)state;
	assert_int_equal(dirty_init(&d, SIZE, GRAN_BITS), 0);
	dirty_set(&d, SIZE - 1, 1);
	assert_int_equal(dirty_bytes(&d), 100);
	dirty_set_all(&d);
	assert_int_equal(dirty_bytes(&d), SIZE);
	dirty_clear_all(&d);
	assert_int_equal(d.count, 0);
	dirty_fini(&d);
}

static void test_file_form(void **state)
{
	struct dirty a, b;
	uint8_t bytes[128];

	(void)state;
	assert_int_equal(dirty_init(&a, SIZE, GRAN_BITS) | dirty_init(&b, SIZE, GRAN_BITS), 0);
	assert_int_equal(dirty_file_bytes(&a), 65);
	dirty_set(&a, 3 * 512, 512);
	dirty_set(&a, 8 * 512, 1);
	dirty_set(&a, 513 * 512, 1);
	dirty_export(&a, 0, bytes, sizeof(bytes));
	assert_int_equal(bytes[0], 8);
	assert_int_equal(bytes[1], 1);
	assert_int_equal(bytes[64], 2);
	assert_int_equal(bytes[65], 0);
	memset(bytes + 64, 0xff, 64);	/* what a file says past the end is not believed */
	dirty_import(&b, 0, bytes, 64);
	dirty_import(&b, 64, bytes + 64, 64);
	assert_int_equal(b.count, 4);
	dirty_fini(&a);
	dirty_fini(&b);
}

static void test_resize_and_merge(void **state)
{
	struct dirty a, b;

	(void)state;
	assert_int_equal(dirty_init(&a, SIZE, GRAN_BITS) | dirty_init(&b, SIZE / 2, 16), 0);
	dirty_set_all(&a);
	assert_int_equal(dirty_resize(&a, 65 * 512), 0);
	assert_int_equal(a.count, 65);
	assert_int_equal(dirty_resize(&a, SIZE), 0);
	assert_int_equal(a.count, 65);
	dirty_set(&b, 70000, 1);
	dirty_merge(&a, &b);
	assert_int_equal(a.count, 65 + 128);
	dirty_clear_all(&b);
	dirty_merge(&b, &a);
	assert_int_equal(b.count, 2);
	dirty_fini(&a);
	dirty_fini(&b);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_against_model),
		cmocka_unit_test(test_bytes_of_the_last_granule),
		cmocka_unit_test(test_file_form),
		cmocka_unit_test(test_resize_and_merge),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
