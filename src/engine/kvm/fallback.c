/*
 * Instructions that KVM's emulator refuses, executed by the interpreter over the same map.
 *
 *   KVM_EXIT_INTERNAL_ERROR -> state out of KVM -> one instruction, or the fault it raises -> what changed goes back
 *
 * Interrupts stay with KVM's local APIC: the interpreter is told of none, and the next KVM_RUN delivers them.
 */
#include <errno.h>
#include <stdlib.h>

#include "engine/kvm/kvm_private.h"

static bool no_irq(void *opaque) { return false; }
static int no_vector(void *opaque) { return -1; }
static uint8_t get_tpr(void *opaque) { return kvm_get_cr8(opaque); }
static void set_tpr(void *opaque, uint8_t tpr) { kvm_set_cr8(opaque, tpr); }
static bool no_msr_read(void *opaque, uint32_t msr, uint64_t *value) { return false; }
static bool no_msr_write(void *opaque, uint32_t msr, uint64_t value) { return false; }

static int soft_vcpu(struct vcpu *v, struct error *e)
{
	const struct vcpu_wiring w = {
		.opaque = v, .index = v->w.index, .irq_pending = no_irq, .irq_ack = no_vector, .nmi_take = no_irq,
		.get_tpr = get_tpr, .set_tpr = set_tpr, .msr_read = no_msr_read, .msr_write = no_msr_write,
	};
	int ret = 0;

	pthread_mutex_lock(&v->en->soft_lock);
	if (!v->soft)
		ret = engine_soft.vcpu_create(&v->soft, v->en->soft, &w, e);
	pthread_mutex_unlock(&v->en->soft_lock);
	return ret;
}

/* Unless asked not to, KVM has queued #UD at CPL 0 before it tells us. */
static void forget_ud(struct vcpu *v, struct x86_state *s)
{
	if (!v->en->fails_to_us && s->event_type == 3 && s->event_vector == EXC_UD)
		s->event_valid = 0;
}

int kvm_fallback_step(struct vcpu *v, struct error *e)
{
	struct x86_state *s;
	int ret = soft_vcpu(v, e);

	if (ret < 0)
		return ret;
	s = aligned_alloc(64, 2 * sizeof(*s));
	if (!s)
		return error_set(e, ENOMEM, NULL, "interpret an instruction", "out of memory");
	kvm_get_state(v, &s[0]);
	forget_ud(v, &s[0]);
	s[1] = s[0];
	fallback_execute(v->soft, &s[1]);
	atomic_fetch_add(&v->fallbacks, 1);
	if (s[1].activity == ACTIVITY_SHUTDOWN)
		ret = 1;
	else
		kvm_set_changes(v, &s[0], &s[1]);
	free(s);
	return ret;
}

void kvm_fallback_free(struct vcpu *v)
{
	if (v->soft)
		engine_soft.vcpu_destroy(v->soft);
}
