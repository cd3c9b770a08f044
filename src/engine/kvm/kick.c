#include "engine/kvm/kick.h"

#include <errno.h>
#include <signal.h>
#include <stddef.h>
#include <string.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

static void kicked(int number, siginfo_t *info, void *context)
{
	struct kick_timer *t = info->si_value.sival_ptr;

	if (info->si_code == SI_TIMER)
		t->fn(t->opaque);
}

void kick_prepare(void)
{
	struct sigaction sa = { .sa_sigaction = kicked, .sa_flags = SA_RESTART | SA_SIGINFO };

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

int kick_timer_init(struct kick_timer *t)
{
	struct sigevent ev = { .sigev_notify = SIGEV_THREAD_ID, .sigev_signo = SIGRTMIN,
			       .sigev_value.sival_ptr = t };

	ev._sigev_un._tid = kick_accept();
	return timer_create(CLOCK_MONOTONIC, &ev, &t->timer) ? -errno : 0;
}

void kick_timer_fini(struct kick_timer *t)
{
	timer_delete(t->timer);
}

void kick_timer_set(struct kick_timer *t, uint64_t ns)
{
	const struct itimerspec when = { .it_value = { (time_t)(ns / 1000000000u), (long)(ns % 1000000000u) } };

	timer_settime(t->timer, 0, &when, NULL);
}
