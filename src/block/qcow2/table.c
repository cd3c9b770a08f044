/*
 * Slices of L2 tables and refcount blocks in memory.
 *
 *	(absent) ──get──▶ loading ──▶ clean ◀──written── writing (clean again, but kept until it is in the file)
 *				        └──change──▶ dirty ──commit takes a copy──▶ writing
 *
 * Found by their offset in the file; clean ones that nobody has pinned give way to others (second chance).  Dirty ones
 * do not: when there are many, requests that would make more wait for a commit (tables_crowded).
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "block/qcow2/qcow2.h"

#define SLICE_MAX 16384u
#define CACHE_MIN_BYTES (1ull << 20)
#define CACHE_MAX_BYTES (48ull << 20)	/* L2 tables of 256 GiB and more, at the usual 64 KiB a cluster */

static struct table **bucket(struct qcow2 *q, uint64_t offset)
{
	uint64_t key = offset >> q->slice_bits;

	return &q->cache.hash[(key * 0x9e3779b97f4a7c15ull >> 24) & (q->cache.buckets - 1)];
}

/* All L2 tables and refcount blocks of the disk, as far as the bound goes. */
int tables_init(struct qcow2 *q)
{
	struct table_cache *c = &q->cache;
	uint64_t clusters = clusters_for(q, q->h.size_bytes), bytes;

	q->slice_bytes = q->cluster_bytes < SLICE_MAX ? q->cluster_bytes : SLICE_MAX;
	q->slice_bits = (unsigned)__builtin_ctz(q->slice_bytes);
	bytes = clusters > CACHE_MAX_BYTES ? CACHE_MAX_BYTES
					   : clusters * (q->entry_bytes + (1u << q->h.refcount_order) / 8 + 1);
	bytes = bytes < CACHE_MIN_BYTES ? CACHE_MIN_BYTES : bytes > CACHE_MAX_BYTES ? CACHE_MAX_BYTES : bytes;
	c->max = (size_t)(bytes >> q->slice_bits) + 8;
	for (c->buckets = 64; c->buckets < c->max; c->buckets *= 2)
		;
	c->hash = calloc(c->buckets, sizeof(*c->hash));
	return c->hash ? 0 : -ENOMEM;
}

static void table_free(struct table *t)
{
	free(t->data);
	free(t);
}

void tables_fini(struct qcow2 *q)
{
	struct table_cache *c = &q->cache;

	for (size_t i = 0; i < c->n; i++)
		table_free(c->all[i]);
	free(c->all);
	free(c->hash);
	*c = (struct table_cache){ 0 };
}

struct table *table_find(struct qcow2 *q, uint64_t offset)
{
	struct table *t = *bucket(q, offset);

	while (t && t->offset != offset)
		t = t->hash_next;
	if (!t || t->loading)
		return NULL;
	t->used = true;
	return t;
}

static void unhash(struct qcow2 *q, struct table *t)
{
	struct table **p = bucket(q, t->offset);

	while (*p != t)
		p = &(*p)->hash_next;
	*p = t->hash_next;
}

static void clean(struct qcow2 *q, struct table *t)
{
	if (t->dirty_from != t->dirty_to)
		q->cache.dirty[t->kind]--;
	t->dirty_from = t->dirty_to = 0;
}

/* A struct that can be used anew; NULL: make one. */
static struct table *evict(struct qcow2 *q)
{
	struct table_cache *c = &q->cache;

	for (size_t tries = 0; c->n >= c->max && tries < 2 * c->n; tries++) {
		struct table *t = c->all[c->hand++ % c->n];

		if (t->pins || t->loading || t->writing || t->dirty_from != t->dirty_to)
			continue;
		if (t->used && tries < c->n) {
			t->used = false;
			continue;
		}
		if (!t->dropped)
			unhash(q, t);
		return t;
	}
	return NULL;
}

static struct table *table_new(struct qcow2 *q)
{
	struct table_cache *c = &q->cache;
	struct table *t = evict(q);

	if (t)
		return t;
	if (c->n == c->cap) {
		size_t cap = c->cap ? c->cap * 2 : 64;
		struct table **all = realloc(c->all, cap * sizeof(*all));

		if (!all)
			return NULL;
		c->all = all;
		c->cap = cap;
	}
	t = calloc(1, sizeof(*t));
	if (t)
		t->data = malloc(q->slice_bytes);
	if (!t || !t->data) {
		free(t);
		return NULL;
	}
	return c->all[c->n++] = t;
}

static int load(struct qcow2 *q, struct table *t)
{
	int ret = node_co_read(q->file, t->offset, t->data, q->slice_bytes);

	t->loading = false;
	t->load_error = ret;
	if (ret && !t->dropped) {
		unhash(q, t);
		t->dropped = true;
	}
	co_queue_wake_all(q->co, &t->waiters);
	return ret;
}

int table_get(struct qcow2 *q, enum table_kind kind, uint64_t offset, struct table **out)
{
	struct table **p = bucket(q, offset), *t = *p;
	int ret = 0;

	while (t && t->offset != offset)
		t = t->hash_next;
	if (!t) {
		t = table_new(q);
		if (!t)
			return -ENOMEM;
		*t = (struct table){ .offset = offset, .kind = kind, .data = t->data, .pins = 1, .loading = true,
				     .hash_next = *p };
		*p = t;
		ret = load(q, t);
	} else {
		t->pins++;
		while (t->loading)
			co_queue_wait(q->co, &t->waiters);
		ret = t->load_error;
		if (!ret && t->kind != kind)
			ret = qcow2_corrupt(q, "an L2 table and a refcount block share a cluster", offset);
	}
	t->used = true;
	if (ret)
		table_put(q, t);
	else
		*out = t;
	return ret;
}

void table_put(struct qcow2 *q, struct table *t)
{
	ASSERT(t->pins);
	t->pins--;
}

void table_dirty(struct qcow2 *q, struct table *t, uint32_t from, uint32_t len)
{
	if (t->dropped)
		return;
	if (t->dirty_from == t->dirty_to) {
		q->cache.dirty[t->kind]++;
		t->dirty_from = from;
		t->dirty_to = from + len;
		return;
	}
	if (from < t->dirty_from)
		t->dirty_from = from;
	if (from + len > t->dirty_to)
		t->dirty_to = from + len;
}

void tables_drop(struct qcow2 *q, uint64_t offset, uint64_t len)
{
	for (uint64_t at = offset; at < offset + len; at += q->slice_bytes) {
		struct table *t = *bucket(q, at);

		while (t && t->offset != at)
			t = t->hash_next;
		if (!t)
			continue;
		unhash(q, t);
		clean(q, t);
		t->dropped = true;
	}
}

bool tables_crowded(const struct qcow2 *q)
{
	return q->cache.dirty[TABLE_L2] + q->cache.dirty[TABLE_REFS] > q->cache.max / 2;
}
