/*
 * The interpreter on small programs in every mode. Each is assembled here, loaded at 0x1000, and tells its
 * results through port 0xf4 (32 bits each); HLT with interrupts off ends it.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <stdlib.h>
#include <string.h>

#include "cpu/model.h"
#include "cpu/state.h"
#include "memory/map.h"
#include "quiet.h"

#define RAM_BYTES (8u << 20)
#define LOAD 0x1000u

struct machine {
	struct map *map;
	struct engine *en;
	struct vcpu *v;
	struct cpu_model *model;
	uint32_t out[64];
	unsigned outs;
	int irq;	/* pending vector, -1 none */
};

static uint64_t port_read(void *opaque, uint64_t offset, unsigned size) { return 0x1234567; }
static void port_write(void *opaque, uint64_t offset, unsigned size, uint64_t value)
{
	struct machine *m = opaque;

	if (size == 1)	/* a byte raises an interrupt */
		m->irq = (int)value;
	else if (m->outs < 64)
		m->out[m->outs++] = (uint32_t)value;
}
static const struct io_ops port_ops = { .read = port_read, .write = port_write, .min_size = 1, .max_size = 4 };

static bool irq_pending(void *opaque) { return ((struct machine *)opaque)->irq >= 0; }
static int irq_ack(void *opaque)
{
	struct machine *m = opaque;
	int vector = m->irq;

	m->irq = -1;
	return vector;
}

static void machine_open(struct machine *m, const char *code, const char *end)
{
	struct vcpu_wiring w = vcpu_quiet;
	struct engine_config cfg = { .vcpus = 1, .tsc_hz = 1000000000, .interpret_only = true };

	memset(m, 0, sizeof(*m));
	m->irq = -1;
	w.opaque = m;
	w.irq_pending = irq_pending;
	w.irq_ack = irq_ack;
	m->map = map_new();
	assert_non_null(m->map);
	assert_int_equal(map_add_ram(m->map, 0, RAM_BYTES, NULL), 0);
	assert_non_null(map_add_pio(m->map, 0xf4, 4, &port_ops, m, "test"));
	assert_int_equal(cpu_model_new(&m->model, &(struct cpu_model_config){ .name = "x86-64-v2" }, NULL), 0);
	cfg.map = m->map;
	cfg.model = m->model;
	assert_int_equal(engine_soft.create(&m->en, &cfg, NULL), 0);
	assert_int_equal(engine_soft.vcpu_create(&m->v, m->en, &w, NULL), 0);
	assert_true(map_write(m->map, LOAD, code, (size_t)(end - code)));
}

static void machine_close(struct machine *m)
{
	engine_soft.vcpu_destroy(m->v);
	engine_soft.destroy(m->en);
	cpu_model_free(m->model);
	map_free(m->map);
}

static enum exit_reason machine_run(struct machine *m)
{
	return engine_soft.run(m->v, NULL);
}

static void put64(struct machine *m, uint64_t gpa, uint64_t value)
{
	assert_true(map_write(m->map, gpa, &value, 8));
}

static struct x86_segment flat(uint16_t sel, uint16_t attr)
{
	return (struct x86_segment){ .selector = sel, .limit = ~0u, .attr = attr };
}

static void start_real(struct machine *m)
{
	struct x86_state s;

	engine_soft.get_state(m->v, &s);
	s.seg[SEG_CS] = (struct x86_segment){ .selector = 0, .base = 0, .limit = 0xffff, .attr = 0x9b };
	for (unsigned i = 0; i < SEG_COUNT; i++)
		if (i != SEG_CS)
			s.seg[i] = (struct x86_segment){ .limit = 0xffff, .attr = 0x93 };
	s.idtr = (struct x86_table){ .limit = 0x3ff };
	s.rip = LOAD;
	s.gpr[REG_RSP] = 0x8000;
	s.activity = ACTIVITY_RUNNING;
	engine_soft.set_state(m->v, &s);
}

/* GDT at 0x6000: 08 code64, 10 data, 18 code32, 20 data32, 28/30 TSS, 38 user code64|3, 40 user data|3.
 * IDT at 0x5000, TSS at 0x7000; page tables at 0x100000 map 8 MiB one to one; 0x600000 user, 0x700000 absent. */
static void start_long(struct machine *m)
{
	struct x86_state s;

	put64(m, 0x6008, 0x00af9b000000ffff);
	put64(m, 0x6010, 0x00cf93000000ffff);
	put64(m, 0x6018, 0x00cf9b000000ffff);
	put64(m, 0x6020, 0x00cf93000000ffff);
	put64(m, 0x6028, 0x0000890070000067);
	put64(m, 0x6030, 0);
	put64(m, 0x6038, 0x00affb000000ffff);
	put64(m, 0x6040, 0x00cff3000000ffff);
	put64(m, 0x7004, 0x9000);	/* RSP0 */
	put64(m, 0x100000, 0x101007);
	put64(m, 0x101000, 0x102007);
	put64(m, 0x102000, 0x103007);	/* 0..2 MiB in 4 KiB pages */
	for (unsigned i = 0; i < 512; i++)
		put64(m, 0x103000 + 8 * i, i * 0x1000u + 3);
	put64(m, 0x102008, 0x200083);
	put64(m, 0x102010, 0x400083);
	put64(m, 0x102018, 0x104007);	/* 6..8 MiB */
	for (unsigned i = 0; i < 256; i++)
		put64(m, 0x104000 + 8 * i, 0x600000 + i * 0x1000u + 7);
	engine_soft.get_state(m->v, &s);
	s.cr0 = CR0_PE | CR0_PG | CR0_ET | CR0_WP | CR0_NE;
	s.cr3 = 0x100000;
	s.cr4 = CR4_PAE;
	s.efer = EFER_LME | EFER_LMA | EFER_NXE | EFER_SCE;
	s.seg[SEG_CS] = flat(8, 0xa09b);
	for (unsigned i = 0; i < SEG_COUNT; i++)
		if (i != SEG_CS)
			s.seg[i] = flat(0x10, 0xc093);
	s.tr = (struct x86_segment){ .selector = 0x28, .base = 0x7000, .limit = 0x67, .attr = 0x8b };
	s.gdtr = (struct x86_table){ .base = 0x6000, .limit = 0x47 };
	s.idtr = (struct x86_table){ .base = 0x5000, .limit = 0xfff };
	s.rip = LOAD;
	s.gpr[REG_RSP] = 0x8000;
	s.rflags = FLAG_FIXED;
	s.activity = ACTIVITY_RUNNING;
	engine_soft.set_state(m->v, &s);
}

static void gate64(struct machine *m, unsigned vector, uint64_t offset, unsigned dpl)
{
	put64(m, 0x5000 + 16 * vector, (offset & 0xffff) | 8u << 16 | (0x8e00ull | dpl << 13) << 32 |
	      (offset >> 16 & 0xffff) << 48);
	put64(m, 0x5008 + 16 * vector, offset >> 32);
}

#define PROGRAM(name, code) \
	extern const char prog_##name[], prog_##name##_end[]; \
	__asm__(".pushsection .rodata\n.globl prog_" #name ", prog_" #name "_end\nprog_" #name ":\n" code \
		"\nprog_" #name "_end:\n.code64\n.popsection\n")
#define OPEN(m, name) machine_open(m, prog_##name, prog_##name##_end)

/* --- real mode --- */

PROGRAM(real,
	".code16\n"
	"mov $5, %cx\n xor %eax, %eax\n"
	"1: add %cx, %ax\n loop 1b\n"
	"out %eax, $0xf4\n"			/* 15 */
	"mov $0x2000, %di\n mov $0x41, %al\n mov $16, %cx\n rep stosb\n"
	"mov $0x2000, %si\n mov $0x2100, %di\n mov $4, %cx\n rep movsl\n"
	"movzbl 0x210f, %eax\n out %eax, $0xf4\n"	/* 0x41 */
	"movw $2f - prog_real + 0x1000, 0x80 * 4\n movw $0, 0x80 * 4 + 2\n"
	"int $0x80\n"
	"movzwl %sp, %eax\n out %eax, $0xf4\n"	/* 0x8000 */
	"hlt\n"
	"2: mov $0x77, %eax\n out %eax, $0xf4\n iret\n");

static void test_real(void **state)
{
	struct machine m;

	OPEN(&m, real);
	start_real(&m);
	assert_int_equal(machine_run(&m), EXIT_HALT);
	assert_int_equal(m.outs, 4);
	assert_int_equal(m.out[0], 15);
	assert_int_equal(m.out[1], 0x41);
	assert_int_equal(m.out[2], 0x77);
	assert_int_equal(m.out[3], 0x8000);
	machine_close(&m);
}

/* --- real to protected to long, as a boot loader does --- */

#define AT(label) "(" label " - prog_modes + 0x1000)"
PROGRAM(modes,
	".code16\n"
	"cli\n lgdtl " AT("9f") "\n"
	"mov %cr0, %eax\n or $1, %al\n mov %eax, %cr0\n"
	"ljmpl $0x18, $" AT("1f") "\n"
	".code32\n"
	"1: mov $0x20, %eax\n mov %eax, %ds\n mov %eax, %ss\n mov %eax, %es\n mov $0x8000, %esp\n"
	"push $0x1234\n pop %ebx\n mov %ebx, %eax\n out %eax, $0xf4\n"
	"mov %cr4, %eax\n or $0x20, %eax\n mov %eax, %cr4\n"
	"mov $0x100000, %eax\n mov %eax, %cr3\n"
	"mov $0xc0000080, %ecx\n rdmsr\n or $0x100, %eax\n wrmsr\n"
	"mov %cr0, %eax\n or $0x80000000, %eax\n mov %eax, %cr0\n"
	"ljmpl $8, $" AT("2f") "\n"
	".code64\n"
	"2: mov $0x1122334455667788, %rax\n shr $32, %rax\n out %eax, $0xf4\n"
	"push $0x18\n lea 3f(%rip), %rax\n push %rax\n lretq\n"
	".code32\n"
	"3: mov $0x99, %eax\n out %eax, $0xf4\n hlt\n"
	".balign 8\n 9: .word 0x47\n .long 0x6000\n");

static void test_modes(void **state)
{
	struct machine m;

	OPEN(&m, modes);
	start_long(&m);		/* for the tables */
	start_real(&m);
	{
		struct x86_state s;
		engine_soft.get_state(m.v, &s);
		s.cr0 = CR0_ET;
		s.cr3 = s.cr4 = s.efer = 0;
		engine_soft.set_state(m.v, &s);
	}
	assert_int_equal(machine_run(&m), EXIT_HALT);
	assert_int_equal(m.outs, 3);
	assert_int_equal(m.out[0], 0x1234);
	assert_int_equal(m.out[1], 0x11223344);
	assert_int_equal(m.out[2], 0x99);
	machine_close(&m);
}

/* --- page faults in long mode --- */

PROGRAM(fault,
	"mov $0x700008, %rbx\n"
	"movl $7, (%rbx)\n"
	"mov $0x55, %eax\n out %eax, $0xf4\n"
	"ud2\n"
	"mov $0x56, %eax\n out %eax, $0xf4\n hlt\n"
	".org prog_fault + 0x100\n"
	"pop %rax\n out %eax, $0xf4\n mov %cr2, %rax\n out %eax, $0xf4\n addq $6, (%rsp)\n iretq\n"
	".org prog_fault + 0x200\n"
	"addq $2, (%rsp)\n iretq\n");

static void test_fault(void **state)
{
	struct machine m;

	OPEN(&m, fault);
	start_long(&m);
	put64(&m, 0x104000 + 8 * 256, 0);
	gate64(&m, EXC_PF, LOAD + 0x100, 0);
	gate64(&m, EXC_UD, LOAD + 0x200, 0);
	assert_int_equal(machine_run(&m), EXIT_HALT);
	assert_int_equal(m.outs, 4);
	assert_int_equal(m.out[0], 2);		/* write, not present, supervisor */
	assert_int_equal(m.out[1], 0x700008);
	assert_int_equal(m.out[2], 0x55);
	assert_int_equal(m.out[3], 0x56);
	machine_close(&m);
}

/* --- triple fault --- */

PROGRAM(triple, "ud2\n");

static void test_triple(void **state)
{
	struct machine m;

	OPEN(&m, triple);
	start_long(&m);
	assert_int_equal(machine_run(&m), EXIT_SHUTDOWN);
	machine_close(&m);
}

/* --- sti; hlt with an interrupt already pending; SYSCALL and SYSRET around user code --- */

PROGRAM(irq,
	"mov $0x40, %al\n out %al, $0xf4\n"
	"sti\n hlt\n"
	"mov $0x60, %eax\n out %eax, $0xf4\n"
	"cli\n hlt\n"
	".org prog_irq + 0x100\n"
	"mov 8(%rsp), %rax\n out %eax, $0xf4\n mov (%rsp), %rax\n out %eax, $0xf4\n iretq\n");

static void test_irq(void **state)
{
	struct machine m;

	OPEN(&m, irq);
	start_long(&m);
	gate64(&m, 0x40, LOAD + 0x100, 0);
	assert_int_equal(machine_run(&m), EXIT_HALT);
	assert_int_equal(m.outs, 3);
	assert_int_equal(m.out[0], 8);
	assert_int_equal(m.out[1], LOAD + 6);	/* after HLT: the shadow covers it */
	assert_int_equal(m.out[2], 0x60);
	machine_close(&m);
}

PROGRAM(user,
	"mov $0xc0000081, %ecx\n xor %eax, %eax\n mov $0x00300008, %edx\n wrmsr\n"
	"mov $0xc0000082, %ecx\n mov $0x1100, %eax\n xor %edx, %edx\n wrmsr\n"
	"lea 1f(%rip), %rsi\n mov $0x600000, %edi\n mov $64, %ecx\n rep movsb\n"
	"mov $0x600000, %ecx\n mov $2, %r11d\n mov $0x601000, %esp\n sysretq\n"
	"1: mov %cs, %ebx\n mov $0x11, %edi\n syscall\n cli\n"
	".org prog_user + 0x100\n"
	"mov %ebx, %eax\n mov $0xf4, %dx\n out %eax, %dx\n mov %edi, %eax\n out %eax, %dx\n mov $0x9000, %esp\n"
	"mov %cs, %eax\n out %eax, %dx\n sysretq\n"
	".org prog_user + 0x200\n"
	"mov %edi, %eax\n mov $0xf4, %dx\n mov (%rsp), %rax\n out %eax, %dx\n mov 16(%rsp), %eax\n out %eax, %dx\n"
	"hlt\n");

static void test_user(void **state)
{
	struct machine m;

	OPEN(&m, user);
	start_long(&m);
	gate64(&m, EXC_GP, LOAD + 0x200, 0);
	assert_int_equal(machine_run(&m), EXIT_HALT);
	assert_int_equal(m.outs, 5);
	assert_int_equal(m.out[0], 0x43);	/* STAR: 0x30 + 16, RPL 3 */
	assert_int_equal(m.out[1], 0x11);
	assert_int_equal(m.out[2], 8);
	assert_int_equal(m.out[3], 0);		/* CLI: #GP(0) */
	assert_int_equal(m.out[4], 0x43);
	machine_close(&m);
}

/* --- code that changes itself, also inside the running block --- */

PROGRAM(smc,
	"mov $3, %ecx\n"
	"1: movb $0x22, 2f + 1(%rip)\n"
	"2: mov $0x11, %eax\n out %eax, $0xf4\n"
	"movb $0x33, 3f + 1(%rip)\n jmp 3f\n"
	"3: mov $0x44, %eax\n out %eax, $0xf4\n"
	"dec %ecx\n jnz 1b\n hlt\n");

static void test_smc(void **state)
{
	struct machine m;

	OPEN(&m, smc);
	start_long(&m);
	assert_int_equal(machine_run(&m), EXIT_HALT);
	assert_int_equal(m.outs, 6);
	for (unsigned i = 0; i < 6; i++)
		assert_int_equal(m.out[i], i & 1 ? 0x33 : 0x22);
	machine_close(&m);
}

/* --- single step and breakpoints --- */

PROGRAM(debug,
	"pushfq\n orl $0x100, (%rsp)\n popfq\n"
	"nop\n"					/* traps after this one and the next two */
	"pushfq\n andl $~0x100, (%rsp)\n popfq\n"
	"mov $0x3000, %eax\n mov %rax, %dr0\n mov $0x000d0001, %eax\n mov %rax, %dr7\n"
	"movl $1, 0x3000\n"
	"xor %eax, %eax\n mov %rax, %dr7\n hlt\n"
	".org prog_debug + 0x100\n"
	"push %rax\n mov %dr6, %rax\n out %eax, $0xf4\n mov $0xffff0ff0, %eax\n mov %rax, %dr6\n pop %rax\n iretq\n");

static void test_debug(void **state)
{
	struct machine m;

	OPEN(&m, debug);
	start_long(&m);
	gate64(&m, EXC_DB, LOAD + 0x100, 0);
	assert_int_equal(machine_run(&m), EXIT_HALT);
	assert_int_equal(m.outs, 5);
	for (unsigned i = 0; i < 4; i++)
		assert_int_equal(m.out[i], 0xffff4ff0);
	assert_int_equal(m.out[4], 0xffff0ff1);
	machine_close(&m);
}

/* --- 32-bit protected mode: task switch and V86 --- */

#undef AT
#define AT(label) "(" label " - prog_task + 0x1000)"
PROGRAM(task,
	".code32\n"
	"mov $0x28, %eax\n ltr %ax\n"
	"lcall $0x30, $0\n"			/* TSS of the second task */
	"mov $0x66, %eax\n out %eax, $0xf4\n"
	/* into V86 mode: GS FS DS ES SS ESP EFLAGS CS EIP */
	"push $0\n push $0\n push $0\n push $0\n push $0\n push $0x4000\n push $0x20002\n push $0x100\n push $0x200\n"
	"iret\n"
	".org prog_task + 0x100\n"		/* the second task */
	"1: str %eax\n out %eax, $0xf4\n iret\n jmp 1b\n"
	".org prog_task + 0x200\n"		/* V86: 0100:0200 */
	".code16\n mov %cs, %ax\n int $0x40\n"
	".org prog_task + 0x300\n"		/* #GP handler */
	".code32\n mov $0xabc, %eax\n out %eax, $0xf4\n mov 8(%esp), %eax\n out %eax, $0xf4\n"
	"mov 12(%esp), %eax\n out %eax, $0xf4\n hlt\n");

static void test_task_v86(void **state)
{
	struct machine m;
	struct x86_state s;
	uint32_t v;

	OPEN(&m, task);
	put64(&m, 0x6008, 0x00cf9b000000ffff);
	put64(&m, 0x6010, 0x00cf93000000ffff);
	put64(&m, 0x6028, 0x0000890070000067);
	put64(&m, 0x6030, 0x0000890072000067);
	v = 0x9000; map_write(m.map, 0x7004, &v, 4);	/* ESP0, SS0 */
	v = 0x10; map_write(m.map, 0x7008, &v, 4);
	v = LOAD + 0x100; map_write(m.map, 0x7220, &v, 4);
	v = 2; map_write(m.map, 0x7224, &v, 4);
	v = 0xa000; map_write(m.map, 0x7238, &v, 4);
	for (unsigned i = 0; i < 6; i++) {
		v = i == 1 ? 8 : 0x10;
		map_write(m.map, 0x7248 + 4 * i, &v, 4);
	}
	put64(&m, 0x5000 + 8 * EXC_GP, (LOAD + 0x300) | 8u << 16 | 0x8e00ull << 32);
	engine_soft.get_state(m.v, &s);
	s.cr0 = CR0_PE | CR0_ET;
	s.seg[SEG_CS] = flat(8, 0xc09b);
	for (unsigned i = 0; i < SEG_COUNT; i++)
		if (i != SEG_CS)
			s.seg[i] = flat(0x10, 0xc093);
	s.gdtr = (struct x86_table){ .base = 0x6000, .limit = 0x47 };
	s.idtr = (struct x86_table){ .base = 0x5000, .limit = 0x7ff };
	s.rip = LOAD;
	s.gpr[REG_RSP] = 0x8000;
	s.activity = ACTIVITY_RUNNING;
	engine_soft.set_state(m.v, &s);
	assert_int_equal(machine_run(&m), EXIT_HALT);
	assert_int_equal(m.outs, 5);
	assert_int_equal(m.out[0], 0x30);
	assert_int_equal(m.out[1], 0x66);
	assert_int_equal(m.out[2], 0xabc);
	assert_int_equal(m.out[3], 0x100);		/* CS of the V86 program */
	assert_true(m.out[4] & FLAG_VM);
	machine_close(&m);
}

/* --- what 32-bit code with a 16-bit stack and a read-only segment sees --- */

PROGRAM(small_stack,
	".code32\n enter $8, $1\n mov %ebp, %eax\n out %eax, $0xf4\n mov %esp, %eax\n out %eax, $0xf4\n"
	"mov %es:0x7ff8, %eax\n out %eax, $0xf4\n"
	"xor %eax, %eax\n xor %ebx, %ebx\n arpl %bx, 0x3000\n setz %al\n out %eax, $0xf4\n hlt\n");

static void test_small_stack(void **state)
{
	struct machine m;
	struct x86_state s;

	OPEN(&m, small_stack);
	engine_soft.get_state(m.v, &s);
	s.cr0 = CR0_PE | CR0_ET;
	for (unsigned i = 0; i < SEG_COUNT; i++)
		s.seg[i] = flat(0x10, 0xc093);
	s.seg[SEG_CS] = flat(8, 0xc09b);
	s.seg[SEG_SS] = (struct x86_segment){ .limit = 0xffff, .selector = 0x18, .attr = 0x93 };
	s.seg[SEG_DS] = flat(0x20, 0xc091);		/* read-only */
	s.rip = LOAD;
	s.gpr[REG_RSP] = 0x18000;
	s.gpr[REG_RBP] = 0x5fff0;
	s.activity = ACTIVITY_RUNNING;
	engine_soft.set_state(m.v, &s);
	assert_int_equal(machine_run(&m), EXIT_HALT);
	assert_int_equal(m.outs, 4);
	assert_int_equal(m.out[0], 0x17ffc);		/* ENTER: SP under the upper half of ESP */
	assert_int_equal(m.out[1], 0x17ff0);
	assert_int_equal(m.out[2], 0x17ffc);
	assert_int_equal(m.out[3], 0);			/* ARPL that has nothing to raise writes nothing */
	machine_close(&m);
}

/* --- speed: not a test of a bound, but a loop long enough to see it in the log --- */

PROGRAM(loop,
	"mov $20000000, %ecx\n xor %eax, %eax\n"
	"1: add %rcx, %rax\n mov %rax, 0x3000\n mov 0x3000, %rdx\n xor %rdx, %rbx\n dec %ecx\n jnz 1b\n"
	"out %eax, $0xf4\n hlt\n");

static void test_loop(void **state)
{
	struct machine m;

	OPEN(&m, loop);
	start_long(&m);
	assert_int_equal(machine_run(&m), EXIT_HALT);
	assert_int_equal(m.out[0], (uint32_t)(20000000ull * 20000001 / 2));
	machine_close(&m);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_real), cmocka_unit_test(test_modes), cmocka_unit_test(test_fault),
		cmocka_unit_test(test_triple), cmocka_unit_test(test_irq), cmocka_unit_test(test_user),
		cmocka_unit_test(test_smc), cmocka_unit_test(test_debug), cmocka_unit_test(test_task_v86),
		cmocka_unit_test(test_small_stack), cmocka_unit_test(test_loop),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
