/*
 * What a vCPU remembers of page walks, behind the TLB that translated code reads.
 *
 *   vcpu.tlb     4 KiB pages of the current address space, ready for use: host addresses
 *   walk cache   results of walks, tagged by PCID: they outlive CR3 writes that keep them (SDM vol. 3 4.10)
 *
 * An entry bears the clock of its fill and counts while no flush that concerns it is younger, so that flushes of
 * a PCID or of everything cost nothing. It holds guest-physical addresses only: what depends on the host (RAM or
 * device, code pages, dirty log) is asked anew when vcpu.tlb is filled from it.
 */
#ifndef VIXEN_ENGINE_SOFT_TLB_H
#define VIXEN_ENGINE_SOFT_TLB_H

#include "cpu/mmu.h"
#include "engine/soft/soft.h"

#define WALK_BITS 13
#define WALK_ENTRIES (1u << WALK_BITS)
#define WALK_PCIDS 4096u
#define WALK_GLOBAL WALK_PCIDS		/* in place of a PCID */
#define TLB_LIST 512			/* entries of vcpu.tlb that a CR3 write has to clear */

/* Who asks: enum tlb_mode for data, and these. */
enum { WALK_FETCH = TLB_MODES, WALK_FETCH_USER, WALK_KINDS };

struct walk_entry {
	uint64_t va_kind;	/* page, and enum above in bits 3..0 */
	uint64_t gpa;		/* page, and WALK_* flags below */
	uint64_t stamp;		/* 0: unused */
	uint32_t tag;		/* PCID or WALK_GLOBAL */
};
enum { WALK_WRITABLE = 1, WALK_DIRTY = 2, WALK_IS_GLOBAL = 4 };

struct walk_cache {
	struct walk_entry e[WALK_ENTRIES];
	uint64_t clock;				/* counts flushes */
	uint64_t flushed_all, flushed_local;	/* when: everything, all that is not global */
	uint64_t flushed[WALK_PCIDS];
	/* Where pages larger than 4 KiB were met: INVLPG of any address in one takes all of it along.
	 * Bit filters by 2 MiB (4 MiB counts as two) and by 1 GiB. */
	uint64_t large[512], huge[16];
	uint32_t list[TLB_LIST];		/* indices into vcpu.tlb that hold local translations */
	unsigned list_count;			/* > TLB_LIST: any may */
};

/* As mmu_walk(); *out is complete only in gpa, writable, dirty and global. */
bool tlb_walk(struct vcpu *v, unsigned kind, uint64_t va, bool write, struct mmu_result *out, uint32_t *error);
/* The entry at `index` of v->tlb[0..] is about to hold a translation that is not global. */
void tlb_note_local(struct vcpu *v, unsigned index);
/* MOV to CR3 in effect: s.cr3 is the new one. keep: bit 63 was set with CR4.PCIDE. */
void tlb_switch(struct vcpu *v, bool keep);
/* INVPCID types 0 and 1. */
void tlb_flush_pcid_page(struct vcpu *v, unsigned pcid, uint64_t va);
void tlb_flush_pcid(struct vcpu *v, unsigned pcid);

#endif
