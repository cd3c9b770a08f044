/* Direct-access disks (SBC-3): capacity, limits, modes, start and stop. */
#include "devices/scsi/private.h"

#include <string.h>

static void read_capacity10(struct scsi_unit *u, struct scsi_task *t)
{
	uint64_t last = unit_blocks(u) - 1;
	uint8_t b[8];

	store_be32(b, last > UINT32_MAX ? UINT32_MAX : (uint32_t)last);
	store_be32(b + 4, u->block_bytes);
	scsi_answer(t, b, sizeof(b), sizeof(b));
}

/* READ CAPACITY (16), a service action (5.13). */
static void service_in16(struct scsi_unit *u, struct scsi_task *t)
{
	uint8_t b[32] = { 0 };

	if ((t->cdb[1] & 0x1f) != 0x10) {
		scsi_illegal(t, ASC_CDB);
		return;
	}
	store_be64(b, unit_blocks(u) - 1);
	store_be32(b + 8, u->block_bytes);
	b[13] = (uint8_t)__builtin_ctz(u->physical_bytes / u->block_bytes);
	b[14] = block_can_discard(u->block) ? 0x80 : 0;		/* unmapped blocks may read as anything */
	scsi_answer(t, b, sizeof(b), load_be32(t->cdb + 10));
}

/* 5.20 */
static void start_stop(struct scsi_unit *u, struct scsi_task *t)
{
	if (!(t->cdb[4] & 0xf0))	/* no power condition */
		u->stopped = !(t->cdb[4] & 1);
	scsi_good(t);
}

const struct scsi_command scsi_disk_commands[] = {
	{ 0x08, MEDIUM, scsi_read }, { 0x28, MEDIUM, scsi_read }, { 0xa8, MEDIUM, scsi_read }, { 0x88, MEDIUM, scsi_read },
	{ 0x0a, MEDIUM, scsi_write }, { 0x2a, MEDIUM, scsi_write }, { 0xaa, MEDIUM, scsi_write },
	{ 0x8a, MEDIUM, scsi_write },
	{ 0x2e, MEDIUM, scsi_write }, { 0xae, MEDIUM, scsi_write }, { 0x8e, MEDIUM, scsi_write },	/* and verify */
	{ 0x2f, MEDIUM, scsi_verify }, { 0xaf, MEDIUM, scsi_verify }, { 0x8f, MEDIUM, scsi_verify },
	{ 0x35, MEDIUM, scsi_synchronize }, { 0x91, MEDIUM, scsi_synchronize },
	{ 0x41, MEDIUM, scsi_write_same }, { 0x93, MEDIUM, scsi_write_same },
	{ 0x42, MEDIUM, scsi_unmap },
	{ 0x1b, 0, start_stop },
	{ 0x25, MEDIUM, read_capacity10 },
	{ 0x9e, MEDIUM, service_in16 },
	{ 0, 0, NULL },
};

/* --- modes: recovery 01h, caching 08h, control 0Ah --- */

size_t disk_mode_pages(const struct scsi_unit *u, uint8_t code, bool changeable, uint8_t *out)
{
	size_t n = mode_page(out, 0x01, 10, code), len;

	if (n && !changeable)
		out[2] = 0x80;		/* reallocates on writing */
	len = mode_page(out + n, 0x08, 18, code);
	if (len)
		out[n + 2] = changeable || u->cached ? 4 : 0;	/* WCE */
	n += len;
	return n + mode_page(out + n, 0x0a, 10, code);
}

/* --- vital product data --- */

/* Block limits (6.6.4), in blocks. */
static size_t vpd_limits(const struct scsi_unit *u, uint8_t *b)
{
	uint32_t cluster = block_cluster(u->block), best = cluster > u->physical_bytes ? cluster : u->physical_bytes;
	uint32_t range = (uint32_t)(RANGE_MAX_BYTES / u->block_bytes);

	b[4] = 1;	/* WRITE SAME wants a length */
	store_be16(b + 6, (uint16_t)(u->physical_bytes / u->block_bytes));
	store_be32(b + 8, STEP_BYTES / u->block_bytes);
	store_be32(b + 12, best / u->block_bytes);
	if (block_can_discard(u->block)) {
		store_be32(b + 20, range);
		store_be32(b + 24, UNMAP_RANGES_MAX);
		store_be32(b + 28, best / u->block_bytes);
		store_be32(b + 32, 0x80000000);		/* aligned at 0 */
	}
	store_be64(b + 36, range);
	return 64;
}

size_t disk_vpd(const struct scsi_unit *u, uint8_t page, uint8_t out[ANSWER_MAX])
{
	switch (page) {
	case 0xb0: return vpd_limits(u, out);
	case 0xb1:
		store_be16(out + 4, 1);		/* does not rotate */
		return 64;
	case 0xb2:	/* UNMAP, WRITE SAME (16) and (10) unmap; thin */
		out[5] = block_can_discard(u->block) ? 0xe0 : 0;
		out[6] = block_can_discard(u->block) ? 2 : 0;
		return 8;
	}
	return 0;
}
