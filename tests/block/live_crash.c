/*
 * live_crash [SEED [EVERY [JOB]]]: cuts the power (record.h) while a job works on a disk that a guest writes to; at each
 * EVERYth boundary.
 *
 * After each cut the image that the disk stood on, with its backing files, must open and be without errors, and hold for
 * each sector what the guest's last finished flush covers, or something later.  In the moment of a change from one image
 * to another both must.  A dirty bitmap says of all that has changed since the last backup that it may have, wherever the
 * disk stands.  What a job that had ended well made must be whole without its help.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "block/live.h"
#include "block/qcow2/bitmap.h"
#include "host/loop.h"
#include "record.h"

#define QEMU_EVERY 61u
#define BATCHES_AFTER 2u

struct live;

struct kind {
	const char *name;
	int (*run)(struct live *x);	/* the job, in a coroutine */
	void (*prepare)(struct live *x);	/* opens disk and target, and names what is recorded */
	struct block_create disk, target;
	const char *new_disk;		/* where the disk goes on; NULL: where it was */
	bool bitmap;			/* it is there from the start on, and goes along */
	bool backup;			/* the target is what the disk was when the job began */
	bool unclean;			/* what the job is cut in may have to be repaired by opening it */
};

struct live {
	const struct kind *k;
	struct disk d;
	struct block *target;
	const char *name;		/* of the disk's image at the start */
	struct record r;
	uint8_t before[DISK_BYTES];	/* at the start, and at the backup before */
	uint8_t moment[DISK_BYTES];	/* when the job began */
	struct block_job job;
	struct live_mirror mirror;
	struct error e;
	bool running;
	unsigned began, ended;		/* events; ended: UINT32_MAX until it is known to have succeeded */
	uint64_t tag;
	struct { unsigned start, end; uint64_t size; } step[16];
	unsigned nsteps;
};

/* --- files --- */

static void create(struct live *x, const char *name, struct block_create c)
{
	c.size_bytes = c.size_bytes ? c.size_bytes : DISK_BYTES;
	disk_create(&x->d, name, strstr(name, ".raw") ? "raw" : "qcow2", &c);
}

static void open_disk(struct live *x, const char *name)
{
	disk_open(&x->d, name, &(struct block_options){ .format = "qcow2", .flags = BLOCK_NO_IO_URING });
	x->name = name;
}

static void open_target(struct live *x, const char *name, unsigned flags, const struct block *beside)
{
	const struct block_options o = { .format = "qcow2", .flags = flags | BLOCK_NO_IO_URING, .beside = beside };

	if (block_open_with(&x->target, x->d.loop, name, &o, &x->e))
		die("%s: %s", x->e.what, x->e.why);
}

static void record(struct live *x, struct node *n, const char *path)
{
	record_add(&x->r, n, path);
}

/* Some of the disk, with holes. */
static void fill(struct live *x)
{
	static uint8_t bytes[16384];

	for (uint64_t at = 0; at < block_size(x->d.b); at += sizeof(bytes)) {
		memset(bytes, (int)(at >> 14) | 1, sizeof(bytes));
		if (below(3) && disk_write(&x->d, at, bytes, sizeof(bytes)))
			die("filling the disk");
	}
	if (disk_flush(&x->d))
		die("flushing the disk");
}

static void disk_made(struct live *x)
{
	struct error e = { 0 };

	create(x, "disk.qcow2", x->k->disk);
	open_disk(x, "disk.qcow2");
	fill(x);
	if (x->k->bitmap && block_bitmap_add(x->d.b, "b", 4096, &e))
		die("%s: %s", e.what, e.why);
}

static void prepare_alone(struct live *x)
{
	disk_made(x);
	record(x, block_root(x->d.b), "disk.qcow2");
}

static void prepare_target(struct live *x)
{
	prepare_alone(x);
	create(x, "target.qcow2", x->k->target);
	open_target(x, "target.qcow2", 0, NULL);
	record(x, block_root(x->target), "target.qcow2");
}

/* --- the jobs --- */

struct turn { struct live *x; struct co *self; };

static void turn_over(void *opaque)
{
	struct turn *t = opaque;

	co_wake(loop_coroutines(t->x->d.loop), t->self);
}

/* The guest goes on for so many turns of the loop. */
static void let_write(struct live *x, unsigned turns)
{
	struct turn t = { x, co_self(loop_coroutines(x->d.loop)) };

	while (turns--) {
		loop_post(x->d.loop, turn_over, &t);
		co_wait(loop_coroutines(x->d.loop));
	}
}

static int run_mirror(struct live *x)
{
	x->mirror = (struct live_mirror){ .pivot = true };
	return live_mirror(&x->job, x->d.b, x->target, &x->mirror, &x->e);
}

static int run_full(struct live *x)
{
	return live_backup(&x->job, x->d.b, x->target, &(struct live_backup){ .bitmap = "b" }, &x->e);
}

static int run_increment(struct live *x)
{
	return live_backup(&x->job, x->d.b, x->target, &(struct live_backup){ .bitmap = "b", .incremental = true }, &x->e);
}

static int full_first(void *opaque)
{
	return run_full(opaque);
}

/* A full backup has been made, which the increment stands on. */
static void prepare_increment(struct live *x)
{
	disk_made(x);
	create(x, "full.qcow2", x->k->target);
	open_target(x, "full.qcow2", 0, NULL);
	if (block_run(x->d.loop, full_first, x) || block_close(x->target))
		die("the backup before");
	if (shell("cp full.qcow2 cut"))
		die("cp");
	create(x, "target.qcow2", (struct block_create){ .backing_path = "full.qcow2", .backing_format = "qcow2",
							 .cluster_bytes = x->k->target.cluster_bytes });
	open_target(x, "target.qcow2", BLOCK_NO_BACKING, NULL);
	record(x, block_root(x->d.b), "disk.qcow2");
	record(x, block_root(x->target), "target.qcow2");
}

static int run_stream(struct live *x)
{
	return live_stream(&x->job, x->d.b, &x->e);
}

static void prepare_stream(struct live *x)
{
	struct block_create c = x->k->disk;

	disk_made(x);
	disk_close(&x->d);
	if (shell("cp disk.qcow2 cut"))
		die("cp");
	c.backing_path = "disk.qcow2";
	c.backing_format = "qcow2";
	create(x, "top.qcow2", c);
	open_disk(x, "top.qcow2");
	record(x, block_root(x->d.b), "top.qcow2");
}

static int run_snapshot(struct live *x)
{
	let_write(x, 40);
	return live_snapshot(x->d.b, x->target, &x->e);
}

static void overlay_made(struct live *x)
{
	struct block_create c = x->k->disk;

	c.backing_path = "disk.qcow2";
	c.backing_format = "qcow2";
	create(x, "top.qcow2", c);
	open_target(x, "top.qcow2", BLOCK_NO_BACKING, x->d.b);
}

static void prepare_snapshot(struct live *x)
{
	prepare_alone(x);
	overlay_made(x);
	record(x, block_root(x->target), "top.qcow2");
}

static int snapshot_first(void *opaque)
{
	struct live *x = opaque;

	return live_snapshot(x->d.b, x->target, &x->e);
}

static int run_commit(struct live *x)
{
	return live_commit(&x->job, x->d.b, 1, &(struct block_options){ 0 }, &x->e);
}

static void prepare_commit(struct live *x)
{
	disk_made(x);
	overlay_made(x);
	if (block_run(x->d.loop, snapshot_first, x) || block_close(x->target))
		die("the snapshot before");
	x->target = NULL;
	x->name = "top.qcow2";
	record(x, block_root(x->d.b)->child[NODE_BACKING], "disk.qcow2");
	record(x, block_root(x->d.b), "top.qcow2");
}

static int run_resize(struct live *x)
{
	int ret = 0;

	for (unsigned i = 0; i < 6 && !ret; i++) {
		let_write(x, 15);
		x->step[i].size = block_size(x->d.b) + DISK_BYTES / 12 / 4096 * 4096;
		x->step[i].start = x->r.nev;
		x->step[i].end = UINT32_MAX;
		x->nsteps = i + 1;
		ret = block_resize(x->d.b, x->step[i].size, 0, &x->e);
		x->step[i].end = x->r.nev;
		x->r.size = x->step[i].size;
	}
	return ret;
}

/* Internal ones. */
static int run_internal(struct live *x)
{
	int ret = 0;

	for (unsigned i = 0; i < 4 && !ret; i++) {
		let_write(x, 15);
		ret = block_snapshot_create(x->d.b, i % 2 ? "two" : "one", &x->e);
		if (!ret && i % 2) {
			let_write(x, 15);
			ret = block_snapshot_delete(x->d.b, "one", &x->e);
			ret = ret ? ret : block_snapshot_delete(x->d.b, "two", &x->e);
		}
	}
	return ret;
}

static const struct kind kinds[] = {
	{ "mirror", run_mirror, prepare_target, { .cluster_bytes = 4096 }, { .cluster_bytes = 4096 },
	  .new_disk = "target.qcow2", .bitmap = true },
	{ "mirror-512", run_mirror, prepare_target, { .cluster_bytes = 16384, .extended_l2 = true },
	  { .cluster_bytes = 512 }, .new_disk = "target.qcow2" },
	{ "full", run_full, prepare_target, { .cluster_bytes = 4096 }, { .cluster_bytes = 4096 }, .backup = true },
	{ "increment", run_increment, prepare_increment, { .cluster_bytes = 4096 }, { .cluster_bytes = 4096 },
	  .bitmap = true, .backup = true },
	{ "stream", run_stream, prepare_stream, { .cluster_bytes = 4096 } },
	{ "snapshot", run_snapshot, prepare_snapshot, { .cluster_bytes = 4096 }, .new_disk = "top.qcow2", .bitmap = true },
	{ "commit", run_commit, prepare_commit, { .cluster_bytes = 4096 }, .new_disk = "disk.qcow2", .bitmap = true },
	{ "resize", run_resize, prepare_alone, { .cluster_bytes = 512, .size_bytes = DISK_BYTES / 2 }, .bitmap = true },
	{ "internal", run_internal, prepare_alone, { .cluster_bytes = 4096 }, .bitmap = true, .unclean = true },
};

/* --- what a cut left --- */

static bool covers(const struct dirty *bits, const uint8_t *disk, const uint8_t *then, uint64_t size)
{
	for (uint64_t at = 0; at < size; at += SECTOR)
		if ((!then || memcmp(disk + at, then + at, SECTOR)) && !dirty_all_set(bits, at, SECTOR))
			return false;
	return true;
}

static void open_cut(const struct cut *c, struct disk *d, const char *name, unsigned flags)
{
	const struct block_options o = { .format = "qcow2", .flags = flags };
	struct error e = { 0 };
	char path[64];

	snprintf(path, sizeof(path), "cut/%s", name);
	d->loop = d->loop ? d->loop : loop_new();
	if (block_open_with(&d->b, d->loop, path, &o, &e))
		die("cut %u: %s: %s", c->at, e.what, e.why);
}

/* No errors, but for what the opening for writing repairs. */
static void errors_none(const struct live *x, const struct cut *c, struct disk *d, const char *name)
{
	struct block_check check = { 0 };
	struct error e = { 0 };
	struct block_info info;

	open_cut(c, d, name, BLOCK_READONLY);
	block_info(d->b, 0, &info);
	if (block_check(d->b, 0, &check, &e))
		die("cut %u: %s: %s", c->at, name, e.why);
	if (check.corruptions && !(x->k->unclean && info.unclean))
		die("cut %u: %s: %lu errors", c->at, name, check.corruptions);
	disk_close(d);
	if (c->n % QEMU_EVERY == 0 && !check.corruptions && have_qemu()) {
		int ret = shell("qemu-img check -f qcow2 cut/%s || test $? = 3", name);

		if (ret)
			die("cut %u: qemu-img check says so of %s", c->at, name);
	}
}

static bool target_whole(const struct live *x, const struct cut *c, struct disk *d)
{
	static uint8_t bytes[DISK_BYTES];
	bool whole;

	open_cut(c, d, "target.qcow2", BLOCK_READONLY);
	whole = block_size(d->b) == DISK_BYTES && !disk_read(d, 0, bytes, DISK_BYTES) && !memcmp(bytes, x->moment, DISK_BYTES);
	disk_close(d);
	return whole;
}

/* A backup that was cut off just before it was reported may be whole, and the bitmap begin with it. */
static void bitmap_good(const struct live *x, const struct cut *c, struct disk *d, const uint8_t *disk, uint64_t size)
{
	const struct qcow2 *q = block_root(d->b)->impl;
	const struct bitmap *m = q->nbitmaps == 1 ? q->bitmap[0] : NULL;
	struct disk other = { .loop = d->loop };
	bool ended = c->at >= x->ended;

	if (!m && (x->k->bitmap || ended))
		die("cut %u: the bitmap is lost", c->at);
	if (!m || (!ended && covers(&m->bits, disk, x->k->bitmap ? x->before : NULL, size)))
		return;
	if (!x->k->backup && covers(&m->bits, disk, x->before, size))
		return;
	if (x->k->backup && covers(&m->bits, disk, x->moment, size) && target_whole(x, c, &other))
		return;
	die("cut %u: something has changed, and the bitmap does not say so", c->at);
}

static void size_good(const struct live *x, const struct cut *c, uint64_t got)
{
	uint64_t size = x->k->disk.size_bytes ? x->k->disk.size_bytes : DISK_BYTES;
	bool good = false;

	for (unsigned i = 0; i < x->nsteps && x->step[i].start < c->at; i++) {
		if (x->step[i].end <= c->at)
			size = x->step[i].size;
		else
			good |= got == x->step[i].size;
	}
	if (!good && got != size)
		die("cut %u: the size is %lu", c->at, got);
}

static void disk_good(const struct live *x, const struct cut *c, struct disk *d, const char *name)
{
	static uint8_t bytes[DISK_BYTES];
	bool streamed = x->k->run == run_stream && c->at >= x->ended;
	uint64_t size;

	errors_none(x, c, d, name);
	open_cut(c, d, name, streamed ? BLOCK_NO_BACKING : 0);
	size = block_size(d->b);
	size_good(x, c, size);
	if (disk_read(d, 0, bytes, size))
		die("cut %u: reading %s", c->at, name);
	cut_content(c, bytes, x->before, size);
	if (x->k->bitmap || x->k->backup)
		bitmap_good(x, c, d, bytes, size);
	disk_close(d);
}

static void check_cut(void *opaque, const struct cut *c)
{
	const struct live *x = opaque;
	struct disk d = { 0 };

	if (!x->r.moved_at || c->at <= x->r.moved_at)
		disk_good(x, c, &d, x->name);
	if (x->r.moved_at && c->at >= x->r.moved_at)
		disk_good(x, c, &d, x->k->new_disk);
	if (x->k->backup && c->at >= x->ended) {
		errors_none(x, c, &d, "target.qcow2");
		if (!target_whole(x, c, &d))
			die("cut %u: the backup is not what the disk was", c->at);
	}
	loop_free(d.loop);
}

/* --- one job --- */

static void job_main(void *opaque)
{
	struct live *x = opaque;

	if (x->k->run(x))
		die("%s: %s", x->e.what, x->e.why);
	x->ended = x->r.nev;
	x->running = false;
}

static void job_start(struct live *x)
{
	if (disk_wait(&x->d) || disk_read(&x->d, 0, x->moment, x->r.size))
		die("read");
	x->job = (struct block_job){ .parallel = 2 };
	x->running = true;
	x->began = x->r.nev;
	if (co_start(loop_coroutines(x->d.loop), job_main, x))
		die("no memory");
}

static void guest_writes(struct live *x)
{
	unsigned after = 0, ready = 0;

	guest_batch(&x->d, &x->r, &x->tag);
	job_start(x);
	while (x->running || after++ < BATCHES_AFTER) {
		guest_batch(&x->d, &x->r, &x->tag);
		if (x->running && x->mirror.ready && ++ready > BATCHES_AFTER) {
			x->mirror.finish = true;
			live_job_kick(x->d.b, &x->job);
		}
	}
	if (disk_wait(&x->d))
		die("the guest's flushes failed");
}

static void start(struct live *x)
{
	x->k->prepare(x);
	x->r.size = block_size(x->d.b);
	x->ended = UINT32_MAX;
	if (disk_read(&x->d, 0, x->before, x->r.size))
		die("read");
	if (x->k->new_disk) {
		x->r.watch = x->d.b;
		x->r.stood_on = node_below_filters(block_root(x->d.b));
	}
}

static void end(struct live *x)
{
	if (x->k->new_disk && !x->r.moved_at)
		die("the disk has not moved");
	x->r.watch = NULL;
	disk_close(&x->d);
	if (block_close(x->target))
		die("closing the target");
}

static void run_kind(const struct kind *k, unsigned seed, unsigned every)
{
	struct live *x = calloc(1, sizeof(*x));
	unsigned n;

	printf("%s, seed %u: ", k->name, seed);
	fflush(stdout);
	srandom(seed);
	if (shell("rm -rf *.qcow2 cut; mkdir cut"))
		die("an empty folder");
	x->k = k;
	x->tag = 1ull << 40;
	start(x);
	guest_writes(x);
	end(x);
	x->r.every = every;
	n = record_cuts(&x->r, check_cut, x);
	printf("%u cuts of %u events, the job's %u to %u\n", n, x->r.nev, x->began, x->ended);
	record_fini(&x->r);
	loop_free(x->d.loop);
	free(x);
}

int main(int argc, char **argv)
{
	unsigned seed = argc > 1 ? (unsigned)strtoul(argv[1], NULL, 10) : 1;
	unsigned every = argc > 2 ? (unsigned)strtoul(argv[2], NULL, 10) : 1;
	char dir[64];

	go_to_folder(dir);
	for (unsigned i = 0; i < sizeof(kinds) / sizeof(kinds[0]); i++)
		if (argc < 4 || !strcmp(argv[3], kinds[i].name))
			run_kind(&kinds[i], seed, every);
	return shell("rm -r %s", dir);
}
