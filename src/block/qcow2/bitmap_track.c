/*
 * Bitmaps that follow the guest's writes.
 *
 *	write ──bits in safe?──▶ set in `bits`, go on
 *	            │ no
 *	            ▼ bitmaps_lock
 *	        in use? no: AHEAD ─▶ sync ─▶ IN_USE           (bitmaps_begin)
 *	        for all who wait: bits of whole stretches ─▶ file ─▶ sync ─▶ safe
 */
#include <errno.h>

#include "block/qcow2/bitmap.h"

#define AHEAD_GRANULES 16u		/* 1 MiB at 64 KiB a granule: the least that is put ahead */
#define AHEAD_GRANULES_MAX 512u		/* where stretch follows stretch */

struct bitmap_wait {
	uint64_t offset, len;
	uint64_t from, to;		/* what is put ahead for it */
	bool done;
	int ret;
	struct bitmap_wait *next;
};

/* --- begin --- */

static bool places_complete(const struct bitmap *m)
{
	for (uint32_t i = 0; i < m->table_size; i++)
		if (!(m->table[i] & ENTRY_OFFSET))
			return false;
	return true;
}

/* A table of the right size, a place for every bit, and in it what we know. */
static int make_ready(struct qcow2 *q, struct bitmap *m, bool *moved)
{
	int ret = m->loaded ? 0 : bitmap_load(q, m);

	if (!ret && !bitmap_table_fits(q, m)) {
		ret = bitmap_table_new(q, m, q->n->size_bytes);
		*moved = true;
	}
	if (!ret && (m->lost || !places_complete(m)))
		ret = bitmap_store(q, m, true);
	return ret;
}

static int set_in_use(struct qcow2 *q)
{
	int ret = header_set_features(q, q->h.incompatible, q->h.autoclear | AUTOCLEAR_AHEAD);

	for (uint32_t i = 0; i < q->nbitmaps && !ret; i++) {
		struct bitmap *m = q->bitmap[i];

		if (bitmap_tracks(m) && !(m->flags & BITMAP_IN_USE))
			ret = bitmap_flags_write(q, m, m->flags | BITMAP_IN_USE);
	}
	return ret ? ret : node_co_flush(q->file);
}

/* What is in use by nobody whom we know is made sound too, or AHEAD would tell a lie about it. */
int bitmaps_begin(struct qcow2 *q)
{
	bool moved = false;
	int ret = 0;

	for (uint32_t i = 0; i < q->nbitmaps && !ret; i++)
		if (q->bitmap[i]->flags & (BITMAP_AUTO | BITMAP_IN_USE))
			ret = make_ready(q, q->bitmap[i], &moved);
	if (!ret && moved)
		ret = bitmaps_dir_write(q);
	if (!ret)
		ret = set_in_use(q);
	for (uint32_t i = 0; i < q->nbitmaps && !ret; i++)
		q->bitmap[i]->lost = false;
	q->bitmaps_used = !ret;
	return ret;
}

/* --- ahead --- */

static uint64_t unit_of(const struct qcow2 *q)
{
	unsigned bits = 0;

	for (uint32_t i = 0; i < q->nbitmaps; i++)
		if (bitmap_tracks(q->bitmap[i]) && q->bitmap[i]->gran_bits > bits)
			bits = q->bitmap[i]->gran_bits;
	return (uint64_t)AHEAD_GRANULES << bits;
}

/* Whoever writes on and on syncs less and less. */
static void stretch(struct qcow2 *q, struct bitmap_wait *w)
{
	uint64_t unit = unit_of(q), units = q->ahead_units;

	units = w->offset / unit * unit == q->ahead_end && units ? units * 2 : 1;
	q->ahead_units = units < AHEAD_GRANULES_MAX / AHEAD_GRANULES ? units : AHEAD_GRANULES_MAX / AHEAD_GRANULES;
	w->from = w->offset / unit * unit;
	w->to = (w->offset + w->len + unit - 1) / unit * unit;
	if (w->to < w->from + q->ahead_units * unit)
		w->to = w->from + q->ahead_units * unit;
	q->ahead_end = w->to;
}

static int put_ahead(struct qcow2 *q, struct bitmap *m, const struct bitmap_wait *w)
{
	uint64_t end = w->to < m->filed.size_bytes ? w->to : m->filed.size_bytes;

	if (w->from >= end || dirty_all_set(&m->safe, w->from, end - w->from))
		return 0;
	dirty_set(&m->filed, w->from, end - w->from);
	return bitmap_write_range(q, m, &m->filed, w->from >> m->gran_bits >> 3,
				  ((end - 1) >> m->gran_bits >> 3) + 1);
}

static int put_all(struct qcow2 *q, struct bitmap_wait *list)
{
	int ret = q->bitmaps_used ? 0 : bitmaps_begin(q);

	for (struct bitmap_wait *w = list; w && !ret; w = w->next) {
		stretch(q, w);
		for (uint32_t i = 0; i < q->nbitmaps && !ret; i++)
			if (bitmap_tracks(q->bitmap[i]))
				ret = put_ahead(q, q->bitmap[i], w);
	}
	return ret ? ret : node_co_flush(q->file);
}

/* bitmaps_lock is held. */
static void serve(struct qcow2 *q)
{
	struct bitmap_wait *list = q->bitmap_waits;
	int ret;

	q->bitmap_waits = NULL;
	ret = put_all(q, list);
	for (struct bitmap_wait *w = list; w; w = w->next) {
		w->done = true;
		w->ret = ret;
		for (uint32_t i = 0; i < q->nbitmaps && !ret; i++)
			if (bitmap_tracks(q->bitmap[i]))
				dirty_set(&q->bitmap[i]->safe, w->from, w->to - w->from);
	}
}

bool bitmaps_mark(struct qcow2 *q, uint64_t offset, uint64_t len)
{
	if (!q->ntracking)
		return true;
	if (!q->bitmaps_used)
		return false;
	for (uint32_t i = 0; i < q->nbitmaps; i++)
		if (bitmap_tracks(q->bitmap[i]) && !dirty_all_set(&q->bitmap[i]->safe, offset, len))
			return false;
	for (uint32_t i = 0; i < q->nbitmaps; i++)
		if (bitmap_tracks(q->bitmap[i]))
			dirty_set(&q->bitmap[i]->bits, offset, len);
	return true;
}

int bitmaps_co_mark(struct qcow2 *q, uint64_t offset, uint64_t len)
{
	int ret = q->corrupt ? -EIO : 0;

	while (!ret && !bitmaps_mark(q, offset, len)) {
		struct bitmap_wait w = { .offset = offset, .len = len, .next = q->bitmap_waits };

		q->bitmap_waits = &w;
		co_lock(q->co, &q->bitmaps_lock);
		if (!w.done)
			serve(q);
		co_unlock(q->co, &q->bitmaps_lock);
		ret = w.ret;
	}
	return ret;
}

/* --- opening and closing --- */

int bitmaps_prepare(struct qcow2 *q)
{
	int ret = 0;

	q->ntracking = 0;
	for (uint32_t i = 0; i < q->nbitmaps && !ret; i++) {
		ret = q->bitmap[i]->loaded ? 0 : bitmap_load(q, q->bitmap[i]);
		q->ntracking += bitmap_tracks(q->bitmap[i]);
	}
	return ret;
}

int bitmaps_finish(struct qcow2 *q)
{
	bool any = false;
	int ret = 0;

	for (uint32_t i = 0; i < q->nbitmaps; i++)
		any |= q->bitmap[i]->flags & BITMAP_IN_USE;
	if (any && !q->bitmaps_used)
		ret = bitmaps_begin(q);
	for (uint32_t i = 0; any && i < q->nbitmaps && !ret; i++)
		if (q->bitmap[i]->flags & BITMAP_IN_USE)
			ret = bitmap_store(q, q->bitmap[i], false);
	for (uint32_t i = 0; any && i < q->nbitmaps && !ret; i++)
		if (q->bitmap[i]->flags & BITMAP_IN_USE)
			ret = bitmap_flags_write(q, q->bitmap[i], q->bitmap[i]->flags & ~BITMAP_IN_USE);
	if (any && !ret)
		ret = node_co_flush(q->file);
	if (!ret && q->h.autoclear & AUTOCLEAR_AHEAD)
		ret = header_set_features(q, q->h.incompatible, q->h.autoclear & ~AUTOCLEAR_AHEAD);
	q->bitmaps_used = false;
	return ret;
}

/* --- another size of the disk --- */

/* Tables that do not fit are believed to be all set if they are in use: so all are, for a cut in between. */
static int all_in_use(struct qcow2 *q)
{
	int ret = 0;

	for (uint32_t i = 0; i < q->nbitmaps && !ret; i++) {
		struct bitmap *m = q->bitmap[i];

		ret = m->loaded ? 0 : bitmap_load(q, m);
		if (!ret && !(m->flags & BITMAP_IN_USE))
			ret = bitmap_flags_write(q, m, m->flags | BITMAP_IN_USE);
	}
	return ret ? ret : node_co_flush(q->file);
}

/* What is added counts as changed: the disk may have been cut off there before, or goes back to a snapshot. */
static int resize_one(struct qcow2 *q, struct bitmap *m, uint64_t size_bytes)
{
	uint64_t old = m->bits.size_bytes;
	int ret = dirty_resize(&m->bits, size_bytes);

	if (!ret && size_bytes > old && bitmap_tracks(m))
		dirty_set(&m->bits, old, size_bytes - old);
	if (!ret)
		ret = dirty_resize(&m->safe, size_bytes);
	if (!ret)
		ret = dirty_resize(&m->filed, size_bytes);
	if (!ret)
		ret = bitmap_table_new(q, m, size_bytes);
	return ret ? ret : bitmap_store(q, m, true);
}

int bitmaps_resize_begin(struct qcow2 *q)
{
	int ret = !q->nbitmaps || q->bitmaps_used ? 0 : bitmaps_begin(q);

	return ret || !q->nbitmaps ? ret : all_in_use(q);
}

int bitmaps_resize(struct qcow2 *q, uint64_t size_bytes)
{
	int ret = bitmaps_resize_begin(q);

	if (ret || !q->nbitmaps)
		return ret;
	for (uint32_t i = 0; i < q->nbitmaps && !ret; i++)
		ret = resize_one(q, q->bitmap[i], size_bytes);
	return ret ? ret : bitmaps_dir_write(q);
}
