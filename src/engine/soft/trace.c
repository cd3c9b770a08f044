/*
 * The instruction trace: one line for each instruction, with the registers that it changed, and one for each exception
 * and interrupt. Only the interpreter traces; with a trace wanted it runs everything.
 *
 *   CPU MODE LINEAR-ADDRESS  INSTRUCTION            REGISTER=VALUE...
 *
 * A line is held back until the next one, when it is known what the instruction changed: it may have faulted.
 */
#include "engine/soft/trace.h"

#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cpu/format.h"
#include "engine/soft/interp.h"

#define TEXT_MAX 640

/* In struct interp, made with the first line. */
struct trace {
	bool held;
	unsigned len;
	char text[TEXT_MAX];
	uint64_t gpr[REG_COUNT], rflags, cr0, cr2, cr3, cr4;
	struct x86_segment seg[SEG_COUNT];
};

static void put(struct trace *t, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
static void put(struct trace *t, const char *fmt, ...)
{
	va_list ap;
	int n;

	va_start(ap, fmt);
	n = vsnprintf(t->text + t->len, TEXT_MAX - t->len, fmt, ap);
	va_end(ap);
	if (n > 0)
		t->len += (unsigned)n < TEXT_MAX - t->len ? (unsigned)n : TEXT_MAX - t->len - 1;
}

static void emit(struct vcpu *v, struct trace *t)
{
	if (t->len > TEXT_MAX - 2)
		t->len = TEXT_MAX - 2;
	put(t, "\n");
	v->en->trace(v->en->trace_opaque, t->text, t->len);
	t->len = 0;
}

static void put_changed(struct trace *t, const char *name, uint64_t *before, uint64_t now)
{
	if (*before != now)
		put(t, " %s=%" PRIx64, name, now);
	*before = now;
}

static void put_changes(struct vcpu *v, struct trace *t)
{
	static const char *const gpr[REG_COUNT] = { "rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi", "r8", "r9",
						    "r10", "r11", "r12", "r13", "r14", "r15" };
	static const char *const seg[SEG_COUNT] = { "es", "cs", "ss", "ds", "fs", "gs" };
	const struct x86_state *s = &v->s;

	for (unsigned i = 0; i < REG_COUNT; i++)
		put_changed(t, gpr[i], &t->gpr[i], s->gpr[i]);
	put_changed(t, "flags", &t->rflags, s->rflags);
	put_changed(t, "cr0", &t->cr0, s->cr0);
	put_changed(t, "cr2", &t->cr2, s->cr2);
	put_changed(t, "cr3", &t->cr3, s->cr3);
	put_changed(t, "cr4", &t->cr4, s->cr4);
	for (unsigned i = 0; i < SEG_COUNT; i++) {
		if (t->seg[i].selector != s->seg[i].selector || t->seg[i].base != s->seg[i].base)
			put(t, " %s=%x:%" PRIx64, seg[i], s->seg[i].selector, s->seg[i].base);
		t->seg[i] = s->seg[i];
	}
}

static struct trace *trace_of(struct vcpu *v)
{
	struct interp *ip = interp_of(v);

	if (ip->trace)
		return ip->trace;
	ip->trace = calloc(1, sizeof *ip->trace);
	if (ip->trace) {
		put(ip->trace, "%u -- starts:", v->w.index);
		put_changes(v, ip->trace);
		emit(v, ip->trace);
	}
	return ip->trace;
}

/* The line that was held back goes out. */
static void settle(struct vcpu *v, struct trace *t)
{
	if (!t->held)
		return;
	put_changes(v, t);
	while (t->text[t->len - 1] == ' ')
		t->len--;
	emit(v, t);
	t->held = false;
}

void trace_insn(struct vcpu *v, const struct insn *in)
{
	static const uint8_t bits[] = { [INSN_16] = 16, [INSN_32] = 32, [INSN_64] = 64 };
	struct trace *t = trace_of(v);
	char text[96];
	uint64_t va = v->s.rip;

	if (!t)
		return;
	settle(v, t);
	if (v->insn_mode != INSN_64)
		va = (uint32_t)(v->s.seg[SEG_CS].base + va);
	insn_format(text, sizeof text, in, v->s.rip, SYNTAX_INTEL);
	put(t, "%u %c%u %016" PRIx64 "  %-40s", v->w.index, state_cpl(&v->s) == 3 ? 'u' : 'k', bits[v->insn_mode], va, text);
	t->held = true;
}

void trace_exception(struct vcpu *v, uint8_t vector, bool has_error, uint32_t error)
{
	struct trace *t = trace_of(v);

	if (!t)
		return;
	settle(v, t);
	put(t, "%u -- exception %u at %" PRIx64, v->w.index, vector, v->s.rip);
	if (has_error)
		put(t, ", error %x", error);
	if (vector == EXC_PF)
		put(t, ", address %" PRIx64, v->s.cr2);
	emit(v, t);
}

void trace_interrupt(struct vcpu *v, uint8_t vector)
{
	struct trace *t = trace_of(v);

	if (!t)
		return;
	settle(v, t);
	put(t, "%u -- %s %u at %" PRIx64, v->w.index, vector == EXC_NMI ? "NMI" : "interrupt", vector, v->s.rip);
	emit(v, t);
}

void trace_end(struct vcpu *v)
{
	struct interp *ip = interp_of(v);

	if (ip->trace && v->en->trace)
		settle(v, ip->trace);
	free(ip->trace);
	ip->trace = NULL;
}
