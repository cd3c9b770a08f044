/*
 * Which memory accesses of a block share one check.
 *
 *   mov rax, [rdi + 8]	|  both at v1 + something: one check of [v1 + 8, v1 + 32)
 *   add rdi, 16	|
 *   mov [rdi + 8], rax	|
 *
 * Registers are followed through the block as "a value + a number": moves copy it, additions of constants change the
 * number, PUSH and POP move RSP, anything else makes a new value. Accesses through the same value, not far apart, form
 * a group. Its check covers all of them at once, for writing if one of them writes, and stands before the first
 * of them: or earlier, where flags are dead and the value is there already. It leaves the addend in hot.group[]; the
 * accesses load it from there, without touching flags. Where a base register is in memory it is a host address instead.
 *
 * If the check fails, nothing has happened yet, and the rest of the block runs from a plain translation
 * (TMODE_PLAIN), where each access is checked, and faults, by itself.
 *
 * Isolation depends on this: a register that is written in any way must not keep its value here. So only instructions
 * that are known to write nothing but their operands are followed; all others make all registers new.
 */
#include "engine/soft/translate_private.h"

#define GROUP_SPAN 512			/* more would cross pages often */
#define DELTA_MAX (1 << 20)

struct plan { struct block_build *b; struct value now[16]; uint32_t next_id; unsigned branch; /* behind the last JCC */ };

static void value_new(struct plan *p, unsigned reg) { p->now[reg] = (struct value){ .id = ++p->next_id }; }

static void value_set(struct plan *p, unsigned reg, struct value v, int64_t plus)
{
	int64_t delta = v.delta + plus;

	if (delta > DELTA_MAX || delta < -DELTA_MAX)
		value_new(p, reg);
	else
		p->now[reg] = (struct value){ v.id, (int32_t)delta };
}

static bool gpr64(const struct operand *o) { return o->kind == OPK_GPR && o->size == 8; }

/* Does it write no register but operands that say so? */
static bool writes_operands_only(const struct insn *in)
{
	switch (in->op) {
	case X86_MOV: case X86_MOVZX: case X86_MOVSX: case X86_MOVSXD: case X86_LEA: case X86_ADD: case X86_SUB:
	case X86_ADC: case X86_SBB: case X86_AND: case X86_OR: case X86_XOR: case X86_CMP: case X86_TEST: case X86_INC:
	case X86_DEC: case X86_NEG: case X86_NOT: case X86_SHL: case X86_SHR: case X86_SAR: case X86_ROL: case X86_ROR:
	case X86_SETCC: case X86_CMOVCC: case X86_NOP: case X86_BT: case X86_JCC: case X86_JMP:
	case X86_BSWAP: case X86_BSF: case X86_BSR: case X86_POPCNT: case X86_TZCNT:
	case X86_LZCNT: case X86_SHLD: case X86_SHRD: case X86_XCHG: case X86_XADD: case X86_MOVBE: case X86_MOVNTI:
	case X86_BTS: case X86_BTR: case X86_BTC: case X86_ADCX: case X86_ADOX: case X86_PREFETCH:
		return true;
	case X86_IMUL:		/* one operand: RDX:RAX */
		return in->nops > 1;
	case X86_PCMPESTRI: case X86_PCMPISTRI: case X86_PCMPESTRM: case X86_PCMPISTRM:	/* ECX */
		return false;
	default:
		return in->row->cls == CLASS_SSE || in->row->cls == CLASS_AVX || in->row->cls == CLASS_AVX512 ||
		       in->row->cls == CLASS_VEX_GPR;
	}
}

static bool adds_constant(const struct insn *in, int64_t *n)
{
	if (!gpr64(&in->ops[0]) || in->lock)
		return false;
	switch (in->op) {
	case X86_ADD: *n = (int64_t)in->imm; return in->ops[1].kind == OPK_IMM;
	case X86_SUB: *n = -(int64_t)in->imm; return in->ops[1].kind == OPK_IMM;
	case X86_INC: *n = 1; return true;
	case X86_DEC: *n = -1; return true;
	default: return false;
	}
}

/* LEA of register + number, MOV of a register: the source's value. */
static bool copies_value(const struct plan *p, const struct insn *in, struct value *v, int64_t *n)
{
	if (!gpr64(&in->ops[0]))
		return false;
	if (in->op == X86_MOV && gpr64(&in->ops[1])) {
		*v = p->now[in->ops[1].reg];
		*n = 0;
		return true;
	}
	if (in->op != X86_LEA || in->addrsize != 8 || in->mem.rip || in->mem.base == INSN_REG_NONE ||
	    in->mem.index != INSN_REG_NONE)
		return false;
	*v = p->now[in->mem.base];
	*n = in->mem.disp;
	return true;
}

static void step_stack(struct plan *p, const struct insn *in)
{
	struct value sp = p->now[REG_RSP];

	switch (in->op) {
	case X86_PUSH:
		value_set(p, REG_RSP, sp, -8);
		break;
	case X86_POP:
		value_set(p, REG_RSP, sp, 8);
		value_new(p, in->ops[0].reg);
		break;
	default:	/* LEAVE */
		value_set(p, REG_RSP, p->now[REG_RBP], 8);
		value_new(p, REG_RBP);
		break;
	}
}

static void forget_all(struct plan *p)
{
	for (unsigned r = 0; r < 16; r++)
		value_new(p, r);
}

static void step(struct plan *p, const struct insn *in)
{
	struct value v;
	int64_t n;

	if (in->opsize == 8 && ((in->op == X86_PUSH) || (in->op == X86_POP && in->ops[0].kind == OPK_GPR) || in->op == X86_LEAVE)) {
		step_stack(p, in);
	} else if (!writes_operands_only(in)) {
		forget_all(p);
	} else if (adds_constant(in, &n)) {
		value_set(p, in->ops[0].reg, p->now[in->ops[0].reg], n);
	} else if (copies_value(p, in, &v, &n)) {
		value_set(p, in->ops[0].reg, v, n);
	} else {
		for (unsigned i = 0; i < in->nops; i++)
			if (in->ops[i].kind == OPK_GPR && in->ops[i].write)
				value_new(p, in->ops[i].reg);
	}
}

/* --- accesses --- */

/* May an access of that alignment be one of the group's? All that are aligned must be so if one address is; and one behind a
 * branch, which may be there to keep us from it, would make the check fail for nothing. */
static bool align_fits(const struct plan *p, const struct group *g, int32_t lo, unsigned align)
{
	unsigned both = align < g->align ? align : g->align;

	if (align > 1 && g->first < p->branch)
		return false;
	return !((unsigned)(lo - g->aligned_at) & (both - 1));
}

static struct group *group_find(const struct plan *p, uint32_t id, int32_t lo, int32_t hi, unsigned align)
{
	for (unsigned i = 0; i < p->b->group_count; i++) {
		struct group *g = &p->b->groups[i];
		int32_t l = lo < g->lo ? lo : g->lo, h = hi > g->hi ? hi : g->hi;
		if (g->id != id || h - l > GROUP_SPAN || !align_fits(p, g, lo, align))
			continue;
		g->lo = l;
		g->hi = h;
		if (align > g->align) {
			g->align = (uint8_t)align;
			g->aligned_at = lo;
		}
		return g;
	}
	return NULL;
}

/* Returns 1 + the group's index, 0: none. */
static uint8_t access_add(struct plan *p, unsigned i, unsigned base, int64_t disp, unsigned size, unsigned align, bool write)
{
	struct block_build *b = p->b;
	int64_t lo = p->now[base].delta + disp;
	struct group *g;

	if (lo < -DELTA_MAX || lo > DELTA_MAX)
		return 0;
	g = group_find(p, p->now[base].id, (int32_t)lo, (int32_t)lo + (int32_t)size, align);
	if (!g && b->group_count == GROUP_MAX)
		return 0;
	if (!g) {
		g = &b->groups[b->group_count++];
		*g = (struct group){ .id = p->now[base].id, .lo = (int32_t)lo, .hi = (int32_t)(lo + size),
				     .base = (uint8_t)base, .first = (uint8_t)i, .align = (uint8_t)align,
				     .aligned_at = (int32_t)lo };
	}
	g->write |= write;
	g->absolute |= host_reg_of(base) == H_NONE;
	g->count++;
	return (uint8_t)(g - b->groups + 1);
}

static uint8_t access_operand(struct plan *p, unsigned i)
{
	const struct insn *in = &p->b->insns[i].in;
	const struct operand *o = NULL;

	if (in->row->trans != TRANS_COPY && in->op != X86_PUSH && in->op != X86_JMP && in->op != X86_CALL)
		return 0;
	if (in->addrsize != 8 || in->mem.rip || in->mem.base == INSN_REG_NONE || in->mem.index != INSN_REG_NONE ||
	    in->mem.seg == SEG_FS || in->mem.seg == SEG_GS)
		return 0;
	for (unsigned k = 0; k < in->nops; k++)
		if (in->ops[k].kind == OPK_MEM)
			o = &in->ops[k];
	if (!o || !o->size || o->size > 64 || (in->row->attr & ROW_VSIB))
		return 0;
	return access_add(p, i, in->mem.base, in->mem.disp, o->size, mem_align(in, o->size), o->write || in->lock);
}

static void accesses(struct plan *p, unsigned i)
{
	struct block_insn *bi = &p->b->insns[i];
	const struct insn *in = &bi->in;

	if (in->op != X86_LEA && in->op != X86_NOP)
		bi->group_mem = access_operand(p, i);
	if (in->opsize != 8)
		return;
	switch (in->op) {
	case X86_PUSH: case X86_CALL: case X86_PUSHF:
		bi->group_stack = access_add(p, i, REG_RSP, -8, 8, 1, true);
		break;
	case X86_POP: case X86_RET:
		bi->group_stack = access_add(p, i, REG_RSP, 0, 8, 1, false);
		break;
	case X86_LEAVE:
		bi->group_mem = access_add(p, i, REG_RBP, 0, 8, 1, false);
		break;
	default:
		break;
	}
}

/* --- where the checks stand --- */

/* The last place before the first access where flags are dead and the value is in the register. */
static bool head_find(const struct block_build *b, struct group *g)
{
	for (unsigned i = g->first + 1u; i-- > 0 && b->values[i][g->base].id == g->id; ) {
		if (i < g->first && b->insns[i].in.op == X86_JCC)	/* it may be there to keep us from the access */
			break;
		if (!(b->insns[i].live_in & FLAGS_ARITH)) {
			g->head = (uint8_t)i;
			return true;
		}
	}
	g->head = g->first;
	return false;
}

/* One access alone gains only where its check would have to save flags. */
static bool worth_it(const struct block_build *b, struct group *g)
{
	bool dead = head_find(b, g);

	g->lo -= (g->lo - g->aligned_at) & (g->align - 1);	/* stays in its page if that is aligned */
	return g->count > 1 || (dead && g->head != g->first);
}

void groups_plan(struct block_build *b)
{
	struct plan p = { .b = b };
	bool keep[GROUP_MAX] = { false };

	b->group_count = 0;
	for (unsigned i = 0; i < b->count; i++)
		b->insns[i].group_mem = b->insns[i].group_stack = 0;
	if (b->plain || !b->wide)
		return;
	forget_all(&p);
	for (unsigned i = 0; i < b->count; i++) {
		memcpy(b->values[i], p.now, sizeof p.now);
		accesses(&p, i);
		step(&p, &b->insns[i].in);
		if (b->insns[i].in.op == X86_JCC)
			p.branch = i + 1;
	}
	for (unsigned i = 0; i < b->group_count; i++)
		keep[i] = worth_it(b, &b->groups[i]);
	for (unsigned i = 0; i < b->count; i++) {
		struct block_insn *bi = &b->insns[i];
		if (bi->group_mem && !keep[bi->group_mem - 1])
			bi->group_mem = 0;
		if (bi->group_stack && !keep[bi->group_stack - 1])
			bi->group_stack = 0;
	}
	for (unsigned i = 0; i < b->group_count; i++)
		if (!keep[i])
			b->groups[i].count = 0;
}

bool groups_check_at(const struct block_build *b, unsigned i)
{
	for (unsigned k = 0; k < b->group_count; k++)
		if (b->groups[k].count && b->groups[k].head == i)
			return true;
	return false;
}

void groups_check(struct block_build *b, unsigned i)
{
	for (unsigned k = 0; k < b->group_count; k++) {
		const struct group *g = &b->groups[k];
		if (g->count && g->head == i)
			mem_check_group(b, &b->insns[i], k, g->lo - b->values[i][g->base].delta, (unsigned)(g->hi - g->lo));
	}
}
