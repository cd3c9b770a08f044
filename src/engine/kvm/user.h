/*
 * Guest kernels in software, user code in KVM: what the engine is on a host whose KVM emulates kernels.
 *
 *   user.c        the engine's operations, and when a visit to KVM pays
 *   user_visit.c  one visit: state in, run, state out
 *   user_pages.c  the pages around user code in KVM: page table root, IDT, TSS; what became of guest page tables
 */
#ifndef VIXEN_ENGINE_KVM_USER_H
#define VIXEN_ENGINE_KVM_USER_H

#include "engine/kvm/kick.h"
#include "engine/kvm/kvm_private.h"

/* A vCPU's own pages, in a KVM slot of their own, mapped by an entry of the root that the guest leaves free. */
enum { USER_ROOT, USER_PDPT, USER_PD, USER_PT, USER_IDT, USER_CODE, USER_TSS, USER_STACK, USER_PAGES };
#define USER_BYTES (USER_PAGES * GUEST_PAGE_SIZE)
#define USER_GPA 0xfef00000ull		/* of vCPU 0's; below the BIOS, where no RAM is */
#define USER_STUB 4			/* USER_CODE: bytes of HLT per vector */
#define USER_SYSCALL 0x800		/* USER_CODE: where SYSCALL lands */

struct user_table { uint64_t gpa; unsigned level, stamp; uint64_t *copy; };
#define USER_TABLES 1024
#define USER_BUCKETS 4096

struct user_cpu {
	struct vcpu *v;
	uint8_t *page;			/* USER_BYTES */
	uint64_t gpa, va;		/* of page[0] */
	unsigned root_index;		/* entry of the root that maps them; 0: not built */
	uint16_t cs;			/* selector in the IDT's gates */
	/* Guest tables that KVM may have looked at since it was last made to forget all, as they were then. */
	uint64_t cr3, gdt_gpa[2];
	struct user_table table[USER_TABLES];
	uint16_t bucket[USER_BUCKETS];	/* 1 + index of a table; 0: free */
	unsigned tables, stamp, levels;
	bool stale, trap;		/* trap: the visit ended in a single-step trap */
	/* when to visit */
	struct kick_timer timer;
	bool timer_made, off;
	_Atomic bool armed, tick;	/* the timer runs; it has fired */
	uint64_t wait_ns;
	int stats_fd;
	uint64_t stats_at;		/* offset of the number of exits; 0: unknown */
	_Atomic uint64_t visits;
	struct kvm_sregs base;		/* as KVM had them at the start */
};

uint64_t kvm_user_visits(struct vcpu *v);	/* so far; any thread */

/* --- user_pages.c --- */
int user_pages_init(struct user_cpu *u);	/* 0 or -errno */
void user_pages_fini(struct user_cpu *u);
/* Makes KVM see the guest's page tables as they are now. false: not for KVM. */
bool user_pages_enter(struct user_cpu *u, const struct x86_state *s);
/* KVM set accessed and dirty bits: remembered. */
void user_pages_leave(struct user_cpu *u);

/* --- user_visit.c --- */
bool user_visit_possible(struct user_cpu *u, const struct x86_state *s);
/* From user code in s until it ends or a kick comes; false: KVM failed, e is filled. */
bool user_visit(struct user_cpu *u, struct x86_state *s, struct error *e);
int user_visit_init(struct user_cpu *u);	/* what KVM is told once */

/* fallback_soft.c */
struct x86_state *soft_state(struct vcpu *soft);
/* User code's registers were. trap: behind an instruction that was single-stepped. */
void soft_state_changed(struct vcpu *soft, bool trap);

#endif
