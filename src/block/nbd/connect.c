/* The client's side of the negotiation ("Newstyle negotiation" in proto.md). */
#include <endian.h>
#include <errno.h>
#include <netdb.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <sys/un.h>
#include <unistd.h>

#include "base/endian.h"
#include "block/nbd/client.h"

#define CONNECT_NS 10000000000ull
#define HANDSHAKE_NS 30000000000ull
#define REPLY_BYTES (64u << 10)
#define REPLIES_MAX 256u		/* to one option */

static void opening(char what[192], const struct nbd_conn *c)
{
	snprintf(what, 192, "open disk '%.150s'", c->n->path);
}

static int broken(const struct nbd_conn *c, int err, struct error *e)
{
	char what[192];

	opening(what, c);
	if (err == -EPROTO)
		return error_set(e, EIO, "is that port an NBD server's?", what, "the server does not speak NBD as expected");
	/* Under TLS 1.3 the server looks at the client's certificate late, and its alert may be lost as it hangs up. */
	if (err == -EACCES || (c->sock.tls && (err == -ECONNRESET || err == -EPIPE)))
		return error_set(e, EACCES, "check the certificate, or the key, that you show it", what,
				 err == -EACCES ? "the server does not accept it for TLS" : "the server hung up on TLS");
	if (err == -ECONNRESET || err == -EPIPE)
		return error_set(e, EIO, "look at what the server says", what, "the server hung up");
	return error_set(e, -err, "look at what the server says", what, "the server: %s", strerror(-err));
}

/* --- connecting --- */

static int connect_unix(struct nbd_conn *c, struct loop *l, const struct nbd_uri *u)
{
	const struct timeval patience = { .tv_sec = 10 };	/* for a server that does not accept */
	struct sockaddr_un a = { .sun_family = AF_UNIX };
	int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0), err;

	if (fd < 0)
		return -errno;
	memcpy(a.sun_path, u->socket, sizeof(a.sun_path));
	setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &patience, sizeof(patience));
	if (connect(fd, (struct sockaddr *)&a, sizeof(a))) {
		err = errno;
		close(fd);
		return -err;
	}
	return nbd_sock_init(&c->sock, l, fd);
}

static int connect_address(struct nbd_conn *c, struct loop *l, const struct addrinfo *a)
{
	int fd = socket(a->ai_family, a->ai_socktype | SOCK_NONBLOCK | SOCK_CLOEXEC, a->ai_protocol), ret;

	if (fd < 0)
		return -errno;
	if (connect(fd, a->ai_addr, a->ai_addrlen) && errno != EINPROGRESS) {
		ret = -errno;
		close(fd);
		return ret;
	}
	ret = nbd_sock_init(&c->sock, l, fd);
	if (ret)
		return ret;
	nbd_sock_deadline(&c->sock, CONNECT_NS);
	return nbd_sock_wait_connected(&c->sock);
}

static int connect_tcp(struct nbd_conn *c, struct loop *l, const struct nbd_uri *u, struct error *e)
{
	const struct addrinfo hints = { .ai_socktype = SOCK_STREAM, .ai_flags = AI_NUMERICSERV };
	struct addrinfo *list;
	char what[192];
	int ret = getaddrinfo(u->host, u->port, &hints, &list);

	if (ret) {
		opening(what, c);
		return error_set(e, EHOSTUNREACH, "check the host's name", what, "'%.100s': %s", u->host,
				 gai_strerror(ret));
	}
	ret = -EHOSTUNREACH;
	for (const struct addrinfo *a = list; a && ret; a = a->ai_next) {
		ret = connect_address(c, l, a);
		if (ret)
			nbd_sock_fini(&c->sock);
	}
	freeaddrinfo(list);
	return ret ? error_errno(e, -ret, "is an NBD server running there?", "open disk '%s'", c->n->path) : 0;
}

static int tls_new(struct nbd_conn *c, const struct nbd_uri *u, int tls_fd, struct error *e)
{
	struct nbd_tls_options o = nbd_uri_tls(u);

	o.given = tls_fd >= 0;
	o.given_fd = tls_fd;
	return nbd_tls_new(&c->tls, &o, e);
}

/* --- options --- */

struct reply {
	uint32_t type, len;
	uint8_t *data;		/* REPLY_BYTES, and a NUL after len */
};

static int option_send(struct nbd_conn *c, uint32_t option, const void *data, size_t len)
{
	const struct nbd_option o = { htobe64(NBD_OPTION_MAGIC), htobe32(option), htobe32((uint32_t)len) };
	const struct iovec iov = { (void *)data, len };

	return nbd_sock_write(&c->sock, &o, sizeof(o), &iov, len ? 1 : 0);
}

static int reply_read(struct nbd_conn *c, uint32_t option, struct reply *r)
{
	struct nbd_option_reply head;
	int ret = nbd_sock_read(&c->sock, &head, sizeof(head));

	if (ret)
		return ret;
	r->type = be32toh(head.type);
	r->len = be32toh(head.len);
	if (be64toh(head.magic) != NBD_OPTION_REPLY_MAGIC || be32toh(head.option) != option || r->len >= REPLY_BYTES)
		return -EPROTO;
	ret = nbd_sock_read(&c->sock, r->data, r->len);
	r->data[ret ? 0 : r->len] = 0;
	return ret;
}

static int start_tls(struct nbd_conn *c, struct reply *r, struct error *e)
{
	char what[192], why[NBD_TLS_WHY];
	int ret = option_send(c, NBD_OPT_STARTTLS, NULL, 0);

	if (!ret)
		ret = reply_read(c, NBD_OPT_STARTTLS, r);
	if (!ret && nbd_sock_has_ahead(&c->sock))
		ret = -EPROTO;		/* nothing that came in the clear may be taken for something that came by TLS */
	if (ret)
		return broken(c, ret, e);
	opening(what, c);
	if (r->type != NBD_REP_ACK)
		return error_set(e, EPROTO, "use nbd:// in place of nbds:// if that may be read by others", what,
				 "the server has no TLS");
	ret = nbd_tls_start(c->tls, &c->sock, why);
	return ret ? error_set(e, EACCES, "check the certificates, or the key, of both sides", what, "no TLS: %s", why) : 0;
}

static int structured(struct nbd_conn *c, struct reply *r)
{
	int ret = option_send(c, NBD_OPT_STRUCTURED_REPLY, NULL, 0);

	if (!ret)
		ret = reply_read(c, NBD_OPT_STRUCTURED_REPLY, r);
	if (!ret && r->type != NBD_REP_ACK && !(r->type & NBD_REP_ERROR))
		ret = -EPROTO;
	c->structured = !ret && r->type == NBD_REP_ACK;
	return ret;
}

/* Length and name, as three of the options begin.  Returns the bytes put. */
static size_t put_name(uint8_t *p, const struct nbd_uri *u)
{
	size_t n = strlen(u->name);

	store_be32(p, (uint32_t)n);
	memcpy(p + 4, u->name, n);
	return 4 + n;
}

static int context_take(struct nbd_conn *c, const struct reply *r)
{
	const size_t n = strlen(NBD_CONTEXT_ALLOCATION);

	if (r->len != 4 + n || memcmp(r->data + 4, NBD_CONTEXT_ALLOCATION, n) || c->allocation)
		return -EPROTO;
	c->context = load_be32(r->data);
	c->allocation = true;
	return 0;
}

static int contexts(struct nbd_conn *c, const struct nbd_uri *u, struct reply *r)
{
	uint8_t out[NBD_NAME_MAX + 64];
	size_t len = put_name(out, u), n = strlen(NBD_CONTEXT_ALLOCATION);
	int ret;

	store_be32(out + len, 1);
	store_be32(out + len + 4, (uint32_t)n);
	memcpy(out + len + 8, NBD_CONTEXT_ALLOCATION, n);
	ret = option_send(c, NBD_OPT_SET_META_CONTEXT, out, len + 8 + n);
	for (unsigned i = 0; !ret && i < REPLIES_MAX; i++) {
		ret = reply_read(c, NBD_OPT_SET_META_CONTEXT, r);
		if (ret || r->type == NBD_REP_ACK)
			return ret;
		if (r->type & NBD_REP_ERROR) {
			c->allocation = false;
			return 0;
		}
		ret = r->type == NBD_REP_META_CONTEXT ? context_take(c, r) : -EPROTO;
	}
	return ret ? ret : -EPROTO;
}

static bool power_of_two(uint32_t n)
{
	return n && !(n & (n - 1));
}

static int info_take(struct nbd_conn *c, const struct reply *r, bool *have_export)
{
	uint16_t type = r->len >= 2 ? load_be16(r->data) : UINT16_MAX;

	if (type == NBD_INFO_EXPORT) {
		if (r->len != sizeof(struct nbd_info_export))
			return -EPROTO;
		c->size = load_be64(r->data + 2);
		c->flags = load_be16(r->data + 10);
		*have_export = true;
	} else if (type == NBD_INFO_BLOCK_SIZE) {
		if (r->len != sizeof(struct nbd_info_block_size))
			return -EPROTO;
		c->min = load_be32(r->data + 2);
		c->max = load_be32(r->data + 10);
		if (!power_of_two(c->min) || c->min > 65536 || c->max < c->min)
			return -EPROTO;
	}
	return r->len >= 2 ? 0 : -EPROTO;
}

/* What the server says goes to a terminal: plain characters only. */
static void plain(char *out, size_t size, const struct reply *r)
{
	size_t n = 0;

	for (; n < r->len && n + 1 < size && r->data[n]; n++)
		out[n] = r->data[n] >= 0x20 && r->data[n] < 0x7f ? (char)r->data[n] : '?';
	out[n] = 0;
}

static int refused(struct nbd_conn *c, const struct nbd_uri *u, const struct reply *r, struct error *e)
{
	char what[192], said[100];

	opening(what, c);
	plain(said, sizeof(said), r);
	if (r->type == NBD_REP_ERR_UNKNOWN)
		return error_set(e, ENOENT, "'nbdinfo --list' shows what it has", what, "the server has no export '%.80s'",
				 u->name);
	if (r->type == NBD_REP_ERR_TLS_REQD)
		return error_set(e, EACCES, "use nbds:// or nbds+unix://", what, "the server insists on TLS");
	return error_set(e, EIO, "look at what the server says", what, "the server refuses: %s",
			 *said ? said : "it does not say why");
}

/* Servers from before GO. */
static int export_name(struct nbd_conn *c, const struct nbd_uri *u, bool no_zeroes)
{
	struct nbd_export_reply r;
	int ret = option_send(c, NBD_OPT_EXPORT_NAME, u->name, strlen(u->name));

	if (!ret)
		ret = nbd_sock_read(&c->sock, &r, no_zeroes ? NBD_EXPORT_REPLY_SHORT : sizeof(r));
	if (!ret) {
		c->size = be64toh(r.size);
		c->flags = be16toh(r.flags);
	}
	return ret;
}

static int go(struct nbd_conn *c, const struct nbd_uri *u, struct reply *r, bool *have_export)
{
	uint8_t out[NBD_NAME_MAX + 16];
	size_t len = put_name(out, u);
	int ret;

	store_be16(out + len, 1);
	store_be16(out + len + 2, NBD_INFO_BLOCK_SIZE);
	ret = option_send(c, NBD_OPT_GO, out, len + 4);
	for (unsigned i = 0; !ret && i < REPLIES_MAX; i++) {
		ret = reply_read(c, NBD_OPT_GO, r);
		if (ret || r->type == NBD_REP_ACK || r->type & NBD_REP_ERROR)
			return ret;
		ret = r->type == NBD_REP_INFO ? info_take(c, r, have_export) : -EPROTO;
	}
	return ret ? ret : -EPROTO;
}

static int choose(struct nbd_conn *c, const struct nbd_uri *u, struct reply *r, bool no_zeroes, struct error *e)
{
	bool have_export = false;
	int ret = go(c, u, r, &have_export);

	if (!ret && r->type == NBD_REP_ERR_UNSUP)
		ret = export_name(c, u, no_zeroes);
	else if (!ret && r->type & NBD_REP_ERROR)
		return refused(c, u, r, e);
	else if (!ret && !have_export)
		ret = -EPROTO;
	return ret ? broken(c, ret, e) : 0;
}

static int greet(struct nbd_conn *c, bool *no_zeroes)
{
	struct nbd_greeting hello;
	uint32_t answer;
	uint16_t flags;
	int ret = nbd_sock_read(&c->sock, &hello, sizeof(hello));

	if (ret)
		return ret;
	flags = be16toh(hello.flags);
	if (be64toh(hello.magic) != NBD_MAGIC || be64toh(hello.option_magic) != NBD_OPTION_MAGIC ||
	    !(flags & NBD_FIXED_NEWSTYLE))
		return -EPROTO;
	*no_zeroes = flags & NBD_NO_ZEROES;
	answer = htobe32(NBD_FIXED_NEWSTYLE | (*no_zeroes ? NBD_NO_ZEROES : 0));
	return nbd_sock_write(&c->sock, &answer, sizeof(answer), NULL, 0);
}

static int negotiate(struct nbd_conn *c, const struct nbd_uri *u, struct error *e)
{
	struct reply r = { .data = malloc(REPLY_BYTES) };
	bool no_zeroes;
	int ret = r.data ? greet(c, &no_zeroes) : -ENOMEM;

	if (!ret && c->tls) {
		ret = start_tls(c, &r, e);
		if (ret)
			goto out;
	}
	if (!ret)
		ret = structured(c, &r);
	if (!ret && c->structured)
		ret = contexts(c, u, &r);
	if (ret)
		broken(c, ret, e);
	else
		ret = choose(c, u, &r, no_zeroes, e);
out:
	free(r.data);
	return ret;
}

int nbd_connect(struct nbd_conn *c, struct loop *l, const struct nbd_uri *u, int fd, int tls_fd, struct error *e)
{
	int ret;

	c->min = 1;
	c->max = NBD_PAYLOAD_MAX;
	ret = u->tls ? tls_new(c, u, tls_fd, e) : 0;
	if (fd >= 0) {
		int sock_ret = nbd_sock_init(&c->sock, l, fd);

		ret = ret ? ret : sock_ret;
		if (sock_ret)
			return error_errno(e, -sock_ret, NULL, "open disk '%s'", c->n->path);
	}
	if (ret)
		return ret;
	if (fd >= 0) {
		ret = 0;
	} else if (*u->socket) {
		ret = connect_unix(c, l, u);
		if (ret)
			return error_errno(e, -ret, "is an NBD server running there?", "open disk '%s'", c->n->path);
	} else {
		ret = connect_tcp(c, l, u, e);
		if (ret)
			return ret;
	}
	nbd_sock_deadline(&c->sock, HANDSHAKE_NS);
	ret = negotiate(c, u, e);
	nbd_sock_deadline(&c->sock, 0);
	return ret;
}
