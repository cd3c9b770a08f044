/* vixen image info FILE, vixen image map: what an image file is, and where it holds what. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "cli/catalog.h"
#include "cli/image_tool.h"
#include "cli/options.h"
#include "cli/verb.h"

struct look {
	const char *ref[1], *format;
	bool json;
	const char *verb;
};

static bool set_json(void *o, const char *v)
{
	return json_parse(((struct look *)o)->verb, v, &((struct look *)o)->json);
}
static bool set_format(void *o, const char *v)
{
	((struct look *)o)->format = v;
	return tool_format_parse(((struct look *)o)->verb, "disk-format", v);
}
static bool set_file(void *o, const char *v)
{
	return tool_argument(((struct look *)o)->verb, v, ((struct look *)o)->ref, 1);
}

static const struct option_row look_options[] = {
	{ "disk-format", "FORMAT", "what FILE is; default: by its name and content", set_format },
	{ "format", "table|json", "default table", set_json },
	{ 0 },
};

static const struct command info_command = {
	.verb = "image info", .usage = "image info IMAGE|FILE [--disk-format FORMAT] [--format table|json]",
	.about = "Describes an image of the catalog, or a disk file: its format, how much space it takes, its backing files\n"
		 "and snapshots. Also while a machine runs from it: then what is shown may be out of date.",
	.options = look_options, .argument = set_file,
};

static const struct command map_command = {
	.verb = "image map", .usage = "image map FILE [--disk-format FORMAT] [--format table|json]",
	.about = "Shows which parts of a disk hold data, which read as zeroes, and which file of the chain they come from.",
	.options = look_options, .argument = set_file,
};

/* --- info: collecting --- */

static json_t *extra_json(const struct block_info *i)
{
	json_t *j = json_object();
	for (unsigned n = 0; n < i->nextra; n++)
		json_object_set_new(j, i->extra[n].key, json_text(i->extra[n].value));
	return j;
}

static json_t *layer_json(const struct block_info *i)
{
	return json_pack("{s:o, s:s, s:I, s:I, s:I, s:o, s:o, s:o, s:b, s:b, s:b, s:o}", "path", json_text(i->path),
			 "format", i->format, "disk_bytes", (json_int_t)i->size_bytes, "used_bytes",
			 (json_int_t)i->host_bytes, "cluster_bytes", (json_int_t)i->cluster_bytes, "backing",
			 json_text(i->backing_path), "backing_format", json_text(i->backing_format), "data_file",
			 json_text(i->data_path), "encrypted", i->encrypted, "unclean", i->unclean, "corrupt",
			 i->corrupt, "details", extra_json(i));
}

static json_t *snapshots_json(struct block *b)
{
	struct block_snapshot *list = NULL;
	unsigned n = 0;
	json_t *j = json_array();
	if (block_snapshot_list(b, &list, &n, NULL))
		n = 0;
	for (unsigned i = 0; i < n; i++)
		json_array_append_new(j, json_pack("{s:o, s:o, s:I, s:I, s:I}", "id", json_text(list[i].id), "name",
						   json_text(list[i].name), "time", (json_int_t)list[i].time_s,
						   "vm_state_bytes", (json_int_t)list[i].vm_state_bytes, "disk_bytes",
						   (json_int_t)list[i].size_bytes));
	free(list);
	return j;
}

/* chain: the image first; chain_error: why it ends before its end. */
static json_t *info_json(struct block *b, const struct error *broken)
{
	struct block_info i;
	json_t *chain = json_array(), *top;
	for (unsigned depth = 0; !block_info(b, depth, &i); depth++)
		json_array_append_new(chain, layer_json(&i));
	top = json_deep_copy(json_array_get(chain, 0));
	json_object_set_new(top, "snapshots", snapshots_json(b));
	json_object_set_new(top, "chain", chain);
	if (broken)
		json_object_set_new(top, "chain_error", json_text(broken->why));
	return top;
}

/* --- info: a table --- */

static const char *text_of(const json_t *j, const char *key, char *buf, size_t size)
{
	return plain(buf, size, json_string_value(json_object_get(j, key)));
}

static void size_show(const char *what, const json_t *j, const char *key)
{
	char words[64];
	size_words(words, (uint64_t)json_integer_value(json_object_get(j, key)));
	printf("%-14s %s\n", what, words);
}

static void flags_show(const json_t *j)
{
	static const char *const flag[][2] = {
		{ "encrypted", "yes" }, { "unclean", "yes: it was not closed; the next opening repairs it" },
		{ "corrupt", "yes: vixen image check --repair all" },
	};
	for (size_t i = 0; i < sizeof flag / sizeof *flag; i++)
		if (json_is_true(json_object_get(j, flag[i][0])))
			printf("%-14s %s\n", flag[i][0], flag[i][1]);
}

static void layer_show(const json_t *j)
{
	char a[1100], b[64];
	const char *key;
	json_t *v;
	printf("file           %s\n", text_of(j, "path", a, sizeof a));
	printf("format         %s\n", text_of(j, "format", a, sizeof a));
	size_show("disk", j, "disk_bytes");
	size_show("used", j, "used_bytes");
	if (json_integer_value(json_object_get(j, "cluster_bytes")))
		size_show("cluster", j, "cluster_bytes");
	if (*text_of(j, "backing", a, sizeof a))
		printf("backing        %s (%s)\n", a, *text_of(j, "backing_format", b, sizeof b) ? b : "format not given");
	if (*text_of(j, "data_file", a, sizeof a))
		printf("data file      %s\n", a);
	flags_show(j);
	json_object_foreach(json_object_get(j, "details"), key, v)
		printf("%-14s %s\n", key, plain(a, sizeof a, json_string_value(v)));
}

static void snapshots_show(const json_t *list)
{
	size_t i;
	json_t *s;
	if (!json_array_size(list))
		return;
	printf("\n%-6s %-30s %-20s %s\n", "ID", "SNAPSHOT", "TAKEN", "DISK");
	json_array_foreach(list, i, s) {
		char id[32], name[256], when[32] = "?", size[64];
		time_t t = (time_t)json_integer_value(json_object_get(s, "time"));
		struct tm tm;
		if (localtime_r(&t, &tm))
			strftime(when, sizeof when, "%Y-%m-%d %H:%M:%S", &tm);
		size_words(size, (uint64_t)json_integer_value(json_object_get(s, "disk_bytes")));
		printf("%-6s %-30s %-20s %s\n", text_of(s, "id", id, sizeof id), text_of(s, "name", name, sizeof name),
		       when, size);
	}
}

static void info_show(const json_t *j)
{
	const json_t *chain = json_object_get(j, "chain");
	char why[256];
	layer_show(j);
	snapshots_show(json_object_get(j, "snapshots"));
	for (size_t i = 1; i < json_array_size(chain); i++) {
		printf("\nbacking file %zu\n", i);
		layer_show(json_array_get(chain, i));
	}
	if (*text_of(j, "chain_error", why, sizeof why))
		printf("\nThe chain ends here: %s\n", why);
}

/* Where a backing file cannot be opened, the image alone is described. */
static int info_run(struct tool *t, const struct look *o, const char *path)
{
	unsigned flags = BLOCK_READONLY | BLOCK_SHARE | BLOCK_LOCKED | (o->format ? 0 : BLOCK_PROBE);
	struct error broken;
	struct block *b;
	int ret = tool_open(t, &b, path, o->format, flags, "--disk-format"), chain = ret;
	if (ret) {
		broken = t->e;
		ret = tool_open(t, &b, path, o->format, flags | BLOCK_NO_BACKING, "--disk-format");
	}
	if (ret)
		return ret;
	json_t *j = info_json(b, chain ? &broken : NULL);
	if (o->json) {
		json_print(j);
	} else {
		info_show(j);
		json_decref(j);
	}
	return tool_close(t, b, 0);
}

static int image_or_file_info(struct tool *t, const struct look *o)
{
	struct image img;
	int ret = catalog_find(&img, o->ref[0], &t->e);
	if (ret)
		return ret;
	if (!img.dir[0])
		return info_run(t, o, img.disk);
	image_describe(&img, o->json);
	return 0;
}

static int look_main(const struct command *c, int argc, char **argv,
		     int (*run)(struct tool *t, const struct look *o))
{
	struct look o = { .verb = c->verb };
	struct tool t;
	int ret = options_parse(c, &o, argc, argv);
	if (ret >= 0)
		return ret;
	if (!o.ref[0]) {
		usage_error(c->verb, "no FILE given");
		return EXIT_USAGE;
	}
	ret = tool_init(&t, c->verb, false);
	if (!ret)
		ret = run(&t, &o);
	return tool_fini(&t, ret);
}

int image_info(int argc, char **argv)
{
	return look_main(&info_command, argc, argv, image_or_file_info);
}

/* --- map --- */

struct map {
	struct block *b;
	bool json, first;
	struct block_status last;
	uint64_t start;
};

static void map_line(struct map *m)
{
	const struct block_status *s = &m->last;
	const char *what = s->flags & BLOCK_STATUS_ZERO ? "zeroes" : "data";
	struct block_info i = { 0 };
	char path[300];
	if (s->flags & BLOCK_STATUS_COMPRESSED)
		what = "compressed";
	if (block_info(m->b, s->depth, &i) || !(s->flags & BLOCK_STATUS_ALLOCATED))
		i.path = "-";
	printf("%-16llu %-16llu %-10s %-5u %s\n", (unsigned long long)m->start, (unsigned long long)s->len, what, s->depth,
	       plain(path, sizeof path, i.path));
}

/* As `qemu-img map --output=json` has it; printed as it comes, since maps are long. */
static void map_object(struct map *m)
{
	const struct block_status *s = &m->last;
	printf("%s\n{ \"start\": %llu, \"length\": %llu, \"depth\": %u, \"present\": %s, \"zero\": %s, \"data\": %s, "
	       "\"compressed\": %s", m->first ? "[" : ",", (unsigned long long)m->start, (unsigned long long)s->len, s->depth,
	       s->flags & BLOCK_STATUS_ALLOCATED ? "true" : "false", s->flags & BLOCK_STATUS_ZERO ? "true" : "false",
	       s->flags & BLOCK_STATUS_DATA ? "true" : "false", s->flags & BLOCK_STATUS_COMPRESSED ? "true" : "false");
	if (s->flags & BLOCK_STATUS_OFFSET)
		printf(", \"offset\": %llu", (unsigned long long)s->host_offset);
	printf(" }");
}

static void map_flush(struct map *m)
{
	if (!m->last.len)
		return;
	(m->json ? map_object : map_line)(m);
	m->first = false;
}

static bool goes_on(const struct map *m, const struct block_status *s)
{
	const struct block_status *l = &m->last;
	return l->len && l->flags == s->flags && l->depth == s->depth &&
	       (!(s->flags & BLOCK_STATUS_OFFSET) || l->host_offset + l->len == s->host_offset);
}

static int map_walk(void *opaque)
{
	struct map *m = opaque;
	uint64_t size = block_size(m->b);
	for (uint64_t at = 0; at < size;) {
		struct block_status s;
		int ret = block_co_status(m->b, at, size - at, UINT_MAX, &s);
		if (ret)
			return ret;
		if (goes_on(m, &s)) {
			m->last.len += s.len;
		} else {
			map_flush(m);
			m->last = s;
			m->start = at;
		}
		at += s.len;
	}
	map_flush(m);
	return 0;
}

static int map_run(struct tool *t, const struct look *o)
{
	struct map m = { .json = o->json, .first = true };
	char path[PATH_MAX];
	int ret = tool_path(t, o->ref[0], path);
	if (!ret)
		ret = tool_open(t, &m.b, path, o->format, BLOCK_READONLY | BLOCK_LOCKED, "--disk-format");
	if (ret)
		return ret;
	if (!m.json)
		printf("%-16s %-16s %-10s %-5s %s\n", "START", "LENGTH", "WHAT", "DEPTH", "FILE");
	ret = block_run(t->loop, map_walk, &m);
	if (m.json)
		printf("%s]\n", m.first ? "[" : "\n");
	if (ret)
		error_errno(&t->e, -ret, "check the image: vixen image check", "map '%s'", path);
	return tool_close(t, m.b, ret);
}

int image_map(int argc, char **argv)
{
	return look_main(&map_command, argc, argv, map_run);
}
