/* The MSR table and the checks that a mask cannot express. */
#include "cpu/msr.h"

#include <stddef.h>

#include "cpu/mmu.h"
#include "cpu/model.h"

#define IGNORE (1ull << 63 | 1)		/* in `writable` of a CONST: writes are accepted and dropped */

/* IA32_ARCH_CAPABILITIES: RDCL_NO, IBRS_ALL, SKIP_L1DFL_VMENTRY, SSB_NO, MDS_NO, PSCHANGE_MC_NO, TAA_NO,
 * SBDR_SSDP_NO, FBSDP_NO, PSDP_NO, BHI_NO, PBRSB_NO, GDS_NO, RFDS_NO.
 * A guest's own mitigations act on predictors it does not own here: the host's apply to this process. */
#define ARCH_CAPABILITIES 0xd10e17bull

enum msr_kind { KIND_STATE, KIND_CONST, KIND_AMD };

struct msr_row {
	uint32_t index;
	uint8_t kind;
	uint16_t offset;
	uint64_t writable, reset;
};

static const struct msr_row rows[] = {
#define X86_MSR(name, index_, kind_, field, writable_, reset_) \
	{ (index_), KIND_##kind_, offsetof(struct x86_state, field), (writable_), (reset_) },
#include "cpu/msr.def"
#undef X86_MSR
};
#define ROWS (sizeof(rows) / sizeof(rows[0]))

/* The table is sorted by index (asserted by the tests). */
static const struct msr_row *msr_find(uint32_t index)
{
	unsigned lo = 0, hi = ROWS;

	while (lo < hi) {
		unsigned mid = (lo + hi) / 2;

		if (rows[mid].index < index)
			lo = mid + 1;
		else
			hi = mid;
	}
	return lo < ROWS && rows[lo].index == index ? &rows[lo] : NULL;
}

/* MSRs that exist only with a CPUID feature. */
static bool msr_exists(const struct msr_row *row, const struct cpu_model *model)
{
	switch (row->index) {
	case MSR_SPEC_CTRL: case MSR_PRED_CMD: return cpu_model_has(model, FEATURE_SPEC_CTRL);
	case MSR_ARCH_CAPABILITIES: return cpu_model_has(model, FEATURE_ARCH_CAPS);
	case MSR_TSC_AUX: return cpu_model_has(model, FEATURE_RDTSCP) || cpu_model_has(model, FEATURE_RDPID);
	case MSR_KVM_WALL_CLOCK: case MSR_KVM_SYSTEM_TIME: return cpu_model_kvmclock(model);
	case MSR_XSS: return cpu_model_has(model, FEATURE_XSAVES);
	case MSR_PLATFORM_ID: case MSR_PLATFORM_INFO: case MSR_MISC_ENABLE: return !cpu_model_amd(model);
	default: return row->kind != KIND_AMD || cpu_model_amd(model);
	}
}

bool msr_get(const struct x86_state *s, const struct cpu_model *model, uint32_t msr, uint64_t *value)
{
	const struct msr_row *row = msr_find(msr);

	if (!row || !msr_exists(row, model) || msr == MSR_PRED_CMD)
		return false;
	*value = row->kind == KIND_STATE ? *(const uint64_t *)((const char *)s + row->offset) : row->reset;
	return true;
}

/* Memory types, SDM vol. 3 table 11-10; UC- (7) exists in the PAT only. */
static bool memory_types_valid(uint64_t value, unsigned n, bool pat)
{
	for (unsigned i = 0; i < n; i++) {
		unsigned type = value >> 8 * i & 0xff;

		if (type > 7 || type == 2 || type == 3 || (type == 7 && !pat))
			return false;
	}
	return true;
}

static bool mtrr_valid(uint32_t msr, uint64_t value)
{
	if (msr == MSR_MTRR_DEF_TYPE)
		return memory_types_valid(value & 0xff, 1, false);
	if (msr >= MSR_MTRR_FIX64K)
		return memory_types_valid(value, 8, false);
	if (value >> MMU_PHYS_BITS)
		return false;
	if (msr & 1)
		return !(value & 0x7ff);
	return !(value & 0xf00) && memory_types_valid(value & 0xff, 1, false);
}

static bool efer_set(struct x86_state *s, const struct cpu_model *model, uint64_t value)
{
	if (value & ~(cpu_model_efer_mask(model) | EFER_LMA))
		return false;
	if ((value ^ s->efer) & EFER_LME && s->cr0 & CR0_PG)
		return false;
	s->efer = (value & ~(uint64_t)EFER_LMA) | (s->efer & EFER_LMA);
	return true;
}

bool msr_set(struct x86_state *s, const struct cpu_model *model, uint32_t msr, uint64_t value)
{
	const struct msr_row *row = msr_find(msr);

	if (!row || !msr_exists(row, model))
		return false;
	if (row->kind != KIND_STATE)
		return row->writable == IGNORE;
	if (msr == MSR_EFER)
		return efer_set(s, model, value);
	if (value & ~row->writable)
		return false;
	if (msr >= MSR_MTRR_BASE0 && msr <= MSR_MTRR_DEF_TYPE && msr != MSR_PAT && !mtrr_valid(msr, value))
		return false;
	switch (msr) {
	case MSR_PAT:
		if (!memory_types_valid(value, 8, true))
			return false;
		break;
	case MSR_LSTAR: case MSR_CSTAR: case MSR_FS_BASE: case MSR_GS_BASE: case MSR_KERNEL_GS_BASE:
	case MSR_SYSENTER_ESP: case MSR_SYSENTER_EIP:
		if (!cpu_model_canonical(model, value))
			return false;
	}
	*(uint64_t *)((char *)s + row->offset) = value;
	return true;
}

static const uint32_t state_msrs[] = {
#define LIST_STATE(index) index,
#define LIST_CONST(index)
#define LIST_AMD(index)
#define X86_MSR(name, index, kind, ...) LIST_##kind(index)
#include "cpu/msr.def"
#undef X86_MSR
};

const uint32_t *msr_list(unsigned *count)
{
	*count = sizeof(state_msrs) / sizeof(state_msrs[0]);
	return state_msrs;
}
