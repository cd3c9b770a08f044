/* Jobs on whole disks: what they leave when they end, are cancelled or fail; the header's backing file at any cut. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/stat.h>

#include "block/job.h"
#include "block/qcow2/qcow2.h"
#include "host/loop.h"

#define SIZE (24u << 20)
#define STRETCH (1u << 20)

struct fixture {
	struct loop *loop;
	char dir[64];
	struct block *a, *b;
	struct block_job job;
	uint64_t last_done;
	unsigned steps, cancel_at;	/* 0: never */
	int (*fn)(struct fixture *f);
	struct job_convert how;
	struct job_compare out;
	uint64_t safe;
	struct error e;
};

static void on_progress(void *opaque, uint64_t done, uint64_t total)
{
	struct fixture *f = opaque;

	assert_true(done > f->last_done && done <= total);
	f->last_done = done;
	if (++f->steps == f->cancel_at)
		f->job.cancel = true;
}

static int setup(void **state)
{
	struct fixture *f = calloc(1, sizeof(*f));

	f->loop = loop_new();
	strcpy(f->dir, "/tmp/vixen-jobs-XXXXXX");
	assert_non_null(mkdtemp(f->dir));
	f->job.progress = on_progress;
	f->job.opaque = f;
	*state = f;
	return 0;
}

static int teardown(void **state)
{
	struct fixture *f = *state;
	char command[128];

	loop_free(f->loop);
	snprintf(command, sizeof(command), "rm -r %s", f->dir);
	assert_int_equal(system(command), 0);
	free(f);
	return 0;
}

static char *path_of(struct fixture *f, const char *name, char out[128])
{
	snprintf(out, 128, "%s/%s", f->dir, name);
	return out;
}

static void open_disk(struct fixture *f, struct block **b, const char *name, unsigned flags)
{
	const char *format = strstr(name, ".raw") ? "raw" : "qcow2";
	char path[128];

	assert_int_equal(block_open(b, f->loop, path_of(f, name, path), format, flags, &f->e), 0);
}

static void create(struct fixture *f, const char *name, struct block_create c)
{
	char path[128];

	c.size_bytes = c.size_bytes ? c.size_bytes : SIZE;
	assert_int_equal(block_create(f->loop, path_of(f, name, path), strstr(name, ".raw") ? "raw" : "qcow2", &c, &f->e),
			 0);
}

static void remove_file(struct fixture *f, const char *name)
{
	char path[128];

	unlink(path_of(f, name, path));
}

/* --- content: each stretch is of one byte, or a hole --- */

struct filling {
	struct block *b;
	unsigned step, first, seed;
};

static int fill_main(void *opaque)
{
	struct filling *f = opaque;
	uint8_t *buf = malloc(STRETCH);
	int ret = 0;

	for (uint64_t at = f->first * (uint64_t)STRETCH; at < SIZE && !ret; at += f->step * (uint64_t)STRETCH) {
		memset(buf, (int)(f->seed + at / STRETCH), STRETCH);
		ret = block_co_write(f->b, at, buf, STRETCH);
	}
	free(buf);
	return ret;
}

static void fill(struct fixture *f, const char *name, unsigned first, unsigned step, unsigned seed)
{
	struct filling c = { .step = step, .first = first, .seed = seed };

	open_disk(f, &c.b, name, 0);
	assert_int_equal(block_run(f->loop, fill_main, &c), 0);
	assert_int_equal(block_close(c.b), 0);
}

static int job_main(void *opaque)
{
	struct fixture *f = opaque;

	f->job.cancel = false;
	f->last_done = 0;
	f->steps = 0;
	return f->fn(f);
}

static int run(struct fixture *f, int (*fn)(struct fixture *f), unsigned cancel_at)
{
	f->fn = fn;
	f->cancel_at = cancel_at;
	return block_run(f->loop, job_main, f);
}

static int do_convert(struct fixture *f) { return job_convert(&f->job, f->a, f->b, &f->how, &f->e); }
static int do_compare(struct fixture *f) { return job_compare(&f->job, f->a, f->b, &f->out, &f->e); }
static int do_commit(struct fixture *f) { return job_commit(&f->job, f->a, f->b, &f->e); }
static int do_rebase(struct fixture *f) { return job_rebase(&f->job, f->a, f->b, &f->e); }

static void close_both(struct fixture *f)
{
	assert_int_equal(block_close(f->a), 0);
	assert_int_equal(block_close(f->b), 0);
	f->a = f->b = NULL;
}

static bool alike(struct fixture *f, const char *a, const char *b)
{
	open_disk(f, &f->a, a, BLOCK_READONLY);
	open_disk(f, &f->b, b, BLOCK_READONLY);
	assert_int_equal(run(f, do_compare, 0), 0);
	close_both(f);
	return !f->out.differ;
}

/* A plain copy of what a disk reads as. */
static void copy(struct fixture *f, const char *from, const char *to)
{
	create(f, to, (struct block_create){ 0 });
	open_disk(f, &f->a, from, BLOCK_READONLY);
	open_disk(f, &f->b, to, 0);
	assert_int_equal(run(f, do_convert, 0), 0);
	assert_int_equal(f->last_done, SIZE);
	close_both(f);
}

/* --- convert and compare --- */

static int on_safe(void *opaque, uint64_t below)
{
	struct fixture *f = opaque;

	assert_in_range(below, f->safe, SIZE);
	f->safe = below;
	return 0;
}

static int cut_main(void *opaque)
{
	struct fixture *f = opaque;
	int ret = block_resize(f->b, f->safe, BLOCK_SHRINK, &f->e);

	return ret ? ret : block_resize(f->b, SIZE, 0, &f->e);
}

/* Cancelled after any number of pieces, cut back to what is safe, and gone on from there: all is there. */
static void converts_on(void **state)
{
	struct fixture *f = *state;
	unsigned early = 0;

	create(f, "src.raw", (struct block_create){ 0 });
	fill(f, "src.raw", 0, 2, 50);
	for (unsigned at = 1; at < SIZE / STRETCH; at++) {
		create(f, "dst.qcow2", (struct block_create){ .overwrite = true });
		f->safe = 0;
		f->how = (struct job_convert){ .safe = on_safe, .opaque = f };
		open_disk(f, &f->a, "src.raw", BLOCK_READONLY);
		open_disk(f, &f->b, "dst.qcow2", 0);
		if (!run(f, do_convert, at)) {	/* the last pieces were under way */
			close_both(f);
			break;
		}
		early += f->safe > 0;
		if (f->safe)
			assert_int_equal(block_run(f->loop, cut_main, f), 0);
		f->how.from = f->safe;
		assert_int_equal(run(f, do_convert, 0), 0);
		close_both(f);
		f->how = (struct job_convert){ 0 };
		assert_true(alike(f, "src.raw", "dst.qcow2"));
	}
	assert_true(early > SIZE / STRETCH / 4);
}

static void converts(void **state)
{
	struct fixture *f = *state;
	struct block_info i;

	create(f, "src.raw", (struct block_create){ 0 });
	fill(f, "src.raw", 1, 3, 50);
	copy(f, "src.raw", "dst.qcow2");
	assert_true(alike(f, "src.raw", "dst.qcow2"));
	open_disk(f, &f->a, "dst.qcow2", BLOCK_READONLY);
	assert_int_equal(block_info(f->a, 0, &i), 0);
	assert_in_range(i.host_bytes, SIZE / 3, SIZE / 2);
	assert_int_equal(block_close(f->a), 0);
	create(f, "packed.qcow2", (struct block_create){ .cluster_bytes = 2u << 20 });
	open_disk(f, &f->a, "dst.qcow2", BLOCK_READONLY);
	open_disk(f, &f->b, "packed.qcow2", 0);
	f->how.compress = true;
	assert_int_equal(run(f, do_convert, 0), 0);
	f->how.compress = false;
	close_both(f);
	assert_true(alike(f, "packed.qcow2", "src.raw"));
}

static void convert_refuses(void **state)
{
	struct fixture *f = *state;

	create(f, "src.qcow2", (struct block_create){ 0 });
	create(f, "small.raw", (struct block_create){ .size_bytes = SIZE - 512 });
	open_disk(f, &f->a, "src.qcow2", BLOCK_READONLY);
	open_disk(f, &f->b, "small.raw", 0);
	assert_int_equal(run(f, do_convert, 0), -EINVAL);
	assert_int_equal(block_close(f->b), 0);
	create(f, "dst.raw", (struct block_create){ 0 });
	open_disk(f, &f->b, "dst.raw", 0);
	f->how.compress = true;
	assert_int_equal(run(f, do_convert, 0), -EOPNOTSUPP);
	close_both(f);
}

static void convert_cancelled(void **state)
{
	struct fixture *f = *state;

	create(f, "src.raw", (struct block_create){ 0 });
	fill(f, "src.raw", 0, 1, 1);
	for (unsigned parallel = 1; parallel <= 4; parallel++) {
		char name[16];

		snprintf(name, sizeof(name), "%u.qcow2", parallel);
		create(f, name, (struct block_create){ 0 });
		open_disk(f, &f->a, "src.raw", BLOCK_READONLY);
		open_disk(f, &f->b, name, 0);
		f->job.parallel = parallel;
		assert_int_equal(run(f, do_convert, 2), -ECANCELED);
		assert_true(f->steps < 2 + parallel);	/* what was under way, and nothing after it */
		close_both(f);
	}
}

static void convert_without_room(void **state)
{
	struct fixture *f = *state;
	struct rlimit old, small = { 8u << 20, RLIM_INFINITY };

	create(f, "src.raw", (struct block_create){ 0 });
	fill(f, "src.raw", 0, 1, 1);
	create(f, "dst.qcow2", (struct block_create){ 0 });
	open_disk(f, &f->a, "src.raw", BLOCK_READONLY);
	open_disk(f, &f->b, "dst.qcow2", 0);
	signal(SIGXFSZ, SIG_IGN);
	getrlimit(RLIMIT_FSIZE, &old);
	setrlimit(RLIMIT_FSIZE, &small);
	assert_int_equal(run(f, do_convert, 0), -ENOSPC);
	assert_non_null(strstr(f->e.todo, "room"));
	setrlimit(RLIMIT_FSIZE, &old);
	block_close(f->a);
	block_close(f->b);
}

static void compare_finds_the_first(void **state)
{
	struct fixture *f = *state;
	struct { uint64_t at; char byte; } wrong[] = { { SIZE - 1, 1 }, { 17u << 20, 2 }, { (5u << 20) + 700, 3 }, { 9, 4 } };
	char path[128];
	int fd;

	create(f, "a.raw", (struct block_create){ 0 });
	fill(f, "a.raw", 0, 2, 3);
	copy(f, "a.raw", "b.raw");
	assert_true(alike(f, "a.raw", "b.raw"));
	fd = open(path_of(f, "b.raw", path), O_WRONLY);
	for (unsigned i = 0; i < sizeof(wrong) / sizeof(wrong[0]); i++) {
		assert_int_equal(pwrite(fd, &wrong[i].byte, 1, (off_t)wrong[i].at), 1);
		assert_false(alike(f, i % 2 ? "a.raw" : "b.raw", i % 2 ? "b.raw" : "a.raw"));
		assert_int_equal(f->out.offset, wrong[i].at / 512 * 512);
	}
	for (uint64_t at = 0; at < SIZE; at += STRETCH)	/* whichever piece comes to its end first */
		assert_int_equal(pwrite(fd, "!", 1, (off_t)(at + 300)), 1);
	for (unsigned i = 0; i < 20; i++) {
		f->job.parallel = 2 + i;
		assert_false(alike(f, "a.raw", "b.raw"));
		assert_int_equal(f->out.offset, 0);
	}
	close(fd);
}

/* --- commit and rebase --- */

static void make_chain(struct fixture *f)
{
	create(f, "base.raw", (struct block_create){ .size_bytes = SIZE });
	fill(f, "base.raw", 0, 2, 100);
	create(f, "top.qcow2", (struct block_create){ .backing_path = "base.raw", .backing_format = "raw" });
	fill(f, "top.qcow2", 0, 3, 7);
	copy(f, "top.qcow2", "want.raw");
}

static int ask_main(struct fixture *f)
{
	struct block_status st;
	int ret = block_co_status(f->a, 0, SIZE, 0, &st);

	return ret ? ret : st.len == SIZE && !(st.flags & BLOCK_STATUS_ALLOCATED);
}

static bool is_empty(struct fixture *f, const char *name)
{
	int ret;

	open_disk(f, &f->a, name, BLOCK_READONLY);
	ret = run(f, ask_main, 0);
	block_close(f->a);
	return ret == 1;
}

static void commits(void **state)
{
	struct fixture *f = *state;

	make_chain(f);
	assert_false(is_empty(f, "top.qcow2"));
	open_disk(f, &f->a, "top.qcow2", BLOCK_NO_BACKING);
	open_disk(f, &f->b, "base.raw", 0);
	assert_int_equal(run(f, do_commit, 2), -ECANCELED);
	close_both(f);
	assert_true(alike(f, "top.qcow2", "want.raw"));
	assert_false(alike(f, "base.raw", "want.raw"));
	open_disk(f, &f->a, "top.qcow2", BLOCK_NO_BACKING);
	open_disk(f, &f->b, "base.raw", 0);
	assert_int_equal(run(f, do_commit, 0), 0);
	close_both(f);
	assert_true(alike(f, "top.qcow2", "want.raw"));
	assert_true(alike(f, "base.raw", "want.raw"));
	assert_true(is_empty(f, "top.qcow2"));
}

static void rebases(void **state)
{
	struct fixture *f = *state;

	make_chain(f);
	create(f, "other.raw", (struct block_create){ .size_bytes = 10u << 20 });
	for (unsigned cancel_at = 1; cancel_at <= 3; cancel_at++) {
		open_disk(f, &f->a, "top.qcow2", 0);
		open_disk(f, &f->b, "other.raw", BLOCK_READONLY);
		assert_int_equal(run(f, do_rebase, cancel_at), -ECANCELED);
		close_both(f);
		assert_true(alike(f, "top.qcow2", "want.raw"));
	}
	open_disk(f, &f->a, "top.qcow2", 0);
	open_disk(f, &f->b, "other.raw", BLOCK_READONLY);
	assert_int_equal(run(f, do_rebase, 0), 0);
	assert_int_equal(block_set_backing(f->a, "other.raw", "raw", &f->e), 0);
	close_both(f);
	assert_true(alike(f, "top.qcow2", "want.raw"));
	open_disk(f, &f->a, "top.qcow2", 0);
	assert_int_equal(run(f, do_rebase, 0), 0);
	assert_int_equal(block_set_backing(f->a, NULL, NULL, &f->e), 0);
	assert_int_equal(block_close(f->a), 0);
	f->a = NULL;
	assert_true(alike(f, "top.qcow2", "want.raw"));
	open_disk(f, &f->a, "top.qcow2", BLOCK_READONLY);
	assert_int_equal(block_set_backing(f->a, "base.raw", "raw", &f->e), -EROFS);
	block_close(f->a);
}

/* What was a hole of an image that stood alone must not show the new backing file. */
static void rebases_what_stood_alone(void **state)
{
	struct fixture *f = *state;

	create(f, "base.raw", (struct block_create){ 0 });
	fill(f, "base.raw", 0, 2, 100);
	for (unsigned version = 2; version <= 3; version++) {
		create(f, "lone.qcow2", (struct block_create){ .version = version, .overwrite = true });
		fill(f, "lone.qcow2", 0, 3, 7);
		remove_file(f, "want.raw");
		copy(f, "lone.qcow2", "want.raw");
		open_disk(f, &f->a, "lone.qcow2", 0);
		open_disk(f, &f->b, "base.raw", BLOCK_READONLY);
		assert_int_equal(run(f, do_rebase, 0), 0);
		assert_int_equal(block_set_backing(f->a, "base.raw", "raw", &f->e), 0);
		close_both(f);
		assert_true(alike(f, "lone.qcow2", "want.raw"));
	}
}

/* --- the name of the backing file, at every cut --- */

struct tap {			/* writes, in order; a flush ends every one */
	struct { uint64_t offset; size_t len; uint8_t *data; bool flushed; } w[16];
	unsigned n;
};

static void tap_readv(struct node *n, uint64_t offset, const struct iovec *iov, int iovcnt, block_done_fn *done,
		      void *opaque)
{
	node_readv(n->child[NODE_FILE], offset, iov, iovcnt, done, opaque);
}

static void tap_writev(struct node *n, uint64_t offset, const struct iovec *iov, int iovcnt, block_done_fn *done,
		       void *opaque)
{
	struct tap *t = n->impl;
	size_t len = iov_bytes(iov, iovcnt);

	assert_true(t->n < 16);
	t->w[t->n].offset = offset;
	t->w[t->n].len = len;
	t->w[t->n].data = malloc(len);
	iov_copy_out(iov, iovcnt, 0, t->w[t->n++].data, len);
	node_writev(n->child[NODE_FILE], offset, iov, iovcnt, done, opaque);
}

static void tap_flush(struct node *n, block_done_fn *done, void *opaque)
{
	struct tap *t = n->impl;

	for (unsigned i = 0; i < t->n; i++)
		t->w[i].flushed = true;
	node_flush(n->child[NODE_FILE], done, opaque);
}

static const struct node_ops tap_ops = { .name = "tap", .readv = tap_readv, .writev = tap_writev, .flush = tap_flush };

static int untap(struct block *b)
{
	struct qcow2 *q = block_root(b)->impl;
	struct node *tap = q->file;

	q->file = q->data = q->n->child[NODE_FILE] = tap->child[NODE_FILE];
	tap->child[NODE_FILE] = NULL;
	tap->impl = NULL;
	return node_co_close(tap);
}

static void tap_in(struct block *b, struct tap *t)
{
	struct qcow2 *q = block_root(b)->impl;
	struct node *n = node_new(q->n->env, &tap_ops, q->n->path);

	n->impl = t;
	n->limits = q->file->limits;
	n->size_bytes = q->file->size_bytes;
	n->child[NODE_FILE] = q->file;
	q->file = q->data = q->n->child[NODE_FILE] = n;
}

static void must_name(struct fixture *f, const uint8_t *head, size_t len, const char *old, const char *new)
{
	struct block_info i;
	char path[128];
	int fd = open(path_of(f, "cut.qcow2", path), O_WRONLY);
	bool is_old, is_new;

	assert_int_equal(pwrite(fd, head, len, 0), (ssize_t)len);
	close(fd);
	open_disk(f, &f->a, "cut.qcow2", BLOCK_READONLY | BLOCK_NO_BACKING);
	assert_int_equal(block_info(f->a, 0, &i), 0);
	is_old = old ? i.backing_path && !strcmp(i.backing_path, old) : !i.backing_path;
	is_new = new ? i.backing_path && !strcmp(i.backing_path, new) : !i.backing_path;
	assert_true(is_old || is_new);
	assert_true(!i.backing_path || (i.backing_format && !strcmp(i.backing_format, "raw")));
	block_close(f->a);
}

/* Sectors of the write under way come in any number, from the front or from the back, or every other one. */
static void cut_everywhere(struct fixture *f, uint8_t *head, size_t len, const struct tap *t, const char *old,
			   const char *new)
{
	uint8_t *torn = malloc(len);

	for (unsigned i = 0; i < t->n; i++) {
		size_t sectors = (t->w[i].len + SECTOR - 1) / SECTOR;

		assert_true(t->w[i].flushed && t->w[i].offset + t->w[i].len <= len);
		for (size_t n = 0; n <= 2 * sectors + 1; n++) {
			memcpy(torn, head, len);
			for (size_t s = 0; s < sectors; s++) {
				size_t at = s * SECTOR, part = t->w[i].len - at < SECTOR ? t->w[i].len - at : SECTOR;

				if (n <= sectors ? s < n : n == 2 * sectors + 1 ? s % 2 : s >= n - sectors)
					memcpy(torn + t->w[i].offset + at, t->w[i].data + at, part);
			}
			must_name(f, torn, len, old, new);
		}
		memcpy(head + t->w[i].offset, t->w[i].data, t->w[i].len);
		free(t->w[i].data);
	}
	must_name(f, head, len, new, new);
	free(torn);
}

static void rename_cut(struct fixture *f, uint32_t cluster, const char *old, const char *new)
{
	struct tap t = { 0 };
	char path[128], command[300];
	uint8_t *head = malloc(cluster);
	int fd = open(path_of(f, "names.qcow2", path), O_RDONLY);

	assert_int_equal(pread(fd, head, cluster, 0), (ssize_t)cluster);
	close(fd);
	snprintf(command, sizeof(command), "cp %s/names.qcow2 %s/cut.qcow2", f->dir, f->dir);
	assert_int_equal(system(command), 0);
	open_disk(f, &f->a, "names.qcow2", BLOCK_NO_BACKING);
	tap_in(f->a, &t);
	assert_int_equal(block_set_backing(f->a, new, "raw", &f->e), 0);
	assert_int_equal(untap(f->a), 0);
	assert_int_equal(block_close(f->a), 0);
	cut_everywhere(f, head, cluster, &t, old, new);
	free(head);
}

static void names_survive_cuts(void **state)
{
	struct fixture *f = *state;
	const uint32_t clusters[] = { 512, 4096, 65536 };
	char middle[200], long_name[1000], longest[1024];

	memset(middle, 'm', sizeof(middle));
	memset(long_name, 'l', sizeof(long_name));
	memset(longest, 'x', sizeof(longest));
	middle[sizeof(middle) - 1] = long_name[sizeof(long_name) - 1] = longest[sizeof(longest) - 1] = 0;
	for (unsigned i = 0; i < sizeof(clusters) / sizeof(clusters[0]); i++) {
		create(f, "names.qcow2", (struct block_create){ .cluster_bytes = clusters[i], .overwrite = true });
		rename_cut(f, clusters[i], NULL, "a");
		rename_cut(f, clusters[i], "a", middle);
		if (clusters[i] > 512) {
			rename_cut(f, clusters[i], middle, long_name);
			rename_cut(f, clusters[i], long_name, "b");
			rename_cut(f, clusters[i], "b", longest);
			rename_cut(f, clusters[i], longest, long_name);
			rename_cut(f, clusters[i], long_name, middle);
		} else {
			open_disk(f, &f->a, "names.qcow2", BLOCK_NO_BACKING);
			assert_int_equal(block_set_backing(f->a, long_name, "raw", &f->e), -ENAMETOOLONG);
			assert_int_equal(block_close(f->a), 0);
		}
		rename_cut(f, clusters[i], middle, NULL);
	}
}

/* --- replacing --- */

static void replaces_only_what_is_free(void **state)
{
	struct fixture *f = *state;
	struct block_create c = { .size_bytes = SIZE };
	char path[128];
	struct stat st;

	create(f, "used.raw", c);
	path_of(f, "used.raw", path);
	open_disk(f, &f->a, "used.raw", 0);
	assert_int_equal(block_create(f->loop, path, "raw", &c, &f->e), -EEXIST);
	c.overwrite = true;
	assert_int_equal(block_create(f->loop, path, "qcow2", &c, &f->e), -EBUSY);
	assert_int_equal(stat(path, &st), 0);
	assert_int_equal(st.st_size, SIZE);
	assert_int_equal(block_close(f->a), 0);
	assert_int_equal(block_create(f->loop, path, "qcow2", &c, &f->e), 0);
	open_disk(f, &f->a, "used.raw", BLOCK_READONLY);
	assert_int_not_equal(block_size(f->a), SIZE);
	assert_int_equal(block_close(f->a), 0);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(converts_on, setup, teardown),
		cmocka_unit_test_setup_teardown(converts, setup, teardown),
		cmocka_unit_test_setup_teardown(convert_refuses, setup, teardown),
		cmocka_unit_test_setup_teardown(convert_cancelled, setup, teardown),
		cmocka_unit_test_setup_teardown(convert_without_room, setup, teardown),
		cmocka_unit_test_setup_teardown(compare_finds_the_first, setup, teardown),
		cmocka_unit_test_setup_teardown(commits, setup, teardown),
		cmocka_unit_test_setup_teardown(rebases, setup, teardown),
		cmocka_unit_test_setup_teardown(rebases_what_stood_alone, setup, teardown),
		cmocka_unit_test_setup_teardown(names_survive_cuts, setup, teardown),
		cmocka_unit_test_setup_teardown(replaces_only_what_is_free, setup, teardown),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
