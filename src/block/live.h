/*
 * Jobs on a disk that is in use.  As those of job.h they are straight-line code for coroutines of the disk's loop; they
 * put a guard (guard.h) in front of the disk and take it out again at their end.  One at a time on a disk (-EBUSY).
 *
 * Common to all: 0, or -errno with e set; -ECANCELED after job.cancel, without e.  However a job ends, the guest's disk
 * is whole and what it stood on before is what it stands on, but for the one success that each names.  What a job made
 * of its target when it failed is of no use.  Targets belong to the loop of the disk and to nobody else meanwhile.
 */
#ifndef VIXEN_BLOCK_LIVE_H
#define VIXEN_BLOCK_LIVE_H

#include "block/job.h"
#include "host/coroutine.h"

/* After a change of j->cancel, j->rate_bytes or live_mirror.finish of the job on b: on the loop's thread.  The job may have
 * come to its end when it returns. */
void live_job_kick(struct block *b, struct block_job *j);

/*
 * Backup: target becomes what the disk holds now, at the moment the job starts.  What the guest writes to later is first
 * copied.  With a bitmap of the disk's format:
 *	full:		all is copied, and the bitmap records what changes from now on
 *	incremental:	only what the bitmap says is copied, and it records what changes from now on
 * If the job fails the bitmap records both: what it said before (full: everything), and what has changed since.
 *
 * The target of an incremental backup is an overlay on the backup before, opened with BLOCK_NO_BACKING; its clusters
 * must not be larger than the bitmap's granularity.
 */
struct live_backup {
	const char *bitmap;		/* NULL: none */
	bool incremental;
};
int live_backup(struct block_job *j, struct block *b, struct block *target, const struct live_backup *o,
		struct error *e);

/*
 * Mirror: target becomes what the disk holds, and stays so.  After everything was copied once the guest's writes go to
 * both, so that it ends under any load.  Then `ready` is set, and the job waits for `finish` (or the cancelling).  At
 * the end target holds what the disk held at one moment; pivot: the disk stands on the target's stack from that moment
 * on, and `target` on the disk's old one.
 */
struct live_mirror {
	bool pivot;
	bool finish, ready;
};
int live_mirror(struct block_job *j, struct block *b, struct block *target, struct live_mirror *m, struct error *e);

/*
 * Stream: what the backing files of the disk hold is copied into its top layer, which then names none (block.h:
 * qcow2 alone).  What the guest reads meanwhile is copied first.  Cancelled: the disk is as it was, and can be streamed
 * again.
 */
int live_stream(struct block_job *j, struct block *b, struct error *e);

/*
 * External snapshot: the disk goes on in overlay, an empty qcow2 image that names the disk's image as its backing file
 * and was opened with BLOCK_NO_BACKING and beside the disk.  The image below is read from then on; whoever opens it for
 * writing spoils the overlay.  `overlay` is empty afterwards, fit for block_close() alone.
 */
int live_snapshot(struct block *b, struct block *overlay, struct error *e);

/*
 * Commit: what the topmost layers hold, so many of them, is written to the backing file below, and the disk goes on in that.
 * fds: that file open for writing, by the path that the chain has it by; on a server there is none.  The layers' files are
 * left, and of no use any more.
 * Cancelled: the disk reads as before, the backing file holds part of it, and it can be committed again.
 */
int live_commit(struct block_job *j, struct block *b, unsigned layers, const struct block_options *fds, struct error *e);

#endif
