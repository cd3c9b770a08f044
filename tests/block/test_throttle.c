/* Limits of disks and groups, and disks of a host that has no space left. Times are asserted from below only. */
#include <setjmp.h>
#include <signal.h>
#include <stdio.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

#include <cmocka.h>
#include <errno.h>
#include <limits.h>
#include <fcntl.h>

#include "block/node.h"
#include "host/loop.h"

#define DISK_BYTES (8u << 20)
#define MANY 64u

struct disk {
	struct loop *loop;
	struct block *b[2];
	char path[2][40];
	unsigned done[2];	/* requests that ended well */
	unsigned failed, fulls;
	int last;		/* result */
	unsigned order[MANY], count;
	uint8_t buf[65536];
	struct iovec iov;
};

struct one { struct disk *k; unsigned disk, index; };

static int setup_format(void **state, const char *format, unsigned flags)
{
	struct disk *k = calloc(1, sizeof(*k));

	k->loop = loop_new();
	for (unsigned i = 0; i < 2; i++) {
		snprintf(k->path[i], sizeof(k->path[i]), "/tmp/vixen-throttle-%d-%u", (int)getpid(), i);
		assert_int_equal(block_create(k->loop, k->path[i], format,
					      &(struct block_create){ .size_bytes = DISK_BYTES, .overwrite = true }, NULL), 0);
		assert_int_equal(block_open(&k->b[i], k->loop, k->path[i], format, flags, NULL), 0);
	}
	k->iov = (struct iovec){ k->buf, 4096 };
	*state = k;
	return 0;
}

static int setup(void **state) { return setup_format(state, "raw", 0); }
static int setup_pool(void **state) { return setup_format(state, "raw", BLOCK_NO_IO_URING); }
static int setup_qcow2(void **state) { return setup_format(state, "qcow2", 0); }

static int teardown(void **state)
{
	struct disk *k = *state;

	for (unsigned i = 0; i < 2; i++) {
		block_close(k->b[i]);
		unlink(k->path[i]);
	}
	loop_free(k->loop);
	free(k);
	return 0;
}

static void on_done(void *opaque, int ret)
{
	struct one *o = opaque;

	o->k->last = ret;
	if (ret)
		o->k->failed++;
	else
		o->k->done[o->disk]++;
	if (o->k->count < MANY)
		o->k->order[o->k->count++] = o->index;
	free(o);
}

static void submit(struct disk *k, unsigned disk, unsigned index, bool write, uint64_t offset)
{
	struct one *o = malloc(sizeof(*o));

	*o = (struct one){ k, disk, index };
	if (write)
		block_writev(k->b[disk], offset, &k->iov, 1, on_done, o);
	else
		block_readv(k->b[disk], offset, &k->iov, 1, on_done, o);
}

static unsigned done_all(const struct disk *k)
{
	return k->done[0] + k->done[1] + k->failed;
}

static void on_time(void *opaque) { *(bool *)opaque = true; }

/* Serves the loop until so many have ended, or for a while. */
static void serve(struct disk *k, unsigned n, unsigned ms)
{
	bool over = false;
	struct loop_timer *t = loop_timer_new(k->loop, on_time, &over);

	loop_timer_set(t, clock_now_ns() + ms * 1000000ull);
	while (done_all(k) < n && !over)
		loop_step(k->loop);
	loop_timer_free(t);
}
#define LONG 20000u

static void test_rates(void **state)
{
	struct disk *k = *state;
	struct block_group *g = block_group_new(k->loop);
	uint64_t start = clock_now_ns();

	block_group_limit(g, &(struct block_limits){ .iops = 1000, .iops_burst = 4 });
	assert_int_equal(block_throttle(k->b[0], g, NULL), 0);
	for (unsigned i = 0; i < MANY; i++)
		submit(k, 0, i, i & 1, 4096 * i);
	assert_true(done_all(k) < MANY);
	serve(k, MANY, LONG);
	assert_int_equal(k->done[0], MANY);
	assert_true(clock_now_ns() - start >= 55000000);	/* 64 - 4 - what may go below zero, by 1000 */
	for (unsigned i = 0; i < MANY; i++)
		assert_true(k->order[i] < MANY);
	/* bytes: 64 requests of 4 KiB at 4 MiB/s, with a burst of 32 KiB */
	block_group_limit(g, &(struct block_limits){ .bps = 4 << 20, .bps_burst = 32 << 10 });
	start = clock_now_ns();
	for (unsigned i = 0; i < MANY; i++)
		submit(k, 0, i, i & 1, 4096 * i);
	serve(k, 2 * MANY, LONG);
	assert_int_equal(k->done[0], 2 * MANY);
	assert_true(clock_now_ns() - start >= 50000000);	/* (256 - 32 - 4) KiB */
	block_group_put(g);
}

/* One request a second, and then no limit: what waits goes at once, in order. */
static void test_live(void **state)
{
	struct disk *k = *state;
	struct block_group *g = block_group_new(k->loop);

	block_group_limit(g, &(struct block_limits){ .iops = 1, .iops_burst = 1 });
	assert_int_equal(block_throttle(k->b[0], g, NULL), 0);
	for (unsigned i = 0; i < MANY; i++)
		submit(k, 0, i, true, 0);
	serve(k, MANY, 50);
	assert_true(done_all(k) <= 2);
	block_group_limit(g, &(struct block_limits){ 0 });
	serve(k, MANY, LONG);
	assert_int_equal(k->done[0], MANY);
	block_group_limit(g, &(struct block_limits){ .iops = 1, .iops_burst = 1 });
	for (unsigned i = 0; i < MANY; i++)
		submit(k, 0, i, false, 0);
	serve(k, 2 * MANY, 20);
	assert_true(done_all(k) <= MANY + 2);
	assert_int_equal(block_throttle(k->b[0], NULL, NULL), 0);
	serve(k, 2 * MANY, LONG);
	assert_int_equal(k->done[0], 2 * MANY);
	assert_int_equal(block_throttle(k->b[0], g, NULL), 0);
	for (unsigned i = 0; i < MANY; i++)	/* closing lets them go, too */
		submit(k, 0, i, false, 0);
	block_group_put(g);
	block_close(k->b[0]);
	k->b[0] = NULL;
	assert_int_equal(k->done[0], 3 * MANY);
}

/* Two disks take turns, although one asked for all first; each may have limits of its own besides. */
static void test_group(void **state)
{
	struct disk *k = *state;
	struct block_group *g = block_group_new(k->loop), *own = block_group_new(k->loop);

	block_group_limit(g, &(struct block_limits){ .iops = 500, .iops_burst = 1 });
	block_group_limit(own, &(struct block_limits){ .iops = 100000 });
	assert_int_equal(block_throttle(k->b[0], NULL, g), 0);
	assert_int_equal(block_throttle(k->b[1], own, g), 0);
	for (unsigned i = 0; i < 2 * MANY; i++)
		submit(k, i / MANY, i, false, 0);
	serve(k, MANY, LONG);
	assert_true(k->done[0] >= MANY / 2 - 3 && k->done[0] <= MANY / 2 + 3);
	block_group_limit(own, &(struct block_limits){ .iops = 1, .iops_burst = 1 });
	serve(k, MANY + MANY / 2 - 4, LONG);
	assert_true(k->done[0] >= MANY - 6);	/* only one of them is held up by that */
	block_group_limit(own, &(struct block_limits){ 0 });
	serve(k, 2 * MANY, LONG);
	assert_int_equal(k->done[0], MANY);
	assert_int_equal(k->done[1], MANY);
	block_group_put(g);
	block_group_put(own);
}

static void on_full(void *opaque) { ((struct disk *)opaque)->fulls++; }

static void file_limit(uint64_t bytes)
{
	struct rlimit l;

	assert_int_equal(getrlimit(RLIMIT_FSIZE, &l), 0);
	l.rlim_cur = bytes;
	assert_int_equal(setrlimit(RLIMIT_FSIZE, &l), 0);
}

static uint8_t pattern(unsigned i, unsigned j) { return (uint8_t)(i * 7 + j); }

/* The host's file may not grow: writes wait, and land when it may. */
static void test_full(void **state)
{
	struct disk *k = *state;
	unsigned wrote = 0;

	signal(SIGXFSZ, SIG_IGN);
	block_on_full(k->b[0], on_full, k);
	k->iov.iov_len = sizeof(k->buf);
	file_limit(2 << 20);
	for (unsigned i = 0; i < DISK_BYTES / sizeof(k->buf); i++) {
		unsigned before = done_all(k);

		for (unsigned j = 0; j < sizeof(k->buf); j++)
			k->buf[j] = pattern(i, j);
		submit(k, 0, i, true, i * sizeof(k->buf));
		for (unsigned waits = k->fulls ? 1 : 400; waits && done_all(k) == before; waits = k->fulls ? 0 : waits - 1)
			serve(k, before + 1, k->fulls ? 5 : 50);
		if (done_all(k) > before) {
			wrote++;
			continue;
		}
		assert_true(k->fulls > 0);
		block_retry(k->b[0]);		/* in vain */
		serve(k, before + 1, 20);
		assert_int_equal(done_all(k), before);
		file_limit(RLIM_INFINITY);
		block_retry(k->b[0]);
		serve(k, before + 1, LONG);
		assert_int_equal(done_all(k), before + 1);
		file_limit((2 << 20) + (uint64_t)i * sizeof(k->buf) + (3 << 16));
		wrote++;
	}
	assert_true(k->fulls > 3);
	assert_int_equal(k->failed, 0);
	assert_int_equal(wrote, DISK_BYTES / sizeof(k->buf));
	file_limit(RLIM_INFINITY);
	for (unsigned i = 0; i < wrote; i++) {
		unsigned before = done_all(k);

		submit(k, 0, i, false, i * sizeof(k->buf));
		serve(k, before + 1, LONG);
		for (unsigned j = 0; j < sizeof(k->buf); j++)
			assert_int_equal(k->buf[j], pattern(i, j));
	}
}

static void flush_ended(void *opaque, int ret) { *(int *)opaque = ret; }
static void held(void *opaque, int ret) { *(bool *)opaque = !ret; }

static void turns(struct disk *k, const int *until, unsigned most)
{
	for (unsigned i = 0; i < most && *until > 0; i++)
		serve(k, UINT_MAX, 1);
}

/* Tables that a flush has no space for are written when there is some; the guest sees no error. */
static void test_full_flush(void **state)
{
	struct disk *k = *state;
	int ret = 1;

	signal(SIGXFSZ, SIG_IGN);
	block_on_full(k->b[0], on_full, k);
	submit(k, 0, 0, true, 1 << 20);
	serve(k, 1, LONG);
	file_limit(512);
	block_flush(k->b[0], flush_ended, &ret);
	turns(k, &ret, 100);
	assert_int_equal(ret, 1);
	assert_int_equal(k->fulls, 1);
	block_retry(k->b[0]);
	turns(k, &ret, 50);
	assert_int_equal(ret, 1);
	assert_int_equal(k->fulls, 2);
	file_limit(RLIM_INFINITY);
	block_retry(k->b[0]);
	turns(k, &ret, 10000);
	assert_int_equal(ret, 0);
	file_limit(512);			/* nothing is left to be written */
	ret = 1;
	block_flush(k->b[0], flush_ended, &ret);
	turns(k, &ret, 10000);
	assert_int_equal(ret, 0);
	file_limit(RLIM_INFINITY);
}

/* What the host's own flush had no space for may be gone: an error, and no second try. */
static void test_sync_result(void **state)
{
	assert_int_equal(file_sync_result(-ENOSPC), -EIO);
	assert_int_equal(file_sync_result(-EDQUOT), -EIO);
	assert_int_equal(file_sync_result(-EFBIG), -EIO);
	assert_int_equal(file_sync_result(-EIO), -EIO);
	assert_int_equal(file_sync_result(0), 0);
}

/* What waits for space keeps nobody from holding the disk, and waits on when it is tried again while that lasts. */
static void test_full_held(void **state)
{
	struct disk *k = *state;
	bool mine = false;

	signal(SIGXFSZ, SIG_IGN);
	block_on_full(k->b[0], on_full, k);
	file_limit(512);
	submit(k, 0, 0, true, 4 << 20);
	for (unsigned i = 0; i < 1000 && !k->fulls; i++)
		serve(k, 1, 1);
	assert_int_equal(k->fulls, 1);
	block_hold(k->b[0], held, &mine);
	assert_true(mine);
	file_limit(RLIM_INFINITY);
	block_retry(k->b[0]);
	serve(k, 1, 50);
	assert_int_equal(done_all(k), 0);
	block_release(k->b[0]);
	serve(k, 1, LONG);
	assert_int_equal(done_all(k), 1);
	assert_int_equal(k->failed, 0);
}

/* A disk gets smaller only where nothing is lost, unless that is meant; what waits behind the change is held to the new end. */
static void test_shrink(void **state)
{
	struct disk *k = *state;
	struct error e;

	submit(k, 0, 0, true, 5 << 20);
	serve(k, 1, LONG);
	assert_int_equal(block_resize(k->b[0], 4 << 20, 0, &e), -EINVAL);
	k->buf[100] = 1;
	submit(k, 0, 0, true, 6 << 20);
	serve(k, 2, LONG);
	assert_int_equal(block_resize(k->b[0], 4 << 20, BLOCK_SHRINK | BLOCK_SHRINK_EMPTY, &e), -ENOTEMPTY);
	assert_non_null(strstr(e.why, "byte 6291456"));
	assert_int_equal(block_size(k->b[0]), DISK_BYTES);
	k->buf[100] = 0;
	submit(k, 0, 0, true, 6 << 20);		/* data, but zeroes */
	serve(k, 3, LONG);
	file_limit(512);
	block_on_full(k->b[0], on_full, k);
	submit(k, 0, 0, true, 7 << 20);		/* waits for space, and then lies past the end */
	for (unsigned i = 0; i < 1000 && !k->fulls; i++)
		serve(k, 4, 1);
	file_limit(RLIM_INFINITY);
	assert_int_equal(block_resize(k->b[0], 4 << 20, BLOCK_SHRINK | BLOCK_SHRINK_EMPTY, &e), 0);
	assert_int_equal(block_size(k->b[0]), 4 << 20);
	block_retry(k->b[0]);
	serve(k, 4, 50);
	assert_int_equal(k->failed, 1);
	assert_int_equal(k->last, -EIO);
	submit(k, 0, 0, true, (4 << 20) - 4096);
	serve(k, 5, LONG);
	k->buf[0] = 1;
	submit(k, 0, 0, true, 2 << 20);
	serve(k, 6, LONG);
	assert_int_equal(block_resize(k->b[0], 1 << 20, BLOCK_SHRINK, &e), 0);
	assert_int_equal(block_size(k->b[0]), 1 << 20);
}

static void test_full_given_up(void **state)
{
	struct disk *k = *state;

	signal(SIGXFSZ, SIG_IGN);
	file_limit(1 << 20);
	submit(k, 0, 0, true, 4 << 20);		/* nobody watches */
	serve(k, 1, LONG);
	assert_int_equal(k->last, -ENOSPC);
	block_on_full(k->b[0], on_full, k);
	for (unsigned i = 0; i < 8; i++)
		submit(k, 0, i, true, (4 << 20) + 65536 * i);
	serve(k, 9, 50);
	assert_int_equal(done_all(k), 1);
	block_on_full(k->b[0], NULL, NULL);
	serve(k, 9, LONG);
	assert_int_equal(k->failed, 9);
	block_on_full(k->b[0], on_full, k);
	submit(k, 0, 0, true, 4 << 20);
	serve(k, 10, 50);
	block_close(k->b[0]);			/* with one stuck */
	k->b[0] = NULL;
	assert_int_equal(k->failed, 10);
	file_limit(RLIM_INFINITY);
}

int main(void)
{
#define T(name, setup) { #name " " #setup, name, setup, teardown, NULL }
	const struct CMUnitTest tests[] = {
		T(test_rates, setup), T(test_rates, setup_pool), T(test_live, setup), T(test_live, setup_qcow2),
		T(test_group, setup), T(test_full, setup), T(test_full, setup_pool), T(test_full, setup_qcow2),
		T(test_full_flush, setup_qcow2), T(test_full_held, setup), T(test_full_held, setup_qcow2),
		T(test_sync_result, setup), T(test_shrink, setup), T(test_shrink, setup_qcow2),
		T(test_full_given_up, setup), T(test_full_given_up, setup_pool),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
