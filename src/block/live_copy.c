#include "block/live_copy.h"

#include <errno.h>
#include <stdlib.h>

#include "block/block_private.h"
#include "host/loop.h"

int live_copy_init(struct live_copy *c, struct block_job *j, struct block *b, struct block *dst, unsigned gran_bits)
{
	unsigned bits = gran_bits < LIVE_GRAN_BITS ? LIVE_GRAN_BITS : gran_bits;
	int ret;

	*c = (struct live_copy){ .job = j, .src = b->root, .dst = dst };
	do
		ret = dirty_init(&c->todo, block_size(b), bits);
	while (ret == -EFBIG && bits++ < DIRTY_BITS_MAX);
	return ret ? ret : pace_init(c);
}

void live_copy_fini(struct live_copy *c)
{
	pace_fini(c);
	dirty_fini(&c->todo);
}

/* --- one range --- */

static int copy_data(struct live_copy *c, uint64_t offset, uint64_t len, uint8_t *buf)
{
	int ret = 0;

	for (uint64_t part; len && !ret; offset += part, len -= part) {
		part = len < LIVE_DATA_BYTES ? len : LIVE_DATA_BYTES;
		ret = node_co_read(c->src, offset, buf, part);
		if (!ret)
			ret = block_co_write(c->dst, offset, buf, part);
		live_copy_count(c, part);
	}
	return ret;
}

int live_copy_range(struct live_copy *c, uint64_t offset, uint64_t len, uint8_t *buf)
{
	int ret = 0;

	for (uint64_t part; len && !ret; offset += part, len -= part) {
		struct block_status st;

		ret = node_co_status(c->src, offset, len, UINT32_MAX, &st);
		if (ret)
			break;
		part = st.len;
		if (st.flags & BLOCK_STATUS_ZERO)
			ret = block_co_write_zeroes(c->dst, offset, part, !c->zeroes_hide);
		else
			ret = copy_data(c, offset, part, buf);
	}
	return ret;
}

/* The range is held. */
static int copy_held(struct live_copy *c, uint64_t offset, uint64_t len, uint8_t *buf)
{
	return c->copy ? c->copy(c->opaque, offset, len, buf) : live_copy_range(c, offset, len, buf);
}

/* What is left of a held range. */
static int copy_left(struct live_copy *c, const struct guard_range *r, uint8_t *buf)
{
	uint64_t end = r->offset + r->len, at = r->offset, len;
	int ret = 0;

	while (!ret && dirty_next(&c->todo, at, &at, &len) && at < end) {
		len = len < end - at ? len : end - at;
		ret = copy_held(c, at, len, buf);
		if (!ret)
			dirty_clear(&c->todo, at, len);
		at += len;
	}
	return ret;
}

static void failed(struct live_copy *c, int ret)
{
	if (ret && !c->ret)
		c->ret = ret;
}

/* --- workers --- */

/* Zeroes are cheap, so that much of them may be held at a time. */
static uint64_t claim_max(struct live_copy *c, const struct guard_range *r)
{
	uint64_t gran = 1ull << c->todo.gran_bits, max = LIVE_DATA_BYTES;
	struct block_status st;

	if (!c->copy && !node_co_status(c->src, r->offset, r->len, UINT32_MAX, &st) && st.flags & BLOCK_STATUS_ZERO)
		max = st.len < LIVE_DATA_BYTES ? LIVE_DATA_BYTES : st.len < LIVE_ZERO_BYTES ? st.len : LIVE_ZERO_BYTES;
	max -= max % gran;
	return max ? max : gran;
}

static bool claim(struct live_copy *c, struct guard_range *r)
{
	uint64_t max;
	bool found;

	co_lock(c->src->env->co, &c->claims);
	pace_wait(c);
	found = !c->ret && !c->job->cancel && dirty_next(&c->todo, c->cursor, &r->offset, &r->len);
	if (found) {
		max = claim_max(c, r);
		r->len = r->len < max ? r->len : max;
		c->cursor = r->offset + r->len;
		c->reserved += r->len;
		if (c->claim_clears)
			dirty_clear(&c->todo, r->offset, r->len);
	}
	co_unlock(c->src->env->co, &c->claims);
	return found;
}

static void progress(struct live_copy *c, uint64_t len)
{
	c->done += len;
	if (c->total < c->done)
		c->total = c->done;
	if (c->job->progress)
		c->job->progress(c->job->opaque, c->done, c->total);
}

/* What the host's page cache answers at once never waits: without this the guest would, for all of the job. */
struct turn { struct coroutines *co; struct co *self; };

static void turn_over(void *opaque)
{
	struct turn *t = opaque;

	co_wake(t->co, t->self);
}

static void let_others(const struct live_copy *c)
{
	struct turn t = { c->src->env->co, co_self(c->src->env->co) };

	loop_post(c->src->env->loop, turn_over, &t);
	co_wait(t.co);
}

static int work(struct live_copy *c, uint8_t *buf)
{
	struct guard_range r;
	int ret = 0;

	while (!ret && claim(c, &r)) {
		guard_hold(c->g, &r);
		ret = c->claim_clears ? copy_held(c, r.offset, r.len, buf) : copy_left(c, &r, buf);
		if (ret && c->claim_clears)
			dirty_set(&c->todo, r.offset, r.len);
		guard_release(c->g, &r);
		c->reserved -= r.len;
		co_queue_wake_all(c->src->env->co, &c->job->wake);
		if (!ret)
			progress(c, r.len);
		let_others(c);
	}
	return ret;
}

static void worker(void *opaque)
{
	struct live_copy *c = opaque;
	uint8_t *buf = aligned_alloc(4096, LIVE_DATA_BYTES);

	failed(c, buf ? work(c, buf) : -ENOMEM);
	co_queue_wake_all(c->src->env->co, &c->job->wake);
	free(buf);
	if (!--c->workers)
		co_queue_wake_all(c->src->env->co, &c->end);
}

int live_copy_run(struct live_copy *c)
{
	struct coroutines *co = c->src->env->co;
	unsigned want = c->job->parallel ? c->job->parallel : JOB_PARALLEL;

	c->cursor = 0;
	c->total = c->done + dirty_bytes(&c->todo);
	for (unsigned i = 0; i < want && i < JOB_PARALLEL_MAX; i++) {
		int ret = co_start(co, worker, c);

		if (ret && !c->workers)
			failed(c, ret);
		if (ret)
			break;
		c->workers++;
	}
	while (c->workers)
		co_queue_wait(co, &c->end);
	return c->job->cancel ? -ECANCELED : c->ret;
}

void live_copy_now(struct live_copy *c, uint64_t offset, uint64_t len)
{
	uint64_t mask = (1ull << c->todo.gran_bits) - 1, end = (offset + len + mask) & ~mask;
	struct guard_range r = { .offset = offset & ~mask };
	uint8_t *buf;

	if (c->ret || c->job->cancel || !dirty_any_set(&c->todo, offset, len))
		return;
	r.len = (end < c->todo.size_bytes ? end : c->todo.size_bytes) - r.offset;
	buf = aligned_alloc(4096, LIVE_DATA_BYTES);
	guard_hold(c->g, &r);
	failed(c, buf ? copy_left(c, &r, buf) : -ENOMEM);
	guard_release(c->g, &r);
	free(buf);
}

int live_end(const struct block_job *j, int ret, const char *what, struct error *e)
{
	if (!ret)
		return 0;
	if (j->cancel)
		return -ECANCELED;
	return error_errno(e, -ret, ret == -ENOSPC ? "make room where the copy goes" : NULL, "%s", what);
}
