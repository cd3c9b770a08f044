/*
 * Block nodes, what disks are made of; for the files of this room.
 *
 *	struct block ──root──▶ [filter] ──FILE──▶ format ──FILE──▶ protocol (file, NBD)
 *	 (user's handle:                           │  └──DATA────▶ protocol	external data file
 *	  bounds, accounting)                      └──BACKING──▶ format ──FILE──▶ protocol ...
 *
 * A node owns its children: node_close() closes them after itself.  Each has one parent.
 *
 * Calls come with offset and length inside the node's size and aligned to limits.align, checked by struct block or by
 * the parent; protocol nodes with limits.grows also take writes past their end, which grow them.  What parents read
 * from children is a file's content: to be validated before use.
 *
 * Adding a format: one `struct driver` and one `struct node_ops`, a line in the table in driver.c.  A format that is
 * no fast path writes only the co_ forms; each request then runs as a coroutine of its own, several at a time.
 */
#ifndef VIXEN_BLOCK_NODE_H
#define VIXEN_BLOCK_NODE_H

#include "base/log.h"
#include "block/aio.h"
#include "block/block.h"
#include "host/coroutine.h"

#define SECTOR 512u
#define NODE_PROBE_BYTES 4096u
#define NODE_DEPTH_MAX 200u	/* files in a backing chain */

struct node;
struct secret;

/* What all nodes of a disk share.  Counted by the nodes. */
struct block_env {
	struct loop *loop;
	struct aio *aio;
	struct coroutines *co;
	struct workers *workers;	/* for what takes long to compute */
	unsigned refs;
};

enum node_child { NODE_FILE, NODE_BACKING, NODE_DATA, NODE_CHILDREN };

enum node_zero_flags {
	NODE_ZERO_MAY_UNMAP = 1,
	NODE_ZERO_NO_FALLBACK = 2,	/* -EOPNOTSUPP rather than writing zeroes out */
};

/* Changes of the bitmaps that a layer keeps.  FREEZE and what follows are for backups: FREEZE copies to `todo` (NULL: all
 * is to be copied), and the bitmap begins anew; if it is not there, a full backup (todo NULL) makes it.  THAW forgets
 * what was frozen; THAW_BACK puts it back. THAW and THAW_BACK run beside the guest's requests, the others alone.  READ copies
 * the bits to `todo`; SET makes them those of `todo`, durably, and the bitmap if it is not there. */
enum bitmap_verb { BITMAP_ADD, BITMAP_REMOVE, BITMAP_CLEAR, BITMAP_MERGE, BITMAP_FREEZE, BITMAP_THAW,
		   BITMAP_THAW_BACK, BITMAP_READ, BITMAP_SET };
struct dirty;
struct block_bitmap_change {
	enum bitmap_verb verb;
	const char *name, *source;	/* source: MERGE */
	uint32_t granularity;		/* ADD, SET; 0: the default */
	struct dirty *todo;		/* FREEZE, READ: set by it */
};

struct node_limits {
	uint32_t align;			/* of offsets and lengths; a power of two; 0 is taken as SECTOR */
	uint32_t cluster;		/* preferred unit of writing; 0: none */
	bool grows;			/* writes past the end are fine (protocols) */
	bool can_discard;		/* discard gives space back */
	bool can_zero;			/* write_zeroes without writing them out, as far as is known */
	bool ordered;			/* writes: whole clusters, one by one, ever further on */
};

struct node {
	const struct node_ops *ops;
	struct block_env *env;
	void *impl;			/* the driver's */
	struct node *child[NODE_CHILDREN];
	char *path;			/* for messages, and for what is relative to it */
	uint64_t size_bytes;
	bool readonly;			/* of this node: a backing file's nodes always are */
	bool encrypted;			/* set by the driver before it opens a backing file */
	bool zero_past_end;		/* set by the parent of a protocol node: reads past the end give zeroes */
	struct node_limits limits;
};

/*
 * Operations.  Every data operation has an asynchronous form, which calls done (maybe before it returns), and a co_
 * form, which runs in a coroutine and returns when complete; a driver gives either or both (co_ for the slow cases,
 * asynchronous for what can go straight down with the caller's vector).  NULL in both: flush succeeds, discard
 * succeeds without effect, write_zeroes writes them out, reads and writes are our bug.
 *
 * The order among requests under way is the driver's to keep whole: it locks what it shares between them.  flush
 * covers what completed before it was called.  While co_close, co_resize, co_check or a snapshot runs nothing else is
 * under way on the node.
 */
struct node_ops {
	const char *name;
	bool new_is_noise;	/* what nothing was written to reads as anything, not as zeroes */
	bool filter;		/* shows the child's bytes; not what block_format() and info mean */

	void (*readv)(struct node *n, uint64_t offset, const struct iovec *iov, int iovcnt, block_done_fn *done,
		      void *opaque);
	void (*writev)(struct node *n, uint64_t offset, const struct iovec *iov, int iovcnt, block_done_fn *done,
		       void *opaque);
	void (*flush)(struct node *n, block_done_fn *done, void *opaque);
	void (*discard)(struct node *n, uint64_t offset, uint64_t len, block_done_fn *done, void *opaque);
	/* Protocols, a hint: the host begins to write out what it holds back; what flush waits for is less then. */
	void (*writeback)(struct node *n, block_done_fn *done, void *opaque);
	/* -EOPNOTSUPP: the caller writes zeroes out. */
	void (*write_zeroes)(struct node *n, uint64_t offset, uint64_t len, unsigned flags, block_done_fn *done,
			     void *opaque);

	int (*co_readv)(struct node *n, uint64_t offset, const struct iovec *iov, int iovcnt);
	int (*co_writev)(struct node *n, uint64_t offset, const struct iovec *iov, int iovcnt);
	int (*co_flush)(struct node *n);
	int (*co_discard)(struct node *n, uint64_t offset, uint64_t len);
	int (*co_write_zeroes)(struct node *n, uint64_t offset, uint64_t len, unsigned flags);

	/* This layer alone; depth is left 0.  !ALLOCATED: the backing file's business.  NULL: all is data. */
	int (*co_status)(struct node *n, uint64_t offset, uint64_t len, struct block_status *out);
	int (*co_write_compressed)(struct node *n, uint64_t offset, const void *buf, size_t len);

	/* Sets size_bytes. */
	int (*co_resize)(struct node *n, uint64_t size_bytes, unsigned flags, struct error *e);
	int (*co_check)(struct node *n, unsigned repair, struct block_check *c, struct error *e);
	int (*info)(struct node *n, struct block_info *out);	/* common fields are filled in already */
	int (*co_key)(struct node *n, const struct block_key *k, struct error *e);
	int (*key_export)(struct node *n);	/* a descriptor for block_keys_export(); -errno, -ENOKEY: there is none */
	int (*co_snapshot_list)(struct node *n, struct block_snapshot **list, unsigned *count, struct error *e);
	int (*co_snapshot_create)(struct node *n, const char *name, struct error *e);
	int (*co_snapshot_apply)(struct node *n, const char *snapshot, struct error *e);
	int (*co_snapshot_delete)(struct node *n, const char *snapshot, struct error *e);
	int (*co_bitmap_list)(struct node *n, struct block_bitmap **list, unsigned *count, struct error *e);
	int (*co_bitmap_change)(struct node *n, const struct block_bitmap_change *c, struct error *e);
	int (*co_bitmap_at)(struct node *n, const char *name, uint64_t offset, uint64_t len, bool *changed, uint64_t *out);

	/* The node, which nothing is under way on and is flushed, is not written any more, or again; children are switched
	 * before (to writing) or after it.  NULL: nothing to do.  fds: the files to write to, by path. */
	int (*co_set_readonly)(struct node *n, bool readonly, const struct block_options *fds, struct error *e);

	/* Protocols: requests that wait for a server end with an error, and so do later ones. */
	void (*interrupt)(struct node *n);
	/* Writes back and frees impl, before the children are closed; also after a failed open, with what impl has by
	 * then.  0 or -errno of the writing. */
	int (*co_close)(struct node *n);
};

/* How a chain is being opened. */
struct node_open {
	const struct block_options *o;	/* never NULL */
	unsigned depth;			/* backing files above this one */
	bool readonly;
	unsigned encrypted;		/* encrypted ones above this one */
	struct secret *secret;		/* read last, for all of the chain; NULL: nobody keeps it */
	const struct node_open *above;	/* the node whose backing file this is */
	const char *path;
};

struct driver {
	const char *name;
	const char *prefix;		/* protocols: what their paths begin with; NULL for files and formats */
	const char *suffix;		/* formats: ".qcow2" */
	bool plain_too;		/* a raw disk may well begin so: only the name, or BLOCK_PROBE, counts */
	const char *const *subformats;	/* that co_create knows, the default first, NULL at the end; NULL: none */
	const struct node_ops *ops;
	/* Does the head of a file, len up to NODE_PROBE_BYTES, look like this format? */
	bool (*probe)(const uint8_t *head, size_t len, uint64_t file_bytes);
	/* NULL: only known by sight, to be refused.  In a coroutine.  n has ops, env, path and readonly; a format's
	 * NODE_FILE is open.  Sets impl, size_bytes and limits, opens further children with node_co_open_backing() and
	 * node_co_open_protocol().  -errno with e set: co_close is called if impl is set. */
	int (*co_open)(struct node *n, const struct node_open *how, struct error *e);
	/* In a coroutine.  Writes an empty image into file, which is empty and grows.  NULL: cannot create. */
	int (*co_create)(struct node *file, const struct block_create *c, struct error *e);
	/* Gives the new image, open and empty, all its space.  NULL: co_create has done that, or refused. */
	int (*co_preallocate)(struct node *n, enum block_preallocate how, struct error *e);
	/* Protocols: makes an empty one at path.  NULL: nothing to make. */
	int (*co_make)(const char *path, bool overwrite, struct error *e);
};

extern const struct driver file_driver, raw_driver, qcow2_driver, luks_driver, vdi_driver, vhdx_driver, vmdk_driver,
	nbd_driver, nbd_unix_driver, nbds_driver, nbds_unix_driver;
extern const struct node_ops overlay_ops;
extern const struct driver *const block_drivers[];	/* formats and protocols, NULL at the end */
const struct driver *driver_find(const char *name);

/* --- building stacks, in coroutines --- */

struct block_env *env_new(struct loop *l, bool no_io_uring, struct error *e);	/* one reference */
void env_put(struct block_env *env);
/* A node without children; takes a reference of env, a copy of path.  NULL: out of memory. */
struct node *node_new(struct block_env *env, const struct node_ops *ops, const char *path);
/* A copy of the descriptor that the options give for a path; -1: none. */
int node_given_fd(const struct block_options *o, const char *path);
/* Format and protocol by path and options. */
int node_co_open(struct node **out, struct block_env *env, const char *path, const struct node_open *how,
		 struct error *e);
int node_co_open_protocol(struct node **out, struct block_env *env, const char *path, const struct node_open *how,
			  struct error *e);
/* Opens n's NODE_BACKING read-only: path as the image n names it (options may override it), format NULL if it gives
 * none.  Refuses loops and chains that are too long.  With BLOCK_NO_BACKING: 0 and no child. */
int node_co_open_backing(struct node *n, const struct node_open *how, const char *path, const char *format,
			 struct error *e);
/* path as seen from the file `base`: absolute ones and those with a protocol stay.  malloc'd; NULL: no memory. */
char *node_path_relative(const char *base, const char *path);
void node_interrupt(struct node *n);		/* and all below it */
int node_co_close(struct node *n);		/* NULL is fine */
/* A filter with unlinked storage in front of base, which it owns; NULL base on failure stays the caller's. */
int overlay_new(struct node **out, struct node *base, struct error *e);
/* Space in a file for what a new image holds; it may grow.  -EOPNOTSUPP: falloc is not possible there. */
int node_co_preallocate(struct node *file, uint64_t at, uint64_t len, enum block_preallocate how);
/* What a flush of the host's came to: no space (-ENOSPC and its like) is -EIO, since what was to be written may be dropped, and
 * another flush would hide that. */
int file_sync_result(int ret);
int file_node_from_fd(struct node **out, struct block_env *env, int fd, const char *path, struct error *e);

/* --- calling nodes --- */

void node_readv(struct node *n, uint64_t offset, const struct iovec *iov, int iovcnt, block_done_fn *done,
		void *opaque);
void node_writev(struct node *n, uint64_t offset, const struct iovec *iov, int iovcnt, block_done_fn *done,
		 void *opaque);
void node_flush(struct node *n, block_done_fn *done, void *opaque);
void node_discard(struct node *n, uint64_t offset, uint64_t len, block_done_fn *done, void *opaque);
void node_write_zeroes(struct node *n, uint64_t offset, uint64_t len, unsigned flags, block_done_fn *done,
		       void *opaque);		/* with the fallback */
void node_status(struct node *n, uint64_t offset, uint64_t len, unsigned depth_max, struct block_status *out,
		 block_done_fn *done, void *opaque);

int node_co_readv(struct node *n, uint64_t offset, const struct iovec *iov, int iovcnt);
int node_co_writev(struct node *n, uint64_t offset, const struct iovec *iov, int iovcnt);
int node_co_read(struct node *n, uint64_t offset, void *buf, size_t len);
int node_co_write(struct node *n, uint64_t offset, const void *buf, size_t len);
int node_co_flush(struct node *n);
void node_co_writeback(struct node *n);		/* and of its files; its result tells nothing */
int node_co_discard(struct node *n, uint64_t offset, uint64_t len);
int node_co_write_zeroes(struct node *n, uint64_t offset, uint64_t len, unsigned flags);
int node_co_status(struct node *n, uint64_t offset, uint64_t len, unsigned depth_max, struct block_status *out);
int node_co_resize(struct node *n, uint64_t size_bytes, unsigned flags, struct error *e);
/* n and its file; not its backing file.  Failed: as it was. */
int node_co_set_readonly(struct node *n, bool readonly, const struct block_options *fds, struct error *e);
/* Bitmaps of `from` that record changes go on in `to`, from what they say now; nothing is under way on either.  A `to` that
 * has no bitmaps gets none. */
int node_co_bitmaps_carry(struct node *from, struct node *to, struct error *e);
/* What block_set_backing() does; nothing else is under way on n.  -EOPNOTSUPP. */
int node_co_set_backing(struct node *n, const char *path, const char *format);

struct node *node_below_filters(struct node *n);
struct node *block_root(struct block *b);
/* Puts root in the place of b's root, which is returned; b is held and idle. */
struct node *block_set_root(struct block *b, struct node *root);
/* b's queues move along: whatever root belongs to must be of the same loop. */

/* --- vectors (iov.c) --- */

uint64_t iov_bytes(const struct iovec *iov, int n);
/* Cuts [skip, skip + len) out of a vector; dst has room for n.  Returns the count. */
int iov_cut(struct iovec *dst, const struct iovec *src, int n, uint64_t skip, uint64_t len);
void iov_zero(const struct iovec *iov, int n, uint64_t skip, uint64_t len);
void iov_copy_in(const struct iovec *iov, int n, uint64_t skip, const void *src, uint64_t len);	/* into the vector */
void iov_copy_out(const struct iovec *iov, int n, uint64_t skip, void *dst, uint64_t len);

#endif
