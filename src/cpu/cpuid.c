/* What CPUID answers: SDM vol. 2 CPUID, APM vol. 3 appendix E. */
#include "cpu/model_private.h"

#include <string.h>

#include "cpu/mmu.h"

#define LEAF_MAX_INTEL 0x1f
#define LEAF_MAX_AMD 0xd
#define KVM_NOP_IO_DELAY 2u	/* no device here needs the write to port 0x80 */
#define KVM_CLOCK (1u << 3 | 1u << 24)	/* CLOCKSOURCE2; CLOCKSOURCE_STABLE: its flag TSC_STABLE may be trusted */
#define LAPIC_HZ 1000000000u	/* the bus clock of devices/irq: Linux takes leaf 15H's crystal for it */

enum { EAX, EBX, ECX, EDX };

struct asked {
	const struct cpu_model *model;
	const struct x86_state *s;	/* may be NULL */
	uint32_t leaf, subleaf;
	unsigned vcpu, vcpus;
};

/* Offset in the standard format and size of an XSAVE component, SDM vol. 1 13.4. */
static const struct { uint16_t offset, size; } components[] = {
	[2] = { 576, 256 }, [5] = { 1088, 64 }, [6] = { 1152, 512 }, [7] = { 1664, 1024 }, [9] = { 2688, 8 },
};
#define COMPONENTS (sizeof(components) / sizeof(components[0]))

uint32_t cpu_xsave_size(uint64_t mask, bool compacted)
{
	uint32_t size = 576;

	for (unsigned i = 2; i < COMPONENTS; i++) {
		if (!(mask >> i & 1))
			continue;
		if (compacted)
			size += components[i].size;
		else
			size = components[i].offset + components[i].size;
	}
	return size;
}

uint32_t cpu_xsave_offset(uint64_t mask, unsigned component, bool compacted)
{
	return compacted ? cpu_xsave_size(mask & ((1ull << component) - 1), true) : components[component].offset;
}

/* The feature bits that live in this leaf. */
static void features_fill(const struct asked *q, uint32_t out[4])
{
	for (unsigned f = 1; f < FEATURE_COUNT; f++) {
		const struct cpu_feature *c = &cpu_features[f];

		if (q->model->has[f] && c->leaf == q->leaf && c->subleaf == q->subleaf)
			out[c->reg] |= 1u << c->bit;
	}
}

/* Bits that number n things. */
static unsigned width(unsigned n)
{
	return n <= 1 ? 0 : 32 - __builtin_clz(n - 1);
}

static void leaf_features(const struct asked *q, uint32_t out[4])
{
	bool apic_on = !q->s || q->s->apic_base & 0x800;

	out[EAX] = q->model->signature;
	out[EBX] = q->vcpu << 24 | (q->vcpus & 0xff) << 16 | 8 << 8;	/* CLFLUSH line: 8 * 8 bytes */
	features_fill(q, out);
	if (q->s && q->s->cr4 & CR4_OSXSAVE)
		out[ECX] |= 1u << 27;
	if (!apic_on)
		out[EDX] &= ~(1u << 9);
	if (q->vcpus > 1)
		out[EDX] |= 1u << 28;
}

static void leaf_7(const struct asked *q, uint32_t out[4])
{
	features_fill(q, out);
	if (q->subleaf != 0)
		return;
	out[EAX] = q->model->has[FEATURE_AVX_VNNI] || q->model->has[FEATURE_AVX512_BF16];	/* the last subleaf */
	if (q->s && q->s->cr4 & CR4_PKE)
		out[ECX] |= 1u << 4;
}

/* Deterministic cache parameters: type, level, sharing, line size, ways, sets. */
static void leaf_4(const struct asked *q, uint32_t out[4])
{
	static const struct { uint8_t type, level, shared; uint16_t ways, sets; } cache[] = {
		{ 1, 1, 0, 8, 64 }, { 2, 1, 0, 8, 64 }, { 3, 2, 0, 16, 1024 }, { 3, 3, 1, 16, 16384 },
	};
	unsigned cores = 1u << width(q->vcpus);

	if (q->model->amd || q->subleaf >= sizeof(cache) / sizeof(cache[0]))
		return;
	out[EAX] = cache[q->subleaf].type | cache[q->subleaf].level << 5 | 1 << 8 | (cores - 1) << 26;
	if (cache[q->subleaf].shared)
		out[EAX] |= (cores - 1) << 14;
	out[EBX] = 63 | (cache[q->subleaf].ways - 1u) << 22;
	out[ECX] = cache[q->subleaf].sets - 1u;
}

/* 0BH and 1FH: the x2APIC ID stands in every subleaf. */
static void leaf_topology(const struct asked *q, uint32_t out[4])
{
	out[EDX] = q->vcpu;
	out[ECX] = q->subleaf & 0xff;
	if (q->subleaf == 0) {		/* SMT: one thread a core */
		out[EBX] = 1;
		out[ECX] |= 1 << 8;
	} else if (q->subleaf == 1) {	/* cores of the package */
		out[EAX] = width(q->vcpus);
		out[EBX] = q->vcpus;
		out[ECX] |= 2 << 8;
	}
}

static void leaf_xsave(const struct asked *q, uint32_t out[4])
{
	uint64_t mask = cpu_model_xcr0_mask(q->model), xcr0 = q->s ? q->s->xcr0 : 1, xss = q->s ? q->s->xss : 0;

	if (!q->model->has[FEATURE_XSAVE])
		return;
	if (q->subleaf == 0) {
		out[EAX] = (uint32_t)mask;
		out[EBX] = cpu_xsave_size(xcr0, false);
		out[ECX] = cpu_xsave_size(mask, false);
		out[EDX] = mask >> 32;
	} else if (q->subleaf == 1) {
		features_fill(q, out);
		if (q->model->has[FEATURE_XSAVEC])
			out[EBX] = cpu_xsave_size(xcr0 | xss, true);
	} else if (q->subleaf < COMPONENTS && mask >> q->subleaf & 1) {
		out[EAX] = components[q->subleaf].size;
		out[EBX] = components[q->subleaf].offset;
	}
}

static void leaf_basic(const struct asked *q, uint32_t out[4])
{
	const struct cpu_model *model = q->model;

	switch (q->leaf) {
	case 0:
		out[EAX] = model->amd ? LEAF_MAX_AMD : LEAF_MAX_INTEL;
		out[EBX] = model->vendor[0];
		out[EDX] = model->vendor[1];
		out[ECX] = model->vendor[2];
		break;
	case 1: leaf_features(q, out); break;
	case 2: out[EAX] = model->amd ? 0 : 0x00feff01; break;	/* see leaf 4; TLBs unknown */
	case 4: leaf_4(q, out); break;
	case 6: features_fill(q, out); break;
	case 7: leaf_7(q, out); break;
	case 0xb: leaf_topology(q, out); break;
	case 0xd: leaf_xsave(q, out); break;
	case 0x15:
		/* TSC = crystal * EBX / EAX. Linux multiplies kHz by EBX in 32 bits: whole MHz below 4.29 GHz, or
		 * nothing and the guest calibrates. */
		if (model->amd || !model->tsc_hz || model->tsc_hz % 1000000 || model->tsc_hz > 4290000000)
			break;
		out[EAX] = LAPIC_HZ / 1000000;
		out[EBX] = model->tsc_hz / 1000000;
		out[ECX] = LAPIC_HZ;
		break;
	case 0x16:
		if (!model->amd)
			out[EAX] = out[EBX] = model->tsc_hz / 1000000;
		break;
	case 0x1f:
		if (!model->amd)
			leaf_topology(q, out);
	}
}

static void leaf_hypervisor(const struct asked *q, uint32_t out[4])
{
	if (q->leaf == 0x40000000) {
		out[EAX] = 0x40000001;
		memcpy(&out[EBX], "KVMKVMKVM\0\0\0", 12);
	} else if (q->leaf == 0x40000001) {
		out[EAX] = KVM_NOP_IO_DELAY | (q->model->kvmclock ? KVM_CLOCK : 0);
	}
}

static void leaf_extended_features(const struct asked *q, uint32_t out[4])
{
	features_fill(q, out);
	if (!q->model->amd)
		return;
	out[EAX] = q->model->signature;
	for (unsigned f = 1; f < FEATURE_COUNT; f++)	/* AMD repeats these of leaf 1 */
		if (q->model->has[f] && cpu_features[f].leaf == 1 && cpu_features[f].reg == EDX)
			out[EDX] |= 1u << cpu_features[f].bit & 0x0183f3ff;
	if (q->vcpus > 1)
		out[ECX] |= 2;			/* CmpLegacy: the logical CPUs of leaf 1 are cores */
}

static void leaf_extended(const struct asked *q, uint32_t out[4])
{
	const struct cpu_model *model = q->model;

	switch (q->leaf) {
	case 0x80000000:
		out[EAX] = model->amd ? 0x80000021 : 0x80000008;
		if (model->amd) {
			out[EBX] = model->vendor[0];
			out[EDX] = model->vendor[1];
			out[ECX] = model->vendor[2];
		}
		break;
	case 0x80000001: leaf_extended_features(q, out); break;
	case 0x80000002: case 0x80000003: case 0x80000004:
		memcpy(out, model->brand + 16 * (q->leaf - 0x80000002), 16);
		break;
	case 0x80000005: case 0x80000006:
		memcpy(out, &model->amd_cache[4 * (q->leaf - 0x80000005)], 16);
		if (!model->amd) {
			memset(out, 0, 16);
			out[ECX] = q->leaf == 0x80000006 ? 1024u << 16 | 8 << 12 | 64 : 0;	/* L2 */
		}
		break;
	case 0x80000007: case 0x80000021: features_fill(q, out); break;
	case 0x80000008:
		features_fill(q, out);
		out[EAX] = MMU_PHYS_BITS | (model->has[FEATURE_LA57] ? 57 : 48) << 8;
		if (model->amd)
			out[ECX] = (q->vcpus - 1) | width(q->vcpus) << 12;
	}
}

void cpu_model_cpuid(const struct cpu_model *model, uint32_t leaf, uint32_t subleaf, const struct x86_state *s,
		     unsigned vcpu, unsigned vcpus, uint32_t out[4])
{
	struct asked q = { .model = model, .s = s, .leaf = leaf, .subleaf = subleaf, .vcpu = vcpu, .vcpus = vcpus };

	memset(out, 0, 16);
	if (leaf != 4 && leaf != 7 && leaf != 0xb && leaf != 0xd && leaf != 0x1f)
		q.subleaf = 0;
	if (leaf >= 0x80000000)
		leaf_extended(&q, out);
	else if (leaf >= 0x40000000)
		leaf_hypervisor(&q, out);
	else if (leaf <= (model->amd ? LEAF_MAX_AMD : LEAF_MAX_INTEL))
		leaf_basic(&q, out);
}

void cpu_model_each(const struct cpu_model *model, unsigned vcpu, unsigned vcpus,
		    void (*fn)(void *opaque, const struct cpuid_entry *e), void *opaque)
{
	static const struct { uint32_t leaf, subleaves; } leaves[] = {
		{ 0, 0 }, { 1, 0 }, { 2, 0 }, { 4, 5 }, { 6, 0 }, { 7, 2 }, { 0xb, 3 }, { 0xd, COMPONENTS }, { 0x15, 0 },
		{ 0x16, 0 }, { 0x1f, 3 }, { 0x40000000, 0 }, { 0x40000001, 0 }, { 0x80000000, 0 }, { 0x80000001, 0 },
		{ 0x80000002, 0 }, { 0x80000003, 0 }, { 0x80000004, 0 }, { 0x80000005, 0 }, { 0x80000006, 0 },
		{ 0x80000007, 0 }, { 0x80000008, 0 }, { 0x80000021, 0 },
	};

	for (unsigned i = 0; i < sizeof(leaves) / sizeof(leaves[0]); i++) {
		unsigned n = leaves[i].subleaves ? leaves[i].subleaves : 1;

		for (unsigned sub = 0; sub < n; sub++) {
			struct cpuid_entry e = { .leaf = leaves[i].leaf, .subleaf = sub,
						 .subleaf_matters = leaves[i].subleaves != 0 };

			cpu_model_cpuid(model, e.leaf, sub, NULL, vcpu, vcpus, e.reg);
			if (!model->amd || (e.leaf != 0x1f && e.leaf != 0x15))
				fn(opaque, &e);
		}
	}
}
