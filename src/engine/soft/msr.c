/* MSRs: the clock's here, devices' through the wiring, the rest from cpu/msr.h; and what a write entails. */
#include "cpu/msr.h"

#include "engine/soft/kvmclock.h"
#include "engine/soft/operand.h"

bool msr_load(struct vcpu *v, uint32_t msr, uint64_t *value)
{
	switch (msr) {
	case MSR_TSC: *value = soft_tsc(v); return true;
	case MSR_TSC_ADJUST: *value = v->s.tsc_adjust; return true;
	default: break;
	}
	if (v->w.msr_read && v->w.msr_read(v->w.opaque, msr, value))
		return true;
	return msr_get(&v->s, v->en->model, msr, value);
}

/* true: the device has taken or refused it (*ok). What it can read and will not have written is #GP. */
static bool device_store(struct vcpu *v, uint32_t msr, uint64_t value, bool *ok)
{
	uint64_t old;

	*ok = v->w.msr_write && v->w.msr_write(v->w.opaque, msr, value);
	if (!*ok)
		return v->w.msr_read && v->w.msr_read(v->w.opaque, msr, &old);
	if (msr == MSR_APIC_BASE)
		v->s.apic_base = value;			/* CPUID shows whether the APIC is on */
	interp_of(v)->check_events = true;		/* EOI lets the next interrupt through */
	return true;
}

bool msr_store(struct vcpu *v, uint32_t msr, uint64_t value)
{
	uint64_t old_efer = v->s.efer, delta;
	bool ok;

	switch (msr) {
	case MSR_TSC:	/* moves TSC_ADJUST along, SDM vol. 3 17.17.3 */
		delta = value - soft_tsc(v);
		v->s.tsc_offset += delta;
		v->s.tsc_adjust += delta;
		kvmclock_tsc_moved(v);
		return true;
	case MSR_TSC_ADJUST:
		v->s.tsc_offset += value - v->s.tsc_adjust;
		v->s.tsc_adjust = value;
		kvmclock_tsc_moved(v);
		return true;
	default: break;
	}
	if (device_store(v, msr, value, &ok))
		return ok;
	if (!msr_set(&v->s, v->en->model, msr, value))
		return false;
	if ((old_efer ^ v->s.efer) & EFER_NXE)
		tlb_flush_all(v);
	kvmclock_msr_written(v, msr);
	vcpu_update_mode(v);
	vcpu_update_system(v);
	return true;
}
