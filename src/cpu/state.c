/* Power-on and INIT, SDM vol. 3 table 9-1. */
#include "cpu/state.h"

#include <string.h>

#define ATTR_CODE 0x9b		/* present, code, read, accessed */
#define ATTR_DATA 0x93
#define ATTR_LDT 0x82
#define ATTR_TSS 0x8b		/* busy 32-bit TSS */

/* What reset and INIT both set. */
static void state_start(struct x86_state *s, bool bsp)
{
	memset(s->gpr, 0, sizeof(s->gpr));
	s->gpr[REG_RDX] = 0x600;	/* family 6; firmware does not look further */
	s->rip = 0xfff0;
	s->rflags = FLAG_FIXED;
	for (unsigned i = 0; i < SEG_COUNT; i++)
		s->seg[i] = (struct x86_segment){ .limit = 0xffff, .attr = ATTR_DATA };
	s->seg[SEG_CS] = (struct x86_segment){ .base = 0xffff0000, .limit = 0xffff, .selector = 0xf000,
					       .attr = ATTR_CODE };
	s->ldtr = (struct x86_segment){ .limit = 0xffff, .attr = ATTR_LDT };
	s->tr = (struct x86_segment){ .limit = 0xffff, .attr = ATTR_TSS };
	s->gdtr = s->idtr = (struct x86_table){ .limit = 0xffff };
	s->cr2 = s->cr3 = s->cr4 = 0;
	s->efer = 0;
	memset(s->dr, 0, sizeof(s->dr));
	s->dr[6] = 0xffff0ff0;
	s->dr[7] = 0x400;
	memset(s->pdpte, 0, sizeof(s->pdpte));
	s->debugctl = 0;
	s->kvm_system_time = 0;		/* what starts now may have other uses for that memory */
	s->activity = bsp ? ACTIVITY_RUNNING : ACTIVITY_WAIT_SIPI;
	s->shadow = 0;
	s->nmi_blocked = s->nmi_pending = 0;
	s->event_valid = 0;
}

void state_reset(struct x86_state *s, bool bsp)
{
	memset(s, 0, sizeof(*s));
	state_start(s, bsp);
	s->cr0 = CR0_CD | CR0_NW | CR0_ET;
	s->xcr0 = 1;
	s->apic_base = 0xfee00000 | 0x800 | (bsp ? 0x100 : 0);	/* enabled, BSP */
	s->pat = 0x0007040600070406;
	s->misc_enable = 0x1801;	/* fast strings; no branch trace, no PEBS */
	s->smbase = 0x30000;
	s->fpu.fcw = 0x40;
	s->fpu.ftw_abridged = 0xff;
	s->fpu.mxcsr = 0x1f80;
	s->fpu.mxcsr_mask = 0xffff;
	s->fpu.xstate_bv = 3;
}

/* INIT keeps x87/SSE, XCR0, MSRs (EFER apart), MTRRs, TSC, SMBASE, and CR0's CD and NW. */
void state_init(struct x86_state *s, bool bsp)
{
	s->cr0 = (s->cr0 & (CR0_CD | CR0_NW)) | CR0_ET;
	state_start(s, bsp);
}
