/* Page walks in every mode, CPUID, MSRs, reset. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "cpu/mmu.h"
#include "cpu/model.h"
#include "cpu/msr.h"
#include "memory/map.h"

#define RAM (16u << 20)
#define P 1ull
#define W 2ull
#define U 4ull
#define A 0x20ull
#define D 0x40ull
#define PS 0x80ull
#define NX (1ull << 63)

struct fixture {
	struct map *m;
	struct x86_state s;
	struct mmu_result r;
	uint32_t error;
};

static struct fixture *fixture_new(void)
{
	struct fixture *f = calloc(1, sizeof(*f));

	f->m = map_new();
	assert_non_null(f->m);
	assert_int_equal(map_add_ram(f->m, 0, RAM, NULL), 0);
	state_reset(&f->s, true);
	f->s.cr0 = CR0_PE | CR0_PG | CR0_WP;
	return f;
}

static void fixture_free(struct fixture *f)
{
	map_free(f->m);
	free(f);
}

static bool walk(struct fixture *f, uint64_t gva, unsigned access)
{
	f->error = 0;
	return mmu_walk(&f->s, f->m, gva, access, &f->r, &f->error);
}

static void put64(struct fixture *f, uint64_t gpa, uint64_t v) { map_store(f->m, gpa, 8, v); }
static void put32(struct fixture *f, uint64_t gpa, uint32_t v) { map_store(f->m, gpa, 4, v); }
static uint64_t get64(struct fixture *f, uint64_t gpa) { return map_load(f->m, gpa, 8); }

/* PML4 0x1000, PDPT 0x2000, PD 0x3000, PT 0x4000; gva 0x5000 -> 0x9000 */
static struct fixture *long_mode(void)
{
	struct fixture *f = fixture_new();

	f->s.cr4 = CR4_PAE;
	f->s.efer = EFER_LME | EFER_LMA | EFER_NXE;
	f->s.cr3 = 0x1000;
	put64(f, 0x1000, 0x2000 | P | W | U);
	put64(f, 0x2000, 0x3000 | P | W | U);
	put64(f, 0x3000, 0x4000 | P | W | U);
	put64(f, 0x4028, 0x9000 | P | W | U);
	return f;
}

static void test_no_paging(void **state)
{
	struct fixture *f = fixture_new();

	f->s.cr0 = CR0_PE;
	assert_true(walk(f, 0x12345, MMU_WRITE));
	assert_int_equal(f->r.gpa, 0x12345);
	fixture_free(f);
}

static void test_four_levels(void **state)
{
	struct fixture *f = long_mode();

	assert_true(walk(f, 0x5123, MMU_USER | MMU_PEEK));
	assert_int_equal(get64(f, 0x4028), 0x9000 | P | W | U);
	assert_true(walk(f, 0x5123, MMU_USER));
	assert_int_equal(f->r.gpa, 0x9123);
	assert_int_equal(f->r.page_shift, 12);
	assert_true(f->r.writable && f->r.user && !f->r.dirty && !f->r.nx && !f->r.global);
	assert_int_equal(get64(f, 0x4028), 0x9000 | P | W | U | A);
	assert_int_equal(get64(f, 0x1000), 0x2000 | P | W | U | A);
	assert_true(walk(f, 0x5123, MMU_USER | MMU_WRITE));
	assert_true(f->r.dirty);
	assert_int_equal(get64(f, 0x4028), 0x9000 | P | W | U | A | D);
	assert_int_equal(get64(f, 0x3000), 0x4000 | P | W | U | A);
	assert_false(walk(f, 0x6000, MMU_USER | MMU_WRITE));
	assert_int_equal(f->error, PF_U | PF_W);
	assert_false(walk(f, 0x6000, MMU_FETCH));
	assert_int_equal(f->error, PF_I);
	fixture_free(f);
}

static void test_permissions(void **state)
{
	struct fixture *f = long_mode();

	put64(f, 0x4028, 0x9000 | P | U | NX);
	assert_false(walk(f, 0x5000, MMU_USER | MMU_WRITE));
	assert_int_equal(f->error, PF_P | PF_U | PF_W);
	assert_false(walk(f, 0x5000, MMU_WRITE));
	assert_int_equal(f->error, PF_P | PF_W);
	f->s.cr0 &= ~(uint64_t)CR0_WP;
	assert_true(walk(f, 0x5000, MMU_WRITE));
	assert_true(f->r.writable);
	f->s.cr0 |= CR0_WP;
	assert_false(walk(f, 0x5000, MMU_USER | MMU_FETCH));
	assert_int_equal(f->error, PF_P | PF_U | PF_I);
	f->s.efer &= ~(uint64_t)EFER_NXE;
	assert_false(walk(f, 0x5000, MMU_USER));
	assert_int_equal(f->error, PF_P | PF_U | PF_RSVD);
	f->s.efer |= EFER_NXE;
	put64(f, 0x4028, 0x9000 | P | W);
	assert_false(walk(f, 0x5000, MMU_USER));
	assert_int_equal(f->error, PF_P | PF_U);
	fixture_free(f);
}

static void test_smep_smap_keys(void **state)
{
	struct fixture *f = long_mode();

	f->s.cr4 |= CR4_SMEP | CR4_SMAP;
	assert_false(walk(f, 0x5000, MMU_FETCH));
	assert_int_equal(f->error, PF_P | PF_I);
	assert_false(walk(f, 0x5000, MMU_SMAP));
	assert_int_equal(f->error, PF_P);
	assert_true(walk(f, 0x5000, 0));
	f->s.cr4 |= CR4_PKE;
	put64(f, 0x4028, 0x9000 | P | W | U | 3ull << 59);
	f->s.pkru = 2u << 6;		/* key 3: no writes */
	assert_true(walk(f, 0x5000, MMU_USER));
	assert_false(f->r.writable);
	assert_false(walk(f, 0x5000, MMU_USER | MMU_WRITE));
	assert_int_equal(f->error, PF_P | PF_U | PF_W | PF_PK);
	f->s.pkru = 1u << 6;
	assert_false(walk(f, 0x5000, MMU_USER));
	assert_true(walk(f, 0x5000, MMU_USER | MMU_FETCH));
	fixture_free(f);
}

static void test_large_pages(void **state)
{
	struct fixture *f = long_mode();

	put64(f, 0x3008, 0x600000 | P | W | PS | 0x100);
	f->s.cr4 |= CR4_PGE;
	assert_true(walk(f, 0x2abcde, 0));
	assert_int_equal(f->r.gpa, 0x6abcde);
	assert_int_equal(f->r.page_shift, 21);
	assert_true(f->r.global && !f->r.user);
	put64(f, 0x3008, 0x602000 | P | W | PS);	/* reserved bit 13 */
	assert_false(walk(f, 0x200000, 0));
	assert_int_equal(f->error, PF_P | PF_RSVD);
	put64(f, 0x2008, 0x80000000 | P | W | PS);
	assert_true(walk(f, 0x40001234, MMU_WRITE));
	assert_int_equal(f->r.gpa, 0x80001234);
	assert_int_equal(f->r.page_shift, 30);
	put64(f, 0x1008, 0x2000 | P | W | PS);		/* PS in a PML4E is reserved */
	assert_false(walk(f, 1ull << 39, 0));
	assert_int_equal(f->error, PF_P | PF_RSVD);
	put64(f, 0x1008, 0x2000 | P | W | 1ull << 50);	/* above MAXPHYADDR */
	assert_false(walk(f, 1ull << 39, 0));
	assert_int_equal(f->error, PF_P | PF_RSVD);
	fixture_free(f);
}

static void test_five_levels(void **state)
{
	struct fixture *f = long_mode();

	f->s.cr4 |= CR4_LA57;
	f->s.cr3 = 0x7000;
	put64(f, 0x7008, 0x1000 | P | W | U);
	assert_true(walk(f, (1ull << 48) + 0x5008, MMU_USER));
	assert_int_equal(f->r.gpa, 0x9008);
	assert_false(walk(f, 0x5008, MMU_USER));
	fixture_free(f);
}

static void test_pae(void **state)
{
	struct fixture *f = fixture_new();

	f->s.cr4 = CR4_PAE;
	f->s.cr3 = 0x1020;
	put64(f, 0x1020, 0x3000 | P);
	put64(f, 0x1038, 0x5000 | P);
	put64(f, 0x3000, 0x4000 | P | W | U);
	put64(f, 0x4028, 0x9000 | P | W | U);
	assert_true(mmu_load_pdpte(f->m, f->s.cr3, f->s.pdpte));
	assert_true(walk(f, 0x5678, MMU_USER | MMU_WRITE));
	assert_int_equal(f->r.gpa, 0x9678);
	assert_true(walk(f, 0xffffffff00005678, MMU_USER));
	assert_false(walk(f, 0x40000000, 0));
	assert_int_equal(f->error, 0);
	put64(f, 0x5000, 0x800000 | P | W | PS);
	assert_true(walk(f, 0xc0012345, 0));
	assert_int_equal(f->r.gpa, 0x812345);
	put64(f, 0x4028, 0x9000 | P | 1ull << 55);	/* ignored in long mode, reserved here */
	assert_false(walk(f, 0x5000, 0));
	assert_int_equal(f->error, PF_P | PF_RSVD);
	put64(f, 0x1020, 0x3000 | P | W);
	assert_false(mmu_load_pdpte(f->m, f->s.cr3, f->s.pdpte));
	fixture_free(f);
}

static void test_32bit(void **state)
{
	struct fixture *f = fixture_new();

	f->s.cr3 = 0x1000;
	put32(f, 0x1000, 0x2000 | P | W | U);
	put32(f, 0x2014, 0x9000 | P | W | U);
	assert_true(walk(f, 0x5abc, MMU_WRITE));
	assert_int_equal(f->r.gpa, 0x9abc);
	assert_int_equal(map_load(f->m, 0x2014, 4), 0x9000 | P | W | U | A | D);
	put32(f, 0x1004, 0x2000 | P | W | PS);		/* without CR4.PSE: a table */
	assert_true(walk(f, 0x405abc, 0));
	assert_int_equal(f->r.gpa, 0x9abc);
	f->s.cr4 = CR4_PSE;
	put32(f, 0x1004, 0x800000 | P | W | PS | 3 << 13);	/* PSE-36: 3 << 32 */
	assert_true(walk(f, 0x705abc, 0));
	assert_int_equal(f->r.gpa, 0x300b05abc);
	put32(f, 0x1004, 0x800000 | P | PS | 1 << 21);
	assert_false(walk(f, 0x400000, 0));
	assert_int_equal(f->error, PF_P | PF_RSVD);
	fixture_free(f);
}

/* Tables in a hole: an ordinary fault, no crash. */
static void test_tables_outside_ram(void **state)
{
	struct fixture *f = long_mode();

	f->s.cr3 = 0xfffff000;
	assert_false(walk(f, 0x5000, MMU_USER));
	f->s.cr3 = 0x1000;
	put64(f, 0x2000, (1ull << 45) | P | W | U);
	assert_false(walk(f, 0x5000, MMU_USER));
	assert_int_equal(f->error, PF_P | PF_U | PF_RSVD);
	fixture_free(f);
}

/* Random tables: any answer but a crash, and any success is in the right shape. */
static void test_random_tables(void **state)
{
	static const uint64_t modes[][2] = {	/* CR4, EFER */
		{ 0, 0 }, { CR4_PSE, 0 }, { CR4_PAE, EFER_NXE }, { CR4_PAE | CR4_PGE, EFER_LMA | EFER_NXE },
		{ CR4_PAE | CR4_LA57 | CR4_PKE | CR4_SMEP | CR4_SMAP, EFER_LMA | EFER_NXE },
	};
	struct fixture *f = fixture_new();
	uint64_t rng = 88172645463325252ull;
	unsigned ok = 0;

	for (unsigned i = 0; i < 1u << 20; i += 8) {
		rng ^= rng << 13;
		rng ^= rng >> 7;
		rng ^= rng << 17;	/* mostly plausible: 1 MiB of tables that point into themselves */
		put64(f, i, i & 0x38 ? (rng & 0xff067) | P | W | U | (rng >> 40 & PS) : rng);
	}
	for (unsigned i = 0; i < 300000; i++) {
		rng ^= rng << 13;
		rng ^= rng >> 7;
		rng ^= rng << 17;
		f->s.cr4 = modes[i % 5][0];
		f->s.efer = modes[i % 5][1];
		f->s.cr3 = rng >> 20 & 0xff000;
		f->s.pkru = rng;
		for (unsigned k = 0; k < 4; k++)
			f->s.pdpte[k] = (rng >> (4 * k) & 0xff000) | P;
		if (walk(f, rng, rng >> 50 & 15)) {
			ok++;
			assert_true(f->r.gpa >> MMU_PHYS_BITS == 0);
			assert_int_equal(f->r.gpa & 0xfff, rng & 0xfff);
		} else {
			assert_int_equal(f->error & ~63u, 0);
		}
	}
	assert_true(ok > 1000);
	fixture_free(f);
}

static struct cpu_model *model_new(const char *name)
{
	struct cpu_model_config cfg = { .name = name, .tsc_hz = 2500000000u };
	struct cpu_model *model = NULL;
	int r = cpu_model_new(&model, &cfg, NULL);

	if (r < 0)
		print_message("%s: not on this host\n", name);
	return model;
}

static void count_entry(void *opaque, const struct cpuid_entry *e)
{
	(*(unsigned *)opaque)++;
}

static void model_check(const char *name)
{
	struct cpu_model *model = model_new(name);
	struct x86_state s;
	uint32_t r[4];
	unsigned entries = 0;

	if (!model)
		return;
	state_reset(&s, true);
	cpu_model_cpuid(model, 0, 0, &s, 0, 4, r);
	assert_true(r[0] >= 0xd);
	cpu_model_cpuid(model, 1, 0, &s, 3, 4, r);
	assert_int_equal(r[1] >> 24, 3);
	assert_int_equal(r[1] >> 16 & 0xff, 4);
	assert_false(r[2] >> 27 & 1);
	assert_true(r[3] >> 26 & 1);
	s.cr4 |= CR4_OSXSAVE;
	cpu_model_cpuid(model, 1, 0, &s, 0, 1, r);
	assert_true(r[2] >> 27 & 1);
	assert_false(r[3] >> 28 & 1);
	for (unsigned sub = 0; sub < 4; sub++) {
		cpu_model_cpuid(model, 0xb, sub, &s, 5, 8, r);
		assert_int_equal(r[3], 5);
		assert_int_equal(r[2] & 0xff, sub);
	}
	if (cpu_model_has(model, FEATURE_AVX)) {
		cpu_model_cpuid(model, 0xd, 0, &s, 0, 1, r);
		assert_int_equal(r[0], cpu_model_has(model, FEATURE_AVX512F) ? 0xe7 : 7);
		assert_int_equal(r[1], 576);
		assert_int_equal(r[2], cpu_model_has(model, FEATURE_AVX512F) ? 2688 : 832);
		s.xcr0 = 7;
		cpu_model_cpuid(model, 0xd, 0, &s, 0, 1, r);
		assert_int_equal(r[1], 832);
		cpu_model_cpuid(model, 0xd, 1, &s, 0, 1, r);
		assert_int_equal(r[1], 832);
		cpu_model_cpuid(model, 0xd, 2, &s, 0, 1, r);
		assert_int_equal(r[0], 256);
		assert_int_equal(r[1], 576);
	}
	cpu_model_cpuid(model, 0x7, 0, &s, 0, 1, r);
	assert_int_equal(r[1] & (1u << 4 | 1u << 11), 0);	/* HLE, RTM */
	assert_int_equal(r[1] >> 16 & 1, cpu_model_has(model, FEATURE_AVX512F));
	assert_int_equal(r[0], cpu_model_has(model, FEATURE_AVX_VNNI) || cpu_model_has(model, FEATURE_AVX512_BF16));
	assert_int_equal(r[2] >> 8 & 1, cpu_model_has(model, FEATURE_GFNI));
	cpu_model_cpuid(model, 0x7, 1, &s, 0, 1, r);
	assert_int_equal(r[0], (unsigned)cpu_model_has(model, FEATURE_AVX_VNNI) << 4 |
			 (unsigned)cpu_model_has(model, FEATURE_AVX512_BF16) << 5);
	cpu_model_cpuid(model, 0xa, 0, &s, 0, 1, r);
	assert_int_equal(r[0], 0);
	cpu_model_cpuid(model, 0x12345678, 0, &s, 0, 1, r);
	assert_int_equal(r[0] | r[1] | r[2] | r[3], 0);
	cpu_model_cpuid(model, 0xffffffff, ~0u, NULL, 0, 1, r);
	cpu_model_cpuid(model, 0x80000008, 0, &s, 0, 1, r);
	assert_int_equal(r[0] & 0xff, cpu_model_phys_bits(model));
	cpu_model_each(model, 0, 4, count_entry, &entries);
	assert_true(entries > 20);
	cpu_model_free(model);
}

static void test_models(void **state)
{
	struct cpu_model_config cfg = { .name = "pentium" };
	struct cpu_model *model;
	struct error e;

	model_check("x86-64-v2");
	model_check("x86-64-v3");
	model_check("host");
	model_check("max");
	assert_true(cpu_model_new(&model, &cfg, &e) < 0);
}

static void test_xsave_size(void **state)
{
	assert_int_equal(cpu_xsave_size(3, false), 576);
	assert_int_equal(cpu_xsave_size(7, true), 832);
	assert_int_equal(cpu_xsave_size(0x207, false), 2696);
	assert_int_equal(cpu_xsave_size(0x207, true), 840);
	assert_int_equal(cpu_xsave_size(0xe7, false), 2688);
	assert_int_equal(cpu_xsave_size(0xe7, true), 2432);
	assert_int_equal(cpu_xsave_offset(0xe7, 7, false), 1664);
	assert_int_equal(cpu_xsave_offset(0xe7, 7, true), 1408);
	assert_int_equal(cpu_xsave_offset(0xa3, 7, true), 640);
}

static void test_msrs(void **state)
{
	struct cpu_model *model = model_new("x86-64-v2");
	struct x86_state s;
	const uint32_t *list;
	uint64_t v;
	unsigned n;

	if (!model)
		skip();
	state_reset(&s, true);
	list = msr_list(&n);
	for (unsigned i = 0; i < n; i++) {	/* ascending, so the look-up works */
		assert_true(i == 0 || list[i] > list[i - 1]);
		if (list[i] != MSR_XSS && list[i] != MSR_SPEC_CTRL && list[i] >> 8 != 0x4b564d)
			assert_true(msr_get(&s, model, list[i], &v));
	}
	assert_false(msr_get(&s, model, 0x12345, &v));
	assert_false(msr_set(&s, model, 0x12345, 0));
	assert_true(msr_get(&s, model, MSR_PAT, &v));
	assert_int_equal(v, 0x0007040600070406);
	assert_true(msr_set(&s, model, MSR_PAT, 0x0007010600070106));
	assert_false(msr_set(&s, model, MSR_PAT, 0x0007010600070206));
	assert_false(msr_set(&s, model, MSR_LSTAR, 0x8000000000000000));
	assert_true(msr_set(&s, model, MSR_LSTAR, 0xffffffff81000000));
	assert_int_equal(s.lstar, 0xffffffff81000000);
	assert_true(msr_set(&s, model, MSR_EFER, EFER_SCE | EFER_LME | EFER_NXE));
	assert_false(msr_set(&s, model, MSR_EFER, 1ull << 12));
	s.cr0 |= CR0_PG;
	s.efer |= EFER_LMA;
	assert_false(msr_set(&s, model, MSR_EFER, EFER_SCE | EFER_NXE));
	assert_true(msr_set(&s, model, MSR_EFER, EFER_LME | EFER_NXE));
	assert_int_equal(s.efer, EFER_LME | EFER_LMA | EFER_NXE);
	assert_true(msr_set(&s, model, MSR_MTRR_DEF_TYPE, 0xc06));
	assert_false(msr_set(&s, model, MSR_MTRR_DEF_TYPE, 0xc02));
	assert_false(msr_set(&s, model, MSR_MTRR_CAP, 0));
	assert_true(msr_set(&s, model, MSR_MTRR_BASE0, 0x80000006));
	assert_false(msr_set(&s, model, MSR_MTRR_MASK0, 0x400));
	assert_true(msr_set(&s, model, MSR_FS_BASE, 0x1234));
	assert_int_equal(s.seg[SEG_FS].base, 0x1234);
	assert_false(msr_get(&s, model, MSR_AMD_HWCR, &v));
	cpu_model_free(model);
}

/* What WRMSR takes for an address is the CPU's to say, not CR4.LA57's. */
static void test_msr_width(void **state)
{
	struct cpu_model *narrow = model_new("x86-64-v2"), *host = model_new("host");
	struct x86_state s;

	if (!narrow || !host)
		skip();
	state_reset(&s, true);
	assert_false(msr_set(&s, narrow, MSR_GS_BASE, 1ull << 52));
	s.cr4 |= CR4_LA57;
	assert_false(msr_set(&s, narrow, MSR_GS_BASE, 1ull << 52));
	s.cr4 = 0;
	assert_int_equal(msr_set(&s, host, MSR_GS_BASE, 1ull << 52), cpu_model_has(host, FEATURE_LA57));
	assert_false(msr_set(&s, host, MSR_GS_BASE, 1ull << 57));
	cpu_model_free(narrow);
	cpu_model_free(host);
}

static void test_msr_order(void **state)
{
	static const uint32_t index[] = {
#define X86_MSR(name, index_, ...) index_,
#include "cpu/msr.def"
#undef X86_MSR
	};

	for (unsigned i = 1; i < sizeof(index) / sizeof(index[0]); i++)
		assert_true(index[i] > index[i - 1]);
}

static void test_reset(void **state)
{
	struct x86_state s;

	state_reset(&s, false);
	assert_int_equal(s.seg[SEG_CS].base + s.rip, 0xfffffff0);
	assert_int_equal(s.activity, ACTIVITY_WAIT_SIPI);
	s.lstar = 5;
	s.fpu.fcw = 0x37f;
	s.cr0 = CR0_PG | CR0_PE;
	s.efer = EFER_LME;
	state_init(&s, true);
	assert_int_equal(s.lstar, 5);
	assert_int_equal(s.fpu.fcw, 0x37f);
	assert_int_equal(s.cr0, CR0_ET);
	assert_int_equal(s.efer, 0);
	assert_int_equal(s.activity, ACTIVITY_RUNNING);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_no_paging), cmocka_unit_test(test_four_levels), cmocka_unit_test(test_permissions),
		cmocka_unit_test(test_smep_smap_keys), cmocka_unit_test(test_large_pages),
		cmocka_unit_test(test_five_levels), cmocka_unit_test(test_pae), cmocka_unit_test(test_32bit),
		cmocka_unit_test(test_tables_outside_ram),
		cmocka_unit_test(test_random_tables), cmocka_unit_test(test_models),
		cmocka_unit_test(test_xsave_size), cmocka_unit_test(test_msrs),
		cmocka_unit_test(test_msr_width), cmocka_unit_test(test_msr_order), cmocka_unit_test(test_reset),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
