/*
 * How fast a job may copy: a bucket of bytes that fills at the job's rate.  Workers wait here, before they hold a range, for
 * what they are about to copy; what they then find to be zeroes costs nothing.  Copies that the guest waits for are counted
 * and never held up, so that the level may fall below zero.
 */
#include <errno.h>

#include "block/live_copy.h"
#include "host/loop.h"

static void on_time(void *opaque)
{
	struct live_copy *c = opaque;

	co_queue_wake_all(c->src->env->co, &c->job->wake);
}

static void fill(struct live_copy *c, double rate)
{
	uint64_t now = clock_now_ns();
	double most = rate / 10;

	c->level += (double)(now - c->level_ns) / 1e9 * rate;
	if (c->level > most)
		c->level = most;
	c->level_ns = now;
}

/* Until when; 0: go on. */
static uint64_t wait_ns(struct live_copy *c)
{
	double rate = (double)c->job->rate_bytes, lacks;

	if (!c->job->rate_bytes || c->unpaced || c->ret || c->job->cancel)
		return 0;
	fill(c, rate);
	lacks = (double)c->reserved - c->level;
	return lacks < 0 || (!c->reserved && lacks <= 0) ? 0 : (uint64_t)(lacks / rate * 1e9) + 1000;
}

int pace_init(struct live_copy *c)
{
	c->timer = loop_timer_new(c->src->env->loop, on_time, c);
	c->level_ns = clock_now_ns();
	return c->timer ? 0 : -ENOMEM;
}

void pace_fini(struct live_copy *c)
{
	loop_timer_free(c->timer);
}

void pace_wait(struct live_copy *c)
{
	for (uint64_t ns; (ns = wait_ns(c));) {
		loop_timer_set(c->timer, clock_now_ns() + ns);
		co_queue_wait(c->src->env->co, &c->job->wake);
	}
}

void live_copy_count(struct live_copy *c, uint64_t data_bytes)
{
	c->level -= c->job->rate_bytes ? (double)data_bytes : 0;
}

void live_job_kick(struct block *b, struct block_job *j)
{
	co_queue_wake_all(block_root(b)->env->co, &j->wake);
}
