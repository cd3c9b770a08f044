/*
 * Inside the NBD client, a protocol driver: for uri.c, connect.c, receive.c and client.c.
 *
 * The server is not trusted with more than the disk's content: what it sends is checked against what was asked, and
 * a server that breaks the protocol is hung up on.  When the connection is lost all requests fail, now and later.
 */
#ifndef VIXEN_BLOCK_NBD_CLIENT_H
#define VIXEN_BLOCK_NBD_CLIENT_H

#include "block/nbd/proto.h"
#include "block/nbd/socket.h"
#include "block/nbd/tls.h"
#include "block/node.h"

#define NBD_CLIENT_SLOTS 64u		/* requests under way */
#define NBD_SPANS 64u

/* Where a server is.  Either a socket's path, or host and port. */
struct nbd_uri {
	char socket[108], host[256], port[8];
	char name[NBD_NAME_MAX + 1];
	bool tls, any_peer;
	char certificates[1024], psk_file[1024], username[256], hostname[256];	/* for TLS; "": not given */
};
int nbd_uri_parse(struct nbd_uri *u, const char *text, struct error *e);

struct nbd_span { uint32_t at, len; };

/* A request under way, on the stack of the coroutine that waits for it.  Only the receiver ends it. */
struct nbd_slot {
	uint64_t cookie;
	uint16_t type;
	uint64_t offset;
	uint32_t len;
	const struct iovec *iov;	/* READ: for the data, len bytes */
	int iovcnt;
	struct nbd_span spans[NBD_SPANS];	/* READ: what has come, in order, disjoint, none adjacent */
	unsigned nspans;
	struct nbd_extent extent;	/* BLOCK_STATUS; its len is 0 until it has come */
	int ret;			/* the first error */
	bool done;
	struct co *waiter;
};

struct nbd_conn {
	struct nbd_sock sock;
	struct nbd_tls *tls;		/* NULL: in the clear */
	struct node *n;
	uint64_t size;
	uint16_t flags;			/* enum nbd_export_flags */
	uint32_t min, max;		/* block sizes */
	bool structured, allocation;
	uint32_t context;		/* the id of base:allocation */
	struct co_mutex send;
	struct nbd_slot *slots[NBD_CLIENT_SLOTS];
	uint32_t generation;		/* in the upper half of cookies: no late reply meets a new request */
	struct co_queue room;		/* for a slot */
	bool receiving, dead, closing;
	struct co_queue ended;		/* the receiver has */
	unsigned writers;		/* under way; or a read-modify-write, which is alone */
	bool exclusive;
	unsigned alone;			/* who wait to be; nobody overtakes them */
	struct co_queue gate;
};

/* In a coroutine: connects and negotiates. */
/* fd: a connection that was made elsewhere, which it takes over; -1: it makes one.  tls_fd: what nbd_tls_export() gave, for
 * TLS; -1: it reads the files. */
int nbd_connect(struct nbd_conn *c, struct loop *l, const struct nbd_uri *u, int fd, int tls_fd, struct error *e);
struct nbd_tls_options nbd_uri_tls(const struct nbd_uri *u);	/* its strings are u's */
#define NBD_TLS_PREFIX "tls:"		/* before an address: the name of nbd_tls_export()'s descriptor */
/* A coroutine's whole life: gives replies to their slots until the connection ends; then all of them fail. */
void nbd_receiver(void *conn);

#endif
