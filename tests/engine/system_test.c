/*
 * System instructions and events in odd states, on the interpreter and on the translator: both must end alike.
 *
 * Exception handlers are one HLT each, 16 bytes apart, so RIP tells the vector and the stack holds the frame.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "engine/soft/vcpu.h"
#include "machine.h"

#define RAM_BYTES (4u << 20)
#define TABLES 0x10000u		/* PML4, PDPT, PD, PML5 */
#define GDT 0x20000u
#define IDT 0x21000u
#define TSS 0x22000u
#define HANDLERS 0x23000u
#define CODE 0x100000u
#define DATA 0x200000u
#define STACK 0x300000u
#define ABSENT 0x400000u	/* 4..6 MiB */
#define READ_ONLY 0x600000u	/* what lies at 2 MiB */
#define SUPERVISOR 0x800000u	/* likewise */

/* Selectors. */
enum { KCODE = 0x08, KDATA = 0x10, UCODE32 = 0x1b, UDATA = 0x23, UCODE = 0x2b, ABSENT_CODE = 0x30, CONFORMING = 0x38,
       TSS_SEL = 0x40, READ_ONLY_DATA = 0x50, GDT_END = 0x58 };

#define IRQ_VECTOR 22

static void machine_init(struct machine *m, bool interpret_only)
{
	machine_open(m, "host", RAM_BYTES, (struct engine_config){ .interpret_only = interpret_only });
}

static void put64(struct machine *m, uint64_t gpa, uint64_t value) { assert_true(map_write(m->map, gpa, &value, 8)); }

static void tables_build(struct machine *m)
{
	static const uint64_t gdt[] = { 0, 0x00af9b000000ffff, 0x00cf93000000ffff, 0x00cffb000000ffff, 0x00cff3000000ffff,
					0x00affb000000ffff, 0x00af1b000000ffff, 0x00af9f000000ffff,
					0x00008b0000000067 | (uint64_t)TSS << 16, 0, 0x00cff1000000ffff };

	put64(m, TABLES, (TABLES + 0x1000) | 7);
	put64(m, TABLES + 0x1000, (TABLES + 0x2000) | 7);
	put64(m, TABLES + 0x2000, 0xe7);
	put64(m, TABLES + 0x2008, 0x2000e7);
	put64(m, TABLES + 0x2010, 0);
	put64(m, TABLES + 0x2018, 0x2000e5);
	put64(m, TABLES + 0x2020, 0x2000e3);
	put64(m, TABLES + 0x3000, TABLES | 7);
	for (unsigned i = 0; i < sizeof gdt / sizeof *gdt; i++)
		put64(m, GDT + 8 * i, gdt[i]);
	for (unsigned i = 0; i < 32; i++) {
		uint64_t to = HANDLERS + 16 * i, ist = i == 8 ? 1 : 0, dpl = i == 3 || i == 4 ? 3 : 0;
		put64(m, IDT + 16 * i, (to & 0xffff) | KCODE << 16 | ist << 32 | (0x8e00 | dpl << 13) << 32 | (to >> 16) << 48);
		put64(m, IDT + 16 * i + 8, 0);
		map_write(m->map, to, "\xf4", 1);
	}
	put64(m, TSS + 4, STACK + 0x2000);
	put64(m, TSS + 0x24, STACK + 0x3000);
}

/* CPL 0, 64 bits, at CODE. */
static void state_begin(struct x86_state *s, bool la57)
{
	s->cr0 = CR0_PE | CR0_PG | CR0_NE | CR0_ET | CR0_WP | CR0_MP;
	s->cr3 = la57 ? TABLES + 0x3000 : TABLES;
	s->cr4 = CR4_PAE | CR4_OSFXSR | CR4_OSXMMEXCPT | CR4_OSXSAVE | CR4_FSGSBASE | (la57 ? CR4_LA57 : 0);
	s->xcr0 = 7;
	s->efer = EFER_LME | EFER_LMA | EFER_SCE | EFER_NXE;
	for (unsigned i = 0; i < SEG_COUNT; i++)
		s->seg[i] = (struct x86_segment){ .limit = 0xffffffff, .selector = KDATA, .attr = 0xc093 };
	s->seg[SEG_CS].selector = KCODE;
	s->seg[SEG_CS].attr = 0xa09b;
	s->gdtr = (struct x86_table){ .base = GDT, .limit = GDT_END - 1 };
	s->idtr = (struct x86_table){ .base = IDT, .limit = 32 * 16 - 1 };
	s->tr = (struct x86_segment){ .base = TSS, .limit = 0x67, .selector = TSS_SEL, .attr = 0x8b };
	s->star = (uint64_t)(UCODE32 & ~3u) << 48 | (uint64_t)KCODE << 32;
	s->lstar = CODE + 0x800;
	s->sfmask = FLAG_IF | FLAG_TF | FLAG_AC | FLAG_DF;
	s->rip = CODE;
	s->rflags = FLAG_FIXED;
	s->cr2 = s->shadow = s->nmi_blocked = 0;
	for (unsigned i = 0; i < REG_COUNT; i++)
		s->gpr[i] = 0x0123456789abcdefull * (i + 1);
	s->gpr[REG_RSP] = STACK;
	s->fpu.fcw = 0x37f;
	s->fpu.mxcsr = 0x1f80;
	s->fpu.xstate_bv = 0;
	s->activity = ACTIVITY_RUNNING;
}

static void run(struct machine *m, const struct x86_state *from, struct x86_state *to)
{
	struct error e;

	engine_soft.set_state(m->v, from);
	for (unsigned i = 0; i < 100; i++)
		if (engine_soft.run(m->v, &e) != EXIT_KICKED)
			break;
	engine_soft.get_state(m->v, to);
}

static struct x86_state *state_new(struct machine *m)
{
	struct x86_state *s = aligned_alloc(64, (sizeof *s + 63) & ~63ul);

	assert_non_null(s);
	engine_soft.get_state(m->v, s);
	return s;
}

static uint64_t interpreted(const struct machine *m, enum x86_op op) { return m->v->counters.op[op]; }

/* --- the TSC --- */

extern const char tsc_code[], tsc_end[];
__asm__(".pushsection .rodata\n"
	"tsc_code:\n"
	".irp n, 0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15\n vmovups 0x200000 + 32 * \\n, %ymm\\n\n .endr\n"
	"fld1\n fldpi\n"
	"mov $0x1234, %ecx\n"
	"cmp %eax, %eax\n stc\n"
	"rdtsc\n"
	"setc %bl\n"
	"mov %rdx, %rsi\n shl $32, %rsi\n or %rax, %rsi\n"
	"rdtscp\n"
	"mov %rdx, %rdi\n shl $32, %rdi\n or %rax, %rdi\n"
	".irp n, 0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15\n vmovups %ymm\\n, 0x200400 + 32 * \\n\n .endr\n"
	"fstpl 0x200800\n fstpl 0x200808\n"
	"hlt\n"
	"tsc_end:\n.popsection\n");

/* RDTSC visits C with the guest's registers in place, vector registers too. */
static void test_tsc(void **state)
{
	struct machine m;
	struct x86_state *s;
	double d[2];
	uint8_t in[512], out[512];

	machine_init(&m, false);
	s = state_new(&m);
	tables_build(&m);
	map_write(m.map, CODE, tsc_code, (size_t)(tsc_end - tsc_code));
	for (unsigned i = 0; i < sizeof in; i++)
		in[i] = (uint8_t)(i * 37 + 5);
	for (unsigned turn = 0; turn < 3; turn++) {
		map_write(m.map, DATA, in, sizeof in);
		state_begin(s, false);
		s->tsc_aux = 0x1122334455;
		run(&m, s, s);
		assert_int_equal(s->activity, ACTIVITY_HALTED);
		map_read(m.map, DATA + 0x400, out, sizeof out);
		assert_memory_equal(in, out, sizeof in);
		map_read(m.map, DATA + 0x800, d, sizeof d);
		assert_true(d[0] > 3.14159 && d[0] < 3.1416 && d[1] == 1.0);
		assert_int_equal(s->gpr[REG_RBX] & 0xff, 1);
		assert_int_equal(s->gpr[REG_RCX], 0x22334455);
		assert_true(s->gpr[REG_RSI] > 0 && s->gpr[REG_RDI] >= s->gpr[REG_RSI] && s->gpr[REG_RDI] < 1ull << 40);
		for (unsigned r = REG_R8; r < REG_COUNT; r++)
			assert_true(s->gpr[r] == 0x0123456789abcdefull * (r + 1));
	}
	assert_int_equal(interpreted(&m, X86_RDTSC) + interpreted(&m, X86_RDTSCP), 0);
	free(s);
	machine_fini(&m);
}

/* --- PAUSE --- */

/* Few of them leave translated code, those that do change nothing. */
static void test_pause(void **state)
{
	static const uint8_t code[] = { 0xb9, 0x10, 0x27, 0, 0,		/* mov ecx, 10000 */
					0xf9,				/* l: stc */
					0xf3, 0x90,			/* pause */
					0x83, 0xd3, 0x00,		/* adc ebx, 0 */
					0xff, 0xc9, 0x75, 0xf6,		/* dec ecx; jne l */
					0xf4 };
	struct machine m;
	struct x86_state *s;

	machine_init(&m, false);
	s = state_new(&m);
	tables_build(&m);
	map_write(m.map, CODE, code, sizeof code);
	state_begin(s, false);
	s->gpr[REG_RBX] = 0;
	run(&m, s, s);
	assert_int_equal(s->activity, ACTIVITY_HALTED);
	assert_int_equal(s->gpr[REG_RBX], 10000);
	assert_in_range(interpreted(&m, X86_PAUSE), 1, 100);
	free(s);
	machine_fini(&m);
}

/* --- SYSCALL, SYSRET, FSGSBASE with 48 and with 57 bits --- */

extern const char syscall_code[], syscall_user[], syscall_entry[], syscall_end[];
__asm__(".pushsection .rodata\n"
	"syscall_code:\n"	/* rcx: the user's RIP, rbx: a base */
	"wrfsbase %rbx\n rdfsbase %rsi\n"
	"mov $0x202, %r11d\n"
	"sysretq\n"
	"syscall_user:\n"
	"syscall\n"
	"syscall_entry:\n"
	"mov %rcx, %rdi\n hlt\n"
	"syscall_end:\n.popsection\n");

static void syscall_case(struct machine *m, bool la57, uint64_t rip, uint64_t base, struct x86_state *s)
{
	tables_build(m);
	map_write(m->map, CODE, syscall_code, (size_t)(syscall_user - syscall_code));
	map_write(m->map, CODE + 0x400, syscall_user, (size_t)(syscall_entry - syscall_user));
	map_write(m->map, CODE + 0x800, syscall_entry, (size_t)(syscall_end - syscall_entry));
	state_begin(s, la57);
	s->gpr[REG_RCX] = rip;
	s->gpr[REG_RBX] = base;
	run(m, s, s);
}

static void test_syscall(void **state)
{
	const uint64_t only57 = 0x00f0000000000000ull;
	struct machine m;
	struct x86_state *s;

	for (unsigned turn = 0; turn < 4; turn++) {
		bool la57 = turn & 1, interpret = turn & 2;
		machine_init(&m, interpret);
		s = state_new(&m);
		syscall_case(&m, la57, CODE + 0x400, CODE, s);
		assert_int_equal(s->activity, ACTIVITY_HALTED);
		assert_int_equal(s->rip, CODE + 0x804);
		assert_int_equal(s->gpr[REG_RDI], CODE + 0x402);
		assert_int_equal(s->gpr[REG_RSI], CODE);
		if (!interpret)
			assert_int_equal(interpreted(&m, X86_SYSCALL) + interpreted(&m, X86_SYSRET) +
						 interpreted(&m, X86_WRFSBASE) + interpreted(&m, X86_RDFSBASE), 0);
		syscall_case(&m, la57, CODE + 0x400, only57, s);
		assert_int_equal(s->rip, la57 ? CODE + 0x804 : HANDLERS + 16 * EXC_GP + 1);
		assert_true(!la57 || s->gpr[REG_RSI] == only57);
		syscall_case(&m, la57, only57, CODE, s);
		assert_int_equal(s->rip, HANDLERS + 16 * (la57 ? EXC_PF : EXC_GP) + 1);
		assert_int_equal(s->cr2, la57 ? only57 : 0);
		syscall_case(&m, la57, 0x0100000000000000ull, CODE, s);
		assert_int_equal(s->rip, HANDLERS + 16 * EXC_GP + 1);
		free(s);
		machine_fini(&m);
	}
}

/* --- IRETQ --- */

static uint64_t rnd(uint64_t *seed)
{
	*seed ^= *seed << 13;
	*seed ^= *seed >> 7;
	*seed ^= *seed << 17;
	return *seed;
}
#define PICK(seed, list) ((list)[rnd(seed) % (sizeof(list) / sizeof *(list))])

/* A state in front of an IRETQ and the frame it pops; usual values and odd ones. */
static void iret_make(struct machine *m, uint64_t *seed, struct x86_state *s)
{
	static const uint64_t rips[] = { CODE + 0x400, CODE + 0x400, CODE + 0x400, CODE + 0x500, ABSENT, SUPERVISOR,
					 0x0000800000000000ull, 0x00f0000000000000ull, 0xffff800000000000ull };
	static const uint16_t css[] = { KCODE, KCODE, UCODE, UCODE, UCODE, UCODE32, KDATA, UDATA, 0, 3, ABSENT_CODE,
					CONFORMING, CONFORMING | 3, KCODE | 3, UCODE & ~3, KCODE | 4, TSS_SEL, GDT_END, 0xfff8 };
	static const uint16_t sss[] = { KDATA, KDATA, UDATA, UDATA, UDATA, 0, 3, READ_ONLY_DATA | 3, KCODE, UCODE, KDATA | 3,
					UDATA & ~3, UDATA | 4, GDT_END | 3 };
	static const uint64_t rsps[] = { STACK + 0x800, STACK + 0x808, STACK + 0x801, ABSENT + 8, 0x0000900000000000ull };
	static const uint64_t stacks[] = { STACK + 0x100, STACK + 0x100, STACK + 0x100, STACK + 0x103, STACK + 0xfe0,
					   ABSENT - 16, ABSENT + 0x100, 0x0000800000000000ull - 16 };
	bool user = rnd(seed) % 5 == 0, usual = rnd(seed) % 3;
	uint64_t rsp = usual ? STACK + 0x100 : PICK(seed, stacks);
	unsigned pick = (unsigned)(rnd(seed) % 2);

	m->irq = rnd(seed) % 4 == 0 ? IRQ_VECTOR : -1;

	state_begin(s, rnd(seed) % 4 == 0);
	if (rnd(seed) % 3 == 0)
		s->cr4 |= CR4_SMAP;
	if (user) {
		s->seg[SEG_CS] = (struct x86_segment){ .limit = ~0u, .selector = UCODE, .attr = 0xa0fb };
		s->seg[SEG_SS] = (struct x86_segment){ .limit = ~0u, .selector = UDATA, .attr = 0xc0f3 };
	}
	s->rflags |= rnd(seed) & (FLAGS_ARITH | FLAG_IF | FLAG_IOPL | FLAG_AC | FLAG_ID | FLAG_DF);
	if (rnd(seed) % 16 == 0)
		s->rflags |= FLAG_NT;
	s->nmi_blocked = rnd(seed) % 4 == 0;
	s->gpr[REG_RSP] = rsp;
	s->rip = CODE + (rnd(seed) % 2 ? 0 : 4);
	const uint64_t frame[5] = {
		usual ? CODE + 0x400 : PICK(seed, rips),
		usual ? (uint64_t)(pick || user ? UCODE : KCODE) : PICK(seed, css) | (rnd(seed) & 0xffff0000),
		usual ? 0x10202 | (rnd(seed) & FLAGS_ARITH) : rnd(seed) & 0x3fffff & ~(rnd(seed) % 2 ? (uint64_t)FLAG_TF : 0),
		usual ? STACK + 0x800 : PICK(seed, rsps),
		usual ? (uint64_t)(pick || user ? UDATA : KDATA) : PICK(seed, sss) | (rnd(seed) & 0xffff0000),
	};
	if (rsp < RAM_BYTES)	/* may end in the absent page */
		map_write(m->map, rsp, frame, rsp + sizeof frame <= RAM_BYTES ? sizeof frame : RAM_BYTES - rsp);
	else if (rsp == ABSENT - 16)
		map_write(m->map, rsp, frame, 16);
}

/* INT3 pushes RF as the NOP left it.
 * MOV R15, [RSP] makes the TLB know the stack; half the cases start behind it.
 * Where it lands: flags read back, then the end. */
static const uint8_t iret_code[] = { 0x4c, 0x8b, 0x3c, 0x24, 0x48, 0xcf };
static const uint8_t landed[] = { 0x90, 0x9c, 0x58, 0xcc };	/* nop pushf pop int3 */

static void memory_compare(struct machine *a, struct machine *b, uint64_t gpa, unsigned n)
{
	assert_memory_equal(map_ptr(a->map, gpa, n, false), map_ptr(b->map, gpa, n, false), n);
}

static void state_compare(const struct x86_state *a, const struct x86_state *b, unsigned number)
{
	bool same = !memcmp(a->gpr, b->gpr, sizeof a->gpr) && a->rip == b->rip && a->rflags == b->rflags &&
		    a->cr2 == b->cr2 && a->activity == b->activity && a->nmi_blocked == b->nmi_blocked &&
		    !memcmp(a->seg, b->seg, sizeof a->seg) && !memcmp(a->dr, b->dr, sizeof a->dr);

	if (!same)
		fail_msg("case %u: rip %llx %llx, rflags %llx %llx, rsp %llx %llx, rax %llx %llx, cs %x %x, ss %x %x, cr2 %llx %llx",
			 number, (unsigned long long)a->rip, (unsigned long long)b->rip, (unsigned long long)a->rflags,
			 (unsigned long long)b->rflags, (unsigned long long)a->gpr[REG_RSP],
			 (unsigned long long)b->gpr[REG_RSP], (unsigned long long)a->gpr[0], (unsigned long long)b->gpr[0],
			 a->seg[SEG_CS].selector, b->seg[SEG_CS].selector, a->seg[SEG_SS].selector,
			 b->seg[SEG_SS].selector, (unsigned long long)a->cr2, (unsigned long long)b->cr2);
}

static void test_iret(void **state)
{
	struct machine m[2];
	struct x86_state *s[2];

	for (unsigned k = 0; k < 2; k++) {
		machine_init(&m[k], k == 0);
		s[k] = state_new(&m[k]);
		tables_build(&m[k]);
		map_write(m[k].map, CODE, iret_code, sizeof iret_code);
		map_write(m[k].map, CODE + 0x400, landed, sizeof landed);
		map_write(m[k].map, CODE + 0x500, landed, sizeof landed);
		map_write(m[k].map, DATA, landed, sizeof landed);	/* SUPERVISOR */
	}
	for (unsigned i = 0; i < 20000; i++) {
		for (unsigned k = 0; k < 2; k++) {
			uint64_t seed = i + 1;
			for (unsigned n = 0; n < 10; n++)
				rnd(&seed);
			iret_make(&m[k], &seed, s[k]);
			run(&m[k], s[k], s[k]);
		}
		state_compare(s[0], s[1], i);
		memory_compare(&m[0], &m[1], STACK, 0x3000);
	}
	assert_true(interpreted(&m[0], X86_IRET) - interpreted(&m[1], X86_IRET) > 3000);	/* some took the quick way */
	for (unsigned k = 0; k < 2; k++) {
		free(s[k]);
		machine_fini(&m[k]);
	}
}

/* --- CPUID --- */

extern const char cpuid_code[], cpuid_end[];
__asm__(".pushsection .rodata\n"
	"cpuid_code:\n"		/* rsi: pairs of leaf and subleaf, ebp: how many; r8: a sum of what comes of them */
	"1: mov (%rsi), %eax\n mov 4(%rsi), %ecx\n"
	"cmp %eax, %eax\n stc\n"
	"cpuid\n"
	"adc %rax, %r8\n rol $5, %r8\n xor %rbx, %r8\n rol $7, %r8\n add %rcx, %r8\n rol $9, %r8\n xor %rdx, %r8\n"
	"add $8, %rsi\n dec %ebp\n jne 1b\n"
	"mov %cr4, %rax\n xor $0x40000, %rax\n mov %rax, %cr4\n"	/* OSXSAVE: leaf 1 tells */
	"mov %r10, %rsi\n mov %r11d, %ebp\n dec %edi\n jne 1b\n"
	"hlt\n"
	"cpuid_end:\n.popsection\n");

#define CPUID_ASKED 96u

static void cpuid_run(struct machine *m, struct x86_state *s)
{
	uint32_t ask[CPUID_ASKED][2];

	for (unsigned i = 0; i < CPUID_ASKED; i++) {
		ask[i][0] = (i & 1 ? 0x80000000u : 0) + i / 6;
		ask[i][1] = i / 2 % 3;
	}
	tables_build(m);
	map_write(m->map, CODE, cpuid_code, (size_t)(cpuid_end - cpuid_code));
	map_write(m->map, DATA, ask, sizeof ask);
	state_begin(s, false);
	s->gpr[REG_RSI] = s->gpr[REG_R10] = DATA;
	s->gpr[REG_RBP] = s->gpr[REG_R11] = CPUID_ASKED;
	s->gpr[REG_RDI] = 8;
	run(m, s, s);
	assert_int_equal(s->activity, ACTIVITY_HALTED);
	assert_int_equal(s->gpr[REG_RDI], 0);
}

static void test_cpuid(void **state)
{
	uint64_t sums[2];

	for (unsigned k = 0; k < 2; k++) {
		struct machine m;
		struct x86_state *s;
		machine_init(&m, k == 0);
		s = state_new(&m);
		cpuid_run(&m, s);
		sums[k] = s->gpr[REG_R8];
		if (k)	/* what CR4 is changes each time, but only between two values */
			assert_in_range(interpreted(&m, X86_CPUID), CPUID_ASKED, 8 * CPUID_ASKED);
		cpuid_run(&m, s);
		assert_true(s->gpr[REG_R8] == sums[k]);
		free(s);
		machine_fini(&m);
	}
	assert_true(sums[0] == sums[1]);
}

/* Asked for the same again, translated code answers. */
static void test_cpuid_quick(void **state)
{
	static const uint8_t code[] = { 0xbd, 0xe8, 3, 0, 0,		/* mov ebp, 1000 */
					0xb8, 7, 0, 0, 0, 0x31, 0xc9,	/* l: mov eax, 7; xor ecx, ecx */
					0x0f, 0xa2,			/* cpuid */
					0xff, 0xcd, 0x75, 0xf3, 0xf4 };	/* dec ebp; jne l; hlt */
	struct machine m;
	struct x86_state *s;
	uint32_t out[4];

	machine_init(&m, false);
	s = state_new(&m);
	tables_build(&m);
	map_write(m.map, CODE, code, sizeof code);
	state_begin(s, false);
	cpu_model_cpuid(m.model, 7, 0, s, 0, 1, out);
	run(&m, s, s);
	assert_int_equal(s->activity, ACTIVITY_HALTED);
	assert_true(s->gpr[REG_RAX] == out[0] && s->gpr[REG_RBX] == out[1] && s->gpr[REG_RCX] == out[2] && s->gpr[REG_RDX] == out[3]);
	assert_in_range(interpreted(&m, X86_CPUID), 1, 2);
	free(s);
	machine_fini(&m);
}

/* --- MOV to CR3 --- */

#define OTHER_TABLES 0x30000u	/* as TABLES, but the first 2 MiB by a page table: CODE lies at OTHER_CODE, DATA + 4096 at DATA */
#define OTHER_CODE 0x101000u

extern const char cr3_code[], cr3_other[], cr3_end[];
__asm__(".pushsection .rodata\n"
	"cr3_code:\n"		/* rbx, r9: values for CR3, by turns; rsi: DATA */
	"1: cmp %eax, %eax\n stc\n"
	"mov %rbx, %cr3\n"
	"adc (%rsi), %rax\n nop\n"
	"xchg %rbx, %r9\n mov %cr3, %rdx\n"
	"dec %ecx\n jne 1b\n"
	"hlt\n"
	"cr3_other:\n"		/* instruction by instruction as long */
	"1: cmp %eax, %eax\n stc\n"
	"mov %rbx, %cr3\n"
	"sbb (%rsi), %rdi\n stc\n"
	"xchg %rbx, %r9\n mov %cr3, %rdx\n"
	"dec %ecx\n jne 1b\n"
	"hlt\n"
	"cr3_end:\n.popsection\n");

static void other_tables_build(struct machine *m)
{
	put64(m, OTHER_TABLES, (OTHER_TABLES + 0x1000) | 7);
	put64(m, OTHER_TABLES + 0x1000, (OTHER_TABLES + 0x2000) | 7);
	put64(m, OTHER_TABLES + 0x2000, (OTHER_TABLES + 0x3000) | 7);
	put64(m, OTHER_TABLES + 0x2008, (OTHER_TABLES + 0x4000) | 7);
	for (unsigned i = 0; i < 512; i++) {
		uint64_t gpa = (uint64_t)i << 12;
		put64(m, OTHER_TABLES + 0x3000 + 8 * i, (gpa == CODE ? OTHER_CODE : gpa) | 0x67);
		put64(m, OTHER_TABLES + 0x4000 + 8 * i, (DATA + (i ? gpa : 4096)) | 0x67);
	}
}

static void cr3_run(struct machine *m, struct x86_state *s, uint64_t cr4, uint64_t first, uint64_t second)
{
	tables_build(m);
	other_tables_build(m);
	map_write(m->map, CODE, cr3_code, (size_t)(cr3_other - cr3_code));
	map_write(m->map, OTHER_CODE, cr3_other, (size_t)(cr3_end - cr3_other));
	put64(m, DATA, 3);
	put64(m, DATA + 4096, 5);
	state_begin(s, false);
	s->cr4 |= cr4;
	s->gpr[REG_RBX] = first;
	s->gpr[REG_R9] = second;
	s->gpr[REG_RSI] = DATA;
	s->gpr[REG_RAX] = s->gpr[REG_RDI] = 0;
	s->gpr[REG_RCX] = 1000;
	run(m, s, s);
}

static void test_cr3(void **state)
{
	const uint64_t keep = 1ull << 63;

	for (unsigned k = 0; k < 2; k++) {
		struct machine m;
		struct x86_state *s;
		uint64_t cr4 = 0;
		machine_init(&m, k == 0);
		s = state_new(&m);
		if (cpu_model_has(m.model, FEATURE_PCID))
			cr4 = CR4_PCIDE;
		for (unsigned turn = 0; turn < 4; turn++) {
			uint64_t a = OTHER_TABLES | (cr4 && turn ? 2 : 0), b = TABLES;
			if (cr4 && turn & 2)
				a |= keep, b |= keep;
			cr3_run(&m, s, cr4, a, b);
			assert_int_equal(s->rip, CODE + (uint64_t)(cr3_other - cr3_code));
			assert_int_equal(s->cr3, b & ~keep);
			assert_int_equal(s->gpr[REG_RDX], b & ~keep);
			/* In each space its own code, its own data, and the carry that was set before. */
			assert_int_equal(s->gpr[REG_RAX], 500 * (3 + 1));
			assert_true(s->gpr[REG_RDI] == -500ull * (5 + 1));
		}
		if (k)
			assert_int_equal(interpreted(&m, X86_MOV_CR), 0);
		/* Bits that do not exist, and 63 without PCIDs: before anything changes. */
		cr3_run(&m, s, cr4, OTHER_TABLES | 1ull << cpu_model_phys_bits(m.model), TABLES);
		assert_int_equal(s->rip, HANDLERS + 16 * EXC_GP + 1);
		assert_int_equal(s->cr3, TABLES);
		cr3_run(&m, s, 0, OTHER_TABLES | keep, TABLES);
		assert_int_equal(s->rip, HANDLERS + 16 * EXC_GP + 1);
		assert_int_equal(s->cr3, TABLES);
		free(s);
		machine_fini(&m);
	}
}

/* --- the XSAVE family --- */

#define FROM (DATA + 0x1000)
#define TO (DATA + 0x5000)
#define XSTATE_CODE (CODE + 0x600)
#define XSTATE_BYTES 2688u

static const struct xstate_op { uint8_t opcode, digit; bool load, kernel; } xstate_ops[] = {
	{ 0xae, 5, true, false }, { 0xc7, 3, true, true },
	{ 0xae, 4, false, false }, { 0xae, 6, false, false }, { 0xc7, 4, false, false }, { 0xc7, 5, false, true },
};

/* An area that is to be loaded: what the header says of it may be wrong, its values mostly are no faults. */
static void area_make(struct machine *m, uint64_t *seed, uint64_t gva, uint64_t xcr0, bool pointers)
{
	uint64_t q[XSTATE_BYTES / 8];
	bool odd = rnd(seed) % 8 == 0;

	for (unsigned i = 0; i < sizeof q / 8; i++)
		q[i] = rnd(seed) | 1;
	if (!odd || rnd(seed) % 2)
		q[0] = 0x37f | (rnd(seed) & 0x3f) << 16 | (rnd(seed) & 0xff) << 32;	/* FCW, FSW's flags, tags */
	if (!pointers)
		q[0] &= UINT64_MAX >> 16, q[1] = q[2] = 0;
	q[3] = 0x1f80 | (rnd(seed) & 0x603f);
	if (odd && rnd(seed) % 2)
		q[3] ^= rnd(seed) % 2 ? 1ull << rnd(seed) % 20 : 0x1080;	/* IM, PM */
	for (unsigned i = 64; i < 72; i++)
		q[i] = 0;
	q[64] = rnd(seed) & xcr0;
	if (rnd(seed) % 2) {
		q[65] = xcr0 | 1ull << 63;
		if (rnd(seed) % 2)
			q[65] &= q[64] | rnd(seed);
	}
	if (rnd(seed) % 8 == 0)
		q[64 + rnd(seed) % 8] ^= 1ull << rnd(seed) % 10;
	if (gva == SUPERVISOR - 0x200) {	/* two pages that do not lie side by side */
		map_write(m->map, DATA + 0x1ffe00, q, 0x200);
		map_write(m->map, DATA, q + 64, sizeof q - 0x200);
	} else {
		map_write(m->map, gva >= DATA && gva < DATA + 0x8000 ? gva : FROM, q, sizeof q);
	}
}

static unsigned xstate_put(uint8_t *p, const struct xstate_op *op, unsigned base, bool wide)
{
	unsigned n = 0;

	if (wide)
		p[n++] = 0x48;
	p[n++] = 0x0f;
	p[n++] = op->opcode;
	p[n++] = (uint8_t)(op->digit << 3 | base);
	return n;
}

/* Loads from RSI, saves to RDI, tells flags; then the state is used, and there is a fault or the end. usable: in between
 * as well, which costs translated code the x87's pointers. */
static void xstate_code(struct machine *m, uint64_t *seed, bool user, bool touch, bool usable)
{
	static const uint8_t use[] = { 0x0f, 0x51, 0xdb },					/* sqrtps xmm3, xmm3 */
			     touches[] = { 0x4c, 0x8b, 0x3e, 0x4c, 0x8b, 0x3f, 0x4c, 0x89, 0x3f, 0x0f, 0x92, 0xc3 },
			     flags[] = { 0x39, 0xc0, 0xf9 }, tell[] = { 0x0f, 0x92, 0xc3 },	/* cmp, stc; setc bl */
			     dump[] = { 0x41, 0x0f, 0x11, 0x08, 0x41, 0xdb, 0x78, 0x10, 0x41, 0x0f, 0xae, 0x58, 0x20, 0xcc };
	uint8_t code[96];
	unsigned n = 0, rounds = 1 + rnd(seed) % 2;

#define PUT(bytes) (memcpy(code + n, bytes, sizeof bytes), n += sizeof bytes)
	if (touch)
		PUT(touches);
	for (unsigned i = 0; i < rounds; i++) {
		const struct xstate_op *in = &xstate_ops[rnd(seed) % 2], *out = &xstate_ops[2 + rnd(seed) % 4];
		if (user && rnd(seed) % 16)
			in = &xstate_ops[0], out = out->kernel ? &xstate_ops[3] : out;
		PUT(flags);
		if (usable && rnd(seed) % 2)
			PUT(use);
		n += xstate_put(code + n, in, 6, rnd(seed) % 2);
		if (usable && rnd(seed) % 2)
			PUT(use);
		n += xstate_put(code + n, out, 7, rnd(seed) % 2);
		PUT(tell);
	}
	PUT(dump);	/* movups [r8], xmm1; fstp [r8 + 16]; stmxcsr [r8 + 32]; int3 */
#undef PUT
	map_write(m->map, XSTATE_CODE, code, n);
	map_wrote(m->map, XSTATE_CODE, n);
}

static void xstate_make(struct machine *m, uint64_t *seed, struct x86_state *s)
{
	/* Usual, from page to page, from RAM's one end to its other, read-only, misaligned, absent, no address. */
	static const uint64_t from[] = { FROM, FROM, FROM, FROM + 0xc00, READ_ONLY + 0x1000, FROM, SUPERVISOR - 0x200, FROM + 8, ABSENT,
					 0x0000900000000000ull, ABSENT - 0x300 };
	static const uint64_t to[] = { TO, TO, TO, TO, TO + 0xe00, TO + 0xe00, READ_ONLY + 0x5000, TO + 32, ABSENT, ABSENT - 0x200 };
	bool user = rnd(seed) % 3 == 0, usual = rnd(seed) % 2, usable = rnd(seed) % 2;

	state_begin(s, false);
	s->xcr0 = cpu_model_xcr0_mask(m->model) & (rnd(seed) % 2 ? 7 : 0xe7);
	if (rnd(seed) % 16 == 0)
		s->xcr0 &= 3;
	if (rnd(seed) % 32 == 0)
		s->cr4 &= ~(uint64_t)CR4_OSXSAVE;
	if (rnd(seed) % 32 == 0)
		s->cr0 |= CR0_TS;
	s->gpr[REG_RSI] = usual ? FROM : PICK(seed, from);
	s->gpr[REG_RDI] = usual ? TO : PICK(seed, to);
	s->gpr[REG_R8] = TO + 0x3000;
	s->gpr[REG_RAX] = rnd(seed) % 2 ? ~0ull : rnd(seed);
	s->gpr[REG_RDX] = rnd(seed) % 2 ? 0 : rnd(seed);
	s->gpr[REG_RBX] = 0;
	s->fpu.mxcsr = 0x1f80 | (rnd(seed) & 0x603f);
	s->rip = XSTATE_CODE;
	if (user) {
		s->seg[SEG_CS] = (struct x86_segment){ .limit = ~0u, .selector = UCODE, .attr = 0xa0fb };
		s->seg[SEG_SS] = (struct x86_segment){ .limit = ~0u, .selector = UDATA, .attr = 0xc0f3 };
	}
	for (unsigned gpa = DATA; gpa < DATA + 0xa000; gpa += 0x1000)
		memset(ram(m, gpa), 0x5a, 0x1000);
	area_make(m, seed, s->gpr[REG_RSI], s->xcr0, !usable);
	xstate_code(m, seed, user, rnd(seed) % 4, usable);
}

/* Interpreted and translated, all ends alike: registers, faults, both areas, and what is in the vector registers. */
static void test_xstate(void **state)
{
	static const enum x86_op ops[] = { X86_XSAVE, X86_XSAVEOPT, X86_XSAVEC, X86_XSAVES, X86_XRSTOR, X86_XRSTORS };
	struct machine m[2];
	struct x86_state *s[2];

	for (unsigned k = 0; k < 2; k++) {
		machine_init(&m[k], k == 0);
		s[k] = state_new(&m[k]);
		tables_build(&m[k]);
	}
	for (unsigned i = 0; i < 6000; i++) {
		for (unsigned k = 0; k < 2; k++) {
			uint64_t seed = i + 1;
			for (unsigned n = 0; n < 10; n++)
				rnd(&seed);
			xstate_make(&m[k], &seed, s[k]);
			run(&m[k], s[k], s[k]);
		}
		state_compare(s[0], s[1], i);
		memory_compare(&m[0], &m[1], DATA, 0xa000);
		memory_compare(&m[0], &m[1], STACK, 0x3000);
	}
	for (unsigned i = 0; i < sizeof ops / sizeof *ops; i++)	/* many went on without it */
		if (cpu_model_has(m[0].model, FEATURE_XSAVES))
			assert_true(interpreted(&m[1], ops[i]) * 10 < interpreted(&m[0], ops[i]) * 9);
	for (unsigned k = 0; k < 2; k++) {
		free(s[k]);
		machine_fini(&m[k]);
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_tsc),
		cmocka_unit_test(test_pause),
		cmocka_unit_test(test_syscall),
		cmocka_unit_test(test_iret),
		cmocka_unit_test(test_cpuid),
		cmocka_unit_test(test_cpuid_quick),
		cmocka_unit_test(test_cr3),
		cmocka_unit_test(test_xstate),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
