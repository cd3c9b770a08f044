/*
 * Streaming: what the backing files hold moves into the top layer while the disk is in use.  A granule is looked at and,
 * where the top layer has nothing, copied while it is held; the guest's writes hold their bytes, too, so that neither
 * overwrites the other.
 */
#include <errno.h>

#include "block/block_private.h"
#include "block/live_copy.h"

struct stream_job {
	struct live_copy copy;
	struct block *b;
	struct error *e;
};

/* Where zeroes come from below they are written as such: they have to hide nothing later. */
static int fill(struct stream_job *k, uint64_t offset, uint64_t len, uint8_t *buf)
{
	struct node *top = k->copy.src;
	struct block_status st;
	int ret = 0;

	for (uint64_t part; len && !ret; offset += part, len -= part) {
		ret = node_co_status(top, offset, len, UINT32_MAX, &st);
		part = st.len;
		if (ret || st.flags & BLOCK_STATUS_ZERO)
			continue;
		part = part < LIVE_DATA_BYTES ? part : LIVE_DATA_BYTES;
		ret = node_co_read(top, offset, buf, part);
		if (!ret)
			ret = node_co_write(top, offset, buf, part);
		live_copy_count(&k->copy, part);
	}
	return ret;
}

static int copy(void *opaque, uint64_t offset, uint64_t len, uint8_t *buf)
{
	struct stream_job *k = opaque;
	int ret = 0;

	for (uint64_t part; len && !ret; offset += part, len -= part) {
		struct block_status st;

		ret = node_co_status(k->copy.src, offset, len, 0, &st);
		part = st.len;
		if (!ret && !(st.flags & BLOCK_STATUS_ALLOCATED))
			ret = fill(k, offset, part, buf);
	}
	return ret;
}

static void before_read(void *job, uint64_t offset, uint64_t len)
{
	struct stream_job *k = job;

	live_copy_now(&k->copy, offset, len);
}

static const struct guard_ops ops = { .before_read = before_read };

static int at_start(void *job)
{
	struct stream_job *k = job;

	guard_serialize(k->copy.g);
	dirty_set_all(&k->copy.todo);
	return 0;
}

/* The disk is drained; its top layer has all. */
static int at_end(void *job)
{
	struct stream_job *k = job;
	struct node *top = k->copy.src, *below = top->child[NODE_BACKING];
	int ret = node_co_flush(top);

	if (!ret)
		ret = node_co_set_backing(top, NULL, NULL);
	if (ret)
		return ret;
	top->child[NODE_BACKING] = NULL;
	node_co_close(below);
	return 0;
}

static int run(struct stream_job *k)
{
	int ret = guard_insert(&k->copy.g, k->b, &ops, k, at_start, k->e), end;

	if (ret)
		return ret;
	ret = live_copy_run(&k->copy);
	end = guard_remove(k->copy.g, ret ? NULL : at_end);
	return live_end(k->copy.job, ret ? ret : end, "fill the disk from its backing files", k->e);
}

static int good(const struct block *b, struct error *e)
{
	const char *what = "fill the disk from its backing files";
	const struct node *n = b->root;

	if (node_is_guard(n))
		return 0;	/* guard_insert() says it */
	if (n->readonly || n->ops->filter)
		return error_set(e, EROFS, "run the VM with the disk writable", what, "it is %s",
				 n->readonly ? "read-only" : "ephemeral");
	if (!n->child[NODE_BACKING])
		return error_set(e, EINVAL, NULL, what, "it has none");
	return 0;
}

int live_stream(struct block_job *j, struct block *b, struct error *e)
{
	struct stream_job k = { .b = b, .e = e };
	int ret = good(b, e);

	if (ret)
		return ret;
	ret = live_copy_init(&k.copy, j, b, NULL, b->root->limits.cluster ? (unsigned)__builtin_ctz(b->root->limits.cluster) : 0);
	k.copy.copy = copy;
	k.copy.opaque = &k;
	if (!ret)
		ret = run(&k);
	else
		error_errno(e, -ret, NULL, "fill the disk from its backing files");
	live_copy_fini(&k.copy);
	return ret;
}
