/*
 * moo_run interp|trans FILE...: tests of SingleStepTests/80286, real mode, unpacked.
 *
 * A test gives registers and bytes of memory before and after one instruction and the HLT that follows it; where the
 * instruction jumps or faults, the HLT stands where that leads. A file is chunks of tag, length and content:
 *
 *	"MOO " | "META" | "TEST" { index | "NAME" | "BYTS" | "INIT" { "REGS" "RAM " } | "FINA" { "REGS" "RAM " }
 *		| "EXCP" { number, address of the flags } | ... }
 *
 * Prints for each file: name, a tab, how many were ok, FAIL and n/a; then a line for each of the first failures, and
 * for each reason why tests do not apply.
 */
/* Without the GNU names for registers, which are ours as well. */
#undef _GNU_SOURCE
#define _DEFAULT_SOURCE
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/time.h>

#include "bare.h"
#include "base/endian.h"
#include "cpu/insn.h"
#include "cpu/optable.h"

#define RAM_BYTES (16ull << 20)
#define SHOWN 3
#define BYTES_MAX 1024

enum { AX, BX, CX, DX, CS, SS, DS, ES, SP, BP, SI, DI, IP, FLAGS, REGS };
static const char *const reg_names[] = { "ax", "bx", "cx", "dx", "cs", "ss", "ds", "es", "sp", "bp", "si", "di", "ip",
					 "flags" };

struct byte { uint32_t at; uint8_t value; };
struct side {
	uint16_t reg[REGS];
	unsigned given;			/* bit per register */
	struct byte ram[BYTES_MAX];
	unsigned n;
};
struct test {
	uint32_t index;
	char name[64];
	uint8_t code[16];
	unsigned len;			/* with the HLT */
	bool has_exception;
	unsigned exception;
	uint32_t flags_at;
	struct side before, after;
};

enum verdict { OK, FAIL, NA };
enum { REASONS = 8 };
struct tally {
	unsigned count[3];
	const char *reason[REASONS];
	unsigned reasons[REASONS];
};

static struct bare *volatile running;	/* for the signal's handler */

/* Every 50 ms: a test that hears of it twice does not end. */
static void on_alarm(int sig)
{
	if (running)
		bare_stop(running);
}

static void alarm_start(struct bare *b)
{
	struct itimerval every = { { 0, 50000 }, { 0, 50000 } };
	running = b;
	signal(SIGALRM, on_alarm);
	setitimer(ITIMER_REAL, &every, NULL);
}

/* --- the file --- */

struct chunk { const uint8_t *p; uint32_t len; };

/* Takes the chunk at *c off it. */
static bool chunk_next(struct chunk *c, char tag[5], struct chunk *inner)
{
	if (c->len < 8)
		return false;
	memcpy(tag, c->p, 4);
	tag[4] = 0;
	inner->p = c->p + 8;
	inner->len = load_le32(c->p + 4);
	if (inner->len > c->len - 8)
		return false;
	c->p += 8 + inner->len;
	c->len -= 8 + inner->len;
	return true;
}

static void registers_parse(struct chunk c, struct side *s)
{
	const uint8_t *p = c.p + 2;
	s->given = load_le16(c.p);
	for (unsigned i = 0; i < REGS; i++)
		if (s->given >> i & 1) {
			s->reg[i] = load_le16(p);
			p += 2;
		}
}

static void side_parse(struct chunk c, struct side *s)
{
	char tag[5];
	struct chunk in;
	s->n = 0;
	while (chunk_next(&c, tag, &in)) {
		if (!strcmp(tag, "REGS"))
			registers_parse(in, s);
		if (strcmp(tag, "RAM "))
			continue;
		for (const uint8_t *p = in.p + 4; p + 5 <= in.p + in.len && s->n < BYTES_MAX; p += 5)
			s->ram[s->n++] = (struct byte){ load_le32(p), p[4] };
	}
}

static void test_parse(struct chunk c, struct test *t)
{
	char tag[5];
	struct chunk in;
	memset(t, 0, sizeof *t);
	t->index = load_le32(c.p);
	c.p += 4;
	c.len -= 4;
	while (chunk_next(&c, tag, &in)) {
		if (!strcmp(tag, "NAME"))
			snprintf(t->name, sizeof t->name, "%.*s", (int)in.len - 4, (const char *)in.p + 4);
		else if (!strcmp(tag, "BYTS"))
			memcpy(t->code, in.p + 4, t->len = in.len - 4 < sizeof t->code ? in.len - 4 : sizeof t->code);
		else if (!strcmp(tag, "INIT"))
			side_parse(in, &t->before);
		else if (!strcmp(tag, "FINA"))
			side_parse(in, &t->after);
		else if (!strcmp(tag, "EXCP")) {
			t->has_exception = true;
			t->exception = in.p[0];
			t->flags_at = load_le32(in.p + 1);
		}
	}
	for (unsigned i = 0; i < REGS; i++)
		if (!(t->after.given >> i & 1))
			t->after.reg[i] = t->before.reg[i];
}

/* --- the machine --- */

static const uint8_t gpr_of[] = { [AX] = REG_RAX, [BX] = REG_RBX, [CX] = REG_RCX, [DX] = REG_RDX, [SP] = REG_RSP,
				  [BP] = REG_RBP, [SI] = REG_RSI, [DI] = REG_RDI };
static const uint8_t seg_of[] = { [CS] = SEG_CS, [SS] = SEG_SS, [DS] = SEG_DS, [ES] = SEG_ES };

static bool is_segment(unsigned i) { return i >= CS && i <= ES; }

static void state_in(struct bare *b, const struct x86_state *reset, const struct test *t)
{
	struct x86_state s = *reset;
	s.cr0 = CR0_ET;
	s.rip = t->before.reg[IP];
	s.rflags = FLAG_FIXED | (t->before.reg[FLAGS] & 0xfff);	/* the upper four a 286 has not in real mode */
	for (unsigned i = 0; i < IP; i++)
		if (is_segment(i))
			s.seg[seg_of[i]] = (struct x86_segment){ .base = t->before.reg[i] * 16u, .limit = 0xffff,
				.selector = t->before.reg[i], .attr = 0x93 };
		else
			s.gpr[gpr_of[i]] = t->before.reg[i];
	s.activity = ACTIVITY_RUNNING;
	b->ops->set_state(b->v, &s);
}

static uint16_t register_of(const struct x86_state *s, unsigned i)
{
	return i == IP ? (uint16_t)s->rip : i == FLAGS ? (uint16_t)s->rflags :
	       is_segment(i) ? s->seg[seg_of[i]].selector : (uint16_t)s->gpr[gpr_of[i]];
}

static void ram_put(struct bare *b, uint32_t at, uint8_t value)
{
	map_write(b->map, at & (RAM_BYTES - 1), &value, 1);
}
static uint8_t ram_get(struct bare *b, uint32_t at) { return *bare_ram(b, at & (RAM_BYTES - 1)); }

static uint32_t end_of(const struct test *t)
{
	return t->after.reg[CS] * 16u + (uint16_t)(t->after.reg[IP] - 1);
}

static void memory_in(struct bare *b, const struct test *t)
{
	for (unsigned i = 0; i < t->before.n; i++)
		ram_put(b, t->before.ram[i].at, t->before.ram[i].value);
	if (t->has_exception && t->exception == EXC_GP)	/* #SS of later CPUs, with the same frame */
		for (unsigned i = 0; i < 4; i++)
			ram_put(b, EXC_SS * 4 + i, ram_get(b, EXC_GP * 4 + i));
	ram_put(b, end_of(t), 0xf4);
}

static void memory_clear(struct bare *b, const struct test *t)
{
	for (unsigned i = 0; i < 4; i++)
		ram_put(b, EXC_SS * 4 + i, 0);
	for (unsigned i = 0; i < t->before.n; i++)
		ram_put(b, t->before.ram[i].at, 0);
	for (unsigned i = 0; i < t->after.n; i++)
		ram_put(b, t->after.ram[i].at, 0);
	ram_put(b, end_of(t), 0);
}

/* --- comparison --- */

static const struct byte *byte_at(const struct side *s, uint32_t at)
{
	for (unsigned i = 0; i < s->n; i++)
		if (s->ram[i].at == at)
			return &s->ram[i];
	return NULL;
}

static bool byte_same(struct bare *b, const struct test *t, const struct byte *want, uint16_t flags, char *why)
{
	uint8_t have = ram_get(b, want->at), mask = 0xff;
	if (t->has_exception && want->at == t->flags_at)
		mask = (uint8_t)flags;
	if (t->has_exception && want->at == t->flags_at + 1)
		mask = flags >> 8;
	if (!((have ^ want->value) & mask) || want->at == end_of(t))
		return true;
	sprintf(why, "[%x] %02x instead of %02x", want->at, have, want->value);
	return false;
}

static bool outcome_same(struct bare *b, const struct test *t, uint16_t flags, char *why)
{
	struct x86_state s;
	b->ops->get_state(b->v, &s);
	for (unsigned i = 0; i < REGS; i++) {
		uint16_t have = register_of(&s, i), want = t->after.reg[i], mask = i == FLAGS ? flags : 0xffff;
		if ((have ^ want) & mask) {
			sprintf(why, "%s %04x instead of %04x", reg_names[i], have, want);
			return false;
		}
	}
	for (unsigned i = 0; i < t->after.n; i++)
		if (!byte_same(b, t, &t->after.ram[i], flags, why))
			return false;
	for (unsigned i = 0; i < t->before.n; i++)	/* and no other was written */
		if (!byte_at(&t->after, t->before.ram[i].at) && !byte_same(b, t, &t->before.ram[i], flags, why))
			return false;
	return true;
}

/* The operand goes on at offset 0: a 286 checks the limit for each word, later CPUs for the whole. */
static bool wraps(const struct test *t, const struct insn *in)
{
	static const uint8_t reg[] = { [REG_RBX] = BX, [REG_RBP] = BP, [REG_RSI] = SI, [REG_RDI] = DI };
	uint16_t ea = (uint16_t)in->mem.disp;
	if (!in->has_modrm || in->modrm >= 0xc0)
		return false;
	if (in->mem.base != INSN_REG_NONE)
		ea += t->before.reg[reg[in->mem.base]];
	if (in->mem.index != INSN_REG_NONE)
		ea += t->before.reg[reg[in->mem.index]];
	return ea > 0xfffc;
}

static bool pushes_ss(const struct test *t)
{
	const struct byte *low = byte_at(&t->after, t->flags_at - 2), *high = byte_at(&t->after, t->flags_at - 1);
	return low && high && (low->value | high->value << 8) == t->before.reg[SS];
}

static bool divides(const struct insn *in)
{
	return in->op == X86_DIV || in->op == X86_IDIV || in->op == X86_AAM;
}

/* In some files the 286 has other flags after #DE, and pops SP before the store of POP faults. */
static const char *other_fault(const struct test *t, const struct insn *in)
{
	if (in->row->trans == TRANS_STRING)
		return "pointers and count of a string instruction that faults, which later CPUs leave";
	if (t->exception == EXC_DE && divides(in))
		return "flags of a division that faults, which later CPUs leave";
	if (t->exception == EXC_GP && (in->op == X86_POP || in->op == X86_RETF || in->op == X86_LEAVE))
		return "SP after a stack operation that faults, which later CPUs leave";
	if (t->exception == EXC_UD && in->op == X86_MOV_SEG)
		return "FS and GS, which a 286 has not";
	return NULL;
}

/* Why a later CPU decodes it otherwise, or NULL. */
static const char *other_code(const struct test *t, enum decode_result d, const struct insn *in)
{
	bool lock = memchr(t->code, 0xf0, t->len) != NULL, ud = t->has_exception && t->exception == EXC_UD;
	if (d == DECODE_UD && lock && !ud)
		return "LOCK where later CPUs do not allow it";
	if (d == DECODE_UD && lock && t->exception == EXC_UD && t->len > 3 && t->code[t->len - 3] == 0xcd)
		return "LOCK where later CPUs do not allow it";
	if (t->has_exception && (d == DECODE_OK ? in->len > 10 : t->exception == EXC_GP))
		return "more than 10 bytes, which later CPUs allow (or find other faults in)";
	return NULL;
}

static enum verdict test_run(struct bare *b, const struct x86_state *reset, const struct test *t, char *why)
{
	struct insn in;
	enum decode_result d = insn_decode(&in, t->code, t->len, INSN_16);
	uint16_t flags = (uint16_t)(0xfff & ~(d == DECODE_OK ? in.row->flags_undefined : 0));
	const char *other = other_code(t, d, &in);
	enum exit_reason exit;
	bool ok;
	if (other) {
		strcpy(why, other);
		return NA;
	}
	memory_in(b, t);
	state_in(b, reset, t);
	for (unsigned kicks = 0; (exit = bare_run(b)) == EXIT_KICKED && kicks < 2; kicks++)
		;
	ok = exit == EXIT_HALT && outcome_same(b, t, flags, why);
	if (exit != EXIT_HALT)
		strcpy(why, exit == EXIT_KICKED ? "does not end" : "the CPU shut down");
	memory_clear(b, t);
	if (!ok && d == DECODE_OK && t->has_exception)
		other = other_fault(t, &in);
	if (!ok && !other && t->has_exception && t->before.reg[CS] != t->before.reg[SS] && pushes_ss(t))
		other = "SS where an exception saves CS: a mistake of the recording";
	if (!ok && !other && !t->has_exception && d == DECODE_OK && in.op == X86_IDIV)
		other = "a quotient that a 286 takes for -128, later CPUs for an overflow";
	if (!ok && !other && d == DECODE_OK && wraps(t, &in))
		other = "an operand of two words that wraps, which later CPUs refuse";
	if (other)
		strcpy(why, other);
	return ok ? OK : other ? NA : FAIL;
}

static void count_reason(struct tally *n, const char *why)
{
	unsigned i = 0;
	while (i < REASONS - 1 && n->reason[i] && strcmp(n->reason[i], why))
		i++;
	if (!n->reason[i])
		n->reason[i] = strdup(why);
	n->reasons[i]++;
}

static void show(const char *file, const struct test *t, const char *why)
{
	printf("\tFAIL\t%s %u\t%s\t", file, t->index, t->name);
	for (unsigned i = 0; i < t->len; i++)
		printf("%02x", t->code[i]);
	printf("\t%s%s\n", why, t->has_exception ? " (an exception)" : "");
}

static bool file_run(struct bare *b, const struct x86_state *reset, const char *path)
{
	static struct test t;
	struct tally n = { 0 };
	struct chunk all, in;
	char tag[5], why[128];
	FILE *f = fopen(path, "rb");
	uint8_t *p = f ? malloc(64 << 20) : NULL;
	if (!f)
		return false;
	all = (struct chunk){ p, (uint32_t)fread(p, 1, 64 << 20, f) };
	fclose(f);
	while (chunk_next(&all, tag, &in)) {
		if (strcmp(tag, "TEST"))
			continue;
		test_parse(in, &t);
		enum verdict v = test_run(b, reset, &t, why);
		if (v == FAIL && n.count[FAIL] < SHOWN)
			show(path, &t, why);
		if (v == NA)
			count_reason(&n, why);
		n.count[v]++;
	}
	printf("%s\t%u\t%u\t%u\n", path, n.count[OK], n.count[FAIL], n.count[NA]);
	for (unsigned i = 0; i < REASONS && n.reason[i]; i++)
		printf("\tn/a\t%s\t%u\t%s\n", path, n.reasons[i], n.reason[i]);
	fflush(stdout);
	free(p);
	return !n.count[FAIL];
}

int main(int argc, char **argv)
{
	struct bare b;
	struct error e;
	struct x86_state reset;
	bool ok = true;
	if (argc < 3 || (strcmp(argv[1], "interp") && strcmp(argv[1], "trans"))) {
		fprintf(stderr, "usage: moo_run interp|trans FILE...\n");
		return 2;
	}
	if (!bare_init(&b, argv[1], RAM_BYTES, &e)) {
		error_print(&e);
		return 2;
	}
	b.ops->get_state(b.v, &reset);
	alarm_start(&b);
	for (int i = 2; i < argc; i++)
		ok &= file_run(&b, &reset, argv[i]);
	running = NULL;
	bare_fini(&b);
	return !ok;
}
