/* vixen image restore: a disk as it was at one of the moments that a chain of backups holds. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>

#include "cli/convert.h"
#include "cli/image_tool.h"
#include "cli/options.h"
#include "cli/passphrase.h"
#include "cli/verb.h"

/* Of the chain: points[0] is the full backup. */
struct point {
	char *path, format[32];
	uint64_t size_bytes, host_bytes;
	bool encrypted, bad;
	struct timespec written;
};

struct restore {
	const char *arg[2], *at;	/* BACKUP, FILE */
	bool json, live;
	struct convert c;
	struct point *points;
	unsigned npoints;
	struct tool *t;
};

static bool set_at(void *o, const char *v) { ((struct restore *)o)->at = v; return true; }
static bool set_from(void *o, const char *v)
{
	((struct restore *)o)->c.from = v;
	return tool_format_parse("image restore", "disk-format", v);
}
static bool set_to(void *o, const char *v)
{
	((struct restore *)o)->c.to = v;
	return !strcmp(v, "raw") || !strcmp(v, "qcow2") || usage_error("image restore", "--to '%s' is not raw or qcow2", v);
}
static bool set_encrypt(void *o, const char *v)
{
	return tool_encrypt_parse("image restore", v, &((struct restore *)o)->c.create.encrypt);
}
static bool set_key(void *o, const char *v) { return key_list_add(&((struct restore *)o)->c.keys, "image restore", v); }
static bool set_new_key(void *o, const char *v) { ((struct restore *)o)->c.new_key_file = v; return true; }
static bool set_plain(void *o, const char *v) { (void)v; return ((struct restore *)o)->c.plain = true; }
static bool set_resume(void *o, const char *v) { (void)v; return ((struct restore *)o)->c.resume = true; }
static bool set_force(void *o, const char *v) { (void)v; return ((struct restore *)o)->c.force = true; }
static bool set_unverified(void *o, const char *v) { (void)v; ((struct restore *)o)->c.verify = false; return true; }
static bool set_live(void *o, const char *v) { (void)v; return ((struct restore *)o)->live = true; }
static bool set_json(void *o, const char *v) { return json_parse("image restore", v, &((struct restore *)o)->json); }
static bool set_argument(void *o, const char *v)
{
	return tool_argument("image restore", v, ((struct restore *)o)->arg, 2);
}

static const struct option_row restore_options[] = {
	{ "at", "NUMBER|FILE", "which backup of the chain, 0: the full one (default: BACKUP itself)", set_at },
	{ "to", "raw|qcow2", "what FILE shall be; default: by its name, else raw", set_to },
	{ "live", NULL, "FILE begins on top of the backup: run a machine at once, 'vixen disk stream' brings the rest", set_live },
	{ "no-verify", NULL, "do not read FILE again and compare it", set_unverified },
	{ "encrypt", "luks1|luks2", "encrypt FILE; qcow2 takes luks1", set_encrypt },
	{ "key-file", "FILE", "holds the passphrase of BACKUP: fd:N, - for stdin; default: asked for;\n"
	  "again for the backups below with others", set_key },
	{ "new-key-file", "FILE", "holds the passphrase of FILE", set_new_key },
	{ "plain", NULL, "what is encrypted in the backup may be kept unencrypted: no warning", set_plain },
	{ "disk-format", "FORMAT", "what BACKUP is; default: by its name", set_from },
	{ "resume", NULL, "keep FILE.partial if it ends early, and go on with one that did", set_resume },
	{ "force", NULL, "replace FILE if it is there", set_force },
	{ "format", "table|json", "of the list, default table", set_json },
	{ 0 },
};

static const struct command restore_command = {
	.verb = "image restore", .usage = "image restore BACKUP [FILE] [OPTIONS]",
	.about = "Writes to FILE what a disk was when it was backed up: BACKUP is the last increment that counts, or the full\n"
		 "backup. Its chain is checked first, FILE is compared with it in the end, and gets its name when it is whole.\n"
		 "Without FILE the backups of the chain are listed.",
	.options = restore_options, .argument = set_argument,
};

/* --- the chain --- */

static int point_fill(struct restore *r, struct point *p, struct block *b, unsigned depth)
{
	struct block_info i;
	struct stat st;
	int ret = block_info(b, depth, &i);
	if (ret)
		return error_errno(&r->t->e, -ret, NULL, "look at the backup");
	p->path = strdup(i.path);
	if (!p->path)
		return error_errno(&r->t->e, ENOMEM, NULL, "look at the backup");
	snprintf(p->format, sizeof p->format, "%s", i.format);
	p->size_bytes = i.size_bytes;
	p->host_bytes = i.host_bytes;
	p->encrypted = i.encrypted;
	p->bad = i.corrupt;
	if (!block_path_remote(i.path) && !stat(i.path, &st))
		p->written = st.st_mtim;
	return 0;
}

/* No later backup of the chain is replaced, either. */
static int chain_look(struct restore *r)
{
	char path[PATH_MAX];
	struct block_info i;
	struct block *b;
	int ret = tool_path(r->t, r->arg[0], path);
	r->t->keys = &r->c.keys;
	if (!ret)
		ret = tool_open(r->t, &b, path, r->c.from, BLOCK_READONLY | BLOCK_LOCKED, "--disk-format");
	if (ret)
		return ret;
	while (!block_info(b, r->npoints, &i))
		r->npoints++;
	r->points = calloc(r->npoints, sizeof *r->points);
	if (!r->points)
		ret = error_errno(&r->t->e, ENOMEM, NULL, "look at the backup");
	for (unsigned k = 0; k < r->npoints && !ret; k++)
		ret = point_fill(r, &r->points[r->npoints - 1 - k], b, k);
	if (!ret && r->arg[1])
		ret = tool_not_in_chain(r->t, b, r->arg[1], "restore the disk");
	return tool_close(r->t, b, ret);
}

static void list_print(const struct restore *r)
{
	json_t *list = json_array();
	if (!r->json)
		printf("%-3s %-19s %-8s %10s %10s  %s\n", "AT", "WRITTEN", "FORMAT", "DISK MiB", "TAKES MiB", "FILE");
	for (unsigned k = 0; k < r->npoints; k++) {
		const struct point *p = &r->points[k];
		char when[32] = "-", safe[PATH_MAX];
		struct tm tm;
		if (p->written.tv_sec && localtime_r(&p->written.tv_sec, &tm))
			strftime(when, sizeof when, "%Y-%m-%d %H:%M:%S", &tm);
		json_array_append_new(list, json_pack("{s:i, s:o, s:s, s:I, s:I, s:I, s:b}", "at", (int)k, "path",
						      json_text(p->path), "format", p->format, "size_bytes",
						      (json_int_t)p->size_bytes, "host_bytes", (json_int_t)p->host_bytes,
						      "written", (json_int_t)p->written.tv_sec, "encrypted", p->encrypted));
		if (!r->json)
			printf("%-3u %-19s %-8s %10.1f %10.1f  %s\n", k, when, p->format, (double)p->size_bytes / (1 << 20),
			       (double)p->host_bytes / (1 << 20), plain(safe, sizeof safe, p->path));
	}
	if (r->json)
		json_print(list);
	else
		json_decref(list);
}

static int point_choose(struct restore *r, unsigned *out)
{
	uint64_t n;
	*out = r->npoints - 1;
	if (!r->at)
		return 0;
	for (unsigned k = 0; k < r->npoints; k++)
		if (same_file(r->at, r->points[k].path)) {
			*out = k;
			return 0;
		}
	if (number_parse(r->at, r->npoints - 1, &n)) {
		*out = (unsigned)n;
		return 0;
	}
	return error_set(&r->t->e, ENOENT, "see the list: vixen image restore BACKUP", "restore the disk",
			 "the chain has no backup '%.100s'", r->at);
}

/* The tables of each file below the point, before time is spent on copying. */
static int point_check(struct restore *r, const struct point *p)
{
	struct block_check found = { 0 };
	struct block *b;
	if (strcmp(p->format, "qcow2"))
		return 0;
	int ret = tool_open(r->t, &b, p->path, p->format, BLOCK_READONLY | BLOCK_NO_BACKING | BLOCK_LOCKED, "--disk-format");
	if (ret)
		return ret;
	ret = block_check(b, 0, &found, &r->t->e);
	if (!ret && (p->bad || found.corruptions || found.errors))
		ret = error_set(&r->t->e, EIO, "see what is wrong: vixen image check; or restore an earlier one with --at",
				"restore the disk", "the backup '%.150s' is damaged", p->path);
	return tool_close(r->t, b, ret);
}

/* --- restoring --- */

/* Passphrases are given from the top of the whole chain. */
static void keys_skip(struct restore *r, unsigned at)
{
	struct key_list *l = &r->c.keys;
	unsigned above = 0;
	for (unsigned k = at + 1; k < r->npoints; k++)
		above += r->points[k].encrypted;
	for (; above && l->n > 1; above--, l->n--)
		memmove(l->path, l->path + 1, (l->n - 1) * sizeof *l->path);
}

/* A clone that a running machine fills by itself. */
static int live_make(struct restore *r, const struct point *p)
{
	char safe[PATH_MAX];
	for (const struct point *k = r->points; k <= p; k++)
		if (k->encrypted && !r->c.plain)
			return error_set(&r->t->e, EACCES, "restore it with --encrypt, or add --plain if that is meant",
					 "restore the disk", "the backup is encrypted, and FILE would not be");
	char *path = realpath(p->path, NULL);
	struct block_create create = { .backing_path = path ? path : p->path, .backing_format = p->format,
				       .size_bytes = p->size_bytes, .overwrite = r->c.force };
	int ret = block_create(r->t->loop, r->arg[1], "qcow2", &create, &r->t->e);
	free(path);
	if (!ret)
		printf("run a machine on '%s'; 'vixen disk stream' then fills it while it runs: until that is done the backup must "
		       "stay\n", plain(safe, sizeof safe, r->arg[1]));
	return ret;
}

static int copy_make(struct restore *r, const struct point *p, unsigned at)
{
	char path[PATH_MAX], from[PATH_MAX], to[PATH_MAX];
	struct convert *c = &r->c;
	bool plain_name = !strchr(p->path, '/') && !block_path_remote(p->path);	/* not one of the catalog */
	if (snprintf(path, sizeof path, "%s%s", plain_name ? "./" : "", p->path) >= PATH_MAX)
		return error_set(&r->t->e, ENAMETOOLONG, NULL, "restore the disk", "its path is too long");
	c->file[0] = path;
	c->file[1] = r->arg[1];
	c->from = p->format;
	keys_skip(r, at);
	int ret = convert_run(c);
	if (!ret)
		printf("'%s' is the disk as of '%s', %u of %u%s\n", plain(to, sizeof to, r->arg[1]), plain(from, sizeof from, p->path),
		       at, r->npoints - 1, c->verify ? "; compared" : "");
	return ret;
}

static int restore_run(struct restore *r)
{
	unsigned at;
	int ret = chain_look(r);
	if (!ret && !r->arg[1]) {
		list_print(r);
		return 0;
	}
	if (!ret)
		ret = point_choose(r, &at);
	for (unsigned k = 0; !ret && k <= at; k++)
		ret = point_check(r, &r->points[k]);
	if (ret)
		return ret;
	return r->live ? live_make(r, &r->points[at]) : copy_make(r, &r->points[at], at);
}

static bool restore_good(struct restore *r)
{
	struct convert *c = &r->c;
	if (!r->arg[0])
		return usage_error("image restore", "no BACKUP given");
	if (r->live && (c->to || c->create.encrypt || c->resume))
		return usage_error("image restore", "with --live FILE is a plain qcow2 image: leave --to, --encrypt and --resume out");
	if (!c->to)
		c->to = r->arg[1] ? tool_format_named(r->arg[1]) : "raw";
	if (strcmp(c->to, "raw") && strcmp(c->to, "qcow2") && strcmp(c->to, "luks"))
		return usage_error("image restore", "FILE would be %s: restore to raw or qcow2, and convert that", c->to);
	if (c->create.encrypt && !strcmp(c->to, "raw"))
		c->to = "luks";
	if (!strcmp(c->to, "luks") && !c->create.encrypt)
		c->create.encrypt = BLOCK_ENCRYPT_LUKS2;
	return !c->resume || !c->create.encrypt || usage_error("image restore", "--resume is not for what is encrypted");
}

int image_restore(int argc, char **argv)
{
	struct restore r = { .c = { .held_fd = -1, .verify = true } };
	struct tool t;
	int ret = options_parse(&restore_command, &r, argc, argv);
	if (ret >= 0)
		return ret;
	if (!restore_good(&r))
		return EXIT_USAGE;
	r.t = r.c.t = &t;
	ret = tool_init(&t, "image restore", true);
	if (!ret)
		ret = restore_run(&r);
	for (unsigned k = 0; k < r.npoints && r.points; k++)
		free(r.points[k].path);
	free(r.points);
	return tool_fini(&t, ret);
}
