/*
 * fuzz_formats [SEED [COUNT]]: damaged images of formats that are read only are opened and read.  Nothing may crash,
 * hang, or take memory without bound; a sanitizer build sees reads beyond bounds.
 *
 * LLVMFuzzerTestOneInput is what libFuzzer calls, with an image's bytes (compile with -DLIBFUZZER to leave main() out,
 * and with -DFORMAT='"vmdk"' for one format alone); by itself the program damages images that qemu-img makes.
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
#include "block/vhdx/vhdx.h"
#include "host/loop.h"

#define INPUT_MAX (24u << 20)

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t len);

struct fuzz {
	struct disk d;
	int image;
	uint8_t buf[70000];
};

#ifdef FORMAT
static const char *const formats[] = { FORMAT };
#else
static const char *const formats[] = { "vdi", "vhdx", "vmdk" };
#endif

static bool open_image(struct fuzz *f, const char *format)
{
	const struct block_fd fds[] = { { "image", f->image } };
	struct block_options o = { .format = format, .fds = fds, .nfds = 1,
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
	f->image = memfd_create("image", MFD_CLOEXEC);
	if (f->image < 0 || write(f->image, bytes, len) != (ssize_t)len)
		die("memfd: %s", strerror(errno));
	for (unsigned i = 0; i < sizeof(formats) / sizeof(formats[0]); i++) {
		if (!open_image(f, formats[i]))
			continue;
		look(f);
		block_close(f->d.b);
	}
	close(f->image);
	loop_free(f->d.loop);
	free(f);
	return 0;
}

#ifndef LIBFUZZER

static const struct { const char *format, *options; size_t places[6]; } kinds[] = {
	{ "vdi", "static=off", { 0x40, 0x150, 0x170, 512 } },
	{ "vmdk", "subformat=monolithicSparse", { 0, 512, 21 * 512, 22 * 512, 26 * 512 } },
	{ "vmdk", "subformat=streamOptimized", { 0, 512, 21 * 512, 22 * 512, 65536 } },
	{ "vmdk", "subformat=monolithicFlat", { 0, 32, 100, 200 } },
	{ "vhdx", "block_size=1M", { 65536, 131072, 196608, 1 << 20, 2 << 20, 3 << 20 } },
};

static uint8_t *seed_image(unsigned kind, size_t *len)
{
	if (shell("rm -f seed*; truncate -s 3M seed.raw; printf 'write -P 3 64k 100k\nwrite -P 4 1500k 900k\n' | "
		  "qemu-io -f raw seed.raw; qemu-img convert -O %s -o %s seed.raw seed.image", kinds[kind].format,
		  kinds[kind].options))
		die("make a seed");
	return file_read("seed.image", len);
}

/* A byte, bit or word, mostly near where tables are. */
static void damage(uint8_t *p, size_t len, const size_t *places)
{
	size_t at = random() % 4 ? places[random() % 6] + (size_t)random() % 128 : (size_t)random();
	uint64_t some = (uint64_t)random() << 33 ^ (uint64_t)random();

	at = len > 8 ? at % (len - 8) : 0;
	if (len <= 8)
		return;
	switch (random() % 6) {
	case 0: p[at] ^= (uint8_t)(1 << random() % 8); break;
	case 1: p[at] = (uint8_t)random(); break;
	case 2: store_le32(p + (at & ~3ull), (uint32_t)(random() % 64)); break;
	case 3: store_le32(p + (at & ~3ull), UINT32_MAX - (uint32_t)(random() % 3)); break;
	case 4: store_le64(p + (at & ~7ull), some >> random() % 64); break;
	default: store_le32(p + (at & ~3ull), (uint32_t)random());
	}
}

/* So that damage behind checksums is seen, too. */
static void sum_again(uint8_t *p, size_t len)
{
	static const struct { size_t at, len; } parts[] = { { 65536, 4096 }, { 131072, 4096 }, { 196608, 65536 },
							     { 262144, 65536 } };

	for (unsigned i = 0; i < 4 && random() % 4; i++) {
		if (len < parts[i].at + parts[i].len)
			return;
		store_le32(p + parts[i].at + 4, 0);
		store_le32(p + parts[i].at + 4, crc32c(0, p + parts[i].at, parts[i].len));
	}
}

int main(int argc, char **argv)
{
	unsigned seed = argc > 1 ? (unsigned)strtoul(argv[1], NULL, 10) : 1;
	unsigned long count = argc > 2 ? strtoul(argv[2], NULL, 10) : 400;
	char dir[64];

	if (!have_qemu())
		return 77;
	go_to_folder(dir);
	srandom(seed);
	for (unsigned kind = 0; kind < sizeof(kinds) / sizeof(kinds[0]); kind++) {
		size_t whole, len;
		uint8_t *p = seed_image(kind, &whole), *q = malloc(whole);

		for (unsigned long i = 0; i < count; i++) {
			memcpy(q, p, whole);
			for (long n = 1 + random() % 6; n--;)
				damage(q, whole, kinds[kind].places);
			if (!strcmp(kinds[kind].format, "vhdx"))
				sum_again(q, whole);
			len = random() % 16 ? whole : 1 + (size_t)random() % whole;
			file_write("last", q, len);	/* to be found after a crash */
			LLVMFuzzerTestOneInput(q, len);
		}
		free(p);
		free(q);
	}
	return shell("rm -r %s", dir);
}

#endif
