/*
 * The disks of a VM: those it starts with, and those that are attached and detached while it runs.
 *
 *	free ─▶ OPENING (a coroutine) ─▶ PLUGGED ─▶ LEAVING: the guest is asked ─▶ CLOSING (a coroutine) ─▶ free
 *	                                    ◀─────── it refuses, or takes too long
 */
#include "vmm/disks.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/log.h"
#include "block/block.h"
#include "host/coroutine.h"
#include "host/loop.h"
#include "machine/board.h"
#include "vmm/control.h"
#include "vmm/disk_jobs.h"
#include "vmm/vm_private.h"

/* --- those it starts with --- */

static int disk_start(struct vm_slot *s, struct error *e)
{
	space_watch(s);
	return limits_start(s, e);
}

int disks_open(struct vm *vm, struct error *e)
{
	int ret = 0;

	for (unsigned i = 0; i < vm->config->ndisks && !ret; i++) {
		struct vm_slot *s = &vm->disk[i];
		struct block_options o = { 0 };

		s->vm = vm;
		s->spec = vm->config->disk[i];
		o.format = s->spec.format;
		block_secrets(&o, s->spec.key_file, s->spec.nkeys);
		o.flags = (s->spec.readonly ? BLOCK_READONLY : 0) | (s->spec.ephemeral ? BLOCK_EPHEMERAL : 0);
		snprintf(s->name, sizeof s->name, "disk%u", i);
		ret = block_open_with(&s->block, vm->loop, s->spec.path, &o, e);
		s->state = ret ? DISK_FREE : DISK_PLUGGED;
		if (!ret)
			ret = disk_start(s, e);
	}
	return ret;
}

static int disk_plug(struct vm *vm, struct vm_slot *s, struct error *e)
{
	const struct vm_disk *d = &s->spec;
	struct block *b = s->block;
	char serial[DISK_SERIAL_MAX + 1];
	const struct board_disk_config c = {
		.bus = d->bus, .cdrom = d->cdrom, .traits = {
			.serial = d->serial ? d->serial : serial, .write_through = d->write_through,
			.logical_bytes = d->logical_bytes, .physical_bytes = d->physical_bytes,
		},
	};

	snprintf(serial, sizeof serial, "vixen-%u", (unsigned)(s - vm->disk));
	if (block_size(b) % disk_logical(&c.traits))
		return error_set(e, EINVAL, "leave the block size out, or resize the disk", "plug in a disk",
				 "the size of '%s' is no multiple of its logical block size", d->path);
	if (d->cdrom && block_size(b) < 2048)
		return error_set(e, EINVAL, "give an ISO image", "plug in a CD-ROM", "'%s' is smaller than a sector", d->path);
	return board_disk_add(vm->board, b, &c, &s->place, e);
}

static void disk_free(struct vm *vm, struct vm_slot *s)
{
	limits_drop(s);
	json_decref(s->owner);
	*s = (struct vm_slot){ .state = DISK_FREE };
}

static void disk_close(struct vm_slot *s)
{
	int ret = block_close(s->block);

	if (ret)
		fprintf(stderr, "vixen: close disk '%s' failed: %s; check the file system that holds the image\n", s->spec.path,
			strerror(-ret));
	s->block = NULL;
	limits_drop(s);
}

/* A guest that resets has given up what it was asked for. */
int disks_plug(struct vm *vm, struct error *e)
{
	int ret = 0;

	for (unsigned i = 0; i < VM_DISKS_MAX && !ret; i++) {
		struct vm_slot *s = &vm->disk[i];

		s->place = NULL;
		if (s->state == DISK_LEAVING) {
			struct control_call *call = s->call;

			loop_timer_free(s->timer);
			while (s->looking && !loop_step(vm->loop))
				;
			disk_close(s);
			disk_free(vm, s);
			control_reply(call, NULL);
		} else if (s->state == DISK_PLUGGED) {
			ret = disk_plug(vm, s, e);
		}
	}
	return ret;
}

/* --- the end --- */

static void on_flushed(void *opaque, int ret)
{
	struct vm *vm = opaque;

	if (ret < 0 && ret != -EROFS)
		fprintf(stderr, "vixen: flush a disk failed: %s; check the file system that holds the image\n",
			strerror(-ret));
	vm->flushes--;
}

void disks_flush(struct vm *vm)
{
	limits_end(vm);
	disk_jobs_end(vm);
	for (unsigned i = 0; i < VM_DISKS_MAX; i++) {
		struct vm_slot *s = &vm->disk[i];

		if (!s->block || s->state == DISK_CLOSING || block_readonly(s->block) || s->spec.ephemeral)
			continue;
		vm->flushes++;
		block_flush(s->block, on_flushed, vm);
	}
	while ((vm->flushes || vm->disk_jobs) && !loop_step(vm->loop))
		;
}

void disks_close(struct vm *vm)
{
	const struct error gone = { .what = "detach a disk", .why = "the VM has ended" };

	for (unsigned i = 0; i < VM_DISKS_MAX; i++) {
		struct vm_slot *s = &vm->disk[i];

		if (s->state == DISK_LEAVING) {
			loop_timer_free(s->timer);
			control_fail(s->call, -ECANCELED, &gone);
		}
		if (s->block)
			disk_close(s);
		disk_free(vm, s);
	}
}

/* --- what others ask --- */

struct vm_slot *disk_find(struct vm *vm, const char *name)
{
	for (unsigned i = 0; i < VM_DISKS_MAX; i++)
		if (vm->disk[i].state >= DISK_PLUGGED && !strcmp(vm->disk[i].name, name))
			return &vm->disk[i];
	return NULL;
}

static bool named(const struct block *b, const char *name)
{
	const char *path = block_path(b), *slash = strrchr(path, '/');

	return !strcmp(path, name) || (slash && !strcmp(slash + 1, name));
}

int disk_lookup(struct vm *vm, const char *name, struct vm_slot **out, struct error *e)
{
	char full[sizeof vm->disk->name];

	snprintf(full, sizeof full, "disk%s", name);
	*out = disk_find(vm, name);
	if (!*out && strlen(name) < 4)
		*out = disk_find(vm, full);
	if (*out)
		return 0;
	for (struct vm_slot *s = vm->disk; s < vm->disk + VM_DISKS_MAX; s++) {
		if (s->state < DISK_PLUGGED || !named(s->block, name))
			continue;
		if (*out)
			return error_set(e, EINVAL, "give its name, see vixen disk list", "find the disk",
					 "there are several '%.100s'", name);
		*out = s;
	}
	return *out ? 0 : error_set(e, ENOENT, "see vixen disk list", "find the disk", "there is no disk '%.100s'", name);
}

void disk_changed(struct vm_slot *s)
{
	if (s->place)
		board_disk_changed(s->place);
}

void disk_resized(struct vm_slot *s)
{
	if (s->place)
		board_disk_resized(s->place);
}

json_t *disks_json(struct vm *vm)
{
	json_t *list = json_array();

	for (unsigned i = 0; i < VM_DISKS_MAX; i++) {
		const struct vm_slot *s = &vm->disk[i];

		if (s->state != DISK_PLUGGED && s->state != DISK_LEAVING)
			continue;
		json_t *j = json_pack("{s:s, s:o*, s:s, s:s, s:I, s:b, s:b}", "name", s->name, "path",
						      json_string(block_path(s->block)), "format", block_format(s->block), "bus",
						      s->spec.cdrom ? "cdrom" : vm_bus_names[s->spec.bus], "size_bytes",
						      (json_int_t)block_size(s->block), "readonly", block_readonly(s->block),
						      "ephemeral", s->spec.ephemeral);
		limits_json(s, j);
		json_array_append_new(list, j);
	}
	return list;
}

/* --- files that come along --- */

static int file_take(struct block_fd *out, json_t *name, int *fd)
{
	const char *s = json_string_value(name);
	char *copy = s ? strdup(s) : NULL;

	if (!copy)
		return s ? -ENOMEM : -EINVAL;
	*out = (struct block_fd){ copy, *fd };
	*fd = -1;
	return 0;
}

int disk_files_take(struct control_call *call, json_t *arguments, struct block_fd *out, unsigned max, const char *what,
		    struct error *e)
{
	json_t *names = json_object_get(arguments, "files");
	int *fds, ret = 0;
	unsigned n = control_fds(call, &fds), taken = 0;

	if (n != json_array_size(names) || n > max)
		ret = -EINVAL;
	while (!ret && taken < n) {
		ret = file_take(&out[taken], json_array_get(names, taken), &fds[taken]);
		taken += !ret;
	}
	if (!ret)
		return (int)n;
	block_fds_free(out, taken);
	return error_set(e, -ret, "both sides must be of one version of vixen", what,
			 ret == -ENOMEM ? "out of memory" : "its files and their names do not agree");
}

/* --- attaching --- */

struct attaching {
	struct vm *vm;
	struct vm_slot *slot;
	struct control_call *call;
	unsigned nfiles;
	struct block_fd file[CONTROL_FDS_MAX];	/* ours */
};

/* After the sandbox no ring can be made: one that is there is shared, or threads do the work. */
static int attach_open(struct attaching *a, struct error *e)
{
	struct vm_slot *s = a->slot;
	struct block_options o = {
		.format = s->spec.format, .fds = a->file, .nfds = a->nfiles,
		.flags = BLOCK_FDS_ONLY | BLOCK_NO_IO_URING | (s->spec.readonly ? BLOCK_READONLY : 0),
	};

	for (unsigned i = 0; i < VM_DISKS_MAX && !o.beside; i++)
		if (a->vm->disk[i].state == DISK_PLUGGED)
			o.beside = a->vm->disk[i].block;
	return block_open_with(&s->block, a->vm->loop, s->spec.path, &o, e);
}

static void attaching_free(struct attaching *a)
{
	if (a)
		block_fds_free(a->file, a->nfiles);
	free(a);
}

static void attach_main(void *opaque)
{
	struct attaching *a = opaque;
	struct vm_slot *s = a->slot;
	struct error e = { 0 };
	int ret = attach_open(a, &e);

	if (!ret)
		ret = disk_start(s, &e);
	if (!ret)
		ret = a->vm->board ? disk_plug(a->vm, s, &e) : 0;	/* none: the next one gets it */
	if (ret) {
		if (s->block)
			block_close(s->block);
		disk_free(a->vm, s);
		control_fail(a->call, ret, &e);
	} else {
		s->state = DISK_PLUGGED;
		control_reply(a->call, json_pack("{s:s}", "name", s->name));
	}
	a->vm->disk_jobs--;
	attaching_free(a);
}

/* {"disk": as in the configuration, "files": paths of the descriptors} */
static int attach_read(struct attaching *a, struct vm_slot *s, json_t *arguments, struct error *e)
{
	int ret = vm_disk_decode(&s->spec, json_object_get(arguments, "disk"), e);

	if (ret)
		return ret;
	if (s->spec.ephemeral)
		return error_set(e, ENOTSUP, "attach a linked clone of it (vixen image clone)", "attach a disk",
				 "a running VM can make no file for what would be written to an ephemeral disk");
	ret = disk_files_take(a->call, arguments, a->file, CONTROL_FDS_MAX, "attach a disk", e);
	a->nfiles = ret < 0 ? 0 : (unsigned)ret;
	return ret < 0 ? ret : 0;
}

static struct vm_slot *slot_take(struct vm *vm)
{
	struct vm_slot *s = vm->disk;

	while (s < vm->disk + VM_DISKS_MAX && s->state != DISK_FREE)
		s++;
	if (s == vm->disk + VM_DISKS_MAX)
		return NULL;
	s->state = DISK_OPENING;
	s->vm = vm;
	snprintf(s->name, sizeof s->name, "disk%u", (unsigned)(s - vm->disk));
	return s;
}

void verb_disk_attach(struct vm *vm, struct control_call *call, json_t *arguments)
{
	struct attaching *a = calloc(1, sizeof *a);
	struct vm_slot *s = slot_take(vm);
	struct error e = { 0 };
	int ret = a && s ? 0 : error_set(&e, ENOSPC, "detach one first", "attach a disk", "it has %u disks", VM_DISKS_MAX);

	if (!ret) {
		*a = (struct attaching){ .vm = vm, .slot = s, .call = call };
		s->owner = json_incref(arguments);
		vm->disk_jobs++;
		ret = attach_read(a, s, arguments, &e);
		if (!ret)
			ret = co_start(loop_coroutines(vm->loop), attach_main, a);
		if (!ret)
			return;
		vm->disk_jobs--;
	}
	if (s)
		disk_free(vm, s);
	attaching_free(a);
	control_fail(call, ret, &e);
}

/* --- detaching --- */

static void detach_close(void *opaque)
{
	struct vm_slot *s = opaque;
	struct vm *vm = s->vm;
	struct control_call *call = s->call;
	struct error e = { 0 };
	int ret, close_ret;

	while (s->looking)
		co_queue_wait(loop_coroutines(vm->loop), &s->looked);
	limits_let_go(s);
	ret = block_co_flush(s->block);
	close_ret = block_close(s->block);
	if (ret || close_ret)
		error_errno(&e, -(ret ? ret : close_ret), "check the file system that holds the image", "close disk '%s'",
			    s->spec.path);
	disk_free(vm, s);
	vm->disk_jobs--;
	if (ret || close_ret)
		control_fail(call, ret ? ret : close_ret, &e);
	else
		control_reply(call, NULL);
}

static void detach_start(void *opaque)
{
	struct vm_slot *s = opaque;

	loop_timer_free(s->timer);
	s->timer = NULL;
	if (co_start(loop_coroutines(s->vm->loop), detach_close, s)) {	/* closed when the VM ends */
		s->vm->disk_jobs--;
		control_fail(s->call, -ENOMEM, &(struct error){ .what = "close the disk", .why = "out of memory" });
	}
}

static void detach_refused(struct vm_slot *s, int ret, const struct error *e)
{
	struct control_call *call = s->call;

	loop_timer_free(s->timer);
	s->timer = NULL;
	s->call = NULL;
	s->state = DISK_PLUGGED;
	control_fail(call, ret, e);
}

static void on_removed(void *opaque, int ret)
{
	struct vm_slot *s = opaque;
	struct error e = { 0 };

	if (!ret) {
		s->place = NULL;
		s->state = DISK_CLOSING;
		s->vm->disk_jobs++;
		loop_post(s->vm->loop, detach_start, s);
		return;
	}
	error_set(&e, -ret, "unmount it in the guest", "detach a disk", "the guest refuses to give up '%s'", s->name);
	detach_refused(s, ret, &e);
}

static void on_timeout(void *opaque)
{
	struct vm_slot *s = opaque;
	struct error e = { 0 };

	if (s->state != DISK_LEAVING)
		return;
	board_disk_remove_cancel(s->place);
	error_set(&e, ETIMEDOUT, "does it run an operating system that knows ACPI hot plug?", "detach a disk",
		  "the guest did not give up '%s' in time; it keeps it", s->name);
	detach_refused(s, -ETIMEDOUT, &e);
}

static int detach_good(struct vm_slot *s, struct error *e)
{
	if (s->state != DISK_PLUGGED || !s->place)
		return error_set(e, EBUSY, "wait for that", "detach a disk", "'%s' is on its way already", s->name);
	if (s->job)
		return error_set(e, EBUSY, "wait for its end, or cancel it (vixen disk cancel)", "detach a disk",
				 "a job on '%s' is under way", s->name);
	s->timer = loop_timer_new(s->vm->loop, on_timeout, s);
	return s->timer ? 0 : error_errno(e, ENOMEM, NULL, "detach a disk");
}

/* {"name": as for disk_lookup(), "timeout_s"} */
void verb_disk_detach(struct vm *vm, struct control_call *call, json_t *arguments)
{
	const char *name = "";
	json_int_t timeout = 10;
	struct error e = { 0 };
	struct vm_slot *s;
	int ret;

	json_unpack(arguments, "{s:s, s?I}", "name", &name, "timeout_s", &timeout);
	ret = disk_lookup(vm, name, &s, &e);
	if (!ret)
		ret = detach_good(s, &e);
	if (ret) {
		control_fail(call, ret, &e);
		return;
	}
	s->call = call;
	s->state = DISK_LEAVING;
	loop_timer_set(s->timer, clock_now_ns() + (uint64_t)(timeout < 1 ? 1 : timeout > 86400 ? 86400 : timeout) * 1000000000u);
	board_disk_remove(s->place, on_removed, s);
}
