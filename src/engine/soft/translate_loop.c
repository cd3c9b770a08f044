/*
 * Loops: blocks that jump to their own start are emitted twice.
 *
 *   first:  every check as elsewhere; those of streams note what they found
 *           jcc  body
 *   behind: what comes after the loop
 *           ...
 *   body:   cmp  sp, gs:[return_limit] ; jb exit
 *           the same instructions, but a stream's check is
 *               cmp  reg, gs:[stream_limit[n]] ; jge first, where it checks that access
 *               mov  t1, gs:[stream_addend[n]]
 *           jcc  body
 *           jmp  behind
 *
 * A stream is a check whose address moves by the same number each time around, or not at all: then the body has no
 * check of it. groups_plan() has followed the registers: the address is what one of them held at the loop's start plus
 * a number, and at the loop's end that register holds the same plus its step.
 *
 * What the first copy notes: the addend, and up to where the register that moves may go before the access leaves the
 * page that was found (stream_limit, excluded, compared as signed numbers). The body's check admits the access if the
 * register has not come there: from the value that was checked it went only in that one direction, step by step, with a
 * compare after each step, so the access lies between the one that was checked and the page's end. For that
 * the register must not wrap on the way. A pointer cannot: pages are mapped at canonical addresses only, and those are far
 * from both ends of signed numbers. An index may be any number: if it is not between -2^62 and 2^62, the limit is such
 * that the body always goes back to the first copy.
 *
 * A failing check goes on in the first copy, at the same access, in the same time around: whatever else has to be
 * done is done there, exactly. Notes are good for one stay in the block: the body is entered from the first copy alone,
 * which has made them all by then, and polls each time around. Entries of the TLB go, also for others' sake, only at
 * block boundaries, that is, outside of such a stay.
 */
#include "engine/soft/translate_private.h"

#define STEP_MAX 256	/* bytes; with longer ones the page is another too often */

/* What a loop may be made of: accesses and branches that leave it. */
static bool loop_allows(const struct insn *in)
{
	return in->row->trans == TRANS_COPY || in->op == X86_NOP || in->op == X86_JCC;
}

static bool jumps_to_start(const struct block_build *b, const struct block_insn *bi)
{
	const struct insn *in = &bi->in;

	return (in->op == X86_JCC || in->op == X86_JMP) && in->ops[0].kind == OPK_REL && in->opsize == b->word && !in->p66 &&
	       bi->offset + in->len + (int64_t)in->imm == b->start;
}

/* Its last instruction; false: the block is no loop. */
static bool loop_find(const struct block_build *b, unsigned *last)
{
	for (unsigned i = 0; i < b->count; i++) {
		*last = i;
		if (jumps_to_start(b, &b->insns[i]))
			return true;
		if (!loop_allows(&b->insns[i].in))
			return false;
	}
	return false;
}

/* Is what the register holds before instruction i the same each time around but for a step? */
static bool steps(const struct block_build *b, unsigned i, unsigned reg, int64_t *step)
{
	const struct value *v = &b->values[i][reg], *end;

	if (v->id < 1 || v->id > 16)	/* what register id - 1 held at the start */
		return false;
	end = &b->values[b->loop.last][v->id - 1];
	*step = end->delta;
	return end->id == v->id;
}

/* Returns 1 + its number, 0: none is free, or it is no use. step: of the address, in bytes. */
static uint8_t stream_add(struct block_build *b, struct stream s, int64_t step, unsigned align)
{
	if (step > STEP_MAX || step < -STEP_MAX || (step & (align - 1)) || b->loop.count == TRANSLATE_STREAMS)
		return 0;
	s.moves = step;
	s.down = step < 0;
	b->loop.streams[b->loop.count++] = s;
	return (uint8_t)b->loop.count;
}

static uint8_t stream_of_group(struct block_build *b, const struct group *g)
{
	int64_t step;

	if (!g->count || g->head > b->loop.last || !steps(b, g->head, g->base, &step) || (g->absolute && step))
		return 0;
	return stream_add(b, (struct stream){ .reg = g->base }, step, g->align);
}

static bool is_still(const struct block_build *b, unsigned i, unsigned reg)
{
	int64_t step;

	return reg == INSN_REG_NONE || (steps(b, i, reg, &step) && !step);
}

/* The address of an access with a check of its own. One of base and index may move, in a register of the host. */
static uint8_t stream_of_access(struct block_build *b, unsigned i, unsigned align)
{
	const struct insn *in = &b->insns[i].in;
	unsigned base = in->mem.base, index = in->mem.index, moving = is_still(b, i, index) ? base : index;
	int64_t step = 0;

	if (index != INSN_REG_NONE && host_reg_of(index) == H_NONE)
		return 0;
	if (moving == index && !is_still(b, i, base))		/* which may be the index itself */
		return 0;
	if (moving != INSN_REG_NONE && !steps(b, i, moving, &step))
		return 0;
	if (step && host_reg_of(moving) == H_NONE)
		return 0;
	return stream_add(b, (struct stream){ .reg = (uint8_t)moving, .shift = moving == base ? 0 : in->mem.scale,
					      .wild = index != INSN_REG_NONE || in->mem.seg == SEG_FS || in->mem.seg == SEG_GS,
					      .by_base = moving == base },
			  moving == base ? step : step * (1 << in->mem.scale), align);
}

static void access_plan(struct block_build *b, unsigned i)
{
	struct block_insn *bi = &b->insns[i];
	const struct insn *in = &bi->in;

	if (bi->group_mem || in->op == X86_LEA || in->addrsize != 8 || (in->row->attr & ROW_VSIB))
		return;
	if ((in->op == X86_BT || in->op == X86_BTS || in->op == X86_BTR || in->op == X86_BTC) && in->ops[1].kind != OPK_IMM)
		return;		/* mem_translate_bit() */
	for (unsigned k = 0; k < in->nops; k++)
		if (in->ops[k].kind == OPK_MEM && in->ops[k].size)
			bi->stream = stream_of_access(b, i, mem_align(in, in->ops[k].size));
}

void loop_plan(struct block_build *b)
{
	b->loop = (struct loop){ .last = 0 };
	for (unsigned i = 0; i < b->count; i++)
		b->insns[i].stream = 0;
	for (unsigned k = 0; k < b->group_count; k++)
		b->groups[k].stream = 0;
	if (b->plain || !b->wide || !b->count || (b->insns[0].live_in & FLAGS_ARITH) || !loop_find(b, &b->loop.last))
		return;
	for (unsigned k = 0; k < b->group_count; k++)
		b->groups[k].stream = stream_of_group(b, &b->groups[k]);
	for (unsigned i = 0; i < b->loop.last; i++)
		access_plan(b, i);
	b->loop.found = b->loop.count;
}

/* --- the first copy --- */

static struct host_mem limit_of(const struct block_build *b, const struct stream *s)
{
	return hm_gs(OFF_HOT(stream_limit) + 8 * (uint64_t)(s - b->loop.streams));
}

/* T0 += T0, which overflows if the limit is far out: then it becomes one that nothing passes. */
static void limit_tame(struct block_build *b, const struct stream *s)
{
	struct emitter *e = &b->e;
	uint8_t *tame;

	emit_op_reg(e, true, 0x01, H_T0, H_T0);
	tame = emit_jcc8(e, CC_NO);
	emit_mov_imm(e, H_T0, s->down ? INT64_MAX : 1ull << 63);
	emit_store(e, H_T0, limit_of(b, s));
	patch8(tame, e->p);
}

static void emit_shift_right(struct emitter *e, unsigned n)
{
	if (n)
		e3(e, 0x49, 0xc1, 0xee), e1(e, (uint8_t)n);		/* shr t0, n */
}

void loop_note(struct block_build *b, unsigned stream, unsigned size)
{
	const struct stream *s = &b->loop.streams[stream - 1];
	struct emitter *e = &b->e;
	unsigned reg;

	if (!s->moves)
		return;
	reg = host_reg_of(s->reg);
	if (s->down) {
		emit_shift_right(e, s->shift);
		e3(e, 0x49, 0xf7, 0xde);				/* neg t0 */
		emit_lea(e, H_T0, (struct host_mem){ H_T0, (uint8_t)reg, 0, false, -1 });
	} else {
		e3(e, 0x49, 0xf7, 0xde);				/* neg t0 */
		emit_lea(e, H_T0, hm_base(H_T0, (int32_t)(GUEST_PAGE_SIZE - size)));
		emit_shift_right(e, s->shift);
		emit_lea(e, H_T0, (struct host_mem){ H_T0, (uint8_t)reg, 0, false, 1 });
	}
	emit_store(e, H_T0, limit_of(b, s));
	if (s->wild)
		limit_tame(b, s);
}

void loop_note_addend(struct block_build *b, unsigned stream)
{
	emit_store(&b->e, H_T1, hm_gs(OFF_HOT(stream_addend) + 8 * (stream - 1)));
}

void loop_again(struct block_build *b, unsigned stream)
{
	if (stream)
		b->loop.streams[stream - 1].again = b->e.p;
}

/* --- the body --- */

bool loop_in_body(const struct block_build *b, unsigned stream) { return stream && b->loop.body; }

void loop_check(struct block_build *b, const struct block_insn *bi, unsigned stream)
{
	const struct stream *s = &b->loop.streams[stream - 1];

	if (!s->moves)
		return;
	flags_park(b, bi, H_T1);
	emit_op_mem(&b->e, true, 0x3b, host_reg_of(s->reg), limit_of(b, s));	/* cmp */
	patch32(emit_jcc(&b->e, s->down ? CC_LE : CC_GE), s->again);
}

void loop_load_addend(struct block_build *b, unsigned stream)
{
	emit_load(&b->e, H_T1, hm_gs(OFF_HOT(stream_addend) + 8 * (stream - 1)));
}

/* --- both --- */

bool loop_closes(const struct block_build *b, const struct block_insn *bi)
{
	return b->loop.found && bi == &b->insns[b->loop.last];
}

void loop_close(struct block_build *b, uint8_t *from)
{
	if (b->loop.body) {
		patch32(from, b->loop.top);
		return;
	}
	b->loop.back = from;
	b->addend_group = 0;
	if (b->flags_at)
		b->flags_at = FLAGS_HOST;	/* the body may have parked none */
}

void loop_behind(struct block_build *b, unsigned i)
{
	if (b->loop.found && i == b->loop.last + 1)
		b->loop.behind = b->e.p;
}

void loop_body(struct block_build *b)
{
	struct emitter *e = &b->e;

	while (((uintptr_t)e->p & 31) != 0)
		e1(e, 0xcc);
	b->loop.body = true;
	b->loop.top = e->p;
	patch32(b->loop.back, e->p);
	b->flags_at = 0;
	b->addend_group = 0;
	b->fpu_checked = true;		/* by the first copy, which has been here */
	e1(e, 0x66);
	emit_op_mem(e, false, 0x3b, H_RSP, hm_gs(OFF_HOT(return_limit)));	/* cmp sp, limit */
	block_stub(b, STUB_POLL, emit_jcc(e, CC_B), b->start);
}
