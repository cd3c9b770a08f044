/*
 * What one process has opened or read, for another one that may not: descriptors with names, members of block_options.fds.
 * What is no open file of a path by itself has a name of its own kind: a prefix, and the path that it belongs to.
 */
#ifndef VIXEN_BLOCK_HANDOVER_H
#define VIXEN_BLOCK_HANDOVER_H

#include <sys/uio.h>

#include "block/node.h"

/* --- giving --- */

/* An anonymous file that holds the parts, one behind the other; its descriptor, or -errno. */
int handover_file(const char *name, const struct iovec *parts, int count);
/* Takes fd over; one below 0 is an error already.  -errno. */
int handover_name(struct block_fd *out, const char *prefix, const char *path, int fd);

/* --- taking --- */

/* A copy of the descriptor that the options give for n's path behind that prefix; -1: none. */
int handover_given(const struct node *n, const struct node_open *how, const char *prefix);

#endif
