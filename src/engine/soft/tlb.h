/*
 * What a vCPU remembers of page walks, behind the TLB that translated code reads.
 *
 *   vcpu.tlb     4 KiB pages of the current address space, ready for use: host addresses
 *   walk cache   results of walks, tagged by PCID: they outlive CR3 writes that keep them (SDM vol. 3 4.10)
 *
 * An entry bears the clock of its fill and counts while no flush that concerns it is younger, so that flushes of
 * a PCID or of everything cost nothing. Of what depends on the host it holds two things that vcpu.tlb was told:
 * where the page lies (a change of the map flushes everything), and that it may be written past the slow path
 * (until anybody asks for such permissions back: then no older one counts).
 */
#ifndef VIXEN_ENGINE_SOFT_TLB_H
#define VIXEN_ENGINE_SOFT_TLB_H

#include "cpu/mmu.h"
#include "engine/soft/soft.h"

#define WALK_BITS 15
#define WALK_ENTRIES (1u << WALK_BITS)
#define WALK_PCIDS 4096u
#define WALK_GLOBAL WALK_PCIDS		/* in place of a PCID */
#define TLB_LIST 2048			/* entries of vcpu.tlb that a CR3 write has to clear */
#define TLB_GROUP 64u			/* entries that tlb_sweep() looks at together */

/* Who asks: enum tlb_mode for data, and these. */
enum { WALK_FETCH = TLB_MODES, WALK_FETCH_USER, WALK_KINDS };

struct walk_entry {
	uint64_t va_kind;	/* page, and enum above in bits 3..0 */
	uint64_t gpa;		/* page, and WALK_* flags below */
	uint64_t stamp;		/* 0: unused */
	uint64_t addend;	/* as tlb_entry's; 0: not known */
	uint64_t write_stamp;	/* when it was given an entry for writing, 0: it was not */
	uint32_t tag;		/* PCID or WALK_GLOBAL */
};
enum { WALK_WRITABLE = 1, WALK_DIRTY = 2, WALK_IS_GLOBAL = 4 };
enum { TLB_USED = 1, TLB_GLOBAL = 2, TLB_LISTED = 4 /* in walk_cache.list */ };	/* walk_cache.info */

struct walk_cache {
	struct walk_entry e[WALK_ENTRIES];
	uint64_t clock;				/* counts flushes */
	uint64_t flushed_all, flushed_local;	/* when: everything, all that is not global */
	uint64_t flushed[WALK_PCIDS];
	uint64_t writes_dropped;		/* when write permissions were last asked back */
	uint8_t info[TLB_MODES][TLB_ENTRIES];	/* of vcpu.tlb: TLB_* */
	uint64_t touched[TLB_MODES][TLB_ENTRIES / TLB_GROUP / 64];	/* a bit for each group with entries in use */
	/* Where pages larger than 4 KiB were met: INVLPG of any address in one takes all of it along.
	 * Bit filters by 2 MiB (4 MiB counts as two) and by 1 GiB. */
	uint64_t large[512], huge[16];
	uint32_t list[TLB_LIST];		/* mode * TLB_ENTRIES + index of those that hold local translations */
	unsigned list_count;			/* > TLB_LIST: any may */
};

static inline struct walk_entry *walk_slot(struct walk_cache *w, uint64_t va_kind, unsigned tag)
{
	uint64_t key = (va_kind ^ va_kind >> 12 ^ (uint64_t)tag << 40) * 0x9e3779b97f4a7c15ull;

	return &w->e[key >> (64 - WALK_BITS)];
}

static inline bool walk_fresh(const struct walk_cache *w, const struct walk_entry *e)
{
	if (e->stamp <= w->flushed_all)
		return false;
	return e->tag == WALK_GLOBAL || (e->stamp > w->flushed_local && e->stamp > w->flushed[e->tag]);
}

#define CR3_KEEP (1ull << 63)	/* written with CR4.PCIDE set: flush nothing */
static inline unsigned current_pcid(const struct vcpu *v) { return v->s.cr4 & CR4_PCIDE ? v->s.cr3 & 0xfff : 0; }

/*
 * code_page.place: the one linear page and tag by which a page of RAM was entered for writing since its code was last
 * watched, in any vCPU and mode. Whoever watches its code finds the entries there, and need not search for them.
 *
 *   63: 1 | 59..15: bits 56..12 of the address | 12..0: tag
 */
#define PLACE_NONE 0ull
#define PLACE_MANY (~0ull)		/* more than one, and so anywhere */
static inline uint64_t tlb_place(const struct vcpu *v, uint64_t va, bool global)
{
	return 1ull << 63 | (va >> GUEST_PAGE_SHIFT) << 19 >> 4 | (global ? WALK_GLOBAL : current_pcid(v));
}
static inline uint64_t place_va(uint64_t place)
{
	return (uint64_t)((int64_t)(place << 4) >> 19) << GUEST_PAGE_SHIFT;
}

static inline void tlb_list(struct walk_cache *w, unsigned mode, unsigned index)
{
	if (w->list_count >= TLB_LIST) {
		w->list_count = TLB_LIST + 1;
		return;
	}
	w->list[w->list_count++] = mode * TLB_ENTRIES + index;
	w->info[mode][index] |= TLB_LISTED;
}

/* Fills v->tlb[mode] for a page: for reading, and for writing or not. */
static inline void tlb_put(struct vcpu *v, struct walk_cache *w, unsigned mode, uint64_t page, uint64_t addend,
			   bool write, bool global)
{
	unsigned index = tlb_index(page), group = index / TLB_GROUP;
	uint8_t *info = &w->info[mode][index];

	v->tlb[mode][TLB_READ][index] = (struct tlb_entry){ page, addend };
	v->tlb[mode][TLB_WRITE][index] = (struct tlb_entry){ write ? page : tlb_invalid(index), addend };
	w->touched[mode][group / 64] |= 1ull << (group % 64);
	*info = (*info & TLB_LISTED) | TLB_USED | (global ? TLB_GLOBAL : 0);
	if (!global && !(*info & TLB_LISTED))
		tlb_list(w, mode, index);
}

/* Once, for zeroed memory. */
void tlb_init(struct vcpu *v);
/* As mmu_walk(); *out is complete only in gpa, writable, dirty and global. */
bool tlb_walk(struct vcpu *v, unsigned kind, uint64_t va, bool write, struct mmu_result *out, uint32_t *error);
/* After tlb_walk(): what v->tlb was told of that page. */
void tlb_remember(struct vcpu *v, unsigned kind, uint64_t va, bool global, uint64_t addend, bool write);
/* Before a page gets an entry for writing at `place`, and after code_page.writers has this vCPU. */
void tlb_place_note(struct vcpu *v, const struct page_info *pi, uint64_t place);
/* For translated code: fills v->tlb[mode] for an access to `va` that missed from what is remembered; false: C has to
 * look, by mem_fill(). Uses general registers only, so that the guest's vector state may be live (tlb_refill.c). */
bool tlb_refill_read(struct vcpu *v, uint64_t va, unsigned mode);
bool tlb_refill_write(struct vcpu *v, uint64_t va, unsigned mode);
/* Clears both entries of that index. */
static inline void tlb_clear(struct vcpu *v, struct walk_cache *w, unsigned mode, unsigned index)
{
	v->tlb[mode][TLB_READ][index].tag = v->tlb[mode][TLB_WRITE][index].tag = tlb_invalid(index);
	w->info[mode][index] &= TLB_LISTED;
}
/* Calls fn for all entries of v->tlb that are in use. */
typedef void tlb_sweep_fn(struct vcpu *v, unsigned mode, unsigned index, uint64_t arg);
void tlb_sweep(struct vcpu *v, tlb_sweep_fn *fn, uint64_t arg);
/* Drops what is not global. */
void tlb_drop_local(struct vcpu *v);
/* MOV to CR3 in effect: s.cr3 is the new one. keep: bit 63 was set with CR4.PCIDE. */
void tlb_switch(struct vcpu *v, bool keep);
/* INVPCID types 0 and 1. */
void tlb_flush_pcid_page(struct vcpu *v, unsigned pcid, uint64_t va);
void tlb_flush_pcid(struct vcpu *v, unsigned pcid);

#endif
