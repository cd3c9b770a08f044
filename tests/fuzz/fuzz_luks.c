/*
 * Damaged headers of LUKS volumes, alone and inside qcow2, are opened and looked at.  Passphrases are not tried: the time
 * that one takes is the header's choice.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <openssl/sha.h>

#include "../block/disk.h"
#include "base/endian.h"
#include "fuzz.h"
#include "host/loop.h"

#define INPUT_MAX (24u << 20)
#define SEED_BYTES(kind) ((kind) == 2 ? 288u << 10 : 32u << 10)	/* what of a volume is worth damaging */

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
	int image = fuzz_memfd(bytes, len);

	if (len <= INPUT_MAX) {
		if (ftruncate(image, INPUT_MAX))
			die("memfd: %s", strerror(errno));
		look(&d, image, "luks");
		look(&d, image, "qcow2");
	}
	close(image);
	loop_free(d.loop);
	return 0;
}

static const struct { const char *format; enum block_encryption how; } kinds[] = {
	{ "luks", BLOCK_ENCRYPT_LUKS1 }, { "luks", BLOCK_ENCRYPT_LUKS2 }, { "qcow2", BLOCK_ENCRYPT_LUKS1 },
};

static uint8_t *seed(unsigned kind, size_t *len)
{
	const struct block_create c = { .size_bytes = 1 << 20, .encrypt = kind < 3 ? kinds[kind].how : 0,
					.secret_file = "key", .kdf_ms = 10, .overwrite = true };
	struct disk d = { 0 };
	uint8_t *p;
	int fd;

	if (kind == sizeof(kinds) / sizeof(kinds[0]))
		return NULL;
	if (shell("printf secret >key"))
		die("make the key");
	p = calloc(1, SEED_BYTES(kind));
	disk_create(&d, "seed", kinds[kind].format, &c);
	loop_free(d.loop);
	fd = open("seed", O_RDONLY);
	*len = (size_t)pread(fd, p, SEED_BYTES(kind), 0);
	close(fd);
	return p;
}

/* In the header, or in the text of LUKS2's. */
static void damage(unsigned kind, uint8_t *p, size_t len)
{
	static const char text[] = "0123456789\"{}[]:,-ex";
	size_t start = kind == 2 ? 4 * 65536 : 0, at = start + (size_t)random() % 208;

	if (kind == 2 && random() % 4 == 0)
		at = (size_t)random() % 600;
	else if (random() % 2)
		at = start + 4096 + (size_t)random() % 1200;
	if (at < len && random() % 4 == 0)
		p[at] = (uint8_t)text[(size_t)random() % (sizeof(text) - 1)];
	else
		fuzz_change(p, len, at, true);
}

/* LUKS2, "Binary header": SHA-256 of the header with its text, the sum's own field as zeroes; twice. */
static void sum(uint8_t *p, size_t len)
{
	uint64_t area = len < 4096 ? 0 : load_be64(p + 8);

	if (len < 4096 || memcmp(p, "LUKS\xba\xbe", 6) || load_be16(p + 6) != 2 || area < 4096 || area > len / 2)
		return;
	for (uint8_t *head = p; head <= p + area; head += area) {
		memset(head + 448, 0, 64);
		SHA256(head, area, head + 448);
	}
}

const struct fuzz_target fuzz_target = { .seed = seed, .damage = damage, .sum = sum };
