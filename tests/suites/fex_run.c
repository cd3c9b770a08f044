/*
 * fex_run interp|trans < LIST
 *
 * Runs tests of FEX-Emu's unittests/ASM and 32Bit_ASM, which docs/suites.md describes. Each line of LIST is the
 * binary, a tab, the source it was assembled from: the source holds the description as JSON, between "%ifdef CONFIG"
 * and "%endif". Answers a line for each: ok, FAIL or n/a, a tab, the source, a tab, the reason.
 *
 * A test is a program in user mode, at 0x10000, that ends with HLT, which is #GP there: every vector's handler writes
 * to a port, and the port ends the run. Each test has a process of its own and a machine of its own.
 *
 *	0x1000..  page tables    IDT, GDT, TSS, handlers, kernel stack: SYSTEM_VA, supervisor only
 *	FRAMES..  frames, dealt out to what the test has mapped
 */
/* Without the GNU names for registers, which are ours as well. */
#undef _GNU_SOURCE
#define _DEFAULT_SOURCE
#include <ctype.h>
#include <inttypes.h>
#include <jansson.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/wait.h>
#include <unistd.h>

#include "bare.h"

#define RAM_BYTES (64ull << 20)
#define TABLES 0x1000u
#define TABLES_END 0x200000u
#define SYSTEM 0x200000u		/* physical: */
enum { IDT = SYSTEM, GDT = SYSTEM + 0x1000, TSS = SYSTEM + 0x2000, HANDLERS = SYSTEM + 0x3000,
       KSTACK = SYSTEM + 0x4000 };
#define SYSTEM_BYTES 0x6000u
#define SYSTEM_VA 0x7ffffe000000ull	/* in user space's last megabytes, where no test looks */
#define VA(x) (SYSTEM_VA + (x) - SYSTEM)
#define FRAMES 0x300000u
#define CODE_VA 0x10000u
#define SECONDS 30

struct test {
	struct bare b;
	json_t *config;
	bool is32;
	uint64_t next_table, next_frame;
	struct x86_state out;
	unsigned vector;
	uint64_t fault_rip;
	char why[256];
};

/* --- memory --- */

static uint64_t *entry_of(struct test *t, uint64_t va)
{
	uint64_t table = TABLES;
	for (unsigned shift = 39; shift > 12; shift -= 9) {
		uint64_t *e = (uint64_t *)bare_ram(&t->b, table) + (va >> shift & 511);
		if (!*e) {
			if (t->next_table == TABLES_END)
				return NULL;
			*e = t->next_table | 7;
			t->next_table += 4096;
		}
		table = *e & ~0xfffull;
	}
	return (uint64_t *)bare_ram(&t->b, table) + (va >> 12 & 511);
}

/* Zeroed memory that user code may read, write and run. */
static bool map_user(struct test *t, uint64_t va, uint64_t bytes)
{
	uint64_t end = (va + bytes + 4095) & ~0xfffull;
	for (va &= ~0xfffull; va < end; va += 4096) {
		uint64_t *e = entry_of(t, va);
		if (!e || t->next_frame == RAM_BYTES)
			return false;
		if (!*e) {
			*e = t->next_frame | 7;
			t->next_frame += 4096;
		}
	}
	return true;
}

static uint8_t *at_va(struct test *t, uint64_t va)
{
	uint64_t *e = entry_of(t, va);
	return e && *e ? bare_ram(&t->b, (*e & ~0xfffull) + (va & 0xfff)) : NULL;
}

static bool copy_in(struct test *t, uint64_t va, const uint8_t *p, size_t n)
{
	for (size_t i = 0; i < n; i++) {
		uint8_t *to = at_va(t, va + i);
		if (!to)
			return false;
		*to = p[i];
	}
	return true;
}

/* --- what the test starts from --- */

static void tables_init(struct test *t)
{
	uint64_t *idt = (uint64_t *)bare_ram(&t->b, IDT), *gdt = (uint64_t *)bare_ram(&t->b, GDT);
	uint64_t top = VA(KSTACK + 0x1000);
	t->next_table = TABLES + 4096;
	t->next_frame = FRAMES;
	for (uint64_t i = 0; i < SYSTEM_BYTES; i += 4096)
		*entry_of(t, SYSTEM_VA + i) = (SYSTEM + i) | 3;
	for (unsigned i = 0; i < 256; i++) {
		uint64_t at = VA(HANDLERS + i * 16), dpl = i == 3 || i == 4 ? 0x6000 : 0;
		idt[2 * i] = (at & 0xffff) | 8 << 16 | (0x8e00 | dpl) << 32 | (at >> 16 & 0xffff) << 48;
		idt[2 * i + 1] = at >> 32;
		memcpy(bare_ram(&t->b, HANDLERS + i * 16), "\xe6\xf4\xf4", 3);	/* out 0xf4, al; hlt */
	}
	gdt[1] = 0x00af9b000000ffff;	/* 08: kernel code */
	gdt[2] = 0x00cff3000000ffff;	/* 17, in the LDT: what the 32-bit tests load */
	gdt[4] = 0x00cffb000000ffff;	/* 23: user code, 32 bits */
	gdt[5] = 0x00cff3000000ffff;	/* 2b: user data */
	gdt[6] = 0x00affb000000ffff;	/* 33: user code */
	memcpy(bare_ram(&t->b, TSS + 4), &top, 8);
	*bare_ram(&t->b, TSS + 0x66) = 0x68;
}

static void state_set(struct test *t)
{
	struct x86_state s;
	uint16_t ds = t->is32 ? 0x17 : 0;
	t->b.ops->get_state(t->b.v, &s);
	memset(s.gpr, 0, sizeof s.gpr);
	s.rip = CODE_VA;
	s.rflags = FLAG_FIXED | FLAG_IF;
	s.cr0 = CR0_PE | CR0_PG | CR0_NE | CR0_ET | CR0_WP | CR0_MP | CR0_AM;	/* as Linux has it */
	s.cr3 = TABLES;
	s.cr4 = CR4_PAE | CR4_OSFXSR | CR4_OSXMMEXCPT | CR4_OSXSAVE | CR4_FSGSBASE;
	s.xcr0 = 7;
	s.efer = EFER_LME | EFER_LMA | EFER_SCE | EFER_NXE;
	for (unsigned i = 0; i < SEG_COUNT; i++)
		s.seg[i] = (struct x86_segment){ 0 };
	s.seg[SEG_CS] = (struct x86_segment){ .limit = ~0u, .selector = t->is32 ? 0x23 : 0x33,
					      .attr = t->is32 ? 0xc0fb : 0xa0fb };
	s.seg[SEG_SS] = (struct x86_segment){ .limit = ~0u, .selector = 0x2b, .attr = 0xc0f3 };
	for (unsigned i = SEG_ES; ds && i < SEG_COUNT; i++)
		if (i == SEG_ES || i == SEG_DS)
			s.seg[i] = (struct x86_segment){ .limit = ~0u, .selector = ds, .attr = 0xc0f3 };
	s.tr = (struct x86_segment){ .base = VA(TSS), .limit = 0x67, .selector = 0x40, .attr = 0x8b };
	s.ldtr = (struct x86_segment){ .base = VA(GDT), .limit = 0xfff, .selector = 0x50, .attr = 0x82 };	/* the same */
	s.idtr = (struct x86_table){ VA(IDT), 0xfff };
	s.gdtr = (struct x86_table){ VA(GDT), 0xfff };
	s.fpu.fcw = 0x37f;		/* as FNINIT leaves it */
	s.fpu.fsw = 0;
	s.fpu.ftw_abridged = 0;
	s.fpu.mxcsr = 0x1f80;
	s.activity = ACTIVITY_RUNNING;
	t->b.ops->set_state(t->b.v, &s);
}

/* --- the description --- */

/* The suite's keys are spelled in any case. */
static json_t *key_of(json_t *object, const char *name)
{
	const char *key;
	json_t *value;
	json_object_foreach(object, key, value)
		if (!strcasecmp(key, name))
			return value;
	return NULL;
}

static char *file_read(const char *path, size_t *len)
{
	FILE *f = fopen(path, "rb");
	char *p = f ? malloc((4 << 20) + 1) : NULL;
	if (f) {
		*len = fread(p, 1, 4 << 20, f);
		p[*len] = 0;
		fclose(f);
	}
	return p;
}

static json_t *config_read(const char *source)
{
	size_t len;
	json_error_t e;
	char *text = file_read(source, &len), *start = text ? strstr(text, "%ifdef CONFIG") : NULL;
	char *end = start ? strstr(start, "%endif") : NULL;
	json_t *config = NULL;
	if (end) {
		start += strlen("%ifdef CONFIG");
		config = json_loadb(start, (size_t)(end - start), 0, &e);
	} else if (text) {
		config = json_object();
	}
	free(text);
	return config;
}

/* Strings may have underscores between their digits. */
static uint64_t number(const json_t *j)
{
	char digits[32];
	unsigned n = 0;
	if (!json_is_string(j))
		return (uint64_t)json_integer_value(j);
	for (const char *p = json_string_value(j); *p && n < sizeof digits - 1; p++)
		if (*p != '_')
			digits[n++] = *p;
	digits[n] = 0;
	return strtoull(digits, NULL, 0);
}

/* A feature that no model has, or what is no CPU's: FEX's own, or Linux. */
static const char *missing_feature(json_t *config)
{
	static const char *const none[][2] = {
		{ "3DNOW", "3DNow!, which no model has" }, { "EMMI", "extended 3DNow!, which no model has" },
		{ "SSE4A", "SSE4a, which no model has" }, { "CLZERO", "CLZERO, which no model has" },
		{ "LINUX", "Linux's system calls" },
	};
	json_t *list = key_of(config, "HostFeatures"), *f;
	size_t i;
	json_array_foreach(list, i, f)
		for (unsigned k = 0; k < sizeof none / sizeof *none; k++)
			if (!strcasecmp(json_string_value(f), none[k][0]))
				return none[k][1];
	return NULL;
}

/* "0x11 22 3344": each word is a little-endian number of as many bytes as it has pairs of digits. */
static bool data_in(struct test *t, uint64_t va, const char *text)
{
	bool prefixed = !strncmp(text, "0x", 2);
	while (*text) {
		size_t n = strcspn(text, " ");
		const char *p = text + (prefixed && n >= 2 ? 2 : 0);
		for (const char *q = text + n; q > p;) {
			char pair[3] = { 0 };
			unsigned take = q - p >= 2 ? 2 : 1;
			q -= take;
			memcpy(pair, q, take);
			uint8_t byte = (uint8_t)strtoul(pair, NULL, 16);
			if (!copy_in(t, va++, &byte, 1))
				return false;
		}
		text += n;
		text += *text == ' ';
	}
	return true;
}

static bool memory_init(struct test *t, const char *binary)
{
	size_t len;
	const char *key;
	json_t *value;
	char *code = file_read(binary, &len);
	bool ok = code && map_user(t, 0xe0000000, 10 * 4096) && map_user(t, 0xe8000000 - 4096, 2 * 4096) &&
		  map_user(t, CODE_VA, len) && (!t->is32 || map_user(t, 0xc0000000, 4096));
	json_object_foreach(key_of(t->config, "MemoryRegions"), key, value)
		ok = ok && map_user(t, strtoull(key, NULL, 0), number(value));
	ok = ok && copy_in(t, CODE_VA, (uint8_t *)code, len);
	json_object_foreach(key_of(t->config, "MemoryData"), key, value)
		ok = ok && data_in(t, strtoull(key, NULL, 0), json_string_value(value));
	free(code);
	return ok;
}

/* --- the outcome --- */

/* Up to four quadwords of the register; how many it has. */
static unsigned register_get(const struct test *t, const char *name, uint64_t q[4])
{
	static const char *const gprs[] = { "RAX", "RCX", "RDX", "RBX", "RSP", "RBP", "RSI", "RDI", "R8", "R9", "R10",
					    "R11", "R12", "R13", "R14", "R15" };
	const struct x86_xsave *f = &t->out.fpu;
	for (unsigned i = 0; i < 16; i++)
		if (!strcasecmp(name, gprs[i]))
			return q[0] = t->out.gpr[i], 1;
	if (!strcasecmp(name, "RIP"))
		return q[0] = t->fault_rip, 1;
	if (!strcasecmp(name, "FS") || !strcasecmp(name, "GS"))
		return q[0] = t->out.seg[toupper(name[0]) == 'F' ? SEG_FS : SEG_GS].base, 1;
	if (!strncasecmp(name, "XMM", 3)) {
		unsigned i = (unsigned)atoi(name + 3) & 15;
		memcpy(q, f->xmm[i].q, 16);
		memcpy(q + 2, f->ymmh[i].q, 16);
		return 4;
	}
	if (!strncasecmp(name, "MM", 2)) {	/* by physical number */
		const uint8_t *st = f->st[((unsigned)atoi(name + 2) - (f->fsw >> 11)) & 7].b;
		memcpy(q, st, 8);
		q[1] = st[8] | (uint64_t)st[9] << 8;
		return 2;
	}
	return 0;
}

static bool register_check(struct test *t, const char *name, json_t *want)
{
	uint64_t q[4] = { 0 };
	unsigned have = register_get(t, name, q);
	size_t n = json_is_array(want) ? json_array_size(want) : 1;
	if (!have || n > have) {
		snprintf(t->why, sizeof t->why, "unknown register %s", name);
		return false;
	}
	for (size_t i = 0; i < n; i++) {
		uint64_t w = number(json_is_array(want) ? json_array_get(want, i) : want);
		if (q[i] != w) {
			snprintf(t->why, sizeof t->why, "%s[%zu] %016" PRIx64 " instead of %016" PRIx64, name, i, q[i], w);
			return false;
		}
	}
	return true;
}

static bool outcome_check(struct test *t)
{
	const char *name;
	json_t *want;
	uint8_t *last = at_va(t, t->fault_rip);
	if (t->vector != EXC_GP || !last || *last != 0xf4) {
		snprintf(t->why, sizeof t->why, "ends with vector %u at %" PRIx64, t->vector, t->fault_rip);
		return false;
	}
	json_object_foreach(key_of(t->config, "RegData"), name, want)
		if (!register_check(t, name, want))
			return false;
	return true;
}

/* --- running --- */

static void port_out(void *opaque, uint16_t port, unsigned size, uint32_t value)
{
	struct test *t = opaque;
	if (port == 0xf4)
		bare_stop(&t->b);
}

static bool execute(struct test *t)
{
	const uint64_t *frame = (const uint64_t *)bare_ram(&t->b, KSTACK + 0x1000 - 48);
	enum exit_reason why;
	do
		why = bare_run(&t->b);
	while (why == EXIT_KICKED && (t->b.ops->get_state(t->b.v, &t->out), t->out.rip < VA(HANDLERS)));
	t->b.ops->get_state(t->b.v, &t->out);
	if (why == EXIT_SHUTDOWN || why == EXIT_FAILED) {
		snprintf(t->why, sizeof t->why, "the CPU shut down");
		return false;
	}
	t->vector = (unsigned)((t->out.rip - VA(HANDLERS)) / 16);
	t->fault_rip = frame[1];
	t->out.gpr[REG_RSP] = frame[4];
	return true;
}

/* In a process of its own. 0: ok, 1: FAIL, 2: n/a. */
static int test_run(struct test *t, const char *engine, const char *binary, const char *source)
{
	struct error e;
	const char *missing;
	json_t *mode;
	t->config = config_read(source);
	if (!t->config) {
		snprintf(t->why, sizeof t->why, "its description is no JSON");
		return 1;
	}
	missing = missing_feature(t->config);
	if (missing) {
		snprintf(t->why, sizeof t->why, "needs %s", missing);
		return 2;
	}
	mode = key_of(t->config, "Mode");
	t->is32 = mode && !strcasecmp(json_string_value(mode), "32BIT");
	if (!bare_init(&t->b, engine, RAM_BYTES, &e)) {
		error_print(&e);
		return 1;
	}
	t->b.out = port_out;
	t->b.opaque = t;
	tables_init(t);
	if (!memory_init(t, binary)) {
		snprintf(t->why, sizeof t->why, "its memory does not fit");
		return 1;
	}
	state_set(t);
	return !(execute(t) && outcome_check(t));
}

static void answer(int status, const char *source, const char *why)
{
	static const char *const words[] = { "ok", "FAIL", "n/a" };
	printf("%s\t%s\t%s\n", words[status], source, why);
	fflush(stdout);
}

static void test_fork(const char *engine, const char *binary, const char *source)
{
	int status;
	pid_t child = fork();
	if (child == 0) {
		struct test *t = calloc(1, sizeof *t);
		alarm(SECONDS);
		status = test_run(t, engine, binary, source);
		answer(status, source, t->why);
		_exit(0);
	}
	waitpid(child, &status, 0);
	if (WIFSIGNALED(status) && WTERMSIG(status) == SIGALRM)
		answer(1, source, "does not end");
	else if (status)
		answer(1, source, "the engine crashed");
}

int main(int argc, char **argv)
{
	char line[8192];
	if (argc != 2 || (strcmp(argv[1], "interp") && strcmp(argv[1], "trans"))) {
		fprintf(stderr, "usage: fex_run interp|trans < LIST\n");
		return 2;
	}
	while (fgets(line, sizeof line, stdin)) {
		char *tab = strchr(line, '\t');
		if (!tab)
			continue;
		*tab = 0;
		tab[1 + strcspn(tab + 1, "\n")] = 0;
		test_fork(argv[1], line, tab + 1);
	}
	return 0;
}
