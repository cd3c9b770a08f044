/*
 * Random programs on the interpreter and on the translator: same registers, flags and memory afterwards.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

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

static void state_begin(struct x86_state *s)
{
	state_long_mode(s, TABLES, CODE, STACK);
	s->seg[SEG_FS].base = DATA + 0x100;
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
static void put64(struct program *p, uint64_t v) { memcpy(p->b + p->n, &v, 8); p->n += 8; }
static unsigned reg_any(struct program *p)
{
	unsigned r;

	do
		r = rnd(p) % 16;
	while (r == REG_RSP);
	return r;
}

static void mov_imm(struct program *p, unsigned reg, uint64_t v)
{
	put(p, 0x48 | (reg >> 3));
	put(p, 0xb8 | (reg & 7));
	put64(p, v);
}

/* [66] REX opcode(s) ModR/M with a register or memory r/m; w random. imm bytes follow. */
static void modrm_insn(struct program *p, unsigned escape, unsigned opcode, int digit, bool byte, unsigned imm,
		       bool allow_mem, unsigned prefix)
{
	unsigned reg = digit >= 0 ? (unsigned)digit : reg_any(p), rm = reg_any(p), rex = 0x40, w = rnd(p) % 3;
	bool mem = allow_mem && (rnd(p) & 1), fs = mem && rnd(p) % 8 == 0;
	unsigned index = reg_any(p), form = rnd(p) % 3;

	if (mem) {
		mov_imm(p, rm, fs ? rnd(p) % 2000 + 0x80 : DATA + 0x100 + rnd(p) % (DATA_BYTES - 0x900));
		if (form == 2 && index != rm)
			mov_imm(p, index, rnd(p) % 64);
		else if (form == 2)
			form = 1;
	}
	if (fs)
		put(p, 0x64);
	if (w == 2 && !byte && prefix != 1)
		put(p, 0x66);
	if (prefix > 1)
		put(p, prefix);
	rex |= (w == 1 ? 8 : 0) | (digit < 0 && (reg & 8) ? 4 : 0) | (rm & 8 ? 1 : 0) |
	       (mem && form == 2 && (index & 8) ? 2 : 0);
	put(p, rex);
	if (escape)
		put(p, 0x0f);
	if (escape > 1)
		put(p, escape);
	put(p, opcode);
	if (!mem) {
		put(p, 0xc0 | (reg & 7) << 3 | (rm & 7));
	} else if (form == 2 || (rm & 7) == 4) {
		put(p, 0x44 | (reg & 7) << 3);
		put(p, (form == 2 ? (rnd(p) & 3) << 6 | (index & 7) << 3 : 0x20) | (rm & 7));
		put(p, rnd(p) % 0x70);
	} else if (form == 1) {
		put(p, 0x80 | (reg & 7) << 3 | (rm & 7));
		put32(p, rnd(p) % 0x200);
	} else {
		put(p, 0x40 | (reg & 7) << 3 | (rm & 7));
		put(p, rnd(p) % 0xf8);
	}
	if (imm == 4 && w == 2)
		imm = 2;
	for (; imm; imm--)
		put(p, (unsigned)rnd(p) & 0xff);
}

/* Makes all flags defined again. */
static void define_flags(struct program *p)
{
	put(p, 0x48), put(p, 0x39), put(p, 0xc0 | (unsigned)(rnd(p) & 3) << 3 | 2);
}

static void insn_alu(struct program *p)
{
	unsigned op = rnd(p) % 8;
	bool logic = op == 1 || op == 4 || op == 6;

	switch (rnd(p) % 4) {
	case 0: modrm_insn(p, 0, op << 3 | (rnd(p) & 2), -1, true, 0, true, 0); break;
	case 1: modrm_insn(p, 0, op << 3 | 1 | (rnd(p) & 2), -1, false, 0, true, 0); break;
	case 2: modrm_insn(p, 0, 0x83, (int)op, false, 1, true, 0); break;
	default: modrm_insn(p, 0, 0x81, (int)op, false, 4, true, 0); break;
	}
	if (logic)
		define_flags(p);
}

static void insn_move(struct program *p)
{
	static const uint8_t zx[] = { 0xb6, 0xb7, 0xbe, 0xbf };

	switch (rnd(p) % 8) {
	case 0: modrm_insn(p, 0, 0x88 | (rnd(p) & 2), -1, true, 0, true, 0); break;
	case 1: modrm_insn(p, 0, 0x89 | (rnd(p) & 2), -1, false, 0, true, 0); break;
	case 2: modrm_insn(p, 0, 0xc7, 0, false, 4, true, 0); break;
	case 3: modrm_insn(p, 1, zx[rnd(p) % 4], -1, false, 0, true, 0); break;
	case 4: modrm_insn(p, 0, 0x63, -1, false, 0, true, 1); break;
	case 5: modrm_insn(p, 1, 0x40 | rnd(p) % 16, -1, false, 0, true, 0); break;
	case 6: modrm_insn(p, 1, 0x90 | rnd(p) % 16, 0, true, 0, true, 0); break;
	default: mov_imm(p, reg_any(p), rnd(p)); break;
	}
}

static void insn_misc(struct program *p)
{
	unsigned r = reg_any(p), k;

	switch (rnd(p) % 19) {
	case 0: modrm_insn(p, 0, 0xc1, (int)(rnd(p) % 8 == 6 ? 4 : rnd(p) % 6), false, 1, true, 0); define_flags(p); break;
	case 1: modrm_insn(p, 0, 0xd3, 4 + 3 * (int)(rnd(p) & 1), false, 0, true, 0); define_flags(p); break;
	case 2: modrm_insn(p, 1, 0xaf, -1, false, 0, true, 0); define_flags(p); break;
	case 3: modrm_insn(p, 0, 0xf7, 4 + (int)(rnd(p) & 1), false, 0, true, 0); define_flags(p); break;
	case 4: modrm_insn(p, 1, 0xba, 4 + (int)(rnd(p) % 4), false, 1, true, 0); define_flags(p); break;
	case 5: modrm_insn(p, 1, 0xb1, -1, false, 0, true, 0); break;
	case 6: modrm_insn(p, 1, 0xc1, -1, false, 0, true, 0); break;
	case 7: modrm_insn(p, 0, 0x87, -1, false, 0, true, 0); break;
	case 8: put(p, 0x48 | (r >> 3)), put(p, 0x0f), put(p, 0xc8 | (r & 7)); break;
	case 9:
		put(p, 0x40 | (r >> 3)), put(p, 0x50 | (r & 7));
		r = reg_any(p);
		put(p, 0x40 | (r >> 3)), put(p, 0x58 | (r & 7));
		break;
	case 10: modrm_insn(p, 0, 0xff, (int)(rnd(p) & 1), false, 0, true, 0); break;
	case 11: modrm_insn(p, 0, 0xf7, 2 + (int)(rnd(p) & 1), false, 0, true, 0); break;
	case 12: /* div r by a non-zero, EDX clear */
		do
			k = reg_any(p);
		while (k == REG_RDX || k == REG_RAX);
		put(p, 0x31), put(p, 0xd2);
		mov_imm(p, k, rnd(p) | 1);
		put(p, 0x48 | (k >> 3)), put(p, 0xf7), put(p, 0xf0 | (k & 7));
		define_flags(p);
		break;
	case 13: case 14: /* rep movs, rep stos: across pages now and then */
		mov_imm(p, REG_RSI, DATA + rnd(p) % 0x2000);
		mov_imm(p, REG_RDI, DATA + rnd(p) % 0x2000);
		mov_imm(p, REG_RCX, rnd(p) % 8 ? rnd(p) % 300 : 0);
		k = rnd(p) % 4;
		if (k == 1)
			put(p, 0x66);
		if (rnd(p) % 4)
			put(p, 0xf3);
		if (k == 2)
			put(p, 0x48);
		put(p, (rnd(p) & 1 ? 0xa4 : 0xaa) | (k > 0));
		break;
	case 16: case 17: /* bt [rdi + disp], r: a bit string */
		k = reg_any(p);
		mov_imm(p, REG_RDI, DATA + 0x1000);
		if (k != REG_RDI)
			mov_imm(p, k, rnd(p) % 20000 - 10000);
		if (k == REG_RDI)
			break;
		put(p, 0x40 | (rnd(p) & 1 ? 8 : 0) | (k & 8 ? 4 : 0));
		put(p, 0x0f), put(p, 0xa3 | (rnd(p) & 3) << 3), put(p, 0x87 | (k & 7) << 3), put32(p, 0x40);
		define_flags(p);
		break;
	case 15: put(p, rnd(p) & 1 ? 0xfa : 0xfc); break;
	default: /* pushfq; pop r */
		put(p, 0x9c);
		put(p, 0x40 | (r >> 3)), put(p, 0x58 | (r & 7));
		break;
	}
}

static void put_bytes(struct program *p, const char *b, unsigned n) { memcpy(p->b + p->n, b, n); p->n += n; }
static void put_rel32(struct program *p, unsigned target) { put32(p, target - (p->n + 4)); }
/* lea r, [rip + d] */
static void lea_rip(struct program *p, unsigned r, unsigned d)
{
	put(p, 0x48 | (r & 8) >> 1), put(p, 0x8d), put(p, 5 | (r & 7) << 3), put32(p, d);
}

/* Functions on the program's first page, called from all of them: [0] leaf, [1] calls it, [2] pops 16 bytes, [3] returns
 * three bytes further than it was told. */
#define FUNCTIONS 4
static void functions_make(struct program *p, unsigned *f)
{
	f[0] = p->n;
	insn_alu(p);
	put(p, 0xc3);
	f[1] = p->n;
	put(p, 0xe8), put_rel32(p, f[0]);
	insn_move(p);
	put(p, 0xe8), put_rel32(p, f[0]);
	put(p, 0xc3);
	f[2] = p->n;
	insn_alu(p);
	put_bytes(p, "\xc2\x10\x00", 3);
	f[3] = p->n;
	put_bytes(p, "\x48\x83\x04\x24\x03\xc3", 6);	/* add qword [rsp], 3; ret */
}

/* Calls and returns, paired and not. */
static void insn_call(struct program *p, const unsigned *f)
{
	unsigned r = reg_any(p);

	switch (rnd(p) % 8) {
	case 0: case 1: put(p, 0xe8), put_rel32(p, f[rnd(p) & 1]); break;
	case 2:
		put_bytes(p, "\x6a\x07\x6a\x08", 4);			/* push 7; push 8 */
		put(p, 0xe8), put_rel32(p, f[2]);
		break;
	case 3:
		put(p, 0xe8), put_rel32(p, f[3]);
		put_bytes(p, "\x0f\x0b\x0f", 3);				/* skipped */
		break;
	case 4: case 5:	/* through a register, or memory */
		mov_imm(p, r, CODE + f[rnd(p) & 1]);
		if (rnd(p) & 1) {
			put(p, 0x40 | r >> 3), put(p, 0xff), put(p, 0xd0 | (r & 7));
		} else {
			put(p, 0x40 | r >> 3), put(p, 0x50 | (r & 7));		/* push r; call [rsp]; pop r */
			put_bytes(p, "\xff\x14\x24", 3);
			put(p, 0x40 | r >> 3), put(p, 0x58 | (r & 7));
		}
		break;
	case 6:		/* call next; pop r */
		put(p, 0xe8), put32(p, 0);
		put(p, 0x40 | r >> 3), put(p, 0x58 | (r & 7));
		break;
	default:	/* lea r, behind; push r; ret or jmp r */
		if (rnd(p) & 1) {
			lea_rip(p, r, 3);
			put(p, 0x40 | r >> 3), put(p, 0xff), put(p, 0xe0 | (r & 7));
		} else {
			lea_rip(p, r, 3);
			put(p, 0x40 | r >> 3), put(p, 0x50 | (r & 7)), put(p, 0xc3);
		}
		break;
	}
}

/* A loop of a few turns, a call over a function, a forward branch. */
static void insn_flow(struct program *p)
{
	unsigned at, r = 8 + rnd(p) % 8;

	switch (rnd(p) % 3) {
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
	default:	/* push rcx-like counter on the stack: push 5; l: insn; dec [rsp]; jnz l; pop r */
		put(p, 0x6a), put(p, 1 + rnd(p) % 6);
		at = p->n;
		insn_misc(p);
		put(p, 0x48), put(p, 0xff), put(p, 0x0c), put(p, 0x24);
		put(p, 0x0f), put(p, 0x85), put32(p, at - (p->n + 4));
		put(p, 0x41), put(p, 0x58 | (r & 7));
		break;
	}
}

static void program_make(struct program *p, uint64_t seed)
{
	unsigned f[FUNCTIONS], at;

	memset(p, 0, sizeof *p);
	p->seed = seed * 0x9e3779b97f4a7c15ull + 1;
	put(p, 0xe9), put32(p, 0);
	at = p->n;
	functions_make(p, f);
	memcpy(p->b + at - 4, &(uint32_t){ p->n - at }, 4);
	while (p->n < PROGRAM_BYTES - 200) {
		switch (rnd(p) % 6) {
		case 0: case 1: insn_alu(p); break;
		case 2: insn_move(p); break;
		case 3: insn_misc(p); break;
		case 4: insn_call(p, f); break;
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

	memset(ram(m, 0), 0, 1);
	tables_identity(m->map, TABLES);
	map_write(m->map, CODE, p->b, PROGRAM_BYTES);
	for (unsigned i = 0; i < DATA_BYTES; i += 8) {
		seed ^= seed << 13, seed ^= seed >> 7, seed ^= seed << 17;
		map_write(m->map, DATA + i, &seed, 8);
	}
	engine_soft.get_state(m->v, &s);
	state_begin(&s);
	for (unsigned i = 0; i < REG_COUNT; i++)
		if (i != REG_RSP)
			s.gpr[i] = 0x0123456789abcdefull * (i + 1);
	s.activity = ACTIVITY_RUNNING;
	s.shadow = 0;
	engine_soft.set_state(m->v, &s);
	for (unsigned i = 0; i < 10; i++)
		if (engine_soft.run(m->v, &e) != EXIT_KICKED)
			break;
	engine_soft.get_state(m->v, out);
}

static void compare(struct machine *a, struct machine *b, const struct x86_state *sa, const struct x86_state *sb)
{
	for (unsigned i = 0; i < REG_COUNT; i++)
		if (sa->gpr[i] != sb->gpr[i])
			fail_msg("register %u: interpreted %llx, translated %llx", i, (unsigned long long)sa->gpr[i],
				 (unsigned long long)sb->gpr[i]);
	assert_int_equal(sa->rip, sb->rip);
	assert_int_equal(sa->rflags, sb->rflags);
	assert_int_equal(sa->activity, sb->activity);
	assert_memory_equal(ram(a, DATA), ram(b, DATA), DATA_BYTES);
	assert_memory_equal(ram(a, STACK - 0x1000), ram(b, STACK - 0x1000), 0x1000);
}

static void test_random_integer(void **state)
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
		if (sa.gpr[0] != sb.gpr[0] || sa.rip != sb.rip)
			print_message("program %u\n", i);
		assert_int_equal(sa.activity, ACTIVITY_HALTED);
		compare(&a, &b, &sa, &sb);
	}
	machine_fini(&a);
	machine_fini(&b);
}

/* --- hand-written programs: code bytes run until HLT on the translator --- */

static void run_bytes(struct machine *m, const void *code, unsigned n, struct x86_state *s)
{
	struct error e;

	tables_identity(m->map, TABLES);
	map_write(m->map, CODE, code, n);
	engine_soft.get_state(m->v, s);
	s->activity = ACTIVITY_RUNNING;
	state_begin(s);
	s->fpu.fcw = 0x37f;
	s->fpu.mxcsr = 0x1f80;
	s->fpu.xstate_bv = 0;
	engine_soft.set_state(m->v, s);
	for (unsigned i = 0; i < 10; i++)
		if (engine_soft.run(m->v, &e) != EXIT_KICKED)
			break;
	engine_soft.get_state(m->v, s);
}

/* x87, SSE and AVX state survives TLB misses in the middle of a block, and lands in the state. */
static void test_fp(void **state)
{
	static const uint8_t code[] = {
		0xbf, 0x00, 0x00, 0x20, 0x00,			/* mov edi, DATA */
		0xb8, 0x07, 0x00, 0x00, 0x00,			/* mov eax, 7 */
		0xf2, 0x0f, 0x2a, 0xc0,				/* cvtsi2sd xmm0, eax */
		0xd9, 0xe8,					/* fld1 */
		0xd8, 0xc0,					/* fadd st, st */
		0xf2, 0x0f, 0x11, 0x07,				/* movsd [rdi], xmm0 */
		0xdd, 0x9f, 0x00, 0x10, 0x00, 0x00,		/* fstp qword [rdi + 0x1000] */
		0xf2, 0x0f, 0x58, 0x87, 0x00, 0x10, 0x00, 0x00,	/* addsd xmm0, [rdi + 0x1000] */
		0x66, 0x0f, 0x2e, 0x07,				/* ucomisd xmm0, [rdi] */
		0x0f, 0x97, 0xc3,				/* seta bl */
		0xc5, 0xfb, 0x11, 0x87, 0x00, 0x20, 0x00, 0x00,	/* vmovsd [rdi + 0x2000], xmm0 */
		0xc4, 0xe2, 0x7d, 0x19, 0xcc,			/* vbroadcastsd ymm1, xmm4 */
		0xc5, 0xfd, 0x14, 0xc8,				/* vunpcklpd ymm1, ymm0, ymm0 */
		0x66, 0x0f, 0x28, 0x57, 0x10,			/* movapd xmm2, [rdi + 16] */
		0xf2, 0x4c, 0x0f, 0x2c, 0xe8,			/* cvttsd2si r13, xmm0 */
		0xf4,
	};
	struct machine m;
	struct x86_state s;
	double d;

	machine_init(&m, false);
	run_bytes(&m, code, sizeof code, &s);
	assert_int_equal(s.activity, ACTIVITY_HALTED);
	memcpy(&d, ram(&m, DATA), 8);
	assert_true(d == 7.0);
	memcpy(&d, ram(&m, DATA + 0x1000), 8);
	assert_true(d == 2.0);
	memcpy(&d, ram(&m, DATA + 0x2000), 8);
	assert_true(d == 9.0);
	assert_int_equal(s.gpr[REG_RBX] & 0xff, 1);
	assert_int_equal(s.gpr[REG_R13], 9);
	assert_true(s.fpu.xmm[1].lf[1] == 9.0);
	assert_int_equal(s.fpu.mxcsr & 0x1f80, 0x1f80);
	machine_fini(&m);
}

/* With underflow unmasked a tiny result faults even if it is exact; any other is as it is (SDM vol. 1, 4.9.1.5). */
static void test_underflow(void **state)
{
	static const uint8_t code[] = {
		0xbf, 0x00, 0x00, 0x20, 0x00,			/* mov edi, DATA */
		0xc7, 0x07, 0x80, 0x17, 0x00, 0x00,		/* mov dword [rdi], 0x1780 */
		0x0f, 0xae, 0x17,				/* ldmxcsr [rdi] */
		0xb8, 0x03, 0x00, 0x00, 0x00,			/* mov eax, 3 */
		0x66, 0x0f, 0x6e, 0xc0,				/* movd xmm0, eax */
		0xb8, 0x00, 0x00, 0x80, 0x3f,			/* mov eax, 1.0f */
		0x66, 0x0f, 0x6e, 0xc8,				/* movd xmm1, eax */
		0xf3, 0x0f, 0x58, 0xc9,				/* addss xmm1, xmm1 */
		0xf3, 0x0f, 0x58, 0xc0,				/* addss xmm0, xmm0 */
		0xf4,
	};
	struct machine m;
	struct x86_state s;

	machine_init(&m, false);
	run_bytes(&m, code, sizeof code, &s);
	assert_int_equal(s.activity, ACTIVITY_SHUTDOWN);	/* there is no IDT */
	assert_int_equal(s.fpu.xmm[1].d[0], 0x40000000);
	assert_int_equal(s.fpu.xmm[0].d[0], 3);
	assert_int_equal(s.fpu.mxcsr & 0x1f9d, 0x1790);
	machine_fini(&m);
}

/* A REX that is not right before the opcode is none, and F3 behind F2 is the one that counts: the bytes that are copied
 * must be the immediate and nothing before it, or they would run on the host. */
static void test_dead_prefixes(void **state)
{
	static const uint8_t code[] = {
		0xbb, 0x00, 0x00, 0x20, 0x00,			/* mov ebx, DATA */
		0x31, 0xc0,					/* xor eax, eax */
		0x4f, 0x66, 0xc7, 0x03, 0x34, 0x12,		/* mov word [rbx], 0x1234 */
		0x48, 0x2e, 0x4c, 0x66, 0x81, 0x43, 0x04, 0x34, 0x12,	/* add word [rbx + 4], 0x1234 */
		0xf2, 0x48, 0xf3, 0x0f, 0x10, 0x03,		/* movss xmm0, [rbx] */
		0xf4,
	};
	for (unsigned translate = 0; translate < 2; translate++) {
		struct machine m;
		struct x86_state s;

		machine_init(&m, !translate);
		memset(ram(&m, DATA), 0, 16);
		run_bytes(&m, code, sizeof code, &s);
		assert_int_equal(s.activity, ACTIVITY_HALTED);
		assert_int_equal(s.gpr[REG_RAX], 0);
		assert_int_equal(*(uint64_t *)ram(&m, DATA), 0x123400001234ull);
		assert_int_equal(s.fpu.xmm[0].q[0], 0x1234);
		machine_fini(&m);
	}
}

/* Code that rewrites an instruction ahead of it in its own block, then one behind, in a loop. */
static void test_changed_code(void **state)
{
	static const uint8_t code[] = {
		0x31, 0xc9,					/* xor ecx, ecx */
		0x31, 0xdb,					/* xor ebx, ebx */
		0xc6, 0x05, 0x01, 0x00, 0x00, 0x00, 0x05,	/* l: mov byte [rip + 1], 5: the immediate below */
		0xb8, 0x00, 0x00, 0x00, 0x00,			/* mov eax, 0 */
		0x01, 0xc3,					/* add ebx, eax */
		0xfe, 0x05, 0xf6, 0xff, 0xff, 0xff,		/* inc byte [rip - 10]: the first store's immediate... */
		0xff, 0xc1,					/* inc ecx */
		0x83, 0xf9, 0x0a,				/* cmp ecx, 10 */
		0x75, 0xe5,					/* jne l */
		0xf4,
	};
	struct machine a, b;
	struct x86_state sa, sb;

	machine_init(&a, true);
	machine_init(&b, false);
	run_bytes(&a, code, sizeof code, &sa);
	run_bytes(&b, code, sizeof code, &sb);
	assert_int_equal(sb.activity, ACTIVITY_HALTED);
	assert_int_equal(sa.gpr[REG_RBX], sb.gpr[REG_RBX]);
	assert_int_equal(sa.gpr[REG_RCX], sb.gpr[REG_RCX]);
	machine_fini(&a);
	machine_fini(&b);
}

struct meddler { struct machine *m; unsigned left; };

/* While the last block is made, a device writes to another page of code, and a kick comes. */
static void meddle(void *opaque, const char *line, size_t n)
{
	struct meddler *k = opaque;
	uint8_t ret = 0xc3;

	if (!k->left || --k->left)
		return;
	map_write(k->m->map, CODE + 0x1000, &ret, 1);
	engine_soft.kick(k->m->v);
}

/* A jump that cannot be linked while news of changed code waits must not keep the vCPU from looking at them. */
static void test_news_before_link(void **state)
{
	static const uint8_t loop[] = { 0xe8, 0xfb, 0x0f, 0, 0, 0xeb, 0, 0xeb, 0xfe };	/* call CODE + 0x1000; jmp l; l: jmp l */
	static const uint8_t deep[] = { 0xe8, 0xfb, 0x0f, 0, 0, 0xeb, 0, 0xe8, 0xfb, 0xff, 0xff, 0xff };	/* l: call l */
	uint8_t ret = 0xc3;

	for (unsigned i = 0; i < 12; i++) {	/* three blocks in two parts each, two programs */
		struct meddler k = { .left = 1 + i / 2 };
		struct machine m;
		struct x86_state s;
		k.m = &m;
		machine_open(&m, "host", RAM_BYTES, (struct engine_config){ .code_made = meddle, .code_opaque = &k });
		tables_identity(m.map, TABLES);
		map_write(m.map, CODE, i & 1 ? deep : loop, i & 1 ? sizeof deep : sizeof loop);
		map_write(m.map, CODE + 0x1000, &ret, 1);
		engine_soft.get_state(m.v, &s);
		state_begin(&s);
		engine_soft.set_state(m.v, &s);
		alarm(30);		/* the test's end, if the kick is not seen */
		assert_int_equal(engine_soft.run(m.v, NULL), EXIT_KICKED);
		alarm(0);
		assert_int_equal(k.left, 0);
		machine_fini(&m);
	}
}

/* A breakpoint at an instruction that lies in two pages, where a jump from another page leads. */
static void test_break_between_pages(void **state)
{
	static const uint8_t jump[] = { 0xe9, 0xf9, 0x1f, 0, 0 };			/* jmp CODE + 0x1ffe */
	static const uint8_t target[] = { 0x48, 0x8d, 0x40, 0x01, 0xf4 };		/* lea rax, [rax + 1]; hlt */
	struct debug_plan plan = { .count = 1, .point = { { .kind = DEBUG_BREAK, .gva = CODE + 0x1ffe } } };
	struct machine m;
	struct x86_state s;

	machine_init(&m, false);
	tables_identity(m.map, TABLES);
	map_write(m.map, CODE, jump, sizeof jump);
	map_write(m.map, CODE + 0x1ffe, target, sizeof target);
	engine_soft.get_state(m.v, &s);
	state_begin(&s);
	engine_soft.set_state(m.v, &s);
	assert_int_equal(engine_soft.debug_set(m.v, &plan), 0);
	assert_int_equal(engine_soft.run(m.v, NULL), EXIT_DEBUG);
	engine_soft.get_state(m.v, &s);
	assert_int_equal(s.rip, CODE + 0x1ffe);
	assert_int_equal(engine_soft.debug_set(m.v, &(struct debug_plan){ 0 }), 0);
	assert_int_equal(engine_soft.run(m.v, NULL), EXIT_HALT);
	machine_fini(&m);
}

/* A guest address that is no RAM must never reach host memory: non-canonical, beyond the tables, page-crossing. */
static void test_isolation(void **state)
{
	static const uint64_t bad[] = { 0x8000000000000000ull, 0x0000800000000000ull, 0xffff7fffffffffffull,
					0x7fffffffffffull, 0xffffffffffffffffull, 0x3fffffull, 0x400000ull };
	uint8_t code[] = { 0x48, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0,	/* mov rax, bad */
			   0x48, 0x8b, 0x08,			/* mov rcx, [rax] */
			   0xf4 };
	struct machine m;
	struct x86_state s;

	machine_init(&m, false);
	for (unsigned i = 0; i < sizeof bad / sizeof *bad; i++)
		for (unsigned k = 0; k < 2; k++) {
			code[11] = k ? 0x89 : 0x8b;
			memcpy(code + 2, &bad[i], 8);
			run_bytes(&m, code, sizeof code, &s);
			/* No IDT: the fault becomes a triple fault. */
			assert_int_equal(s.activity, ACTIVITY_SHUTDOWN);
			assert_int_equal(s.rip, CODE + 10);
		}
	machine_fini(&m);
}

/* Nested calls beyond what a return stack holds, twice: the second time all is linked. */
static void test_deep_calls(void **state)
{
	static const uint8_t code[] = {
		0xbf, 0x02, 0x00, 0x00, 0x00,			/* mov edi, 2 */
		0xb9, 0x20, 0x4e, 0x00, 0x00,			/* l: mov ecx, 20000 */
		0xe8, 0x05, 0x00, 0x00, 0x00,			/* call f */
		0xff, 0xcf,					/* dec edi */
		0x75, 0xf2,					/* jnz l */
		0xf4,
		0xff, 0xc9,					/* f: dec ecx */
		0x74, 0x05,					/* jz 1f */
		0xe8, 0xf7, 0xff, 0xff, 0xff,			/* call f */
		0x48, 0xff, 0xc3,				/* 1: inc rbx */
		0xc3,
	};
	struct machine m;
	struct x86_state s;
	uint64_t before;

	machine_init(&m, false);
	engine_soft.get_state(m.v, &s);
	before = s.gpr[REG_RBX];
	run_bytes(&m, code, sizeof code, &s);
	assert_int_equal(s.activity, ACTIVITY_HALTED);
	assert_int_equal(s.gpr[REG_RBX] - before, 40000);
	assert_int_equal(s.gpr[REG_RSP], STACK);
	machine_fini(&m);
}

/* Branches to what is no address fault before they begin, whoever looks them up: RIP and RSP are as before. */
static void test_branch_faults(void **state)
{
	static const struct { uint8_t code[8]; unsigned n, popped; } branches[] = {
		{ { 0xc3 }, 1, 1 }, { { 0xc2, 0x10, 0x00 }, 3, 1 }, { { 0xff, 0xe0 }, 2, 0 }, { { 0xff, 0xd0 }, 2, 0 },
		{ { 0xff, 0x64, 0x24, 0xf8 }, 4, 0 }, { { 0xff, 0x54, 0x24, 0xf8 }, 4, 0 },
	};
	struct machine m;
	struct x86_state s;

	machine_init(&m, false);
	for (unsigned i = 0; i < sizeof branches / sizeof *branches; i++) {
		uint8_t code[32] = { 0x48, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0x80, 0x50 };	/* mov rax, 1 << 63; push rax */
		unsigned n = 11;

		if (!branches[i].popped)
			code[n++] = 0x5b;						/* pop rbx */
		memcpy(code + n, branches[i].code, branches[i].n);
		run_bytes(&m, code, sizeof code, &s);
		assert_int_equal(s.activity, ACTIVITY_SHUTDOWN);
		assert_int_equal(s.rip, CODE + n);
		assert_int_equal(s.gpr[REG_RSP], STACK - 8 * branches[i].popped);
	}
	machine_fini(&m);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_random_integer),
		cmocka_unit_test(test_fp),
		cmocka_unit_test(test_underflow),
		cmocka_unit_test(test_dead_prefixes),
		cmocka_unit_test(test_changed_code),
		cmocka_unit_test(test_news_before_link),
		cmocka_unit_test(test_break_between_pages),
		cmocka_unit_test(test_isolation),
		cmocka_unit_test(test_deep_calls),
		cmocka_unit_test(test_branch_faults),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
