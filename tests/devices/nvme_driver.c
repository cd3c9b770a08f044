#include "nvme_driver.h"

#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "base/error.h"

static void nap(void)
{
	nanosleep(&(struct timespec){ .tv_nsec = 50000 }, NULL);
}

uint8_t *nvme_ptr(struct nvme_bench *k, uint64_t gpa)
{
	return map_ptr(k->b.map, gpa, 4096, true);
}

uint32_t nvme_get(struct nvme_bench *k, unsigned offset)
{
	return (uint32_t)map_load(k->b.map, k->bar + offset, 4);
}

void nvme_set(struct nvme_bench *k, unsigned offset, uint32_t v)
{
	map_store(k->b.map, k->bar + offset, 4, v);
}

void nvme_bench_init(struct nvme_bench *k, unsigned flags, const struct disk_traits *t)
{
	int fd;

	memset(k, 0, sizeof(*k));
	strcpy(k->path, "/tmp/vixen-nvme-XXXXXX");
	fd = mkstemp(k->path);
	ASSERT(fd >= 0 && ftruncate(fd, NVME_DISK_BYTES) == 0);
	close(fd);
	bench_init(&k->b);
	ASSERT(block_open(&k->block, k->b.loop, k->path, "raw", flags, NULL) == 0);
	ASSERT(nvme_new(&k->n, k->b.bus, k->b.map, k->b.loop, k->block, t, NULL) == 0);
	bench_run(&k->b);
	k->slot = nvme_slot(k->n);
	k->bar = (cfg_read(&k->b, k->slot, 0x10, 4) & ~15u) | (uint64_t)cfg_read(&k->b, k->slot, 0x14, 4) << 32;
	for (unsigned i = 0; i < NVME_DRIVER_QUEUES; i++) {
		k->pair[i].sq = bench_alloc(&k->b, 64 * NVME_QUEUE_SIZE);
		k->pair[i].cq = bench_alloc(&k->b, 16 * NVME_QUEUE_SIZE);
	}
	k->data = bench_alloc(&k->b, 2 << 20);
	k->list = bench_alloc(&k->b, 8192);
}

void nvme_bench_fini(struct nvme_bench *k)
{
	nvme_disable(k);
	while (!pci_bus_idle(k->b.bus))
		nap();
	bench_fini(&k->b);
	block_close(k->block);
	bench_free(&k->b);
	unlink(k->path);
}

static void csts_wait(struct nvme_bench *k, uint32_t ready)
{
	for (unsigned i = 0; (nvme_get(k, 0x1c) & 1) != ready && !(ready && nvme_get(k, 0x1c) & 2); i++) {
		ASSERT(i < 200000);
		nap();
	}
}

void nvme_disable(struct nvme_bench *k)
{
	nvme_set(k, 0x14, 0);
	csts_wait(k, 0);
}

static void pair_clear(struct nvme_bench *k, unsigned i)
{
	memset(nvme_ptr(k, k->pair[i].cq), 0, 16 * NVME_QUEUE_SIZE);
	k->pair[i].tail = k->pair[i].head = 0;
	k->pair[i].phase = true;
}

void nvme_enable(struct nvme_bench *k)
{
	nvme_disable(k);
	for (unsigned i = 0; i < NVME_DRIVER_QUEUES; i++)
		pair_clear(k, i);
	nvme_set(k, 0x24, (NVME_QUEUE_SIZE - 1) << 16 | (NVME_QUEUE_SIZE - 1));
	nvme_set(k, 0x28, (uint32_t)k->pair[0].sq);
	nvme_set(k, 0x2c, 0);
	nvme_set(k, 0x30, (uint32_t)k->pair[0].cq);
	nvme_set(k, 0x34, 0);
	nvme_set(k, 0x14, 4 << 20 | 6 << 16 | 1);
	csts_wait(k, 1);
	ASSERT(nvme_get(k, 0x1c) == 1);
	ASSERT(nvme_queue_make(k, 1) == 0);
}

void nvme_put(struct nvme_bench *k, unsigned queue, const struct nvme_entry *e)
{
	struct nvme_pair *p = &k->pair[queue];
	struct nvme_entry *at = (struct nvme_entry *)nvme_ptr(k, p->sq) + p->tail;

	*at = *e;
	at->dw[0] |= (uint32_t)++k->cid << 16;
	p->tail = (uint16_t)((p->tail + 1) % NVME_QUEUE_SIZE);
}

void nvme_ring(struct nvme_bench *k, unsigned queue)
{
	nvme_set(k, 0x1000 + 8 * queue, k->pair[queue].tail);
}

unsigned nvme_wait(struct nvme_bench *k, unsigned queue, uint16_t *cid)
{
	struct nvme_pair *p = &k->pair[queue];
	volatile uint32_t *e = (volatile uint32_t *)(nvme_ptr(k, p->cq) + 16 * p->head);
	uint32_t last;

	for (unsigned i = 0; ((last = __atomic_load_n(&e[3], __ATOMIC_ACQUIRE)) >> 16 & 1) != p->phase; i++) {
		if (i > 100000)
			return ~0u;
		nap();
	}
	k->result = e[0];
	if (cid)
		*cid = (uint16_t)last;
	if (++p->head == NVME_QUEUE_SIZE) {
		p->head = 0;
		p->phase = !p->phase;
	}
	nvme_set(k, 0x1004 + 8 * queue, p->head);
	return last >> 17 & 0x7ff;
}

unsigned nvme_do(struct nvme_bench *k, unsigned queue, uint8_t opcode, uint32_t nsid, uint64_t prp1, uint64_t prp2,
		 uint32_t dw10, uint32_t dw11, uint32_t dw12)
{
	const struct nvme_entry e = { { opcode, nsid, 0, 0, 0, 0, (uint32_t)prp1, (uint32_t)(prp1 >> 32), (uint32_t)prp2,
					(uint32_t)(prp2 >> 32), dw10, dw11, dw12 } };
	uint16_t cid;
	unsigned status;

	nvme_put(k, queue, &e);
	nvme_ring(k, queue);
	status = nvme_wait(k, queue, &cid);
	ASSERT(cid == k->cid);
	return status;
}

unsigned nvme_queue_make(struct nvme_bench *k, unsigned queue)
{
	unsigned status;

	pair_clear(k, queue);
	status = nvme_do(k, 0, 0x05, 0, k->pair[queue].cq, 0, (NVME_QUEUE_SIZE - 1) << 16 | queue, queue << 16 | 3, 0);
	if (status)
		return status;
	return nvme_do(k, 0, 0x01, 0, k->pair[queue].sq, 0, (NVME_QUEUE_SIZE - 1) << 16 | queue, queue << 16 | 1, 0);
}
