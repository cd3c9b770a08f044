/*
 * Backup of a disk in use: the guard copies what the guest is about to change, workers copy the rest.
 *
 *	todo:	|##  ##|	a granule's bit is cleared when it is in the target, by whoever held it; a write to it
 *				waits until then
 */
#include <errno.h>

#include "block/block_private.h"
#include "block/live_copy.h"

struct backup {
	struct live_copy copy;
	struct block *b;
	const struct live_backup *o;
	struct error *e;
};

static void before_write(void *job, uint64_t offset, uint64_t len)
{
	struct backup *k = job;

	live_copy_now(&k->copy, offset, len);
}

static const struct guard_ops ops = { .before_write = before_write };

static int bitmap(struct backup *k, enum bitmap_verb verb, struct dirty *todo)
{
	struct block_bitmap_change c = { .verb = verb, .name = k->o->bitmap, .todo = todo };
	struct node *n = k->copy.src;

	if (n->ops->co_bitmap_change)
		return n->ops->co_bitmap_change(n, &c, k->e);
	return error_set(k->e, EOPNOTSUPP, "make a full one", "back the disk up", "a %s disk has no bitmaps", n->ops->name);
}

/* The moment of the backup. */
static int at_start(void *job)
{
	struct backup *k = job;
	struct dirty *todo = &k->copy.todo, changed = { 0 };
	int ret = k->o->bitmap ? bitmap(k, BITMAP_FREEZE, k->o->incremental ? &changed : NULL) : 0;

	if (ret)
		return ret;
	if (!k->o->incremental) {
		dirty_set_all(todo);
		return 0;
	}
	if (block_cluster(k->copy.dst) > 1u << changed.gran_bits) {
		dirty_fini(&changed);
		bitmap(k, BITMAP_THAW_BACK, NULL);
		return error_set(k->e, EINVAL, "make it with smaller clusters", "back the disk up",
				 "the target's clusters are larger than the bitmap's granularity");
	}
	dirty_fini(todo);
	*todo = changed;
	return 0;
}

static int good(const struct block *b, const struct block *target, const struct live_backup *o, struct error *e)
{
	if (block_size(target) < block_size(b))
		return error_set(e, EINVAL, "make it larger", "back the disk up", "the target is smaller than the disk");
	if (o->incremental && !o->bitmap)
		return error_set(e, EINVAL, "name a bitmap", "back the disk up", "nothing says what has changed");
	if (block_readonly(target))
		return error_set(e, EROFS, "open it for writing", "back the disk up", "the target is read-only");
	return 0;
}

static int run(struct backup *k)
{
	int ret = guard_insert(&k->copy.g, k->b, &ops, k, at_start, k->e), end;

	if (ret)
		return ret;
	ret = live_copy_run(&k->copy);
	if (!ret)
		ret = block_co_flush(k->copy.dst);
	if (k->o->bitmap) {	/* the backup is whole and durable, or never was */
		end = bitmap(k, ret ? BITMAP_THAW_BACK : BITMAP_THAW, NULL);
		ret = ret ? ret : end;
	}
	end = guard_remove(k->copy.g, NULL);
	return live_end(k->copy.job, ret ? ret : end, "back the disk up", k->e);
}

int live_backup(struct block_job *j, struct block *b, struct block *target, const struct live_backup *o,
		struct error *e)
{
	struct backup k = { .b = b, .o = o, .e = e };
	int ret = good(b, target, o, e);
	unsigned bits = block_cluster(target) ? (unsigned)__builtin_ctz(block_cluster(target)) : 0;


	if (ret)
		return ret;
	ret = live_copy_init(&k.copy, j, b, target, bits);
	k.copy.zeroes_hide = o->incremental;
	if (!ret)
		ret = run(&k);
	else
		error_errno(e, -ret, NULL, "back the disk up");
	live_copy_fini(&k.copy);
	return ret;
}
