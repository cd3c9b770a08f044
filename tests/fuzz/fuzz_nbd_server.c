/* What a client may send to the NBD server, from its first byte to its last. */
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

#include "../block/disk.h"
#include "base/endian.h"
#include "block/nbd/proto.h"
#include "block/nbd/server.h"
#include "fuzz.h"
#include "host/loop.h"

#define SIZE (4u << 20)
#define INPUT_MAX 65536u

/* --- a session: bytes go out as the server takes them, what it says is dropped --- */

struct client {
	struct loop_fd *watch;
	int fd;
	const uint8_t *out;
	size_t left;
	bool ended;
};

static void client_event(void *opaque, uint32_t events)
{
	struct client *c = opaque;
	uint8_t buf[65536];
	ssize_t n;

	if (events & EPOLLOUT && c->left) {
		n = send(c->fd, c->out, c->left, MSG_DONTWAIT | MSG_NOSIGNAL);
		c->out += n > 0 ? n : 0;
		c->left -= n > 0 ? (size_t)n : 0;
		if (n < 0 && !(events & EPOLLIN))
			c->left = 0;
	}
	if (!c->left && events & EPOLLOUT) {
		shutdown(c->fd, SHUT_WR);
		loop_fd_set_events(c->watch, EPOLLIN);
	}
	if (events & (EPOLLIN | EPOLLHUP | EPOLLERR) && recv(c->fd, buf, sizeof(buf), MSG_DONTWAIT) == 0)
		c->ended = true;
	if (events & EPOLLERR)
		c->ended = true;
}

static void converse(struct loop *l, struct nbd_server *s, const uint8_t *bytes, size_t len)
{
	struct client c = { .out = bytes, .left = len };
	int pair[2];

	if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair) || nbd_server_add(s, pair[1]))
		die("a connection");
	c.fd = pair[0];
	c.watch = loop_fd_add(l, c.fd, EPOLLIN | EPOLLOUT, client_event, &c);
	while (!c.ended)
		loop_step(l);
	loop_fd_del(c.watch);
	close(c.fd);
}

/* The first byte says what kind of server. */
int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t len)
{
	static const uint8_t data[8192] = { 1, 2, 3 };
	struct disk d = { .loop = loop_new() };
	struct nbd_server_options o = { .name = "x", .description = "y", .readonly = len && bytes[0] & 1 };
	struct nbd_server *s;
	struct block_fd fd = { "disk", fuzz_memfd(data, sizeof(data)) };

	if (len && len <= INPUT_MAX && !ftruncate(fd.fd, SIZE)) {
		disk_open(&d, "disk", &(struct block_options){ .format = "raw", .flags = BLOCK_NO_IO_URING, .fds = &fd,
							       .nfds = 1 });
		o.disk = d.b;
		if (nbd_server_new(&s, d.loop, &o, NULL))
			die("a server");
		converse(d.loop, s, bytes + 1, len - 1);
		nbd_server_free(s);
		disk_close(&d);
	}
	close(fd.fd);
	loop_free(d.loop);
	return 0;
}

/* --- honest sessions --- */

struct bytes { uint8_t *p; size_t len; };

static void put(struct bytes *b, const void *p, size_t n)
{
	memcpy(b->p + b->len, p, n);
	b->len += n;
}

static void put16(struct bytes *b, uint16_t v) { store_be16(b->p + b->len, v), b->len += 2; }
static void put32(struct bytes *b, uint32_t v) { store_be32(b->p + b->len, v), b->len += 4; }
static void put64(struct bytes *b, uint64_t v) { store_be64(b->p + b->len, v), b->len += 8; }

static void put_option(struct bytes *b, uint32_t option, uint32_t len)
{
	put64(b, NBD_OPTION_MAGIC), put32(b, option), put32(b, len);
}

static void put_request(struct bytes *b, uint16_t flags, uint16_t type, uint64_t offset, uint32_t len)
{
	put32(b, NBD_REQUEST_MAGIC), put16(b, flags), put16(b, type);
	put64(b, b->len), put64(b, offset), put32(b, len);
}

static void put_options(struct bytes *b, bool structured)
{
	put32(b, NBD_FIXED_NEWSTYLE | NBD_NO_ZEROES);
	put_option(b, NBD_OPT_LIST, 0);
	put_option(b, NBD_OPT_INFO, 4 + 1 + 2 + 8);
	put32(b, 1), put(b, "x", 1), put16(b, 4), put64(b, 0x0000000100020003);
	if (structured) {
		put_option(b, NBD_OPT_STRUCTURED_REPLY, 0);
		for (unsigned i = NBD_OPT_LIST_META_CONTEXT; i <= NBD_OPT_SET_META_CONTEXT; i++) {
			put_option(b, i, 5 + 4 + 4 + 15);
			put32(b, 1), put(b, "x", 1), put32(b, 1), put32(b, 15), put(b, "base:allocation", 15);
		}
	}
}

static void put_requests(struct bytes *b, bool structured)
{
	static const uint8_t data[4096] = { 1, 2, 3 };

	put_request(b, NBD_CMD_FUA, NBD_CMD_WRITE, 8192, sizeof(data));
	put(b, data, sizeof(data));
	put_request(b, 0, NBD_CMD_WRITE, 0, 0);
	put_request(b, 0, NBD_CMD_READ, 0, 131072);
	put_request(b, structured ? NBD_CMD_DF : 0, NBD_CMD_READ, 4096, 8192);
	put_request(b, 0, NBD_CMD_FLUSH, 0, 0);
	put_request(b, NBD_CMD_FUA, NBD_CMD_TRIM, 65536, 4096);
	put_request(b, NBD_CMD_NO_HOLE, NBD_CMD_WRITE_ZEROES, 131072, 65536);
	put_request(b, NBD_CMD_FAST_ZERO, NBD_CMD_WRITE_ZEROES, 262144, 65536);
	put_request(b, 0, NBD_CMD_CACHE, 0, SIZE);
	if (structured)
		put_request(b, NBD_CMD_REQ_ONE, NBD_CMD_BLOCK_STATUS, 0, SIZE);
	put_request(b, 0, NBD_CMD_DISC, 0, 0);
}

static uint8_t *seed(unsigned kind, size_t *len)
{
	struct bytes b = { calloc(1, INPUT_MAX), 1 };

	if (kind == 3) {
		free(b.p);
		return NULL;
	}
	put_options(&b, kind);
	if (kind == 2) {
		put_option(&b, NBD_OPT_EXPORT_NAME, 1);
		put(&b, "x", 1);
	} else {
		put_option(&b, NBD_OPT_GO, 4 + 1 + 2 + 2);
		put32(&b, 1), put(&b, "x", 1), put16(&b, 1), put16(&b, NBD_INFO_BLOCK_SIZE);
	}
	put_requests(&b, kind);
	*len = b.len;
	return b.p;
}

/* Not in the data of the write, which is most of it. */
static void damage(unsigned kind, uint8_t *p, size_t len)
{
	size_t at = (size_t)random() % 700;

	(void)kind;
	fuzz_change(p, len, at < 400 ? at : len - (at - 400), true);
}

const struct fuzz_target fuzz_target = { .seed = seed, .damage = damage };
