/*
 * The inlined fast path of guest memory accesses; mem.c is the rest.
 */
#ifndef VIXEN_ENGINE_SOFT_MEM_H
#define VIXEN_ENGINE_SOFT_MEM_H

#include <string.h>

#include "engine/soft/interp.h"

/* Segment checks for all but the plain cases; raises #GP or #SS. */
void seg_check_access(struct vcpu *v, unsigned seg, uint64_t offset, unsigned n, bool write);
uint64_t mem_load_slow(struct vcpu *v, unsigned seg, uint64_t va, unsigned size);
void mem_store_slow(struct vcpu *v, unsigned seg, uint64_t va, unsigned size, uint64_t value);
/* As mem_rmw_ptr, but also for code pages: mem_rmw_done() must follow the write. */
void *mem_rmw_any(struct vcpu *v, unsigned seg, uint64_t offset, unsigned n);
void mem_rmw_report(struct vcpu *v);
static inline void mem_rmw_done(struct vcpu *v)
{
	if (unlikely(interp_of(v)->rmw_code))
		mem_rmw_report(v);
}
/* A host pointer for reading or writing [va, va+n), inside one page of RAM without watchpoints; NULL: go
 * byte by byte. Faults like an access would. For bulk string operations. */
uint8_t *mem_bulk_ptr(struct vcpu *v, unsigned seg, uint64_t va, unsigned n, bool write);
/* Fills the TLB entry for an access to the page of va, which is canonical; raises #PF. False: the access has to
 * take the slow path (device, ROM, code page, watchpoint). */
bool mem_fill(struct vcpu *v, uint64_t va, bool write);
/* As mem_fill(), but does nothing that would show if the access were never made: no fault, no dirty bit. False also if
 * the entry is there already. */
bool mem_fill_quiet(struct vcpu *v, uint64_t va, bool write);
/* Instruction fetch: translates one page of CS; raises #PF. Returns the page's GPA. */
uint64_t mem_fetch_gpa(struct vcpu *v, uint64_t va);
/* Right after mem_fetch_gpa(): is that page global? */
static inline bool mem_fetch_global(struct vcpu *v, uint64_t va)
{
	return interp_of(v)->fetch[(va >> GUEST_PAGE_SHIFT) % FETCH_ENTRIES].global;
}
/* Accesses by linear address at the privilege of `mode`. */
uint64_t lin_load(struct vcpu *v, enum tlb_mode mode, uint64_t va, unsigned size);
void lin_store(struct vcpu *v, enum tlb_mode mode, uint64_t va, unsigned size, uint64_t value);
/* Faults as a store of n bytes by the supervisor would. */
void sys_probe(struct vcpu *v, uint64_t gva, unsigned n);

static inline bool va_canonical(const struct vcpu *v, uint64_t va)
{
	unsigned sh = v->s.cr4 & CR4_LA57 ? 7 : 16;
	return (uint64_t)((int64_t)(va << sh) >> sh) == va;
}

static inline uint64_t mem_linear(struct vcpu *v, unsigned seg, uint64_t off, unsigned n, bool write)
{
	const struct x86_segment *sg = &v->s.seg[seg];

	if (v->insn_mode == INSN_64)
		return seg >= SEG_FS ? sg->base + off : off;
	/* present, data, expand-up, writable: only the limit matters */
	if (unlikely((sg->attr & 0x9e) != 0x92 || off + n - 1 > sg->limit))
		seg_check_access(v, seg, off, n, write);
	return (uint32_t)(sg->base + off);
}

static inline uint64_t hva_load(const void *p, unsigned size)
{
	uint8_t b; uint16_t w; uint32_t d; uint64_t q;

	switch (size) {
	case 1: memcpy(&b, p, 1); return b;
	case 2: memcpy(&w, p, 2); return w;
	case 4: memcpy(&d, p, 4); return d;
	default: memcpy(&q, p, 8); return q;
	}
}

/* x86 stores need no alignment. volatile: one store of that size, not bytes. */
typedef uint16_t __attribute__((aligned(1))) store16_t;
typedef uint32_t __attribute__((aligned(1))) store32_t;
typedef uint64_t __attribute__((aligned(1))) store64_t;

static inline void hva_store(void *p, unsigned size, uint64_t value)
{
	switch (size) {
	case 1: *(volatile uint8_t *)p = (uint8_t)value; break;
	case 2: *(volatile store16_t *)p = (uint16_t)value; break;
	case 4: *(volatile store32_t *)p = (uint32_t)value; break;
	default: *(volatile store64_t *)p = value; break;
	}
}

static inline uint64_t mem_ld(struct vcpu *v, unsigned seg, uint64_t off, unsigned size)
{
	uint64_t va = mem_linear(v, seg, off, size, false);
	const struct tlb_entry *t = tlb_at(v, v->tlb_mode, false, va);

	if (likely(tlb_hit(t, va, size)) && !unlikely(interp_of(v)->ac_check))
		return hva_load((const void *)(va + t->addend), size);
	return mem_load_slow(v, seg, va, size);
}

static inline void mem_st(struct vcpu *v, unsigned seg, uint64_t off, unsigned size, uint64_t value)
{
	uint64_t va = mem_linear(v, seg, off, size, true);
	const struct tlb_entry *t = tlb_at(v, v->tlb_mode, true, va);

	if (likely(tlb_hit(t, va, size)) && !unlikely(interp_of(v)->ac_check)) {
		hva_store((void *)(va + t->addend), size, value);
		return;
	}
	mem_store_slow(v, seg, va, size, value);
}

/* An offset in the width of the instruction's addresses. */
static inline uint64_t mem_wrap(const struct insn *in, uint64_t offset)
{
	return in->addrsize == 8 ? offset : in->addrsize == 4 ? (uint32_t)offset : (uint16_t)offset;
}

static inline uint64_t mem_ea(const struct vcpu *v, const struct insn *in)
{
	uint64_t ea = (uint64_t)in->mem.disp;

	if (in->mem.base != INSN_REG_NONE)
		ea += v->s.gpr[in->mem.base];
	if (in->mem.index != INSN_REG_NONE)
		ea += v->s.gpr[in->mem.index] << in->mem.scale;
	if (in->mem.rip)
		ea += v->s.rip + in->len;
	return mem_wrap(in, ea);
}

#endif
