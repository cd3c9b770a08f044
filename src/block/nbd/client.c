/* The NBD protocol as a node.  Requests go out as they come, up to NBD_CLIENT_SLOTS; receive.c takes the replies. */
#include <endian.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/checked.h"
#include "block/handover.h"
#include "block/nbd/client.h"

#define BOUNCE_BYTES (1u << 20)
#define RANGE_MAX (1u << 30)		/* of a request without data */
#define DISC_NS 2000000000ull

/* --- one request --- */

static unsigned slot_free(const struct nbd_conn *c)
{
	unsigned i = 0;

	while (i < NBD_CLIENT_SLOTS && c->slots[i])
		i++;
	return i;
}

/* Enters the slot, waiting for a free place. */
static int slot_enter(struct nbd_conn *c, struct nbd_slot *slot)
{
	unsigned i;

	while (!c->dead && (i = slot_free(c)) == NBD_CLIENT_SLOTS)
		co_queue_wait(c->sock.co, &c->room);
	if (c->dead)
		return -EIO;
	slot->cookie = (uint64_t)++c->generation << 32 | i;
	c->slots[i] = slot;
	return 0;
}

static void request_send(struct nbd_conn *c, const struct nbd_slot *slot, uint16_t flags, const struct iovec *iov,
			 int iovcnt)
{
	const struct nbd_request wire = { htobe32(NBD_REQUEST_MAGIC), htobe16(flags), htobe16(slot->type), slot->cookie,
					  htobe64(slot->offset), htobe32(slot->len) };

	co_lock(c->sock.co, &c->send);
	if (!c->dead && nbd_sock_write(&c->sock, &wire, sizeof(wire), iov, iovcnt))
		nbd_sock_shutdown(&c->sock);	/* the receiver sees it and ends all requests */
	co_unlock(c->sock.co, &c->send);
}

/* Sends, with the data in iov for a write, and waits for the reply. */
static int request(struct nbd_conn *c, struct nbd_slot *slot, uint16_t flags, const struct iovec *iov, int iovcnt)
{
	int ret = slot_enter(c, slot);

	if (ret)
		return ret;
	request_send(c, slot, flags, iov, iovcnt);
	while (!slot->done) {
		slot->waiter = co_self(c->sock.co);
		co_wait(c->sock.co);
	}
	return slot->ret;
}

static uint32_t payload_max(const struct nbd_conn *c)
{
	uint32_t max = c->max < NBD_PAYLOAD_MAX ? c->max : NBD_PAYLOAD_MAX;

	return max - max % c->min;
}

/* Whole blocks, inside the disk, in requests of what the server takes. */
static int transfer(struct nbd_conn *c, uint16_t type, uint64_t offset, const struct iovec *iov, int iovcnt)
{
	uint64_t total = iov_bytes(iov, iovcnt), max = payload_max(c);
	struct iovec *part = total > max ? calloc((size_t)iovcnt, sizeof(*part)) : NULL;
	int ret = total > max && !part ? -ENOMEM : 0;

	for (uint64_t at = 0; at < total && !ret; at += max) {
		uint64_t n = total - at < max ? total - at : max;
		struct nbd_slot slot = { .type = type, .offset = offset + at, .len = (uint32_t)n, .iov = iov,
					 .iovcnt = iovcnt };

		if (part) {
			slot.iov = part;
			slot.iovcnt = iov_cut(part, iov, iovcnt, at, n);
		}
		ret = request(c, &slot, 0, slot.iov, type == NBD_CMD_WRITE ? slot.iovcnt : 0);
	}
	free(part);
	return ret;
}

static int transfer_buf(struct nbd_conn *c, uint16_t type, uint64_t offset, void *buf, uint64_t len)
{
	const struct iovec iov = { buf, len };

	return transfer(c, type, offset, &iov, 1);
}

/* --- writers, and those who must be alone: read-modify-write of blocks that are written in part --- */

static void gate_enter(struct nbd_conn *c, bool exclusive)
{
	c->alone += exclusive;
	while (c->exclusive || (exclusive ? c->writers : c->alone))
		co_queue_wait(c->sock.co, &c->gate);
	c->alone -= exclusive;
	c->exclusive = exclusive;
	c->writers++;
}

static void gate_leave(struct nbd_conn *c)
{
	c->exclusive = false;
	if (!--c->writers)
		co_queue_wake_all(c->sock.co, &c->gate);
}

static bool aligned(const struct nbd_conn *c, uint64_t offset, uint64_t len)
{
	return !((offset | len) & (c->min - 1));
}

/* One piece: buf takes the whole blocks around [offset, offset + len). */
static int piece_read(struct nbd_conn *c, uint64_t offset, uint64_t len, uint8_t *buf)
{
	uint64_t start = offset & ~(uint64_t)(c->min - 1), end = (offset + len + c->min - 1) & ~(uint64_t)(c->min - 1);

	return transfer_buf(c, NBD_CMD_READ, start, buf, end - start);
}

static int read_unaligned(struct nbd_conn *c, uint64_t offset, const struct iovec *iov, int iovcnt)
{
	uint64_t total = iov_bytes(iov, iovcnt), n;
	uint8_t *buf = malloc(BOUNCE_BYTES + 2 * (size_t)c->min);
	int ret = buf ? 0 : -ENOMEM;

	for (uint64_t at = 0; at < total && !ret; at += n) {
		n = total - at < BOUNCE_BYTES ? total - at : BOUNCE_BYTES;
		ret = piece_read(c, offset + at, n, buf);
		if (!ret)
			iov_copy_in(iov, iovcnt, at, buf + (offset + at) % c->min, n);
	}
	free(buf);
	return ret;
}

static int write_unaligned(struct nbd_conn *c, uint64_t offset, const struct iovec *iov, int iovcnt)
{
	uint64_t total = iov_bytes(iov, iovcnt), n;
	uint8_t *buf = malloc(BOUNCE_BYTES + 2 * (size_t)c->min);
	int ret = buf ? 0 : -ENOMEM;

	for (uint64_t at = 0; at < total && !ret; at += n) {
		uint64_t skip = (offset + at) % c->min, whole;

		n = total - at < BOUNCE_BYTES ? total - at : BOUNCE_BYTES;
		whole = (skip + n + c->min - 1) & ~(uint64_t)(c->min - 1);
		ret = piece_read(c, offset + at, n, buf);
		if (ret)
			break;
		iov_copy_out(iov, iovcnt, at, buf + skip, n);
		ret = transfer_buf(c, NBD_CMD_WRITE, offset + at - skip, buf, whole);
	}
	free(buf);
	return ret;
}

/* --- node operations --- */

/* A parent that takes what lies past the end as zeroes. */
static int read_past_end(struct nbd_conn *c, uint64_t offset, const struct iovec *iov, int iovcnt)
{
	uint64_t total = iov_bytes(iov, iovcnt), inside = offset < c->size ? c->size - offset : 0;
	struct iovec *part = calloc((size_t)iovcnt, sizeof(*part));
	int ret = 0;

	if (!part)
		return -ENOMEM;
	iov_zero(iov, iovcnt, inside, total - inside);
	if (inside)
		ret = read_unaligned(c, offset, part, iov_cut(part, iov, iovcnt, 0, inside));
	free(part);
	return ret;
}

static int nbd_readv(struct node *n, uint64_t offset, const struct iovec *iov, int iovcnt)
{
	struct nbd_conn *c = n->impl;
	uint64_t total = iov_bytes(iov, iovcnt);

	if (!range_inside(offset, total, c->size))
		return n->zero_past_end ? read_past_end(c, offset, iov, iovcnt) : -EIO;
	if (!aligned(c, offset, total))
		return read_unaligned(c, offset, iov, iovcnt);
	return transfer(c, NBD_CMD_READ, offset, iov, iovcnt);
}

static int nbd_writev(struct node *n, uint64_t offset, const struct iovec *iov, int iovcnt)
{
	struct nbd_conn *c = n->impl;
	uint64_t total = iov_bytes(iov, iovcnt);
	bool whole = aligned(c, offset, total);
	int ret;

	if (!range_inside(offset, total, c->size))
		return -ENOSPC;
	gate_enter(c, !whole);
	if (whole)
		ret = transfer(c, NBD_CMD_WRITE, offset, iov, iovcnt);
	else
		ret = write_unaligned(c, offset, iov, iovcnt);
	gate_leave(c);
	return ret;
}

static int nbd_flush(struct node *n)
{
	struct nbd_conn *c = n->impl;
	struct nbd_slot slot = { .type = NBD_CMD_FLUSH };

	if (n->readonly)
		return 0;
	if (c->flags & NBD_SEND_FLUSH)
		return file_sync_result(request(c, &slot, 0, NULL, 0));
	return c->dead ? -EIO : 0;
}

/* A command without data on a range of whole blocks. */
static int range_command(struct nbd_conn *c, uint16_t type, uint16_t flags, uint64_t offset, uint64_t len)
{
	int ret = 0;

	for (uint64_t at = 0; at < len && !ret; at += RANGE_MAX) {
		struct nbd_slot slot = { .type = type, .offset = offset + at,
					 .len = (uint32_t)(len - at < RANGE_MAX ? len - at : RANGE_MAX) };

		ret = request(c, &slot, flags, NULL, 0);
	}
	return ret;
}

static int nbd_discard(struct node *n, uint64_t offset, uint64_t len)
{
	struct nbd_conn *c = n->impl;
	uint64_t start = (offset + c->min - 1) & ~(uint64_t)(c->min - 1), end = (offset + len) & ~(uint64_t)(c->min - 1);
	int ret;

	if (!(c->flags & NBD_SEND_TRIM) || start >= end)
		return 0;
	gate_enter(c, false);
	ret = range_command(c, NBD_CMD_TRIM, 0, start, end - start);
	gate_leave(c);
	return ret == -EOPNOTSUPP ? 0 : ret;
}

static int nbd_write_zeroes(struct node *n, uint64_t offset, uint64_t len, unsigned flags)
{
	struct nbd_conn *c = n->impl;
	uint16_t wire = flags & NODE_ZERO_MAY_UNMAP ? 0 : NBD_CMD_NO_HOLE;
	int ret;

	if (!(c->flags & NBD_SEND_WRITE_ZEROES) || !aligned(c, offset, len))
		return -EOPNOTSUPP;
	if (flags & NODE_ZERO_NO_FALLBACK) {
		if (!(c->flags & NBD_SEND_FAST_ZERO))
			return -EOPNOTSUPP;
		wire |= NBD_CMD_FAST_ZERO;
	}
	gate_enter(c, false);
	ret = range_command(c, NBD_CMD_WRITE_ZEROES, wire, offset, len);
	gate_leave(c);
	return ret;
}

static unsigned status_flags(uint32_t extent)
{
	return BLOCK_STATUS_OFFSET | BLOCK_STATUS_ALLOCATED |
	       (extent & NBD_STATE_ZERO ? BLOCK_STATUS_ZERO : BLOCK_STATUS_DATA);
}

/* out is preset to data all along: that holds where the server does not tell. */
static int nbd_status(struct node *n, uint64_t offset, uint64_t len, struct block_status *out)
{
	struct nbd_conn *c = n->impl;
	uint64_t start = offset & ~(uint64_t)(c->min - 1), end;
	struct nbd_slot slot = { .type = NBD_CMD_BLOCK_STATUS, .offset = start };
	int ret;

	out->flags |= BLOCK_STATUS_OFFSET;
	out->host_offset = offset;
	if (offset >= c->size)
		out->flags = BLOCK_STATUS_ZERO | BLOCK_STATUS_ALLOCATED;
	if (!c->allocation || offset >= c->size)
		return 0;
	end = len < c->size - offset ? offset + len : c->size;
	end = end - start < RANGE_MAX ? end : start + RANGE_MAX;
	slot.len = (uint32_t)(((end + c->min - 1) & ~(uint64_t)(c->min - 1)) - start);
	ret = request(c, &slot, NBD_CMD_REQ_ONE, NULL, 0);
	if (ret)
		return ret == -EINVAL || ret == -EOPNOTSUPP ? 0 : ret;
	if (start + slot.extent.len <= offset)
		return 0;
	if (start + slot.extent.len < end)
		end = start + slot.extent.len;
	out->len = end - offset;
	out->flags = status_flags(slot.extent.flags);
	return 0;
}

/* --- life --- */

static int nbd_close(struct node *n)
{
	struct nbd_conn *c = n->impl;
	struct nbd_slot bye = { .type = NBD_CMD_DISC };

	c->closing = true;
	if (c->receiving) {
		nbd_sock_deadline(&c->sock, DISC_NS);
		request_send(c, &bye, 0, NULL, 0);
		nbd_sock_shutdown(&c->sock);
	}
	while (c->receiving)
		co_queue_wait(c->sock.co, &c->ended);
	nbd_sock_fini(&c->sock);
	nbd_tls_free(c->tls);
	free(c);
	n->impl = NULL;
	return 0;
}

static void nbd_interrupt(struct node *n)
{
	struct nbd_conn *c = n->impl;

	c->closing = true;
	nbd_sock_shutdown(&c->sock);	/* the receiver sees it and ends all requests */
}

static int nbd_set_readonly(struct node *n, bool readonly, const struct block_options *fds, struct error *e)
{
	const struct nbd_conn *c = n->impl;

	return readonly || !(c->flags & NBD_READ_ONLY) ? 0 :
	       error_set(e, EROFS, "export it for writing", "write to the backing file", "the server exports it read-only");
}

static const struct node_ops nbd_ops = {
	.name = "nbd", .co_readv = nbd_readv, .co_writev = nbd_writev, .co_flush = nbd_flush, .co_discard = nbd_discard,
	.co_write_zeroes = nbd_write_zeroes, .co_status = nbd_status, .co_set_readonly = nbd_set_readonly,
	.interrupt = nbd_interrupt, .co_close = nbd_close,
};

/* What the server offers against what is wanted. */
static int check_export(const struct nbd_conn *c, const struct node *n, struct error *e)
{
	char what[192];

	snprintf(what, sizeof(what), "open disk '%.150s'", n->path);
	if (c->size > INT64_MAX || c->size % c->min)
		return error_set(e, EINVAL, NULL, what, "the server gives an impossible size, %llu bytes",
				 (unsigned long long)c->size);
	if (!n->readonly && c->flags & NBD_READ_ONLY)
		return error_set(e, EROFS, "add ,readonly or ,ephemeral to the disk", what,
				 "the server exports it read-only");
	return 0;
}

static int connect_main(struct node *n, struct nbd_conn *c, const struct node_open *how, struct error *e)
{
	struct nbd_uri *u = malloc(sizeof(*u));
	int ret, fd, tls_fd;

	if (!u)
		return error_errno(e, ENOMEM, NULL, "open disk '%s'", n->path);
	fd = node_given_fd(how->o, n->path);
	tls_fd = handover_given(n, how, NBD_TLS_PREFIX);
	ret = nbd_uri_parse(u, n->path, e);
	if (!ret)
		ret = nbd_connect(c, n->env->loop, u, fd, tls_fd, e);
	else if (fd >= 0)
		close(fd);
	if (tls_fd >= 0)
		close(tls_fd);
	free(u);
	return ret ? ret : check_export(c, n, e);
}

static int nbd_open(struct node *n, const struct node_open *how, struct error *e)
{
	struct nbd_conn *c = calloc(1, sizeof(*c));
	int ret;

	if (!c)
		return error_errno(e, ENOMEM, NULL, "open disk '%s'", n->path);
	n->impl = c;
	c->n = n;
	ret = connect_main(n, c, how, e);
	if (ret)
		return ret;
	n->size_bytes = c->size;
	n->limits.align = 1;
	n->limits.can_discard = c->flags & NBD_SEND_TRIM;
	n->limits.can_zero = c->flags & NBD_SEND_WRITE_ZEROES;
	c->receiving = true;
	ret = co_start(n->env->co, nbd_receiver, c);
	if (ret) {
		c->receiving = false;
		return error_errno(e, -ret, NULL, "open disk '%s'", n->path);
	}
	return 0;
}

const struct driver nbd_driver = { .name = "nbd", .prefix = "nbd:", .ops = &nbd_ops, .co_open = nbd_open };
const struct driver nbd_unix_driver = { .name = "nbd+unix", .prefix = "nbd+unix:", .ops = &nbd_ops,
					.co_open = nbd_open };
const struct driver nbds_driver = { .name = "nbds", .prefix = "nbds:", .ops = &nbd_ops, .co_open = nbd_open };
const struct driver nbds_unix_driver = { .name = "nbds+unix", .prefix = "nbds+unix:", .ops = &nbd_ops,
					 .co_open = nbd_open };
