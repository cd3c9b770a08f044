/* The disks of a VM, by name: "disk0" ... The loop's thread. */
#ifndef VIXEN_VMM_DISKS_H
#define VIXEN_VMM_DISKS_H

#include <jansson.h>

#include "base/error.h"
#include "host/coroutine.h"
#include "vmm/vm_config.h"

struct vm;
struct loop_timer;
struct control_call;
struct board_disk;
struct disk_job;

/* From PLUGGED on a disk is found by its name. */
enum disk_state { DISK_FREE, DISK_OPENING, DISK_CLOSING, DISK_PLUGGED, DISK_LEAVING };

struct vm_group {
	char name[VM_GROUP_NAME_MAX + 1];
	struct block_group *shared;	/* NULL: unused */
	struct vm_limits limits;
	unsigned disks;
};

struct vm_slot {
	enum disk_state state;
	char name[16];
	struct vm_disk spec;
	json_t *owner;			/* of its strings; NULL: the configuration */
	struct block *block;
	struct board_disk *place;	/* on the board; NULL: there is none */
	struct vm *vm;
	struct block_group *own;	/* limits.c; NULL: never had limits of its own */
	struct vm_limits limits;
	struct vm_group *group;
	struct disk_job *job;		/* NULL: none; while there is one it is not detached */
	unsigned looking;		/* coroutines that wait for what they asked its block: it is not closed meanwhile */
	struct co_queue looked;		/* waits for none of these */
	/* LEAVING and CLOSING */
	struct control_call *call;
	struct loop_timer *timer;
};

int disks_open(struct vm *vm, struct error *e);		/* those of the configuration */
int disks_plug(struct vm *vm, struct error *e);		/* into a new board */
void disks_flush(struct vm *vm);	/* what the guest wrote reaches the host's disk; runs the loop */
void disks_close(struct vm *vm);	/* the board is gone */
struct vm_slot *disk_find(struct vm *vm, const char *name);	/* NULL: none */
/* "disk0" or "0" ... as in the list, or the image's path or the last part of it.  -ENOENT, -EINVAL with e set. */
int disk_lookup(struct vm *vm, const char *name, struct vm_slot **out, struct error *e);
void disk_resized(struct vm_slot *s);	/* block_size() has changed: the guest is told */
void disk_changed(struct vm_slot *s);	/* it may stand on another image: what follows from that is shown to the guest */
json_t *disks_json(struct vm *vm);

struct block_fd;
/* The descriptors that came with a request to do `what`, by the names that its "files" has for them. How many, which are the
 * caller's then (block_fds_free()); -errno with e set. */
int disk_files_take(struct control_call *call, json_t *arguments, struct block_fd *out, unsigned max, const char *what,
		    struct error *e);

/* limits.c */
int limits_start(struct vm_slot *s, struct error *e);	/* those of its spec; s->block is open */
void limits_drop(struct vm_slot *s);			/* s->block is closed */
void limits_json(const struct vm_slot *s, json_t *j);
void limits_let_go(struct vm_slot *s);	/* no limits any more, and what waits for space fails */
void limits_end(struct vm *vm);		/* of all disks */
void space_watch(struct vm_slot *s);	/* the VM pauses when the host has no space for it */
void space_retry(struct vm *vm);

#endif
