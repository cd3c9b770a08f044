/*
 * What a qcow2 layer says of its backing file, changed in place.
 *
 *	| fixed fields | backing format | other extensions | end |  ...  | name |	all inside the first cluster
 *	'------------------ the first sector -------------------'
 *
 * The new name is put where nothing is in use and made durable; then the first sector, which names it, is written.  A
 * sector reaches the disk whole: so a cut leaves the old header or the new one.  For that the extensions have to fit
 * into the sector; the table of feature names, which only explains, gives way first.  Where they do not fit even so,
 * the header is written in one go.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "block/block_private.h"
#include "block/job.h"
#include "block/qcow2/bitmap.h"

#define EXT_BACKING_FORMAT 0xe2792acau
#define EXT_FEATURE_NAMES 0x6803f857u
#define EXT_BITMAPS 0x23852875u
#define NAME_MAX_BYTES 1023u
#define EXT_HEAD 8u

struct rewrite {
	struct qcow2 *q;
	uint8_t *old, *new;
	size_t cluster, old_end;	/* old_end: of the old extensions and name */
	size_t at, name_at;
	bool feature_names;
	const uint8_t *bitmaps;		/* the extension; NULL: as it is */
	size_t bitmaps_len;		/* 0: none */
	uint64_t autoclear;
	const char *path, *format;
};

static size_t padded(size_t len)
{
	return (len + 7) & ~(size_t)7;
}

static bool put(struct rewrite *r, uint32_t type, const void *data, size_t len)
{
	if (r->at + EXT_HEAD + padded(len) > r->cluster)
		return false;
	store_be32(r->new + r->at, type);
	store_be32(r->new + r->at + 4, (uint32_t)len);
	if (len)
		memcpy(r->new + r->at + EXT_HEAD, data, len);
	r->at += EXT_HEAD + padded(len);
	return true;
}

static bool kept(const struct rewrite *r, uint32_t type)
{
	return type != EXT_BACKING_FORMAT && (type != EXT_BITMAPS || !r->bitmaps) && (type != EXT_FEATURE_NAMES || r->feature_names);
}

/* They were checked when the image was opened, but are the file's content all the same. */
static int copy_extensions(struct rewrite *r)
{
	uint64_t name = load_be64(r->old + 8), name_end = name ? name + load_be32(r->old + 16) : 0;
	size_t at = r->q->h.length, end = name && name < r->cluster ? (size_t)name : r->cluster;

	while (at + EXT_HEAD <= end) {
		uint32_t type = load_be32(r->old + at), len = load_be32(r->old + at + 4);

		if (!type) {
			at += EXT_HEAD;
			break;
		}
		if (len > end - at - EXT_HEAD)
			return -EINVAL;
		if (kept(r, type) && !put(r, type, r->old + at + EXT_HEAD, len))
			return -ENAMETOOLONG;
		at += EXT_HEAD + padded(len);
	}
	r->old_end = at < end ? at : end;
	if (name_end > r->old_end && name_end <= r->cluster)
		r->old_end = (size_t)name_end;
	return 0;
}

/* In the first sector if there is room, else where neither header has anything. */
static int place_name(struct rewrite *r)
{
	size_t n = r->path ? strlen(r->path) : 0, free_at = padded(r->old_end > SECTOR ? r->old_end : SECTOR);

	store_be64(r->new + 8, 0);
	store_be32(r->new + 16, 0);
	if (!n)
		return 0;
	if (r->at + n <= SECTOR || (r->at > SECTOR && r->at + n <= r->cluster) || free_at + n > r->cluster)
		r->name_at = r->at;
	else
		r->name_at = free_at;
	if (r->name_at + n > r->cluster)
		return -ENAMETOOLONG;
	store_be64(r->new + 8, r->name_at);
	store_be32(r->new + 16, (uint32_t)n);
	memcpy(r->new + r->name_at, r->path, n);
	return 0;
}

static int compose(struct rewrite *r, bool feature_names)
{
	int ret;

	memset(r->new, 0, r->cluster);
	memcpy(r->new, r->old, r->q->h.length);
	r->at = r->q->h.length;
	r->feature_names = feature_names;
	if (r->path && r->format && !put(r, EXT_BACKING_FORMAT, r->format, strlen(r->format)))
		return -ENAMETOOLONG;
	if (r->bitmaps && r->bitmaps_len && !put(r, EXT_BITMAPS, r->bitmaps, r->bitmaps_len))
		return -ENAMETOOLONG;
	if (r->bitmaps)
		store_be64(r->new + H_AUTOCLEAR, r->autoclear);
	ret = copy_extensions(r);
	if (!ret && !put(r, 0, NULL, 0))
		ret = -ENAMETOOLONG;
	return ret ? ret : place_name(r);
}

static int write_header(struct rewrite *r)
{
	struct node *file = r->q->file;
	size_t n = r->path ? strlen(r->path) : 0;
	int ret = 0;

	if (r->at > SECTOR || (r->name_at < SECTOR && r->name_at + n > SECTOR)) {
		ret = node_co_write(file, 0, r->new, r->cluster);
	} else {
		if (n && r->name_at >= SECTOR)
			ret = node_co_write(file, r->name_at, r->new + r->name_at, n);
		if (!ret)
			ret = node_co_flush(file);
		if (!ret)
			ret = node_co_write(file, 0, r->new, SECTOR);
	}
	return ret ? ret : node_co_flush(file);
}

static void adopt(struct rewrite *r)
{
	struct header *h = &r->q->h;
	char *path = r->path ? strdup(r->path) : NULL, *format = r->path && r->format ? strdup(r->format) : NULL;

	memcpy(r->q->head, r->new, SECTOR);
	free(h->backing_path);
	free(h->backing_format);
	h->backing_path = path;
	h->backing_format = format;
}

static int rewrite(struct rewrite r)
{
	struct qcow2 *q = r.q;
	int ret;

	r.cluster = q->cluster_bytes;

	r.old = calloc(1, r.cluster);
	r.new = calloc(1, r.cluster);
	ret = r.old && r.new ? qcow2_commit(q) : -ENOMEM;
	if (!ret)
		ret = node_co_read(q->file, 0, r.old, r.cluster);
	if (!ret)
		ret = compose(&r, true);
	if ((!ret && r.at > SECTOR) || ret == -ENAMETOOLONG)
		ret = compose(&r, false);
	if (!ret)
		ret = write_header(&r);
	if (!ret)
		adopt(&r);
	free(r.old);
	free(r.new);
	return ret;
}

/* The names stay as they are. */
int header_set_bitmaps(struct qcow2 *q, uint32_t n, uint64_t dir_bytes, uint64_t dir_offset, uint64_t autoclear)
{
	struct rewrite r = { .q = q, .path = q->h.backing_path, .format = q->h.backing_format, .autoclear = autoclear };
	uint8_t ext[24] = { 0 };
	int ret;

	store_be32(ext, n);
	store_be64(ext + 8, dir_bytes);
	store_be64(ext + 16, dir_offset);
	r.bitmaps = ext;
	r.bitmaps_len = n ? sizeof(ext) : 0;
	ret = rewrite(r);
	if (ret)
		return ret;
	q->h.nbitmaps = n;
	q->h.bitmap_dir_bytes = dir_bytes;
	q->h.bitmap_dir_offset = dir_offset;
	q->h.autoclear = autoclear;
	return 0;
}

int node_co_set_backing(struct node *n, const char *path, const char *format)
{
	return n->ops == qcow2_driver.ops ? rewrite((struct rewrite){ .q = n->impl, .path = path, .format = format })
					  : -EOPNOTSUPP;
}

struct naming {
	struct block *b;
	const char *path, *format;
	struct error *e;
};

static struct qcow2 *layer(struct block *b)
{
	struct node *n = node_below_filters(b->root);

	return n->ops == qcow2_driver.ops ? n->impl : NULL;
}

static int naming_main(void *opaque)
{
	struct naming *m = opaque;
	struct block *b = m->b;
	char what[192];
	int ret;

	snprintf(what, sizeof(what), "rebase disk '%.150s'", b->root->path);
	if (b->root->readonly || b->root->ops->filter)
		return error_set(m->e, EROFS, "open it for writing", what, "it is read-only");
	if (!layer(b))
		return error_set(m->e, EOPNOTSUPP, "convert it to qcow2", what, "a %s image has no backing file",
				 block_format(b));
	if (m->path && (!*m->path || strlen(m->path) > NAME_MAX_BYTES))
		return error_set(m->e, ENAMETOOLONG, "use a relative name", what,
				 "the name of its backing file is empty or too long");
	if (m->path && layer(b)->h.autoclear & AUTOCLEAR_DATA_RAW)
		return error_set(m->e, EINVAL, NULL, what, "its data file is raw, and cannot have a backing file");
	block_co_hold(b);
	ret = rewrite((struct rewrite){ .q = layer(b), .path = m->path, .format = m->format });
	block_release(b);
	return ret ? error_errno(m->e, -ret, ret == -ENAMETOOLONG ? "use a shorter name" : NULL, "%s", what) : 0;
}

int block_set_backing(struct block *b, const char *path, const char *format, struct error *e)
{
	struct naming m = { b, path, format, e };

	return block_do(b->env, naming_main, &m);
}

int block_co_empty(struct block *b)
{
	struct qcow2 *q = layer(b);
	uint64_t end = (b->root->size_bytes + SECTOR - 1) & ~(uint64_t)(SECTOR - 1);
	int ret;

	if (!q || b->root->readonly)
		return q ? -EROFS : -EOPNOTSUPP;
	block_co_hold(b);
	end = (end + q->cluster_bytes - 1) & ~(uint64_t)(q->cluster_bytes - 1);
	ret = clusters_forget(q, 0, end, false, false);
	if (!ret)
		ret = qcow2_commit(q);
	block_release(b);
	return ret;
}

bool block_zeroes_hide(struct block *b)
{
	const struct qcow2 *q = layer(b);

	return q && q->h.version > 2;
}
