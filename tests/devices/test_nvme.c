/* The NVMe controller: registers, queues, commands, data pointers, and drivers that break the rules. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>
#include <fcntl.h>

#include "base/endian.h"
#include "base/stream.h"
#include "nvme_driver.h"

#define BLOCKS (NVME_DISK_BYTES / 512)
enum { FLUSH = 0, WRITE = 1, READ = 2, ZEROES = 8, DATASET = 9 };
enum { DELETE_SQ = 0, CREATE_SQ = 1, GET_LOG = 2, DELETE_CQ = 4, CREATE_CQ = 5, IDENTIFY = 6, ABORT = 8, SET_FEATURES = 9,
       GET_FEATURES = 10, ASYNC_EVENT = 12 };

static int setup_with(void **state, unsigned flags, const struct disk_traits *t)
{
	struct nvme_bench *k = malloc(sizeof(*k));

	nvme_bench_init(k, flags, t);
	nvme_enable(k);
	*state = k;
	return 0;
}

static int setup(void **state) { return setup_with(state, 0, &(struct disk_traits){ .serial = "nvme-1" }); }
static int setup_pool(void **state)
{
	return setup_with(state, BLOCK_NO_IO_URING, &(struct disk_traits){ .serial = "nvme-1" });
}
static int setup_readonly(void **state) { return setup_with(state, BLOCK_READONLY, &(struct disk_traits){ 0 }); }
static int setup_large_blocks(void **state)
{
	return setup_with(state, 0, &(struct disk_traits){ .logical_bytes = 4096, .write_through = true });
}

static int teardown(void **state)
{
	nvme_bench_fini(*state);
	free(*state);
	return 0;
}

static uint8_t *data(struct nvme_bench *k)
{
	return map_ptr(k->b.map, k->data, 2 << 20, true);
}

#define ADMIN(k, opcode, nsid, prp, dw10, dw11) nvme_do(k, 0, opcode, nsid, prp, 0, dw10, dw11, 0)
/* One command of up to 256 pages on consecutive memory from `at` on. */
static unsigned io(struct nvme_bench *k, uint8_t opcode, uint64_t at, uint64_t lba, unsigned blocks)
{
	uint64_t *list = (uint64_t *)nvme_ptr(k, k->list), next = (at | 4095) + 1, len = blocks * 512ull;
	uint64_t prp2 = next;

	if (len > (next - at) + 4096) {
		prp2 = k->list;
		for (unsigned i = 0; i < 512; i++)
			list[i] = next + 4096 * i;
	}
	return nvme_do(k, 1, opcode, 1, at, prp2, (uint32_t)lba, (uint32_t)(lba >> 32), blocks - 1);
}

static void test_registers(void **state)
{
	struct nvme_bench *k = *state;

	assert_int_equal(nvme_get(k, 0) & 0xffff, 1023);
	assert_int_equal(nvme_get(k, 4) & 0x20, 0x20);
	assert_int_equal(nvme_get(k, 8), 0x10400);
	assert_int_equal(nvme_get(k, 0x1c), 1);
	nvme_set(k, 0x14, 4 << 20 | 6 << 16 | 1 << 14 | 1);
	for (unsigned i = 0; (nvme_get(k, 0x1c) & 12) != 8 && i < 20000; i++)
		usleep(100);
	assert_int_equal(nvme_get(k, 0x1c), 1 | 8);	/* shut down */
	nvme_disable(k);
	nvme_set(k, 0x24, 0);				/* queues of one entry */
	nvme_set(k, 0x14, 1);
	for (unsigned i = 0; !(nvme_get(k, 0x1c) & 2) && i < 20000; i++)
		usleep(100);
	assert_int_equal(nvme_get(k, 0x1c), 2);		/* fatal */
	nvme_set(k, 0x14, 0);
	for (unsigned i = 0; nvme_get(k, 0x1c) && i < 20000; i++)
		usleep(100);
	nvme_enable(k);
	assert_int_equal(nvme_do(k, 1, FLUSH, 1, 0, 0, 0, 0, 0), 0);
}

static void test_identify(void **state)
{
	struct nvme_bench *k = *state;

	assert_int_equal(ADMIN(k, IDENTIFY, 0, k->data, 1, 0), 0);
	assert_memory_equal(data(k) + 4, "nvme-1              ", 20);
	assert_int_equal(data(k)[77], 8);
	assert_int_equal(load_le32(data(k) + 516), 1);
	assert_int_equal(data(k)[525] & 1, 1);
	assert_int_equal(ADMIN(k, IDENTIFY, 1, k->data, 0, 0), 0);
	assert_int_equal(load_le64(data(k)), BLOCKS);
	assert_int_equal(data(k)[130], 9);
	assert_int_equal(ADMIN(k, IDENTIFY, 0, k->data, 2, 0), 0);
	assert_int_equal(load_le64(data(k)), 1);
	assert_int_equal(ADMIN(k, IDENTIFY, 1, k->data, 3, 0), 0);
	assert_int_equal(data(k)[0], 3);
	assert_int_equal(data(k)[1], 16);
	assert_int_equal(ADMIN(k, IDENTIFY, 2, k->data, 0, 0), 0x0b);
	assert_int_equal(ADMIN(k, IDENTIFY, 0, k->data, 0x42, 0), 0x02);
	assert_int_equal(ADMIN(k, 0x7f, 0, 0, 0, 0), 0x01);
	assert_int_equal(nvme_do(k, 0, IDENTIFY, 0, k->data + 100, k->data + 8192, 1, 0, 0), 0);	/* over two pages */
	assert_memory_equal(data(k) + 104, "nvme-1              ", 20);
}

static void test_read_write(void **state)
{
	struct nvme_bench *k = *state;
	uint8_t *copy = malloc(1 << 20);
	int fd;

	for (unsigned i = 0; i < 1 << 20; i++)
		data(k)[i] = copy[i] = (uint8_t)random();
	assert_int_equal(io(k, WRITE, k->data, 0, 2048), 0);			/* 1 MiB: all that MDTS allows */
	assert_int_equal(io(k, FLUSH, 0, 0, 1), 0);
	fd = open(k->path, O_RDONLY);
	memset(data(k), 0, 1 << 20);
	assert_int_equal(pread(fd, data(k), 1 << 20, 0), 1 << 20);
	close(fd);
	assert_memory_equal(data(k), copy, 1 << 20);
	memset(data(k), 0, 2 << 20);
	assert_int_equal(io(k, READ, k->data + 512, 3, 2045), 0);		/* unaligned, a list */
	assert_memory_equal(data(k) + 512, copy + 1536, 2045 * 512);
	assert_int_equal(io(k, READ, k->data + 4, 0, 8), 0);			/* two pages */
	assert_memory_equal(data(k) + 4, copy, 4096);
	assert_int_equal(io(k, READ, k->data + 1024, 0, 2), 0);
	assert_memory_equal(data(k) + 1024, copy, 1024);
	assert_int_equal(io(k, WRITE, k->data, BLOCKS - 1, 1), 0);
	assert_int_equal(nvme_do(k, 1, WRITE, 1, k->data, 0, 0, 0, 1u << 30), 0);	/* FUA */
	assert_true(wait_for(&k->b.msi[0], 0));
	free(copy);
}

static void test_bad_requests(void **state)
{
	struct nvme_bench *k = *state;
	uint64_t *list = (uint64_t *)nvme_ptr(k, k->list);

	assert_int_equal(io(k, READ, k->data, BLOCKS, 1), 0x80);
	assert_int_equal(io(k, READ, k->data, BLOCKS - 1, 2), 0x80);
	assert_int_equal(io(k, READ, k->data, ~0ull, 2), 0x80);
	assert_int_equal(io(k, READ, k->data, 0, 2049), 0x02);		/* more than MDTS */
	assert_int_equal(io(k, 0x55, k->data, 0, 1), 0x01);
	assert_int_equal(nvme_do(k, 1, READ, 2, k->data, 0, 0, 0, 0), 0x0b);
	assert_int_equal(nvme_do(k, 1, READ, 1, k->data, 0, 0, 0, 1 << 29), 0x02);
	assert_int_equal(nvme_do(k, 1, READ, 1, 1ull << 50, 0, 0, 0, 0), 0x04);
	assert_int_equal(nvme_do(k, 1, READ, 1, k->data + 1, 0, 0, 0, 0), 0x13);
	assert_int_equal(nvme_do(k, 1, READ, 1, k->data, k->data + 8, 0, 0, 15), 0x13);
	assert_int_equal(nvme_do(k, 1, READ, 1, k->data, k->list + 4, 0, 0, 31), 0x13);
	assert_int_equal(nvme_do(k, 1, READ, 1, k->data, ~7ull, 0, 0, 31), 0x04);
	for (unsigned i = 0; i < 512; i++)
		list[i] = k->list;		/* a list that leads to itself */
	assert_int_equal(nvme_do(k, 1, READ, 1, k->data, k->list + 4088, 0, 0, 31), 0);
	list[0] = 7;
	assert_int_equal(nvme_do(k, 1, READ, 1, k->data, k->list, 0, 0, 31), 0x13);
	assert_int_equal(io(k, READ, k->data, 0, 8), 0);
}

static void test_zeroes_dataset(void **state)
{
	struct nvme_bench *k = *state;
	struct { uint32_t attributes, blocks; uint64_t lba; } r[2] = { { 0, 8, 16 }, { 0, 8, 24 } };

	memset(data(k), 0xab, 16384);
	assert_int_equal(io(k, WRITE, k->data, 0, 32), 0);
	assert_int_equal(nvme_do(k, 1, ZEROES, 1, 0, 0, 8, 0, 7), 0);
	memcpy(data(k), r, sizeof(r));
	assert_int_equal(nvme_do(k, 1, DATASET, 1, k->data, 0, 1, 4, 0), 0);
	assert_int_equal(io(k, READ, k->data, 0, 32), 0);
	for (unsigned i = 0; i < 8192; i++)
		assert_int_equal(data(k)[i], i < 4096 ? 0xab : 0);
	r[1].lba = BLOCKS - 7;
	memcpy(data(k), r, sizeof(r));
	assert_int_equal(nvme_do(k, 1, DATASET, 1, k->data, 0, 1, 4, 0), 0x80);
	assert_int_equal(nvme_do(k, 1, ZEROES, 1, 0, 0, BLOCKS, 0, 7), 0x80);
}

static void test_readonly(void **state)
{
	struct nvme_bench *k = *state;

	assert_int_equal(ADMIN(k, IDENTIFY, 1, k->data, 0, 0), 0);
	assert_int_equal(data(k)[99], 1);
	assert_int_equal(io(k, WRITE, k->data, 0, 1), 0x182);
	assert_int_equal(nvme_do(k, 1, ZEROES, 1, 0, 0, 8, 0, 7), 0x182);
	assert_int_equal(io(k, READ, k->data, 0, 1), 0);
}

static void test_large_blocks(void **state)
{
	struct nvme_bench *k = *state;

	assert_int_equal(ADMIN(k, IDENTIFY, 1, k->data, 0, 0), 0);
	assert_int_equal(load_le64(data(k)), BLOCKS / 8);
	assert_int_equal(data(k)[130], 12);
	assert_int_equal(nvme_do(k, 1, READ, 1, k->data, 0, BLOCKS / 8 - 1, 0, 0), 0);
	assert_int_equal(nvme_do(k, 1, READ, 1, k->data, 0, BLOCKS / 8, 0, 0), 0x80);
	assert_int_equal(nvme_do(k, 1, WRITE, 1, k->data, 0, 0, 0, 0), 0);
	assert_int_equal(ADMIN(k, IDENTIFY, 0, k->data, 1, 0), 0);
	assert_int_equal(data(k)[525] & 1, 0);			/* no write cache, nor its feature */
	assert_int_equal(ADMIN(k, GET_FEATURES, 0, 0, 6, 0), 0x02);
	assert_int_equal(ADMIN(k, SET_FEATURES, 0, 0, 6, 1), 0x02);
}

static void test_cache(void **state)
{
	struct nvme_bench *k = *state;

	assert_int_equal(ADMIN(k, GET_FEATURES, 0, 0, 6, 0), 0);
	assert_int_equal(k->result, 1);
	assert_int_equal(ADMIN(k, SET_FEATURES, 0, 0, 6, 0), 0);
	assert_int_equal(ADMIN(k, GET_FEATURES, 0, 0, 6, 0), 0);
	assert_int_equal(k->result, 0);
	assert_int_equal(nvme_do(k, 1, WRITE, 1, k->data, 0, 0, 0, 0), 0);
	nvme_enable(k);
	assert_int_equal(ADMIN(k, GET_FEATURES, 0, 0, 6, 0), 0);
	assert_int_equal(k->result, 1);
}

static void test_queues(void **state)
{
	struct nvme_bench *k = *state;

	assert_int_equal(ADMIN(k, SET_FEATURES, 0, 0, 7, 99u << 16 | 99), 0x0c);	/* queues are there */
	nvme_disable(k);
	nvme_enable(k);
	assert_int_equal(nvme_queue_make(k, 1), 0x101);
	assert_int_equal(nvme_queue_make(k, 2), 0);
	assert_int_equal(nvme_do(k, 2, FLUSH, 1, 0, 0, 0, 0, 0), 0);
	assert_int_equal(ADMIN(k, CREATE_CQ, 0, k->pair[3].cq, 15 << 16 | 65, 1), 0x101);
	assert_int_equal(ADMIN(k, CREATE_CQ, 0, k->pair[3].cq, 15 << 16 | 0, 1), 0x101);
	assert_int_equal(ADMIN(k, CREATE_CQ, 0, k->pair[3].cq, 0 << 16 | 3, 1), 0x102);
	assert_int_equal(ADMIN(k, CREATE_CQ, 0, k->pair[3].cq, 2000 << 16 | 3, 1), 0x102);
	assert_int_equal(ADMIN(k, CREATE_CQ, 0, k->pair[3].cq, 15 << 16 | 3, 0), 0x02);
	assert_int_equal(ADMIN(k, CREATE_CQ, 0, k->pair[3].cq, 15 << 16 | 3, 80 << 16 | 3), 0x108);
	assert_int_equal(ADMIN(k, CREATE_CQ, 0, k->pair[3].cq + 8, 15 << 16 | 3, 1), 0x13);
	assert_int_equal(ADMIN(k, CREATE_CQ, 0, 1ull << 40, 15 << 16 | 3, 1), 0x04);
	assert_int_equal(ADMIN(k, CREATE_SQ, 0, k->pair[3].sq, 15 << 16 | 3, 9 << 16 | 1), 0x100);
	assert_int_equal(ADMIN(k, DELETE_CQ, 0, 0, 2, 0), 0x10c);
	assert_int_equal(ADMIN(k, DELETE_SQ, 0, 0, 3, 0), 0x101);
	assert_int_equal(ADMIN(k, DELETE_SQ, 0, 0, 2, 0), 0);
	assert_int_equal(ADMIN(k, DELETE_CQ, 0, 0, 2, 0), 0);
	assert_int_equal(ADMIN(k, DELETE_CQ, 0, 0, 2, 0), 0x101);
	assert_int_equal(nvme_queue_make(k, 2), 0);
	assert_int_equal(ADMIN(k, GET_FEATURES, 0, 0, 7, 0), 0);
	assert_int_equal(k->result, 63 << 16 | 63);
	assert_int_equal(ADMIN(k, ABORT, 0, 0, 1 << 16 | 1, 0), 0);
	assert_int_equal(k->result, 1);
}

/* Three writes for each deletion of their queue: all of them are answered before it is. */
static void test_delete_under_load(void **state)
{
	struct nvme_bench *k = *state;
	struct nvme_entry w = { { WRITE, 1, 0, 0, 0, 0, (uint32_t)k->data, 0, (uint32_t)k->data + 4096, 0, 0, 0, 15 | 1 << 30 } };

	for (unsigned round = 0; round < 200; round++) {
		assert_int_equal(nvme_queue_make(k, 2), 0);
		for (unsigned i = 0; i < 12; i++)
			nvme_put(k, 2, &w);
		nvme_ring(k, 2);
		if (round & 1)
			assert_int_equal(nvme_wait(k, 2, NULL), 0);
		assert_int_equal(ADMIN(k, DELETE_SQ, 0, 0, 2, 0), 0);
		assert_int_equal(ADMIN(k, DELETE_CQ, 0, 0, 2, 0), 0);
	}
}

static void test_many_under_way(void **state)
{
	struct nvme_bench *k = *state;

	for (unsigned round = 0; round < 300; round++) {
		unsigned seen = 0;
		uint16_t first = (uint16_t)(k->cid + 1), cid;

		for (unsigned i = 0; i < 15; i++) {
			struct nvme_entry r = { { READ, 1, 0, 0, 0, 0, (uint32_t)k->data + 4096 * i, 0, 0, 0, 8 * i, 0, 7 } };

			nvme_put(k, 1, &r);
		}
		nvme_ring(k, 1);
		for (unsigned i = 0; i < 15; i++) {
			assert_int_equal(nvme_wait(k, 1, &cid), 0);
			seen |= 1u << (uint16_t)(cid - first);
		}
		assert_int_equal(seen, 0x7fff);
	}
}

static void test_reset_under_load(void **state)
{
	struct nvme_bench *k = *state;
	struct nvme_entry w = { { WRITE, 1, 0, 0, 0, 0, (uint32_t)k->data, 0, (uint32_t)k->data + 4096, 0, 0, 0, 15 } };

	for (unsigned round = 0; round < 200; round++) {
		for (unsigned i = 0; i < 15; i++)
			nvme_put(k, 1, &w);
		nvme_ring(k, 1);
		if (round & 1)
			usleep(round * 5);
		nvme_enable(k);
	}
	assert_int_equal(io(k, READ, k->data, 0, 8), 0);
}

static void test_features_logs(void **state)
{
	struct nvme_bench *k = *state;

	for (unsigned id = 0; id < 16; id++) {
		bool known = id && id < 12 && id != 3;

		assert_int_equal(ADMIN(k, GET_FEATURES, 0, 0, id, 0), known ? 0 : 0x02);
	}
	assert_int_equal(ADMIN(k, SET_FEATURES, 0, 0, 1u << 31 | 6, 1), 0x10d);
	assert_int_equal(ADMIN(k, SET_FEATURES, 0, 0, 2, 3), 0x02);
	assert_int_equal(ADMIN(k, GET_LOG, 0, k->data, 127 << 16 | 2, 0), 0);
	assert_int_equal(load_le16(data(k) + 1), 300);
	assert_int_equal(ADMIN(k, GET_LOG, 0, k->data, 15 << 16 | 1, 0), 0);
	assert_int_equal(ADMIN(k, GET_LOG, 0, k->data, 15 << 16 | 3, 0), 0);
	assert_int_equal(ADMIN(k, GET_LOG, 0, k->data, 15 << 16 | 0x77, 0), 0x109);
	assert_int_equal(nvme_do(k, 0, GET_LOG, 0, k->data, 0, 15 << 16 | 2, 0, 600), 0x02);
	assert_int_equal(ADMIN(k, GET_LOG, 0, k->data, 0xffffu << 16 | 2, 0xffff), 0x02);	/* larger than MDTS */
}

static void resized(void *opaque)
{
	nvme_resized(((struct nvme_bench *)opaque)->n);
}

static void test_events(void **state)
{
	struct nvme_bench *k = *state;
	struct nvme_entry e = { { ASYNC_EVENT } };
	uint16_t cid, first;

	for (unsigned i = 0; i < 4; i++)
		nvme_put(k, 0, &e);
	first = (uint16_t)(k->cid - 3);
	nvme_ring(k, 0);
	nvme_put(k, 0, &e);
	nvme_ring(k, 0);
	assert_int_equal(nvme_wait(k, 0, &cid), 0x105);
	assert_int_equal(cid, k->cid);
	nvme_set(k, 0x1000, 999);		/* beyond the queue's end */
	assert_int_equal(nvme_wait(k, 0, &cid), 0);
	assert_int_equal(k->result, 0x10100);
	assert_true((uint16_t)(cid - first) < 4);
	nvme_ring(k, 0);
	nvme_set(k, 0x1000 + 8 * 70, 1);
	assert_int_equal(ADMIN(k, SET_FEATURES, 0, 0, 11, 0x100), 0);	/* told once until the log was read */
	loop_post(k->b.loop, resized, k);
	assert_int_equal(nvme_wait(k, 0, &cid), 0);
	assert_int_equal(k->result, 0x40002);
	assert_int_equal(ADMIN(k, GET_LOG, 0, k->data, 3 << 16 | 4, 0), 0);
	assert_int_equal(load_le32(data(k)), 1);
	loop_post(k->b.loop, resized, k);
	assert_int_equal(nvme_wait(k, 0, &cid), 0);
	assert_int_equal(ADMIN(k, GET_LOG, 0, k->data, 3 << 16 | 1, 0), 0);
	assert_int_equal(nvme_wait(k, 0, &cid), 0);	/* the second bad doorbell */
	assert_int_equal(k->result, 0x10100);
}

static void test_pin(void **state)
{
	struct nvme_bench *k = *state;
	unsigned pin = k->slot & 3;
	struct nvme_entry e = { { FLUSH, 1 } };

	nvme_put(k, 1, &e);
	nvme_ring(k, 1);
	for (unsigned i = 0; !atomic_load(&k->b.line[pin]) && i < 20000; i++)
		usleep(100);
	assert_true(atomic_load(&k->b.line[pin]));
	nvme_set(k, 0x0c, 2);
	for (unsigned i = 0; atomic_load(&k->b.line[pin]) && i < 20000; i++)
		usleep(100);
	assert_false(atomic_load(&k->b.line[pin]));
	nvme_set(k, 0x10, 2);
	for (unsigned i = 0; !atomic_load(&k->b.line[pin]) && i < 20000; i++)
		usleep(100);
	assert_true(atomic_load(&k->b.line[pin]));
	assert_int_equal(nvme_wait(k, 1, NULL), 0);
	for (unsigned i = 0; atomic_load(&k->b.line[pin]) && i < 20000; i++)
		usleep(100);
	assert_false(atomic_load(&k->b.line[pin]));
}

static void test_save_load(void **state)
{
	struct nvme_bench *k = *state;
	struct stream s, in;

	assert_int_equal(io(k, READ, k->data, 0, 8), 0);
	for (unsigned i = 0; !pci_bus_idle(k->b.bus) && i < 20000; i++)
		usleep(100);
	stream_init(&s);
	pci_bus_save(k->b.bus, &s);
	nvme_disable(k);
	for (unsigned i = 0; !pci_bus_idle(k->b.bus) && i < 20000; i++)
		usleep(100);
	stream_init_read(&in, s.data, s.len);
	assert_int_equal(pci_bus_load(k->b.bus, &in), 0);
	assert_int_equal(nvme_get(k, 0x1c), 1);
	assert_int_equal(io(k, READ, k->data, 0, 8), 0);
	assert_int_equal(ADMIN(k, IDENTIFY, 0, k->data, 1, 0), 0);
	nvme_disable(k);
	stream_init_read(&in, s.data, s.len / 2);
	assert_true(pci_bus_load(k->b.bus, &in) < 0);
	stream_fini(&s);
}

static void on_gone(void *opaque)
{
	atomic_store((atomic_uint *)opaque, 1);
}

struct removal { struct nvme_bench *k; atomic_uint gone; };

static void remove_now(void *opaque)
{
	struct removal *r = opaque;

	nvme_remove(r->k->n, on_gone, &r->gone);
}

static void insert_now(void *opaque)
{
	struct removal *r = opaque;

	nvme_insert(r->k->n, r->k->block, &(struct disk_traits){ .serial = "second" });
	atomic_store(&r->gone, 2);
}

static void test_remove_insert(void **state)
{
	struct nvme_bench *k = *state;
	struct nvme_entry w = { { WRITE, 1, 0, 0, 0, 0, (uint32_t)k->data, 0, (uint32_t)k->data + 4096, 0, 0, 0, 15 } };

	for (unsigned round = 0; round < 50; round++) {
		struct removal r = { .k = k };

		for (unsigned i = 0; i < 15; i++)
			nvme_put(k, 1, &w);
		nvme_ring(k, 1);
		loop_post(k->b.loop, remove_now, &r);
		assert_true(wait_for(&r.gone, 1));
		assert_int_equal(cfg_read(&k->b, k->slot, 0, 4), ~0u);
		assert_int_equal(nvme_get(k, 8), ~0u);
		loop_post(k->b.loop, insert_now, &r);
		assert_true(wait_for(&r.gone, 2));
		pci_bus_assign(k->b.bus);
		nvme_enable(k);
		assert_int_equal(ADMIN(k, IDENTIFY, 0, k->data, 1, 0), 0);
		assert_memory_equal(data(k) + 4, "second ", 7);
	}
}

int main(void)
{
#define T(name, setup) { #name " " #setup, name, setup, teardown, NULL }
	const struct CMUnitTest tests[] = {
		T(test_registers, setup), T(test_identify, setup), T(test_read_write, setup), T(test_read_write, setup_pool),
		T(test_bad_requests, setup), T(test_zeroes_dataset, setup), T(test_readonly, setup_readonly),
		T(test_large_blocks, setup_large_blocks), T(test_cache, setup), T(test_queues, setup), T(test_delete_under_load, setup),
		T(test_many_under_way, setup), T(test_many_under_way, setup_pool), T(test_reset_under_load, setup),
		T(test_features_logs, setup), T(test_events, setup), T(test_pin, setup), T(test_save_load, setup),
		T(test_remove_insert, setup), T(test_remove_insert, setup_pool),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
