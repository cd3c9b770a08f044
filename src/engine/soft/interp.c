/*
 * Decoded blocks and the loop that runs them.
 *
 *   linear RIP --jump cache (one fetch epoch)--> block <--hash of physical address-- decode
 *
 * A block belongs to one page, is checked against the page's code version each time it is entered, and is
 * never changed: stale ones are forgotten, all storage is reclaimed at once when it runs out.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "cpu/model.h"
#include "cpu/optable.h"
#include "engine/soft/handlers.h"
#include "engine/soft/trace.h"

const struct interp_op interp_ops[X86_OP_COUNT] = {
#define HANDLER(op, f, fl) [X86_##op] = { f, fl },
#include "engine/soft/handlers.def"
#undef HANDLER
};

static INTERP_HANDLER(op_fp)
{
	if (!fp_execute(v, in))
		vcpu_raise(v, EXC_UD);
}

static INTERP_HANDLER(op_undefined) { vcpu_raise(v, EXC_UD); }

/* Instructions with a condition on CPL or mode go through here. */
static INTERP_HANDLER(op_checked)
{
	const struct interp_op *op = &interp_ops[in->op];

	if ((op->flags & OPF_PE) && (!(v->s.cr0 & CR0_PE) || (v->s.rflags & FLAG_VM)))
		vcpu_raise(v, EXC_UD);
	if ((op->flags & OPF_CPL0) && state_cpl(&v->s) != 0)
		vcpu_raise_error(v, EXC_GP, 0);
	op->fn(v, in);
}

int interp_init(struct vcpu *v)
{
	struct interp *ip = calloc(1, sizeof(*ip));

	if (!ip)
		return -ENOMEM;
	ip->arena = calloc(ARENA_INSNS, sizeof(*ip->arena));
	if (!ip->arena) {
		free(ip);
		return -ENOMEM;
	}
	ip->fetch_epoch = 1;
	ip->check_events = true;
	v->interp = ip;
	interp_drop_all(v);
	return 0;
}

void interp_fini(struct vcpu *v)
{
	struct interp *ip = v->interp;

	if (!ip)
		return;
	trace_end(v);
	free(ip->marks);
	free(ip->arena);
	free(ip);
	v->interp = NULL;
}

void interp_drop_all(struct vcpu *v)
{
	struct interp *ip = interp_of(v);

	for (unsigned i = 0; i < 1u << BLOCK_BITS; i++)
		ip->blocks[i].gpa = ~0ull;
	ip->arena_used = 0;
	ip->fetch_epoch++;
	ip->stop_block = true;
}

/* --- decoding --- */

static void decoded_fill(struct vcpu *v, struct decoded *d)
{
	const struct interp_op *op = &interp_ops[d->in.op];

	d->len = d->in.len;
	d->flags = op->flags & (OPF_RIP | OPF_END);
	if (!cpu_model_has(v->en->model, d->in.row->feature)) {
		/* An older CPU ignores the F3 of these two. */
		if (d->in.op == X86_TZCNT || d->in.op == X86_LZCNT) {
			d->fn = d->in.op == X86_TZCNT ? op_bsf : op_bsr;
			return;
		}
		d->fn = op_undefined;
		d->flags = OPF_END;
	} else if (!op->fn) {
		d->fn = op_fp;
	} else if (op->flags & (OPF_CPL0 | OPF_PE)) {
		d->fn = op_checked;
	} else {
		d->fn = interp_specialise(&d->in, op->fn);
	}
}

static void decoded_bad(struct decoded *d, interp_fn *fn)
{
	d->fn = fn;
	d->len = 1;
	d->flags = OPF_END;
	d->in.row = NULL;
}

static INTERP_HANDLER(op_too_long) { vcpu_raise_error(v, EXC_GP, 0); }

static uint64_t code_linear(const struct vcpu *v)
{
	if (v->insn_mode == INSN_64)
		return v->s.rip;
	return (uint32_t)(v->s.seg[SEG_CS].base + v->s.rip);
}

/* 64-bit code that crosses from one page of memory into the next, the common case of decode_slow(). */
static bool decode_crossing(struct vcpu *v, struct decoded *d)
{
	uint64_t va = v->s.rip, next = (va | ~GUEST_PAGE_MASK) + 1;
	unsigned n = (unsigned)(next - va), max = 15;
	uint8_t bytes[15];
	struct page_info pi;

	if (v->insn_mode != INSN_64 || n >= max || !va_canonical(v, va) || !va_canonical(v, next))
		return false;
	pi = map_page(v->en->map, mem_fetch_gpa(v, va));
	if (!pi.ro_hva)
		return false;
	memcpy(bytes, pi.ro_hva + (va & ~GUEST_PAGE_MASK), n);
	if (insn_decode(&d->in, bytes, n, INSN_64) != DECODE_SHORT)
		return false;
	pi = map_page(v->en->map, mem_fetch_gpa(v, next));
	if (!pi.ro_hva)
		return false;
	memcpy(bytes + n, pi.ro_hva, max - n);
	if (insn_decode(&d->in, bytes, max, INSN_64) != DECODE_OK)
		return false;
	decoded_fill(v, d);
	return true;
}

/* Decodes the instruction at RIP byte by byte: across pages, near the limit, from devices. */
static struct decoded *decode_slow(struct vcpu *v)
{
	struct decoded *d = &interp_of(v)->scratch;
	uint8_t bytes[15];
	uint64_t page = ~0ull, gpa = 0, limit = v->insn_mode == INSN_64 ? ~0ull : v->s.seg[SEG_CS].limit;

	if (decode_crossing(v, d))
		return d;
	for (unsigned n = 0; n < sizeof(bytes); n++) {
		uint64_t off = v->s.rip + n, va = code_linear(v) + n;
		enum decode_result r;

		if (v->insn_mode != INSN_64)
			va = (uint32_t)va;
		if (v->insn_mode == INSN_64 ? !va_canonical(v, va) : off > limit)
			vcpu_raise_error(v, EXC_GP, 0);
		if ((va & GUEST_PAGE_MASK) != page) {
			gpa = mem_fetch_gpa(v, va) & GUEST_PAGE_MASK;
			page = va & GUEST_PAGE_MASK;
		}
		bytes[n] = (uint8_t)map_load(v->en->map, gpa | (va & ~GUEST_PAGE_MASK), 1);
		r = insn_decode(&d->in, bytes, n + 1, v->insn_mode);
		if (r == DECODE_SHORT)
			continue;
		if (r == DECODE_OK)
			decoded_fill(v, d);
		else
			decoded_bad(d, r == DECODE_UD ? op_undefined : op_too_long);
		return d;
	}
	decoded_bad(d, op_too_long);
	return d;
}

static struct block *block_slot(struct interp *ip, uint64_t gpa, unsigned mode)
{
	return &ip->blocks[(gpa ^ gpa >> BLOCK_BITS ^ mode * 0x1357) & ((1u << BLOCK_BITS) - 1)];
}

/* Decodes a run from `bytes`; 0 instructions when already the first crosses the page. */
static void block_decode(struct vcpu *v, struct block *b, const struct page_info *pi, unsigned off)
{
	struct interp *ip = interp_of(v);
	unsigned pos = 0, avail = GUEST_PAGE_SIZE - off;
	const uint8_t *bytes = pi->ro_hva + off;

	if (ip->arena_used + BLOCK_MAX > ARENA_INSNS)
		interp_drop_all(v);
	b->insns = &ip->arena[ip->arena_used];
	b->count = 0;
	while (b->count < BLOCK_MAX) {
		struct decoded *d = &b->insns[b->count];
		unsigned room = avail - pos < 15 ? avail - pos : 15;
		enum decode_result r;

		if (!room || (b->count && debugger_marks(ip, off + pos)))
			break;
		if (pi->rw_hva)
			code_watch(v, pi, off + pos, off + pos + room - 1);
		r = insn_decode(&d->in, bytes + pos, avail - pos, v->insn_mode);
		if (r == DECODE_SHORT)
			break;
		if (r == DECODE_OK)
			decoded_fill(v, d);
		else
			decoded_bad(d, r == DECODE_UD ? op_undefined : op_too_long);
		b->count++;
		pos += d->len;
		if (d->flags & OPF_END)
			break;
	}
	b->bytes = (uint16_t)pos;
	ip->arena_used += b->count;
}

static bool block_valid(struct vcpu *v, const struct block *b)
{
	return b->ram_page == ~0u || b->version == code_version(v->en, b->ram_page);
}

/* The block at a physical address; NULL: not in plain memory, or the first instruction crosses the page. */
static struct block *block_get(struct vcpu *v, uint64_t gpa)
{
	struct interp *ip = interp_of(v);
	struct block *b = block_slot(ip, gpa, v->insn_mode);
	unsigned off = gpa & ~GUEST_PAGE_MASK;
	struct page_info pi;

	if (b->gpa == gpa && b->mode == v->insn_mode && block_valid(v, b))
		return b->count ? b : NULL;
	pi = map_page(v->en->map, gpa);
	if (!pi.ro_hva || (pi.rw_hva && pi.ram_page >= v->en->ram_pages))
		return NULL;
	b->gpa = ~0ull;
	b->ram_page = pi.rw_hva ? pi.ram_page : ~0u;
	b->version = pi.rw_hva ? code_version(v->en, pi.ram_page) : 0;
	block_decode(v, b, &pi, off);
	b->gpa = gpa;
	b->mode = v->insn_mode;
	ip->fetch_epoch += b->count == 0;
	return b->count ? b : NULL;
}

/* The block at CS:RIP. NULL: use decode_slow(). Raises what fetching raises. */
static struct block *block_find(struct vcpu *v)
{
	struct interp *ip = interp_of(v);
	uint64_t lin;
	uint32_t key = v->insn_mode | (v->tlb_mode == TLB_USER) << 2;
	struct jump_entry *je;
	struct block *b;

	if (v->insn_mode != INSN_64)
		v->s.rip &= v->insn_mode == INSN_32 ? 0xffffffffu : 0xffffu;
	lin = code_linear(v);
	je = &ip->jump[(lin ^ lin >> JUMP_BITS) & ((1u << JUMP_BITS) - 1)];
	if (likely(je->rip == lin && je->epoch == ip->fetch_epoch && je->key == key && je->block->gpa == je->gpa &&
		   je->block->mode == v->insn_mode && block_valid(v, je->block))) {
		b = je->block;
	} else {
		uint64_t gpa;
		if (v->insn_mode == INSN_64 ? !va_canonical(v, lin) : v->s.rip > v->s.seg[SEG_CS].limit)
			vcpu_raise_error(v, EXC_GP, 0);
		gpa = mem_fetch_gpa(v, lin);
		b = block_get(v, gpa);
		if (!b)
			return NULL;
		*je = (struct jump_entry){ .rip = lin, .gpa = gpa, .block = b, .epoch = ip->fetch_epoch, .key = key };
	}
	if (v->insn_mode != INSN_64 && unlikely(v->s.rip + b->bytes - 1 > v->s.seg[SEG_CS].limit))
		return NULL;
	return b;
}

/* --- running --- */

INLINE void run_insn(struct vcpu *v, const struct decoded *d)
{
	d->fn(v, &d->in);
	v->counters.op[d->in.op]++;
	if (!(d->flags & OPF_RIP))
		v->s.rip += d->len;
}

void interp_block(struct vcpu *v)
{
	struct interp *ip = interp_of(v);
	const struct block *b = block_find(v);
	const struct decoded *d, *end;

	if (unlikely(!b)) {
		run_insn(v, decode_slow(v));
		return;
	}
	ip->stop_block = false;
	d = b->insns;
	end = d + b->count;
	do {
		run_insn(v, d++);
	} while (d != end && likely(!ip->stop_block));
}

void interp_one(struct vcpu *v)
{
	const struct block *b = block_find(v);
	const struct decoded *d = b ? b->insns : decode_slow(v);

	interp_of(v)->stop_block = false;	/* or REP would end after one iteration */
	if (unlikely(v->en->trace != NULL))
		trace_insn(v, &d->in);
	run_insn(v, d);
}
