#include "vmm/control.h"

#include <errno.h>
#include <fcntl.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

#include "host/loop.h"

#define CLIENTS_MAX 16u
#define CALLS_MAX 64u			/* of one client, at a time */
#define OUT_MAX (256u << 10)		/* bytes that a client may leave unread */

struct client {
	struct control *control;
	struct client *next;
	struct control_call *calls;
	unsigned ncalls;
	int fd;
	struct loop_fd *watch;
	int fds[CONTROL_FDS_MAX];	/* came, for the line that comes next */
	unsigned nfds;
	size_t nin, nout;
	char *out;
	char in[CONTROL_LINE_MAX];
};

struct control_call {
	struct client *client;		/* NULL: gone */
	struct control_call *next;
	json_int_t id;
};

struct control {
	struct loop *loop;
	struct vm *vm;
	int fd;
	struct loop_fd *watch;
	struct client *clients;
	unsigned nclients;
};

/* --- clients --- */

static void fds_drop(struct client *c)
{
	for (unsigned i = 0; i < c->nfds; i++)
		if (c->fds[i] >= 0)
			close(c->fds[i]);
	c->nfds = 0;
}

static void client_close(struct client *c)
{
	struct client **link = &c->control->clients;

	while (*link != c)
		link = &(*link)->next;
	*link = c->next;
	c->control->nclients--;
	for (struct control_call *call = c->calls; call; call = call->next)
		call->client = NULL;
	fds_drop(c);
	loop_fd_del(c->watch);
	close(c->fd);
	free(c->out);
	free(c);
}

/* c lives on until the loop sees the connection's end: answers are given while its lines are read. */
static void client_cut(struct client *c)
{
	c->nout = 0;
	shutdown(c->fd, SHUT_RDWR);
}

static void client_flush(struct client *c)
{
	ssize_t n = c->nout ? send(c->fd, c->out, c->nout, MSG_DONTWAIT | MSG_NOSIGNAL) : 0;

	if (n < 0 && errno != EAGAIN && errno != EINTR) {
		client_cut(c);
	} else if (n > 0) {
		memmove(c->out, c->out + n, c->nout - (size_t)n);
		c->nout -= (size_t)n;
	}
	loop_fd_set_events(c->watch, EPOLLIN | (c->nout ? (uint32_t)EPOLLOUT : 0));
}

/* A client that does not read what it asked for is cut off. line: freed. */
static void client_send(struct client *c, char *line)
{
	size_t len = line ? strlen(line) : 0;
	char *more = len && c->nout + len <= OUT_MAX ? realloc(c->out, c->nout + len) : NULL;

	if (more) {
		c->out = more;
		memcpy(c->out + c->nout, line, len);
		c->nout += len;
	}
	free(line);
	if (more)
		client_flush(c);
	else
		client_cut(c);
}

static struct control_call *call_new(struct client *c, json_int_t id)
{
	struct control_call *call = c->ncalls < CALLS_MAX ? calloc(1, sizeof *call) : NULL;

	if (!call)
		return NULL;
	*call = (struct control_call){ .client = c, .next = c->calls, .id = id };
	c->calls = call;
	c->ncalls++;
	return call;
}

/* false: what came is no request. */
static bool client_line(struct client *c, const char *line, size_t len)
{
	struct control_request r;
	struct error e = { 0 };
	struct control_call *call;
	int ret = control_request_decode(&r, line, len, &e);

	if (ret && ret != -ENOTSUP)
		return false;
	call = call_new(c, r.id);
	if (!call)
		ret = error_set(&e, EBUSY, "wait for answers", "carry out a request", "too many are under way");
	if (!call)
		client_send(c, control_error_encode(r.id, -ret, &e));
	else if (ret)
		control_fail(call, ret, &e);
	else
		control_handlers[r.verb](c->control->vm, call, r.arguments);
	control_request_fini(&r);
	return true;
}

/* Handlers do not close clients, so c stays while lines are left. false: to be closed. */
static bool client_lines(struct client *c)
{
	char *at = c->in, *end;

	while ((end = memchr(at, '\n', (size_t)(c->in + c->nin - at)))) {
		bool good = client_line(c, at, (size_t)(end - at));
		fds_drop(c);
		if (!good)
			return false;
		at = end + 1;
	}
	c->nin -= (size_t)(at - c->in);
	memmove(c->in, at, c->nin);
	return c->nin < sizeof c->in;
}

/* false: more than there is room for. */
static bool fds_take(struct client *c, struct msghdr *m)
{
	bool good = !(m->msg_flags & MSG_CTRUNC);

	for (struct cmsghdr *h = CMSG_FIRSTHDR(m); h; h = CMSG_NXTHDR(m, h)) {
		size_t n = h->cmsg_level == SOL_SOCKET && h->cmsg_type == SCM_RIGHTS ? (h->cmsg_len - CMSG_LEN(0)) / sizeof(int) : 0;
		for (size_t i = 0; i < n; i++) {
			int fd;
			memcpy(&fd, CMSG_DATA(h) + i * sizeof fd, sizeof fd);
			good &= c->nfds < CONTROL_FDS_MAX;
			if (c->nfds < CONTROL_FDS_MAX)
				c->fds[c->nfds++] = fd;
			else
				close(fd);
		}
	}
	return good;
}

static ssize_t receive(struct client *c)
{
	union { char bytes[CMSG_SPACE(CONTROL_FDS_MAX * sizeof(int))]; struct cmsghdr align; } room;
	struct iovec iov = { c->in + c->nin, sizeof c->in - c->nin };
	struct msghdr m = { .msg_iov = &iov, .msg_iovlen = 1, .msg_control = room.bytes, .msg_controllen = sizeof room };
	ssize_t n = recvmsg(c->fd, &m, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);

	return n > 0 && !fds_take(c, &m) ? 0 : n;
}

static void on_client(void *opaque, uint32_t events)
{
	struct client *c = opaque;
	ssize_t n;

	if (events & EPOLLOUT)
		client_flush(c);
	if (!(events & (EPOLLIN | EPOLLHUP | EPOLLERR)))
		return;
	n = receive(c);
	if (n < 0 && (errno == EAGAIN || errno == EINTR))
		return;
	if (n > 0)
		c->nin += (size_t)n;
	if (n <= 0 || !client_lines(c))
		client_close(c);
}

/* --- the server --- */

static bool peer_allowed(int fd)
{
	struct ucred who;
	socklen_t len = sizeof who;

	return !getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &who, &len) && (who.uid == geteuid() || who.uid == 0);
}

static void on_listen(void *opaque, uint32_t events)
{
	struct control *s = opaque;
	int fd = accept4(s->fd, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
	struct client *c;

	if (fd < 0)
		return;
	c = s->nclients < CLIENTS_MAX && peer_allowed(fd) ? calloc(1, sizeof *c) : NULL;
	if (c)
		c->watch = loop_fd_add(s->loop, fd, EPOLLIN, on_client, c);
	if (!c || !c->watch) {
		free(c);
		close(fd);
		return;
	}
	c->control = s;
	c->fd = fd;
	c->next = s->clients;
	s->clients = c;
	s->nclients++;
}

int control_new(struct control **out, struct loop *l, int listen_fd, struct vm *vm, struct error *e)
{
	struct control *s = calloc(1, sizeof *s);

	if (!s)
		return error_set(e, ENOMEM, NULL, "open the control socket", "out of memory");
	*s = (struct control){ .loop = l, .vm = vm, .fd = listen_fd };
	fcntl(listen_fd, F_SETFL, O_NONBLOCK);
	s->watch = loop_fd_add(l, listen_fd, EPOLLIN, on_listen, s);
	if (!s->watch) {
		free(s);
		return error_errno(e, errno, "raise the limit on open files", "open the control socket");
	}
	*out = s;
	return 0;
}

void control_free(struct control *s)
{
	if (!s)
		return;
	while (s->clients)
		client_close(s->clients);
	loop_fd_del(s->watch);
	free(s);
}

unsigned control_fds(struct control_call *call, int **fds)
{
	*fds = call->client->fds;
	return call->client->nfds;
}

/* --- answers --- */

static void call_end(struct control_call *call, char *line)
{
	struct client *c = call->client;

	if (c) {
		struct control_call **link = &c->calls;
		while (*link != call)
			link = &(*link)->next;
		*link = call->next;
		c->ncalls--;
		client_send(c, line);
	} else {
		free(line);
	}
	free(call);
}

void control_reply(struct control_call *call, json_t *result)
{
	call_end(call, control_result_encode(call->id, result ? result : json_object()));
}

void control_fail(struct control_call *call, int ret, const struct error *e)
{
	call_end(call, control_error_encode(call->id, ret < 0 ? -ret : EIO, e));
}

void control_progress(struct control_call *call, uint64_t done, uint64_t total)
{
	if (call->client)
		client_send(call->client, control_progress_encode(call->id, done, total));
}
