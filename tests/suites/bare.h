/*
 * A vCPU and RAM, nothing else: what the runners of other people's CPU tests are built on.
 *
 * Every port reads as ones; what is written to one goes to `out`. No interrupt ever comes.
 */
#ifndef VIXEN_TESTS_SUITES_BARE_H
#define VIXEN_TESTS_SUITES_BARE_H

#include <stdbool.h>
#include <stdint.h>

#include "cpu/model.h"
#include "engine/engine.h"
#include "memory/map.h"

struct bare {
	struct map *map;
	struct cpu_model *model;
	const struct engine_ops *ops;
	struct engine *en;
	struct vcpu *v;
	void (*out)(void *opaque, uint16_t port, unsigned size, uint32_t value);	/* on the vCPU's thread; or NULL */
	void *opaque;
};

/* engine: "interp" or "trans". false: *e says why. */
bool bare_init(struct bare *b, const char *engine, uint64_t ram_bytes, struct error *e);
void bare_fini(struct bare *b);
/* RAM at gpa, which is there. */
uint8_t *bare_ram(struct bare *b, uint64_t gpa);
/* Until HLT, a triple fault, or bare_stop(). */
enum exit_reason bare_run(struct bare *b);
/* From `out`: the run ends as EXIT_KICKED at the next boundary. */
void bare_stop(struct bare *b);

#endif
