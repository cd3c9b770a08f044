#include "cli/vmm_process.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "cli/catalog.h"
#include "cli/terminal.h"
#include "cli/verb.h"
#include "host/loop.h"
#include "vmm/vm.h"
#include "vmm/vm_config.h"

#define INSIST_NS 1000000000ull		/* a request sooner after the first is its echo */
#define STOP_GRACE_NS 15000000000ull	/* for the disks to be written out */
#define PENDING_MAX 4096u

struct relay {
	pid_t pid;
	int console, signals;
	struct terminal terminal;
	struct escape escape;
	bool input;		/* stdin is read */
	bool interrupted, killed;
	uint64_t stop_at_ns;
	uint8_t pending[PENDING_MAX];	/* for the guest, not taken yet */
	size_t npending;
};

static void vmm_kill(struct relay *r)
{
	kill(r->pid, SIGKILL);
	r->killed = true;
	fprintf(stderr, "vixen: stop the guest failed: its process was killed before its disks were written out; "
			"check the guest's file systems\n");
}

static void stop_guest(struct relay *r)
{
	if (r->interrupted)
		return;
	kill(r->pid, SIGTERM);
	r->stop_at_ns = clock_now_ns();
	r->interrupted = true;
}

/* The user asks; twice, and the disks are not waited for. A terminal that closes or a parent that cleans up sends
 * its signal more than once, too: that never costs data. */
static void stop_guest_insist(struct relay *r)
{
	if (r->interrupted && !r->killed && clock_now_ns() - r->stop_at_ns > INSIST_NS)
		vmm_kill(r);
	stop_guest(r);
}

static void on_signal(struct relay *r)
{
	struct signalfd_siginfo si;
	if (read(r->signals, &si, sizeof si) == (ssize_t)sizeof si)
		(si.ssi_signo == SIGINT || si.ssi_signo == SIGQUIT ? stop_guest_insist : stop_guest)(r);
}

static void escape_help(void)
{
	fprintf(stderr, "\nvixen: Ctrl-A x  stop the guest and quit\n       Ctrl-A p  press the power button\n"
			"       Ctrl-A h  this help\n       Ctrl-A Ctrl-A  send Ctrl-A\n");
}

static void input_keep(struct relay *r, const uint8_t *bytes, size_t n)
{
	memcpy(r->pending + r->npending, bytes, n);
	r->npending += n;
}

static void input_filter(struct relay *r, const uint8_t *in, size_t n)
{
	uint8_t out[257];
	while (n) {
		size_t used, nout;
		enum escape_action action = escape_filter(&r->escape, in, n, &used, out, &nout);
		input_keep(r, out, nout);
		in += used;
		n -= used;
		switch (action) {
		case ESCAPE_NONE: break;
		case ESCAPE_QUIT: stop_guest_insist(r); break;
		case ESCAPE_HELP: escape_help(); break;
		case ESCAPE_POWER: kill(r->pid, SIGUSR1); break;
		}
	}
}

static void on_input(struct relay *r)
{
	uint8_t in[256];
	ssize_t n = read(STDIN_FILENO, in, sizeof in);
	if (n < 0 && (errno == EINTR || errno == EAGAIN))
		return;
	if (n <= 0) {
		r->input = false;
		if (r->terminal.raw && !r->interrupted)
			stop_guest(r);		/* the terminal is closed */
		return;
	}
	if (r->terminal.raw)
		input_filter(r, in, (size_t)n);
	else
		input_keep(r, in, (size_t)n);
}

static void input_send(struct relay *r)
{
	ssize_t n = send(r->console, r->pending, r->npending, MSG_DONTWAIT | MSG_NOSIGNAL);
	if (n < 0 && errno != EAGAIN && errno != EINTR)
		n = (ssize_t)r->npending;
	if (n <= 0)
		return;
	memmove(r->pending, r->pending + n, r->npending - (size_t)n);
	r->npending -= (size_t)n;
}

static void output_write(struct relay *r, const uint8_t *p, size_t n)
{
	while (n) {
		ssize_t done = write(STDOUT_FILENO, p, n);
		if (done < 0 && errno == EINTR)
			continue;
		if (done < 0 && errno == EAGAIN) {
			struct pollfd pfd = { .fd = STDOUT_FILENO, .events = POLLOUT };
			poll(&pfd, 1, 1000);
			continue;
		}
		if (done <= 0) {
			if (!r->interrupted && errno != EPIPE && errno != EIO)
				fprintf(stderr, "vixen: write the console's output failed: %s; "
						"make room, or use --console none\n", strerror(errno));
			stop_guest(r);		/* nobody reads any more */
			return;
		}
		p += done;
		n -= (size_t)done;
	}
}

/* false: vixen-vmm has closed its end. */
static bool on_console(struct relay *r)
{
	uint8_t buf[16384];
	ssize_t n = read(r->console, buf, sizeof buf);
	if (n < 0)
		return errno == EINTR || errno == EAGAIN;
	output_write(r, buf, (size_t)n);
	return n > 0;
}

static int relay_timeout(struct relay *r)
{
	if (!r->interrupted || r->killed)
		return -1;
	uint64_t now = clock_now_ns();
	if (now < r->stop_at_ns + STOP_GRACE_NS)
		return (int)((r->stop_at_ns + STOP_GRACE_NS - now) / 1000000) + 1;
	vmm_kill(r);
	return -1;
}

static void relay_run(struct relay *r)
{
	for (;;) {
		bool reads = r->input && r->npending + 512 < PENDING_MAX;
		struct pollfd p[3] = {
			{ .fd = r->console, .events = (short)(POLLIN | (r->npending ? POLLOUT : 0)) },
			{ .fd = r->signals, .events = POLLIN },
			{ .fd = reads ? STDIN_FILENO : -1, .events = POLLIN },
		};
		if (poll(p, 3, relay_timeout(r)) < 0 && errno != EINTR)
			return;
		if (p[1].revents)
			on_signal(r);
		if (p[2].revents)
			on_input(r);
		if (r->npending && p[0].revents & POLLOUT)
			input_send(r);
		if (p[0].revents & (POLLIN | POLLHUP | POLLERR) && !on_console(r))
			return;
	}
}

static int config_file(const struct vm_config *c, struct error *e)
{
	char *json = vm_config_encode(c);
	int fd = json ? memfd_create("vixen-config", MFD_CLOEXEC) : -1;
	if (fd < 0 || write(fd, json, strlen(json)) != (ssize_t)strlen(json)) {
		int err = json ? errno : ENOMEM;
		free(json);
		return error_errno(e, err, NULL, "write the VM's configuration");
	}
	free(json);
	return fd;
}

/* In the child: its own process group, so that the terminal's signals come to the parent alone. */
_Noreturn static void vmm_exec(const char *path, int config, int console, int control, pid_t parent)
{
	char config_text[16], console_text[16], control_text[16], name[] = "vixen-vmm";
	char *argv[] = { name, config_text, console_text, control_text, NULL };
	sigset_t none;
	prctl(PR_SET_PDEATHSIG, SIGTERM);
	if (getppid() != parent)
		_exit(EXIT_FAILED);
	setpgid(0, 0);
	sigemptyset(&none);
	sigprocmask(SIG_SETMASK, &none, NULL);
	snprintf(config_text, sizeof config_text, "%d", config);
	snprintf(console_text, sizeof console_text, "%d", console);
	snprintf(control_text, sizeof control_text, "%d", control);
	int null = open("/dev/null", O_RDWR);
	if (null >= 0) {
		dup2(null, STDIN_FILENO);
		dup2(null, STDOUT_FILENO);
	}
	fcntl(config, F_SETFD, 0);
	fcntl(console, F_SETFD, 0);
	if (control >= 0)
		fcntl(control, F_SETFD, 0);
	execv(path, argv);
	fprintf(stderr, "vixen: start '%s' failed: %s; install vixen again, whole\n", path, strerror(errno));
	_exit(EXIT_FAILED);
}

static int signals_open(void)
{
	sigset_t set;
	sigemptyset(&set);
	sigaddset(&set, SIGINT);
	sigaddset(&set, SIGTERM);
	sigaddset(&set, SIGHUP);
	sigaddset(&set, SIGQUIT);
	sigprocmask(SIG_BLOCK, &set, NULL);
	signal(SIGPIPE, SIG_IGN);
	signal(SIGXFSZ, SIG_IGN);	/* past ulimit -f writes fail with EFBIG instead */
	return signalfd(-1, &set, SFD_CLOEXEC);
}

static int exit_status(const struct relay *r)
{
	int status = 0;
	while (waitpid(r->pid, &status, 0) < 0 && errno == EINTR)
		;
	if (r->interrupted)
		return VM_EXIT_INTERRUPTED;
	if (WIFEXITED(status))
		return WEXITSTATUS(status);
	fprintf(stderr, "vixen: run the VM failed: its process died on signal %d (%s); please report it\n",
		WTERMSIG(status), strsignal(WTERMSIG(status)));
	return VM_EXIT_FAILED;
}

/* vixen-vmm cannot: its sandbox lets it remove nothing. */
static void socket_remove(const struct vm_config *c)
{
	const char *path = c->gdb && !strncmp(c->gdb, "unix:", 5) ? c->gdb + 5 : NULL;
	struct stat st;
	if (path && !lstat(path, &st) && S_ISSOCK(st.st_mode))
		unlink(path);
}

int vmm_run(const struct vm_config *c, int control, struct error *e)
{
	char path[PATH_MAX];
	struct relay r = { 0 };
	int pair[2], ret = program_find(path, "vixen-vmm", e);
	if (ret)
		return ret;
	int config = config_file(c, e);
	if (config < 0)
		return config;
	if ((r.signals = signals_open()) < 0 || socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair))
		return error_errno(e, errno, "raise the limit on open files", "start the VM");
	pid_t self = getpid();
	r.pid = fork();
	if (r.pid < 0)
		return error_errno(e, errno, "raise the limit on processes", "start the VM");
	if (!r.pid)
		vmm_exec(path, config, pair[1], control, self);
	close(pair[1]);
	close(config);
	r.console = pair[0];
	if (c->console == VM_CONSOLE_STDIO) {
		terminal_take(&r.terminal);
		r.input = true;
	}
	relay_run(&r);
	int code = exit_status(&r);
	socket_remove(c);
	terminal_give_back(&r.terminal);
	close(r.console);
	close(r.signals);
	return code;
}
