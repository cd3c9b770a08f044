/* nbd://HOST[:PORT][/EXPORT] and nbd+unix:///[EXPORT]?socket=PATH, as "NBD URI" (doc/uri.md of the nbd project). */
#include <ctype.h>
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "block/nbd/client.h"

static int bad(const char *text, const char *why, struct error *e)
{
	char what[192];

	snprintf(what, sizeof(what), "open disk '%.150s'", text);
	return error_set(e, EINVAL, "use nbd://HOST[:PORT]/EXPORT or nbd+unix:///EXPORT?socket=PATH", what, "%s", why);
}

static int hex(char c)
{
	return isdigit((unsigned char)c) ? c - '0' : isxdigit((unsigned char)c) ? (c | 0x20) - 'a' + 10 : -1;
}

/* [from, end) with %XX decoded; false: malformed, a NUL inside, or too long. */
static bool decode(char *out, size_t size, const char *from, const char *end)
{
	size_t n = 0;

	for (; from < end; from++) {
		char c = *from;

		if (c == '%') {
			if (end - from < 3 || hex(from[1]) < 0 || hex(from[2]) < 0)
				return false;
			c = (char)(hex(from[1]) << 4 | hex(from[2]));
			from += 2;
		}
		if (!c || n + 1 >= size)
			return false;
		out[n++] = c;
	}
	out[n] = 0;
	return true;
}

/* HOST, HOST:PORT, [ADDRESS]:PORT */
static bool authority(struct nbd_uri *u, const char *from, const char *end)
{
	const char *host_end = end, *port = NULL;

	if (from < end && *from == '[') {
		host_end = memchr(from, ']', (size_t)(end - from));
		if (!host_end)
			return false;
		port = host_end + 1 < end ? host_end + 1 : NULL;
		from++;
	} else {
		port = memchr(from, ':', (size_t)(end - from));
		host_end = port ? port : end;
	}
	if (port && (*port != ':' || !decode(u->port, sizeof(u->port), port + 1, end) || !*u->port))
		return false;
	if (!port)
		strcpy(u->port, NBD_DEFAULT_PORT);
	return decode(u->host, sizeof(u->host), from, host_end) && *u->host &&
	       strspn(u->port, "0123456789") == strlen(u->port);
}

static bool socket_query(struct nbd_uri *u, const char *query)
{
	const char *end;

	if (!query || strncmp(query, "?socket=", 8))
		return false;
	query += 8;
	end = query + strcspn(query, "&");
	return !*end && decode(u->socket, sizeof(u->socket), query, end) && *u->socket;
}

int nbd_uri_parse(struct nbd_uri *u, const char *text, struct error *e)
{
	bool local = !strncmp(text, "nbd+unix:", 9);
	const char *at = text + (local ? 9 : 4), *path, *query;

	memset(u, 0, sizeof(*u));
	if (strncmp(at, "//", 2))
		return bad(text, "it is not the address of an NBD server", e);
	at += 2;
	path = at + strcspn(at, "/?");
	query = strchr(path, '?');
	if (!decode(u->name, sizeof(u->name), *path == '/' ? path + 1 : path, query ? query : path + strlen(path)))
		return bad(text, "the export's name is malformed", e);
	if (local && (path != at || !socket_query(u, query)))
		return bad(text, "the socket's path is missing or malformed", e);
	if (!local && (query || !authority(u, at, path)))
		return bad(text, "the host or the port is malformed", e);
	return 0;
}
