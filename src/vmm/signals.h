/* The signals of vixen-vmm, blocked in all its threads and read from a file descriptor. */
#ifndef VIXEN_VMM_SIGNALS_H
#define VIXEN_VMM_SIGNALS_H

enum signal_wish { SIGNAL_NONE, SIGNAL_STOP, SIGNAL_POWER_BUTTON };

/* Before any thread is started. A non-blocking fd, or -errno. */
int signals_open(void);
enum signal_wish signals_next(int fd);

#endif
