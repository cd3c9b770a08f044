/*
 *	low addresses  | guard page | stack, grows down ....................| struct co |  high addresses
 *
 * co_switch() keeps what the calling convention makes the callee's: six registers, the stack pointer and the
 * control words of SSE and x87.
 */
#include "host/coroutine.h"

#include <errno.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

#include "base/error.h"
#include "host/loop.h"

#if defined(__SANITIZE_ADDRESS__)
#define CO_ASAN 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define CO_ASAN 1
#endif
#endif
#ifdef CO_ASAN
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif
#ifdef __SANITIZE_THREAD__
#include <sanitizer/tsan_interface.h>
#endif

#define GUARD 4096u
#define IDLE_MAX 64u

struct co {
	void *sp;
	void (*fn)(void *);
	void *arg;
	struct coroutines *s;
	struct co *next;		/* in the ready list, a queue or the pool */
	bool waiting, ended;
	void *fake_stack;		/* AddressSanitizer's */
	void *fiber;			/* ThreadSanitizer's */
};

struct coroutines {
	struct co *current;
	struct co *ready, **ready_tail;
	struct co *idle;
	unsigned nidle, alive;
	void *main_sp;
	void *main_fake, *main_fiber;
	const void *main_bottom;
	size_t main_size;
};

void co_switch(void **save_sp, void *to_sp);
void co_trampoline(void);
_Noreturn __attribute__((used)) void co_main(struct co *c);

__asm__(
	".text\n"
	".globl co_switch\n"
	".hidden co_switch\n"
	".type co_switch, @function\n"
	"co_switch:\n"
	"	push %rbp\n"
	"	push %rbx\n"
	"	push %r12\n"
	"	push %r13\n"
	"	push %r14\n"
	"	push %r15\n"
	"	sub $8, %rsp\n"
	"	stmxcsr (%rsp)\n"
	"	fnstcw 4(%rsp)\n"
	"	mov %rsp, (%rdi)\n"
	"	mov %rsi, %rsp\n"
	"	ldmxcsr (%rsp)\n"
	"	fldcw 4(%rsp)\n"
	"	add $8, %rsp\n"
	"	pop %r15\n"
	"	pop %r14\n"
	"	pop %r13\n"
	"	pop %r12\n"
	"	pop %rbx\n"
	"	pop %rbp\n"
	"	ret\n"
	".size co_switch, . - co_switch\n"
	".globl co_trampoline\n"
	".hidden co_trampoline\n"
	".type co_trampoline, @function\n"
	"co_trampoline:\n"
	"	mov %rbx, %rdi\n"
	"	call co_main\n"
	"	ud2\n"
	".size co_trampoline, . - co_trampoline\n");

static uint8_t *stack_bottom(struct co *c)
{
	return (uint8_t *)(c + 1) - CO_STACK_BYTES;
}

/* --- what the sanitizers have to know of a switch --- */

static void before_switch(void **fake_save, const void *bottom, size_t size, void *fiber)
{
#ifdef CO_ASAN
	__sanitizer_start_switch_fiber(fake_save, bottom, size);
#endif
#ifdef __SANITIZE_THREAD__
	__tsan_switch_to_fiber(fiber, 0);
#endif
	(void)fake_save, (void)bottom, (void)size, (void)fiber;
}

static void after_switch(void *fake, const void **old_bottom, size_t *old_size)
{
#ifdef CO_ASAN
	__sanitizer_finish_switch_fiber(fake, old_bottom, old_size);
#endif
	(void)fake, (void)old_bottom, (void)old_size;
}

static void *fiber_new(void)
{
#ifdef __SANITIZE_THREAD__
	return __tsan_create_fiber(0);
#else
	return NULL;
#endif
}

static void fiber_free(void *fiber)
{
#ifdef __SANITIZE_THREAD__
	__tsan_destroy_fiber(fiber);
#endif
	(void)fiber;
}

static void *fiber_self(void)
{
#ifdef __SANITIZE_THREAD__
	return __tsan_get_current_fiber();
#else
	return NULL;
#endif
}

/* --- switching --- */

/* Frames that were left for good by the last use of a stack must not look poisoned to the next. */
static void stack_unpoison(struct co *c)
{
#ifdef CO_ASAN
	__asan_unpoison_memory_region(stack_bottom(c) + GUARD, CO_STACK_BYTES - GUARD - sizeof(*c));
#endif
	(void)c;
}

static void stack_init(struct co *c)
{
	uint64_t *sp = (uint64_t *)c - 2;	/* aligned to 16 */

	stack_unpoison(c);
	*--sp = (uint64_t)(uintptr_t)co_trampoline;
	*--sp = 0;				/* rbp: the last frame */
	*--sp = (uint64_t)(uintptr_t)c;		/* rbx */
	sp -= 4;				/* r12 to r15: anything */
	__asm__ volatile("stmxcsr (%0)\n\tfnstcw 4(%0)" : : "r"(sp - 1) : "memory");
	c->sp = sp - 1;
}

static void to_main(struct coroutines *s, struct co *c)
{
	before_switch(c->ended ? NULL : &c->fake_stack, s->main_bottom, s->main_size, s->main_fiber);
	co_switch(&c->sp, s->main_sp);
	after_switch(c->fake_stack, &s->main_bottom, &s->main_size);
}

void co_main(struct co *c)
{
	after_switch(NULL, &c->s->main_bottom, &c->s->main_size);
	c->fn(c->arg);
	c->ended = true;
	to_main(c->s, c);
	abort();
}

static void co_destroy(struct co *c)
{
	fiber_free(c->fiber);
	stack_unpoison(c);
	munmap(stack_bottom(c), CO_STACK_BYTES);
}

static void recycle(struct coroutines *s, struct co *c)
{
	s->alive--;
	if (s->nidle == IDLE_MAX) {
		co_destroy(c);
		return;
	}
	c->next = s->idle;
	s->idle = c;
	s->nidle++;
}

static void enter(struct coroutines *s, struct co *c)
{
	s->current = c;
	c->waiting = false;
	before_switch(&s->main_fake, stack_bottom(c) + GUARD, CO_STACK_BYTES - GUARD - sizeof(*c), c->fiber);
	co_switch(&s->main_sp, c->sp);
	after_switch(s->main_fake, NULL, NULL);
	s->current = NULL;
	if (c->ended)
		recycle(s, c);
}

/* From the main stack: c, and then what became ready by it. */
static void run(struct coroutines *s, struct co *c)
{
	enter(s, c);
	while ((c = s->ready)) {
		s->ready = c->next;
		if (!s->ready)
			s->ready_tail = &s->ready;
		enter(s, c);
	}
}

static void make_ready(struct coroutines *s, struct co *c)
{
	if (!s->current) {
		run(s, c);
		return;
	}
	c->waiting = false;
	c->next = NULL;
	*s->ready_tail = c;
	s->ready_tail = &c->next;
}

/* --- interface --- */

static struct co *co_new(struct coroutines *s)
{
	struct co *c = s->idle;
	uint8_t *map;

	if (c) {
		s->idle = c->next;
		s->nidle--;
		return c;
	}
	map = mmap(NULL, CO_STACK_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_STACK,
		   -1, 0);
	if (map == MAP_FAILED)
		return NULL;
	if (mprotect(map, GUARD, PROT_NONE)) {
		munmap(map, CO_STACK_BYTES);
		return NULL;
	}
	_Static_assert(sizeof(*c) % 16 == 0, "the stack starts aligned");
	c = (struct co *)(map + CO_STACK_BYTES) - 1;
	*c = (struct co){ .s = s, .fiber = fiber_new() };
	return c;
}

int co_start(struct coroutines *s, void (*fn)(void *arg), void *arg)
{
	struct co *c = co_new(s);

	if (!c)
		return -ENOMEM;
	c->fn = fn;
	c->arg = arg;
	c->ended = false;
	s->alive++;
	s->main_fiber = s->current ? s->main_fiber : fiber_self();
	stack_init(c);
	make_ready(s, c);
	return 0;
}

struct co *co_self(const struct coroutines *s)
{
	return s->current;
}

void co_wait(struct coroutines *s)
{
	struct co *c = s->current;

	ASSERT(c);
	c->waiting = true;
	to_main(s, c);
}

void co_wake(struct coroutines *s, struct co *c)
{
	ASSERT(c->waiting);
	make_ready(s, c);
}

struct run {
	int (*fn)(void *);
	void *arg;
	int ret;
	bool done;
};

static void run_main(void *opaque)
{
	struct run *r = opaque;

	r->ret = r->fn(r->arg);
	r->done = true;
}

int co_run_by(struct coroutines *s, int (*fn)(void *arg), void *arg, int (*step)(void *opaque), void *opaque)
{
	struct run r = { .fn = fn, .arg = arg };
	int ret;

	if (s->current)
		return fn(arg);
	ret = co_start(s, run_main, &r);
	while (!ret && !r.done)
		ret = step(opaque);
	ASSERT(r.done || ret);
	return ret ? ret : r.ret;
}

static int step_loop(void *opaque) { return loop_step(opaque); }

int co_run(struct loop *l, int (*fn)(void *arg), void *arg)
{
	struct coroutines *s = loop_coroutines(l);

	return s ? co_run_by(s, fn, arg, step_loop, l) : -ENOMEM;
}

void co_call_done(void *call, int ret)
{
	struct co_call *c = call;

	c->ret = ret;
	c->done = true;
	if (c->waiter)
		co_wake(c->s, c->waiter);
}

int co_call_wait(struct co_call *c)
{
	if (!c->done) {
		c->waiter = co_self(c->s);
		co_wait(c->s);
		ASSERT(c->done);
	}
	return c->ret;
}

void co_queue_wait(struct coroutines *s, struct co_queue *q)
{
	struct co *c = s->current;

	ASSERT(c);
	c->next = NULL;
	if (q->head)
		q->tail->next = c;
	else
		q->head = c;
	q->tail = c;
	co_wait(s);
}

bool co_queue_wake_one(struct coroutines *s, struct co_queue *q)
{
	struct co *c = q->head;

	if (!c)
		return false;
	q->head = c->next;
	co_wake(s, c);
	return true;
}

void co_queue_wake_all(struct coroutines *s, struct co_queue *q)
{
	struct co_queue woken = *q;	/* whoever waits again comes after these */

	*q = (struct co_queue){ 0 };
	while (co_queue_wake_one(s, &woken))
		;
}

/* An unlock hands the mutex to who has waited longest, so nobody is overtaken. */
void co_lock(struct coroutines *s, struct co_mutex *m)
{
	if (m->held)
		co_queue_wait(s, &m->waiters);
	m->held = true;
}

void co_unlock(struct coroutines *s, struct co_mutex *m)
{
	ASSERT(m->held);
	if (!m->waiters.head)
		m->held = false;
	else
		co_queue_wake_one(s, &m->waiters);
}

struct coroutines *coroutines_new(void)
{
	struct coroutines *s = calloc(1, sizeof(*s));

	if (s)
		s->ready_tail = &s->ready;
	return s;
}

void coroutines_free(struct coroutines *s)
{
	if (!s)
		return;
	ASSERT(!s->alive);
	while (s->idle) {
		struct co *c = s->idle;

		s->idle = c->next;
		co_destroy(c);
	}
	free(s);
}
