/*
 * TLS for NBD ("TLS support" in proto.md), by OpenSSL.  Certificates lie in a directory under the names that other NBD
 * programs use as well; instead of them both sides may have a pre-shared key.
 *
 *	ca-cert.pem                        whose certificates are believed
 *	server-cert.pem, server-key.pem    the server's
 *	client-cert.pem, client-key.pem    the client's; they may be missing
 *
 * Thread: the socket's loop.  The stream of a socket is inside of nbd_sock_read() and nbd_sock_write() once it has begun:
 *
 *	nbd_sock_read() ◀── SSL_read ◀── in (memory) ◀── nbd_sock_raw_recv()
 *	nbd_sock_write() ─▶ SSL_write ─▶ out (memory) ─▶ nbd_sock_raw_send(), one at a time
 */
#ifndef VIXEN_BLOCK_NBD_TLS_H
#define VIXEN_BLOCK_NBD_TLS_H

#include <stdbool.h>
#include <stddef.h>
#include <sys/types.h>

#include "base/error.h"

#define NBD_TLS_WHY 160

struct nbd_sock;
struct nbd_tls;
struct nbd_tls_stream;

/* Strings are copied. */
struct nbd_tls_options {
	const char *certificates;	/* directory; NULL: see psk_file; a client: the host's store of CAs */
	const char *psk_file;		/* pre-shared keys, lines of USER:HEX; excludes certificates */
	const char *username;		/* client: whose key; NULL: the first of the file */
	const char *hostname;		/* client: whom the server's certificate has to name; NULL: any name will do */
	bool server;
	bool any_peer;			/* client: do not verify the server's certificate */
	bool verify_clients;		/* server: only those with a certificate of the CA */
	bool given;			/* client: what the files hold is in given_fd, as nbd_tls_export() has it */
	int given_fd;			/* stays the caller's */
};
/* For a client that can open no files: what they hold, the host's CAs included.  A descriptor, or -errno with e set. */
int nbd_tls_export(const struct nbd_tls_options *o, struct error *e);

/* What one side has for any number of connections.  -errno with e set. */
int nbd_tls_new(struct nbd_tls **out, const struct nbd_tls_options *o, struct error *e);
void nbd_tls_free(struct nbd_tls *t);		/* no stream is left; NULL is fine */

/* In a coroutine, nobody else uses s: from here on all that s carries is encrypted.  -errno with why in words. */
int nbd_tls_start(struct nbd_tls *t, struct nbd_sock *s, char why[NBD_TLS_WHY]);

/* --- for socket.c --- */
ssize_t nbd_tls_read(struct nbd_sock *s, void *buf, size_t len);	/* as nbd_sock_raw_recv() */
int nbd_tls_write(struct nbd_sock *s, const void *buf, size_t len);	/* all of it; 0 or -errno */
void nbd_tls_bye(struct nbd_sock *s);		/* tells the peer that this is the end, if that goes without waiting */
void nbd_tls_end(struct nbd_tls_stream *t);	/* NULL is fine */

#endif
