/* Taking the host's space for a new image at once. */
#include <errno.h>
#include <stdlib.h>

#include "block/node.h"

#define ZEROES_BYTES (1u << 20)

/* Zeroes that take space, not a hole. */
static int write_out(struct node *file, uint64_t at, uint64_t len)
{
	uint8_t *zeroes = calloc(1, ZEROES_BYTES);
	int ret = zeroes ? 0 : -ENOMEM;

	for (uint64_t part; len && !ret; at += part, len -= part) {
		part = len < ZEROES_BYTES ? len : ZEROES_BYTES;
		ret = node_co_write(file, at, zeroes, part);
	}
	free(zeroes);
	return ret;
}

int node_co_preallocate(struct node *file, uint64_t at, uint64_t len, enum block_preallocate how)
{
	int ret = at + len > file->size_bytes && file->limits.grows ? node_co_resize(file, at + len, 0, NULL) : 0;

	if (ret || how == BLOCK_PREALLOCATE_METADATA || !len)
		return ret;
	return how == BLOCK_PREALLOCATE_FALLOC ? node_co_write_zeroes(file, at, len, NODE_ZERO_NO_FALLBACK)
					       : write_out(file, at, len);
}
