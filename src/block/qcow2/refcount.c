/*
 * Reference counts and the allocation of host clusters.
 *
 *	refcount table (q->rt) ──▶ refcount block: one cluster of entries, 1 to 64 bits each
 *
 * A new refcount block is the first of the clusters that it counts, so it needs no other block's help; it is written
 * at once, with its own entry, and the table names it at the next commit.  A new table lies behind new blocks of its
 * own in a part of the file that no old block counts.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "block/qcow2/qcow2.h"

uint64_t refcount_entry(const uint8_t *b, unsigned order, uint64_t i)
{
	switch (order) {
	case 0: return b[i / 8] >> (i % 8) & 1;
	case 1: return b[i / 4] >> (i % 4 * 2) & 3;
	case 2: return b[i / 2] >> (i % 2 * 4) & 15;
	case 3: return b[i];
	case 4: return load_be16(b + i * 2);
	case 5: return load_be32(b + i * 4);
	default: return load_be64(b + i * 8);
	}
}

void refcount_entry_set(uint8_t *b, unsigned order, uint64_t i, uint64_t v)
{
	unsigned per = 8u >> order, bits = 1u << order, shift;

	switch (order) {
	case 0:
	case 1:
	case 2:
		shift = (unsigned)(i % per) * bits;
		b[i / per] = (uint8_t)((b[i / per] & ~(((1u << bits) - 1) << shift)) | v << shift);
		break;
	case 3: b[i] = (uint8_t)v; break;
	case 4: store_be16(b + i * 2, (uint16_t)v); break;
	case 5: store_be32(b + i * 4, (uint32_t)v); break;
	default: store_be64(b + i * 8, v);
	}
}

int refcounts_load(struct qcow2 *q, struct error *e)
{
	size_t bytes = (size_t)q->h.rt_clusters << q->cluster_bits;
	int ret;

	q->rt_entries = (uint32_t)(bytes / 8);
	q->rt = malloc(bytes);
	ret = q->rt ? node_co_read(q->file, q->h.rt_offset, q->rt, bytes) : -ENOMEM;
	if (ret)
		return error_errno(e, -ret, NULL, "read the refcount table of '%s'", q->n->path);
	for (uint32_t i = 0; i < q->rt_entries; i++)
		q->rt[i] = load_be64(&q->rt[i]) & ~511ull;
	return 0;
}

/* --- one entry --- */

static uint64_t entry_bit(const struct qcow2 *q, uint64_t cluster)
{
	return (cluster & ((1ull << q->rb_bits) - 1)) << q->h.refcount_order;
}

/* Clusters up to the end of the slice that holds this one's count. */
static uint64_t slice_rest(const struct qcow2 *q, uint64_t cluster)
{
	uint64_t per = (uint64_t)q->slice_bytes * 8 >> q->h.refcount_order;

	return per - cluster % per;
}

/* *out NULL: there is no block, all it would count is free. */
static int slice_get(struct qcow2 *q, uint64_t cluster, struct table **out, uint64_t *index)
{
	uint64_t i = cluster >> q->rb_bits, byte = entry_bit(q, cluster) / 8, block;
	uint64_t per = (uint64_t)q->slice_bytes * 8 >> q->h.refcount_order;

	*out = NULL;
	*index = cluster % per;
	block = i < q->rt_entries ? q->rt[i] : 0;
	if (!block)
		return 0;
	if (in_cluster(q, block) || !inside_file(q, block, q->cluster_bytes))
		return qcow2_corrupt(q, "a refcount block is not where one can be", block);
	return table_get(q, TABLE_REFS, block + (byte & ~(uint64_t)(q->slice_bytes - 1)), out);
}

int refcount_get(struct qcow2 *q, uint64_t cluster, uint64_t *out)
{
	struct table *t;
	uint64_t i;
	int ret = slice_get(q, cluster, &t, &i);

	*out = 0;
	if (ret || !t)
		return ret;
	*out = refcount_entry(t->data, q->h.refcount_order, i);
	table_put(q, t);
	return 0;
}

static void entry_store(struct qcow2 *q, struct table *t, uint64_t i, uint64_t value)
{
	unsigned order = q->h.refcount_order;

	refcount_entry_set(t->data, order, i, value);
	table_dirty(q, t, (uint32_t)((i << order) / 8), order < 3 ? 1 : 1u << order >> 3);
}

/* --- blocks and the table; alloc_lock is held --- */

static void rt_set(struct qcow2 *q, uint32_t i, uint64_t offset)
{
	q->rt[i] = offset;
	if (q->rt_dirty_from == q->rt_dirty_to) {
		q->rt_dirty_from = i;
		q->rt_dirty_to = i + 1;
	}
	q->rt_dirty_from = i < q->rt_dirty_from ? i : q->rt_dirty_from;
	q->rt_dirty_to = i + 1 > q->rt_dirty_to ? i + 1 : q->rt_dirty_to;
}

static int block_write(struct qcow2 *q, uint64_t cluster, uint64_t used)
{
	uint8_t *b = calloc(1, q->cluster_bytes);
	int ret = b && set_add(&q->meta, cluster) ? 0 : -ENOMEM;

	for (uint64_t i = 0; !ret && i < used; i++)
		refcount_entry_set(b, q->h.refcount_order, i, 1);
	if (!ret)
		ret = node_co_write(q->file, cluster << q->cluster_bits, b, q->cluster_bytes);
	free(b);
	if (ret)
		set_del(&q->meta, cluster);
	return ret;
}

/* Old entries, then the new blocks', then none. */
static uint8_t *rt_image(const struct qcow2 *q, uint64_t entries, uint64_t base, uint64_t blocks)
{
	uint8_t *b = calloc(entries, 8);

	if (!b)
		return NULL;
	for (uint32_t i = 0; i < q->rt_entries; i++)
		store_be64(b + i * 8ull, q->rt[i]);
	for (uint64_t i = 0; i < blocks; i++)
		store_be64(b + (q->rt_entries + i) * 8, (base + i) << q->cluster_bits);
	return b;
}

static int rt_switch(struct qcow2 *q, uint64_t offset, uint64_t clusters, const uint8_t *image)
{
	uint64_t entries = clusters << q->cluster_bits >> 3, old = cluster_of(q, q->h.rt_offset);
	uint32_t old_clusters = q->h.rt_clusters;
	uint64_t *rt = malloc(entries * 8);
	uint8_t field[12];
	int ret;

	if (!rt)
		return -ENOMEM;
	store_be64(field, offset);
	store_be32(field + 8, (uint32_t)clusters);
	ret = header_patch(q, H_RT_OFFSET, field, sizeof(field));
	if (ret) {
		free(rt);
		return ret;
	}
	for (uint64_t i = 0; i < entries; i++)
		rt[i] = load_be64(image + i * 8);
	free(q->rt);
	q->rt = rt;
	q->rt_entries = (uint32_t)entries;
	q->rt_dirty_from = q->rt_dirty_to = 0;
	q->h.rt_offset = offset;
	q->h.rt_clusters = (uint32_t)clusters;
	for (uint32_t i = 0; i < old_clusters; i++)
		set_del(&q->meta, old + i);
	return clusters_unref_later(q, old, old_clusters);
}

static int rt_grow(struct qcow2 *q, uint64_t need)
{
	uint64_t base = (uint64_t)q->rt_entries << q->rb_bits, blocks = 1, clusters = q->h.rt_clusters * 2ull;
	uint64_t rb = 1ull << q->rb_bits;
	uint8_t *image;
	int ret;

	while (clusters << q->cluster_bits >> 3 <= need)
		clusters *= 2;
	while (blocks + clusters > blocks * rb)
		blocks++;
	if (clusters << q->cluster_bits > RT_BYTES_MAX)
		return -EFBIG;
	image = rt_image(q, clusters << q->cluster_bits >> 3, base, blocks);
	ret = image ? 0 : -ENOMEM;
	for (uint64_t i = 0; !ret && i < blocks; i++) {
		uint64_t left = blocks + clusters - i * rb;

		ret = block_write(q, base + i, left < rb ? left : rb);
	}
	for (uint64_t i = 0; !ret && i < clusters; i++)
		ret = set_add(&q->meta, base + blocks + i) ? 0 : -ENOMEM;
	if (!ret)
		ret = node_co_write(q->file, (base + blocks) << q->cluster_bits, image, clusters << q->cluster_bits);
	if (!ret)	/* what the table names is there before the header names the table */
		ret = node_co_flush(q->file);
	if (!ret)
		ret = rt_switch(q, (base + blocks) << q->cluster_bits, clusters, image);
	free(image);
	return ret;
}

static int block_make(struct qcow2 *q, uint64_t cluster)
{
	uint64_t i = cluster >> q->rb_bits, first = i << q->rb_bits;
	int ret = 0;

	if (i >= q->rt_entries)
		ret = rt_grow(q, i);
	if (ret || q->rt[i])
		return ret;
	if (set_has(&q->meta, first))
		return qcow2_corrupt(q, "metadata lies where nothing is in use", first << q->cluster_bits);
	ret = block_write(q, first, 1);
	if (!ret)
		rt_set(q, (uint32_t)i, first << q->cluster_bits);
	return ret;
}

/* --- changing counts; alloc_lock is held --- */

static int change_slice(struct qcow2 *q, struct table *t, uint64_t i, uint64_t n, bool up)
{
	unsigned order = q->h.refcount_order;

	for (uint64_t k = 0; k < n; k++) {
		uint64_t v = refcount_entry(t->data, order, i + k);

		if (up ? v == q->refcount_max : !v) {
			while (k--) {
				v = refcount_entry(t->data, order, i + k);
				entry_store(q, t, i + k, up ? v - 1 : v + 1);
			}
			return up ? -ERANGE : qcow2_corrupt(q, "a reference is dropped that is not counted", t->offset);
		}
		entry_store(q, t, i + k, up ? v + 1 : v - 1);
	}
	return 0;
}

static int change(struct qcow2 *q, uint64_t first, uint64_t n, bool up)
{
	uint64_t at = first, left = n;
	int ret = 0;

	while (left && !ret) {
		uint64_t part = slice_rest(q, at), i;
		struct table *t;

		part = part < left ? part : left;
		ret = up ? block_make(q, at) : 0;
		if (!ret)
			ret = slice_get(q, at, &t, &i);
		if (!ret && !t)
			ret = qcow2_corrupt(q, "a reference is dropped that is not counted", at << q->cluster_bits);
		if (ret)
			break;
		ret = change_slice(q, t, i, part, up);
		table_put(q, t);
		if (ret)
			break;
		at += part;
		left -= part;
	}
	if (ret && up && at > first)
		change(q, first, at - first, false);
	return ret;
}

/* What an entry names is there, or the entry is nonsense, and counting it would make the file huge. */
int clusters_ref(struct qcow2 *q, uint64_t first, uint64_t n)
{
	int ret;

	if (!inside_file(q, first << q->cluster_bits, n << q->cluster_bits))
		return qcow2_corrupt(q, "a cluster lies past the end of the file", first << q->cluster_bits);
	co_lock(q->co, &q->alloc_lock);
	ret = change(q, first, n, true);
	co_unlock(q->co, &q->alloc_lock);
	return ret;
}

/* Whatever dropped to zero is no metadata any more, and nothing that memory remembers. */
static int unref_locked(struct qcow2 *q, uint64_t first, uint64_t n)
{
	int ret = change(q, first, n, false);

	for (uint64_t c = first; !ret && c < first + n; c++) {
		uint64_t v;

		ret = refcount_get(q, c, &v);
		if (ret || v)
			continue;
		set_del(&q->meta, c);
		tables_drop(q, c << q->cluster_bits, q->cluster_bytes);
		if (c < q->hint)
			q->hint = c;
		if (q->packed_at && cluster_of(q, q->packed_at) == c)
			q->packed_at = 0;
	}
	q->plain_raw = 0;
	return ret;
}

int clusters_unref(struct qcow2 *q, uint64_t first, uint64_t n)
{
	int ret;

	co_lock(q->co, &q->alloc_lock);
	ret = unref_locked(q, first, n);
	co_unlock(q->co, &q->alloc_lock);
	return ret;
}

int clusters_unref_later(struct qcow2 *q, uint64_t first, uint64_t n)
{
	struct free_list *l = &q->frees;
	struct freed *f;

	if (l->n && l->f[l->n - 1].first + l->f[l->n - 1].n == first) {
		l->f[l->n - 1].n += n;
		return 0;
	}
	if (l->n == l->cap) {
		f = realloc(l->f, (l->cap + 64) * 2 * sizeof(*f));
		if (!f)
			return 0;	/* leaked, until a check */
		l->f = f;
		l->cap = (l->cap + 64) * 2;
	}
	l->f[l->n++] = (struct freed){ first, n };
	return 0;
}

/* Gives space back to the host before anybody can allocate it anew. */
static int discard_unused(struct qcow2 *q, uint64_t first, uint64_t n)
{
	uint64_t start = first, v = 0;
	int ret = 0;

	for (uint64_t c = first; c <= first + n && !ret; c++) {
		if (c < first + n)
			ret = refcount_get(q, c, &v);
		if (!ret && c < first + n && v == 1)
			continue;
		if (c > start)
			node_co_discard(q->file, start << q->cluster_bits, (c - start) << q->cluster_bits);
		start = c + 1;
	}
	return ret;
}

int frees_apply(struct qcow2 *q, struct free_list *l)
{
	int ret = 0;

	co_lock(q->co, &q->alloc_lock);
	for (size_t i = 0; i < l->n && !ret; i++) {
		if (q->file->limits.can_discard)
			ret = discard_unused(q, l->f[i].first, l->f[i].n);
		if (!ret)
			ret = unref_locked(q, l->f[i].first, l->f[i].n);
	}
	co_unlock(q->co, &q->alloc_lock);
	return ret;
}

/* --- allocation --- */

/* Finds the next run of free clusters at or after *first: at least one, as many as there are up to want. */
static int find_run(struct qcow2 *q, uint64_t *first, uint64_t want, uint64_t *got)
{
	uint64_t c = *first;

	*got = 0;
	while (*got < want) {
		uint64_t i, rest = slice_rest(q, c);
		struct table *t;
		int ret = c >= HOST_MAX >> q->cluster_bits ? -EFBIG : block_make(q, c);

		if (!ret)
			ret = slice_get(q, c, &t, &i);
		if (ret)
			return ret;
		for (; rest && *got < want; rest--, c++, i++) {
			bool taken = refcount_entry(t->data, q->h.refcount_order, i);

			if (!taken && !*got)
				*first = c;
			if (taken && *got) {
				table_put(q, t);
				return 0;
			}
			*got += !taken;
		}
		table_put(q, t);
	}
	return 0;
}

static int alloc_locked(struct qcow2 *q, uint64_t want, bool exact, uint64_t *first, uint64_t *got)
{
	uint64_t at = q->hint;
	int ret;

	do {
		*first = at;
		ret = find_run(q, first, want, got);
		if (!ret && at == q->hint)
			q->hint = *first;
		at = *first + *got;
	} while (!ret && exact && *got < want);
	for (uint64_t i = 0; !ret && i < *got; i++)
		if (set_has(&q->meta, *first + i))
			ret = qcow2_corrupt(q, "metadata is counted as free", (*first + i) << q->cluster_bits);
	if (!ret)
		ret = change(q, *first, *got, true);
	if (!ret && *first == q->hint)
		q->hint = *first + *got;
	return ret;
}

int clusters_alloc(struct qcow2 *q, uint64_t want, bool exact, uint64_t *first, uint64_t *got)
{
	int ret;

	if (q->corrupt)
		return -EIO;
	co_lock(q->co, &q->alloc_lock);
	ret = alloc_locked(q, want, exact, first, got);
	co_unlock(q->co, &q->alloc_lock);
	return ret;
}

/* Bytes after those of the last compressed cluster, with another reference to their cluster, or from new clusters. */
static int packed_locked(struct qcow2 *q, uint32_t len, uint64_t *host)
{
	uint64_t room = q->packed_at ? q->cluster_bytes - in_cluster(q, q->packed_at) : 0, first, got;
	int ret = -ERANGE;

	*host = q->packed_at;
	if (room >= len)
		ret = change(q, cluster_of(q, q->packed_at), 1, true);
	if (ret == -ERANGE) {
		bool spans = room && room < len;

		ret = alloc_locked(q, 1, true, &first, &got);
		if (ret)
			return ret;
		*host = first << q->cluster_bits;
		if (spans && first == cluster_of(q, q->packed_at) + 1 &&
		    !change(q, cluster_of(q, q->packed_at), 1, true))
			*host = q->packed_at;
	}
	if (!ret)
		q->packed_at = in_cluster(q, *host + len) ? *host + len : 0;
	return ret;
}

int packed_alloc(struct qcow2 *q, uint32_t len, uint64_t *host)
{
	int ret;

	if (q->corrupt)
		return -EIO;
	co_lock(q->co, &q->alloc_lock);
	ret = packed_locked(q, len, host);
	co_unlock(q->co, &q->alloc_lock);
	return ret;
}
