/* Jobs on a disk that a guest writes to meanwhile: what the targets hold, what is left when they end early. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>
#include <errno.h>
#include <fcntl.h>

#include "block/block_private.h"
#include "block/guard.h"
#include "block/live.h"
#include "disk.h"
#include "host/loop.h"

#define SIZE (8u << 20)
#define BLOCK 4096u
#define WRITERS 4u

struct fixture {
	struct loop *loop;
	struct coroutines *co;
	char dir[64];
	struct block *disk, *target;
	struct block_job job;
	struct live_mirror mirror;
	struct live_backup backup;
	struct error e;
	int (*fn)(struct fixture *f);
	uint8_t *model, *start;		/* what the disk holds; what it held when the job started */
	bool stop, started, cancels;
	unsigned writers, writes;
	struct co_queue ended;
	int job_ret;
};

/* --- letting others run: what the page cache answers at once never waits --- */

struct turn { struct fixture *f; struct co *self; };

static void turn_over(void *opaque)
{
	struct turn *t = opaque;

	co_wake(t->f->co, t->self);
}

static void yield(struct fixture *f)
{
	struct turn t = { f, co_self(f->co) };

	loop_post(f->loop, turn_over, &t);
	co_wait(f->co);
}

/* --- the guest: each writer has blocks of its own, neighbours in every granule --- */

struct writer { struct fixture *f; unsigned index; };

static int change(struct fixture *f, uint64_t at, uint8_t *buf)
{
	unsigned kind = (unsigned)random() % 8;
	int ret;

	memset(buf, kind ? (int)random() : 0, BLOCK);
	if (kind)
		ret = block_co_write(f->disk, at, buf, BLOCK);
	else
		ret = block_co_write_zeroes(f->disk, at, BLOCK, random() % 2);
	memcpy(f->model + at, buf, BLOCK);
	return ret;
}

static int look(struct fixture *f, uint64_t at, uint8_t *buf)
{
	int ret = block_co_read(f->disk, at, buf, BLOCK);

	if (!ret && memcmp(buf, f->model + at, BLOCK))
		die("the guest reads at %lu what it did not write", at);
	return ret;
}

static void writer_main(void *opaque)
{
	struct writer *w = opaque;
	struct fixture *f = w->f;
	uint8_t buf[BLOCK];

	while (!f->stop) {
		uint64_t at = ((uint64_t)random() % (SIZE / BLOCK / WRITERS) * WRITERS + w->index) * BLOCK;
		int ret = random() % 4 ? change(f, at, buf) : look(f, at, buf);

		if (!ret && random() % 64 == 0)
			ret = block_co_flush(f->disk);
		assert_int_equal(ret, 0);
		f->writes++;
		yield(f);
	}
	free(w);
	if (!--f->writers)
		co_queue_wake_all(f->co, &f->ended);
}

static void guest_start(struct fixture *f)
{
	f->stop = false;
	f->writes = 0;
	for (unsigned i = 0; i < WRITERS; i++) {
		struct writer *w = malloc(sizeof(*w));

		*w = (struct writer){ f, i };
		f->writers++;
		assert_int_equal(co_start(f->co, writer_main, w), 0);
	}
}

static void guest_stop(struct fixture *f)
{
	f->stop = true;
	while (f->writers)
		co_queue_wait(f->co, &f->ended);
}

/* --- fixture --- */

static int setup(void **state)
{
	struct fixture *f = calloc(1, sizeof(*f));

	f->loop = loop_new();
	f->co = loop_coroutines(f->loop);
	go_to_folder(f->dir);
	f->model = calloc(1, SIZE);
	f->start = calloc(1, SIZE);
	srandom(1);
	*state = f;
	return 0;
}

static int teardown(void **state)
{
	struct fixture *f = *state;

	loop_free(f->loop);
	free(f->model);
	free(f->start);
	if (shell("rm -r %s", f->dir))
		return -1;
	free(f);
	return 0;
}

static void create(struct fixture *f, const char *name, struct block_create c)
{
	c.size_bytes = c.size_bytes ? c.size_bytes : SIZE;
	assert_int_equal(block_create(f->loop, name, strstr(name, ".raw") ? "raw" : "qcow2", &c, &f->e), 0);
}

static struct block *open_disk(struct fixture *f, const char *name, unsigned flags)
{
	struct block *b;

	if (block_open(&b, f->loop, name, strstr(name, ".raw") ? "raw" : "qcow2", flags, &f->e))
		die("%s: %s", f->e.what, f->e.why);
	return b;
}

static int fill(void *opaque)
{
	struct fixture *f = opaque;

	for (uint64_t at = 0; at < SIZE; at += 65536) {
		memset(f->model + at, (int)random(), 65536);
		if (random() % 3 == 0)
			memset(f->model + at, 0, 65536);
		else if (block_co_write(f->disk, at, f->model + at, 65536))
			return -EIO;
	}
	return 0;
}

static void prepare(struct fixture *f, const char *disk, const char *target)
{
	create(f, disk, (struct block_create){ 0 });
	f->disk = open_disk(f, disk, 0);
	assert_int_equal(block_run(f->loop, fill, f), 0);
	if (target) {
		create(f, target, (struct block_create){ 0 });
		f->target = open_disk(f, target, 0);
	}
	f->job = (struct block_job){ .parallel = 3 };
	f->mirror = (struct live_mirror){ 0 };
	f->backup = (struct live_backup){ 0 };
}

static void close_all(struct fixture *f)
{
	assert_int_equal(block_close(f->disk), 0);
	assert_int_equal(block_close(f->target), 0);
	f->disk = f->target = NULL;
}

static void holds(struct fixture *f, const char *name, const uint8_t *want)
{
	struct disk d = { .loop = f->loop };
	uint8_t *got = malloc(SIZE);

	disk_open(&d, name, &(struct block_options){ .format = strstr(name, ".raw") ? "raw" : "qcow2",
						     .flags = BLOCK_READONLY });
	assert_int_equal(disk_read(&d, 0, got, SIZE), 0);
	for (unsigned at = 0; at < SIZE; at += 512)
		if (memcmp(got + at, want + at, 512))
			die("%s: differs at %u", name, at);
	disk_close(&d);
	free(got);
	if (have_qemu() && !strstr(name, ".raw"))
		assert_int_equal(shell("qemu-img check %s", name), 0);
}

/* --- a target that takes its time: the guest writes between any two pieces --- */

struct slow { struct node_ops ops; const struct node_ops *real; struct fixture *f; };

static int slow_writev(struct node *n, uint64_t offset, const struct iovec *iov, int iovcnt)
{
	const struct slow *s = (const struct slow *)n->ops;
	struct co_call c = { .s = s->f->co };

	for (unsigned i = 0; i < 10; i++)
		yield(s->f);
	s->real->writev(n, offset, iov, iovcnt, co_call_done, &c);
	return co_call_wait(&c);
}

static struct slow *slow_down(struct fixture *f, struct block *b)
{
	struct slow *s = malloc(sizeof(*s));

	*s = (struct slow){ *b->root->ops, b->root->ops, f };
	s->ops.writev = NULL;
	s->ops.co_writev = slow_writev;
	b->root->ops = &s->ops;
	return s;
}

static void speed_up(struct slow *s, struct block *b)
{
	b->root->ops = s->real;
	free(s);
}

/* --- backup --- */

/* The disk is at rest when the job starts: its moment is known. */
static int backup_main(void *opaque)
{
	struct fixture *f = opaque;
	int ret;

	memcpy(f->start, f->model, SIZE);
	guest_start(f);
	ret = live_backup(&f->job, f->disk, f->target, &f->backup, &f->e);
	guest_stop(f);
	return ret;
}

static void backup_between(struct fixture *f, const char *disk, const char *target)
{
	struct slow *s;

	prepare(f, disk, target);
	s = slow_down(f, f->target);
	assert_int_equal(block_run(f->loop, backup_main, f), 0);
	assert_true(f->writes > 20);
	speed_up(s, f->target);
	close_all(f);
	holds(f, target, f->start);
	holds(f, disk, f->model);
}

static void test_backup_raw(void **state) { backup_between(*state, "a.raw", "b.raw"); }
static void test_backup_qcow2(void **state) { backup_between(*state, "a.qcow2", "b.qcow2"); }

static void cancel_soon(void *opaque, uint64_t done, uint64_t total)
{
	struct fixture *f = opaque;

	f->job.cancel = done > total / 4;
}

static void test_backup_cancelled(void **state)
{
	struct fixture *f = *state;

	prepare(f, "a.qcow2", "b.qcow2");
	f->job.progress = cancel_soon;
	f->job.opaque = f;
	assert_int_equal(block_run(f->loop, backup_main, f), -ECANCELED);
	assert_false(node_is_guard(block_root(f->disk)));
	close_all(f);
	holds(f, "a.qcow2", f->model);
}

/* A target that fails fails the backup, not the guest. */
static void failing_writev(struct node *n, uint64_t offset, const struct iovec *iov, int iovcnt, block_done_fn *done,
			   void *opaque)
{
	(void)n;
	(void)offset;
	(void)iov;
	(void)iovcnt;
	done(opaque, -ENOSPC);
}

static void test_target_fails(void **state)
{
	struct fixture *f = *state;
	const struct node_ops *real;
	struct node_ops failing;

	prepare(f, "a.raw", "b.raw");
	real = f->target->root->ops;
	failing = *real;
	failing.writev = failing_writev;
	f->target->root->ops = &failing;
	assert_int_equal(block_run(f->loop, backup_main, f), -ENOSPC);
	assert_string_equal(f->e.what, "back the disk up");
	f->target->root->ops = real;
	close_all(f);
	holds(f, "a.raw", f->model);
}

/* --- full and incremental backups --- */

static void full(struct fixture *f, const char *name)
{
	create(f, name, (struct block_create){ 0 });
	f->target = open_disk(f, name, 0);
	f->backup = (struct live_backup){ .bitmap = "b" };
	assert_int_equal(block_run(f->loop, backup_main, f), 0);
	assert_int_equal(block_close(f->target), 0);
}

static int increment(struct fixture *f, const char *name, const char *on)
{
	int ret;

	create(f, name, (struct block_create){ .backing_path = on, .backing_format = "qcow2" });
	f->target = open_disk(f, name, BLOCK_NO_BACKING);
	f->backup = (struct live_backup){ .bitmap = "b", .incremental = true };
	ret = block_run(f->loop, backup_main, f);
	assert_int_equal(block_close(f->target), 0);
	f->target = NULL;
	return ret;
}

/* Each increment is a whole disk, by way of the one before it. */
static void test_full_and_increments(void **state)
{
	struct fixture *f = *state;
	uint8_t *was[4];

	prepare(f, "a.qcow2", NULL);
	full(f, "0.qcow2");
	memcpy(was[0] = malloc(SIZE), f->start, SIZE);
	assert_int_equal(increment(f, "1.qcow2", "0.qcow2"), 0);
	memcpy(was[1] = malloc(SIZE), f->start, SIZE);
	f->job.progress = cancel_soon;
	f->job.opaque = f;
	assert_int_equal(increment(f, "bad.qcow2", "1.qcow2"), -ECANCELED);
	f->job = (struct block_job){ 0 };
	assert_int_equal(increment(f, "2.qcow2", "1.qcow2"), 0);
	memcpy(was[2] = malloc(SIZE), f->start, SIZE);
	assert_int_equal(block_close(f->disk), 0);
	f->disk = open_disk(f, "a.qcow2", 0);
	assert_int_equal(increment(f, "3.qcow2", "2.qcow2"), 0);
	memcpy(was[3] = malloc(SIZE), f->start, SIZE);
	close_all(f);
	for (unsigned i = 0; i < 4; i++) {
		char name[16];

		snprintf(name, sizeof(name), "%u.qcow2", i);
		holds(f, name, was[i]);
		free(was[i]);
	}
	holds(f, "a.qcow2", f->model);
}

static int quiet_backup(void *opaque)
{
	struct fixture *f = opaque;
	uint8_t buf[BLOCK] = { 1 };
	int ret = block_co_write(f->disk, 1 << 20, buf, BLOCK);

	memcpy(f->model + (1 << 20), buf, BLOCK);
	return ret ? ret : live_backup(&f->job, f->disk, f->target, &f->backup, &f->e);
}

/* An increment costs what has changed: one write is one granule. */
static void test_increment_is_small(void **state)
{
	struct fixture *f = *state;
	struct disk d = { .loop = f->loop };
	struct block_status st;
	uint64_t copied = 0;

	prepare(f, "a.qcow2", NULL);
	full(f, "0.qcow2");
	assert_int_equal(increment(f, "1.qcow2", "0.qcow2"), 0);
	for (unsigned i = 2; i < 4; i++) {	/* what was written during the one before belongs to the next */
		char on[16], name[16];

		snprintf(on, sizeof(on), "%u.qcow2", i - 1);
		snprintf(name, sizeof(name), "%u.qcow2", i);
		create(f, name, (struct block_create){ .backing_path = on, .backing_format = "qcow2" });
		f->target = open_disk(f, name, BLOCK_NO_BACKING);
		assert_int_equal(block_run(f->loop, quiet_backup, f), 0);
		assert_int_equal(block_close(f->target), 0);
	}
	f->target = NULL;
	close_all(f);
	holds(f, "3.qcow2", f->model);
	disk_open(&d, "3.qcow2", &(struct block_options){ .format = "qcow2", .flags = BLOCK_READONLY });
	for (uint64_t at = 0; at < SIZE; at += st.len) {
		assert_int_equal(disk_status(&d, at, SIZE - at, 0, &st), 0);
		copied += st.flags & BLOCK_STATUS_ALLOCATED ? st.len : 0;
	}
	assert_int_equal(copied, 65536);
	disk_close(&d);
}

static void test_increment_without_a_bitmap(void **state)
{
	struct fixture *f = *state;

	prepare(f, "a.qcow2", NULL);
	full(f, "0.qcow2");
	f->backup.bitmap = "nope";
	create(f, "1.qcow2", (struct block_create){ .backing_path = "0.qcow2", .backing_format = "qcow2" });
	f->target = open_disk(f, "1.qcow2", BLOCK_NO_BACKING);
	f->backup = (struct live_backup){ .bitmap = "nope", .incremental = true };
	assert_int_equal(block_run(f->loop, backup_main, f), -ENOENT);
	close_all(f);
	holds(f, "a.qcow2", f->model);
}

/* --- mirror --- */

static void mirror_job(void *opaque)
{
	struct fixture *f = opaque;

	f->job_ret = live_mirror(&f->job, f->disk, f->target, &f->mirror, &f->e);
	f->started = false;
	co_queue_wake_all(f->co, &f->ended);
}

static void mirror_end(struct fixture *f)
{
	live_job_kick(f->disk, &f->job);
	while (f->started)
		co_queue_wait(f->co, &f->ended);
}

/* The guest writes all the time; at some moment after `ready` the mirror is to end. */
static int mirror_main(void *opaque)
{
	struct fixture *f = opaque;
	guest_start(f);
	f->started = true;
	assert_int_equal(co_start(f->co, mirror_job, f), 0);
	while (!f->mirror.ready && f->started)
		yield(f);
	for (unsigned i = 0; i < 200 && f->started; i++)
		yield(f);
	if (!f->mirror.pivot)
		guest_stop(f);
	f->mirror.finish = true;
	mirror_end(f);
	guest_stop(f);
	return f->job_ret;
}

static void mirror_between(struct fixture *f, const char *disk, const char *target, bool pivot)
{
	prepare(f, disk, target);
	f->mirror.pivot = pivot;
	assert_int_equal(block_run(f->loop, mirror_main, f), 0);
	assert_true(f->mirror.ready && f->writes > 20);
	close_all(f);
	holds(f, target, f->model);
	if (!pivot)
		holds(f, disk, f->model);
}

static void test_mirror_raw(void **state) { mirror_between(*state, "a.raw", "b.raw", false); }
static void test_mirror_qcow2(void **state) { mirror_between(*state, "a.qcow2", "b.qcow2", false); }
static void test_pivot_raw_to_qcow2(void **state) { mirror_between(*state, "a.raw", "b.qcow2", true); }
static void test_pivot_qcow2_to_raw(void **state) { mirror_between(*state, "a.qcow2", "b.raw", true); }

static int mirror_cancel_main(void *opaque)
{
	struct fixture *f = opaque;
	guest_start(f);
	f->started = true;
	assert_int_equal(co_start(f->co, mirror_job, f), 0);
	while (!f->mirror.ready)
		yield(f);
	f->job.cancel = true;
	mirror_end(f);
	guest_stop(f);
	return f->job_ret;
}

static void test_mirror_cancelled(void **state)
{
	struct fixture *f = *state;

	prepare(f, "a.qcow2", "b.qcow2");
	f->mirror.pivot = true;
	assert_int_equal(block_run(f->loop, mirror_cancel_main, f), -ECANCELED);
	close_all(f);
	holds(f, "a.qcow2", f->model);
}

static int busy_main(void *opaque)
{
	struct fixture *f = opaque;
	f->started = true;
	assert_int_equal(co_start(f->co, mirror_job, f), 0);
	while (!f->mirror.ready)
		yield(f);
	assert_int_equal(live_backup(&f->job, f->disk, f->target, &f->backup, &f->e), -EBUSY);
	assert_int_equal(block_resize(f->disk, SIZE * 2, 0, &f->e), -EBUSY);
	assert_int_equal(block_snapshot_create(f->disk, "s", &f->e), -EBUSY);
	f->mirror.finish = true;
	mirror_end(f);
	return f->job_ret;
}

static void test_one_job_at_a_time(void **state)
{
	struct fixture *f = *state;

	prepare(f, "a.qcow2", "b.qcow2");
	assert_int_equal(block_run(f->loop, busy_main, f), 0);
	close_all(f);
}

/* --- stream --- */

static int stream_main(void *opaque)
{
	struct fixture *f = opaque;
	int ret;

	guest_start(f);
	ret = live_stream(&f->job, f->disk, &f->e);
	guest_stop(f);
	return ret;
}

static void overlay_on(struct fixture *f, const char *base)
{
	prepare(f, base, NULL);
	close_all(f);
	create(f, "top.qcow2", (struct block_create){ .backing_path = base,
						      .backing_format = strstr(base, ".raw") ? "raw" : "qcow2" });
	f->disk = open_disk(f, "top.qcow2", 0);
}

static void test_stream(void **state)
{
	struct fixture *f = *state;

	overlay_on(f, "base.raw");
	assert_int_equal(block_run(f->loop, stream_main, f), 0);
	assert_true(f->writes > 0);
	close_all(f);
	assert_int_equal(unlink("base.raw"), 0);
	holds(f, "top.qcow2", f->model);
}

static void test_stream_cancelled_and_again(void **state)
{
	struct fixture *f = *state;

	overlay_on(f, "base.qcow2");
	f->job.progress = cancel_soon;
	f->job.opaque = f;
	assert_int_equal(block_run(f->loop, stream_main, f), -ECANCELED);
	f->job = (struct block_job){ 0 };
	assert_int_equal(block_run(f->loop, stream_main, f), 0);
	close_all(f);
	assert_int_equal(unlink("base.qcow2"), 0);
	holds(f, "top.qcow2", f->model);
}

static int stream_alone(void *opaque)
{
	struct fixture *f = opaque;

	return live_stream(&f->job, f->disk, &f->e);
}

static void test_stream_needs_a_backing_file(void **state)
{
	struct fixture *f = *state;

	prepare(f, "a.qcow2", NULL);
	assert_int_equal(block_run(f->loop, stream_alone, f), -EINVAL);
	close_all(f);
}

/* --- snapshots and commits --- */

static int work_on(void *opaque)
{
	struct fixture *f = opaque;

	guest_start(f);
	for (unsigned i = 0; i < 50; i++)
		yield(f);
	guest_stop(f);
	return 0;
}

/* The guest is between two writes; what the disk holds at that moment is kept. */
static int snapshot_main(void *opaque)
{
	struct fixture *f = opaque;
	int ret;

	work_on(f);
	memcpy(f->start, f->model, SIZE);
	ret = live_snapshot(f->disk, f->target, &f->e);
	return ret ? ret : work_on(f);
}

static void snapshot_on(struct fixture *f, const char *disk, const char *overlay)
{
	create(f, overlay, (struct block_create){ .backing_path = disk,
						  .backing_format = strstr(disk, ".raw") ? "raw" : "qcow2" });
	assert_int_equal(block_open_with(&f->target, f->loop, overlay, &(struct block_options){ .format = "qcow2",
					 .flags = BLOCK_NO_BACKING, .beside = f->disk }, &f->e), 0);
	assert_int_equal(block_run(f->loop, snapshot_main, f), 0);
	assert_int_equal(block_close(f->target), 0);
	f->target = NULL;
}

static void test_snapshot(void **state)
{
	struct fixture *f = *state;

	prepare(f, "a.qcow2", NULL);
	snapshot_on(f, "a.qcow2", "top.qcow2");
	assert_int_equal(block_close(open_disk(f, "a.qcow2", BLOCK_READONLY)), 0);	/* others may read it now */
	close_all(f);
	holds(f, "a.qcow2", f->start);
	holds(f, "top.qcow2", f->model);
}

struct commit { struct fixture *f; struct block_options fds; unsigned layers; };

static int commit_main(void *opaque)
{
	struct commit *c = opaque;
	struct fixture *f = c->f;
	int ret;

	guest_start(f);
	ret = live_commit(&f->job, f->disk, c->layers ? c->layers : 1, &c->fds, &f->e);
	for (unsigned i = 0; i < 50; i++)
		yield(f);
	guest_stop(f);
	return ret;
}

static void test_commit_of_a_snapshot(void **state)
{
	struct fixture *f = *state;
	struct commit c = { .f = f };

	prepare(f, "a.qcow2", NULL);
	snapshot_on(f, "a.qcow2", "top.qcow2");
	assert_int_equal(block_run(f->loop, commit_main, &c), 0);
	assert_string_equal(block_path(f->disk), "a.qcow2");
	close_all(f);
	assert_int_equal(unlink("top.qcow2"), 0);
	holds(f, "a.qcow2", f->model);
}

/* Three layers into the fourth; one of them is shorter, so that what lies below its end does not show. */
static void test_commit_of_many(void **state)
{
	struct fixture *f = *state;
	struct commit c = { .f = f, .layers = 3 };

	prepare(f, "a.qcow2", NULL);
	close_all(f);
	create(f, "short.qcow2", (struct block_create){ .size_bytes = SIZE / 2, .backing_path = "a.qcow2",
							.backing_format = "qcow2" });
	create(f, "b.qcow2", (struct block_create){ .backing_path = "short.qcow2", .backing_format = "qcow2" });
	memset(f->model + SIZE / 2, 0, SIZE / 2);
	f->disk = open_disk(f, "b.qcow2", 0);
	snapshot_on(f, "b.qcow2", "top.qcow2");
	assert_int_equal(block_run(f->loop, commit_main, &(struct commit){ .f = f, .layers = 4 }), -EINVAL);
	c.fds = (struct block_options){ .fds = &(struct block_fd){ "a.qcow2", open("a.qcow2", O_RDWR) }, .nfds = 1 };
	assert_int_equal(block_run(f->loop, commit_main, &c), 0);
	close(c.fds.fds->fd);
	assert_string_equal(block_path(f->disk), "a.qcow2");
	close_all(f);
	assert_int_equal(shell("rm top.qcow2 b.qcow2 short.qcow2"), 0);
	holds(f, "a.qcow2", f->model);
}

/* A backing file that was open for reading: it is written by a descriptor from outside, unless others read it. */
static void commit_to(struct fixture *f, const char *base, bool cancel)
{
	int fd = open(base, O_RDWR);
	struct block_fd fds = { base, fd };
	struct commit c = { f, { .fds = &fds, .nfds = 1 } };
	struct block *other;

	assert_int_equal(block_run(f->loop, commit_main, &(struct commit){ .f = f }), -EACCES);
	other = open_disk(f, base, BLOCK_READONLY);
	assert_int_equal(block_run(f->loop, commit_main, &c), -EBUSY);
	assert_int_equal(block_close(other), 0);
	if (cancel) {
		f->job.progress = cancel_soon;
		f->job.opaque = f;
		assert_int_equal(block_run(f->loop, commit_main, &c), -ECANCELED);
		f->job = (struct block_job){ 0 };
	}
	assert_int_equal(block_run(f->loop, commit_main, &c), 0);
	close(fd);
	close_all(f);
	assert_int_equal(unlink("top.qcow2"), 0);
	holds(f, base, f->model);
}

static void test_commit_to_raw(void **state)
{
	overlay_on(*state, "base.raw");
	commit_to(*state, "base.raw", false);
}

static void test_commit_cancelled_and_again(void **state)
{
	overlay_on(*state, "base.qcow2");
	commit_to(*state, "base.qcow2", true);
}

/* --- bitmaps go along where the disk goes on in another image --- */

static void next_increment(struct fixture *f, const char *name, const char *below)
{
	assert_int_equal(increment(f, name, below), 0);
	holds(f, name, f->start);
}

/* The guest writes before the snapshot and after it, and stops each time before the moment of the backup. */
static void test_increment_after_snapshot(void **state)
{
	struct fixture *f = *state;

	prepare(f, "a.qcow2", NULL);
	full(f, "0.qcow2");
	assert_int_equal(block_run(f->loop, work_on, f), 0);
	snapshot_on(f, "a.qcow2", "top.qcow2");
	next_increment(f, "1.qcow2", "0.qcow2");
	assert_int_equal(block_run(f->loop, work_on, f), 0);
	snapshot_on(f, "top.qcow2", "top2.qcow2");
	next_increment(f, "2.qcow2", "1.qcow2");
	close_all(f);
	f->disk = open_disk(f, "top2.qcow2", 0);	/* it is kept over a restart */
	assert_int_equal(block_run(f->loop, work_on, f), 0);
	next_increment(f, "3.qcow2", "2.qcow2");
	close_all(f);
	holds(f, "top2.qcow2", f->model);
}

static void test_increment_after_commit(void **state)
{
	struct fixture *f = *state;
	struct commit c = { .f = f };

	prepare(f, "a.qcow2", NULL);
	full(f, "0.qcow2");
	snapshot_on(f, "a.qcow2", "top.qcow2");
	next_increment(f, "1.qcow2", "0.qcow2");
	assert_int_equal(block_bitmap_add(f->disk, "later", 0, &f->e), 0);
	assert_int_equal(block_run(f->loop, work_on, f), 0);
	assert_int_equal(block_run(f->loop, commit_main, &c), 0);
	next_increment(f, "2.qcow2", "1.qcow2");
	assert_int_equal(block_bitmap_clear(f->disk, "later", &f->e), 0);	/* it came along */
	close_all(f);
	holds(f, "a.qcow2", f->model);
}

static void test_increment_after_pivot(void **state)
{
	struct fixture *f = *state;

	prepare(f, "a.qcow2", NULL);
	full(f, "0.qcow2");
	assert_int_equal(block_run(f->loop, work_on, f), 0);
	create(f, "b.qcow2", (struct block_create){ 0 });
	assert_int_equal(block_open_with(&f->target, f->loop, "b.qcow2", &(struct block_options){ .format = "qcow2",
					 .beside = f->disk }, &f->e), 0);
	f->mirror.pivot = true;
	assert_int_equal(block_run(f->loop, mirror_main, f), 0);
	assert_int_equal(block_close(f->target), 0);
	next_increment(f, "1.qcow2", "0.qcow2");
	close_all(f);
	holds(f, "b.qcow2", f->model);
}

/* --- how fast: a byte a second is a job that stands still, and a guest that does not --- */

static void slow_job(void *opaque)
{
	struct fixture *f = opaque;

	f->job_ret = f->fn(f);
	f->started = false;
	co_queue_wake_all(f->co, &f->ended);
}

static int paced_main(void *opaque)
{
	struct fixture *f = opaque;

	f->job.rate_bytes = 1;
	f->started = true;
	assert_int_equal(co_start(f->co, slow_job, f), 0);
	guest_start(f);
	while (f->writes < 500)
		yield(f);
	assert_true(f->started);
	guest_stop(f);
	f->job.cancel = f->cancels;
	f->job.rate_bytes = 0;
	live_job_kick(f->disk, &f->job);
	while (f->started)
		co_queue_wait(f->co, &f->ended);
	return f->job_ret;
}

static int paced_backup(struct fixture *f) { return live_backup(&f->job, f->disk, f->target, &f->backup, &f->e); }
static int paced_mirror(struct fixture *f)
{
	f->mirror.finish = true;
	return live_mirror(&f->job, f->disk, f->target, &f->mirror, &f->e);
}
static int paced_stream(struct fixture *f) { return live_stream(&f->job, f->disk, &f->e); }

static void test_rate_of_backup(void **state)
{
	struct fixture *f = *state;

	prepare(f, "a.qcow2", "b.raw");
	memcpy(f->start, f->model, SIZE);
	f->fn = paced_backup;
	assert_int_equal(block_run(f->loop, paced_main, f), 0);
	close_all(f);
	holds(f, "b.raw", f->start);
}

static void test_rate_of_mirror(void **state)
{
	struct fixture *f = *state;

	prepare(f, "a.raw", "b.qcow2");
	f->fn = paced_mirror;
	assert_int_equal(block_run(f->loop, paced_main, f), 0);
	close_all(f);
	holds(f, "b.qcow2", f->model);
}

static void test_rate_of_stream_cancelled(void **state)
{
	struct fixture *f = *state;

	overlay_on(f, "base.raw");
	f->fn = paced_stream;
	f->cancels = true;
	assert_int_equal(block_run(f->loop, paced_main, f), -ECANCELED);
	close_all(f);
	holds(f, "top.qcow2", f->model);
}

/* --- a disk that the host has no space for: what waits keeps no job from starting, ending, changing its image --- */

static void note_full(void *opaque) { (*(unsigned *)opaque)++; }

struct stuck {
	struct node_ops failing;
	const struct node_ops *real;
	struct node *n;
	unsigned fulls;
	int ret;
	struct iovec iov;
	uint8_t buf[BLOCK];
};

static void stuck_done(void *opaque, int ret) { ((struct stuck *)opaque)->ret = ret; }

/* A write at 0 that finds no space below. */
static void get_stuck(struct fixture *f, struct stuck *s)
{
	*s = (struct stuck){ .failing = *f->disk->root->ops, .real = f->disk->root->ops, .n = f->disk->root, .ret = 1 };
	s->failing.writev = failing_writev;
	s->n->ops = &s->failing;
	memset(s->buf, 0x5a, BLOCK);
	s->iov = (struct iovec){ s->buf, BLOCK };
	block_on_full(f->disk, note_full, &s->fulls);
	block_writev(f->disk, 0, &s->iov, 1, stuck_done, s);
	assert_int_equal(s->fulls, 1);
	assert_int_equal(s->ret, 1);
}

static int finish_mirror(void *opaque)
{
	struct fixture *f = opaque;

	return live_mirror(&f->job, f->disk, f->target, &f->mirror, &f->e);
}

static int flush_disk(void *opaque) { return block_co_flush(((struct fixture *)opaque)->disk); }

static void test_full_disk_moves(void **state)
{
	struct fixture *f = *state;
	struct stuck s;

	prepare(f, "a.raw", "b.qcow2");
	get_stuck(f, &s);
	f->mirror = (struct live_mirror){ .pivot = true, .finish = true };
	assert_int_equal(block_run(f->loop, finish_mirror, f), 0);
	assert_string_equal(block_format(f->disk), "qcow2");
	s.n->ops = s.real;
	block_retry(f->disk);
	assert_int_equal(block_run(f->loop, flush_disk, f), 0);
	while (s.ret == 1)
		loop_step(f->loop);
	assert_int_equal(s.ret, 0);
	memset(f->model, 0x5a, BLOCK);
	close_all(f);
	holds(f, "b.qcow2", f->model);
}

static int cancelled_backup(void *opaque)
{
	struct fixture *f = opaque;

	f->started = true;
	f->fn = paced_backup;
	f->job.rate_bytes = 1;
	assert_int_equal(co_start(f->co, slow_job, f), 0);
	for (unsigned i = 0; i < 50; i++)
		yield(f);
	assert_true(f->started);
	f->job.cancel = true;
	live_job_kick(f->disk, &f->job);
	while (f->started)
		co_queue_wait(f->co, &f->ended);
	return f->job_ret;
}

static void test_full_disk_is_given_up(void **state)
{
	struct fixture *f = *state;
	struct stuck s;

	prepare(f, "a.raw", "b.raw");
	get_stuck(f, &s);
	assert_int_equal(block_run(f->loop, cancelled_backup, f), -ECANCELED);
	assert_int_equal(s.ret, 1);
	block_on_full(f->disk, NULL, NULL);	/* as when the VM is stopped */
	assert_int_equal(s.ret, -ENOSPC);
	s.n->ops = s.real;
	close_all(f);
	holds(f, "a.raw", f->model);
}

/* Limits are the disk's, whatever it stands on. */
static void test_pivot_with_group_limits(void **state)
{
	struct fixture *f = *state;
	struct block_group *g = block_group_new(f->loop);
	struct stuck s[3];

	prepare(f, "a.raw", "b.qcow2");
	block_group_limit(g, &(struct block_limits){ .iops = 100000 });
	assert_int_equal(block_throttle(f->disk, NULL, g), 0);
	f->mirror.pivot = true;
	assert_int_equal(block_run(f->loop, mirror_main, f), 0);
	block_group_limit(g, &(struct block_limits){ .iops = 1, .iops_burst = 1 });
	for (unsigned i = 0; i < 3; i++) {
		s[i] = (struct stuck){ .ret = 1 };
		s[i].iov = (struct iovec){ s[i].buf, BLOCK };
		memset(f->model + i * BLOCK, 0, BLOCK);
		block_writev(f->disk, i * BLOCK, &s[i].iov, 1, stuck_done, &s[i]);
	}
	while (s[0].ret == 1)
		loop_step(f->loop);
	assert_int_equal(s[2].ret, 1);
	block_group_limit(g, &(struct block_limits){ 0 });
	while (s[2].ret == 1)
		loop_step(f->loop);
	assert_int_equal(block_throttle(f->disk, NULL, NULL), 0);
	block_group_put(g);
	close_all(f);
	holds(f, "b.qcow2", f->model);
}

#define T(name) cmocka_unit_test_setup_teardown(name, setup, teardown)

int main(void)
{
	const struct CMUnitTest tests[] = {
		T(test_backup_raw), T(test_backup_qcow2), T(test_backup_cancelled), T(test_target_fails),
		T(test_full_and_increments), T(test_increment_is_small), T(test_increment_without_a_bitmap),
		T(test_mirror_raw), T(test_mirror_qcow2), T(test_pivot_raw_to_qcow2), T(test_pivot_qcow2_to_raw),
		T(test_mirror_cancelled), T(test_one_job_at_a_time), T(test_stream),
		T(test_stream_cancelled_and_again), T(test_stream_needs_a_backing_file),
		T(test_snapshot), T(test_commit_of_a_snapshot), T(test_commit_of_many), T(test_commit_to_raw), T(test_commit_cancelled_and_again),
		T(test_increment_after_snapshot), T(test_increment_after_commit), T(test_increment_after_pivot),
		T(test_full_disk_moves), T(test_full_disk_is_given_up), T(test_pivot_with_group_limits),
		T(test_rate_of_backup), T(test_rate_of_mirror), T(test_rate_of_stream_cancelled),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
