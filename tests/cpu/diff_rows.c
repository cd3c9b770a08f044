/*
 * Which rows of the opcode table the test tries, in 64-bit and in 32-bit user code. Every other one is named here with the
 * reason; `diff -c` fails if a row is neither.
 */
#include <stdio.h>
#include <string.h>

#include "diff.h"

#define SYSTEM "changes or shows system state: the bare guests try it"
#define SEGMENT "loads a selector, which needs descriptors of the host's kernel: the bare guests try it"
#define EVENT "enters the kernel, which on the host is Linux: the bare guests try it"
#define TIMES "gives something else each time"
#define IMAGE "its image shows what the two do not share: pointers of x87 instructions, components of the host"

static const struct { const char *name, *why; } exempt[] = {
	{ "CALLF", SEGMENT }, { "JMPF", SEGMENT }, { "RETF", SEGMENT }, { "IRET", SEGMENT }, { "POP_SEG", SEGMENT },
	{ "MOV_SEG", SEGMENT }, { "LES", SEGMENT }, { "LDS", SEGMENT }, { "LFS", SEGMENT }, { "LGS", SEGMENT }, { "LSS", SEGMENT },
	{ "LAR", SEGMENT }, { "LSL", SEGMENT }, { "VERR", SEGMENT }, { "VERW", SEGMENT },
	{ "INT", EVENT }, { "INT1", EVENT }, { "SYSCALL", EVENT }, { "SYSENTER", EVENT }, { "SYSRET", EVENT },
	{ "SYSEXIT", EVENT }, { "VMCALL", EVENT }, { "VMMCALL", EVENT }, { "RSM", EVENT },
	{ "SGDT", SYSTEM }, { "SIDT", SYSTEM }, { "SLDT", SYSTEM }, { "STR", SYSTEM }, { "SMSW", SYSTEM }, { "POPF", SYSTEM },
	{ "MONITOR", SYSTEM }, { "MWAIT", SYSTEM }, { "XGETBV", SYSTEM }, { "RDPKRU", SYSTEM }, { "WRPKRU", SYSTEM },
	{ "RDPID", SYSTEM }, { "CPUID", SYSTEM }, { "RDFSBASE", SYSTEM }, { "RDGSBASE", SYSTEM }, { "WRFSBASE", SYSTEM },
	{ "WRGSBASE", SYSTEM }, { "CLZERO", "only AMD has it" },
	{ "RDTSC", TIMES }, { "RDTSCP", TIMES }, { "RDPMC", TIMES }, { "RDRAND", TIMES }, { "RDSEED", TIMES },
	{ "XSAVE", IMAGE }, { "XSAVEOPT", IMAGE }, { "XSAVEC", IMAGE }, { "XSAVES", IMAGE }, { "XRSTOR", IMAGE },
	{ "XRSTORS", IMAGE }, { "FXSAVE", IMAGE }, { "FNSTENV", IMAGE }, { "FNSAVE", IMAGE },
	{ "FBLD", "of digits that are none, as random ones are, the result is undefined" },
};

const char *row_exempt(const struct cpu_model *model, const struct x86_opcode *r, bool wide)
{
	const char *name = x86_op_name(r->op);

	if (wide ? r->attr & ROW_I64 : r->attr & ROW_O64)
		return "not in this mode";
	if (!wide && (r->attr & (ROW_W1 | ROW_B1)) && (!r->vex || r->attr & ROW_WGPR))
		return "not in this mode";		/* REX.W or REX.B is its own, or VEX.W, which is ignored there */
	if (r->op == X86_NOP && r->map == 1 && r->opcode == 0x0d)
		return "PREFETCHW of a register: a NOP on Intel, #UD on AMD";
	if (r->feature && !cpu_model_has(model, r->feature))
		return "this host lacks it";
	for (unsigned i = 0; i < sizeof exempt / sizeof *exempt; i++)
		if (!strcmp(name, exempt[i].name))
			return exempt[i].why;
	return NULL;
}

unsigned rows_report(const struct gen *g, bool print)
{
	unsigned missed = 0, tried = 0;

	for (unsigned i = 0; i < x86_optable_rows; i++) {
		const struct x86_opcode *r = &x86_optable[i];
		const char *why[2] = { row_exempt(g->model, r, false), row_exempt(g->model, r, true) };
		for (unsigned wide = 0; wide < 2; wide++)
			if (!why[wide] && !g->tried[wide][i]) {
				printf("not tried in %s code: row %u, %s, opcode %02x of map %u\n", wide ? "64-bit" : "32-bit", i,
				       x86_op_name(r->op), r->opcode, r->map);
				missed++;
			}
		tried += g->tried[0][i] || g->tried[1][i];
		if (print && why[0] && why[1])
			printf("exempt: row %u, %s, opcode %02x of map %u: %s\n", i, x86_op_name(r->op), r->opcode, r->map,
			       strcmp(why[1], "not in this mode") ? why[1] : why[0]);
	}
	if (print)
		printf("%u of %u rows tried\n", tried, x86_optable_rows);
	return missed;
}
