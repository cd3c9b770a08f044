/* The raw format: the file's bytes are the disk's. */
#include <errno.h>
#include <stdio.h>

#include "block/node.h"

static void raw_readv(struct node *n, uint64_t offset, const struct iovec *iov, int iovcnt, block_done_fn *done,
		      void *opaque)
{
	node_readv(n->child[NODE_FILE], offset, iov, iovcnt, done, opaque);
}

static void raw_writev(struct node *n, uint64_t offset, const struct iovec *iov, int iovcnt, block_done_fn *done,
		       void *opaque)
{
	node_writev(n->child[NODE_FILE], offset, iov, iovcnt, done, opaque);
}

static void raw_flush(struct node *n, block_done_fn *done, void *opaque)
{
	node_flush(n->child[NODE_FILE], done, opaque);
}

static void raw_discard(struct node *n, uint64_t offset, uint64_t len, block_done_fn *done, void *opaque)
{
	node_discard(n->child[NODE_FILE], offset, len, done, opaque);
}

static void raw_write_zeroes(struct node *n, uint64_t offset, uint64_t len, unsigned flags, block_done_fn *done,
			     void *opaque)
{
	node_write_zeroes(n->child[NODE_FILE], offset, len, flags, done, opaque);
}

/* A host may have holes of odd sizes: what is not whole sectors is data. */
static int raw_status(struct node *n, uint64_t offset, uint64_t len, struct block_status *out)
{
	int ret = node_co_status(n->child[NODE_FILE], offset, len, 0, out);

	if (ret)
		return ret;
	if (out->len % SECTOR && out->flags & BLOCK_STATUS_ZERO)
		out->len -= out->len % SECTOR;
	else if (out->len % SECTOR)
		out->len += SECTOR - out->len % SECTOR;
	if (!out->len)
		*out = (struct block_status){ .len = SECTOR, .flags = BLOCK_STATUS_DATA | BLOCK_STATUS_ALLOCATED };
	return 0;
}

static int raw_resize(struct node *n, uint64_t size_bytes, unsigned flags, struct error *e)
{
	int ret = node_co_resize(n->child[NODE_FILE], size_bytes, flags, e);

	if (!ret)
		n->size_bytes = size_bytes;
	return ret;
}

static const struct node_ops raw_ops = {
	.name = "raw", .readv = raw_readv, .writev = raw_writev, .flush = raw_flush, .discard = raw_discard,
	.write_zeroes = raw_write_zeroes, .co_status = raw_status, .co_resize = raw_resize,
};

static int raw_open(struct node *n, const struct node_open *how, struct error *e)
{
	const struct node *file = n->child[NODE_FILE];
	char what[192];

	snprintf(what, sizeof(what), "open disk '%.150s'", n->path);
	if (!file->size_bytes)
		return error_set(e, EINVAL, "make it larger: truncate -s 8G FILE", what, "the image is empty");
	if (file->size_bytes % SECTOR)
		return error_set(e, EINVAL, "is it a disk image? if so, round it up: truncate -s %512 FILE",
				 what, "its size of %llu bytes is not a multiple of 512",
				 (unsigned long long)file->size_bytes);
	n->size_bytes = file->size_bytes;
	n->limits = (struct node_limits){ .align = SECTOR, .can_discard = file->limits.can_discard,
					  .can_zero = file->limits.can_zero };
	return 0;
}

static int raw_create(struct node *file, const struct block_create *c, struct error *e)
{
	int ret;

	if (c->backing_path)
		return error_set(e, EINVAL, "use -f qcow2", "create a disk", "a raw image has no backing file");
	ret = node_co_resize(file, c->size_bytes, 0, e);
	if (!ret && c->preallocate) {
		ret = node_co_preallocate(file, 0, c->size_bytes, c->preallocate);
		if (ret)
			error_errno(e, -ret, ret == -EOPNOTSUPP ? "use --preallocation full" :
				    "is there space on the host's disk?", "preallocate disk '%s'", file->path);
	}
	return ret;
}

const struct driver raw_driver = { .name = "raw", .ops = &raw_ops, .co_open = raw_open, .co_create = raw_create };
