/* Which engine a VM gets. */
#ifndef VIXEN_VMM_ENGINE_CHOICE_H
#define VIXEN_VMM_ENGINE_CHOICE_H

#include "base/error.h"

struct engine_ops;

/* name: "auto", "soft" or "kvm". auto and kvm try KVM out, which takes a moment. */
int engine_choose(const struct engine_ops **out, const char *name, struct error *e);

#endif
