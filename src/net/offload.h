/*
 * What a network card does for the guest: checksums and TCP segmentation, in software.
 *
 * The guest wrote every byte of frame and header; nothing in them is trusted.
 */
#ifndef VIXEN_NET_OFFLOAD_H
#define VIXEN_NET_OFFLOAD_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define FRAME_MAX 65550u

enum offload_gso { OFFLOAD_NONE, OFFLOAD_TCP4, OFFLOAD_TCP6 };

struct offload {
	bool needs_csum;	/* sum [csum_start, end) into the two bytes at csum_start + csum_offset */
	uint16_t csum_start, csum_offset;
	enum offload_gso gso;
	uint16_t gso_size;	/* payload bytes of each segment */
};

typedef void offload_emit_fn(void *opaque, const void *frame, size_t len);

/* Turns what the guest sent into plain frames and emits each.  `frame` is overwritten.  false: the request
 * makes no sense, nothing (more) was emitted. */
bool offload_send(const struct offload *o, uint8_t *frame, size_t len, offload_emit_fn *emit, void *opaque);

/* Ones' complement sum of 16-bit big-endian words (RFC 1071), folded; an odd last byte is padded. */
uint16_t csum_add(uint32_t sum, const void *data, size_t len);

#endif
