/*
 * Which instructions exist and which are allowed: CPUID, CR0.EM/TS/MP, CR4.OSFXSR/OSXSAVE, XCR0.
 * SDM vol. 2 chapter 2 (exception types), vol. 3 tables 2-2 and 13-1.
 */
#include "guest.h"

#define CR0_MP 2ull
#define CR0_EM 4ull
#define CR0_TS 8ull
#define CR4_OSFXSR 0x200ull
#define CR4_OSXSAVE 0x40000ull

enum { UD = 6, NM = 7, GP = 13 };
enum kind { GPR, X87, WAIT, MMX, SSE, AVX, AVX512 };

static uint64_t buf[8] __attribute__((aligned(64)));

#define INSN(name, text) static void name(void *p) { __asm__ volatile(text : : "r"(p) : \
	"rax", "rbx", "rcx", "rdx", "memory", "cc"); }
INSN(popcnt, "popcnt %%ecx, %%eax")
INSN(crc32, "crc32l %%ecx, %%eax")
INSN(movbe, "movbe (%0), %%eax")
INSN(cmpxchg16b, "lock cmpxchg16b (%0)")
INSN(adcx, "adcx %%ecx, %%eax")
INSN(andn, "andn %%ecx, %%edx, %%eax")
INSN(blsr, "blsr (%0), %%eax")
INSN(bzhi, "bzhi %%ecx, %%edx, %%eax")
INSN(rorx, "rorx $3, %%ecx, %%eax")
INSN(movnti, "movnti %%eax, (%0)")
INSN(rdrand, "rdrand %%eax")
INSN(mfence, "mfence")
INSN(x87, "fld1; fstp %%st(0)")
INSN(fild, "fildl (%0); fstp %%st(0)")
INSN(fwait_, "fwait")
INSN(mmx, "pxor %%mm0, %%mm0; emms")
INSN(pabsb, "pabsb %%mm1, %%mm0; emms")
INSN(xorps, "xorps %%xmm0, %%xmm0")
INSN(movaps, "movaps (%0), %%xmm0")
INSN(ldmxcsr, "ldmxcsr 8(%0)")
INSN(haddps, "haddps %%xmm1, %%xmm0")
INSN(pshufb, "pshufb (%0), %%xmm0")
INSN(pmulld, "pmulld %%xmm1, %%xmm0")
INSN(pcmpgtq, "pcmpgtq %%xmm1, %%xmm0")
INSN(aesenc, "aesenc %%xmm1, %%xmm0")
INSN(pclmul, "pclmulqdq $0, %%xmm1, %%xmm0")
INSN(sha, "sha256msg1 %%xmm1, %%xmm0")
INSN(vxorps, "vxorps %%xmm0, %%xmm0, %%xmm0")
INSN(vmovups, "vmovups (%0), %%ymm0")
INSN(vzeroupper, "vzeroupper")
INSN(vaesenc, "vaesenc %%xmm1, %%xmm0, %%xmm0")
INSN(vpaddd, "vpaddd %%ymm1, %%ymm0, %%ymm0")
INSN(vfmadd, "vfmadd231ps %%ymm1, %%ymm0, %%ymm0")
INSN(vcvtph2ps, "vcvtph2ps %%xmm1, %%ymm0")
INSN(vaes256, "vaesenc %%ymm1, %%ymm0, %%ymm0")
INSN(gfni, "gf2p8mulb %%xmm1, %%xmm0")
INSN(kmovw, "kmovw %%eax, %%k1")
INSN(vpord, "vpord (%0), %%zmm0, %%zmm20")
INSN(vpaddb, "vpaddb %%ymm1, %%ymm17, %%ymm0")
INSN(vaes512, "vaesenc %%zmm1, %%zmm0, %%zmm0")

/* The CPUID bit that says an instruction exists; leaf 0: always there. */
static const struct probe {
	const char *name;
	void (*fn)(void *);
	enum kind kind;
	uint32_t leaf;
	unsigned reg, bit;
} probes[] = {
	{ "popcnt", popcnt, GPR, 1, 2, 23 }, { "crc32", crc32, GPR, 1, 2, 20 }, { "movbe", movbe, GPR, 1, 2, 22 },
	{ "cmpxchg16b", cmpxchg16b, GPR, 1, 2, 13 }, { "adcx", adcx, GPR, 7, 1, 19 }, { "andn", andn, GPR, 7, 1, 3 },
	{ "blsr", blsr, GPR, 7, 1, 3 }, { "bzhi", bzhi, GPR, 7, 1, 8 }, { "rorx", rorx, GPR, 7, 1, 8 },
	{ "movnti", movnti, GPR, 0, 0, 0 }, { "rdrand", rdrand, GPR, 1, 2, 30 }, { "mfence", mfence, GPR, 0, 0, 0 },
	{ "x87", x87, X87, 0, 0, 0 }, { "fild", fild, X87, 0, 0, 0 }, { "fwait", fwait_, WAIT, 0, 0, 0 },
	{ "mmx", mmx, MMX, 0, 0, 0 }, { "pabsb", pabsb, MMX, 1, 2, 9 }, { "xorps", xorps, SSE, 0, 0, 0 },
	{ "movaps", movaps, SSE, 0, 0, 0 }, { "ldmxcsr", ldmxcsr, SSE, 0, 0, 0 }, { "haddps", haddps, SSE, 1, 2, 0 },
	{ "pshufb", pshufb, SSE, 1, 2, 9 }, { "pmulld", pmulld, SSE, 1, 2, 19 }, { "pcmpgtq", pcmpgtq, SSE, 1, 2, 20 },
	{ "aesenc", aesenc, SSE, 1, 2, 25 }, { "pclmulqdq", pclmul, SSE, 1, 2, 1 }, { "sha256msg1", sha, SSE, 7, 1, 29 },
	{ "vxorps", vxorps, AVX, 1, 2, 28 }, { "vmovups", vmovups, AVX, 1, 2, 28 },
	{ "vzeroupper", vzeroupper, AVX, 1, 2, 28 }, { "vaesenc", vaesenc, AVX, 1, 2, 25 },
	{ "vpaddd ymm", vpaddd, AVX, 7, 1, 5 }, { "vfmadd231ps", vfmadd, AVX, 1, 2, 12 },
	{ "vcvtph2ps", vcvtph2ps, AVX, 1, 2, 29 }, { "vaesenc ymm", vaes256, AVX, 7, 2, 9 },
	{ "gf2p8mulb", gfni, SSE, 7, 2, 8 }, { "kmovw", kmovw, AVX512, 7, 1, 16 },
	{ "vpord zmm", vpord, AVX512, 7, 1, 16 }, { "vpaddb ymm17", vpaddb, AVX512, 7, 1, 30 },
	{ "vaesenc zmm", vaes512, AVX512, 7, 2, 9 },
};

static bool exists(const struct probe *p)
{
	if (p->kind == AVX && !cpu_has(1, 2, 28))
		return false;
	if (p->kind == AVX512 && !cpu_has(7, 1, 16))
		return false;
	return !p->leaf || cpu_has(p->leaf, p->reg, p->bit);
}

static void xsetbv(uint64_t value)
{
	__asm__ volatile("xsetbv" : : "c"(0), "a"((uint32_t)value), "d"(0));
}

static void xsetbv_probe(void *p) { xsetbv((uint64_t)p); }

/* Runs every probe; want[kind]: what becomes of those that exist. */
static void round_of(const char *what, uint64_t cr0, uint64_t cr4, const int want[7])
{
	uint64_t old0 = READ_CR(0), old4 = READ_CR(4);

	for (unsigned i = 0; i < sizeof probes / sizeof *probes; i++) {
		const struct probe *p = &probes[i];
		int64_t expected = exists(p) ? want[p->kind] : UD, kernel, user;

		buf[1] = 0x1f80;
		WRITE_CR(4, cr4);
		WRITE_CR(0, cr0);
		kernel = try(p->fn, buf);
		user = try_user(p->fn, buf);
		WRITE_CR(0, old0);
		WRITE_CR(4, old4);
		if (kernel != expected || user != expected)
			print("%s, %s: kernel %ld, user %ld, expected %ld\n", p->name, what, kernel, user, expected);
		check(kernel == expected && user == expected, p->name, what);
	}
}

/* F3 before BSF and BSR is ignored by CPUs without TZCNT and LZCNT. */
static void old_scans(void)
{
	uint32_t a = 77, b = 0;

	__asm__ volatile("tzcntl %1, %0" : "+r"(a) : "r"(0) : "cc");
	check(a == (cpu_has(7, 1, 3) ? 32u : 77u), "tzcnt of zero", "%u", a);
	__asm__ volatile("lzcntl %1, %0" : "+r"(b) : "r"(0x100) : "cc");
	check(b == (cpu_has(0x80000001, 2, 5) ? 23u : 8u), "lzcnt of 256", "%u", b);
}

/* What a base may be goes by the width of the CPU's addresses, not by CR4.LA57, which is clear here. */
static void lidt_wide(void *p)
{
	struct __attribute__((packed)) { uint16_t limit; uint64_t base; } wide = { 4095, *(uint64_t *)p }, old;

	__asm__ volatile("sidt %0; lidt %1; lidt %0" : "=m"(old) : "m"(wide));
}

static void wrmsr_wide(void *p)
{
	uint64_t base = *(uint64_t *)p;

	__asm__ volatile("wrmsr" : : "c"(0xc0000102), "a"((uint32_t)base), "d"((uint32_t)(base >> 32)));	/* KERNEL_GS_BASE */
}

static void wide_bases(void)
{
	uint32_t a = 0x80000008, b, c = 0, d;

	__asm__ volatile("cpuid" : "+a"(a), "=b"(b), "+c"(c), "=d"(d));
	for (unsigned bit = 46; bit < 64; bit++) {
		uint64_t base = 1ull << bit, zero = 0;
		int64_t expected = bit < (a >> 8 & 0xff) - 1 ? -1 : GP;
		int64_t table = try(lidt_wide, &base), msr = try(wrmsr_wide, &base);
		check(table == expected && msr == expected, "width of bases", "bit %u: lidt %ld, wrmsr %ld, expected %ld", bit, table,
		      msr, expected);
		try(wrmsr_wide, &zero);
	}
}

int main(void)
{
	trap_init();
	uint64_t cr0 = (READ_CR(0) | CR0_MP) & ~(CR0_EM | CR0_TS), cr4 = READ_CR(4) | CR4_OSFXSR;
	bool xsave = cpu_has(1, 2, 26);

	__asm__ volatile("fninit");	/* at reset the x87 stack is full and nothing masked */
	if (xsave) {
		cr4 |= CR4_OSXSAVE;
		WRITE_CR(4, cr4);
		xsetbv(cpu_has(7, 1, 16) ? 0xe7 : cpu_has(1, 2, 28) ? 7 : 3);
	}
	round_of("as it should be", cr0, cr4, (int[]){ -1, -1, -1, -1, -1, -1, -1 });
	round_of("CR0.TS", cr0 | CR0_TS, cr4, (int[]){ -1, NM, NM, NM, NM, NM, NM });
	round_of("CR0.TS without MP", (cr0 | CR0_TS) & ~CR0_MP, cr4, (int[]){ -1, NM, -1, NM, NM, NM, NM });
	round_of("CR0.EM", cr0 | CR0_EM, cr4, (int[]){ -1, NM, -1, UD, UD, -1, -1 });
	round_of("CR4.OSFXSR clear", cr0, cr4 & ~CR4_OSFXSR, (int[]){ -1, -1, -1, -1, UD, -1, -1 });
	round_of("CR4.OSXSAVE clear", cr0, cr4 & ~CR4_OSXSAVE, (int[]){ -1, -1, -1, -1, -1, UD, UD });
	if (xsave && cpu_has(7, 1, 16)) {
		static const uint8_t bad[] = { 0x27, 0x67, 0xc7, 0xe3, 0xe1 };

		for (unsigned i = 0; i < sizeof bad; i++)
			check(try(xsetbv_probe, (void *)(uint64_t)bad[i]) == GP, "XCR0", "%x", bad[i]);
		xsetbv(7);
		round_of("XCR0 without AVX-512", cr0, cr4, (int[]){ -1, -1, -1, -1, -1, -1, UD });
	}
	if (xsave) {
		xsetbv(3);
		round_of("XCR0 without AVX", cr0, cr4, (int[]){ -1, -1, -1, -1, -1, UD, UD });
		xsetbv(1);
		round_of("XCR0 with x87 alone", cr0, cr4, (int[]){ -1, -1, -1, -1, -1, UD, UD });
	}
	old_scans();
	wide_bases();
	return 0;
}
