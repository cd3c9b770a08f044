/* Jobs that make a running disk's chain one layer longer or shorter. */
#include <errno.h>
#include <stdlib.h>

#include "block/block_private.h"
#include "block/live_copy.h"
#include "block/live_mirror.h"

/* --- external snapshot --- */

static int snapshot_good(const struct block *b, const struct block *overlay, struct error *e)
{
	const char *what = "take a snapshot of the disk";
	const struct node *top = overlay->root;

	if (node_is_guard(b->root))
		return error_set(e, EBUSY, "wait for its end, or cancel it", what, "a job on it is under way");
	if (b->root->readonly || b->root->ops->filter)
		return error_set(e, EROFS, "run the VM with the disk writable", what, "it is %s",
				 b->root->readonly ? "read-only" : "ephemeral");
	if (top->readonly || top->child[NODE_BACKING] || top->size_bytes != b->root->size_bytes ||
	    overlay->env != b->env)
		return error_set(e, EINVAL, "make it anew", what, "the overlay is not one for this disk");
	return 0;
}

int live_snapshot(struct block *b, struct block *overlay, struct error *e)
{
	int ret = snapshot_good(b, overlay, e);

	if (ret)
		return ret;
	block_co_hold(b);
	ret = node_co_bitmaps_carry(b->root, overlay->root, e);
	if (!ret)
		ret = node_co_set_readonly(b->root, true, NULL, e);
	if (!ret) {
		overlay->root->child[NODE_BACKING] = b->root;
		block_set_root(b, overlay->root);
		overlay->root = NULL;
	}
	block_release(b);
	return ret;
}

/* --- commit --- */

struct commit {
	struct mirror mirror;
	struct block base;		/* a handle for the backing file's node, which `above` owns */
	struct node *top, *above;	/* the first and the last of the layers that go */
	unsigned layers;
	const struct block_options *fds;
};

/* What the layers hold themselves; the rest is in the base.  One that is shorter reads as zeroes past its end. */
static int copy(void *opaque, uint64_t offset, uint64_t len, uint8_t *buf)
{
	struct commit *k = opaque;
	int ret = 0;

	for (uint64_t part; len && !ret; offset += part, len -= part) {
		struct block_status st;

		ret = node_co_status(k->top, offset, len, k->layers - 1, &st);
		part = st.len;
		if (!ret && st.flags & (BLOCK_STATUS_ALLOCATED | BLOCK_STATUS_ZERO))
			ret = live_copy_range(&k->mirror.copy, offset, part, buf);
	}
	return ret;
}

static int at_start(void *job)
{
	struct mirror *m = job;
	struct commit *k = m->opaque;
	struct node *base = k->base.root;
	int ret = node_co_set_readonly(base, false, k->fds, m->e);

	if (!ret && base->size_bytes < k->top->size_bytes)
		ret = node_co_resize(base, k->top->size_bytes, 0, m->e);
	if (!ret)
		dirty_set_all(&m->copy.todo);
	return ret;
}

/* The disk is drained, and the base holds all. */
static int pivot(struct mirror *m)
{
	struct commit *k = m->opaque;
	int ret = node_co_bitmaps_carry(k->top, k->base.root, m->e);

	m->told = ret;
	if (ret)
		return ret;
	k->above->child[NODE_BACKING] = NULL;
	guard_pivot(m->copy.g, k->base.root);
	return 0;
}

/* The last of so many layers; NULL: there are not so many, or nothing is below. */
static struct node *layer(struct node *n, unsigned layers)
{
	for (unsigned i = 1; n && i < layers; i++)
		n = n->child[NODE_BACKING];
	return n && n->child[NODE_BACKING] ? n : NULL;
}

static int commit_good(const struct block *b, unsigned layers, struct error *e)
{
	const char *what = "commit the disk";
	struct node *n = b->root, *above;

	if (node_is_guard(n))
		return error_set(e, EBUSY, "wait for its end, or cancel it", what, "a job on it is under way");
	if (n->readonly || n->ops->filter)
		return error_set(e, EROFS, "run the VM with the disk writable", what, "it is %s",
				 n->readonly ? "read-only" : "ephemeral");
	above = layers ? layer(n, layers) : NULL;
	if (!above)
		return error_set(e, EINVAL, NULL, what, n->child[NODE_BACKING] ? "it has fewer layers" : "it has no backing file");
	if (above->child[NODE_BACKING]->size_bytes > n->size_bytes)
		return error_set(e, EINVAL, "make the disk as large", what, "its backing file is larger");
	return 0;
}

static int commit_end(struct commit *k, int ret)
{
	bool done = !k->above->child[NODE_BACKING];
	int closed = 0;

	if (done)
		closed = node_co_close(k->top);		/* not needed any more */
	else
		node_co_set_readonly(k->base.root, true, NULL, NULL);
	(void)closed;
	return ret;
}

int live_commit(struct block_job *j, struct block *b, unsigned layers, const struct block_options *fds, struct error *e)
{
	struct commit *k = calloc(1, sizeof(*k));
	struct live_mirror how = { .finish = true };
	int ret = k ? commit_good(b, layers, e) : error_errno(e, ENOMEM, NULL, "commit the disk");

	if (ret) {
		free(k);
		return ret;
	}
	k->top = b->root;
	k->above = layer(b->root, layers);
	k->layers = layers;
	k->fds = fds;
	k->base = (struct block){ .root = k->above->child[NODE_BACKING], .env = b->env };
	k->base.waiting_tail = &k->base.waiting;
	k->mirror = (struct mirror){ .b = b, .m = &how, .e = e, .what = "commit the disk", .opaque = k,
				     .at_start = at_start, .pivot = pivot };
	ret = live_copy_init(&k->mirror.copy, j, b, &k->base, 0);
	k->mirror.copy.copy = copy;
	k->mirror.copy.opaque = k;
	k->mirror.copy.zeroes_hide = k->base.root->child[NODE_BACKING];
	if (!ret)
		ret = commit_end(k, mirror_run(&k->mirror));
	else
		error_errno(e, -ret, NULL, "commit the disk");
	live_copy_fini(&k->mirror.copy);
	while (k->base.idle) {
		struct request *r = k->base.idle;

		k->base.idle = r->next;
		free(r);
	}
	free(k);
	return ret;
}
