/* NBD between our own two ends, and each end against bytes that no honest peer would send. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>
#include <endian.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <poll.h>
#include <pthread.h>
#include <stdio.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "base/endian.h"
#include "block/block.h"
#include "block/nbd/proto.h"
#include "block/nbd/server.h"
#include "host/coroutine.h"
#include "host/loop.h"

#define SIZE (4u << 20)
#define ROUNDS 1500

struct fixture {
	struct loop *loop;
	struct block *disk;
	struct nbd_server *server;
	char dir[32], path[64], socket[64], uri[128];
};

static void server_start(struct fixture *f, bool readonly)
{
	const struct nbd_server_options o = { .disk = f->disk, .name = "x", .readonly = readonly };

	assert_int_equal(nbd_server_new(&f->server, f->loop, &o, NULL), 0);
}

static int setup(void **state)
{
	struct fixture *f = calloc(1, sizeof(*f));
	int fd;

	strcpy(f->dir, "/tmp/vixen-nbd-XXXXXX");
	assert_non_null(mkdtemp(f->dir));
	snprintf(f->path, sizeof(f->path), "%s/a.raw", f->dir);
	snprintf(f->socket, sizeof(f->socket), "%s/s", f->dir);
	snprintf(f->uri, sizeof(f->uri), "nbd+unix:///x?socket=%s", f->socket);
	fd = open(f->path, O_RDWR | O_CREAT, 0600);
	assert_int_equal(ftruncate(fd, SIZE), 0);
	close(fd);
	f->loop = loop_new();
	assert_int_equal(block_open(&f->disk, f->loop, f->path, "raw", 0, NULL), 0);
	server_start(f, false);
	*state = f;
	return 0;
}

static int teardown(void **state)
{
	struct fixture *f = *state;

	nbd_server_free(f->server);
	assert_int_equal(block_close(f->disk), 0);
	loop_free(f->loop);
	unlink(f->socket);
	unlink(f->path);
	rmdir(f->dir);
	free(f);
	return 0;
}

/* --- a stream of bytes to the server --- */

struct bytes {
	uint8_t data[1 << 16];
	size_t len;
};

static void put(struct bytes *b, const void *p, size_t n)
{
	assert_true(b->len + n <= sizeof(b->data));
	memcpy(b->data + b->len, p, n);
	b->len += n;
}

static void put16(struct bytes *b, uint16_t v) { v = htobe16(v); put(b, &v, 2); }
static void put32(struct bytes *b, uint32_t v) { v = htobe32(v); put(b, &v, 4); }
static void put64(struct bytes *b, uint64_t v) { v = htobe64(v); put(b, &v, 8); }

static void put_option(struct bytes *b, uint32_t option, uint32_t len)
{
	put64(b, NBD_OPTION_MAGIC);
	put32(b, option);
	put32(b, len);
}

static void put_request(struct bytes *b, uint16_t flags, uint16_t type, uint64_t cookie, uint64_t offset, uint32_t len)
{
	put32(b, NBD_REQUEST_MAGIC);
	put16(b, flags);
	put16(b, type);
	put64(b, cookie);
	put64(b, offset);
	put32(b, len);
}

static void put_start(struct bytes *b, bool structured)
{
	put32(b, NBD_FIXED_NEWSTYLE | NBD_NO_ZEROES);
	if (structured) {
		put_option(b, NBD_OPT_STRUCTURED_REPLY, 0);
		put_option(b, NBD_OPT_LIST_META_CONTEXT, 9);
		put32(b, 1), put(b, "x", 1), put32(b, 0);
		put_option(b, NBD_OPT_SET_META_CONTEXT, 5 + 4 + 4 + 15 + 4 + 21);
		put32(b, 1), put(b, "x", 1), put32(b, 2), put32(b, 15), put(b, "base:allocation", 15);
		put32(b, 21), put(b, "qemu:allocation-depth", 21);
	}
	put_option(b, NBD_OPT_LIST, 0);
	put_option(b, NBD_OPT_GO, 4 + 1 + 2 + 2);
	put32(b, 1), put(b, "x", 1), put16(b, 1), put16(b, NBD_INFO_BLOCK_SIZE);
}

/* One of each request. */
static void put_session(struct bytes *b, bool structured)
{
	static const uint8_t data[4096] = { 1, 2, 3 };

	put_start(b, structured);
	put_request(b, NBD_CMD_FUA, NBD_CMD_WRITE, 1, 8192, sizeof(data));
	put(b, data, sizeof(data));
	put_request(b, 0, NBD_CMD_READ, 2, 0, 131072);
	put_request(b, structured ? NBD_CMD_DF : 0, NBD_CMD_READ, 3, 4096, 8192);
	put_request(b, 0, NBD_CMD_FLUSH, 4, 0, 0);
	put_request(b, NBD_CMD_FUA, NBD_CMD_TRIM, 5, 65536, 4096);
	put_request(b, NBD_CMD_NO_HOLE, NBD_CMD_WRITE_ZEROES, 6, 131072, 65536);
	put_request(b, NBD_CMD_FAST_ZERO, NBD_CMD_WRITE_ZEROES, 7, 262144, 65536);
	put_request(b, 0, NBD_CMD_CACHE, 8, 0, SIZE);
	if (structured)
		put_request(b, NBD_CMD_REQ_ONE, NBD_CMD_BLOCK_STATUS, 9, 0, SIZE);
	put_request(b, 0, NBD_CMD_DISC, 10, 0, 0);
}

struct pump {
	struct loop_fd *watch;
	int fd;
	const struct bytes *out;
	size_t sent;
	struct bytes *in;		/* what fits */
	bool ended;
};

static void pump_in(struct pump *p)
{
	uint8_t buf[4096];
	ssize_t n = recv(p->fd, buf, sizeof(buf), MSG_DONTWAIT);

	if (n > 0 && p->in->len + (size_t)n <= sizeof(p->in->data))
		put(p->in, buf, (size_t)n);
	else if (n == 0 || (n < 0 && errno != EAGAIN))
		p->ended = true;
}

static void pump_event(void *opaque, uint32_t events)
{
	struct pump *p = opaque;

	if (events & EPOLLOUT && p->sent < p->out->len) {
		ssize_t n = send(p->fd, p->out->data + p->sent, p->out->len - p->sent, MSG_DONTWAIT | MSG_NOSIGNAL);

		p->sent = n < 0 && errno != EAGAIN ? p->out->len : n < 0 ? p->sent : p->sent + (size_t)n;
		if (p->sent == p->out->len) {
			shutdown(p->fd, SHUT_WR);
			loop_fd_set_events(p->watch, EPOLLIN);
		}
	}
	if (events & (EPOLLIN | EPOLLHUP | EPOLLERR))
		pump_in(p);
}

/* Sends all of `out`, says that nothing more comes, and reads until the server hangs up. */
static void converse(struct fixture *f, const struct bytes *out, struct bytes *in)
{
	struct pump p = { .out = out, .in = in };
	struct loop_fd *w;
	int pair[2];

	in->len = 0;
	assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair), 0);
	p.fd = pair[0];
	assert_int_equal(nbd_server_add(f->server, pair[1]), 0);
	w = loop_fd_add(f->loop, pair[0], EPOLLIN | EPOLLOUT, pump_event, &p);
	p.watch = w;
	while (!p.ended)
		loop_step(f->loop);
	loop_fd_del(w);
	close(pair[0]);
}

/* --- the server --- */

/* Structured: the chunks of one type that `cookie` was answered with; the one with the flag DONE has to be the last. */
static unsigned chunks_of(const struct bytes *in, uint16_t type, uint64_t cookie)
{
	unsigned n = 0;
	bool done = false;

	for (size_t i = 0; i + sizeof(struct nbd_chunk) <= in->len; i++)
		if (load_be32(in->data + i) == NBD_CHUNK_MAGIC && load_be16(in->data + i + 6) == type &&
		    load_be64(in->data + i + 8) == cookie) {
			assert_false(done);
			done = load_be16(in->data + i + 4) & NBD_CHUNK_DONE;
			n++;
		}
	assert_true(!n || done);
	return n;
}

static void test_contexts(void **state)
{
	static struct bytes out, in;

	put_session(&out, true);
	converse(*state, &out, &in);
	assert_int_equal(chunks_of(&in, NBD_CHUNK_STATUS, 9), 2);
}

/* After an option phase without structured replies: the error that `cookie` was answered with; -1: none. */
static int64_t simple_error(const struct bytes *in, uint64_t cookie)
{
	for (size_t i = 0; i + 16 <= in->len; i++)
		if (load_be32(in->data + i) == NBD_SIMPLE_MAGIC && load_be64(in->data + i + 8) == cookie)
			return load_be32(in->data + i + 4);
	return -1;
}

static int64_t error_of(struct fixture *f, uint16_t flags, uint16_t type, uint64_t offset, uint32_t len)
{
	const uint64_t cookie = 0x1122334455667788;
	static struct bytes out, in;
	static const uint8_t zeroes[4096];

	out.len = 0;
	put_start(&out, false);
	put_request(&out, flags, type, cookie, offset, len);
	if (type == NBD_CMD_WRITE)
		put(&out, zeroes, len < sizeof(zeroes) ? len : sizeof(zeroes));
	put_request(&out, 0, NBD_CMD_FLUSH, cookie + 1, 0, 0);
	put_request(&out, 0, NBD_CMD_DISC, 0, 0, 0);
	converse(f, &out, &in);
	if (simple_error(&in, cookie) >= 0)	/* and what follows is still understood */
		assert_int_equal(simple_error(&in, cookie + 1), 0);
	return simple_error(&in, cookie);
}

static void test_refusals(void **state)
{
	struct fixture *f = *state;

	assert_int_equal(error_of(f, 0, NBD_CMD_READ, 0, 512), 0);
	assert_int_equal(error_of(f, 0, NBD_CMD_READ, 0, 0), 0);
	assert_int_equal(error_of(f, 0, NBD_CMD_READ, 1, 512), EINVAL);
	assert_int_equal(error_of(f, 0, NBD_CMD_READ, 0, 513), EINVAL);
	assert_int_equal(error_of(f, 0, NBD_CMD_READ, SIZE, 512), EINVAL);
	assert_int_equal(error_of(f, 0, NBD_CMD_READ, UINT64_MAX - 511, 512), EINVAL);
	assert_int_equal(error_of(f, 0, NBD_CMD_READ, 0, UINT32_MAX), EINVAL);
	assert_int_equal(error_of(f, 0, NBD_CMD_READ, 0, NBD_PAYLOAD_MAX + 512), EINVAL);
	assert_int_equal(error_of(f, NBD_CMD_DF, NBD_CMD_READ, 0, 512), EINVAL);
	assert_int_equal(error_of(f, 0, NBD_CMD_WRITE, SIZE - 512, 1024), ENOSPC);
	assert_int_equal(error_of(f, 0, NBD_CMD_WRITE, 3, 512), EINVAL);
	assert_int_equal(error_of(f, NBD_CMD_NO_HOLE, NBD_CMD_WRITE, 0, 512), EINVAL);
	assert_int_equal(error_of(f, 0, NBD_CMD_WRITE, 0, UINT32_MAX), -1);	/* hung up on */
	assert_int_equal(error_of(f, 0, NBD_CMD_WRITE_ZEROES, 0, UINT32_MAX & ~511u), ENOSPC);
	assert_int_equal(error_of(f, 0, NBD_CMD_TRIM, SIZE, 512), EINVAL);
	assert_int_equal(error_of(f, 0, NBD_CMD_FLUSH, 512, 0), EINVAL);
	assert_int_equal(error_of(f, 0, NBD_CMD_BLOCK_STATUS, 0, 512), EINVAL);
	assert_int_equal(error_of(f, 0, NBD_COMMANDS, 0, 0), EINVAL);
	assert_int_equal(error_of(f, 0x8000, NBD_CMD_READ, 0, 512), EINVAL);
}

static void test_readonly(void **state)
{
	struct fixture *f = *state;

	nbd_server_free(f->server);
	server_start(f, true);
	assert_int_equal(error_of(f, 0, NBD_CMD_READ, 0, 512), 0);
	assert_int_equal(error_of(f, 0, NBD_CMD_WRITE, 0, 512), EPERM);
	assert_int_equal(error_of(f, 0, NBD_CMD_TRIM, 0, 512), EPERM);
	assert_int_equal(error_of(f, 0, NBD_CMD_WRITE_ZEROES, 0, 512), EPERM);
}

/* A xorshift: the same bytes on every machine. */
static uint32_t next_random(uint64_t *s)
{
	*s ^= *s << 13;
	*s ^= *s >> 7;
	*s ^= *s << 17;
	return (uint32_t)(*s >> 16);
}

static void mutate(struct bytes *b, uint64_t *seed)
{
	static const uint8_t edge[] = { 0, 1, 0x7f, 0x80, 0xff };

	for (unsigned n = next_random(seed) % 6; n; n--)
		b->data[next_random(seed) % b->len] = next_random(seed) % 2 ? edge[next_random(seed) % 5]
									    : (uint8_t)next_random(seed);
	if (next_random(seed) % 4 == 0)
		b->len = 1 + next_random(seed) % b->len;
}

/* Most of a session is the data of its write: mutations are to hit the rest, too. */
static void mutate_session(struct bytes *b, uint64_t *seed)
{
	size_t head = 300, at = next_random(seed) % (b->len < head ? b->len : head);

	if (next_random(seed) % 2)
		b->data[at] ^= (uint8_t)(1u << next_random(seed) % 8);
	mutate(b, seed);
}

static void test_hostile_clients(void **state)
{
	struct fixture *f = *state;
	static struct bytes out, in;
	uint64_t seed = 0x9e3779b97f4a7c15;

	for (unsigned i = 0; i < ROUNDS; i++) {
		out.len = 0;
		put_session(&out, i % 2);
		mutate_session(&out, &seed);
		converse(f, &out, &in);
	}
	assert_int_equal(error_of(f, 0, NBD_CMD_READ, 0, 512), 0);
	assert_int_equal(block_size(f->disk), SIZE);
}

/* A client that asks for much and reads nothing gets no more of the server than its share, and others are served. */
static void test_glutton(void **state)
{
	struct fixture *f = *state;
	static struct bytes out;
	int pair[2];

	out.len = 0;
	put_start(&out, true);
	for (unsigned i = 0; i < 1000; i++)
		put_request(&out, NBD_CMD_DF, NBD_CMD_READ, i, 0, SIZE);
	assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair), 0);
	assert_int_equal(nbd_server_add(f->server, pair[1]), 0);
	assert_int_equal(send(pair[0], out.data, out.len, 0), out.len);
	for (unsigned i = 0; i < 3; i++)
		assert_int_equal(error_of(f, 0, NBD_CMD_READ, 0, 512), 0);
	nbd_server_free(f->server);		/* also while it waits */
	f->server = NULL;
	close(pair[0]);
}

/* --- our client on our server --- */

static int listen_at(const char *path)
{
	struct sockaddr_un a = { .sun_family = AF_UNIX };
	int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);

	strcpy(a.sun_path, path);
	unlink(path);
	assert_int_equal(bind(fd, (struct sockaddr *)&a, sizeof(a)), 0);
	assert_int_equal(listen(fd, 16), 0);
	return fd;
}

static int use_disk(void *opaque)
{
	struct block *b = opaque;
	static uint8_t out[70000 / 512 * 512], in[sizeof(out)];
	struct block_status st;

	for (size_t i = 0; i < sizeof(out); i++)
		out[i] = (uint8_t)(i * 7 >> 3);
	assert_int_equal(block_co_write(b, 512, out, sizeof(out)), 0);
	assert_int_equal(block_co_flush(b), 0);
	assert_int_equal(block_co_read(b, 512, in, sizeof(in)), 0);
	assert_memory_equal(in, out, sizeof(in));
	assert_int_equal(block_co_write_zeroes(b, 1024, 65536, true), 0);
	assert_int_equal(block_co_write_zeroes_fast(b, 1 << 20, 65536, true), 0);
	assert_int_equal(block_co_discard(b, 2 << 20, 65536), 0);
	assert_int_equal(block_co_read(b, 1024, in, 65536), 0);
	assert_true(in[0] == 0 && !memcmp(in, in + 1, 65535));
	assert_int_equal(block_co_status(b, 3 << 20, 1 << 20, UINT_MAX, &st), 0);
	assert_int_equal(st.len, 1 << 20);
	assert_true(st.flags & BLOCK_STATUS_ZERO);
	return 0;
}

static void test_both_ends(void **state)
{
	struct fixture *f = *state;
	struct block *b;
	int fd = listen_at(f->socket);

	assert_int_equal(nbd_server_listen(f->server, fd, NULL), 0);
	assert_int_equal(block_open(&b, f->loop, f->uri, NULL, 0, NULL), 0);
	assert_int_equal(block_size(b), SIZE);
	assert_int_equal(block_run(f->loop, use_disk, b), 0);
	assert_int_equal(block_close(b), 0);
	nbd_server_free(f->server);
	f->server = NULL;
	close(fd);
}

/* --- our client on hostile servers: a thread that answers the n-th request with the n-th part of what it was given --- */

#define PARTS 5
#define CLIENT_HANDSHAKE (4 + 16 + 16 + 28 + 16 + 9)	/* what ours sends before its first request */

struct liar {
	int listener;
	int patience_ms;		/* to wait for a request, before it hangs up */
	struct bytes say;
	size_t end[PARTS];		/* of the parts: the handshake, and answers */
};

static bool liar_hears(int fd, size_t n)
{
	uint8_t buf[1024];

	return recv(fd, buf, n, MSG_WAITALL) == (ssize_t)n;
}

static void *liar_main(void *opaque)
{
	static const size_t hears[PARTS] = { CLIENT_HANDSHAKE, 28, 28, 28 + 512, 28 };
	struct liar *l = opaque;
	struct timeval patience = { l->patience_ms / 1000, l->patience_ms % 1000 * 1000 };
	int fd = accept(l->listener, NULL, NULL);
	size_t at = 0;

	setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof(patience));
	for (unsigned i = 0; i < PARTS; i++) {
		size_t end = l->end[i] < l->say.len ? l->end[i] : l->say.len;

		if (i && !liar_hears(fd, hears[i]))
			break;
		if (end > at)
			send(fd, l->say.data + at, end - at, MSG_NOSIGNAL);
		at = end;
		if (!i && !liar_hears(fd, hears[0]))
			break;
	}
	shutdown(fd, SHUT_WR);
	while (liar_hears(fd, 1))
		;
	close(fd);
	return NULL;
}

static void say_reply(struct bytes *b, uint32_t option, uint32_t type, uint32_t len)
{
	put64(b, NBD_OPTION_REPLY_MAGIC);
	put32(b, option);
	put32(b, type);
	put32(b, len);
}

static void say_chunk(struct bytes *b, uint16_t type, bool done, uint64_t cookie, uint32_t len)
{
	put32(b, NBD_CHUNK_MAGIC);
	put16(b, done);
	put16(b, type);
	put64(b, be64toh(cookie));	/* cookies go as the client's memory has them */
	put32(b, len);
}

#define COOKIE(generation) ((uint64_t)(generation) << 32)

static void say_handshake(struct bytes *b)
{
	put64(b, NBD_MAGIC);
	put64(b, NBD_OPTION_MAGIC);
	put16(b, NBD_FIXED_NEWSTYLE | NBD_NO_ZEROES);
	say_reply(b, NBD_OPT_STRUCTURED_REPLY, NBD_REP_ACK, 0);
	say_reply(b, NBD_OPT_SET_META_CONTEXT, NBD_REP_META_CONTEXT, 19);
	put32(b, 77), put(b, "base:allocation", 15);
	say_reply(b, NBD_OPT_SET_META_CONTEXT, NBD_REP_ACK, 0);
	say_reply(b, NBD_OPT_GO, NBD_REP_INFO, 12);
	put16(b, NBD_INFO_EXPORT), put64(b, SIZE), put16(b, 0x9ff & ~NBD_READ_ONLY);
	say_reply(b, NBD_OPT_GO, NBD_REP_INFO, 14);
	put16(b, NBD_INFO_BLOCK_SIZE), put32(b, 512), put32(b, 4096), put32(b, NBD_PAYLOAD_MAX);
	say_reply(b, NBD_OPT_GO, NBD_REP_ACK, 0);
}

static void say_data(struct bytes *b, bool done, uint64_t cookie, uint64_t offset, uint32_t len)
{
	static const uint8_t data[4096] = { 9 };

	say_chunk(b, NBD_CHUNK_DATA, done, cookie, 8 + len);
	put64(b, offset);
	put(b, data, len);
}

static void say_hole(struct bytes *b, bool done, uint64_t cookie, uint64_t offset, uint32_t len)
{
	say_chunk(b, NBD_CHUNK_HOLE, done, cookie, 12);
	put64(b, offset), put32(b, len);
}

static void say_status(struct bytes *b, uint64_t cookie, uint32_t context, uint32_t len, uint32_t flags)
{
	say_chunk(b, NBD_CHUNK_STATUS, true, cookie, 4 + 8);
	put32(b, context), put32(b, len), put32(b, flags);
}

static void say_simple(struct bytes *b, uint64_t cookie, uint32_t error)
{
	put32(b, NBD_SIMPLE_MAGIC), put32(b, error), put64(b, be64toh(cookie));
}

static void say_end(struct liar *l, unsigned part)
{
	for (; part < PARTS; part++)
		l->end[part] = l->say.len;
}

/* The truth: answers to ask(). */
static void say_session(struct liar *l)
{
	struct bytes *b = &l->say;

	b->len = 0;
	say_handshake(b);
	say_end(l, 0);
	say_data(b, false, COOKIE(1), 4096, 1024);
	say_hole(b, false, COOKIE(1), 4096 + 2048, 2048);
	say_data(b, true, COOKIE(1), 4096 + 1024, 1024);
	say_end(l, 1);
	say_status(b, COOKIE(2), 77, 65536, NBD_STATE_HOLE | NBD_STATE_ZERO);
	say_end(l, 2);
	say_simple(b, COOKIE(3), 0);
	say_end(l, 3);
	say_chunk(b, NBD_CHUNK_ERROR, true, COOKIE(4), 6 + 3);
	put32(b, EPERM), put16(b, 3), put(b, "no!", 3);
	say_end(l, 4);
}

struct outcome {
	struct block *b;
	uint8_t buf[4096];
	struct block_status st;
	int read, status, write, zero;
};

/* One after the other: the liar's answers are in this order. */
static int ask(void *opaque)
{
	struct outcome *o = opaque;

	o->read = block_co_read(o->b, 4096, o->buf, sizeof(o->buf));
	o->status = block_co_status(o->b, 0, SIZE, UINT_MAX, &o->st);
	o->write = block_co_write(o->b, 0, o->buf, 512);
	o->zero = block_co_write_zeroes(o->b, 0, 512, true);
	return 0;
}

/* What opening gave. */
static int face(struct fixture *f, struct liar *l, struct outcome *o)
{
	pthread_t thread;
	int ret;

	*o = (struct outcome){ .read = 1, .status = 1, .write = 1, .zero = 1 };
	memset(o->buf, 0xee, sizeof(o->buf));
	pthread_create(&thread, NULL, liar_main, l);
	ret = block_open(&o->b, f->loop, f->uri, "raw", 0, NULL);
	if (!ret) {
		block_run(f->loop, ask, o);
		block_close(o->b);
	}
	pthread_join(thread, NULL);
	return ret;
}

static struct liar *liar_new(struct fixture *f, int patience_ms)
{
	struct liar *l = calloc(1, sizeof(*l));

	l->listener = listen_at(f->socket);
	l->patience_ms = patience_ms;
	return l;
}

static void liar_free(struct liar *l)
{
	close(l->listener);
	free(l);
}

static void test_truth(void **state)
{
	struct fixture *f = *state;
	struct liar *l = liar_new(f, 20000);
	static struct outcome o;

	say_session(l);
	assert_int_equal(face(f, l, &o), 0);
	assert_int_equal(o.read, 0);
	assert_true(o.buf[0] == 9 && o.buf[1] == 0 && o.buf[1024] == 9 && o.buf[2048] == 0 && o.buf[4095] == 0);
	assert_int_equal(o.status, 0);
	assert_int_equal(o.st.len, 65536);
	assert_true(o.st.flags & BLOCK_STATUS_ZERO);
	assert_int_equal(o.write, 0);
	assert_int_equal(o.zero, -EPERM);
	liar_free(l);
}

/* What may come in place of an honest answer to the read of 4096 bytes at 4096. */
static void lie(struct bytes *b, unsigned which)
{
	const uint64_t c = COOKIE(1);

	switch (which) {
	case 0: say_data(b, true, c, 4096, 2048); break;			/* not all */
	case 1: say_data(b, false, c, 4096, 2048), say_data(b, true, c, 4096, 4096); break;	/* twice */
	case 2: say_data(b, false, c, 4096, 2048), say_hole(b, true, c, 4096 + 1024, 3072); break;
	case 3: say_data(b, true, c, 0, 4096); break;				/* before it */
	case 4: say_data(b, true, c, 4096 + 512, 4096); break;			/* past it */
	case 5: say_hole(b, true, c, 4096, UINT32_MAX); break;
	case 6: say_hole(b, true, c, 4096, 0); break;
	case 7: say_chunk(b, NBD_CHUNK_DATA, true, c, UINT32_MAX), put64(b, 4096); break;
	case 8: say_chunk(b, NBD_CHUNK_DATA, true, c, 8), put64(b, 4096); break;
	case 9: say_simple(b, c, 0); break;					/* chunks were agreed on */
	case 10: say_status(b, c, 77, 4096, 0); break;				/* nobody asked */
	case 11: say_data(b, true, COOKIE(9), 4096, 4096); break;		/* nor this */
	case 12: say_data(b, true, c + 1, 4096, 4096); break;
	case 13: say_chunk(b, NBD_CHUNK_NONE, true, c, 0); break;
	case 14: say_chunk(b, NBD_CHUNK_NONE, false, c, 0); break;
	case 15: say_chunk(b, 99, true, c, 0); break;
	case 16: say_chunk(b, NBD_CHUNK_ERROR, true, c, 6), put32(b, EIO), put16(b, 9); break;	/* message too long */
	case 17: say_chunk(b, NBD_CHUNK_ERROR, true, c, UINT32_MAX), put32(b, EIO), put16(b, 0); break;
	case 18: put32(b, 0xdeadbeef); break;
	case 19: say_data(b, false, c, UINT64_MAX - 100, 512); break;
	}
}

static void test_lies(void **state)
{
	struct fixture *f = *state;
	static struct outcome o;

	for (unsigned i = 0; i < 20; i++) {
		struct liar *l = liar_new(f, 20000);

		say_handshake(&l->say);
		say_end(l, 0);
		lie(&l->say, i);
		say_end(l, 1);
		assert_int_equal(face(f, l, &o), 0);
		if (o.read != -EIO || o.status != -EIO || o.write != -EIO)
			fail_msg("lie %u was believed", i);
		liar_free(l);
	}
}

static void test_hostile_servers(void **state)
{
	struct fixture *f = *state;
	uint64_t seed = 0x2545f4914f6cdd1d;
	static struct outcome o;

	for (unsigned i = 0; i < ROUNDS / 5; i++) {
		struct liar *l = liar_new(f, 10);
		size_t head;

		say_session(l);
		head = i % 3 ? l->end[0] : 0;	/* past the handshake, mostly */
		for (unsigned n = 1 + next_random(&seed) % 4; n; n--)
			l->say.data[head + next_random(&seed) % (l->say.len - head)] ^= (uint8_t)next_random(&seed);
		if (next_random(&seed) % 4 == 0)
			l->say.len = next_random(&seed) % l->say.len;
		face(f, l, &o);
		liar_free(l);
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(test_refusals, setup, teardown),
		cmocka_unit_test_setup_teardown(test_contexts, setup, teardown),
		cmocka_unit_test_setup_teardown(test_readonly, setup, teardown),
		cmocka_unit_test_setup_teardown(test_hostile_clients, setup, teardown),
		cmocka_unit_test_setup_teardown(test_glutton, setup, teardown),
		cmocka_unit_test_setup_teardown(test_both_ends, setup, teardown),
		cmocka_unit_test_setup_teardown(test_truth, setup, teardown),
		cmocka_unit_test_setup_teardown(test_lies, setup, teardown),
		cmocka_unit_test_setup_teardown(test_hostile_servers, setup, teardown),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
