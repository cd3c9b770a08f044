/*
 * The translator's inside.
 *
 *   translate.c        run loop: enter code, handle its exits
 *   translate_block.c  from guest bytes to one block of host code: decode, flag liveness, ends of blocks
 *   translate_group.c  which accesses of a block share one check
 *   translate_loop.c   blocks that jump to themselves
 *   translate_flags.c  where the guest's flags are
 *   translate_insn.c   one instruction: operands rewritten, TLB checks, stack, special cases
 *   translate_system.c SYSCALL and its kin
 *   translate_jump.c   how a block is left
 *   translate_link.c   how it is entered: heads, links between blocks
 *   translate_return.c the stacks of host return addresses
 *   translate_entry.c  the entry and exit trampolines
 *   translate_quick.c  look-ups, CR3 writes, CPUID that need not leave translated code
 *   translate_state.c  the XSAVE family, likewise
 *   codecache.c        where blocks live, look-up, invalidation
 *
 * Guest registers in translated code: rax rcx rdx rbx rbp rsi rdi r8 r12 are themselves, rsp is in r13, r13-r15 in
 * r9-r11, and r9-r11 are in memory (gs:[s.gpr]); r14 (T0) and r15 (T1) are temporaries; GS points to struct vcpu; rsp points into
 * a return stack. Everything below belongs to one vCPU's thread, but for the inbox.
 */
#ifndef VIXEN_ENGINE_SOFT_TRANSLATE_PRIVATE_H
#define VIXEN_ENGINE_SOFT_TRANSLATE_PRIVATE_H

#include <pthread.h>
#include <stddef.h>

#include "cpu/optable.h"
#include "engine/soft/emit.h"
#include "engine/soft/interp.h"
#include "engine/soft/translate.h"
#include "host/execmem.h"

#define BLOCK_INSNS 144	/* where no branch is among the first 48 */
#define BLOCK_INSNS_BRANCHED 48
#define EMIT_SLACK (64 * 1024)		/* upper bound of one block's host code */
/* A VM's vCPUs share out CODE_BYTES_ALL, within these limits: a large compiler's code takes some 190 MiB. Memory is only
 * touched as it is used. */
#define CODE_BYTES_ALL (512u << 20)
#define CODE_BYTES_MAX (256u << 20)
#define CODE_BYTES_MIN (48u << 20)
#define CODE_COLD_START(bytes) ((bytes) / 8 * 5)	/* where the stubs' part of it begins */
#define TBLOCK_BYTES 384u	/* of code, for which there is one struct tblock */
#define TBLOCK_HASH_BITS 18
#define TPAGE_HASH_BITS 13
#define JUMP_CACHE_ENTRIES 65536u	/* indexed by the low 16 bits of RIP */
#define INBOX_PAGES 64
#define FILL_LIST 16384
#define FILL_HEADS 4096

/* Translation mode: what host code depends on besides the guest's bytes. Bits 0-1 enum tlb_mode, bits 2-3
 * which FP instructions may run as themselves, bit 4 32-bit code (flat CS, SS, DS, ES). */
#define TMODE_CODE32 0x10u
#define TMODE_CROSSING 0x20u		/* only in struct tblock: one instruction that crosses into the next page */
enum { FP_NONE, FP_SSE, FP_AVX, FP_AVX512 };
#define TMODE_PLAIN 0x40u		/* only in struct tblock: every access is checked by itself */
#define TMODE(tlb, fp) ((unsigned)(tlb) | (unsigned)(fp) << 2)
#define TMODE_TLB(m) ((m) & 3)
#define TMODE_FP(m) ((m) >> 2 & 3)

enum trans_exit {
	TEXIT_MISS = 1,		/* TLB check failed: fill, retry */
	TEXIT_STEP,		/* next instruction is the interpreter's */
	TEXIT_CHAIN,		/* direct jump in the page, not linked yet */
	TEXIT_FAR,		/* direct jump to another page, not linked yet. T0: linear RIP */
	TEXIT_SITE,		/* a RET came to where a CALL continues, not linked yet. T0: linear RIP, T1: BRANCH_INFO */
	TEXIT_TARGET,		/* target of an indirect call is not in the jump cache; it has not begun */
	TEXIT_LOOKUP,		/* T0: linear RIP; not in the jump cache, or a request is pending */
	TEXIT_POLL,		/* a request is pending; RIP at the given offset */
	TEXIT_FPU,		/* load the FP state, retry */
	TEXIT_IRET,		/* IRETQ */
	TEXIT_COUNT
};

/* What follows the call to an exit trampoline. */
struct exit_data {
	uint16_t offset;	/* of the guest instruction in its page */
	uint8_t size;		/* MISS: bytes accessed */
	uint8_t flags;		/* EXIT_* */
	int32_t rel;		/* MISS, FPU: where to go on; TARGET: where to return to; CHAIN, FAR, SITE: the displacement to
				 * patch; from this struct */
	uint32_t block;		/* CHAIN, FAR, SITE: index of the block that jumps */
} __attribute__((packed));
enum {
	EXIT_WRITE = 1,
	EXIT_PARKED = 1,	/* CHAIN, FAR: the guest's flags are parked, or dead */
	EXIT_ALIGNED = 16,	/* MISS: misalignment faults, and before the page does */
	EXIT_GROUP = 32,	/* MISS: of a group or run; what cannot be filled quietly goes on in the plain block */
	EXIT_BRANCH = 8,	/* LOOKUP: by a branch that faults where its target is no address; rel: BRANCH_INFO */
	EXIT_SHARED = 2,	/* LOOKUP: BRANCH_INFO is in hot.branch_info */
	EXIT_MASKED = 2,	/* MISS: it may be that nothing is accessed */
	EXIT_POLL = 64,		/* CHAIN: to where the block polls */
	EXIT_CALL = 128,	/* CHAIN: by a CALL */
};
/* Of a near branch: 0, or where it lies in its page, how many bytes it has popped, and what else it has done. */
#define BRANCH_INFO(offset, popped) (1u << 31 | (uint32_t)(popped) << 12 | (uint32_t)(offset))
#define BRANCH_OFFSET(info) ((info) & 0xfff)
#define BRANCH_POPPED(info) ((info) >> 12 & 0x1ffff)
#define BRANCH_CALLED (1u << 30)	/* a return address lies on the guest's stack and on the host's */
#define BRANCH_COUNTED (1u << 29)	/* LOOP: RCX is one less */

struct tblock {
	uint32_t hash_next, page_next;	/* 1-based; 0 ends */
	uint32_t partner;		/* a crossing instruction has an entry in each of its pages; 0: none */
	uint32_t ram_page, version;
	uint64_t gpa_page;
	uint16_t offset;
	uint8_t mode;
	bool live;
	bool flags_live;		/* on entry */
	bool start_parked;		/* and parked then, not in RFLAGS */
	uint16_t cell;			/* index in hot.page_at; CELL_NONE: never matches */
	/* Offsets in the cache, 0: not made. translate_link.c says what they are. */
	uint32_t start;
	uint32_t near_entry, near_parked_entry, poll_entry, call_entry, call_parked_entry, far_entry, verify_entry,
		 verify_parked_entry;
};
#define CELL_NONE 0u
/* A RAM page in one mode; while it has blocks. */
struct page_cell { uint32_t ram_page, next; uint8_t mode; uint8_t listed; };
#define CELL_HASH_BITS 12

struct jump_slot { uint64_t rip; const uint8_t *host; };

struct block_build;

/* C functions that translated code calls: bool fn(struct vcpu *, T0, T1). RAX, RCX and RDX are in s.gpr then. */
enum visit { VISIT_CPUID, VISIT_CR3, VISIT_STATE, VISIT_COUNT };

struct trans_vcpu {
	struct execmem mem;
	uint32_t used, used_base;	/* bytes of code; what the trampolines take */
	uint32_t cold_used;		/* where the next block's stubs go */
	struct tblock *blocks;		/* [block_max], 0 unused */
	uint32_t block_max;
	uint32_t block_count;
	uint32_t hash[1u << TBLOCK_HASH_BITS], page_hash[1u << TPAGE_HASH_BITS];
	uint32_t fetch_epoch, epoch_all, epoch_local;	/* interpreter's, when the jump cache was last right */
	/* Which jump cache slots are in use, and so which cells: [0] by local pages, [1] by global ones. Chained by
	 * page, from 1; 0 ends. */
	struct fill_list {
		unsigned count;
		uint16_t head[FILL_HEADS];
		struct filled { uint64_t page; uint32_t block; uint16_t slot, next; uint8_t mode; } e[FILL_LIST + 1];
	} filled[2];
	struct page_cell cells[PAGE_CELLS];
	uint32_t cell_hash[1u << CELL_HASH_BITS], cell_count;
	uint64_t cell_invalid;		/* in hot.page_at: no page. A secret, and no canonical address */
	struct cell_list { unsigned count; uint16_t e[PAGE_CELLS]; } celled[2];	/* cells in use: as `filled` */
	void *return_map;
	uint8_t *return_stacks;		/* [TRANSLATE_MODES][RETURN_BYTES] in return_map */
	unsigned return_mode;		/* whose stack hot.rsp points into */
	const uint8_t *sentinel[TRANSLATE_MODES], *lookup[TRANSLATE_MODES], *lookup_host[TRANSLATE_MODES];	/* writable alias */
	uint32_t polls;
	uint32_t generation;		/* bumped when all code goes */
	const uint8_t *exit_to[TEXIT_COUNT];	/* trampolines, writable alias */
	const uint8_t *visit_tsc;	/* called for RDTSC, likewise */
	const uint8_t *visit[VISIT_COUNT];	/* called for others */
	const uint8_t *refill[TLB_MODES][2];	/* by TLB mode, and for writing */
	void (*enter)(struct vcpu *v, const uint8_t *target);
	pthread_mutex_t inbox_lock;
	uint32_t inbox[INBOX_PAGES];
	_Atomic uint32_t inbox_count;	/* > INBOX_PAGES: everything */
	struct block_build *build;
	uint64_t count_exit[TEXIT_COUNT], count_quick, count_visits, count_blocks, count_flushes, count_stale;
};

struct translator { unsigned fp_level; bool bmi2; };

static inline struct trans_vcpu *trans_of(struct vcpu *v) { return v->trans; }

#define OFF_GPR(r) (offsetof(struct vcpu, s.gpr) + 8 * (r))
#define OFF_HOT(f) (offsetof(struct vcpu, hot.f))
#define TLB_ENTRY_SHIFT 4
_Static_assert(sizeof(struct tlb_entry) == 1u << TLB_ENTRY_SHIFT, "translated code counts on it");
#define OFF_TLB(m, w, f) (offsetof(struct vcpu, tlb) + ((m) * 2 + (unsigned)(w)) * sizeof(((struct vcpu *)0)->tlb[0][0]) + \
			  offsetof(struct tlb_entry, f))

/* The mode after an exit, or at one that is not made: SYSCALL and others change the TLB mode. */
static inline unsigned tmode_now(const struct vcpu *v, unsigned entered)
{
	return TMODE(v->tlb_mode, TMODE_FP(entered)) | (entered & TMODE_CODE32);
}

/* --- translate_quick.c --- */
/* For translated code: far_entry of the block at `rip`, which is in the jump cache from now on. NULL: leave. */
const uint8_t *lookup_quick(struct vcpu *v, uint64_t rip);
/* For C, after a look-up: where the page of rip lies, for lookup_quick(). */
void lookup_note(struct vcpu *v, uint64_t rip, uint32_t ram_page, bool global);

/* Likewise for instructions, where nothing comes in between. false: nothing was done, step. */
bool cpuid_quick(struct vcpu *v, uint64_t t0, uint64_t t1);	/* to s.gpr */
bool cr3_quick(struct vcpu *v, uint64_t value, uint64_t t1);	/* in 64-bit code */

/* --- translate_state.c --- */
/* XSAVE and its kin in 64-bit code, at a linear address. The mode's FP level is FP_AVX at least. */
enum { STATE_LOAD = 1, STATE_COMPACT = 2, STATE_USED = 4 /* only what is in use */, STATE_SUPERVISOR = 8, STATE_WIDE = 16 /* REX.W */ };
bool state_quick(struct vcpu *v, uint64_t va, uint64_t what);

/* --- translate_entry.c --- */
void trans_emit_trampolines(struct vcpu *v, struct emitter *e);
/* Arithmetic flags := those of s.rflags. Clobbers RAX and RCX. */
void emit_flags_load(struct emitter *e);

/* --- codecache.c --- */
struct tblock *cache_find(struct vcpu *v, uint32_t ram_page, unsigned offset, unsigned mode);
/* After cache_room() said yes. */
struct tblock *cache_add(struct vcpu *v, uint32_t ram_page, uint64_t gpa, unsigned mode, uint32_t version);
bool cache_room(struct vcpu *v);
void cache_flush(struct vcpu *v);
void cache_drop_page(struct vcpu *v, uint32_t ram_page);
void cache_inbox(struct vcpu *v);
void jump_cache_flush(struct vcpu *v);
int jump_cache_need(struct vcpu *v, unsigned mode);
/* After TLB flushes: drops what they concern. */
void jump_cache_sync(struct vcpu *v);
void jump_cache_put(struct vcpu *v, unsigned mode, uint64_t rip, const struct tblock *k, bool global);
void cells_init(struct vcpu *v, uint64_t invalid);
static inline struct jump_slot *jump_cache_slot(struct vcpu *v, unsigned mode, uint64_t rip)
{
	return (struct jump_slot *)v->hot.jump[mode] + (rip & (JUMP_CACHE_ENTRIES - 1));
}
static inline const uint8_t *cache_rx(struct trans_vcpu *t, uint32_t off) { return t->mem.rx + off; }

/* --- translate_block.c --- */
struct block_insn {
	struct insn in;
	uint16_t offset;
	uint8_t group_mem, group_stack;	/* 1 + the group its access belongs to; 0: none */
	uint8_t stream;			/* 1 + that of the check that is its own; 0: none */
	uint32_t live_in;	/* arithmetic flags somebody may read later, before / after it */
	uint32_t live_out;
};

/* A stub: out-of-line code, far from the block so that what runs lies close together. */
enum stub_kind { STUB_MISS, STUB_GROUP, STUB_STEP, STUB_CHAIN, STUB_FPU, STUB_POLL, STUB_FAR, STUB_SITE, STUB_TARGET, STUB_LOOKUP,
		 STUB_VERIFY /* the RIP in T0, less the block's offset, is elsewhere: look it up */ };
struct stub {
	uint8_t kind;
	bool flags_saved;	/* they are parked: to RFLAGS with them first */
	struct exit_data data;
	uint8_t *from;		/* displacement that leads here */
	uint8_t *retry;		/* MISS, FPU */
	uint8_t *again;		/* MISS: as retry, but flags are as they are at the check */
};
#define STUB_MAX 1024
#define DECODE_MEMO 256		/* a power of two */

/* What a register holds: a value that is not known, plus a number that is. */
struct value { uint32_t id; int32_t delta; };

/* Accesses of one block to [value + lo, value + hi), which one check answers for. */
#define GROUP_MAX TRANSLATE_GROUPS
struct group {
	uint32_t id;
	int32_t lo, hi;
	int32_t aligned_at;		/* value + this must be aligned, if align is above 1 */
	uint8_t align;
	bool write, checked;		/* checked: the check was emitted */
	bool absolute;			/* a base of it is in memory: the slot holds the host address of what `base` holds at the head */
	uint8_t base;			/* the register of its first access */
	uint8_t stream;			/* as an instruction's */
	uint8_t first, head;		/* instructions: the first access, and before which one the check stands */
	unsigned count;
};

/* A check that a loop's body replaces. */
struct stream {
	uint8_t reg;			/* the guest register that moves its address, if one does */
	uint8_t shift;			/* as an index; log2 of its scale */
	bool moves, down;
	bool wild;			/* the register alone is no address */
	bool by_base;			/* it is the operand's base, and the index stands still */
	uint8_t *again;			/* the check, in the first copy */
};
struct loop {
	bool found, body;		/* body: the second copy is what is being emitted */
	unsigned last;			/* the instruction that jumps to the start */
	unsigned count;
	uint8_t *back, *behind, *top;	/* first copy: its jump's displacement, what follows the jump; the body */
	struct stream streams[TRANSLATE_STREAMS];
};

struct block_build {
	struct vcpu *v;
	struct trans_vcpu *t;
	struct emitter e;
	unsigned mode, tlb_mode;
	enum insn_mode insn_mode;	/* INSN_64 or INSN_32 */
	bool wide;			/* INSN_64 */
	unsigned word;			/* bytes of a pointer or stack slot: 8 or 4 */
	uint8_t code[GUEST_PAGE_SIZE + 16];	/* the guest's page, what was watched of it */
	unsigned start, end;		/* offsets */
	unsigned cut;			/* where one of its branches ends the block; GUEST_PAGE_SIZE: nowhere */
	/* What was decoded of `code`, in memo_mode: most offsets are asked for more than once, and by several blocks. */
	enum insn_mode memo_mode;
	struct decode_memo { uint32_t stamp; uint16_t offset; bool ok; struct insn in; } memo[DECODE_MEMO];
	uint32_t stamp;			/* of the memo's valid entries */
	uint32_t index;			/* of the block */
	struct block_insn insns[BLOCK_INSNS];
	unsigned count;
	bool plain;
	struct value values[BLOCK_INSNS][16];	/* of the registers, before each instruction */
	struct group groups[GROUP_MAX];
	unsigned group_count;
	struct loop loop;
	uint8_t addend_group;		/* 1 + the group whose addend T1 holds; 0: none */
	bool t1_kept;			/* by the last instruction: whatever lost T1 has said so in addend_group */
	uint8_t flags_at;		/* FLAGS_*, where what was emitted so far leaves them */
	bool fpu_checked;
	bool undecoded;			/* what follows is no whole instruction */
	struct stub stubs[STUB_MAX];
	unsigned stub_count;
};
enum { FLAGS_HOST = 1, FLAGS_PARKED = 2 };
/* The block at a physical address, translated if need be, with that head (see head_need()); NULL: not RAM. At block boundaries only. */
enum block_head { HEAD_NONE, HEAD_POLL, HEAD_CALL, HEAD_FULL };
struct tblock *block_at(struct vcpu *v, uint64_t gpa, unsigned mode, enum block_head head, bool parked);
/* Does the instruction at gpa go on in the next page? */
bool block_crosses(struct vcpu *v, uint64_t gpa);
static inline enum insn_mode tmode_insn(unsigned mode) { return mode & TMODE_CODE32 ? INSN_32 : INSN_64; }
/* A block of that one instruction; next_gpa: where its second page is mapped. NULL: interpret it. */
struct tblock *block_crossing(struct vcpu *v, uint64_t gpa, uint64_t next_gpa, unsigned mode);
void build_begin(struct vcpu *v, unsigned start, unsigned mode);
void stubs_emit(struct block_build *b);
struct stub *block_stub(struct block_build *b, enum stub_kind kind, uint8_t *from, unsigned offset);

/* --- translate_flags.c --- */
/* Arithmetic flags that the instruction reads; that are not what they were behind it, whatever it finds. */
uint32_t insn_flags_read(const struct insn *in);
uint32_t insn_flags_lost(const struct insn *in);
/* To and from hot.save_flags by way of RAX, which is kept in temp. */
void emit_flags_park(struct emitter *e, unsigned temp);
void emit_flags_unpark(struct emitter *e, unsigned temp);
/* Does bi want them in RFLAGS, to read some or to leave some as they are? */
bool insn_flags_needed(const struct block_insn *bi);
/* RFLAGS is about to be lost, before instruction bi. temp: T0 or T1, free. */
void flags_park(struct block_build *b, const struct block_insn *bi, unsigned temp);
/* The guest's flags, if anybody wants them, to where they are parked; to RFLAGS. */
void flags_to_memory(struct block_build *b, unsigned temp);
void flags_to_host(struct block_build *b, unsigned temp);
/* Likewise, and only there: for code that saves and restores them by itself. T1 is free. */
void flags_only_host(struct block_build *b);
/* The block ends with bi: are they dead then? */
void flags_end(struct block_build *b, const struct block_insn *bi);
/* Around bi itself, where it runs as it is. */
void flags_before(struct block_build *b, const struct block_insn *bi, unsigned temp);
void flags_after(struct block_build *b, const struct block_insn *bi);

/* --- perf.c --- */
/* Block k has been made: from `from` to b->e.p, its stubs elsewhere. Only while soft_engine.code_made is set. */
void perf_block(const struct block_build *b, const struct tblock *k, const uint8_t *from, const uint8_t *stubs,
		const uint8_t *stubs_end);

/* --- translate_insn.c --- */
enum insn_result { INSN_NEXT, INSN_ENDS, INSN_STEP /* nothing was emitted that counts: interpret it */ };
enum insn_result insn_translate(struct block_build *b, struct block_insn *bi);
/* The guest's arithmetic flags to and from hot.save_flags. */
void emit_flags_save(struct emitter *e);
void emit_flags_restore(struct emitter *e);
/* T0 := RFLAGS as the guest would see it, RF and VM clear, from s.rflags and what emit_flags_save() saved. Flags are lost. */
void emit_rflags_whole(struct emitter *e);

/* --- translate_jump.c: ends of blocks --- */
enum insn_result jump_translate(struct block_build *b, struct block_insn *bi);
/* Goes to an offset from the page's start, inside or outside of it. */
void jump_to_offset(struct block_build *b, int64_t target, bool poll);
/* Goes to the linear RIP in T0. The guest's flags may be anywhere, T1 is free. */
void jump_indirect(struct block_build *b);
/* Likewise, in another mode. */
void jump_indirect_mode(struct block_build *b, unsigned mode);
/* Code that all blocks of a mode share: the look-up of T0, with BRANCH_INFO in T1; the return stack's bottom. */
void jump_emit_shared(struct vcpu *v, struct emitter *e);
void emit_page_address(struct block_build *b, unsigned reg, int64_t offset);

/* --- translate_link.c --- */
/* Compares the linear RIP in T0 with the page's cell, leaves if it is not here, notes the page; T1: BRANCH_INFO. */
void verify_emit(struct block_build *b, const struct tblock *k, unsigned offset);
/* Where the block's code begins when flags come as it takes them, or need not come. */
void head_start(struct tblock *k, uint32_t start);
/* Emits the head in front of where the block's code will be. */
void head_emit(struct block_build *b, struct tblock *k, enum block_head head);
/* Makes sure that k has it, for those who leave flags parked or for those who do not; false: no room. Invalidates what `build` holds. */
bool head_need(struct vcpu *v, struct tblock *k, enum block_head head, bool parked);
/* Host code for s.rip, NULL: interpret. May raise. */
const uint8_t *link_lookup(struct vcpu *v, unsigned mode);
/* Exits of that name: where to go on in host code. NULL: at s.rip. May raise. */
/* rel: from d to the displacement to patch. */
const uint8_t *link_chain(struct vcpu *v, const struct exit_data *d, int32_t rel, unsigned mode);
const uint8_t *link_far(struct vcpu *v, const struct exit_data *d, unsigned mode);
void link_site(struct vcpu *v, const struct exit_data *d, unsigned mode);

/* --- translate_return.c --- */
#define RETURN_BYTES 0x10000u		/* and alignment: SP alone says how full a stack is */
#define RETURN_TOP 0xfff8u		/* where the sentinel lies */
#define RETURN_LIMIT 0x8000u		/* below it: room for signals and what translated code calls */
/* After the sentinels were emitted; -ENOMEM. */
int return_stacks_init(struct vcpu *v);
void return_stacks_fini(struct trans_vcpu *t);
/* Empties all of them. */
void return_stacks_reset(struct vcpu *v);
void return_stack_push(struct vcpu *v, const uint8_t *site);
void return_stack_pop(struct vcpu *v);
/* hot.rsp is about to be used in this mode. */
void return_stack_select(struct vcpu *v, unsigned mode);
/* At a boundary: makes room, and takes back what a request did to the limit. The request is looked at afterwards. */
void return_stack_check(struct vcpu *v);

/* --- translate_system.c --- */
void system_emit_visits(struct vcpu *v, struct emitter *e);
enum insn_result system_translate(struct block_build *b, struct block_insn *bi);
/* The XSAVE family. */
enum insn_result state_translate(struct block_build *b, struct block_insn *bi);
/* Does the block go on after it? */
bool system_goes_on(const struct insn *in);

/* --- translate_stack.c --- */
/* How many instructions from `first` on are PUSHes, or POPs, of registers, without a group's check between them. */
unsigned stack_run_length(const struct block_build *b, unsigned first);
void stack_run_translate(struct block_build *b, unsigned first, unsigned n);

/* --- translate_group.c --- */
/* After liveness(): fills groups, and group_* of the instructions. */
void groups_plan(struct block_build *b);
/* Do checks stand before instruction i? */
bool groups_check_at(const struct block_build *b, unsigned i);
/* Emits them. */
void groups_check(struct block_build *b, unsigned i);

/* --- translate_loop.c --- */
/* After groups_plan(): is the block a loop, and which checks need not be repeated in it? */
void loop_plan(struct block_build *b);
/* The first copy: here the check begins. Behind it: T0 is the offset in the page, of what has `size` bytes. T0 is lost.
 * The addend, or what else the operand needs, is in T1. */
void loop_again(struct block_build *b, unsigned stream);
void loop_note(struct block_build *b, unsigned stream, unsigned size);
void loop_note_addend(struct block_build *b, unsigned stream);
/* Is this the body, and the check a stream's? Then these are emitted in its place. */
bool loop_in_body(const struct block_build *b, unsigned stream);
void loop_check(struct block_build *b, const struct block_insn *bi, unsigned stream);
void loop_load_addend(struct block_build *b, unsigned stream);
/* Is it the jump to the start? from: its displacement. */
bool loop_closes(const struct block_build *b, const struct block_insn *bi);
void loop_close(struct block_build *b, uint8_t *from);
/* The first copy comes to instruction i. */
void loop_behind(struct block_build *b, unsigned i);
/* Begins the body. */
void loop_body(struct block_build *b);

/* --- translate_string.c --- */
enum insn_result string_translate(struct block_build *b, struct block_insn *bi);

/* --- translate_memory.c --- */
/* The way to tlb_refill(). */
void mem_emit_refills(struct vcpu *v, struct emitter *e);
/* Checks [guest base + disp, ... + size) for a group, and that it begins aligned, and leaves the addend in its slot. */
void mem_check_group(struct block_build *b, struct block_insn *bi, unsigned index, int32_t disp, unsigned size);
/* The alignment that the instruction demands of its operand, at least 1. */
unsigned mem_align(const struct insn *in, unsigned size);
/* T0: linear address; n bytes from it, n in RCX elements of `size` bytes or one. Leaves the host's addend in T1. */
void mem_check_run(struct block_build *b, struct block_insn *bi, unsigned size, bool repeated, bool write);
/* Checks the access and leaves a host operand. A miss comes back to where this was called: only T0 and T1 may have
 * been lost by then. T0 or T1 that is not part of it is in *spare. */
struct host_mem mem_translate(struct block_build *b, struct block_insn *bi, unsigned size, bool write,
			      unsigned *spare);
/* [guest rsp + disp]. Spare: T0; in 32-bit code T1. */
struct host_mem stack_translate(struct block_build *b, struct block_insn *bi, int32_t disp, unsigned size, bool write);
/* The word that holds bit `guest register` of the string at the operand, in T0; the bit's number in it, in T1. */
struct host_mem mem_translate_bit(struct block_build *b, struct block_insn *bi, unsigned guest, unsigned size,
				  bool write);
/* Can the operand's address be computed by host code? */
bool mem_translatable(const struct block_build *b, const struct insn *in);
/* reg := effective address without segment base. Uses T0, T1. */
void address_translate(struct block_build *b, const struct insn *in, unsigned reg, unsigned next_offset, bool wide);
/* H_NONE: in memory. Compilers keep long-lived values in r12-r15 and hardly use r9-r11. */
static inline unsigned host_reg_of(unsigned guest)
{
	static const uint8_t host[16] = { H_RAX, H_RCX, H_RDX, H_RBX, H_R13, H_RBP, H_RSI, H_RDI, H_R8, H_NONE, H_NONE, H_NONE,
					  H_R12, H_R9, H_R10, H_R11 };
	return host[guest];
}

#endif
