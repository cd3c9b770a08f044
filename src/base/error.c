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

/* Names in errors may come from images: controls, also those of Latin-1 as UTF-8 has them, could steer a terminal. */
static void tame(char *s)
{
	for (; *s; s++)
		if ((unsigned char)*s < 0x20 || *s == 0x7f || ((unsigned char)*s == 0xc2 && (unsigned char)s[1] < 0xa0))
			*s = '?';
}

void error_print(const struct error *e)
{
	struct error shown = *e;

	tame(shown.what);
	tame(shown.why);
	tame(shown.todo);
	fprintf(stderr, "vixen: %s failed: %s%s%s\n", shown.what, shown.why, *shown.todo ? "; " : "", shown.todo);
}

void assert_fail(const char *expr, const char *file, int line)
{
	fprintf(stderr, "vixen: run failed: our own mistake, '%s' is false at %s:%d; please report it\n", expr, file, line);
	abort();
}
