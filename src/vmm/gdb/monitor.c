#include "vmm/gdb/monitor.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "machine/debug.h"
#include "vmm/counters.h"

static void print_segment(FILE *out, const char *name, const struct x86_segment *s)
{
	fprintf(out, "%-4s %04x  base %016" PRIx64 "  limit %08x  attributes %04x\n", name, s->selector, s->base, s->limit,
		s->attr);
}

static void print_general(FILE *out, const struct x86_state *s)
{
	static const char *const names[REG_COUNT] = { "rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi", "r8", "r9",
						      "r10", "r11", "r12", "r13", "r14", "r15" };

	for (unsigned i = 0; i < REG_COUNT; i++)
		fprintf(out, "%-3s %016" PRIx64 "%s", names[i], s->gpr[i], i % 4 == 3 ? "\n" : "  ");
	fprintf(out, "rip %016" PRIx64 "  rflags %08" PRIx64 "  privilege level %u\n", s->rip, s->rflags, state_cpl(s));
}

static void print_system(FILE *out, const struct x86_state *s)
{
	static const char *const segments[SEG_COUNT] = { "es", "cs", "ss", "ds", "fs", "gs" };

	for (unsigned i = 0; i < SEG_COUNT; i++)
		print_segment(out, segments[i], &s->seg[i]);
	print_segment(out, "ldtr", &s->ldtr);
	print_segment(out, "tr", &s->tr);
	fprintf(out, "gdtr base %016" PRIx64 "  limit %04x\nidtr base %016" PRIx64 "  limit %04x\n", s->gdtr.base,
		s->gdtr.limit, s->idtr.base, s->idtr.limit);
	fprintf(out, "cr0 %08" PRIx64 "  cr2 %016" PRIx64 "  cr3 %016" PRIx64 "  cr4 %08" PRIx64 "\n", s->cr0, s->cr2, s->cr3,
		s->cr4);
	fprintf(out, "efer %04" PRIx64 "  star %016" PRIx64 "  lstar %016" PRIx64 "  sfmask %08" PRIx64 "\n", s->efer, s->star,
		s->lstar, s->sfmask);
	fprintf(out, "dr0 %016" PRIx64 "  dr1 %016" PRIx64 "  dr2 %016" PRIx64 "  dr3 %016" PRIx64 "\n", s->dr[0], s->dr[1],
		s->dr[2], s->dr[3]);
	fprintf(out, "dr6 %08" PRIx64 "  dr7 %08" PRIx64 "  kernel gs base %016" PRIx64 "  xcr0 %" PRIx64 "\n", s->dr[6],
		s->dr[7], s->kernel_gs_base, s->xcr0);
}

static void info_registers(struct board *b, unsigned cpu, FILE *out)
{
	struct x86_state *s = aligned_alloc(64, sizeof *s);

	if (!s)
		return;
	board_debug_get(b, cpu, s);
	fprintf(out, "CPU %u\n", cpu);
	print_general(out, s);
	print_system(out, s);
	free(s);
}

static void info_counters(struct board *b, unsigned cpu, FILE *out) { counters_print(b, false, out); }

static void reset(struct board *b, unsigned cpu, FILE *out)
{
	board_debug_reset(b);
	fprintf(out, "The machine is reset. 'maintenance flush register-cache' makes GDB look at it anew.\n");
}

static void help(struct board *b, unsigned cpu, FILE *out);

static const struct command {
	const char *name, *about;
	void (*fn)(struct board *b, unsigned cpu, FILE *out);
} commands[] = {
	{ "help", "this list", help },
	{ "info registers", "all registers of the CPU that GDB looks at, with their hidden parts", info_registers },
	{ "info counters", "what each CPU did, as --counters prints it", info_counters },
	{ "reset", "what the machine's reset button does; it stays stopped", reset },
	{ "quit", "ends the machine", NULL },	/* the server's */
};

static void help(struct board *b, unsigned cpu, FILE *out)
{
	for (unsigned i = 0; i < sizeof commands / sizeof *commands; i++)
		fprintf(out, "monitor %-16s %s\n", commands[i].name, commands[i].about);
}

bool monitor_command(struct board *b, unsigned cpu, const char *command, FILE *out)
{
	for (unsigned i = 0; i < sizeof commands / sizeof *commands; i++) {
		if (commands[i].fn && !strcmp(commands[i].name, command)) {
			commands[i].fn(b, cpu, out);
			return true;
		}
	}
	fprintf(out, "'%s' is not known; 'monitor help' lists what is\n", command);
	return true;
}
