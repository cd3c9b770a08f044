/* vixen image commit, vixen image rebase: images and the backing files under them. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cli/image_tool.h"
#include "cli/options.h"
#include "cli/passphrase.h"
#include "cli/verb.h"

struct chain {
	const char *file[1], *format, *verb;
	const char *backing, *backing_format;
	struct key_list keys, backing_keys;	/* of FILE and its chain; of the new backing file and its own */
	bool none, unsafe, plain;
	/* while it runs */
	char path[PATH_MAX], base_path[PATH_MAX], base_format[32];
	struct block *top, *base;
	struct tool *t;
};

static bool set_format(void *o, const char *v)
{
	((struct chain *)o)->format = v;
	return tool_format_parse(((struct chain *)o)->verb, "disk-format", v);
}
static bool set_key(void *o, const char *v)
{
	struct chain *c = o;
	return key_list_add(&c->keys, c->verb, v);
}
static bool set_file(void *o, const char *v)
{
	return tool_argument(((struct chain *)o)->verb, v, ((struct chain *)o)->file, 1);
}

/* A snapshot reads what it does not hold itself from the backing file, so it would change with that. */
static int no_snapshots(struct chain *c, const char *what, const char *todo)
{
	struct block_snapshot *list = NULL;
	unsigned n = 0;
	int ret = block_snapshot_list(c->top, &list, &n, &c->t->e);
	free(list);
	if (!ret && n)
		return error_set(&c->t->e, EBUSY, todo, what, "it has %u snapshots, whose content would change", n);
	return ret;
}

/* From the layer below the top on: its own, or the last, if the top has one. */
static void keys_below(struct chain *c)
{
	struct block_info i;
	bool used = !block_info(c->top, 0, &i) && i.encrypted && c->keys.n > 1;
	c->backing_keys.n = c->keys.n - used;
	for (unsigned k = 0; k < c->backing_keys.n; k++)
		c->backing_keys.path[k] = c->keys.path[k + used];
}

/* --- commit --- */

static bool set_plain(void *o, const char *v) { (void)v; return ((struct chain *)o)->plain = true; }
#define KEY_ROW { "key-file", "FILE", "holds the passphrase of FILE: fd:N, - for stdin; default: asked for; again for backing\n" \
		  "files with others, from the top", set_key }

static const struct option_row commit_options[] = {
	KEY_ROW,
	{ "plain", NULL, "what was encrypted may be kept unencrypted: no warning", set_plain },
	{ "disk-format", "FORMAT", "what FILE is; default: by its name", set_format },
	{ 0 },
};

static const struct command commit_command = {
	.verb = "image commit", .usage = "image commit FILE [--disk-format qcow2] [--key-file FILE]...",
	.about = "Writes what FILE holds into its backing file, and empties FILE, which reads as before. Other images with\n"
		 "the same backing file are spoilt by that: make sure that there are none.",
	.options = commit_options, .argument = set_file,
};

/* Name and format of the backing file, as the chain has them. */
static int find_base(struct chain *c)
{
	struct block_info i;
	struct block *b;
	int ret = tool_open(c->t, &b, c->path, c->format, BLOCK_READONLY | BLOCK_SHARE | BLOCK_LOCKED, "--disk-format");
	if (ret)
		return ret;
	if (block_info(b, 1, &i))
		ret = error_set(&c->t->e, EINVAL, "give a linked clone", "commit the image", "it has no backing file");
	if (!ret) {
		snprintf(c->base_path, sizeof c->base_path, "%s", i.path);
		snprintf(c->base_format, sizeof c->base_format, "%s", i.format);
	}
	return tool_close(c->t, b, ret);
}

static int commit_job(void *opaque)
{
	struct chain *c = opaque;
	return job_commit(&c->t->job, c->top, c->base, &c->t->e);
}

static int commit_open(struct chain *c)
{
	struct block_info i;
	int ret = no_snapshots(c, "commit the image", "delete them first");
	keys_below(c);
	c->t->keys = &c->backing_keys;
	if (!ret)
		ret = tool_open(c->t, &c->base, c->base_path, c->base_format, 0, "--disk-format");
	if (ret)
		return ret;
	if (!block_info(c->base, 0, &i) && !i.encrypted && !c->plain)
		tool_warn_plain(c->top, c->base_path);
	ret = block_run(c->t->loop, commit_job, c);
	ret = tool_close(c->t, c->base, ret);
	if (ret == -ECANCELED)
		snprintf(c->t->e.todo, sizeof c->t->e.todo, "the image reads as before, '%.120s' holds part of it; start it "
			 "again to finish", c->base_path);
	return ret;
}

static int commit_run(struct chain *c)
{
	int ret = find_base(c);
	c->t->keys = &c->keys;
	if (!ret)
		ret = tool_open(c->t, &c->top, c->path, c->format, BLOCK_NO_BACKING, "--disk-format");
	if (ret)
		return ret;
	ret = tool_close(c->t, c->top, commit_open(c));
	if (!ret)
		printf("'%s' holds all of '%s' now\n", c->base_path, c->path);
	return ret;
}

static int chain_main(struct chain *c, int (*run)(struct chain *c))
{
	struct tool t;
	c->t = &t;
	int ret = tool_init(&t, c->verb, true);
	if (!ret)
		ret = tool_path(&t, c->file[0], c->path);
	if (!ret)
		ret = run(c);
	return tool_fini(&t, ret);
}

int image_commit(int argc, char **argv)
{
	struct chain c = { .verb = "image commit" };
	int ret = options_parse(&commit_command, &c, argc, argv);
	if (ret >= 0)
		return ret;
	if (!c.file[0]) {
		usage_error("image commit", "no FILE given");
		return EXIT_USAGE;
	}
	return chain_main(&c, commit_run);
}

/* --- rebase --- */

static bool set_backing(void *o, const char *v)
{
	((struct chain *)o)->backing = v;
	return *v || usage_error("image rebase", "--backing names no file");
}
static bool set_backing_format(void *o, const char *v)
{
	((struct chain *)o)->backing_format = v;
	return tool_format_parse("image rebase", "backing-format", v);
}
static bool set_backing_key(void *o, const char *v)
{
	return key_list_add(&((struct chain *)o)->backing_keys, "image rebase", v);
}
static bool set_none(void *o, const char *v) { (void)v; return ((struct chain *)o)->none = true; }
static bool set_unsafe(void *o, const char *v) { (void)v; return ((struct chain *)o)->unsafe = true; }

static const struct option_row rebase_options[] = {
	{ "backing", "FILE", "the new backing file; the name is kept as given, relative to where the image lies",
	  set_backing },
	{ "backing-format", "FORMAT", "what that is; default: by its name", set_backing_format },
	KEY_ROW,
	{ "backing-key-file", "FILE", "the same of the new backing file and what is below it (default: the last of FILE)",
	  set_backing_key },
	{ "no-backing", NULL, "copy all in: the image stands alone afterwards", set_none },
	{ "unsafe", NULL, "change the name only: the file was moved, and holds the same", set_unsafe },
	{ "disk-format", "FORMAT", "what FILE is; default: by its name", set_format },
	{ 0 },
};

static const struct command rebase_command = {
	.verb = "image rebase", .usage = "image rebase FILE --backing FILE|--no-backing [--unsafe] [OPTIONS]",
	.about = "Gives an image another backing file. The disk reads as before: what the new one has otherwise is copied\n"
		 "into the image first.",
	.options = rebase_options, .argument = set_file,
};

static int base_path_make(struct chain *c)
{
	const char *slash = strrchr(c->path, '/');
	int dir = slash && *c->backing != '/' ? (int)(slash - c->path + 1) : 0;
	if (snprintf(c->base_path, PATH_MAX, "%.*s%s", dir, c->path, c->backing) < PATH_MAX)
		return 0;
	return error_set(&c->t->e, ENAMETOOLONG, "use a shorter name", "rebase the image", "its path is too long");
}

/* The new backing file is there, is no user of the image itself, and stays what it is meanwhile. */
static int base_open(struct chain *c)
{
	int ret = base_path_make(c);
	if (!c->backing_keys.n && c->keys.n)
		c->backing_keys.path[c->backing_keys.n++] = c->keys.path[c->keys.n - 1];
	c->t->keys = &c->backing_keys;
	if (!ret)
		ret = tool_open(c->t, &c->base, c->base_path, c->backing_format, BLOCK_READONLY | BLOCK_SHARE | BLOCK_LOCKED,
				"--backing-format");
	if (ret)
		return ret;
	snprintf(c->base_format, sizeof c->base_format, "%s", block_format(c->base));
	ret = tool_close(c->t, c->base, tool_not_in_chain(c->t, c->base, c->path, "rebase the image"));
	c->base = NULL;
	if (!ret)
		ret = tool_open(c->t, &c->base, c->base_path, c->base_format, BLOCK_READONLY | (c->unsafe ? BLOCK_LOCKED : 0),
				"--backing-format");
	return ret;
}

static int rebase_job(void *opaque)
{
	struct chain *c = opaque;
	return job_rebase(&c->t->job, c->top, c->base, &c->t->e);
}

static int rebase_top(struct chain *c)
{
	int ret = c->unsafe ? 0 : no_snapshots(c, "rebase the image", "delete them first, or add --unsafe if the new backing "
					       "file holds the same");
	if (!ret && !c->unsafe)
		ret = block_run(c->t->loop, rebase_job, c);
	if (!ret)
		ret = block_set_backing(c->top, c->backing, c->base_format, &c->t->e);
	if (ret == -ECANCELED)
		snprintf(c->t->e.todo, sizeof c->t->e.todo, "the image still has its old backing file; start it again");
	return ret;
}

static int rebase_run(struct chain *c)
{
	int ret = c->none ? 0 : base_open(c);
	if (ret)
		return ret;
	c->t->keys = &c->keys;
	ret = tool_open(c->t, &c->top, c->path, c->format, c->unsafe ? BLOCK_NO_BACKING | BLOCK_LOCKED : 0, "--disk-format");
	if (!ret)
		ret = tool_close(c->t, c->top, rebase_top(c));
	return tool_close(c->t, c->base, ret);
}

int image_rebase(int argc, char **argv)
{
	struct chain c = { .verb = "image rebase" };
	int ret = options_parse(&rebase_command, &c, argc, argv);
	if (ret >= 0)
		return ret;
	if (!c.file[0])
		usage_error("image rebase", "no FILE given");
	else if (!c.backing == !c.none)
		usage_error("image rebase", "give one of --backing and --no-backing");
	else if (c.none && c.unsafe)
		usage_error("image rebase", "--no-backing with --unsafe would lose data");
	else
		return chain_main(&c, rebase_run);
	return EXIT_USAGE;
}
