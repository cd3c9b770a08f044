/*
 * Coroutines: straight-line code that waits for events of the loop without blocking it.
 *
 *	main stack:	co_start(fn) ─┐   ┌─▶ loop ... completion: co_wake() ─┐   ┌─▶ loop ...
 *	coroutine:		      └─fn─co_wait()                            └───┴─ fn goes on, ends
 *
 * One `struct coroutines` per loop, at loop_coroutines(); everything here runs on the loop's thread.  A coroutine
 * runs until it waits or ends: nothing else of the thread runs in between, so data that is not held across a wait
 * needs no lock.  A coroutine is entered from the main stack only: woken or started by another coroutine, it is
 * queued and runs, in order, as soon as that one waits or ends.
 *
 * Stacks are CO_STACK_BYTES with a guard page below; a pool keeps some of them.  Large buffers belong on the heap.
 */
#ifndef VIXEN_HOST_COROUTINE_H
#define VIXEN_HOST_COROUTINE_H

#include <stdbool.h>

#define CO_STACK_BYTES (256u << 10)	/* reserved; only what is touched is memory */

struct loop;
struct coroutines;
struct co;

/* For loop.c: NULL when out of memory.  At the end no coroutine may be under way. */
struct coroutines *coroutines_new(void);
void coroutines_free(struct coroutines *s);

/* Runs fn(arg) on a stack of its own.  0, or -ENOMEM and fn will not run. */
int co_start(struct coroutines *s, void (*fn)(void *arg), void *arg);

struct co *co_self(const struct coroutines *s);		/* NULL on the main stack */
/* Suspends the calling coroutine until somebody wakes it.  Wakes are not counted: whoever waits rechecks his
 * condition, or knows that only one party can wake him. */
void co_wait(struct coroutines *s);
void co_wake(struct coroutines *s, struct co *c);		/* c waits */

/* Runs fn(arg) as a coroutine and the loop until it has ended; returns what fn did, or -ENOMEM.  For programs that
 * do one thing, and for opening and closing.  Other events of the loop are served meanwhile; a loop_stop() stays
 * pending.  Inside a coroutine it is just a call of fn. */
int co_run(struct loop *l, int (*fn)(void *arg), void *arg);
/* The same with events served by step(opaque), which waits for some and returns 0 or -errno. */
int co_run_by(struct coroutines *s, int (*fn)(void *arg), void *arg, int (*step)(void *opaque), void *opaque);

/*
 * One outstanding call with a callback:
 *
 *	struct co_call c = { .s = s };
 *	start_something(..., co_call_done, &c);
 *	ret = co_call_wait(&c);
 */
struct co_call {
	struct coroutines *s;
	struct co *waiter;
	bool done;
	int ret;
};
void co_call_done(void *call, int ret);		/* on this thread; before or after the wait began */
int co_call_wait(struct co_call *c);

/* A queue of waiting coroutines, first in, first out.  Zeroed memory is an empty queue. */
struct co_queue {
	struct co *head, *tail;
};
void co_queue_wait(struct coroutines *s, struct co_queue *q);
bool co_queue_wake_one(struct coroutines *s, struct co_queue *q);	/* false: nobody waited */
void co_queue_wake_all(struct coroutines *s, struct co_queue *q);

/* A mutex for what is held across waits.  Fair, not recursive.  Zeroed memory is an open mutex. */
struct co_mutex {
	bool held;
	struct co_queue waiters;
};
void co_lock(struct coroutines *s, struct co_mutex *m);
void co_unlock(struct coroutines *s, struct co_mutex *m);

#endif
