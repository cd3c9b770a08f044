/* vixen disk: the disks of a VM that runs. A verb is a row of the table, and a function. */
#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "block/block.h"
#include "cli/control_client.h"
#include "cli/disk.h"
#include "cli/disk_files.h"
#include "cli/disk_option.h"
#include "cli/image_tool.h"
#include "cli/options.h"
#include "cli/verb.h"
#include "host/loop.h"
#include "vmm/vm_config.h"

#define DETACH_SECONDS 10u

/* --- what they share: VM and DISK --- */

bool disk_argument(struct disk_ask *a, const char *v)
{
	if (!a->vm)
		a->vm = v;
	else if (!a->disk && a->takes_disk)
		a->disk = v;
	else
		return usage_error(a->verb, "'%s' is one argument too many", v);
	return true;
}

int disk_parse(const struct command *c, struct disk_ask *a, int argc, char **argv)
{
	int ret = options_parse(c, a, argc, argv);

	if (ret >= 0)
		return ret;
	if (a->vm && (a->disk || !a->takes_disk))
		return ret;
	usage_error(a->verb, a->vm ? "no %s given" : "no VM given, vixen list names them", a->takes_disk);
	return EXIT_USAGE;
}

static bool set_argument(void *opaque, const char *v) { return disk_argument(opaque, v); }

static int failed(const struct error *e)
{
	error_print(e);
	return EXIT_FAILED;
}

/* --- list --- */

static bool set_format(void *opaque, const char *v)
{
	struct disk_ask *a = opaque;
	return json_parse(a->verb, v, &a->json);
}

static void row_show(json_t *d)
{
	const char *name = "?", *bus = "?", *format = "?", *path = "?";
	char safe[PATH_MAX];
	json_int_t bytes = 0;
	int readonly = 0, ephemeral = 0;

	json_unpack(d, "{s:s, s:s, s:s, s:s, s:I, s:b, s:b}", "name", &name, "bus", &bus, "format", &format, "path", &path,
		    "size_bytes", &bytes, "readonly", &readonly, "ephemeral", &ephemeral);
	printf("%-8s %-7s %-7s %10.2f GiB  %s%s%s%s\n", name, bus, format, (double)bytes / (1 << 30),
	       plain(safe, sizeof safe, path), readonly ? ", readonly" : "", ephemeral ? ", ephemeral" : "",
	       json_is_true(json_object_get(json_array_get(json_object_get(d, "chain"), 0), "encrypted")) ? ", encrypted" : "");
}

static void job_show(json_t *job)
{
	const char *kind = "?", *target = NULL;
	json_int_t done = 0, total = 0, rate = 0;
	char safe[PATH_MAX], fast[64] = "";
	int ready = 0;
	if (!job)
		return;
	json_unpack(job, "{s:s, s?s, s:I, s:I, s?I, s:b}", "kind", &kind, "target", &target, "done", &done, "total", &total,
		    "rate", &rate, "ready", &ready);
	if (rate)
		size_words(fast, (uint64_t)rate);
	printf("         job     %s%s%s, %d%%%s%s%s%s\n", kind, target ? " to " : "", target ? plain(safe, sizeof safe, target) : "",
	       total ? (int)((double)done * 100 / (double)total) : 0, ready ? ", follows the disk" : "", rate ? ", at most " : "",
	       fast, rate ? " a second" : "");
}

static void bitmaps_show(json_t *bitmaps)
{
	json_t *b;
	size_t i;
	json_array_foreach(bitmaps, i, b) {
		char safe[256], size[64];
		size_words(size, (uint64_t)json_integer_value(json_object_get(b, "dirty_bytes")));
		printf("         bitmap  %s, changed: %s\n",
		       plain(safe, sizeof safe, json_string_value(json_object_get(b, "name"))), size);
	}
}

static void chain_show(json_t *chain)
{
	json_t *layer;
	char safe[PATH_MAX];
	size_t i;

	json_array_foreach(chain, i, layer)
		if (i)
			printf("         on      %s\n", plain(safe, sizeof safe, json_string_value(json_object_get(layer, "path"))));
}

static int disk_list(int argc, char **argv)
{
	static const struct option_row options[] = { { "format", "table|json", "default table", set_format }, { 0 } };
	static const struct command c = { .verb = "disk list", .usage = "disk list VM [--format table|json]",
		.about = "Lists the disks of a virtual machine that runs.", .options = options, .argument = set_argument };
	struct disk_ask a = { .verb = c.verb };
	struct error e = { 0 };
	json_t *result, *disks, *d;
	size_t i;
	int ret = disk_parse(&c, &a, argc, argv);

	if (ret >= 0)
		return ret;
	if (control_ask(a.vm, CONTROL_disk_list, NULL, NULL, NULL, &result, &e))
		return failed(&e);
	disks = json_object_get(result, "disks");
	if (a.json) {
		json_print(json_incref(disks));
	} else {
		printf("%-8s %-7s %-7s %14s  %s\n", "NAME", "BUS", "FORMAT", "SIZE", "FILE");
		json_array_foreach(disks, i, d) {
			row_show(d);
			chain_show(json_object_get(d, "chain"));
			bitmaps_show(json_object_get(d, "bitmaps"));
			job_show(json_object_get(d, "job"));
		}
	}
	json_decref(result);
	return EXIT_OK;
}

/* --- attach: the VM may open no file, so its files are opened and locked here, and handed over --- */

/* Connections to servers, and what TLS needs for them. */
static int servers_add(struct disk_files *f, struct block *b, struct error *e)
{
	struct block_info i;
	int ret = 0;

	for (unsigned depth = 0; !ret && !block_info(b, depth, &i); depth++)
		if (block_path_remote(i.path))
			ret = disk_files_dial(f, i.path, e);
	return ret;
}

/* Its backing files are found by opening it for a look. */
static int files_find(struct disk_files *f, struct loop *l, const struct vm_disk *d, struct error *e)
{
	struct block_options o = { .format = d->format, .flags = BLOCK_READONLY | BLOCK_SHARE };
	struct block_file *list = calloc(CONTROL_FDS_MAX, sizeof *list);
	struct block *b = NULL;
	unsigned n;
	int ret;

	block_secrets(&o, d->key_file, d->nkeys);
	ret = list ? block_open_with(&b, l, d->path, &o, e) : error_errno(e, ENOMEM, NULL, "attach a disk");
	n = ret ? 0 : block_files(b, list, CONTROL_FDS_MAX);
	if (n > CONTROL_FDS_MAX)
		ret = error_set(e, ELOOP, "merge some of them with 'vixen image commit'", "attach a disk", "it has %u files", n);
	for (unsigned i = 0; i < n && !ret; i++)
		ret = disk_files_add(f, list[i].path, block_file_open(list[i].path, !list[i].backing && !d->readonly, e), e);
	if (!ret)
		ret = disk_files_keys(f, b, e);
	if (!ret)
		ret = servers_add(f, b, e);
	block_close(b);
	free(list);
	return ret;
}

static int attach(const char *vm, const struct vm_disk *d, json_t **result, struct error *e)
{
	if (d->ephemeral)
		return error_set(e, ENOTSUP, "attach a linked clone of it (vixen image clone)", "attach a disk",
				 "a running VM can make no file for what would be written to an ephemeral disk");
	struct disk_files f = { 0 };
	int fds[CONTROL_FDS_MAX];
	struct loop *l = loop_new();
	json_t *disk = vm_disk_encode(d);
	int ret = l && disk ? files_find(&f, l, d, e) : error_errno(e, ENOMEM, NULL, "attach a disk");

	if (!ret)
		ret = control_ask_fds(vm, CONTROL_disk_attach, json_pack("{s:O, s:o}", "disk", disk, "files",
				      disk_files_names(&f, fds)), fds, f.n, result, e);
	disk_files_free(&f);
	json_decref(disk);
	if (l)
		loop_free(l);
	return ret;
}

static int disk_attach(int argc, char **argv)
{
	static const struct command c = { .verb = "disk attach", .usage = "disk attach VM " DISK_OPTION_FORM,
		.about = "Plugs a disk into a virtual machine that runs, and prints its name. Options are those of\n"
			 "vixen run --disk, but for ephemeral.", .argument = set_argument };
	struct disk_ask a = { .verb = c.verb, .takes_disk = "file" };
	struct error e = { 0 };
	struct vm_disk d;
	json_t *result;
	const char *name = "?";
	int ret = disk_parse(&c, &a, argc, argv);
	char *text = ret >= 0 ? NULL : strdup(a.disk), *path;

	if (ret >= 0 || !text)
		return text ? EXIT_FAILED : ret;
	if (!disk_option_parse(a.verb, a.disk, text, &d)) {
		free(text);
		return EXIT_USAGE;
	}
	path = block_path_remote(d.path) ? NULL : realpath(d.path, NULL);
	if (path)
		d.path = path;
	ret = attach(a.vm, &d, &result, &e);
	free(path);
	free(text);
	if (ret)
		return failed(&e);
	json_unpack(result, "{s:s}", "name", &name);
	printf("%s\n", name);
	json_decref(result);
	return EXIT_OK;
}

/* --- detach --- */

static bool set_timeout(void *opaque, const char *v)
{
	struct disk_ask *a = opaque;
	uint64_t n;
	if (!number_parse(v, 86400, &n) || !n)
		return usage_error(a->verb, "--timeout '%s' is not a number of seconds from 1 to 86400", v);
	a->seconds = (unsigned)n;
	return true;
}

static int disk_detach(int argc, char **argv)
{
	static const struct option_row options[] = {
		{ "timeout", "SECONDS", "how long the guest may take to give it up (default 10)", set_timeout }, { 0 } };
	static const struct command c = { .verb = "disk detach", .usage = "disk detach VM DISK [--timeout SECONDS]",
		.about = "Asks a virtual machine's guest to give a disk up, and takes it away.", .options = options,
		.argument = set_argument };
	struct disk_ask a = { .verb = c.verb, .takes_disk = "disk", .seconds = DETACH_SECONDS };
	struct error e = { 0 };
	int ret = disk_parse(&c, &a, argc, argv);

	if (ret >= 0)
		return ret;
	ret = control_ask(a.vm, CONTROL_disk_detach, json_pack("{s:s, s:i}", "name", a.disk, "timeout_s", (int)a.seconds), NULL,
			  NULL, NULL, &e);
	return ret ? failed(&e) : EXIT_OK;
}

/* --- throttle --- */

struct throttle_ask { struct disk_ask ask; const char *group; struct vm_limits limits; bool own, job; uint64_t rate_bytes; };

static bool set_limit(struct throttle_ask *t, uint64_t *out, const char *option, const char *v, bool bytes)
{
	t->own |= out != &t->rate_bytes;
	if (disk_limit_parse(out, v, bytes))
		return true;
	return usage_error(t->ask.verb, "--%s '%s' is not a %s, or 0 for no limit", option, v, bytes ? "size such as 10M" : "number");
}
static bool set_iops(void *o, const char *v)
{
	return set_limit(o, &((struct throttle_ask *)o)->limits.iops, "iops", v, false);
}
static bool set_bps(void *o, const char *v)
{
	return set_limit(o, &((struct throttle_ask *)o)->limits.bps, "bps", v, true);
}
static bool set_iops_burst(void *o, const char *v)
{
	return set_limit(o, &((struct throttle_ask *)o)->limits.iops_burst, "iops-burst", v, false);
}
static bool set_bps_burst(void *o, const char *v)
{
	return set_limit(o, &((struct throttle_ask *)o)->limits.bps_burst, "bps-burst", v, true);
}
static bool set_rate(void *o, const char *v)
{
	struct throttle_ask *t = o;
	t->job = true;
	return set_limit(t, &t->rate_bytes, "rate", v, true);
}
static bool set_group(void *o, const char *v)
{
	((struct throttle_ask *)o)->group = v;
	((struct throttle_ask *)o)->ask.takes_disk = NULL;
	return true;
}

static int disk_throttle(int argc, char **argv)
{
	static const struct option_row options[] = {
		{ "iops", "NUMBER", "requests in a second (default 0: no limit)", set_iops },
		{ "bps", "BYTES", "bytes in a second, such as 10M (default 0: no limit)", set_bps },
		{ "iops-burst", "NUMBER", "requests at once after a pause (default: those of a tenth of a second)", set_iops_burst },
		{ "bps-burst", "BYTES", "bytes at once after a pause (default: those of a tenth of a second)", set_bps_burst },
		{ "group", "NAME", "the limits that all disks of this group share; instead of DISK", set_group },
		{ "rate", "BYTES", "what the job on DISK may copy in a second; by itself", set_rate },
		{ 0 } };
	static const struct command c = { .verb = "disk throttle", .usage = "disk throttle VM DISK|--group NAME [OPTIONS]",
		.about = "Sets a disk's limits, or a group's: what is not given is not limited any more. With --rate: how fast the job\n"
			 "on the disk may copy; the disk's own limits do not hold it up, and stay what they are.", .options = options,
		.argument = set_argument };
	struct throttle_ask t = { .ask = { .verb = c.verb, .takes_disk = "disk" } };
	struct error e = { 0 };
	int ret = disk_parse(&c, &t.ask, argc, argv);

	if (ret >= 0)
		return ret;
	if (t.job && (t.own || t.group)) {
		usage_error(c.verb, "--rate is the job's: it does not go with limits of the disk");
		return EXIT_USAGE;
	}
	if (t.job)
		ret = control_ask(t.ask.vm, CONTROL_disk_rate, json_pack("{s:s, s:I}", "disk", t.ask.disk, "rate",
				  (json_int_t)t.rate_bytes), NULL, NULL, NULL, &e);
	else
		ret = control_ask(t.ask.vm, CONTROL_disk_throttle, json_pack("{s:s*, s:s*, s:o}", "name", t.ask.disk, "group", t.group,
			  "limits", vm_limits_encode(&t.limits)), NULL, NULL, NULL, &e);
	return ret ? failed(&e) : EXIT_OK;
}

/* --- the table --- */

static const struct disk_verb { const char *name, *summary; int (*run)(int argc, char **argv); } verbs[] = {
	{ "attach", "plug one in", disk_attach },
	{ "detach", "take one away", disk_detach },
	{ "list", "list them, and the jobs on them", disk_list },
	{ "throttle", "limit what one may take of the host", disk_throttle },
#define DISK_JOB(name, summary) { #name, summary, disk_##name },
	DISK_JOBS
#undef DISK_JOB
};
#define VERBS (sizeof verbs / sizeof *verbs)

static void help(FILE *to)
{
	fprintf(to, "usage: vixen disk COMMAND VM [...]\n\nThe disks of a virtual machine that runs.\n\ncommands:\n");
	for (size_t i = 0; i < VERBS; i++)
		fprintf(to, "  %-10s %s\n", verbs[i].name, verbs[i].summary);
	fprintf(to, "\n'vixen disk COMMAND --help' explains one.\n");
}

int verb_disk(int argc, char **argv)
{
	const char *names[VERBS + 1] = { 0 }, *near;

	if (argc < 2 || !strcmp(argv[1], "--help") || !strcmp(argv[1], "-h")) {
		help(argc < 2 ? stderr : stdout);
		return argc < 2 ? EXIT_USAGE : EXIT_OK;
	}
	for (size_t i = 0; i < VERBS; i++) {
		names[i] = verbs[i].name;
		if (!strcmp(names[i], argv[1]))
			return verbs[i].run(argc - 1, argv + 1);
	}
	near = nearest(argv[1], names);
	usage_error("disk", near ? "'%s' is no command, did you mean '%s'?" : "'%s' is no command", argv[1], near);
	return EXIT_USAGE;
}
