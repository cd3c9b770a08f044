/*
 * The watch is edge-triggered and never changed: a coroutine tries first, and waits only after EAGAIN, so no edge is
 * lost between the two.
 */
#include "block/nbd/socket.h"

#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

#include "block/nbd/tls.h"
#include "block/node.h"

#define AHEAD_BYTES 4096u
#define VECTORS 64

/* A coroutine may end and free the socket as soon as it runs: nothing of s is used after the first is woken. */
static void on_event(void *opaque, uint32_t events)
{
	struct nbd_sock *s = opaque;
	struct coroutines *co = s->co;
	struct co *reader = NULL, *writer = NULL;

	if (events & (EPOLLIN | EPOLLHUP | EPOLLERR | EPOLLRDHUP)) {
		reader = s->reader;
		s->reader = NULL;
	}
	if (events & (EPOLLOUT | EPOLLHUP | EPOLLERR)) {
		writer = s->writer;
		s->writer = NULL;
	}
	if (reader)
		co_wake(co, reader);
	if (writer)
		co_wake(co, writer);
}

static void on_deadline(void *opaque)
{
	struct nbd_sock *s = opaque;

	s->expired = true;
	nbd_sock_shutdown(s);
}

/* A peer that is gone without a word is noticed after some minutes. */
static void keep_alive(int fd)
{
	static const struct { int option, value; } tcp[] = {
		{ TCP_NODELAY, 1 }, { TCP_KEEPIDLE, 60 }, { TCP_KEEPINTVL, 15 }, { TCP_KEEPCNT, 4 },
		{ TCP_USER_TIMEOUT, 120000 },
	};
	int on = 1;

	setsockopt(fd, SOL_SOCKET, SO_KEEPALIVE, &on, sizeof(on));
	for (size_t i = 0; i < sizeof(tcp) / sizeof(*tcp); i++)
		setsockopt(fd, IPPROTO_TCP, tcp[i].option, &tcp[i].value, sizeof(int));
}

int nbd_sock_init(struct nbd_sock *s, struct loop *l, int fd)
{
	*s = (struct nbd_sock){ .fd = fd, .open = true, .co = loop_coroutines(l) };
	s->ahead = malloc(AHEAD_BYTES);
	s->timer = loop_timer_new(l, on_deadline, s);
	if (!s->co || !s->ahead || !s->timer)
		return -ENOMEM;
	if (fcntl(fd, F_SETFL, O_NONBLOCK) < 0)
		return -errno;
	keep_alive(fd);
	s->watch = loop_fd_add(l, fd, EPOLLIN | EPOLLOUT | EPOLLRDHUP | (uint32_t)EPOLLET, on_event, s);
	return s->watch ? 0 : -ENOMEM;
}

void nbd_sock_fini(struct nbd_sock *s)
{
	if (!s->open)
		return;
	ASSERT(!s->reader && !s->writer);
	loop_fd_del(s->watch);
	loop_timer_free(s->timer);
	close(s->fd);
	free(s->ahead);
	nbd_tls_end(s->tls);
	*s = (struct nbd_sock){ .fd = -1 };
}

/* The kernel reports the hang-up as an event: that wakes. */
void nbd_sock_shutdown(struct nbd_sock *s)
{
	if (!s->open)
		return;
	if (s->tls)
		nbd_tls_bye(s);
	shutdown(s->fd, SHUT_RDWR);
}

void nbd_sock_deadline(struct nbd_sock *s, uint64_t ns)
{
	if (ns)
		loop_timer_set(s->timer, clock_now_ns() + ns);
	else
		loop_timer_cancel(s->timer);
}

/* --- waiting --- */

static bool again(ssize_t n)
{
	return n < 0 && (errno == EAGAIN || errno == EINTR);
}

static void wait_in(struct nbd_sock *s)
{
	if (errno == EINTR)
		return;
	ASSERT(!s->reader);
	s->reader = co_self(s->co);
	co_wait(s->co);
}

static void wait_out(struct nbd_sock *s)
{
	if (errno == EINTR)
		return;
	ASSERT(!s->writer);
	s->writer = co_self(s->co);
	co_wait(s->co);
}

static int failed(const struct nbd_sock *s, ssize_t n)
{
	if (s->expired)
		return -ETIMEDOUT;
	return n ? -errno : -ECONNRESET;
}

int nbd_sock_wait_connected(struct nbd_sock *s)
{
	int err = 0;
	socklen_t len = sizeof(err);

	errno = EAGAIN;
	wait_out(s);
	if (s->expired)
		return -ETIMEDOUT;
	return getsockopt(s->fd, SOL_SOCKET, SO_ERROR, &err, &len) ? -errno : -err;
}

/* --- reading --- */

static size_t take_ahead(struct nbd_sock *s, void *buf, size_t len)
{
	size_t have = s->ahead_end - s->ahead_at;

	if (len > have)
		len = have;
	memcpy(buf, s->ahead + s->ahead_at, len);
	s->ahead_at += len;
	return len;
}

bool nbd_sock_has_ahead(const struct nbd_sock *s)
{
	return s->ahead_at < s->ahead_end;
}

ssize_t nbd_sock_raw_recv(struct nbd_sock *s, void *buf, size_t len)
{
	for (;;) {
		ssize_t n = recv(s->fd, buf, len, 0);

		if (n > 0)
			return n;
		if (!again(n))
			return failed(s, n);
		wait_in(s);
	}
}

static ssize_t some(struct nbd_sock *s, void *buf, size_t len)
{
	return s->tls ? nbd_tls_read(s, buf, len) : nbd_sock_raw_recv(s, buf, len);
}

static int fill_ahead(struct nbd_sock *s)
{
	ssize_t n = some(s, s->ahead, AHEAD_BYTES);

	if (n < 0)
		return (int)n;
	s->ahead_at = 0;
	s->ahead_end = (size_t)n;
	return 0;
}

static int read_direct(struct nbd_sock *s, uint8_t *buf, size_t len)
{
	while (len) {
		ssize_t n = some(s, buf, len);

		if (n < 0)
			return (int)n;
		buf += n;
		len -= (size_t)n;
	}
	return 0;
}

int nbd_sock_read(struct nbd_sock *s, void *buf, size_t len)
{
	uint8_t *to = buf;

	if (!len)
		return 0;	/* buf may be NULL */
	for (;;) {
		size_t n = take_ahead(s, to, len);
		int ret;

		to += n;
		len -= n;
		if (!len)
			return 0;
		if (len >= AHEAD_BYTES)
			return read_direct(s, to, len);
		ret = fill_ahead(s);
		if (ret)
			return ret;
	}
}

int nbd_sock_readv(struct nbd_sock *s, const struct iovec *iov, int iovcnt)
{
	int ret = 0;

	for (int i = 0; i < iovcnt && !ret; i++)
		if (iov[i].iov_len)
			ret = nbd_sock_read(s, iov[i].iov_base, iov[i].iov_len);
	return ret;
}

int nbd_sock_skip(struct nbd_sock *s, uint64_t len)
{
	uint8_t waste[2048];
	int ret = 0;

	while (len && !ret) {
		size_t n = len < sizeof(waste) ? (size_t)len : sizeof(waste);

		ret = nbd_sock_read(s, waste, n);
		len -= n;
	}
	return ret;
}

/* --- writing --- */

/* Advances by n what is left to write. */
static void consume(struct iovec **iov, int *cnt, size_t n)
{
	while (*cnt && n >= (*iov)->iov_len) {
		n -= (*iov)->iov_len;
		(*iov)++;
		(*cnt)--;
	}
	if (*cnt) {
		(*iov)->iov_base = (uint8_t *)(*iov)->iov_base + n;
		(*iov)->iov_len -= n;
	}
}

static int write_all(struct nbd_sock *s, struct iovec *iov, int cnt)
{
	while (cnt) {
		struct msghdr m = { .msg_iov = iov, .msg_iovlen = (size_t)cnt };
		ssize_t n = sendmsg(s->fd, &m, MSG_NOSIGNAL);

		if (n >= 0)
			consume(&iov, &cnt, (size_t)n);
		else if (again(n))
			wait_out(s);
		else
			return failed(s, n);
	}
	return 0;
}

int nbd_sock_raw_send(struct nbd_sock *s, const void *buf, size_t len)
{
	struct iovec iov = { (void *)buf, len };

	return write_all(s, &iov, 1);
}

void nbd_sock_raw_try(struct nbd_sock *s, const void *buf, size_t len)
{
	if (send(s->fd, buf, len, MSG_NOSIGNAL | MSG_DONTWAIT) < 0)
		return;		/* it was a courtesy */
}

/* The head goes into the record of the first piece of data: small replies are one record. */
static int write_tls(struct nbd_sock *s, const void *head, size_t len, const struct iovec *iov, int iovcnt)
{
	uint8_t first[1024];
	size_t n = 0;
	int ret;

	if (iovcnt && len < sizeof(first)) {
		n = iov->iov_len < sizeof(first) - len ? iov->iov_len : sizeof(first) - len;
		memcpy(first, head, len);
		memcpy(first + len, iov->iov_base, n);
		head = first;
	}
	ret = nbd_tls_write(s, head, len + n);
	for (int i = 0; i < iovcnt && !ret; i++, n = 0)
		ret = nbd_tls_write(s, (uint8_t *)iov[i].iov_base + n, iov[i].iov_len - n);
	return ret;
}

int nbd_sock_write(struct nbd_sock *s, const void *head, size_t len, const struct iovec *iov, int iovcnt)
{
	struct iovec part[VECTORS] = { { (void *)head, len } };
	int n = 1, ret;

	if (s->tls)
		return write_tls(s, head, len, iov, iovcnt);
	do {
		while (n < VECTORS && iovcnt) {
			part[n++] = *iov++;
			iovcnt--;
		}
		ret = write_all(s, part, n);
		n = 0;
	} while (!ret && iovcnt);
	return ret;
}
