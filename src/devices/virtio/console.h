/* virtio-console (virtio 1.2, 5.3): one port, no multiport. */
#ifndef VIXEN_DEVICES_VIRTIO_CONSOLE_H
#define VIXEN_DEVICES_VIRTIO_CONSOLE_H

#include <stddef.h>
#include <stdint.h>

#include "base/error.h"

struct virtio_console;
struct pci_bus;
struct map;
struct loop;

/* The world's side of the wire; called on the loop thread, must not block. */
struct console_sink {
	void (*write)(void *opaque, const void *buf, size_t len);	/* what the guest printed */
	void (*ready)(void *opaque);	/* the guest takes input again; may be NULL */
	void *opaque;
};

/* Owner: the bus. Thread: before the loop runs. */
int virtio_console_new(struct virtio_console **out, struct pci_bus *bus, struct map *m, struct loop *l,
		       const struct console_sink *sink, struct error *e);
/* Loop thread. Returns how many bytes the guest had room for. */
size_t virtio_console_input(struct virtio_console *c, const void *buf, size_t len);
void virtio_console_resize(struct virtio_console *c, uint16_t cols, uint16_t rows);

#endif
