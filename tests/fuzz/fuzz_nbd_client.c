/*
 * What a server may say to the NBD client.  The input is parts, each said when so many bytes were heard since the last, or
 * nothing comes any more:
 *
 *	be16 bytes to hear │ be16 length │ what to say   ...
 */
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

#include "../block/disk.h"
#include "base/endian.h"
#include "block/nbd/proto.h"
#include "fuzz.h"
#include "host/loop.h"

#define ADDRESS "nbd+unix:///x?socket=/nowhere"
#define SIZE (4u << 20)
#define INPUT_MAX 65536u
#define PATIENCE_NS 3000000u

struct server {
	struct loop *loop;
	struct loop_fd *watch;
	struct loop_timer *timer;
	int fd;
	const uint8_t *say;
	size_t left, heard;
};

static void say_next(struct server *s)
{
	size_t n;

	while (s->left >= 4 && s->heard >= load_be16(s->say)) {
		n = load_be16(s->say + 2);
		n = n < s->left - 4 ? n : s->left - 4;
		s->heard -= load_be16(s->say);
		send(s->fd, s->say + 4, n, MSG_DONTWAIT | MSG_NOSIGNAL);
		s->say += 4 + n;
		s->left -= 4 + n;
	}
	if (s->left < 4)
		shutdown(s->fd, SHUT_WR);
}

static void hear(void *opaque, uint32_t events)
{
	struct server *s = opaque;
	uint8_t buf[65536];
	ssize_t n = recv(s->fd, buf, sizeof(buf), MSG_DONTWAIT);

	if (n <= 0 && events & (EPOLLHUP | EPOLLERR)) {
		loop_fd_set_events(s->watch, 0);
		return;
	}
	s->heard += n > 0 ? (size_t)n : 0;
	say_next(s);
	loop_timer_set(s->timer, clock_now_ns() + PATIENCE_NS);
}

/* Nothing comes: the next part, as if it had. */
static void impatient(void *opaque)
{
	struct server *s = opaque;

	s->heard = SIZE;
	say_next(s);
	s->heard = 0;
	loop_timer_set(s->timer, clock_now_ns() + PATIENCE_NS);
}

static int use(void *opaque)
{
	static uint8_t buf[65536];
	struct block *b = opaque;
	struct block_status st;
	uint64_t size = block_size(b), len = size < sizeof(buf) ? size : sizeof(buf);

	block_co_read(b, 0, buf, size < 4096 ? size : 4096);
	block_co_status(b, 0, size, UINT32_MAX, &st);
	block_co_write(b, 0, buf, size < 512 ? 0 : 512);
	block_co_write_zeroes(b, 0, size < 512 ? 0 : 512, true);
	block_co_read(b, size - len, buf, len);
	block_co_discard(b, 0, len);
	block_co_flush(b);
	return 0;
}

static void talk(struct loop *l, int fd)
{
	const struct block_fd fds = { ADDRESS, fd };
	const struct block_options o = { .format = "raw", .fds = &fds, .nfds = 1, .flags = BLOCK_NO_IO_URING };
	struct error e = { 0 };
	struct block *b;

	if (block_open_with(&b, l, ADDRESS, &o, &e))
		return;
	block_run(l, use, b);
	block_close(b);
}

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t len)
{
	struct server s = { .say = bytes, .left = len, .loop = loop_new() };
	int pair[2];

	if (len > INPUT_MAX || socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair)) {
		loop_free(s.loop);
		return 0;
	}
	s.fd = pair[0];
	s.watch = loop_fd_add(s.loop, s.fd, EPOLLIN, hear, &s);
	s.timer = loop_timer_new(s.loop, impatient, &s);
	loop_timer_set(s.timer, clock_now_ns() + PATIENCE_NS);
	say_next(&s);
	talk(s.loop, pair[1]);
	loop_timer_free(s.timer);
	loop_fd_del(s.watch);
	close(pair[0]);
	close(pair[1]);
	loop_free(s.loop);
	return 0;
}

/* --- honest servers --- */

#define CLIENT_HANDSHAKE (4 + 16 + 16 + 28 + 16 + 9)	/* what ours sends before its first request */

struct bytes { uint8_t *p; size_t len, part; };

static void put(struct bytes *b, const void *p, size_t n)
{
	memcpy(b->p + b->len, p, n);
	b->len += n;
}

static void put16(struct bytes *b, uint16_t v) { store_be16(b->p + b->len, v), b->len += 2; }
static void put32(struct bytes *b, uint32_t v) { store_be32(b->p + b->len, v), b->len += 4; }
static void put64(struct bytes *b, uint64_t v) { store_be64(b->p + b->len, v), b->len += 8; }

static void part_end(struct bytes *b)
{
	store_be16(b->p + b->part + 2, (uint16_t)(b->len - b->part - 4));
}

static void part(struct bytes *b, uint16_t hear_bytes)
{
	if (b->len)
		part_end(b);
	b->part = b->len;
	put16(b, hear_bytes);
	put16(b, 0);
}

static void put_reply(struct bytes *b, uint32_t option, uint32_t type, uint32_t len)
{
	put64(b, NBD_OPTION_REPLY_MAGIC), put32(b, option), put32(b, type), put32(b, len);
}

static void put_handshake(struct bytes *b, bool structured)
{
	part(b, 0);
	put64(b, NBD_MAGIC), put64(b, NBD_OPTION_MAGIC), put16(b, NBD_FIXED_NEWSTYLE | NBD_NO_ZEROES);
	put_reply(b, NBD_OPT_STRUCTURED_REPLY, structured ? NBD_REP_ACK : NBD_REP_ERR_UNSUP, 0);
	if (structured) {
		put_reply(b, NBD_OPT_SET_META_CONTEXT, NBD_REP_META_CONTEXT, 19);
		put32(b, 77), put(b, "base:allocation", 15);
		put_reply(b, NBD_OPT_SET_META_CONTEXT, NBD_REP_ACK, 0);
	}
	put_reply(b, NBD_OPT_GO, NBD_REP_INFO, 12);
	put16(b, NBD_INFO_EXPORT), put64(b, SIZE), put16(b, 0x9ff & ~NBD_READ_ONLY);
	put_reply(b, NBD_OPT_GO, NBD_REP_INFO, 14);
	put16(b, NBD_INFO_BLOCK_SIZE), put32(b, 512), put32(b, 4096), put32(b, NBD_PAYLOAD_MAX);
	put_reply(b, NBD_OPT_GO, NBD_REP_ACK, 0);
}

/* Cookies go as the client's memory has them: a generation above, a slot below. */
static void put_cookie(struct bytes *b, unsigned generation)
{
	uint64_t cookie = (uint64_t)generation << 32;

	put(b, &cookie, 8);
}

static void put_chunk(struct bytes *b, uint16_t type, unsigned generation, uint32_t len)
{
	put32(b, NBD_CHUNK_MAGIC), put16(b, NBD_CHUNK_DONE), put16(b, type), put_cookie(b, generation), put32(b, len);
}

static void put_simple(struct bytes *b, unsigned generation)
{
	put32(b, NBD_SIMPLE_MAGIC), put32(b, 0), put_cookie(b, generation);
}

static void put_data(struct bytes *b, bool structured, unsigned generation, uint64_t offset, uint32_t len)
{
	if (structured)
		put_chunk(b, NBD_CHUNK_DATA, generation, 8 + len), put64(b, offset);
	else
		put_simple(b, generation);
	memset(b->p + b->len, 9, len);
	b->len += len;
}

static uint8_t *seed(unsigned kind, size_t *len)
{
	struct bytes b = { .p = calloc(1, INPUT_MAX + 32768) };
	bool structured = kind == 0;
	unsigned at = 1;

	if (kind == 2) {
		free(b.p);
		return NULL;
	}
	put_handshake(&b, structured);
	part(&b, CLIENT_HANDSHAKE + 28);
	put_data(&b, structured, at++, 0, 4096);
	if (structured) {
		part(&b, 28);
		put_chunk(&b, NBD_CHUNK_STATUS, at++, 12), put32(&b, 77), put32(&b, 65536), put32(&b, 3);
	}
	part(&b, 28 + 512);
	put_simple(&b, at++);
	part(&b, 28);
	put_simple(&b, at++);
	part(&b, 28);
	if (structured)
		put_chunk(&b, NBD_CHUNK_HOLE, at++, 12), put64(&b, SIZE - 65536), put32(&b, 65536);
	else
		put_data(&b, false, at++, 0, 0);
	part_end(&b);
	*len = b.len;
	return b.p;
}

static void damage(unsigned kind, uint8_t *p, size_t len)
{
	size_t at = (size_t)random() % 500;

	(void)kind;
	fuzz_change(p, len, at < 250 ? at : len - (at - 250), true);
}

const struct fuzz_target fuzz_target = { .seed = seed, .damage = damage };
