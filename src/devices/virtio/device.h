/* Inside of struct virtio: for virtio.c (life cycle) and transport.c (registers) only. */
#ifndef VIXEN_DEVICES_VIRTIO_DEVICE_H
#define VIXEN_DEVICES_VIRTIO_DEVICE_H

#include <pthread.h>
#include <stdatomic.h>

#include "devices/pci/pci.h"
#include "devices/virtio/virtio.h"

#define NO_VECTOR 0xffffu
#define TRANSPORT_BAR 4u
#define MSIX_BAR 1u
#define NOTIFY_OFFSET 0x3000u
#define NOTIFY_STRIDE 4u

struct vq {
	struct virtio *v;
	unsigned index;
	/* Registers, under v->lock. */
	uint16_t size;
	bool enabled;
	uint64_t desc, avail, used;
	atomic_uint vector;
	/* Doorbell. */
	int eventfd;
	uint64_t doorbell_gpa;	/* where the map signals it; under the bus' lock */
	atomic_bool kicked;	/* the eventfd is (about to be) readable */
	struct loop_fd *watch;
	/* Loop thread. */
	struct virtq ring;
	bool restored;		/* the next start continues at these positions */
	uint16_t restored_avail, restored_used;
};

struct virtio {
	const struct virtio_class *class;
	void *opaque;
	struct map *map;
	struct loop *loop;
	struct pci_dev *pci;
	unsigned nqueues;
	struct vq *vq;

	pthread_mutex_t lock;	/* registers; after the bus' lock, before those of INTx and MSI-X */
	atomic_uint status;
	uint64_t offered, accepted;
	uint32_t feature_select, driver_feature_select;
	uint16_t queue_select;
	atomic_uint config_vector;
	bool started;		/* start was posted, stop has not completed */
	bool resetting;		/* stop was posted; register writes are ignored until it has completed */
	bool withdrawn;		/* off the bus: register writes, of a vCPU that is late, are ignored */
	uint8_t generation;
	bool config_seen;	/* the driver has read the configuration since generation changed */
	unsigned config_len;
	uint8_t config[VIRTIO_CONFIG_MAX], config_wmask[VIRTIO_CONFIG_MAX];
	uint8_t config_initial[VIRTIO_CONFIG_MAX];	/* what a reset gives the guest-writable bits */
	unsigned access_cap;	/* offset of the PCI configuration access capability */

	pthread_mutex_t isr_lock;	/* isr and the INTx level together */
	uint8_t isr;

	atomic_uint in_flight;	/* requests under way + 1 while live */
	uint64_t features;	/* loop thread: negotiated */
	bool live;		/* loop thread */
};

/* virtio.c; v->lock held */
void device_start(struct virtio *v);
void device_reset(struct virtio *v);
void device_interrupt(struct virtio *v, unsigned vector, uint8_t isr_bit);

/* transport.c */
int transport_init(struct virtio *v, struct pci_bus *bus);
void transport_reset_registers(struct virtio *v);
void doorbell_ring(struct vq *q);
extern const struct pci_hooks transport_hooks;

/* virtio.c */
void device_save(void *opaque, struct stream *s);
int device_load(void *opaque, struct stream *s);
void device_free(void *opaque);

#endif
