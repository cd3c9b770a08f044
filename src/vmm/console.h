/*
 * The far end of the first serial port: a stream file descriptor (socket, pipe or file).
 *
 *   vCPU thread -- console_write --> ring --> loop thread --> fd
 *   fd --> loop thread --> input buffer --> console_input_fn (the UART), as fast as that takes it
 */
#ifndef VIXEN_VMM_CONSOLE_H
#define VIXEN_VMM_CONSOLE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/error.h"

struct console;
struct loop;

/* Returns how many bytes were taken. Loop thread. */
typedef size_t console_input_fn(void *opaque, const uint8_t *bytes, size_t n);

/* The fd stays the caller's and is made non-blocking; -1: output is dropped, no input. */
int console_new(struct console **out, struct loop *l, int fd, bool input, struct error *e);
void console_free(struct console *c);
/* Where input goes; NULL: it waits. Loop thread. */
void console_connect(struct console *c, console_input_fn *fn, void *opaque);
/* One byte from the guest, any thread. When the reader is slow this waits, at most about a second. */
void console_write(void *console, uint8_t byte);
/* The input function takes bytes again; any thread. */
void console_room(void *console);
/* Writes out what is still in the ring, for at most a second; vCPUs stopped. Loop thread. */
void console_drain(struct console *c);

#endif
