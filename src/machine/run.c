/*
 * The vCPU threads.
 *
 *            board_run                        news (interrupt, INIT, SIPI, stop)
 *               |                                        |
 *   WAIT ---- events ----> engine->run ---- HALT ----> sleep until news
 *    ^  SIPI clears wait        |
 *    +------- INIT -------------+---- SHUTDOWN, FAILED ----> board_finish
 *
 * There is a gate before each turn (debug.c): a pause closes it, and with a debugger DEBUG and a first SHUTDOWN.
 *
 * No wake-up is lost: `wake` is cleared before engine->run(), which itself looks for pending interrupts, and a
 * sender makes the interrupt pending before it sets `wake`.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "cpu/state.h"
#include "devices/irq/lapic.h"
#include "host/loop.h"
#include "machine/board_private.h"
#include "machine/halt.h"

/* Which vCPU's thread this is: a LAPIC's registers answer by who asks. Set once at the thread's start. */
static _Thread_local unsigned thread_vcpu;

unsigned current_vcpu(void *board)
{
	(void)board;
	return thread_vcpu;
}

void cpu_news(struct cpu_thread *c)
{
	pthread_mutex_lock(&c->lock);
	c->wake = true;
	pthread_cond_signal(&c->cond);
	pthread_mutex_unlock(&c->lock);
	if (c->vcpu)
		c->board->config.engine->kick(c->vcpu);
}

/* --- pausing --- */

void board_pause(struct board *b, bool on)
{
	pthread_mutex_lock(&b->debug.lock);
	atomic_store(&b->paused, on);
	pthread_mutex_unlock(&b->debug.lock);
	gate_changed(b);
	for (unsigned i = 0; on && i < b->config.vcpus; i++)
		cpu_news(&b->cpu[i]);
}

/* --- the end --- */

void board_finish(struct board *b, enum board_end end)
{
	bool was = false;
	if (!atomic_compare_exchange_strong(&b->stopping, &was, true))
		return;
	atomic_store(&b->end, end);
	for (unsigned i = 0; i < b->config.vcpus; i++)
		cpu_news(&b->cpu[i]);
	gate_changed(b);
	loop_stop(b->loop);
}

static void failed(struct board *b, const struct error *e)
{
	pthread_mutex_lock(&b->error_lock);
	if (!atomic_load(&b->stopping))
		b->error = *e;
	pthread_mutex_unlock(&b->error_lock);
	board_finish(b, BOARD_FAILED);
}

/* INIT stops a vCPU where it is; a following SIPI starts it at vector * 4 KiB (SDM vol. 3, 9.4). */
static void take_events(struct cpu_thread *c, uint32_t events, uint8_t vector)
{
	const struct engine_ops *ops = c->board->config.engine;
	struct x86_state *s = malloc(sizeof *s);
	ASSERT(s);
	ops->get_state(c->vcpu, s);
	if (events & EVENT_INIT) {
		state_init(s, c->index == 0);
		s->activity = c->index ? ACTIVITY_WAIT_SIPI : ACTIVITY_RUNNING;
	}
	if ((events & EVENT_SIPI) && s->activity == ACTIVITY_WAIT_SIPI) {
		s->seg[SEG_CS].selector = (uint16_t)(vector << 8);
		s->seg[SEG_CS].base = (uint64_t)vector << 12;
		s->rip = 0;
		s->activity = ACTIVITY_RUNNING;
	}
	ops->set_state(c->vcpu, s);
	free(s);
}

/* With LAPICs in the kernel the wait, like that for an interrupt, is inside run(). */
static bool waits_for_sipi(struct cpu_thread *c)
{
	if (c->board->irqchip)
		return false;
	struct x86_state *s = malloc(sizeof *s);
	ASSERT(s);
	c->board->config.engine->get_state(c->vcpu, s);
	bool waits = s->activity == ACTIVITY_WAIT_SIPI;
	free(s);
	return waits;
}

static void sleep_for_news(struct cpu_thread *c)
{
	pthread_mutex_lock(&c->lock);
	while (!c->wake)
		pthread_cond_wait(&c->cond, &c->lock);
	pthread_mutex_unlock(&c->lock);
}

static uint32_t collect_events(struct cpu_thread *c, uint8_t *vector)
{
	pthread_mutex_lock(&c->lock);
	uint32_t events = c->events;
	*vector = c->sipi_vector;
	c->events = 0;
	c->wake = false;
	pthread_mutex_unlock(&c->lock);
	return events;
}

static void *cpu_main(void *opaque)
{
	struct cpu_thread *c = opaque;
	struct board *b = c->board;
	struct error e = { 0 };
	thread_vcpu = c->index;
	c->halt_looks = halt_may_look(b->config.vcpus);
	bool waiting = waits_for_sipi(c);
	while (!atomic_load(&b->stopping)) {
		uint8_t vector;
		uint32_t events = collect_events(c, &vector);
		if (b->debug.stopped || atomic_load(&b->paused))
			gate_pass(c);	/* after `wake` is cleared: a gate that closes is news */
		if (events) {
			take_events(c, events, vector);
			waiting = waits_for_sipi(c);
		}
		if (atomic_load(&b->stopping))
			break;
		if (waiting) {
			sleep_for_news(c);
			continue;
		}
		switch (b->config.engine->run(c->vcpu, &e)) {
		case EXIT_KICKED: break;
		case EXIT_HALT: halt_wait(c); break;
		case EXIT_DEBUG: debug_met(c); break;
		case EXIT_SHUTDOWN:
			if (!debug_crashed(c))
				board_finish(b, BOARD_CRASHED);
			break;
		case EXIT_FAILED: failed(b, &e); break;
		}
	}
	return NULL;
}

enum board_end board_run(struct board *b, struct error *e)
{
	for (unsigned i = 0; i < b->config.vcpus; i++) {
		struct cpu_thread *c = &b->cpu[i];
		int err = pthread_create(&c->thread, NULL, cpu_main, c);
		if (err) {
			struct error why;
			error_errno(&why, err, "raise the limit on threads", "start a vCPU thread");
			failed(b, &why);
			break;
		}
		c->started = true;
	}
	int ret = loop_run(b->loop);
	if (ret < 0) {
		struct error why;
		error_errno(&why, -ret, NULL, "run the event loop");
		failed(b, &why);
	}
	board_finish(b, BOARD_STOPPED);
	for (unsigned i = 0; i < b->config.vcpus; i++)
		if (b->cpu[i].started)
			pthread_join(b->cpu[i].thread, NULL);
	if (e)
		*e = b->error;
	return (enum board_end)atomic_load(&b->end);
}

/* Only what is async-signal-safe: the loop ends, and board_run() stops the vCPUs. */
void board_stop(struct board *b)
{
	loop_stop(b->loop);
}

/* --- what the board gives a vCPU --- */

static bool wired_pending(void *opaque)
{
	struct cpu_thread *c = opaque;
	return lapic_pending(c->board->lapics, c->index) || atomic_load(&c->nmis);
}
static int wired_ack(void *opaque)
{
	struct cpu_thread *c = opaque;
	return lapic_ack(c->board->lapics, c->index);
}
static bool wired_nmi(void *opaque)
{
	struct cpu_thread *c = opaque;
	unsigned n = atomic_load(&c->nmis);
	while (n && !atomic_compare_exchange_weak(&c->nmis, &n, n - 1))
		;
	return n;
}
static uint8_t wired_tpr(void *opaque)
{
	struct cpu_thread *c = opaque;
	return lapic_tpr(c->board->lapics, c->index) >> 4;
}
static void wired_set_tpr(void *opaque, uint8_t tpr)
{
	struct cpu_thread *c = opaque;
	lapic_set_tpr(c->board->lapics, c->index, (uint8_t)(tpr << 4));
}
static bool wired_msr_read(void *opaque, uint32_t msr, uint64_t *value)
{
	struct cpu_thread *c = opaque;
	return lapic_msr_read(c->board->lapics, c->index, msr, value);
}
static bool wired_msr_write(void *opaque, uint32_t msr, uint64_t value)
{
	struct cpu_thread *c = opaque;
	return lapic_msr_write(c->board->lapics, c->index, msr, value);
}

const struct vcpu_wiring cpu_wiring_template = {
	.irq_pending = wired_pending,
	.irq_ack = wired_ack,
	.nmi_take = wired_nmi,
	.get_tpr = wired_tpr,
	.set_tpr = wired_set_tpr,
	.msr_read = wired_msr_read,
	.msr_write = wired_msr_write,
};
