/*
 * New images.
 *
 *	| header | refcount table | refcount blocks | L1 table | LUKS header |	one cluster or more each
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "block/luks/luks.h"
#include "block/qcow2/qcow2.h"

struct layout {
	struct header h;
	uint64_t cluster, blocks, l1_clusters, crypt_clusters, total, rb;
	struct luks_header *luks;	/* NULL: not encrypted */
};

static int bad(struct error *e, const char *todo, const char *why)
{
	return error_set(e, EINVAL, todo, "create a qcow2 image", "%s", why);
}

static int choose(struct header *h, const struct block_create *c, struct error *e)
{
	uint32_t cluster = c->cluster_bytes ? c->cluster_bytes : 65536;
	unsigned bits = c->refcount_bits ? c->refcount_bits : 16;

	h->version = c->version ? c->version : 3;
	if (h->version != 2 && h->version != 3)
		return bad(e, "use 2 or 3", "there is no such version");
	if (cluster & (cluster - 1) || cluster < 1u << CLUSTER_BITS_MIN || cluster > 1u << CLUSTER_BITS_MAX)
		return bad(e, "use 512 to 2M", "the cluster size is no power of two in the range");
	if (bits & (bits - 1) || bits > 64)
		return bad(e, "use 1, 2, 4, 8, 16, 32 or 64", "refcounts cannot have that many bits");
	if (h->version == 2 && (bits != 16 || c->lazy_refcounts || c->extended_l2 || c->zstd || c->data_path))
		return bad(e, "use version 3", "version 2 has no such feature");
	if (c->extended_l2 && cluster < 1u << EXTENDED_BITS_MIN)
		return bad(e, "use clusters of 16K or more", "extended L2 entries need larger clusters");
	if (c->data_raw && (!c->data_path || c->backing_path))
		return bad(e, NULL, "a raw data file needs a data file and no backing file");
	if (c->backing_path && !c->backing_format)
		return bad(e, "give the backing file's format", "a guest might change what it looks like");
	if (c->encrypt && c->data_path)
		return bad(e, NULL, "an external data file cannot be encrypted");
	if (c->encrypt && c->version == 2)
		return bad(e, "use version 3", "version 2 has no such encryption");
	if (c->preallocate && c->backing_path)
		return bad(e, NULL, "preallocated clusters would hide the backing file");
	if (c->preallocate && (c->encrypt || c->data_path))
		return bad(e, NULL, "an image that is encrypted, or has a data file, is not preallocated");
	h->cluster_bits = (unsigned)__builtin_ctz(cluster);
	h->refcount_order = (unsigned)__builtin_ctz(bits);
	h->size_bytes = c->size_bytes;
	h->compression = c->zstd;
	h->crypt_method = c->encrypt ? CRYPT_METHOD_LUKS : CRYPT_METHOD_NONE;
	h->incompatible = (c->data_path ? INCOMPAT_DATA_FILE : 0) | (c->zstd ? INCOMPAT_COMPRESSION : 0) |
			  (c->extended_l2 ? INCOMPAT_EXTENDED_L2 : 0);
	h->compatible = c->lazy_refcounts ? COMPAT_LAZY : 0;
	h->autoclear = c->data_raw ? AUTOCLEAR_DATA_RAW : 0;
	h->backing_path = (char *)c->backing_path;
	h->backing_format = (char *)c->backing_format;
	h->data_path = (char *)c->data_path;
	return 0;
}

static int lay_out(struct layout *l, const struct block_create *c, struct error *e)
{
	struct header *h = &l->h;
	unsigned l2_bits;
	uint64_t l1;
	int ret = choose(h, c, e);

	if (ret)
		return ret;
	l2_bits = h->cluster_bits - (c->extended_l2 ? 4 : 3);
	l->cluster = 1ull << h->cluster_bits;
	l1 = (c->size_bytes + (1ull << (h->cluster_bits + l2_bits)) - 1) >> (h->cluster_bits + l2_bits);
	if (l1 > L1_BYTES_MAX / 8)
		return bad(e, "use larger clusters", "the disk is too large for its clusters");
	h->l1_size = (uint32_t)(l1 ? l1 : 1);
	l->l1_clusters = (h->l1_size * 8ull + l->cluster - 1) >> h->cluster_bits;
	if (l->luks)
		h->crypt_bytes = luks_header_info(l->luks)->data_at;
	l->crypt_clusters = (h->crypt_bytes + l->cluster - 1) >> h->cluster_bits;
	l->rb = 1ull << (h->cluster_bits + 3 - h->refcount_order);
	h->rt_clusters = 1;
	for (l->blocks = 1;; l->blocks++) {
		h->rt_clusters = (uint32_t)((l->blocks * 8 + l->cluster - 1) >> h->cluster_bits);
		l->total = 1 + h->rt_clusters + l->blocks + l->l1_clusters + l->crypt_clusters;
		if (l->blocks * l->rb >= l->total)
			break;
	}
	h->rt_offset = l->cluster;
	h->l1_offset = (1 + h->rt_clusters + l->blocks) << h->cluster_bits;
	if (l->luks)
		h->crypt_offset = h->l1_offset + (l->l1_clusters << h->cluster_bits);
	return 0;
}

static int write_all(struct node *file, const struct layout *l, uint8_t *image, struct error *e)
{
	const struct header *h = &l->h;
	uint8_t *blocks = image + ((1ull + h->rt_clusters) << h->cluster_bits);
	int ret = header_encode(h, image, l->cluster);

	if (ret < 0)
		return bad(e, "use larger clusters or a shorter name", "the names do not fit into the header");
	for (uint64_t i = 0; i < l->blocks; i++)
		store_be64(image + l->cluster + i * 8, (1 + h->rt_clusters + i) << h->cluster_bits);
	for (uint64_t i = 0; i < l->total; i++)
		refcount_entry_set(blocks + ((i / l->rb) << h->cluster_bits), h->refcount_order, i % l->rb, 1);
	ret = node_co_write(file, 0, image, l->total << h->cluster_bits);
	if (ret)
		return error_errno(e, -ret, "is there space on the host's disk?", "create disk '%s'", file->path);
	return l->luks ? luks_header_store(l->luks, file, h->crypt_offset, e) : 0;
}

/* The external data file is made with the image, beside it. */
static int make_data_file(struct node *file, const struct block_create *c, struct error *e)
{
	const struct block_options o = { 0 };
	const struct node_open how = { .o = &o };
	char *path = node_path_relative(file->path, c->data_path);
	struct node *n;
	int ret = path ? file_driver.co_make(path, c->overwrite, e) : -ENOMEM;

	if (!ret)
		ret = node_co_open_protocol(&n, file->env, path, &how, e);
	free(path);
	if (ret)
		return ret;
	ret = node_co_resize(n, c->size_bytes, 0, e);
	node_co_close(n);
	return ret;
}

static int create(struct node *file, struct layout *l, const struct block_create *c, struct error *e)
{
	uint8_t *image;
	int ret = lay_out(l, c, e);

	if (!ret && c->data_path)
		ret = make_data_file(file, c, e);
	if (ret)
		return ret;
	image = calloc(l->total, l->cluster);
	ret = image ? write_all(file, l, image, e) : error_errno(e, ENOMEM, NULL, "create disk '%s'", file->path);
	free(image);
	return ret;
}

int qcow2_create(struct node *file, const struct block_create *c, struct error *e)
{
	struct layout l = { 0 };
	int ret = c->encrypt ? choose(&l.h, c, e) : 0;	/* before the time that a key takes */

	if (!ret && c->encrypt)
		ret = luks_header_new(&l.luks, file->env, c, true, e);
	if (!ret)
		ret = create(file, &l, c, e);
	luks_header_free(l.luks);
	return ret;
}
