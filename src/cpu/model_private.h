/* What model.c (which features) and cpuid.c (how they are told) share. */
#ifndef VIXEN_CPU_MODEL_PRIVATE_H
#define VIXEN_CPU_MODEL_PRIVATE_H

#include "cpu/model.h"

struct cpu_model {
	char name[16];
	char brand[48];
	uint32_t vendor[3];		/* EBX, EDX, ECX of leaf 0 */
	uint32_t signature;		/* leaf 1 EAX */
	uint32_t amd_cache[8];		/* leaves 0x80000005 and 6 */
	bool amd;
	bool has[FEATURE_COUNT];
	uint64_t tsc_hz;
	bool kvmclock;
};

struct cpu_feature { uint32_t leaf; uint8_t subleaf, reg, bit; };
extern const struct cpu_feature cpu_features[FEATURE_COUNT];

#endif
