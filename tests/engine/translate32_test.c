/*
 * Random 32-bit programs in compatibility mode, interpreted and translated: same registers, flags and memory.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "machine.h"

#define RAM_BYTES (4u << 20)
#define TABLES 0x10000u		/* page tables: identity, 2 MiB pages */
#define CODE 0x100000u
#define DATA 0x200000u
#define DATA_BYTES 0x4000u
#define STACK 0x300000u
#define PROGRAM_BYTES 0x3000u

static void machine_init(struct machine *m, bool interpret_only)
{
	machine_open(m, "host", RAM_BYTES, (struct engine_config){ .interpret_only = interpret_only });
}

/* Registers come with upper halves that 32-bit code must not see. */
static void state_compat(struct x86_state *s)
{
	s->cr0 = CR0_PE | CR0_PG | CR0_NE | CR0_ET | CR0_WP | CR0_MP;
	s->cr3 = TABLES;
	s->cr4 = CR4_PAE | CR4_OSFXSR | CR4_OSXMMEXCPT;
	s->efer = EFER_LME | EFER_LMA | EFER_SCE | EFER_NXE;
	for (unsigned i = 0; i < SEG_COUNT; i++)
		s->seg[i] = (struct x86_segment){ .limit = 0xffffffff, .selector = 0x10, .attr = 0xc093 };
	s->seg[SEG_CS].selector = 8;
	s->seg[SEG_CS].attr = 0xc09b;
	s->seg[SEG_FS].base = DATA + 0x100;
	s->seg[SEG_GS].base = DATA;
	s->seg[SEG_GS].limit = DATA_BYTES - 1;		/* not flat: the interpreter's */
	s->seg[SEG_GS].attr = 0x4093;
	s->rip = CODE;
	s->rflags = FLAG_FIXED;
	for (unsigned i = 0; i < REG_COUNT; i++)
		s->gpr[i] = 0x8123456789abcdefull * (i + 1);
	s->gpr[REG_RSP] = 0xffff800000000000ull | STACK;
	s->fpu.fcw = 0x37f;
	s->fpu.mxcsr = 0x1f80;
	s->activity = ACTIVITY_RUNNING;
	s->shadow = 0;
}

/* --- random programs --- */

struct program { uint8_t b[PROGRAM_BYTES]; unsigned n; uint64_t seed; };

static uint64_t rnd(struct program *p)
{
	p->seed ^= p->seed << 13;
	p->seed ^= p->seed >> 7;
	p->seed ^= p->seed << 17;
	return p->seed;
}

static void put(struct program *p, unsigned byte) { p->b[p->n++] = (uint8_t)byte; }
static void put32(struct program *p, uint32_t v) { memcpy(p->b + p->n, &v, 4); p->n += 4; }
static void put_bytes(struct program *p, const char *s, unsigned n) { memcpy(p->b + p->n, s, n); p->n += n; }

static unsigned reg_any(struct program *p)
{
	unsigned r;

	do
		r = rnd(p) % 8;
	while (r == REG_RSP);
	return r;
}

static void mov_imm(struct program *p, unsigned reg, uint32_t v) { put(p, 0xb8 | reg), put32(p, v); }

/* Flags are all defined after CMP. */
static void define_flags(struct program *p) { put(p, 0x39), put(p, 0xc0 | (rnd(p) & 3) << 3 | 2); }

/* An r/m operand: a register, or memory in the data area by one of the address forms, some of which wrap. Emits
 * what must come before the instruction (loads, prefixes) and returns the bytes to follow the opcode. */
struct rm { uint8_t b[8]; unsigned n; int segment; };

static struct rm rm_make(struct program *p, unsigned reg, bool memory)
{
	struct rm m = { .segment = -1 };
	unsigned base = reg_any(p), index = reg_any(p), form = rnd(p) % 6;
	uint32_t at = DATA + 0x800 + rnd(p) % 0x3000, disp = (uint32_t)rnd(p);

	if (!memory) {
		m.b[m.n++] = (uint8_t)(0xc0 | reg << 3 | rnd(p) % 8);
		if ((m.b[0] & 7) == REG_RSP)
			m.b[0] ^= 1;
		return m;
	}
	if (rnd(p) % 6 == 0) {
		m.segment = rnd(p) & 1 ? 0x64 : 0x65;
		at -= DATA + (m.segment == 0x64 ? 0x100 : 0);
	}
	if (form == 0 || base == REG_RBP) {		/* [disp32] */
		m.b[m.n++] = (uint8_t)(reg << 3 | 5);
		disp = at;
	} else if (form <= 2) {				/* [base + disp32]: wraps more often than not */
		mov_imm(p, base, at - disp);
		m.b[m.n++] = (uint8_t)(0x80 | reg << 3 | base);
	} else if (form == 3 && index != base) {	/* [base + index * scale + disp32] */
		unsigned scale = rnd(p) & 3;
		uint32_t i = (uint32_t)rnd(p);
		mov_imm(p, index, i);
		mov_imm(p, base, at - disp - (i << scale));
		m.b[m.n++] = (uint8_t)(0x80 | reg << 3 | 4);
		m.b[m.n++] = (uint8_t)(scale << 6 | index << 3 | base);
	} else {					/* [base + disp8] */
		m.b[m.n++] = (uint8_t)(0x40 | reg << 3 | base);
		m.b[m.n++] = (uint8_t)disp;
		mov_imm(p, base, at - (uint32_t)(int32_t)(int8_t)disp);
		return m;
	}
	memcpy(m.b + m.n, &disp, 4);
	m.n += 4;
	return m;
}

/* [segment] [66] [0F] opcode ModR/M... imm. wide: 16 or 32 bits. */
static void modrm_insn(struct program *p, bool escape, unsigned opcode, int digit, bool wide, unsigned imm, bool memory)
{
	struct rm m = rm_make(p, digit >= 0 ? (unsigned)digit : wide ? reg_any(p) : rnd(p) % 8, memory);
	bool word = wide && rnd(p) % 4 == 0;

	if (m.segment >= 0)
		put(p, (unsigned)m.segment);
	if (word)
		put(p, 0x66);
	if (escape)
		put(p, 0x0f);
	put(p, opcode);
	put_bytes(p, (const char *)m.b, m.n);
	if (imm == 4 && word)
		imm = 2;
	while (imm--)
		put(p, rnd(p) & 0xff);
}

static void insn_alu(struct program *p)
{
	unsigned op = rnd(p) % 8;
	bool memory = rnd(p) & 1;

	switch (rnd(p) % 5) {
	case 0: modrm_insn(p, false, op << 3 | (rnd(p) & 2), -1, false, 0, memory); break;
	case 1: modrm_insn(p, false, op << 3 | 1 | (rnd(p) & 2), -1, true, 0, memory); break;
	case 2: modrm_insn(p, false, 0x82, (int)op, false, 1, memory); break;
	case 3: modrm_insn(p, false, 0x83, (int)op, true, 1, memory); break;
	default: modrm_insn(p, false, 0x81, (int)op, true, 4, memory); break;
	}
	define_flags(p);
}

static void insn_move(struct program *p)
{
	static const uint8_t extend[] = { 0xb6, 0xb7, 0xbe, 0xbf };
	bool memory = rnd(p) & 1, fs;

	switch (rnd(p) % 9) {
	case 0: modrm_insn(p, false, 0x88 | (rnd(p) & 2), -1, false, 0, memory); break;
	case 1: modrm_insn(p, false, 0x89 | (rnd(p) & 2), -1, true, 0, memory); break;
	case 2: modrm_insn(p, false, 0xc7, 0, true, 4, memory); break;
	case 3: modrm_insn(p, true, extend[rnd(p) % 4], -1, true, 0, memory); break;
	case 4: modrm_insn(p, true, 0x40 | rnd(p) % 16, -1, true, 0, memory); break;
	case 5: modrm_insn(p, true, 0x90 | rnd(p) % 16, 0, false, 0, memory); break;
	case 6:	/* moffs */
		fs = rnd(p) & 1;
		put(p, fs ? 0x64 : 0x66);
		put(p, 0xa0 | rnd(p) % 4);
		put32(p, (fs ? 0 : DATA) + rnd(p) % 0x3000);
		break;
	case 7: modrm_insn(p, false, 0x8d, (int)reg_any(p), true, 0, true); break;
	default: mov_imm(p, reg_any(p), (uint32_t)rnd(p)); break;
	}
}

static void insn_bits(struct program *p)
{
	bool memory = rnd(p) & 1;
	unsigned r = reg_any(p);

	switch (rnd(p) % 9) {
	case 0: modrm_insn(p, false, 0xc1, 4 + (int)(rnd(p) & 1), true, 1, memory); break;
	case 1: modrm_insn(p, true, 0xaf, -1, true, 0, memory); break;
	case 2: modrm_insn(p, false, 0xf7, 4 + (int)(rnd(p) & 1), true, 0, memory); break;
	case 3: modrm_insn(p, true, 0xba, 4 + (int)(rnd(p) % 4), true, 1, memory); break;
	case 4: modrm_insn(p, true, 0xb1, -1, true, 0, memory); break;
	case 5: modrm_insn(p, true, 0xc1, -1, true, 0, memory); break;
	case 6: modrm_insn(p, false, 0xf7, 2 + (int)(rnd(p) & 1), true, 0, memory); break;
	case 7: put(p, 0x0f), put(p, 0xc8 | r); break;
	default:	/* bt [edi + disp], r: a bit string, either side of its base */
		if (r == REG_RDI)
			break;
		mov_imm(p, REG_RDI, DATA + 0x1000 - 0x90000000u);
		mov_imm(p, r, (uint32_t)(rnd(p) % 20000) - 10000);
		put(p, 0x0f), put(p, 0xa3 | (rnd(p) & 3) << 3), put(p, 0x87 | r << 3), put32(p, 0x90000000u);
		break;
	}
	define_flags(p);
}

static void insn_stack(struct program *p)
{
	unsigned r = reg_any(p);

	switch (rnd(p) % 8) {
	case 0: put(p, 0x50 | rnd(p) % 8), put(p, 0x58 | r); break;
	case 1: put(p, 0x68), put32(p, (uint32_t)rnd(p)), put(p, 0x58 | r); break;
	case 2: put(p, 0x9c), put(p, 0x58 | r); break;
	case 3: modrm_insn(p, false, 0xff, 6, false, 0, true), put(p, 0x58 | r); break;
	case 4: put_bytes(p, "\x55\x89\xe5\x6a\x05\xc9", 6); break;		/* push ebp; mov ebp, esp; push; leave */
	case 5: put(p, 0x60), put(p, 0x61); break;
	case 6: put_bytes(p, "\x54\x5c", 2); break;				/* push esp; pop esp */
	default: put(p, 0x66), put(p, 0x50 | r), put(p, 0x66), put(p, 0x58 | r); break;
	}
}

static void insn_flow(struct program *p)
{
	unsigned at, r = reg_any(p);

	switch (rnd(p) % 5) {
	case 0:
		put(p, 0x70 | rnd(p) % 16), put(p, 0);
		at = p->n;
		insn_alu(p);
		p->b[at - 1] = (uint8_t)(p->n - at);
		break;
	case 1:	/* call f; jmp over; f: insn; ret; over: */
		put(p, 0xe8), put32(p, 2);
		put(p, 0xeb), put(p, 0);
		at = p->n;
		insn_move(p);
		put(p, 0xc3);
		p->b[at - 1] = (uint8_t)(p->n - at);
		break;
	case 2:	/* mov ecx, n; l: inc or dec; loop l */
		mov_imm(p, REG_RCX, 1 + rnd(p) % 9);
		at = p->n;
		put(p, 0x40 | (rnd(p) & 8) | (r == REG_RCX ? REG_RAX : r));
		put(p, 0xe2), put(p, at - (p->n + 1));
		break;
	case 3:	/* call through a register and memory */
		at = p->n;
		mov_imm(p, r, CODE + at + 5 + 4);
		put(p, 0xff), put(p, 0xd0 | r);
		put(p, 0xeb), put(p, 1);
		put(p, 0xc3);
		break;
	default:
		mov_imm(p, REG_RSI, DATA + rnd(p) % 0x2000);
		mov_imm(p, REG_RDI, DATA + rnd(p) % 0x2000);
		mov_imm(p, REG_RCX, rnd(p) % 300);
		put(p, 0xf3), put(p, rnd(p) & 1 ? 0xa5 : 0xaa);
		break;
	}
}

/* Returns that do not pair with calls. */
static void insn_unpaired(struct program *p)
{
	unsigned r = reg_any(p), at;

	switch (rnd(p) % 4) {
	case 0:		/* call next; pop r */
		put(p, 0xe8), put32(p, 0), put(p, 0x58 | r);
		break;
	case 1:		/* push behind; ret */
		at = p->n;
		put(p, 0x68), put32(p, CODE + at + 6), put(p, 0xc3);
		break;
	case 2:		/* call f; ud2; jmp over; f: add dword [esp], 2; ret: over the UD2 */
		put(p, 0xe8), put32(p, 4);
		put_bytes(p, "\x0f\x0b\xeb\x05\x83\x04\x24\x02\xc3", 9);
		break;
	default:	/* push 1; call f; jmp over; f: ret 4 */
		put_bytes(p, "\x6a\x01\xe8\x02\x00\x00\x00\xeb\x03\xc2\x04\x00", 12);
		break;
	}
}

static void insn_float(struct program *p)
{
	static const uint8_t ops[] = { 0x58, 0x59, 0x5c, 0x54, 0x57, 0x14, 0xc6 };
	unsigned op = ops[rnd(p) % 7];
	struct rm m = rm_make(p, rnd(p) % 8, true);

	if (m.segment >= 0)
		put(p, (unsigned)m.segment);
	put(p, 0x0f), put(p, 0x10);	/* movups */
	put_bytes(p, (const char *)m.b, m.n);
	put(p, 0x0f), put(p, op), put(p, 0xc0 | rnd(p) % 64);
	if (op == 0xc6)
		put(p, rnd(p) & 0xff);
	put_bytes(p, "\x0f\x29\x05", 3);	/* movaps [disp32], xmm0 */
	put32(p, DATA + (rnd(p) % 0x200) * 16);
}

static void program_make(struct program *p, uint64_t seed)
{
	memset(p, 0, sizeof *p);
	p->seed = seed * 0x9e3779b97f4a7c15ull + 1;
	while (p->n < PROGRAM_BYTES - 100) {
		switch (rnd(p) % 8) {
		case 0: case 1: insn_alu(p); break;
		case 2: insn_move(p); break;
		case 3: insn_bits(p); break;
		case 4: insn_stack(p); break;
		case 5: insn_float(p); break;
		case 6: insn_unpaired(p); break;
		default: insn_flow(p); break;
		}
	}
	put(p, 0xf4);
}

static void run_program(struct machine *m, const struct program *p, struct x86_state *out)
{
	struct x86_state s;
	struct error e;
	uint64_t seed = 88172645463325252ull;

	tables_identity(m->map, TABLES);
	map_write(m->map, CODE, p->b, PROGRAM_BYTES);
	for (unsigned i = 0; i < DATA_BYTES; i += 8) {
		seed ^= seed << 13, seed ^= seed >> 7, seed ^= seed << 17;
		map_write(m->map, DATA + i, &seed, 8);
	}
	engine_soft.get_state(m->v, &s);
	state_compat(&s);
	memset(s.fpu.xmm, 0, sizeof s.fpu.xmm);
	engine_soft.set_state(m->v, &s);
	for (unsigned i = 0; i < 10; i++)
		if (engine_soft.run(m->v, &e) != EXIT_KICKED)
			break;
	engine_soft.get_state(m->v, out);
}

static void test_random(void **state)
{
	struct machine a, b;
	struct x86_state sa, sb;
	static struct program p;

	machine_init(&a, true);
	machine_init(&b, false);
	for (unsigned i = 1; i <= 200; i++) {
		program_make(&p, i);
		run_program(&a, &p, &sa);
		run_program(&b, &p, &sb);
		assert_int_equal(sa.activity, ACTIVITY_HALTED);
		for (unsigned r = 0; r < 8; r++)
			if ((uint32_t)sa.gpr[r] != (uint32_t)sb.gpr[r])
				fail_msg("program %u, register %u: interpreted %x, translated %x", i, r,
					 (unsigned)sa.gpr[r], (unsigned)sb.gpr[r]);
		assert_int_equal(sa.rip, sb.rip);
		assert_int_equal(sa.rflags, sb.rflags);
		assert_memory_equal(ram(&a, DATA), ram(&b, DATA), DATA_BYTES);
		assert_memory_equal(ram(&a, STACK - 0x100), ram(&b, STACK - 0x100), 0x100);
	}
	machine_fini(&a);
	machine_fini(&b);
}

int main(void)
{
	const struct CMUnitTest tests[] = { cmocka_unit_test(test_random) };

	return cmocka_run_group_tests(tests, NULL, NULL);
}
