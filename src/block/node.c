/* Calls of nodes: whichever form a driver has, in whichever form the caller wants; zeroes written out. */
#include "block/node.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "host/loop.h"
#include "host/workers.h"

/* --- life --- */

struct block_env *env_new(struct loop *l, bool no_io_uring, struct error *e)
{
	struct block_env *env = calloc(1, sizeof(*env));
	int ret;

	if (!env) {
		error_errno(e, ENOMEM, NULL, "start disk I/O");
		return NULL;
	}
	env->loop = l;
	env->co = loop_coroutines(l);
	env->workers = workers_new(l);
	ret = env->co && env->workers ? aio_new(&env->aio, l, no_io_uring, e)
				      : error_errno(e, ENOMEM, NULL, "start disk I/O");
	if (ret) {
		workers_free(env->workers);
		free(env);
		return NULL;
	}
	env->refs = 1;
	return env;
}

void env_put(struct block_env *env)
{
	if (!env || --env->refs)
		return;
	aio_free(env->aio);
	workers_free(env->workers);
	free(env);
}

struct node *node_new(struct block_env *env, const struct node_ops *ops, const char *path)
{
	struct node *n = calloc(1, sizeof(*n));

	if (!n)
		return NULL;
	n->path = strdup(path);
	if (!n->path) {
		free(n);
		return NULL;
	}
	n->ops = ops;
	n->env = env;
	n->limits.align = SECTOR;
	env->refs++;
	return n;
}

void node_interrupt(struct node *n)
{
	if (!n)
		return;
	if (n->ops->interrupt)
		n->ops->interrupt(n);
	for (int i = 0; i < NODE_CHILDREN; i++)
		node_interrupt(n->child[i]);
}

int node_co_close(struct node *n)
{
	int ret = 0;

	if (!n)
		return 0;
	if (n->impl && n->ops->co_close)
		ret = n->ops->co_close(n);
	for (int i = 0; i < NODE_CHILDREN; i++) {
		int child_ret = node_co_close(n->child[i]);

		ret = ret ? ret : child_ret;
	}
	env_put(n->env);
	free(n->path);
	free(n);
	return ret;
}

struct node *node_below_filters(struct node *n)
{
	while (n->ops->filter)
		n = n->child[NODE_FILE];
	return n;
}

/* --- asynchronous calls of straight-line drivers: a coroutine each --- */

enum task_kind { TASK_READ, TASK_WRITE, TASK_FLUSH, TASK_DISCARD, TASK_ZEROES, TASK_STATUS };

struct task {
	enum task_kind kind;
	struct node *n;
	uint64_t offset, len;
	const struct iovec *iov;
	int iovcnt;
	unsigned flags;
	struct block_status *status;
	block_done_fn *done;
	void *opaque;
};

static int task_perform(const struct task *t)
{
	const struct node_ops *ops = t->n->ops;

	switch (t->kind) {
	case TASK_READ: return ops->co_readv(t->n, t->offset, t->iov, t->iovcnt);
	case TASK_WRITE: return ops->co_writev(t->n, t->offset, t->iov, t->iovcnt);
	case TASK_FLUSH: return ops->co_flush(t->n);
	case TASK_DISCARD: return ops->co_discard(t->n, t->offset, t->len);
	case TASK_ZEROES: return ops->co_write_zeroes(t->n, t->offset, t->len, t->flags);
	case TASK_STATUS: return node_co_status(t->n, t->offset, t->len, t->flags, t->status);
	}
	return -EINVAL;
}

static void task_main(void *opaque)
{
	struct task *t = opaque;
	block_done_fn *done = t->done;
	void *done_opaque = t->opaque;
	int ret = task_perform(t);

	free(t);
	done(done_opaque, ret);
}

static void task_start(const struct task *what)
{
	struct task *t = malloc(sizeof(*t));
	int ret = -ENOMEM;

	if (t) {
		*t = *what;
		ret = co_start(t->n->env->co, task_main, t);
	}
	if (ret) {
		free(t);
		what->done(what->opaque, ret);
	}
}

void node_readv(struct node *n, uint64_t offset, const struct iovec *iov, int iovcnt, block_done_fn *done, void *opaque)
{
	if (n->ops->readv)
		n->ops->readv(n, offset, iov, iovcnt, done, opaque);
	else
		task_start(&(struct task){ .kind = TASK_READ, .n = n, .offset = offset, .iov = iov, .iovcnt = iovcnt,
					   .done = done, .opaque = opaque });
}

void node_writev(struct node *n, uint64_t offset, const struct iovec *iov, int iovcnt, block_done_fn *done,
		 void *opaque)
{
	if (n->ops->writev)
		n->ops->writev(n, offset, iov, iovcnt, done, opaque);
	else
		task_start(&(struct task){ .kind = TASK_WRITE, .n = n, .offset = offset, .iov = iov,
					   .iovcnt = iovcnt, .done = done, .opaque = opaque });
}

void node_flush(struct node *n, block_done_fn *done, void *opaque)
{
	if (n->ops->flush)
		n->ops->flush(n, done, opaque);
	else if (n->ops->co_flush)
		task_start(&(struct task){ .kind = TASK_FLUSH, .n = n, .done = done, .opaque = opaque });
	else
		done(opaque, 0);
}

void node_discard(struct node *n, uint64_t offset, uint64_t len, block_done_fn *done, void *opaque)
{
	if (n->ops->discard)
		n->ops->discard(n, offset, len, done, opaque);
	else if (n->ops->co_discard)
		task_start(&(struct task){ .kind = TASK_DISCARD, .n = n, .offset = offset, .len = len, .done = done,
					   .opaque = opaque });
	else
		done(opaque, 0);
}

void node_status(struct node *n, uint64_t offset, uint64_t len, unsigned depth_max, struct block_status *out,
		 block_done_fn *done, void *opaque)
{
	task_start(&(struct task){ .kind = TASK_STATUS, .n = n, .offset = offset, .len = len, .flags = depth_max,
				   .status = out, .done = done, .opaque = opaque });
}

/* --- zeroes --- */

#define ZERO_BYTES 65536u
#define ZERO_IOVS 64u		/* 4 MiB in one write */

static const uint8_t zero_bytes[ZERO_BYTES];

struct zeroes {
	struct node *n;
	uint64_t offset, len;	/* what is left */
	unsigned flags;
	block_done_fn *done;
	void *opaque;
	struct iovec *iov;
};

/* A vector for the first bytes of a range, all of whose parts are the same zeroes. */
static int zero_iov(struct iovec *iov, uint64_t len)
{
	int n = 0;

	for (; n < (int)ZERO_IOVS && len; n++) {
		iov[n] = (struct iovec){ (void *)zero_bytes, len < ZERO_BYTES ? len : ZERO_BYTES };
		len -= iov[n].iov_len;
	}
	return n;
}

static void zeroes_end(struct zeroes *z, int ret)
{
	z->done(z->opaque, ret);
	free(z->iov);
	free(z);
}

static void zeroes_written(void *opaque, int ret)
{
	struct zeroes *z = opaque;
	uint64_t offset = z->offset, len;
	int n;

	if (ret || !z->len) {
		zeroes_end(z, ret);
		return;
	}
	n = zero_iov(z->iov, z->len);
	len = iov_bytes(z->iov, n);
	z->offset += len;
	z->len -= len;
	node_writev(z->n, offset, z->iov, n, zeroes_written, z);
}

static void zeroes_tried(void *opaque, int ret)
{
	struct zeroes *z = opaque;

	if (ret != -EOPNOTSUPP || z->flags & NODE_ZERO_NO_FALLBACK) {
		zeroes_end(z, ret);
		return;
	}
	z->iov = malloc(sizeof(struct iovec) * ZERO_IOVS);
	zeroes_written(z, z->iov ? 0 : -ENOMEM);
}

void node_write_zeroes(struct node *n, uint64_t offset, uint64_t len, unsigned flags, block_done_fn *done,
		       void *opaque)
{
	struct zeroes *z = malloc(sizeof(*z));

	if (!z) {
		done(opaque, -ENOMEM);
		return;
	}
	*z = (struct zeroes){ n, offset, len, flags, done, opaque, NULL };
	if (n->ops->write_zeroes)
		n->ops->write_zeroes(n, offset, len, flags, zeroes_tried, z);
	else if (n->ops->co_write_zeroes)
		task_start(&(struct task){ .kind = TASK_ZEROES, .n = n, .offset = offset, .len = len, .flags = flags,
					   .done = zeroes_tried, .opaque = z });
	else
		zeroes_tried(z, -EOPNOTSUPP);
}

/* --- straight-line calls --- */

int node_co_readv(struct node *n, uint64_t offset, const struct iovec *iov, int iovcnt)
{
	struct co_call c = { .s = n->env->co };

	if (n->ops->co_readv)
		return n->ops->co_readv(n, offset, iov, iovcnt);
	n->ops->readv(n, offset, iov, iovcnt, co_call_done, &c);
	return co_call_wait(&c);
}

int node_co_writev(struct node *n, uint64_t offset, const struct iovec *iov, int iovcnt)
{
	struct co_call c = { .s = n->env->co };

	if (n->ops->co_writev)
		return n->ops->co_writev(n, offset, iov, iovcnt);
	n->ops->writev(n, offset, iov, iovcnt, co_call_done, &c);
	return co_call_wait(&c);
}

int node_co_read(struct node *n, uint64_t offset, void *buf, size_t len)
{
	struct iovec iov = { buf, len };

	return len ? node_co_readv(n, offset, &iov, 1) : 0;
}

int node_co_write(struct node *n, uint64_t offset, const void *buf, size_t len)
{
	struct iovec iov = { (void *)buf, len };

	return len ? node_co_writev(n, offset, &iov, 1) : 0;
}

int node_co_flush(struct node *n)
{
	struct co_call c = { .s = n->env->co };

	if (n->ops->co_flush)
		return n->ops->co_flush(n);
	if (!n->ops->flush)
		return 0;
	n->ops->flush(n, co_call_done, &c);
	return co_call_wait(&c);
}

void node_co_writeback(struct node *n)
{
	struct co_call c = { .s = n->env->co };

	if (n->ops->writeback) {
		n->ops->writeback(n, co_call_done, &c);
		co_call_wait(&c);
		return;
	}
	if (n->child[NODE_FILE])
		node_co_writeback(n->child[NODE_FILE]);
	if (n->child[NODE_DATA])
		node_co_writeback(n->child[NODE_DATA]);
}

int node_co_discard(struct node *n, uint64_t offset, uint64_t len)
{
	struct co_call c = { .s = n->env->co };

	if (n->ops->co_discard)
		return n->ops->co_discard(n, offset, len);
	if (!n->ops->discard)
		return 0;
	n->ops->discard(n, offset, len, co_call_done, &c);
	return co_call_wait(&c);
}

int node_co_write_zeroes(struct node *n, uint64_t offset, uint64_t len, unsigned flags)
{
	struct co_call c = { .s = n->env->co };

	node_write_zeroes(n, offset, len, flags, co_call_done, &c);
	return co_call_wait(&c);
}

static int layer_status(struct node *n, uint64_t offset, uint64_t len, struct block_status *out)
{
	*out = (struct block_status){ .len = len, .flags = BLOCK_STATUS_DATA | BLOCK_STATUS_ALLOCATED };
	return n->ops->co_status ? n->ops->co_status(n, offset, len, out) : 0;
}

int node_co_status(struct node *n, uint64_t offset, uint64_t len, unsigned depth_max, struct block_status *out)
{
	for (unsigned depth = 0;; depth++) {
		struct node *top = n, *below;
		int ret;

		n = node_below_filters(n);
		ret = layer_status(top, offset, len, out);
		if (ret)
			return ret;
		ASSERT(out->len && out->len <= len);
		len = out->len;
		out->depth = depth;
		below = n->child[NODE_BACKING];
		if (out->flags & BLOCK_STATUS_ALLOCATED || !below || depth == depth_max)
			return 0;
		if (offset >= below->size_bytes) {
			out->flags = BLOCK_STATUS_ZERO;
			return 0;
		}
		if (len > below->size_bytes - offset)
			len = below->size_bytes - offset;
		n = below;
	}
}

static int switch_one(struct node *n, bool readonly, const struct block_options *fds, struct error *e)
{
	int ret = n->ops->co_set_readonly ? n->ops->co_set_readonly(n, readonly, fds, e) : 0;

	if (!ret)
		n->readonly = readonly;
	return ret;
}

static int switch_children(struct node *n, bool readonly, const struct block_options *fds, struct error *e)
{
	const enum node_child kind[] = { NODE_FILE, NODE_DATA };
	int ret = 0;

	for (unsigned i = 0; i < 2 && !ret; i++)
		if (n->child[kind[i]])
			ret = node_co_set_readonly(n->child[kind[i]], readonly, fds, e);
	return ret;
}

int node_co_set_readonly(struct node *n, bool readonly, const struct block_options *fds, struct error *e)
{
	int ret;

	if (n->readonly == readonly)
		return 0;
	if (readonly) {
		ret = node_co_flush(n);
		if (ret)
			return error_errno(e, -ret, "check the host's disk", "flush '%s'", n->path);
		ret = switch_one(n, true, fds, e);
		return ret ? ret : switch_children(n, true, fds, e);
	}
	ret = switch_children(n, false, fds, e);
	if (ret)
		return ret;
	n->readonly = false;
	ret = switch_one(n, false, fds, e);
	if (ret) {
		n->readonly = true;
		switch_children(n, true, fds, NULL);
	}
	return ret;
}

int node_co_resize(struct node *n, uint64_t size_bytes, unsigned flags, struct error *e)
{
	if (!n->ops->co_resize)
		return error_set(e, EOPNOTSUPP, "convert it to raw or qcow2", "resize the disk",
				 "a %s image keeps its size", n->ops->name);
	return n->ops->co_resize(n, size_bytes, flags, e);
}
