/*
 * Asynchronous file operations: io_uring, or a small pool of threads where the host has none.
 *
 * Thread: the loop's, completions too.  A read or write completes whole or with an error; short transfers
 * are continued here.
 */
#ifndef VIXEN_BLOCK_AIO_H
#define VIXEN_BLOCK_AIO_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/uio.h>

#include "base/error.h"

struct aio;
struct loop;

enum aio_op { AIO_READV, AIO_WRITEV, AIO_SYNC, AIO_FALLOCATE,
	      AIO_WRITEBACK /* of all of the file; only begins it */ };

typedef void aio_done_fn(void *opaque, int ret);	/* 0 or -errno */

/* Owner: the caller.  Filled in by the caller up to `opaque`; valid until done has run. */
struct aio_req {
	enum aio_op op;
	int fd;
	int mode;		/* AIO_FALLOCATE */
	uint64_t offset, len;	/* len: AIO_FALLOCATE */
	const struct iovec *iov;
	int iovcnt;
	bool zero_past_end;	/* AIO_READV: what lies past the end of the file reads as zeroes, not -EIO */
	aio_done_fn *done;
	void *opaque;
	/* ours */
	int64_t result;
	struct iovec *rest;	/* what is left after a short transfer */
	int rest_cnt;
	struct aio_req *next;
};

int aio_new(struct aio **out, struct loop *l, bool no_io_uring, struct error *e);
void aio_free(struct aio *a);		/* nothing is under way */
bool aio_uses_io_uring(const struct aio *a);

void aio_submit(struct aio *a, struct aio_req *r);
/* Between plug and unplug submissions are gathered; they nest.  Completions may run inside unplug. */
void aio_plug(struct aio *a);
void aio_unplug(struct aio *a);
/* Blocks until at least one request completes, if any is under way; runs completions. For closing. */
void aio_wait(struct aio *a);
unsigned aio_in_flight(const struct aio *a);

/* For back ends. */
struct aio_ops {
	void (*submit)(void *impl, struct aio_req *r);	/* later: aio_complete() on the loop thread */
	void (*flush)(void *impl);			/* end of a plug */
	void (*wait)(void *impl);
	void (*free)(void *impl);
};
void aio_complete(struct aio *a, struct aio_req *r, int64_t result);	/* bytes or -errno */
int uring_new(void **impl, struct aio *a, struct loop *l);
int pool_new(void **impl, struct aio *a, struct loop *l);
extern const struct aio_ops uring_ops, pool_ops;

#endif
