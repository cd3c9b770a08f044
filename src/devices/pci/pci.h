/*
 * PCI Express functions on bus 0 and their host bridge (82G33, ECAM at 0xB0000000, ports CF8/CFC).
 *
 * A device fills in a struct pci_config, gets BARs mapped by the bus as the guest programs them, and
 * raises interrupts by MSI-X (or INTx through the bus' four lines).
 */
#ifndef VIXEN_DEVICES_PCI_PCI_H
#define VIXEN_DEVICES_PCI_PCI_H

#include <stdbool.h>
#include <stdint.h>

#include "devices/irq/line.h"
#include "memory/map.h"

struct pci_bus;
struct pci_dev;

#define PCI_ECAM_GPA 0xB0000000ull
#define PCI_ECAM_SIZE 0x10000000ull
#define PCI_MMIO32_GPA 0xC0000000ull	/* BARs below 4 GiB: up to 0xFEC00000 */
#define PCI_MMIO32_END 0xFEC00000ull
#define PCI_MMIO64_SIZE (1ull << 38)	/* window above RAM, start given to pci_bus_new */

/* intx[4]: PIRQ A-D (IO-APIC pins 16..19 as wired by the board). */
struct pci_bus *pci_bus_new(struct map *m, const struct irq_line intx[4], const struct msi_sink *msi,
			    uint64_t mmio64_gpa);
void pci_bus_free(struct pci_bus *b);
void pci_bus_reset(struct pci_bus *b);
/* Direct boot has no firmware: assigns BARs and enables decoding and bus mastering, as firmware would. */
void pci_bus_assign(struct pci_bus *b);

struct pci_ids { uint16_t vendor, device, subvendor, subdevice; uint32_t class_code; uint8_t revision; };
/* slot -1: next free. Owner: the bus. opaque goes to the BAR io_ops. */
struct pci_dev *pci_dev_add(struct pci_bus *b, int slot, const struct pci_ids *ids, void *opaque);
/*
 * A function that is added after pci_bus_assign() is hidden until it is shown; hiding one again unmaps its BARs and
 * gives its registers their first values.  It stays: a vCPU may still be in one of its handlers.  The loop's thread.
 */
void pci_dev_show(struct pci_dev *d, bool on);
uint32_t pci_bus_free_slots(struct pci_bus *b);		/* a bit for each slot that pci_dev_add(-1) may give, lowest first */
void pci_dev_bar(struct pci_dev *d, unsigned bar, uint64_t size_bytes, bool is64, bool prefetch,
		 const struct io_ops *ops, const char *name);
/* Adds a capability, returns its offset; bytes are copied; guest-writable bits in wmask (same length). */
unsigned pci_dev_cap(struct pci_dev *d, uint8_t id, const void *body, unsigned len, const uint8_t *wmask);
/* MSI-X with its table and PBA in their own BAR. */
void pci_dev_msix(struct pci_dev *d, unsigned vectors, unsigned bar);
bool pci_msix_enabled(const struct pci_dev *d);
void pci_msix_notify(struct pci_dev *d, unsigned vector);	/* any thread; masked ones stay pending */
void pci_intx(struct pci_dev *d, bool level);
/* Config space hooks for chipset functions (ICH9 LPC): raw bytes and write mask. */
uint8_t *pci_dev_config(struct pci_dev *d);	/* 4096 bytes */
uint8_t *pci_dev_wmask(struct pci_dev *d);
void pci_dev_on_config_write(struct pci_dev *d, void (*fn)(void *opaque, unsigned offset, unsigned len));
uint64_t pci_dev_bar_gpa(const struct pci_dev *d, unsigned bar);	/* 0: unmapped */

/* What a function's owner does when the bus is reset, saved or freed; any may be NULL.  Called with the
 * vCPUs stopped, except bar_moved (the vCPU that wrote the BAR; gpa 0: unmapped).  `load` returns 0 or
 * -errno.  `idle`: no request is under way, so that `save` sees everything. */
struct stream;
struct pci_hooks {
	void (*reset)(void *opaque);
	bool (*idle)(void *opaque);
	void (*save)(void *opaque, struct stream *s);
	int  (*load)(void *opaque, struct stream *s);
	void (*free)(void *opaque);
	void (*bar_moved)(void *opaque, unsigned bar, uint64_t gpa);
	/* The guest is about to read these bytes of configuration space. Bus lock held. */
	void (*config_reading)(void *opaque, unsigned offset, unsigned len);
};
void pci_dev_hooks(struct pci_dev *d, const struct pci_hooks *h);	/* h must outlive d */

/* Interrupt pin A, wired to PIRQ (slot % 4): slot 4 -> A, 5 -> B, ...; for the board's _PRT:
 * INTx pin p (0 = A) of slot s is PIRQ (s + p) % 4. */
void pci_dev_use_intx(struct pci_dev *d);
unsigned pci_dev_slot(const struct pci_dev *d);
/* Command register bit 2: may the function touch memory? */
bool pci_dev_bus_master(const struct pci_dev *d);
/* No function has a request under way. pci_bus_reset() only begins the reset of devices that are busy:
 * wait for this (the I/O loop running) before loading a new kernel into RAM that they may still write to. */
bool pci_bus_idle(struct pci_bus *b);
void pci_bus_save(struct pci_bus *b, struct stream *s);		/* all functions and what hangs on them */
int  pci_bus_load(struct pci_bus *b, struct stream *s);		/* same functions in the same slots */
/* Tells somebody else (the LPC bridge in PIC mode) about PIRQ A-D level changes. */
void pci_bus_watch_intx(struct pci_bus *b, void (*fn)(void *opaque, unsigned pirq, bool level), void *opaque);
/* Port 0xCF9 lies inside CF8-CFF: called when the guest writes a value that resets (bit 2 rising).
 * hard: full reset requested (bit 1). On the vCPU's thread. */
void pci_bus_on_reset_request(struct pci_bus *b, void (*fn)(void *opaque, bool hard), void *opaque);

#endif
