/*
 * Ephemeral disks: writes go to an unlinked temporary file of the same layout, and a bitmap says which
 * clusters of 64 KiB have moved there.
 *
 *	base     |AAAA|BBBB|CCCC|DDDD|
 *	overlay  |    |bBBB|    |dddd|     bitmap 0101
 *
 * A write that covers a cluster only in part copies the rest from the base first.  While it does, no other
 * write may enter clusters that have not moved: it waits in a queue.  Reads never wait; until a cluster's bit
 * is set they see the base, as if the write had not happened yet.
 */
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "block/node.h"

#define CLUSTER 65536u

struct overlay {
	struct node *base, *store;	/* NODE_FILE, NODE_DATA */
	uint64_t size_bytes, clusters;
	uint64_t *moved;		/* one bit per cluster */
	struct write *active;		/* writes into clusters that had not moved */
	struct write *waiting, **waiting_tail;
};

static bool has_moved(const struct overlay *o, uint64_t c)
{
	return o->moved[c / 64] >> (c % 64) & 1;
}

static void set_moved(struct overlay *o, uint64_t first, uint64_t last)
{
	for (uint64_t c = first; c <= last; c++)
		o->moved[c / 64] |= 1ull << (c % 64);
}

/* --- reads: split where base and overlay alternate; the pieces run side by side --- */

struct piece {
	struct read *read;
	struct iovec iov[];
};

struct read {
	unsigned left;		/* pieces under way, and one for the splitter */
	int ret;
	block_done_fn *done;
	void *opaque;
};

static void read_put(struct read *r, int ret)
{
	if (ret && !r->ret)
		r->ret = ret;
	if (--r->left)
		return;
	r->done(r->opaque, r->ret);
	free(r);
}

static void piece_done(void *opaque, int ret)
{
	struct piece *p = opaque;
	struct read *r = p->read;

	free(p);
	read_put(r, ret);
}

static uint64_t run_len(const struct overlay *o, uint64_t offset, uint64_t end)
{
	uint64_t c = offset / CLUSTER;
	bool moved = has_moved(o, c);

	while (c * CLUSTER < end && has_moved(o, c) == moved)
		c++;
	return (c * CLUSTER < end ? c * CLUSTER : end) - offset;
}

static void overlay_readv(struct node *n, uint64_t offset, const struct iovec *iov, int iovcnt, block_done_fn *done,
			  void *opaque)
{
	struct overlay *o = n->impl;
	uint64_t end = offset + iov_bytes(iov, iovcnt), at = offset;
	struct read *r = calloc(1, sizeof(*r));
	int ret = 0;

	if (!r) {
		done(opaque, -ENOMEM);
		return;
	}
	r->left = 1;
	r->done = done;
	r->opaque = opaque;
	aio_plug(n->env->aio);
	while (at < end) {
		uint64_t len = run_len(o, at, end);
		struct piece *p = malloc(sizeof(*p) + sizeof(struct iovec) * (size_t)iovcnt);

		if (!p) {
			ret = -ENOMEM;
			break;
		}
		p->read = r;
		r->left++;
		node_readv(has_moved(o, at / CLUSTER) ? o->store : o->base, at, p->iov,
			   iov_cut(p->iov, iov, iovcnt, at - offset, len), piece_done, p);
		at += len;
	}
	aio_unplug(n->env->aio);
	read_put(r, ret);
}

/*
 * --- writes ---
 *
 *	begin ──all clusters moved──────────────────────────────────────▶ data ──▶ end
 *	  │ └──▶ waiting (an active write shares a cluster) ──▶ begin       ▲
 *	  └──▶ active: copy head cluster ──▶ copy tail cluster ─────────────┘
 */
struct write {
	struct overlay *o;
	uint64_t offset, end, first, last;	/* bytes; clusters */
	const struct iovec *iov;
	int iovcnt;
	bool active;
	unsigned stage;		/* 0 head, 1 tail, 2 data */
	uint64_t copying;	/* cluster */
	uint8_t *bounce;
	struct iovec bounce_iov;
	block_done_fn *done;
	void *opaque;
	struct write *next;
};

static void write_begin(struct write *w);
static void write_step(struct write *w);

static void unlink_active(struct overlay *o, struct write *w)
{
	struct write **p = &o->active;

	while (*p != w)
		p = &(*p)->next;
	*p = w->next;
}

static void write_end(struct write *w, int ret)
{
	struct overlay *o = w->o;

	if (!w->active) {
		w->done(w->opaque, ret);
		free(w);
		return;
	}
	if (!ret)
		set_moved(o, w->first, w->last);
	unlink_active(o, w);
	w->done(w->opaque, ret);
	free(w->bounce);
	free(w);
	/* Everybody who waited tries again, in order. */
	w = o->waiting;
	o->waiting = NULL;
	o->waiting_tail = &o->waiting;
	while (w) {
		struct write *next = w->next;

		write_begin(w);
		w = next;
	}
}

static void data_done(void *opaque, int ret)
{
	write_end(opaque, ret);
}

static void copy_written(void *opaque, int ret)
{
	struct write *w = opaque;

	if (ret) {
		write_end(w, ret);
		return;
	}
	set_moved(w->o, w->copying, w->copying);
	write_step(w);
}

static void copy_read(void *opaque, int ret)
{
	struct write *w = opaque;

	if (ret) {
		write_end(w, ret);
		return;
	}
	node_writev(w->o->store, w->copying * CLUSTER, &w->bounce_iov, 1, copy_written, w);
}

static void cluster_copy(struct write *w, uint64_t c)
{
	uint64_t len = w->o->size_bytes - c * CLUSTER;

	if (!w->bounce)
		w->bounce = malloc(CLUSTER);
	if (!w->bounce) {
		write_end(w, -ENOMEM);
		return;
	}
	w->copying = c;
	w->bounce_iov = (struct iovec){ w->bounce, len < CLUSTER ? len : CLUSTER };
	node_readv(w->o->base, c * CLUSTER, &w->bounce_iov, 1, copy_read, w);
}

static bool covers_part(const struct write *w, uint64_t c)
{
	uint64_t end = (c + 1) * CLUSTER < w->o->size_bytes ? (c + 1) * CLUSTER : w->o->size_bytes;

	return w->offset > c * CLUSTER || w->end < end;
}

static void write_step(struct write *w)
{
	while (w->stage < 2) {
		uint64_t c = w->stage++ ? w->last : w->first;

		if (!has_moved(w->o, c) && covers_part(w, c)) {
			cluster_copy(w, c);
			return;
		}
	}
	node_writev(w->o->store, w->offset, w->iov, w->iovcnt, data_done, w);
}

static bool all_moved(const struct write *w)
{
	for (uint64_t c = w->first; c <= w->last; c++)
		if (!has_moved(w->o, c))
			return false;
	return true;
}

/* An active write's clusters may be half moved: whoever touches any of them waits. */
static bool must_wait(const struct write *w)
{
	for (const struct write *a = w->o->active; a; a = a->next)
		if (w->first <= a->last && a->first <= w->last)
			return true;
	return false;
}

static void write_begin(struct write *w)
{
	struct overlay *o = w->o;

	if (all_moved(w)) {
		w->stage = 2;
	} else if (must_wait(w)) {
		w->next = NULL;
		*o->waiting_tail = w;
		o->waiting_tail = &w->next;
		return;
	} else {
		w->active = true;
		w->next = o->active;
		o->active = w;
	}
	write_step(w);
}

static void overlay_writev(struct node *n, uint64_t offset, const struct iovec *iov, int iovcnt, block_done_fn *done,
			   void *opaque)
{
	struct overlay *o = n->impl;
	struct write *w = calloc(1, sizeof(*w));
	uint64_t len = iov_bytes(iov, iovcnt);

	if (!w || !len) {
		free(w);
		done(opaque, len ? -ENOMEM : 0);
		return;
	}
	w->o = o;
	w->offset = offset;
	w->end = offset + len;
	w->first = offset / CLUSTER;
	w->last = (w->end - 1) / CLUSTER;
	w->iov = iov;
	w->iovcnt = iovcnt;
	w->done = done;
	w->opaque = opaque;
	write_begin(w);
}

/* --- life --- */

static int temp_file(void)
{
	const char *dirs[] = { getenv("TMPDIR"), "/var/tmp", "/tmp" };

	for (unsigned i = 0; i < 3; i++) {
		char path[PATH_MAX];
		int fd;

		if (!dirs[i] || !*dirs[i])
			continue;
		fd = open(dirs[i], O_TMPFILE | O_RDWR | O_CLOEXEC | O_EXCL, 0600);
		if (fd >= 0)
			return fd;
		if (snprintf(path, sizeof(path), "%s/vixen-XXXXXX", dirs[i]) >= (int)sizeof(path))
			continue;
		fd = mkostemp(path, O_CLOEXEC);
		if (fd >= 0) {
			unlink(path);
			return fd;
		}
	}
	return -errno;
}

/* Nothing has to be durable: it dies with us. */
static void overlay_flush(struct node *n, block_done_fn *done, void *opaque)
{
	done(opaque, 0);
}

static int overlay_status(struct node *n, uint64_t offset, uint64_t len, struct block_status *out)
{
	struct overlay *o = n->impl;

	len = run_len(o, offset, offset + len);
	if (!has_moved(o, offset / CLUSTER))
		return node_co_status(o->base, offset, len, 0, out);
	*out = (struct block_status){ .len = len, .flags = BLOCK_STATUS_DATA | BLOCK_STATUS_ALLOCATED };
	return 0;
}

static int overlay_close(struct node *n)
{
	struct overlay *o = n->impl;

	free(o->moved);
	free(o);
	n->impl = NULL;
	return 0;
}

const struct node_ops overlay_ops = {
	.name = "overlay", .filter = true, .readv = overlay_readv, .writev = overlay_writev, .flush = overlay_flush,
	.co_status = overlay_status, .co_close = overlay_close,
};

static int store_new(struct node *n, uint64_t size_bytes, struct error *e)
{
	const char *todo = "point TMPDIR at a directory with space";
	int fd = temp_file();

	if (fd < 0)
		return error_errno(e, -fd, todo, "create a temporary file for an ephemeral disk");
	if (ftruncate(fd, (off_t)size_bytes) < 0) {
		int err = errno;

		close(fd);
		return error_errno(e, err, todo, "create a temporary file for an ephemeral disk");
	}
	return file_node_from_fd(&n->child[NODE_DATA], n->env, fd, n->path, e);
}

int overlay_new(struct node **out, struct node *base, struct error *e)
{
	struct node *n = node_new(base->env, &overlay_ops, base->path);
	struct overlay *o = calloc(1, sizeof(*o));
	int ret = n && o ? 0 : error_errno(e, ENOMEM, NULL, "create an ephemeral disk");

	if (!ret) {
		o->clusters = (base->size_bytes + CLUSTER - 1) / CLUSTER;
		o->moved = calloc((o->clusters + 63) / 64, sizeof(*o->moved));
		ret = o->moved ? store_new(n, base->size_bytes, e)
			       : error_errno(e, ENOMEM, NULL, "create an ephemeral disk");
	}
	if (ret) {
		if (o)
			free(o->moved);
		free(o);
		node_co_close(n);
		return ret;
	}
	n->impl = o;
	n->size_bytes = o->size_bytes = base->size_bytes;
	n->limits.cluster = CLUSTER;
	n->child[NODE_FILE] = o->base = base;
	o->store = n->child[NODE_DATA];
	o->waiting_tail = &o->waiting;
	*out = n;
	return 0;
}
