/* vixen image clone: a new image that shares all it has not written itself with the old one. */
#include <errno.h>
#include <fcntl.h>
#include <libgen.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "cli/catalog.h"
#include "cli/image_tool.h"
#include "cli/options.h"
#include "cli/verb.h"

struct clone {
	const char *arg[2], *format;	/* IMAGE or FILE, NEW */
	uint64_t size_bytes;
	struct image src;
	char dir[PATH_MAX], partial[PATH_MAX];	/* of the new image in the catalog, and while it is made */
	struct tool *t;
};

static bool set_format(void *o, const char *v)
{
	((struct clone *)o)->format = v;
	return tool_format_parse("image clone", "disk-format", v);
}
static bool set_size(void *o, const char *v)
{
	uint64_t *bytes = &((struct clone *)o)->size_bytes;
	return (size_parse(v, bytes) && *bytes && *bytes % 512 == 0) ||
	       usage_error("image clone", "--size '%s' is not a size such as 40G", v);
}
static bool set_argument(void *o, const char *v)
{
	return tool_argument("image clone", v, ((struct clone *)o)->arg, 2);
}

static const struct option_row clone_options[] = {
	{ "size", "SIZE", "of the new disk, no less than the old one's (default: the same)", set_size },
	{ "disk-format", "FORMAT", "what FILE is; default: by its name", set_format },
	{ 0 },
};

static const struct command clone_command = {
	.verb = "image clone", .usage = "image clone IMAGE|FILE NEW [--size SIZE] [--disk-format FORMAT]",
	.about = "Makes a linked clone: a disk that starts as the old one and takes space only for what it writes itself.\n"
		 "The old one must not be written to, nor removed, as long as there are clones. A clone of an image in the\n"
		 "catalog is an image in the catalog, unless NEW has a slash: then it is a file.",
	.options = clone_options, .argument = set_argument,
};

/* --- the disk --- */

/* Looks at the old disk, under its lock: nobody writes to it now. */
static int source_look(struct clone *c, char format[32])
{
	struct block *b;
	int ret = tool_open(c->t, &b, c->src.disk, c->format, BLOCK_READONLY | BLOCK_LOCKED, "--disk-format");
	if (ret)
		return ret;
	snprintf(format, 32, "%s", block_format(b));
	if (c->size_bytes && c->size_bytes < block_size(b))
		ret = error_set(&c->t->e, EINVAL, "clone it as large as it is", "clone the image",
				"the new disk would be smaller than the old one");
	if (!c->size_bytes)
		c->size_bytes = block_size(b);
	return tool_close(c->t, b, ret);
}

static int disk_make(struct clone *c, const char *path, const char *backing)
{
	char format[32];
	int ret = source_look(c, format);
	struct block_create create = { .size_bytes = c->size_bytes, .backing_path = backing, .backing_format = format };
	return ret ? ret : block_create(c->t->loop, path, "qcow2", &create, &c->t->e);
}

/* --- a file --- */

/* Beside the old one its name is enough, so that both can be moved together. */
static int clone_file(struct clone *c)
{
	char src[PATH_MAX], copy[PATH_MAX], dir[PATH_MAX], *name;
	if (!realpath(c->src.disk, src))
		return error_errno(&c->t->e, errno, "check the path", "open '%s'", c->src.disk);
	snprintf(copy, sizeof copy, "%s", c->arg[1]);
	if (!realpath(dirname(copy), dir))
		return error_errno(&c->t->e, errno, "check the path", "create '%s'", c->arg[1]);
	name = strrchr(src, '/') + 1;
	size_t len = (size_t)(name - src - 1);
	bool beside = strlen(dir) == (len ? len : 1) && !strncmp(dir, src, len ? len : 1);
	int ret = tool_overlay_named("clone the image", c->arg[1], &c->t->e);
	return ret ? ret : disk_make(c, c->arg[1], beside ? name : src);
}

/* --- an image of the catalog --- */

static int copy_bytes(int from, int to)
{
	char buf[65536];
	ssize_t n;
	while ((n = read(from, buf, sizeof buf)) > 0)
		for (ssize_t at = 0, put; at < n; at += put)
			if ((put = write(to, buf + at, (size_t)(n - at))) <= 0)
				return put ? -errno : -EIO;
	return n ? -errno : fsync(to) ? -errno : 0;
}

/* Kernels are shared by a hard link, or copied where that cannot be: they are only ever replaced as a whole. */
static int file_share(struct clone *c, const char *from, const char *name)
{
	char to[PATH_MAX];
	if (!*from)
		return 0;
	if (snprintf(to, sizeof to, "%s/%s", c->partial, name) >= PATH_MAX)
		return error_set(&c->t->e, ENAMETOOLONG, NULL, "clone the image", "its path is too long");
	if (!link(from, to))
		return 0;
	int in = open(from, O_RDONLY | O_CLOEXEC), out = open(to, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0644);
	int ret = in < 0 || out < 0 ? -errno : copy_bytes(in, out);
	if (in >= 0)
		close(in);
	if (out >= 0 && close(out) && !ret)
		ret = -errno;
	return ret ? error_errno(&c->t->e, -ret, "is there space on the host's disk?", "copy '%s'", from) : 0;
}

static int meta_write(struct clone *c, const char *base)
{
	char path[PATH_MAX];
	json_t *meta = NULL;
	int ret = -1;
	if (snprintf(path, sizeof path, "%s/meta.json", c->src.dir) < PATH_MAX)
		meta = json_load_file(path, 0, NULL);
	if (!json_is_object(meta)) {
		json_decref(meta);
		meta = json_object();
	}
	json_object_set_new(meta, "name", json_text(c->arg[1]));
	json_object_set_new(meta, "base", json_text(base));
	errno = EIO;
	if (snprintf(path, sizeof path, "%s/meta.json", c->partial) < PATH_MAX)
		ret = json_dump_file(meta, path, JSON_INDENT(2));
	json_decref(meta);
	return ret ? error_errno(&c->t->e, errno, "is there space on the host's disk?", "write '%s'", path) : 0;
}

static void partial_remove(const struct clone *c)
{
	static const char *const files[] = { "disk.qcow2", "vmlinuz", "initrd", "meta.json" };
	char path[PATH_MAX];
	for (size_t i = 0; i < sizeof files / sizeof *files; i++)
		if (snprintf(path, sizeof path, "%s/%s", c->partial, files[i]) < PATH_MAX)
			unlink(path);
	if (rmdir(c->partial) && errno != ENOENT)
		fprintf(stderr, "vixen: remove '%s' failed: %s; remove it yourself\n", c->partial, strerror(errno));
}

/* An image of the same catalog is named relative to the new one, so that the catalog can be moved. */
static int backing_name(struct clone *c, const char *catalog, char out[PATH_MAX], bool *inside)
{
	char dir[PATH_MAX], base[PATH_MAX], *name;
	if (!realpath(c->src.disk, out) || !realpath(c->src.dir, dir) || !realpath(catalog, base))
		return error_errno(&c->t->e, errno, "check the path", "open '%s'", c->src.disk);
	name = strrchr(dir, '/');
	size_t len = (size_t)(name - dir);
	*inside = strlen(base) == len && !strncmp(dir, base, len);
	if (*inside && snprintf(out, PATH_MAX, "..%s/%s", name, strrchr(c->src.disk, '/') + 1) >= PATH_MAX)
		return error_set(&c->t->e, ENAMETOOLONG, NULL, "clone the image", "its path is too long");
	return 0;
}

static int directory_fill(struct clone *c, const char *catalog)
{
	char backing[PATH_MAX], disk[PATH_MAX];
	bool inside = false;
	int ret = backing_name(c, catalog, backing, &inside);
	if (!ret && snprintf(disk, sizeof disk, "%s/disk.qcow2", c->partial) >= PATH_MAX)
		ret = error_set(&c->t->e, ENAMETOOLONG, NULL, "clone the image", "its path is too long");
	if (!ret)
		ret = disk_make(c, disk, backing);
	if (!ret)
		ret = file_share(c, c->src.kernel, "vmlinuz");
	if (!ret)
		ret = file_share(c, c->src.initrd, "initrd");
	return ret ? ret : meta_write(c, inside ? c->src.name : c->src.dir);
}

static bool name_good(const char *v)
{
	return *v && *v != '.' && *v != '-' && strlen(v) < 100 && !strstr(v, ".partial.") && !strstr(v, ".old.");
}

static int clone_image(struct clone *c)
{
	char catalog[PATH_MAX];
	struct error *e = &c->t->e;
	int ret = catalog_dir(catalog, e);
	if (!ret && !name_good(c->arg[1]))
		ret = error_set(e, EINVAL, "choose another one", "clone the image", "'%s' cannot be the name of an image",
				c->arg[1]);
	if (!ret && (snprintf(c->dir, PATH_MAX, "%s/%s", catalog, c->arg[1]) >= PATH_MAX ||
		     snprintf(c->partial, PATH_MAX, "%s.partial.%d", c->dir, (int)getpid()) >= PATH_MAX))
		ret = error_set(e, ENAMETOOLONG, NULL, "clone the image", "its path is too long");
	if (!ret && !access(c->dir, F_OK))
		ret = error_set(e, EEXIST, "choose another name", "clone the image", "there is an image '%s' already", c->arg[1]);
	if (!ret && mkdir(c->partial, 0755))
		ret = error_errno(e, errno, "check the permissions of its parents", "make '%s'", c->partial);
	if (ret)
		return ret;
	ret = directory_fill(c, catalog);
	if (!ret && rename(c->partial, c->dir))
		ret = error_errno(e, errno, "choose another name", "name the image '%s'", c->arg[1]);
	if (ret)
		partial_remove(c);
	return ret;
}

static int clone_run(struct clone *c)
{
	int ret = catalog_find(&c->src, c->arg[0], &c->t->e);
	bool image = !ret && c->src.dir[0] && !strchr(c->arg[1], '/');
	if (!ret)
		ret = image ? clone_image(c) : clone_file(c);
	if (!ret && image)
		printf("made %s; start it with: vixen run %s\n", c->dir, c->arg[1]);
	return ret;
}

int image_clone(int argc, char **argv)
{
	struct clone c = { 0 };
	struct tool t;
	int ret = options_parse(&clone_command, &c, argc, argv);
	if (ret >= 0)
		return ret;
	if (!c.arg[1]) {
		usage_error("image clone", c.arg[0] ? "no NEW given" : "no IMAGE given");
		return EXIT_USAGE;
	}
	c.t = &t;
	ret = tool_init(&t, "image clone", true);
	if (!ret)
		ret = clone_run(&c);
	return tool_fini(&t, ret);
}
