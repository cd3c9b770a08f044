/* Vectors of memory. */
#include <string.h>

#include "block/node.h"

uint64_t iov_bytes(const struct iovec *iov, int n)
{
	uint64_t sum = 0;

	while (n--)
		sum += iov++->iov_len;
	return sum;
}

int iov_cut(struct iovec *dst, const struct iovec *src, int n, uint64_t skip, uint64_t len)
{
	int out = 0;

	for (int i = 0; i < n && len; i++) {
		uint64_t part = src[i].iov_len;

		if (skip >= part) {
			skip -= part;
			continue;
		}
		part -= skip;
		if (part > len)
			part = len;
		dst[out++] = (struct iovec){ (uint8_t *)src[i].iov_base + skip, part };
		len -= part;
		skip = 0;
	}
	return out;
}

/* Finds the piece at skip of at most len bytes; false past the end. */
static bool piece_at(const struct iovec **iov, int *n, uint64_t *skip, uint64_t len, struct iovec *out)
{
	while (*n && *skip >= (*iov)->iov_len) {
		*skip -= (*iov)->iov_len;
		(*iov)++;
		(*n)--;
	}
	if (!*n || !len)
		return false;
	out->iov_base = (uint8_t *)(*iov)->iov_base + *skip;
	out->iov_len = (*iov)->iov_len - *skip;
	if (out->iov_len > len)
		out->iov_len = len;
	*skip += out->iov_len;
	return true;
}

void iov_zero(const struct iovec *iov, int n, uint64_t skip, uint64_t len)
{
	for (struct iovec p; piece_at(&iov, &n, &skip, len, &p); len -= p.iov_len)
		memset(p.iov_base, 0, p.iov_len);
}

void iov_copy_in(const struct iovec *iov, int n, uint64_t skip, const void *src, uint64_t len)
{
	const uint8_t *from = src;

	for (struct iovec p; piece_at(&iov, &n, &skip, len, &p); len -= p.iov_len, from += p.iov_len)
		memcpy(p.iov_base, from, p.iov_len);
}

void iov_copy_out(const struct iovec *iov, int n, uint64_t skip, void *dst, uint64_t len)
{
	uint8_t *to = dst;

	for (struct iovec p; piece_at(&iov, &n, &skip, len, &p); len -= p.iov_len, to += p.iov_len)
		memcpy(to, p.iov_base, p.iov_len);
}
