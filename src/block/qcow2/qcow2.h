/*
 * qcow2, versions 2 and 3 (docs/interop/qcow2 of QEMU is the specification).
 *
 *	header ──▶ L1 table ──▶ L2 tables ──▶ data clusters		guest offset to host offset
 *	   ├─────▶ refcount table ──▶ refcount blocks			how many references a host cluster has
 *	   └─────▶ snapshot table ──▶ L1 tables of snapshots
 *
 * L1 and refcount table are kept in memory, L2 tables and refcount blocks in slices in a cache (table.c).  Changes
 * are made in memory and written by qcow2_commit() in an order that leaves at most leaks after a cut (commit.c).
 *
 * Locks, in this order; none is held while qcow2_commit() is awaited, except by the exclusive operations:
 *	range	   guest clusters whose mapping somebody is about to change (cluster.c)
 *	l1_lock	   making and copying L2 tables
 *	alloc_lock refcounts, the allocation hint, the refcount table
 * commit_lock is taken by qcow2_commit() alone, which takes alloc_lock inside.  Requests are counted in epochs: what a
 * commit frees becomes usable when all requests that may still refer to it have ended.
 */
#ifndef VIXEN_QCOW2_H
#define VIXEN_QCOW2_H

#include "base/checked.h"
#include "base/endian.h"
#include "block/node.h"

struct bitmap;
struct bitmap_wait;

#define MAGIC 0x514649fbu
#define HEADER_V2 72u
#define HEADER_V3 104u
#define CLUSTER_BITS_MIN 9u
#define CLUSTER_BITS_MAX 21u
#define EXTENDED_BITS_MIN 14u
#define L1_BYTES_MAX (32u << 20)
#define RT_BYTES_MAX (8u << 20)
#define SNAPSHOTS_MAX 65536u
#define SNAPSHOT_TABLE_MAX (64u << 20)
#define HOST_MAX (1ull << 56)

#define INCOMPAT_DIRTY 1u
#define INCOMPAT_CORRUPT 2u
#define INCOMPAT_DATA_FILE 4u
#define INCOMPAT_COMPRESSION 8u
#define INCOMPAT_EXTENDED_L2 16u
#define INCOMPAT_KNOWN 31u
#define CRYPT_METHOD_NONE 0u
#define CRYPT_METHOD_LUKS 2u
#define CRYPT_BYTES_MAX (64u << 20)
#define COMPAT_LAZY 1u
#define AUTOCLEAR_BITMAPS 1u
#define AUTOCLEAR_DATA_RAW 2u
#define AUTOCLEAR_AHEAD (1ull << 63)	/* ours: bitmaps in use say at least what changed (bitmap.h) */

#define ENTRY_COPIED (1ull << 63)
#define ENTRY_COMPRESSED (1ull << 62)
#define ENTRY_OFFSET 0x00fffffffffffe00ull
#define ENTRY_ZERO 1ull

/* Offsets of header fields that are written alone; all in the first sector. */
#define H_L1_SIZE 36
#define H_SIZE 24
#define H_RT_OFFSET 48
#define H_SNAPSHOTS 60
#define H_INCOMPAT 72
#define H_AUTOCLEAR 88

struct header {
	unsigned version, cluster_bits, refcount_order;
	uint64_t size_bytes;
	uint32_t crypt_method, l1_size, rt_clusters, nsnapshots, length;
	uint64_t l1_offset, rt_offset, snapshots_offset;
	uint64_t incompatible, compatible, autoclear;
	unsigned compression;
	char *backing_path, *backing_format, *data_path;	/* NULL: none */
	uint32_t nbitmaps;
	uint64_t bitmap_dir_bytes, bitmap_dir_offset;
	uint64_t crypt_offset, crypt_bytes;
};

/* A set of cluster numbers (set.c). */
struct set {
	uint64_t *slot;		/* number + 1; 0: free */
	size_t cap, n;
};

enum table_kind { TABLE_L2, TABLE_REFS, TABLE_KINDS };

/* A slice of an L2 table or refcount block. */
struct table {
	uint64_t offset;	/* in the file */
	enum table_kind kind;
	uint8_t *data;
	unsigned pins;
	bool loading, used, writing, dropped;
	int load_error;
	uint32_t dirty_from, dirty_to;		/* bytes; equal: clean */
	struct co_queue waiters;		/* for the loading */
	struct table *hash_next;
};

struct table_cache {
	struct table **hash, **all;	/* all: for the clock hand */
	size_t buckets, n, cap, hand, max;
	size_t dirty[TABLE_KINDS];
};

struct range {
	uint64_t first, last;		/* guest clusters */
	struct range *next;
};

struct freed {
	uint64_t first, n;		/* host clusters, one reference each */
};

struct free_list {
	struct freed *f;
	size_t n, cap;
};

struct snapshot {
	uint64_t l1_offset;
	uint32_t l1_size;
	char *id, *name;
	uint32_t time_s, time_ns;
	uint64_t vm_clock_ns, vm_state_bytes, size_bytes;
	uint8_t *extra;			/* as in the file */
	uint32_t extra_len;
};

struct qcow2_read {			/* a request that is split, or counted only */
	struct qcow2 *q;
	unsigned left, epoch;
	int ret;
	block_done_fn *done;
	void *opaque;
	struct qcow2_read *next;
};

struct qcow2 {
	struct node *n, *file, *data;	/* data: file, or the external data file */
	struct coroutines *co;
	struct header h;
	uint8_t head[SECTOR];		/* the file's first sector, for writing single fields */
	unsigned cluster_bits, l2_bits, rb_bits, subclusters, sub_bits, entry_bytes, slice_bits;
	uint32_t cluster_bytes, sub_bytes, slice_bytes;
	uint64_t refcount_max;
	bool external, lazy, lazy_dirty, settling, corrupt;

	uint64_t *l1;			/* host order, with flags */
	uint32_t l1_dirty_from, l1_dirty_to;
	uint64_t *rt;
	uint32_t rt_entries, rt_dirty_from, rt_dirty_to;
	struct table_cache cache;
	struct set meta;		/* host clusters that no guest data may be written to */

	struct range *ranges;
	struct co_queue range_wait;
	struct co_mutex l1_lock, alloc_lock, commit_lock, header_lock;
	uint64_t hint;			/* no free cluster below; alloc_lock */
	uint64_t packed_at;		/* where the next compressed cluster may start; 0: in a new cluster; alloc_lock */
	struct free_list frees;		/* references to drop after the next commit */
	uint64_t commit_wanted, commit_started;
	int commit_ret;

	unsigned epoch, in_epoch[2];
	struct co_queue epoch_wait;
	struct qcow2_read *idle_reads;

	struct snapshot *snapshots;
	uint32_t nsnapshots;
	uint64_t snapshot_table_bytes;

	struct bitmap **bitmap;
	uint32_t nbitmaps, ntracking;
	bool bitmaps_used;		/* those that track are marked as in use in the file, with places for their bits */
	struct co_mutex bitmaps_lock;	/* before l1_lock: writing what is ahead, and exact bits */
	struct bitmap_wait *bitmap_waits;
	uint64_t ahead_end, ahead_units;	/* of the last stretch */

	uint64_t plain_raw;		/* the L2 entry whose decompressed cluster is in `plain`; 0: none */
	uint8_t *plain;

	bool encrypted;
	struct luks_header *luks;
	struct cipher *cipher;		/* NULL: opened without its key */
};

/* --- header.c --- */
int header_read(struct header *h, struct node *file, uint8_t head[SECTOR], struct error *e);
void header_fini(struct header *h);
/* A whole header with extensions, at most max bytes; returns its length or -errno. */
int header_encode(const struct header *h, uint8_t *buf, size_t max);
/* Writes bytes of the first sector; they are durable when it returns 0. */
int header_patch(struct qcow2 *q, unsigned at, const void *bytes, size_t len);
int header_set_features(struct qcow2 *q, uint64_t incompatible, uint64_t autoclear);
/* What is in the file makes no sense: says so once, marks the image.  Returns -EIO. */
int qcow2_corrupt(struct qcow2 *q, const char *what, uint64_t offset);

/* --- set.c --- */
bool set_add(struct set *s, uint64_t v);	/* false: no memory */
bool set_has(const struct set *s, uint64_t v);
void set_del(struct set *s, uint64_t v);
void set_fini(struct set *s);

/* --- table.c --- */
int tables_init(struct qcow2 *q);
void tables_fini(struct qcow2 *q);
struct table *table_find(struct qcow2 *q, uint64_t offset);	/* NULL: not in memory; not pinned */
int table_get(struct qcow2 *q, enum table_kind kind, uint64_t offset, struct table **out);	/* pinned; waits */
void table_put(struct qcow2 *q, struct table *t);
void table_dirty(struct qcow2 *q, struct table *t, uint32_t from, uint32_t len);
void tables_drop(struct qcow2 *q, uint64_t offset, uint64_t len);	/* forgets, unwritten changes too */
bool tables_crowded(const struct qcow2 *q);	/* many are dirty: time for a commit */

/* --- refcount.c --- */
uint64_t refcount_entry(const uint8_t *block, unsigned order, uint64_t i);
void refcount_entry_set(uint8_t *block, unsigned order, uint64_t i, uint64_t value);
int refcounts_load(struct qcow2 *q, struct error *e);
int refcount_get(struct qcow2 *q, uint64_t cluster, uint64_t *out);
int clusters_ref(struct qcow2 *q, uint64_t first, uint64_t n);		/* one more each; -ERANGE: too many */
int clusters_unref(struct qcow2 *q, uint64_t first, uint64_t n);	/* at once: nothing durable refers to them */
/* n clusters, or at least one if !exact; their refcount is 1. */
int clusters_alloc(struct qcow2 *q, uint64_t want, bool exact, uint64_t *first, uint64_t *got);
int clusters_unref_later(struct qcow2 *q, uint64_t first, uint64_t n);
int frees_apply(struct qcow2 *q, struct free_list *l);
/* len bytes for a compressed cluster, references taken. */
int packed_alloc(struct qcow2 *q, uint32_t len, uint64_t *host);

/* --- commit.c --- */
int qcow2_commit(struct qcow2 *q);
int qcow2_settle(struct qcow2 *q);
int qcow2_begin_change(struct qcow2 *q);	/* before the first change of metadata: lazy refcounts' dirty bit */
int qcow2_flush_files(struct qcow2 *q);
void epoch_enter(struct qcow2 *q, unsigned *epoch);
void epoch_leave(struct qcow2 *q, unsigned epoch);

/* --- l2.c --- */
struct mapping {
	uint64_t raw, host;		/* raw: the first word of the entry; host: of standard clusters, 0: none */
	uint32_t alloc, zero;		/* a bit per subcluster; without extended L2, bit 0 alone */
	bool copied, compressed;
};
enum run_type { RUN_DATA, RUN_ZERO, RUN_BACKING, RUN_COMPRESSED };
struct run {
	enum run_type type;
	bool copied;			/* RUN_DATA: may be written in place */
	bool allocated;			/* this layer says so */
	uint64_t host, len;		/* host: of the first byte (RUN_DATA) */
	uint64_t raw;			/* RUN_COMPRESSED */
};
int l1_load(struct qcow2 *q, struct error *e);
uint64_t l2_slice_offset(const struct qcow2 *q, uint64_t guest);	/* 0: there is no table */
unsigned l2_index(const struct qcow2 *q, uint64_t guest);		/* in its slice */
uint64_t l2_slice_end(const struct qcow2 *q, uint64_t guest);		/* first guest offset of the next slice */
/* Slice for reading; *out NULL: no table. */
int l2_get(struct qcow2 *q, uint64_t guest, struct table **out);
/* Slice of a table that is ours alone, made or copied if need be. */
int l2_get_writable(struct qcow2 *q, uint64_t guest, struct table **out);
int mapping_get(struct qcow2 *q, const struct table *t, uint64_t guest, struct mapping *m);	/* -EIO: nonsense */
void mapping_set(struct qcow2 *q, struct table *t, uint64_t guest, const struct mapping *m);
/* What is at guest, for as long as it stays the same, at most len and not past the slice.  t NULL: no table. */
int run_at(struct qcow2 *q, const struct table *t, uint64_t guest, uint64_t len, struct run *r);
uint32_t sub_mask(const struct qcow2 *q);		/* all subclusters */
/* Drops what an old mapping refers to, later. */
int mapping_unref(struct qcow2 *q, const struct mapping *m);
void compressed_extent(const struct qcow2 *q, uint64_t raw, uint64_t *host, uint64_t *len);

/* --- read.c --- */
void qcow2_readv(struct node *n, uint64_t offset, const struct iovec *iov, int iovcnt, block_done_fn *done,
		 void *opaque);
int qcow2_co_read_guest(struct qcow2 *q, uint64_t offset, void *buf, size_t len);	/* not counted in an epoch */
int qcow2_co_readv_guest(struct qcow2 *q, uint64_t offset, const struct iovec *iov, int iovcnt);
int qcow2_co_status(struct node *n, uint64_t offset, uint64_t len, struct block_status *out);

/* --- write.c --- */
void qcow2_writev(struct node *n, uint64_t offset, const struct iovec *iov, int iovcnt, block_done_fn *done,
		  void *opaque);
int qcow2_co_write_guest(struct qcow2 *q, uint64_t offset, const struct iovec *iov, int iovcnt);
int data_co_writev(struct qcow2 *q, uint64_t guest, uint64_t host, const struct iovec *iov, int iovcnt);
bool host_writable(struct qcow2 *q, uint64_t host, uint64_t len);	/* no metadata there */

/* --- cluster.c --- */
bool range_try_lock(struct qcow2 *q, struct range *r);		/* false: it was waited for, look again */
void range_unlock(struct qcow2 *q, struct range *r);
int qcow2_co_discard(struct node *n, uint64_t offset, uint64_t len);
int qcow2_co_write_zeroes(struct node *n, uint64_t offset, uint64_t len, unsigned flags);
/* Whole clusters: forgets them.  zero: they read as zeroes; otherwise as what is below. */
int clusters_forget(struct qcow2 *q, uint64_t offset, uint64_t len, bool zero, bool keep_host);

/* --- compress.c --- */
int qcow2_co_read_compressed(struct qcow2 *q, uint64_t raw, uint64_t in_cluster, const struct iovec *iov, int iovcnt,
			     uint64_t skip, uint64_t len);
int qcow2_co_write_compressed(struct node *n, uint64_t offset, const void *buf, size_t len);

/* --- snapshot.c --- */
int snapshots_load(struct qcow2 *q, struct error *e);
void snapshots_free(struct qcow2 *q);
int qcow2_snapshot_list(struct node *n, struct block_snapshot **list, unsigned *count, struct error *e);
int qcow2_snapshot_create(struct node *n, const char *name, struct error *e);
int qcow2_snapshot_apply(struct node *n, const char *snapshot, struct error *e);
int qcow2_snapshot_delete(struct node *n, const char *snapshot, struct error *e);

int copied_fix(struct qcow2 *q);	/* makes the COPIED flags of the active tree true again */

/* --- qcow2.c --- */
int meta_collect(struct qcow2 *q);	/* -EEXIST: two tables in one place */

/* --- check.c --- */
int qcow2_check(struct node *n, unsigned repair, struct block_check *c, struct error *e);

/* --- create.c, resize.c --- */
int qcow2_create(struct node *file, const struct block_create *c, struct error *e);
int qcow2_preallocate(struct node *n, enum block_preallocate how, struct error *e);
int qcow2_resize(struct node *n, uint64_t size_bytes, unsigned flags, struct error *e);
int l1_grow(struct qcow2 *q, uint32_t entries);

/* --- bitmap.c, bitmap_track.c, bitmap_change.c (bitmap.h) --- */
/* On opening: what the header names.  Nothing of use: 0, with no bitmaps. */
int bitmaps_open(struct qcow2 *q);
int bitmaps_prepare(struct qcow2 *q);		/* for writing: reads all bits */
int bitmaps_finish(struct qcow2 *q);		/* exact bits, no longer in use */
void bitmaps_fini(struct qcow2 *q);
/* Nothing else is under way.  Before the size in the header grows, after it has shrunk: no bit is dropped of what may
 * still be there after a cut.  begin: before it shrinks. */
int bitmaps_resize_begin(struct qcow2 *q);
int bitmaps_resize(struct qcow2 *q, uint64_t size_bytes);
int bitmaps_meta(struct qcow2 *q, int (*add)(struct qcow2 *q, uint64_t offset, uint64_t clusters, bool shared));
/* The guest is about to change a range.  false: use the other. */
bool bitmaps_mark(struct qcow2 *q, uint64_t offset, uint64_t len);
int bitmaps_co_mark(struct qcow2 *q, uint64_t offset, uint64_t len);	/* waits; not counted in an epoch */
int qcow2_bitmap_list(struct node *n, struct block_bitmap **list, unsigned *count, struct error *e);
int qcow2_bitmap_change(struct node *n, const struct block_bitmap_change *c, struct error *e);
int qcow2_bitmap_at(struct node *n, const char *name, uint64_t offset, uint64_t len, bool *changed, uint64_t *out);

/* --- crypt.c --- */
/* Whole sectors at `host` in the file, in place; in coroutines. */
int crypt_encrypt(struct qcow2 *q, uint64_t host, uint8_t *buf, size_t len);
int crypt_decrypt(struct qcow2 *q, uint64_t host, uint8_t *buf, size_t len);
int crypt_open(struct qcow2 *q, const struct node_open *how, struct error *e);
void crypt_close(struct qcow2 *q);
int qcow2_key(struct node *n, const struct block_key *k, struct error *e);
int qcow2_key_export(struct node *n);
void crypt_info(const struct qcow2 *q, struct block_info *out);

/* --- small helpers --- */
static inline uint64_t cluster_of(const struct qcow2 *q, uint64_t offset)
{
	return offset >> q->cluster_bits;
}
static inline uint64_t in_cluster(const struct qcow2 *q, uint64_t offset)
{
	return offset & (q->cluster_bytes - 1);
}
static inline uint64_t clusters_for(const struct qcow2 *q, uint64_t bytes)
{
	return (bytes + q->cluster_bytes - 1) >> q->cluster_bits;
}
/* Metadata, and clusters that are written in place, lie inside the file; its last cluster may be cut short. */
static inline bool inside_file(const struct qcow2 *q, uint64_t offset, uint64_t len)
{
	return range_inside(offset, len, clusters_for(q, q->file->size_bytes) << q->cluster_bits);
}
static inline uint64_t l1_entries_for(const struct qcow2 *q, uint64_t size_bytes)
{
	unsigned shift = q->cluster_bits + q->l2_bits;

	return (size_bytes >> shift) + (size_bytes & ((1ull << shift) - 1) ? 1 : 0);
}

#endif
