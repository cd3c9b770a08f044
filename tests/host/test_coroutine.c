#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>
#include <errno.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include "host/coroutine.h"
#include "host/loop.h"

struct world {
	struct loop *loop;
	struct coroutines *s;
	char log[256];
	struct co *waiting[4];
	struct co_mutex mutex;
	struct co_queue queue;
	unsigned ended;
};

struct worker {
	struct world *w;
	unsigned id;
};

static int setup(void **state)
{
	struct world *w = calloc(1, sizeof(*w));

	w->loop = loop_new();
	w->s = loop_coroutines(w->loop);
	*state = w;
	return 0;
}

static int teardown(void **state)
{
	struct world *w = *state;

	loop_free(w->loop);
	free(w);
	return 0;
}

static void say(struct world *w, char kind, unsigned id)
{
	size_t n = strlen(w->log);

	snprintf(w->log + n, sizeof(w->log) - n, "%c%u ", kind, id);
}

static void waits_twice(void *opaque)
{
	struct worker *k = opaque;

	for (unsigned i = 0; i < 2; i++) {
		say(k->w, 'w', k->id);
		k->w->waiting[k->id] = co_self(k->w->s);
		co_wait(k->w->s);
	}
	say(k->w, 'e', k->id);
}

static void test_switches(void **state)
{
	struct world *w = *state;
	struct worker k[2] = { { w, 0 }, { w, 1 } };

	assert_null(co_self(w->s));
	assert_int_equal(co_start(w->s, waits_twice, &k[0]), 0);
	assert_int_equal(co_start(w->s, waits_twice, &k[1]), 0);
	assert_null(co_self(w->s));
	co_wake(w->s, w->waiting[0]);
	co_wake(w->s, w->waiting[1]);
	co_wake(w->s, w->waiting[1]);
	co_wake(w->s, w->waiting[0]);
	assert_string_equal(w->log, "w0 w1 w0 w1 e1 e0 ");
}

static void starts_another(void *opaque)
{
	struct worker *k = opaque, *other = k + 1;

	say(k->w, 'a', k->id);
	assert_int_equal(co_start(k->w->s, waits_twice, other), 0);
	say(k->w, 'b', k->id);
}

/* Started inside a coroutine, it runs when that one ended. */
static void test_nested_start(void **state)
{
	struct world *w = *state;
	struct worker k[2] = { { w, 0 }, { w, 1 } };

	assert_int_equal(co_start(w->s, starts_another, k), 0);
	assert_string_equal(w->log, "a0 b0 w1 ");
	co_wake(w->s, w->waiting[1]);
	co_wake(w->s, w->waiting[1]);
}

static void locker(void *opaque)
{
	struct worker *k = opaque;

	co_lock(k->w->s, &k->w->mutex);
	say(k->w, 'l', k->id);
	if (k->id == 0) {
		k->w->waiting[0] = co_self(k->w->s);
		co_wait(k->w->s);
	}
	say(k->w, 'u', k->id);
	co_unlock(k->w->s, &k->w->mutex);
	k->w->ended++;
}

static void test_mutex_is_fair(void **state)
{
	struct world *w = *state;
	struct worker k[3] = { { w, 0 }, { w, 1 }, { w, 2 } };

	for (unsigned i = 0; i < 3; i++)
		assert_int_equal(co_start(w->s, locker, &k[i]), 0);
	assert_string_equal(w->log, "l0 ");
	co_wake(w->s, w->waiting[0]);
	assert_string_equal(w->log, "l0 u0 l1 u1 l2 u2 ");
	assert_int_equal(w->ended, 3);
	assert_false(w->mutex.held);
}

static void queuer(void *opaque)
{
	struct worker *k = opaque;

	co_queue_wait(k->w->s, &k->w->queue);
	say(k->w, 'q', k->id);
	if (k->id == 1) {
		k->id = 7;
		co_queue_wait(k->w->s, &k->w->queue);
		say(k->w, 'q', k->id);
	}
}

static void test_queue(void **state)
{
	struct world *w = *state;
	struct worker k[3] = { { w, 0 }, { w, 1 }, { w, 2 } };

	for (unsigned i = 0; i < 3; i++)
		assert_int_equal(co_start(w->s, queuer, &k[i]), 0);
	assert_true(co_queue_wake_one(w->s, &w->queue));
	assert_string_equal(w->log, "q0 ");
	co_queue_wake_all(w->s, &w->queue);
	assert_string_equal(w->log, "q0 q1 q2 ");
	assert_true(co_queue_wake_one(w->s, &w->queue));
	assert_false(co_queue_wake_one(w->s, &w->queue));
	assert_string_equal(w->log, "q0 q1 q2 q7 ");
}

static void wake_first(void *opaque)
{
	struct world *w = opaque;

	co_wake(w->s, w->waiting[0]);
}

struct run {
	struct world *w;
	int ret;
};

static int wait_for_loop(void *opaque)
{
	struct run *r = opaque;

	for (unsigned i = 0; i < 3; i++) {
		r->w->waiting[0] = co_self(r->w->s);
		loop_post(r->w->loop, wake_first, r->w);
		co_wait(r->w->s);
		say(r->w, 'p', i);
	}
	return r->ret;
}

static int run_in_run(void *opaque)
{
	return co_run(((struct run *)opaque)->w->loop, wait_for_loop, opaque);
}

static void test_run(void **state)
{
	struct world *w = *state;
	struct run r = { w, -EIO };

	assert_int_equal(co_run(w->loop, wait_for_loop, &r), -EIO);
	assert_string_equal(w->log, "p0 p1 p2 ");
	r.ret = 42;
	assert_int_equal(co_run(w->loop, run_in_run, &r), 42);
}

static void call_early(void *opaque)
{
	struct world *w = opaque;
	struct co_call c = { .s = w->s };

	co_call_done(&c, -ENOSPC);
	assert_int_equal(co_call_wait(&c), -ENOSPC);
	say(w, 'c', 0);
}

static void test_call_done_before_wait(void **state)
{
	struct world *w = *state;

	assert_int_equal(co_start(w->s, call_early, w), 0);
	assert_string_equal(w->log, "c0 ");
}

/* Many at once, more than the pool keeps, each with a deep stack and floating point under way. */
static double deep(unsigned n, double x)
{
	volatile uint8_t pad[512];

	pad[0] = pad[511] = (uint8_t)n;
	return n ? deep(n - 1, x) + pad[0] : x;
}

static void computes(void *opaque)
{
	struct world *w = opaque;
	double x = deep(100, 0.5);

	co_queue_wait(w->s, &w->queue);
	w->ended += (deep(100, 0.5) == x);
}

static void test_many(void **state)
{
	struct world *w = *state;

	for (unsigned round = 0; round < 2; round++) {
		for (unsigned i = 0; i < 500; i++)
			assert_int_equal(co_start(w->s, computes, w), 0);
		co_queue_wake_all(w->s, &w->queue);
		assert_int_equal(w->ended, 500 * (round + 1));
	}
}

static unsigned endless(volatile unsigned *n)
{
	volatile uint8_t pad[1024];

	pad[0] = 1;
	return *n ? endless(n) + pad[0] : 0;
}

static void overflows(void *opaque)
{
	volatile unsigned n = 1;

	endless(&n);
}

/* The page below the stack stops it before it writes into somebody else's memory. */
static void test_guard_page(void **state)
{
	struct world *w = *state;
	pid_t pid = fork();
	int status;

	if (!pid) {
		setrlimit(RLIMIT_CORE, &(struct rlimit){ 0, 0 });
		close(2);
		co_start(w->s, overflows, w);
		_exit(0);
	}
	assert_int_equal(waitpid(pid, &status, 0), pid);
	assert_false(WIFEXITED(status) && WEXITSTATUS(status) == 0);
}

#define T(name) cmocka_unit_test_setup_teardown(name, setup, teardown)

int main(void)
{
	const struct CMUnitTest tests[] = {
		T(test_switches), T(test_nested_start), T(test_mutex_is_fair), T(test_queue), T(test_run),
		T(test_call_done_before_wait), T(test_many), T(test_guard_page),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
