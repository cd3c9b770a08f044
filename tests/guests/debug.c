/* For a debugger to look at (tests/e2e/gdb): known places in asm, and checks that the guest sees nothing of it. */
#include "guest.h"

uint64_t watched, untouched;
static uint8_t from[64] = "moved by rep movsb, one byte at each step", to[64];
extern uint8_t hot_loop[], hot_body[], syscall_target[], code_end[];
void hot_loop_run(void), call_loop_run(void), move_run(uint8_t *d, const uint8_t *s), syscall_run(void), iret_run(void);
uint64_t halt_run(void), flags_seen;

__asm__(".text\n"
	".globl hot_loop_run, hot_loop, hot_body, move_run, move_rep, move_after, syscall_run, syscall_insn\n"
	".globl syscall_target, syscall_after, iret_run, iret_insn, iret_target, halt_run, halt_insn, halt_after, code_end\n"
	".globl watched_write, watched_after\n"
	".globl call_loop_run, call_insn, call_site, far_function, far_body\n"
	"call_loop_run:\n"
	"	mov $3000, %edx\n"
	"call_insn:\n"
	"	call far_function\n"
	"call_site:\n"
	"	dec %rdx\n"
	"	jnz call_insn\n"
	"	ret\n"
	".balign 4096\n"
	"far_function:\n"
	"	lea 1(%rdx), %rax\n"
	"far_body:\n"
	"	lea 1(%rax), %rax\n"
	"	ret\n"
	"hot_loop_run:\n"
	"	push %rbx\n"
	"	xor %ebx, %ebx\n"
	"hot_loop:\n"
	"	inc %rbx\n"
	"	mov %rbx, %rcx\n"
	"hot_body:\n"
	"	lea (%rcx,%rbx), %rdx\n"
	"	cmp $3000, %rbx\n"
	"	jb hot_loop\n"
	"watched_write:\n"
	"	mov %rbx, watched\n"
	"watched_after:\n"
	"	nop\n"
	"	pop %rbx\n"
	"	ret\n"
	"move_run:\n"
	"	mov $41, %ecx\n"
	"move_rep:\n"
	"	rep movsb\n"
	"move_after:\n"
	"	ret\n"
	"syscall_run:\n"
	"	mov $7, %eax\n"
	"syscall_insn:\n"
	"	syscall\n"
	"syscall_after:\n"
	"	ret\n"
	"syscall_target:\n"
	"	jmp *%rcx\n"
	"iret_run:\n"
	"	mov %rsp, %rax\n"
	"	pushq $0x10\n"
	"	push %rax\n"
	"	pushfq\n"
	"	pushq $0x08\n"
	"	pushq $iret_target\n"
	"iret_insn:\n"
	"	iretq\n"
	"iret_target:\n"
	"	pushfq\n"
	"	popq flags_seen\n"
	"	ret\n"
	"halt_run:\n"
	"	sti\n"
	"halt_insn:\n"
	"	hlt\n"
	"halt_after:\n"
	"	cli\n"
	"	ret\n"
	"code_end:\n");

static uint32_t code_sum(void)
{
	uint32_t sum = 0;

	for (const uint8_t *p = hot_loop; p < code_end; p++)
		sum = sum * 31 + *p;
	return sum;
}

static volatile uint32_t ticks;
static void on_timer(struct trap_frame *f)
{
	ticks = ticks + 1;
	mmio_write32(LAPIC + 0xb0, 0);
}

static void halt_once(void)
{
	mmio_write32(LAPIC + 0xf0, 0x1ff);
	mmio_write32(LAPIC + 0x3e0, 0xb);
	irq_set_handler(0x50, on_timer);
	mmio_write32(LAPIC + 0x320, 0x50);
	mmio_write32(LAPIC + 0x380, 1000);
	while (!ticks)
		halt_run();
}

volatile uint32_t hold;		/* a debugger makes it wait here */
static volatile uint32_t ap_rounds;
static void ap_main(void)
{
	for (;;) {
		ap_rounds = ap_rounds + 1;
		__builtin_ia32_pause();
	}
}

int main(void)
{
	uint64_t dr6, dr7;

	trap_init();
	uint32_t sum = code_sum();
	wrmsr(0xc0000081, 0x0000000800000000ull);
	wrmsr(0xc0000082, (uint64_t)syscall_target);
	wrmsr(0xc0000084, 0);
	__asm__ volatile("mov %%dr6, %0" : "=r"(dr6));
	if (hold)
		print("holding\n");
	while (hold)
		__builtin_ia32_pause();
	hot_loop_run();
	call_loop_run();
	move_run(to, from);
	syscall_run();
	iret_run();
	halt_once();
	ap_run(1, ap_main);
	while (ap_rounds < 1000)
		__builtin_ia32_pause();
	CHECK(watched == 3000, "the loop ran 3000 times");
	CHECK(!untouched, "nobody wrote here");
	CHECK(to[40] == 'p' && !to[41], "the string was moved");
	CHECK(ticks >= 1, "the timer came");
	CHECK(code_sum() == sum, "the code is as it was");
	CHECK(!(flags_seen & 0x100), "no trap flag");
	uint64_t dr6_now;
	__asm__ volatile("mov %%dr6, %0" : "=r"(dr6_now));
	__asm__ volatile("mov %%dr7, %0" : "=r"(dr7));
	CHECK(dr6_now == dr6 && (dr7 & 0xff) == 0, "debug registers are as they were");
	return 0;
}
