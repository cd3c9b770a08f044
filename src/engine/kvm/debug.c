/*
 * A debugger outside of the guest, by KVM_SET_GUEST_DEBUG: four points in the CPU's debug registers. While there are
 * any, the guest's own debug registers hold what it wrote, but do not trap. And what is counted.
 */
#include <errno.h>
#include <sys/ioctl.h>

#include "engine/kvm/kvm_private.h"

#define HW_POINTS 4
#define DR7_ALWAYS 0x600ull	/* LE, GE and the bit that is always one: SDM vol. 3 17.2.4 */

static int dr7_len(uint32_t bytes)
{
	switch (bytes) {
	case 1: return 0;
	case 2: return 1;
	case 4: return 3;
	case 8: return 2;
	default: return -EINVAL;
	}
}

static int point_encode(const struct debug_point *p, unsigned i, uint64_t *dr7)
{
	/* The R/W field by kind; reads alone are not among them. */
	static const uint8_t rw[] = { [DEBUG_BREAK] = 0, [DEBUG_WRITE] = 1, [DEBUG_ACCESS] = 3 };
	int len = p->kind == DEBUG_BREAK ? 0 : dr7_len(p->bytes);

	if (p->kind == DEBUG_READ)
		return -ENOTSUP;
	if (len < 0 || (p->kind != DEBUG_BREAK && p->gva & (p->bytes - 1)))
		return -EINVAL;
	*dr7 |= 2ull << 2 * i | (uint64_t)(rw[p->kind] | len << 2) << (16 + 4 * i);
	return 0;
}

static uint32_t step_control(const struct engine *en)
{
	int known = ioctl(en->vm_fd, KVM_CHECK_EXTENSION, KVM_CAP_SET_GUEST_DEBUG2);
	uint32_t quiet = known > 0 ? (uint32_t)known & KVM_GUESTDBG_BLOCKIRQ : 0;

	return KVM_GUESTDBG_ENABLE | KVM_GUESTDBG_SINGLESTEP | quiet;
}

int kvm_debug_set(struct vcpu *v, const struct debug_plan *p)
{
	struct kvm_guest_debug d = { 0 };
	uint64_t dr7 = DR7_ALWAYS;

	if (p->count > HW_POINTS)
		return -ENOSPC;
	for (unsigned i = 0; i < p->count; i++) {
		int ret = point_encode(&p->point[i], i, &dr7);
		if (ret < 0)
			return ret;
		d.arch.debugreg[i] = p->point[i].gva;
	}
	d.arch.debugreg[7] = dr7;
	if (p->count)
		d.control |= KVM_GUESTDBG_ENABLE | KVM_GUESTDBG_USE_HW_BP;
	if (p->step)
		d.control |= step_control(v->en);
	if (ioctl(v->fd, KVM_SET_GUEST_DEBUG, &d) < 0)
		return -errno;
	v->plan = *p;
	return 0;
}

void kvm_debug_note(struct vcpu *v)
{
	uint64_t dr6 = v->run->debug.arch.dr6;

	v->stop = (struct debug_stop){ .why = DEBUG_STEPPED };
	for (unsigned i = 0; i < v->plan.count; i++) {
		if (!(dr6 >> i & 1))
			continue;
		v->stop.why = v->plan.point[i].kind == DEBUG_BREAK ? DEBUG_AT_BREAK : DEBUG_WATCHED;
		v->stop.point = v->plan.point[i];
	}
}

void kvm_debug_get(struct vcpu *v, struct debug_stop *out) { *out = v->stop; }

void kvm_counters(struct vcpu *v, counter_fn *each, void *opaque)
{
	static const char *const names[KVM_EXITS] = {
		[0] = "other", [KVM_EXIT_IO] = "port", [KVM_EXIT_MMIO] = "MMIO", [KVM_EXIT_HLT] = "HLT",
		[KVM_EXIT_INTR] = "signal", [KVM_EXIT_DEBUG] = "debug", [KVM_EXIT_SHUTDOWN] = "shutdown",
		[KVM_EXIT_INTERNAL_ERROR] = "not emulated", [KVM_EXIT_IRQ_WINDOW_OPEN] = "interrupt window",
		[KVM_EXIT_SET_TPR] = "task priority", [KVM_EXIT_SYSTEM_EVENT] = "system event",
	};

	for (unsigned i = 0; i < KVM_EXITS; i++)
		if (names[i] || v->exits[i])
			each(opaque, "exits from KVM", names[i] ? names[i] : names[0], v->exits[i]);
	each(opaque, "instructions interpreted", "all", atomic_load(&v->fallbacks));
}
