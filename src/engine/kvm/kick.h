/*
 * The signal that gets a thread out of KVM_RUN.
 *
 * Apart from the rest of the engine because <signal.h> and cpu/state.h both name registers REG_*.
 */
#ifndef VIXEN_ENGINE_KVM_KICK_H
#define VIXEN_ENGINE_KVM_KICK_H

/* Installs the handler, which does nothing; system calls other than KVM_RUN are restarted. Any number of times. */
void kick_prepare(void);
/* Lets the signal through to this thread; returns the thread's id for kick_send(). */
int kick_accept(void);
void kick_send(int tid);	/* async-signal-safe */

#endif
