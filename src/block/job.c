/*
 * Walking over a disk with several pieces under way.  Each worker is a coroutine:
 *
 *	claim (one at a time): what is at the cursor? ─▶ cursor moves on ─▶ fn(piece) ─▶ claim ...
 */
#include "block/job.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "block/block_private.h"

#define ASK_BYTES (1ull << 30)

struct walk {
	const struct job_walk *w;
	struct block_job *job;
	struct coroutines *co;
	struct co_mutex claims;
	struct co_queue end;
	uint64_t cursor, done;
	uint64_t unsettled;	/* bytes of data since the last settling */
	bool settling;
	uint64_t at[JOB_PARALLEL_MAX];	/* pieces under way, or that failed; UINT64_MAX: none */
	unsigned workers, started;
	int ret;		/* the first failure */
};

bool job_all_zero(const uint8_t *p, size_t len)
{
	return !len || (!p[0] && !memcmp(p, p + 1, len - 1));
}

/* Whole units, from the length for which the status is one. */
static void round_piece(const struct job_walk *w, struct job_piece *p)
{
	uint64_t left = w->end - p->offset;

	if (w->unit && p->len < left) {
		if (p->len < w->unit) {
			p->len = w->unit < left ? w->unit : left;
			p->flags = BLOCK_STATUS_DATA | BLOCK_STATUS_ALLOCATED;
		}
		if (p->len < left)
			p->len -= p->len % w->unit;
	}
	if ((w->cut || p->flags & BLOCK_STATUS_DATA) && p->len > JOB_PIECE_BYTES)
		p->len = JOB_PIECE_BYTES;
}

/* 1: there is a piece; 0: the end. */
static int claim(struct walk *k, struct job_piece *p, uint64_t *at)
{
	const struct job_walk *w = k->w;
	struct block_status st;
	uint64_t left;
	int ret;

	if (k->ret || k->cursor == w->end)
		return 0;
	if (k->job->cancel)
		return -ECANCELED;
	left = w->end - k->cursor;
	ret = block_co_status(w->b, k->cursor, left < ASK_BYTES ? left : ASK_BYTES, w->depth_max, &st);
	if (ret)
		return ret;
	p->offset = k->cursor;
	p->len = st.len;
	p->flags = st.flags;
	round_piece(w, p);
	k->cursor += p->len;
	*at = p->offset;
	return 1;
}

static int claim_in_turn(struct walk *k, struct job_piece *p, uint64_t *at)
{
	int ret;

	co_lock(k->co, &k->claims);
	ret = claim(k, p, at);
	co_unlock(k->co, &k->claims);
	return ret;
}

static uint64_t done_below(const struct walk *k)
{
	uint64_t least = k->cursor;

	for (unsigned i = 0; i < k->started; i++)
		least = k->at[i] < least ? k->at[i] : least;
	return least;
}

static int settle(struct walk *k, const struct job_piece *p)
{
	int ret;

	k->unsettled += p->flags & BLOCK_STATUS_DATA ? p->len : 0;
	if (!k->w->settle || k->settling || k->unsettled < k->w->settle_bytes)
		return 0;
	k->settling = true;
	k->unsettled = 0;
	ret = k->w->settle(k->w->opaque, done_below(k));
	k->settling = false;
	return ret;
}

static int work(struct walk *k, struct job_piece *p, uint64_t *at)
{
	int ret;

	while ((ret = claim_in_turn(k, p, at)) > 0) {
		ret = k->w->fn(k->w->opaque, p);
		if (ret)
			return ret;
		*at = UINT64_MAX;
		k->done += p->len;
		if (k->job->progress)
			k->job->progress(k->job->opaque, k->done, k->w->end);
		ret = settle(k, p);
		if (ret)
			return ret;
	}
	return ret;
}

static void worker(void *opaque)
{
	struct walk *k = opaque;
	struct job_piece p = { .buf = aligned_alloc(4096, 2 * JOB_PIECE_BYTES) };
	uint64_t *at = &k->at[k->started++];
	int ret = -ENOMEM;

	*at = UINT64_MAX;

	if (p.buf) {
		p.buf2 = p.buf + JOB_PIECE_BYTES;
		ret = work(k, &p, at);
	}
	if (ret && !k->ret)
		k->ret = ret;
	free(p.buf);
	if (!--k->workers)
		co_queue_wake_all(k->co, &k->end);
}

int job_walk(struct block_job *j, const struct job_walk *w)
{
	struct walk k = { .w = w, .job = j, .co = w->b->env->co, .cursor = w->start, .done = w->start };
	unsigned want = j->parallel ? j->parallel : JOB_PARALLEL;

	want = want < JOB_PARALLEL_MAX ? want : JOB_PARALLEL_MAX;
	for (unsigned i = 0; i < want; i++) {
		int ret = co_start(k.co, worker, &k);

		if (ret && !k.workers)
			return ret;
		if (ret)
			break;
		k.workers++;
	}
	while (k.workers)
		co_queue_wait(k.co, &k.end);
	if (k.ret && w->settle)
		w->settle(w->opaque, done_below(&k));	/* as good as it goes: it has failed already */
	return k.ret && j->cancel ? -ECANCELED : k.ret;	/* a disk that was interrupted as well fails by that */
}
