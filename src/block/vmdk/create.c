/*
 * New VMDK files: one sparse file with the descriptor inside.
 *
 *	monolithicSparse	header | descriptor | spare directory, spare tables | directory, tables | grains
 *	streamOptimized		header | descriptor | see stream.c
 *
 * The tables of a sparse one are holes at first.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/endian.h"
#include "block/vmdk/vmdk.h"

#define GRAIN_SECTORS (VMDK_NEW_GRAIN / SECTOR)
#define DESCRIPTOR_SECTORS 20u
#define TABLE_SECTORS (VMDK_NEW_ENTRIES * 4 / SECTOR)
#define OVERHEAD_SECTORS_MAX (1ull << 31)	/* half of what 32 bits can name */
#define FLAG_NEWLINES 1u
#define FLAG_SPARE 2u
#define GEOMETRY_HEADS 255u
#define GEOMETRY_SECTORS 63u

struct layout {
	uint64_t sectors, tables;
	uint64_t spare_at, directory_at, overhead;	/* sectors; where the tables of each directory follow it */
	bool stream;
};

static uint64_t directory_sectors(uint64_t tables)
{
	return (tables * 4 + SECTOR - 1) / SECTOR;
}

static void lay_out(struct layout *l, uint64_t size_bytes)
{
	uint64_t covered = (uint64_t)VMDK_NEW_ENTRIES * GRAIN_SECTORS, one, end = 1 + DESCRIPTOR_SECTORS;

	l->sectors = size_bytes / SECTOR;
	l->tables = (l->sectors + covered - 1) / covered;
	one = directory_sectors(l->tables) + l->tables * TABLE_SECTORS;
	if (!l->stream) {
		l->spare_at = end;
		l->directory_at = end + one;
		end += 2 * one;
	}
	l->overhead = (end + GRAIN_SECTORS - 1) / GRAIN_SECTORS * GRAIN_SECTORS;
}

/* --- header and descriptor --- */

static void header_encode(uint8_t *h, const struct layout *l)
{
	memcpy(h, VMDK_SPARSE_MAGIC, 4);
	store_le32(h + 4, l->stream ? 3 : 1);
	store_le32(h + 8, FLAG_NEWLINES | (l->stream ? VMDK_FLAG_DEFLATED | VMDK_FLAG_MARKERS : FLAG_SPARE));
	store_le64(h + 12, l->sectors);
	store_le64(h + 20, GRAIN_SECTORS);
	store_le64(h + 28, 1);
	store_le64(h + 36, DESCRIPTOR_SECTORS);
	store_le32(h + 44, VMDK_NEW_ENTRIES);
	store_le64(h + 48, l->spare_at);
	store_le64(h + 56, l->stream ? VMDK_AT_END : l->directory_at);
	store_le64(h + 64, l->overhead);
	memcpy(h + 73, "\n \r\n", 4);
	store_le16(h + 77, l->stream ? 1 : 0);
}

static void name_copy(char out[256], const char *path)
{
	const char *slash = strrchr(path, '/');
	size_t n = 0;

	for (path = slash ? slash + 1 : path; *path && n < 255; path++)
		out[n++] = *path == '"' || (unsigned char)*path < ' ' ? '_' : *path;
	out[n] = 0;
}

static void descriptor_encode(char *text, size_t size, const struct layout *l, const char *path)
{
	uint64_t cylinders = l->sectors / (GEOMETRY_HEADS * GEOMETRY_SECTORS);
	uint8_t cid[4];
	char name[256];

	name_copy(name, path);
	do
		fresh_random(cid, sizeof(cid));
	while (load_le32(cid) >= VMDK_NO_PARENT - 1);
	snprintf(text, size,
		 "# Disk DescriptorFile\nversion=1\nCID=%08x\nparentCID=ffffffff\ncreateType=\"%s\"\n\n"
		 "# Extent description\nRW %llu SPARSE \"%s\"\n\n"
		 "# The Disk Data Base\n#DDB\n\nddb.virtualHWVersion = \"4\"\nddb.geometry.cylinders = \"%llu\"\n"
		 "ddb.geometry.heads = \"%u\"\nddb.geometry.sectors = \"%u\"\nddb.adapterType = \"lsilogic\"\n",
		 load_le32(cid), l->stream ? "streamOptimized" : "monolithicSparse", (unsigned long long)l->sectors, name,
		 (unsigned long long)(cylinders ? cylinders : 1), GEOMETRY_HEADS, GEOMETRY_SECTORS);
}

static int write_head(struct node *file, const struct layout *l, const char *path)
{
	uint8_t *p = calloc(1 + DESCRIPTOR_SECTORS, SECTOR);
	int ret = p ? 0 : -ENOMEM;

	if (!ret) {
		header_encode(p, l);
		descriptor_encode((char *)p + SECTOR, DESCRIPTOR_SECTORS * SECTOR, l, path);
		ret = node_co_write(file, 0, p, (1ull + DESCRIPTOR_SECTORS) * SECTOR);
	}
	free(p);
	return ret;
}

static int write_directory(struct node *file, const struct layout *l, uint64_t at)
{
	uint64_t first = at + directory_sectors(l->tables);
	uint8_t *p = calloc(directory_sectors(l->tables), SECTOR);
	int ret = p ? 0 : -ENOMEM;

	for (uint64_t i = 0; i < l->tables && !ret; i++)
		store_le32(p + i * 4, (uint32_t)(first + i * TABLE_SECTORS));
	if (!ret)
		ret = node_co_write(file, at * SECTOR, p, directory_sectors(l->tables) * SECTOR);
	free(p);
	return ret;
}

/* --- filling a sparse one --- */

static int put_table(struct node *n, uint64_t first, const uint32_t *place, unsigned count)
{
	const struct vmdk_extent *x = &((const struct vmdk *)n->impl)->d.extent[0];
	uint64_t table = first / VMDK_NEW_ENTRIES, tables = x->directory_entries;
	uint64_t at = x->directory_at + (directory_sectors(tables) + table * TABLE_SECTORS) * SECTOR;
	uint64_t between = (directory_sectors(tables) + tables * TABLE_SECTORS) * SECTOR;
	uint8_t b[VMDK_NEW_ENTRIES * 4];
	int ret;

	for (unsigned i = 0; i < count; i++)
		store_le32(b + i * 4, place[i]);
	ret = node_co_write(n->child[NODE_FILE], at, b, count * 4);
	return ret ? ret : node_co_write(n->child[NODE_FILE], at - between, b, count * 4);
}

int vmdk_fill_begin(struct node *n, struct error *e)
{
	const struct vmdk *v = n->impl;
	const struct vmdk_extent *x = &v->d.extent[0];
	struct layout l = { .stream = x->packed };

	lay_out(&l, x->bytes);
	if (l.stream)
		return vmdk_stream_begin(n, l.overhead * SECTOR, l.tables, e);
	return fresh_begin(n, &(struct fresh){ .unit = x->grain_bytes, .scale = SECTOR, .end = l.overhead * SECTOR,
					       .units = (x->bytes + x->grain_bytes - 1) / x->grain_bytes,
					       .co_put = put_table }, e);
}

/* --- creating --- */

int vmdk_create(struct node *file, const struct block_create *c, struct error *e)
{
	struct layout l = { .stream = c->subformat && !strcmp(c->subformat, "streamOptimized") };
	int ret = fresh_options_good(file, c, false, e);

	if (ret)
		return ret;
	lay_out(&l, c->size_bytes);
	if (l.overhead > OVERHEAD_SECTORS_MAX)
		return error_set(e, EFBIG, "use qcow2", "create a disk", "a VMDK cannot be that large");
	ret = write_head(file, &l, c->final_path ? c->final_path : file->path);
	if (!ret && l.stream)
		ret = vmdk_stream_write_empty(file, l.overhead * SECTOR, l.tables);
	if (!ret && !l.stream)
		ret = write_directory(file, &l, l.spare_at);
	if (!ret && !l.stream)
		ret = write_directory(file, &l, l.directory_at);
	if (!ret && !l.stream)
		ret = node_co_resize(file, l.overhead * SECTOR, 0, e);
	return fresh_failed(file, ret, e);
}
