#include "vmm/counters.h"

#include <inttypes.h>
#include <jansson.h>
#include <stdlib.h>
#include <string.h>

#include "machine/debug.h"

#define LINES_MAX 24u	/* of one group in a table */

struct table {
	FILE *out;
	const char *group;
	unsigned lines;
};

static void table_line(void *opaque, const char *group, const char *name, uint64_t n)
{
	struct table *t = opaque;

	if (!t->group || strcmp(t->group, group)) {
		fprintf(t->out, "  %s\n", group);
		t->group = group;
		t->lines = 0;
	}
	if (t->lines++ < LINES_MAX)
		fprintf(t->out, "    %-32s %16" PRIu64 "\n", name, n);
}

static void json_line(void *opaque, const char *group, const char *name, uint64_t n)
{
	json_t *cpu = opaque, *g = json_object_get(cpu, group);

	if (!g) {
		g = json_object();
		json_object_set_new(cpu, group, g);
	}
	json_object_set_new(g, name, json_integer((json_int_t)n));
}

static void print_table(struct board *b, FILE *out)
{
	for (unsigned i = 0; i < board_debug_cpus(b); i++) {
		struct table t = { .out = out };
		fprintf(out, "CPU %u\n", i);
		board_counters(b, i, table_line, &t);
	}
}

static void print_json(struct board *b, FILE *out)
{
	json_t *cpus = json_array(), *root = json_object();
	char *text;

	for (unsigned i = 0; i < board_debug_cpus(b); i++) {
		json_t *cpu = json_object();
		board_counters(b, i, json_line, cpu);
		json_array_append_new(cpus, cpu);
	}
	json_object_set_new(root, "cpus", cpus);
	text = json_dumps(root, JSON_COMPACT);
	json_decref(root);
	if (text)
		fprintf(out, "%s\n", text);
	free(text);
}

void counters_print(struct board *b, bool json, FILE *out)
{
	if (json)
		print_json(b, out);
	else
		print_table(b, out);
	fflush(out);
}
