/*
 * Model-specific registers that live in x86_state, or are constant.
 *
 * Not here, the engine routes them first: TSC and TSC_ADJUST (they depend on the
 * clock) and what vcpu_wiring.msr_read/msr_write answer for (APIC base, x2APIC,
 * TSC deadline).
 */
#ifndef VIXEN_CPU_MSR_H
#define VIXEN_CPU_MSR_H

#include <stdbool.h>
#include <stdint.h>

#include "cpu/state.h"

struct cpu_model;

enum msr_index {
#define X86_MSR(name, index, ...) MSR_##name = (index),
#include "cpu/msr.def"
#undef X86_MSR
	MSR_TSC = 0x10,
	MSR_TSC_ADJUST = 0x3b,
	MSR_TSC_DEADLINE = 0x6e0,
};

/* false: no such MSR, or (set) a reserved bit, bad type or non-canonical address: #GP(0).
 * Setting EFER does not touch LMA and refuses to change LME while paging is on. */
bool msr_get(const struct x86_state *s, const struct cpu_model *model, uint32_t msr, uint64_t *value);
bool msr_set(struct x86_state *s, const struct cpu_model *model, uint32_t msr, uint64_t value);

/* The MSRs kept in the state, ascending, for engines and formats that list them. */
const uint32_t *msr_list(unsigned *count);

#endif
