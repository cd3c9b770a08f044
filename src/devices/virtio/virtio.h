/*
 * What every virtio device shares: life cycle, features, queues, interrupts, and its place on the PCI bus.
 *
 *            vCPU threads                              I/O loop thread
 *   registers under v->lock ──DRIVER_OK──▶ post ──▶ start: queues become ready, class->start()
 *   doorbell: eventfd per queue ──────────────────▶ class->kick(queue): pop, work, push, virtio_signal()
 *   status = 0 ──────────────────────────▶ post ──▶ stop: queues silent, class->stop(); when the last
 *   status reads 0 again ◀─────────────────────────  request under way is put, registers are reset
 *
 * The rings and everything in class callbacks belong to the loop thread; the registers to v->lock.
 */
#ifndef VIXEN_DEVICES_VIRTIO_VIRTIO_H
#define VIXEN_DEVICES_VIRTIO_VIRTIO_H

#include "base/error.h"
#include "devices/virtio/queue.h"

#define VIRTIO_QUEUES_MAX 32u
#define VIRTIO_CONFIG_MAX 128u

struct virtio;
struct pci_bus;
struct map;
struct loop;
struct stream;

/* Callbacks run on the loop thread unless noted; all but kick may be NULL. */
struct virtio_class {
	const char *name;		/* outlives everything */
	uint16_t id;			/* virtio 1.2, chapter 5 */
	uint32_t class_code;		/* PCI */
	void (*start)(void *opaque);
	void (*kick)(void *opaque, unsigned queue);	/* there may be something to pop */
	void (*stop)(void *opaque);	/* forget the queues; requests under way still complete */
	void (*config_written)(void *opaque, unsigned offset, unsigned len);	/* vCPU, v->lock held */
	void (*save)(void *opaque, struct stream *s);
	int  (*load)(void *opaque, struct stream *s);
	void (*free)(void *opaque);	/* the loop has ended */
	void (*withdrawn)(void *opaque);	/* nothing is under way any more after virtio_withdraw() */
};

struct virtio_params {
	unsigned queues;		/* 1..VIRTIO_QUEUES_MAX */
	uint64_t features;		/* of the device; the ring's and VERSION_1 are added */
	const void *config;		/* initial device configuration */
	unsigned config_len;
	const uint8_t *config_wmask;	/* guest-writable bits, config_len bytes, or NULL */
};

/* Owner: the bus.  On failure nothing is left and class->free is not called. */
int virtio_new(struct virtio **out, const struct virtio_class *class, const struct virtio_params *p,
	       struct pci_bus *bus, struct map *m, struct loop *l, void *opaque, struct error *e);
unsigned virtio_slot(const struct virtio *v);
struct map *virtio_map(const struct virtio *v);

/* Takes the device off the bus, and puts it there again as another one of its kind; virtio_new() after the guest has
 * started leaves it off.  The loop's thread. */
void virtio_withdraw(struct virtio *v);
void virtio_present(struct virtio *v, uint64_t features, const void *config);

/* Loop thread. */
struct virtq *virtio_queue(struct virtio *v, unsigned i);
bool virtio_has(const struct virtio *v, unsigned feature);	/* negotiated */
void virtio_signal(struct virtio *v, unsigned queue);	/* publish, interrupt, notice a broken ring */
void virtio_again(struct virtio *v, unsigned queue);	/* kick() again after other events had their turn */
void virtio_get(struct virtio *v);	/* a request is under way: a reset waits for virtio_put() */
void virtio_put(struct virtio *v);

/* Any thread. */
void virtio_offer(struct virtio *v, unsigned feature, bool offered);	/* from the next reset on */
void virtio_fail(struct virtio *v);	/* the driver broke the rules: DEVICE_NEEDS_RESET (2.1.2) */
void virtio_config_get(struct virtio *v, unsigned offset, void *buf, unsigned len);
void virtio_config_set(struct virtio *v, unsigned offset, const void *buf, unsigned len, bool interrupt);

#endif
