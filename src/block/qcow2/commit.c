/*
 * Writing changed metadata in an order that survives a cut anywhere.
 *
 *	refcounts (which only grew) ─▶ sync ─▶ refcount table ─▶ sync ─▶ L2 tables, L1 table ─▶ sync ─▶ dropped references
 *	     data written before ───────┘	 (if changed)					         become free
 *
 * So what a table names is counted and holds its data; what is no longer named stays counted until the new tables are
 * durable.  A cut leaves clusters that are counted and not named: leaks.  All of it is copied at the start, because
 * changes made while it is being written belong to the next commit: an L2 entry of theirs must not reach the file
 * before its refcount.  New L2 tables are written, empty, before L1 changes in memory: the first sync covers that.
 *
 * With lazy refcounts the dirty bit is set before the first change, and the counts wait for the closing.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "block/qcow2/qcow2.h"

/* --- epochs --- */

void epoch_enter(struct qcow2 *q, unsigned *epoch)
{
	*epoch = q->epoch;
	q->in_epoch[q->epoch]++;
}

void epoch_leave(struct qcow2 *q, unsigned epoch)
{
	if (!--q->in_epoch[epoch] && q->epoch_wait.head)
		co_queue_wake_all(q->co, &q->epoch_wait);
}

/* Until every request that was under way has ended. */
static void epoch_pass(struct qcow2 *q)
{
	unsigned old = q->epoch;

	q->epoch = !old;
	while (q->in_epoch[old])
		co_queue_wait(q->co, &q->epoch_wait);
}

/* --- copies of what is dirty --- */

struct piece {
	struct table *t;	/* NULL: of L1 or the refcount table */
	uint64_t offset;
	uint32_t from, len;
	struct iovec iov;
};

struct pieces {
	struct piece *p;
	size_t n;
	unsigned left;		/* writes under way, and one */
	int ret;
	struct co_call call;
};

static void collect(struct qcow2 *q, struct pieces *out, enum table_kind kind)
{
	struct table_cache *c = &q->cache;

	out->p = calloc(c->dirty[kind] + 1, sizeof(*out->p));	/* and one for L1 */
	for (size_t i = 0; out->p && i < c->n; i++) {
		struct table *t = c->all[i];
		uint32_t len = t->dirty_to - t->dirty_from;
		uint8_t *copy;

		if (t->kind != kind || !len || t->dropped)
			continue;
		copy = malloc(len);
		if (!copy) {
			out->ret = -ENOMEM;
			return;
		}
		memcpy(copy, t->data + t->dirty_from, len);
		out->p[out->n++] = (struct piece){ t, t->offset + t->dirty_from, t->dirty_from, len, { copy, len } };
		t->dirty_from = t->dirty_to = 0;
		t->writing = true;
		c->dirty[kind]--;
	}
	if (!out->p)
		out->ret = -ENOMEM;
}

static uint8_t *be64_copy(const uint64_t *v, uint32_t n)
{
	uint8_t *b = malloc(n * 8ull);

	for (uint32_t i = 0; b && i < n; i++)
		store_be64(b + i * 8ull, v[i]);
	return b;
}

/* L1 by whole sectors: entries are few, and a disk writes sectors whole. */
static void collect_l1(struct qcow2 *q, struct pieces *out)
{
	uint32_t from = q->l1_dirty_from, n = q->l1_dirty_to - from;
	uint8_t *copy;

	if (!n || out->ret)
		return;
	copy = be64_copy(q->l1 + from, n);
	if (!copy) {
		out->ret = -ENOMEM;
		return;
	}
	out->p[out->n++] = (struct piece){ NULL, q->h.l1_offset + from * 8ull, from, n, { copy, n * 8ull } };
	q->l1_dirty_from = q->l1_dirty_to = 0;
}

static void written(void *opaque, int ret)
{
	struct pieces *ps = opaque;

	if (ret && !ps->ret)
		ps->ret = ret;
	if (!--ps->left)
		co_call_done(&ps->call, 0);
}

static int write_out(struct qcow2 *q, struct pieces *ps)
{
	if (ps->ret)
		return ps->ret;
	ps->left = 1;
	ps->call = (struct co_call){ .s = q->co };
	aio_plug(q->n->env->aio);
	for (size_t i = 0; i < ps->n; i++) {
		ps->left++;
		node_writev(q->file, ps->p[i].offset, &ps->p[i].iov, 1, written, ps);
	}
	aio_unplug(q->n->env->aio);
	written(ps, 0);
	co_call_wait(&ps->call);
	return ps->ret;
}

static void l1_dirty_again(struct qcow2 *q, uint32_t from, uint32_t n)
{
	if (q->l1_dirty_from == q->l1_dirty_to) {
		q->l1_dirty_from = from;
		q->l1_dirty_to = from + n;
	}
	q->l1_dirty_from = from < q->l1_dirty_from ? from : q->l1_dirty_from;
	q->l1_dirty_to = from + n > q->l1_dirty_to ? from + n : q->l1_dirty_to;
}

/* Done with, or to be written again. */
static void release(struct qcow2 *q, struct pieces *ps, bool again)
{
	for (size_t i = 0; i < ps->n; i++) {
		struct piece *p = &ps->p[i];

		if (p->t)
			p->t->writing = false;
		if (again && p->t)
			table_dirty(q, p->t, p->from, p->len);
		else if (again)
			l1_dirty_again(q, p->from, p->len);
		free(p->iov.iov_base);
	}
	free(ps->p);
}

/* --- commit --- */

int qcow2_flush_files(struct qcow2 *q)
{
	int ret = q->external ? node_co_flush(q->data) : 0;

	return ret ? ret : node_co_flush(q->file);
}

/* The refcount table names only blocks that are whole in the file by now. */
static int write_rt(struct qcow2 *q)
{
	uint32_t from, n;
	uint8_t *copy;
	int ret;

	co_lock(q->co, &q->alloc_lock);
	from = q->rt_dirty_from;
	n = q->rt_dirty_to - from;
	copy = n ? be64_copy(q->rt + from, n) : NULL;
	ret = n && !copy ? -ENOMEM : 0;
	if (n && !ret) {	/* blocks made since the last sync are among them */
		ret = node_co_flush(q->file);
		if (!ret)
			ret = node_co_write(q->file, q->h.rt_offset + from * 8ull, copy, n * 8ull);
		if (!ret)
			q->rt_dirty_from = q->rt_dirty_to = 0;
		if (!ret)
			ret = node_co_flush(q->file);
	}
	co_unlock(q->co, &q->alloc_lock);
	free(copy);
	return ret;
}

static void frees_restore(struct qcow2 *q, struct free_list *l)
{
	for (size_t i = 0; i < l->n; i++)
		clusters_unref_later(q, l->f[i].first, l->f[i].n);
	free(l->f);
}

static int commit_locked(struct qcow2 *q)
{
	struct pieces refs = { 0 }, l2 = { 0 };
	struct free_list frees = q->frees;
	bool lazy = q->lazy && q->lazy_dirty && !q->settling, tables;
	int ret;

	q->frees = (struct free_list){ 0 };
	tables = q->cache.dirty[TABLE_L2] || q->l1_dirty_from != q->l1_dirty_to;
	if (!lazy || q->cache.dirty[TABLE_REFS] > q->cache.max / 4)
		collect(q, &refs, TABLE_REFS);
	collect(q, &l2, TABLE_L2);
	collect_l1(q, &l2);
	ret = l2.ret ? l2.ret : refs.ret ? refs.ret : write_out(q, &refs);
	release(q, &refs, ret);
	if (!ret)
		ret = qcow2_flush_files(q);
	if (!ret)
		ret = write_rt(q);
	if (!ret)
		ret = write_out(q, &l2);
	release(q, &l2, ret);
	if (!ret && tables)
		ret = node_co_flush(q->file);
	if (ret) {
		frees_restore(q, &frees);
		return ret;
	}
	if (frees.n) {
		epoch_pass(q);
		ret = frees_apply(q, &frees);
	}
	free(frees.f);
	return ret;
}

/* A commit that began after the call serves everybody who called before it began. */
int qcow2_commit(struct qcow2 *q)
{
	uint64_t mine = ++q->commit_wanted;
	int ret;

	co_lock(q->co, &q->commit_lock);
	if (q->commit_started < mine) {
		q->commit_started = q->commit_wanted;
		q->commit_ret = commit_locked(q);
	}
	ret = q->commit_ret;
	co_unlock(q->co, &q->commit_lock);
	return ret;
}

/* And what that commit freed, so that the file says all that memory knows; nothing else is under way. */
int qcow2_settle(struct qcow2 *q)
{
	int ret;

	q->settling = true;
	ret = qcow2_commit(q);
	for (unsigned i = 0; i < 2 && !ret && (q->cache.dirty[TABLE_REFS] || q->frees.n); i++)
		ret = qcow2_commit(q);
	q->settling = false;
	return ret;
}

/* The bit is durable before anything that it warns of; whoever comes meanwhile waits for the header's lock. */
int qcow2_begin_change(struct qcow2 *q)
{
	int ret;

	if (q->corrupt)
		return -EIO;
	if (!q->lazy || q->lazy_dirty)
		return 0;
	ret = header_set_features(q, q->h.incompatible | INCOMPAT_DIRTY, q->h.autoclear);
	if (!ret)
		q->lazy_dirty = true;
	return ret;
}
