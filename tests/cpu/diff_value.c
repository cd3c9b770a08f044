/* Random values that arithmetic trips over. Wide ones are made once a batch and drawn by the cases. */
#include <string.h>

#include "diff.h"

#define VECTOR_VALUES (sizeof ((struct gen *)0)->vector / 16)
#define X87_VALUES (sizeof ((struct gen *)0)->x87 / 16)

uint64_t gen_int(struct gen *g)
{
	uint64_t r = gen_u64(g);
	switch (gen_below(g, 8)) {
	case 0: return r & 0xff;
	case 1: return 0 - (r & 0xff);
	case 2: return 1ull << (r & 63);
	case 3: return (1ull << (r & 63)) - 1;
	case 4: return (uint64_t)(int64_t)(int32_t)r;
	case 5: return r & 0xffffffff;
	default: return r;
	}
}

/* IEEE bits with `e` exponent and `m` mantissa bits: zeros, denormals, ones, infinities, NaNs. */
static uint64_t float_value(struct gen *g, unsigned e, unsigned m)
{
	uint64_t r = gen_u64(g), mantissa = r & ((1ull << m) - 1), all = (1ull << e) - 1, bias = all >> 1, exponent;
	switch (gen_below(g, 10)) {
	case 0: exponent = 0; break;
	case 1: exponent = 0; mantissa = 0; break;
	case 2: exponent = all; break;
	case 3: exponent = all; mantissa = gen_one_in(g, 2) ? 0 : 1ull << (m - 1); break;
	case 4: exponent = bias + gen_below(g, 70) - 3; mantissa &= ~0ull << gen_below(g, m); exponent &= all; break;
	case 5: exponent = bias; mantissa = 0; break;
	case 6: case 7: exponent = bias - 8 + gen_below(g, 16); exponent &= all; break;
	case 8: exponent = gen_one_in(g, 2) ? 1 + gen_below(g, 4) : all - 1 - gen_below(g, 4); exponent &= all; break;
	default: exponent = gen_u64(g) & all; break;
	}
	return (r >> 63) << (e + m) | exponent << m | mantissa;
}

static void vector_value(struct gen *g, uint8_t *p)
{
	uint64_t q[2];
	unsigned kind = gen_below(g, 4);
	for (unsigned i = 0; i < 2; i++)
		q[i] = kind == 0 ? gen_int(g) : kind == 1 ? float_value(g, 11, 52) :
		       kind == 2 ? float_value(g, 8, 23) | float_value(g, 8, 23) << 32 : gen_u64(g);
	memcpy(p, q, 16);
}

static void x87_value(struct gen *g, uint8_t *p)
{
	uint64_t r = gen_u64(g), mantissa = float_value(g, 11, 52) << 11;
	uint16_t se = (uint16_t)gen_u64(g);
	unsigned kind = gen_below(g, 12);
	switch (kind) {
	case 0: mantissa = 0; se &= 0x8000; break;
	case 1: se |= 0x7fff; mantissa = r | 1ull << 63; break;
	case 2: se |= 0x7fff; mantissa = 1ull << 63; break;
	case 3: se &= 0x8000; mantissa = r; break;
	case 4: mantissa = r; break;
	case 5: se |= 0x7fff; mantissa = r; break;
	default:
		se = (uint16_t)((se & 0x8000) | (0x3fff - 16 + gen_below(g, 84)));
		mantissa = (kind & 1 ? r : r & ~0ull << gen_below(g, 63)) | 1ull << 63;
		break;
	}
	memcpy(p, &mantissa, 8);
	memcpy(p + 8, &se, 2);
	memset(p + 10, 0, 6);
}

void gen_values(struct gen *g)
{
	for (unsigned i = 0; i < VECTOR_VALUES; i++)
		vector_value(g, g->vector[i].b);
	for (unsigned i = 0; i < X87_VALUES; i++)
		x87_value(g, g->x87[i].b);
}

void gen_memory(struct gen *g, uint8_t *p, unsigned n)
{
	for (unsigned i = 0; i < n; i += 16)
		vector_value(g, p + i);
}

void gen_stack(struct gen *g, uint8_t *p)
{
	for (unsigned i = 0; i < STACK_BYTES; i += 8) {
		uint64_t q = gen_one_in(g, 4) ? gen_int(g) : CODE_VA + SLOT_BYTES * gen_below(g, DIFF_CASES) + 8 + gen_below(g, 32);
		memcpy(p + i, &q, 8);
	}
}

static void vectors_fill(struct gen *g, uint8_t *p, unsigned n)
{
	for (unsigned i = 0; i < n; i += 32) {
		uint64_t r = gen_u64(g);
		memcpy(p + i, g->vector[r % VECTOR_VALUES].b, 16);
		memcpy(p + i + 16, g->vector[(r >> 32) % VECTOR_VALUES].b, 16);
	}
}

static void avx512_fill(struct gen *g, struct x86_xsave *f)
{
	vectors_fill(g, f->zmmh[0].b, sizeof f->zmmh);
	vectors_fill(g, f->zmm16[0].b, sizeof f->zmm16);
	for (unsigned i = 0; i < 8; i++) {
		uint64_t r = gen_u64(g);
		f->opmask[i] = gen_one_in(g, 4) ? 0 : gen_one_in(g, 3) ? ~0ull : gen_one_in(g, 2) ? r & r >> 21 & r >> 42 : r;
	}
	f->xstate_bv |= 0xe0;
}

void gen_fpu(struct gen *g, uint8_t *fpu)
{
	struct x86_xsave *f = (struct x86_xsave *)fpu;
	memset(fpu, 0, XSAVE_BYTES);
	f->fcw = (uint16_t)(0x37f | (gen_u64(g) & 0xc00));
	if (gen_one_in(g, 4))
		f->fcw = (uint16_t)((f->fcw & ~0x300) | (gen_one_in(g, 2) ? 0x200 : 0));
	if (gen_one_in(g, 8))
		f->fcw &= (uint16_t)~(gen_u64(g) & 0x3f);
	f->fsw = (uint16_t)(gen_u64(g) & 0x7f00);
	if (gen_one_in(g, 2))
		f->fsw |= gen_u64(g) & 0x7f & (gen_one_in(g, 8) ? 0x7f : f->fcw | 0x40);
	if (f->fsw & ~f->fcw & 0x3f)
		f->fsw |= 0x8080;
	f->ftw_abridged = gen_one_in(g, 2) ? 0xff : (uint8_t)gen_u64(g);
	f->mxcsr = 0x1f80 | (uint32_t)(gen_one_in(g, 2) ? gen_u64(g) & 0xe07f : 0);
	if (gen_one_in(g, 8))
		f->mxcsr &= ~(uint32_t)(gen_u64(g) & 0x1380);	/* I, D, Z, P */
	if (gen_one_in(g, 16))
		f->mxcsr &= ~0x800u;				/* U */
	f->mxcsr_mask = 0xffff;
	for (unsigned i = 0; i < 8; i++)
		memcpy(f->st[i].b, g->x87[gen_below(g, X87_VALUES)].b, 16);
	for (unsigned i = 0; i < 16; i++) {
		uint64_t r = gen_u64(g);
		memcpy(f->xmm[i].b, g->vector[r % VECTOR_VALUES].b, 16);
		memcpy(f->ymmh[i].b, g->vector[(r >> 32) % VECTOR_VALUES].b, 16);
	}
	f->xstate_bv = 7;
	if (cpu_model_has(g->model, FEATURE_AVX512F))
		avx512_fill(g, f);
}

