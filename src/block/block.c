/* Disks: bounds, accounting, holding back; the nodes below do the work. */
#include "block/block.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/checked.h"
#include "block/block_private.h"
#include "block/guard.h"
#include "host/loop.h"

/* --- requests --- */

static void dispatch(struct block *b, struct request *r);

static void request_free(struct block *b, struct request *r)
{
	r->next = b->idle;
	b->idle = r;
}

static int user_result(struct block *b, int ret)
{
	if (ret != -ENOSPC && ret != -EDQUOT && ret != -EFBIG)
		return ret;
	if (!b->full_logged)
		log_warn("disk '%s': no space left on the host; %s", b->root->path,
			 b->on_full ? "the VM is paused until space was made and it is resumed" : "writes to it fail");
	b->full_logged = true;
	return -ENOSPC;
}

/* Not under way until it is tried again: meanwhile the disk may be held, and stand on something else afterwards. */
static bool stick(struct block *b, struct request *r, int ret)
{
	if (ret != -ENOSPC || !b->on_full || r->kind == READ || r->kind == STATUS)
		return false;
	r->next = b->stuck;
	b->stuck = r;
	b->on_full(b->full_opaque);
	return true;
}

static void request_done(void *opaque, int ret)
{
	struct request *r = opaque;
	struct block *b = r->b;

	ret = user_result(b, ret);
	if (!stick(b, r, ret)) {
		r->done(r->opaque, ret);
		request_free(b, r);
	}
	if (!--b->in_flight)
		block_idle(b);
}

static bool past_end(const struct block *b, const struct request *r)
{
	uint64_t len = r->kind == READ || r->kind == WRITE ? iov_bytes(r->iov, r->iovcnt) : r->len;

	return r->kind != FLUSH && !range_inside(r->offset, len, b->root->size_bytes);
}

static void dispatch(struct block *b, struct request *r)
{
	b->in_flight++;
	if (b->shrunk && past_end(b, r)) {
		request_done(r, -EIO);
		return;
	}
	switch (r->kind) {
	case READ: node_readv(b->root, r->offset, r->iov, r->iovcnt, request_done, r); break;
	case WRITE: node_writev(b->root, r->offset, r->iov, r->iovcnt, request_done, r); break;
	case FLUSH: node_flush(b->root, request_done, r); break;
	case DISCARD: node_discard(b->root, r->offset, r->len, request_done, r); break;
	case ZEROES: node_write_zeroes(b->root, r->offset, r->len, r->flags, request_done, r); break;
	case STATUS:
		node_status(b->root, r->offset, r->len, r->flags, r->status, request_done, r);
		break;
	}
}

static void submit(struct block *b, const struct request *what)
{
	struct request *r = b->idle;

	if (r)
		b->idle = r->next;
	else
		r = malloc(sizeof(*r));
	if (!r) {
		what->done(what->opaque, -ENOMEM);
		return;
	}
	*r = *what;
	r->b = b;
	if (!b->throttle || throttle_admit(b->throttle, r))
		block_admitted(b, r);
}

void block_admitted(struct block *b, struct request *r)
{
	if (!b->held) {
		dispatch(b, r);
		return;
	}
	r->next = NULL;
	*b->waiting_tail = r;
	b->waiting_tail = &r->next;
}

static int bounds(const struct block *b, uint64_t offset, uint64_t len)
{
	uint64_t size = b->root->size_bytes;

	if (offset % SECTOR || len % SECTOR || offset > size || len > size - offset)
		return -EINVAL;
	return 0;
}

static int iov_bounds(const struct block *b, uint64_t offset, const struct iovec *iov, int iovcnt)
{
	uint64_t len = 0;

	for (int i = 0; i < iovcnt; i++) {
		if (iov[i].iov_len > b->root->size_bytes - len)
			return -EINVAL;
		len += iov[i].iov_len;
	}
	return bounds(b, offset, len);
}

static void transfer(struct block *b, enum kind kind, uint64_t offset, const struct iovec *iov, int iovcnt,
		     block_done_fn *done, void *opaque)
{
	int ret = iov_bounds(b, offset, iov, iovcnt);

	if (ret || !iov_bytes(iov, iovcnt))
		done(opaque, ret);
	else
		submit(b, &(struct request){ .kind = kind, .offset = offset, .iov = iov, .iovcnt = iovcnt,
					     .done = done, .opaque = opaque });
}

void block_readv(struct block *b, uint64_t offset, const struct iovec *iov, int iovcnt, block_done_fn *done,
		 void *opaque)
{
	transfer(b, READ, offset, iov, iovcnt, done, opaque);
}

void block_writev(struct block *b, uint64_t offset, const struct iovec *iov, int iovcnt, block_done_fn *done,
		  void *opaque)
{
	if (b->root->readonly)
		done(opaque, -EROFS);
	else
		transfer(b, WRITE, offset, iov, iovcnt, done, opaque);
}

void block_flush(struct block *b, block_done_fn *done, void *opaque)
{
	if (b->root->readonly)
		done(opaque, 0);
	else
		submit(b, &(struct request){ .kind = FLUSH, .done = done, .opaque = opaque });
}

void block_discard(struct block *b, uint64_t offset, uint64_t len, block_done_fn *done, void *opaque)
{
	int ret = b->root->readonly ? -EROFS : bounds(b, offset, len);

	if (ret || !len)
		done(opaque, ret);
	else
		submit(b, &(struct request){ .kind = DISCARD, .offset = offset, .len = len, .done = done,
					     .opaque = opaque });
}

static void zeroes(struct block *b, uint64_t offset, uint64_t len, unsigned flags, block_done_fn *done, void *opaque)
{
	int ret = b->root->readonly ? -EROFS : bounds(b, offset, len);

	if (ret || !len)
		done(opaque, ret);
	else
		submit(b, &(struct request){ .kind = ZEROES, .offset = offset, .len = len, .done = done,
					     .flags = flags, .opaque = opaque });
}

void block_write_zeroes(struct block *b, uint64_t offset, uint64_t len, bool may_unmap, block_done_fn *done,
			void *opaque)
{
	zeroes(b, offset, len, may_unmap ? NODE_ZERO_MAY_UNMAP : 0, done, opaque);
}

void block_write_zeroes_fast(struct block *b, uint64_t offset, uint64_t len, bool may_unmap, block_done_fn *done,
			     void *opaque)
{
	zeroes(b, offset, len, NODE_ZERO_NO_FALLBACK | (may_unmap ? NODE_ZERO_MAY_UNMAP : 0), done, opaque);
}

void block_status(struct block *b, uint64_t offset, uint64_t len, unsigned depth_max, struct block_status *out,
		  block_done_fn *done, void *opaque)
{
	int ret = len ? bounds(b, offset, len) : -EINVAL;

	if (ret)
		done(opaque, ret);
	else
		submit(b, &(struct request){ .kind = STATUS, .offset = offset, .len = len, .flags = depth_max,
					     .status = out, .done = done, .opaque = opaque });
}

/* --- no space --- */

void block_on_full(struct block *b, void (*full)(void *opaque), void *opaque)
{
	b->on_full = full;
	b->full_opaque = opaque;
	if (!full)
		block_retry(b);
}

void block_retry(struct block *b)
{
	struct request *r = b->stuck;

	b->stuck = NULL;
	b->full_logged = false;
	while (r) {
		struct request *next = r->next;

		block_admitted(b, r);
		r = next;
	}
}

/* --- gathering and holding back --- */

void block_plug(struct block *b)
{
	b->plugged++;
	aio_plug(b->env->aio);
}

void block_unplug(struct block *b)
{
	ASSERT(b->plugged);
	b->plugged--;
	aio_unplug(b->env->aio);
}

void block_idle(struct block *b)
{
	struct holder *h = b->holders;

	b->holders = NULL;
	while (h) {
		struct holder *next = h->next;

		bool on_stack = h->on_stack;

		h->done(h->opaque, 0);
		if (!on_stack)
			free(h);
		h = next;
	}
}

void block_hold(struct block *b, block_done_fn *done, void *opaque)
{
	struct holder *h;

	b->held++;
	if (!b->in_flight) {
		done(opaque, 0);
		return;
	}
	h = malloc(sizeof(*h));
	if (!h) {
		b->held--;
		done(opaque, -ENOMEM);
		return;
	}
	*h = (struct holder){ done, opaque, false, b->holders };
	b->holders = h;
}

void block_release(struct block *b)
{
	ASSERT(b->held);
	b->held--;
	while (!b->held && b->waiting) {
		struct request *r = b->waiting;

		b->waiting = r->next;
		if (!b->waiting)
			b->waiting_tail = &b->waiting;
		dispatch(b, r);
	}
}

struct node *block_root(struct block *b)
{
	return b->root;
}

struct node *block_set_root(struct block *b, struct node *root)
{
	struct node *old = b->root;
	struct block_env *env = b->env;

	ASSERT(b->held && !b->in_flight && root->env->loop == env->loop);
	for (unsigned i = 0; i < b->plugged; i++)
		aio_plug(root->env->aio);
	b->root = root;
	b->env = root->env;
	b->env->refs++;
	for (unsigned i = 0; i < b->plugged; i++)
		aio_unplug(env->aio);
	env_put(env);
	return old;
}

/* --- what it is --- */

uint64_t block_size(const struct block *b)
{
	return b->root->size_bytes;
}

bool block_readonly(const struct block *b)
{
	return b->root->readonly;
}

bool block_can_discard(const struct block *b)
{
	bool can = !b->root->readonly;

	for (const struct node *n = b->root; n && can; n = n->child[NODE_FILE])
		can = n->limits.can_discard;
	return can;
}

uint32_t block_cluster(const struct block *b)
{
	return b->root->limits.cluster;
}

bool block_overwrites(const struct block *b)
{
	const struct node *n = node_is_guard(b->root) ? b->root->child[NODE_FILE] : b->root;

	return !n->readonly && n->ops == raw_driver.ops;
}

bool block_new_is_zero(const struct block *b)
{
	return !node_below_filters(b->root)->ops->new_is_noise;
}

bool block_ordered(const struct block *b)
{
	return node_below_filters(b->root)->limits.ordered;
}

const char *block_path(const struct block *b)
{
	return node_below_filters(b->root)->path;
}

const char *block_format(const struct block *b)
{
	return node_below_filters(b->root)->ops->name;
}
