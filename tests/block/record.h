/*
 * Cutting the power.  A recorder stands between formats and their files and logs every write, hole and flush, when it
 * began and when it ended.  Afterwards, for each boundary, the files are put together as disks could have kept them:
 * everything that a finished flush covers, and of the rest any subset, in sectors.
 */
#ifndef VIXEN_TESTS_RECORD_H
#define VIXEN_TESTS_RECORD_H

#include "block/node.h"
#include "disk.h"

#ifndef DISK_BYTES
#define DISK_BYTES (1u << 20)
#endif
#define SECTORS (DISK_BYTES / SECTOR)
#define RECORD_FILES 2u

struct record;

struct image {
	uint8_t *p;
	uint64_t len, cap;
};

struct record_file {
	struct record *r;
	unsigned index;
	const char *path;
	struct image base;		/* what the disk has kept for sure */
};

/* What a guest sector may hold: versions in order, each from when it was submitted. */
struct version {
	uint64_t tag;
	unsigned submitted, completed;
	struct version *next;
};

struct record {
	struct event *ev;
	unsigned nev;
	struct io *io;
	unsigned nio;
	struct flush *fl;
	unsigned nfl;
	struct version *sector[SECTORS];
	struct flush *guest;		/* start and end, as events */
	unsigned *guest_end, nguest;
	struct record_file file[RECORD_FILES];
	unsigned nfiles;
	struct block *watch;		/* the guest's disk, if it may change over to another format node */
	const struct node *stood_on;
	unsigned moved_at;		/* when it had; 0: it has not */
	uint64_t size;			/* of the disk; what the guest writes lies below */
	unsigned every;			/* cut at each so manieth boundary; 0: at all */
};

/* Records what this format node does to its file, which is closed or idle, from here on. */
void record_add(struct record *r, struct node *format, const char *path);
void record_fini(struct record *r);

/* --- the guest --- */

uint64_t below(uint64_t n);
struct version *version_add(struct record *r, uint64_t sector, uint64_t tag);
void guest_flush(struct disk *d, struct record *r);
void guest_batch(struct disk *d, struct record *r, uint64_t *tag);	/* some writes and flushes; waits for the writes */

/* --- cuts --- */

struct cut {
	const struct record *r;
	unsigned at, n;			/* events before it; its number */
	unsigned flush_at;		/* what completed by then the guest has flushed */
};
/* Calls check() for each cut, with the files in the folder `cut` under their names.  How many there were. */
unsigned record_cuts(struct record *r, void (*check)(void *opaque, const struct cut *c), void *opaque);
/* The first `bytes` of the disk hold what was flushed, or what came later; `before`: what it held at the start. */
void cut_content(const struct cut *c, const uint8_t *disk, const uint8_t *before, uint64_t bytes);

#endif
