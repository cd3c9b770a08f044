/* Damaged images of a format that is read only, FORMAT, are opened and read.  The honest ones are qemu-img's. */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "../block/disk.h"
#include "base/endian.h"
#include "block/vhdx/vhdx.h"
#include "fuzz.h"
#include "host/loop.h"

#define INPUT_MAX (24u << 20)

struct fuzz {
	struct disk d;
	int image;
	uint8_t buf[70000];
};

static bool open_image(struct fuzz *f)
{
	const struct block_fd fds[] = { { "image", f->image } };
	struct block_options o = { .format = FORMAT, .fds = fds, .nfds = 1,
				   .flags = BLOCK_READONLY | BLOCK_NO_BACKING | BLOCK_SHARE | BLOCK_NO_IO_URING };
	struct error e = { 0 };

	return block_open_with(&f->d.b, f->d.loop, "image", &o, &e) == 0;
}

/* Some places all over the disk, and what is there. */
static void look(struct fuzz *f)
{
	uint64_t size = block_size(f->d.b), step = size / 24 & ~511ull;
	struct block_status st;
	struct block_info info;

	for (uint64_t at = 0, i = 0; at < size && i < 32; at += step + 512, i++) {
		uint64_t left = size - at;

		disk_read(&f->d, at, f->buf, left < 65536 ? left : 65536);
		disk_status(&f->d, at, left, UINT32_MAX, &st);
	}
	block_info(f->d.b, 0, &info);
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
	if (open_image(f)) {
		look(f);
		block_close(f->d.b);
	}
	close(f->image);
	loop_free(f->d.loop);
	free(f);
	return 0;
}

static const struct { const char *format, *options; size_t places[6]; } kinds[] = {
	{ "vdi", "static=off", { 0x40, 0x150, 0x170, 512 } },
	{ "vmdk", "subformat=monolithicSparse", { 0, 512, 21 * 512, 22 * 512, 26 * 512 } },
	{ "vmdk", "subformat=streamOptimized", { 0, 512, 21 * 512, 22 * 512, 65536 } },
	{ "vmdk", "subformat=monolithicFlat", { 0, 32, 100, 200 } },
	{ "vhdx", "block_size=1M", { 65536, 131072, 196608, 1 << 20, 2 << 20, 3 << 20 } },
};
#define KINDS (sizeof(kinds) / sizeof(kinds[0]))

/* The index of this format's nth kind. */
static unsigned find(unsigned nth)
{
	unsigned i = 0;

	for (;; i++)
		if (i == KINDS || (!strcmp(kinds[i].format, FORMAT) && !nth--))
			return i;
}

static uint8_t *seed(unsigned kind, size_t *len)
{
	unsigned i = find(kind);

	if (i == KINDS)
		return NULL;
	if (shell("rm -f seed*; truncate -s 3M seed.raw; printf 'write -P 3 64k 100k\nwrite -P 4 1500k 900k\n' | "
		  "qemu-io -f raw seed.raw; qemu-img convert -O %s -o %s seed.raw seed.image", FORMAT, kinds[i].options))
		die("make a seed");
	return file_read("seed.image", len);
}

/* Mostly near where tables are. */
static void damage(unsigned kind, uint8_t *p, size_t len)
{
	const size_t *places = kinds[find(kind)].places;
	size_t near = places[random() % 6] + (size_t)random() % 128;

	fuzz_change(p, len, random() % 4 ? near : (size_t)random(), false);
}

/* So that damage behind checksums is seen, too. */
static void sum(uint8_t *p, size_t len)
{
	static const struct { size_t at, len; } parts[] = { { 65536, 4096 }, { 131072, 4096 }, { 196608, 65536 },
							     { 262144, 65536 } };

	for (unsigned i = 0; i < 4; i++) {
		if (strcmp(FORMAT, "vhdx") || len < parts[i].at + parts[i].len)
			return;
		store_le32(p + parts[i].at + 4, 0);
		store_le32(p + parts[i].at + 4, crc32c(0, p + parts[i].at, parts[i].len));
	}
}

const struct fuzz_target fuzz_target = { .seed = seed, .damage = damage, .sum = sum, .qemu = true };
