/*
 * TLB misses of translated code that need no page walk.
 *
 * This runs with the guest's x87, SSE and AVX state in the registers: it is compiled for general registers only
 * (src/engine/soft/meson.build), calls nothing, and raises nothing. Whatever it does not know is mem_fill()'s.
 */
#include "engine/soft/interp.h"

static struct walk_entry *find(struct vcpu *v, struct walk_cache *w, uint64_t va_kind, unsigned tag, bool write)
{
	struct walk_entry *e = walk_slot(w, va_kind, tag);

	if (e->va_kind != va_kind || e->tag != tag || !e->addend || !walk_fresh(w, e))
		return NULL;
	return write && e->write_stamp <= w->writes_dropped ? NULL : e;
}

/* An entry that is right already did not miss: the access crosses into the next page, or is misaligned. */
static inline bool refill(struct vcpu *v, uint64_t va, unsigned mode, bool write)
{
	struct walk_cache *w = &interp_of(v)->walks;
	uint64_t page = va & GUEST_PAGE_MASK;
	struct walk_entry *e;

	if (tlb_at(v, mode, write, va)->tag == page)
		return false;
	e = find(v, w, page | mode, current_pcid(v), write);
	if (!e)
		e = find(v, w, page | mode, WALK_GLOBAL, write);
	if (!e)
		return false;
	tlb_put(v, w, mode, page, e->addend, e->write_stamp > w->writes_dropped, e->tag == WALK_GLOBAL);
	return true;
}

bool tlb_refill_read(struct vcpu *v, uint64_t va, unsigned mode) { return refill(v, va, mode, false); }
bool tlb_refill_write(struct vcpu *v, uint64_t va, unsigned mode) { return refill(v, va, mode, true); }
