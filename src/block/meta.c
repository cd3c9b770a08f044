/* Operations on a disk's metadata: each alone on the disk, with requests held back meanwhile. */
#include <errno.h>
#include <limits.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "block/block_private.h"
#include "block/guard.h"
#include "block/job.h"

struct job {
	struct block *b;
	int (*fn)(struct job *j);
	uint64_t size_bytes;
	unsigned flags;			/* of resize, repair of check */
	const char *snapshot;
	const struct block_key *key;
	struct block_snapshot **list;
	unsigned *count;
	struct block_check *check;
	struct block_bitmap **bitmaps;
	const struct block_bitmap_change *change;
	struct error *e;
};

static int job_main(void *opaque)
{
	struct job *j = opaque;
	int ret;

	block_co_hold(j->b);
	ret = j->fn(j);
	block_release(j->b);
	return ret;
}

static int job_run(struct block *b, int (*fn)(struct job *j), struct job j)
{
	j.b = b;
	j.fn = fn;
	return block_do(b->env, job_main, &j);
}

/* For what only looks, beside all else. */
static int beside_main(void *opaque)
{
	struct job *j = opaque;

	return j->fn(j);
}

static int job_beside(struct block *b, int (*fn)(struct job *j), struct job j)
{
	j.b = b;
	j.fn = fn;
	return block_do(b->env, beside_main, &j);
}

static struct node *target(struct job *j)
{
	return node_below_filters(j->b->root);
}

static int writable(struct job *j, const char *verb)
{
	const struct node *n = j->b->root;
	char what[192];

	if (!n->readonly && !n->ops->filter)
		return 0;
	snprintf(what, sizeof(what), "%s disk '%.150s'", verb, n->path);
	if (node_is_guard(n))
		return error_set(j->e, EBUSY, "wait for its end, or cancel it", what, "a job on it is under way");
	return error_set(j->e, EROFS, "open it for writing", what, n->readonly ? "it is read-only" : "it is ephemeral");
}

static int unsupported(struct job *j, const char *verb)
{
	char what[192];

	snprintf(what, sizeof(what), "%s disk '%.150s'", verb, j->b->root->path);
	return error_set(j->e, EOPNOTSUPP, "convert it to qcow2", what, "a %s image has no such thing",
			 target(j)->ops->name);
}

/* --- resize --- */

#define TAIL_BYTES (1u << 20)

/* The first byte that is not zero in a stretch of data, or its end. */
static int data_look(struct node *n, uint64_t *at, uint64_t end, uint8_t *buf)
{
	int ret = 0;

	while (*at < end) {
		size_t len = end - *at < TAIL_BYTES ? (size_t)(end - *at) : TAIL_BYTES;

		ret = node_co_read(n, *at, buf, len);
		if (ret || !job_all_zero(buf, len))
			break;
		*at += len;
	}
	return ret;
}

/* Is all zero from *at to the end?  *at: else where it is not. */
static int tail_look(struct node *n, uint64_t *at, bool *empty)
{
	uint8_t *buf = malloc(TAIL_BYTES);
	int ret = buf ? 0 : -ENOMEM;

	for (*empty = true; *at < n->size_bytes && *empty && !ret;) {
		struct block_status st;
		uint64_t end;

		ret = node_co_status(n, *at, n->size_bytes - *at, UINT_MAX, &st);
		end = *at + st.len;
		if (!ret && (st.flags & BLOCK_STATUS_ZERO || !(st.flags & BLOCK_STATUS_ALLOCATED)))
			*at = end;
		else if (!ret)
			ret = data_look(n, at, end, buf);
		*empty = *at == end;
	}
	free(buf);
	return ret;
}

static int shrink_good(struct job *j, const char *what)
{
	uint64_t at = j->size_bytes;
	bool empty;
	int ret;

	if (!(j->flags & BLOCK_SHRINK))
		return error_set(j->e, EINVAL, "add --shrink if its end is not in use", what, "it would get smaller");
	if (!(j->flags & BLOCK_SHRINK_EMPTY))
		return 0;
	ret = tail_look(j->b->root, &at, &empty);
	if (ret)
		return error_errno(j->e, -ret, NULL, "%s", what);
	return empty ? 0 : error_set(j->e, ENOTEMPTY, "zero or discard its end first, or add --force to lose what is there", what,
				     "there is data past the new end, at byte %llu", (unsigned long long)at);
}

static int resize(struct job *j)
{
	struct node *n = j->b->root;
	char what[192];
	int ret = writable(j, "resize");

	snprintf(what, sizeof(what), "resize disk '%.150s'", n->path);
	if (ret)
		return ret;
	if (!j->size_bytes || j->size_bytes % SECTOR || j->size_bytes > INT64_MAX)
		return error_set(j->e, EINVAL, NULL, what, "%llu bytes is no size for a disk: a multiple of 512, "
				 "from 512 on", (unsigned long long)j->size_bytes);
	if (j->size_bytes < n->size_bytes)
		ret = shrink_good(j, what);
	if (ret || j->size_bytes == n->size_bytes)
		return ret;
	j->b->shrunk |= j->size_bytes < n->size_bytes;
	return node_co_resize(n, j->size_bytes, j->flags & BLOCK_SHRINK, j->e);
}

int block_resize(struct block *b, uint64_t size_bytes, unsigned flags, struct error *e)
{
	return job_run(b, resize, (struct job){ .size_bytes = size_bytes, .flags = flags, .e = e });
}

/* --- snapshots --- */

static int snapshot_list(struct job *j)
{
	struct node *n = target(j);

	*j->list = NULL;
	*j->count = 0;
	return n->ops->co_snapshot_list ? n->ops->co_snapshot_list(n, j->list, j->count, j->e)
					: unsupported(j, "list snapshots of");
}

static int snapshot_change(struct job *j, const char *verb,
			   int (*fn)(struct node *n, const char *snapshot, struct error *e))
{
	int ret = writable(j, verb);

	if (ret)
		return ret;
	return fn ? fn(j->b->root, j->snapshot, j->e) : unsupported(j, verb);
}

static int snapshot_create(struct job *j)
{
	return snapshot_change(j, "snapshot", j->b->root->ops->co_snapshot_create);
}

static int snapshot_apply(struct job *j)
{
	return snapshot_change(j, "revert", j->b->root->ops->co_snapshot_apply);
}

static int snapshot_delete(struct job *j)
{
	return snapshot_change(j, "delete a snapshot of", j->b->root->ops->co_snapshot_delete);
}

int block_snapshot_list(struct block *b, struct block_snapshot **list, unsigned *n, struct error *e)
{
	return job_run(b, snapshot_list, (struct job){ .list = list, .count = n, .e = e });
}

int block_snapshot_create(struct block *b, const char *name, struct error *e)
{
	return job_run(b, snapshot_create, (struct job){ .snapshot = name, .e = e });
}

int block_snapshot_apply(struct block *b, const char *snapshot, struct error *e)
{
	return job_run(b, snapshot_apply, (struct job){ .snapshot = snapshot, .e = e });
}

int block_snapshot_delete(struct block *b, const char *snapshot, struct error *e)
{
	return job_run(b, snapshot_delete, (struct job){ .snapshot = snapshot, .e = e });
}

/* --- bitmaps --- */

static int bitmap_list(struct job *j)
{
	struct node *n = target(j);

	*j->bitmaps = NULL;
	*j->count = 0;
	return n->ops->co_bitmap_list ? n->ops->co_bitmap_list(n, j->bitmaps, j->count, j->e)
				      : unsupported(j, "list bitmaps of");
}

static int bitmap_change(struct job *j)
{
	struct node *n = j->b->root;
	int ret = writable(j, "change a bitmap of");

	if (ret)
		return ret;
	return n->ops->co_bitmap_change ? n->ops->co_bitmap_change(n, j->change, j->e)
					: unsupported(j, "change a bitmap of");
}

int block_bitmap_list(struct block *b, struct block_bitmap **list, unsigned *n, struct error *e)
{
	return job_beside(b, bitmap_list, (struct job){ .bitmaps = list, .count = n, .e = e });
}

static int change_run(struct block *b, struct block_bitmap_change c, struct error *e)
{
	return job_run(b, bitmap_change, (struct job){ .change = &c, .e = e });
}

int block_bitmap_add(struct block *b, const char *name, uint32_t granularity, struct error *e)
{
	return change_run(b, (struct block_bitmap_change){ BITMAP_ADD, name, .granularity = granularity }, e);
}

int block_bitmap_remove(struct block *b, const char *name, struct error *e)
{
	return change_run(b, (struct block_bitmap_change){ BITMAP_REMOVE, name }, e);
}

int block_bitmap_clear(struct block *b, const char *name, struct error *e)
{
	return change_run(b, (struct block_bitmap_change){ BITMAP_CLEAR, name }, e);
}

int block_bitmap_merge(struct block *b, const char *name, const char *source, struct error *e)
{
	return change_run(b, (struct block_bitmap_change){ BITMAP_MERGE, name, source }, e);
}

/* Waits only where the bits are not in memory: nobody changes such an image. */
int block_co_bitmap_at(struct block *b, const char *name, uint64_t offset, uint64_t len, bool *changed, uint64_t *out)
{
	struct node *n = node_below_filters(b->root);

	return n->ops->co_bitmap_at ? n->ops->co_bitmap_at(n, name, offset, len, changed, out) : -ENOENT;
}

/* --- keys --- */

static int key_change(struct job *j)
{
	struct node *n = target(j);
	int ret = writable(j, "change the passphrases of");
	char what[192];

	if (ret || n->ops->co_key)
		return ret ? ret : n->ops->co_key(n, j->key, j->e);
	snprintf(what, sizeof(what), "change the passphrases of disk '%.150s'", n->path);
	return error_set(j->e, EOPNOTSUPP, "convert it with --encrypt", what, "it is not encrypted");
}

int block_key_change(struct block *b, const struct block_key *k, struct error *e)
{
	return job_run(b, key_change, (struct job){ .key = k, .e = e });
}

/* --- check, info --- */

static int check(struct job *j)
{
	struct node *n = target(j);
	int ret = j->flags ? writable(j, "repair") : 0;

	if (ret)
		return ret;
	return n->ops->co_check ? n->ops->co_check(n, j->flags, j->check, j->e) : unsupported(j, "check");
}

int block_check(struct block *b, unsigned repair, struct block_check *c, struct error *e)
{
	return job_run(b, check, (struct job){ .flags = repair, .check = c, .e = e });
}

void block_info_extra(struct block_info *i, const char *key, const char *fmt, ...)
{
	va_list args;

	if (i->nextra == sizeof(i->extra) / sizeof(i->extra[0]))
		return;
	snprintf(i->extra[i->nextra].key, sizeof(i->extra[0].key), "%s", key);
	va_start(args, fmt);
	vsnprintf(i->extra[i->nextra].value, sizeof(i->extra[0].value), fmt, args);
	va_end(args);
	i->nextra++;
}

int block_info(struct block *b, unsigned depth, struct block_info *out)
{
	struct node *n = node_below_filters(b->root), *file;
	int ret = 0;

	while (depth-- && n)
		n = n->child[NODE_BACKING] ? node_below_filters(n->child[NODE_BACKING]) : NULL;
	if (!n)
		return -ENOENT;
	*out = (struct block_info){ .format = n->ops->name, .path = n->path, .size_bytes = n->size_bytes,
				    .cluster_bytes = n->limits.cluster };
	file = n->child[NODE_FILE];
	if (file && file->ops->info)
		ret = file->ops->info(file, out);
	return !ret && n->ops->info ? n->ops->info(n, out) : ret;
}
