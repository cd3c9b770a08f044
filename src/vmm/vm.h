/*
 * One VM from its configuration to its end: opens what it needs, builds the board, runs it, closes all.
 * A guest's reset gets a new board with the same disks.
 */
#ifndef VIXEN_VMM_VM_H
#define VIXEN_VMM_VM_H

#include "base/error.h"
#include "vmm/vm_config.h"

struct vm;

/* Exit codes of `vixen run`. */
enum { VM_EXIT_OFF = 0, VM_EXIT_FAILED = 1, VM_EXIT_USAGE = 2, VM_EXIT_CRASHED = 3, VM_EXIT_INTERRUPTED = 130 };

/* console_fd: a socket for VM_CONSOLE_STDIO, else -1. control_fd: a listening Unix socket (vmm/control.h), or -1. Both
 * stay the caller's. The configuration must outlive the VM. */
int vm_new(struct vm **out, const struct vm_config *c, int console_fd, int control_fd, struct error *e);
/* Returns an exit code; VM_EXIT_FAILED and VM_EXIT_CRASHED fill in e. SIGINT, SIGTERM and SIGHUP stop the
 * guest, SIGUSR1 presses its power button. */
int vm_run(struct vm *vm, struct error *e);
void vm_free(struct vm *vm);

#endif
