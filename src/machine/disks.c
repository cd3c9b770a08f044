/* The board's disks, and the devices that show them. */
#include <errno.h>
#include <stdlib.h>

#include "devices/virtio/blk.h"
#include "devices/virtio/scsi.h"
#include "machine/board_private.h"

struct board_disk {
	struct board *board;
	struct board_disk *next;
	struct block *block;
	enum disk_bus bus;
	struct virtio_blk *virtio;
	unsigned target;		/* of board->scsi */
};

static int virtio_add(struct board_disk *d, const struct board_disk_config *c, struct error *e)
{
	struct board *b = d->board;

	return virtio_blk_new(&d->virtio, b->pci, b->map, b->loop, d->block, &c->traits, b->config.vcpus, e);
}

/* The adapter comes with its first disk. */
static int scsi_add(struct board_disk *d, const struct board_disk_config *c, struct error *e)
{
	struct board *b = d->board;
	int ret = b->scsi ? 0 : virtio_scsi_new(&b->scsi, b->pci, b->map, b->loop, b->config.vcpus, e);

	if (!ret)
		ret = virtio_scsi_attach(b->scsi, d->block, c->cdrom, &c->traits, e);
	if (ret < 0)
		return ret;
	d->target = (unsigned)ret;
	return 0;
}

static void virtio_resized(struct board_disk *d) { virtio_blk_resized(d->virtio); }
static void scsi_resized(struct board_disk *d) { virtio_scsi_resized(d->board->scsi, d->target); }

static const struct bus_ops {
	int (*add)(struct board_disk *d, const struct board_disk_config *c, struct error *e);
	void (*resized)(struct board_disk *d);
} buses[DISK_BUSES] = {
	[DISK_VIRTIO] = { virtio_add, virtio_resized },
	[DISK_SCSI] = { scsi_add, scsi_resized },
};

int board_disk_add(struct board *b, struct block *disk, const struct board_disk_config *c, struct board_disk **out,
		   struct error *e)
{
	struct board_disk *d = calloc(1, sizeof *d);
	int ret;

	if (!d)
		return error_errno(e, ENOMEM, NULL, "plug in a disk");
	*d = (struct board_disk){ .board = b, .block = disk, .bus = c->bus };
	ret = buses[c->bus].add(d, c, e);
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
	buses[d->bus].resized(d);
}

void disks_free(struct board *b)
{
	while (b->disks) {
		struct board_disk *d = b->disks;

		b->disks = d->next;
		free(d);
	}
}
