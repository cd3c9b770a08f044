#include "engine/soft/counters.h"

#include <inttypes.h>
#include <stdlib.h>

#include "base/log.h"
#include "engine/soft/soft.h"
#include "engine/soft/translate.h"

struct line { const char *name; uint64_t count; };

static int line_order(const void *a, const void *b)
{
	uint64_t x = ((const struct line *)a)->count, y = ((const struct line *)b)->count;

	return (x < y) - (x > y);
}

#define OPS_SHOWN 24

static void print_ops(unsigned cpu, const struct counters *c)
{
	struct line l[X86_OP_COUNT];
	uint64_t total = 0;

	for (unsigned i = 0; i < X86_OP_COUNT; i++) {
		l[i] = (struct line){ x86_op_name((enum x86_op)i), c->op[i] };
		total += c->op[i];
	}
	qsort(l, X86_OP_COUNT, sizeof l[0], line_order);
	log_warn("cpu %u: interpreted instructions %" PRIu64, cpu, total);
	for (unsigned i = 0; i < OPS_SHOWN && l[i].count; i++)
		log_warn("cpu %u:   %-20s %12" PRIu64, cpu, l[i].name, l[i].count);
}

void counters_print(const struct vcpu *v)
{
	const struct counters *c = &v->counters;
	const struct line lines[] = {
		{ "interrupts", c->interrupts },
		{ "walk cache hits", c->walk_hits }, { "page walks", c->walks }, { "walks that faulted", c->walk_faults },
		{ "TLB fills", c->fills }, { "TLB fills to write", c->fills_write },
		{ "CR3 writes", c->switches }, { "CR3 writes, no flush", c->switches_kept },
		{ "flushes of all", c->flush_all }, { "flushes of local", c->flush_local },
		{ "flushes of a page", c->flush_page }, { "local entries dropped", c->local_entries },
	};

	print_ops(v->w.index, c);
	translate_counters(v);
	for (unsigned i = 0; i < sizeof lines / sizeof *lines; i++)
		log_warn("cpu %u: %-22s %12" PRIu64, v->w.index, lines[i].name, lines[i].count);
	for (unsigned i = 0; i < 32; i++)
		if (c->fault[i])
			log_warn("cpu %u: exception %-12u %12" PRIu64, v->w.index, i, c->fault[i]);
}
