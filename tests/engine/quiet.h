/* What a vCPU is wired to in tests that have no devices: nothing interrupts it, no MSR is theirs. */
#ifndef VIXEN_TESTS_ENGINE_QUIET_H
#define VIXEN_TESTS_ENGINE_QUIET_H

#include "engine/engine.h"

static inline bool quiet_no(void *opaque) { return false; }
static inline int quiet_ack(void *opaque) { return -1; }
static inline uint8_t quiet_tpr(void *opaque) { return 0; }
static inline void quiet_set_tpr(void *opaque, uint8_t tpr) { }
static inline bool quiet_rdmsr(void *opaque, uint32_t msr, uint64_t *value) { return false; }
static inline bool quiet_wrmsr(void *opaque, uint32_t msr, uint64_t value) { return false; }

static const struct vcpu_wiring vcpu_quiet = {
	.irq_pending = quiet_no, .irq_ack = quiet_ack, .nmi_take = quiet_no, .get_tpr = quiet_tpr, .set_tpr = quiet_set_tpr,
	.msr_read = quiet_rdmsr, .msr_write = quiet_wrmsr,
};

#endif
