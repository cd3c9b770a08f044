/* virtio-blk (virtio 1.2, 5.2): a disk on a block node. */
#ifndef VIXEN_DEVICES_VIRTIO_BLK_H
#define VIXEN_DEVICES_VIRTIO_BLK_H

#include "base/error.h"
#include "devices/disk.h"

struct virtio_blk;
struct pci_bus;
struct map;
struct loop;
struct block;

/* Puts a disk on the bus (the next free slot). queues: 1..16.
 * Owner: the bus, which frees it; `b` stays the caller's and is closed after the bus is freed.
 * Thread: before the loop runs.  -ENOMEM, -ENOSPC (no slot left), -EMFILE. */
int virtio_blk_new(struct virtio_blk **out, struct pci_bus *bus, struct map *m, struct loop *l,
		   struct block *b, const struct disk_traits *t, unsigned queues, struct error *e);
/* The disk has another size now: the driver is told.  The loop's thread. */
void virtio_blk_resized(struct virtio_blk *d);
/* Its block stands on another image: topology and features are that one's, features from the next reset on.  Until then a driver
 * that has negotiated secure erase is told that it is not supported where it would leave copies.  The loop's thread. */
void virtio_blk_changed(struct virtio_blk *d);
/* Takes the disk out: the slot is empty for the driver, and `gone` runs, maybe at once, when no request is under way;
 * b is to be closed from the loop, not in the callback.  The device stays for another disk.  The loop's thread. */
void virtio_blk_remove(struct virtio_blk *d, void (*gone)(void *opaque), void *opaque);
/* Puts a disk into a device that has none, or that was made after the guest had started. */
void virtio_blk_insert(struct virtio_blk *d, struct block *b, const struct disk_traits *t);
/* The PCI slot the disk got (for boot order). */
unsigned virtio_blk_slot(const struct virtio_blk *d);

#endif
