/* SCSI disks and CD-ROM drives through the virtio-scsi adapter. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>
#include <fcntl.h>
#include <linux/virtio_scsi.h>

#include "base/endian.h"
#include "base/stream.h"
#include "block/block.h"
#include "devices/virtio/scsi.h"
#include "driver.h"

#define DISK_BYTES (8u << 20)
#define SECTORS (DISK_BYTES / 512)
#define REQUESTS 2u

enum { DISK = 0, CD = 1, FIXED = 2, UNITS = 3 };

struct scsi {
	struct bench b;
	struct drv d;
	struct block *block[UNITS];
	struct virtio_scsi *hba;
	uint64_t request, response, data, control;
	char path[64];
	/* of the last command */
	uint8_t target, lun;
	struct virtio_scsi_cmd_resp r;
};

static unsigned flushes;	/* that commands asked for */

void __real_block_flush(struct block *b, block_done_fn *done, void *opaque);
void __wrap_block_flush(struct block *b, block_done_fn *done, void *opaque);

void __wrap_block_flush(struct block *b, block_done_fn *done, void *opaque)
{
	flushes++;
	__real_block_flush(b, done, opaque);
}

static int setup(void **state)
{
	struct scsi *k = calloc(1, sizeof(*k));
	const struct disk_traits traits = { .serial = "scsi-serial" };
	int fd;

	strcpy(k->path, "/tmp/vixen-scsi-XXXXXX");
	fd = mkstemp(k->path);
	assert_int_equal(ftruncate(fd, DISK_BYTES), 0);
	close(fd);
	bench_init(&k->b);
	assert_int_equal(block_open(&k->block[DISK], k->b.loop, k->path, "raw", 0, NULL), 0);
	for (unsigned i = CD; i < UNITS; i++)
		assert_int_equal(block_open(&k->block[i], k->b.loop, k->path, "raw", BLOCK_READONLY | BLOCK_SHARE, NULL), 0);
	assert_int_equal(virtio_scsi_new(&k->hba, k->b.bus, k->b.map, k->b.loop, REQUESTS, NULL), 0);
	for (unsigned i = 0; i < UNITS; i++)
		assert_int_equal(virtio_scsi_attach(k->hba, k->block[i], i == CD, &traits, NULL), i);
	bench_run(&k->b);
	drv_find(&k->d, &k->b, 1);
	k->request = bench_alloc(&k->b, 4096);
	k->response = bench_alloc(&k->b, 4096);
	k->control = bench_alloc(&k->b, 4096);
	k->data = bench_alloc(&k->b, 1 << 20);
	drv_start(&k->d, ~0ull);
	*state = k;
	return 0;
}

static int teardown(void **state)
{
	struct scsi *k = *state;

	bench_fini(&k->b);
	for (unsigned i = 0; i < UNITS; i++)
		block_close(k->block[i]);
	bench_free(&k->b);
	unlink(k->path);
	free(k);
	return 0;
}

static uint8_t *ptr(struct scsi *k, uint64_t gpa)
{
	return map_ptr(k->b.map, gpa, 4096, true);
}

static uint8_t *data(struct scsi *k)
{
	return map_ptr(k->b.map, k->data, 1 << 20, true);
}

static unsigned request_fill(struct scsi *k, struct buf bufs[3], const uint8_t *cdb, size_t cdb_len, uint32_t len, bool in)
{
	struct virtio_scsi_cmd_req r = { .lun = { 1, k->target, 0x40, k->lun }, .tag = 42 };
	unsigned n = 0;

	memcpy(r.cdb, cdb, cdb_len);
	memcpy(ptr(k, k->request), &r, sizeof(r));
	memset(ptr(k, k->response), 0xee, sizeof(k->r));
	bufs[n++] = (struct buf){ k->request, sizeof(r), false };
	if (len && !in)
		bufs[n++] = (struct buf){ k->data, len, false };
	bufs[n++] = (struct buf){ k->response, sizeof(k->r), true };
	if (len && in)
		bufs[n++] = (struct buf){ k->data, len, true };
	return n;
}

/* The response of the transport; the rest is in k->r. */
static uint8_t run(struct scsi *k, const uint8_t *cdb, size_t cdb_len, uint32_t len, bool in)
{
	struct buf bufs[3];
	unsigned n = request_fill(k, bufs, cdb, cdb_len, len, in);

	assert_int_not_equal(drv_request(&k->d, 2, bufs, n), ~0u);
	memcpy(&k->r, ptr(k, k->response), sizeof(k->r));
	return k->r.response;
}
#define IN(k, len, ...) run(k, (const uint8_t[]){ __VA_ARGS__ }, sizeof((const uint8_t[]){ __VA_ARGS__ }), len, true)
#define OUT(k, len, ...) run(k, (const uint8_t[]){ __VA_ARGS__ }, sizeof((const uint8_t[]){ __VA_ARGS__ }), len, false)
/* asc << 8 | ascq of a check condition, with the key on top; 0 for good */
static unsigned sense(struct scsi *k)
{
	assert_int_equal(k->r.response, VIRTIO_SCSI_S_OK);
	if (!k->r.status)
		return 0;
	assert_int_equal(k->r.status, 2);
	assert_int_equal(k->r.sense_len, 18);
	assert_int_equal(k->r.sense[0], 0x70);
	return (unsigned)k->r.sense[2] << 16 | load_be16(k->r.sense + 12);
}
#define FAILS(k, what, key, asc) do { what; assert_int_equal(sense(k), (key) << 16 | (asc)); } while (0)
#define GOOD(k, what) do { what; assert_int_equal(sense(k), 0); } while (0)

static void attention_take(struct scsi *k, uint8_t target)
{
	k->target = target;
	FAILS(k, IN(k, 0, 0), 6, 0x2900);
	GOOD(k, IN(k, 0, 0));
}

static void test_identification(void **state)
{
	struct scsi *k = *state;

	GOOD(k, IN(k, 96, 0x12, 0, 0, 0, 96));		/* with an attention pending */
	assert_int_equal(k->r.resid, 60);
	assert_int_equal(data(k)[0], 0);
	assert_memory_equal(data(k) + 8, "VIXEN   DISK            1   ", 28);
	GOOD(k, IN(k, 64, 0xa0, 0, 0, 0, 0, 0, 0, 0, 0, 64));
	assert_int_equal(load_be32(data(k)), 8);
	attention_take(k, DISK);
	GOOD(k, IN(k, 255, 0x12, 1, 0x80, 0, 255));
	assert_memory_equal(data(k) + 4, "scsi-serial", 11);
	GOOD(k, IN(k, 255, 0x12, 1, 0, 0, 255));
	assert_int_equal(load_be16(data(k) + 2), 6);
	for (unsigned i = 0; i < 6; i++) {
		uint8_t page = data(k)[4 + i];

		GOOD(k, IN(k, 255, 0x12, 1, page, 0, 255));
		assert_int_equal(data(k)[1], page);
		GOOD(k, IN(k, 255, 0x12, 1, 0, 0, 255));
	}
	FAILS(k, IN(k, 255, 0x12, 1, 0x99, 0, 255), 5, 0x2400);
	FAILS(k, IN(k, 255, 0x12, 0, 1, 0, 255), 5, 0x2400);
	FAILS(k, IN(k, 0, 0xff), 5, 0x2000);
	k->lun = 7;
	GOOD(k, IN(k, 36, 0x12, 0, 0, 0, 36));
	assert_int_equal(data(k)[0], 0x7f);
	FAILS(k, IN(k, 0, 0), 5, 0x2500);
	k->lun = 0;
	k->target = 9;
	assert_int_equal(IN(k, 0, 0), VIRTIO_SCSI_S_BAD_TARGET);
}

static void test_read_write(void **state)
{
	struct scsi *k = *state;
	uint8_t raw[4096];
	int fd;

	attention_take(k, DISK);
	memset(data(k), 0x5a, 4096);
	GOOD(k, OUT(k, 4096, 0x2a, 0, 0, 0, 0, 16, 0, 0, 8));
	assert_int_equal(k->r.resid, 0);
	fd = open(k->path, O_RDONLY);
	assert_int_equal(pread(fd, raw, sizeof(raw), 8192), sizeof(raw));
	close(fd);
	assert_memory_equal(raw, data(k), 4096);
	memset(data(k), 0, 8192);
	GOOD(k, IN(k, 8192, 0x88, 0, 0, 0, 0, 0, 0, 0, 0, 16, 0, 0, 0, 8));
	assert_int_equal(k->r.resid, 4096);
	assert_int_equal(data(k)[4095], 0x5a);
	assert_int_equal(data(k)[4096], 0);
	GOOD(k, IN(k, 4096, 0x08, 0, 0, 16, 8));
	GOOD(k, IN(k, 4096, 0xa8, 0, 0, 0, 0, 16, 0, 0, 0, 8));
	flushes = 0;
	GOOD(k, OUT(k, 512, 0x2a, 0, 0, 0, 0, 0, 0, 0, 1));
	assert_int_equal(flushes, 0);
	GOOD(k, OUT(k, 512, 0x2a, 8, 0, 0, 0, 0, 0, 0, 1));	/* FUA */
	assert_int_equal(flushes, 1);
	GOOD(k, OUT(k, 512, 0x2e, 0, 0, 0, 0, 0, 0, 0, 1));	/* and verify */
	assert_int_equal(flushes, 2);
	GOOD(k, OUT(k, 0, 0x35));
	assert_int_equal(flushes, 3);
	GOOD(k, OUT(k, 0, 0x2f, 0, 0, 0, 0, 0, 0, 0, 8));
	FAILS(k, IN(k, 512, 0x28, 0, 0, 0, SECTORS >> 8, 0, 0, 0, 1), 5, 0x2100);
	FAILS(k, OUT(k, 512, 0x8a, 0, 255, 255, 255, 255, 255, 255, 255, 255, 0, 0, 0, 1), 5, 0x2100);
	FAILS(k, IN(k, 512, 0x28, 0x20, 0, 0, 0, 0, 0, 0, 1), 5, 0x2400);
	assert_int_equal(IN(k, 700, 0x28, 0, 0, 0, 0, 16, 0, 0, 8), VIRTIO_SCSI_S_OVERRUN);
	assert_int_equal(k->r.resid, 188);
	k->target = FIXED;
	attention_take(k, FIXED);
	FAILS(k, OUT(k, 512, 0x2a, 0, 0, 0, 0, 0, 0, 0, 1), 7, 0x2700);
	FAILS(k, OUT(k, 0, 0x93, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1), 7, 0x2700);
}

static void test_capacity(void **state)
{
	struct scsi *k = *state;

	attention_take(k, DISK);
	GOOD(k, IN(k, 8, 0x25));
	assert_int_equal(load_be32(data(k)), SECTORS - 1);
	assert_int_equal(load_be32(data(k) + 4), 512);
	GOOD(k, IN(k, 32, 0x9e, 0x10, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 32));
	assert_int_equal(load_be64(data(k)), SECTORS - 1);
	assert_int_equal(data(k)[13], 3);
	assert_int_equal(data(k)[14], 0x80);
	FAILS(k, IN(k, 32, 0x9e, 0x11), 5, 0x2400);
}

static void range_put(struct scsi *k, unsigned i, uint64_t lba, uint32_t blocks)
{
	store_be64(data(k) + 8 + 16 * i, lba);
	store_be32(data(k) + 16 + 16 * i, blocks);
}

static void same_check(struct scsi *k)
{
	/* sectors 0-7 pattern, 8-15 zero, 16-23 repeated block, the rest pattern */
	GOOD(k, IN(k, 16384, 0x28, 0, 0, 0, 0, 0, 0, 0, 32));
	for (unsigned i = 0; i < 16384; i++)
		assert_int_equal(data(k)[i], i / 4096 == 1 ? 0 : i / 4096 == 2 ? (i % 512 ? 7 : 9) : 0xab);
}

static void test_write_same_unmap(void **state)
{
	struct scsi *k = *state;

	attention_take(k, DISK);
	memset(data(k), 0xab, 16384);
	GOOD(k, OUT(k, 16384, 0x2a, 0, 0, 0, 0, 0, 0, 0, 32));
	GOOD(k, OUT(k, 0, 0x93, 9, 0, 0, 0, 0, 0, 0, 0, 8, 0, 0, 0, 8));	/* unmap, no data */
	memset(data(k), 7, 512);
	data(k)[0] = 9;
	GOOD(k, OUT(k, 512, 0x41, 0, 0, 0, 0, 16, 0, 0, 8));
	same_check(k);
	memset(data(k), 3, 512);
	GOOD(k, OUT(k, 512, 0x93, 0, 0, 0, 0, 0, 0, 0, 0x10, 0, 0, 0, 0x2f, 0xff));	/* some steps of it */
	GOOD(k, IN(k, 1024, 0x28, 0, 0, 0, 0x3f, 0xfe, 0, 0, 2));
	assert_int_equal(data(k)[511], 3);
	assert_int_equal(data(k)[512], 0);
	FAILS(k, OUT(k, 512, 0x41, 0, 0, 0, 0, 0, 0, 0, 0), 5, 0x2400);
	FAILS(k, OUT(k, 512, 0x41, 0, 0, 0, 0x3f, 0xff, 0, 0, 2), 5, 0x2100);
	memset(data(k), 0, 40);
	store_be16(data(k), 38);
	store_be16(data(k) + 2, 32);
	range_put(k, 0, 8, 8);
	range_put(k, 1, 1024, 64);
	GOOD(k, OUT(k, 40, 0x42, 0, 0, 0, 0, 0, 0, 0, 40));
	range_put(k, 1, SECTORS - 1, 2);
	FAILS(k, OUT(k, 40, 0x42, 0, 0, 0, 0, 0, 0, 0, 40), 5, 0x2100);
	FAILS(k, OUT(k, 40, 0x42, 0, 0, 0, 0, 0, 0, 0, 39), 5, 0x1a00);
	store_be16(data(k) + 2, 0xffff);
	FAILS(k, OUT(k, 40, 0x42, 0, 0, 0, 0, 0, 0, 0, 40), 5, 0x1a00);
}

static void test_modes(void **state)
{
	struct scsi *k = *state;

	attention_take(k, DISK);
	GOOD(k, IN(k, 64, 0x1a, 8, 8, 0, 64));
	assert_int_equal(data(k)[0], 23);
	assert_int_equal(data(k)[4], 8);
	assert_int_equal(data(k)[6], 4);		/* cached */
	GOOD(k, IN(k, 64, 0x1a, 8, 0x48, 0, 64));	/* changeable */
	assert_int_equal(data(k)[6], 4);
	GOOD(k, IN(k, 64, 0x1a, 8, 8, 0, 64));
	data(k)[0] = 0;
	data(k)[2] = 0;
	data(k)[6] = 0;
	GOOD(k, OUT(k, 24, 0x15, 0x10, 0, 0, 24));
	GOOD(k, IN(k, 64, 0x5a, 8, 8, 0, 0, 0, 0, 0, 64));
	assert_int_equal(data(k)[10], 0);
	GOOD(k, OUT(k, 512, 0x2a, 0, 0, 0, 0, 0, 0, 0, 1));
	data(k)[11] = 0xff;
	memmove(data(k) + 4, data(k) + 8, 20);
	memset(data(k), 0, 4);
	FAILS(k, OUT(k, 24, 0x15, 0x10, 0, 0, 24), 5, 0x2600);
	FAILS(k, OUT(k, 3, 0x15, 0x10, 0, 0, 3), 5, 0x1a00);
	FAILS(k, IN(k, 64, 0x1a, 0, 0xc8, 0, 64), 5, 0x3900);
	FAILS(k, IN(k, 64, 0x1a, 0, 0x33, 0, 64), 5, 0x2400);
	GOOD(k, IN(k, 255, 0x1a, 0, 0x3f, 0, 255));
	assert_int_equal(data(k)[0], 3 + 8 + 12 + 20 + 12);
	assert_int_equal(load_be32(data(k) + 4), SECTORS);
	k->target = FIXED;
	attention_take(k, FIXED);
	GOOD(k, IN(k, 64, 0x1a, 8, 8, 0, 64));
	assert_int_equal(data(k)[2] & 0x80, 0x80);
	GOOD(k, OUT(k, 0, 0x1b, 0, 0, 0, 0));
	FAILS(k, IN(k, 0, 0), 2, 0x0402);
	GOOD(k, OUT(k, 0, 0x1b, 0, 0, 0, 1));
	GOOD(k, IN(k, 0, 0));
}

static void test_cd(void **state)
{
	struct scsi *k = *state;

	memset(data(k), 0x11, 2048);
	k->target = CD;
	GOOD(k, IN(k, 36, 0x12, 0, 0, 0, 36));
	assert_int_equal(data(k)[0], 5);
	assert_int_equal(data(k)[1], 0x80);
	attention_take(k, CD);
	GOOD(k, IN(k, 8, 0x25));
	assert_int_equal(load_be32(data(k)), DISK_BYTES / 2048 - 1);
	assert_int_equal(load_be32(data(k) + 4), 2048);
	memset(data(k), 0x11, 4096);
	GOOD(k, IN(k, 4096, 0x28, 0, 0, 0, 0, 0, 0, 0, 2));
	assert_int_equal(data(k)[4095], 0);
	GOOD(k, IN(k, 2048, 0xbe, 0, 0, 0, 0, 0, 0, 0, 1, 0x10));
	FAILS(k, IN(k, 2352, 0xbe, 0, 0, 0, 0, 0, 0, 0, 1, 0xf8), 5, 0x2400);
	FAILS(k, OUT(k, 2048, 0x2a, 0, 0, 0, 0, 0, 0, 0, 1), 5, 0x2000);
	GOOD(k, IN(k, 64, 0x43, 0, 0, 0, 0, 0, 0, 0, 64));
	assert_int_equal(load_be16(data(k)), 18);
	assert_int_equal(load_be32(data(k) + 16), DISK_BYTES / 2048);
	GOOD(k, IN(k, 64, 0x43, 2, 0, 0, 0, 0, 0xaa, 0, 64));
	assert_int_equal(data(k)[9], (4096 + 150) / 75 / 60);
	FAILS(k, IN(k, 64, 0x43, 0, 0, 0, 0, 0, 2, 0, 64), 5, 0x2400);
	GOOD(k, IN(k, 64, 0x43, 2, 2, 0, 0, 0, 0, 0, 64));
	assert_int_equal(load_be16(data(k)), 46);
	GOOD(k, IN(k, 255, 0x46, 0, 0, 0, 0, 0, 0, 0, 255));
	assert_int_equal(load_be16(data(k) + 6), 8);
	assert_int_equal(load_be32(data(k)), 255 - k->r.resid - 4);
	GOOD(k, IN(k, 255, 0x5a, 0, 0x2a, 0, 0, 0, 0, 0, 255));
	assert_int_equal(data(k)[8], 0x2a);
	GOOD(k, IN(k, 64, 0x51, 0, 0, 0, 0, 0, 0, 0, 64));
	GOOD(k, IN(k, 64, 0x52, 1, 0, 0, 0, 1, 0, 0, 64));
	FAILS(k, IN(k, 64, 0xad, 0, 0, 0, 0, 0, 0, 0, 0, 64), 5, 0x2400);
}

static void test_eject(void **state)
{
	struct scsi *k = *state;

	k->target = CD;
	attention_take(k, CD);
	GOOD(k, OUT(k, 0, 0x1e, 0, 0, 0, 1));
	FAILS(k, OUT(k, 0, 0x1b, 0, 0, 0, 2), 5, 0x5302);
	GOOD(k, OUT(k, 0, 0x1e, 0, 0, 0, 0));
	GOOD(k, OUT(k, 0, 0x1b, 0, 0, 0, 2));
	FAILS(k, IN(k, 0, 0), 2, 0x3a02);
	FAILS(k, IN(k, 2048, 0x28, 0, 0, 0, 0, 0, 0, 0, 1), 2, 0x3a02);
	GOOD(k, IN(k, 8, 0x4a, 1, 0, 0, 0x10, 0, 0, 0, 8));
	assert_int_equal(data(k)[5], 1);
	GOOD(k, IN(k, 8, 0x46, 0, 0, 0, 0, 0, 0, 0, 8));
	assert_int_equal(load_be16(data(k) + 6), 0);
	GOOD(k, OUT(k, 0, 0x1b, 0, 0, 0, 3));
	GOOD(k, IN(k, 8, 0x4a, 1, 0, 0, 0x10, 0, 0, 0, 8));
	assert_int_equal(data(k)[4], 2);
	assert_int_equal(data(k)[5], 2);
	FAILS(k, IN(k, 0, 0), 6, 0x2800);
	GOOD(k, IN(k, 2048, 0x28, 0, 0, 0, 0, 0, 0, 0, 1));
	GOOD(k, IN(k, 18, 0x03, 0, 0, 0, 18));
	assert_int_equal(data(k)[2], 0);
}

static uint8_t function(struct scsi *k, uint32_t subtype, uint8_t target, uint8_t lun, uint64_t tag)
{
	struct virtio_scsi_ctrl_tmf_req r = { .subtype = subtype, .lun = { 1, target, 0x40, lun }, .tag = tag };
	struct buf bufs[2] = { { k->control, sizeof(r), false }, { k->control + 2048, 1, true } };

	memcpy(ptr(k, k->control), &r, sizeof(r));
	assert_int_equal(drv_request(&k->d, 0, bufs, 2), 1);
	return ptr(k, k->control)[2048];
}

static void test_functions(void **state)
{
	struct scsi *k = *state;
	struct virtio_scsi_ctrl_an_req an = { .type = VIRTIO_SCSI_T_AN_QUERY, .event_requested = ~0u };
	struct buf bufs[2] = { { k->control, sizeof(an), false }, { k->control + 2048, 5, true } };

	attention_take(k, DISK);
	assert_int_equal(function(k, VIRTIO_SCSI_T_TMF_ABORT_TASK, DISK, 0, 42), VIRTIO_SCSI_S_OK);
	assert_int_equal(function(k, VIRTIO_SCSI_T_TMF_QUERY_TASK, DISK, 0, 42), VIRTIO_SCSI_S_OK);
	assert_int_equal(function(k, VIRTIO_SCSI_T_TMF_CLEAR_ACA, DISK, 0, 0), VIRTIO_SCSI_S_FUNCTION_REJECTED);
	assert_int_equal(function(k, VIRTIO_SCSI_T_TMF_ABORT_TASK, 9, 0, 42), VIRTIO_SCSI_S_BAD_TARGET);
	assert_int_equal(function(k, VIRTIO_SCSI_T_TMF_ABORT_TASK, DISK, 3, 42), VIRTIO_SCSI_S_INCORRECT_LUN);
	assert_int_equal(function(k, VIRTIO_SCSI_T_TMF_LOGICAL_UNIT_RESET, DISK, 0, 0), VIRTIO_SCSI_S_OK);
	FAILS(k, IN(k, 0, 0), 6, 0x2903);
	GOOD(k, IN(k, 0, 0));
	memcpy(ptr(k, k->control), &an, sizeof(an));
	assert_int_equal(drv_request(&k->d, 0, bufs, 2), 5);
	assert_int_equal(load_le32(ptr(k, k->control) + 2048), 0);
	assert_int_equal(ptr(k, k->control)[2052], VIRTIO_SCSI_S_OK);
}

/* Many writes under way, then a reset of the unit: it completes after all of them, whatever they answer. */
static void test_reset_under_load(void **state)
{
	struct scsi *k = *state;
	static const uint8_t cdb[10] = { 0x2a, 8, 0, 0, 0, 0, 0, 0, 128 };
	struct buf bufs[3];

	for (unsigned round = 0; round < 100; round++) {
		unsigned n = request_fill(k, bufs, cdb, sizeof(cdb), 65536, false);

		for (unsigned i = 0; i < RING_SIZE / 4; i++) {
			bufs[2].gpa = k->response + 120 * i;
			drv_add(&k->d, 2, 4 * i, bufs, n);
		}
		drv_kick(&k->d, 2);
		assert_int_equal(function(k, round & 1 ? VIRTIO_SCSI_T_TMF_LOGICAL_UNIT_RESET :
					  VIRTIO_SCSI_T_TMF_ABORT_TASK_SET, DISK, 0, 0), VIRTIO_SCSI_S_OK);
		for (unsigned i = 0; i < RING_SIZE / 4; i++)
			assert_true(drv_wait(&k->d, 2, NULL, NULL));
	}
	drv_reset(&k->d);
	assert_true(pci_bus_idle(k->b.bus));
}

static void on_gone(void *opaque)
{
	atomic_store((atomic_uint *)opaque, 1);
}

static void events_add(struct scsi *k, unsigned n)
{
	for (unsigned i = 0; i < n; i++)
		drv_add(&k->d, 1, i, &(struct buf){ k->control + 64 * i, sizeof(struct virtio_scsi_event), true }, 1);
	drv_kick(&k->d, 1);
}

static struct virtio_scsi_event event(struct scsi *k)
{
	struct virtio_scsi_event v;
	uint32_t id, len;

	assert_true(drv_wait(&k->d, 1, &id, &len));
	assert_int_equal(len, sizeof(v));
	memcpy(&v, ptr(k, k->control) + 64 * id, sizeof(v));
	return v;
}

static void attach_spare(void *opaque)
{
	struct scsi *k = opaque;

	virtio_scsi_attach(k->hba, k->block[FIXED], false, &(struct disk_traits){ 0 }, NULL);
}

static void resize_disk(void *opaque)
{
	virtio_scsi_resized(((struct scsi *)opaque)->hba, DISK);
}

static void detach_fixed(void *opaque)
{
	static atomic_uint gone;	/* the test looks at what the driver sees */
	virtio_scsi_detach(((struct scsi *)opaque)->hba, FIXED, on_gone, &gone);
}

static void test_events(void **state)
{
	struct scsi *k = *state;
	struct virtio_scsi_event v;

	attention_take(k, DISK);
	events_add(k, 2);
	loop_post(k->b.loop, resize_disk, k);
	v = event(k);
	assert_int_equal(v.event, VIRTIO_SCSI_T_PARAM_CHANGE);
	assert_int_equal(v.lun[1], DISK);
	assert_int_equal(v.reason, 0x092a);
	FAILS(k, IN(k, 0, 0), 6, 0x2a09);
	loop_post(k->b.loop, detach_fixed, k);
	v = event(k);
	assert_int_equal(v.event, VIRTIO_SCSI_T_TRANSPORT_RESET);
	assert_int_equal(v.reason, VIRTIO_SCSI_EVT_RESET_REMOVED);
	assert_int_equal(v.lun[1], FIXED);
	k->target = FIXED;
	assert_int_equal(IN(k, 0, 0), VIRTIO_SCSI_S_BAD_TARGET);
	loop_post(k->b.loop, attach_spare, k);	/* no buffer left: missed */
	loop_post(k->b.loop, resize_disk, k);
	k->target = CD;
	assert_int_equal(IN(k, 0, 0), VIRTIO_SCSI_S_OK);	/* behind both */
	events_add(k, 1);
	v = event(k);
	assert_int_equal(v.event, VIRTIO_SCSI_T_EVENTS_MISSED | VIRTIO_SCSI_T_NO_EVENT);
	k->target = FIXED;
	attention_take(k, FIXED);
}

static void test_hostile(void **state)
{
	struct scsi *k = *state;
	struct buf bufs[3];

	bufs[0] = (struct buf){ k->request, 30, false };	/* no whole CDB */
	bufs[1] = (struct buf){ k->response, sizeof(k->r), true };
	drv_add(&k->d, 2, 0, bufs, 2);
	drv_kick(&k->d, 2);
	for (unsigned i = 0; i < 20000 && !(drv_status(&k->d) & 0x40); i++)
		usleep(100);
	assert_int_equal(drv_status(&k->d), 0x4f);
	drv_start(&k->d, ~0ull);
	attention_take(k, DISK);
	/* every opcode, with noise, with and without data: an answer each, and nothing broken */
	srandom(1);
	for (unsigned i = 0; i < 20000; i++) {
		uint8_t cdb[16];

		for (unsigned j = 0; j < sizeof(cdb); j++)
			cdb[j] = random() & 1 ? 0 : (uint8_t)(random() & random());
		cdb[0] = (uint8_t)i;
		for (unsigned j = 0; j < 64; j++)
			data(k)[j] = (uint8_t)(random() & random());
		k->target = (uint8_t)(random() % UNITS);
		k->lun = random() % 16 == 0;
		run(k, cdb, sizeof(cdb), (uint32_t)(random() % 3 ? random() % 5000 : 0), random() & 1);
		assert_true(k->r.response <= VIRTIO_SCSI_S_OVERRUN);
		assert_true(k->r.status == 0 || k->r.status == 2);
	}
	assert_int_equal(drv_status(&k->d), 0xf);
}

static void test_sizes_and_state(void **state)
{
	struct scsi *k = *state;
	struct stream s, in;

	k->target = CD;
	GOOD(k, IN(k, 18, 0x03, 0, 0, 0, 18));
	assert_int_equal(load_be16(data(k) + 12), 0x2900);
	GOOD(k, OUT(k, 0, 0x1b, 0, 0, 0, 2));
	stream_init(&s);
	pci_bus_save(k->b.bus, &s);
	drv_reset(&k->d);
	stream_init_read(&in, s.data, s.len);
	assert_int_equal(pci_bus_load(k->b.bus, &in), 0);
	FAILS(k, IN(k, 0, 0), 2, 0x3a02);
	stream_fini(&s);
	map_store(k->b.map, k->d.config + offsetof(struct virtio_scsi_config, cdb_size), 4, 16);
	map_store(k->b.map, k->d.config + offsetof(struct virtio_scsi_config, sense_size), 4, 20);
	assert_int_equal(map_load(k->b.map, k->d.config + offsetof(struct virtio_scsi_config, cdb_size), 4), 16);
	drv_reset(&k->d);
	assert_int_equal(map_load(k->b.map, k->d.config + offsetof(struct virtio_scsi_config, cdb_size), 4), 32);
}

int main(void)
{
#define T(name) cmocka_unit_test_setup_teardown(name, setup, teardown)
	const struct CMUnitTest tests[] = {
		T(test_identification), T(test_read_write), T(test_capacity), T(test_write_same_unmap), T(test_modes),
		T(test_cd), T(test_eject), T(test_functions), T(test_reset_under_load), T(test_events), T(test_hostile),
		T(test_sizes_and_state),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
