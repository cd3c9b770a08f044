/*
 * A block node: something with bytes at offsets, read and written asynchronously.
 *
 * Owner: whoever opened it.  Thread: all calls on the thread of the loop it was
 * opened with, completions too.  Vectors point into guest RAM or VMM buffers and
 * must stay valid until `done` ran.  Requests complete in any order; flush
 * completes after every write that completed before it was submitted is durable.
 */
#ifndef VIXEN_BLOCK_BLOCK_H
#define VIXEN_BLOCK_BLOCK_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/uio.h>

#include "base/error.h"

struct loop;
struct block;

/* ret: 0 or -errno (-EIO, -ENOSPC, -EROFS, -EINVAL). */
typedef void block_done_fn(void *opaque, int ret);

enum block_flags { BLOCK_READONLY = 1, BLOCK_EPHEMERAL = 2 /* writes go to an unlinked overlay */,
		   BLOCK_NO_IO_URING = 4 };

/* Locks the image (OFD lock: one writer or many readers); -EBUSY when another VM has it.
 * format: NULL or "raw" for now; probing qcow2 magic gives a clear error. */
int block_open(struct block **out, struct loop *l, const char *path, const char *format,
	       unsigned flags, struct error *e);
void block_close(struct block *b);	/* waits for requests under way */

uint64_t block_size(const struct block *b);		/* bytes */
bool block_readonly(const struct block *b);
bool block_can_discard(const struct block *b);

/* offset and total length are multiples of 512 and inside block_size(), or -EINVAL through done. */
void block_readv(struct block *b, uint64_t offset, const struct iovec *iov, int iovcnt,
		 block_done_fn *done, void *opaque);
void block_writev(struct block *b, uint64_t offset, const struct iovec *iov, int iovcnt,
		 block_done_fn *done, void *opaque);
void block_flush(struct block *b, block_done_fn *done, void *opaque);
void block_discard(struct block *b, uint64_t offset, uint64_t len, block_done_fn *done, void *opaque);
void block_write_zeroes(struct block *b, uint64_t offset, uint64_t len, bool may_unmap,
			block_done_fn *done, void *opaque);

/* Between plug and unplug requests are gathered and handed to the host together; pairs nest.
 * `done` may run inside any of these functions, also before it returns. */
void block_plug(struct block *b);
void block_unplug(struct block *b);

#endif
