/*
 * The keyboard controller: ports 60h and 64h with one keyboard and no mouse, the output port with A20 and reset,
 * and port 92h (82C42; IBM PS/2 technical reference; ICH9 13.7.1). A20 is always open.
 */
#ifndef VIXEN_DEVICES_CHAR_I8042_H
#define VIXEN_DEVICES_CHAR_I8042_H

#include <stdint.h>

#include "devices/irq/line.h"

struct i8042;
struct map;

/* reset: the guest pulls the CPU's reset line; called on the vCPU's thread with no lock held. */
struct i8042_host { void *opaque; void (*reset)(void *opaque); };

struct i8042 *i8042_new(struct map *m, struct irq_line irq1, const struct i8042_host *host);
void i8042_free(struct i8042 *k);
void i8042_reset(struct i8042 *k);
/* A scan code of set 2, if the keyboard is on and has room for it; any thread. */
bool i8042_key(struct i8042 *k, uint8_t code);

#endif
