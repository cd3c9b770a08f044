/*
 * The server's side of the transmission ("Transmission" in proto.md).
 *
 *	reader (the client's coroutine)		a coroutine for each request
 *	  request_read ─▶ check ─▶ room ─▶ ───▶ perform ─▶ reply ─▶ request_end ─┐
 *	     ▲────────────────────── c->room ◀───────────────────────────────────┘
 *
 * The reader takes no further request while the client has NBD_CLIENT_REQUESTS or NBD_CLIENT_BYTES under way; a client
 * that does not read its replies thereby stops only itself.
 */
#include <endian.h>
#include <errno.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>

#include "base/checked.h"
#include "base/error.h"
#include "block/nbd/proto.h"
#include "block/nbd/server_private.h"

#define SPARSE_BYTES 65536u		/* shorter reads are not searched for holes */
#define SPARSE_PIECES 64u		/* looked for in one read; the rest is data */
#define CACHE_PIECE (1u << 20)
#define CACHE_MAX (64u << 20)
#define EXTENTS_MAX 2048u		/* in one reply */
#define EXTENT_STEPS 4096u		/* queries of the disk for one reply */

struct request {
	struct nbd_client *c;
	uint16_t type, flags;
	uint64_t cookie, offset;
	uint32_t len;
	int err;			/* found before it was performed */
	uint8_t *buf;			/* `charge` bytes */
	uint32_t charge;
};

/* --- replies --- */

static void client_kill(struct nbd_client *c)
{
	c->dead = true;
	nbd_sock_shutdown(&c->sock);
}

static void send_reply(struct nbd_client *c, const void *head, size_t len, const void *data, size_t data_len)
{
	const struct iovec iov = { (void *)data, data_len };

	co_lock(c->sock.co, &c->send);
	if (!c->dead && nbd_sock_write(&c->sock, head, len, &iov, data_len ? 1 : 0))
		client_kill(c);
	co_unlock(c->sock.co, &c->send);
}

static struct nbd_chunk chunk(const struct request *r, uint16_t type, bool last, size_t len)
{
	return (struct nbd_chunk){ htobe32(NBD_CHUNK_MAGIC), htobe16(last ? NBD_CHUNK_DONE : 0), htobe16(type),
				   r->cookie, htobe32((uint32_t)len) };
}

static void send_simple(const struct request *r, int err, const void *data, size_t len)
{
	const struct nbd_simple head = { htobe32(NBD_SIMPLE_MAGIC), htobe32(nbd_error_of(err)), r->cookie };

	send_reply(r->c, &head, sizeof(head), data, len);
}

static void send_error_chunk(const struct request *r, int err)
{
	struct { struct nbd_chunk chunk; uint32_t error; uint16_t message_len; } __attribute__((packed)) head = {
		chunk(r, NBD_CHUNK_ERROR, true, 6), htobe32(nbd_error_of(err)), 0,
	};

	send_reply(r->c, &head, sizeof(head), NULL, 0);
}

/* Commands with answers of their own come here only when they failed.  After STRUCTURED_REPLY a read must be answered
 * by chunks. */
static void send_result(const struct request *r, int err)
{
	if (r->c->structured && (r->type == NBD_CMD_READ || r->type == NBD_CMD_BLOCK_STATUS))
		send_error_chunk(r, err);
	else
		send_simple(r, err, NULL, 0);
}

static void send_data(const struct request *r, uint32_t at, uint32_t len, bool last)
{
	struct { struct nbd_chunk chunk; uint64_t offset; } __attribute__((packed)) head = {
		chunk(r, NBD_CHUNK_DATA, last, 8 + len), htobe64(r->offset + at),
	};

	send_reply(r->c, &head, sizeof(head), r->buf + at, len);
}

static void send_hole(const struct request *r, uint32_t at, uint32_t len, bool last)
{
	struct { struct nbd_chunk chunk; struct nbd_hole hole; } __attribute__((packed)) head = {
		chunk(r, NBD_CHUNK_HOLE, last, sizeof(struct nbd_hole)), { htobe64(r->offset + at), htobe32(len) },
	};

	send_reply(r->c, &head, sizeof(head), NULL, 0);
}

/* --- reads --- */

/* Cuts *len to what is alike from there on; does it read as zeroes? */
static bool zeroes_at(const struct request *r, uint32_t at, uint32_t *len)
{
	struct block_status st;

	if (block_co_status(r->c->s->o.disk, r->offset + at, *len, UINT_MAX, &st))
		return false;
	*len = (uint32_t)st.len;
	return st.flags & BLOCK_STATUS_ZERO || !(st.flags & BLOCK_STATUS_ALLOCATED);
}

static int read_chunks(const struct request *r)
{
	bool sparse = r->len >= SPARSE_BYTES && !(r->flags & NBD_CMD_DF);
	unsigned pieces = 0;

	for (uint32_t at = 0, n; at < r->len; at += n) {
		bool last, hole = false;
		int ret;

		n = r->len - at;
		if (sparse && pieces++ < SPARSE_PIECES)
			hole = zeroes_at(r, at, &n);
		last = at + n == r->len;
		if (hole) {
			send_hole(r, at, n, last);
			continue;
		}
		ret = block_co_read(r->c->s->o.disk, r->offset + at, r->buf + at, n);
		if (ret)
			return ret;
		send_data(r, at, n, last);
	}
	return 0;
}

/* Answers itself unless it fails. */
static int perform_read(const struct request *r)
{
	int ret;

	if (!r->len) {
		if (r->c->structured) {
			const struct nbd_chunk none = chunk(r, NBD_CHUNK_NONE, true, 0);

			send_reply(r->c, &none, sizeof(none), NULL, 0);
		} else {
			send_simple(r, 0, NULL, 0);
		}
		return 0;
	}
	if (r->c->structured)
		return read_chunks(r);
	ret = block_co_read(r->c->s->o.disk, r->offset, r->buf, r->len);
	if (!ret)
		send_simple(r, 0, r->buf, r->len);
	return ret;
}

/* Into the host's page cache. */
static int perform_cache(const struct request *r)
{
	uint32_t len = r->len < CACHE_MAX ? r->len : CACHE_MAX;
	int ret = 0;

	for (uint32_t at = 0, n; at < len && !ret; at += n) {
		n = len - at < r->charge ? len - at : r->charge;
		ret = block_co_read(r->c->s->o.disk, r->offset + at, r->buf, n);
	}
	return ret;
}

/* --- block status --- */

static uint32_t extent_flags(const struct block_status *st)
{
	uint32_t flags = st->flags & BLOCK_STATUS_DATA ? 0 : NBD_STATE_HOLE;

	if (st->flags & BLOCK_STATUS_ZERO || !(st->flags & BLOCK_STATUS_ALLOCATED))
		flags |= NBD_STATE_ZERO;
	return flags;
}

/* What a context says of the disk from `at` on: *x of it, of one kind. */
static int extent_at(const struct request *r, unsigned context, uint32_t at, struct nbd_extent *x)
{
	struct nbd_server *s = r->c->s;
	struct block_status st = { 0 };
	bool changed;
	int ret;

	if (context >= NBD_HAS_BITMAP) {
		ret = block_co_bitmap_at(s->o.disk, s->bitmap[context - NBD_HAS_BITMAP], r->offset + at, r->len - at, &changed,
					 &st.len);
		*x = (struct nbd_extent){ (uint32_t)st.len, !ret && changed ? NBD_STATE_DIRTY : 0 };
		return ret;
	}
	ret = block_co_status(s->o.disk, r->offset + at, r->len - at, UINT_MAX, &st);
	*x = (struct nbd_extent){ (uint32_t)st.len, context == NBD_HAS_ALLOCATION ? extent_flags(&st) :
				  st.flags & BLOCK_STATUS_ALLOCATED ? st.depth + 1 : 0 };
	return ret;
}

/* Fills x, in host order, until the range, x or the patience is at an end. */
static int extents_collect(const struct request *r, unsigned context, struct nbd_extent *x, unsigned max, unsigned *count)
{
	unsigned n = 0, steps = 0;

	for (uint32_t at = 0; at < r->len && steps < EXTENT_STEPS; steps++) {
		struct nbd_extent one;
		int ret = extent_at(r, context, at, &one);

		if (ret)
			return ret;
		if (!n || x[n - 1].flags != one.flags) {
			if (n == max)
				break;
			x[n++] = (struct nbd_extent){ 0, one.flags };
		}
		x[n - 1].len += one.len;
		at += one.len;
	}
	*count = n;
	return 0;
}

static int send_status(const struct request *r, unsigned context, bool last)
{
	struct nbd_extent *x = (struct nbd_extent *)r->buf;
	struct { struct nbd_chunk chunk; uint32_t context; } __attribute__((packed)) head;
	unsigned n;
	int ret = extents_collect(r, context, x, r->flags & NBD_CMD_REQ_ONE ? 1 : EXTENTS_MAX, &n);

	if (ret)
		return ret;
	for (unsigned i = 0; i < n; i++)
		x[i] = (struct nbd_extent){ htobe32(x[i].len), htobe32(x[i].flags) };
	head.chunk = chunk(r, NBD_CHUNK_STATUS, last, sizeof(head.context) + n * sizeof(*x));
	head.context = htobe32(context + 1);
	send_reply(r->c, &head, sizeof(head), x, n * sizeof(*x));
	return 0;
}

/* A chunk for each context. */
static int perform_status(const struct request *r)
{
	uint32_t left = r->c->contexts;
	int ret = 0;

	for (unsigned i = 0; left && !ret; i++) {
		bool chosen = left & 1u << i;

		left &= ~(1u << i);
		if (chosen)
			ret = send_status(r, i, !left);
	}
	return ret;
}

/* --- writes --- */

static int perform_zeroes(const struct request *r)
{
	struct block *b = r->c->s->o.disk;
	bool unmap = !(r->flags & NBD_CMD_NO_HOLE);

	if (r->flags & NBD_CMD_FAST_ZERO)
		return block_co_write_zeroes_fast(b, r->offset, r->len, unmap);
	return block_co_write_zeroes(b, r->offset, r->len, unmap);
}

static int perform_write(const struct request *r)
{
	struct block *b = r->c->s->o.disk;
	int ret = 0;

	switch (r->type) {
	case NBD_CMD_WRITE: ret = block_co_write(b, r->offset, r->buf, r->len); break;
	case NBD_CMD_TRIM: ret = block_co_discard(b, r->offset, r->len); break;
	case NBD_CMD_WRITE_ZEROES: ret = perform_zeroes(r); break;
	}
	return !ret && r->flags & NBD_CMD_FUA ? block_co_flush(b) : ret;
}

static void perform(const struct request *r)
{
	int ret = r->err;
	bool answered = false;

	if (!ret) {
		switch (r->type) {
		case NBD_CMD_READ: ret = perform_read(r); answered = !ret; break;
		case NBD_CMD_BLOCK_STATUS: ret = perform_status(r); answered = !ret; break;
		case NBD_CMD_FLUSH: ret = block_co_flush(r->c->s->o.disk); break;
		case NBD_CMD_CACHE: ret = perform_cache(r); break;
		default: ret = perform_write(r); break;
		}
	}
	if (!answered)
		send_result(r, -ret);
}

/* --- life of a request --- */

static void request_end(struct request *r)
{
	struct nbd_client *c = r->c;

	c->in_flight--;
	c->bytes -= r->charge;
	free(r->buf);
	free(r);
	co_queue_wake_all(c->sock.co, &c->room);
}

static void request_main(void *opaque)
{
	struct request *r = opaque;

	perform(r);
	request_end(r);
}

/* 0, or the error to answer with. */
static int check_range(const struct request *r)
{
	bool writes = r->type == NBD_CMD_WRITE || r->type == NBD_CMD_WRITE_ZEROES;

	if (!range_inside(r->offset, r->len, block_size(r->c->s->o.disk)))
		return writes ? -ENOSPC : -EINVAL;
	return (r->offset | r->len) % NBD_BLOCK_MIN ? -EINVAL : 0;
}

static int check(const struct request *r)
{
	static const uint16_t known[NBD_COMMANDS] = {
		[NBD_CMD_READ] = NBD_CMD_FUA | NBD_CMD_DF, [NBD_CMD_WRITE] = NBD_CMD_FUA,
		[NBD_CMD_FLUSH] = NBD_CMD_FUA, [NBD_CMD_TRIM] = NBD_CMD_FUA, [NBD_CMD_CACHE] = 0,
		[NBD_CMD_WRITE_ZEROES] = NBD_CMD_FUA | NBD_CMD_NO_HOLE | NBD_CMD_FAST_ZERO,
		[NBD_CMD_BLOCK_STATUS] = NBD_CMD_FUA | NBD_CMD_REQ_ONE,
	};

	if (r->type >= NBD_COMMANDS || r->flags & ~known[r->type])
		return -EINVAL;
	if (r->flags & NBD_CMD_DF && !r->c->structured)
		return -EINVAL;
	if (r->type == NBD_CMD_FLUSH)
		return r->offset || r->len ? -EINVAL : 0;
	if (r->c->s->readonly &&
	    (r->type == NBD_CMD_WRITE || r->type == NBD_CMD_TRIM || r->type == NBD_CMD_WRITE_ZEROES))
		return -EPERM;
	if (r->type == NBD_CMD_BLOCK_STATUS && (!r->c->contexts || !r->len))
		return -EINVAL;
	if (r->type == NBD_CMD_READ && r->len > NBD_PAYLOAD_MAX)
		return -EINVAL;
	return check_range(r);
}

static uint32_t buffer_bytes(const struct request *r)
{
	switch (r->type) {
	case NBD_CMD_READ:
	case NBD_CMD_WRITE: return r->len;
	case NBD_CMD_CACHE: return r->len < CACHE_PIECE ? r->len : CACHE_PIECE;
	case NBD_CMD_BLOCK_STATUS: return EXTENTS_MAX * sizeof(struct nbd_extent);
	default: return 0;
	}
}

/* Waits until the client may have one more request with so large a buffer. */
static void wait_room(struct nbd_client *c, uint32_t charge)
{
	while (c->in_flight >= NBD_CLIENT_REQUESTS || (c->in_flight && c->bytes + charge > NBD_CLIENT_BYTES))
		co_queue_wait(c->sock.co, &c->room);
}

/* An error of a write's is answered after its data was read away. */
static int request_prepare(struct request *r)
{
	uint32_t charge;

	r->err = check(r);
	charge = r->err ? 0 : buffer_bytes(r);
	wait_room(r->c, charge);
	if (charge) {
		r->buf = malloc(charge);
		if (r->buf)
			r->charge = charge;
		else
			r->err = -ENOMEM;
	}
	if (r->type != NBD_CMD_WRITE)
		return 0;
	if (r->len > NBD_PAYLOAD_MAX)
		return -EPROTO;
	return r->err ? nbd_sock_skip(&r->c->sock, r->len) : nbd_sock_read(&r->c->sock, r->buf, r->len);
}

/* 0: the request is under way; else the client is to be hung up on. */
static int request_take(struct nbd_client *c, const struct nbd_request *wire)
{
	struct request *r = malloc(sizeof(*r));
	int ret;

	if (!r)
		return -ENOMEM;
	*r = (struct request){ .c = c, .type = be16toh(wire->type), .flags = be16toh(wire->flags),
			       .cookie = wire->cookie, .offset = be64toh(wire->offset), .len = be32toh(wire->len) };
	ret = request_prepare(r);
	c->in_flight++;
	c->bytes += r->charge;
	if (!ret)
		ret = co_start(c->sock.co, request_main, r);
	if (ret)
		request_end(r);
	return ret;
}

static int request_next(struct nbd_client *c)
{
	struct nbd_request wire;
	int ret = nbd_sock_read(&c->sock, &wire, sizeof(wire));

	if (ret)
		return ret;
	if (be32toh(wire.magic) != NBD_REQUEST_MAGIC)
		return -EPROTO;
	if (be16toh(wire.type) == NBD_CMD_DISC)
		return 1;
	return request_take(c, &wire);
}

void nbd_server_transmit(struct nbd_client *c)
{
	int ret;

	do
		ret = request_next(c);
	while (!ret);
	if (ret < 0)
		client_kill(c);
	while (c->in_flight)
		co_queue_wait(c->sock.co, &c->room);
}
