/*
 * VMDK, VMware's format; read only.
 *
 *	descriptor (text, in a file of its own or inside the one sparse extent) ─▶ extents, one after the other:
 *	  FLAT, VMFS	bytes of a file
 *	  ZERO		nothing
 *	  SPARSE	"KDMV": grain directory ─▶ grain tables ─▶ grains, perhaps deflated (streamOptimized)
 *	  VMFSSPARSE	"COWD": the same with another header
 */
#ifndef VIXEN_VMDK_H
#define VIXEN_VMDK_H

#include "block/mapped.h"

#define VMDK_EXTENTS_MAX 1024u
#define VMDK_TEXT_MAX (1u << 20)
#define VMDK_NO_PARENT 0xffffffffu
#define VMDK_SPARSE_MAGIC "KDMV"
#define VMDK_COWD_MAGIC "COWD"

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

#endif
