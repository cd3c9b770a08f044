/*
 * MOVS and STOS inside one page each, forward: the host's own, on host addresses.
 *
 * All the rest (longer runs, DF set, TLB misses) is the interpreter's, which goes page by page.
 */
#include "engine/soft/translate_private.h"

/* RCX <= 4096 / size, so that the run's length cannot overflow. */
static void count_check(struct block_build *b, struct block_insn *bi, unsigned size)
{
	e3(&b->e, 0x48, 0x81, 0xf9), e_u32(&b->e, GUEST_PAGE_SIZE / size);	/* cmp rcx, n */
	block_stub(b, STUB_STEP, emit_jcc(&b->e, CC_A), bi->offset)->flags_saved = true;
}

static void direction_check(struct block_build *b, struct block_insn *bi)
{
	emit_op_mem(&b->e, false, 0xf7, 0, hm_gs(offsetof(struct vcpu, s.rflags)));
	e_u32(&b->e, FLAG_DF);
	block_stub(b, STUB_STEP, emit_jcc(&b->e, CC_NE), bi->offset)->flags_saved = true;
}

static void emit_string(struct emitter *e, const struct insn *in, unsigned size, bool repeated)
{
	if (size == 2)
		e1(e, 0x66);
	if (repeated)
		e1(e, 0xf3);
	if (size == 8)
		e1(e, 0x48);
	e1(e, (in->op == X86_MOVS ? 0xa4 : 0xaa) | (size > 1));
}

/* Between guest and host addresses; flags are saved and restored around all this. */
static void emit_rebase(struct emitter *e, unsigned reg, unsigned temp, bool back)
{
	emit_op_reg(e, true, back ? 0x29 : 0x01, temp, reg);
}

enum insn_result string_translate(struct block_build *b, struct block_insn *bi)
{
	struct emitter *e = &b->e;
	const struct insn *in = &bi->in;
	unsigned size = in->ops[0].size;
	bool repeated = in->rep || in->repne, movs = in->op == X86_MOVS;
	uint8_t *none = NULL;

	if (in->addrsize != 8 || (in->seg_override != SEG_NONE && in->seg_override >= SEG_FS) || !size)
		return INSN_STEP;
	flags_only_host(b);
	emit_flags_save(e);
	direction_check(b, bi);
	if (repeated) {
		emit_op_reg(e, true, 0x85, H_RCX, H_RCX);	/* test rcx, rcx */
		none = emit_jcc(e, CC_E);
		count_check(b, bi, size);
	}
	if (movs) {
		emit_op_reg(e, true, 0x89, H_RSI, H_T0);
		mem_check_run(b, bi, size, repeated, false);
		emit_store(e, H_T1, hm_gs(OFF_HOT(save_value)));
	}
	emit_op_reg(e, true, 0x89, H_RDI, H_T0);
	mem_check_run(b, bi, size, repeated, true);
	if (movs) {
		emit_load(e, H_T0, hm_gs(OFF_HOT(save_value)));
		emit_rebase(e, H_RSI, H_T0, false);
	}
	emit_rebase(e, H_RDI, H_T1, false);
	emit_string(e, in, size, repeated);
	emit_rebase(e, H_RDI, H_T1, true);
	if (movs)
		emit_rebase(e, H_RSI, H_T0, true);
	if (none)
		patch32(none, e->p);
	emit_flags_restore(e);
	return INSN_NEXT;
}
