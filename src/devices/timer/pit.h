/* The 8254 interval timer with port 61h: three channels, modes 0-5, gate 2 and speaker (8254 data sheet). */
#ifndef VIXEN_DEVICES_TIMER_PIT_H
#define VIXEN_DEVICES_TIMER_PIT_H

#include "devices/irq/line.h"

struct loop;
struct map;
struct pit;

#define PIT_HZ 1193182u

struct pit *pit_new(struct map *m, struct loop *l, struct irq_line irq0);
void pit_free(struct pit *p);
void pit_reset(struct pit *p);

#endif
