#include "vmm/engine_choice.h"

#include <errno.h>
#include <string.h>

#include "engine/engine.h"
#include "engine/kvm/probe.h"

int engine_choose(const struct engine_ops **out, const char *name, struct error *e)
{
	struct kvm_probe probe;

	if (!strcmp(name, "soft")) {
		*out = &engine_soft;
	} else if (!strcmp(name, "kvm")) {
		kvm_probe(&probe);
		*out = probe.emulates ? &engine_kvm_user : &engine_kvm;
	} else if (!strcmp(name, "auto")) {
		kvm_probe(&probe);
		*out = probe.good ? &engine_kvm : &engine_soft;
	} else {
		return error_set(e, EINVAL, "use --engine auto, soft or kvm", "choose the engine", "'%s' is none", name);
	}
	return 0;
}
