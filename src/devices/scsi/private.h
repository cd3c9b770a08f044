/* What the files of a logical unit share: scsi.c (all devices), disk.c, cd.c, transfer.c. */
#ifndef VIXEN_DEVICES_SCSI_PRIVATE_H
#define VIXEN_DEVICES_SCSI_PRIVATE_H

#include "base/endian.h"
#include "block/block.h"
#include "devices/scsi/scsi.h"

/* Sense keys (SPC-4, table 48) */
enum { KEY_NONE = 0, KEY_NOT_READY = 2, KEY_MEDIUM = 3, KEY_HARDWARE = 4, KEY_ILLEGAL = 5, KEY_ATTENTION = 6,
       KEY_PROTECT = 7, KEY_ABORTED = 11 };
/* asc << 8 | ascq */
enum { ASC_NONE = 0, ASC_NOT_READY_START = 0x0402, ASC_WRITE_ERROR = 0x0c00, ASC_READ_ERROR = 0x1100,
       ASC_PARAMETER_LENGTH = 0x1a00, ASC_OPCODE = 0x2000, ASC_LBA = 0x2100, ASC_CDB = 0x2400, ASC_NO_UNIT = 0x2500,
       ASC_PARAMETER = 0x2600, ASC_WRITE_PROTECTED = 0x2700, ASC_NO_SPACE = 0x2707, ASC_MEDIUM_CHANGED = 0x2800,
       ASC_SAVING = 0x3900, ASC_NO_MEDIUM_CLOSED = 0x3a01, ASC_NO_MEDIUM_OPEN = 0x3a02, ASC_FAILURE = 0x4400,
       ASC_PREVENTED = 0x5302 };

#define ANSWER_MAX 512u		/* bytes of the largest answer made here */
#define MODE_PAGES_MAX 128u
#define STEP_BYTES (4u << 20)	/* written at a time by commands that repeat a block */
#define UNMAP_RANGES_MAX 128u
#define RANGE_MAX_BYTES (64ull << 20)	/* of one WRITE SAME or UNMAP descriptor */

struct scsi_unit {
	struct block *block;
	bool cdrom;
	uint32_t block_bytes, physical_bytes;
	char serial[DISK_SERIAL_MAX + 1];
	bool cached_initially;
	/* State. */
	bool cached;		/* WCE */
	bool stopped;		/* by START STOP UNIT */
	bool locked;		/* medium removal prevented */
	bool open;		/* the tray */
	bool media_event;	/* new medium, not yet told by GET EVENT STATUS */
	uint16_t attention;	/* asc << 8 | ascq, 0: none */
};

enum { ALWAYS = 1 /* also with a unit attention pending */, MEDIUM = 2 /* needs a medium, spinning */ };

struct scsi_command {
	uint8_t opcode, flags;
	void (*execute)(struct scsi_unit *u, struct scsi_task *t);
};
/* Tables end with a NULL function. */
extern const struct scsi_command scsi_disk_commands[], scsi_cd_commands[];

/* --- scsi.c: answers; each ends the task --- */

void scsi_good(struct scsi_task *t);
void scsi_sense(struct scsi_task *t, uint8_t key, uint16_t asc);
void scsi_illegal(struct scsi_task *t, uint16_t asc);
void scsi_answer(struct scsi_task *t, const void *buf, size_t len, size_t allocation);
void scsi_result(struct scsi_task *t, int ret);		/* of a block operation */

/* The mode pages of a device type, for each page code asked for (or 3Fh): returns bytes put. changeable: the mask of
 * what MODE SELECT may change instead of the values. */
size_t disk_mode_pages(const struct scsi_unit *u, uint8_t code, bool changeable, uint8_t *out);
size_t cd_mode_pages(const struct scsi_unit *u, uint8_t code, bool changeable, uint8_t *out);
size_t mode_page(uint8_t *out, uint8_t code, uint8_t len, uint8_t wanted);	/* a zeroed page, 0 if not wanted */
size_t disk_vpd(const struct scsi_unit *u, uint8_t page, uint8_t out[ANSWER_MAX]);	/* 0: none */

uint64_t unit_blocks(const struct scsi_unit *u);

/* --- transfer.c --- */

bool rw_decode(const uint8_t *cdb, uint64_t *lba, uint64_t *blocks);	/* false: no such form */
/* Checks the range: false after it has ended the task. */
bool range_check(struct scsi_unit *u, struct scsi_task *t, uint64_t lba, uint64_t blocks);
void transfer(struct scsi_unit *u, struct scsi_task *t, uint64_t lba, uint64_t blocks, bool write);
void scsi_read(struct scsi_unit *u, struct scsi_task *t);
void scsi_write(struct scsi_unit *u, struct scsi_task *t);
void scsi_verify(struct scsi_unit *u, struct scsi_task *t);
void scsi_synchronize(struct scsi_unit *u, struct scsi_task *t);
void scsi_write_same(struct scsi_unit *u, struct scsi_task *t);
void scsi_unmap(struct scsi_unit *u, struct scsi_task *t);

#endif
