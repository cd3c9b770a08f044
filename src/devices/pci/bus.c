/*
 * Bus 0: its slots, interrupt lines, firmware's job for direct boot, reset and saved state.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "base/stream.h"
#include "devices/pci/dev.h"

struct pci_bus *pci_bus_new(struct map *m, const struct irq_line intx[4], const struct msi_sink *msi,
			    uint64_t mmio64_gpa)
{
	struct pci_bus *b = calloc(1, sizeof(*b));

	if (!b)
		return NULL;
	b->map = m;
	b->msi = *msi;
	b->mmio64_gpa = mmio64_gpa;
	memcpy(b->line, intx, sizeof(b->line));
	pthread_mutex_init(&b->lock, NULL);
	pthread_mutex_init(&b->intx_lock, NULL);
	if (host_bridge_add(b) < 0) {
		pci_bus_free(b);
		return NULL;
	}
	return b;
}

static void dev_free(struct pci_dev *d)
{
	if (d->hooks && d->hooks->free)
		d->hooks->free(d->opaque);
	for (unsigned i = 0; i < PCI_BARS; i++)
		if (d->bar[i].region)
			map_remove(d->bus->map, d->bar[i].region);
	pthread_mutex_destroy(&d->msix.lock);
	free(d);
}

void pci_bus_free(struct pci_bus *b)
{
	if (!b)
		return;
	for (unsigned i = PCI_SLOTS; i-- > 0;)
		if (b->dev[i])
			dev_free(b->dev[i]);
	if (b->ecam)
		map_remove(b->map, b->ecam);
	if (b->ports)
		map_remove(b->map, b->ports);
	pthread_mutex_destroy(&b->lock);
	pthread_mutex_destroy(&b->intx_lock);
	free(b);
}

static int slot_find(const struct pci_bus *b)
{
	for (int i = 1; i < PCI_SLOTS - 1; i++)	/* slot 31 is the chipset's */
		if (!b->dev[i])
			return i;
	return -1;
}

struct pci_dev *pci_dev_add(struct pci_bus *b, int slot, const struct pci_ids *ids, void *opaque)
{
	struct pci_dev *d;

	if (slot < 0)
		slot = slot_find(b);
	if (slot < 0 || slot >= PCI_SLOTS || b->dev[slot])
		return NULL;
	d = calloc(1, sizeof(*d));
	if (!d)
		return NULL;
	d->bus = b;
	d->slot = (unsigned)slot;
	d->opaque = opaque;
	d->cap_next = CFG_CAPS;
	pthread_mutex_init(&d->msix.lock, NULL);
	cfg_put16(d->config, CFG_VENDOR, ids->vendor);
	cfg_put16(d->config, CFG_DEVICE, ids->device);
	cfg_put32(d->config, CFG_REVISION, ids->class_code << 8 | ids->revision);
	cfg_put16(d->config, CFG_SUBVENDOR, ids->subvendor);
	cfg_put16(d->config, CFG_SUBDEVICE, ids->subdevice);
	cfg_put16(d->wmask, CFG_COMMAND, CMD_IO | CMD_MEM | CMD_MASTER | CMD_INTX_OFF);
	d->wmask[CFG_INT_LINE] = 0xff;
	pthread_mutex_lock(&b->lock);
	d->hidden = b->assigned;
	b->dev[slot] = d;
	pthread_mutex_unlock(&b->lock);
	return d;
}

void pci_dev_show(struct pci_dev *d, bool on)
{
	if (!on)
		pci_intx(d, false);
	pthread_mutex_lock(&d->bus->lock);
	if (!on)
		config_reset(d);
	d->hidden = !on;
	pthread_mutex_unlock(&d->bus->lock);
}

uint32_t pci_bus_free_slots(struct pci_bus *b)
{
	uint32_t mask = 0;

	for (unsigned i = 1; i < PCI_SLOTS - 1; i++)
		mask |= b->dev[i] ? 0 : 1u << i;
	return mask;
}

void pci_dev_hooks(struct pci_dev *d, const struct pci_hooks *h)
{
	d->hooks = h;
}

uint8_t *pci_dev_config(struct pci_dev *d)
{
	return d->config;
}

uint8_t *pci_dev_wmask(struct pci_dev *d)
{
	return d->wmask;
}

void pci_dev_on_config_write(struct pci_dev *d, void (*fn)(void *opaque, unsigned offset, unsigned len))
{
	d->on_config_write = fn;
}

unsigned pci_dev_slot(const struct pci_dev *d)
{
	return d->slot;
}

bool pci_dev_bus_master(const struct pci_dev *d)
{
	return atomic_load(&d->bus_master);
}

/* --- INTx: several functions share a line, which is up while any of them pulls it --- */

void pci_dev_use_intx(struct pci_dev *d)
{
	d->config[CFG_INT_PIN] = 1;
}

void intx_update(struct pci_dev *d)
{
	struct pci_bus *b = d->bus;
	unsigned pirq = d->slot & 3;
	bool was, now;

	pthread_mutex_lock(&b->intx_lock);
	was = b->raised[pirq] != 0;
	b->raised[pirq] &= ~(1u << d->slot);
	if (d->intx && !(cfg_get16(d, CFG_COMMAND) & CMD_INTX_OFF))
		b->raised[pirq] |= 1u << d->slot;
	now = b->raised[pirq] != 0;
	if (was != now) {
		irq_set(&b->line[pirq], now);
		if (b->watch)
			b->watch(b->watch_opaque, pirq, now);
	}
	pthread_mutex_unlock(&b->intx_lock);
}

void pci_intx(struct pci_dev *d, bool level)
{
	__atomic_store_n(&d->intx, level, __ATOMIC_RELAXED);
	intx_update(d);
}

void pci_bus_watch_intx(struct pci_bus *b, void (*fn)(void *opaque, unsigned pirq, bool level), void *opaque)
{
	b->watch = fn;
	b->watch_opaque = opaque;
}

void pci_bus_on_reset_request(struct pci_bus *b, void (*fn)(void *opaque, bool hard), void *opaque)
{
	b->on_reset_request = fn;
	b->reset_opaque = opaque;
}

/* --- what firmware would do --- */

/* Small BARs all fit below 4 GiB, where 32-bit kernels reach them too. */
static void dev_assign(struct pci_dev *d, uint64_t *next32, uint64_t *next64)
{
	for (unsigned i = 0; i < PCI_BARS; i++) {
		const struct pci_bar *bar = &d->bar[i];
		uint64_t *next = bar->is64 && bar->size_bytes > 1u << 24 ? next64 : next32;
		uint64_t gpa = (*next + bar->size_bytes - 1) & ~(bar->size_bytes - 1);

		if (!bar->region || (next == next32 && gpa + bar->size_bytes > PCI_MMIO32_END))
			continue;
		config_write(d, CFG_BAR0 + 4 * i, 4, (uint32_t)gpa);
		if (bar->is64)
			config_write(d, CFG_BAR0 + 4 * i + 4, 4, (uint32_t)(gpa >> 32));
		*next = gpa + bar->size_bytes;
	}
	if (d->config[CFG_INT_PIN])
		config_write(d, CFG_INT_LINE, 1, d->slot & 1 ? 11 : 10);
	config_write(d, CFG_COMMAND, 2, CMD_IO | CMD_MEM | CMD_MASTER);
}

void pci_bus_assign(struct pci_bus *b)
{
	uint64_t next32 = PCI_MMIO32_GPA, next64 = b->mmio64_gpa;

	pthread_mutex_lock(&b->lock);
	host_bridge_assign(b);
	for (unsigned i = 0; i < PCI_SLOTS; i++)
		if (b->dev[i])
			dev_assign(b->dev[i], &next32, &next64);
	b->assigned = true;
	pthread_mutex_unlock(&b->lock);
}

/* --- reset and saved state: the vCPUs are stopped --- */

void pci_bus_reset(struct pci_bus *b)
{
	for (unsigned i = 0; i < PCI_SLOTS; i++)
		if (b->dev[i] && b->dev[i]->hooks && b->dev[i]->hooks->reset)
			b->dev[i]->hooks->reset(b->dev[i]->opaque);
	pthread_mutex_lock(&b->lock);
	b->config_address = 0;
	b->reset_control = 0;
	for (unsigned i = 0; i < PCI_SLOTS; i++)
		if (b->dev[i])
			config_reset(b->dev[i]);
	pthread_mutex_unlock(&b->lock);
}

bool pci_bus_idle(struct pci_bus *b)
{
	for (unsigned i = 0; i < PCI_SLOTS; i++) {
		const struct pci_dev *d = b->dev[i];

		if (d && d->hooks && d->hooks->idle && !d->hooks->idle(d->opaque))
			return false;
	}
	return true;
}

static void dev_save(struct pci_dev *d, struct stream *s)
{
	size_t mark = stream_begin(s, "pci-function", 1);

	stream_put_u8(s, (uint8_t)d->slot);
	stream_put_u8(s, d->intx);
	stream_put(s, d->config, sizeof(d->config));
	msix_save(d, s);
	if (d->hooks && d->hooks->save)
		d->hooks->save(d->opaque, s);
	stream_end(s, mark);
}

void pci_bus_save(struct pci_bus *b, struct stream *s)
{
	size_t mark = stream_begin(s, "pci-bus", 1);

	stream_put_u32(s, b->config_address);
	stream_put_u8(s, b->reset_control);
	for (unsigned i = 0; i < PCI_SLOTS; i++)
		if (b->dev[i] && !b->dev[i]->hidden)
			dev_save(b->dev[i], s);
	stream_end(s, mark);
}

static int dev_load(struct pci_dev *d, struct stream *s)
{
	uint8_t config[PCI_CONFIG_BYTES];
	size_t end;
	bool intx;

	if (stream_enter(s, "pci-function", &end) != 1 || stream_get_u8(s) != d->slot)
		return -EINVAL;
	intx = stream_get_u8(s) & 1;
	if (!stream_get(s, config, sizeof(config)) || memcmp(config, d->config, 4))
		return -EINVAL;
	config_seal(d);
	for (unsigned i = 0; i < PCI_CONFIG_BYTES; i++)
		d->config[i] = (uint8_t)((d->config[i] & ~d->wmask[i]) | (config[i] & d->wmask[i]));
	msix_load(d, s);
	config_apply(d);
	if (d->on_config_write)
		d->on_config_write(d->opaque, 0, PCI_CONFIG_BYTES);
	if (d->hooks && d->hooks->load && d->hooks->load(d->opaque, s) < 0)
		return -EINVAL;
	pci_intx(d, intx);
	stream_leave(s, end);
	return s->failed ? -EINVAL : 0;
}

int pci_bus_load(struct pci_bus *b, struct stream *s)
{
	size_t end;
	int ret = 0;

	if (stream_enter(s, "pci-bus", &end) != 1)
		return -EINVAL;
	pthread_mutex_lock(&b->lock);
	b->config_address = stream_get_u32(s) & 0x80fffffc;
	b->reset_control = stream_get_u8(s);
	for (unsigned i = 0; i < PCI_SLOTS && !ret; i++)
		if (b->dev[i] && !b->dev[i]->hidden)
			ret = dev_load(b->dev[i], s);
	pthread_mutex_unlock(&b->lock);
	stream_leave(s, end);
	return ret ? ret : s->failed ? -EINVAL : 0;
}
