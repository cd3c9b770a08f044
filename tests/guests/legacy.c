/*
 * The old modes, entered from long mode and left again: compatibility mode, 32-bit protected mode without
 * paging, with 32-bit paging and with PAE, 16-bit protected mode, real mode, V86, and a task switch.
 * legacy_run() leaves long mode, calls a 32-bit function and comes back.
 */
#include "guest.h"

uint32_t legacy_call(void (*fn)(void));
uint32_t compat_call(void (*fn)(void));
extern char pm_real[], pm_flat[], pm_paging32[], pm_pae[], pm_v86[], pm_task[], pm_seg16[], pm_limits[], compat_code[];
extern volatile uint32_t legacy_out[16];

__asm__(
"	.text\n"
"	.code64\n"
/* eax legacy_call(fn): long mode -> 32-bit protected mode, paging off; fn; and back */
"	.globl legacy_call\n"
"legacy_call:\n"
"	pushq %rbx\n	pushq %rbp\n	pushq %r12\n	pushq %r13\n	pushq %r14\n	pushq %r15\n"
"	sidt legacy_idt\n"
"	movq %cr4, %rax\n	movl %eax, legacy_cr4\n"
"	movq %rsp, legacy_rsp\n"
"	movl %edi, legacy_fn\n"
"	ljmp *legacy_enter\n"
"	.code32\n"
"legacy_enter32:\n"
"	movl $0x20, %eax\n	movl %eax, %ds\n	movl %eax, %es\n	movl %eax, %ss\n"
"	movl %cr0, %eax\n	andl $0x7fffffff, %eax\n	movl %eax, %cr0\n"
"	movl $0xc0000080, %ecx\n	rdmsr\n	andl $~0x100, %eax\n	wrmsr\n"
"	movl legacy_rsp, %esp\n"
"	call *legacy_fn\n"
"	movl %eax, legacy_result\n"
"	movl legacy_cr4, %eax\n	movl %eax, %cr4\n"
"	movl $boot_pml4, %eax\n	movl %eax, %cr3\n"
"	movl $0xc0000080, %ecx\n	rdmsr\n	orl $0x100, %eax\n	wrmsr\n"
"	movl %cr0, %eax\n	orl $0x80000000, %eax\n	movl %eax, %cr0\n"
"	ljmp $0x08, $legacy_back\n"
"	.code64\n"
"legacy_back:\n"
"	movl $0x10, %eax\n	movl %eax, %ds\n	movl %eax, %es\n	movl %eax, %ss\n"
"	movq legacy_rsp, %rsp\n"
"	lidt legacy_idt\n"
"	andb $~2, boot_tss_desc + 5\n"
"	movl $0x40, %eax\n	ltr %ax\n"
"	movl legacy_result, %eax\n"
"	popq %r15\n	popq %r14\n	popq %r13\n	popq %r12\n	popq %rbp\n	popq %rbx\n"
"	ret\n"
/* eax compat_call(fn): stays in long mode, runs fn as 32-bit code */
"	.globl compat_call\n"
"compat_call:\n"
"	pushq %rbx\n	pushq %rbp\n"
"	movq %rsp, legacy_rsp\n"
"	movl %edi, legacy_fn\n"
"	ljmp *compat_enter\n"
"	.code32\n"
"compat32:\n"
"	call *legacy_fn\n"
"	ljmp $0x08, $compat_back\n"
"	.code64\n"
"compat_back:\n"
"	movq legacy_rsp, %rsp\n"
"	popq %rbp\n	popq %rbx\n"
"	ret\n"
"	.code32\n"
"compat_code:\n"
"	movl $0x7fffffff, %eax\n"
"	incl %eax\n"		/* 0x40: REX in 64-bit code */
"	pushl %eax\n	popl %ecx\n"
"	movl $legacy_out, %edx\n"
"	movl %ecx, (%edx)\n"
"	ret\n"
/* plain 32-bit arithmetic and BCD */
"pm_flat:\n"
"	movb $0x79, %al\n	addb $0x35, %al\n	daa\n	movzbl %al, %eax\n	movl %eax, legacy_out\n"
"	movw $0x0309, %ax\n	aad\n	movzwl %ax, %eax\n	movl %eax, legacy_out + 4\n"
"	movb $77, %al\n	aam\n	movzwl %ax, %eax\n	movl %eax, legacy_out + 8\n"
"	pushal\n	popal\n"
"	movl $0x12345678, %eax\n	pushl %ebx\n	movl $legacy_out, %ebx\n	xlat\n	popl %ebx\n"
"	movl $1, %eax\n	ret\n"
/* 32-bit paging with a 4 MiB page and one 4 KiB page */
"pm_paging32:\n"
"	movl $legacy_pd, %edi\n	movl $0x83, %eax\n	movl $1024, %ecx\n"
"1:	movl %eax, (%edi)\n	addl $4, %edi\n	addl $0x400000, %eax\n	loop 1b\n"
"	movl $legacy_pt + 3, legacy_pd + 4 * 0x100\n"		/* 1 GiB: one small page showing legacy_out */
"	movl $legacy_out, %eax\n	andl $~0xfff, %eax\n	orl $3, %eax\n	movl %eax, legacy_pt\n"
"	movl $0x10, %eax\n	movl %eax, %cr4\n"		/* PSE, no PAE */
"	movl $legacy_pd, %eax\n	movl %eax, %cr3\n"
"	movl %cr0, %eax\n	orl $0x80000000, %eax\n	movl %eax, %cr0\n"
"	jmp 2f\n2:\n"
"	movl $legacy_out, %eax\n	andl $0xfff, %eax\n	movl $0x32323232, 0x40000000(%eax)\n"
"	movl legacy_out, %ebx\n"
"	movl legacy_pt, %ecx\n	andl $0x60, %ecx\n	movl %ecx, legacy_out + 4\n"
"	movl %ebx, legacy_out\n"
"	movl %cr0, %eax\n	andl $0x7fffffff, %eax\n	movl %eax, %cr0\n"
"	movl $2, %eax\n	ret\n"
/* PAE without long mode */
"pm_pae:\n"
"	movl $boot_pd + 1, legacy_pdpt\n	movl $0, legacy_pdpt + 4\n"
"	movl $boot_pd + 0x1001, legacy_pdpt + 8\n	movl $boot_pd + 0x2001, legacy_pdpt + 16\n"
"	movl $boot_pd + 0x3001, legacy_pdpt + 24\n"
"	movl $0x20, %eax\n	movl %eax, %cr4\n"
"	movl $legacy_pdpt, %eax\n	movl %eax, %cr3\n"
"	movl %cr0, %eax\n	orl $0x80000000, %eax\n	movl %eax, %cr0\n"
"	jmp 3f\n3:\n"
"	movl 0xfee00030, %eax\n	movl %eax, legacy_out\n"
"	movl %cr0, %eax\n	andl $0x7fffffff, %eax\n	movl %eax, %cr0\n"
"	movl $3, %eax\n	ret\n"
/* real mode: segments, 16-bit wrap, an interrupt through the IVT, and unreal limits */
"pm_real:\n"
"	movl $real_code, %esi\n	movl $0x7000, %edi\n	movl $real_end - real_code, %ecx\n	rep movsb\n"
"	movl %esp, real_esp\n"
"	lidt real_idt\n"
"	ljmp $0x50, $0x7000\n"
"real_return:\n"
"	movl $0x20, %eax\n	movl %eax, %ds\n	movl %eax, %es\n	movl %eax, %ss\n"
"	movl real_esp, %esp\n"
"	movzwl 0x6000, %eax\n	movl %eax, legacy_out\n"
"	movzwl 0x6002, %eax\n	movl %eax, legacy_out + 4\n"
"	movl 0x6004, %eax\n	movl %eax, legacy_out + 8\n"
"	movzwl 0x6008, %eax\n	movl %eax, legacy_out + 12\n"
"	movl $4, %eax\n	ret\n"
"	.code16\n"
"real_code:\n"
"	movw $0x58, %ax\n	movw %ax, %ss\n"
"	movl %cr0, %eax\n	andl $~1, %eax\n	movl %eax, %cr0\n"
"	ljmp $0x700, $(real_16 - real_code)\n"
"real_16:\n"
"	xorw %ax, %ax\n	movw %ax, %ss\n	movw $0x6f00, %sp\n"
"	movw %ax, %es\n"
"	movw $(real_int - real_code), %es:(4 * 0x77)\n	movw $0x700, %es:(4 * 0x77 + 2)\n"
"	movw $0x600, %ax\n	movw %ax, %ds\n"		/* DS base 0x6000 */
"	movw $0x1111, 0\n"
"	int $0x77\n"
"	movl $0xaabbccdd, %eax\n	movl %eax, 4\n"
"	movw $0xffff, %ax\n	addw $1, %ax\n	pushfw\n	popw %ax\n	andw $0x41, %ax\n	movw %ax, 8\n"
"	lgdtl %cs:(real_gdt - real_code)\n"
"	movl %cr0, %eax\n	orl $1, %eax\n	movl %eax, %cr0\n"
"	ljmpl $0x18, $real_return\n"
"real_int:\n"
"	movw $0x2222, 2\n	iretw\n"
"real_gdt:	.word 0x67\n	.long boot_gdt\n"
"real_end:\n"
"	.code32\n"
/* 16-bit protected mode stack and code segment */
"pm_seg16:\n"
"	movl %esp, real_esp\n"
"	movl $seg16_code, %esi\n	movl $0x7200, %edi\n	movl $64, %ecx\n	rep movsb\n"
"	ljmp $0x50, $0x7200\n"
"	.code16\n"
"seg16_code:\n"
"	movw $0x58, %ax\n	movw %ax, %ss\n	movl $0x12346f00, %esp\n"
"	pushw $0x4242\n"			/* uses SP only: the upper half stays */
"	movl %esp, %eax\n	movl %eax, %edx\n	popw %cx\n"
"	ljmpl $0x18, $seg16_back\n"
"	.code32\n"
"seg16_back:\n"
"	movl $0x20, %eax\n	movl %eax, %ss\n	movl real_esp, %esp\n"
"	movl %edx, legacy_out\n	movzwl %cx, %ecx\n	movl %ecx, legacy_out + 4\n"
"	movl $5, %eax\n	ret\n"
/* hardware task switch by JMP to a TSS and back */
"pm_task:\n"
"	movl $tss_b, %edi\n	xorl %eax, %eax\n	movl $26, %ecx\n	rep stosl\n"
"	movl $task_b, tss_b + 0x20\n	movl $2, tss_b + 0x24\n	movl $task_stack_top, tss_b + 0x38\n"
"	movl $0x18, tss_b + 0x4c\n	movl $0x20, %eax\n	movl %eax, tss_b + 0x48\n	movl %eax, tss_b + 0x50\n"
"	movl %eax, tss_b + 0x54\n	movl %eax, tss_b + 0x58\n	movl %eax, tss_b + 0x5c\n"
"	movl $0x77, tss_b + 0x28\n"		/* EAX */
"	lgdt task_gdt_ptr\n"
"	movl $tss_a, %eax\n	movw %ax, task_gdt + 0x42\n	shrl $16, %eax\n	movb %al, task_gdt + 0x44\n"
"	movl $tss_b, %eax\n	movw %ax, task_gdt + 0x4a\n	shrl $16, %eax\n	movb %al, task_gdt + 0x4c\n"
"	movb $0x89, task_gdt + 0x45\n	movb $0x89, task_gdt + 0x4d\n"
"	movw $0x40, %ax\n	ltr %ax\n"
"	movl $0x1234, %ebx\n"
"	lcall $0x48, $0\n"
"	movl %ebx, legacy_out + 4\n"
"	movl %cr0, %eax\n	shrl $3, %eax\n	andl $1, %eax\n	movl %eax, legacy_out + 8\n	clts\n"
"	lgdt legacy_gdt_ptr\n"
"	movl $6, %eax\n	ret\n"
"task_b:\n"
"	movl %eax, legacy_out\n"
"	pushfl\n	popl %eax\n	andl $0x4000, %eax\n	movl %eax, legacy_out + 12\n"
"	iret\n"
/* V86: a small real-mode program under a monitor; IOPL-sensitive instructions and HLT trap */
"pm_v86:\n"
"	movl $v86_code, %esi\n	movl $0x7400, %edi\n	movl $64, %ecx\n	rep movsb\n"
"	movl $tss_a, %edi\n	xorl %eax, %eax\n	movl $26, %ecx\n	rep stosl\n"
"	movl %esp, real_esp\n"
"	leal -256(%esp), %eax\n	movl %eax, tss_a + 4\n	movl $0x20, tss_a + 8\n	movw $0x68, tss_a + 0x66\n"
"	lgdt task_gdt_ptr\n"
"	movl $tss_a, %eax\n	movw %ax, task_gdt + 0x42\n	shrl $16, %eax\n	movb %al, task_gdt + 0x44\n"
"	movb $0x89, task_gdt + 0x45\n	movw $0x40, %ax\n	ltr %ax\n"
"	movl $v86_gp, %eax\n	movw %ax, v86_idt + 13 * 8\n	movw $0x18, v86_idt + 13 * 8 + 2\n"
"	movw $0x8e00, v86_idt + 13 * 8 + 4\n	shrl $16, %eax\n	movw %ax, v86_idt + 13 * 8 + 6\n"
"	lidt v86_idt_ptr\n"
"	movl $0, legacy_out + 8\n"
"	pushl $0x600\n	pushl $0x600\n	pushl $0x600\n	pushl $0x600\n"	/* GS FS DS ES */
"	pushl $0\n	pushl $0x6f00\n	pushl $0x20202\n	pushl $0x740\n	pushl $0\n"
"	iret\n"
"v86_gp:\n"				/* stack: error eip cs eflags esp ss es ds fs gs */
"	movl $0x20, %eax\n	movl %eax, %ds\n	movl %eax, %es\n"
"	incl legacy_out + 8\n"
"	movl 12(%esp), %eax\n	shrl $17, %eax\n	andl $1, %eax\n	movl %eax, legacy_out + 12\n"
"	cmpl $2, legacy_out + 8\n	je 4f\n"
"	addl $1, 4(%esp)\n"			/* step over CLI */
"	addl $4, %esp\n	iret\n"
"4:	movl 0x6020, %eax\n	movl %eax, legacy_out\n"
"	movl real_esp, %esp\n	lgdt legacy_gdt_ptr\n"
"	movl $7, %eax\n	ret\n"
"	.code16\n"
"v86_code:\n"
"	movl $0x86868686, 0x20\n"		/* DS 0x600: linear 0x6020 */
"	cli\n"					/* IOPL 0: #GP */
"	hlt\n"					/* #GP */
"	.code32\n"
"	.data\n"
"	.align 8\n"
"legacy_enter:	.long legacy_enter32\n	.word 0x18\n"
"compat_enter:	.long compat32\n	.word 0x18\n"
"legacy_idt:	.skip 10\n"
"real_idt:	.word 0x3ff\n	.long 0\n"
"legacy_gdt_ptr:	.word 0x67\n	.long boot_gdt\n"
"task_gdt_ptr:	.word task_gdt_end - task_gdt - 1\n	.long task_gdt\n"
"v86_idt_ptr:	.word 14 * 8 - 1\n	.long v86_idt\n"
"	.align 8\n"
"task_gdt:\n"
"	.quad 0, 0x00af9b000000ffff, 0x00cf93000000ffff, 0x00cf9b000000ffff, 0x00cf93000000ffff, 0, 0, 0\n"
"	.quad 0x0000890000000067, 0x0000890000000067\n"
"task_gdt_end:\n"
"	.bss\n"
"	.align 4096\n"
"legacy_pd:	.skip 4096\n"
"legacy_pt:	.skip 4096\n"
"legacy_pdpt:	.skip 4096\n"
"	.globl legacy_out\n"
"legacy_out:	.skip 64\n"
"	.align 128\n"
"tss_a:	.skip 128\n"
"tss_b:	.skip 128\n"
"v86_idt: .skip 128\n"
"	.skip 4096\n"
"task_stack_top:\n"
"legacy_rsp:	.quad 0\n"
"legacy_fn:	.long 0\n"
"legacy_result:	.long 0\n"
"legacy_cr4:	.long 0\n"
"real_esp:	.long 0\n"
"	.text\n	.code64\n");

static uint32_t run(char *fn)
{
	for (int i = 0; i < 16; i++)
		legacy_out[i] = 0;
	return legacy_call((void (*)(void))fn);
}

int main(void)
{
	trap_init();
	compat_call((void (*)(void))compat_code);
	CHECK(legacy_out[0] == 0x80000000, "compatibility mode");
	CHECK(run(pm_flat) == 1, "leave and re-enter long mode");
	CHECK(legacy_out[0] == 0x14 && legacy_out[1] == 39 && legacy_out[2] == 0x0707, "BCD arithmetic");
	CHECK(run(pm_paging32) == 2 && legacy_out[0] == 0x32323232, "32-bit paging, both sizes");
	CHECK(legacy_out[1] == 0x60, "32-bit paging sets A and D");
	check(run(pm_pae) == 3 && (legacy_out[0] & 0xff) >= 0x10, "PAE paging without long mode", "%x", legacy_out[0]);
	CHECK(run(pm_real) == 4 && legacy_out[0] == 0x1111, "real mode segments");
	CHECK(legacy_out[1] == 0x2222, "real mode interrupt");
	CHECK(legacy_out[2] == 0xaabbccdd && legacy_out[3] == 0x41, "32-bit operands and flags in real mode");
	CHECK(run(pm_seg16) == 5 && legacy_out[0] == 0x12346efe && legacy_out[1] == 0x4242, "16-bit stack segment");
	CHECK(run(pm_task) == 6 && legacy_out[0] == 0x77 && legacy_out[1] == 0x1234, "task switch and return");
	CHECK(legacy_out[2] == 1 && legacy_out[3] == 0x4000, "task switch sets TS and NT");
	check(run(pm_v86) == 7 && legacy_out[0] == 0x86868686, "V86 code runs", "%x", legacy_out[0]);
	CHECK(legacy_out[2] == 2 && legacy_out[3] == 1, "V86 monitor sees CLI and HLT");
	return 0;
}
