/* Changing the size of the disk. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "block/qcow2/qcow2.h"

/* The L1 table moves to a place where it has room; the header names it when it is there. */
int l1_grow(struct qcow2 *q, uint32_t entries)
{
	uint64_t bytes = entries * 8ull, old = cluster_of(q, q->h.l1_offset), first, got;
	uint64_t old_clusters = clusters_for(q, q->h.l1_size * 8ull), *l1;
	uint8_t field[12], *image;
	int ret;

	if (bytes > L1_BYTES_MAX)
		return -EFBIG;
	ret = clusters_alloc(q, clusters_for(q, bytes), true, &first, &got);
	if (ret)
		return ret;
	image = calloc(1, clusters_for(q, bytes) << q->cluster_bits);
	l1 = calloc(entries, 8);
	ret = image && l1 ? qcow2_commit(q) : -ENOMEM;
	for (uint32_t i = 0; !ret && i < q->h.l1_size; i++)
		store_be64(image + i * 8ull, l1[i] = q->l1[i]);
	if (!ret)
		ret = node_co_write(q->file, first << q->cluster_bits, image, clusters_for(q, bytes) << q->cluster_bits);
	if (!ret)
		ret = node_co_flush(q->file);
	store_be32(field, entries);
	store_be64(field + 4, first << q->cluster_bits);
	if (!ret)
		ret = header_patch(q, H_L1_SIZE, field, sizeof(field));
	free(image);
	if (ret) {
		free(l1);
		return ret;
	}
	free(q->l1);
	q->l1 = l1;
	q->h.l1_size = entries;
	q->h.l1_offset = first << q->cluster_bits;
	for (uint64_t i = 0; i < got; i++)
		set_add(&q->meta, first + i);
	for (uint64_t i = 0; i < old_clusters; i++)
		set_del(&q->meta, old + i);
	return clusters_unref_later(q, old, old_clusters);
}

static int size_write(struct qcow2 *q, uint64_t size_bytes)
{
	uint8_t field[8];
	int ret;

	store_be64(field, size_bytes);
	ret = header_patch(q, H_SIZE, field, sizeof(field));
	if (ret)
		return ret;
	q->h.size_bytes = q->n->size_bytes = size_bytes;
	return 0;
}

/* A backing file longer than the disk was must not show in what is added. */
static int hide_backing(struct qcow2 *q, uint64_t old, uint64_t size_bytes)
{
	const struct node *below = q->n->child[NODE_BACKING];
	uint64_t end = below && below->size_bytes < size_bytes ? below->size_bytes : size_bytes;

	if (!below || end <= old)
		return 0;
	return node_co_write_zeroes(q->n, old, end - old, NODE_ZERO_MAY_UNMAP);
}

static int grow(struct qcow2 *q, uint64_t size_bytes)
{
	uint64_t old = q->n->size_bytes, entries = l1_entries_for(q, size_bytes);
	int ret = 0;

	if (entries > L1_BYTES_MAX / 8)
		return -EFBIG;
	if (entries > q->h.l1_size)
		ret = l1_grow(q, (uint32_t)entries);
	if (!ret && q->external && q->data->size_bytes < size_bytes)
		ret = node_co_resize(q->data, size_bytes, 0, NULL);
	if (ret)
		return ret;
	q->n->size_bytes = size_bytes;		/* for the zeroes; the header follows */
	ret = hide_backing(q, old, size_bytes);
	if (!ret)
		ret = qcow2_commit(q);
	q->n->size_bytes = old;
	if (!ret)
		ret = bitmaps_resize(q, size_bytes);
	return ret ? ret : size_write(q, size_bytes);
}

/* The rest of the last cluster is cleared, so that growing again brings zeroes. */
static int shrink(struct qcow2 *q, uint64_t size_bytes)
{
	uint64_t old = q->n->size_bytes, from = (size_bytes + q->cluster_bytes - 1) & ~(uint64_t)(q->cluster_bytes - 1);
	uint64_t to = (old + q->cluster_bytes - 1) & ~(uint64_t)(q->cluster_bytes - 1);
	int ret = 0;

	if (from > size_bytes)
		ret = node_co_write_zeroes(q->n, size_bytes, (from < old ? from : old) - size_bytes, 0);
	if (!ret && to > from)
		ret = clusters_forget(q, from, to - from, false, false);
	if (!ret)
		ret = qcow2_commit(q);
	if (!ret)
		ret = bitmaps_resize_begin(q);
	if (!ret)
		ret = size_write(q, size_bytes);
	return ret ? ret : bitmaps_resize(q, size_bytes);
}

int qcow2_resize(struct node *n, uint64_t size_bytes, unsigned flags, struct error *e)
{
	struct qcow2 *q = n->impl;
	int ret;

	if (size_bytes > (uint64_t)INT64_MAX - q->cluster_bytes)
		ret = -EFBIG;
	else
		ret = size_bytes > n->size_bytes ? grow(q, size_bytes) : shrink(q, size_bytes);
	return ret ? error_errno(e, -ret, ret == -EFBIG ? "convert it to an image with larger clusters" : NULL,
				 "resize disk '%s'", n->path) : 0;
}
