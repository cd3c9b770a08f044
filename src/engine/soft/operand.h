/*
 * Operands and arithmetic flags for the instruction handlers.
 */
#ifndef VIXEN_ENGINE_SOFT_OPERAND_H
#define VIXEN_ENGINE_SOFT_OPERAND_H

#include "engine/soft/mem.h"

#define INLINE static inline __attribute__((always_inline))

INLINE uint64_t size_mask(unsigned size) { return ~0ull >> (64 - 8 * size); }
INLINE int64_t sign_extend(uint64_t x, unsigned size)
{
	return (int64_t)(x << (64 - 8 * size)) >> (64 - 8 * size);
}

INLINE uint64_t gpr_get(const struct vcpu *v, unsigned reg, unsigned size)
{
	return v->s.gpr[reg] & size_mask(size);
}

INLINE void gpr_set(struct vcpu *v, unsigned reg, unsigned size, uint64_t value)
{
	uint64_t *r = &v->s.gpr[reg];

	switch (size) {
	case 8: *r = value; break;
	case 4: *r = (uint32_t)value; break;
	case 2: *r = (*r & ~0xffffull) | (uint16_t)value; break;
	default: *r = (*r & ~0xffull) | (uint8_t)value; break;
	}
}

INLINE uint64_t reg_read(const struct vcpu *v, const struct operand *o)
{
	if (o->high_byte)
		return (v->s.gpr[o->reg] >> 8) & 0xff;
	return gpr_get(v, o->reg, o->size);
}

INLINE void reg_write(struct vcpu *v, const struct operand *o, uint64_t value)
{
	if (o->high_byte)
		v->s.gpr[o->reg] = (v->s.gpr[o->reg] & ~0xff00ull) | (value & 0xff) << 8;
	else
		gpr_set(v, o->reg, o->size, value);
}

/* Reads a GPR, memory or immediate operand, zero-extended. */
INLINE uint64_t op_read(struct vcpu *v, const struct insn *in, unsigned i)
{
	const struct operand *o = &in->ops[i];

	switch (o->kind) {
	case OPK_GPR: return reg_read(v, o);
	case OPK_MEM: case OPK_MOFFS: return mem_ld(v, in->mem.seg, mem_ea(v, in), o->size);
	default: return in->imm;
	}
}

INLINE void op_write(struct vcpu *v, const struct insn *in, unsigned i, uint64_t value)
{
	const struct operand *o = &in->ops[i];

	if (o->kind == OPK_GPR)
		reg_write(v, o, value);
	else
		mem_st(v, in->mem.seg, mem_ea(v, in), o->size, value);
}

INLINE bool is_mem(const struct operand *o) { return o->kind == OPK_MEM || o->kind == OPK_MOFFS; }

/* --- flags --- */

INLINE uint64_t flag_parity(uint64_t r) { return __builtin_parity((uint8_t)r) ? 0 : FLAG_PF; }

/* SF, ZF, PF of a result of `size` bytes; r may have garbage above. */
INLINE uint64_t flags_szp(uint64_t r, unsigned size)
{
	uint64_t top = r << (64 - 8 * size);

	return (top >> 63 << 7) | (top ? 0 : FLAG_ZF) | flag_parity(r);
}

INLINE void flags_set(struct vcpu *v, uint64_t mask, uint64_t value)
{
	v->s.rflags = (v->s.rflags & ~mask) | (value & mask);
}

/* a + b + carry. Operands are moved to the top so that carry and overflow fall at bit 63. */
INLINE uint64_t alu_add(uint64_t a, uint64_t b, unsigned carry, unsigned size, uint64_t *fl)
{
	unsigned sh = 64 - 8 * size;
	uint64_t r = a + b + carry, ta = a << sh, tb = b << sh, tr = r << sh;
	uint64_t cf = carry ? tr <= ta : tr < ta;

	*fl = cf | ((a ^ b ^ r) & FLAG_AF) | flags_szp(r, size) | ((ta ^ tr) & (tb ^ tr)) >> 63 << 11;
	return r;
}

INLINE uint64_t alu_sub(uint64_t a, uint64_t b, unsigned borrow, unsigned size, uint64_t *fl)
{
	unsigned sh = 64 - 8 * size;
	uint64_t r = a - b - borrow, ta = a << sh, tb = b << sh, tr = r << sh;
	uint64_t cf = borrow ? ta <= tb : ta < tb;

	*fl = cf | ((a ^ b ^ r) & FLAG_AF) | flags_szp(r, size) | ((ta ^ tb) & (ta ^ tr)) >> 63 << 11;
	return r;
}

INLINE bool cond_true(uint64_t fl, unsigned cc)
{
	bool t;

	switch (cc >> 1 & 7) {
	case 0: t = fl & FLAG_OF; break;
	case 1: t = fl & FLAG_CF; break;
	case 2: t = fl & FLAG_ZF; break;
	case 3: t = fl & (FLAG_CF | FLAG_ZF); break;
	case 4: t = fl & FLAG_SF; break;
	case 5: t = fl & FLAG_PF; break;
	case 6: t = (fl >> 7 ^ fl >> 11) & 1; break;
	default: t = ((fl >> 7 ^ fl >> 11) & 1) || (fl & FLAG_ZF); break;
	}
	return t ^ (cc & 1);
}

/* --- read-modify-write of operand 0 --- */

INLINE bool host_cas(void *p, unsigned size, uint64_t *expected, uint64_t desired)
{
	switch (size) {
#define CAS(T) { T e = (T)*expected; \
		bool ok = __atomic_compare_exchange_n((T *)p, &e, (T)desired, false, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST); \
		*expected = e; return ok; }
	case 1: CAS(uint8_t)
	case 2: CAS(uint16_t)
	case 4: CAS(uint32_t)
	default: CAS(uint64_t)
#undef CAS
	}
}

/* The engine-wide lock of LOCKed accesses that no host instruction can do; a fault releases it. */
void split_lock(struct vcpu *v);
void split_unlock(struct vcpu *v);

typedef uint64_t rmw_fn(struct vcpu *v, const struct insn *in, uint64_t old, uint64_t src, uint64_t *fl);

/* Flags start as RFLAGS and are committed with the result. `f` may be called several times. */
INLINE void rmw(struct vcpu *v, const struct insn *in, rmw_fn *f, uint64_t src, bool locked)
{
	const struct operand *o = &in->ops[0];
	uint64_t fl = v->s.rflags, old, off;
	unsigned size = o->size;
	void *p;

	if (o->kind == OPK_GPR) {
		reg_write(v, o, f(v, in, reg_read(v, o), src, &fl));
		v->s.rflags = fl;
		return;
	}
	off = mem_ea(v, in);
	p = mem_rmw_any(v, in->mem.seg, off, size);
	if (unlikely(!p)) {
		if (locked)
			split_lock(v);
		old = mem_ld(v, in->mem.seg, off, size);
		mem_st(v, in->mem.seg, off, size, f(v, in, old, src, &fl));
		if (locked)
			split_unlock(v);
	} else if (locked) {
		uint64_t new;
		old = hva_load(p, size);
		do {
			fl = v->s.rflags;
			new = f(v, in, old, src, &fl);
		} while (!host_cas(p, size, &old, new));
		mem_rmw_done(v);
	} else {
		hva_store(p, size, f(v, in, hva_load(p, size), src, &fl));
		mem_rmw_done(v);
	}
	v->s.rflags = fl;
}

/* --- stack --- */

INLINE uint64_t stack_mask(const struct vcpu *v)
{
	if (v->insn_mode == INSN_64)
		return ~0ull;
	return v->s.seg[SEG_SS].attr & SEG_ATTR_DB ? 0xffffffffull : 0xffff;
}

INLINE void rsp_set(struct vcpu *v, uint64_t value)
{
	uint64_t m = stack_mask(v);

	/* A 32-bit stack pointer write clears the top half; a 16-bit one keeps the rest. */
	v->s.gpr[REG_RSP] = m == 0xffff ? (v->s.gpr[REG_RSP] & ~m) | (value & m) : value & m;
}

INLINE void push(struct vcpu *v, uint64_t value, unsigned size)
{
	uint64_t sp = (v->s.gpr[REG_RSP] - size) & stack_mask(v);

	mem_st(v, SEG_SS, sp, size, value);
	rsp_set(v, sp);
}

/* The value `depth` bytes above the stack pointer; the pointer stays. */
INLINE uint64_t stack_peek(struct vcpu *v, unsigned depth, unsigned size)
{
	return mem_ld(v, SEG_SS, (v->s.gpr[REG_RSP] + depth) & stack_mask(v), size);
}

INLINE void rsp_add(struct vcpu *v, uint64_t n) { rsp_set(v, v->s.gpr[REG_RSP] + n); }

/* Handlers, one per operation: declared from the one list of implemented operations. */
#define INTERP_HANDLER(name) void name(struct vcpu *v, const struct insn *in)

#endif
