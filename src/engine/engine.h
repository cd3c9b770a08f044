/*
 * The one interface of both CPU engines.
 *
 *   machine/ --create--> engine_ops --run until exit--> machine/ run loop
 *
 * PIO and MMIO are carried out by the engine itself through memory/map.h; what
 * comes back to the run loop is only what the machine must decide.
 */
#ifndef VIXEN_ENGINE_ENGINE_H
#define VIXEN_ENGINE_ENGINE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/error.h"
#include "cpu/state.h"

struct map;
struct engine;		/* one per VM */
struct vcpu;		/* one per vCPU */
struct cpu_model;	/* cpu/model.h: CPUID leaves and what follows from them */

enum exit_reason {
	EXIT_KICKED,	/* somebody called kick(): look at requests, run again */
	EXIT_HALT,	/* HLT with nothing pending: sleep in vcpu_wiring.halt_wait, then run again */
	EXIT_SHUTDOWN,	/* triple fault */
	EXIT_DEBUG,	/* something of the debugger's plan happened: ops->debug_get says what */
	EXIT_FAILED,	/* the host or the engine gave up; *error says why */
};

/* What the board gives a vCPU. All are called on the vCPU's thread with `opaque`. */
struct vcpu_wiring {
	void *opaque;
	unsigned index;		/* 0..15; APIC ID is the same */
	/* Interrupts (soft engine; in-kernel irqchip on KVM). pending: cheap, no side effects. */
	bool (*irq_pending)(void *opaque);
	int  (*irq_ack)(void *opaque);			/* vector 0..255, or -1: went away */
	bool (*nmi_take)(void *opaque);			/* one NMI of those that came */
	uint8_t (*get_tpr)(void *opaque);		/* CR8 */
	void (*set_tpr)(void *opaque, uint8_t tpr);
	/* MSRs that belong to devices: APIC base, x2APIC 0x800-0x8ff, TSC deadline 0x6e0.
	 * false: not mine (the engine raises #GP or handles it). */
	bool (*msr_read)(void *opaque, uint32_t msr, uint64_t *value);
	bool (*msr_write)(void *opaque, uint32_t msr, uint64_t value);
};

struct engine_config {
	struct map *map;
	const struct cpu_model *model;
	unsigned vcpus;
	uint64_t tsc_hz;	/* guest TSC frequency */
	bool interpret_only;	/* soft: no translator (tests) */
	/* soft: called with each line of a trace; everything is interpreted then. On vCPUs' threads. NULL: none. */
	void (*trace)(void *opaque, const char *line, size_t n);
	void *trace_opaque;
	/* soft: called with a line for perf's map when code was translated. On vCPUs' threads. NULL: none. */
	void (*code_made)(void *opaque, const char *line, size_t n);
	void *code_opaque;
	bool host_tsc;		/* soft: the guest's TSC is the host's, plus the vCPU's offset */
};

/*
 * A debugger outside of the guest: where its vCPUs stop. The guest sees none of it, neither in memory nor in its
 * debug registers or flags.
 *
 * A vCPU stops before the instruction at a breakpoint, and after the instruction that touched what is watched. While
 * it steps, run() carries out one instruction (one iteration of a REP) and delivers no interrupt; if it was halted it
 * waits for the next interrupt instead and stops at the handler's first instruction. A breakpoint at the
 * instruction that is stepped does not count.
 */
enum debug_kind { DEBUG_BREAK, DEBUG_WRITE, DEBUG_READ, DEBUG_ACCESS };
struct debug_point { uint64_t gva; uint32_t bytes; uint8_t kind; };
#define DEBUG_POINTS 64
#define DEBUG_WATCH_BYTES 4096u		/* at most, by one point */
struct debug_plan {
	bool step;
	unsigned count;
	struct debug_point point[DEBUG_POINTS];
};
enum debug_why { DEBUG_NOTHING, DEBUG_STEPPED, DEBUG_AT_BREAK, DEBUG_WATCHED };
struct debug_stop {
	enum debug_why why;
	struct debug_point point;	/* the one that was met */
};

typedef void counter_fn(void *opaque, const char *group, const char *name, uint64_t count);

struct engine_ops {
	const char *name;	/* "soft", "kvm" */
	int  (*create)(struct engine **out, const struct engine_config *cfg, struct error *e);
	void (*destroy)(struct engine *en);
	int  (*vcpu_create)(struct vcpu **out, struct engine *en, const struct vcpu_wiring *w, struct error *e);
	void (*vcpu_destroy)(struct vcpu *v);
	enum exit_reason (*run)(struct vcpu *v, struct error *e);	/* on the vCPU's own thread */
	/* Makes run() return EXIT_KICKED soon, or notice irq_pending; any thread, async-signal-safe.
	 * Sticky: a kick before run() makes the next run() look. */
	void (*kick)(struct vcpu *v);
	/* vCPU not running, or on its own thread. set_state flushes what caches it. */
	void (*get_state)(struct vcpu *v, struct x86_state *out);
	void (*set_state)(struct vcpu *v, const struct x86_state *in);
	uint64_t (*tsc)(struct vcpu *v);	/* the guest TSC now; any thread */
	/* The vCPU was kept from running, from outside, and now goes on: a guest with a kvmclock is told there, so that its
	 * watchdogs do not take it for a lockup. On the vCPU's thread; soft: on any. NULL: there is no kvmclock. */
	void (*stood_still)(struct vcpu *v);
	/* CR8, which is no part of the state: it is the local APIC's. As get_state. */
	uint8_t (*get_cr8)(struct vcpu *v);
	void (*set_cr8)(struct vcpu *v, uint8_t cr8);
	/* Replaces the vCPU's plan. -ENOSPC: more points than it has; -ENOTSUP: a point of a kind, or -EINVAL: of a size
	 * or alignment, that it cannot have. Then the old plan stands. The vCPU is not running, or on its own thread. */
	int  (*debug_set)(struct vcpu *v, const struct debug_plan *p);
	/* After EXIT_DEBUG. */
	void (*debug_get)(struct vcpu *v, struct debug_stop *out);
	/* What the vCPU did since it was created: a call for each number, group by group. As get_state. */
	void (*counters)(struct vcpu *v, counter_fn *each, void *opaque);
	/* KVM only: in-kernel irqchip; NULL on soft. */
	const struct engine_irqchip_ops *irqchip;
};

/* With an in-kernel irqchip the board routes lines and MSIs here instead of to its own devices, and has no 8254.
 * Doorbells need no call: the engine hears of them from the map. Any thread. */
#define ENGINE_GSI_8259 24	/* + n: the 8259s' IRQ n and nothing else */
struct engine_irqchip_ops {
	/* 0..15: ISA IRQs, at 8259s and IO-APIC (IRQ 0: pin 2); 16..23: IO-APIC pins. */
	void (*set_gsi)(struct engine *en, unsigned gsi, bool level);
	void (*send_msi)(struct engine *en, uint64_t gpa, uint32_t data);
	void (*set_hpet_legacy)(struct engine *en, bool on);	/* the HPET stands in for the 8254 */
	/* For back ends in other processes: the eventfd sends the message. Route id or -errno. */
	int  (*add_irqfd)(struct engine *en, int fd, uint64_t msi_gpa, uint32_t msi_data);
	void (*del_irqfd)(struct engine *en, int fd, int route);
};

/* engine_kvm_user: on hosts whose KVM emulates guest kernels; they run in software, and user code on KVM. */
extern const struct engine_ops engine_soft, engine_kvm, engine_kvm_user;

#endif
