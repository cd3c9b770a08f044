/*
 * What the files of the KVM engine share.
 *
 *   kvm.c      life cycle                    slots.c     memory slots, dirty log, doorbells
 *   vcpu.c     run loop, exits, kicks        cpuid.c     what KVM is told of the CPU model
 *   irqchip.c  lines, MSIs, eventfds         state.c     x86_state <-> KVM
 *   debug.c    a debugger's breakpoints
 *   fallback.c, fallback_soft.c              instructions KVM gives up on, by the interpreter
 *   user*.c                                  the other engine: only user code in KVM (user.h)
 */
#ifndef VIXEN_ENGINE_KVM_PRIVATE_H
#define VIXEN_ENGINE_KVM_PRIVATE_H

#include <linux/kvm.h>
#include <pthread.h>
#include <stdatomic.h>

#include "engine/engine.h"
#include "memory/map.h"

#define KVM_SLOTS 64
#define KVM_ROUTES 1024
#define KVM_GSI_MSI 40		/* below: IO-APIC and 8259, from ENGINE_GSI_8259 on 8259 only */
#define KVM_MSRS 96
#define KVM_EXITS 32

struct kvm_slot { bool used; struct ram_slot ram; };
struct kvm_bell { uint64_t gpa; unsigned size; int fd; };

struct engine {
	int dev_fd, vm_fd;
	size_t run_bytes;
	struct engine_config cfg;
	bool user_only;			/* engine_kvm_user: no irqchip, and the software engine runs kernels */
	bool fails_to_us;		/* KVM leaves every failed emulation to us, and raises nothing itself */
	uint64_t tsc_hz, start_ns;
	unsigned nmsrs;			/* those of the state that this host's KVM has */
	uint32_t msr[KVM_MSRS];		/* indices into state.c's table */
	pthread_mutex_t slot_lock;		/* slot, logging */
	struct kvm_slot slot[KVM_SLOTS];
	bool logging;
	pthread_mutex_t route_lock;		/* route */
	struct { bool used; uint64_t gpa; uint32_t data; } route[KVM_ROUTES];
	pthread_mutex_t soft_lock;		/* soft */
	struct engine *soft;			/* the interpreter's engine; user_only: all of it */
};

struct vcpu {
	struct engine *en;
	struct vcpu_wiring w;
	int fd;
	struct kvm_run *run;
	_Atomic bool kicked;
	_Atomic int tid;		/* the thread inside run(); 0: none */
	bool unfinished;		/* an I/O exit that KVM completes on the next entry */
	uint64_t tsc_offset;
	struct vcpu *soft;
	struct user_cpu *user;		/* user_only */
	struct debug_plan plan;
	struct debug_stop stop;
	uint64_t exits[KVM_EXITS];	/* by reason; 0: the rest. Read while it is stopped */
	_Atomic uint64_t fallbacks;	/* instructions that the interpreter executed */
};

extern const struct engine_irqchip_ops kvm_irqchip_ops;
int kvm_routes_commit(struct engine *en);

/* slots.c */
int kvm_slots_update(struct engine *en);
void kvm_listen(struct engine *en);
void kvm_dirty_collect(struct engine *en);	/* what KVM's log has goes into the map's; written code is reported */

int kvm_cpuid_set(struct vcpu *v);

void kvm_msrs_find(struct engine *en, int vcpu_fd);
void kvm_get_state(struct vcpu *v, struct x86_state *out);
void kvm_set_state(struct vcpu *v, const struct x86_state *in);
/* Writes what differs between the two. */
void kvm_set_changes(struct vcpu *v, const struct x86_state *old, const struct x86_state *in);
void kvm_regs_get(struct vcpu *v, struct x86_state *s);
void kvm_regs_set(struct vcpu *v, const struct x86_state *s);
void kvm_fpu_get(struct vcpu *v, struct x86_state *s);
void kvm_fpu_set(struct vcpu *v, const struct x86_state *s);
struct x86_segment kvm_seg_get(const struct kvm_segment *k);
struct kvm_segment kvm_seg_set(const struct x86_segment *s);
uint8_t kvm_get_cr8(struct vcpu *v);
void kvm_set_cr8(struct vcpu *v, uint8_t cr8);
uint64_t kvm_tsc_base(const struct engine *en);

/* debug.c */
int kvm_debug_set(struct vcpu *v, const struct debug_plan *p);
void kvm_debug_get(struct vcpu *v, struct debug_stop *out);
void kvm_counters(struct vcpu *v, counter_fn *each, void *opaque);
void kvm_debug_note(struct vcpu *v);	/* after KVM_EXIT_DEBUG */

/* Executes one instruction at the vCPU's RIP. -errno with e filled; 1: the vCPU shut down. */
int kvm_fallback_step(struct vcpu *v, struct error *e);
void kvm_fallback_free(struct vcpu *v);
/* fallback_soft.c: `soft` is a vCPU of the software engine. */
void fallback_execute(struct vcpu *soft, struct x86_state *s);

int kvm_vcpu_create(struct vcpu **out, struct engine *en, const struct vcpu_wiring *w, struct error *e);
void kvm_vcpu_destroy(struct vcpu *v);
enum exit_reason kvm_vcpu_run(struct vcpu *v, struct error *e);
void kvm_vcpu_kick(struct vcpu *v);
/* Carries out an I/O or MMIO exit and lets KVM complete the instruction. */
void kvm_exit_device(struct vcpu *v);

int kvm_engine_create(struct engine **out, const struct engine_config *cfg, bool user_only, struct error *e);
void kvm_engine_destroy(struct engine *en);

#endif
