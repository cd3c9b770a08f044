#include "record.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "block/luks/header_private.h"
#include "block/qcow2/qcow2.h"

/* --- the log --- */

struct event {
	enum { SUBMIT, DONE, FLUSH_START, FLUSH_DONE } kind;
	unsigned id;
};

struct io {			/* one write; data NULL: a hole */
	unsigned file;
	uint64_t offset, len;
	uint8_t *data;
	unsigned done_at;	/* event; 0: not yet */
	bool durable;
};

struct flush {
	unsigned start_at, file;
};

struct pass {			/* a forwarded request */
	struct record *r;
	unsigned id;
	bool flush;
	block_done_fn *done;
	void *opaque;
};

static void *grow(void *p, unsigned n, size_t size)
{
	return n & (n - 1) ? p : realloc(p, size * (n ? n * 2 : 1));
}

static unsigned event(struct record *r, int kind, unsigned id)
{
	if (r->watch && !r->moved_at && node_below_filters(block_root(r->watch)) != r->stood_on)
		r->moved_at = r->nev;
	r->ev = grow(r->ev, r->nev, sizeof(*r->ev));
	r->ev[r->nev].kind = kind;
	r->ev[r->nev].id = id;
	return ++r->nev;		/* the boundary after it */
}

static void passed(void *opaque, int ret)
{
	struct pass *p = opaque;
	unsigned at = event(p->r, p->flush ? FLUSH_DONE : DONE, p->id);

	if (!p->flush)
		p->r->io[p->id].done_at = at;
	p->done(p->opaque, ret);
	free(p);
}

static struct pass *pass_new(struct node *n, bool flush, block_done_fn *done, void *opaque)
{
	struct record *r = ((struct record_file *)n->impl)->r;
	struct pass *p = malloc(sizeof(*p));

	*p = (struct pass){ r, flush ? r->nfl++ : r->nio++, flush, done, opaque };
	return p;
}

static void rec_readv(struct node *n, uint64_t offset, const struct iovec *iov, int iovcnt, block_done_fn *done,
		      void *opaque)
{
	node_readv(n->child[NODE_FILE], offset, iov, iovcnt, done, opaque);
}

static void log_io(const struct record_file *f, struct pass *p, uint64_t offset, uint64_t len, uint8_t *data)
{
	struct record *r = f->r;

	r->io = grow(r->io, p->id, sizeof(*r->io));
	r->io[p->id] = (struct io){ f->index, offset, len, data, 0, false };
	event(r, SUBMIT, p->id);
}

static void rec_writev(struct node *n, uint64_t offset, const struct iovec *iov, int iovcnt, block_done_fn *done,
		       void *opaque)
{
	struct pass *p = pass_new(n, false, done, opaque);
	uint64_t len = iov_bytes(iov, iovcnt);
	uint8_t *data = malloc(len);

	iov_copy_out(iov, iovcnt, 0, data, len);
	log_io(n->impl, p, offset, len, data);
	node_writev(n->child[NODE_FILE], offset, iov, iovcnt, passed, p);
	n->size_bytes = n->child[NODE_FILE]->size_bytes;
}

static void rec_discard(struct node *n, uint64_t offset, uint64_t len, block_done_fn *done, void *opaque)
{
	struct pass *p = pass_new(n, false, done, opaque);

	log_io(n->impl, p, offset, len, NULL);
	node_discard(n->child[NODE_FILE], offset, len, passed, p);
}

static void rec_flush(struct node *n, block_done_fn *done, void *opaque)
{
	struct record_file *f = n->impl;
	struct record *r = f->r;
	struct pass *p = pass_new(n, true, done, opaque);

	r->fl = grow(r->fl, p->id, sizeof(*r->fl));
	r->fl[p->id].file = f->index;
	r->fl[p->id].start_at = event(r, FLUSH_START, p->id);
	node_flush(n->child[NODE_FILE], passed, p);
}

static int rec_resize(struct node *n, uint64_t size_bytes, unsigned flags, struct error *e)
{
	int ret = node_co_resize(n->child[NODE_FILE], size_bytes, flags, e);

	n->size_bytes = n->child[NODE_FILE]->size_bytes;
	return ret;
}

static const struct node_ops rec_ops = {
	.name = "record", .readv = rec_readv, .writev = rec_writev, .flush = rec_flush, .discard = rec_discard,
	.co_resize = rec_resize,
};

static void base_read(struct record_file *f)
{
	size_t len;

	f->base.p = file_read(f->path, &len);
	f->base.len = f->base.cap = len;
}

void record_add(struct record *r, struct node *n, const char *path)
{
	struct node *file = n->child[NODE_FILE], *rec = node_new(n->env, &rec_ops, "record");
	struct record_file *f = &r->file[r->nfiles];

	*f = (struct record_file){ r, r->nfiles++, path, { 0 } };
	base_read(f);
	rec->impl = f;
	rec->size_bytes = file->size_bytes;
	rec->limits = file->limits;
	rec->readonly = file->readonly;
	rec->zero_past_end = true;
	rec->child[NODE_FILE] = file;
	n->child[NODE_FILE] = rec;
	if (!strcmp(n->ops->name, "qcow2")) {
		struct qcow2 *q = n->impl;

		q->file = q->data = rec;
		if (q->luks)
			q->luks->file = rec;
	} else {
		struct { struct node *file; struct luks_header *h; } *luks = n->impl;	/* struct luks begins so */

		luks->file = luks->h->file = rec;
	}
}

void record_fini(struct record *r)
{
	for (unsigned i = 0; i < r->nio; i++)
		free(r->io[i].data);
	for (unsigned i = 0; i < SECTORS; i++) {
		while (r->sector[i]) {
			struct version *v = r->sector[i];

			r->sector[i] = v->next;
			free(v);
		}
	}
	for (unsigned i = 0; i < r->nfiles; i++)
		free(r->file[i].base.p);
	free(r->ev);
	free(r->io);
	free(r->fl);
	free(r->guest);
	free(r->guest_end);
}

/* --- the guest --- */

struct guest_op {
	struct record *r;
	struct disk *d;
	uint64_t offset, len;
	uint8_t *buf;
	struct version **v;
	bool flush;
	unsigned id;
	struct iovec iov;
};

uint64_t below(uint64_t n)
{
	return ((uint64_t)random() << 31 | (uint64_t)random()) % n;
}

static void guest_done(void *opaque, int ret)
{
	struct guest_op *o = opaque;

	if (o->flush)
		o->r->guest_end[o->id] = o->r->nev;
	for (uint64_t i = 0; !o->flush && i < o->len / 512; i++)
		o->v[i]->completed = o->r->nev;
	disk_done(o->d, ret);
	free(o->buf);
	free(o->v);
	free(o);
}

struct version *version_add(struct record *r, uint64_t sector, uint64_t tag)
{
	struct version **p = &r->sector[sector], *v = calloc(1, sizeof(*v));

	while (*p)
		p = &(*p)->next;
	*v = (struct version){ tag, r->nev, 0, NULL };
	return *p = v;
}

static void guest_write(struct disk *d, struct record *r, uint64_t offset, uint64_t len, unsigned kind, uint64_t *tag)
{
	struct guest_op *o = calloc(1, sizeof(*o));
	bool zero = kind != 0;

	*o = (struct guest_op){ .r = r, .d = d, .offset = offset, .len = len };
	o->buf = calloc(1, len);
	o->v = calloc(len / 512, sizeof(*o->v));
	for (uint64_t i = 0; i < len / 512; i++) {
		uint64_t t = zero ? 0 : ++*tag;

		for (unsigned w = 0; w < 64; w++)
			memcpy(o->buf + i * 512 + w * 8, &t, 8);
		o->v[i] = version_add(r, offset / 512 + i, t);
	}
	o->iov = (struct iovec){ o->buf, len };
	d->pending++;
	if (!zero)
		block_writev(d->b, offset, &o->iov, 1, guest_done, o);
	else
		block_write_zeroes(d->b, offset, len, kind == 1, guest_done, o);
}

void guest_flush(struct disk *d, struct record *r)
{
	struct guest_op *o = calloc(1, sizeof(*o));

	*o = (struct guest_op){ .r = r, .d = d, .flush = true, .id = r->nguest };
	r->guest = grow(r->guest, r->nguest, sizeof(*r->guest));
	r->guest_end = grow(r->guest_end, r->nguest, sizeof(*r->guest_end));
	r->guest[r->nguest].start_at = r->nev;
	r->guest_end[r->nguest++] = UINT32_MAX;
	d->pending++;
	block_flush(d->b, guest_done, o);
}

static void pick(const struct record *r, uint64_t *offset, uint64_t *len)
{
	*offset = below(r->size / SECTOR) * 512;
	*len = (1 + below(below(3) ? 24 : 300)) * 512;
	if (*len > r->size - *offset)
		*len = r->size - *offset;
}

void guest_batch(struct disk *d, struct record *r, uint64_t *tag)
{
	uint64_t at[8], size[8];
	unsigned n = 0;

	for (unsigned tries = 0; tries < 8; tries++) {
		bool free_range = true;

		pick(r, &at[n], &size[n]);
		for (unsigned i = 0; i < n; i++)
			free_range &= at[n] >= at[i] + size[i] || at[i] >= at[n] + size[n];
		n += free_range;
	}
	for (unsigned i = 0; i < n; i++) {
		unsigned kind = (unsigned)below(6);

		guest_write(d, r, at[i], size[i], kind < 4 ? 0 : kind - 3, tag);
		if (!below(6))
			guest_flush(d, r);
	}
	if (disk_wait(d))
		die("the guest's writes failed");
	if (!below(3))
		guest_flush(d, r);
}

/* --- cutting --- */

static void image_write(struct image *im, uint64_t offset, const uint8_t *data, uint64_t len)
{
	if (offset + len > im->cap) {
		uint64_t cap = (offset + len) * 2;

		im->p = realloc(im->p, cap);
		memset(im->p + im->cap, 0, cap - im->cap);
		im->cap = cap;
	}
	if (data) {
		memcpy(im->p + offset, data, len);
		im->len = offset + len > im->len ? offset + len : im->len;
	} else {
		memset(im->p + offset, 0, len);
	}
}

/* A pending write: whole, not at all, or some of its sectors. */
static void apply_some(struct image *im, const struct io *io, unsigned how)
{
	if (how == 1 || (how > 1 && below(2))) {
		image_write(im, io->offset, io->data, io->len);
		return;
	}
	for (uint64_t at = 0, part; how > 2 && at < io->len; at += part) {
		part = 512 - (io->offset + at) % 512;
		part = part < io->len - at ? part : io->len - at;
		if (below(2))
			image_write(im, io->offset + at, io->data ? io->data + at : NULL, part);
	}
}

/* A finished flush covers what was complete when it began. */
static void make_durable(struct record *r, unsigned nio, const struct flush *f)
{
	for (unsigned i = 0; i < nio; i++) {
		struct io *io = &r->io[i];

		if (io->file != f->file || io->durable || !io->done_at || io->done_at > f->start_at)
			continue;
		image_write(&r->file[io->file].base, io->offset, io->data, io->len);
		io->durable = true;
	}
}

/* Stretches of zeroes stay holes: some headers are large and empty. */
static void save(const struct image *im, const char *name)
{
	static const uint8_t zero[4096];
	char path[64];
	int fd;

	snprintf(path, sizeof(path), "cut/%s", name);
	fd = open(path, O_WRONLY | O_CREAT | O_TRUNC, 0644);
	if (fd < 0 || ftruncate(fd, (off_t)im->len))
		die("write %s", path);
	for (uint64_t at = 0, end; at < im->len; at = end) {
		for (end = at; end < im->len; end += 4096)
			if (im->len - end < 4096 || !memcmp(im->p + end, zero, 4096))
				break;
		if (im->len - end < 4096)
			end = im->len;
		if (end > at && pwrite(fd, im->p + at, end - at, (off_t)at) != (ssize_t)(end - at))
			die("write %s", path);
		end += end == at ? 4096 : 0;
	}
	close(fd);
}

void cut_content(const struct cut *c, const uint8_t *disk, const uint8_t *before, uint64_t bytes)
{
	for (unsigned i = 0; i < bytes / SECTOR; i++) {
		const struct version *v = c->r->sector[i], *durable = NULL;
		const uint8_t *got = disk + i * SECTOR;
		bool old = !memcmp(got, before + i * SECTOR, SECTOR), good;
		uint64_t tag;

		for (const struct version *w = v; w; w = w->next)
			if (w->completed && w->completed <= c->flush_at)
				durable = w;
		memcpy(&tag, got, 8);
		good = !durable && old;
		for (const struct version *w = durable ? durable : v; w && w->submitted <= c->at; w = w->next)
			good |= w->tag == tag;
		if ((v || tag) && !old && memcmp(got, got + 8, SECTOR - 8))
			die("cut %u: sector %u is torn", c->at, i);
		if (!good)
			die("cut %u: sector %u holds %lx, flushed was %lx", c->at, i, tag, durable ? durable->tag : UINT64_MAX);
	}
}

static void cut_one(struct record *r, unsigned nio, unsigned how)
{
	for (unsigned f = 0; f < r->nfiles; f++) {
		const struct image *base = &r->file[f].base;
		struct image im = { malloc(base->cap), base->len, base->cap };

		memcpy(im.p, base->p, base->cap);
		for (unsigned i = 0; i < nio; i++)
			if (r->io[i].file == f && !r->io[i].durable)
				apply_some(&im, &r->io[i], how);
		save(&im, r->file[f].path);
		free(im.p);
	}
}

static unsigned flushed_by(const struct record *r, unsigned at, unsigned before)
{
	for (unsigned i = 0; i < r->nguest; i++)
		if (r->guest_end[i] <= at && r->guest[i].start_at > before)
			before = r->guest[i].start_at;
	return before;
}

unsigned record_cuts(struct record *r, void (*check)(void *opaque, const struct cut *c), void *opaque)
{
	struct cut c = { .r = r };
	unsigned nio = 0;

	if (mkdir("cut", 0755) && errno != EEXIST)
		die("cut: %s", strerror(errno));
	for (c.at = 0; c.at <= r->nev; c.at++) {
		c.flush_at = flushed_by(r, c.at, c.flush_at);
		for (unsigned how = r->every && c.at % r->every ? 4 : 0; how < 4; how++) {
			cut_one(r, nio, how);
			check(opaque, &c);
			c.n++;
		}
		if (c.at == r->nev)
			break;
		if (r->ev[c.at].kind == SUBMIT)
			nio = r->ev[c.at].id + 1;
		else if (r->ev[c.at].kind == FLUSH_DONE)
			make_durable(r, nio, &r->fl[r->ev[c.at].id]);
	}
	return c.n;
}
