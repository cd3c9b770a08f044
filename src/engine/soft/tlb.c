#include "engine/soft/tlb.h"

#include <string.h>

#include "engine/soft/interp.h"

static struct walk_cache *walks_of(struct vcpu *v) { return &interp_of(v)->walks; }

/* --- the walk cache --- */

static bool walk_lookup(struct walk_cache *w, uint64_t va_kind, unsigned tag, bool write, struct mmu_result *out)
{
	const struct walk_entry *e = walk_slot(w, va_kind, tag);
	uint64_t need = WALK_WRITABLE | WALK_DIRTY;

	if (e->va_kind != va_kind || e->tag != tag || !walk_fresh(w, e) || (write && (e->gpa & need) != need))
		return false;
	out->gpa = e->gpa & GUEST_PAGE_MASK;
	out->writable = e->gpa & WALK_WRITABLE;
	out->dirty = e->gpa & WALK_DIRTY;
	out->global = e->gpa & WALK_IS_GLOBAL;
	return true;
}

static void large_note(struct walk_cache *w, uint64_t va, unsigned shift)
{
	if (shift == 30)
		w->huge[va >> 36 & 15] |= 1ull << (va >> 30 & 63);
	else
		w->large[va >> 27 & 511] |= 1ull << (va >> 21 & 63);
	if (shift == 22)	/* the other half */
		w->large[(va ^ 1u << 21) >> 27 & 511] |= 1ull << ((va ^ 1u << 21) >> 21 & 63);
}

static bool large_met(const struct walk_cache *w, uint64_t va)
{
	return (w->large[va >> 27 & 511] >> (va >> 21 & 63) & 1) || (w->huge[va >> 36 & 15] >> (va >> 30 & 63) & 1);
}

static void walk_put(struct walk_cache *w, uint64_t va_kind, unsigned pcid, const struct mmu_result *r)
{
	unsigned tag = r->global ? WALK_GLOBAL : pcid;

	*walk_slot(w, va_kind, tag) = (struct walk_entry){
		.va_kind = va_kind, .stamp = w->clock + 1, .tag = tag,
		.gpa = (r->gpa & GUEST_PAGE_MASK) | (r->writable ? WALK_WRITABLE : 0) | (r->dirty ? WALK_DIRTY : 0) |
		       (r->global ? WALK_IS_GLOBAL : 0) };
}

static unsigned walk_access(unsigned kind, bool write)
{
	static const uint8_t access[WALK_KINDS] = { [TLB_USER] = MMU_USER, [TLB_KERNEL] = MMU_SMAP,
						    [WALK_FETCH] = MMU_FETCH, [WALK_FETCH_USER] = MMU_FETCH | MMU_USER };

	return access[kind] | (write ? MMU_WRITE : 0);
}

/* What is refused is never answered from the cache: page faults come from a walk. */
bool tlb_walk(struct vcpu *v, unsigned kind, uint64_t va, bool write, struct mmu_result *out, uint32_t *error)
{
	struct walk_cache *w = walks_of(v);
	uint64_t va_kind = (va & GUEST_PAGE_MASK) | kind;
	unsigned pcid = current_pcid(v);

	if (walk_lookup(w, va_kind, pcid, write, out) || walk_lookup(w, va_kind, WALK_GLOBAL, write, out)) {
		out->gpa |= va & ~GUEST_PAGE_MASK;
		v->counters.walk_hits++;
		return true;
	}
	v->counters.walks++;
	if (!mmu_walk(&v->s, v->en->map, va, walk_access(kind, write), out, error)) {
		v->counters.walk_faults++;
		return false;
	}
	if (write)
		out->writable = out->dirty = true;
	if (out->page_shift > GUEST_PAGE_SHIFT)
		large_note(w, va, out->page_shift);
	walk_put(w, va_kind, pcid, out);
	return true;
}

void tlb_remember(struct vcpu *v, unsigned kind, uint64_t va, bool global, uint64_t addend, bool write)
{
	struct walk_cache *w = walks_of(v);
	uint64_t va_kind = (va & GUEST_PAGE_MASK) | kind;
	unsigned tag = global ? WALK_GLOBAL : current_pcid(v);
	struct walk_entry *e = walk_slot(w, va_kind, tag);

	if (e->va_kind != va_kind || e->tag != tag || !walk_fresh(w, e))
		return;
	e->addend = addend;
	e->write_stamp = write ? w->clock + 1 : 0;
}

static void walk_forget(struct walk_cache *w, uint64_t va, unsigned tag)
{
	for (unsigned kind = 0; kind < WALK_KINDS; kind++) {
		uint64_t va_kind = (va & GUEST_PAGE_MASK) | kind;
		struct walk_entry *e = walk_slot(w, va_kind, tag);
		if (e->va_kind == va_kind && e->tag == tag)
			e->stamp = 0;
	}
}

/* --- the TLB itself --- */

static void entry_forget(struct vcpu *v, unsigned mode, unsigned index, uint64_t unused)
{
	walks_of(v)->info[mode][index] = 0;
	tlb_clear(v, walks_of(v), mode, index);
}

void tlb_init(struct vcpu *v)
{
	for (unsigned m = 0; m < TLB_MODES; m++)
		tlb_clear(v, walks_of(v), m, 0);
	tlb_flush_all(v);
}

void tlb_flush_all(struct vcpu *v)
{
	struct walk_cache *w = walks_of(v);

	v->counters.flush_all++;
	tlb_sweep(v, entry_forget, 0);
	w->list_count = 0;
	w->flushed_all = ++w->clock;
	memset(w->large, 0, sizeof(w->large));
	memset(w->huge, 0, sizeof(w->huge));
	interp_of(v)->epoch_all++;
	interp_of(v)->epoch_local++;
	interp_of(v)->fetch_epoch++;
	interp_of(v)->stop_block = true;
}

void tlb_flush_non_global(struct vcpu *v)
{
	struct walk_cache *w = walks_of(v);

	v->counters.flush_local++;
	w->flushed_local = ++w->clock;
	tlb_drop_local(v);
}

void tlb_flush_page(struct vcpu *v, uint64_t gva)
{
	struct interp *ip = interp_of(v);
	struct walk_cache *w = walks_of(v);

	v->counters.flush_page++;
	if (large_met(w, gva)) {
		tlb_flush_all(v);
		return;
	}
	for (unsigned m = 0; m < TLB_MODES; m++)
		tlb_clear(v, walks_of(v), m, tlb_index(gva));
	walk_forget(w, gva, current_pcid(v));
	walk_forget(w, gva, WALK_GLOBAL);
	ip->fetch[(gva >> GUEST_PAGE_SHIFT) % FETCH_ENTRIES].tag = ~0ull;
	if (ip->flushed_count < FLUSHED_PAGES)
		ip->flushed[ip->flushed_count] = gva & GUEST_PAGE_MASK;
	if (ip->flushed_count <= FLUSHED_PAGES)
		ip->flushed_count++;
	ip->fetch_epoch++;
	ip->stop_block = true;
}

void tlb_flush_pcid_page(struct vcpu *v, unsigned pcid, uint64_t va)
{
	if (pcid == current_pcid(v))
		tlb_flush_page(v, va);
	else if (large_met(walks_of(v), va))
		tlb_flush_pcid(v, pcid);
	else
		walk_forget(walks_of(v), va, pcid);
}

void tlb_flush_pcid(struct vcpu *v, unsigned pcid)
{
	struct walk_cache *w = walks_of(v);

	w->flushed[pcid] = ++w->clock;
	if (pcid == current_pcid(v))
		tlb_drop_local(v);
}

static void write_forget(struct vcpu *v, unsigned mode, unsigned index, uint64_t hva)
{
	struct tlb_entry *t = &v->tlb[mode][TLB_WRITE][index];

	if (!hva || t->tag + t->addend == hva)
		t->tag = tlb_invalid(index);
}

/* One page's entries, and what would bring them back. */
static void place_forget(struct vcpu *v, uint64_t hva, uint64_t place)
{
	uint64_t va = place_va(place);
	unsigned tag = place & 0x1fff;

	for (unsigned mode = 0; mode < TLB_MODES; mode++) {
		struct walk_entry *e = walk_slot(walks_of(v), va | mode, tag);
		write_forget(v, mode, tlb_index(va), hva);
		if (e->va_kind == (va | mode) && e->tag == tag)
			e->write_stamp = 0;
	}
}

/* Does the page have an entry there, or would one come back by what is remembered? */
static bool place_alive(struct vcpu *v, uint64_t hva, uint64_t place)
{
	struct walk_cache *w = walks_of(v);
	uint64_t va = place_va(place);
	unsigned tag = place & 0x1fff;

	for (unsigned mode = 0; mode < TLB_MODES; mode++) {
		const struct walk_entry *e = walk_slot(w, va | mode, tag);
		const struct tlb_entry *t = &v->tlb[mode][TLB_WRITE][tlb_index(va)];
		if (t->tag + t->addend == hva)
			return true;
		if (e->va_kind == (va | mode) && e->tag == tag && e->write_stamp > w->writes_dropped && walk_fresh(w, e))
			return true;
	}
	return false;
}

/* Another place than the one that is noted. If that is no more, and nobody else's, the new one takes over; many in between,
 * so that a vCPU which found the old one there has said in writers by now that it writes. */
static bool place_move(struct vcpu *v, struct code_page *cp, uint64_t hva, uint64_t was, uint64_t place)
{
	uint64_t many = PLACE_MANY;

	if (!atomic_compare_exchange_strong(&cp->place, &was, PLACE_MANY))
		return false;
	if (atomic_load(&cp->writers) != 1u << v->w.index || place_alive(v, hva, was))
		return true;
	return atomic_compare_exchange_strong(&cp->place, &many, place);
}

void tlb_place_note(struct vcpu *v, const struct page_info *pi, uint64_t place)
{
	struct code_page *cp = &v->en->code[pi->ram_page];
	uint64_t now = atomic_load(&cp->place), none = PLACE_NONE;

	while (now != place && now != PLACE_MANY) {
		if (now == PLACE_NONE ? atomic_compare_exchange_strong(&cp->place, &none, place) :
					place_move(v, cp, (uint64_t)(uintptr_t)pi->rw_hva, now, place))
			return;
		now = atomic_load(&cp->place);
		none = PLACE_NONE;
	}
}

void tlb_drop_writes(struct vcpu *v, const uint8_t *rw_hva, uint64_t place)
{
	struct walk_cache *w = walks_of(v);

	if (place != PLACE_MANY && place != PLACE_NONE) {
		place_forget(v, (uint64_t)(uintptr_t)rw_hva, place);
		return;
	}
	w->writes_dropped = ++w->clock;
	tlb_sweep(v, write_forget, (uint64_t)(uintptr_t)rw_hva);
}
