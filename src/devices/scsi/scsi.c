/* What all logical units share: sense data, identification, modes, and the way from a CDB to its command (SPC-4). */
#include "devices/scsi/scsi.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/stream.h"
#include "devices/scsi/private.h"

/* --- answers --- */

static void end(struct scsi_task *t, uint8_t status)
{
	free(t->buf);
	free(t->iov);
	t->buf = NULL;
	t->iov = NULL;
	t->status = status;
	t->done(t);
}

void scsi_good(struct scsi_task *t)
{
	end(t, SCSI_GOOD);
}

/* Fixed format: 70h, key at 2, length at 7, asc and ascq at 12. */
static void sense_fill(uint8_t sense[SCSI_SENSE_LEN], uint8_t key, uint16_t asc)
{
	memset(sense, 0, SCSI_SENSE_LEN);
	sense[0] = 0x70;
	sense[2] = key;
	sense[7] = SCSI_SENSE_LEN - 8;
	store_be16(sense + 12, asc);
}

void scsi_sense(struct scsi_task *t, uint8_t key, uint16_t asc)
{
	sense_fill(t->sense, key, asc);
	t->sensed = true;
	end(t, SCSI_CHECK_CONDITION);
}

void scsi_illegal(struct scsi_task *t, uint16_t asc)
{
	scsi_sense(t, KEY_ILLEGAL, asc);
}

void scsi_answer(struct scsi_task *t, const void *buf, size_t len, size_t allocation)
{
	size_t n = len < allocation ? len : allocation;

	t->moved = iov_put(t->in, t->nin, 0, buf, n);
	t->overrun = t->moved < n;
	scsi_good(t);
}

void scsi_result(struct scsi_task *t, int ret)
{
	switch (ret) {
	case 0: scsi_good(t); break;
	case -EROFS: scsi_sense(t, KEY_PROTECT, ASC_WRITE_PROTECTED); break;
	case -ENOSPC: scsi_sense(t, KEY_PROTECT, ASC_NO_SPACE); break;
	case -ENOMEM: scsi_sense(t, KEY_HARDWARE, ASC_FAILURE); break;
	default: scsi_sense(t, KEY_MEDIUM, t->write ? ASC_WRITE_ERROR : ASC_READ_ERROR);
	}
}

/* --- REQUEST SENSE, INQUIRY --- */

static void request_sense(struct scsi_unit *u, struct scsi_task *t)
{
	uint8_t sense[SCSI_SENSE_LEN];

	sense_fill(sense, u->attention ? KEY_ATTENTION : KEY_NONE, u->attention);
	u->attention = 0;
	scsi_answer(t, sense, sizeof(sense), t->cdb[4]);
}

static void text(uint8_t *out, const char *s, size_t len)
{
	size_t n = strlen(s);

	memset(out, ' ', len);
	memcpy(out, s, n < len ? n : len);
}

/* 6.4.2; peripheral 7Fh: no device can stand here. */
static size_t inquiry_standard(uint8_t b[ANSWER_MAX], uint8_t peripheral, bool cdrom)
{
	memset(b, 0, 36);
	b[0] = peripheral;
	b[1] = cdrom ? 0x80 : 0;	/* removable */
	b[2] = 6;			/* SPC-4 */
	b[3] = 2;			/* the format there is */
	b[4] = 36 - 5;
	b[7] = 2;			/* queues commands */
	text(b + 8, "VIXEN", 8);
	text(b + 16, cdrom ? "CD-ROM" : "DISK", 16);
	text(b + 32, "1", 4);
	return 36;
}

/* 7.8.6: a vendor's designator, in ASCII. */
static size_t vpd_identification(const struct scsi_unit *u, uint8_t *b)
{
	size_t len = 8 + strlen(u->serial);

	b[4] = 2;
	b[5] = 1;
	b[7] = (uint8_t)len;
	text(b + 8, "VIXEN", 8);
	memcpy(b + 16, u->serial, len - 8);
	return 8 + len;
}

/* Pages of vital product data (7.8): type, code, length at 2, content from 4 on. */
static size_t vpd(const struct scsi_unit *u, uint8_t page, uint8_t b[ANSWER_MAX])
{
	static const uint8_t disk_pages[] = { 0x00, 0x80, 0x83, 0xb0, 0xb1, 0xb2 };
	size_t n;

	memset(b, 0, ANSWER_MAX);
	switch (page) {
	case 0x00:
		n = u->cdrom ? 3 : sizeof(disk_pages);
		memcpy(b + 4, disk_pages, n);
		n += 4;
		break;
	case 0x80:
		n = 4 + strlen(u->serial);
		memcpy(b + 4, u->serial, n - 4);
		break;
	case 0x83: n = vpd_identification(u, b); break;
	default: n = u->cdrom ? 0 : disk_vpd(u, page, b);
	}
	b[0] = u->cdrom ? 5 : 0;
	b[1] = page;
	store_be16(b + 2, (uint16_t)(n - 4));
	return n;
}

static void inquiry(struct scsi_unit *u, struct scsi_task *t)
{
	uint8_t b[ANSWER_MAX];
	size_t n = 0;

	if (t->cdb[1] & 1)
		n = vpd(u, t->cdb[2], b);
	else if (!t->cdb[2])
		n = inquiry_standard(b, u->cdrom ? 5 : 0, u->cdrom);
	if (n)
		scsi_answer(t, b, n, load_be16(t->cdb + 3));
	else
		scsi_illegal(t, ASC_CDB);
}

/* 6.33: each target has one logical unit, 0. */
static void report_luns(struct scsi_task *t)
{
	uint8_t b[16] = { 0, 0, 0, 8 };
	uint32_t allocation = load_be32(t->cdb + 6);

	if (t->cdb[2] > 2)
		scsi_illegal(t, ASC_CDB);
	else if (t->cdb[2] == 1)	/* well-known ones: none */
		scsi_answer(t, (uint8_t[8]){ 0 }, 8, allocation);
	else
		scsi_answer(t, b, sizeof(b), allocation);
}

static void report_luns_here(struct scsi_unit *u, struct scsi_task *t)
{
	report_luns(t);
}

/* --- modes (6.11 to 6.14, 7.5) --- */

size_t mode_page(uint8_t *out, uint8_t code, uint8_t len, uint8_t wanted)
{
	if (wanted != code && wanted != 0x3f)
		return 0;
	memset(out, 0, len + 2u);
	out[0] = code;
	out[1] = len;
	return len + 2u;
}

static size_t mode_pages(const struct scsi_unit *u, uint8_t code, bool changeable, uint8_t *out)
{
	return u->cdrom ? cd_mode_pages(u, code, changeable, out) : disk_mode_pages(u, code, changeable, out);
}

/* Number of blocks 1-3, their length 5-7. */
static size_t mode_descriptor(const struct scsi_unit *u, uint8_t *b)
{
	uint64_t blocks = unit_blocks(u);

	store_be32(b, blocks > 0xffffff ? 0xffffff : (uint32_t)blocks);
	store_be32(b + 4, u->block_bytes);
	return 8;
}

static void mode_sense(struct scsi_unit *u, struct scsi_task *t)
{
	bool ten = t->cdb[0] == 0x5a, descriptor = !(t->cdb[1] & 8) && !u->cdrom;
	uint8_t b[16 + MODE_PAGES_MAX] = { 0 }, control = t->cdb[2] >> 6;
	uint8_t special = u->cdrom ? 0 : (uint8_t)((block_readonly(u->block) ? 0x80 : 0) | 0x10 /* knows FUA */);
	size_t n = ten ? 8 : 4, pages;

	if (control == 3) {
		scsi_illegal(t, ASC_SAVING);
		return;
	}
	if (descriptor)
		b[ten ? 7 : 3] = (uint8_t)mode_descriptor(u, b + n);
	n += descriptor ? 8 : 0;
	pages = t->cdb[3] && t->cdb[3] != 0xff ? 0 : mode_pages(u, t->cdb[2] & 0x3f, control == 1, b + n);
	if (!pages) {
		scsi_illegal(t, ASC_CDB);
		return;
	}
	n += pages;
	b[ten ? 3 : 2] = special;
	if (ten)
		store_be16(b, (uint16_t)(n - 2));
	else
		b[0] = (uint8_t)(n - 1);
	scsi_answer(t, b, n, ten ? load_be16(t->cdb + 7) : t->cdb[4]);
}

/* The page at p, len bytes of it there: may it be, is only what is changeable changed? 0: no. */
static size_t mode_page_check(const struct scsi_unit *u, const uint8_t *p, size_t len)
{
	uint8_t now[MODE_PAGES_MAX], mask[MODE_PAGES_MAX];
	uint8_t code = p[0] & 0x3f;
	size_t n = code == 0x3f ? 0 : mode_pages(u, code, false, now);

	if (!n || n > len || p[1] != now[1] || p[0] & 0x40)
		return 0;
	mode_pages(u, code, true, mask);
	for (size_t i = 2; i < n; i++)
		if ((p[i] ^ now[i]) & ~mask[i])
			return 0;
	return n;
}

static void mode_select(struct scsi_unit *u, struct scsi_task *t)
{
	bool ten = t->cdb[0] == 0x55, cached = u->cached;
	size_t len = ten ? load_be16(t->cdb + 7) : t->cdb[4], at = ten ? 8 : 4, page;
	uint8_t b[16 + MODE_PAGES_MAX];

	if (!(t->cdb[1] & 0x10) || t->cdb[1] & 1) {
		scsi_illegal(t, ASC_CDB);
		return;
	}
	if (!len) {
		scsi_good(t);
		return;
	}
	if (len > sizeof(b) || len < at || (t->moved = iov_get(t->out, t->nout, 0, b, len)) < len) {
		scsi_illegal(t, ASC_PARAMETER_LENGTH);
		return;
	}
	for (at += ten ? load_be16(b + 6) : b[3]; at + 2 <= len; at += page) {
		page = mode_page_check(u, b + at, len - at);
		if (!page) {
			scsi_illegal(t, ASC_PARAMETER);
			return;
		}
		if ((b[at] & 0x3f) == 8)
			cached = b[at + 2] & 4;
	}
	u->cached = cached;
	scsi_good(t);
}

/* --- what needs no more than to be there --- */

static void do_nothing(struct scsi_unit *u, struct scsi_task *t)
{
	scsi_good(t);
}

/* Only the default self-test. */
static void send_diagnostic(struct scsi_unit *u, struct scsi_task *t)
{
	if (t->cdb[1] & 4 && !(t->cdb[1] & 0xe0))
		scsi_good(t);
	else
		scsi_illegal(t, ASC_CDB);
}

static void prevent_removal(struct scsi_unit *u, struct scsi_task *t)
{
	u->locked = t->cdb[4] & 1;
	scsi_good(t);
}

static const struct scsi_command common_commands[] = {
	{ 0x00, MEDIUM, do_nothing },		/* TEST UNIT READY */
	{ 0x03, ALWAYS, request_sense },
	{ 0x12, ALWAYS, inquiry },
	{ 0x15, 0, mode_select }, { 0x55, 0, mode_select },
	{ 0x1a, 0, mode_sense }, { 0x5a, 0, mode_sense },
	{ 0x16, 0, do_nothing }, { 0x17, 0, do_nothing },	/* RESERVE, RELEASE: there is one initiator */
	{ 0x1d, 0, send_diagnostic },
	{ 0x1e, 0, prevent_removal },
	{ 0xa0, ALWAYS, report_luns_here },
	{ 0, 0, NULL },
};

/* --- the way in --- */

uint64_t unit_blocks(const struct scsi_unit *u)
{
	return block_size(u->block) / u->block_bytes;
}

static const struct scsi_command *command_find(const struct scsi_command *c, uint8_t opcode)
{
	while (c->execute && c->opcode != opcode)
		c++;
	return c->execute ? c : NULL;
}

void scsi_execute(struct scsi_unit *u, struct scsi_task *t)
{
	const struct scsi_command *c = command_find(common_commands, t->cdb[0]);
	uint16_t attention = u->attention;

	t->unit = u;
	if (!c)
		c = command_find(u->cdrom ? scsi_cd_commands : scsi_disk_commands, t->cdb[0]);
	if (attention && !(c && c->flags & ALWAYS)) {
		u->attention = 0;
		scsi_sense(t, KEY_ATTENTION, attention);
	} else if (!c) {
		scsi_illegal(t, ASC_OPCODE);
	} else if (c->flags & MEDIUM && u->open) {
		scsi_sense(t, KEY_NOT_READY, ASC_NO_MEDIUM_OPEN);
	} else if (c->flags & MEDIUM && u->stopped) {
		scsi_sense(t, KEY_NOT_READY, ASC_NOT_READY_START);
	} else {
		c->execute(u, t);
	}
}

void scsi_execute_absent(struct scsi_task *t)
{
	uint8_t b[ANSWER_MAX];

	if (t->cdb[0] == 0xa0) {
		report_luns(t);
	} else if (t->cdb[0] == 0x12 && !(t->cdb[1] & 1)) {
		scsi_answer(t, b, inquiry_standard(b, 0x7f, false), load_be16(t->cdb + 3));
	} else if (t->cdb[0] == 0x03) {
		sense_fill(b, KEY_ILLEGAL, ASC_NO_UNIT);
		scsi_answer(t, b, SCSI_SENSE_LEN, t->cdb[4]);
	} else {
		scsi_illegal(t, ASC_NO_UNIT);
	}
}

/* --- life --- */

void scsi_unit_attention(struct scsi_unit *u, enum scsi_attention what)
{
	u->attention = (uint16_t)what;
}

void scsi_unit_reset(struct scsi_unit *u, enum scsi_attention why)
{
	u->cached = u->cached_initially;
	u->stopped = u->locked = u->open = u->media_event = false;
	u->attention = (uint16_t)why;
}

int scsi_unit_new(struct scsi_unit **out, struct block *b, bool cdrom, const struct disk_traits *t, struct error *e)
{
	struct scsi_unit *u = calloc(1, sizeof(*u));

	if (!u)
		return error_errno(e, ENOMEM, NULL, "create a SCSI disk");
	u->block = b;
	u->cdrom = cdrom;
	u->block_bytes = cdrom ? 2048 : disk_logical(t);
	u->physical_bytes = cdrom ? 2048 : disk_physical(t);
	u->cached_initially = !t->write_through;
	if (t->serial)
		memcpy(u->serial, t->serial, strnlen(t->serial, DISK_SERIAL_MAX));
	scsi_unit_reset(u, SCSI_POWER_ON);
	*out = u;
	return 0;
}

void scsi_unit_free(struct scsi_unit *u)
{
	free(u);
}

void scsi_unit_save(const struct scsi_unit *u, struct stream *s)
{
	stream_put_u8(s, u->cached);
	stream_put_u8(s, u->stopped);
	stream_put_u8(s, u->locked);
	stream_put_u8(s, u->open);
	stream_put_u8(s, u->media_event);
	stream_put_u16(s, u->attention);
}

void scsi_unit_load(struct scsi_unit *u, struct stream *s)
{
	u->cached = stream_get_u8(s) & 1;
	u->stopped = stream_get_u8(s) & 1;
	u->locked = stream_get_u8(s) & 1;
	u->open = u->cdrom & stream_get_u8(s);
	u->media_event = stream_get_u8(s) & 1;
	u->attention = stream_get_u16(s);
}
