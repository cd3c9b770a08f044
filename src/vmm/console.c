#include "vmm/console.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "host/loop.h"

#define RING_BYTES 65536u
#define INPUT_BYTES 512u

/* lock covers the ring, posted and dead. */
struct console {
	struct loop *loop;
	int fd;
	bool pollable;		/* not a regular file */
	struct loop_fd *watch;
	pthread_mutex_t lock;
	pthread_cond_t room;
	uint8_t ring[RING_BYTES];
	unsigned head, used;	/* first byte to write out, bytes in the ring */
	bool posted;		/* flush is on its way to the loop thread */
	bool dead;		/* the reader is gone: output is dropped */
	/* loop thread */
	uint8_t input[INPUT_BYTES];
	size_t ninput;
	bool blocked, eof;
	console_input_fn *fn;
	void *opaque;
};

static void events_update(struct console *c)
{
	uint32_t events = 0;
	if (!c->watch)
		return;
	if (!c->eof && !c->ninput && c->fn)
		events |= EPOLLIN;
	if (c->blocked)
		events |= EPOLLOUT;
	loop_fd_set_events(c->watch, events);
}

/* Writes what the ring holds until it is empty or the fd takes no more. */
static void ring_flush(struct console *c)
{
	pthread_mutex_lock(&c->lock);
	c->posted = false;
	c->blocked = false;
	while (c->used && !c->dead) {
		unsigned n = c->head + c->used > RING_BYTES ? RING_BYTES - c->head : c->used;
		ssize_t done = write(c->fd, c->ring + c->head, n);
		if (done < 0 && errno == EINTR)
			continue;
		if (done < 0 && errno == EAGAIN) {
			c->blocked = true;
			break;
		}
		if (done <= 0) {
			c->dead = true;
			break;
		}
		c->head = (c->head + (unsigned)done) % RING_BYTES;
		c->used -= (unsigned)done;
	}
	if (c->dead)
		c->used = 0;
	pthread_cond_broadcast(&c->room);
	pthread_mutex_unlock(&c->lock);
}

static void on_flush(void *opaque)
{
	struct console *c = opaque;
	ring_flush(c);
	events_update(c);
}

void console_write(void *console, uint8_t byte)
{
	struct console *c = console;
	struct timespec until;
	bool post;
	pthread_mutex_lock(&c->lock);
	if (c->used == RING_BYTES && !c->dead) {
		clock_gettime(CLOCK_REALTIME, &until);
		until.tv_sec++;
		while (c->used == RING_BYTES && !c->dead && !pthread_cond_timedwait(&c->room, &c->lock, &until))
			;
	}
	if (c->used < RING_BYTES && !c->dead)
		c->ring[(c->head + c->used++) % RING_BYTES] = byte;
	post = !c->posted && c->used;
	if (post)
		c->posted = true;
	pthread_mutex_unlock(&c->lock);
	if (post)
		loop_post(c->loop, on_flush, c);
}

static void input_push(struct console *c)
{
	size_t taken = c->fn && c->ninput ? c->fn(c->opaque, c->input, c->ninput) : 0;
	for (size_t i = taken; i < c->ninput; i++)
		c->input[i - taken] = c->input[i];
	c->ninput -= taken;
	events_update(c);
}

static void on_room(void *opaque)
{
	input_push(opaque);
}

void console_room(void *console)
{
	struct console *c = console;
	loop_post(c->loop, on_room, c);
}

static void on_fd(void *opaque, uint32_t events)
{
	struct console *c = opaque;
	if (events & EPOLLOUT)
		ring_flush(c);
	if ((events & (EPOLLIN | EPOLLHUP | EPOLLERR)) && !c->ninput && !c->eof) {
		ssize_t n = read(c->fd, c->input, sizeof c->input);
		if (n > 0)
			c->ninput = (size_t)n;
		else if (n == 0 || (errno != EAGAIN && errno != EINTR))
			c->eof = true;
	}
	/* A socket whose other end is gone would wake the loop for ever. */
	if (c->eof && (events & EPOLLHUP)) {
		loop_fd_del(c->watch);
		c->watch = NULL;
	}
	input_push(c);
}

int console_new(struct console **out, struct loop *l, int fd, bool input, struct error *e)
{
	struct stat st;
	struct console *c = calloc(1, sizeof *c);
	if (!c)
		return error_set(e, ENOMEM, NULL, "open the console", "out of memory");
	c->loop = l;
	c->fd = fd;
	c->dead = fd < 0;
	c->eof = !input;
	pthread_mutex_init(&c->lock, NULL);
	pthread_cond_init(&c->room, NULL);
	c->pollable = fd >= 0 && !fstat(fd, &st) && !S_ISREG(st.st_mode);
	if (c->pollable) {
		fcntl(fd, F_SETFL, fcntl(fd, F_GETFL) | O_NONBLOCK);
		c->watch = loop_fd_add(l, fd, 0, on_fd, c);
		if (!c->watch) {
			int err = errno;
			console_free(c);
			return error_errno(e, err, NULL, "watch the console");
		}
	}
	*out = c;
	return 0;
}

void console_free(struct console *c)
{
	if (!c)
		return;
	if (c->watch)
		loop_fd_del(c->watch);
	pthread_mutex_destroy(&c->lock);
	pthread_cond_destroy(&c->room);
	free(c);
}

void console_connect(struct console *c, console_input_fn *fn, void *opaque)
{
	c->fn = fn;
	c->opaque = opaque;
	events_update(c);
}

void console_drain(struct console *c)
{
	uint64_t until = clock_now_ns() + 1000000000ull;
	ring_flush(c);
	while (c->blocked && clock_now_ns() < until) {
		struct pollfd p = { .fd = c->fd, .events = POLLOUT };
		poll(&p, 1, 100);
		ring_flush(c);
	}
}
