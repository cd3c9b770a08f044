/*
 * Drivers that break the rules of virtio's queues, on disks: a virtio-blk device and an adapter of virtio-scsi.  The bytes
 * are a program that writes descriptors, requests, rings and registers.  Afterwards, and after a reset, the disk must
 * work.
 */
#include <linux/virtio_blk.h>
#include <linux/virtio_ring.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "../block/disk.h"
#include "../devices/driver.h"
#include "base/endian.h"
#include "devices/virtio/blk.h"
#include "devices/virtio/scsi.h"
#include "fuzz.h"

#define DISK_BYTES (1u << 20)
#define PROGRAM_MAX 4096u
#define PLAYGROUND (1u << 18)

struct world {
	struct bench b;
	struct drv d[2];
	struct block *block;
	uint64_t play;
};

struct program { const uint8_t *p; size_t left; };

static uint64_t take(struct program *g, unsigned n)
{
	uint64_t v = 0;

	for (unsigned i = 0; i < n && g->left; i++, g->left--)
		v |= (uint64_t)*g->p++ << 8 * i;
	return v;
}

static void world_init(struct world *w, bool readonly)
{
	static const uint8_t data[512] = { 1 };
	struct block_fd fd = { "disk", fuzz_memfd(data, sizeof(data)) };
	struct disk d = { 0 };
	struct virtio_blk *blk;
	struct virtio_scsi *scsi;

	memset(w, 0, sizeof(*w));
	bench_init(&w->b);
	d.loop = w->b.loop;
	if (ftruncate(fd.fd, DISK_BYTES))
		die("a disk");
	disk_open(&d, "disk", &(struct block_options){ .format = "raw", .fds = &fd, .nfds = 1,
						       .flags = readonly ? BLOCK_READONLY : 0 });
	close(fd.fd);
	w->block = d.b;
	if (virtio_blk_new(&blk, w->b.bus, w->b.map, w->b.loop, d.b, &(struct disk_traits){ 0 }, 2, NULL) ||
	    virtio_scsi_new(&scsi, w->b.bus, w->b.map, w->b.loop, 1, NULL) ||
	    virtio_scsi_attach(scsi, d.b, false, &(struct disk_traits){ 0 }, NULL) != 0 ||
	    virtio_scsi_attach(scsi, d.b, true, &(struct disk_traits){ 0 }, NULL) != 1)
		die("devices");
	bench_run(&w->b);
	for (unsigned i = 0; i < 2; i++) {
		drv_find(&w->d[i], &w->b, i + 1);
		drv_start(&w->d[i], ~0ull);
	}
	w->play = bench_alloc(&w->b, PLAYGROUND);
}

static void world_fini(struct world *w)
{
	for (unsigned i = 0; i < 2; i++)
		drv_reset(&w->d[i]);
	while (!pci_bus_idle(w->b.bus))
		nanosleep(&(struct timespec){ .tv_nsec = 50000 }, NULL);
	bench_fini(&w->b);
	block_close(w->block);
	bench_free(&w->b);
}

/* Mostly in the playground, at times anywhere. */
static uint64_t some_gpa(struct world *w, struct program *g)
{
	uint8_t kind = (uint8_t)take(g, 1);

	switch (kind & 15) {
	case 0: return take(g, 8);
	case 1: return RAM_BYTES - take(g, 2);
	case 2: return w->d[kind >> 4 & 1].common + take(g, 2);
	default: return w->play + (take(g, 2) << 2);
	}
}

static void some_desc(struct world *w, struct program *g, struct vring_desc *d)
{
	uint8_t bits = (uint8_t)take(g, 1);

	d->addr = some_gpa(w, g);
	d->len = bits & 1 ? (uint32_t)take(g, bits & 2 ? 4 : 2) : 16u << (bits >> 1 & 7);
	d->flags = (uint16_t)(bits & 0x80 ? take(g, 2) : bits >> 4 & 3);
	d->next = (uint16_t)(bits & 0x40 ? take(g, 2) : take(g, 1) % RING_SIZE);
}

/* An honest shape with some values of the program's: header, data, status. */
static void some_request(struct world *w, struct program *g, struct drv *d, unsigned q)
{
	uint8_t bits = (uint8_t)take(g, 1), *head = map_ptr(w->b.map, w->play, 256, true);
	struct buf bufs[4] = { { w->play, 16, false }, { some_gpa(w, g), (uint32_t)take(g, 2), bits & 1 },
			       { w->play + 128, 1, true } };

	store_le32(head, bits & 2 ? (uint32_t)take(g, 4) : (uint32_t)take(g, 1) % 16);
	store_le64(head + 8, take(g, bits & 4 ? 8 : 1));
	if (d == &w->d[1]) {		/* a SCSI command: LUN, tag, CDB */
		store_le64(head, bits & 8 ? take(g, 8) : 0x400001ull + ((uint64_t)(bits >> 4 & 1) << 8));
		for (unsigned i = 19; i < 51; i++)
			head[i] = (uint8_t)take(g, 1);
		bufs[0].len = 51;
		bufs[2].len = 108;
	}
	drv_add(d, q, (unsigned)take(g, 1) % (RING_SIZE - 4), bufs, 3);
}

static void step(struct world *w, struct program *g)
{
	uint8_t op = (uint8_t)take(g, 1);
	struct drv *d = &w->d[op >> 3 & 1];
	unsigned q = op >> 4 & 3;
	struct vring_desc *desc;
	uint16_t *avail;

	if (!(drv_status(d) & 4) || drv_status(d) & 0x40)
		drv_start(d, take(g, 4) | 1ull << 32 | take(g, 1) << 33);
	q %= d->queues;
	desc = map_ptr(w->b.map, d->ring[q].desc, 16 * RING_SIZE, true);
	avail = map_ptr(w->b.map, d->ring[q].avail, 6 + 2 * RING_SIZE, true);
	switch (op & 7) {
	case 0: some_desc(w, g, &desc[take(g, 1) % RING_SIZE]); break;
	case 1: some_desc(w, g, (struct vring_desc *)map_ptr(w->b.map, w->play + take(g, 1) * 16, 16, true)); break;
	case 2: avail[2 + take(g, 1) % RING_SIZE] = (uint16_t)take(g, 1); break;
	case 3: avail[1] = (uint16_t)(op & 0x80 ? take(g, 2) : avail[1] + 1u); break;
	case 4: map_store(w->b.map, d->common + (take(g, 1) & 0x3c), 4, take(g, 4)); break;
	case 5: drv_kick(d, q); break;
	default: some_request(w, g, d, q);
	}
}

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t len)
{
	struct program g = { bytes, len < PROGRAM_MAX ? len : PROGRAM_MAX };
	struct world w;
	uint8_t *head;

	world_init(&w, take(&g, 1) & 1);
	while (g.left)
		step(&w, &g);
	for (unsigned i = 0; i < 2; i++)
		for (unsigned q = 0; q < w.d[i].queues; q++)
			drv_kick(&w.d[i], q);
	drv_reset(&w.d[0]);
	drv_start(&w.d[0], 1ull << 32);
	head = map_ptr(w.b.map, w.play, 16, true);
	memset(head, 0, 16);
	if (drv_request(&w.d[0], 0, (struct buf[]){ { w.play, 16, false }, { w.play + 512, 512, true },
						     { w.play + 16, 1, true } }, 3) != 513)
		die("the disk does not work any more");
	world_fini(&w);
	return 0;
}

static uint8_t *seed(unsigned kind, size_t *len)
{
	*len = PROGRAM_MAX;
	return kind ? NULL : calloc(1, PROGRAM_MAX);
}

/* Another program: any bytes are one. */
static void damage(unsigned kind, uint8_t *p, size_t len)
{
	(void)kind;
	for (size_t i = 0; i < len; i++)
		p[i] = (uint8_t)random();
}

const struct fuzz_target fuzz_target = { .seed = seed, .damage = damage };
