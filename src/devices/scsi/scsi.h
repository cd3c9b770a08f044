/*
 * A SCSI logical unit: a disk (SPC-4, SBC-3) or a CD-ROM drive (MMC-6) on a block node.  It knows no transport: tasks
 * come with a CDB and vectors of guest memory, and end with a status, sense data and a count of bytes moved.
 *
 * One initiator.  Thread: the loop's.
 */
#ifndef VIXEN_DEVICES_SCSI_SCSI_H
#define VIXEN_DEVICES_SCSI_SCSI_H

#include <stdbool.h>
#include <stdint.h>

#include "base/error.h"
#include "devices/disk.h"
#include "devices/iov.h"

#define SCSI_CDB_MAX 32u
#define SCSI_SENSE_LEN 18u	/* fixed format (SPC-4, 4.5.3) */

enum scsi_status { SCSI_GOOD = 0, SCSI_CHECK_CONDITION = 2 };
/* asc << 8 | ascq of unit attentions */
enum scsi_attention { SCSI_POWER_ON = 0x2900, SCSI_UNIT_RESET = 0x2903, SCSI_CAPACITY_CHANGED = 0x2a09 };

struct block;
struct stream;
struct scsi_unit;

struct scsi_task {
	/* The transport's. The vectors are of its making, and the unit may cut them. */
	uint8_t cdb[SCSI_CDB_MAX];
	struct iovec *out, *in;		/* data-out, data-in */
	unsigned nout, nin;
	uint64_t out_len, in_len;	/* bytes in them */
	void (*done)(struct scsi_task *t);	/* maybe before scsi_execute() returns */

	/* The answer. */
	uint8_t status;			/* enum scsi_status */
	bool sensed;			/* sense[] holds */
	bool overrun;			/* the command asked for more than the vectors hold */
	uint64_t moved;			/* bytes of them used */
	uint8_t sense[SCSI_SENSE_LEN];

	/* The unit's. */
	struct scsi_unit *unit;
	bool write, force;		/* force: durable before the answer */
	uint64_t offset, left;		/* what a command of several steps has still to do */
	uint8_t *buf;
	struct iovec *iov;
	unsigned next, count;
};

/* b stays the caller's and must outlive the unit. */
int scsi_unit_new(struct scsi_unit **out, struct block *b, bool cdrom, const struct disk_traits *t, struct error *e);
void scsi_unit_free(struct scsi_unit *u);	/* no task is under way; NULL is fine */
void scsi_execute(struct scsi_unit *u, struct scsi_task *t);
/* A logical unit number that nothing stands behind, of a target that exists. */
void scsi_execute_absent(struct scsi_task *t);
/* Back to how it was after power-on; the initiator hears of it by this attention. */
void scsi_unit_reset(struct scsi_unit *u, enum scsi_attention why);
void scsi_unit_attention(struct scsi_unit *u, enum scsi_attention what);
void scsi_unit_save(const struct scsi_unit *u, struct stream *s);
void scsi_unit_load(struct scsi_unit *u, struct stream *s);

#endif
