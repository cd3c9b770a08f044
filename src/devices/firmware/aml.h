/* The DSDT's bytecode, built by a small AML builder (ACPI 6.4 chapter 20). */
#ifndef VIXEN_DEVICES_FIRMWARE_AML_H
#define VIXEN_DEVICES_FIRMWARE_AML_H

#include <stddef.h>
#include <stdint.h>

struct acpi_config;

/* Processors, the PCI root with its windows and interrupt routing, ISA devices, \_S5. 0: does not fit. */
size_t dsdt_build(const struct acpi_config *c, uint8_t *out, size_t size);

#endif
