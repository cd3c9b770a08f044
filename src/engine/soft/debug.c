/* Breakpoints and single steps, SDM vol. 3 chapter 17. DR7: Ln/Gn bits 0..7, R/Wn and LENn from bit 16. */
#include "engine/soft/operand.h"

static bool bp_enabled(const struct vcpu *v, unsigned i) { return v->s.dr[7] >> (2 * i) & 3; }
static unsigned bp_type(const struct vcpu *v, unsigned i) { return v->s.dr[7] >> (16 + 4 * i) & 3; }
static unsigned bp_len(const struct vcpu *v, unsigned i)
{
	static const uint8_t len[] = { 1, 2, 8, 4 };

	return len[v->s.dr[7] >> (18 + 4 * i) & 3];
}

void debug_update(struct vcpu *v)
{
	struct interp *ip = interp_of(v);
	bool data = false, exec = false, io = false;

	for (unsigned i = 0; i < 4; i++) {
		if (!bp_enabled(v, i))
			continue;
		exec |= bp_type(v, i) == 0;
		data |= bp_type(v, i) & 1;
		io |= bp_type(v, i) == 2;
	}
	if (data != ip->data_bps || data)
		tlb_flush_all(v);
	ip->data_bps = data;
	ip->watched = data || ip->watches;
	ip->io_bps = io && (v->s.cr4 & CR4_DE);
	ip->exec_bps = exec;
	ip->slow = debug_active(ip);
	ip->stop_block = true;
}

static bool overlaps(uint64_t a, unsigned an, uint64_t b, unsigned bn)
{
	return a < b + bn && b < a + an;
}

bool debug_page_watched(struct vcpu *v, uint64_t va)
{
	if (debugger_page_watched(v, va))
		return true;
	for (unsigned i = 0; i < 4; i++)
		if (bp_enabled(v, i) && (bp_type(v, i) & 1) &&
		    overlaps(v->s.dr[i], bp_len(v, i), va & GUEST_PAGE_MASK, GUEST_PAGE_SIZE))
			return true;
	return false;
}

void debug_data_access(struct vcpu *v, uint64_t va, unsigned n, bool write)
{
	debugger_data_access(v, va, n, write);
	for (unsigned i = 0; i < 4; i++) {
		unsigned type = bp_type(v, i), len = bp_len(v, i);
		if (bp_enabled(v, i) && (type == 3 || (type == 1 && write)) &&
		    overlaps(v->s.dr[i] & ~(uint64_t)(len - 1), len, va, n))
			interp_of(v)->db_pending |= 1u << i;
	}
}

void debug_io_access(struct vcpu *v, uint16_t port, unsigned n)
{
	if (!interp_of(v)->io_bps)
		return;
	for (unsigned i = 0; i < 4; i++)
		if (bp_enabled(v, i) && bp_type(v, i) == 2 && overlaps(v->s.dr[i], bp_len(v, i), port, n))
			interp_of(v)->db_pending |= 1u << i;
}

void debug_show(struct vcpu *v)
{
	struct interp *ip = interp_of(v);

	if (ip->db_pending)
		v->s.dr[6] = (v->s.dr[6] & ~0xfull) | ip->db_pending;
	v->s.dr[7] &= ~0x2000ull;	/* GD is cleared on entry to the handler */
	ip->db_pending = 0;
}

void debug_check_fetch(struct vcpu *v)
{
	uint64_t hits = 0, va = v->s.rip;

	if (v->insn_mode != INSN_64)
		va = (uint32_t)(v->s.seg[SEG_CS].base + va);
	for (unsigned i = 0; i < 4; i++)
		if (bp_enabled(v, i) && bp_type(v, i) == 0 && v->s.dr[i] == va)
			hits |= 1u << i;
	if (!hits)
		return;
	interp_of(v)->db_pending |= hits;
	debug_show(v);
	vcpu_raise(v, EXC_DB);
}
