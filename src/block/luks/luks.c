/*
 * The LUKS format: a header, then encrypted sectors.
 *
 * Sectors of the volume may be larger than those of a disk.  A write that covers one in part reads the rest first;
 * meanwhile nobody else writes to it.
 */
#include "block/luks/luks.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define CHUNK_BYTES (1u << 20)		/* of what is encrypted at a time */

struct busy {
	uint64_t from, to;
	struct busy *next;
};

struct luks {
	struct node *file;
	struct luks_header *h;
	const struct luks_info *info;
	struct cipher *cipher;		/* NULL: opened without its key */
	struct busy *busy;		/* writes under way, by whole sectors; with large sectors only */
	struct co_queue waiters;
};

static uint64_t down(const struct luks *l, uint64_t at)
{
	return at - at % l->info->sector_bytes;
}

static uint64_t up(const struct luks *l, uint64_t at)
{
	return down(l, at + l->info->sector_bytes - 1);
}

static uint64_t number(const struct luks *l, uint64_t at)
{
	return at / SECTOR + l->info->iv_offset;
}

/* --- reading --- */

static bool whole_sectors(const struct luks *l, uint64_t offset, const struct iovec *iov, int iovcnt)
{
	bool whole = offset % l->info->sector_bytes == 0;

	for (int i = 0; i < iovcnt && whole; i++)
		whole = iov[i].iov_len % l->info->sector_bytes == 0;
	return whole;
}

/* The caller's memory takes the encrypted sectors, too. */
static int read_in_place(struct luks *l, struct block_env *env, uint64_t at, const struct iovec *iov, int iovcnt)
{
	int ret = node_co_readv(l->file, l->info->data_at + at, iov, iovcnt);

	for (int i = 0; i < iovcnt && !ret; at += iov[i++].iov_len)
		if (iov[i].iov_len)
			ret = cipher_co_decrypt(l->cipher, env, number(l, at), iov[i].iov_base, iov[i].iov_len);
	return ret;
}

/* Whole sectors around a part, into b. */
static int read_around(struct luks *l, struct block_env *env, uint64_t at, uint64_t len, uint8_t *b)
{
	int ret = node_co_read(l->file, l->info->data_at + at, b, len);

	return ret ? ret : cipher_co_decrypt(l->cipher, env, number(l, at), b, len);
}

static int luks_readv(struct node *n, uint64_t offset, const struct iovec *iov, int iovcnt)
{
	struct luks *l = n->impl;
	uint64_t len = iov_bytes(iov, iovcnt), done = 0;
	uint8_t *b;
	int ret = 0;

	if (!l->cipher)
		return -ENOKEY;
	if (whole_sectors(l, offset, iov, iovcnt))
		return read_in_place(l, n->env, offset, iov, iovcnt);
	b = malloc(CHUNK_BYTES + 2 * 4096);
	if (!b)
		return -ENOMEM;
	for (uint64_t part; done < len && !ret; done += part) {
		uint64_t at = offset + done, from = down(l, at);

		part = len - done < CHUNK_BYTES ? len - done : CHUNK_BYTES;
		ret = read_around(l, n->env, from, up(l, at + part) - from, b);
		if (!ret)
			iov_copy_in(iov, iovcnt, done, b + (at - from), part);
	}
	free(b);
	return ret;
}

/* --- writing --- */

static bool is_busy(const struct luks *l, const struct busy *mine)
{
	for (const struct busy *b = l->busy; b; b = b->next)
		if (mine->from < b->to && b->from < mine->to)
			return true;
	return false;
}

static void busy_begin(struct luks *l, struct coroutines *co, struct busy *mine)
{
	while (is_busy(l, mine))
		co_queue_wait(co, &l->waiters);
	mine->next = l->busy;
	l->busy = mine;
}

static void busy_end(struct luks *l, struct coroutines *co, struct busy *mine)
{
	struct busy **p = &l->busy;

	while (*p != mine)
		p = &(*p)->next;
	*p = mine->next;
	co_queue_wake_all(co, &l->waiters);
}

/* b holds the new bytes in their place, [at, at + len) of the whole sectors [from, to). */
static int edges(struct luks *l, struct block_env *env, uint64_t from, uint64_t to, uint64_t at, uint64_t len, uint8_t *b)
{
	uint32_t sector = l->info->sector_bytes;
	uint8_t old[4096];
	uint64_t last = to - sector;
	int ret = 0;

	if (at > from || (at + len < to && last == from)) {
		ret = read_around(l, env, from, sector, old);
		memcpy(b, old, at - from);
		if (last == from)
			memcpy(b + (at - from) + len, old + (at - from) + len, to - at - len);
	}
	if (!ret && at + len < to && last != from) {
		ret = read_around(l, env, last, sector, old);
		memcpy(b + (at - from) + len, old + (at + len - last), to - at - len);
	}
	return ret;
}

static int write_part(struct luks *l, struct node *n, uint64_t at, uint64_t len, const struct iovec *iov, int iovcnt,
		      uint64_t done, uint8_t *b)
{
	struct busy mine = { .from = down(l, at), .to = up(l, at + len) };
	bool locked = l->info->sector_bytes > SECTOR;
	int ret;

	if (locked)
		busy_begin(l, n->env->co, &mine);
	iov_copy_out(iov, iovcnt, done, b + (at - mine.from), len);
	ret = edges(l, n->env, mine.from, mine.to, at, len, b);
	if (!ret)
		ret = cipher_co_encrypt(l->cipher, n->env, number(l, mine.from), b, mine.to - mine.from);
	if (!ret)
		ret = node_co_write(l->file, l->info->data_at + mine.from, b, mine.to - mine.from);
	if (locked)
		busy_end(l, n->env->co, &mine);
	return ret;
}

static int luks_writev(struct node *n, uint64_t offset, const struct iovec *iov, int iovcnt)
{
	struct luks *l = n->impl;
	uint64_t len = iov_bytes(iov, iovcnt);
	size_t room = (len < CHUNK_BYTES ? len : CHUNK_BYTES) + 2 * 4096;
	uint8_t *b = l->cipher ? malloc(room) : NULL;
	int ret = b ? 0 : l->cipher ? -ENOMEM : -ENOKEY;

	for (uint64_t done = 0, part; done < len && !ret; done += part) {
		part = len - done < CHUNK_BYTES ? len - done : CHUNK_BYTES;
		ret = write_part(l, n, offset + done, part, iov, iovcnt, done, b);
	}
	free(b);
	return ret;
}

static int luks_flush(struct node *n)
{
	return node_co_flush(((struct luks *)n->impl)->file);
}

/* --- size, keys, telling --- */

static int luks_resize(struct node *n, uint64_t size_bytes, unsigned flags, struct error *e)
{
	struct luks *l = n->impl;
	char what[192];
	int ret;

	snprintf(what, sizeof(what), "resize disk '%.150s'", n->path);
	if (l->info->data_bytes)
		return error_set(e, ENOTSUP, "use cryptsetup", what, "its LUKS header gives it a fixed size");
	if (size_bytes % l->info->sector_bytes)
		return error_set(e, EINVAL, "round it up", what, "its sectors have %u bytes", l->info->sector_bytes);
	if (size_bytes > INT64_MAX - l->info->data_at)
		return error_set(e, EFBIG, NULL, what, "it is too large");
	ret = node_co_resize(l->file, l->info->data_at + size_bytes, flags, e);
	if (!ret)
		n->size_bytes = size_bytes;
	return ret;
}

static int luks_key(struct node *n, const struct block_key *k, struct error *e)
{
	return luks_keys_change(((struct luks *)n->impl)->h, k, e);
}

static int luks_node_info(struct node *n, struct block_info *out)
{
	const struct luks *l = n->impl;

	luks_info_extra(l->info, out);
	block_info_extra(out, "sectors", "%u bytes", l->info->sector_bytes);
	return 0;
}

/* --- life --- */

static int size_good(struct node *n, struct error *e)
{
	const struct luks *l = n->impl;
	const struct luks_info *i = l->info;
	uint64_t left = l->file->size_bytes - i->data_at;
	char what[192];

	snprintf(what, sizeof(what), "open disk '%.150s'", n->path);
	if (i->data_bytes > left)
		return error_set(e, EINVAL, "restore it from a copy", what, "it is cut short: its data ends before it should");
	n->size_bytes = down(l, i->data_bytes ? i->data_bytes : left);
	if (!n->size_bytes)
		return error_set(e, EINVAL, "restore it from a copy", what, "it is cut short: it holds no data");
	n->limits.cluster = i->sector_bytes > SECTOR ? i->sector_bytes : 0;
	return 0;
}

static int luks_open(struct node *n, const struct node_open *how, struct error *e)
{
	struct luks *l = calloc(1, sizeof(*l));
	int ret, fd;

	if (!l)
		return error_errno(e, ENOMEM, NULL, "open disk '%s'", n->path);
	n->impl = l;
	l->file = n->child[NODE_FILE];
	n->encrypted = true;
	fd = luks_key_given(n, how);
	ret = fd >= 0 ? luks_header_given(&l->h, &l->cipher, l->file, fd, e)
		      : luks_header_open(&l->h, l->file, 0, l->file->size_bytes, e);
	if (ret)
		return ret;
	l->info = luks_header_info(l->h);
	ret = size_good(n, e);
	if (!ret && !l->cipher && !(how->o->flags & BLOCK_LOCKED))
		ret = luks_unlock(l->h, how, &l->cipher, e);
	return ret;
}

static int luks_node_key_export(struct node *n)
{
	const struct luks *l = n->impl;

	return l->cipher ? luks_key_export(l->h, l->cipher) : -ENOKEY;
}

static int luks_close(struct node *n)
{
	struct luks *l = n->impl;

	cipher_free(l->cipher);
	luks_header_free(l->h);
	free(l);
	n->impl = NULL;
	return 0;
}

static int luks_create(struct node *file, const struct block_create *c, struct error *e)
{
	struct luks_header *h;
	int ret;

	if (c->backing_path)
		return error_set(e, EINVAL, "use qcow2", "create a disk", "a LUKS volume has no backing file");
	if (c->preallocate)
		return error_set(e, EINVAL, "leave it out", "create a disk", "an encrypted disk is not preallocated");
	ret = luks_header_new(&h, file->env, c, false, e);
	if (ret)
		return ret;
	ret = luks_header_store(h, file, 0, e);
	if (!ret && c->size_bytes > INT64_MAX - luks_header_info(h)->data_at)
		ret = error_set(e, EFBIG, NULL, "create a disk", "it is too large");
	if (!ret)
		ret = node_co_resize(file, luks_header_info(h)->data_at + c->size_bytes, 0, e);
	luks_header_free(h);
	return ret;
}

static bool luks_probe(const uint8_t *head, size_t len, uint64_t file_bytes)
{
	return len >= 8 && !memcmp(head, "LUKS\xba\xbe", 6);
}

static const struct node_ops luks_ops = {
	.name = "luks", .new_is_noise = true, .co_readv = luks_readv, .co_writev = luks_writev, .co_flush = luks_flush,
	.co_resize = luks_resize, .info = luks_node_info, .co_key = luks_key,
	.key_export = luks_node_key_export, .co_close = luks_close,
};

/* A guest may well encrypt its whole raw disk: then the file stays raw, unless its name says otherwise. */
const struct driver luks_driver = {
	.name = "luks", .suffix = ".luks", .plain_too = true, .ops = &luks_ops, .probe = luks_probe, .co_open = luks_open,
	.co_create = luks_create,
};
