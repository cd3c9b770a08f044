/*
 * epoll, one eventfd for wake-ups, timers in a list whose earliest deadline bounds the wait.
 *
 * Lock: `lock` covers timers' deadlines and the posted queue; both may be touched from any thread. Watches
 * belong to the loop thread alone.
 */
#include "host/loop.h"

#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/timerfd.h>
#include <time.h>
#include <unistd.h>

#include "host/coroutine.h"

#define NEVER UINT64_MAX
/* epoll's timeouts stand still while the host is suspended; what is so near may come so late. */
#define LATE_MAX_NS 20000000u
#define GAP_NS 1000000000

struct loop_fd {
	struct loop *loop;
	int fd;
	loop_fd_fn *fn;
	void *opaque;
	bool dead;
	struct loop_fd *next_dead;
};

struct loop_timer {
	struct loop *loop;
	uint64_t deadline_ns;		/* NEVER: not armed */
	loop_timer_fn *fn;
	void *opaque;
	bool dead;
	struct loop_timer *next;
};

struct post { void (*fn)(void *); void *opaque; struct post *next; };

struct loop {
	int epoll, wake;
	int alarm;			/* timerfd: ends a sleep that the host's suspension stretches */
	uint64_t alarm_ns;		/* what it is set to; 0: it is not */
	atomic_bool stop;
	pthread_mutex_t lock;
	struct loop_timer *timers;
	struct post *posts, **posts_tail;
	struct loop_fd *dead;
	uint64_t sleeping_until;	/* under lock: what the loop waits for; 0 while it is awake */
	unsigned depth;			/* of steps inside callbacks of steps */
	uint64_t turn_ns;		/* when timers were looked at last */
	uint64_t suspended_ns;		/* how long the host had been suspended then, in all */
	void (*gap)(void *opaque);
	void *gap_opaque;
	struct coroutines *coroutines;	/* made when first asked for */
};

uint64_t clock_now_ns(void)
{
	struct timespec t;
	clock_gettime(CLOCK_BOOTTIME, &t);
	return (uint64_t)t.tv_sec * 1000000000ull + (uint64_t)t.tv_nsec;
}

/* Since the host was booted: what CLOCK_BOOTTIME is ahead of CLOCK_MONOTONIC. */
static uint64_t suspended_ns(void)
{
	struct timespec t;
	clock_gettime(CLOCK_MONOTONIC, &t);
	return clock_now_ns() - ((uint64_t)t.tv_sec * 1000000000ull + (uint64_t)t.tv_nsec);
}

struct loop *loop_new(void)
{
	struct loop *l = calloc(1, sizeof *l);
	if (!l)
		return NULL;
	l->epoll = epoll_create1(EPOLL_CLOEXEC);
	l->wake = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	l->posts_tail = &l->posts;
	l->turn_ns = clock_now_ns();
	l->suspended_ns = suspended_ns();
	pthread_mutex_init(&l->lock, NULL);
	l->alarm = timerfd_create(CLOCK_BOOTTIME, TFD_CLOEXEC | TFD_NONBLOCK);
	struct epoll_event ev = { .events = EPOLLIN, .data.ptr = NULL }, ring = { .events = EPOLLIN, .data.ptr = &l->alarm };
	if (l->epoll < 0 || l->wake < 0 || l->alarm < 0 || epoll_ctl(l->epoll, EPOLL_CTL_ADD, l->wake, &ev) < 0 ||
	    epoll_ctl(l->epoll, EPOLL_CTL_ADD, l->alarm, &ring) < 0) {
		int err = errno;
		loop_free(l);
		errno = err;
		return NULL;
	}
	return l;
}

static void reap_dead(struct loop *l)
{
	while (l->dead) {
		struct loop_fd *w = l->dead;
		l->dead = w->next_dead;
		free(w);
	}
}

void loop_free(struct loop *l)
{
	if (!l)
		return;
	coroutines_free(l->coroutines);
	reap_dead(l);
	while (l->timers) {
		struct loop_timer *t = l->timers;
		l->timers = t->next;
		free(t);
	}
	while (l->posts) {
		struct post *p = l->posts;
		l->posts = p->next;
		free(p);
	}
	if (l->epoll >= 0)
		close(l->epoll);
	if (l->wake >= 0)
		close(l->wake);
	if (l->alarm >= 0)
		close(l->alarm);
	pthread_mutex_destroy(&l->lock);
	free(l);
}

static void loop_wake(struct loop *l)
{
	uint64_t one = 1;
	ssize_t r = write(l->wake, &one, sizeof one);	/* full counter: it is awake anyway */
	(void)r;
}

void loop_stop(struct loop *l)
{
	atomic_store(&l->stop, true);
	loop_wake(l);
}

static void run_posts(struct loop *l)
{
	pthread_mutex_lock(&l->lock);
	struct post *p = l->posts;
	l->posts = NULL;
	l->posts_tail = &l->posts;
	pthread_mutex_unlock(&l->lock);
	while (p) {
		struct post *next = p->next;
		p->fn(p->opaque);
		free(p);
		p = next;
	}
}

/* Takes one timer that is due, disarmed; NULL when none is. Frees those that died. */
static struct loop_timer *due_timer(struct loop *l, uint64_t now)
{
	struct loop_timer *due = NULL;
	pthread_mutex_lock(&l->lock);
	for (struct loop_timer **at = &l->timers; *at;) {
		struct loop_timer *t = *at;
		if (t->dead) {
			*at = t->next;
			free(t);
			continue;
		}
		if (t->deadline_ns <= now && (!due || t->deadline_ns < due->deadline_ns))
			due = t;
		at = &t->next;
	}
	if (due)
		due->deadline_ns = NEVER;
	pthread_mutex_unlock(&l->lock);
	return due;
}

void loop_on_gap(struct loop *l, void (*fn)(void *opaque), void *opaque)
{
	l->gap = fn;
	l->gap_opaque = opaque;
}

/* There was a gap only if this loop has slept as long. */
static void look_for_gap(struct loop *l, uint64_t now)
{
	if (now - l->turn_ns >= GAP_NS) {
		uint64_t before = l->suspended_ns;
		l->suspended_ns = suspended_ns();
		if ((int64_t)(l->suspended_ns - before) >= GAP_NS && l->gap)
			l->gap(l->gap_opaque);
	}
	l->turn_ns = now;
}

static void run_timers(struct loop *l)
{
	uint64_t now = clock_now_ns();
	struct loop_timer *t;
	look_for_gap(l, now);
	while ((t = due_timer(l, now)))
		t->fn(t->opaque);
}

/* Decides under the lock how long to wait, so that a timer armed or a call posted later wakes us. */
static uint64_t begin_sleep(struct loop *l)
{
	uint64_t until = NEVER;
	pthread_mutex_lock(&l->lock);
	for (struct loop_timer *t = l->timers; t; t = t->next)
		if (!t->dead && t->deadline_ns < until)
			until = t->deadline_ns;
	if (l->posts)
		until = 1;
	l->sleeping_until = until;
	pthread_mutex_unlock(&l->lock);
	return until;
}

static void alarm_set(struct loop *l, uint64_t until)
{
	struct itimerspec at = { .it_value = { (time_t)(until / 1000000000u), (long)(until % 1000000000u) } };
	if (l->alarm_ns != until && timerfd_settime(l->alarm, TFD_TIMER_ABSTIME, &at, NULL) == 0)
		l->alarm_ns = until;
}

static int alarm_drain(struct loop *l)
{
	uint64_t times;
	l->alarm_ns = 0;
	return read(l->alarm, &times, sizeof times) < 0 && errno != EAGAIN ? -errno : 0;
}

static int wait_events(struct loop *l, struct epoll_event *ev, int max, uint64_t until)
{
	struct timespec ts, *wait = NULL;
	if (until != NEVER) {
		uint64_t now = clock_now_ns(), left = until > now ? until - now : 0;
		ts.tv_sec = (time_t)(left / 1000000000u);
		ts.tv_nsec = (long)(left % 1000000000u);
		wait = &ts;
		if (left > LATE_MAX_NS)
			alarm_set(l, until);
	}
	int n = epoll_pwait2(l->epoll, ev, max, wait, NULL);
	pthread_mutex_lock(&l->lock);
	l->sleeping_until = 0;
	pthread_mutex_unlock(&l->lock);
	return n;
}

static int dispatch(struct loop *l, const struct epoll_event *ev, int n)
{
	for (int i = 0; i < n; i++) {
		struct loop_fd *w = ev[i].data.ptr;
		uint64_t drain;
		int ret;
		if (ev[i].data.ptr == &l->alarm) {
			if ((ret = alarm_drain(l)))
				return ret;
		} else if (w && !w->dead) {
			w->fn(w->opaque, ev[i].events);
		} else if (!w && read(l->wake, &drain, sizeof drain) < 0 && errno != EAGAIN) {
			return -errno;
		}
	}
	run_posts(l);
	run_timers(l);
	return 0;
}

int loop_step(struct loop *l)
{
	struct epoll_event ev[32];
	int n = wait_events(l, ev, 32, begin_sleep(l)), ret;
	if (n < 0 && errno != EINTR)
		return -errno;
	l->depth++;
	ret = dispatch(l, ev, n);
	if (!--l->depth)	/* an outer batch may still name them */
		reap_dead(l);
	return ret;
}

int loop_run(struct loop *l)
{
	int ret = 0;
	while (!ret && !atomic_exchange(&l->stop, false))
		ret = loop_step(l);
	return ret;
}

struct coroutines *loop_coroutines(struct loop *l)
{
	if (!l->coroutines)
		l->coroutines = coroutines_new();
	return l->coroutines;
}

struct loop_fd *loop_fd_add(struct loop *l, int fd, uint32_t events, loop_fd_fn *fn, void *opaque)
{
	struct loop_fd *w = calloc(1, sizeof *w);
	if (!w)
		return NULL;
	*w = (struct loop_fd){ .loop = l, .fd = fd, .fn = fn, .opaque = opaque };
	struct epoll_event ev = { .events = events, .data.ptr = w };
	if (epoll_ctl(l->epoll, EPOLL_CTL_ADD, fd, &ev) < 0) {
		free(w);
		return NULL;
	}
	return w;
}

void loop_fd_set_events(struct loop_fd *w, uint32_t events)
{
	struct epoll_event ev = { .events = events, .data.ptr = w };
	epoll_ctl(w->loop->epoll, EPOLL_CTL_MOD, w->fd, &ev);
}

/* The struct lives until the current batch of events is over: one of them may still name it. */
void loop_fd_del(struct loop_fd *w)
{
	if (!w)
		return;
	epoll_ctl(w->loop->epoll, EPOLL_CTL_DEL, w->fd, NULL);
	w->dead = true;
	w->next_dead = w->loop->dead;
	w->loop->dead = w;
}

struct loop_timer *loop_timer_new(struct loop *l, loop_timer_fn *fn, void *opaque)
{
	struct loop_timer *t = calloc(1, sizeof *t);
	if (!t)
		return NULL;
	*t = (struct loop_timer){ .loop = l, .deadline_ns = NEVER, .fn = fn, .opaque = opaque };
	pthread_mutex_lock(&l->lock);
	t->next = l->timers;
	l->timers = t;
	pthread_mutex_unlock(&l->lock);
	return t;
}

void loop_timer_set(struct loop_timer *t, uint64_t deadline_ns)
{
	struct loop *l = t->loop;
	pthread_mutex_lock(&l->lock);
	t->deadline_ns = deadline_ns;
	bool wake = deadline_ns < l->sleeping_until;
	pthread_mutex_unlock(&l->lock);
	if (wake)
		loop_wake(l);
}

void loop_timer_cancel(struct loop_timer *t)
{
	loop_timer_set(t, NEVER);
}

void loop_timer_free(struct loop_timer *t)
{
	if (!t)
		return;
	pthread_mutex_lock(&t->loop->lock);
	t->dead = true;
	t->deadline_ns = NEVER;
	pthread_mutex_unlock(&t->loop->lock);
}

void loop_post(struct loop *l, void (*fn)(void *), void *opaque)
{
	struct post *p = malloc(sizeof *p);
	if (!p)
		abort();	/* a dropped call would hang a device for good */
	*p = (struct post){ fn, opaque, NULL };
	pthread_mutex_lock(&l->lock);
	*l->posts_tail = p;
	l->posts_tail = &p->next;
	bool wake = l->sleeping_until != 0;
	pthread_mutex_unlock(&l->lock);
	if (wake)
		loop_wake(l);
}
