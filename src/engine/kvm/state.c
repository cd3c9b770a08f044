/*
 * The architectural state between struct x86_state and KVM.
 *
 * Order when setting: sregs before MSRs (EFER), XCR0 before the XSAVE area, events last.
 */
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>

#include "cpu/model.h"
#include "cpu/msr.h"
#include "engine/kvm/kvm_private.h"

/* --- MSRs --- */

enum { KIND_STATE, KIND_CONST, KIND_AMD };
#define IGNORE 0
#define ARCH_CAPABILITIES 0
struct msr_field { uint32_t index; uint16_t offset; uint8_t kind; };
static const struct msr_field msr_fields[] = {
#define X86_MSR(name, index, kind, field, ...) { index, offsetof(struct x86_state, field), KIND_##kind },
#include "cpu/msr.def"
#undef X86_MSR
	{ MSR_TSC_ADJUST, offsetof(struct x86_state, tsc_adjust), KIND_STATE },
};
#define MSR_FIELDS (sizeof(msr_fields) / sizeof(msr_fields[0]))

/* Those that travel in kvm_sregs. */
static bool msr_in_sregs(uint32_t index)
{
	return index == MSR_EFER || index == MSR_APIC_BASE || index == MSR_FS_BASE || index == MSR_GS_BASE;
}

struct msr_table { struct kvm_msrs head; struct kvm_msr_entry entry[MSR_FIELDS]; };
_Static_assert(MSR_FIELDS <= KVM_MSRS, "room in struct engine");

/* KVM stops at the first MSR that it does not know: so we ask for each once. */
void kvm_msrs_find(struct engine *en, int vcpu_fd)
{
	for (unsigned i = 0; i < MSR_FIELDS; i++) {
		struct msr_table t = { .head.nmsrs = 1, .entry[0].index = msr_fields[i].index };
		if (msr_fields[i].kind == KIND_STATE && !msr_in_sregs(msr_fields[i].index) &&
		    ioctl(vcpu_fd, KVM_GET_MSRS, &t) == 1)
			en->msr[en->nmsrs++] = i;
	}
}

static void msrs_get(struct vcpu *v, struct x86_state *s)
{
	const struct engine *en = v->en;
	struct msr_table t = { .head.nmsrs = en->nmsrs };
	int got;

	for (unsigned i = 0; i < en->nmsrs; i++)
		t.entry[i].index = msr_fields[en->msr[i]].index;
	got = ioctl(v->fd, KVM_GET_MSRS, &t);
	for (int i = 0; i < got; i++)
		memcpy((char *)s + msr_fields[en->msr[i]].offset, &t.entry[i].data, 8);
}

/* Writes those that differ from `old`; all of them if that is NULL. What KVM refuses stays as it was. */
static void msrs_set(struct vcpu *v, const struct x86_state *old, const struct x86_state *s)
{
	const struct engine *en = v->en;

	for (unsigned i = 0; i < en->nmsrs; i++) {
		const struct msr_field *f = &msr_fields[en->msr[i]];
		struct msr_table t = { .head.nmsrs = 1, .entry[0].index = f->index };
		if (old && !memcmp((const char *)old + f->offset, (const char *)s + f->offset, 8))
			continue;
		memcpy(&t.entry[0].data, (const char *)s + f->offset, 8);
		ioctl(v->fd, KVM_SET_MSRS, &t);
	}
}

/* The TSC is written only when its offset was changed: each write lets it slip by the time it takes. */
static void tsc_get(struct vcpu *v, struct x86_state *s)
{
	struct msr_table t = { .head.nmsrs = 1, .entry[0].index = MSR_TSC };
	int64_t moved;

	if (ioctl(v->fd, KVM_GET_MSRS, &t) == 1) {
		moved = (int64_t)(t.entry[0].data - kvm_tsc_base(v->en) - v->tsc_offset);
		if (moved > (int64_t)(v->en->tsc_hz / 100) || -moved > (int64_t)(v->en->tsc_hz / 100))
			v->tsc_offset += (uint64_t)moved;
	}
	s->tsc_offset = v->tsc_offset;
}

static void tsc_set(struct vcpu *v, const struct x86_state *s)
{
	struct msr_table t = { .head.nmsrs = 1, .entry[0].index = MSR_TSC };

	if (s->tsc_offset == v->tsc_offset)
		return;
	v->tsc_offset = s->tsc_offset;
	t.entry[0].data = kvm_tsc_base(v->en) + s->tsc_offset;
	ioctl(v->fd, KVM_SET_MSRS, &t);
}

/* --- segments --- */

struct x86_segment kvm_seg_get(const struct kvm_segment *k)
{
	return (struct x86_segment){
		.base = k->base, .limit = k->limit, .selector = k->selector,
		.attr = (uint16_t)(k->type | k->s << 4 | k->dpl << 5 | (k->present && !k->unusable) << 7 | k->avl << 12 |
				   k->l << 13 | k->db << 14 | k->g << 15),
	};
}

struct kvm_segment kvm_seg_set(const struct x86_segment *s)
{
	uint16_t a = s->attr;
	return (struct kvm_segment){
		.base = s->base, .limit = s->limit, .selector = s->selector, .type = a & 15, .s = a >> 4 & 1,
		.dpl = a >> 5 & 3, .present = a >> 7 & 1, .avl = a >> 12 & 1, .l = a >> 13 & 1, .db = a >> 14 & 1,
		.g = a >> 15 & 1, .unusable = !(a & SEG_ATTR_P),
	};
}

static struct kvm_segment *sreg_of(struct kvm_sregs *k, unsigned seg)
{
	struct kvm_segment *const by_number[SEG_COUNT] = { &k->es, &k->cs, &k->ss, &k->ds, &k->fs, &k->gs };
	return by_number[seg];
}

static void sregs_get(struct vcpu *v, struct x86_state *s)
{
	struct kvm_sregs k;

	ASSERT(ioctl(v->fd, KVM_GET_SREGS, &k) == 0);
	for (unsigned i = 0; i < SEG_COUNT; i++)
		s->seg[i] = kvm_seg_get(sreg_of(&k, i));
	s->ldtr = kvm_seg_get(&k.ldt);
	s->tr = kvm_seg_get(&k.tr);
	s->gdtr = (struct x86_table){ k.gdt.base, k.gdt.limit };
	s->idtr = (struct x86_table){ k.idt.base, k.idt.limit };
	s->cr0 = k.cr0;
	s->cr2 = k.cr2;
	s->cr3 = k.cr3;
	s->cr4 = k.cr4;
	s->efer = k.efer;
	s->apic_base = k.apic_base;
}

/* kvm_sregs carries an interrupt being delivered, too: it is kept. */
static void sregs_set(struct vcpu *v, const struct x86_state *s)
{
	struct kvm_sregs k;

	ASSERT(ioctl(v->fd, KVM_GET_SREGS, &k) == 0);
	for (unsigned i = 0; i < SEG_COUNT; i++)
		*sreg_of(&k, i) = kvm_seg_set(&s->seg[i]);
	k.ldt = kvm_seg_set(&s->ldtr);
	k.tr = kvm_seg_set(&s->tr);
	k.gdt = (struct kvm_dtable){ .base = s->gdtr.base, .limit = s->gdtr.limit };
	k.idt = (struct kvm_dtable){ .base = s->idtr.base, .limit = s->idtr.limit };
	k.cr0 = s->cr0;
	k.cr2 = s->cr2;
	k.cr3 = s->cr3;
	k.cr4 = s->cr4;
	k.efer = s->efer;
	if (s->apic_base)
		k.apic_base = s->apic_base;
	ioctl(v->fd, KVM_SET_SREGS, &k);
}

/* --- general registers: KVM's order is RAX RBX RCX RDX RSI RDI RSP RBP R8.. --- */

static const uint8_t gpr_order[REG_COUNT] = { REG_RAX, REG_RBX, REG_RCX, REG_RDX, REG_RSI, REG_RDI, REG_RSP, REG_RBP,
	REG_R8, REG_R9, REG_R10, REG_R11, REG_R12, REG_R13, REG_R14, REG_R15 };

void kvm_regs_get(struct vcpu *v, struct x86_state *s)
{
	struct kvm_regs k;

	ASSERT(ioctl(v->fd, KVM_GET_REGS, &k) == 0);
	for (unsigned i = 0; i < REG_COUNT; i++)
		memcpy(&s->gpr[gpr_order[i]], (char *)&k + 8 * i, 8);
	s->rip = k.rip;
	s->rflags = k.rflags;
}

void kvm_regs_set(struct vcpu *v, const struct x86_state *s)
{
	struct kvm_regs k = { .rip = s->rip, .rflags = s->rflags };

	for (unsigned i = 0; i < REG_COUNT; i++)
		memcpy((char *)&k + 8 * i, &s->gpr[gpr_order[i]], 8);
	ioctl(v->fd, KVM_SET_REGS, &k);
}

/* --- FPU --- */

/* Up to AVX the standard format is the same everywhere. Behind it AMD and Intel differ: a model has AVX-512 only where
 * the host's layout is ours (cpu/model.c). */
#define XSAVE_SHARED 832
#define XSAVE_AVX512 2688
#define COMPONENTS_AVX512 0xe0u

static bool has_avx512(const struct vcpu *v) { return cpu_model_has(v->en->cfg.model, FEATURE_AVX512F); }

void kvm_fpu_get(struct vcpu *v, struct x86_state *s)
{
	struct kvm_xsave x;
	struct kvm_xcrs c = { 0 };

	if (ioctl(v->fd, KVM_GET_XSAVE, &x) == 0)
		memcpy(s->fpu.raw, &x, has_avx512(v) ? XSAVE_AVX512 : XSAVE_SHARED);
	s->fpu.xstate_bv &= 7 | (has_avx512(v) ? COMPONENTS_AVX512 : 0);
	s->fpu.xstate_bv |= 3;
	if (ioctl(v->fd, KVM_GET_XCRS, &c) == 0 && c.nr_xcrs)
		s->xcr0 = c.xcrs[0].value;
	else
		s->xcr0 = 1;
}

void kvm_fpu_set(struct vcpu *v, const struct x86_state *s)
{
	struct kvm_xcrs c = { .nr_xcrs = 1, .xcrs[0].value = s->xcr0 ? s->xcr0 : 1 };
	struct kvm_xsave x = { 0 };
	/* x87 and SSE are always whole in our image */
	uint64_t bv = 3 | (s->fpu.xstate_bv & (4 | (has_avx512(v) ? COMPONENTS_AVX512 : 0)));

	memcpy(&x, s->fpu.raw, 512);
	memcpy((char *)&x + 512, &bv, 8);
	memcpy((char *)&x + 576, s->fpu.ymmh, sizeof(s->fpu.ymmh));
	if (has_avx512(v))
		memcpy((char *)&x + offsetof(struct x86_xsave, opmask), s->fpu.opmask,
		       XSAVE_AVX512 - offsetof(struct x86_xsave, opmask));
	ioctl(v->fd, KVM_SET_XCRS, &c);
	ioctl(v->fd, KVM_SET_XSAVE, &x);
}

/* --- debug registers, events, activity --- */

static void debug_get(struct vcpu *v, struct x86_state *s)
{
	struct kvm_debugregs d;

	if (ioctl(v->fd, KVM_GET_DEBUGREGS, &d) < 0)
		return;
	memcpy(s->dr, d.db, sizeof(d.db));
	s->dr[6] = d.dr6;
	s->dr[7] = d.dr7;
}

static void debug_set(struct vcpu *v, const struct x86_state *s)
{
	struct kvm_debugregs d = { .dr6 = s->dr[6], .dr7 = s->dr[7] };

	memcpy(d.db, s->dr, sizeof(d.db));
	ioctl(v->fd, KVM_SET_DEBUGREGS, &d);
}

static uint8_t shadow_swap(uint8_t shadow) { return (uint8_t)((shadow & 1) << 1 | (shadow >> 1 & 1)); }

/* event_type: 0 interrupt, 2 NMI, 3 exception, 4 software interrupt (SDM vol. 3, 25.8.3) */
static void events_get(struct vcpu *v, struct x86_state *s)
{
	struct kvm_vcpu_events k;

	if (ioctl(v->fd, KVM_GET_VCPU_EVENTS, &k) < 0)
		return;
	/* KVM's MOV SS bit is 1, its STI bit 2: ours are the other way round. */
	s->shadow = shadow_swap(k.interrupt.shadow);
	s->nmi_blocked = k.nmi.masked;
	s->nmi_pending = k.nmi.pending;
	s->event_valid = k.exception.injected || k.interrupt.injected || k.nmi.injected;
	if (k.exception.injected) {
		s->event_type = 3;
		s->event_vector = k.exception.nr;
		s->event_has_error = k.exception.has_error_code;
		s->event_error = k.exception.error_code;
	} else if (k.interrupt.injected) {
		s->event_type = k.interrupt.soft ? 4 : 0;
		s->event_vector = k.interrupt.nr;
	} else if (k.nmi.injected) {
		s->event_type = 2;
		s->event_vector = EXC_NMI;
	}
}

static void events_set(struct vcpu *v, const struct x86_state *s)
{
	struct kvm_vcpu_events k;

	if (ioctl(v->fd, KVM_GET_VCPU_EVENTS, &k) < 0)
		return;
	k.flags = KVM_VCPUEVENT_VALID_NMI_PENDING | KVM_VCPUEVENT_VALID_SHADOW;
	k.interrupt.shadow = shadow_swap(s->shadow);
	k.nmi.masked = s->nmi_blocked;
	k.nmi.pending = s->nmi_pending;
	k.exception.injected = s->event_valid && s->event_type == 3;
	k.exception.nr = s->event_vector;
	k.exception.has_error_code = s->event_has_error;
	k.exception.error_code = s->event_error;
	k.interrupt.injected = s->event_valid && (s->event_type == 0 || s->event_type == 4);
	k.interrupt.nr = s->event_vector;
	k.interrupt.soft = s->event_type == 4;
	k.nmi.injected = s->event_valid && s->event_type == 2;
	ioctl(v->fd, KVM_SET_VCPU_EVENTS, &k);
}

static void activity_get(struct vcpu *v, struct x86_state *s)
{
	struct kvm_mp_state m = { 0 };

	ioctl(v->fd, KVM_GET_MP_STATE, &m);
	s->activity = ACTIVITY_RUNNING;
	if (m.mp_state == KVM_MP_STATE_HALTED)
		s->activity = ACTIVITY_HALTED;
	else if (m.mp_state == KVM_MP_STATE_UNINITIALIZED || m.mp_state == KVM_MP_STATE_INIT_RECEIVED)
		s->activity = ACTIVITY_WAIT_SIPI;
}

static void activity_set(struct vcpu *v, const struct x86_state *s)
{
	struct kvm_mp_state m = { KVM_MP_STATE_RUNNABLE };

	if (s->activity == ACTIVITY_HALTED)
		m.mp_state = KVM_MP_STATE_HALTED;
	else if (s->activity == ACTIVITY_WAIT_SIPI)
		m.mp_state = KVM_MP_STATE_UNINITIALIZED;
	ioctl(v->fd, KVM_SET_MP_STATE, &m);
}

void kvm_get_state(struct vcpu *v, struct x86_state *out)
{
	memset(out, 0, sizeof(*out));
	kvm_regs_get(v, out);
	sregs_get(v, out);
	msrs_get(v, out);
	tsc_get(v, out);
	kvm_fpu_get(v, out);
	debug_get(v, out);
	events_get(v, out);
	activity_get(v, out);
}

void kvm_set_state(struct vcpu *v, const struct x86_state *in)
{
	sregs_set(v, in);
	kvm_regs_set(v, in);
	msrs_set(v, NULL, in);
	tsc_set(v, in);
	kvm_fpu_set(v, in);
	debug_set(v, in);
	activity_set(v, in);
	events_set(v, in);
}

static bool sregs_differ(const struct x86_state *a, const struct x86_state *b)
{
	return memcmp(a->seg, b->seg, sizeof(a->seg)) || memcmp(&a->ldtr, &b->ldtr, sizeof(a->ldtr)) ||
	       memcmp(&a->tr, &b->tr, sizeof(a->tr)) || a->gdtr.base != b->gdtr.base || a->gdtr.limit != b->gdtr.limit ||
	       a->idtr.base != b->idtr.base || a->idtr.limit != b->idtr.limit || a->cr0 != b->cr0 || a->cr2 != b->cr2 ||
	       a->cr3 != b->cr3 || a->cr4 != b->cr4 || a->efer != b->efer || a->apic_base != b->apic_base;
}

void kvm_set_changes(struct vcpu *v, const struct x86_state *old, const struct x86_state *in)
{
	if (sregs_differ(old, in))
		sregs_set(v, in);
	kvm_regs_set(v, in);
	msrs_set(v, old, in);
	tsc_set(v, in);
	if (old->xcr0 != in->xcr0 || memcmp(&old->fpu, &in->fpu, sizeof(in->fpu)))
		kvm_fpu_set(v, in);
	if (memcmp(old->dr, in->dr, sizeof(in->dr)))
		debug_set(v, in);
	if (old->activity != in->activity)
		activity_set(v, in);
	events_set(v, in);
}

uint8_t kvm_get_cr8(struct vcpu *v)
{
	struct kvm_sregs k;

	return ioctl(v->fd, KVM_GET_SREGS, &k) == 0 ? (uint8_t)k.cr8 : 0;
}

void kvm_set_cr8(struct vcpu *v, uint8_t cr8)
{
	struct kvm_sregs k;

	if (ioctl(v->fd, KVM_GET_SREGS, &k) < 0)
		return;
	k.cr8 = cr8;
	ioctl(v->fd, KVM_SET_SREGS, &k);
}
