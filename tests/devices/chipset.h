/* A chipset without vCPUs: every part of it on a map, and what came out of it. */
#ifndef VIXEN_TESTS_DEVICES_CHIPSET_H
#define VIXEN_TESTS_DEVICES_CHIPSET_H

#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "devices/char/i8042.h"
#include "devices/char/uart.h"
#include "devices/firmware/acpi_pm.h"
#include "devices/firmware/fw_cfg.h"
#include "devices/irq/ioapic.h"
#include "devices/irq/lapic.h"
#include "devices/irq/pic.h"
#include "devices/timer/hpet.h"
#include "devices/timer/pit.h"
#include "devices/timer/rtc.h"
#include "host/loop.h"
#include "memory/map.h"

struct chipset {
	struct map *map;
	struct loop *loop;
	pthread_t thread;
	struct lapic_bus *lapics;
	struct ioapic *ioapic;
	struct pic *pic;
	struct pit *pit;
	struct rtc *rtc;
	struct hpet *hpet;
	struct uart *uart;
	struct i8042 *i8042;
	struct acpi_pm *pm;
	struct fw_cfg *fw_cfg;
	unsigned current;			/* the vCPU that accesses come from */
	atomic_uint kicks[4], inits[4], sipis[4], nmis[4], eois, resets, offs, output;
	atomic_uint rises[32];			/* by line */
	atomic_bool level[32], hpet_legacy;
	uint8_t sent[64];
	unsigned sent_count;
};

/* Device interrupts end in rises[] and level[] by ISA number or IO-APIC pin; the IO-APIC is driven by hand. */
void chipset_init(struct chipset *c);
void chipset_fini(struct chipset *c);
int chipset_setup(void **state);
int chipset_teardown(void **state);

static inline uint8_t in8(struct chipset *c, uint16_t port) { return (uint8_t)pio_load(c->map, port, 1); }
static inline void out8(struct chipset *c, uint16_t port, uint8_t v) { pio_store(c->map, port, 1, v); }
bool wait_count(atomic_uint *p, unsigned at_least);

#endif
