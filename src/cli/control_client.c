#include "cli/control_client.h"

#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "cli/runtime.h"
#include "host/loop.h"

/* An answer may have any length up to what the VM lets lie unread. */
#define ANSWER_MAX (256u << 10)

#define ASK_ID 1
#define END_ID 2

struct asking {
	const struct control_want *w;
	int fd;
	bool ending;		/* the VM has been asked to end it */
	char *buf;
	size_t have;
};

/* The files go with the first byte. */
static int send_all(int fd, const char *p, size_t n, const int *fds, unsigned nfds, struct error *e)
{
	union { struct cmsghdr align; char room[CMSG_SPACE(CONTROL_FDS_MAX * sizeof(int))]; } control = { 0 };
	while (n) {
		struct iovec iov = { (void *)p, n };
		struct msghdr m = { .msg_iov = &iov, .msg_iovlen = 1 };
		if (nfds) {
			m.msg_control = &control;
			m.msg_controllen = CMSG_SPACE(nfds * sizeof(int));
			struct cmsghdr *h = CMSG_FIRSTHDR(&m);
			*h = (struct cmsghdr){ CMSG_LEN(nfds * sizeof(int)), SOL_SOCKET, SCM_RIGHTS };
			memcpy(CMSG_DATA(h), fds, nfds * sizeof(int));
		}
		ssize_t done = sendmsg(fd, &m, MSG_NOSIGNAL);
		if (done < 0 && errno == EINTR)
			continue;
		if (done < 0)
			return error_errno(e, errno, "see vixen list whether it still runs", "ask the VM");
		nfds = 0;
		p += done;
		n -= (size_t)done;
	}
	return 0;
}

static int request_send(int fd, json_int_t id, enum control_verb v, json_t *arguments, const int *fds, unsigned nfds,
			struct error *e)
{
	char *line = control_request_encode(id, v, arguments);
	int ret = line ? send_all(fd, line, strlen(line), fds, nfds, e)
		       : error_set(e, ENOMEM, NULL, "ask the VM", "out of memory");
	free(line);
	return ret;
}

/* Something has come; an interruption is passed on meanwhile. */
static int wait_readable(struct asking *a, struct error *e)
{
	int ret = 0;
	while (!ret) {
		struct pollfd p[2] = { { .fd = a->fd, .events = POLLIN },
				       { .fd = a->ending ? -1 : a->w->interrupt_fd, .events = POLLIN } };
		if (poll(p, 2, -1) < 0 || p[0].revents) {
			if (p[0].revents)
				break;
			continue;
		}
		a->ending = true;
		if (a->w->interrupted)
			*a->w->interrupted = true;
		ret = request_send(a->fd, END_ID, a->w->end_verb, json_incref(a->w->end_arguments), NULL, 0, e);
	}
	return ret;
}

/* One line, without its newline, into buf; what follows it stays behind it. */
static int line_read(struct asking *a, size_t *line, struct error *e)
{
	char *end;

	while (!(end = memchr(a->buf, '\n', a->have))) {
		int ret = wait_readable(a, e);
		if (ret)
			return ret;
		ssize_t n = a->have < ANSWER_MAX ? recv(a->fd, a->buf + a->have, ANSWER_MAX - a->have, 0) : 0;
		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0)
			return error_errno(e, errno, "see vixen list whether it still runs", "hear from the VM");
		if (!n)
			return error_set(e, ECONNRESET, "see vixen list whether it still runs", "hear from the VM",
					 "it ended, or closed the connection");
		a->have += (size_t)n;
	}
	*line = (size_t)(end - a->buf);
	return 0;
}

static int answers_read(struct asking *k, json_t **result, struct error *e)
{
	struct control_answer a = { 0 };
	size_t line = 0;

	for (;;) {
		int ret = line_read(k, &line, e);
		if (!ret)
			ret = control_answer_decode(&a, k->buf, line, e);
		if (ret)
			return ret;
		if (a.id == ASK_ID && (a.result || a.err))
			break;
		if (a.id == ASK_ID && k->w->progress)
			k->w->progress(k->w->opaque, a.done, a.total);
		control_answer_fini(&a);
		k->have -= line + 1;
		memmove(k->buf, k->buf + line + 1, k->have);
	}
	if (a.err) {
		if (e)
			*e = a.error;
		return -a.err;
	}
	if (result)
		*result = json_incref(a.result);
	control_answer_fini(&a);
	return 0;
}

int control_ask_for(const char *name, const struct control_want *w, json_t **result, struct error *e)
{
	struct asking a = { .w = w, .fd = -1, .buf = malloc(ANSWER_MAX) };
	int ret = a.buf ? 0 : error_set(e, ENOMEM, NULL, "ask the VM", "out of memory");

	if (!ret) {
		a.fd = runtime_connect(name, e);
		ret = a.fd < 0 ? a.fd : 0;
	}
	if (!ret)
		ret = request_send(a.fd, ASK_ID, w->verb, json_incref(w->arguments), w->fds, w->nfds, e);
	if (!ret)
		ret = answers_read(&a, result, e);
	if (a.fd >= 0)
		close(a.fd);
	json_decref(w->arguments);
	free(a.buf);
	return ret;
}

int control_ask(const char *name, enum control_verb verb, json_t *arguments, control_progress_fn *progress,
		void *opaque, json_t **result, struct error *e)
{
	return control_ask_for(name, &(struct control_want){ .verb = verb, .arguments = arguments, .interrupt_fd = -1,
							      .progress = progress, .opaque = opaque }, result, e);
}

int control_ask_fds(const char *name, enum control_verb verb, json_t *arguments, const int *fds, unsigned nfds,
		    json_t **result, struct error *e)
{
	return control_ask_for(name, &(struct control_want){ .verb = verb, .arguments = arguments, .fds = fds, .nfds = nfds,
							      .interrupt_fd = -1 }, result, e);
}

bool control_wait_end(const char *name, unsigned timeout_s)
{
	uint64_t deadline = clock_now_ns() + timeout_s * 1000000000ull;
	int fd = runtime_connect(name, NULL);
	char byte;

	if (fd < 0)
		return true;
	for (;;) {
		uint64_t now = clock_now_ns();
		struct pollfd p = { .fd = fd, .events = POLLIN };
		if (now >= deadline)
			break;
		if (poll(&p, 1, (int)((deadline - now) / 1000000) + 1) > 0 && recv(fd, &byte, 1, 0) == 0) {
			close(fd);
			return true;
		}
	}
	close(fd);
	return false;
}
