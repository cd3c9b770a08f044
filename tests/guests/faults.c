/* Exceptions and privilege: vectors, error codes, frames, debug traps, shadows, system calls. */
#include "guest.h"

static void div_zero(void *p) { __asm__ volatile("xorl %%ecx, %%ecx; divl %%ecx" : : : "eax", "ecx", "edx"); }
static void div_overflow(void *p)
{
	__asm__ volatile("movl $1, %%edx; movl $1, %%ecx; divl %%ecx" : : : "eax", "ecx", "edx");
}
static void idiv_min(void *p)
{
	__asm__ volatile("movl $0x80000000, %%eax; cltd; movl $-1, %%ecx; idivl %%ecx" : : : "eax", "ecx", "edx");
}
static void undefined(void *p) { __asm__ volatile("ud2"); }
static void breakpoint(void *p) { __asm__ volatile("int3"); }
static void do_int(void *p) { __asm__ volatile("int $0x90"); }
static void do_hlt(void *p) { __asm__ volatile("hlt"); }
static void do_cli(void *p) { __asm__ volatile("cli"); }
static void bad_msr(void *p) { rdmsr(0xdead0000); }
static void msr(void *p) { rdmsr(0x1b); }
static void bad_segment(void *p) { __asm__ volatile("movw %w0, %%ds" : : "r"(0x1f8)); }
static void null_ss(void *p) { __asm__ volatile("movw %w0, %%ss" : : "r"(3)); }
static void absent_segment(void *p) { __asm__ volatile("movw %w0, %%ds" : : "r"(0x60)); }
static void bad_cr4(void *p) { WRITE_CR(4, READ_CR(4) | 1ull << 40); }
static void bad_cr0(void *p) { WRITE_CR(0, (READ_CR(0) | 0x20000000ull) & ~0x40000000ull); }
static void drop_pae(void *p) { WRITE_CR(4, READ_CR(4) & ~0x20ull); }
static void stack_noncanonical(void *p)
{
	__asm__ volatile("movq %%rsp, %%rbx; movq %0, %%rsp; pushq %%rax" : : "r"(0x0000900000000000ull) : "rbx");
}
static void jump_noncanonical(void *p) { __asm__ volatile("jmp *%0" : : "r"(0x0000900000000000ull)); }
static void lock_reg(void *p) { __asm__ volatile(".byte 0xf0, 0x01, 0xc0"); }
static void too_long(void *p) { __asm__ volatile(".fill 15, 1, 0x66; nop"); }
static void movaps_odd(void *p)
{
	static uint8_t buf[64] __attribute__((aligned(16)));
	__asm__ volatile("movaps (%0), %%xmm0" : : "r"(buf + 1));
}
static void sse_ts(void *p) { __asm__ volatile("xorps %xmm0, %xmm0"); }
static void misaligned(void *p)
{
	static uint64_t buf[2];
	(void)*(volatile uint32_t *)((char *)buf + 1);
}
static void xm(void *p)
{
	uint32_t csr = 0x1f80 & ~0x200u;	/* zero-divide unmasked */
	__asm__ volatile("ldmxcsr %0; xorps %%xmm1, %%xmm1; pcmpeqd %%xmm0, %%xmm0; psrld $25, %%xmm0;"
			 "pslld $23, %%xmm0; divss %%xmm1, %%xmm0" : : "m"(csr));
}
static void mf(void *p)
{
	uint16_t cw = 0x37f & ~4;
	__asm__ volatile("fninit; fldcw %0; fld1; fldz; fdivrp; fwait" : : "m"(cw));
}

/* --- segment bases, selectors, the TSC --- */

static uint64_t base_value, base_seen;
static void wrfsbase(void *p) { __asm__ volatile("wrfsbase %0" : : "r"(*(uint64_t *)p)); }
static void fs_round(void *p)
{
	register uint64_t in __asm__("r14") = base_value, out __asm__("r15");
	__asm__ volatile("wrfsbase %1; rdfsbase %0" : "=r"(out) : "r"(in));
	base_seen = out;
}
static void fs_round32(void *p)
{
	__asm__ volatile("wrfsbase %k1; rdfsbase %0" : "=r"(base_seen) : "r"(base_value));
}
static void rdfsbase32(void *p)
{
	uint64_t v = ~0ull;
	__asm__ volatile("wrfsbase %1; rdfsbase %k0" : "+r"(v) : "r"(base_value));
	base_seen = v;
}
static void gs_round(void *p)
{
	uint64_t old;
	__asm__ volatile("rdgsbase %0; wrgsbase %2; rdgsbase %1; wrgsbase %0" : "=&r"(old), "=&r"(base_seen) : "r"(base_value));
}
static void do_rdtsc(void *p) { rdtsc(); }
static void do_rdtscp(void *p) { __asm__ volatile("rdtscp" : : : "rax", "rcx", "rdx"); }

static void bases(void)
{
	uint64_t bad = 0x0000800000000000ull, cr4 = READ_CR(4), rcx = 0, rax, rdx, cs;

	base_value = 0xffff800012345678ull;
	WRITE_CR(4, cr4 & ~0x10000ull);
	check(try(fs_round, 0) == 6 && try_user(gs_round, 0) == 6, "WRFSBASE without CR4.FSGSBASE is #UD", "");
	WRITE_CR(4, cr4 | 0x10000);
	CHECK(try(fs_round, 0) == -1 && base_seen == base_value, "WRFSBASE, RDFSBASE");
	CHECK(try_user(gs_round, 0) == -1 && base_seen == base_value, "WRGSBASE, RDGSBASE at CPL 3");
	CHECK(try(fs_round32, 0) == -1 && base_seen == 0x12345678, "the 32-bit form loads a zero-extended base");
	CHECK(try(rdfsbase32, 0) == -1 && base_seen == 0x12345678, "and stores the lower half");
	check(try(wrfsbase, &bad) == 13 && try_user(wrfsbase, &bad) == 13, "a non-canonical base is #GP", "");
	WRITE_CR(4, cr4 & ~0x10000ull);
	check(try(fs_round, 0) == 6, "the same code is #UD again", "");
	WRITE_CR(4, cr4);
	wrmsr(0xc0000100, 0);
	__asm__ volatile("movq $-1, %%r15; movl %%cs, %%r15d; movq %%r15, %0" : "=r"(cs) : : "r15");
	CHECK(cs == 8 || cs == 16 || cs < 0x100, "a selector in a 32-bit register is zero-extended");
	__asm__ volatile("movq $-1, %0; movw %%cs, %w0" : "=&r"(rax));
	CHECK(rax == (0xffffffffffff0000ull | cs), "in a 16-bit one it leaves the rest");
	__asm__ volatile("movq $-1, %%r14; movw %%cs, %%r14w; movq %%r14, %0" : "=r"(rax) : : "r14");
	CHECK(rax == (0xffffffffffff0000ull | cs), "of the new registers too");
	rdx = ~0ull;
	__asm__ volatile("movw %%cs, %0" : "+m"(rdx));
	CHECK(rdx == (0xffffffffffff0000ull | cs), "and 16 bits of memory");
	uint64_t t = rdtsc();
	wrmsr(0xc0000103, 0x1234567);
	__asm__ volatile("rdtscp" : "=a"(rax), "=d"(rdx), "=c"(rcx));
	CHECK(rcx == 0x1234567 && !(rax >> 32) && (rdx << 32 | rax) >= t && rdtsc() >= (rdx << 32 | rax), "RDTSCP");
	WRITE_CR(4, cr4 | 4);
	check(try(do_rdtsc, 0) == -1 && try_user(do_rdtsc, 0) == 13 && try_user(do_rdtscp, 0) == 13, "CR4.TSD", "");
	WRITE_CR(4, cr4 & ~4ull);
	check(try_user(do_rdtsc, 0) == -1 && try_user(do_rdtscp, 0) == -1, "and without", "");
}

static void vectors(void)
{
	static const struct { const char *name; void (*fn)(void *); bool user; int vector; int64_t error; } t[] = {
		{ "divide by zero", div_zero, false, 0, 0 },
		{ "divide overflow", div_overflow, true, 0, 0 },
		{ "idiv of the most negative number", idiv_min, false, 0, 0 },
		{ "ud2", undefined, false, 6, 0 },
		{ "int3 in user mode", breakpoint, true, 3, 0 },
		{ "int to a gate of DPL 0 from user mode", do_int, true, 13, 0x90 * 8 + 2 },
		{ "hlt in user mode", do_hlt, true, 13, 0 },
		{ "cli at IOPL 3 in user mode", do_cli, true, -1, 0 },
		{ "unknown MSR", bad_msr, false, 13, 0 },
		{ "rdmsr in user mode", msr, true, 13, 0 },
		{ "selector past the GDT", bad_segment, false, 13, 0x1f8 },
		{ "segment not present", absent_segment, false, 11, 0x60 },
		{ "null SS with the wrong RPL", null_ss, false, 13, 0 },
		{ "reserved CR4 bit", bad_cr4, false, 13, 0 },
		{ "CR0.NW without CD", bad_cr0, false, 13, 0 },
		{ "PAE cleared in long mode", drop_pae, false, 13, 0 },
		{ "non-canonical jump", jump_noncanonical, false, 13, 0 },
		{ "LOCK on a register", lock_reg, false, 6, 0 },
		{ "16-byte instruction", too_long, false, 13, 0 },
		{ "movaps misaligned", movaps_odd, false, 13, 0 },
		{ "SIMD exception", xm, false, 19, 0 },
		{ "x87 exception", mf, false, 16, 0 },
	};
	for (unsigned i = 0; i < sizeof t / sizeof *t; i++) {
		int64_t v = (t[i].user ? try_user : try)(t[i].fn, NULL);
		check(v == t[i].vector && (v < 0 || (int64_t)caught.error == t[i].error), t[i].name,
		      "expected vector %d error %lx", t[i].vector, t[i].error);
		uint32_t csr = 0x1f80;
		__asm__ volatile("fninit; ldmxcsr %0" : : "m"(csr));
	}
	WRITE_CR(0, READ_CR(0) | 8);
	check(try(sse_ts, NULL) == 7, "SSE with CR0.TS", "");
	__asm__ volatile("clts");
	WRITE_CR(4, READ_CR(4) & ~0x200ull);
	check(try(sse_ts, NULL) == 6, "SSE without OSFXSR", "");
	WRITE_CR(4, READ_CR(4) | 0x200);
	check(try(misaligned, NULL) == -1, "misaligned read in the kernel", "");
}

static volatile unsigned steps;
static volatile uint64_t dr6, db_rip[8], db_dr6[8];
static void on_db(struct trap_frame *f)
{
	__asm__ volatile("mov %%dr6, %0" : "=r"(dr6));
	__asm__ volatile("mov %0, %%dr6" : : "r"(0xffff0ff0ull));
	if (steps < 8) {
		db_rip[steps] = f->rip;
		db_dr6[steps] = dr6;
	}
	steps++;
	if (steps > 100)
		f->rflags &= ~0x100ull;
	f->rflags |= 0x10000;
}
static void on_bp(struct trap_frame *f) { steps++; (void)f; }

/* ICEBP is a trap of its own: no single step is told with it, but breakpoints that MOV SS has put off are. */
static void icebp(void)
{
	static volatile uint32_t selector = 0x10;
	extern char icebp_after[];
	steps = 0;
	__asm__ volatile("pushfq; orl $0x100, (%%rsp); popfq; movw %%ss, %%ax; movw %%ax, %%ss; .byte 0xf1;"
			 "icebp_after: nop; pushfq; andl $~0x100, (%%rsp); popfq" : : : "memory", "cc", "eax");
	check(steps == 6 && db_dr6[1] == 0xffff0ff0 && db_rip[1] == (uint64_t)icebp_after, "ICEBP behind MOV SS with TF",
	      "%u steps, DR6 %lx", steps, db_dr6[1]);
	steps = 0;
	__asm__ volatile("mov %0, %%dr0; mov %1, %%dr7" : : "r"(&selector), "r"(0x00070402ull));
	__asm__ volatile("movw %0, %%ss; .byte 0xf1" : : "m"(selector));
	check(steps == 1 && db_dr6[0] == 0xffff0ff1, "ICEBP tells the breakpoint of a MOV SS", "%u, DR6 %lx", steps, db_dr6[0]);
	__asm__ volatile("mov %0, %%dr7" : : "r"(0x400ull));
	steps = 0;
	__asm__ volatile("pushfq; orl $0x100, (%%rsp); popfq; hlt; nop; pushfq; andl $~0x100, (%%rsp); popfq"
			 : : : "memory", "cc");
	CHECK(steps == 5 && (db_dr6[0] & 0x4000), "a single step ends HLT");
}

static volatile uint32_t watched;
static void debug(void)
{
	irq_set_handler(1, on_db);
	steps = 0;
	__asm__ volatile("pushfq; orl $0x100, (%%rsp); popfq; nop; nop; nop; pushfq; andl $~0x100, (%%rsp); popfq"
			 : : : "memory", "cc");
	CHECK(steps == 6, "single step counts instructions");
	CHECK(dr6 & 0x4000, "DR6.BS set");
	steps = 0;
	__asm__ volatile("pushfq; orl $0x100, (%%rsp); popfq; movw %%ss, %%ax; movw %%ax, %%ss; nop; nop;"
			 "pushfq; andl $~0x100, (%%rsp); popfq" : : : "memory", "cc", "eax");
	CHECK(steps == 6, "MOV SS holds the trap for one instruction");
	icebp();
	steps = 0;
	__asm__ volatile("mov %0, %%dr0; mov %1, %%dr7" : : "r"(&watched), "r"(0x000d0002ull | 0x400));
	watched = 5;
	CHECK(steps == 1 && (dr6 & 1), "data breakpoint on write");
	steps = 0;
	(void)watched;
	CHECK(steps == 0, "no breakpoint on read");
	extern char break_here[];
	__asm__ volatile("mov %0, %%dr0; mov %1, %%dr7" : : "r"(break_here), "r"(0x402ull));
	__asm__ volatile(".globl break_here\nbreak_here: nop");
	CHECK(steps == 1 && (dr6 & 1), "execution breakpoint, once, with RF");
	__asm__ volatile("mov %0, %%dr7" : : "r"(0x400ull));
	irq_set_handler(1, NULL);
	irq_set_handler(3, on_bp);
	steps = 0;
	breakpoint(NULL);
	CHECK(steps == 1, "int3 returns after itself");
	irq_set_handler(3, NULL);
}

static volatile bool called;
static volatile uint64_t sys_rcx, sys_r11, sys_cs, sys_flags;
extern char syscall_entry[];
__asm__(".text\nsyscall_entry:\n"
	"movq %rcx, sys_rcx\nmovq %r11, sys_r11\nmovw %cs, %ax\nmovw %ax, sys_cs\nmovb $1, called\n"
	"movq %rsp, %rax\nmovabs $sys_stack + 4096, %rsp\npushfq\npopq sys_flags\nmovq %rax, %rsp\nsysretq\n"
	".bss\n.balign 16\nsys_stack: .skip 4096\n.text\n");
static void do_syscall(void *p) { __asm__ volatile("stc; syscall" : : : "rcx", "r11", "rax", "memory", "cc"); }

/* A thousand calls with flags, and AC among them, that SFMASK takes away and SYSRET brings back. */
static volatile bool flags_lost;
static void do_syscalls(void *p)
{
	for (uint64_t i = 0; i < 1000; i++) {
		uint64_t set = 0x202 | (i & 1) | (i & 2) << 1 | (i & 4) << 4 | (i & 8) << 4 | (i & 16) << 7 |
			       (i % 10 == 9 ? 0x40000 : 0), got, in = i, out;
		__asm__ volatile("push %3\npopfq\nsyscall\npushfq\npop %0\npush $0x202\npopfq"
				 : "=&r"(got), "=b"(out) : "1"(in), "r"(set) : "rcx", "r11", "rax", "memory", "cc");
		flags_lost |= (got & 0x408c5) != (set & 0x408c5) || (sys_r11 & 0x408c5) != (set & 0x408c5) ||
			      out != in || (sys_flags & 0x40001);
	}
}

/* SYSRET to a non-canonical RCX: #GP(0), still in the kernel. */
static void bad_sysret(void *p)
{
	__asm__ volatile("mov %0, %%rcx\nmov $0x202, %%r11d\nsysretq" : : "r"(1ull << 47) : "rcx", "r11");
}

static void swap_gs(void)
{
	uint64_t gs = rdmsr(0xc0000101), kernel = rdmsr(0xc0000102);

	wrmsr(0xc0000102, 0x12345000);
	__asm__ volatile("swapgs");
	CHECK(rdmsr(0xc0000101) == 0x12345000 && rdmsr(0xc0000102) == gs, "swapgs swaps");
	__asm__ volatile("swapgs");
	CHECK(rdmsr(0xc0000101) == gs && rdmsr(0xc0000102) == 0x12345000, "swapgs swaps back");
	wrmsr(0xc0000102, kernel);
}

static void syscalls(void)
{
	wrmsr(0xc0000081, 0x0023000800000000ull);
	wrmsr(0xc0000082, (uint64_t)syscall_entry);
	wrmsr(0xc0000084, 0x700);
	int64_t v = try_user(do_syscall, NULL);
	CHECK(v == -1 && called, "syscall and sysret");
	CHECK(sys_cs == 8 && (sys_r11 & 1) && sys_rcx > 0x100000, "syscall saves RIP and flags");
	wrmsr(0xc0000084, 0x40fd5);
	CHECK(try_user(do_syscalls, NULL) == -1 && !flags_lost, "a thousand system calls keep RBX and flags");
	check(try(bad_sysret, NULL) == 13, "sysret to a non-canonical address", "");
	swap_gs();
	wrmsr(0xc0000080, rdmsr(0xc0000080) & ~1ull);
	check(try_user(do_syscall, NULL) == 6, "syscall without SCE", "");
	wrmsr(0xc0000080, rdmsr(0xc0000080) | 1);
}

static void arithmetic(void)
{
	uint64_t r, c;
	__asm__ volatile("movq %2, %%rax; imulq %3; setc %b1; movq %%rdx, %0"
			 : "=r"(r), "=r"(c) : "r"(0x7fffffffffffffffll), "r"(4ll) : "rax", "rdx", "cc");
	CHECK(r == 1 && (c & 1), "imul overflow");
	uint8_t buf[32] = { 0 };
	uint64_t di = (uint64_t)buf, cx = 10;
	__asm__ volatile("cld; rep stosb" : "+D"(di), "+c"(cx) : "a"(7) : "memory");
	CHECK(cx == 0 && di == (uint64_t)buf + 10 && buf[9] == 7 && buf[10] == 0, "rep stosb");
	cx = 32;
	di = (uint64_t)buf;
	__asm__ volatile("repe scasb" : "+D"(di), "+c"(cx) : "a"(7) : "cc");
	CHECK(cx == 21, "repe scasb stops");
	uint64_t old[2] = { 1, 2 } , ok;
	uint64_t cell[2] __attribute__((aligned(16))) = { 1, 2 };
	__asm__ volatile("lock cmpxchg16b %1; setz %b0" : "=q"(ok), "+m"(cell) : "a"(old[0]), "d"(old[1]), "b"(3ull), "c"(4ull) : "cc");
	CHECK((ok & 1) && cell[0] == 3 && cell[1] == 4, "cmpxchg16b");
}
static uint64_t rep_regs[2];
static void on_pf_save(struct trap_frame *f) { rep_regs[0] = f->rdi; rep_regs[1] = f->rcx; *page_entry(0x50001000, true) = 0x50000000; f->rip = try_rip; f->rsp = try_rsp; caught.vector = 14; caught.cr2 = READ_CR(2); }
void rep_fault(void *p);
void rep_fault(void *p)
{
	uint64_t *a = p;
	irq_set_handler(14, on_pf_save);
	uint64_t di = a[0], cx = a[1];
	/* the handler leaves through try's exit; what it saw comes back through rep_regs */
	__asm__ volatile("cld; rep stosb" : "+D"(di), "+c"(cx) : "a"(7) : "memory");
}

int main(void)
{
	trap_init();
	vectors();
	bases();
	check(try(stack_noncanonical, NULL) == 8, "#SS on a bad stack becomes #DF on its own stack", "");
	debug();
	syscalls();
	struct { uint64_t di, cx; } at = { 0x50000ff0, 64 };
	*page_entry(0x50000000, true) = (uint64_t)page_alloc() | 3;
	*page_entry(0x50001000, true) = 0;
	invlpg(0x50001000);
	try(rep_fault, &at);
	irq_set_handler(14, NULL);
	CHECK(caught.vector == 14 && rep_regs[1] == 48 && rep_regs[0] == 0x50001000, "rep stosb faults with exact counts");
	arithmetic();
	return 0;
}
