/*
 * The page walk, SDM vol. 3 chapter 4: none, 32-bit, PAE, 4-level, 5-level.
 *
 * Accessed and dirty bits are set in guest RAM by compare-and-swap, so that
 * several vCPUs and the guest itself may race.  Nothing is cached here; PAE's
 * PDPTEs come from state.pdpte.  Any thread that may read `s`.
 */
#ifndef VIXEN_CPU_MMU_H
#define VIXEN_CPU_MMU_H

#include <stdbool.h>
#include <stdint.h>

#include "cpu/state.h"

struct map;

/* What kind of access; a plain supervisor read is 0. */
#define MMU_WRITE 1u
#define MMU_USER 2u		/* CPL 3, and not an implicit supervisor access */
#define MMU_FETCH 4u
#define MMU_SMAP 8u		/* supervisor data access to which SMAP applies: CR4.SMAP and (AC clear or implicit) */
#define MMU_PEEK 16u		/* sets no accessed or dirty bit: debuggers, traces */

/* #PF error code */
#define PF_P 1u
#define PF_W 2u
#define PF_U 4u
#define PF_RSVD 8u
#define PF_I 16u
#define PF_PK 32u

struct mmu_result {
	uint64_t gpa;		/* of gva itself, not only of the page */
	uint8_t page_shift;	/* 12, 21, 22 or 30; 12 without paging */
	bool writable;		/* this privilege may write */
	bool user;		/* U/S set at every level */
	bool nx;
	bool global;
	bool dirty;		/* D is set (now) */
};

/* false: page fault, *error is the code to push. gva must be canonical (checked by the segment unit). */
bool mmu_walk(const struct x86_state *s, struct map *m, uint64_t gva, unsigned access, struct mmu_result *out,
	      uint32_t *error);

/* Reads the four PDPTEs that CR3 points to into out (SDM vol. 3 4.4.1). false: reserved bits set, #GP(0). */
bool mmu_load_pdpte(struct map *m, uint64_t cr3, uint64_t out[4]);

#define MMU_PHYS_BITS 46	/* MAXPHYADDR: bits above are reserved in every entry */

#endif
