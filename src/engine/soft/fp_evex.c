/*
 * AVX-512 memory operands in the interpreter: masks, gathers, scatters.
 *
 * What a mask leaves out is not accessed and cannot fault (SDM vol. 1, 15.6.4), so the elements are moved one by one
 * between memory and the operand's stand-in; the instruction itself then runs on that (fp_native.c). Instructions of
 * the exception classes with NF look at all of their operand.
 */
#include <string.h>

#include "engine/soft/fp.h"
#include "engine/soft/mem.h"

/* Which parts of the memory operand are accessed: elements of `bytes`, by a bit each. */
struct wanted { uint64_t bits; unsigned bytes; };

static uint64_t mask_read(const struct vcpu *v, unsigned reg)
{
	return v->s.fpu.xstate_bv & XSTATE_OPMASK ? v->s.fpu.opmask[reg] : 0;
}

static void mask_write(struct vcpu *v, unsigned reg, uint64_t value)
{
	struct x86_xsave *f = &v->s.fpu;
	if (!(f->xstate_bv & XSTATE_OPMASK))
		memset(f->opmask, 0, sizeof f->opmask);
	f->opmask[reg] = value;
	f->xstate_bv |= XSTATE_OPMASK;
}

static uint64_t low_bits(unsigned n) { return n >= 64 ? ~0ull : (1ull << n) - 1; }

/* Element i of memory is wanted if any of i, i + n, i + 2n.. of the destination is. */
static uint64_t fold(uint64_t k, unsigned n)
{
	uint64_t bits = 0;
	for (; k; k = n < 64 ? k >> n : 0)
		bits |= k & low_bits(n);
	return bits;
}

bool fp_masked(const struct insn *in)
{
	return in->evex && in->evex_mask && !(in->row->attr & ROW_NF && in->ops[0].kind != OPK_MEM);
}

static struct wanted wanted(const struct vcpu *v, const struct insn *in, const struct operand *m)
{
	uint32_t attr = in->row->attr;
	uint64_t k = mask_read(v, in->evex_mask);
	unsigned element = row_mask_element(in->row), n;

	if (!element)		/* scalar */
		return (struct wanted){ k & 1, m->size };
	n = (attr & ROW_NF ? m->size : 16u << in->vex_l) / element;
	k &= low_bits(n);
	if (in->evex_b)
		return (struct wanted){ k != 0, m->size };
	if (attr & ROW_SB)
		return (struct wanted){ fold(k, m->size / element), element };
	if (attr & ROW_T1S)
		return (struct wanted){ low_bits((unsigned)__builtin_popcountll(k)), element };
	return (struct wanted){ k, m->size / n };
}

bool fp_masked_any(const struct vcpu *v, const struct insn *in, const struct operand *m)
{
	return wanted(v, in, m).bits != 0;
}

/* All elements, before the page of any: of two faults this is the host's. */
static void check_addresses(struct vcpu *v, const struct insn *in, const struct wanted *w, uint64_t offset, bool write)
{
	for (unsigned i = 0; i < 64; i++)
		if (w->bits >> i & 1)
			mem_check_address(v, in->mem.seg, fp_element_offset(v, offset + i * w->bytes), w->bytes, write);
}

void fp_masked_load(struct vcpu *v, const struct insn *in, const struct operand *m, uint64_t offset, uint8_t *to)
{
	struct wanted w = wanted(v, in, m);
	memset(to, 0, m->size);
	check_addresses(v, in, &w, offset, false);
	for (unsigned i = 0; i < 64; i++)
		if (w.bits >> i & 1)
			mem_load_n(v, in->mem.seg, fp_element_offset(v, offset + i * w.bytes), to + i * w.bytes, w.bytes);
}

void fp_masked_probe(struct vcpu *v, const struct insn *in, const struct operand *m, uint64_t offset)
{
	struct wanted w = wanted(v, in, m);
	if (in->row->attr & ROW_NF) {
		mem_probe_store(v, in->mem.seg, offset, m->size);
		return;
	}
	check_addresses(v, in, &w, offset, true);
	for (unsigned i = 0; i < 64; i++)
		if (w.bits >> i & 1)
			mem_probe_store(v, in->mem.seg, fp_element_offset(v, offset + i * w.bytes), w.bytes);
}

void fp_masked_store(struct vcpu *v, const struct insn *in, const struct operand *m, uint64_t offset, const uint8_t *from)
{
	struct wanted w = wanted(v, in, m);
	for (unsigned i = 0; i < 64; i++)
		if (w.bits >> i & 1)
			mem_store_n(v, in->mem.seg, fp_element_offset(v, offset + i * w.bytes), from + i * w.bytes, w.bytes);
}

struct zmm { uint8_t b[64]; };

static struct zmm zmm_read(const struct vcpu *v, unsigned reg)
{
	const struct x86_xsave *f = &v->s.fpu;
	struct zmm z = { { 0 } };
	if (reg >= 16) {
		if (f->xstate_bv & XSTATE_HI16_ZMM)
			memcpy(z.b, f->zmm16[reg - 16].b, 64);
		return z;
	}
	if (f->xstate_bv & XSTATE_SSE)
		memcpy(z.b, f->xmm[reg].b, 16);
	if (f->xstate_bv & XSTATE_AVX)
		memcpy(z.b + 16, f->ymmh[reg].b, 16);
	if (f->xstate_bv & XSTATE_ZMM_HI256)
		memcpy(z.b + 32, f->zmmh[reg].b, 32);
	return z;
}

static void zmm_write(struct vcpu *v, unsigned reg, const struct zmm *z)
{
	struct x86_xsave *f = &v->s.fpu;
	uint64_t missing = ~f->xstate_bv;
	if (reg >= 16) {
		if (missing & XSTATE_HI16_ZMM)
			memset(f->zmm16, 0, sizeof f->zmm16);
		memcpy(f->zmm16[reg - 16].b, z->b, 64);
		f->xstate_bv |= XSTATE_HI16_ZMM;
		return;
	}
	if (missing & XSTATE_SSE)
		memset(f->xmm, 0, sizeof f->xmm);
	if (missing & XSTATE_AVX)
		memset(f->ymmh, 0, sizeof f->ymmh);
	if (missing & XSTATE_ZMM_HI256)
		memset(f->zmmh, 0, sizeof f->zmmh);
	memcpy(f->xmm[reg].b, z->b, 16);
	memcpy(f->ymmh[reg].b, z->b + 16, 16);
	memcpy(f->zmmh[reg].b, z->b + 32, 32);
	f->xstate_bv |= XSTATE_SSE | XSTATE_AVX | XSTATE_ZMM_HI256;
}

static uint64_t element(const struct zmm *z, unsigned i, unsigned size)
{
	uint64_t value = 0;
	memcpy(&value, z->b + i * size, size);
	return value;
}

/* --- FP16 --- */

/* Does it round to FP16, and can underflow raise an exception? */
static bool rounds_to_half(const struct insn *in)
{
	switch (in->op) {
	case X86_VRNDSCALEPH: case X86_VRNDSCALESH: case X86_VCVTPS2PH:
		return true;
	case X86_VCVTPH2W: case X86_VCVTPH2UW: case X86_VCVTPH2DQ: case X86_VCVTPH2UDQ: case X86_VCVTPH2QQ: case X86_VCVTPH2UQQ:
		return false;
	default:
		return in->row->feature == FEATURE_AVX512_FP16 && (in->row->attr & ROW_ER) && !(in->row->attr & ROW_UQ) &&
		       in->ops[0].kind != OPK_GPR;
	}
}

bool fp_half_tiny(const struct vcpu *v, const struct insn *in, const uint8_t *memory)
{
	unsigned n = in->row->attr & ROW_LIG ? 1 : in->ops[0].size / 2;
	uint64_t k = in->evex_mask ? mask_read(v, in->evex_mask) : ~0ull;
	struct zmm z;

	if (!rounds_to_half(in))
		return false;
	if (in->ops[0].kind == OPK_MEM)
		memcpy(z.b, memory, in->ops[0].size);
	else
		z = zmm_read(v, in->ops[0].reg);
	for (unsigned i = 0; i < n; i++) {
		uint64_t h = element(&z, i, 2);
		if ((k >> i & 1) && !(h & 0x7c00) && (h & 0x3ff))
			return true;
	}
	return false;
}

/* --- gathers and scatters --- */

struct vsib { unsigned index_size, size, n; struct zmm index; };

static struct vsib vsib_of(const struct vcpu *v, const struct insn *in)
{
	struct vsib s = { .index_size = in->opcode & 1 ? 8 : 4, .size = in->rex & 8 ? 8 : 4 };
	s.n = (16u << in->vex_l) / (s.index_size > s.size ? s.index_size : s.size);
	s.index = zmm_read(v, in->mem.index);
	return s;
}

static uint64_t element_offset(const struct vcpu *v, const struct insn *in, const struct vsib *s, unsigned i)
{
	uint64_t x = element(&s->index, i, s->index_size), base = in->mem.base == INSN_REG_NONE ? 0 : v->s.gpr[in->mem.base];
	if (s->index_size == 4)
		x = (uint64_t)(int64_t)(int32_t)x;
	return mem_wrap(in, base + (x << in->mem.scale) + (uint64_t)in->mem.disp);
}

/* In order. What is done has its bit of the mask cleared: a fault in the middle loses nothing. */
static void gather(struct vcpu *v, const struct insn *in)
{
	struct vsib s = vsib_of(v, in);
	unsigned dst = in->ops[0].reg;
	struct zmm z = zmm_read(v, dst);
	uint64_t k = mask_read(v, in->evex_mask);
	for (unsigned i = 0; i < s.n; i++) {
		if (!(k >> i & 1))
			continue;
		uint64_t value = mem_load(v, in->mem.seg, element_offset(v, in, &s, i), s.size);
		memcpy(z.b + i * s.size, &value, s.size);
		zmm_write(v, dst, &z);
		k &= ~(1ull << i);
		mask_write(v, in->evex_mask, k);
	}
	memset(z.b + s.n * s.size, 0, 64 - s.n * s.size);
	zmm_write(v, dst, &z);
	mask_write(v, in->evex_mask, 0);
}

static void scatter(struct vcpu *v, const struct insn *in)
{
	struct vsib s = vsib_of(v, in);
	struct zmm z = zmm_read(v, in->ops[1].reg);
	uint64_t k = mask_read(v, in->evex_mask);
	for (unsigned i = 0; i < s.n; i++) {
		if (!(k >> i & 1))
			continue;
		mem_store(v, in->mem.seg, element_offset(v, in, &s, i), s.size, element(&z, i, s.size));
		k &= ~(1ull << i);
		mask_write(v, in->evex_mask, k);
	}
	mask_write(v, in->evex_mask, 0);
}

bool fp_evex_vsib(struct vcpu *v, const struct insn *in)
{
	if (!in->evex || !(in->row->attr & ROW_VSIB))
		return false;
	(in->ops[0].kind == OPK_MEM ? scatter : gather)(v, in);
	return true;
}
