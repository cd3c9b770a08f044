/*
 * Writing.  Clusters that are this image's alone are written in place, with the caller's memory.  For the others:
 *
 *	lock the guest clusters ─▶ allocate ─▶ read what the write leaves of them ─▶ write both ─▶ change the L2 entries
 *
 * The write is one, head and tail around the caller's vectors.  Entries change in memory when the data is written;
 * commit.c sees to the order in the file.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "block/qcow2/qcow2.h"

struct write {
	struct qcow2 *q;
	unsigned left, epoch;
	int ret;
	uint64_t offset, end, at;
	const struct iovec *iov;
	int iovcnt;
	block_done_fn *done;
	void *opaque;
};

/* What is allocated for one stretch of clusters. */
struct alloc {
	struct range range;
	struct table *t;
	uint64_t from, to;		/* guest bytes of the request */
	uint64_t start, stop;		/* with head and tail */
	uint64_t host, n;		/* of the first cluster; clusters */
	bool in_place;			/* the host cluster is there already, ours alone */
	bool fresh;			/* never written: reads as zeroes */
	uint8_t *head, *tail;
};

bool host_writable(struct qcow2 *q, uint64_t host, uint64_t len)
{
	if (q->external)
		return true;
	if (host >= HOST_MAX - len || host < q->cluster_bytes)
		return false;
	for (uint64_t c = cluster_of(q, host); c <= cluster_of(q, host + len - 1); c++)
		if (set_has(&q->meta, c))
			return false;
	return true;
}

static int write_encrypted(struct qcow2 *q, uint64_t host, const struct iovec *iov, int iovcnt)
{
	uint64_t len = iov_bytes(iov, iovcnt);
	uint8_t *b = malloc(len);
	int ret = b ? 0 : -ENOMEM;

	if (!ret) {
		iov_copy_out(iov, iovcnt, 0, b, len);
		ret = crypt_encrypt(q, host, b, len);
	}
	if (!ret)
		ret = node_co_write(q->data, host, b, len);
	free(b);
	return ret;
}

int data_co_writev(struct qcow2 *q, uint64_t guest, uint64_t host, const struct iovec *iov, int iovcnt)
{
	if (!host_writable(q, host, iov_bytes(iov, iovcnt)))
		return qcow2_corrupt(q, "guest data would be written over metadata", host);
	if (q->encrypted)
		return write_encrypted(q, host, iov, iovcnt);
	return node_co_writev(q->data, host, iov, iovcnt);
}

/* --- planning --- */

static bool usable_in_place(const struct mapping *m)
{
	return !m->compressed && m->copied;
}

/* How many clusters from a->from on need a new host cluster; in place they are taken one by one. */
static int stretch(struct qcow2 *q, struct alloc *a)
{
	uint64_t slice_end = l2_slice_end(q, a->from), at = a->from;
	struct mapping m;
	int ret = mapping_get(q, a->t, at, &m);

	if (ret)
		return ret;
	a->to = a->to < slice_end ? a->to : slice_end;
	a->in_place = usable_in_place(&m) || q->external;
	a->host = q->external ? at - in_cluster(q, at) : m.host;
	for (a->n = 1;; a->n++) {
		at = (at - in_cluster(q, at)) + q->cluster_bytes;
		if (at >= a->to || a->in_place)
			break;
		ret = mapping_get(q, a->t, at, &m);
		if (ret || usable_in_place(&m))
			break;
	}
	if (at < a->to)
		a->to = at;
	a->range.first = cluster_of(q, a->from);
	a->range.last = a->range.first + a->n - 1;
	return 0;
}

/* Where the part to be written begins and ends: at subclusters; at clusters where old data has to move along. */
static int edges(struct qcow2 *q, struct alloc *a)
{
	struct mapping first, last;
	uint64_t unit, end = a->to - 1;
	int ret = mapping_get(q, a->t, a->from, &first);

	if (!ret)
		ret = mapping_get(q, a->t, end, &last);
	if (ret)
		return ret;
	unit = !a->in_place && (first.compressed || first.alloc) ? q->cluster_bytes : q->sub_bytes;
	a->start = a->from & ~(unit - 1);
	if (a->in_place && first.alloc >> (in_cluster(q, a->from) >> q->sub_bits) & 1)
		a->start = a->from;
	unit = !a->in_place && (last.compressed || last.alloc) ? q->cluster_bytes : q->sub_bytes;
	a->stop = (end & ~(unit - 1)) + unit;
	if (a->in_place && last.alloc >> (in_cluster(q, end) >> q->sub_bits) & 1)
		a->stop = a->to;
	return 0;
}

/* --- head and tail --- */

static bool reads_zero(struct qcow2 *q, const struct table *t, uint64_t from, uint64_t to)
{
	const struct node *below = q->n->child[NODE_BACKING];

	for (struct run r; from < to; from += r.len) {
		if (run_at(q, t, from, to - from, &r))
			return false;
		if (r.type == RUN_BACKING ? below && from < below->size_bytes : r.type != RUN_ZERO)
			return false;
	}
	return true;
}

/* *buf stays NULL where nothing has to be written; then the edge moves to where the request begins or ends. */
static int edge_read(struct qcow2 *q, const struct alloc *a, uint64_t from, uint64_t to, uint8_t **buf)
{
	uint64_t size = q->n->size_bytes, valid = to < size ? to : size > from ? size : from;
	bool zero = from < to && reads_zero(q, a->t, from, valid);

	if (from >= to || (zero && a->fresh))
		return 0;
	*buf = calloc(1, to - from);
	if (!*buf)
		return -ENOMEM;
	return zero ? 0 : qcow2_co_read_guest(q, from, *buf, valid - from);
}

static int edges_read(struct qcow2 *q, struct alloc *a)
{
	int ret = edge_read(q, a, a->start, a->from, &a->head);

	return ret ? ret : edge_read(q, a, a->to, a->stop, &a->tail);
}

static int stretch_write(struct write *w, struct alloc *a)
{
	struct qcow2 *q = w->q;
	struct iovec *iov = malloc(sizeof(*iov) * ((size_t)w->iovcnt + 2));
	uint64_t from = a->head ? a->start : a->from;
	int n = 0, ret;

	if (!iov)
		return -ENOMEM;
	if (a->head)
		iov[n++] = (struct iovec){ a->head, a->from - a->start };
	n += iov_cut(iov + n, w->iov, w->iovcnt, a->from - w->offset, a->to - a->from);
	if (a->tail)
		iov[n++] = (struct iovec){ a->tail, a->stop - a->to };
	ret = data_co_writev(q, from, a->host + (from - (a->range.first << q->cluster_bits)), iov, n);
	free(iov);
	return ret;
}

/* --- entries --- */

static uint32_t sub_bits_of(const struct qcow2 *q, uint64_t cluster_start, uint64_t from, uint64_t to)
{
	unsigned a, b;

	if (q->subclusters == 1)
		return 1;
	from = from > cluster_start ? from - cluster_start : 0;
	to = to < cluster_start + q->cluster_bytes ? to - cluster_start : q->cluster_bytes;
	a = (unsigned)(from >> q->sub_bits);
	b = (unsigned)((to - 1) >> q->sub_bits);
	return (uint32_t)((2ull << b) - (1ull << a));
}

static int entries_set(struct qcow2 *q, struct alloc *a)
{
	int ret = 0;

	for (uint64_t i = 0; i < a->n && !ret; i++) {
		uint64_t guest = (a->range.first + i) << q->cluster_bits;
		struct mapping old, m;
		uint32_t bits = sub_bits_of(q, guest, a->start, a->stop);

		ret = mapping_get(q, a->t, guest, &old);
		if (ret)
			return ret;
		m = (struct mapping){ .host = a->host + (i << q->cluster_bits), .copied = true, .alloc = bits,
				      .zero = old.compressed ? 0 : old.zero & ~bits };
		if (a->in_place)
			m.alloc |= old.alloc;
		mapping_set(q, a->t, guest, &m);
		if (!a->in_place)
			ret = mapping_unref(q, &old);
	}
	return ret;
}

/* --- one stretch --- */

static int host_get(struct qcow2 *q, struct alloc *a)
{
	uint64_t first, got;
	int ret;

	if (a->in_place)
		return 0;
	ret = clusters_alloc(q, a->n, false, &first, &got);
	if (ret)
		return ret;
	a->host = first << q->cluster_bits;
	a->fresh = q->file->limits.grows && a->host >= q->file->size_bytes && !q->encrypted;
	if (got < a->n) {
		a->n = got;
		a->to = (a->range.first + got) << q->cluster_bits;
	}
	return 0;
}

/* The clusters are locked. */
static int stretch_do(struct write *w, struct alloc *a)
{
	struct qcow2 *q = w->q;
	bool allocated;
	int ret = qcow2_begin_change(q);

	if (!ret)
		ret = host_get(q, a);
	allocated = !ret && !a->in_place;
	if (!ret)
		ret = edges(q, a);
	if (!ret)
		ret = edges_read(q, a);
	if (!ret)
		ret = stretch_write(w, a);
	if (!ret)
		ret = entries_set(q, a);
	else if (allocated)
		clusters_unref(q, cluster_of(q, a->host), a->n);
	free(a->head);
	free(a->tail);
	return ret;
}

/* A place past the end that nobody allocated would make the file as large as the entry says. */
static bool place_good(const struct qcow2 *q, uint64_t host, uint64_t len)
{
	return q->external || inside_file(q, host, len);
}

static int write_in_place(struct write *w, const struct run *r)
{
	struct iovec *iov;
	int ret;

	if (!place_good(w->q, r->host, r->len))
		return qcow2_corrupt(w->q, "a data cluster lies past the end of the file", r->host);
	iov = malloc(sizeof(*iov) * (size_t)w->iovcnt);
	if (!iov)
		return -ENOMEM;
	ret = data_co_writev(w->q, w->at, r->host, iov,
			     iov_cut(iov, w->iov, w->iovcnt, w->at - w->offset, r->len));
	free(iov);
	w->at += r->len;
	return ret;
}

/* Some of the request from w->at on. */
static int write_some(struct write *w)
{
	struct qcow2 *q = w->q;
	struct alloc a = { .from = w->at, .to = w->end };
	struct run r;
	int ret = q->corrupt ? -EIO : l2_get_writable(q, w->at, &a.t);

	if (ret)
		return ret;
	ret = run_at(q, a.t, w->at, w->end - w->at, &r);
	if (!ret && r.type == RUN_DATA && r.copied) {
		table_put(q, a.t);
		return write_in_place(w, &r);
	}
	if (!ret)
		ret = stretch(q, &a);
	if (!ret && a.in_place && !place_good(q, a.host, q->cluster_bytes))
		ret = qcow2_corrupt(q, "a data cluster lies past the end of the file", a.host);
	if (!ret && range_try_lock(q, &a.range)) {
		ret = stretch_do(w, &a);
		range_unlock(q, &a.range);
		w->at = a.to;
	}
	table_put(q, a.t);
	return ret;
}

/* --- requests --- */

static void write_put(void *opaque, int ret)
{
	struct write *w = opaque;

	if (ret && !w->ret)
		w->ret = ret;
	if (--w->left)
		return;
	epoch_leave(w->q, w->epoch);
	w->done(w->opaque, w->ret);
	free(w);
}

static void write_rest(void *opaque)
{
	struct write *w = opaque;
	int ret = 0;

	while (w->at < w->end && !ret)
		ret = write_some(w);
	write_put(w, ret);
}

struct piece {
	struct write *w;
	struct iovec iov[];
};

static void piece_done(void *opaque, int ret)
{
	struct piece *p = opaque;
	struct write *w = p->w;

	free(p);
	write_put(w, ret);
}

static bool piece_write(struct write *w, const struct run *r)
{
	struct piece *p;

	w->left++;
	if (w->at == w->offset && w->at + r->len == w->end) {
		node_writev(w->q->data, r->host, w->iov, w->iovcnt, write_put, w);
		return true;
	}
	p = malloc(sizeof(*p) + sizeof(struct iovec) * (size_t)w->iovcnt);
	if (!p) {
		w->left--;
		return false;
	}
	p->w = w;
	node_writev(w->q->data, r->host, p->iov, iov_cut(p->iov, w->iov, w->iovcnt, w->at - w->offset, r->len),
		    piece_done, p);
	return true;
}

/* From memory alone, as far as that goes. */
static void write_fast(struct write *w)
{
	struct qcow2 *q = w->q;

	while (w->at < w->end && !q->encrypted && !q->corrupt) {
		uint64_t slice = l2_slice_offset(q, w->at);
		struct table *t = slice ? table_find(q, slice) : NULL;
		struct run r;

		if (!t || run_at(q, t, w->at, w->end - w->at, &r) || r.type != RUN_DATA || !r.copied ||
		    !place_good(q, r.host, r.len) || !host_writable(q, r.host, r.len) || !piece_write(w, &r))
			return;
		w->at += r.len;
	}
}

static void write_go(struct write *w)
{
	struct qcow2 *q = w->q;
	int ret = 0;

	w->left = 1;
	epoch_enter(q, &w->epoch);
	aio_plug(q->n->env->aio);
	write_fast(w);
	if (w->at < w->end)
		ret = co_start(q->co, write_rest, w);
	else
		write_put(w, 0);
	if (ret)
		write_put(w, ret);
	aio_unplug(q->n->env->aio);
}

/* Too much is dirty in memory: first a commit; bitmaps have to say that it comes; then the request.  Not counted in an
 * epoch yet, which that may await. */
static void write_throttled(void *opaque)
{
	struct write *w = opaque;
	int ret = tables_crowded(w->q) ? qcow2_commit(w->q) : 0;

	if (!ret)
		ret = bitmaps_co_mark(w->q, w->offset, w->end - w->offset);
	if (!ret) {
		write_go(w);
		return;
	}
	w->done(w->opaque, ret);
	free(w);
}

void qcow2_writev(struct node *n, uint64_t offset, const struct iovec *iov, int iovcnt, block_done_fn *done,
		  void *opaque)
{
	struct qcow2 *q = n->impl;
	struct write *w = calloc(1, sizeof(*w));

	if (!w) {
		done(opaque, -ENOMEM);
		return;
	}
	*w = (struct write){ .q = q, .offset = offset, .end = offset + iov_bytes(iov, iovcnt), .at = offset, .iov = iov,
			     .iovcnt = iovcnt, .done = done, .opaque = opaque };
	if (!tables_crowded(q) && bitmaps_mark(q, offset, w->end - offset)) {
		write_go(w);
		return;
	}
	if (co_start(q->co, write_throttled, w)) {
		free(w);
		done(opaque, -ENOMEM);
	}
}

int qcow2_co_write_guest(struct qcow2 *q, uint64_t offset, const struct iovec *iov, int iovcnt)
{
	struct co_call c = { .s = q->co };

	qcow2_writev(q->n, offset, iov, iovcnt, co_call_done, &c);
	return co_call_wait(&c);
}
