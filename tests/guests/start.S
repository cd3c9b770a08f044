/*
 * Entry of every bare guest: multiboot 1 (32-bit protected mode, paging off) to
 * long mode with the first 4 GiB mapped one to one by 2 MiB pages, then main().
 * Secondary vCPUs come in through `ap_start` (real mode, copied to 0x8000).
 */
	.set MB_MAGIC, 0x1badb002
	.set MB_FLAGS, 0x00000003
	.section .multiboot, "a"
	.align 4
	.long MB_MAGIC, MB_FLAGS, -(MB_MAGIC + MB_FLAGS)

	.section .text.start, "ax"
	.code32
	.globl _start
_start:
	cli
	movl $boot_stack_top, %esp
	movl %ebx, multiboot_info
	call tables_fill
	call enter_long
	ljmp $0x08, $start64

/* Page tables: PML4 -> one PDPT -> four page directories of 2 MiB pages. */
tables_fill:
	movl $boot_pdpt + 7, boot_pml4
	movl $boot_pd + 7, %eax
	movl $boot_pdpt, %edi
	movl $4, %ecx
1:	movl %eax, (%edi)
	addl $4096, %eax
	addl $8, %edi
	loop 1b
	movl $0x87, %eax
	movl $boot_pd, %edi
	movl $2048, %ecx
2:	movl %eax, (%edi)
	movl $0, 4(%edi)
	addl $0x200000, %eax
	addl $8, %edi
	loop 2b
	ret

enter_long:
	movl %cr4, %eax
	orl $0x6a0, %eax		/* PAE, PGE, OSFXSR, OSXMMEXCPT */
	movl %eax, %cr4
	movl $boot_pml4, %eax
	movl %eax, %cr3
	movl $0xc0000080, %ecx
	rdmsr
	orl $0x901, %eax		/* NXE, LME, SCE */
	wrmsr
	movl %cr0, %eax
	orl $0x80010022, %eax		/* PG, WP, NE, MP */
	andl $~4, %eax
	movl %eax, %cr0
	lgdt boot_gdt_ptr
	ret

	.code64
start64:
	movl $0x10, %eax
	movl %eax, %ds
	movl %eax, %es
	movl %eax, %ss
	xorl %eax, %eax
	movl %eax, %fs
	movl %eax, %gs
	movl $boot_stack_top, %esp
	xorl %ebp, %ebp
	call main
	movl %eax, %edi
	call guest_exit

/* Secondary vCPU: real mode at 0x8000. ap_stack, ap_entry are set by the starter. */
	.code16
	.globl ap_start, ap_end
ap_start:
	cli
	xorw %ax, %ax
	movw %ax, %ds
	lgdtl (0x8000 + ap_gdt_ptr - ap_start)
	movl %cr0, %eax
	orl $1, %eax
	movl %eax, %cr0
	ljmpl $0x18, $ap32
ap_gdt_ptr:
	.word boot_gdt_end - boot_gdt - 1
	.long boot_gdt
ap_end:
	.code32
ap32:
	movl $0x20, %eax
	movl %eax, %ds
	movl %eax, %ss
	call_free_stack:
	movl ap_stack, %esp
	call enter_long
	ljmp $0x08, $ap64
	.code64
ap64:
	movl $0x10, %eax
	movl %eax, %ds
	movl %eax, %es
	movl %eax, %ss
	movq ap_stack, %rsp
	call *ap_entry
1:	hlt
	jmp 1b

/* Exception and interrupt stubs: vector (and a zero where the CPU pushes no error code). */
	.macro STUB n
	.align 16
	.if (\n == 8) || (\n >= 10 && \n <= 14) || (\n == 17) || (\n == 21)
	.byte 0x66, 0x90
	.else
	pushq $0
	.endif
	pushq $\n
	jmp trap_common
	.endm
	.align 16
	.globl trap_stubs
trap_stubs:
	.set i, 0
	.rept 256
	STUB i
	.set i, i + 1
	.endr

trap_common:
	pushq %rax
	pushq %rcx
	pushq %rdx
	pushq %rbx
	pushq %rbp
	pushq %rsi
	pushq %rdi
	pushq %r8
	pushq %r9
	pushq %r10
	pushq %r11
	pushq %r12
	pushq %r13
	pushq %r14
	pushq %r15
	cld
	movq %rsp, %rdi
	call trap_handle
	popq %r15
	popq %r14
	popq %r13
	popq %r12
	popq %r11
	popq %r10
	popq %r9
	popq %r8
	popq %rdi
	popq %rsi
	popq %rbp
	popq %rbx
	popq %rdx
	popq %rcx
	popq %rax
	addq $16, %rsp
	iretq

/* int try_asm(void (*fn)(void *), void *arg): runs fn; a fault inside comes back here. */
	.globl try_call
try_call:
	pushq %rbx
	pushq %rbp
	pushq %r12
	pushq %r13
	pushq %r14
	pushq %r15
	movq %rsp, try_rsp
	movq $try_out, try_rip
	movq %rdi, %rax
	movq %rsi, %rdi
	call *%rax
try_out:
	movq $0, try_rip
	movq try_rsp, %rsp
	popq %r15
	popq %r14
	popq %r13
	popq %r12
	popq %rbp
	popq %rbx
	ret

/* void user_call(fn, arg, stack): runs fn(arg) at CPL 3; it comes back by int $0x80 (or a fault inside try). */
	.globl user_call
user_call:
	pushq %rbx
	pushq %rbp
	pushq %r12
	pushq %r13
	pushq %r14
	pushq %r15
	movq %rsp, user_rsp
	movq %rdi, %rax
	movq %rsi, %rdi
	subq $8, %rdx
	leaq user_return(%rip), %rcx
	movq %rcx, (%rdx)
	pushq $0x33
	pushq %rdx
	pushq $0x3202			/* IF, IOPL 3: the harness prints from user mode too */
	pushq $0x2b
	pushq %rax
	iretq
user_return:
	int $0x80
	.globl user_back
user_back:
	movq user_rsp, %rsp
	popq %r15
	popq %r14
	popq %r13
	popq %r12
	popq %rbp
	popq %rbx
	ret

	.data
	.align 16
	.globl boot_gdt, boot_tss_desc
boot_gdt:
	.quad 0
	.quad 0x00af9b000000ffff	/* 08 kernel code 64 */
	.quad 0x00cf93000000ffff	/* 10 kernel data */
	.quad 0x00cf9b000000ffff	/* 18 kernel code 32 */
	.quad 0x00cf93000000ffff	/* 20 kernel data 32 */
	.quad 0x00affb000000ffff	/* 28 user code 64 */
	.quad 0x00cff3000000ffff	/* 30 user data */
	.quad 0x00cffb000000ffff	/* 38 user code 32 */
boot_tss_desc:
	.quad 0, 0			/* 40 TSS */
	.quad 0x000f9b000000ffff	/* 50 kernel code 16, base 0 */
	.quad 0x000f93000000ffff	/* 58 kernel data 16 */
	.quad 0x00cf13000000ffff	/* 60 data, not present */
boot_gdt_end:
boot_gdt_ptr:
	.word boot_gdt_end - boot_gdt - 1
	.quad boot_gdt

	.bss
	.globl multiboot_info, try_rip, try_rsp, user_rsp, ap_stack, ap_entry, boot_pml4, boot_pdpt, boot_pd
	.align 8
multiboot_info: .quad 0
try_rip: .quad 0
try_rsp: .quad 0
user_rsp: .quad 0
ap_stack: .quad 0
ap_entry: .quad 0
	.align 4096
boot_pml4: .skip 4096
boot_pdpt: .skip 4096
boot_pd: .skip 4 * 4096
	.skip 65536
boot_stack_top:
	.section .note.GNU-stack, "", @progbits
