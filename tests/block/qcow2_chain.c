/* Backing files that change, and bitmaps. */
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "block/job.h"
#include "block/node.h"
#include "block/qcow2/bitmap.h"
#include "qcow2_random.h"

/* --- backing files --- */

static void some_bytes(uint8_t *p, uint64_t size)
{
	fill(p, size, false);
	for (unsigned i = 0; i < 8; i++) {
		uint64_t at = below(size / SECTOR) * SECTOR, len = below(200) * SECTOR;

		memset(p + at, 0, len < size - at ? len : size - at);
	}
}

/* One more, raw or qcow2, alone or on another; p gets what it reads as. */
static void another_base(struct state *s, uint8_t *p, uint64_t size)
{
	bool qcow2 = below(2);

	snprintf(s->base, sizeof(s->base), "base%u.%s", ++s->bases, qcow2 ? "qcow2" : "raw");
	strcpy(s->base_format, qcow2 ? "qcow2" : "raw");
	some_bytes(p, size);
	file_write("some.raw", p, size);
	if (!qcow2) {
		file_write(s->base, p, size);
	} else if (below(2)) {
		if (shell("qemu-img convert -f raw -O qcow2 -c some.raw %s", s->base))
			die("convert base");
	} else {
		memset(p, 0x55, SECTOR * 9);
		if (shell("mv some.raw below%u.raw; qemu-img create -f qcow2 -b below%u.raw -F raw %s; "
			  "qemu-io -f qcow2 -c 'write -P 0x55 0 %u' %s", s->bases, s->bases, s->base, SECTOR * 9, s->base))
			die("a chain");
	}
}

void base_make(struct state *s)
{
	if (s->mix->backing)
		another_base(s, s->model, s->size / 2 / SECTOR * SECTOR + SECTOR * 7);
}

/* --- commit and rebase, of an image that is closed; the disk reads as before --- */

struct chain { struct block *top, *base; struct block_job job; struct error e; };

static int commit_main(void *opaque)
{
	struct chain *c = opaque;

	return job_commit(&c->job, c->top, c->base, &c->e);
}

static int rebase_main(void *opaque)
{
	struct chain *c = opaque;

	return job_rebase(&c->job, c->top, c->base, &c->e);
}

static struct block *open_one(struct state *s, const char *path, const struct block_options *o)
{
	struct disk d = { .loop = s->d.loop };

	disk_open(&d, path, o);
	return d.b;
}

static void commit_ours(struct state *s)
{
	struct block_options o = options(s);
	struct chain c = { .job.parallel = 1 + (unsigned)below(8) };
	int ret;

	o.flags |= BLOCK_NO_BACKING;
	c.top = open_one(s, "image.qcow2", &o);
	c.base = open_one(s, s->base, &(struct block_options){ .format = s->base_format });
	ret = block_run(s->d.loop, commit_main, &c);
	if (ret || block_close(c.top) || block_close(c.base))
		die("commit: %s: %s", c.e.what, c.e.why);
}

static void commit(struct state *s)
{
	char opts[256];

	if (below(2))
		commit_ours(s);
	else if (shell("qemu-img commit %s", image(s, "image.qcow2", opts)))
		die("qemu-img commit");
	twin_command(s, "qemu-img commit %s", image(s, "twin.qcow2", opts));
}

static void rebase_ours(struct state *s)
{
	struct block_options o = options(s);
	struct chain c = { .job.parallel = 1 + (unsigned)below(8) };
	int ret;

	c.top = open_one(s, "image.qcow2", &o);
	if (*s->base)
		c.base = open_one(s, s->base, &(struct block_options){ .format = s->base_format, .flags = BLOCK_READONLY });
	ret = block_run(s->d.loop, rebase_main, &c);
	if (!ret)
		ret = block_set_backing(c.top, *s->base ? s->base : NULL, *s->base ? s->base_format : NULL, &c.e);
	if (ret || block_close(c.top) || block_close(c.base))
		die("rebase: %s: %s", c.e.what, c.e.why);
}

static void rebase(struct state *s)
{
	char opts[256], onto[80] = "-b ''", twin_onto[80] = "-b ''";
	/* QEMU finds no backing file by a relative name for an image that is given by options, as encrypted ones are. */
	bool alone = !*s->base && mix_old(s->mix);	/* QEMU 10.0 loses zeroes then: they show the new backing file */

	if (alone && s->twin.on)
		return;
	*s->base = 0;
	if (below(4) && !(s->mix->luks && s->twin.on)) {
		another_base(s, s->buf, (SECTOR + below(s->size / 2) + s->size / 2) / SECTOR * SECTOR);
		snprintf(onto, sizeof(onto), "-b %s -F %s", s->base, s->base_format);
		snprintf(twin_onto, sizeof(twin_onto), "-b twin-%s -F %s", s->base, s->base_format);
		twin_command(s, "cp %s twin-%s", s->base, s->base);
	}
	if (alone || (s->mix->luks && *s->base) || below(2))
		rebase_ours(s);
	else if (shell("qemu-img rebase %s %s", onto, image(s, "image.qcow2", opts)))
		die("qemu-img rebase");
	twin_command(s, "qemu-img rebase %s %s", twin_onto, image(s, "twin.qcow2", opts));
}

/* A snapshot reads what it does not hold itself from the backing file, so there may be none. */
void chain_change(struct state *s)
{
	for (unsigned i = 0; i < SNAPSHOTS; i++)
		if (s->saved[i])
			return;
	if (!s->mix->chain || below(2))
		return;
	if (*s->base && below(2))
		commit(s);
	else
		rebase(s);
	s->op++;
}

/* --- bitmaps --- */

void bitmap_begin(struct state *s)
{
	struct error e = { 0 };
	int ret;

	if (s->marked)
		ret = block_bitmap_clear(s->d.b, "b", &e);
	else
		ret = block_bitmap_add(s->d.b, "b", 512u << below(12), &e);
	if (ret)
		die("bitmap: %s: %s", e.what, e.why);
	if (!s->marked)
		s->marked = malloc(s->capacity);
	memcpy(s->marked, s->model, s->capacity);
	s->op++;
}

void bitmap_check(struct state *s)
{
	const struct qcow2 *q = block_root(s->d.b)->impl;
	const struct bitmap *m = q->nbitmaps == 1 ? q->bitmap[0] : NULL;

	if (!s->marked)
		return;
	if (!m || m->lost)
		die("operation %u: the bitmap is lost", s->op);
	for (uint64_t at = 0; at < s->size; at += SECTOR)
		if (memcmp(s->model + at, s->marked + at, SECTOR) && !dirty_all_set(&m->bits, at, SECTOR))
			die("operation %u: %#lx has changed, and the bitmap does not say so", s->op, at);
}
