/* ACPI fixed hardware of the ICH9 at 0x600 (ICH9 13.8, ACPI 6.4 section 4.8), and the reset register 0xCF9. */
#ifndef VIXEN_DEVICES_FIRMWARE_ACPI_PM_H
#define VIXEN_DEVICES_FIRMWARE_ACPI_PM_H

#include "devices/irq/line.h"

struct acpi_pm;
struct map;

#define ACPI_PM_BASE 0x600
#define ACPI_SCI_IRQ 9

struct acpi_pm_host {
	void *opaque;
	void (*power_off)(void *opaque);	/* on the vCPU's thread */
	void (*reset)(void *opaque);
};

struct acpi_pm *acpi_pm_new(struct map *m, struct irq_line sci, const struct acpi_pm_host *host);
void acpi_pm_free(struct acpi_pm *p);
void acpi_pm_reset(struct acpi_pm *p);
void acpi_pm_gpe(struct acpi_pm *p, unsigned n);	/* general-purpose event 0-63 has happened; any thread */
void acpi_pm_button(struct acpi_pm *p);		/* the power button: asks the guest to shut down; any thread */

#endif
