/*
 * Where the guest's arithmetic flags are while a block is emitted.
 *
 *   FLAGS_HOST     in RFLAGS: at a block's start, and after every instruction that writes some
 *   FLAGS_PARKED   in hot.save_flags: AH as LAHF leaves it, AL 1 if OF is set
 *
 * Both may hold; neither does where flags are dead and our own code has lost them. Our code parks flags before it loses live
 * ones. They come back only for an instruction that reads some, or leaves some as they are: mostly they are overwritten
 * before that, or the block ends in an indirect branch, whose targets expect them parked (translate_link.c).
 */
#include "engine/soft/translate_private.h"

/* A shift: flags pass through if the count is zero. known: it is a number. */
static bool is_shift(const struct insn *in, bool *known, unsigned *count)
{
	unsigned size = in->ops[0].size;

	switch (in->op) {
	case X86_SHL: case X86_SHR: case X86_SAR: case X86_ROL: case X86_ROR: case X86_SHLD: case X86_SHRD:
		*known = in->ops[in->nops - 1].kind == OPK_IMM;
		*count = in->imm & (size == 8 ? 63 : 31);
		return true;
	default:
		return false;
	}
}

uint32_t insn_flags_read(const struct insn *in)
{
	unsigned count;
	bool known;

	return is_shift(in, &known, &count) ? 0 : in->row->flags_read & FLAGS_ARITH;
}

uint32_t insn_flags_lost(const struct insn *in)
{
	uint32_t lost = (in->row->flags_written | in->row->flags_undefined) & FLAGS_ARITH;
	unsigned count;
	bool known;

	if (!is_shift(in, &known, &count))
		return lost;
	if ((in->op == X86_SHLD || in->op == X86_SHRD) && in->ops[0].size == 2)	/* counts above 16 leave all undefined */
		return 0;
	return known && count ? lost : 0;
}

void emit_flags_park(struct emitter *e, unsigned temp)
{
	emit_op_reg(e, true, 0x89, H_RAX, temp);
	e1(e, 0x9f);				/* lahf */
	e3(e, 0x0f, 0x90, 0xc0);		/* seto al */
	emit_op_mem(e, false, 0x89, H_RAX, hm_gs(OFF_HOT(save_flags)));
	emit_op_reg(e, true, 0x89, temp, H_RAX);
}

void emit_flags_unpark(struct emitter *e, unsigned temp)
{
	emit_op_reg(e, true, 0x89, H_RAX, temp);
	emit_op_mem(e, false, 0x8b, H_RAX, hm_gs(OFF_HOT(save_flags)));
	e2(e, 0x04, 0x7f);			/* add al, 0x7f: overflows if 1 */
	e1(e, 0x9e);				/* sahf */
	emit_op_reg(e, true, 0x89, temp, H_RAX);
}

static void temp_lost(struct block_build *b, unsigned temp)
{
	if (temp == H_T1)
		b->addend_group = 0;
}

void flags_to_memory(struct block_build *b, unsigned temp)
{
	if (b->flags_at == FLAGS_HOST) {
		emit_flags_park(&b->e, temp);
		temp_lost(b, temp);
	}
	if (b->flags_at)
		b->flags_at |= FLAGS_PARKED;
}

void flags_park(struct block_build *b, const struct block_insn *bi, unsigned temp)
{
	if (bi->live_in & FLAGS_ARITH)
		flags_to_memory(b, temp);
	b->flags_at &= (uint8_t)~FLAGS_HOST;
}

void flags_to_host(struct block_build *b, unsigned temp)
{
	if (b->flags_at != FLAGS_PARKED)
		return;
	emit_flags_unpark(&b->e, temp);
	temp_lost(b, temp);
	b->flags_at |= FLAGS_HOST;
}

void flags_only_host(struct block_build *b)
{
	flags_to_host(b, H_T1);
	b->flags_at = FLAGS_HOST;
}

void flags_end(struct block_build *b, const struct block_insn *bi)
{
	if (!(bi->live_out & FLAGS_ARITH))
		b->flags_at = 0;
}

bool insn_flags_needed(const struct block_insn *bi)
{
	uint32_t lost = insn_flags_lost(&bi->in);
	bool writes = (bi->in.row->flags_written | bi->in.row->flags_undefined) & FLAGS_ARITH;

	return insn_flags_read(&bi->in) || (writes && (bi->live_out & FLAGS_ARITH & ~lost));
}

void flags_before(struct block_build *b, const struct block_insn *bi, unsigned temp)
{
	if (insn_flags_needed(bi))
		flags_to_host(b, temp);
}

void flags_after(struct block_build *b, const struct block_insn *bi)
{
	if ((bi->in.row->flags_written | bi->in.row->flags_undefined) & FLAGS_ARITH)
		b->flags_at = FLAGS_HOST;
}
