#include "driver.h"

#include <linux/virtio_config.h>
#include <linux/virtio_pci.h>
#include <linux/virtio_ring.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "base/error.h"

static void line_set(void *opaque, unsigned pin, bool level)
{
	struct bench *b = opaque;

	atomic_store(&b->line[pin], level);
}

static void msi_send(void *opaque, uint64_t gpa, uint32_t data)
{
	struct bench *b = opaque;

	ASSERT(gpa == 0xfee00000);
	atomic_fetch_add(&b->msi[data % 64], 1);
}

void bench_init(struct bench *b)
{
	struct irq_line lines[4];
	struct msi_sink msi = { msi_send, b };

	memset(b, 0, sizeof(*b));
	for (unsigned i = 0; i < 4; i++)
		lines[i] = (struct irq_line){ line_set, b, i };
	b->map = map_new();
	b->loop = loop_new();
	ASSERT(b->map && b->loop && map_add_ram(b->map, 0, RAM_BYTES, NULL) == 0);
	b->bus = pci_bus_new(b->map, lines, &msi, 1ull << 32);
	ASSERT(b->bus);
	b->next_gpa = 1 << 20;
}

static void *loop_main(void *opaque)
{
	struct bench *b = opaque;

	loop_run(b->loop);
	return NULL;
}

void bench_run(struct bench *b)
{
	pci_bus_assign(b->bus);
	ASSERT(pthread_create(&b->thread, NULL, loop_main, b) == 0);
	b->running = true;
}

void bench_stop(struct bench *b)
{
	if (!b->running)
		return;
	loop_stop(b->loop);
	pthread_join(b->thread, NULL);
	b->running = false;
}

void bench_fini(struct bench *b)
{
	bench_stop(b);
	pci_bus_free(b->bus);
}

void bench_free(struct bench *b)
{
	loop_free(b->loop);
	map_free(b->map);
}

uint64_t bench_alloc(struct bench *b, uint64_t bytes)
{
	uint64_t gpa = b->next_gpa;

	b->next_gpa += (bytes + 4095) & ~4095ull;
	ASSERT(b->next_gpa <= RAM_BYTES);
	return gpa;
}

uint32_t cfg_read(struct bench *b, unsigned slot, unsigned offset, unsigned size)
{
	return (uint32_t)map_load(b->map, PCI_ECAM_GPA + (slot << 15) + offset, size);
}

void cfg_write(struct bench *b, unsigned slot, unsigned offset, unsigned size, uint32_t value)
{
	map_store(b->map, PCI_ECAM_GPA + (slot << 15) + offset, size, value);
}

static uint64_t bar_gpa(struct bench *b, unsigned slot, unsigned bar)
{
	uint32_t low = cfg_read(b, slot, 0x10 + 4 * bar, 4);
	uint64_t gpa = low & ~15u;

	if ((low & 6) == 4)
		gpa |= (uint64_t)cfg_read(b, slot, 0x14 + 4 * bar, 4) << 32;
	return gpa;
}

void drv_find(struct drv *d, struct bench *b, unsigned slot)
{
	memset(d, 0, sizeof(*d));
	d->b = b;
	d->slot = slot;
	for (unsigned cap = cfg_read(b, slot, 0x34, 1); cap; cap = cfg_read(b, slot, cap + 1, 1)) {
		uint64_t where;

		if (cfg_read(b, slot, cap, 1) == 0x11) {
			uint64_t table = bar_gpa(b, slot, cfg_read(b, slot, cap + 4, 4) & 7);
			unsigned n = (cfg_read(b, slot, cap + 2, 2) & 0x7ff) + 1;

			for (unsigned i = 0; i < n; i++) {
				map_store(b->map, table + 16 * i, 4, 0xfee00000);
				map_store(b->map, table + 16 * i + 4, 4, 0);
				map_store(b->map, table + 16 * i + 8, 4, i);
				map_store(b->map, table + 16 * i + 12, 4, 0);
			}
			cfg_write(b, slot, cap + 2, 2, 0x8000);
		}
		if (cfg_read(b, slot, cap, 1) != 9)
			continue;
		where = bar_gpa(b, slot, cfg_read(b, slot, cap + 4, 1)) + cfg_read(b, slot, cap + 8, 4);
		switch (cfg_read(b, slot, cap + 3, 1)) {
		case VIRTIO_PCI_CAP_COMMON_CFG: d->common = where; break;
		case VIRTIO_PCI_CAP_ISR_CFG: d->isr = where; break;
		case VIRTIO_PCI_CAP_DEVICE_CFG: d->config = where; break;
		case VIRTIO_PCI_CAP_NOTIFY_CFG:
			d->notify = where;
			d->notify_stride = cfg_read(b, slot, cap + 16, 4);
			break;
		}
	}
	ASSERT(d->common && d->isr && d->config && d->notify);
}

static void put(struct drv *d, unsigned offset, unsigned size, uint64_t v)
{
	map_store(d->b->map, d->common + offset, size, v);
}

static uint64_t get(struct drv *d, unsigned offset, unsigned size)
{
	return map_load(d->b->map, d->common + offset, size);
}

uint8_t drv_status(struct drv *d)
{
	return (uint8_t)get(d, VIRTIO_PCI_COMMON_STATUS, 1);
}

static void nap(void)
{
	nanosleep(&(struct timespec){ .tv_nsec = 50000 }, NULL);
}

void drv_reset(struct drv *d)
{
	put(d, VIRTIO_PCI_COMMON_STATUS, 1, 0);
	for (unsigned i = 0; drv_status(d); i++) {
		ASSERT(i < 200000);
		nap();
	}
}

static void negotiate(struct drv *d, uint64_t features)
{
	put(d, VIRTIO_PCI_COMMON_STATUS, 1, 1);
	put(d, VIRTIO_PCI_COMMON_STATUS, 1, 3);
	for (unsigned i = 0; i < 2; i++) {
		put(d, VIRTIO_PCI_COMMON_DFSELECT, 4, i);
		d->offered |= get(d, VIRTIO_PCI_COMMON_DF, 4) << (32 * i);
	}
	d->features = (features | 1ull << VIRTIO_F_VERSION_1) & d->offered;
	for (unsigned i = 0; i < 2; i++) {
		put(d, VIRTIO_PCI_COMMON_GFSELECT, 4, i);
		put(d, VIRTIO_PCI_COMMON_GF, 4, d->features >> (32 * i) & 0xffffffff);
	}
	put(d, VIRTIO_PCI_COMMON_STATUS, 1, 0xb);
	ASSERT(drv_status(d) == 0xb);
}

static void ring_setup(struct drv *d, unsigned i)
{
	struct ring *r = &d->ring[i];

	if (!r->desc) {
		r->desc = bench_alloc(d->b, 16 * RING_SIZE);
		r->avail = bench_alloc(d->b, 6 + 2 * RING_SIZE);
		r->used = bench_alloc(d->b, 6 + 8 * RING_SIZE);
	}
	memset(map_ptr(d->b->map, r->avail, 6 + 2 * RING_SIZE, true), 0, 6 + 2 * RING_SIZE);
	memset(map_ptr(d->b->map, r->used, 6 + 8 * RING_SIZE, true), 0, 6 + 8 * RING_SIZE);
	r->next_avail = r->seen_used = 0;
	put(d, VIRTIO_PCI_COMMON_Q_SELECT, 2, i);
	put(d, VIRTIO_PCI_COMMON_Q_SIZE, 2, RING_SIZE);
	put(d, VIRTIO_PCI_COMMON_Q_MSIX, 2, i + 1);
	put(d, VIRTIO_PCI_COMMON_Q_DESCLO, 4, r->desc);
	put(d, VIRTIO_PCI_COMMON_Q_DESCHI, 4, 0);
	put(d, VIRTIO_PCI_COMMON_Q_AVAILLO, 4, r->avail);
	put(d, VIRTIO_PCI_COMMON_Q_USEDLO, 4, r->used);
	put(d, VIRTIO_PCI_COMMON_Q_ENABLE, 2, 1);
}

void drv_start(struct drv *d, uint64_t features)
{
	drv_reset(d);
	d->offered = 0;
	negotiate(d, features);
	d->queues = (unsigned)get(d, VIRTIO_PCI_COMMON_NUMQ, 2);
	put(d, VIRTIO_PCI_COMMON_MSIX, 2, 0);
	for (unsigned i = 0; i < d->queues; i++)
		ring_setup(d, i);
	put(d, VIRTIO_PCI_COMMON_STATUS, 1, 0xf);
}

void drv_add(struct drv *d, unsigned q, unsigned first, const struct buf *bufs, unsigned n)
{
	struct ring *r = &d->ring[q];
	uint16_t *avail = map_ptr(d->b->map, r->avail, 6 + 2 * RING_SIZE, true);
	struct vring_desc *desc = map_ptr(d->b->map, r->desc, 16 * RING_SIZE, true);

	for (unsigned i = 0; i < n; i++) {
		desc[first + i] = (struct vring_desc){
			.addr = bufs[i].gpa, .len = bufs[i].len, .next = (uint16_t)(first + i + 1),
			.flags = (uint16_t)((bufs[i].in ? VRING_DESC_F_WRITE : 0) |
					    (i + 1 < n ? VRING_DESC_F_NEXT : 0)),
		};
	}
	avail[2 + r->next_avail % RING_SIZE] = (uint16_t)first;
	__atomic_store_n(&avail[1], ++r->next_avail, __ATOMIC_SEQ_CST);
}

void drv_kick(struct drv *d, unsigned q)
{
	map_store(d->b->map, d->notify + d->notify_stride * q, 2, q);
}

bool drv_wait(struct drv *d, unsigned q, uint32_t *id, uint32_t *len)
{
	struct ring *r = &d->ring[q];
	uint16_t *used = map_ptr(d->b->map, r->used, 6 + 8 * RING_SIZE, true);
	struct vring_used_elem e;

	for (unsigned i = 0; __atomic_load_n(&used[1], __ATOMIC_ACQUIRE) == r->seen_used; i++) {
		if (i > 100000)
			return false;
		nap();
	}
	memcpy(&e, (uint8_t *)used + 4 + 8 * (r->seen_used % RING_SIZE), sizeof(e));
	r->seen_used++;
	if (id)
		*id = e.id;
	if (len)
		*len = e.len;
	return true;
}

uint32_t drv_request(struct drv *d, unsigned q, const struct buf *bufs, unsigned n)
{
	uint32_t len;

	drv_add(d, q, 0, bufs, n);
	drv_kick(d, q);
	return drv_wait(d, q, NULL, &len) ? len : ~0u;
}

bool wait_for(atomic_uint *p, unsigned at_least)
{
	for (unsigned i = 0; i < 40000; i++) {
		if (atomic_load(p) >= at_least)
			return true;
		nap();
	}
	return false;
}
