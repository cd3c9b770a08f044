/* The guest-physical map: access by vCPUs and devices. */
#include <string.h>
#include <unistd.h>

#include "memory/map_private.h"

static struct range view_search(const struct view *v, uint64_t gpa)
{
	unsigned lo = 0, hi = v->count < VIEW_RANGES ? v->count : VIEW_RANGES;
	while (lo < hi) {
		unsigned mid = (lo + hi) / 2;
		if (gpa < v->range[mid].end)
			hi = mid;
		else
			lo = mid + 1;
	}
	if (lo < VIEW_RANGES && lo < v->count && gpa >= v->range[lo].start)
		return v->range[lo];
	return (struct range){ 0 };
}

/* Pairs with the release in view_build(): a view is whole before sequence names it. Most questions are about the largest
 * range of RAM. */
struct range map_find(struct map *m, uint64_t gpa)
{
	for (;;) {
		unsigned sequence = atomic_load_explicit(&m->sequence, memory_order_acquire);
		const struct view *v = &m->view[sequence & 1];
		unsigned largest = v->largest % VIEW_RANGES;
		struct range r = v->range[largest];
		if (largest >= v->count || gpa < r.start || gpa >= r.end)
			r = view_search(v, gpa);
		atomic_thread_fence(memory_order_acquire);
		/* one change meanwhile wrote the other view only; two may have written this one */
		if (atomic_load_explicit(&m->sequence, memory_order_relaxed) == sequence)
			return r;
	}
}

struct page_info map_page(struct map *m, uint64_t gpa)
{
	struct page_info p = { 0 };
	gpa &= GUEST_PAGE_MASK;
	struct range r = map_find(m, gpa);
	if (!r.region || r.region->kind > REGION_ROM || r.end - gpa < GUEST_PAGE_SIZE)
		return p;
	uint64_t offset = gpa - r.region->start;
	p.ro_hva = r.region->ro + offset;
	if (r.region->kind == REGION_RAM) {
		p.rw_hva = r.region->rw + offset;
		p.ram_page = r.region->first_page + (uint32_t)(offset / GUEST_PAGE_SIZE);
	}
	return p;
}

void *map_ptr(struct map *m, uint64_t gpa, size_t len, bool write)
{
	struct range r = map_find(m, gpa);
	(void)write;
	if (!r.region || r.region->kind != REGION_RAM || len > r.end - gpa)
		return NULL;
	return r.region->rw + (gpa - r.region->start);
}

static void code_written(struct map *m, uint32_t page, uint32_t first, uint32_t last)
{
	for (unsigned i = 0; i < m->listeners; i++)
		if (m->listener[i].code_written)
			m->listener[i].code_written(m->listener[i].opaque, page, first, last);
}

void map_wrote(struct map *m, uint64_t gpa, size_t len)
{
	while (len) {
		uint32_t first = (uint32_t)(gpa & (GUEST_PAGE_SIZE - 1));
		size_t n = GUEST_PAGE_SIZE - first < len ? GUEST_PAGE_SIZE - first : len;
		struct page_info p = map_page(m, gpa);
		if (p.rw_hva) {
			map_mark_dirty(m, p.ram_page);
			if (map_code_test(m, p.ram_page))
				code_written(m, p.ram_page, first, first + (uint32_t)n - 1);
		}
		gpa += n;
		len -= n;
	}
}

/* One stretch of a device's copy, inside one range. */
static bool copy_stretch(struct map *m, uint64_t gpa, uint8_t *buf, size_t *len, bool write)
{
	struct range r = map_find(m, gpa);
	if (!r.region || r.region->kind > REGION_ROM)
		return false;
	if (*len > r.end - gpa)
		*len = r.end - gpa;
	uint64_t offset = gpa - r.region->start;
	if (!write) {
		memcpy(buf, r.region->ro + offset, *len);
	} else if (r.region->kind == REGION_RAM) {
		memcpy(r.region->rw + offset, buf, *len);
		map_wrote(m, gpa, *len);
	}
	return true;
}

bool map_read(struct map *m, uint64_t gpa, void *buf, size_t len)
{
	uint8_t *at = buf;
	while (len) {
		size_t n = len;
		if (!copy_stretch(m, gpa, at, &n, false)) {
			memset(at, 0xff, len);
			return false;
		}
		gpa += n;
		at += n;
		len -= n;
	}
	return true;
}

bool map_write(struct map *m, uint64_t gpa, const void *buf, size_t len)
{
	const uint8_t *at = buf;
	while (len) {
		size_t n = len;
		if (!copy_stretch(m, gpa, (uint8_t *)(uintptr_t)at, &n, true))
			return false;
		gpa += n;
		at += n;
		len -= n;
	}
	return true;
}

static uint64_t ones(unsigned size) { return size >= 8 ? UINT64_MAX : (1ull << 8 * size) - 1; }

/* The device's own width nearest to what is asked for. */
static unsigned device_width(const struct io_ops *ops, unsigned size)
{
	unsigned min = ops->min_size ? ops->min_size : 1, max = ops->max_size ? ops->max_size : 8;
	return size < min ? min : size > max ? max : size;
}

static uint64_t device_read(struct region *r, uint64_t offset, unsigned size)
{
	unsigned width = device_width(r->ops, size);
	if (!r->ops->read)
		return ones(size);
	if (width >= size) {
		uint64_t at = offset & ~(uint64_t)(width - 1);
		if (width == size)
			at = offset;
		return r->ops->read(r->opaque, at, width) >> 8 * (offset - at) & ones(size);
	}
	uint64_t v = 0;
	for (unsigned i = 0; i < size; i += width)
		v |= (r->ops->read(r->opaque, offset + i, width) & ones(width)) << 8 * i;
	return v;
}

static void device_write(struct region *r, uint64_t offset, unsigned size, uint64_t value)
{
	unsigned width = device_width(r->ops, size);
	if (!r->ops->write)
		return;
	if (width > size) {	/* narrower than the register: into its lane, the rest as it reads */
		uint64_t at = offset & ~(uint64_t)(width - 1), shift = 8 * (offset - at);
		uint64_t old = r->ops->read ? r->ops->read(r->opaque, at, width) : 0;
		r->ops->write(r->opaque, at, width, (old & ~(ones(size) << shift)) | (value & ones(size)) << shift);
		return;
	}
	for (unsigned i = 0; i < size; i += width)
		r->ops->write(r->opaque, offset + i, width, value >> 8 * i & ones(width));
}

static bool ring_doorbell(struct map *m, uint64_t gpa)
{
	for (unsigned i = 0; i < MAP_DOORBELLS; i++) {
		if (m->doorbell[i].fd && m->doorbell[i].gpa == gpa) {
			uint64_t one = 1;
			return write(m->doorbell[i].fd, &one, sizeof one) >= 0;
		}
	}
	return false;
}

/* An access that leaves its range goes byte by byte; each byte finds its own owner. */
uint64_t map_load(struct map *m, uint64_t gpa, unsigned size)
{
	struct range r = map_find(m, gpa);
	if (size > 1 && r.region && r.end - gpa < size) {
		uint64_t v = 0;
		for (unsigned i = 0; i < size; i++)
			v |= map_load(m, gpa + i, 1) << 8 * i;
		return v;
	}
	if (!r.region)
		return ones(size);
	uint64_t offset = gpa - r.region->start, v = 0;
	if (r.region->kind == REGION_MMIO)
		return device_read(r.region, offset, size);
	memcpy(&v, r.region->ro + offset, size);
	return v;
}

void map_store(struct map *m, uint64_t gpa, unsigned size, uint64_t value)
{
	struct range r = map_find(m, gpa);
	if (size > 1 && r.region && r.end - gpa < size) {
		for (unsigned i = 0; i < size; i++)
			map_store(m, gpa + i, 1, value >> 8 * i & 0xff);
		return;
	}
	if (!r.region || r.region->kind == REGION_ROM)
		return;
	uint64_t offset = gpa - r.region->start;
	if (r.region->kind == REGION_MMIO) {
		if (!ring_doorbell(m, gpa))
			device_write(r.region, offset, size, value);
		return;
	}
	memcpy(r.region->rw + offset, &value, size);
	map_wrote(m, gpa, size);
}

uint32_t pio_load(struct map *m, uint16_t port, unsigned size)
{
	struct region *r = atomic_load_explicit(&m->pio[port], memory_order_acquire);
	if (r && port - r->start + size <= r->size)
		return (uint32_t)device_read(r, port - r->start, size);
	if (size == 1)
		return 0xff;
	uint32_t v = 0;
	for (unsigned i = 0; i < size; i++)
		v |= (port + i > 0xffff ? 0xff : pio_load(m, (uint16_t)(port + i), 1)) << 8 * i;
	return v;
}

void pio_store(struct map *m, uint16_t port, unsigned size, uint32_t value)
{
	struct region *r = atomic_load_explicit(&m->pio[port], memory_order_acquire);
	if (r && port - r->start + size <= r->size) {
		device_write(r, port - r->start, size, value);
		return;
	}
	for (unsigned i = 0; size > 1 && i < size && port + i <= 0xffff; i++)
		pio_store(m, (uint16_t)(port + i), 1, value >> 8 * i & 0xff);
}
