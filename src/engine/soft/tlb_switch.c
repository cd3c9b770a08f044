/*
 * CR3 writes, and what of the TLB goes with them. Translated code calls this with the guest's vector state in the
 * registers: it is compiled for general registers only.
 */
#include "engine/soft/interp.h"

/* One group; false: none of its entries is in use any more. */
static bool sweep_group(struct vcpu *v, unsigned mode, unsigned first, tlb_sweep_fn *fn, uint64_t arg)
{
	const uint8_t *info = interp_of(v)->walks.info[mode];
	bool used = false;

	for (unsigned i = first; i < first + TLB_GROUP; i++) {
		if (info[i])
			fn(v, mode, i, arg);
		used |= info[i] != 0;
	}
	return used;
}

void tlb_sweep(struct vcpu *v, tlb_sweep_fn *fn, uint64_t arg)
{
	struct walk_cache *w = &interp_of(v)->walks;
	unsigned words = sizeof w->touched[0] / sizeof w->touched[0][0];

	for (unsigned i = 0; i < TLB_MODES * words; i++) {
		unsigned mode = i / words, word = i % words;
		for (uint64_t bits = w->touched[mode][word]; bits; bits &= bits - 1) {
			unsigned group = word * 64 + (unsigned)__builtin_ctzll(bits);
			if (!sweep_group(v, mode, group * TLB_GROUP, fn, arg))
				w->touched[mode][word] &= ~(bits & -bits);
		}
	}
}

static void local_forget(struct vcpu *v, unsigned mode, unsigned index, uint64_t unused)
{
	uint8_t *info = &interp_of(v)->walks.info[mode][index];

	*info &= (uint8_t)~TLB_LISTED;
	if (!(*info & TLB_GLOBAL))
		tlb_clear(v, &interp_of(v)->walks, mode, index);
}

void tlb_drop_local(struct vcpu *v)
{
	struct walk_cache *w = &interp_of(v)->walks;

	v->counters.local_entries += w->list_count;
	if (w->list_count > TLB_LIST)
		tlb_sweep(v, local_forget, 0);
	else
		for (unsigned i = 0; i < w->list_count; i++)
			local_forget(v, w->list[i] / TLB_ENTRIES, w->list[i] % TLB_ENTRIES, 0);
	w->list_count = 0;
	interp_of(v)->epoch_local++;
	interp_of(v)->fetch_epoch++;
	interp_of(v)->stop_block = true;
}

void tlb_switch(struct vcpu *v, bool keep)
{
	struct walk_cache *w = &interp_of(v)->walks;

	v->counters.switches++;
	v->counters.switches_kept += keep;
	if (!keep)
		w->flushed[current_pcid(v)] = ++w->clock;
	tlb_drop_local(v);
}
