/* Clients: accepting, counting, ending. */
#include "block/nbd/server.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/log.h"
#include "block/nbd/proto.h"
#include "block/nbd/server_private.h"

#define CLIENTS_MAX 32u
#define HANDSHAKE_NS 30000000000ull
#define RETRY_NS 500000000ull

uint16_t nbd_server_flags(const struct nbd_client *c)
{
	uint16_t flags = NBD_HAS_FLAGS | NBD_SEND_FLUSH | NBD_SEND_FUA | NBD_SEND_CACHE | NBD_CAN_MULTI_CONN;

	if (c->structured)
		flags |= NBD_SEND_DF;
	if (c->s->readonly)
		return flags | NBD_READ_ONLY;
	return flags | NBD_SEND_TRIM | NBD_SEND_WRITE_ZEROES | NBD_SEND_FAST_ZERO;
}

/* --- clients --- */

static void client_end(struct nbd_client *c)
{
	struct nbd_server *s = c->s;

	nbd_sock_fini(&c->sock);
	*c->self = c->next;
	if (c->next)
		c->next->self = c->self;
	free(c);
	if (!--s->nclients)
		co_queue_wake_all(s->co, &s->gone);
}

static void client_main(void *opaque)
{
	struct nbd_client *c = opaque;
	struct nbd_server *s = c->s;

	nbd_sock_deadline(&c->sock, HANDSHAKE_NS);
	if (!nbd_server_handshake(c)) {
		nbd_sock_deadline(&c->sock, 0);
		s->nchosen++;
		nbd_server_transmit(c);
		if (!--s->nchosen && s->o.left && !s->stopping)
			s->o.left(s->o.opaque);
	}
	client_end(c);
}

int nbd_server_add(struct nbd_server *s, int fd)
{
	struct nbd_client *c = calloc(1, sizeof(*c));
	int ret;

	if (!c) {
		close(fd);
		return -ENOMEM;
	}
	c->s = s;
	c->next = s->clients;
	c->self = &s->clients;
	if (c->next)
		c->next->self = &c->next;
	s->clients = c;
	s->nclients++;
	ret = nbd_sock_init(&c->sock, s->loop, fd);
	if (!ret)
		ret = co_start(s->co, client_main, c);
	if (ret)
		client_end(c);
	return ret;
}

/* --- listening --- */

/* Out of descriptors: the listener would report the same client again at once. */
static void accept_later(struct nbd_server *s)
{
	log_warn("NBD: cannot take a client: %s", strerror(errno));
	loop_fd_set_events(s->listen, 0);
	loop_timer_set(s->retry, clock_now_ns() + RETRY_NS);
}

static void on_retry(void *opaque)
{
	struct nbd_server *s = opaque;

	if (s->listen)
		loop_fd_set_events(s->listen, EPOLLIN);
}

static void on_client(void *opaque, uint32_t events)
{
	struct nbd_server *s = opaque;
	int fd = accept4(s->listen_fd, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);

	(void)events;
	if (fd >= 0 && s->nclients >= s->o.clients_max)
		close(fd);
	else if (fd >= 0)
		nbd_server_add(s, fd);
	else if (errno == EMFILE || errno == ENFILE || errno == ENOMEM || errno == ENOBUFS)
		accept_later(s);
}

int nbd_server_listen(struct nbd_server *s, int fd, struct error *e)
{
	ASSERT(!s->listen);
	if (fcntl(fd, F_SETFL, O_NONBLOCK) < 0)
		return error_errno(e, errno, NULL, "listen for NBD clients");
	s->listen_fd = fd;
	s->listen = loop_fd_add(s->loop, fd, EPOLLIN, on_client, s);
	return s->listen ? 0 : error_errno(e, ENOMEM, NULL, "listen for NBD clients");
}

/* --- life --- */

static bool bitmap_there(struct block *b, const char *name)
{
	struct block_bitmap *list = NULL;
	unsigned n = 0;
	bool found = false;

	if (block_bitmap_list(b, &list, &n, NULL))
		return false;
	for (unsigned i = 0; i < n; i++)
		found |= !strcmp(list[i].name, name);
	free(list);
	return found;
}

static int bitmaps_take(struct nbd_server *s, const struct nbd_server_options *o, struct error *e)
{
	if (o->nbitmaps > NBD_SERVER_BITMAPS)
		return error_set(e, E2BIG, "leave some out", "export dirty bitmaps", "%u are too many", o->nbitmaps);
	for (unsigned i = 0; i < o->nbitmaps; i++) {
		if (!bitmap_there(o->disk, o->bitmaps[i]))
			return error_set(e, ENOENT, "see 'vixen image bitmap list'", "export a dirty bitmap",
					 "the disk has no '%.100s'", o->bitmaps[i]);
		s->bitmap[i] = strdup(o->bitmaps[i]);
		if (!s->bitmap[i])
			return error_errno(e, ENOMEM, NULL, "start the NBD server");
	}
	return 0;
}

static int names_take(struct nbd_server *s, const struct nbd_server_options *o, struct error *e)
{
	s->name = strdup(o->name ? o->name : "");
	s->description = strdup(o->description ? o->description : "");
	if (!s->name || !s->description)
		return error_errno(e, ENOMEM, NULL, "start the NBD server");
	if (strlen(s->name) > NBD_NAME_MAX || strlen(s->description) > NBD_NAME_MAX)
		return error_set(e, EINVAL, "shorten it", "start the NBD server", "a name is longer than %u bytes",
				 NBD_NAME_MAX);
	return bitmaps_take(s, o, e);
}

int nbd_server_new(struct nbd_server **out, struct loop *l, const struct nbd_server_options *o, struct error *e)
{
	struct nbd_server *s = calloc(1, sizeof(*s));
	int ret;

	if (!s)
		return error_errno(e, ENOMEM, NULL, "start the NBD server");
	s->loop = l;
	s->o = *o;
	s->readonly = o->readonly || block_readonly(o->disk);
	s->co = loop_coroutines(l);
	s->retry = loop_timer_new(l, on_retry, s);
	if (!s->o.clients_max)
		s->o.clients_max = CLIENTS_MAX;
	ret = s->co && s->retry ? names_take(s, o, e) : error_errno(e, ENOMEM, NULL, "start the NBD server");
	if (ret)
		nbd_server_free(s);
	else
		*out = s;
	return ret;
}

static int wait_gone(void *opaque)
{
	struct nbd_server *s = opaque;

	while (s->nclients)
		co_queue_wait(s->co, &s->gone);
	return 0;
}

void nbd_server_free(struct nbd_server *s)
{
	if (!s)
		return;
	s->stopping = true;
	loop_fd_del(s->listen);
	s->listen = NULL;
	for (struct nbd_client *c = s->clients; c; c = c->next) {
		c->dead = true;
		nbd_sock_shutdown(&c->sock);
	}
	if (s->nclients)
		co_run(s->loop, wait_gone, s);
	ASSERT(!s->nclients);
	loop_timer_free(s->retry);
	for (unsigned i = 0; i < NBD_SERVER_BITMAPS; i++)
		free(s->bitmap[i]);
	free(s->name);
	free(s->description);
	free(s);
}
