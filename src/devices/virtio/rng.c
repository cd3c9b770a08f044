/* virtio-rng (virtio 1.2, 5.4): one queue of buffers to be filled. */
#include "devices/virtio/rng.h"

#include <errno.h>
#include <linux/virtio_ids.h>
#include <stdlib.h>
#include <sys/random.h>

#include "devices/virtio/virtio.h"

#define BATCH 64u
#define BYTES_MAX 4096u		/* of one buffer; a driver takes what it gets */

struct virtio_rng {
	struct virtio *v;
};

static uint32_t fill(struct virtio_rng *r, const struct virtq_chain *c)
{
	uint8_t bytes[BYTES_MAX];
	size_t want = c->in_len < sizeof(bytes) ? (size_t)c->in_len : sizeof(bytes);
	ssize_t got = getrandom(bytes, want, GRND_NONBLOCK);

	if (got <= 0)
		return 0;
	iov_put(c->in, c->nin, 0, bytes, (size_t)got);
	virtq_wrote(virtio_map(r->v), c->in, c->in_gpa, c->nin, (uint64_t)got);
	return (uint32_t)got;
}

static void rng_kick(void *opaque, unsigned queue)
{
	struct virtio_rng *r = opaque;
	struct virtq *q = virtio_queue(r->v, queue);
	struct virtq_chain c;
	unsigned n = 0;

	do {
		while (n < BATCH && virtq_pop(q, &c)) {
			virtq_push(q, c.head, fill(r, &c));
			n++;
		}
	} while (n < BATCH && virtq_listen(q));
	virtio_signal(r->v, queue);
	if (n == BATCH)
		virtio_again(r->v, queue);
}

static const struct virtio_class rng_class = {
	.name = "virtio-rng", .id = VIRTIO_ID_RNG, .class_code = 0x00ff00, .kick = rng_kick, .free = free,
};

int virtio_rng_new(struct virtio_rng **out, struct pci_bus *bus, struct map *m, struct loop *l,
		   struct error *e)
{
	struct virtio_rng *r = calloc(1, sizeof(*r));
	struct virtio_params p = { .queues = 1 };
	int ret;

	if (!r)
		return error_errno(e, ENOMEM, NULL, "create virtio-rng");
	ret = virtio_new(&r->v, &rng_class, &p, bus, m, l, r, e);
	if (ret) {
		free(r);
		return ret;
	}
	*out = r;
	return 0;
}
