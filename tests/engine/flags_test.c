/*
 * The guest's flags on their way from block to block, where the translator keeps them in RFLAGS or parks them: by every kind
 * of jump, call and return, to code that reads them, leaves some as they are, or has them lost by a check of memory.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "machine.h"

#define RAM_BYTES (4u << 20)
#define TABLES 0x10000u		/* page tables: identity, 2 MiB pages */
#define CODE 0x100000u
#define DATA 0x200000u
#define STACK 0x300000u

static void machine_init(struct machine *m, bool interpret_only)
{
	machine_open(m, "host", RAM_BYTES, (struct engine_config){ .interpret_only = interpret_only });
}

/* --- programs --- */

struct program { uint8_t code[0x2000]; unsigned at; };

static void put(struct program *p, const char *bytes, unsigned n)
{
	memcpy(p->code + p->at, bytes, n);
	p->at += n;
}
#define PUT(p, bytes) put(p, bytes, sizeof(bytes) - 1)

static void put32(struct program *p, uint32_t v)
{
	memcpy(p->code + p->at, &v, 4);
	p->at += 4;
}

static void put_rel(struct program *p, unsigned target) { put32(p, target - (p->at + 4)); }

/* What is reached with flags that somebody may want, and which flags it leaves undefined. */
#define LEAVES(X) \
	X("\x48\x8d\x40\x01", 0)				/* lea rax, [rax + 1] */ \
	X("\x48\x89\x43\x80", 0)				/* mov [rbx - 128], rax */ \
	X("\x48\x8b\x43\x80\x48\x89\x43\x88", 0)	/* mov rax, [rbx - 128]; mov [rbx - 120], rax */ \
	X("\x10\xc0", 0)					/* adc al, al */ \
	X("\xff\xc0", 0)					/* inc eax */ \
	X("\x0f\x42\x43\x80", 0)				/* cmovc eax, [rbx - 128] */ \
	X("\xd1\x53\x80", 0)				/* rcl dword [rbx - 128], 1 */ \
	X("\xff\x43\x80", 0)				/* inc dword [rbx - 128] */ \
	X("\x48\x8b\x43\x80\x10\xc0", 0)			/* mov rax, [rbx - 128]; adc al, al */ \
	X("\xd3\xe0", FLAG_OF | FLAG_AF)					/* shl eax, cl */ \
	X("\x48\xd3\x63\x80", FLAG_OF | FLAG_AF)				/* shl qword [rbx - 128], cl */ \
	X("\xc1\xe0\x05", FLAG_OF | FLAG_AF)				/* shl eax, 5 */ \
	X("\x66\x0f\xa4\xc8\x05", FLAG_OF | FLAG_AF)			/* shld ax, cx, 5 */ \
	X("\x9e", 0)						/* sahf */ \
	X("\x9f\x88\x63\x80", 0)				/* lahf; mov [rbx - 128], ah */ \
	X("\x72\x03\x8b\x43\x80", 0)			/* jc 1f; mov eax, [rbx - 128]; 1: */ \
	X("\x4d\x01\xc1\x4d\x89\xca\x45\x38\xd1", 0)	/* add r9, r8; mov r10, r9; cmp r9b, r10b */ \
	X("\x49\xff\xc9\x4d\x11\xcb", 0)			/* dec r9; adc r11, r9 */

static const struct leaf { const char *bytes; unsigned n; uint32_t undefined; } leaves[] = {
#define X(bytes, undefined) { bytes, sizeof(bytes) - 1, undefined },
	LEAVES(X)
#undef X
};
#define LEAF_COUNT (sizeof leaves / sizeof *leaves)

/* New flags, from a register that goes through all values. */
static void put_flags(struct program *p) { PUT(p, "\x80\xc1\x35"); }	/* add cl, 0x35 */

/* The flags, to memory. */
static void put_note(struct program *p, uint32_t undefined)
{
	PUT(p, "\x9c\x5a\x81\xe2"), put32(p, ~undefined);	/* pushf; pop rdx; and edx, .. */
	PUT(p, "\x48\x89\x13\x48\x8d\x5b\x08");		/* mov [rbx], rdx; lea rbx, [rbx + 8] */
}

enum way { CALL_NEAR, CALL_FAR, CALL_REG, CALL_MEM, JUMP_FAR, JUMP_REG, IN_LINE, WAYS };

/* near, far: where the leaf is, with a RET behind it. */
static void put_way(struct program *p, enum way way, const struct leaf *leaf, unsigned near, unsigned far)
{
	if (way == CALL_NEAR || way == CALL_FAR) {
		PUT(p, "\xe8"), put_rel(p, way == CALL_NEAR ? near : far);
	} else if (way == CALL_REG || way == CALL_MEM) {
		PUT(p, "\x48\x8d\x35"), put_rel(p, way == CALL_REG ? near : far);	/* lea rsi, [rip + leaf] */
		if (way == CALL_REG)
			PUT(p, "\xff\xd6");
		else
			PUT(p, "\x48\x89\x73\x90\xff\x53\x90");	/* mov [rbx - 112], rsi; call [rbx - 112] */
	} else if (way == JUMP_FAR) {
		PUT(p, "\x48\x8d\x35\x06\x00\x00\x00\x56");	/* lea rsi, [rip + 6]; push rsi */
		PUT(p, "\xe9"), put_rel(p, far);
	} else if (way == JUMP_REG) {
		PUT(p, "\x48\x8d\x35\x02\x00\x00\x00\xff\xe6");	/* lea rsi, [rip + 2]; jmp rsi */
		put(p, leaf->bytes, leaf->n);
	} else {
		put(p, leaf->bytes, leaf->n);
	}
}

static void build(struct program *p, const struct leaf *leaf)
{
	const unsigned near = 0x800, far = 0x1100;
	unsigned loop;

	memset(p, 0, sizeof *p);
	PUT(p, "\xbf\x50\x00\x00\x00"), PUT(p, "\xbb"), put32(p, DATA + 0x100);	/* mov edi, 80; mov ebx, DATA + 0x100 */
	loop = p->at;
	for (unsigned way = 0; way < WAYS; way++)
		for (unsigned stack = 0; stack < 2; stack++) {
			put_flags(p);
			if (stack)
				PUT(p, "\x50\x58");			/* push rax; pop rax */
			put_way(p, way, leaf, near, far);
			if (stack)
				PUT(p, "\x8b\x43\x80");		/* mov eax, [rbx - 128] */
			put_note(p, leaf->undefined);
		}
	PUT(p, "\xff\xcf\x0f\x85"), put_rel(p, loop), PUT(p, "\xf4");	/* dec edi; jnz loop; hlt */
	assert_true(p->at <= near);
	for (unsigned i = 0; i < 2; i++) {
		p->at = i ? far : near;
		put(p, leaf->bytes, leaf->n);
		PUT(p, "\xc3");
	}
}

static void run(struct machine *m, const struct program *p, struct x86_state *s)
{
	struct error e;

	tables_identity(m->map, TABLES);
	map_write(m->map, CODE, p->code, sizeof p->code);
	memset(ram(m, DATA), 0, 0x4000);
	engine_soft.get_state(m->v, s);
	s->activity = ACTIVITY_RUNNING;
	memset(s->gpr, 0, sizeof s->gpr);
	state_long_mode(s, TABLES, CODE, STACK);
	s->seg[SEG_FS].base = DATA + 0x100;
	engine_soft.set_state(m->v, s);
	for (unsigned i = 0; i < 10; i++)
		if (engine_soft.run(m->v, &e) != EXIT_KICKED)
			break;
	engine_soft.get_state(m->v, s);
}

static void test_ways(void **state)
{
	struct machine a, b;

	machine_init(&a, true);
	machine_init(&b, false);
	for (unsigned i = 0; i < LEAF_COUNT; i++) {
		static struct program p;
		struct x86_state sa, sb;

		build(&p, &leaves[i]);
		run(&a, &p, &sa);
		run(&b, &p, &sb);
		assert_int_equal(sa.activity, ACTIVITY_HALTED);
		assert_int_equal(sb.activity, ACTIVITY_HALTED);
		assert_memory_equal(sa.gpr, sb.gpr, sizeof sa.gpr);
		assert_int_equal(sa.rflags, sb.rflags);
		assert_memory_equal(ram(&a, DATA), ram(&b, DATA), 0x4000);
		assert_int_equal(sa.gpr[REG_RBX], DATA + 0x100 + 80 * WAYS * 2 * 8);
	}
	machine_fini(&a);
	machine_fini(&b);
}

int main(void)
{
	const struct CMUnitTest tests[] = { cmocka_unit_test(test_ways) };

	return cmocka_run_group_tests(tests, NULL, NULL);
}
