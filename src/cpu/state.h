/*
 * The architectural state of one vCPU: the one format that interpreter,
 * translator, KVM get/set, snapshot and migration share.
 *
 * Layout matters: translated code reads and writes these fields by offset, so
 * the hot ones come first.  Owner: the vCPU thread while it runs; others only
 * while the vCPU is paused.
 */
#ifndef VIXEN_CPU_STATE_H
#define VIXEN_CPU_STATE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum { REG_RAX, REG_RCX, REG_RDX, REG_RBX, REG_RSP, REG_RBP, REG_RSI, REG_RDI,
       REG_R8, REG_R9, REG_R10, REG_R11, REG_R12, REG_R13, REG_R14, REG_R15, REG_COUNT };
enum { SEG_ES, SEG_CS, SEG_SS, SEG_DS, SEG_FS, SEG_GS, SEG_COUNT, SEG_NONE = 0xff };

/* RFLAGS, SDM vol. 1 3.4.3 */
#define FLAG_CF 0x1u
#define FLAG_FIXED 0x2u
#define FLAG_PF 0x4u
#define FLAG_AF 0x10u
#define FLAG_ZF 0x40u
#define FLAG_SF 0x80u
#define FLAG_TF 0x100u
#define FLAG_IF 0x200u
#define FLAG_DF 0x400u
#define FLAG_OF 0x800u
#define FLAG_IOPL 0x3000u
#define FLAG_NT 0x4000u
#define FLAG_RF 0x10000u
#define FLAG_VM 0x20000u
#define FLAG_AC 0x40000u
#define FLAG_VIF 0x80000u
#define FLAG_VIP 0x100000u
#define FLAG_ID 0x200000u
#define FLAGS_ARITH (FLAG_CF | FLAG_PF | FLAG_AF | FLAG_ZF | FLAG_SF | FLAG_OF)

#define CR0_PE 0x1u
#define CR0_MP 0x2u
#define CR0_EM 0x4u
#define CR0_TS 0x8u
#define CR0_ET 0x10u
#define CR0_NE 0x20u
#define CR0_WP 0x10000u
#define CR0_AM 0x40000u
#define CR0_NW 0x20000000u
#define CR0_CD 0x40000000u
#define CR0_PG 0x80000000u
#define CR4_VME 0x1u
#define CR4_PVI 0x2u
#define CR4_TSD 0x4u
#define CR4_DE 0x8u
#define CR4_PSE 0x10u
#define CR4_PAE 0x20u
#define CR4_MCE 0x40u
#define CR4_PGE 0x80u
#define CR4_PCE 0x100u
#define CR4_OSFXSR 0x200u
#define CR4_OSXMMEXCPT 0x400u
#define CR4_UMIP 0x800u
#define CR4_LA57 0x1000u
#define CR4_FSGSBASE 0x10000u
#define CR4_PCIDE 0x20000u
#define CR4_OSXSAVE 0x40000u
#define CR4_SMEP 0x100000u
#define CR4_SMAP 0x200000u
#define CR4_PKE 0x400000u
#define EFER_SCE 0x1u
#define EFER_LME 0x100u
#define EFER_LMA 0x400u
#define EFER_NXE 0x800u

/* attr: bits 8..15 and 20..23 of the descriptor's second dword, in place after >> 8:
 *   15 G | 14 D/B | 13 L | 12 AVL | 11..8 zero | 7 P | 6..5 DPL | 4 S | 3..0 type */
#define SEG_ATTR_G 0x8000u
#define SEG_ATTR_DB 0x4000u
#define SEG_ATTR_L 0x2000u
#define SEG_ATTR_P 0x80u
#define SEG_ATTR_DPL 0x60u
#define SEG_ATTR_S 0x10u
struct x86_segment {
	uint64_t base;
	uint32_t limit;		/* in bytes, granularity applied */
	uint16_t selector;
	uint16_t attr;		/* P clear: unusable (null) */
};

struct x86_table { uint64_t base; uint16_t limit; };

/* Standard-format XSAVE image, SDM vol. 1 13.4: legacy (x87, MXCSR, XMM), header, then components at
 * their standard offsets: 576 AVX (YMM_Hi128), 1088 opmask, 1152 ZMM_Hi256, 1664 Hi16_ZMM, 2688 PKRU.
 * The x87 and SSE part is FXSAVE64. Guest registers not in a component follow XSTATE_BV in the header. */
#define XSAVE_AREA_SIZE 2752
struct x86_xsave {
	union {
		uint8_t raw[XSAVE_AREA_SIZE];
		struct {
			uint16_t fcw, fsw;
			uint8_t ftw_abridged, rsvd0;
			uint16_t fop;
			uint64_t fip, fdp;
			uint32_t mxcsr, mxcsr_mask;
			struct { uint8_t b[16]; } st[8];	/* 80-bit in the low 10 bytes; st[i] is ST(i) */
			union { uint8_t b[16]; uint16_t w[8]; uint32_t d[4]; uint64_t q[2]; float f[4]; double lf[2]; } xmm[16];
			uint8_t rsvd1[96];
			uint64_t xstate_bv, xcomp_bv, hdr_rsvd[6];
			union { uint8_t b[16]; uint32_t d[4]; uint64_t q[2]; float f[4]; double lf[2]; } ymmh[16];
			uint8_t rsvd2[256];
			uint64_t opmask[8];
			struct { uint8_t b[32]; } zmmh[16];
			struct { uint8_t b[64]; } zmm16[16];	/* ZMM16-31 */
		};
	};
} __attribute__((aligned(64)));

_Static_assert(offsetof(struct x86_xsave, opmask) == 1088 && offsetof(struct x86_xsave, zmm16) == 1664, "SDM's offsets");

/* What the vCPU is doing besides running. */
enum x86_activity { ACTIVITY_RUNNING, ACTIVITY_HALTED, ACTIVITY_WAIT_SIPI, ACTIVITY_SHUTDOWN };

/* Interrupt shadow: how long the next interrupt boundary is put off. */
#define SHADOW_STI 1u
#define SHADOW_MOV_SS 2u

struct x86_state {
	uint64_t gpr[REG_COUNT];
	uint64_t rip;
	uint64_t rflags;
	struct x86_segment seg[SEG_COUNT];
	struct x86_segment ldtr, tr;
	struct x86_table gdtr, idtr;

	uint64_t cr0, cr2, cr3, cr4, xcr0;
	uint64_t efer;
	uint64_t star, lstar, cstar, sfmask, kernel_gs_base;
	uint64_t sysenter_cs, sysenter_esp, sysenter_eip;
	uint64_t tsc_aux, tsc_offset, tsc_adjust;	/* guest TSC = host TSC scaled + tsc_offset */
	uint64_t dr[8];					/* 4, 5 unused */
	uint64_t pdpte[4];				/* PAE: loaded with CR3 */
	uint64_t pat, misc_enable, apic_base, spec_ctrl, xss, debugctl, smbase;
	uint64_t mtrr_def_type, mtrr_fix[11], mtrr_base[8], mtrr_mask[8];
	uint64_t kvm_system_time, kvm_wall_clock, kvm_async_pf, kvm_steal, kvm_poll;	/* KVM's MSRs; the first two are in use */
	uint32_t pkru;

	uint8_t activity;		/* enum x86_activity */
	uint8_t shadow;			/* SHADOW_* */
	uint8_t nmi_blocked;
	uint8_t nmi_pending;		/* how many wait: 1 while one is handled, else up to 2 */
	uint8_t sipi_vector;
	/* An event whose delivery began but did not finish (KVM hand-over): vector, type as VMX, error code. */
	uint8_t event_valid, event_type, event_vector, event_has_error;
	uint32_t event_error;

	struct x86_xsave fpu;
};

/* Vectors, SDM vol. 3 table 6-1 */
enum { EXC_DE, EXC_DB, EXC_NMI, EXC_BP, EXC_OF, EXC_BR, EXC_UD, EXC_NM, EXC_DF, EXC_TS = 10, EXC_NP,
       EXC_SS, EXC_GP, EXC_PF, EXC_MF = 16, EXC_AC, EXC_MC, EXC_XM, EXC_VE, EXC_CP };

static inline unsigned state_cpl(const struct x86_state *s)
{
	if (!(s->cr0 & CR0_PE)) return 0;
	if (s->rflags & FLAG_VM) return 3;
	return (s->seg[SEG_SS].attr & SEG_ATTR_DPL) >> 5;
}
static inline bool state_long(const struct x86_state *s) { return s->efer & EFER_LMA; }
static inline bool state_code64(const struct x86_state *s)
{
	return state_long(s) && (s->seg[SEG_CS].attr & SEG_ATTR_L);
}

/* Power-on and INIT (SDM vol. 3 table 9-1). init keeps what INIT keeps (FPU, MSRs, TSC). */
void state_reset(struct x86_state *s, bool bsp);
void state_init(struct x86_state *s, bool bsp);

#endif
