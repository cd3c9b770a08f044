/* The KVM engine: state there and back, and the instructions that incomplete emulators lack. Skipped without KVM. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>
#include <fcntl.h>
#include <unistd.h>

#include "cpu/model.h"
#include "engine/engine.h"
#include "engine/kvm/probe.h"
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

static void test_instructions(void **state)
{
	struct machine *m = *state;
	uint64_t handler = CODE + (uint64_t)(kvm_guest_int3 - kvm_guest), cell[2], bits[RAM_BYTES / 4096 / 64];
	const uint64_t gdt[3] = { 0, 0x00af9b000000ffff, 0x00cf93000000ffff };
	const uint64_t gate[2] = { (handler & 0xffff) | 8 << 16 | 0x8eull << 40 | (handler >> 16 & 0xffff) << 48, 0 };
	const uint64_t tables[3] = { TABLES + 0x1007, TABLES + 0x2007, 0x87 }, high = 0x200087;

	if (!cpu_model_has(m->model, FEATURE_XSAVE))
		skip();
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
		cmocka_unit_test(test_probe),
	};
	int fd = open("/dev/kvm", O_RDWR | O_CLOEXEC);

	if (fd < 0)
		return 77;
	close(fd);
	return cmocka_run_group_tests(tests, NULL, NULL);
}
