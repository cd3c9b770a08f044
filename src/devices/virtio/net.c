/*
 * virtio-net (virtio 1.2, 5.1): one pair of queues and a control queue.
 *
 *   queue 0  receive    in:  { virtio_net_hdr, num_buffers u16 | frame }   mergeable: or several buffers
 *   queue 1  transmit   out: { virtio_net_hdr, num_buffers u16 | frame }
 *   queue 2  control    out: { class u8 | command u8 | data }  in: { ack u8 }
 */
#include "devices/virtio/net.h"

#include <endian.h>
#include <errno.h>
#include <linux/virtio_ids.h>
#include <linux/virtio_net.h>
#include <stdlib.h>
#include <string.h>

#include "base/stream.h"
#include "devices/virtio/virtio.h"
#include "net/offload.h"

enum { RX, TX, CTRL, QUEUES };
#define BATCH 256u
#define HDR_LEN sizeof(struct virtio_net_hdr_mrg_rxbuf)
#define MERGE_MAX 32u
#define MAC_TABLE_MAX 32u

struct mac { uint8_t b[6]; };

struct virtio_net {
	struct virtio *v;
	struct net_backend be;
	struct net_sink sink;
	bool promisc, allmulti, allunicast, nomulti, nounicast, nobroadcast;
	unsigned macs;			/* table[]; MAC_TABLE_MAX + 1: overflowed, let all pass */
	struct mac table[MAC_TABLE_MAX];
	struct mac mac;
	uint8_t frame[FRAME_MAX];	/* being sent */
};

/* --- receive --- */

static bool table_has(const struct virtio_net *n, const uint8_t *mac)
{
	if (n->macs > MAC_TABLE_MAX)
		return true;
	for (unsigned i = 0; i < n->macs; i++)
		if (!memcmp(n->table[i].b, mac, 6))
			return true;
	return false;
}

/* 5.1.6.5.1 */
static bool wanted(const struct virtio_net *n, const uint8_t *dest)
{
	static const uint8_t broadcast[6] = { 0xff, 0xff, 0xff, 0xff, 0xff, 0xff };

	if (n->promisc)
		return true;
	if (!memcmp(dest, broadcast, 6))
		return !n->nobroadcast;
	if (dest[0] & 1)
		return !n->nomulti && (n->allmulti || table_has(n, dest));
	return !n->nounicast && (n->allunicast || !memcmp(n->mac.b, dest, 6) || table_has(n, dest));
}

static bool net_can_receive(void *opaque)
{
	struct virtio_net *n = opaque;
	struct virtq *q = virtio_queue(n->v, RX);

	/* Without buffers, ask to be told of new ones, and look again. */
	return virtq_pending(q) || virtq_listen(q);
}

/* Fills as many buffers as the frame needs.  They are shown to the driver together: num_buffers is written
 * into the first before the used index moves. */
static bool place(struct virtio_net *n, struct virtq *q, const uint8_t *frame, size_t len)
{
	bool merge = virtio_has(n->v, VIRTIO_NET_F_MRG_RXBUF);
	struct virtio_net_hdr_mrg_rxbuf h = { .hdr.gso_type = VIRTIO_NET_HDR_GSO_NONE };
	uint32_t written[MERGE_MAX];
	uint16_t head[MERGE_MAX];
	struct iovec first = {0};
	unsigned bufs = 0;
	size_t done = 0;

	if (virtio_has(n->v, VIRTIO_NET_F_GUEST_CSUM))
		h.hdr.flags = VIRTIO_NET_HDR_F_DATA_VALID;	/* a back end's checksums are right */
	while (!bufs || done < len) {
		size_t skip = bufs ? 0 : HDR_LEN, part;
		struct virtq_chain c;

		if (bufs == MERGE_MAX || (bufs && !merge) || !virtq_pop(q, &c)) {
			virtq_unpop(q, bufs);
			return false;
		}
		if (c.in_len <= skip || (!bufs && c.in[0].iov_len < HDR_LEN)) {
			q->broken = true;	/* 5.1.6.3.1: buffers hold at least the header */
			return false;
		}
		if (!bufs)
			first = c.in[0];
		part = iov_put(c.in, c.nin, skip, frame + done, len - done);
		done += part;
		virtq_wrote(virtio_map(n->v), c.in, c.in_gpa, c.nin, skip + part);
		head[bufs] = c.head;
		written[bufs++] = (uint32_t)(skip + part);
	}
	h.num_buffers = htole16((uint16_t)bufs);
	memcpy(first.iov_base, &h, HDR_LEN);
	for (unsigned i = 0; i < bufs; i++)
		virtq_push(q, head[i], written[i]);
	return true;
}

static void net_receive(void *opaque, const void *frame, size_t len)
{
	struct virtio_net *n = opaque;
	struct virtq *q = virtio_queue(n->v, RX);

	if (len < 14 || len > FRAME_MAX || !q->ready || !wanted(n, frame))
		return;
	virtq_ignore_kicks(q);
	if (!place(n, q, frame, len) && !q->broken)
		virtq_listen(q);
	virtio_signal(n->v, RX);
}

/* --- transmit --- */

static void emit(void *opaque, const void *frame, size_t len)
{
	struct virtio_net *n = opaque;
	struct iovec iov = { (void *)frame, len };

	if (n->be.ops)
		n->be.ops->send(n->be.opaque, &iov, 1);
}

static bool offload_parse(const struct virtio_net_hdr *h, struct offload *o)
{
	memset(o, 0, sizeof(*o));
	o->needs_csum = h->flags & VIRTIO_NET_HDR_F_NEEDS_CSUM;
	o->csum_start = le16toh(h->csum_start);
	o->csum_offset = le16toh(h->csum_offset);
	o->gso_size = le16toh(h->gso_size);
	switch (h->gso_type & ~VIRTIO_NET_HDR_GSO_ECN) {
	case VIRTIO_NET_HDR_GSO_NONE: o->gso = OFFLOAD_NONE; return true;
	case VIRTIO_NET_HDR_GSO_TCPV4: o->gso = OFFLOAD_TCP4; return true;
	case VIRTIO_NET_HDR_GSO_TCPV6: o->gso = OFFLOAD_TCP6; return true;
	default: return false;
	}
}

/* A senseless frame is dropped, as a card would. */
static void transmit(struct virtio_net *n, const struct virtq_chain *c)
{
	struct virtio_net_hdr h;
	struct offload o;
	uint64_t len = c->out_len - HDR_LEN;

	if (c->out_len < HDR_LEN || len > FRAME_MAX)
		return;
	iov_get(c->out, c->nout, 0, &h, sizeof(h));
	iov_get(c->out, c->nout, HDR_LEN, n->frame, len);
	if (offload_parse(&h, &o))
		offload_send(&o, n->frame, len, emit, n);
}

static void tx_kick(struct virtio_net *n)
{
	struct virtq *q = virtio_queue(n->v, TX);
	struct virtq_chain c;
	unsigned done = 0;

	do {
		virtq_ignore_kicks(q);
		while (done < BATCH && virtq_pop(q, &c)) {
			transmit(n, &c);
			virtq_push(q, c.head, 0);
			done++;
		}
	} while (done < BATCH && virtq_listen(q));
	virtio_signal(n->v, TX);
	if (done == BATCH)
		virtio_again(n->v, TX);
}

/* --- control --- */

static bool rx_mode(struct virtio_net *n, uint8_t command, bool on)
{
	switch (command) {
	case VIRTIO_NET_CTRL_RX_PROMISC: n->promisc = on; return true;
	case VIRTIO_NET_CTRL_RX_ALLMULTI: n->allmulti = on; return true;
	case VIRTIO_NET_CTRL_RX_ALLUNI: n->allunicast = on; return true;
	case VIRTIO_NET_CTRL_RX_NOMULTI: n->nomulti = on; return true;
	case VIRTIO_NET_CTRL_RX_NOUNI: n->nounicast = on; return true;
	case VIRTIO_NET_CTRL_RX_NOBCAST: n->nobroadcast = on; return true;
	}
	return false;
}

/* Two tables, unicast and multicast, each { entries u32 | macs }; here they are one. */
static bool mac_table_set(struct virtio_net *n, const struct virtq_chain *c)
{
	size_t at = 2;

	n->macs = 0;
	for (unsigned t = 0; t < 2; t++) {
		uint32_t entries;

		if (iov_get(c->out, c->nout, at, &entries, 4) != 4)
			return false;
		entries = le32toh(entries);
		at += 4;
		if (entries > (c->out_len - at) / 6)
			return false;
		for (uint32_t i = 0; i < entries; i++) {
			if (n->macs < MAC_TABLE_MAX)
				iov_get(c->out, c->nout, at + 6ull * i, n->table[n->macs++].b, 6);
			else
				n->macs = MAC_TABLE_MAX + 1;
			if (n->macs > MAC_TABLE_MAX)
				break;
		}
		at += 6ull * entries;
	}
	return true;
}

static bool mac_set(struct virtio_net *n, const struct virtq_chain *c)
{
	struct mac mac;

	if (iov_get(c->out, c->nout, 2, mac.b, 6) != 6)
		return false;
	n->mac = mac;
	virtio_config_set(n->v, offsetof(struct virtio_net_config, mac), mac.b, 6, false);
	return true;
}

static bool control(struct virtio_net *n, const struct virtq_chain *c)
{
	uint8_t cmd[3] = {0};
	size_t len = iov_get(c->out, c->nout, 0, cmd, 3);

	if (len < 3)
		return false;
	if (cmd[0] == VIRTIO_NET_CTRL_RX)
		return rx_mode(n, cmd[1], cmd[2]);
	if (cmd[0] == VIRTIO_NET_CTRL_MAC && cmd[1] == VIRTIO_NET_CTRL_MAC_TABLE_SET)
		return mac_table_set(n, c);
	if (cmd[0] == VIRTIO_NET_CTRL_MAC && cmd[1] == VIRTIO_NET_CTRL_MAC_ADDR_SET)
		return mac_set(n, c);
	return false;
}

static void ctrl_kick(struct virtio_net *n)
{
	struct virtq *q = virtio_queue(n->v, CTRL);
	struct virtq_chain c;
	unsigned done = 0;

	do {
		while (done < BATCH && virtq_pop(q, &c)) {
			uint8_t ack = control(n, &c) ? VIRTIO_NET_OK : VIRTIO_NET_ERR;

			iov_put(c.in, c.nin, 0, &ack, 1);
			virtq_wrote(virtio_map(n->v), c.in, c.in_gpa, c.nin, 1);
			virtq_push(q, c.head, c.nin ? 1 : 0);
			done++;
		}
	} while (done < BATCH && virtq_listen(q));
	virtio_signal(n->v, CTRL);
	if (done == BATCH)
		virtio_again(n->v, CTRL);
}

/* --- life --- */

static void net_kick(void *opaque, unsigned queue)
{
	struct virtio_net *n = opaque;

	if (queue == TX)
		tx_kick(n);
	else if (queue == CTRL)
		ctrl_kick(n);
	else if (n->be.ops)
		n->be.ops->poke(n->be.opaque);
}

static void net_start(void *opaque)
{
	struct virtio_net *n = opaque;

	/* 5.1.6.5.1: without the control queue everything passes; with it, Linux sets a mode at once. */
	n->promisc = true;
	n->allmulti = n->allunicast = n->nomulti = n->nounicast = n->nobroadcast = false;
	n->macs = 0;
	virtio_config_get(n->v, offsetof(struct virtio_net_config, mac), n->mac.b, 6);
}

static void net_save(void *opaque, struct stream *s)
{
	struct virtio_net *n = opaque;

	stream_put_u8(s, (uint8_t)(n->promisc | n->allmulti << 1 | n->allunicast << 2 | n->nomulti << 3 |
				   n->nounicast << 4 | n->nobroadcast << 5));
}

static int net_load(void *opaque, struct stream *s)
{
	/* A restored card starts promiscuous, which passes a superset; the next command narrows it. */
	stream_get_u8(s);
	return 0;
}

static void net_free(void *opaque)
{
	struct virtio_net *n = opaque;

	if (n->be.ops)
		n->be.ops->free(n->be.opaque);
	free(n);
}

static const struct virtio_class net_class = {
	.name = "virtio-net", .id = VIRTIO_ID_NET, .class_code = 0x020000, .start = net_start,
	.kick = net_kick, .save = net_save, .load = net_load, .free = net_free,
};

#define BIT(f) (1ull << (f))

int virtio_net_new(struct virtio_net **out, struct pci_bus *bus, struct map *m, struct loop *l,
		   const uint8_t mac[6], struct error *e)
{
	struct virtio_net *n = calloc(1, sizeof(*n));
	struct virtio_net_config config = { .status = htole16(VIRTIO_NET_S_LINK_UP) };
	struct virtio_params p = {
		.queues = QUEUES, .config = &config, .config_len = sizeof(config),
		.features = BIT(VIRTIO_NET_F_MAC) | BIT(VIRTIO_NET_F_STATUS) | BIT(VIRTIO_NET_F_MRG_RXBUF) |
			    BIT(VIRTIO_NET_F_CSUM) | BIT(VIRTIO_NET_F_GUEST_CSUM) |
			    BIT(VIRTIO_NET_F_HOST_TSO4) | BIT(VIRTIO_NET_F_HOST_TSO6) |
			    BIT(VIRTIO_NET_F_HOST_ECN) | BIT(VIRTIO_NET_F_CTRL_VQ) |
			    BIT(VIRTIO_NET_F_CTRL_RX) | BIT(VIRTIO_NET_F_CTRL_RX_EXTRA) |
			    BIT(VIRTIO_NET_F_CTRL_MAC_ADDR),
	};
	int ret;

	if (!n)
		return error_errno(e, ENOMEM, NULL, "create virtio-net");
	memcpy(config.mac, mac, 6);
	n->sink = (struct net_sink){ net_can_receive, net_receive, n };
	ret = virtio_new(&n->v, &net_class, &p, bus, m, l, n, e);
	if (ret) {
		free(n);
		return ret;
	}
	*out = n;
	return 0;
}

const struct net_sink *virtio_net_sink(struct virtio_net *n)
{
	return &n->sink;
}

void virtio_net_attach(struct virtio_net *n, const struct net_backend *be)
{
	n->be = *be;
}

void virtio_net_set_link(struct virtio_net *n, bool up)
{
	uint16_t status = htole16(up ? VIRTIO_NET_S_LINK_UP : 0);

	virtio_config_set(n->v, offsetof(struct virtio_net_config, status), &status, 2, true);
}

unsigned virtio_net_slot(const struct virtio_net *n)
{
	return virtio_slot(n->v);
}
