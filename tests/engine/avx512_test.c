/*
 * AVX-512 where random instructions of user mode do not get: the XSAVE family's components 5 to 7, masked accesses to
 * devices and to code. Both engines; nothing on a host without AVX-512.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "engine/soft/soft.h"
#include "machine.h"

#define RAM_BYTES (4u << 20)
#define TABLES 0x10000u
#define CODE 0x200000u
#define AREA 0x280000u
#define DEVICE RAM_BYTES

struct device {
	uint64_t written[64];		/* by offset / 4 */
	unsigned reads, writes;
};

static uint64_t device_read(void *opaque, uint64_t offset, unsigned size)
{
	struct device *d = opaque;

	d->reads++;
	return 0x1000 + offset;
}

static void device_write(void *opaque, uint64_t offset, unsigned size, uint64_t value)
{
	struct device *d = opaque;

	assert_int_equal(size, 4);
	assert_in_range(offset, 0, 255);
	d->written[offset / 4] = value;
	d->writes++;
}

static const struct io_ops device_ops = { .read = device_read, .write = device_write, .min_size = 4, .max_size = 4 };

/* false: this host has no AVX-512 to try. */
static bool machine_init(struct machine *m, bool interpret_only)
{
	uint64_t *t;

	machine_open(m, "max", RAM_BYTES, (struct engine_config){ .interpret_only = interpret_only });
	if (!cpu_model_has(m->model, FEATURE_AVX512F)) {
		machine_fini(m);
		return false;
	}
	t = (uint64_t *)ram(m, TABLES);
	t[0] = (TABLES + 0x1000) | 7;
	t[512] = (TABLES + 0x2000) | 7;
	for (unsigned i = 0; i < 3; i++)
		t[1024 + i] = i * 0x200000ull | 0x87;
	return true;
}

/* Code in the kernel of long mode that ends in HLT; RCX: AREA, RDX: DEVICE. */
static void state_set(struct machine *m, const uint8_t *code, unsigned n, const struct x86_xsave *fpu)
{
	struct x86_state s;

	memcpy(ram(m, CODE), code, n);
	ram(m, CODE)[n] = 0xf4;
	map_wrote(m->map, CODE, n + 1);
	engine_soft.get_state(m->v, &s);
	s.cr0 = CR0_PE | CR0_PG | CR0_NE | CR0_ET | CR0_WP;
	s.cr2 = 0;
	s.cr3 = TABLES;
	s.cr4 = CR4_PAE | CR4_OSFXSR | CR4_OSXMMEXCPT | CR4_OSXSAVE;
	s.xcr0 = 0xe7;
	s.efer = EFER_LME | EFER_LMA;
	for (unsigned i = 0; i < SEG_COUNT; i++)
		s.seg[i] = (struct x86_segment){ .limit = ~0u, .selector = 0x10, .attr = 0xc093 };
	s.seg[SEG_CS] = (struct x86_segment){ .limit = ~0u, .selector = 8, .attr = 0xa09b };
	s.idtr = (struct x86_table){ 0, 0 };
	s.rip = CODE;
	s.rflags = FLAG_FIXED;
	s.gpr[REG_RCX] = AREA;
	s.gpr[REG_RDX] = DEVICE;
	s.gpr[REG_RSP] = CODE - 0x1000;
	s.activity = ACTIVITY_RUNNING;
	s.fpu = *fpu;
	engine_soft.set_state(m->v, &s);
}

/* fpu: state before and after. */
static void run(struct machine *m, const uint8_t *code, unsigned n, struct x86_xsave *fpu)
{
	struct x86_state s;
	enum exit_reason why;

	state_set(m, code, n, fpu);
	do
		why = engine_soft.run(m->v, NULL);
	while (why == EXIT_KICKED);
	engine_soft.get_state(m->v, &s);
	assert_int_equal(s.activity, ACTIVITY_HALTED);
	*fpu = s.fpu;
}

static void fpu_fill(struct x86_xsave *f)
{
	memset(f, 0, sizeof *f);
	f->fcw = 0x37f;
	f->mxcsr = 0x1f80;
	for (unsigned i = 160; i < 416; i++)
		f->raw[i] = (uint8_t)(i * 7);
	for (unsigned i = 576; i < 832; i++)
		f->raw[i] = (uint8_t)(i * 5 + 1);
	for (unsigned i = 1088; i < 2688; i++)
		f->raw[i] = (uint8_t)(i * 3 + (i >> 8));
	f->xstate_bv = 0xe7;
}

#define RUN(m, code, fpu) run(m, (const uint8_t *)(code), sizeof(code) - 1, fpu)
#define EVERYTHING "\xb8\xe7\x00\x00\x00\x31\xd2"	/* mov eax, 0xe7; xor edx, edx */
#define SCRATCH "\xc4\xe1\xf4\x47\xc9" "\x62\xa1\x5d\x40\xef\xe4" "\x62\xf1\x6d\x48\xef\xd2"	/* kxorq k1, k1, k1; vpxord
												   * zmm20, zmm20, zmm20; zmm2 */

/* Bytes of the image are at the standard format's places, or packed for what was asked. */
static void areas_check(struct machine *m, const struct x86_xsave *f)
{
	const uint8_t *standard = ram(m, AREA), *packed = ram(m, AREA + 0x1000), *part = ram(m, AREA + 0x2000);
	uint64_t header[2];

	assert_memory_equal(standard + 160, f->raw + 160, 256);
	assert_memory_equal(standard + 576, f->raw + 576, 256);
	assert_memory_equal(standard + 1088, f->raw + 1088, 1600);
	assert_memory_equal(packed + 576, f->raw + 576, 256);
	assert_memory_equal(packed + 832, f->opmask, 64);
	assert_memory_equal(packed + 896, f->zmmh, 512);
	assert_memory_equal(packed + 1408, f->zmm16, 1024);
	memcpy(header, packed + 512, 16);
	assert_true(header[0] == 0xe6 && header[1] == (0xe7 | 1ull << 63));
	assert_memory_equal(part + 576, f->zmm16, 1024);	/* of component 7 alone */
}

static void state_saved(bool interpret_only)
{
	struct machine m;
	struct x86_xsave f, want;

	if (!machine_init(&m, interpret_only))
		skip();
	fpu_fill(&f);
	want = f;
	/* xsave64 [rcx]; xsavec64 [rcx + 0x1000]; mov al, 0x80; xsavec64 [rcx + 0x2000] */
	RUN(&m, EVERYTHING "\x48\x0f\xae\x21" "\x48\x0f\xc7\xa1\x00\x10\x00\x00" "\xb0\x80" "\x48\x0f\xc7\xa1\x00\x20\x00\x00", &f);
	areas_check(&m, &want);
	for (unsigned i = 0; i < 2; i++) {	/* xrstor64 [rcx], [rcx + 0x1000] */
		RUN(&m, SCRATCH, &f);
		assert_memory_not_equal(f.raw + 1088, want.raw + 1088, 1600);
		if (i)
			RUN(&m, EVERYTHING "\x48\x0f\xae\xa9\x00\x10\x00\x00", &f);
		else
			RUN(&m, EVERYTHING "\x48\x0f\xae\x29", &f);
		assert_memory_equal(f.raw + 160, want.raw + 160, 256);
		assert_memory_equal(f.raw + 576, want.raw + 576, 256);
		assert_memory_equal(f.raw + 1088, want.raw + 1088, 1600);
	}
	machine_fini(&m);
}

static void test_state(void **state) { state_saved(false); }
static void test_state_interpreter(void **state) { state_saved(true); }

/* A device sees the elements that the mask has, and no others. */
static void devices(bool interpret_only)
{
	struct machine m;
	struct device d = { .reads = 0 };
	struct x86_xsave f;

	if (!machine_init(&m, interpret_only))
		skip();
	assert_non_null(map_add_mmio(m.map, DEVICE, 0x1000, &device_ops, &d, "test"));
	fpu_fill(&f);
	f.opmask[1] = 0x8009;
	/* vmovdqu32 [rdx]{k1}, zmm20; vmovdqu32 zmm3{k1}{z}, [rdx]; vpscatterdd [rdx + zmm4*4 + 64]{k1}, zmm20 */
	for (unsigned i = 0; i < 16; i++)
		((uint32_t *)(i < 4 ? f.xmm[4].b : i < 8 ? f.ymmh[4].b : f.zmmh[4].b))[i < 8 ? i & 3 : i - 8] = 15 - i;
	RUN(&m, "\x62\xe1\x7e\x49\x7f\x22" "\x62\xf1\x7e\xc9\x6f\x1a" "\x62\xe2\x7d\x49\xa0\x64\xa2\x10", &f);
	assert_int_equal(d.writes, 6);
	assert_int_equal(d.reads, 3);
	for (unsigned i = 0; i < 16; i++) {
		uint32_t value;

		memcpy(&value, f.zmm16[4].b + 4 * i, 4);
		assert_int_equal(d.written[i], 0x8009 >> i & 1 ? value : 0);
		assert_int_equal(d.written[16 + 15 - i], 0x8009 >> i & 1 ? value : 0);
	}
	assert_int_equal(f.xmm[3].d[0], 0x1000);
	assert_int_equal(f.xmm[3].d[1], 0);
	assert_int_equal(f.xmm[3].d[3], 0x100c);
	assert_int_equal(((uint32_t *)f.zmmh[3].b)[7], 0x103c);
	assert_true(!(f.xstate_bv & 0x20) || f.opmask[1] == 0);		/* the scatter is done */
	machine_fini(&m);
}

static void test_devices(void **state) { devices(false); }
static void test_devices_interpreter(void **state) { devices(true); }

/* A masked store changes the code behind it, but for the byte that it leaves out. */
static void code(bool interpret_only)
{
	/* lea rax, [rip + 6]; vmovdqu8 [rax]{k1}, xmm20; mov ebx, 0x44332211; mov [rcx], ebx */
	static const char bytes[] = "\x48\x8d\x05\x06\x00\x00\x00" "\x62\xe1\x7f\x09\x7f\x20" "\xbb\x11\x22\x33\x44" "\x89\x19";
	struct machine m;
	struct x86_xsave f;
	uint32_t stored;

	if (!machine_init(&m, interpret_only))
		skip();
	fpu_fill(&f);
	f.opmask[1] = 0x16;		/* bytes 1, 2 and 4 of the MOV */
	for (unsigned i = 0; i < 16; i++)
		f.zmm16[4].b[i] = (uint8_t)(0xa0 + i);
	for (unsigned i = 0; i < 3; i++) {
		RUN(&m, bytes, &f);
		memcpy(&stored, ram(&m, AREA), 4);
		assert_int_equal(stored, 0xa433a2a1);
	}
	machine_fini(&m);
}

static void test_code(void **state) { code(false); }
static void test_code_interpreter(void **state) { code(true); }

/* Its first element lies in a page that is absent, another at no address at all: that one's fault, and so no CR2. */
static void address(bool interpret_only)
{
	/* mov rax, 0x7ffffffffffe; vmovdqu16 xmm1{k1}, [rax] */
	static const char bytes[] = "\x48\xb8\xfe\xff\xff\xff\xff\x7f\x00\x00" "\x62\xf1\xff\x09\x6f\x08";
	struct machine m;
	struct x86_state s;
	struct x86_xsave f;

	if (!machine_init(&m, interpret_only))
		skip();
	fpu_fill(&f);
	for (unsigned i = 0; i < 2; i++) {
		f.opmask[1] = i ? 1 : 5;
		state_set(&m, (const uint8_t *)bytes, sizeof bytes - 1, &f);
		while (engine_soft.run(m.v, NULL) == EXIT_KICKED)
			;
		engine_soft.get_state(m.v, &s);
		assert_int_equal(s.cr2, i ? 0x7ffffffffffe : 0);
	}
	machine_fini(&m);
}

static void test_address(void **state) { address(false); }
static void test_address_interpreter(void **state) { address(true); }

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_state), cmocka_unit_test(test_state_interpreter), cmocka_unit_test(test_devices),
		cmocka_unit_test(test_devices_interpreter), cmocka_unit_test(test_code), cmocka_unit_test(test_code_interpreter),
		cmocka_unit_test(test_address), cmocka_unit_test(test_address_interpreter),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
