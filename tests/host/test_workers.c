#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>

#include <cmocka.h>
#include <pthread.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include "host/coroutine.h"
#include "host/loop.h"
#include "host/workers.h"

#define ROUNDS 500u
#define MANY 40u

struct world {
	struct loop *loop;
	struct workers *w;
	unsigned ended;
	pthread_t self;
	struct co_queue end;
};

static int setup(void **state)
{
	struct world *w = calloc(1, sizeof(*w));

	w->loop = loop_new();
	w->w = workers_new(w->loop);
	w->self = pthread_self();
	*state = w;
	return 0;
}

static int teardown(void **state)
{
	struct world *w = *state;

	workers_free(w->w);
	loop_free(w->loop);
	free(w);
	return 0;
}

struct sum {
	unsigned n, out;
	pthread_t by;
};

static void add_up(void *opaque)
{
	struct sum *s = opaque;

	s->by = pthread_self();
	for (unsigned i = 0; i <= s->n; i++)
		s->out += i;
}

static void many_sums(void *opaque)
{
	struct world *w = opaque;

	for (unsigned i = 0; i < ROUNDS; i++) {
		struct sum s = { .n = i };

		workers_co_run(w->w, add_up, &s);
		assert_int_equal(s.out, i * (i + 1) / 2);
		assert_false(pthread_equal(s.by, w->self));
		assert_true(pthread_equal(pthread_self(), w->self));
	}
	w->ended++;
	co_queue_wake_all(loop_coroutines(w->loop), &w->end);
}

static int start_all(void *opaque)
{
	struct world *w = opaque;

	for (unsigned i = 0; i < MANY; i++)
		assert_int_equal(co_start(loop_coroutines(w->loop), many_sums, w), 0);
	while (w->ended < MANY)
		co_queue_wait(loop_coroutines(w->loop), &w->end);
	return 0;
}

static void many_at_once(void **state)
{
	struct world *w = *state;

	assert_int_equal(co_run(w->loop, start_all, w), 0);
	assert_int_equal(w->ended, MANY);
}

static void never_used(void **state)
{
	(void)state;
}

/* The other computation ends only because this coroutine runs while it waits for it. */
struct gate {
	struct world *w;
	pthread_mutex_t closed;
};

static void pass_gate(void *opaque)
{
	struct gate *g = opaque;

	pthread_mutex_lock(&g->closed);
	pthread_mutex_unlock(&g->closed);
}

static void waiter(void *opaque)
{
	struct gate *g = opaque;

	workers_co_run(g->w->w, pass_gate, g);
	g->w->ended++;
}

static int open_gate(void *opaque)
{
	struct gate *g = opaque;
	struct coroutines *s = loop_coroutines(g->w->loop);

	pthread_mutex_lock(&g->closed);
	assert_int_equal(co_start(s, waiter, g), 0);
	assert_int_equal(g->w->ended, 0);
	pthread_mutex_unlock(&g->closed);
	workers_co_run(g->w->w, pass_gate, g);
	return 0;
}

static void others_run(void **state)
{
	struct gate g = { *state, PTHREAD_MUTEX_INITIALIZER };

	assert_int_equal(co_run(g.w->loop, open_gate, &g), 0);
	while (!g.w->ended)
		assert_int_equal(loop_step(g.w->loop), 0);
}

static int one_sum(void *opaque)
{
	struct world *w = opaque;
	struct sum s = { .n = 10 };

	workers_co_run(w->w, add_up, &s);
	return s.out == 55 && pthread_equal(s.by, w->self) ? 0 : 1;
}

/* In a process of its own: root has no such limit. */
static void no_threads(void **state)
{
	struct world *w = *state;
	int status;
	pid_t child = fork();

	if (!child) {
		const struct rlimit none = { 0, 0 };

		setrlimit(RLIMIT_NPROC, &none);
		if (!geteuid() && (setgid(65534) || setuid(65534)))
			_exit(3);
		_exit(co_run(w->loop, one_sum, w));
	}
	assert_int_equal(waitpid(child, &status, 0), child);
	assert_true(WIFEXITED(status));
	assert_int_equal(WEXITSTATUS(status), 0);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(many_at_once, setup, teardown),
		cmocka_unit_test_setup_teardown(never_used, setup, teardown),
		cmocka_unit_test_setup_teardown(others_run, setup, teardown),
		cmocka_unit_test_setup_teardown(no_threads, setup, teardown),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
