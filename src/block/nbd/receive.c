/* The client's receiver: replies ("Transmission" in proto.md), in any order, each checked against its slot. */
#include <endian.h>
#include <errno.h>
#include <string.h>

#include "base/checked.h"
#include "base/endian.h"
#include "block/nbd/client.h"

#define STATUS_MAX (4u + (8u << 20))		/* proto.md: at most 2^20 extents */
#define ERROR_MAX (6u + NBD_NAME_MAX + 8u)

/* --- slots --- */

static struct nbd_slot *slot_of(struct nbd_conn *c, uint64_t cookie)
{
	struct nbd_slot *slot = c->slots[(uint32_t)cookie % NBD_CLIENT_SLOTS];

	return slot && slot->cookie == cookie ? slot : NULL;
}

/* The slot may be gone as soon as its waiter runs. */
static void slot_end(struct nbd_conn *c, struct nbd_slot *slot)
{
	struct co *waiter = slot->waiter;

	c->slots[(uint32_t)slot->cookie % NBD_CLIENT_SLOTS] = NULL;
	slot->done = true;
	slot->waiter = NULL;
	if (waiter)
		co_wake(c->sock.co, waiter);
	co_queue_wake_one(c->sock.co, &c->room);
}

static void slot_error(struct nbd_slot *slot, uint32_t error)
{
	if (!slot->ret)
		slot->ret = error ? nbd_errno_of(error) : -EINVAL;
}

/* --- the data of reads --- */

static void span_remove(struct nbd_slot *s, unsigned i)
{
	memmove(&s->spans[i], &s->spans[i + 1], (--s->nspans - i) * sizeof(*s->spans));
}

/* Notes that [at, at + len) of the request has come; false: it lies outside, has come before, or it is in too many
 * pieces.  Filling no byte twice and all of them in the end keeps old memory from passing for the disk's content. */
static bool span_add(struct nbd_slot *s, uint32_t at, uint32_t len)
{
	unsigned i = 0;

	if (!len || !range_inside(at, len, s->len))
		return false;
	while (i < s->nspans && s->spans[i].at < at)
		i++;
	if ((i && s->spans[i - 1].at + s->spans[i - 1].len > at) || (i < s->nspans && s->spans[i].at < at + len))
		return false;
	if (i < s->nspans && s->spans[i].at == at + len) {
		len += s->spans[i].len;
		span_remove(s, i);
	}
	if (i && s->spans[i - 1].at + s->spans[i - 1].len == at) {
		s->spans[i - 1].len += len;
		return true;
	}
	if (s->nspans == NBD_SPANS)
		return false;
	memmove(&s->spans[i + 1], &s->spans[i], (s->nspans++ - i) * sizeof(*s->spans));
	s->spans[i] = (struct nbd_span){ at, len };
	return true;
}

static bool complete(const struct nbd_slot *s)
{
	return !s->len || (s->nspans == 1 && s->spans[0].len == s->len);
}

/* Straight into the vector, from `at` on. */
static int read_into(struct nbd_conn *c, const struct nbd_slot *s, uint32_t at, uint32_t len)
{
	int ret = 0;

	for (int i = 0; i < s->iovcnt && len && !ret; i++) {
		size_t n = s->iov[i].iov_len;

		if (at >= n) {
			at -= (uint32_t)n;
			continue;
		}
		n = n - at < len ? n - at : len;
		ret = nbd_sock_read(&c->sock, (uint8_t *)s->iov[i].iov_base + at, n);
		len -= (uint32_t)n;
		at = 0;
	}
	return ret;
}

/* --- replies --- */

static int simple(struct nbd_conn *c)
{
	struct { uint32_t error; uint64_t cookie; } __attribute__((packed)) head;
	int ret = nbd_sock_read(&c->sock, &head, sizeof(head));
	struct nbd_slot *slot;

	if (ret)
		return ret;
	slot = slot_of(c, head.cookie);
	if (!slot || slot->nspans || (slot->type == NBD_CMD_READ && c->structured) ||
	    (slot->type == NBD_CMD_BLOCK_STATUS && !head.error))
		return -EPROTO;
	if (head.error)
		slot_error(slot, be32toh(head.error));
	else if (slot->type == NBD_CMD_READ)
		ret = read_into(c, slot, 0, slot->len);
	if (!ret)
		slot_end(c, slot);
	return ret;
}

/* Where a chunk lies in its request; false: outside of any that a request can have. */
static bool chunk_at(const struct nbd_slot *s, uint64_t offset, uint32_t *at)
{
	if (offset < s->offset || offset - s->offset >= s->len)
		return false;
	*at = (uint32_t)(offset - s->offset);
	return true;
}

static int data_chunk(struct nbd_conn *c, struct nbd_slot *s, uint32_t len)
{
	uint64_t offset;
	uint32_t at;
	int ret;

	if (s->type != NBD_CMD_READ || len < 9)
		return -EPROTO;
	ret = nbd_sock_read(&c->sock, &offset, sizeof(offset));
	if (ret)
		return ret;
	if (!chunk_at(s, be64toh(offset), &at) || !span_add(s, at, len - 8))
		return -EPROTO;
	return read_into(c, s, at, len - 8);
}

static int hole_chunk(struct nbd_conn *c, struct nbd_slot *s, uint32_t len)
{
	struct nbd_hole hole;
	uint32_t at;
	int ret;

	if (s->type != NBD_CMD_READ || len != sizeof(hole))
		return -EPROTO;
	ret = nbd_sock_read(&c->sock, &hole, sizeof(hole));
	if (ret)
		return ret;
	len = be32toh(hole.len);
	if (!chunk_at(s, be64toh(hole.offset), &at) || !span_add(s, at, len))
		return -EPROTO;
	iov_zero(s->iov, s->iovcnt, at, len);
	return 0;
}

/* One extent was asked for; of more only the first counts. */
static int status_chunk(struct nbd_conn *c, struct nbd_slot *s, uint32_t len)
{
	struct { uint32_t context; struct nbd_extent extent; } __attribute__((packed)) in;
	int ret;

	if (s->type != NBD_CMD_BLOCK_STATUS || len < sizeof(in) || len % 8 != 4 || len > STATUS_MAX)
		return -EPROTO;
	ret = nbd_sock_read(&c->sock, &in, sizeof(in));
	if (ret)
		return ret;
	if (be32toh(in.context) != c->context || !in.extent.len || s->extent.len)
		return -EPROTO;
	s->extent = (struct nbd_extent){ be32toh(in.extent.len), be32toh(in.extent.flags) };
	return nbd_sock_skip(&c->sock, len - sizeof(in));
}

static int error_chunk(struct nbd_conn *c, struct nbd_slot *s, uint32_t len)
{
	struct { uint32_t error; uint16_t message_len; } __attribute__((packed)) in;
	int ret;

	if (len < sizeof(in) || len > ERROR_MAX)
		return -EPROTO;
	ret = nbd_sock_read(&c->sock, &in, sizeof(in));
	if (ret)
		return ret;
	if (be16toh(in.message_len) > len - sizeof(in))
		return -EPROTO;
	slot_error(s, be32toh(in.error));
	return nbd_sock_skip(&c->sock, len - sizeof(in));
}

static int chunk_body(struct nbd_conn *c, struct nbd_slot *s, uint16_t type, uint32_t len, bool done)
{
	switch (type) {
	case NBD_CHUNK_NONE: return len || !done ? -EPROTO : 0;
	case NBD_CHUNK_DATA: return data_chunk(c, s, len);
	case NBD_CHUNK_HOLE: return hole_chunk(c, s, len);
	case NBD_CHUNK_STATUS: return status_chunk(c, s, len);
	default: return type & NBD_CHUNK_ERROR_BIT ? error_chunk(c, s, len) : -EPROTO;
	}
}

/* Without an error, is all there that was asked for? */
static bool answered(const struct nbd_slot *s)
{
	if (s->ret)
		return true;
	return s->type == NBD_CMD_READ ? complete(s) : s->type != NBD_CMD_BLOCK_STATUS || s->extent.len;
}

static int chunk(struct nbd_conn *c)
{
	struct { uint16_t flags, type; uint64_t cookie; uint32_t len; } __attribute__((packed)) head;
	int ret = nbd_sock_read(&c->sock, &head, sizeof(head));
	struct nbd_slot *slot;
	bool done;

	if (ret)
		return ret;
	slot = slot_of(c, head.cookie);
	done = be16toh(head.flags) & NBD_CHUNK_DONE;
	if (!slot || !c->structured)
		return -EPROTO;
	ret = chunk_body(c, slot, be16toh(head.type), be32toh(head.len), done);
	if (ret || !done)
		return ret;
	if (!answered(slot))
		return -EPROTO;
	slot_end(c, slot);
	return 0;
}

static int reply(struct nbd_conn *c)
{
	uint32_t magic;
	int ret = nbd_sock_read(&c->sock, &magic, sizeof(magic));

	if (ret)
		return ret;
	switch (be32toh(magic)) {
	case NBD_SIMPLE_MAGIC: return simple(c);
	case NBD_CHUNK_MAGIC: return chunk(c);
	default: return -EPROTO;
	}
}

static void lost(struct nbd_conn *c, int ret)
{
	const char *why = ret == -EPROTO ? "it broke the protocol" : ret == -ECONNRESET ? "it hung up" : strerror(-ret);

	if (!c->closing)
		log_warn("disk '%s': the connection to the NBD server is lost: %s; reads and writes fail from here on",
			 c->n->path, why);
	c->dead = true;
	nbd_sock_shutdown(&c->sock);
	for (unsigned i = 0; i < NBD_CLIENT_SLOTS; i++) {
		struct nbd_slot *slot = c->slots[i];

		if (slot) {
			slot->ret = -EIO;
			slot_end(c, slot);
		}
	}
	co_queue_wake_all(c->sock.co, &c->room);
}

void nbd_receiver(void *conn)
{
	struct nbd_conn *c = conn;
	int ret;

	do
		ret = reply(c);
	while (!ret);
	lost(c, ret);
	c->receiving = false;
	co_queue_wake_all(c->sock.co, &c->ended);
}
