/*
 * Control flow: how a block is left.
 *
 *   direct      jmp, jcc, call rel32, patched at first use to one of the target's entries (translate_link.c); to another
 *               page with T0 the linear RIP and T1 BRANCH_INFO, or 0 where code just goes on there
 *   return      ret, with T0 the linear RIP and T1 BRANCH_INFO (translate_return.c)
 *   indirect    inline look-up of the linear RIP in the jump cache; the guest's flags are parked:
 *
 *	movzx t1d, t0w			; 65536 slots of { RIP, host }
 *	shl  t1d, 4
 *	add  t1, gs:[jump[mode]]
 *	cmp  t0, [t1]
 *	jne  exit_lookup
 *	jmp  [t1 + 8]
 *
 * An indirect call looks its target up before it pushes: what is in the jump cache is an address, and may be fetched.
 */
#include "engine/soft/translate_private.h"

/* T1 := slot of T0. The jump that is taken if the slot is not T0's. RFLAGS is lost. */
static uint8_t *emit_slot(struct emitter *e, unsigned mode)
{
	e3(e, 0x45, 0x0f, 0xb7), e1(e, 0xfe);			/* movzx t1d, t0w */
	e3(e, 0x41, 0xc1, 0xe7), e1(e, 4);			/* shl t1d, 4 */
	emit_op_mem(e, true, 0x03, H_T1, hm_gs(OFF_HOT(jump) + 8 * mode));
	emit_op_mem(e, true, 0x3b, H_T0, hm_base(H_T1, 0));	/* cmp t0, [t1] */
	return emit_jcc(e, CC_NE);
}

static void emit_found(struct emitter *e) { emit_op_mem(e, false, 0xff, 4, hm_base(H_T1, 8)); }	/* jmp */

void jump_emit_shared(struct vcpu *v, struct emitter *e)
{
	struct exit_data d = { .flags = EXIT_SHARED };
	struct trans_vcpu *t = trans_of(v);

	for (unsigned mode = 0; mode < TRANSLATE_MODES; mode++) {
		uint8_t *over, *miss;
		t->lookup_host[mode] = e->p;
		emit_flags_save(e);
		over = emit_jmp8(e);
		t->sentinel[mode] = e->p;
		emit_lea(e, H_RSP, hm_base(H_RSP, -8));
		patch8(over, e->p);
		t->lookup[mode] = e->p;
		emit_op_mem(e, false, 0x89, H_T1, hm_gs(OFF_HOT(branch_info)));
		miss = emit_slot(e, mode);
		emit_found(e);
		patch32(miss, e->p);
		emit_flags_restore(e);
		emit_call_to(e, t->exit_to[TEXIT_LOOKUP]);
		memcpy(e->p, &d, sizeof d);
		e->p += sizeof d;
	}
}

/* T0: linear RIP; whoever is reached expects flags parked, if it wants them. info: BRANCH_INFO or 0. */
static void emit_lookup(struct block_build *b, unsigned mode, uint32_t info)
{
	struct stub *s;

	flags_to_memory(b, H_T1);
	s = block_stub(b, STUB_LOOKUP, emit_slot(&b->e, mode), 0);
	s->flags_saved = b->flags_at;
	s->data.flags = info ? EXIT_BRANCH : 0;
	s->data.rel = (int32_t)info;
	emit_found(&b->e);
}

void jump_indirect(struct block_build *b) { emit_lookup(b, b->mode, 0); }

/* Goes on in another mode, on that mode's return stack. */
void jump_indirect_mode(struct block_build *b, unsigned mode)
{
	emit_store(&b->e, H_RSP, hm_gs(OFF_HOT(return_sp) + 8 * b->mode));
	emit_load(&b->e, H_RSP, hm_gs(OFF_HOT(return_sp) + 8 * mode));
	emit_lookup(b, mode, 0);
}

static bool in_page(int64_t target) { return target >= 0 && target < (int64_t)GUEST_PAGE_SIZE; }

/* The displacement at `from` leads to an offset from the page's start. To another page: T0 and T1 are as emit_far() says. */
static void link_later(struct block_build *b, uint8_t *from, int64_t target, unsigned flags)
{
	struct stub *s = block_stub(b, in_page(target) ? STUB_CHAIN : STUB_FAR, from, in_page(target) ? (unsigned)target : 0);

	s->flags_saved = b->flags_at == FLAGS_PARKED;
	s->data.flags = (uint8_t)flags;
	if (b->flags_at != FLAGS_HOST)
		s->data.flags |= EXIT_PARKED;
}

static void emit_far(struct block_build *b, int64_t target, uint32_t info)
{
	if (in_page(target))
		return;
	emit_page_address(b, H_T0, target);
	emit_mov_imm(&b->e, H_T1, info);
}

static void branch_to(struct block_build *b, int64_t target, bool poll, uint32_t info)
{
	emit_far(b, target, info);
	link_later(b, emit_jmp(&b->e), target, poll ? EXIT_POLL : 0);
}

void jump_to_offset(struct block_build *b, int64_t target, bool poll) { branch_to(b, target, poll, 0); }

/* Condition holds: to target; else on. */
static void jcc_translate(struct block_build *b, struct block_insn *bi, int64_t target)
{
	struct emitter *e = &b->e;
	unsigned cc = bi->in.opcode & 15;

	if (loop_closes(b, bi)) {
		loop_close(b, emit_jcc(e, cc));
	} else if (in_page(target)) {
		link_later(b, emit_jcc(e, cc), target, target <= bi->offset ? EXIT_POLL : 0);
	} else {
		uint8_t *over = emit_jcc(e, cc ^ 1);
		branch_to(b, target, true, BRANCH_INFO(bi->offset, 0));
		patch32(over, e->p);
	}
	b->t1_kept = true;
}

static void call_push(struct block_build *b, struct block_insn *bi, unsigned next)
{
	struct emitter *e = &b->e;
	struct host_mem m = stack_translate(b, bi, -(int32_t)b->word, b->word, true);
	unsigned temp = b->wide ? H_T0 : H_T1;

	emit_page_address(b, temp, next);
	emit_op_mem(e, b->wide, 0x89, temp, m);
	emit_op_mem(e, b->wide, 0x8d, H_R13, hm_base(H_R13, -(int32_t)b->word));
}

/* T0 := the target of JMP or CALL r/m64. */
static void indirect_target(struct block_build *b, struct block_insn *bi)
{
	const struct operand *o = &bi->in.ops[0];
	unsigned h, spare;

	if (o->kind == OPK_MEM) {
		emit_op_mem(&b->e, b->wide, 0x8b, H_T0, mem_translate(b, bi, b->word, false, &spare));
		return;
	}
	h = host_reg_of(o->reg);
	if (h == H_NONE)
		emit_load(&b->e, H_T0, hm_gs(OFF_GPR(o->reg)));
	else
		emit_op_reg(&b->e, b->wide, 0x89, h, H_T0);
}

/* Where a host CALL returns to. T0: linear RIP, T1: BRANCH_INFO. */
static void call_site(struct block_build *b, int64_t next)
{
	if (in_page(next))
		block_stub(b, STUB_SITE, emit_jmp(&b->e), (unsigned)next)->flags_saved = true;
	else
		emit_jmp_to(&b->e, b->t->lookup[b->mode]);
}

static void call_direct(struct block_build *b, struct block_insn *bi, int64_t target, int64_t next)
{
	call_push(b, bi, (unsigned)next);
	emit_far(b, target, BRANCH_INFO(bi->offset, 0) | BRANCH_CALLED);
	e1(&b->e, 0xe8);
	b->e.p += 4;
	link_later(b, b->e.p - 4, target, EXIT_CALL);
}

/* Returns the stub for what the jump cache does not know; it has to be told the site. */
static struct stub *call_indirect(struct block_build *b, struct block_insn *bi, int64_t next)
{
	struct emitter *e = &b->e;
	struct stub *miss;

	indirect_target(b, bi);
	flags_to_memory(b, H_T1);
	b->flags_at &= (uint8_t)~FLAGS_HOST;
	miss = block_stub(b, STUB_TARGET, emit_slot(e, b->mode), bi->offset);
	miss->flags_saved = b->flags_at;
	emit_store(e, H_T0, hm_gs(OFF_HOT(save_value)));
	emit_load(e, H_T1, hm_base(H_T1, 8));
	emit_store(e, H_T1, hm_gs(OFF_HOT(call_target)));
	call_push(b, bi, (unsigned)next);
	emit_load(e, H_T0, hm_gs(OFF_HOT(save_value)));
	emit_op_mem(e, false, 0xff, 2, hm_gs(OFF_HOT(call_target)));	/* call */
	return miss;
}

static enum insn_result call_translate(struct block_build *b, struct block_insn *bi, int64_t target, int64_t next)
{
	struct stub *miss = NULL;

	if (bi->in.ops[0].kind == OPK_REL)
		call_direct(b, bi, target, next);
	else
		miss = call_indirect(b, bi, next);
	if (miss)
		miss->retry = b->e.p;
	if (bi + 1 == b->insns + b->count) {
		call_site(b, next);
		return INSN_ENDS;
	}
	verify_emit(b, &b->t->blocks[b->index], (unsigned)next);
	emit_store(&b->e, H_T0, hm_gs(OFF_HOT(page)));
	b->flags_at = bi[1].live_in & FLAGS_ARITH ? FLAGS_PARKED : 0;
	b->fpu_checked = false;		/* who knows what went on there */
	return INSN_NEXT;
}

static enum insn_result ret_translate(struct block_build *b, struct block_insn *bi)
{
	struct emitter *e = &b->e;
	unsigned pop = b->word + (bi->in.nops && bi->in.ops[0].kind == OPK_IMM ? (uint16_t)bi->in.imm : 0);

	emit_op_mem(e, b->wide, 0x8b, H_T0, stack_translate(b, bi, 0, b->word, false));
	emit_op_mem(e, b->wide, 0x8d, H_R13, hm_base(H_R13, (int32_t)pop));
	flags_to_memory(b, H_T1);
	emit_mov_imm(e, H_T1, BRANCH_INFO(bi->offset, pop));
	e1(e, 0xc3);
	return INSN_ENDS;
}

static enum insn_result jmp_indirect(struct block_build *b, struct block_insn *bi)
{
	indirect_target(b, bi);
	emit_lookup(b, b->mode, BRANCH_INFO(bi->offset, 0));
	return INSN_ENDS;
}

/* LOOP and JRCXZ: the host's own, with the full count. */
static enum insn_result count_translate(struct block_build *b, struct block_insn *bi, int64_t target, int64_t next)
{
	struct emitter *e = &b->e;
	uint32_t info = BRANCH_INFO(bi->offset, 0) | (bi->in.op == X86_JCXZ ? 0 : BRANCH_COUNTED);
	uint8_t *taken, *not_taken;

	if (bi->in.addrsize != b->word)
		return INSN_STEP;
	flags_to_host(b, H_T1);
	if (!b->wide)
		e1(e, 0x67);
	e2(e, bi->in.opcode, 0);	/* E0..E3 */
	taken = e->p - 1;
	not_taken = emit_jmp(e);
	patch8(taken, e->p);
	branch_to(b, target, true, info);
	patch32(not_taken, e->p);
	jump_to_offset(b, next, false);
	return INSN_ENDS;
}

enum insn_result jump_translate(struct block_build *b, struct block_insn *bi)
{
	const struct insn *in = &bi->in;
	int64_t next = bi->offset + in->len, target = next;

	if (in->p66 || in->opsize != b->word)
		return INSN_STEP;
	if (in->nops && in->ops[0].kind == OPK_REL)
		target += (int64_t)in->imm;
	if (in->nops && in->ops[0].kind == OPK_MEM && !mem_translatable(b, in))
		return INSN_STEP;
	flags_before(b, bi, H_T1);
	flags_end(b, bi);
	switch (in->op) {
	case X86_JCC:
		jcc_translate(b, bi, target);
		return INSN_NEXT;
	case X86_JMP:
		if (loop_closes(b, bi))
			loop_close(b, emit_jmp(&b->e));
		else if (in->ops[0].kind == OPK_REL)
			branch_to(b, target, target <= bi->offset, BRANCH_INFO(bi->offset, 0));
		else
			return jmp_indirect(b, bi);
		return INSN_ENDS;
	case X86_CALL:
		return call_translate(b, bi, target, next);
	case X86_RET:
		return ret_translate(b, bi);
	case X86_JCXZ: case X86_LOOP: case X86_LOOPE: case X86_LOOPNE:
		return count_translate(b, bi, target, next);
	default:
		return INSN_STEP;
	}
}
