/*
 * Mirroring a disk in use.
 *
 *	bulk:	 all is dirty and is copied once; what the guest writes gets dirty again when it has been written
 *	  │
 *	both:	 the guest's writes hold their range and go to the target, too; what is still dirty is copied
 *	  │	 nothing is dirty: ready
 *	finish:	 the disk is drained, what is dirty after all is copied, the target flushed, and the disk pivots
 */
#include <errno.h>
#include <stdlib.h>

#include "block/block_private.h"
#include "block/live_mirror.h"

/* --- the guest's writes --- */

static int write_too(struct mirror *k, const struct guard_write *w)
{
	uint8_t *buf;
	int ret;

	if (w->kind == GUARD_WRITE)
		return block_co_writev(k->copy.dst, w->offset, w->iov, w->iovcnt);
	if (w->kind == GUARD_ZEROES)
		return block_co_write_zeroes(k->copy.dst, w->offset, w->len, w->flags & NODE_ZERO_MAY_UNMAP);
	buf = aligned_alloc(4096, LIVE_DATA_BYTES);	/* what a discard leaves is not known beforehand */
	ret = buf ? live_copy_range(&k->copy, w->offset, w->len, buf) : -ENOMEM;
	free(buf);
	return ret;
}

static void after_write(void *job, const struct guard_write *w)
{
	struct mirror *k = job;
	int ret = 0;

	if (k->done || k->copy.ret)
		return;
	if (w->held && !w->ret)
		ret = write_too(k, w);
	if (ret && !k->copy.ret)
		k->copy.ret = ret;
	if (!w->held || w->ret)
		dirty_set(&k->copy.todo, w->offset, w->len);
	if (k->copy.ret || k->copy.todo.count)
		co_queue_wake_all(k->b->env->co, &k->copy.job->wake);
}

static const struct guard_ops ops = { .after_write = after_write };

/* --- phases --- */

static int at_start(void *job)
{
	struct mirror *k = job;

	dirty_set_all(&k->copy.todo);
	return 0;
}

static int both(struct mirror *k)
{
	int ret = 0;

	guard_serialize(k->copy.g);
	while (!ret) {
		if (k->copy.todo.count || k->copy.job->cancel || k->copy.ret) {
			ret = live_copy_run(&k->copy);
			continue;
		}
		k->m->ready = true;
		if (k->m->finish)
			break;
		co_queue_wait(k->b->env->co, &k->copy.job->wake);
	}
	return ret;
}

/* The disk is drained. */
static int at_end(void *job)
{
	struct mirror *k = job;
	int ret;

	k->copy.unpaced = true;
	ret = live_copy_run(&k->copy);
	k->done = true;
	if (!ret)
		ret = block_co_flush(k->copy.dst);
	if (!ret && k->pivot)
		ret = k->pivot(k);
	return ret;
}

/* Each handle gets the other one's stack. */
static int pivot(struct mirror *k)
{
	int ret;

	block_co_hold(k->copy.dst);
	ret = node_co_bitmaps_carry(k->copy.src, k->copy.dst->root, k->e);
	if (!ret) {
		guard_pivot(k->copy.g, k->copy.dst->root);
		block_set_root(k->copy.dst, k->copy.src);
	}
	block_release(k->copy.dst);
	k->told = ret;
	return ret;
}

int mirror_run(struct mirror *k)
{
	int ret, end;

	k->copy.claim_clears = true;
	ret = guard_insert(&k->copy.g, k->b, &ops, k, k->at_start, k->e);
	if (ret)
		return ret;
	ret = live_copy_run(&k->copy);
	if (!ret)
		ret = both(k);
	if (ret)
		k->done = true;
	end = guard_remove(k->copy.g, ret ? NULL : at_end);
	return !ret && end && k->told ? end : live_end(k->copy.job, ret ? ret : end, k->what, k->e);
}

static int good(const struct block *b, const struct block *target, const struct live_mirror *m, struct error *e)
{
	const char *what = "mirror the disk";

	if (block_readonly(target))
		return error_set(e, EROFS, "open it for writing", what, "the target is read-only");
	if (m->pivot ? block_size(target) != block_size(b) : block_size(target) < block_size(b))
		return error_set(e, EINVAL, "make it of the disk's size", what, "the target has another size");
	if (m->pivot && block_readonly(b))
		return error_set(e, EROFS, "copy it", what, "the disk is read-only and cannot change its image");
	return 0;
}

int live_mirror(struct block_job *j, struct block *b, struct block *target, struct live_mirror *m, struct error *e)
{
	struct mirror k = { .b = b, .m = m, .e = e, .what = "mirror the disk", .at_start = at_start,
			    .pivot = m->pivot ? pivot : NULL };
	int ret = good(b, target, m, e);

	if (ret)
		return ret;
	ret = live_copy_init(&k.copy, j, b, target, 0);
	if (!ret)
		ret = mirror_run(&k);
	else
		error_errno(e, -ret, NULL, "mirror the disk");
	live_copy_fini(&k.copy);
	return ret;
}
