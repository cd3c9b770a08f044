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

static ssize_t send_some(int fd, const char *p, size_t n, const int *fds, unsigned nfds)
{
	union { char bytes[CMSG_SPACE(CONTROL_FDS_MAX * sizeof(int))]; struct cmsghdr align; } room = { { 0 } };
	struct iovec iov = { (char *)p, n };
	struct msghdr m = { .msg_iov = &iov, .msg_iovlen = 1 };

	if (nfds) {
		m.msg_control = room.bytes;
		m.msg_controllen = CMSG_SPACE(nfds * sizeof(int));
		*CMSG_FIRSTHDR(&m) = (struct cmsghdr){ .cmsg_len = CMSG_LEN(nfds * sizeof(int)), .cmsg_level = SOL_SOCKET,
						       .cmsg_type = SCM_RIGHTS };
		memcpy(CMSG_DATA(CMSG_FIRSTHDR(&m)), fds, nfds * sizeof(int));
	}
	return sendmsg(fd, &m, MSG_NOSIGNAL);
}

/* The descriptors go with the first byte. */
static int send_all(int fd, const char *p, size_t n, const int *fds, unsigned nfds, struct error *e)
{
	while (n) {
		ssize_t done = send_some(fd, p, n, fds, nfds);
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

/* One line, without its newline, into buf; what follows it stays behind it. */
static int line_read(int fd, char *buf, size_t *have, size_t *line, struct error *e)
{
	char *end;

	while (!(end = memchr(buf, '\n', *have))) {
		ssize_t n = *have < ANSWER_MAX ? recv(fd, buf + *have, ANSWER_MAX - *have, 0) : 0;
		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0)
			return error_errno(e, errno, "see vixen list whether it still runs", "hear from the VM");
		if (!n)
			return error_set(e, ECONNRESET, "see vixen list whether it still runs", "hear from the VM",
					 "it ended, or closed the connection");
		*have += (size_t)n;
	}
	*line = (size_t)(end - buf);
	return 0;
}

static int answers_read(int fd, char *buf, control_progress_fn *progress, void *opaque, json_t **result,
			struct error *e)
{
	struct control_answer a = { 0 };
	size_t have = 0, line = 0;

	for (;;) {
		int ret = line_read(fd, buf, &have, &line, e);
		if (!ret)
			ret = control_answer_decode(&a, buf, line, e);
		if (ret)
			return ret;
		if (a.result || a.err)
			break;
		if (progress)
			progress(opaque, a.done, a.total);
		have -= line + 1;
		memmove(buf, buf + line + 1, have);
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

struct question {
	const char *name;
	enum control_verb verb;
	const int *fds;
	unsigned nfds;
	control_progress_fn *progress;
	void *opaque;
};

static int ask(const struct question *q, json_t *arguments, json_t **result, struct error *e)
{
	char *line = control_request_encode(1, q->verb, arguments), *buf = malloc(ANSWER_MAX);
	int fd = -1, ret = line && buf ? 0 : error_set(e, ENOMEM, NULL, "ask the VM", "out of memory");

	if (!ret) {
		fd = runtime_connect(q->name, e);
		ret = fd < 0 ? fd : send_all(fd, line, strlen(line), q->fds, q->nfds, e);
	}
	if (!ret)
		ret = answers_read(fd, buf, q->progress, q->opaque, result, e);
	if (fd >= 0)
		close(fd);
	free(line);
	free(buf);
	return ret;
}

int control_ask(const char *name, enum control_verb verb, json_t *arguments, control_progress_fn *progress,
		void *opaque, json_t **result, struct error *e)
{
	const struct question q = { .name = name, .verb = verb, .progress = progress, .opaque = opaque };
	return ask(&q, arguments, result, e);
}

int control_ask_fds(const char *name, enum control_verb verb, json_t *arguments, const int *fds, unsigned nfds,
		    json_t **result, struct error *e)
{
	const struct question q = { .name = name, .verb = verb, .fds = fds, .nfds = nfds };
	return ask(&q, arguments, result, e);
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
