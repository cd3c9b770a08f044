/* How long a halted vCPU looks out before it sleeps; and that no news is lost between the two. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "machine/board_private.h"
#include "machine/halt.h"

static void test_window(void **state)
{
	uint32_t w = 0;

	assert_int_equal(halt_window_next(0, 4000000), 0);			/* an idle guest's tick */
	assert_int_equal(halt_window_next(0, 30000), HALT_WINDOW_MIN_NS);
	for (unsigned i = 0; i < 20; i++) {
		uint32_t next = halt_window_next(w, HALT_WINDOW_MAX_NS);
		assert_true(next >= w && next <= HALT_WINDOW_MAX_NS);
		w = next;
	}
	assert_int_equal(w, HALT_WINDOW_MAX_NS);
	assert_int_equal(halt_window_next(w, 10), w);				/* it paid */
	assert_int_equal(halt_window_next(w, HALT_WINDOW_MAX_NS + 1ull), 0);
}

#define ROUNDS 20000u

struct pair { struct cpu_thread a, b; };

static void news(struct cpu_thread *c)
{
	pthread_mutex_lock(&c->lock);
	c->wake = true;
	pthread_cond_signal(&c->cond);
	pthread_mutex_unlock(&c->lock);
}

static void wait_for_news(struct cpu_thread *c)
{
	halt_wait(c);
	pthread_mutex_lock(&c->lock);
	c->wake = false;
	pthread_mutex_unlock(&c->lock);
}

static void *echo(void *opaque)
{
	struct pair *p = opaque;

	for (unsigned i = 0; i < ROUNDS; i++) {
		wait_for_news(&p->b);
		news(&p->a);
	}
	return NULL;
}

static void init(struct cpu_thread *c, bool looks, uint32_t window_ns)
{
	memset(c, 0, sizeof *c);
	pthread_mutex_init(&c->lock, NULL);
	pthread_cond_init(&c->cond, NULL);
	c->halt_looks = looks;
	c->halt_window_ns = window_ns;
}

/* Every combination of looking and sleeping ends; without the permission to look the window never opens. */
static void test_wakes(void **state)
{
	for (unsigned turn = 0; turn < 4; turn++) {
		struct pair p;
		pthread_t t;
		init(&p.a, turn & 1, 0);
		init(&p.b, turn & 2, 0);
		assert_int_equal(pthread_create(&t, NULL, echo, &p), 0);
		for (unsigned i = 0; i < ROUNDS; i++) {
			news(&p.b);
			wait_for_news(&p.a);
		}
		pthread_join(t, NULL);
		assert_true((turn & 1) || !p.a.halt_window_ns);
		assert_true((turn & 2) || !p.b.halt_window_ns);
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_window),
		cmocka_unit_test(test_wakes),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
