/*
 * Formats that are only read, once they are made: parts of the disk lie somewhere in files, as tables say.
 *
 *	driver's co_span(offset): what is there, and for how long? ─▶ reading, status
 *
 * Tables are read through a small cache of pages, never whole: what a hostile file claims of their size costs no
 * memory.  Thread: the loop's, in coroutines.
 */
#ifndef VIXEN_BLOCK_MAPPED_H
#define VIXEN_BLOCK_MAPPED_H

#include "block/node.h"

enum span_kind { SPAN_DATA, SPAN_ZERO, SPAN_BACKING, SPAN_PACKED };

struct span {
	enum span_kind kind;
	struct node *file;		/* SPAN_DATA: bytes from host on; SPAN_PACKED: the driver's, as host is */
	uint64_t host, len;
};

/* First in the driver's impl. */
struct mapped {
	/* len > 0 and inside the disk; the answer is for 1 to len bytes.  -EIO after mapped_damaged(). */
	int (*co_span)(struct node *n, uint64_t offset, uint64_t len, struct span *out);
	/* SPAN_PACKED: reads s->len bytes at offset into out. */
	int (*co_unpack)(struct node *n, const struct span *s, uint64_t offset, uint8_t *out);
	struct fresh *fresh;		/* the image is new and being filled (fresh.h); NULL: it is only read */
	bool damage_told;
};

int mapped_co_readv(struct node *n, uint64_t offset, const struct iovec *iov, int iovcnt);
int mapped_co_status(struct node *n, uint64_t offset, uint64_t len, struct block_status *out);
/* What is in the file makes no sense: says so once.  Returns -EIO. */
int mapped_damaged(struct node *n, const char *what, uint64_t at);
/* For co_open: refuses a disk that is opened for writing, unless it is new. */
int mapped_read_only(const struct node *n, const struct node_open *how, struct error *e);
bool mapped_is_fresh(const struct node *n, const struct node_open *how);
/* Says that the image is damaged: -EINVAL with e set. */
int mapped_bad(const struct node *n, struct error *e, const char *why);

#define PAGES_SLOTS 64u
#define PAGES_BYTES 16384u

/* Of all files of an image.  Zeroed memory is an empty cache. */
struct pages {
	struct { const struct node *file; uint64_t at; uint8_t *data; } slot[PAGES_SLOTS];
};
/* -EIO past the end of the file. */
int pages_read(struct pages *p, struct node *file, uint64_t at, void *out, size_t len);
void pages_fini(struct pages *p);

#endif
