/*
 * The software vCPU's side of the fallback; its struct vcpu is the software engine's.
 */
#include "engine/soft/interp.h"

void fallback_execute(struct vcpu *soft, struct x86_state *s);
struct x86_state *soft_state(struct vcpu *soft);
void soft_state_changed(struct vcpu *soft, bool trap);

/* What was decoded before may have been overwritten under KVM, unseen: it is dropped. */
void fallback_execute(struct vcpu *soft, struct x86_state *s)
{
	engine_soft.set_state(soft, s);
	interp_drop_all(soft);
	interp_step(soft);
	engine_soft.get_state(soft, s);
}

struct x86_state *soft_state(struct vcpu *soft) { return &soft->s; }

void soft_state_changed(struct vcpu *soft, bool trap)
{
	vcpu_update_mode(soft);
	interp_of(soft)->check_events = true;
	if (!trap)
		return;
	soft->s.dr[6] |= 1u << 14;
	soft->fault.vector = EXC_DB;
	soft->fault.has_error = false;
	_setjmp(soft->fault_jmp);	/* a fault met during delivery comes back here, to be delivered itself */
	vcpu_deliver_fault(soft);
}
