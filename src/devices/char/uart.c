#include "devices/char/uart.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "memory/map.h"

enum { RBR_THR, IER, IIR_FCR, LCR, MCR, LSR, MSR, SCR };
#define LCR_DLAB 0x80
#define MCR_LOOP 0x10
#define MCR_OUT2 0x08
#define LSR_DR 0x01
#define LSR_OE 0x02
#define LSR_THRE 0x20
#define LSR_TEMT 0x40
#define FIFO_SIZE 16u

struct uart {
	pthread_mutex_t lock;
	struct irq_line irq;
	struct uart_host host;
	uint8_t ier, fcr, lcr, mcr, lsr, msr, scr, dll, dlm;
	uint8_t fifo[FIFO_SIZE];
	unsigned head, count;
	bool thre_pending;	/* set when THR empties, cleared by reading IIR or writing THR */
};

static unsigned trigger(const struct uart *u)
{
	static const uint8_t level[4] = { 1, 4, 8, 14 };
	return u->fcr & 1 ? level[u->fcr >> 6] : 1;
}

/* The highest interrupt pending, as IIR shows it; 1: none. Below the trigger the FIFO's time-out counts. */
static uint8_t iir_now(const struct uart *u)
{
	if ((u->ier & 4) && (u->lsr & LSR_OE))
		return 6;
	if ((u->ier & 1) && u->count)
		return u->count >= trigger(u) ? 4 : 12;
	if ((u->ier & 2) && u->thre_pending)
		return 2;
	if ((u->ier & 8) && (u->msr & 0xf))
		return 0;
	return 1;
}

static void irq_update(struct uart *u)
{
	irq_set(&u->irq, iir_now(u) != 1 && ((u->mcr & MCR_OUT2) || (u->mcr & MCR_LOOP)));
}

static void push(struct uart *u, uint8_t byte)
{
	unsigned size = u->fcr & 1 ? FIFO_SIZE : 1;
	if (u->count >= size) {
		u->lsr |= LSR_OE;
		return;
	}
	u->fifo[(u->head + u->count++) % FIFO_SIZE] = byte;
	u->lsr |= LSR_DR;
}

static uint8_t pop(struct uart *u)
{
	if (!u->count)
		return 0;
	uint8_t v = u->fifo[u->head];
	u->head = (u->head + 1) % FIFO_SIZE;
	if (!--u->count)
		u->lsr &= (uint8_t)~LSR_DR;
	return v;
}

static uint8_t modem_status(const struct uart *u)
{
	if (!(u->mcr & MCR_LOOP))
		return 0xb0 | (u->msr & 0xf);		/* DCD, DSR, CTS */
	return (uint8_t)((u->mcr & 2) << 3 | (u->mcr & 1) << 5 | (u->mcr & 4) << 4 | (u->mcr & 8) << 4) | (u->msr & 0xf);
}

static uint8_t read_locked(struct uart *u, unsigned reg, bool *room)
{
	uint8_t v;
	switch (reg) {
	case RBR_THR:
		if (u->lcr & LCR_DLAB)
			return u->dll;
		*room = u->count == 1;
		return pop(u);
	case IER: return u->lcr & LCR_DLAB ? u->dlm : u->ier;
	case IIR_FCR:
		v = iir_now(u);
		if (v == 2)
			u->thre_pending = false;
		return v | (u->fcr & 1 ? 0xc0 : 0);
	case LCR: return u->lcr;
	case MCR: return u->mcr;
	case LSR:
		v = u->lsr;
		u->lsr &= (uint8_t)~LSR_OE;
		return v;
	case MSR:
		v = modem_status(u);
		u->msr &= 0xf0;
		return v;
	default: return u->scr;
	}
}

/* True: the byte goes out to the host. */
static bool write_locked(struct uart *u, unsigned reg, uint8_t v)
{
	switch (reg) {
	case RBR_THR:
		if (u->lcr & LCR_DLAB) {
			u->dll = v;
			return false;
		}
		u->thre_pending = false;	/* low for a moment, or an edge-triggered line tells nothing */
		irq_update(u);
		u->thre_pending = true;		/* sent at once: THR is empty again */
		if (u->mcr & MCR_LOOP)
			push(u, v);
		return !(u->mcr & MCR_LOOP);
	case IER:
		if (u->lcr & LCR_DLAB) {
			u->dlm = v;
			return false;
		}
		if ((v & 2) && !(u->ier & 2))
			u->thre_pending = true;
		u->ier = v & 0xf;
		return false;
	case IIR_FCR:
		if (((v ^ u->fcr) & 1) || (v & 2)) {
			u->head = u->count = 0;
			u->lsr &= (uint8_t)~LSR_DR;
		}
		u->fcr = v & 1 ? v & 0xc9 : 0;
		return false;
	case LCR: u->lcr = v; return false;
	case MCR: u->mcr = v & 0x1f; return false;
	case SCR: u->scr = v; return false;
	default: return false;
	}
}

static uint64_t io_read(void *opaque, uint64_t offset, unsigned size)
{
	struct uart *u = opaque;
	bool room = false;
	(void)size;
	pthread_mutex_lock(&u->lock);
	uint8_t v = read_locked(u, (unsigned)offset, &room);
	irq_update(u);
	pthread_mutex_unlock(&u->lock);
	if (room && u->host.room)
		u->host.room(u->host.opaque);
	return v;
}

static void io_write(void *opaque, uint64_t offset, unsigned size, uint64_t value)
{
	struct uart *u = opaque;
	(void)size;
	pthread_mutex_lock(&u->lock);
	bool out = write_locked(u, (unsigned)offset, (uint8_t)value);
	irq_update(u);
	pthread_mutex_unlock(&u->lock);
	if (out)
		u->host.transmit(u->host.opaque, (uint8_t)value);
}

static const struct io_ops ops = { io_read, io_write, 1, 1 };

size_t uart_receive(struct uart *u, const uint8_t *bytes, size_t n)
{
	size_t done = 0;
	pthread_mutex_lock(&u->lock);
	unsigned size = u->fcr & 1 ? FIFO_SIZE : 1;
	while (done < n && u->count < size && !(u->mcr & MCR_LOOP))
		push(u, bytes[done++]);
	irq_update(u);
	pthread_mutex_unlock(&u->lock);
	return done;
}

void uart_reset(struct uart *u)
{
	pthread_mutex_lock(&u->lock);
	u->ier = u->fcr = u->lcr = u->mcr = u->msr = u->dlm = 0;
	u->dll = 12;
	u->lsr = LSR_THRE | LSR_TEMT;
	u->head = u->count = 0;
	u->thre_pending = false;
	irq_update(u);
	pthread_mutex_unlock(&u->lock);
}

struct uart *uart_new(struct map *m, uint16_t port, struct irq_line irq, const struct uart_host *host)
{
	struct uart *u = calloc(1, sizeof *u);
	ASSERT(u);
	pthread_mutex_init(&u->lock, NULL);
	u->irq = irq;
	u->host = *host;
	uart_reset(u);
	map_add_pio(m, port, 8, &ops, u, "uart");
	return u;
}

void uart_free(struct uart *u)
{
	if (u)
		pthread_mutex_destroy(&u->lock);
	free(u);
}
