/*
 * The software engine: what the vCPUs of one VM share, and the interpreter's private part of each.
 *
 *   soft.c      create, run loop, kick, state, TSC        mem.c    guest memory; tlb.c its translations
 *   code.c      which RAM holds code, who wrote to it     event.c  exceptions, interrupts, IRET's partner
 *   msr.c       MSRs                               kvmclock.c  those of KVM's clock
 *   interp*.c   decoded blocks and the instructions       segment.c task.c  descriptors and tasks
 */
#ifndef VIXEN_ENGINE_SOFT_SOFT_H
#define VIXEN_ENGINE_SOFT_SOFT_H

#include <pthread.h>

#include "engine/soft/vcpu.h"

#define SOFT_MAX_VCPUS 32

#define likely(x) __builtin_expect(!!(x), 1)
#define unlikely(x) __builtin_expect(!!(x), 0)

/* One per RAM page. All atomic, any thread. */
struct code_page {
	_Atomic uint64_t lines;		/* 64-byte lines from which code was decoded or translated */
	_Atomic uint32_t version;	/* bumped when such a line is written: older code is stale */
	_Atomic uint32_t writers;	/* vCPUs that may hold a TLB entry allowing writes */
	_Atomic uint64_t place;		/* where those entries are: tlb.h */
};

#define TSC_SHIFT 48

/* kvmclock.h. What publishing a record takes: copies of the vCPUs' state, so that any thread may. */
struct soft_clock {
	pthread_mutex_t lock;		/* all but mul and shift */
	uint32_t mul;
	int8_t shift;
	bool apart;			/* a guest with several vCPUs has moved a TSC */
	struct { uint64_t system_time, tsc_offset; } cpu[SOFT_MAX_VCPUS];
};

struct soft_engine {
	struct map *map;
	const struct cpu_model *model;
	struct vcpu *vcpu[SOFT_MAX_VCPUS];
	unsigned vcpu_total;		/* as configured */
	bool interpret_only;
	void (*trace)(void *opaque, const char *line, size_t n);	/* as in engine_config */
	void *trace_opaque;
	void (*code_made)(void *opaque, const char *line, size_t n);
	void *code_opaque;
	uint64_t tsc_hz, tsc_start_ns;
	uint64_t tsc_scale;		/* ticks per ns, times 2^TSC_SHIFT */
	bool host_tsc;
	struct soft_clock clock;
	pthread_mutex_t split_lock;	/* LOCKed accesses that no single host instruction can do */
	struct translator *translator;	/* NULL: interpret only */
	struct fp_stubs *fp_stubs;	/* engine/soft/fp_stub.h */
	struct code_page *code;		/* [ram_pages] */
	pthread_mutex_t watch_lock;	/* of code_watch() */
	_Atomic bool watching;		/* and somebody has it */
	uint64_t ram_pages;
	/* The translator's hook: this RAM page's code was written to; all of it is stale and no longer
	 * watched. lines: what was watched. Any thread. */
	void (*code_invalidated)(struct soft_engine *en, uint32_t ram_page, uint64_t lines);
};

/* --- code.c: self- and cross-modifying code --- */

/* Called by a vCPU before it reads code bytes [first, last] of a RAM page (page offsets), and after it has read the page's
 * version. After it returns every write to those lines, by anybody, bumps the version. The caller is at a block boundary (holds no host
 * pointer from the TLB): it may wait for other vCPUs to drop their TLB entries. */
void code_watch(struct vcpu *v, const struct page_info *pi, unsigned first, unsigned last);
/* Forgets this vCPU's permission to write the page at rw_hva past the slow path; NULL: any page. place: its
 * code_page.place. */
void tlb_drop_writes(struct vcpu *v, const uint8_t *rw_hva, uint64_t place);
/* After [first, last] of a page has been written, by a vCPU or by a device. */
void code_wrote(struct soft_engine *en, uint32_t ram_page, unsigned first, unsigned last);
static inline uint32_t code_version(struct soft_engine *en, uint32_t ram_page)
{
	return atomic_load_explicit(&en->code[ram_page].version, memory_order_acquire);
}

/* --- counters.c --- */
void soft_counters(struct vcpu *v, counter_fn *each, void *opaque);

/* --- soft.c --- */
/* Leaves the x87 and vector state alone: the guest's may be live. */
uint64_t soft_tsc(struct vcpu *v);
void vcpu_request(struct vcpu *v, uint32_t bits);
/* Handles REQUEST_DROP_WRITES; block boundaries, and where code is watched. */
void vcpu_service(struct vcpu *v);
/* Makes t give up every permission to write past the slow path before it executes anything more, and waits for
 * that: what t wrote before has landed then. Never on t's own thread. */
void vcpu_drop_writes(struct vcpu *t);
/* Delivers v->fault, and what goes wrong on the way; false on triple fault. The caller's setjmp on
 * v->fault_jmp must be live: delivery itself may raise again. */
bool vcpu_deliver_fault(struct vcpu *v);

#endif
