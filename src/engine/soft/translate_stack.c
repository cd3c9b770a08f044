/*
 * Runs of PUSH or POP of registers: one check of all their slots, by a group or as a group's is: where it fails, and the
 * TLB cannot be filled unseen, the plain block goes on. It has no runs, so slots on two pages, faults and what is not
 * RAM are exact there.
 */
#include "engine/soft/translate_private.h"

#define RUN_MAX 8

static bool in_run(const struct block_build *b, const struct block_insn *bi, unsigned op)
{
	const struct insn *in = &bi->in;

	return in->op == op && in->opsize == b->word && in->ops[0].kind == OPK_GPR && in->ops[0].reg != REG_RSP;
}

unsigned stack_run_length(const struct block_build *b, unsigned first)
{
	unsigned op = b->insns[first].in.op, n = 0;

	if (b->plain || (op != X86_PUSH && op != X86_POP))
		return 0;
	while (n < RUN_MAX && first + n < b->count && in_run(b, &b->insns[first + n], op) &&
	       (!n || !groups_check_at(b, first + n)))
		n++;
	return n;
}

static void slot_push(struct block_build *b, unsigned guest, struct host_mem m)
{
	unsigned h = host_reg_of(guest);

	if (h == H_NONE) {	/* 64-bit code alone: T0 is free */
		emit_load(&b->e, H_T0, hm_gs(OFF_GPR(guest)));
		h = H_T0;
	}
	emit_op_mem(&b->e, b->wide, 0x89, h, m);
}

static void slot_pop(struct block_build *b, unsigned guest, struct host_mem m)
{
	unsigned h = host_reg_of(guest);

	emit_op_mem(&b->e, b->wide, 0x8b, h == H_NONE ? (unsigned)H_T0 : h, m);
	if (h == H_NONE)
		emit_store(&b->e, H_T0, hm_gs(OFF_GPR(guest)));
}

/* Are all slots of one group, whose check covers them? */
static bool run_grouped(const struct block_build *b, unsigned first, unsigned n)
{
	for (unsigned i = 1; i < n; i++)
		if (b->insns[first + i].group_stack != b->insns[first].group_stack)
			return false;
	return b->insns[first].group_stack;
}

void stack_run_translate(struct block_build *b, unsigned first, unsigned n)
{
	struct block_insn *bi = &b->insns[first];
	bool push = bi->in.op == X86_PUSH;
	int32_t bytes = (int32_t)(n * b->word), word = (int32_t)b->word;
	struct host_mem low;
	bool grouped = run_grouped(b, first, n);

	if (!grouped)
		bi->group_stack = 0;
	low = stack_translate(b, bi, push ? -bytes : 0, (unsigned)bytes, push);
	if (!grouped) {
		b->stubs[b->stub_count - 1].kind = STUB_GROUP;
		b->stubs[b->stub_count - 1].data.flags |= EXIT_GROUP;
	}
	for (unsigned i = 0; i < n; i++) {
		struct host_mem m = low;
		unsigned guest = bi[i].in.ops[0].reg;

		m.disp += push ? bytes - (int32_t)(i + 1) * word : (int32_t)i * word;
		if (push)
			slot_push(b, guest, m);
		else
			slot_pop(b, guest, m);
	}
	emit_op_mem(&b->e, b->wide, 0x8d, H_R13, hm_base(H_R13, push ? -bytes : bytes));	/* lea */
}
