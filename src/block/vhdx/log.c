/*
 * The log of a VHDX file: a ring of entries, each of whole sectors of 4 KiB.
 *
 *	| "loge", length, tail, sequence, descriptors ... | more descriptors | "data" | "data" | ...
 *
 * Entries that follow each other, from the tail that the last of them names, are the active sequence.  Its data is
 * kept here, and shown in the place of what the file has; nothing is written.
 *
 * An entry's sectors after its first are known by what they begin with, so that no sector belongs to two good entries:
 * whatever a file claims, each byte of its log is summed up once.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "block/vhdx/vhdx.h"

#define LOG_SECTOR 4096u
#define ENTRY_HEAD 64u
#define DESCRIPTOR_BYTES 32u
#define DESCRIPTORS_MAX 65536u
#define DATA_OF_SECTOR 4084u

struct patch {
	uint64_t at, len;
	uint8_t *data;			/* LOG_SECTOR bytes; NULL: zeroes */
};

struct log {
	struct node *file;		/* NODE_FILE */
	struct patch *patch;		/* later ones win */
	size_t n, cap;
};

struct ring {
	const uint8_t *p;
	uint32_t sectors;
	const uint8_t *guid;
	bool *good;			/* by sector: an entry begins here */
	uint8_t *copy;			/* room for an entry that wraps around */
};

struct sequence {
	uint32_t first, last;		/* sectors */
	uint64_t number;		/* of the last entry; 0: none was found */
};

/* --- the node --- */

static void apply(const struct patch *p, uint64_t offset, uint64_t len, const struct iovec *iov, int iovcnt)
{
	uint64_t from = p->at > offset ? p->at : offset, end = p->at + p->len;

	end = end < offset + len ? end : offset + len;
	if (from >= end)
		return;
	if (p->data)
		iov_copy_in(iov, iovcnt, from - offset, p->data + (from - p->at), end - from);
	else
		iov_zero(iov, iovcnt, from - offset, end - from);
}

static int log_readv(struct node *n, uint64_t offset, const struct iovec *iov, int iovcnt)
{
	const struct log *l = n->impl;
	uint64_t len = iov_bytes(iov, iovcnt);
	int ret = node_co_readv(l->file, offset, iov, iovcnt);

	for (size_t i = 0; i < l->n && !ret; i++)
		apply(&l->patch[i], offset, len, iov, iovcnt);
	return ret;
}

static int log_info(struct node *n, struct block_info *out)
{
	struct node *file = n->child[NODE_FILE];

	return file->ops->info ? file->ops->info(file, out) : 0;
}

static int log_close(struct node *n)
{
	struct log *l = n->impl;

	for (size_t i = 0; i < l->n; i++)
		free(l->patch[i].data);
	free(l->patch);
	free(l);
	n->impl = NULL;
	return 0;
}

static const struct node_ops log_ops = { .name = "vhdx-log", .co_readv = log_readv, .info = log_info, .co_close = log_close };

/* --- entries --- */

static uint32_t entry_sectors(const uint8_t *head)
{
	return load_le32(head + 8) / LOG_SECTOR;
}

static uint32_t descriptor_sectors(const uint8_t *head)
{
	uint64_t bytes = ENTRY_HEAD + (uint64_t)load_le32(head + 24) * DESCRIPTOR_BYTES;

	return (uint32_t)((bytes + LOG_SECTOR - 1) / LOG_SECTOR);
}

static const uint8_t *sector(const struct ring *r, uint32_t i)
{
	return r->p + (size_t)(i % r->sectors) * LOG_SECTOR;
}

static bool head_good(const struct ring *r, const uint8_t *h)
{
	uint32_t len = load_le32(h + 8), tail = load_le32(h + 12);

	return !memcmp(h, "loge", 4) && len && len % LOG_SECTOR == 0 && len / LOG_SECTOR <= r->sectors &&
	       tail % LOG_SECTOR == 0 && tail / LOG_SECTOR < r->sectors && load_le64(h + 16) &&
	       load_le32(h + 24) <= DESCRIPTORS_MAX && descriptor_sectors(h) <= len / LOG_SECTOR &&
	       !memcmp(h + 32, r->guid, GUID_BYTES);
}

static bool entry_good(const struct ring *r, uint32_t at)
{
	const uint8_t *h = sector(r, at);
	uint32_t n;

	if (!head_good(r, h))
		return false;
	n = entry_sectors(h);
	for (uint32_t i = 1; i < n; i++) {
		const uint8_t *s = sector(r, at + i);

		if (!memcmp(s, "loge", 4) || (i >= descriptor_sectors(h) && memcmp(s, "data", 4)))
			return false;
	}
	for (uint32_t i = 0; i < n; i++)
		memcpy(r->copy + (size_t)i * LOG_SECTOR, sector(r, at + i), LOG_SECTOR);
	return vhdx_sum_good(r->copy, (size_t)n * LOG_SECTOR);
}

/* The entries from `first` on that follow each other; is the tail that the last one names among them? */
static void sequence_from(const struct ring *r, uint32_t first, struct sequence *best)
{
	uint32_t at = first, last = first, used = 0, tail;
	uint64_t number = load_le64(sector(r, first) + 16);

	for (; r->good[at] && load_le64(sector(r, at) + 16) == number; number++) {
		last = at;
		used += entry_sectors(sector(r, at));
		at = (at + entry_sectors(sector(r, at))) % r->sectors;
		if (used >= r->sectors)
			break;
	}
	number = load_le64(sector(r, last) + 16);
	tail = load_le32(sector(r, last) + 12) / LOG_SECTOR;
	if (tail == first && number > best->number)
		*best = (struct sequence){ first, last, number };
}

/* --- descriptors --- */

static int patch_add(struct log *l, uint64_t at, uint64_t len, uint8_t *data)
{
	if (l->n == l->cap) {
		size_t cap = l->cap ? l->cap * 2 : 64;
		struct patch *p = cap > 4 * DESCRIPTORS_MAX ? NULL : realloc(l->patch, cap * sizeof(*p));

		if (!p) {
			free(data);
			return -ENOMEM;
		}
		l->patch = p;
		l->cap = cap;
	}
	l->patch[l->n++] = (struct patch){ at, len, data };
	return 0;
}

/* The first 8 and the last 4 bytes of a sector are with the descriptor; their place is taken by marks. */
static int data_add(struct log *l, const uint8_t *d, const uint8_t *s, uint64_t number)
{
	uint8_t *data;

	if (load_le32(s + 4) != number >> 32 || load_le32(s + 4092) != (uint32_t)number)
		return -EINVAL;
	data = malloc(LOG_SECTOR);
	if (!data)
		return -ENOMEM;
	memcpy(data, d + 8, 8);
	memcpy(data + 8, s + 8, DATA_OF_SECTOR);
	memcpy(data + 8 + DATA_OF_SECTOR, d + 4, 4);
	return patch_add(l, load_le64(d + 16), LOG_SECTOR, data);
}

static int descriptor(struct log *l, const uint8_t *e, uint32_t i, uint32_t *data_at)
{
	const uint8_t *d = e + ENTRY_HEAD + (size_t)i * DESCRIPTOR_BYTES;
	uint64_t at = load_le64(d + 16), number = load_le64(e + 16);
	bool zero = !memcmp(d, "zero", 4);
	uint64_t len = zero ? load_le64(d + 8) : LOG_SECTOR;

	if ((!zero && memcmp(d, "desc", 4)) || load_le64(d + 24) != number || at % LOG_SECTOR || len % LOG_SECTOR ||
	    !range_inside(at, len, INT64_MAX))
		return -EINVAL;
	if (zero)
		return patch_add(l, at, len, NULL);
	if (*data_at == entry_sectors(e))
		return -EINVAL;
	return data_add(l, d, e + (size_t)(*data_at)++ * LOG_SECTOR, number);
}

static int entry_replay(struct log *l, const struct ring *r, uint32_t at)
{
	uint32_t n = entry_sectors(sector(r, at)), data_at, count;
	int ret = 0;

	for (uint32_t i = 0; i < n; i++)
		memcpy(r->copy + (size_t)i * LOG_SECTOR, sector(r, at + i), LOG_SECTOR);
	data_at = descriptor_sectors(r->copy);
	count = load_le32(r->copy + 24);
	for (uint32_t i = 0; i < count && !ret; i++)
		ret = descriptor(l, r->copy, i, &data_at);
	return ret;
}

static int sequence_replay(struct node *n, struct log *l, const struct ring *r, const struct sequence *s,
			   uint64_t *end, struct error *e)
{
	const uint8_t *last = sector(r, s->last);

	if (load_le64(last + 48) > l->file->size_bytes)
		return mapped_bad(n, e, "is cut short: its log speaks of a longer file");
	if (load_le64(last + 56) > INT64_MAX)
		return mapped_bad(n, e, "has a log that cannot be");
	*end = load_le64(last + 56) > l->file->size_bytes ? load_le64(last + 56) : l->file->size_bytes;
	for (uint32_t at = s->first;; at = (at + entry_sectors(sector(r, at))) % r->sectors) {
		int ret = entry_replay(l, r, at);

		if (ret)
			return ret == -ENOMEM ? error_errno(e, ENOMEM, NULL, "open disk '%s'", n->path)
					      : mapped_bad(n, e, "has a log that cannot be");
		if (at == s->last)
			return 0;
	}
}

/* --- all --- */

static int stack(struct node *n, const struct ring *r, const struct sequence *s, struct error *e)
{
	struct vhdx *v = n->impl;
	struct node *file = n->child[NODE_FILE], *top = node_new(n->env, &log_ops, n->path);
	struct log *l = calloc(1, sizeof(*l));
	int ret;

	if (!top || !l) {
		free(l);
		node_co_close(top);
		return error_errno(e, ENOMEM, NULL, "open disk '%s'", n->path);
	}
	top->impl = l;
	l->file = file;
	ret = sequence_replay(n, l, r, s, &top->size_bytes, e);
	if (ret) {
		node_co_close(top);
		return ret;
	}
	top->limits = file->limits;
	top->readonly = true;
	file->zero_past_end = true;
	top->child[NODE_FILE] = file;
	n->child[NODE_FILE] = top;
	v->replayed = true;
	return 0;
}

static int ring_replay(struct node *n, struct ring *r, struct error *e)
{
	struct sequence best = { 0 };

	for (uint32_t i = 0; i < r->sectors; i++)
		r->good[i] = entry_good(r, i);
	for (uint32_t i = 0; i < r->sectors; i++)
		if (r->good[i])
			sequence_from(r, i, &best);
	return best.number ? stack(n, r, &best, e) : 0;
}

int vhdx_log_replay(struct node *n, struct error *e)
{
	const struct vhdx *v = n->impl;
	static const uint8_t none[GUID_BYTES];
	struct ring r = { .guid = v->h.log_guid, .sectors = v->h.log_bytes / LOG_SECTOR };
	uint8_t *p;
	int ret;

	if (!memcmp(v->h.log_guid, none, GUID_BYTES))
		return 0;
	if (!r.sectors || v->h.log_bytes > VHDX_LOG_MAX || v->h.log_bytes % MIB || v->h.log_at % MIB ||
	    !range_inside(v->h.log_at, v->h.log_bytes, n->child[NODE_FILE]->size_bytes))
		return mapped_bad(n, e, "has a log that cannot be, or is cut short");
	p = malloc(2ull * v->h.log_bytes + r.sectors);
	ret = p ? node_co_read(n->child[NODE_FILE], v->h.log_at, p, v->h.log_bytes) : -ENOMEM;
	r.p = p;
	if (ret) {
		error_errno(e, -ret, NULL, "read disk '%s'", n->path);
	} else {
		r.copy = p + v->h.log_bytes;
		r.good = (bool *)(r.copy + v->h.log_bytes);
		ret = ring_replay(n, &r, e);
	}
	free(p);
	return ret;
}
