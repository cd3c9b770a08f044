/*
 * A bit for each granule of a disk: what has changed, what is still to be copied.  In memory, one bit for 512 bytes to
 * 2 GiB; bit i of byte j is granule 8 * j + i, as in bitmaps of qcow2.  The last granule may be cut short by the end.
 */
#ifndef VIXEN_BLOCK_DIRTY_H
#define VIXEN_BLOCK_DIRTY_H

#include <stdbool.h>
#include <stdint.h>

#define DIRTY_BITS_MIN 9u
#define DIRTY_BITS_MAX 31u
#define DIRTY_BYTES_MAX (512ull << 20)		/* memory of one */

struct dirty {
	uint64_t size_bytes, nbits, count;	/* count: bits that are set */
	unsigned gran_bits;
	uint64_t *word;
};

/* All clear.  -ENOMEM; -EFBIG: it would be larger than DIRTY_BYTES_MAX. */
int dirty_init(struct dirty *d, uint64_t size_bytes, unsigned gran_bits);
int dirty_copy(struct dirty *d, const struct dirty *from);		/* a new one; -ENOMEM */
void dirty_assign(struct dirty *d, const struct dirty *from);		/* both of one size and granularity */
void dirty_fini(struct dirty *d);					/* zeroed memory is fine */
/* What is added is clear.  -ENOMEM leaves it as it was. */
int dirty_resize(struct dirty *d, uint64_t size_bytes);

/* Every granule that the range touches; it may end past the end. */
void dirty_set(struct dirty *d, uint64_t offset, uint64_t len);
void dirty_clear(struct dirty *d, uint64_t offset, uint64_t len);
void dirty_set_all(struct dirty *d);
void dirty_clear_all(struct dirty *d);
bool dirty_all_set(const struct dirty *d, uint64_t offset, uint64_t len);
bool dirty_any_set(const struct dirty *d, uint64_t offset, uint64_t len);

/* The next stretch of dirty bytes at or after from: false if there is none, else [*offset, *offset + *len). */
bool dirty_next(const struct dirty *d, uint64_t from, uint64_t *offset, uint64_t *len);
/* Sets in d what is set in `from`, of whatever granularity and size. */
void dirty_merge(struct dirty *d, const struct dirty *from);
uint64_t dirty_bytes(const struct dirty *d);

/* As bytes, for files: dirty_file_bytes() of them, the last padded with zeroes.  `at` is a multiple of 8. */
uint64_t dirty_file_bytes(const struct dirty *d);
void dirty_export(const struct dirty *d, uint64_t at, void *buf, uint64_t len);	/* zeroes past the end */
void dirty_import(struct dirty *d, uint64_t at, const void *buf, uint64_t len);	/* len too may end past it */

#endif
