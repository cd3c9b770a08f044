/* Straight-line forms of what a disk does. */
#include <errno.h>

#include "block/block_private.h"

#define CALL(b, start) ({ struct co_call call_ = { .s = (b)->env->co }; start; co_call_wait(&call_); })
#define DONE co_call_done, &call_

int block_co_readv(struct block *b, uint64_t offset, const struct iovec *iov, int iovcnt)
{
	return CALL(b, block_readv(b, offset, iov, iovcnt, DONE));
}

int block_co_writev(struct block *b, uint64_t offset, const struct iovec *iov, int iovcnt)
{
	return CALL(b, block_writev(b, offset, iov, iovcnt, DONE));
}

int block_co_read(struct block *b, uint64_t offset, void *buf, size_t len)
{
	struct iovec iov = { buf, len };

	return block_co_readv(b, offset, &iov, 1);
}

int block_co_write(struct block *b, uint64_t offset, const void *buf, size_t len)
{
	struct iovec iov = { (void *)buf, len };

	return block_co_writev(b, offset, &iov, 1);
}

int block_co_flush(struct block *b)
{
	return CALL(b, block_flush(b, DONE));
}

void block_co_writeback(struct block *b)
{
	b->in_flight++;
	node_co_writeback(b->root);
	if (!--b->in_flight)
		block_idle(b);
}

int block_co_discard(struct block *b, uint64_t offset, uint64_t len)
{
	return CALL(b, block_discard(b, offset, len, DONE));
}

int block_co_write_zeroes(struct block *b, uint64_t offset, uint64_t len, bool may_unmap)
{
	return CALL(b, block_write_zeroes(b, offset, len, may_unmap, DONE));
}

int block_co_write_zeroes_fast(struct block *b, uint64_t offset, uint64_t len, bool may_unmap)
{
	return CALL(b, block_write_zeroes_fast(b, offset, len, may_unmap, DONE));
}

int block_co_status(struct block *b, uint64_t offset, uint64_t len, unsigned depth_max, struct block_status *out)
{
	return CALL(b, block_status(b, offset, len, depth_max, out, DONE));
}

void block_co_idle(struct block *b)
{
	struct co_call call = { .s = b->env->co };
	struct holder h = { co_call_done, &call, true, b->holders };

	if (!b->in_flight)
		return;
	b->holders = &h;
	co_call_wait(&call);
}

void block_co_hold(struct block *b)
{
	b->held++;
	block_co_idle(b);
}

int block_co_write_compressed(struct block *b, uint64_t offset, const void *buf, size_t len)
{
	struct node *n = b->root;
	uint64_t cluster = n->limits.cluster;
	int ret;

	if (n->readonly)
		return -EROFS;
	if (!n->ops->co_write_compressed)
		return -EOPNOTSUPP;
	if (!len || !cluster || offset % cluster || len > cluster || offset > n->size_bytes ||
	    len > n->size_bytes - offset || (len < cluster && offset + len < n->size_bytes))
		return -EINVAL;
	b->in_flight++;
	ret = n->ops->co_write_compressed(n, offset, buf, len);
	if (!--b->in_flight)
		block_idle(b);
	return ret;
}
