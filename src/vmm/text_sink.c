#include "vmm/text_sink.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

#include "host/loop.h"

#define SECOND_NS 1000000000ull

struct text_sink {
	int fd;
	bool own;
	struct text_sink_limits limits;
	pthread_mutex_t lock;		/* all below */
	uint64_t bytes, second_ns, lines, left_out;
	bool ended;
};

static struct text_sink *sink_new(int fd, bool own, const struct text_sink_limits *l)
{
	struct text_sink *s = calloc(1, sizeof *s);

	if (!s)
		return NULL;
	s->fd = fd;
	s->own = own;
	s->limits = *l;
	pthread_mutex_init(&s->lock, NULL);
	return s;
}

static int sink_made(struct text_sink **out, int fd, bool own, const struct text_sink_limits *l, struct error *e)
{
	*out = sink_new(fd, own, l);
	if (*out)
		return 0;
	if (own)
		close(fd);
	return error_set(e, ENOMEM, NULL, "start the VM", "out of memory");
}

int text_sink_open(struct text_sink **out, const char *path, const struct text_sink_limits *l, const char *what,
		   struct error *e)
{
	int fd = STDERR_FILENO;

	if (path)
		fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC | O_NOCTTY, 0644);
	if (fd < 0)
		return error_errno(e, errno, "check the path and its permissions", "open %s '%s'", what, path);
	return sink_made(out, fd, path != NULL, l, e);
}

/* A map of an older process with our number is ours to remove, if its owner is us. */
static void perf_remove_stale(const char *path)
{
	struct stat st;

	if (!lstat(path, &st) && S_ISREG(st.st_mode) && st.st_uid == geteuid())
		unlink(path);
}

int text_sink_open_perf(struct text_sink **out, const struct text_sink_limits *l, struct error *e)
{
	char path[64];
	int fd;

	snprintf(path, sizeof path, "/tmp/perf-%d.map", (int)getpid());
	perf_remove_stale(path);
	fd = open(path, O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0600);
	if (fd < 0)
		return error_errno(e, errno, "remove what is there", "make '%s' for perf", path);
	return sink_made(out, fd, true, l, e);
}

/* A reader that is slow makes us wait; one that is gone, or a full disk, ends it. */
static void sink_write(struct text_sink *s, const char *p, size_t n)
{
	while (n && !s->ended) {
		ssize_t done = write(s->fd, p, n);
		if (done < 0 && (errno == EINTR || errno == EAGAIN))
			continue;
		if (done <= 0) {
			s->ended = true;
			return;
		}
		s->bytes += (uint64_t)done;
		p += done;
		n -= (size_t)done;
	}
}

static void say_left_out(struct text_sink *s)
{
	char text[64];

	if (s->left_out)
		sink_write(s, text, (size_t)snprintf(text, sizeof text, "... %" PRIu64 " lines left out\n", s->left_out));
	s->left_out = 0;
}

void text_sink_close(struct text_sink *s)
{
	if (!s)
		return;
	say_left_out(s);
	if (s->own)
		close(s->fd);
	pthread_mutex_destroy(&s->lock);
	free(s);
}

static bool rate_passes(struct text_sink *s)
{
	uint64_t now;

	if (!s->limits.lines_per_s || s->lines++ < s->limits.lines_per_s)
		return true;
	now = clock_now_ns();
	if (now - s->second_ns < SECOND_NS) {
		s->left_out++;
		return false;
	}
	s->second_ns = now;
	s->lines = 1;
	say_left_out(s);
	return true;
}

void text_sink_line(void *sink, const char *line, size_t n)
{
	static const char end[] = "... the limit is reached\n";
	struct text_sink *s = sink;

	pthread_mutex_lock(&s->lock);
	if (!s->ended && rate_passes(s)) {
		if (s->limits.bytes_max && s->bytes + n > s->limits.bytes_max) {
			sink_write(s, end, sizeof end - 1);
			s->ended = true;
		}
		sink_write(s, line, n);
	}
	pthread_mutex_unlock(&s->lock);
}
