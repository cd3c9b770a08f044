/* A port: one end of an Ethernet cable. virtio-net on one side, NAT or switch on the other. */
#ifndef VIXEN_NET_PORT_H
#define VIXEN_NET_PORT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/uio.h>

#include "base/error.h"

struct loop;

/* Frames are whole Ethernet frames without FCS, at most 65550 bytes. A back end implements this.
 * Thread: the loop's. send copies before it returns. */
struct net_ops {
	void (*send)(void *opaque, const struct iovec *iov, int iovcnt);	/* guest -> world */
	void (*poke)(void *opaque);	/* the guest has receive buffers again */
	void (*free)(void *opaque);
};
/* The guest side gives this to the back end. */
struct net_sink {
	bool (*can_receive)(void *opaque);
	void (*receive)(void *opaque, const void *frame, size_t len);
	void *opaque;
};
struct net_backend { const struct net_ops *ops; void *opaque; };

/* User-mode NAT by libslirp: 10.0.2.0/24, gateway 10.0.2.2, DNS 10.0.2.3, DHCP from 10.0.2.15. */
struct net_forward { bool udp; char host_addr[46]; uint16_t host_port, guest_port; };
int nat_open(struct net_backend *out, struct loop *l, const struct net_sink *sink,
	     const struct net_forward *fwd, int nfwd, struct error *e);

#endif
