/*
 * Hostile drivers: random rings, descriptors and registers, over all devices.  Nothing is expected but that
 * the devices survive, and that they work again after a reset.  VIXEN_FUZZ_OPS sets the number of operations.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>
#include <linux/virtio_ring.h>

#include "block/block.h"
#include "devices/pci/lpc.h"
#include "devices/virtio/blk.h"
#include "devices/virtio/console.h"
#include "devices/virtio/net.h"
#include "devices/virtio/queue.h"
#include "devices/virtio/rng.h"
#include "devices/virtio/scsi.h"
#include "driver.h"

#define DISK_BYTES (1u << 20)
#define DEVICES 5u
#define FRAME_BYTES 65550u

struct world {
	struct bench b;
	struct drv d[DEVICES];
	struct block *block;
	struct net_backend be;
	const struct net_sink *sink;
	struct virtio_console *console;
	uint64_t seed, playground;
	struct loop_timer *tick;
	char path[64];
};

static uint64_t rnd(struct world *w)
{
	w->seed ^= w->seed << 13;
	w->seed ^= w->seed >> 7;
	w->seed ^= w->seed << 17;
	return w->seed;
}

static void be_send(void *opaque, const struct iovec *iov, int n)
{
	struct world *w = opaque;
	uint8_t frame[FRAME_BYTES];
	size_t len = 0;

	for (int i = 0; i < n; i++) {
		assert_true(iov[i].iov_len <= sizeof(frame) - len);
		memcpy(frame + len, iov[i].iov_base, iov[i].iov_len);
		len += iov[i].iov_len;
	}
	if (w->sink->can_receive(w->sink->opaque))	/* a mirror */
		w->sink->receive(w->sink->opaque, frame, len);
}

static void be_none(void *opaque)
{
}

static const struct net_ops be_ops = { be_send, be_none, be_none };

static void print(void *opaque, const void *buf, size_t len)
{
	uint8_t sum = 0;

	for (size_t i = 0; i < len; i++)	/* touch them */
		sum ^= ((const uint8_t *)buf)[i];
	*(volatile uint8_t *)&sum = sum;
}

static void tick(void *opaque)
{
	struct world *w = opaque;

	virtio_console_input(w->console, "input from the world", 20);
	loop_timer_set(w->tick, clock_now_ns() + 1000000);
}

static int setup(void **state)
{
	struct world *w = calloc(1, sizeof(*w));
	static const uint8_t mac[6] = { 2, 0, 0, 0, 0, 1 };
	struct console_sink sink = { print, NULL, w };
	struct virtio_blk *blk;
	struct virtio_scsi *scsi;
	struct virtio_net *net;
	struct virtio_rng *rng;
	int fd;

	strcpy(w->path, "/tmp/vixen-fuzz-XXXXXX");
	fd = mkstemp(w->path);
	assert_int_equal(ftruncate(fd, DISK_BYTES), 0);
	close(fd);
	w->seed = 88172645463325252ull;
	bench_init(&w->b);
	assert_int_equal(block_open(&w->block, w->b.loop, w->path, "raw", 0, NULL), 0);
	assert_int_equal(virtio_blk_new(&blk, w->b.bus, w->b.map, w->b.loop, w->block,
					&(struct disk_traits){ 0 }, 4, NULL), 0);
	assert_int_equal(virtio_net_new(&net, w->b.bus, w->b.map, w->b.loop, mac, NULL), 0);
	assert_int_equal(virtio_rng_new(&rng, w->b.bus, w->b.map, w->b.loop, NULL), 0);
	assert_int_equal(virtio_console_new(&w->console, w->b.bus, w->b.map, w->b.loop, &sink, NULL), 0);
	assert_int_equal(virtio_scsi_new(&scsi, w->b.bus, w->b.map, w->b.loop, 2, NULL), 0);
	for (unsigned i = 0; i < 3; i++)	/* targets 0 to 2, which small numbers name */
		assert_int_equal(virtio_scsi_attach(scsi, w->block, i == 2, &(struct disk_traits){ 0 }, NULL), i);
	w->sink = virtio_net_sink(net);
	virtio_net_attach(net, &(struct net_backend){ &be_ops, w });
	w->tick = loop_timer_new(w->b.loop, tick, w);
	loop_timer_set(w->tick, 0);
	bench_run(&w->b);
	for (unsigned i = 0; i < DEVICES; i++)
		drv_find(&w->d[i], &w->b, i + 1);
	w->playground = bench_alloc(&w->b, 1 << 20);
	*state = w;
	return 0;
}

static int teardown(void **state)
{
	struct world *w = *state;

	bench_fini(&w->b);
	loop_timer_free(w->tick);
	block_close(w->block);
	bench_free(&w->b);
	unlink(w->path);
	free(w);
	return 0;
}

static void offer(struct virtq *q, uint16_t idx)
{
	memcpy(q->avail + 2, &idx, 2);
}

/* One descriptor, offered again and again before it was answered: no more than the ring has room for are taken. */
static void test_unanswered(void **state)
{
	struct world *w = *state;
	struct virtq *q = calloc(1, sizeof(*q));
	uint64_t desc = w->playground, avail = desc + 0x1000, used = desc + 0x2000;
	struct vring_desc d = { .addr = desc + 0x3000, .len = 16 };
	struct virtq_chain c;

	assert_non_null(q);
	assert_true(map_write(w->b.map, desc, &d, sizeof(d)));
	assert_true(virtq_start(q, w->b.map, 4, desc, avail, used, 0));
	for (uint16_t turn = 0; turn < 40000; turn++) {	/* indices wrap */
		offer(q, (uint16_t)(turn + 1));
		assert_true(virtq_pop(q, &c));
		if (turn >= 3)
			virtq_push(q, c.head, 0);
	}
	for (unsigned i = 0; i < 3; i++)
		virtq_push(q, 0, 0);
	assert_true(!q->broken);
	offer(q, (uint16_t)(q->avail_next + 4));
	for (unsigned i = 0; i < 4; i++)
		assert_true(virtq_pop(q, &c));
	offer(q, (uint16_t)(q->avail_next + 1));
	assert_false(virtq_pop(q, &c));
	assert_true(q->broken);
	free(q);
}

static unsigned long operations(unsigned long usual)
{
	const char *s = getenv("VIXEN_FUZZ_OPS");

	return s ? strtoul(s, NULL, 0) : usual;
}

/* Mostly where RAM is, sometimes at its edges, sometimes anywhere. */
static uint64_t some_gpa(struct world *w)
{
	uint64_t r = rnd(w);

	switch (r & 15) {
	case 0: return rnd(w);
	case 1: return RAM_BYTES - (rnd(w) & 0xfff);
	case 2: return w->d[r >> 8 & 3].common + (rnd(w) & 0x3fff);
	default: return w->playground + (rnd(w) & 0xfffff);
	}
}

static uint32_t some_len(struct world *w)
{
	uint64_t r = rnd(w);

	switch (r & 7) {
	case 0: return (uint32_t)(r >> 8);
	case 1: return 0;
	case 2: return (uint32_t)(r >> 8 & 0x1ffff);
	default: return (uint32_t)(r >> 8 & 0x7ff);
	}
}

static void some_desc(struct world *w, struct vring_desc *d)
{
	uint64_t r = rnd(w);

	d->addr = some_gpa(w);
	d->len = r & 1 ? some_len(w) : 16u << (r >> 1 & 3);
	d->flags = (uint16_t)(r >> 8 & ((r >> 16 & 15) ? 3 : 0xffff));
	d->next = (uint16_t)(r >> 32 & (r >> 20 & 7 ? 63 : 0xffff));
}

static void scramble(struct world *w, struct drv *d, unsigned q)
{
	struct vring_desc *desc = map_ptr(w->b.map, d->ring[q].desc, 16 * RING_SIZE, true);
	uint16_t *avail = map_ptr(w->b.map, d->ring[q].avail, 6 + 2 * RING_SIZE, true);
	uint32_t *play = map_ptr(w->b.map, w->playground, 1 << 20, true);
	unsigned n = 1 + (unsigned)(rnd(w) % 8);

	for (unsigned i = 0; i < n; i++) {
		some_desc(w, &desc[rnd(w) % RING_SIZE]);
		some_desc(w, (struct vring_desc *)(play + rnd(w) % 0x1000 * 4));
		play[rnd(w) % 0x40000] = (uint32_t)(rnd(w) % 15);	/* request types and the like */
		play[rnd(w) % 0x40000] = 0x00400001u | (uint32_t)(rnd(w) % 3) << 8;	/* the address of a SCSI target */
	}
	avail[2 + rnd(w) % RING_SIZE] = (uint16_t)(rnd(w) % (rnd(w) & 7 ? RING_SIZE : 65536));
	avail[1] = (uint16_t)(avail[1] + (rnd(w) & 31 ? rnd(w) % 4 : rnd(w)));
}

static void test_rings(void **state)
{
	struct world *w = *state;
	unsigned long ops = operations(300000);

	for (unsigned long i = 0; i < ops; i++) {
		struct drv *d = &w->d[rnd(w) % DEVICES];
		unsigned q;

		if (!(drv_status(d) & 4) || (drv_status(d) & 0x40) || i % 5000 == 0)
			drv_start(d, rnd(w) | 1ull << 32);
		q = (unsigned)(rnd(w) % d->queues);
		scramble(w, d, q);
		drv_kick(d, q);
	}
	for (unsigned i = 0; i < DEVICES; i++)
		drv_reset(&w->d[i]);
	assert_true(pci_bus_idle(w->b.bus));
}

static void some_register(struct world *w)
{
	struct drv *d = &w->d[rnd(w) % DEVICES];
	unsigned size = 1u << rnd(w) % 4;
	uint64_t value = rnd(w) & 1 ? rnd(w) : rnd(w) & 0xf, gpa = d->common + (rnd(w) & 0x3fff);

	if (rnd(w) & 3)
		gpa = d->common + (rnd(w) & 0x3f);
	if (!(rnd(w) & 7))
		gpa = d->notify + (rnd(w) & 0x1f);
	gpa &= ~(uint64_t)(size - 1);
	if (rnd(w) & 3)
		map_store(w->b.map, gpa, size, value);
	else
		map_load(w->b.map, gpa, size);
}

static void some_config(struct world *w)
{
	unsigned slot = (unsigned)(rnd(w) % 32), offset = (unsigned)(rnd(w) & 0xff), size = 1u << rnd(w) % 3;

	offset &= ~(size - 1);
	if (rnd(w) & 1) {
		cfg_read(&w->b, slot, offset, size);
		return;
	}
	pio_store(w->b.map, 0xcf8, 4, 0x80000000u | slot << 11 | (offset & 0xfc));
	pio_store(w->b.map, (uint16_t)(0xcfc + (offset & 3)), size, (uint32_t)rnd(w));
	pio_store(w->b.map, (uint16_t)(0xcf8 + rnd(w) % 8), 1, (uint32_t)rnd(w));
	pio_load(w->b.map, (uint16_t)(0xcf8 + rnd(w) % 8), 1);
}

static void test_registers(void **state)
{
	struct world *w = *state;
	unsigned long ops = operations(300000);

	for (unsigned long i = 0; i < ops; i++) {
		if (rnd(w) % 64)
			some_register(w);
		else
			some_config(w);
		if (i % 4096 == 0) {
			pci_bus_reset(w->b.bus);
			pci_bus_assign(w->b.bus);
		}
	}
	pci_bus_reset(w->b.bus);
	pci_bus_assign(w->b.bus);
	for (unsigned i = 0; i < DEVICES; i++) {
		drv_find(&w->d[i], &w->b, i + 1);
		drv_start(&w->d[i], ~0ull);
	}
	uint64_t gpa = bench_alloc(&w->b, 4096);
	assert_int_equal(drv_request(&w->d[2], 0, &(struct buf){ gpa, 64, true }, 1), 64);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(test_unanswered, setup, teardown),
		cmocka_unit_test_setup_teardown(test_rings, setup, teardown),
		cmocka_unit_test_setup_teardown(test_registers, setup, teardown),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
