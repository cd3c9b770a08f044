/*
 * Descriptors and segment registers, SDM vol. 3 chapters 3 and 5.
 *
 *   31        24 23 22 21 20 19    16 15 14 13 12 11   8 7          0
 *   | base 31:24 | G |D |L |A | lim  | P | DPL | S | type | base 23:16 |  hi
 *   |        base 15:0               |        limit 15:0              |  lo
 */
#include "engine/soft/operand.h"

void seg_from_desc(struct x86_segment *sg, uint16_t sel, const struct descriptor *d)
{
	sg->selector = sel;
	sg->base = desc_base(d);
	sg->limit = desc_limit(d);
	sg->attr = (uint16_t)(d->hi >> 8 & 0xf0ff);
}

static bool table_for(struct vcpu *v, uint16_t sel, uint64_t *base, uint32_t *limit)
{
	if (!(sel & 4)) {
		*base = v->s.gdtr.base;
		*limit = v->s.gdtr.limit;
		return true;
	}
	*base = v->s.ldtr.base;
	*limit = v->s.ldtr.limit;
	return v->s.ldtr.attr & SEG_ATTR_P;
}

bool desc_read(struct vcpu *v, uint16_t sel, struct descriptor *d, uint64_t *gva)
{
	uint64_t base, q;
	uint32_t limit;

	if (!table_for(v, sel, &base, &limit) || (sel | 7u) > limit)
		return false;
	*gva = base + (sel & ~7u);
	if (!state_long(&v->s))
		*gva = (uint32_t)*gva;
	q = sys_load(v, *gva, 8);
	d->lo = (uint32_t)q;
	d->hi = (uint32_t)(q >> 32);
	return true;
}

bool desc_read_upper(struct vcpu *v, uint16_t sel, uint64_t gva, uint64_t *upper)
{
	uint64_t base;
	uint32_t limit;

	if (!table_for(v, sel, &base, &limit) || (sel | 7u) + 8 > limit)
		return false;
	*upper = sys_load(v, gva + 8, 8);
	return true;
}

void desc_fetch(struct vcpu *v, uint16_t sel, struct descriptor *d, uint64_t *gva, uint8_t vector)
{
	if (!desc_read(v, sel, d, gva))
		vcpu_raise_error(v, vector, SEL_ERR(sel));
}

/* The accessed bit is set with a locked write, only when clear: descriptor tables may be read-only. */
void desc_set_accessed(struct vcpu *v, struct descriptor *d, uint64_t gva)
{
	if (d->hi & 0x100)
		return;
	d->hi |= 0x100;
	sys_store(v, gva + 5, 1, d->hi >> 8 & 0xff);
}

void seg_null(struct x86_segment *sg, uint16_t sel, unsigned dpl)
{
	sg->selector = sel;
	sg->base = 0;
	sg->limit = 0;
	sg->attr = (uint16_t)(dpl << 5);
}

/* Real-address mode changes selector and base alone (limit and rights stay: "unreal" mode). */
void seg_load_real(struct vcpu *v, unsigned seg, uint16_t sel)
{
	struct x86_segment *sg = &v->s.seg[seg];

	sg->selector = sel;
	sg->base = (uint32_t)sel << 4;
	if (v->s.rflags & FLAG_VM) {
		sg->limit = 0xffff;
		sg->attr = 0xf3;
	} else if (seg == SEG_CS) {
		sg->attr = 0x93 | (sg->attr & (SEG_ATTR_DB | SEG_ATTR_G));
	} else {
		sg->attr |= SEG_ATTR_P;
		if (!(sg->attr & SEG_ATTR_S))
			sg->attr |= 0x93;
	}
}

void seg_load_v86_all(struct vcpu *v, const uint16_t sel[SEG_COUNT])
{
	for (unsigned i = 0; i < SEG_COUNT; i++) {
		struct x86_segment *sg = &v->s.seg[i];
		sg->selector = sel[i];
		sg->base = (uint32_t)sel[i] << 4;
		sg->limit = 0xffff;
		sg->attr = 0xf3;
	}
}

void seg_check_ss(struct vcpu *v, uint16_t sel, unsigned cpl, uint8_t vector, struct descriptor *d, uint64_t *gva)
{
	if (!(sel & 0xfffc))
		vcpu_raise_error(v, vector, SEL_ERR(sel));
	desc_fetch(v, sel, d, gva, vector);
	if ((sel & 3) != cpl || desc_dpl(d) != cpl || desc_system(d) || desc_code(d) || !(d->hi & 0x200))
		vcpu_raise_error(v, vector, SEL_ERR(sel));
	if (!desc_present(d))
		vcpu_raise_error(v, EXC_SS, SEL_ERR(sel));
}

static void load_ss(struct vcpu *v, uint16_t sel)
{
	unsigned cpl = state_cpl(&v->s);
	struct descriptor d;
	uint64_t gva;

	if (!(sel & 0xfffc)) {	/* a null SS: 64-bit mode below CPL 3 only, RPL = CPL */
		if (v->insn_mode != INSN_64 || cpl == 3 || (sel & 3) != cpl)
			vcpu_raise_error(v, EXC_GP, 0);
		seg_null(&v->s.seg[SEG_SS], sel, cpl);
		return;
	}
	seg_check_ss(v, sel, cpl, EXC_GP, &d, &gva);
	desc_set_accessed(v, &d, gva);
	seg_from_desc(&v->s.seg[SEG_SS], sel, &d);
}

void seg_load(struct vcpu *v, unsigned seg, uint16_t sel)
{
	struct descriptor d;
	uint64_t gva;
	unsigned cpl = state_cpl(&v->s);

	if (!(v->s.cr0 & CR0_PE) || (v->s.rflags & FLAG_VM)) {
		seg_load_real(v, seg, sel);
		return;
	}
	if (seg == SEG_SS) {
		load_ss(v, sel);
		return;
	}
	if (!(sel & 0xfffc)) {
		seg_null(&v->s.seg[seg], sel, 0);	/* clears FS/GS bases, as Intel does */
		return;
	}
	desc_fetch(v, sel, &d, &gva, EXC_GP);
	if (desc_system(&d) || (desc_code(&d) && !(d.hi & 0x200)))
		vcpu_raise_error(v, EXC_GP, SEL_ERR(sel));
	if (!(desc_code(&d) && desc_conforming(&d)) && (desc_dpl(&d) < (sel & 3u) || desc_dpl(&d) < cpl))
		vcpu_raise_error(v, EXC_GP, SEL_ERR(sel));
	if (!desc_present(&d))
		vcpu_raise_error(v, EXC_NP, SEL_ERR(sel));
	desc_set_accessed(v, &d, gva);
	seg_from_desc(&v->s.seg[seg], sel, &d);
}

void seg_drop_inner(struct vcpu *v, unsigned cpl)
{
	static const uint8_t data[] = { SEG_ES, SEG_DS, SEG_FS, SEG_GS };

	for (unsigned i = 0; i < 4; i++) {
		struct x86_segment *sg = &v->s.seg[data[i]];
		bool conforming = (sg->attr & 0x1c) == 0x1c;
		if (!(sg->attr & SEG_ATTR_P) || (!conforming && (sg->attr & SEG_ATTR_DPL) >> 5 < cpl)) {
			uint64_t base = sg->base;
			seg_null(sg, 0, 0);
			if (state_long(&v->s))	/* the bases of FS and GS outlive the selector */
				sg->base = base;
		}
	}
}

void tss_stack(struct vcpu *v, unsigned cpl, uint16_t *ss, uint32_t *esp)
{
	const struct x86_segment *tr = &v->s.tr;
	bool big = tr->attr & 8;
	unsigned off = big ? 4 + 8 * cpl : 2 + 4 * cpl, size = big ? 4 : 2;

	if (off + 2 * size - 1 > tr->limit)
		vcpu_raise_error(v, EXC_TS, SEL_ERR(tr->selector));
	*esp = (uint32_t)sys_load(v, tr->base + off, size);
	*ss = (uint16_t)sys_load(v, tr->base + off + size, 2);
}

uint64_t tss_stack64(struct vcpu *v, unsigned slot)
{
	const struct x86_segment *tr = &v->s.tr;
	unsigned off = slot < 3 ? 4 + 8 * slot : 0x24 + 8 * (slot - 4);
	uint64_t rsp;

	if (off + 7 > tr->limit)
		vcpu_raise_error(v, EXC_TS, SEL_ERR(tr->selector));
	rsp = sys_load(v, tr->base + off, 8);
	if (!va_canonical(v, rsp))
		vcpu_raise_error(v, EXC_SS, 0);
	return rsp;
}
