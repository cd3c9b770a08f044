/*
 * What a software vCPU did, for `vixen run --counters` and for whoever makes it faster.
 *
 * Counted on the vCPU's own thread, without atomics; printed when the vCPU is destroyed.
 */
#ifndef VIXEN_ENGINE_SOFT_COUNTERS_H
#define VIXEN_ENGINE_SOFT_COUNTERS_H

#include <stdint.h>

#include "cpu/optable.h"

struct counters {
	uint64_t op[X86_OP_COUNT];	/* instructions that the interpreter carried out */
	uint64_t fault[32];		/* exceptions delivered, by vector */
	uint64_t interrupts;
	uint64_t walk_hits, walks, walk_faults;		/* answered by the walk cache; walked; refused */
	uint64_t fills, fills_write;	/* TLB entries filled: all; with the right to write */
	uint64_t switches, switches_kept;		/* CR3 writes: all; that kept the PCID's walks */
	uint64_t flush_all, flush_local, flush_page;
	uint64_t local_entries;		/* TLB entries looked at by CR3 writes and flushes like them */
};

struct vcpu;
void counters_print(const struct vcpu *v);

#endif
