/*
 * The filter that a job puts between a running disk's handle and its stack:
 *
 *	struct block ──root──▶ guard ──FILE──▶ what was the root
 *	  guest's requests ──────┘▲
 *	                          └── the job: told of writes, holds ranges, reads and writes below the guard itself
 *
 * A range that is held keeps others out that want to hold an overlapping one, first come, first served.  Jobs hold what
 * they copy; the guest's writes hold their bytes for as long as they are under way, if the job wants that
 * (guard_serialize).  The guest's reads never wait, but for before_read.
 *
 * Thread: the loop's.  One guard for a disk at a time.
 */
#ifndef VIXEN_BLOCK_GUARD_H
#define VIXEN_BLOCK_GUARD_H

#include "block/node.h"

struct guard;

enum guard_kind { GUARD_WRITE, GUARD_ZEROES, GUARD_DISCARD };

struct guard_write {
	enum guard_kind kind;
	uint64_t offset, len;
	const struct iovec *iov;	/* GUARD_WRITE */
	int iovcnt;
	unsigned flags;			/* GUARD_ZEROES: enum node_zero_flags */
	bool held;			/* its range has been held since before it went down */
	int ret;			/* for after_write: how it ended; what it failed to write is unknown */
};

/* In coroutines of the guest's requests; any may be NULL.  They cannot fail: what goes wrong is the job's to know, and
 * the guest's request goes on. */
struct guard_ops {
	void (*before_read)(void *job, uint64_t offset, uint64_t len);
	void (*before_write)(void *job, uint64_t offset, uint64_t len);		/* without its range held */
	void (*after_write)(void *job, const struct guard_write *w);
};

struct guard_range {
	uint64_t offset, len;
	struct guard_range *next;
};

/* In coroutines.  Drains the disk and puts the guard in; at_start, if not NULL, runs in the moment when nothing is under
 * way, and -errno of it leaves all as it was.  -EBUSY: there is one; with e set. */
int guard_insert(struct guard **out, struct block *b, const struct guard_ops *ops, void *job,
		 int (*at_start)(void *job), struct error *e);
/* Drains the disk, takes the guard out and frees it.  at_end as at_start, but its return value is passed on. */
int guard_remove(struct guard *g, int (*at_end)(void *job));
/* For at_end: what the disk stands on when the guard is gone, instead of what is below it now, which stays the
 * caller's.  NULL is fine: no change. */
void guard_pivot(struct guard *g, struct node *root);

struct node *guard_below(struct guard *g);
void guard_serialize(struct guard *g);		/* the guest's writes hold their ranges from here on */
void guard_hold(struct guard *g, struct guard_range *r);	/* waits; offset and len are set */
void guard_release(struct guard *g, struct guard_range *r);

bool node_is_guard(const struct node *n);

#endif
