/*
 * Control flow: how a block is left.
 *
 *   inside the page    jmp/jcc rel32, patched to the target block at first use; backward ones poll v->request
 *   elsewhere          inline look-up of the linear RIP in the jump cache, without touching flags:
 *
 *	mov  gs:[save_rcx], rcx
 *	mov  ecx, gs:[request]		; a request goes the way of a miss
 *	jrcxz 1f
 *   0:	mov  rcx, gs:[save_rcx]
 *	call exit_lookup
 *   1:	movzx ecx, t0w			; 65536 slots of { -RIP, host }
 *	add  as lea: ecx *= 2
 *	mov  t1, gs:[jump[mode]]
 *	lea  t1, [t1 + rcx * 8]
 *	mov  rcx, [t1]
 *	lea  rcx, [rcx + t0]		; zero: found
 *	jrcxz 2f
 *	jmp  0b
 *   2:	mov  rcx, gs:[save_rcx]
 *	jmp  [t1 + 8]
 */
#include "engine/soft/translate_private.h"

static void emit_exit_data(struct block_build *b, enum trans_exit kind, struct exit_data d)
{
	emit_call_to(&b->e, b->t->exit_to[kind]);
	memcpy(b->e.p, &d, sizeof d);
	b->e.p += sizeof d;
}

static void emit_exit(struct block_build *b, enum trans_exit kind, unsigned offset)
{
	emit_exit_data(b, kind, (struct exit_data){ .offset = (uint16_t)offset });
}

static void emit_lookup(struct block_build *b, unsigned mode, struct exit_data d)
{
	struct emitter *e = &b->e;
	uint8_t *free_to_go, *found, *miss;
	struct host_mem m;

	emit_store(e, H_RCX, hm_gs(OFF_HOT(save_rcx)));
	emit_op_mem(e, false, 0x8b, H_RCX, hm_gs(offsetof(struct vcpu, request)));
	free_to_go = emit_jrcxz(e);
	miss = e->p;
	emit_load(e, H_RCX, hm_gs(OFF_HOT(save_rcx)));
	emit_exit_data(b, TEXIT_LOOKUP, d);
	patch8(free_to_go, e->p);
	e3(e, 0x41, 0x0f, 0xb7), e1(e, 0xce);			/* movzx ecx, r14w */
	e3(e, 0x8d, 0x0c, 0x09);				/* lea ecx, [rcx + rcx] */
	emit_load(e, H_T1, hm_gs(OFF_HOT(jump) + 8 * mode));
	m = (struct host_mem){ H_T1, H_RCX, 3, false, 0 };
	emit_lea(e, H_T1, m);
	emit_load(e, H_RCX, hm_base(H_T1, 0));
	m = (struct host_mem){ H_RCX, H_T0, 0, false, 0 };
	emit_lea(e, H_RCX, m);
	found = emit_jrcxz(e);
	patch8(emit_jmp8(e), miss);
	patch8(found, e->p);
	emit_load(e, H_RCX, hm_gs(OFF_HOT(save_rcx)));
	emit_op_mem(e, false, 0xff, 4, hm_base(H_T1, 8));
}

void jump_indirect(struct block_build *b) { emit_lookup(b, b->mode, (struct exit_data){ 0 }); }
void jump_indirect_mode(struct block_build *b, unsigned mode) { emit_lookup(b, mode, (struct exit_data){ 0 }); }

/* The end of JMP or RET, which has popped so many bytes: back out of it if its target is no address. */
static void jump_branch(struct block_build *b, const struct block_insn *bi, unsigned popped)
{
	struct exit_data d = { .offset = (uint16_t)bi->offset, .flags = EXIT_BRANCH, .rel = (int32_t)popped };

	emit_lookup(b, b->mode, d);
}

/*
 * Steps if T0 is not canonical with 48 bits: a call must fault before it has pushed. Flags stay. T1 is used.
 * (With 5-level paging the step is only slow.)
 */
static void emit_check_canonical(struct block_build *b, const struct block_insn *bi)
{
	struct emitter *e = &b->e;
	uint8_t *good;

	emit_store(e, H_RCX, hm_gs(OFF_HOT(save_rcx)));
	emit_mov_imm(e, H_T1, 1ull << 47);
	emit_lea(e, H_T1, (struct host_mem){ H_T1, H_T0, 0, false, 0 });
	e3(e, 0x49, 0x0f, 0xcf);				/* bswap r15: the top comes first */
	e3(e, 0x41, 0x0f, 0xb7), e1(e, 0xcf);			/* movzx ecx, r15w */
	good = emit_jrcxz(e);
	emit_load(e, H_RCX, hm_gs(OFF_HOT(save_rcx)));
	emit_exit(b, TEXIT_STEP, bi->offset);
	patch8(good, e->p);
	emit_load(e, H_RCX, hm_gs(OFF_HOT(save_rcx)));
}

/* Leaves to C if a request is pending, with RIP at `target` of this page. */
static void emit_poll(struct block_build *b, unsigned target, bool flags_live)
{
	struct emitter *e = &b->e;
	struct host_mem request = hm_gs(offsetof(struct vcpu, request));
	uint8_t *ok;

	if (!flags_live) {
		emit_cmp_imm8(e, false, request, 0);
		block_stub(b, STUB_POLL, emit_jcc(e, CC_NE), target);
		return;
	}
	emit_store(e, H_RCX, hm_gs(OFF_HOT(save_rcx)));
	emit_op_mem(e, false, 0x8b, H_RCX, request);
	ok = emit_jrcxz(e);
	emit_load(e, H_RCX, hm_gs(OFF_HOT(save_rcx)));
	emit_exit(b, TEXIT_POLL, target);
	patch8(ok, e->p);
	emit_load(e, H_RCX, hm_gs(OFF_HOT(save_rcx)));
}

static bool in_page(int64_t target) { return target >= 0 && target < (int64_t)GUEST_PAGE_SIZE; }

void jump_to_offset(struct block_build *b, int64_t target, bool poll, bool flags_live)
{
	if (in_page(target)) {
		if (poll)
			emit_poll(b, (unsigned)target, flags_live);
		block_stub(b, STUB_CHAIN, emit_jmp(&b->e), (unsigned)target);
	} else {
		emit_page_address(b, H_T0, target);
		jump_indirect(b);
	}
}

/* Condition holds: to target; else to next. */
static void jcc_translate(struct block_build *b, struct block_insn *bi, int64_t target, int64_t next)
{
	struct emitter *e = &b->e;
	unsigned cc = bi->in.opcode & 15;
	bool live = bi->live_out & FLAGS_ARITH;

	if (in_page(target) && target > bi->offset) {
		block_stub(b, STUB_CHAIN, emit_jcc(e, cc), (unsigned)target);
	} else {
		uint8_t *over = emit_jcc(e, cc ^ 1);
		jump_to_offset(b, target, true, live);
		patch32(over, e->p);
	}
	jump_to_offset(b, next, false, live);
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
static bool indirect_target(struct block_build *b, struct block_insn *bi)
{
	const struct operand *o = &bi->in.ops[0];
	unsigned h, spare;

	if (o->kind == OPK_MEM) {
		if (!mem_translatable(b, &bi->in))
			return false;
		emit_op_mem(&b->e, b->wide, 0x8b, H_T0, mem_translate(b, bi, b->word, false, &spare));
		return true;
	}
	h = host_reg_of(o->reg);
	if (h == H_NONE)
		emit_load(&b->e, H_T0, hm_gs(OFF_GPR(o->reg)));
	else
		emit_op_reg(&b->e, b->wide, 0x89, h, H_T0);
	return true;
}

static enum insn_result call_translate(struct block_build *b, struct block_insn *bi, int64_t target, int64_t next)
{
	struct emitter *e = &b->e;

	if (bi->in.ops[0].kind == OPK_REL) {
		call_push(b, bi, (unsigned)next);
		jump_to_offset(b, target, target <= bi->offset, bi->live_out & FLAGS_ARITH);
		return INSN_ENDS;
	}
	if (!indirect_target(b, bi))
		return INSN_STEP;
	if (b->wide)
		emit_check_canonical(b, bi);
	emit_store(e, H_T0, hm_gs(OFF_HOT(save_value)));
	call_push(b, bi, (unsigned)next);
	emit_load(e, H_T0, hm_gs(OFF_HOT(save_value)));
	jump_indirect(b);
	return INSN_ENDS;
}

static enum insn_result ret_translate(struct block_build *b, struct block_insn *bi)
{
	struct emitter *e = &b->e;
	unsigned pop = bi->in.nops && bi->in.ops[0].kind == OPK_IMM ? (uint16_t)bi->in.imm : 0;

	emit_op_mem(e, b->wide, 0x8b, H_T0, stack_translate(b, bi, 0, b->word, false));
	emit_op_mem(e, b->wide, 0x8d, H_R13, hm_base(H_R13, (int32_t)(b->word + pop)));
	jump_branch(b, bi, b->word + pop);
	return INSN_ENDS;
}

/* LOOP and JRCXZ: the host's own, with the full count. */
static enum insn_result count_translate(struct block_build *b, struct block_insn *bi, int64_t target, int64_t next)
{
	struct emitter *e = &b->e;
	uint8_t *taken, *not_taken;

	if (bi->in.addrsize != b->word)
		return INSN_STEP;
	if (!b->wide)
		e1(e, 0x67);
	e2(e, bi->in.opcode, 0);	/* E0..E3 */
	taken = e->p - 1;
	not_taken = emit_jmp(e);
	patch8(taken, e->p);
	jump_to_offset(b, target, true, true);
	patch32(not_taken, e->p);
	jump_to_offset(b, next, false, true);
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
	switch (in->op) {
	case X86_JCC:
		jcc_translate(b, bi, target, next);
		return INSN_ENDS;
	case X86_JMP:
		if (in->ops[0].kind == OPK_REL)
			jump_to_offset(b, target, target <= bi->offset, bi->live_out & FLAGS_ARITH);
		else if (indirect_target(b, bi))
			jump_branch(b, bi, 0);
		else
			return INSN_STEP;
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
