/*
 * Thread-pool back end: a few workers block in the plain system calls.
 *
 *	submit ──▶ todo list ──▶ worker: preadv, pwritev, ... ──▶ finished list ──▶ eventfd ──▶ loop
 *
 * Lock: `lock` covers both lists and `stop`.
 */
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "block/aio.h"
#include "host/loop.h"

#define WORKERS 4

struct pool {
	struct aio *aio;
	pthread_mutex_t lock;
	pthread_cond_t work, done;
	struct aio_req *todo, **todo_tail;
	struct aio_req *finished;
	bool stop;
	int eventfd;
	struct loop_fd *watch;
	unsigned workers;
	pthread_t worker[WORKERS];
};

static int64_t perform(const struct aio_req *r)
{
	int cnt = r->iovcnt > IOV_MAX ? IOV_MAX : r->iovcnt;
	int64_t ret = -1;

	switch (r->op) {
	case AIO_READV: ret = preadv(r->fd, r->iov, cnt, (off_t)r->offset); break;
	case AIO_WRITEV: ret = pwritev(r->fd, r->iov, cnt, (off_t)r->offset); break;
	case AIO_SYNC: ret = fdatasync(r->fd); break;
	case AIO_WRITEBACK: ret = sync_file_range(r->fd, 0, 0, SYNC_FILE_RANGE_WRITE); break;
	case AIO_FALLOCATE: ret = fallocate(r->fd, r->mode, (off_t)r->offset, (off_t)r->len); break;
	}
	return ret < 0 ? -errno : ret;
}

static void finish(struct pool *p, struct aio_req *r)
{
	uint64_t one = 1;

	r->next = p->finished;
	p->finished = r;
	pthread_cond_signal(&p->done);
	if (!r->next && write(p->eventfd, &one, sizeof(one)) < 0)
		ASSERT(errno == EAGAIN);
}

static void *worker_main(void *opaque)
{
	struct pool *p = opaque;

	pthread_mutex_lock(&p->lock);
	for (;;) {
		struct aio_req *r = p->todo;
		int64_t result;

		if (!r) {
			if (p->stop)
				break;
			pthread_cond_wait(&p->work, &p->lock);
			continue;
		}
		p->todo = r->next;
		if (!p->todo)
			p->todo_tail = &p->todo;
		pthread_mutex_unlock(&p->lock);
		result = perform(r);
		pthread_mutex_lock(&p->lock);
		r->result = result;
		finish(p, r);
	}
	pthread_mutex_unlock(&p->lock);
	return NULL;
}

static void pool_submit(void *impl, struct aio_req *r)
{
	struct pool *p = impl;

	r->next = NULL;
	pthread_mutex_lock(&p->lock);
	*p->todo_tail = r;
	p->todo_tail = &r->next;
	pthread_cond_signal(&p->work);
	pthread_mutex_unlock(&p->lock);
}

static void pool_flush(void *impl)
{
}

static void reap(struct pool *p)
{
	struct aio_req *r, *next;

	pthread_mutex_lock(&p->lock);
	r = p->finished;
	p->finished = NULL;
	pthread_mutex_unlock(&p->lock);
	for (; r; r = next) {
		next = r->next;
		aio_complete(p->aio, r, r->result);
	}
}

static void pool_event(void *opaque, uint32_t events)
{
	struct pool *p = opaque;
	uint64_t count;

	if (read(p->eventfd, &count, sizeof(count)) < 0 && errno != EAGAIN)
		return;
	reap(p);
}

static void pool_wait(void *impl)
{
	struct pool *p = impl;

	pthread_mutex_lock(&p->lock);
	while (!p->finished)
		pthread_cond_wait(&p->done, &p->lock);
	pthread_mutex_unlock(&p->lock);
	reap(p);
}

static void pool_free(void *impl)
{
	struct pool *p = impl;

	pthread_mutex_lock(&p->lock);
	p->stop = true;
	pthread_cond_broadcast(&p->work);
	pthread_mutex_unlock(&p->lock);
	for (unsigned i = 0; i < p->workers; i++)
		pthread_join(p->worker[i], NULL);
	if (p->watch)
		loop_fd_del(p->watch);
	if (p->eventfd >= 0)
		close(p->eventfd);
	pthread_cond_destroy(&p->work);
	pthread_cond_destroy(&p->done);
	pthread_mutex_destroy(&p->lock);
	free(p);
}

/* Signals are for the threads that expect them. */
static int workers_start(struct pool *p)
{
	sigset_t all, old;
	int err = 0;

	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, &old);
	while (p->workers < WORKERS && !err) {
		err = pthread_create(&p->worker[p->workers], NULL, worker_main, p);
		if (!err)
			p->workers++;
	}
	pthread_sigmask(SIG_SETMASK, &old, NULL);
	return p->workers ? 0 : -err;
}

int pool_new(void **impl, struct aio *a, struct loop *l)
{
	struct pool *p = calloc(1, sizeof(*p));
	int ret;

	if (!p)
		return -ENOMEM;
	p->aio = a;
	p->todo_tail = &p->todo;
	pthread_mutex_init(&p->lock, NULL);
	pthread_cond_init(&p->work, NULL);
	pthread_cond_init(&p->done, NULL);
	p->eventfd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
	ret = -errno;
	if (p->eventfd < 0)
		goto fail;
	ret = -ENOMEM;
	p->watch = loop_fd_add(l, p->eventfd, EPOLLIN, pool_event, p);
	if (!p->watch)
		goto fail;
	ret = workers_start(p);
	if (ret < 0)
		goto fail;
	*impl = p;
	return 0;
fail:
	pool_free(p);
	return ret;
}

const struct aio_ops pool_ops = { pool_submit, pool_flush, pool_wait, pool_free };
