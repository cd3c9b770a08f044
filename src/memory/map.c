/*
 * The guest-physical map: layout.
 *
 *   regions (list, in order of arrival) --view_build--> two views, of which one is current
 *
 * A view is an array of disjoint ranges, sorted. Writers build the view that is not current and then bump
 * `sequence`; readers take the view that sequence names, and look again if sequence moved meanwhile. A reader
 * copies the range out before it trusts it, so a torn one is never used. RAM and ROM win over windows (a BAR
 * moved onto RAM stays unseen, as on the real chip set); among windows the first one added wins.
 *
 * Lock: `lock` covers regions and the building of views. Regions live as long as the map.
 */
#include "memory/map_private.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

struct map *map_new(void)
{
	struct map *m = calloc(1, sizeof *m);
	if (!m)
		return NULL;
	m->pio = calloc(0x10000, sizeof *m->pio);
	m->ram_fd = memfd_create("vixen-ram", MFD_CLOEXEC);
	if (!m->pio || m->ram_fd < 0) {
		free(m->pio);
		free(m);
		return NULL;
	}
	pthread_mutex_init(&m->lock, NULL);
	return m;
}

void map_free(struct map *m)
{
	if (!m)
		return;
	for (struct region *r = m->regions, *next; r; r = next) {
		next = r->next;
		if (r->rw)
			munmap(r->rw, r->size);
		if (r->ro)
			munmap(r->ro, r->size);
		free(r);
	}
	close(m->ram_fd);
	free((void *)m->pio);
	free((void *)m->dirty);
	free((void *)m->code);
	pthread_mutex_destroy(&m->lock);
	free(m);
}

/* Who owns the byte at gpa, and up to where: memory before windows, then order of arrival. */
static struct region *owner_at(struct map *m, uint64_t gpa, uint64_t *end)
{
	struct region *best = NULL;
	for (struct region *r = m->regions; r; r = r->next) {
		if (!r->enabled || r->kind == REGION_PIO)
			continue;
		if (gpa < r->start) {
			if (r->start < *end)
				*end = r->start;
			continue;
		}
		if (gpa - r->start >= r->size)
			continue;
		if (r->start + r->size < *end)
			*end = r->start + r->size;
		if (!best || (r->kind < REGION_MMIO && best->kind == REGION_MMIO))
			best = r;
	}
	return best;
}

static void view_build(struct map *m)
{
	unsigned sequence = atomic_load(&m->sequence);
	struct view *v = &m->view[(sequence + 1) & 1];
	unsigned n = 0, largest = 0;
	for (uint64_t at = 0; n < VIEW_RANGES;) {
		uint64_t end = UINT64_MAX;
		struct region *r = owner_at(m, at, &end);
		if (r && n && v->range[n - 1].region == r && v->range[n - 1].end == at)
			v->range[n - 1].end = end;	/* only a hidden window began or ended here */
		else if (r)
			v->range[n++] = (struct range){ at, end, r };
		if (end == UINT64_MAX)
			break;
		at = end;
	}
	for (unsigned i = 0; i < n; i++)
		if (v->range[i].region->kind == REGION_RAM && (v->range[largest].region->kind != REGION_RAM ||
		    v->range[i].end - v->range[i].start > v->range[largest].end - v->range[largest].start))
			largest = i;
	v->count = n;
	v->largest = largest;
	atomic_store_explicit(&m->sequence, sequence + 1, memory_order_release);
}

/* Takes the ports of r that nobody has. */
static void pio_fill(struct map *m, struct region *r)
{
	for (uint64_t port = r->start; port < r->start + r->size && port < 0x10000; port++)
		if (!atomic_load_explicit(&m->pio[port], memory_order_relaxed))
			atomic_store_explicit(&m->pio[port], r, memory_order_release);
}

static void pio_build(struct map *m)
{
	for (unsigned port = 0; port < 0x10000; port++)
		atomic_store_explicit(&m->pio[port], NULL, memory_order_relaxed);
	for (struct region *r = m->regions; r; r = r->next)
		if (r->kind == REGION_PIO && r->enabled)
			pio_fill(m, r);
}

static void changed(struct map *m, enum region_kind kind)
{
	if (kind == REGION_PIO) {
		pio_build(m);
		return;
	}
	view_build(m);
	for (unsigned i = 0; i < m->listeners; i++)
		if (m->listener[i].layout_changed)
			m->listener[i].layout_changed(m->listener[i].opaque);
}

static struct region *region_add(struct map *m, enum region_kind kind, uint64_t start, uint64_t size)
{
	struct region *r = calloc(1, sizeof *r);
	ASSERT(r && size && start + size - 1 >= start);
	*r = (struct region){ .kind = kind, .start = start, .size = size, .enabled = true };
	struct region **at = &m->regions;
	while (*at)
		at = &(*at)->next;
	*at = r;
	return r;
}

static int grow_bitmaps(struct map *m, uint64_t pages, struct error *e)
{
	size_t old = (m->ram_pages + 63) / 64, words = (m->ram_pages + pages + 63) / 64;
	_Atomic uint64_t *dirty = calloc(words, 8), *code = calloc(words, 8);
	if (!dirty || !code) {
		free((void *)dirty);
		free((void *)code);
		return error_set(e, ENOMEM, "give the guest less memory", "track guest pages", "out of memory");
	}
	if (old) {
		memcpy((void *)dirty, (void *)m->dirty, 8 * old);
		memcpy((void *)code, (void *)m->code, 8 * old);
	}
	free((void *)m->dirty);
	free((void *)m->code);
	m->dirty = dirty;
	m->code = code;
	return 0;
}

static int map_memory(struct map *m, struct region *r, struct error *e)
{
	uint64_t offset = m->ram_fd_bytes;
	if (ftruncate(m->ram_fd, (off_t)(offset + r->size)) < 0)
		goto fail;
	r->fd_offset = offset;
	r->rw = mmap(NULL, r->size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE, m->ram_fd, (off_t)offset);
	if (r->rw == MAP_FAILED)
		goto fail;
	r->ro = mmap(NULL, r->size, PROT_READ, MAP_SHARED | MAP_NORESERVE, m->ram_fd, (off_t)offset);
	if (r->ro == MAP_FAILED)
		goto fail;
	m->ram_fd_bytes += r->size;
	return 0;
fail:
	r->rw = r->rw == MAP_FAILED ? NULL : r->rw;
	r->ro = NULL;
	r->enabled = false;
	return error_errno(e, errno, "give the guest less memory with --memory, or free some on the host",
			   "reserve %llu MiB of guest memory", (unsigned long long)r->size >> 20);
}

/* The host must be able to hold it: overcommitted guests die at the worst moment, by the host's OOM killer. */
static int host_can_hold(uint64_t size, struct error *e)
{
	uint64_t have = (uint64_t)sysconf(_SC_PHYS_PAGES) * (uint64_t)sysconf(_SC_PAGE_SIZE);
	if (size <= have)
		return 0;
	return error_set(e, ENOMEM, "give the guest less memory with --memory", "reserve guest memory",
			 "%llu MiB asked for, but this host has %llu MiB", (unsigned long long)size >> 20,
			 (unsigned long long)have >> 20);
}

int map_add_ram(struct map *m, uint64_t gpa, uint64_t size_bytes, struct error *e)
{
	uint64_t pages = size_bytes / GUEST_PAGE_SIZE;
	ASSERT(!(gpa & ~GUEST_PAGE_MASK) && !(size_bytes & ~GUEST_PAGE_MASK) && size_bytes);
	int ret = host_can_hold(m->ram_bytes + size_bytes, e);
	if (ret < 0)
		return ret;
	pthread_mutex_lock(&m->lock);
	struct region *r = region_add(m, REGION_RAM, gpa, size_bytes);
	ret = map_memory(m, r, e);
	if (!ret)
		ret = grow_bitmaps(m, pages, e);
	if (!ret) {
		r->first_page = (uint32_t)m->ram_pages;
		m->ram_pages += pages;
		m->ram_bytes += size_bytes;
		changed(m, REGION_RAM);
	}
	pthread_mutex_unlock(&m->lock);
	return ret;
}

int map_add_rom(struct map *m, uint64_t gpa, const void *data, uint64_t size_bytes, struct error *e)
{
	uint64_t size = (size_bytes + GUEST_PAGE_SIZE - 1) & GUEST_PAGE_MASK;
	pthread_mutex_lock(&m->lock);
	struct region *r = region_add(m, REGION_ROM, gpa, size);
	int ret = map_memory(m, r, e);
	if (!ret) {
		memcpy(r->rw, data, size_bytes);
		changed(m, REGION_ROM);
	}
	pthread_mutex_unlock(&m->lock);
	return ret;
}

static struct region *add_window(struct map *m, enum region_kind kind, uint64_t start, uint64_t size,
				 const struct io_ops *ops, void *opaque, const char *name)
{
	pthread_mutex_lock(&m->lock);
	struct region *r = region_add(m, kind, start, size);
	r->ops = ops;
	r->opaque = opaque;
	r->name = name;
	if (kind == REGION_PIO)
		pio_fill(m, r);
	else
		changed(m, kind);
	pthread_mutex_unlock(&m->lock);
	return r;
}

struct region *map_add_mmio(struct map *m, uint64_t gpa, uint64_t size_bytes, const struct io_ops *ops,
			    void *opaque, const char *name)
{
	return add_window(m, REGION_MMIO, gpa, size_bytes, ops, opaque, name);
}

struct region *map_add_mmio_off(struct map *m, uint64_t gpa, uint64_t size_bytes, const struct io_ops *ops,
				void *opaque, const char *name)
{
	pthread_mutex_lock(&m->lock);
	struct region *r = region_add(m, REGION_MMIO, gpa, size_bytes);
	r->enabled = false;
	r->ops = ops;
	r->opaque = opaque;
	r->name = name;
	pthread_mutex_unlock(&m->lock);
	return r;
}

struct region *map_add_pio(struct map *m, uint16_t port, uint32_t count, const struct io_ops *ops, void *opaque,
			   const char *name)
{
	return add_window(m, REGION_PIO, port, count, ops, opaque, name);
}

void region_move(struct map *m, struct region *r, uint64_t start)
{
	pthread_mutex_lock(&m->lock);
	if (r->start != start && start + r->size - 1 >= start) {
		r->start = start;
		if (r->enabled)
			changed(m, r->kind);
	}
	pthread_mutex_unlock(&m->lock);
}

void region_enable(struct map *m, struct region *r, bool on)
{
	pthread_mutex_lock(&m->lock);
	if (r->enabled != on) {
		r->enabled = on;
		changed(m, r->kind);
	}
	pthread_mutex_unlock(&m->lock);
}

void map_remove(struct map *m, struct region *r)
{
	region_enable(m, r, false);
}

void map_listen(struct map *m, const struct map_listener *l)
{
	pthread_mutex_lock(&m->lock);
	ASSERT(m->listeners < MAP_LISTENERS);
	m->listener[m->listeners++] = *l;
	pthread_mutex_unlock(&m->lock);
}

uint64_t map_ram_pages(const struct map *m) { return m->ram_pages; }
uint64_t map_ram_bytes(const struct map *m) { return m->ram_bytes; }
int map_ram_fd(const struct map *m) { return m->ram_fd; }

int map_each_ram(const struct map *m, int (*fn)(void *opaque, const struct ram_slot *s), void *opaque)
{
	for (const struct region *r = m->regions; r; r = r->next) {
		if (r->kind > REGION_ROM || !r->enabled)
			continue;
		struct ram_slot s = { r->start, r->size, r->rw, r->fd_offset, r->kind == REGION_ROM };
		int ret = fn(opaque, &s);
		if (ret)
			return ret;
	}
	return 0;
}

void map_mark_dirty(struct map *m, uint32_t ram_page)
{
	_Atomic uint64_t *word = &m->dirty[ram_page / 64];
	uint64_t bit = 1ull << (ram_page % 64);
	if (!(atomic_load_explicit(word, memory_order_relaxed) & bit))
		atomic_fetch_or_explicit(word, bit, memory_order_relaxed);
}

/* Without `lock`: the listeners wait for vCPUs, which may be about to move a BAR. */
void map_dirty_fetch(struct map *m, uint64_t *bits)
{
	for (unsigned i = 0; i < m->listeners; i++)
		if (m->listener[i].dirty_collect)
			m->listener[i].dirty_collect(m->listener[i].opaque);
	for (uint64_t i = 0; i < (m->ram_pages + 63) / 64; i++) {
		uint64_t taken = atomic_exchange(&m->dirty[i], 0);
		if (bits)
			bits[i] = taken;
	}
	for (unsigned i = 0; i < m->listeners; i++)
		if (m->listener[i].dirty_taken)
			m->listener[i].dirty_taken(m->listener[i].opaque);
}

void map_dirty_reset(struct map *m)
{
	map_dirty_fetch(m, NULL);
}

void map_code_set(struct map *m, uint32_t ram_page, bool has_code)
{
	uint64_t bit = 1ull << (ram_page % 64);
	if (has_code)
		atomic_fetch_or(&m->code[ram_page / 64], bit);
	else
		atomic_fetch_and(&m->code[ram_page / 64], ~bit);
}

bool map_code_test(const struct map *m, uint32_t ram_page)
{
	return atomic_load_explicit(&m->code[ram_page / 64], memory_order_acquire) >> (ram_page % 64) & 1;
}

static void doorbell_tell(struct map *m, unsigned slot, bool on)
{
	for (unsigned i = 0; i < m->listeners; i++)
		if (m->listener[i].doorbell_changed)
			m->listener[i].doorbell_changed(m->listener[i].opaque, m->doorbell[slot].gpa, m->doorbell[slot].size,
							m->doorbell[slot].fd, on);
}

void map_doorbell(struct map *m, uint64_t gpa, unsigned size, int eventfd)
{
	pthread_mutex_lock(&m->lock);
	unsigned slot = MAP_DOORBELLS;
	for (unsigned i = 0; i < MAP_DOORBELLS; i++) {
		if (m->doorbell[i].fd && m->doorbell[i].gpa == gpa)
			slot = i;
		else if (!m->doorbell[i].fd && slot == MAP_DOORBELLS)
			slot = i;
	}
	if (slot < MAP_DOORBELLS) {
		if (m->doorbell[slot].fd)
			doorbell_tell(m, slot, false);
		m->doorbell[slot].gpa = gpa;
		m->doorbell[slot].size = size;
		m->doorbell[slot].fd = eventfd < 0 ? 0 : eventfd;
		if (m->doorbell[slot].fd)
			doorbell_tell(m, slot, true);
	}
	pthread_mutex_unlock(&m->lock);
}
