/*
 * The template translator: guest basic blocks become host code that runs on the guest's registers.
 * docs/cpu-soft.md draws the picture.
 */
#ifndef VIXEN_ENGINE_SOFT_TRANSLATE_H
#define VIXEN_ENGINE_SOFT_TRANSLATE_H

#include "engine/soft/soft.h"

struct translator;	/* what the vCPUs of one VM share */

/* NULL with e filled if this host lacks what translated code needs. Owned by the caller. */
struct translator *translator_new(struct soft_engine *en, struct error *e);
void translator_free(struct translator *t);
/* Allocates the vCPU's code cache; -errno with e filled. */
int translator_vcpu_init(struct vcpu *v, struct error *e);
void translator_vcpu_fini(struct vcpu *v);

/* Once on the thread that is going to call translate_run(). */
void translate_begin(struct vcpu *v);
/* Runs from v->s until the run loop has to look: request, interrupt due, activity changed. On the vCPU's
 * thread, with v->fault_jmp set. May longjmp with a fault; the state is exact then. */
void translate_run(struct vcpu *v);
/* Can the current mode be translated at all? If not, the run loop interprets. */
bool translate_usable(struct vcpu *v);

/* What was counted; the vCPU is stopped. */
void translate_counters(const struct vcpu *v, counter_fn *each, void *opaque);

/* Forgets all of the vCPU's translated code. It is not running, or on its own thread outside of translate_run(). */
void translate_drop_all(struct vcpu *v);

/* Some RAM page's code went stale. Any thread. */
void translate_invalidate(struct soft_engine *en, uint32_t ram_page, uint64_t lines);

#endif
