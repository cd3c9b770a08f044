/*
 * Threads for computations that are too long for the loop's thread: compression, ciphers, key derivation.
 *
 *	coroutine: workers_co_run(fn) ──▶ todo ──▶ a thread runs fn ──▶ loop_post() ──▶ the coroutine goes on
 *
 * One `struct workers` per loop or less.  Threads are started when there is work for them, one for each CPU that this
 * process may use, up to WORKERS_MAX; they receive no signals and stay until workers_free().
 */
#ifndef VIXEN_HOST_WORKERS_H
#define VIXEN_HOST_WORKERS_H

#define WORKERS_MAX 16u

struct loop;
struct workers;

struct workers *workers_new(struct loop *l);	/* NULL: out of memory */
void workers_free(struct workers *w);		/* nothing is under way; NULL is fine */

/* In a coroutine of the loop: runs fn(arg) on one of the threads and waits for its end; other coroutines run meanwhile.
 * What fn touches is fn's alone for that time.  Without a thread to be had, fn runs here. */
void workers_co_run(struct workers *w, void (*fn)(void *arg), void *arg);

#endif
