/*
 * From guest offsets to host offsets.
 *
 *	guest offset:	| L1 index | L2 index | offset in the cluster |
 *
 *	L2 entry:	63 COPIED | 62 COMPRESSED | 61..56 0 | 55..9 host offset | 8..1 0 | 0 ZERO
 *	compressed:	63 0      | 62 1          | sectors - 1 | host offset in bytes
 *	extended:	a second word: 63..32 subcluster reads as zeroes | 31..0 subcluster is in the host cluster
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "block/qcow2/qcow2.h"

/* --- L1 --- */

int l1_load(struct qcow2 *q, struct error *e)
{
	size_t bytes = q->h.l1_size * 8ull;
	int ret;

	q->l1 = malloc(bytes ? bytes : 8);
	ret = q->l1 ? node_co_read(q->file, q->h.l1_offset, q->l1, bytes) : -ENOMEM;
	if (ret)
		return error_errno(e, -ret, NULL, "read the L1 table of '%s'", q->n->path);
	for (uint32_t i = 0; i < q->h.l1_size; i++)
		q->l1[i] = load_be64(&q->l1[i]);
	return 0;
}

static uint64_t l1_index(const struct qcow2 *q, uint64_t guest)
{
	return guest >> (q->cluster_bits + q->l2_bits);
}

static void l1_set(struct qcow2 *q, uint64_t i, uint64_t entry)
{
	q->l1[i] = entry;
	if (q->l1_dirty_from == q->l1_dirty_to) {
		q->l1_dirty_from = (uint32_t)i;
		q->l1_dirty_to = (uint32_t)i + 1;
	}
	q->l1_dirty_from = i < q->l1_dirty_from ? (uint32_t)i : q->l1_dirty_from;
	q->l1_dirty_to = i + 1 > q->l1_dirty_to ? (uint32_t)i + 1 : q->l1_dirty_to;
}

static uint64_t index_in_table(const struct qcow2 *q, uint64_t guest)
{
	return cluster_of(q, guest) & ((1ull << q->l2_bits) - 1);
}

uint64_t l2_slice_offset(const struct qcow2 *q, uint64_t guest)
{
	uint64_t i = l1_index(q, guest), table = i < q->h.l1_size ? q->l1[i] & ENTRY_OFFSET : 0;

	if (!table)
		return 0;
	return table + (index_in_table(q, guest) * q->entry_bytes & ~(uint64_t)(q->slice_bytes - 1));
}

unsigned l2_index(const struct qcow2 *q, uint64_t guest)
{
	return (unsigned)(index_in_table(q, guest) & (q->slice_bytes / q->entry_bytes - 1));
}

uint64_t l2_slice_end(const struct qcow2 *q, uint64_t guest)
{
	uint64_t bytes = (uint64_t)(q->slice_bytes / q->entry_bytes) << q->cluster_bits;

	return (guest & ~(bytes - 1)) + bytes;
}

int l2_get(struct qcow2 *q, uint64_t guest, struct table **out)
{
	uint64_t at = l2_slice_offset(q, guest);

	*out = NULL;
	if (!at)
		return 0;
	if (in_cluster(q, q->l1[l1_index(q, guest)] & ENTRY_OFFSET) || !inside_file(q, at, q->slice_bytes))
		return qcow2_corrupt(q, "an L2 table is not where one can be", at);
	return table_get(q, TABLE_L2, at, out);
}

/* --- making tables; l1_lock is held --- */

static int copy_table(struct qcow2 *q, uint64_t from, uint8_t *to)
{
	int ret = 0;

	for (uint32_t at = 0; at < q->cluster_bytes && !ret; at += q->slice_bytes) {
		struct table *t;

		ret = table_get(q, TABLE_L2, from + at, &t);
		if (ret)
			break;
		memcpy(to + at, t->data, q->slice_bytes);
		table_put(q, t);
	}
	return ret;
}

/* An empty table, or a copy of one that a snapshot shares, is in the file before L1 names it in memory. */
static int make_table(struct qcow2 *q, uint64_t i)
{
	uint64_t old = q->l1[i] & ENTRY_OFFSET, first, got;
	uint8_t *b = calloc(1, q->cluster_bytes);
	int ret = b ? 0 : -ENOMEM;

	if (!ret && old)
		ret = copy_table(q, old, b);
	if (!ret)
		ret = clusters_alloc(q, 1, true, &first, &got);
	if (ret) {
		free(b);
		return ret;
	}
	ret = node_co_write(q->file, first << q->cluster_bits, b, q->cluster_bytes);
	free(b);
	if (!ret && !set_add(&q->meta, first))
		ret = -ENOMEM;
	if (ret) {
		clusters_unref(q, first, 1);
		return ret;
	}
	if (old) {
		set_del(&q->meta, cluster_of(q, old));
		clusters_unref_later(q, cluster_of(q, old), 1);
	}
	l1_set(q, i, first << q->cluster_bits | ENTRY_COPIED);
	return 0;
}

int l2_get_writable(struct qcow2 *q, uint64_t guest, struct table **out)
{
	uint64_t i = l1_index(q, guest);
	int ret = 0;

	*out = NULL;
	if (i >= q->h.l1_size)
		return -EIO;
	if (!(q->l1[i] & ENTRY_COPIED) || !(q->l1[i] & ENTRY_OFFSET)) {
		co_lock(q->co, &q->l1_lock);
		if (!(q->l1[i] & ENTRY_COPIED) || !(q->l1[i] & ENTRY_OFFSET))
			ret = make_table(q, i);
		co_unlock(q->co, &q->l1_lock);
	}
	return ret ? ret : l2_get(q, guest, out);
}

/* --- entries --- */

uint32_t sub_mask(const struct qcow2 *q)
{
	return q->subclusters == 1 ? 1 : UINT32_MAX;
}

static int mapping_bad(struct qcow2 *q, const char *why, uint64_t guest)
{
	return qcow2_corrupt(q, why, guest);
}

static void standard_states(const struct qcow2 *q, const uint8_t *p, struct mapping *m)
{
	if (q->subclusters > 1) {
		uint64_t map = load_be64(p + 8);

		m->alloc = (uint32_t)map;
		m->zero = (uint32_t)(map >> 32);
		return;
	}
	m->zero = m->raw & ENTRY_ZERO && q->h.version > 2;
	m->alloc = !m->zero && (m->host || (q->external && m->copied));
}

int mapping_get(struct qcow2 *q, const struct table *t, uint64_t guest, struct mapping *m)
{
	const uint8_t *p = t->data + (size_t)l2_index(q, guest) * q->entry_bytes;

	*m = (struct mapping){ .raw = load_be64(p) };
	if (m->raw & ENTRY_COMPRESSED) {
		m->compressed = true;
		return q->external ? mapping_bad(q, "a compressed cluster beside an external data file", guest) : 0;
	}
	m->host = m->raw & ENTRY_OFFSET;
	m->copied = m->raw & ENTRY_COPIED;
	standard_states(q, p, m);
	if (in_cluster(q, m->host))
		return mapping_bad(q, "a data cluster is not aligned", guest);
	if (m->alloc & m->zero || (m->alloc && !m->host && !q->external))
		return mapping_bad(q, "an L2 entry contradicts itself", guest);
	if (q->external && (m->alloc || m->host) && m->host != (guest & ~(uint64_t)(q->cluster_bytes - 1)))
		return mapping_bad(q, "a cluster of the external data file is not at its place", guest);
	return 0;
}

void mapping_set(struct qcow2 *q, struct table *t, uint64_t guest, const struct mapping *m)
{
	uint32_t at = l2_index(q, guest) * q->entry_bytes;
	uint64_t raw = m->compressed ? m->raw : m->host | (m->copied ? ENTRY_COPIED : 0);

	if (q->subclusters == 1 && !m->compressed && m->zero)
		raw |= ENTRY_ZERO;
	store_be64(t->data + at, raw);
	if (q->subclusters > 1)
		store_be64(t->data + at + 8, m->compressed ? 0 : (uint64_t)m->zero << 32 | m->alloc);
	table_dirty(q, t, at, q->entry_bytes);
}

void compressed_extent(const struct qcow2 *q, uint64_t raw, uint64_t *host, uint64_t *len)
{
	unsigned x = 62 - (q->cluster_bits - 8);

	*host = raw & ((1ull << x) - 1) & (HOST_MAX - 1);
	*len = ((raw & (ENTRY_COMPRESSED - 1)) >> x) * SECTOR + SECTOR - *host % SECTOR;
}

int mapping_unref(struct qcow2 *q, const struct mapping *m)
{
	uint64_t host, len;

	if (q->external)
		return 0;
	if (m->compressed) {
		compressed_extent(q, m->raw, &host, &len);
		return clusters_unref_later(q, cluster_of(q, host),
					    cluster_of(q, host + len - 1) - cluster_of(q, host) + 1);
	}
	return m->host ? clusters_unref_later(q, cluster_of(q, m->host), 1) : 0;
}

/* --- runs --- */

static enum run_type sub_type(const struct mapping *m, unsigned sub)
{
	if (m->compressed)
		return RUN_COMPRESSED;
	return m->alloc >> sub & 1 ? RUN_DATA : m->zero >> sub & 1 ? RUN_ZERO : RUN_BACKING;
}

static void run_begin(struct qcow2 *q, const struct mapping *m, uint64_t guest, struct run *r)
{
	r->type = sub_type(m, (unsigned)(in_cluster(q, guest) >> q->sub_bits));
	r->copied = m->copied;
	r->host = m->host + in_cluster(q, guest);
	r->raw = m->raw;
	r->len = 0;
	r->allocated = r->type != RUN_BACKING;
}

static bool run_goes_on(struct qcow2 *q, const struct mapping *m, uint64_t guest, const struct run *r)
{
	if (sub_type(m, (unsigned)(in_cluster(q, guest) >> q->sub_bits)) != r->type || r->type == RUN_COMPRESSED)
		return false;
	return r->type != RUN_DATA ||
	       (m->host + in_cluster(q, guest) == r->host + r->len && m->copied == r->copied);
}

int run_at(struct qcow2 *q, const struct table *t, uint64_t guest, uint64_t len, struct run *r)
{
	uint64_t end = guest + len, at = guest, slice_end = l2_slice_end(q, guest);
	struct mapping m;
	int ret;

	end = end < slice_end ? end : slice_end;
	*r = (struct run){ .type = RUN_BACKING, .len = end - guest };
	if (!t)
		return 0;
	while (at < end) {
		uint64_t next;

		if (at == guest || !in_cluster(q, at)) {
			ret = mapping_get(q, t, at, &m);
			if (ret)
				return at == guest ? ret : 0;
		}
		if (at == guest)
			run_begin(q, &m, at, r);
		else if (!run_goes_on(q, &m, at, r))
			return 0;
		next = (at & ~(uint64_t)((r->type == RUN_COMPRESSED ? q->cluster_bytes : q->sub_bytes) - 1)) +
		       (r->type == RUN_COMPRESSED ? q->cluster_bytes : q->sub_bytes);
		next = next < end ? next : end;
		r->len += next - at;
		at = next;
	}
	return 0;
}
