/*
 * io_uring back end.  The kernel announces completions on an eventfd that the loop watches.
 */
#include <errno.h>
#include <fcntl.h>
#include <liburing.h>
#include <limits.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "block/aio.h"
#include "host/loop.h"

#define RING_ENTRIES 256

struct uring {
	struct aio *aio;
	struct io_uring ring;
	int eventfd;
	struct loop_fd *watch;
	struct aio_req *waiting, **waiting_tail;	/* no entry was free */
	bool busy;			/* flush is running: completions that submit do not enter it again */
	bool dead;			/* freed by one of these completions: flush does it at its end */
};

static void fill(struct io_uring_sqe *sqe, struct aio_req *r)
{
	unsigned cnt = r->iovcnt > IOV_MAX ? IOV_MAX : (unsigned)r->iovcnt;

	switch (r->op) {
	case AIO_READV: io_uring_prep_readv(sqe, r->fd, r->iov, cnt, r->offset); break;
	case AIO_WRITEV: io_uring_prep_writev(sqe, r->fd, r->iov, cnt, r->offset); break;
	case AIO_SYNC: io_uring_prep_fsync(sqe, r->fd, IORING_FSYNC_DATASYNC); break;
	case AIO_WRITEBACK: io_uring_prep_sync_file_range(sqe, r->fd, 0, 0, SYNC_FILE_RANGE_WRITE); break;
	case AIO_FALLOCATE:
		io_uring_prep_fallocate(sqe, r->fd, r->mode, (off_t)r->offset, (off_t)r->len);
		break;
	}
	io_uring_sqe_set_data(sqe, r);
}

static bool enter(struct uring *u, struct aio_req *r)
{
	struct io_uring_sqe *sqe = io_uring_get_sqe(&u->ring);

	if (!sqe)
		return false;
	fill(sqe, r);
	return true;
}

static void uring_submit(void *impl, struct aio_req *r)
{
	struct uring *u = impl;

	if (!u->waiting && enter(u, r))
		return;
	r->next = NULL;
	*u->waiting_tail = r;
	u->waiting_tail = &r->next;
}

static unsigned reap(struct uring *u)
{
	struct io_uring_cqe *cqe;
	unsigned n = 0;

	while (!u->dead && io_uring_peek_cqe(&u->ring, &cqe) == 0) {
		struct aio_req *r = io_uring_cqe_get_data(cqe);
		int result = cqe->res;

		io_uring_cqe_seen(&u->ring, cqe);
		aio_complete(u->aio, r, result);
		n++;
	}
	return n;
}

static void refill(struct uring *u)
{
	while (u->waiting && enter(u, u->waiting)) {
		u->waiting = u->waiting->next;
		if (!u->waiting)
			u->waiting_tail = &u->waiting;
	}
}

static void uring_free(void *impl);

/* Submits, and takes what the page cache answered at once; the rest is announced by the eventfd. */
static void uring_flush(void *impl)
{
	struct uring *u = impl;

	if (u->busy)
		return;
	u->busy = true;
	do {
		refill(u);
		if (io_uring_sq_ready(&u->ring))
			io_uring_submit(&u->ring);
	} while ((reap(u) && !u->dead) || (u->waiting && io_uring_sq_space_left(&u->ring)));
	u->busy = false;
	if (u->dead)
		uring_free(u);
}

static void uring_event(void *opaque, uint32_t events)
{
	struct uring *u = opaque;
	uint64_t count;

	if (read(u->eventfd, &count, sizeof(count)) < 0 && errno != EAGAIN)
		return;
	uring_flush(u);
}

static void uring_wait(void *impl)
{
	struct uring *u = impl;
	int ret;

	if (!aio_in_flight(u->aio))
		return;
	ret = io_uring_submit_and_wait(&u->ring, 1);	/* submits, too, what the kernel had no room for before */
	if (ret >= 0 || ret == -EBUSY)
		uring_flush(u);
}

static void uring_free(void *impl)
{
	struct uring *u = impl;

	u->dead = u->busy;
	if (u->dead)
		return;
	loop_fd_del(u->watch);
	io_uring_queue_exit(&u->ring);
	close(u->eventfd);
	free(u);
}

static bool ops_supported(struct io_uring *ring)
{
	struct io_uring_probe *p = io_uring_get_probe_ring(ring);
	bool good = p && io_uring_opcode_supported(p, IORING_OP_READV) &&
		    io_uring_opcode_supported(p, IORING_OP_WRITEV) &&
		    io_uring_opcode_supported(p, IORING_OP_FSYNC) &&
		    io_uring_opcode_supported(p, IORING_OP_FALLOCATE) &&
		    io_uring_opcode_supported(p, IORING_OP_SYNC_FILE_RANGE) &&
		    (ring->features & IORING_FEAT_NODROP);

	io_uring_free_probe(p);
	return good;
}

int uring_new(void **impl, struct aio *a, struct loop *l)
{
	struct uring *u = calloc(1, sizeof(*u));
	int ret;

	if (!u)
		return -ENOMEM;
	u->aio = a;
	u->waiting_tail = &u->waiting;
	ret = io_uring_queue_init(RING_ENTRIES, &u->ring, IORING_SETUP_CLAMP);
	if (ret < 0)
		goto fail_ring;
	ret = -ENOSYS;
	if (!ops_supported(&u->ring))
		goto fail_event;
	u->eventfd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
	ret = -errno;
	if (u->eventfd < 0)
		goto fail_event;
	ret = io_uring_register_eventfd(&u->ring, u->eventfd);
	if (ret < 0)
		goto fail_watch;
	ret = -ENOMEM;
	u->watch = loop_fd_add(l, u->eventfd, EPOLLIN, uring_event, u);
	if (!u->watch)
		goto fail_watch;
	*impl = u;
	return 0;
fail_watch:
	close(u->eventfd);
fail_event:
	io_uring_queue_exit(&u->ring);
fail_ring:
	free(u);
	return ret;
}

const struct aio_ops uring_ops = { uring_submit, uring_flush, uring_wait, uring_free };
