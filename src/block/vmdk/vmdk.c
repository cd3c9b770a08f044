/* The VMDK format: opening, finding the extent, telling. */
#include "block/vmdk/vmdk.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#include "base/checked.h"

static int no_memory(const struct node *n, struct error *e)
{
	return error_errno(e, ENOMEM, NULL, "open disk '%s'", n->path);
}

/* --- which extent? --- */

static const struct vmdk_extent *extent_at(const struct vmdk *v, uint64_t offset)
{
	unsigned low = 0, high = v->d.nextents - 1;

	while (low < high) {
		unsigned middle = (low + high + 1) / 2;

		if (v->d.extent[middle].start <= offset)
			low = middle;
		else
			high = middle - 1;
	}
	return &v->d.extent[low];
}

static int vmdk_span(struct node *n, uint64_t offset, uint64_t len, struct span *out)
{
	const struct vmdk *v = n->impl;
	const struct vmdk_extent *x = extent_at(v, offset);
	uint64_t at = offset - x->start;

	len = len < x->bytes - at ? len : x->bytes - at;
	if (x->type == VMDK_SPARSE)
		return vmdk_sparse_span(n, x, at, len, out);
	*out = (struct span){ .kind = x->type == VMDK_ZERO ? SPAN_ZERO : SPAN_DATA, .file = x->file, .len = len,
			      .host = x->file_offset + at };
	return 0;
}

static int vmdk_unpack(struct node *n, const struct span *s, uint64_t offset, uint8_t *out)
{
	const struct vmdk_extent *x = extent_at(n->impl, offset);

	return vmdk_sparse_unpack(n, x, s, offset - x->start, out);
}

/* --- the descriptor --- */

static int text_parse(struct node *n, uint64_t at, uint64_t len, struct error *e)
{
	struct vmdk *v = n->impl;
	char *text = calloc(1, VMDK_TEXT_MAX + 1);
	const char *why = "cannot be read";
	int ret;

	if (!text)
		return no_memory(n, e);
	ret = node_co_read(n->child[NODE_FILE], at, text, len);
	if (!ret)
		ret = vmdk_descriptor_parse(&v->d, text, &why);
	free(text);
	return ret ? mapped_bad(n, e, why) : 0;
}

/* The parts of a larger image have none, or room for one. */
static int inner_descriptor(struct node *n, const struct vmdk_header *h, struct error *e)
{
	struct node *file = n->child[NODE_FILE];
	uint8_t head[SECTOR] = { 0 };
	char what[192];
	int ret;

	if (h->descriptor_bytes > VMDK_TEXT_MAX || !range_inside(h->descriptor_at, h->descriptor_bytes, file->size_bytes))
		return mapped_bad(n, e, "is cut short: its descriptor lies past the end of the file");
	ret = h->descriptor_at && h->descriptor_bytes ? node_co_read(file, h->descriptor_at, head, sizeof(head)) : 0;
	if (ret)
		return error_errno(e, -ret, NULL, "read disk '%s'", n->path);
	snprintf(what, sizeof(what), "open disk '%.150s'", n->path);
	if (!vmdk_is_descriptor(head, sizeof(head)))
		return error_set(e, EINVAL, "give the file with the descriptor, whose name has no number", what,
				 "it is one part of a larger VMDK image");
	return text_parse(n, h->descriptor_at, h->descriptor_bytes, e);
}

/* One sparse file with the descriptor inside. */
static int open_sparse(struct node *n, struct error *e)
{
	struct vmdk *v = n->impl;
	struct vmdk_extent x = { .type = VMDK_SPARSE, .file = n->child[NODE_FILE] };
	struct vmdk_header h;
	int ret = vmdk_sparse_open(n, &x, &h, e);

	if (ret)
		return ret;
	ret = inner_descriptor(n, &h, e);
	if (ret)
		return ret;
	if (v->d.nextents != 1 || v->d.extent[0].type != VMDK_SPARSE)
		return mapped_bad(n, e, "has other extents beside the one that holds its descriptor");
	x.bytes = h.capacity_bytes;
	free(v->d.extent[0].name);
	v->d.extent[0] = x;
	v->d.bytes = x.bytes;
	return 0;
}

static int open_extent(struct node *n, struct vmdk_extent *x, const struct node_open *how, struct error *e)
{
	struct vmdk_header h;
	char *path = node_path_relative(n->path, x->name);
	int ret = path ? node_co_open_protocol(&x->file, n->env, path, how, e) : no_memory(n, e);

	free(path);
	if (ret)
		return ret;
	if (x->type == VMDK_FLAT)
		return range_inside(x->file_offset, x->bytes, x->file->size_bytes) ? 0 :
		       mapped_bad(n, e, "has an extent whose file is too short");
	ret = vmdk_sparse_open(n, x, &h, e);
	if (!ret && h.capacity_bytes < x->bytes)
		ret = mapped_bad(n, e, "has an extent that is smaller than the descriptor says");
	return ret;
}

static int open_text(struct node *n, const struct node_open *how, struct error *e)
{
	struct vmdk *v = n->impl;
	uint64_t len = n->child[NODE_FILE]->size_bytes;
	int ret;

	if (len > VMDK_TEXT_MAX)
		return mapped_bad(n, e, "has a descriptor of more than 1 MiB");
	ret = text_parse(n, 0, len, e);
	for (unsigned i = 0; i < v->d.nextents && !ret; i++)
		if (v->d.extent[i].type != VMDK_ZERO)
			ret = open_extent(n, &v->d.extent[i], how, e);
	return ret;
}

/* --- the parent --- */

static const struct node_ops vmdk_ops;

static int open_parent(struct node *n, const struct node_open *how, struct error *e)
{
	const struct vmdk *v = n->impl;
	const struct node *parent;
	int ret;

	if (v->d.parent_cid == VMDK_NO_PARENT)
		return 0;
	if ((!v->d.parent || !*v->d.parent) && !how->o->backing_path)
		return mapped_bad(n, e, "has a parent that it does not name");
	ret = node_co_open_backing(n, how, v->d.parent, "vmdk", e);
	parent = n->child[NODE_BACKING];
	if (ret || !parent || parent->ops != &vmdk_ops)
		return ret;
	return ((const struct vmdk *)parent->impl)->d.cid == v->d.parent_cid ? 0 :
	       mapped_bad(n, e, "belongs to another state of its parent, which was changed");
}

/* --- life --- */

static int vmdk_open(struct node *n, const struct node_open *how, struct error *e)
{
	struct node *file = n->child[NODE_FILE];
	struct vmdk *v = calloc(1, sizeof(*v));
	uint8_t head[NODE_PROBE_BYTES];
	size_t len = file->size_bytes < sizeof(head) ? (size_t)file->size_bytes : sizeof(head);
	int ret = v ? node_co_read(file, 0, head, len) : -ENOMEM;

	n->impl = v;
	if (ret)
		return error_errno(e, -ret, NULL, "open disk '%s'", n->path);
	v->mapped.co_span = vmdk_span;
	v->mapped.co_unpack = vmdk_unpack;
	ret = mapped_read_only(n, how, e);
	if (!ret)
		ret = vmdk_is_descriptor(head, len) ? open_text(n, how, e) : open_sparse(n, e);
	if (!ret)
		ret = open_parent(n, how, e);
	if (ret)
		return ret;
	n->size_bytes = v->d.bytes;
	n->limits.cluster = (uint32_t)v->d.extent[0].grain_bytes;
	return mapped_is_fresh(n, how) ? vmdk_fill_begin(n, e) : 0;
}

static int vmdk_writev(struct node *n, uint64_t offset, const struct iovec *iov, int iovcnt)
{
	const struct vmdk *v = n->impl;

	return (v->stream ? vmdk_stream_co_writev : fresh_co_writev)(n, offset, iov, iovcnt);
}

static int vmdk_flush(struct node *n)
{
	const struct vmdk *v = n->impl;

	return (v->stream ? vmdk_stream_co_flush : fresh_co_flush)(n);
}

static int vmdk_close(struct node *n)
{
	struct vmdk *v = n->impl;
	int ret = (v->stream ? vmdk_stream_co_end : fresh_co_end)(n);

	for (unsigned i = 0; i < v->d.nextents; i++)
		if (v->d.extent[i].name)
			node_co_close(v->d.extent[i].file);
	vmdk_descriptor_fini(&v->d);
	pages_fini(&v->pages);
	free(v->plain);
	free(v);
	n->impl = NULL;
	return ret;
}

static int vmdk_info(struct node *n, struct block_info *out)
{
	const struct vmdk *v = n->impl;
	struct block_info part;

	if (v->d.parent_cid != VMDK_NO_PARENT) {
		out->backing_path = v->d.parent;
		out->backing_format = "vmdk";
	}
	for (unsigned i = 0; i < v->d.nextents; i++) {
		const struct vmdk_extent *x = &v->d.extent[i];

		if (x->name && x->file && x->file->ops->info && !x->file->ops->info(x->file, &part))
			out->host_bytes += part.host_bytes;
	}
	block_info_extra(out, "type", "%s", v->d.type ? v->d.type : "not given");
	block_info_extra(out, "content id", "%08x", v->d.cid);
	block_info_extra(out, "extents", "%u", v->d.nextents);
	block_info_extra(out, "compressed", "%s", v->d.extent[0].packed ? "yes" : "no");
	return 0;
}

static bool vmdk_probe(const uint8_t *head, size_t len, uint64_t file_bytes)
{
	return len >= 4 && (!memcmp(head, VMDK_SPARSE_MAGIC, 4) || !memcmp(head, VMDK_COWD_MAGIC, 4) ||
			   vmdk_is_descriptor(head, len));
}

static const struct node_ops vmdk_ops = {
	.name = "vmdk", .co_readv = mapped_co_readv, .co_writev = vmdk_writev, .co_flush = vmdk_flush,
	.co_status = mapped_co_status, .info = vmdk_info, .co_close = vmdk_close,
};

static const char *const subformats[] = { "monolithicSparse", "streamOptimized", NULL };

const struct driver vmdk_driver = {
	.name = "vmdk", .suffix = ".vmdk", .ops = &vmdk_ops, .probe = vmdk_probe, .co_open = vmdk_open,
	.co_create = vmdk_create, .subformats = subformats,
};
