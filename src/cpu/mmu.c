/*
 * The page walk.
 *
 *   5-level  PML5 47..56 -> 4-level  PML4 39..47 -> PDPT 30..38 -> PD 21..29 -> PT 12..20
 *   PAE      state.pdpte[30..31] -> PD 21..29 -> PT 12..20
 *   32-bit   PD 22..31 -> PT 12..21, entries of 4 bytes
 *
 * Bits: 0 P | 1 R/W | 2 U/S | 5 A | 6 D | 7 PS | 8 G | 59..62 protection key | 63 XD
 */
#include "cpu/mmu.h"

#include <stdatomic.h>

#include "memory/map.h"

#define PTE_P 1ull
#define PTE_W 2ull
#define PTE_U 4ull
#define PTE_A 0x20ull
#define PTE_D 0x40ull
#define PTE_PS 0x80ull
#define PTE_G 0x100ull
#define PTE_NX (1ull << 63)
#define PTE_PHYS 0x000ffffffffff000ull
#define PHYS_RESERVED (PTE_PHYS & ~((1ull << MMU_PHYS_BITS) - 1))
#define PAE_RESERVED 0x7ff0000000000000ull	/* 62..52, PAE paging only */
#define MAX_LEVELS 5

struct entry {
	void *hva;		/* NULL: not in writable RAM, A and D cannot be set */
	uint32_t ram_page;
	uint64_t value;
};

struct walk {
	const struct x86_state *s;
	struct map *m;
	uint64_t gva;
	unsigned access;
	unsigned entry_size;	/* 4 or 8 */
	bool pae;		/* PAE paging proper: 32-bit addresses, PDPTEs cached */
	struct entry entry[MAX_LEVELS];
	unsigned depth;		/* entries used */
	uint64_t permit;	/* AND of the levels' W and U */
	bool nx;
	uint32_t error;
};

enum outcome { WALK_DONE, WALK_FAULT, WALK_AGAIN };

static uint32_t error_base(const struct walk *w)
{
	const struct x86_state *s = w->s;
	uint32_t code = 0;

	if (w->access & MMU_WRITE)
		code |= PF_W;
	if (w->access & MMU_USER)
		code |= PF_U;
	if (w->access & MMU_FETCH && ((s->cr4 & CR4_PAE && s->efer & EFER_NXE) || s->cr4 & CR4_SMEP))
		code |= PF_I;
	return code;
}

static enum outcome fault(struct walk *w, uint32_t why)
{
	w->error = error_base(w) | why;
	return WALK_FAULT;
}

/* A table outside RAM reads as its device answers: all ones in a hole, which is a reserved-bit fault. */
static void entry_read(struct walk *w, struct entry *e, uint64_t gpa)
{
	struct page_info pi = map_page(w->m, gpa);
	unsigned offset = gpa & ~GUEST_PAGE_MASK;
	const uint8_t *from = pi.rw_hva ? pi.rw_hva : pi.ro_hva;

	e->hva = pi.rw_hva ? pi.rw_hva + offset : NULL;
	e->ram_page = pi.ram_page;
	if (!from)
		e->value = map_load(w->m, gpa, w->entry_size);
	else if (w->entry_size == 4)
		e->value = atomic_load_explicit((const _Atomic uint32_t *)(from + offset), memory_order_relaxed);
	else
		e->value = atomic_load_explicit((const _Atomic uint64_t *)(from + offset), memory_order_relaxed);
}

/* Sets bits unless the entry changed meanwhile. */
static bool entry_mark(struct walk *w, struct entry *e, uint64_t bits)
{
	bool done;

	if ((e->value & bits) == bits || !e->hva)
		return true;
	if (w->entry_size == 4) {
		uint32_t old = e->value;

		done = atomic_compare_exchange_strong((_Atomic uint32_t *)e->hva, &old, old | bits);
	} else {
		uint64_t old = e->value;

		done = atomic_compare_exchange_strong((_Atomic uint64_t *)e->hva, &old, old | bits);
	}
	if (done) {
		e->value |= bits;
		map_mark_dirty(w->m, e->ram_page);
	}
	return done;
}

/* Reserved bits of an entry at a level; shift is that of the page if it is a leaf. */
static uint64_t reserved_bits(const struct walk *w, unsigned shift, bool leaf)
{
	uint64_t bits = PHYS_RESERVED;

	if (w->entry_size == 4)
		return leaf && shift == 22 ? 1u << 21 : 0;	/* PSE-36: 20..13 are physical 39..32 */
	if (w->pae)
		bits |= PAE_RESERVED;
	if (!(w->s->efer & EFER_NXE))
		bits |= PTE_NX;
	if (leaf && shift > 12)
		bits |= ((1ull << shift) - 1) & ~0x1fffull;	/* bit 12 is PAT */
	if (!leaf && shift >= 39)
		bits |= PTE_PS;
	return bits;
}

static bool is_leaf(const struct walk *w, uint64_t value, unsigned shift)
{
	if (shift == 12)
		return true;
	if (!(value & PTE_PS))
		return false;
	if (w->entry_size == 4)
		return w->s->cr4 & CR4_PSE;
	return shift == 21 || (shift == 30 && !w->pae);
}

static uint64_t leaf_gpa(const struct walk *w, uint64_t value, unsigned shift)
{
	uint64_t base = value & PTE_PHYS, offset = w->gva & ((1ull << shift) - 1);

	if (w->entry_size == 4) {
		base = value & 0xfffff000u;
		if (shift == 22)
			base = (value & 0xffc00000u) | (value >> 13 & 0xff) << 32;
	}
	return (base & ~((1ull << shift) - 1)) | offset;
}

/* SDM vol. 3 4.6.2 */
static bool key_denies(const struct walk *w, uint64_t leaf, bool write)
{
	uint32_t key = leaf >> 59 & 15, rights = w->s->pkru >> 2 * key & 3;

	if (!(w->s->cr4 & CR4_PKE) || !state_long(w->s) || w->access & MMU_FETCH || !(w->permit & PTE_U))
		return false;
	if (rights & 1)
		return true;
	return write && rights & 2 && (w->access & MMU_USER || w->s->cr0 & CR0_WP);
}

static bool may_write(const struct walk *w)
{
	return w->permit & PTE_W || (!(w->access & MMU_USER) && !(w->s->cr0 & CR0_WP));
}

/* SDM vol. 3 4.6.1 */
static bool permitted(const struct walk *w)
{
	const struct x86_state *s = w->s;
	bool user_page = w->permit & PTE_U;

	if (w->access & MMU_USER && !user_page)
		return false;
	if (w->access & MMU_WRITE && !may_write(w))
		return false;
	if (w->access & MMU_FETCH)
		return !w->nx && !(user_page && !(w->access & MMU_USER) && s->cr4 & CR4_SMEP);
	return !(w->access & MMU_SMAP && s->cr4 & CR4_SMAP && user_page);
}

/* Accessed everywhere, dirty at the leaf. */
static enum outcome mark_used(struct walk *w)
{
	for (unsigned i = 0; i < w->depth; i++) {
		uint64_t bits = PTE_A;

		if (i == w->depth - 1 && w->access & MMU_WRITE)
			bits |= PTE_D;
		if (!entry_mark(w, &w->entry[i], bits))
			return WALK_AGAIN;
	}
	return WALK_DONE;
}

static enum outcome finish(struct walk *w, unsigned shift, struct mmu_result *out)
{
	uint64_t leaf = w->entry[w->depth - 1].value;

	if (!permitted(w))
		return fault(w, PF_P);
	if (key_denies(w, leaf, w->access & MMU_WRITE))
		return fault(w, PF_P | PF_PK);
	if (!(w->access & MMU_PEEK) && mark_used(w) == WALK_AGAIN)
		return WALK_AGAIN;
	leaf = w->entry[w->depth - 1].value;
	out->gpa = leaf_gpa(w, leaf, shift);
	out->page_shift = shift;
	out->writable = may_write(w) && !key_denies(w, leaf, true);
	out->user = w->permit & PTE_U;
	out->nx = w->nx;
	out->global = leaf & PTE_G && w->s->cr4 & CR4_PGE;
	out->dirty = leaf & PTE_D;
	return WALK_DONE;
}

/* From the table at gpa, whose entries each cover 1 << shift bytes, down. */
static enum outcome descend(struct walk *w, uint64_t table, unsigned shift, struct mmu_result *out)
{
	unsigned index_bits = w->entry_size == 4 ? 10 : 9;

	w->permit = PTE_W | PTE_U;
	w->nx = false;
	for (w->depth = 0;; shift -= index_bits) {
		struct entry *e = &w->entry[w->depth++];
		uint64_t index = w->gva >> shift & ((1u << index_bits) - 1);
		bool leaf;

		entry_read(w, e, table + index * w->entry_size);
		if (!(e->value & PTE_P))
			return fault(w, 0);
		leaf = is_leaf(w, e->value, shift);
		if (e->value & reserved_bits(w, shift, leaf))
			return fault(w, PF_P | PF_RSVD);
		w->permit &= e->value;
		w->nx |= w->entry_size == 8 && e->value & PTE_NX;
		if (leaf)
			return finish(w, shift, out);
		table = e->value & (w->entry_size == 4 ? 0xfffff000u : PTE_PHYS);
	}
}

static enum outcome walk_once(struct walk *w, struct mmu_result *out)
{
	const struct x86_state *s = w->s;

	if (state_long(s)) {
		w->entry_size = 8;
		return descend(w, s->cr3 & PTE_PHYS, s->cr4 & CR4_LA57 ? 48 : 39, out);
	}
	w->gva &= 0xffffffffu;
	if (s->cr4 & CR4_PAE) {
		uint64_t pdpte = s->pdpte[w->gva >> 30];

		w->entry_size = 8;
		w->pae = true;
		if (!(pdpte & PTE_P))
			return fault(w, 0);
		return descend(w, pdpte & PTE_PHYS, 21, out);
	}
	w->entry_size = 4;
	return descend(w, s->cr3 & 0xfffff000u, 22, out);
}

bool mmu_walk(const struct x86_state *s, struct map *m, uint64_t gva, unsigned access, struct mmu_result *out,
	      uint32_t *error)
{
	struct walk w = { .s = s, .m = m, .gva = gva, .access = access };
	enum outcome o;

	if (!(s->cr0 & CR0_PG)) {
		*out = (struct mmu_result){ .gpa = gva & 0xffffffffu, .page_shift = 12, .writable = true, .user = true,
					    .dirty = true };
		return true;
	}
	do {		/* again only when somebody changed an entry in between: they made progress */
		w.gva = gva;
		o = walk_once(&w, out);
	} while (o == WALK_AGAIN);
	if (o == WALK_FAULT)
		*error = w.error;
	return o == WALK_DONE;
}

bool mmu_load_pdpte(struct map *m, uint64_t cr3, uint64_t out[4])
{
	uint64_t reserved = PHYS_RESERVED | PAE_RESERVED | PTE_NX | 0x1e6;

	for (unsigned i = 0; i < 4; i++) {
		out[i] = map_load(m, (cr3 & 0xffffffe0u) + 8 * i, 8);
		if (out[i] & PTE_P && out[i] & reserved)
			return false;
	}
	return true;
}
