/* Vector instructions that touch memory element by element: gathers and masked moves. */
#include <string.h>

#include "engine/soft/fp.h"
#include "engine/soft/mem.h"

union ymm { uint8_t b[32]; uint32_t d[8]; uint64_t q[4]; };

static union ymm get(const struct vcpu *v, unsigned reg)
{
	union ymm y;
	memcpy(y.b, v->s.fpu.xmm[reg].b, 16);
	if (v->s.fpu.xstate_bv & XSTATE_AVX)
		memcpy(y.b + 16, v->s.fpu.ymmh[reg].b, 16);
	else
		memset(y.b + 16, 0, 16);
	return y;
}

/* Writes a VEX destination: the upper half is zero for a 128-bit result. */
static void set(struct vcpu *v, unsigned reg, const union ymm *y)
{
	struct x86_xsave *f = &v->s.fpu;
	if (!(f->xstate_bv & XSTATE_AVX))
		memset(f->ymmh, 0, sizeof f->ymmh);
	if (!(f->xstate_bv & XSTATE_SSE))
		memset(f->xmm, 0, sizeof f->xmm);
	memcpy(f->xmm[reg].b, y->b, 16);
	memcpy(f->ymmh[reg].b, y->b + 16, 16);
	if (f->xstate_bv & XSTATE_ZMM_HI256)
		memset(f->zmmh[reg].b, 0, sizeof f->zmmh[reg].b);
	f->xstate_bv |= XSTATE_SSE | XSTATE_AVX;
}

static uint64_t element(const union ymm *y, unsigned i, unsigned size)
{
	return size == 8 ? y->q[i] : y->d[i];
}
static void set_element(union ymm *y, unsigned i, unsigned size, uint64_t value)
{
	if (size == 8)
		y->q[i] = value;
	else
		y->d[i] = (uint32_t)value;
}
static bool masked_in(const union ymm *mask, unsigned i, unsigned size)
{
	return element(mask, i, size) >> (8 * size - 1) & 1;
}

/* All elements, before the page of any, as fp_evex.c does it. */
static void check_addresses(struct vcpu *v, const struct insn *in, const union ymm *mask, unsigned n, unsigned size, bool write)
{
	uint64_t offset = mem_effective(v, in);
	for (unsigned i = 0; i < n; i++)
		if (masked_in(mask, i, size))
			mem_check_address(v, in->mem.seg, fp_element_offset(v, offset + i * size), size, write);
}

/* Each element that has been loaded clears its mask bit: a fault in the middle loses nothing. */
static void gather(struct vcpu *v, const struct insn *in, unsigned index_size, unsigned size)
{
	unsigned dst = in->ops[0].reg, mask_reg = in->ops[2].reg, bytes = in->vex_l ? 32 : 16;
	unsigned n = bytes / (index_size > size ? index_size : size);
	union ymm result = get(v, dst), mask = get(v, mask_reg), index = get(v, in->mem.index);
	if (dst == mask_reg || dst == in->mem.index || mask_reg == in->mem.index)
		vcpu_raise(v, EXC_UD);
	uint64_t base = in->mem.base == INSN_REG_NONE ? 0 : v->s.gpr[in->mem.base];
	/* In order: a fault leaves the elements before it done and those from it on untouched, mask and all. */
	for (unsigned i = 0; i < n; i++) {
		bool wanted = masked_in(&mask, i, size);
		set_element(&mask, i, size, 0);
		if (!wanted) {
			set(v, mask_reg, &mask);
			continue;
		}
		int64_t x = index_size == 8 ? (int64_t)index.q[i] : (int32_t)index.d[i];
		uint64_t offset = mem_wrap(in, base + ((uint64_t)x << in->mem.scale) + (uint64_t)in->mem.disp);
		set_element(&result, i, size, mem_load(v, in->mem.seg, offset, size));
		set(v, dst, &result);
		set(v, mask_reg, &mask);
	}
	for (unsigned i = n * size; i < 32; i++)
		result.b[i] = 0;
	memset(&mask, 0, sizeof mask);		/* what is above the elements stays until all are there */
	set(v, dst, &result);
	set(v, mask_reg, &mask);
}

static void masked_load(struct vcpu *v, const struct insn *in, unsigned size)
{
	unsigned n = (in->vex_l ? 32 : 16) / size;
	uint64_t offset = mem_effective(v, in);
	union ymm mask = get(v, in->ops[1].reg), result = { { 0 } };
	check_addresses(v, in, &mask, n, size, false);
	for (unsigned i = 0; i < n; i++)
		if (masked_in(&mask, i, size))
			set_element(&result, i, size, mem_load(v, in->mem.seg, fp_element_offset(v, offset + i * size), size));
	set(v, in->ops[0].reg, &result);
}

static void masked_store(struct vcpu *v, const struct insn *in, unsigned size)
{
	unsigned n = (in->vex_l ? 32 : 16) / size;
	uint64_t offset = mem_effective(v, in);
	union ymm mask = get(v, in->ops[1].reg), value = get(v, in->ops[2].reg);
	check_addresses(v, in, &mask, n, size, true);
	for (unsigned i = 0; i < n; i++)
		if (masked_in(&mask, i, size))
			mem_probe_store(v, in->mem.seg, fp_element_offset(v, offset + i * size), size);
	for (unsigned i = 0; i < n; i++)
		if (masked_in(&mask, i, size))
			mem_store(v, in->mem.seg, fp_element_offset(v, offset + i * size), size, element(&value, i, size));
}

/* MASKMOVQ, MASKMOVDQU: bytes to DS:rDI where the mask's sign bit is set, 8 and 8: only the second 8 begin again where addresses
 * end. */
static uint64_t masked_offset(const struct insn *in, uint64_t di, unsigned i) { return mem_wrap(in, di + (i & 8)) + (i & 7); }

static void masked_bytes(struct vcpu *v, const struct insn *in, const uint8_t *value, const uint8_t *mask, unsigned n)
{
	unsigned seg = in->seg_override == SEG_NONE ? SEG_DS : in->seg_override;
	uint64_t di = v->s.gpr[REG_RDI];
	for (unsigned i = 0; i < n; i++)
		if (mask[i] & 0x80)
			mem_probe_store(v, seg, masked_offset(in, di, i), 1);
	for (unsigned i = 0; i < n; i++)
		if (mask[i] & 0x80)
			mem_store(v, seg, masked_offset(in, di, i), 1, value[i]);
}

bool fp_has_mmx(const struct insn *in)
{
	for (unsigned i = 0; i < in->nops; i++)
		if (in->ops[i].kind == OPK_MMX)
			return true;
	return false;
}

void fp_enter_mmx(struct x86_xsave *f)
{
	unsigned top = f->fsw >> 11 & 7;
	uint8_t turned[8][16];
	for (unsigned i = 0; i < 8; i++)
		memcpy(turned[i], f->st[(i - top) & 7].b, 16);
	memcpy(f->st, turned, sizeof turned);
	f->fsw &= (uint16_t)~0x3800;
	f->ftw_abridged = 0xff;
	f->xstate_bv |= XSTATE_X87;
}

/* Physical MMi in the image, where st[] is relative to TOP. */
static const uint8_t *mmx(const struct x86_xsave *f, unsigned reg)
{
	return f->st[(reg - (f->fsw >> 11 & 7)) & 7].b;
}

static void maskmovq(struct vcpu *v, const struct insn *in)
{
	struct x86_xsave *f = &v->s.fpu;
	uint8_t value[8], mask[8];
	memcpy(value, mmx(f, in->ops[1].reg), 8);
	memcpy(mask, mmx(f, in->ops[2].reg), 8);
	masked_bytes(v, in, value, mask, 8);
	fp_enter_mmx(f);
}

/* Outside 64-bit mode these see eight registers, where the host's own would see sixteen. */
static bool zero_eight(struct vcpu *v, bool all)
{
	union ymm y;
	if (v->insn_mode == INSN_64)
		return false;
	for (unsigned i = 0; i < 8; i++) {
		y = get(v, i);
		memset(y.b + (all ? 0 : 16), 0, all ? 32 : 16);
		set(v, i, &y);
	}
	return true;
}

bool fp_vector_memory(struct vcpu *v, const struct insn *in)
{
	bool store = in->ops[0].kind == OPK_MEM;
	switch (in->op) {
	case X86_VGATHERDPS: case X86_VPGATHERDD: gather(v, in, 4, 4); return true;
	case X86_VGATHERDPD: case X86_VPGATHERDQ: gather(v, in, 4, 8); return true;
	case X86_VGATHERQPS: case X86_VPGATHERQD: gather(v, in, 8, 4); return true;
	case X86_VGATHERQPD: case X86_VPGATHERQQ: gather(v, in, 8, 8); return true;
	case X86_VMASKMOVPS: case X86_VPMASKMOVD: (store ? masked_store : masked_load)(v, in, 4); return true;
	case X86_VMASKMOVPD: case X86_VPMASKMOVQ: (store ? masked_store : masked_load)(v, in, 8); return true;
	case X86_VZEROUPPER: return zero_eight(v, false);
	case X86_VZEROALL: return zero_eight(v, true);
	case X86_MASKMOVQ: maskmovq(v, in); return true;
	case X86_MASKMOVDQU:
		masked_bytes(v, in, v->s.fpu.xmm[in->ops[1].reg].b, v->s.fpu.xmm[in->ops[2].reg].b, 16);
		return true;
	default: return false;
	}
}
