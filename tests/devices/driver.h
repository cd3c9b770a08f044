/* A small virtio driver for the tests: finds a device on the bus, sets its queues up in guest RAM through the
 * same loads and stores that a vCPU would make, and runs the device's I/O loop in a thread. */
#ifndef VIXEN_TESTS_DEVICES_DRIVER_H
#define VIXEN_TESTS_DEVICES_DRIVER_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "devices/pci/pci.h"
#include "host/loop.h"
#include "memory/map.h"

#define RAM_BYTES (64u << 20)
#define RING_SIZE 64u

struct bench {			/* a board with nothing but a bus */
	struct map *map;
	struct loop *loop;
	struct pci_bus *bus;
	pthread_t thread;
	bool running;
	atomic_uint msi[64];	/* by data value */
	atomic_int line[4];
	uint64_t next_gpa;	/* bump allocator */
};

void bench_init(struct bench *b);
void bench_run(struct bench *b);	/* assigns BARs, starts the loop thread */
void bench_stop(struct bench *b);
void bench_fini(struct bench *b);	/* stops; frees the bus and its devices */
void bench_free(struct bench *b);	/* loop and map */
uint64_t bench_alloc(struct bench *b, uint64_t bytes);
uint32_t cfg_read(struct bench *b, unsigned slot, unsigned offset, unsigned size);
void cfg_write(struct bench *b, unsigned slot, unsigned offset, unsigned size, uint32_t value);

struct buf { uint64_t gpa; uint32_t len; bool in; };

struct ring {
	uint64_t desc, avail, used;
	uint16_t next_avail, seen_used;
};
struct drv {
	struct bench *b;
	unsigned slot;
	uint64_t common, isr, config, notify;
	uint32_t notify_stride;
	uint64_t offered, features;
	unsigned queues;
	struct ring ring[32];
};

void drv_find(struct drv *d, struct bench *b, unsigned slot);
/* The whole dance to DRIVER_OK with these features (of those offered) and MSI-X vector i + 1 for queue i. */
void drv_start(struct drv *d, uint64_t features);
void drv_reset(struct drv *d);
uint8_t drv_status(struct drv *d);
/* Puts a chain in descriptors from `first` on and makes it available; the queue's doorbell is rung by kick. */
void drv_add(struct drv *d, unsigned q, unsigned first, const struct buf *bufs, unsigned n);
void drv_kick(struct drv *d, unsigned q);
/* Waits for the next used entry; false after a few seconds. */
bool drv_wait(struct drv *d, unsigned q, uint32_t *id, uint32_t *len);
/* One request, start to end; the used length, or ~0. */
uint32_t drv_request(struct drv *d, unsigned q, const struct buf *bufs, unsigned n);
/* Waits up to a few seconds until *p has the wanted value. */
bool wait_for(atomic_uint *p, unsigned at_least);

#endif
