/* The inside of a mirror, for jobs that are made like one (live_chain.c). */
#ifndef VIXEN_BLOCK_LIVE_MIRROR_H
#define VIXEN_BLOCK_LIVE_MIRROR_H

#include "block/live_copy.h"

struct mirror {
	struct live_copy copy;		/* initialised */
	struct block *b;
	struct live_mirror *m;
	struct error *e;
	const char *what;		/* for errors */
	bool done;
	bool told;			/* e says what went wrong already */
	void *opaque;
	int (*at_start)(void *mirror);	/* marks what is to be copied; the disk is drained */
	int (*pivot)(struct mirror *k);	/* at the end, drained, all copied and flushed; NULL, or it fails: no change */
};
int mirror_run(struct mirror *k);

#endif
