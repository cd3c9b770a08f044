/*
 * The high precision event timer at FED00000h: a 64-bit counter of 10 ns steps and three comparators, each
 * one-shot or periodic, edge or level (IA-PC HPET specification 1.0a).
 */
#ifndef VIXEN_DEVICES_TIMER_HPET_H
#define VIXEN_DEVICES_TIMER_HPET_H

#include <stdbool.h>

#include "devices/irq/line.h"

struct hpet;
struct loop;
struct map;

#define HPET_GPA 0xfed00000ull
#define HPET_PINS 24

struct hpet_wiring {
	struct irq_line pin[HPET_PINS];	/* IO-APIC pins that comparators may be routed to; others have no set() */
	struct irq_line legacy[2];	/* IRQ 0 and IRQ 8, in place of the 8254 and the RTC */
	void *opaque;
	/* Legacy replacement goes on or off; on a vCPU's thread with the HPET's lock held. */
	void (*legacy_mode)(void *opaque, bool on);
};

struct hpet *hpet_new(struct map *m, struct loop *l, const struct hpet_wiring *w);
void hpet_free(struct hpet *h);
void hpet_reset(struct hpet *h);

#endif
