/*
 * A stream socket for coroutines: one that reads and one that writes at a time.
 *
 * Owner: whoever called nbd_sock_init.  Thread: the loop's.  Errors are -errno; the end of the stream is -ECONNRESET.
 */
#ifndef VIXEN_BLOCK_NBD_SOCKET_H
#define VIXEN_BLOCK_NBD_SOCKET_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/uio.h>

#include "host/coroutine.h"
#include "host/loop.h"

struct nbd_tls_stream;

struct nbd_sock {
	int fd;
	struct nbd_tls_stream *tls;	/* what is read and written goes through it (tls.h); NULL: none */
	struct coroutines *co;
	struct loop_fd *watch;
	struct loop_timer *timer;
	struct co *reader, *writer;	/* who waits for the socket */
	uint8_t *ahead;			/* bytes read ahead, for small reads */
	size_t ahead_at, ahead_end;
	bool open, expired;		/* expired: shut down by the deadline */
};

/* Takes fd over, also when it fails: nbd_sock_fini() is due in any case.  Makes it non-blocking. */
int nbd_sock_init(struct nbd_sock *s, struct loop *l, int fd);
/* Nobody waits on it any more.  Zeroed memory is fine, too. */
void nbd_sock_fini(struct nbd_sock *s);
/* Everybody who waits is woken and fails, now and later.  Any number of times, also when others use it. */
void nbd_sock_shutdown(struct nbd_sock *s);
/* Shuts down after so many ns from now, unless set anew; 0: never. */
void nbd_sock_deadline(struct nbd_sock *s, uint64_t ns);

int nbd_sock_read(struct nbd_sock *s, void *buf, size_t len);
int nbd_sock_readv(struct nbd_sock *s, const struct iovec *iov, int iovcnt);
int nbd_sock_skip(struct nbd_sock *s, uint64_t len);
/* A head and then iov, which may be empty. */
int nbd_sock_write(struct nbd_sock *s, const void *head, size_t len, const struct iovec *iov, int iovcnt);
bool nbd_sock_has_ahead(const struct nbd_sock *s);	/* bytes came that nobody has read yet */
int nbd_sock_wait_connected(struct nbd_sock *s);	/* after a connect() that was EINPROGRESS */

/* --- for tls.c: below TLS --- */
ssize_t nbd_sock_raw_recv(struct nbd_sock *s, void *buf, size_t len);	/* some bytes, at least one; or -errno */
int nbd_sock_raw_send(struct nbd_sock *s, const void *buf, size_t len);	/* all of it */
void nbd_sock_raw_try(struct nbd_sock *s, const void *buf, size_t len);	/* what goes without waiting */

#endif
