#include "devices/timer/rtc.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "base/error.h"
#include "host/loop.h"
#include "memory/map.h"

enum { SECONDS, SECONDS_ALARM, MINUTES, MINUTES_ALARM, HOURS, HOURS_ALARM, WEEKDAY, DAY, MONTH, YEAR, REG_A, REG_B,
       REG_C, REG_D, CENTURY = 0x32 };
#define B_SET 0x80
#define B_PIE 0x40
#define B_AIE 0x20
#define B_UIE 0x10
#define B_BINARY 0x04
#define B_24H 0x02
#define C_IRQ 0x80
#define C_PERIODIC 0x40
#define C_ALARM 0x20
#define C_UPDATE 0x10
#define SECOND_NS 1000000000ull

struct rtc {
	pthread_mutex_t lock;
	uint8_t cmos[128], index;
	struct irq_line irq;
	int64_t offset_s;		/* guest time - host time, once the guest sets the clock */
	struct tm held;			/* the time while B.SET stops it */
	struct loop_timer *periodic, *second;
	uint64_t periodic_ns;
};

static uint64_t real_ns(void)
{
	struct timespec t;
	clock_gettime(CLOCK_REALTIME, &t);
	return (uint64_t)t.tv_sec * SECOND_NS + (uint64_t)t.tv_nsec;
}

static struct tm time_now(const struct rtc *r)
{
	struct tm tm;
	if (r->cmos[REG_B] & B_SET)
		return r->held;
	time_t t = (time_t)(real_ns() / SECOND_NS) + r->offset_s;
	gmtime_r(&t, &tm);
	return tm;
}

static uint8_t encode(const struct rtc *r, int v)
{
	return (uint8_t)(r->cmos[REG_B] & B_BINARY ? v : v / 10 << 4 | v % 10);
}
static int decode(const struct rtc *r, uint8_t v)
{
	return r->cmos[REG_B] & B_BINARY ? v : (v >> 4) * 10 + (v & 15);
}

static uint8_t encode_hour(const struct rtc *r, int h)
{
	if (r->cmos[REG_B] & B_24H)
		return encode(r, h);
	return (uint8_t)(encode(r, h % 12 ? h % 12 : 12) | (h >= 12 ? 0x80 : 0));
}
static int decode_hour(const struct rtc *r, uint8_t v)
{
	if (r->cmos[REG_B] & B_24H)
		return decode(r, v);
	return decode(r, v & 0x7f) % 12 + (v & 0x80 ? 12 : 0);
}

/* Four digits, also of a date that the guest has set to before year 0. */
static int year_of(const struct tm *t)
{
	int y = (t->tm_year + 1900) % 10000;
	return y < 0 ? y + 10000 : y;
}

static uint8_t time_read(const struct rtc *r, unsigned reg)
{
	struct tm t = time_now(r);
	switch (reg) {
	case SECONDS: return encode(r, t.tm_sec % 60);
	case MINUTES: return encode(r, t.tm_min);
	case HOURS: return encode_hour(r, t.tm_hour);
	case WEEKDAY: return encode(r, t.tm_wday + 1);
	case DAY: return encode(r, t.tm_mday);
	case MONTH: return encode(r, t.tm_mon + 1);
	case YEAR: return encode(r, year_of(&t) % 100);
	default: return encode(r, year_of(&t) / 100);
	}
}

static void time_write(struct rtc *r, unsigned reg, uint8_t v)
{
	struct tm t = time_now(r);
	int year = year_of(&t);
	switch (reg) {
	case SECONDS: t.tm_sec = decode(r, v); break;
	case MINUTES: t.tm_min = decode(r, v); break;
	case HOURS: t.tm_hour = decode_hour(r, v); break;
	case DAY: t.tm_mday = decode(r, v); break;
	case MONTH: t.tm_mon = decode(r, v) - 1; break;
	case YEAR: t.tm_year = year / 100 * 100 + decode(r, v) - 1900; break;
	case CENTURY: t.tm_year = decode(r, v) * 100 + year % 100 - 1900; break;
	default: return;
	}
	if (r->cmos[REG_B] & B_SET)
		r->held = t;
	else
		r->offset_s = (int64_t)timegm(&t) - (int64_t)(real_ns() / SECOND_NS);
}

static bool is_time(unsigned reg)
{
	return reg == CENTURY || (reg <= YEAR && reg != SECONDS_ALARM && reg != MINUTES_ALARM && reg != HOURS_ALARM);
}

/* Sets flags in register C and the line with them; the lock is held. */
static void raise(struct rtc *r, uint8_t flags)
{
	r->cmos[REG_C] |= flags;
	if (r->cmos[REG_C] & r->cmos[REG_B] & (B_PIE | B_AIE | B_UIE)) {
		r->cmos[REG_C] |= C_IRQ;
		irq_set(&r->irq, true);
	} else {
		r->cmos[REG_C] &= (uint8_t)~C_IRQ;
		irq_set(&r->irq, false);
	}
}

static uint64_t period_ns(const struct rtc *r)
{
	unsigned rate = r->cmos[REG_A] & 15;
	if (!rate || (r->cmos[REG_A] & 0x70) > 0x20)
		return 0;
	return (SECOND_NS << ((rate <= 2 ? rate + 7 : rate) - 1)) / 32768;
}

static void schedule(struct rtc *r)
{
	uint64_t p = period_ns(r);
	if ((r->cmos[REG_B] & B_PIE) && p) {
		r->periodic_ns = clock_now_ns() + p;
		loop_timer_set(r->periodic, r->periodic_ns);
	} else {
		loop_timer_cancel(r->periodic);
	}
	if (r->cmos[REG_B] & (B_UIE | B_AIE))
		loop_timer_set(r->second, clock_now_ns() + SECOND_NS - real_ns() % SECOND_NS);
	else
		loop_timer_cancel(r->second);
}

static void on_periodic(void *opaque)
{
	struct rtc *r = opaque;
	pthread_mutex_lock(&r->lock);
	uint64_t p = period_ns(r), now = clock_now_ns();
	if (p && (r->cmos[REG_B] & B_PIE)) {
		raise(r, C_PERIODIC);
		r->periodic_ns += p;
		if (r->periodic_ns <= now)
			r->periodic_ns += ((now - r->periodic_ns) / p + 1) * p;
		loop_timer_set(r->periodic, r->periodic_ns);
	}
	pthread_mutex_unlock(&r->lock);
}

static bool alarm_matches(const struct rtc *r)
{
	static const uint8_t pair[3][2] = { { SECONDS, SECONDS_ALARM }, { MINUTES, MINUTES_ALARM }, { HOURS, HOURS_ALARM } };
	for (int i = 0; i < 3; i++)
		if (r->cmos[pair[i][1]] < 0xc0 && r->cmos[pair[i][1]] != time_read(r, pair[i][0]))
			return false;
	return true;
}

static void on_second(void *opaque)
{
	struct rtc *r = opaque;
	pthread_mutex_lock(&r->lock);
	if (!(r->cmos[REG_B] & B_SET))
		raise(r, C_UPDATE | (alarm_matches(r) ? C_ALARM : 0));
	if (r->cmos[REG_B] & (B_UIE | B_AIE))
		loop_timer_set(r->second, clock_now_ns() + SECOND_NS - real_ns() % SECOND_NS);
	pthread_mutex_unlock(&r->lock);
}

static uint8_t reg_read(struct rtc *r, unsigned reg)
{
	if (is_time(reg))
		return time_read(r, reg);
	if (reg == REG_A)	/* an update takes 244 us before each second */
		return (uint8_t)((r->cmos[REG_A] & 0x7f) | (real_ns() % SECOND_NS > SECOND_NS - 244000 ? 0x80 : 0));
	if (reg == REG_D)
		return 0x80;
	uint8_t v = r->cmos[reg];
	if (reg == REG_C) {
		r->cmos[REG_C] = 0;
		irq_set(&r->irq, false);
	}
	return v;
}

static void reg_write(struct rtc *r, unsigned reg, uint8_t v)
{
	if (is_time(reg)) {
		time_write(r, reg, v);
	} else if (reg == REG_B) {
		if ((v & B_SET) && !(r->cmos[REG_B] & B_SET))
			r->held = time_now(r);
		bool resume = !(v & B_SET) && (r->cmos[REG_B] & B_SET);
		r->cmos[REG_B] = v & B_SET ? v & (uint8_t)~B_UIE : v;
		if (resume) {
			struct tm t = r->held;
			r->offset_s = (int64_t)timegm(&t) - (int64_t)(real_ns() / SECOND_NS);
		}
		schedule(r);
		raise(r, 0);
	} else if (reg != REG_C && reg != REG_D) {
		r->cmos[reg] = v;
		if (reg == REG_A)
			schedule(r);
	}
}

static uint64_t io_read(void *opaque, uint64_t offset, unsigned size)
{
	struct rtc *r = opaque;
	(void)size;
	if (!offset)
		return 0xff;
	pthread_mutex_lock(&r->lock);
	uint8_t v = reg_read(r, r->index);
	pthread_mutex_unlock(&r->lock);
	return v;
}

static void io_write(void *opaque, uint64_t offset, unsigned size, uint64_t value)
{
	struct rtc *r = opaque;
	(void)size;
	pthread_mutex_lock(&r->lock);
	if (offset)
		reg_write(r, r->index, (uint8_t)value);
	else
		r->index = value & 0x7f;
	pthread_mutex_unlock(&r->lock);
}

static const struct io_ops ops = { io_read, io_write, 1, 1 };

void rtc_reset(struct rtc *r)
{
	pthread_mutex_lock(&r->lock);
	r->cmos[REG_A] = 0x26;
	r->cmos[REG_B] = B_24H;
	r->cmos[REG_C] = 0;
	schedule(r);
	irq_set(&r->irq, false);
	pthread_mutex_unlock(&r->lock);
}

static void ram_sizes(struct rtc *r, uint64_t low, uint64_t high)
{
	uint64_t ext = low > 1 << 20 ? (low - (1 << 20)) >> 10 : 0, ext16 = low > 16 << 20 ? (low - (16 << 20)) >> 16 : 0;
	ext = ext > 0xffff ? 0xffff : ext;
	r->cmos[0x15] = 640 & 0xff;
	r->cmos[0x16] = 640 >> 8;
	r->cmos[0x17] = r->cmos[0x30] = (uint8_t)ext;
	r->cmos[0x18] = r->cmos[0x31] = (uint8_t)(ext >> 8);
	r->cmos[0x34] = (uint8_t)ext16;
	r->cmos[0x35] = (uint8_t)(ext16 >> 8);
	r->cmos[0x5b] = (uint8_t)(high >> 16);
	r->cmos[0x5c] = (uint8_t)(high >> 24);
	r->cmos[0x5d] = (uint8_t)(high >> 32);
}

struct rtc *rtc_new(struct map *m, struct loop *l, struct irq_line irq8, uint64_t low_ram, uint64_t high_ram)
{
	struct rtc *r = calloc(1, sizeof *r);
	ASSERT(r);
	pthread_mutex_init(&r->lock, NULL);
	r->irq = irq8;
	r->periodic = loop_timer_new(l, on_periodic, r);
	r->second = loop_timer_new(l, on_second, r);
	ASSERT(r->periodic && r->second);
	ram_sizes(r, low_ram, high_ram);
	rtc_reset(r);
	map_add_pio(m, 0x70, 2, &ops, r, "rtc");
	return r;
}

void rtc_free(struct rtc *r)
{
	if (!r)
		return;
	loop_timer_free(r->periodic);
	loop_timer_free(r->second);
	pthread_mutex_destroy(&r->lock);
	free(r);
}
