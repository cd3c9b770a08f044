/* The CPU model as KVM takes it: what this host's KVM cannot give is left out. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>

#include "cpu/model.h"
#include "engine/kvm/kvm_private.h"

#define CPUID_ENTRIES 256
#define KVM_LEAF_FEATURES 0x40000001
#define KVM_CLOCK (1u << 3 | 1u << 24)	/* as cpu/cpuid.c */

struct cpuid_table { struct kvm_cpuid2 head; struct kvm_cpuid_entry2 entry[CPUID_ENTRIES]; };

static void cpuid_add(void *opaque, const struct cpuid_entry *c)
{
	struct cpuid_table *t = opaque;

	if (t->head.nent == CPUID_ENTRIES)
		return;
	t->entry[t->head.nent++] = (struct kvm_cpuid_entry2){
		.function = c->leaf, .index = c->subleaf,
		.flags = c->subleaf_matters ? KVM_CPUID_FLAG_SIGNIFCANT_INDEX : 0,
		.eax = c->reg[0], .ebx = c->reg[1], .ecx = c->reg[2], .edx = c->reg[3],
	};
}

static const struct kvm_cpuid_entry2 *entry_find(const struct cpuid_table *t, const struct kvm_cpuid_entry2 *like)
{
	for (unsigned i = 0; i < t->head.nent; i++)
		if (t->entry[i].function == like->function && t->entry[i].index == like->index)
			return &t->entry[i];
	return NULL;
}

static void entry_limit(struct kvm_cpuid_entry2 *g, const struct kvm_cpuid_entry2 *h)
{
	/* HYPERVISOR, OSXSAVE (a mirror of CR4), TSC_DEADLINE and X2APIC: KVM's LAPIC has them, listed or not */
	const uint32_t always_1c = 1u << 31 | 1u << 27 | 1u << 24 | 1u << 21, always_1d = 1u << 9 | 1u << 28;

	switch (g->function) {
	case 1:
		g->ecx &= h->ecx | always_1c;
		g->edx &= h->edx | always_1d;
		break;
	case 7:
		if (g->index == 0) {
			g->ebx &= h->ebx;
			g->ecx &= h->ecx;
			g->edx &= h->edx;
		} else {
			g->eax &= h->eax;
		}
		break;
	case 0xd:
		if (g->index <= 1)
			g->eax &= h->eax;
		break;
	case KVM_LEAF_FEATURES:		/* the clock is KVM's own, the model knows nothing of it */
		g->eax |= h->eax & KVM_CLOCK;
		break;
	case 0x80000001:
		g->ecx &= h->ecx | 2;	/* CmpLegacy */
		g->edx &= h->edx | 1u << 9;
		break;
	}
}

int kvm_cpuid_set(struct vcpu *v)
{
	struct cpuid_table *t = calloc(2, sizeof(*t));
	int ret = 0;

	if (!t)
		return -ENOMEM;
	cpu_model_each(v->en->cfg.model, v->w.index, v->en->cfg.vcpus, cpuid_add, &t[0]);
	t[1].head.nent = CPUID_ENTRIES;
	if (ioctl(v->en->dev_fd, KVM_GET_SUPPORTED_CPUID, &t[1]) == 0) {
		for (unsigned i = 0; i < t[0].head.nent; i++) {
			const struct kvm_cpuid_entry2 *h = entry_find(&t[1], &t[0].entry[i]);
			if (h)
				entry_limit(&t[0].entry[i], h);
		}
	}
	if (ioctl(v->fd, KVM_SET_CPUID2, &t[0]) < 0)
		ret = -errno;
	free(t);
	return ret;
}
