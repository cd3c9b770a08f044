/* What a PCI function is made of; for the files of this room only. */
#ifndef VIXEN_DEVICES_PCI_DEV_H
#define VIXEN_DEVICES_PCI_DEV_H

#include <pthread.h>
#include <stdatomic.h>

#include "devices/pci/pci.h"

#define PCI_SLOTS 32
#define PCI_BARS 6
#define PCI_CONFIG_BYTES 4096u
#define MSIX_MAX 128u		/* table (2 KiB) and PBA share one 4 KiB BAR */
#define MSIX_PBA_OFFSET 0x800u

/* PCI Local Bus 3.0, 6.1: type 0 header */
enum {
	CFG_VENDOR = 0x00, CFG_DEVICE = 0x02, CFG_COMMAND = 0x04, CFG_STATUS = 0x06, CFG_REVISION = 0x08,
	CFG_CLASS = 0x09, CFG_HEADER_TYPE = 0x0e, CFG_BAR0 = 0x10, CFG_SUBVENDOR = 0x2c, CFG_SUBDEVICE = 0x2e,
	CFG_CAP_PTR = 0x34, CFG_INT_LINE = 0x3c, CFG_INT_PIN = 0x3d, CFG_CAPS = 0x40,
};
enum { CMD_IO = 1, CMD_MEM = 2, CMD_MASTER = 4, CMD_INTX_OFF = 0x400 };
enum { STATUS_INTX = 0x08, STATUS_CAPS = 0x10 };

struct pci_bar {
	struct region *region;
	uint64_t size_bytes;
	bool is64;
	uint64_t gpa;		/* where it is mapped now; 0: nowhere */
};

struct msix {
	pthread_mutex_t lock;	/* everything below, and the order of sends against masking */
	unsigned vectors;	/* 0: no MSI-X */
	unsigned cap;		/* offset of the capability */
	bool enabled, masked;	/* copies of message control bits 15 and 14 */
	uint32_t table[MSIX_MAX * 4];
	uint64_t pending[MSIX_MAX / 64];
};

struct pci_dev {
	struct pci_bus *bus;
	unsigned slot;
	void *opaque;
	const struct pci_hooks *hooks;
	void (*on_config_write)(void *opaque, unsigned offset, unsigned len);
	struct pci_bar bar[PCI_BARS];
	struct msix msix;
	unsigned cap_next, cap_last;	/* next free offset; last capability, 0: none yet */
	bool intx;			/* level wanted by the device; under bus->intx_lock */
	bool sealed;			/* initial[] is taken */
	bool hidden;			/* under bus->lock: nothing is in the slot, as far as the guest can see */
	atomic_bool bus_master;
	/* Written under bus->lock. */
	uint8_t config[PCI_CONFIG_BYTES];
	uint8_t wmask[PCI_CONFIG_BYTES];
	uint8_t initial[PCI_CONFIG_BYTES];
};

struct pci_bus {
	struct map *map;
	struct msi_sink msi;
	uint64_t mmio64_gpa;
	pthread_mutex_t lock;		/* config spaces, BAR placement, config_address; before intx_lock */
	struct pci_dev *dev[PCI_SLOTS];
	struct pci_dev *host;		/* slot 0 */
	bool assigned;			/* the guest may run: what is added now is hidden at first */
	uint32_t config_address;	/* port CF8 */
	uint8_t reset_control;		/* port CF9 */
	struct region *ecam, *ports;
	void (*on_reset_request)(void *opaque, bool hard);
	void *reset_opaque;

	pthread_mutex_t intx_lock;	/* levels of the four lines; a leaf but for msix.lock */
	struct irq_line line[4];
	uint32_t raised[4];		/* one bit per slot */
	void (*watch)(void *opaque, unsigned pirq, bool level);
	void *watch_opaque;
};

static inline uint16_t cfg_get16(const struct pci_dev *d, unsigned o)
{
	return (uint16_t)(d->config[o] | d->config[o + 1] << 8);
}

static inline uint32_t cfg_get32(const struct pci_dev *d, unsigned o)
{
	return cfg_get16(d, o) | (uint32_t)cfg_get16(d, o + 2) << 16;
}

static inline void cfg_put16(uint8_t *p, unsigned o, uint16_t v)
{
	p[o] = (uint8_t)v;
	p[o + 1] = (uint8_t)(v >> 8);
}

static inline void cfg_put32(uint8_t *p, unsigned o, uint32_t v)
{
	cfg_put16(p, o, (uint16_t)v);
	cfg_put16(p, o + 2, (uint16_t)(v >> 16));
}

/* config.c; the bus lock is held. */
uint32_t config_read(struct pci_dev *d, unsigned offset, unsigned size);
void config_write(struct pci_dev *d, unsigned offset, unsigned size, uint32_t value);
void config_seal(struct pci_dev *d);
void config_reset(struct pci_dev *d);
void config_apply(struct pci_dev *d);	/* makes BARs, MSI-X and INTx follow the registers */

/* msix.c */
void msix_control_changed(struct pci_dev *d);
void msix_reset(struct pci_dev *d);
void msix_save(struct pci_dev *d, struct stream *s);
void msix_load(struct pci_dev *d, struct stream *s);

/* host.c */
int host_bridge_add(struct pci_bus *b);
void host_bridge_assign(struct pci_bus *b);

/* bus.c: the line of a slot's pin A follows d->intx and the command register. */
void intx_update(struct pci_dev *d);

#endif
