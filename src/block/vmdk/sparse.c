/*
 * Sparse extents.
 *
 *	"KDMV" header: | magic | version | flags | capacity | grain | descriptor | ... | directory | ... | deflate? |
 *	"COWD" header: | magic | version | flags | capacity | grain | directory | entries | ...
 *
 *	directory[i] (le32, sectors) ─▶ table[j] (le32, sectors) ─▶ grain;  0: not here, 1: zeroes if the flags say so
 *	a deflated grain:  | sector on the disk, le64 | length, le32 | data |
 *
 * streamOptimized extents that were written in one go have their directory named by a copy of the header at the end.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <zlib.h>

#include "base/checked.h"
#include "base/endian.h"
#include "block/vmdk/vmdk.h"

#define HEADER_BYTES 512u
#define FLAG_ZERO_GRAINS (1u << 2)
#define GRAIN_SECTORS_MIN 8u
#define GRAIN_SECTORS_MAX (1u << 18)
#define PACKED_SECTORS_MAX 4096u
#define TABLE_ENTRIES_MAX 4096u
#define COWD_TABLE_ENTRIES 4096u
#define SECTORS_MAX (1ull << 50)
#define MARKER_BYTES 12u
#define GTE_ZERO 1u

/* --- headers --- */

struct fields {
	uint64_t capacity, grain, descriptor, descriptor_len, directory;	/* sectors */
	uint32_t version, flags, table_entries, cowd_entries;
	unsigned compression;
	bool cowd;
};

static void kdmv_fields(struct fields *f, const uint8_t *h)
{
	*f = (struct fields){ .version = load_le32(h + 4), .flags = load_le32(h + 8), .capacity = load_le64(h + 12),
			      .grain = load_le64(h + 20), .descriptor = load_le64(h + 28),
			      .descriptor_len = load_le64(h + 36), .table_entries = load_le32(h + 44),
			      .directory = load_le64(h + 56), .compression = load_le16(h + 77) };
}

static void cowd_fields(struct fields *f, const uint8_t *h)
{
	*f = (struct fields){ .version = load_le32(h + 4), .capacity = load_le32(h + 12), .grain = load_le32(h + 16),
			      .directory = load_le32(h + 20), .cowd_entries = load_le32(h + 24),
			      .table_entries = COWD_TABLE_ENTRIES, .cowd = true };
}

/* The header's copy at the end, before the mark of the end. */
static int footer(struct node *n, const struct vmdk_extent *x, struct fields *f, struct error *e)
{
	uint64_t size = x->file->size_bytes;
	uint8_t h[HEADER_BYTES];
	int ret;

	if (size < 4 * HEADER_BYTES)
		return mapped_bad(n, e, "is cut short: its end is missing");
	ret = node_co_read(x->file, size - 2 * HEADER_BYTES, h, sizeof(h));
	if (ret)
		return error_errno(e, -ret, NULL, "read disk '%s'", x->file->path);
	if (memcmp(h, VMDK_SPARSE_MAGIC, 4))
		return mapped_bad(n, e, "is cut short: its end is missing");
	kdmv_fields(f, h);
	return f->directory == VMDK_AT_END ? mapped_bad(n, e, "does not say where its directory is") : 0;
}

static int fields_read(struct node *n, const struct vmdk_extent *x, struct fields *f, struct error *e)
{
	uint8_t h[HEADER_BYTES] = { 0 };
	size_t len = x->file->size_bytes < sizeof(h) ? (size_t)x->file->size_bytes : sizeof(h);
	int ret = node_co_read(x->file, 0, h, len);

	if (ret)
		return error_errno(e, -ret, NULL, "read disk '%s'", x->file->path);
	if (!memcmp(h, VMDK_COWD_MAGIC, 4)) {
		cowd_fields(f, h);
	} else if (memcmp(h, VMDK_SPARSE_MAGIC, 4)) {
		return mapped_bad(n, e, "has a sparse extent whose header is none");
	} else {
		kdmv_fields(f, h);
		if (f->directory == VMDK_AT_END)
			ret = footer(n, x, f, e);
	}
	return ret;
}

static int fields_good(struct node *n, const struct fields *f, struct error *e)
{
	char what[192];

	snprintf(what, sizeof(what), "open disk '%.150s'", n->path);
	if (!f->version || f->version > 3)
		return error_set(e, ENOTSUP, "convert it with VMware's tools", what,
				 "sparse extents of version %u are not supported", f->version);
	if (!f->capacity || f->capacity > SECTORS_MAX)
		return mapped_bad(n, e, "gives a disk size that cannot be");
	if (f->grain < GRAIN_SECTORS_MIN || f->grain > GRAIN_SECTORS_MAX || f->grain & (f->grain - 1))
		return mapped_bad(n, e, "gives a grain size that cannot be");
	if (!f->table_entries || f->table_entries > TABLE_ENTRIES_MAX)
		return mapped_bad(n, e, "gives a size of grain tables that cannot be");
	if (f->flags & VMDK_FLAG_DEFLATED && (f->compression != 1 || !(f->flags & VMDK_FLAG_MARKERS) ||
					 f->grain > PACKED_SECTORS_MAX))
		return mapped_bad(n, e, "is compressed in a way that is not known");
	return 0;
}

static int directory_good(struct node *n, struct vmdk_extent *x, const struct fields *f, struct error *e)
{
	uint64_t covered = f->grain * f->table_entries;

	x->directory_entries = (f->capacity + covered - 1) / covered;
	x->directory_at = f->directory * SECTOR;
	if (f->directory > SECTORS_MAX || !f->directory || (f->cowd && f->cowd_entries < x->directory_entries) ||
	    !range_inside(x->directory_at, x->directory_entries * 4, x->file->size_bytes))
		return mapped_bad(n, e, "is cut short: its grain directory lies past the end of the file");
	return 0;
}

int vmdk_sparse_open(struct node *n, struct vmdk_extent *x, struct vmdk_header *h, struct error *e)
{
	struct fields f = { 0 };
	int ret = fields_read(n, x, &f, e);

	if (!ret)
		ret = fields_good(n, &f, e);
	if (!ret)
		ret = directory_good(n, x, &f, e);
	if (ret)
		return ret;
	x->grain_bytes = f.grain * SECTOR;
	x->table_entries = f.table_entries;
	x->zero_grains = !f.cowd && f.flags & FLAG_ZERO_GRAINS;
	x->packed = f.flags & VMDK_FLAG_DEFLATED;
	h->capacity_bytes = f.capacity * SECTOR;
	h->descriptor_at = f.descriptor > SECTORS_MAX ? UINT64_MAX : f.descriptor * SECTOR;
	h->descriptor_bytes = f.descriptor_len > SECTORS_MAX ? UINT64_MAX : f.descriptor_len * SECTOR;
	return 0;
}

/* --- looking up --- */

static int word_at(struct node *n, const struct vmdk_extent *x, uint64_t at, uint32_t *out)
{
	struct vmdk *v = n->impl;
	uint8_t b[4];
	int ret = pages_read(&v->pages, x->file, at, b, sizeof(b));

	*out = load_le32(b);
	return ret == -EIO ? mapped_damaged(n, "a grain table lies past the end of the file", at) : ret;
}

static enum span_kind kind_of(const struct vmdk_extent *x, uint32_t gte)
{
	if (!gte)
		return SPAN_BACKING;
	if (gte == GTE_ZERO && x->zero_grains)
		return SPAN_ZERO;
	return x->packed ? SPAN_PACKED : SPAN_DATA;
}

/* Does the next grain continue what the last one is? */
static bool goes_on(const struct vmdk_extent *x, uint32_t last, uint32_t next)
{
	enum span_kind kind = kind_of(x, last);

	if (kind != kind_of(x, next) || kind == SPAN_PACKED)
		return false;
	return kind != SPAN_DATA || next == last + x->grain_bytes / SECTOR;
}

int vmdk_sparse_span(struct node *n, const struct vmdk_extent *x, uint64_t at, uint64_t len, struct span *out)
{
	uint64_t grain = at / x->grain_bytes, in_grain = at % x->grain_bytes, j = grain % x->table_entries;
	uint32_t table, first, last, next;
	int ret = word_at(n, x, x->directory_at + grain / x->table_entries * 4, &table);

	if (ret)
		return ret;
	if (!table) {
		uint64_t whole = (x->table_entries - j) * x->grain_bytes - in_grain;

		*out = (struct span){ .kind = SPAN_BACKING, .len = whole < len ? whole : len };
		return 0;
	}
	ret = word_at(n, x, (uint64_t)table * SECTOR + j * 4, &first);
	if (ret)
		return ret;
	*out = (struct span){ .kind = kind_of(x, first), .file = x->file, .len = x->grain_bytes - in_grain,
			      .host = (uint64_t)first * SECTOR };
	for (last = first; out->len < len && ++j < x->table_entries; last = next) {
		if (word_at(n, x, (uint64_t)table * SECTOR + j * 4, &next) || !goes_on(x, last, next))
			break;
		out->len += x->grain_bytes;
	}
	if (out->kind == SPAN_DATA)
		out->host += in_grain;
	if (out->len > len)
		out->len = len;
	return 0;
}

/* --- inflating --- */

/* 0 or more bytes that came out; -EIO: not deflated data. */
static int64_t inflate_all(const uint8_t *src, uint32_t len, uint8_t *dst, size_t max)
{
	z_stream z = { .next_in = (uint8_t *)src, .avail_in = len, .next_out = dst, .avail_out = (uInt)max };
	int ret;

	if (inflateInit(&z) != Z_OK)
		return -ENOMEM;
	ret = inflate(&z, Z_FINISH);
	inflateEnd(&z);
	return ret == Z_STREAM_END || (ret == Z_BUF_ERROR && !z.avail_out) ? (int64_t)(max - z.avail_out) : -EIO;
}

static int grain_load(struct node *n, const struct vmdk_extent *x, uint64_t host, uint64_t at, uint8_t *plain)
{
	uint64_t here = at - at % x->grain_bytes, left = x->bytes - here;
	uint8_t marker[MARKER_BYTES], *packed;
	uint32_t len;
	int64_t got;
	int ret;

	if (!range_inside(host, sizeof(marker), x->file->size_bytes))
		return mapped_damaged(n, "a grain lies past the end of the file", host);
	ret = node_co_read(x->file, host, marker, sizeof(marker));
	if (ret)
		return ret;
	len = load_le32(marker + 8);
	if (load_le64(marker) != here / SECTOR || len > 2 * x->grain_bytes + 4096)
		return mapped_damaged(n, "a compressed grain does not say what it is", host);
	if (!range_inside(host + sizeof(marker), len, x->file->size_bytes))
		return mapped_damaged(n, "a grain lies past the end of the file", host);
	packed = malloc(len ? len : 1);
	ret = packed ? node_co_read(x->file, host + sizeof(marker), packed, len) : -ENOMEM;
	got = ret ? ret : inflate_all(packed, len, plain, x->grain_bytes);
	free(packed);
	if (ret || got == -ENOMEM)
		return ret ? ret : -ENOMEM;
	return got < (int64_t)(left < x->grain_bytes ? left : x->grain_bytes)
	       ? mapped_damaged(n, "a grain cannot be decompressed", host) : 0;
}

int vmdk_sparse_unpack(struct node *n, const struct vmdk_extent *x, const struct span *s, uint64_t at, uint8_t *out)
{
	struct vmdk *v = n->impl;

	if (v->plain_of != x || v->plain_host != s->host) {
		uint8_t *plain = calloc(1, x->grain_bytes);
		int ret = plain ? grain_load(n, x, s->host, at, plain) : -ENOMEM;

		if (ret) {
			free(plain);
			return ret;
		}
		free(v->plain);
		v->plain = plain;
		v->plain_of = x;
		v->plain_host = s->host;
	}
	memcpy(out, v->plain + at % x->grain_bytes, s->len);
	return 0;
}
