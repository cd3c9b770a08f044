/*
 * Look-ups of translated code that find what is there already; instructions that are answered in C and go on.
 *
 * Like tlb_refill.c this runs with the guest's x87, SSE and AVX state in the registers, and is compiled for general
 * registers only (src/engine/soft/meson.build), and so is what it calls: codecache.c. It raises nothing. Where the run
 * loop has to look, and for all that has to be translated first, it says NULL, and translated code leaves.
 */
#include "engine/soft/mem.h"
#include "engine/soft/translate_private.h"

/* Does anything wait that boundary() and the loop around it see to? */
static bool loop_wanted(struct vcpu *v)
{
	struct trans_vcpu *t = trans_of(v);
	const struct interp *ip = interp_of(v);

	if (atomic_load(&v->request) || atomic_load_explicit(&t->inbox_count, memory_order_acquire))
		return true;
	if (ip->check_events || ip->marks || t->fetch_epoch != ip->fetch_epoch || (v->s.rflags & FLAG_RF))
		return true;
	if ((t->polls & 63) == 63)	/* boundary()'s turn to look at interrupts */
		return true;
	t->polls++;
	return false;
}

static const struct walk_entry *walk_find(struct vcpu *v, uint64_t va_kind, unsigned tag)
{
	struct walk_cache *w = &interp_of(v)->walks;
	const struct walk_entry *e = walk_slot(w, va_kind, tag);

	return e->va_kind == va_kind && e->tag == tag && e->addend && walk_fresh(w, e) ? e : NULL;
}

/* The walk of a page of code that was looked up before; lookup_note() left its RAM page in `addend`. */
static const struct walk_entry *fetch_walk(struct vcpu *v, uint64_t rip)
{
	uint64_t va_kind = (rip & GUEST_PAGE_MASK) | (v->tlb_mode == TLB_USER ? WALK_FETCH_USER : WALK_FETCH);
	const struct walk_entry *e = walk_find(v, va_kind, current_pcid(v));

	return e ? e : walk_find(v, va_kind, WALK_GLOBAL);
}

void lookup_note(struct vcpu *v, uint64_t rip, uint32_t ram_page, bool global)
{
	tlb_remember(v, v->tlb_mode == TLB_USER ? WALK_FETCH_USER : WALK_FETCH, rip, global, ram_page + 1ull, false);
}

const uint8_t *lookup_quick(struct vcpu *v, uint64_t rip)
{
	struct trans_vcpu *t = trans_of(v);
	unsigned mode = tmode_now(v, t->return_mode), offset = rip & ~GUEST_PAGE_MASK;
	const struct walk_entry *e;
	const struct tblock *k;
	uint32_t ram_page;

	if (loop_wanted(v) || !v->hot.jump[mode] || !va_canonical(v, rip) || offset > GUEST_PAGE_SIZE - 15)
		return NULL;
	e = fetch_walk(v, rip);
	if (!e)
		return NULL;
	ram_page = (uint32_t)(e->addend - 1);
	k = cache_find(v, ram_page, offset, mode);
	if (!k || !k->far_entry || k->version != code_version(v->en, ram_page))
		return NULL;
	jump_cache_put(v, mode, rip, k, e->tag == WALK_GLOBAL);
	t->count_quick++;
	return cache_rx(t, k->far_entry);
}

/* --- instructions --- */

bool cpuid_quick(struct vcpu *v, uint64_t t0, uint64_t t1)
{
	const struct cpuid_memo *m = cpuid_memo(v);

	if (!cpuid_memo_valid(v, m))
		return false;
	v->s.gpr[REG_RAX] = m->out[0];
	v->s.gpr[REG_RBX] = m->out[1];
	v->s.gpr[REG_RCX] = m->out[2];
	v->s.gpr[REG_RDX] = m->out[3];
	trans_of(v)->count_visits++;
	return true;
}

bool cr3_quick(struct vcpu *v, uint64_t value, uint64_t t1)
{
	if (value & v->hot.cr3_refused)
		return false;
	v->s.cr3 = value & ~CR3_KEEP;
	tlb_switch(v, value & CR3_KEEP);
	jump_cache_sync(v);
	trans_of(v)->count_visits++;
	return true;
}
