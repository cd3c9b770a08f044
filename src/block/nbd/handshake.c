/* The server's side of the negotiation ("Newstyle negotiation", "Option types" in proto.md). */
#include <endian.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/endian.h"
#include "base/error.h"
#include "base/log.h"
#include "block/nbd/proto.h"
#include "block/nbd/server_private.h"
#include "block/nbd/tls.h"

#define OPTION_BYTES (16u << 10)	/* kept of an option's data; longer ones are refused */
#define OPTION_SKIP (1u << 20)		/* and from here on not even read */
#define OPTIONS_MAX 256u
#define PREFERRED_MAX (64u << 10)

/* What the loop over the options does next. */
enum { NEXT = 1, DONE = 0 };

struct option {
	uint32_t number, len;
	uint8_t *data;			/* OPTION_BYTES */
};

/* --- reading an option's data --- */

struct cursor {
	const uint8_t *at;
	size_t left;
	bool bad;			/* it was shorter than it said */
};

static const uint8_t *take(struct cursor *c, size_t n)
{
	const uint8_t *p = c->at;

	if (c->bad || n > c->left) {
		c->bad = true;
		return NULL;
	}
	c->at += n;
	c->left -= n;
	return p;
}

static uint16_t take16(struct cursor *c)
{
	const uint8_t *p = take(c, 2);

	return p ? load_be16(p) : 0;
}

static uint32_t take32(struct cursor *c)
{
	const uint8_t *p = take(c, 4);

	return p ? load_be32(p) : 0;
}

struct text {
	const uint8_t *at;
	uint32_t len;
};

static struct text take_text(struct cursor *c)
{
	struct text t = { .len = take32(c) };

	if (t.len > NBD_NAME_MAX)
		c->bad = true;
	t.at = take(c, t.len);
	return t;
}

static bool text_is(struct text t, const char *s)
{
	return t.len == strlen(s) && !memcmp(t.at, s, t.len);
}

/* The nameless export is the default one: ours, whatever its name. */
static bool names_export(const struct nbd_client *c, struct text t)
{
	return !t.len || text_is(t, c->s->name);
}

/* --- replies --- */

static int reply2(struct nbd_client *c, const struct option *o, uint32_t type, const void *head, size_t head_len,
		  const void *data, size_t len)
{
	const struct nbd_option_reply r = { htobe64(NBD_OPTION_REPLY_MAGIC), htobe32(o->number), htobe32(type),
					    htobe32((uint32_t)(head_len + len)) };
	const struct iovec iov[] = { { (void *)head, head_len }, { (void *)data, len } };
	int ret = nbd_sock_write(&c->sock, &r, sizeof(r), iov, 2);

	return ret ? ret : NEXT;
}

static int reply(struct nbd_client *c, const struct option *o, uint32_t type)
{
	return reply2(c, o, type, NULL, 0, NULL, 0);
}

static int reply_text(struct nbd_client *c, const struct option *o, uint32_t type, const char *text)
{
	return reply2(c, o, type, text, strlen(text), NULL, 0);
}

/* --- options --- */

/* There is no way to say no: a wrong name is answered by hanging up. */
static int export_name(struct nbd_client *c, const struct option *o, bool no_zeroes)
{
	const struct nbd_export_reply r = { htobe64(block_size(c->s->o.disk)), htobe16(nbd_server_flags(c)), { 0 } };

	if (!names_export(c, (struct text){ o->data, o->len }))
		return -ENOENT;
	return nbd_sock_write(&c->sock, &r, no_zeroes ? NBD_EXPORT_REPLY_SHORT : sizeof(r), NULL, 0);
}

static int list(struct nbd_client *c, const struct option *o)
{
	uint32_t len = htobe32((uint32_t)strlen(c->s->name));
	int ret;

	if (o->len)
		return reply_text(c, o, NBD_REP_ERR_INVALID, "LIST takes no data");
	ret = reply2(c, o, NBD_REP_SERVER, &len, sizeof(len), c->s->name, strlen(c->s->name));
	return ret < 0 ? ret : reply(c, o, NBD_REP_ACK);
}

static uint32_t preferred_block(const struct block *b)
{
	uint32_t cluster = block_cluster(b);

	if (cluster < 4096 || cluster & (cluster - 1))
		return 4096;
	return cluster > PREFERRED_MAX ? PREFERRED_MAX : cluster;
}

static int info_text(struct nbd_client *c, const struct option *o, uint16_t info, const char *text)
{
	const uint16_t type = htobe16(info);

	return reply2(c, o, NBD_REP_INFO, &type, sizeof(type), text, strlen(text));
}

static int infos(struct nbd_client *c, const struct option *o, unsigned wanted)
{
	const struct block *b = c->s->o.disk;
	const struct nbd_info_export export = { htobe16(NBD_INFO_EXPORT), htobe64(block_size(b)),
						htobe16(nbd_server_flags(c)) };
	const struct nbd_info_block_size sizes = { htobe16(NBD_INFO_BLOCK_SIZE), htobe32(NBD_BLOCK_MIN),
						   htobe32(preferred_block(b)), htobe32(NBD_PAYLOAD_MAX) };
	int ret = reply2(c, o, NBD_REP_INFO, &export, sizeof(export), NULL, 0);

	if (ret >= 0)
		ret = reply2(c, o, NBD_REP_INFO, &sizes, sizeof(sizes), NULL, 0);
	if (ret >= 0 && wanted & 1u << NBD_INFO_NAME)
		ret = info_text(c, o, NBD_INFO_NAME, c->s->name);
	if (ret >= 0 && wanted & 1u << NBD_INFO_DESCRIPTION && *c->s->description)
		ret = info_text(c, o, NBD_INFO_DESCRIPTION, c->s->description);
	return ret;
}

static int info_or_go(struct nbd_client *c, const struct option *o)
{
	struct cursor in = { o->data, o->len, false };
	struct text name = take_text(&in);
	unsigned wanted = 0;
	int ret;

	for (unsigned n = take16(&in); n && !in.bad; n--) {
		uint16_t info = take16(&in);

		if (info <= NBD_INFO_BLOCK_SIZE)
			wanted |= 1u << info;
	}
	if (in.bad || in.left)
		return reply_text(c, o, NBD_REP_ERR_INVALID, "lengths do not agree");
	if (!names_export(c, name))
		return reply_text(c, o, NBD_REP_ERR_UNKNOWN, "no such export");
	ret = infos(c, o, wanted);
	if (ret >= 0)
		ret = reply(c, o, NBD_REP_ACK);
	return ret < 0 || o->number == NBD_OPT_INFO ? ret : DONE;
}

/* --- what clients may ask of ranges --- */

static unsigned contexts(const struct nbd_server *s) { return NBD_HAS_BITMAP + s->o.nbitmaps; }

static size_t context_name(const struct nbd_server *s, unsigned i, char out[NBD_NAME_MAX])
{
	switch (i) {
	case NBD_HAS_ALLOCATION: return strlen(strcpy(out, NBD_CONTEXT_ALLOCATION));
	case NBD_HAS_DEPTH: return strlen(strcpy(out, NBD_CONTEXT_DEPTH));
	default: return (size_t)snprintf(out, NBD_NAME_MAX, NBD_CONTEXT_BITMAP "%s", s->bitmap[i - NBD_HAS_BITMAP]);
	}
}

/* A list may also ask for all whose names begin so: "qemu:", "qemu:dirty-bitmap:". */
static bool query_matches(struct text q, const char *name, bool listing)
{
	return text_is(q, name) ||
	       (listing && q.len && q.at[q.len - 1] == ':' && q.len < strlen(name) && !memcmp(q.at, name, q.len));
}

/* The contexts that a query means, as bits. */
static uint32_t query_contexts(const struct nbd_server *s, struct text q, bool listing)
{
	char name[NBD_NAME_MAX];
	uint32_t found = 0;

	for (unsigned i = 0; i < contexts(s); i++) {
		context_name(s, i, name);
		if (query_matches(q, name, listing))
			found |= 1u << i;
	}
	return found;
}

static int contexts_tell(struct nbd_client *c, const struct option *o, uint32_t found, bool listing)
{
	char name[NBD_NAME_MAX];
	int ret = NEXT;

	for (unsigned i = 0; i < contexts(c->s) && ret >= 0; i++) {
		const uint32_t id = htobe32(listing ? 0 : i + 1);

		if (found & 1u << i)
			ret = reply2(c, o, NBD_REP_META_CONTEXT, &id, sizeof(id), name, context_name(c->s, i, name));
	}
	return ret < 0 ? ret : reply(c, o, NBD_REP_ACK);
}

static int meta_context(struct nbd_client *c, const struct option *o)
{
	struct cursor in = { o->data, o->len, false };
	bool listing = o->number == NBD_OPT_LIST_META_CONTEXT;
	struct text name = take_text(&in);
	uint32_t n = take32(&in), found;

	if (!listing)
		c->contexts = 0;
	if (!c->structured)
		return reply_text(c, o, NBD_REP_ERR_INVALID, "structured replies come first");
	found = listing && !n ? UINT32_MAX : 0;
	for (; n && !in.bad; n--) {
		struct text query = take_text(&in);

		found |= in.bad ? 0 : query_contexts(c->s, query, listing);
	}
	if (in.bad || in.left)
		return reply_text(c, o, NBD_REP_ERR_INVALID, "lengths do not agree");
	if (!names_export(c, name))
		return reply_text(c, o, NBD_REP_ERR_UNKNOWN, "no such export");
	if (!listing)
		c->contexts = found;
	return contexts_tell(c, o, found, listing);
}

static int structured(struct nbd_client *c, const struct option *o)
{
	if (o->len)
		return reply_text(c, o, NBD_REP_ERR_INVALID, "STRUCTURED_REPLY takes no data");
	c->structured = true;
	return reply(c, o, NBD_REP_ACK);
}

/* Nothing that was sent in the clear may be taken for something that came by TLS. */
static int start_tls(struct nbd_client *c, const struct option *o)
{
	char why[NBD_TLS_WHY];
	int ret;

	if (o->len)
		return reply_text(c, o, NBD_REP_ERR_INVALID, "STARTTLS takes no data");
	if (nbd_sock_has_ahead(&c->sock))
		return -EPROTO;
	ret = reply(c, o, NBD_REP_ACK);
	if (ret < 0)
		return ret;
	ret = nbd_tls_start(c->s->o.tls, &c->sock, why);
	if (ret)
		log_warn("NBD: no TLS with a client: %s", why);
	return ret ? ret : NEXT;
}

static int before_tls(struct nbd_client *c, const struct option *o)
{
	switch (o->number) {
	case NBD_OPT_STARTTLS: return start_tls(c, o);
	case NBD_OPT_ABORT: reply(c, o, NBD_REP_ACK); return -ECONNABORTED;
	case NBD_OPT_EXPORT_NAME: return -EACCES;
	default: return reply_text(c, o, NBD_REP_ERR_TLS_REQD, "TLS comes first");
	}
}

static int handle(struct nbd_client *c, const struct option *o, bool no_zeroes)
{
	if (c->s->o.tls && !c->sock.tls)
		return before_tls(c, o);
	switch (o->number) {
	case NBD_OPT_EXPORT_NAME: return export_name(c, o, no_zeroes);
	case NBD_OPT_ABORT: reply(c, o, NBD_REP_ACK); return -ECONNABORTED;
	case NBD_OPT_LIST: return list(c, o);
	case NBD_OPT_INFO:
	case NBD_OPT_GO: return info_or_go(c, o);
	case NBD_OPT_STRUCTURED_REPLY: return structured(c, o);
	case NBD_OPT_LIST_META_CONTEXT:
	case NBD_OPT_SET_META_CONTEXT: return meta_context(c, o);
	case NBD_OPT_STARTTLS:
		return c->sock.tls ? reply_text(c, o, NBD_REP_ERR_INVALID, "TLS has begun already")
				   : reply_text(c, o, NBD_REP_ERR_UNSUP, "this server has no TLS");
	default: return reply(c, o, NBD_REP_ERR_UNSUP);
	}
}

/* --- the course of it --- */

static int greet(struct nbd_client *c, bool *no_zeroes)
{
	const struct nbd_greeting hello = { htobe64(NBD_MAGIC), htobe64(NBD_OPTION_MAGIC),
					    htobe16(NBD_FIXED_NEWSTYLE | NBD_NO_ZEROES) };
	uint8_t answer[4];
	uint32_t flags;
	int ret = nbd_sock_write(&c->sock, &hello, sizeof(hello), NULL, 0);

	if (!ret)
		ret = nbd_sock_read(&c->sock, answer, sizeof(answer));
	if (ret)
		return ret;
	flags = load_be32(answer);
	*no_zeroes = flags & NBD_NO_ZEROES;
	return flags & ~(uint32_t)(NBD_FIXED_NEWSTYLE | NBD_NO_ZEROES) ? -EPROTO : 0;
}

static int option(struct nbd_client *c, struct option *o, bool no_zeroes)
{
	struct nbd_option head;
	int ret = nbd_sock_read(&c->sock, &head, sizeof(head));

	if (ret)
		return ret;
	o->number = be32toh(head.option);
	o->len = be32toh(head.len);
	if (be64toh(head.magic) != NBD_OPTION_MAGIC || o->len > OPTION_SKIP)
		return -EPROTO;
	if (o->len > OPTION_BYTES) {
		ret = nbd_sock_skip(&c->sock, o->len);
		if (ret || o->number == NBD_OPT_EXPORT_NAME)
			return ret ? ret : -ENAMETOOLONG;
		return reply(c, o, NBD_REP_ERR_TOO_BIG);
	}
	ret = nbd_sock_read(&c->sock, o->data, o->len);
	return ret ? ret : handle(c, o, no_zeroes);
}

int nbd_server_handshake(struct nbd_client *c)
{
	struct option o = { .data = malloc(OPTION_BYTES) };
	bool no_zeroes = false;
	int ret = o.data ? greet(c, &no_zeroes) : -ENOMEM;

	if (!ret)
		ret = NEXT;
	for (unsigned n = 0; ret == NEXT; n++)
		ret = n < OPTIONS_MAX ? option(c, &o, no_zeroes) : -EPROTO;
	free(o.data);
	return ret;
}
