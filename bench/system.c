/* Workloads that are mostly the kernel's: system calls, processes, memory management, files. */
#include "workloads.h"

#include <fcntl.h>
#include <sched.h>
#include <stdio.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

static uint64_t syscalls(void)
{
	pid_t pid = getpid();
	uint64_t same = 0;
	for (int i = 0; i < 50000; i++)
		same += syscall(SYS_getpid) == pid;
	return same;
}

static uint64_t forkexec(void)
{
	uint64_t sum = 0;
	for (int i = 0; i < 25; i++) {
		int st;
		pid_t p = fork();
		if (!p) {
			execl("/proc/self/exe", "driver", "true", (char *)NULL);
			_exit(127);
		}
		if (p < 0 || waitpid(p, &st, 0) != p || st)
			return BENCH_FAILED;
		sum++;
	}
	return sum;
}

static void echo(int in, int out)
{
	char c;
	while (read(in, &c, 1) == 1 && write(out, &c, 1) == 1 && c)
		;
	_exit(0);
}

/* A byte there and back: two processes that take turns. */
static uint64_t pipes(void)
{
	int a[2], b[2], st;
	uint64_t sum = 0;
	if (pipe(a) || pipe(b))
		return BENCH_FAILED;
	pid_t p = fork();
	if (!p)
		echo(a[0], b[1]);
	for (int i = 5000; i--;) {
		char c = i != 0, r = 2;
		if (write(a[1], &c, 1) != 1 || read(b[0], &r, 1) != 1 || r != c)
			break;
		sum++;
	}
	close(a[0]), close(a[1]), close(b[0]), close(b[1]);
	return waitpid(p, &st, 0) == p ? sum : BENCH_FAILED;
}

/* Two processes of one CPU that do nothing but give it to each other. */
static uint64_t switches(void)
{
	cpu_set_t one, all;
	int st, cpu = sched_getcpu();
	sched_getaffinity(0, sizeof all, &all);
	CPU_ZERO(&one);
	CPU_SET(cpu < 0 ? 0 : (unsigned)cpu, &one);
	sched_setaffinity(0, sizeof one, &one);
	pid_t p = fork();
	for (int i = 0; i < 10000; i++)
		sched_yield();
	if (!p)
		_exit(0);
	sched_setaffinity(0, sizeof all, &all);
	return waitpid(p, &st, 0) == p && !st ? 1 : BENCH_FAILED;
}

static uint64_t faults(void)
{
	size_t n = 16 << 20;
	uint64_t sum = 0;
	uint8_t *p = mmap(NULL, n, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (p == MAP_FAILED)
		return BENCH_FAILED;
	madvise(p, n, MADV_NOHUGEPAGE);
	for (size_t i = 0; i < n; i += 4096)
		sum += ++p[i];
	munmap(p, n);
	return sum;
}

static int make_files(unsigned count)
{
	char path[64];
	for (unsigned i = 0; i < count; i++) {
		snprintf(path, sizeof path, "/tmp/files/%u", i);
		int fd = open(path, O_CREAT | O_EXCL | O_WRONLY, 0600);
		if (fd < 0)
			return -1;
		ssize_t wrote = write(fd, path, i % sizeof path);
		close(fd);
		if (wrote < 0)
			return -1;
	}
	return 0;
}

static uint64_t files(void)
{
	char path[64];
	uint64_t sum = 0;
	if (mkdir("/tmp/files", 0700) || make_files(1000))
		return BENCH_FAILED;
	for (unsigned i = 0; i < 1000; i++) {
		struct stat st;
		snprintf(path, sizeof path, "/tmp/files/%u", i);
		if (stat(path, &st) || unlink(path))
			return BENCH_FAILED;
		sum += (uint64_t)st.st_size;
	}
	return rmdir("/tmp/files") ? BENCH_FAILED : sum;
}

const struct workload system_workloads[] = {
	{ "syscalls", syscalls, 20 }, { "forkexec", forkexec, 4 }, { "pipes", pipes, 6 }, { "switches", switches, 10 },
	{ "faults", faults, 8 }, { "files", files, 25 }, { 0 },
};
