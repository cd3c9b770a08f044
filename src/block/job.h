/*
 * Jobs: long work on whole disks.  Each is straight-line code for a coroutine of the disks' loop (block_run()), with
 * several pieces under way at a time; disks of one job belong to one loop.  Other coroutines and callbacks run
 * meanwhile, so that a job can be watched and cancelled.
 *
 * Nobody else writes to a job's disks meanwhile: the jobs take no lock against that, and a copy of what changes would
 * be of no moment.  Reads, status and flushes from elsewhere are fine.
 *
 * Common to all: 0, or -errno with e set; -ECANCELED after job.cancel, without e.  A job that ends early has no
 * request under way any more and leaves the disks it reads as they were.
 */
#ifndef VIXEN_BLOCK_JOB_H
#define VIXEN_BLOCK_JOB_H

#include "block/block.h"
#include "host/coroutine.h"

struct block_job {
	bool cancel;			/* set on the loop's thread: the job ends after the pieces under way */
	unsigned parallel;		/* pieces under way at a time; 0: JOB_PARALLEL */
	uint64_t rate_bytes;		/* live jobs: data copied in a second, 0: as fast as it goes; live_job_kick() after a change */
	struct co_queue wake;		/* of live_job_kick() */
	void (*progress)(void *opaque, uint64_t done_bytes, uint64_t total_bytes);	/* may be NULL */
	void *opaque;
};

#define JOB_PARALLEL 8u
#define JOB_PARALLEL_MAX 64u
#define JOB_PIECE_BYTES (2u << 20)	/* data of a piece at most; no smaller than any cluster */

/* --- walking over a disk, for jobs --- */

struct job_piece {
	uint64_t offset, len;		/* len of data: JOB_PIECE_BYTES at most */
	unsigned flags;			/* enum block_status_flags, of all of it */
	uint8_t *buf, *buf2;		/* JOB_PIECE_BYTES each, aligned to pages */
};

struct job_walk {
	struct block *b;
	uint64_t start, end;		/* where to stop; multiples of 512, start of unit as well */
	unsigned depth_max;		/* as in block_status() */
	/* Pieces begin and, unless the disk ends, end at multiples of this.  0: where the status changes.  Where it
	 * changes within a unit, the unit is taken for allocated data. */
	uint32_t unit;
	bool cut;			/* no piece is longer than JOB_PIECE_BYTES, data or not */
	/* In a coroutine; -errno ends the walk.  Pieces come in the order of their offsets, several at a time. */
	int (*fn)(void *opaque, const struct job_piece *p);
	/* NULL or: comes after every settle_bytes of data, and at the end if the walk ends early.  All pieces below
	 * `below` are done.  In a coroutine, others go on meanwhile; never twice at a time; -errno ends the walk. */
	int (*settle)(void *opaque, uint64_t below);
	uint64_t settle_bytes;
	void *opaque;
};
/* 0 or -errno, without an error text. */
int job_walk(struct block_job *j, const struct job_walk *w);
bool job_all_zero(const uint8_t *p, size_t len);

/* --- the jobs --- */

struct job_convert {
	bool compress;			/* dst's format can, and nothing was written to it yet */
	uint32_t sparse_bytes;		/* zeroes of this length and alignment are not written; 0: JOB_SPARSE_BYTES */
	bool dense;			/* write zeroes that were read, too; holes stay holes */
	uint64_t from;			/* what is before it is in dst already; a multiple of dst's clusters */
	/* NULL or, now and then and when the job ends early: what is below `below` is in dst, and flushed. */
	int (*safe)(void *opaque, uint64_t below);
	void *opaque;
};
#define JOB_SPARSE_BYTES 4096u
/* Copies what src holds to dst, which is new and at least as large.  Flushes dst. */
int job_convert(struct block_job *j, struct block *src, struct block *dst, const struct job_convert *o,
		struct error *e);

struct job_compare {
	bool differ;
	uint64_t offset;		/* the first sector that differs */
};
/* A disk that ends earlier is taken to go on with zeroes. */
int job_compare(struct block_job *j, struct block *a, struct block *b, struct job_compare *out, struct error *e);

/* Writes what top itself holds to base, the backing file under it, which grows if it is smaller; then empties top.
 * top was opened with BLOCK_NO_BACKING.  Cancelled: top is whole, base holds part of it. */
int job_commit(struct block_job *j, struct block *top, struct block *base, struct error *e);

/* Copies to top whatever would read otherwise with base (NULL: none) as its backing file, so that the name of that
 * may be changed with block_set_backing(). */
int job_rebase(struct block_job *j, struct block *top, struct block *base, struct error *e);

/* --- what a layer says of its backing file (backing.c) --- */

/* Names another backing file, NULL: none.  At any cut the image names the old one or the new.  What the disk reads
 * changes with the next opening.  In a coroutine or run like block_open_with. */
int block_set_backing(struct block *b, const char *path, const char *format, struct error *e);
/* Drops all that the top layer holds: the disk reads as its backing file.  In a coroutine. */
int block_co_empty(struct block *b);
/* Clusters that read as zeroes hide the backing file whether there is one or not. */
bool block_zeroes_hide(struct block *b);

#endif
