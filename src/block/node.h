/* Inside a block node; for the files of this room only. */
#ifndef VIXEN_BLOCK_NODE_H
#define VIXEN_BLOCK_NODE_H

#include "base/log.h"
#include "block/aio.h"
#include "block/block.h"

#define SECTOR 512u

struct overlay;

struct block {
	struct aio *aio;
	int fd;
	char *path;		/* for messages */
	uint64_t size_bytes;
	bool readonly, can_discard;
	bool can_zero[2];	/* by fallocate: keeping the blocks; releasing them */
	bool full_logged;
	struct overlay *overlay;	/* ephemeral: where writes go */
	unsigned in_flight;		/* requests of users */
};

/* raw.c: opens, locks, measures and probes the image. */
int raw_open(struct block *b, const char *path, const char *format, unsigned flags, struct error *e);

/* One transfer of the image or its overlay; bounds are checked. */
int overlay_new(struct overlay **out, struct aio *a, int base_fd, uint64_t size_bytes, struct error *e);
void overlay_free(struct overlay *o);
void overlay_read(struct overlay *o, uint64_t offset, const struct iovec *iov, int iovcnt, aio_done_fn *done,
		  void *opaque);
void overlay_write(struct overlay *o, uint64_t offset, const struct iovec *iov, int iovcnt,
		   aio_done_fn *done, void *opaque);

#endif
