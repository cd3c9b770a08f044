#include "machine/debug.h"

#include <stdlib.h>
#include <string.h>

#include "cpu/mmu.h"
#include "host/loop.h"
#include "machine/board_private.h"
#include "memory/map.h"

/* --- on the vCPUs' threads --- */

/* With d->lock, as all that is static here. A vCPU that was resumed and has not woken yet is still parked. */
static bool all_parked(const struct board *b)
{
	for (unsigned i = 0; i < b->config.vcpus; i++)
		if (b->cpu[i].go != DEBUG_PARK)
			return false;
	return b->debug.parked == b->config.vcpus;
}

static void tell_if_parked(struct board *b)
{
	if (b->debug.stopped && all_parked(b))
		loop_post(b->loop, b->debug.stopped, b->debug.opaque);
}

static bool gate_closed(const struct cpu_thread *c)
{
	const struct board *b = c->board;

	return !atomic_load(&b->stopping) && (atomic_load(&b->paused) || (b->debug.stopped && c->go == DEBUG_PARK));
}

void gate_pass(struct cpu_thread *c)
{
	struct board *b = c->board;
	struct board_debug *d = &b->debug;
	bool stood = false;

	pthread_mutex_lock(&d->lock);
	d->parked++;
	if (gate_closed(c))
		tell_if_parked(b);
	for (; gate_closed(c); stood = true)
		pthread_cond_wait(&d->cond, &d->lock);
	d->parked--;
	pthread_mutex_unlock(&d->lock);
	if (stood && b->config.engine->stood_still)
		b->config.engine->stood_still(c->vcpu);
}

/* With d->lock. */
static void park_all(struct board *b)
{
	for (unsigned i = 0; i < b->config.vcpus; i++)
		b->cpu[i].go = DEBUG_PARK;
	tell_if_parked(b);
}

static void met(struct cpu_thread *c, const struct board_stop *s)
{
	struct board *b = c->board;

	pthread_mutex_lock(&b->debug.lock);
	c->met = *s;
	c->has_met = true;
	park_all(b);
	pthread_mutex_unlock(&b->debug.lock);
	for (unsigned i = 0; i < b->config.vcpus; i++)
		if (i != c->index)
			cpu_news(&b->cpu[i]);
}

void debug_met(struct cpu_thread *c)
{
	static const uint8_t why[] = { [DEBUG_STEPPED] = BOARD_STEPPED, [DEBUG_AT_BREAK] = BOARD_AT_BREAK,
				       [DEBUG_WATCHED] = BOARD_WATCHED };
	struct debug_stop stop;

	c->board->config.engine->debug_get(c->vcpu, &stop);
	if (stop.why != DEBUG_NOTHING)
		met(c, &(struct board_stop){ (enum board_why)why[stop.why], c->index, stop.point });
}

bool debug_crashed(struct cpu_thread *c)
{
	if (!c->board->debug.stopped || c->crash_told)
		return false;
	c->crash_told = true;
	met(c, &(struct board_stop){ .why = BOARD_TRIPLE_FAULT, .cpu = c->index });
	return true;
}

void gate_changed(struct board *b)
{
	pthread_mutex_lock(&b->debug.lock);
	pthread_cond_broadcast(&b->debug.cond);
	pthread_mutex_unlock(&b->debug.lock);
}

/* --- stop and go --- */

void board_debug_begin(struct board *b, bool parked, void (*stopped)(void *opaque), void *opaque)
{
	b->debug.stopped = stopped;
	b->debug.opaque = opaque;
	for (unsigned i = 0; i < b->config.vcpus; i++)
		b->cpu[i].go = parked ? DEBUG_PARK : DEBUG_RUN;
}

void board_debug_stop(struct board *b)
{
	pthread_mutex_lock(&b->debug.lock);
	park_all(b);
	pthread_mutex_unlock(&b->debug.lock);
	for (unsigned i = 0; i < b->config.vcpus; i++)
		cpu_news(&b->cpu[i]);
}

bool board_debug_stopped(struct board *b)
{
	pthread_mutex_lock(&b->debug.lock);
	bool stopped = all_parked(b);
	pthread_mutex_unlock(&b->debug.lock);
	return stopped;
}

/* The board_stop that a vCPU has to tell; what was only asked for comes last. */
void board_debug_why(struct board *b, struct board_stop *out)
{
	*out = (struct board_stop){ .why = BOARD_ASKED };
	pthread_mutex_lock(&b->debug.lock);
	for (unsigned i = 0; i < b->config.vcpus; i++) {
		struct cpu_thread *c = &b->cpu[i];
		if (!c->has_met)
			continue;
		*out = c->met;
		c->has_met = false;
		break;
	}
	pthread_mutex_unlock(&b->debug.lock);
}

/* A vCPU at a breakpoint comes to it again, if it still is one. What it did it cannot do again: that is told first. */
static bool still_to_tell(struct board *b)
{
	bool tell = false;

	for (unsigned i = 0; i < b->config.vcpus; i++) {
		struct cpu_thread *c = &b->cpu[i];
		c->has_met = c->has_met && c->met.why != BOARD_AT_BREAK;
		tell |= c->has_met;
	}
	return tell;
}

static void plans_set(struct board *b, const enum debug_go *go)
{
	for (unsigned i = 0; i < b->config.vcpus; i++) {
		b->debug.plan.step = go[i] == DEBUG_STEP;
		b->config.engine->debug_set(b->cpu[i].vcpu, &b->debug.plan);
	}
	b->debug.plan.step = false;
}

void board_debug_resume(struct board *b, const enum debug_go *go)
{
	struct board_debug *d = &b->debug;

	plans_set(b, go);
	pthread_mutex_lock(&d->lock);
	if (still_to_tell(b))
		loop_post(b->loop, d->stopped, d->opaque);
	else
		for (unsigned i = 0; i < b->config.vcpus; i++)
			b->cpu[i].go = go[i];
	pthread_cond_broadcast(&d->cond);
	pthread_mutex_unlock(&d->lock);
}

int board_debug_points(struct board *b, const struct debug_point *p, unsigned n)
{
	struct debug_plan plan = { .count = n };
	int ret = 0;

	ASSERT(n <= DEBUG_POINTS);
	memcpy(plan.point, p, n * sizeof *p);
	for (unsigned i = 0; i < b->config.vcpus && !ret; i++)
		ret = b->config.engine->debug_set(b->cpu[i].vcpu, &plan);
	if (!ret)
		b->debug.plan = plan;
	return ret;
}

void board_debug_reset(struct board *b) { board_finish(b, BOARD_RESET); }

/* --- looking --- */

unsigned board_debug_cpus(const struct board *b) { return b->config.vcpus; }

void board_debug_get(struct board *b, unsigned cpu, struct x86_state *out)
{
	b->config.engine->get_state(b->cpu[cpu].vcpu, out);
}

void board_debug_set(struct board *b, unsigned cpu, const struct x86_state *in)
{
	b->config.engine->set_state(b->cpu[cpu].vcpu, in);
}

uint8_t board_debug_cr8(struct board *b, unsigned cpu) { return b->config.engine->get_cr8(b->cpu[cpu].vcpu); }

void board_debug_set_cr8(struct board *b, unsigned cpu, uint8_t cr8)
{
	b->config.engine->set_cr8(b->cpu[cpu].vcpu, cr8);
}

void board_counters(struct board *b, unsigned cpu, counter_fn *each, void *opaque)
{
	b->config.engine->counters(b->cpu[cpu].vcpu, each, opaque);
}

static bool translate(struct board *b, const struct x86_state *s, bool physical, uint64_t at, uint64_t *gpa)
{
	struct mmu_result r;
	uint32_t error;
	unsigned sh = s->cr4 & CR4_LA57 ? 7 : 16;

	*gpa = at;
	if (physical)
		return true;
	if (state_long(s) && (uint64_t)((int64_t)(at << sh) >> sh) != at)
		return false;
	if (!mmu_walk(s, b->map, at, MMU_PEEK, &r, &error))
		return false;
	*gpa = r.gpa;
	return true;
}

/* Bytes of one page. */
static bool page_access(struct board *b, uint64_t gpa, uint8_t *buf, size_t n, bool write)
{
	struct page_info pi = map_page(b->map, gpa);

	if (!(write ? pi.rw_hva : pi.ro_hva))
		return false;
	if (write)
		return map_write(b->map, gpa, buf, n);
	memcpy(buf, pi.ro_hva + (gpa & ~GUEST_PAGE_MASK), n);
	return true;
}

static bool each_page(struct board *b, const struct x86_state *s, bool physical, uint64_t at, uint8_t *buf, size_t n,
		      bool write, bool check)
{
	for (size_t done = 0, part; done < n; done += part) {
		uint64_t gpa, va = at + done;
		part = GUEST_PAGE_SIZE - (va & ~GUEST_PAGE_MASK);
		if (part > n - done)
			part = n - done;
		if (!translate(b, s, physical, va, &gpa))
			return false;
		if (check ? !map_page(b->map, gpa).rw_hva : !page_access(b, gpa, buf + done, part, write))
			return false;
	}
	return true;
}

bool board_debug_memory(struct board *b, const struct x86_state *s, bool physical, uint64_t at, void *buf, size_t n,
			bool write)
{
	if (write && !each_page(b, s, physical, at, buf, n, true, true))
		return false;
	return each_page(b, s, physical, at, buf, n, write, false);
}
