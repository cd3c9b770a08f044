#include "host/workers.h"

#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdbool.h>
#include <stdlib.h>

#include "host/coroutine.h"
#include "host/loop.h"

/* One computation, on the stack of the coroutine that waits for it. */
struct work {
	void (*fn)(void *arg);
	void *arg;
	struct work *next;
	struct co_call call;
};

/* Lock: `lock` covers todo, todo_tail and stop. */
struct workers {
	struct loop *loop;
	pthread_mutex_t lock;
	pthread_cond_t wanted;
	struct work *todo, **todo_tail;
	bool stop;
	unsigned threads, most, under_way;	/* the loop's thread's */
	pthread_t thread[WORKERS_MAX];
};

static unsigned usable_cpus(void)
{
	cpu_set_t set;
	int n = sched_getaffinity(0, sizeof(set), &set) ? 1 : CPU_COUNT(&set);

	return n < 1 ? 1 : (unsigned)n < WORKERS_MAX ? (unsigned)n : WORKERS_MAX;
}

struct workers *workers_new(struct loop *l)
{
	struct workers *w = calloc(1, sizeof(*w));

	if (!w)
		return NULL;
	w->loop = l;
	w->todo_tail = &w->todo;
	w->most = usable_cpus();
	pthread_mutex_init(&w->lock, NULL);
	pthread_cond_init(&w->wanted, NULL);
	return w;
}

void workers_free(struct workers *w)
{
	if (!w)
		return;
	pthread_mutex_lock(&w->lock);
	w->stop = true;
	pthread_cond_broadcast(&w->wanted);
	pthread_mutex_unlock(&w->lock);
	for (unsigned i = 0; i < w->threads; i++)
		pthread_join(w->thread[i], NULL);
	pthread_cond_destroy(&w->wanted);
	pthread_mutex_destroy(&w->lock);
	free(w);
}

/* --- the threads --- */

static void finished(void *opaque)
{
	struct work *k = opaque;

	co_call_done(&k->call, 0);
}

/* NULL: it is over. */
static struct work *take(struct workers *w)
{
	struct work *k;

	pthread_mutex_lock(&w->lock);
	while (!w->todo && !w->stop)
		pthread_cond_wait(&w->wanted, &w->lock);
	k = w->todo;
	if (k) {
		w->todo = k->next;
		if (!w->todo)
			w->todo_tail = &w->todo;
	}
	pthread_mutex_unlock(&w->lock);
	return k;
}

static void *thread_main(void *opaque)
{
	struct workers *w = opaque;
	struct work *k;

	while ((k = take(w))) {
		k->fn(k->arg);
		loop_post(w->loop, finished, k);
	}
	return NULL;
}

/* Signals are for the threads that expect them. */
static void thread_start(struct workers *w)
{
	sigset_t all, old;

	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, &old);
	if (!pthread_create(&w->thread[w->threads], NULL, thread_main, w))
		w->threads++;
	pthread_sigmask(SIG_SETMASK, &old, NULL);
}

/* --- the loop's side --- */

void workers_co_run(struct workers *w, void (*fn)(void *arg), void *arg)
{
	struct work k = { .fn = fn, .arg = arg, .call = { .s = loop_coroutines(w->loop) } };

	if (w->under_way >= w->threads && w->threads < w->most)
		thread_start(w);
	if (!w->threads) {
		fn(arg);
		return;
	}
	w->under_way++;
	pthread_mutex_lock(&w->lock);
	*w->todo_tail = &k;
	w->todo_tail = &k.next;
	pthread_cond_signal(&w->wanted);
	pthread_mutex_unlock(&w->lock);
	co_call_wait(&k.call);
	w->under_way--;
}
