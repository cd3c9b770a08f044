/*
 * The signal that gets a thread out of KVM_RUN, and a timer that sends it.
 *
 * Apart from the rest of the engine because <signal.h> and cpu/state.h both name registers REG_*.
 */
#ifndef VIXEN_ENGINE_KVM_KICK_H
#define VIXEN_ENGINE_KVM_KICK_H

#include <stdint.h>

/* Installs the handler; system calls other than KVM_RUN are restarted. Any number of times. */
void kick_prepare(void);
/* Lets the signal through to this thread; returns the thread's id for kick_send(). */
int kick_accept(void);
void kick_send(int tid);	/* async-signal-safe */

/* A timer whose signal calls fn on the thread that made it, in a signal handler. Must stay where it is. */
struct kick_timer { void (*fn)(void *opaque); void *opaque; void *timer; };
int kick_timer_init(struct kick_timer *t);	/* 0 or -errno */
void kick_timer_fini(struct kick_timer *t);
void kick_timer_set(struct kick_timer *t, uint64_t ns);	/* once, so long from now */

#endif
