/* vixen image resize, vixen image check. */
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "cli/image_tool.h"
#include "cli/options.h"
#include "cli/passphrase.h"
#include "cli/verb.h"

/* --- resize --- */

struct resize {
	const char *arg[2], *format;	/* FILE, SIZE */
	struct key_list keys;
	uint64_t bytes;
	bool more, shrink;		/* more: bytes are added */
};

static bool set_format(void *o, const char *v)
{
	((struct resize *)o)->format = v;
	return tool_format_parse("image resize", "disk-format", v);
}
static bool set_key(void *o, const char *v) { return key_list_add(&((struct resize *)o)->keys, "image resize", v); }
static bool set_shrink(void *o, const char *v) { (void)v; return ((struct resize *)o)->shrink = true; }
static bool set_resize(void *o, const char *v)
{
	struct resize *r = o;
	if (!tool_argument("image resize", v, r->arg, 2))
		return false;
	if (!r->arg[1])
		return true;
	r->more = *v == '+';
	return size_parse(v + r->more, &r->bytes) ||
	       usage_error("image resize", "'%s' is not a size such as 40G or +8G", v);
}

static const struct option_row resize_options[] = {
	{ "disk-format", "FORMAT", "what FILE is; default: by its name", set_format },
	{ "key-file", "FILE", "holds the passphrase of an encrypted disk; default: asked for", set_key },
	{ "shrink", NULL, "it may get smaller: what lies past the new end is lost", set_shrink },
	{ 0 },
};

static const struct command resize_command = {
	.verb = "image resize", .usage = "image resize FILE [+]SIZE [--shrink] [--disk-format FORMAT]",
	.about = "Changes the size of a disk; +SIZE adds to it. The guest's partitions and file systems stay as they are:\n"
		 "enlarge them inside, and before --shrink, make them smaller.",
	.options = resize_options, .argument = set_resize,
};

static int resize_run(struct tool *t, const struct resize *r)
{
	char path[PATH_MAX], words[64];
	struct block *b;
	uint64_t size = r->bytes;
	int ret = tool_path(t, r->arg[0], path);
	t->keys = &r->keys;
	if (!ret)
		ret = tool_open(t, &b, path, r->format, 0, "--disk-format");
	if (ret)
		return ret;
	if (r->more && __builtin_add_overflow(size, block_size(b), &size))
		ret = error_set(&t->e, EFBIG, "give less", "resize the disk", "its size would be too large");
	if (!ret)
		ret = block_resize(b, size, r->shrink ? BLOCK_SHRINK : 0, &t->e);
	ret = tool_close(t, b, ret);
	size_words(words, size);
	if (!ret)
		printf("'%s' is a disk of %s now\n", path, words);
	return ret;
}

int image_resize(int argc, char **argv)
{
	struct resize r = { 0 };
	struct tool t;
	int ret = options_parse(&resize_command, &r, argc, argv);
	if (ret >= 0)
		return ret;
	if (!r.arg[1]) {
		usage_error("image resize", r.arg[0] ? "no SIZE given" : "no FILE given");
		return EXIT_USAGE;
	}
	ret = tool_init(&t, "image resize", true);
	if (!ret)
		ret = resize_run(&t, &r);
	return tool_fini(&t, ret);
}

/* --- check --- */

#define FINDINGS_MAX 1000u

struct check {
	const char *file[1], *format;
	bool json;
	unsigned repair, findings;
	json_t *list;
};

static bool set_check_format(void *o, const char *v)
{
	((struct check *)o)->format = v;
	return tool_format_parse("image check", "disk-format", v);
}
static bool set_check_json(void *o, const char *v)
{
	return json_parse("image check", v, &((struct check *)o)->json);
}
static bool set_repair(void *o, const char *v)
{
	bool all = !strcmp(v, "all");
	((struct check *)o)->repair = all ? BLOCK_REPAIR_LEAKS | BLOCK_REPAIR_ERRORS : BLOCK_REPAIR_LEAKS;
	return all || !strcmp(v, "leaks") || usage_error("image check", "--repair '%s' is not leaks or all", v);
}
static bool set_check_file(void *o, const char *v)
{
	return tool_argument("image check", v, ((struct check *)o)->file, 1);
}

static const struct option_row check_options[] = {
	{ "repair", "leaks|all", "give space back that nothing uses; all: also mend what is wrong", set_repair },
	{ "disk-format", "FORMAT", "what FILE is; default: by its name", set_check_format },
	{ "format", "table|json", "default table", set_check_json },
	{ 0 },
};

static const struct command check_command = {
	.verb = "image check", .usage = "image check FILE [--repair leaks|all] [OPTIONS]",
	.about = "Looks whether the tables of an image fit together, this file alone. Exit code 0: they do; 3: something was\n"
		 "found and is still there; 1: it could not be checked. Keep a copy before --repair all.",
	.options = check_options, .argument = set_check_file,
};

static void on_finding(void *opaque, const char *line)
{
	struct check *c = opaque;
	if (c->findings++ >= FINDINGS_MAX)
		return;
	if (c->json)
		json_array_append_new(c->list, json_text(line));
	else
		printf("%s\n", line);
}

static void check_show(struct check *c, const struct block_check *r)
{
	if (c->json) {
		json_print(json_pack("{s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:O}", "corruptions",
				     (json_int_t)r->corruptions, "leaks", (json_int_t)r->leaks, "corruptions_fixed",
				     (json_int_t)r->corruptions_fixed, "leaks_fixed", (json_int_t)r->leaks_fixed,
				     "clusters", (json_int_t)r->clusters, "allocated", (json_int_t)r->allocated,
				     "compressed", (json_int_t)r->compressed, "fragmented", (json_int_t)r->fragmented,
				     "end_bytes", (json_int_t)r->end_bytes, "findings", c->list));
		return;
	}
	if (c->findings > FINDINGS_MAX)
		printf("... and %u more\n", c->findings - FINDINGS_MAX);
	if (r->corruptions_fixed || r->leaks_fixed)
		printf("repaired: %llu errors, %llu leaked clusters\n", (unsigned long long)r->corruptions_fixed,
		       (unsigned long long)r->leaks_fixed);
	if (r->corruptions || r->leaks)
		printf("%llu errors, %llu leaked clusters; mend them with --repair %s\n", (unsigned long long)r->corruptions,
		       (unsigned long long)r->leaks, r->corruptions ? "all" : "leaks");
	else
		printf("no errors\n");
	printf("%llu of %llu clusters in use, %llu compressed, %llu fragmented\n", (unsigned long long)r->allocated,
	       (unsigned long long)r->clusters, (unsigned long long)r->compressed, (unsigned long long)r->fragmented);
}

static int check_run(struct tool *t, struct check *c)
{
	struct block_check r = { .say = on_finding, .opaque = c };
	char path[PATH_MAX];
	struct block *b;
	int ret = tool_path(t, c->file[0], path);
	if (!ret)
		ret = tool_open(t, &b, path, c->format, BLOCK_NO_BACKING | BLOCK_LOCKED |
				(c->repair ? BLOCK_REPAIR : BLOCK_READONLY), "--disk-format");
	if (ret)
		return ret;
	ret = block_check(b, c->repair, &r, &t->e);
	ret = tool_close(t, b, ret);
	if (!ret)
		check_show(c, &r);
	return ret || !(r.corruptions || r.leaks) ? ret : EXIT_NO;
}

int image_check(int argc, char **argv)
{
	struct check c = { 0 };
	struct tool t;
	int ret = options_parse(&check_command, &c, argc, argv);
	if (ret >= 0)
		return ret;
	if (!c.file[0]) {
		usage_error("image check", "no FILE given");
		return EXIT_USAGE;
	}
	c.list = json_array();
	ret = tool_init(&t, "image check", c.repair);
	if (!ret)
		ret = check_run(&t, &c);
	json_decref(c.list);
	return tool_fini(&t, ret);
}
