/* Commands that move data or change blocks (SBC-3, chapter 5): ranges, reads, writes, repeated blocks, unmapping. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "devices/scsi/private.h"

/* The place of LBA and length follows from the opcode's group (SPC-4, 4.2.5). */
bool rw_decode(const uint8_t *cdb, uint64_t *lba, uint64_t *blocks)
{
	switch (cdb[0] >> 5) {
	case 0:
		*lba = load_be32(cdb) & 0x1fffff;
		*blocks = cdb[4] ? cdb[4] : 256;
		return true;
	case 1:
	case 2:
		*lba = load_be32(cdb + 2);
		*blocks = load_be16(cdb + 7);
		return true;
	case 4:
		*lba = load_be64(cdb + 2);
		*blocks = load_be32(cdb + 10);
		return true;
	case 5:
		*lba = load_be32(cdb + 2);
		*blocks = load_be32(cdb + 6);
		return true;
	}
	return false;
}

bool range_check(struct scsi_unit *u, struct scsi_task *t, uint64_t lba, uint64_t blocks)
{
	uint64_t size = unit_blocks(u);

	if (lba <= size && blocks <= size - lba)
		return true;
	scsi_illegal(t, ASC_LBA);
	return false;
}

/* --- reads and writes --- */

static void flushed(void *opaque, int ret)
{
	scsi_result(opaque, ret);
}

static void changed(void *opaque, int ret)
{
	struct scsi_task *t = opaque;

	if (!ret && t->force)
		block_flush(t->unit->block, flushed, t);
	else
		scsi_result(t, ret);
}

static void moved(void *opaque, int ret)
{
	struct scsi_task *t = opaque;

	if (ret)
		t->moved = 0;
	if (t->write)
		changed(t, ret);
	else
		scsi_result(t, ret);
}

void transfer(struct scsi_unit *u, struct scsi_task *t, uint64_t lba, uint64_t blocks, bool write)
{
	uint64_t bytes = blocks * u->block_bytes, room = write ? t->out_len : t->in_len;

	if (!range_check(u, t, lba, blocks))
		return;
	t->write = write;
	t->overrun = room < bytes;
	if (t->overrun)
		bytes = room / u->block_bytes * u->block_bytes;
	t->moved = bytes;
	if (write) {
		t->force |= !u->cached;
		t->nout = iov_keep(t->out, t->nout, bytes);
		block_writev(u->block, lba * u->block_bytes, t->out, (int)t->nout, moved, t);
	} else {
		t->nin = iov_keep(t->in, t->nin, bytes);
		block_readv(u->block, lba * u->block_bytes, t->in, (int)t->nin, moved, t);
	}
}

/* Bits 7-5 of byte 1 ask for protection information, but for the 6-byte forms, which have the LBA there. */
static void start(struct scsi_unit *u, struct scsi_task *t, bool write)
{
	uint64_t lba, blocks;
	bool small = t->cdb[0] < 0x20;

	if (!rw_decode(t->cdb, &lba, &blocks) || (!small && t->cdb[1] & 0xe0)) {
		scsi_illegal(t, ASC_CDB);
		return;
	}
	t->force |= write && !small && t->cdb[1] & 8;
	transfer(u, t, lba, blocks, write);
}

void scsi_read(struct scsi_unit *u, struct scsi_task *t)
{
	start(u, t, false);
}

/* WRITE and WRITE AND VERIFY (x2Eh): to verify is to have it on the medium. */
void scsi_write(struct scsi_unit *u, struct scsi_task *t)
{
	t->force = (t->cdb[0] & 0x1f) == 0x0e;
	if (t->force && t->cdb[1] & 6)	/* BYTCHK */
		scsi_illegal(t, ASC_CDB);
	else
		start(u, t, true);
}

void scsi_verify(struct scsi_unit *u, struct scsi_task *t)
{
	uint64_t lba, blocks;

	if (!rw_decode(t->cdb, &lba, &blocks) || t->cdb[1] & 0xe6)
		scsi_illegal(t, ASC_CDB);
	else if (range_check(u, t, lba, blocks))
		scsi_good(t);
}

/* All of the cache, whatever range was named. */
void scsi_synchronize(struct scsi_unit *u, struct scsi_task *t)
{
	uint64_t lba, blocks;

	rw_decode(t->cdb, &lba, &blocks);
	t->write = true;
	if (range_check(u, t, lba, blocks))
		block_flush(u->block, flushed, t);
}

/* --- WRITE SAME (5.44, 5.45) --- */

static bool all_zero(const uint8_t *p, size_t n)
{
	return !*p && !memcmp(p, p + 1, n - 1);
}

static void same_next(void *opaque, int ret)
{
	struct scsi_task *t = opaque;
	uint64_t n = t->left < STEP_BYTES ? t->left : STEP_BYTES, offset = t->offset;
	uint32_t unit = 16 * t->unit->block_bytes;
	int niov = 0;

	if (ret || !n) {
		changed(t, ret);
		return;
	}
	t->offset += n;
	t->left -= n;
	for (uint64_t left = n; left; left -= t->iov[niov++].iov_len)
		t->iov[niov] = (struct iovec){ t->buf, left < unit ? left : unit };
	block_writev(t->unit->block, offset, t->iov, niov, same_next, t);
}

/* t->buf: sixteen blocks, the first is filled. */
static void same_start(struct scsi_unit *u, struct scsi_task *t)
{
	for (unsigned i = 1; i < 16; i++)
		memcpy(t->buf + i * u->block_bytes, t->buf, u->block_bytes);
	t->iov = calloc(STEP_BYTES / (16 * u->block_bytes), sizeof(*t->iov));
	if (t->iov)
		same_next(t, 0);
	else
		scsi_result(t, -ENOMEM);
}

void scsi_write_same(struct scsi_unit *u, struct scsi_task *t)
{
	bool unmap = t->cdb[1] & 8, no_data = t->cdb[0] == 0x93 && t->cdb[1] & 1;
	uint64_t lba, blocks;

	rw_decode(t->cdb, &lba, &blocks);
	t->write = true;
	t->force = !u->cached;
	if (t->cdb[1] & 0xf6 || !blocks || blocks > RANGE_MAX_BYTES / u->block_bytes) {
		scsi_illegal(t, ASC_CDB);
		return;
	}
	if (!range_check(u, t, lba, blocks))
		return;
	t->buf = calloc(16, u->block_bytes);
	t->offset = lba * u->block_bytes;
	t->left = blocks * u->block_bytes;
	if (!t->buf) {
		scsi_result(t, -ENOMEM);
	} else if (!no_data && (t->moved = iov_get(t->out, t->nout, 0, t->buf, u->block_bytes)) < u->block_bytes) {
		t->overrun = true;
		scsi_good(t);
	} else if (all_zero(t->buf, u->block_bytes)) {
		block_write_zeroes(u->block, t->offset, t->left, unmap, changed, t);
	} else {
		same_start(u, t);
	}
}

/* --- UNMAP (5.28): header of 8 bytes, then { lba u64 | blocks u32 | reserved u32 } --- */

static void unmap_next(void *opaque, int ret)
{
	struct scsi_task *t = opaque;
	const struct scsi_unit *u = t->unit;
	const uint8_t *d;

	if (ret || t->next == t->count) {
		scsi_result(t, ret);
		return;
	}
	d = t->buf + 8 + 16 * t->next++;
	block_discard(u->block, load_be64(d) * u->block_bytes, (uint64_t)load_be32(d + 8) * u->block_bytes, unmap_next, t);
}

/* What is wrong with the descriptors, or 0. */
static uint16_t unmap_check(const struct scsi_unit *u, const struct scsi_task *t)
{
	uint64_t size = unit_blocks(u);

	for (unsigned i = 0; i < t->count; i++) {
		const uint8_t *d = t->buf + 8 + 16 * i;
		uint64_t lba = load_be64(d), blocks = load_be32(d + 8);

		if (lba > size || blocks > size - lba)
			return ASC_LBA;
		if (blocks > RANGE_MAX_BYTES / u->block_bytes)
			return ASC_PARAMETER;
	}
	return 0;
}

void scsi_unmap(struct scsi_unit *u, struct scsi_task *t)
{
	size_t len = load_be16(t->cdb + 7);
	uint16_t bad;

	t->write = true;
	if (!len) {
		scsi_good(t);
		return;
	}
	if (t->cdb[1] & 1) {
		scsi_illegal(t, ASC_CDB);
		return;
	}
	t->buf = calloc(1, 65536);
	if (!t->buf) {
		scsi_result(t, -ENOMEM);
		return;
	}
	t->moved = iov_get(t->out, t->nout, 0, t->buf, len);
	t->overrun = t->moved < len;
	t->count = load_be16(t->buf + 2) / 16;
	if (len < 8 || t->overrun || 8 + 16 * t->count > len)
		scsi_illegal(t, ASC_PARAMETER_LENGTH);
	else if (t->count > UNMAP_RANGES_MAX)
		scsi_illegal(t, ASC_PARAMETER);
	else if ((bad = unmap_check(u, t)))
		scsi_illegal(t, bad);
	else if (block_readonly(u->block))
		scsi_result(t, -EROFS);
	else
		unmap_next(t, 0);
}
