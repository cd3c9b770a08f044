/*
 * The reference: a child process that runs each case on the host's CPU.
 *
 * A case leaves by a jump through memory that touches no register (EXIT in diff.c), or by a signal, whose handler
 * notes vector, error code and address and resumes at the same exit with the registers as they were. The child's
 * FS base is the guest's meanwhile: nothing in between may use thread-local storage.
 *
 * 32-bit code is entered by a far jump to Linux's segment for it, and left by one back. FS and GS have descriptors in the
 * LDT, DS and ES Linux's: in 64-bit code that makes no difference.
 *
 * The child may only read, write and return from signals (seccomp): whatever a case might become, it asks nothing of the
 * host.
 */
/* Without the GNU names for registers, which are ours as well. */
#undef _GNU_SOURCE
#define _DEFAULT_SOURCE
#include <asm/ldt.h>
#include <errno.h>
#include <linux/seccomp.h>
#include <poll.h>
#include <signal.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/ucontext.h>
#include <sys/wait.h>
#include <unistd.h>

#include "diff.h"

#define CASE_TIMEOUT_MS 5000

enum { GREG_RIP = 16, GREG_EFL, GREG_CSGSFS, GREG_ERR = 19, GREG_TRAPNO, GREG_CR2 = 22 };	/* sys/ucontext.h */

struct native {
	struct diff_shared *shared;
	pid_t child;
	int fd, memory;
};

const struct area diff_areas[AREAS] = {
	[AREA_DATA] = { DATA_VA, DATA_BYTES, offsetof(struct diff_shared, data) },
	[AREA_PLAIN] = { PLAIN_VA, PLAIN_BYTES, offsetof(struct diff_shared, plain) },
	[AREA_DEVICE] = { DEVICE_VA, DEVICE_BYTES, offsetof(struct diff_shared, device) },
	[AREA_NEXT] = { NEXT_VA, END_BYTES, offsetof(struct diff_shared, next) },
	[AREA_HIGH] = { HIGH_VA, END_BYTES, offsetof(struct diff_shared, high) },
	[AREA_STACK] = { STACK_VA, STACK_BYTES, offsetof(struct diff_shared, stack) },
	[AREA_CODE] = { WRITABLE_VA, WRITABLE_BYTES, offsetof(struct diff_shared, code) + SLOT_WRITABLE * SLOT_BYTES },
};

/* Registers of the case that runs now; the trampoline reaches them relative to RIP. The child is single-threaded. */
struct native_frame {
	uint64_t gpr[16];
	uint64_t rflags, target, host_rsp, host_fs;
	void *fpu_in, *fpu_out;
	struct { uint32_t offset; uint16_t selector; } far;	/* 32-bit code's entry */
};
extern struct native_frame diff_frame;
struct native_frame diff_frame;
extern uint32_t diff_components;	/* of XSAVE */
uint32_t diff_components;
static volatile struct { uint64_t rip, cr2; uint32_t vector, error; } trap;

void diff_enter(void);
extern const char diff_exit[], diff_enter32[];

__asm__(
	".text\n"
	".globl diff_enter, diff_enter32, diff_exit\n"
	"diff_enter:\n"
	"	push %rbx; push %rbp; push %r12; push %r13; push %r14; push %r15\n"
	"	mov %rsp, 144+diff_frame(%rip)\n"
	"	rdfsbase %rax\n"
	"	mov %rax, 152+diff_frame(%rip)\n"
	"	mov $0x20000340, %eax\n"
	"	wrfsbase %rax\n"
	"	mov 160+diff_frame(%rip), %rcx\n"
	"	mov diff_components(%rip), %eax\n"
	"	xor %edx, %edx\n"
	"	xrstor64 (%rcx)\n"
	"	push 128+diff_frame(%rip)\n"
	"	popfq\n"
	"	mov 0+diff_frame(%rip), %rax\n"
	"	mov 8+diff_frame(%rip), %rcx\n"
	"	mov 16+diff_frame(%rip), %rdx\n"
	"	mov 24+diff_frame(%rip), %rbx\n"
	"	mov 32+diff_frame(%rip), %rsp\n"
	"	mov 40+diff_frame(%rip), %rbp\n"
	"	mov 48+diff_frame(%rip), %rsi\n"
	"	mov 56+diff_frame(%rip), %rdi\n"
	"	mov 64+diff_frame(%rip), %r8\n"
	"	mov 72+diff_frame(%rip), %r9\n"
	"	mov 80+diff_frame(%rip), %r10\n"
	"	mov 88+diff_frame(%rip), %r11\n"
	"	mov 96+diff_frame(%rip), %r12\n"
	"	mov 104+diff_frame(%rip), %r13\n"
	"	mov 112+diff_frame(%rip), %r14\n"
	"	mov 120+diff_frame(%rip), %r15\n"
	"	jmp *136+diff_frame(%rip)\n"
	"diff_enter32:\n"
	"	ljmp *176+diff_frame(%rip)\n"
	"diff_exit:\n"
	"	mov %rax, 0+diff_frame(%rip)\n"
	"	mov %rcx, 8+diff_frame(%rip)\n"
	"	mov %rdx, 16+diff_frame(%rip)\n"
	"	mov %rbx, 24+diff_frame(%rip)\n"
	"	mov %rsp, 32+diff_frame(%rip)\n"
	"	mov %rbp, 40+diff_frame(%rip)\n"
	"	mov %rsi, 48+diff_frame(%rip)\n"
	"	mov %rdi, 56+diff_frame(%rip)\n"
	"	mov %r8, 64+diff_frame(%rip)\n"
	"	mov %r9, 72+diff_frame(%rip)\n"
	"	mov %r10, 80+diff_frame(%rip)\n"
	"	mov %r11, 88+diff_frame(%rip)\n"
	"	mov %r12, 96+diff_frame(%rip)\n"
	"	mov %r13, 104+diff_frame(%rip)\n"
	"	mov %r14, 112+diff_frame(%rip)\n"
	"	mov %r15, 120+diff_frame(%rip)\n"
	"	mov 144+diff_frame(%rip), %rsp\n"
	"	pushfq\n"
	"	pop 128+diff_frame(%rip)\n"
	"	push $2\n"
	"	popfq\n"
	"	mov 168+diff_frame(%rip), %rcx\n"
	"	mov diff_components(%rip), %eax\n"
	"	xor %edx, %edx\n"
	"	xsave64 (%rcx)\n"
	"	fninit\n"
	"	vzeroupper\n"
	"	push $0x1f80\n"
	"	ldmxcsr (%rsp)\n"
	"	pop %rax\n"
	"	mov 152+diff_frame(%rip), %rax\n"
	"	wrfsbase %rax\n"
	"	pop %r15; pop %r14; pop %r13; pop %r12; pop %rbp; pop %rbx\n"
	"	ret\n");
_Static_assert(offsetof(struct native_frame, rflags) == 128 && offsetof(struct native_frame, fpu_out) == 168 &&
	       offsetof(struct native_frame, far) == 176,
	       "the trampoline knows the offsets");

__attribute__((optimize("no-stack-protector"))) static void on_signal(int sig, siginfo_t *info, void *context)
{
	greg_t *r = ((ucontext_t *)context)->uc_mcontext.gregs;
	trap.vector = (uint32_t)r[GREG_TRAPNO];
	trap.error = (uint32_t)r[GREG_ERR];
	trap.cr2 = (uint64_t)r[GREG_CR2];
	trap.rip = (uint64_t)r[GREG_RIP];
	r[GREG_EFL] &= ~(greg_t)(FLAG_RF | FLAG_TF);
	r[GREG_RIP] = (greg_t)(uintptr_t)diff_exit;
	r[GREG_CSGSFS] = (r[GREG_CSGSFS] & ~(greg_t)0xffff) | SEL_CODE64;
}

static void run_case(struct diff_shared *sh, unsigned i)
{
	const struct diff_state *in = &sh->in[i];
	struct diff_state *out = &sh->out[i];
	memcpy(diff_frame.gpr, in->gpr, sizeof in->gpr);
	diff_frame.rflags = in->rflags;
	diff_frame.target = sh->wide[i] ? in->rip : (uint64_t)(uintptr_t)diff_enter32;
	diff_frame.far.offset = (uint32_t)in->rip;
	diff_frame.far.selector = SEL_CODE32;
	diff_frame.fpu_in = (void *)(uintptr_t)in->fpu;
	diff_frame.fpu_out = out->fpu;
	memset(out->fpu + 512, 0, 64);
	trap.vector = VECTOR_EXIT;
	trap.rip = trap.cr2 = 0;
	trap.error = 0;
	diff_enter();
	memcpy(out->gpr, diff_frame.gpr, sizeof out->gpr);
	out->rflags = diff_frame.rflags & ~(uint64_t)FLAG_RF;
	out->vector = trap.vector;
	out->error = trap.error;
	out->cr2 = trap.cr2;
	out->rip = trap.rip;
	out->below_rsp = 0;
	if (out->gpr[REG_RSP] - (STACK_VA + 8) <= STACK_BYTES - 8)
		memcpy(&out->below_rsp, sh->stack + (out->gpr[REG_RSP] - STACK_VA - 8), 8);
}

/* What the test has mapped below 4 GiB (vCPUs, that is): cases of 32-bit code come by all addresses, and the engines have nothing
 * there. */
static void child_unmap(void)
{
	FILE *maps = fopen("/proc/self/maps", "re");
	unsigned long long first, end;
	char line[512];
	if (!maps)
		_exit(3);
	while (fgets(line, sizeof line, maps))
		if (sscanf(line, "%llx-%llx", &first, &end) == 2 && end <= 1ull << 32)
			munmap((void *)(uintptr_t)first, end - first);
	fclose(maps);
}

/* Populated: a page that Linux has yet to bring in would say "not present" in an error code. */
static void child_map(struct native *n, uint64_t va, size_t offset, size_t bytes, int prot)
{
	if (mmap((void *)va, bytes, prot, MAP_SHARED | MAP_FIXED_NOREPLACE | MAP_POPULATE, n->memory, (off_t)offset) == MAP_FAILED)
		_exit(3);
}

static void child_signals(void)
{
	static const int signals[] = { SIGSEGV, SIGFPE, SIGILL, SIGBUS, SIGTRAP };
	static uint8_t stack[65536];
	stack_t ss = { .ss_sp = stack, .ss_size = sizeof stack };
	struct sigaction sa = { .sa_sigaction = on_signal, .sa_flags = SA_SIGINFO | SA_ONSTACK | SA_NODEFER };
	sigaltstack(&ss, NULL);
	for (unsigned i = 0; i < sizeof signals / sizeof *signals; i++)
		sigaction(signals[i], &sa, NULL);
}

/* The base of FS is that of the C library again. */
static void child_segments(void)
{
	struct user_desc fs = { .entry_number = SEL_FS >> 3, .base_addr = FS_BASE, .limit = 0xfffff, .seg_32bit = 1,
				.limit_in_pages = 1, .useable = 1 }, gs = fs;
	uint64_t own;
	gs.entry_number = SEL_GS >> 3;
	gs.base_addr = GS_BASE;
	if (syscall(SYS_modify_ldt, 0x11, &fs, sizeof fs) || syscall(SYS_modify_ldt, 0x11, &gs, sizeof gs))
		_exit(3);
	__asm__ volatile("rdfsbase %0\n"
			 "mov %1, %%fs\n"
			 "wrfsbase %0\n"
			 "mov %2, %%gs\n"
			 "mov %3, %%ds\n"
			 "mov %3, %%es\n"
			 : "=&r"(own) : "r"(SEL_FS), "r"(SEL_GS), "r"(SEL_DATA) : "memory");
}

static _Noreturn void child_main(struct native *n)
{
	uint64_t ask;
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	child_signals();
	child_unmap();
	child_map(n, CODE_VA, offsetof(struct diff_shared, code), WRITABLE_VA - CODE_VA, PROT_READ | PROT_EXEC);
	child_map(n, WRITABLE_VA, offsetof(struct diff_shared, code) + WRITABLE_VA - CODE_VA, WRITABLE_BYTES,
		  PROT_READ | PROT_WRITE | PROT_EXEC);
	child_map(n, EXIT_VA, offsetof(struct diff_shared, exit), sizeof n->shared->exit, PROT_READ | PROT_EXEC);
	child_map(n, PLAIN_VA, offsetof(struct diff_shared, plain), PLAIN_BYTES + DEVICE_BYTES, PROT_READ | PROT_WRITE);
	child_map(n, DATA_VA, offsetof(struct diff_shared, data), DATA_BYTES, PROT_READ | PROT_WRITE);
	child_map(n, ROM_VA, offsetof(struct diff_shared, rom), ROM_BYTES, PROT_READ);
	child_map(n, NEXT_VA, offsetof(struct diff_shared, next), END_BYTES, PROT_READ | PROT_WRITE);
	child_map(n, HIGH_VA, offsetof(struct diff_shared, high), END_BYTES, PROT_READ | PROT_WRITE);
	child_map(n, STACK_VA, offsetof(struct diff_shared, stack), STACK_BYTES, PROT_READ | PROT_WRITE);
	child_segments();
	prctl(PR_SET_SECCOMP, SECCOMP_MODE_STRICT);
	while (read(n->fd, &ask, sizeof ask) == sizeof ask) {
		for (uint32_t i = (uint32_t)ask, end = i + (uint32_t)(ask >> 32); i < end; i++) {
			n->shared->out[i].vector = ~0u;
			run_case(n->shared, i);
		}
		if (write(n->fd, &ask, sizeof ask) != sizeof ask)
			break;
	}
	_exit(0);
}

static bool child_start(struct native *n)
{
	int pair[2];
	if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair) < 0)
		return false;
	n->child = fork();
	if (n->child == 0) {
		close(pair[0]);
		n->fd = pair[1];
		child_main(n);
	}
	close(pair[1]);
	n->fd = pair[0];
	return n->child > 0;
}

static void child_stop(struct native *n)
{
	close(n->fd);
	kill(n->child, SIGKILL);
	waitpid(n->child, NULL, 0);
}

struct native *native_new(uint64_t components)
{
	struct native *n = calloc(1, sizeof *n);
	if (!n)
		return NULL;
	diff_components = (uint32_t)components;
	n->memory = (int)syscall(SYS_memfd_create, "diff", 1u);
	if (n->memory < 0 || ftruncate(n->memory, sizeof *n->shared) < 0)
		goto fail;
	n->shared = mmap(NULL, sizeof *n->shared, PROT_READ | PROT_WRITE, MAP_SHARED, n->memory, 0);
	if (n->shared == MAP_FAILED)
		goto fail;
	const uint64_t to = native_exit();
	memcpy(n->shared->exit, "\xff\x25\0\0\0\0", 6);	/* jmp *(%rip) */
	memcpy(n->shared->exit + 6, &to, 8);
	for (unsigned i = 0; i < DIFF_CASES; i++)	/* XRSTOR wants a clean header */
		memset(&n->shared->out[i], 0, sizeof n->shared->out[i]);
	if (!child_start(n))
		goto fail;
	return n;
fail:
	free(n);
	return NULL;
}

void native_free(struct native *n)
{
	child_stop(n);
	munmap(n->shared, sizeof *n->shared);
	close(n->memory);
	free(n);
}

struct diff_shared *native_shared(struct native *n) { return n->shared; }
uint64_t native_exit(void) { return (uint64_t)(uintptr_t)diff_exit; }

bool native_run(struct native *n, unsigned first, unsigned count, unsigned *at)
{
	uint64_t ask = first | (uint64_t)count << 32;
	struct pollfd p = { .fd = n->fd, .events = POLLIN };
	for (unsigned i = first; i < first + count; i++)
		n->shared->out[i].vector = ~1u;
	if (write(n->fd, &ask, sizeof ask) == sizeof ask && poll(&p, 1, CASE_TIMEOUT_MS) == 1 &&
	    read(n->fd, &ask, sizeof ask) == sizeof ask)
		return true;
	*at = first;
	while (*at + 1 < first + count && n->shared->out[*at].vector != ~0u)
		(*at)++;
	child_stop(n);
	child_start(n);
	return false;
}
