/*
 * Stopping the vCPUs of a board for a debugger, and looking at them.
 *
 *                 board_debug_stop(), or a vCPU meets its plan
 *      RUNNING ------------------------------------------------> every vCPU parks --> `stopped` is posted: STOPPED
 *         ^                                                                                           |
 *         '------------------------------- board_debug_resume() --------------------------------------'
 *
 * All vCPUs stop when one does. Thread: the loop's. But for board_debug_begin() and board_debug_stop(), the board must
 * be stopped. The guest's clocks and devices go on meanwhile.
 */
#ifndef VIXEN_MACHINE_DEBUG_H
#define VIXEN_MACHINE_DEBUG_H

#include <stdbool.h>

#include "engine/engine.h"

struct board;

enum debug_go { DEBUG_PARK, DEBUG_RUN, DEBUG_STEP };

enum board_why { BOARD_ASKED, BOARD_STEPPED, BOARD_AT_BREAK, BOARD_WATCHED, BOARD_TRIPLE_FAULT };
struct board_stop {
	enum board_why why;
	unsigned cpu;
	struct debug_point point;	/* BOARD_AT_BREAK, BOARD_WATCHED */
};

/* Before board_run(): `stopped` is called on the loop thread when all vCPUs have stopped, also if they start `parked`;
 * sometimes once too often: ask board_debug_stopped(). opaque must outlive the loop's posted calls. */
void board_debug_begin(struct board *b, bool parked, void (*stopped)(void *opaque), void *opaque);
void board_debug_stop(struct board *b);
bool board_debug_stopped(struct board *b);

/* Why it stopped. A second vCPU that met its plan at the same time is told after the next resume. */
void board_debug_why(struct board *b, struct board_stop *out);
unsigned board_debug_cpus(const struct board *b);
void board_debug_get(struct board *b, unsigned cpu, struct x86_state *out);
void board_debug_set(struct board *b, unsigned cpu, const struct x86_state *in);
/* Also before and after board_run(). */
void board_counters(struct board *b, unsigned cpu, counter_fn *each, void *opaque);
uint8_t board_debug_cr8(struct board *b, unsigned cpu);
void board_debug_set_cr8(struct board *b, unsigned cpu, uint8_t cr8);
/* RAM and ROM only: looking at a device could change it. `physical`, or linear as the vCPU's page tables map it, past
 * all protection. False: some byte is not there, and no byte was written. */
bool board_debug_memory(struct board *b, const struct x86_state *s, bool physical, uint64_t at, void *buf, size_t n,
			bool write);
/* Where all vCPUs stop; as debug_set of engine_ops. */
int board_debug_points(struct board *b, const struct debug_point *p, unsigned n);
/* go: one for each vCPU. */
void board_debug_resume(struct board *b, const enum debug_go *go);
void board_debug_reset(struct board *b);	/* as the guest would: board_run() returns BOARD_RESET */

#endif
