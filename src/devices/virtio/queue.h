/*
 * A split virtqueue as the device sees it (virtio 1.2, 2.7).  The one place that walks guest rings.
 *
 * Thread: one at a time, the loop's.  Everything read from the guest is copied once and checked; a ring or
 * chain that breaks the rules marks the queue broken, and the device asks for a reset.
 */
#ifndef VIXEN_DEVICES_VIRTIO_QUEUE_H
#define VIXEN_DEVICES_VIRTIO_QUEUE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "devices/iov.h"

struct map;

#define VIRTQ_SIZE_MAX 256u
#define VIRTQ_SEGS_MAX 1024u	/* of one chain; Linux stays below its queue size plus a few */

/* Buffers of one request: out[] was written by the driver, in[] is for the device to fill. */
struct virtq_chain {
	uint16_t head;
	unsigned nout, nin;
	const struct iovec *out, *in;	/* valid until the next pop; into guest RAM, for the life of the VM */
	const uint64_t *in_gpa;		/* of each in[] */
	uint64_t out_len, in_len;	/* bytes */
};

struct virtq {
	struct map *map;
	uint16_t size;			/* a power of two, 1..VIRTQ_SIZE_MAX */
	bool ready, broken;
	bool event_idx, indirect;	/* negotiated */
	bool want_kicks;		/* the driver should tell us about new buffers */
	uint16_t avail_next;		/* of the next entry to pop */
	uint16_t used_next;		/* of the next entry to push */
	uint16_t used_shown;		/* used->idx as the driver sees it */
	uint16_t used_signalled;	/* used index at the last interrupt decision */
	bool signalled_valid;
	uint64_t desc_gpa, avail_gpa, used_gpa;
	uint8_t *desc, *avail, *used;	/* guest RAM */
	unsigned nsegs, nout;		/* of the chain being walked: out segments first */
	struct iovec seg[VIRTQ_SEGS_MAX];
	uint64_t seg_gpa[VIRTQ_SEGS_MAX];
};

/* Takes size and the three addresses that the driver programmed. false: they are not all in RAM. */
bool virtq_start(struct virtq *q, struct map *m, uint16_t size, uint64_t desc_gpa, uint64_t avail_gpa,
		 uint64_t used_gpa, uint64_t features);
void virtq_stop(struct virtq *q);

/* true: *c is the next request.  false: none left, or q->broken. */
bool virtq_pop(struct virtq *q, struct virtq_chain *c);
/* Gives the last n popped chains back, as if never popped. */
void virtq_unpop(struct virtq *q, unsigned n);
/* Are there entries to pop? */
bool virtq_pending(const struct virtq *q);

/* Adds a used entry; the driver sees it at virtq_publish(). written: bytes filled of its in[] buffers. */
void virtq_push(struct virtq *q, uint16_t head, uint32_t written);
/* Shows all pushed entries to the driver; true: it wants an interrupt. */
bool virtq_publish(struct virtq *q);

/* Turns kicks off while the device looks anyway, and on before it sleeps.  virtq_listen() returns true when
 * entries arrived meanwhile: pop again. */
void virtq_ignore_kicks(struct virtq *q);
bool virtq_listen(struct virtq *q);

/* Tells the map that the first `len` bytes of these in[] buffers were written. */
void virtq_wrote(struct map *m, const struct iovec *in, const uint64_t *in_gpa, unsigned nin, uint64_t len);

#endif
