#include "block/aio.h"

#include <errno.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>

struct aio {
	const struct aio_ops *ops;
	void *impl;
	unsigned plugged, in_flight;
};

int aio_new(struct aio **out, struct loop *l, bool no_io_uring, struct error *e)
{
	struct aio *a = calloc(1, sizeof(*a));
	int ret = -ENOSYS;

	if (!a)
		return error_errno(e, ENOMEM, NULL, "start disk I/O");
	if (!no_io_uring) {
		a->ops = &uring_ops;
		ret = uring_new(&a->impl, a, l);
	}
	if (ret < 0) {		/* not in this kernel, forbidden by sysctl or seccomp, no locked memory left */
		a->ops = &pool_ops;
		ret = pool_new(&a->impl, a, l);
	}
	if (ret < 0) {
		free(a);
		return error_errno(e, -ret, "raise the limits of processes and open files", "start disk I/O");
	}
	*out = a;
	return 0;
}

void aio_free(struct aio *a)
{
	if (!a)
		return;
	ASSERT(!a->in_flight);
	a->ops->free(a->impl);
	free(a);
}

bool aio_uses_io_uring(const struct aio *a)
{
	return a->ops == &uring_ops;
}

unsigned aio_in_flight(const struct aio *a)
{
	return a->in_flight;
}

void aio_submit(struct aio *a, struct aio_req *r)
{
	r->rest = NULL;
	a->in_flight++;
	a->ops->submit(a->impl, r);
	if (!a->plugged)
		a->ops->flush(a->impl);
}

void aio_plug(struct aio *a)
{
	a->plugged++;
}

void aio_unplug(struct aio *a)
{
	ASSERT(a->plugged);
	if (!--a->plugged)
		a->ops->flush(a->impl);
}

void aio_wait(struct aio *a)
{
	if (!a->in_flight)
		return;
	a->ops->flush(a->impl);
	a->ops->wait(a->impl);
}

static uint64_t remaining(const struct aio_req *r)
{
	uint64_t sum = 0;

	for (int i = 0; i < r->iovcnt; i++)
		sum += r->iov[i].iov_len;
	return sum;
}

/* Moves past n bytes; the caller's vector stays as it is. */
static bool advance(struct aio_req *r, uint64_t n)
{
	int i = 0;

	if (!r->rest) {
		r->rest = malloc(sizeof(*r->rest) * (size_t)r->iovcnt);
		if (!r->rest)
			return false;
		memcpy(r->rest, r->iov, sizeof(*r->rest) * (size_t)r->iovcnt);
		r->rest_cnt = r->iovcnt;
		r->iov = r->rest;
	}
	r->offset += n;
	while (i < r->iovcnt && n >= r->iov[i].iov_len)
		n -= r->iov[i++].iov_len;
	if (i)
		memmove(r->rest, r->rest + i, sizeof(*r->rest) * (size_t)(r->iovcnt - i));
	r->iovcnt -= i;
	if (r->iovcnt) {
		r->rest[0].iov_base = (uint8_t *)r->rest[0].iov_base + n;
		r->rest[0].iov_len -= n;
	}
	return true;
}

/* true: a short transfer goes on. */
static bool continues(struct aio *a, struct aio_req *r, int64_t *result)
{
	bool transfer = r->op == AIO_READV || r->op == AIO_WRITEV;

	if (*result == -EINTR || *result == -EAGAIN) {
		a->ops->submit(a->impl, r);
		return true;
	}
	if (!transfer || *result < 0 || (uint64_t)*result >= remaining(r))
		return false;
	if (*result == 0) {
		for (int i = 0; r->zero_past_end && i < r->iovcnt; i++)
			memset(r->iov[i].iov_base, 0, r->iov[i].iov_len);
		*result = r->zero_past_end ? 0 : -EIO;		/* -EIO: the image was truncated under us */
		return false;
	}
	if (!advance(r, (uint64_t)*result)) {
		*result = -ENOMEM;
		return false;
	}
	a->ops->submit(a->impl, r);
	return true;
}

void aio_complete(struct aio *a, struct aio_req *r, int64_t result)
{
	if (continues(a, r, &result)) {
		if (!a->plugged)
			a->ops->flush(a->impl);
		return;
	}
	free(r->rest);
	a->in_flight--;
	r->done(r->opaque, result < 0 ? (int)result : 0);
}
