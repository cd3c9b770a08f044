/*
 * Conversions that go on where they ended early.
 *
 *	DST.partial		the copy, so far
 *	DST.partial.journal	what it is a copy of, how it is made, and how much of it is safely on the host's disk
 *
 * The journal is replaced as a whole, after what it speaks of was flushed.  What the copy holds behind that is not
 * trusted: it is cut off.  A copy without a journal is nobody's.
 */
#ifndef VIXEN_CLI_CONVERT_RESUME_H
#define VIXEN_CLI_CONVERT_RESUME_H

#include <jansson.h>
#include <limits.h>
#include <stdint.h>

#include "base/error.h"

struct block;

struct resume {
	char partial[PATH_MAX], journal[PATH_MAX];
	json_t *identity;
	uint64_t safe_bytes;		/* where to go on; 0: begin, and replace the copy if it is there */
};

/* how: all that the copy depends on beside src, a new reference; it becomes r's.  -errno with e set: src cannot be
 * watched for changes, has changed, or was to be copied otherwise.  resume_fini() in each case. */
int resume_find(struct resume *r, const char *dst, struct block *src, json_t *how, struct error *e);
int resume_note(struct resume *r, uint64_t safe_bytes);	/* writes the journal; -errno */
int resume_unchanged(const struct resume *r, struct block *src, struct error *e);	/* before the copy gets its name */
void resume_done(struct resume *r);			/* the copy has its name: removes the journal */
void resume_fini(struct resume *r);

#endif
