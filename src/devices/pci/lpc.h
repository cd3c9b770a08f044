/*
 * ICH9 LPC bridge, function 00:1f.0: where the ACPI block lies, and how PIRQs reach the 8259s.
 */
#ifndef VIXEN_DEVICES_PCI_LPC_H
#define VIXEN_DEVICES_PCI_LPC_H

#include "devices/pci/pci.h"

struct lpc;

struct lpc_wiring {
	/* ISA interrupts 0..15; PIRQx_ROUT steers PCI lines to 3-7, 9-12, 14, 15. A shared line is OR'ed with
	 * PCI interrupts only: the board keeps other sources off the ones that firmware chooses. */
	struct irq_line isa[16];
	/* The guest moved or switched the ACPI I/O block (128 ports). May be NULL. */
	void (*pm_moved)(void *opaque, uint16_t port, bool enabled);
	void *opaque;
};

/* Owner: the bus.  NULL: no memory. */
struct lpc *lpc_new(struct pci_bus *b, const struct lpc_wiring *w);
/* Direct boot: what firmware would program: PMBASE 0x600, ACPI on, PIRQs to IRQ 10 and 11. */
void lpc_assign(struct lpc *l);

#endif
