/* virtio-net (virtio 1.2, 5.1): a network card on a port. */
#ifndef VIXEN_DEVICES_VIRTIO_NET_H
#define VIXEN_DEVICES_VIRTIO_NET_H

#include <stdbool.h>
#include <stdint.h>

#include "base/error.h"
#include "net/port.h"

struct virtio_net;
struct pci_bus;
struct map;
struct loop;

/* Puts a card on the bus. Owner: the bus. Wire it up in two steps:
 *	virtio_net_new(&nic, bus, m, l, mac, &e);
 *	nat_open(&be, l, virtio_net_sink(nic), fwd, nfwd, &e);
 *	virtio_net_attach(nic, &be);		(the card then owns the back end and frees it)
 * Thread: before the loop runs. */
int virtio_net_new(struct virtio_net **out, struct pci_bus *bus, struct map *m, struct loop *l,
		   const uint8_t mac[6], struct error *e);
const struct net_sink *virtio_net_sink(struct virtio_net *n);	/* lives as long as the card */
void virtio_net_attach(struct virtio_net *n, const struct net_backend *be);
void virtio_net_set_link(struct virtio_net *n, bool up);	/* loop thread */
unsigned virtio_net_slot(const struct virtio_net *n);

#endif
