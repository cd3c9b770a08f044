/*
 * One guest instruction as itself: prefixes and opcode are copied, registers and memory operand rewritten.
 *
 * Of an instruction's operands at most one is in memory (T0 and T1 then form its address, one of them stays free);
 * guest registers that are in memory pass through what is free. Nothing is committed before the access has been checked.
 */
#include "cpu/model.h"
#include "engine/soft/translate_private.h"

/* The fields of an instruction that name registers. */
struct fields {
	int reg_op, rm_op, vvvv_op, opreg_op, mem_op;	/* operand index, -1: none */
	unsigned reg, rm, vvvv, opreg;			/* host numbers */
	const uint8_t *imm;
	unsigned imm_len;
	bool force_rex, no_rex;
};

static void fields_find(const struct insn *in, struct fields *f)
{
	f->reg_op = f->rm_op = f->vvvv_op = f->opreg_op = f->mem_op = -1;
	f->force_rex = f->no_rex = false;
	f->reg = (in->modrm >> 3 & 7) | (in->rex & 4 ? 8 : 0);
	f->rm = (in->modrm & 7) | (in->rex & 1 ? 8 : 0);
	f->vvvv = in->vvvv;
	if (in->evex) {
		f->reg |= in->evex_r ? 16 : 0;
		f->rm |= in->rex & 2 ? 16 : 0;
	}
	f->opreg = (in->opcode & 7) | (in->rex & 1 ? 8 : 0);
	for (int i = 0; i < in->nops; i++) {
		const struct operand *o = &in->ops[i];

		if (o->kind == OPK_MEM) {
			f->mem_op = i;
			continue;
		}
		if (o->kind != OPK_GPR)
			continue;
		switch (x86_operand_specs[in->row->operand[i]].where) {
		case AT_G: f->reg_op = i; break;
		case AT_E: case AT_R: case AT_W: case AT_Q: f->rm_op = i; break;
		case AT_B: f->vvvv_op = i; break;
		case AT_OPREG: f->opreg_op = i; break;
		default: break;
		}
		if (o->high_byte)
			f->no_rex = true;
	}
}

/* Temporaries for guest registers that live in memory. */
struct spills { unsigned n; struct { uint8_t temp, guest; bool write; } s[3]; unsigned free[2], nfree; };

static bool field_map(struct block_build *b, const struct insn *in, struct fields *f, struct spills *sp, int op,
		      unsigned *field)
{
	const struct operand *o;
	unsigned h;

	if (op < 0)
		return true;
	o = &in->ops[op];
	if (o->high_byte) {
		*field = 4 + o->reg;
		return true;
	}
	h = host_reg_of(o->reg);
	if (h == H_NONE) {
		for (unsigned i = 0; i < sp->n; i++)
			if (sp->s[i].guest == o->reg) {
				sp->s[i].write |= o->write;
				*field = sp->s[i].temp;
				return true;
			}
		if (!sp->nfree)
			return false;
		h = sp->free[--sp->nfree];
		if (h == H_T1)
			b->addend_group = 0;
		sp->s[sp->n].temp = (uint8_t)h;
		sp->s[sp->n].guest = o->reg;
		sp->s[sp->n++].write = o->write;
	} else if (o->size == 1 && h >= 4 && h < 8) {
		f->force_rex = true;
	}
	*field = h;
	return true;
}

static void emit_prefixes(struct emitter *e, const struct insn *in)
{
	if (in->lock)
		e1(e, 0xf0);
	if (in->p66)
		e1(e, 0x66);
	if (in->repne)
		e1(e, 0xf2);
	else if (in->rep)
		e1(e, 0xf3);
}

static void emit_vex(struct emitter *e, const struct insn *in, const struct fields *f, unsigned rex)
{
	unsigned pp = in->mandatory == 0x66 ? 1 : in->mandatory == 0xf3 ? 2 : in->mandatory == 0xf2 ? 3 : 0;

	e1(e, 0xc4);
	e1(e, ((~rex & 7) << 5) | in->map);
	e1(e, (in->rex & 8 ? 0x80 : 0) | (~f->vvvv & 15) << 3 | (in->vex_l ? 4 : 0) | pp);
}

/* What disp8 counts: as the decoder has it. */
static unsigned disp8_scale(const struct insn *in, const struct fields *f)
{
	if (!in->evex)
		return 1;
	return in->row->attr & ROW_T1S ? row_mask_element(in->row) : in->ops[f->mem_op].size;
}

static void emit_evex(struct emitter *e, const struct insn *in, const struct fields *f, const struct host_mem *m,
		      unsigned rex)
{
	unsigned pp = in->mandatory == 0x66 ? 1 : in->mandatory == 0xf3 ? 2 : in->mandatory == 0xf2 ? 3 : 0;

	if (!m && f->rm & 16)
		rex |= 2;
	e1(e, 0x62);
	e1(e, (~rex & 7) << 5 | (f->reg & 16 ? 0 : 0x10) | in->map);
	e1(e, (in->rex & 8 ? 0x80 : 0) | (~f->vvvv & 15) << 3 | 4 | pp);
	e1(e, in->evex_z << 7 | in->vex_l << 5 | in->evex_b << 4 | (f->vvvv & 16 ? 0 : 8) | in->evex_mask);
}

/* INC, DEC 40..4F of 32-bit code: a REX prefix to the host. */
static void emit_short_inc(struct emitter *e, const struct insn *in, const struct fields *f)
{
	emit_prefixes(e, in);
	if (f->opreg & 8)
		e1(e, 0x41);
	e2(e, 0xff, 0xc0 | (in->opcode & 8) | (f->opreg & 7));
}

/* Prefixes, opcode, ModR/M and immediate. m: the memory operand or NULL. */
static void emit_insn(struct emitter *e, const struct insn *in, const struct fields *f, const struct host_mem *m)
{
	unsigned rex = in->rex & 8;
	uint8_t opcode = in->opcode;

	if (!in->vex && !in->map && (opcode & 0xf0) == 0x40) {
		emit_short_inc(e, in, f);
		return;
	}
	if (!in->vex && !in->map && opcode == 0x82)	/* 0x80's alias in 32-bit code */
		opcode = 0x80;
	if (in->has_modrm)
		rex |= m ? emit_rex(f->reg, m, false) : (f->reg & 8 ? 4u : 0) | (f->rm & 8 ? 1u : 0);
	if (f->opreg_op >= 0) {
		opcode = (opcode & ~7) | (f->opreg & 7);
		rex |= f->opreg & 8 ? 1 : 0;
	}
	if (in->evex) {
		emit_evex(e, in, f, m, rex);
	} else if (in->vex) {
		emit_vex(e, in, f, rex);
	} else {
		if (m && m->gs)
			e1(e, 0x65);
		emit_prefixes(e, in);
		if (rex || f->force_rex)
			e1(e, 0x40 | rex);
		if (in->map)
			e1(e, 0x0f);
		if (in->map > 1)
			e1(e, in->map == 2 ? 0x38 : 0x3a);
	}
	e1(e, opcode);
	if (in->has_modrm && m)
		emit_modrm_mem_scaled(e, f->reg, m, disp8_scale(in, f));
	else if (in->has_modrm)
		e1(e, 0xc0 | (f->reg & 7) << 3 | (f->rm & 7));
	memcpy(e->p, f->imm, f->imm_len);
	e->p += f->imm_len;
}

/* CMOV may leave the register as it was, and so may BSF, shifts by zero...: those keep the old value loaded. */
static bool write_only(const struct insn *in)
{
	switch (in->op) {
	case X86_MOV: case X86_MOVZX: case X86_MOVSX: case X86_MOVSXD: return in->ops[0].size >= 4;
	default: return false;
	}
}

static void spills_load(struct emitter *e, const struct insn *in, const struct spills *sp)
{
	for (unsigned i = 0; i < sp->n; i++)
		if (!write_only(in) || sp->s[i].guest != in->ops[0].reg || in->ops[0].kind != OPK_GPR ||
		    (in->ops[1].kind == OPK_GPR && in->ops[1].reg == in->ops[0].reg))
			emit_load(e, sp->s[i].temp, hm_gs(OFF_GPR(sp->s[i].guest)));
}

static void fields_fill(const struct block_build *b, const struct block_insn *bi, struct fields *f)
{
	fields_find(&bi->in, f);
	f->imm = b->code + bi->offset + bi->in.imm_at;
	f->imm_len = bi->in.len - bi->in.imm_at;
}

/* xchg al, ah and its kin. */
static void emit_swap_bytes(struct emitter *e, unsigned reg) { e2(e, 0x86, 0xc0 | (4 + reg) << 3 | reg); }

/* AH, CH, DH or BH with memory: our operand needs a REX prefix, with which there are no such registers. So it changes
 * places with the low byte; the address is in T0 alone then. */
static enum insn_result high_byte_translate(struct block_build *b, struct block_insn *bi, struct fields *f, bool write)
{
	struct emitter *e = &b->e;
	const struct insn *in = &bi->in;
	unsigned reg = in->ops[f->reg_op].reg, spare;
	struct host_mem m;

	if (!mem_translatable(b, in) || in->op == X86_CMPXCHG)
		return INSN_STEP;
	m = mem_translate(b, bi, 1, write, &spare);
	emit_lea(e, H_T0, m);
	m = hm_base(H_T0, 0);
	flags_before(b, bi, H_T1);
	f->reg = reg;
	emit_swap_bytes(e, reg);
	emit_insn(e, in, f, &m);
	emit_swap_bytes(e, reg);
	flags_after(b, bi);
	return INSN_NEXT;
}

/* May the r/m operand, a register of the guest's that is in memory, be a memory operand of the host's? Parts of a register
 * are not written there: the next load of all of it would have to wait. */
static bool in_place(const struct insn *in, const struct fields *f)
{
	const struct operand *o = &in->ops[f->rm_op];

	if (host_reg_of(o->reg) != H_NONE || (o->write && o->size != 8) || in->rep || in->repne)
		return false;
	switch (in->op) {
	case X86_MOV: case X86_ADD: case X86_SUB: case X86_ADC: case X86_SBB: case X86_AND: case X86_OR: case X86_XOR:
	case X86_CMP: case X86_TEST: case X86_INC: case X86_DEC: case X86_NEG: case X86_NOT: case X86_IMUL:
	case X86_MOVZX: case X86_MOVSX: case X86_MOVSXD: case X86_SHL: case X86_SHR: case X86_SAR:
		return true;
	default:
		return false;
	}
}

/* The same with the operands in the other fields, if the register that is in memory is not r/m. */
static void operands_flip(struct insn *in, struct fields *f)
{
	struct fields was = *f;

	if (in->vex || in->map || f->reg_op < 0 || f->rm_op < 0 || host_reg_of(in->ops[f->reg_op].reg) != H_NONE ||
	    host_reg_of(in->ops[f->rm_op].reg) == H_NONE || ((in->opcode & 0xc4) && (in->opcode & 0xfc) != 0x88))
		return;
	in->opcode ^= 2;
	f->reg_op = was.rm_op;
	f->rm_op = was.reg_op;
}

/* Registers alone, one of them in memory, where the host can do with it as it is. */
static bool in_place_translate(struct block_build *b, struct block_insn *bi, struct fields f)
{
	struct spills sp = { .free = { H_T1, H_T0 }, .nfree = 2 };
	struct insn in = bi->in;
	struct host_mem m;

	if (f.no_rex || f.vvvv_op >= 0 || f.opreg_op >= 0 || in.vex || !in.has_modrm)
		return false;
	operands_flip(&in, &f);
	if (f.rm_op < 0 || !in_place(&in, &f))
		return false;
	m = hm_gs(OFF_GPR(in.ops[f.rm_op].reg));
	flags_before(b, bi, H_T1);
	if (!field_map(b, &in, &f, &sp, f.reg_op, &f.reg))
		return false;
	spills_load(&b->e, &in, &sp);
	emit_insn(&b->e, &in, &f, &m);
	for (unsigned i = 0; i < sp.n; i++)
		if (sp.s[i].write)
			emit_store(&b->e, sp.s[i].temp, hm_gs(OFF_GPR(sp.s[i].guest)));
	flags_after(b, bi);
	b->t1_kept = true;
	return true;
}

static enum insn_result copy_translate(struct block_build *b, struct block_insn *bi, unsigned size, bool write)
{
	struct emitter *e = &b->e;
	const struct insn *in = &bi->in;
	struct spills sp = { .free = { H_T1, H_T0 }, .nfree = 2 };
	struct fields f;
	struct host_mem m;

	fields_fill(b, bi, &f);
	if (f.mem_op >= 0 && f.no_rex)
		return high_byte_translate(b, bi, &f, write);
	if (f.mem_op < 0 && in_place_translate(b, bi, f))
		return INSN_NEXT;
	if (f.mem_op >= 0) {
		unsigned spare;
		if (!mem_translatable(b, in))
			return INSN_STEP;
		sp.nfree = 1;
		sp.free[0] = H_T0;	/* provisional: may the fields be mapped at all? */
		{
			struct spills try = sp;
			struct fields g = f;
			if (!field_map(b, in, &g, &try, f.reg_op, &g.reg) ||
			    !field_map(b, in, &g, &try, f.vvvv_op, &g.vvvv))
				return INSN_STEP;
		}
		m = mem_translate(b, bi, size, write, &spare);
		sp.free[0] = spare;
		flags_before(b, bi, spare);
	} else if (f.no_rex) {
		for (int i = 0; i < in->nops; i++) {
			const struct operand *o = &in->ops[i];
			if (o->kind == OPK_GPR && !o->high_byte &&
			    host_reg_of(o->reg) >= (o->size == 1 ? 4u : 8u))
				return INSN_STEP;
		}
	}
	if (f.mem_op < 0)
		flags_before(b, bi, H_T1);
	if (!field_map(b, in, &f, &sp, f.reg_op, &f.reg) || !field_map(b, in, &f, &sp, f.rm_op, &f.rm) ||
	    !field_map(b, in, &f, &sp, f.vvvv_op, &f.vvvv) || !field_map(b, in, &f, &sp, f.opreg_op, &f.opreg))
		return INSN_STEP;
	spills_load(e, in, &sp);
	emit_insn(e, in, &f, f.mem_op >= 0 ? &m : NULL);
	for (unsigned i = 0; i < sp.n; i++)
		if (sp.s[i].write)
			emit_store(e, sp.s[i].temp, hm_gs(OFF_GPR(sp.s[i].guest)));
	flags_after(b, bi);
	b->t1_kept = true;
	return INSN_NEXT;
}

static enum insn_result lea_translate(struct block_build *b, struct block_insn *bi)
{
	const struct insn *in = &bi->in;
	unsigned guest = in->ops[0].reg, h = host_reg_of(guest), dest = h == H_NONE ? (unsigned)H_T0 : h;

	if (!mem_translatable(b, in) || in->opsize == 2)
		return INSN_STEP;
	address_translate(b, in, dest, bi->offset + in->len, in->opsize == 8);
	if (h == H_NONE)
		emit_store(&b->e, dest, hm_gs(OFF_GPR(guest)));
	b->t1_kept = in->mem.index == INSN_REG_NONE || host_reg_of(in->mem.index) != H_NONE;
	return INSN_NEXT;
}

/* --- stack --- */

static unsigned value_reg(struct block_build *b, unsigned guest)
{
	unsigned h = host_reg_of(guest);

	if (h != H_NONE)
		return h;
	emit_load(&b->e, H_T0, hm_gs(OFF_GPR(guest)));
	return H_T0;
}

static enum insn_result push_translate(struct block_build *b, struct block_insn *bi)
{
	struct emitter *e = &b->e;
	const struct insn *in = &bi->in;
	const struct operand *o = &in->ops[0];
	struct host_mem m;
	unsigned spare, temp = b->wide ? H_T0 : H_T1, reg = temp;

	if (in->opsize != b->word || (o->kind == OPK_MEM && !mem_translatable(b, in)))
		return INSN_STEP;
	if (o->kind == OPK_MEM) {
		m = mem_translate(b, bi, b->word, false, &spare);
		emit_op_mem(e, b->wide, 0x8b, H_T0, m);
		emit_store(e, H_T0, hm_gs(OFF_HOT(save_value)));
	}
	m = stack_translate(b, bi, -(int32_t)b->word, b->word, true);
	if (o->kind == OPK_IMM) {
		emit_op_mem(e, b->wide, 0xc7, 0, m);
		e_u32(e, (uint32_t)in->imm);
	} else {
		if (o->kind == OPK_MEM)
			emit_load(e, temp, hm_gs(OFF_HOT(save_value)));
		else
			reg = value_reg(b, o->reg);
		emit_op_mem(e, b->wide, 0x89, reg, m);
	}
	emit_op_mem(e, b->wide, 0x8d, H_R13, hm_base(H_R13, -(int32_t)b->word));
	return INSN_NEXT;
}

static enum insn_result pop_translate(struct block_build *b, struct block_insn *bi)
{
	struct emitter *e = &b->e;
	const struct operand *o = &bi->in.ops[0];
	struct host_mem m;
	unsigned h;

	if (bi->in.opsize != b->word || o->kind != OPK_GPR)
		return INSN_STEP;
	m = stack_translate(b, bi, 0, b->word, false);
	h = host_reg_of(o->reg);
	if (o->reg == REG_RSP) {
		emit_op_mem(e, b->wide, 0x8b, H_R13, m);
		return INSN_NEXT;
	}
	emit_op_mem(e, b->wide, 0x8b, h == H_NONE ? (unsigned)H_T0 : h, m);
	if (h == H_NONE)
		emit_store(e, H_T0, hm_gs(OFF_GPR(o->reg)));
	emit_op_mem(e, b->wide, 0x8d, H_R13, hm_base(H_R13, (int32_t)b->word));
	return INSN_NEXT;
}

/* RSP := RBP; POP RBP. The load goes first. */
static enum insn_result leave_translate(struct block_build *b, struct block_insn *bi)
{
	struct emitter *e = &b->e;
	struct block_insn load = *bi;
	struct host_mem m;
	unsigned spare;

	if (bi->in.opsize != b->word)
		return INSN_STEP;
	load.in.mem.seg = SEG_SS;
	load.in.mem.base = REG_RBP;
	load.in.mem.index = INSN_REG_NONE;
	load.in.mem.disp = 0;
	load.in.mem.rip = false;
	m = mem_translate(b, &load, b->word, false, &spare);
	emit_op_mem(e, b->wide, 0x8d, H_R13, hm_base(H_RBP, (int32_t)b->word));
	emit_op_mem(e, b->wide, 0x8b, H_RBP, m);
	return INSN_NEXT;
}

/* --- division: only what cannot overflow runs as itself --- */

/* Unsigned: EDX < divisor (not zero then). Signed: EDX:EAX is a sign-extended EAX and the divisor above 0. */
static void div_check(struct block_build *b, struct block_insn *bi, bool sign, bool wide)
{
	struct emitter *e = &b->e;

	/* the divisor is in T0 */
	if (!sign) {
		emit_op_reg(e, wide, 0x39, H_T0, H_RDX);			/* cmp rdx, t0 */
		block_stub(b, STUB_STEP, emit_jcc(e, CC_AE), bi->offset);
		return;
	}
	emit_op_reg(e, wide, 0x85, H_T0, H_T0);					/* test t0, t0 */
	block_stub(b, STUB_STEP, emit_jcc(e, CC_LE), bi->offset);
	emit_op_reg(e, wide, 0x89, H_RAX, H_T1);				/* mov t1, rax */
	e3(e, wide ? 0x49 : 0x41, 0xc1, 0xff), e1(e, wide ? 63 : 31);		/* sar t1, 63 */
	emit_op_reg(e, wide, 0x39, H_T1, H_RDX);				/* cmp rdx, t1 */
	block_stub(b, STUB_STEP, emit_jcc(e, CC_NE), bi->offset);
}

/* Flags are undefined afterwards, and may be lost before: nobody looks at those of a #DE. */
static enum insn_result div_translate(struct block_build *b, struct block_insn *bi)
{
	struct emitter *e = &b->e;
	const struct insn *in = &bi->in;
	const struct operand *o = NULL;
	bool sign = in->op == X86_IDIV, wide = in->opsize == 8;
	unsigned h, spare;

	for (unsigned i = 0; i < in->nops; i++)
		if (in->ops[i].kind == OPK_MEM || x86_operand_specs[in->row->operand[i]].where == AT_E)
			o = &in->ops[i];
	if (!o || o->size < 4)
		return INSN_STEP;
	if (o->kind == OPK_MEM) {
		struct host_mem m;
		if (!mem_translatable(b, in))
			return INSN_STEP;
		m = mem_translate(b, bi, o->size, false, &spare);
		emit_op_mem(e, wide, 0x8b, H_T0, m);
	} else {
		h = host_reg_of(o->reg);
		if (h == H_NONE)
			emit_load(e, H_T0, hm_gs(OFF_GPR(o->reg)));
		else
			emit_op_reg(e, true, 0x89, h, H_T0);
	}
	div_check(b, bi, sign, wide);
	emit_op_reg(e, wide, 0xf7, sign ? 7 : 6, H_T0);
	flags_after(b, bi);
	return INSN_NEXT;
}

/* --- system flags --- */

void emit_rflags_whole(struct emitter *e)
{
	emit_store(e, H_RAX, hm_gs(OFF_HOT(save_value)));
	emit_store(e, H_RCX, hm_gs(OFF_HOT(save_rcx)));
	emit_op_mem(e, false, 0x8b, H_T0, hm_gs(offsetof(struct vcpu, s.rflags)));
	e3(e, 0x41, 0x81, 0xe6), e_u32(e, ~(FLAGS_ARITH | FLAG_RF | FLAG_VM));	/* and t0d, .. */
	emit_op_mem(e, false, 0x8b, H_RAX, hm_gs(OFF_HOT(save_flags)));
	emit_op_reg(e, false, 0x89, H_RAX, H_RCX);		/* mov ecx, eax */
	e3(e, 0x0f, 0xb6, 0xcd);				/* movzx ecx, ch: SF..CF of LAHF */
	e2(e, 0x81, 0xe1), e_u32(e, FLAGS_ARITH & 0xff);	/* and ecx */
	e3(e, 0x0f, 0xb6, 0xc0);				/* movzx eax, al: OF */
	e3(e, 0xc1, 0xe0, 11);					/* shl eax, 11 */
	emit_op_reg(e, false, 0x09, H_RAX, H_RCX);		/* or ecx, eax */
	emit_op_reg(e, false, 0x09, H_RCX, H_T0);		/* or t0d, ecx */
	emit_load(e, H_RAX, hm_gs(OFF_HOT(save_value)));
	emit_load(e, H_RCX, hm_gs(OFF_HOT(save_rcx)));
}

/* PUSHFQ. The stack is checked first. */
static enum insn_result pushf_translate(struct block_build *b, struct block_insn *bi)
{
	struct emitter *e = &b->e;
	struct host_mem m;

	if (bi->in.opsize != b->word)
		return INSN_STEP;
	m = stack_translate(b, bi, -(int32_t)b->word, b->word, true);
	if (!b->wide) {
		emit_op_reg(e, true, 0x89, H_T0, H_T1);
		m = hm_base(H_T1, 0);
	}
	if (!(b->flags_at & FLAGS_PARKED))	/* both temporaries may be part of the address */
		emit_flags_save(e);
	b->flags_at = FLAGS_PARKED;
	emit_rflags_whole(e);
	emit_op_mem(e, b->wide, 0x89, H_T0, m);
	emit_op_mem(e, b->wide, 0x8d, H_R13, hm_base(H_R13, -(int32_t)b->word));
	return INSN_NEXT;
}

/* CLI, CLD: clears one bit of s.rflags. */
static enum insn_result flag_clear(struct block_build *b, struct block_insn *bi, uint32_t flag)
{
	flags_park(b, bi, H_T1);
	emit_op_mem(&b->e, false, 0x81, 4, hm_gs(offsetof(struct vcpu, s.rflags)));
	e_u32(&b->e, ~flag);
	return INSN_NEXT;
}

/* STI with nothing known to be pending is only a bit. The next instruction is in the same block, so that no request
 * is looked at between the two: `sti; hlt` stays atomic. */
static enum insn_result sti_translate(struct block_build *b, struct block_insn *bi)
{
	struct emitter *e = &b->e;
	struct stub *s;

	if (b->tlb_mode == TLB_USER || bi == &b->insns[b->count - 1])
		return INSN_STEP;
	flags_park(b, bi, H_T1);
	emit_cmp_imm8(e, true, hm_gs(OFF_HOT(irq_hint)), 0);
	s = block_stub(b, STUB_STEP, emit_jcc(e, CC_NE), bi->offset);
	s->flags_saved = bi->live_in & FLAGS_ARITH;
	emit_op_mem(e, false, 0x81, 1, hm_gs(offsetof(struct vcpu, s.rflags)));	/* or */
	e_u32(e, FLAG_IF);
	return INSN_NEXT;
}

/* --- bit strings --- */

/* BT and kin with a register offset and a bit base in memory: the word is at base + (offset >> 6) * 8. */
static enum insn_result bit_translate(struct block_build *b, struct block_insn *bi)
{
	const struct insn *in = &bi->in;
	bool wide = in->opsize == 8;
	struct host_mem m;

	if (!mem_translatable(b, in) || in->opsize == 2)
		return INSN_STEP;
	flags_only_host(b);
	m = mem_translate_bit(b, bi, in->ops[1].reg, in->opsize, in->op != X86_BT);
	if (in->lock)
		e1(&b->e, 0xf0);
	e1(&b->e, 0x40 | emit_rex(H_T1, &m, wide));
	e2(&b->e, 0x0f, in->opcode);
	emit_modrm_mem(&b->e, H_T1, &m);
	return INSN_NEXT;
}

/* --- which instructions --- */

static void fpu_check(struct block_build *b, struct block_insn *bi)
{
	struct emitter *e = &b->e;
	bool live = bi->live_in & FLAGS_ARITH;
	uint8_t *retry = e->p;
	struct stub *s;

	if (b->fpu_checked)
		return;
	b->fpu_checked = true;
	b->addend_group = 0;	/* whoever comes back from there has lost T1 */
	flags_park(b, bi, H_T1);
	emit_cmp_imm8(e, true, hm_gs(OFF_HOT(fpu_live)), 0);
	s = block_stub(b, STUB_FPU, emit_jcc(e, CC_E), bi->offset);
	s->retry = retry;
	s->flags_saved = live;
}

static bool fp_allowed(const struct block_build *b, const struct insn *in)
{
	unsigned fp = TMODE_FP(b->mode);

	switch (in->row->cls) {
	case CLASS_GPR: case CLASS_VEX_GPR: return true;
	case CLASS_X87: case CLASS_MMX: case CLASS_SSE: return fp >= FP_SSE;
	case CLASS_AVX: return fp >= FP_AVX;
	case CLASS_AVX512: return fp >= FP_AVX512;
	default: return false;
	}
}

/* MOV between the accumulator and an absolute address: 32-bit code has much of it. */
static enum insn_result moffs_translate(struct block_build *b, struct block_insn *bi)
{
	struct emitter *e = &b->e;
	const struct insn *in = &bi->in;
	bool write = in->ops[0].kind == OPK_MOFFS;
	unsigned size = in->ops[0].size, spare;
	struct host_mem m;

	if (b->wide || !mem_translatable(b, in))
		return INSN_STEP;
	m = mem_translate(b, bi, size, write, &spare);
	if (size == 2)
		e1(e, 0x66);
	emit_op_mem(e, false, (write ? 0x88 : 0x8a) | (size > 1), H_RAX, m);
	return INSN_NEXT;
}

/* VEX fields that 32-bit code ignores and the host would not; vector indices. */
static bool vex_refused(const struct block_build *b, const struct insn *in)
{
	if (in->row->attr & ROW_VSIB)
		return true;
	return !b->wide && in->vex && (in->evex || (in->rex & 0xf) || in->vvvv > 7 || in->nops > 3);
}

/* Instructions whose memory access is not what the operand says, or that must not run on the host as they are. */
static bool copy_refused(const struct insn *in)
{
	switch (in->op) {
	case X86_MASKMOVQ: case X86_MASKMOVDQU: case X86_XLAT: case X86_CLFLUSH:
	case X86_CLFLUSHOPT: case X86_CLWB: case X86_SALC:
	case X86_VMASKMOVPS: case X86_VMASKMOVPD: case X86_VPMASKMOVD: case X86_VPMASKMOVQ:
	case X86_CLD: case X86_STD: case X86_DAA: case X86_DAS: case X86_AAA: case X86_AAS: case X86_AAD:
		return true;
	default:
		return false;
	}
}

static bool operand_memory(const struct insn *in, unsigned *size, bool *write)
{
	*write = false;
	*size = 0;
	for (unsigned i = 0; i < in->nops; i++) {
		if (in->ops[i].kind == OPK_MOFFS)
			return false;
		if (in->ops[i].kind == OPK_MEM) {
			*size = in->ops[i].size;
			*write = in->ops[i].write || in->lock;
			if (!*size || *size > 64)
				return false;
		}
	}
	return true;
}

/* VZEROUPPER and VZEROALL of 32-bit code: eight registers, each by VMOVAPS or VXORPS of itself. */
static enum insn_result zero_eight(struct block_build *b, bool all)
{
	for (unsigned i = 0; i < 8; i++) {
		e2(&b->e, 0xc5, (uint8_t)(all ? 0x80 | (~i & 15) << 3 : 0xf8));
		e2(&b->e, all ? 0x57 : 0x28, (uint8_t)(0xc0 | i << 3 | i));
	}
	return INSN_NEXT;
}

/* FLDCW of a word that masks all exceptions: another would be the host's signal. The word is read once, as another vCPU
 * may change it meanwhile. */
static enum insn_result fldcw_translate(struct block_build *b, struct block_insn *bi)
{
	struct emitter *e = &b->e;
	struct host_mem m;
	unsigned spare;

	if (!fp_allowed(b, &bi->in) || !mem_translatable(b, &bi->in))
		return INSN_STEP;
	fpu_check(b, bi);
	b->addend_group = 0;
	flags_park(b, bi, H_T1);
	m = mem_translate(b, bi, 2, false, &spare);
	emit_op_mem2(e, 0xb7, spare, m);				/* movzx spare, word */
	emit_store(e, spare, hm_gs(OFF_HOT(save_value)));
	e3(e, 0x41, 0xf7, 0xd0 | (spare & 7));				/* not spare */
	e3(e, 0x41, 0xf7, 0xc0 | (spare & 7)), e_u32(e, 0x3f);		/* test spare, 0x3f */
	block_stub(b, STUB_STEP, emit_jcc(e, CC_NE), bi->offset)->flags_saved = bi->live_in & FLAGS_ARITH;
	emit_op_mem(e, false, 0xd9, 5, hm_gs(OFF_HOT(save_value)));	/* fldcw */
	return INSN_NEXT;
}

static enum insn_result copy_checked(struct block_build *b, struct block_insn *bi)
{
	const struct insn *in = &bi->in;
	unsigned size;
	bool write;

	if (in->op == X86_MOV && (in->ops[0].kind == OPK_MOFFS || in->ops[1].kind == OPK_MOFFS))
		return moffs_translate(b, bi);
	if (copy_refused(in) || vex_refused(b, in) || !fp_allowed(b, in) || !operand_memory(in, &size, &write))
		return INSN_STEP;
	if (in->row->cls == CLASS_X87 || in->row->cls == CLASS_MMX || in->row->cls == CLASS_SSE ||
	    in->row->cls == CLASS_AVX || in->row->cls == CLASS_AVX512)
		fpu_check(b, bi);
	if (!b->wide && (in->op == X86_VZEROUPPER || in->op == X86_VZEROALL))
		return zero_eight(b, in->op == X86_VZEROALL);
	return copy_translate(b, bi, size, write);
}

enum insn_result insn_translate(struct block_build *b, struct block_insn *bi)
{
	const struct insn *in = &bi->in;

	/* The host may have what the guest's CPU lacks: the interpreter knows what becomes of it then. */
	if (!cpu_model_has(b->v->en->model, in->row->feature))
		return INSN_STEP;
	switch (in->op) {
	case X86_NOP: case X86_PREFETCH:
		b->t1_kept = true;
		return INSN_NEXT;
	case X86_FLDCW:
		return fldcw_translate(b, bi);
	case X86_LEA:
		return lea_translate(b, bi);
	case X86_PUSH:
		return push_translate(b, bi);
	case X86_POP:
		return pop_translate(b, bi);
	case X86_LEAVE:
		return leave_translate(b, bi);
	case X86_DIV: case X86_IDIV:
		return div_translate(b, bi);
	case X86_CLD:
		return flag_clear(b, bi, FLAG_DF);
	case X86_CLI:
		return b->tlb_mode == TLB_USER ? INSN_STEP : flag_clear(b, bi, FLAG_IF);
	case X86_STI:
		return sti_translate(b, bi);
	case X86_BT: case X86_BTS: case X86_BTR: case X86_BTC:
		if (in->ops[0].kind == OPK_MEM && in->ops[1].kind != OPK_IMM)
			return bit_translate(b, bi);
		break;
	case X86_PUSHF:
		return pushf_translate(b, bi);
	case X86_MOVS: case X86_STOS:
		return string_translate(b, bi);
	case X86_XSAVE: case X86_XSAVEOPT: case X86_XSAVEC: case X86_XSAVES: case X86_XRSTOR: case X86_XRSTORS:
		return state_translate(b, bi);
	default:
		break;
	}
	switch (in->row->trans) {
	case TRANS_COPY:
		return copy_checked(b, bi);
	case TRANS_BRANCH: case TRANS_CALL: case TRANS_RET:
		return jump_translate(b, bi);
	case TRANS_SYSTEM:
		flags_only_host(b);
		return system_translate(b, bi);
	default:
		return INSN_STEP;
	}
}
