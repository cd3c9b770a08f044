/* vixen disk: jobs on the disks of a VM that runs. Their files are made and opened here, as the VM may do neither. */
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "block/block.h"
#include "cli/control_client.h"
#include "cli/disk.h"
#include "cli/disk_files.h"
#include "cli/disk_option.h"
#include "cli/image_tool.h"
#include "cli/options.h"
#include "cli/passphrase.h"
#include "cli/verb.h"
#include "host/loop.h"

#define ARGS 5u
#define EX_USAGE_ERROR 10000	/* no errno: told already */

struct ask {
	const char *verb;
	const char *arg[ARGS];		/* VM, DISK, what else there is */
	const char *to, *bitmap, *backing, *internal, *size, *key_file, *base;
	bool incremental, pivot, follow, background, plain, shrink, force;
	enum block_encryption encrypt;
	unsigned kdf_ms;
	uint64_t rate_bytes;
	uint32_t granularity;
	/* while it runs */
	json_t *disk;			/* of the list; a reference */
	json_t *arguments;
	char target[PATH_MAX];
	bool made;			/* target is a file that we made */
	struct disk_files files;	/* what goes along */
	bool interrupted;
	struct progress progress;
	struct error e;
};

/* --- options --- */

static bool set_argument(void *o, const char *v)
{
	return tool_argument(((struct ask *)o)->verb, v, ((struct ask *)o)->arg, ARGS);
}
static bool set_to(void *o, const char *v)
{
	struct ask *a = o;
	a->to = v;
	return !strcmp(v, "raw") || !strcmp(v, "qcow2") || usage_error(a->verb, "--to '%s' is not raw or qcow2", v);
}
static bool set_granularity(void *o, const char *v)
{
	struct ask *a = o;
	uint64_t bytes;
	if (!size_parse(v, &bytes) || bytes < 512 || bytes > 1u << 31 || bytes & (bytes - 1))
		return usage_error(a->verb, "--granularity '%s' is not a power of two from 512 to 2G", v);
	a->granularity = (uint32_t)bytes;
	return true;
}
static bool set_encrypt(void *o, const char *v)
{
	struct ask *a = o;
	return tool_encrypt_parse(a->verb, v, &a->encrypt);
}
static bool set_key(void *o, const char *v) { ((struct ask *)o)->key_file = v; return true; }
static bool set_time(void *o, const char *v) { return tool_kdf_parse(((struct ask *)o)->verb, v, &((struct ask *)o)->kdf_ms); }
static bool set_rate(void *o, const char *v)
{
	struct ask *a = o;
	return disk_limit_parse(&a->rate_bytes, v, true) || usage_error(a->verb, "--rate '%s' is not a size such as 10M", v);
}
static bool set_plain(void *o, const char *v) { (void)v; return ((struct ask *)o)->plain = true; }
static bool set_bitmap(void *o, const char *v) { ((struct ask *)o)->bitmap = v; return true; }
static bool set_base(void *o, const char *v) { ((struct ask *)o)->base = v; return true; }
static bool set_backing(void *o, const char *v) { ((struct ask *)o)->backing = v; return true; }
static bool set_internal(void *o, const char *v) { ((struct ask *)o)->internal = v; return true; }
static bool set_incremental(void *o, const char *v) { (void)v; return ((struct ask *)o)->incremental = true; }
static bool set_pivot(void *o, const char *v) { (void)v; return ((struct ask *)o)->pivot = true; }
static bool set_follow(void *o, const char *v) { (void)v; return ((struct ask *)o)->follow = true; }
static bool set_shrink(void *o, const char *v) { (void)v; return ((struct ask *)o)->shrink = true; }
static bool set_force(void *o, const char *v) { (void)v; return ((struct ask *)o)->force = true; }
static bool set_background(void *o, const char *v) { (void)v; return ((struct ask *)o)->background = true; }

#define BACKGROUND { "background", NULL, "do not wait for its end: vixen disk list shows how far it is", set_background }
#define RATE { "rate", "BYTES", "copy at most so much in a second, such as 10M; vixen disk throttle changes it", set_rate }
#define PLAIN { "plain", NULL, "what was encrypted may be kept unencrypted", set_plain }
#define ENCRYPT \
	{ "encrypt", "luks1|luks2", "encrypt FILE; qcow2 takes luks1", set_encrypt }, \
	{ "key-file", "FILE", "holds its passphrase: fd:N, - for stdin; default: asked for", set_key }, \
	{ "iter-time", "MS", "how long trying it shall take (default 2000)", set_time }, PLAIN
#define TO { "to", "raw|qcow2", "what FILE shall be; default: qcow2 if its name ends in .qcow2, else raw", set_to }

static const struct option_row backup_options[] = {
	{ "bitmap", "NAME", "begin this dirty bitmap at the moment of the backup", set_bitmap },
	{ "incremental", NULL, "copy only what --bitmap says has changed", set_incremental },
	{ "backing", "FILE", "of an incremental backup: the backup before it", set_backing },
	TO, ENCRYPT, RATE, BACKGROUND, { 0 },
};
static const struct option_row mirror_options[] = {
	{ "pivot", NULL, "change over to FILE at the end", set_pivot },
	{ "follow", NULL, "go on writing to both until vixen disk complete", set_follow },
	TO, ENCRYPT, RATE, BACKGROUND, { 0 },
};
static const struct option_row job_options[] = { PLAIN, RATE, BACKGROUND, { 0 } };
static const struct option_row commit_options[] = {
	{ "base", "FILE", "the backing file to go on in, with all above it (default: the next)", set_base },
	PLAIN, RATE, BACKGROUND, { 0 },
};
static const struct option_row snapshot_options[] = {
	{ "internal", "NAME", "inside the image, instead of a new one", set_internal },
	ENCRYPT, { 0 },
};
static const struct option_row resize_options[] = {
	{ "shrink", NULL, "it may get smaller, if nothing but zeroes lies past the new end", set_shrink },
	{ "force", NULL, "with --shrink: and whatever lies there is lost", set_force },
	{ 0 },
};
static const struct option_row bitmap_options[] = {
	{ "granularity", "SIZE", "add: bytes for each bit (default 64K)", set_granularity },
	{ 0 },
};

/* --- the VM's disks --- */

static int disks_get(struct ask *a, json_t **out)
{
	json_t *result = NULL;
	int ret = control_ask(a->arg[0], CONTROL_disk_list, NULL, NULL, NULL, &result, &a->e);
	if (ret)
		return ret;
	*out = json_incref(json_object_get(result, "disks"));
	json_decref(result);
	return 0;
}

static bool is_disk(json_t *d, const char *name)
{
	const char *path = json_string_value(json_object_get(d, "path")), *slash = path ? strrchr(path, '/') : NULL;
	const char *own = json_string_value(json_object_get(d, "name"));
	if (own && (!strcmp(own, name) || (!strncmp(own, "disk", 4) && !strcmp(own + 4, name))))
		return true;
	return (path && !strcmp(path, name)) || (slash && !strcmp(slash + 1, name));
}

/* What the VM says of the disk that is meant; whether that is clear is for the VM to say. */
static int disk_get(struct ask *a)
{
	json_t *list = NULL, *d;
	size_t i;
	int ret = disks_get(a, &list);
	json_array_foreach(list, i, d)
		if (!a->disk && is_disk(d, a->arg[1]))
			a->disk = json_incref(d);
	json_decref(list);
	if (!ret && !a->disk)
		return error_set(&a->e, ENOENT, "see vixen disk list", "find the disk", "there is no disk '%.100s'", a->arg[1]);
	return ret;
}

/* --- files that go along --- */

/* name: what the VM calls it. */
static int file_open(struct ask *a, const char *name, bool locked)
{
	int fd = locked ? block_file_open(a->target, true, &a->e)
			: open(a->target, O_RDWR | O_CLOEXEC | O_NOCTTY | O_NONBLOCK);
	if (fd < 0 && !locked)
		return error_errno(&a->e, errno, "check its permissions", "open '%s'", a->target);
	return disk_files_add(&a->files, name, fd, &a->e);
}

static bool named_qcow2(const char *path)
{
	return !strcmp(tool_format_named(path), "qcow2");
}

static int absolute(struct ask *a, const char *path)
{
	char here[PATH_MAX];
	if (*path == '/')
		here[0] = 0;
	else if (!getcwd(here, sizeof here))
		return error_errno(&a->e, errno, NULL, "find the current folder");
	if (snprintf(a->target, PATH_MAX, "%s%s%s", here, *here ? "/" : "", path) >= PATH_MAX)
		return error_set(&a->e, ENAMETOOLONG, "use a shorter one", a->verb, "the path is too long");
	return 0;
}

/* A path of the VM's, which may have been started in another folder; NULL: there is no such file. */
static const char *vm_file(const struct ask *a, const char *path, char out[PATH_MAX])
{
	const char *folder = json_string_value(json_object_get(a->disk, "folder"));
	if (!path || (*path != '/' && !folder) ||
	    snprintf(out, PATH_MAX, "%s%s%s", *path == '/' ? "" : folder, *path == '/' ? "" : "/", path) >= PATH_MAX)
		return NULL;
	return access(out, F_OK) ? NULL : out;
}

/* The VM gets the volume key: it could derive none. */
static int keys_open(struct ask *a, struct loop *l, const struct block_create *c)
{
	const struct block_options o = { .format = a->to, .flags = BLOCK_NO_BACKING, .secret_file = c->secret_file };
	struct block *b;
	int ret = block_open_with(&b, l, a->target, &o, &a->e);
	if (ret)
		return ret;
	ret = disk_files_keys(&a->files, b, &a->e);
	block_close(b);
	return ret;
}

static int file_make(struct ask *a, const struct block_create *c)
{
	struct loop *l = loop_new();
	int ret = l ? block_create(l, a->target, a->to, c, &a->e)
		    : error_errno(&a->e, ENFILE, "raise the limit on open files", "make an event loop");
	a->made = !ret;
	if (!ret && c->encrypt)
		ret = keys_open(a, l, c);
	loop_free(l);
	return ret ? ret : file_open(a, a->target, true);
}

/* --- what is encrypted --- */

static bool layer_encrypted(const struct ask *a, size_t i)
{
	return json_is_true(json_object_get(json_array_get(json_object_get(a->disk, "chain"), i), "encrypted"));
}

static bool any_encrypted(const struct ask *a)
{
	size_t n = json_array_size(json_object_get(a->disk, "chain"));
	for (size_t i = 0; i < n; i++)
		if (layer_encrypted(a, i))
			return true;
	return false;
}

/* What was encrypted gets into the open only when that is said. */
static int plain_good(struct ask *a, bool leaks, const char *what, const char *todo)
{
	if (!leaks || a->plain)
		return 0;
	return error_set(&a->e, EPERM, todo, a->verb, "the disk is encrypted, and %s", what);
}

static int encryption_choose(struct ask *a, struct block_create *c, char buf[KEY_PATH_BYTES])
{
	int ret;
	if (a->encrypt && !strcmp(a->to, "raw"))
		a->to = "luks";
	if (!strcmp(a->to, "luks") && !a->encrypt)
		a->encrypt = BLOCK_ENCRYPT_LUKS2;
	ret = plain_good(a, any_encrypted(a) && !a->encrypt, "the copy would not be",
			 "add --encrypt luks1 or luks2, or --plain if others may read it");
	c->encrypt = a->encrypt;
	c->kdf_ms = a->kdf_ms;
	if (!ret && a->encrypt)
		ret = key_or_ask(&c->secret_file, a->key_file, a->target, true, buf, &a->e);
	return ret;
}

/* FILE: a server's address, or a new file of the disk's size. */
static int target_make(struct ask *a, const char *file, const char *backing, const char *backing_format)
{
	struct block_create c = { .backing_path = backing, .backing_format = backing_format };
	char buf[KEY_PATH_BYTES];
	int ret;
	c.size_bytes = (uint64_t)json_integer_value(json_object_get(a->disk, "size_bytes"));
	if (block_path_remote(file)) {
		a->to = "raw";
		snprintf(a->target, sizeof a->target, "%s", file);
		ret = a->encrypt ? error_set(&a->e, ENOTSUP, "use a file", a->verb, "what is on a server is not encrypted by us") :
		      plain_good(a, any_encrypted(a), "what a server gets is not",
				 "add --plain if others may read it, or use a file with --encrypt");
		if (!ret)
			ret = disk_files_dial(&a->files, file, &a->e);
	} else {
		if (!a->to)
			a->to = backing ? "qcow2" : tool_format_named(file);
		ret = absolute(a, file);
		if (!ret && backing)
			ret = tool_overlay_named(a->verb, file, &a->e);
		if (!ret && block_subformats(a->to))	/* formats that are written whole, in one go */
			ret = error_set(&a->e, EINVAL, "add --to raw or qcow2, and convert it afterwards", a->verb,
					"a disk in use cannot be copied to a %s image", a->to);
		if (!ret)
			ret = encryption_choose(a, &c, buf);
		if (!ret)
			ret = file_make(a, &c);
	}
	json_object_set_new(a->arguments, "target", json_text(a->target));
	json_object_set_new(a->arguments, "format", json_string(a->to));
	return ret;
}

/* --- asking --- */

static void on_progress(void *opaque, uint64_t done, uint64_t total)
{
	progress_step(&((struct ask *)opaque)->progress, done, total);
}

static void say_left(const struct ask *a)
{
	char safe[PATH_MAX];
	if (a->made)
		fprintf(stderr, "vixen: '%s' is left over and of no use; remove it\n", plain(safe, sizeof safe, a->target));
}

static int ask_vm(struct ask *a, enum control_verb verb)
{
	int fds[CONTROL_FDS_MAX];
	struct control_want w = { .verb = verb, .arguments = a->arguments, .fds = fds, .nfds = a->files.n,
				  .interrupt_fd = stop_signals_open(), .interrupted = &a->interrupted,
				  .end_verb = CONTROL_disk_cancel, .progress = on_progress, .opaque = a };
	int ret;
	json_object_set_new(a->arguments, "files", disk_files_names(&a->files, fds));
	w.end_arguments = json_pack("{s:s}", "disk", a->arg[1]);
	progress_begin(&a->progress);
	a->arguments = NULL;
	ret = control_ask_for(a->arg[0], &w, NULL, &a->e);
	json_decref(w.end_arguments);
	if (w.interrupt_fd >= 0)
		close(w.interrupt_fd);
	progress_end(&a->progress);
	return ret;
}

static int finish(struct ask *a, int ret)
{
	disk_files_free(&a->files);
	json_decref(a->disk);
	json_decref(a->arguments);
	if (!ret)
		return EXIT_OK;
	error_print(&a->e);
	say_left(a);
	return ret == -ECANCELED && a->interrupted ? EXIT_INTERRUPTED : EXIT_FAILED;
}

/* --- the commands --- */

static int wrong_use(bool told) { return told ? 0 : -EX_USAGE_ERROR; }

static int do_backup(struct ask *a)
{
	int ret;
	if (a->incremental && (!a->bitmap || !a->backing))
		return wrong_use(usage_error(a->verb, "--incremental needs --bitmap and --backing"));
	if (a->backing && !a->incremental)
		return wrong_use(usage_error(a->verb, "--backing is for --incremental"));
	ret = target_make(a, a->arg[2], a->backing, a->backing ? named_qcow2(a->backing) ? "qcow2" : "raw" : NULL);
	if (a->bitmap)
		json_object_set_new(a->arguments, "bitmap", json_text(a->bitmap));
	json_object_set_new(a->arguments, "incremental", json_boolean(a->incremental));
	return ret ? ret : ask_vm(a, CONTROL_disk_backup);
}

static int do_mirror(struct ask *a)
{
	int ret = target_make(a, a->arg[2], NULL, NULL);
	json_object_set_new(a->arguments, "pivot", json_boolean(a->pivot));
	json_object_set_new(a->arguments, "follow", json_boolean(a->follow));
	return ret ? ret : ask_vm(a, CONTROL_disk_mirror);
}

static int do_stream(struct ask *a)
{
	int ret = plain_good(a, any_encrypted(a) && !layer_encrypted(a, 0), "its topmost image is not",
			     "add --plain if others may read it");
	return ret ? ret : ask_vm(a, CONTROL_disk_stream);
}

static int do_snapshot(struct ask *a)
{
	const char *path = json_string_value(json_object_get(a->disk, "path")), *below, *format;
	char full[PATH_MAX];
	int ret;
	if (!a->internal == !a->arg[2])
		return wrong_use(usage_error(a->verb, "give a FILE or --internal"));
	if (a->internal) {
		json_object_set_new(a->arguments, "name", json_text(a->internal));
		return ask_vm(a, CONTROL_disk_snapshot);
	}
	format = json_string_value(json_object_get(a->disk, "format"));
	below = path && block_path_remote(path) ? path : vm_file(a, path, full);
	if (!below)
		return error_set(&a->e, ENOENT, "give it back its name", a->verb, "'%.150s' is not there",
				 path ? path : "the disk's image");
	a->to = "qcow2";
	ret = target_make(a, a->arg[2], below, format);
	return ret ? ret : ask_vm(a, CONTROL_disk_snapshot);
}

/* Which layer it is that the disk shall go on in; 0: there is none so called.  Without a name: the next. */
static size_t base_find(struct ask *a, json_t *chain)
{
	size_t n = json_array_size(chain);
	char full[PATH_MAX];
	for (size_t i = 1; i < n; i++) {
		const char *path = json_string_value(json_object_get(json_array_get(chain, i), "path")), *slash;
		if (!a->base)
			return i;
		slash = path ? strrchr(path, '/') : NULL;
		if (path && (!strcmp(path, a->base) || (slash && !strcmp(slash + 1, a->base)) ||
			     (vm_file(a, path, full) && same_file(full, a->base))))
			return i;
	}
	return 0;
}

static int commit_open(struct ask *a, const char *path)
{
	if (block_path_remote(path))
		return 0;
	if (!vm_file(a, path, a->target))
		return error_set(&a->e, ENOENT, "give it back its name", a->verb, "'%.150s' is not there", path);
	return file_open(a, path, false);
}

/* The path has to be the one by which the VM knows it. */
static int do_commit(struct ask *a)
{
	json_t *chain = json_object_get(a->disk, "chain");
	size_t layers = base_find(a, chain);
	const char *path = json_string_value(json_object_get(json_array_get(chain, layers), "path"));
	bool secret = false;
	int ret;
	if (!layers || !path)
		return error_set(&a->e, EINVAL, a->base ? "see vixen disk list" : NULL, a->verb, "%s",
				 a->base ? "the file is none of its backing files" : "the disk has no backing file");
	for (size_t i = 0; i < layers; i++)
		secret |= layer_encrypted(a, i);
	ret = plain_good(a, secret && !layer_encrypted(a, layers), "its backing file is not", "add --plain if others may read it");
	if (!ret)
		ret = commit_open(a, path);
	json_object_set_new(a->arguments, "target", json_text(path));
	json_object_set_new(a->arguments, "layers", json_integer((json_int_t)layers));
	ret = ret ? ret : ask_vm(a, CONTROL_disk_commit);
	for (size_t i = 0; i < layers && !ret && !a->background; i++)
		fprintf(stderr, "vixen: '%s' is not needed any more; remove it\n",
			json_string_value(json_object_get(json_array_get(chain, i), "path")));
	return ret;
}

static int do_resize(struct ask *a)
{
	bool more = *a->arg[2] == '+';
	uint64_t bytes;
	if (!size_parse(a->arg[2] + more, &bytes) || bytes % 512)
		return wrong_use(usage_error(a->verb, "'%s' is not a size, a multiple of 512", a->arg[2]));
	if (a->force && !a->shrink)
		return wrong_use(usage_error(a->verb, "--force is for --shrink"));
	if (more)
		bytes += (uint64_t)json_integer_value(json_object_get(a->disk, "size_bytes"));
	json_object_set_new(a->arguments, "size_bytes", json_integer((json_int_t)bytes));
	json_object_set_new(a->arguments, "shrink", json_boolean(a->shrink));
	json_object_set_new(a->arguments, "force", json_boolean(a->force));
	return ask_vm(a, CONTROL_disk_resize);
}

static int do_complete(struct ask *a) { return ask_vm(a, CONTROL_disk_complete); }
static int do_cancel(struct ask *a) { return ask_vm(a, CONTROL_disk_cancel); }

/* arg: VM, DISK, what, NAME, SOURCE */
static int do_bitmap(struct ask *a)
{
	static const char *const names[] = { "add", "remove", "clear", "merge", NULL };
	const char *near = NULL;
	unsigned i = 0;
	while (names[i] && strcmp(names[i], a->arg[2]))
		i++;
	if (!names[i]) {
		near = nearest(a->arg[2], names);
		return wrong_use(usage_error(a->verb, "no such command '%s'%s%s", a->arg[2], near ? ", did you mean " : "",
				   near ? near : ""));
	}
	if (!a->arg[4] != !!strcmp(a->arg[2], "merge"))
		return wrong_use(usage_error(a->verb, "merge, and merge alone, takes a SOURCE"));
	json_object_set_new(a->arguments, "action", json_string(a->arg[2]));
	json_object_set_new(a->arguments, "bitmap", json_text(a->arg[3]));
	if (a->arg[4])
		json_object_set_new(a->arguments, "name", json_text(a->arg[4]));
	json_object_set_new(a->arguments, "size_bytes", json_integer((json_int_t)a->granularity));
	return ask_vm(a, CONTROL_disk_bitmap);
}

/* --- the table --- */

static const struct subcommand {
	const char *name;
	unsigned least, most;		/* arguments */
	int (*run)(struct ask *a);	/* 0 or -errno */
	struct command command;
} subcommands[] = {
#define USE(text) "disk " text
	{ "backup", 3, 3, do_backup,
	  { "disk backup", USE("backup VM DISK FILE [OPTIONS]"),
	    "Copies what a disk holds at this moment to a new file, or to an NBD server. The guest goes on. With --bitmap the\n"
	    "image, a qcow2 one, records what changes from then on, for an incremental backup: a qcow2 file that names the\n"
	    "backup before it as its backing file and so reads as the whole disk. To restore, convert or clone the last one.",
	    backup_options } },
	{ "mirror", 3, 3, do_mirror,
	  { "disk mirror", USE("mirror VM DISK FILE [OPTIONS]"),
	    "Copies a disk to a new file, or to an NBD server, while the guest goes on writing to it. It ends when both hold\n"
	    "the same.", mirror_options } },
	{ "stream", 2, 2, do_stream,
	  { "disk stream", USE("stream VM DISK [--background]"),
	    "Copies what the backing files hold into the disk's image, which then needs none. A machine that was started on an\n"
	    "overlay on a backup is restored by it while it runs.", job_options } },
	{ "snapshot", 2, 3, do_snapshot,
	  { "disk snapshot", USE("snapshot VM DISK FILE\n       vixen disk snapshot VM DISK --internal NAME"),
	    "Keeps what the disk holds at this moment: its image stays as it is, and the machine goes on in a new one on top of\n"
	    "it. Use that one from then on.", snapshot_options } },
	{ "commit", 2, 2, do_commit,
	  { "disk commit", USE("commit VM DISK [--base FILE] [OPTIONS]"),
	    "Writes what the disk's image holds into its backing file, or what all images above --base hold into that, and the\n"
	    "machine goes on in it.", commit_options } },
	{ "resize", 3, 3, do_resize,
	  { "disk resize", USE("resize VM DISK [+]SIZE [--shrink [--force]]"),
	    "Makes a disk larger, or with --shrink smaller; the guest sees it at once. What is on it has to be made smaller\n"
	    "first.", resize_options } },
	{ "bitmap", 4, 5, do_bitmap,
	  { "disk bitmap", USE("bitmap VM DISK add|remove|clear NAME\n       vixen disk bitmap VM DISK merge NAME SOURCE"),
	    "What vixen image bitmap does, on a machine that runs. vixen disk list shows them.", bitmap_options } },
	{ "complete", 2, 2, do_complete,
	  { "disk complete", USE("complete VM DISK"), "Ends a mirror that was started with --follow: both hold the same.", NULL } },
	{ "cancel", 2, 2, do_cancel,
	  { "disk cancel", USE("cancel VM DISK"), "Ends the job on a disk early. The disk stays what it is.", NULL } },
#undef USE
};

static bool enough(const struct subcommand *s, const struct ask *a)
{
	unsigned n = 0;
	while (n < ARGS && a->arg[n])
		n++;
	if (n >= s->least && n <= s->most)
		return true;
	const char *form = s->command.usage + strlen("disk ") + strlen(s->name) + 1;
	return usage_error(s->command.verb, "it takes %.*s", (int)strcspn(form, "\n"), form);
}

static int run(const struct subcommand *s, int argc, char **argv)
{
	struct command c = s->command;
	struct ask a = { .verb = c.verb };
	int ret;
	c.argument = set_argument;
	ret = options_parse(&c, &a, argc, argv);
	if (ret >= 0)
		return ret;
	if (!enough(s, &a))
		return EXIT_USAGE;
	ret = disk_get(&a);
	a.arguments = json_pack("{s:s, s:b, s:I}", "disk", a.arg[1], "detach", a.background, "rate", (json_int_t)a.rate_bytes);
	if (!ret)
		ret = s->run(&a);
	if (ret == -EX_USAGE_ERROR) {
		json_decref(a.disk);
		json_decref(a.arguments);
		return EXIT_USAGE;
	}
	return finish(&a, ret);
}

static int job_run(const char *name, int argc, char **argv)
{
	const struct subcommand *s = subcommands;
	while (strcmp(s->name, name))
		s++;
	return run(s, argc, argv);
}

#define DISK_JOB(name, summary) int disk_##name(int argc, char **argv) { return job_run(#name, argc, argv); }
DISK_JOBS
#undef DISK_JOB
