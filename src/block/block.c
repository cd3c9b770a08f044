/* Block nodes: bounds, zeroes, errors; the bytes move in aio.c and overlay.c. */
#include "block/block.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "block/node.h"

/* --- requests --- */

enum kind { READ, WRITE, FLUSH, DISCARD, ZEROES };

struct request {
	struct block *b;
	enum kind kind;
	block_done_fn *done;
	void *opaque;
	struct aio_req aio;
	uint64_t offset, len;	/* ZEROES, DISCARD: what is left */
	int iovcnt;
	struct iovec iov[];	/* ZEROES by writing */
};

#define ZERO_BYTES 65536u
#define ZERO_IOVS 64u		/* 4 MiB in one write */

static void zeroes_step(struct request *r);

static void request_end(struct request *r, int ret)
{
	struct block *b = r->b;

	if ((ret == -ENOSPC || ret == -EDQUOT || ret == -EFBIG) && !b->full_logged) {
		b->full_logged = true;
		log_warn("disk '%s': no space left on the host; the guest sees write errors", b->path);
	}
	r->done(r->opaque, ret == -EDQUOT || ret == -EFBIG ? -ENOSPC : ret);
	b->in_flight--;
	free(r);
}

static bool unsupported(int ret)
{
	return ret == -EOPNOTSUPP || ret == -ENOSYS || ret == -EINVAL || ret == -ENODEV;
}

static void request_done(void *opaque, int ret)
{
	struct request *r = opaque;

	if (r->kind == DISCARD && unsupported(ret)) {
		r->b->can_discard = false;
		ret = 0;	/* it is only a hint */
	}
	if (r->kind == ZEROES && r->aio.op == AIO_FALLOCATE && unsupported(ret)) {
		r->b->can_zero[r->aio.mode & FALLOC_FL_PUNCH_HOLE ? 1 : 0] = false;
		zeroes_step(r);
		return;
	}
	if (r->kind == ZEROES && r->aio.op != AIO_FALLOCATE && !ret && r->len) {
		zeroes_step(r);
		return;
	}
	request_end(r, ret);
}

static struct request *request_new(struct block *b, enum kind kind, int niov, block_done_fn *done,
				   void *opaque)
{
	struct request *r = malloc(sizeof(*r) + sizeof(struct iovec) * (size_t)niov);

	if (!r) {
		done(opaque, -ENOMEM);
		return NULL;
	}
	memset(r, 0, sizeof(*r));
	r->b = b;
	r->kind = kind;
	r->done = done;
	r->opaque = opaque;
	r->aio = (struct aio_req){ .fd = b->fd, .done = request_done, .opaque = r };
	b->in_flight++;
	return r;
}

static int bounds(const struct block *b, uint64_t offset, uint64_t len)
{
	if (offset % SECTOR || len % SECTOR || offset > b->size_bytes || len > b->size_bytes - offset)
		return -EINVAL;
	return 0;
}

static int iov_bounds(const struct block *b, uint64_t offset, const struct iovec *iov, int iovcnt)
{
	uint64_t len = 0;

	for (int i = 0; i < iovcnt; i++) {
		if (iov[i].iov_len > b->size_bytes - len)
			return -EINVAL;
		len += iov[i].iov_len;
	}
	return bounds(b, offset, len);
}

static void transfer(struct block *b, enum kind kind, uint64_t offset, const struct iovec *iov, int iovcnt,
		     block_done_fn *done, void *opaque)
{
	struct request *r;
	int ret = iov_bounds(b, offset, iov, iovcnt);

	if (ret || !iovcnt) {
		done(opaque, ret);
		return;
	}
	r = request_new(b, kind, 0, done, opaque);
	if (!r)
		return;
	if (b->overlay) {
		(kind == READ ? overlay_read : overlay_write)(b->overlay, offset, iov, iovcnt,
								   request_done, r);
		return;
	}
	r->aio.op = kind == READ ? AIO_READV : AIO_WRITEV;
	r->aio.offset = offset;
	r->aio.iov = iov;
	r->aio.iovcnt = iovcnt;
	aio_submit(b->aio, &r->aio);
}

void block_readv(struct block *b, uint64_t offset, const struct iovec *iov, int iovcnt, block_done_fn *done,
		 void *opaque)
{
	transfer(b, READ, offset, iov, iovcnt, done, opaque);
}

void block_writev(struct block *b, uint64_t offset, const struct iovec *iov, int iovcnt, block_done_fn *done,
		  void *opaque)
{
	if (b->readonly)
		done(opaque, -EROFS);
	else
		transfer(b, WRITE, offset, iov, iovcnt, done, opaque);
}

void block_flush(struct block *b, block_done_fn *done, void *opaque)
{
	struct request *r;

	if (b->readonly || b->overlay) {	/* an overlay dies with us: nothing has to be durable */
		done(opaque, 0);
		return;
	}
	r = request_new(b, FLUSH, 0, done, opaque);
	if (!r)
		return;
	r->aio.op = AIO_SYNC;
	aio_submit(b->aio, &r->aio);
}

void block_discard(struct block *b, uint64_t offset, uint64_t len, block_done_fn *done, void *opaque)
{
	struct request *r;
	int ret = b->readonly ? -EROFS : bounds(b, offset, len);

	if (ret || !len || !b->can_discard) {
		done(opaque, ret);
		return;
	}
	r = request_new(b, DISCARD, 0, done, opaque);
	if (!r)
		return;
	r->aio.op = AIO_FALLOCATE;
	r->aio.mode = FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE;
	r->aio.offset = offset;
	r->aio.len = len;
	aio_submit(b->aio, &r->aio);
}

static const uint8_t zeroes[ZERO_BYTES];

/* Writes the next piece, all of whose vectors point at the same zeroes. */
static void zeroes_step(struct request *r)
{
	uint64_t offset = r->offset;
	int n = 0;

	for (; n < (int)ZERO_IOVS && r->len; n++) {
		uint64_t part = r->len < ZERO_BYTES ? r->len : ZERO_BYTES;

		r->iov[n] = (struct iovec){ (void *)zeroes, part };
		r->offset += part;
		r->len -= part;
	}
	if (r->b->overlay) {
		overlay_write(r->b->overlay, offset, r->iov, n, request_done, r);
		return;
	}
	r->aio = (struct aio_req){ .op = AIO_WRITEV, .fd = r->b->fd, .offset = offset, .iov = r->iov,
				   .iovcnt = n, .done = request_done, .opaque = r };
	aio_submit(r->b->aio, &r->aio);
}

void block_write_zeroes(struct block *b, uint64_t offset, uint64_t len, bool may_unmap, block_done_fn *done,
			void *opaque)
{
	int ret = b->readonly ? -EROFS : bounds(b, offset, len);
	struct request *r;

	if (ret || !len) {
		done(opaque, ret);
		return;
	}
	r = request_new(b, ZEROES, ZERO_IOVS, done, opaque);
	if (!r)
		return;
	r->offset = offset;
	r->len = len;
	if (b->overlay || !b->can_zero[may_unmap]) {
		zeroes_step(r);
		return;
	}
	r->aio.op = AIO_FALLOCATE;
	r->aio.mode = (may_unmap ? FALLOC_FL_PUNCH_HOLE : FALLOC_FL_ZERO_RANGE) | FALLOC_FL_KEEP_SIZE;
	r->aio.offset = offset;
	r->aio.len = len;
	aio_submit(b->aio, &r->aio);
}

void block_plug(struct block *b)
{
	aio_plug(b->aio);
}

void block_unplug(struct block *b)
{
	aio_unplug(b->aio);
}

/* --- life --- */

int block_open(struct block **out, struct loop *l, const char *path, const char *format, unsigned flags,
	       struct error *e)
{
	struct block *b = calloc(1, sizeof(*b));
	int ret;

	if (!b)
		return error_errno(e, ENOMEM, NULL, "open disk '%s'", path);
	b->fd = -1;
	b->can_discard = b->can_zero[0] = b->can_zero[1] = true;
	b->path = strdup(path);
	ret = b->path ? raw_open(b, path, format, flags, e) : error_errno(e, ENOMEM, NULL, "open disk");
	if (!ret)
		ret = aio_new(&b->aio, l, flags & BLOCK_NO_IO_URING, e);
	if (!ret && (flags & BLOCK_EPHEMERAL) && !b->readonly) {
		b->can_discard = false;
		ret = overlay_new(&b->overlay, b->aio, b->fd, b->size_bytes, e);
	}
	if (ret) {
		block_close(b);
		return ret;
	}
	*out = b;
	return 0;
}

void block_close(struct block *b)
{
	if (!b)
		return;
	while (b->aio && (b->in_flight || aio_in_flight(b->aio)))
		aio_wait(b->aio);
	if (b->overlay)
		overlay_free(b->overlay);
	aio_free(b->aio);
	if (b->fd >= 0)
		close(b->fd);
	free(b->path);
	free(b);
}

uint64_t block_size(const struct block *b)
{
	return b->size_bytes;
}

bool block_readonly(const struct block *b)
{
	return b->readonly;
}

bool block_can_discard(const struct block *b)
{
	return b->can_discard && !b->readonly;
}
