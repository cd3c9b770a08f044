/* Guest clusters as a whole: locking them while their mapping changes, forgetting them, zeroes. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "block/qcow2/qcow2.h"

/* --- locks --- */

bool range_try_lock(struct qcow2 *q, struct range *r)
{
	for (const struct range *o = q->ranges; o; o = o->next) {
		if (r->first <= o->last && o->first <= r->last) {
			co_queue_wait(q->co, &q->range_wait);
			return false;
		}
	}
	r->next = q->ranges;
	q->ranges = r;
	return true;
}

void range_unlock(struct qcow2 *q, struct range *r)
{
	struct range **p = &q->ranges;

	while (*p != r)
		p = &(*p)->next;
	*p = r->next;
	co_queue_wake_all(q->co, &q->range_wait);
}

/* --- forgetting --- */

/* What a cluster becomes, whose bits [sub] are to read as zeroes or as what is below; false: as it is. */
static bool mapping_forget(const struct qcow2 *q, struct mapping *m, bool zero, bool keep_host)
{
	struct mapping old = *m;
	bool keep = keep_host && m->copied && m->host && !m->compressed;

	if (q->external)
		keep = zero && (m->host || m->copied);
	*m = (struct mapping){ .zero = zero ? sub_mask(q) : 0, .host = keep ? old.host : 0, .copied = keep };
	return old.compressed || old.host != m->host || old.copied != m->copied || old.zero != m->zero || old.alloc;
}

static int forget_one(struct qcow2 *q, struct table *t, uint64_t guest, bool zero, bool keep_host)
{
	struct mapping old, m;
	int ret = mapping_get(q, t, guest, &old);

	m = old;
	if (ret || !mapping_forget(q, &m, zero, keep_host))
		return ret;
	mapping_set(q, t, guest, &m);
	return m.host ? 0 : mapping_unref(q, &old);
}

/* The clusters of one slice. */
static int forget_slice(struct qcow2 *q, uint64_t at, uint64_t end, bool zero, bool keep_host)
{
	struct range r = { cluster_of(q, at), cluster_of(q, end - 1), NULL };
	struct table *t;
	int ret = qcow2_begin_change(q);

	if (!ret && !zero && !l2_slice_offset(q, at))
		return 0;
	do {
		if (!ret)
			ret = l2_get_writable(q, at, &t);
		if (ret)
			return ret;
		if (range_try_lock(q, &r))
			break;
		table_put(q, t);
	} while (true);
	for (uint64_t g = at; g < end && !ret; g += q->cluster_bytes)
		ret = forget_one(q, t, g, zero, keep_host);
	range_unlock(q, &r);
	table_put(q, t);
	return ret;
}

int clusters_forget(struct qcow2 *q, uint64_t offset, uint64_t len, bool zero, bool keep_host)
{
	int ret = 0;

	for (uint64_t at = offset, end = offset + len; at < end && !ret;) {
		uint64_t next = l2_slice_end(q, at);

		next = next < end ? next : end;
		if (tables_crowded(q))
			ret = qcow2_commit(q);
		if (!ret)
			ret = forget_slice(q, at, next, zero, keep_host);
		at = next;
	}
	return ret;
}

/* --- requests --- */

/* Whole clusters inside a range; the disk's end counts as a cluster's. */
static void whole_clusters(const struct qcow2 *q, uint64_t offset, uint64_t len, uint64_t *from, uint64_t *to)
{
	uint64_t mask = q->cluster_bytes - 1, end = offset + len;

	*from = (offset + mask) & ~mask;
	*to = end == q->n->size_bytes ? (end + mask) & ~mask : end & ~mask;
	if (*to < *from)
		*to = *from;
}

/* Nothing of the backing file may come to light: its part becomes zeroes, which version 2 cannot say. */
int qcow2_co_discard(struct node *n, uint64_t offset, uint64_t len)
{
	struct qcow2 *q = n->impl;
	uint64_t from, to;
	int ret;

	whole_clusters(q, offset, len, &from, &to);
	if (from == to || (q->h.version < 3 && n->child[NODE_BACKING]) || q->h.autoclear & AUTOCLEAR_DATA_RAW)
		return 0;
	ret = bitmaps_co_mark(q, from, to - from);
	if (!ret)
		ret = clusters_forget(q, from, to - from, n->child[NODE_BACKING] || q->external, false);
	if (!ret && q->external)
		ret = node_co_discard(q->data, from, (to < n->size_bytes ? to : n->size_bytes) - from);
	return ret;
}

static bool is_zero(struct qcow2 *q, uint64_t at, uint64_t end)
{
	while (at < end) {
		struct block_status st;

		if (node_co_status(q->n, at, end - at, UINT32_MAX, &st) || !(st.flags & BLOCK_STATUS_ZERO))
			return false;
		at += st.len;
	}
	return true;
}

/* Parts of clusters are written, unless they are zeroes anyway. */
static int zero_part(struct qcow2 *q, uint64_t from, uint64_t to)
{
	struct iovec iov;
	int ret;

	if (from >= to || is_zero(q, from, to))
		return 0;
	iov = (struct iovec){ calloc(1, to - from), to - from };
	if (!iov.iov_base)
		return -ENOMEM;
	ret = qcow2_co_write_guest(q, from, &iov, 1);
	free(iov.iov_base);
	return ret;
}

int qcow2_co_write_zeroes(struct node *n, uint64_t offset, uint64_t len, unsigned flags)
{
	struct qcow2 *q = n->impl;
	uint64_t from, to, end = offset + len;
	bool flag = q->h.version > 2 && (n->child[NODE_BACKING] || !(flags & NODE_ZERO_MAY_UNMAP) || q->external);
	int ret;

	if (q->h.autoclear & AUTOCLEAR_DATA_RAW || (q->h.version < 3 && n->child[NODE_BACKING]))
		return -EOPNOTSUPP;
	ret = bitmaps_co_mark(q, offset, len);
	if (ret)
		return ret;
	whole_clusters(q, offset, len, &from, &to);
	if (from == to && from > end)
		return zero_part(q, offset, end);
	if (from > end)
		from = end;
	ret = zero_part(q, offset, from < end ? from : end);
	if (!ret && to > from)
		ret = clusters_forget(q, from, to - from, flag, !(flags & NODE_ZERO_MAY_UNMAP) && flag);
	return ret ? ret : zero_part(q, to > offset ? to : offset, end);
}
