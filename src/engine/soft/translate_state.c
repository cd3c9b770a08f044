/*
 * The XSAVE family for translated code, without leaving it (SDM vol. 1 chapter 13).
 *
 *   registers --xsave--> s.fpu --copy--> the guest's area        while hot.fpu_live; else s.fpu is what counts
 *
 * As translate_quick.c this runs with the guest's vector state in the registers, and is compiled for general registers
 * only. It does what fp_state.c does where the area is in one piece of RAM that the TLB knows, nothing faults and the new
 * state masks all exceptions. For the rest it says false and has done nothing. The host's own XSAVE never sees guest
 * memory: its FIP and FDP are host addresses, which another vCPU could read there.
 */
#include "engine/soft/fp.h"
#include "engine/soft/translate_private.h"

#define HEADER 512u
#define EXTENDED 576u
#define COMPACT (1ull << 63)
#define KNOWN (XSTATE_X87 | XSTATE_SSE | XSTATE_AVX | XSTATE_AVX512)
#define MXCSR_INITIAL 0x1f80u
#define X87_MASKS 0x3fu

/* n: a multiple of 8. The C library's may use vector registers. */
static void copy(void *to, const void *from, size_t n)
{
	n /= 8;
	__asm__ volatile("rep movsq" : "+D"(to), "+S"(from), "+c"(n) :: "memory");
}

static void zero(void *to, size_t n)
{
	n /= 8;
	__asm__ volatile("rep stosq" : "+D"(to), "+c"(n) : "a"(0ull) : "memory");
}

static uint64_t requested(const struct vcpu *v)
{
	return (v->s.gpr[REG_RDX] << 32 | (uint32_t)v->s.gpr[REG_RAX]) & v->s.xcr0;
}

static unsigned area_bytes(uint64_t mask, bool compact)
{
	unsigned n = EXTENDED;

	for (unsigned i = 0; i < FP_COMPONENTS; i++)
		if (mask >> fp_components[i].number & 1)
			n = (compact ? n : fp_components[i].at) + fp_components[i].bytes;
	return n;
}

static bool page_known(struct vcpu *v, uint64_t va, bool write)
{
	unsigned mode = v->tlb_mode;

	if (tlb_at(v, mode, write, va)->tag == (va & GUEST_PAGE_MASK))
		return true;
	return write ? tlb_refill_write(v, va, mode) : tlb_refill_read(v, va, mode);
}

/* n bytes at va, at most two pages, which must lie side by side. NULL: the interpreter has to look. */
static uint8_t *area(struct vcpu *v, uint64_t va, unsigned n, bool write)
{
	uint64_t last = va + n - 1, addend;

	if (!page_known(v, va, write) || !page_known(v, last, write))
		return NULL;
	addend = tlb_at(v, v->tlb_mode, write, va)->addend;
	return tlb_at(v, v->tlb_mode, write, last)->addend == addend ? (uint8_t *)(uintptr_t)(va + addend) : NULL;
}

static void component_init(struct x86_xsave *f, uint64_t component)
{
	if (component == XSTATE_X87) {
		zero(f->raw, 24);
		f->fcw = 0x37f;
		zero(f->st, sizeof f->st);
	} else if (component == XSTATE_SSE) {
		zero(f->xmm, sizeof f->xmm);
	}
	for (unsigned i = 0; i < FP_COMPONENTS; i++)
		if (component == 1ull << fp_components[i].number)
			zero(f->raw + fp_components[i].at, fp_components[i].bytes);
}

static void components_init(struct x86_xsave *f, uint64_t which)
{
	for (; which; which &= which - 1)
		component_init(f, which & -which);
}

/* As an exit from translated code does it; they stay in the registers as well. */
static void registers_save(struct vcpu *v)
{
	struct x86_xsave *f = &v->s.fpu;

	__asm__ volatile("xsave64 %0" : "+m"(*f) : "a"(XSTATE_X87 | XSTATE_SSE | XSTATE_AVX), "d"(0));
	if (v->hot.fpu_high)
		__asm__ volatile("xsaveopt64 %0" : "+m"(*f) : "a"(v->hot.fpu_high), "d"(0));
	f->fip = f->fdp = f->fop = 0;
}

/* --- saving --- */

/* n: a multiple of 8. */
static bool any_set(const void *p, size_t n)
{
	const uint64_t *q = p;

	for (size_t i = 0; i < n / 8; i++)
		if (q[i])
			return true;
	return false;
}

static bool x87_used(const struct x86_xsave *f)
{
	return f->fcw != 0x37f || f->fsw || f->ftw_abridged || any_set(f->st, sizeof f->st);
}

/* XINUSE (13.6), as the interpreter has it: the host's may say of initial components that they are in use. */
static uint64_t in_use(const struct x86_xsave *f)
{
	uint64_t use = f->xstate_bv & KNOWN;

	if ((use & XSTATE_X87) && !x87_used(f))
		use &= ~(uint64_t)XSTATE_X87;
	if ((use & XSTATE_SSE) && !any_set(f->xmm, sizeof f->xmm))
		use &= ~(uint64_t)XSTATE_SSE;
	for (unsigned i = 0; i < FP_COMPONENTS; i++)
		if ((use >> fp_components[i].number & 1) && !any_set(f->raw + fp_components[i].at, fp_components[i].bytes))
			use &= ~(1ull << fp_components[i].number);
	return use;
}

static void legacy_out(const struct x86_xsave *f, uint8_t *to, uint64_t write, bool wide)
{
	if (write & XSTATE_X87) {
		copy(to, f->raw, 24);
		if (!wide)	/* selectors, zero, in place of the upper halves */
			*(volatile uint32_t *)(to + 12) = *(volatile uint32_t *)(to + 20) = 0;
		copy(to + 32, f->st, sizeof f->st);
	}
	if (write & XSTATE_SSE)
		copy(to + 160, f->xmm, sizeof f->xmm);
}

static void extended_out(const struct x86_xsave *f, uint8_t *to, uint64_t write, uint64_t ask, bool compact)
{
	unsigned at = EXTENDED;

	for (unsigned i = 0; i < FP_COMPONENTS; i++) {
		const struct fp_component *c = &fp_components[i];
		if (write >> c->number & 1)
			copy(to + (compact ? at : c->at), f->raw + c->at, c->bytes);
		if (ask >> c->number & 1)
			at += c->bytes;
	}
}

static bool state_out(struct vcpu *v, uint64_t va, unsigned what)
{
	struct x86_xsave *f = &v->s.fpu;
	uint64_t ask = requested(v), use, write;
	bool compact = what & STATE_COMPACT;
	uint8_t *to = area(v, va, area_bytes(ask, compact), true);
	volatile uint64_t *header;

	if (!to || (ask & ~(uint64_t)KNOWN))
		return false;
	header = (volatile uint64_t *)(to + HEADER);
	if (v->hot.fpu_live)
		registers_save(v);
	use = in_use(f);
	if (compact && f->mxcsr != MXCSR_INITIAL)
		use |= XSTATE_SSE;		/* 13.10 */
	write = what & STATE_USED ? ask & use : ask;
	components_init(f, write & ~f->xstate_bv);
	legacy_out(f, to, write, what & STATE_WIDE);
	if (compact ? write & XSTATE_SSE : ask & (XSTATE_SSE | XSTATE_AVX))
		*(volatile uint64_t *)(to + 24) = (uint64_t)MXCSR_VALID << 32 | f->mxcsr;
	extended_out(f, to, write, ask, compact);
	header[0] = (compact ? 0 : header[0] & ~ask) | (ask & use);
	if (compact)
		header[1] = ask | COMPACT;
	return true;
}

/* --- loading --- */

/* An area's beginning, read once. */
struct area_head { uint64_t x87[4], st[8][2], xmm[32], rest[12], header[8]; };
_Static_assert(sizeof(struct area_head) == EXTENDED, "SDM vol. 1 13.4.1, 13.4.2");

static bool header_good(const struct vcpu *v, const uint64_t h[8], bool supervisor)
{
	bool compact = h[1] & COMPACT, bad;

	if (compact)
		bad = (h[1] & ~COMPACT & ~v->s.xcr0) || (h[0] & ~h[1]);
	else
		bad = supervisor || h[1] || (h[0] & ~v->s.xcr0);
	for (unsigned i = 2; i < 8; i++)
		bad |= h[i] != 0;		/* more than hardware asks of the standard format */
	return !bad && !((h[0] | h[1]) & ~(KNOWN | COMPACT));
}

static void x87_in(struct x86_xsave *f, const struct area_head *a, bool wide)
{
	const uint64_t pointer = wide ? ~0ull : UINT32_MAX;

	copy(f->raw, a->x87, 8);
	f->fip = a->x87[1] & pointer;
	f->fdp = a->x87[2] & pointer;
	f->fcw = (uint16_t)((f->fcw & 0x1f7f) | 0x40);
	f->fsw &= (uint16_t)~(FSW_ES | FSW_B);	/* all is masked */
	f->rsvd0 = 0;
	for (unsigned i = 0; i < 8; i++) {
		uint64_t st[2] = { a->st[i][0], a->st[i][1] & 0xffff };
		copy(f->st[i].b, st, sizeof st);
	}
}

/* What of the area is loaded goes to s.fpu. */
static void components_in(struct x86_xsave *f, const struct area_head *a, const uint8_t *from, uint64_t load, bool wide)
{
	bool compact = a->header[1] & COMPACT;
	unsigned at = EXTENDED;

	if (load & XSTATE_X87)
		x87_in(f, a, wide);
	if (load & XSTATE_SSE)
		copy(f->xmm, a->xmm, sizeof f->xmm);
	for (unsigned i = 0; i < FP_COMPONENTS; i++) {
		const struct fp_component *c = &fp_components[i];
		if (load >> c->number & 1)
			copy(f->raw + c->at, from + (compact ? at : c->at), c->bytes);
		if (a->header[1] >> c->number & 1)
			at += c->bytes;
	}
	f->xstate_bv |= load;
}

/* Would an exception be unmasked? Translated code is not made for that. */
static bool masks_all(const struct area_head *a, uint64_t load, bool take_mxcsr)
{
	uint32_t mxcsr = (uint32_t)a->x87[3];

	if (take_mxcsr && ((mxcsr & ~MXCSR_VALID) || (mxcsr & MXCSR_MASKS) != MXCSR_MASKS))
		return false;
	return !(load & XSTATE_X87) || (a->x87[0] & X87_MASKS) == X87_MASKS;
}

static bool state_in(struct vcpu *v, uint64_t va, unsigned what)
{
	struct x86_xsave *f = &v->s.fpu;
	uint64_t ask = requested(v), load;
	const uint8_t *from = area(v, va, EXTENDED, false);
	struct area_head a;
	bool compact, take_mxcsr;

	if (!from || (ask & ~(uint64_t)KNOWN))
		return false;
	copy(&a, from, sizeof a);
	compact = a.header[1] & COMPACT;
	load = ask & a.header[0];
	take_mxcsr = compact ? load & XSTATE_SSE : ask & (XSTATE_SSE | XSTATE_AVX);
	if (!header_good(v, a.header, what & STATE_SUPERVISOR) || !masks_all(&a, load, take_mxcsr))
		return false;
	from = area(v, va, area_bytes(compact ? a.header[1] : ask, compact), false);
	if (!from)
		return false;
	if (v->hot.fpu_live)
		__asm__ volatile("stmxcsr %0" : "=m"(f->mxcsr));
	components_init(f, ask & ~load);
	f->xstate_bv &= ~(ask & ~load);
	if (take_mxcsr)
		f->mxcsr = (uint32_t)a.x87[3];
	else if (compact && (ask & XSTATE_SSE))
		f->mxcsr = MXCSR_INITIAL;
	components_in(f, &a, from, load, what & STATE_WIDE);
	if (v->hot.fpu_live)
		__asm__ volatile("xrstor64 %0" :: "m"(*f), "a"((uint32_t)ask), "d"(0) : "memory");
	return true;
}

bool state_quick(struct vcpu *v, uint64_t va, uint64_t what)
{
	if (va & 63)
		return false;
	if (!(what & STATE_LOAD ? state_in(v, va, (unsigned)what) : state_out(v, va, (unsigned)what)))
		return false;
	trans_of(v)->count_visits++;
	return true;
}
