/* GDB's `monitor` commands: what the protocol has no request for. */
#ifndef VIXEN_VMM_GDB_MONITOR_H
#define VIXEN_VMM_GDB_MONITOR_H

#include <stdbool.h>
#include <stdio.h>

struct board;

/* False: not known. The board is stopped; cpu is the thread that GDB looks at. */
bool monitor_command(struct board *b, unsigned cpu, const char *command, FILE *out);

#endif
