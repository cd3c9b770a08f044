/* Disassembly of a few instructions of every shape, both syntaxes. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "cpu/format.h"
#include "cpu/optable.h"

static const struct { char bytes[15]; enum insn_mode mode; const char *intel, *att; } cases[] = {
	{ "\x90", INSN_64, "nop", "nop" },
	{ "\x48\x89\xd8", INSN_64, "mov rax,rbx", "mov %rbx,%rax" },
	{ "\x88\x64\x24\x10", INSN_64, "mov byte ptr [rsp+0x10],ah", "mov %ah,0x10(%rsp)" },
	{ "\x83\x00\xff", INSN_64, "add dword ptr [rax],0xffffffff", "addl $0xffffffff,(%rax)" },
	{ "\xf0\x48\x0f\xb1\x0c\xc2", INSN_64, "lock cmpxchg qword ptr [rdx+rax*8],rcx", "lock cmpxchg %rcx,(%rdx,%rax,8)" },
	{ "\x74\xfe", INSN_64, "je 0x1000", "je 0x1000" },
	{ "\x8b\x05\x02\x00\x00\x00", INSN_64, "mov eax,dword ptr [0x1008]", "mov 0x1008,%eax" },
	{ "\xf3\x48\xa5", INSN_64, "rep movsq qword ptr es:[rdi],qword ptr [rsi]", "rep movsq (%rsi),%es:(%rdi)" },
	{ "\x65\x48\x8b\x04\x25\x28\x00\x00\x00", INSN_64, "mov rax,qword ptr gs:[0x28]", "mov %gs:0x28,%rax" },
	{ "\xc5\xf5\xfe\xc2", INSN_64, "vpaddd ymm0,ymm1,ymm2", "vpaddd %ymm2,%ymm1,%ymm0" },
	{ "\xf2\x0f\x10\x00", INSN_64, "movsd xmm0,qword ptr [rax]", "movsd (%rax),%xmm0" },
	{ "\x0f\x22\xd8", INSN_64, "mov cr3,rax", "mov %rax,%cr3" },
	{ "\xea\x34\x12\x08\x00", INSN_16, "jmp far 0x8:0x1234", "jmp far $0x8,$0x1234" },
	{ "\xde\xc1", INSN_32, "faddp st(1),st(0)", "faddp %st(0),%st(1)" },
	{ "\x62\x91\x64\xcb\x58\xc9", INSN_64, "vaddps zmm1{k3}{z},zmm3,zmm25", "vaddps %zmm25,%zmm3,%zmm1{%k3}{z}" },
	{ "\x62\xf1\xe5\x38\x58\x48\x02", INSN_64, "vaddpd ymm1,ymm3,qword ptr [rax+0x10]{1to4}",
	  "vaddpd 0x10(%rax){1to4},%ymm3,%ymm1" },
	{ "\x62\xf1\x64\x78\x58\xc9", INSN_64, "vaddps zmm1,zmm3,zmm1,{rz-sae}", "vaddps {rz-sae},%zmm1,%zmm3,%zmm1" },
	{ "\x62\xe2\x7d\x42\xa0\x4c\x81\x01", INSN_64, "vpscatterdd dword ptr [rcx+zmm16*4+0x4]{k2},zmm17",
	  "vpscatterdd %zmm17,0x4(%rcx,%zmm16,4){%k2}" },
	{ "\xc5\xf8\x93\xc1", INSN_64, "kmovw eax,k1", "kmovw %k1,%eax" },
	{ "\x8b\x40\xfe", INSN_16, "mov ax,word ptr [bx+si*1-0x2]", "mov -0x2(%bx,%si,1),%ax" },
};

static void test_shapes(void **state)
{
	(void)state;
	for (unsigned i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
		uint8_t bytes[15] = { 0 };
		struct insn in;
		char buf[96];

		memcpy(bytes, cases[i].bytes, 15);
		assert_int_equal(insn_decode(&in, bytes, 15, cases[i].mode), DECODE_OK);
		insn_format(buf, sizeof(buf), &in, 0x1000, SYNTAX_INTEL);
		assert_string_equal(buf, cases[i].intel);
		insn_format(buf, sizeof(buf), &in, 0x1000, SYNTAX_ATT);
		assert_string_equal(buf, cases[i].att);
	}
}

/* Whatever decodes can be formatted into any buffer. */
static void test_any(void **state)
{
	uint64_t rng = 88172645463325252ull;
	uint8_t bytes[16];
	struct insn in;
	char buf[96];

	(void)state;
	for (unsigned i = 0; i < 300000; i++) {
		for (unsigned k = 0; k < 16; k += 8) {
			rng ^= rng << 13;
			rng ^= rng >> 7;
			rng ^= rng << 17;
			memcpy(bytes + k, &rng, 8);
		}
		if (insn_decode(&in, bytes, 15, i % 3) != DECODE_OK)
			continue;
		insn_format(buf, sizeof(buf), &in, rng, i & 1 ? SYNTAX_ATT : SYNTAX_INTEL);
		assert_true(strlen(buf) < sizeof(buf) - 1);
		insn_format(buf, i % 20, &in, rng, SYNTAX_INTEL);
	}
}

/* Short input asks for more and never reads past it; sixteen bytes of prefixes are too long. */
static void test_truncated(void **state)
{
	static const uint8_t whole[] = { 0x66, 0x48, 0xc7, 0x84, 0x24, 1, 2, 3, 4, 5, 6, 7, 8 };
	uint8_t prefixes[16];
	struct insn in;

	(void)state;
	for (unsigned n = 0; n < sizeof(whole); n++)
		assert_int_equal(insn_decode(&in, whole, n, INSN_64), DECODE_SHORT);
	assert_int_equal(insn_decode(&in, whole, sizeof(whole), INSN_64), DECODE_OK);
	memset(prefixes, 0x66, sizeof(prefixes));
	assert_int_equal(insn_decode(&in, prefixes, 14, INSN_32), DECODE_SHORT);
	assert_int_equal(insn_decode(&in, prefixes, 15, INSN_32), DECODE_TOO_LONG);
	prefixes[14] = 0x90;
	assert_int_equal(insn_decode(&in, prefixes, 15, INSN_32), DECODE_OK);
	assert_int_equal(in.len, 15);
}

/* VEX.W of integer operands and the highest bit of vvvv count in 64-bit mode alone. */
static void test_vex_fields(void **state)
{
	static const uint8_t convert[] = { 0xc4, 0xe1, 0xfa, 0x2c, 0xde };	/* VCVTTSS2SI, W1 */
	static const uint8_t strings[] = { 0xc4, 0xe3, 0xf9, 0x61, 0xce, 0x4b };	/* VPCMPESTRI, W1 */
	static const uint8_t add[] = { 0xc4, 0xe1, 0x38, 0x58, 0xc1 };	/* VADDPS, vvvv 8 */
	struct insn in;

	for (unsigned wide = 0; wide < 2; wide++) {
		enum insn_mode mode = wide ? INSN_64 : INSN_32;

		assert_int_equal(insn_decode(&in, convert, sizeof convert, mode), DECODE_OK);
		assert_int_equal(in.rex & 8, wide ? 8 : 0);
		assert_int_equal(in.ops[0].size, wide ? 8 : 4);
		assert_int_equal(insn_decode(&in, strings, sizeof strings, mode), DECODE_OK);
		assert_int_equal(in.rex & 8, wide ? 8 : 0);
		assert_int_equal(insn_decode(&in, add, sizeof add, mode), DECODE_OK);
		assert_int_equal(in.vvvv, wide ? 8 : 0);
		assert_int_equal(in.ops[1].reg, in.vvvv);
	}
}

/* Vector lengths that a row takes, as bits. */
static unsigned row_lengths(const struct x86_opcode *row)
{
	return row->attr & ROW_L0 ? 1 : row->attr & ROW_L1 ? 2 : row->attr & ROW_L2 ? 4 : row->attr & ROW_L12 ? 6 : 7;
}

/* At most one row may match: two rows of one opcode that overlap must differ in something. */
static void test_rows_disjoint(void **state)
{
	(void)state;
	for (unsigned i = 0; i < x86_optable_rows; i++) {
		const struct x86_opcode *a = &x86_optable[i];

		for (unsigned j = i + 1; j < x86_optable_rows; j++) {
			const struct x86_opcode *b = &x86_optable[j];
			uint32_t split = ROW_W0 | ROW_W1, mode = ROW_I64 | ROW_O64;
			uint32_t rex = ROW_B0 | ROW_B1, differ = a->attr ^ b->attr;
			uint8_t common = a->modrm_mask & b->modrm_mask;

			if (a->vex != b->vex || a->map != b->map || a->opcode != b->opcode)
				break;
			if (!(a->prefixes & b->prefixes) || (a->modrm_forms && !(a->modrm_forms & b->modrm_forms)) ||
			    (a->modrm_value ^ b->modrm_value) & common)
				continue;
			assert_true((differ & split) == split || !(row_lengths(a) & row_lengths(b)) || (differ & mode) == mode ||
				    (differ & rex) == rex);
		}
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_shapes),
		cmocka_unit_test(test_any),
		cmocka_unit_test(test_truncated),
		cmocka_unit_test(test_vex_fields),
		cmocka_unit_test(test_rows_disjoint),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
