/*
 * Inside of a controller: nvme.c (registers, queues), admin.c, io.c.
 *
 *	vCPU: doorbell ─▶ sq.tail ─▶ eventfd ─┐      loop: queue_run() ─▶ command copied ─▶ admin_command(), io_command()
 *	      CC ─────────────────────────────┴─▶          request_end() ─▶ completion entry ─▶ interrupt
 *
 * A command is fetched only when its completion queue has room for the answers to all that is under way, so that a
 * completion never waits; requests for asynchronous events are kept aside and do not count.
 */
#ifndef VIXEN_DEVICES_NVME_PRIVATE_H
#define VIXEN_DEVICES_NVME_PRIVATE_H

#include <pthread.h>
#include <stdatomic.h>
#include <sys/uio.h>

#include "base/endian.h"
#include "devices/nvme/nvme.h"
#include "devices/pci/pci.h"

#define IO_QUEUES 64u
#define QUEUES (IO_QUEUES + 1)		/* with the admin queue, 0 */
#define ENTRIES_MAX 1024u		/* CAP.MQES + 1 */
#define PAGE 4096u			/* CC.MPS is 0 */
#define MDTS 8u				/* 256 pages in a command */
#define SEGS_MAX ((1u << MDTS) + 1)
#define EVENTS_MAX 4u			/* AERL + 1 */
#define RANGES_MAX 256u			/* of DATASET MANAGEMENT */
#define NSID 1u
#define NVME_CC_WRITABLE 0xfffff1u

/* Status (figure 126 and following): type << 8 | code */
enum {
	OK = 0x000, BAD_OPCODE = 0x001, BAD_FIELD = 0x002, DATA_ERROR = 0x004, INTERNAL = 0x006, BAD_NAMESPACE = 0x00b,
	SEQUENCE_ERROR = 0x00c, BAD_PRP = 0x013, LBA_RANGE = 0x080, CAPACITY = 0x081,
	BAD_CQ = 0x100, BAD_QUEUE = 0x101, BAD_SIZE = 0x102, EVENT_LIMIT = 0x105, BAD_VECTOR = 0x108, BAD_LOG = 0x109,
	BAD_DELETION = 0x10c, NOT_SAVEABLE = 0x10d, NOT_CHANGEABLE = 0x10e, READ_ONLY = 0x182,
	WRITE_FAULT = 0x280, READ_ERROR = 0x281,
};

/* Figures 105 and 106 */
struct nvme_command {
	uint8_t opcode, flags;
	uint16_t cid;
	uint32_t nsid, dw2, dw3;
	uint64_t mptr, prp1, prp2;
	uint32_t dw10, dw11, dw12, dw13, dw14, dw15;
};

struct request;
struct stream;

struct sq {
	bool live;
	uint16_t size, head, cq;
	unsigned busy;			/* commands under way */
	struct request *deletion;	/* waits for them */
	uint64_t gpa;
	const uint8_t *ring;
	atomic_uint tail;		/* the doorbell; any value, of a vCPU */
};

struct cq {
	bool live, interrupts;
	bool news;			/* entries that no interrupt was asked for yet */
	uint8_t phase;
	uint16_t size, tail, vector;
	unsigned busy;			/* commands under way that will be answered here */
	unsigned queues;		/* submission queues that use it */
	uint64_t gpa;
	uint8_t *ring;
	atomic_uint head;		/* the doorbell */
};

enum { FEATURE_ARBITRATION = 1, FEATURE_POWER, FEATURE_RANGES, FEATURE_TEMPERATURE, FEATURE_RECOVERY, FEATURE_CACHE,
       FEATURE_QUEUES, FEATURE_COALESCING, FEATURE_VECTOR, FEATURE_ATOMICITY, FEATURE_EVENTS, FEATURES };

/* Kinds of asynchronous events: each is told once, and again after its log page was read. */
enum { EVENT_DOORBELL, EVENT_NAMESPACE, EVENT_KINDS };

struct nvme {
	struct pci_dev *pci;
	struct map *map;
	struct loop *loop;
	struct block *block;		/* NULL: none */
	char serial[DISK_SERIAL_MAX + 1];
	unsigned shift;			/* of a logical block */
	uint32_t physical_bytes;
	bool cached_initially;

	pthread_mutex_t lock;		/* registers */
	uint32_t cc, csts, mask, aqa;
	uint64_t asq, acq;
	bool changed;			/* CC was written */
	bool withdrawn;

	int eventfd;
	struct loop_fd *watch;
	atomic_bool kicked;		/* the eventfd is (about to be) readable */
	_Atomic uint64_t rung[2];	/* submission queues to look at, completion queues included: by their queues */
	atomic_bool bad_doorbell;

	/* The loop's. */
	bool enabled, stopping, shutting;
	unsigned in_flight;
	struct sq sq[QUEUES];
	struct cq cq[QUEUES];
	uint32_t feature[FEATURES];
	uint16_t event_cid[EVENTS_MAX];
	unsigned event_waiting;		/* requests for events */
	bool event_due[EVENT_KINDS], event_told[EVENT_KINDS];
	uint64_t reads, writes, read_units, written_units;	/* units: of 512 bytes */
	void (*gone)(void *opaque);
	void *gone_opaque;
};

struct request {
	struct nvme *n;
	struct nvme_command c;
	uint16_t sq, cq, sq_head;
	bool writes;
	bool force;			/* flush before the answer */
	uint64_t bytes;
	unsigned nseg, range, ranges;
	uint8_t *list;			/* ranges */
	struct iovec iov[SEGS_MAX];
	uint64_t gpa[SEGS_MAX];
};

/* nvme.c */
void request_end(struct request *r, uint16_t status, uint32_t result);	/* frees it */
uint16_t sq_start(struct nvme *n, unsigned id, uint64_t gpa, unsigned size, unsigned cq);
uint16_t cq_start(struct nvme *n, unsigned id, uint64_t gpa, unsigned size, unsigned vector, bool interrupts);
void events_tell(struct nvme *n);
void queue_ring(struct nvme *n, unsigned queue);	/* the loop shall look at it; any thread */
void queues_drop(struct nvme *n);
/* The command's data pointer as segments in r->iov; len up to MDTS.  to_guest: they will be written. */
uint16_t prp_map(struct request *r, uint64_t len, bool to_guest);
/* Answers with bytes, cut at len. */
void request_answer(struct request *r, const void *bytes, size_t have, uint64_t len);

/* state.c: for the bus */
void nvme_save(void *opaque, struct stream *s);
int nvme_load(void *opaque, struct stream *s);

/* admin.c, io.c: end the request, now or later */
void admin_command(struct request *r);
void io_command(struct request *r);
void features_reset(struct nvme *n);

#endif
