/*
 * Configuration space of a function: masks, BARs, capabilities (PCI 3.0, chapter 6).
 *
 * Every byte has a mask of guest-writable bits; BAR sizing falls out of it, as the address bits below
 * the size are not writable and read as zero.
 */
#include <string.h>

#include "base/error.h"
#include "devices/pci/dev.h"

uint32_t config_read(struct pci_dev *d, unsigned offset, unsigned size)
{
	uint32_t v = 0;

	if (offset + size > PCI_CONFIG_BYTES)
		return ~0u;
	if (d->hooks && d->hooks->config_reading)
		d->hooks->config_reading(d->opaque, offset, size);
	for (unsigned i = 0; i < size; i++) {
		uint8_t byte = d->config[offset + i];

		if (offset + i == CFG_STATUS && __atomic_load_n(&d->intx, __ATOMIC_RELAXED))
			byte |= STATUS_INTX;
		v |= (uint32_t)byte << (8 * i);
	}
	return v;
}

static bool touches(unsigned offset, unsigned size, unsigned first, unsigned len)
{
	return offset < first + len && first < offset + size;
}

void config_write(struct pci_dev *d, unsigned offset, unsigned size, uint32_t value)
{
	if (offset + size > PCI_CONFIG_BYTES)
		return;
	config_seal(d);
	for (unsigned i = 0; i < size; i++) {
		uint8_t mask = d->wmask[offset + i];
		uint8_t byte = (uint8_t)(value >> (8 * i));

		d->config[offset + i] = (uint8_t)((d->config[offset + i] & ~mask) | (byte & mask));
	}
	if (touches(offset, size, CFG_COMMAND, 2) || touches(offset, size, CFG_BAR0, 4 * PCI_BARS) ||
	    (d->msix.vectors && touches(offset, size, d->msix.cap + 2, 2)))
		config_apply(d);
	if (d->on_config_write)
		d->on_config_write(d->opaque, offset, size);
}

void config_seal(struct pci_dev *d)
{
	if (d->sealed)
		return;
	memcpy(d->initial, d->config, sizeof(d->initial));
	d->sealed = true;
}

void config_reset(struct pci_dev *d)
{
	config_seal(d);
	for (unsigned i = 0; i < PCI_CONFIG_BYTES; i++)
		d->config[i] = (uint8_t)((d->config[i] & ~d->wmask[i]) | (d->initial[i] & d->wmask[i]));
	msix_reset(d);
	config_apply(d);
	if (d->on_config_write)
		d->on_config_write(d->opaque, 0, PCI_CONFIG_BYTES);
}

/* --- BARs --- */

struct span { uint64_t first, last; };

static int ram_overlaps(void *opaque, const struct ram_slot *s)
{
	const struct span *w = opaque;

	return w->first <= s->gpa + (s->size_bytes - 1) && s->gpa <= w->last;
}

/* Where the registers put the BAR, or 0.  A bridge does not forward what belongs to memory, so a BAR on top
 * of RAM or ROM (also the all-ones of sizing) is not decoded. */
static uint64_t bar_wanted(struct pci_dev *d, unsigned i)
{
	const struct pci_bar *bar = &d->bar[i];
	uint64_t gpa = cfg_get32(d, CFG_BAR0 + 4 * i) & ~15u;
	struct span w;

	if (!(cfg_get16(d, CFG_COMMAND) & CMD_MEM))
		return 0;
	if (bar->is64)
		gpa |= (uint64_t)cfg_get32(d, CFG_BAR0 + 4 * i + 4) << 32;
	w = (struct span){ gpa, gpa + bar->size_bytes - 1 };
	if (!gpa || w.last < w.first || w.last >> 52 || (!bar->is64 && w.last >= 1ull << 32))
		return 0;
	if (gpa <= 0xffffffffull && w.last >= 0xfec00000ull)	/* APICs, flash; sizing of a 32-bit half */
		return 0;
	return map_each_ram(d->bus->map, ram_overlaps, &w) ? 0 : gpa;
}

static void bar_place(struct pci_dev *d, unsigned i)
{
	struct pci_bar *bar = &d->bar[i];
	uint64_t gpa = bar_wanted(d, i);

	if (gpa == bar->gpa)
		return;
	if (bar->gpa)
		region_enable(d->bus->map, bar->region, false);
	if (gpa) {
		region_move(d->bus->map, bar->region, gpa);
		region_enable(d->bus->map, bar->region, true);
	}
	bar->gpa = gpa;
	if (d->hooks && d->hooks->bar_moved)
		d->hooks->bar_moved(d->opaque, i, gpa);
}

void config_apply(struct pci_dev *d)
{
	atomic_store(&d->bus_master, cfg_get16(d, CFG_COMMAND) & CMD_MASTER);
	for (unsigned i = 0; i < PCI_BARS; i++)
		if (d->bar[i].region)
			bar_place(d, i);
	if (d->msix.vectors)
		msix_control_changed(d);
	intx_update(d);
}

void pci_dev_bar(struct pci_dev *d, unsigned bar, uint64_t size_bytes, bool is64, bool prefetch,
		 const struct io_ops *ops, const char *name)
{
	unsigned o = CFG_BAR0 + 4 * bar;
	uint64_t mask = ~(size_bytes - 1) & ~15ull;

	ASSERT(bar + is64 < PCI_BARS && size_bytes >= 4096 && !(size_bytes & (size_bytes - 1)));
	cfg_put32(d->config, o, (is64 ? 4u : 0) | (prefetch ? 8u : 0));
	cfg_put32(d->wmask, o, (uint32_t)mask);
	if (is64)
		cfg_put32(d->wmask, o + 4, (uint32_t)(mask >> 32));
	d->bar[bar].size_bytes = size_bytes;
	d->bar[bar].is64 = is64;
	d->bar[bar].region = map_add_mmio_off(d->bus->map, is64 ? d->bus->mmio64_gpa : PCI_MMIO32_GPA, size_bytes,
					      ops, d->opaque, name);
	ASSERT(d->bar[bar].region);
}

uint64_t pci_dev_bar_gpa(const struct pci_dev *d, unsigned bar)
{
	return d->bar[bar].gpa;
}

/* --- capabilities: a chain of { id, next, body } from CFG_CAP_PTR (6.7) --- */

unsigned pci_dev_cap(struct pci_dev *d, uint8_t id, const void *body, unsigned len, const uint8_t *wmask)
{
	unsigned o = d->cap_next;

	ASSERT(o + 2 + len <= 256);
	d->config[o] = id;
	d->config[o + 1] = 0;
	memcpy(d->config + o + 2, body, len);
	if (wmask)
		memcpy(d->wmask + o + 2, wmask, len);
	d->config[d->cap_last ? d->cap_last + 1 : CFG_CAP_PTR] = (uint8_t)o;
	d->config[CFG_STATUS] |= STATUS_CAPS;
	d->cap_last = o;
	d->cap_next = (o + 2 + len + 3) & ~3u;
	return o;
}
