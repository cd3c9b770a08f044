/*
 * `--gdb`: listens for GDB and lets it see the VM's boards, one after another. Lives on the loop thread.
 *
 *   listening, guest stopped (at first) or running
 *      accept --> the guest is stopped --> session --> connection closed --> no breakpoints, the guest goes on
 *
 * Whoever can connect owns the guest: TCP is loopback only, which all users of the host reach; a Unix socket has the
 * permissions of its folder and of the umask.
 */
#ifndef VIXEN_VMM_GDB_SERVER_H
#define VIXEN_VMM_GDB_SERVER_H

#include <stdbool.h>

#include "base/error.h"

struct board;
struct loop;
struct gdb_server;

/* where: "PORT" (0: any that is free) or "unix:PATH". Says on stderr where it listens. kill: GDB ends the VM. */
int gdb_server_new(struct gdb_server **out, struct loop *l, const char *where, void (*kill)(void *opaque), void *opaque,
		   struct error *e);
void gdb_server_free(struct gdb_server *s);	/* after the loop's last run */
/* A board that is about to run; NULL: it is no more. The first one starts stopped. All have the same vCPUs. */
void gdb_server_board(struct gdb_server *s, struct board *b);
/* Tells GDB that the VM has ended. */
void gdb_server_exited(struct gdb_server *s, bool crashed, unsigned code);

#endif
