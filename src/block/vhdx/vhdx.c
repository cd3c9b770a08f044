/*
 * The VHDX format: opening, the block allocation table, telling.
 *
 *	table:	| block 0 | ... | block chunk-1 | bitmap 0 | block chunk | ... | bitmap 1 | ...
 *	entry:	63..20 place in the file, MiB; 2..0 state
 */
#include "block/vhdx/vhdx.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#define STATE(entry) ((entry) & 7)
#define PLACE(entry) ((entry) & ~(MIB - 1))
#define RUN_MAX 4096u

enum block_state { STATE_NONE, STATE_UNDEFINED, STATE_ZERO, STATE_UNMAPPED, STATE_FULL = VHDX_BLOCK_FULL, STATE_PARTIAL = 7 };

/* --- the table --- */

static int entry_at(struct node *n, uint64_t i, uint64_t *out)
{
	struct vhdx *v = n->impl;
	uint8_t b[8];
	int ret = pages_read(&v->pages, n->child[NODE_FILE], v->bat_at + i * 8, b, sizeof(b));

	*out = load_le64(b);
	return ret;
}

static int block_entry(struct node *n, uint64_t block, uint64_t *out)
{
	const struct vhdx *v = n->impl;
	uint64_t i = block + block / v->chunk;
	int ret = entry_at(n, i, out);

	if (ret)
		return ret;
	if (STATE(*out) == 4 || STATE(*out) == 5 || (STATE(*out) == STATE_PARTIAL && !v->has_parent))
		return mapped_damaged(n, "a block is in a state that is not known", v->bat_at + i * 8);
	return 0;
}

static enum span_kind kind_of(const struct vhdx *v, uint64_t entry)
{
	if (STATE(entry) == STATE_FULL)
		return SPAN_DATA;
	return STATE(entry) == STATE_NONE && v->has_parent ? SPAN_BACKING : SPAN_ZERO;
}

static bool goes_on(const struct vhdx *v, uint64_t last, uint64_t next)
{
	enum span_kind kind = kind_of(v, last);

	if (STATE(next) == STATE_PARTIAL || kind != kind_of(v, next))
		return false;
	return kind != SPAN_DATA || PLACE(next) == PLACE(last) + v->block_bytes;
}

/* A bit for each sector: set, it is here; clear, it is the parent's. */
static int bit_at(struct node *n, uint64_t bitmap, uint64_t sector, bool *out)
{
	struct vhdx *v = n->impl;
	uint8_t b;
	int ret = pages_read(&v->pages, n->child[NODE_FILE], bitmap + sector / 8, &b, 1);

	*out = b >> sector % 8 & 1;
	return ret == -EIO ? mapped_damaged(n, "a bitmap lies past the end of the file", bitmap) : ret;
}

static int partial_span(struct node *n, uint64_t block, uint64_t in_block, uint64_t entry, struct span *out)
{
	const struct vhdx *v = n->impl;
	uint64_t bitmap, chunk = block / v->chunk, max = v->block_bytes - in_block;
	uint64_t sector = (block % v->chunk * v->block_bytes + in_block) / v->sector_bytes;
	bool here, next;
	int ret = entry_at(n, (chunk + 1) * v->chunk + chunk, &bitmap);

	if (!ret && STATE(bitmap) != STATE_FULL)
		return mapped_damaged(n, "a block has no bitmap", block);
	if (!ret)
		ret = bit_at(n, PLACE(bitmap), sector, &here);
	if (ret)
		return ret;
	out->kind = here ? SPAN_DATA : SPAN_BACKING;
	out->host = PLACE(entry) + in_block;
	out->len = v->sector_bytes - in_block % v->sector_bytes;
	while (out->len < max && !ret) {
		ret = bit_at(n, PLACE(bitmap), ++sector, &next);
		if (ret || next != here)
			break;
		out->len += v->sector_bytes;
	}
	return ret;
}

static int vhdx_span(struct node *n, uint64_t offset, uint64_t len, struct span *out)
{
	const struct vhdx *v = n->impl;
	uint64_t block = offset / v->block_bytes, in_block = offset % v->block_bytes, first, last, next;
	int ret = block_entry(n, block, &first);

	*out = (struct span){ .file = n->child[NODE_FILE] };
	if (ret)
		return ret;
	if (STATE(first) == STATE_PARTIAL) {
		ret = partial_span(n, block, in_block, first, out);
		out->len = out->len < len ? out->len : len;
		return ret;
	}
	out->kind = kind_of(v, first);
	out->host = PLACE(first) + in_block;
	out->len = v->block_bytes - in_block;
	last = first;
	for (unsigned run = 0; run < RUN_MAX && out->len < len; run++, last = next) {
		if (block_entry(n, ++block, &next) || !goes_on(v, last, next))
			break;
		out->len += v->block_bytes;
	}
	out->len = out->len < len ? out->len : len;
	return 0;
}

/* --- opening --- */

static int table_good(struct node *n, struct error *e)
{
	struct vhdx *v = n->impl;
	uint64_t blocks = (v->size_bytes + v->block_bytes - 1) / v->block_bytes, chunks, entries;

	v->chunk = VHDX_CHUNK_SECTORS * v->sector_bytes / v->block_bytes;
	chunks = (blocks + v->chunk - 1) / v->chunk;
	entries = v->has_parent ? chunks * (v->chunk + 1) : blocks + (blocks - 1) / v->chunk;
	return entries * 8 > v->bat_bytes ? mapped_bad(n, e, "has a block allocation table that does not cover the disk") : 0;
}

static const struct node_ops vhdx_ops;

static int open_parent(struct node *n, const struct node_open *how, struct error *e)
{
	const struct vhdx *v = n->impl;
	const struct node *parent;
	char linkage[40];
	int ret;

	if (!v->has_parent)
		return 0;
	if ((!v->parent || !*v->parent) && !how->o->backing_path)
		return mapped_bad(n, e, "has a parent that it does not name");
	ret = node_co_open_backing(n, how, v->parent, "vhdx", e);
	parent = n->child[NODE_BACKING];
	if (ret || !parent || parent->ops != &vhdx_ops)
		return ret;
	vhdx_guid_text(linkage, ((const struct vhdx *)parent->impl)->h.data_guid);
	return v->linkage && !strcasecmp(linkage, v->linkage) ? 0 :
	       mapped_bad(n, e, "belongs to another state of its parent, which was changed");
}

static int open_tables(struct node *n, struct error *e)
{
	struct vhdx *v = n->impl;
	int ret = vhdx_headers_read(n, e);

	if (!ret)
		ret = vhdx_log_replay(n, e);
	if (!ret)
		ret = vhdx_regions_read(n, e);
	if (!ret)
		ret = vhdx_metadata_read(n, e);
	if (!ret)
		ret = table_good(n, e);
	n->size_bytes = v->size_bytes;
	n->limits.cluster = v->block_bytes;
	return ret;
}

static int vhdx_open(struct node *n, const struct node_open *how, struct error *e)
{
	struct vhdx *v = calloc(1, sizeof(*v));
	int ret;

	if (!v)
		return error_errno(e, ENOMEM, NULL, "open disk '%s'", n->path);
	n->impl = v;
	v->mapped.co_span = vhdx_span;
	ret = mapped_read_only(n, how, e);
	if (!ret)
		ret = open_tables(n, e);
	if (!ret && mapped_is_fresh(n, how))
		return vhdx_fill_begin(n, e);
	return ret ? ret : open_parent(n, how, e);
}

/* --- the rest --- */

static int vhdx_close(struct node *n)
{
	struct vhdx *v = n->impl;
	int ret = fresh_co_end(n);

	pages_fini(&v->pages);
	free(v->parent);
	free(v->linkage);
	free(v);
	n->impl = NULL;
	return ret;
}

static int vhdx_info(struct node *n, struct block_info *out)
{
	const struct vhdx *v = n->impl;

	if (v->has_parent) {
		out->backing_path = v->parent;
		out->backing_format = "vhdx";
	}
	out->unclean = v->replayed;
	block_info_extra(out, "type", "%s", v->has_parent ? "differencing" : v->fixed ? "fixed" : "dynamic");
	block_info_extra(out, "sectors", "%u bytes, %u on the medium", v->sector_bytes, v->physical_bytes);
	block_info_extra(out, "log", "%s", v->replayed ? "not written back" : "empty");
	return 0;
}

static bool vhdx_probe(const uint8_t *head, size_t len, uint64_t file_bytes)
{
	return len >= 8 && !memcmp(head, "vhdxfile", 8);
}

static const struct node_ops vhdx_ops = {
	.name = "vhdx", .co_readv = mapped_co_readv, .co_writev = fresh_co_writev, .co_flush = fresh_co_flush,
	.co_status = mapped_co_status, .info = vhdx_info, .co_close = vhdx_close,
};

static const char *const subformats[] = { "dynamic", "fixed", NULL };

const struct driver vhdx_driver = {
	.name = "vhdx", .suffix = ".vhdx", .ops = &vhdx_ops, .probe = vhdx_probe, .co_open = vhdx_open,
	.co_create = vhdx_create, .subformats = subformats,
};
