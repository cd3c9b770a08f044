#include <stdlib.h>

#include "engine/soft/soft.h"
#include "engine/soft/translate.h"

struct line { const char *name; uint64_t count; };

static int line_order(const void *a, const void *b)
{
	uint64_t x = ((const struct line *)a)->count, y = ((const struct line *)b)->count;

	return (x < y) - (x > y);
}

/* The most frequent first. */
static void each_op(const struct counters *c, counter_fn *each, void *opaque)
{
	struct line l[X86_OP_COUNT];
	uint64_t total = 0;

	for (unsigned i = 0; i < X86_OP_COUNT; i++) {
		l[i] = (struct line){ x86_op_name((enum x86_op)i), c->op[i] };
		total += c->op[i];
	}
	qsort(l, X86_OP_COUNT, sizeof l[0], line_order);
	each(opaque, "instructions interpreted", "all", total);
	for (unsigned i = 0; i < X86_OP_COUNT && l[i].count; i++)
		each(opaque, "instructions interpreted", l[i].name, l[i].count);
}

static void each_fault(const struct counters *c, counter_fn *each, void *opaque)
{
	static const char *const names[32] = {
		"#DE", "#DB", "NMI", "#BP", "#OF", "#BR", "#UD", "#NM", "#DF", "9", "#TS", "#NP", "#SS", "#GP", "#PF", "15",
		"#MF", "#AC", "#MC", "#XM", "#VE", "#CP", "22", "23", "24", "25", "26", "27", "28", "29", "30", "31",
	};

	for (unsigned i = 0; i < 32; i++)
		if (c->fault[i])
			each(opaque, "exceptions", names[i], c->fault[i]);
}

void soft_counters(struct vcpu *v, counter_fn *each, void *opaque)
{
	const struct counters *c = &v->counters;

	translate_counters(v, each, opaque);
#define COUNTER(field, group, name) each(opaque, group, name, c->field);
#include "engine/soft/counters.def"
#undef COUNTER
	each_fault(c, each, opaque);
	each_op(c, each, opaque);
}
