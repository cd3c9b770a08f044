/* vixen image key: the passphrases of an encrypted disk. */
#include <stdio.h>
#include <string.h>

#include "cli/image_tool.h"
#include "cli/options.h"
#include "cli/passphrase.h"
#include "cli/verb.h"

struct key {
	const char *arg[2], *format;	/* add, remove or change; FILE */
	const char *old, *new;
	struct block_key k;
	struct tool *t;
};

static bool set_format(void *o, const char *v)
{
	((struct key *)o)->format = v;
	return tool_format_parse("image key", "disk-format", v);
}
static bool set_time(void *o, const char *v)
{
	return tool_kdf_parse("image key", v, &((struct key *)o)->k.kdf_ms);
}
static bool set_old(void *o, const char *v) { ((struct key *)o)->old = v; return true; }
static bool set_new(void *o, const char *v) { ((struct key *)o)->new = v; return true; }
static bool set_argument(void *o, const char *v)
{
	return tool_argument("image key", v, ((struct key *)o)->arg, 2);
}

static const struct option_row key_options[] = {
	{ "key-file", "FILE", "holds a passphrase that is valid: fd:N, - for stdin; default: asked for", set_old },
	{ "new-key-file", "FILE", "holds the new one", set_new },
	{ "iter-time", "MS", "how long trying the new passphrase shall take (default 2000)", set_time },
	{ "disk-format", "FORMAT", "what FILE is; default: by its name", set_format },
	{ 0 },
};

static const struct command key_command = {
	.verb = "image key", .usage = "image key add|remove|change FILE [OPTIONS]",
	.about = "Adds a passphrase to an encrypted disk, removes one, or replaces one by another. The data stays as it is:\n"
		 "whoever has kept a copy of the disk's beginning can open it with the old passphrase. To encrypt it anew:\n"
		 "vixen image convert SRC DST --encrypt luks2. One newline at the end of a key file does not count.",
	.options = key_options, .argument = set_argument,
};

static bool verb_parse(struct key *c)
{
	static const char *const verbs[] = { "add", "remove", "change" };
	for (unsigned i = 0; c->arg[0] && i < 3; i++) {
		if (strcmp(c->arg[0], verbs[i]))
			continue;
		c->k.verb = (enum block_key_verb)i;
		return c->arg[1] || usage_error("image key", "no FILE given");
	}
	return usage_error("image key", "say add, remove or change");
}

static int key_run(struct key *c)
{
	char path[PATH_MAX], old[KEY_PATH_BYTES], new[KEY_PATH_BYTES];
	struct block *b;
	int ret = tool_path(c->t, c->arg[1], path);
	if (!ret)
		ret = tool_open(c->t, &b, path, c->format, BLOCK_LOCKED | BLOCK_NO_BACKING, "--disk-format");
	if (ret)
		return ret;
	ret = key_or_ask(&c->k.secret_file, c->old, path, false, old, &c->t->e);
	if (!ret && c->k.verb != BLOCK_KEY_REMOVE)
		ret = key_or_ask(&c->k.new_secret_file, c->new, path, true, new, &c->t->e);
	if (!ret)
		ret = block_key_change(b, &c->k, &c->t->e);
	return tool_close(c->t, b, ret);
}

int image_key(int argc, char **argv)
{
	struct key c = { 0 };
	struct tool t;
	int ret = options_parse(&key_command, &c, argc, argv);
	if (ret >= 0)
		return ret;
	if (!verb_parse(&c))
		return EXIT_USAGE;
	c.t = &t;
	ret = tool_init(&t, "image key", true);
	if (!ret)
		ret = key_run(&c);
	return tool_fini(&t, ret);
}
