/* Dirty bitmaps when a running disk goes on in another image: they go along, so that the next backup misses nothing. */
#include <errno.h>
#include <stdlib.h>

#include "block/dirty.h"
#include "block/node.h"

static int carry_one(struct node *from, struct node *to, const struct block_bitmap *m, struct error *e)
{
	struct dirty bits = { 0 };
	struct block_bitmap_change c = { .verb = BITMAP_READ, .name = m->name, .granularity = m->granularity, .todo = &bits };
	int ret = from->ops->co_bitmap_change(from, &c, e);

	c.verb = BITMAP_SET;
	if (!ret)
		ret = to->ops->co_bitmap_change(to, &c, e);
	dirty_fini(&bits);
	return ret;
}

int node_co_bitmaps_carry(struct node *from, struct node *to, struct error *e)
{
	struct block_bitmap *list = NULL;
	unsigned n = 0;
	int ret = 0;

	if (!from->ops->co_bitmap_list || !to->ops->co_bitmap_change)
		return 0;
	ret = from->ops->co_bitmap_list(from, &list, &n, e);
	for (unsigned i = 0; i < n && !ret; i++)
		if (list[i].tracking)
			ret = carry_one(from, to, &list[i], e);
	free(list);
	return ret;
}
