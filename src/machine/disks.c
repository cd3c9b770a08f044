/* The board's disks, and the devices that show them. */
#include <errno.h>
#include <stdlib.h>

#include "devices/virtio/blk.h"
#include "machine/board_private.h"

struct board_disk {
	struct board *board;
	struct board_disk *next;
	struct block *block;
	struct virtio_blk *virtio;
};

int board_disk_add(struct board *b, struct block *disk, const struct disk_traits *t, struct board_disk **out,
		   struct error *e)
{
	struct board_disk *d = calloc(1, sizeof *d);
	int ret;

	if (!d)
		return error_errno(e, ENOMEM, NULL, "plug in a disk");
	*d = (struct board_disk){ .board = b, .block = disk };
	ret = virtio_blk_new(&d->virtio, b->pci, b->map, b->loop, disk, t, b->config.vcpus, e);
	if (ret) {
		free(d);
		return ret;
	}
	d->next = b->disks;
	b->disks = d;
	*out = d;
	return 0;
}

void board_disk_resized(struct board_disk *d)
{
	virtio_blk_resized(d->virtio);
}

void disks_free(struct board *b)
{
	while (b->disks) {
		struct board_disk *d = b->disks;

		b->disks = d->next;
		free(d);
	}
}
