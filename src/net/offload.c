/*
 * Segmentation: each segment gets a copy of the headers, changed as RFC 9293 and the IP versions ask.
 *
 *	| Ethernet, tags | IPv4 or IPv6 | TCP | payload ............ |
 *	0                l3             l4    hdr
 */
#include "net/offload.h"

#include <string.h>


#define GSO_SIZE_MIN 48u	/* Linux' smallest MSS; bounds the number of frames made from one */
enum { ETH_HDR = 14, ETH_TYPE = 12, TYPE_IP4 = 0x0800, TYPE_IP6 = 0x86dd, TYPE_VLAN = 0x8100 };
enum { PROTO_TCP = 6, TCP_SEQ = 4, TCP_DOFF = 12, TCP_FLAGS = 13, TCP_CSUM = 16 };
enum { TCP_FIN = 1, TCP_PSH = 8, TCP_CWR = 0x80 };

static uint16_t get16(const uint8_t *p)
{
	return (uint16_t)(p[0] << 8 | p[1]);
}

static void put16(uint8_t *p, uint16_t v)
{
	p[0] = (uint8_t)(v >> 8);
	p[1] = (uint8_t)v;
}

static uint32_t get32(const uint8_t *p)
{
	return (uint32_t)get16(p) << 16 | get16(p + 2);
}

static void put32(uint8_t *p, uint32_t v)
{
	put16(p, (uint16_t)(v >> 16));
	put16(p + 2, (uint16_t)v);
}

uint16_t csum_add(uint32_t sum, const void *data, size_t len)
{
	const uint8_t *p = data;
	uint64_t wide = 0;

	/* The sum is the same in either byte order but for a swap at the end (RFC 1071, 2B). */
	for (; len >= 4; p += 4, len -= 4) {
		uint32_t word;

		memcpy(&word, p, 4);
		wide += word;
	}
	if (len >= 2) {
		uint16_t word;

		memcpy(&word, p, 2);
		wide += word;
		p += 2;
		len -= 2;
	}
	if (len)
		wide += *p;
	while (wide >> 16)
		wide = (wide & 0xffff) + (wide >> 16);
	sum += (uint32_t)((wide & 0xff) << 8 | wide >> 8);
	while (sum >> 16)
		sum = (sum & 0xffff) + (sum >> 16);
	return (uint16_t)sum;
}

/* The driver left the sum of the pseudo header in the field. */
static bool complete_csum(const struct offload *o, uint8_t *frame, size_t len)
{
	size_t field = (size_t)o->csum_start + o->csum_offset;
	uint16_t sum;

	if (field + 2 > len || o->csum_start >= len)
		return false;
	sum = (uint16_t)~csum_add(0, frame + o->csum_start, len - o->csum_start);
	put16(frame + field, sum ? sum : 0xffff);
	return true;
}

struct layout { size_t l3, l4, hdr; bool ip6; };

static bool parse(const struct offload *o, const uint8_t *f, size_t len, struct layout *y)
{
	uint16_t type;

	y->l3 = ETH_HDR;
	if (len < ETH_HDR + 4 + 20)
		return false;
	type = get16(f + ETH_TYPE);
	if (type == TYPE_VLAN) {
		type = get16(f + ETH_TYPE + 4);
		y->l3 += 4;
	}
	y->ip6 = o->gso == OFFLOAD_TCP6;
	if (type != (y->ip6 ? TYPE_IP6 : TYPE_IP4))
		return false;
	if (y->ip6) {		/* extension headers may lie between: the driver says where TCP starts */
		y->l4 = o->csum_start;
		if (y->l4 < y->l3 + 40)
			return false;
	} else {
		y->l4 = y->l3 + (f[y->l3] & 15u) * 4;
		if (y->l4 < y->l3 + 20 || f[y->l3 + 9] != PROTO_TCP)
			return false;
	}
	if (y->l4 + 20 > len)
		return false;
	y->hdr = y->l4 + (f[y->l4 + TCP_DOFF] >> 4) * 4u;
	return y->hdr >= y->l4 + 20 && y->hdr < len;
}

static void finish_ip(uint8_t *f, const struct layout *y, size_t len, unsigned index)
{
	uint8_t *ip = f + y->l3;

	if (y->ip6) {
		put16(ip + 4, (uint16_t)(len - y->l3 - 40));
		return;
	}
	put16(ip + 2, (uint16_t)(len - y->l3));
	put16(ip + 4, (uint16_t)(get16(ip + 4) + index));
	put16(ip + 10, 0);
	put16(ip + 10, (uint16_t)~csum_add(0, ip, y->l4 - y->l3));
}

static void finish_tcp_csum(uint8_t *f, const struct layout *y, size_t len)
{
	uint32_t sum = PROTO_TCP + (uint32_t)(len - y->l4);

	put16(f + y->l4 + TCP_CSUM, 0);
	if (y->ip6)
		sum += csum_add(0, f + y->l3 + 8, 32);
	else
		sum += csum_add(0, f + y->l3 + 12, 8);
	put16(f + y->l4 + TCP_CSUM, (uint16_t)~csum_add(sum, f + y->l4, len - y->l4));
}

static bool segment(const struct offload *o, const uint8_t *frame, size_t len, offload_emit_fn *emit,
		    void *opaque)
{
	uint8_t out[FRAME_MAX];
	struct layout y;
	size_t left, part;
	unsigned index = 0;

	if (o->gso_size < GSO_SIZE_MIN || !parse(o, frame, len, &y))
		return false;
	for (size_t at = y.hdr; at < len; at += part, index++) {
		uint8_t *tcp = out + y.l4;

		left = len - at;
		part = left < o->gso_size ? left : o->gso_size;
		memcpy(out, frame, y.hdr);
		memcpy(out + y.hdr, frame + at, part);
		put32(tcp + TCP_SEQ, get32(tcp + TCP_SEQ) + (uint32_t)(at - y.hdr));
		if (part < left)
			tcp[TCP_FLAGS] &= (uint8_t)~(TCP_FIN | TCP_PSH);
		if (index)
			tcp[TCP_FLAGS] &= (uint8_t)~TCP_CWR;
		finish_ip(out, &y, y.hdr + part, index);
		finish_tcp_csum(out, &y, y.hdr + part);
		emit(opaque, out, y.hdr + part);
	}
	return true;
}

bool offload_send(const struct offload *o, uint8_t *frame, size_t len, offload_emit_fn *emit, void *opaque)
{
	if (len < ETH_HDR || len > FRAME_MAX)
		return false;
	if (o->gso != OFFLOAD_NONE)
		return segment(o, frame, len, emit, opaque);
	if (o->needs_csum && !complete_csum(o, frame, len))
		return false;
	emit(opaque, frame, len);
	return true;
}
