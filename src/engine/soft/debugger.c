/*
 * A debugger outside of the guest: engine.h says what it may ask for.
 *
 *   breakpoints   offsets in a page are marked; blocks end before marked offsets, so that a vCPU comes to the run loop
 *                 before it executes one, and only then the whole address is compared
 *   watchpoints   pages that are watched get no TLB entry: their accesses take the slow path, which reports them
 *   steps         run_step() in soft.c
 *
 * Marking offsets instead of pages needs no look at page tables: whatever page an address is mapped to, now or later,
 * its offset stays. The price is that some blocks elsewhere are cut in two.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "engine/soft/interp.h"
#include "engine/soft/translate.h"

static bool point_valid(const struct debug_point *p)
{
	return p->kind == DEBUG_BREAK || (p->bytes && p->bytes <= DEBUG_WATCH_BYTES);
}

int soft_debug_set(struct vcpu *v, const struct debug_plan *p)
{
	if (p->count > DEBUG_POINTS)
		return -ENOSPC;
	for (unsigned i = 0; i < p->count; i++)
		if (!point_valid(&p->point[i]))
			return -EINVAL;
	interp_of(v)->plan = *p;
	return 0;
}

void soft_debug_get(struct vcpu *v, struct debug_stop *out)
{
	*out = interp_of(v)->stop;
}

static void marks_replace(struct vcpu *v, struct debug_marks *m)
{
	struct interp *ip = interp_of(v);

	free(ip->marks);
	ip->marks = m;
	interp_drop_all(v);
	translate_drop_all(v);
}

/* When memory is short, breakpoints do not stop the guest; it goes on. */
static void marks_apply(struct vcpu *v)
{
	struct interp *ip = interp_of(v);
	struct debug_marks m = { 0 }, *copy;
	bool any = false;

	for (unsigned i = 0; i < ip->plan.count; i++) {
		unsigned offset = ip->plan.point[i].gva & ~GUEST_PAGE_MASK;
		if (ip->plan.point[i].kind == DEBUG_BREAK) {
			m.bits[offset >> 6] |= 1ull << (offset & 63);
			any = true;
		}
	}
	if (!any && ip->marks)
		marks_replace(v, NULL);
	if (!any || (ip->marks && !memcmp(&m, ip->marks, sizeof m)))
		return;
	copy = malloc(sizeof *copy);
	if (!copy)
		return;
	*copy = m;
	marks_replace(v, copy);
}

static void watches_apply(struct vcpu *v)
{
	struct interp *ip = interp_of(v);
	struct debug_point now[DEBUG_POINTS];
	unsigned n = 0;

	memset(now, 0, sizeof now);
	for (unsigned i = 0; i < ip->plan.count; i++)
		if (ip->plan.point[i].kind != DEBUG_BREAK)
			now[n++] = ip->plan.point[i];
	if (n == ip->watches && !memcmp(now, ip->watch, n * sizeof now[0]))
		return;
	ip->watches = n;
	memcpy(ip->watch, now, sizeof now);
	ip->watched = n || ip->data_bps;
	tlb_flush_all(v);
}

/* A step leaves the marks alone: it looks at none, and they will be wanted again after it. */
void debugger_apply(struct vcpu *v)
{
	struct interp *ip = interp_of(v);

	ip->stop.why = DEBUG_NOTHING;
	if (!ip->plan.step && (ip->plan.count || ip->marks))
		marks_apply(v);
	if (ip->plan.count || ip->watches)
		watches_apply(v);
}

bool debugger_at_break(struct vcpu *v)
{
	struct interp *ip = interp_of(v);
	uint64_t va = v->s.rip;

	if (v->insn_mode != INSN_64)
		va = (uint32_t)(v->s.seg[SEG_CS].base + va);
	for (unsigned i = 0; i < ip->plan.count; i++) {
		if (ip->plan.point[i].kind != DEBUG_BREAK || ip->plan.point[i].gva != va)
			continue;
		ip->stop = (struct debug_stop){ DEBUG_AT_BREAK, ip->plan.point[i] };
		return true;
	}
	return false;
}

/* Do [a, a + an) and [b, b + bn) share a byte? Either may end at the top of the address space. */
static bool overlaps(uint64_t a, uint64_t an, uint64_t b, uint64_t bn) { return b - a < an || a - b < bn; }

bool debugger_page_watched(struct vcpu *v, uint64_t va)
{
	const struct interp *ip = interp_of(v);

	for (unsigned i = 0; i < ip->watches; i++)
		if (overlaps(ip->watch[i].gva, ip->watch[i].bytes, va & GUEST_PAGE_MASK, GUEST_PAGE_SIZE))
			return true;
	return false;
}

/* The first access that is watched counts: the instruction ends, then run() does. */
void debugger_data_access(struct vcpu *v, uint64_t va, unsigned n, bool write)
{
	struct interp *ip = interp_of(v);

	for (unsigned i = 0; i < ip->watches && ip->stop.why == DEBUG_NOTHING; i++) {
		const struct debug_point *p = &ip->watch[i];
		if (p->kind == (write ? DEBUG_READ : DEBUG_WRITE) || !overlaps(p->gva, p->bytes, va, n))
			continue;
		ip->stop = (struct debug_stop){ DEBUG_WATCHED, *p };
		ip->stop_block = true;
		vcpu_request(v, REQUEST_EXIT);
	}
}
