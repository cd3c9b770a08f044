/*
 * VMDK, VMware's format; read, and two kinds of it made whole.
 *
 *	descriptor (text, in a file of its own or inside the one sparse extent) ─▶ extents, one after the other:
 *	  FLAT, VMFS	bytes of a file
 *	  ZERO		nothing
 *	  SPARSE	"KDMV": grain directory ─▶ grain tables ─▶ grains, perhaps deflated (streamOptimized)
 *	  VMFSSPARSE	"COWD": the same with another header
 */
#ifndef VIXEN_VMDK_H
#define VIXEN_VMDK_H

#include "block/fresh.h"

#define VMDK_EXTENTS_MAX 1024u
#define VMDK_TEXT_MAX (1u << 20)
#define VMDK_NO_PARENT 0xffffffffu
#define VMDK_SPARSE_MAGIC "KDMV"
#define VMDK_COWD_MAGIC "COWD"
#define VMDK_FLAG_DEFLATED (1u << 16)
#define VMDK_FLAG_MARKERS (1u << 17)
#define VMDK_AT_END UINT64_MAX		/* place of the directory: a second header at the end has it */
/* of new ones */
#define VMDK_NEW_GRAIN 65536u
#define VMDK_NEW_ENTRIES FRESH_PAGE	/* of a grain table */

enum vmdk_extent_type { VMDK_FLAT, VMDK_ZERO, VMDK_SPARSE };

struct vmdk_extent {
	enum vmdk_extent_type type;
	uint64_t start, bytes;		/* on the disk */
	uint64_t file_offset;		/* VMDK_FLAT */
	char *name;			/* NULL: the image itself */
	struct node *file;		/* NULL: VMDK_ZERO; ours if it has a name */
	/* VMDK_SPARSE: checked against the file */
	uint64_t grain_bytes, directory_at, directory_entries;
	uint32_t table_entries;
	bool zero_grains, packed;
};

struct vmdk_descriptor {
	uint32_t cid, parent_cid;
	char *type, *parent;		/* createType, parentFileNameHint; NULL: not given */
	struct vmdk_extent *extent;
	unsigned nextents;
	uint64_t bytes;			/* of all extents */
};

struct vmdk {
	struct mapped mapped;
	struct vmdk_descriptor d;
	struct pages pages;
	/* the grain that was inflated last */
	const struct vmdk_extent *plain_of;
	uint64_t plain_host;
	uint8_t *plain;
	struct vmdk_stream *stream;	/* a new streamOptimized one is being filled */
};

/* --- descriptor.c --- */
/* text is zero-terminated and changed.  -EINVAL: *why says what is wrong. */
int vmdk_descriptor_parse(struct vmdk_descriptor *d, char *text, const char **why);
void vmdk_descriptor_fini(struct vmdk_descriptor *d);
bool vmdk_is_descriptor(const uint8_t *head, size_t len);

/* --- sparse.c --- */
struct vmdk_header {
	uint64_t capacity_bytes, descriptor_at, descriptor_bytes;
};
/* Reads the header of x->file and fills in x. */
int vmdk_sparse_open(struct node *n, struct vmdk_extent *x, struct vmdk_header *h, struct error *e);
/* at: in the extent. */
int vmdk_sparse_span(struct node *n, const struct vmdk_extent *x, uint64_t at, uint64_t len, struct span *out);
int vmdk_sparse_unpack(struct node *n, const struct vmdk_extent *x, const struct span *s, uint64_t at, uint8_t *out);

/* --- create.c --- */
int vmdk_create(struct node *file, const struct block_create *c, struct error *e);
int vmdk_fill_begin(struct node *n, struct error *e);

/* --- stream.c: at is where grains begin --- */
int vmdk_stream_write_empty(struct node *file, uint64_t at, uint64_t tables);
int vmdk_stream_begin(struct node *n, uint64_t at, uint64_t tables, struct error *e);
int vmdk_stream_co_writev(struct node *n, uint64_t offset, const struct iovec *iov, int iovcnt);
int vmdk_stream_co_flush(struct node *n);
int vmdk_stream_co_end(struct node *n);

#endif
