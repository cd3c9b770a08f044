/*
 * The control socket of a VM: what other processes of this user may ask of it (proto/control.h).
 *
 * Owner: struct vm. Thread: the loop's. Clients of another user are turned away, root's are not.
 */
#ifndef VIXEN_VMM_CONTROL_H
#define VIXEN_VMM_CONTROL_H

#include <jansson.h>
#include <stdint.h>

#include "base/error.h"
#include "proto/control.h"

struct vm;
struct loop;
struct control;
struct control_call;	/* one request, from its handler's start to its answer */

/* listen_fd: a listening Unix socket; stays the caller's. -errno with e filled in. */
int control_new(struct control **out, struct loop *l, int listen_fd, struct vm *vm, struct error *e);
/* Calls under way may still be answered afterwards: nobody hears it. NULL is fine. */
void control_free(struct control *c);

/* The answer, which frees the call; exactly one, now or later. result: stolen, NULL stands for {}. */
void control_reply(struct control_call *call, json_t *result);
void control_fail(struct control_call *call, int ret, const struct error *e);	/* ret: -errno */
/* The descriptors that came along with the request, until its handler returns; one that is kept is replaced by -1. */
unsigned control_fds(struct control_call *call, int **fds);
void control_progress(struct control_call *call, uint64_t done, uint64_t total);

/* The handlers, one for each verb (control_verbs.c). arguments: the caller's, for as long as the handler runs. */
typedef void control_handler_fn(struct vm *vm, struct control_call *call, json_t *arguments);
control_handler_fn verb_disk_attach, verb_disk_detach;		/* disks.c */
control_handler_fn verb_disk_throttle;				/* limits.c */
control_handler_fn verb_disk_list, verb_disk_backup, verb_disk_mirror, verb_disk_stream, verb_disk_snapshot,
	verb_disk_commit, verb_disk_resize, verb_disk_bitmap, verb_disk_complete, verb_disk_rate,
	verb_disk_cancel;	/* disk_jobs.c */
extern control_handler_fn *const control_handlers[CONTROL_VERBS];

#endif
