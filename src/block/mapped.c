#include "block/mapped.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/checked.h"

/* --- reading --- */

struct reading {
	struct node *n;
	const struct iovec *iov;
	struct iovec *cut;		/* room for iovcnt */
	int iovcnt;
	uint64_t done;			/* of the vector */
};

static int read_file(struct reading *r, struct node *file, uint64_t at, uint64_t len)
{
	int n = iov_cut(r->cut, r->iov, r->iovcnt, r->done, len);

	return node_co_readv(file, at, r->cut, n);
}

static int read_below(struct reading *r, uint64_t offset, uint64_t len)
{
	struct node *below = r->n->child[NODE_BACKING];
	uint64_t there = below && offset < below->size_bytes ? below->size_bytes - offset : 0;

	there = there < len ? there : len;
	iov_zero(r->iov, r->iovcnt, r->done + there, len - there);
	return there ? read_file(r, below, offset, there) : 0;
}

static int read_packed(struct reading *r, const struct span *s, uint64_t offset)
{
	const struct mapped *m = r->n->impl;
	uint8_t *plain = malloc(s->len);
	int ret = plain ? m->co_unpack(r->n, s, offset, plain) : -ENOMEM;

	if (!ret)
		iov_copy_in(r->iov, r->iovcnt, r->done, plain, s->len);
	free(plain);
	return ret;
}

static int read_span(struct reading *r, const struct span *s, uint64_t offset)
{
	switch (s->kind) {
	case SPAN_DATA:
		if (!range_inside(s->host, s->len, s->file->size_bytes))
			return mapped_damaged(r->n, "data lies past the end of the file", s->host);
		return read_file(r, s->file, s->host, s->len);
	case SPAN_ZERO:
		iov_zero(r->iov, r->iovcnt, r->done, s->len);
		return 0;
	case SPAN_BACKING:
		return read_below(r, offset, s->len);
	case SPAN_PACKED:
		return read_packed(r, s, offset);
	}
	return -EIO;
}

int mapped_co_readv(struct node *n, uint64_t offset, const struct iovec *iov, int iovcnt)
{
	const struct mapped *m = n->impl;
	uint64_t len = iov_bytes(iov, iovcnt);
	struct reading r = { .n = n, .iov = iov, .iovcnt = iovcnt };
	int ret = 0;

	r.cut = malloc(sizeof(*r.cut) * (size_t)(iovcnt ? iovcnt : 1));
	if (!r.cut)
		return -ENOMEM;
	for (struct span s; r.done < len && !ret; r.done += s.len) {
		ret = m->co_span(n, offset + r.done, len - r.done, &s);
		if (ret)
			break;
		ASSERT(s.len && s.len <= len - r.done);
		ret = read_span(&r, &s, offset + r.done);
	}
	free(r.cut);
	return ret;
}

int mapped_co_status(struct node *n, uint64_t offset, uint64_t len, struct block_status *out)
{
	const struct mapped *m = n->impl;
	struct span s;
	int ret = m->co_span(n, offset, len, &s);

	if (ret)
		return ret;
	*out = (struct block_status){ .len = s.len };
	switch (s.kind) {
	case SPAN_DATA:
		out->flags = BLOCK_STATUS_DATA | BLOCK_STATUS_ALLOCATED;
		if (s.file == n->child[NODE_FILE])
			out->flags |= BLOCK_STATUS_OFFSET;
		out->host_offset = s.host;
		break;
	case SPAN_PACKED:
		out->flags = BLOCK_STATUS_DATA | BLOCK_STATUS_ALLOCATED | BLOCK_STATUS_COMPRESSED;
		break;
	case SPAN_ZERO: out->flags = BLOCK_STATUS_ZERO | BLOCK_STATUS_ALLOCATED; break;
	case SPAN_BACKING: out->flags = n->child[NODE_BACKING] ? 0 : BLOCK_STATUS_ZERO; break;
	}
	return 0;
}

/* --- saying no --- */

int mapped_damaged(struct node *n, const char *what, uint64_t at)
{
	struct mapped *m = n->impl;

	if (!m->damage_told)
		log_warn("disk '%s' is damaged: %s (at 0x%llx); restore it from a copy", n->path, what,
			 (unsigned long long)at);
	m->damage_told = true;
	return -EIO;
}

bool mapped_is_fresh(const struct node *n, const struct node_open *how)
{
	return !n->readonly && how->o->flags & BLOCK_FRESH;
}

int mapped_read_only(const struct node *n, const struct node_open *how, struct error *e)
{
	char what[192];

	if (n->readonly || mapped_is_fresh(n, how))
		return 0;
	snprintf(what, sizeof(what), "open disk '%.150s'", n->path);
	return error_set(e, EROFS, "add ,readonly or ,ephemeral, or convert it: vixen image convert", what,
			 "a %s image can only be read", n->ops->name);
}

int mapped_bad(const struct node *n, struct error *e, const char *why)
{
	char what[192];

	snprintf(what, sizeof(what), "open disk '%.150s'", n->path);
	return error_set(e, EINVAL, "restore it from a copy", what, "the %s image %s", n->ops->name, why);
}

/* --- pages --- */

static int page_load(struct pages *p, struct node *file, uint64_t at, const uint8_t **out)
{
	uint64_t left = file->size_bytes > at ? file->size_bytes - at : 0;
	size_t len = left < PAGES_BYTES ? (size_t)left : PAGES_BYTES;
	size_t i = (at / PAGES_BYTES + (uintptr_t)file / 64) % PAGES_SLOTS;
	uint8_t *data;
	int ret;

	if (p->slot[i].data && p->slot[i].file == file && p->slot[i].at == at) {
		*out = p->slot[i].data;
		return 0;
	}
	data = calloc(1, PAGES_BYTES);
	ret = data ? node_co_read(file, at, data, len) : -ENOMEM;
	if (ret) {
		free(data);
		return ret;
	}
	free(p->slot[i].data);		/* others may have changed it meanwhile */
	p->slot[i].file = file;
	p->slot[i].at = at;
	p->slot[i].data = data;
	*out = data;
	return 0;
}

int pages_read(struct pages *p, struct node *file, uint64_t at, void *out, size_t len)
{
	uint8_t *to = out;

	if (!range_inside(at, len, file->size_bytes))
		return -EIO;
	while (len) {
		uint64_t in_page = at % PAGES_BYTES;
		size_t part = PAGES_BYTES - (size_t)in_page < len ? PAGES_BYTES - (size_t)in_page : len;
		const uint8_t *page;
		int ret = page_load(p, file, at - in_page, &page);

		if (ret)
			return ret;
		memcpy(to, page + in_page, part);
		to += part;
		at += part;
		len -= part;
	}
	return 0;
}

void pages_fini(struct pages *p)
{
	for (unsigned i = 0; i < PAGES_SLOTS; i++)
		free(p->slot[i].data);
}
