/* The MC146818 real-time clock and 128 bytes of CMOS at ports 70h/71h. UTC, from the host's clock. */
#ifndef VIXEN_DEVICES_TIMER_RTC_H
#define VIXEN_DEVICES_TIMER_RTC_H

#include "devices/irq/line.h"

struct loop;
struct map;
struct rtc;

/* RAM sizes fill the bytes that firmware reads. */
struct rtc *rtc_new(struct map *m, struct loop *l, struct irq_line irq8, uint64_t low_ram, uint64_t high_ram);
void rtc_free(struct rtc *r);
void rtc_reset(struct rtc *r);

#endif
