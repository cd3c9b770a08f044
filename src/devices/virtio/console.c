/* virtio-console (virtio 1.2, 5.3): queue 0 takes what the guest reads, queue 1 brings what it writes. */
#include "devices/virtio/console.h"

#include <endian.h>
#include <errno.h>
#include <linux/virtio_console.h>
#include <linux/virtio_ids.h>
#include <stdlib.h>

#include "devices/virtio/virtio.h"

enum { RX, TX, QUEUES };
#define BATCH 64u
#define BYTES_MAX 65536u	/* taken from one chain; more is a driver's nonsense and dropped */

struct virtio_console {
	struct virtio *v;
	struct console_sink sink;
};

static void print(struct virtio_console *c, const struct virtq_chain *chain)
{
	size_t left = BYTES_MAX;

	for (unsigned i = 0; i < chain->nout && left; i++) {
		size_t part = chain->out[i].iov_len < left ? chain->out[i].iov_len : left;

		c->sink.write(c->sink.opaque, chain->out[i].iov_base, part);
		left -= part;
	}
}

static void tx_kick(struct virtio_console *c)
{
	struct virtq *q = virtio_queue(c->v, TX);
	struct virtq_chain chain;
	unsigned n = 0;

	do {
		while (n < BATCH && virtq_pop(q, &chain)) {
			print(c, &chain);
			virtq_push(q, chain.head, 0);
			n++;
		}
	} while (n < BATCH && virtq_listen(q));
	virtio_signal(c->v, TX);
	if (n == BATCH)
		virtio_again(c->v, TX);
}

static void console_kick(void *opaque, unsigned queue)
{
	struct virtio_console *c = opaque;

	if (queue == TX)
		tx_kick(c);
	else if (c->sink.ready)
		c->sink.ready(c->sink.opaque);
}

size_t virtio_console_input(struct virtio_console *c, const void *buf, size_t len)
{
	struct virtq *q = virtio_queue(c->v, RX);
	struct virtq_chain chain;
	size_t done = 0;

	/* Buffers may be empty, so it is them that are counted. */
	for (unsigned n = 0; n < BATCH && done < len; n++) {
		size_t part;

		if ((!virtq_pending(q) && !virtq_listen(q)) || !virtq_pop(q, &chain))
			break;
		part = iov_put(chain.in, chain.nin, 0, (const uint8_t *)buf + done, len - done);
		virtq_wrote(virtio_map(c->v), chain.in, chain.in_gpa, chain.nin, part);
		virtq_push(q, chain.head, (uint32_t)part);
		done += part;
	}
	virtio_signal(c->v, RX);
	return done;
}

void virtio_console_resize(struct virtio_console *c, uint16_t cols, uint16_t rows)
{
	uint16_t size[2] = { htole16(cols), htole16(rows) };

	virtio_config_set(c->v, 0, size, sizeof(size), true);
}

static const struct virtio_class console_class = {
	.name = "virtio-console", .id = VIRTIO_ID_CONSOLE, .class_code = 0x078000, .kick = console_kick,
	.free = free,
};

int virtio_console_new(struct virtio_console **out, struct pci_bus *bus, struct map *m, struct loop *l,
		       const struct console_sink *sink, struct error *e)
{
	struct virtio_console *c = calloc(1, sizeof(*c));
	struct virtio_console_config config = { .cols = htole16(80), .rows = htole16(25) };
	struct virtio_params p = { .queues = QUEUES, .features = 1ull << VIRTIO_CONSOLE_F_SIZE,
				   .config = &config, .config_len = sizeof(config) };
	int ret;

	if (!c)
		return error_errno(e, ENOMEM, NULL, "create virtio-console");
	c->sink = *sink;
	ret = virtio_new(&c->v, &console_class, &p, bus, m, l, c, e);
	if (ret) {
		free(c);
		return ret;
	}
	*out = c;
	return 0;
}
