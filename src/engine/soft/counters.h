/*
 * What a software vCPU did, for `vixen run --counters` and for whoever makes it faster.
 *
 * Counted on the vCPU's own thread, without atomics: read while it is stopped.
 */
#ifndef VIXEN_ENGINE_SOFT_COUNTERS_H
#define VIXEN_ENGINE_SOFT_COUNTERS_H

#include <stdint.h>

#include "cpu/optable.h"

struct counters {
	uint64_t op[X86_OP_COUNT];	/* instructions that the interpreter carried out */
	uint64_t fault[32];		/* exceptions delivered, by vector */
#define COUNTER(field, group, name) uint64_t field;
#include "engine/soft/counters.def"
#undef COUNTER
};

#endif
