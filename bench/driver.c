/*
 * Runs the workloads that a file names, each followed by a line on stdout:
 *
 *   bench init                     a guest's first sign of life: the kernel has started its init
 *   bench begin NAME               the work starts as soon as a line comes on stdin
 *   bench end NAME NS CPU SUM      it is done: nanoseconds by CLOCK_MONOTONIC, those of CPU time of all the processes
 *                                  (only right where this is the host), and a checksum of the result
 *   bench fail NAME REASON         after this, as after an end, it waits for a line, too
 *   bench done
 *
 * As process 1 it is a guest's init: STAGE is /bench, and ROOT is the disk's file system, if there is a disk.
 * On the host: driver STAGE [ROOT]. Either way the applications run in ROOT, with a fresh /tmp and STAGE at
 * /tmp/bench; what is no workload of ours is one of STAGE/apps.
 */
#include "workloads.h"

#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/reboot.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

struct result {
	uint64_t ns, cpu_ns, sum;
	char reason[256];	/* why it failed; empty: it did not */
};

static uint64_t now_ns(void)
{
	struct timespec t;
	clock_gettime(CLOCK_MONOTONIC, &t);
	return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

/* What this process and its children that have been waited for took. */
static uint64_t cpu_ns(void)
{
	static const int who[] = { RUSAGE_SELF, RUSAGE_CHILDREN };
	uint64_t us = 0;
	for (int i = 0; i < 2; i++) {
		struct rusage u;
		getrusage(who[i], &u);
		us += (uint64_t)(u.ru_utime.tv_sec + u.ru_stime.tv_sec) * 1000000u;
		us += (uint64_t)(u.ru_utime.tv_usec + u.ru_stime.tv_usec);
	}
	return us * 1000;
}

/* Whoever reads takes the time, too, and that of the CPU, and then sends a line: so it does not matter how long ours
 * was under way. Where nobody sends lines, stdin has an end. */
static void await_line(void)
{
	char c;
	fflush(stdout);
	while (read(0, &c, 1) == 1 && c != '\n')
		;
}

static void begin(const char *name, struct result *r)
{
	printf("bench begin %s\n", name);
	await_line();
	r->cpu_ns = cpu_ns();
	r->ns = now_ns();
}

static void end(struct result *r)
{
	r->ns = now_ns() - r->ns;
	r->cpu_ns = cpu_ns() - r->cpu_ns;
}

static void fail(struct result *r, const char *what)
{
	snprintf(r->reason, sizeof r->reason, "%s: %s", what, strerror(errno));
}

static void run_unit_workload(const struct workload *w, struct result *r)
{
	r->sum = w->unit();
	begin(w->name, r);
	for (unsigned i = 0; i < w->units && r->sum != BENCH_FAILED; i++) {
		uint64_t sum = w->unit();
		r->sum = sum == BENCH_FAILED ? sum : r->sum * 31 + sum;
	}
	end(r);
	if (r->sum == BENCH_FAILED)
		fail(r, "the work");
}

static _Noreturn void exec_app(const char *name, int out)
{
	static char *const env[] = { "PATH=/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL=C", "HOME=/tmp", "TMPDIR=/tmp",
				     "PYTHONDONTWRITEBYTECODE=1", "PYTHONHASHSEED=0", "PERL_HASH_SEED=0", NULL };
	char *const argv[] = { "sh", "/tmp/bench/apps", (char *)name, NULL };
	int null = open("/dev/null", O_RDWR);
	dup2(null, 0);
	dup2(out, 1);
	dup2(out, 2);
	if (!chdir("/tmp"))
		execve("/bin/sh", argv, env);
	_exit(127);
}

/* Takes the application's output up to its line "ready", which ends the preparation. */
static int await_ready(FILE *from)
{
	char line[200], last[200] = "no output";
	while (fgets(line, sizeof line, from)) {
		line[strcspn(line, "\n")] = 0;
		if (!strcmp(line, "ready"))
			return 1;
		memcpy(last, line, sizeof last);
	}
	printf("bench note %s\n", last);
	return 0;
}

/* FNV-1a over all that the application prints; the reason of a failure is its last words. */
static void take_output(FILE *from, struct result *r)
{
	char buf[4096] = "";
	size_t n, tail = 0;
	r->sum = 0xcbf29ce484222325;
	while ((n = fread(buf, 1, sizeof buf, from))) {
		for (size_t i = 0; i < n; i++) {
			r->sum = (r->sum ^ (uint8_t)buf[i]) * 0x100000001b3;
			if (buf[i] != '\n' && tail < sizeof r->reason - 1)
				r->reason[tail++] = buf[i];
		}
	}
	r->reason[tail] = 0;
}

static void run_app(const char *name, struct result *r)
{
	int out[2], st = 0;
	if (pipe(out)) {
		fail(r, "pipe");
		return;
	}
	pid_t p = fork();
	if (!p)
		exec_app(name, out[1]);
	close(out[1]);
	FILE *from = fdopen(out[0], "r");
	int ready = await_ready(from);
	if (ready)
		begin(name, r);
	take_output(from, r);
	waitpid(p, &st, 0);
	end(r);
	fclose(from);
	if (ready && WIFEXITED(st) && !WEXITSTATUS(st))
		r->reason[0] = 0;
	else if (!r->reason[0])
		snprintf(r->reason, sizeof r->reason, "status %x%s", (unsigned)st, ready ? "" : " in its preparation");
}

static const struct workload *find_workload(const char *name)
{
	for (const struct workload *w = compute_workloads; w->name; w++)
		if (!strcmp(w->name, name))
			return w;
	for (const struct workload *w = system_workloads; w->name; w++)
		if (!strcmp(w->name, name))
			return w;
	return NULL;
}

static void run_named(const char *name)
{
	struct result r = { 0 };
	const struct workload *w = find_workload(name);
	if (w)
		run_unit_workload(w, &r);
	else
		run_app(name, &r);
	if (r.reason[0])
		printf("bench fail %s %s\n", name, r.reason);
	else
		printf("bench end %s %llu %llu %llx\n", name, (unsigned long long)r.ns, (unsigned long long)r.cpu_ns,
		       (unsigned long long)r.sum);
	await_line();
}

/* Runs what STAGE/list names, one name a line. The list is read before /tmp is covered. */
static char *read_list(const char *stage)
{
	static char text[4096];
	char path[4200];
	snprintf(path, sizeof path, "%s/list", stage);
	int fd = open(path, O_RDONLY);
	ssize_t n = fd < 0 ? -1 : read(fd, text, sizeof text - 1);
	close(fd);
	return n < 0 ? NULL : text;
}

static void run_list(char *list)
{
	char *save;
	for (char *name = strtok_r(list, "\n", &save); name; name = strtok_r(NULL, "\n", &save))
		run_named(name);
	puts("bench done");
	fflush(stdout);
}

static int mount_at(const char *root, const char *at, const char *what, const char *type, unsigned long flags)
{
	char path[4200];
	snprintf(path, sizeof path, "%s%s", root, at);
	if (!mount(what, path, type, flags, NULL))
		return 0;
	fprintf(stderr, "bench: mount %s at %s failed: %s; it needs root or user namespaces\n", what, path,
		strerror(errno));
	return -1;
}

/* A fresh /tmp in `root` with the stage in it; then `root` becomes the root. */
static int enter(const char *root, const char *stage)
{
	char path[4200];
	int dir = open(stage, O_PATH | O_DIRECTORY);
	snprintf(path, sizeof path, "/proc/self/fd/%d", dir);
	if (dir < 0 || mount_at(root, "/tmp", "tmpfs", "tmpfs", 0))
		return -1;
	char at[4200];
	snprintf(at, sizeof at, "%s/tmp/bench", root);
	if (mkdir(at, 0755) || mount_at(root, "/tmp/bench", path, NULL, MS_BIND | MS_REC))
		return -1;
	close(dir);
	return chroot(root) || chdir("/tmp") ? -1 : 0;
}

static void write_text(const char *path, const char *text)
{
	int fd = open(path, O_WRONLY);
	if (fd < 0 || write(fd, text, strlen(text)) < 0)
		fprintf(stderr, "bench: write %s failed: %s\n", path, strerror(errno));
	close(fd);
}

/* A mount namespace of our own; where we are not root, in a user namespace where we are. */
static int own_namespace(void)
{
	char uid[64], gid[64];
	snprintf(uid, sizeof uid, "0 %u 1", geteuid());
	snprintf(gid, sizeof gid, "0 %u 1", getegid());
	int user = geteuid() != 0;
	if (unshare(CLONE_NEWNS | (user ? CLONE_NEWUSER : 0)))
		return -1;
	if (user) {
		write_text("/proc/self/setgroups", "deny");
		write_text("/proc/self/uid_map", uid);
		write_text("/proc/self/gid_map", gid);
	}
	return mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL);
}

static int host_main(const char *stage, const char *root)
{
	char *list = read_list(stage);
	if (!list || own_namespace()) {
		fprintf(stderr, "bench: enter a namespace failed: %s; run as root or allow user namespaces\n",
			strerror(errno));
		return 1;
	}
	if (*root && (mount_at(root, "/dev", "/dev", NULL, MS_BIND | MS_REC) ||
		      mount_at(root, "/proc", "/proc", NULL, MS_BIND | MS_REC)))
		return 1;
	if (enter(*root ? root : "/", stage))
		return 1;
	run_list(list);
	return 0;
}

/* STAGE/modules holds them in the order in which they load: 0.ko, 1.ko, ... */
static void load_modules(void)
{
	for (unsigned i = 0;; i++) {
		char path[64];
		snprintf(path, sizeof path, "/bench/modules/%u.ko", i);
		int fd = open(path, O_RDONLY);
		if (fd < 0)
			return;
		if (syscall(SYS_finit_module, fd, "", 0) && errno != EEXIST)
			printf("bench note %s: %s\n", path, strerror(errno));
		close(fd);
	}
}

/* The disk may take a moment to appear. */
static const char *mount_disk(void)
{
	for (int i = 0; i < 100; i++) {
		if (!mount("/dev/vda", "/root", "ext4", MS_RDONLY, NULL))
			return "/root";
		usleep(50000);
	}
	printf("bench note the disk: %s\n", strerror(errno));
	return "";
}

static int guest_main(void)
{
	puts("bench init");
	fflush(stdout);
	mount_at("", "/dev", "devtmpfs", "devtmpfs", 0);
	mount_at("", "/proc", "proc", "proc", 0);
	char *list = read_list("/bench");
	load_modules();
	const char *root = access("/bench/modules", F_OK) ? "" : mount_disk();
	if (*root) {
		mount_at(root, "/dev", "devtmpfs", "devtmpfs", 0);
		mount_at(root, "/proc", "proc", "proc", 0);
	}
	if (list && !enter(*root ? root : "/", "/bench"))
		run_list(list);
	else
		puts("bench note the guest's file system could not be set up");
	fflush(stdout);
	reboot(RB_POWER_OFF);
	return 1;
}

int main(int argc, char **argv)
{
	if (argc > 1 && !strcmp(argv[1], "true"))
		return 0;
	if (getpid() == 1)
		return guest_main();
	if (argc < 2) {
		fprintf(stderr, "usage: driver STAGE [ROOT]\n");
		return 2;
	}
	return host_main(argv[1], argc > 2 ? argv[2] : "");
}
