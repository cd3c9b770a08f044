/* Connecting for another process, which cannot. */
#include <errno.h>
#include <netdb.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <sys/un.h>
#include <unistd.h>

#include "block/handover.h"
#include "block/nbd/client.h"

static int dial_to(int family, int protocol, const struct sockaddr *a, socklen_t len)
{
	const struct timeval patience = { .tv_sec = 10 };
	int fd = socket(family, SOCK_STREAM | SOCK_CLOEXEC, protocol), err;

	if (fd < 0)
		return -errno;
	setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &patience, sizeof(patience));
	if (!connect(fd, a, len))
		return fd;
	err = errno;
	close(fd);
	return -err;
}

static int dial_unix(const struct nbd_uri *u)
{
	struct sockaddr_un a = { .sun_family = AF_UNIX };

	memcpy(a.sun_path, u->socket, sizeof(a.sun_path));
	return dial_to(AF_UNIX, 0, (struct sockaddr *)&a, sizeof(a));
}

static int dial_tcp(const struct nbd_uri *u, const char **why)
{
	const struct addrinfo hints = { .ai_socktype = SOCK_STREAM, .ai_flags = AI_NUMERICSERV };
	struct addrinfo *list;
	int fd = -EHOSTUNREACH, ret = getaddrinfo(u->host, u->port, &hints, &list);

	if (ret) {
		*why = gai_strerror(ret);
		return -EHOSTUNREACH;
	}
	for (const struct addrinfo *a = list; a && fd < 0; a = a->ai_next)
		fd = dial_to(a->ai_family, a->ai_protocol, a->ai_addr, a->ai_addrlen);
	freeaddrinfo(list);
	return fd;
}

static int connection(const struct nbd_uri *u, const char *path, struct error *e)
{
	const char *why = NULL;
	char what[192];
	int fd = *u->socket ? dial_unix(u) : dial_tcp(u, &why);

	if (fd >= 0)
		return fd;
	snprintf(what, sizeof(what), "open disk '%.150s'", path);
	return error_set(e, -fd, why ? "check the host's name" : "is an NBD server running there?", what, "%s",
			 why ? why : strerror(-fd));
}

/* fd: made, or an error that was told. */
static int add(struct block_fd *out, const char *prefix, const char *path, int fd, struct error *e)
{
	int ret = handover_name(out, prefix, path, fd);

	return ret && fd >= 0 ? error_errno(e, -ret, NULL, "open disk '%s'", path) : ret;
}

int block_dial(const char *path, struct block_fd out[BLOCK_DIAL_MAX], struct error *e)
{
	struct nbd_uri *u = calloc(1, sizeof(*u));
	int ret = u ? nbd_uri_parse(u, path, e) : error_errno(e, ENOMEM, NULL, "open disk '%s'", path), n = 0;

	if (!ret && u->tls) {
		const struct nbd_tls_options o = nbd_uri_tls(u);

		ret = add(&out[n], NBD_TLS_PREFIX, path, nbd_tls_export(&o, e), e);
		n += !ret;
	}
	if (!ret)
		ret = add(&out[n], "", path, connection(u, path, e), e);
	n += !ret;
	free(u);
	if (!ret)
		return n;
	block_fds_free(out, (unsigned)n);
	return ret;
}
