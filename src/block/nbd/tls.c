#include "block/nbd/tls.h"

#include <errno.h>
#include <limits.h>
#include <openssl/err.h>
#include <openssl/pem.h>
#include <openssl/ssl.h>
#include <openssl/x509v3.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "block/nbd/socket.h"
#include "block/nbd/tls_files.h"

#define CHUNK 16640u		/* a record with its overhead */
#define PSK_MIN 16u		/* bytes of a key */
#define PSK_MAX 64u

struct nbd_tls {
	SSL_CTX *ctx;
	bool server;
	char *psk_file, *username, *hostname;
	struct tls_files files;		/* a client's keys; the rest while it is set up */
};

struct nbd_tls_stream {
	SSL *ssl;
	BIO *in, *out;			/* owned by ssl */
	struct co_mutex sending;
	uint8_t chunk[CHUNK];		/* the reader's */
};

/* --- words --- */

static void last_error(char why[NBD_TLS_WHY])
{
	unsigned long code = ERR_peek_last_error();
	const char *reason = code ? ERR_reason_error_string(code) : NULL;

	snprintf(why, NBD_TLS_WHY, "%s", reason ? reason : "it does not say why");
	ERR_clear_error();
}

static int bad(struct error *e, const char *todo, const char *what)
{
	char why[NBD_TLS_WHY];

	last_error(why);
	return error_set(e, EINVAL, todo, what, "%s", why);
}

/* --- pre-shared keys --- */

static unsigned key_decode(const char *hex, uint8_t *key, unsigned max)
{
	unsigned n = 0, byte;

	for (; hex[0] && hex[1] && n < max && sscanf(hex, "%2x", &byte) == 1; hex += 2)
		key[n++] = (uint8_t)byte;
	return *hex || n < PSK_MIN ? 0 : n;
}

/* One line: USER:HEX.  The user's name is left in line. */
static unsigned line_take(char *line, const char *user, uint8_t *key, unsigned max)
{
	char *colon = strrchr(line, ':');

	line[strcspn(line, "\r\n")] = 0;
	if (*line == '#' || !colon)
		return 0;
	*colon = 0;
	return !user || !strcmp(line, user) ? key_decode(colon + 1, key, max) : 0;
}

/* The key of user, NULL: the first there is; its name goes to `name`.  Its length in bytes, 0: none.  Closes f. */
static unsigned key_find(FILE *f, const char *user, char *name, unsigned name_max, uint8_t *key, unsigned max)
{
	char line[512];
	unsigned n = 0;

	while (f && !n && fgets(line, sizeof(line), f))
		n = line_take(line, user, key, max);
	if (n && name)
		snprintf(name, name_max, "%s", line);
	OPENSSL_cleanse(line, sizeof(line));
	if (f)
		fclose(f);
	return n;
}

/* A server's keys may change while it runs. */
static unsigned psk_server(SSL *ssl, const char *identity, unsigned char *key, unsigned max)
{
	const struct nbd_tls *t = SSL_CTX_get_app_data(SSL_get_SSL_CTX(ssl));

	return identity ? key_find(fopen(t->psk_file, "re"), identity, NULL, 0, key, max) : 0;
}

static FILE *keys_open(const struct tls_files *f)
{
	return f->len[TLS_PSK] ? fmemopen(f->bytes[TLS_PSK], f->len[TLS_PSK], "r") : NULL;
}

static unsigned psk_client(SSL *ssl, const char *hint, char *identity, unsigned identity_max, unsigned char *key,
			   unsigned max)
{
	const struct nbd_tls *t = SSL_CTX_get_app_data(SSL_get_SSL_CTX(ssl));

	(void)hint;
	return key_find(keys_open(&t->files), t->username, identity, identity_max, key, max);
}

static int psk_setup(struct nbd_tls *t, struct error *e)
{
	uint8_t key[PSK_MAX];
	char what[PATH_MAX + 32];
	unsigned n = key_find(keys_open(&t->files), t->username, NULL, 0, key, sizeof(key));

	OPENSSL_cleanse(key, sizeof(key));
	snprintf(what, sizeof(what), "read the TLS keys in '%s'", t->psk_file);
	if (!n)
		return error_set(e, EINVAL, "psktool makes such files; keys have 16 to 64 bytes", what,
				 "it has no line USER:HEX%s%s", t->username ? " for " : "", t->username ? t->username : "");
	if (t->server)
		SSL_CTX_set_psk_server_callback(t->ctx, psk_server);
	else
		SSL_CTX_set_psk_client_callback(t->ctx, psk_client);
	/* TLS 1.2 has suites of their own for them, which need no certificate. */
	if (SSL_CTX_set_cipher_list(t->ctx, "ECDHE-PSK-CHACHA20-POLY1305:ECDHE-PSK-AES256-CBC-SHA384") != 1)
		return bad(e, NULL, "set up TLS");
	return 0;
}

/* --- certificates --- */

static BIO *part_open(const struct tls_files *f, enum tls_part p)
{
	return BIO_new_mem_buf(f->bytes[p], (int)f->len[p]);
}

static int no_passphrase(char *buf, int size, int writing, void *opaque)
{
	return 0;
}

/* The certificate, and those between it and the authority. */
static bool chain_use(SSL_CTX *ctx, BIO *in)
{
	X509 *cert = PEM_read_bio_X509_AUX(in, NULL, no_passphrase, NULL);
	bool good = cert && SSL_CTX_use_certificate(ctx, cert) == 1;

	X509_free(cert);
	while (good && (cert = PEM_read_bio_X509(in, NULL, no_passphrase, NULL)))
		if (SSL_CTX_add0_chain_cert(ctx, cert) != 1) {
			X509_free(cert);
			good = false;
		}
	if (good)
		ERR_clear_error();	/* the end of the file */
	return good;
}

static bool key_use(SSL_CTX *ctx, BIO *in)
{
	EVP_PKEY *key = PEM_read_bio_PrivateKey(in, NULL, no_passphrase, NULL);
	bool good = key && SSL_CTX_use_PrivateKey(ctx, key) == 1 && SSL_CTX_check_private_key(ctx) == 1;

	EVP_PKEY_free(key);
	return good;
}

static int own_certificate(struct nbd_tls *t, const char *dir, struct error *e)
{
	char what[PATH_MAX + 64];
	BIO *cert = part_open(&t->files, TLS_CERT), *key = part_open(&t->files, TLS_KEY);
	bool good = cert && key && chain_use(t->ctx, cert) && key_use(t->ctx, key);

	BIO_free(cert);
	BIO_free(key);
	snprintf(what, sizeof(what), "read the certificate '%s/%s-cert.pem' and its key", dir, t->server ? "server" : "client");
	return good ? 0 : bad(e, "both have to be PEM, and belong together", what);
}

/* One that is there twice, or that this OpenSSL does not know, is left out. */
static int authorities(struct nbd_tls *t, const char *dir, struct error *e)
{
	BIO *in = part_open(&t->files, TLS_CA);
	X509_STORE *store = SSL_CTX_get_cert_store(t->ctx);
	char what[PATH_MAX + 64];
	unsigned n = 0;

	for (X509 *cert; in && (cert = PEM_read_bio_X509_AUX(in, NULL, no_passphrase, NULL)); X509_free(cert))
		n += X509_STORE_add_cert(store, cert) == 1;
	BIO_free(in);
	snprintf(what, sizeof(what), "read the authority's certificate '%s/ca-cert.pem'", dir ? dir : "");
	if (!n)
		return bad(e, "it has to be PEM", dir ? what : "read the host's store of CAs");
	ERR_clear_error();
	return 0;
}

static int certificates_setup(struct nbd_tls *t, const struct nbd_tls_options *o, struct error *e)
{
	bool verify = o->server ? o->verify_clients : !o->any_peer;
	int ret = t->files.len[TLS_CERT] ? own_certificate(t, o->certificates, e) : 0;

	if (!ret && t->files.len[TLS_CA])
		ret = authorities(t, o->certificates, e);
	else if (!ret && verify && !o->certificates && !o->given)
		SSL_CTX_set_default_verify_paths(t->ctx);
	if (verify)
		SSL_CTX_set_verify(t->ctx, SSL_VERIFY_PEER | SSL_VERIFY_FAIL_IF_NO_PEER_CERT, NULL);
	return ret;
}

/* --- one side --- */

void nbd_tls_free(struct nbd_tls *t)
{
	if (!t)
		return;
	SSL_CTX_free(t->ctx);
	tls_files_free(&t->files);
	free(t->psk_file);
	free(t->username);
	free(t->hostname);
	free(t);
}

static char *copy(const char *s, bool *failed)
{
	char *c = s ? strdup(s) : NULL;

	*failed |= s && !c;
	return c;
}

int nbd_tls_new(struct nbd_tls **out, const struct nbd_tls_options *o, struct error *e)
{
	struct nbd_tls *t = calloc(1, sizeof(*t));
	bool failed = !t;
	int ret;

	if (t) {
		t->server = o->server;
		t->psk_file = copy(o->psk_file, &failed);
		t->username = copy(o->username, &failed);
		t->hostname = copy(o->hostname, &failed);
		t->ctx = SSL_CTX_new(o->server ? TLS_server_method() : TLS_client_method());
	}
	if (failed || !t->ctx) {
		nbd_tls_free(t);
		return error_errno(e, ENOMEM, NULL, "set up TLS");
	}
	SSL_CTX_set_app_data(t->ctx, t);
	SSL_CTX_set_min_proto_version(t->ctx, TLS1_2_VERSION);
	SSL_CTX_set_options(t->ctx, SSL_OP_NO_RENEGOTIATION | SSL_OP_NO_COMPRESSION | SSL_OP_NO_TICKET);
	SSL_CTX_set_session_cache_mode(t->ctx, SSL_SESS_CACHE_OFF);
	SSL_CTX_set_num_tickets(t->ctx, 0);
	ret = o->given ? tls_files_get(&t->files, o->given_fd) : tls_files_read(&t->files, o, false, e);
	if (ret && o->given)
		error_errno(e, -ret, "both sides must be of one version of vixen", "take over TLS certificates");
	if (!ret)
		ret = o->psk_file ? psk_setup(t, e) : certificates_setup(t, o, e);
	if (!o->psk_file || o->server)
		tls_files_free(&t->files);
	if (ret)
		nbd_tls_free(t);
	else
		*out = t;
	return ret;
}

/* --- a stream --- */

/* Sends all that OpenSSL has left for the peer.  Whoever comes second finds nothing more to do. */
static int flush(struct nbd_sock *s)
{
	struct nbd_tls_stream *t = s->tls;
	uint8_t buf[4096];
	int ret = 0, n;

	co_lock(s->co, &t->sending);
	while (!ret && (n = BIO_read(t->out, buf, sizeof(buf))) > 0)
		ret = nbd_sock_raw_send(s, buf, (size_t)n);
	co_unlock(s->co, &t->sending);
	return ret;
}

/* The peer said so by an alert: it may not like the certificate or the key, which under TLS 1.3 it finds out late. */
static bool rejected(void)
{
	return ERR_GET_REASON(ERR_peek_last_error()) > SSL_AD_REASON_OFFSET;
}

/* One step went as far as it could: what it wants is done.  0: try again; -errno. */
static int serve_step(struct nbd_sock *s, int result)
{
	struct nbd_tls_stream *t = s->tls;
	int what = SSL_get_error(t->ssl, result), ret = flush(s);
	ssize_t n;

	if (ret)
		return ret;
	if (what == SSL_ERROR_ZERO_RETURN)
		return -ECONNRESET;
	if (what != SSL_ERROR_WANT_READ)
		return rejected() ? -EACCES : -EPROTO;
	n = nbd_sock_raw_recv(s, t->chunk, sizeof(t->chunk));
	if (n < 0)
		return (int)n;
	return BIO_write(t->in, t->chunk, (int)n) == n ? 0 : -ENOMEM;
}

static int shake(struct nbd_sock *s)
{
	int ret = 0, done;

	do {
		ERR_clear_error();
		done = SSL_do_handshake(s->tls->ssl);
		if (done != 1)
			ret = serve_step(s, done);
	} while (done != 1 && !ret);
	return ret ? ret : flush(s);
}

static struct nbd_tls_stream *stream_new(const struct nbd_tls *t)
{
	struct nbd_tls_stream *n = calloc(1, sizeof(*n));

	if (!n)
		return NULL;
	n->ssl = SSL_new(t->ctx);
	n->in = BIO_new(BIO_s_mem());
	n->out = BIO_new(BIO_s_mem());
	if (!n->ssl || !n->in || !n->out) {
		BIO_free(n->in);
		BIO_free(n->out);
		SSL_free(n->ssl);
		free(n);
		return NULL;
	}
	SSL_set_bio(n->ssl, n->in, n->out);
	return n;
}

/* A name or an address in the server's certificate. */
static bool expect_host(SSL *ssl, const char *host)
{
	if (X509_VERIFY_PARAM_set1_ip_asc(SSL_get0_param(ssl), host) == 1)
		return true;
	return SSL_set1_host(ssl, host) == 1 && SSL_set_tlsext_host_name(ssl, host) == 1;
}

int nbd_tls_start(struct nbd_tls *t, struct nbd_sock *s, char why[NBD_TLS_WHY])
{
	long verified;
	int ret;

	ASSERT(!s->tls);
	s->tls = stream_new(t);
	if (!s->tls) {
		snprintf(why, NBD_TLS_WHY, "out of memory");
		return -ENOMEM;
	}
	if (t->server) {
		SSL_set_accept_state(s->tls->ssl);
	} else {
		SSL_set_connect_state(s->tls->ssl);
		if (t->hostname && !expect_host(s->tls->ssl, t->hostname)) {
			snprintf(why, NBD_TLS_WHY, "'%.100s' is no host's name", t->hostname);
			return -EINVAL;
		}
	}
	ret = shake(s);
	if (!ret)
		return 0;
	verified = SSL_get_verify_result(s->tls->ssl);
	if (ret == -EPROTO && verified != X509_V_OK)
		snprintf(why, NBD_TLS_WHY, "%s", X509_verify_cert_error_string(verified));
	else if (ret == -EPROTO || ret == -EACCES)
		last_error(why);
	else
		snprintf(why, NBD_TLS_WHY, "%s", ret == -ECONNRESET ? "the other side hung up" : strerror(-ret));
	return ret;
}

ssize_t nbd_tls_read(struct nbd_sock *s, void *buf, size_t len)
{
	int want = len < INT_MAX ? (int)len : INT_MAX, n, ret;

	for (;;) {
		ERR_clear_error();
		n = SSL_read(s->tls->ssl, buf, want);
		if (n > 0)
			return n;
		ret = serve_step(s, n);
		if (ret)
			return ret;
	}
}

/* Memory takes all that is written; what OpenSSL holds of it is bounded by CHUNK, as each piece is sent first. */
int nbd_tls_write(struct nbd_sock *s, const void *buf, size_t len)
{
	const uint8_t *at = buf;
	int ret = 0;

	while (len && !ret) {
		int n = len < CHUNK ? (int)len : (int)CHUNK;

		ERR_clear_error();
		if (SSL_write(s->tls->ssl, at, n) != n)
			return -EPROTO;
		at += n;
		len -= (size_t)n;
		ret = flush(s);
	}
	return ret;
}

void nbd_tls_bye(struct nbd_sock *s)
{
	struct nbd_tls_stream *t = s->tls;
	uint8_t buf[256];
	int n;

	if (t->sending.held || !SSL_is_init_finished(t->ssl))
		return;
	ERR_clear_error();
	SSL_shutdown(t->ssl);
	n = BIO_read(t->out, buf, sizeof(buf));
	if (n > 0)
		nbd_sock_raw_try(s, buf, (size_t)n);
}

void nbd_tls_end(struct nbd_tls_stream *t)
{
	if (!t)
		return;
	SSL_free(t->ssl);
	free(t);
}
