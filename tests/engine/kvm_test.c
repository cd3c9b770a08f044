/*
 * The KVM engines: state there and back, the instructions that incomplete emulators lack, visits of user code.
 * Skipped without KVM.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>
#include <errno.h>
#include <fcntl.h>
#include <unistd.h>

#include "cpu/model.h"
#include "engine/engine.h"
#include "engine/kvm/probe.h"
#include "engine/kvm/user.h"
#include "memory/map.h"

#define RAM_BYTES (4u << 20)
enum { CODE = 0x1000, GDT = 0x2000, IDT = 0x3000, DATA = 0x4000, XSAVE = 0x5000, STACK = 0x7000, TABLES = 0x10000 };

struct machine {
	struct map *map;
	struct cpu_model *model;
	struct engine *en;
	struct vcpu *v;
	struct x86_state a __attribute__((aligned(64))), b __attribute__((aligned(64)));
};

/* RBX: data, RDI: XSAVE area. Ends with a write to port 0x500. */
__asm__(".pushsection .rodata\n"
	"kvm_guest:\n"
	"	int3\n"
	"	xor %eax, %eax\n"
	"	xor %edx, %edx\n"
	"	mov $0x77, %ecx\n"
	"	lock cmpxchg16b 16(%rbx)\n"
	"	setz %r8b\n"
	"	mov $3, %eax\n"
	"	xor %edx, %edx\n"
	"	movq %rbx, %xmm3\n"
	"	xsave (%rdi)\n"
	"	pxor %xmm3, %xmm3\n"
	"	xrstor (%rdi)\n"
	"	movq %xmm3, %r9\n"
	"	movl $1, 0x300000\n"
	"	mov $0x500, %edx\n"
	"	out %al, %dx\n"
	"1:	jmp 1b\n"
	"kvm_guest_int3:\n"
	"	inc %rbp\n"
	"	iretq\n"
	"kvm_guest_end:\n"
	".popsection\n");
extern const char kvm_guest[], kvm_guest_int3[], kvm_guest_end[];

static void stop_write(void *opaque, uint64_t offset, unsigned size, uint64_t value)
{
	struct machine *m = opaque;
	engine_kvm.kick(m->v);
}
static const struct io_ops stop_ops = { .write = stop_write };

static int setup(void **state)
{
	const struct cpu_model_config mc = { .name = "host", .tsc_hz = 1000000000 };
	struct engine_config cfg = { .vcpus = 1 };
	struct machine *m = aligned_alloc(64, (sizeof *m + 63) & ~63ul);

	assert_non_null(m);
	memset(m, 0, sizeof *m);
	m->map = map_new();
	assert_non_null(m->map);
	assert_int_equal(map_add_ram(m->map, 0, RAM_BYTES, NULL), 0);
	map_add_pio(m->map, 0x500, 1, &stop_ops, m, "stop");
	assert_int_equal(cpu_model_new(&m->model, &mc, NULL), 0);
	cfg.map = m->map;
	cfg.model = m->model;
	assert_int_equal(engine_kvm.create(&m->en, &cfg, NULL), 0);
	assert_int_equal(engine_kvm.vcpu_create(&m->v, m->en, &(struct vcpu_wiring){ 0 }, NULL), 0);
	*state = m;
	return 0;
}

static int teardown(void **state)
{
	struct machine *m = *state;
	engine_kvm.vcpu_destroy(m->v);
	engine_kvm.destroy(m->en);
	cpu_model_free(m->model);
	map_free(m->map);
	free(m);
	return 0;
}

static void long_mode(struct x86_state *s)
{
	state_reset(s, true);
	for (unsigned i = 0; i < SEG_COUNT; i++)
		s->seg[i] = (struct x86_segment){ .limit = 0xffffffff, .selector = 0x10, .attr = 0xc093 };
	s->seg[SEG_CS].selector = 8;
	s->seg[SEG_CS].attr = 0xa09b;
	s->gdtr = (struct x86_table){ GDT, 23 };
	s->idtr = (struct x86_table){ IDT, 63 };
	s->cr0 = CR0_PE | CR0_PG | CR0_WP | CR0_NE | CR0_ET;
	s->cr3 = TABLES;
	s->cr4 = CR4_PAE | CR4_OSFXSR | CR4_OSXSAVE;
	s->efer = EFER_LME | EFER_LMA | EFER_NXE | EFER_SCE;
}

static void test_round_trip(void **state)
{
	struct machine *m = *state;
	struct x86_state *a = &m->a, *b = &m->b;

	long_mode(a);
	for (unsigned i = 0; i < REG_COUNT; i++)
		a->gpr[i] = 0x1111111111111111ull * i + 3;
	a->rip = 0x123456;
	a->rflags = FLAG_FIXED | FLAG_CF | FLAG_ZF;
	a->cr2 = 0xabc000;
	a->xcr0 = 3;
	a->seg[SEG_FS].base = 0x7000123000;
	a->seg[SEG_GS].base = 0x7000456000;
	a->kernel_gs_base = 0x7000789000;
	a->star = 0x0023000800000000;
	a->lstar = 0xffffffff81000000;
	a->sfmask = 0x47700;
	a->sysenter_esp = 0x5000;
	a->dr[0] = 0x4444;
	for (unsigned i = 0; i < 16; i++)
		a->fpu.xmm[i].q[0] = 0x0101010101010101ull * i;
	a->fpu.mxcsr = 0x1fa0;
	engine_kvm.set_state(m->v, a);
	engine_kvm.get_state(m->v, b);
	assert_memory_equal(a->gpr, b->gpr, sizeof a->gpr);
	assert_int_equal(a->rip, b->rip);
	assert_int_equal(a->rflags, b->rflags);
	assert_memory_equal(a->seg, b->seg, sizeof a->seg);
	assert_int_equal(a->gdtr.base, b->gdtr.base);
	assert_int_equal(a->idtr.limit, b->idtr.limit);
	assert_int_equal(a->cr0, b->cr0);
	assert_int_equal(a->cr2, b->cr2);
	assert_int_equal(a->cr3, b->cr3);
	assert_int_equal(a->cr4, b->cr4);
	assert_int_equal(a->efer, b->efer);
	assert_int_equal(a->xcr0, b->xcr0);
	assert_int_equal(a->kernel_gs_base, b->kernel_gs_base);
	assert_int_equal(a->star, b->star);
	assert_int_equal(a->lstar, b->lstar);
	assert_int_equal(a->sfmask, b->sfmask);
	assert_int_equal(a->sysenter_esp, b->sysenter_esp);
	assert_int_equal(a->pat, b->pat);
	assert_int_equal(a->dr[0], b->dr[0]);
	assert_memory_equal(a->fpu.xmm, b->fpu.xmm, sizeof a->fpu.xmm);
	assert_int_equal(a->fpu.mxcsr, b->fpu.mxcsr);
	assert_int_equal(b->activity, ACTIVITY_RUNNING);
}

static void guest_load(struct machine *m)
{
	uint64_t handler = CODE + (uint64_t)(kvm_guest_int3 - kvm_guest);
	const uint64_t gdt[3] = { 0, 0x00af9b000000ffff, 0x00cf93000000ffff };
	const uint64_t gate[2] = { (handler & 0xffff) | 8 << 16 | 0x8eull << 40 | (handler >> 16 & 0xffff) << 48, 0 };
	const uint64_t tables[3] = { TABLES + 0x1007, TABLES + 0x2007, 0x87 }, high = 0x200087;

	map_write(m->map, GDT, gdt, sizeof gdt);
	map_write(m->map, IDT + 48, gate, sizeof gate);
	for (unsigned i = 0; i < 3; i++)
		map_write(m->map, TABLES + 0x1000 * i, &tables[i], 8);
	map_write(m->map, TABLES + 0x2008, &high, 8);
	map_write(m->map, CODE, kvm_guest, (size_t)(kvm_guest_end - kvm_guest));
	map_dirty_reset(m->map);
	long_mode(&m->a);
	m->a.xcr0 = 3;
	m->a.rip = CODE;
	m->a.gpr[REG_RSP] = STACK;
	m->a.gpr[REG_RBX] = DATA;
	m->a.gpr[REG_RDI] = XSAVE;
	engine_kvm.set_state(m->v, &m->a);
}

static void test_instructions(void **state)
{
	struct machine *m = *state;
	uint64_t cell[2], bits[RAM_BYTES / 4096 / 64];

	if (!cpu_model_has(m->model, FEATURE_XSAVE))
		skip();
	guest_load(m);
	assert_int_equal(engine_kvm.run(m->v, NULL), EXIT_KICKED);
	engine_kvm.get_state(m->v, &m->b);
	assert_true(map_read(m->map, DATA + 16, cell, 16));
	assert_int_equal(m->b.gpr[REG_RBP], 1);
	assert_int_equal(m->b.gpr[REG_R8] & 1, 1);
	assert_int_equal(cell[0], DATA);
	assert_int_equal(cell[1], 0x77);
	assert_int_equal(m->b.gpr[REG_R9], DATA);
	map_dirty_fetch(m->map, bits);
	assert_true(bits[0x300 / 64] >> (0x300 % 64) & 1);
	assert_true(bits[0] >> (DATA / 4096) & 1);
	assert_false(bits[0x280 / 64] >> (0x280 % 64) & 1);
}

/* --- kernels in software, user code in KVM --- */

enum { USER = 0x8000, PATCHED = 0x9000, TSS = 0xa000, KERNEL = 0xb000, SHOWN = 0x3ff000 };

/* Loops of a millisecond or so, long enough that ticks find them and that visits pay.
 * count: R15 turns; RBX, XMM7 three times that; R14, R8 SYSCALLs and INT3s made, RBP, R9 those seen by the kernel.
 * look: ORs into R10 what SHOWN holds and R13 does not.
 * trap: R15, R14 single-step traps behind what ends in INT1's byte and behind the POPF that clears TF; R13 where one came
 * that should not have; RBX turns.
 * patch: writes R15 into the MOV at PATCHED, waits, calls it, and ORs the difference into R10. */
__asm__(".pushsection .rodata\n"
	"user_count:\n"
	"1:	mov $1000000, %ecx\n"
	"2:	inc %r15\n"
	"	add $3, %rbx\n"
	"	paddq %xmm6, %xmm7\n"
	"	dec %ecx\n"
	"	jnz 2b\n"
	"	inc %r14\n"
	"	syscall\n"
	"	mov $1000000, %ecx\n"
	"3:	dec %ecx\n"
	"	jnz 3b\n"
	"	inc %r8\n"
	"	int3\n"
	"	jmp 1b\n"
	"user_count_end:\n"
	"user_look:\n"
	"	mov 0x3ff000, %r12\n"
	"	xor %r13, %r12\n"
	"	or %r12, %r10\n"
	"	inc %r15\n"
	"	jmp user_look\n"
	"user_look_end:\n"
	"user_patch:\n"
	"	inc %r15\n"
	"	mov %r15d, 0x9001\n"
	"	mov $1000000, %ecx\n"
	"4:	dec %ecx\n"
	"	jnz 4b\n"
	"	mov $0x9000, %edx\n"
	"	call *%rdx\n"
	"	xor %r15d, %eax\n"
	"	or %rax, %r10\n"
	"	jmp user_patch\n"
	"user_patch_end:\n"
	"user_trap:\n"
	"	mov $1000000, %ecx\n"
	"5:	dec %ecx\n"
	"	jnz 5b\n"
	"	pushfq\n"
	"	orl $0x100, (%rsp)\n"
	"	popfq\n"
	"	mov $0xf1, %al\n"
	"user_trap_mov:\n"
	"	pushfq\n"
	"	pushfq\n"
	"	orl $0x100, (%rsp)\n"
	"	mov $1000000, %ecx\n"
	"6:	dec %ecx\n"
	"	jnz 6b\n"
	"	popfq\n"
	"	popfq\n"
	"user_trap_popf:\n"
	"	inc %rbx\n"
	"	jmp user_trap\n"
	"user_trap_end:\n"
	"user_patched:\n"
	"	mov $0, %eax\n"
	"	ret\n"
	"user_patched_end:\n"
	"user_kernel:\n"
	"	inc %rbp\n"
	"	sysretq\n"
	"user_kernel_int3:\n"
	"	inc %r9\n"
	"	iretq\n"
	"user_kernel_trap:\n"
	"	andl $~0x100, 16(%rsp)\n"
	"	cmpl $0x8000 + user_trap_mov - user_trap, (%rsp)\n"
	"	jne 7f\n"
	"	inc %r15\n"
	"	iretq\n"
	"7:	cmpl $0x8000 + user_trap_popf - user_trap, (%rsp)\n"
	"	cmovne (%rsp), %r13\n"
	"	inc %r14\n"
	"	iretq\n"
	"user_kernel_end:\n"
	".popsection\n");
extern const char user_count[], user_count_end[], user_look[], user_look_end[], user_patch[], user_patch_end[];
extern const char user_patched[], user_patched_end[], user_kernel[], user_kernel_int3[], user_kernel_trap[];
extern const char user_kernel_end[], user_trap[], user_trap_end[];

static bool never(void *opaque) { return false; }

static int user_setup(void **state)
{
	const struct cpu_model_config mc = { .name = "host", .tsc_hz = 1000000000 };
	struct engine_config cfg = { .vcpus = 1 };
	struct machine *m = aligned_alloc(64, (sizeof *m + 63) & ~63ul);

	assert_non_null(m);
	memset(m, 0, sizeof *m);
	m->map = map_new();
	assert_non_null(m->map);
	assert_int_equal(map_add_ram(m->map, 0, RAM_BYTES, NULL), 0);
	assert_int_equal(cpu_model_new(&m->model, &mc, NULL), 0);
	cfg.map = m->map;
	cfg.model = m->model;
	assert_int_equal(engine_kvm_user.create(&m->en, &cfg, NULL), 0);
	struct vcpu_wiring w = { .irq_pending = never, .nmi_take = never };
	assert_int_equal(engine_kvm_user.vcpu_create(&m->v, m->en, &w, NULL), 0);
	*state = m;
	return 0;
}

static int user_teardown(void **state)
{
	struct machine *m = *state;
	engine_kvm_user.vcpu_destroy(m->v);
	engine_kvm_user.destroy(m->en);
	cpu_model_free(m->model);
	map_free(m->map);
	free(m);
	return 0;
}

static void user_memory(struct machine *m)
{
	uint64_t int3 = KERNEL + (uint64_t)(user_kernel_int3 - user_kernel), stack = STACK;
	const uint64_t gdt[5] = { 0, 0x00af9b000000ffff, 0x00cf93000000ffff, 0x00cff3000000ffff, 0x00affb000000ffff };
	const uint64_t gate[2] = { (int3 & 0xffff) | 8 << 16 | 0xeeull << 40, 0 };
	const uint64_t trap = KERNEL + (uint64_t)(user_kernel_trap - user_kernel);
	const uint64_t trap_gate[2] = { (trap & 0xffff) | 8 << 16 | 0x8eull << 40, 0 };
	const uint64_t tables[3] = { TABLES + 0x1007, TABLES + 0x2007, 0x87 }, high = TABLES + 0x3007;

	map_write(m->map, GDT, gdt, sizeof gdt);
	map_write(m->map, IDT + 48, gate, sizeof gate);
	map_write(m->map, IDT + 16, trap_gate, sizeof trap_gate);
	map_write(m->map, TSS + 4, &stack, 8);
	for (unsigned i = 0; i < 3; i++)
		map_write(m->map, TABLES + 0x1000 * i, &tables[i], 8);
	map_write(m->map, TABLES + 0x2008, &high, 8);
	map_write(m->map, KERNEL, user_kernel, (size_t)(user_kernel_end - user_kernel));
	map_write(m->map, PATCHED, user_patched, (size_t)(user_patched_end - user_patched));
}

static void user_show(struct machine *m, uint64_t gpa)
{
	const uint64_t entry = gpa | 7;

	map_write(m->map, TABLES + 0x3000 + (SHOWN >> 12) % 512 * 8, &entry, 8);
}

static void user_start(struct machine *m, const char *code, const char *end)
{
	struct x86_state *s = &m->a;

	map_write(m->map, USER, code, (size_t)(end - code));
	long_mode(s);
	for (unsigned i = 0; i < SEG_COUNT; i++)
		s->seg[i] = (struct x86_segment){ .limit = 0xffffffff, .selector = 0x1b, .attr = 0xc0f3 };
	s->seg[SEG_CS] = (struct x86_segment){ .limit = 0xffffffff, .selector = 0x23, .attr = 0xa0fb };
	s->gdtr.limit = 39;
	s->tr = (struct x86_segment){ .base = TSS, .limit = 0x67, .selector = 0x40, .attr = 0x8b };
	s->cr4 &= ~(uint64_t)CR4_OSXSAVE;
	s->star = 0x0010000800000000;
	s->lstar = KERNEL;
	s->rip = USER;
	s->gpr[REG_RSP] = STACK - 0x800;
	s->fpu.fcw = 0x37f;
	s->fpu.mxcsr = 0x1f80;
	s->fpu.xmm[6].q[0] = 3;
	engine_kvm_user.set_state(m->v, s);
}

/* Until KVM was visited n times more. */
static void user_visits(struct machine *m, unsigned n)
{
	uint64_t end = kvm_user_visits(m->v) + n;

	for (unsigned i = 0; i < 20000 && kvm_user_visits(m->v) < end; i++)
		assert_int_equal(engine_kvm_user.run(m->v, NULL), EXIT_KICKED);
	assert_true(kvm_user_visits(m->v) >= end);
	engine_kvm_user.get_state(m->v, &m->b);
}

static bool near(uint64_t a, uint64_t b, uint64_t by) { return a - b + by <= 2 * by; }

/* Registers go in and out whole, and what ends a visit is executed once. */
static void test_user_registers(void **state)
{
	struct machine *m = *state;
	const uint64_t *r = m->b.gpr;

	user_memory(m);
	user_start(m, user_count, user_count_end);
	user_visits(m, 40);
	assert_true(r[REG_R15] > 0 && r[REG_R14] > 0 && r[REG_R8] > 0);
	assert_true(near(r[REG_RBX], 3 * r[REG_R15], 3));
	assert_true(near(m->b.fpu.xmm[7].q[0], 3 * r[REG_R15], 3));
	assert_true(near(r[REG_R14], r[REG_RBP], 1));
	assert_true(near(r[REG_R8], r[REG_R9], 1));
}

/* KVM forgets what it knew of page tables that were changed here. */
static void mapping(struct machine *m, bool five_levels)
{
	const uint64_t one = 0x1111, two = 0x2222, root = TABLES | 7;

	user_memory(m);
	map_write(m->map, 0x100000, &one, 8);
	map_write(m->map, 0x101000, &two, 8);
	user_show(m, 0x100000);
	user_start(m, user_look, user_look_end);
	m->a.gpr[REG_R13] = one;
	if (five_levels) {
		map_write(m->map, TABLES + 0x4000, &root, 8);
		m->a.cr3 = TABLES + 0x4000;
		m->a.cr4 |= CR4_LA57;
	}
	engine_kvm_user.set_state(m->v, &m->a);
	user_visits(m, 4);
	assert_int_equal(m->b.gpr[REG_R10], 0);
	user_show(m, 0x101000);
	m->b.gpr[REG_R13] = two;
	m->b.rip = USER;
	engine_kvm_user.set_state(m->v, &m->b);
	user_visits(m, 4);
	assert_int_equal(m->b.gpr[REG_R10], 0);
	assert_true(m->b.gpr[REG_R15] > 0);
}

static void test_user_mapping(void **state) { mapping(*state, false); }
static void test_user_mapping5(void **state) { mapping(*state, true); }

/* Code that was written in KVM is new in software. */
static void test_user_code(void **state)
{
	struct machine *m = *state;

	user_memory(m);
	user_start(m, user_patch, user_patch_end);
	user_visits(m, 40);
	assert_int_equal(m->b.gpr[REG_R10], 0);
	assert_true(m->b.gpr[REG_R15] > 4);
}

/* Single steps in KVM are single steps, whatever the instruction looks like from behind. */
static void test_user_trap(void **state)
{
	struct machine *m = *state;
	const uint64_t *r = m->b.gpr;

	user_memory(m);
	user_start(m, user_trap, user_trap_end);
	user_visits(m, 40);
	assert_int_equal(r[REG_R13], 0);
	assert_true(r[REG_RBX] > 4);
	assert_true(near(r[REG_R15], r[REG_RBX], 1));
	assert_true(near(r[REG_R14], r[REG_RBX], 1));
}

/* What KVM wrote is in the dirty log. */
static void test_user_dirty(void **state)
{
	struct machine *m = *state;
	uint64_t bits[RAM_BYTES / 4096 / 64];

	user_memory(m);
	user_start(m, user_patch, user_patch_end);
	user_visits(m, 2);
	map_dirty_fetch(m->map, bits);
	user_visits(m, 4);
	map_dirty_fetch(m->map, bits);
	assert_true(bits[0] >> (PATCHED / 4096) & 1);
	assert_false(bits[0x180 / 64] >> (0x180 % 64) & 1);
}

static uint64_t rip(struct machine *m)
{
	engine_kvm.get_state(m->v, &m->b);
	return m->b.rip;
}

/* A breakpoint on the first xor, behind int3; steps over it and the next; then on to the end. */
static void test_debug(void **state)
{
	struct machine *m = *state;
	struct debug_plan p = { .count = 1, .point[0] = { CODE + 1, 1, DEBUG_BREAK } };
	struct debug_stop stop;

	if (!cpu_model_has(m->model, FEATURE_XSAVE))
		skip();
	guest_load(m);
	assert_int_equal(engine_kvm.debug_set(m->v, &p), 0);
	assert_int_equal(engine_kvm.run(m->v, NULL), EXIT_DEBUG);
	engine_kvm.debug_get(m->v, &stop);
	assert_int_equal(stop.why, DEBUG_AT_BREAK);
	assert_int_equal(stop.point.gva, CODE + 1);
	assert_int_equal(rip(m), CODE + 1);
	assert_int_equal(m->b.gpr[REG_RBP], 1);
	p = (struct debug_plan){ .step = true };
	assert_int_equal(engine_kvm.debug_set(m->v, &p), 0);
	for (unsigned i = 1; i <= 2; i++) {
		assert_int_equal(engine_kvm.run(m->v, NULL), EXIT_DEBUG);
		engine_kvm.debug_get(m->v, &stop);
		assert_int_equal(stop.why, DEBUG_STEPPED);
		assert_int_equal(rip(m), CODE + 1 + 2 * i);
	}
	p.step = false;
	assert_int_equal(engine_kvm.debug_set(m->v, &p), 0);
	assert_int_equal(engine_kvm.run(m->v, NULL), EXIT_KICKED);
}

static void test_debug_refuses(void **state)
{
	struct machine *m = *state;
	struct debug_plan p = { .count = 5 };

	assert_int_equal(engine_kvm.debug_set(m->v, &p), -ENOSPC);
	p = (struct debug_plan){ .count = 1, .point[0] = { DATA, 8, DEBUG_READ } };
	assert_int_equal(engine_kvm.debug_set(m->v, &p), -ENOTSUP);
	p.point[0] = (struct debug_point){ DATA + 1, 8, DEBUG_WRITE };
	assert_int_equal(engine_kvm.debug_set(m->v, &p), -EINVAL);
	p.point[0] = (struct debug_point){ DATA, 3, DEBUG_WRITE };
	assert_int_equal(engine_kvm.debug_set(m->v, &p), -EINVAL);
}

static void test_probe(void **state)
{
	struct kvm_probe p;

	kvm_probe(&p);
	assert_true(p.found[0]);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(test_round_trip, setup, teardown),
		cmocka_unit_test_setup_teardown(test_instructions, setup, teardown),
		cmocka_unit_test_setup_teardown(test_user_registers, user_setup, user_teardown),
		cmocka_unit_test_setup_teardown(test_user_mapping, user_setup, user_teardown),
		cmocka_unit_test_setup_teardown(test_user_mapping5, user_setup, user_teardown),
		cmocka_unit_test_setup_teardown(test_user_code, user_setup, user_teardown),
		cmocka_unit_test_setup_teardown(test_user_trap, user_setup, user_teardown),
		cmocka_unit_test_setup_teardown(test_user_dirty, user_setup, user_teardown),
		cmocka_unit_test_setup_teardown(test_debug, setup, teardown),
		cmocka_unit_test_setup_teardown(test_debug_refuses, setup, teardown),
		cmocka_unit_test(test_probe),
	};
	int fd = open("/dev/kvm", O_RDWR | O_CLOEXEC);

	if (fd < 0)
		return 77;
	close(fd);
	return cmocka_run_group_tests(tests, NULL, NULL);
}
