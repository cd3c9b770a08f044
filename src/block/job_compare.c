/* Do two disks hold the same?  Layout, format and holes make no difference. */
#include <errno.h>
#include <string.h>

#include "block/job.h"

#define SECTOR_BYTES 512u
#define STOP 1		/* ends the walk: a difference was found */

struct compare {
	struct block *a, *b;	/* a is not the shorter one */
	struct job_compare *out;
};

/* Earlier pieces were claimed earlier, and come to their end before the walk does: the least offset wins. */
static int differs(const struct compare *c, const struct job_piece *p, const uint8_t *x, const uint8_t *y)
{
	uint64_t at = 0;

	while (at < p->len && !memcmp(x + at, y + at, SECTOR_BYTES))
		at += SECTOR_BYTES;
	if (at == p->len)
		return 0;
	if (!c->out->differ || p->offset + at < c->out->offset)
		c->out->offset = p->offset + at;
	c->out->differ = true;
	return STOP;
}

static int read_past_end(struct block *b, uint64_t offset, uint8_t *buf, size_t len)
{
	uint64_t there = offset < block_size(b) ? block_size(b) - offset : 0;

	there = there < len ? there : len;
	memset(buf + there, 0, len - there);
	return there ? block_co_read(b, offset, buf, there) : 0;
}

static int compare_data(const struct compare *c, const struct job_piece *p)
{
	int ret = read_past_end(c->b, p->offset, p->buf2, p->len);

	if (!ret && p->flags & BLOCK_STATUS_ZERO)
		memset(p->buf, 0, p->len);
	else if (!ret)
		ret = block_co_read(c->a, p->offset, p->buf, p->len);
	return ret ? ret : differs(c, p, p->buf, p->buf2);
}

/* Where a is zeroes, for gigabytes perhaps, only data of b has to be read. */
static int compare_zeroes(const struct compare *c, const struct job_piece *p)
{
	struct job_piece q = *p;
	uint64_t end = p->offset + p->len, b_end = block_size(c->b);
	int ret = 0;

	for (end = end < b_end ? end : b_end; q.offset < end && !ret; q.offset += q.len) {
		struct block_status st;

		ret = block_co_status(c->b, q.offset, end - q.offset, UINT32_MAX, &st);
		if (ret)
			break;
		q.len = st.len;
		if (st.flags & BLOCK_STATUS_ZERO)
			continue;
		q.len = q.len < JOB_PIECE_BYTES ? q.len : JOB_PIECE_BYTES;
		ret = compare_data(c, &q);
	}
	return ret;
}

static int compare(void *opaque, const struct job_piece *p)
{
	return p->flags & BLOCK_STATUS_ZERO ? compare_zeroes(opaque, p) : compare_data(opaque, p);
}

int job_compare(struct block_job *j, struct block *a, struct block *b, struct job_compare *out, struct error *e)
{
	bool swap = block_size(a) < block_size(b);
	struct compare c = { swap ? b : a, swap ? a : b, out };
	struct job_walk w = { .b = c.a, .end = block_size(c.a), .depth_max = UINT32_MAX, .fn = compare, .opaque = &c };
	int ret;

	*out = (struct job_compare){ 0 };
	ret = job_walk(j, &w);
	if (!ret || ret == STOP || ret == -ECANCELED)
		return ret == STOP ? 0 : ret;
	return error_errno(e, -ret, NULL, "compare the disks");
}
