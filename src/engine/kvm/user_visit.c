/*
 * One visit of user code to KVM.
 *
 *   software's state -> KVM_RUN -> HLT in USER_CODE: an exception, SYSCALL | MMIO: carried out | EINTR: a kick
 *                              -> software's state, at the instruction that could not go on in user mode
 *
 * Nothing is delivered here. A fault is forgotten: the software engine executes the instruction once more and
 * finds it itself, and what happens then is exact. SYSCALL, INT3 and INT1 come after the fact, and are taken back.
 */
#include <errno.h>
#include <string.h>
#include <sys/ioctl.h>

#include "cpu/mmu.h"
#include "cpu/msr.h"
#include "engine/kvm/user.h"

#define DR6_BS (1u << 14)
#define DR6_RESET 0xffff0ff0u
#define CR4_SHARED (CR4_DE | CR4_PAE | CR4_PGE | CR4_OSFXSR | CR4_OSXMMEXCPT | CR4_FSGSBASE | CR4_OSXSAVE)

struct user_regs { uint64_t rip, cs, rflags, rsp, ss; };	/* as an exception pushes them */

/* --- in --- */

/* KVM gets four levels of tables of a guest's five. */
static bool four_levels(uint64_t gva) { return (uint64_t)((int64_t)(gva << 16) >> 16) == gva; }

/* What KVM would have to know more about, or would not leave alone, stays in software. */
bool user_visit_possible(struct user_cpu *u, const struct x86_state *s)
{
	const uint64_t flags = FLAG_TF | FLAG_RF | FLAG_VM | FLAG_NT | FLAG_IOPL, mode = CR0_PE | CR0_PG;

	return !u->off && state_long(s) && state_cpl(s) == 3 && !(s->rflags & flags) && !s->shadow &&
	       (s->cr0 & (mode | CR0_TS | CR0_EM)) == mode && (s->cr4 & CR4_PAE) && (s->cr4 & CR4_OSFXSR) &&
	       !(s->cr4 & (CR4_TSD | CR4_PKE)) && !(s->dr[7] & 0xff) && !(s->ldtr.selector & 0xfffc) &&
	       !s->tsc_offset && !s->event_valid && s->activity == ACTIVITY_RUNNING &&
	       four_levels(s->rip) && four_levels(s->gdtr.base) && four_levels(s->seg[SEG_FS].base) &&
	       four_levels(s->seg[SEG_GS].base);
}

int user_visit_init(struct user_cpu *u)
{
	uint64_t offset = 0;
	struct kvm_device_attr tsc = { .group = KVM_VCPU_TSC_CTRL, .attr = KVM_VCPU_TSC_OFFSET,
				       .addr = (uint64_t)(uintptr_t)&offset };

	ioctl(u->v->fd, KVM_SET_DEVICE_ATTR, &tsc);	/* where there is no such attribute, the TSC is the host's */
	return ioctl(u->v->fd, KVM_GET_SREGS, &u->base) < 0 ? -errno : 0;
}

static bool set_sregs(struct user_cpu *u, const struct x86_state *s)
{
	struct kvm_sregs k = u->base;

	k.es = kvm_seg_set(&s->seg[SEG_ES]);
	k.cs = kvm_seg_set(&s->seg[SEG_CS]);
	k.ss = kvm_seg_set(&s->seg[SEG_SS]);
	k.ds = kvm_seg_set(&s->seg[SEG_DS]);
	k.fs = kvm_seg_set(&s->seg[SEG_FS]);
	k.gs = kvm_seg_set(&s->seg[SEG_GS]);
	k.ldt = (struct kvm_segment){ .type = 2, .unusable = 1 };
	k.tr = (struct kvm_segment){ .base = u->va + USER_TSS * GUEST_PAGE_SIZE, .limit = 0x67, .selector = 0x40,
				     .type = 11, .present = 1 };
	k.gdt = (struct kvm_dtable){ .base = s->gdtr.base, .limit = s->gdtr.limit };
	k.idt = (struct kvm_dtable){ .base = u->va + USER_IDT * GUEST_PAGE_SIZE, .limit = 0xfff };
	k.cr0 = CR0_PE | CR0_PG | CR0_ET | CR0_NE | CR0_WP | (s->cr0 & (CR0_AM | CR0_MP));
	k.cr3 = u->gpa;
	k.cr4 = s->cr4 & CR4_SHARED;
	k.efer = EFER_SCE | EFER_LME | EFER_LMA | (s->efer & EFER_NXE);
	return ioctl(u->v->fd, KVM_SET_SREGS, &k) == 0;
}

static bool set_msrs(struct user_cpu *u, const struct x86_state *s)
{
	const uint64_t entry = u->va + USER_CODE * GUEST_PAGE_SIZE + USER_SYSCALL;
	struct { struct kvm_msrs head; struct kvm_msr_entry e[6]; } t = { .head.nmsrs = 6, .e = {
		{ .index = MSR_STAR, .data = (uint64_t)u->cs << 32 | (s->star & 0xffff000000000000ull) },
		{ .index = MSR_LSTAR, .data = entry }, { .index = MSR_CSTAR, .data = entry },
		{ .index = MSR_SFMASK, .data = FLAG_TF | FLAG_IF | FLAG_DF | FLAG_NT | FLAG_AC },
		{ .index = MSR_SYSENTER_CS, .data = 0 }, { .index = MSR_TSC_AUX, .data = s->tsc_aux } } };

	return ioctl(u->v->fd, KVM_SET_MSRS, &t) >= 5;	/* not every CPU has TSC_AUX */
}

static bool state_in(struct user_cpu *u, const struct x86_state *s)
{
	struct kvm_vcpu_events none = { 0 };

	if (!set_sregs(u, s) || !set_msrs(u, s))
		return false;
	kvm_regs_set(u->v, s);
	kvm_fpu_set(u->v, s);
	return ioctl(u->v->fd, KVM_SET_VCPU_EVENTS, &none) == 0;
}

/* --- out --- */

static uint64_t code_byte(struct user_cpu *u, const struct x86_state *s, uint64_t gva)
{
	struct map *m = u->v->en->cfg.map;
	struct mmu_result r;
	uint32_t error;
	uint8_t byte = 0;

	if (mmu_walk(s, m, gva, MMU_USER | MMU_PEEK, &r, &error))
		map_read(m, r.gpa, &byte, 1);
	return byte;
}

/* A #DB: is DR6.BS set? It stays clear from then on, until the next single step. INT1 does not set it. */
static bool single_stepped(struct user_cpu *u)
{
	struct kvm_debugregs d;

	if (ioctl(u->v->fd, KVM_GET_DEBUGREGS, &d) < 0 || !(d.dr6 & DR6_BS))
		return false;
	d.dr6 = DR6_RESET;
	ioctl(u->v->fd, KVM_SET_DEBUGREGS, &d);
	return true;
}

/* Traps come behind their instruction: back to it. Others keep their place. The byte before a single step may look
 * like INT1, and TF may be clear behind it: POPF. */
static void step_back(struct user_cpu *u, struct x86_state *s, unsigned vector)
{
	uint64_t last = code_byte(u, s, s->rip - 1);

	if (vector == EXC_BP)
		s->rip -= last == 0xcc ? 1 : last == 3 ? 2 : 0;		/* INT3; INT 3 */
	else if (vector == EXC_DB && (single_stepped(u) || last != 0xf1))
		u->trap = true;
	else if (vector == EXC_DB || (vector == EXC_OF && last == 0xce))
		s->rip -= 1;
}

/* SYSCALL has put its return address into RCX and the flags into R11. */
static void undo_syscall(struct x86_state *s)
{
	s->rip = s->gpr[REG_RCX] - 2;
	s->rflags = (s->gpr[REG_R11] | FLAG_FIXED) & ~(uint64_t)FLAG_RF;
}

static bool pushes_error(unsigned vector)
{
	return vector < 32 && (0x60227d00u >> vector & 1);	/* 8, 10-14, 17, 21, 29, 30 */
}

/* User code may have loaded other segments: their descriptors are read again. */
static void segment_out(struct user_cpu *u, struct x86_state *s, unsigned seg, uint16_t selector)
{
	struct map *m = u->v->en->cfg.map;
	struct mmu_result r;
	uint64_t d;
	uint32_t error;

	if (s->seg[seg].selector == selector ||
	    !mmu_walk(s, m, s->gdtr.base + (selector & 0xfff8), MMU_PEEK, &r, &error) || !map_read(m, r.gpa, &d, 8))
		return;
	s->seg[seg] = (struct x86_segment){
		.selector = selector, .attr = (uint16_t)(d >> 40 & 0xf0ff),
		.base = (d >> 16 & 0xffffff) | (d >> 56 & 0xff) << 24, .limit = (uint32_t)((d & 0xffff) | (d >> 32 & 0xf0000)),
	};
	if (s->seg[seg].attr & SEG_ATTR_G)
		s->seg[seg].limit = s->seg[seg].limit << 12 | 0xfff;
}

/* At the HLT of a vector, or before it. The guest can have written anything into the frame. */
static bool from_stub(struct user_cpu *u, struct x86_state *s, uint64_t at)
{
	uint64_t stack = s->gpr[REG_RSP] - (u->va + USER_STACK * GUEST_PAGE_SIZE);
	unsigned vector = (unsigned)at / USER_STUB;
	struct user_regs f;

	if (at >= USER_SYSCALL) {
		undo_syscall(s);
		return true;
	}
	if (pushes_error(vector))
		stack += 8;
	if (stack > GUEST_PAGE_SIZE - sizeof(f))
		return false;
	memcpy(&f, u->page + USER_STACK * GUEST_PAGE_SIZE + stack, sizeof(f));
	s->rip = f.rip;
	s->gpr[REG_RSP] = f.rsp;
	s->rflags = (f.rflags | FLAG_FIXED) & ~(uint64_t)FLAG_RF;
	if (f.rip - u->va - USER_CODE * GUEST_PAGE_SIZE == USER_SYSCALL) {	/* a KVM that goes there in user mode */
		undo_syscall(s);
		return true;
	}
	segment_out(u, s, SEG_CS, (uint16_t)f.cs);
	segment_out(u, s, SEG_SS, (uint16_t)f.ss);
	step_back(u, s, vector);
	return true;
}

static void pending_out(struct user_cpu *u, struct x86_state *s)
{
	struct kvm_vcpu_events k;

	if (ioctl(u->v->fd, KVM_GET_VCPU_EVENTS, &k) == 0 && (k.exception.injected || k.exception.pending))
		step_back(u, s, k.exception.nr);
}

static void segments_out(struct x86_state *s, const struct kvm_sregs *k, bool user)
{
	s->seg[SEG_ES] = kvm_seg_get(&k->es);
	s->seg[SEG_DS] = kvm_seg_get(&k->ds);
	s->seg[SEG_FS] = kvm_seg_get(&k->fs);
	s->seg[SEG_GS] = kvm_seg_get(&k->gs);
	if (user) {
		s->seg[SEG_CS] = kvm_seg_get(&k->cs);
		s->seg[SEG_SS] = kvm_seg_get(&k->ss);
	}
}

/* s is as it went in. false: what KVM holds is no state of user code. */
static bool state_out(struct user_cpu *u, struct x86_state *s)
{
	const uint64_t keep = FLAGS_ARITH | FLAG_DF | FLAG_AC | FLAG_ID | FLAG_NT | FLAG_TF, flags = s->rflags, xcr0 = s->xcr0;
	struct kvm_sregs k;
	uint64_t code = u->va + USER_CODE * GUEST_PAGE_SIZE;
	bool user, right = true;

	if (ioctl(u->v->fd, KVM_GET_SREGS, &k) < 0)
		return false;
	user = k.cs.dpl == 3 || (k.cs.selector & 3) == 3;
	kvm_regs_get(u->v, s);
	kvm_fpu_get(u->v, s);
	s->xcr0 = xcr0;
	segments_out(s, &k, user);
	if (user && s->rip == code + USER_SYSCALL)
		undo_syscall(s);
	else if (user)
		pending_out(u, s);
	else if (s->rip - code < GUEST_PAGE_SIZE)
		right = from_stub(u, s, s->rip - code);
	else
		right = false;
	s->rflags = (flags & ~keep) | (s->rflags & keep) | FLAG_FIXED;
	return right;
}

/* --- the visit --- */

/* False: KVM failed. Whatever came, the visit is over. */
static bool run(struct user_cpu *u, struct error *e)
{
	struct vcpu *v = u->v;
	struct kvm_run *r = v->run;

	__atomic_store_n(&r->immediate_exit, 0, __ATOMIC_SEQ_CST);
	if (atomic_exchange(&v->kicked, false) || !atomic_load(&u->armed))
		return true;
	if (ioctl(v->fd, KVM_RUN, 0) < 0) {
		if (errno == EINTR || errno == EAGAIN)
			return true;
		error_errno(e, errno, "use --engine soft", "run the guest on KVM");
		return false;
	}
	switch (r->exit_reason) {
	case KVM_EXIT_HLT: case KVM_EXIT_INTR: return true;
	case KVM_EXIT_IO: case KVM_EXIT_MMIO: kvm_exit_device(v); return true;
	case KVM_EXIT_INTERNAL_ERROR:
		if (r->internal.suberror == KVM_INTERNAL_ERROR_EMULATION)
			return true;
		break;
	}
	error_set(e, EIO, "use --engine soft", "run the guest on KVM", "exit reason %u in user code", r->exit_reason);
	return false;
}

bool user_visit(struct user_cpu *u, struct x86_state *s, struct error *e)
{
	bool good;

	if (!user_pages_enter(u, s) || !state_in(u, s))
		return true;		/* nothing has happened yet: it stays in software */
	atomic_store(&u->v->tid, kick_accept());
	good = run(u, e);
	atomic_store(&u->v->tid, 0);
	atomic_fetch_add(&u->visits, 1);
	if (!good)
		return false;
	if (!state_out(u, s)) {
		error_set(e, EIO, "use --engine soft", "run the guest on KVM", "user code ended outside of itself");
		return false;
	}
	user_pages_leave(u);
	kvm_dirty_collect(u->v->en);
	return true;
}
