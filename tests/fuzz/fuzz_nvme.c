/*
 * An NVMe controller and drivers that break the rules: the bytes are a program of register writes, doorbells and commands.
 * Afterwards, and after a reset, the controller must work.
 */
#include <stdlib.h>
#include <string.h>

#include "../devices/nvme_driver.h"
#include "base/error.h"
#include "fuzz.h"

#define PROGRAM_MAX 4096u

struct program {
	const uint8_t *p;
	size_t left;
};

static uint64_t take(struct program *g, unsigned n)
{
	uint64_t v = 0;

	for (unsigned i = 0; i < n && g->left; i++, g->left--)
		v |= (uint64_t)*g->p++ << 8 * i;
	return v;
}

/* Mostly where data, lists and queues are, at times anywhere. */
static uint64_t some_gpa(struct nvme_bench *k, struct program *g)
{
	uint8_t kind = (uint8_t)take(g, 1);

	switch (kind & 7) {
	case 0: return take(g, 8);
	case 1: return k->list + take(g, 2) % 8192;
	case 2: return k->pair[kind >> 3 & 3].sq + (take(g, 1) << 4);
	case 3: return k->bar + take(g, 2);
	default: return k->data + (take(g, 2) << (kind & 8 ? 4 : 12)) % (2 << 20);
	}
}

static void some_command(struct nvme_bench *k, struct program *g)
{
	struct nvme_entry e;
	uint8_t bits = (uint8_t)take(g, 1);
	uint64_t prp1 = some_gpa(k, g), prp2 = some_gpa(k, g);

	memset(&e, 0, sizeof(e));
	e.dw[0] = (uint32_t)(take(g, 1) & (bits & 1 ? 0xff : 0x0f)) | (bits & 2 ? (uint32_t)take(g, 1) << 8 : 0);
	e.dw[1] = bits & 4 ? (uint32_t)take(g, 4) : 1;
	e.dw[6] = (uint32_t)prp1, e.dw[7] = (uint32_t)(prp1 >> 32);
	e.dw[8] = (uint32_t)prp2, e.dw[9] = (uint32_t)(prp2 >> 32);
	for (unsigned i = 10; i < 13; i++)
		e.dw[i] = (uint32_t)take(g, bits & 8 << (i - 10) ? 4 : 1);
	nvme_put(k, bits >> 6, &e);
}

static void some_list(struct nvme_bench *k, struct program *g)
{
	uint64_t *list = (uint64_t *)nvme_ptr(k, k->list);
	unsigned n = (unsigned)take(g, 1) % 32;

	for (unsigned at = (unsigned)take(g, 2) % 512, i = 0; i < n; i++)
		list[(at + i) % 512] = some_gpa(k, g) & ~(uint64_t)(take(g, 1) & 1 ? 4095 : 0);
}

static void step(struct nvme_bench *k, struct program *g)
{
	static const uint8_t registers[] = { 0x0c, 0x10, 0x14, 0x24, 0x28, 0x2c, 0x30, 0x34 };

	switch (take(g, 1) % 8) {
	case 0: nvme_set(k, registers[take(g, 1) % 8], (uint32_t)take(g, 4)); break;
	case 1: nvme_set(k, 0x1000 + (unsigned)(take(g, 2) & 0x3fc), (uint32_t)take(g, 2)); break;
	case 2: some_list(k, g); break;
	case 3: nvme_ring(k, (unsigned)take(g, 1) % NVME_DRIVER_QUEUES); break;
	case 4: nvme_set(k, 0x1004 + 8 * (unsigned)(take(g, 1) % 4), (uint32_t)take(g, 1) % 16); break;
	default: some_command(k, g);
	}
}

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t len)
{
	struct nvme_bench k;
	struct program g = { bytes, len < PROGRAM_MAX ? len : PROGRAM_MAX };

	nvme_bench_init(&k, take(&g, 1) & 1 ? BLOCK_READONLY : 0, &(struct disk_traits){ .serial = "fuzz" });
	nvme_enable(&k);
	while (g.left)
		step(&k, &g);
	for (unsigned i = 0; i < NVME_DRIVER_QUEUES; i++)
		nvme_ring(&k, i);
	nvme_enable(&k);	/* it must come to rest, and work again */
	ASSERT(nvme_do(&k, 1, 2, 1, k.data, 0, 0, 0, 7) == 0);
	nvme_bench_fini(&k);
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
