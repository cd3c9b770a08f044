/* Messages to stderr, and rate-limited traces of what a guest did wrong. */
#ifndef VIXEN_BASE_LOG_H
#define VIXEN_BASE_LOG_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

/* "vixen: TEXT" on stderr; any thread. */
void log_warn(const char *fmt, ...) __attribute__((format(printf, 1, 2)));

/* A budget of messages that a guest can cause: at most `burst`, and one more each second. Zero-initialise. */
struct log_limit {
	_Atomic uint64_t last_ns;
	_Atomic uint32_t used;
};
bool log_limit_pass(struct log_limit *l);
/* As log_warn, within the budget; "vixen: guest: TEXT". */
void log_guest(struct log_limit *l, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

#endif
