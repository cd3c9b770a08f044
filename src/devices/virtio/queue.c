/*
 * The split ring (virtio 1.2, 2.7):
 *
 *   desc   [size] { gpa u64 | len u32 | flags u16 | next u16 }          driver -> device
 *   avail  { flags u16 | idx u16 | ring[size] u16 | used_event u16 }    driver -> device
 *   used   { flags u16 | idx u16 | ring[size] { id u32 | len u32 } | avail_event u16 }   device -> driver
 *
 * Barriers and their partners in the driver:
 *   A  avail->idx is loaded with acquire      pairs with its write barrier between ring[] and idx
 *   B  used->idx is stored with release       pairs with its read barrier between idx and ring[]
 *   C  full barrier: used->idx, then load used_event / avail->flags
 *                                             pairs with its full barrier: used_event, then load used->idx
 *   D  full barrier: avail_event / used->flags, then load avail->idx
 *                                             pairs with its full barrier: avail->idx, then load avail_event
 */
#include "devices/virtio/queue.h"

#include <endian.h>
#include <linux/virtio_config.h>
#include <linux/virtio_ring.h>
#include <string.h>

#include "memory/map.h"

struct desc {
	uint64_t gpa;
	uint32_t len;
	uint16_t flags, next;
};

static uint16_t load16(const uint8_t *p)
{
	return le16toh(__atomic_load_n((const uint16_t *)p, __ATOMIC_RELAXED));
}

static void store16(struct virtq *q, uint64_t offset, uint16_t v)
{
	__atomic_store_n((uint16_t *)(q->used + offset), htole16(v), __ATOMIC_RELAXED);
	map_wrote(q->map, q->used_gpa + offset, 2);
}

static uint64_t used_len(unsigned size)
{
	return 4 + 8ull * size + 2;
}

bool virtq_start(struct virtq *q, struct map *m, uint16_t size, uint64_t desc_gpa, uint64_t avail_gpa,
		 uint64_t used_gpa, uint64_t features)
{
	virtq_stop(q);
	if (!size || size > VIRTQ_SIZE_MAX || (size & (size - 1)) || (desc_gpa & 15) || (avail_gpa & 1) ||
	    (used_gpa & 3))
		return false;
	q->map = m;
	q->size = size;
	q->desc_gpa = desc_gpa;
	q->avail_gpa = avail_gpa;
	q->used_gpa = used_gpa;
	q->desc = map_ptr(m, desc_gpa, 16ull * size, false);
	q->avail = map_ptr(m, avail_gpa, 4 + 2ull * size + 2, false);
	q->used = map_ptr(m, used_gpa, used_len(size), true);
	if (!q->desc || !q->avail || !q->used)
		return false;
	q->event_idx = features >> VIRTIO_RING_F_EVENT_IDX & 1;
	q->indirect = features >> VIRTIO_RING_F_INDIRECT_DESC & 1;
	q->ready = true;
	q->want_kicks = true;
	return true;
}

void virtq_stop(struct virtq *q)
{
	memset(q, 0, offsetof(struct virtq, seg));
}

/* --- chains --- */

static bool fail(struct virtq *q)
{
	q->broken = true;
	return false;
}

static void desc_load(const uint8_t *table, unsigned i, struct desc *d)
{
	memcpy(d, table + 16ull * i, sizeof(*d));
	/* The guest may change it under us: all checks are on this copy. */
	__asm__ volatile("" : "+m"(*d));
	d->gpa = le64toh(d->gpa);
	d->len = le32toh(d->len);
	d->flags = le16toh(d->flags);
	d->next = le16toh(d->next);
}

/* Appends one buffer.  2.7.4.2: all device-readable ones come first.  Empty buffers carry nothing. */
static bool seg_add(struct virtq *q, const struct desc *d)
{
	bool in = d->flags & VRING_DESC_F_WRITE;
	void *hva;

	if (!in && q->nout != q->nsegs)
		return fail(q);
	if (!d->len)
		return true;
	hva = map_ptr(q->map, d->gpa, d->len, in);
	if (!hva || q->nsegs == VIRTQ_SEGS_MAX)
		return fail(q);
	q->seg[q->nsegs] = (struct iovec){ hva, d->len };
	q->seg_gpa[q->nsegs++] = d->gpa;
	if (!in)
		q->nout++;
	return true;
}

/* Follows a chain through a table of `count` descriptors.  A chain that visits more than `count` of them
 * has a loop.  An indirect table ends the chain that it hangs on (2.7.5.3.1). */
static bool walk(struct virtq *q, const uint8_t *table, unsigned count, unsigned i, bool nested)
{
	for (unsigned seen = 0; seen < count; seen++) {
		struct desc d;

		if (i >= count)
			return fail(q);
		desc_load(table, i, &d);
		if (d.flags & VRING_DESC_F_INDIRECT) {
			const uint8_t *inner;

			if (nested || !q->indirect || (d.flags & VRING_DESC_F_NEXT) || !d.len || d.len % 16 ||
			    d.len / 16 > VIRTQ_SEGS_MAX)
				return fail(q);
			inner = map_ptr(q->map, d.gpa, d.len, false);
			return inner ? walk(q, inner, d.len / 16, 0, true) : fail(q);
		}
		if (!seg_add(q, &d))
			return false;
		if (!(d.flags & VRING_DESC_F_NEXT))
			return true;
		i = d.next;
	}
	return fail(q);
}

static uint64_t total(const struct iovec *iov, unsigned n)
{
	uint64_t sum = 0;

	while (n--)
		sum += iov++->iov_len;
	return sum;
}

static uint16_t avail_idx(const struct virtq *q)
{
	return le16toh(__atomic_load_n((const uint16_t *)(q->avail + 2), __ATOMIC_ACQUIRE));	/* A */
}

bool virtq_pending(const struct virtq *q)
{
	return q->ready && !q->broken && avail_idx(q) != q->avail_next;
}

static unsigned under_way(const struct virtq *q)
{
	return (uint16_t)(q->avail_next - q->used_next);
}

bool virtq_pop(struct virtq *q, struct virtq_chain *c)
{
	uint16_t ready, head;

	if (!q->ready || q->broken)
		return false;
	ready = (uint16_t)(avail_idx(q) - q->avail_next);
	if (!ready)
		return false;
	/* A chain keeps a descriptor until it was answered.  Without this a driver could pile up requests without end. */
	if (ready + under_way(q) > q->size)
		return fail(q);
	head = load16(q->avail + 4 + 2ull * (q->avail_next & (q->size - 1)));
	q->nsegs = q->nout = 0;
	if (!walk(q, q->desc, q->size, head, false))
		return false;
	q->avail_next++;
	*c = (struct virtq_chain){
		.head = head, .nout = q->nout, .nin = q->nsegs - q->nout, .out = q->seg,
		.in = q->seg + q->nout, .in_gpa = q->seg_gpa + q->nout,
	};
	c->out_len = total(c->out, c->nout);
	c->in_len = total(c->in, c->nin);
	return true;
}

void virtq_unpop(struct virtq *q, unsigned n)
{
	q->avail_next = (uint16_t)(q->avail_next - n);
}

/* --- used entries and interrupts --- */

void virtq_push(struct virtq *q, uint16_t head, uint32_t written)
{
	uint64_t offset = 4 + 8ull * (q->used_next & (q->size - 1));
	uint32_t entry[2] = { htole32(head), htole32(written) };

	if (!q->ready || q->broken)
		return;
	memcpy(q->used + offset, entry, sizeof(entry));
	map_wrote(q->map, q->used_gpa + offset, sizeof(entry));
	q->used_next++;
}

/* Did the used index pass the driver's event while going from `from` to `to`? (2.7.7.2) */
static bool event_passed(uint16_t event, uint16_t from, uint16_t to)
{
	return (uint16_t)(to - event - 1) < (uint16_t)(to - from);
}

bool virtq_publish(struct virtq *q)
{
	uint16_t from = q->used_signalled;
	bool valid = q->signalled_valid;

	if (!q->ready || q->broken || q->used_shown == q->used_next)
		return false;
	__atomic_store_n((uint16_t *)(q->used + 2), htole16(q->used_next), __ATOMIC_RELEASE);	/* B */
	map_wrote(q->map, q->used_gpa + 2, 2);
	q->used_shown = q->used_next;
	__atomic_thread_fence(__ATOMIC_SEQ_CST);	/* C */
	if (!q->event_idx)
		return !(load16(q->avail) & VRING_AVAIL_F_NO_INTERRUPT);
	q->used_signalled = q->used_next;
	q->signalled_valid = true;
	return !valid || event_passed(load16(q->avail + 4 + 2ull * q->size), from, q->used_next);
}

void virtq_ignore_kicks(struct virtq *q)
{
	if (!q->ready || !q->want_kicks)
		return;
	q->want_kicks = false;
	/* With event indices an avail_event that is never reached says the same: leave it behind. */
	if (!q->event_idx)
		store16(q, 0, VRING_USED_F_NO_NOTIFY);
}

bool virtq_listen(struct virtq *q)
{
	if (!q->ready || q->broken)
		return false;
	if (q->event_idx)
		store16(q, 4 + 8ull * q->size, q->avail_next);
	else if (!q->want_kicks)
		store16(q, 0, 0);
	q->want_kicks = true;
	__atomic_thread_fence(__ATOMIC_SEQ_CST);	/* D */
	return virtq_pending(q);
}

void virtq_wrote(struct map *m, const struct iovec *in, const uint64_t *in_gpa, unsigned nin, uint64_t len)
{
	for (unsigned i = 0; i < nin && len; i++) {
		uint64_t n = in[i].iov_len < len ? in[i].iov_len : len;

		map_wrote(m, in_gpa[i], n);
		len -= n;
	}
}
