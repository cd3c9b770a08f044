/* Jobs on chains of backing files: a layer goes into the one below it, or gets another one below it. */
#include <errno.h>
#include <string.h>

#include "block/job.h"

struct chain {
	struct block *top, *base;
	uint64_t grain;
};

static int failed(struct error *e, int ret, const char *what)
{
	if (!ret || ret == -ECANCELED)
		return ret;
	return error_errno(e, -ret, ret == -ENOSPC ? "make room on the host's disk and start it again" : NULL, "%s", what);
}

/* --- commit --- */

static int commit_piece(void *opaque, const struct job_piece *p)
{
	const struct chain *c = opaque;
	int ret;

	if (!(p->flags & BLOCK_STATUS_ALLOCATED))
		return 0;
	if (p->flags & BLOCK_STATUS_ZERO)
		return block_co_write_zeroes(c->base, p->offset, p->len, true);
	ret = block_co_read(c->top, p->offset, p->buf, p->len);
	return ret ? ret : block_co_write(c->base, p->offset, p->buf, p->len);
}

int job_commit(struct block_job *j, struct block *top, struct block *base, struct error *e)
{
	struct chain c = { .top = top, .base = base };
	struct job_walk w = { .b = top, .end = block_size(top), .fn = commit_piece, .opaque = &c };
	int ret = 0;

	if (block_size(base) < block_size(top))
		ret = block_resize(base, block_size(top), 0, e);
	if (ret)
		return ret;
	ret = job_walk(j, &w);
	if (!ret)
		ret = block_co_flush(base);
	if (!ret)
		ret = block_co_empty(top);
	return failed(e, ret, "commit the image");
}

/* --- rebase --- */

static int read_base(const struct chain *c, uint64_t offset, uint8_t *buf, size_t len)
{
	uint64_t end = c->base ? block_size(c->base) : 0, there = offset < end ? end - offset : 0;

	there = there < len ? there : len;
	memset(buf + there, 0, len - there);
	return there ? block_co_read(c->base, offset, buf, there) : 0;
}

/* Whole clusters of zeroes need no space, where the format can say so. */
static int write_own(const struct chain *c, uint64_t offset, const uint8_t *buf, size_t len)
{
	bool whole = offset % c->grain == 0 && (len == c->grain || offset + len == block_size(c->top));

	if (whole && block_zeroes_hide(c->top) && job_all_zero(buf, len))
		return block_co_write_zeroes(c->top, offset, len, false);
	return block_co_write(c->top, offset, buf, len);
}

static bool both_zero(const struct chain *c, const struct job_piece *p)
{
	uint64_t end = p->offset + p->len, base_end = c->base ? block_size(c->base) : 0;
	struct block_status st;

	if (block_co_status(c->top, p->offset, p->len, UINT32_MAX, &st) || st.len < p->len ||
	    !(st.flags & BLOCK_STATUS_ZERO))
		return false;
	end = end < base_end ? end : base_end;
	if (p->offset >= end)
		return true;
	return !block_co_status(c->base, p->offset, end - p->offset, UINT32_MAX, &st) &&
	       st.len == end - p->offset && st.flags & BLOCK_STATUS_ZERO;
}

static int rebase_piece(void *opaque, const struct job_piece *p)
{
	const struct chain *c = opaque;
	int ret;

	if (p->flags & BLOCK_STATUS_ALLOCATED || both_zero(c, p))
		return 0;
	ret = block_co_read(c->top, p->offset, p->buf, p->len);
	if (!ret)
		ret = read_base(c, p->offset, p->buf2, p->len);
	for (uint64_t at = 0, len; at < p->len && !ret; at += len) {
		len = c->grain - (p->offset + at) % c->grain;
		len = len < p->len - at ? len : p->len - at;
		if (memcmp(p->buf + at, p->buf2 + at, len))
			ret = write_own(c, p->offset + at, p->buf + at, len);
	}
	return ret;
}

int job_rebase(struct block_job *j, struct block *top, struct block *base, struct error *e)
{
	struct chain c = { .top = top, .base = base, .grain = block_cluster(top) ? block_cluster(top) : 65536 };
	struct job_walk w = { .b = top, .end = block_size(top), .cut = true, .fn = rebase_piece, .opaque = &c };
	int ret = job_walk(j, &w);

	if (!ret)
		ret = block_co_flush(top);
	return failed(e, ret, "rebase the image");
}
