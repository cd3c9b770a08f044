/*
 * nbd://[USER@]HOST[:PORT][/EXPORT] and nbd+unix:///[EXPORT]?socket=PATH, as "NBD URI" (doc/uri.md of the nbd project);
 * nbds:// and nbds+unix:// with TLS, for which &tls-... may follow as libnbd has them.
 */
#include <ctype.h>
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "block/nbd/client.h"

static int bad(const char *text, const char *why, struct error *e)
{
	char what[192];

	snprintf(what, sizeof(what), "open disk '%.150s'", text);
	return error_set(e, EINVAL, "use nbd[s]://HOST[:PORT]/EXPORT or nbd[s]+unix:///EXPORT?socket=PATH", what, "%s", why);
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

/* USER@ before the host: whose key it is. */
static const char *user(struct nbd_uri *u, const char *from, const char *end, bool *good)
{
	const char *at = memchr(from, '@', (size_t)(end - from));

	*good = !at || decode(u->username, sizeof(u->username), from, at);
	return at ? at + 1 : from;
}

/* One KEY=VALUE of the query.  NULL: fine; or what is wrong. */
static const char *parameter(struct nbd_uri *u, const char *from, const char *end)
{
	const struct { const char *key; char *out; size_t size; bool tls; } known[] = {
		{ "socket", u->socket, sizeof(u->socket), false },
		{ "tls-certificates", u->certificates, sizeof(u->certificates), true },
		{ "tls-psk-file", u->psk_file, sizeof(u->psk_file), true },
		{ "tls-username", u->username, sizeof(u->username), true },
		{ "tls-hostname", u->hostname, sizeof(u->hostname), true },
	};
	const char *value = memchr(from, '=', (size_t)(end - from));
	size_t len = value ? (size_t)(value++ - from) : 0;
	char flag[8];

	for (size_t i = 0; value && i < sizeof(known) / sizeof(*known); i++)
		if (strlen(known[i].key) == len && !memcmp(known[i].key, from, len))
			return known[i].tls && !u->tls ? "tls- is for nbds://" :
			       decode(known[i].out, known[i].size, value, end) && *known[i].out ? NULL :
			       "a value after the ? is malformed or too long";
	if (len == 15 && !memcmp(from, "tls-verify-peer", len) && decode(flag, sizeof(flag), value, end)) {
		u->any_peer = !strcmp(flag, "false") || !strcmp(flag, "0");
		return u->any_peer || !strcmp(flag, "true") || !strcmp(flag, "1") ? NULL : "tls-verify-peer is true or false";
	}
	return "what follows the ? is not known: socket, tls-certificates, tls-psk-file, tls-username, tls-hostname, "
	       "tls-verify-peer";
}

static const char *query_parse(struct nbd_uri *u, const char *query)
{
	const char *why = NULL;

	while (query && *query && !why) {
		const char *from = query + 1, *end = from + strcspn(from, "&");

		why = parameter(u, from, end);
		query = end;
	}
	if (!why && *u->certificates && *u->psk_file)
		why = "tls-certificates and tls-psk-file exclude each other";
	return why;
}

struct nbd_tls_options nbd_uri_tls(const struct nbd_uri *u)
{
	return (struct nbd_tls_options){
		.certificates = *u->certificates ? u->certificates : NULL, .psk_file = *u->psk_file ? u->psk_file : NULL,
		.username = *u->username ? u->username : NULL, .any_peer = u->any_peer,
		.hostname = *u->hostname ? u->hostname : *u->host ? u->host : NULL,
	};
}

static const struct scheme { const char *text; bool local, tls; } schemes[] = {
	{ "nbd://", false, false }, { "nbd+unix://", true, false }, { "nbds://", false, true }, { "nbds+unix://", true, true },
};

int nbd_uri_parse(struct nbd_uri *u, const char *text, struct error *e)
{
	const struct scheme *s = schemes, *end = schemes + sizeof(schemes) / sizeof(*schemes);
	const char *at, *path, *query, *why;
	bool good;

	memset(u, 0, sizeof(*u));
	while (s < end && strncmp(text, s->text, strlen(s->text)))
		s++;
	if (s == end)
		return bad(text, "it is not the address of an NBD server", e);
	u->tls = s->tls;
	at = text + strlen(s->text);
	path = at + strcspn(at, "/?");
	query = strchr(path, '?');
	if (!decode(u->name, sizeof(u->name), *path == '/' ? path + 1 : path, query ? query : path + strlen(path)))
		return bad(text, "the export's name is malformed", e);
	why = query_parse(u, query);
	if (why)
		return bad(text, why, e);
	at = user(u, at, path, &good);
	if (s->local && (path != at || !*u->socket))
		return bad(text, "the socket's path is missing or malformed", e);
	if (!s->local && (!good || *u->socket || !authority(u, at, path)))
		return bad(text, "the host or the port is malformed", e);
	return 0;
}
