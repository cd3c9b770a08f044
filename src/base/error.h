/*
 * Host failures that a user will read.
 *
 * A function that can fail for a host reason returns -errno and fills in a
 * caller-owned `struct error` (which may be NULL).  The three parts become one
 * line on stderr:   vixen: WHAT failed: WHY; WHAT TO DO
 * Guest mistakes are never errors of this kind, and our own bugs are ASSERTs.
 */
#ifndef VIXEN_BASE_ERROR_H
#define VIXEN_BASE_ERROR_H

#include <stddef.h>

struct error {
	char what[192];	/* "open disk 'a.img'" */
	char why[256];	/* "no such file" */
	char todo[256];	/* "check the path"; may be empty */
};

/* Fills the parts; `todo` may be NULL.  Returns -err, so callers can `return error_set(...)`.
 * err is a positive errno and is kept as the return value only; spell the reason in `why`. */
int error_set(struct error *e, int err, const char *todo, const char *what, const char *why_fmt, ...)
	__attribute__((format(printf, 5, 6)));
/* As error_set, with why = strerror(err) in plain words. what_fmt takes the arguments. */
int error_errno(struct error *e, int err, const char *todo, const char *what_fmt, ...)
	__attribute__((format(printf, 4, 5)));
/* Writes "vixen: what failed: why; todo\n" to stderr. */
void error_print(const struct error *e);

/* Our bugs: kept in release builds. */
_Noreturn void assert_fail(const char *expr, const char *file, int line);
#define ASSERT(x) ((x) ? (void)0 : assert_fail(#x, __FILE__, __LINE__))

#endif
