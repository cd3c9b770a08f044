/* vixen doctor: what this host offers, and what to do about what it lacks. */
#include <errno.h>
#include <jansson.h>
#include <liburing.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/statvfs.h>
#include <sys/wait.h>
#include <sched.h>
#include <unistd.h>

#include "cli/catalog.h"
#include "cli/doctor.h"
#include "cli/options.h"
#include "cli/verb.h"
#include "engine/kvm/probe.h"
#include "host/sandbox.h"

static void check_kvm(struct finding *f)
{
	struct kvm_probe p;

	kvm_probe(&p);
	if (p.good)
		FOUND(f, GOOD, NULL, "%s: --engine auto takes it", p.found);
	else if (!access("/dev/kvm", F_OK) && access("/dev/kvm", R_OK | W_OK))
		FOUND(f, LIMITED, "add this user to the group kvm; the soft engine works without", "%s", p.found);
	else
		FOUND(f, LIMITED, "nothing: --engine auto takes the soft engine, which needs no KVM", "%s", p.found);
}

static void check_cpus(struct finding *f)
{
	FOUND(f, GOOD, NULL, "%ld online", sysconf(_SC_NPROCESSORS_ONLN));
}

static void check_tsc(struct finding *f)
{
	char line[65536] = "";
	FILE *in = fopen("/proc/cpuinfo", "r");
	bool invariant = false;
	while (in && !invariant && fgets(line, sizeof line, in))
		invariant = !strncmp(line, "flags", 5) && strstr(line, " constant_tsc") && strstr(line, " nonstop_tsc");
	if (in)
		fclose(in);
	if (invariant)
		FOUND(f, GOOD, NULL, "runs at a constant rate");
	else
		FOUND(f, LIMITED, "expect the guest's clock to drift", "not known to run at a constant rate");
}

static void check_memory(struct finding *f)
{
	unsigned long long kib = 0;
	char line[256];
	FILE *in = fopen("/proc/meminfo", "r");
	while (in && fgets(line, sizeof line, in) && sscanf(line, "MemAvailable: %llu", &kib) != 1)
		;
	if (in)
		fclose(in);
	struct rlimit r;
	if (!getrlimit(RLIMIT_AS, &r) && r.rlim_cur != RLIM_INFINITY)
		FOUND(f, LIMITED, "ulimit -v unlimited", "%llu MiB available, but ulimit -v is set", kib >> 10);
	else if (kib < 512 * 1024)
		FOUND(f, LIMITED, "free some, or use a small --memory", "%llu MiB available", kib >> 10);
	else
		FOUND(f, GOOD, NULL, "%llu MiB available", kib >> 10);
}

static void check_files(struct finding *f)
{
	struct rlimit r = { 0 };
	getrlimit(RLIMIT_NOFILE, &r);
	if (r.rlim_cur < 256)
		FOUND(f, LIMITED, "ulimit -n 1024", "%llu open files", (unsigned long long)r.rlim_cur);
	else
		FOUND(f, GOOD, NULL, "%llu open files", (unsigned long long)r.rlim_cur);
}

static void check_uring(struct finding *f)
{
	struct io_uring ring;
	int ret = io_uring_queue_init(4, &ring, 0);
	if (ret < 0) {
		FOUND(f, LIMITED, "nothing: disks use a thread pool instead", "not available (%s)", strerror(-ret));
		return;
	}
	io_uring_queue_exit(&ring);
	FOUND(f, GOOD, NULL, "works");
}

static void check_landlock(struct finding *f)
{
	int version = sandbox_landlock_version();
	if (version)
		FOUND(f, GOOD, NULL, "Landlock version %d", version);
	else
		FOUND(f, LIMITED, "a kernel with Landlock would also keep a VM's process from reading other files",
		      "seccomp alone, no Landlock in this kernel");
}

/* In a child, for one cannot go back. */
static void check_namespaces(struct finding *f)
{
	int status = -1;
	fflush(stdout);
	pid_t pid = fork();
	if (!pid)
		_exit(unshare(CLONE_NEWUSER) ? 1 : 0);
	if (pid > 0)
		waitpid(pid, &status, 0);
	if (!status)
		FOUND(f, GOOD, NULL, "allowed");
	else
		FOUND(f, LIMITED, "sysctl kernel.unprivileged_userns_clone=1, or build images with fakeroot",
		      "not allowed for this user");
}

static bool program_exists(const char *name)
{
	static const char *const dirs[] = { "/usr/bin", "/usr/sbin", "/bin", "/sbin", "/usr/local/bin" };
	char path[64];
	for (size_t i = 0; i < sizeof dirs / sizeof *dirs; i++) {
		snprintf(path, sizeof path, "%s/%s", dirs[i], name);
		if (!access(path, X_OK))
			return true;
	}
	return false;
}

static void check_builder(struct finding *f)
{
	bool mmdebstrap = program_exists("mmdebstrap"), mke2fs = program_exists("mke2fs");
	if (mmdebstrap && mke2fs)
		FOUND(f, GOOD, NULL, "mmdebstrap and mke2fs are installed");
	else
		FOUND(f, MISSING, "apt install mmdebstrap e2fsprogs", "%s is missing", mmdebstrap ? "mke2fs" : "mmdebstrap");
}

static void check_space(struct finding *f)
{
	char dir[PATH_MAX];
	struct statvfs v;
	if (catalog_dir(dir, NULL)) {
		FOUND(f, MISSING, "set HOME", "no home directory");
		return;
	}
	while (statvfs(dir, &v) && strrchr(dir, '/') > dir)
		*strrchr(dir, '/') = 0;
	unsigned long long mib = (unsigned long long)v.f_bavail * v.f_frsize >> 20;
	if (mib < 3072)
		FOUND(f, LIMITED, "building an image takes 3 GiB: free some", "%llu MiB free", mib);
	else
		FOUND(f, GOOD, NULL, "%llu MiB free", mib);
}

static const struct check {
	const char *name, *what;
	void (*run)(struct finding *f);
} checks[] = {
	{ "kvm", "hardware virtualisation", check_kvm },
	{ "cpus", "host CPUs", check_cpus },
	{ "cpu-v2", "CPU model x86-64-v2", check_v2 },
	{ "cpu-v3", "CPU model x86-64-v3", check_v3 },
	{ "tsc", "time stamp counter", check_tsc },
	{ "memory", "memory", check_memory },
	{ "files", "limit on files", check_files },
	{ "io_uring", "io_uring", check_uring },
	{ "sandbox", "sandbox", check_landlock },
	{ "namespaces", "user namespaces", check_namespaces },
	{ "builder", "image builder", check_builder },
	{ "space", "space for images", check_space },
};

static bool set_format(void *json, const char *v)
{
	return json_parse("doctor", v, json);
}

static const struct option_row options[] = {
	{ "format", "table|json", "default table", set_format },
	{ 0 },
};
static const struct command doctor_command = {
	.verb = "doctor", .usage = "doctor [--format table|json]",
	.about = "Looks at this host: what virtual machines can use here, and what to do about what is missing.\n"
		 "The exit code is 1 when something that is needed is missing.",
	.options = options,
};

int verb_doctor(int argc, char **argv)
{
	static const char *const verdicts[] = { "ok", "limited", "missing" };
	bool json = false, missing = false;
	int ret = options_parse(&doctor_command, &json, argc, argv);
	if (ret >= 0)
		return ret;
	json_t *list = json_array();
	for (size_t i = 0; i < sizeof checks / sizeof *checks; i++) {
		struct finding f = { 0 };
		checks[i].run(&f);
		missing |= f.verdict == MISSING;
		if (!json)
			printf("%-8s %-24s %s%s%s\n", verdicts[f.verdict], checks[i].what, f.found, f.todo ? "; " : "",
			       f.todo ? f.todo : "");
		json_array_append_new(list, json_pack("{s:s, s:s, s:s, s:s?}", "check", checks[i].name, "verdict",
						      verdicts[f.verdict], "found", f.found, "todo", f.todo));
	}
	if (json)
		json_print(list);
	else
		json_decref(list);
	return missing ? EXIT_FAILED : EXIT_OK;
}
