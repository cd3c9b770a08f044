/* vixen image snapshot create|list|apply|delete: snapshots inside an image. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "cli/image_tool.h"
#include "cli/options.h"
#include "cli/verb.h"

struct action {
	const char *name, *done;
	int (*fn)(struct block *b, const char *snapshot, struct error *e);	/* NULL: list */
};

static const struct action actions[] = {
	{ "create", "took", block_snapshot_create },
	{ "list", NULL, NULL },
	{ "apply", "went back to", block_snapshot_apply },
	{ "delete", "deleted", block_snapshot_delete },
};

struct snapshot {
	const char *arg[3], *format;	/* action, FILE, NAME */
	bool json;
};

static bool set_format(void *o, const char *v)
{
	((struct snapshot *)o)->format = v;
	return tool_format_parse("image snapshot", "disk-format", v);
}
static bool set_json(void *o, const char *v)
{
	return json_parse("image snapshot", v, &((struct snapshot *)o)->json);
}
static bool set_argument(void *o, const char *v)
{
	return tool_argument("image snapshot", v, ((struct snapshot *)o)->arg, 3);
}

static const struct option_row snapshot_options[] = {
	{ "disk-format", "FORMAT", "what FILE is; default: by its name", set_format },
	{ "format", "table|json", "of the list, default table", set_json },
	{ 0 },
};

static const struct command snapshot_command = {
	.verb = "image snapshot",
	.usage = "image snapshot create|apply|delete FILE NAME\n       vixen image snapshot list FILE [--format table|json]",
	.about = "Snapshots inside a qcow2 image: each keeps what the disk held when it was taken. apply makes the disk what\n"
		 "it was then, and what it holds now is lost unless there is a snapshot of it. NAME may be an ID, too.",
	.options = snapshot_options, .argument = set_argument,
};

static const struct action *action_find(const char *name)
{
	static const char *const names[] = { "create", "list", "apply", "delete", NULL };
	for (size_t i = 0; i < sizeof actions / sizeof *actions; i++)
		if (!strcmp(actions[i].name, name))
			return &actions[i];
	const char *near = nearest(name, names);
	usage_error("image snapshot", "no such command '%s'%s%s", name, near ? ", did you mean " : "", near ? near : "");
	return NULL;
}

static void list_table(const struct block_snapshot *list, unsigned n)
{
	printf("%-6s %-30s %-20s %-16s %s\n", "ID", "NAME", "TAKEN", "VM STATE", "DISK");
	for (unsigned i = 0; i < n; i++) {
		char id[32], name[256], when[32] = "?", size[64], state[64];
		time_t t = (time_t)list[i].time_s;
		struct tm tm;
		if (localtime_r(&t, &tm))
			strftime(when, sizeof when, "%Y-%m-%d %H:%M:%S", &tm);
		size_words(size, list[i].size_bytes);
		size_words(state, list[i].vm_state_bytes);
		printf("%-6s %-30s %-20s %-16s %s\n", plain(id, sizeof id, list[i].id),
		       plain(name, sizeof name, list[i].name), when, list[i].vm_state_bytes ? state : "-", size);
	}
}

static void list_json(const struct block_snapshot *list, unsigned n)
{
	json_t *j = json_array();
	for (unsigned i = 0; i < n; i++)
		json_array_append_new(j, json_pack("{s:o, s:o, s:I, s:I, s:I}", "id", json_text(list[i].id), "name",
						   json_text(list[i].name), "time", (json_int_t)list[i].time_s,
						   "vm_state_bytes", (json_int_t)list[i].vm_state_bytes, "disk_bytes",
						   (json_int_t)list[i].size_bytes));
	json_print(j);
}

static int list_run(struct tool *t, const struct snapshot *s, struct block *b)
{
	struct block_snapshot *list = NULL;
	unsigned n = 0;
	int ret = block_snapshot_list(b, &list, &n, &t->e);
	if (!ret)
		(s->json ? list_json : list_table)(list, n);
	free(list);
	return ret;
}

static int snapshot_run(struct tool *t, const struct snapshot *s, const struct action *a)
{
	char path[PATH_MAX];
	struct block *b;
	int ret = tool_path(t, s->arg[1], path);
	if (!ret)
		ret = tool_open(t, &b, path, s->format,
				BLOCK_LOCKED | (a->fn ? 0 : BLOCK_READONLY | BLOCK_SHARE | BLOCK_NO_BACKING),
				"--disk-format");
	if (ret)
		return ret;
	ret = a->fn ? a->fn(b, s->arg[2], &t->e) : list_run(t, s, b);
	ret = tool_close(t, b, ret);
	if (!ret && a->fn)
		printf("%s '%s'\n", a->done, s->arg[2]);
	return ret;
}

int image_snapshot(int argc, char **argv)
{
	struct snapshot s = { 0 };
	const struct action *a;
	struct tool t;
	int ret = options_parse(&snapshot_command, &s, argc, argv);
	if (ret >= 0)
		return ret;
	if (!s.arg[0]) {
		usage_error("image snapshot", "say what: create, list, apply or delete");
		return EXIT_USAGE;
	}
	a = action_find(s.arg[0]);
	if (!a)
		return EXIT_USAGE;
	if (!s.arg[1] || !s.arg[2] == !!a->fn) {
		usage_error("image snapshot", a->fn ? "'%s' needs FILE and NAME" : "'%s' needs FILE alone", a->name);
		return EXIT_USAGE;
	}
	ret = tool_init(&t, "image snapshot", a->fn);
	if (!ret)
		ret = snapshot_run(&t, &s, a);
	return tool_fini(&t, ret);
}
