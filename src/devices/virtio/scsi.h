/* virtio-scsi (virtio 1.2, 5.6): a host adapter with a target for each disk and drive. */
#ifndef VIXEN_DEVICES_VIRTIO_SCSI_H
#define VIXEN_DEVICES_VIRTIO_SCSI_H

#include "base/error.h"
#include "devices/disk.h"

#define VIRTIO_SCSI_TARGETS 32u

struct virtio_scsi;
struct pci_bus;
struct map;
struct loop;
struct block;

/* Owner: the bus.  queues: of requests, 1..16.  Thread: before the loop runs. */
int virtio_scsi_new(struct virtio_scsi **out, struct pci_bus *bus, struct map *m, struct loop *l, unsigned queues,
		    struct error *e);

/* The rest on the loop's thread. */

/* Puts a disk or a CD-ROM drive at the first free target, whose number is returned, and tells the driver.  b stays the
 * caller's.  -ENOSPC: all are taken. */
int virtio_scsi_attach(struct virtio_scsi *d, struct block *b, bool cdrom, const struct disk_traits *t, struct error *e);
/* Takes it away and tells the driver.  `gone` runs, maybe at once, when none of its tasks is under way: the device is
 * done with b, which is to be closed from the loop, not in the callback. */
void virtio_scsi_detach(struct virtio_scsi *d, unsigned target, void (*gone)(void *opaque), void *opaque);
void virtio_scsi_resized(struct virtio_scsi *d, unsigned target);

#endif
