/*
 * What the manuals leave to the CPU when an instruction faults, and Intel's and AMD's do differently: there, and only
 * there, the soft engine's outcome is set to the host's before they are compared. docs/cpu-differential.md lists it.
 */
#include <string.h>

#include "diff.h"

static struct x86_xsave *fpu_of(struct diff_state *s) { return (struct x86_xsave *)s->fpu; }

/* The instruction of the case at rip. false: rip is in another case, or nowhere. */
static bool insn_at(const struct diff_case *c, const struct diff_state *in, uint64_t rip, struct insn *insn)
{
	uint64_t at = rip - in->rip;
	return at < c->len &&
	       insn_decode(insn, c->code + SLOT_START + at, (unsigned)(c->len - at), c->wide ? INSN_64 : INSN_32) == DECODE_OK;
}

static uint64_t seg_base(const struct insn *in)
{
	return in->mem.seg == SEG_FS ? FS_BASE : in->mem.seg == SEG_GS ? GS_BASE : 0;
}

static uint64_t address_of(const struct insn *in, const struct diff_state *s)
{
	uint64_t va = (uint64_t)in->mem.disp + (in->mem.rip ? s->rip + in->len : 0);
	if (in->mem.base != INSN_REG_NONE)
		va += s->gpr[in->mem.base];
	if (in->mem.index != INSN_REG_NONE)
		va += s->gpr[in->mem.index] << in->mem.scale;
	if (in->addrsize < 8)
		va = in->addrsize == 4 ? (uint32_t)va : (uint16_t)va;
	return va + seg_base(in);
}

static bool stores_x87(const struct insn *in)
{
	return in->row->cls == CLASS_X87 && in->ops[0].kind == OPK_MEM && in->ops[0].write;
}

static bool masked_move(const struct insn *in)
{
	return in->op == X86_VMASKMOVPS || in->op == X86_VMASKMOVPD || in->op == X86_VPMASKMOVD ||
	       in->op == X86_VPMASKMOVQ;
}

/* An x87 store that an unmasked exception cancels: Intel's do not look at the address any more. VCVTPS2PH: either the
 * exception or the page fault is seen first. What the host does next cannot be compared. */
static bool cancelled_store(const struct diff_case *c, const struct diff_state *in, struct diff_state *native,
			    const struct diff_state *soft)
{
	struct insn insn;
	if ((soft->vector != EXC_PF && soft->vector != EXC_GP && soft->vector != EXC_SS) || !insn_at(c, in, soft->rip, &insn))
		return false;
	if (insn.op == X86_VCVTPS2PH && native->vector == EXC_XM && native->rip == soft->rip)
		return true;
	return stores_x87(&insn) && native->rip != soft->rip && (fpu_of(native)->fsw & 0x80);
}

/* An operand of 32-bit code that runs over the end of 4 GiB may break the limit of a flat segment or not (SDM vol. 3, 5.3). limit:
 * where it may have. */
static bool limit_broken(const struct diff_case *c, const struct diff_state *in, const struct diff_state *limit,
			 const struct diff_state *other)
{
	struct insn insn;
	if (limit->vector != EXC_GP && limit->vector != EXC_SS)
		return false;
	if (!insn_at(c, in, limit->rip, &insn))		/* where a wild RET led */
		return other->vector == EXC_PF && other->rip == limit->rip && (uint32_t)(other->cr2 + 512) < 1024;
	uint64_t offset = insn.op == X86_ENTER ? limit->gpr[REG_RBP] : address_of(&insn, limit) - seg_base(&insn);
	return (uint32_t)(offset + 512) < 1024;		/* FXRSTOR takes 512 bytes */
}

static bool wraps(const struct diff_case *c, const struct diff_state *in, const struct diff_state *native,
		  const struct diff_state *soft)
{
	return !c->wide && (limit_broken(c, in, native, soft) || limit_broken(c, in, soft, native));
}

/* BOUND that is out of one bound, where the other's page is missing: not all CPUs look at both first. */
static bool half_bound(const struct diff_case *c, const struct diff_state *in, const struct diff_state *native,
		       const struct diff_state *soft)
{
	struct insn insn;
	return native->vector == EXC_BR && soft->vector == EXC_PF && native->rip == soft->rip &&
	       insn_at(c, in, soft->rip, &insn) && insn.op == X86_BOUND;
}

/* --- the same fault at the same instruction --- */

/* Where the host stored the return address before it found the target of a CALL bad (Intel's: below RSP). */
static void call_stored(const struct insn *in, const struct diff_state *native, struct choice *ch)
{
	if (in->op != X86_CALL || native->vector != EXC_GP || native->below_rsp != native->rip + in->len)
		return;
	*ch = (struct choice){ .va = native->gpr[REG_RSP] - 8, .bytes = 8, .known = true, .value = native->below_rsp };
}

/* PUSHA and POPA that fault in the middle: what was pushed or popped before may stay. */
static void all_registers(const struct insn *in, const struct diff_state *native, struct diff_state *soft,
			  struct choice *ch)
{
	if (in->op == X86_PUSHA)
		*ch = (struct choice){ .va = native->gpr[REG_RSP] - 8 * in->opsize, .bytes = 8 * in->opsize };
	for (unsigned i = 0; in->op == X86_POPA && i < 8; i++)
		soft->gpr[i] = native->gpr[i];
}

/* FRSTOR and FLDENV that fault in the middle: what was loaded before may stay. */
static void image_loaded(const struct insn *in, const struct diff_state *native, struct diff_state *soft)
{
	struct x86_xsave *f = fpu_of(soft);
	const struct x86_xsave *host = (const struct x86_xsave *)native->fpu;
	if (in->op != X86_FRSTOR && in->op != X86_FLDENV)
		return;
	f->fcw = host->fcw;
	f->fsw = host->fsw;
	f->ftw_abridged = host->ftw_abridged;
	memcpy(f->st, host->st, sizeof f->st);
}

/* Stores wider than 8 bytes by the x87 unit may have been done in part (SDM vol. 3, 8.1.1). */
static void x87_stored(const struct insn *in, const struct diff_state *native, struct choice *ch)
{
	if (stores_x87(in) && in->ops[0].size == 10)
		*ch = (struct choice){ .va = address_of(in, native), .bytes = 10 };
}

/* An MMX store that faults may have begun to make the x87 state MMX's: TOP 0, and maybe all registers valid. */
static void mmx_entered(const struct insn *in, const struct diff_state *native, struct diff_state *soft)
{
	const struct x86_xsave *host = (const struct x86_xsave *)native->fpu;
	struct x86_xsave *f = fpu_of(soft), old = *f;
	unsigned top = old.fsw >> 11 & 7;
	if (in->row->cls != CLASS_MMX || in->ops[0].kind != OPK_MEM || (host->fsw & 0x3800))
		return;
	for (unsigned i = 0; i < 8; i++)
		f->st[i] = old.st[(i - top) & 7];
	f->fsw &= (uint16_t)~0x3800;
	if (host->ftw_abridged == 0xff)
		f->ftw_abridged = 0xff;
}

/* REP CMPS and SCAS: the flags as before the instruction (Intel's), or as the last comparison left them. */
static uint64_t compare_flags(const struct insn *in, const struct diff_case *c, const struct diff_state *before,
			      const struct diff_state *native)
{
	if ((in->op != X86_CMPS && in->op != X86_SCAS) || !(in->rep || in->repne))
		return 0;
	return c->insns > 1 || !((native->rflags ^ before->rflags) & FLAGS_ARITH) ? FLAGS_ARITH : 0;
}

/* String instructions with 32-bit addresses: upper halves cleared by the fault (Intel's), or kept. */
static void string_registers(const struct insn *in, const struct diff_state *native, struct diff_state *soft)
{
	static const uint8_t regs[] = { REG_RCX, REG_RSI, REG_RDI };
	for (unsigned i = 0; in->row->trans == TRANS_STRING && in->addrsize == 4 && i < 3; i++)
		if (native->gpr[regs[i]] == (uint32_t)soft->gpr[regs[i]])
			soft->gpr[regs[i]] = native->gpr[regs[i]];
}

static void mask_widen(struct x86_xsave *f, unsigned reg, bool wide, bool ymm)
{
	memset(f->zmmh[reg].b, 0, sizeof f->zmmh[reg].b);
	for (unsigned half = 0; half < 2; half++) {
		uint32_t *d = half ? f->ymmh[reg].d : f->xmm[reg].d;
		for (unsigned i = 0; i < 4; i++)
			d[i] = half && !ymm ? 0 : 0 - (d[wide ? i | 1 : i] >> 31);
	}
}

/* AVX-512's: what is above the destination may be cleared already. */
static void gather_above(const struct insn *in, struct diff_state *native, struct diff_state *soft)
{
	unsigned reg = in->ops[0].reg, index = in->opcode & 1 ? 8 : 4, size = in->rex & 8 ? 8 : 4;
	unsigned used = (16u << in->vex_l) / (index > size ? index : size) * size;
	struct x86_xsave *f[2] = { fpu_of(native), fpu_of(soft) };
	if (in->ops[0].kind == OPK_MEM)
		return;
	for (unsigned i = used; i < 64; i++) {
		uint8_t *at[2];
		for (unsigned k = 0; k < 2; k++)
			at[k] = reg >= 16 ? &f[k]->zmm16[reg - 16].b[i] : i < 16 ? &f[k]->xmm[reg].b[i] :
				i < 32 ? &f[k]->ymmh[reg].b[i - 16] : &f[k]->zmmh[reg].b[i - 32];
		if (!*at[0])
			*at[1] = 0;
	}
}

/* Gathers: the elements of the mask that are left to do widened to all their bits and what is above them cleared, as
 * the SDM describes it, or as they were. With that, what is above the destination cleared or not yet. */
static void gather_registers(const struct insn *in, struct diff_state *native, struct diff_state *soft)
{
	if (!(in->row->attr & ROW_VSIB))
		return;
	if (in->evex) {
		gather_above(in, native, soft);
		return;
	}
	bool wide = in->rex & 8;		/* W: elements of 8 bytes */
	bool ymm = in->vex_l && !((in->opcode & 1) && !wide);	/* four indices of 8 bytes gather 16 bytes */
	mask_widen(fpu_of(native), in->vvvv, wide, ymm);
	mask_widen(fpu_of(soft), in->vvvv, wide, ymm);
	const uint64_t *above = fpu_of(native)->ymmh[in->ops[0].reg].q;
	if (!ymm && !above[0] && !above[1])
		memset(fpu_of(soft)->ymmh[in->ops[0].reg].b, 0, 16);
	if (!memcmp(fpu_of(native)->zmmh[in->ops[0].reg].b, (uint8_t[32]){ 0 }, 32))
		memset(fpu_of(soft)->zmmh[in->ops[0].reg].b, 0, 32);
}

/* Which byte of a page that is missing CR2 names, and which page, if many are. */
static void fault_address(const struct insn *in, const struct diff_case *c, const struct diff_state *native,
			  struct diff_state *soft)
{
	uint64_t a = native->cr2 & ~0xfffull, b = soft->cr2 & ~0xfffull;
	bool masked = in && (masked_move(in) || in->evex_mask);
	if (native->vector == EXC_PF && ((c->many_fields && a - b + 0x1000 <= 0x2000) || (masked && a == b)))
		soft->cr2 = native->cr2;
}

/* Flags of an unmasked SSE exception that depend on how far the instruction went. Overflow is unmasked
 * only by what a case loads from memory, underflow seldom. VCVTPS2PH: set or not before its store faults. */
static void sse_flags(const struct insn *in, const struct diff_case *c, struct diff_state *native,
		      struct diff_state *soft)
{
	uint32_t *a = &fpu_of(native)->mxcsr, *b = &fpu_of(soft)->mxcsr;
	if (native->vector == EXC_XM && (c->dot_product || (*a & 0xc00) != 0xc00)) {
		*a &= ~0x3fu;
		*b &= ~0x3fu;
	}
	if (in && in->op == X86_VCVTPS2PH && native->vector != EXC_XM)
		*b |= *a & 0x3f;
}

bool choice_apply(const struct diff_case *c, const struct diff_state *in, struct diff_state *native,
		  struct diff_state *soft, struct choice *ch)
{
	struct insn insn;
	*ch = (struct choice){ 0 };
	if (cancelled_store(c, in, native, soft) || wraps(c, in, native, soft) || half_bound(c, in, native, soft))
		return false;
	if (native->vector == VECTOR_EXIT || native->vector != soft->vector)
		return true;
	bool known = native->rip == soft->rip && insn_at(c, in, native->rip, &insn);
	fault_address(known ? &insn : NULL, c, native, soft);
	sse_flags(known ? &insn : NULL, c, native, soft);
	if (!known)
		return true;
	call_stored(&insn, native, ch);
	x87_stored(&insn, native, ch);
	all_registers(&insn, native, soft, ch);
	image_loaded(&insn, native, soft);
	mmx_entered(&insn, native, soft);
	string_registers(&insn, native, soft);
	gather_registers(&insn, native, soft);
	ch->flags = compare_flags(&insn, c, in, native);
	return true;
}
