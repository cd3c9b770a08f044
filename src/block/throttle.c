/*
 * Limits on requests and bytes, by token buckets, for a disk by itself and for groups of disks.
 *
 *	submit() ─▶ throttle_admit() ─▶ dispatch()
 *	                 └─ no tokens ─▶ the disk's queue ─▶ a timer of the group that lacks them ─▶ group_run(), members in turn
 *
 * A bucket fills at its rate up to its burst. A request passes when every bucket has something, and takes what it costs:
 * a level may so fall below zero, and whoever comes next waits until that is paid back. So a request of any size passes
 * whole, and over time the rate holds.
 */
#include <errno.h>
#include <stdlib.h>

#include "block/block_private.h"
#include "host/loop.h"

struct bucket {
	double rate, burst, level;	/* tokens; rate 0: no limit */
	uint64_t at_ns;			/* when level was right */
};

struct block_group {
	struct loop *loop;
	struct loop_timer *timer;
	unsigned refs;
	struct bucket ops, bytes;
	struct throttle *members, *turn;	/* turn: who comes next; NULL: the first */
	unsigned count;
};

enum { OWN, SHARED, GROUPS };

struct throttle {
	struct block *b;
	struct block_group *group[GROUPS];	/* NULL: none */
	struct throttle *next[GROUPS];		/* in the groups' lists */
	struct request *first, **last;
};

/* --- buckets --- */

static void bucket_fill(struct bucket *k, uint64_t now_ns)
{
	if (!k->rate)
		return;
	k->level += (double)(now_ns - k->at_ns) / 1e9 * k->rate;
	if (k->level > k->burst)
		k->level = k->burst;
	k->at_ns = now_ns;
}

/* 0: there are tokens; else how long until there are. */
static uint64_t bucket_wait_ns(const struct bucket *k)
{
	if (!k->rate || k->level > 0)
		return 0;
	return (uint64_t)(-k->level / k->rate * 1e9) + 1;
}

/* Without a burst: what comes in a tenth of a second, and at least `least`. A level is kept, so that changing limits
 * often gives nothing away. */
static void bucket_set(struct bucket *k, uint64_t rate, uint64_t burst, double least)
{
	bool fresh = !k->rate;

	bucket_fill(k, clock_now_ns());
	k->rate = (double)rate;
	k->burst = burst ? (double)burst : k->rate / 10;
	if (k->burst < least)
		k->burst = least;
	if (fresh || k->level > k->burst)
		k->level = k->burst;
	k->at_ns = clock_now_ns();
}

static bool costs(const struct request *r)
{
	return r->kind != FLUSH && r->kind != STATUS;
}

static double cost_bytes(const struct request *r)
{
	return r->kind == READ || r->kind == WRITE ? (double)iov_bytes(r->iov, r->iovcnt) : 0;
}

/* --- groups --- */

/* 0: it may pass, as far as g is concerned. */
static uint64_t group_wait_ns(struct block_group *g)
{
	uint64_t now = clock_now_ns(), a, b;

	bucket_fill(&g->ops, now);
	bucket_fill(&g->bytes, now);
	a = bucket_wait_ns(&g->ops);
	b = bucket_wait_ns(&g->bytes);
	return a > b ? a : b;
}

/* Takes the tokens, or sets the timer of the group that has none. */
static bool tokens_take(struct throttle *t, const struct request *r)
{
	for (unsigned i = 0; i < GROUPS; i++) {
		uint64_t wait = t->group[i] ? group_wait_ns(t->group[i]) : 0;

		if (wait) {
			loop_timer_set(t->group[i]->timer, clock_now_ns() + wait);
			return false;
		}
	}
	for (unsigned i = 0; i < GROUPS; i++) {
		if (!t->group[i])
			continue;
		t->group[i]->ops.level -= 1;
		t->group[i]->bytes.level -= cost_bytes(r);
	}
	return true;
}

static bool queue_run(struct throttle *t)
{
	struct request *r = t->first;

	if (!r || !tokens_take(t, r))
		return false;
	t->first = r->next;
	if (!t->first)
		t->last = &t->first;
	block_admitted(t->b, r);
	return true;
}

static struct throttle **next_of(struct throttle *t, const struct block_group *g)
{
	return &t->next[t->group[OWN] == g ? OWN : SHARED];
}

/* Members in turn, each one request, until none can pass. */
static void group_run(void *opaque)
{
	struct block_group *g = opaque;
	unsigned in_vain = 0;
	uint64_t wait;

	g->refs++;
	while (g->members && in_vain < g->count) {
		struct throttle *t = g->turn ? g->turn : g->members;

		g->turn = *next_of(t, g);	/* NULL: the first again */
		in_vain = queue_run(t) ? 0 : in_vain + 1;
		wait = in_vain ? group_wait_ns(g) : 0;
		if (wait) {	/* t's own limits may have kept it, but others wait for this group */
			loop_timer_set(g->timer, clock_now_ns() + wait);
			g->turn = t;
			break;
		}
	}
	block_group_put(g);
}

struct block_group *block_group_new(struct loop *l)
{
	struct block_group *g = calloc(1, sizeof(*g));

	if (!g)
		return NULL;
	*g = (struct block_group){ .loop = l, .refs = 1 };
	g->timer = loop_timer_new(l, group_run, g);
	if (!g->timer) {
		free(g);
		return NULL;
	}
	return g;
}

void block_group_put(struct block_group *g)
{
	if (!g || --g->refs)
		return;
	loop_timer_free(g->timer);
	free(g);
}

void block_group_limit(struct block_group *g, const struct block_limits *l)
{
	bucket_set(&g->ops, l->iops, l->iops_burst, 1);
	bucket_set(&g->bytes, l->bps, l->bps_burst, 512);
	loop_timer_set(g->timer, 0);	/* what waits may have to wait no longer */
}

/* --- disks --- */

static void join(struct throttle *t, unsigned i, struct block_group *g)
{
	t->group[i] = g;
	if (!g)
		return;
	g->refs++;
	t->next[i] = g->members;
	g->members = t;
	g->count++;
}

static void leave(struct throttle *t, unsigned i)
{
	struct block_group *g = t->group[i];
	struct throttle **link;

	if (!g)
		return;
	for (link = &g->members; *link != t; link = next_of(*link, g))
		;
	*link = t->next[i];
	g->count--;
	if (g->turn == t)
		g->turn = t->next[i];
	t->group[i] = NULL;
	block_group_put(g);
}

int block_throttle(struct block *b, struct block_group *own, struct block_group *shared)
{
	struct throttle *t = b->throttle;

	ASSERT(!own || own != shared);
	if (!t && !own && !shared)
		return 0;
	if (!t) {
		t = calloc(1, sizeof(*t));
		if (!t)
			return -ENOMEM;
		*t = (struct throttle){ .b = b, .last = &t->first };
		b->throttle = t;
	}
	for (unsigned i = 0; i < GROUPS; i++) {
		struct block_group *g = i == OWN ? own : shared;

		if (t->group[i] == g)
			continue;
		if (g)
			g->refs++;	/* not to be freed in between */
		leave(t, i);
		join(t, i, g);
		block_group_put(g);
	}
	while (queue_run(t))
		;
	return 0;
}

bool throttle_admit(struct throttle *t, struct request *r)
{
	if (!costs(r) || (!t->first && tokens_take(t, r)))
		return true;
	r->next = NULL;
	*t->last = r;
	t->last = &r->next;
	return false;
}

bool throttle_waiting(const struct throttle *t)
{
	return t && t->first;
}

void throttle_free(struct throttle *t)
{
	if (!t)
		return;
	ASSERT(!t->first);
	for (unsigned i = 0; i < GROUPS; i++)
		leave(t, i);
	free(t);
}
