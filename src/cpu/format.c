/* The disassembler: everything comes from the decoded instruction and its row. */
#include "cpu/format.h"

#include <ctype.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "cpu/optable.h"

struct text {
	char *p, *end;
	const struct insn *in;
	uint64_t next;			/* address of the next instruction */
	bool att;
};

static void put(struct text *t, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
static void put(struct text *t, const char *fmt, ...)
{
	va_list args;
	int n;

	va_start(args, fmt);
	n = vsnprintf(t->p, t->end - t->p, fmt, args);
	va_end(args);
	if (n > 0)
		t->p = n < t->end - t->p ? t->p + n : t->end - 1;
}

static const char *const gpr16[8] = { "ax", "cx", "dx", "bx", "sp", "bp", "si", "di" };
static const char *const segments[SEG_COUNT] = { "es", "cs", "ss", "ds", "fs", "gs" };

static void put_gpr(struct text *t, unsigned reg, unsigned size, bool high)
{
	static const char *const gpr8[8] = { "al", "cl", "dl", "bl", "spl", "bpl", "sil", "dil" };
	const char *percent = t->att ? "%" : "";

	if (high)
		put(t, "%s%ch", percent, gpr8[reg & 3][0]);
	else if (reg >= 8)
		put(t, "%sr%u%s", percent, reg, size == 1 ? "b" : size == 2 ? "w" : size == 4 ? "d" : "");
	else if (size == 1)
		put(t, "%s%s", percent, gpr8[reg]);
	else
		put(t, "%s%s%s", percent, size == 4 ? "e" : size == 2 ? "" : "r", gpr16[reg]);
}

/* --- mnemonics --- */

static const char *sized(unsigned size, const char *w, const char *d, const char *q)
{
	return size == 2 ? w : size == 4 ? d : q;
}

/* Names that depend on the operand or address size; NULL: none. */
static const char *special_name(const struct insn *in)
{
	switch (in->op) {
	case X86_CBW: return sized(in->opsize, "cbw", "cwde", "cdqe");
	case X86_CWD: return sized(in->opsize, "cwd", "cdq", "cqo");
	case X86_IRET: return sized(in->opsize, "iret", "iretd", "iretq");
	case X86_JCXZ: return sized(in->addrsize, "jcxz", "jecxz", "jrcxz");
	case X86_CALLF: return "call far";
	case X86_JMPF: return "jmp far";
	case X86_MOV_SEG: case X86_MOV_CR: case X86_MOV_DR: return "mov";
	case X86_PUSH_SEG: return "push";
	case X86_POP_SEG: return "pop";
	case X86_MOVSD_SSE: return in->vex ? "vmovsd" : "movsd";
	case X86_CMPSD_SSE: return in->vex ? "vcmpsd" : "cmpsd";
	default: return NULL;
	}
}

static unsigned string_size(const struct insn *in)
{
	return in->row->trans == TRANS_STRING ? in->ops[0].size : 0;
}

static bool conditional(unsigned op)
{
	return op == X86_JCC || op == X86_SETCC || op == X86_CMOVCC;
}

static void put_prefixes(struct text *t)
{
	const struct insn *in = t->in;
	bool compares = in->op == X86_CMPS || in->op == X86_SCAS;

	if (in->lock)
		put(t, "lock ");
	if (!string_size(in))
		return;
	if (in->repne)
		put(t, compares ? "repne " : "rep ");
	else if (in->rep)
		put(t, compares ? "repe " : "rep ");
}

static void put_mnemonic(struct text *t)
{
	static const char *const conditions[16] = { "o", "no", "b", "ae", "e", "ne", "be", "a",
						    "s", "ns", "p", "np", "l", "ge", "le", "g" };
	const struct insn *in = t->in;
	const char *name = special_name(in);

	put_prefixes(t);
	if (name) {
		put(t, "%s", name);
		return;
	}
	name = x86_op_name(in->op);
	if (in->vex && name[0] != 'V' && (in->row->cls == CLASS_AVX || in->evex))
		put(t, "v");
	for (unsigned i = 0; name[i] && !(conditional(in->op) && !strcmp(name + i, "CC")); i++)
		put(t, "%c", tolower(name[i]));
	if (conditional(in->op))
		put(t, "%s", conditions[in->opcode & 15]);
	if (string_size(in))
		put(t, "%c", " bw d   q"[string_size(in)]);
}

/* --- operands --- */

static const char *size_name(unsigned size)
{
	switch (size) {
	case 1: return "byte ptr ";
	case 2: return "word ptr ";
	case 4: return "dword ptr ";
	case 6: return "fword ptr ";
	case 8: return "qword ptr ";
	case 10: return "tbyte ptr ";
	case 16: return "xmmword ptr ";
	case 32: return "ymmword ptr ";
	case 64: return "zmmword ptr ";
	default: return "";
	}
}

static void put_index(struct text *t)
{
	const struct insn *in = t->in;
	unsigned where = 0;

	for (unsigned i = 0; i < in->nops; i++)
		if (x86_operand_specs[in->row->operand[i]].where == AT_VSIB)
			where = AT_VSIB;
	if (where == AT_VSIB)
		put(t, "%s%cmm%u", t->att ? "%" : "", "xyzz"[in->vex_l], in->mem.index);
	else
		put_gpr(t, in->mem.index, in->addrsize, false);
}

static uint64_t absolute(const struct text *t)
{
	uint64_t a = t->in->mem.disp + (t->in->mem.rip ? t->next : 0);

	return t->in->addrsize == 8 ? a : a & ((1ull << 8 * t->in->addrsize) - 1);
}

static void put_disp(struct text *t, bool signed_form)
{
	int64_t d = t->in->mem.disp;

	if (signed_form && !t->att)
		put(t, "%c0x%" PRIx64, d < 0 ? '-' : '+', d < 0 ? -(uint64_t)d : (uint64_t)d);
	else
		put(t, "%s0x%" PRIx64, d < 0 ? "-" : "", d < 0 ? -(uint64_t)d : (uint64_t)d);
}

/* {1to8}: how often a broadcast element stands for. */
static void put_broadcast(struct text *t, const struct operand *o)
{
	const struct x86_opcode *row = t->in->row;
	unsigned wide = row_mask_element(row);

	for (unsigned i = 0; i < t->in->nops && wide > o->size; i++)	/* conversions to narrower ones of wide sources */
		if (x86_operand_specs[row->operand[i]].where == AT_W && x86_operand_specs[row->operand[i]].size == SIZE_x)
			wide = o->size;
	if (t->in->evex_b && o->kind == OPK_MEM && o->size)
		put(t, "{1to%u}", (16u << t->in->vex_l) / (wide > o->size ? wide : o->size));
}

static void put_memory(struct text *t, const struct operand *o)
{
	const struct insn *in = t->in;
	bool base = in->mem.base != INSN_REG_NONE, index = in->mem.index != INSN_REG_NONE;

	if (!t->att)
		put(t, "%s", size_name(o->size));
	if (in->seg_override != SEG_NONE && in->mem.seg == in->seg_override)
		put(t, "%s%s:", t->att ? "%" : "", segments[in->mem.seg]);
	if (!base && !index) {
		put(t, t->att ? "0x%" PRIx64 : "[0x%" PRIx64 "]", absolute(t));
		return;
	}
	if (t->att && in->mem.disp)
		put_disp(t, false);
	put(t, t->att ? "(" : "[");
	if (base)
		put_gpr(t, in->mem.base, in->addrsize, false);
	if (index) {
		put(t, t->att ? "," : base ? "+" : "");
		put_index(t);
		put(t, t->att ? ",%u" : "*%u", 1u << in->mem.scale);
	}
	if (!t->att && in->mem.disp)
		put_disp(t, true);
	put(t, t->att ? ")" : "]");
}

/* A string's second memory operand: ES:rDI. */
static void put_destination(struct text *t, const struct operand *o)
{
	put(t, t->att ? "%%es:(" : "%ses:[", t->att ? "" : size_name(o->size));
	put_gpr(t, REG_RDI, t->in->addrsize, false);
	put(t, t->att ? ")" : "]");
}

static void put_immediate(struct text *t, const struct operand *o, unsigned i)
{
	uint64_t value = i > 0 && t->in->op == X86_ENTER ? t->in->imm2 : t->in->imm;

	if (o->size < 8)
		value &= (1ull << 8 * o->size) - 1;
	put(t, "%s0x%" PRIx64, t->att ? "$" : "", value);
}

static void put_target(struct text *t)
{
	uint64_t target = t->next + t->in->imm;

	if (t->in->opsize < 8)
		target &= (1ull << 8 * t->in->opsize) - 1;
	put(t, "0x%" PRIx64, target);
}

/* {k1}{z} behind the destination. */
static void put_masking(struct text *t)
{
	if (t->in->evex_mask)
		put(t, t->att ? "{%%k%u}" : "{k%u}", t->in->evex_mask);
	if (t->in->evex_z)
		put(t, "{z}");
}

/* EVEX.b beside registers. */
static void put_rounding(struct text *t)
{
	static const char *const modes[] = { "rn", "rd", "ru", "rz" };

	if (t->in->row->attr & ROW_ER)
		put(t, "{%s-sae}", modes[t->in->vex_l]);
	else
		put(t, "{sae}");
}

static void put_operand(struct text *t, unsigned i)
{
	const struct operand *o = &t->in->ops[i];
	const char *percent = t->att ? "%" : "";

	switch ((enum operand_kind)o->kind) {
	case OPK_NONE: break;
	case OPK_GPR: put_gpr(t, o->reg, o->size, o->high_byte); break;
	case OPK_MEM: case OPK_MOFFS:
		if (x86_operand_specs[t->in->row->operand[i]].where == AT_Y)
			put_destination(t, o);
		else
			put_memory(t, o);
		break;
	case OPK_IMM: put_immediate(t, o, i); break;
	case OPK_REL: put_target(t); break;
	case OPK_FAR:
		put(t, t->att ? "$0x%x,$0x%" PRIx64 : "0x%x:0x%" PRIx64, t->in->far_selector, t->in->imm);
		break;
	case OPK_SEG: put(t, "%s%s", percent, segments[o->reg]); break;
	case OPK_CR: put(t, "%scr%u", percent, o->reg); break;
	case OPK_DR: put(t, "%sdr%u", percent, o->reg); break;
	case OPK_MMX: put(t, "%smm%u", percent, o->reg); break;
	case OPK_XMM: put(t, "%s%cmm%u", percent, o->size == 64 ? 'z' : o->size == 32 ? 'y' : 'x', o->reg); break;
	case OPK_MASK: put(t, "%sk%u", percent, o->reg); break;
	case OPK_ST: put(t, "%sst(%u)", percent, o->reg); break;
	}
}

/* AT&T tells the size of a lone memory operand by a suffix. */
static void put_att_suffix(struct text *t)
{
	const struct insn *in = t->in;
	unsigned size = 0;

	for (unsigned i = 0; i < in->nops; i++) {
		if (in->ops[i].kind == OPK_MEM)
			size = in->ops[i].size;
		else if (in->ops[i].kind != OPK_IMM)
			return;
	}
	if (size && size <= 8 && in->row->cls == CLASS_GPR && !string_size(in))
		put(t, "%c", " bw l   q"[size]);
}

static void put_nth(struct text *t, unsigned n)
{
	const struct insn *in = t->in;
	unsigned i = t->att ? in->nops - 1u - n : n;
	bool rounds = in->evex_b && in->modrm >= 0xc0;

	put(t, n ? "," : " ");
	if (t->att && in->row->trans == TRANS_BRANCH && in->ops[n].kind != OPK_REL)
		put(t, "*");
	if (rounds && t->att && n == 0) {
		put_rounding(t);
		put(t, ",");
	}
	put_operand(t, i);
	put_broadcast(t, &in->ops[i]);
	if (i == 0)
		put_masking(t);
	if (rounds && !t->att && n == in->nops - 1u) {
		put(t, ",");
		put_rounding(t);
	}
}

void insn_format(char *buf, size_t size, const struct insn *in, uint64_t rip, enum insn_syntax syntax)
{
	struct text t = { .p = buf, .end = buf + size, .in = in, .next = rip + in->len, .att = syntax == SYNTAX_ATT };

	if (size == 0)
		return;
	*buf = 0;
	if (!in->row) {
		put(&t, "(bad)");
		return;
	}
	put_mnemonic(&t);
	if (t.att)
		put_att_suffix(&t);
	for (unsigned i = 0; i < in->nops; i++)
		put_nth(&t, i);
}
