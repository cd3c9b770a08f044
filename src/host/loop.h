/*
 * The event loop of an I/O thread: file descriptors, timers, posted calls.
 *
 * Thread: every function but loop_post() and loop_stop() is called on the
 * loop's own thread, or before loop_run().  Callbacks run on the loop thread
 * and must not block.
 */
#ifndef VIXEN_HOST_LOOP_H
#define VIXEN_HOST_LOOP_H

#include <stdbool.h>
#include <stdint.h>

struct loop;
struct loop_fd;
struct loop_timer;

struct loop *loop_new(void);		/* NULL when the host has no fds left (errno set) */
void loop_free(struct loop *l);
int  loop_run(struct loop *l);		/* until loop_stop(), which it consumes; 0 or -errno */
int  loop_step(struct loop *l);		/* waits for events and serves them once; also inside a callback; 0 or -errno */
void loop_stop(struct loop *l);		/* any thread, async-signal-safe */
struct coroutines *loop_coroutines(struct loop *l);	/* host/coroutine.h; made at the first call, NULL: no memory */

/* events: EPOLLIN | EPOLLOUT...; the fd stays the caller's. */
typedef void loop_fd_fn(void *opaque, uint32_t events);
struct loop_fd *loop_fd_add(struct loop *l, int fd, uint32_t events, loop_fd_fn *fn, void *opaque);
void loop_fd_set_events(struct loop_fd *w, uint32_t events);
void loop_fd_del(struct loop_fd *w);	/* safe inside its own callback */

/* One-shot timers on the clock of clock_now_ns(); deadline_ns absolute. Re-arm at will, also from any thread. After the host
 * was suspended those that came due meanwhile run at once. */
typedef void loop_timer_fn(void *opaque);
struct loop_timer *loop_timer_new(struct loop *l, loop_timer_fn *fn, void *opaque);
void loop_timer_set(struct loop_timer *t, uint64_t deadline_ns);	/* any thread */
void loop_timer_cancel(struct loop_timer *t);				/* any thread */
void loop_timer_free(struct loop_timer *t);

/* Calls fn after the host was suspended for a second or more, before timers run. One at a time; NULL: nobody. */
void loop_on_gap(struct loop *l, void (*fn)(void *opaque), void *opaque);

/* Runs fn(opaque) once on the loop thread, soon; any thread. Order is kept. */
void loop_post(struct loop *l, void (*fn)(void *opaque), void *opaque);

/* The time that has gone by, in ns: CLOCK_BOOTTIME, so that it goes on while the host is suspended (docs/clocks.md). */
uint64_t clock_now_ns(void);

#endif
