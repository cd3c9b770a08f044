/* Which formats and protocols there are, and how stacks of nodes are built from paths. */
#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "block/node.h"

const struct driver *const block_drivers[] = {
	&file_driver, &raw_driver, &qcow2_driver, &luks_driver, &vdi_driver, &vhdx_driver, &vmdk_driver,
	&nbd_driver, &nbd_unix_driver, &nbds_driver, &nbds_unix_driver, NULL
};

static bool is_protocol(const struct driver *d)
{
	return d->prefix || d == &file_driver;
}

const struct driver *driver_find(const char *name)
{
	for (const struct driver *const *d = block_drivers; *d; d++)
		if (!strcmp((*d)->name, name))
			return *d;
	return NULL;
}

static const struct driver *protocol_of(const char *path)
{
	for (const struct driver *const *d = block_drivers; *d; d++)
		if ((*d)->prefix && !strncmp(path, (*d)->prefix, strlen((*d)->prefix)))
			return *d;
	return &file_driver;
}

bool block_path_remote(const char *path)
{
	return protocol_of(path) != &file_driver;
}

char *node_path_relative(const char *base, const char *path)
{
	const char *slash = strrchr(base, '/');
	char *out = NULL;

	if (*path == '/' || !slash || block_path_remote(path))
		return strdup(path);
	return asprintf(&out, "%.*s%s", (int)(slash + 1 - base), base, path) < 0 ? NULL : out;
}

/* --- what format? --- */

static bool offers(const struct driver *d, bool create)
{
	return !is_protocol(d) && (create ? !!d->co_create : !!d->co_open);
}

bool block_format_known(const char *name, bool create)
{
	const struct driver *d = driver_find(name);

	return d && offers(d, create);
}

const char *const *block_subformats(const char *format)
{
	const struct driver *d = driver_find(format);

	return d ? d->subformats : NULL;
}

void block_format_names(char *out, size_t size, bool create, const char *between)
{
	size_t at = 0;

	*out = 0;
	for (const struct driver *const *d = block_drivers; *d && at < size; d++)
		if (offers(*d, create))
			at += (size_t)snprintf(out + at, size - at, "%s%s", at ? between : "", (*d)->name);
}

static bool has_suffix(const char *path, const char *suffix)
{
	size_t n = strlen(path), m = suffix ? strlen(suffix) : 0;

	return m && n > m && !strcmp(path + n - m, suffix);
}

static int format_named(const struct driver **out, const char *path, const char *name, struct error *e)
{
	char what[192], list[128];

	*out = driver_find(name);
	if (*out && offers(*out, false))
		return 0;
	block_format_names(list, sizeof(list), false, ", ");
	snprintf(what, sizeof(what), "open disk '%.150s'", path);
	return error_set(e, EINVAL, "use one of the formats named, after a conversion if need be", what,
			 "format '%s' is not supported (%s)", name, list);
}

/* What a raw disk holds is the guest's choice, so content alone decides nothing: see block.h. */
static int format_probed(const struct driver **out, const struct node *file, const struct node_open *how,
			 const uint8_t *head, size_t len, struct error *e)
{
	char what[192], todo[256];
	bool local = !block_path_remote(file->path);	/* a server may show the content of a file so named */

	*out = &raw_driver;
	snprintf(what, sizeof(what), "open disk '%.150s'", file->path);
	for (const struct driver *const *d = block_drivers; *d; d++) {
		bool named = local && has_suffix(file->path, (*d)->suffix);

		if (!(*d)->probe || ((*d)->plain_too && !named && !(how->o->flags & BLOCK_PROBE)))
			continue;
		if ((*d)->probe(head, len, file->size_bytes)) {
			*out = *d;
			if (!(*d)->co_open)
				return error_set(e, EINVAL, "convert it to raw or qcow2 first, or add ,format=raw if the "
						 "guest itself shall see the file as its disk", what,
						 "it is a %s image, which cannot be used as a disk", (*d)->name);
			if (named || how->o->flags & BLOCK_PROBE)
				return 0;
			snprintf(todo, sizeof(todo), "add ,format=%s if it is one of your images, or ,format=raw if the "
				 "guest itself shall see the %s file as its disk", (*d)->name, (*d)->name);
			return error_set(e, EINVAL, todo, what, "it is a %s image, or a guest made its raw disk look "
					 "like one", (*d)->name);
		}
		if (named && !(how->o->flags & BLOCK_PROBE))
			return error_set(e, EINVAL, "add ,format=raw if it is a raw image", what,
					 "the name says %s, the content does not", (*d)->name);
	}
	return 0;
}

static int format_of(const struct driver **out, struct node *file, const struct node_open *how, struct error *e)
{
	uint8_t head[NODE_PROBE_BYTES];
	size_t len = file->size_bytes < sizeof(head) ? (size_t)file->size_bytes : sizeof(head);
	int ret;

	if (how->o->format)
		return format_named(out, file->path, how->o->format, e);
	ret = node_co_read(file, 0, head, len);
	if (ret)
		return error_errno(e, -ret, NULL, "read disk '%s'", file->path);
	return format_probed(out, file, how, head, len, e);
}

/* --- stacks --- */

int node_co_open_protocol(struct node **out, struct block_env *env, const char *path, const struct node_open *how,
			  struct error *e)
{
	const struct driver *d = protocol_of(path);
	struct node *n = node_new(env, d->ops, path);
	int ret;

	if (!n)
		return error_errno(e, ENOMEM, NULL, "open disk '%s'", path);
	n->readonly = how->readonly;
	ret = d->co_open(n, how, e);
	if (ret) {
		node_co_close(n);
		return ret;
	}
	*out = n;
	return 0;
}

int node_co_open(struct node **out, struct block_env *env, const char *path, const struct node_open *how,
		 struct error *e)
{
	const struct driver *d;
	struct node *file, *n;
	int ret = node_co_open_protocol(&file, env, path, how, e);

	if (ret)
		return ret;
	ret = format_of(&d, file, how, e);
	n = ret ? NULL : node_new(env, d->ops, path);
	if (!ret && !n)
		ret = error_errno(e, ENOMEM, NULL, "open disk '%s'", path);
	if (ret) {
		node_co_close(file);
		return ret;
	}
	n->child[NODE_FILE] = file;
	n->readonly = how->readonly;
	ret = d->co_open(n, how, e);
	if (ret) {
		node_co_close(n);
		return ret;
	}
	*out = n;
	return 0;
}

/* Same file by name, or by device and inode where both are files. */
static bool same_file(const char *a, const char *b)
{
	struct stat x, y;

	if (!strcmp(a, b))
		return true;
	return !stat(a, &x) && !stat(b, &y) && x.st_dev == y.st_dev && x.st_ino == y.st_ino;
}

static int chain_good(const struct node *n, const struct node_open *how, const char *path, struct error *e)
{
	char what[192];

	snprintf(what, sizeof(what), "open disk '%.150s'", n->path);
	if (how->depth >= NODE_DEPTH_MAX)
		return error_set(e, ELOOP, "merge some of them with 'vixen image commit'", what,
				 "more than %u backing files", NODE_DEPTH_MAX);
	for (const struct node_open *h = how; h; h = h->above)
		if (same_file(h->path, path))
			return error_set(e, ELOOP, "give the right backing file: 'vixen image rebase'", what,
					 "its backing files form a loop through '%.100s'", path);
	return 0;
}

int node_co_open_backing(struct node *n, const struct node_open *how, const char *named, const char *format,
			 struct error *e)
{
	const struct block_options *mine = how->o;
	struct block_options o = mine->backing ? *mine->backing : (struct block_options){ 0 };
	struct node_open below = { .o = &o, .depth = how->depth + 1, .readonly = true, .above = how, .secret = how->secret };
	char *path;
	int ret;

	if (mine->flags & BLOCK_NO_BACKING)
		return 0;
	path = mine->backing_path ? strdup(mine->backing_path) : node_path_relative(n->path, named);
	if (!path)
		return error_errno(e, ENOMEM, NULL, "open disk '%s'", n->path);
	if (!o.format && !mine->backing_path)
		o.format = format;
	if (!o.nfds) {
		o.fds = mine->fds;
		o.nfds = mine->nfds;
	}
	if (!o.secret_file) {
		o.secret_file = mine->secret_file;
		o.more_secrets = mine->more_secrets;
		o.nmore_secrets = mine->nmore_secrets;
		below.encrypted = how->encrypted + n->encrypted;
	}
	o.flags |= mine->flags & (BLOCK_SHARE | BLOCK_PROBE | BLOCK_FDS_ONLY | BLOCK_LOCKED);
	below.path = path;
	ret = chain_good(n, how, path, e);
	if (!ret)
		ret = node_co_open(&n->child[NODE_BACKING], n->env, path, &below, e);
	free(path);
	return ret;
}
