/*
 * The VM's process as `vixen run` sees it, and the terminal between them.
 *
 *   user -- stdin --> escape filter --> socket --> vixen-vmm
 *   user <-- stdout <------------------ socket <-- vixen-vmm
 *   SIGINT, SIGTERM, SIGHUP, SIGQUIT --> SIGTERM --> vixen-vmm stops the guest, writes out the disks, ends
 */
#ifndef VIXEN_CLI_VMM_PROCESS_H
#define VIXEN_CLI_VMM_PROCESS_H

#include "base/error.h"

struct vm_config;

/* Runs the VM to its end. control: its listening control socket, or -1; stays the caller's. Returns the exit code of `vixen run`; -errno with e when it could not be started. */
int vmm_run(const struct vm_config *c, int control, struct error *e);

#endif
