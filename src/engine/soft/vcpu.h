/*
 * A software vCPU: architectural state, its TLB, and the ways to touch guest memory.
 *
 * Interpreter and translator work on the same struct; translated code addresses
 * `s` and `tlb` by constant offsets, so they come first.
 *
 * Faults: an instruction that faults calls one of the vcpu_raise_*() functions,
 * which do not return: they longjmp to the run loop, which delivers the exception
 * with `s` as it was at the start of the instruction.  So: read and check all that
 * can fault first, commit registers, RIP and flags last (REP strings commit each
 * iteration, as the SDM asks).
 */
#ifndef VIXEN_ENGINE_SOFT_VCPU_H
#define VIXEN_ENGINE_SOFT_VCPU_H

#include <setjmp.h>
#include <stdatomic.h>

#include "cpu/insn.h"
#include "cpu/state.h"
#include "engine/engine.h"
#include "engine/soft/counters.h"
#include "memory/map.h"

/* One entry maps one 4 KiB linear page. An access of n bytes at va hits when (va - tag) <= 4096 - n
 * (unsigned): one comparison refuses wrong pages, non-canonical addresses and page crossings.
 * An unused entry's tag is tlb_invalid(index): a page of another index, so that no address that is looked up
 * here can hit it (no constant will do: the guest may use any 64-bit value). Zeroed memory is unused, but for entry 0.
 * A page has an entry for reading and, at the same index, one for writing: valid only if the PTE is writable and dirty,
 * the page is RAM, holds no translated or decoded code, and the dirty log has it. MMIO is never here. */
struct tlb_entry {
	uint64_t tag;
	uint64_t addend;	/* host address - linear address */
};
enum { TLB_READ, TLB_WRITE };
enum tlb_mode { TLB_USER, TLB_KERNEL /* SMAP on, AC clear */, TLB_KERNEL_AC /* SMAP off or AC set */, TLB_MODES };
#define TLB_BITS 16
#define TLB_ENTRIES (1u << TLB_BITS)
static inline uint64_t tlb_invalid(unsigned index) { return index ? 0 : GUEST_PAGE_SIZE; }
static inline unsigned tlb_index(uint64_t va) { return (va >> GUEST_PAGE_SHIFT) & (TLB_ENTRIES - 1); }

struct soft_engine;
struct translator;	/* per VM, engine/soft/translate.h */

enum { REQUEST_KICK = 1, REQUEST_LAYOUT = 2 /* the map's layout is another */, REQUEST_EXIT = 4, REQUEST_DROP_WRITES = 8,
       REQUEST_CODE = 16 /* translated code went stale; the translator's own */ };

/* What translated code reaches by constant offsets besides s and tlb (translate_private.h). */
#define TRANSLATE_MODES 32
enum { FSGSBASE_LA48 = 1, FSGSBASE_LA57 };
#define SYSCALL_LA57 4u
#define TRANSLATE_GROUPS 16
#define TRANSLATE_STREAMS 16
#define PAGE_CELLS 32768u
struct vcpu_hot {
	uint64_t page;			/* linear address of the page the running block lies in */
	uint64_t save_rax, save_flags, save_rcx, save_value;
	uint64_t t0, t1;		/* the temporaries on exit (t0: also on entry) */
	uint64_t exit_ptr;		/* where the exit's inline data are */
	uint64_t enter_target;
	uint64_t group[TRANSLATE_GROUPS];		/* addends that groups of accesses share (translate_group.c); of one run of a block */
	uint64_t stream_addend[TRANSLATE_STREAMS];	/* of a loop's accesses (translate_loop.c), likewise */
	int64_t stream_limit[TRANSLATE_STREAMS];
	uint64_t c_rsp, rsp;		/* of C while translated code runs; of translated code while it does not */
	uint64_t return_sp[TRANSLATE_MODES];	/* of the return stacks of other modes: translate_return.c */
	uint64_t call_target;		/* host code an indirect call is about to enter */
	uint32_t branch_info;		/* of the last look-up that was not inline: BRANCH_INFO */
	_Atomic uint16_t return_limit;	/* translated code leaves to C if SP is lower; a request makes it the highest */
	void *jump[TRANSLATE_MODES];	/* linear RIP -> host code, by translation mode */
	uint32_t exit_reason;
	uint32_t host_mxcsr;
	uint32_t fpu_high;		/* of AVX-512's components, those that live in the host registers as well */
	uint64_t cr3_refused;		/* in 64-bit code: bits that a write of CR3 faults by */
	uint8_t fpu_live;		/* guest x87/SSE/AVX state is in the host registers */
	uint8_t fpu_want;		/* load it on entry */
	uint8_t smap;			/* CR4.SMAP */
	uint8_t fsgsbase;		/* FSGSBASE_*; 0: CR4.FSGSBASE is clear */
	uint8_t syscall_mode;		/* SYSCALL and SYSRET run as described here: the kernel's TLB mode, never 0, with
					 * SYSCALL_LA57 or not; 0: they do not */
	uint64_t syscall_cs, syscall_ss, sysret_cs, sysret_ss;	/* limit, selector, attributes */
	uint8_t segment_flat[2];	/* 32-bit code may use FS, GS as base + offset modulo 4 GiB */
	int32_t pauses_left;		/* PAUSEs until the thread gives its core away */
	uint8_t irq_hint;		/* a kick came since interrupts were last looked at with IF set */
	uint64_t page_at[PAGE_CELLS];	/* where a page of translated code is mapped now: translate_link.c */
};

struct vcpu {
	struct x86_state s;
	struct vcpu_hot hot;
	struct tlb_entry tlb[TLB_MODES][2][TLB_ENTRIES];	/* [][TLB_READ], [][TLB_WRITE] */
	_Atomic uint32_t request;	/* REQUEST_*: set by any thread, polled at block boundaries */
	uint8_t tlb_mode;		/* enum tlb_mode for data accesses at the current CPL */
	uint8_t insn_mode;		/* enum insn_mode of CS */
	bool in_smm;
	struct soft_engine *en;
	struct vcpu_wiring w;
	jmp_buf fault_jmp;		/* where vcpu_raise_*() lands */
	struct { uint8_t vector; bool has_error; uint32_t error; uint64_t cr2; } fault;
	void *interp;			/* interpreter's private part (decoded-instruction cache) */
	void *trans;			/* translator's private part */
	struct counters counters;
};

static inline struct tlb_entry *tlb_at(struct vcpu *v, unsigned mode, bool write, uint64_t va)
{
	return &v->tlb[mode][write][tlb_index(va)];
}
static inline bool tlb_hit(const struct tlb_entry *t, uint64_t va, unsigned n) { return va - t->tag <= GUEST_PAGE_SIZE - n; }

_Noreturn void vcpu_raise(struct vcpu *v, uint8_t vector);
_Noreturn void vcpu_raise_error(struct vcpu *v, uint8_t vector, uint32_t error);
_Noreturn void vcpu_raise_pf(struct vcpu *v, uint64_t gva, uint32_t error);
/* Ends the instruction as executed (state is committed) and returns to the run loop. */
_Noreturn void vcpu_exit_insn(struct vcpu *v);

/* Logical accesses at the current CPL: segment checks (limits, canonical, #SS/#GP), alignment check (AC),
 * paging, MMIO. size 1, 2, 4, 8. */
uint64_t mem_load(struct vcpu *v, unsigned seg, uint64_t offset, unsigned size);
void mem_store(struct vcpu *v, unsigned seg, uint64_t offset, unsigned size, uint64_t value);
/* Any length up to 4096 bytes. store_n checks all pages before the first byte is written. */
void mem_load_n(struct vcpu *v, unsigned seg, uint64_t offset, void *buf, unsigned n);
void mem_store_n(struct vcpu *v, unsigned seg, uint64_t offset, const void *buf, unsigned n);
/* What an access faults by before its page is looked at: the segment's limit, or no address at all. */
void mem_check_address(struct vcpu *v, unsigned seg, uint64_t offset, unsigned n, bool write);
/* Faults as a store would, writes nothing. */
void mem_probe_store(struct vcpu *v, unsigned seg, uint64_t offset, unsigned n);
/* Read-modify-write: a host pointer that is valid for an atomic access of n bytes, aligned or not, inside
 * one writable RAM page; NULL for MMIO, page crossings and code pages (use load and store, under
 * soft_engine's split lock if LOCK is asked for). Faults as a store would. */
void *mem_rmw_ptr(struct vcpu *v, unsigned seg, uint64_t offset, unsigned n);
/* Effective address of insn->mem without the segment base, wrapped to the address size. */
uint64_t mem_effective(const struct vcpu *v, const struct insn *in);
/* Supervisor accesses by linear address (descriptor tables, TSS, interrupt stacks): ignore CPL and SMAP. */
uint64_t sys_load(struct vcpu *v, uint64_t gva, unsigned size);
void sys_store(struct vcpu *v, uint64_t gva, unsigned size, uint64_t value);

void tlb_flush_all(struct vcpu *v);
void tlb_flush_non_global(struct vcpu *v);
void tlb_flush_page(struct vcpu *v, uint64_t gva);
/* Recomputes tlb_mode and insn_mode after CPL, CR0, CR4, EFER, CS or AC changed. */
void vcpu_update_mode(struct vcpu *v);
/* After CR0, CR4, EFER, STAR or SFMASK changed: what translated system instructions go by. */
void vcpu_update_system(struct vcpu *v);

/* Executes exactly one instruction at CS:RIP of the current mode, with faults delivered (never longjmps out).
 * The translator's fallback. Returns false if the run loop must look up (halt, shutdown, exit). */
bool interp_step(struct vcpu *v);

/* x87, MMX, SSE..AVX2, crypto, XSAVE family: engine/soft/fp_*.c. Executes the decoded instruction including
 * its gating (CR0.EM/TS, CR4.OSFXSR/OSXSAVE, XCR0) and operands; RIP is advanced by the caller.
 * false: not one of its instructions. */
bool fp_execute(struct vcpu *v, const struct insn *in);

#endif
