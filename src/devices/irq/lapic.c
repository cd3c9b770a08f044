#include "devices/irq/lapic.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "host/loop.h"
#include "memory/map.h"

/* Registers, SDM vol. 3 table 11-1, as offset / 16 */
enum { R_ID = 0x2, R_VERSION = 0x3, R_TPR = 0x8, R_APR = 0x9, R_PPR = 0xa, R_EOI = 0xb, R_LDR = 0xd, R_DFR = 0xe,
       R_SVR = 0xf, R_ISR = 0x10, R_TMR = 0x18, R_IRR = 0x20, R_ESR = 0x28, R_CMCI = 0x2f, R_ICR = 0x30,
       R_ICR_HIGH = 0x31, R_LVT_TIMER = 0x32, R_LVT_THERMAL = 0x33, R_LVT_PERF = 0x34, R_LVT_LINT0 = 0x35,
       R_LVT_LINT1 = 0x36, R_LVT_ERROR = 0x37, R_TIMER_INIT = 0x38, R_TIMER_COUNT = 0x39, R_TIMER_DIVIDE = 0x3e,
       R_SELF_IPI = 0x3f };
enum { MODE_FIXED, MODE_LOWEST, MODE_SMI, MODE_NMI = 4, MODE_INIT, MODE_SIPI, MODE_EXTINT };
enum { TIMER_ONESHOT, TIMER_PERIODIC, TIMER_DEADLINE };
#define LVT_MASKED 0x10000u
#define SVR_ENABLE 0x100u
#define BASE_ENABLE 0x800u
#define BASE_X2 0x400u
#define BASE_BSP 0x100u
#define ESR_SEND_ILLEGAL 0x20u
#define ESR_RECV_ILLEGAL 0x40u
#define MSR_APIC_BASE 0x1bu
#define MSR_TSC_DEADLINE 0x6e0u
#define MSR_X2APIC 0x800u
#define TIMER_HZ 1000000000ull	/* bus clock before the divider: one count a nanosecond */
#define PERIOD_MIN_NS 20000u	/* a guest cannot ask the host for more than 50,000 ticks a second */

/* Where registers answer. All LAPICs share the one at LAPIC_GPA; one whose base is elsewhere has its own as well. */
struct window {
	struct lapic_bus *bus;
	uint64_t gpa;
	struct region *region;		/* NULL: was never needed */
};

struct lapic {
	pthread_mutex_t lock;
	struct lapic_bus *bus;
	unsigned index;
	uint64_t base;
	struct window away;
	uint32_t tpr, ldr, dfr, svr, esr, esr_shown, icr, icr_high, divide, timer_init;
	uint32_t lvt[6];		/* timer, thermal, perf, LINT0, LINT1, error */
	uint32_t irr[8], isr[8], tmr[8];
	uint64_t timer_deadline_ns, tsc_deadline;
	bool timer_runs;		/* one-shot, periodic: counts down to zero at timer_deadline_ns */
	struct loop_timer *timer;
	atomic_bool pending;		/* IRR holds something deliverable; written under lock */
};

struct lapic_bus {
	struct lapic_host host;
	struct loop *loop;
	struct map *map;
	unsigned count;
	struct window home;
	struct lapic apic[LAPIC_MAX];
};

static bool bit_test(const uint32_t *set, unsigned v) { return set[v / 32] >> (v % 32) & 1; }
static void bit_set(uint32_t *set, unsigned v) { set[v / 32] |= 1u << (v % 32); }
static void bit_clear(uint32_t *set, unsigned v) { set[v / 32] &= ~(1u << (v % 32)); }
static int highest(const uint32_t *set)
{
	for (int i = 7; i >= 0; i--)
		if (set[i])
			return 32 * i + 31 - __builtin_clz(set[i]);
	return -1;
}

static bool is_x2(const struct lapic *a) { return (a->base & (BASE_ENABLE | BASE_X2)) == (BASE_ENABLE | BASE_X2); }
static bool is_on(const struct lapic *a) { return (a->base & BASE_ENABLE) && (a->svr & SVR_ENABLE); }

static uint32_t ppr(const struct lapic *a)
{
	int serving = highest(a->isr);
	uint32_t isrv = serving < 0 ? 0 : (uint32_t)serving & 0xf0;
	return (a->tpr & 0xf0) >= isrv ? a->tpr : isrv;
}

/* Does LINT0 let the 8259 through? With the LAPIC off it is a wire (SDM 11.4.7.1). */
static bool takes_extint(const struct lapic *a)
{
	if (a->index)
		return false;
	if (!(a->base & BASE_ENABLE))
		return true;
	return !(a->lvt[3] & LVT_MASKED) && (a->lvt[3] >> 8 & 7) == MODE_EXTINT;
}

static void pending_update(struct lapic *a)
{
	int best = highest(a->irr);
	atomic_store(&a->pending, is_on(a) && best >= 0 && ((uint32_t)best & 0xf0) > (ppr(a) & 0xf0));
}

static void kick(struct lapic *a)
{
	a->bus->host.kick(a->bus->host.opaque, a->index);
}

/* True: kick the vCPU once the lock is dropped. */
static bool accept_locked(struct lapic *a, uint8_t vector, bool level)
{
	bool on = is_on(a);
	if (on && vector < 16) {
		a->esr |= ESR_RECV_ILLEGAL;
	} else if (on) {
		bit_set(a->irr, vector);
		(level ? bit_set : bit_clear)(a->tmr, vector);
		pending_update(a);
	}
	return atomic_load(&a->pending);
}

static void accept_fixed(struct lapic *a, uint8_t vector, bool level)
{
	pthread_mutex_lock(&a->lock);
	bool wake = accept_locked(a, vector, level);
	pthread_mutex_unlock(&a->lock);
	if (wake)
		kick(a);
}

/* All but IA32_APIC_BASE: what INIT resets too (SDM 11.4.7.3). The lock is held. */
static void registers_reset(struct lapic *a)
{
	loop_timer_cancel(a->timer);
	a->timer_runs = false;
	a->tpr = a->ldr = a->esr = a->esr_shown = a->icr = a->icr_high = a->divide = a->timer_init = 0;
	a->dfr = 0xffffffff;
	a->svr = 0xff;
	a->tsc_deadline = 0;
	for (unsigned i = 0; i < 6; i++)
		a->lvt[i] = LVT_MASKED;
	memset(a->irr, 0, sizeof a->irr);
	memset(a->isr, 0, sizeof a->isr);
	memset(a->tmr, 0, sizeof a->tmr);
	pending_update(a);
}

static void accept(struct lapic *a, const struct lapic_message *msg)
{
	const struct lapic_host *h = &a->bus->host;
	switch (msg->mode) {
	case MODE_FIXED:
	case MODE_LOWEST: accept_fixed(a, msg->vector, msg->level); break;
	case MODE_NMI: h->nmi(h->opaque, a->index); break;
	case MODE_INIT:
		if (msg->level && !msg->level_assert)
			break;
		pthread_mutex_lock(&a->lock);
		registers_reset(a);
		pthread_mutex_unlock(&a->lock);
		h->init(h->opaque, a->index);
		break;
	case MODE_SIPI: h->sipi(h->opaque, a->index, msg->vector); break;
	case MODE_EXTINT: kick(a); break;
	default: break;
	}
}

static uint32_t x2_ldr(unsigned id) { return (id >> 4) << 16 | 1u << (id & 15); }

/* SDM 11.6.2: does `dest` name this LAPIC? */
static bool addressed(const struct lapic *a, uint32_t dest, bool logical, bool x2_sender)
{
	if (!logical)
		return dest == a->index || dest == (x2_sender ? 0xffffffffu : 0xffu) || dest == 0xffffffffu;
	if (is_x2(a)) {
		if (dest == (x2_sender ? 0xffffffffu : 0xffu))
			return true;
		uint32_t ldr = x2_ldr(a->index);
		return dest >> 16 == ldr >> 16 && (dest & ldr & 0xffff);
	}
	uint32_t ldr = a->ldr >> 24;
	if (a->dfr >> 28 == 0xf)
		return dest & ldr & 0xff;
	return (dest & 0xf0) == (ldr & 0xf0) ? (dest & ldr & 0xf) : (dest & 0xff) == 0xff;
}

static void deliver(struct lapic_bus *b, const struct lapic_message *msg, bool x2_sender)
{
	struct lapic *best = NULL;
	for (unsigned i = 0; i < b->count; i++) {
		struct lapic *a = &b->apic[i];
		if (!addressed(a, msg->dest, msg->logical, x2_sender))
			continue;
		if (msg->mode != MODE_LOWEST)
			accept(a, msg);
		else if (is_on(a) && (!best || ppr(a) < ppr(best)))
			best = a;
	}
	if (best)
		accept(best, msg);
}

void lapic_deliver(struct lapic_bus *b, const struct lapic_message *msg)
{
	deliver(b, msg, false);
}

void lapic_msi(void *bus, uint64_t gpa, uint32_t data)
{
	if (gpa >> 20 != 0xfee)
		return;
	struct lapic_message msg = {
		.dest = gpa >> 12 & 0xff, .logical = gpa >> 2 & 1, .mode = data >> 8 & 7,
		.vector = (uint8_t)data, .level = data >> 15 & 1, .level_assert = data >> 14 & 1,
	};
	if (gpa >> 3 & 1 && msg.mode == MODE_FIXED)
		msg.mode = MODE_LOWEST;
	if (msg.mode != MODE_SIPI)
		deliver(bus, &msg, false);
}

void lapic_extint(struct lapic_bus *b)
{
	/* Whether it takes the interrupt is for the vCPU to see: its registers are under a lock that must not be taken
	 * inside the 8259's. */
	kick(&b->apic[0]);
}

static void send_ipi(struct lapic *a)
{
	struct lapic_bus *b = a->bus;
	pthread_mutex_lock(&a->lock);
	uint32_t icr = a->icr, shorthand = icr >> 18 & 3;
	bool x2 = is_x2(a);
	struct lapic_message msg = {
		.dest = x2 ? a->icr_high : a->icr_high >> 24, .logical = icr >> 11 & 1, .mode = icr >> 8 & 7,
		.vector = (uint8_t)icr, .level = icr >> 15 & 1, .level_assert = icr >> 14 & 1,
	};
	if (msg.mode <= MODE_LOWEST && msg.vector < 16)
		a->esr |= ESR_SEND_ILLEGAL;
	pthread_mutex_unlock(&a->lock);
	if (msg.mode != MODE_INIT)
		msg.level = false;
	if (shorthand == 0) {
		deliver(b, &msg, x2);
		return;
	}
	if (msg.mode == MODE_LOWEST)
		msg.mode = MODE_FIXED;
	for (unsigned i = 0; i < b->count; i++) {
		bool self = i == a->index;
		if (shorthand == 1 ? self : shorthand == 2 || !self)
			accept(&b->apic[i], &msg);
	}
}

/* --- timer --- */

static unsigned timer_shift(const struct lapic *a)
{
	return ((a->divide & 3) | (a->divide >> 1 & 4)) == 7 ? 0 : ((a->divide & 3) | (a->divide >> 1 & 4)) + 1u;
}
static unsigned timer_mode(const struct lapic *a) { return a->lvt[0] >> 17 & 3; }
static uint64_t timer_period_ns(const struct lapic *a)
{
	return ((uint64_t)a->timer_init << timer_shift(a)) * 1000000000ull / TIMER_HZ;
}

/* What the host's timer has yet to tell of counts as done. */
static uint32_t timer_count(const struct lapic *a)
{
	uint64_t now = clock_now_ns(), period = timer_period_ns(a);
	if (!a->timer_runs || !period)
		return 0;
	uint64_t left = a->timer_deadline_ns - now;
	if (now < a->timer_deadline_ns)
		left = (left - 1) % period + 1;		/* it may be further away: PERIOD_MIN_NS */
	else if (timer_mode(a) == TIMER_PERIODIC)
		left = period - (now - a->timer_deadline_ns) % period;
	else
		return 0;
	return (uint32_t)((left + (1u << timer_shift(a)) - 1) >> timer_shift(a));
}

static void timer_arm(struct lapic *a, uint64_t deadline_ns)
{
	a->timer_deadline_ns = deadline_ns;
	loop_timer_set(a->timer, deadline_ns);
}

static void timer_stop(struct lapic *a)
{
	a->timer_runs = false;
	loop_timer_cancel(a->timer);
}

static uint64_t tick_period_ns(const struct lapic *a)
{
	uint64_t period = timer_period_ns(a);
	return period < PERIOD_MIN_NS ? PERIOD_MIN_NS : period;
}

static void timer_start(struct lapic *a)
{
	uint64_t period = timer_mode(a) == TIMER_PERIODIC ? tick_period_ns(a) : timer_period_ns(a);
	if (!a->timer_init) {
		timer_stop(a);
		return;
	}
	a->timer_runs = true;
	timer_arm(a, clock_now_ns() + period);
}

/* The count stays, and goes on at the new rate. */
static void divide_write(struct lapic *a, uint32_t v)
{
	uint64_t count = timer_count(a);
	a->divide = v & 0xb;
	if (a->timer_runs && count)
		timer_arm(a, clock_now_ns() + (count << timer_shift(a)));
}

/* Sets the host timer from the guest's TSC deadline; true: it is past, fire now. */
static bool deadline_start(struct lapic *a)
{
	const struct lapic_host *h = &a->bus->host;
	if (!a->tsc_deadline) {
		loop_timer_cancel(a->timer);
		return false;
	}
	uint64_t tsc = h->tsc(h->opaque, a->index);
	if (a->tsc_deadline <= tsc)
		return true;
	unsigned __int128 ns = (unsigned __int128)(a->tsc_deadline - tsc) * 1000000000u / h->tsc_hz;
	uint64_t wait = ns > 1000000000000000000ull ? 1000000000000000000ull : (uint64_t)ns;
	timer_arm(a, clock_now_ns() + wait + 1);
	return false;
}

/*
 * The timer is due: under the same hold of the lock that found it so, or a deadline that the vCPU writes
 * meanwhile would be wiped out. True: kick the vCPU.
 */
static bool timer_fire(struct lapic *a)
{
	a->tsc_deadline = 0;
	return !(a->lvt[0] & LVT_MASKED) && accept_locked(a, (uint8_t)a->lvt[0], false);
}

/* One-shot, periodic: the count is at zero. Ticks missed while the host was busy are dropped, the phase is kept. */
static bool timer_expire(struct lapic *a, uint64_t now)
{
	uint64_t period = tick_period_ns(a);
	if (timer_mode(a) == TIMER_PERIODIC)
		timer_arm(a, a->timer_deadline_ns + ((now - a->timer_deadline_ns) / period + 1) * period);
	else
		a->timer_runs = false;
	return timer_fire(a);
}

static void on_timer(void *opaque)
{
	struct lapic *a = opaque;
	pthread_mutex_lock(&a->lock);
	uint64_t now = clock_now_ns();
	bool wake = false;
	if (timer_mode(a) == TIMER_DEADLINE)
		wake = a->tsc_deadline && deadline_start(a) && timer_fire(a);
	else if (a->timer_runs && now < a->timer_deadline_ns)
		loop_timer_set(a->timer, a->timer_deadline_ns);
	else if (a->timer_runs)		/* else it was stopped while this call was on its way */
		wake = timer_expire(a, now);
	pthread_mutex_unlock(&a->lock);
	if (wake)
		kick(a);
}

/* --- registers --- */

static uint32_t reg_read(struct lapic *a, unsigned r)
{
	if (r >= R_ISR && r < R_ISR + 8)
		return a->isr[r - R_ISR];
	if (r >= R_TMR && r < R_TMR + 8)
		return a->tmr[r - R_TMR];
	if (r >= R_IRR && r < R_IRR + 8)
		return a->irr[r - R_IRR];
	if (r >= R_LVT_TIMER && r <= R_LVT_ERROR)
		return a->lvt[r - R_LVT_TIMER];
	switch (r) {
	case R_ID: return is_x2(a) ? a->index : a->index << 24;
	case R_VERSION: return 0x50014;
	case R_TPR: return a->tpr;
	case R_PPR: return ppr(a);
	case R_LDR: return is_x2(a) ? x2_ldr(a->index) : a->ldr;
	case R_DFR: return a->dfr;
	case R_SVR: return a->svr;
	case R_ESR: return a->esr_shown;
	case R_ICR: return a->icr;
	case R_ICR_HIGH: return a->icr_high;
	case R_TIMER_INIT: return timer_mode(a) == TIMER_DEADLINE ? 0 : a->timer_init;
	case R_TIMER_COUNT: return timer_count(a);
	case R_TIMER_DIVIDE: return a->divide;
	default: return 0;
	}
}

/* Returns the vector to broadcast to the IO-APIC, or -1. */
static int eoi(struct lapic *a)
{
	int v = highest(a->isr);
	if (v < 0)
		return -1;
	bit_clear(a->isr, (unsigned)v);
	pending_update(a);
	return bit_test(a->tmr, (unsigned)v) && !(a->svr & 0x1000) ? v : -1;
}

/* To and from TSC deadlines the timer is disarmed; between one-shot and periodic it counts on (SDM vol. 3, 11.5.4). */
static void lvt_write(struct lapic *a, unsigned i, uint32_t v)
{
	static const uint32_t mask[6] = { 0x710ff, 0x117ff, 0x117ff, 0x1f7ff, 0x1f7ff, 0x110ff };
	uint32_t next = (v & mask[i]) | (a->svr & SVR_ENABLE ? 0 : LVT_MASKED), mode = next >> 17 & 3;
	uint64_t now = clock_now_ns();
	if (i == 0 && mode != timer_mode(a)) {
		if (mode == TIMER_DEADLINE || timer_mode(a) == TIMER_DEADLINE) {
			timer_stop(a);
			a->tsc_deadline = 0;
			a->timer_init = 0;
		} else if (a->timer_runs && now >= a->timer_deadline_ns) {
			timer_expire(a, now);	/* due in the old mode */
		}
	}
	a->lvt[i] = next;
}

static void svr_write(struct lapic *a, uint32_t v)
{
	a->svr = v & 0x11ff;
	if (!(v & SVR_ENABLE))
		for (unsigned i = 0; i < 6; i++)
			a->lvt[i] |= LVT_MASKED;
	pending_update(a);
}

enum after { AFTER_NOTHING, AFTER_IPI, AFTER_KICK };

static enum after reg_write_locked(struct lapic *a, unsigned r, uint32_t v, int *ended)
{
	if (r >= R_LVT_TIMER && r <= R_LVT_ERROR) {
		lvt_write(a, r - R_LVT_TIMER, v);
		return r == R_LVT_LINT0 || r == R_LVT_TIMER ? AFTER_KICK : AFTER_NOTHING;
	}
	switch (r) {
	case R_TPR:
		a->tpr = v & 0xff;
		pending_update(a);
		return AFTER_KICK;
	case R_EOI:
		*ended = eoi(a);
		return AFTER_KICK;
	case R_LDR: a->ldr = v & 0xff000000; break;
	case R_DFR: a->dfr = v | 0x0fffffff; break;
	case R_SVR: svr_write(a, v); return AFTER_KICK;
	case R_ESR:
		a->esr_shown = a->esr;
		a->esr = 0;
		break;
	case R_ICR: a->icr = v & ~0x1000u; return AFTER_IPI;
	case R_ICR_HIGH: a->icr_high = v; break;
	case R_TIMER_INIT:
		if (timer_mode(a) != TIMER_DEADLINE) {
			a->timer_init = v;
			timer_start(a);
		}
		break;
	case R_TIMER_DIVIDE: divide_write(a, v); break;
	default: break;
	}
	return AFTER_NOTHING;
}

static void reg_write(struct lapic *a, unsigned r, uint32_t v)
{
	const struct lapic_host *h = &a->bus->host;
	int ended = -1;
	pthread_mutex_lock(&a->lock);
	enum after after = reg_write_locked(a, r, v, &ended);
	bool wake = after == AFTER_KICK && atomic_load(&a->pending);
	pthread_mutex_unlock(&a->lock);
	if (ended >= 0)
		h->eoi(h->opaque, (uint8_t)ended);
	if (after == AFTER_IPI)
		send_ipi(a);
	if (wake || (after == AFTER_KICK && takes_extint(a)))
		kick(a);
}

static struct lapic *current(struct lapic_bus *b)
{
	unsigned i = b->host.current(b->host.opaque);
	return &b->apic[i < b->count ? i : 0];
}

/* The LAPIC of the vCPU that asks; NULL: its registers are not here. */
static struct lapic *at_window(const struct window *w)
{
	struct lapic *a = current(w->bus);
	return (a->base & BASE_ENABLE) && !is_x2(a) && (a->base & GUEST_PAGE_MASK) == w->gpa ? a : NULL;
}

static uint64_t mmio_read(void *opaque, uint64_t offset, unsigned size)
{
	struct lapic *a = at_window(opaque);
	(void)size;
	if (!a || offset & 0xf || offset >= 0x400)
		return a ? 0 : 0xffffffff;
	pthread_mutex_lock(&a->lock);
	uint32_t v = reg_read(a, (unsigned)offset >> 4);
	pthread_mutex_unlock(&a->lock);
	return v;
}

static void mmio_write(void *opaque, uint64_t offset, unsigned size, uint64_t value)
{
	struct lapic *a = at_window(opaque);
	(void)size;
	if (a && !(offset & 0xf) && offset < 0x400)
		reg_write(a, (unsigned)offset >> 4, (uint32_t)value);
}

static const struct io_ops mmio_ops = { mmio_read, mmio_write, 4, 4 };

/* As all windows it stays unseen where RAM is. No LAPIC's lock is held. */
static void window_place(struct lapic *a)
{
	struct lapic_bus *b = a->bus;
	struct window *w = &a->away;
	bool away = (a->base & GUEST_PAGE_MASK) != LAPIC_GPA;
	w->bus = b;
	if (away && !w->region) {
		w->gpa = a->base & GUEST_PAGE_MASK;
		w->region = map_add_mmio(b->map, w->gpa, GUEST_PAGE_SIZE, &mmio_ops, w, "lapic");
	} else if (away && w->gpa != (a->base & GUEST_PAGE_MASK)) {
		w->gpa = a->base & GUEST_PAGE_MASK;
		region_move(b->map, w->region, w->gpa);
	}
	if (w->region)
		region_enable(b->map, w->region, away);
}

/* --- MSRs --- */

static bool base_write(struct lapic *a, uint64_t v)
{
	if (v & ~0xffffff000ull & ~(uint64_t)(BASE_ENABLE | BASE_X2 | BASE_BSP))
		return false;
	if ((v & BASE_X2) && !(v & BASE_ENABLE))
		return false;
	if (!(a->base & BASE_ENABLE) && (v & BASE_X2))
		return false;			/* nor from disabled to x2APIC at once (SDM vol. 3, 11.12.5) */
	if (is_x2(a) && (v & BASE_ENABLE) && !(v & BASE_X2))
		return false;			/* x2APIC to xAPIC only through disabled */
	pthread_mutex_lock(&a->lock);
	a->base = v;
	pending_update(a);
	pthread_mutex_unlock(&a->lock);
	window_place(a);
	return true;
}

static bool deadline_write(struct lapic *a, uint64_t v)
{
	pthread_mutex_lock(&a->lock);
	bool wake = false;
	if (timer_mode(a) == TIMER_DEADLINE) {
		a->tsc_deadline = v;
		wake = deadline_start(a) && timer_fire(a);
	}
	pthread_mutex_unlock(&a->lock);
	if (wake)
		kick(a);
	return true;
}

/* Which registers x2APIC mode has, as bits (SDM vol. 3 table 11-6); the others are #GP. There is no CMCI. */
#define BITS(first, last) (~0ull >> (63 - (last)) & ~0ull << (first))
#define X2_READS (BITS(0x02, 0x03) | BITS(0x08, 0x08) | BITS(0x0a, 0x0a) | BITS(0x0d, 0x0d) | BITS(0x0f, 0x28) | \
		  BITS(0x30, 0x30) | BITS(0x32, 0x39) | BITS(0x3e, 0x3e))
#define X2_WRITES (BITS(0x08, 0x08) | BITS(0x0b, 0x0b) | BITS(0x0f, 0x0f) | BITS(0x28, 0x28) | BITS(0x30, 0x30) | \
		   BITS(0x32, 0x38) | BITS(0x3e, 0x3f))

bool lapic_msr_read(struct lapic_bus *b, unsigned cpu, uint32_t msr, uint64_t *value)
{
	struct lapic *a = &b->apic[cpu];
	unsigned r = msr - MSR_X2APIC;
	if (msr == MSR_APIC_BASE)
		*value = a->base;
	else if (msr == MSR_TSC_DEADLINE)
		*value = timer_mode(a) == TIMER_DEADLINE ? a->tsc_deadline : 0;
	else if (r > 0x3f || !is_x2(a) || !(X2_READS >> r & 1))
		return false;
	else {
		pthread_mutex_lock(&a->lock);
		*value = reg_read(a, r) | (r == R_ICR ? (uint64_t)a->icr_high << 32 : 0);
		pthread_mutex_unlock(&a->lock);
	}
	return true;
}

bool lapic_msr_write(struct lapic_bus *b, unsigned cpu, uint32_t msr, uint64_t value)
{
	struct lapic *a = &b->apic[cpu];
	unsigned r = msr - MSR_X2APIC;
	if (msr == MSR_APIC_BASE)
		return base_write(a, value);
	if (msr == MSR_TSC_DEADLINE)
		return deadline_write(a, value);
	if (r > 0x3f || !is_x2(a) || !(X2_WRITES >> r & 1) || ((r == R_TPR || r == R_SELF_IPI) && value > 0xff))
		return false;
	if (r == R_SELF_IPI) {
		accept_fixed(a, (uint8_t)value, false);
		return true;
	}
	if (r == R_ICR)
		a->icr_high = (uint32_t)(value >> 32);
	else if (value >> 32 || ((r == R_EOI || r == R_ESR) && value))
		return false;
	reg_write(a, r, (uint32_t)value);
	return true;
}

/* --- the vCPU's side --- */

bool lapic_pending(struct lapic_bus *b, unsigned cpu)
{
	struct lapic *a = &b->apic[cpu];
	if (atomic_load(&a->pending))
		return true;
	return takes_extint(a) && b->host.extint_pending(b->host.opaque);
}

int lapic_ack(struct lapic_bus *b, unsigned cpu)
{
	struct lapic *a = &b->apic[cpu];
	int v = -1;
	pthread_mutex_lock(&a->lock);
	if (atomic_load(&a->pending)) {
		v = highest(a->irr);
		bit_clear(a->irr, (unsigned)v);
		bit_set(a->isr, (unsigned)v);
		pending_update(a);
	}
	pthread_mutex_unlock(&a->lock);
	if (v < 0 && takes_extint(a) && b->host.extint_pending(b->host.opaque))
		v = b->host.extint_ack(b->host.opaque);
	return v;
}

uint8_t lapic_tpr(struct lapic_bus *b, unsigned cpu) { return (uint8_t)b->apic[cpu].tpr; }
void lapic_set_tpr(struct lapic_bus *b, unsigned cpu, uint8_t tpr) { reg_write(&b->apic[cpu], R_TPR, tpr); }

void lapic_reset(struct lapic_bus *b, unsigned cpu)
{
	struct lapic *a = &b->apic[cpu];
	pthread_mutex_lock(&a->lock);
	a->base = LAPIC_GPA | BASE_ENABLE | (cpu ? 0 : BASE_BSP);
	registers_reset(a);
	pthread_mutex_unlock(&a->lock);
	window_place(a);
}

struct lapic_bus *lapic_bus_new(struct map *m, struct loop *l, unsigned vcpus, const struct lapic_host *host)
{
	struct lapic_bus *b = calloc(1, sizeof *b);
	ASSERT(b && vcpus <= LAPIC_MAX);
	b->host = *host;
	b->loop = l;
	b->map = m;
	b->count = vcpus;
	for (unsigned i = 0; i < vcpus; i++) {
		struct lapic *a = &b->apic[i];
		pthread_mutex_init(&a->lock, NULL);
		a->bus = b;
		a->index = i;
		a->timer = loop_timer_new(l, on_timer, a);
		ASSERT(a->timer);
		lapic_reset(b, i);
	}
	b->home = (struct window){ .bus = b, .gpa = LAPIC_GPA };
	b->home.region = map_add_mmio(m, LAPIC_GPA, GUEST_PAGE_SIZE, &mmio_ops, &b->home, "lapic");
	return b;
}

void lapic_bus_free(struct lapic_bus *b)
{
	for (unsigned i = 0; b && i < b->count; i++) {
		loop_timer_free(b->apic[i].timer);
		pthread_mutex_destroy(&b->apic[i].lock);
	}
	free(b);
}
