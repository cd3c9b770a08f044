/* Integer arithmetic, logic, shifts, bits. */
#include "engine/soft/handlers.h"

#define ALU2(name, expr) \
	INLINE uint64_t name##_f(struct vcpu *v, const struct insn *in, uint64_t a, uint64_t b, uint64_t *fl) \
	{ \
		uint64_t nf, r = expr; \
		*fl = (*fl & ~(uint64_t)FLAGS_ARITH) | nf; \
		return r; \
	} \
	INTERP_HANDLER(op_##name) { rmw(v, in, name##_f, op_read(v, in, 1), in->lock); }

INLINE uint64_t logic_flags(uint64_t r, unsigned size, uint64_t *nf)
{
	*nf = flags_szp(r, size);
	return r;
}

ALU2(add, alu_add(a, b, 0, in->ops[0].size, &nf))
ALU2(sub, alu_sub(a, b, 0, in->ops[0].size, &nf))
ALU2(adc, alu_add(a, b, *fl & FLAG_CF, in->ops[0].size, &nf))
ALU2(sbb, alu_sub(a, b, *fl & FLAG_CF, in->ops[0].size, &nf))
ALU2(and, logic_flags(a & b, in->ops[0].size, &nf))
ALU2(or, logic_flags(a | b, in->ops[0].size, &nf))
ALU2(xor, logic_flags(a ^ b, in->ops[0].size, &nf))

INTERP_HANDLER(op_cmp)
{
	uint64_t fl, a = op_read(v, in, 0);

	alu_sub(a, op_read(v, in, 1), 0, in->ops[0].size, &fl);
	flags_set(v, FLAGS_ARITH, fl);
}

INTERP_HANDLER(op_test)
{
	uint64_t a = op_read(v, in, 0);

	flags_set(v, FLAGS_ARITH, flags_szp(a & op_read(v, in, 1), in->ops[0].size));
}

#define ALU1(name, expr, mask) \
	INLINE uint64_t name##_f(struct vcpu *v, const struct insn *in, uint64_t a, uint64_t b, uint64_t *fl) \
	{ \
		uint64_t nf = 0, r = expr; \
		*fl = (*fl & ~(uint64_t)(mask)) | (nf & (mask)); \
		return r; \
	} \
	INTERP_HANDLER(op_##name) { rmw(v, in, name##_f, 0, in->lock); }

ALU1(inc, alu_add(a, 1, 0, in->ops[0].size, &nf), FLAGS_ARITH & ~FLAG_CF)
ALU1(dec, alu_sub(a, 1, 0, in->ops[0].size, &nf), FLAGS_ARITH & ~FLAG_CF)
ALU1(neg, alu_sub(0, a, 0, in->ops[0].size, &nf), FLAGS_ARITH)
ALU1(not, ~a, 0)


static void xchg_mem(struct vcpu *v, const struct insn *in, const struct operand *mem, const struct operand *reg)
{
	uint64_t off = mem_ea(v, in), new = reg_read(v, reg), old;
	unsigned size = mem->size;
	void *p = mem_rmw_any(v, in->mem.seg, off, size);

	if (p) {
		old = hva_load(p, size);
		while (!host_cas(p, size, &old, new))
			;
		mem_rmw_done(v);
	} else {
		split_lock(v);
		old = mem_ld(v, in->mem.seg, off, size);
		mem_st(v, in->mem.seg, off, size, new);
		split_unlock(v);
	}
	reg_write(v, reg, old);
}

INTERP_HANDLER(op_xchg)
{
	const struct operand *a = &in->ops[0], *b = &in->ops[1];

	if (is_mem(a)) {
		xchg_mem(v, in, a, b);
	} else if (is_mem(b)) {
		xchg_mem(v, in, b, a);
	} else {
		uint64_t x = reg_read(v, a), y = reg_read(v, b);
		reg_write(v, a, y);
		reg_write(v, b, x);
	}
}

INTERP_HANDLER(op_xadd)
{
	const struct operand *d = &in->ops[0], *r = &in->ops[1];
	uint64_t src = reg_read(v, r), old, fl, sum, off;
	void *p;

	if (!is_mem(d)) {
		old = reg_read(v, d);
		sum = alu_add(old, src, 0, d->size, &fl);
		reg_write(v, r, old);
		reg_write(v, d, sum);
		flags_set(v, FLAGS_ARITH, fl);
		return;
	}
	off = mem_ea(v, in);
	p = mem_rmw_any(v, in->mem.seg, off, d->size);
	if (p) {
		old = hva_load(p, d->size);
		do {
			sum = alu_add(old, src, 0, d->size, &fl);
		} while (!host_cas(p, d->size, &old, sum));
		mem_rmw_done(v);
	} else {
		split_lock(v);
		old = mem_ld(v, in->mem.seg, off, d->size);
		sum = alu_add(old, src, 0, d->size, &fl);
		mem_st(v, in->mem.seg, off, d->size, sum);
		split_unlock(v);
	}
	reg_write(v, r, old);
	flags_set(v, FLAGS_ARITH, fl);
}

INTERP_HANDLER(op_cmpxchg)
{
	const struct operand *d = &in->ops[0];
	uint64_t acc = gpr_get(v, REG_RAX, d->size), src = reg_read(v, &in->ops[1]), old, fl, off;
	void *p;

	if (!is_mem(d)) {
		old = reg_read(v, d);
		if (old == acc)
			reg_write(v, d, src);
	} else {
		off = mem_ea(v, in);
		p = mem_rmw_any(v, in->mem.seg, off, d->size);
		if (p) {
			old = acc;
			host_cas(p, d->size, &old, src);
			mem_rmw_done(v);
		} else {
			split_lock(v);
			old = mem_ld(v, in->mem.seg, off, d->size);
			mem_st(v, in->mem.seg, off, d->size, old == acc ? src : old);
			split_unlock(v);
		}
	}
	alu_sub(acc, old, 0, d->size, &fl);
	if (old != acc)
		gpr_set(v, REG_RAX, d->size, old);
	else if (!is_mem(d) && d->size == 4)
		reg_write(v, d, src);
	flags_set(v, FLAGS_ARITH, fl);
}

static bool host_cas16(void *p, uint64_t *lo, uint64_t *hi, uint64_t new_lo, uint64_t new_hi)
{
	bool ok;

	__asm__ volatile("lock cmpxchg16b %1; sete %0"
			 : "=q"(ok), "+m"(*(unsigned __int128 *)p), "+a"(*lo), "+d"(*hi)
			 : "b"(new_lo), "c"(new_hi) : "memory", "cc");
	return ok;
}

INTERP_HANDLER(op_cmpxchg8b)
{
	uint64_t off = mem_ea(v, in), old;
	uint64_t acc = gpr_get(v, REG_RAX, 4) | v->s.gpr[REG_RDX] << 32;
	uint64_t new = gpr_get(v, REG_RBX, 4) | v->s.gpr[REG_RCX] << 32;
	void *p = mem_rmw_any(v, in->mem.seg, off, 8);

	if (p) {
		old = acc;
		host_cas(p, 8, &old, new);
		mem_rmw_done(v);
	} else {
		split_lock(v);
		old = mem_ld(v, in->mem.seg, off, 8);
		mem_st(v, in->mem.seg, off, 8, old == acc ? new : old);
		split_unlock(v);
	}
	if (old == acc) {
		v->s.rflags |= FLAG_ZF;
	} else {
		v->s.rflags &= ~(uint64_t)FLAG_ZF;
		v->s.gpr[REG_RAX] = (uint32_t)old;
		v->s.gpr[REG_RDX] = old >> 32;
	}
}

INTERP_HANDLER(op_cmpxchg16b)
{
	uint64_t off = mem_ea(v, in), lo = v->s.gpr[REG_RAX], hi = v->s.gpr[REG_RDX];
	const struct x86_segment *sg = &v->s.seg[in->mem.seg];
	uint64_t va = in->mem.seg >= SEG_FS ? sg->base + off : off;
	bool equal;
	void *p;

	if (va & 15)
		vcpu_raise_error(v, EXC_GP, 0);
	p = mem_rmw_any(v, in->mem.seg, off, 16);
	if (p) {
		equal = host_cas16(p, &lo, &hi, v->s.gpr[REG_RBX], v->s.gpr[REG_RCX]);
		mem_rmw_done(v);
	} else {	/* a device */
		lo = mem_ld(v, in->mem.seg, off, 8);
		hi = mem_ld(v, in->mem.seg, off + 8, 8);
		equal = lo == v->s.gpr[REG_RAX] && hi == v->s.gpr[REG_RDX];
		mem_st(v, in->mem.seg, off, 8, equal ? v->s.gpr[REG_RBX] : lo);
		mem_st(v, in->mem.seg, off + 8, 8, equal ? v->s.gpr[REG_RCX] : hi);
	}
	if (equal) {
		v->s.rflags |= FLAG_ZF;
	} else {
		v->s.rflags &= ~(uint64_t)FLAG_ZF;
		v->s.gpr[REG_RAX] = lo;
		v->s.gpr[REG_RDX] = hi;
	}
}

/* --- multiply, divide --- */

static void set_double(struct vcpu *v, unsigned size, uint64_t lo, uint64_t hi)
{
	if (size == 1) {
		gpr_set(v, REG_RAX, 2, (lo & 0xff) | hi << 8);
	} else {
		gpr_set(v, REG_RAX, size, lo);
		gpr_set(v, REG_RDX, size, hi);
	}
}

static void mul_flags(struct vcpu *v, uint64_t lo, unsigned size, bool overflow)
{
	flags_set(v, FLAGS_ARITH, flags_szp(lo, size) | (overflow ? FLAG_CF | FLAG_OF : 0));
}

INTERP_HANDLER(op_mul)
{
	unsigned size = in->ops[0].size;
	unsigned __int128 r = (unsigned __int128)gpr_get(v, REG_RAX, size) * op_read(v, in, 0);
	uint64_t lo = (uint64_t)r & size_mask(size), hi = (uint64_t)(r >> (8 * size));

	set_double(v, size, lo, hi);
	mul_flags(v, lo, size, hi & size_mask(size));
}

INTERP_HANDLER(op_imul)
{
	unsigned size = in->ops[0].size;
	__int128 r;

	if (in->nops == 1) {
		r = (__int128)sign_extend(v->s.gpr[REG_RAX], size) * sign_extend(op_read(v, in, 0), size);
		set_double(v, size, (uint64_t)r, (uint64_t)(r >> (8 * size)));
	} else {
		uint64_t b = in->nops == 3 ? op_read(v, in, 2) : reg_read(v, &in->ops[0]);
		r = (__int128)sign_extend(op_read(v, in, 1), size) * sign_extend(b, size);
		reg_write(v, &in->ops[0], (uint64_t)r);
	}
	mul_flags(v, (uint64_t)r, size, r != sign_extend((uint64_t)r, size));
}

static unsigned __int128 dividend(const struct vcpu *v, unsigned size)
{
	if (size == 1)
		return gpr_get(v, REG_RAX, 2);
	return (unsigned __int128)gpr_get(v, REG_RDX, size) << (8 * size) | gpr_get(v, REG_RAX, size);
}

INTERP_HANDLER(op_div)
{
	unsigned size = in->ops[0].size;
	uint64_t d = op_read(v, in, 0);
	unsigned __int128 n = dividend(v, size);

	if (d == 0 || (uint64_t)(n >> (8 * size)) >= d)
		vcpu_raise(v, EXC_DE);
	if (n >> 64)
		set_double(v, size, (uint64_t)(n / d), (uint64_t)(n % d));
	else
		set_double(v, size, (uint64_t)n / d, (uint64_t)n % d);
}

INTERP_HANDLER(op_idiv)
{
	unsigned size = in->ops[0].size, sh = 128 - 16 * size;
	__int128 d = sign_extend(op_read(v, in, 0), size);
	__int128 n = (__int128)(dividend(v, size) << sh) >> sh, q;

	/* The most negative 128-bit value over -1 would trap the host. */
	if (d == 0 || (d == -1 && n == (__int128)((unsigned __int128)1 << 127)))
		vcpu_raise(v, EXC_DE);
	q = n / d;
	if (q != sign_extend((uint64_t)q, size))
		vcpu_raise(v, EXC_DE);
	set_double(v, size, (uint64_t)q, (uint64_t)(n % d));
}

/* --- shifts and rotates --- */

INLINE unsigned shift_count(struct vcpu *v, const struct insn *in, unsigned i)
{
	unsigned n = in->nops > i ? (unsigned)op_read(v, in, i) : 1;

	return n & (in->ops[0].size == 8 ? 63 : 31);
}

INLINE uint64_t shl_f(struct vcpu *v, const struct insn *in, uint64_t a, uint64_t n, uint64_t *fl)
{
	unsigned size = in->ops[0].size, bits = 8 * size;
	uint64_t r = n < 64 ? a << n : 0, cf;

	if (n == 0)
		return a;
	cf = n <= bits ? a >> (bits - n) & 1 : 0;
	*fl = (*fl & ~(uint64_t)FLAGS_ARITH) | cf | flags_szp(r, size) | ((r >> (bits - 1) & 1) ^ cf) << 11;
	return r;
}

INLINE uint64_t shr_f(struct vcpu *v, const struct insn *in, uint64_t a, uint64_t n, uint64_t *fl)
{
	unsigned size = in->ops[0].size;
	uint64_t r = a >> n;

	if (n == 0)
		return a;
	*fl = (*fl & ~(uint64_t)FLAGS_ARITH) | (a >> (n - 1) & 1) | flags_szp(r, size) |
	      (a >> (8 * size - 1) & 1) << 11;
	return r;
}

INLINE uint64_t sar_f(struct vcpu *v, const struct insn *in, uint64_t a, uint64_t n, uint64_t *fl)
{
	unsigned size = in->ops[0].size;
	int64_t s = sign_extend(a, size);
	uint64_t r = (uint64_t)(s >> n);

	if (n == 0)
		return a;
	*fl = (*fl & ~(uint64_t)FLAGS_ARITH) | (s >> (n - 1) & 1) | flags_szp(r, size);
	return r;
}

INLINE uint64_t rol_f(struct vcpu *v, const struct insn *in, uint64_t a, uint64_t n, uint64_t *fl)
{
	unsigned bits = 8 * in->ops[0].size, k = n & (bits - 1);
	uint64_t r = k ? a << k | a >> (bits - k) : a;

	if (n == 0)
		return a;
	*fl = (*fl & ~(uint64_t)(FLAG_CF | FLAG_OF)) | (r & 1) | ((r >> (bits - 1) ^ r) & 1) << 11;
	return r;
}

INLINE uint64_t ror_f(struct vcpu *v, const struct insn *in, uint64_t a, uint64_t n, uint64_t *fl)
{
	unsigned bits = 8 * in->ops[0].size, k = n & (bits - 1);
	uint64_t r = k ? a >> k | a << (bits - k) : a;

	if (n == 0)
		return a;
	*fl = (*fl & ~(uint64_t)(FLAG_CF | FLAG_OF)) | (r >> (bits - 1) & 1) |
	      ((r >> (bits - 1) ^ r >> (bits - 2)) & 1) << 11;
	return r;
}

static uint64_t rcl_f(struct vcpu *v, const struct insn *in, uint64_t a, uint64_t n, uint64_t *fl)
{
	unsigned bits = 8 * in->ops[0].size;
	uint64_t cf = *fl & FLAG_CF;

	n %= bits + 1;
	for (unsigned i = 0; i < n; i++) {
		uint64_t out = a >> (bits - 1) & 1;
		a = a << 1 | cf;
		cf = out;
	}
	if (n)
		*fl = (*fl & ~(uint64_t)(FLAG_CF | FLAG_OF)) | cf | ((a >> (bits - 1) ^ cf) & 1) << 11;
	return a;
}

static uint64_t rcr_f(struct vcpu *v, const struct insn *in, uint64_t a, uint64_t n, uint64_t *fl)
{
	unsigned bits = 8 * in->ops[0].size;
	uint64_t cf = *fl & FLAG_CF;

	n %= bits + 1;
	for (unsigned i = 0; i < n; i++) {
		uint64_t out = a & 1;
		a = a >> 1 | cf << (bits - 1);
		cf = out;
	}
	if (n)
		*fl = (*fl & ~(uint64_t)(FLAG_CF | FLAG_OF)) | cf | ((a >> (bits - 1) ^ a >> (bits - 2)) & 1) << 11;
	return a;
}

#define SHIFT(name) INTERP_HANDLER(op_##name) { rmw(v, in, name##_f, shift_count(v, in, 1), false); }
SHIFT(shl) SHIFT(shr) SHIFT(sar) SHIFT(rol) SHIFT(ror) SHIFT(rcl) SHIFT(rcr)

/* Double shifts: with 16-bit operands and counts over 16 the result is undefined; we shift the
 * concatenation dest:src:dest as hardware does. */
INLINE uint64_t double_shift(struct vcpu *v, const struct insn *in, uint64_t a, uint64_t b, uint64_t *fl, bool left)
{
	unsigned size = in->ops[0].size, bits = 8 * size, n = shift_count(v, in, 2);
	unsigned __int128 x;
	uint64_t r, cf;

	if (n == 0)
		return a;
	if (left) {
		x = (unsigned __int128)a << bits | b;
		if (n > bits) {
			x = (unsigned __int128)b << bits | a;
			n -= bits;
		}
		r = (uint64_t)(x >> (bits - n));
		cf = (uint64_t)(x >> (2 * bits - n)) & 1;
	} else {
		x = (unsigned __int128)b << bits | a;
		if (n > bits) {
			x = (unsigned __int128)a << bits | b;
			n -= bits;
		}
		r = (uint64_t)(x >> n);
		cf = (uint64_t)(x >> (n - 1)) & 1;
	}
	r &= size_mask(size);
	*fl = (*fl & ~(uint64_t)FLAGS_ARITH) | cf | flags_szp(r, size) | ((a ^ r) >> (bits - 1) & 1) << 11;
	return r;
}

INLINE uint64_t shld_f(struct vcpu *v, const struct insn *in, uint64_t a, uint64_t b, uint64_t *fl)
{
	return double_shift(v, in, a, b, fl, true);
}

INLINE uint64_t shrd_f(struct vcpu *v, const struct insn *in, uint64_t a, uint64_t b, uint64_t *fl)
{
	return double_shift(v, in, a, b, fl, false);
}

INTERP_HANDLER(op_shld) { rmw(v, in, shld_f, reg_read(v, &in->ops[1]), false); }
INTERP_HANDLER(op_shrd) { rmw(v, in, shrd_f, reg_read(v, &in->ops[1]), false); }

/* --- bit tests --- */

enum bit_what { BIT_TEST, BIT_SET, BIT_RESET, BIT_COMPLEMENT };

INLINE uint64_t bit_apply(uint64_t a, unsigned bit, enum bit_what what)
{
	uint64_t m = 1ull << bit;

	return what == BIT_SET ? a | m : what == BIT_RESET ? a & ~m : what == BIT_COMPLEMENT ? a ^ m : a;
}

/* A register bit offset addresses memory beyond the operand: in units of the operand size. */
static uint64_t bit_address(struct vcpu *v, const struct insn *in, uint64_t index)
{
	unsigned size = in->ops[0].size;
	uint64_t ea = mem_ea(v, in);

	if (in->ops[1].kind != OPK_IMM)
		ea += (uint64_t)((sign_extend(index, size) >> (size == 8 ? 6 : size == 4 ? 5 : 4)) * (int64_t)size);
	return mem_wrap(in, ea);
}

INLINE void bit_op(struct vcpu *v, const struct insn *in, enum bit_what what)
{
	const struct operand *d = &in->ops[0];
	uint64_t index = op_read(v, in, 1), old, off;
	unsigned bit = index & (8 * d->size - 1);
	void *p;

	if (!is_mem(d)) {
		old = reg_read(v, d);
		if (what != BIT_TEST)
			reg_write(v, d, bit_apply(old, bit, what));
	} else if (what == BIT_TEST) {
		old = mem_ld(v, in->mem.seg, bit_address(v, in, index), d->size);
	} else {
		off = bit_address(v, in, index);
		p = mem_rmw_any(v, in->mem.seg, off, d->size);
		if (p) {
			old = hva_load(p, d->size);
			if (!in->lock)
				hva_store(p, d->size, bit_apply(old, bit, what));
			else
				while (!host_cas(p, d->size, &old, bit_apply(old, bit, what)))
					;
			mem_rmw_done(v);
		} else {
			split_lock(v);
			old = mem_ld(v, in->mem.seg, off, d->size);
			mem_st(v, in->mem.seg, off, d->size, bit_apply(old, bit, what));
			split_unlock(v);
		}
	}
	flags_set(v, FLAG_CF, old >> bit & 1);
}

INTERP_HANDLER(op_bt) { bit_op(v, in, BIT_TEST); }
INTERP_HANDLER(op_bts) { bit_op(v, in, BIT_SET); }
INTERP_HANDLER(op_btr) { bit_op(v, in, BIT_RESET); }
INTERP_HANDLER(op_btc) { bit_op(v, in, BIT_COMPLEMENT); }

INTERP_HANDLER(op_bsf)
{
	uint64_t a = op_read(v, in, 1);

	flags_set(v, FLAGS_ARITH, a ? 0 : FLAG_ZF | FLAG_PF);
	if (a)
		reg_write(v, &in->ops[0], (uint64_t)__builtin_ctzll(a));
}

INTERP_HANDLER(op_bsr)
{
	uint64_t a = op_read(v, in, 1);

	flags_set(v, FLAGS_ARITH, a ? 0 : FLAG_ZF | FLAG_PF);
	if (a)
		reg_write(v, &in->ops[0], 63 - (uint64_t)__builtin_clzll(a));
}

INTERP_HANDLER(op_tzcnt)
{
	uint64_t a = op_read(v, in, 1), n = a ? (uint64_t)__builtin_ctzll(a) : 8u * in->ops[0].size;

	reg_write(v, &in->ops[0], n);
	flags_set(v, FLAG_CF | FLAG_ZF, (a ? 0 : FLAG_CF) | (n ? 0 : FLAG_ZF));
}

INTERP_HANDLER(op_lzcnt)
{
	unsigned bits = 8 * in->ops[0].size;
	uint64_t a = op_read(v, in, 1), n = a ? (uint64_t)__builtin_clzll(a) - (64 - bits) : bits;

	reg_write(v, &in->ops[0], n);
	flags_set(v, FLAG_CF | FLAG_ZF, (a ? 0 : FLAG_CF) | (n ? 0 : FLAG_ZF));
}

INTERP_HANDLER(op_popcnt)
{
	uint64_t a = op_read(v, in, 1);

	reg_write(v, &in->ops[0], (uint64_t)__builtin_popcountll(a));
	flags_set(v, FLAGS_ARITH, a ? 0 : FLAG_ZF);
}
