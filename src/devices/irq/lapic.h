/*
 * The local APICs of all vCPUs: xAPIC by MMIO, x2APIC by MSR, timer in three modes (SDM vol. 3 chapter 11).
 *
 * Threads: MMIO, MSR and ack calls come on the vCPU's thread; messages from any. Lock order: 8259, IO-APIC,
 * then one LAPIC. Callbacks in lapic_host are made with no LAPIC lock held.
 */
#ifndef VIXEN_DEVICES_IRQ_LAPIC_H
#define VIXEN_DEVICES_IRQ_LAPIC_H

#include <stdbool.h>
#include <stdint.h>

#include "devices/irq/line.h"

struct loop;
struct map;
struct lapic_bus;

#define LAPIC_GPA 0xfee00000ull
#define LAPIC_MAX 16

struct lapic_host {
	void *opaque;
	void (*kick)(void *opaque, unsigned cpu);	/* an interrupt may be deliverable now */
	void (*init)(void *opaque, unsigned cpu);
	void (*sipi)(void *opaque, unsigned cpu, uint8_t vector);
	void (*nmi)(void *opaque, unsigned cpu);
	uint64_t (*tsc)(void *opaque, unsigned cpu);	/* guest TSC now */
	unsigned (*current)(void *opaque);		/* which vCPU's thread this is */
	void (*eoi)(void *opaque, uint8_t vector);	/* a level-triggered vector ended: IO-APIC */
	bool (*extint_pending)(void *opaque);		/* 8259 */
	int (*extint_ack)(void *opaque);
	uint64_t tsc_hz;
};

struct lapic_bus *lapic_bus_new(struct map *m, struct loop *l, unsigned vcpus, const struct lapic_host *host);
void lapic_bus_free(struct lapic_bus *b);
void lapic_reset(struct lapic_bus *b, unsigned cpu);

/* Delivers a message as the bus would: MSI, IO-APIC, IPI. mode: 0 fixed, 1 lowest, 2 SMI, 4 NMI, 5 INIT, 7 ExtINT. */
struct lapic_message { uint32_t dest; bool logical, level, level_assert; uint8_t mode, vector; };
void lapic_deliver(struct lapic_bus *b, const struct lapic_message *msg);
/* MSI address and data (SDM 11.11). */
void lapic_msi(void *bus, uint64_t gpa, uint32_t data);
/* The 8259's output changed: BSP's LINT0. */
void lapic_extint(struct lapic_bus *b);

bool lapic_pending(struct lapic_bus *b, unsigned cpu);	/* cheap; no side effect */
int lapic_ack(struct lapic_bus *b, unsigned cpu);	/* vector or -1 */
uint8_t lapic_tpr(struct lapic_bus *b, unsigned cpu);
void lapic_set_tpr(struct lapic_bus *b, unsigned cpu, uint8_t tpr);
/* IA32_APIC_BASE, TSC deadline, x2APIC. false: not ours, or #GP. */
bool lapic_msr_read(struct lapic_bus *b, unsigned cpu, uint32_t msr, uint64_t *value);
bool lapic_msr_write(struct lapic_bus *b, unsigned cpu, uint32_t msr, uint64_t value);

#endif
