#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>
#include <fcntl.h>
#include <linux/virtio_blk.h>
#include <linux/virtio_config.h>
#include <linux/virtio_pci.h>
#include <linux/virtio_ring.h>

#include "base/stream.h"
#include "block/node.h"
#include "devices/virtio/blk.h"
#include "driver.h"

#define ALL (~0ull)
#define DISK_BYTES (8u << 20)

struct disk {
	struct bench b;
	struct drv d;
	struct block *block;
	struct virtio_blk *blk;
	uint64_t header, status, data;
	char path[64];
};

static const struct disk_traits usual = { .serial = "serial-1" };

static int disk_setup_traits(void **state, unsigned flags, const struct disk_traits *t)
{
	struct disk *k = calloc(1, sizeof(*k));
	struct error e = {0};
	int fd;

	strcpy(k->path, "/tmp/vixen-blk-XXXXXX");
	fd = mkstemp(k->path);
	assert_true(fd >= 0);
	assert_int_equal(ftruncate(fd, DISK_BYTES), 0);
	close(fd);
	bench_init(&k->b);
	assert_int_equal(block_open(&k->block, k->b.loop, k->path, NULL, flags, &e), 0);
	assert_int_equal(virtio_blk_new(&k->blk, k->b.bus, k->b.map, k->b.loop, k->block, t, 2, &e), 0);
	bench_run(&k->b);
	drv_find(&k->d, &k->b, virtio_blk_slot(k->blk));
	k->header = bench_alloc(&k->b, 4096);
	k->status = bench_alloc(&k->b, 4096);
	k->data = bench_alloc(&k->b, 1 << 20);
	*state = k;
	return 0;
}

static int disk_setup_flags(void **state, unsigned flags)
{
	return disk_setup_traits(state, flags, &usual);
}

static int disk_setup_write_through(void **state)
{
	return disk_setup_traits(state, 0, &(struct disk_traits){ .write_through = true, .logical_bytes = 4096,
								  .physical_bytes = 16384 });
}

static int disk_setup(void **state)
{
	return disk_setup_flags(state, 0);
}

static int disk_setup_pool(void **state)
{
	return disk_setup_flags(state, BLOCK_NO_IO_URING);
}

static int disk_setup_readonly(void **state)
{
	return disk_setup_flags(state, BLOCK_READONLY);
}

static int disk_setup_ephemeral(void **state)
{
	return disk_setup_flags(state, BLOCK_EPHEMERAL);
}

static int disk_teardown(void **state)
{
	struct disk *k = *state;

	bench_fini(&k->b);
	block_close(k->block);
	bench_free(&k->b);
	unlink(k->path);
	free(k);
	return 0;
}

static uint8_t *ptr(struct disk *k, uint64_t gpa)
{
	return map_ptr(k->b.map, gpa, 4096, true);
}

static uint8_t disk_do(struct disk *k, unsigned q, uint32_t type, uint64_t sector, uint32_t len, bool in,
		       uint32_t *used)
{
	struct virtio_blk_outhdr h = { .type = type, .sector = sector };
	struct buf bufs[3] = { { k->header, 16, false }, { k->data, len, in }, { k->status, 1, true } };
	uint32_t n;

	memcpy(ptr(k, k->header), &h, sizeof(h));
	*ptr(k, k->status) = 0xee;
	if (!len)
		bufs[1] = bufs[2];
	n = drv_request(&k->d, q, bufs, len ? 3 : 2);
	assert_int_not_equal(n, ~0u);
	if (used)
		*used = n;
	return *ptr(k, k->status);
}

static void test_read_write(void **state)
{
	struct disk *k = *state;
	uint32_t used;
	uint8_t raw[8192];
	int fd;

	drv_start(&k->d, ALL);
	memset(ptr(k, k->data), 0x5a, 8192);
	assert_int_equal(disk_do(k, 0, VIRTIO_BLK_T_OUT, 100, 8192, false, &used), 0);
	assert_int_equal(disk_do(k, 1, VIRTIO_BLK_T_FLUSH, 0, 0, false, NULL), 0);
	memset(ptr(k, k->data), 0, 8192);
	assert_int_equal(disk_do(k, 1, VIRTIO_BLK_T_IN, 100, 8192, true, &used), 0);
	assert_int_equal(used, 8193);
	for (unsigned i = 0; i < 8192; i++)
		assert_int_equal(ptr(k, k->data)[i], 0x5a);
	fd = open(k->path, O_RDONLY);
	assert_int_equal(pread(fd, raw, sizeof(raw), 51200), sizeof(raw));
	assert_int_equal(raw[0], 0x5a);
	close(fd);
	assert_true(wait_for(&k->b.msi[1], 1));
	assert_true(wait_for(&k->b.msi[2], 1));
}

static void test_get_id(void **state)
{
	struct disk *k = *state;
	uint32_t used;

	drv_start(&k->d, ALL);
	assert_int_equal(disk_do(k, 0, VIRTIO_BLK_T_GET_ID, 0, 20, true, &used), 0);
	assert_int_equal(used, 21);
	assert_string_equal((char *)ptr(k, k->data), "serial-1");
}

static void test_bad_requests(void **state)
{
	struct disk *k = *state;

	drv_start(&k->d, ALL);
	assert_int_equal(disk_do(k, 0, 77, 0, 512, false, NULL), VIRTIO_BLK_S_UNSUPP);
	assert_int_equal(disk_do(k, 0, VIRTIO_BLK_T_IN, DISK_BYTES / 512, 512, true, NULL),
			 VIRTIO_BLK_S_IOERR);
	assert_int_equal(disk_do(k, 0, VIRTIO_BLK_T_IN, ~0ull, 512, true, NULL), VIRTIO_BLK_S_IOERR);
	assert_int_equal(disk_do(k, 0, VIRTIO_BLK_T_OUT, 0, 100, false, NULL), VIRTIO_BLK_S_IOERR);
	assert_int_equal(disk_do(k, 0, VIRTIO_BLK_T_IN, 0, 512, true, NULL), VIRTIO_BLK_S_OK);
	assert_int_equal(drv_status(&k->d), 0xf);
}

static void test_discard_zeroes(void **state)
{
	struct disk *k = *state;
	struct virtio_blk_discard_write_zeroes g = { .sector = 8, .num_sectors = 8 };

	drv_start(&k->d, ALL);
	memset(ptr(k, k->data), 0xab, 16384);
	assert_int_equal(disk_do(k, 0, VIRTIO_BLK_T_OUT, 0, 16384, false, NULL), 0);
	memcpy(ptr(k, k->data), &g, sizeof(g));
	assert_int_equal(disk_do(k, 0, VIRTIO_BLK_T_WRITE_ZEROES, 0, sizeof(g), false, NULL), 0);
	g.sector = 24;
	g.flags = VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP;
	memcpy(ptr(k, k->data), &g, sizeof(g));
	assert_int_equal(disk_do(k, 0, VIRTIO_BLK_T_WRITE_ZEROES, 0, sizeof(g), false, NULL), 0);
	g.sector = 16;
	g.flags = 0;
	memcpy(ptr(k, k->data), &g, sizeof(g));
	assert_int_equal(disk_do(k, 0, VIRTIO_BLK_T_DISCARD, 0, sizeof(g), false, NULL), 0);
	g.num_sectors = 1u << 30;
	memcpy(ptr(k, k->data), &g, sizeof(g));
	assert_int_not_equal(disk_do(k, 0, VIRTIO_BLK_T_DISCARD, 0, sizeof(g), false, NULL), 0);
	assert_int_equal(disk_do(k, 0, VIRTIO_BLK_T_IN, 0, 16384, true, NULL), 0);
	for (unsigned i = 0; i < 16384; i++) {
		unsigned sector = i / 512;

		if (sector < 8)
			assert_int_equal(ptr(k, k->data)[i], 0xab);
		if ((sector >= 8 && sector < 16) || sector >= 24)
			assert_int_equal(ptr(k, k->data)[i], 0);
	}
}

static void test_readonly(void **state)
{
	struct disk *k = *state;

	drv_start(&k->d, ALL);
	assert_true(k->d.offered >> VIRTIO_BLK_F_RO & 1);
	assert_int_equal(disk_do(k, 0, VIRTIO_BLK_T_OUT, 0, 512, false, NULL), VIRTIO_BLK_S_IOERR);
	assert_int_equal(disk_do(k, 0, VIRTIO_BLK_T_IN, 0, 512, true, NULL), VIRTIO_BLK_S_OK);
	assert_int_equal(disk_do(k, 0, VIRTIO_BLK_T_FLUSH, 0, 0, false, NULL), VIRTIO_BLK_S_OK);
}

static void test_many_under_way(void **state)
{
	struct disk *k = *state;
	struct virtio_blk_outhdr h = { .type = VIRTIO_BLK_T_IN };

	drv_start(&k->d, ALL);
	memcpy(ptr(k, k->header), &h, sizeof(h));
	for (unsigned round = 0; round < 200; round++) {
		unsigned seen = 0;

		for (unsigned i = 0; i < RING_SIZE / 4; i++) {
			struct buf bufs[3] = { { k->header, 16, false }, { k->data + 4096 * i, 4096, true },
					       { k->status + i, 1, true } };

			drv_add(&k->d, round & 1, 4 * i, bufs, 3);
		}
		drv_kick(&k->d, round & 1);
		for (unsigned i = 0; i < RING_SIZE / 4; i++) {
			uint32_t id;

			assert_true(drv_wait(&k->d, round & 1, &id, NULL));
			seen |= 1u << (id / 4);
		}
		assert_int_equal(seen, 0xffff);
	}
}

static void test_indirect(void **state)
{
	struct disk *k = *state;
	struct virtio_blk_outhdr h = { .type = VIRTIO_BLK_T_IN };
	uint64_t table = bench_alloc(&k->b, 4096);
	struct vring_desc inner[3] = {
		{ k->header, 16, VRING_DESC_F_NEXT, 1 },
		{ k->data, 4096, VRING_DESC_F_NEXT | VRING_DESC_F_WRITE, 2 },
		{ k->status, 1, VRING_DESC_F_WRITE, 0 },
	};
	struct vring_desc outer = { table, sizeof(inner), VRING_DESC_F_INDIRECT, 0 };
	uint32_t len;

	drv_start(&k->d, ALL);
	memcpy(ptr(k, k->header), &h, sizeof(h));
	memcpy(ptr(k, table), inner, sizeof(inner));
	memcpy(ptr(k, k->d.ring[0].desc), &outer, sizeof(outer));
	map_store(k->b.map, k->d.ring[0].avail + 4, 2, 0);
	map_store(k->b.map, k->d.ring[0].avail + 2, 2, 1);
	drv_kick(&k->d, 0);
	assert_true(drv_wait(&k->d, 0, NULL, &len));
	assert_int_equal(len, 4097);
}

static void test_reset_under_load(void **state)
{
	struct disk *k = *state;
	struct virtio_blk_outhdr h = { .type = VIRTIO_BLK_T_OUT };

	memcpy(ptr(k, k->header), &h, sizeof(h));
	for (unsigned round = 0; round < 200; round++) {
		drv_start(&k->d, ALL);
		for (unsigned i = 0; i < RING_SIZE / 4; i++) {
			struct buf bufs[3] = { { k->header, 16, false }, { k->data, 65536, false },
					       { k->status + i, 1, true } };

			drv_add(&k->d, 0, 4 * i, bufs, 3);
		}
		drv_kick(&k->d, 0);
		if (round & 1)
			usleep(round * 5);
	}
	drv_reset(&k->d);
	assert_true(pci_bus_idle(k->b.bus));
	drv_start(&k->d, ALL);
	assert_int_equal(disk_do(k, 0, VIRTIO_BLK_T_IN, 0, 512, true, NULL), 0);
}

static void test_broken_ring(void **state)
{
	struct disk *k = *state;
	struct buf loop[2] = { { k->header, 16, false }, { k->data, 512, true } };
	struct vring_desc *desc;

	drv_start(&k->d, ALL);
	drv_add(&k->d, 0, 0, loop, 2);
	desc = map_ptr(k->b.map, k->d.ring[0].desc, 32, true);
	desc[1].flags |= VRING_DESC_F_NEXT;
	desc[1].next = 1;
	drv_kick(&k->d, 0);
	for (unsigned i = 0; i < 20000 && !(drv_status(&k->d) & 0x40); i++)
		usleep(100);
	assert_int_equal(drv_status(&k->d), 0x4f);
	assert_true(wait_for(&k->b.msi[0], 1));
	drv_start(&k->d, ALL);
	assert_int_equal(disk_do(k, 0, VIRTIO_BLK_T_IN, 0, 512, true, NULL), 0);
}

static void test_write_through(void **state)
{
	struct disk *k = *state;

	drv_start(&k->d, ALL);
	map_store(k->b.map, k->d.config + offsetof(struct virtio_blk_config, wce), 1, 0);
	assert_int_equal(map_load(k->b.map, k->d.config + offsetof(struct virtio_blk_config, wce), 1), 0);
	assert_int_equal(disk_do(k, 0, VIRTIO_BLK_T_OUT, 0, 512, false, NULL), 0);
	map_store(k->b.map, k->d.config, 4, 0);	/* the capacity is not the guest's to write */
	assert_int_equal(map_load(k->b.map, k->d.config, 4), DISK_BYTES / 512);
}

static void test_ephemeral(void **state)
{
	struct disk *k = *state;
	uint8_t raw[512];
	int fd;

	drv_start(&k->d, ALL);
	memset(ptr(k, k->data), 0x77, 4096);
	assert_int_equal(disk_do(k, 0, VIRTIO_BLK_T_OUT, 3, 4096, false, NULL), 0);
	memset(ptr(k, k->data), 0, 8192);
	assert_int_equal(disk_do(k, 0, VIRTIO_BLK_T_IN, 2, 8192, true, NULL), 0);
	assert_int_equal(ptr(k, k->data)[511], 0);
	assert_int_equal(ptr(k, k->data)[512], 0x77);
	assert_int_equal(ptr(k, k->data)[4607], 0x77);
	assert_int_equal(ptr(k, k->data)[4608], 0);
	fd = open(k->path, O_RDONLY);
	assert_int_equal(pread(fd, raw, sizeof(raw), 3 * 512), sizeof(raw));
	assert_int_equal(raw[0], 0);
	close(fd);
}

static void test_save_load(void **state)
{
	struct disk *k = *state;
	struct stream s, in;

	drv_start(&k->d, ALL);
	assert_int_equal(disk_do(k, 0, VIRTIO_BLK_T_IN, 0, 512, true, NULL), 0);
	for (unsigned i = 0; i < 20000 && !pci_bus_idle(k->b.bus); i++)	/* the guest sees the end a bit before that */
		usleep(100);
	assert_true(pci_bus_idle(k->b.bus));
	stream_init(&s);
	pci_bus_save(k->b.bus, &s);
	drv_reset(&k->d);
	stream_init_read(&in, s.data, s.len);
	assert_int_equal(pci_bus_load(k->b.bus, &in), 0);
	assert_int_equal(drv_status(&k->d), 0xf);
	assert_int_equal(disk_do(k, 0, VIRTIO_BLK_T_IN, 0, 512, true, NULL), 0);
	in.pos = 0;
	in.len = s.len / 2;
	drv_reset(&k->d);
	assert_true(pci_bus_load(k->b.bus, &in) < 0);
	stream_fini(&s);
}

static uint64_t config_get(struct disk *k, unsigned offset, unsigned size)
{
	return map_load(k->b.map, k->d.config + offset, size);
}
#define CONFIG(k, field) config_get(k, offsetof(struct virtio_blk_config, field), \
				    sizeof(((struct virtio_blk_config *)0)->field))

static void test_topology(void **state)
{
	struct disk *k = *state;

	drv_start(&k->d, ALL);
	assert_int_equal(CONFIG(k, blk_size), 512);
	assert_int_equal(CONFIG(k, physical_block_exp), 3);
	assert_int_equal(CONFIG(k, min_io_size), 8);
	assert_int_equal(CONFIG(k, num_queues), 2);
	assert_true(k->d.offered >> VIRTIO_BLK_F_SIZE_MAX & 1);
	assert_int_equal(CONFIG(k, size_max), 4 << 20);
	assert_int_equal(CONFIG(k, seg_max), 254);
	assert_int_equal(CONFIG(k, wce), 1);
}

/* A disk that begins with write-through does so again after each reset, and says so without FLUSH. */
static void test_cache_mode(void **state)
{
	struct disk *k = *state;

	drv_start(&k->d, ALL);
	assert_int_equal(CONFIG(k, blk_size), 4096);
	assert_int_equal(CONFIG(k, physical_block_exp), 2);
	assert_int_equal(CONFIG(k, wce), 0);
	map_store(k->b.map, k->d.config + offsetof(struct virtio_blk_config, wce), 1, 1);
	assert_int_equal(CONFIG(k, wce), 1);
	drv_start(&k->d, ALL & ~(1ull << VIRTIO_BLK_F_FLUSH | 1ull << VIRTIO_BLK_F_SECURE_ERASE));
	assert_int_equal(CONFIG(k, wce), 0);
	assert_true(k->d.offered >> VIRTIO_BLK_F_SECURE_ERASE & 1);
	assert_int_equal(disk_do(k, 0, VIRTIO_BLK_T_SECURE_ERASE, 0, 16, false, NULL), VIRTIO_BLK_S_UNSUPP);
}

static void test_no_flush_feature(void **state)
{
	struct disk *k = *state;

	drv_start(&k->d, ALL & ~(1ull << VIRTIO_BLK_F_FLUSH));
	assert_int_equal(disk_do(k, 0, VIRTIO_BLK_T_OUT, 0, 512, false, NULL), 0);
	assert_int_equal(CONFIG(k, wce), 0);
	drv_start(&k->d, ALL);
	assert_int_equal(CONFIG(k, wce), 1);
}

static uint8_t range_do(struct disk *k, uint32_t type, uint64_t sector, uint32_t sectors, uint32_t flags)
{
	struct virtio_blk_discard_write_zeroes g = { .sector = sector, .num_sectors = sectors, .flags = flags };

	memcpy(ptr(k, k->data), &g, sizeof(g));
	return disk_do(k, 0, type, 0, sizeof(g), false, NULL);
}

static void nothing(void *opaque, int ret) { assert_int_equal(ret, 0); }

/* The disk changes over to an image that keeps copies of what is overwritten, and back. */
static void test_secure_erase_withdrawn(void **state)
{
	struct disk *k = *state;
	struct block *b;
	struct node *raw, *over;
	char path[96];

	drv_start(&k->d, ALL);
	assert_int_equal(range_do(k, VIRTIO_BLK_T_SECURE_ERASE, 0, 8, 0), 0);
	snprintf(path, sizeof(path), "%s.qcow2", k->path);
	assert_int_equal(block_create(k->b.loop, path, "qcow2", &(struct block_create){ .size_bytes = DISK_BYTES }, NULL), 0);
	assert_int_equal(block_open_with(&b, k->b.loop, path, &(struct block_options){ .format = "qcow2", .beside = k->block },
					 NULL), 0);
	over = block_root(b);
	block_hold(k->block, nothing, NULL);
	raw = block_set_root(k->block, over);
	block_release(k->block);
	virtio_blk_changed(k->blk);
	assert_int_equal(CONFIG(k, opt_io_size), 65536 / 512);
	assert_int_equal(range_do(k, VIRTIO_BLK_T_SECURE_ERASE, 0, 8, 0), VIRTIO_BLK_S_UNSUPP);
	drv_start(&k->d, ALL);
	assert_false(k->d.offered >> VIRTIO_BLK_F_SECURE_ERASE & 1);
	block_hold(k->block, nothing, NULL);
	block_set_root(k->block, raw);
	block_release(k->block);
	virtio_blk_changed(k->blk);
	drv_start(&k->d, ALL);
	assert_true(k->d.offered >> VIRTIO_BLK_F_SECURE_ERASE & 1);
	assert_int_equal(range_do(k, VIRTIO_BLK_T_SECURE_ERASE, 0, 8, 0), 0);
	block_close(b);
	unlink(path);
}

static void test_secure_erase(void **state)
{
	struct disk *k = *state;
	uint8_t *raw = malloc(DISK_BYTES);
	int fd;

	drv_start(&k->d, ALL);
	assert_int_equal(CONFIG(k, max_secure_erase_seg), 16);
	for (unsigned i = 0; i < DISK_BYTES >> 20; i++) {
		memset(map_ptr(k->b.map, k->data, 1 << 20, true), 0xcd, 1 << 20);
		assert_int_equal(disk_do(k, 0, VIRTIO_BLK_T_OUT, i << 11, 1 << 20, false, NULL), 0);
	}
	assert_int_equal(range_do(k, VIRTIO_BLK_T_SECURE_ERASE, 9, (DISK_BYTES >> 9) - 18, 0), 0);
	fd = open(k->path, O_RDONLY);
	assert_int_equal(pread(fd, raw, DISK_BYTES, 0), DISK_BYTES);
	close(fd);
	for (unsigned i = 0; i < DISK_BYTES; i++)
		assert_int_equal(raw[i], i / 512 < 9 || i / 512 >= (DISK_BYTES >> 9) - 9 ? 0xcd : 0);
	free(raw);
	memcpy(ptr(k, k->data), &(struct virtio_blk_discard_write_zeroes){ .num_sectors = 1 }, 16);
	assert_int_equal(disk_do(k, 0, VIRTIO_BLK_T_SECURE_ERASE, 0, 16, true, NULL), 0);	/* as Linux does */
	assert_int_equal(disk_do(k, 0, VIRTIO_BLK_T_IN, 0, 512, true, NULL), 0);
	assert_int_equal(ptr(k, k->data)[511], 0);
	assert_int_equal(range_do(k, VIRTIO_BLK_T_SECURE_ERASE, 0, 8, 1), VIRTIO_BLK_S_UNSUPP);
	assert_int_equal(range_do(k, VIRTIO_BLK_T_SECURE_ERASE, 0, 1u << 30, 0), VIRTIO_BLK_S_UNSUPP);
	assert_int_equal(range_do(k, VIRTIO_BLK_T_SECURE_ERASE, DISK_BYTES >> 9, 8, 0), VIRTIO_BLK_S_IOERR);
	assert_int_equal(range_do(k, VIRTIO_BLK_T_DISCARD, 0, 8, VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP),
			 VIRTIO_BLK_S_UNSUPP);
	assert_int_equal(disk_do(k, 0, VIRTIO_BLK_T_SECURE_ERASE, 0, 17, false, NULL), VIRTIO_BLK_S_IOERR);
	assert_int_equal(disk_do(k, 0, VIRTIO_BLK_T_SECURE_ERASE, 0, 17 * 16, false, NULL), VIRTIO_BLK_S_IOERR);
}

static void test_readonly_changes(void **state)
{
	struct disk *k = *state;

	drv_start(&k->d, ALL);
	assert_false(k->d.offered >> VIRTIO_BLK_F_SECURE_ERASE & 1);
	assert_int_equal(range_do(k, VIRTIO_BLK_T_DISCARD, 0, 8, 0), VIRTIO_BLK_S_IOERR);
	assert_int_equal(range_do(k, VIRTIO_BLK_T_WRITE_ZEROES, 0, 8, 0), VIRTIO_BLK_S_IOERR);
	assert_int_equal(range_do(k, VIRTIO_BLK_T_SECURE_ERASE, 0, 8, 0), VIRTIO_BLK_S_UNSUPP);
}

static void test_resize(void **state)
{
	struct disk *k = *state;
	uint64_t generation;
	struct error e = {0};

	drv_start(&k->d, ALL);
	assert_int_equal(CONFIG(k, capacity), DISK_BYTES >> 9);
	generation = map_load(k->b.map, k->d.common + VIRTIO_PCI_COMMON_CFGGENERATION, 1);
	bench_stop(&k->b);
	assert_int_equal(block_resize(k->block, DISK_BYTES * 2, 0, &e), 0);
	virtio_blk_resized(k->blk);
	bench_run(&k->b);
	assert_true(wait_for(&k->b.msi[0], 1));
	assert_int_not_equal(map_load(k->b.map, k->d.common + VIRTIO_PCI_COMMON_CFGGENERATION, 1), generation);
	assert_int_equal(CONFIG(k, capacity), DISK_BYTES >> 8);
	assert_int_equal(disk_do(k, 0, VIRTIO_BLK_T_OUT, (DISK_BYTES >> 8) - 1, 512, false, NULL), 0);
	assert_int_equal(disk_do(k, 0, VIRTIO_BLK_T_OUT, DISK_BYTES >> 8, 512, false, NULL), VIRTIO_BLK_S_IOERR);
}

static void on_gone(void *opaque)
{
	atomic_store((atomic_uint *)opaque, 1);
}

struct removal {
	struct disk *k;
	atomic_uint gone;
};

static void remove_now(void *opaque)
{
	struct removal *r = opaque;

	virtio_blk_remove(r->k->blk, on_gone, &r->gone);
}

static void insert_now(void *opaque)
{
	struct removal *r = opaque;

	virtio_blk_insert(r->k->blk, r->k->block, &(struct disk_traits){ .serial = "second", .logical_bytes = 4096 });
	atomic_store(&r->gone, 2);
}

/* Taken out with requests under way, and put back as another one: the slot is empty in between. */
static void test_remove_insert(void **state)
{
	struct disk *k = *state;
	struct virtio_blk_outhdr h = { .type = VIRTIO_BLK_T_OUT };
	uint64_t common = k->d.common;

	for (unsigned round = 0; round < 50; round++) {
		struct removal r = { .k = k };

		memcpy(ptr(k, k->header), &h, sizeof(h));
		drv_start(&k->d, ALL);
		for (unsigned i = 0; i < RING_SIZE / 4; i++) {
			struct buf bufs[3] = { { k->header, 16, false }, { k->data, 65536, false },
					       { k->status + i, 1, true } };

			drv_add(&k->d, 0, 4 * i, bufs, 3);
		}
		drv_kick(&k->d, 0);
		loop_post(k->b.loop, remove_now, &r);
		assert_true(wait_for(&r.gone, 1));
		assert_int_equal(cfg_read(&k->b, k->d.slot, 0, 4), ~0u);
		assert_int_equal(map_load(k->b.map, common, 4), ~0u);	/* no BAR any more */
		loop_post(k->b.loop, insert_now, &r);
		assert_true(wait_for(&r.gone, 2));
		assert_int_equal(cfg_read(&k->b, k->d.slot, 0, 4), 0x10421af4);
		assert_int_equal(cfg_read(&k->b, k->d.slot, 4, 2) & 7, 0);	/* not decoded yet */
		pci_bus_assign(k->b.bus);
		drv_find(&k->d, &k->b, k->d.slot);
		drv_start(&k->d, ALL);
		assert_int_equal(CONFIG(k, blk_size), 4096);
		assert_int_equal(disk_do(k, 0, VIRTIO_BLK_T_GET_ID, 0, 20, true, NULL), 0);
		assert_string_equal((char *)ptr(k, k->data), "second");
	}
}

static void test_pci_access_window(void **state)
{
	struct disk *k = *state;
	unsigned cap, slot = k->d.slot;

	for (cap = cfg_read(&k->b, slot, 0x34, 1); cap; cap = cfg_read(&k->b, slot, cap + 1, 1))
		if (cfg_read(&k->b, slot, cap, 1) == 9 && cfg_read(&k->b, slot, cap + 3, 1) == 5)
			break;
	assert_int_not_equal(cap, 0);
	cfg_write(&k->b, slot, cap + 4, 1, 4);
	cfg_write(&k->b, slot, cap + 12, 4, 1);
	cfg_write(&k->b, slot, cap + 8, 4, VIRTIO_PCI_COMMON_STATUS);
	cfg_write(&k->b, slot, cap + 16, 4, 3);
	assert_int_equal(drv_status(&k->d), 3);
	cfg_write(&k->b, slot, cap + 8, 4, 0x2000);	/* device configuration: capacity */
	cfg_write(&k->b, slot, cap + 12, 4, 4);
	assert_int_equal(cfg_read(&k->b, slot, cap + 16, 4), DISK_BYTES / 512);
}

#define T(name, setup) { #name " " #setup, name, setup, disk_teardown, NULL }

int main(void)
{
	const struct CMUnitTest tests[] = {
		T(test_read_write, disk_setup), T(test_read_write, disk_setup_pool),
		T(test_get_id, disk_setup), T(test_bad_requests, disk_setup),
		T(test_discard_zeroes, disk_setup), T(test_discard_zeroes, disk_setup_pool),
		T(test_discard_zeroes, disk_setup_ephemeral), T(test_readonly, disk_setup_readonly),
		T(test_many_under_way, disk_setup), T(test_many_under_way, disk_setup_pool),
		T(test_many_under_way, disk_setup_ephemeral), T(test_indirect, disk_setup),
		T(test_reset_under_load, disk_setup), T(test_reset_under_load, disk_setup_pool),
		T(test_reset_under_load, disk_setup_ephemeral), T(test_broken_ring, disk_setup),
		T(test_write_through, disk_setup), T(test_ephemeral, disk_setup_ephemeral),
		T(test_topology, disk_setup), T(test_cache_mode, disk_setup_write_through),
		T(test_no_flush_feature, disk_setup), T(test_secure_erase, disk_setup),
		T(test_secure_erase, disk_setup_pool), T(test_secure_erase_withdrawn, disk_setup), T(test_readonly_changes, disk_setup_readonly),
		T(test_resize, disk_setup), T(test_remove_insert, disk_setup), T(test_remove_insert, disk_setup_pool),
		T(test_save_load, disk_setup), T(test_pci_access_window, disk_setup),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
