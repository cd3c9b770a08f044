/* A machine with one vCPU of the software engine, for tests that run code on it and look at what comes of it. After cmocka.h. */
#ifndef VIXEN_TESTS_ENGINE_MACHINE_H
#define VIXEN_TESTS_ENGINE_MACHINE_H

#include "cpu/model.h"
#include "memory/map.h"
#include "quiet.h"

struct machine {
	struct map *map;
	struct cpu_model *model;
	struct engine *en;
	struct vcpu *v;
	int irq;	/* the vector that is pending; -1: none */
};

static inline bool machine_irq_pending(void *opaque) { return ((struct machine *)opaque)->irq >= 0; }
static inline int machine_irq_ack(void *opaque)
{
	struct machine *m = opaque;
	int vector = m->irq;

	m->irq = -1;
	return vector;
}

/* cfg: what is not the default. */
static inline void machine_open_at(struct machine *m, const char *model, uint64_t ram_bytes, uint64_t tsc_hz,
				   struct engine_config cfg)
{
	struct cpu_model_config mc = { .name = model, .tsc_hz = tsc_hz, .kvmclock = true };
	struct vcpu_wiring w = vcpu_quiet;

	*m = (struct machine){ .map = map_new(), .irq = -1 };
	assert_non_null(m->map);
	assert_int_equal(map_add_ram(m->map, 0, ram_bytes, NULL), 0);
	assert_int_equal(cpu_model_new(&m->model, &mc, NULL), 0);
	w.opaque = m;
	w.irq_pending = machine_irq_pending;
	w.irq_ack = machine_irq_ack;
	cfg.vcpus = 1;
	cfg.tsc_hz = tsc_hz;
	cfg.map = m->map;
	cfg.model = m->model;
	assert_int_equal(engine_soft.create(&m->en, &cfg, NULL), 0);
	assert_int_equal(engine_soft.vcpu_create(&m->v, m->en, &w, NULL), 0);
}

static inline void machine_open(struct machine *m, const char *model, uint64_t ram_bytes, struct engine_config cfg)
{
	machine_open_at(m, model, ram_bytes, 1000000000, cfg);
}

static inline void machine_fini(struct machine *m)
{
	engine_soft.vcpu_destroy(m->v);
	engine_soft.destroy(m->en);
	cpu_model_free(m->model);
	map_free(m->map);
}

static inline uint8_t *ram(const struct machine *m, uint64_t gpa) { return map_ptr(m->map, gpa, 1, true); }

/* PML4, PDPT and PD at `tables`: the first 4 MiB where they are, for everybody, by pages of 2 MiB. */
static inline void tables_identity(struct map *map, uint64_t tables)
{
	uint64_t *pml4 = map_ptr(map, tables, 0x3000, true), *pdpt = pml4 + 512, *pd = pml4 + 1024;

	pml4[0] = (tables + 0x1000) | 7;
	pdpt[0] = (tables + 0x2000) | 7;
	for (unsigned i = 0; i < 2; i++)
		pd[i] = (uint64_t)i << 21 | 0xe7;
}

/* CPL 0 of long mode with flat segments; the tables may be such, and there is a stack. */
static inline void state_long_mode(struct x86_state *s, uint64_t tables, uint64_t rip, uint64_t rsp)
{
	s->cr0 = CR0_PE | CR0_PG | CR0_NE | CR0_ET | CR0_WP | CR0_MP;
	s->cr3 = tables;
	s->cr4 = CR4_PAE | CR4_OSFXSR | CR4_OSXMMEXCPT | CR4_OSXSAVE;
	s->xcr0 = 7;
	s->efer = EFER_LME | EFER_LMA | EFER_SCE | EFER_NXE;
	for (unsigned i = 0; i < SEG_COUNT; i++)
		s->seg[i] = (struct x86_segment){ .limit = 0xffffffff, .selector = 0x10, .attr = 0xc093 };
	s->seg[SEG_CS].selector = 8;
	s->seg[SEG_CS].attr = 0xa09b;
	s->rip = rip;
	s->rflags = FLAG_FIXED;
	s->gpr[REG_RSP] = rsp;
}

#endif
