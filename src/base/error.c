#include "base/error.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static void copy(char *dst, size_t size, const char *src)
{
	snprintf(dst, size, "%s", src ? src : "");
}

int error_set(struct error *e, int err, const char *todo, const char *what, const char *why_fmt, ...)
{
	if (e) {
		va_list ap;
		va_start(ap, why_fmt);
		vsnprintf(e->why, sizeof e->why, why_fmt, ap);
		va_end(ap);
		copy(e->what, sizeof e->what, what);
		copy(e->todo, sizeof e->todo, todo);
	}
	return -err;
}

int error_errno(struct error *e, int err, const char *todo, const char *what_fmt, ...)
{
	if (e) {
		va_list ap;
		va_start(ap, what_fmt);
		vsnprintf(e->what, sizeof e->what, what_fmt, ap);
		va_end(ap);
		copy(e->why, sizeof e->why, strerror(err));
		copy(e->todo, sizeof e->todo, todo);
	}
	return -err;
}

void error_print(const struct error *e)
{
	fprintf(stderr, "vixen: %s failed: %s%s%s\n", e->what, e->why, *e->todo ? "; " : "", e->todo);
}

void assert_fail(const char *expr, const char *file, int line)
{
	fprintf(stderr, "vixen: run failed: our own mistake, '%s' is false at %s:%d; please report it\n", expr, file, line);
	abort();
}
