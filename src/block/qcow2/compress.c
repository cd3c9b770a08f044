/* Compressed clusters: raw deflate or zstd, packed one behind the other into host clusters. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <zlib.h>
#include <zstd.h>

#include "block/qcow2/qcow2.h"
#include "host/workers.h"

#define DEFLATE_WINDOW 12	/* what readers of old versions can take */
#define QUICK_BYTES 4096u	/* up to here handing it to a thread costs more than doing it */

/* One cluster to be packed or unpacked. */
struct packing {
	bool zstd;
	const uint8_t *src;
	uint8_t *dst;
	size_t len, room, packed;	/* packed: bytes; 0: no smaller */
	int ret;
};

static void in_a_thread(const struct qcow2 *q, void (*fn)(void *packing), struct packing *p)
{
	if (q->cluster_bytes <= QUICK_BYTES)
		fn(p);
	else
		workers_co_run(q->n->env->workers, fn, p);
}

static int inflate_cluster(const uint8_t *src, size_t len, uint8_t *dst, size_t want)
{
	z_stream z = { .next_in = (uint8_t *)src, .avail_in = (uInt)len, .next_out = dst, .avail_out = (uInt)want };
	int ret;

	if (inflateInit2(&z, -MAX_WBITS) != Z_OK)
		return -ENOMEM;
	ret = inflate(&z, Z_FINISH);
	inflateEnd(&z);
	return !z.avail_out && (ret == Z_STREAM_END || ret == Z_BUF_ERROR) ? 0 : -EIO;
}

/* The last sector may hold more than the frame. */
static int unzstd_cluster(const uint8_t *src, size_t len, uint8_t *dst, size_t want)
{
	ZSTD_DCtx *z = ZSTD_createDCtx();
	ZSTD_inBuffer in = { src, len, 0 };
	ZSTD_outBuffer out = { dst, want, 0 };
	size_t ret = 1;

	if (!z)
		return -ENOMEM;
	while (out.pos < want && ret && !ZSTD_isError(ret)) {
		size_t in_before = in.pos, out_before = out.pos;

		ret = ZSTD_decompressStream(z, &out, &in);
		if (in.pos == in_before && out.pos == out_before)
			break;
	}
	ZSTD_freeDCtx(z);
	return out.pos == want && !ZSTD_isError(ret) ? 0 : -EIO;
}

static void decompress(void *packing)
{
	struct packing *p = packing;

	p->ret = (p->zstd ? unzstd_cluster : inflate_cluster)(p->src, p->len, p->dst, p->room);
}

/* Sequential readers come back for the rest of a cluster: the last one stays in memory. */
int qcow2_co_read_compressed(struct qcow2 *q, uint64_t raw, uint64_t at, const struct iovec *iov, int iovcnt,
			     uint64_t skip, uint64_t len)
{
	struct packing p;
	uint64_t host, bytes;
	uint8_t *src, *plain;
	int ret;

	if (q->plain_raw == raw) {
		iov_copy_in(iov, iovcnt, skip, q->plain + at, len);
		return 0;
	}
	compressed_extent(q, raw, &host, &bytes);
	src = malloc(bytes);
	plain = malloc(q->cluster_bytes);
	ret = src && plain ? node_co_read(q->file, host, src, bytes) : -ENOMEM;
	if (!ret) {
		p = (struct packing){ q->h.compression, src, plain, bytes, q->cluster_bytes, 0, 0 };
		in_a_thread(q, decompress, &p);
		ret = p.ret;
	}
	if (!ret) {
		iov_copy_in(iov, iovcnt, skip, plain + at, len);
		free(q->plain);
		q->plain = plain;
		q->plain_raw = raw;
		plain = NULL;
	}
	free(plain);
	free(src);
	return ret;
}

/* --- writing --- */

static size_t deflate_cluster(const uint8_t *src, size_t len, uint8_t *dst, size_t room)
{
	z_stream z = { .next_in = (uint8_t *)src, .avail_in = (uInt)len, .next_out = dst, .avail_out = (uInt)room };
	int ret;

	if (deflateInit2(&z, Z_DEFAULT_COMPRESSION, Z_DEFLATED, -DEFLATE_WINDOW, 9, Z_DEFAULT_STRATEGY) != Z_OK)
		return 0;
	ret = deflate(&z, Z_FINISH);
	deflateEnd(&z);
	return ret == Z_STREAM_END ? room - z.avail_out : 0;
}

static size_t zstd_cluster(const uint8_t *src, size_t len, uint8_t *dst, size_t room)
{
	size_t ret = ZSTD_compress(dst, room, src, len, ZSTD_CLEVEL_DEFAULT);

	return ZSTD_isError(ret) ? 0 : ret;
}

static void compress_one(void *packing)
{
	struct packing *p = packing;

	p->packed = (p->zstd ? zstd_cluster : deflate_cluster)(p->src, p->len, p->dst, p->room);
}

static int entry_set(struct qcow2 *q, uint64_t offset, uint64_t host, uint32_t len)
{
	struct range range = { cluster_of(q, offset), cluster_of(q, offset), NULL };
	unsigned x = 62 - (q->cluster_bits - 8);
	struct mapping old, m = { .compressed = true };
	struct table *t;
	int ret;

	m.raw = ENTRY_COMPRESSED | host | ((host + len - 1) / SECTOR - host / SECTOR) << x;
	for (;;) {
		ret = l2_get_writable(q, offset, &t);
		if (ret)
			return ret;
		if (range_try_lock(q, &range))
			break;
		table_put(q, t);
	}
	ret = mapping_get(q, t, offset, &old);
	if (!ret) {
		mapping_set(q, t, offset, &m);
		ret = mapping_unref(q, &old);
	}
	range_unlock(q, &range);
	table_put(q, t);
	return ret;
}

static int write_packed(struct qcow2 *q, uint64_t offset, const uint8_t *packed, uint32_t len)
{
	unsigned x = 62 - (q->cluster_bits - 8);
	uint64_t host;
	int ret = tables_crowded(q) ? qcow2_commit(q) : 0;

	if (!ret)
		ret = qcow2_begin_change(q);
	if (!ret)
		ret = packed_alloc(q, len, &host);
	if (ret)
		return ret;
	if (host + len > 1ull << (x < 56 ? x : 56))
		ret = -EFBIG;
	if (!ret)
		ret = host_writable(q, host, len) ? node_co_write(q->file, host, packed, len)
						  : qcow2_corrupt(q, "metadata is counted as free", host);
	if (!ret)
		ret = entry_set(q, offset, host, len);
	if (ret)
		clusters_unref(q, cluster_of(q, host), cluster_of(q, host + len - 1) - cluster_of(q, host) + 1);
	return ret;
}

int qcow2_co_write_compressed(struct node *n, uint64_t offset, const void *buf, size_t len)
{
	struct qcow2 *q = n->impl;
	struct iovec iov = { (void *)buf, len };
	uint8_t *full = calloc(1, q->cluster_bytes), *packed = malloc(q->cluster_bytes);
	struct packing p = { q->h.compression, full, packed, q->cluster_bytes, q->cluster_bytes - 1, 0, 0 };
	int ret = q->external || q->encrypted ? -EOPNOTSUPP : full && packed ? 0 : -ENOMEM;

	if (!ret)
		ret = bitmaps_co_mark(q, offset, len);
	if (!ret) {
		memcpy(full, buf, len);
		in_a_thread(q, compress_one, &p);
		ret = p.packed ? write_packed(q, offset, packed, (uint32_t)p.packed)
			       : qcow2_co_write_guest(q, offset, &iov, 1);
	}
	free(full);
	free(packed);
	return ret;
}
