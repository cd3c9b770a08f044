/*
 * VDI, VirtualBox's format, version 1.1; read, and made whole.
 *
 *	0     | text, signature, version |
 *	0x48  | header: where map and data are, size, block size |
 *	map   | le32 for each block: its place in the data, ~0: none, ~1: discarded |
 *	data  | blocks |
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/checked.h"
#include "base/endian.h"
#include "block/fresh.h"

#define HEADER_BYTES 512u
#define SIGNATURE 0xbeda107fu
#define VERSION 0x00010001u
#define BLOCK_NONE 0xffffffffu
#define BLOCK_DISCARDED 0xfffffffeu
#define RUN_MAX 4096u		/* blocks looked at for one answer */

/* of new ones */
#define HEADER_LEN 0x190u	/* from 0x48 on */
#define NEW_BLOCK (1u << 20)
#define NEW_BLOCKS_MAX 0x3fffffffu
#define PART_BYTES (1u << 20)	/* of the map that is written at a time */

enum vdi_type { VDI_DYNAMIC = 1, VDI_STATIC = 2 };

struct vdi {
	struct mapped mapped;
	uint64_t map_at, data_at;
	uint32_t type, block_bytes, blocks, allocated;
	struct pages pages;
};

static int entry(struct node *n, uint64_t i, uint32_t *out)
{
	struct vdi *v = n->impl;
	uint8_t b[4];
	int ret = pages_read(&v->pages, n->child[NODE_FILE], v->map_at + i * 4, b, sizeof(b));

	*out = load_le32(b);
	if (ret || *out >= BLOCK_DISCARDED || *out < v->blocks)
		return ret;
	return mapped_damaged(n, "its map names a block that cannot be", v->map_at + i * 4);
}

static bool goes_on(uint32_t last, uint32_t next)
{
	if (last >= BLOCK_DISCARDED || next >= BLOCK_DISCARDED)
		return last >= BLOCK_DISCARDED && next >= BLOCK_DISCARDED;
	return next == last + 1;
}

static int vdi_span(struct node *n, uint64_t offset, uint64_t len, struct span *out)
{
	struct vdi *v = n->impl;
	uint64_t i = offset / v->block_bytes, in_block = offset % v->block_bytes;
	uint32_t first, last, next;
	int ret = entry(n, i, &first);

	if (ret)
		return ret;
	out->len = v->block_bytes - in_block;
	last = first;
	for (unsigned run = 0; run < RUN_MAX && out->len < len; run++, last = next) {
		if (entry(n, ++i, &next) || !goes_on(last, next))
			break;
		out->len += v->block_bytes;
	}
	out->len = out->len < len ? out->len : len;
	out->kind = first >= BLOCK_DISCARDED ? SPAN_ZERO : SPAN_DATA;
	out->file = n->child[NODE_FILE];
	out->host = v->data_at + (uint64_t)first * v->block_bytes + in_block;
	return 0;
}

static int header_good(struct node *n, const uint8_t *h, struct error *e)
{
	struct vdi *v = n->impl;
	uint64_t size = load_le64(h + 0x170), file = n->child[NODE_FILE]->size_bytes;
	char what[192];

	if (load_le32(h + 0x40) != SIGNATURE)
		return mapped_bad(n, e, "has no VDI header");
	snprintf(what, sizeof(what), "open disk '%.150s'", n->path);
	if (load_le32(h + 0x44) != VERSION)
		return error_set(e, ENOTSUP, "convert it with VirtualBox: VBoxManage clonemedium", what,
				 "VDI of version %u.%u is not supported", load_le16(h + 0x46), load_le16(h + 0x44));
	if (v->type != VDI_DYNAMIC && v->type != VDI_STATIC)
		return error_set(e, ENOTSUP, "merge it into its parent with VirtualBox: VBoxManage clonemedium", what,
				 "it is a VDI of type %u, which holds only differences or undo data", v->type);
	if (load_le32(h + 0x17c))
		return mapped_bad(n, e, "keeps extra bytes with each block, which is not supported");
	if (v->block_bytes < 4096 || v->block_bytes > 256u << 20 || v->block_bytes & (v->block_bytes - 1))
		return mapped_bad(n, e, "gives a block size that cannot be");
	if (!size || size > (uint64_t)v->blocks * v->block_bytes)
		return mapped_bad(n, e, "gives a disk size that its map does not cover");
	if (v->map_at < HEADER_BYTES || v->data_at < HEADER_BYTES || !range_inside(v->map_at, v->blocks * 4ull, file))
		return mapped_bad(n, e, "is cut short: its map lies past the end of the file");
	return 0;
}

/* --- filling a new one --- */

static void map_encode(uint8_t *out, const uint32_t *place, unsigned count)
{
	for (unsigned i = 0; i < count; i++)
		store_le32(out + i * 4, place[i] ? place[i] - 1 : BLOCK_NONE);
}

static int put_entries(struct node *n, uint64_t first, const uint32_t *place, unsigned count)
{
	const struct vdi *v = n->impl;
	uint8_t b[FRESH_PAGE * 4];

	map_encode(b, place, count);
	return node_co_write(n->child[NODE_FILE], v->map_at + first * 4, b, count * 4);
}

static int put_count(struct node *n)
{
	struct vdi *v = n->impl;
	uint8_t b[4];

	v->allocated = (uint32_t)v->mapped.fresh->used;
	store_le32(b, v->allocated);
	return node_co_write(n->child[NODE_FILE], 0x184, b, sizeof(b));
}

static int begin(struct node *n, struct error *e)
{
	const struct vdi *v = n->impl;
	bool fixed = v->type == VDI_STATIC;
	uint64_t before = fixed ? 0 : v->block_bytes;	/* place 1 is the first block */

	return fresh_begin(n, &(struct fresh){ .unit = v->block_bytes, .units = v->blocks, .base = v->data_at - before,
					       .scale = v->block_bytes, .end = v->data_at, .fixed = fixed,
					       .co_put = put_entries, .co_finish = put_count }, e);
}

/* --- opening --- */

static int vdi_open(struct node *n, const struct node_open *how, struct error *e)
{
	struct node *file = n->child[NODE_FILE];
	uint8_t h[HEADER_BYTES] = { 0 };
	struct vdi *v = calloc(1, sizeof(*v));
	size_t len = file->size_bytes < sizeof(h) ? (size_t)file->size_bytes : sizeof(h);
	int ret = v ? node_co_read(file, 0, h, len) : -ENOMEM;

	n->impl = v;
	if (ret)
		return error_errno(e, -ret, NULL, "open disk '%s'", n->path);
	v->mapped.co_span = vdi_span;
	v->type = load_le32(h + 0x4c);
	v->map_at = load_le32(h + 0x154);
	v->data_at = load_le32(h + 0x158);
	v->block_bytes = load_le32(h + 0x178);
	v->blocks = load_le32(h + 0x180);
	v->allocated = load_le32(h + 0x184);
	ret = header_good(n, h, e);
	if (ret)
		return ret;
	n->size_bytes = (load_le64(h + 0x170) + SECTOR - 1) & ~(uint64_t)(SECTOR - 1);
	n->limits.cluster = v->block_bytes;
	ret = mapped_read_only(n, how, e);
	return !ret && mapped_is_fresh(n, how) ? begin(n, e) : ret;
}

static int vdi_info(struct node *n, struct block_info *out)
{
	const struct vdi *v = n->impl;

	block_info_extra(out, "type", "%s", v->type == VDI_STATIC ? "static" : "dynamic");
	block_info_extra(out, "blocks in use", "%u of %u", v->allocated, v->blocks);
	return 0;
}

static int vdi_close(struct node *n)
{
	struct vdi *v = n->impl;
	int ret = fresh_co_end(n);

	pages_fini(&v->pages);
	free(v);
	n->impl = NULL;
	return ret;
}

/* --- creating --- */

struct layout {
	uint64_t size_bytes, blocks, data_at;
	bool fixed;
};

static void header_encode(uint8_t h[HEADER_BYTES], const struct layout *l)
{
	snprintf((char *)h, 0x40, "<<< Virtual disk image, made by Vixen >>>\n");
	store_le32(h + 0x40, SIGNATURE);
	store_le32(h + 0x44, VERSION);
	store_le32(h + 0x48, HEADER_LEN);
	store_le32(h + 0x4c, l->fixed ? VDI_STATIC : VDI_DYNAMIC);
	store_le32(h + 0x154, HEADER_BYTES);
	store_le32(h + 0x158, (uint32_t)l->data_at);
	store_le32(h + 0x168, SECTOR);
	store_le64(h + 0x170, l->size_bytes);
	store_le32(h + 0x178, NEW_BLOCK);
	store_le32(h + 0x180, (uint32_t)l->blocks);
	store_le32(h + 0x184, l->fixed ? (uint32_t)l->blocks : 0);
	fresh_guid(h + 0x188);
	fresh_guid(h + 0x198);
}

static int write_map(struct node *file, const struct layout *l)
{
	uint32_t place[FRESH_PAGE] = { 0 };
	uint8_t *b = malloc(PART_BYTES);
	int ret = b ? 0 : -ENOMEM;

	for (uint64_t i = 0, at = 0; i < l->blocks && !ret; i += FRESH_PAGE) {
		unsigned count = l->blocks - i < FRESH_PAGE ? (unsigned)(l->blocks - i) : FRESH_PAGE;

		for (unsigned k = 0; l->fixed && k < count; k++)
			place[k] = (uint32_t)(i + k + 1);
		map_encode(b + at, place, count);
		at += count * 4;
		if (at < PART_BYTES && i + count < l->blocks)
			continue;
		ret = node_co_write(file, HEADER_BYTES + (i + count) * 4 - at, b, at);
		at = 0;
	}
	free(b);
	return ret;
}

static int vdi_create(struct node *file, const struct block_create *c, struct error *e)
{
	struct layout l = { .size_bytes = c->size_bytes, .blocks = (c->size_bytes + NEW_BLOCK - 1) / NEW_BLOCK,
			    .fixed = c->subformat && !strcmp(c->subformat, "fixed") };
	uint8_t h[HEADER_BYTES] = { 0 };
	int ret = fresh_options_good(file, c, l.fixed, e);

	if (ret)
		return ret;
	if (l.blocks > NEW_BLOCKS_MAX)
		return error_set(e, EFBIG, "use vhdx or qcow2", "create a disk", "a VDI holds 1 PiB at most");
	l.data_at = (HEADER_BYTES + l.blocks * 4 + NEW_BLOCK - 1) & ~(uint64_t)(NEW_BLOCK - 1);
	header_encode(h, &l);
	ret = fresh_take_space(file, l.data_at, l.fixed ? l.blocks * NEW_BLOCK : 0, c->preallocate, e);
	if (ret)
		return ret;
	ret = node_co_write(file, 0, h, sizeof(h));
	if (!ret)
		ret = write_map(file, &l);
	return fresh_failed(file, ret, e);
}

static bool vdi_probe(const uint8_t *head, size_t len, uint64_t file_bytes)
{
	return len >= 0x44 && load_le32(head + 0x40) == SIGNATURE;
}

static const struct node_ops vdi_ops = {
	.name = "vdi", .co_readv = mapped_co_readv, .co_writev = fresh_co_writev, .co_flush = fresh_co_flush,
	.co_status = mapped_co_status, .info = vdi_info, .co_close = vdi_close,
};

static const char *const subformats[] = { "dynamic", "fixed", NULL };

const struct driver vdi_driver = {
	.name = "vdi", .suffix = ".vdi", .ops = &vdi_ops, .probe = vdi_probe, .co_open = vdi_open, .co_create = vdi_create,
	.subformats = subformats,
};
