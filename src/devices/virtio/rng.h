/* virtio-rng (virtio 1.2, 5.4): entropy from the host's getrandom(). */
#ifndef VIXEN_DEVICES_VIRTIO_RNG_H
#define VIXEN_DEVICES_VIRTIO_RNG_H

#include "base/error.h"

struct virtio_rng;
struct pci_bus;
struct map;
struct loop;

/* Owner: the bus. Thread: before the loop runs. */
int virtio_rng_new(struct virtio_rng **out, struct pci_bus *bus, struct map *m, struct loop *l,
		   struct error *e);

#endif
