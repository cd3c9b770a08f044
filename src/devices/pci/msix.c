/*
 * MSI-X (PCI 3.0, 6.8.2): a table of messages and their pending bits in a BAR of their own.
 *
 *	BAR + 0      vector 0: address low | address high | data | control (bit 0: masked)
 *	    + 16     vector 1 ...
 *	    + 0x800  pending bits
 *
 * A notification while the vector or the whole function is masked sets the pending bit; unmasking sends it.
 */
#include <string.h>

#include "base/error.h"
#include "base/stream.h"
#include "devices/pci/dev.h"

enum { CONTROL_ENABLE = 0x8000, CONTROL_MASK = 0x4000, VECTOR_MASKED = 1 };

static void vector_send(struct pci_dev *d, unsigned v)
{
	const uint32_t *e = &d->msix.table[v * 4];

	d->msix.pending[v / 64] &= ~(1ull << (v % 64));
	if (d->bus->msi.send)
		d->bus->msi.send(d->bus->msi.opaque, (uint64_t)e[1] << 32 | (e[0] & ~3u), e[2]);
}

static bool vector_open(struct pci_dev *d, unsigned v)
{
	return d->msix.enabled && !d->msix.masked && !(d->msix.table[v * 4 + 3] & VECTOR_MASKED) &&
	       atomic_load(&d->bus_master);
}

static void vector_flush(struct pci_dev *d, unsigned v)
{
	if ((d->msix.pending[v / 64] >> (v % 64) & 1) && vector_open(d, v))
		vector_send(d, v);
}

static uint64_t table_read32(struct pci_dev *d, uint64_t offset)
{
	if (offset < d->msix.vectors * 16u)
		return d->msix.table[offset / 4];
	if (offset >= MSIX_PBA_OFFSET && offset < MSIX_PBA_OFFSET + MSIX_MAX / 8)
		return (uint32_t)(d->msix.pending[(offset - MSIX_PBA_OFFSET) / 8] >> (offset & 4 ? 32 : 0));
	return 0;
}

static uint64_t table_read(void *opaque, uint64_t offset, unsigned size)
{
	struct pci_dev *d = opaque;
	uint64_t v;

	pthread_mutex_lock(&d->msix.lock);
	v = table_read32(d, offset & ~3ull);
	if (size == 8)
		v |= table_read32(d, (offset & ~3ull) + 4) << 32;
	pthread_mutex_unlock(&d->msix.lock);
	return v;
}

static void table_write32(struct pci_dev *d, uint64_t offset, uint32_t value)
{
	if (offset >= d->msix.vectors * 16u)
		return;
	d->msix.table[offset / 4] = (offset & 15) == 12 ? value & VECTOR_MASKED : value;
	vector_flush(d, (unsigned)(offset / 16));
}

static void table_write(void *opaque, uint64_t offset, unsigned size, uint64_t value)
{
	struct pci_dev *d = opaque;

	pthread_mutex_lock(&d->msix.lock);
	table_write32(d, offset & ~3ull, (uint32_t)value);
	if (size == 8)
		table_write32(d, (offset & ~3ull) + 4, (uint32_t)(value >> 32));
	pthread_mutex_unlock(&d->msix.lock);
}

static const struct io_ops table_ops = { table_read, table_write, 4, 8 };

void pci_dev_msix(struct pci_dev *d, unsigned vectors, unsigned bar)
{
	uint8_t body[10] = {0}, wmask[10] = {0};
	void *opaque = d->opaque;

	ASSERT(vectors && vectors <= MSIX_MAX);
	d->opaque = d;		/* this BAR is ours */
	pci_dev_bar(d, bar, 4096, false, false, &table_ops, "msix");
	d->opaque = opaque;
	cfg_put16(body, 0, (uint16_t)(vectors - 1));
	cfg_put32(body, 2, bar);
	cfg_put32(body, 6, MSIX_PBA_OFFSET | bar);
	wmask[1] = (CONTROL_ENABLE | CONTROL_MASK) >> 8;
	d->msix.cap = pci_dev_cap(d, 0x11, body, sizeof(body), wmask);
	d->msix.vectors = vectors;
	msix_reset(d);
}

void msix_control_changed(struct pci_dev *d)
{
	uint16_t control = cfg_get16(d, d->msix.cap + 2);

	pthread_mutex_lock(&d->msix.lock);
	__atomic_store_n(&d->msix.enabled, control & CONTROL_ENABLE, __ATOMIC_RELAXED);
	d->msix.masked = control & CONTROL_MASK;
	for (unsigned v = 0; v < d->msix.vectors; v++)
		vector_flush(d, v);
	pthread_mutex_unlock(&d->msix.lock);
}

void msix_reset(struct pci_dev *d)
{
	pthread_mutex_lock(&d->msix.lock);
	memset(d->msix.table, 0, sizeof(d->msix.table));
	memset(d->msix.pending, 0, sizeof(d->msix.pending));
	for (unsigned v = 0; v < d->msix.vectors; v++)
		d->msix.table[v * 4 + 3] = VECTOR_MASKED;
	pthread_mutex_unlock(&d->msix.lock);
}

bool pci_msix_enabled(const struct pci_dev *d)
{
	return __atomic_load_n(&d->msix.enabled, __ATOMIC_RELAXED);
}

void pci_msix_notify(struct pci_dev *d, unsigned v)
{
	if (v >= d->msix.vectors)
		return;
	pthread_mutex_lock(&d->msix.lock);
	if (vector_open(d, v))
		vector_send(d, v);
	else if (d->msix.enabled)
		d->msix.pending[v / 64] |= 1ull << (v % 64);
	pthread_mutex_unlock(&d->msix.lock);
}

void msix_save(struct pci_dev *d, struct stream *s)
{
	for (unsigned i = 0; i < d->msix.vectors * 4; i++)
		stream_put_u32(s, d->msix.table[i]);
	for (unsigned i = 0; i < MSIX_MAX / 64; i++)
		stream_put_u64(s, d->msix.pending[i]);
}

void msix_load(struct pci_dev *d, struct stream *s)
{
	for (unsigned i = 0; i < d->msix.vectors * 4; i++)
		d->msix.table[i] = stream_get_u32(s);
	for (unsigned i = 0; i < MSIX_MAX / 64; i++)
		d->msix.pending[i] = stream_get_u64(s);
}
