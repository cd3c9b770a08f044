#include "block/fresh.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>

#include "base/checked.h"

#define PLACE_MAX UINT32_MAX

static struct fresh *fresh_of(const struct node *n)
{
	return ((const struct mapped *)n->impl)->fresh;
}

/* --- places --- */

static uint32_t place_get(const struct fresh *f, uint64_t i)
{
	const uint32_t *page = f->page[i / FRESH_PAGE];

	return page ? page[i % FRESH_PAGE] : 0;
}

static uint64_t host_of(const struct fresh *f, uint32_t place)
{
	return f->base + place * f->scale;
}

/* A place for unit i, at the end of the file unless it has one. */
static int place_make(struct fresh *f, uint64_t i, uint64_t *host)
{
	uint32_t **page = &f->page[i / FRESH_PAGE], *p;

	if (!*page)
		*page = calloc(FRESH_PAGE, sizeof(**page));
	if (!*page)
		return -ENOMEM;
	p = &(*page)[i % FRESH_PAGE];
	if (!*p) {
		uint64_t place = (f->end - f->base) / f->scale;

		if (place > PLACE_MAX)
			return -EFBIG;
		*p = (uint32_t)place;
		f->end += f->unit;
		f->used++;
		f->dirty[i / FRESH_PAGE / 8] |= (uint8_t)(1u << i / FRESH_PAGE % 8);
		f->changed = true;
	}
	*host = host_of(f, *p);
	return 0;
}

/* Where offset goes, and how much from there on is in one piece, at most *len. */
static int stretch(struct fresh *f, uint64_t offset, uint64_t *len, uint64_t *host)
{
	uint64_t i = offset / f->unit, in_unit = offset % f->unit, got = f->unit - in_unit, next;
	int ret = place_make(f, i, host);

	if (ret)
		return ret;
	*host += in_unit;
	while (got < *len) {
		ret = place_make(f, ++i, &next);
		if (ret || next != *host + got)
			break;
		got += f->unit;
	}
	*len = got < *len ? got : *len;
	return ret;
}

/* --- requests --- */

static int fresh_span(struct node *n, uint64_t offset, uint64_t len, struct span *out)
{
	const struct fresh *f = fresh_of(n);
	uint64_t in_unit = offset % f->unit, left = f->unit - in_unit, size = n->child[NODE_FILE]->size_bytes;
	uint32_t place = place_get(f, offset / f->unit);

	*out = (struct span){ .kind = SPAN_ZERO, .file = n->child[NODE_FILE], .len = left < len ? left : len,
			      .host = host_of(f, place) + in_unit };
	if (place && out->host < size) {	/* past its end nothing was written yet */
		out->kind = SPAN_DATA;
		out->len = out->len < size - out->host ? out->len : size - out->host;
	}
	return 0;
}

int fresh_co_writev(struct node *n, uint64_t offset, const struct iovec *iov, int iovcnt)
{
	struct fresh *f = fresh_of(n);
	uint64_t total = iov_bytes(iov, iovcnt), host;
	struct iovec *cut;
	int ret = 0;

	if (f->fixed)
		return node_co_writev(n->child[NODE_FILE], f->base + offset, iov, iovcnt);
	cut = malloc(sizeof(*cut) * (size_t)(iovcnt ? iovcnt : 1));
	if (!cut)
		return -ENOMEM;
	for (uint64_t done = 0, len; done < total && !ret; done += len) {
		len = total - done;
		ret = stretch(f, offset + done, &len, &host);
		if (!ret)
			ret = node_co_writev(n->child[NODE_FILE], host, cut, iov_cut(cut, iov, iovcnt, done, len));
	}
	free(cut);
	return ret;
}

static int tables_put(struct node *n, struct fresh *f)
{
	uint64_t pages = (f->units + FRESH_PAGE - 1) / FRESH_PAGE;
	int ret = 0;

	for (uint64_t p = 0; p < pages && !ret; p++) {
		uint64_t first = p * FRESH_PAGE, left = f->units - first;

		if (!(f->dirty[p / 8] >> p % 8 & 1))
			continue;
		f->dirty[p / 8] &= (uint8_t)~(1u << p % 8);
		ret = f->co_put(n, first, f->page[p], left < FRESH_PAGE ? (unsigned)left : FRESH_PAGE);
	}
	return ret;
}

int fresh_co_flush(struct node *n)
{
	struct fresh *f = fresh_of(n);
	struct node *file = n->child[NODE_FILE];
	int ret = 0;

	if (!f)
		return 0;
	if (f->changed) {
		f->changed = false;
		ret = tables_put(n, f);
		if (!ret && file->size_bytes < f->end)
			ret = node_co_resize(file, f->end, 0, NULL);
		if (!ret && f->co_finish)
			ret = f->co_finish(n);
		f->changed |= ret != 0;
	}
	return ret ? ret : node_co_flush(file);
}

/* --- life --- */

int fresh_begin(struct node *n, const struct fresh *given, struct error *e)
{
	struct mapped *m = n->impl;
	struct fresh *f = malloc(sizeof(*f));
	uint64_t pages = (given->units + FRESH_PAGE - 1) / FRESH_PAGE;

	m->fresh = f;
	if (!f)
		return error_errno(e, ENOMEM, NULL, "open disk '%s'", n->path);
	*f = *given;
	n->limits.can_discard = n->limits.can_zero = false;
	if (f->fixed)
		return 0;
	f->page = calloc(pages, sizeof(*f->page));
	f->dirty = calloc(pages / 8 + 1, 1);
	if (!f->page || !f->dirty)
		return error_errno(e, ENOMEM, NULL, "open disk '%s'", n->path);
	m->co_span = fresh_span;
	return 0;
}

int fresh_co_end(struct node *n)
{
	struct mapped *m = n->impl;
	struct fresh *f = m->fresh;
	int ret = 0;

	if (!f)
		return 0;
	if (f->changed)
		ret = fresh_co_flush(n);
	for (uint64_t p = 0; f->page && p < (f->units + FRESH_PAGE - 1) / FRESH_PAGE; p++)
		free(f->page[p]);
	free(f->page);
	free(f->dirty);
	free(f);
	m->fresh = NULL;
	return ret;
}

/* --- creating --- */

int fresh_failed(const struct node *file, int ret, struct error *e)
{
	return ret ? error_errno(e, -ret, "is there space on the host's disk?", "create disk '%s'", file->path) : 0;
}

int fresh_options_good(const struct node *file, const struct block_create *c, bool fixed, struct error *e)
{
	char what[192];

	snprintf(what, sizeof(what), "create disk '%.150s'", file->path);
	if (c->backing_path)
		return error_set(e, EINVAL, "use qcow2", what, "only qcow2 images are made with a backing file");
	if (c->encrypt)
		return error_set(e, EINVAL, "use qcow2 or luks", what, "a format of others cannot be encrypted");
	if (c->cluster_bytes || c->version || c->refcount_bits || c->lazy_refcounts || c->extended_l2 || c->zstd || c->data_path)
		return error_set(e, EINVAL, "use qcow2, or leave them out", what, "clusters and their like are qcow2's");
	if (c->preallocate && !fixed)
		return error_set(e, EINVAL, "add --subformat fixed, for vhdx and vdi", what,
				 "only images of a fixed size take all their space");
	return c->size_bytes ? 0 : error_set(e, EINVAL, "give a size", what, "it would be empty");
}

int fresh_take_space(struct node *file, uint64_t data_at, uint64_t len, enum block_preallocate how, struct error *e)
{
	int ret = node_co_resize(file, data_at + len, 0, e);

	if (ret || how < BLOCK_PREALLOCATE_FALLOC)
		return ret;
	ret = node_co_preallocate(file, data_at, len, how);
	return ret ? error_errno(e, -ret, ret == -EOPNOTSUPP ? "use --preallocation full" :
				 "is there space on the host's disk?", "preallocate disk '%s'", file->path) : 0;
}

void fresh_random(uint8_t *out, size_t len)
{
	ssize_t got = getrandom(out, len, 0);

	ASSERT(got == (ssize_t)len);
}

/* Version 4 of RFC 4122, in the byte order of Windows and VirtualBox. */
void fresh_guid(uint8_t out[16])
{
	fresh_random(out, 16);
	out[7] = (out[7] & 0x0f) | 0x40;
	out[8] = (out[8] & 0x3f) | 0x80;
}
