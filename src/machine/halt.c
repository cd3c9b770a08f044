/*
 * How a halted vCPU waits for news.
 *
 *   halted -- look out for `window_ns` -- news --> run
 *                  |
 *                  '-- sleep -- news ------------> run
 *
 * A sleeping thread runs again some ten microseconds after it was woken. Where news keeps coming sooner than that pays,
 * as between two vCPUs that talk to each other, the vCPU looks out for it first; where it does not, as in an idle guest,
 * it sleeps at once. The thread gives its core away between looks, and with more vCPUs than cores it never looks out.
 */
#include "machine/halt.h"

#include <sched.h>

#include "host/loop.h"
#include "machine/board_private.h"

#define LOOKS_PER_YIELD 16

uint32_t halt_window_next(uint32_t window_ns, uint64_t waited_ns)
{
	if (waited_ns > HALT_WINDOW_MAX_NS)
		return 0;
	if (waited_ns <= window_ns)
		return window_ns;
	if (!window_ns)
		return HALT_WINDOW_MIN_NS;
	return window_ns < HALT_WINDOW_MAX_NS / 2 ? 2 * window_ns : HALT_WINDOW_MAX_NS;
}

bool halt_may_look(unsigned vcpus)
{
	cpu_set_t set;

	return sched_getaffinity(0, sizeof set, &set) == 0 && (unsigned)CPU_COUNT(&set) >= vcpus && CPU_COUNT(&set) > 1;
}

static void look_out(struct cpu_thread *c, uint64_t until_ns)
{
	while (!atomic_load_explicit(&c->wake, memory_order_relaxed) && clock_now_ns() < until_ns) {
		for (unsigned i = 0; i < LOOKS_PER_YIELD && !atomic_load_explicit(&c->wake, memory_order_relaxed); i++)
			__builtin_ia32_pause();
		sched_yield();
	}
}

void halt_wait(struct cpu_thread *c)
{
	uint64_t start_ns = clock_now_ns();

	if (c->halt_window_ns)
		look_out(c, start_ns + c->halt_window_ns);
	pthread_mutex_lock(&c->lock);
	while (!c->wake)
		pthread_cond_wait(&c->cond, &c->lock);
	pthread_mutex_unlock(&c->lock);
	if (c->halt_looks)
		c->halt_window_ns = halt_window_next(c->halt_window_ns, clock_now_ns() - start_ns);
}
