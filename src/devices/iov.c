#include "devices/iov.h"

#include <stdbool.h>
#include <string.h>

static size_t iov_copy(const struct iovec *iov, unsigned n, size_t offset, uint8_t *buf, size_t len, bool put)
{
	size_t done = 0;

	for (unsigned i = 0; i < n && done < len; i++) {
		size_t part = iov[i].iov_len;

		if (offset >= part) {
			offset -= part;
			continue;
		}
		part -= offset;
		if (part > len - done)
			part = len - done;
		if (put)
			memcpy((uint8_t *)iov[i].iov_base + offset, buf + done, part);
		else
			memcpy(buf + done, (const uint8_t *)iov[i].iov_base + offset, part);
		done += part;
		offset = 0;
	}
	return done;
}

size_t iov_get(const struct iovec *iov, unsigned n, size_t offset, void *buf, size_t len)
{
	return iov_copy(iov, n, offset, buf, len, false);
}

size_t iov_put(const struct iovec *iov, unsigned n, size_t offset, const void *buf, size_t len)
{
	return iov_copy(iov, n, offset, (uint8_t *)buf, len, true);
}

unsigned iov_drop(struct iovec *iov, unsigned n, uint64_t bytes)
{
	unsigned i = 0;

	while (i < n && bytes >= iov[i].iov_len)
		bytes -= iov[i++].iov_len;
	memmove(iov, iov + i, sizeof(*iov) * (n - i));
	n -= i;
	if (n) {
		iov[0].iov_base = (uint8_t *)iov[0].iov_base + bytes;
		iov[0].iov_len -= bytes;
	}
	return n;
}

unsigned iov_keep(struct iovec *iov, unsigned n, uint64_t bytes)
{
	unsigned i = 0;

	for (; i < n && bytes; i++) {
		if (iov[i].iov_len > bytes)
			iov[i].iov_len = bytes;
		bytes -= iov[i].iov_len;
	}
	return i;
}
