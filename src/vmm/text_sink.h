/*
 * Lines that the VM writes for an engineer: a trace, a map of translated code. Any thread.
 *
 * Opened before the sandbox is entered. Bounded: what comes faster than `lines_per_s` is left out and said so, and at
 * `bytes_max` it ends with a line that says so.
 */
#ifndef VIXEN_VMM_TEXT_SINK_H
#define VIXEN_VMM_TEXT_SINK_H

#include <stddef.h>
#include <stdint.h>

#include "base/error.h"

struct text_sink;
struct text_sink_limits { uint64_t bytes_max, lines_per_s; };	/* 0: no limit */

/* path NULL: stderr. A file that is there is emptied. 0 or -errno. */
int text_sink_open(struct text_sink **out, const char *path, const struct text_sink_limits *l, const char *what,
		   struct error *e);
/* /tmp/perf-PID.map, where perf looks: made anew, never through a link of somebody else's. */
int text_sink_open_perf(struct text_sink **out, const struct text_sink_limits *l, struct error *e);
void text_sink_close(struct text_sink *s);
/* A line with its newline. */
void text_sink_line(void *sink, const char *line, size_t n);

#endif
