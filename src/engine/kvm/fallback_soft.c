/*
 * The software vCPU's side of the fallback; its struct vcpu is the software engine's.
 */
#include "engine/soft/interp.h"

void fallback_execute(struct vcpu *soft, struct x86_state *s);

/* What was decoded before may have been overwritten under KVM, unseen: it is dropped. */
void fallback_execute(struct vcpu *soft, struct x86_state *s)
{
	engine_soft.set_state(soft, s);
	interp_drop_all(soft);
	interp_step(soft);
	engine_soft.get_state(soft, s);
}
