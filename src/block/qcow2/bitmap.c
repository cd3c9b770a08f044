/* Bitmaps in the file: the directory, tables, bits. */
#include "block/qcow2/bitmap.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#define ENTRY_FIXED 24u
#define TYPE_DIRTY 1u
#define TABLE_ONES 1u

void bitmap_free(struct qcow2 *q, struct bitmap *m)
{
	(void)q;
	if (!m)
		return;
	free(m->name);
	free(m->table);
	free(m->old_table);
	dirty_fini(&m->bits);
	dirty_fini(&m->safe);
	dirty_fini(&m->filed);
	dirty_fini(&m->frozen);
	free(m);
}

void bitmaps_fini(struct qcow2 *q)
{
	for (uint32_t i = 0; i < q->nbitmaps; i++)
		bitmap_free(q, q->bitmap[i]);
	free(q->bitmap);
	q->bitmap = NULL;
	q->nbitmaps = q->ntracking = 0;
}

struct bitmap *bitmap_find(struct qcow2 *q, const char *name)
{
	for (uint32_t i = 0; i < q->nbitmaps; i++)
		if (!strcmp(q->bitmap[i]->name, name))
			return q->bitmap[i];
	return NULL;
}

static uint64_t table_entries(const struct qcow2 *q, unsigned gran_bits, uint64_t size_bytes)
{
	uint64_t bits = (size_bytes + (1ull << gran_bits) - 1) >> gran_bits;

	return clusters_for(q, (bits + 7) / 8);
}

bool bitmap_table_fits(const struct qcow2 *q, const struct bitmap *m)
{
	return m->table_size == table_entries(q, m->gran_bits, q->n->size_bytes);
}

/* --- the directory --- */

static bool entry_good(struct qcow2 *q, const struct bitmap *m, uint32_t type, uint32_t extra)
{
	uint64_t need;

	if (type != TYPE_DIRTY || extra || m->gran_bits < DIRTY_BITS_MIN || m->gran_bits > DIRTY_BITS_MAX ||
	    m->flags & ~(BITMAP_IN_USE | BITMAP_AUTO) || !*m->name || bitmap_find(q, m->name))
		return false;
	need = table_entries(q, m->gran_bits, q->n->size_bytes);
	return !in_cluster(q, m->table_offset) && m->table_offset && inside_file(q, m->table_offset, m->table_size * 8ull) &&
	       m->table_size <= DIRTY_BYTES_MAX >> CLUSTER_BITS_MIN &&
	        need << q->cluster_bits <= 2 * DIRTY_BYTES_MAX &&
	       (m->table_size == need || m->flags & BITMAP_IN_USE);
}

/* One at p of at most len bytes: its length, padded, or -errno. */
static int64_t entry_parse(struct qcow2 *q, struct bitmap *m, const uint8_t *p, uint64_t len)
{
	uint32_t name_len, extra;
	uint64_t all;

	if (len < ENTRY_FIXED)
		return -EINVAL;
	m->table_offset = load_be64(p);
	m->table_size = load_be32(p + 8);
	m->flags = load_be32(p + 12);
	m->gran_bits = p[17];
	name_len = load_be16(p + 18);
	extra = load_be32(p + 20);
	all = ENTRY_FIXED + (uint64_t)extra + name_len;
	if (all > len || name_len > BITMAP_NAME_MAX || extra || memchr(p + ENTRY_FIXED, 0, name_len))
		return -EINVAL;
	m->name = strndup((const char *)p + ENTRY_FIXED, name_len);
	if (!m->name)
		return -ENOMEM;
	return entry_good(q, m, p[16], extra) ? (int64_t)((all + 7) & ~7ull) : -EINVAL;
}

static int table_read(struct qcow2 *q, struct bitmap *m)
{
	int ret;

	m->table = malloc(m->table_size * 8ull + 8);
	ret = m->table ? node_co_read(q->file, m->table_offset, m->table, m->table_size * 8ull) : -ENOMEM;
	for (uint32_t i = 0; !ret && i < m->table_size; i++) {
		uint64_t entry = load_be64(&m->table[i]), at = entry & ENTRY_OFFSET;

		m->table[i] = entry;
		if (entry & ~(ENTRY_OFFSET | TABLE_ONES) || (at && (entry & TABLE_ONES || in_cluster(q, at) ||
								    !inside_file(q, at, q->cluster_bytes))))
			return -EINVAL;
	}
	return ret;
}

static int dir_parse(struct qcow2 *q, const uint8_t *p, uint64_t len)
{
	uint64_t at = 0;

	for (uint32_t i = 0; i < q->h.nbitmaps; i++) {
		struct bitmap *m = calloc(1, sizeof(*m));
		int64_t n = m ? entry_parse(q, m, p + at, len - at) : -ENOMEM;
		int ret = n < 0 ? (int)n : table_read(q, m);

		if (ret) {
			bitmap_free(q, m);
			return ret;
		}
		m->flags_at = q->h.bitmap_dir_offset + at + 12;
		m->unclean = m->flags & BITMAP_IN_USE;
		q->bitmap[q->nbitmaps++] = m;
		at += (uint64_t)n;
		if (at > len)
			at = len;
	}
	return at == len ? 0 : -EINVAL;
}

static int dir_read(struct qcow2 *q)
{
	uint64_t bytes = q->h.bitmap_dir_bytes, at = q->h.bitmap_dir_offset;
	uint8_t *p;
	int ret;

	if (q->h.nbitmaps > BITMAPS_MAX || bytes > BITMAP_DIR_MAX || in_cluster(q, at) || !at ||
	    q->h.nbitmaps > bytes / ENTRY_FIXED || !inside_file(q, at, bytes))
		return -EINVAL;
	p = malloc(bytes);
	q->bitmap = calloc(q->h.nbitmaps, sizeof(*q->bitmap));
	ret = p && q->bitmap ? node_co_read(q->file, at, p, bytes) : -ENOMEM;
	if (!ret)
		ret = dir_parse(q, p, bytes);
	free(p);
	return ret;
}

int bitmaps_open(struct qcow2 *q)
{
	int ret;

	if (!q->h.nbitmaps || !(q->h.autoclear & AUTOCLEAR_BITMAPS))
		return 0;
	ret = dir_read(q);
	if (ret)
		bitmaps_fini(q);
	if (ret == -EINVAL)
		log_warn("disk '%s': its dirty bitmaps make no sense and are not used", q->n->path);
	return ret == -EINVAL ? 0 : ret;
}

/* --- writing the directory --- */

static uint64_t entry_bytes(const struct bitmap *m)
{
	return (ENTRY_FIXED + strlen(m->name) + 7) & ~7ull;
}

static void entry_encode(const struct bitmap *m, uint8_t *p)
{
	store_be64(p, m->table_offset);
	store_be32(p + 8, m->table_size);
	store_be32(p + 12, m->flags);
	p[16] = TYPE_DIRTY;
	p[17] = (uint8_t)m->gran_bits;
	store_be16(p + 18, (uint16_t)strlen(m->name));
	memcpy(p + ENTRY_FIXED, m->name, strlen(m->name));
}

static int dir_put(struct qcow2 *q, uint64_t bytes, uint64_t *offset)
{
	uint8_t *p = calloc(1, bytes);
	uint64_t first, got;
	int ret = p ? clusters_alloc(q, clusters_for(q, bytes), true, &first, &got) : -ENOMEM;

	for (uint64_t i = 0, at = 0; !ret && i < q->nbitmaps; at += entry_bytes(q->bitmap[i]), i++)
		entry_encode(q->bitmap[i], p + at);
	if (!ret)
		ret = node_co_write(q->file, first << q->cluster_bits, p, bytes);
	free(p);
	for (uint64_t i = 0; !ret && i < got; i++)
		ret = set_add(&q->meta, first + i) ? 0 : -ENOMEM;
	*offset = ret ? 0 : first << q->cluster_bits;
	return ret;
}

static int old_tables_drop(struct qcow2 *q);

int bitmaps_dir_write(struct qcow2 *q)
{
	bool valid = q->h.autoclear & AUTOCLEAR_BITMAPS;
	uint64_t bytes = 0, offset = 0, old = valid ? q->h.bitmap_dir_offset : 0, old_bytes = q->h.bitmap_dir_bytes;
	uint64_t autoclear = q->h.autoclear & ~(uint64_t)AUTOCLEAR_BITMAPS;
	int ret = qcow2_begin_change(q);

	for (uint32_t i = 0; i < q->nbitmaps; i++)
		bytes += entry_bytes(q->bitmap[i]);
	if (bytes > BITMAP_DIR_MAX)
		return -EFBIG;
	if (!ret && bytes)
		ret = dir_put(q, bytes, &offset);
	if (!ret)
		ret = qcow2_commit(q);		/* counted, and in the file */
	if (!ret)
		ret = header_set_bitmaps(q, q->nbitmaps, bytes, offset, bytes ? autoclear | AUTOCLEAR_BITMAPS : autoclear);
	if (ret)
		return ret;
	for (uint64_t i = 0, at = offset; i < q->nbitmaps; at += entry_bytes(q->bitmap[i]), i++)
		q->bitmap[i]->flags_at = at + 12;
	ret = old_tables_drop(q);
	return ret || !old ? ret : clusters_unref_later(q, cluster_of(q, old), clusters_for(q, old_bytes));
}

int bitmap_flags_write(struct qcow2 *q, struct bitmap *m, uint32_t flags)
{
	uint8_t b[4];
	int ret;

	store_be32(b, flags);
	ret = node_co_write(q->file, m->flags_at, b, sizeof(b));
	if (!ret)
		m->flags = flags;
	return ret;
}

/* --- bits --- */

static int bits_read(struct qcow2 *q, struct bitmap *m, uint8_t *b)
{
	int ret = 0;

	for (uint32_t i = 0; i < m->table_size && !ret; i++) {
		if (m->table[i] & ENTRY_OFFSET)
			ret = node_co_read(q->file, m->table[i] & ENTRY_OFFSET, b, q->cluster_bytes);
		else
			memset(b, m->table[i] ? 0xff : 0, q->cluster_bytes);
		if (!ret)
			dirty_import(&m->bits, (uint64_t)i << q->cluster_bits, b, q->cluster_bytes);
	}
	return ret;
}

/* Not exact after a crash; all set if it cannot be known what changed. */
int bitmap_load(struct qcow2 *q, struct bitmap *m)
{
	bool in_use = m->flags & BITMAP_IN_USE;
	uint8_t *b = malloc(q->cluster_bytes);
	int ret = b ? dirty_init(&m->bits, q->n->size_bytes, m->gran_bits) : -ENOMEM;

	m->lost = (in_use && !(q->h.autoclear & AUTOCLEAR_AHEAD)) || !bitmap_table_fits(q, m);
	if (!ret && m->lost)
		dirty_set_all(&m->bits);
	else if (!ret)
		ret = bits_read(q, m, b);
	if (!ret)
		ret = dirty_copy(&m->safe, &m->bits);
	if (!ret)
		ret = dirty_copy(&m->filed, &m->bits);
	free(b);
	m->loaded = !ret;
	if (ret) {
		dirty_fini(&m->bits);
		dirty_fini(&m->safe);
		dirty_fini(&m->filed);
	}
	return ret;
}

int bitmap_write_range(struct qcow2 *q, struct bitmap *m, const struct dirty *d, uint64_t from, uint64_t to)
{
	uint64_t at = from & ~(uint64_t)(SECTOR - 1), end = (to + SECTOR - 1) & ~(uint64_t)(SECTOR - 1);
	uint8_t *b = malloc(q->cluster_bytes);
	int ret = b ? 0 : -ENOMEM;

	for (uint64_t len; at < end && !ret; at += len) {
		uint64_t i = cluster_of(q, at), host = m->table[i] & ENTRY_OFFSET;

		ASSERT(i < m->table_size && host);
		len = q->cluster_bytes - in_cluster(q, at);
		len = len < end - at ? len : end - at;
		dirty_export(d, at, b, len);
		ret = node_co_write(q->file, host + in_cluster(q, at), b, len);
	}
	free(b);
	return ret;
}

static int place_new(struct qcow2 *q, struct bitmap *m, uint32_t i)
{
	uint64_t first, got;
	int ret = clusters_alloc(q, 1, true, &first, &got);

	if (ret)
		return ret;
	if (!set_add(&q->meta, first)) {
		clusters_unref(q, first, 1);
		return -ENOMEM;
	}
	m->table[i] = first << q->cluster_bits;
	return 0;
}

/* The places are counted, and hold what they should, before the table names them. */
static int table_write(struct qcow2 *q, struct bitmap *m)
{
	uint8_t *b = malloc(m->table_size * 8ull + 8);
	int ret = b ? qcow2_commit(q) : -ENOMEM;

	for (uint32_t i = 0; !ret && i < m->table_size; i++)
		store_be64(b + i * 8ull, m->table[i]);
	if (!ret)
		ret = node_co_write(q->file, m->table_offset, b, m->table_size * 8ull);
	free(b);
	return ret;
}

/* Does what the file says of cluster i without any place agree with the bits? */
static bool implied(const struct qcow2 *q, const struct bitmap *m, uint32_t i)
{
	uint64_t bytes = (uint64_t)i << q->cluster_bits << 3 << m->gran_bits;
	uint64_t len = (uint64_t)q->cluster_bytes << 3 << m->gran_bits;

	return m->table[i] & TABLE_ONES ? dirty_all_set(&m->bits, bytes, len) : !dirty_any_set(&m->bits, bytes, len);
}

int bitmap_store(struct qcow2 *q, struct bitmap *m, bool whole)
{
	bool table = false;
	int ret = qcow2_begin_change(q);

	dirty_assign(&m->safe, &m->bits);
	dirty_merge(&m->filed, &m->safe);
	for (uint32_t i = 0; i < m->table_size && !ret; i++) {
		if (m->table[i] & ENTRY_OFFSET || (!whole && implied(q, m, i)))
			continue;
		ret = place_new(q, m, i);
		table = true;
	}
	for (uint32_t i = 0; i < m->table_size && !ret; i++)
		if (m->table[i] & ENTRY_OFFSET)
			ret = bitmap_write_range(q, m, &m->safe, (uint64_t)i << q->cluster_bits,
						 (i + 1ull) << q->cluster_bits);
	if (!ret && table)
		ret = table_write(q, m);
	if (!ret)
		ret = node_co_flush(q->file);
	if (!ret)
		dirty_assign(&m->filed, &m->safe);
	return ret;
}

static int table_drop(struct qcow2 *q, uint64_t offset, const uint64_t *table, uint32_t n)
{
	int ret = clusters_unref_later(q, cluster_of(q, offset), clusters_for(q, n * 8ull));

	for (uint32_t i = 0; i < n && !ret; i++)
		if (table[i] & ENTRY_OFFSET)
			ret = clusters_unref_later(q, cluster_of(q, table[i] & ENTRY_OFFSET), 1);
	return ret;
}

int bitmap_drop(struct qcow2 *q, const struct bitmap *m)
{
	return table_drop(q, m->table_offset, m->table, m->table_size);
}

/* The table goes.  The directory may name it until the next one is written: till then it stays what it is. */
static int table_retire(struct qcow2 *q, struct bitmap *m)
{
	if (m->old_table) {		/* no directory has named this one */
		int ret = bitmap_drop(q, m);

		if (ret)
			return ret;
		free(m->table);
	} else {
		m->old_table = m->table;
		m->old_offset = m->table_offset;
		m->old_size = m->table_size;
	}
	return 0;
}

static int old_tables_drop(struct qcow2 *q)
{
	int ret = 0;

	for (uint32_t i = 0; i < q->nbitmaps; i++) {
		struct bitmap *m = q->bitmap[i];

		if (m->old_table && !ret)
			ret = table_drop(q, m->old_offset, m->old_table, m->old_size);
		free(m->old_table);
		m->old_table = NULL;
	}
	return ret;
}

int bitmap_table_new(struct qcow2 *q, struct bitmap *m, uint64_t size_bytes)
{
	uint64_t n = table_entries(q, m->gran_bits, size_bytes), first, got, *table = calloc(n + 1, 8);
	uint64_t clusters = n ? clusters_for(q, n * 8) : 1;
	uint8_t *zeroes = calloc(clusters, q->cluster_bytes);
	int ret = table && zeroes ? qcow2_begin_change(q) : -ENOMEM;

	if (!ret)
		ret = clusters_alloc(q, clusters, true, &first, &got);
	if (!ret)
		ret = node_co_write(q->file, first << q->cluster_bits, zeroes, clusters << q->cluster_bits);
	for (uint64_t i = 0; !ret && i < clusters; i++)
		ret = set_add(&q->meta, first + i) ? 0 : -ENOMEM;
	free(zeroes);
	if (!ret && m->table_offset)
		ret = table_retire(q, m);
	if (ret) {
		free(table);
		return ret;
	}
	m->table = table;
	m->table_size = (uint32_t)n;
	m->table_offset = first << q->cluster_bits;
	return 0;
}

/* --- where they lie --- */

int bitmaps_meta(struct qcow2 *q, int (*add)(struct qcow2 *q, uint64_t offset, uint64_t clusters, bool shared))
{
	int ret = q->nbitmaps ? add(q, q->h.bitmap_dir_offset, clusters_for(q, q->h.bitmap_dir_bytes), false) : 0;

	for (uint32_t i = 0; i < q->nbitmaps && !ret; i++) {
		const struct bitmap *m = q->bitmap[i];

		ret = add(q, m->table_offset, clusters_for(q, m->table_size * 8ull), false);
		for (uint32_t k = 0; k < m->table_size && !ret; k++)
			if (m->table[k] & ENTRY_OFFSET)
				ret = add(q, m->table[k] & ENTRY_OFFSET, 1, false);
	}
	return ret;
}
