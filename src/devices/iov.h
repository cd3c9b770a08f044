/* Vectors of guest memory, as devices get them. */
#ifndef VIXEN_DEVICES_IOV_H
#define VIXEN_DEVICES_IOV_H

#include <stddef.h>
#include <stdint.h>
#include <sys/uio.h>

/* Bytes to and from vectors, starting at a byte offset; return how many were copied. */
size_t iov_get(const struct iovec *iov, unsigned n, size_t offset, void *buf, size_t len);
size_t iov_put(const struct iovec *iov, unsigned n, size_t offset, const void *buf, size_t len);
/* Cuts bytes off the front, or all behind the first `bytes`; return the count of segments left. */
unsigned iov_drop(struct iovec *iov, unsigned n, uint64_t bytes);
unsigned iov_keep(struct iovec *iov, unsigned n, uint64_t bytes);

#endif
