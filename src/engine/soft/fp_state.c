/*
 * FXSAVE, FXRSTOR (SDM vol. 1, 10.5) and the XSAVE family (chapter 13), XGETBV, XSETBV.
 *
 *   0 legacy: x87, MXCSR, XMM | 512 header: XSTATE_BV, XCOMP_BV | 576 YMM_Hi128 | opmask | ZMM_Hi256 | Hi16_ZMM
 */
#include <stddef.h>
#include <string.h>

#include "cpu/model.h"
#include "engine/soft/fp.h"
#include "engine/soft/mem.h"
#include "engine/soft/soft.h"

#define LEGACY_BYTES 512u
#define FXSAVE_BYTES 416u
#define HEADER 512u
#define COMPACT (1ull << 63)

const struct fp_component fp_components[FP_COMPONENTS] = {
	{ 2, offsetof(struct x86_xsave, ymmh), 256, 128 },
	{ 5, offsetof(struct x86_xsave, opmask), 64, 64 },
	{ 6, offsetof(struct x86_xsave, zmmh), 512, 256 },
	{ 7, offsetof(struct x86_xsave, zmm16), 1024, 0 },
};

static void init_component(struct x86_xsave *f, uint64_t component)
{
	if (component == XSTATE_X87) {
		f->fcw = 0x37f;
		f->fsw = f->fop = 0;
		f->ftw_abridged = 0;
		f->fip = f->fdp = 0;
		memset(f->st, 0, sizeof f->st);
	} else if (component == XSTATE_SSE) {
		memset(f->xmm, 0, sizeof f->xmm);
	}
	for (unsigned i = 0; i < FP_COMPONENTS; i++)
		if (component == 1ull << fp_components[i].number)
			memset(f->raw + fp_components[i].at, 0, fp_components[i].bytes);
	f->xstate_bv &= ~component;
}

/* Makes the image's bytes true for components that the hardware marked as initial. */
static void materialise(struct x86_xsave *f)
{
	for (uint64_t c = XSTATE_X87; c <= XSTATE_HI16_ZMM; c <<= 1)
		if (!(f->xstate_bv & c))
			init_component(f, c);
}

static unsigned xmm_bytes(const struct vcpu *v) { return v->insn_mode == INSN_64 ? 256 : 128; }
static unsigned extended_bytes(const struct vcpu *v, const struct fp_component *c)
{
	return v->insn_mode == INSN_64 ? c->bytes : c->bytes32;
}

static void mem_out(struct vcpu *v, const struct insn *in, uint64_t at, unsigned offset, const void *p, unsigned n)
{
	mem_store_n(v, in->mem.seg, at + offset, p, n);
}

/* Without REX.W the pointers are 32-bit with selectors, which current CPUs save as zero. */
static void legacy_x87_image(const struct vcpu *v, const struct insn *in, uint8_t out[32])
{
	memcpy(out, v->s.fpu.raw, 32);
	if (!(in->rex & 8)) {
		memset(out + 12, 0, 4);
		memset(out + 20, 0, 4);
	}
}

static void fxsave(struct vcpu *v, const struct insn *in)
{
	uint64_t at = mem_effective(v, in);
	uint8_t image[FXSAVE_BYTES];
	unsigned n = 160 + xmm_bytes(v);
	materialise(&v->s.fpu);
	memcpy(image, v->s.fpu.raw, sizeof image);
	legacy_x87_image(v, in, image);
	memcpy(image + 24, &v->s.fpu.mxcsr, 4);
	image[28] = 0xff, image[29] = 0xff, image[30] = 0, image[31] = 0;
	mem_out(v, in, at, 0, image, n);
}

static void load_x87(struct x86_xsave *f, const struct insn *in, const uint8_t *p)
{
	memcpy(f->raw, p, 24);
	f->fcw = (uint16_t)((f->fcw & 0x1f7f) | 0x40);
	if (!(in->rex & 8)) {
		memset(f->raw + 12, 0, 4);
		memset(f->raw + 20, 0, 4);
	}
	f->rsvd0 = 0;
	for (unsigned i = 0; i < 8; i++) {
		memcpy(f->st[i].b, p + 32 + 16 * i, 10);
		memset(f->st[i].b + 10, 0, 6);
	}
	f->xstate_bv |= XSTATE_X87;
	fp_update_es(f);
}

static void fxrstor(struct vcpu *v, const struct insn *in)
{
	uint8_t image[LEGACY_BYTES];
	uint32_t mxcsr;
	mem_load_n(v, in->mem.seg, mem_effective(v, in), image, sizeof image);
	memcpy(&mxcsr, image + 24, 4);
	if (mxcsr & ~MXCSR_VALID)
		vcpu_raise_error(v, EXC_GP, 0);
	materialise(&v->s.fpu);
	load_x87(&v->s.fpu, in, image);
	memcpy(v->s.fpu.xmm, image + 160, xmm_bytes(v));
	v->s.fpu.mxcsr = mxcsr;
	v->s.fpu.xstate_bv |= XSTATE_SSE;
}

static uint64_t requested(const struct vcpu *v)
{
	return ((v->s.gpr[REG_RDX] << 32) | (v->s.gpr[REG_RAX] & 0xffffffff)) & v->s.xcr0;
}

/* n: a multiple of 8. */
static bool all_zero(const void *p, size_t n)
{
	const uint64_t *q = p;
	uint64_t any = 0;
	for (size_t i = 0; i < n / 8; i++)
		any |= q[i];
	return !any;
}

/* XINUSE (13.6): which components differ from their initial state. */
static uint64_t in_use(struct x86_xsave *f)
{
	materialise(f);
	uint64_t use = 0;
	if (f->fcw != 0x37f || f->fsw || f->ftw_abridged || !all_zero(f->st, sizeof f->st))
		use |= XSTATE_X87;
	if (!all_zero(f->xmm, sizeof f->xmm))
		use |= XSTATE_SSE;
	for (unsigned i = 0; i < FP_COMPONENTS; i++)
		if (!all_zero(f->raw + fp_components[i].at, fp_components[i].bytes))
			use |= 1ull << fp_components[i].number;
	return use;
}

static void extended_out(struct vcpu *v, const struct insn *in, uint64_t at, uint64_t write, uint64_t ask, bool compact)
{
	for (unsigned i = 0; i < FP_COMPONENTS; i++) {
		const struct fp_component *c = &fp_components[i];
		unsigned n = extended_bytes(v, c);
		if ((write >> c->number & 1) && n)
			mem_out(v, in, at, cpu_xsave_offset(ask, c->number, compact), v->s.fpu.raw + c->at, n);
	}
}

/* All is probed first: a fault leaves the area as it was. */
static void xsave(struct vcpu *v, const struct insn *in, bool compact, bool only_used)
{
	struct x86_xsave *f = &v->s.fpu;
	uint64_t at = mem_effective(v, in), ask = requested(v), use = in_use(f), header[2] = { 0 };
	if (compact && f->mxcsr != 0x1f80)
		use |= XSTATE_SSE;		/* 13.10: the compacted forms count MXCSR */
	uint64_t write = only_used ? ask & use : ask;
	mem_probe_store(v, in->mem.seg, at, cpu_xsave_size(ask, compact));
	if (write & XSTATE_X87) {
		uint8_t image[24];
		uint8_t full[32];
		legacy_x87_image(v, in, full);
		memcpy(image, full, 24);
		mem_out(v, in, at, 0, image, 24);
		mem_out(v, in, at, 32, f->st, 128);
	}
	if (compact ? (write & XSTATE_SSE) : (ask & (XSTATE_SSE | XSTATE_AVX))) {
		uint32_t csr[2] = { f->mxcsr, MXCSR_VALID };
		mem_out(v, in, at, 24, csr, 8);
	}
	if (write & XSTATE_SSE)
		mem_out(v, in, at, 160, f->xmm, xmm_bytes(v));
	extended_out(v, in, at, write, ask, compact);
	if (compact) {
		header[0] = ask & use;
		header[1] = ask | COMPACT;
		mem_out(v, in, at, HEADER, header, 16);
	} else {
		mem_load_n(v, in->mem.seg, at + HEADER, header, 8);
		header[0] = (header[0] & ~ask) | (ask & use);
		mem_out(v, in, at, HEADER, header, 8);
	}
}

static void header_check(struct vcpu *v, const uint64_t h[8], bool supervisor)
{
	uint64_t allowed = v->s.xcr0;
	bool compact = h[1] & COMPACT, bad;
	if (compact)
		bad = (h[1] & ~COMPACT & ~allowed) || (h[0] & ~h[1]);
	else
		bad = supervisor || h[1] || (h[0] & ~allowed);
	for (unsigned i = 2; i < 8; i++)
		bad |= (compact || i < 3) && h[i];
	if (bad)
		vcpu_raise_error(v, EXC_GP, 0);
}

/* Loads what `load` names into an image of the standard format. */
static void extended_in(struct vcpu *v, const struct insn *in, uint64_t at, uint64_t load, uint64_t format, uint8_t *image)
{
	for (unsigned i = 0; i < FP_COMPONENTS; i++) {
		const struct fp_component *c = &fp_components[i];
		unsigned n = extended_bytes(v, c);
		if ((load >> c->number & 1) && n)
			mem_load_n(v, in->mem.seg, at + cpu_xsave_offset(format, c->number, format & COMPACT), image + c->at, n);
	}
}

static void extended_set(struct vcpu *v, uint64_t load, const uint8_t *image)
{
	for (unsigned i = 0; i < FP_COMPONENTS; i++)
		if (load >> fp_components[i].number & 1)
			memcpy(v->s.fpu.raw + fp_components[i].at, image + fp_components[i].at, extended_bytes(v, &fp_components[i]));
}

static void xrstor(struct vcpu *v, const struct insn *in, bool supervisor)
{
	struct x86_xsave *f = &v->s.fpu;
	uint64_t at = mem_effective(v, in), ask = requested(v), h[8];
	uint8_t image[XSAVE_AREA_SIZE];
	mem_load_n(v, in->mem.seg, at + HEADER, h, sizeof h);
	header_check(v, h, supervisor);
	bool compact = h[1] & COMPACT;
	uint64_t load = ask & h[0];
	mem_load_n(v, in->mem.seg, at, image, LEGACY_BYTES);
	extended_in(v, in, at, load, h[1], image);
	uint32_t mxcsr;
	memcpy(&mxcsr, image + 24, 4);
	bool take_mxcsr = compact ? load & XSTATE_SSE : ask & (XSTATE_SSE | XSTATE_AVX);
	if (take_mxcsr && (mxcsr & ~MXCSR_VALID))
		vcpu_raise_error(v, EXC_GP, 0);
	materialise(f);
	for (uint64_t c = XSTATE_X87; c <= XSTATE_HI16_ZMM; c <<= 1)
		if (ask & ~load & c)
			init_component(f, c);
	if (take_mxcsr)
		f->mxcsr = mxcsr;
	else if (compact && (ask & XSTATE_SSE))
		f->mxcsr = 0x1f80;
	if (load & XSTATE_X87)
		load_x87(f, in, image);
	if (load & XSTATE_SSE)
		memcpy(f->xmm, image + 160, xmm_bytes(v));
	extended_set(v, load, image);
	f->xstate_bv |= load;
}

static void gate_xsave(struct vcpu *v, unsigned align, const struct insn *in)
{
	if (!(v->s.cr4 & CR4_OSXSAVE))
		vcpu_raise(v, EXC_UD);
	if (v->s.cr0 & CR0_TS)
		vcpu_raise(v, EXC_NM);
	fp_check_align(v, in, align);
}

static void gate_fxsave(struct vcpu *v, const struct insn *in)
{
	if (v->s.cr0 & (CR0_EM | CR0_TS))
		vcpu_raise(v, EXC_NM);
	if (v->insn_mode == INSN_64 && in->mem.seg == SEG_SS && !va_canonical(v, mem_effective(v, in)))
		vcpu_raise_error(v, EXC_SS, 0);		/* here it comes before misalignment */
	fp_check_align(v, in, 16);
}

static void need_cpl0(struct vcpu *v)
{
	if (state_cpl(&v->s))
		vcpu_raise_error(v, EXC_GP, 0);
}

static void xgetbv(struct vcpu *v)
{
	uint32_t which = (uint32_t)v->s.gpr[REG_RCX];
	if (!(v->s.cr4 & CR4_OSXSAVE))
		vcpu_raise(v, EXC_UD);
	if (which > 1)
		vcpu_raise_error(v, EXC_GP, 0);
	uint64_t value = which ? in_use(&v->s.fpu) & v->s.xcr0 : v->s.xcr0;
	v->s.gpr[REG_RAX] = (uint32_t)value;
	v->s.gpr[REG_RDX] = value >> 32;
}

/* SDM vol. 3 2.6: components that come together, or need another. */
static bool xcr0_holds(uint64_t value)
{
	uint64_t avx512 = value & XSTATE_AVX512;
	if (!(value & XSTATE_X87) || (value & (XSTATE_SSE | XSTATE_AVX)) == XSTATE_AVX)
		return false;
	return !avx512 || (avx512 == XSTATE_AVX512 && (value & XSTATE_AVX));
}

static void xsetbv(struct vcpu *v)
{
	uint64_t value = v->s.gpr[REG_RDX] << 32 | (v->s.gpr[REG_RAX] & 0xffffffff);
	if (!(v->s.cr4 & CR4_OSXSAVE))
		vcpu_raise(v, EXC_UD);
	need_cpl0(v);
	if ((uint32_t)v->s.gpr[REG_RCX] || (value & ~cpu_model_xcr0_mask(v->en->model)) || !xcr0_holds(value))
		vcpu_raise_error(v, EXC_GP, 0);
	v->s.xcr0 = value;
}

bool fp_state(struct vcpu *v, const struct insn *in)
{
	switch (in->op) {
	case X86_FXSAVE: gate_fxsave(v, in); fxsave(v, in); return true;
	case X86_FXRSTOR: gate_fxsave(v, in); fxrstor(v, in); return true;
	case X86_XSAVE: gate_xsave(v, 64, in); xsave(v, in, false, false); return true;
	case X86_XSAVEOPT: gate_xsave(v, 64, in); xsave(v, in, false, true); return true;
	case X86_XSAVEC: gate_xsave(v, 64, in); xsave(v, in, true, true); return true;
	case X86_XSAVES: gate_xsave(v, 64, in); need_cpl0(v); xsave(v, in, true, true); return true;
	case X86_XRSTOR: gate_xsave(v, 64, in); xrstor(v, in, false); return true;
	case X86_XRSTORS: gate_xsave(v, 64, in); need_cpl0(v); xrstor(v, in, true); return true;
	case X86_XGETBV: xgetbv(v); return true;
	case X86_XSETBV: xsetbv(v); return true;
	default: return false;
	}
}
