/* The qcow2 format: opening, closing, telling. */
#include "block/qcow2/qcow2.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static int bad(struct qcow2 *q, struct error *e, const char *why)
{
	char what[192];

	snprintf(what, sizeof(what), "open disk '%.150s'", q->n->path);
	return error_set(e, EINVAL, "repair it with 'vixen image check --repair'", what, "%s", why);
}

static void geometry(struct qcow2 *q)
{
	const struct header *h = &q->h;
	bool extended = h->incompatible & INCOMPAT_EXTENDED_L2;

	q->cluster_bits = h->cluster_bits;
	q->cluster_bytes = 1u << h->cluster_bits;
	q->entry_bytes = extended ? 16 : 8;
	q->l2_bits = h->cluster_bits - (extended ? 4 : 3);
	q->subclusters = extended ? 32 : 1;
	q->sub_bits = h->cluster_bits - (extended ? 5 : 0);
	q->sub_bytes = 1u << q->sub_bits;
	q->rb_bits = h->cluster_bits + 3 - h->refcount_order;
	q->refcount_max = h->refcount_order == 6 ? UINT64_MAX : (1ull << (1u << h->refcount_order)) - 1;
	q->hint = 1;
	q->lazy = h->compatible & COMPAT_LAZY && h->version > 2;
}

/* --- where metadata lies --- */

static int meta_add(struct qcow2 *q, uint64_t offset, uint64_t clusters, bool shared)
{
	int ret = 0;

	for (uint64_t c = cluster_of(q, offset); clusters-- && !ret; c++) {
		if (!shared && set_has(&q->meta, c))
			return -EEXIST;
		ret = set_add(&q->meta, c) ? 0 : -ENOMEM;
	}
	return ret;
}

static int meta_tables(struct qcow2 *q, const uint64_t *entry, uint32_t n)
{
	int ret = 0;

	for (uint32_t i = 0; i < n && !ret; i++)
		if (entry[i] & ENTRY_OFFSET)
			ret = meta_add(q, entry[i] & ENTRY_OFFSET, 1, false);
	return ret;
}

/* Twice the same place is damage that only a reader may live with. */
int meta_collect(struct qcow2 *q)
{
	int ret;

	set_fini(&q->meta);
	ret = meta_add(q, 0, 1, false);
	if (!ret)
		ret = meta_add(q, q->h.rt_offset, q->h.rt_clusters, false);
	if (!ret)
		ret = meta_add(q, q->h.l1_offset, clusters_for(q, q->h.l1_size * 8ull), false);
	if (!ret)
		ret = meta_tables(q, q->rt, q->rt_entries);
	if (!ret)
		ret = meta_tables(q, q->l1, q->h.l1_size);
	if (!ret && q->nsnapshots)
		ret = meta_add(q, q->h.snapshots_offset, clusters_for(q, q->snapshot_table_bytes), false);
	for (uint32_t i = 0; i < q->nsnapshots && !ret; i++)
		ret = meta_add(q, q->snapshots[i].l1_offset, clusters_for(q, q->snapshots[i].l1_size * 8ull), true);
	if (!ret)
		ret = bitmaps_meta(q, meta_add);
	if (!ret && q->h.crypt_bytes)
		ret = meta_add(q, q->h.crypt_offset, clusters_for(q, q->h.crypt_bytes), false);
	return ret;
}

/* --- opening --- */

static int load_tables(struct qcow2 *q, bool no_bitmaps, struct error *e)
{
	int ret = tables_init(q);

	if (ret)
		return error_errno(e, -ret, NULL, "open disk '%s'", q->n->path);
	if (!inside_file(q, q->h.l1_offset, q->h.l1_size * 8ull) ||
	    !inside_file(q, q->h.rt_offset, (uint64_t)q->h.rt_clusters << q->cluster_bits))
		return bad(q, e, "its tables lie past the end of the file");
	if (l1_entries_for(q, q->h.size_bytes) > q->h.l1_size)
		return bad(q, e, "its L1 table is too small for the disk");
	ret = l1_load(q, e);
	if (!ret)
		ret = refcounts_load(q, e);
	if (!ret)
		ret = snapshots_load(q, e);
	if (!ret && !no_bitmaps) {
		ret = bitmaps_open(q);
		return ret ? error_errno(e, -ret, NULL, "read the bitmaps of '%s'", q->n->path) : 0;
	}
	return ret;
}

static int data_file(struct qcow2 *q, const struct node_open *how, struct error *e)
{
	struct node *n = q->n;
	const char *named = how->o->data_path ? how->o->data_path : q->h.data_path;
	char *path;
	int ret;

	q->data = q->file;
	q->external = q->h.incompatible & INCOMPAT_DATA_FILE;
	if (!q->external)
		return 0;
	if (!named)
		return bad(q, e, "its external data file has no name");
	path = how->o->data_path ? strdup(named) : node_path_relative(n->path, named);
	if (!path)
		return error_errno(e, ENOMEM, NULL, "open disk '%s'", n->path);
	ret = node_co_open_protocol(&n->child[NODE_DATA], n->env, path, how, e);
	free(path);
	if (ret)
		return ret;
	q->data = n->child[NODE_DATA];
	q->data->zero_past_end = true;
	return 0;
}

/* Before the first write: features that we do not keep up are switched off, a dirty image is made clean. */
static int make_writable(struct qcow2 *q, const struct node_open *how, struct error *e)
{
	struct block_check c = { 0 };
	uint64_t keep = AUTOCLEAR_DATA_RAW | (q->nbitmaps ? AUTOCLEAR_BITMAPS | AUTOCLEAR_AHEAD : 0);
	int ret;

	if (q->n->readonly || how->o->flags & BLOCK_REPAIR)
		return 0;
	if (q->h.incompatible & INCOMPAT_CORRUPT)
		return bad(q, e, "it is marked corrupt; it can be read with ,readonly");
	ret = meta_collect(q);
	if (ret == -EEXIST)
		return bad(q, e, "two tables share a place in it; it can be read with ,readonly");
	if (!ret)
		ret = header_set_features(q, q->h.incompatible, q->h.autoclear & keep);
	if (!ret)
		ret = bitmaps_prepare(q);
	if (ret)
		return error_errno(e, -ret, NULL, "open disk '%s'", q->n->path);
	if (!(q->h.incompatible & INCOMPAT_DIRTY))
		return 0;
	return qcow2_check(q->n, BLOCK_REPAIR_LEAKS | BLOCK_REPAIR_ERRORS, &c, e);
}

static int backing(struct qcow2 *q, const struct node_open *how, struct error *e)
{
	if (!q->h.backing_path && !how->o->backing_path)
		return 0;
	if (q->h.autoclear & AUTOCLEAR_DATA_RAW)
		return bad(q, e, "it has a backing file beside a raw data file");
	return node_co_open_backing(q->n, how, q->h.backing_path, q->h.backing_format, e);
}

static int qcow2_open(struct node *n, const struct node_open *how, struct error *e)
{
	struct qcow2 *q = calloc(1, sizeof(*q));
	int ret;

	if (!q)
		return error_errno(e, ENOMEM, NULL, "open disk '%s'", n->path);
	n->impl = q;
	q->n = n;
	q->file = n->child[NODE_FILE];
	q->co = n->env->co;
	ret = header_read(&q->h, q->file, q->head, e);
	if (ret)
		return ret;
	q->file->zero_past_end = true;
	geometry(q);
	n->size_bytes = (q->h.size_bytes + SECTOR - 1) & ~(uint64_t)(SECTOR - 1);
	n->limits = (struct node_limits){ .align = SECTOR, .cluster = q->cluster_bytes, .can_discard = true,
					  .can_zero = q->h.version > 2 };
	ret = load_tables(q, how->o->flags & BLOCK_NO_BITMAPS, e);
	if (!ret)
		ret = data_file(q, how, e);
	if (!ret)
		ret = crypt_open(q, how, e);
	if (!ret)
		ret = backing(q, how, e);
	return ret ? ret : make_writable(q, how, e);
}

/* --- closing --- */

/* Readers take compressed data by whole sectors. */
static int round_file(struct qcow2 *q)
{
	uint64_t size = q->file->size_bytes, whole = (size + SECTOR - 1) & ~(uint64_t)(SECTOR - 1);

	return size == whole || !q->file->limits.grows ? 0 : node_co_resize(q->file, whole, 0, NULL);
}

static int finish(struct qcow2 *q)
{
	int ret;

	if (q->n->readonly || q->corrupt || !q->cache.hash)
		return 0;
	q->lazy = false;
	ret = bitmaps_finish(q);
	if (!ret)
		ret = qcow2_settle(q);
	if (!ret)
		ret = round_file(q);
	if (!ret && q->lazy_dirty)
		ret = header_set_features(q, q->h.incompatible & ~(uint64_t)INCOMPAT_DIRTY, q->h.autoclear);
	return ret;
}

static int qcow2_close(struct node *n)
{
	struct qcow2 *q = n->impl;
	int ret = finish(q);

	crypt_close(q);
	while (q->idle_reads) {
		struct qcow2_read *r = q->idle_reads;

		q->idle_reads = r->next;
		free(r);
	}
	tables_fini(q);
	snapshots_free(q);
	bitmaps_fini(q);
	set_fini(&q->meta);
	header_fini(&q->h);
	free(q->frees.f);
	free(q->plain);
	free(q->rt);
	free(q->l1);
	free(q);
	n->impl = NULL;
	return ret;
}

/* --- the rest --- */

static int qcow2_co_flush(struct node *n)
{
	return qcow2_commit(n->impl);
}

static int qcow2_info(struct node *n, struct block_info *out)
{
	const struct qcow2 *q = n->impl;
	const struct header *h = &q->h;

	out->backing_path = h->backing_path;
	out->backing_format = h->backing_format;
	out->data_path = h->data_path;
	out->encrypted = h->crypt_method;
	out->unclean = h->incompatible & INCOMPAT_DIRTY;
	out->corrupt = h->incompatible & INCOMPAT_CORRUPT;
	crypt_info(q, out);
	block_info_extra(out, "version", "%u", h->version);
	block_info_extra(out, "refcount bits", "%u", 1u << h->refcount_order);
	block_info_extra(out, "compression", "%s", h->compression ? "zstd" : "zlib");
	block_info_extra(out, "lazy refcounts", "%s", h->compatible & COMPAT_LAZY ? "yes" : "no");
	block_info_extra(out, "extended L2", "%s", h->incompatible & INCOMPAT_EXTENDED_L2 ? "yes" : "no");
	block_info_extra(out, "snapshots", "%u", q->nsnapshots);
	if (h->nbitmaps)
		block_info_extra(out, "bitmaps", "%u%s", h->nbitmaps,
				 h->autoclear & AUTOCLEAR_BITMAPS ? "" : " (out of date)");
	return 0;
}

static int qcow2_set_readonly(struct node *n, bool readonly, const struct block_options *fds, struct error *e)
{
	struct qcow2 *q = n->impl;
	const struct block_options none = { 0 };
	int ret;

	(void)fds;
	if (!readonly) {
		q->lazy = q->h.compatible & COMPAT_LAZY && q->h.version > 2;
		q->lazy_dirty = false;
		return make_writable(q, &(struct node_open){ .o = &none }, e);
	}
	ret = finish(q);
	return ret ? error_errno(e, -ret, "check the host's disk", "write '%s' out", n->path) : 0;
}

static bool qcow2_probe(const uint8_t *head, size_t len, uint64_t file_bytes)
{
	return len >= 4 && load_be32(head) == MAGIC;
}

static const struct node_ops qcow2_ops = {
	.name = "qcow2", .readv = qcow2_readv, .writev = qcow2_writev, .co_flush = qcow2_co_flush,
	.co_discard = qcow2_co_discard, .co_write_zeroes = qcow2_co_write_zeroes, .co_status = qcow2_co_status,
	.co_write_compressed = qcow2_co_write_compressed, .co_resize = qcow2_resize, .co_check = qcow2_check,
	.info = qcow2_info, .co_key = qcow2_key, .key_export = qcow2_key_export,
	.co_snapshot_list = qcow2_snapshot_list, .co_snapshot_create = qcow2_snapshot_create,
	.co_snapshot_apply = qcow2_snapshot_apply, .co_snapshot_delete = qcow2_snapshot_delete,
	.co_bitmap_list = qcow2_bitmap_list, .co_bitmap_change = qcow2_bitmap_change,
	.co_bitmap_at = qcow2_bitmap_at,
	.co_set_readonly = qcow2_set_readonly, .co_close = qcow2_close,
};

const struct driver qcow2_driver = {
	.name = "qcow2", .suffix = ".qcow2", .ops = &qcow2_ops, .probe = qcow2_probe, .co_open = qcow2_open,
	.co_create = qcow2_create, .co_preallocate = qcow2_preallocate,
};
