#include "engine/soft/kvmclock.h"

#include <string.h>
#include <time.h>

#include "cpu/model.h"
#include "cpu/msr.h"

#define NS 1000000000u
#define FLAG_TSC_STABLE 1u	/* the clock may be read by any vCPU's record and TSC */
#define FLAG_GUEST_STOPPED 2u	/* set by the host, cleared by the guest */

struct record {
	uint32_t version;	/* odd while it is being written */
	uint32_t pad;
	uint64_t tsc_timestamp, system_time;
	uint32_t mul;
	int8_t shift;
	uint8_t flags, pad2[2];
};
_Static_assert(sizeof(struct record) == 32, "as the guest has it");

struct wall_clock { uint32_t version, sec, nsec; };

/* 2^31 <= mul < 2^32, rounded down: Linux divides by it to get the TSC's rate, and cuts off. */
static uint32_t scale(uint64_t tsc_hz, int8_t *shift)
{
	int s = 0;

	while (((unsigned __int128)NS << (32 - s)) / tsc_hz < 1ull << 31)
		s--;
	while (((unsigned __int128)NS << (32 - s)) / tsc_hz >= 1ull << 32)
		s++;
	*shift = (int8_t)s;
	return (uint32_t)(((unsigned __int128)NS << (32 - s)) / tsc_hz);
}

void kvmclock_init(struct soft_engine *en)
{
	pthread_mutex_init(&en->clock.lock, NULL);
	en->clock.mul = scale(en->tsc_hz, &en->clock.shift);
}

void kvmclock_fini(struct soft_engine *en) { pthread_mutex_destroy(&en->clock.lock); }

/* What the guest computes from a record now. */
static uint64_t clock_ns(struct vcpu *v)
{
	const struct soft_clock *c = &v->en->clock;
	uint64_t ticks = soft_tsc(v) - v->s.tsc_offset;

	ticks = c->shift < 0 ? ticks >> -c->shift : ticks << c->shift;
	return (uint64_t)((unsigned __int128)ticks * c->mul >> 32);
}

/* Version first and last: who reads an odd one, or not the same again, reads once more. */
static void place(struct soft_engine *en, uint64_t gpa, uint8_t *to, const void *body, size_t len)
{
	uint32_t version;

	memcpy(&version, to, sizeof(version));
	version = (version + 1) | 1;
	memcpy(to, &version, sizeof(version));
	atomic_thread_fence(memory_order_release);
	memcpy(to + sizeof(version), (const uint8_t *)body + sizeof(version), len - sizeof(version));
	atomic_thread_fence(memory_order_release);
	version++;
	memcpy(to, &version, sizeof(version));
	map_wrote(en->map, gpa, len);
}

/* NULL: not in one page of RAM. */
static uint8_t *find(struct soft_engine *en, uint64_t gpa, size_t len)
{
	return (gpa & ~GUEST_PAGE_MASK) + len <= GUEST_PAGE_SIZE ? map_ptr(en->map, gpa, len, true) : NULL;
}

/* With the lock. stopped: FLAG_GUEST_STOPPED or 0. */
static void publish(struct soft_engine *en, unsigned cpu, uint8_t stopped)
{
	const struct soft_clock *c = &en->clock;
	uint64_t msr = c->cpu[cpu].system_time, gpa = msr & ~1ull;
	uint8_t *to = msr & 1 ? find(en, gpa, sizeof(struct record)) : NULL, flags;
	struct record r = { .tsc_timestamp = c->cpu[cpu].tsc_offset, .mul = c->mul, .shift = c->shift };

	if (!to)
		return;
	flags = to[offsetof(struct record, flags)] & FLAG_GUEST_STOPPED;
	if (stopped && flags)
		return;		/* it is told already; and who steps through a read of the clock gets to its end */
	r.flags = flags | stopped | (c->apart ? 0 : FLAG_TSC_STABLE);
	place(en, gpa, to, &r, sizeof(r));
}

static void wall_clock_write(struct vcpu *v)
{
	uint64_t gpa = v->s.kvm_wall_clock, ns;
	uint8_t *to = find(v->en, gpa, sizeof(struct wall_clock));
	struct timespec now;

	if (!gpa || !to)
		return;
	clock_gettime(CLOCK_REALTIME, &now);
	ns = (uint64_t)now.tv_sec * NS + (uint64_t)now.tv_nsec - clock_ns(v);
	pthread_mutex_lock(&v->en->clock.lock);
	place(v->en, gpa, to, &(struct wall_clock){ .sec = (uint32_t)(ns / NS), .nsec = (uint32_t)(ns % NS) },
	      sizeof(struct wall_clock));
	pthread_mutex_unlock(&v->en->clock.lock);
}

void kvmclock_msr_written(struct vcpu *v, uint32_t msr)
{
	struct soft_clock *c = &v->en->clock;

	if (msr == MSR_KVM_WALL_CLOCK) {
		wall_clock_write(v);
	} else if (msr == MSR_KVM_SYSTEM_TIME) {
		pthread_mutex_lock(&c->lock);
		c->cpu[v->w.index].system_time = v->s.kvm_system_time;
		publish(v->en, v->w.index, 0);
		pthread_mutex_unlock(&c->lock);
	}
}

/* From then on its TSC and those of others are not one clock. */
void kvmclock_tsc_moved(struct vcpu *v)
{
	struct soft_clock *c = &v->en->clock;

	pthread_mutex_lock(&c->lock);
	if (c->cpu[v->w.index].tsc_offset != v->s.tsc_offset) {
		c->cpu[v->w.index].tsc_offset = v->s.tsc_offset;
		c->apart = v->en->vcpu_total > 1;
		for (unsigned i = 0; i < SOFT_MAX_VCPUS; i++)
			publish(v->en, i, 0);
	}
	pthread_mutex_unlock(&c->lock);
}

void kvmclock_state_set(struct vcpu *v)
{
	struct soft_clock *c = &v->en->clock;
	unsigned i = v->w.index;

	pthread_mutex_lock(&c->lock);
	if (c->cpu[i].system_time != v->s.kvm_system_time || c->cpu[i].tsc_offset != v->s.tsc_offset) {
		c->cpu[i].system_time = v->s.kvm_system_time;
		c->cpu[i].tsc_offset = v->s.tsc_offset;
		publish(v->en, i, 0);
	}
	pthread_mutex_unlock(&c->lock);
}

void kvmclock_stood_still(struct vcpu *v)
{
	pthread_mutex_lock(&v->en->clock.lock);
	publish(v->en, v->w.index, FLAG_GUEST_STOPPED);
	pthread_mutex_unlock(&v->en->clock.lock);
}
