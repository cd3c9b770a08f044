/*
 * virtio-scsi (virtio 1.2, 5.6).
 *
 *	queue 0  control: task management		out: { type | subtype | lun | tag }	in: { response }
 *	queue 1  events: to the driver			in: { event | lun | reason }
 *	queue 2+ requests	out: { lun[8] tag u64 attr prio crn cdb[cdb_size] } [data-out]
 *				in:  { sense_len u32 resid u32 qualifier u16 status response sense[sense_size] } [data-in]
 *
 *	lun: | 1 | target | 40h + high | low | 0 0 0 0 |
 *
 * Reads and writes of the host cannot be called back, so a task that is aborted still runs to its end; it then answers
 * ABORTED, and the function that aborted it completes after it: nothing of it happens later.
 */
#include "devices/virtio/scsi.h"

#include <endian.h>
#include <errno.h>
#include <linux/virtio_ids.h>
#include <linux/virtio_scsi.h>
#include <stdlib.h>
#include <string.h>

#include "base/stream.h"
#include "block/block.h"
#include "devices/scsi/scsi.h"
#include "devices/virtio/virtio.h"
#include "memory/map.h"

enum { QUEUE_CONTROL, QUEUE_EVENT, QUEUE_REQUEST };

#define SEG_MAX 254u
#define BATCH 256u
#define HEADER_LEN 19u		/* of a request, before the CDB */
#define ANSWER_LEN 12u		/* before the sense data */
#define SIZES_MAX 256u		/* of CDB and sense data: a driver may set them, within reason */

struct target {
	struct scsi_unit *unit;		/* NULL: none */
	struct block *block;
	unsigned tasks;			/* under way */
	void (*gone)(void *opaque);	/* it is being taken away */
	void *gone_opaque;
};

struct task {
	struct scsi_task scsi;		/* first */
	struct virtio_scsi *d;
	struct task *next, **link;	/* in d->tasks */
	uint64_t order, tag;
	uint8_t lun[8];
	struct target *target;
	unsigned queue;
	uint16_t head;
	uint8_t abort;			/* answer with this instead: VIRTIO_SCSI_S_ABORTED or RESET; 0: no */
	unsigned nin, ndata;
	uint32_t sense_size;
	struct iovec *all;		/* the in[] buffers as they came */
	uint64_t *gpa;
	struct iovec iov[];		/* data-out, data-in, all; then gpa */
};

/* A task management function that waits for tasks which came before it. */
struct function {
	struct function *next;
	uint64_t order;
	struct virtio_scsi_ctrl_tmf_req r;
	uint16_t head;
	struct iovec in;
	uint64_t in_gpa;
};

struct virtio_scsi {
	struct virtio *v;
	unsigned queues;		/* of requests */
	unsigned batch;
	uint32_t cdb_size, sense_size;	/* as the driver had set them when it started */
	uint64_t order;			/* of tasks and functions, as they came */
	struct task *tasks;
	struct function *functions;
	struct target target[VIRTIO_SCSI_TARGETS];
	bool events_missed;		/* the driver had no buffer for one */
};

static void signal_queue(struct virtio_scsi *d, unsigned queue)
{
	if (!d->batch)
		virtio_signal(d->v, queue);
}

/* --- addresses --- */

static struct target *target_find(struct virtio_scsi *d, const uint8_t lun[8])
{
	struct target *g = lun[0] == 1 && lun[1] < VIRTIO_SCSI_TARGETS ? &d->target[lun[1]] : NULL;

	return g && g->unit && !g->gone ? g : NULL;
}

static bool lun_zero(const uint8_t lun[8])
{
	return !(lun[2] & 0x3f) && !lun[3];
}

static bool lun_same(const uint8_t a[8], const uint8_t b[8])
{
	return a[0] == b[0] && a[1] == b[1] && (a[2] & 0x3f) == (b[2] & 0x3f) && a[3] == b[3];
}

/* --- task management (5.6.6.2) --- */

static bool concerns(const struct function *f, const struct task *t)
{
	uint32_t kind = le32toh(f->r.subtype);

	if (t->order > f->order)
		return false;
	if (kind == VIRTIO_SCSI_T_TMF_I_T_NEXUS_RESET)
		return t->lun[1] == f->r.lun[1];
	if (!lun_same(t->lun, f->r.lun))
		return false;
	return (kind != VIRTIO_SCSI_T_TMF_ABORT_TASK && kind != VIRTIO_SCSI_T_TMF_QUERY_TASK) || t->tag == f->r.tag;
}

static void function_end(struct virtio_scsi *d, struct function *f, uint8_t response)
{
	iov_put(&f->in, 1, 0, &response, 1);
	map_wrote(virtio_map(d->v), f->in_gpa, 1);
	virtq_push(virtio_queue(d->v, QUEUE_CONTROL), f->head, 1);
	signal_queue(d, QUEUE_CONTROL);
	free(f);
	virtio_put(d->v);
}

static bool waits(struct virtio_scsi *d, const struct function *f)
{
	for (const struct task *t = d->tasks; t; t = t->next)
		if (concerns(f, t))
			return true;
	return false;
}

/* A task has ended: who waited for it? */
static void functions_look(struct virtio_scsi *d)
{
	struct function **link = &d->functions;

	while (*link) {
		struct function *f = *link;

		if (waits(d, f)) {
			link = &f->next;
			continue;
		}
		*link = f->next;
		function_end(d, f, VIRTIO_SCSI_S_OK);
	}
}

static void function_abort(struct virtio_scsi *d, struct function *f)
{
	uint32_t kind = le32toh(f->r.subtype);
	bool reset = kind == VIRTIO_SCSI_T_TMF_LOGICAL_UNIT_RESET || kind == VIRTIO_SCSI_T_TMF_I_T_NEXUS_RESET;

	for (struct task *t = d->tasks; t; t = t->next)
		if (concerns(f, t))
			t->abort = reset ? VIRTIO_SCSI_S_RESET : VIRTIO_SCSI_S_ABORTED;
	if (reset)
		scsi_unit_reset(target_find(d, f->r.lun)->unit, SCSI_UNIT_RESET);
	f->next = d->functions;
	d->functions = f;
	functions_look(d);
}

static void function_start(struct virtio_scsi *d, struct function *f)
{
	struct target *g = target_find(d, f->r.lun);

	if (!g || (!lun_zero(f->r.lun) && le32toh(f->r.subtype) != VIRTIO_SCSI_T_TMF_I_T_NEXUS_RESET)) {
		function_end(d, f, g ? VIRTIO_SCSI_S_INCORRECT_LUN : VIRTIO_SCSI_S_BAD_TARGET);
		return;
	}
	switch (le32toh(f->r.subtype)) {
	case VIRTIO_SCSI_T_TMF_ABORT_TASK:
	case VIRTIO_SCSI_T_TMF_ABORT_TASK_SET:
	case VIRTIO_SCSI_T_TMF_CLEAR_TASK_SET:
	case VIRTIO_SCSI_T_TMF_I_T_NEXUS_RESET:
	case VIRTIO_SCSI_T_TMF_LOGICAL_UNIT_RESET:
		function_abort(d, f);
		break;
	case VIRTIO_SCSI_T_TMF_QUERY_TASK:
	case VIRTIO_SCSI_T_TMF_QUERY_TASK_SET:
		function_end(d, f, waits(d, f) ? VIRTIO_SCSI_S_FUNCTION_SUCCEEDED : VIRTIO_SCSI_S_OK);
		break;
	default:	/* there is no ACA to clear */
		function_end(d, f, VIRTIO_SCSI_S_FUNCTION_REJECTED);
	}
}

/* Asynchronous notification (5.6.6.2.1): none of the kinds that can be asked for. */
static void notification(struct virtio_scsi *d, const struct virtq_chain *c)
{
	struct virtio_scsi_ctrl_an_resp r = { .response = VIRTIO_SCSI_S_OK };
	uint32_t n = (uint32_t)iov_put(c->in, c->nin, 0, &r, sizeof(r));

	virtq_wrote(virtio_map(d->v), c->in, c->in_gpa, c->nin, n);
	virtq_push(virtio_queue(d->v, QUEUE_CONTROL), c->head, n);
	signal_queue(d, QUEUE_CONTROL);
}

/* false: no control request at all. */
static bool control_start(struct virtio_scsi *d, const struct virtq_chain *c)
{
	struct virtio_scsi_ctrl_tmf_req r = { 0 };
	size_t n = iov_get(c->out, c->nout, 0, &r, sizeof(r));
	uint32_t type = le32toh(r.type);
	struct function *f;

	if (n >= sizeof(struct virtio_scsi_ctrl_an_req) && c->in_len >= sizeof(struct virtio_scsi_ctrl_an_resp) &&
	    (type == VIRTIO_SCSI_T_AN_QUERY || type == VIRTIO_SCSI_T_AN_SUBSCRIBE)) {
		notification(d, c);
		return true;
	}
	if (n < sizeof(r) || type != VIRTIO_SCSI_T_TMF || !c->nin)
		return false;
	f = malloc(sizeof(*f));
	if (!f)
		return false;
	*f = (struct function){ .order = d->order++, .r = r, .head = c->head, .in = c->in[0], .in_gpa = c->in_gpa[0] };
	virtio_get(d->v);
	function_start(d, f);
	return true;
}

/* --- requests: the end --- */

static void task_unlink(struct task *t)
{
	*t->link = t->next;
	if (t->next)
		t->next->link = t->link;
}

static void target_leave(struct target *g)
{
	void (*gone)(void *opaque) = g->gone;
	void *opaque = g->gone_opaque;

	if (--g->tasks || !gone)
		return;
	scsi_unit_free(g->unit);
	*g = (struct target){ 0 };
	gone(opaque);
}

/* response: of the transport; what the unit said counts only with OK. */
static void task_answer(struct task *t, uint8_t response)
{
	struct virtio_scsi_cmd_resp r = { .response = response };
	struct map *m = virtio_map(t->d->v);
	uint64_t data = t->scsi.in_len + t->scsi.out_len, header = ANSWER_LEN + t->sense_size, moved = t->scsi.moved;

	if (response != VIRTIO_SCSI_S_OK && response != VIRTIO_SCSI_S_OVERRUN)
		moved = 0;
	r.resid = htole32(data - moved > UINT32_MAX ? UINT32_MAX : (uint32_t)(data - moved));
	if (response == VIRTIO_SCSI_S_OK || response == VIRTIO_SCSI_S_OVERRUN) {
		uint32_t n = !t->scsi.sensed ? 0 : t->sense_size < SCSI_SENSE_LEN ? t->sense_size : SCSI_SENSE_LEN;

		r.status = t->scsi.status;
		r.sense_len = htole32(n);
		iov_put(t->all, t->nin, ANSWER_LEN, t->scsi.sense, n);
	}
	iov_put(t->all, t->nin, 0, &r, ANSWER_LEN);
	if (!t->scsi.in_len)
		moved = 0;
	virtq_wrote(m, t->all, t->gpa, t->nin, header + moved);
	virtq_push(virtio_queue(t->d->v, t->queue), t->head, (uint32_t)(header + moved));
}

static void task_end(struct task *t, uint8_t response)
{
	struct virtio_scsi *d = t->d;
	struct target *g = t->target;

	task_answer(t, t->abort ? t->abort : response);
	signal_queue(d, t->queue);
	task_unlink(t);
	free(t);
	if (g)
		target_leave(g);
	functions_look(d);
	virtio_put(d->v);
}

static void scsi_done(struct scsi_task *s)
{
	task_end((struct task *)s, s->overrun ? VIRTIO_SCSI_S_OVERRUN : VIRTIO_SCSI_S_OK);
}

/* --- requests: the beginning --- */

static struct task *task_new(struct virtio_scsi *d, const struct virtq_chain *c)
{
	unsigned vectors = c->nout + 2 * c->nin;
	struct task *t = malloc(sizeof(*t) + vectors * sizeof(struct iovec) + c->nin * sizeof(uint64_t));

	if (!t)
		return NULL;
	memset(t, 0, sizeof(*t));
	t->d = d;
	t->head = c->head;
	t->nin = c->nin;
	t->scsi.out = t->iov;
	t->scsi.in = t->iov + c->nout;
	t->all = t->scsi.in + c->nin;
	t->gpa = (uint64_t *)(t->all + c->nin);
	memcpy(t->scsi.out, c->out, c->nout * sizeof(struct iovec));
	memcpy(t->scsi.in, c->in, c->nin * sizeof(struct iovec));
	memcpy(t->all, c->in, c->nin * sizeof(struct iovec));
	memcpy(t->gpa, c->in_gpa, c->nin * sizeof(uint64_t));
	t->scsi.done = scsi_done;
	t->next = d->tasks;
	t->link = &d->tasks;
	if (t->next)
		t->next->link = &t->next;
	d->tasks = t;
	t->order = d->order++;
	virtio_get(d->v);
	return t;
}

static void task_start(struct task *t)
{
	struct target *g = target_find(t->d, t->lun);

	if (!g) {
		task_end(t, VIRTIO_SCSI_S_BAD_TARGET);
		return;
	}
	t->target = g;
	g->tasks++;
	if (lun_zero(t->lun))
		scsi_execute(g->unit, &t->scsi);
	else
		scsi_execute_absent(&t->scsi);
}

/* false: the chain is not even a request. */
static bool request_start(struct virtio_scsi *d, unsigned queue, const struct virtq_chain *c)
{
	uint32_t cdb = d->cdb_size, sense = d->sense_size;
	uint8_t header[HEADER_LEN];
	struct task *t;

	if (c->out_len < HEADER_LEN + cdb || c->in_len < ANSWER_LEN + sense || c->in_len + c->out_len > UINT32_MAX)
		return false;
	t = task_new(d, c);
	if (!t)
		return false;
	t->queue = queue;
	t->sense_size = sense;
	iov_get(c->out, c->nout, 0, header, sizeof(header));
	memcpy(t->lun, header, 8);
	memcpy(&t->tag, header + 8, 8);
	iov_get(c->out, c->nout, HEADER_LEN, t->scsi.cdb, cdb < SCSI_CDB_MAX ? cdb : SCSI_CDB_MAX);
	t->scsi.out_len = c->out_len - HEADER_LEN - cdb;
	t->scsi.in_len = c->in_len - ANSWER_LEN - sense;
	t->scsi.nout = iov_drop(t->scsi.out, c->nout, HEADER_LEN + cdb);
	t->scsi.nin = iov_drop(t->scsi.in, c->nin, ANSWER_LEN + sense);
	if (t->scsi.out_len && t->scsi.in_len)	/* INOUT is not offered */
		task_end(t, VIRTIO_SCSI_S_FAILURE);
	else
		task_start(t);
	return true;
}

/* --- events (5.6.6.3) --- */

static void event_send(struct virtio_scsi *d, uint32_t event, unsigned target, uint32_t reason)
{
	struct virtio_scsi_event v = { .lun = { 1, (uint8_t)target, 0x40 }, .reason = htole32(reason) };
	struct virtq *q = virtio_queue(d->v, QUEUE_EVENT);
	struct virtq_chain c;

	if (!q->ready)		/* a driver that comes later will look for itself */
		return;
	if (!virtq_pop(q, &c)) {
		d->events_missed = true;
		if (q->broken)
			virtio_signal(d->v, QUEUE_EVENT);
		return;
	}
	v.event = htole32(event | (d->events_missed ? VIRTIO_SCSI_T_EVENTS_MISSED : 0));
	d->events_missed = false;
	uint32_t n = (uint32_t)iov_put(c.in, c.nin, 0, &v, sizeof(v));
	virtq_wrote(virtio_map(d->v), c.in, c.in_gpa, c.nin, n);
	virtq_push(q, c.head, n);
	virtio_signal(d->v, QUEUE_EVENT);
}

static void events_kick(struct virtio_scsi *d)
{
	if (d->events_missed)
		event_send(d, VIRTIO_SCSI_T_NO_EVENT, 0, 0);
}

/* --- the device --- */

static bool chain_start(struct virtio_scsi *d, unsigned queue, const struct virtq_chain *c)
{
	return queue == QUEUE_CONTROL ? control_start(d, c) : request_start(d, queue, c);
}

static unsigned plug(struct virtio_scsi *d, struct block *disks[VIRTIO_SCSI_TARGETS])
{
	unsigned n = 0;

	for (unsigned i = 0; i < VIRTIO_SCSI_TARGETS; i++)
		if (d->target[i].unit)
			block_plug(disks[n++] = d->target[i].block);
	return n;
}

static void scsi_kick(void *opaque, unsigned queue)
{
	struct virtio_scsi *d = opaque;
	struct virtq *q = virtio_queue(d->v, queue);
	struct block *disks[VIRTIO_SCSI_TARGETS];
	struct virtq_chain c;
	unsigned n = 0, plugged;

	if (queue == QUEUE_EVENT) {
		events_kick(d);
		return;
	}
	virtio_get(d->v);
	d->batch++;
	plugged = plug(d, disks);
	do {
		virtq_ignore_kicks(q);
		while (n < BATCH && virtq_pop(q, &c)) {
			if (!chain_start(d, queue, &c))
				q->broken = true;
			n++;
		}
	} while (n < BATCH && virtq_listen(q));
	while (plugged)
		block_unplug(disks[--plugged]);
	d->batch--;
	for (unsigned i = 0; i < d->queues + QUEUE_REQUEST; i++)
		virtio_signal(d->v, i);
	if (n == BATCH)
		virtio_again(d->v, queue);
	virtio_put(d->v);
}

static uint32_t config_size(struct virtio_scsi *d, unsigned offset, uint32_t least)
{
	uint32_t v;

	virtio_config_get(d->v, offset, &v, sizeof(v));
	v = le32toh(v);
	return v < least ? least : v > SIZES_MAX ? SIZES_MAX : v;
}

/* 5.6.4: a driver that sets the sizes does so before it starts. */
static void scsi_start(void *opaque)
{
	struct virtio_scsi *d = opaque;

	d->cdb_size = config_size(d, offsetof(struct virtio_scsi_config, cdb_size), 1);
	d->sense_size = config_size(d, offsetof(struct virtio_scsi_config, sense_size), 0);
}

static void scsi_stop(void *opaque)
{
	struct virtio_scsi *d = opaque;

	d->events_missed = false;
	for (unsigned i = 0; i < VIRTIO_SCSI_TARGETS; i++)
		if (d->target[i].unit)
			scsi_unit_reset(d->target[i].unit, SCSI_POWER_ON);
}

static void scsi_free(void *opaque)
{
	struct virtio_scsi *d = opaque;

	for (unsigned i = 0; i < VIRTIO_SCSI_TARGETS; i++)
		scsi_unit_free(d->target[i].unit);
	free(d);
}

static void scsi_save(void *opaque, struct stream *s)
{
	struct virtio_scsi *d = opaque;

	stream_put_u8(s, d->events_missed);
	for (unsigned i = 0; i < VIRTIO_SCSI_TARGETS; i++) {
		stream_put_u8(s, d->target[i].unit != NULL);
		if (d->target[i].unit)
			scsi_unit_save(d->target[i].unit, s);
	}
}

static int scsi_load(void *opaque, struct stream *s)
{
	struct virtio_scsi *d = opaque;

	d->events_missed = stream_get_u8(s) & 1;
	for (unsigned i = 0; i < VIRTIO_SCSI_TARGETS; i++) {
		if (stream_get_u8(s) != (d->target[i].unit != NULL))
			return -EINVAL;
		if (d->target[i].unit)
			scsi_unit_load(d->target[i].unit, s);
	}
	return 0;
}

static const struct virtio_class scsi_class = {
	.name = "virtio-scsi", .id = VIRTIO_ID_SCSI, .class_code = 0x010000, .start = scsi_start, .kick = scsi_kick,
	.stop = scsi_stop, .save = scsi_save, .load = scsi_load, .free = scsi_free,
};

int virtio_scsi_new(struct virtio_scsi **out, struct pci_bus *bus, struct map *m, struct loop *l, unsigned queues,
		    struct error *e)
{
	const struct virtio_scsi_config config = {
		.num_queues = htole32(queues), .seg_max = htole32(SEG_MAX), .max_sectors = htole32(8192),
		.cmd_per_lun = htole32(128), .event_info_size = htole32(sizeof(struct virtio_scsi_event)),
		.sense_size = htole32(VIRTIO_SCSI_SENSE_DEFAULT_SIZE), .cdb_size = htole32(VIRTIO_SCSI_CDB_DEFAULT_SIZE),
		.max_target = htole16(VIRTIO_SCSI_TARGETS - 1),
	};
	struct virtio_scsi *d = calloc(1, sizeof(*d));
	uint8_t wmask[sizeof(config)] = { 0 };
	struct virtio_params p = {
		.queues = queues + QUEUE_REQUEST, .config = &config, .config_len = sizeof(config), .config_wmask = wmask,
		.features = 1ull << VIRTIO_SCSI_F_HOTPLUG | 1ull << VIRTIO_SCSI_F_CHANGE,
	};
	int ret;

	ASSERT(queues && queues <= 16);
	if (!d)
		return error_errno(e, ENOMEM, NULL, "create virtio-scsi");
	d->queues = queues;
	memset(wmask + offsetof(struct virtio_scsi_config, sense_size), 0xff, 8);
	ret = virtio_new(&d->v, &scsi_class, &p, bus, m, l, d, e);
	if (ret) {
		free(d);
		return ret;
	}
	*out = d;
	return 0;
}

int virtio_scsi_attach(struct virtio_scsi *d, struct block *b, bool cdrom, const struct disk_traits *t, struct error *e)
{
	unsigned i = 0;
	int ret;

	while (i < VIRTIO_SCSI_TARGETS && d->target[i].unit)
		i++;
	if (i == VIRTIO_SCSI_TARGETS)
		return error_set(e, ENOSPC, "detach one first", "attach a SCSI disk", "all %u targets are taken", i);
	ret = scsi_unit_new(&d->target[i].unit, b, cdrom, t, e);
	if (ret)
		return ret;
	d->target[i].block = b;
	event_send(d, VIRTIO_SCSI_T_TRANSPORT_RESET, i, VIRTIO_SCSI_EVT_RESET_RESCAN);
	return (int)i;
}

void virtio_scsi_detach(struct virtio_scsi *d, unsigned target, void (*gone)(void *opaque), void *opaque)
{
	struct target *g = &d->target[target];

	g->gone = gone;
	g->gone_opaque = opaque;
	event_send(d, VIRTIO_SCSI_T_TRANSPORT_RESET, target, VIRTIO_SCSI_EVT_RESET_REMOVED);
	g->tasks++;
	target_leave(g);
}

void virtio_scsi_resized(struct virtio_scsi *d, unsigned target)
{
	scsi_unit_attention(d->target[target].unit, SCSI_CAPACITY_CHANGED);
	event_send(d, VIRTIO_SCSI_T_PARAM_CHANGE, target, 0x2a | 0x09 << 8);
}
