/*
 * kvmclock: a clock in the guest's own memory, made of its TSC (Linux' Documentation/virt/kvm/x86/msr.rst).
 *
 * MSR_KVM_SYSTEM_TIME   bit 0: on; the rest: where this vCPU's record lies
 * MSR_KVM_WALL_CLOCK    where the host writes, once for each write, what the time of day was when the clock stood at 0
 *
 *    0        4     8                16               24         28      29      30    32
 *    +--------+-----+----------------+----------------+----------+-------+-------+-----+
 *    | version| -   | tsc_timestamp  | system_time    | mul      | shift | flags | -   |
 *    +--------+-----+----------------+----------------+----------+-------+-------+-----+
 *    ns = system_time + ((TSC - tsc_timestamp) << shift) * mul / 2^32        (shift < 0: to the right)
 *
 * The guest's TSC is a count of CLOCK_BOOTTIME from the engine's creation, plus the vCPU's offset. So tsc_timestamp is that
 * offset and system_time is 0 in every record there ever is: no rewrite of a record makes the clock step, and all vCPUs
 * have the same.
 *
 * Records are written by any thread, under soft_clock.lock. A record that does not lie in one page of RAM is not written,
 * and the guest is not told, as with KVM.
 */
#ifndef VIXEN_ENGINE_SOFT_KVMCLOCK_H
#define VIXEN_ENGINE_SOFT_KVMCLOCK_H

#include "engine/soft/soft.h"

void kvmclock_init(struct soft_engine *en);
void kvmclock_fini(struct soft_engine *en);

/* On the vCPU's thread: the guest has written such an MSR (it is in v->s), or has moved its TSC. */
void kvmclock_msr_written(struct vcpu *v, uint32_t msr);
void kvmclock_tsc_moved(struct vcpu *v);
/* v->s is another. */
void kvmclock_state_set(struct vcpu *v);
/* Any thread: see engine_ops.stood_still. */
void kvmclock_stood_still(struct vcpu *v);

#endif
