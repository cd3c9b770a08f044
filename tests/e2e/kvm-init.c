/* The init of kvm-linux: work whose results it knows, "ok NAME" for each that came out right, then power off. */
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/reboot.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define BYTES (8u << 20)

/* Long enough in user mode that it is worth a visit to KVM. */
static int compute(void)
{
	volatile double d = 0;
	uint64_t a = 1, sum = 0;

	for (uint64_t i = 0; i < 100000000; i++) {
		a = a * 6364136223846793005u + 1442695040888963407u;
		sum += a >> 63;
	}
	for (int i = 0; i < 20000000; i++)
		d += 0.5;
	return sum > 49900000 && sum < 50100000 && d == 1e7;
}

static int faults(void)
{
	int right = 1;

	for (int turn = 0; turn < 20; turn++) {
		uint8_t *p = mmap(NULL, BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
		for (unsigned i = 0; i < BYTES; i += 4096)
			right &= !p[i] && (p[i] = (uint8_t)(i >> 12 | 1));
		for (unsigned i = 0; i < BYTES; i += 4096)
			right &= p[i] == (uint8_t)(i >> 12 | 1);
		munmap(p, BYTES);
	}
	return right;
}

/* Children compute at the same time, each in a copy of the same page. */
static int forks(void)
{
	static volatile uint64_t cell;
	int right = 1, status;

	for (int i = 0; i < 40; i++) {
		pid_t pid = fork();
		if (!pid) {
			for (cell = 0; cell < 3000000; cell++) { }
			_exit((int)(cell % 251));
		}
		right &= pid > 0;
	}
	for (int i = 0; i < 40; i++)
		right &= wait(&status) > 0 && WIFEXITED(status) && WEXITSTATUS(status) == 3000000 % 251;
	return right && !cell;
}

static int files(void)
{
	static uint8_t in[65536], out[65536];
	int fd = open("/file", O_RDWR | O_CREAT, 0600), right = fd >= 0;

	for (unsigned turn = 0; turn < 64; turn++) {
		memset(out, (int)turn, sizeof(out));
		right &= pwrite(fd, out, sizeof(out), 65536 * turn) == sizeof(out);
		right &= pread(fd, in, sizeof(in), 65536 * turn) == sizeof(in) && !memcmp(in, out, sizeof(in));
	}
	return right;
}

static int64_t now_ns(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec * 1000000000ll + t.tv_nsec;
}

/* Time never goes back, in software nor in KVM. */
static int clocks(void)
{
	int64_t last = now_ns();
	int right = 1;

	for (int i = 0; i < 2000000; i++) {
		int64_t t = now_ns();
		right &= t >= last;
		last = t;
	}
	return right;
}

int main(void)
{
	static const struct { const char *name; int (*run)(void); } all[] = {
		{ "compute", compute }, { "faults", faults }, { "forks", forks }, { "files", files }, { "clocks", clocks },
	};

	for (unsigned i = 0; i < sizeof(all) / sizeof(all[0]); i++)
		printf("\n%s %s\n", all[i].run() ? "ok" : "not ok", all[i].name);
	fflush(stdout);
	sync();
	reboot(RB_POWER_OFF);
	return 1;
}
