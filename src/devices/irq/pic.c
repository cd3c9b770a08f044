#include "devices/irq/pic.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "memory/map.h"

struct chip {
	uint8_t irr, imr, isr, level, elcr, elcr_mask;
	uint8_t icw[4], icw_next;	/* 0: initialised; else the ICW expected next */
	uint8_t lowest;			/* priority rotation: the IRQ that is lowest now */
	bool read_isr, poll, special_mask, auto_eoi, rotate_auto, fully_nested;
};

struct pic {
	pthread_mutex_t lock;
	struct chip chip[2];
	void (*output)(void *opaque);
	void *opaque;
};

/* Position in the priority order, 0 highest; 8: none. */
static int priority_of(const struct chip *c, uint8_t set)
{
	if (!set)
		return 8;
	int p = 0;
	while (!(set >> ((c->lowest + 1 + p) & 7) & 1))
		p++;
	return p;
}

/* The IRQ this chip would raise, or -1. */
static int chip_request(const struct chip *c, bool master)
{
	if (c->icw_next)		/* in the middle of its initialisation */
		return -1;
	int want = priority_of(c, c->irr & (uint8_t)~c->imr);
	if (want == 8)
		return -1;
	uint8_t serving = c->isr;
	if (c->special_mask)
		serving &= (uint8_t)~c->imr;
	if (master && c->fully_nested)
		serving &= (uint8_t)~4;
	return want < priority_of(c, serving) ? (c->lowest + 1 + want) & 7 : -1;
}

static void chip_set(struct chip *c, unsigned irq, bool on)
{
	uint8_t bit = (uint8_t)(1u << irq);
	if (c->elcr & bit || c->icw[0] & 8)
		c->irr = on ? c->irr | bit : c->irr & (uint8_t)~bit;
	else if (on && !(c->level & bit))
		c->irr |= bit;
	else if (!on)
		c->irr &= (uint8_t)~bit;
	c->level = on ? c->level | bit : c->level & (uint8_t)~bit;
}

static void cascade(struct pic *p)
{
	bool slave = chip_request(&p->chip[1], false) >= 0;
	if (slave)
		p->chip[0].irr |= 4;
	else
		p->chip[0].irr &= (uint8_t)~4;
	if (chip_request(&p->chip[0], true) >= 0)
		p->output(p->opaque);
}

void pic_set(void *opaque, unsigned irq, bool level)
{
	struct pic *p = opaque;
	if (irq > 15 || irq == 2)
		return;
	pthread_mutex_lock(&p->lock);
	chip_set(&p->chip[irq >> 3], irq & 7, level);
	cascade(p);
	pthread_mutex_unlock(&p->lock);
}

static void chip_ack(struct chip *c, unsigned irq)
{
	uint8_t bit = (uint8_t)(1u << irq);
	if (!(c->elcr & bit) && !(c->icw[0] & 8))
		c->irr &= (uint8_t)~bit;
	if (!c->auto_eoi)
		c->isr |= bit;
	else if (c->rotate_auto)
		c->lowest = (uint8_t)irq;
}

static int ack_locked(struct pic *p)
{
	int irq = chip_request(&p->chip[0], true);
	if (irq < 0)
		return (p->chip[0].icw[1] & 0xf8) + 7;
	int vector = (p->chip[0].icw[1] & 0xf8) + irq;
	if (irq == 2) {
		int second = chip_request(&p->chip[1], false);
		vector = (p->chip[1].icw[1] & 0xf8) + (second < 0 ? 7 : second);
		if (second >= 0)
			chip_ack(&p->chip[1], (unsigned)second);
	}
	chip_ack(&p->chip[0], (unsigned)irq);
	cascade(p);
	return vector;
}

bool pic_pending(struct pic *p)
{
	pthread_mutex_lock(&p->lock);
	bool r = chip_request(&p->chip[0], true) >= 0;
	pthread_mutex_unlock(&p->lock);
	return r;
}

int pic_ack(struct pic *p)
{
	pthread_mutex_lock(&p->lock);
	int v = ack_locked(p);
	pthread_mutex_unlock(&p->lock);
	return v;
}

static void ocw2(struct chip *c, uint8_t v)
{
	unsigned irq = v & 7;
	bool specific = v & 0x40, end = v & 0x20, rotate = v & 0x80;
	if (!end) {
		if (specific && rotate)
			c->lowest = (uint8_t)irq;
		else if (!specific)
			c->rotate_auto = rotate;
		return;
	}
	if (!specific) {
		int p = priority_of(c, c->isr);
		if (p == 8)
			return;
		irq = (unsigned)(c->lowest + 1 + p) & 7;
	}
	c->isr &= (uint8_t)~(1u << irq);
	if (rotate)
		c->lowest = (uint8_t)irq;
}

static void command_write(struct chip *c, uint8_t v)
{
	if (v & 0x10) {				/* ICW1 */
		uint8_t elcr = c->elcr, mask = c->elcr_mask, level = c->level;
		memset(c, 0, sizeof *c);
		c->elcr = elcr;
		c->elcr_mask = mask;
		c->level = level;
		c->irr = level & elcr;
		c->lowest = 7;
		c->icw[0] = v;
		c->icw_next = 2;
	} else if (v & 8) {			/* OCW3 */
		if (v & 4)
			c->poll = true;
		if (v & 2)
			c->read_isr = v & 1;
		if (v & 0x40)
			c->special_mask = v & 0x20;
	} else {
		ocw2(c, v);
	}
}

static void data_write(struct chip *c, uint8_t v)
{
	if (!c->icw_next) {
		c->imr = v;
		return;
	}
	unsigned n = c->icw_next;
	c->icw[n - 1] = v;
	if (n == 4) {
		c->auto_eoi = v & 2;
		c->fully_nested = v & 0x10;
	}
	n = n == 2 && c->icw[0] & 2 ? 4 : n + 1;	/* single: no ICW3 */
	c->icw_next = n > 4 || (n == 4 && !(c->icw[0] & 1)) ? 0 : (uint8_t)n;
}

static uint64_t port_read(struct pic *p, unsigned which, uint64_t offset)
{
	struct chip *c = &p->chip[which];
	if (c->poll) {
		c->poll = false;
		int irq = chip_request(c, which == 0);
		if (irq < 0)
			return 0;
		chip_ack(c, (unsigned)irq);
		return 0x80u | (unsigned)irq;
	}
	return offset ? c->imr : c->read_isr ? c->isr : c->irr;
}

#define CHIP_OPS(n)										\
	static uint64_t read_##n(void *opaque, uint64_t offset, unsigned size)			\
	{											\
		struct pic *p = opaque;								\
		(void)size;									\
		pthread_mutex_lock(&p->lock);							\
		uint64_t v = port_read(p, n, offset);						\
		cascade(p);									\
		pthread_mutex_unlock(&p->lock);							\
		return v;									\
	}											\
	static void write_##n(void *opaque, uint64_t offset, unsigned size, uint64_t value)	\
	{											\
		struct pic *p = opaque;								\
		(void)size;									\
		pthread_mutex_lock(&p->lock);							\
		(offset ? data_write : command_write)(&p->chip[n], (uint8_t)value);		\
		cascade(p);									\
		pthread_mutex_unlock(&p->lock);							\
	}											\
	static const struct io_ops ops_##n = { read_##n, write_##n, 1, 1 };
CHIP_OPS(0)
CHIP_OPS(1)

static uint64_t elcr_read(void *opaque, uint64_t offset, unsigned size)
{
	struct pic *p = opaque;
	(void)size;
	return p->chip[offset & 1].elcr;
}

static void elcr_write(void *opaque, uint64_t offset, unsigned size, uint64_t value)
{
	struct pic *p = opaque;
	(void)size;
	pthread_mutex_lock(&p->lock);
	p->chip[offset & 1].elcr = (uint8_t)value & p->chip[offset & 1].elcr_mask;
	pthread_mutex_unlock(&p->lock);
}
static const struct io_ops elcr_ops = { elcr_read, elcr_write, 1, 1 };

void pic_reset(struct pic *p)
{
	pthread_mutex_lock(&p->lock);
	memset(p->chip, 0, sizeof p->chip);
	p->chip[0].elcr_mask = 0xf8;	/* IRQ 0, 1, 2, 8, 13 are always edge */
	p->chip[1].elcr_mask = 0xde;
	for (int i = 0; i < 2; i++) {
		p->chip[i].lowest = 7;
		p->chip[i].imr = 0xff;
	}
	pthread_mutex_unlock(&p->lock);
}

struct pic *pic_new(struct map *m, void (*output)(void *opaque), void *opaque)
{
	struct pic *p = calloc(1, sizeof *p);
	ASSERT(p);
	pthread_mutex_init(&p->lock, NULL);
	p->output = output;
	p->opaque = opaque;
	pic_reset(p);
	map_add_pio(m, 0x20, 2, &ops_0, p, "pic-master");
	map_add_pio(m, 0xa0, 2, &ops_1, p, "pic-slave");
	map_add_pio(m, 0x4d0, 2, &elcr_ops, p, "elcr");
	return p;
}

void pic_free(struct pic *p)
{
	if (p)
		pthread_mutex_destroy(&p->lock);
	free(p);
}
