#include <string.h>

#include "../engine/quiet.h"
#include "bare.h"

static uint64_t port_read(void *opaque, uint64_t port, unsigned size) { return ~0ull; }

static void port_write(void *opaque, uint64_t port, unsigned size, uint64_t value)
{
	struct bare *b = opaque;
	if (b->out)
		b->out(b->opaque, (uint16_t)port, size, (uint32_t)value);
}

static const struct io_ops ports = { .read = port_read, .write = port_write, .min_size = 1, .max_size = 4 };

bool bare_init(struct bare *b, const char *engine, uint64_t ram_bytes, struct error *e)
{
	struct cpu_model_config mc = { .name = "max", .tsc_hz = 1000000000 };
	struct engine_config cfg = { .vcpus = 1, .tsc_hz = 1000000000, .interpret_only = !strcmp(engine, "interp") };
	memset(b, 0, sizeof *b);
	b->ops = &engine_soft;
	b->map = map_new();
	if (!b->map || map_add_ram(b->map, 0, ram_bytes, e) < 0 || cpu_model_new(&b->model, &mc, e) < 0)
		return false;
	map_add_pio(b->map, 0, 0x10000, &ports, b, "ports");
	cfg.map = b->map;
	cfg.model = b->model;
	return b->ops->create(&b->en, &cfg, e) >= 0 && b->ops->vcpu_create(&b->v, b->en, &vcpu_quiet, e) >= 0;
}

void bare_fini(struct bare *b)
{
	b->ops->vcpu_destroy(b->v);
	b->ops->destroy(b->en);
	cpu_model_free(b->model);
	map_free(b->map);
}

uint8_t *bare_ram(struct bare *b, uint64_t gpa) { return map_ptr(b->map, gpa, 1, true); }
void bare_stop(struct bare *b) { b->ops->kick(b->v); }

enum exit_reason bare_run(struct bare *b)
{
	struct error e;
	enum exit_reason why = b->ops->run(b->v, &e);
	if (why == EXIT_FAILED)
		error_print(&e);
	return why;
}
