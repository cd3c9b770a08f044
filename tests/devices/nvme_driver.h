/* A small NVMe driver for tests: admin queue, one pair of I/O queues or more, polled. */
#ifndef VIXEN_TESTS_DEVICES_NVME_DRIVER_H
#define VIXEN_TESTS_DEVICES_NVME_DRIVER_H

#include "block/block.h"
#include "devices/nvme/nvme.h"
#include "driver.h"

#define NVME_QUEUE_SIZE 16u
#define NVME_DRIVER_QUEUES 4u

struct nvme_entry { uint32_t dw[16]; };		/* a command */

struct nvme_pair {
	uint64_t sq, cq;
	uint16_t tail, head;
	bool phase;
};

struct nvme_bench {
	struct bench b;
	struct block *block;
	struct nvme *n;
	unsigned slot;
	uint64_t bar, data, list;
	struct nvme_pair pair[NVME_DRIVER_QUEUES];
	uint16_t cid;
	uint32_t result;		/* of the last command */
	char path[64];
};

#define NVME_DISK_BYTES (8u << 20)

void nvme_bench_init(struct nvme_bench *k, unsigned flags, const struct disk_traits *t);
void nvme_bench_fini(struct nvme_bench *k);
uint32_t nvme_get(struct nvme_bench *k, unsigned offset);
void nvme_set(struct nvme_bench *k, unsigned offset, uint32_t v);
void nvme_disable(struct nvme_bench *k);
void nvme_enable(struct nvme_bench *k);		/* with the admin queue and, as pair 1, an I/O queue */
/* Puts a command into a queue without ringing. Its CID is k->cid. */
void nvme_put(struct nvme_bench *k, unsigned queue, const struct nvme_entry *e);
void nvme_ring(struct nvme_bench *k, unsigned queue);
/* The status (type << 8 | code) of the next completion, with k->result and *cid; ~0: none came. */
unsigned nvme_wait(struct nvme_bench *k, unsigned queue, uint16_t *cid);
unsigned nvme_do(struct nvme_bench *k, unsigned queue, uint8_t opcode, uint32_t nsid, uint64_t prp1, uint64_t prp2,
		 uint32_t dw10, uint32_t dw11, uint32_t dw12);
unsigned nvme_queue_make(struct nvme_bench *k, unsigned queue);		/* both; the status */
uint8_t *nvme_ptr(struct nvme_bench *k, uint64_t gpa);

#endif
