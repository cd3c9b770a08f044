/*
 * The probe: a machine of 2 MiB, whose vCPU counts in a loop for a while in each mode. In long mode it first
 * executes what incomplete emulators lack: int3 in the kernel, CMPXCHG16B, XRSTOR.
 *
 *   0x1000 code | 0x2000 GDT | 0x3000 IDT | 0x4000 data | 0x5000 XSAVE area | 0x7000 top of stack | 0x10000 tables
 */
#include "engine/kvm/probe.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "cpu/model.h"
#include "engine/kvm/kvm_private.h"
#include "host/loop.h"

#define RAM_BYTES (2u << 20)
#define SLICE_NS 10000000
#define TRIES 3			/* the host may be busy */
#define USEFUL 100000000ull	/* instructions per second; hardware does thousands of millions */
#define EMULATED 20000000ull	/* fewer come from an emulator */

enum { CODE = 0x1000, GDT = 0x2000, IDT = 0x3000, DATA = 0x4000, XSAVE = 0x5000, STACK = 0x7000, TABLES = 0x10000 };
enum mode { MODE_REAL, MODE_PROTECTED, MODE_LONG, MODES };
static const char *const mode_names[MODES] = { "real", "protected", "long" };

static const uint8_t loop_real[] = { 0x66, 0x41, 0xeb, 0xfc };		/* 1: inc ecx; jmp 1b */
static const uint8_t loop_protected[] = { 0x41, 0xeb, 0xfd };
/* RBX: data, RDI: XSAVE area, RSI: there is XSAVE. RBP counts int3. */
__asm__(".pushsection .rodata\n"
	"kvm_probe_long:\n"
	"	int3\n"
	"	xor %eax, %eax\n"
	"	xor %edx, %edx\n"
	"	lock cmpxchg16b 16(%rbx)\n"
	"	test %rsi, %rsi\n"
	"	jz 1f\n"
	"	mov $3, %eax\n"
	"	xsave (%rdi)\n"
	"	xrstor (%rdi)\n"
	"1:	xor %ecx, %ecx\n"
	"2:	inc %rcx\n"
	"	jmp 2b\n"
	"kvm_probe_int3:\n"
	"	inc %rbp\n"
	"	iretq\n"
	"kvm_probe_end:\n"
	".popsection\n");
extern const char kvm_probe_long[], kvm_probe_int3[], kvm_probe_end[];

struct probe {
	struct map *map;
	struct cpu_model *model;
	struct engine *en;
	struct vcpu *v;
	atomic_bool done;
	uint64_t fallbacks, slowest;	/* instructions per second */
};

static void memory_fill(struct probe *p)
{
	uint64_t handler = CODE + (uint64_t)(kvm_probe_int3 - kvm_probe_long);
	const uint64_t gdt[3] = { 0, 0x00af9b000000ffff, 0x00cf93000000ffff };
	const uint64_t gate[2] = { (handler & 0xffff) | 8 << 16 | 0x8eull << 40 | (handler >> 16 & 0xffff) << 48, 0 };
	const uint64_t pml4 = TABLES + 0x1007, pdpt = TABLES + 0x2007, pd = 0x87;

	map_write(p->map, GDT, gdt, sizeof(gdt));
	map_write(p->map, IDT + 3 * 16, gate, sizeof(gate));
	map_write(p->map, TABLES, &pml4, 8);
	map_write(p->map, TABLES + 0x1000, &pdpt, 8);
	map_write(p->map, TABLES + 0x2000, &pd, 8);
}

static void code_fill(struct probe *p, enum mode mode)
{
	if (mode == MODE_REAL)
		map_write(p->map, CODE, loop_real, sizeof(loop_real));
	else if (mode == MODE_PROTECTED)
		map_write(p->map, CODE, loop_protected, sizeof(loop_protected));
	else
		map_write(p->map, CODE, kvm_probe_long, (size_t)(kvm_probe_end - kvm_probe_long));
}

static void state_fill(struct probe *p, enum mode mode, struct x86_state *s)
{
	bool xsave = cpu_model_has(p->model, FEATURE_XSAVE);

	state_reset(s, true);
	s->seg[SEG_CS].base = s->seg[SEG_CS].selector = 0;
	s->rip = CODE;
	s->gpr[REG_RSP] = STACK;
	s->gpr[REG_RBX] = DATA;
	s->gpr[REG_RDI] = XSAVE;
	s->gpr[REG_RSI] = xsave;
	if (mode == MODE_REAL)
		return;
	for (unsigned i = 0; i < SEG_COUNT; i++)
		s->seg[i] = (struct x86_segment){ .limit = 0xffffffff, .selector = 0x10, .attr = 0xc093 };
	s->seg[SEG_CS].selector = 8;
	s->seg[SEG_CS].attr = mode == MODE_LONG ? 0xa09b : 0xc09b;
	s->cr0 = CR0_PE | CR0_ET | CR0_NE;
	s->gdtr = (struct x86_table){ GDT, 23 };
	s->idtr = (struct x86_table){ IDT, 4 * 16 - 1 };
	if (mode == MODE_PROTECTED)
		return;
	s->cr0 |= CR0_PG | CR0_WP;
	s->cr3 = TABLES;
	s->cr4 = CR4_PAE | CR4_OSFXSR | (xsave ? CR4_OSXSAVE : 0);
	s->efer = EFER_LME | EFER_LMA;
}

/* Kicks until the slice is over, whatever the vCPU is stuck in. */
static void *watch(void *opaque)
{
	struct probe *p = opaque;
	const struct timespec slice = { 0, SLICE_NS };

	while (!atomic_load(&p->done)) {
		nanosleep(&slice, NULL);
		kvm_vcpu_kick(p->v);
	}
	return NULL;
}

static bool slice_run(struct probe *p, enum mode mode, struct x86_state *s, uint64_t *rate)
{
	pthread_t thread;
	struct error e = { 0 };
	enum exit_reason why;
	uint64_t start;

	code_fill(p, mode);
	state_fill(p, mode, s);
	kvm_set_state(p->v, s);
	atomic_store(&p->v->kicked, false);	/* kicks stick: the last slice may have left one */
	atomic_store(&p->done, false);
	if (pthread_create(&thread, NULL, watch, p))
		return false;
	start = clock_now_ns();
	why = kvm_vcpu_run(p->v, &e);
	*rate = clock_now_ns() - start;
	atomic_store(&p->done, true);
	pthread_join(thread, NULL);
	kvm_get_state(p->v, s);
	*rate = (uint64_t)((unsigned __int128)s->gpr[REG_RCX] * 2 * 1000000000u / (*rate + 1));
	return why == EXIT_KICKED;
}

/* What the instructions of long mode should have left. */
static bool long_right(struct probe *p, const struct x86_state *s)
{
	uint64_t cell = 0;

	map_read(p->map, DATA + 16, &cell, 8);
	return s->gpr[REG_RBP] >= 1 && cell == DATA;
}

static bool mode_run(struct probe *p, enum mode mode, struct kvm_probe *out)
{
	struct x86_state *s = aligned_alloc(64, sizeof(*s));
	uint64_t best = 0, rate = 0;
	bool right = false;

	for (unsigned i = 0; i < TRIES && s && (!right || best < USEFUL); i++) {
		right = slice_run(p, mode, s, &rate) && rate && (mode != MODE_LONG || long_right(p, s));
		best = rate > best ? rate : best;
	}
	free(s);
	if (best < p->slowest)
		p->slowest = best;
	if (!right)
		snprintf(out->found, sizeof(out->found), "/dev/kvm opens, but guest code fails in %s mode", mode_names[mode]);
	return right;
}

static void judge(struct probe *p, struct kvm_probe *out)
{
	uint64_t lost = p->v->fallbacks, mips = p->slowest / 1000000;

	out->good = !lost && p->slowest >= USEFUL;
	if (out->good)
		snprintf(out->found, sizeof(out->found), "/dev/kvm runs guest code in all modes, at hardware speed");
	else
		snprintf(out->found, sizeof(out->found),
			 "/dev/kvm emulates guest kernels: %llu million instructions/s%s", (unsigned long long)mips,
			 lost ? ", and without int3, cmpxchg16b or xrstor" : "");
}

static int probe_new(struct probe *p, struct error *e)
{
	const struct cpu_model_config mc = { .name = "host" };
	struct engine_config ec = { .vcpus = 1 };
	int ret = cpu_model_new(&p->model, &mc, e);

	p->slowest = UINT64_MAX;
	p->map = map_new();
	if (!ret && !p->map)
		ret = error_set(e, ENOMEM, NULL, "try /dev/kvm", "out of memory");
	if (!ret)
		ret = map_add_ram(p->map, 0, RAM_BYTES, e);
	ec.map = p->map;
	ec.model = p->model;
	if (!ret)
		ret = engine_kvm.create(&p->en, &ec, e);
	if (!ret)
		ret = kvm_vcpu_create(&p->v, p->en, &(struct vcpu_wiring){ 0 }, e);
	return ret;
}

static void probe_free(struct probe *p)
{
	if (p->v)
		kvm_vcpu_destroy(p->v);
	if (p->en)
		engine_kvm.destroy(p->en);
	if (p->map)
		map_free(p->map);
	if (p->model)
		cpu_model_free(p->model);
}

void kvm_probe(struct kvm_probe *out)
{
	struct probe p = { 0 };
	struct error e = { 0 };
	bool right = true;
	int fd = open("/dev/kvm", O_RDWR | O_CLOEXEC);

	*out = (struct kvm_probe){ 0 };
	if (fd < 0) {
		snprintf(out->found, sizeof(out->found), errno == EACCES ? "/dev/kvm: no permission" : "no /dev/kvm (%s)",
			 strerror(errno));
		return;
	}
	close(fd);
	if (probe_new(&p, &e)) {
		snprintf(out->found, sizeof(out->found), "/dev/kvm opens, but %.60s failed: %.60s", e.what, e.why);
	} else {
		memory_fill(&p);
		for (enum mode m = MODE_REAL; m < MODES && right; m++)
			right = mode_run(&p, m, out);
		if (right)
			judge(&p, out);
		out->emulates = p.v->fallbacks || p.slowest < EMULATED;
	}
	probe_free(&p);
}
