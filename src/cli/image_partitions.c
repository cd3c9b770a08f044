/* vixen image partitions: what a disk's partition table says. */
#include <stdio.h>
#include <stdlib.h>

#include "block/partition.h"
#include "cli/image_tool.h"
#include "cli/options.h"
#include "cli/passphrase.h"
#include "cli/verb.h"

struct show {
	const char *ref[1], *format;
	struct key_list keys;
	bool json;
};

static bool set_format(void *o, const char *v)
{
	((struct show *)o)->format = v;
	return tool_format_parse("image partitions", "disk-format", v);
}
static bool set_json(void *o, const char *v)
{
	return json_parse("image partitions", v, &((struct show *)o)->json);
}
static bool set_key(void *o, const char *v) { return key_list_add(&((struct show *)o)->keys, "image partitions", v); }
static bool set_file(void *o, const char *v)
{
	return tool_argument("image partitions", v, ((struct show *)o)->ref, 1);
}

static const struct option_row show_options[] = {
	{ "disk-format", "FORMAT", "what FILE is; default: by its name", set_format },
	{ "key-file", "FILE", "holds the passphrase of an encrypted disk; default: asked for", set_key },
	{ "format", "table|json", "default table", set_json },
	{ 0 },
};

static const struct command show_command = {
	.verb = "image partitions", .usage = "image partitions IMAGE|FILE [OPTIONS]",
	.about = "Lists the partitions of a disk, whatever the format of its file: MBR, with logical partitions, and GPT.",
	.options = show_options, .argument = set_file,
};

static const char *const scheme[] = { "none", "mbr", "gpt" };

static json_t *one_json(const struct partition_table *t, const struct partition *p)
{
	return json_pack("{s:i, s:I, s:I, s:s, s:o, s:o, s:o, s:b, s:b}", "number", (int)p->number, "offset",
			 (json_int_t)p->offset, "bytes", (json_int_t)p->bytes, "type", p->type, "type_name",
			 json_text(partition_type_name(t->scheme, p->type)), "name", json_text(*p->name ? p->name : NULL),
			 "uuid", json_text(*p->uuid ? p->uuid : NULL), "bootable", p->bootable, "outside", p->outside);
}

static void show_json(const struct partition_table *t)
{
	json_t *list = json_array();
	for (unsigned i = 0; i < t->n; i++)
		json_array_append_new(list, one_json(t, &t->list[i]));
	json_print(json_pack("{s:s, s:s, s:b, s:b, s:o}", "scheme", scheme[t->scheme], "id", t->id, "second_copy", t->second,
			     "cut", t->cut, "partitions", list));
}

static void show_table(const struct partition_table *t)
{
	char name[112];
	if (t->scheme == PARTITION_NONE) {
		printf("no partition table\n");
		return;
	}
	printf("%s, id %s\n%-4s %-16s %-16s %-24s %s\n", scheme[t->scheme], t->id, "NO", "OFFSET", "BYTES", "TYPE", "NAME");
	for (unsigned i = 0; i < t->n; i++) {
		const struct partition *p = &t->list[i];
		const char *type = partition_type_name(t->scheme, p->type);
		printf("%-4u %-16llu %-16llu %-24s %s%s%s\n", p->number, (unsigned long long)p->offset,
		       (unsigned long long)p->bytes, type ? type : p->type, plain(name, sizeof name, p->name),
		       p->bootable ? " (boot)" : "", p->outside ? " (not inside the disk)" : "");
	}
	if (t->second)
		printf("The first copy of the table is damaged; this is the second.\n");
	if (t->cut)
		printf("The chain of logical partitions is damaged; there may be more.\n");
}

static int show_run(struct tool *t, const struct show *s)
{
	struct partition_table table;
	char path[PATH_MAX];
	struct block *b;
	int ret = tool_path(t, s->ref[0], path);
	t->keys = &s->keys;
	if (!ret)
		ret = tool_open(t, &b, path, s->format, BLOCK_READONLY | BLOCK_SHARE, "--disk-format");
	if (ret)
		return ret;
	ret = block_partitions(b, &table);
	if (ret)
		error_errno(&t->e, -ret, "check the image: vixen image check", "read the partitions of '%s'", path);
	else
		(s->json ? show_json : show_table)(&table);
	free(table.list);
	return tool_close(t, b, ret);
}

int image_partitions(int argc, char **argv)
{
	struct show s = { 0 };
	struct tool t;
	int ret = options_parse(&show_command, &s, argc, argv);
	if (ret >= 0)
		return ret;
	if (!s.ref[0]) {
		usage_error("image partitions", "no FILE given");
		return EXIT_USAGE;
	}
	ret = tool_init(&t, "image partitions", false);
	if (!ret)
		ret = show_run(&t, &s);
	return tool_fini(&t, ret);
}
