/* vixen image serve: exports a disk image to NBD clients until it is told to end. */
#include <arpa/inet.h>
#include <errno.h>
#include <netdb.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include "block/block.h"
#include "block/nbd/server.h"
#include "block/nbd/tls.h"
#include "cli/image_serve.h"
#include "cli/image_tool.h"
#include "cli/options.h"
#include "cli/passphrase.h"
#include "cli/verb.h"
#include "host/loop.h"

#define BACKLOG 64

struct serve {
	const char *file, *format, *name, *description, *socket, *listen;
	struct key_list keys;
	const char *bitmap[NBD_SERVER_BITMAPS];
	unsigned nbitmaps;
	struct nbd_tls_options tls;
	bool readonly, once;
	struct loop *loop;
	struct block *disk;
	struct nbd_tls *tls_keys;	/* NULL: without TLS */
	struct nbd_server *server;
	int listener, signals;
	struct loop_fd *signal_watch;
	char where[512];		/* the URI */
};

static bool set_file(void *s, const char *v)
{
	if (((struct serve *)s)->file)
		return usage_error("image serve", "more than one image given");
	((struct serve *)s)->file = v;
	return true;
}
static bool set_disk_format(void *s, const char *v) { ((struct serve *)s)->format = v; return true; }
static bool set_key(void *s, const char *v) { return key_list_add(&((struct serve *)s)->keys, "image serve", v); }
static bool set_description(void *s, const char *v) { ((struct serve *)s)->description = v; return true; }
static bool set_export(void *s, const char *v)
{
	((struct serve *)s)->name = v;
	return strlen(v) < 128 || usage_error("image serve", "--export takes at most 127 bytes");
}
static bool set_bitmap(void *o, const char *v)
{
	struct serve *s = o;

	if (s->nbitmaps == NBD_SERVER_BITMAPS)
		return usage_error("image serve", "--bitmap is taken at most %u times", NBD_SERVER_BITMAPS);
	s->bitmap[s->nbitmaps++] = v;
	return true;
}
static bool set_socket(void *s, const char *v)
{
	((struct serve *)s)->socket = v;
	return (*v && strlen(v) < sizeof(((struct sockaddr_un *)0)->sun_path)) ||
	       usage_error("image serve", "--socket '%s' is too long a path for a socket", v);
}
static bool set_listen(void *s, const char *v) { ((struct serve *)s)->listen = v; return true; }
static bool set_readonly(void *s, const char *v) { (void)v; return ((struct serve *)s)->readonly = true; }
static bool set_certificates(void *s, const char *v) { ((struct serve *)s)->tls.certificates = v; return true; }
static bool set_psk(void *s, const char *v) { ((struct serve *)s)->tls.psk_file = v; return true; }
static bool set_verify(void *s, const char *v) { (void)v; return ((struct serve *)s)->tls.verify_clients = true; }
static bool set_once(void *s, const char *v) { (void)v; return ((struct serve *)s)->once = true; }

static const struct option_row serve_options[] = {
	{ "disk-format", "FORMAT", "of the file, where its name does not say", set_disk_format },
	{ "key-file", "FILE", "holds the passphrase of an encrypted disk: fd:N, - for stdin", set_key },
	{ "export", "NAME", "what clients ask for (default: the export without a name)", set_export },
	{ "description", "TEXT", "what the export is, for clients that ask", set_description },
	{ "bitmap", "NAME", "a dirty bitmap of the image that clients may ask; repeatable", set_bitmap },
	{ "read-only", NULL, "refuse writes; others may read the image meanwhile", set_readonly },
	{ "socket", "PATH", "listen on a Unix socket, which only this user can open", set_socket },
	{ "listen", "ADDRESS:PORT", "listen on TCP (default 127.0.0.1:10809); port 0: any", set_listen },
	{ "tls-certificates", "DIR", "TLS only, with server-cert.pem and server-key.pem of that directory", set_certificates },
	{ "tls-verify-clients", NULL, "only clients with a certificate of the directory's ca-cert.pem", set_verify },
	{ "tls-psk-file", "FILE", "TLS only, with keys both sides have: lines of USER:HEX", set_psk },
	{ "once", NULL, "end when the last client has left", set_once },
	{ 0 },
};

static const struct command serve_command = {
	.verb = "image serve", .usage = "image serve FILE [OPTIONS]",
	.about = "Exports a disk image by the NBD protocol, until Ctrl-C or SIGTERM. Other commands take the address that\n"
		 "it prints in the place of an image.\n"
		 "Without TLS, NBD has neither passwords nor encryption: who reaches the port owns the disk. With\n"
		 "--tls-verify-clients or --tls-psk-file, only who has a certificate or a key does.",
	.options = serve_options, .argument = set_file,
};

/* --- the address --- */

/* A socket that nobody listens on any more is left from a server that was killed. */
static bool socket_dead(const struct sockaddr_un *a)
{
	struct stat st;
	int fd, ret;

	if (lstat(a->sun_path, &st) || !S_ISSOCK(st.st_mode))
		return false;
	fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	if (fd < 0)
		return false;
	ret = connect(fd, (const struct sockaddr *)a, sizeof(*a)) ? errno : 0;
	close(fd);
	return ret == ECONNREFUSED;
}

static int listen_unix(struct serve *s, struct error *e)
{
	struct sockaddr_un a = { .sun_family = AF_UNIX };
	mode_t mask;
	int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0), ret, err;

	if (fd < 0)
		return error_errno(e, errno, NULL, "listen on '%s'", s->socket);
	strcpy(a.sun_path, s->socket);
	if (socket_dead(&a))
		unlink(a.sun_path);
	mask = umask(0177);
	ret = bind(fd, (struct sockaddr *)&a, sizeof(a)) || listen(fd, BACKLOG);
	err = errno;
	umask(mask);
	if (ret) {
		close(fd);
		return error_errno(e, err, "give another path, or remove the file", "listen on '%s'", s->socket);
	}
	s->listener = fd;
	return snprintf(s->where, sizeof(s->where), "nbd%s+unix:///%s?socket=%s", s->tls_keys ? "s" : "",
			s->name ? s->name : "", s->socket) < 0;
}

/* "127.0.0.1:10809", "[::1]:10809", ":10809" for all addresses is not taken. */
static int split_address(const char *text, char *host, char *port, struct error *e)
{
	const char *colon = strrchr(text, ':');
	size_t len = colon ? (size_t)(colon - text) : 0;

	if (len >= 2 && *text == '[' && text[len - 1] == ']') {
		text++;
		len -= 2;
	}
	if (!len || len > 200 || !colon[1] || strlen(colon + 1) > 5)
		return error_set(e, EINVAL, "give for example --listen 127.0.0.1:10809", "listen for NBD clients",
				 "'%.100s' is not ADDRESS:PORT", text);
	memcpy(host, text, len);
	host[len] = 0;
	strcpy(port, colon + 1);
	return 0;
}

static int listen_on(struct addrinfo *a, const char *text, int *out, struct error *e)
{
	int fd = socket(a->ai_family, a->ai_socktype | SOCK_CLOEXEC, a->ai_protocol), on = 1, err;

	if (fd < 0)
		return error_errno(e, errno, NULL, "listen on %s", text);
	setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on));
	if (bind(fd, a->ai_addr, a->ai_addrlen) || listen(fd, BACKLOG)) {
		err = errno;
		close(fd);
		return error_errno(e, err, "give another address with --listen, or --socket PATH", "listen on %s", text);
	}
	*out = fd;
	return 0;
}

static void name_tcp(struct serve *s)
{
	struct sockaddr_storage a;
	socklen_t len = sizeof(a);
	char host[64] = "?", port[8] = "?";

	if (!getsockname(s->listener, (struct sockaddr *)&a, &len))
		getnameinfo((struct sockaddr *)&a, len, host, sizeof(host), port, sizeof(port),
			    NI_NUMERICHOST | NI_NUMERICSERV);
	snprintf(s->where, sizeof(s->where), a.ss_family == AF_INET6 ? "nbd%s://[%s]:%s/%s" : "nbd%s://%s:%s/%s",
		 s->tls_keys ? "s" : "", host, port, s->name ? s->name : "");
}

static int listen_tcp(struct serve *s, struct error *e)
{
	const struct addrinfo hints = { .ai_socktype = SOCK_STREAM, .ai_flags = AI_NUMERICSERV | AI_PASSIVE };
	const char *text = s->listen ? s->listen : "127.0.0.1:10809";
	char host[256], port[8];
	struct addrinfo *a;
	int ret = split_address(text, host, port, e);

	if (ret)
		return ret;
	ret = getaddrinfo(host, port, &hints, &a);
	if (ret)
		return error_set(e, EINVAL, "give an address of this host", "listen for NBD clients", "'%.100s': %s", text,
				 gai_strerror(ret));
	ret = listen_on(a, text, &s->listener, e);
	freeaddrinfo(a);
	if (!ret)
		name_tcp(s);
	return ret;
}

/* --- serving --- */

static void on_signal(void *opaque, uint32_t events)
{
	struct serve *s = opaque;
	struct signalfd_siginfo info;

	(void)events;
	if (read(s->signals, &info, sizeof(info)) == sizeof(info))
		loop_stop(s->loop);
}

static void on_left(void *opaque)
{
	struct serve *s = opaque;

	if (s->once)
		loop_stop(s->loop);
}

static int signals_open(struct serve *s, struct error *e)
{
	s->signals = stop_signals_open();
	if (s->signals < 0)
		return error_errno(e, -s->signals, "raise the limit of open files (ulimit -n)", "wait for signals");
	s->signal_watch = loop_fd_add(s->loop, s->signals, EPOLLIN, on_signal, s);
	return s->signal_watch ? 0 : error_errno(e, ENOMEM, NULL, "wait for signals");
}

static int keys_open(struct serve *s, struct error *e)
{
	s->tls.server = true;
	return s->tls.certificates || s->tls.psk_file ? nbd_tls_new(&s->tls_keys, &s->tls, e) : 0;
}

static int disk_open(struct serve *s, struct error *e)
{
	struct block_options o = { .format = s->format, .flags = s->readonly ? BLOCK_READONLY : 0 };

	block_secrets(&o, s->keys.path, s->keys.n);
	return block_open_with(&s->disk, s->loop, s->file, &o, e);
}

static int serve_start(struct serve *s, struct error *e)
{
	const struct nbd_server_options o = { .name = s->name, .description = s->description, .readonly = s->readonly,
					      .bitmaps = s->bitmap, .nbitmaps = s->nbitmaps, .left = on_left, .opaque = s };
	struct nbd_server_options with_disk = o;
	int ret;

	s->loop = loop_new();
	if (!s->loop)
		return error_errno(e, errno, "raise the limit of open files (ulimit -n)", "start the event loop");
	ret = signals_open(s, e);
	if (!ret)
		ret = keys_open(s, e);
	if (!ret)
		ret = disk_open(s, e);
	if (ret)
		return ret;
	with_disk.disk = s->disk;
	with_disk.tls = s->tls_keys;
	ret = nbd_server_new(&s->server, s->loop, &with_disk, e);
	if (!ret)
		ret = s->socket ? listen_unix(s, e) : listen_tcp(s, e);
	return ret ? ret : nbd_server_listen(s->server, s->listener, e);
}

static int flush_main(void *disk)
{
	return block_co_flush(disk);
}

/* The disk is flushed also when serving failed: clients may have been told that writes are done. */
static int serve_end(struct serve *s, struct error *e)
{
	int ret = 0, close_ret;

	nbd_server_free(s->server);
	nbd_tls_free(s->tls_keys);
	if (s->listener >= 0 && s->socket)
		unlink(s->socket);
	if (s->disk) {
		ret = block_run(s->loop, flush_main, s->disk);
		close_ret = block_close(s->disk);
		ret = ret ? ret : close_ret;
	}
	loop_fd_del(s->signal_watch);
	loop_free(s->loop);
	if (s->listener >= 0)
		close(s->listener);
	if (s->signals >= 0)
		close(s->signals);
	return ret ? error_errno(e, -ret, "check the host's disk", "write back '%s'", s->file) : 0;
}

static int serve(struct serve *s, struct error *e)
{
	int ret = serve_start(s, e);

	if (!ret) {
		printf("serving %s at %s\n", s->file, s->where);
		fflush(stdout);
		ret = loop_run(s->loop);
		if (ret)
			error_errno(e, -ret, NULL, "serve '%s'", s->file);
	}
	if (ret)
		error_print(e);
	return ret;
}

static bool serve_good(const struct serve *s)
{
	if (!s->file)
		return usage_error("image serve", "no image given");
	if (s->socket && s->listen)
		return usage_error("image serve", "--socket and --listen exclude each other");
	if (s->tls.certificates && s->tls.psk_file)
		return usage_error("image serve", "--tls-certificates and --tls-psk-file exclude each other");
	return !s->tls.verify_clients || s->tls.certificates ||
	       usage_error("image serve", "--tls-verify-clients needs --tls-certificates");
}

int image_serve(int argc, char **argv)
{
	struct serve s = { .listener = -1, .signals = -1 };
	struct error e = { 0 };
	int ret = options_parse(&serve_command, &s, argc, argv), end;

	if (ret >= 0)
		return ret;
	if (!serve_good(&s))
		return EXIT_USAGE;
	ret = serve(&s, &e);
	end = serve_end(&s, &e);
	if (end)
		error_print(&e);
	return ret || end ? EXIT_FAILED : EXIT_OK;
}
