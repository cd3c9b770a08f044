#include "vmm/disk_jobs.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/log.h"
#include "block/live.h"
#include "host/loop.h"
#include "vmm/control.h"
#include "vmm/vm_private.h"

#define PROGRESS_NS 100000000ull
#define JOB_FILES_MAX 8u

struct disk_job {
	struct vm *vm;
	struct vm_slot *slot;
	const char *kind;
	int (*fn)(struct disk_job *k);
	struct control_call *call;	/* who waits for the end; NULL: nobody */
	bool opens;			/* the target, as a disk */
	bool detach;			/* answered when it has started */
	bool shrink, force;
	unsigned layers;		/* that are committed */
	char *target_path, *format, *bitmap, *name;
	struct block_fd file[JOB_FILES_MAX];	/* what came along; ours */
	unsigned nfiles;
	struct block *target;
	struct block_job job;
	struct live_backup backup;
	struct live_mirror mirror;
	uint64_t size_bytes, done, total, told_ns;
	struct error e;
};

/* --- what there is --- */

static json_t *job_json(const struct disk_job *k)
{
	if (!k)
		return NULL;
	return json_pack("{s:s, s:o, s:I, s:I, s:I, s:b}", "kind", k->kind, "target",
			 k->target_path ? json_string(k->target_path) : json_null(), "done", (json_int_t)k->done, "total",
			 (json_int_t)k->total, "rate", (json_int_t)k->job.rate_bytes, "ready", k->mirror.ready);
}

/* --- the life of a job --- */

static void job_free(struct disk_job *k)
{
	block_fds_free(k->file, k->nfiles);
	free(k->target_path);
	free(k->format);
	free(k->bitmap);
	free(k->name);
	free(k);
}

static void on_progress(void *opaque, uint64_t done, uint64_t total)
{
	struct disk_job *k = opaque;
	uint64_t now = clock_now_ns();

	k->done = done;
	k->total = total;
	if (!k->call || now - k->told_ns < PROGRESS_NS)
		return;
	k->told_ns = now;
	control_progress(k->call, done, total);
}

/* Waiting for the end, or told that it has begun: whichever is asked for. */
static void answer(struct disk_job *k, int ret)
{
	struct control_call *call = k->call;

	k->call = NULL;
	if (call && ret)
		control_fail(call, ret, &k->e);
	else if (call)
		control_reply(call, json_pack("{s:I}", "bytes", (json_int_t)k->done));
	else if (ret)
		log_warn("%s of disk '%s' ended early: %s%s%s", k->kind, block_path(k->slot->block), k->e.why,
			 k->target_path ? "; what there is of the copy is of no use: " : "",
			 k->target_path ? k->target_path : "");
}

static int target_open(struct disk_job *k, unsigned flags)
{
	struct block_options o = { .format = k->format, .flags = flags | BLOCK_FDS_ONLY, .fds = k->file, .nfds = k->nfiles,
				   .beside = k->slot->block };

	return k->opens && k->target_path ? block_open_with(&k->target, k->vm->loop, k->target_path, &o, &k->e) : 0;
}

static int target_close(struct disk_job *k, int ret)
{
	int closed = block_close(k->target);

	k->target = NULL;
	return !ret && closed ? error_errno(&k->e, -closed, "check the host's disk", "close '%s'", k->target_path) : ret;
}

static void job_main(void *opaque)
{
	struct disk_job *k = opaque;
	int ret = target_open(k, BLOCK_NO_BACKING);

	if (!ret && k->detach)
		answer(k, 0);
	if (!ret)
		ret = target_close(k, k->fn(k));
	if (ret == -ECANCELED)
		error_set(&k->e, ECANCELED, NULL, k->kind, "it was cancelled");
	k->slot->job = NULL;
	answer(k, ret);
	job_free(k);
}

static void job_cancel(struct disk_job *k)
{
	struct vm_slot *s = k->slot;

	k->job.cancel = true;
	live_job_kick(s->block, &k->job);
	if (s->job == k && k->target)		/* else it has ended, and k is gone */
		block_interrupt(k->target);
}

void disk_jobs_end(struct vm *vm)
{
	bool any;

	do {
		any = false;
		for (unsigned i = 0; i < VM_DISKS_MAX; i++) {
			struct disk_job *k = vm->disk[i].job;

			if (k && !k->job.cancel)
				job_cancel(k);
			any |= k != NULL;
		}
	} while (any && !loop_step(vm->loop));
}

/* --- requests --- */

static char *text(json_t *arguments, const char *key)
{
	const char *s = json_string_value(json_object_get(arguments, key));

	return s && *s ? strdup(s) : NULL;
}

static int wrong(struct error *e, const char *what, const char *why)
{
	return error_set(e, EINVAL, "both sides must be of one version of vixen", what, "%s", why);
}

static int job_fill(struct disk_job *k, json_t *arguments)
{
	const char *disk = json_string_value(json_object_get(arguments, "disk"));
	int ret = disk ? disk_lookup(k->vm, disk, &k->slot, &k->e) : wrong(&k->e, k->kind, "it names no disk");

	if (ret)
		return ret;
	k->target_path = text(arguments, "target");
	k->format = text(arguments, "format");
	k->bitmap = text(arguments, "bitmap");
	k->name = text(arguments, "name");
	k->detach = json_is_true(json_object_get(arguments, "detach"));
	k->layers = (unsigned)json_integer_value(json_object_get(arguments, "layers"));
	k->shrink = json_is_true(json_object_get(arguments, "shrink"));
	k->force = json_is_true(json_object_get(arguments, "force"));
	k->size_bytes = (uint64_t)json_integer_value(json_object_get(arguments, "size_bytes"));
	k->backup = (struct live_backup){ k->bitmap, json_is_true(json_object_get(arguments, "incremental")) };
	k->mirror.pivot = json_is_true(json_object_get(arguments, "pivot"));
	k->mirror.finish = !json_is_true(json_object_get(arguments, "follow"));
	k->job.rate_bytes = (uint64_t)json_integer_value(json_object_get(arguments, "rate"));
	k->job.progress = on_progress;
	k->job.opaque = k;
	if (k->slot->state != DISK_PLUGGED)
		return error_set(&k->e, EBUSY, "wait for that", k->kind, "the disk is being detached");
	if (k->slot->job)
		return error_set(&k->e, EBUSY, "wait for its end, or cancel it", k->kind,
				 "another job on this disk is under way");
	return k->target_path && !k->nfiles && !block_path_remote(k->target_path) ? wrong(&k->e, k->kind, "its target was not sent along") : 0;
}

/* What comes with a request: nothing or a disk, as it says; a disk; a file that is no disk by itself. */
enum target { TARGET_MAYBE, TARGET_DISK, TARGET_FILE };

static void start(struct vm *vm, struct control_call *call, json_t *arguments, const char *kind,
		  int (*fn)(struct disk_job *k), enum target target)
{
	struct disk_job *k = calloc(1, sizeof *k);
	struct error e;
	int ret;

	if (!k) {
		error_set(&e, ENOMEM, NULL, kind, "out of memory");
		control_fail(call, -ENOMEM, &e);
		return;
	}
	*k = (struct disk_job){ .vm = vm, .kind = kind, .fn = fn, .call = call, .opens = target != TARGET_FILE };
	ret = disk_files_take(call, arguments, k->file, JOB_FILES_MAX, kind, &k->e);
	k->nfiles = ret < 0 ? 0 : (unsigned)ret;
	if (ret >= 0)
		ret = job_fill(k, arguments);
	if (!ret && target >= TARGET_DISK && !k->target_path)
		ret = wrong(&k->e, kind, "it names no target");
	if (!ret) {
		k->slot->job = k;
		ret = co_start(loop_coroutines(vm->loop), job_main, k);
		if (!ret)
			return;
		k->slot->job = NULL;
		error_set(&k->e, ENOMEM, NULL, kind, "out of memory");
	}
	answer(k, ret);
	job_free(k);
}

/* --- the jobs --- */

static struct block *disk_of(struct disk_job *k) { return k->slot->block; }

/* The disk stands on something else now, if that went well. */
static int changed(struct disk_job *k, int ret)
{
	if (!ret)
		disk_changed(k->slot);
	return ret;
}

static int do_backup(struct disk_job *k)
{
	return live_backup(&k->job, disk_of(k), k->target, &k->backup, &k->e);
}
static int do_mirror(struct disk_job *k)
{
	int ret = live_mirror(&k->job, disk_of(k), k->target, &k->mirror, &k->e);

	return k->mirror.pivot ? changed(k, ret) : ret;
}
static int do_stream(struct disk_job *k) { return live_stream(&k->job, disk_of(k), &k->e); }

static int do_snapshot(struct disk_job *k)
{
	if (k->target)
		return changed(k, live_snapshot(disk_of(k), k->target, &k->e));
	return block_snapshot_create(disk_of(k), k->name ? k->name : "", &k->e);
}

static int do_commit(struct disk_job *k)
{
	const struct block_options o = { .fds = k->file, .nfds = k->nfiles };

	struct block_info i;

	if (block_info(disk_of(k), k->layers, &i) || strcmp(i.path, k->target_path))
		return wrong(&k->e, k->kind, "its layers have changed meanwhile");
	return changed(k, live_commit(&k->job, disk_of(k), k->layers, &o, &k->e));
}

static unsigned resize_flags(const struct disk_job *k)
{
	return !k->shrink ? 0 : k->force ? BLOCK_SHRINK : BLOCK_SHRINK | BLOCK_SHRINK_EMPTY;
}

static int do_resize(struct disk_job *k)
{
	uint32_t logical = k->slot->spec.logical_bytes ? k->slot->spec.logical_bytes : 512;
	int ret = k->size_bytes % logical ? error_set(&k->e, EINVAL, NULL, "resize the disk",
						      "its size must be a multiple of its logical block size, %u bytes", logical)
					  : block_resize(disk_of(k), k->size_bytes, resize_flags(k), &k->e);

	if (!ret)
		disk_resized(k->slot);
	return ret;
}

static int do_bitmap_add(struct disk_job *k)
{
	return block_bitmap_add(disk_of(k), k->bitmap, (uint32_t)k->size_bytes, &k->e);
}
static int do_bitmap_remove(struct disk_job *k) { return block_bitmap_remove(disk_of(k), k->bitmap, &k->e); }
static int do_bitmap_clear(struct disk_job *k) { return block_bitmap_clear(disk_of(k), k->bitmap, &k->e); }
static int do_bitmap_merge(struct disk_job *k)
{
	return block_bitmap_merge(disk_of(k), k->bitmap, k->name ? k->name : "", &k->e);
}

/* --- the verbs --- */

static json_t *chain_json(struct block *b)
{
	json_t *list = json_array();
	struct block_info i;

	for (unsigned depth = 0; !block_info(b, depth, &i); depth++)
		json_array_append_new(list, json_pack("{s:o*, s:s, s:I, s:b}", "path", json_string(i.path), "format",
						      i.format, "size_bytes", (json_int_t)i.size_bytes, "encrypted",
						      i.encrypted));
	return list;
}

static json_t *bitmaps_json(struct block *b)
{
	struct block_bitmap *list = NULL;
	json_t *j = json_array();
	unsigned n = 0;

	if (block_bitmap_list(b, &list, &n, NULL))
		n = 0;
	for (unsigned i = 0; i < n; i++)
		json_array_append_new(j, json_pack("{s:o*, s:I, s:b, s:I}", "name", json_string(list[i].name), "granularity",
						   (json_int_t)list[i].granularity, "tracking", list[i].tracking,
						   "dirty_bytes", (json_int_t)list[i].dirty_bytes));
	free(list);
	return j;
}

struct listing { struct vm *vm; struct control_call *call; };

/* Waits for the image: meanwhile the disk is not closed. */
static void slot_describe(struct vm_slot *s, json_t *d)
{
	s->looking++;
	if (s->vm->folder)
		json_object_set_new(d, "folder", json_string(s->vm->folder));
	json_object_set_new(d, "chain", chain_json(s->block));
	json_object_set_new(d, "bitmaps", bitmaps_json(s->block));
	if (s->job)
		json_object_set_new(d, "job", job_json(s->job));
	if (!--s->looking)
		co_queue_wake_all(loop_coroutines(s->vm->loop), &s->looked);
}

static void list_main(void *opaque)
{
	struct listing *l = opaque;
	json_t *list = disks_json(l->vm), *d;
	size_t i;

	json_array_foreach(list, i, d) {
		struct vm_slot *s = disk_find(l->vm, json_string_value(json_object_get(d, "name")));

		if (s && s->state == DISK_PLUGGED)
			slot_describe(s, d);
	}
	control_reply(l->call, json_pack("{s:o}", "disks", list));
	l->vm->disk_jobs--;
	free(l);
}

/* Paths are as the VM has them: from its folder on, if they are relative.
 * -> {"disks": [as in status, and for what is not being detached: "folder"?, "chain", "bitmaps", "job"?]} */
void verb_disk_list(struct vm *vm, struct control_call *call, json_t *arguments)
{
	struct listing *l = malloc(sizeof *l);
	struct error e;

	if (l)
		*l = (struct listing){ vm, call };
	vm->disk_jobs++;
	if (l && !co_start(loop_coroutines(vm->loop), list_main, l))
		return;
	vm->disk_jobs--;
	free(l);
	error_set(&e, ENOMEM, NULL, "list the disks", "out of memory");
	control_fail(call, -ENOMEM, &e);
}

/* {"disk", "target", "format", "bitmap"?, "incremental"?, "rate"?, "detach"?, "files"}, and the target's files -> {"bytes"} */
void verb_disk_backup(struct vm *vm, struct control_call *call, json_t *arguments)
{
	start(vm, call, arguments, "backup", do_backup, TARGET_DISK);
}

/* {"disk", "target", "format", "pivot"?, "follow"?, "rate"?, "detach"?, "files"}, and the target's files -> {"bytes"} */
void verb_disk_mirror(struct vm *vm, struct control_call *call, json_t *arguments)
{
	start(vm, call, arguments, "mirror", do_mirror, TARGET_DISK);
}

/* {"disk", "rate"?, "detach"?} -> {"bytes"} */
void verb_disk_stream(struct vm *vm, struct control_call *call, json_t *arguments)
{
	start(vm, call, arguments, "stream", do_stream, TARGET_MAYBE);
}

/* {"disk", "name"} or {"disk", "target", "format", "files"} and the overlay's files -> {} */
void verb_disk_snapshot(struct vm *vm, struct control_call *call, json_t *arguments)
{
	start(vm, call, arguments, "snapshot", do_snapshot, TARGET_MAYBE);
}

/* {"disk", "target", "layers": that go into it, "rate"?, "files"}: the backing file's path as the list has it, and the file,
 * open for writing, unless it is on a server -> {"bytes"} */
void verb_disk_commit(struct vm *vm, struct control_call *call, json_t *arguments)
{
	start(vm, call, arguments, "commit", do_commit, TARGET_FILE);
}

/* {"disk", "size_bytes", "shrink"?, "force"?: whatever is past the new end} -> {} */
void verb_disk_resize(struct vm *vm, struct control_call *call, json_t *arguments)
{
	start(vm, call, arguments, "resize", do_resize, TARGET_MAYBE);
}

/* {"disk", "action", "bitmap", "name"?: the source, "size_bytes"?: the granularity} -> {} */
void verb_disk_bitmap(struct vm *vm, struct control_call *call, json_t *arguments)
{
	static const struct { const char *name; int (*fn)(struct disk_job *k); } actions[] = {
		{ "add", do_bitmap_add }, { "remove", do_bitmap_remove }, { "clear", do_bitmap_clear },
		{ "merge", do_bitmap_merge },
	};
	const char *action = json_string_value(json_object_get(arguments, "action"));
	struct error e;

	for (unsigned i = 0; action && i < sizeof actions / sizeof *actions; i++)
		if (!strcmp(action, actions[i].name) && json_string_value(json_object_get(arguments, "bitmap"))) {
			start(vm, call, arguments, "bitmap", actions[i].fn, TARGET_MAYBE);
			return;
		}
	control_fail(call, wrong(&e, "change a bitmap", "it does not say how, or which"), &e);
}

/* The job of the disk that a request names; NULL: it was answered. */
static struct disk_job *job_of(struct vm *vm, struct control_call *call, json_t *arguments, const char *what)
{
	const char *disk = json_string_value(json_object_get(arguments, "disk"));
	struct error e = { 0 };
	struct vm_slot *s = NULL;
	int ret = disk ? disk_lookup(vm, disk, &s, &e) : wrong(&e, what, "it names no disk");

	if (!ret && !s->job)
		ret = error_set(&e, ENOENT, "see vixen disk list", what, "there is no job on this disk");
	if (ret)
		control_fail(call, ret, &e);
	return ret ? NULL : s->job;
}

/* {"disk"} -> {} at once; whoever waits for the job hears of its end. */
void verb_disk_cancel(struct vm *vm, struct control_call *call, json_t *arguments)
{
	struct disk_job *k = job_of(vm, call, arguments, "cancel the job");

	if (!k)
		return;
	job_cancel(k);
	control_reply(call, NULL);
}

/* {"disk", "rate": bytes in a second, 0: no limit} -> {} */
void verb_disk_rate(struct vm *vm, struct control_call *call, json_t *arguments)
{
	struct disk_job *k = job_of(vm, call, arguments, "limit the job");
	json_int_t rate = json_integer_value(json_object_get(arguments, "rate"));

	if (!k)
		return;
	k->job.rate_bytes = rate < 0 ? 0 : (uint64_t)rate;
	live_job_kick(k->slot->block, &k->job);
	control_reply(call, NULL);
}

void verb_disk_complete(struct vm *vm, struct control_call *call, json_t *arguments)
{
	struct disk_job *k = job_of(vm, call, arguments, "complete the job");
	struct error e;

	if (!k)
		return;
	if (strcmp(k->kind, "mirror")) {
		error_set(&e, EINVAL, "wait for it, or cancel it", "complete the job", "it comes to its end by itself");
		control_fail(call, -EINVAL, &e);
		return;
	}
	k->mirror.finish = true;
	live_job_kick(k->slot->block, &k->job);
	control_reply(call, NULL);
}
