/*
 * User-mode NAT: libslirp behind a port.
 *
 * libslirp wants to be asked before each sleep which descriptors to watch.  The loop has no such moment, so
 * the answer is taken after everything that can change it:
 *
 *	guest frame, timer, descriptor ready ──▶ nat_turn(): poll what was asked for, let libslirp work,
 *	                                         ask again, adjust watches and the wake-up timer
 *
 * Frames from the guest only schedule a turn, so a burst of them costs one.
 */
#include <arpa/inet.h>
#include <errno.h>
#include <libslirp.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>

#include "base/log.h"
#include "host/loop.h"
#include "net/port.h"
#include "net/screen.h"

#define MTU 1500
#define FRAME_OUT_MAX (14 + 4 + MTU)
#define BACKLOG_FRAMES 512u

struct frame {
	struct frame *next;
	size_t len;
	uint8_t bytes[];
};

struct watch {
	int fd;
	uint32_t events;
	bool seen;
	struct loop_fd *loop_fd;
	struct watch *next;
};

struct nat {
	Slirp *slirp;
	struct loop *loop;
	const struct net_sink *sink;
	struct loop_timer *turn;
	bool scheduled;
	struct watch *watches;
	struct pollfd *pfd;
	unsigned pfds, pfd_cap;
	struct frame *backlog, **backlog_tail;	/* for a guest without receive buffers */
	unsigned backlog_len;
	struct log_limit limit;
};

static void schedule(struct nat *n)
{
	if (n->scheduled)
		return;
	n->scheduled = true;
	loop_timer_set(n->turn, clock_now_ns());
}

/* --- watches --- */

static void watch_ready(void *opaque, uint32_t events)
{
	schedule(opaque);
}

static void watch_remove(struct watch **p)
{
	struct watch *w = *p;

	*p = w->next;
	loop_fd_del(w->loop_fd);
	free(w);
}

static void watch_want(struct nat *n, int fd, uint32_t events)
{
	struct watch *w = n->watches;

	while (w && w->fd != fd)
		w = w->next;
	if (!w) {
		w = calloc(1, sizeof(*w));
		if (!w)
			return;
		w->loop_fd = loop_fd_add(n->loop, fd, events, watch_ready, n);
		if (!w->loop_fd) {
			free(w);
			return;
		}
		w->fd = fd;
		w->events = events;
		w->next = n->watches;
		n->watches = w;
	}
	if (w->events != events)
		loop_fd_set_events(w->loop_fd, events);
	w->events = events;
	w->seen = true;
}

static int add_poll(int fd, int events, void *opaque)
{
	struct nat *n = opaque;
	uint32_t epoll = 0;
	short bits = 0;

	if (n->pfds == n->pfd_cap) {
		unsigned cap = n->pfd_cap ? 2 * n->pfd_cap : 64;
		struct pollfd *p = realloc(n->pfd, cap * sizeof(*p));

		if (!p)
			return -1;
		n->pfd = p;
		n->pfd_cap = cap;
	}
	if (events & SLIRP_POLL_IN)
		bits |= POLLIN, epoll |= EPOLLIN;
	if (events & SLIRP_POLL_OUT)
		bits |= POLLOUT, epoll |= EPOLLOUT;
	if (events & SLIRP_POLL_PRI)
		bits |= POLLPRI, epoll |= EPOLLPRI;
	n->pfd[n->pfds] = (struct pollfd){ .fd = fd, .events = bits };
	watch_want(n, fd, epoll);
	return (int)n->pfds++;
}

static int get_revents(int i, void *opaque)
{
	struct nat *n = opaque;
	int events = 0;
	short bits;

	if (i < 0 || i >= (int)n->pfds)
		return 0;
	bits = n->pfd[i].revents;
	events |= bits & POLLIN ? SLIRP_POLL_IN : 0;
	events |= bits & POLLOUT ? SLIRP_POLL_OUT : 0;
	events |= bits & POLLPRI ? SLIRP_POLL_PRI : 0;
	events |= bits & POLLERR ? SLIRP_POLL_ERR : 0;
	events |= bits & POLLHUP ? SLIRP_POLL_HUP : 0;
	return events;
}

static void ask(struct nat *n)
{
	uint32_t timeout_ms = UINT32_MAX;

	n->pfds = 0;
	for (struct watch *w = n->watches; w; w = w->next)
		w->seen = false;
	slirp_pollfds_fill(n->slirp, &timeout_ms, add_poll, n);
	for (struct watch **p = &n->watches; *p;) {
		if ((*p)->seen)
			p = &(*p)->next;
		else
			watch_remove(p);
	}
	if (n->scheduled)
		return;
	if (timeout_ms == UINT32_MAX)
		loop_timer_cancel(n->turn);
	else
		loop_timer_set(n->turn, clock_now_ns() + timeout_ms * 1000000ull);
}

static void nat_turn(void *opaque)
{
	struct nat *n = opaque;
	int ready;

	n->scheduled = false;
	ready = poll(n->pfd, n->pfds, 0);
	slirp_pollfds_poll(n->slirp, ready < 0, get_revents, n);
	ask(n);
}

/* --- libslirp's callbacks --- */

static bool deliver(struct nat *n, const void *frame, size_t len)
{
	if (!n->sink->can_receive(n->sink->opaque))
		return false;
	n->sink->receive(n->sink->opaque, frame, len);
	return true;
}

static ssize_t send_packet(const void *buf, size_t len, void *opaque)
{
	struct nat *n = opaque;
	struct frame *f;

	if (!n->backlog && deliver(n, buf, len))
		return (ssize_t)len;
	if (n->backlog_len >= BACKLOG_FRAMES)
		return (ssize_t)len;	/* dropped, as on any full wire */
	f = malloc(sizeof(*f) + len);
	if (!f)
		return (ssize_t)len;
	f->next = NULL;
	f->len = len;
	memcpy(f->bytes, buf, len);
	*n->backlog_tail = f;
	n->backlog_tail = &f->next;
	n->backlog_len++;
	return (ssize_t)len;
}

static void guest_error(const char *msg, void *opaque)
{
	struct nat *n = opaque;

	log_guest(&n->limit, "network: %s", msg);
}

static int64_t clock_get_ns(void *opaque)
{
	return (int64_t)clock_now_ns();
}

static void *timer_new(SlirpTimerCb fn, void *fn_opaque, void *opaque)
{
	struct nat *n = opaque;

	return loop_timer_new(n->loop, fn, fn_opaque);
}

static void timer_free(void *timer, void *opaque)
{
	if (timer)
		loop_timer_free(timer);
}

static void timer_mod(void *timer, int64_t expire_ms, void *opaque)
{
	if (timer)
		loop_timer_set(timer, (uint64_t)expire_ms * 1000000ull);
}

static void register_poll_fd(int fd, void *opaque)
{
}

/* The descriptor is about to be closed, and its number may come back for another socket. */
static void unregister_poll_fd(int fd, void *opaque)
{
	struct nat *n = opaque;

	for (struct watch **p = &n->watches; *p; p = &(*p)->next) {
		if ((*p)->fd == fd) {
			watch_remove(p);
			return;
		}
	}
}

static void notify(void *opaque)
{
	schedule(opaque);
}

static const SlirpCb callbacks = {
	.send_packet = send_packet, .guest_error = guest_error, .clock_get_ns = clock_get_ns,
	.timer_new = timer_new, .timer_free = timer_free, .timer_mod = timer_mod,
	.register_poll_fd = register_poll_fd, .unregister_poll_fd = unregister_poll_fd, .notify = notify,
};

/* --- the port --- */

static void nat_send(void *opaque, const struct iovec *iov, int iovcnt)
{
	struct nat *n = opaque;
	uint8_t frame[FRAME_OUT_MAX];
	size_t len = 0;

	for (int i = 0; i < iovcnt; i++) {
		if (iov[i].iov_len > sizeof(frame) - len)
			return;		/* larger than the MTU that the guest was given */
		memcpy(frame + len, iov[i].iov_base, iov[i].iov_len);
		len += iov[i].iov_len;
	}
	len = screen_frame(frame, len);
	if (!len)
		return;
	slirp_input(n->slirp, frame, (int)len);
	schedule(n);
}

static void nat_poke(void *opaque)
{
	struct nat *n = opaque;

	while (n->backlog && deliver(n, n->backlog->bytes, n->backlog->len)) {
		struct frame *f = n->backlog;

		n->backlog = f->next;
		if (!n->backlog)
			n->backlog_tail = &n->backlog;
		n->backlog_len--;
		free(f);
	}
}

static void nat_free(void *opaque)
{
	struct nat *n = opaque;

	if (n->slirp)
		slirp_cleanup(n->slirp);
	while (n->watches)
		watch_remove(&n->watches);
	while (n->backlog) {
		struct frame *f = n->backlog;

		n->backlog = f->next;
		free(f);
	}
	if (n->turn)
		loop_timer_free(n->turn);
	free(n->pfd);
	free(n);
}

static const struct net_ops nat_ops = { nat_send, nat_poke, nat_free };

static int forward_add(struct nat *n, const struct net_forward *f, struct error *e)
{
	struct in_addr host, guest;
	const char *addr = f->host_addr[0] ? f->host_addr : "127.0.0.1";

	inet_pton(AF_INET, "10.0.2.15", &guest);
	if (inet_pton(AF_INET, addr, &host) != 1)
		return error_set(e, EINVAL, "use an IPv4 address of this host, such as 127.0.0.1",
				 "forward a port", "'%s' is not an IPv4 address", addr);
	if (slirp_add_hostfwd(n->slirp, f->udp, host, f->host_port, guest, f->guest_port) < 0) {
		int err = errno ? errno : EADDRINUSE;
		const char *todo = err == EACCES ? "use a host port above 1023" : "choose another host port";

		return error_errno(e, err, todo, "forward %s port %u of %s", f->udp ? "UDP" : "TCP",
				   f->host_port, addr);
	}
	return 0;
}

static void config_fill(SlirpConfig *c)
{
	memset(c, 0, sizeof(*c));
	c->version = 1;
	c->in_enabled = true;
	inet_pton(AF_INET, "10.0.2.0", &c->vnetwork);
	inet_pton(AF_INET, "255.255.255.0", &c->vnetmask);
	inet_pton(AF_INET, "10.0.2.2", &c->vhost);
	inet_pton(AF_INET, "10.0.2.15", &c->vdhcp_start);
	inet_pton(AF_INET, "10.0.2.3", &c->vnameserver);
	c->vhostname = "vixen";
	c->if_mtu = MTU;
	c->if_mru = MTU;
}

int nat_open(struct net_backend *out, struct loop *l, const struct net_sink *sink,
	     const struct net_forward *fwd, int nfwd, struct error *e)
{
	struct nat *n = calloc(1, sizeof(*n));
	SlirpConfig config;
	int ret = 0;

	if (!n)
		return error_errno(e, ENOMEM, NULL, "start the network");
	n->loop = l;
	n->sink = sink;
	n->backlog_tail = &n->backlog;
	n->turn = loop_timer_new(l, nat_turn, n);
	config_fill(&config);
	n->slirp = n->turn ? slirp_new(&config, &callbacks, n) : NULL;
	if (!n->slirp)
		ret = error_set(e, ENOMEM, NULL, "start the network", "user-mode NAT did not start");
	for (int i = 0; i < nfwd && !ret; i++)
		ret = forward_add(n, &fwd[i], e);
	if (ret) {
		nat_free(n);
		return ret;
	}
	ask(n);
	schedule(n);
	*out = (struct net_backend){ &nat_ops, n };
	return 0;
}
