/*
 * How blocks are entered, and linked to each other.
 *
 *   far:     lea t0, [t0 - start]		; T0: linear RIP, known to be the block's
 *            jmp  1f
 *   verify:  				; T0: linear RIP, to be looked at. T1: BRANCH_INFO
 *            lea t0, [t0 - start]
 *            cmp t0, gs:[page_at[cell]] ; jne lookup
 *   1:       mov gs:[page], t0
 *   call:    cmp sp, gs:[return_limit] ; jb exit
 *   near:    the block's code
 *
 *   poll:    call; or where flags are live, something that leaves them alone
 *
 * far      jump cache, C						flags parked
 * verify   direct jumps and calls from other pages, returns		parked, or in RFLAGS by another entry
 * call     calls inside the page					likewise
 * poll     backward jumps inside the page				in RFLAGS
 * near     all other jumps inside the page				in RFLAGS
 *
 * What counts is only where flags are live on entry, which is seldom so: that is why compares stand here and not at the jump,
 * and why who comes from afar parks flags and leaves it to us to fetch them. What turns out to be needed later lies elsewhere
 * and jumps to the block: heads, and what parks flags for who did not.
 *
 * page_at has a cell for each RAM page and mode with blocks: the linear address at which the page may now be executed, as
 * long as a TLB could know it. Cells are set and cleared with the jump cache, so links to other pages may stay over any
 * flush: they fail until somebody has looked the page up again. A page whose code was written to gets a new cell, and
 * nobody ever sets the old one again.
 */
#include "engine/soft/interp.h"
#include "engine/soft/mem.h"
#include "engine/soft/translate_private.h"

static struct host_mem cell_of(const struct tblock *k) { return hm_gs(OFF_HOT(page_at) + 8 * (uint64_t)k->cell); }

static uint32_t here(const struct block_build *b) { return (uint32_t)(b->e.p - b->t->mem.rw); }

void verify_emit(struct block_build *b, const struct tblock *k, unsigned offset)
{
	struct emitter *e = &b->e;

	emit_lea(e, H_T0, hm_base(H_T0, -(int32_t)offset));
	emit_op_mem(e, true, 0x3b, H_T0, cell_of(k));
	block_stub(b, STUB_VERIFY, emit_jcc(e, CC_NE), offset);
}

/* Leaves behind the store of the page. */
static void head_far(struct block_build *b, struct tblock *k)
{
	struct emitter *e = &b->e;
	uint8_t *store;

	k->far_entry = here(b);
	emit_lea(e, H_T0, hm_base(H_T0, -(int32_t)k->offset));
	store = emit_jmp8(e);
	k->verify_parked_entry = here(b);
	verify_emit(b, k, k->offset);
	patch8(store, e->p);
	emit_store(e, H_T0, hm_gs(OFF_HOT(page)));
	if (!k->flags_live)
		k->verify_entry = k->verify_parked_entry;
}

static void head_call(struct block_build *b, struct tblock *k)
{
	struct emitter *e = &b->e;

	k->call_parked_entry = here(b);
	e1(e, 0x66);
	emit_op_mem(e, false, 0x3b, H_RSP, hm_gs(OFF_HOT(return_limit)));	/* cmp sp, limit */
	block_stub(b, STUB_POLL, emit_jcc(e, CC_B), k->offset)->flags_saved = k->flags_live;
	if (k->flags_live && !k->start_parked)
		emit_flags_unpark(e, H_T1);
	if (!k->flags_live)
		k->poll_entry = k->call_entry = k->call_parked_entry;
}

/* Flags stay. A backward jump pushes nothing, so only a request matters. */
static void head_poll(struct block_build *b, struct tblock *k)
{
	struct emitter *e = &b->e;
	uint8_t *go;

	k->poll_entry = here(b);
	emit_op_reg(e, true, 0x89, H_RCX, H_T1);
	emit_op_mem(e, false, 0x8b, H_RCX, hm_gs(offsetof(struct vcpu, request)));
	go = emit_jrcxz(e);
	emit_op_reg(e, true, 0x89, H_T1, H_RCX);
	block_stub(b, STUB_POLL, emit_jmp(e), k->offset);
	patch8(go, e->p);
	emit_op_reg(e, true, 0x89, H_T1, H_RCX);
}

/* For a near jump that leaves flags where the block does not take them. */
static void head_convert(struct block_build *b, struct tblock *k)
{
	if (k->start_parked) {
		k->near_entry = here(b);
		emit_flags_park(&b->e, H_T1);
	} else {
		k->near_parked_entry = here(b);
		emit_flags_unpark(&b->e, H_T1);
	}
}

/* For those who leave flags in RFLAGS: in front of a head that is there, elsewhere. */
static void head_park(struct block_build *b, struct tblock *k, enum block_head head)
{
	uint32_t from = here(b);

	if (head == HEAD_FULL) {
		k->verify_entry = from;
		emit_flags_save(&b->e);		/* T0 and T1 hold something */
		emit_jmp_to(&b->e, b->t->mem.rw + k->verify_parked_entry);
	} else {
		k->call_entry = from;
		if (k->start_parked)
			k->poll_entry = from;
		emit_flags_park(&b->e, H_T1);
		emit_jmp_to(&b->e, b->t->mem.rw + k->call_parked_entry);
	}
}

void head_start(struct tblock *k, uint32_t start)
{
	k->start = start;
	k->near_entry = k->flags_live && k->start_parked ? 0 : start;
	k->near_parked_entry = k->flags_live && !k->start_parked ? 0 : start;
}

void head_emit(struct block_build *b, struct tblock *k, enum block_head head)
{
	if (head == HEAD_NONE)
		return;
	if (head == HEAD_POLL && k->flags_live && !k->start_parked) {
		head_poll(b, k);
		return;
	}
	if (head == HEAD_FULL)
		head_far(b, k);
	head_call(b, k);
}

static uint32_t head_entry(const struct tblock *k, enum block_head head, bool parked)
{
	switch (head) {
	case HEAD_POLL: return parked ? k->call_parked_entry : k->poll_entry;
	case HEAD_CALL: return parked ? k->call_parked_entry : k->call_entry;
	case HEAD_FULL: return parked ? k->verify_parked_entry : k->verify_entry;
	default: return parked ? k->near_parked_entry : k->near_entry;
	}
}

/* Somewhere else than in front of the block. */
static void head_add(struct block_build *b, struct tblock *k, enum block_head head, bool parked)
{
	if (head == HEAD_NONE) {
		head_convert(b, k);
	} else if (!head_entry(k, head, true) || (head == HEAD_POLL && !k->start_parked)) {
		head_emit(b, k, head == HEAD_POLL && parked ? HEAD_CALL : head);
	} else {
		head_park(b, k, head);
		return;
	}
	emit_jmp_to(&b->e, b->t->mem.rw + k->start);
	if (!head_entry(k, head, parked))
		head_park(b, k, head);
}

bool head_need(struct vcpu *v, struct tblock *k, enum block_head head, bool parked)
{
	struct trans_vcpu *t = trans_of(v);
	struct block_build *b = t->build;

	if (head_entry(k, head, parked))
		return true;
	if (!cache_room(v))
		return false;
	build_begin(v, k->offset, k->mode & ~TMODE_CROSSING);
	b->index = (uint32_t)(k - t->blocks);
	b->e.p = t->mem.rw + t->used;
	head_add(b, k, head, parked);
	stubs_emit(b);
	t->used = (here(b) + 15) & ~15u;
	return true;
}

/* --- look-up --- */

/* Where the page after rip's is mapped. */
static uint64_t crossing_gpa(struct vcpu *v, uint64_t rip, bool *global)
{
	uint64_t next = (rip | ~GUEST_PAGE_MASK) + 1, gpa = mem_fetch_gpa(v, next);

	*global = *global && mem_fetch_global(v, next);
	return gpa;
}

/* The block at s.rip, in the jump cache from now on. NULL: interpret. May raise. parked: see head_need(). */
static struct tblock *resolve(struct vcpu *v, unsigned mode, bool parked)
{
	struct trans_vcpu *t = trans_of(v);
	uint64_t rip = v->s.rip, gpa;
	struct tblock *k;
	bool global;

	if (debugger_marks(interp_of(v), (unsigned)rip))
		return NULL;
	if (!va_canonical(v, rip))
		vcpu_raise_error(v, EXC_GP, 0);
	gpa = mem_fetch_gpa(v, rip);
	global = mem_fetch_global(v, rip);
	if (!block_crosses(v, gpa)) {
		k = block_at(v, gpa, mode, HEAD_FULL, parked);
		if (k)
			lookup_note(v, rip, k->ram_page, global);
	} else if (!va_canonical(v, (rip | ~GUEST_PAGE_MASK) + 1) || (v->insn_mode == INSN_32 && rip >= 0xfffff000)) {
		return NULL;
	} else {
		k = block_crossing(v, gpa, crossing_gpa(v, rip, &global), mode);
	}
	if (k && t->fetch_epoch == interp_of(v)->fetch_epoch)
		jump_cache_put(v, mode, rip, k, global);
	return k;
}

const uint8_t *link_lookup(struct vcpu *v, unsigned mode)
{
	uint64_t rip = v->s.rip;
	struct jump_slot *slot;
	struct tblock *k;

	if (jump_cache_need(v, mode) < 0)
		return NULL;
	slot = jump_cache_slot(v, mode, rip);
	v->hot.t0 = rip;
	if (slot->rip == rip && slot->host)
		return slot->host;
	k = resolve(v, mode, true);
	return k ? cache_rx(trans_of(v), k->far_entry) : NULL;
}

/* --- links --- */

static uint8_t *to_rw(struct trans_vcpu *t, const void *rx) { return t->mem.rw + ((const uint8_t *)rx - t->mem.rx); }

/* Has nothing happened since `generation` that forbids to patch the code which left with d? */
static bool patchable(struct trans_vcpu *t, const struct exit_data *d, uint32_t generation)
{
	return generation == t->generation && t->blocks[d->block].live &&
	       !atomic_load_explicit(&t->inbox_count, memory_order_acquire);
}

/* Looks the target up in the physical page that is running and links the jump to it. */
const uint8_t *link_chain(struct vcpu *v, const struct exit_data *d, int32_t rel, unsigned mode)
{
	struct trans_vcpu *t = trans_of(v);
	uint32_t generation = t->generation;
	uint8_t *at = to_rw(t, d) + rel;
	uint32_t ram_page = t->blocks[d->block].ram_page, epoch = interp_of(v)->fetch_epoch;
	enum block_head head = d->flags & EXIT_CALL ? HEAD_CALL : d->flags & EXIT_POLL ? HEAD_POLL : HEAD_NONE;
	bool parked = (d->flags & EXIT_PARKED) && !(d->flags & EXIT_GROUP);
	struct tblock *k = block_at(v, t->blocks[d->block].gpa_page | d->offset, mode, head, parked);

	if (!k || k->ram_page != ram_page || epoch != interp_of(v)->fetch_epoch)
		return NULL;
	if (patchable(t, d, generation))
		patch32(at, t->mem.rw + head_entry(k, head, parked));
	return cache_rx(t, k->start);
}

/* Crossing blocks have no cell. */
static const uint8_t *far_target(struct trans_vcpu *t, const struct tblock *k, bool parked, unsigned mode)
{
	if (k->mode & TMODE_CROSSING)
		return parked ? t->lookup[mode] : t->lookup_host[mode];
	return t->mem.rw + head_entry(k, HEAD_FULL, parked);
}

const uint8_t *link_far(struct vcpu *v, const struct exit_data *d, unsigned mode)
{
	struct trans_vcpu *t = trans_of(v);
	uint32_t generation = t->generation;
	uint8_t *at = to_rw(t, d) + d->rel;
	struct tblock *k;

	if (jump_cache_need(v, mode) < 0)
		return NULL;
	v->hot.t0 = v->s.rip;
	k = resolve(v, mode, d->flags & EXIT_PARKED);
	if (!k)
		return NULL;
	if (patchable(t, d, generation))
		patch32(at, far_target(t, k, d->flags & EXIT_PARKED, mode));
	return cache_rx(t, k->far_entry);
}

/* The site is good for one address; whether that is in T0 is seen each time. */
void link_site(struct vcpu *v, const struct exit_data *d, unsigned mode)
{
	struct trans_vcpu *t = trans_of(v);
	uint32_t generation = t->generation;
	uint8_t *at = to_rw(t, d) + d->rel;
	struct tblock *k;

	if (!t->blocks[d->block].live)
		return;
	k = block_at(v, t->blocks[d->block].gpa_page | d->offset, mode, HEAD_FULL, true);
	if (patchable(t, d, generation))
		patch32(at, k ? t->mem.rw + k->verify_parked_entry : t->lookup[mode]);
}
