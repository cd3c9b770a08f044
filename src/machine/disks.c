/*
 * The board's disks, and the devices that show them.
 *
 * Removal by ACPI hot plug:
 *
 *	board_disk_remove ─▶ the guest is asked ─▶ it ejects (vCPU) ─▶ on_ejects (loop) ─▶ device withdrawn ─▶ removed(0)
 *	                            └─▶ it says no (vCPU) ─▶ on_ejects (loop) ─▶ removed(-EBUSY)
 *
 * A device whose disk is gone stays, off the bus: a vCPU may be in one of its handlers. It takes the next disk.
 */
#include <errno.h>
#include <stdlib.h>

#include "devices/firmware/acpi_hotplug.h"
#include "devices/firmware/acpi_pm.h"
#include "devices/nvme/nvme.h"
#include "devices/pci/pci.h"
#include "devices/virtio/blk.h"
#include "devices/virtio/scsi.h"
#include "host/loop.h"
#include "machine/board_private.h"

#define FREE_SLOTS 8u		/* of those kept for hot plug */

struct board_disk {
	struct board *board;
	struct board_disk *next;
	struct block *block;		/* NULL: a device without a disk */
	enum disk_bus bus;
	struct virtio_blk *virtio;
	struct nvme *nvme;
	unsigned slot;			/* PCI */
	unsigned target;		/* of board->scsi */
	void (*removed)(void *opaque, int ret);		/* it is being removed */
	void *removed_opaque;
};

/* --- virtio-blk: a PCI function each --- */

static struct board_disk *vacant(struct board *b, enum disk_bus bus)
{
	struct board_disk *d = b->disks;

	while (d && (d->block || d->bus != bus))
		d = d->next;
	return d;
}

static int virtio_add(struct board_disk *d, const struct board_disk_config *c, struct error *e)
{
	struct board *b = d->board;
	int ret = 0;

	if (!d->virtio)
		ret = virtio_blk_new(&d->virtio, b->pci, b->map, b->loop, d->block, &c->traits, b->config.vcpus, e);
	if (ret)
		return ret;
	d->slot = virtio_blk_slot(d->virtio);
	if (!b->hot_slots)	/* not booted yet */
		return 0;
	virtio_blk_insert(d->virtio, d->block, &c->traits);
	acpi_hotplug_insert(b->hotplug, d->slot);
	return 0;
}

static void disk_removed(void *opaque)
{
	struct board_disk *d = opaque;
	void (*removed)(void *opaque, int ret) = d->removed;

	d->block = NULL;
	d->removed = NULL;
	removed(d->removed_opaque, 0);
}

static void pci_remove(struct board_disk *d) { acpi_hotplug_request(d->board->hotplug, d->slot); }
static void virtio_take(struct board_disk *d) { virtio_blk_remove(d->virtio, disk_removed, d); }
static void virtio_changed(struct board_disk *d) { virtio_blk_changed(d->virtio); }
static void virtio_resized(struct board_disk *d) { virtio_blk_resized(d->virtio); }

/* --- NVMe: a PCI function each --- */

static int nvme_add(struct board_disk *d, const struct board_disk_config *c, struct error *e)
{
	struct board *b = d->board;
	int ret = d->nvme ? 0 : nvme_new(&d->nvme, b->pci, b->map, b->loop, d->block, &c->traits, e);

	if (ret)
		return ret;
	d->slot = nvme_slot(d->nvme);
	if (!b->hot_slots)
		return 0;
	nvme_insert(d->nvme, d->block, &c->traits);
	acpi_hotplug_insert(b->hotplug, d->slot);
	return 0;
}

static void nvme_take(struct board_disk *d) { nvme_remove(d->nvme, disk_removed, d); }
static void nvme_disk_resized(struct board_disk *d) { nvme_resized(d->nvme); }

/* --- SCSI: the adapter comes with its first disk, and needs nobody's leave --- */

static int scsi_add(struct board_disk *d, const struct board_disk_config *c, struct error *e)
{
	struct board *b = d->board;
	int ret = 0;

	if (!b->scsi && b->hot_slots)
		return error_set(e, ENODEV, "attach it as a virtio disk, or start the VM with a SCSI disk or drive",
				 "plug in a SCSI disk", "this VM has no SCSI adapter");
	if (!b->scsi)
		ret = virtio_scsi_new(&b->scsi, b->pci, b->map, b->loop, b->config.vcpus, e);
	if (!ret)
		ret = virtio_scsi_attach(b->scsi, d->block, c->cdrom, &c->traits, e);
	if (ret < 0)
		return ret;
	d->target = (unsigned)ret;
	return 0;
}

static void scsi_remove(struct board_disk *d) { virtio_scsi_detach(d->board->scsi, d->target, disk_removed, d); }
static void scsi_resized(struct board_disk *d) { virtio_scsi_resized(d->board->scsi, d->target); }

static const struct bus_ops {
	int (*add)(struct board_disk *d, const struct board_disk_config *c, struct error *e);
	void (*remove)(struct board_disk *d);	/* asks the guest, or takes it */
	void (*take)(struct board_disk *d);	/* the guest has ejected it; NULL: it is never asked */
	void (*resized)(struct board_disk *d);
	void (*changed)(struct board_disk *d);	/* NULL: it shows nothing of its image */
} buses[DISK_BUSES] = {
	[DISK_VIRTIO] = { virtio_add, pci_remove, virtio_take, virtio_resized, virtio_changed },
	[DISK_SCSI] = { scsi_add, scsi_remove, NULL, scsi_resized },
	[DISK_NVME] = { nvme_add, pci_remove, nvme_take, nvme_disk_resized },
};

/* --- adding and removing --- */

int board_disk_add(struct board *b, struct block *disk, const struct board_disk_config *c, struct board_disk **out,
		   struct error *e)
{
	struct board_disk *d = vacant(b, c->bus), *made = NULL;
	int ret;

	if (!d) {
		d = made = calloc(1, sizeof *d);
		if (!d)
			return error_errno(e, ENOMEM, NULL, "plug in a disk");
		*d = (struct board_disk){ .board = b, .bus = c->bus };
		if (c->bus != DISK_SCSI && b->hot_slots && !(b->hot_slots & pci_bus_free_slots(b->pci))) {
			free(made);
			return error_set(e, ENOSPC, "detach one first", "plug in a disk", "all slots for hot plug are taken");
		}
	}
	d->block = disk;
	ret = buses[c->bus].add(d, c, e);
	if (ret) {
		d->block = NULL;
		free(made);
		return ret;
	}
	if (made) {
		d->next = b->disks;
		b->disks = d;
	}
	*out = d;
	return 0;
}

void board_disk_remove(struct board_disk *d, void (*removed)(void *opaque, int ret), void *opaque)
{
	ASSERT(d->block && !d->removed);
	d->removed = removed;
	d->removed_opaque = opaque;
	buses[d->bus].remove(d);
}

void board_disk_remove_cancel(struct board_disk *d)
{
	d->removed = NULL;
	acpi_hotplug_cancel(d->board->hotplug, d->slot);
}

void board_disk_resized(struct board_disk *d)
{
	buses[d->bus].resized(d);
}

void board_disk_changed(struct board_disk *d)
{
	if (buses[d->bus].changed)
		buses[d->bus].changed(d);
}

/* --- what the guest answers: vCPU to loop --- */

static void on_gpe(void *opaque) { acpi_pm_gpe(((struct board *)opaque)->pm, ACPI_HOTPLUG_GPE); }

static void on_eject(void *opaque, unsigned slot)
{
	struct board *b = opaque;

	atomic_fetch_or(&b->ejected, 1u << slot);
	loop_timer_set(b->ejects, 0);
}

static void on_status(void *opaque, unsigned slot, unsigned event, unsigned status)
{
	struct board *b = opaque;

	if (event != ACPI_EVENT_EJECT || !status)
		return;
	atomic_fetch_or(&b->refused, 1u << slot);
	loop_timer_set(b->ejects, 0);
}

/* A slot that nobody asked for stays as it is: the guest may look for the disk again. */
static void on_ejects(void *opaque)
{
	struct board *b = opaque;
	uint32_t refused = atomic_exchange(&b->refused, 0), ejected = atomic_exchange(&b->ejected, 0);

	for (struct board_disk *d = b->disks; d; d = d->next) {
		void (*removed)(void *opaque, int ret) = d->removed;

		if (!removed || !buses[d->bus].take)
			continue;
		if (ejected >> d->slot & 1) {
			buses[d->bus].take(d);
		} else if (refused >> d->slot & 1) {
			d->removed = NULL;
			removed(d->removed_opaque, -EBUSY);
		}
	}
}

int disks_init(struct board *b, struct error *e)
{
	const struct acpi_hotplug_host host = { b, on_gpe, on_eject, on_status };

	b->ejects = loop_timer_new(b->loop, on_ejects, b);
	b->hotplug = b->ejects ? acpi_hotplug_new(b->map, &host) : NULL;
	return b->hotplug ? 0 : error_errno(e, ENOMEM, NULL, "build hot plug");
}

uint32_t disks_hot_slots(struct board *b)
{
	uint32_t free_slots = pci_bus_free_slots(b->pci);

	for (const struct board_disk *d = b->disks; d; d = d->next)
		if (buses[d->bus].take)
			b->hot_slots |= 1u << d->slot;
	for (unsigned i = 0; i < FREE_SLOTS && free_slots; i++, free_slots &= free_slots - 1)
		b->hot_slots |= free_slots & -free_slots;
	return b->hot_slots;
}

void disks_free(struct board *b)
{
	if (b->ejects)
		loop_timer_free(b->ejects);
	acpi_hotplug_free(b->hotplug);
	while (b->disks) {
		struct board_disk *d = b->disks;

		b->disks = d->next;
		free(d);
	}
}
