#include "cli/doctor.h"
#include "cpu/model.h"

static void check_model(struct finding *f, const char *name)
{
	struct cpu_model *model;
	struct error e = { 0 };
	const struct cpu_model_config config = { .name = name, .tsc_hz = 1000000000 };
	if (!cpu_model_new(&model, &config, &e)) {
		FOUND(f, GOOD, NULL, "can be given to guests");
		cpu_model_free(model);
	} else {
		FOUND(f, LIMITED, "choose another --cpu", "%.150s", e.why);
	}
}
void check_v2(struct finding *f) { check_model(f, "x86-64-v2"); }
void check_v3(struct finding *f) { check_model(f, "x86-64-v3"); }
