/*
 * String instructions.
 *
 * A repeated one commits each iteration (rSI, rDI, rCX) so that a fault or an interrupt leaves exact
 * registers; RIP moves on only when the count is used up.  After some iterations the handler returns with RIP
 * unchanged to let the run loop look at requests and interrupts.
 */
#include "engine/soft/handlers.h"

#define REP_BATCH 4096	/* iterations between two looks at the run loop */

struct string_regs { uint64_t si, di, mask; int64_t step; unsigned size, seg; };

INLINE void str_begin(struct vcpu *v, const struct insn *in, struct string_regs *r)
{
	r->mask = size_mask(in->addrsize);
	r->si = v->s.gpr[REG_RSI] & r->mask;
	r->di = v->s.gpr[REG_RDI] & r->mask;
	r->size = in->ops[0].size;
	r->step = v->s.rflags & FLAG_DF ? -(int64_t)r->size : (int64_t)r->size;
	r->seg = in->seg_override != SEG_NONE ? in->seg_override : SEG_DS;
}

INLINE void step_si(struct vcpu *v, const struct insn *in, const struct string_regs *r, uint64_t n)
{
	gpr_set(v, REG_RSI, in->addrsize, r->si + (uint64_t)r->step * n);
}

INLINE void step_di(struct vcpu *v, const struct insn *in, const struct string_regs *r, uint64_t n)
{
	gpr_set(v, REG_RDI, in->addrsize, r->di + (uint64_t)r->step * n);
}

/* One iteration of each; commits its index registers. */
INLINE void movs_one(struct vcpu *v, const struct insn *in)
{
	struct string_regs r;

	str_begin(v, in, &r);
	mem_st(v, SEG_ES, r.di, r.size, mem_ld(v, r.seg, r.si, r.size));
	step_si(v, in, &r, 1);
	step_di(v, in, &r, 1);
}

INLINE void stos_one(struct vcpu *v, const struct insn *in)
{
	struct string_regs r;

	str_begin(v, in, &r);
	mem_st(v, SEG_ES, r.di, r.size, v->s.gpr[REG_RAX] & size_mask(r.size));
	step_di(v, in, &r, 1);
}

INLINE void lods_one(struct vcpu *v, const struct insn *in)
{
	struct string_regs r;

	str_begin(v, in, &r);
	gpr_set(v, REG_RAX, r.size, mem_ld(v, r.seg, r.si, r.size));
	step_si(v, in, &r, 1);
}

INLINE void cmps_one(struct vcpu *v, const struct insn *in)
{
	struct string_regs r;
	uint64_t fl, a, b;

	str_begin(v, in, &r);
	a = mem_ld(v, r.seg, r.si, r.size);
	b = mem_ld(v, SEG_ES, r.di, r.size);
	alu_sub(a, b, 0, r.size, &fl);
	step_si(v, in, &r, 1);
	step_di(v, in, &r, 1);
	flags_set(v, FLAGS_ARITH, fl);
}

INLINE void scas_one(struct vcpu *v, const struct insn *in)
{
	struct string_regs r;
	uint64_t fl;

	str_begin(v, in, &r);
	alu_sub(v->s.gpr[REG_RAX] & size_mask(r.size), mem_ld(v, SEG_ES, r.di, r.size), 0, r.size, &fl);
	step_di(v, in, &r, 1);
	flags_set(v, FLAGS_ARITH, fl);
}

INLINE void ins_one(struct vcpu *v, const struct insn *in)
{
	struct string_regs r;
	uint16_t port = (uint16_t)v->s.gpr[REG_RDX];

	str_begin(v, in, &r);
	mem_probe_store(v, SEG_ES, r.di, r.size);	/* reading a port cannot be undone */
	mem_st(v, SEG_ES, r.di, r.size, sys_in(v, port, r.size));
	step_di(v, in, &r, 1);
}

INLINE void outs_one(struct vcpu *v, const struct insn *in)
{
	struct string_regs r;

	str_begin(v, in, &r);
	sys_out(v, (uint16_t)v->s.gpr[REG_RDX], r.size, (uint32_t)mem_ld(v, r.seg, r.si, r.size));
	step_si(v, in, &r, 1);
}

/* How many whole elements from the one at `va` in the direction of the step lie in its page, at most `count`. */
INLINE uint64_t run_length(uint64_t va, const struct string_regs *r, uint64_t count)
{
	uint64_t offset = va & ~GUEST_PAGE_MASK, room = (GUEST_PAGE_SIZE - offset) / r->size;

	if (r->step < 0)
		room = room ? offset / r->size + 1 : 0;
	return room < count ? room : count;
}

/* Only a base: writable, expand-up, 4 GiB. */
INLINE bool segment_plain(const struct x86_segment *sg) { return (sg->attr & 0x9e) == 0x92 && sg->limit == ~0u; }

INLINE bool bulk_usable(struct vcpu *v, const struct string_regs *r)
{
	if (interp_of(v)->slow || interp_of(v)->ac_check)
		return false;
	if (v->insn_mode == INSN_64)
		return r->mask == ~0ull;
	return r->mask == 0xffffffff && segment_plain(&v->s.seg[SEG_ES]) && segment_plain(&v->s.seg[r->seg]) &&
	       r->si < 0xfffff000 && r->di < 0xfffff000;
}

/* The lowest address of a run of n elements that starts at va. */
INLINE uint64_t run_lowest(uint64_t va, const struct string_regs *r, uint64_t n)
{
	return r->step < 0 ? va - (n - 1) * r->size : va;
}

/* Host address of a run inside one page of RAM, at its lowest address. Faults as its first element would; NULL: device,
 * code. */
static uint8_t *run_ptr(struct vcpu *v, unsigned seg, uint64_t va, const struct string_regs *r, uint64_t n, bool write)
{
	uint64_t lowest = run_lowest(va, r, n);
	unsigned bytes = (unsigned)(n * r->size);
	uint8_t *p = mem_bulk_ptr(v, seg, lowest, bytes, write);

	if (p || !va_canonical(v, va) || !mem_fill(v, va, write))
		return p;
	return mem_bulk_ptr(v, seg, lowest, bytes, write);
}

/* Both run in the same direction; they may overlap. */
static void run_copy(uint8_t *to, const uint8_t *from, const struct string_regs *r, uint64_t n)
{
	uint64_t bytes = n * r->size;
	bool down = r->step < 0;

	/* An overlap that replicates: element by element. */
	if (down ? to < from && from < to + bytes : from < to && to < from + bytes)
		for (uint64_t i = 0; i < n; i++) {
			uint64_t at = (down ? n - 1 - i : i) * r->size;
			hva_store(to + at, r->size, hva_load(from + at, r->size));
		}
	else
		memmove(to, from, bytes);
}

/* Elements in 64-bit mode or flat 32-bit segments: whole runs at once. Returns how many. */
static uint64_t movs_bulk(struct vcpu *v, const struct insn *in, uint64_t count)
{
	struct string_regs r;
	uint64_t src, dst, n;
	uint8_t *from, *to;

	str_begin(v, in, &r);
	if (!bulk_usable(v, &r))
		return 0;
	src = mem_linear(v, r.seg, r.si, 1, false);
	dst = mem_linear(v, SEG_ES, r.di, 1, true);
	n = run_length(dst, &r, run_length(src, &r, count));
	if (!n)
		return 0;
	from = run_ptr(v, r.seg, src, &r, n, false);
	to = from ? run_ptr(v, SEG_ES, dst, &r, n, true) : NULL;
	if (!to)
		return 0;
	run_copy(to, from, &r, n);
	step_si(v, in, &r, n);
	step_di(v, in, &r, n);
	return n;
}

static uint64_t stos_bulk(struct vcpu *v, const struct insn *in, uint64_t count)
{
	struct string_regs r;
	uint64_t dst, n, value;
	uint8_t *to;

	str_begin(v, in, &r);
	if (!bulk_usable(v, &r))
		return 0;
	dst = mem_linear(v, SEG_ES, r.di, 1, true);
	n = run_length(dst, &r, count);
	to = n ? run_ptr(v, SEG_ES, dst, &r, n, true) : NULL;
	if (!to)
		return 0;
	value = v->s.gpr[REG_RAX] & size_mask(r.size);
	if (value == 0 || r.size == 1)
		memset(to, (int)value, n * r.size);
	else
		for (uint64_t i = 0; i < n; i++)
			hva_store(to + i * r.size, r.size, value);
	step_di(v, in, &r, n);
	return n;
}

typedef void string_one(struct vcpu *v, const struct insn *in);
typedef uint64_t string_bulk(struct vcpu *v, const struct insn *in, uint64_t count);

/* REP without a condition. */
INLINE void repeat(struct vcpu *v, const struct insn *in, string_one *one, string_bulk *bulk)
{
	uint64_t count, n;
	unsigned left = interp_of(v)->slow ? 1 : REP_BATCH;

	if (!in->rep && !in->repne) {
		one(v, in);
		v->s.rip += in->len;
		return;
	}
	while ((count = gpr_get(v, REG_RCX, in->addrsize))) {
		if (!left--)
			return;
		n = bulk ? bulk(v, in, count) : 0;
		if (!n) {
			one(v, in);
			n = 1;
		}
		gpr_set(v, REG_RCX, in->addrsize, count - n);
		if (unlikely(interp_of(v)->slow || interp_of(v)->stop_block ||
			     atomic_load_explicit(&v->request, memory_order_relaxed)))
			break;
	}
	if (!gpr_get(v, REG_RCX, in->addrsize))
		v->s.rip += in->len;
}

/* REPE, REPNE */
INLINE void repeat_cond(struct vcpu *v, const struct insn *in, string_one *one)
{
	uint64_t count;
	unsigned left = interp_of(v)->slow ? 1 : REP_BATCH;
	bool want = in->rep;

	if (!in->rep && !in->repne) {
		one(v, in);
		v->s.rip += in->len;
		return;
	}
	while ((count = gpr_get(v, REG_RCX, in->addrsize))) {
		if (!left--)
			return;
		one(v, in);
		gpr_set(v, REG_RCX, in->addrsize, count - 1);
		if (!!(v->s.rflags & FLAG_ZF) != want)
			break;
		if (unlikely(count > 1 && atomic_load_explicit(&v->request, memory_order_relaxed)))
			return;
	}
	v->s.rip += in->len;
}

INTERP_HANDLER(op_movs) { repeat(v, in, movs_one, movs_bulk); }
INTERP_HANDLER(op_stos) { repeat(v, in, stos_one, stos_bulk); }
INTERP_HANDLER(op_lods) { repeat(v, in, lods_one, NULL); }
INTERP_HANDLER(op_cmps) { repeat_cond(v, in, cmps_one); }
INTERP_HANDLER(op_scas) { repeat_cond(v, in, scas_one); }

INTERP_HANDLER(op_ins)
{
	sys_check_io(v, (uint16_t)v->s.gpr[REG_RDX], in->ops[0].size);
	repeat(v, in, ins_one, NULL);
}

INTERP_HANDLER(op_outs)
{
	sys_check_io(v, (uint16_t)v->s.gpr[REG_RDX], in->ops[0].size);
	repeat(v, in, outs_one, NULL);
}
