/*
 * One conversation with GDB: requests to what is debugged, and the answers. GDB's manual, appendix E.
 *
 *   bytes --gdb_session_take--> packet --> request --> struct gdb_target      answers --> gdb_session_out
 *
 * All vCPUs stop and go together; vCPU n is thread n + 1. Bytes may be anything: what cannot be understood is answered
 * as the protocol says, empty or by an error, and changes nothing.
 */
#ifndef VIXEN_VMM_GDB_SESSION_H
#define VIXEN_VMM_GDB_SESSION_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

#include "machine/debug.h"
#include "vmm/gdb/packet.h"
#include "vmm/gdb/registers.h"

/* What is debugged. Called with `opaque`, while it is stopped; stop, while it runs. */
struct gdb_target {
	unsigned (*cpus)(void *opaque);
	void (*get)(void *opaque, unsigned cpu, struct gdb_cpu *out);
	void (*set)(void *opaque, unsigned cpu, const struct gdb_cpu *in);
	bool (*memory)(void *opaque, const struct gdb_cpu *c, bool physical, uint64_t at, void *buf, size_t n, bool write);
	int  (*points)(void *opaque, const struct debug_point *p, unsigned n);
	void (*resume)(void *opaque, const enum debug_go *go);
	void (*stop)(void *opaque);
	void (*kill)(void *opaque);
	/* A monitor command. Prints to `out`, a line or more; may change the target. False: not known. */
	bool (*monitor)(void *opaque, unsigned cpu, const char *command, FILE *out);
};

struct gdb_session;
struct gdb_session *gdb_session_new(const struct gdb_target *t, void *opaque);	/* NULL: no memory */
void gdb_session_free(struct gdb_session *g);
/* A new connection; the target is stopped. */
void gdb_session_begin(struct gdb_session *g);
/* The connection is gone, the target is stopped: no breakpoint stays, and it goes on. */
void gdb_session_end(struct gdb_session *g);
void gdb_session_take(struct gdb_session *g, const uint8_t *bytes, size_t n);
/* The target has stopped, after a resume. */
void gdb_session_stopped(struct gdb_session *g, const struct board_stop *s);
/* The target's end: by itself with an exit code, or (crashed) by a triple fault. */
void gdb_session_exited(struct gdb_session *g, bool crashed, unsigned code);
/* There is a new board with the same vCPUs: it gets the breakpoints. */
void gdb_session_rebuilt(struct gdb_session *g);
bool gdb_session_running(const struct gdb_session *g);
struct gdb_out *gdb_session_out(struct gdb_session *g);

#endif
