/* The control socket: requests, answers, and clients that do not keep to the language. */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <cmocka.h>

#include "engine/engine.h"
#include "host/loop.h"
#include "vmm/control.h"
#include "vmm/vm_private.h"

struct fixture {
	struct vm_config config;
	struct vm vm;
	struct sockaddr_un address;
	char dir[32];
	int listen;
};

static int setup(void **state)
{
	struct fixture *f = calloc(1, sizeof *f);
	struct error e;

	strcpy(f->dir, "/tmp/vixen-test-XXXXXX");
	assert_non_null(mkdtemp(f->dir));
	f->config = (struct vm_config){ .engine = "soft", .cpus = 2, .memory_bytes = 64 << 20 };
	f->vm = (struct vm){ .config = &f->config, .engine = &engine_soft, .loop = loop_new(), .start_ns = clock_now_ns() };
	f->address.sun_family = AF_UNIX;
	snprintf(f->address.sun_path, sizeof f->address.sun_path, "%s/sock", f->dir);
	f->listen = socket(AF_UNIX, SOCK_STREAM, 0);
	assert_false(bind(f->listen, (struct sockaddr *)&f->address, sizeof f->address));
	assert_false(listen(f->listen, 64));
	assert_int_equal(control_new(&f->vm.control, f->vm.loop, f->listen, &f->vm, &e), 0);
	*state = f;
	return 0;
}

static int teardown(void **state)
{
	struct fixture *f = *state;

	control_free(f->vm.control);
	loop_free(f->vm.loop);
	close(f->listen);
	unlink(f->address.sun_path);
	rmdir(f->dir);
	free(f);
	return 0;
}

static void wake(void *opaque) { }

/* Serves what has come, without waiting. */
static void serve(struct fixture *f)
{
	for (unsigned i = 0; i < 8; i++) {
		loop_post(f->vm.loop, wake, NULL);
		loop_step(f->vm.loop);
	}
}

static int client(struct fixture *f)
{
	int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0);

	assert_false(connect(fd, (struct sockaddr *)&f->address, sizeof f->address));
	serve(f);
	return fd;
}

static ssize_t say(struct fixture *f, int fd, const char *text, size_t len)
{
	ssize_t n = send(fd, text, len, MSG_NOSIGNAL);

	serve(f);
	return n;
}

/* The next answers, as one text; "" when there are none, NULL when the VM has hung up. */
static const char *hear(struct fixture *f, int fd)
{
	static char buf[CONTROL_LINE_MAX];
	ssize_t n;

	serve(f);
	n = recv(fd, buf, sizeof buf - 1, 0);
	if (n == 0 || (n < 0 && errno == ECONNRESET))
		return NULL;
	buf[n > 0 ? n : 0] = 0;
	return buf;
}

static void ask(struct fixture *f, int fd, const char *text) { say(f, fd, text, strlen(text)); }

static void test_verbs(void **state)
{
	struct fixture *f = *state;
	struct control_answer a;
	int fd = client(f);

	ask(f, fd, "{\"id\":7,\"verb\":\"status\"}\n");
	const char *line = hear(f, fd);
	assert_int_equal(control_answer_decode(&a, line, strlen(line), NULL), 0);
	assert_int_equal(a.id, 7);
	assert_string_equal(json_string_value(json_object_get(a.result, "state")), "running");
	assert_int_equal(json_integer_value(json_object_get(a.result, "cpus")), 2);
	control_answer_fini(&a);
	ask(f, fd, "{\"id\":8,\"verb\":\"pause\"}\n{\"id\":9,\"verb\":\"status\",\"arguments\":{}}\n");
	line = hear(f, fd);
	assert_non_null(strstr(line, "\"id\":8,\"result\":{}"));
	assert_non_null(strstr(line, "\"state\":\"paused\""));
	assert_true(f->vm.paused);
	ask(f, fd, "{\"id\":1,\"verb\":\"res");	/* in pieces */
	assert_string_equal(hear(f, fd), "");
	ask(f, fd, "ume\"}\n");
	assert_string_equal(hear(f, fd), "{\"id\":1,\"result\":{}}\n");
	assert_false(f->vm.paused);
	ask(f, fd, "{\"id\":2,\"verb\":\"quit\"}\n");
	assert_string_equal(hear(f, fd), "{\"id\":2,\"result\":{}}\n");
	assert_true(f->vm.interrupted);
	close(fd);
}

static void test_unknown_verb(void **state)
{
	struct fixture *f = *state;
	struct control_answer a;
	int fd = client(f);

	ask(f, fd, "{\"id\":3,\"verb\":\"explode\"}\n");
	const char *line = hear(f, fd);
	assert_int_equal(control_answer_decode(&a, line, strlen(line), NULL), 0);
	assert_int_equal(a.id, 3);
	assert_int_equal(a.err, ENOTSUP);
	assert_true(a.error.why[0] && a.error.todo[0]);
	ask(f, fd, "{\"id\":4,\"verb\":\"pause\"}\n");		/* the connection lives */
	assert_non_null(strstr(hear(f, fd), "\"id\":4"));
	close(fd);
}

static void test_no_requests(void **state)
{
	static const char *const lines[] = { "\n", "hello\n", "{}\n", "[1,2]\n", "{\"id\":1}\n", "{\"verb\":\"status\"}\n",
		"{\"id\":\"1\",\"verb\":\"status\"}\n", "{\"id\":1,\"verb\":7}\n", "{\"id\":1,\"verb\":\"status\",\"arguments\":[]}\n",
		"{\"id\":1,\"id\":2,\"verb\":\"status\"}\n", "\xff\xfe\n" };
	struct fixture *f = *state;

	for (unsigned i = 0; i < sizeof lines / sizeof *lines; i++) {
		int fd = client(f);
		ask(f, fd, lines[i]);
		assert_null(hear(f, fd));
		close(fd);
	}
	assert_false(f->vm.interrupted || f->vm.paused);
}

static void test_endless_line(void **state)
{
	struct fixture *f = *state;
	int fd = client(f);
	char *much = malloc(CONTROL_LINE_MAX);

	memset(much, ' ', CONTROL_LINE_MAX);
	for (unsigned i = 0; i < 4 && say(f, fd, much, CONTROL_LINE_MAX) > 0; i++)
		;
	assert_null(hear(f, fd));
	free(much);
	close(fd);
}

/* A client that asks and never reads is cut off; the VM keeps at most 256 KiB for it. */
static void test_deaf_client(void **state)
{
	struct fixture *f = *state;
	int fd = client(f), other;
	ssize_t n = 0;

	for (unsigned i = 0; i < 100000 && (n >= 0 || errno == EAGAIN); i++)
		n = say(f, fd, "{\"id\":1,\"verb\":\"status\"}\n", 25);
	assert_true(n < 0 && errno != EAGAIN);
	other = client(f);
	ask(f, other, "{\"id\":1,\"verb\":\"status\"}\n");
	assert_non_null(strstr(hear(f, other), "result"));
	close(other);
	close(fd);
}

static void test_many_clients(void **state)
{
	struct fixture *f = *state;
	int fd[20];

	for (unsigned i = 0; i < 20; i++)
		fd[i] = client(f);
	for (unsigned i = 0; i < 20; i++) {
		ask(f, fd[i], "{\"id\":1,\"verb\":\"status\"}\n");
		if (i < 16)
			assert_non_null(strstr(hear(f, fd[i]), "result"));
		else
			assert_null(hear(f, fd[i]));
		close(fd[i]);
	}
	serve(f);
	fd[0] = client(f);
	ask(f, fd[0], "{\"id\":1,\"verb\":\"status\"}\n");
	assert_non_null(hear(f, fd[0]));
	close(fd[0]);
}

/* Any bytes: no crash, and the next client is served. */
static void test_mutations(void **state)
{
	static const char request[] = "{\"id\":1,\"verb\":\"status\",\"arguments\":{\"a\":[1,2,{\"b\":null}]}}\n";
	struct fixture *f = *state;
	uint32_t seed = 1;

	for (unsigned i = 0; i < 2000; i++) {
		char text[sizeof request];
		int fd = client(f);
		memcpy(text, request, sizeof text);
		for (unsigned k = 0; k < 1 + i % 4; k++) {
			seed = seed * 1664525u + 1013904223u;
			text[(seed >> 8) % (sizeof text - 2)] = (char)(seed >> 24);
		}
		say(f, fd, text, sizeof text - 1);
		close(fd);
		serve(f);
	}
	int fd = client(f);
	ask(f, fd, "{\"id\":1,\"verb\":\"status\"}\n");
	assert_non_null(strstr(hear(f, fd), "result"));
	close(fd);
}

static void test_answers(void **state)
{
	static const char *const bad[] = { "", "x", "{}", "{\"id\":1}", "{\"id\":1,\"error\":{}}", "{\"id\":1,\"progress\":{\"done\":-1,\"total\":2}}",
		"{\"id\":1,\"error\":{\"errno\":0,\"what\":\"\",\"why\":\"\",\"todo\":\"\"}}" };
	struct control_answer a;
	struct error e = { .what = "open '\xff'", .why = "no", .todo = "" };
	char *line;

	for (unsigned i = 0; i < sizeof bad / sizeof *bad; i++)
		assert_int_equal(control_answer_decode(&a, bad[i], strlen(bad[i]), NULL), -EPROTO);
	line = control_error_encode(5, ENOENT, &e);
	assert_int_equal(control_answer_decode(&a, line, strlen(line), NULL), 0);
	assert_int_equal(a.err, ENOENT);
	assert_string_equal(a.error.what, "open '?'");
	free(line);
	line = control_progress_encode(6, 10, 40);
	assert_int_equal(control_answer_decode(&a, line, strlen(line), NULL), 0);
	assert_true(!a.err && !a.result && a.done == 10 && a.total == 40);
	free(line);
}

static void ask_with(struct fixture *f, int fd, const char *text, const int *fds, unsigned n)
{
	union { char bytes[CMSG_SPACE(8 * sizeof(int))]; struct cmsghdr align; } room = { { 0 } };
	struct iovec iov = { (char *)text, strlen(text) };
	struct msghdr m = { .msg_iov = &iov, .msg_iovlen = 1, .msg_control = room.bytes,
			    .msg_controllen = CMSG_SPACE(n * sizeof(int)) };

	*CMSG_FIRSTHDR(&m) = (struct cmsghdr){ CMSG_LEN(n * sizeof(int)), SOL_SOCKET, SCM_RIGHTS };
	memcpy(CMSG_DATA(CMSG_FIRSTHDR(&m)), fds, n * sizeof(int));
	assert_int_equal(sendmsg(fd, &m, 0), iov.iov_len);
	serve(f);
}

/* Nobody has the other end of a pipe any more. */
static void assert_closed(int read_end)
{
	char byte;

	assert_int_equal(read(read_end, &byte, 1), 0);
	close(read_end);
}

/* Descriptors that a handler does not keep are closed, also those that come for nothing. */
static void test_descriptors(void **state)
{
	static const char *const lines[] = {
		"{\"id\":1,\"verb\":\"status\"}\n", "{\"id\":1,\"verb\":\"no\"}\n", "nothing\n",
		"{\"id\":1,\"verb\":\"disk_attach\"}\n",
		"{\"id\":1,\"verb\":\"disk_attach\",\"arguments\":{\"disk\":{\"path\":\"x\"}}}\n",
		"{\"id\":1,\"verb\":\"disk_attach\",\"arguments\":{\"disk\":{\"path\":\"x\"},\"files\":[1]}}\n",
		"{\"id\":1,\"verb\":\"disk_attach\",\"arguments\":{\"disk\":{\"path\":\"x\"},\"files\":[\"y\"]}}\n",
		"{\"id\":1,\"verb\":\"disk_attach\",\"arguments\":{\"disk\":{\"path\":\"x\"},\"files\":[\"x\"]}}\n",
		"{\"id\":1,\"verb\":\"disk_attach\",\"arguments\":{\"disk\":{\"path\":\"x\",\"bus\":\"q\"},\"files\":[\"x\"]}}\n",
		"{\"id\":1,\"verb\":\"disk_backup\",\"arguments\":{\"disk\":\"0\",\"files\":[]}}\n",
		"{\"id\":1,\"verb\":\"disk_backup\",\"arguments\":{\"disk\":\"0\",\"files\":[1]}}\n",
		"{\"id\":1,\"verb\":\"disk_backup\",\"arguments\":{\"disk\":\"0\",\"files\":[\"x\"]}}\n",
		"{\"id\":1,\"verb\":\"disk_detach\",\"arguments\":{\"name\":\"disk0\"}}\n",
		"{\"id\":1,\"verb\":\"disk_detach\"}\n", "half a line",
	};
	struct fixture *f = *state;

	for (unsigned i = 0; i < sizeof lines / sizeof *lines; i++) {
		int fd = client(f), ends[2];

		assert_int_equal(pipe(ends), 0);
		ask_with(f, fd, lines[i], &ends[1], 1);
		close(ends[1]);
		if (i == 0)
			assert_non_null(strstr(hear(f, fd), "running"));
		if (i > 2 && i < 14)
			assert_non_null(strstr(hear(f, fd), "error"));
		close(fd);
		serve(f);
		assert_closed(ends[0]);
	}
	assert_int_equal(f->vm.disk_jobs, 0);
}

static void test_attach(void **state)
{
	struct fixture *f = *state;
	char path[] = "/tmp/vixen-disk-XXXXXX";
	int fd = client(f), image = mkstemp(path);

	assert_int_equal(ftruncate(image, 1 << 20), 0);
	ask_with(f, fd, "{\"id\":1,\"verb\":\"disk_attach\",\"arguments\":{\"disk\":{\"path\":\"/nowhere\",\"format\":"
			"\"raw\"},\"files\":[\"/nowhere\"]}}\n", &image, 1);
	close(image);
	unlink(path);
	assert_non_null(strstr(hear(f, fd), "disk0"));
	ask(f, fd, "{\"id\":2,\"verb\":\"status\"}\n");
	assert_non_null(strstr(hear(f, fd), "/nowhere"));
	ask(f, fd, "{\"id\":3,\"verb\":\"disk_detach\",\"arguments\":{\"name\":\"disk0\"}}\n");
	assert_non_null(strstr(hear(f, fd), "error"));		/* there is no board it could leave */
	close(fd);
	serve(f);
	disks_close(&f->vm);
}

int main(void)
{
#define T(n) cmocka_unit_test_setup_teardown(n, setup, teardown)
	const struct CMUnitTest tests[] = { T(test_verbs), T(test_unknown_verb), T(test_no_requests), T(test_endless_line),
					    T(test_deaf_client), T(test_many_clients), T(test_descriptors), T(test_attach),
					    T(test_mutations),
					    cmocka_unit_test(test_answers) };
	return cmocka_run_group_tests(tests, NULL, NULL);
}
