#include "devices/timer/pit.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "host/loop.h"
#include "memory/map.h"

struct channel {
	uint16_t reload;		/* 0 stands for 65536 */
	uint8_t mode, access;		/* access: 1 low, 2 high, 3 low then high */
	bool bcd, write_high, read_high, counting, gate;
	uint8_t write_low;
	uint16_t latch;
	uint8_t latched, status;	/* bytes left to read; */
	bool status_latched;
	uint64_t start_ns;		/* when the count was loaded */
};

struct pit {
	pthread_mutex_t lock;
	struct channel ch[3];
	struct irq_line irq;
	struct loop_timer *timer;
	uint64_t next_ns;
	bool speaker;
};

static uint64_t ticks_to_ns(uint64_t t) { return (uint64_t)((unsigned __int128)t * 1000000000u / PIT_HZ); }
static uint64_t ns_to_ticks(uint64_t ns) { return (uint64_t)((unsigned __int128)ns * PIT_HZ / 1000000000u); }

/* In BCD each digit counts for ten of the next, a digit above 9 for what it says (8254 data sheet, "Write Operations"). */
static uint32_t from_bcd(uint16_t v) { return (v >> 12) * 1000u + (v >> 8 & 15) * 100u + (v >> 4 & 15) * 10u + (v & 15); }
static uint16_t to_bcd(uint32_t n)
{
	return (uint16_t)(n / 1000 % 10 << 12 | n / 100 % 10 << 8 | n / 10 % 10 << 4 | n % 10);
}
static uint32_t period(const struct channel *c)
{
	if (!c->reload)
		return c->bcd ? 10000 : 0x10000;
	return c->bcd ? from_bcd(c->reload) : c->reload;
}
/* What the guest reads of a count: the counter wraps below 0 in its own base. */
static uint16_t digits(const struct channel *c, int64_t n)
{
	return c->bcd ? to_bcd((uint32_t)((n % 10000 + 10000) % 10000)) : (uint16_t)n;
}
/* A guest cannot ask the host for more than 50,000 ticks a second. */
#define STEP_MIN_NS 20000u

static bool periodic(const struct channel *c) { return c->mode == 2 || c->mode == 3; }

static uint64_t elapsed(const struct channel *c)
{
	return c->counting && c->gate ? ns_to_ticks(clock_now_ns() - c->start_ns) : 0;
}

static uint16_t count_now(const struct channel *c)
{
	uint64_t t = elapsed(c);
	if (c->mode == 3)
		return digits(c, (int64_t)(period(c) - 2 * t % period(c)) & ~1ll);
	if (c->mode == 2)
		return digits(c, (int64_t)(period(c) - t % period(c)));
	return digits(c, (int64_t)(period(c) - t % (c->bcd ? 10000 : 0x10000)));
}

static bool out_now(const struct channel *c)
{
	uint64_t t = elapsed(c);
	switch (c->mode) {
	case 0: return c->counting && t >= period(c);
	case 1: return !c->counting || t >= period(c);
	case 2: return !c->counting || t % period(c) != period(c) - 1;
	case 3: return !c->counting || t % period(c) < (period(c) + 1) / 2;
	default: return !c->counting || t != period(c);
	}
}

/* Arms the host timer for channel 0's next interrupt; the lock is held. */
static void schedule(struct pit *p)
{
	struct channel *c = &p->ch[0];
	if (!c->counting) {
		loop_timer_cancel(p->timer);
		return;
	}
	p->next_ns = c->start_ns + ticks_to_ns(period(c));
	loop_timer_set(p->timer, p->next_ns);
}

static void on_timer(void *opaque)
{
	struct pit *p = opaque;
	pthread_mutex_lock(&p->lock);
	struct channel *c = &p->ch[0];
	uint64_t now = clock_now_ns(), step = ticks_to_ns(period(c));
	step = step < STEP_MIN_NS ? STEP_MIN_NS : step;
	bool fire = c->counting && now >= p->next_ns;
	bool again = fire && periodic(c);
	if (again) {		/* late ticks are dropped, the phase stays: no storm after a busy spell */
		p->next_ns += ((now - p->next_ns) / step + 1) * step;
		loop_timer_set(p->timer, p->next_ns);
	}
	pthread_mutex_unlock(&p->lock);
	if (!fire)
		return;
	irq_set(&p->irq, true);
	irq_set(&p->irq, false);
}

static void load(struct pit *p, unsigned n, uint16_t value)
{
	struct channel *c = &p->ch[n];
	c->reload = value;
	c->counting = c->mode != 1 && c->mode != 5;
	c->start_ns = clock_now_ns();
	if (n == 0)
		schedule(p);
}

static void latch_count(struct channel *c)
{
	if (c->latched)
		return;
	c->latch = count_now(c);
	c->latched = c->access == 3 ? 2 : 1;
}

static void latch_status(struct channel *c)
{
	if (c->status_latched)
		return;
	c->status_latched = true;
	c->status = (uint8_t)(out_now(c) << 7 | !c->counting << 6 | c->access << 4 | c->mode << 1 | c->bcd);
}

static void control(struct pit *p, uint8_t v)
{
	unsigned n = v >> 6;
	if (n == 3) {			/* read-back */
		for (unsigned i = 0; i < 3; i++) {
			if (!(v >> (i + 1) & 1))
				continue;
			if (!(v & 0x20))
				latch_count(&p->ch[i]);
			if (!(v & 0x10))
				latch_status(&p->ch[i]);
		}
		return;
	}
	struct channel *c = &p->ch[n];
	if (!(v >> 4 & 3)) {
		latch_count(c);
		return;
	}
	bool gate = c->gate;
	memset(c, 0, sizeof *c);
	c->gate = gate;
	c->access = v >> 4 & 3;
	c->mode = v >> 1 & 7;
	if (c->mode > 5)
		c->mode &= 3;
	c->bcd = v & 1;
	if (n == 0)
		schedule(p);
}

static void counter_write(struct pit *p, unsigned n, uint8_t v)
{
	struct channel *c = &p->ch[n];
	if (c->access == 1) {
		load(p, n, v);
	} else if (c->access == 2) {
		load(p, n, (uint16_t)(v << 8));
	} else if (!c->write_high) {
		c->write_low = v;
		c->write_high = true;
	} else {
		c->write_high = false;
		load(p, n, (uint16_t)(v << 8 | c->write_low));
	}
}

static uint8_t counter_read(struct channel *c)
{
	if (c->status_latched) {
		c->status_latched = false;
		return c->status;
	}
	uint16_t v = c->latched ? c->latch : count_now(c);
	bool high = c->access == 2;
	if (c->access == 3) {
		high = c->latched ? c->latched == 1 : c->read_high;
		c->read_high = !c->read_high;
	}
	if (c->latched)
		c->latched--;
	return (uint8_t)(high ? v >> 8 : v);
}

static uint64_t pit_read(void *opaque, uint64_t offset, unsigned size)
{
	struct pit *p = opaque;
	(void)size;
	if (offset == 3)
		return 0xff;
	pthread_mutex_lock(&p->lock);
	uint8_t v = counter_read(&p->ch[offset]);
	pthread_mutex_unlock(&p->lock);
	return v;
}

static void pit_write(void *opaque, uint64_t offset, unsigned size, uint64_t value)
{
	struct pit *p = opaque;
	(void)size;
	pthread_mutex_lock(&p->lock);
	if (offset == 3)
		control(p, (uint8_t)value);
	else
		counter_write(p, (unsigned)offset, (uint8_t)value);
	pthread_mutex_unlock(&p->lock);
}

/* Port 61h: bit 0 gate 2, bit 1 speaker, bit 4 refresh toggle (15 us), bit 5 output of channel 2. */
static uint64_t nmi_read(void *opaque, uint64_t offset, unsigned size)
{
	struct pit *p = opaque;
	(void)offset, (void)size;
	pthread_mutex_lock(&p->lock);
	uint64_t v = p->ch[2].gate | p->speaker << 1 | (clock_now_ns() / 15085 & 1) << 4 | (uint64_t)out_now(&p->ch[2]) << 5;
	pthread_mutex_unlock(&p->lock);
	return v;
}

static void nmi_write(void *opaque, uint64_t offset, unsigned size, uint64_t value)
{
	struct pit *p = opaque;
	(void)offset, (void)size;
	pthread_mutex_lock(&p->lock);
	struct channel *c = &p->ch[2];
	bool gate = value & 1;
	if (gate && !c->gate) {
		c->start_ns = clock_now_ns();
		c->counting |= c->mode == 1 || c->mode == 5;
	}
	c->gate = gate;
	p->speaker = value >> 1 & 1;
	pthread_mutex_unlock(&p->lock);
}

static const struct io_ops pit_ops = { pit_read, pit_write, 1, 1 };
static const struct io_ops nmi_ops = { nmi_read, nmi_write, 1, 1 };

void pit_reset(struct pit *p)
{
	pthread_mutex_lock(&p->lock);
	memset(p->ch, 0, sizeof p->ch);
	for (int i = 0; i < 3; i++)
		p->ch[i].access = 3;
	p->ch[0].gate = p->ch[1].gate = true;
	loop_timer_cancel(p->timer);
	pthread_mutex_unlock(&p->lock);
}

struct pit *pit_new(struct map *m, struct loop *l, struct irq_line irq0)
{
	struct pit *p = calloc(1, sizeof *p);
	ASSERT(p);
	pthread_mutex_init(&p->lock, NULL);
	p->irq = irq0;
	p->timer = loop_timer_new(l, on_timer, p);
	ASSERT(p->timer);
	pit_reset(p);
	map_add_pio(m, 0x40, 4, &pit_ops, p, "pit");
	map_add_pio(m, 0x61, 1, &nmi_ops, p, "nmi-status");
	return p;
}

void pit_free(struct pit *p)
{
	if (!p)
		return;
	loop_timer_free(p->timer);
	pthread_mutex_destroy(&p->lock);
	free(p);
}
