/* Persistent dirty bitmaps: what they say after closing, after a crash of ours or of QEMU's, and what QEMU reads. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>
#include <errno.h>
#include <fcntl.h>

#include "block/qcow2/bitmap.h"
#include "disk.h"
#include "host/loop.h"

#define SIZE (64ull << 20)
#define GRAN 65536u
#define STRETCH (16 * GRAN)		/* what is put ahead at least */

static const struct block_options rw = { .format = "qcow2" }, ro = { .format = "qcow2", .flags = BLOCK_READONLY };

static int setup(void **state)
{
	struct disk *d = calloc(1, sizeof(*d));
	static char dir[64];

	go_to_folder(dir);
	d->loop = loop_new();
	disk_create(d, "a.qcow2", "qcow2", &(struct block_create){ .size_bytes = SIZE });
	*state = d;
	return 0;
}

static int teardown(void **state)
{
	struct disk *d = *state;
	int ret = shell("rm -r \"$PWD\"");

	loop_free(d->loop);
	free(d);
	return ret;
}

static void add(struct disk *d, const char *name)
{
	struct error e = { 0 };

	if (block_bitmap_add(d->b, name, 0, &e))
		die("%s: %s", e.what, e.why);
}

static struct block_bitmap info(struct disk *d, const char *name)
{
	struct block_bitmap *list, out = { .granularity = 0 };
	struct error e;
	unsigned n;

	assert_int_equal(block_bitmap_list(d->b, &list, &n, &e), 0);
	for (unsigned i = 0; i < n; i++)
		if (!strcmp(list[i].name, name))
			out = list[i];
	free(list);
	return out;
}

static uint64_t dirty(struct disk *d, const char *name)
{
	struct block_bitmap b = info(d, name);

	assert_true(b.granularity);
	return b.dirty_bytes;
}

static void put(struct disk *d, uint64_t at, uint32_t len)
{
	uint8_t *buf = malloc(len);

	memset(buf, (int)(at / 512) | 1, len);
	assert_int_equal(disk_write(d, at, buf, len), 0);
	free(buf);
}

/* What QEMU reads of a bitmap: dirty bytes, by way of its NBD server. */
static uint64_t qemu_dirty(const char *image, const char *name)
{
	unsigned long long n = 0;
	FILE *f;

	assert_int_equal(shell("nbdinfo --map=qemu:dirty-bitmap:%s -- [ qemu-nbd -r -f qcow2 -B %s %s ] >map && "
			       "awk '$3 == 1 { n += $2 } END { printf \"%%d\\n\", n }' map >sum", name, name, image), 0);
	f = fopen("sum", "r");
	assert_int_equal(fscanf(f, "%llu", &n), 1);
	fclose(f);
	return n;
}

static bool have_nbdinfo(void)
{
	return have_qemu() && !system("nbdinfo --version >/dev/null 2>&1 && qemu-nbd --version >/dev/null 2>&1");
}

static void check(const char *image)
{
	if (have_qemu())
		assert_int_equal(shell("qemu-img check -f qcow2 %s", image), 0);
}

/* --- closing --- */

static void test_exact_after_closing(void **state)
{
	struct disk *d = *state;

	disk_open(d, "a.qcow2", &rw);
	add(d, "b");
	assert_int_equal(dirty(d, "b"), 0);
	put(d, 5 * GRAN + 512, 512);
	put(d, 40 * GRAN, 3 * GRAN);
	assert_int_equal(disk_zero(d, 100 * GRAN, GRAN, true), 0);
	assert_int_equal(disk_discard(d, 200 * GRAN, GRAN), 0);
	assert_int_equal(dirty(d, "b"), 6 * GRAN);
	disk_close(d);
	check("a.qcow2");
	if (have_nbdinfo())
		assert_int_equal(qemu_dirty("a.qcow2", "b"), 6 * GRAN);
	disk_open(d, "a.qcow2", &ro);
	assert_int_equal(dirty(d, "b"), 6 * GRAN);
	assert_true(info(d, "b").tracking && !info(d, "b").unclean);
	disk_close(d);
}

static void test_changes(void **state)
{
	struct disk *d = *state;
	struct error e;

	disk_open(d, "a.qcow2", &rw);
	add(d, "b");
	put(d, 0, GRAN);
	assert_int_equal(block_bitmap_add(d->b, "c", 4096, &e), 0);
	put(d, 10 * GRAN, 512);
	assert_int_equal(dirty(d, "b"), 2 * GRAN);
	assert_int_equal(dirty(d, "c"), 4096);
	assert_int_equal(block_bitmap_merge(d->b, "c", "b", &e), 0);
	assert_int_equal(dirty(d, "c"), 2 * GRAN);
	assert_int_equal(block_bitmap_clear(d->b, "b", &e), 0);
	assert_int_equal(dirty(d, "b"), 0);
	put(d, 20 * GRAN, 512);
	disk_close(d);
	check("a.qcow2");
	disk_open(d, "a.qcow2", &rw);
	assert_int_equal(dirty(d, "b"), GRAN);
	assert_int_equal(dirty(d, "c"), 2 * GRAN + 4096);
	assert_int_equal(block_bitmap_remove(d->b, "b", &e), 0);
	assert_int_equal(block_bitmap_remove(d->b, "b", &e), -ENOENT);
	put(d, 30 * GRAN, 512);
	disk_close(d);
	check("a.qcow2");
	disk_open(d, "a.qcow2", &rw);
	assert_int_equal(dirty(d, "c"), 2 * GRAN + 2 * 4096);
	assert_int_equal(block_bitmap_remove(d->b, "c", &e), 0);
	disk_close(d);
	check("a.qcow2");
}

static void test_refused(void **state)
{
	struct disk *d = *state;
	struct error e;

	disk_open(d, "a.qcow2", &rw);
	add(d, "b");
	assert_int_equal(block_bitmap_add(d->b, "b", 0, &e), -EEXIST);
	assert_int_equal(block_bitmap_add(d->b, "", 0, &e), -EINVAL);
	assert_int_equal(block_bitmap_add(d->b, "x", 3 * 512, &e), -EINVAL);
	assert_int_equal(block_bitmap_merge(d->b, "b", "nope", &e), -ENOENT);
	assert_int_equal(block_bitmap_clear(d->b, "nope", &e), -ENOENT);
	disk_close(d);
	disk_create(d, "v2.qcow2", "qcow2", &(struct block_create){ .size_bytes = SIZE, .version = 2 });
	disk_open(d, "v2.qcow2", &rw);
	assert_int_equal(block_bitmap_add(d->b, "b", 0, &e), -EOPNOTSUPP);
	disk_close(d);
	disk_create(d, "r.raw", "raw", &(struct block_create){ .size_bytes = SIZE });
	disk_open(d, "r.raw", &(struct block_options){ .format = "raw" });
	assert_int_equal(block_bitmap_add(d->b, "b", 0, &e), -EOPNOTSUPP);
	disk_close(d);
}

/* --- crashes --- */

static void crash(const char *copy)
{
	assert_int_equal(shell("cp a.qcow2 %s", copy), 0);
}

static void test_too_much_after_a_crash(void **state)
{
	struct disk *d = *state;

	disk_open(d, "a.qcow2", &rw);
	add(d, "b");
	put(d, 5 * GRAN, GRAN);
	put(d, 300 * GRAN, GRAN);
	crash("cut.qcow2");
	assert_int_equal(dirty(d, "b"), 2 * GRAN);
	disk_close(d);
	disk_open(d, "cut.qcow2", &ro);
	assert_true(info(d, "b").unclean);
	assert_int_equal(dirty(d, "b"), 2 * STRETCH);
	disk_close(d);
	disk_open(d, "cut.qcow2", &rw);		/* as it says; closing makes it good for QEMU, too */
	put(d, 500 * GRAN, GRAN);
	assert_int_equal(dirty(d, "b"), 2 * STRETCH + GRAN);
	disk_close(d);
	check("cut.qcow2");
	disk_open(d, "cut.qcow2", &ro);
	assert_false(info(d, "b").unclean);
	assert_int_equal(dirty(d, "b"), 2 * STRETCH + GRAN);
	disk_close(d);
	if (have_nbdinfo())
		assert_int_equal(qemu_dirty("cut.qcow2", "b"), 2 * STRETCH + GRAN);
}

/* Other programs do not put bits ahead: what they leave in use may say too little. */
static void test_crash_of_another_program(void **state)
{
	struct disk *d = *state;
	struct qcow2 *q;

	disk_open(d, "a.qcow2", &rw);
	add(d, "b");
	put(d, 5 * GRAN, GRAN);
	q = block_root(d->b)->impl;
	assert_true(q->h.autoclear & AUTOCLEAR_AHEAD);
	crash("cut.qcow2");
	disk_close(d);
	assert_int_equal(shell("printf '\\0' | dd of=cut.qcow2 bs=1 seek=%u conv=notrunc", H_AUTOCLEAR), 0);
	disk_open(d, "cut.qcow2", &ro);
	assert_int_equal(dirty(d, "b"), SIZE);
	disk_close(d);
	disk_open(d, "cut.qcow2", &rw);
	put(d, 0, 512);
	assert_int_equal(shell("cp cut.qcow2 again.qcow2"), 0);
	disk_close(d);
	disk_open(d, "again.qcow2", &ro);
	assert_int_equal(dirty(d, "b"), SIZE);
	disk_close(d);
	check("cut.qcow2");
}

static void test_killed_qemu(void **state)
{
	struct disk *d = *state;

	if (!have_qemu())
		skip();
	disk_open(d, "a.qcow2", &rw);
	add(d, "b");
	put(d, 5 * GRAN, GRAN);
	crash("cut.qcow2");
	disk_close(d);
	/* Our crash, then QEMU's: it opens the image, which drops AHEAD, and writes what the bitmap does not say. */
	assert_int_equal(shell("timeout -s KILL 1 qemu-io -f qcow2 -c 'write 60M 64k' -c flush -c 'sleep 9000' cut.qcow2 || "
			       "true"), 0);
	disk_open(d, "cut.qcow2", &ro);
	assert_int_equal(dirty(d, "b"), SIZE);
	disk_close(d);
}

/* --- QEMU's own --- */

static void test_made_by_qemu(void **state)
{
	struct disk *d = *state;

	if (!have_nbdinfo())
		skip();
	assert_int_equal(shell("qemu-img bitmap --add -g 32768 a.qcow2 q && qemu-img bitmap --add --disable a.qcow2 off && "
			       "qemu-io -f qcow2 -c 'write 1M 64k' a.qcow2"), 0);
	disk_open(d, "a.qcow2", &rw);
	assert_int_equal(dirty(d, "q"), 65536);
	assert_int_equal(info(d, "q").granularity, 32768);
	assert_false(info(d, "off").tracking);
	put(d, 2 << 20, 512);
	disk_close(d);
	check("a.qcow2");
	assert_int_equal(qemu_dirty("a.qcow2", "q"), 65536 + 32768);
	assert_int_equal(shell("qemu-img bitmap --merge q a.qcow2 off && qemu-img bitmap --clear a.qcow2 q && "
			       "qemu-io -f qcow2 -c 'write 4M 64k' a.qcow2"), 0);
	disk_open(d, "a.qcow2", &ro);
	assert_int_equal(dirty(d, "off"), 65536 * 2);	/* of 64 KiB granules */
	assert_int_equal(dirty(d, "q"), 65536);
	disk_close(d);
	assert_int_equal(shell("qemu-img bitmap --remove a.qcow2 q && qemu-img bitmap --remove a.qcow2 off"), 0);
	check("a.qcow2");
}

/* --- size --- */

static void test_resize(void **state)
{
	struct disk *d = *state;
	struct error e;

	disk_open(d, "a.qcow2", &rw);
	add(d, "b");
	assert_int_equal(block_bitmap_add(d->b, "fine", 512, &e), 0);
	put(d, SIZE - GRAN, GRAN);
	assert_int_equal(block_resize(d->b, 5 * SIZE, 0, &e), 0);
	assert_int_equal(dirty(d, "b"), GRAN + 4 * SIZE);
	disk_close(d);
	check("a.qcow2");
	disk_open(d, "a.qcow2", &rw);
	assert_int_equal(dirty(d, "b"), GRAN + 4 * SIZE);
	assert_int_equal(dirty(d, "fine"), GRAN + 4 * SIZE);
	assert_int_equal(block_bitmap_clear(d->b, "b", &e), 0);
	put(d, 5 * SIZE - 512, 512);
	assert_int_equal(dirty(d, "b"), GRAN);
	assert_int_equal(block_resize(d->b, SIZE / 2, BLOCK_SHRINK, &e), 0);
	assert_int_equal(dirty(d, "b"), 0);
	disk_close(d);
	check("a.qcow2");
}

/* What was cut off reads as zeroes when the disk has grown again; a backup has something else there. */
static void test_cut_and_grown(void **state)
{
	struct disk *d = *state;
	struct error e;

	disk_open(d, "a.qcow2", &rw);
	put(d, SIZE - GRAN, GRAN);
	add(d, "b");
	assert_int_equal(block_resize(d->b, SIZE / 2, BLOCK_SHRINK, &e), 0);
	disk_close(d);
	disk_open(d, "a.qcow2", &rw);
	assert_int_equal(block_resize(d->b, SIZE, 0, &e), 0);
	assert_int_equal(dirty(d, "b"), SIZE / 2);
	disk_close(d);
	check("a.qcow2");
}

/* --- snapshots: going back changes all --- */

/* Also where the snapshot is of a larger disk. */
static void test_larger_snapshot(void **state)
{
	struct disk *d = *state;
	struct error e;

	disk_open(d, "a.qcow2", &rw);
	put(d, SIZE - GRAN, GRAN);
	assert_int_equal(block_snapshot_create(d->b, "s", &e), 0);
	assert_int_equal(block_resize(d->b, SIZE / 2, BLOCK_SHRINK, &e), 0);
	add(d, "b");
	assert_int_equal(block_snapshot_apply(d->b, "s", &e), 0);
	assert_int_equal(dirty(d, "b"), SIZE);
	disk_close(d);
	check("a.qcow2");
}

static void test_snapshot_apply(void **state)
{
	struct disk *d = *state;
	struct error e;

	disk_open(d, "a.qcow2", &rw);
	put(d, 0, GRAN);
	assert_int_equal(block_snapshot_create(d->b, "s", &e), 0);
	add(d, "b");
	put(d, 0, GRAN);
	assert_int_equal(dirty(d, "b"), GRAN);
	assert_int_equal(block_snapshot_apply(d->b, "s", &e), 0);
	assert_int_equal(dirty(d, "b"), SIZE);
	disk_close(d);
	check("a.qcow2");
}

/* --- nonsense in the file --- */

static void test_damaged_directory(void **state)
{
	struct disk *d = *state;
	struct qcow2 *q;
	uint64_t dir;
	struct block_bitmap *list;
	struct error e;
	unsigned n;

	disk_open(d, "a.qcow2", &rw);
	add(d, "b");
	q = block_root(d->b)->impl;
	dir = q->h.bitmap_dir_offset;
	disk_close(d);
	for (unsigned at = 0; at < 24; at++) {
		assert_int_equal(shell("cp a.qcow2 bad.qcow2; printf '\\377' | dd of=bad.qcow2 bs=1 seek=%lu conv=notrunc",
				       dir + at), 0);
		disk_open(d, "bad.qcow2", &rw);
		assert_int_equal(block_bitmap_list(d->b, &list, &n, &e), 0);
		free(list);
		put(d, 0, 512);
		disk_close(d);
	}
}

#define T(name) cmocka_unit_test_setup_teardown(name, setup, teardown)

int main(void)
{
	const struct CMUnitTest tests[] = {
		T(test_exact_after_closing), T(test_changes), T(test_refused), T(test_too_much_after_a_crash),
		T(test_crash_of_another_program), T(test_killed_qemu), T(test_made_by_qemu), T(test_resize),
		T(test_cut_and_grown), T(test_larger_snapshot),
		T(test_snapshot_apply), T(test_damaged_directory),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
