/*
 * Filling a streamOptimized VMDK, which can be read from its beginning to its end:
 *
 *	head | grains, deflated | marker, their table | grains | marker, table | ... | marker, directory |
 *	marker, the header again, with the directory's place | marker of the end
 *
 * Grains come in the order of the disk and each once.  A flush writes the end behind what there is; what comes later
 * takes its place.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <zlib.h>

#include "base/endian.h"
#include "block/vmdk/vmdk.h"
#include "host/workers.h"

#define GRAIN VMDK_NEW_GRAIN
#define TABLE_BYTES (VMDK_NEW_ENTRIES * 4)
#define GRAIN_HEAD 12u
#define GRAIN_ROOM ((GRAIN_HEAD + GRAIN + GRAIN / 1000 + 64 + SECTOR - 1) / SECTOR * SECTOR)	/* deflated noise grows */
#define GRAINS_AT_ONCE 32u
#define AT_MAX ((uint64_t)UINT32_MAX * SECTOR)

enum marker { MARKER_END, MARKER_TABLE, MARKER_DIRECTORY, MARKER_FOOTER };

struct vmdk_stream {
	uint64_t at;			/* in the file: after the last grain or table */
	uint64_t next;			/* grain: those before it are written, or zeroes */
	uint64_t table_i, tables;
	bool table_used, changed;
	uint8_t table[TABLE_BYTES];
	uint8_t *directory;		/* tables * 4, and up to a sector */
};

/* --- tables --- */

static uint64_t directory_bytes(uint64_t tables)
{
	return (tables * 4 + SECTOR - 1) / SECTOR * SECTOR;
}

static int marked_write(struct node *file, uint64_t *at, enum marker kind, const void *data, uint64_t len)
{
	uint8_t *b = calloc(1, SECTOR + len);
	int ret = b ? 0 : -ENOMEM;

	if (!ret && *at + SECTOR + len > AT_MAX)
		ret = -EFBIG;
	if (!ret) {
		store_le64(b, len / SECTOR);
		store_le32(b + 12, kind);
		if (len)
			memcpy(b + SECTOR, data, len);
		ret = node_co_write(file, *at, b, SECTOR + len);
		*at += SECTOR + len;
	}
	free(b);
	return ret;
}

/* At *at; what of the stream is in the file stays as it is. */
static int table_put(struct node *file, struct vmdk_stream *s, uint64_t *at)
{
	int ret = marked_write(file, at, MARKER_TABLE, s->table, TABLE_BYTES);

	if (!ret)
		store_le32(s->directory + s->table_i * 4, (uint32_t)((*at - TABLE_BYTES) / SECTOR));
	return ret;
}

static int table_next(struct node *file, struct vmdk_stream *s, uint64_t i)
{
	int ret = i != s->table_i && s->table_used ? table_put(file, s, &s->at) : 0;

	if (ret || i == s->table_i)
		return ret;
	memset(s->table, 0, TABLE_BYTES);
	s->table_used = false;
	s->table_i = i;
	return 0;
}

static int end_put(struct node *file, struct vmdk_stream *s)
{
	uint8_t header[SECTOR];
	uint64_t at = s->at, directory;
	int ret = s->table_used ? table_put(file, s, &at) : 0;

	directory = at + SECTOR;
	if (!ret)
		ret = marked_write(file, &at, MARKER_DIRECTORY, s->directory, directory_bytes(s->tables));
	if (!ret)
		ret = node_co_read(file, 0, header, sizeof(header));
	if (ret)
		return ret;
	store_le64(header + 56, directory / SECTOR);
	ret = marked_write(file, &at, MARKER_FOOTER, header, sizeof(header));
	if (!ret)
		ret = marked_write(file, &at, MARKER_END, NULL, 0);
	return ret ? ret : node_co_resize(file, at, 0, NULL);
}

int vmdk_stream_write_empty(struct node *file, uint64_t at, uint64_t tables)
{
	struct vmdk_stream *s = calloc(1, sizeof(*s));
	int ret = -ENOMEM;

	if (s)
		s->directory = calloc(1, directory_bytes(tables));
	if (s && s->directory) {
		s->at = at;
		s->tables = tables;
		ret = end_put(file, s);
	}
	if (s)
		free(s->directory);
	free(s);
	return ret;
}

/* --- grains --- */

struct pack {
	uint8_t plain[GRAIN];		/* what is missing at the disk's end is zeroes */
	uint8_t out[GRAIN_ROOM];
	uint32_t len;			/* whole sectors; 0: it failed */
};

struct packing {
	struct node *n;
	struct pack *p;
	unsigned count, next, left;
	uint64_t first;			/* grain */
	struct co_call call;
};

static void pack(void *opaque)
{
	struct pack *p = opaque;
	uLongf len = GRAIN_ROOM - GRAIN_HEAD;

	if (compress2(p->out + GRAIN_HEAD, &len, p->plain, GRAIN, Z_DEFAULT_COMPRESSION) != Z_OK)
		return;
	store_le32(p->out + 8, (uint32_t)len);
	p->len = (uint32_t)((GRAIN_HEAD + len + SECTOR - 1) / SECTOR * SECTOR);
	memset(p->out + GRAIN_HEAD + len, 0, p->len - GRAIN_HEAD - len);
}

static void packer(void *opaque)
{
	struct packing *k = opaque;

	while (k->next < k->count) {
		unsigned i = k->next++;

		store_le64(k->p[i].out, (k->first + i) * (GRAIN / SECTOR));
		workers_co_run(k->n->env->workers, pack, &k->p[i]);
	}
	if (!--k->left)
		co_call_done(&k->call, 0);
}

static void pack_all(struct packing *k)
{
	k->call = (struct co_call){ .s = k->n->env->co };
	k->left = 1;
	for (unsigned i = 0; i < k->count && i < WORKERS_MAX; i++) {
		k->left++;
		if (co_start(k->n->env->co, packer, k))
			k->left--;
	}
	packer(k);
	co_call_wait(&k->call);
}

/* Of one table. */
static int grains_write(struct node *n, struct packing *k)
{
	struct vmdk_stream *s = ((struct vmdk *)n->impl)->stream;
	struct iovec iov[GRAINS_AT_ONCE];
	uint64_t at = s->at;
	int ret;

	pack_all(k);
	for (unsigned i = 0; i < k->count; i++) {
		if (!k->p[i].len)
			return -ENOMEM;
		if (at > AT_MAX)
			return -EFBIG;
		store_le32(s->table + (k->first + i) % VMDK_NEW_ENTRIES * 4, (uint32_t)(at / SECTOR));
		iov[i] = (struct iovec){ k->p[i].out, k->p[i].len };
		at += k->p[i].len;
	}
	ret = node_co_writev(n->child[NODE_FILE], s->at, iov, (int)k->count);
	s->at = at;
	s->table_used = s->changed = true;
	return ret;
}

static int write_some(struct node *n, struct packing *k, const struct iovec *iov, int iovcnt, uint64_t done, uint64_t len)
{
	struct vmdk_stream *s = ((struct vmdk *)n->impl)->stream;
	int ret = table_next(n->child[NODE_FILE], s, k->first / VMDK_NEW_ENTRIES);

	if (ret)
		return ret;
	k->count = (unsigned)((len + GRAIN - 1) / GRAIN);
	k->next = 0;
	k->p = calloc(k->count, sizeof(*k->p));
	if (!k->p)
		return -ENOMEM;
	for (unsigned i = 0; i < k->count; i++) {
		uint64_t left = len - i * (uint64_t)GRAIN;

		iov_copy_out(iov, iovcnt, done + i * (uint64_t)GRAIN, k->p[i].plain, left < GRAIN ? left : GRAIN);
	}
	ret = grains_write(n, k);
	free(k->p);
	return ret;
}

int vmdk_stream_co_writev(struct node *n, uint64_t offset, const struct iovec *iov, int iovcnt)
{
	struct vmdk_stream *s = ((struct vmdk *)n->impl)->stream;
	struct packing k = { .n = n, .first = offset / GRAIN };
	uint64_t total = iov_bytes(iov, iovcnt);
	int ret = 0;

	if (offset % GRAIN || k.first < s->next || (total % GRAIN && offset + total != n->size_bytes))
		return -EINVAL;
	s->next = k.first + (total + GRAIN - 1) / GRAIN;
	for (uint64_t done = 0, len; done < total && !ret; done += len) {
		uint64_t room = VMDK_NEW_ENTRIES - k.first % VMDK_NEW_ENTRIES;

		room = room < GRAINS_AT_ONCE ? room : GRAINS_AT_ONCE;
		len = total - done < room * GRAIN ? total - done : room * GRAIN;
		ret = write_some(n, &k, iov, iovcnt, done, len);
		k.first += k.count;
	}
	return ret;
}

/* --- life --- */

int vmdk_stream_co_flush(struct node *n)
{
	struct vmdk_stream *s = ((struct vmdk *)n->impl)->stream;
	int ret = s->changed ? end_put(n->child[NODE_FILE], s) : 0;

	s->changed = s->changed && ret;
	return ret ? ret : node_co_flush(n->child[NODE_FILE]);
}

static int not_read(struct node *n, uint64_t offset, uint64_t len, struct span *out)
{
	return -EOPNOTSUPP;
}

int vmdk_stream_begin(struct node *n, uint64_t at, uint64_t tables, struct error *e)
{
	struct vmdk *v = n->impl;
	struct vmdk_stream *s = calloc(1, sizeof(*s));

	v->stream = s;
	if (s)
		s->directory = calloc(1, directory_bytes(tables));
	if (!s || !s->directory)
		return error_errno(e, ENOMEM, NULL, "open disk '%s'", n->path);
	s->at = at;
	s->tables = tables;
	v->mapped.co_span = not_read;
	n->limits.ordered = true;
	return 0;
}

int vmdk_stream_co_end(struct node *n)
{
	struct vmdk *v = n->impl;
	int ret = v->stream && v->stream->changed ? vmdk_stream_co_flush(n) : 0;

	if (v->stream)
		free(v->stream->directory);
	free(v->stream);
	v->stream = NULL;
	return ret;
}
