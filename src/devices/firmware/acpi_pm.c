#include "devices/firmware/acpi_pm.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "host/loop.h"
#include "memory/map.h"

/* Offsets from PMBASE: 0 PM1_STS, 2 PM1_EN, 4 PM1_CNT, 8 PM_TMR, 20h GPE0_STS, 28h GPE0_EN */
#define STS_POWER_BUTTON 0x100u
#define STS_TIMER 0x001u
#define CNT_SCI_EN 0x0001u
#define CNT_SLP_EN 0x2000u
#define SLP_TYP(v) ((v) >> 10 & 7)
#define SLP_TYP_S5 0u
#define PM_TIMER_HZ 3579545u

struct acpi_pm {
	pthread_mutex_t lock;
	uint16_t sts, en, cnt;
	uint8_t gpe[16];		/* status, then enable */
	uint8_t reset_control, apm[2];
	struct irq_line sci;
	struct acpi_pm_host host;
};

static void sci_update(struct acpi_pm *p)
{
	bool event = p->sts & p->en;

	for (unsigned i = 0; i < 8; i++)
		event |= p->gpe[i] & p->gpe[8 + i];
	irq_set(&p->sci, (p->cnt & CNT_SCI_EN) && event);
}

static uint32_t timer_now(void)
{
	return (uint32_t)((unsigned __int128)clock_now_ns() * PM_TIMER_HZ / 1000000000u) & 0xffffff;
}

static uint8_t byte_read(struct acpi_pm *p, uint64_t at, uint32_t timer)
{
	if (at < 6)
		return (uint8_t)((at < 2 ? p->sts : at < 4 ? p->en : p->cnt) >> 8 * (at & 1));
	if (at >= 8 && at < 12)
		return (uint8_t)(timer >> 8 * (at - 8));
	if (at >= 0x20 && at < 0x30)
		return p->gpe[at - 0x20];
	return 0;
}

/* Returns true when the guest asks to sleep for good. */
static bool byte_write(struct acpi_pm *p, uint64_t at, uint8_t v)
{
	unsigned shift = 8 * (at & 1);
	if (at < 2)
		p->sts &= (uint16_t)~(v << shift);		/* write one to clear */
	else if (at < 4)
		p->en = (uint16_t)((p->en & ~(0xff << shift)) | v << shift);
	else if (at < 6)
		p->cnt = (uint16_t)((p->cnt & ~(0xff << shift)) | v << shift);
	else if (at >= 0x20 && at < 0x28)
		p->gpe[at - 0x20] &= (uint8_t)~v;
	else if (at >= 0x28 && at < 0x30)
		p->gpe[at - 0x20] = v;
	bool sleep = at == 5 && (p->cnt & CNT_SLP_EN);
	p->cnt &= (uint16_t)~CNT_SLP_EN;
	return sleep && SLP_TYP(p->cnt) == SLP_TYP_S5;
}

static uint64_t pm_read(void *opaque, uint64_t offset, unsigned size)
{
	struct acpi_pm *p = opaque;
	uint64_t v = 0;
	pthread_mutex_lock(&p->lock);
	uint32_t timer = timer_now();
	for (unsigned i = 0; i < size; i++)
		v |= (uint64_t)byte_read(p, offset + i, timer) << 8 * i;
	pthread_mutex_unlock(&p->lock);
	return v;
}

static void pm_write(void *opaque, uint64_t offset, unsigned size, uint64_t value)
{
	struct acpi_pm *p = opaque;
	bool off = false;
	pthread_mutex_lock(&p->lock);
	for (unsigned i = 0; i < size; i++)
		off |= byte_write(p, offset + i, (uint8_t)(value >> 8 * i));
	sci_update(p);
	pthread_mutex_unlock(&p->lock);
	if (off)
		p->host.power_off(p->host.opaque);
}

static const struct io_ops pm_ops = { pm_read, pm_write, 1, 4 };

/* 0xB2, 0xB3: no SMM here; ACPI mode is on from the start. */
static uint64_t apm_read(void *opaque, uint64_t offset, unsigned size)
{
	(void)size;
	return ((struct acpi_pm *)opaque)->apm[offset & 1];
}
static void apm_write(void *opaque, uint64_t offset, unsigned size, uint64_t value)
{
	(void)size;
	((struct acpi_pm *)opaque)->apm[offset & 1] = (uint8_t)value;
}
static const struct io_ops apm_ops = { apm_read, apm_write, 1, 1 };

/* Reset control, ICH9 13.7.5: bit 2 rising resets. */
static uint64_t reset_read(void *opaque, uint64_t offset, unsigned size)
{
	(void)offset, (void)size;
	return ((struct acpi_pm *)opaque)->reset_control;
}
static void reset_write(void *opaque, uint64_t offset, unsigned size, uint64_t value)
{
	struct acpi_pm *p = opaque;
	(void)offset, (void)size;
	p->reset_control = value & 0xe;
	if (value & 4)
		p->host.reset(p->host.opaque);
}
static const struct io_ops reset_ops = { reset_read, reset_write, 1, 1 };

void acpi_pm_button(struct acpi_pm *p)
{
	pthread_mutex_lock(&p->lock);
	p->sts |= STS_POWER_BUTTON;
	sci_update(p);
	pthread_mutex_unlock(&p->lock);
}

void acpi_pm_gpe(struct acpi_pm *p, unsigned n)
{
	ASSERT(n < 64);
	pthread_mutex_lock(&p->lock);
	p->gpe[n / 8] |= (uint8_t)(1u << n % 8);
	sci_update(p);
	pthread_mutex_unlock(&p->lock);
}

void acpi_pm_reset(struct acpi_pm *p)
{
	pthread_mutex_lock(&p->lock);
	p->sts = p->en = 0;
	p->cnt = CNT_SCI_EN;
	p->reset_control = 0;
	memset(p->gpe, 0, sizeof p->gpe);
	sci_update(p);
	pthread_mutex_unlock(&p->lock);
}

struct acpi_pm *acpi_pm_new(struct map *m, struct irq_line sci, const struct acpi_pm_host *host)
{
	struct acpi_pm *p = calloc(1, sizeof *p);
	ASSERT(p);
	pthread_mutex_init(&p->lock, NULL);
	p->sci = sci;
	p->host = *host;
	acpi_pm_reset(p);
	map_add_pio(m, ACPI_PM_BASE, 0x80, &pm_ops, p, "acpi-pm");
	map_add_pio(m, 0xb2, 2, &apm_ops, p, "apm");
	map_add_pio(m, 0xcf9, 1, &reset_ops, p, "reset");
	return p;
}

void acpi_pm_free(struct acpi_pm *p)
{
	if (p)
		pthread_mutex_destroy(&p->lock);
	free(p);
}
