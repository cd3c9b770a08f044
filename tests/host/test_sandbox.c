/* The sandbox: each case in a child of its own, which tries what it must not be able to do. */
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/ptrace.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#include "host/sandbox.h"

static char granted[] = "/tmp/vixen-sandbox-XXXXXX", other[] = "/tmp/vixen-sandbox-XXXXXX";

/* Runs fn confined, in a child: its exit status as from waitpid(). */
static int confined(int (*fn)(void))
{
	int status;
	pid_t pid = fork();

	if (!pid) {
		struct sandbox s = { .readable = { granted } };
		struct error e = { 0 };

		if (sandbox_enter(&s, &e)) {
			error_print(&e);
			_exit(99);
		}
		_exit(fn());
	}
	assert_int_equal(waitpid(pid, &status, 0), pid);
	return status;
}

static void killed(int (*fn)(void))
{
	int status = confined(fn);

	assert_true(WIFSIGNALED(status));
	assert_int_equal(WTERMSIG(status), SIGSYS);
}

static void lives(int (*fn)(void))
{
	int status = confined(fn);

	assert_true(WIFEXITED(status));
	assert_int_equal(WEXITSTATUS(status), 0);
}

static int do_exec(void) { return execl("/bin/true", "true", NULL); }
static int do_fork(void) { return fork() == 0 ? 0 : 1; }
static int do_ptrace(void) { return (int)ptrace(PTRACE_ATTACH, getppid(), NULL, NULL); }
static int do_kill(void) { return kill(getppid(), 0); }
static int do_create(void) { return open("/tmp/vixen-sandbox-made", O_WRONLY | O_CREAT, 0600) < 0; }
static int do_write(void) { return open(granted, O_RDWR) < 0; }
static int do_unlink(void) { return unlink(granted); }
static int do_type(void) { return ioctl(0, TIOCSTI, "x"); }
static int do_type_high(void) { return (int)syscall(SYS_ioctl, 0, TIOCSTI | 1ul << 32, "x"); }
static int do_uring(void) { char params[256] = { 0 }; return (int)syscall(SYS_io_uring_setup, 8, params); }
static int do_setuid(void) { return setuid(0); }
static int do_mount(void) { return (int)syscall(SYS_mount, "none", "/tmp", "tmpfs", 0, NULL); }
static int do_vm_readv(void) { return (int)syscall(SYS_process_vm_readv, getppid(), NULL, 0, NULL, 0, 0); }

static void forbidden_calls_kill(void **state)
{
	int (*const tries[])(void) = {
		do_exec, do_fork, do_ptrace, do_kill, do_create, do_write, do_unlink, do_type, do_type_high, do_uring,
		do_setuid, do_mount, do_vm_readv,
	};

	for (size_t i = 0; i < sizeof(tries) / sizeof(tries[0]); i++)
		killed(tries[i]);
	assert_int_not_equal(access("/tmp/vixen-sandbox-made", F_OK), 0);
	assert_int_equal(access(granted, F_OK), 0);
}

static int do_read_granted(void) { return open(granted, O_RDONLY) < 0; }
static int do_read_other(void) { return !(open(other, O_RDONLY) < 0 && errno == EACCES); }

static void only_named_files_open(void **state)
{
	lives(do_read_granted);
	if (!sandbox_landlock_version()) {
		print_message("this kernel has no Landlock: reading is not confined here\n");
		return;
	}
	lives(do_read_other);
}

static void *thread_main(void *p)
{
	*(int *)p = open(granted, O_RDONLY) >= 0;
	return NULL;
}

/* What the VMM lives from goes on: threads, executable memory, sockets, vectors. */
static int do_work(void)
{
	pthread_t t;
	int seen = 0, fd = memfd_create("x", MFD_CLOEXEC), pair[2];
	char *code = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	if (fd < 0 || ftruncate(fd, 4096) || code == MAP_FAILED)
		return 1;
	code[0] = (char)0xc3;
	if (mprotect(code, 4096, PROT_READ | PROT_EXEC))
		return 2;
	((void (*)(void))(uintptr_t)code)();
	if (pthread_create(&t, NULL, thread_main, &seen) || pthread_join(t, NULL) || !seen)
		return 3;
	if (socket(AF_INET, SOCK_STREAM, 0) < 0 || socketpair(AF_UNIX, SOCK_STREAM, 0, pair))
		return 4;
	return write(pair[0], "x", 1) == 1 ? 0 : 5;
}

static void work_goes_on(void **state) { lives(do_work); }

/* A line of the child's own /proc/self/status, opened before it was confined. */
static FILE *status_file;
static bool status_says(const char *line)
{
	char buf[256];

	rewind(status_file);
	while (fgets(buf, sizeof(buf), status_file))
		if (!strcmp(buf, line))
			return true;
	return false;
}

static int do_status(void)
{
	return !(status_says("NoNewPrivs:\t1\n") && status_says("Seccomp:\t2\n") &&
		 status_says("CapEff:\t0000000000000000\n") && status_says("CapPrm:\t0000000000000000\n"));
}

static void privileges_are_gone(void **state)
{
	int status;
	pid_t pid = fork();

	if (!pid) {
		struct sandbox s = { 0 };

		status_file = fopen("/proc/self/status", "r");
		_exit(!status_file || sandbox_enter(&s, NULL) ? 99 : do_status());
	}
	assert_int_equal(waitpid(pid, &status, 0), pid);
	assert_int_equal(status, 0);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(forbidden_calls_kill), cmocka_unit_test(only_named_files_open),
		cmocka_unit_test(work_goes_on), cmocka_unit_test(privileges_are_gone),
	};

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
	return 77;	/* these builds go without it (host/sandbox.h) */
#endif
	close(mkstemp(granted));
	close(mkstemp(other));
	int ret = cmocka_run_group_tests(tests, NULL, NULL);
	unlink(granted);
	unlink(other);
	return ret;
}
