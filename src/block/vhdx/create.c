/*
 * New VHDX files.
 *
 *	0      identifier, two headers, two region tables
 *	1 MiB  log, empty		2 MiB  metadata
 *	3 MiB  block allocation table	then   blocks
 *
 * Only a fixed one has its table filled in.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "block/vhdx/vhdx.h"

#define LOG_AT MIB
#define META_AT (2 * MIB)
#define BAT_AT (3 * MIB)
#define REGION_BYTES_MIN MIB
#define REQUIRED 1u
#define ITEM_REQUIRED 4u
#define ITEM_OF_DISK 2u
#define ITEMS_AT KIB64
#define ITEM_ROOM 16u
#define LARGE_BYTES (4ull << 40)	/* from here on blocks are large, that the table stays small */
#define SECTOR_BYTES 512u
#define PHYSICAL_BYTES 4096u

struct layout {
	uint64_t size_bytes, block_bytes, blocks, bat_bytes, data_at;
	bool fixed;
};

static uint64_t chunk_of(uint64_t block_bytes)
{
	return VHDX_CHUNK_SECTORS * SECTOR_BYTES / block_bytes;
}

/* After each chunk of blocks the table has room for a bitmap, which only images with a parent have. */
static uint64_t entry_of(uint64_t block, uint64_t block_bytes)
{
	return block + block / chunk_of(block_bytes);
}

/* --- the block allocation table --- */

static int put_blocks(struct node *file, uint64_t bat_at, uint64_t block_bytes, uint64_t first, const uint32_t *place,
		      unsigned count)
{
	uint64_t from = entry_of(first, block_bytes), n = entry_of(first + count - 1, block_bytes) + 1 - from;
	uint8_t *b = calloc(n, 8);
	int ret = b ? 0 : -ENOMEM;

	for (unsigned i = 0; i < count && !ret; i++)
		if (place[i])
			store_le64(b + (entry_of(first + i, block_bytes) - from) * 8, place[i] * MIB | VHDX_BLOCK_FULL);
	if (!ret)
		ret = node_co_write(file, bat_at + from * 8, b, n * 8);
	free(b);
	return ret;
}

static int put_entries(struct node *n, uint64_t first, const uint32_t *place, unsigned count)
{
	const struct vhdx *v = n->impl;

	return put_blocks(n->child[NODE_FILE], v->bat_at, v->block_bytes, first, place, count);
}

int vhdx_fill_begin(struct node *n, struct error *e)
{
	const struct vhdx *v = n->impl;
	uint64_t data_at = v->bat_at + v->bat_bytes;	/* as lay_out() has it */

	return fresh_begin(n, &(struct fresh){ .unit = v->block_bytes, .scale = MIB, .base = v->fixed ? data_at : 0,
					       .units = (v->size_bytes + v->block_bytes - 1) / v->block_bytes,
					       .end = data_at, .fixed = v->fixed, .co_put = put_entries }, e);
}

static int fill_table(struct node *file, const struct layout *l)
{
	uint32_t place[FRESH_PAGE];
	int ret = 0;

	for (uint64_t i = 0; i < l->blocks && !ret; i += FRESH_PAGE) {
		unsigned count = l->blocks - i < FRESH_PAGE ? (unsigned)(l->blocks - i) : FRESH_PAGE;

		for (unsigned k = 0; k < count; k++)
			place[k] = (uint32_t)((l->data_at + (i + k) * l->block_bytes) / MIB);
		ret = put_blocks(file, BAT_AT, l->block_bytes, i, place, count);
	}
	return ret;
}

/* --- headers, regions, metadata --- */

static void identifier_encode(uint8_t *p)
{
	static const char creator[] = "Vixen";

	memcpy(p, "vhdxfile", 8);
	for (size_t i = 0; i < sizeof(creator); i++)
		store_le16(p + 8 + i * 2, (uint16_t)creator[i]);
}

static void headers_encode(uint8_t *p)
{
	uint8_t guid[2][GUID_BYTES];

	fresh_guid(guid[0]);
	fresh_guid(guid[1]);
	for (unsigned i = 0; i < 2; i++) {
		uint8_t *h = p + VHDX_HEADER_AT(i);

		memcpy(h, "head", 4);
		store_le64(h + 8, 1 + i);
		memcpy(h + 16, guid[0], GUID_BYTES);
		memcpy(h + 32, guid[1], GUID_BYTES);
		store_le16(h + 66, 1);
		store_le32(h + 68, REGION_BYTES_MIN);
		store_le64(h + 72, LOG_AT);
		store_le32(h + 4, vhdx_sum(h, VHDX_HEADER_BYTES));
	}
}

static void region_encode(uint8_t *p, const uint8_t *guid, uint64_t at, uint64_t len)
{
	memcpy(p, guid, GUID_BYTES);
	store_le64(p + 16, at);
	store_le32(p + 24, (uint32_t)len);
	store_le32(p + 28, REQUIRED);
}

static void regions_encode(uint8_t *p, const struct layout *l)
{
	for (unsigned i = 0; i < 2; i++) {
		uint8_t *t = p + VHDX_REGIONS_AT(i);

		memcpy(t, "regi", 4);
		store_le32(t + 8, 2);
		region_encode(t + 16, vhdx_bat_guid, BAT_AT, l->bat_bytes);
		region_encode(t + 16 + VHDX_ENTRY_BYTES, vhdx_meta_guid, META_AT, REGION_BYTES_MIN);
		store_le32(t + 4, vhdx_sum(t, KIB64));
	}
}

static void item_encode(uint8_t *p, enum vhdx_item item, const void *value, uint32_t len, uint32_t flags)
{
	unsigned i = load_le16(p + 10);
	uint8_t *q = p + VHDX_ENTRY_BYTES * (1 + i);

	store_le16(p + 10, (uint16_t)(i + 1));
	memcpy(q, vhdx_item_guid[item], GUID_BYTES);
	store_le32(q + 16, ITEMS_AT + i * ITEM_ROOM);
	store_le32(q + 20, len);
	store_le32(q + 24, flags);
	memcpy(p + ITEMS_AT + i * ITEM_ROOM, value, len);
}

static void metadata_encode(uint8_t *p, const struct layout *l)
{
	uint8_t parameters[8], size[8], sector[4], physical[4], id[GUID_BYTES];

	memcpy(p, "metadata", 8);
	store_le32(parameters, (uint32_t)l->block_bytes);
	store_le32(parameters + 4, l->fixed ? VHDX_FIXED : 0);
	store_le64(size, l->size_bytes);
	store_le32(sector, SECTOR_BYTES);
	store_le32(physical, PHYSICAL_BYTES);
	fresh_guid(id);
	item_encode(p, ITEM_PARAMETERS, parameters, sizeof(parameters), ITEM_REQUIRED);
	item_encode(p, ITEM_SIZE, size, sizeof(size), ITEM_REQUIRED | ITEM_OF_DISK);
	item_encode(p, ITEM_ID, id, sizeof(id), ITEM_REQUIRED | ITEM_OF_DISK);
	item_encode(p, ITEM_SECTOR, sector, sizeof(sector), ITEM_REQUIRED | ITEM_OF_DISK);
	item_encode(p, ITEM_PHYSICAL, physical, sizeof(physical), ITEM_REQUIRED | ITEM_OF_DISK);
}

/* --- all of it --- */

static int write_all(struct node *file, const struct layout *l)
{
	uint8_t *p = calloc(1, MIB);
	int ret = p ? 0 : -ENOMEM;

	if (!ret) {
		identifier_encode(p);
		headers_encode(p);
		regions_encode(p, l);
		ret = node_co_write(file, 0, p, VHDX_REGIONS_AT(2));
	}
	if (!ret) {
		memset(p, 0, MIB);
		metadata_encode(p, l);
		ret = node_co_write(file, META_AT, p, ITEMS_AT + ITEM_ROOM * VHDX_ITEMS);
	}
	free(p);
	return !ret && l->fixed ? fill_table(file, l) : ret;
}

int vhdx_create(struct node *file, const struct block_create *c, struct error *e)
{
	struct layout l = { .size_bytes = c->size_bytes, .block_bytes = c->size_bytes < LARGE_BYTES ? 2 * MIB : 32 * MIB,
			    .fixed = c->subformat && !strcmp(c->subformat, "fixed") };
	int ret = fresh_options_good(file, c, l.fixed, e);

	if (ret)
		return ret;
	if (l.size_bytes > VHDX_SIZE_MAX)
		return error_set(e, EFBIG, "use qcow2", "create a disk", "a VHDX holds 64 TiB at most");
	l.blocks = (l.size_bytes + l.block_bytes - 1) / l.block_bytes;
	l.bat_bytes = ((entry_of(l.blocks - 1, l.block_bytes) + 1) * 8 + MIB - 1) & ~(MIB - 1);
	l.data_at = BAT_AT + l.bat_bytes;
	ret = fresh_take_space(file, l.data_at, l.fixed ? l.blocks * l.block_bytes : 0, c->preallocate, e);
	return ret ? ret : fresh_failed(file, write_all(file, &l), e);
}
