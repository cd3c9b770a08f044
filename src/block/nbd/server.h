/*
 * An NBD server: exports one disk to any number of clients.
 *
 * Owner: whoever made it; the disk stays the caller's and is not closed.  Thread: the disk's loop.  Clients are never
 * trusted: each has bounded memory (NBD_CLIENT_BYTES and NBD_CLIENT_REQUESTS in server_private.h) and a coroutine of
 * its own, so that one that is slow or hostile hinders no other.
 */
#ifndef VIXEN_BLOCK_NBD_SERVER_H
#define VIXEN_BLOCK_NBD_SERVER_H

#include <stdbool.h>

#include "base/error.h"

struct block;
struct loop;
struct nbd_server;
struct nbd_tls;

#define NBD_SERVER_BITMAPS 16u

/* Strings are copied. */
struct nbd_server_options {
	struct block *disk;
	const char *name;		/* of the export; NULL: "", the default export, which every name-less client gets */
	const char *description;	/* NULL: none */
	bool readonly;
	const char *const *bitmaps;	/* of the disk, for clients that want to know what has changed */
	unsigned nbitmaps;		/* at most NBD_SERVER_BITMAPS */
	struct nbd_tls *tls;		/* all clients have to use it; stays the caller's; NULL: none can */
	unsigned clients_max;		/* 0: 32 */
	void (*left)(void *opaque);	/* the last client that had chosen the export */
	void *opaque;
};

int nbd_server_new(struct nbd_server **out, struct loop *l, const struct nbd_server_options *o, struct error *e);
/* Accepts clients from a listening socket, which stays the caller's and is made non-blocking. */
int nbd_server_listen(struct nbd_server *s, int fd, struct error *e);
/* Serves one client on a connected stream socket, which is taken over. */
int nbd_server_add(struct nbd_server *s, int fd);
/* Hangs up on all clients and waits, running the loop, until what they had under way is done.  Does not flush.
 * Not from a callback of the loop.  NULL is fine. */
void nbd_server_free(struct nbd_server *s);

#endif
