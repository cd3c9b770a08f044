/* Damaged partition tables: MBR with chains of logical partitions, and GPT.  The honest ones are sfdisk's. */
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <zlib.h>

#include "../block/disk.h"
#include "base/endian.h"
#include "block/partition.h"
#include "fuzz.h"
#include "host/loop.h"

#define INPUT_MAX (4u << 20)

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t len)
{
	struct disk d = { .loop = loop_new() };
	struct block_fd fd = { "disk", fuzz_memfd(bytes, len) };
	struct partition_table t = { 0 };

	if (len && len <= INPUT_MAX && !ftruncate(fd.fd, (off_t)(len + 511) / 512 * 512)) {
		disk_open(&d, "disk", &(struct block_options){ .format = "raw", .fds = &fd, .nfds = 1,
							       .flags = BLOCK_READONLY | BLOCK_NO_IO_URING });
		if (!block_partitions(d.b, &t)) {
			if (t.n > PARTITIONS_MAX)
				die("%u partitions", t.n);
			for (unsigned i = 0; i < t.n; i++)
				partition_type_name(t.scheme, t.list[i].type);
			free(t.list);
		}
		disk_close(&d);
	}
	close(fd.fd);
	loop_free(d.loop);
	return 0;
}

static const char *const scripts[] = {
	"label: dos\\n1M,512K,83,*\\n,512K,ef\\n,,5\\n,128K\\n,128K\\n,64K\\n",
	"label: dos\\n1M,,ee\\n",
	"label: gpt\\nstart=1M,size=512K,type=L,bootable,name=one\\n,256K,U\\n,128K\\n",
	"label: gpt\\ntable-length: 4\\nfirst-lba: 64\\nstart=64,size=64\\n,,S\\n",
};

static uint8_t *seed(unsigned kind, size_t *len)
{
	if (kind == sizeof(scripts) / sizeof(scripts[0]))
		return NULL;
	if (shell("rm -f seed; truncate -s 3M seed; printf '%s' | PATH=$PATH:/sbin:/usr/sbin sfdisk -q seed", scripts[kind]))
		die("make a seed");
	return file_read("seed", len);
}

/* MBR, GPT's header and entries, extended boot records, and the copies at the end. */
static void damage(unsigned kind, uint8_t *p, size_t len)
{
	size_t at = 446 + (size_t)random() % 66;

	if (kind < 2 && random() % 2)
		at += (size_t)random() % (len / 512 - 1) * 512;
	else if (kind >= 2 && random() % 4)
		at = 512 + (size_t)random() % (random() % 2 ? 92 : 1024);
	if (kind >= 2 && random() % 8 == 0)
		at = len - 512 + (size_t)random() % 92;
	fuzz_change(p, len, at, false);
}

/* UEFI, "GPT Header": CRC-32 of the entries, then of the header. */
static void header_sum(uint8_t *p, size_t len, size_t at)
{
	uint64_t entries, bytes;

	if (at > len || len - at < 512 || memcmp(p + at, "EFI PART", 8))
		return;
	entries = load_le64(p + at + 72) * 512;
	bytes = (uint64_t)load_le32(p + at + 80) * load_le32(p + at + 84);
	if (entries < len && bytes <= len - entries)
		store_le32(p + at + 88, (uint32_t)crc32(0, p + entries, (unsigned)bytes));
	store_le32(p + at + 16, 0);
	if (load_le32(p + at + 12) <= 512)
		store_le32(p + at + 16, (uint32_t)crc32(0, p + at, load_le32(p + at + 12)));
}

static void sum(uint8_t *p, size_t len)
{
	header_sum(p, len, 512);
	if (len >= 1024)
		header_sum(p, len, len / 512 * 512 - 512);
}

const struct fuzz_target fuzz_target = { .seed = seed, .damage = damage, .sum = sum };
