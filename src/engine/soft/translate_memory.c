/*
 * Guest memory from translated code: the isolation boundary.
 *
 *   lea  t0, [effective address]   (+ segment base)
 *   t1 = (t0 >> 12 & 65535) * 16
 *   sub  t0, gs:[t1 + tag]         offset in the page, if it is the right page
 *   cmp  t0, 4096 - size
 *   ja   miss
 *   mov  t1, gs:[t1 + addend]
 *   op   [base + t1 + disp]
 *
 * Every host address that guest-controlled registers take part in comes out of this file, behind that compare:
 * it lies in the page the TLB entry was filled for, and so do its last bytes. Nothing runs between the compare and
 * the access but moves.
 */
#include "engine/soft/translate_private.h"

/* A guest register as host register: its own, or loaded into temp. */
static unsigned reg_or_load(struct block_build *b, unsigned guest, unsigned temp)
{
	unsigned h = host_reg_of(guest);

	if (h != H_NONE)
		return h;
	emit_load(&b->e, temp, hm_gs(OFF_GPR(guest)));
	return temp;
}

void emit_page_address(struct block_build *b, unsigned reg, int64_t offset)
{
	emit_load(&b->e, reg, hm_gs(OFF_HOT(page)));
	if (b->wide && offset > INT32_MAX) {	/* of a jump as far as they go */
		emit_lea(&b->e, reg, hm_base(reg, INT32_MAX));
		offset -= INT32_MAX;
	}
	if (offset)
		emit_op_mem(&b->e, b->wide, 0x8d, reg, hm_base(reg, (int32_t)offset));	/* lea */
}

bool mem_translatable(const struct block_build *b, const struct insn *in)
{
	int64_t d = in->mem.disp + (in->mem.rip ? 2 * (int64_t)GUEST_PAGE_SIZE : 0);

	if (!b->wide)	/* modulo 4 GiB; CS may not be written */
		return in->addrsize == 4 && in->mem.seg != SEG_CS;
	return in->addrsize == 8 && d == (int32_t)d;
}

static struct host_mem segment_base(unsigned seg)
{
	return hm_gs(offsetof(struct vcpu, s.seg) + seg * sizeof(struct x86_segment));
}

/* T0 += base of FS or GS; in 32-bit code if nothing but the base matters. */
static void segment_add(struct block_build *b, struct block_insn *bi, bool flags_saved)
{
	unsigned seg = bi->in.mem.seg;

	if (seg != SEG_FS && seg != SEG_GS)
		return;
	if (!b->wide) {
		emit_cmp_imm8(&b->e, true, hm_gs(OFF_HOT(segment_flat) + seg - SEG_FS), 1);
		block_stub(b, STUB_STEP, emit_jcc(&b->e, CC_NE), bi->offset)->flags_saved = flags_saved;
	}
	emit_op_mem(&b->e, b->wide, 0x03, H_T0, segment_base(seg));
}

void address_translate(struct block_build *b, const struct insn *in, unsigned reg, unsigned next_offset, bool wide)
{
	struct host_mem m = { H_NONE, H_NONE, in->mem.scale, false, (int32_t)in->mem.disp };

	if (in->mem.rip) {
		m.base = H_T0;
		m.disp += (int32_t)next_offset;
		emit_load(&b->e, H_T0, hm_gs(OFF_HOT(page)));
	} else {
		if (in->mem.base != INSN_REG_NONE)
			m.base = (uint8_t)reg_or_load(b, in->mem.base, H_T0);
		if (in->mem.index != INSN_REG_NONE)
			m.index = (uint8_t)reg_or_load(b, in->mem.index, H_T1);
	}
	emit_op_mem(&b->e, wide, 0x8d, reg, m);
}

static struct host_mem gs_tlb(uint64_t off)
{
	struct host_mem m = hm_base(H_T1, (int32_t)off);

	m.gs = true;
	return m;
}

/* T0 holds a linear address. Afterwards T0: offset in its page if that is the entry's, T1: TLB index in bytes. */
static void emit_tag_sub(struct block_build *b, bool write)
{
	struct emitter *e = &b->e;
	unsigned shift = GUEST_PAGE_SHIFT - TLB_ENTRY_SHIFT;

	if (b->v->en->translator->bmi2) {
		e3(e, 0xc4, 0x43, 0x7b), e3(e, 0xf0, 0xfe, (uint8_t)shift);	/* rorx t1d, t0d, shift */
	} else {
		emit_op_reg(e, false, 0x89, H_T0, H_T1);			/* mov t1d, t0d */
		e3(e, 0x41, 0xc1, 0xef), e1(e, (uint8_t)shift);			/* shr t1d, shift */
	}
	e3(e, 0x41, 0x81, 0xe7), e_u32(e, (TLB_ENTRIES - 1) << TLB_ENTRY_SHIFT);	/* and t1d, mask */
	emit_op_mem(e, true, 0x2b, H_T0, gs_tlb(OFF_TLB(b->tlb_mode, write, tag)));	/* sub t0, tag */
}

/* A jump taken if T0 is no offset at which `size` bytes lie in a page, or is misaligned. */
static uint8_t *emit_outside(struct block_build *b, unsigned size, unsigned align)
{
	struct emitter *e = &b->e;

	if (align >= size && align > 1) {	/* both at once: only these bits may be set */
		e3(e, 0x49, 0xf7, 0xc6), e_u32(e, ~(GUEST_PAGE_SIZE - align));	/* test t0, ~.. */
		return emit_jcc(e, CC_NE);
	}
	e3(e, 0x49, 0x81, 0xfe), e_u32(e, GUEST_PAGE_SIZE - size);	/* cmp t0, last */
	return emit_jcc(e, CC_A);
}

/* T0 holds the linear address. Afterwards as emit_tag_sub(). align: 1, or what misaligned accesses fault by. */
static void check(struct block_build *b, struct block_insn *bi, unsigned size, unsigned align, bool write,
		  uint8_t *retry, uint8_t *again, bool flags_saved)
{
	struct stub *s;

	emit_tag_sub(b, write);
	s = block_stub(b, STUB_MISS, emit_outside(b, size, align), bi->offset);
	s->data.size = (uint8_t)size;		/* of no use to a group */
	s->data.flags = write ? EXIT_WRITE : 0;
	s->retry = retry;
	s->again = again;
	s->flags_saved = flags_saved;
}

static void align_check(struct block_build *b, struct block_insn *bi, unsigned align, bool flags_saved)
{
	struct stub *s;

	e3(&b->e, 0x41, 0xf7, 0xc6), e_u32(&b->e, align - 1);		/* test t0d, align - 1 */
	s = block_stub(b, STUB_STEP, emit_jcc(&b->e, CC_NE), bi->offset);
	s->flags_saved = flags_saved;
}

unsigned mem_align(const struct insn *in, unsigned size)
{
	if (in->op == X86_CMPXCHG16B)
		return 16;
	switch (in->row->align) {
	case ALIGN_VECTOR: return size >= 16 ? size : 1;
	case ALIGN_16: return 16;
	case ALIGN_64: return 64;
	default: return 1;
	}
}

/* T0: offset in the page that was checked; becomes the host address. */
static void host_address(struct block_build *b, bool write)
{
	struct emitter *e = &b->e;

	emit_op_mem(e, true, 0x03, H_T0, gs_tlb(OFF_TLB(b->tlb_mode, write, tag)));
	emit_op_mem(e, true, 0x03, H_T0, gs_tlb(OFF_TLB(b->tlb_mode, write, addend)));
}

/* T1 += guest register. */
static void add_guest(struct block_build *b, unsigned guest)
{
	unsigned h = host_reg_of(guest);

	if (h == H_NONE)
		emit_op_mem(&b->e, true, 0x03, H_T1, hm_gs(OFF_GPR(guest)));
	else
		emit_op_reg(&b->e, true, 0x01, h, H_T1);
}

/* What check() made is a group's. */
static void stub_of_group(struct block_build *b)
{
	struct stub *s = &b->stubs[b->stub_count - 1];

	s->kind = STUB_GROUP;
	s->data.flags |= EXIT_GROUP;
}

/* T0: where a group begins in its page. */
static void group_align(struct block_build *b, struct block_insn *bi, unsigned align, bool live)
{
	struct stub first = b->stubs[b->stub_count - 1];

	align_check(b, bi, align, live);
	first.from = b->stubs[b->stub_count - 1].from;
	b->stubs[b->stub_count - 1] = first;
}

void mem_check_group(struct block_build *b, struct block_insn *bi, unsigned index, int32_t disp, unsigned size)
{
	struct emitter *e = &b->e;
	struct group *g = &b->groups[index];
	bool live = bi->live_in & FLAGS_ARITH;
	uint8_t *retry = e->p, *again;

	g->checked = true;
	if (loop_in_body(b, g->stream)) {
		loop_check(b, bi, g->stream);
		return;
	}
	flags_park(b, bi, H_T1);
	again = e->p;
	loop_again(b, g->stream);
	emit_lea(e, H_T0, hm_base(reg_or_load(b, g->base, H_T0), disp));
	check(b, bi, size, g->align, g->write, retry, again, live);
	stub_of_group(b);
	if (g->align > 1 && g->align < size)
		group_align(b, bi, g->align, live);
	emit_load(e, H_T1, gs_tlb(OFF_TLB(b->tlb_mode, g->write, addend)));
	if (g->absolute)
		add_guest(b, g->base);
	emit_store(e, H_T1, hm_gs(OFF_HOT(group) + 8 * index));
	b->addend_group = (uint8_t)(index + 1);
	if (g->stream)
		loop_note(b, g->stream, size);
}

/* bi may be a copy. */
static unsigned insn_index(const struct block_build *b, const struct block_insn *bi)
{
	unsigned i = 0;

	while (b->insns[i].offset != bi->offset)
		ASSERT(++i < b->count);
	return i;
}

/* An access of a checked group: the base has not changed since, but by numbers that the check knew. */
static struct host_mem group_operand(struct block_build *b, const struct block_insn *bi, unsigned group, unsigned base,
				     int32_t disp)
{
	const struct group *g = &b->groups[group - 1];

	ASSERT(g->checked);
	if (b->addend_group != group)
		emit_load(&b->e, H_T1, hm_gs(OFF_HOT(group) + 8 * (group - 1)));
	b->addend_group = (uint8_t)group;
	if (g->absolute)
		return hm_base(H_T1, disp + b->values[insn_index(b, bi)][base].delta - b->values[g->head][g->base].delta);
	return (struct host_mem){ (uint8_t)host_reg_of(base), H_T1, 0, false, disp };
}

/* Can the access be made through the addend and what the address was computed from? 32-bit addresses wrap, and
 * registers may have upper halves: there only T0 is right. */
static bool operand_direct(const struct block_build *b, const struct insn *in)
{
	return b->wide && (in->mem.index == INSN_REG_NONE || host_reg_of(in->mem.index) != H_NONE);
}

/* Is it the base that moves in a loop, or nothing? Then the index goes to T1 with all that stands still. */
static bool index_in_sum(const struct block_build *b, const struct block_insn *bi)
{
	return bi->stream && bi->in.mem.index != INSN_REG_NONE && bi->in.mem.base != INSN_REG_NONE &&
	       host_reg_of(bi->in.mem.base) != H_NONE && b->loop.streams[bi->stream - 1].by_base;
}

/* The operand, once T1 holds the addend and what else belongs to it. */
static struct host_mem operand_of_sum(const struct block_build *b, const struct block_insn *bi)
{
	const struct insn *in = &bi->in;
	int32_t disp = (int32_t)in->mem.disp + (in->mem.rip ? bi->offset + in->len : 0);
	unsigned base = in->mem.base == INSN_REG_NONE ? (unsigned)H_NONE : host_reg_of(in->mem.base);

	if (in->mem.index != INSN_REG_NONE && !index_in_sum(b, bi))
		return (struct host_mem){ H_T1, (uint8_t)host_reg_of(in->mem.index), in->mem.scale, false, disp };
	return base == H_NONE ? hm_base(H_T1, disp) : (struct host_mem){ (uint8_t)base, H_T1, 0, false, disp };
}

/* The addend is in T1, and flags may be lost. */
static struct host_mem direct_operand(struct block_build *b, const struct block_insn *bi)
{
	const struct insn *in = &bi->in;
	unsigned seg = in->mem.seg, base = in->mem.base == INSN_REG_NONE ? (unsigned)H_NONE : host_reg_of(in->mem.base);

	if (in->mem.rip)
		emit_op_mem(&b->e, true, 0x03, H_T1, hm_gs(OFF_HOT(page)));	/* add */
	else if (in->mem.base != INSN_REG_NONE && base == H_NONE)
		emit_op_mem(&b->e, true, 0x03, H_T1, hm_gs(OFF_GPR(in->mem.base)));
	if (seg == SEG_FS || seg == SEG_GS)
		emit_op_mem(&b->e, true, 0x03, H_T1, segment_base(seg));
	if (index_in_sum(b, bi))
		emit_lea(&b->e, H_T1, (struct host_mem){ H_T1, (uint8_t)host_reg_of(in->mem.index), in->mem.scale, false, 0 });
	else if (in->mem.index != INSN_REG_NONE && base != H_NONE)
		emit_lea(&b->e, H_T1, (struct host_mem){ H_T1, (uint8_t)base, 0, false, 0 });
	return operand_of_sum(b, bi);
}

/* The body of a loop: the operand of the first copy. */
static struct host_mem stream_operand(struct block_build *b, struct block_insn *bi)
{
	loop_check(b, bi, bi->stream);
	b->addend_group = 0;
	loop_load_addend(b, bi->stream);
	return operand_of_sum(b, bi);
}

struct host_mem mem_translate(struct block_build *b, struct block_insn *bi, unsigned size, bool write,
			      unsigned *spare)
{
	struct emitter *e = &b->e;
	const struct insn *in = &bi->in;
	bool live = bi->live_in & FLAGS_ARITH;
	uint8_t *retry = e->p, *again;
	struct host_mem m;
	unsigned align = mem_align(in, size);

	if (bi->group_mem) {
		*spare = H_T0;
		return group_operand(b, bi, bi->group_mem, in->mem.base, (int32_t)in->mem.disp);
	}
	if (loop_in_body(b, bi->stream)) {
		*spare = H_T0;
		return stream_operand(b, bi);
	}
	b->addend_group = 0;
	flags_park(b, bi, H_T1);
	again = e->p;
	loop_again(b, bi->stream);
	address_translate(b, in, H_T0, bi->offset + in->len, b->wide);
	segment_add(b, bi, live);
	check(b, bi, size, align, write, retry, again, live);
	if (align > 1)
		b->stubs[b->stub_count - 1].data.flags |= EXIT_ALIGNED;
	if (in->evex_mask)
		b->stubs[b->stub_count - 1].data.flags |= EXIT_MASKED;
	if (align > 1 && align < size)
		align_check(b, bi, align, live);
	if (operand_direct(b, in)) {
		emit_load(e, H_T1, gs_tlb(OFF_TLB(b->tlb_mode, write, addend)));
		m = direct_operand(b, bi);
		*spare = H_T0;
		if (bi->stream) {
			loop_note_addend(b, bi->stream);
			loop_note(b, bi->stream, size);
		}
	} else {
		host_address(b, write);
		m = hm_base(H_T0, 0);
		*spare = H_T1;
	}
	return m;
}

static void emit_guest_load(struct emitter *e, unsigned guest, unsigned temp)
{
	unsigned h = host_reg_of(guest);

	if (h == H_NONE)
		emit_load(e, temp, hm_gs(OFF_GPR(guest)));
	else
		emit_op_reg(e, true, 0x89, h, temp);
}

struct host_mem mem_translate_bit(struct block_build *b, struct block_insn *bi, unsigned guest, unsigned size,
				  bool write)
{
	struct emitter *e = &b->e;
	const struct insn *in = &bi->in;
	bool wide = size == 8;
	uint8_t *retry = e->p, *again;

	emit_flags_save(e);
	again = e->p;
	address_translate(b, in, H_T0, bi->offset + in->len, b->wide);
	segment_add(b, bi, true);
	emit_guest_load(e, guest, H_T1);
	if (!wide)
		e3(e, 0x4d, 0x63, 0xff);				/* movsxd t1, t1d */
	e3(e, 0x49, 0xc1, 0xff), e1(e, wide ? 6 : 5);			/* sar t1, 6 */
	emit_op_mem(e, b->wide, 0x8d, H_T0, (struct host_mem){ H_T0, H_T1, wide ? 3 : 2, false, 0 });	/* lea */
	check(b, bi, size, 1, write, retry, again, true);
	host_address(b, write);
	emit_guest_load(e, guest, H_T1);
	e3(e, 0x49, 0x83, 0xe7), e1(e, wide ? 63 : 31);			/* and t1, 63 */
	emit_flags_restore(e);
	return hm_base(H_T0, 0);
}

struct host_mem stack_translate(struct block_build *b, struct block_insn *bi, int32_t disp, unsigned size, bool write)
{
	struct emitter *e = &b->e;
	uint8_t *retry = e->p, *again;
	bool live = bi->live_in & FLAGS_ARITH;

	if (bi->in.op != X86_PUSH && bi->in.op != X86_POP)
		b->addend_group = 0;	/* others may have used T1 */
	if (bi->group_stack)
		return group_operand(b, bi, bi->group_stack, REG_RSP, disp);
	flags_park(b, bi, H_T1);
	again = e->p;
	emit_op_mem(e, b->wide, 0x8d, H_T0, hm_base(H_R13, disp));	/* lea */
	check(b, bi, size, 1, write, retry, again, live);
	if (b->wide)
		emit_load(e, H_T1, gs_tlb(OFF_TLB(b->tlb_mode, write, addend)));
	else
		host_address(b, write);
	if (!b->wide)
		return hm_base(H_T0, 0);
	return (struct host_mem){ H_R13, H_T1, 0, false, disp };
}

/* Calls tlb_refill_*() with the guest's state where it is, but for the flags: NE if the entry was filled. */
static void emit_refill(struct emitter *e, struct vcpu *v, unsigned mode, bool write)
{
	static const uint8_t saved[] = { H_RAX, H_RCX, H_RDX, H_RSI, H_RDI, H_R8, H_R9, H_R10, H_R11 };
	bool (*fn)(struct vcpu *, uint64_t, unsigned) = write ? tlb_refill_write : tlb_refill_read;
	for (unsigned i = 0; i < sizeof saved; i++)	/* nothing there asks for an aligned stack */
		emit_push(e, saved[i], false);
	emit_op_reg(e, true, 0x89, H_T0, H_RSI);
	emit_op_mem(e, true, 0x03, H_RSI, gs_tlb(OFF_TLB(mode, write, tag)));
	emit_mov_imm(e, H_RDI, (uint64_t)(uintptr_t)v);
	emit_mov_imm(e, H_RDX, mode);
	emit_mov_imm(e, H_RAX, (uint64_t)(uintptr_t)fn);
	e2(e, 0xff, 0xd0);			/* call rax */
	e2(e, 0x84, 0xc0);			/* test al, al */
	for (unsigned i = sizeof saved; i-- > 0; )
		emit_push(e, saved[i], true);
	e1(e, 0xc3);
}

void mem_emit_refills(struct vcpu *v, struct emitter *e)
{
	for (unsigned mode = 0; mode < TLB_MODES; mode++)
		for (unsigned write = 0; write < 2; write++) {
			trans_of(v)->refill[mode][write] = e->p;
			emit_refill(e, v, mode, write);
		}
}

/* The guest's arithmetic flags to and from hot.save_flags; RAX survives. */
void emit_flags_save(struct emitter *e)
{
	emit_store(e, H_RAX, hm_gs(OFF_HOT(save_rax)));
	e1(e, 0x9f);				/* lahf */
	e3(e, 0x0f, 0x90, 0xc0);		/* seto al */
	emit_op_mem(e, false, 0x89, H_RAX, hm_gs(OFF_HOT(save_flags)));
	emit_load(e, H_RAX, hm_gs(OFF_HOT(save_rax)));
}

void emit_flags_restore(struct emitter *e)
{
	emit_store(e, H_RAX, hm_gs(OFF_HOT(save_rax)));
	emit_op_mem(e, false, 0x8b, H_RAX, hm_gs(OFF_HOT(save_flags)));
	e2(e, 0x04, 0x7f);			/* add al, 0x7f */
	e1(e, 0x9e);				/* sahf */
	emit_load(e, H_RAX, hm_gs(OFF_HOT(save_rax)));
}

/* A stub that interprets the instruction, its flags restored from where they were saved. */
static void step_if(struct block_build *b, struct block_insn *bi, unsigned cc)
{
	block_stub(b, STUB_STEP, emit_jcc(&b->e, cc), bi->offset)->flags_saved = true;
}

/* Two compares, not one: T0 - tag + length could wrap to something small. */
void mem_check_run(struct block_build *b, struct block_insn *bi, unsigned size, bool repeated, bool write)
{
	struct emitter *e = &b->e;
	unsigned shift = (unsigned)__builtin_ctz(size);

	emit_tag_sub(b, write);
	e3(e, 0x49, 0x81, 0xfe), e_u32(e, GUEST_PAGE_SIZE - size);	/* cmp t0, last element */
	step_if(b, bi, CC_A);
	if (repeated) {
		emit_lea(e, H_T0, (struct host_mem){ H_T0, H_RCX, (uint8_t)shift, false, 0 });
		e3(e, 0x49, 0x81, 0xfe), e_u32(e, GUEST_PAGE_SIZE);
		step_if(b, bi, CC_A);
	}
	emit_load(e, H_T1, gs_tlb(OFF_TLB(b->tlb_mode, write, addend)));
}
