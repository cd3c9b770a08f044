#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "../block/disk.h"
#include "base/endian.h"
#include "fuzz.h"

void fuzz_change(uint8_t *p, size_t len, size_t at, bool big_endian)
{
	uint64_t some = (uint64_t)random() << 33 ^ (uint64_t)random(), v = some;

	at %= len - 8;
	switch (random() % 6) {
	case 0: p[at] ^= (uint8_t)(1 << random() % 8); return;
	case 1: p[at] = (uint8_t)random(); return;
	case 2: v = some % 64; break;
	case 3: v = UINT32_MAX - some % 3; break;
	case 4: v = some >> random() % 64; break;
	}
	if (random() % 2)
		big_endian ? store_be64(p + (at & ~7ull), v) : store_le64(p + (at & ~7ull), v);
	else
		big_endian ? store_be32(p + (at & ~3ull), (uint32_t)v) : store_le32(p + (at & ~3ull), (uint32_t)v);
}

int fuzz_memfd(const uint8_t *bytes, size_t len)
{
	int fd = memfd_create("input", MFD_CLOEXEC);

	if (fd < 0 || (len && write(fd, bytes, len) != (ssize_t)len))
		die("memfd: %s", strerror(errno));
	return fd;
}
