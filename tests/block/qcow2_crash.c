/*
 * qcow2_crash [SEED [OPERATIONS [MIX]]]: cuts the power at every boundary of a write.
 *
 * A recorder stands between qcow2 and its file and logs every write, hole and flush, when it began and when it ended.
 * Afterwards, for each boundary, the file is put together as a disk could have kept it: everything that a finished
 * flush covers, and of the rest any subset, in sectors.  Each must open, be without errors (leaks are allowed; what
 * has the dirty bit set may be repaired by the opening), and hold for each sector the value that the last finished
 * flush of the guest covers, or a later one.  A dirty bitmap, where there is one, must say of every sector that holds
 * another value than at the start that it may have changed.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "block/qcow2/bitmap.h"
#include "disk.h"
#include "host/loop.h"

#define SIZE (1u << 20)
#define SECTORS (SIZE / 512)
#define QEMU_EVERY 97u

/* --- the log --- */

struct event {
	enum { SUBMIT, DONE, FLUSH_START, FLUSH_DONE } kind;
	unsigned id;
};

struct io {			/* one write; data NULL: a hole */
	uint64_t offset, len;
	uint8_t *data;
	unsigned done_at;	/* event; 0: not yet */
	bool durable;
};

struct flush {
	unsigned start_at;
};

/* What a guest sector may hold: versions in order, each from when it was submitted. */
struct version {
	uint64_t tag;
	unsigned submitted, completed;
	struct version *next;
};

struct record {
	struct event *ev;
	unsigned nev;
	struct io *io;
	unsigned nio;
	struct flush *fl;
	unsigned nfl;
	struct version *sector[SECTORS];
	struct flush *guest;		/* start and end, as events */
	unsigned *guest_end, nguest;
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
	struct record *r = n->impl;
	struct pass *p = malloc(sizeof(*p));

	*p = (struct pass){ r, flush ? r->nfl++ : r->nio++, flush, done, opaque };
	return p;
}

static void rec_readv(struct node *n, uint64_t offset, const struct iovec *iov, int iovcnt, block_done_fn *done,
		      void *opaque)
{
	node_readv(n->child[NODE_FILE], offset, iov, iovcnt, done, opaque);
}

static void log_io(struct record *r, struct pass *p, uint64_t offset, uint64_t len, uint8_t *data)
{
	r->io = grow(r->io, p->id, sizeof(*r->io));
	r->io[p->id] = (struct io){ offset, len, data, 0, false };
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
	struct record *r = n->impl;
	struct pass *p = pass_new(n, true, done, opaque);

	r->fl = grow(r->fl, p->id, sizeof(*r->fl));
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

static void record_start(struct disk *d, struct record *r)
{
	struct node *n = block_root(d->b), *file = n->child[NODE_FILE], *rec = node_new(n->env, &rec_ops, "record");
	struct qcow2 *q = n->impl;

	*r = (struct record){ 0 };
	rec->impl = r;
	rec->size_bytes = file->size_bytes;
	rec->limits = file->limits;
	rec->zero_past_end = true;
	rec->child[NODE_FILE] = file;
	n->child[NODE_FILE] = q->file = q->data = rec;
}

static void record_free(struct record *r)
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

static uint64_t below(uint64_t n)
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

static struct version *version_add(struct record *r, uint64_t sector, uint64_t tag)
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

static void guest_flush(struct disk *d, struct record *r)
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

static void pick(uint64_t *offset, uint64_t *len)
{
	*offset = below(SECTORS) * 512;
	*len = (1 + below(below(3) ? 24 : 300)) * 512;
	if (*len > SIZE - *offset)
		*len = SIZE - *offset;
}

static void guest_batch(struct disk *d, struct record *r, uint64_t *tag)
{
	uint64_t at[8], size[8];
	unsigned n = 0;

	for (unsigned tries = 0; tries < 8; tries++) {
		bool free_range = true;

		pick(&at[n], &size[n]);
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

struct image {
	uint8_t *p;
	uint64_t len, cap;
};

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
static void make_durable(struct record *r, struct image *base, unsigned first_pending, unsigned nio, unsigned start_at)
{
	for (unsigned i = first_pending; i < nio; i++) {
		struct io *io = &r->io[i];

		if (io->durable || !io->done_at || io->done_at > start_at)
			continue;
		image_write(base, io->offset, io->data, io->len);
		io->durable = true;
	}
}

static void save(const struct image *im)
{
	int fd = open("cut.qcow2", O_WRONLY | O_CREAT | O_TRUNC, 0644);

	if (fd < 0 || write(fd, im->p, im->len) != (ssize_t)im->len)
		die("write cut.qcow2");
	close(fd);
}

static void content_good(const struct record *r, const uint8_t *disk, const uint8_t *before, unsigned cut, unsigned flush_at)
{
	for (unsigned i = 0; i < SECTORS; i++) {
		const struct version *v = r->sector[i], *durable = NULL;
		uint64_t tag;
		bool good;

		for (const struct version *w = v; w; w = w->next)
			if (w->completed && w->completed <= flush_at)
				durable = w;
		memcpy(&tag, disk + i * 512, 8);
		good = !durable && !memcmp(disk + i * 512, before + i * 512, 512);
		for (const struct version *w = durable ? durable : v; w && w->submitted <= cut; w = w->next)
			good |= w->tag == tag;
		for (unsigned k = 1; k < 64 && (v || tag); k++)
			if (memcmp(disk + i * 512 + k * 8, &tag, 8) && memcmp(disk + i * 512, before + i * 512, 512))
				die("cut %u: sector %u is torn", cut, i);
		if (!good)
			die("cut %u: sector %u holds %lx, flushed was %lx", cut, i, tag,
			    durable ? durable->tag : UINT64_MAX);
	}
}

/* The clean start of a round: nothing has changed. */
static void bitmap_reset(struct disk *d, uint32_t granularity)
{
	struct error e = { 0 };

	disk_open(d, "image.qcow2", &(struct block_options){ .format = "qcow2" });
	block_bitmap_remove(d->b, "b", &e);
	if (block_bitmap_add(d->b, "b", granularity, &e))
		die("%s: %s", e.what, e.why);
	disk_close(d);
}

static void bitmap_covers(struct disk *d, const uint8_t *disk, const uint8_t *before, unsigned cut)
{
	const struct qcow2 *q = block_root(d->b)->impl;
	const struct bitmap *m = q->nbitmaps == 1 ? q->bitmap[0] : NULL;

	if (!m)
		die("cut %u: the bitmap is lost", cut);
	for (unsigned i = 0; i < SECTORS; i++)
		if (memcmp(disk + i * 512, before + i * 512, 512) && !dirty_all_set(&m->bits, i * 512, 512))
			die("cut %u: sector %u has changed, and the bitmap does not say so", cut, i);
}

static void check_cut(const struct record *r, const struct image *im, const uint8_t *before, unsigned cut,
		      unsigned flush_at, unsigned n, bool bitmap)
{
	static uint8_t disk_bytes[SIZE];
	struct disk d = { 0 };
	struct block_check c = { 0 };
	struct error e = { 0 };
	struct block_info info;
	bool dirty;

	save(im);
	disk_open(&d, "cut.qcow2", &(struct block_options){ .format = "qcow2", .flags = BLOCK_READONLY });
	block_info(d.b, 0, &info);
	dirty = info.unclean;
	if (block_check(d.b, 0, &c, &e))
		die("cut %u: %s", cut, e.why);
	if (c.corruptions && !dirty)
		die("cut %u: %lu errors", cut, c.corruptions);
	disk_close(&d);
	if (!dirty && !(n % QEMU_EVERY)) {
		int ret = system("qemu-img check -f qcow2 cut.qcow2 >shell.out 2>&1");

		if (ret && ret >> 8 != 3 && ret >> 8 != 127)
			die("cut %u: qemu-img check says %d", cut, ret >> 8);
	}
	disk_open(&d, "cut.qcow2", &(struct block_options){ .format = "qcow2" });
	if (disk_read(&d, 0, disk_bytes, SIZE))
		die("cut %u: reading", cut);
	content_good(r, disk_bytes, before, cut, flush_at);
	if (bitmap)
		bitmap_covers(&d, disk_bytes, before, cut);
	c = (struct block_check){ 0 };
	if (dirty && (block_check(d.b, 0, &c, &e) || c.corruptions))
		die("cut %u: errors after the repair", cut);
	disk_close(&d);
	loop_free(d.loop);
}

static unsigned cuts(struct record *r, struct image *base, const uint8_t *before, bool bitmap)
{
	unsigned nio = 0, flush_at = 0, n = 0;

	for (unsigned at = 0; at <= r->nev; at++) {
		for (unsigned i = 0; i < r->nguest; i++)
			if (r->guest_end[i] <= at && r->guest[i].start_at > flush_at)
				flush_at = r->guest[i].start_at;
		for (unsigned how = 0; how < 4; how++) {
			struct image im = { malloc(base->cap), base->len, base->cap };

			memcpy(im.p, base->p, base->cap);
			for (unsigned i = 0; i < nio; i++)
				if (!r->io[i].durable)
					apply_some(&im, &r->io[i], how);
			check_cut(r, &im, before, at, flush_at, n++, bitmap);
			free(im.p);
		}
		if (at == r->nev)
			break;
		if (r->ev[at].kind == SUBMIT)
			nio = r->ev[at].id + 1;
		else if (r->ev[at].kind == FLUSH_DONE)
			make_durable(r, base, 0, nio, r->fl[r->ev[at].id].start_at);
	}
	return n;
}

/* --- mixes --- */

struct mix {
	const char *name;
	struct block_create c;
	bool backing, snapshot;
	uint32_t bitmap;		/* granularity; 0: none */
};

static const struct mix mixes[] = {
	{ "512", { .cluster_bytes = 512 }, false, false },
	{ "512-64bit", { .cluster_bytes = 512, .refcount_bits = 64 }, true, false },
	{ "4k", { .cluster_bytes = 4096 }, true, false },
	{ "64k", { 0 }, false, false },
	{ "v2", { .version = 2, .cluster_bytes = 1024 }, false, false },
	{ "extended", { .extended_l2 = true, .cluster_bytes = 16384 }, true, false },
	{ "lazy", { .lazy_refcounts = true, .cluster_bytes = 2048 }, false, false },
	{ "snapshot", { .cluster_bytes = 4096 }, false, true },
	{ "bitmap", { .cluster_bytes = 4096 }, true, false, 512 },
	{ "bitmap-512", { .cluster_bytes = 512 }, false, true, 1024 },
	{ "bitmap-lazy", { .lazy_refcounts = true }, false, false, 4096 },
};

static void read_image(struct image *im)
{
	size_t len;

	im->p = file_read("image.qcow2", &len);
	im->len = im->cap = len;
}

static void make(struct disk *d, const struct mix *m)
{
	struct block_create c = m->c;
	static uint8_t bytes[SIZE / 2];
	int fd;

	unlink("image.qcow2");
	for (unsigned i = 0; i < sizeof(bytes); i++)
		bytes[i] = (uint8_t)(i >> 8);
	fd = open("base.raw", O_WRONLY | O_CREAT | O_TRUNC, 0644);
	if (write(fd, bytes, sizeof(bytes)) != sizeof(bytes))
		die("write base.raw");
	close(fd);
	c.size_bytes = SIZE;
	c.backing_path = m->backing ? "base.raw" : NULL;
	c.backing_format = m->backing ? "raw" : NULL;
	disk_create(d, "image.qcow2", "qcow2", &c);
}

/* Two rounds: on an empty image, and on one that has data already, which the second may not lose. */
static unsigned run_mix(const struct mix *m, unsigned seed, unsigned operations)
{
	static uint8_t before[SIZE];
	struct disk d = { 0 };
	uint64_t tag = 1ull << 40;
	unsigned n = 0;

	printf("%s, seed %u: ", m->name, seed);
	fflush(stdout);
	srandom(seed);
	make(&d, m);
	for (unsigned round = 0; round < 2; round++) {
		struct image base;
		struct record r;
		struct error e = { 0 };

		if (m->bitmap)
			bitmap_reset(&d, m->bitmap);
		read_image(&base);
		disk_open(&d, "image.qcow2", &(struct block_options){ .format = "qcow2", .flags = BLOCK_NO_IO_URING });
		if (disk_read(&d, 0, before, SIZE))
			die("read");
		record_start(&d, &r);
		for (unsigned i = 0; i < operations; i += 8) {
			guest_batch(&d, &r, &tag);
			if (m->snapshot && !below(3) && disk_wait(&d) == 0 &&
			    (block_snapshot_delete(d.b, "s", &e), block_snapshot_create(d.b, "s", &e)))
				die("snapshot: %s", e.why);
		}
		disk_wait(&d);
		disk_close(&d);
		n += cuts(&r, &base, before, m->bitmap);
		free(base.p);
		record_free(&r);
	}
	loop_free(d.loop);
	printf("%u cuts\n", n);
	return n;
}

int main(int argc, char **argv)
{
	unsigned seed = argc > 1 ? (unsigned)strtoul(argv[1], NULL, 10) : 1;
	unsigned operations = argc > 2 ? (unsigned)strtoul(argv[2], NULL, 10) : 48;
	char dir[64];

	go_to_folder(dir);
	for (unsigned i = 0; i < sizeof(mixes) / sizeof(mixes[0]); i++)
		if (argc < 4 || !strcmp(argv[3], mixes[i].name))
			run_mix(&mixes[i], seed, operations);
	return shell("rm -r %s", dir);
}
