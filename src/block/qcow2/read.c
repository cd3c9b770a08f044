/*
 * Reading.  A request is split where the mapping changes; the pieces go down side by side with the caller's memory.
 * What is not in the cache of tables, or has to be decompressed or decrypted, is left to a coroutine.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "block/qcow2/qcow2.h"

struct whole {			/* the caller's request */
	uint64_t offset, end;
	const struct iovec *iov;
	int iovcnt;
};

static struct qcow2_read *read_new(struct qcow2 *q, block_done_fn *done, void *opaque)
{
	struct qcow2_read *r = q->idle_reads;

	if (r)
		q->idle_reads = r->next;
	else
		r = malloc(sizeof(*r));
	if (!r)
		return NULL;
	*r = (struct qcow2_read){ .q = q, .left = 1, .done = done, .opaque = opaque };
	epoch_enter(q, &r->epoch);
	return r;
}

static void read_put(void *opaque, int ret)
{
	struct qcow2_read *r = opaque;
	struct qcow2 *q = r->q;
	block_done_fn *done = r->done;
	void *done_opaque = r->opaque;

	if (ret && !r->ret)
		r->ret = ret;
	if (--r->left)
		return;
	ret = r->ret;
	epoch_leave(q, r->epoch);
	r->next = q->idle_reads;
	q->idle_reads = r;
	done(done_opaque, ret);
}

/* --- pieces --- */

struct piece {
	struct qcow2_read *r;
	struct iovec iov[];
};

static void piece_done(void *opaque, int ret)
{
	struct piece *p = opaque;
	struct qcow2_read *r = p->r;

	free(p);
	read_put(r, ret);
}

/* Part of a request from another node, with the caller's own vector if it is all of it. */
static void piece_read(struct qcow2_read *r, struct node *n, uint64_t from, const struct whole *w, uint64_t at,
		       uint64_t len)
{
	struct piece *p;

	r->left++;
	if (at == w->offset && at + len == w->end) {
		node_readv(n, from, w->iov, w->iovcnt, read_put, r);
		return;
	}
	p = malloc(sizeof(*p) + sizeof(struct iovec) * (size_t)w->iovcnt);
	if (!p) {
		read_put(r, -ENOMEM);
		return;
	}
	p->r = r;
	node_readv(n, from, p->iov, iov_cut(p->iov, w->iov, w->iovcnt, at - w->offset, len), piece_done, p);
}

static void read_backing(struct qcow2_read *r, const struct whole *w, uint64_t at, uint64_t len)
{
	struct node *below = r->q->n->child[NODE_BACKING];
	uint64_t there = below && at < below->size_bytes ? below->size_bytes - at : 0;

	there = there < len ? there : len;
	if (there)
		piece_read(r, below, at, w, at, there);
	if (there < len)
		iov_zero(w->iov, w->iovcnt, at + there - w->offset, len - there);
}

/* --- splitting --- */

/* Starts reads up to the first part that cannot be started from memory alone; returns its offset. */
static uint64_t split(struct qcow2_read *r, const struct whole *w, uint64_t at)
{
	struct qcow2 *q = r->q;

	for (struct run run; at < w->end; at += run.len) {
		uint64_t slice = l2_slice_offset(q, at);
		struct table *t = slice ? table_find(q, slice) : NULL;

		if ((slice && !t) || run_at(q, t, at, w->end - at, &run) || run.type == RUN_COMPRESSED)
			return at;
		if (run.type == RUN_ZERO)
			iov_zero(w->iov, w->iovcnt, at - w->offset, run.len);
		else if (run.type == RUN_BACKING)
			read_backing(r, w, at, run.len);
		else if (q->encrypted)
			return at;
		else
			piece_read(r, q->data, run.host, w, at, run.len);
	}
	return at;
}

static int read_encrypted(struct qcow2 *q, const struct run *run, const struct whole *w, uint64_t at)
{
	uint8_t *b;
	int ret;

	if (!inside_file(q, run->host, run->len))	/* zeroes there would become noise */
		return -EIO;
	b = malloc(run->len);
	ret = b ? node_co_read(q->data, run->host, b, run->len) : -ENOMEM;

	if (!ret)
		ret = crypt_decrypt(q, run->host, b, run->len);
	if (!ret)
		iov_copy_in(w->iov, w->iovcnt, at - w->offset, b, run->len);
	free(b);
	return ret;
}

/* One run, with waiting. */
static int read_run(struct qcow2_read *r, const struct whole *w, uint64_t *at)
{
	struct qcow2 *q = r->q;
	struct table *t;
	struct run run;
	int ret = l2_get(q, *at, &t);

	if (ret)
		return ret;
	ret = run_at(q, t, *at, w->end - *at, &run);
	if (t)
		table_put(q, t);
	if (ret)
		return ret;
	if (run.type == RUN_COMPRESSED)
		ret = qcow2_co_read_compressed(q, run.raw, in_cluster(q, *at), w->iov, w->iovcnt, *at - w->offset,
					       run.len);
	else if (run.type == RUN_DATA && q->encrypted)
		ret = read_encrypted(q, &run, w, *at);
	else
		return 0;	/* now split() finds it in memory */
	*at += run.len;
	return ret;
}

struct slow {
	struct qcow2_read *r;
	struct whole w;
	uint64_t at;
};

static void slow_main(void *opaque)
{
	struct slow *s = opaque;
	int ret = 0;

	while (s->at < s->w.end && !ret) {
		ret = read_run(s->r, &s->w, &s->at);
		if (!ret)
			s->at = split(s->r, &s->w, s->at);
	}
	read_put(s->r, ret);
	free(s);
}

void qcow2_readv(struct node *n, uint64_t offset, const struct iovec *iov, int iovcnt, block_done_fn *done,
		 void *opaque)
{
	struct qcow2 *q = n->impl;
	struct whole w = { offset, offset + iov_bytes(iov, iovcnt), iov, iovcnt };
	struct qcow2_read *r = read_new(q, done, opaque);
	struct slow *s = NULL;
	uint64_t at;
	int ret = 0;

	if (!r) {
		done(opaque, -ENOMEM);
		return;
	}
	aio_plug(n->env->aio);
	at = split(r, &w, offset);
	if (at < w.end) {
		s = malloc(sizeof(*s));
		if (s)
			*s = (struct slow){ r, w, at };
		ret = s ? co_start(q->co, slow_main, s) : -ENOMEM;
		if (ret)
			free(s);
	}
	if (at == w.end || ret)
		read_put(r, ret);
	aio_unplug(n->env->aio);
}

int qcow2_co_readv_guest(struct qcow2 *q, uint64_t offset, const struct iovec *iov, int iovcnt)
{
	struct co_call c = { .s = q->co };

	qcow2_readv(q->n, offset, iov, iovcnt, co_call_done, &c);
	return co_call_wait(&c);
}

int qcow2_co_read_guest(struct qcow2 *q, uint64_t offset, void *buf, size_t len)
{
	struct iovec iov = { buf, len };

	return len ? qcow2_co_readv_guest(q, offset, &iov, 1) : 0;
}

int qcow2_co_status(struct node *n, uint64_t offset, uint64_t len, struct block_status *out)
{
	struct qcow2 *q = n->impl;
	struct table *t;
	struct run run;
	int ret = l2_get(q, offset, &t);

	if (ret)
		return ret;
	ret = run_at(q, t, offset, len, &run);
	if (t)
		table_put(q, t);
	if (ret)
		return ret;
	*out = (struct block_status){ .len = run.len };
	switch (run.type) {
	case RUN_DATA:
		out->flags = BLOCK_STATUS_DATA | BLOCK_STATUS_ALLOCATED | (q->encrypted ? 0 : BLOCK_STATUS_OFFSET);
		out->host_offset = run.host;
		break;
	case RUN_COMPRESSED:
		out->flags = BLOCK_STATUS_DATA | BLOCK_STATUS_ALLOCATED | BLOCK_STATUS_COMPRESSED;
		break;
	case RUN_ZERO: out->flags = BLOCK_STATUS_ZERO | BLOCK_STATUS_ALLOCATED; break;
	case RUN_BACKING: out->flags = n->child[NODE_BACKING] ? 0 : BLOCK_STATUS_ZERO; break;
	}
	return 0;
}
