/*
 * A disk: bytes at offsets, read and written asynchronously.  Behind it stands a stack of nodes (node.h): a format
 * over a file, perhaps over a backing file, perhaps under filters.
 *
 * Owner: whoever opened it.  Thread: all calls on the thread of the loop it was opened with, completions too.
 * Vectors point into guest RAM or VMM buffers and must stay valid until `done` ran; they are handed down to the
 * host without a copy wherever the format allows.  Requests complete in any order; flush completes after every
 * write that completed before it was submitted is durable.  Overlapping requests under way at the same time have
 * an undefined order among each other, never a torn format.
 *
 * Three forms of each operation:
 *	block_X(..., done, opaque)	asynchronous; `done` may run before it returns
 *	block_co_X(...)			inside a coroutine of the loop (host/coroutine.h): returns when complete
 *	block_run(l, fn, arg)		makes a coroutine of a whole program, for tools
 */
#ifndef VIXEN_BLOCK_BLOCK_H
#define VIXEN_BLOCK_BLOCK_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/uio.h>

#include "base/error.h"

struct loop;
struct block;

/* ret: 0 or -errno (-EIO, -ENOSPC, -EROFS, -EINVAL, -ENOMEM). */
typedef void block_done_fn(void *opaque, int ret);

/* --- open and close --- */

enum block_flags {
	BLOCK_READONLY = 1,
	BLOCK_EPHEMERAL = 2,		/* writes go to an unlinked overlay; the image itself is opened read-only */
	BLOCK_NO_IO_URING = 4,
	BLOCK_NO_BACKING = 8,		/* leave the backing file alone: what it would give reads as zeroes */
	BLOCK_SHARE = 16,		/* take no lock: to look at an image that a VM has open; what is read may be stale */
	BLOCK_NO_BITMAPS = 32,		/* leave persistent bitmaps as they are in the file; they then no longer count */
	BLOCK_REPAIR = 64,		/* open an image marked corrupt for writing, and do not check on opening */
	BLOCK_PROBE = 128,		/* believe what the content looks like; only for images no guest could write raw */
	BLOCK_FDS_ONLY = 256,		/* open no file but those in fds: after the sandbox there are no others */
	BLOCK_LOCKED = 512,		/* open an encrypted image without its key: to look, or to change keys */
	BLOCK_FRESH = 1024,		/* to fill what block_create() just made: formats that are only read take writes then */
};

struct block_fd {
	const char *path;		/* as it stands on the command line or, made absolute, in the image */
	int fd;				/* stays the caller's; locked, if need be, by the caller */
};

/*
 * Zeroed memory is the defaults.  All strings and structs are the caller's, read during the opening only.
 *
 * Without a format an image is raw, because a guest decides what its raw disk's first bytes look like: what looks
 * like another format is refused with an error that asks for format=, unless the file's name, which no guest can
 * choose, ends in that format's suffix (.qcow2, ...).
 */
struct block_options {
	const char *format;		/* "raw", "qcow2", ... or NULL */
	unsigned flags;			/* enum block_flags */
	const char *secret_file;	/* holds the passphrase, for encrypted formats; one newline at its end is cut off */
	/* Of a chain: the first encrypted layer is opened by secret_file, the second by the first of these ...; the last there
	 * is goes on for the rest. */
	const char *const *more_secrets;
	unsigned nmore_secrets;
	const char *backing_path;	/* instead of what the image names */
	const struct block_options *backing;	/* how to open the backing file: its format, its secret, its backing ... */
	const char *data_path;		/* external data file, instead of what the image names */
	const struct block_fd *fds;	/* used in place of opening these paths, for after the sandbox */
	unsigned nfds;
	const struct block *beside;	/* share this disk's queue to the host; same loop */
};

/* The files with the passphrases of a chain's encrypted layers, from the top; n may be 0. */
static inline void block_secrets(struct block_options *o, const char *const *files, unsigned n)
{
	o->secret_file = n ? files[0] : NULL;
	o->more_secrets = files + 1;
	o->nmore_secrets = n ? n - 1 : 0;
}

/* The path is no file's, but the address of a server: "nbd://...", "nbd+unix://...". */
bool block_path_remote(const char *path);

/* A connection to the server at such an address, and with TLS what its files hold: members of block_options.fds, where names
 * cannot be looked up and files not opened.  Blocks.  How many, or -errno with e set; they are the caller's. */
#define BLOCK_DIAL_MAX 2
int block_dial(const char *path, struct block_fd out[BLOCK_DIAL_MAX], struct error *e);
/* Closes those whose descriptors and names are one's own, as of block_dial() and block_keys_export(). */
void block_fds_free(struct block_fd *list, unsigned n);

/* Locks the files (OFD lock: one writer or many readers); -EBUSY when another VM has one.  Runs the disk's I/O until
 * all of the chain is open; no file is opened later.  Not from a callback of the loop, but coroutines may. */
int block_open_with(struct block **out, struct loop *l, const char *path, const struct block_options *o,
		    struct error *e);
int block_open(struct block **out, struct loop *l, const char *path, const char *format, unsigned flags,
	       struct error *e);
/* Waits for requests under way, writes back what the format caches, unlocks.  0 or the first -errno of that writing:
 * then the image may have leaked space, but what was flushed is whole.  NULL is fine. */
int block_close(struct block *b);
/* A disk that is given up: requests that wait for a server fail now, as do later ones; files are not concerned.  What is
 * left to do is to close it.  From the loop's thread, callbacks included. */
void block_interrupt(struct block *b);

/* The files of a disk and its backing files: for handing them, open and locked, to another process. */
struct block_file {
	const char *path;		/* lives as long as b */
	bool backing;			/* of a backing file: only read */
};
unsigned block_files(const struct block *b, struct block_file *out, unsigned max);	/* how many there are */
int block_file_open(const char *path, bool write, struct error *e);	/* locked as block_open() does; -errno */

/* What opens the encrypted layers of b, which were opened with their passphrases, without these and without their headers:
 * anonymous files with the volume keys, to be handed along as members of block_options.fds.  How many, or -errno with e set;
 * they are the caller's: block_fds_free().  Not for b that others use. */
int block_keys_export(struct block *b, struct block_fd *out, unsigned max, struct error *e);

enum block_preallocate {
	BLOCK_PREALLOCATE_OFF,
	BLOCK_PREALLOCATE_METADATA,	/* tables are filled in; raw has none */
	BLOCK_PREALLOCATE_FALLOC,	/* and the host's space is reserved */
	BLOCK_PREALLOCATE_FULL,		/* and zeroes written to it */
};

enum block_encryption { BLOCK_ENCRYPT_NONE, BLOCK_ENCRYPT_LUKS1, BLOCK_ENCRYPT_LUKS2 };

/* What a new image shall be; zeroed memory is the defaults. */
struct block_create {
	uint64_t size_bytes;		/* 0: that of the backing file */
	const char *subformat;		/* one of block_subformats(); NULL: the first */
	const char *final_path;		/* what the file will be called, where the format says so itself; NULL: as now */
	const char *backing_path;	/* kept in the image as given: relative to the image's own directory */
	const char *backing_format;	/* needed with backing_path */
	uint32_t cluster_bytes;
	unsigned version;		/* of the format */
	unsigned refcount_bits;
	bool lazy_refcounts, extended_l2;
	bool zstd;			/* rather than zlib, for compressed clusters */
	const char *data_path;		/* external data file; kept as given */
	bool data_raw;			/* it is a valid raw image at all times */
	bool overwrite;			/* path may exist and is replaced */
	enum block_preallocate preallocate;
	enum block_encryption encrypt;
	const char *secret_file;	/* with the passphrase, for that; as in block_options */
	unsigned kdf_ms;		/* how long trying a passphrase shall take; 0: as cryptsetup thinks best */
};
/* Leaves nothing behind when it fails. */
int block_create(struct loop *l, const char *path, const char *format, const struct block_create *c, struct error *e);

/* Is it a format that disks can be opened in (create: made in)?  Their names, with `between` between them. */
bool block_format_known(const char *name, bool create);
void block_format_names(char *out, size_t size, bool create, const char *between);
/* The kinds of that format that can be made, the default first, NULL at the end; NULL: there are none. */
const char *const *block_subformats(const char *format);

/* --- what it is --- */

uint64_t block_size(const struct block *b);		/* bytes */
bool block_readonly(const struct block *b);
bool block_can_discard(const struct block *b);
uint32_t block_cluster(const struct block *b);		/* preferred unit of writing, bytes; 0: none */
bool block_overwrites(const struct block *b);		/* what is overwritten is gone: no layer keeps copies, none is elsewhere */
bool block_new_is_zero(const struct block *b);		/* a new image of this kind reads as zeroes */
bool block_ordered(const struct block *b);		/* takes writes only one by one, of whole clusters, ever further on */
const char *block_path(const struct block *b);		/* of the image; until b stands on another one */
const char *block_format(const struct block *b);	/* of the node below the filters */

struct block_info {
	const char *format, *path;
	const char *backing_path, *backing_format;	/* as the image names them; NULL: none */
	const char *data_path;
	uint64_t size_bytes;
	uint64_t host_bytes;		/* taken on the host, this file alone */
	uint64_t cluster_bytes;		/* 0: none */
	bool encrypted, unclean, corrupt;
	unsigned nextra;		/* what only this format has */
	struct { char key[32], value[96]; } extra[16];
};
/* Strings live as long as b and until its next info, snapshot or resize.  depth: 0 is the image, 1 its backing file
 * ...; -ENOENT past the last.  In a coroutine, or for b that nothing is under way on. */
int block_info(struct block *b, unsigned depth, struct block_info *out);
void block_info_extra(struct block_info *i, const char *key, const char *fmt, ...)
	__attribute__((format(printf, 3, 4)));		/* for formats; a 17th is dropped */

/* --- data --- */

/* offset and total length are multiples of 512 and inside block_size(), or -EINVAL through done. */
void block_readv(struct block *b, uint64_t offset, const struct iovec *iov, int iovcnt,
		 block_done_fn *done, void *opaque);
void block_writev(struct block *b, uint64_t offset, const struct iovec *iov, int iovcnt,
		 block_done_fn *done, void *opaque);
void block_flush(struct block *b, block_done_fn *done, void *opaque);
/* A hint: afterwards the range reads as before, as zeroes or, with a backing file, never as that file's. */
void block_discard(struct block *b, uint64_t offset, uint64_t len, block_done_fn *done, void *opaque);
void block_write_zeroes(struct block *b, uint64_t offset, uint64_t len, bool may_unmap,
			block_done_fn *done, void *opaque);
/* -EOPNOTSUPP where it would take writing the zeroes out. */
void block_write_zeroes_fast(struct block *b, uint64_t offset, uint64_t len, bool may_unmap,
			     block_done_fn *done, void *opaque);

enum block_status_flags {
	BLOCK_STATUS_DATA = 1,		/* has to be read */
	BLOCK_STATUS_ZERO = 2,		/* reads as zeroes */
	BLOCK_STATUS_ALLOCATED = 4,	/* the layer at `depth` says so; without it no layer holds anything: zeroes */
	BLOCK_STATUS_OFFSET = 8,	/* host_offset holds */
	BLOCK_STATUS_COMPRESSED = 16,
};

struct block_status {
	uint64_t len;			/* from the offset asked for; > 0, at most what was asked, all of it alike */
	unsigned flags;
	unsigned depth;			/* 0: the image, 1: its backing file, ... */
	uint64_t host_offset;		/* in the file of that layer, plain data that continues for len */
};
/* `out` is filled in when done runs with 0.  depth_max: look no deeper than so many backing files (0: only the top
 * layer; what it does not hold is !ALLOCATED); UINT_MAX for all. */
void block_status(struct block *b, uint64_t offset, uint64_t len, unsigned depth_max, struct block_status *out,
		  block_done_fn *done, void *opaque);

/* Between plug and unplug requests are gathered and handed to the host together; pairs nest.
 * `done` may run inside any of these functions, also before it returns. */
void block_plug(struct block *b);
void block_unplug(struct block *b);

/* --- limits --- */

struct block_limits {
	uint64_t iops, bps;		/* requests and bytes of data in a second; 0: no limit */
	uint64_t iops_burst, bps_burst;	/* so many at once after a pause; 0: what comes in a tenth of a second */
};
/* What some disks of a loop have together, or one by itself.  Counted: new and each disk hold a reference. */
struct block_group *block_group_new(struct loop *l);	/* no limits yet; NULL: no memory */
void block_group_put(struct block_group *g);
void block_group_limit(struct block_group *g, const struct block_limits *l);	/* from now on, also for what waits */
/* Reads, writes, zeroes and discards of b pass the limits of both, NULL: none; zeroes and discards count as requests
 * without data.  In order, once one has to wait.  -ENOMEM. */
int block_throttle(struct block *b, struct block_group *own, struct block_group *shared);

/* With `full` set, what fails because the host has no space left (or the file may grow no more) is kept, and full runs for
 * each; block_retry() tries all of it again.  So is a flush whose writes of metadata found none; one that failed in the
 * host's own flushing is -EIO, as that may have dropped what was written before.  What is kept counts as not begun: the disk
 * can be held, and change its stack, meanwhile.  Setting NULL tries once more and lets what then fails fail. */
void block_on_full(struct block *b, void (*full)(void *opaque), void *opaque);
void block_retry(struct block *b);

/* Holds back: requests from here on wait in order, and done runs when none is under way.  Calls nest; each is paired
 * with a release, unless done reports -ENOMEM.  For whoever changes the stack under a running disk. */
void block_hold(struct block *b, block_done_fn *done, void *opaque);
void block_release(struct block *b);

/* --- straight-line forms, for coroutines of b's loop --- */

int block_run(struct loop *l, int (*fn)(void *arg), void *arg);		/* co_run() by another name */
int block_co_readv(struct block *b, uint64_t offset, const struct iovec *iov, int iovcnt);
int block_co_writev(struct block *b, uint64_t offset, const struct iovec *iov, int iovcnt);
int block_co_read(struct block *b, uint64_t offset, void *buf, size_t len);
int block_co_write(struct block *b, uint64_t offset, const void *buf, size_t len);
int block_co_flush(struct block *b);
/* A hint: the host begins to write out what it holds back of b, so that the flush to come takes less time. */
void block_co_writeback(struct block *b);
int block_co_discard(struct block *b, uint64_t offset, uint64_t len);
int block_co_write_zeroes(struct block *b, uint64_t offset, uint64_t len, bool may_unmap);
int block_co_write_zeroes_fast(struct block *b, uint64_t offset, uint64_t len, bool may_unmap);
int block_co_status(struct block *b, uint64_t offset, uint64_t len, unsigned depth_max, struct block_status *out);
void block_co_hold(struct block *b);

/* One whole cluster (the last may be cut short by the end), which nothing was written to before.  -EOPNOTSUPP where the
 * format has no compression; where it would not get smaller it is written plain. */
int block_co_write_compressed(struct block *b, uint64_t offset, const void *buf, size_t len);

/* --- metadata: in a coroutine, or run like block_open_with --- */

enum block_resize_flags {
	BLOCK_SHRINK = 1,		/* data past the new end may be lost */
	BLOCK_SHRINK_EMPTY = 2,		/* with it: only if all of that reads as zeroes; else -ENOTEMPTY */
};
/* Online, too: requests are held back meanwhile, and those that then end past the end fail. */
int block_resize(struct block *b, uint64_t size_bytes, unsigned flags, struct error *e);

struct block_snapshot {
	char id[32], name[256];
	uint64_t time_s, time_ns;	/* since 1970 */
	uint64_t vm_clock_ns, vm_state_bytes, size_bytes;
};
/* Internal snapshots.  `snapshot`: an id or, failing that, a name.  -EOPNOTSUPP where the format has none. */
int block_snapshot_list(struct block *b, struct block_snapshot **list, unsigned *n, struct error *e);	/* free(*list) */
int block_snapshot_create(struct block *b, const char *name, struct error *e);
int block_snapshot_apply(struct block *b, const char *snapshot, struct error *e);
int block_snapshot_delete(struct block *b, const char *snapshot, struct error *e);

struct block_bitmap {
	char name[1024];
	uint32_t granularity;		/* bytes */
	bool tracking;			/* it records what is written */
	bool unclean;			/* whoever used it last did not close the image: it may say too much */
	uint64_t dirty_bytes;
};
/* Dirty bitmaps that the image keeps: they record what is written, over restarts and crashes.  -EOPNOTSUPP where the
 * format has none. */
int block_bitmap_list(struct block *b, struct block_bitmap **list, unsigned *n, struct error *e);	/* free(*list) */
/* granularity: a power of two from 512 to 2 GiB; 0: 64 KiB. */
int block_bitmap_add(struct block *b, const char *name, uint32_t granularity, struct error *e);
int block_bitmap_remove(struct block *b, const char *name, struct error *e);
int block_bitmap_clear(struct block *b, const char *name, struct error *e);
int block_bitmap_merge(struct block *b, const char *name, const char *source, struct error *e);	/* source into name */
/* Does it say that what is at offset has changed?  For how long, at most len, goes to *out.  In a coroutine.  -ENOENT: there
 * is none of that name. */
int block_co_bitmap_at(struct block *b, const char *name, uint64_t offset, uint64_t len, bool *changed, uint64_t *out);

enum block_key_verb { BLOCK_KEY_ADD, BLOCK_KEY_REMOVE, BLOCK_KEY_CHANGE };

struct block_key {
	enum block_key_verb verb;
	const char *secret_file;	/* a passphrase that is valid; the one to be removed or changed */
	const char *new_secret_file;
	unsigned kdf_ms;
};
/* Passphrases of an encrypted image; the last is never removed.  At any cut one of those before or after is valid.
 * -EPERM: secret_file holds none. */
int block_key_change(struct block *b, const struct block_key *k, struct error *e);

enum block_repair { BLOCK_REPAIR_LEAKS = 1, BLOCK_REPAIR_ERRORS = 2 };

struct block_check {
	uint64_t corruptions, leaks;		/* found and left */
	uint64_t corruptions_fixed, leaks_fixed;
	uint64_t errors;			/* that kept it from checking: I/O */
	uint64_t clusters, allocated, compressed, fragmented;
	uint64_t end_bytes;			/* of the last cluster in use */
	void (*say)(void *opaque, const char *line);	/* each finding in words, may be NULL; set by the caller */
	void *opaque;
};
int block_check(struct block *b, unsigned repair, struct block_check *c, struct error *e);

#endif
