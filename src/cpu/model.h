/*
 * CPU models: what CPUID says, and what follows from it.
 *
 * A model is const after cpu_model_new(); any thread.  "engine" features are those
 * the soft engine implements; `host` is what both host and engine have.
 */
#ifndef VIXEN_CPU_MODEL_H
#define VIXEN_CPU_MODEL_H

#include <stdbool.h>
#include <stdint.h>

#include "base/error.h"
#include "cpu/optable.h"
#include "cpu/state.h"

struct cpu_model;

struct cpu_model_config {
	const char *name;	/* "x86-64-v2" to "-v4", "host", "max" */
	uint64_t tsc_hz;	/* for leaves 0x15, 0x16, 0x40000010 */
	bool kvmclock;		/* the engine has KVM's clock: leaf 0x40000001, and its MSRs */
};

/* -EINVAL: no such model (the error lists them); -ENOTSUP: this host's CPU cannot run it translated. */
int cpu_model_new(struct cpu_model **out, const struct cpu_model_config *cfg, struct error *e);
void cpu_model_free(struct cpu_model *model);
const char *cpu_model_name(const struct cpu_model *model);

/* out: EAX, EBX, ECX, EDX. s gives what CPUID mirrors (CR4.OSXSAVE, PKE, XCR0, XSS, APIC base); it may be
 * NULL for the power-on values. vcpu is also the APIC ID. */
void cpu_model_cpuid(const struct cpu_model *model, uint32_t leaf, uint32_t subleaf, const struct x86_state *s,
		     unsigned vcpu, unsigned vcpus, uint32_t out[4]);
bool cpu_model_has(const struct cpu_model *model, enum x86_feature feature);
bool cpu_model_amd(const struct cpu_model *model);	/* AuthenticAMD: SYSCALL in compatibility mode, no #GP quirks */
bool cpu_model_kvmclock(const struct cpu_model *model);
/* May a base register (MSR, GDTR, TR...) hold it? That goes by the addresses that the CPU can have, not by CR4.LA57 (SDM
 * vol. 3, 4.5.2). */
bool cpu_model_canonical(const struct cpu_model *model, uint64_t va);
unsigned cpu_model_phys_bits(const struct cpu_model *model);
uint64_t cpu_model_cr4_mask(const struct cpu_model *model);	/* settable CR4 bits */
uint64_t cpu_model_efer_mask(const struct cpu_model *model);
uint64_t cpu_model_xcr0_mask(const struct cpu_model *model);	/* settable XCR0 bits; XSS has none */

/* Every leaf and subleaf that has contents, for engines that take a table: fn per entry. */
struct cpuid_entry { uint32_t leaf, subleaf; bool subleaf_matters; uint32_t reg[4]; };
void cpu_model_each(const struct cpu_model *model, unsigned vcpu, unsigned vcpus,
		    void (*fn)(void *opaque, const struct cpuid_entry *e), void *opaque);

/* Bytes of the XSAVE area for the components in mask. */
uint32_t cpu_xsave_size(uint64_t mask, bool compacted);
/* Where component 2, 5, 6, 7 or 9 lies in an area that was compacted for mask, or in the standard format. */
uint32_t cpu_xsave_offset(uint64_t mask, unsigned component, bool compacted);

#endif
