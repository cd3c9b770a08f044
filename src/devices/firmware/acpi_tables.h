/*
 * ACPI tables for direct boot, from a plain description of the board (ACPI 6.4 chapter 5).
 *
 *   RSDP -> XSDT -> FADT (-> FACS, DSDT), MADT, MCFG, HPET
 */
#ifndef VIXEN_DEVICES_FIRMWARE_ACPI_TABLES_H
#define VIXEN_DEVICES_FIRMWARE_ACPI_TABLES_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct acpi_config {
	unsigned vcpus;
	uint64_t ecam_gpa;
	uint8_t last_bus;
	uint64_t mmio32_gpa, mmio32_end;	/* PCI windows; end is exclusive */
	uint64_t mmio64_gpa, mmio64_size;
	uint32_t pm_base;
	unsigned sci_irq;
	bool hpet;
	uint32_t hot_slots;	/* PCI slots of bus 0 for hot plug, by acpi_hotplug.h; 0: none, nor its registers */
};

/* Builds the tables as they lie at `gpa` (the RSDP first, 64-byte aligned). Returns the bytes used, 0 when
 * they do not fit into `size`. */
size_t acpi_tables_build(const struct acpi_config *c, uint64_t gpa, uint8_t *out, size_t size);

#endif
