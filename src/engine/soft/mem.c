#include "engine/soft/mem.h"

#include "engine/soft/tlb.h"

/* One page of an access, translated. */
struct page_access {
	uint64_t gpa;		/* of the first byte */
	uint8_t *hva;		/* of the first byte; NULL: device, or write to ROM */
	bool code;		/* a write must be reported to code_wrote() */
	uint32_t ram_page;
};

/* --- segments --- */

static _Noreturn void seg_fault(struct vcpu *v, unsigned seg)
{
	vcpu_raise_error(v, seg == SEG_SS ? EXC_SS : EXC_GP, 0);
}

static bool seg_type_allows(const struct vcpu *v, const struct x86_segment *sg, bool write)
{
	if (!(v->s.cr0 & CR0_PE) || (v->s.rflags & FLAG_VM))
		return true;
	if (!(sg->attr & SEG_ATTR_P))
		return false;
	if (sg->attr & 8)	/* code: never writable, readable if bit 1 */
		return !write && (sg->attr & 2);
	return !write || (sg->attr & 2);
}

/* SDM vol. 3 5.3: limits, expand-down segments included. Outside 64-bit mode. */
void seg_check_access(struct vcpu *v, unsigned seg, uint64_t off, unsigned n, bool write)
{
	const struct x86_segment *sg = &v->s.seg[seg];
	uint64_t last = off + n - 1;

	if (!seg_type_allows(v, sg, write))
		seg_fault(v, seg);
	if ((sg->attr & 0xc) == 4) {	/* data, expand-down */
		uint64_t top = sg->attr & SEG_ATTR_DB ? 0xffffffffull : 0xffff;
		if (off <= sg->limit || last > top)
			seg_fault(v, seg);
	} else if (last > sg->limit) {
		seg_fault(v, seg);
	}
}

static void canonical_check(struct vcpu *v, unsigned seg, uint64_t va, unsigned n)
{
	if (v->insn_mode == INSN_64 && unlikely(!va_canonical(v, va) || !va_canonical(v, va + n - 1)))
		seg_fault(v, seg);
}

static void alignment_check(struct vcpu *v, uint64_t va, unsigned size)
{
	if (interp_of(v)->ac_check && (va & (size - 1)))
		vcpu_raise_error(v, EXC_AC, 0);
}

/* --- TLB --- */

/* May this page's writes skip the slow path? Says so to code_watch() first, then looks: the order is the
 * partner of the one in code_watch(). */
static bool page_writable_fast(struct vcpu *v, const struct page_info *pi, uint64_t place)
{
	struct code_page *cp = &v->en->code[pi->ram_page];

	if (pi->ram_page >= v->en->ram_pages)
		return false;
	if (!(atomic_load(&cp->writers) & 1u << v->w.index))
		atomic_fetch_or(&cp->writers, 1u << v->w.index);
	tlb_place_note(v, pi, place);
	atomic_thread_fence(memory_order_seq_cst);
	return !atomic_load_explicit(&cp->lines, memory_order_relaxed);
}

static void tlb_install(struct vcpu *v, enum tlb_mode mode, uint64_t va, const struct mmu_result *r,
			const struct page_info *pi, bool write)
{
	uint64_t page = va & GUEST_PAGE_MASK;
	uint8_t *hva = pi->rw_hva ? pi->rw_hva : pi->ro_hva;
	uint64_t addend = (uint64_t)(uintptr_t)hva - page;

	if (interp_of(v)->watched && debug_page_watched(v, va))
		return;
	v->counters.fills++;
	write = (write || (r->writable && r->dirty)) && pi->rw_hva && page_writable_fast(v, pi, tlb_place(v, va, r->global));
	if (write) {
		map_mark_dirty(v->en->map, pi->ram_page);
		v->counters.fills_write++;
	}
	tlb_put(v, &interp_of(v)->walks, mode, page, addend, write, r->global);
	tlb_remember(v, mode, va, r->global, addend, write);
}

/* Walks for one page, installs the TLB entry, says where the bytes are. Raises #PF. */
static void page_translate(struct vcpu *v, enum tlb_mode mode, uint64_t va, bool write, struct page_access *pa)
{
	struct mmu_result r;
	struct page_info pi;
	uint32_t err;

	if (!tlb_walk(v, mode, va, write, &r, &err))
		vcpu_raise_pf(v, va, err);
	pi = map_page(v->en->map, r.gpa);
	pa->gpa = r.gpa;
	pa->hva = NULL;
	pa->code = false;
	if (!pi.ro_hva || (write && !pi.rw_hva))
		return;
	tlb_install(v, mode, va, &r, &pi, write);
	pa->hva = (pi.rw_hva ? pi.rw_hva : pi.ro_hva) + (va & ~GUEST_PAGE_MASK);
	pa->ram_page = pi.ram_page;
	if (write) {
		map_mark_dirty(v->en->map, pi.ram_page);
		pa->code = pi.ram_page < v->en->ram_pages && atomic_load(&v->en->code[pi.ram_page].lines);
	}
}

bool mem_fill(struct vcpu *v, uint64_t va, bool write)
{
	const struct tlb_entry *t = tlb_at(v, v->tlb_mode, write, va);
	struct page_access pa;

	page_translate(v, v->tlb_mode, va, write, &pa);
	return t->tag == (va & GUEST_PAGE_MASK);
}

bool mem_fill_quiet(struct vcpu *v, uint64_t va, bool write)
{
	const struct tlb_entry *t = tlb_at(v, v->tlb_mode, write, va);
	uint64_t page = va & GUEST_PAGE_MASK;
	struct mmu_result r;
	struct page_info pi;
	uint32_t err;

	if (t->tag == page || !va_canonical(v, va) ||
	    !tlb_walk(v, v->tlb_mode, va, false, &r, &err))
		return false;
	pi = map_page(v->en->map, r.gpa);
	if (!pi.ro_hva)
		return false;
	tlb_install(v, v->tlb_mode, va, &r, &pi, false);
	return t->tag == page;
}

static void page_written(struct vcpu *v, const struct page_access *pa, unsigned n)
{
	unsigned first = pa->gpa & ~GUEST_PAGE_MASK;

	/* Look again: code may have been decoded from the page since it was translated. */
	if (pa->ram_page >= v->en->ram_pages)
		return;
	atomic_thread_fence(memory_order_seq_cst);
	if (pa->code || atomic_load(&v->en->code[pa->ram_page].lines)) {
		code_wrote(v->en, pa->ram_page, first, first + n - 1);
		interp_of(v)->stop_block = true;
	}
}

static uint64_t page_load(struct vcpu *v, const struct page_access *pa, unsigned size)
{
	uint64_t value = 0;

	if (!pa->hva)
		return map_load(v->en->map, pa->gpa, size);
	if ((size & (size - 1)) == 0)
		return hva_load(pa->hva, size);
	memcpy(&value, pa->hva, size);
	return value;
}

static void page_store(struct vcpu *v, const struct page_access *pa, unsigned size, uint64_t value)
{
	if (!pa->hva) {
		map_store(v->en->map, pa->gpa, size, value);
		interp_of(v)->check_events = true;	/* EOI lets the next interrupt through */
		return;
	}
	if ((size & (size - 1)) == 0)
		hva_store(pa->hva, size, value);
	else
		memcpy(pa->hva, &value, size);
	page_written(v, pa, size);
}

static unsigned first_part(uint64_t va, unsigned n)
{
	unsigned room = GUEST_PAGE_SIZE - (va & ~GUEST_PAGE_MASK);

	return n <= room ? n : room;
}

/* The linear address of the second page: wraps at 4 GiB outside 64-bit mode. */
static uint64_t next_page(const struct vcpu *v, uint64_t va)
{
	uint64_t next = (va & GUEST_PAGE_MASK) + GUEST_PAGE_SIZE;

	return state_long(&v->s) ? next : (uint32_t)next;
}

/* Bases of tables may have more bits than addresses now have: cpu_model_canonical(). */
static void lin_check(struct vcpu *v, uint64_t va)
{
	if (unlikely(!va_canonical(v, va)))
		vcpu_raise_error(v, EXC_GP, 0);
}

uint64_t lin_load(struct vcpu *v, enum tlb_mode mode, uint64_t va, unsigned size)
{
	const struct tlb_entry *t = tlb_at(v, mode, false, va);
	struct page_access a, b;
	unsigned n = first_part(va, size);
	uint64_t lo;

	if (tlb_hit(t, va, size))
		return hva_load((const void *)(va + t->addend), size);
	lin_check(v, va);
	page_translate(v, mode, va, false, &a);
	if (n == size) {
		lo = page_load(v, &a, size);
	} else {
		page_translate(v, mode, next_page(v, va), false, &b);
		lo = page_load(v, &a, n);
		lo |= page_load(v, &b, size - n) << (8 * n);
	}
	if (unlikely(interp_of(v)->watched))
		debug_data_access(v, va, size, false);
	return lo;
}

void lin_store(struct vcpu *v, enum tlb_mode mode, uint64_t va, unsigned size, uint64_t value)
{
	const struct tlb_entry *t = tlb_at(v, mode, true, va);
	struct page_access a, b;
	unsigned n = first_part(va, size);

	if (tlb_hit(t, va, size)) {
		hva_store((void *)(va + t->addend), size, value);
		return;
	}
	lin_check(v, va);
	page_translate(v, mode, va, true, &a);
	if (n == size) {
		page_store(v, &a, size, value);
	} else {
		page_translate(v, mode, next_page(v, va), true, &b);
		page_store(v, &a, n, value & (~0ull >> (64 - 8 * n)));
		page_store(v, &b, size - n, value >> (8 * n));
	}
	if (unlikely(interp_of(v)->watched))
		debug_data_access(v, va, size, true);
}

uint64_t mem_load_slow(struct vcpu *v, unsigned seg, uint64_t va, unsigned size)
{
	canonical_check(v, seg, va, size);
	alignment_check(v, va, size);
	return lin_load(v, v->tlb_mode, va, size);
}

void mem_store_slow(struct vcpu *v, unsigned seg, uint64_t va, unsigned size, uint64_t value)
{
	canonical_check(v, seg, va, size);
	alignment_check(v, va, size);
	lin_store(v, v->tlb_mode, va, size, value);
}

/* --- the shared interface --- */

uint64_t mem_load(struct vcpu *v, unsigned seg, uint64_t offset, unsigned size)
{
	return mem_ld(v, seg, offset, size);
}

void mem_store(struct vcpu *v, unsigned seg, uint64_t offset, unsigned size, uint64_t value)
{
	mem_st(v, seg, offset, size, value);
}

uint64_t mem_effective(const struct vcpu *v, const struct insn *in)
{
	return mem_ea(v, in);
}

uint64_t sys_load(struct vcpu *v, uint64_t gva, unsigned size)
{
	return lin_load(v, TLB_KERNEL_AC, gva, size);
}

void sys_store(struct vcpu *v, uint64_t gva, unsigned size, uint64_t value)
{
	lin_store(v, TLB_KERNEL_AC, gva, size, value);
}

void sys_probe(struct vcpu *v, uint64_t gva, unsigned n)
{
	struct page_access a;
	unsigned part = first_part(gva, n);

	page_translate(v, TLB_KERNEL_AC, gva, true, &a);
	if (part < n)
		page_translate(v, TLB_KERNEL_AC, next_page(v, gva), true, &a);
}

/* Bytes of one page, any count; devices see naturally aligned accesses of at most 8 bytes. */
static void page_copy(struct vcpu *v, const struct page_access *pa, void *buf, unsigned n, bool write)
{
	uint8_t *p = buf;

	if (pa->hva && write) {
		memcpy(pa->hva, buf, n);
		page_written(v, pa, n);
	} else if (pa->hva) {
		memcpy(buf, pa->hva, n);
	} else {
		for (unsigned i = 0, step; i < n; i += step) {
			uint64_t gpa = pa->gpa + i, value = 0;
			step = 8;
			while (step > n - i || (gpa & (step - 1)))
				step >>= 1;
			if (write) {
				memcpy(&value, p + i, step);
				map_store(v->en->map, gpa, step, value);
			} else {
				value = map_load(v->en->map, gpa, step);
				memcpy(p + i, &value, step);
			}
		}
	}
}

static void mem_copy_n(struct vcpu *v, unsigned seg, uint64_t offset, void *buf, unsigned n, bool write)
{
	uint64_t va = mem_linear(v, seg, offset, n, write);
	unsigned part = first_part(va, n);
	struct page_access a, b;

	canonical_check(v, seg, va, n);
	page_translate(v, v->tlb_mode, va, write, &a);
	if (part < n)
		page_translate(v, v->tlb_mode, next_page(v, va), write, &b);
	page_copy(v, &a, buf, part, write);
	if (part < n)
		page_copy(v, &b, (uint8_t *)buf + part, n - part, write);
	if (unlikely(interp_of(v)->watched))
		debug_data_access(v, va, n, write);
}

void mem_check_address(struct vcpu *v, unsigned seg, uint64_t offset, unsigned n, bool write)
{
	canonical_check(v, seg, mem_linear(v, seg, offset, n, write), n);
}

void mem_load_n(struct vcpu *v, unsigned seg, uint64_t offset, void *buf, unsigned n)
{
	uint64_t va = mem_linear(v, seg, offset, n, false);
	const struct tlb_entry *t = tlb_at(v, v->tlb_mode, false, va);

	if (likely(tlb_hit(t, va, n)))
		memcpy(buf, (const void *)(va + t->addend), n);
	else
		mem_copy_n(v, seg, offset, buf, n, false);
}

void mem_store_n(struct vcpu *v, unsigned seg, uint64_t offset, const void *buf, unsigned n)
{
	uint64_t va = mem_linear(v, seg, offset, n, true);
	const struct tlb_entry *t = tlb_at(v, v->tlb_mode, true, va);

	if (likely(tlb_hit(t, va, n)))
		memcpy((void *)(va + t->addend), buf, n);
	else
		mem_copy_n(v, seg, offset, (void *)(uintptr_t)buf, n, true);
}

void mem_probe_store(struct vcpu *v, unsigned seg, uint64_t offset, unsigned n)
{
	uint64_t va = mem_linear(v, seg, offset, n, true);
	unsigned part = first_part(va, n);
	struct page_access a;

	if (likely(tlb_hit(tlb_at(v, v->tlb_mode, true, va), va, n)))
		return;
	canonical_check(v, seg, va, n);
	page_translate(v, v->tlb_mode, va, true, &a);
	if (part < n)
		page_translate(v, v->tlb_mode, next_page(v, va), true, &a);
}

/* --- read-modify-write --- */

static void *rmw_ptr(struct vcpu *v, unsigned seg, uint64_t offset, unsigned n, struct page_access *pa)
{
	uint64_t va = mem_linear(v, seg, offset, n, true);
	const struct tlb_entry *t = tlb_at(v, v->tlb_mode, true, va);

	pa->code = false;
	if (unlikely(interp_of(v)->ac_check) && n <= 8)
		alignment_check(v, va, n);
	if (likely(tlb_hit(t, va, n)))
		return (void *)(va + t->addend);
	canonical_check(v, seg, va, n);
	page_translate(v, v->tlb_mode, va, true, pa);
	if (first_part(va, n) < n) {
		struct page_access second;
		page_translate(v, v->tlb_mode, next_page(v, va), true, &second);
		pa->code = false;
		return NULL;
	}
	if (pa->hva && unlikely(interp_of(v)->watched))
		debug_data_access(v, va, n, true);
	return pa->hva;
}

void *mem_rmw_ptr(struct vcpu *v, unsigned seg, uint64_t offset, unsigned n)
{
	struct page_access pa;
	void *p = rmw_ptr(v, seg, offset, n, &pa);

	return pa.code ? NULL : p;
}

void *mem_rmw_any(struct vcpu *v, unsigned seg, uint64_t offset, unsigned n)
{
	struct interp *ip = interp_of(v);
	struct page_access pa;
	void *p = rmw_ptr(v, seg, offset, n, &pa);

	if (p && unlikely(pa.code)) {
		ip->rmw_code = true;
		ip->rmw_page = pa.ram_page;
		ip->rmw_first = pa.gpa & ~GUEST_PAGE_MASK;
		ip->rmw_last = ip->rmw_first + n - 1;
	}
	return p;
}

void mem_rmw_report(struct vcpu *v)
{
	struct interp *ip = interp_of(v);

	ip->rmw_code = false;
	ip->stop_block = true;
	code_wrote(v->en, ip->rmw_page, ip->rmw_first, ip->rmw_last);
}

uint8_t *mem_bulk_ptr(struct vcpu *v, unsigned seg, uint64_t va, unsigned n, bool write)
{
	const struct tlb_entry *t = tlb_at(v, v->tlb_mode, write, va);

	if (!tlb_hit(t, va, n))
		return NULL;
	return (uint8_t *)(va + t->addend);
}

uint64_t mem_fetch_gpa(struct vcpu *v, uint64_t va)
{
	struct interp *ip = interp_of(v);
	bool user = v->tlb_mode == TLB_USER;
	uint64_t tag = (va & GUEST_PAGE_MASK) | user;
	struct fetch_entry *fe = &ip->fetch[(va >> GUEST_PAGE_SHIFT) % FETCH_ENTRIES];
	struct mmu_result r;
	uint32_t err;

	if (fe->tag == tag && fe->epoch == (fe->global ? ip->epoch_all : ip->epoch_local))
		return fe->gpa | (va & ~GUEST_PAGE_MASK);
	if (!tlb_walk(v, user ? WALK_FETCH_USER : WALK_FETCH, va, false, &r, &err))
		vcpu_raise_pf(v, va, err);
	*fe = (struct fetch_entry){ .tag = tag, .gpa = r.gpa & GUEST_PAGE_MASK, .global = r.global,
				    .epoch = r.global ? ip->epoch_all : ip->epoch_local };
	return r.gpa;
}
