/* Inside the NBD server: for server.c, handshake.c and transmit.c. */
#ifndef VIXEN_BLOCK_NBD_SERVER_PRIVATE_H
#define VIXEN_BLOCK_NBD_SERVER_PRIVATE_H

#include "block/block.h"
#include "block/nbd/server.h"
#include "block/nbd/socket.h"

#define NBD_CLIENT_BYTES (32u << 20)	/* of buffers, of all of a client's requests under way */
#define NBD_CLIENT_REQUESTS 64u
#define NBD_BLOCK_MIN 512u

/* What clients may ask of a range; a context's number plus one is its id on the wire. */
enum nbd_server_contexts { NBD_HAS_ALLOCATION, NBD_HAS_DEPTH, NBD_HAS_BITMAP /* the first */ };

struct nbd_client;

struct nbd_server {
	struct loop *loop;
	struct coroutines *co;
	struct nbd_server_options o;
	char *name, *description;
	char *bitmap[NBD_SERVER_BITMAPS];
	bool readonly, stopping;
	unsigned nclients, nchosen;	/* nchosen: of them in transmission */
	struct nbd_client *clients;
	int listen_fd;
	struct loop_fd *listen;
	struct loop_timer *retry;	/* of accepting, when the host had no descriptors left */
	struct co_queue gone;		/* waits for nclients to be 0 */
};

struct nbd_client {
	struct nbd_server *s;
	struct nbd_client *next, **self;
	struct nbd_sock sock;
	bool structured;		/* negotiated: structured replies */
	uint32_t contexts;		/* and these: bits of enum nbd_server_contexts */
	bool dead;			/* replies are no longer sent */
	unsigned in_flight;
	uint64_t bytes;			/* of buffers of requests in flight */
	struct co_queue room;		/* the reader waits for requests to end */
	struct co_mutex send;		/* whole replies */
};

uint16_t nbd_server_flags(const struct nbd_client *c);	/* enum nbd_export_flags */
/* Until the client has chosen the export: 0; or it is to be hung up on. */
int nbd_server_handshake(struct nbd_client *c);
/* Until the client leaves; then nothing of it is under way. */
void nbd_server_transmit(struct nbd_client *c);

#endif
