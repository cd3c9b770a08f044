/* vixen image bitmap add|remove|clear|merge|list: dirty bitmaps that an image keeps. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cli/image_tool.h"
#include "cli/options.h"
#include "cli/verb.h"

struct bitmap {
	const char *arg[4], *format;	/* action, FILE, NAME, SOURCE */
	uint32_t granularity;
	bool json;
};

struct action {
	const char *name, *done;
	unsigned args;
	int (*fn)(struct block *b, const struct bitmap *m, struct error *e);	/* NULL: list */
};

static int add(struct block *b, const struct bitmap *m, struct error *e)
{
	return block_bitmap_add(b, m->arg[2], m->granularity, e);
}
static int drop(struct block *b, const struct bitmap *m, struct error *e)
{
	return block_bitmap_remove(b, m->arg[2], e);
}
static int clear(struct block *b, const struct bitmap *m, struct error *e)
{
	return block_bitmap_clear(b, m->arg[2], e);
}
static int merge(struct block *b, const struct bitmap *m, struct error *e)
{
	return block_bitmap_merge(b, m->arg[2], m->arg[3], e);
}

static const struct action actions[] = {
	{ "add", "added", 3, add },
	{ "remove", "removed", 3, drop },
	{ "clear", "cleared", 3, clear },
	{ "merge", "merged into", 4, merge },
	{ "list", NULL, 2, NULL },
};
#define ACTIONS (sizeof actions / sizeof *actions)

static bool set_format(void *o, const char *v)
{
	((struct bitmap *)o)->format = v;
	return tool_format_parse("image bitmap", "disk-format", v);
}
static bool set_json(void *o, const char *v)
{
	return json_parse("image bitmap", v, &((struct bitmap *)o)->json);
}
static bool set_granularity(void *o, const char *v)
{
	uint64_t bytes;
	if (!size_parse(v, &bytes) || bytes < 512 || bytes > 1u << 31 || bytes & (bytes - 1))
		return usage_error("image bitmap", "--granularity '%s' is not a power of two from 512 to 2G", v);
	((struct bitmap *)o)->granularity = (uint32_t)bytes;
	return true;
}
static bool set_argument(void *o, const char *v)
{
	return tool_argument("image bitmap", v, ((struct bitmap *)o)->arg, 4);
}

static const struct option_row bitmap_options[] = {
	{ "granularity", "SIZE", "add: bytes for each bit (default 64K)", set_granularity },
	{ "disk-format", "FORMAT", "what FILE is; default: by its name", set_format },
	{ "format", "table|json", "of the list, default table", set_json },
	{ 0 },
};

static const struct command bitmap_command = {
	.verb = "image bitmap",
	.usage = "image bitmap add FILE NAME [--granularity SIZE]\n       vixen image bitmap remove|clear FILE NAME\n"
		 "       vixen image bitmap merge FILE NAME SOURCE\n"
		 "       vixen image bitmap list FILE [--format table|json]",
	.about = "Dirty bitmaps inside a qcow2 image: each records which parts of the disk are written to, over restarts and\n"
		 "crashes. After a crash it may say too much, never too little. merge adds what SOURCE says to NAME.\n"
		 "Incremental backups are made by them: see vixen disk backup.",
	.options = bitmap_options, .argument = set_argument,
};

static const struct action *action_find(const char *name)
{
	const char *names[ACTIONS + 1] = { 0 };
	for (size_t i = 0; i < ACTIONS; i++) {
		if (!strcmp(actions[i].name, name))
			return &actions[i];
		names[i] = actions[i].name;
	}
	const char *near = nearest(name, names);
	usage_error("image bitmap", "no such command '%s'%s%s", name, near ? ", did you mean " : "", near ? near : "");
	return NULL;
}

static void list_table(json_t *list)
{
	json_t *j;
	size_t i;
	printf("%-30s %-12s %-10s %-10s %s\n", "NAME", "GRANULARITY", "RECORDS", "LAST USE", "CHANGED");
	json_array_foreach(list, i, j) {
		const char *name = "?";
		json_int_t granularity = 0, dirty = 0;
		int tracking = 0, unclean = 0;
		char safe[256], size[64];
		json_unpack(j, "{s:s, s:I, s:b, s:b, s:I}", "name", &name, "granularity", &granularity, "tracking",
			    &tracking, "unclean", &unclean, "dirty_bytes", &dirty);
		size_words(size, (uint64_t)dirty);
		printf("%-30s %-12lld %-10s %-10s %s\n", plain(safe, sizeof safe, name), (long long)granularity,
		       tracking ? "yes" : "no", unclean ? "not closed" : "closed", size);
	}
}

static json_t *list_json(const struct block_bitmap *list, unsigned n)
{
	json_t *j = json_array();
	for (unsigned i = 0; i < n; i++)
		json_array_append_new(j, json_pack("{s:o, s:I, s:b, s:b, s:I}", "name", json_text(list[i].name), "granularity",
						   (json_int_t)list[i].granularity, "tracking", list[i].tracking,
						   "unclean", list[i].unclean, "dirty_bytes",
						   (json_int_t)list[i].dirty_bytes));
	return j;
}

static int list_run(struct tool *t, const struct bitmap *m, struct block *b)
{
	struct block_bitmap *list = NULL;
	unsigned n = 0;
	int ret = block_bitmap_list(b, &list, &n, &t->e);
	json_t *j = ret ? NULL : list_json(list, n);
	free(list);
	if (j && m->json)
		json_print(j);
	else if (j)
		list_table(j);
	if (j && !m->json)
		json_decref(j);
	return ret;
}

static int bitmap_run(struct tool *t, const struct bitmap *m, const struct action *a)
{
	char path[PATH_MAX];
	struct block *b;
	int ret = tool_path(t, m->arg[1], path);
	if (!ret)
		ret = tool_open(t, &b, path, m->format,
				a->fn ? 0 : BLOCK_READONLY | BLOCK_SHARE | BLOCK_NO_BACKING, "--disk-format");
	if (ret)
		return ret;
	ret = a->fn ? a->fn(b, m, &t->e) : list_run(t, m, b);
	ret = tool_close(t, b, ret);
	if (!ret && a->fn)
		printf("%s '%s'\n", a->done, m->arg[2]);
	return ret;
}

int image_bitmap(int argc, char **argv)
{
	struct bitmap m = { 0 };
	const struct action *a;
	unsigned n = 0;
	struct tool t;
	int ret = options_parse(&bitmap_command, &m, argc, argv);
	if (ret >= 0)
		return ret;
	if (!m.arg[0]) {
		usage_error("image bitmap", "say what: add, remove, clear, merge or list");
		return EXIT_USAGE;
	}
	a = action_find(m.arg[0]);
	if (!a)
		return EXIT_USAGE;
	while (n < 4 && m.arg[n])
		n++;
	if (n != a->args) {
		usage_error("image bitmap", "'%s' needs FILE%s", a->name,
			    a->args == 2 ? " alone" : a->args == 3 ? " and NAME" : ", NAME and SOURCE");
		return EXIT_USAGE;
	}
	ret = tool_init(&t, "image bitmap", a->fn);
	if (!ret)
		ret = bitmap_run(&t, &m, a);
	return tool_fini(&t, ret);
}
