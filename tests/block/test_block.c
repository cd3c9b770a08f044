#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/stat.h>

#include "block/aio.h"
#include "block/block.h"
#include "host/coroutine.h"
#include "host/loop.h"

#define SIZE (4u << 20)

struct fixture {
	struct loop *loop;
	struct block *b;
	char path[64];
	int pending, ret;
	uint8_t model[SIZE];	/* what the disk must hold */
};

static int setup(void **state)
{
	struct fixture *f = calloc(1, sizeof(*f));
	int fd;

	f->loop = loop_new();
	strcpy(f->path, "/tmp/vixen-block-XXXXXX");
	fd = mkstemp(f->path);
	assert_int_equal(ftruncate(fd, SIZE), 0);
	close(fd);
	*state = f;
	return 0;
}

static int teardown(void **state)
{
	struct fixture *f = *state;

	block_close(f->b);
	loop_free(f->loop);
	unlink(f->path);
	free(f);
	return 0;
}

static void done(void *opaque, int ret)
{
	struct fixture *f = opaque;

	if (ret)
		f->ret = ret;
	if (!--f->pending)
		loop_stop(f->loop);
}

static int finish(struct fixture *f)
{
	int ret;

	while (f->pending)	/* a stop from before the run ends the run at once */
		loop_run(f->loop);
	ret = f->ret;
	f->ret = 0;
	return ret;
}

static int rw(struct fixture *f, bool write, uint64_t offset, void *buf, size_t len)
{
	struct iovec iov[2] = { { buf, len / 2 }, { (uint8_t *)buf + len / 2, len - len / 2 } };

	f->pending = 1;
	(write ? block_writev : block_readv)(f->b, offset, iov, 2, done, f);
	return finish(f);
}

static int zeroes(struct fixture *f, uint64_t offset, uint64_t len, bool unmap)
{
	f->pending = 1;
	block_write_zeroes(f->b, offset, len, unmap, done, f);
	return finish(f);
}

static void open_ok(struct fixture *f, unsigned flags)
{
	struct error e = {0};

	if (block_open(&f->b, f->loop, f->path, NULL, flags, &e))
		fail_msg("%s: %s", e.what, e.why);
}

static void check_all(struct fixture *f)
{
	uint8_t *buf = malloc(SIZE);

	assert_int_equal(rw(f, false, 0, buf, SIZE), 0);
	assert_memory_equal(buf, f->model, SIZE);
	free(buf);
}

static void random_work(struct fixture *f, unsigned flags)
{
	uint8_t *buf = malloc(SIZE);

	open_ok(f, flags);
	srandom(3);
	for (unsigned i = 0; i < 2000; i++) {
		uint64_t offset = (uint64_t)random() % (SIZE / 512) * 512;
		uint64_t len = (1 + (uint64_t)random() % (i % 16 ? 40 : 600)) * 512;

		if (len > SIZE - offset)
			len = SIZE - offset;
		switch (random() % 5) {
		case 0:
			assert_int_equal(zeroes(f, offset, len, random() & 1), 0);
			memset(f->model + offset, 0, len);
			break;
		case 1:
		case 2:
			memset(buf, (int)random(), len);
			assert_int_equal(rw(f, true, offset, buf, len), 0);
			memcpy(f->model + offset, buf, len);
			break;
		case 3:
			f->pending = 1;
			block_flush(f->b, done, f);
			assert_int_equal(finish(f), 0);
			break;
		default:
			assert_int_equal(rw(f, false, offset, buf, len), 0);
			assert_memory_equal(buf, f->model + offset, len);
		}
	}
	check_all(f);
	free(buf);
}

static void test_io_uring(void **state)
{
	random_work(*state, 0);
}

static void test_threads(void **state)
{
	random_work(*state, BLOCK_NO_IO_URING);
}

static void base_untouched(struct fixture *f)
{
	uint8_t *buf = malloc(SIZE);
	int fd = open(f->path, O_RDONLY);

	assert_int_equal(read(fd, buf, SIZE), SIZE);
	for (unsigned i = 0; i < SIZE; i++)
		assert_int_equal(buf[i], (uint8_t)(i >> 12));
	close(fd);
	free(buf);
}

static void ephemeral(struct fixture *f, unsigned flags)
{
	int fd = open(f->path, O_WRONLY);

	for (unsigned i = 0; i < SIZE; i++)
		f->model[i] = (uint8_t)(i >> 12);
	assert_int_equal(write(fd, f->model, SIZE), SIZE);
	close(fd);
	random_work(f, BLOCK_EPHEMERAL | flags);
	base_untouched(f);
}

static void test_ephemeral(void **state)
{
	ephemeral(*state, 0);
}

static void test_ephemeral_threads(void **state)
{
	ephemeral(*state, BLOCK_NO_IO_URING);
}

/* Neighbouring small writes all at once: every cluster is copied by one of them only. */
static void test_ephemeral_concurrent(void **state)
{
	struct fixture *f = *state;
	uint8_t *buf = malloc(SIZE);
	struct iovec iov[64];

	for (unsigned i = 0; i < SIZE; i++)
		f->model[i] = (uint8_t)(i >> 12);
	int fd = open(f->path, O_WRONLY);
	assert_int_equal(write(fd, f->model, SIZE), SIZE);
	close(fd);
	open_ok(f, BLOCK_EPHEMERAL | BLOCK_NO_IO_URING);
	for (unsigned round = 0; round < 16; round++) {
		f->pending = 64;
		for (unsigned i = 0; i < 64; i++) {
			uint64_t offset = (round * 64 + (i * 37 & 63)) * 4096ull + 512;

			memset(buf + i * 1024, (int)(i + round), 1024);
			memset(f->model + offset, (int)(i + round), 1024);
			iov[i] = (struct iovec){ buf + i * 1024, 1024 };
			block_writev(f->b, offset, &iov[i], 1, done, f);
		}
		assert_int_equal(finish(f), 0);
	}
	check_all(f);
	free(buf);
}

static void test_locks(void **state)
{
	struct fixture *f = *state;
	struct block *other = NULL, *third = NULL;
	struct error e = {0};

	open_ok(f, 0);
	assert_int_equal(block_open(&other, f->loop, f->path, NULL, 0, &e), -EBUSY);
	assert_string_equal(e.why, "image is in use by another VM");
	assert_int_equal(block_open(&other, f->loop, f->path, NULL, BLOCK_READONLY, &e), -EBUSY);
	block_close(f->b);
	open_ok(f, BLOCK_READONLY);
	assert_int_equal(block_open(&other, f->loop, f->path, NULL, BLOCK_EPHEMERAL, &e), 0);
	assert_int_equal(block_open(&third, f->loop, f->path, NULL, 0, &e), -EBUSY);
	block_close(other);
}

static void refuse(struct fixture *f, const char *format, const char *why)
{
	struct error e = {0};
	struct block *b;

	assert_int_equal(block_open(&b, f->loop, f->path, format, 0, &e), -EINVAL);
	if (!strstr(e.why, why))
		fail_msg("'%s' does not say '%s'", e.why, why);
	assert_true(e.todo[0]);
}

static void test_refused(void **state)
{
	struct fixture *f = *state;
	struct error e = {0};
	struct block *b;
	int fd = open(f->path, O_WRONLY);

	refuse(f, "qed", "not supported");
	assert_int_equal(write(fd, "QFI\xfb", 4), 4);
	refuse(f, NULL, "qcow2");
	assert_int_equal(block_open(&b, f->loop, f->path, "raw", 0, &e), 0);
	block_close(b);
	assert_int_equal(ftruncate(fd, 1000), 0);
	refuse(f, "raw", "multiple of 512");
	assert_int_equal(ftruncate(fd, 0), 0);
	refuse(f, "raw", "empty");
	close(fd);
	assert_int_equal(block_open(&b, f->loop, "/nonexistent/disk", NULL, 0, &e), -ENOENT);
	assert_int_equal(block_open(&b, f->loop, "/tmp", NULL, BLOCK_READONLY, &e), -EINVAL);
}

static void test_readonly_and_bounds(void **state)
{
	struct fixture *f = *state;
	uint8_t buf[1024];

	open_ok(f, BLOCK_READONLY);
	assert_true(block_readonly(f->b));
	assert_int_equal(rw(f, true, 0, buf, 1024), -EROFS);
	assert_int_equal(zeroes(f, 0, 512, true), -EROFS);
	block_close(f->b);
	open_ok(f, 0);
	assert_int_equal(rw(f, false, SIZE - 512, buf, 1024), -EINVAL);
	assert_int_equal(rw(f, false, SIZE, buf, 1024), -EINVAL);
	assert_int_equal(rw(f, false, UINT64_MAX - 511, buf, 1024), -EINVAL);
	assert_int_equal(rw(f, false, 1, buf, 1024), -EINVAL);
	assert_int_equal(rw(f, true, 0, buf, 1000), -EINVAL);
	assert_int_equal(zeroes(f, 512, SIZE, false), -EINVAL);
	assert_int_equal(rw(f, false, SIZE - 1024, buf, 1024), 0);
}

/* A file size limit stands for a full host: writes past it fail, those below go on. */
static void no_space(struct fixture *f, unsigned flags)
{
	struct rlimit old, small;
	uint8_t buf[4096] = {1};

	getrlimit(RLIMIT_FSIZE, &old);
	small = (struct rlimit){ 1 << 20, old.rlim_max };
	signal(SIGXFSZ, SIG_IGN);
	open_ok(f, flags);
	setrlimit(RLIMIT_FSIZE, &small);
	assert_int_equal(rw(f, true, 2 << 20, buf, 4096), -ENOSPC);
	assert_int_equal(rw(f, true, 2 << 20, buf, 4096), -ENOSPC);
	assert_int_equal(rw(f, true, 0, buf, 4096), 0);
	setrlimit(RLIMIT_FSIZE, &old);
	assert_int_equal(rw(f, true, 2 << 20, buf, 4096), 0);
}

static void test_no_space_threads(void **state)
{
	no_space(*state, BLOCK_NO_IO_URING);
}

static void test_truncated_under_us(void **state)
{
	struct fixture *f = *state;
	uint8_t buf[4096];

	open_ok(f, 0);
	assert_int_equal(truncate(f->path, 1 << 20), 0);
	assert_int_equal(rw(f, false, 2 << 20, buf, 4096), -EIO);
	assert_int_equal(rw(f, false, (1 << 20) - 2048, buf, 4096), -EIO);
	assert_int_equal(rw(f, false, 0, buf, 4096), 0);
}

static void test_discard_frees(void **state)
{
	struct fixture *f = *state;
	uint8_t *buf = calloc(1, SIZE);
	struct stat before, after;

	memset(buf, 1, SIZE);
	open_ok(f, 0);
	assert_int_equal(rw(f, true, 0, buf, SIZE), 0);
	f->pending = 1;
	block_flush(f->b, done, f);
	assert_int_equal(finish(f), 0);
	stat(f->path, &before);
	f->pending = 1;
	block_discard(f->b, 0, SIZE / 2, done, f);
	assert_int_equal(finish(f), 0);
	stat(f->path, &after);
	if (block_can_discard(f->b))
		assert_true(after.st_blocks < before.st_blocks);
	assert_int_equal(after.st_size, SIZE);
	free(buf);
}

static void test_close_waits(void **state)
{
	struct fixture *f = *state;
	uint8_t *buf = calloc(1, SIZE);
	struct iovec iov = { buf, 65536 };

	for (unsigned round = 0; round < 2; round++) {
		open_ok(f, round ? BLOCK_NO_IO_URING : 0);
		f->pending = 1000;
		for (unsigned i = 0; i < 1000; i++)
			block_writev(f->b, i % 64 * 65536, &iov, 1, done, f);
		block_close(f->b);
		f->b = NULL;
		assert_int_equal(f->pending, 0);
	}
	free(buf);
}

static void close_main(void *opaque)
{
	struct fixture *f = opaque;
	struct block *b = f->b;

	assert_int_equal(block_co_write(b, 0, f->model, 4096), 0);
	assert_int_equal(block_co_flush(b), 0);		/* a completion goes on from here */
	f->b = NULL;
	assert_int_equal(block_close(b), 0);
	loop_stop(f->loop);
}

/* Closed by what waited for its last request: the queue to the host goes away inside of its own completion. */
static void close_inside(struct fixture *f, unsigned flags)
{
	for (unsigned i = 0; i < 20; i++) {
		assert_int_equal(block_open(&f->b, f->loop, f->path, "raw", flags, NULL), 0);
		assert_int_equal(co_start(loop_coroutines(f->loop), close_main, f), 0);
		while (f->b)
			loop_run(f->loop);
	}
}

static void test_close_in_completion(void **state) { close_inside(*state, 0); }
static void test_close_in_completion_threads(void **state) { close_inside(*state, BLOCK_NO_IO_URING); }

#define T(name) cmocka_unit_test_setup_teardown(name, setup, teardown)

int main(void)
{
	const struct CMUnitTest tests[] = {
		T(test_io_uring), T(test_threads), T(test_ephemeral), T(test_ephemeral_threads),
		T(test_ephemeral_concurrent), T(test_locks), T(test_refused), T(test_readonly_and_bounds),
		T(test_no_space_threads), T(test_truncated_under_us), T(test_discard_frees),
		T(test_close_waits), T(test_close_in_completion), T(test_close_in_completion_threads),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
