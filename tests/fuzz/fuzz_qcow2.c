/*
 * Damaged qcow2 images are opened, read, checked, repaired and written: header, L1, L2, refcount and snapshot tables,
 * bitmaps and their directory.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "../block/disk.h"
#include "base/endian.h"
#include "fuzz.h"
#include "host/loop.h"

#define INPUT_MAX (4u << 20)

struct fuzz {
	struct disk d;
	int image, data;
	uint8_t buf[70000];
};

static bool open_image(struct fuzz *f, unsigned flags)
{
	const struct block_fd fds[] = { { "image", f->image }, { "data", f->data } };
	struct block_options o = { .format = "qcow2", .flags = flags | BLOCK_NO_BACKING | BLOCK_SHARE | BLOCK_NO_IO_URING,
				   .data_path = "data", .fds = fds, .nfds = 2 };
	struct error e = { 0 };

	return block_open_with(&f->d.b, f->d.loop, "image", &o, &e) == 0;
}

/* Some places all over the disk, and what is there. */
static void look(struct fuzz *f)
{
	uint64_t size = block_size(f->d.b), step = size / 24 & ~511ull;
	struct block_snapshot *list;
	struct block_bitmap *bitmaps;
	struct block_status st;
	struct block_info info;
	struct error e;
	unsigned n;

	for (uint64_t at = 0, i = 0; at < size && i < 32; at += step + 512, i++) {
		uint64_t left = size - at;

		disk_read(&f->d, at, f->buf, left < 65536 ? left : 65536);
		disk_status(&f->d, at, left, UINT32_MAX, &st);
	}
	block_info(f->d.b, 0, &info);
	if (!block_snapshot_list(f->d.b, &list, &n, &e))
		free(list);
	if (!block_bitmap_list(f->d.b, &bitmaps, &n, &e))
		free(bitmaps);
}

static void change(struct fuzz *f)
{
	uint64_t size = block_size(f->d.b), step = size / 12 & ~511ull;
	struct error e = { 0 };

	for (uint64_t at = 0, i = 0; at < size && i < 16; at += step + 512, i++) {
		uint64_t left = size - at, len = left < 33 * 512 ? left : 33 * 512;

		switch (i % 4) {
		case 0: disk_zero(&f->d, at, len, i & 4); break;
		case 1: disk_discard(&f->d, at, left < 1 << 20 ? left : 1 << 20); break;
		default: disk_write(&f->d, at, f->buf, len);
		}
	}
	disk_flush(&f->d);
	block_snapshot_create(f->d.b, "fuzz", &e);
	disk_write(&f->d, 0, f->buf, size < 4096 ? size : 4096);
	block_snapshot_apply(f->d.b, "fuzz", &e);
	block_snapshot_delete(f->d.b, "fuzz", &e);
	block_bitmap_add(f->d.b, "fuzz", 512, &e);
	block_bitmap_merge(f->d.b, "fuzz", "seed", &e);
	block_bitmap_clear(f->d.b, "seed", &e);
	disk_zero(&f->d, 0, size < 4096 ? size : 4096, true);
	block_bitmap_remove(f->d.b, "fuzz", &e);
	if (size < 1ull << 40)
		block_resize(f->d.b, size + 65536, 0, &e);
}

static void repair(struct fuzz *f)
{
	struct block_check c = { 0 }, after = { 0 };
	struct error e = { 0 };

	if (!open_image(f, BLOCK_REPAIR))
		return;
	block_check(f->d.b, BLOCK_REPAIR_LEAKS | BLOCK_REPAIR_ERRORS, &c, &e);
	block_close(f->d.b);
	if (!open_image(f, BLOCK_READONLY))
		return;
	block_check(f->d.b, 0, &after, &e);
	block_close(f->d.b);
}

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t len)
{
	struct fuzz *f = calloc(1, sizeof(*f));

	if (len > INPUT_MAX) {
		free(f);
		return 0;
	}
	f->d.loop = loop_new();
	f->image = fuzz_memfd(bytes, len);
	f->data = fuzz_memfd(NULL, 0);
	if (open_image(f, BLOCK_READONLY)) {
		struct block_check c = { 0 };
		struct error e = { 0 };

		look(f);
		block_check(f->d.b, 0, &c, &e);
		block_close(f->d.b);
	}
	if (open_image(f, 0)) {
		change(f);
		look(f);
		block_close(f->d.b);
	}
	repair(f);
	if (open_image(f, 0)) {
		change(f);
		block_close(f->d.b);
	}
	close(f->image);
	close(f->data);
	loop_free(f->d.loop);
	free(f);
	return 0;
}

static const struct block_create kinds[] = {
	{ .cluster_bytes = 512, .size_bytes = 256 << 10 },
	{ .cluster_bytes = 512, .size_bytes = 256 << 10, .refcount_bits = 64 },
	{ .cluster_bytes = 512, .size_bytes = 256 << 10, .refcount_bits = 2 },
	{ .cluster_bytes = 1024, .size_bytes = 256 << 10, .version = 2 },
	{ .cluster_bytes = 4096, .size_bytes = 1 << 20, .zstd = true },
	{ .cluster_bytes = 16384, .size_bytes = 2 << 20, .extended_l2 = true },
	{ .cluster_bytes = 4096, .size_bytes = 1 << 20, .lazy_refcounts = true },
	{ .cluster_bytes = 4096, .size_bytes = 1 << 20, .data_path = "seed.data", .overwrite = true },
	{ .cluster_bytes = 65536, .size_bytes = 4 << 20 },
};

static uint8_t *seed(unsigned kind, size_t *len)
{
	const struct block_create *c = &kinds[kind];
	uint8_t bytes[8192];
	struct error e = { 0 };
	struct disk d = { 0 };

	if (kind == sizeof(kinds) / sizeof(kinds[0]))
		return NULL;
	unlink("seed.qcow2");
	disk_create(&d, "seed.qcow2", "qcow2", c);
	disk_open(&d, "seed.qcow2", &(struct block_options){ .format = "qcow2" });
	if (kind % 2 == 0 && block_bitmap_add(d.b, "seed", kind % 4 ? 65536 : 512, &e))
		die("%s", e.why);
	for (unsigned i = 0; i < 24; i++) {
		uint64_t at = (uint64_t)random() % (c->size_bytes / 512 - 16) * 512;

		memset(bytes, (int)i, sizeof(bytes));
		if (i % 6 == 5)
			disk_zero(&d, at, 8192, i & 1);
		else
			disk_write(&d, at, bytes, (1 + (size_t)random() % 16) * 512);
		if (i == 12 && !c->data_path && c->refcount_bits != 1)
			block_snapshot_create(d.b, "seed", &e);
		if (i % 8 == 7 && c->cluster_bytes <= sizeof(bytes) && !c->data_path)
			disk_compress(&d, at / c->cluster_bytes * c->cluster_bytes, bytes, c->cluster_bytes);
	}
	disk_close(&d);
	loop_free(d.loop);
	return file_read("seed.qcow2", len);
}

/* The header, a cluster that looks like a table, or anywhere. */
static void damage(unsigned kind, uint8_t *p, size_t len)
{
	uint32_t cluster = kinds[kind].cluster_bytes;
	size_t at, clusters = len / cluster;

	switch (random() % 4) {
	case 0: at = (size_t)random() % 112; break;
	case 1: at = (size_t)random() % 12 * cluster + (size_t)random() % 64; break;
	case 2: at = (size_t)random() % clusters * cluster + (size_t)random() % 128; break;
	default: at = (size_t)random();
	}
	switch (random() % 3) {
	case 0: store_be64(p + at % (len - 8) / 8 * 8, (uint64_t)(random() % 64) * cluster); break;
	case 1: store_be64(p + at % (len - 8) / 8 * 8, (uint64_t)(random() % 64) * cluster | 1ull << 63); break;
	default: fuzz_change(p, len, at, true);
	}
}

const struct fuzz_target fuzz_target = { .seed = seed, .damage = damage };
