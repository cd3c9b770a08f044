/*
 * KVM's interrupt controllers: lines, MSIs, and eventfds that bypass the VMM.
 *
 *   GSI  0..15  both the 8259s and the IO-APIC (GSI 0: pin 2)	16..23  the IO-APIC
 *        24..39  the 8259s only (ENGINE_GSI_8259)		40...   MSIs of irqfds
 */
#include <errno.h>
#include <stdlib.h>
#include <sys/ioctl.h>

#include "engine/kvm/kvm_private.h"

static void route_chip(struct kvm_irq_routing *t, unsigned gsi, unsigned chip, unsigned pin)
{
	t->entries[t->nr++] = (struct kvm_irq_routing_entry){
		.gsi = gsi, .type = KVM_IRQ_ROUTING_IRQCHIP, .u.irqchip = { chip, pin },
	};
}

static void route_msi(struct kvm_irq_routing *t, unsigned gsi, uint64_t gpa, uint32_t data)
{
	struct kvm_irq_routing_entry r = { .gsi = gsi, .type = KVM_IRQ_ROUTING_MSI };
	r.u.msi.address_lo = (uint32_t)gpa;
	r.u.msi.address_hi = (uint32_t)(gpa >> 32);
	r.u.msi.data = data;
	t->entries[t->nr++] = r;
}

/* GSI 0, the PIT's, is pin 2 of the IO-APIC (ACPI interrupt override). */
int kvm_routes_commit(struct engine *en)
{
	struct kvm_irq_routing *t = calloc(1, sizeof(*t) + (64 + KVM_ROUTES) * sizeof(t->entries[0]));
	int ret;

	if (!t)
		return -ENOMEM;
	for (unsigned irq = 0; irq < 16; irq++) {
		unsigned chip = irq < 8 ? KVM_IRQCHIP_PIC_MASTER : KVM_IRQCHIP_PIC_SLAVE;
		if (irq != 2)
			route_chip(t, irq, chip, irq & 7);
		route_chip(t, ENGINE_GSI_8259 + irq, chip, irq & 7);
	}
	for (unsigned gsi = 0; gsi < 24; gsi++)
		if (gsi != 2)
			route_chip(t, gsi, KVM_IRQCHIP_IOAPIC, gsi ? gsi : 2);
	for (unsigned i = 0; i < KVM_ROUTES; i++)
		if (en->route[i].used)
			route_msi(t, KVM_GSI_MSI + i, en->route[i].gpa, en->route[i].data);
	ret = ioctl(en->vm_fd, KVM_SET_GSI_ROUTING, t) < 0 ? -errno : 0;
	free(t);
	return ret;
}

static void set_gsi(struct engine *en, unsigned gsi, bool level)
{
	struct kvm_irq_level l = { .irq = gsi, .level = level };
	ioctl(en->vm_fd, KVM_IRQ_LINE, &l);
}

static void send_msi(struct engine *en, uint64_t gpa, uint32_t data)
{
	struct kvm_msi m = { .address_lo = (uint32_t)gpa, .address_hi = (uint32_t)(gpa >> 32), .data = data };
	ioctl(en->vm_fd, KVM_SIGNAL_MSI, &m);
}

/* While the HPET has its lines the 8254 in the kernel must not raise IRQ 0. */
static void set_hpet_legacy(struct engine *en, bool on)
{
	struct kvm_pit_state2 s;

	if (ioctl(en->vm_fd, KVM_GET_PIT2, &s) < 0)
		return;
	s.flags = on ? s.flags | KVM_PIT_FLAGS_HPET_LEGACY : s.flags & ~(uint32_t)KVM_PIT_FLAGS_HPET_LEGACY;
	ioctl(en->vm_fd, KVM_SET_PIT2, &s);
}

static int irqfd(struct engine *en, int fd, int route, bool on)
{
	struct kvm_irqfd f = { .fd = (uint32_t)fd, .gsi = (uint32_t)(KVM_GSI_MSI + route),
			       .flags = on ? 0 : KVM_IRQFD_FLAG_DEASSIGN };
	return ioctl(en->vm_fd, KVM_IRQFD, &f) < 0 ? -errno : 0;
}

static int add_irqfd(struct engine *en, int fd, uint64_t msi_gpa, uint32_t msi_data)
{
	int route = 0, ret = -ENOSPC;

	pthread_mutex_lock(&en->route_lock);
	while (route < KVM_ROUTES && en->route[route].used)
		route++;
	if (route == KVM_ROUTES)
		goto out;
	en->route[route].used = true;
	en->route[route].gpa = msi_gpa;
	en->route[route].data = msi_data;
	ret = kvm_routes_commit(en);
	if (!ret)
		ret = irqfd(en, fd, route, true);
	if (ret < 0)
		en->route[route].used = false;
	else
		ret = route;
out:
	pthread_mutex_unlock(&en->route_lock);
	return ret;
}

static void del_irqfd(struct engine *en, int fd, int route)
{
	if (route < 0 || route >= KVM_ROUTES)
		return;
	pthread_mutex_lock(&en->route_lock);
	irqfd(en, fd, route, false);
	en->route[route].used = false;
	kvm_routes_commit(en);
	pthread_mutex_unlock(&en->route_lock);
}

const struct engine_irqchip_ops kvm_irqchip_ops = {
	.set_gsi = set_gsi,
	.send_msi = send_msi,
	.set_hpet_legacy = set_hpet_legacy,
	.add_irqfd = add_irqfd,
	.del_irqfd = del_irqfd,
};
