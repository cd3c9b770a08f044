/*
 * The sandbox of a VM's process: what is left to code that a hostile guest has taken over.
 *
 *   no new privileges	no set-user-ID program can help
 *   capabilities	none, but CAP_NET_BIND_SERVICE where a port below 1024 is forwarded
 *   Landlock		no file but those named here can be opened (kernels without it: see the filter)
 *   seccomp		a list of system calls; any other kills the process. No program can be started, no process
 *			traced or signalled, no file opened for writing, no io_uring made, no terminal typed into.
 *
 * Files and sockets that are open already stay as they are.  Enter it from the only thread there is, after all that
 * needs more has been opened; threads made later inherit it.  There is no way out.
 *
 * AddressSanitizer and ThreadSanitizer need calls that it refuses: their builds go without Landlock and seccomp.
 */
#ifndef VIXEN_HOST_SANDBOX_H
#define VIXEN_HOST_SANDBOX_H

#include <stdbool.h>

#include "base/error.h"

#define SANDBOX_FILES_MAX 8

struct sandbox {
	const char *readable[SANDBOX_FILES_MAX];	/* files and folders that may be opened for reading; NULL: none */
	bool kvm;		/* /dev/kvm may be opened again */
	bool low_ports;		/* ports below 1024 may be bound again */
};

/* 0 or -errno. */
int sandbox_enter(const struct sandbox *s, struct error *e);

/* The kernel's Landlock version, 0 where it has none. */
int sandbox_landlock_version(void);

#endif
