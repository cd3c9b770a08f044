/*
 * Hot plug of PCI slots by ACPI (6.4, sections 5.6.4, 6.3.3 and 6.3.5): registers of our own design, which only the
 * methods in our DSDT touch (aml.c); the guest knows none of them.
 *
 *	+0  up      R: slots with something new	W: one clears
 *	+4  down    R: slots to be given up	W: one clears
 *	+8  eject   W: these slots may lose power	(_EJ0)
 *	+12 status  W: | 31:24 slot | 23:16 event | 15:0 status |	(_OST)
 */
#ifndef VIXEN_DEVICES_FIRMWARE_ACPI_HOTPLUG_H
#define VIXEN_DEVICES_FIRMWARE_ACPI_HOTPLUG_H

#include <stdint.h>

struct acpi_hotplug;
struct map;
struct stream;

#define ACPI_HOTPLUG_PORT 0x6a0
#define ACPI_HOTPLUG_GPE 1
enum { ACPI_EVENT_EJECT = 3 };	/* of status: what the guest was notified of */

/* On the vCPU's thread, but gpe: that of the caller of insert and request. */
struct acpi_hotplug_host {
	void *opaque;
	void (*gpe)(void *opaque);
	void (*eject)(void *opaque, unsigned slot);
	void (*status)(void *opaque, unsigned slot, unsigned event, unsigned status);	/* 0: success */
};

struct acpi_hotplug *acpi_hotplug_new(struct map *m, const struct acpi_hotplug_host *host);	/* NULL: no memory */
void acpi_hotplug_free(struct acpi_hotplug *h);
/* Any thread. */
void acpi_hotplug_insert(struct acpi_hotplug *h, unsigned slot);
void acpi_hotplug_request(struct acpi_hotplug *h, unsigned slot);	/* asks the guest to give it up */
void acpi_hotplug_cancel(struct acpi_hotplug *h, unsigned slot);	/* unless it has seen that already */
void acpi_hotplug_save(struct acpi_hotplug *h, struct stream *s);
void acpi_hotplug_load(struct acpi_hotplug *h, struct stream *s);

#endif
