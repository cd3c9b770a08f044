/* Admin commands (NVMe 1.4, chapter 5): queues, identification, features, logs, events, abort. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "block/block.h"
#include "devices/nvme/private.h"

enum { DELETE_SQ = 0x00, CREATE_SQ = 0x01, GET_LOG = 0x02, DELETE_CQ = 0x04, CREATE_CQ = 0x05, IDENTIFY = 0x06,
       ABORT = 0x08, SET_FEATURES = 0x09, GET_FEATURES = 0x0a, ASYNC_EVENT = 0x0c };
enum { CNS_NAMESPACE = 0, CNS_CONTROLLER = 1, CNS_LIST = 2, CNS_DESCRIPTORS = 3 };
enum { LOG_ERRORS = 1, LOG_HEALTH = 2, LOG_FIRMWARE = 3, LOG_NAMESPACES = 4 };

/* --- queues (5.3 to 5.6) --- */

static uint16_t create_cq(struct nvme *n, const struct nvme_command *c)
{
	unsigned id = c->dw10 & 0xffff, vector = c->dw11 >> 16;

	if (!id || id >= QUEUES || n->cq[id].live)
		return BAD_QUEUE;
	if (!(c->dw11 & 1))	/* contiguous, as CAP.CQR says */
		return BAD_FIELD;
	if (vector >= QUEUES)
		return BAD_VECTOR;
	return cq_start(n, id, c->prp1, (c->dw10 >> 16) + 1, vector, c->dw11 & 2);
}

static uint16_t create_sq(struct nvme *n, const struct nvme_command *c)
{
	unsigned id = c->dw10 & 0xffff, cq = c->dw11 >> 16;

	if (!id || id >= QUEUES || n->sq[id].live || n->sq[id].busy)
		return BAD_QUEUE;
	if (!cq || cq >= QUEUES || !n->cq[cq].live)
		return BAD_CQ;
	if (!(c->dw11 & 1))
		return BAD_FIELD;
	return sq_start(n, id, c->prp1, (c->dw10 >> 16) + 1, cq);
}

/* What was fetched from it completes first; what was not is never looked at. */
static void delete_sq(struct request *r, unsigned id)
{
	struct nvme *n = r->n;

	if (!id || id >= QUEUES || !n->sq[id].live) {
		request_end(r, BAD_QUEUE, 0);
		return;
	}
	n->sq[id].live = false;
	if (n->sq[id].busy) {
		n->sq[id].deletion = r;
		return;
	}
	n->cq[n->sq[id].cq].queues--;
	request_end(r, OK, 0);
}

static uint16_t delete_cq(struct nvme *n, unsigned id)
{
	if (!id || id >= QUEUES || !n->cq[id].live)
		return BAD_QUEUE;
	if (n->cq[id].queues)
		return BAD_DELETION;
	n->cq[id].live = false;
	return OK;
}

/* --- Identify (5.15) --- */

static void text(uint8_t *out, const char *s, size_t len)
{
	size_t have = strlen(s);

	memset(out, ' ', len);
	memcpy(out, s, have < len ? have : len);
}

static void identify_controller(const struct nvme *n, uint8_t *b)
{
	store_le16(b, 0x1af4);
	store_le16(b + 2, 0x1af4);
	text(b + 4, n->serial, 20);
	text(b + 24, "Vixen NVMe disk", 40);
	text(b + 64, "1", 8);
	b[73] = 0x54, b[74] = 0x00, b[75] = 0x52;	/* IEEE, low byte first: locally administered */
	b[77] = MDTS;
	store_le32(b + 80, 0x10400);
	store_le32(b + 92, 0x100);	/* tells of changed namespaces */
	b[111] = 1;			/* an I/O controller */
	b[258] = 3;			/* ACL */
	b[259] = EVENTS_MAX - 1;
	b[260] = 0x03;			/* one firmware slot, read-only */
	b[261] = 0x04;			/* extended data of Get Log Page */
	store_le16(b + 266, 343);	/* warning and critical temperatures, K */
	store_le16(b + 268, 353);
	b[512] = 0x66;			/* entries of 64 and 16 bytes */
	b[513] = 0x44;
	store_le32(b + 516, 1);
	store_le16(b + 520, 0x0c);	/* write zeroes, dataset management */
	b[525] = (uint8_t)(0x06 | n->cached_initially);	/* a volatile write cache; flush takes all namespaces */
	snprintf((char *)b + 768, 256, "nqn.2014.08.org.nvmexpress:1af41af4%-20.20s%-40s", n->serial, "Vixen NVMe disk");
	store_le16(b + 2048, 2500);	/* 25 W */
}

static void identify_namespace(const struct nvme *n, uint8_t *b)
{
	uint64_t blocks = block_size(n->block) >> n->shift;
	uint32_t cluster = block_cluster(n->block), best = cluster > n->physical_bytes ? cluster : n->physical_bytes;
	uint16_t write = (uint16_t)((n->physical_bytes >> n->shift) - 1), unit = (uint16_t)((best >> n->shift) - 1);

	store_le64(b, blocks);
	store_le64(b + 8, blocks);
	store_le64(b + 16, blocks);
	b[24] = 0x10;			/* the following hints hold */
	store_le16(b + 64, write);	/* NPWG, NPWA */
	store_le16(b + 66, write);
	store_le16(b + 68, unit);	/* NPDG, NPDA, NOWS */
	store_le16(b + 70, unit);
	store_le16(b + 72, unit);
	b[33] = 0x08;			/* write zeroes may deallocate */
	b[99] = block_readonly(n->block);
	b[128 + 2] = (uint8_t)n->shift;
}

/* A version 8 UUID (custom) of the serial number: type 3, 16 bytes. */
static void identify_descriptors(const struct nvme *n, uint8_t *b)
{
	uint64_t h[2] = { 0xcbf29ce484222325, 0x9ae16a3b2f90404f };

	for (const char *s = n->serial; *s; s++)
		for (unsigned i = 0; i < 2; i++)
			h[i] = (h[i] ^ (uint8_t)*s) * 0x100000001b3;
	b[0] = 3;
	b[1] = 16;
	memcpy(b + 4, h, 16);
	b[10] = (uint8_t)((b[10] & 0x0f) | 0x80);
	b[12] = (uint8_t)((b[12] & 0x3f) | 0x80);
}

static void identify(struct request *r)
{
	struct nvme *n = r->n;
	uint8_t *b = r->list = calloc(1, PAGE), cns = (uint8_t)r->c.dw10;

	if (!b) {
		request_end(r, INTERNAL, 0);
		return;
	}
	if ((cns == CNS_NAMESPACE && r->c.nsid != NSID && r->c.nsid != UINT32_MAX) ||
	    (cns == CNS_DESCRIPTORS && r->c.nsid != NSID) || (cns == CNS_LIST && r->c.nsid >= UINT32_MAX - 1)) {
		request_end(r, BAD_NAMESPACE, 0);
		return;
	}
	switch (cns) {
	case CNS_NAMESPACE: identify_namespace(n, b); break;
	case CNS_CONTROLLER: identify_controller(n, b); break;
	case CNS_LIST: store_le32(b, r->c.nsid < NSID ? NSID : 0); break;
	case CNS_DESCRIPTORS: identify_descriptors(n, b); break;
	default:
		request_end(r, BAD_FIELD, 0);
		return;
	}
	request_answer(r, b, PAGE, PAGE);
}

/* --- Get Log Page (5.14) --- */

static void log_health(const struct nvme *n, uint8_t *b)
{
	store_le16(b + 1, 300);		/* K */
	b[3] = 100;			/* spare left, and when to warn */
	b[4] = 10;
	store_le64(b + 32, (n->read_units + 999) / 1000);
	store_le64(b + 48, (n->written_units + 999) / 1000);
	store_le64(b + 64, n->reads);
	store_le64(b + 80, n->writes);
}

/* Reading a page without "retain" lets its event come again. */
static void log_read(struct nvme *n, uint8_t id, bool retain)
{
	if (id == LOG_ERRORS && !retain)
		n->event_told[EVENT_DOORBELL] = false;
	if (id == LOG_NAMESPACES && !retain)
		n->event_told[EVENT_NAMESPACE] = false;
}

static size_t log_page(struct nvme *n, uint8_t id, uint8_t *b)
{
	switch (id) {
	case LOG_ERRORS: return 64;
	case LOG_HEALTH:
		log_health(n, b);
		return 512;
	case LOG_FIRMWARE:
		b[0] = 1;
		text(b + 8, "1", 8);
		return 512;
	case LOG_NAMESPACES:
		store_le32(b, n->event_told[EVENT_NAMESPACE] ? NSID : 0);
		return PAGE;
	}
	return 0;
}

static void get_log(struct request *r)
{
	uint64_t len = (((uint64_t)r->c.dw11 & 0xffff) << 16 | r->c.dw10 >> 16) * 4 + 4;
	uint64_t from = r->c.dw12 | (uint64_t)r->c.dw13 << 32;
	uint8_t *b = r->list = calloc(1, PAGE), id = (uint8_t)r->c.dw10;
	size_t have = b ? log_page(r->n, id, b) : 0;

	if (!have) {
		request_end(r, b ? BAD_LOG : INTERNAL, 0);
		return;
	}
	if (from & 3 || from > have) {
		request_end(r, BAD_FIELD, 0);
		return;
	}
	log_read(r->n, id, r->c.dw10 & 1 << 15);
	request_answer(r, b + from, have - from, len);
}

/* --- features (5.21) --- */

void features_reset(struct nvme *n)
{
	memset(n->feature, 0, sizeof(n->feature));
	n->feature[FEATURE_TEMPERATURE] = 343;
	n->feature[FEATURE_CACHE] = n->cached_initially;
	n->feature[FEATURE_QUEUES] = (IO_QUEUES - 1) << 16 | (IO_QUEUES - 1);
}

static uint32_t queues_limit(uint32_t asked)
{
	uint32_t sq = asked & 0xffff, cq = asked >> 16;

	sq = sq > IO_QUEUES - 1 ? IO_QUEUES - 1 : sq;
	cq = cq > IO_QUEUES - 1 ? IO_QUEUES - 1 : cq;
	return cq << 16 | sq;
}

/* After the first queue was made the number of them stays. */
static uint16_t feature_queues(struct nvme *n, uint32_t v)
{
	if ((v & 0xffff) == 0xffff || v >> 16 == 0xffff)
		return BAD_FIELD;
	for (unsigned i = 1; i < QUEUES; i++)
		if (n->cq[i].live)
			return SEQUENCE_ERROR;
	n->feature[FEATURE_QUEUES] = queues_limit(v);
	return OK;
}

static uint16_t feature_set(struct nvme *n, uint8_t id, uint32_t v)
{
	switch (id) {
	case FEATURE_ARBITRATION:
	case FEATURE_TEMPERATURE:
	case FEATURE_RECOVERY:
	case FEATURE_COALESCING:
	case FEATURE_ATOMICITY:
	case FEATURE_EVENTS:
		n->feature[id] = v;
		return OK;
	case FEATURE_CACHE:	/* drivers believe that what is there is on: so a disk without is never given one */
		n->feature[id] = v & n->cached_initially;
		return n->cached_initially ? OK : BAD_FIELD;
	case FEATURE_POWER: return v & 31 ? BAD_FIELD : OK;	/* there is one state */
	case FEATURE_QUEUES: return feature_queues(n, v);
	case FEATURE_VECTOR: return (v & 0xffff) < QUEUES ? OK : BAD_FIELD;	/* nothing is coalesced anyway */
	}
	return BAD_FIELD;
}

static void set_features(struct request *r)
{
	uint8_t id = (uint8_t)r->c.dw10;
	uint16_t status = r->c.dw10 >> 31 ? NOT_SAVEABLE : feature_set(r->n, id, r->c.dw11);

	request_end(r, status, !status && id == FEATURE_QUEUES ? r->n->feature[id] : 0);
}

static void get_features(struct request *r)
{
	uint8_t id = (uint8_t)r->c.dw10;
	const struct nvme *n = r->n;
	uint32_t v = id < FEATURES ? n->feature[id] : 0;

	if (!id || id >= FEATURES || id == FEATURE_RANGES || (id == FEATURE_CACHE && !n->cached_initially))
		request_end(r, BAD_FIELD, 0);
	else if (id == FEATURE_VECTOR)
		request_end(r, (r->c.dw11 & 0xffff) < QUEUES ? OK : BAD_FIELD, (r->c.dw11 & 0xffff) | 1 << 16);
	else
		request_end(r, OK, v);
}

/* --- events --- */

static void async_event(struct request *r)
{
	struct nvme *n = r->n;

	if (n->event_waiting == EVENTS_MAX) {
		request_end(r, EVENT_LIMIT, 0);
		return;
	}
	n->event_cid[n->event_waiting++] = r->c.cid;
	n->cq[0].busy--;
	n->sq[0].busy--;
	n->in_flight--;		/* not under way: it may wait for ever */
	free(r);
	events_tell(n);
}

void admin_command(struct request *r)
{
	struct nvme *n = r->n;
	const struct nvme_command *c = &r->c;

	switch (c->opcode) {
	case DELETE_SQ: delete_sq(r, c->dw10 & 0xffff); break;
	case CREATE_SQ: request_end(r, create_sq(n, c), 0); break;
	case DELETE_CQ: request_end(r, delete_cq(n, c->dw10 & 0xffff), 0); break;
	case CREATE_CQ: request_end(r, create_cq(n, c), 0); break;
	case IDENTIFY: identify(r); break;
	case GET_LOG: get_log(r); break;
	case ABORT: request_end(r, OK, 1); break;	/* what is under way cannot be called back */
	case SET_FEATURES: set_features(r); break;
	case GET_FEATURES: get_features(r); break;
	case ASYNC_EVENT: async_event(r); break;
	default: request_end(r, BAD_OPCODE, 0);
	}
}
