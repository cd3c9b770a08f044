/*
 * An NVM Express 1.4 controller with one namespace on a block node, for guests that have no virtio drivers.
 *
 * Owner: the PCI bus.  Registers on vCPUs' threads, everything else on the loop's.
 */
#ifndef VIXEN_DEVICES_NVME_NVME_H
#define VIXEN_DEVICES_NVME_NVME_H

#include "base/error.h"
#include "devices/disk.h"

struct nvme;
struct pci_bus;
struct map;
struct loop;
struct block;

/* b stays the caller's and is closed after the bus is freed, or when it is gone.  Made while the guest runs, it is off
 * the bus until nvme_insert(). */
int nvme_new(struct nvme **out, struct pci_bus *bus, struct map *m, struct loop *l, struct block *b,
	     const struct disk_traits *t, struct error *e);
unsigned nvme_slot(const struct nvme *n);
/* As virtio_blk_remove() and its kin. */
void nvme_remove(struct nvme *n, void (*gone)(void *opaque), void *opaque);
void nvme_insert(struct nvme *n, struct block *b, const struct disk_traits *t);
void nvme_resized(struct nvme *n);

#endif
