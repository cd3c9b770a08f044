/* vixen image create: an empty disk, or a linked clone of one. */
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "block/block.h"
#include "cli/image_create.h"
#include "cli/image_ready.h"
#include "cli/image_tool.h"
#include "cli/options.h"
#include "cli/passphrase.h"
#include "cli/verb.h"
#include "host/loop.h"

struct create {
	const char *path, *size, *format, *key_file;
	struct ready ready;
	struct block_create c;
};

static bool word_of(const char *option, const char *v, const char *const *names)
{
	for (unsigned i = 0; names[i]; i++)
		if (!strcmp(names[i], v))
			return true;
	return usage_error("image create", "--%s '%s' is not %s or %s", option, v, names[0], names[1]);
}

static bool set_format(void *o, const char *v)
{
	((struct create *)o)->format = v;
	return tool_create_format_parse("image create", "disk-format", v);
}

static bool set_backing_format(void *o, const char *v)
{
	((struct create *)o)->c.backing_format = v;
	return tool_format_parse("image create", "backing-format", v);
}

static bool set_compression(void *o, const char *v)
{
	static const char *const names[] = { "zlib", "zstd", NULL };
	((struct create *)o)->c.zstd = !strcmp(v, "zstd");
	return word_of("compression", v, names);
}

static bool set_cluster(void *o, const char *v)
{
	uint64_t bytes;
	if (!size_parse(v, &bytes) || bytes < 512 || bytes > 2 << 20 || bytes & (bytes - 1))
		return usage_error("image create", "--cluster-size '%s' is not a power of two from 512 to 2M", v);
	((struct create *)o)->c.cluster_bytes = (uint32_t)bytes;
	return true;
}

static bool set_refcount(void *o, const char *v)
{
	uint64_t bits;
	if (!number_parse(v, 64, &bits) || !bits || bits & (bits - 1))
		return usage_error("image create", "--refcount-bits '%s' is not 1, 2, 4, 8, 16, 32 or 64", v);
	((struct create *)o)->c.refcount_bits = (unsigned)bits;
	return true;
}

static bool set_encrypt(void *o, const char *v)
{
	return tool_encrypt_parse("image create", v, &((struct create *)o)->c.encrypt);
}

static bool set_time(void *o, const char *v)
{
	return tool_kdf_parse("image create", v, &((struct create *)o)->c.kdf_ms);
}

static bool set_partition(void *o, const char *v)
{
	static const char *const names[] = { "gpt", "mbr", NULL };
	((struct create *)o)->ready.partition = v;
	return word_of("partition", v, names);
}

static bool set_fs(void *o, const char *v)
{
	((struct create *)o)->ready.fs = v;
	return ready_fs_parse(v);
}

static bool set_label(void *o, const char *v) { ((struct create *)o)->ready.label = v; return true; }
static bool set_content(void *o, const char *v) { ((struct create *)o)->ready.content = v; return true; }
static bool set_preallocation(void *o, const char *v)
{
	static const char *const names[] = { "off", "metadata", "falloc", "full" };
	for (unsigned i = 0; i < 4; i++) {
		if (strcmp(v, names[i]))
			continue;
		((struct create *)o)->c.preallocate = (enum block_preallocate)i;
		return true;
	}
	return usage_error("image create", "--preallocation '%s' is not off, metadata, falloc or full", v);
}

static bool set_subformat(void *o, const char *v) { ((struct create *)o)->c.subformat = v; return true; }
static bool set_key(void *o, const char *v) { ((struct create *)o)->key_file = v; return true; }
static bool set_backing(void *o, const char *v) { ((struct create *)o)->c.backing_path = v; return true; }
static bool set_data_file(void *o, const char *v) { ((struct create *)o)->c.data_path = v; return true; }
static bool set_extended(void *o, const char *v) { (void)v; return ((struct create *)o)->c.extended_l2 = true; }
static bool set_lazy(void *o, const char *v) { (void)v; return ((struct create *)o)->c.lazy_refcounts = true; }
static bool set_force(void *o, const char *v) { (void)v; return ((struct create *)o)->c.overwrite = true; }

static bool set_argument(void *o, const char *v)
{
	struct create *c = o;
	if (!c->path)
		c->path = v;
	else if (!c->size && size_parse(v, &c->c.size_bytes))
		c->size = v;
	else
		return usage_error("image create", c->size ? "'%s' is one argument too many"
				   : "'%s' is not a size such as 512M or 40G", v);
	return true;
}

static const struct option_row create_options[] = {
	{ "disk-format", "FORMAT", "default: qcow2 with a backing file, else by FILE's name, else raw", set_format },
	{ "subformat", "KIND", "vmdk: monolithicSparse or streamOptimized; vhdx, vdi: dynamic or fixed\n"
	  "(default: the first)", set_subformat },
	{ "backing", "FILE", "what the new disk starts as; it must not change afterwards", set_backing },
	{ "backing-format", "FORMAT", "what that is; default: by its name", set_backing_format },
	{ "cluster-size", "SIZE", "qcow2: unit of allocation, 512 to 2M (default 64K)", set_cluster },
	{ "compression", "zlib|zstd", "qcow2: of clusters that are written compressed (default zlib)", set_compression },
	{ "extended-l2", NULL, "qcow2: allocate 32nds of clusters", set_extended },
	{ "lazy-refcounts", NULL, "qcow2: count references when the disk is closed", set_lazy },
	{ "refcount-bits", "N", "qcow2: 1, 2, 4, ... 64 (default 16)", set_refcount },
	{ "data-file", "FILE", "qcow2: put the data there", set_data_file },
	{ "encrypt", "luks1|luks2", "encrypt it; qcow2 takes luks1", set_encrypt },
	{ "key-file", "FILE", "holds the passphrase for that: fd:N, - for stdin; default: asked for", set_key },
	{ "iter-time", "MS", "how long trying the passphrase shall take (default 2000)", set_time },
	{ "partition", "gpt|mbr", "with one partition over all of it", set_partition },
	{ "format", "FS", "with a file system: ext2, ext3, ext4, xfs, btrfs, vfat, swap", set_fs },
	{ "label", "NAME", "of the file system", set_label },
	{ "content", "FOLDER", "what the file system holds at first (ext2 to ext4, btrfs)", set_content },
	{ "preallocation", "off|metadata|falloc|full", "take space at once (default off)", set_preallocation },
	{ "force", NULL, "replace FILE if it is there", set_force },
	{ 0 },
};

static const struct command create_command = {
	.verb = "image create",
	.usage = "image create FILE SIZE [OPTIONS]\n       vixen image create FILE --backing FILE [OPTIONS]",
	.about = "Makes a disk: an empty one, or a linked clone, which shares all data of its backing file until it is\n"
		 "written. A backing file's name is kept as given, relative to where the new file lies. Partitions and file\n"
		 "systems are made by the host's tools, which need no root: sfdisk, mke2fs, mkfs.xfs, mkfs.vfat ...",
	.options = create_options,
	.argument = set_argument,
};

static void choose_format(struct create *c)
{
	if (!c->format)
		c->format = c->c.backing_path ? "qcow2" : tool_format_named(c->path);
	if (c->c.encrypt && !strcmp(c->format, "raw"))
		c->format = "luks";
	if (!strcmp(c->format, "luks") && !c->c.encrypt)
		c->c.encrypt = BLOCK_ENCRYPT_LUKS2;
}

/* The raw disk is made beside the new file, and copied into it. */
static int create_fill(struct create *c, struct loop *l, struct error *e)
{
	char raw[PATH_MAX];
	int ret = 0;
	if (snprintf(raw, sizeof raw, "%s.partial.%d", c->path, (int)getpid()) >= PATH_MAX)
		ret = error_set(e, ENAMETOOLONG, "choose a shorter name", "create a disk", "its path is too long");
	if (!ret)
		ret = ready_make(raw, c->c.size_bytes, &c->ready, e);
	if (!ret)
		ret = ready_copy(l, raw, c->path, c->format, c->c.secret_file, e);
	unlink(raw);
	if (ret)
		unlink(c->path);
	return ret;
}

static int create_run(struct create *c)
{
	struct error e = { 0 };
	char buf[KEY_PATH_BYTES];
	bool named = c->format;
	choose_format(c);
	if (!tool_subformat_good("image create", c->format, c->c.subformat))
		return EXIT_USAGE;
	struct loop *l = loop_new();
	int ret = l ? 0 : error_errno(&e, ENFILE, "raise the limit on open files", "make an event loop");
	if (!ret && c->c.backing_path && !named)
		ret = tool_overlay_named("create a disk", c->path, &e);
	if (!ret && c->c.encrypt)
		ret = key_or_ask(&c->c.secret_file, c->key_file, c->path, true, buf, &e);
	if (!ret)
		ret = block_create(l, c->path, c->format, &c->c, &e);
	if (!ret && (c->ready.partition || c->ready.fs))
		ret = create_fill(c, l, &e);
	if (ret)
		error_print(&e);
	loop_free(l);
	return ret ? EXIT_FAILED : EXIT_OK;
}

int image_create(int argc, char **argv)
{
	struct create c = { 0 };
	int ret = options_parse(&create_command, &c, argc, argv);
	if (ret >= 0)
		return ret;
	if (!c.path)
		usage_error("image create", "no FILE given");
	else if (!c.size && !c.c.backing_path)
		usage_error("image create", "no SIZE given");
	else if (c.size && (!c.c.size_bytes || c.c.size_bytes % 512))
		usage_error("image create", "the size '%s' is not a multiple of 512", c.size);
	else if ((c.ready.label || c.ready.content) && !c.ready.fs)
		usage_error("image create", "a label and content need --format");
	else if ((c.ready.partition || c.ready.fs) && c.c.backing_path)
		usage_error("image create", "a linked clone has its partitions already");
	else
		return create_run(&c);
	return EXIT_USAGE;
}
