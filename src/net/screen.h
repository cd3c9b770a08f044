/* What may reach the NAT: whole, consistent ARP and IPv4 frames. */
#ifndef VIXEN_NET_SCREEN_H
#define VIXEN_NET_SCREEN_H

#include <stddef.h>
#include <stdint.h>

/* Length of the frame without padding, or 0: drop it.  Fragments are dropped: reassembly in libslirp 4.7 can
 * be made to follow a wild pointer. */
size_t screen_frame(const uint8_t *frame, size_t len);

#endif
