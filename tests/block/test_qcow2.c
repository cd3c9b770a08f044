/* What the random testers do not reach: opening, refusing, telling, and the calls of a disk around a format. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>
#include <errno.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/endian.h"
#include "disk.h"
#include "host/loop.h"

#define MIB (1ull << 20)

struct world {
	struct disk d;
	char dir[64];
	uint8_t buf[65536 * 4];
};

static int setup(void **state)
{
	struct world *w = calloc(1, sizeof(*w));

	go_to_folder(w->dir);
	w->d.loop = loop_new();
	*state = w;
	return 0;
}

static int teardown(void **state)
{
	struct world *w = *state;

	block_close(w->d.b);
	loop_free(w->d.loop);
	shell("rm -r %s", w->dir);
	free(w);
	return 0;
}

static void create(struct world *w, const char *path, struct block_create c)
{
	if (!c.size_bytes && !c.backing_path)
		c.size_bytes = MIB;
	disk_create(&w->d, path, "qcow2", &c);
}

static void refused(struct world *w, const char *path, const char *format, unsigned flags, int err, const char *why)
{
	struct error e = { 0 };
	struct block *b;

	assert_int_equal(block_open(&b, w->d.loop, path, format, flags, &e), -err);
	if (!strstr(e.why, why))
		fail_msg("'%s' does not say '%s'", e.why, why);
	assert_true(e.todo[0]);
}

static void patch(const char *path, off_t at, const void *bytes, size_t len)
{
	int fd = open(path, O_WRONLY);

	assert_int_equal(pwrite(fd, bytes, len, at), len);
	close(fd);
}

static void patch64(const char *path, off_t at, uint64_t v)
{
	uint8_t b[8];

	store_be64(b, v);
	patch(path, at, b, 8);
}

/* The name and the content have to agree, or the user says. */
static void test_format(void **state)
{
	struct world *w = *state;

	create(w, "a.qcow2", (struct block_create){ 0 });
	disk_open(&w->d, "a.qcow2", &(struct block_options){ 0 });
	assert_string_equal(block_format(w->d.b), "qcow2");
	assert_int_equal(block_size(w->d.b), MIB);
	disk_close(&w->d);
	assert_int_equal(rename("a.qcow2", "a.raw"), 0);
	refused(w, "a.raw", NULL, 0, EINVAL, "qcow2");
	disk_open(&w->d, "a.raw", &(struct block_options){ .format = "raw" });
	assert_string_equal(block_format(w->d.b), "raw");
	disk_close(&w->d);
	disk_open(&w->d, "a.raw", &(struct block_options){ .flags = BLOCK_PROBE });
	assert_string_equal(block_format(w->d.b), "qcow2");
	disk_close(&w->d);
	assert_int_equal(shell("truncate -s 1M b.qcow2"), 0);
	refused(w, "b.qcow2", NULL, 0, EINVAL, "the name says qcow2");
	refused(w, "b.qcow2", "qcow2", 0, EINVAL, "not one of a qcow2");
}

static void test_chain(void **state)
{
	struct world *w = *state;
	struct block_info info;
	struct block_status st;
	uint8_t got[512];

	assert_int_equal(mkdir("sub", 0755), 0);
	create(w, "sub/base.qcow2", (struct block_create){ 0 });
	create(w, "sub/mid.qcow2", (struct block_create){ .backing_path = "base.qcow2", .size_bytes = 2 * MIB });
	create(w, "top.qcow2", (struct block_create){ .backing_path = "sub/mid.qcow2", .backing_format = "qcow2" });
	memset(w->buf, 7, 512);
	disk_open(&w->d, "sub/base.qcow2", &(struct block_options){ 0 });
	assert_int_equal(disk_write(&w->d, 65536, w->buf, 512), 0);
	disk_close(&w->d);
	disk_open(&w->d, "top.qcow2", &(struct block_options){ 0 });
	assert_int_equal(block_size(w->d.b), 2 * MIB);
	assert_int_equal(disk_read(&w->d, 65536, got, 512), 0);
	assert_int_equal(got[511], 7);
	assert_int_equal(disk_status(&w->d, 65536, 65536, UINT32_MAX, &st), 0);
	assert_int_equal(st.depth, 2);
	assert_true(st.flags & BLOCK_STATUS_DATA && st.flags & BLOCK_STATUS_OFFSET);
	assert_int_equal(disk_status(&w->d, 65536, 65536, 0, &st), 0);
	assert_false(st.flags & BLOCK_STATUS_ALLOCATED);
	assert_int_equal(disk_status(&w->d, MIB, MIB, UINT32_MAX, &st), 0);
	assert_true(st.flags & BLOCK_STATUS_ZERO);
	assert_int_equal(disk_write(&w->d, 0, w->buf, 512), 0);
	assert_int_equal(disk_status(&w->d, 0, MIB, UINT32_MAX, &st), 0);
	assert_int_equal(st.depth, 0);
	assert_int_equal(st.len, 65536);
	assert_int_equal(block_info(w->d.b, 1, &info), 0);
	assert_string_equal(info.backing_path, "base.qcow2");
	assert_int_equal(block_info(w->d.b, 3, &info), -ENOENT);
}

static void test_locks(void **state)
{
	struct world *w = *state;

	create(w, "base.qcow2", (struct block_create){ 0 });
	create(w, "top.qcow2", (struct block_create){ .backing_path = "base.qcow2" });
	create(w, "other.qcow2", (struct block_create){ .backing_path = "base.qcow2" });
	disk_open(&w->d, "top.qcow2", &(struct block_options){ 0 });
	refused(w, "top.qcow2", NULL, BLOCK_READONLY, EBUSY, "in use");
	refused(w, "base.qcow2", NULL, 0, EBUSY, "in use");
	struct disk other = { .loop = w->d.loop };
	disk_open(&other, "other.qcow2", &(struct block_options){ 0 });
	disk_close(&other);
}

static void test_loops(void **state)
{
	struct world *w = *state;

	create(w, "a.qcow2", (struct block_create){ 0 });
	create(w, "b.qcow2", (struct block_create){ .backing_path = "a.qcow2" });
	create(w, "c.qcow2", (struct block_create){ .backing_path = "b.qcow2" });
	assert_int_equal(rename("c.qcow2", "a.qcow2"), 0);
	refused(w, "b.qcow2", NULL, BLOCK_READONLY, ELOOP, "loop");
	create(w, "d.qcow2", (struct block_create){ 0 });
	create(w, "e.qcow2", (struct block_create){ .backing_path = "d.qcow2" });
	unlink("d.qcow2");
	refused(w, "e.qcow2", NULL, 0, ENOENT, "No such file");
	disk_open(&w->d, "e.qcow2", &(struct block_options){ .flags = BLOCK_NO_BACKING | BLOCK_READONLY });
}

static void test_ephemeral(void **state)
{
	struct world *w = *state;
	struct stat before, after;

	create(w, "a.qcow2", (struct block_create){ 0 });
	stat("a.qcow2", &before);
	disk_open(&w->d, "a.qcow2", &(struct block_options){ .flags = BLOCK_EPHEMERAL });
	memset(w->buf, 9, 4096);
	assert_int_equal(disk_write(&w->d, 8192, w->buf, 4096), 0);
	memset(w->buf, 0, 4096);
	assert_int_equal(disk_read(&w->d, 8192, w->buf, 4096), 0);
	assert_int_equal(w->buf[4095], 9);
	disk_close(&w->d);
	stat("a.qcow2", &after);
	assert_int_equal(before.st_size, after.st_size);
	assert_int_equal(before.st_mtim.tv_nsec, after.st_mtim.tv_nsec);
}

static void test_header_refused(void **state)
{
	struct world *w = *state;
	static const struct { int at; uint64_t v; const char *why; } bad[] = {
		{ 72, 1ull << 40, "features" }, { 20, 8ull << 32, "cluster size" }, { 20, 22ull << 32, "cluster size" },
		{ 40, 512, "L1 table" }, { 48, 0, "refcount table" }, { 48, 65537, "refcount table" },
		{ 24, INT64_MAX, "disk size" }, { 24, 1ull << 45, "too small" }, { 40, 1ull << 50, "past the end" },
		{ 96, 7ull << 32 | 112, "64 bits" }, { 96, 4ull << 32 | 100, "cut short" },
		{ 60, 1ull << 32, "snapshot table" },
	};

	for (unsigned i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
		unlink("a.qcow2");
		create(w, "a.qcow2", (struct block_create){ 0 });
		patch64("a.qcow2", bad[i].at, bad[i].v);
		refused(w, "a.qcow2", NULL, BLOCK_READONLY, EINVAL, bad[i].why);
	}
}

/* An L2 entry that sends guest data to the refcount table: the write fails, the table stays. */
static void test_no_write_over_metadata(void **state)
{
	struct world *w = *state;
	struct block_info info;
	struct error e = { 0 };
	uint64_t l2;
	int fd;

	create(w, "a.qcow2", (struct block_create){ 0 });
	disk_open(&w->d, "a.qcow2", &(struct block_options){ 0 });
	assert_int_equal(disk_write(&w->d, 0, w->buf, 4096), 0);
	disk_close(&w->d);
	fd = open("a.qcow2", O_RDONLY);
	assert_int_equal(pread(fd, &l2, 8, 3 * 65536), 8);
	close(fd);
	l2 = load_be64(&l2) & 0x00fffffffffffe00ull;
	patch64("a.qcow2", (off_t)l2, 65536 | 1ull << 63);
	disk_open(&w->d, "a.qcow2", &(struct block_options){ 0 });
	assert_int_equal(disk_write(&w->d, 0, w->buf, 4096), -EIO);
	assert_int_equal(disk_write(&w->d, 512 * 1024, w->buf, 4096), -EIO);
	disk_close(&w->d);
	refused(w, "a.qcow2", NULL, 0, EINVAL, "corrupt");
	disk_open(&w->d, "a.qcow2", &(struct block_options){ .flags = BLOCK_READONLY });
	assert_int_equal(block_info(w->d.b, 0, &info), 0);
	assert_true(info.corrupt);
	disk_close(&w->d);
	disk_open(&w->d, "a.qcow2", &(struct block_options){ .flags = BLOCK_REPAIR });
	struct block_check c = { 0 };
	assert_int_equal(block_check(w->d.b, BLOCK_REPAIR_ERRORS | BLOCK_REPAIR_LEAKS, &c, &e), 0);
}

static void test_unknown_extension_kept(void **state)
{
	struct world *w = *state;
	uint8_t ext[24] = { 0x12, 0x34, 0x56, 0x78, 0, 0, 0, 8, 'k', 'e', 'e', 'p', ' ', 'm', 'e', '!' }, got[24];
	int fd;

	create(w, "a.qcow2", (struct block_create){ 0 });
	patch("a.qcow2", 112, ext, sizeof(ext));	/* in place of the feature names */
	patch64("a.qcow2", 88, 1ull << 50);		/* an unknown autoclear feature */
	disk_open(&w->d, "a.qcow2", &(struct block_options){ 0 });
	assert_int_equal(disk_write(&w->d, 0, w->buf, 65536), 0);
	assert_int_equal(block_resize(w->d.b, 2 * MIB, 0, NULL), 0);
	disk_close(&w->d);
	fd = open("a.qcow2", O_RDONLY);
	assert_int_equal(pread(fd, got, sizeof(got), 112), sizeof(got));
	assert_memory_equal(got, ext, sizeof(ext));
	assert_int_equal(pread(fd, got, 8, 88), 8);
	assert_int_equal(load_be64(got), 0);
	close(fd);
}

static void test_readonly_and_resize(void **state)
{
	struct world *w = *state;
	struct error e = { 0 };

	create(w, "a.qcow2", (struct block_create){ 0 });
	disk_open(&w->d, "a.qcow2", &(struct block_options){ .flags = BLOCK_READONLY });
	assert_int_equal(disk_write(&w->d, 0, w->buf, 512), -EROFS);
	assert_int_equal(block_resize(w->d.b, 2 * MIB, 0, &e), -EROFS);
	assert_int_equal(block_snapshot_create(w->d.b, "s", &e), -EROFS);
	disk_close(&w->d);
	disk_open(&w->d, "a.qcow2", &(struct block_options){ 0 });
	assert_int_equal(block_resize(w->d.b, MIB / 2, 0, &e), -EINVAL);
	assert_int_equal(block_resize(w->d.b, 513, BLOCK_SHRINK, &e), -EINVAL);
	assert_int_equal(block_resize(w->d.b, MIB / 2, BLOCK_SHRINK, &e), 0);
	assert_int_equal(disk_read(&w->d, MIB / 2, w->buf, 512), -EINVAL);
	assert_int_equal(block_resize(w->d.b, 1ull << 40, 0, &e), 0);
	assert_int_equal(disk_write(&w->d, (1ull << 40) - 512, w->buf, 512), 0);
	assert_int_equal(block_snapshot_apply(w->d.b, "none", &e), -ENOENT);
}

/* While a disk is held, requests wait; they run in order afterwards. */
static void test_hold(void **state)
{
	struct world *w = *state;
	struct disk held = { .loop = w->d.loop, .pending = 1 };

	create(w, "a.qcow2", (struct block_create){ 0 });
	disk_open(&w->d, "a.qcow2", &(struct block_options){ 0 });
	struct iovec iov = { w->buf, 4096 };
	w->d.pending = 1;
	block_writev(w->d.b, 0, &iov, 1, disk_done, &w->d);
	block_hold(w->d.b, disk_done, &held);
	assert_int_equal(disk_wait(&held), 0);
	assert_int_equal(w->d.pending, 0);
	w->d.pending = 2;
	block_writev(w->d.b, 65536, &iov, 1, disk_done, &w->d);
	block_readv(w->d.b, 65536, &iov, 1, disk_done, &w->d);
	assert_int_equal(w->d.pending, 2);
	block_release(w->d.b);
	assert_int_equal(disk_wait(&w->d), 0);
}

/* A clone shares, so it is small however large its disk. */
static void test_clone_is_small(void **state)
{
	struct world *w = *state;
	struct stat st;

	create(w, "base.qcow2", (struct block_create){ .size_bytes = 40ull << 30 });
	create(w, "clone.qcow2", (struct block_create){ .backing_path = "base.qcow2" });
	assert_int_equal(stat("clone.qcow2", &st), 0);
	assert_true(st.st_size < 1 << 20);
	disk_open(&w->d, "clone.qcow2", &(struct block_options){ 0 });
	assert_int_equal(block_size(w->d.b), 40ull << 30);
}

static void test_create_refused(void **state)
{
	struct world *w = *state;
	static const struct block_create bad[] = {
		{ .cluster_bytes = 3000 }, { .cluster_bytes = 4 << 20 }, { .refcount_bits = 3 }, { .version = 4 },
		{ .version = 2, .zstd = true }, { .extended_l2 = true, .cluster_bytes = 4096 }, { .data_raw = true },
		{ .size_bytes = 1ull << 60, .cluster_bytes = 512 },
	};
	struct error e;

	for (unsigned i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
		struct block_create c = bad[i];

		c.size_bytes = c.size_bytes ? c.size_bytes : MIB;
		assert_int_equal(block_create(w->d.loop, "new.qcow2", "qcow2", &c, &e), -EINVAL);
		assert_int_equal(access("new.qcow2", F_OK), -1);
	}
	create(w, "there.qcow2", (struct block_create){ 0 });
	assert_int_equal(block_create(w->d.loop, "there.qcow2", "qcow2",
				      &(struct block_create){ .size_bytes = MIB }, &e), -EEXIST);
	assert_int_equal(block_create(w->d.loop, "b.qcow2", "qcow2",
				      &(struct block_create){ .backing_path = "nowhere" }, &e), -ENOENT);
}

#define T(name) cmocka_unit_test_setup_teardown(name, setup, teardown)

int main(void)
{
	const struct CMUnitTest tests[] = {
		T(test_format), T(test_chain), T(test_locks), T(test_loops), T(test_ephemeral), T(test_header_refused),
		T(test_no_write_over_metadata), T(test_unknown_extension_kept), T(test_readonly_and_resize), T(test_hold),
		T(test_clone_is_small), T(test_create_refused),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
