/*
 * ICH9 LPC bridge 00:1f.0 (Intel I/O Controller Hub 9 data sheet 316972, chapter 13).
 *
 *	PMBASE      40h  | 15:7 port of the ACPI block | 0: reads 1 |
 *	ACPI_CNTL   44h  | 7 enable | 2:0 SCI interrupt |
 *	PIRQA-D     60h  | 7 not routed to the 8259s | 3:0 ISA interrupt |      PIRQE-H 68h likewise
 *	RCBA        F0h  stored only
 */
#include <stdlib.h>

#include "devices/pci/dev.h"
#include "devices/pci/lpc.h"

enum { LPC_PMBASE = 0x40, LPC_ACPI_CNTL = 0x44, LPC_PIRQA = 0x60, LPC_PIRQE = 0x68, LPC_GEN_PMCON1 = 0xa0,
       LPC_RCBA = 0xf0 };
enum { ROUT_OFF = 0x80, ACPI_ENABLE = 0x80 };
#define ISA_ROUTABLE 0xdef8u	/* 3-7, 9-12, 14, 15 */

struct lpc {
	struct pci_dev *dev;
	struct lpc_wiring w;
	pthread_mutex_t lock;	/* levels, driven; a leaf under both of the bus' locks */
	unsigned levels;	/* PIRQ A-D, one bit each */
	uint16_t driven;	/* ISA lines that we hold up */
	uint16_t pm_port;
	bool pm_on;
};

static void route(struct lpc *l)
{
	uint16_t want = 0, changed;

	for (unsigned i = 0; i < 4; i++) {
		uint8_t rout = l->dev->config[LPC_PIRQA + i];

		if ((l->levels >> i & 1) && !(rout & ROUT_OFF))
			want |= (uint16_t)(1u << (rout & 15));
	}
	want &= ISA_ROUTABLE;
	changed = want ^ l->driven;
	l->driven = want;
	for (unsigned i = 0; i < 16; i++)
		if (changed >> i & 1)
			irq_set(&l->w.isa[i], want >> i & 1);
}

static void pirq_changed(void *opaque, unsigned pirq, bool level)
{
	struct lpc *l = opaque;

	pthread_mutex_lock(&l->lock);
	l->levels = (l->levels & ~(1u << pirq)) | (unsigned)level << pirq;
	route(l);
	pthread_mutex_unlock(&l->lock);
}

static void config_written(void *opaque, unsigned offset, unsigned len)
{
	struct lpc *l = opaque;
	uint16_t port = cfg_get16(l->dev, LPC_PMBASE) & 0xff80;
	bool on = l->dev->config[LPC_ACPI_CNTL] & ACPI_ENABLE;

	pthread_mutex_lock(&l->lock);
	route(l);
	pthread_mutex_unlock(&l->lock);
	if (port == l->pm_port && on == l->pm_on)
		return;
	l->pm_port = port;
	l->pm_on = on;
	if (l->w.pm_moved)
		l->w.pm_moved(l->w.opaque, port, on && port);
}

static void lpc_free(void *opaque)
{
	struct lpc *l = opaque;

	pci_bus_watch_intx(l->dev->bus, NULL, NULL);
	pthread_mutex_destroy(&l->lock);
	free(l);
}

static const struct pci_hooks hooks = { .free = lpc_free };

struct lpc *lpc_new(struct pci_bus *b, const struct lpc_wiring *w)
{
	const struct pci_ids ids = { .vendor = 0x8086, .device = 0x2918, .subvendor = 0x1af4,
				     .subdevice = 0x1100, .class_code = 0x060100, .revision = 2 };
	struct lpc *l = calloc(1, sizeof(*l));
	uint8_t *cfg, *wmask;

	if (!l)
		return NULL;
	l->w = *w;
	l->dev = pci_dev_add(b, 31, &ids, l);
	if (!l->dev) {
		free(l);
		return NULL;
	}
	pthread_mutex_init(&l->lock, NULL);
	cfg = pci_dev_config(l->dev);
	wmask = pci_dev_wmask(l->dev);
	cfg_put32(cfg, LPC_PMBASE, 1);
	cfg_put32(wmask, LPC_PMBASE, 0xff80);
	wmask[LPC_ACPI_CNTL] = ACPI_ENABLE | 7;
	for (unsigned i = 0; i < 4; i++) {
		cfg[LPC_PIRQA + i] = cfg[LPC_PIRQE + i] = ROUT_OFF;
		wmask[LPC_PIRQA + i] = wmask[LPC_PIRQE + i] = ROUT_OFF | 15;
	}
	cfg_put16(wmask, LPC_GEN_PMCON1, 0x10);		/* SMI_LOCK and friends stay clear */
	cfg_put32(wmask, LPC_RCBA, 0xffffc001u);
	pci_dev_on_config_write(l->dev, config_written);
	pci_dev_hooks(l->dev, &hooks);
	pci_bus_watch_intx(b, pirq_changed, l);
	return l;
}

void lpc_assign(struct lpc *l)
{
	struct pci_bus *b = l->dev->bus;

	pthread_mutex_lock(&b->lock);
	config_write(l->dev, LPC_PMBASE, 4, 0x600 | 1);
	config_write(l->dev, LPC_ACPI_CNTL, 1, ACPI_ENABLE);
	for (unsigned i = 0; i < 4; i++)
		config_write(l->dev, LPC_PIRQA + i, 1, i & 1 ? 11 : 10);
	pthread_mutex_unlock(&b->lock);
}
