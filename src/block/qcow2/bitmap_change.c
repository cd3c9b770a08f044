/* What users do with bitmaps. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "block/qcow2/bitmap.h"

#define GRAN_BITS_DEFAULT 16u

int qcow2_bitmap_list(struct node *n, struct block_bitmap **list, unsigned *count, struct error *e)
{
	struct qcow2 *q = n->impl;
	struct block_bitmap *out = calloc(q->nbitmaps + 1u, sizeof(*out));
	int ret = out ? 0 : -ENOMEM;

	for (uint32_t i = 0; i < q->nbitmaps && !ret; i++) {
		struct bitmap *m = q->bitmap[i];

		ret = m->loaded ? 0 : bitmap_load(q, m);
		snprintf(out[i].name, sizeof(out[i].name), "%s", m->name);
		out[i].granularity = 1u << m->gran_bits;
		out[i].tracking = bitmap_tracks(m);
		out[i].unclean = m->unclean;
		out[i].dirty_bytes = ret ? 0 : dirty_bytes(&m->bits);
	}
	if (ret) {
		free(out);
		return error_errno(e, -ret, NULL, "list bitmaps");
	}
	*list = out;
	*count = q->nbitmaps;
	return 0;
}

int qcow2_bitmap_at(struct node *n, const char *name, uint64_t offset, uint64_t len, bool *changed, uint64_t *out)
{
	struct bitmap *m = bitmap_find(n->impl, name);
	int ret = !m ? -ENOENT : m->loaded ? 0 : bitmap_load(n->impl, m);
	uint64_t at, n_bytes;

	if (ret)
		return ret;
	if (!dirty_next(&m->bits, offset, &at, &n_bytes))
		at = n_bytes = UINT64_MAX;
	*changed = at == offset;
	*out = *changed ? n_bytes : at - offset;
	*out = *out < len ? *out : len;
	return 0;
}

/* --- add --- */

static int add_good(struct qcow2 *q, const struct block_bitmap_change *c, struct error *e)
{
	const char *what = "add a bitmap";
	uint32_t gran = c->granularity;

	if (q->h.version < 3)
		return error_set(e, EOPNOTSUPP, "convert it: vixen image convert", what, "qcow2 of version 2 has none");
	if (!*c->name || strlen(c->name) > BITMAP_NAME_MAX)
		return error_set(e, EINVAL, "choose another name", what, "its name is empty or too long");
	if (bitmap_find(q, c->name))
		return error_set(e, EEXIST, "choose another name", what, "there is a '%.100s' already", c->name);
	if (gran && (gran & (gran - 1) || gran < 1u << DIRTY_BITS_MIN || gran > 1u << DIRTY_BITS_MAX))
		return error_set(e, EINVAL, "use 64K", what, "its granularity is no power of two from 512 to 2G");
	if (q->nbitmaps == BITMAPS_MAX)
		return error_set(e, ENOSPC, "remove some", what, "there are too many");
	return 0;
}

static int make(struct qcow2 *q, const char *name, unsigned gran_bits, struct bitmap **out)
{
	struct bitmap **all = realloc(q->bitmap, sizeof(*all) * (q->nbitmaps + 1u)), *m = calloc(1, sizeof(*m));
	int ret;

	q->bitmap = all ? all : q->bitmap;
	if (!all || !m || !(m->name = strdup(name))) {
		free(m);
		return -ENOMEM;
	}
	m->gran_bits = gran_bits;
	m->flags = BITMAP_AUTO;
	m->loaded = true;
	ret = dirty_init(&m->bits, q->n->size_bytes, gran_bits);
	if (!ret)
		ret = dirty_init(&m->safe, q->n->size_bytes, gran_bits);
	if (!ret)
		ret = dirty_init(&m->filed, q->n->size_bytes, gran_bits);
	if (!ret)
		ret = bitmap_table_new(q, m, q->n->size_bytes);
	if (ret)
		bitmap_free(q, m);
	else
		*out = m;
	return ret;
}

/* What it begins with: nothing changed, what `todo` says, or everything. */
static void begin_with(struct bitmap *m, const struct block_bitmap_change *c)
{
	if (c->verb == BITMAP_FREEZE)
		dirty_set_all(&m->bits);
	else if (c->verb == BITMAP_SET)
		dirty_merge(&m->bits, c->todo);
}

static int add(struct qcow2 *q, const struct block_bitmap_change *c)
{
	unsigned bits = c->granularity ? (unsigned)__builtin_ctz(c->granularity) : GRAN_BITS_DEFAULT;
	struct bitmap *m;
	int ret = make(q, c->name, bits, &m);

	if (ret)
		return ret;
	begin_with(m, c);
	if (m->bits.count)
		ret = bitmap_store(q, m, false);
	if (!ret) {
		q->bitmap[q->nbitmaps++] = m;
		ret = bitmaps_dir_write(q);
	}
	if (ret) {
		q->nbitmaps -= q->nbitmaps && q->bitmap[q->nbitmaps - 1] == m;
		bitmap_drop(q, m);
		bitmap_free(q, m);
		return ret;
	}
	q->ntracking++;
	q->bitmaps_used = false;	/* this one is not yet */
	return 0;
}

/* --- the others --- */

static int remove_one(struct qcow2 *q, struct bitmap *m)
{
	uint32_t i = 0;
	int ret;

	while (q->bitmap[i] != m)
		i++;
	memmove(&q->bitmap[i], &q->bitmap[i + 1], sizeof(m) * (q->nbitmaps - i - 1));
	q->nbitmaps--;
	ret = bitmaps_dir_write(q);
	if (ret) {
		memmove(&q->bitmap[i + 1], &q->bitmap[i], sizeof(m) * (q->nbitmaps - i));
		q->bitmap[i] = m;
		q->nbitmaps++;
		return ret;
	}
	q->ntracking -= bitmap_tracks(m);
	ret = bitmap_drop(q, m);
	bitmap_free(q, m);
	return ret ? ret : qcow2_commit(q);
}

static int known(struct qcow2 *q, struct bitmap *m)
{
	int ret = m->loaded ? 0 : bitmap_load(q, m);

	return !ret && m->lost ? bitmaps_begin(q) : ret;
}

static int clear(struct qcow2 *q, struct bitmap *m)
{
	int ret = known(q, m);

	if (ret)
		return ret;
	dirty_clear_all(&m->bits);
	return bitmap_store(q, m, m->flags & BITMAP_IN_USE);
}

static int merge(struct qcow2 *q, struct bitmap *m, struct bitmap *from)
{
	int ret = known(q, m);

	if (!ret)
		ret = known(q, from);
	if (ret)
		return ret;
	dirty_merge(&m->bits, &from->bits);
	return bitmap_store(q, m, m->flags & BITMAP_IN_USE);
}

/* --- from one layer to another --- */

static int read_bits(struct qcow2 *q, struct bitmap *m, struct dirty *out)
{
	int ret = m->loaded ? 0 : bitmap_load(q, m);

	return ret ? ret : dirty_copy(out, &m->bits);
}

static int set_bits(struct qcow2 *q, const struct block_bitmap_change *c, struct error *e)
{
	struct bitmap *m = bitmap_find(q, c->name);
	int ret = m ? known(q, m) : add_good(q, c, e);

	if (ret || !m)
		return ret ? ret : add(q, c);
	dirty_clear_all(&m->bits);
	dirty_merge(&m->bits, c->todo);
	return bitmap_store(q, m, m->flags & BITMAP_IN_USE);
}

/* --- backups --- */

static int freeze(struct qcow2 *q, const struct block_bitmap_change *c, struct error *e)
{
	struct bitmap *m = bitmap_find(q, c->name);
	int ret = m ? known(q, m) : add(q, c);

	m = bitmap_find(q, c->name);
	if (!ret && !bitmap_tracks(m))
		return error_set(e, EINVAL, "remove it, or use another one", "back the disk up",
				 "the bitmap '%.100s' does not record changes", c->name);
	if (!ret)
		ret = dirty_copy(&m->frozen, &m->bits);
	if (!ret && c->todo)
		ret = dirty_copy(c->todo, &m->bits);
	if (ret)
		return ret;
	m->freezing = true;
	dirty_clear_all(&m->bits);	/* in memory: until the backup is whole the file says both */
	return 0;
}

static int thaw(struct qcow2 *q, struct bitmap *m, bool back)
{
	int ret = 0;

	if (!m->freezing)
		return 0;
	co_lock(q->co, &q->bitmaps_lock);
	if (back)
		dirty_merge(&m->bits, &m->frozen);
	else
		ret = bitmap_store(q, m, m->flags & BITMAP_IN_USE);
	dirty_fini(&m->frozen);
	m->freezing = false;
	co_unlock(q->co, &q->bitmaps_lock);
	return ret;
}

/* --- dispatch --- */

static int missing(struct qcow2 *q, const char *name, struct error *e)
{
	char what[192];

	snprintf(what, sizeof(what), "find a bitmap of '%.140s'", q->n->path);
	return error_set(e, ENOENT, "see 'vixen image bitmap list'", what, "there is no '%.100s'", name);
}

static int perform(struct qcow2 *q, const struct block_bitmap_change *c, struct error *e)
{
	struct bitmap *m = bitmap_find(q, c->name), *from;
	bool makes = c->verb == BITMAP_ADD || c->verb == BITMAP_SET || (c->verb == BITMAP_FREEZE && !c->todo);
	int ret;

	if (!m && !makes)
		return missing(q, c->name, e);
	switch (c->verb) {
	case BITMAP_ADD:
		ret = add_good(q, c, e);
		return ret ? ret : add(q, c);
	case BITMAP_REMOVE: return remove_one(q, m);
	case BITMAP_CLEAR: return clear(q, m);
	case BITMAP_MERGE:
		from = bitmap_find(q, c->source);
		return from ? merge(q, m, from) : missing(q, c->source, e);
	case BITMAP_FREEZE:
		ret = m ? 0 : add_good(q, c, e);
		return ret ? ret : freeze(q, c, e);
	case BITMAP_READ: return read_bits(q, m, c->todo);
	case BITMAP_SET: return set_bits(q, c, e);
	case BITMAP_THAW:
	case BITMAP_THAW_BACK: return thaw(q, m, c->verb == BITMAP_THAW_BACK);
	}
	return -EINVAL;
}

/* Errors that were told in words before are not told again. */
int qcow2_bitmap_change(struct node *n, const struct block_bitmap_change *c, struct error *e)
{
	struct qcow2 *q = n->impl;
	struct error own = { 0 };
	int ret = perform(q, c, &own);

	if (ret && e && own.what[0])
		*e = own;
	else if (ret)
		error_errno(e, -ret, ret == -EFBIG ? "use a larger granularity" : NULL, "change the bitmap '%s' of '%s'",
			    c->name, n->path);
	return ret;
}
