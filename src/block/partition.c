/*
 * Reading partition tables.
 *
 *	MBR	sector 0: four entries at 446; an extended one holds a chain of sectors like it: | logical | next |
 *	GPT	sector 1: header with CRC, place and CRC of the entries; a copy in the last sector
 *
 * Sectors are of 512 bytes, or of 4096 where a GPT header is found there.
 */
#include "block/partition.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <zlib.h>

#include "base/checked.h"
#include "base/endian.h"
#include "block/block_private.h"

#define MBR_ENTRY(i) (446 + 16 * (i))
#define TYPE_PROTECTIVE 0xee
#define GPT_HEADER_MIN 92u
#define GPT_ENTRY_MIN 128u
#define GPT_ENTRY_MAX 4096u
#define NAME_UNITS 36
#define LOGICAL_MAX 128u

struct reading {
	struct block *b;
	struct partition_table *t;
};

static int add(struct partition_table *t, const struct partition *p)
{
	struct partition *grown;

	if (t->n == PARTITIONS_MAX)
		return 0;
	if (t->n % 16 == 0) {
		grown = realloc(t->list, (t->n + 16) * sizeof(*p));
		if (!grown)
			return -ENOMEM;
		t->list = grown;
	}
	t->list[t->n++] = *p;
	return 0;
}

/* Zeroes past the end. */
static int read_at(struct block *b, uint64_t at, uint8_t *buf, size_t len)
{
	memset(buf, 0, len);
	return range_inside(at, len, block_size(b)) ? block_co_read(b, at, buf, len) : 0;
}

/* --- MBR --- */

static bool is_extended(uint8_t type)
{
	return type == 0x05 || type == 0x0f || type == 0x85;
}

static int mbr_add(struct reading *r, const uint8_t *e, unsigned number, uint64_t base)
{
	struct partition p = { .number = number, .bootable = e[0] & 0x80 };

	p.offset = (base + load_le32(e + 8)) * SECTOR;
	p.bytes = (uint64_t)load_le32(e + 12) * SECTOR;
	p.outside = !range_inside(p.offset, p.bytes, block_size(r->b));
	snprintf(p.type, sizeof(p.type), "0x%02x", e[4]);
	return add(r->t, &p);
}

/* Links are relative to the extended partition, logical partitions to their own link. */
static int logical(struct reading *r, uint64_t start, uint64_t sectors)
{
	uint8_t s[SECTOR];
	uint64_t at = 0;

	for (unsigned i = 0; i < LOGICAL_MAX; i++) {
		uint64_t next;
		int ret = read_at(r->b, (start + at) * SECTOR, s, sizeof(s));

		if (ret)
			return ret;
		if (s[510] != 0x55 || s[511] != 0xaa)
			break;
		if (s[MBR_ENTRY(0) + 4] && load_le32(s + MBR_ENTRY(0) + 12)) {
			ret = mbr_add(r, s + MBR_ENTRY(0), 5 + i, start + at);
			if (ret)
				return ret;
		}
		next = load_le32(s + MBR_ENTRY(1) + 8);
		if (!s[MBR_ENTRY(1) + 4])
			return 0;
		if (next <= at || next >= sectors)	/* onwards only: no loops */
			break;
		at = next;
	}
	r->t->cut = true;
	return 0;
}

static bool entry_possible(const uint8_t *e)
{
	return (e[0] & 0x7f) == 0;
}

static int mbr(struct reading *r, const uint8_t *s)
{
	int ret = 0;

	for (unsigned i = 0; i < 4; i++)
		if (!entry_possible(s + MBR_ENTRY(i)))
			return 0;	/* the boot sector of a file system */
	r->t->scheme = PARTITION_MBR;
	snprintf(r->t->id, sizeof(r->t->id), "%08x", load_le32(s + 440));
	for (unsigned i = 0; i < 4 && !ret; i++)
		if (s[MBR_ENTRY(i) + 4])
			ret = mbr_add(r, s + MBR_ENTRY(i), i + 1, 0);
	for (unsigned i = 0; i < 4 && !ret; i++)
		if (is_extended(s[MBR_ENTRY(i) + 4]))
			ret = logical(r, load_le32(s + MBR_ENTRY(i) + 8), load_le32(s + MBR_ENTRY(i) + 12));
	return ret;
}

/* --- GPT --- */

static void guid_text(char out[40], const uint8_t *g)
{
	snprintf(out, 40, "%08x-%04x-%04x-%02x%02x-%02x%02x%02x%02x%02x%02x", load_le32(g), load_le16(g + 4),
		 load_le16(g + 6), g[8], g[9], g[10], g[11], g[12], g[13], g[14], g[15]);
}

/* UTF-16 to UTF-8; halves of pairs, and what is no character, become '?'. */
static void name_text(char out[112], const uint8_t *p)
{
	size_t n = 0;

	for (unsigned i = 0; i < NAME_UNITS; i++) {
		unsigned c = load_le16(p + 2 * i);

		if (!c)
			break;
		if (c < 0x20 || c == 0x7f || c >> 11 == 0x1b)
			c = '?';
		if (c < 0x80) {
			out[n++] = (char)c;
		} else if (c < 0x800) {
			out[n++] = (char)(0xc0 | c >> 6);
			out[n++] = (char)(0x80 | (c & 0x3f));
		} else {
			out[n++] = (char)(0xe0 | c >> 12);
			out[n++] = (char)(0x80 | (c >> 6 & 0x3f));
			out[n++] = (char)(0x80 | (c & 0x3f));
		}
	}
	out[n] = 0;
}

struct gpt {
	uint64_t entries_at;
	uint32_t entries, entry_bytes, entries_crc, sector;
	uint8_t disk_guid[16];
};

static int gpt_header(struct reading *r, uint64_t lba, uint32_t sector, struct gpt *g, bool *good)
{
	uint8_t s[SECTOR];
	uint32_t len, crc;
	int ret = lba > INT64_MAX / sector ? 0 : read_at(r->b, lba * sector, s, sizeof(s));

	*good = false;
	if (ret || lba > INT64_MAX / sector || memcmp(s, "EFI PART", 8))
		return ret;
	len = load_le32(s + 12);
	crc = load_le32(s + 16);
	store_le32(s + 16, 0);
	if (len < GPT_HEADER_MIN || len > sizeof(s) || crc32(0, s, len) != crc || load_le64(s + 24) != lba)
		return 0;
	*g = (struct gpt){ .entries = load_le32(s + 80), .entry_bytes = load_le32(s + 84), .sector = sector,
			   .entries_crc = load_le32(s + 88) };
	memcpy(g->disk_guid, s + 56, 16);
	*good = g->entries && g->entries <= PARTITIONS_MAX && g->entry_bytes >= GPT_ENTRY_MIN &&
		g->entry_bytes <= GPT_ENTRY_MAX && !(g->entry_bytes & (g->entry_bytes - 1)) &&
		checked_mul(load_le64(s + 72), sector, &g->entries_at);
	return 0;
}

static int gpt_add(struct reading *r, const struct gpt *g, const uint8_t *e, unsigned number)
{
	static const uint8_t none[16];
	uint64_t first = load_le64(e + 32), last = load_le64(e + 40), size = block_size(r->b) / g->sector;
	struct partition p = { .number = number, .bootable = load_le64(e + 48) & 4 };

	if (!memcmp(e, none, 16))
		return 0;
	p.outside = last < first || last >= size;
	if (last >= first && last < INT64_MAX / g->sector) {
		p.offset = first * g->sector;
		p.bytes = (last - first + 1) * g->sector;
	}
	guid_text(p.type, e);
	guid_text(p.uuid, e + 16);
	name_text(p.name, e + 56);
	return add(r->t, &p);
}

static int gpt_entries(struct reading *r, const struct gpt *g, bool *good)
{
	size_t len = (size_t)g->entries * g->entry_bytes, whole = (len + SECTOR - 1) & ~(size_t)(SECTOR - 1);
	uint8_t *p = malloc(whole);
	int ret = p ? read_at(r->b, g->entries_at, p, whole) : -ENOMEM;

	*good = !ret && crc32(0, p, (uInt)len) == g->entries_crc;
	for (uint32_t i = 0; i < g->entries && *good && !ret; i++)
		ret = gpt_add(r, g, p + (size_t)i * g->entry_bytes, i + 1);
	free(p);
	return ret;
}

static int gpt_at(struct reading *r, uint64_t lba, uint32_t sector, bool *good)
{
	struct gpt g;
	int ret = gpt_header(r, lba, sector, &g, good);

	if (!ret && *good)
		ret = gpt_entries(r, &g, good);
	if (ret || !*good)
		return ret;
	r->t->scheme = PARTITION_GPT;
	guid_text(r->t->id, g.disk_guid);
	return 0;
}

static int gpt(struct reading *r)
{
	static const uint32_t sectors[] = { 512, 4096 };
	bool good = false;
	int ret = 0;

	for (unsigned i = 0; i < 2 && !ret && !good; i++)
		ret = gpt_at(r, 1, sectors[i], &good);
	for (unsigned i = 0; i < 2 && !ret && !good; i++) {
		if (block_size(r->b) < 4 * sectors[i])
			continue;
		ret = gpt_at(r, block_size(r->b) / sectors[i] - 1, sectors[i], &good);
		r->t->second = good;
	}
	return ret;
}

/* --- both --- */

static int table_read(void *opaque)
{
	struct reading *r = opaque;
	uint8_t s[SECTOR];
	bool protective = false;
	int ret = read_at(r->b, 0, s, sizeof(s));

	if (ret || s[510] != 0x55 || s[511] != 0xaa)
		return ret;
	for (unsigned i = 0; i < 4; i++)
		protective |= s[MBR_ENTRY(i) + 4] == TYPE_PROTECTIVE;
	if (protective)
		ret = gpt(r);
	return ret || r->t->scheme == PARTITION_GPT ? ret : mbr(r, s);
}

int block_partitions(struct block *b, struct partition_table *out)
{
	struct reading r = { b, out };
	int ret;

	*out = (struct partition_table){ 0 };
	ret = block_do(b->env, table_read, &r);
	if (ret) {
		free(out->list);
		out->list = NULL;
		out->n = 0;
	}
	return ret;
}

const char *partition_type_name(enum partition_scheme s, const char *type)
{
	static const struct { const char *type, *name; } known[] = {
		{ "0x05", "extended" }, { "0x07", "NTFS or exFAT" }, { "0x0b", "FAT32" }, { "0x0c", "FAT32" },
		{ "0x0f", "extended" }, { "0x82", "Linux swap" }, { "0x83", "Linux" }, { "0x85", "extended" },
		{ "0x8e", "Linux LVM" }, { "0xee", "GPT protection" }, { "0xef", "EFI system" },
		{ "0xfd", "Linux RAID" },
		{ "0fc63daf-8483-4772-8e79-3d69d8477de4", "Linux filesystem" },
		{ "c12a7328-f81f-11d2-ba4b-00a0c93ec93b", "EFI system" },
		{ "21686148-6449-6e6f-744e-656564454649", "BIOS boot" },
		{ "0657fd6d-a4ab-43c4-84e5-0933c84b4f4f", "Linux swap" },
		{ "e6d6d379-f507-44c2-a23c-238f2a3df928", "Linux LVM" },
		{ "4f68bce3-e8cd-4db1-96e7-fbcaf984b709", "Linux root (x86-64)" },
		{ "ebd0a0a2-b9e5-4433-87c0-68b6b72699c7", "Microsoft data" },
		{ "e3c9e316-0b5c-4db8-817d-f92df00215ae", "Microsoft reserved" },
		{ "a19d880f-05fc-4d3b-a006-743f0f84911e", "Linux RAID" },
	};

	for (size_t i = 0; s != PARTITION_NONE && i < sizeof(known) / sizeof(known[0]); i++)
		if (!strcmp(known[i].type, type))
			return known[i].name;
	return NULL;
}
