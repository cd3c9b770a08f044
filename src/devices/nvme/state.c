/* A controller's saved state: nothing is under way. */
#include <errno.h>
#include <stdlib.h>

#include "base/stream.h"
#include "devices/nvme/private.h"

static void queues_save(const struct nvme *n, struct stream *s)
{
	for (unsigned i = 0; i < QUEUES; i++) {
		const struct sq *sq = &n->sq[i];
		const struct cq *cq = &n->cq[i];

		stream_put_u8(s, (uint8_t)(sq->live | cq->live << 1 | cq->interrupts << 2 | cq->phase << 3));
		stream_put_u16(s, sq->size);
		stream_put_u16(s, sq->head);
		stream_put_u16(s, sq->cq);
		stream_put_u16(s, (uint16_t)atomic_load(&sq->tail));
		stream_put_u64(s, sq->gpa);
		stream_put_u16(s, cq->size);
		stream_put_u16(s, cq->tail);
		stream_put_u16(s, cq->vector);
		stream_put_u16(s, (uint16_t)atomic_load(&cq->head));
		stream_put_u64(s, cq->gpa);
	}
}

void nvme_save(void *opaque, struct stream *s)
{
	struct nvme *n = opaque;
	size_t mark = stream_begin(s, "nvme", 1);

	stream_put_u32(s, n->cc);
	stream_put_u32(s, n->csts);
	stream_put_u32(s, n->mask);
	stream_put_u32(s, n->aqa);
	stream_put_u64(s, n->asq);
	stream_put_u64(s, n->acq);
	stream_put_u8(s, n->enabled);
	for (unsigned i = 0; i < FEATURES; i++)
		stream_put_u32(s, n->feature[i]);
	stream_put_u8(s, (uint8_t)n->event_waiting);
	for (unsigned i = 0; i < EVENTS_MAX; i++)
		stream_put_u16(s, n->event_cid[i]);
	for (unsigned i = 0; i < EVENT_KINDS; i++)
		stream_put_u8(s, (uint8_t)(n->event_due[i] | n->event_told[i] << 1));
	queues_save(n, s);
	stream_end(s, mark);
}

struct queue_state {
	uint8_t bits;
	uint16_t sq_size, sq_head, sq_cq, sq_tail, cq_size, cq_tail, vector, cq_head;
	uint64_t sq_gpa, cq_gpa;
};

static void state_get(struct queue_state *q, struct stream *s)
{
	q->bits = stream_get_u8(s);
	q->sq_size = stream_get_u16(s);
	q->sq_head = stream_get_u16(s);
	q->sq_cq = stream_get_u16(s);
	q->sq_tail = stream_get_u16(s);
	q->sq_gpa = stream_get_u64(s);
	q->cq_size = stream_get_u16(s);
	q->cq_tail = stream_get_u16(s);
	q->vector = stream_get_u16(s);
	q->cq_head = stream_get_u16(s);
	q->cq_gpa = stream_get_u64(s);
}

static bool cq_load(struct nvme *n, unsigned i, const struct queue_state *q)
{
	if (!(q->bits & 2))
		return true;
	if (cq_start(n, i, q->cq_gpa, q->cq_size, q->vector, q->bits & 4) || q->cq_tail >= q->cq_size)
		return false;
	n->cq[i].tail = q->cq_tail;
	n->cq[i].phase = q->bits >> 3 & 1;
	atomic_store(&n->cq[i].head, q->cq_head);
	return true;
}

static bool sq_load(struct nvme *n, unsigned i, const struct queue_state *q)
{
	if (!(q->bits & 1))
		return true;
	if (q->sq_cq >= QUEUES || !n->cq[q->sq_cq].live || sq_start(n, i, q->sq_gpa, q->sq_size, q->sq_cq) ||
	    q->sq_head >= q->sq_size)
		return false;
	n->sq[i].head = q->sq_head;
	atomic_store(&n->sq[i].tail, q->sq_tail);
	return true;
}

static int queues_load(struct nvme *n, struct stream *s)
{
	struct queue_state *q = calloc(QUEUES, sizeof(*q));
	bool good = q;

	for (unsigned i = 0; i < QUEUES && good; i++) {
		state_get(&q[i], s);
		good = !s->failed && cq_load(n, i, &q[i]);
	}
	for (unsigned i = 0; i < QUEUES && good; i++)
		good = sq_load(n, i, &q[i]);
	free(q);
	return good ? 0 : -EINVAL;
}

int nvme_load(void *opaque, struct stream *s)
{
	struct nvme *n = opaque;
	size_t end;
	int ret;

	if (n->enabled || n->in_flight || stream_enter(s, "nvme", &end) != 1)
		return -EINVAL;
	n->cc = stream_get_u32(s) & NVME_CC_WRITABLE;
	n->csts = stream_get_u32(s) & 15;
	n->mask = stream_get_u32(s);
	n->aqa = stream_get_u32(s);
	n->asq = stream_get_u64(s);
	n->acq = stream_get_u64(s);
	n->enabled = stream_get_u8(s) & 1;
	for (unsigned i = 0; i < FEATURES; i++)
		n->feature[i] = stream_get_u32(s);
	n->event_waiting = stream_get_u8(s) % (EVENTS_MAX + 1);
	for (unsigned i = 0; i < EVENTS_MAX; i++)
		n->event_cid[i] = stream_get_u16(s);
	for (unsigned i = 0; i < EVENT_KINDS; i++) {
		uint8_t bits = stream_get_u8(s);

		n->event_due[i] = bits & 1;
		n->event_told[i] = bits >> 1 & 1;
	}
	ret = queues_load(n, s);
	stream_leave(s, end);
	if (ret || s->failed) {
		queues_drop(n);
		n->enabled = false;
		return -EINVAL;
	}
	queue_ring(n, 0);
	return 0;
}
