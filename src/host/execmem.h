/*
 * Executable memory, W^X: shared anonymous memory mapped twice, writable here, executable there.
 * Nothing is ever writable and executable at the same address.
 */
#ifndef VIXEN_HOST_EXECMEM_H
#define VIXEN_HOST_EXECMEM_H

#include <stddef.h>
#include <stdint.h>

#include "base/error.h"

struct execmem {
	uint8_t *rw, *rx;	/* the same bytes */
	size_t size_bytes;
};
int execmem_init(struct execmem *m, size_t size_bytes, struct error *e);
void execmem_fini(struct execmem *m);

#endif
