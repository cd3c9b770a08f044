#include "vmm/engine_choice.h"

#include <errno.h>
#include <string.h>

#include "engine/engine.h"

int engine_choose(const struct engine_ops **out, const char *name, struct error *e)
{
	if (!strcmp(name, "soft") || !strcmp(name, "auto")) {
		*out = &engine_soft;
		return 0;
	}
	if (!strcmp(name, "kvm")) {
		*out = &engine_kvm;
		return 0;
	}
	return error_set(e, EINVAL, "use --engine auto, soft or kvm", "choose the engine", "'%s' is none", name);
}
