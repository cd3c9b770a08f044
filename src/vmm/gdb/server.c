#include "vmm/gdb/server.h"

#include <arpa/inet.h>
#include <errno.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "host/loop.h"
#include "vmm/gdb/monitor.h"
#include "vmm/gdb/session.h"

#define WAITING_MAX 1	/* connections in the queue */

enum client {
	CLIENT_NONE,
	CLIENT_WAITS,		/* connected; the guest is being stopped for it */
	CLIENT_TALKS,
	CLIENT_LEFT,		/* gone while the guest ran: it is being stopped for the breakpoints to go */
};

struct gdb_server {
	struct loop *loop;
	struct board *board;	/* NULL: between two of them */
	int listener, fd;
	struct loop_fd *listener_watch, *watch;
	struct gdb_session *session;
	enum client client;
	bool running;		/* the guest; also: it is to run, once there is a board */
	bool stopping;		/* it has been asked to stop */
	void (*kill)(void *opaque);
	void *opaque;
};

/* --- the target, for the session --- */

static unsigned target_cpus(void *opaque) { return board_debug_cpus(((struct gdb_server *)opaque)->board); }

static void target_get(void *opaque, unsigned cpu, struct gdb_cpu *out)
{
	struct gdb_server *s = opaque;
	board_debug_get(s->board, cpu, &out->s);
	out->cr8 = board_debug_cr8(s->board, cpu);
}

static void target_set(void *opaque, unsigned cpu, const struct gdb_cpu *in)
{
	struct gdb_server *s = opaque;
	board_debug_set(s->board, cpu, &in->s);
	if (in->cr8 != board_debug_cr8(s->board, cpu))
		board_debug_set_cr8(s->board, cpu, in->cr8);
}

static bool target_memory(void *opaque, const struct gdb_cpu *c, bool physical, uint64_t at, void *buf, size_t n,
			  bool write)
{
	return board_debug_memory(((struct gdb_server *)opaque)->board, &c->s, physical, at, buf, n, write);
}

static int target_points(void *opaque, const struct debug_point *p, unsigned n)
{
	return board_debug_points(((struct gdb_server *)opaque)->board, p, n);
}

static void target_resume(void *opaque, const enum debug_go *go)
{
	struct gdb_server *s = opaque;
	s->running = true;
	s->stopping = false;
	board_debug_resume(s->board, go);
}

static void target_stop(void *opaque)
{
	struct gdb_server *s = opaque;
	s->stopping = true;
	if (s->board)
		board_debug_stop(s->board);
}

static void target_kill(void *opaque)
{
	struct gdb_server *s = opaque;
	s->kill(s->opaque);
}

static bool target_monitor(void *opaque, unsigned cpu, const char *command, FILE *out)
{
	struct gdb_server *s = opaque;
	if (!strcmp(command, "quit")) {
		s->kill(s->opaque);
		return true;
	}
	return monitor_command(s->board, cpu, command, out);
}

static const struct gdb_target target = {
	.cpus = target_cpus, .get = target_get, .set = target_set, .memory = target_memory, .points = target_points,
	.resume = target_resume, .stop = target_stop, .kill = target_kill, .monitor = target_monitor,
};

/* --- the connection --- */

/* Reads only while nothing is left to be sent: GDB asks one thing at a time. */
static void events_update(struct gdb_server *s)
{
	if (!s->watch)
		return;
	if (gdb_session_out(s->session)->len)
		loop_fd_set_events(s->watch, EPOLLOUT);
	else
		loop_fd_set_events(s->watch, s->client == CLIENT_TALKS && s->board ? EPOLLIN : 0);
}

static void client_close(struct gdb_server *s)
{
	loop_fd_del(s->watch);
	close(s->fd);
	s->watch = NULL;
	s->fd = -1;
	s->client = s->client == CLIENT_TALKS && s->running ? CLIENT_LEFT : CLIENT_NONE;
	if (s->client == CLIENT_LEFT)
		target_stop(s);
	else if (!s->running && s->board)
		gdb_session_end(s->session);
}

static void client_flush(struct gdb_server *s)
{
	struct gdb_out *o = gdb_session_out(s->session);
	size_t done = 0;

	while (done < o->len && !o->full) {
		ssize_t n = send(s->fd, o->bytes + done, o->len - done, MSG_NOSIGNAL | MSG_DONTWAIT);
		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0 && errno != EAGAIN)
			o->full = true;
		if (n <= 0)
			break;
		done += (size_t)n;
	}
	memmove(o->bytes, o->bytes + done, o->len - done);
	o->len -= done;
	if (o->full)
		client_close(s);
	else
		events_update(s);
}

static void on_client(void *opaque, uint32_t events)
{
	struct gdb_server *s = opaque;
	uint8_t bytes[4096];
	ssize_t n = 1;

	if (events & EPOLLOUT) {
		client_flush(s);
		return;
	}
	n = recv(s->fd, bytes, sizeof bytes, MSG_DONTWAIT);
	if (n < 0 && (errno == EAGAIN || errno == EINTR))
		return;
	if (n <= 0 || s->client != CLIENT_TALKS || !s->board) {
		client_close(s);
		return;
	}
	gdb_session_take(s->session, bytes, (size_t)n);
	client_flush(s);
}

static void client_begin(struct gdb_server *s)
{
	s->client = CLIENT_TALKS;
	gdb_session_begin(s->session);
	events_update(s);
}

static void on_listener(void *opaque, uint32_t events)
{
	struct gdb_server *s = opaque;
	int on = 1, fd = accept4(s->listener, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);

	if (fd < 0)
		return;
	if (s->fd >= 0 || !(s->watch = loop_fd_add(s->loop, fd, 0, on_client, s))) {
		close(fd);
		return;
	}
	setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
	s->fd = fd;
	s->client = CLIENT_WAITS;
	if (s->running || !s->board)
		target_stop(s);
	else
		client_begin(s);
}

/* All vCPUs stand still: for the client, or for one that has left. */
static void on_stopped(void *opaque)
{
	struct gdb_server *s = opaque;
	struct board_stop stop;

	if (!s->board || !s->running || !board_debug_stopped(s->board))
		return;
	s->running = s->stopping = false;
	board_debug_why(s->board, &stop);
	switch (s->client) {
	case CLIENT_WAITS:
		client_begin(s);
		break;
	case CLIENT_TALKS:
		gdb_session_stopped(s->session, &stop);
		client_flush(s);
		break;
	case CLIENT_LEFT: case CLIENT_NONE:
		s->client = CLIENT_NONE;
		gdb_session_end(s->session);
		break;
	}
}

void gdb_server_board(struct gdb_server *s, struct board *b)
{
	if (!s)
		return;
	s->board = b;
	if (b) {
		board_debug_begin(b, !s->running || s->stopping, on_stopped, s);
		gdb_session_rebuilt(s->session);
	}
	events_update(s);
}

void gdb_server_exited(struct gdb_server *s, bool crashed, unsigned code)
{
	if (!s || s->client != CLIENT_TALKS)
		return;
	gdb_session_exited(s->session, crashed, code);
	struct gdb_out *o = gdb_session_out(s->session);
	struct pollfd p = { .fd = s->fd, .events = POLLOUT };
	if (poll(&p, 1, 1000) > 0)
		send(s->fd, o->bytes, o->len, MSG_NOSIGNAL | MSG_DONTWAIT);
}

/* --- listening --- */

static int listen_tcp(struct gdb_server *s, const char *where, struct error *e)
{
	struct sockaddr_in a = { .sin_family = AF_INET, .sin_port = htons((uint16_t)atoi(where)),
				 .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
	socklen_t len = sizeof a;
	int on = 1;

	s->listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	if (s->listener < 0 || setsockopt(s->listener, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on) ||
	    bind(s->listener, (struct sockaddr *)&a, sizeof a) || listen(s->listener, WAITING_MAX) ||
	    getsockname(s->listener, (struct sockaddr *)&a, &len))
		return error_errno(e, errno, "choose another port", "listen for GDB on port %s", where);
	fprintf(stderr, "vixen: the guest waits for GDB: target remote :%u\n", ntohs(a.sin_port));
	return 0;
}

static int listen_unix(struct gdb_server *s, const char *path, struct error *e)
{
	struct sockaddr_un a = { .sun_family = AF_UNIX };

	if (strlen(path) >= sizeof a.sun_path)
		return error_set(e, ENAMETOOLONG, "choose a shorter path", "listen for GDB", "the path is too long");
	strcpy(a.sun_path, path);
	s->listener = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	if (s->listener < 0 || bind(s->listener, (struct sockaddr *)&a, sizeof a) || listen(s->listener, WAITING_MAX))
		return error_errno(e, errno, "remove what is there, or choose another path", "listen for GDB on '%s'", path);
	fprintf(stderr, "vixen: the guest waits for GDB: target remote %s\n", path);
	return 0;
}

int gdb_server_new(struct gdb_server **out, struct loop *l, const char *where, void (*kill)(void *opaque), void *opaque,
		   struct error *e)
{
	struct gdb_server *s = calloc(1, sizeof *s);
	int ret;

	if (!s)
		return error_set(e, ENOMEM, NULL, "listen for GDB", "out of memory");
	s->loop = l;
	s->listener = s->fd = -1;
	s->kill = kill;
	s->opaque = opaque;
	s->session = gdb_session_new(&target, s);
	ret = !s->session ? error_set(e, ENOMEM, NULL, "listen for GDB", "out of memory")
	      : !strncmp(where, "unix:", 5) ? listen_unix(s, where + 5, e) : listen_tcp(s, where, e);
	if (!ret && !(s->listener_watch = loop_fd_add(l, s->listener, EPOLLIN, on_listener, s)))
		ret = error_errno(e, errno, "raise the limit on open files", "listen for GDB");
	if (ret) {
		gdb_server_free(s);
		return ret;
	}
	*out = s;
	return 0;
}

void gdb_server_free(struct gdb_server *s)
{
	if (!s)
		return;
	if (s->watch)
		loop_fd_del(s->watch);
	if (s->listener_watch)
		loop_fd_del(s->listener_watch);
	if (s->fd >= 0)
		close(s->fd);
	if (s->listener >= 0)
		close(s->listener);
	gdb_session_free(s->session);
	free(s);
}
