/*
 * Persistent dirty bitmaps ("Bitmaps" in the specification).
 *
 *	header extension ──▶ directory: entries with flags and names ──▶ bitmap table ──▶ clusters of bits
 *	                                                                  (0: all clear, 1: all set)
 *
 * In memory a bitmap that tracks the guest's writes is three:
 *
 *	bits ⊆ safe ⊆ file ⊆ filed	bits: what was written to; safe: what the file says at any cut from now on;
 *					filed: what it may say
 *
 * A write goes down when its bits are in `safe`: so a cut finds every change in the file.  What is not there yet is put
 * there for a stretch of granules at a time, and synced, before the write.  On closing the file gets the exact bits.
 *
 * IN_USE says that the bits in the file are not exact, and to QEMU that the bitmap is lost after a crash.  We trust it
 * all the same if AUTOCLEAR_AHEAD is set: everybody else who writes to the image clears that bit, as one that he does
 * not know.  Without it a bitmap in use is taken to be all set.
 */
#ifndef VIXEN_QCOW2_BITMAP_H
#define VIXEN_QCOW2_BITMAP_H

#include "block/dirty.h"
#include "block/qcow2/qcow2.h"

#define BITMAPS_MAX 65535u
#define BITMAP_NAME_MAX 1023u
#define BITMAP_DIR_MAX (64u << 20)

#define BITMAP_IN_USE 1u
#define BITMAP_AUTO 2u

struct bitmap {
	char *name;
	uint32_t flags;			/* as in the file */
	unsigned gran_bits;
	uint64_t table_offset;
	uint32_t table_size;
	uint64_t *table;		/* host order */
	uint64_t *old_table, old_offset;	/* what the file's directory names instead, until it is written; NULL: none */
	uint32_t old_size;
	uint64_t flags_at;		/* where the file has them */
	bool loaded;			/* bits, safe and filed are there */
	bool lost;			/* what the file says is worth nothing: bits are all set */
	bool unclean;			/* it was in use when the image was opened */
	bool freezing;			/* a backup is under way */
	struct dirty bits, safe, filed;
	struct dirty frozen;		/* what the backup is about */
};

/* --- bitmap.c --- */
void bitmap_free(struct qcow2 *q, struct bitmap *m);		/* memory alone */
struct bitmap *bitmap_find(struct qcow2 *q, const char *name);
int bitmap_load(struct qcow2 *q, struct bitmap *m);		/* reads the bits */
/* Makes the file say what m->bits says at the call; durable.  whole: all of it gets a place of its own.  Writes that come
 * meanwhile wait if they are not in `safe`: bitmaps_lock is held, or nothing else is under way. */
int bitmap_store(struct qcow2 *q, struct bitmap *m, bool whole);
/* An empty table for a disk of that size; the old one and its bits are dropped when another directory is written. */
int bitmap_table_new(struct qcow2 *q, struct bitmap *m, uint64_t size_bytes);
int bitmap_drop(struct qcow2 *q, const struct bitmap *m);	/* its clusters, later */
bool bitmap_table_fits(const struct qcow2 *q, const struct bitmap *m);
int bitmap_flags_write(struct qcow2 *q, struct bitmap *m, uint32_t flags);	/* in place; not synced */
/* Bytes of the bits in the file, as d has them.  Their places exist. */
int bitmap_write_range(struct qcow2 *q, struct bitmap *m, const struct dirty *d, uint64_t from, uint64_t to);
/* A new directory of what there is, and the header that names it. */
int bitmaps_dir_write(struct qcow2 *q);

/* --- bitmap_track.c --- */
int bitmaps_begin(struct qcow2 *q);		/* in use from here on; bitmaps_lock is held, or nothing else is under way */
static inline bool bitmap_tracks(const struct bitmap *m) { return m->flags & BITMAP_AUTO; }

/* --- backing.c --- */
int header_set_bitmaps(struct qcow2 *q, uint32_t n, uint64_t dir_bytes, uint64_t dir_offset, uint64_t autoclear);

#endif
