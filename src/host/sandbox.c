/* The sandbox of a VM's process: capabilities(7), landlock(7), seccomp(2). */
#include "host/sandbox.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/capability.h>
#include <linux/landlock.h>
#include <linux/sched.h>
#include <seccomp.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <termios.h>
#include <unistd.h>

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define CONFINED false
#else
#define CONFINED true
#endif

#define LANDLOCK_FS_V1 ((LANDLOCK_ACCESS_FS_MAKE_SYM << 1) - 1)

/* --- capabilities --- */

static int capabilities_drop(bool low_ports)
{
	struct __user_cap_header_struct h = { .version = _LINUX_CAPABILITY_VERSION_3 };
	struct __user_cap_data_struct have[2] = { 0 }, keep[2] = { 0 };

	for (int cap = 0; prctl(PR_CAPBSET_READ, cap, 0, 0, 0) >= 0; cap++)
		if (cap != CAP_NET_BIND_SERVICE || !low_ports)
			prctl(PR_CAPBSET_DROP, cap, 0, 0, 0);	/* as an ordinary user: refused, and of no use */
	prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0);
	if (syscall(SYS_capget, &h, have))
		return -errno;
	if (low_ports) {
		keep[0].effective = have[0].effective & 1u << CAP_NET_BIND_SERVICE;
		keep[0].permitted = have[0].permitted & 1u << CAP_NET_BIND_SERVICE;
	}
	return syscall(SYS_capset, &h, keep) ? -errno : 0;
}

/* --- Landlock --- */

int sandbox_landlock_version(void)
{
	long v = syscall(SYS_landlock_create_ruleset, NULL, 0, LANDLOCK_CREATE_RULESET_VERSION);

	return v > 0 ? (int)v : 0;
}

/* A path that is not there cannot be opened later either: no rule. */
static int landlock_allow(int ruleset, const char *path, uint64_t access)
{
	struct landlock_path_beneath_attr rule = { .allowed_access = access };
	int ret = 0;

	rule.parent_fd = open(path, O_PATH | O_CLOEXEC);
	if (rule.parent_fd < 0)
		return errno == ENOENT || errno == ENOTDIR || errno == EACCES ? 0 : -errno;
	if (syscall(SYS_landlock_add_rule, ruleset, LANDLOCK_RULE_PATH_BENEATH, &rule, 0))
		ret = -errno;
	close(rule.parent_fd);
	return ret;
}

/* The name servers' file is replaced when the host moves between networks, so its folder is what has to be
 * readable.  That is /etc on many hosts: for root, who could read secrets there, the file alone. */
static int landlock_allow_resolver(int ruleset)
{
	char *file = realpath("/etc/resolv.conf", NULL), *slash;
	int ret;

	if (!file)
		return 0;
	if (geteuid() && (slash = strrchr(file, '/')) && slash != file)
		*slash = 0;
	ret = landlock_allow(ruleset, file, LANDLOCK_ACCESS_FS_READ_FILE);
	free(file);
	return ret;
}

static int landlock_enter(const struct sandbox *s)
{
	struct landlock_ruleset_attr attr = { .handled_access_fs = LANDLOCK_FS_V1 };
	const uint64_t read_file = LANDLOCK_ACCESS_FS_READ_FILE;
	int ret = 0, ruleset;

	if (!sandbox_landlock_version())
		return 0;
	ruleset = (int)syscall(SYS_landlock_create_ruleset, &attr, sizeof(attr), 0);
	if (ruleset < 0)
		return -errno;
	for (unsigned i = 0; i < SANDBOX_FILES_MAX && !ret; i++)
		if (s->readable[i])
			ret = landlock_allow(ruleset, s->readable[i], read_file);
	if (!ret)
		ret = landlock_allow(ruleset, "/dev/urandom", read_file);
	if (!ret)
		ret = landlock_allow_resolver(ruleset);
	if (!ret && s->kvm)
		ret = landlock_allow(ruleset, "/dev/kvm", read_file | LANDLOCK_ACCESS_FS_WRITE_FILE);
	if (!ret && syscall(SYS_landlock_restrict_self, ruleset, 0))
		ret = -errno;
	close(ruleset);
	return ret;
}

/* --- seccomp --- */

#define NR(name) SCMP_SYS(name)

/* Without conditions: memory, threads, waiting, data on open descriptors, sockets (the NAT is made of them). */
static const int allowed[] = {
	NR(mmap), NR(munmap), NR(mprotect), NR(madvise), NR(mlock), NR(mremap), NR(brk), NR(membarrier), NR(memfd_create),
	NR(futex), NR(set_robust_list), NR(rseq), NR(sched_yield), NR(sched_getaffinity), NR(getcpu), NR(gettid),
	NR(getpid), NR(exit), NR(exit_group), NR(rt_sigaction), NR(rt_sigprocmask), NR(rt_sigreturn),
	NR(rt_sigtimedwait), NR(sigaltstack), NR(restart_syscall), NR(getuid), NR(geteuid), NR(getgid), NR(getegid),
	NR(epoll_create1), NR(epoll_ctl), NR(epoll_wait), NR(epoll_pwait), NR(epoll_pwait2), NR(poll), NR(ppoll),
	NR(select), NR(pselect6), NR(eventfd2), NR(timerfd_create), NR(timerfd_settime), NR(timerfd_gettime),
	NR(signalfd4), NR(nanosleep), NR(clock_nanosleep), NR(clock_gettime), NR(clock_getres), NR(gettimeofday),
	NR(time), NR(getrandom), NR(uname), NR(sysinfo), NR(timer_create), NR(timer_settime), NR(timer_delete),
	NR(read), NR(readv), NR(pread64), NR(preadv), NR(preadv2), NR(write), NR(writev), NR(pwrite64), NR(pwritev),
	NR(pwritev2), NR(lseek), NR(close), NR(fstat), NR(newfstatat), NR(statx), NR(fsync), NR(fdatasync),
	NR(sync_file_range), NR(fallocate), NR(ftruncate), NR(pipe2), NR(dup), NR(io_uring_enter),
	NR(socket), NR(socketpair), NR(bind), NR(listen), NR(accept), NR(accept4), NR(connect), NR(getsockname),
	NR(getpeername), NR(setsockopt), NR(getsockopt), NR(shutdown), NR(sendto), NR(sendmsg), NR(sendmmsg),
	NR(recvfrom), NR(recvmsg), NR(recvmmsg),
};

/* Requests that only look, or that the block layer and KVM need.  Never TIOCSTI and its like. */
static const unsigned long ioctls[] = { FIONREAD, FIONBIO, TCGETS, 0x1277 /* BLKDISCARD */, 0x127f /* BLKZEROOUT */,
	0x80081272 /* BLKGETSIZE64 */ };

static int file_rules(scmp_filter_ctx f, bool kvm)
{
	const unsigned writes = O_ACCMODE | O_CREAT | O_TRUNC;
	int ret = 0;

	/* Opening for reading is Landlock's to judge. */
	if (kvm)
		ret |= seccomp_rule_add(f, SCMP_ACT_ALLOW, NR(openat), 0);
	else
		ret |= seccomp_rule_add(f, SCMP_ACT_ALLOW, NR(openat), 1, SCMP_A2(SCMP_CMP_MASKED_EQ, writes, O_RDONLY));
	/* Tried by the C library before it does something else. */
	ret |= seccomp_rule_add(f, SCMP_ACT_ERRNO(ENOSYS), NR(clone3), 0);
	ret |= seccomp_rule_add(f, SCMP_ACT_ERRNO(EACCES), NR(readlink), 0);
	for (int cmd = 0; cmd <= F_SETFL; cmd++)
		if (cmd != F_DUPFD)
			ret |= seccomp_rule_add(f, SCMP_ACT_ALLOW, NR(fcntl), 1, SCMP_A1(SCMP_CMP_EQ, (unsigned)cmd));
	ret |= seccomp_rule_add(f, SCMP_ACT_ALLOW, NR(fcntl), 1, SCMP_A1(SCMP_CMP_EQ, F_DUPFD_CLOEXEC));
	ret |= seccomp_rule_add(f, SCMP_ACT_ALLOW, NR(fcntl), 1, SCMP_A1(SCMP_CMP_EQ, F_ADD_SEALS));
	ret |= seccomp_rule_add(f, SCMP_ACT_ALLOW, NR(fcntl), 1, SCMP_A1(SCMP_CMP_EQ, F_OFD_SETLK));
	for (unsigned i = 0; i < sizeof(ioctls) / sizeof(ioctls[0]); i++)
		ret |= seccomp_rule_add(f, SCMP_ACT_ALLOW, NR(ioctl), 1,
					SCMP_A1(SCMP_CMP_MASKED_EQ, UINT32_MAX, ioctls[i]));
	if (kvm)	/* type 0xae: KVM's own */
		ret |= seccomp_rule_add(f, SCMP_ACT_ALLOW, NR(ioctl), 1, SCMP_A1(SCMP_CMP_MASKED_EQ, 0xff00, 0xae00));
	return ret;
}

static int process_rules(scmp_filter_ctx f)
{
	const uint64_t thread = CLONE_THREAD | CLONE_VM;
	int ret = 0;

	ret |= seccomp_rule_add(f, SCMP_ACT_ALLOW, NR(clone), 1, SCMP_A0(SCMP_CMP_MASKED_EQ, thread, thread));
	ret |= seccomp_rule_add(f, SCMP_ACT_ALLOW, NR(tgkill), 1, SCMP_A0(SCMP_CMP_EQ, (unsigned)getpid()));
	ret |= seccomp_rule_add(f, SCMP_ACT_ALLOW, NR(prctl), 1, SCMP_A0(SCMP_CMP_EQ, PR_SET_NAME));
	/* Limits may be read (for the stacks of threads), not set. */
	ret |= seccomp_rule_add(f, SCMP_ACT_ALLOW, NR(prlimit64), 1, SCMP_A2(SCMP_CMP_EQ, 0));
	return ret;
}

static int seccomp_enter(bool kvm)
{
	scmp_filter_ctx f = seccomp_init(SCMP_ACT_KILL_PROCESS);
	int ret;

	if (!f)
		return -ENOMEM;
	ret = seccomp_attr_set(f, SCMP_FLTATR_CTL_TSYNC, 1);
	for (unsigned i = 0; i < sizeof(allowed) / sizeof(allowed[0]) && !ret; i++)
		ret = seccomp_rule_add(f, SCMP_ACT_ALLOW, allowed[i], 0);
	if (!ret && (file_rules(f, kvm) || process_rules(f)))
		ret = -EINVAL;
	if (!ret)
		ret = seccomp_load(f);
	seccomp_release(f);
	return ret;
}

int sandbox_enter(const struct sandbox *s, struct error *e)
{
	static const char todo[] = "run it where seccomp filters are allowed";
	int ret = prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) ? -errno : 0;

	if (!ret)
		ret = capabilities_drop(s->low_ports);
	if (!ret && CONFINED)
		ret = landlock_enter(s);
	if (!ret && CONFINED)
		ret = seccomp_enter(s->kvm);
	return ret ? error_errno(e, -ret, todo, "confine the VM's process") : 0;
}
