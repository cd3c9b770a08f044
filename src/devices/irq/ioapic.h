/* The IO-APIC of the ICH9: 24 pins, version 0x20 with an EOI register (82093AA data sheet; ICH9 13.5). */
#ifndef VIXEN_DEVICES_IRQ_IOAPIC_H
#define VIXEN_DEVICES_IRQ_IOAPIC_H

#include <stdbool.h>
#include <stdint.h>

struct ioapic;
struct lapic_bus;
struct map;

#define IOAPIC_GPA 0xfec00000ull
#define IOAPIC_PINS 24

struct ioapic *ioapic_new(struct map *m, struct lapic_bus *lapics);
void ioapic_free(struct ioapic *io);
void ioapic_reset(struct ioapic *io);
/* An irq_line sink; opaque is the struct ioapic. Any thread. */
void ioapic_set(void *io, unsigned pin, bool level);
/* A level-triggered vector ended in some LAPIC. */
void ioapic_eoi(struct ioapic *io, uint8_t vector);

#endif
