/*
 * The engine under test: one vCPU in user mode of long mode. Every vector's handler is one HLT, so a case ends,
 * by the exit's jump to where nothing is (#PF) or by another fault, in a halted vCPU with the fault on the kernel's stack.
 */
#include <stdlib.h>
#include <string.h>

#include "../engine/quiet.h"
#include "diff.h"
#include "engine/soft/vcpu.h"

enum { GPA_TABLES = 0x10000, GPA_IDT = 0x30000, GPA_GDT = 0x31000, GPA_TSS = 0x32000, GPA_HANDLERS = 0x33000,
       GPA_KSTACK = 0x34000, GPA_CODE = 0x100000, GPA_DATA = 0x200000, GPA_ROM = 0x210000, GPA_STACK = 0x220000,
       GPA_PLAIN = 0x230000, GPA_EXIT = 0x240000, GPA_NEXT = 0x250000, GPA_HIGH = 0x260000, GPA_DEVICE = 0x10000000,
       RAM_BYTES = 4 << 20 };
#define KSTACK_TOP (GPA_KSTACK + 0x1000)
#define PTE_USER 7ull
#define PTE_NX (1ull << 63)

struct soft {
	struct map *map;
	struct engine *en;
	struct vcpu *v;
	struct x86_state user;		/* what every case starts from */
	unsigned tables;
	uint8_t device[DEVICE_BYTES];
};

/* The device: memory, by way of its ops. */
static uint64_t device_read(void *opaque, uint64_t offset, unsigned size)
{
	uint64_t v = 0;
	memcpy(&v, ((struct soft *)opaque)->device + offset, size);
	return v;
}
static void device_write(void *opaque, uint64_t offset, unsigned size, uint64_t value)
{
	memcpy(((struct soft *)opaque)->device + offset, &value, size);
}
static const struct io_ops device_ops = { device_read, device_write, 1, 8 };

static uint8_t *ram(struct soft *s, uint64_t gpa) { return map_ptr(s->map, gpa, 1, true); }

static void map_page_at(struct soft *s, uint64_t va, uint64_t gpa, uint64_t bits)
{
	uint64_t *table = (uint64_t *)ram(s, GPA_TABLES);
	for (unsigned shift = 39; shift > 12; shift -= 9) {
		uint64_t *e = &table[va >> shift & 511];
		if (!*e)
			*e = (GPA_TABLES + ++s->tables * 0x1000u) | PTE_USER;
		table = (uint64_t *)ram(s, *e & ~0xfffull);
	}
	table[va >> 12 & 511] = gpa | bits;
}

static void map_range(struct soft *s, uint64_t va, uint64_t gpa, uint64_t bytes, uint64_t bits)
{
	for (uint64_t i = 0; i < bytes; i += 4096)
		map_page_at(s, va + i, gpa + i, bits);
}

static void memory_init(struct soft *s)
{
	map_range(s, GPA_IDT, GPA_IDT, 0x5000, 3);
	map_range(s, CODE_VA, GPA_CODE, WRITABLE_VA - CODE_VA, 5);
	map_range(s, WRITABLE_VA, GPA_CODE + (WRITABLE_VA - CODE_VA), WRITABLE_BYTES, PTE_USER);
	map_range(s, EXIT_VA, GPA_EXIT, EXIT_PAGE_BYTES, 5);
	map_range(s, PLAIN_VA, GPA_PLAIN, PLAIN_BYTES, PTE_USER | PTE_NX);
	map_range(s, DEVICE_VA, GPA_DEVICE, DEVICE_BYTES, PTE_USER | PTE_NX);
	map_range(s, DATA_VA, GPA_DATA, DATA_BYTES, PTE_USER | PTE_NX);
	map_range(s, ROM_VA, GPA_ROM, ROM_BYTES, 5 | PTE_NX);
	map_range(s, NEXT_VA, GPA_NEXT, END_BYTES, PTE_USER | PTE_NX);
	map_range(s, HIGH_VA, GPA_HIGH, END_BYTES, PTE_USER | PTE_NX);
	map_range(s, STACK_VA, GPA_STACK, STACK_BYTES, PTE_USER | PTE_NX);
	uint64_t *idt = (uint64_t *)ram(s, GPA_IDT), *gdt = (uint64_t *)ram(s, GPA_GDT), top = KSTACK_TOP;
	for (unsigned i = 0; i < 256; i++) {
		uint64_t at = GPA_HANDLERS + i * 16, dpl = i == 3 || i == 4 ? 0x6000 : 0;
		idt[2 * i] = (at & 0xffff) | 0x10 << 16 | (0x8e00 | dpl) << 32 | (at >> 16) << 48;
		*ram(s, at) = 0xf4;
	}
	gdt[2] = 0x00af9b000000ffff;	/* 10: kernel code */
	gdt[3] = 0x00cf93000000ffff;	/* 18: kernel data */
	gdt[4] = 0x00cffb000000ffff;	/* 23: 32-bit user code */
	gdt[5] = 0x00cff3000000ffff;	/* 2b: user data */
	gdt[6] = 0x00affb000000ffff;	/* 33: user code */
	memcpy(ram(s, GPA_TSS + 4), &top, 8);
	*ram(s, GPA_TSS + 0x66) = 0x68;		/* no I/O bitmap */
}

static void state_user(struct x86_state *s)
{
	s->cr0 = CR0_PE | CR0_PG | CR0_NE | CR0_ET | CR0_WP | CR0_MP | CR0_AM;
	s->cr3 = GPA_TABLES;
	s->cr4 = CR4_PAE | CR4_OSFXSR | CR4_OSXMMEXCPT | CR4_OSXSAVE | CR4_FSGSBASE | CR4_PGE;
	s->efer = EFER_LME | EFER_LMA | EFER_SCE | EFER_NXE;
	for (unsigned i = 0; i < SEG_COUNT; i++)
		s->seg[i] = (struct x86_segment){ .limit = ~0u, .selector = SEL_DATA, .attr = 0xc0f3 };
	s->seg[SEG_FS].selector = SEL_FS;
	s->seg[SEG_FS].base = FS_BASE;
	s->seg[SEG_GS].selector = SEL_GS;
	s->seg[SEG_GS].base = GS_BASE;
	s->ldtr = (struct x86_segment){ 0 };		/* none, as Linux has it: at reset its limit is 64 KiB */
	s->tr = (struct x86_segment){ .base = GPA_TSS, .limit = 0x67, .selector = 0x40, .attr = 0x8b };
	s->idtr = (struct x86_table){ GPA_IDT, 0xfff };
	s->gdtr = (struct x86_table){ GPA_GDT, 0xfff };
}

struct soft *soft_new(const struct cpu_model *model, bool interpret_only)
{
	struct engine_config cfg = { .vcpus = 1, .tsc_hz = 1000000000, .interpret_only = interpret_only, .model = model };
	struct soft *s = calloc(1, sizeof *s);
	struct error e;
	if (!s || !(s->map = map_new()) || map_add_ram(s->map, 0, RAM_BYTES, &e) < 0)
		abort();
	if (!map_add_mmio(s->map, GPA_DEVICE, DEVICE_BYTES, &device_ops, s, "device"))
		abort();
	cfg.map = s->map;
	if (engine_soft.create(&s->en, &cfg, &e) < 0 || engine_soft.vcpu_create(&s->v, s->en, &vcpu_quiet, &e) < 0)
		abort();
	memory_init(s);
	engine_soft.get_state(s->v, &s->user);
	state_user(&s->user);
	s->user.xcr0 = cpu_model_xcr0_mask(model) & 0xe7;
	engine_soft.set_state(s->v, &s->user);
	return s;
}

void soft_free(struct soft *s)
{
	engine_soft.vcpu_destroy(s->v);
	engine_soft.destroy(s->en);
	map_free(s->map);
	free(s);
}

uint8_t *soft_code(struct soft *s) { return ram(s, GPA_CODE); }
uint8_t *soft_rom(struct soft *s) { return ram(s, GPA_ROM); }
uint8_t *soft_exit(struct soft *s) { return ram(s, GPA_EXIT); }
uint8_t *soft_area(struct soft *s, enum diff_area area)
{
	static const uint64_t gpa[AREAS] = { [AREA_DATA] = GPA_DATA, [AREA_PLAIN] = GPA_PLAIN, [AREA_NEXT] = GPA_NEXT,
					     [AREA_HIGH] = GPA_HIGH, [AREA_STACK] = GPA_STACK,
					     [AREA_CODE] = GPA_CODE + (WRITABLE_VA - CODE_VA) };

	return area == AREA_DEVICE ? s->device : ram(s, gpa[area]);
}
void soft_code_changed(struct soft *s) { map_wrote(s->map, GPA_CODE, CODE_BYTES); }

static void state_start(struct soft *s, bool wide, const struct diff_state *in)
{
	struct x86_state *g = &s->v->s;
	memcpy(g->gpr, in->gpr, sizeof in->gpr);
	g->rip = in->rip;
	g->rflags = in->rflags;
	memcpy(g->seg, s->user.seg, sizeof g->seg);
	g->seg[SEG_CS].selector = wide ? SEL_CODE64 : SEL_CODE32;
	g->seg[SEG_CS].attr = wide ? 0xa0fb : 0xc0fb;
	memcpy(g->fpu.raw, in->fpu, XSAVE_BYTES);
	g->activity = ACTIVITY_RUNNING;
	g->shadow = 0;
	g->cr2 = 0;
	vcpu_update_mode(s->v);
}

static void state_finish(struct soft *s, struct diff_state *out)
{
	const struct x86_state *g = &s->v->s;
	const uint64_t *frame = (const uint64_t *)ram(s, KSTACK_TOP - 48);
	memcpy(out->gpr, g->gpr, sizeof out->gpr);
	out->gpr[REG_RSP] = frame[4];
	out->vector = (uint32_t)((g->rip - GPA_HANDLERS) / 16) & 0xff;
	out->error = (uint32_t)frame[0];
	out->rip = frame[1];
	out->rflags = frame[3] & ~(uint64_t)FLAG_RF;
	out->cr2 = out->vector == EXC_PF ? g->cr2 : 0;
	memcpy(out->fpu, g->fpu.raw, XSAVE_BYTES);
}

bool soft_run_case(struct soft *s, bool wide, const struct diff_state *in, struct diff_state *out)
{
	struct error e;
	enum exit_reason why;
	*(uint64_t *)ram(s, KSTACK_TOP - 48) = 0;
	state_start(s, wide, in);
	do
		why = engine_soft.run(s->v, &e);
	while (why == EXIT_KICKED);
	if (why != EXIT_HALT)
		return false;
	state_finish(s, out);
	return true;
}
