/*
 * New images of the formats that are only read otherwise.  Whoever made the file with block_create() opens it with
 * BLOCK_FRESH, fills it and closes it.
 *
 *	write ─▶ a place at the end of the file for each unit without one ─▶ data
 *	flush, close ─▶ tables, header ─▶ sync
 *
 * Until then tables are in memory alone, by pages, of which only those exist that say something.  What a cut leaves is
 * no image: so it gets its name when it is whole (vixen image convert does that).  Thread: the loop's, in coroutines.
 */
#ifndef VIXEN_BLOCK_FRESH_H
#define VIXEN_BLOCK_FRESH_H

#include "block/mapped.h"

#define FRESH_PAGE 512u		/* entries */

struct fresh {
	uint64_t unit, units;		/* bytes that have a place together; how many */
	/* Place p > 0 is at base + p * scale in the file; units without one have 0. */
	uint64_t base, scale;
	uint64_t end;			/* of the file: the next unit goes there */
	bool fixed;			/* all lies at base + offset, the tables are there already */
	/* Writes the entries of units from `first` on, 1 to FRESH_PAGE of them; NULL if fixed. */
	int (*co_put)(struct node *n, uint64_t first, const uint32_t *place, unsigned count);
	int (*co_finish)(struct node *n);	/* after all entries; may be NULL */
	/* fresh.c's */
	uint64_t used;			/* units with a place */
	uint32_t **page;
	uint8_t *dirty;			/* pages that changed */
	bool changed;
};

/* For co_open: begins to fill n, whose image is empty, with the upper fields of f.  -errno with e set. */
int fresh_begin(struct node *n, const struct fresh *f, struct error *e);
/* For the ops of a format; without fresh_begin() nothing happens. */
int fresh_co_writev(struct node *n, uint64_t offset, const struct iovec *iov, int iovcnt);
int fresh_co_flush(struct node *n);
int fresh_co_end(struct node *n);		/* writes what is left, frees; 0 or -errno of the writing */

/* For co_create: refuses what such formats do not have. */
int fresh_options_good(const struct node *file, const struct block_create *c, bool fixed, struct error *e);
/* Makes the file of a fixed image as large as it will be. */
int fresh_take_space(struct node *file, uint64_t data_at, uint64_t len, enum block_preallocate how, struct error *e);
int fresh_failed(const struct node *file, int ret, struct error *e);	/* ret, with e set if it is an error */
void fresh_random(uint8_t *out, size_t len);				/* 256 bytes at most */
void fresh_guid(uint8_t out[16]);

#endif
