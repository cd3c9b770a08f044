/*
 * Calls and returns that do not pair, or whose return site is not what it was: depth, stack switches, changed return
 * addresses, pages and modes; and interrupts in code that only calls or only returns.
 */
#include "guest.h"

static uint8_t big_stack[4 << 20] __attribute__((aligned(16)));
static uint8_t other_stack[65536] __attribute__((aligned(16)));

/* --- depth --- */

/* uint64_t deep(uint64_t n, void *stack): n nested calls; the sum 1..n, added on the way back. */
uint64_t deep(uint64_t n, void *stack);
__asm__(".globl deep\n"
	"deep: pushq %rbx; movq %rsp, %rbx; movq %rsi, %rsp; call 1f; movq %rbx, %rsp; popq %rbx; ret\n"
	"1: testq %rdi, %rdi; jz 2f; decq %rdi; call 1b; incq %rdi; addq %rdi, %rax; ret\n"
	"2: xorl %eax, %eax; ret\n");

static void depth(void)
{
	static const uint64_t n[] = { 1, 100, 4094, 4095, 4096, 4097, 8190, 8192, 12288, 200000 };
	bool ok = true;
	for (unsigned i = 0; i < sizeof n / sizeof *n; i++)
		ok &= deep(n[i], big_stack + sizeof big_stack) == n[i] * (n[i] + 1) / 2;
	for (uint64_t i = 4000; i < 4200; i++)
		ok &= deep(i, big_stack + sizeof big_stack) == i * (i + 1) / 2;
	CHECK(ok, "deep recursion");
}

/* --- other stacks --- */

static void *resume[5];
static __attribute__((noinline)) uint64_t dive(uint64_t n)
{
	if (!n)
		__builtin_longjmp(resume, 1);
	return dive(n - 1) + 1;
}
static volatile uint64_t rounds;
static void jumps(void)
{
	rounds = 0;
	if (__builtin_setjmp(resume))
		rounds++;
	if (rounds < 300)
		dive(rounds % 40);
	CHECK(rounds == 300, "longjmp out of nested calls");
	CHECK(deep(50, big_stack + sizeof big_stack) == 1275, "calls after that");
}

void stack_switch(uint64_t *from, uint64_t to);
__asm__(".globl stack_switch\n"
	"stack_switch: pushq %rbx; pushq %rbp; pushq %r12; pushq %r13; pushq %r14; pushq %r15; movq %rsp, (%rdi);"
	"movq %rsi, %rsp; popq %r15; popq %r14; popq %r13; popq %r12; popq %rbp; popq %rbx; ret\n");
static uint64_t main_rsp, co_rsp;
static volatile uint64_t co_sum;
static __attribute__((noinline)) uint64_t co_walk(uint64_t n)
{
	if (!n) {
		stack_switch(&co_rsp, main_rsp);
		return 1;
	}
	return co_walk(n - 1) + n;
}
static void co_main(void)
{
	for (uint64_t i = 0;; i++)
		co_sum += co_walk(i % 13);
}
static __attribute__((noinline)) uint64_t main_walk(uint64_t n)
{
	if (!n) {
		stack_switch(&main_rsp, co_rsp);
		return 1;
	}
	return main_walk(n - 1) + n;
}
static void coroutines(void)
{
	uint64_t *sp = (uint64_t *)(other_stack + sizeof other_stack - 64), want = 0, co_want = 0;
	bool ok = true;
	sp -= 7;
	sp[6] = (uint64_t)co_main;
	co_rsp = (uint64_t)sp;
	for (uint64_t i = 0; i < 500; i++) {
		ok &= main_walk(i % 7) == 1 + (i % 7) * (i % 7 + 1) / 2;
		want++;
		if (i)
			co_want += 1 + ((i - 1) % 13) * ((i - 1) % 13 + 1) / 2;
		ok &= co_sum == co_want;
	}
	CHECK(ok && want == 500, "two stacks in turn");
}

/* --- return addresses --- */

uint64_t elsewhere(uint64_t n), retpoline(uint64_t n), unbalanced(uint64_t n), pops(uint64_t n);
__asm__(".globl elsewhere, retpoline, unbalanced, pops\n"
	/* returns to another place than it was called from, now and then */
	"elsewhere: call 1f; movl $1, %eax; ret; 2: movl $2, %eax; ret\n"
	"1: testl $1, %edi; jz 3f; leaq 2b(%rip), %rax; movq %rax, (%rsp); 3: ret\n"
	/* an indirect jump by way of RET */
	"retpoline: leaq 4f(%rip), %rax; testl $2, %edi; jz 1f; leaq 5f(%rip), %rax; 1: call 3f; 2: pause; lfence; jmp 2b\n"
	"3: movq %rax, (%rsp); ret; 4: movl $4, %eax; ret; 5: movl $5, %eax; ret\n"
	/* a call that never returns, inside one that does */
	"unbalanced: pushq %rbx; movl %edi, %ebx; call 1f; leal (%rax,%rbx), %eax; popq %rbx; ret\n"
	"1: call 2f; 2: popq %rax; call 3f; subl $2b, %eax; ret; 3: call 4f; 4: addq $8, %rsp; ret\n"
	/* RET n */
	"pops: pushq %rbx; movq %rsp, %rbx; pushq $7; pushq $8; call 1f; subq %rsp, %rbx; leaq (%rax,%rbx), %rax; popq %rbx; ret\n"
	"1: movq 8(%rsp), %rax; ret $16\n");

static void addresses(void)
{
	bool ok = true, ok2 = true, ok3 = true, ok4 = true;
	for (uint64_t i = 0; i < 400; i++) {
		ok &= elsewhere(i % 5) == 1 + (i % 5 & 1);
		ok2 &= retpoline(i) == 4 + (i >> 1 & 1);
		ok3 &= unbalanced(i) == i;
		ok4 &= pops(i) == 8;
	}
	CHECK(ok, "return address changed by the callee");
	CHECK(ok2, "retpoline");
	CHECK(ok3, "return address popped as data");
	CHECK(ok4, "ret n");
}

extern uint8_t bad_ret_at[], bad_ret16_at[], bad_call_at[], bad_jmp_at[];
static uint64_t bad_rsp;
static void bad_ret(void *p)
{
	__asm__ volatile("pushq %0; movq %%rsp, %1; .globl bad_ret_at\nbad_ret_at: ret" : : "r"(1ull << 63), "m"(bad_rsp) : "memory");
}
static void bad_ret16(void *p)
{
	__asm__ volatile("pushq %0; movq %%rsp, %1; .globl bad_ret16_at\nbad_ret16_at: ret $16" : : "r"(1ull << 47), "m"(bad_rsp) : "memory");
}
static void bad_call(void *p)
{
	__asm__ volatile("movq %%rsp, %1; .globl bad_call_at\nbad_call_at: call *%0" : : "r"(~0ull << 46 >> 1), "m"(bad_rsp) : "memory");
}
static void bad_jmp(void *p)
{
	__asm__ volatile("movq %%rsp, %1; .globl bad_jmp_at\nbad_jmp_at: jmp *%0" : : "r"(1ull << 62), "m"(bad_rsp) : "memory");
}
static uint64_t fault_rsp;
static void fault_seen(struct trap_frame *f)
{
	fault_rsp = f->rsp;
	caught.vector = 13;
	caught.rip = f->rip;
	f->rip = try_rip;
	f->rsp = try_rsp;
}
static void not_canonical(void)
{
	static const struct { void (*fn)(void *); uint8_t *at; } t[] = {
		{ bad_ret, bad_ret_at }, { bad_ret16, bad_ret16_at }, { bad_call, bad_call_at }, { bad_jmp, bad_jmp_at } };
	bool ok = true;
	irq_set_handler(13, fault_seen);
	for (unsigned i = 0; i < 40; i++) {
		ok &= try(t[i % 4].fn, NULL) == 13 && caught.rip == (uint64_t)t[i % 4].at && fault_rsp == bad_rsp;
	}
	irq_set_handler(13, NULL);
	CHECK(ok, "branches to addresses that are not canonical fault before they begin");
}

/* --- pages --- */

#define GVA 0x62000000ull
typedef uint64_t caller_t(void (*callee)(void));
static uint8_t *page_a, *page_b;
static unsigned turn, how;

/* sub rsp, 8; call rdi; add rsp, 8; mov eax, v; ret */
static void caller_emit(uint8_t *p, uint32_t v)
{
	static const uint8_t code[] = { 0x48, 0x83, 0xec, 0x08, 0xff, 0xd7, 0x48, 0x83, 0xc4, 0x08, 0xb8, 0, 0, 0, 0, 0xc3 };
	memcpy(p, code, sizeof code);
	memcpy(p + 11, &v, 4);
}
static void map_page(uint8_t *page, uint64_t flags) { *page_entry(GVA, true) = (uint64_t)page | 3 | flags; }
static void plain(void) { }
static void remaps(void)
{
	turn++;
	map_page(turn & 1 ? page_b : page_a, 0);
	if (how)
		WRITE_CR(3, READ_CR(3));
	else
		invlpg(GVA);
}
static void rewrites(void) { *(volatile uint32_t *)(page_a + 11) = ++turn; }
static void rewrites_here(void) { *(volatile uint32_t *)(GVA + 11) = ++turn; }
static void forbids(void) { map_page(page_a, 1ull << 63), invlpg(GVA); }
static void call_forbids(void *p) { ((caller_t *)GVA)(forbids); }

static void pages(void)
{
	caller_t *f = (caller_t *)GVA;
	bool ok = true;
	page_a = page_alloc(), page_b = page_alloc();
	caller_emit(page_a, 1), caller_emit(page_b, 2);
	map_page(page_a, 0), invlpg(GVA);
	for (int i = 0; i < 20; i++)
		ok &= f(plain) == 1;
	for (how = 0; how < 2; how++) {
		turn = 0;
		for (unsigned i = 1; i < 100; i++)
			ok &= f(remaps) == 1 + (i & 1);
		map_page(page_a, 0), invlpg(GVA);
		ok &= f(plain) == 1;
	}
	CHECK(ok, "return to a page remapped since");
	ok = true, turn = 100;
	for (unsigned i = 0; i < 100; i++) {
		ok &= f(rewrites) == turn && turn == 101 + 2 * i;
		ok &= f(rewrites_here) == turn;
	}
	CHECK(ok, "return site rewritten by the callee");
	check(try(call_forbids, NULL) == 14 && caught.error == 0x11 && caught.cr2 == GVA + 6, "return to a page made NX", "");
	map_page(page_a, 0), invlpg(GVA);
}

/* An instruction that goes on in a page that is another one now; its own has not been touched. */
static void crossing(void)
{
	static const uint8_t head[] = { 0xb8, 0x11, 0x22 };
	uint32_t (*f)(void) = (uint32_t (*)(void))(GVA + 0x1000 - sizeof head);	/* mov eax, ...; ret */
	uint8_t *tail[2] = { page_alloc(), page_alloc() };
	uint64_t *entry = page_entry(GVA + 0x1000, true);
	bool ok = true;
	memcpy(page_a + 0x1000 - sizeof head, head, sizeof head);
	for (unsigned i = 0; i < 2; i++)
		tail[i][0] = (uint8_t)i, tail[i][1] = 0x44, tail[i][2] = 0xc3;
	for (unsigned i = 0; i < 100; i++) {
		*entry = (uint64_t)tail[i / 2 & 1] | 3;
		if (i & 1)
			invlpg(GVA + 0x1000);
		else
			WRITE_CR(3, READ_CR(3));
		for (unsigned k = 0; k < 3; k++)
			ok &= f() == (0x44002211u | (i / 2 & 1) << 16);
	}
	for (unsigned i = 0; i < 100; i++) {
		*entry = (uint64_t)tail[i & 1] | 3;
		invlpg(GVA + 0x1000);
		ok &= f() == (0x44002211u | (i & 1) << 16);
	}
	CHECK(ok, "an instruction whose second page is remapped");
}

/* One page at two addresses: which of them was called is seen by what CALL pushes. */
static void aliases(void)
{
	static const uint8_t code[] = { 0xe8, 0x01, 0, 0, 0, 0xc3, 0x48, 0x8b, 0x04, 0x24, 0xc3 };
	uint64_t other = GVA + 0x5000;
	bool ok = true;
	memcpy(page_b, code, sizeof code);	/* call 1f; ret; 1: mov rax, [rsp]; ret */
	map_page(page_b, 0), invlpg(GVA);
	*page_entry(other, true) = (uint64_t)page_b | 3;
	invlpg(other);
	for (unsigned i = 0; i < 200; i++) {
		uint64_t at = i % 3 ? GVA : other;
		ok &= ((uint64_t (*)(void))at)() == at + 5;
	}
	CHECK(ok, "the same code at two addresses");
}

/* --- modes --- */

void user_calls(void *p);
void ret_in_kernel(uint64_t rsp);
uint64_t kernel_rsp;
uint16_t cs_seen;
__asm__(".globl user_calls, ret_in_kernel\n"
	"user_calls: call 1f; movw %cs, cs_seen; testb $3, cs_seen; jz 2f; ret\n"
	"1: ud2; ret\n"
	"2: movq kernel_rsp, %rsp; popq %rbp; popq %rbx; ret\n"
	/* pops what user code has pushed, and comes back by the above */
	"ret_in_kernel: pushq %rbx; pushq %rbp; movq %rsp, kernel_rsp; movq %rdi, %rsp; ret\n");
static void user_trap(struct trap_frame *f)
{
	f->rip += 2;
	turn++;
}
static void modes(void)
{
	bool ok = true;
	irq_set_handler(6, user_trap);
	turn = 0;
	for (unsigned i = 0; i < 100; i++) {
		cs_seen = 0;
		try_user(user_calls, NULL);
		ok &= cs_seen == 0x2b;
	}
	check(ok && turn == 100, "user code returns to itself", "cs %x turn %u", (unsigned)cs_seen, turn);
	irq_set_handler(6, NULL);
}
static volatile unsigned kernel_seen;
static void kernel_trap(struct trap_frame *f)
{
	f->rip += 2;
	cs_seen = 0;
	ret_in_kernel(f->rsp);
	kernel_seen += cs_seen == 8;
}
static void kernel_returns(void)
{
	irq_set_handler(6, kernel_trap);
	for (unsigned i = 0; i < 100; i++)
		try_user(user_calls, NULL);
	CHECK(kernel_seen == 100, "RET in the kernel to where user code called");
	irq_set_handler(6, NULL);
}

/* --- interrupts --- */

volatile uint32_t stop;
void only_calls(void *stack), only_returns(void *stack);
__asm__(".globl only_calls, only_returns\n"
	/* calls itself, and starts its stack afresh when that is used up */
	"only_calls: pushq %rbx; movq %rsp, %rbx; movq %rdi, %rsp; leaq -4096(%rdi), %rsi; call 1f\n"
	"1: cmpl $0, stop; jnz 2f; cmpq %rsi, %rsp; cmovbq %rdi, %rsp; call 1b\n"
	"2: movq %rbx, %rsp; popq %rbx; ret\n"
	/* returns to itself for ever */
	"only_returns: pushq %rbx; movq %rsp, %rbx; leaq 1f(%rip), %rax\n"
	"1: cmpl $0, stop; jnz 2f; leaq -8(%rdi), %rsp; movq %rax, (%rsp); ret\n"
	"2: movq %rbx, %rsp; popq %rbx; ret\n");
static void timer_fired(struct trap_frame *f)
{
	stop = 1;
	mmio_write32(LAPIC + 0xb0, 0);
}
static void timer_start(void)
{
	stop = 0;
	mmio_write32(LAPIC + 0xf0, 0x1ff);
	mmio_write32(LAPIC + 0x3e0, 0xb);
	mmio_write32(LAPIC + 0x320, 0x50);
	mmio_write32(LAPIC + 0x380, 1000000);
	__asm__ volatile("sti");
}
static void interrupts(void)
{
	irq_set_handler(0x50, timer_fired);
	timer_start();
	only_calls(other_stack + sizeof other_stack);
	CHECK(stop == 1, "an interrupt ends calls without a loop");
	timer_start();
	only_returns(other_stack + sizeof other_stack);
	CHECK(stop == 1, "an interrupt ends returns without a loop");
	__asm__ volatile("cli");
}

int main(void)
{
	trap_init();
	depth();
	jumps();
	coroutines();
	addresses();
	not_canonical();
	pages();
	crossing();
	aliases();
	modes();
	kernel_returns();
	interrupts();
	depth();
	return 0;
}
