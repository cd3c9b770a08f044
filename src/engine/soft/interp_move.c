/* Data movement, the stack, flag instructions, decimal arithmetic, BMI and other small integer operations. */
#include <sys/random.h>

#include "engine/soft/handlers.h"

INTERP_HANDLER(op_mov) { op_write(v, in, 0, op_read(v, in, 1)); }
INTERP_HANDLER(op_movzx) { reg_write(v, &in->ops[0], op_read(v, in, 1)); }
INTERP_HANDLER(op_movsx)
{
	reg_write(v, &in->ops[0], (uint64_t)sign_extend(op_read(v, in, 1), in->ops[1].size));
}

INTERP_HANDLER(op_lea) { reg_write(v, &in->ops[0], mem_ea(v, in)); }
INTERP_HANDLER(op_nop) { }

INTERP_HANDLER(op_bswap)
{
	struct operand o = in->ops[0];

	if (o.size == 8)
		reg_write(v, &o, __builtin_bswap64(reg_read(v, &o)));
	else if (o.size == 4)
		reg_write(v, &o, __builtin_bswap32((uint32_t)reg_read(v, &o)));
	else
		reg_write(v, &o, 0);	/* undefined; hardware clears */
}

INTERP_HANDLER(op_movbe)
{
	unsigned size = in->ops[0].size;
	uint64_t a = __builtin_bswap64(op_read(v, in, 1)) >> (64 - 8 * size);

	op_write(v, in, 0, a);
}

/* CBW, CWDE, CDQE */
INTERP_HANDLER(op_cbw)
{
	gpr_set(v, REG_RAX, in->opsize, (uint64_t)sign_extend(v->s.gpr[REG_RAX], in->opsize / 2));
}

/* CWD, CDQ, CQO */
INTERP_HANDLER(op_cwd)
{
	gpr_set(v, REG_RDX, in->opsize, (uint64_t)(sign_extend(v->s.gpr[REG_RAX], in->opsize) >> 63));
}

INTERP_HANDLER(op_xlat)
{
	uint64_t off = v->s.gpr[REG_RBX] + (v->s.gpr[REG_RAX] & 0xff);
	unsigned seg = in->seg_override != SEG_NONE ? in->seg_override : SEG_DS;

	gpr_set(v, REG_RAX, 1, mem_ld(v, seg, off & size_mask(in->addrsize), 1));
}

INTERP_HANDLER(op_setcc) { op_write(v, in, 0, cond_true(v->s.rflags, in->opcode)); }
INTERP_HANDLER(op_cmovcc)
{
	uint64_t a = op_read(v, in, 1);	/* read even if not moved: it may fault */

	reg_write(v, &in->ops[0], cond_true(v->s.rflags, in->opcode) ? a : reg_read(v, &in->ops[0]));
}

/* --- flags --- */

INTERP_HANDLER(op_sahf)
{
	flags_set(v, FLAGS_ARITH & ~FLAG_OF, v->s.gpr[REG_RAX] >> 8);
}

INTERP_HANDLER(op_lahf)
{
	uint64_t fl = (v->s.rflags & (FLAGS_ARITH & ~FLAG_OF)) | FLAG_FIXED;

	v->s.gpr[REG_RAX] = (v->s.gpr[REG_RAX] & ~0xff00ull) | fl << 8;
}

INTERP_HANDLER(op_cmc) { v->s.rflags ^= FLAG_CF; }
INTERP_HANDLER(op_clc) { v->s.rflags &= ~(uint64_t)FLAG_CF; }
INTERP_HANDLER(op_stc) { v->s.rflags |= FLAG_CF; }
INTERP_HANDLER(op_cld) { v->s.rflags &= ~(uint64_t)FLAG_DF; }
INTERP_HANDLER(op_std) { v->s.rflags |= FLAG_DF; }
INTERP_HANDLER(op_salc) { gpr_set(v, REG_RAX, 1, v->s.rflags & FLAG_CF ? 0xff : 0); }

/* --- stack --- */

INTERP_HANDLER(op_push) { push(v, op_read(v, in, 0), in->ops[0].kind == OPK_IMM ? in->opsize : in->ops[0].size); }

INTERP_HANDLER(op_pop)
{
	unsigned size = in->ops[0].size;
	uint64_t value = stack_peek(v, 0, size), old = v->s.gpr[REG_RSP];

	if (in->ops[0].kind == OPK_GPR) {
		rsp_add(v, size);
		reg_write(v, &in->ops[0], value);
		return;
	}
	/* An address that uses rSP sees it incremented; a fault must leave it alone. */
	if (in->mem.base == REG_RSP) {
		uint64_t ea;
		rsp_add(v, size);
		ea = mem_ea(v, in);
		v->s.gpr[REG_RSP] = old;
		mem_st(v, in->mem.seg, ea, size, value);
	} else {
		op_write(v, in, 0, value);
	}
	rsp_add(v, size);
}

INTERP_HANDLER(op_pusha)
{
	unsigned n = in->opsize;
	uint64_t sp = v->s.gpr[REG_RSP], m = stack_mask(v);

	for (unsigned i = 0; i < 8; i++)
		mem_probe_store(v, SEG_SS, (sp - (i + 1) * n) & m, n);
	for (unsigned i = 0; i < 8; i++)
		mem_st(v, SEG_SS, (sp - (i + 1) * n) & m, n, v->s.gpr[i]);
	rsp_set(v, sp - 8 * n);
}

INTERP_HANDLER(op_popa)
{
	unsigned n = in->opsize;
	uint64_t r[8];

	for (unsigned i = 0; i < 8; i++)
		r[7 - i] = stack_peek(v, i * n, n);
	for (unsigned i = 0; i < 8; i++)
		if (i != REG_RSP)
			gpr_set(v, i, n, r[i]);
	rsp_add(v, 8 * n);
}

INTERP_HANDLER(op_enter)
{
	unsigned n = in->opsize, level = in->imm2 & 31, frame = in->imm & 0xffff;
	uint64_t m = stack_mask(v), sp = (v->s.gpr[REG_RSP] - n) & m, bp = v->s.gpr[REG_RBP];
	/* With a 16-bit stack the frame pointer is SP under the upper half of ESP. */
	uint64_t frame_ptr = m == 0xffff ? (v->s.gpr[REG_RSP] & 0xffff0000) | sp : sp;

	mem_st(v, SEG_SS, sp, n, bp);
	for (unsigned i = 1; i < level; i++) {
		uint64_t x = mem_ld(v, SEG_SS, (bp - i * n) & m, n);
		sp = (sp - n) & m;
		mem_st(v, SEG_SS, sp, n, x);
	}
	if (level) {
		sp = (sp - n) & m;
		mem_st(v, SEG_SS, sp, n, frame_ptr);
	}
	sp = (sp - frame) & m;
	mem_probe_store(v, SEG_SS, sp, n);
	gpr_set(v, REG_RBP, n, frame_ptr);
	rsp_set(v, sp);
}

INTERP_HANDLER(op_leave)
{
	unsigned n = in->opsize;
	uint64_t bp = v->s.gpr[REG_RBP] & stack_mask(v), value = mem_ld(v, SEG_SS, bp, n);

	rsp_set(v, bp + n);
	gpr_set(v, REG_RBP, n, value);
}

/* --- decimal --- */

static void decimal_adjust(struct vcpu *v, int sign)
{
	uint8_t al = (uint8_t)v->s.gpr[REG_RAX], old = al;
	uint64_t fl = v->s.rflags, nf = 0;

	if ((al & 15) > 9 || (fl & FLAG_AF)) {
		if (sign < 0 ? al < 6 : al > 0xf9)
			nf |= FLAG_CF;
		al = (uint8_t)(al + 6 * sign);
		nf |= FLAG_AF;
	}
	nf |= fl & FLAG_CF && nf & FLAG_AF ? FLAG_CF : 0;
	if (old > 0x99 || (fl & FLAG_CF)) {
		al = (uint8_t)(al + 0x60 * sign);
		nf |= FLAG_CF;
	} else if (sign > 0) {
		nf &= ~(uint64_t)FLAG_CF;
	}
	gpr_set(v, REG_RAX, 1, al);
	flags_set(v, FLAGS_ARITH, nf | flags_szp(al, 1));
}

INTERP_HANDLER(op_daa) { decimal_adjust(v, 1); }
INTERP_HANDLER(op_das) { decimal_adjust(v, -1); }

static void ascii_adjust(struct vcpu *v, int sign)
{
	uint64_t ax = gpr_get(v, REG_RAX, 2), nf = 0;

	if ((ax & 15) > 9 || (v->s.rflags & FLAG_AF)) {
		ax += (uint64_t)(int64_t)(0x106 * sign);
		nf = FLAG_AF | FLAG_CF;
	}
	ax &= 0xff0f;
	gpr_set(v, REG_RAX, 2, ax);
	flags_set(v, FLAGS_ARITH, nf | flags_szp(ax, 1));
}

INTERP_HANDLER(op_aaa) { ascii_adjust(v, 1); }
INTERP_HANDLER(op_aas) { ascii_adjust(v, -1); }

INTERP_HANDLER(op_aam)
{
	unsigned base = in->imm & 0xff, al = v->s.gpr[REG_RAX] & 0xff;

	if (!base)
		vcpu_raise(v, EXC_DE);
	gpr_set(v, REG_RAX, 2, (al / base) << 8 | al % base);
	flags_set(v, FLAGS_ARITH, flags_szp(al % base, 1));
}

INTERP_HANDLER(op_aad)
{
	unsigned ax = v->s.gpr[REG_RAX] & 0xffff, al = (ax + (ax >> 8) * (in->imm & 0xff)) & 0xff;

	gpr_set(v, REG_RAX, 2, al);
	flags_set(v, FLAGS_ARITH, flags_szp(al, 1));
}

/* --- BMI1, BMI2, ADX --- */

INTERP_HANDLER(op_andn)
{
	uint64_t r = ~op_read(v, in, 1) & op_read(v, in, 2);

	reg_write(v, &in->ops[0], r);
	flags_set(v, FLAGS_ARITH & ~(FLAG_AF | FLAG_PF), flags_szp(r, in->ops[0].size));
}

#define BLS(name, expr, carry) \
	INTERP_HANDLER(op_##name) \
	{ \
		uint64_t a = op_read(v, in, 1), r = expr; \
		reg_write(v, &in->ops[0], r); \
		flags_set(v, FLAGS_ARITH & ~(FLAG_AF | FLAG_PF), \
			  flags_szp(r, in->ops[0].size) | (carry ? FLAG_CF : 0)); \
	}
BLS(blsi, a & -a, a != 0)
BLS(blsmsk, a ^ (a - 1), a == 0)
BLS(blsr, a & (a - 1), a == 0)

INTERP_HANDLER(op_bzhi)
{
	unsigned bits = 8 * in->ops[0].size, n = op_read(v, in, 2) & 0xff;
	uint64_t a = op_read(v, in, 1), r = n < bits ? a & ((1ull << n) - 1) : a;

	reg_write(v, &in->ops[0], r);
	flags_set(v, FLAGS_ARITH & ~(FLAG_AF | FLAG_PF),
		  flags_szp(r, in->ops[0].size) | (n >= bits ? FLAG_CF : 0));
}

INTERP_HANDLER(op_bextr)
{
	uint64_t a = op_read(v, in, 1), ctl = op_read(v, in, 2), r;
	unsigned start = ctl & 0xff, len = ctl >> 8 & 0xff;

	r = start < 64 ? a >> start : 0;
	if (len < 64)
		r &= (1ull << len) - 1;
	reg_write(v, &in->ops[0], r);
	flags_set(v, FLAGS_ARITH, r ? 0 : FLAG_ZF);
}

INTERP_HANDLER(op_pdep)
{
	uint64_t src = op_read(v, in, 1), mask = op_read(v, in, 2), r = 0;

	for (; mask; mask &= mask - 1, src >>= 1)
		if (src & 1)
			r |= mask & -mask;
	reg_write(v, &in->ops[0], r);
}

INTERP_HANDLER(op_pext)
{
	uint64_t src = op_read(v, in, 1), mask = op_read(v, in, 2), r = 0;

	for (unsigned i = 0; mask; mask &= mask - 1, i++)
		if (src & mask & -mask)
			r |= 1ull << i;
	reg_write(v, &in->ops[0], r);
}

INTERP_HANDLER(op_rorx)
{
	unsigned bits = 8 * in->ops[0].size, n = in->imm & (bits - 1);
	uint64_t a = op_read(v, in, 1);

	reg_write(v, &in->ops[0], n ? a >> n | a << (bits - n) : a);
}

#define SHIFTX(name, expr) \
	INTERP_HANDLER(op_##name) \
	{ \
		unsigned size = in->ops[0].size; \
		uint64_t a = op_read(v, in, 1); \
		unsigned n = op_read(v, in, 2) & (8 * size - 1); \
		reg_write(v, &in->ops[0], expr); \
	}
SHIFTX(sarx, (uint64_t)(sign_extend(a, size) >> n))
SHIFTX(shlx, a << n)
SHIFTX(shrx, a >> n)

/* MULX hi, lo, src: the high half wins when both names are the same register. */
INTERP_HANDLER(op_mulx)
{
	unsigned size = in->ops[0].size;
	unsigned __int128 r = (unsigned __int128)gpr_get(v, REG_RDX, size) * op_read(v, in, 2);

	reg_write(v, &in->ops[1], (uint64_t)r);
	reg_write(v, &in->ops[0], (uint64_t)(r >> (8 * size)));
}

static void add_with(struct vcpu *v, const struct insn *in, uint64_t flag)
{
	uint64_t fl, r = alu_add(op_read(v, in, 0), op_read(v, in, 1), !!(v->s.rflags & flag), in->ops[0].size, &fl);

	reg_write(v, &in->ops[0], r);
	flags_set(v, flag, fl & FLAG_CF ? flag : 0);
}

INTERP_HANDLER(op_adcx) { add_with(v, in, FLAG_CF); }
INTERP_HANDLER(op_adox) { add_with(v, in, FLAG_OF); }

/* CRC-32C, reflected polynomial 0x82f63b78. */
INTERP_HANDLER(op_crc32)
{
	uint32_t crc = (uint32_t)reg_read(v, &in->ops[0]);
	uint64_t data = op_read(v, in, 1);

	for (unsigned i = 0; i < in->ops[1].size; i++) {
		crc ^= (uint8_t)(data >> (8 * i));
		for (unsigned b = 0; b < 8; b++)
			crc = crc >> 1 ^ (crc & 1 ? 0x82f63b78u : 0);
	}
	gpr_set(v, in->ops[0].reg, 8, crc);
}

/* RDRAND, RDSEED: CF says whether there was a number. */
INTERP_HANDLER(op_rdrand)
{
	uint64_t r = 0;
	bool ok = getrandom(&r, sizeof(r), GRND_NONBLOCK) == sizeof(r);

	reg_write(v, &in->ops[0], ok ? r : 0);
	flags_set(v, FLAGS_ARITH, ok ? FLAG_CF : 0);
}
