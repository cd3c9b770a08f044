/* Copying a disk: holes stay holes, zeroes that were written become some. */
#include <errno.h>

#include "block/job.h"

struct convert {
	const struct job_convert *o;
	struct block *src, *dst;
	bool noise;		/* dst does not begin as zeroes: they are all written */
	uint32_t grain;		/* zeroes are looked for in units of this */
};

static uint64_t grain_end(const struct convert *c, const struct job_piece *p, uint64_t at)
{
	uint64_t end = at - at % c->grain + c->grain - p->offset;

	return end < p->len ? end : p->len;
}

/* From at on: how long all grains are zeroes, or none is. */
static uint64_t alike(const struct convert *c, const struct job_piece *p, uint64_t from, bool *zero)
{
	uint64_t at = from;

	for (; at < p->len; at = grain_end(c, p, p->offset + at)) {
		uint64_t end = grain_end(c, p, p->offset + at);
		bool z = job_all_zero(p->buf + at, end - at);

		if (at == from)
			*zero = z;
		else if (z != *zero)
			break;
	}
	return at - from;
}

static int write_sparse(const struct convert *c, const struct job_piece *p)
{
	int ret = 0;

	for (uint64_t at = 0, len; at < p->len && !ret; at += len) {
		bool zero = false;

		len = alike(c, p, at, &zero);
		if (zero && c->noise)
			ret = block_co_write_zeroes(c->dst, p->offset + at, len, true);
		else if (!zero)
			ret = block_co_write(c->dst, p->offset + at, p->buf + at, len);
	}
	return ret;
}

static int write_compressed(const struct convert *c, const struct job_piece *p)
{
	uint64_t cluster = block_cluster(c->dst);
	int ret = 0;

	for (uint64_t at = 0; at < p->len && !ret; at += cluster) {
		uint64_t len = p->len - at < cluster ? p->len - at : cluster;

		if (c->o->dense || !job_all_zero(p->buf + at, len))
			ret = block_co_write_compressed(c->dst, p->offset + at, p->buf + at, len);
	}
	return ret;
}

static int copy(void *opaque, const struct job_piece *p)
{
	const struct convert *c = opaque;
	int ret;

	if (p->flags & BLOCK_STATUS_ZERO)
		return c->noise ? block_co_write_zeroes(c->dst, p->offset, p->len, true) : 0;
	ret = block_co_read(c->src, p->offset, p->buf, p->len);
	if (ret)
		return ret;
	if (c->o->compress)
		return write_compressed(c, p);
	return c->o->dense ? block_co_write(c->dst, p->offset, p->buf, p->len) : write_sparse(c, p);
}

#define SAFE_BYTES (64u << 20)
#define WRITEBACK_BYTES (16u << 20)	/* the host's disk is busy from early on, but not with small pieces */

static int settle(void *opaque, uint64_t below)
{
	const struct convert *c = opaque;
	int ret;

	if (!c->o->safe) {
		block_co_writeback(c->dst);
		return 0;
	}
	ret = block_co_flush(c->dst);
	return ret ? ret : c->o->safe(c->o->opaque, below);
}

int job_convert(struct block_job *j, struct block *src, struct block *dst, const struct job_convert *o,
		struct error *e)
{
	struct convert c = { o, src, dst, !block_new_is_zero(dst),
			     o->sparse_bytes ? o->sparse_bytes : JOB_SPARSE_BYTES };
	struct job_walk w = { .b = src, .start = o->from, .end = block_size(src), .depth_max = UINT32_MAX, .fn = copy,
			      .settle = settle, .settle_bytes = o->safe ? SAFE_BYTES : WRITEBACK_BYTES, .opaque = &c };
	int ret;

	if (block_size(dst) < block_size(src))
		return error_set(e, EINVAL, "make it larger", "convert the disk", "the new image is too small");
	if (o->compress && !block_cluster(dst))
		return error_set(e, EOPNOTSUPP, "convert to qcow2", "convert the disk",
				 "a %s image cannot be compressed", block_format(dst));
	if (block_ordered(dst))
		j->parallel = 1;
	w.cut = c.noise;
	if (block_cluster(dst) > c.grain)
		c.grain = block_cluster(dst);
	w.unit = c.grain < JOB_PIECE_BYTES ? c.grain : JOB_PIECE_BYTES;
	if (block_cluster(dst) && w.unit % block_cluster(dst))
		w.unit = block_cluster(dst);
	ret = job_walk(j, &w);
	if (!ret)
		ret = block_co_flush(dst);
	if (!ret || ret == -ECANCELED)
		return ret;
	return error_errno(e, -ret, ret == -ENOSPC ? "make room on the host's disk" : NULL, "convert the disk");
}
