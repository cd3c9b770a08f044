/* A vCPU's wait after HLT. */
#ifndef VIXEN_MACHINE_HALT_H
#define VIXEN_MACHINE_HALT_H

#include <stdbool.h>
#include <stdint.h>

struct cpu_thread;

/* Blocks until c->wake is set; on c's thread, without its lock. */
void halt_wait(struct cpu_thread *c);

#define HALT_WINDOW_MIN_NS 20000u
#define HALT_WINDOW_MAX_NS 160000u
/* How long to look out before the next sleep, after one that was `window_ns` and `waited_ns` until there was news. */
uint32_t halt_window_next(uint32_t window_ns, uint64_t waited_ns);
/* Are there cores enough on this host? */
bool halt_may_look(unsigned vcpus);

#endif
