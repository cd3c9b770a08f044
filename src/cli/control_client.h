/* Asking a running VM for something, by its control socket (proto/control.h). */
#ifndef VIXEN_CLI_CONTROL_CLIENT_H
#define VIXEN_CLI_CONTROL_CLIENT_H

#include <jansson.h>
#include <stdbool.h>
#include <stdint.h>

#include "base/error.h"
#include "proto/control.h"

typedef void control_progress_fn(void *opaque, uint64_t done, uint64_t total);

/* Connects, asks, and waits for the answer: 0 with *result (a new reference; may be NULL to drop it), or -errno with e,
 * the VM's own words included. arguments: stolen, may be NULL. progress may be NULL. */
int control_ask(const char *name, enum control_verb verb, json_t *arguments, control_progress_fn *progress,
		void *opaque, json_t **result, struct error *e);
/* The same, with open files for the VM, which stay the caller's. */
int control_ask_fds(const char *name, enum control_verb verb, json_t *arguments, const int *fds, unsigned nfds,
		    json_t **result, struct error *e);
/* The same for what may take long and be interrupted. */
struct control_want {
	enum control_verb verb;
	json_t *arguments;		/* stolen */
	const int *fds;			/* stay the caller's */
	unsigned nfds;
	/* When this gets readable the VM is asked once, by end_verb, to end it; its answer is waited for as before. */
	int interrupt_fd;		/* -1: never */
	bool *interrupted;		/* whether it was; may be NULL */
	enum control_verb end_verb;
	json_t *end_arguments;		/* borrowed */
	control_progress_fn *progress;	/* may be NULL */
	void *opaque;
};
int control_ask_for(const char *name, const struct control_want *w, json_t **result, struct error *e);
/* Waits until the VM ends, at most so long; false: it still runs. */
bool control_wait_end(const char *name, unsigned timeout_s);

#endif
