#include "devices/irq/ioapic.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "devices/irq/lapic.h"
#include "memory/map.h"

/* Redirection entry: 7..0 vector, 10..8 mode, 11 logical, 12 status, 13 polarity, 14 remote IRR, 15 level,
 * 16 masked, 63..56 destination */
#define RTE_LOGICAL (1ull << 11)
#define RTE_REMOTE_IRR (1ull << 14)
#define RTE_LEVEL (1ull << 15)
#define RTE_MASKED (1ull << 16)
#define RTE_READ_ONLY ((1ull << 12) | RTE_REMOTE_IRR)

struct ioapic {
	pthread_mutex_t lock;	/* taken before a LAPIC's */
	struct lapic_bus *lapics;
	uint64_t rte[IOAPIC_PINS];
	uint32_t level;		/* the wires now */
	uint32_t select, id;
};

/* Sends pin's message if the entry allows; the lock is held. */
static void service(struct ioapic *io, unsigned pin)
{
	uint64_t e = io->rte[pin];
	if ((e & RTE_MASKED) || ((e & RTE_LEVEL) && (e & RTE_REMOTE_IRR)))
		return;
	if ((e & RTE_LEVEL) && !(io->level >> pin & 1))
		return;
	struct lapic_message msg = {
		.dest = e >> 56 & 0xff, .logical = !!(e & RTE_LOGICAL), .mode = e >> 8 & 7,
		.vector = (uint8_t)e, .level = !!(e & RTE_LEVEL), .level_assert = true,
	};
	if ((e & RTE_LEVEL) && msg.mode <= 1)
		io->rte[pin] |= RTE_REMOTE_IRR;
	lapic_deliver(io->lapics, &msg);
}

void ioapic_set(void *opaque, unsigned pin, bool level)
{
	struct ioapic *io = opaque;
	if (pin >= IOAPIC_PINS)
		return;
	pthread_mutex_lock(&io->lock);
	bool was = io->level >> pin & 1;
	io->level = (io->level & ~(1u << pin)) | (uint32_t)level << pin;
	if (level && (!was || (io->rte[pin] & RTE_LEVEL)))
		service(io, pin);
	pthread_mutex_unlock(&io->lock);
}

void ioapic_eoi(struct ioapic *io, uint8_t vector)
{
	pthread_mutex_lock(&io->lock);
	for (unsigned pin = 0; pin < IOAPIC_PINS; pin++) {
		if ((uint8_t)io->rte[pin] != vector || !(io->rte[pin] & RTE_REMOTE_IRR))
			continue;
		io->rte[pin] &= ~RTE_REMOTE_IRR;
		service(io, pin);
	}
	pthread_mutex_unlock(&io->lock);
}

static uint32_t window_read(const struct ioapic *io)
{
	unsigned r = io->select & 0xff;
	if (r == 0 || r == 2)
		return io->id;
	if (r == 1)
		return 0x20 | (IOAPIC_PINS - 1) << 16;
	r -= 0x10;
	return r < 2 * IOAPIC_PINS ? (uint32_t)(io->rte[r / 2] >> 32 * (r & 1)) : 0;
}

static void window_write(struct ioapic *io, uint32_t v)
{
	unsigned r = io->select & 0xff;
	if (r == 0)
		io->id = v & 0x0f000000;
	if (r < 0x10 || r >= 0x10 + 2 * IOAPIC_PINS)
		return;
	unsigned pin = (r - 0x10) / 2;
	uint64_t *e = &io->rte[pin], old = *e;
	if (r & 1)
		*e = (old & 0xffffffff) | (uint64_t)v << 32;
	else
		*e = (old & ~0xffffffffull) | v;
	*e = (*e & ~RTE_READ_ONLY) | (old & RTE_READ_ONLY);
	if (!(*e & RTE_LEVEL))
		*e &= ~RTE_REMOTE_IRR;
	if (*e & RTE_LEVEL)
		service(io, pin);
}

static uint64_t io_read(void *opaque, uint64_t offset, unsigned size)
{
	struct ioapic *io = opaque;
	(void)size;
	pthread_mutex_lock(&io->lock);
	uint32_t v = offset == 0 ? io->select : offset == 0x10 ? window_read(io) : 0;
	pthread_mutex_unlock(&io->lock);
	return v;
}

static void io_write(void *opaque, uint64_t offset, unsigned size, uint64_t value)
{
	struct ioapic *io = opaque;
	(void)size;
	if (offset == 0x40) {
		ioapic_eoi(io, (uint8_t)value);
		return;
	}
	pthread_mutex_lock(&io->lock);
	if (offset == 0)
		io->select = (uint32_t)value;
	else if (offset == 0x10)
		window_write(io, (uint32_t)value);
	pthread_mutex_unlock(&io->lock);
}

static const struct io_ops ops = { io_read, io_write, 4, 4 };

void ioapic_reset(struct ioapic *io)
{
	pthread_mutex_lock(&io->lock);
	for (unsigned i = 0; i < IOAPIC_PINS; i++)
		io->rte[i] = RTE_MASKED;
	io->select = io->id = 0;
	pthread_mutex_unlock(&io->lock);
}

struct ioapic *ioapic_new(struct map *m, struct lapic_bus *lapics)
{
	struct ioapic *io = calloc(1, sizeof *io);
	ASSERT(io);
	pthread_mutex_init(&io->lock, NULL);
	io->lapics = lapics;
	ioapic_reset(io);
	map_add_mmio(m, IOAPIC_GPA, 0x1000, &ops, io, "ioapic");
	return io;
}

void ioapic_free(struct ioapic *io)
{
	if (io)
		pthread_mutex_destroy(&io->lock);
	free(io);
}
