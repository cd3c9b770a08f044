/* Inside a disk's handle: for block.c, meta.c, open.c and sync.c. */
#ifndef VIXEN_BLOCK_PRIVATE_H
#define VIXEN_BLOCK_PRIVATE_H

#include "block/node.h"

enum kind { READ, WRITE, FLUSH, DISCARD, ZEROES, STATUS };

struct request {
	struct block *b;
	enum kind kind;
	unsigned flags;			/* STATUS: depth_max */
	uint64_t offset, len;
	const struct iovec *iov;
	int iovcnt;
	struct block_status *status;
	block_done_fn *done;
	void *opaque;
	struct request *next;
};

struct holder {
	block_done_fn *done;
	void *opaque;
	bool on_stack;
	struct holder *next;
};

struct block {
	struct node *root;
	struct block_env *env;		/* the root's; a reference */
	unsigned in_flight, plugged, held;
	bool full_logged;
	bool shrunk;			/* requests from before may lie past the end */
	struct throttle *throttle;	/* NULL: no limits */
	void (*on_full)(void *opaque);	/* NULL: the caller of a request sees -ENOSPC */
	void *full_opaque;
	struct request *stuck;		/* until there is space; not among those under way */
	struct request *waiting, **waiting_tail;	/* while held */
	struct request *idle;		/* free structs */
	struct holder *holders;		/* wait until nothing is under way */
};

/* throttle.c */
struct throttle;
bool throttle_admit(struct throttle *t, struct request *r);	/* false: it comes back by block_admitted() */
bool throttle_waiting(const struct throttle *t);
void throttle_free(struct throttle *t);
void block_admitted(struct block *b, struct request *r);

void block_idle(struct block *b);		/* the last request under way ended */
void block_co_idle(struct block *b);		/* waits for that, once */
int block_do(struct block_env *env, int (*fn)(void *), void *arg);	/* fn in a coroutine, to its end */

#endif
