#include "block/guard.h"

#include <errno.h>
#include <stdlib.h>

#include "block/block_private.h"

struct guard {
	struct node *n;
	struct block *b;
	const struct guard_ops *ops;
	void *job;
	bool serialize;
	struct guard_range *first, **last;	/* in the order of their coming, held or waiting */
	struct co_queue wait;
	struct node *pivot;
};

/* --- ranges --- */

static bool overlap(const struct guard_range *a, const struct guard_range *b)
{
	return a->offset < b->offset + b->len && b->offset < a->offset + a->len;
}

static bool must_wait(const struct guard *g, const struct guard_range *r)
{
	for (const struct guard_range *o = g->first; o != r; o = o->next)
		if (overlap(o, r))
			return true;
	return false;
}

void guard_hold(struct guard *g, struct guard_range *r)
{
	r->next = NULL;
	*g->last = r;
	g->last = &r->next;
	while (must_wait(g, r))
		co_queue_wait(g->n->env->co, &g->wait);
}

void guard_release(struct guard *g, struct guard_range *r)
{
	struct guard_range **p = &g->first;

	while (*p != r)
		p = &(*p)->next;
	*p = r->next;
	if (!r->next)
		g->last = p;
	co_queue_wake_all(g->n->env->co, &g->wait);
}

/* --- requests --- */

static void guard_readv(struct node *n, uint64_t offset, const struct iovec *iov, int iovcnt, block_done_fn *done,
			void *opaque)
{
	node_readv(n->child[NODE_FILE], offset, iov, iovcnt, done, opaque);
}

static int guard_co_readv(struct node *n, uint64_t offset, const struct iovec *iov, int iovcnt)
{
	struct guard *g = n->impl;

	g->ops->before_read(g->job, offset, iov_bytes(iov, iovcnt));
	return node_co_readv(n->child[NODE_FILE], offset, iov, iovcnt);
}

static int perform(struct node *below, const struct guard_write *w)
{
	switch (w->kind) {
	case GUARD_WRITE: return node_co_writev(below, w->offset, w->iov, w->iovcnt);
	case GUARD_ZEROES: return node_co_write_zeroes(below, w->offset, w->len, w->flags);
	case GUARD_DISCARD: return node_co_discard(below, w->offset, w->len);
	}
	return -EINVAL;
}

static int pass(struct node *n, struct guard_write w)
{
	struct guard *g = n->impl;
	struct guard_range r = { .offset = w.offset, .len = w.len };

	if (g->ops->before_write)
		g->ops->before_write(g->job, w.offset, w.len);
	w.held = g->serialize;
	if (w.held)
		guard_hold(g, &r);
	w.ret = perform(n->child[NODE_FILE], &w);
	if (g->ops->after_write)
		g->ops->after_write(g->job, &w);
	if (w.held)
		guard_release(g, &r);
	return w.ret;
}

static int guard_co_writev(struct node *n, uint64_t offset, const struct iovec *iov, int iovcnt)
{
	return pass(n, (struct guard_write){ .kind = GUARD_WRITE, .offset = offset, .len = iov_bytes(iov, iovcnt),
					     .iov = iov, .iovcnt = iovcnt });
}

static int guard_co_write_zeroes(struct node *n, uint64_t offset, uint64_t len, unsigned flags)
{
	return pass(n, (struct guard_write){ .kind = GUARD_ZEROES, .offset = offset, .len = len, .flags = flags });
}

static int guard_co_discard(struct node *n, uint64_t offset, uint64_t len)
{
	return pass(n, (struct guard_write){ .kind = GUARD_DISCARD, .offset = offset, .len = len });
}

static void guard_flush(struct node *n, block_done_fn *done, void *opaque)
{
	node_flush(n->child[NODE_FILE], done, opaque);
}

static int guard_co_status(struct node *n, uint64_t offset, uint64_t len, struct block_status *out)
{
	return node_co_status(n->child[NODE_FILE], offset, len, 0, out);
}

static const struct node_ops plain_ops = {
	.name = "guard", .filter = true, .readv = guard_readv, .co_writev = guard_co_writev, .flush = guard_flush,
	.co_discard = guard_co_discard, .co_write_zeroes = guard_co_write_zeroes, .co_status = guard_co_status,
};

static const struct node_ops reading_ops = {
	.name = "guard", .filter = true, .co_readv = guard_co_readv, .co_writev = guard_co_writev, .flush = guard_flush,
	.co_discard = guard_co_discard, .co_write_zeroes = guard_co_write_zeroes, .co_status = guard_co_status,
};

bool node_is_guard(const struct node *n)
{
	return n->ops == &plain_ops || n->ops == &reading_ops;
}

/* --- in and out --- */

static struct guard *guard_new(struct block *b, const struct guard_ops *ops, void *job)
{
	struct guard *g = calloc(1, sizeof(*g));

	if (!g)
		return NULL;
	*g = (struct guard){ .b = b, .ops = ops, .job = job, .last = &g->first };
	g->n = node_new(b->env, ops->before_read ? &reading_ops : &plain_ops, b->root->path);
	if (!g->n) {
		free(g);
		return NULL;
	}
	g->n->impl = g;
	return g;
}

/* The node, without what is below it. */
static void guard_free(struct guard *g)
{
	g->n->child[NODE_FILE] = NULL;
	node_co_close(g->n);
	free(g);
}

int guard_insert(struct guard **out, struct block *b, const struct guard_ops *ops, void *job,
		 int (*at_start)(void *job), struct error *e)
{
	struct guard *g = node_is_guard(b->root) ? NULL : guard_new(b, ops, job);
	int ret = 0;

	if (!g && node_is_guard(b->root))
		return error_set(e, EBUSY, "wait for its end, or cancel it", "start the job",
				 "another job on this disk is under way");
	if (!g)
		return error_errno(e, ENOMEM, NULL, "start the job");
	*out = g;
	block_co_hold(b);
	g->n->child[NODE_FILE] = b->root;
	g->n->size_bytes = b->root->size_bytes;
	g->n->limits = b->root->limits;
	g->n->readonly = b->root->readonly;
	if (at_start)
		ret = at_start(job);
	if (!ret)
		block_set_root(b, g->n);
	block_release(b);
	if (ret)
		guard_free(g);
	return ret;
}

int guard_remove(struct guard *g, int (*at_end)(void *job))
{
	struct block *b = g->b;
	int ret;

	block_co_hold(b);
	ret = at_end ? at_end(g->job) : 0;
	block_set_root(b, g->pivot ? g->pivot : g->n->child[NODE_FILE]);
	block_release(b);
	guard_free(g);
	return ret;
}

void guard_pivot(struct guard *g, struct node *root)
{
	g->pivot = root;
}

struct node *guard_below(struct guard *g)
{
	return g->n->child[NODE_FILE];
}

void guard_serialize(struct guard *g)
{
	g->serialize = true;
}
