/*
 * Copying parts of a disk with several pieces under way, for live jobs: a worker is a coroutine that claims dirty
 * stretches until there are none.
 */
#ifndef VIXEN_BLOCK_LIVE_COPY_H
#define VIXEN_BLOCK_LIVE_COPY_H

#include "block/dirty.h"
#include "block/guard.h"
#include "block/live.h"

#define LIVE_DATA_BYTES (1u << 20)	/* held at a time, if it is data */
#define LIVE_ZERO_BYTES (64u << 20)	/* if it is zeroes */
#define LIVE_GRAN_BITS 16u

struct live_copy {
	struct block_job *job;
	struct guard *g;
	struct node *src;
	struct block *dst;
	struct dirty todo;		/* what is left */
	bool claim_clears;		/* when a stretch is claimed, not when it has been copied */
	bool zeroes_hide;		/* there are zeroes to be seen in dst, whatever lies under it */
	struct co_mutex claims;
	/* In place of plain copying; the range is held. */
	int (*copy)(void *opaque, uint64_t offset, uint64_t len, uint8_t *buf);
	void *opaque;
	uint64_t cursor, done, total;
	unsigned workers;
	struct co_queue end;
	int ret;			/* the first failure: all stop */
	/* live_pace.c */
	struct loop_timer *timer;
	double level;			/* bytes that may be copied now */
	uint64_t level_ns;		/* when it was right */
	uint64_t reserved;		/* claimed by workers, not copied yet */
	bool unpaced;			/* the guest waits: no limit from here on */
};

/* todo: all clear, of 64 KiB granules or larger ones. */
int live_copy_init(struct live_copy *c, struct block_job *j, struct block *b, struct block *dst, unsigned gran_bits);
void live_copy_fini(struct live_copy *c);
/* Until todo has been gone through once, or failed, or is cancelled (-ECANCELED). */
int live_copy_run(struct live_copy *c);
/* What of the range is left: held, copied, cleared.  For before_write. */
void live_copy_now(struct live_copy *c, uint64_t offset, uint64_t len);
/* src to dst, zeroes as such; buf holds LIVE_DATA_BYTES. */
int live_copy_range(struct live_copy *c, uint64_t offset, uint64_t len, uint8_t *buf);
/* For those who copy by themselves: so much data was copied. */
void live_copy_count(struct live_copy *c, uint64_t data_bytes);

int pace_init(struct live_copy *c);
void pace_fini(struct live_copy *c);
void pace_wait(struct live_copy *c);	/* until a worker may copy more */

/* An error text for the job's end; cancelled: -ECANCELED without. */
int live_end(const struct block_job *j, int ret, const char *what, struct error *e);

#endif
