/*
 * Internal snapshots: further L1 tables whose trees share clusters with the active one.
 *
 *	create: count the active tree once more, COPIED flags off ─▶ new snapshot table ─▶ header
 *	apply:  count the snapshot's tree once more ─▶ its L1 over the active one ─▶ drop the old tree
 *	delete: new snapshot table ─▶ header ─▶ drop the snapshot's tree, COPIED flags of what is ours alone on again
 *
 * Each runs alone on the image.  Version 3 has the dirty bit set meanwhile: after a cut the next opening counts anew.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "block/qcow2/qcow2.h"

#define ENTRY_FIXED 40u
#define EXTRA_KNOWN 16u		/* VM state and disk size */

/* --- the table --- */

static void snapshot_fini(struct snapshot *s)
{
	free(s->id);
	free(s->name);
	free(s->extra);
}

void snapshots_free(struct qcow2 *q)
{
	for (uint32_t i = 0; i < q->nsnapshots; i++)
		snapshot_fini(&q->snapshots[i]);
	free(q->snapshots);
	q->snapshots = NULL;
	q->nsnapshots = 0;
}

static char *text(const uint8_t *p, size_t len)
{
	char *s = malloc(len + 1);

	if (s) {
		memcpy(s, p, len);
		s[len] = 0;
	}
	return s;
}

static bool good_l1(const struct qcow2 *q, const struct snapshot *s)
{
	uint64_t file = (q->file->size_bytes + q->cluster_bytes - 1) & ~(uint64_t)(q->cluster_bytes - 1);

	return !in_cluster(q, s->l1_offset) && s->l1_size <= L1_BYTES_MAX / 8 && (s->l1_offset || !s->l1_size) &&
	       range_inside(s->l1_offset, s->l1_size * 8ull, file);
}

/* One entry at p of at most len bytes; returns its length, padded, or -errno. */
static int64_t parse(const struct qcow2 *q, struct snapshot *s, const uint8_t *p, size_t len)
{
	uint32_t id_len, name_len;
	uint64_t need;

	if (len < ENTRY_FIXED)
		return -EINVAL;
	id_len = load_be16(p + 12);
	name_len = load_be16(p + 14);
	s->l1_offset = load_be64(p);
	s->l1_size = load_be32(p + 8);
	s->time_s = load_be32(p + 16);
	s->time_ns = load_be32(p + 20);
	s->vm_clock_ns = load_be64(p + 24);
	s->vm_state_bytes = load_be32(p + 32);
	s->extra_len = load_be32(p + 36);
	need = ENTRY_FIXED + (uint64_t)s->extra_len + id_len + name_len;
	if (need > len || s->extra_len > 1024 || !good_l1(q, s))
		return -EINVAL;
	s->extra = malloc(s->extra_len + 1u);
	s->id = text(p + ENTRY_FIXED + s->extra_len, id_len);
	s->name = text(p + ENTRY_FIXED + s->extra_len + id_len, name_len);
	if (!s->extra || !s->id || !s->name)
		return -ENOMEM;
	memcpy(s->extra, p + ENTRY_FIXED, s->extra_len);
	if (s->extra_len >= 8)
		s->vm_state_bytes = load_be64(s->extra);
	s->size_bytes = s->extra_len >= 16 ? load_be64(s->extra + 8) : q->h.size_bytes;
	return (int64_t)((need + 7) & ~7ull);
}

static int parse_all(struct qcow2 *q, const uint8_t *p, size_t len)
{
	size_t at = 0;

	for (uint32_t i = 0; i < q->h.nsnapshots; i++) {
		int64_t n;

		q->nsnapshots++;
		n = parse(q, &q->snapshots[i], p + at, len - at);
		if (n < 0)
			return (int)n;
		at = at + (size_t)n < len ? at + (size_t)n : len;
	}
	q->snapshot_table_bytes = at;
	return 0;
}

int snapshots_load(struct qcow2 *q, struct error *e)
{
	uint64_t size = q->file->size_bytes, from = q->h.snapshots_offset, len;
	char what[192];
	uint8_t *p;
	int ret;

	if (!q->h.nsnapshots)
		return 0;
	snprintf(what, sizeof(what), "open disk '%.150s'", q->n->path);
	len = from < size ? size - from : 0;
	len = len < SNAPSHOT_TABLE_MAX ? len : SNAPSHOT_TABLE_MAX;
	len = len < q->h.nsnapshots * 132000ull ? len : q->h.nsnapshots * 132000ull;
	p = malloc(len + 1);
	q->snapshots = calloc(q->h.nsnapshots, sizeof(*q->snapshots));
	ret = p && q->snapshots ? node_co_read(q->file, from, p, len) : -ENOMEM;
	if (!ret)
		ret = parse_all(q, p, len);
	free(p);
	if (ret == -EINVAL)
		return error_set(e, EINVAL, "restore it from a copy", what, "its snapshot table makes no sense");
	return ret ? error_errno(e, -ret, NULL, "open disk '%s'", q->n->path) : 0;
}

static size_t entry_bytes(const struct snapshot *s)
{
	uint32_t extra = s->extra_len < EXTRA_KNOWN ? EXTRA_KNOWN : s->extra_len;

	return (ENTRY_FIXED + (size_t)extra + strlen(s->id) + strlen(s->name) + 7) & ~(size_t)7;
}

static void entry_encode(const struct snapshot *s, uint8_t *p)
{
	uint32_t extra = s->extra_len < EXTRA_KNOWN ? EXTRA_KNOWN : s->extra_len;

	store_be64(p, s->l1_offset);
	store_be32(p + 8, s->l1_size);
	store_be16(p + 12, (uint16_t)strlen(s->id));
	store_be16(p + 14, (uint16_t)strlen(s->name));
	store_be32(p + 16, s->time_s);
	store_be32(p + 20, s->time_ns);
	store_be64(p + 24, s->vm_clock_ns);
	store_be32(p + 32, (uint32_t)s->vm_state_bytes);
	store_be32(p + 36, extra);
	if (s->extra_len)
		memcpy(p + ENTRY_FIXED, s->extra, s->extra_len);
	store_be64(p + ENTRY_FIXED, s->vm_state_bytes);
	store_be64(p + ENTRY_FIXED + 8, s->size_bytes);
	memcpy(p + ENTRY_FIXED + extra, s->id, strlen(s->id));
	memcpy(p + ENTRY_FIXED + extra + strlen(s->id), s->name, strlen(s->name));
}

/* Writes a table of n entries in a place of its own and has the header name it; drops the old one. */
static int table_write(struct qcow2 *q, const struct snapshot *s, uint32_t n)
{
	uint64_t bytes = 0, first = 0, got, old = q->h.snapshots_offset, old_clusters;
	uint8_t *p, field[12];
	int ret = 0;

	old_clusters = q->h.nsnapshots ? clusters_for(q, q->snapshot_table_bytes) : 0;
	for (uint32_t i = 0; i < n; i++)
		bytes += entry_bytes(&s[i]);
	if (bytes > SNAPSHOT_TABLE_MAX)
		return -EFBIG;
	p = calloc(1, bytes + 1);
	if (!p)
		return -ENOMEM;
	for (uint64_t i = 0, at = 0; i < n; at += entry_bytes(&s[i]), i++)
		entry_encode(&s[i], p + at);
	if (n)
		ret = clusters_alloc(q, clusters_for(q, bytes), true, &first, &got);
	if (!ret)
		ret = node_co_write(q->file, first << q->cluster_bits, p, bytes);
	free(p);
	if (!ret)
		ret = qcow2_commit(q);		/* counted, and in the file */
	store_be32(field, n);
	store_be64(field + 4, first << q->cluster_bits);
	if (!ret)
		ret = header_patch(q, H_SNAPSHOTS, field, sizeof(field));
	if (ret)
		return ret;
	q->h.nsnapshots = n;
	q->h.snapshots_offset = first << q->cluster_bits;
	q->snapshot_table_bytes = bytes;
	for (uint64_t i = 0; i < clusters_for(q, bytes); i++)
		set_add(&q->meta, first + i);
	return old_clusters ? clusters_unref_later(q, cluster_of(q, old), old_clusters) : 0;
}

/* --- trees --- */

enum tree_op { TREE_REF, TREE_UNREF };

static int entry_count(struct qcow2 *q, const uint8_t *p, enum tree_op op)
{
	uint64_t raw = load_be64(p), host = raw & ENTRY_OFFSET, len = 1;

	if (raw & ENTRY_COMPRESSED) {
		compressed_extent(q, raw, &host, &len);
	} else if (!host) {
		return 0;
	}
	len = cluster_of(q, host + len - 1) - cluster_of(q, host) + 1;
	return op == TREE_REF ? clusters_ref(q, cluster_of(q, host), len)
			      : clusters_unref_later(q, cluster_of(q, host), len);
}

/* The data clusters of one L2 table. */
static int table_count(struct qcow2 *q, uint64_t l2, enum tree_op op)
{
	uint32_t per = q->slice_bytes / q->entry_bytes;
	int ret = 0;

	for (uint32_t at = 0; at < q->cluster_bytes && !ret; at += q->slice_bytes) {
		struct table *t;

		ret = table_get(q, TABLE_L2, l2 + at, &t);
		if (ret)
			break;
		for (uint32_t i = 0; i < per && !ret; i++)
			ret = entry_count(q, t->data + (size_t)i * q->entry_bytes, op);
		table_put(q, t);
	}
	return ret;
}

static int tree_count(struct qcow2 *q, const uint64_t *l1, uint32_t n, enum tree_op op)
{
	int ret = 0;

	for (uint32_t i = 0; i < n && !ret; i++) {
		uint64_t l2 = l1[i] & ENTRY_OFFSET;

		if (!l2)
			continue;
		if (in_cluster(q, l2))
			return qcow2_corrupt(q, "an L2 table does not begin at a cluster", l2);
		ret = table_count(q, l2, op);
		if (!ret)
			ret = op == TREE_REF ? clusters_ref(q, cluster_of(q, l2), 1)
					     : clusters_unref_later(q, cluster_of(q, l2), 1);
		if (!ret && tables_crowded(q))
			ret = qcow2_commit(q);
	}
	return ret;
}

static int copied_entry(struct qcow2 *q, struct table *t, uint32_t at)
{
	uint64_t raw = load_be64(t->data + at), host = raw & ENTRY_OFFSET, count, now;
	int ret;

	if (raw & ENTRY_COMPRESSED || !host)
		return 0;
	ret = refcount_get(q, cluster_of(q, host), &count);
	now = (raw & ~ENTRY_COPIED) | (count == 1 ? ENTRY_COPIED : 0);
	if (ret || now == raw)
		return ret;
	store_be64(t->data + at, now);
	table_dirty(q, t, at, 8);
	return 0;
}

static int copied_table(struct qcow2 *q, uint64_t l2)
{
	int ret = 0;

	for (uint32_t at = 0; at < q->cluster_bytes && !ret; at += q->slice_bytes) {
		struct table *t;

		ret = table_get(q, TABLE_L2, l2 + at, &t);
		if (ret)
			break;
		for (uint32_t i = 0; i < q->slice_bytes && !ret; i += q->entry_bytes)
			ret = copied_entry(q, t, i);
		table_put(q, t);
	}
	return ret;
}

int copied_fix(struct qcow2 *q)
{
	int ret = 0;

	for (uint32_t i = 0; i < q->h.l1_size && !ret; i++) {
		uint64_t l2 = q->l1[i] & ENTRY_OFFSET, count;

		if (!l2)
			continue;
		ret = refcount_get(q, cluster_of(q, l2), &count);
		q->l1[i] = l2 | (count == 1 ? ENTRY_COPIED : 0);
		if (!ret)
			ret = copied_table(q, l2);
		if (!ret && tables_crowded(q))
			ret = qcow2_commit(q);
	}
	q->l1_dirty_from = 0;
	q->l1_dirty_to = q->h.l1_size;
	return ret;
}

/* --- operations --- */

static int fail(struct qcow2 *q, struct error *e, const char *verb, int ret)
{
	const char *todo = ret == -ERANGE ? "convert it to an image with wider refcounts" : NULL;

	return error_errno(e, -ret, todo, "%s '%s'", verb, q->n->path);
}

static int begin(struct qcow2 *q)
{
	int ret = qcow2_settle(q);

	if (!ret && q->h.version > 2)
		ret = header_set_features(q, q->h.incompatible | INCOMPAT_DIRTY, q->h.autoclear);
	return ret;
}

static int end(struct qcow2 *q)
{
	int ret = qcow2_settle(q);

	if (!ret && q->h.version > 2 && !(q->lazy && q->lazy_dirty))
		ret = header_set_features(q, q->h.incompatible & ~(uint64_t)INCOMPAT_DIRTY, q->h.autoclear);
	return ret;
}

static int find(const struct qcow2 *q, const char *what)
{
	for (uint32_t i = 0; i < q->nsnapshots; i++)
		if (!strcmp(q->snapshots[i].id, what))
			return (int)i;
	for (uint32_t i = 0; i < q->nsnapshots; i++)
		if (!strcmp(q->snapshots[i].name, what))
			return (int)i;
	return -1;
}

static int find_or_say(struct qcow2 *q, const char *name, struct error *e)
{
	char what[192];
	int i = find(q, name);

	if (i >= 0)
		return i;
	snprintf(what, sizeof(what), "find a snapshot of '%.140s'", q->n->path);
	return error_set(e, ENOENT, "see 'vixen image snapshot list'", what, "there is no '%.100s'", name);
}

int qcow2_snapshot_list(struct node *n, struct block_snapshot **list, unsigned *count, struct error *e)
{
	struct qcow2 *q = n->impl;
	struct block_snapshot *out = calloc(q->nsnapshots + 1u, sizeof(*out));

	if (!out)
		return error_errno(e, ENOMEM, NULL, "list snapshots");
	for (uint32_t i = 0; i < q->nsnapshots; i++) {
		const struct snapshot *s = &q->snapshots[i];

		snprintf(out[i].id, sizeof(out[i].id), "%s", s->id);
		snprintf(out[i].name, sizeof(out[i].name), "%s", s->name);
		out[i].time_s = s->time_s;
		out[i].time_ns = s->time_ns;
		out[i].vm_clock_ns = s->vm_clock_ns;
		out[i].vm_state_bytes = s->vm_state_bytes;
		out[i].size_bytes = s->size_bytes;
	}
	*list = out;
	*count = q->nsnapshots;
	return 0;
}

static int l1_copy_write(struct qcow2 *q, uint64_t *offset)
{
	uint64_t bytes = q->h.l1_size * 8ull, first, got;
	uint8_t *p = malloc(bytes);
	int ret = p ? clusters_alloc(q, clusters_for(q, bytes), true, &first, &got) : -ENOMEM;

	for (uint32_t i = 0; !ret && i < q->h.l1_size; i++)
		store_be64(p + i * 8ull, q->l1[i] & ~ENTRY_COPIED);
	if (!ret)
		ret = node_co_write(q->file, first << q->cluster_bits, p, bytes);
	for (uint64_t i = 0; !ret && i < clusters_for(q, bytes); i++)
		ret = set_add(&q->meta, first + i) ? 0 : -ENOMEM;
	free(p);
	*offset = first << q->cluster_bits;
	return ret;
}

static int snapshot_new(struct qcow2 *q, struct snapshot *s, const char *name)
{
	struct timespec now;
	unsigned long id = 0;
	char text_id[24];

	for (uint32_t i = 0; i < q->nsnapshots; i++) {
		unsigned long other = strtoul(q->snapshots[i].id, NULL, 10);

		id = other > id ? other : id;
	}
	snprintf(text_id, sizeof(text_id), "%lu", id + 1);
	clock_gettime(CLOCK_REALTIME, &now);
	*s = (struct snapshot){ .l1_size = q->h.l1_size, .id = strdup(text_id), .name = strdup(name),
				.time_s = (uint32_t)now.tv_sec, .time_ns = (uint32_t)now.tv_nsec,
				.size_bytes = q->h.size_bytes };
	if (s->id && s->name)
		return 0;
	snapshot_fini(s);
	return -ENOMEM;
}

static int create_locked(struct qcow2 *q, struct snapshot *s)
{
	int ret = begin(q);

	if (!ret)
		ret = tree_count(q, q->l1, q->h.l1_size, TREE_REF);
	if (!ret)
		ret = l1_copy_write(q, &s->l1_offset);
	if (!ret)
		ret = copied_fix(q);
	if (!ret)
		ret = table_write(q, q->snapshots, q->nsnapshots + 1);
	return ret ? ret : end(q);
}

/* The counting of a failed attempt is undone by counting anew. */
static void recount(struct qcow2 *q)
{
	struct block_check c = { 0 };

	qcow2_check(q->n, BLOCK_REPAIR_LEAKS | BLOCK_REPAIR_ERRORS, &c, NULL);
}

int qcow2_snapshot_create(struct node *n, const char *name, struct error *e)
{
	struct qcow2 *q = n->impl;
	struct snapshot *s = realloc(q->snapshots, sizeof(*s) * (q->nsnapshots + 1u));
	int ret;

	if (!s)
		return fail(q, e, "snapshot", -ENOMEM);
	q->snapshots = s;
	if (q->external)
		return error_set(e, EOPNOTSUPP, "make an external one: a new image with this as backing file",
				 "take an internal snapshot", "the data lies in an external file");
	if (find(q, name) >= 0)
		return error_set(e, EEXIST, "choose another name", "take a snapshot", "there is a '%.100s' already", name);
	if (!*name || strlen(name) > 255)
		return error_set(e, EINVAL, "choose another name", "take a snapshot", "its name is empty or too long");
	ret = snapshot_new(q, &s[q->nsnapshots], name);
	if (!ret) {
		ret = create_locked(q, &s[q->nsnapshots]);
		if (ret) {
			snapshot_fini(&s[q->nsnapshots]);
			recount(q);
		} else {
			q->nsnapshots++;
		}
	}
	return ret ? fail(q, e, "snapshot", ret) : 0;
}

static int l1_read(struct qcow2 *q, const struct snapshot *s, uint64_t **out)
{
	uint64_t *l1 = malloc(s->l1_size * 8ull + 8);
	int ret = l1 ? node_co_read(q->file, s->l1_offset, l1, s->l1_size * 8ull) : -ENOMEM;

	for (uint32_t i = 0; !ret && i < s->l1_size; i++)
		l1[i] = load_be64(&l1[i]);
	*out = l1;
	return ret;
}

/* L1 entries past the snapshot's own become empty. */
static void l1_replace(struct qcow2 *q, const uint64_t *l1, uint32_t n)
{
	for (uint32_t i = 0; i < q->h.l1_size; i++) {
		if (q->l1[i] & ENTRY_OFFSET)
			set_del(&q->meta, cluster_of(q, q->l1[i] & ENTRY_OFFSET));
		q->l1[i] = i < n ? l1[i] & ENTRY_OFFSET : 0;
		if (q->l1[i])
			set_add(&q->meta, cluster_of(q, q->l1[i]));
	}
	q->l1_dirty_from = 0;
	q->l1_dirty_to = q->h.l1_size;
}

static int apply_locked(struct qcow2 *q, const struct snapshot *s, const uint64_t *l1)
{
	uint64_t *old = NULL;
	uint8_t size[8];
	int ret = begin(q);

	if (!ret && s->l1_size > q->h.l1_size)
		ret = l1_grow(q, s->l1_size);
	if (!ret)
		ret = tree_count(q, l1, s->l1_size, TREE_REF);
	if (!ret)
		ret = (old = malloc(q->h.l1_size * 8ull + 8)) ? 0 : -ENOMEM;
	if (!ret) {
		memcpy(old, q->l1, q->h.l1_size * 8ull);
		l1_replace(q, l1, s->l1_size);
		ret = qcow2_commit(q);
	}
	store_be64(size, s->size_bytes);
	if (!ret && s->size_bytes != q->h.size_bytes)
		ret = header_patch(q, H_SIZE, size, sizeof(size));
	if (!ret) {
		q->h.size_bytes = s->size_bytes;
		q->n->size_bytes = (s->size_bytes + SECTOR - 1) & ~(uint64_t)(SECTOR - 1);
		ret = tree_count(q, old, q->h.l1_size, TREE_UNREF);
	}
	free(old);
	if (!ret)
		ret = qcow2_commit(q);
	if (!ret)
		ret = copied_fix(q);
	return ret ? ret : end(q);
}

int qcow2_snapshot_apply(struct node *n, const char *snapshot, struct error *e)
{
	struct qcow2 *q = n->impl;
	int i = find_or_say(q, snapshot, e), ret;
	uint64_t *l1, size = i < 0 ? 0 : q->snapshots[i].size_bytes, old = q->h.size_bytes;

	if (i < 0)
		return i;
	if (l1_entries_for(q, q->snapshots[i].size_bytes) > q->snapshots[i].l1_size)
		return error_set(e, EINVAL, "check the image", "revert to a snapshot", "its tables are too small");
	ret = l1_read(q, &q->snapshots[i], &l1);
	if (!ret)
		ret = bitmaps_co_mark(q, 0, n->size_bytes);
	if (!ret && size != old)
		ret = size > old ? bitmaps_resize(q, size) : bitmaps_resize_begin(q);
	if (!ret) {
		ret = apply_locked(q, &q->snapshots[i], l1);
		if (ret)
			recount(q);
	}
	if (!ret && size < old)
		ret = bitmaps_resize(q, size);
	free(l1);
	return ret ? fail(q, e, "revert", ret) : 0;
}

static int delete_locked(struct qcow2 *q, uint32_t i, const uint64_t *l1)
{
	struct snapshot gone = q->snapshots[i];
	uint64_t clusters = clusters_for(q, gone.l1_size * 8ull);
	int ret = begin(q);

	if (ret)
		return ret;
	memmove(&q->snapshots[i], &q->snapshots[i + 1], sizeof(gone) * (q->nsnapshots - i - 1));
	ret = table_write(q, q->snapshots, q->nsnapshots - 1);
	if (ret) {
		memmove(&q->snapshots[i + 1], &q->snapshots[i], sizeof(gone) * (q->nsnapshots - i - 1));
		q->snapshots[i] = gone;
		return ret;
	}
	q->nsnapshots--;
	ret = tree_count(q, l1, gone.l1_size, TREE_UNREF);
	if (!ret && clusters)
		ret = clusters_unref_later(q, cluster_of(q, gone.l1_offset), clusters);
	snapshot_fini(&gone);
	if (!ret)
		ret = qcow2_commit(q);
	if (!ret)
		ret = copied_fix(q);
	return ret ? ret : end(q);
}

int qcow2_snapshot_delete(struct node *n, const char *snapshot, struct error *e)
{
	struct qcow2 *q = n->impl;
	int i = find_or_say(q, snapshot, e), ret;
	uint64_t *l1;

	if (i < 0)
		return i;
	ret = l1_read(q, &q->snapshots[i], &l1);
	if (!ret) {
		ret = delete_locked(q, (uint32_t)i, l1);
		if (ret)
			recount(q);
	}
	free(l1);
	return ret ? fail(q, e, "delete a snapshot of", ret) : 0;
}
