/*
 * The CPU and kernel workloads of bench/run, as one static program.
 *
 * On the host:   workloads all | NAME...       In a guest it is /init: runs what the kernel command line
 * names in work=NAME,NAME (default all), prints one "bench NAME NANOSECONDS" line each, and powers off.
 * Each workload does a fixed amount of work and folds its result into `sink`, so nothing is optimised away.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/reboot.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static volatile uint64_t sink;
static const char *self = "/proc/self/exe";

static uint64_t now_ns(void)
{
	struct timespec t;
	clock_gettime(CLOCK_MONOTONIC, &t);
	return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

static uint32_t lcg(uint32_t *s) { return *s = *s * 1664525u + 1013904223u; }

static void w_alu(void)
{
	uint64_t a = 1, b = 2, c = 3;
	for (uint32_t i = 0; i < 60000000; i++) {
		a += b ^ i;
		b = (b << 3 | b >> 61) + c;
		c ^= a * 5;
	}
	sink += a + b + c;
}

static void w_sieve(void)
{
	static uint8_t s[1 << 20];
	unsigned n = 0;
	for (int round = 0; round < 6; round++) {
		memset(s, 1, sizeof s);
		for (unsigned i = 2; i < sizeof s; i++)
			if (s[i])
				for (unsigned j = 2 * i; j < sizeof s; j += i)
					s[j] = 0;
		n += s[999983];
	}
	sink += n;
}

static void quick(int *a, int lo, int hi)
{
	while (lo < hi) {
		int p = a[(lo + hi) / 2], i = lo, j = hi;
		while (i <= j) {
			while (a[i] < p)
				i++;
			while (a[j] > p)
				j--;
			if (i <= j) {
				int t = a[i];
				a[i++] = a[j];
				a[j--] = t;
			}
		}
		quick(a, lo, j);
		lo = i;
	}
}
static void w_sort(void)
{
	static int a[1000000];
	uint32_t s = 7;
	for (int i = 0; i < 1000000; i++)
		a[i] = (int)lcg(&s);
	quick(a, 0, 999999);
	sink += (uint64_t)a[500000];
}

static __attribute__((noinline)) uint32_t fib(uint32_t n)
{
	return n < 2 ? n : fib(n - 1) + fib(n - 2);
}
static void w_calls(void) { sink += fib(34); }

static uint32_t f_a(uint32_t x) { return x + 1; }
static uint32_t f_b(uint32_t x) { return x ^ 3; }
static uint32_t f_c(uint32_t x) { return x * 5; }
static uint32_t f_d(uint32_t x) { return x - 7; }
static void w_indirect(void)
{
	uint32_t (*volatile f[4])(uint32_t) = { f_a, f_b, f_c, f_d };
	uint32_t x = 1, s = 3;
	for (int i = 0; i < 10000000; i++)
		x = f[lcg(&s) >> 30](x);
	sink += x;
}

static void w_matmul(void)
{
	enum { N = 160 };
	static double a[N][N], b[N][N], c[N][N];
	for (int i = 0; i < N * N; i++) {
		(&a[0][0])[i] = i % 17;
		(&b[0][0])[i] = i % 13;
	}
	for (int r = 0; r < 4; r++)
		for (int i = 0; i < N; i++)
			for (int j = 0; j < N; j++) {
				double t = 0;
				for (int k = 0; k < N; k++)
					t += a[i][k] * b[k][j];
				c[i][j] += t;
			}
	sink += (uint64_t)c[5][7];
}

typedef float v4 __attribute__((vector_size(16)));
static void w_float(void)
{
	v4 x = { 1, 2, 3, 4 }, y = { 0.5f, 0.25f, 1.5f, 1 }, z = { 0 };
	for (int i = 0; i < 10000000; i++) {
		z += x * y;
		x = x * 0.9999f + y;
	}
	sink += (uint64_t)z[0];
}

static void w_x87(void)
{
	long double x = 1, y = 0;
	for (int i = 1; i < 4000000; i++) {
		y += x / i;
		x = -x * 1.0000001L;
	}
	sink += (uint64_t)(y * 1000);
}

static void w_stream(void)
{
	enum { N = 4 << 20 };
	static uint64_t a[N], b[N];
	for (int r = 0; r < 3; r++)
		for (int i = 0; i < N; i++)
			a[i] = b[i] + (uint64_t)r;
	sink += a[77];
}

static void w_chase(void)
{
	enum { N = 1 << 18 };
	static uint32_t next[N];
	uint32_t s = 1, p = 0;
	for (uint32_t i = 0; i < N; i++)
		next[i] = i;
	for (uint32_t i = N - 1; i; i--) {
		uint32_t j = lcg(&s) % i, t = next[i];
		next[i] = next[j];
		next[j] = t;
	}
	for (int i = 0; i < 10000000; i++)
		p = next[p];
	sink += p;
}

static void w_repmovs(void)
{
	static uint8_t a[1 << 16], b[1 << 16];
	for (int i = 0; i < 8000; i++) {
		void *d = a;
		const void *q = b;
		size_t n = sizeof a;
		__asm__ volatile("rep movsb" : "+D"(d), "+S"(q), "+c"(n) : : "memory");
	}
	sink += a[3];
}

static void w_hash(void)
{
	static uint32_t w[1 << 16];
	uint32_t h[8] = { 1, 2, 3, 4, 5, 6, 7, 8 };
	for (int r = 0; r < 60; r++)
		for (int i = 0; i < 1 << 16; i++) {
			uint32_t e = h[4], t = h[7] + ((e >> 6 | e << 26) ^ (e >> 11 | e << 21) ^ (e >> 25 | e << 7)) +
					       ((e & h[5]) ^ (~e & h[6])) + w[i];
			memmove(h + 1, h, 28);
			h[4] += t;
			h[0] = t + (h[1] >> 2 ^ h[1] << 30);
			w[i] = h[0];
		}
	sink += h[0];
}

static void w_syscalls(void)
{
	for (int i = 0; i < 300000; i++)
		sink += (uint64_t)syscall(SYS_getppid);
}

static void w_forkexec(void)
{
	for (int i = 0; i < 150; i++) {
		pid_t p = fork();
		if (!p) {
			execl(self, "workloads", "true", (char *)NULL);
			_exit(127);
		}
		int st;
		waitpid(p, &st, 0);
	}
}

static void w_pipes(void)
{
	int a[2], b[2];
	char c = 1;
	if (pipe(a) || pipe(b))
		return;
	pid_t p = fork();
	if (!p) {
		while (read(a[0], &c, 1) == 1 && c)
			if (write(b[1], &c, 1) != 1)
				break;
		_exit(0);
	}
	for (int i = 0; i < 20000; i++)
		if (write(a[1], &c, 1) != 1 || read(b[0], &c, 1) != 1)
			break;
	c = 0;
	if (write(a[1], &c, 1) == 1)
		waitpid(p, NULL, 0);
	close(a[0]), close(a[1]), close(b[0]), close(b[1]);
}

static void w_faults(void)
{
	for (int r = 0; r < 6; r++) {
		size_t n = 16 << 20;
		uint8_t *p = mmap(NULL, n, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
		madvise(p, n, MADV_NOHUGEPAGE);
		for (size_t i = 0; i < n; i += 4096)
			p[i] = 1;
		munmap(p, n);
	}
}

static void w_files(void)
{
	char path[64];
	mkdir("/tmp/bench", 0700);
	for (int r = 0; r < 5; r++) {
		for (int i = 0; i < 1000; i++) {
			snprintf(path, sizeof path, "/tmp/bench/%d", i);
			int fd = open(path, O_CREAT | O_WRONLY, 0600);
			if (write(fd, path, sizeof path) < 0)
				return;
			close(fd);
		}
		struct stat st;
		for (int i = 0; i < 1000; i++) {
			snprintf(path, sizeof path, "/tmp/bench/%d", i);
			stat(path, &st);
			unlink(path);
		}
	}
	rmdir("/tmp/bench");
}

static const struct { const char *name; void (*fn)(void); } table[] = {
	{ "alu", w_alu }, { "sieve", w_sieve }, { "sort", w_sort }, { "calls", w_calls }, { "indirect", w_indirect },
	{ "hash", w_hash }, { "matmul", w_matmul }, { "float", w_float }, { "x87", w_x87 }, { "stream", w_stream },
	{ "chase", w_chase }, { "repmovs", w_repmovs }, { "syscalls", w_syscalls }, { "forkexec", w_forkexec },
	{ "pipes", w_pipes }, { "faults", w_faults }, { "files", w_files },
};

static void run_named(const char *list)
{
	for (size_t i = 0; i < sizeof table / sizeof *table; i++) {
		const char *at = strstr(list, table[i].name);
		if (strcmp(list, "all") && !at)
			continue;
		uint64_t t = now_ns();
		table[i].fn();
		printf("bench %s %llu\n", table[i].name, (unsigned long long)(now_ns() - t));
		fflush(stdout);
	}
}

static void as_init(void)
{
	static char cmdline[4096];
	char list[1024] = "all";
	mkdir("/proc", 0755);
	mkdir("/tmp", 0755);
	mount("proc", "/proc", "proc", 0, NULL);
	mount("tmp", "/tmp", "tmpfs", 0, NULL);
	puts("bench init 0");
	fflush(stdout);
	int fd = open("/proc/cmdline", O_RDONLY);
	if (fd >= 0 && read(fd, cmdline, sizeof cmdline - 1) > 0) {
		char *w = strstr(cmdline, "work=");
		if (w)
			sscanf(w + 5, "%1023s", list);
	}
	run_named(list);
	puts("bench done 0");
	fflush(stdout);
	reboot(RB_POWER_OFF);
}

int main(int argc, char **argv)
{
	if (argc > 1 && !strcmp(argv[1], "true"))
		return 0;
	if (getpid() == 1) {
		as_init();
		return 0;
	}
	for (int i = 1; i < argc; i++)
		run_named(argv[i]);
	return 0;
}
