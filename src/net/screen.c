/*
 * The guest wrote every byte of a frame, and libslirp's parsers are old: only what is well formed by its own
 * length fields gets there.
 *
 *	0 Ethernet  14 IPv4: ver/ihl, tos, total u16, id u16, flags/offset u16, ttl, proto, sum u16, src, dst
 */
#include "net/screen.h"

#include <stdbool.h>

#include "net/offload.h"

enum { ETH_HDR = 14, ARP_FRAME = 42, TYPE_IP4 = 0x0800, TYPE_ARP = 0x0806 };
enum { PROTO_ICMP = 1, PROTO_TCP = 6, PROTO_UDP = 17 };
#define MORE_OR_OFFSET 0x3fffu

static unsigned get16(const uint8_t *p)
{
	return (unsigned)(p[0] << 8 | p[1]);
}

static bool l4_good(unsigned proto, const uint8_t *l4, size_t len)
{
	switch (proto) {
	case PROTO_ICMP:
		return len >= 8;
	case PROTO_UDP:
		return len >= 8 && get16(l4 + 4) == len;
	case PROTO_TCP:
		return len >= 20 && (l4[12] >> 4) * 4u >= 20 && (l4[12] >> 4) * 4u <= len;
	}
	return false;	/* libslirp knows no others */
}

static size_t screen_ip4(const uint8_t *frame, size_t len)
{
	const uint8_t *ip = frame + ETH_HDR;
	size_t hdr, total;

	if (len < ETH_HDR + 20 || ip[0] >> 4 != 4)
		return 0;
	hdr = (ip[0] & 15u) * 4;
	total = get16(ip + 2);
	if (hdr < 20 || total < hdr || total > len - ETH_HDR || (get16(ip + 6) & MORE_OR_OFFSET))
		return 0;
	if (csum_add(0, ip, hdr) != 0xffff || !l4_good(ip[9], ip + hdr, total - hdr))
		return 0;
	return ETH_HDR + total;
}

size_t screen_frame(const uint8_t *frame, size_t len)
{
	if (len < ETH_HDR)
		return 0;
	switch (get16(frame + 12)) {
	case TYPE_ARP: return len >= ARP_FRAME ? ARP_FRAME : 0;
	case TYPE_IP4: return screen_ip4(frame, len);
	default: return 0;
	}
}
