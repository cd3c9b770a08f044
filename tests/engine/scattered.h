/*
 * Eight pages in a row, in reverse order in RAM, with others' pages between, and programs that run on them on both engines:
 * what a wrong check lets through lands somewhere else than the interpreter says. Among the pages are one that may not be
 * written, one that is not there, one that is a hole in the map, and one that holds code. After cmocka.h.
 */
#ifndef VIXEN_TESTS_ENGINE_SCATTERED_H
#define VIXEN_TESTS_ENGINE_SCATTERED_H

#include "machine.h"

#define RAM_BYTES (4u << 20)
#define TABLES 0x10000u
#define CODE 0x100000u		/* mapped where it is */
#define PAGES 8u
#define VA 0x7fff00000000ull	/* the pages */
#define GPA(i) (0x200000u + (PAGES - 1 - (i)) * 0x2000u)
#define TOP_VA 0xfffffffffffff000ull	/* the last page of all is page 3 once more, the first one page 1 */
#define FS_BASE 0x123456789abcull
enum { PAGE_READ_ONLY = 2, PAGE_ABSENT = 4, PAGE_HOLE = 5, PAGE_CODE = 6 };

static inline void machine_init(struct machine *m, bool interpret_only)
{
	machine_open(m, "x86-64-v2", RAM_BYTES, (struct engine_config){ .interpret_only = interpret_only });
}

static inline uint64_t page_entry(unsigned i)
{
	switch (i) {
	case PAGE_READ_ONLY: return GPA(i) | 1;
	case PAGE_ABSENT: return 0;
	case PAGE_HOLE: return 0x10000000 | 3;
	default: return GPA(i) | 3;
	}
}

/* No accessed or dirty bits. The code is also mapped in the row: what is written there changes what runs. */
static inline void tables_build(struct machine *m)
{
	uint64_t *t = (uint64_t *)ram(m, TABLES);

	memset(t, 0, 0xa000);
	t[VA >> 39 & 511] = (TABLES + 0x1000) | 3;
	t[512 + (VA >> 30 & 511)] = (TABLES + 0x2000) | 3;
	t[1024 + (VA >> 21 & 511)] = (TABLES + 0x3000) | 3;
	for (unsigned i = 0; i < PAGES; i++)
		t[1536 + i] = page_entry(i);
	t[1536 + PAGE_CODE] = (CODE + 0x1000) | 3;
	t[0] = (TABLES + 0x4000) | 3;
	t[2048] = (TABLES + 0x5000) | 3;
	t[2560] = (uint64_t)(TABLES + 0x6000) | 3;
	t[3072 + (CODE >> 12)] = CODE | 3;
	t[3072 + (CODE >> 12) + 1] = (CODE + 0x1000) | 3;
	t[3072] = GPA(1) | 3;
	t[511] = (TABLES + 0x7000) | 3;
	t[3584 + 511] = (TABLES + 0x8000) | 3;
	t[4096 + 511] = (uint64_t)(TABLES + 0x9000) | 3;
	t[4608 + 511] = GPA(3) | 3;
}

static inline void state_prepare(struct x86_state *s)
{
	s->cr0 = CR0_PE | CR0_PG | CR0_NE | CR0_ET | CR0_WP | CR0_MP;
	s->cr3 = TABLES;
	s->cr4 = CR4_PAE | CR4_OSFXSR;
	s->efer = EFER_LME | EFER_LMA;
	for (unsigned i = 0; i < SEG_COUNT; i++)
		s->seg[i] = (struct x86_segment){ .limit = 0xffffffff, .selector = 0x10, .attr = 0xc093 };
	s->seg[SEG_FS].base = FS_BASE;
	s->seg[SEG_CS].selector = 8;
	s->seg[SEG_CS].attr = 0xa09b;
	s->idtr = (struct x86_table){ 0 };	/* a fault is a shutdown, with the state as it was before it */
	s->rip = CODE;
	s->rflags = FLAG_FIXED;
	s->cr2 = 0;
	s->fpu.fcw = 0x37f;
	s->fpu.mxcsr = 0x1f80;
	s->activity = ACTIVITY_RUNNING;
	s->shadow = 0;
	for (unsigned i = 0; i < REG_COUNT; i++)
		s->gpr[i] = 0x1111111111111111ull * i;
}

struct program { uint8_t b[8192]; unsigned n; uint64_t seed; };

static inline unsigned rnd(struct program *p, unsigned n)
{
	p->seed ^= p->seed << 13;
	p->seed ^= p->seed >> 7;
	p->seed ^= p->seed << 17;
	return (unsigned)(p->seed >> 20) % n;
}

static inline void put(struct program *p, unsigned byte) { p->b[p->n++] = (uint8_t)byte; }
static inline void put32(struct program *p, uint32_t v) { memcpy(p->b + p->n, &v, 4); p->n += 4; }

static inline void mov_imm(struct program *p, unsigned reg, uint64_t v)
{
	put(p, 0x48 | reg >> 3), put(p, 0xb8 | (reg & 7));
	memcpy(p->b + p->n, &v, 8);
	p->n += 8;
}

static inline void run(struct machine *m, const struct program *p, struct x86_state *s)
{
	uint64_t v = 88172645463325252ull;

	for (unsigned i = 0; i < PAGES * 0x2000; i += 8) {
		v ^= v << 13, v ^= v >> 7, v ^= v << 17;
		map_write(m->map, GPA(PAGES - 1) + i, &v, 8);
	}
	map_write(m->map, CODE, p->b, p->n);
	tables_build(m);
	engine_soft.get_state(m->v, s);
	state_prepare(s);
	engine_soft.set_state(m->v, s);
	for (unsigned i = 0; i < 10; i++)
		if (engine_soft.run(m->v, NULL) != EXIT_KICKED)
			break;
	engine_soft.get_state(m->v, s);
}

static inline void compare(unsigned program, struct machine *a, struct machine *b, const struct x86_state *sa, const struct x86_state *sb)
{
	const uint64_t *ta = (uint64_t *)ram(a, TABLES), *tb = (uint64_t *)ram(b, TABLES);

	for (unsigned i = 0; i < REG_COUNT; i++)
		if (sa->gpr[i] != sb->gpr[i])
			fail_msg("program %u: register %u: interpreted %llx, translated %llx", program, i,
				 (unsigned long long)sa->gpr[i], (unsigned long long)sb->gpr[i]);
	if (sa->rip != sb->rip || sa->activity != sb->activity || sa->cr2 != sb->cr2)
		fail_msg("program %u: at %llx, cr2 %llx; translated at %llx, cr2 %llx", program, (unsigned long long)sa->rip,
			 (unsigned long long)sa->cr2, (unsigned long long)sb->rip, (unsigned long long)sb->cr2);
	if (sa->activity == ACTIVITY_HALTED)
		assert_int_equal(sa->rflags, sb->rflags);
	assert_memory_equal(sa->fpu.xmm, sb->fpu.xmm, sizeof sa->fpu.xmm);
	if (memcmp(ram(a, GPA(PAGES - 1)), ram(b, GPA(PAGES - 1)), PAGES * 0x2000) || memcmp(ram(a, CODE), ram(b, CODE), 0x2000))
		fail_msg("program %u: memory differs", program);
	/* A check may have looked at a page that a fault before kept from being accessed: that is no write. */
	for (unsigned i = 0; i < PAGES; i++)
		if ((ta[1536 + i] ^ tb[1536 + i]) & ~0x20ull)
			fail_msg("program %u: entry %u: %llx, translated %llx", program, i, (unsigned long long)ta[1536 + i],
				 (unsigned long long)tb[1536 + i]);
}

#endif
