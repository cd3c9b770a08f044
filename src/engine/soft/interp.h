/*
 * The interpreter's private part: decoded blocks, pending debug traps, event delivery in flight.
 */
#ifndef VIXEN_ENGINE_SOFT_INTERP_H
#define VIXEN_ENGINE_SOFT_INTERP_H

#include "engine/soft/soft.h"
#include "engine/soft/tlb.h"

typedef void interp_fn(struct vcpu *v, const struct insn *in);

/* Instruction handlers run with s.rip at the start of the instruction. After a handler returns the loop
 * adds in->len, unless the instruction is one that sets RIP itself (op_flags & OPF_RIP). */
enum {
	OPF_RIP = 1,	/* the handler sets RIP */
	OPF_END = 2,	/* ends a decoded block: control flow, or the mode may have changed */
	OPF_CPL0 = 4,	/* CPL 0 or #GP(0) */
	OPF_PE = 8,	/* #UD in real and V86 mode */
};

struct interp_op { interp_fn *fn; uint8_t flags; };
extern const struct interp_op interp_ops[];	/* by enum x86_op; fn NULL: fp_execute() */

struct decoded {
	interp_fn *fn;
	uint8_t len, flags;
	struct insn in;
};

/* A run of instructions inside one page. */
#define BLOCK_MAX 32
struct block {
	uint64_t gpa;		/* of the first byte; ~0: free */
	uint32_t ram_page, version;
	uint8_t mode;		/* enum insn_mode */
	uint8_t count;
	uint16_t bytes;
	struct decoded *insns;
};

#define JUMP_BITS 13
struct jump_entry { uint64_t rip, gpa; struct block *block; uint32_t epoch, key; };

/* Translations of code pages; bit 0 of tag: CPL 3. */
#define FETCH_ENTRIES 256
struct fetch_entry { uint64_t tag, gpa; uint32_t epoch; bool global; };
/* Single pages flushed since the translator last looked; more than FLUSHED_PAGES: it drops everything. */
#define FLUSHED_PAGES 16

#define BLOCK_BITS 15
#define ARENA_INSNS (1u << 17)

/* What CPUID answered, by leaf and subleaf, and what of the state that depended on. */
#define CPUID_MEMO 128
struct cpuid_memo {
	uint32_t leaf, subleaf, out[4];
	bool used;
	uint64_t cr4, xcr0, xss, apic_base;
};

struct interp {
	struct jump_entry jump[1u << JUMP_BITS];	/* linear address -> block, valid for one fetch_epoch */
	struct fetch_entry fetch[FETCH_ENTRIES];
	struct block blocks[1u << BLOCK_BITS];		/* physical address -> block, direct-mapped */
	struct decoded *arena;				/* all decoded instructions; dropped whole when full */
	unsigned arena_used;
	uint32_t fetch_epoch;		/* bumped by TLB flushes */
	uint32_t epoch_all, epoch_local;	/* by flushes of everything; of all but global pages (or everything) */
	uint64_t flushed[FLUSHED_PAGES];
	unsigned flushed_count;
	bool stop_block;		/* leave the block after this instruction: code changed, event due */
	bool slow;			/* one instruction at a time: TF, DR7 */
	bool ac_check;			/* CR0.AM, EFLAGS.AC, CPL 3 */
	bool data_bps;			/* DR7 has data breakpoints enabled */
	bool watched;			/* data_bps, or the debugger watches data */
	bool exec_bps, io_bps;		/* likewise instruction and I/O breakpoints */
	bool in_delivery;		/* an exception is being delivered: a fault inside may double */
	uint8_t delivery_vector;
	bool keep_rf;			/* the instruction loaded RF: do not clear it */
	bool no_trap;			/* the instruction swallows the single-step trap (INT n) */
	bool check_events;		/* look at interrupts before the next block */
	bool split_held;		/* this vCPU holds the engine's split lock */
	bool amd;			/* the model's vendor */
	uint16_t polls;			/* blocks since the last look at interrupts */
	uint8_t soft_len;		/* length of the INT being delivered */
	uint64_t db_pending;		/* DR6 bits for a trap after this instruction */
	_Atomic bool running;		/* inside run(); clear: at a safe point */
	/* A RMW on a code page in flight (mem_rmw_any): reported by mem_rmw_done(). */
	uint32_t rmw_page;
	uint16_t rmw_first, rmw_last;
	bool rmw_code;
	struct walk_cache walks;	/* engine/soft/tlb.h */
	/* engine/soft/debugger.c: what a debugger outside of the guest wants. */
	struct debug_plan plan;
	struct debug_stop stop;		/* why run() is to return EXIT_DEBUG */
	struct debug_marks *marks;	/* breakpoints in effect; NULL: none */
	unsigned watches;		/* points in effect that watch data */
	struct debug_point watch[DEBUG_POINTS];
	struct trace *trace;		/* engine/soft/trace.c */
	struct cpuid_memo cpuid[CPUID_MEMO];
	struct decoded scratch;		/* instruction that crosses a page, or from a device */
};

static inline bool debug_active(const struct interp *ip) { return ip->exec_bps || ip->data_bps || ip->io_bps; }

static inline struct interp *interp_of(struct vcpu *v) { return v->interp; }

/* Of the CPUID that EAX and ECX ask for. */
static inline struct cpuid_memo *cpuid_memo(struct vcpu *v)
{
	uint32_t leaf = (uint32_t)v->s.gpr[REG_RAX], subleaf = (uint32_t)v->s.gpr[REG_RCX];

	return &interp_of(v)->cpuid[(leaf ^ leaf >> 26 ^ subleaf << 3) % CPUID_MEMO];
}

static inline bool cpuid_memo_valid(const struct vcpu *v, const struct cpuid_memo *m)
{
	const struct x86_state *s = &v->s;

	return m->used && m->leaf == (uint32_t)s->gpr[REG_RAX] && m->subleaf == (uint32_t)s->gpr[REG_RCX] && m->cr4 == s->cr4 &&
	       m->xcr0 == s->xcr0 && m->xss == s->xss && m->apic_base == s->apic_base;
}

int interp_init(struct vcpu *v);
void interp_fini(struct vcpu *v);
/* Runs one block (or one instruction when interp.slow). May longjmp to v->fault_jmp. */
void interp_block(struct vcpu *v);
/* Runs one instruction; may longjmp. */
void interp_one(struct vcpu *v);
void interp_drop_all(struct vcpu *v);

/* --- debug.c --- */
void debug_update(struct vcpu *v);	/* after DR7, EFLAGS.TF changed */
void debug_data_access(struct vcpu *v, uint64_t va, unsigned n, bool write);
void debug_io_access(struct vcpu *v, uint16_t port, unsigned n);
void debug_show(struct vcpu *v);		/* db_pending to DR6: the handler is about to be entered */
void debug_check_fetch(struct vcpu *v);	/* #DB for an instruction breakpoint at CS:RIP */
bool debug_page_watched(struct vcpu *v, uint64_t va);

/* --- debugger.c --- */

/* Where in a page, in any page, code holds a breakpoint. Neither decoded nor translated blocks reach over such an
 * offset, and no translated block begins at one, so the run loop sees the vCPU come to it. */
struct debug_marks { uint64_t bits[GUEST_PAGE_SIZE / 64]; };
static inline bool debugger_marks(const struct interp *ip, unsigned offset)
{
	return unlikely(ip->marks) && (ip->marks->bits[offset >> 6 & 63] >> (offset & 63) & 1);
}
/* Puts the plan into effect; at the start of run(). */
void debugger_apply(struct vcpu *v);
/* Is there a breakpoint at CS:RIP? It is noted then. */
bool debugger_at_break(struct vcpu *v);
void debugger_data_access(struct vcpu *v, uint64_t va, unsigned n, bool write);
bool debugger_page_watched(struct vcpu *v, uint64_t va);
int soft_debug_set(struct vcpu *v, const struct debug_plan *p);
void soft_debug_get(struct vcpu *v, struct debug_stop *out);

/* --- event.c --- */
enum event_kind { EVENT_EXCEPTION, EVENT_INTERRUPT, EVENT_NMI, EVENT_SOFT /* INT n, INT3, INTO */, EVENT_ICEBP };
/* Goes through the IDT. The saved RIP is s.rip. May longjmp with the fault met on the way. */
void event_deliver(struct vcpu *v, uint8_t vector, enum event_kind kind, bool has_error, uint32_t error);
void nmi_latch(struct vcpu *v);		/* takes the NMIs that came into s.nmi_pending */

/* --- segment.c --- */
struct descriptor { uint32_t lo, hi; };
static inline uint64_t desc_base(const struct descriptor *d)
{
	return (d->lo >> 16) | ((d->hi & 0xff) << 16) | (d->hi & 0xff000000u);
}
static inline uint32_t desc_limit(const struct descriptor *d)
{
	uint32_t l = (d->lo & 0xffff) | (d->hi & 0xf0000);
	return d->hi & 0x800000 ? l << 12 | 0xfff : l;
}
static inline unsigned desc_type(const struct descriptor *d) { return d->hi >> 8 & 15; }
static inline unsigned desc_dpl(const struct descriptor *d) { return d->hi >> 13 & 3; }
static inline bool desc_present(const struct descriptor *d) { return d->hi & 0x8000; }
static inline bool desc_system(const struct descriptor *d) { return !(d->hi & 0x1000); }
static inline bool desc_code(const struct descriptor *d) { return (d->hi & 0x1800) == 0x1800; }
static inline bool desc_conforming(const struct descriptor *d) { return d->hi & 0x400; }
static inline bool desc_long(const struct descriptor *d) { return d->hi & 0x200000; }
static inline bool desc_big(const struct descriptor *d) { return d->hi & 0x400000; }
#define SEL_ERR(sel) ((sel) & 0xfffcu)

void seg_from_desc(struct x86_segment *sg, uint16_t sel, const struct descriptor *d);
/* false: beyond the table (or LDT unusable). gva_out: where the descriptor lies. */
bool desc_read(struct vcpu *v, uint16_t sel, struct descriptor *d, uint64_t *gva_out);
/* The second half of a 16-byte system descriptor in long mode; false: beyond the table. */
bool desc_read_upper(struct vcpu *v, uint16_t sel, uint64_t gva, uint64_t *upper);
/* As desc_read, raising `vector`(sel) instead. */
void desc_fetch(struct vcpu *v, uint16_t sel, struct descriptor *d, uint64_t *gva, uint8_t vector);
void desc_set_accessed(struct vcpu *v, struct descriptor *d, uint64_t gva);
/* MOV/POP/Lxx to ES, SS, DS, FS, GS in the current mode. */
void seg_load(struct vcpu *v, unsigned seg, uint16_t sel);
/* Real and V86 mode: base = selector << 4. */
void seg_load_real(struct vcpu *v, unsigned seg, uint16_t sel);
void seg_load_v86_all(struct vcpu *v, const uint16_t sel[SEG_COUNT]);
void seg_null(struct x86_segment *sg, uint16_t sel, unsigned dpl);
/* After a return to an outer level: null data segments the new CPL may not use. */
void seg_drop_inner(struct vcpu *v, unsigned cpl);
/* Checks for a SS load with the given CPL; raises `vector`. Does not load. */
void seg_check_ss(struct vcpu *v, uint16_t sel, unsigned cpl, uint8_t vector, struct descriptor *d, uint64_t *gva);
/* New stack for `cpl` from the TSS: SS:ESP (legacy). */
void tss_stack(struct vcpu *v, unsigned cpl, uint16_t *ss, uint32_t *esp);
/* RSPn or ISTn of a 64-bit TSS. slot: 0..2 RSPn, 3 + n for IST n (1..7). */
uint64_t tss_stack64(struct vcpu *v, unsigned slot);

/* --- interp_far.c --- */
/* IRETQ between flat 64-bit segments of the GDT, at s.rip, without single steps. false: nothing was done, it is the
 * interpreter's. May raise #PF. */
bool iret_quick(struct vcpu *v);

/* --- task.c --- */
enum task_why { TASK_JMP, TASK_CALL, TASK_IRET, TASK_EVENT };
/* Switches to the TSS of selector `sel`; s.rip must already be the return address to save. */
void task_switch(struct vcpu *v, uint16_t sel, enum task_why why, bool has_error, uint32_t error);

/* --- interp_sys.c, interp_io.c, msr.c --- */
void sys_set_cr0(struct vcpu *v, uint64_t value);
void sys_load_pdptes(struct vcpu *v);	/* from CR3; raises #GP(0) */
void sys_check_io(struct vcpu *v, uint16_t port, unsigned size);	/* raises #GP(0) */
uint32_t sys_in(struct vcpu *v, uint16_t port, unsigned size);
void sys_out(struct vcpu *v, uint16_t port, unsigned size, uint32_t value);
/* false: #GP(0). */
bool msr_load(struct vcpu *v, uint32_t msr, uint64_t *value);
bool msr_store(struct vcpu *v, uint32_t msr, uint64_t value);

static inline uint64_t rip_mask(const struct vcpu *v)
{
	return v->insn_mode == INSN_64 ? ~0ull : v->insn_mode == INSN_32 ? 0xffffffffull : 0xffff;
}

#endif
