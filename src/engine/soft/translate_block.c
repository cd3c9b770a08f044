/*
 * From guest bytes to one block of host code.
 *
 *   1. scan: copy the bytes, decode them to learn how far the block reaches
 *   2. code_watch() those lines: from here on a change cannot go unseen. Are the bytes still the same? If not, again
 *   3. flag liveness, backward from what the instructions after the block read
 *   4. emit, then the stubs
 *
 * Blocks do not cross pages. Host code holds no linear address of the guest's code: RIP is hot.page + offset,
 * so one block serves every address and address space the page is mapped at.
 */
#include "engine/soft/translate_private.h"

#define LOOK_AHEAD 6

struct stub *block_stub(struct block_build *b, enum stub_kind kind, uint8_t *from, unsigned offset)
{
	struct stub *s = &b->stubs[b->stub_count++];

	ASSERT(b->stub_count <= STUB_MAX);
	*s = (struct stub){ .kind = (uint8_t)kind, .from = from, .data = { .offset = (uint16_t)offset } };
	return s;
}

/* The instruction at an offset of `code`; NULL: none that is whole. Valid until the next call. */
static const struct insn *decode_at(struct block_build *b, unsigned offset)
{
	struct decode_memo *m = &b->memo[offset % DECODE_MEMO];

	if (offset >= GUEST_PAGE_SIZE)
		return NULL;
	if (m->stamp != b->stamp || m->offset != offset) {
		m->stamp = b->stamp;
		m->offset = (uint16_t)offset;
		m->ok = insn_decode(&m->in, b->code + offset, GUEST_PAGE_SIZE - offset, b->insn_mode) == DECODE_OK;
	}
	return m->ok ? &m->in : NULL;
}

static bool insn_is_last(const struct insn *in)
{
	switch (in->row->trans) {
	case TRANS_BRANCH: case TRANS_CALL: case TRANS_RET: case TRANS_SYSTEM:
		return in->op != X86_CLI && in->op != X86_CLD && in->op != X86_STI && !system_goes_on(in);
	case TRANS_STRING:
		return in->op != X86_MOVS && in->op != X86_STOS;
	default: return false;
	}
}

/* May the block go on behind it? */
static bool insn_falls_through(const struct insn *in) { return in->op == X86_JCC || in->op == X86_CALL; }

/* What one of the block's own branches jumps to, further on: there it ends, so that this will be one block, not two. */
static void cut_note(struct block_build *b, const struct insn *in, unsigned next)
{
	int64_t target = next + (int64_t)in->imm;

	if ((in->op == X86_JCC || in->op == X86_JMP) && in->ops[0].kind == OPK_REL && target >= next && target < b->cut)
		b->cut = (unsigned)target;
}

/* Where instructions end that are decoded one behind the other, up to b->cut: at most what a block of `most` may have and
 * LOOK_AHEAD. */
static unsigned scan(struct block_build *b, unsigned at, unsigned most)
{
	const struct insn *in;

	for (unsigned i = 0; i < most + LOOK_AHEAD && at != b->cut && (in = decode_at(b, at)); i++) {
		at += in->len;
		cut_note(b, in, at);
		if (at > b->cut)		/* it lies inside of an instruction */
			b->cut = GUEST_PAGE_SIZE;
		if (!insn_is_last(in))
			continue;
		if (!insn_falls_through(in))
			break;
		if (most > BLOCK_INSNS_BRANCHED)
			most = i < BLOCK_INSNS_BRANCHED ? BLOCK_INSNS_BRANCHED : i + 1;
	}
	return at;
}

/* Where what is decoded ends: behind the block, and what is looked at ahead. Finds b->cut. */
static unsigned block_extent(struct block_build *b)
{
	unsigned at, cut;

	b->cut = GUEST_PAGE_SIZE;
	at = scan(b, b->start, BLOCK_INSNS);
	cut = b->cut;
	if (at == cut) {
		b->cut = GUEST_PAGE_SIZE;
		at = scan(b, at, 0);
		b->cut = cut;
	}
	return at;
}

/* Which arithmetic flags may be read by what comes at `offset`, looking no further than what was watched. */
static uint32_t flags_wanted(struct block_build *b, int64_t offset)
{
	uint32_t unknown = FLAGS_ARITH, wanted = 0;

	for (unsigned i = 0; i < LOOK_AHEAD && unknown; i++) {
		const struct insn *in = NULL;
		if (offset >= b->start && offset < b->end)
			in = decode_at(b, (unsigned)offset);
		if (!in || offset + in->len > b->end)
			break;
		wanted |= insn_flags_read(in) & unknown;
		unknown &= ~(insn_flags_read(in) | insn_flags_lost(in));
		offset += in->len;
		if (in->op == X86_JMP && in->ops[0].kind == OPK_REL)
			offset += (int64_t)in->imm;
		else if (insn_is_last(in))
			break;
	}
	return wanted | unknown;
}

/* Which flags may be read behind bi. next_live: those before the next instruction, if it is not the last. */
static uint32_t flags_behind(struct block_build *b, const struct block_insn *bi, uint32_t next_live, bool last)
{
	const struct insn *in = &bi->in;
	int64_t next = bi->offset + in->len;

	switch (in->op) {
	case X86_JCC:
		return flags_wanted(b, next + (int64_t)in->imm) | (last ? flags_wanted(b, next) : next_live);
	case X86_JMP: case X86_CALL:
		return in->ops[0].kind == OPK_REL ? flags_wanted(b, next + (int64_t)in->imm) : FLAGS_ARITH;
	default:
		if (!last)
			return next_live;
		return insn_is_last(in) ? FLAGS_ARITH : flags_wanted(b, next);
	}
}

/* Does the instruction surely run here, not in the interpreter? If not, flags must be whole before it. */
static uint32_t flags_read(const struct insn *in)
{
	if (in->op == X86_DIV || in->op == X86_IDIV)
		return 0;
	switch (in->row->trans) {
	case TRANS_COPY: case TRANS_STACK: case TRANS_BRANCH: case TRANS_CALL: case TRANS_RET:
		return insn_flags_read(in);
	default:
		return FLAGS_ARITH;
	}
}

static void liveness(struct block_build *b)
{
	uint32_t live = 0;

	for (unsigned i = b->count; i-- > 0; ) {
		struct block_insn *bi = &b->insns[i];
		live = flags_behind(b, bi, live, i + 1 == b->count);
		bi->live_out = live;
		live &= ~insn_flags_lost(&bi->in);
		live |= flags_read(&bi->in);
		live &= FLAGS_ARITH;
		bi->live_in = live;
	}
}

/* Its instruction at an offset; 0: none, or the first. */
static unsigned insn_at(const struct block_build *b, int64_t offset)
{
	for (unsigned i = b->count; i-- > 1; )
		if (b->insns[i].offset == offset)
			return i;
	return 0;
}

/* Ends the block before what one of its own branches jumps back to: cut_note() has those that jump on. */
static void block_cut(struct block_build *b)
{
	for (unsigned i = 0; i < b->count; i++) {
		const struct insn *in = &b->insns[i].in;
		unsigned target;
		if (in->op != X86_JCC && (in->op != X86_JMP || in->ops[0].kind != OPK_REL))
			continue;
		target = insn_at(b, b->insns[i].offset + in->len + (int64_t)in->imm);
		if (target && target < b->count) {
			b->count = target;
			b->undecoded = false;
		}
	}
}

static void block_decode(struct block_build *b)
{
	unsigned at = b->start, most = BLOCK_INSNS;

	b->count = 0;
	b->undecoded = false;
	while (b->count < most && at != b->cut) {
		struct block_insn *bi = &b->insns[b->count];
		const struct insn *in = decode_at(b, at);
		b->undecoded = !in || at + in->len > b->end;
		if (b->undecoded || (b->count && debugger_marks(interp_of(b->v), at)))
			break;
		bi->in = *in;
		bi->offset = (uint16_t)at;
		at += bi->in.len;
		b->count++;
		if (!insn_is_last(&bi->in))
			continue;
		if (!insn_falls_through(&bi->in))
			break;
		most = BLOCK_INSNS_BRANCHED;
	}
	block_cut(b);
}

/* A group's check failed. In the right page, it crosses into the next one; else it may be filled. For the rest, a jump
 * to the plain block: to where it is made, at first. */
static void group_stub_emit(struct block_build *b, struct stub *s)
{
	struct emitter *e = &b->e;
	uint8_t *crosses, *plain;

	patch32(s->from, e->p);
	e3(e, 0x49, 0x81, 0xfe), e_u32(e, GUEST_PAGE_SIZE);	/* cmp t0, 4096 */
	crosses = emit_jcc8(e, CC_B);
	emit_call_to(e, b->t->refill[b->tlb_mode][!!(s->data.flags & EXIT_WRITE)]);
	patch32(emit_jcc(e, CC_NE), s->again);
	patch8(crosses, e->p);
	if (s->flags_saved)
		emit_flags_restore(e);
	plain = emit_jmp(e);
	patch32(plain, e->p);
	emit_call_to(e, b->t->exit_to[TEXIT_MISS]);
	s->data.rel = (int32_t)(s->retry - e->p);
	s->data.block = b->index;
	memcpy(e->p, &s->data, sizeof s->data);
	e->p += sizeof s->data;
}

static void stub_emit(struct block_build *b, struct stub *s)
{
	static const uint8_t exits[] = { [STUB_MISS] = TEXIT_MISS, [STUB_STEP] = TEXIT_STEP, [STUB_FPU] = TEXIT_FPU,
					 [STUB_CHAIN] = TEXIT_CHAIN, [STUB_POLL] = TEXIT_POLL,
					 [STUB_FAR] = TEXIT_FAR, [STUB_SITE] = TEXIT_SITE,
					 [STUB_TARGET] = TEXIT_TARGET, [STUB_LOOKUP] = TEXIT_LOOKUP };
	struct emitter *e = &b->e;

	patch32(s->from, e->p);
	if (s->again) {
		emit_call_to(e, b->t->refill[b->tlb_mode][!!(s->data.flags & EXIT_WRITE)]);
		patch32(emit_jcc(e, CC_NE), s->again);
	}
	if (s->kind == STUB_VERIFY) {
		emit_lea(e, H_T0, hm_base(H_T0, s->data.offset));
		emit_jmp_to(e, b->t->lookup[b->mode]);
		return;
	}
	if (s->flags_saved)
		emit_flags_restore(e);
	emit_call_to(e, b->t->exit_to[exits[s->kind]]);
	if (s->retry)
		s->data.rel = (int32_t)(s->retry - e->p);
	else if (s->kind == STUB_CHAIN || s->kind == STUB_FAR || s->kind == STUB_SITE)
		s->data.rel = (int32_t)(s->from - e->p);
	s->data.block = b->index;
	memcpy(e->p, &s->data, sizeof s->data);
	e->p += sizeof s->data;
}

static void emit_step(struct block_build *b, unsigned offset)
{
	struct exit_data d = { .offset = (uint16_t)offset };

	flags_to_host(b, H_T1);
	emit_call_to(&b->e, b->t->exit_to[TEXIT_STEP]);
	memcpy(b->e.p, &d, sizeof d);
	b->e.p += sizeof d;
}

/* What comes at `next` could not be decoded. */
static void emit_undecoded(struct block_build *b, unsigned next)
{
	struct insn in;

	if (next < GUEST_PAGE_SIZE &&
	    insn_decode(&in, b->code + next, GUEST_PAGE_SIZE - next, b->insn_mode) == DECODE_SHORT) {
		emit_page_address(b, H_T0, next);	/* crosses: the jump cache knows both pages */
		jump_indirect(b);
	} else {
		emit_step(b, next);
	}
}

static enum insn_result insn_emit(struct block_build *b, unsigned i)
{
	enum insn_result r;

	b->t1_kept = false;
	r = insn_translate(b, &b->insns[i]);
	if (!b->t1_kept)
		b->addend_group = 0;
	return r;
}

/* The second copy of a loop. What the first one could do is done in the same way. */
static void body_emit(struct block_build *b)
{
	enum insn_result r = INSN_NEXT;

	loop_body(b);
	for (unsigned i = 0; i <= b->loop.last; i++) {
		groups_check(b, i);
		r = insn_emit(b, i);
		ASSERT(r != INSN_STEP);
	}
	if (r == INSN_NEXT)
		emit_jmp_to(&b->e, b->loop.behind);
}

static void block_emit(struct block_build *b)
{
	enum insn_result r = INSN_NEXT;
	unsigned next = b->start;

	groups_plan(b);
	loop_plan(b);
	for (unsigned i = 0; i < b->count && r == INSN_NEXT; i++) {
		unsigned run = stack_run_length(b, i);
		loop_behind(b, i);
		groups_check(b, i);
		if (run > 1) {
			stack_run_translate(b, i, run);
			b->addend_group = 0;
			i += run - 1;
		}
		next = b->insns[i].offset + b->insns[i].in.len;
		if (run > 1)
			continue;
		r = insn_emit(b, i);
		if (r == INSN_STEP)
			emit_step(b, b->insns[i].offset);
	}
	if (r == INSN_NEXT)
		loop_behind(b, b->count);
	if (r == INSN_NEXT && next < GUEST_PAGE_SIZE && b->undecoded) {
		emit_undecoded(b, next);
	} else if (r == INSN_NEXT) {
		flags_end(b, &b->insns[b->count - 1]);
		jump_to_offset(b, next, false);
	}
	if (b->loop.back)
		body_emit(b);
}

void stubs_emit(struct block_build *b)
{
	struct trans_vcpu *t = b->t;
	uint8_t *end = b->e.p;

	b->e.p = t->mem.rw + t->cold_used;
	for (unsigned i = 0; i < b->stub_count; i++)
		if (b->stubs[i].kind == STUB_GROUP)
			group_stub_emit(b, &b->stubs[i]);
		else
			stub_emit(b, &b->stubs[i]);
	t->cold_used = (uint32_t)(b->e.p - t->mem.rw);
	b->e.p = end;
}

void build_begin(struct vcpu *v, unsigned start, unsigned mode)
{
	struct block_build *b = trans_of(v)->build;

	b->v = v;
	b->t = trans_of(v);
	b->mode = mode & ~TMODE_PLAIN;
	b->plain = mode & TMODE_PLAIN;
	b->tlb_mode = TMODE_TLB(mode);
	b->insn_mode = tmode_insn(mode);
	b->wide = b->insn_mode == INSN_64;
	b->word = b->wide ? 8 : 4;
	b->stub_count = 0;
	b->flags_at = FLAGS_HOST;
	b->fpu_checked = false;
	b->start = start;
}

/* Would the block, which does not set flags first, have to park them before it has any use for them? */
static bool starts_parked(const struct block_build *b)
{
	for (unsigned i = 0; i < b->count; i++) {
		const struct block_insn *bi = &b->insns[i];
		const struct insn *in = &bi->in;
		if (insn_flags_needed(bi))
			return false;
		if (in->row->trans == TRANS_STACK || in->row->trans == TRANS_CALL || in->row->trans == TRANS_RET)
			return true;
		if (in->row->trans != TRANS_COPY && in->op != X86_JMP)
			return false;
		if (in->op == X86_JMP && in->ops[0].kind != OPK_REL)
			return true;
		for (unsigned k = 0; k < in->nops && in->op != X86_LEA && in->op != X86_NOP; k++)
			if (in->ops[k].kind == OPK_MEM)
				return true;
	}
	return false;
}

/* Does it jump to its start? */
static bool loops(const struct block_build *b)
{
	for (unsigned i = 0; i < b->count; i++) {
		const struct insn *in = &b->insns[i].in;
		if ((in->op == X86_JCC || in->op == X86_JMP) && in->ops[0].kind == OPK_REL &&
		    b->insns[i].offset + in->len + (int64_t)in->imm == b->start)
			return true;
	}
	return false;
}

/* Host code for the instructions in b, as block k. */
static void build_end(struct block_build *b, struct tblock *k, enum block_head head)
{
	struct trans_vcpu *t = b->t;
	uint32_t cold = t->cold_used, used = t->used;

	b->index = (uint32_t)(k - t->blocks);
	b->e.p = t->mem.rw + t->used;
	k->flags_live = !b->count || (b->insns[0].live_in & FLAGS_ARITH);
	k->start_parked = k->flags_live && starts_parked(b);
	if (head == HEAD_NONE && loops(b))
		head = HEAD_POLL;
	head_emit(b, k, head);
	head_start(k, (uint32_t)(b->e.p - t->mem.rw));
	b->flags_at = k->start_parked ? FLAGS_PARKED : FLAGS_HOST;
	block_emit(b);
	stubs_emit(b);
	t->used = (uint32_t)(b->e.p - t->mem.rw + 15) & ~15u;
	t->count_blocks++;
	if (unlikely(b->v->en->code_made != NULL))
		perf_block(b, k, t->mem.rw + used, t->mem.rw + cold, t->mem.rw + t->cold_used);
}

/* Copies the page's bytes from `first` up to `end`. What was decoded stays as long as they are what they were, so that a
 * block finds what the one before it looked at. */
static void code_copy(struct block_build *b, const struct page_info *pi, unsigned first, unsigned end)
{
	if (b->memo_mode == b->insn_mode && !memcmp(b->code + first, pi->ro_hva + first, end - first))
		return;
	memcpy(b->code + first, pi->ro_hva + first, end - first);
	b->memo_mode = b->insn_mode;
	b->stamp++;
}

/* b->end, and the bytes up to it: copied, watched since before they were read or found unchanged after. Returns the
 * page's code version that they belong to. */
static uint32_t code_take(struct block_build *b, const struct page_info *pi)
{
	const unsigned most = (BLOCK_INSNS + 2 * LOOK_AHEAD + 1) * 15;
	unsigned start = b->start, room = GUEST_PAGE_SIZE - start;
	uint32_t version;

	code_copy(b, pi, start, start + (room < most ? room : most));
	b->end = block_extent(b);
	if (b->end == start)
		b->end = start + 15 < GUEST_PAGE_SIZE ? start + 15 : GUEST_PAGE_SIZE;
	version = code_version(b->v->en, pi->ram_page);
	code_watch(b->v, pi, start, b->end - 1);
	code_copy(b, pi, start, b->end);
	if (GUEST_PAGE_SIZE - b->end < 15) {	/* the crossing instruction's first part */
		code_watch(b->v, pi, start, GUEST_PAGE_SIZE - 1);
		code_copy(b, pi, b->end, GUEST_PAGE_SIZE);
	}
	return version;
}

static struct tblock *block_translate(struct vcpu *v, const struct page_info *pi, uint64_t gpa, unsigned mode,
				      enum block_head head)
{
	unsigned start = gpa & ~GUEST_PAGE_MASK;
	struct block_build *b = trans_of(v)->build;
	struct tblock *k;
	uint32_t version;

	build_begin(v, start, mode);
	version = code_take(b, pi);
	block_decode(b);
	if (b->count)
		liveness(b);
	if (!cache_room(v))
		cache_flush(v);
	k = cache_add(v, pi->ram_page, gpa, mode, version);
	build_end(b, k, head);
	return k;
}

struct tblock *block_at(struct vcpu *v, uint64_t gpa, unsigned mode, enum block_head head, bool parked)
{
	struct page_info pi = map_page(v->en->map, gpa & GUEST_PAGE_MASK);
	unsigned offset = gpa & ~GUEST_PAGE_MASK;
	struct tblock *k;

	if (!pi.rw_hva || pi.ram_page >= v->en->ram_pages || debugger_marks(interp_of(v), offset))
		return NULL;
	k = cache_find(v, pi.ram_page, offset, mode);
	if (k && k->version == code_version(v->en, pi.ram_page)) {
		if (head_need(v, k, head, parked))
			return k;
		cache_flush(v);
	} else if (k) {
		cache_drop_page(v, pi.ram_page);
	}
	k = block_translate(v, &pi, gpa, mode, head);
	if (!head_need(v, k, head, parked)) {
		cache_flush(v);
		return block_at(v, gpa, mode, head, parked);
	}
	return k;
}

/* --- instructions that cross into the next page --- */

bool block_crosses(struct vcpu *v, uint64_t gpa)
{
	unsigned offset = gpa & ~GUEST_PAGE_MASK;
	struct page_info pi;
	struct insn in;

	if (offset <= GUEST_PAGE_SIZE - 15)
		return false;
	pi = map_page(v->en->map, gpa);
	return pi.rw_hva &&
	       insn_decode(&in, pi.ro_hva + offset, GUEST_PAGE_SIZE - offset, v->insn_mode) == DECODE_SHORT;
}

static struct tblock *crossing_find(struct vcpu *v, uint32_t first, uint32_t second, unsigned offset, unsigned mode)
{
	struct trans_vcpu *t = trans_of(v);
	struct tblock *k = cache_find(v, first, offset, mode | TMODE_CROSSING);

	if (!k || !k->partner || t->blocks[k->partner].ram_page != second ||
	    k->version != code_version(v->en, first) ||
	    t->blocks[k->partner].version != code_version(v->en, second))
		return NULL;
	return k;
}

struct tblock *block_crossing(struct vcpu *v, uint64_t gpa, uint64_t next_gpa, unsigned mode)
{
	struct trans_vcpu *t = trans_of(v);
	struct block_build *b = t->build;
	struct page_info p1 = map_page(v->en->map, gpa), p2 = map_page(v->en->map, next_gpa);
	unsigned start = gpa & ~GUEST_PAGE_MASK, n = GUEST_PAGE_SIZE - start;
	struct block_insn *bi = &b->insns[0];
	struct tblock *k, *other;
	uint32_t version1, version2;

	if (!p1.rw_hva || !p2.rw_hva || p1.ram_page >= v->en->ram_pages || p2.ram_page >= v->en->ram_pages)
		return NULL;
	k = crossing_find(v, p1.ram_page, p2.ram_page, start, mode);
	if (k)
		return k;
	build_begin(v, start, mode);
	b->plain = true;	/* there is no plain block to go to */
	version1 = code_version(v->en, p1.ram_page);
	version2 = code_version(v->en, p2.ram_page);
	code_watch(v, &p1, start, GUEST_PAGE_SIZE - 1);
	code_watch(v, &p2, 0, 14);
	b->stamp++;
	memcpy(b->code + start, p1.ro_hva + start, n);
	memcpy(b->code + GUEST_PAGE_SIZE, p2.ro_hva, 15);
	if (insn_decode(&bi->in, b->code + start, 15, b->insn_mode) != DECODE_OK)
		return NULL;
	b->end = GUEST_PAGE_SIZE;
	b->count = 1;
	bi->offset = (uint16_t)start;
	liveness(b);
	if (!cache_room(v))
		cache_flush(v);
	k = cache_add(v, p1.ram_page, gpa, mode | TMODE_CROSSING, version1);
	other = cache_add(v, p2.ram_page, next_gpa, TMODE_CROSSING | 0x80, version2);
	k->partner = (uint32_t)(other - t->blocks);
	other->partner = (uint32_t)(k - t->blocks);
	build_end(b, k, HEAD_FULL);
	return k;
}
