#include "base/log.h"

#include <stdarg.h>
#include <stdio.h>
#include <time.h>

#define LIMIT_BURST 10u
#define SECOND_NS 1000000000ull

static void emit(const char *prefix, const char *fmt, va_list ap)
{
	char line[512];
	vsnprintf(line, sizeof line, fmt, ap);
	fprintf(stderr, "vixen: %s%s\n", prefix, line);
}

void log_warn(const char *fmt, ...)
{
	va_list ap;
	va_start(ap, fmt);
	emit("", fmt, ap);
	va_end(ap);
}

bool log_limit_pass(struct log_limit *l)
{
	struct timespec t;
	clock_gettime(CLOCK_MONOTONIC, &t);
	uint64_t now = (uint64_t)t.tv_sec * SECOND_NS + (uint64_t)t.tv_nsec, last = atomic_load(&l->last_ns);
	if (atomic_load(&l->used) < LIMIT_BURST && atomic_fetch_add(&l->used, 1) < LIMIT_BURST)
		return true;
	return now - last >= SECOND_NS && atomic_compare_exchange_strong(&l->last_ns, &last, now);
}

void log_guest(struct log_limit *l, const char *fmt, ...)
{
	if (!log_limit_pass(l))
		return;
	va_list ap;
	va_start(ap, fmt);
	emit("guest: ", fmt, ap);
	va_end(ap);
}
