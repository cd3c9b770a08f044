/*
 * Guest memory as KVM sees it: slots, the dirty log, and doorbells that wake the I/O thread without an exit.
 *
 * The log starts with the first fetch, which therefore finds every page dirty. KVM_GET_DIRTY_LOG clears and
 * write-protects in one go: a write that it does not report is in the next one, and nothing is left to do in
 * dirty_taken.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>

#include "base/log.h"
#include "engine/kvm/kvm_private.h"

/* --- dirty log --- */

static void page_written(struct engine *en, const struct ram_slot *s, uint64_t page)
{
	uint64_t gpa = s->gpa + page * GUEST_PAGE_SIZE;
	uint32_t ram_page = map_page(en->cfg.map, gpa).ram_page;

	map_mark_dirty(en->cfg.map, ram_page);
	if (map_code_test(en->cfg.map, ram_page))
		map_wrote(en->cfg.map, gpa, GUEST_PAGE_SIZE);
}

static void mark_all(struct engine *en, const struct ram_slot *s)
{
	for (uint64_t i = 0; i < s->size_bytes / GUEST_PAGE_SIZE; i++)
		page_written(en, s, i);
}

static void mark_logged(struct engine *en, unsigned slot)
{
	const struct ram_slot *s = &en->slot[slot].ram;
	uint64_t words = (s->size_bytes / GUEST_PAGE_SIZE + 63) / 64;
	uint64_t *bits = calloc(words, 8);
	struct kvm_dirty_log log = { .slot = slot, .dirty_bitmap = bits };

	if (!bits || ioctl(en->vm_fd, KVM_GET_DIRTY_LOG, &log) < 0) {
		mark_all(en, s);	/* too much is safe */
		free(bits);
		return;
	}
	for (uint64_t w = 0; w < words; w++)
		for (uint64_t left = bits[w]; left; left &= left - 1)
			page_written(en, s, 64 * w + (unsigned)__builtin_ctzll(left));
	free(bits);
}

/* --- slots --- */

static bool same_slot(const struct ram_slot *a, const struct ram_slot *b)
{
	return a->gpa == b->gpa && a->size_bytes == b->size_bytes && a->rw_hva == b->rw_hva && a->rom == b->rom;
}

static int slot_set(struct engine *en, unsigned i, const struct ram_slot *s, bool on)
{
	struct kvm_userspace_memory_region r = {
		.slot = i, .flags = s->rom ? KVM_MEM_READONLY : en->logging ? KVM_MEM_LOG_DIRTY_PAGES : 0,
		.guest_phys_addr = s->gpa, .memory_size = on ? s->size_bytes : 0,
		.userspace_addr = (uint64_t)(uintptr_t)s->rw_hva,
	};
	if (!on && en->logging && !s->rom)
		mark_logged(en, i);
	if (ioctl(en->vm_fd, KVM_SET_USER_MEMORY_REGION, &r) < 0)
		return -errno;
	en->slot[i].used = on;
	en->slot[i].ram = *s;
	return 0;
}

struct wanted { unsigned n; struct ram_slot slot[KVM_SLOTS]; };

static int want(void *opaque, const struct ram_slot *s)
{
	struct wanted *w = opaque;

	if (w->n == KVM_SLOTS)
		return -ENOSPC;
	w->slot[w->n++] = *s;
	return 0;
}

static bool wanted_has(const struct wanted *w, const struct ram_slot *s)
{
	for (unsigned i = 0; i < w->n; i++)
		if (same_slot(&w->slot[i], s))
			return true;
	return false;
}

static int slot_add(struct engine *en, const struct ram_slot *s)
{
	int at = -1;

	for (unsigned i = 0; i < KVM_SLOTS; i++) {
		if (en->slot[i].used && same_slot(&en->slot[i].ram, s))
			return 0;
		if (!en->slot[i].used && at < 0)
			at = (int)i;
	}
	return at < 0 ? -ENOSPC : slot_set(en, (unsigned)at, s, true);
}

int kvm_slots_update(struct engine *en)
{
	struct wanted w = { 0 };
	int ret;

	pthread_mutex_lock(&en->slot_lock);
	ret = map_each_ram(en->cfg.map, want, &w);
	for (unsigned i = 0; i < KVM_SLOTS && !ret; i++)
		if (en->slot[i].used && !wanted_has(&w, &en->slot[i].ram))
			ret = slot_set(en, i, &en->slot[i].ram, false);
	for (unsigned i = 0; i < w.n && !ret; i++)
		ret = slot_add(en, &w.slot[i]);
	pthread_mutex_unlock(&en->slot_lock);
	return ret;
}

/* --- what the map tells --- */

static void layout_changed(void *opaque)
{
	int ret = kvm_slots_update(opaque);

	if (ret < 0)
		log_warn("KVM refused the memory layout: %s", strerror(-ret));
}

static void log_start(struct engine *en)
{
	en->logging = true;
	for (unsigned i = 0; i < KVM_SLOTS; i++) {
		struct kvm_slot *s = &en->slot[i];
		if (!s->used || s->ram.rom)
			continue;
		slot_set(en, i, &s->ram, true);
		mark_all(en, &s->ram);
	}
}

static void dirty_collect(void *opaque) { kvm_dirty_collect(opaque); }

void kvm_dirty_collect(struct engine *en)
{
	pthread_mutex_lock(&en->slot_lock);
	if (!en->logging) {
		log_start(en);
	} else {
		for (unsigned i = 0; i < KVM_SLOTS; i++)
			if (en->slot[i].used && !en->slot[i].ram.rom)
				mark_logged(en, i);
	}
	pthread_mutex_unlock(&en->slot_lock);
}

/* Where KVM has no room the write comes as an exit, and the map rings. */
static void doorbell_changed(void *opaque, uint64_t gpa, unsigned size, int eventfd, bool on)
{
	struct engine *en = opaque;
	struct kvm_ioeventfd f = { .addr = gpa, .len = size, .fd = eventfd,
				   .flags = on ? 0 : KVM_IOEVENTFD_FLAG_DEASSIGN };

	ioctl(en->vm_fd, KVM_IOEVENTFD, &f);
}

void kvm_listen(struct engine *en)
{
	map_listen(en->cfg.map, &(struct map_listener){ .layout_changed = layout_changed, .dirty_collect = dirty_collect,
							.doorbell_changed = doorbell_changed, .opaque = en });
}
