/*
 *   main counter ---+--- == comparator 0 --- T0 --+-- legacy ---> IRQ 0
 *   (10 ns)         +--- == comparator 1 --- T1 --+-- legacy ---> IRQ 8
 *                   +--- == comparator 2 --- T2 --+-- INT_ROUTE -> IO-APIC pin
 *
 * A match happens at an exact count, as in hardware: `match` is the full 64-bit count of a timer's next one,
 * found when the timer is set, so that a late host timer still fires.
 */
#include "devices/timer/hpet.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "host/loop.h"
#include "memory/map.h"

#define TIMERS 3u
#define TICK_NS 10u
#define TICK_FS 10000000ull
#define PERIOD_MIN_TICKS 2000u		/* 20 us: all a guest may ask of the host */
#define WAIT_MAX_TICKS (1ull << 56)	/* 22 years; what lies beyond needs no host timer */

/* Registers, 2.3.1 */
enum { REG_CAPS = 0x00, REG_CONFIG = 0x10, REG_STATUS = 0x20, REG_COUNTER = 0xf0, REG_TIMERS = 0x100 };
#define CONFIG_ENABLE 1u
#define CONFIG_LEGACY 2u
/* Tn_CONF, 2.3.8 */
#define T_LEVEL (1u << 1)
#define T_INT_ENABLE (1u << 2)
#define T_PERIODIC (1u << 3)
#define T_PERIODIC_CAP (1u << 4)
#define T_SIZE_CAP (1u << 5)
#define T_VALUE_SET (1u << 6)
#define T_32BIT (1u << 8)
#define T_ROUTE(v) ((v) >> 9 & 31)
#define T_WRITABLE (T_LEVEL | T_INT_ENABLE | T_PERIODIC | T_VALUE_SET | T_32BIT | 31u << 9)

struct comparator {
	struct hpet *hpet;
	uint32_t config;
	uint64_t value, period;		/* period: what was last written, for T_PERIODIC */
	uint64_t match;			/* the count at which it fires, if armed */
	bool armed;
	const struct irq_line *raised;	/* a level line held high, or NULL */
	struct loop_timer *timer;
};

struct hpet {
	pthread_mutex_t lock;		/* taken before those of the interrupt controllers */
	struct hpet_wiring wiring;
	uint32_t config, status;
	uint64_t count, start_ns;	/* the counter stood at `count` when it last started or stopped */
	struct comparator t[TIMERS];
};

static uint64_t counter(const struct hpet *h)
{
	return h->config & CONFIG_ENABLE ? h->count + (clock_now_ns() - h->start_ns) / TICK_NS : h->count;
}

static uint64_t width_mask(const struct comparator *t) { return t->config & T_32BIT ? 0xffffffff : ~0ull; }

/* Where a comparator's interrupt goes now; NULL: nowhere. */
static const struct irq_line *line_of(const struct hpet *h, unsigned n)
{
	const struct comparator *t = &h->t[n];
	if (!(h->config & CONFIG_ENABLE) || !(t->config & T_INT_ENABLE))
		return NULL;
	if ((h->config & CONFIG_LEGACY) && n < 2)
		return &h->wiring.legacy[n];
	unsigned pin = T_ROUTE(t->config);
	return pin < HPET_PINS && h->wiring.pin[pin].set ? &h->wiring.pin[pin] : NULL;
}

/* Drives level-triggered lines from the status bits, after any change to either. */
static void lines_update(struct hpet *h)
{
	const struct irq_line *want[TIMERS];
	for (unsigned n = 0; n < TIMERS; n++) {
		struct comparator *t = &h->t[n];
		want[n] = (h->status >> n & 1) && (t->config & T_LEVEL) ? line_of(h, n) : NULL;
		if (t->raised && t->raised != want[n]) {
			irq_set(t->raised, false);
			t->raised = NULL;
		}
	}
	/* second, so that a line shared by two comparators stays high while one of them asks */
	for (unsigned n = 0; n < TIMERS; n++) {
		if (want[n])
			irq_set(want[n], true);
		h->t[n].raised = want[n];
	}
}

static void interrupt(struct hpet *h, unsigned n)
{
	if (h->t[n].config & T_LEVEL) {
		h->status |= 1u << n;
		lines_update(h);
		return;
	}
	const struct irq_line *l = line_of(h, n);
	if (l) {
		irq_set(l, true);
		irq_set(l, false);
	}
}

/* Sets the host timer for t->match, or leaves it off. */
static void host_timer_set(struct comparator *t, uint64_t now_tick)
{
	uint64_t wait = t->match > now_tick ? t->match - now_tick : 0;
	if (wait > WAIT_MAX_TICKS)
		wait = WAIT_MAX_TICKS;
	loop_timer_set(t->timer, clock_now_ns() + wait * TICK_NS);
}

/* Finds a comparator's next match from scratch: it, the counter or the configuration was written. */
static void arm(struct comparator *t)
{
	struct hpet *h = t->hpet;
	t->armed = h->config & CONFIG_ENABLE;
	if (!t->armed) {
		loop_timer_cancel(t->timer);
		return;
	}
	uint64_t now = counter(h), delta = (t->value - now) & width_mask(t);
	t->armed = !__builtin_add_overflow(now, delta, &t->match);
	if (t->armed)
		host_timer_set(t, now);
	else
		loop_timer_cancel(t->timer);
}

static void arm_all(struct hpet *h)
{
	for (unsigned n = 0; n < TIMERS; n++)
		arm(&h->t[n]);
}

/* Moves to the match after the one that has fired. Missed periods are dropped, the phase is kept. */
static void advance(struct comparator *t, uint64_t now)
{
	uint64_t step = t->config & T_PERIODIC ? t->period : t->config & T_32BIT ? 1ull << 32 : 0;
	if (!step) {
		t->armed = false;
		return;
	}
	uint64_t least = now + (t->config & T_PERIODIC ? PERIOD_MIN_TICKS : 0);
	uint64_t steps = (now - t->match) / step + 1;
	if (step < PERIOD_MIN_TICKS)
		steps = (least - t->match) / step + 1;
	t->match += steps * step;
	if (t->config & T_PERIODIC)
		t->value = t->match & width_mask(t);
	host_timer_set(t, now);
}

static void on_timer(void *opaque)
{
	struct comparator *t = opaque;
	struct hpet *h = t->hpet;
	pthread_mutex_lock(&h->lock);
	uint64_t now = counter(h);
	if (t->armed && now >= t->match) {
		interrupt(h, (unsigned)(t - h->t));
		advance(t, now);
	} else if (t->armed) {
		host_timer_set(t, now);
	}
	pthread_mutex_unlock(&h->lock);
}

/* --- registers --- */

static uint32_t route_caps(const struct hpet *h)
{
	uint32_t caps = 0;
	for (unsigned i = 0; i < HPET_PINS; i++)
		caps |= h->wiring.pin[i].set ? 1u << i : 0;
	return caps;
}

static uint64_t timer_read(const struct hpet *h, unsigned n, unsigned reg)
{
	const struct comparator *t = &h->t[n];
	if (reg == 0)
		return t->config | T_PERIODIC_CAP | T_SIZE_CAP | (uint64_t)route_caps(h) << 32;
	return reg == 8 ? t->value & width_mask(t) : 0;
}

/* at: a multiple of 8 */
static uint64_t reg_read(const struct hpet *h, unsigned at)
{
	switch (at) {
	case REG_CAPS: return TICK_FS << 32 | 0x8086a201;	/* legacy routes, 64 bits, three timers */
	case REG_CONFIG: return h->config;
	case REG_STATUS: return h->status;
	case REG_COUNTER: return counter(h);
	default: break;
	}
	unsigned n = (at - REG_TIMERS) / 0x20;
	return at >= REG_TIMERS && n < TIMERS ? timer_read(h, n, at & 0x1f) : 0;
}

static void config_write(struct hpet *h, uint32_t v)
{
	uint32_t changed = (h->config ^ v) & (CONFIG_ENABLE | CONFIG_LEGACY);
	if (changed & CONFIG_ENABLE) {
		h->count = counter(h);
		h->start_ns = clock_now_ns();
	}
	h->config ^= changed;
	if (changed & CONFIG_ENABLE)
		arm_all(h);
	if ((changed & CONFIG_LEGACY) && h->wiring.legacy_mode)
		h->wiring.legacy_mode(h->wiring.opaque, h->config & CONFIG_LEGACY);
	lines_update(h);
}

static void comparator_write(struct comparator *t, uint64_t v, uint64_t mask)
{
	bool periodic = t->config & T_PERIODIC;
	mask &= width_mask(t);
	if (!periodic || (t->config & T_VALUE_SET)) {
		t->value = (t->value & ~mask) | (v & mask);
		arm(t);
	}
	if (periodic)
		t->period = ((t->period & ~mask) | (v & mask)) & width_mask(t);
	t->config &= ~T_VALUE_SET;
}

static void timer_write(struct hpet *h, unsigned n, unsigned reg, uint64_t v, uint64_t mask)
{
	struct comparator *t = &h->t[n];
	if (reg == 8) {
		comparator_write(t, v, mask);
	} else if (reg == 0 && (mask & 1)) {
		uint32_t old = t->config;
		t->config = (uint32_t)v & T_WRITABLE;
		if (!(t->config & T_LEVEL))
			h->status &= ~(1u << n);
		if ((old ^ t->config) & (T_32BIT | T_PERIODIC)) {
			t->value &= width_mask(t);
			t->period &= width_mask(t);
			arm(t);
		}
		lines_update(h);
	}
}

static void reg_write(struct hpet *h, unsigned at, uint64_t v, uint64_t mask)
{
	if (at == REG_CONFIG && (mask & 1)) {
		config_write(h, (uint32_t)v);
	} else if (at == REG_STATUS) {
		h->status &= ~(uint32_t)(v & mask);
		lines_update(h);
	} else if (at == REG_COUNTER) {
		h->count = (counter(h) & ~mask) | (v & mask);
		h->start_ns = clock_now_ns();
		arm_all(h);
	} else if (at >= REG_TIMERS && (at - REG_TIMERS) / 0x20 < TIMERS) {
		timer_write(h, (at - REG_TIMERS) / 0x20, at & 0x1f, v, mask);
	}
}

static uint64_t io_read(void *opaque, uint64_t offset, unsigned size)
{
	struct hpet *h = opaque;
	if (offset & (size - 1))
		return ~0ull;
	pthread_mutex_lock(&h->lock);
	uint64_t v = reg_read(h, (unsigned)offset & ~7u);
	pthread_mutex_unlock(&h->lock);
	return size == 8 ? v : (uint32_t)(v >> 8 * (offset & 4));
}

static void io_write(void *opaque, uint64_t offset, unsigned size, uint64_t value)
{
	struct hpet *h = opaque;
	unsigned shift = 8 * (offset & 4);
	if (offset & (size - 1))
		return;
	uint64_t mask = size == 8 ? ~0ull : 0xffffffffull << shift;
	pthread_mutex_lock(&h->lock);
	reg_write(h, (unsigned)offset & ~7u, size == 8 ? value : value << shift, mask);
	pthread_mutex_unlock(&h->lock);
}

static const struct io_ops ops = { io_read, io_write, 4, 8 };

void hpet_reset(struct hpet *h)
{
	pthread_mutex_lock(&h->lock);
	config_write(h, 0);
	h->status = 0;
	h->count = 0;
	for (unsigned n = 0; n < TIMERS; n++) {
		h->t[n].config = 0;
		h->t[n].value = ~0ull;
		h->t[n].period = 0;
	}
	lines_update(h);
	pthread_mutex_unlock(&h->lock);
}

struct hpet *hpet_new(struct map *m, struct loop *l, const struct hpet_wiring *w)
{
	struct hpet *h = calloc(1, sizeof *h);
	ASSERT(h);
	pthread_mutex_init(&h->lock, NULL);
	h->wiring = *w;
	for (unsigned n = 0; n < TIMERS; n++) {
		h->t[n].hpet = h;
		h->t[n].timer = loop_timer_new(l, on_timer, &h->t[n]);
		ASSERT(h->t[n].timer);
	}
	hpet_reset(h);
	map_add_mmio(m, HPET_GPA, 0x1000, &ops, h, "hpet");
	return h;
}

void hpet_free(struct hpet *h)
{
	if (!h)
		return;
	for (unsigned n = 0; n < TIMERS; n++)
		loop_timer_free(h->t[n].timer);
	pthread_mutex_destroy(&h->lock);
	free(h);
}
