/*
 * The header and its extensions.
 *
 *	| fixed fields | extension | extension | ... | end | backing file's name |      all inside the first cluster
 *
 * Extensions that are not known stay in the file because single fields are written in place.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "block/qcow2/qcow2.h"

#define EXT_END 0u
#define EXT_BACKING_FORMAT 0xe2792acau
#define EXT_BITMAPS 0x23852875u
#define EXT_CRYPT 0x0537be77u
#define EXT_DATA_FILE 0x44415441u
#define EXT_FEATURE_NAMES 0x6803f857u
#define HEAD_MAX (2u << 20)

static int bad(struct error *e, const struct node *file, const char *why)
{
	char what[192];

	snprintf(what, sizeof(what), "open disk '%.150s'", file->path);
	return error_set(e, EINVAL, "restore it from a copy; is it a qcow2 image at all?", what, "its header %s", why);
}

/* --- reading --- */

static char *text(const uint8_t *p, size_t len)
{
	char *s = memchr(p, 0, len) ? NULL : malloc(len + 1);

	if (s) {
		memcpy(s, p, len);
		s[len] = 0;
	}
	return s;
}

static void fixed_fields(struct header *h, const uint8_t *p)
{
	h->cluster_bits = load_be32(p + 20);
	h->size_bytes = load_be64(p + H_SIZE);
	h->crypt_method = load_be32(p + 32);
	h->l1_size = load_be32(p + H_L1_SIZE);
	h->l1_offset = load_be64(p + 40);
	h->rt_offset = load_be64(p + H_RT_OFFSET);
	h->rt_clusters = load_be32(p + 56);
	h->nsnapshots = load_be32(p + H_SNAPSHOTS);
	h->snapshots_offset = load_be64(p + 64);
	h->length = HEADER_V2;
	h->refcount_order = 4;
	if (h->version == 2)
		return;
	h->incompatible = load_be64(p + H_INCOMPAT);
	h->compatible = load_be64(p + 80);
	h->autoclear = load_be64(p + H_AUTOCLEAR);
	h->refcount_order = load_be32(p + 96);
	h->length = load_be32(p + 100);
	if (h->length > HEADER_V3)
		h->compression = p[104];
}

static int unknown_feature(const struct header *h, struct error *e, const struct node *file)
{
	char why[96];

	snprintf(why, sizeof(why), "asks for features (0x%llx) that this version does not know",
		 (unsigned long long)(h->incompatible & ~(uint64_t)INCOMPAT_KNOWN));
	return bad(e, file, why);
}

static int fields_good(const struct header *h, const struct node *file, struct error *e)
{
	uint64_t cluster = 1ull << (h->cluster_bits & 63);	/* judged below */

	if (h->incompatible & ~(uint64_t)INCOMPAT_KNOWN)
		return unknown_feature(h, e, file);
	if (h->cluster_bits < CLUSTER_BITS_MIN || h->cluster_bits > CLUSTER_BITS_MAX)
		return bad(e, file, "gives a cluster size outside 512 bytes to 2 MiB");
	if (h->incompatible & INCOMPAT_EXTENDED_L2 && h->cluster_bits < EXTENDED_BITS_MIN)
		return bad(e, file, "gives extended L2 entries with clusters under 16 KiB");
	if (h->refcount_order > 6)
		return bad(e, file, "gives refcounts of more than 64 bits");
	if (h->length % 8 || h->length > cluster)
		return bad(e, file, "gives a length of itself that cannot be");
	if (h->size_bytes > INT64_MAX - cluster)
		return bad(e, file, "gives a disk size that cannot be");
	if (!!h->compression != !!(h->incompatible & INCOMPAT_COMPRESSION) || h->compression > 1)
		return bad(e, file, "gives an unknown compression");
	if (h->l1_size > L1_BYTES_MAX / 8 || h->l1_offset % cluster || h->l1_offset >= HOST_MAX ||
	    (h->l1_size && !h->l1_offset))
		return bad(e, file, "gives an L1 table that cannot be");
	if (!h->rt_clusters || h->rt_clusters > RT_BYTES_MAX >> h->cluster_bits || !h->rt_offset ||
	    h->rt_offset % cluster || h->rt_offset >= HOST_MAX)
		return bad(e, file, "gives a refcount table that cannot be");
	if (h->nsnapshots > SNAPSHOTS_MAX || (h->nsnapshots && (h->snapshots_offset % cluster || !h->snapshots_offset ||
								h->snapshots_offset >= HOST_MAX)))
		return bad(e, file, "gives a snapshot table that cannot be");
	if (h->autoclear & AUTOCLEAR_DATA_RAW && !(h->incompatible & INCOMPAT_DATA_FILE))
		return bad(e, file, "calls a data file raw that it does not have");
	if (h->crypt_method && h->incompatible & INCOMPAT_DATA_FILE)
		return bad(e, file, "asks for encryption beside an external data file");
	if (h->incompatible & INCOMPAT_DATA_FILE && h->nsnapshots)
		return bad(e, file, "has internal snapshots beside an external data file");
	return 0;
}

static int extension(struct header *h, uint32_t type, const uint8_t *p, uint32_t len)
{
	switch (type) {
	case EXT_BACKING_FORMAT:
		free(h->backing_format);
		h->backing_format = text(p, len);
		return h->backing_format ? 0 : -EINVAL;
	case EXT_DATA_FILE:
		free(h->data_path);
		h->data_path = text(p, len);
		return h->data_path ? 0 : -EINVAL;
	case EXT_BITMAPS:
		if (len != 24)
			return -EINVAL;
		h->nbitmaps = load_be32(p);
		h->bitmap_dir_bytes = load_be64(p + 8);
		h->bitmap_dir_offset = load_be64(p + 16);
		return 0;
	case EXT_CRYPT:
		if (len != 16)
			return -EINVAL;
		h->crypt_offset = load_be64(p);
		h->crypt_bytes = load_be64(p + 8);
		return 0;
	}
	return 0;
}

/* An area that ends without an end mark is fine when it is full. */
static int extensions(struct header *h, const uint8_t *p, size_t at, size_t end)
{
	while (at + 8 <= end) {
		uint32_t type = load_be32(p + at), len = load_be32(p + at + 4);
		int ret;

		if (type == EXT_END)
			return 0;
		at += 8;
		if (len > end - at)
			return -EINVAL;
		ret = extension(h, type, p + at, len);
		if (ret)
			return ret;
		at += ((size_t)len + 7) & ~(size_t)7;
	}
	return 0;
}

static int strings(struct header *h, const struct node *file, const uint8_t *p, size_t len, struct error *e)
{
	uint64_t offset = load_be64(p + 8), end = 1ull << h->cluster_bits;
	uint32_t n = load_be32(p + 16);

	end = end < len ? end : len;
	if (offset && (n > 1023 || !range_inside(offset, n, end) || offset < h->length))
		return bad(e, file, "gives a name of a backing file that lies outside of it");
	if (extensions(h, p, h->length, offset ? offset : end))
		return bad(e, file, "has an extension that cannot be");
	if (!offset || !n)
		return 0;
	h->backing_path = text(p + offset, n);
	return h->backing_path ? 0 : bad(e, file, "gives a name of a backing file that is none");
}

int header_read(struct header *h, struct node *file, uint8_t head[SECTOR], struct error *e)
{
	size_t len = file->size_bytes < HEAD_MAX ? (size_t)file->size_bytes : HEAD_MAX;
	uint8_t *p = calloc(1, HEAD_MAX);
	int ret = p ? node_co_read(file, 0, p, len) : -ENOMEM;

	*h = (struct header){ 0 };
	if (ret) {
		free(p);
		return error_errno(e, -ret, NULL, "read disk '%s'", file->path);
	}
	memcpy(head, p, SECTOR);
	h->version = load_be32(p + 4);
	if (len < HEADER_V2 || load_be32(p) != MAGIC) {
		ret = bad(e, file, "is not one of a qcow2 image");
	} else if (h->version != 2 && h->version != 3) {
		ret = bad(e, file, "is of a version of qcow2 other than 2 and 3");
	} else if (h->version == 3 && (len < HEADER_V3 || load_be32(p + 100) < HEADER_V3)) {
		ret = bad(e, file, "is cut short");
	} else {
		fixed_fields(h, p);
		ret = fields_good(h, file, e);
	}
	if (!ret)
		ret = strings(h, file, p, len, e);
	free(p);
	return ret;
}

void header_fini(struct header *h)
{
	free(h->backing_path);
	free(h->backing_format);
	free(h->data_path);
	h->backing_path = h->backing_format = h->data_path = NULL;
}

/* --- writing --- */

struct out {
	uint8_t *p;
	size_t at, max;
};

static void put(struct out *o, uint32_t type, const void *data, uint32_t len)
{
	size_t padded = ((size_t)len + 7) & ~(size_t)7;

	if (o->at + 8 + padded <= o->max) {
		store_be32(o->p + o->at, type);
		store_be32(o->p + o->at + 4, len);
		if (len)
			memcpy(o->p + o->at + 8, data, len);
	}
	o->at += 8 + padded;
}

/* So that programs which do not know a feature can name it. */
static void put_feature_names(struct out *o)
{
	static const struct { uint8_t type, bit; char name[46]; } names[] = {
		{ 0, 0, "dirty bit" }, { 0, 1, "corrupt bit" }, { 0, 2, "external data file" },
		{ 0, 3, "compression type" }, { 0, 4, "extended L2 entries" }, { 1, 0, "lazy refcounts" },
		{ 2, 0, "bitmaps" }, { 2, 1, "raw external data" },
	};

	_Static_assert(sizeof(names[0]) == 48, "as in the file");
	put(o, EXT_FEATURE_NAMES, names, sizeof(names));
}

static void encode_fixed(const struct header *h, uint8_t *p)
{
	store_be32(p, MAGIC);
	store_be32(p + 4, h->version);
	store_be32(p + 20, h->cluster_bits);
	store_be64(p + H_SIZE, h->size_bytes);
	store_be32(p + 32, h->crypt_method);
	store_be32(p + H_L1_SIZE, h->l1_size);
	store_be64(p + 40, h->l1_offset);
	store_be64(p + H_RT_OFFSET, h->rt_offset);
	store_be32(p + 56, h->rt_clusters);
	store_be32(p + H_SNAPSHOTS, h->nsnapshots);
	store_be64(p + 64, h->snapshots_offset);
	if (h->version == 2)
		return;
	store_be64(p + H_INCOMPAT, h->incompatible);
	store_be64(p + 80, h->compatible);
	store_be64(p + H_AUTOCLEAR, h->autoclear);
	store_be32(p + 96, h->refcount_order);
	store_be32(p + 100, HEADER_V3 + 8);
	p[104] = (uint8_t)h->compression;
}

int header_encode(const struct header *h, uint8_t *buf, size_t max)
{
	struct out o = { buf, h->version == 2 ? HEADER_V2 : HEADER_V3 + 8, max };
	size_t n = h->backing_path ? strlen(h->backing_path) : 0;

	memset(buf, 0, max);
	encode_fixed(h, buf);
	if (h->backing_format)
		put(&o, EXT_BACKING_FORMAT, h->backing_format, (uint32_t)strlen(h->backing_format));
	if (h->crypt_bytes) {
		uint8_t place[16];

		store_be64(place, h->crypt_offset);
		store_be64(place + 8, h->crypt_bytes);
		put(&o, EXT_CRYPT, place, sizeof(place));
	}
	if (h->data_path)
		put(&o, EXT_DATA_FILE, h->data_path, (uint32_t)strlen(h->data_path));
	if (h->version > 2 && o.at + 8 + 8 * 48 + 8 + n <= max)
		put_feature_names(&o);
	put(&o, EXT_END, NULL, 0);
	if (o.at + n > max || n > 1023)
		return -ENAMETOOLONG;
	if (n) {
		store_be64(buf + 8, o.at);
		store_be32(buf + 16, (uint32_t)n);
		memcpy(buf + o.at, h->backing_path, n);
	}
	return (int)(o.at + n);
}

/* One sector at a time reaches the disk whole. */
int header_patch(struct qcow2 *q, unsigned at, const void *bytes, size_t len)
{
	int ret;

	ASSERT(at + len <= HEADER_V3);
	co_lock(q->co, &q->header_lock);
	memcpy(q->head + at, bytes, len);
	ret = node_co_write(q->file, 0, q->head, HEADER_V3 < SECTOR && q->h.version > 2 ? HEADER_V3 : HEADER_V2);
	if (!ret)
		ret = node_co_flush(q->file);
	co_unlock(q->co, &q->header_lock);
	return ret;
}

int header_set_features(struct qcow2 *q, uint64_t incompatible, uint64_t autoclear)
{
	uint8_t b[24];
	int ret;

	if (q->h.version < 3 || (q->h.incompatible == incompatible && q->h.autoclear == autoclear))
		return 0;
	store_be64(b, incompatible);
	store_be64(b + 8, q->h.compatible);
	store_be64(b + 16, autoclear);
	ret = header_patch(q, H_INCOMPAT, b, sizeof(b));
	if (ret)
		return ret;
	q->h.incompatible = incompatible;
	q->h.autoclear = autoclear;
	return 0;
}

int qcow2_corrupt(struct qcow2 *q, const char *what, uint64_t offset)
{
	if (q->corrupt)
		return -EIO;
	log_warn("disk '%s' is damaged: %s (at 0x%llx); it is not written to any more; check it with 'vixen image "
		 "check'", q->n->path, what, (unsigned long long)offset);
	q->corrupt = true;
	if (!q->n->readonly && co_self(q->co))
		header_set_features(q, q->h.incompatible | INCOMPAT_CORRUPT, q->h.autoclear);
	return -EIO;
}
