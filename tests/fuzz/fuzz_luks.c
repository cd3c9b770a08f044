/*
 * fuzz_luks [SEED [COUNT]]: damaged headers of LUKS volumes, alone and inside qcow2, are opened and looked at.  Nothing
 * may crash, hang, or take memory without bound.  Passphrases are not tried: the time that one takes is the header's
 * choice.
 *
 * LLVMFuzzerTestOneInput is what libFuzzer calls, with an image's bytes (compile with -DLIBFUZZER to leave main() out).
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

#define INPUT_MAX (24u << 20)
#define SEED_BYTES (4u << 20)		/* what of a volume is worth damaging */

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t len);

static void look(struct disk *d, int image, const char *format)
{
	const struct block_fd fds[] = { { "image", image } };
	const struct block_options o = { .format = format, .fds = fds, .nfds = 1, .flags = BLOCK_READONLY |
					 BLOCK_LOCKED | BLOCK_NO_BACKING | BLOCK_SHARE | BLOCK_NO_IO_URING };
	struct block_info info;
	uint8_t sector[512];
	struct error e = { 0 };

	if (block_open_with(&d->b, d->loop, "image", &o, &e))
		return;
	block_info(d->b, 0, &info);
	if (block_size(d->b) >= sizeof(sector))
		disk_read(d, 0, sector, sizeof(sector));
	block_close(d->b);
}

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t len)
{
	struct disk d = { .loop = loop_new() };
	int image = memfd_create("image", MFD_CLOEXEC);

	if (len <= INPUT_MAX) {
		if (image < 0 || write(image, bytes, len) != (ssize_t)len || ftruncate(image, INPUT_MAX))
			die("memfd: %s", strerror(errno));
		look(&d, image, "luks");
		look(&d, image, "qcow2");
	}
	close(image);
	loop_free(d.loop);
	return 0;
}

#ifndef LIBFUZZER

static const struct { const char *format; enum block_encryption how; } kinds[] = {
	{ "luks", BLOCK_ENCRYPT_LUKS1 }, { "luks", BLOCK_ENCRYPT_LUKS2 }, { "qcow2", BLOCK_ENCRYPT_LUKS1 },
};

static uint8_t *seed_image(unsigned kind, size_t *len)
{
	const struct block_create c = { .size_bytes = 1 << 20, .encrypt = kinds[kind].how, .secret_file = "key",
					.kdf_ms = 10, .overwrite = true };
	struct disk d = { 0 };
	uint8_t *p = calloc(1, SEED_BYTES);
	int fd;

	disk_create(&d, "seed", kinds[kind].format, &c);
	loop_free(d.loop);
	fd = open("seed", O_RDONLY);
	*len = (size_t)pread(fd, p, SEED_BYTES, 0);
	close(fd);
	return p;
}

/* In the header, or in the text of LUKS2's. */
static void damage(uint8_t *p, size_t len, bool qcow2)
{
	static const char text[] = "0123456789\"{}[]:,-ex";
	size_t start = qcow2 ? 4 * 65536 : 0, at = start + (size_t)random() % 208;

	if (qcow2 && random() % 4 == 0)
		at = (size_t)random() % 600;
	else if (random() % 2)
		at = start + 4096 + (size_t)random() % 1200;
	if (at + 8 > len)
		return;
	switch (random() % 5) {
	case 0: p[at] ^= (uint8_t)(1 << random() % 8); break;
	case 1: p[at] = (uint8_t)random(); break;
	case 2: p[at] = (uint8_t)text[(size_t)random() % (sizeof(text) - 1)]; break;
	case 3: store_be32(p + (at & ~3ull), random() & 1 ? UINT32_MAX : (uint32_t)(random() % 10000)); break;
	default: store_be32(p + (at & ~3ull), (uint32_t)random());
	}
}

int main(int argc, char **argv)
{
	unsigned seed = argc > 1 ? (unsigned)strtoul(argv[1], NULL, 10) : 1;
	unsigned long count = argc > 2 ? strtoul(argv[2], NULL, 10) : 100;
	char dir[64];

	go_to_folder(dir);
	if (shell("printf secret >key"))
		die("make the key");
	srandom(seed);
	for (unsigned kind = 0; kind < sizeof(kinds) / sizeof(kinds[0]); kind++) {
		size_t whole;
		uint8_t *p = seed_image(kind, &whole), *q = malloc(whole);

		for (unsigned long i = 0; i < count; i++) {
			memcpy(q, p, whole);
			for (long n = 1 + random() % 4; n--;)
				damage(q, whole, kind == 2);
			LLVMFuzzerTestOneInput(q, random() % 16 ? whole : 1 + (size_t)random() % whole);
		}
		free(p);
		free(q);
	}
	return shell("rm -r %s", dir);
}

#endif
