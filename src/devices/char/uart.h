/* A 16550A serial port (National PC16550D data sheet). */
#ifndef VIXEN_DEVICES_CHAR_UART_H
#define VIXEN_DEVICES_CHAR_UART_H

#include <stddef.h>

#include "devices/irq/line.h"

struct map;
struct uart;

/* What the guest transmits goes to `transmit`, on the vCPU's thread; it must not block for long. */
struct uart_host {
	void *opaque;
	void (*transmit)(void *opaque, uint8_t byte);
	void (*room)(void *opaque);	/* the receive FIFO has room again; may be NULL */
};

struct uart *uart_new(struct map *m, uint16_t port, struct irq_line irq, const struct uart_host *host);
void uart_free(struct uart *u);
void uart_reset(struct uart *u);
/* Bytes from the host; returns how many fit. Any thread. */
size_t uart_receive(struct uart *u, const uint8_t *bytes, size_t n);

#endif
