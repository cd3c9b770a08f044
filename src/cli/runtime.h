/*
 * Where running VMs of this user are found: a folder that only its owner can enter,
 * ${XDG_RUNTIME_DIR}/vixen, /run/vixen for root, or /tmp/vixen-UID.
 *
 *	NAME.lock	locked for as long as NAME runs; a killed `vixen run` leaves the file, but not the lock
 *	NAME.sock	its control socket (proto/control.h)
 */
#ifndef VIXEN_CLI_RUNTIME_H
#define VIXEN_CLI_RUNTIME_H

#include <stdbool.h>

#include "base/error.h"

#define RUNTIME_NAME_MAX 63

/* Letters, digits, '.', '_' and '-', beginning with a letter or digit; 1 to 63 of them. */
bool runtime_name_valid(const char *name);

struct runtime {
	char name[RUNTIME_NAME_MAX + 1];
	int lock, listen;		/* -1: none */
};
/* Takes a name. wanted: the user's, -EBUSY if a VM has it; or NULL: hint, or hint with a number. */
int runtime_claim(struct runtime *r, const char *wanted, const char *hint, struct error *e);
void runtime_release(struct runtime *r);

/* Calls fn for each VM that runs, by name; false stops. */
int runtime_each(bool (*fn)(void *opaque, const char *name), void *opaque, struct error *e);
/* A connection to its control socket, or -errno with e filled in. */
int runtime_connect(const char *name, struct error *e);

#endif
