/* Near control flow. */
#include "engine/soft/handlers.h"

/* Target checks come before anything is committed: #GP(0) on the branch itself. */
INLINE uint64_t branch_target(struct vcpu *v, uint64_t target, unsigned opsize)
{
	if (v->insn_mode == INSN_64) {
		if (unlikely(!va_canonical(v, target)))
			vcpu_raise_error(v, EXC_GP, 0);
		return target;
	}
	target &= size_mask(opsize);
	if (unlikely(target > v->s.seg[SEG_CS].limit))
		vcpu_raise_error(v, EXC_GP, 0);
	return target;
}

/* In 64-bit mode near branches are 64 bits wide whatever the prefix. */
INLINE unsigned branch_size(const struct vcpu *v, const struct insn *in)
{
	return v->insn_mode == INSN_64 ? 8 : in->opsize;
}

INLINE uint64_t next_rip(const struct vcpu *v, const struct insn *in)
{
	uint64_t next = v->s.rip + in->len;

	return v->insn_mode == INSN_64 ? next : (uint32_t)next;
}

INLINE void jump_rel(struct vcpu *v, const struct insn *in)
{
	v->s.rip = branch_target(v, v->s.rip + in->len + in->imm, branch_size(v, in));
}

INLINE void jump_if(struct vcpu *v, const struct insn *in, bool taken)
{
	if (taken)
		jump_rel(v, in);
	else
		v->s.rip = next_rip(v, in);
}

INTERP_HANDLER(op_jmp)
{
	if (in->ops[0].kind == OPK_REL)
		jump_rel(v, in);
	else
		v->s.rip = branch_target(v, op_read(v, in, 0), branch_size(v, in));
}

INTERP_HANDLER(op_jcc) { jump_if(v, in, cond_true(v->s.rflags, in->opcode)); }

#define JCC(name, expr) \
	INTERP_HANDLER(op_jcc_##name) { uint64_t fl = v->s.rflags; jump_if(v, in, expr); }
JCC(z, fl & FLAG_ZF) JCC(nz, !(fl & FLAG_ZF)) JCC(c, fl & FLAG_CF) JCC(nc, !(fl & FLAG_CF))

INTERP_HANDLER(op_jcxz) { jump_if(v, in, !gpr_get(v, REG_RCX, in->addrsize)); }

INLINE void loop_if(struct vcpu *v, const struct insn *in, bool cond)
{
	uint64_t count = (v->s.gpr[REG_RCX] - 1) & size_mask(in->addrsize);

	jump_if(v, in, count && cond);
	gpr_set(v, REG_RCX, in->addrsize, count);
}

INTERP_HANDLER(op_loop) { loop_if(v, in, true); }
INTERP_HANDLER(op_loope) { loop_if(v, in, v->s.rflags & FLAG_ZF); }
INTERP_HANDLER(op_loopne) { loop_if(v, in, !(v->s.rflags & FLAG_ZF)); }

INTERP_HANDLER(op_call)
{
	unsigned n = branch_size(v, in);
	uint64_t to = in->ops[0].kind == OPK_REL ? v->s.rip + in->len + in->imm : op_read(v, in, 0);

	to = branch_target(v, to, n);
	push(v, next_rip(v, in), n);
	v->s.rip = to;
}

INTERP_HANDLER(op_ret)
{
	unsigned n = branch_size(v, in);
	uint64_t to = branch_target(v, stack_peek(v, 0, n), n);

	rsp_add(v, n + (in->nops ? in->imm & 0xffff : 0));
	v->s.rip = to;
}
