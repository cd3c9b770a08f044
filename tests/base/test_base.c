/* Checked arithmetic, byte order, streams and error lines. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <errno.h>
#include <string.h>

#include "base/checked.h"
#include "base/endian.h"
#include "base/error.h"
#include "base/stream.h"

static void test_checked(void **state)
{
	uint64_t v;

	assert_true(checked_add(UINT64_MAX - 1, 1, &v));
	assert_true(v == UINT64_MAX);
	assert_false(checked_add(UINT64_MAX, 1, &v));
	assert_true(checked_mul(1ull << 32, (1ull << 32) - 1, &v));
	assert_false(checked_mul(1ull << 32, 1ull << 32, &v));
	assert_true(range_inside(0, 10, 10));
	assert_true(range_inside(10, 0, 10));
	assert_false(range_inside(11, 0, 10));
	assert_false(range_inside(1, 10, 10));
	assert_false(range_inside(8, UINT64_MAX, 10));
}

static void test_endian(void **state)
{
	uint8_t b[9] = { 0 };

	store_be32(b + 1, 0x01020304);
	assert_memory_equal(b + 1, "\1\2\3\4", 4);
	assert_int_equal(load_le32(b + 1), 0x04030201);
	store_le64(b + 1, 0x0102030405060708);
	assert_true(load_be64(b + 1) == 0x0807060504030201);
	store_be16(b, 0xabcd);
	assert_int_equal(load_le16(b), 0xcdab);
}

static void stream_fill(struct stream *s)
{
	size_t outer, inner;

	stream_init(s);
	outer = stream_begin(s, "outer", 3);
	stream_put_u8(s, 0x12);
	stream_put_u16(s, 0x3456);
	inner = stream_begin(s, "inner", 1);
	stream_put_u32(s, 0x789abcde);
	stream_end(s, inner);
	stream_put_u64(s, 0x1122334455667788);
	stream_end(s, outer);
}

static void test_stream(void **state)
{
	struct stream s, r;
	size_t end, inner;

	stream_fill(&s);
	assert_false(s.failed);
	stream_init_read(&r, s.data, s.len);
	assert_int_equal(stream_enter(&r, "outer", &end), 3);
	assert_int_equal(stream_get_u8(&r), 0x12);
	assert_int_equal(stream_get_u16(&r), 0x3456);
	assert_int_equal(stream_enter(&r, "inner", &inner), 1);
	stream_leave(&r, inner);	/* unread: skipped */
	assert_true(stream_get_u64(&r) == 0x1122334455667788);
	stream_leave(&r, end);
	assert_false(r.failed);
	assert_int_equal(stream_get_u8(&r), 0);
	assert_true(r.failed);
	stream_init_read(&r, s.data, s.len);
	assert_int_equal(stream_enter(&r, "other", &end), 0);
	assert_true(r.failed);
	stream_fini(&s);
}

/* Cut anywhere, it fails and never reads beyond. */
static void test_stream_short(void **state)
{
	struct stream s, r;
	size_t end, inner;

	stream_fill(&s);
	for (size_t len = 0; len < s.len; len++) {
		stream_init_read(&r, s.data, len);
		stream_enter(&r, "outer", &end);
		stream_get_u8(&r);
		stream_get_u16(&r);
		stream_enter(&r, "inner", &inner);
		stream_get_u32(&r);
		stream_get_u64(&r);
		assert_true(r.failed);
		assert_true(r.pos <= len);
	}
	stream_fini(&s);
}

static void test_error(void **state)
{
	struct error e;

	assert_int_equal(error_set(&e, ENOENT, NULL, "open it", "%s is %d", "x", 7), -ENOENT);
	assert_string_equal(e.what, "open it");
	assert_string_equal(e.why, "x is 7");
	assert_string_equal(e.todo, "");
	assert_int_equal(error_errno(&e, ENOSPC, "free some", "write '%s'", "a"), -ENOSPC);
	assert_string_equal(e.what, "write 'a'");
	assert_string_equal(e.todo, "free some");
	assert_true(strlen(e.why) > 0);
	assert_int_equal(error_set(NULL, EIO, NULL, "a", "b"), -EIO);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_checked), cmocka_unit_test(test_endian), cmocka_unit_test(test_stream),
		cmocka_unit_test(test_stream_short), cmocka_unit_test(test_error),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
