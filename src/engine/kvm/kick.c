#include "engine/kvm/kick.h"

#include <signal.h>
#include <stddef.h>
#include <sys/syscall.h>
#include <unistd.h>

static void kicked(int number) { }

void kick_prepare(void)
{
	struct sigaction sa = { .sa_handler = kicked, .sa_flags = SA_RESTART };

	sigaction(SIGRTMIN, &sa, NULL);
}

int kick_accept(void)
{
	sigset_t set;

	sigemptyset(&set);
	sigaddset(&set, SIGRTMIN);
	pthread_sigmask(SIG_UNBLOCK, &set, NULL);
	return (int)syscall(SYS_gettid);
}

void kick_send(int tid)
{
	syscall(SYS_tgkill, getpid(), tid, SIGRTMIN);
}
