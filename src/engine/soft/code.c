/*
 * Which RAM holds code that somebody decoded or translated, and who wrote to it.
 *
 *   writer (any vCPU, no TLB write entry)     reader (code_watch, then reads the bytes)
 *     store; fence; lines set? bump version     set lines; fence; writers? make them drop their entries
 *   writer (fills a TLB write entry)
 *     set its bit in writers; fence; lines set? then no write entry
 *
 * Of each pair at least one side sees the other, so a byte read after code_watch() is either final or its
 * change bumps the version. The version that belongs to bytes is the one that was read before code_watch().
 */
#include "engine/soft/soft.h"

#include <sched.h>

#include "engine/soft/interp.h"

static uint64_t line_mask(unsigned first, unsigned last)
{
	return (~0ull << (first / 64)) & (~0ull >> (63 - last / 64));
}

void vcpu_drop_writes(struct vcpu *t)
{
	vcpu_request(t, REQUEST_DROP_WRITES);
	atomic_thread_fence(memory_order_seq_cst);
	while (atomic_load(&interp_of(t)->running) && (atomic_load(&t->request) & REQUEST_DROP_WRITES))
		sched_yield();
}

/* The page's entries for writing go, in every vCPU that has some. */
static void drop_writers(struct vcpu *v, const struct page_info *pi)
{
	struct code_page *cp = &v->en->code[pi->ram_page];
	/* In this order: who adds an entry says so in writers first. If place does not have it yet, writers has it now. */
	uint64_t place = atomic_exchange(&cp->place, PLACE_NONE);
	uint32_t writers = atomic_exchange(&cp->writers, 0);

	for (unsigned i = 0; i < SOFT_MAX_VCPUS; i++)
		if ((writers >> i & 1) && v->en->vcpu[i] && v->en->vcpu[i] != v)
			vcpu_drop_writes(v->en->vcpu[i]);
	if (writers >> v->w.index & 1)
		tlb_drop_writes(v, pi->rw_hva, place);
}

/* One vCPU at a time, so that nobody takes lines for watched whose writers are still being waited for. A waiter counts as
 * being at a safe point itself, so that two who wait for each other both go on. */
static void watch_lines(struct vcpu *v, const struct page_info *pi, uint64_t mask)
{
	struct soft_engine *en = v->en;
	struct interp *ip = interp_of(v);
	bool was_running = atomic_load(&ip->running);

	atomic_store(&ip->running, false);
	pthread_mutex_lock(&en->watch_lock);
	atomic_store(&en->watching, true);
	if (!atomic_fetch_or(&en->code[pi->ram_page].lines, mask))
		map_code_set(en->map, pi->ram_page, true);
	atomic_thread_fence(memory_order_seq_cst);
	drop_writers(v, pi);
	atomic_store(&en->watching, false);
	pthread_mutex_unlock(&en->watch_lock);
	atomic_store(&ip->running, was_running);
	vcpu_service(v);
}

void code_watch(struct vcpu *v, const struct page_info *pi, unsigned first, unsigned last)
{
	uint64_t mask = line_mask(first, last);

	if ((atomic_load(&v->en->code[pi->ram_page].lines) & mask) != mask || atomic_load(&v->en->watching))
		watch_lines(v, pi, mask);
}

void code_wrote(struct soft_engine *en, uint32_t ram_page, unsigned first, unsigned last)
{
	struct code_page *cp = &en->code[ram_page];
	uint64_t hit = line_mask(first, last);

	if (ram_page >= en->ram_pages)
		return;
	if (!(hit & atomic_load(&cp->lines)))
		return;
	/* All code of the page goes, so that a page that once held code does not stay slow to write. Lines
	 * before version: whoever reads the new version finds the lines clear and watches them anew. The map's mark
	 * stays, since somebody may be setting lines at this moment. */
	hit = atomic_exchange(&cp->lines, 0);
	atomic_fetch_add(&cp->version, 1);
	if (en->code_invalidated)
		en->code_invalidated(en, ram_page, hit);
}
