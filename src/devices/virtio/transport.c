/*
 * Virtio over PCI, modern only (virtio 1.2, 4.1).
 *
 *   BAR 1  MSI-X table           vector 0 .. queues
 *   BAR 4  + 0x0000 common       4.1.4.3
 *          + 0x1000 ISR          4.1.4.5
 *          + 0x2000 device       4.1.4.6
 *          + 0x3000 doorbells    4.1.4.4, four bytes per queue
 */
#include <errno.h>
#include <linux/virtio_config.h>
#include <linux/virtio_pci.h>
#include <string.h>

#include "devices/virtio/device.h"
#include "memory/map.h"

enum { COMMON_OFFSET = 0, ISR_OFFSET = 0x1000, CONFIG_OFFSET = 0x2000, PAGE_LEN = 0x1000, BAR_LEN = 0x4000 };
enum { QUEUE_NOTIFY_DATA = 0x38, QUEUE_RESET = 0x3a, COMMON_LEN = 0x3c };

static void put16(uint8_t *p, uint16_t v)
{
	p[0] = (uint8_t)v;
	p[1] = (uint8_t)(v >> 8);
}

static void put32(uint8_t *p, uint32_t v)
{
	put16(p, (uint16_t)v);
	put16(p + 2, (uint16_t)(v >> 16));
}

static void put64(uint8_t *p, uint64_t v)
{
	put32(p, (uint32_t)v);
	put32(p + 4, (uint32_t)(v >> 32));
}

void transport_reset_registers(struct virtio *v)
{
	atomic_store(&v->status, 0);
	v->accepted = 0;
	v->feature_select = v->driver_feature_select = 0;
	v->queue_select = 0;
	atomic_store(&v->config_vector, NO_VECTOR);
	for (unsigned i = 0; i < v->config_len; i++)
		v->config[i] = (uint8_t)((v->config[i] & ~v->config_wmask[i]) | (v->config_initial[i] & v->config_wmask[i]));
	for (unsigned i = 0; i < v->nqueues; i++) {
		struct vq *q = &v->vq[i];

		q->size = VIRTQ_SIZE_MAX;
		q->enabled = false;
		q->restored = false;
		q->desc = q->avail = q->used = 0;
		atomic_store(&q->vector, NO_VECTOR);
	}
	pthread_mutex_lock(&v->isr_lock);
	v->isr = 0;
	if (v->pci)
		pci_intx(v->pci, false);
	pthread_mutex_unlock(&v->isr_lock);
}

/* --- common configuration --- */

static struct vq *selected(struct virtio *v)
{
	return v->queue_select < v->nqueues ? &v->vq[v->queue_select] : NULL;
}

static uint32_t half(uint64_t bits, uint32_t select)
{
	return select > 1 ? 0 : (uint32_t)(bits >> (32 * select));
}

static void common_image(struct virtio *v, uint8_t r[COMMON_LEN])
{
	const struct vq *q = selected(v);

	memset(r, 0, COMMON_LEN);
	put32(r + VIRTIO_PCI_COMMON_DFSELECT, v->feature_select);
	put32(r + VIRTIO_PCI_COMMON_DF, half(v->offered, v->feature_select));
	put32(r + VIRTIO_PCI_COMMON_GFSELECT, v->driver_feature_select);
	put32(r + VIRTIO_PCI_COMMON_GF, half(v->accepted, v->driver_feature_select));
	put16(r + VIRTIO_PCI_COMMON_MSIX, (uint16_t)atomic_load(&v->config_vector));
	put16(r + VIRTIO_PCI_COMMON_NUMQ, (uint16_t)v->nqueues);
	r[VIRTIO_PCI_COMMON_STATUS] = (uint8_t)atomic_load(&v->status);
	r[VIRTIO_PCI_COMMON_CFGGENERATION] = v->generation;
	put16(r + VIRTIO_PCI_COMMON_Q_SELECT, v->queue_select);
	put16(r + VIRTIO_PCI_COMMON_Q_MSIX, NO_VECTOR);
	if (!q)
		return;
	put16(r + VIRTIO_PCI_COMMON_Q_SIZE, q->size);
	put16(r + VIRTIO_PCI_COMMON_Q_MSIX, (uint16_t)atomic_load(&q->vector));
	put16(r + VIRTIO_PCI_COMMON_Q_ENABLE, q->enabled);
	put16(r + VIRTIO_PCI_COMMON_Q_NOFF, (uint16_t)q->index);
	put64(r + VIRTIO_PCI_COMMON_Q_DESCLO, q->desc);
	put64(r + VIRTIO_PCI_COMMON_Q_AVAILLO, q->avail);
	put64(r + VIRTIO_PCI_COMMON_Q_USEDLO, q->used);
	put16(r + QUEUE_NOTIFY_DATA, (uint16_t)q->index);
}

static uint64_t common_read(struct virtio *v, uint64_t offset, unsigned size)
{
	uint8_t r[COMMON_LEN];
	uint64_t value = 0;

	if (offset + size > COMMON_LEN)
		return 0;
	pthread_mutex_lock(&v->lock);
	common_image(v, r);
	pthread_mutex_unlock(&v->lock);
	memcpy(&value, r + offset, size);
	return value;
}

/* 3.1.1: FEATURES_OK sticks only to what we offered, and to drivers of version 1. */
static bool features_good(const struct virtio *v)
{
	return !(v->accepted & ~v->offered) && (v->accepted >> VIRTIO_F_VERSION_1 & 1);
}

static void status_write(struct virtio *v, uint8_t value)
{
	unsigned old = atomic_load(&v->status);

	if (!value) {
		device_reset(v);
		return;
	}
	if (!(old & VIRTIO_CONFIG_S_FEATURES_OK) && (value & VIRTIO_CONFIG_S_FEATURES_OK) &&
	    !features_good(v))
		value &= (uint8_t)~VIRTIO_CONFIG_S_FEATURES_OK;
	if (!((old | value) & VIRTIO_CONFIG_S_FEATURES_OK))
		value &= (uint8_t)~VIRTIO_CONFIG_S_DRIVER_OK;
	/* Bits are only ever added; NEEDS_RESET is ours. */
	atomic_fetch_or(&v->status, value & ~(unsigned)VIRTIO_CONFIG_S_NEEDS_RESET);
	if (value & VIRTIO_CONFIG_S_DRIVER_OK)
		device_start(v);
}

static void driver_feature_write(struct virtio *v, uint32_t value)
{
	unsigned shift = 32 * v->driver_feature_select;

	if (v->driver_feature_select > 1 || (atomic_load(&v->status) & VIRTIO_CONFIG_S_FEATURES_OK))
		return;
	v->accepted = (v->accepted & ~(0xffffffffull << shift)) | (uint64_t)value << shift;
}

static void vector_write(struct virtio *v, atomic_uint *vector, uint16_t value)
{
	atomic_store(vector, value <= v->nqueues ? value : NO_VECTOR);	/* 4.1.5.1.2: reads back what took */
}

static void set_half(uint64_t *field, bool high, uint32_t value)
{
	*field = high ? (uint32_t)*field | (uint64_t)value << 32 : (*field & ~0xffffffffull) | value;
}

/* Fields of the selected queue.  Once enabled it belongs to the loop thread until the reset. */
static void queue_write(struct virtio *v, uint64_t offset, unsigned size, uint32_t value)
{
	struct vq *q = selected(v);

	if (!q)
		return;
	if (offset == VIRTIO_PCI_COMMON_Q_MSIX && size == 2) {
		vector_write(v, &q->vector, (uint16_t)value);
		return;
	}
	if (q->enabled || v->started)
		return;
	if (size == 2) {
		if (offset == VIRTIO_PCI_COMMON_Q_SIZE && value && value <= VIRTQ_SIZE_MAX &&
		    !(value & (value - 1)))
			q->size = (uint16_t)value;
		else if (offset == VIRTIO_PCI_COMMON_Q_ENABLE && value == 1)
			q->enabled = true;
		return;
	}
	if (size != 4)
		return;
	switch (offset) {
	case VIRTIO_PCI_COMMON_Q_DESCLO: set_half(&q->desc, false, value); break;
	case VIRTIO_PCI_COMMON_Q_DESCHI: set_half(&q->desc, true, value); break;
	case VIRTIO_PCI_COMMON_Q_AVAILLO: set_half(&q->avail, false, value); break;
	case VIRTIO_PCI_COMMON_Q_AVAILHI: set_half(&q->avail, true, value); break;
	case VIRTIO_PCI_COMMON_Q_USEDLO: set_half(&q->used, false, value); break;
	case VIRTIO_PCI_COMMON_Q_USEDHI: set_half(&q->used, true, value); break;
	}
}

static void common_write(struct virtio *v, uint64_t offset, unsigned size, uint32_t value)
{
	pthread_mutex_lock(&v->lock);
	if (v->resetting || v->withdrawn)	/* 2.4.2: the driver waits until status reads 0 */
		goto out;
	if (offset == VIRTIO_PCI_COMMON_DFSELECT && size == 4)
		v->feature_select = value;
	else if (offset == VIRTIO_PCI_COMMON_GFSELECT && size == 4)
		v->driver_feature_select = value;
	else if (offset == VIRTIO_PCI_COMMON_GF && size == 4)
		driver_feature_write(v, value);
	else if (offset == VIRTIO_PCI_COMMON_MSIX && size == 2)
		vector_write(v, &v->config_vector, (uint16_t)value);
	else if (offset == VIRTIO_PCI_COMMON_STATUS && size == 1)
		status_write(v, (uint8_t)value);
	else if (offset == VIRTIO_PCI_COMMON_Q_SELECT && size == 2)
		v->queue_select = (uint16_t)value;
	else
		queue_write(v, offset, size, value);
out:
	pthread_mutex_unlock(&v->lock);
}

/* --- ISR, device configuration, doorbells --- */

static uint8_t isr_read(struct virtio *v)
{
	uint8_t isr;

	pthread_mutex_lock(&v->isr_lock);
	isr = v->isr;
	v->isr = 0;
	pci_intx(v->pci, false);
	pthread_mutex_unlock(&v->isr_lock);
	return isr;
}

static uint64_t config_read(struct virtio *v, uint64_t offset, unsigned size)
{
	uint64_t value = 0;

	pthread_mutex_lock(&v->lock);
	v->config_seen = true;
	for (unsigned i = 0; i < size && offset + i < v->config_len; i++)
		value |= (uint64_t)v->config[offset + i] << (8 * i);
	pthread_mutex_unlock(&v->lock);
	return value;
}

static void config_write(struct virtio *v, uint64_t offset, unsigned size, uint64_t value)
{
	pthread_mutex_lock(&v->lock);
	for (unsigned i = 0; i < size && offset + i < v->config_len; i++) {
		uint8_t mask = v->config_wmask[offset + i];
		uint8_t *p = &v->config[offset + i];

		*p = (uint8_t)((*p & ~mask) | ((uint8_t)(value >> (8 * i)) & mask));
	}
	if (v->class->config_written && offset < v->config_len)
		v->class->config_written(v->opaque, (unsigned)offset, size);
	pthread_mutex_unlock(&v->lock);
}

static uint64_t bar_read(void *opaque, uint64_t offset, unsigned size)
{
	struct virtio *v = opaque;
	uint64_t in_page = offset % PAGE_LEN;

	switch (offset - in_page) {
	case COMMON_OFFSET: return common_read(v, in_page, size);
	case ISR_OFFSET: return in_page == 0 ? isr_read(v) : 0;
	case CONFIG_OFFSET: return config_read(v, in_page, size);
	default: return 0;
	}
}

static void bar_write(void *opaque, uint64_t offset, unsigned size, uint64_t value)
{
	struct virtio *v = opaque;
	uint64_t in_page = offset % PAGE_LEN;

	switch (offset - in_page) {
	case COMMON_OFFSET: common_write(v, in_page, size, (uint32_t)value); break;
	case CONFIG_OFFSET: config_write(v, in_page, size, value); break;
	case NOTIFY_OFFSET:
		if (in_page / NOTIFY_STRIDE < v->nqueues)
			doorbell_ring(&v->vq[in_page / NOTIFY_STRIDE]);
		break;
	}
}

static const struct io_ops bar_ops = { bar_read, bar_write, 1, 4 };

/* --- PCI configuration access (4.1.4.9): a window on BAR 4 from configuration space --- */

enum { ACCESS_BAR = 4, ACCESS_OFFSET = 8, ACCESS_LENGTH = 12, ACCESS_DATA = 16 };

static bool access_window(struct virtio *v, uint32_t *offset, uint32_t *len)
{
	const uint8_t *c = pci_dev_config(v->pci) + v->access_cap;

	memcpy(offset, c + ACCESS_OFFSET, 4);
	memcpy(len, c + ACCESS_LENGTH, 4);
	return c[ACCESS_BAR] == TRANSPORT_BAR && (*len == 1 || *len == 2 || *len == 4) &&
	       *offset < BAR_LEN && *offset % *len == 0;
}

static void access_write(void *opaque, unsigned offset, unsigned size)
{
	struct virtio *v = opaque;
	uint32_t where, len, value;

	if (offset != v->access_cap + ACCESS_DATA || !access_window(v, &where, &len))
		return;
	memcpy(&value, pci_dev_config(v->pci) + v->access_cap + ACCESS_DATA, 4);
	bar_write(v, where, len, len == 4 ? value : value & ((1u << (8 * len)) - 1));
}

static void access_read(void *opaque, unsigned offset, unsigned size)
{
	struct virtio *v = opaque;
	uint32_t where, len;

	if (offset == v->access_cap + ACCESS_DATA && access_window(v, &where, &len))
		put32(pci_dev_config(v->pci) + offset, (uint32_t)bar_read(v, where, len));
}

/* --- on the bus --- */

static void bar_moved(void *opaque, unsigned bar, uint64_t gpa)
{
	struct virtio *v = opaque;

	if (bar != TRANSPORT_BAR)
		return;
	for (unsigned i = 0; i < v->nqueues; i++) {
		struct vq *q = &v->vq[i];

		if (q->doorbell_gpa)
			map_doorbell(v->map, q->doorbell_gpa, 2, -1);
		q->doorbell_gpa = gpa ? gpa + NOTIFY_OFFSET + NOTIFY_STRIDE * i : 0;
		if (q->doorbell_gpa)
			map_doorbell(v->map, q->doorbell_gpa, 2, q->eventfd);
	}
}

static void bus_reset(void *opaque)
{
	struct virtio *v = opaque;

	pthread_mutex_lock(&v->lock);
	device_reset(v);
	pthread_mutex_unlock(&v->lock);
}

/* Live counts as one; a reset that has not completed is not idle either. */
static bool device_idle(void *opaque)
{
	struct virtio *v = opaque;
	bool idle;

	pthread_mutex_lock(&v->lock);
	idle = !v->resetting && atomic_load(&v->in_flight) <= 1;
	pthread_mutex_unlock(&v->lock);
	return idle;
}

const struct pci_hooks transport_hooks = {
	.reset = bus_reset, .idle = device_idle, .save = device_save, .load = device_load,
	.free = device_free, .bar_moved = bar_moved, .config_reading = access_read,
};

/* struct virtio_pci_cap without its first two bytes; extra is the notify multiplier or the access data. */
static unsigned vendor_cap(struct virtio *v, uint8_t type, uint32_t offset, uint32_t len, bool extra,
			   uint32_t value)
{
	uint8_t body[18] = {0}, wmask[18] = {0};
	unsigned n = extra ? 18 : 14;

	body[0] = (uint8_t)(n + 2);
	body[1] = type;
	body[2] = type == VIRTIO_PCI_CAP_PCI_CFG ? 0 : TRANSPORT_BAR;
	put32(body + 6, offset);
	put32(body + 10, len);
	if (extra)
		put32(body + 14, value);
	if (type == VIRTIO_PCI_CAP_PCI_CFG) {
		wmask[2] = 0xff;
		memset(wmask + 6, 0xff, 12);
	}
	return pci_dev_cap(v->pci, 0x09, body, n, wmask);
}

/* PCI Express 3.0, 7.8: a root complex integrated end point, version 2, no error reporting. */
static void express_cap(struct virtio *v)
{
	uint8_t body[58] = {0};

	put16(body, 0x92);
	put32(body + 2, 0x8000);	/* role-based error reporting */
	pci_dev_cap(v->pci, 0x10, body, sizeof(body), NULL);
}

int transport_init(struct virtio *v, struct pci_bus *bus)
{
	const struct pci_ids ids = {
		.vendor = 0x1af4, .device = (uint16_t)(0x1040 + v->class->id), .subvendor = 0x1af4,
		.subdevice = 0x1100, .class_code = v->class->class_code, .revision = 1,
	};

	v->pci = pci_dev_add(bus, -1, &ids, v);
	if (!v->pci)
		return -ENOSPC;
	pci_dev_msix(v->pci, v->nqueues + 1, MSIX_BAR);
	pci_dev_bar(v->pci, TRANSPORT_BAR, BAR_LEN, true, true, &bar_ops, v->class->name);
	vendor_cap(v, VIRTIO_PCI_CAP_COMMON_CFG, COMMON_OFFSET, PAGE_LEN, false, 0);
	vendor_cap(v, VIRTIO_PCI_CAP_ISR_CFG, ISR_OFFSET, PAGE_LEN, false, 0);
	vendor_cap(v, VIRTIO_PCI_CAP_DEVICE_CFG, CONFIG_OFFSET, PAGE_LEN, false, 0);
	vendor_cap(v, VIRTIO_PCI_CAP_NOTIFY_CFG, NOTIFY_OFFSET, PAGE_LEN, true, NOTIFY_STRIDE);
	v->access_cap = vendor_cap(v, VIRTIO_PCI_CAP_PCI_CFG, 0, 0, true, 0);
	express_cap(v);
	pci_dev_use_intx(v->pci);
	pci_dev_on_config_write(v->pci, access_write);
	pci_dev_hooks(v->pci, &transport_hooks);
	transport_reset_registers(v);
	return 0;
}
