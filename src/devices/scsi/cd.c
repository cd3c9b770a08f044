/*
 * CD-ROM and DVD-ROM drives (MMC-6) that hold the image of one data track.
 *
 *	in, spinning ──START STOP, eject──▶ tray open: no medium
 *	             ◀──START STOP, load──  back in: attention 28h, a media event
 */
#include <string.h>

#include "devices/scsi/private.h"

#define CD_BLOCKS_MAX 360000u	/* 80 minutes; what is larger is a DVD */

enum { PROFILE_CD = 0x08, PROFILE_DVD = 0x10 };

static uint16_t profile(const struct scsi_unit *u)
{
	return u->open ? 0 : unit_blocks(u) > CD_BLOCKS_MAX ? PROFILE_DVD : PROFILE_CD;
}

static void read_capacity(struct scsi_unit *u, struct scsi_task *t)
{
	uint8_t b[8];

	store_be32(b, (uint32_t)(unit_blocks(u) - 1));
	store_be32(b + 4, u->block_bytes);
	scsi_answer(t, b, sizeof(b), sizeof(b));
}

/* 6.22: reading 2048 bytes of each sector, or nothing at all, is all that an image can give. */
static void read_cd(struct scsi_unit *u, struct scsi_task *t)
{
	uint64_t lba = load_be32(t->cdb + 2), blocks = load_be32(t->cdb + 5) & 0xffffff;
	uint8_t fields = t->cdb[9] & 0xf8;

	if (fields && fields != 0x10)
		scsi_illegal(t, ASC_CDB);
	else if (fields)
		transfer(u, t, lba, blocks, false);
	else if (range_check(u, t, lba, blocks))
		scsi_good(t);
}

/* --- START STOP UNIT (6.46) --- */

static void start_stop(struct scsi_unit *u, struct scsi_task *t)
{
	bool eject = (t->cdb[4] & 3) == 2, load = (t->cdb[4] & 3) == 3;

	if (t->cdb[4] & 0xf0) {		/* power conditions: nothing to do */
		scsi_good(t);
		return;
	}
	if (eject && u->locked) {
		scsi_illegal(t, ASC_PREVENTED);
		return;
	}
	if (load && u->open) {
		u->attention = ASC_MEDIUM_CHANGED;
		u->media_event = true;
	}
	if (eject || load)
		u->open = eject;
	u->stopped = !(t->cdb[4] & 1) && !eject;
	scsi_good(t);
}

/* --- READ TOC/PMA/ATIP (6.26) --- */

static void place(uint8_t *b, uint64_t lba, bool msf)
{
	uint64_t frame = lba + 150;

	if (!msf) {
		store_be32(b, (uint32_t)lba);
		return;
	}
	b[0] = 0;
	b[1] = (uint8_t)(frame / (75 * 60) > 255 ? 255 : frame / (75 * 60));
	b[2] = (uint8_t)(frame / 75 % 60);
	b[3] = (uint8_t)(frame % 75);
}

static uint8_t *toc_track(uint8_t *p, uint8_t track, uint64_t lba, bool msf)
{
	p[0] = 0;
	p[1] = 0x14;		/* position in Q, data track */
	p[2] = track;
	p[3] = 0;
	place(p + 4, lba, msf);
	return p + 8;
}

/* Format 2: the lead-in's points A0h to A2h and the track. */
static uint8_t *toc_point(uint8_t *p, uint8_t point, uint8_t m, uint64_t lba, bool where)
{
	memset(p, 0, 11);
	p[0] = 1;
	p[1] = 0x14;
	p[3] = point;
	if (where) {
		uint8_t msf[4];

		place(msf, lba, true);
		memcpy(p + 8, msf + 1, 3);
	} else {
		p[8] = m;
	}
	return p + 11;
}

static void read_toc(struct scsi_unit *u, struct scsi_task *t)
{
	uint8_t b[64] = { 0, 0, 1, 1 }, *p = b + 4, first = t->cdb[6];
	uint8_t format = t->cdb[2] & 15 ? t->cdb[2] & 15 : t->cdb[9] >> 6;
	bool msf = t->cdb[1] & 2;
	uint64_t end = unit_blocks(u);

	if (format > 2 || (!format && first > 1 && first != 0xaa)) {
		scsi_illegal(t, ASC_CDB);
		return;
	}
	if (format == 0) {
		if (first <= 1)
			p = toc_track(p, 1, 0, msf);
		p = toc_track(p, 0xaa, end, msf);
	} else if (format == 1) {
		p = toc_track(p, 1, 0, msf);
	} else {
		p = toc_point(p, 0xa0, 1, 0, false);
		p = toc_point(p, 0xa1, 1, 0, false);
		p = toc_point(p, 0xa2, 0, end, true);
		p = toc_point(p, 1, 0, 0, true);
	}
	store_be16(b, (uint16_t)(p - b - 2));
	scsi_answer(t, b, (size_t)(p - b), load_be16(t->cdb + 7));
}

/* --- GET CONFIGURATION (6.6, features in chapter 5.3) --- */

struct feature { uint16_t code; uint8_t flags, len; uint8_t data[8]; };	/* flags: version << 2 | persistent << 1 | current */

static const struct feature features[] = {
	{ 0x0000, 0x03, 8, { 0, PROFILE_DVD, 0, 0, 0, PROFILE_CD, 0, 0 } },
	{ 0x0001, 0x0b, 8, { 0, 0, 0, 1, 1 } },		/* core: the SCSI family; device busy events */
	{ 0x0002, 0x07, 4, { 0x02 } },			/* morphing: operational changes are events */
	{ 0x0003, 0x03, 4, { 0x29 } },			/* removable: a tray, can lock and eject */
	{ 0x0010, 0x00, 8, { 0, 0, 8, 0, 0, 1, 0 } },	/* random readable: 2048 bytes, 1 block */
	{ 0x001e, 0x08, 4, { 0 } },			/* CD read */
	{ 0x001f, 0x00, 0, { 0 } },			/* DVD read */
	{ 0x0105, 0x03, 0, { 0 } },			/* timeout */
};

static uint8_t *feature_put(const struct scsi_unit *u, const struct feature *f, uint8_t *p)
{
	uint16_t now = profile(u);
	bool current = f->flags & 1 || (f->code == 0x10 && now) || (f->code == 0x1e && now == PROFILE_CD) ||
		       (f->code == 0x1f && now == PROFILE_DVD);

	store_be16(p, f->code);
	p[2] = (uint8_t)(f->flags | current);
	p[3] = f->len;
	memcpy(p + 4, f->data, f->len);
	if (f->code == 0) {	/* which of the profiles it is */
		p[6] = now == PROFILE_DVD;
		p[10] = now == PROFILE_CD;
	}
	return p + 4 + f->len;
}

static void get_configuration(struct scsi_unit *u, struct scsi_task *t)
{
	uint8_t b[256] = { 0 }, *p = b + 8, wanted = t->cdb[1] & 3, one[16];
	uint16_t from = load_be16(t->cdb + 2);

	if (wanted == 3) {
		scsi_illegal(t, ASC_CDB);
		return;
	}
	for (unsigned i = 0; i < sizeof(features) / sizeof(*features); i++) {
		const struct feature *f = &features[i];

		feature_put(u, f, one);
		if (wanted == 2 ? f->code == from : f->code >= from && (!wanted || one[2] & 1))
			p = feature_put(u, f, p);
	}
	store_be32(b, (uint32_t)(p - b - 4));
	store_be16(b + 6, profile(u));
	scsi_answer(t, b, (size_t)(p - b), load_be16(t->cdb + 7));
}

/* --- GET EVENT STATUS NOTIFICATION (6.7): media events, on polling --- */

static void get_event(struct scsi_unit *u, struct scsi_task *t)
{
	uint8_t b[8] = { 0, 6, 4, 0x10 };

	if (!(t->cdb[1] & 1)) {
		scsi_illegal(t, ASC_CDB);
		return;
	}
	if (!(t->cdb[4] & 0x10)) {
		scsi_answer(t, (uint8_t[4]){ 0, 2, 0x80, 0x10 }, 4, load_be16(t->cdb + 7));
		return;
	}
	b[4] = u->media_event ? 2 : 0;
	b[5] = u->open ? 1 : 2;
	u->media_event = false;
	scsi_answer(t, b, sizeof(b), load_be16(t->cdb + 7));
}

/* --- descriptions of disc and drive --- */

/* 6.21: one complete session of one track. */
static void disc_information(struct scsi_unit *u, struct scsi_task *t)
{
	uint8_t b[34] = { 0, 32, 0x0e, 1, 1, 1, 1, 0x20 };

	if (t->cdb[1] & 7) {
		scsi_illegal(t, ASC_CDB);
		return;
	}
	scsi_answer(t, b, sizeof(b), load_be16(t->cdb + 7));
}

/* 6.27 */
static void track_information(struct scsi_unit *u, struct scsi_task *t)
{
	uint8_t b[36] = { 0, 34, 1, 1, 0, 4, 1 };

	if ((t->cdb[1] & 3) == 1 && load_be32(t->cdb + 2) > 1) {
		scsi_illegal(t, ASC_CDB);
		return;
	}
	store_be32(b + 24, (uint32_t)unit_blocks(u));
	scsi_answer(t, b, sizeof(b), load_be16(t->cdb + 7));
}

/* 6.23, format 0: the physical layout of a DVD's one layer. */
static void disc_structure(struct scsi_unit *u, struct scsi_task *t)
{
	uint8_t b[2052] = { 0 };

	if (profile(u) != PROFILE_DVD || t->cdb[6] || (t->cdb[7] != 0 && t->cdb[7] != 1)) {
		scsi_illegal(t, ASC_CDB);
		return;
	}
	store_be16(b, 2050);
	if (t->cdb[7] == 0) {
		b[4] = 1;	/* DVD-ROM, part version 1 */
		b[5] = 0x0f;	/* 120 mm, no rate given */
		b[6] = 1;	/* one layer, read only */
		store_be32(b + 8, 0x30000);
		store_be32(b + 12, (uint32_t)(0x30000 + unit_blocks(u) - 1));
	} else {
		store_be16(b, 6);	/* copyright: none */
	}
	scsi_answer(t, b, 2u + load_be16(b), load_be16(t->cdb + 8));
}

static void mechanism_status(struct scsi_unit *u, struct scsi_task *t)
{
	uint8_t b[8] = { 0, u->open ? 0x10 : 0 };

	scsi_answer(t, b, sizeof(b), load_be16(t->cdb + 8));
}

/* 6.24 of MMC-3: no audio is played. */
static void read_subchannel(struct scsi_unit *u, struct scsi_task *t)
{
	uint8_t b[4] = { 0, 0x15 };

	scsi_answer(t, b, sizeof(b), load_be16(t->cdb + 7));
}

static void do_nothing(struct scsi_unit *u, struct scsi_task *t)
{
	scsi_good(t);
}

const struct scsi_command scsi_cd_commands[] = {
	{ 0x08, MEDIUM, scsi_read }, { 0x28, MEDIUM, scsi_read }, { 0xa8, MEDIUM, scsi_read }, { 0xbe, MEDIUM, read_cd },
	{ 0x2f, MEDIUM, scsi_verify },
	{ 0x25, MEDIUM, read_capacity },
	{ 0x1b, 0, start_stop },
	{ 0x42, MEDIUM, read_subchannel }, { 0x43, MEDIUM, read_toc },
	{ 0x46, ALWAYS, get_configuration }, { 0x4a, ALWAYS, get_event },
	{ 0x51, MEDIUM, disc_information }, { 0x52, MEDIUM, track_information }, { 0xad, MEDIUM, disc_structure },
	{ 0xbd, 0, mechanism_status },
	{ 0xbb, 0, do_nothing },	/* SET CD SPEED */
	{ 0x35, 0, do_nothing },	/* SYNCHRONIZE CACHE */
	{ 0, 0, NULL },
};

/* --- modes: recovery 01h, audio 0Eh, capabilities 2Ah (MMC-3, 5.5.10) --- */

size_t cd_mode_pages(const struct scsi_unit *u, uint8_t code, bool changeable, uint8_t *out)
{
	size_t n = mode_page(out, 0x01, 10, code), len;

	len = mode_page(out + n, 0x0e, 14, code);
	n += len;
	len = mode_page(out + n, 0x2a, 20, code);
	if (len && !changeable) {
		uint8_t *p = out + n;

		p[2] = 0x08;				/* reads DVD-ROM */
		p[6] = (uint8_t)(0x29 | (u->locked ? 2 : 0));	/* a tray; can lock, eject */
		store_be16(p + 8, 7056);		/* kB/s */
		store_be16(p + 14, 7056);
	}
	return n + len;
}
