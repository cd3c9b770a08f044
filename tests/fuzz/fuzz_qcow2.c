/*
 * fuzz_qcow2 [SEED [COUNT]]: damaged qcow2 images are opened, read, checked, repaired and written.  Nothing may crash,
 * hang, or take memory without bound; a sanitizer build sees reads beyond bounds.  An image that can be repaired must
 * be without errors afterwards.
 *
 * LLVMFuzzerTestOneInput is what libFuzzer calls, with an image's bytes (compile with -DLIBFUZZER to leave main() out);
 * by itself the program makes images with all features, and damages their header and tables.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "../block/disk.h"
#include "base/endian.h"
#include "host/loop.h"

#define INPUT_MAX (4u << 20)

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t len);

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
	f->image = memfd_create("image", MFD_CLOEXEC);
	f->data = memfd_create("data", MFD_CLOEXEC);
	if (f->image < 0 || f->data < 0 || write(f->image, bytes, len) != (ssize_t)len)
		die("memfd: %s", strerror(errno));
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

#ifndef LIBFUZZER

static const struct block_create kinds[] = {
	{ .cluster_bytes = 512, .size_bytes = 256 << 10 },
	{ .cluster_bytes = 512, .size_bytes = 256 << 10, .refcount_bits = 64 },
	{ .cluster_bytes = 512, .size_bytes = 256 << 10, .refcount_bits = 2 },
	{ .cluster_bytes = 1024, .size_bytes = 256 << 10, .version = 2 },
	{ .cluster_bytes = 4096, .size_bytes = 1 << 20, .zstd = true },
	{ .cluster_bytes = 16384, .size_bytes = 2 << 20, .extended_l2 = true },
	{ .cluster_bytes = 4096, .size_bytes = 1 << 20, .lazy_refcounts = true },
	{ .cluster_bytes = 4096, .size_bytes = 1 << 20, .data_path = "seed.data", .overwrite = true },
};

static uint8_t *seed_image(const struct block_create *c, size_t *len)
{
	uint8_t bytes[8192];
	struct error e = { 0 };
	struct disk d = { 0 };

	unlink("seed.qcow2");
	disk_create(&d, "seed.qcow2", "qcow2", c);
	disk_open(&d, "seed.qcow2", &(struct block_options){ .format = "qcow2" });
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

/* A byte, bit or word of the header, of a cluster that looks like a table, or of anywhere. */
static void damage(uint8_t *p, size_t len, uint32_t cluster)
{
	size_t at;

	switch (random() % 4) {
	case 0: at = (size_t)random() % 112; break;
	case 1: at = (size_t)(random() % 12) * cluster + (size_t)random() % 64; break;
	case 2: at = (size_t)(random() % (long)(len / cluster)) * cluster + (size_t)random() % 128; break;
	default: at = (size_t)random() % len;
	}
	at = at % (len - 8);
	switch (random() % 6) {
	case 0: p[at] ^= (uint8_t)(1 << random() % 8); break;
	case 1: p[at] = (uint8_t)random(); break;
	case 2: store_be64(p + (at & ~7ull), (uint64_t)(random() % 64) * cluster); break;
	case 3: store_be64(p + (at & ~7ull), (uint64_t)(random() % 64) * cluster | 1ull << 63); break;
	case 4: store_be64(p + (at & ~7ull), (uint64_t)random() << 33 ^ (uint64_t)random()); break;
	default: store_be32(p + (at & ~3ull), random() & 1 ? UINT32_MAX : (uint32_t)(random() % 100));
	}
}

int main(int argc, char **argv)
{
	unsigned seed = argc > 1 ? (unsigned)strtoul(argv[1], NULL, 10) : 1;
	unsigned long count = argc > 2 ? strtoul(argv[2], NULL, 10) : 400;
	char dir[64];

	go_to_folder(dir);
	srandom(seed);
	for (unsigned long i = 0; i < count; i++) {
		const struct block_create *c = &kinds[(unsigned long)random() % (sizeof(kinds) / sizeof(kinds[0]))];
		size_t len;
		uint8_t *p = seed_image(c, &len);

		for (long n = 1 + random() % 6; n--;)
			damage(p, len, c->cluster_bytes);
		if (random() % 16 == 0)
			len = 1 + (size_t)random() % len;
		file_write("last", p, len);	/* to be found after a crash */
		LLVMFuzzerTestOneInput(p, len);
		free(p);
	}
	return shell("rm -r %s", dir);
}

#endif
