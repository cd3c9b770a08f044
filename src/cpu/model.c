/*
 * Which features a CPU model has.
 *
 *   x86-64-v2 to -v4  fixed lists: the psABI level and the system features of such CPUs; GenuineIntel with
 *                   the ARCH_CAPABILITIES that spare Linux page-table isolation and retpolines
 *   max             x86-64-v3 and all else that the soft engine has and the host can run: for tests
 *   host            the engine's features that the host has too, and the host's vendor and family
 */
#include "cpu/model_private.h"

#include <cpuid.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "cpu/mmu.h"

const struct cpu_feature cpu_features[FEATURE_COUNT] = {
#define X86_FEATURE(name, leaf, subleaf, reg, bit) [FEATURE_##name] = { leaf, subleaf, reg, bit },
#include "cpu/features.def"
#undef X86_FEATURE
};

/* Software provides these whatever the host has: platform, paging and what devices make of them. */
static const uint8_t platform[] = {
	FEATURE_FPU, FEATURE_VME, FEATURE_DE, FEATURE_PSE, FEATURE_TSC, FEATURE_MSR, FEATURE_PAE, FEATURE_MCE,
	FEATURE_CX8, FEATURE_APIC, FEATURE_SEP, FEATURE_MTRR, FEATURE_PGE, FEATURE_MCA, FEATURE_CMOV, FEATURE_PAT,
	FEATURE_PSE36, FEATURE_CLFSH, FEATURE_MMX, FEATURE_FXSR, FEATURE_SSE, FEATURE_SSE2, FEATURE_X2APIC,
	FEATURE_TSC_DEADLINE, FEATURE_HYPERVISOR, FEATURE_ARAT, FEATURE_TSC_ADJUST, FEATURE_SYSCALL, FEATURE_NX,
	FEATURE_LM, FEATURE_INVTSC, FEATURE_LAHF64,
};

static const uint8_t level2[] = {
	FEATURE_SSE3, FEATURE_SSSE3, FEATURE_SSE41, FEATURE_SSE42, FEATURE_POPCNT, FEATURE_CX16,
	FEATURE_PCID, FEATURE_SMEP, FEATURE_FSGSBASE, FEATURE_RDTSCP, FEATURE_PDPE1GB, FEATURE_UMIP,
};

static const uint8_t level3[] = {
	FEATURE_AVX, FEATURE_AVX2, FEATURE_FMA, FEATURE_F16C, FEATURE_BMI1, FEATURE_BMI2, FEATURE_LZCNT,
	FEATURE_MOVBE, FEATURE_XSAVE, FEATURE_XSAVEOPT, FEATURE_XSAVEC, FEATURE_XGETBV1, FEATURE_XSAVES, FEATURE_AES,
	FEATURE_PCLMULQDQ, FEATURE_ADX, FEATURE_RDRAND, FEATURE_RDSEED, FEATURE_SMAP, FEATURE_INVPCID, FEATURE_ERMS,
	FEATURE_CLFLUSHOPT, FEATURE_PREFETCHW,
};

/* In the engine, but in no level. */
static const uint8_t extra[] = {
	FEATURE_SHA, FEATURE_LA57, FEATURE_CLWB, FEATURE_RDPID, FEATURE_VAES, FEATURE_VPCLMULQDQ, FEATURE_GFNI,
	FEATURE_AVX_VNNI,
};

/* AVX-512: the first five or none, as x86-64-v4 has them; nobody need ask for VL but for them. */
static const uint8_t avx512[] = {
	FEATURE_AVX512F, FEATURE_AVX512CD, FEATURE_AVX512BW, FEATURE_AVX512DQ, FEATURE_AVX512VL,
	FEATURE_AVX512_IFMA, FEATURE_AVX512_VBMI, FEATURE_AVX512_VBMI2, FEATURE_AVX512_VNNI, FEATURE_AVX512_BITALG,
	FEATURE_AVX512_VPOPCNTDQ, FEATURE_AVX512_BF16, FEATURE_AVX512_FP16,
};
#define AVX512_LEVEL4 5u

/* Speculation: a guest's mitigations act on predictors that it does not own here, those of the host cover
 * this process; and retpolines or return thunks would cost a translator dearly. */
static const uint8_t intel_only[] = { FEATURE_SPEC_CTRL, FEATURE_ARCH_CAPS };
static const uint8_t amd_only[] = {
	FEATURE_LFENCE_RDTSC, FEATURE_NULL_SEL_CLR, FEATURE_AUTO_IBRS, FEATURE_SRSO_NO, FEATURE_TSA_SQ_NO,
	FEATURE_TSA_L1_NO, FEATURE_BTC_NO,
};

/* Instructions that translated code runs as themselves: a model cannot have them unless the host does. */
static const uint8_t native[] = {
	FEATURE_SSE3, FEATURE_SSSE3, FEATURE_SSE41, FEATURE_SSE42, FEATURE_POPCNT, FEATURE_CX16, FEATURE_AVX, FEATURE_AVX2,
	FEATURE_FMA, FEATURE_F16C, FEATURE_BMI1, FEATURE_BMI2, FEATURE_LZCNT, FEATURE_MOVBE, FEATURE_AES,
	FEATURE_PCLMULQDQ, FEATURE_ADX, FEATURE_SHA, FEATURE_VAES, FEATURE_VPCLMULQDQ, FEATURE_GFNI, FEATURE_AVX_VNNI,
};

#define ADD(model, list) features_add(model, list, sizeof(list))
static void features_add(struct cpu_model *model, const uint8_t *list, unsigned n)
{
	for (unsigned i = 0; i < n; i++)
		model->has[list[i]] = true;
}

static bool host_has(enum x86_feature f)
{
	const struct cpu_feature *c = &cpu_features[f];
	uint32_t r[4];

	return __get_cpuid_count(c->leaf, c->subleaf, &r[0], &r[1], &r[2], &r[3]) && r[c->reg] >> c->bit & 1;
}

/* Does the host run AVX-512, and save it where struct x86_xsave has it? (AMD's lies elsewhere.) */
static bool host_avx512(void)
{
	uint32_t r[4], lo, hi;

	for (unsigned i = 0; i < AVX512_LEVEL4; i++)
		if (!host_has(avx512[i]))
			return false;
	if (!__get_cpuid(1, &r[0], &r[1], &r[2], &r[3]) || !(r[2] & bit_OSXSAVE))
		return false;
	__asm__("xgetbv" : "=a"(lo), "=d"(hi) : "c"(0));
	for (unsigned i = 5; i <= 7; i++)
		if (!__get_cpuid_count(0xd, i, &r[0], &r[1], &r[2], &r[3]) || r[1] != cpu_xsave_offset(~0ull, i, false))
			return false;
	return (lo & 0xe6) == 0xe6;
}

static bool in_list(const uint8_t *list, unsigned n, uint8_t feature)
{
	return memchr(list, feature, n) != NULL;
}

static void vendor_set(struct cpu_model *model, const char *vendor)
{
	memcpy(&model->vendor[0], vendor, 4);
	memcpy(&model->vendor[1], vendor + 4, 4);
	memcpy(&model->vendor[2], vendor + 8, 4);
}

static void level_init(struct cpu_model *model, char level)
{
	ADD(model, platform);
	ADD(model, level2);
	if (level >= '3')
		ADD(model, level3);
	if (level >= '4')
		features_add(model, avx512, AVX512_LEVEL4);
	ADD(model, intel_only);
	vendor_set(model, "GenuineIntel");
	model->signature = 0x806f8;	/* family 6, model 0x8f */
	strcpy(model->brand, "Vixen virtual CPU, x86-64-v");
	model->brand[strlen(model->brand)] = level;
}

static void avx512_add(struct cpu_model *model)
{
	for (unsigned i = 0; i < sizeof(avx512); i++)
		model->has[avx512[i]] = host_has(avx512[i]);
}

static void max_init(struct cpu_model *model)
{
	level_init(model, '3');
	ADD(model, extra);
	for (unsigned i = 0; i < sizeof(native); i++)
		model->has[native[i]] = model->has[native[i]] && host_has(native[i]);
	if (host_avx512())
		avx512_add(model);
	strcpy(model->brand, "Vixen virtual CPU, all features");
}

static void host_vendor(struct cpu_model *model)
{
	uint32_t eax, ebx, ecx, edx, r[12];

	__get_cpuid(0, &eax, &model->vendor[0], &model->vendor[2], &model->vendor[1]);
	__get_cpuid(1, &model->signature, &ebx, &ecx, &edx);
	model->amd = !memcmp(model->vendor, "AuthenticAMD", 12) || !memcmp(model->vendor, "HygonGenuine", 12);
	for (unsigned i = 0; i < 3; i++)
		if (!__get_cpuid(0x80000002 + i, &r[4 * i], &r[4 * i + 1], &r[4 * i + 2], &r[4 * i + 3]))
			memset(&r[4 * i], 0, 16);
	memcpy(model->brand, r, sizeof(r));
	for (unsigned i = 0; i < 2; i++)
		__get_cpuid(0x80000005 + i, &model->amd_cache[4 * i], &model->amd_cache[4 * i + 1],
			    &model->amd_cache[4 * i + 2], &model->amd_cache[4 * i + 3]);
}

static void host_init(struct cpu_model *model)
{
	ADD(model, level2);
	ADD(model, level3);
	ADD(model, extra);
	for (unsigned f = 1; f < FEATURE_COUNT; f++)
		model->has[f] = model->has[f] && host_has(f);
	if (host_avx512())
		avx512_add(model);
	ADD(model, platform);
	host_vendor(model);
	if (model->amd)
		ADD(model, amd_only);
	else
		ADD(model, intel_only);
}

/* The host must run what the model promises. */
static int host_check(const struct cpu_model *model, struct error *e)
{
	if (model->has[FEATURE_AVX512F] && !host_avx512())
		return error_set(e, ENOTSUP, "choose --cpu host, or x86-64-v3", "set up the CPU model",
				 "this host has no AVX-512, or keeps its state as AMD's CPUs do");
	for (unsigned f = 1; f < FEATURE_COUNT; f++) {
		if (model->has[f] && in_list(native, sizeof(native), f) && !host_has(f))
			return error_set(e, ENOTSUP, "choose --cpu host, or x86-64-v2", "set up the CPU model",
					 "this host's CPU has not all features of %s", model->name);
	}
	return 0;
}

int cpu_model_new(struct cpu_model **out, const struct cpu_model_config *cfg, struct error *e)
{
	struct cpu_model *model = calloc(1, sizeof(*model));
	int r;

	if (!model)
		return error_set(e, ENOMEM, NULL, "set up the CPU model", "out of memory");
	model->tsc_hz = cfg->tsc_hz;
	model->kvmclock = cfg->kvmclock;
	if (!strcmp(cfg->name, "host")) {
		host_init(model);
	} else if (!strcmp(cfg->name, "max")) {
		max_init(model);
	} else if (!strcmp(cfg->name, "x86-64-v2") || !strcmp(cfg->name, "x86-64-v3") || !strcmp(cfg->name, "x86-64-v4")) {
		level_init(model, cfg->name[8]);
	} else {
		free(model);
		return error_set(e, EINVAL, "the models are x86-64-v2, x86-64-v3, x86-64-v4, host and max", "set up the CPU model",
				 "there is no model '%.32s'", cfg->name);
	}
	strcpy(model->name, cfg->name);
	r = host_check(model, e);
	if (r < 0) {
		free(model);
		return r;
	}
	*out = model;
	return 0;
}

void cpu_model_free(struct cpu_model *model) { free(model); }
const char *cpu_model_name(const struct cpu_model *model) { return model->name; }
bool cpu_model_amd(const struct cpu_model *model) { return model->amd; }
bool cpu_model_kvmclock(const struct cpu_model *model) { return model->kvmclock; }
unsigned cpu_model_phys_bits(const struct cpu_model *model) { return MMU_PHYS_BITS; }

bool cpu_model_has(const struct cpu_model *model, enum x86_feature feature)
{
	return feature == FEATURE_NONE || model->has[feature];
}

bool cpu_model_canonical(const struct cpu_model *model, uint64_t va)
{
	unsigned shift = model->has[FEATURE_LA57] ? 64 - 57 : 64 - 48;

	return (uint64_t)((int64_t)(va << shift) >> shift) == va;
}

uint64_t cpu_model_cr4_mask(const struct cpu_model *model)
{
	static const struct { uint8_t feature; uint32_t bit; } gated[] = {
		{ FEATURE_UMIP, CR4_UMIP }, { FEATURE_LA57, CR4_LA57 }, { FEATURE_FSGSBASE, CR4_FSGSBASE },
		{ FEATURE_PCID, CR4_PCIDE }, { FEATURE_XSAVE, CR4_OSXSAVE }, { FEATURE_SMEP, CR4_SMEP },
		{ FEATURE_SMAP, CR4_SMAP }, { FEATURE_PKU, CR4_PKE },
	};
	uint64_t mask = CR4_VME | CR4_PVI | CR4_TSD | CR4_DE | CR4_PSE | CR4_PAE | CR4_MCE | CR4_PGE | CR4_PCE |
			CR4_OSFXSR | CR4_OSXMMEXCPT;

	for (unsigned i = 0; i < sizeof(gated) / sizeof(gated[0]); i++)
		if (model->has[gated[i].feature])
			mask |= gated[i].bit;
	return mask;
}

uint64_t cpu_model_efer_mask(const struct cpu_model *model)
{
	uint64_t mask = EFER_SCE | EFER_LME | EFER_NXE;

	if (model->has[FEATURE_AUTO_IBRS])
		mask |= 1u << 21;
	return mask;
}

uint64_t cpu_model_xcr0_mask(const struct cpu_model *model)
{
	uint64_t mask = 3;

	if (model->has[FEATURE_AVX])
		mask |= 4;
	if (model->has[FEATURE_AVX512F])
		mask |= 0xe0;
	if (model->has[FEATURE_PKU])
		mask |= 0x200;
	return mask;
}
