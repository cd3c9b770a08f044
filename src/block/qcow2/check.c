/*
 * Checking: all references are counted anew and held against the refcounts in the file.
 *
 * Repairing: the counts found are written as new refcount blocks and a new table behind the end of the file, the
 * header names them, and the COPIED flags are set by them.  The old ones are free then.
 */
#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "block/qcow2/qcow2.h"

#define PAGE_BITS 14u
#define PAGE (1u << PAGE_BITS)

struct counts {
	struct qcow2 *q;
	struct block_check *c;
	uint64_t clusters;		/* of the file, and one */
	uint32_t **page;
	uint64_t last_data;		/* for fragmentation */
	bool guest;			/* statistics of the active tree are being made */
};

/* --- findings --- */

__attribute__((format(printf, 2, 3)))
static void say(struct block_check *c, const char *fmt, ...)
{
	char line[256];
	va_list args;

	if (!c->say)
		return;
	va_start(args, fmt);
	vsnprintf(line, sizeof(line), fmt, args);
	va_end(args);
	c->say(c->opaque, line);
}

static void corrupt(struct counts *k, const char *what, uint64_t offset)
{
	k->c->corruptions++;
	say(k->c, "error: %s (at 0x%llx)", what, (unsigned long long)offset);
}

/* --- counting --- */

static int counts_init(struct counts *k, struct qcow2 *q, struct block_check *c)
{
	*k = (struct counts){ .q = q, .c = c, .clusters = clusters_for(q, q->file->size_bytes) + 1 };
	k->page = calloc((k->clusters >> PAGE_BITS) + 1, sizeof(*k->page));
	return k->page ? 0 : -ENOMEM;
}

static void counts_fini(struct counts *k)
{
	for (uint64_t i = 0; k->page && i <= k->clusters >> PAGE_BITS; i++)
		free(k->page[i]);
	free(k->page);
}

static uint32_t count_of(const struct counts *k, uint64_t cluster)
{
	const uint32_t *p = cluster < k->clusters ? k->page[cluster >> PAGE_BITS] : NULL;

	return p ? p[cluster & (PAGE - 1)] : 0;
}

static int count(struct counts *k, uint64_t offset, uint64_t len, const char *what)
{
	uint64_t last = len ? cluster_of(k->q, offset + len - 1) : 0;

	if (!len)
		return 0;
	if (last >= k->clusters) {
		char line[160];

		snprintf(line, sizeof(line), "%s lies past the end of the file", what);
		corrupt(k, line, offset);
		return 0;
	}
	for (uint64_t c = cluster_of(k->q, offset); c <= last; c++) {
		uint32_t **p = &k->page[c >> PAGE_BITS];

		if (!*p)
			*p = calloc(PAGE, sizeof(**p));
		if (!*p)
			return -ENOMEM;
		if ((*p)[c & (PAGE - 1)] < UINT32_MAX)
			(*p)[c & (PAGE - 1)]++;
	}
	return 0;
}

/* --- trees --- */

static void statistics(struct counts *k, uint64_t raw, uint64_t host)
{
	if (!k->guest)
		return;
	k->c->allocated++;
	if (raw & ENTRY_COMPRESSED)
		k->c->compressed++;
	if (raw & ENTRY_COMPRESSED || (k->last_data && host != k->last_data + k->q->cluster_bytes))
		k->c->fragmented++;
	k->last_data = host;
}

static int entry(struct counts *k, const uint8_t *p)
{
	struct qcow2 *q = k->q;
	uint64_t raw = load_be64(p), host = raw & ENTRY_OFFSET, len = q->cluster_bytes;

	if (raw & ENTRY_COMPRESSED) {
		if (q->external)
			corrupt(k, "a compressed cluster beside an external data file", raw & ENTRY_OFFSET);
		compressed_extent(q, raw, &host, &len);
	} else if (q->subclusters > 1 && load_be64(p + 8) & load_be64(p + 8) >> 32 & UINT32_MAX) {
		corrupt(k, "a subcluster is data and zeroes at the same time", host);
	}
	if (!host)
		return 0;
	if (!(raw & ENTRY_COMPRESSED) && in_cluster(q, host)) {
		corrupt(k, "a data cluster is not aligned", host);
		return 0;
	}
	statistics(k, raw, host);
	return q->external ? 0 : count(k, host, len, "a data cluster");
}

static int l2_entries(struct counts *k, uint64_t l2)
{
	struct qcow2 *q = k->q;
	uint8_t *b = malloc(q->cluster_bytes);
	int ret = b ? node_co_read(q->file, l2, b, q->cluster_bytes) : -ENOMEM;

	for (uint32_t at = 0; at < q->cluster_bytes && !ret; at += q->entry_bytes)
		ret = entry(k, b + at);
	free(b);
	return ret;
}

static int tree(struct counts *k, const uint64_t *l1, uint32_t n, bool guest)
{
	int ret = 0;

	k->guest = guest;
	for (uint32_t i = 0; i < n && !ret; i++) {
		uint64_t l2 = l1[i] & ENTRY_OFFSET;

		if (!l2)
			continue;
		if (in_cluster(k->q, l2)) {
			corrupt(k, "an L2 table does not begin at a cluster", l2);
			continue;
		}
		ret = count(k, l2, k->q->cluster_bytes, "an L2 table");
		if (!ret)
			ret = l2_entries(k, l2);
	}
	return ret;
}

static int snapshot_tree(struct counts *k, const struct snapshot *s)
{
	uint64_t bytes = s->l1_size * 8ull, *l1 = malloc(bytes + 8);
	int ret = l1 ? node_co_read(k->q->file, s->l1_offset, l1, bytes) : -ENOMEM;

	for (uint32_t i = 0; !ret && i < s->l1_size; i++)
		l1[i] = load_be64(&l1[i]);
	if (!ret)
		ret = count(k, s->l1_offset, bytes, "the L1 table of a snapshot");
	if (!ret)
		ret = tree(k, l1, s->l1_size, false);
	free(l1);
	return ret;
}

/* --- bitmaps; those that are out of date no longer own what they name --- */

static int bitmap_data(struct counts *k, uint64_t offset, uint32_t n)
{
	struct qcow2 *q = k->q;
	uint64_t *t = n <= (32u << 20) / 8 && !in_cluster(q, offset) ? malloc(n * 8ull + 8) : NULL;
	int ret = 0;

	if (!t) {
		corrupt(k, "a bitmap's table cannot be", offset);
		return 0;
	}
	ret = node_co_read(q->file, offset, t, n * 8ull);
	if (!ret)
		ret = count(k, offset, n * 8ull, "a bitmap's table");
	for (uint32_t i = 0; i < n && !ret; i++)
		if (load_be64(&t[i]) & ENTRY_OFFSET)
			ret = count(k, load_be64(&t[i]) & ENTRY_OFFSET, q->cluster_bytes, "a bitmap");
	free(t);
	return ret;
}

static int bitmaps(struct counts *k)
{
	struct qcow2 *q = k->q;
	uint64_t bytes = q->h.bitmap_dir_bytes, at = 0;
	uint8_t *p;
	int ret;

	if (!q->h.nbitmaps || !(q->h.autoclear & AUTOCLEAR_BITMAPS))
		return 0;
	p = bytes <= SNAPSHOT_TABLE_MAX && !in_cluster(q, q->h.bitmap_dir_offset) ? malloc(bytes + 1) : NULL;
	if (!p) {
		corrupt(k, "the directory of bitmaps cannot be", q->h.bitmap_dir_offset);
		return 0;
	}
	ret = node_co_read(q->file, q->h.bitmap_dir_offset, p, bytes);
	if (!ret)
		ret = count(k, q->h.bitmap_dir_offset, bytes, "the directory of bitmaps");
	for (uint32_t i = 0; i < q->h.nbitmaps && !ret; i++) {
		if (bytes - at < 24) {
			corrupt(k, "the directory of bitmaps is cut short", q->h.bitmap_dir_offset + at);
			break;
		}
		ret = bitmap_data(k, load_be64(p + at), load_be32(p + at + 8));
		at += (24ull + load_be16(p + at + 18) + load_be32(p + at + 20) + 7) & ~7ull;
		at = at < bytes ? at : bytes;
	}
	free(p);
	return ret;
}

/* --- everything that refers to clusters, but for refcounts themselves --- */

static int count_all(struct counts *k)
{
	struct qcow2 *q = k->q;
	int ret = count(k, 0, q->cluster_bytes, "the header");

	if (!ret)
		ret = count(k, q->h.l1_offset, q->h.l1_size * 8ull, "the L1 table");
	if (!ret)
		ret = tree(k, q->l1, q->h.l1_size, true);
	if (!ret && q->h.nsnapshots)
		ret = count(k, q->h.snapshots_offset, q->snapshot_table_bytes, "the snapshot table");
	for (uint32_t i = 0; i < q->nsnapshots && !ret; i++)
		ret = snapshot_tree(k, &q->snapshots[i]);
	if (!ret)
		ret = bitmaps(k);
	if (!ret)
		ret = count(k, q->h.crypt_offset, q->h.crypt_bytes, "the encryption header");
	return ret;
}

static int count_refcounts(struct counts *k)
{
	struct qcow2 *q = k->q;
	int ret = count(k, q->h.rt_offset, (uint64_t)q->h.rt_clusters << q->cluster_bits, "the refcount table");

	for (uint32_t i = 0; i < q->rt_entries && !ret; i++) {
		if (!q->rt[i])
			continue;
		if (in_cluster(q, q->rt[i]) || q->rt[i] >= HOST_MAX)
			corrupt(k, "a refcount block is not where one can be", q->rt[i]);
		else
			ret = count(k, q->rt[i], q->cluster_bytes, "a refcount block");
	}
	return ret;
}

/* --- comparing --- */

/* Nothing was counted in a stretch of the file, as far as whole pages say. */
static bool nothing_in(const struct counts *k, uint64_t first, uint64_t n)
{
	for (uint64_t p = first >> PAGE_BITS; p <= (first + n - 1) >> PAGE_BITS && p <= k->clusters >> PAGE_BITS; p++)
		if (k->page[p])
			return false;
	return true;
}

static int block_compare(struct counts *k, uint64_t first, const uint8_t *b)
{
	struct qcow2 *q = k->q;
	uint64_t rb = 1ull << q->rb_bits;

	for (uint64_t i = 0; i < rb; i++) {
		uint64_t have = b ? refcount_entry(b, q->h.refcount_order, i) : 0, want = count_of(k, first + i);

		if (have == want)
			continue;
		if (have > want) {
			k->c->leaks++;
			say(k->c, "leaked: cluster %llu is counted %llu times, used %llu times",
			    (unsigned long long)(first + i), (unsigned long long)have, (unsigned long long)want);
		} else {
			k->c->corruptions++;
			say(k->c, "error: cluster %llu is counted %llu times, used %llu times",
			    (unsigned long long)(first + i), (unsigned long long)have, (unsigned long long)want);
		}
	}
	return 0;
}

static int compare(struct counts *k)
{
	struct qcow2 *q = k->q;
	uint8_t *b = malloc(q->cluster_bytes);
	uint64_t blocks = (k->clusters >> q->rb_bits) + 1;
	int ret = b ? 0 : -ENOMEM;

	blocks = blocks > q->rt_entries ? blocks : q->rt_entries;
	for (uint64_t i = 0; i < blocks && !ret; i++) {
		uint64_t at = i < q->rt_entries ? q->rt[i] : 0;
		bool there = at && !in_cluster(q, at) && at < HOST_MAX;

		if (there)
			ret = node_co_read(q->file, at, b, q->cluster_bytes);
		if (!ret && (there || !nothing_in(k, i << q->rb_bits, 1ull << q->rb_bits)))
			ret = block_compare(k, i << q->rb_bits, there ? b : NULL);
	}
	free(b);
	return ret;
}

static void copied_wrong(struct counts *k, uint64_t raw, uint64_t host, const char *what)
{
	uint64_t have = 0;

	if (in_cluster(k->q, host) || refcount_get(k->q, cluster_of(k->q, host), &have))
		return;
	if ((have == 1) != !!(raw & ENTRY_COPIED))
		corrupt(k, what, host);
}

/* Flags of the active tree, as the refcounts in the file have it. */
static int compare_copied(struct counts *k)
{
	struct qcow2 *q = k->q;
	int ret = 0;

	for (uint32_t i = 0; i < q->h.l1_size && !ret; i++) {
		uint64_t l2 = q->l1[i] & ENTRY_OFFSET;
		uint8_t *b;

		if (!l2 || in_cluster(q, l2))
			continue;
		copied_wrong(k, q->l1[i], l2, "the COPIED flag of an L2 table is wrong");
		b = malloc(q->cluster_bytes);
		ret = b ? node_co_read(q->file, l2, b, q->cluster_bytes) : -ENOMEM;
		for (uint32_t at = 0; at < q->cluster_bytes && !ret && !q->external; at += q->entry_bytes) {
			uint64_t raw = load_be64(b + at);

			if (!(raw & ENTRY_COMPRESSED) && raw & ENTRY_OFFSET)
				copied_wrong(k, raw, raw & ENTRY_OFFSET, "the COPIED flag of a cluster is wrong");
		}
		free(b);
	}
	return ret;
}

/* --- repairing --- */

struct rebuilt {
	uint64_t base, rt_clusters, blocks;	/* base: cluster of the table; the blocks follow */
	uint64_t *rt;
};

static int rebuilt_init(const struct counts *k, struct rebuilt *r)
{
	const struct qcow2 *q = k->q;
	uint64_t rb = 1ull << q->rb_bits;

	r->base = k->clusters;
	r->rt_clusters = 1;
	for (r->blocks = 1;; r->blocks++) {
		r->rt_clusters = clusters_for(q, r->blocks * 8);
		if (r->blocks * rb >= r->base + r->rt_clusters + r->blocks)
			break;
	}
	if (r->rt_clusters << q->cluster_bits > RT_BYTES_MAX)
		return -EFBIG;
	r->rt = calloc((size_t)r->rt_clusters << q->cluster_bits, 1);
	return r->rt ? 0 : -ENOMEM;
}

static int rebuilt_block(struct counts *k, const struct rebuilt *r, uint64_t i, uint8_t *b)
{
	struct qcow2 *q = k->q;
	uint64_t first = i << q->rb_bits, end = r->base + r->rt_clusters + r->blocks;

	memset(b, 0, q->cluster_bytes);
	for (uint64_t n = 0; n < 1ull << q->rb_bits; n++) {
		uint64_t c = first + n, v = c >= r->base && c < end ? 1 : count_of(k, c);

		if (v > q->refcount_max)
			return -ERANGE;
		refcount_entry_set(b, q->h.refcount_order, n, v);
	}
	r->rt[i] = (r->base + r->rt_clusters + i) << q->cluster_bits;
	return node_co_write(q->file, r->rt[i], b, q->cluster_bytes);
}

static void adopt(struct qcow2 *q, struct rebuilt *r)
{
	for (size_t i = 0; i < q->cache.n; i++)
		if (q->cache.all[i]->kind == TABLE_REFS && !q->cache.all[i]->dropped)
			tables_drop(q, q->cache.all[i]->offset, q->slice_bytes);
	free(q->rt);
	q->rt = r->rt;
	q->rt_entries = (uint32_t)((r->rt_clusters << q->cluster_bits) / 8);
	q->rt_dirty_from = q->rt_dirty_to = 0;
	q->h.rt_offset = r->base << q->cluster_bits;
	q->h.rt_clusters = (uint32_t)r->rt_clusters;
	q->hint = 1;
	q->packed_at = 0;
	q->frees.n = 0;
	r->rt = NULL;
}

static int rebuild(struct counts *k)
{
	struct qcow2 *q = k->q;
	struct rebuilt r = { 0 };
	uint8_t *b = malloc(q->cluster_bytes), field[12];
	int ret = b ? rebuilt_init(k, &r) : -ENOMEM;

	for (uint64_t i = 0; i < r.blocks && !ret; i++)
		ret = rebuilt_block(k, &r, i, b);
	for (uint64_t i = 0; i < r.rt_clusters && !ret; i++) {
		for (uint32_t n = 0; n < q->cluster_bytes / 8; n++)
			store_be64(b + n * 8ull, r.rt[i * (q->cluster_bytes / 8) + n]);
		ret = node_co_write(q->file, (r.base + i) << q->cluster_bits, b, q->cluster_bytes);
	}
	free(b);
	if (!ret)
		ret = node_co_flush(q->file);
	store_be64(field, r.base << q->cluster_bits);
	store_be32(field + 8, (uint32_t)r.rt_clusters);
	if (!ret)
		ret = header_patch(q, H_RT_OFFSET, field, sizeof(field));
	if (!ret)
		adopt(q, &r);
	free(r.rt);
	return ret;
}

static int repair(struct qcow2 *q, struct counts *k)
{
	int ret = rebuild(k);

	if (!ret)
		ret = copied_fix(q);
	if (!ret && meta_collect(q) == -ENOMEM)
		ret = -ENOMEM;
	if (!ret)
		ret = qcow2_commit(q);
	if (!ret)
		ret = header_set_features(q, q->h.incompatible & ~(uint64_t)(INCOMPAT_DIRTY | INCOMPAT_CORRUPT),
					  q->h.autoclear);
	if (!ret)
		q->lazy_dirty = q->corrupt = false;
	return ret;
}

/* --- the whole --- */

static int look(struct counts *k, struct qcow2 *q, struct block_check *c)
{
	int ret = counts_init(k, q, c);

	if (!ret)
		ret = count_all(k);
	if (!ret)
		ret = count_refcounts(k);
	if (!ret)
		ret = compare(k);
	return ret ? ret : compare_copied(k);
}

/* What was found is compared with what a second look finds. */
static int repair_and_look(struct qcow2 *q, struct block_check *c)
{
	struct block_check quiet = { 0 };
	struct counts k;
	int ret = counts_init(&k, q, &quiet);

	if (!ret)
		ret = count_all(&k);
	if (!ret)
		ret = repair(q, &k);
	counts_fini(&k);
	quiet = (struct block_check){ 0 };
	if (!ret)
		ret = look(&k, q, &quiet);
	if (!ret)
		counts_fini(&k);
	if (ret)
		return ret;
	c->corruptions_fixed = c->corruptions - (quiet.corruptions < c->corruptions ? quiet.corruptions : c->corruptions);
	c->leaks_fixed = c->leaks - (quiet.leaks < c->leaks ? quiet.leaks : c->leaks);
	c->corruptions = quiet.corruptions;
	c->leaks = quiet.leaks;
	return 0;
}

int qcow2_check(struct node *n, unsigned repair_flags, struct block_check *c, struct error *e)
{
	struct qcow2 *q = n->impl;
	bool dirty = q->h.incompatible & (INCOMPAT_DIRTY | INCOMPAT_CORRUPT);
	struct counts k = { 0 };
	int ret = n->readonly || (dirty && !q->lazy_dirty) ? 0 : qcow2_settle(q);

	if (!ret)
		ret = look(&k, q, c);
	if (!ret) {
		c->clusters = clusters_for(q, n->size_bytes);
		for (uint64_t i = k.clusters; i-- && !c->end_bytes;)
			if (count_of(&k, i))
				c->end_bytes = (i + 1) << q->cluster_bits;
	}
	counts_fini(&k);
	if (!ret && repair_flags && ((c->corruptions && repair_flags & BLOCK_REPAIR_ERRORS) || c->leaks || dirty))
		ret = repair_and_look(q, c);
	return ret ? error_errno(e, -ret, NULL, "check disk '%s'", n->path) : 0;
}
