/*
 * The workloads that need nothing but libc. One unit of work is some milliseconds of a bare CPU; the driver runs one
 * unit untimed, so that memory is touched and code is warm, and then times `units` of them.
 */
#ifndef VIXEN_BENCH_WORKLOADS_H
#define VIXEN_BENCH_WORKLOADS_H

#include <stdint.h>

#define BENCH_FAILED UINT64_MAX	/* a unit could not do its work; errno says why */

struct workload {
	const char *name;
	uint64_t (*unit)(void);	/* one unit; its checksum, the same on every machine, or BENCH_FAILED */
	unsigned units;
};

extern const struct workload system_workloads[], compute_workloads[];	/* both end with a NULL name */

uint32_t lcg(uint32_t *state);

#endif
