/*
 * qcow2_crash [SEED [OPERATIONS [MIX]]]: cuts the power (record.h) while a guest writes, and its disk gets snapshots,
 * other sizes and other passphrases.
 *
 * After each cut the image must open and be without errors: leaks are allowed, and what has the dirty bit set may be
 * repaired by the opening.  It must hold for each sector the value that the last finished flush of the guest covers, or
 * a later one.  A dirty bitmap must say of every sector that holds another value than at the start that it may have
 * changed.  Snapshots that are there must hold what they were taken of, also after the disk is written to.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "block/qcow2/bitmap.h"
#include "host/loop.h"
#include "record.h"

#define QEMU_EVERY 97u
#define SNAPSHOTS 64u

/* --- mixes --- */

struct mix {
	const char *name;
	struct block_create c;
	bool backing, snapshot, resize;
	uint32_t bitmap;		/* granularity; 0: none */
	const char *format;		/* NULL: qcow2 */
};

static const struct mix mixes[] = {
	{ "512", { .cluster_bytes = 512 }, false, false },
	{ "512-64bit", { .cluster_bytes = 512, .refcount_bits = 64 }, true, false },
	{ "4k", { .cluster_bytes = 4096 }, true, false },
	{ "64k", { 0 }, false, false },
	{ "v2", { .version = 2, .cluster_bytes = 1024 }, false, false },
	{ "v2-snapshot", { .version = 2, .cluster_bytes = 1024 }, true, true },
	{ "extended", { .extended_l2 = true, .cluster_bytes = 16384 }, true, false },
	{ "lazy", { .lazy_refcounts = true, .cluster_bytes = 2048 }, false, false },
	{ "snapshot", { .cluster_bytes = 4096 }, false, true },
	{ "snapshot-lazy", { .lazy_refcounts = true, .cluster_bytes = 512 }, true, true },
	{ "bitmap", { .cluster_bytes = 4096 }, true, false, false, 512 },
	{ "bitmap-512", { .cluster_bytes = 512 }, false, true, false, 1024 },
	{ "bitmap-lazy", { .lazy_refcounts = true }, false, false, false, 4096 },
	{ "resize", { .cluster_bytes = 512 }, false, false, true },
	{ "resize-backing", { .cluster_bytes = 1024, .lazy_refcounts = true }, true, false, true },
	{ "resize-bitmap", { .cluster_bytes = 512, .extended_l2 = false }, false, true, true, 512 },
	{ "luks", { .encrypt = BLOCK_ENCRYPT_LUKS1, .cluster_bytes = 4096 }, false, false },
	{ "luks1-raw", { .encrypt = BLOCK_ENCRYPT_LUKS1 }, false, false, false, 0, "luks" },
	{ "luks2-raw", { .encrypt = BLOCK_ENCRYPT_LUKS2 }, false, false, false, 0, "luks" },
};

/* Something that happened once, beside the guest's writes, from one event to another. */
enum kind { SIZE, KEY, MADE, GONE };
struct change {
	enum kind kind;
	unsigned start, end;
	uint64_t value;			/* the new size; the new key's number; the snapshot's */
};

struct crash {
	const struct mix *m;
	struct disk d;
	struct record r;
	uint8_t before[DISK_BYTES];
	uint8_t *saved[SNAPSHOTS];	/* what each was taken of */
	uint64_t saved_size[SNAPSHOTS];
	unsigned nsaved, key;
	uint64_t size;			/* at the start */
	struct change change[256];
	unsigned nchanges;
	uint64_t tag;
};

static const char *key_file(uint64_t key)
{
	return key ? "key1" : "key0";
}

static struct block_options options(const struct crash *x, unsigned flags)
{
	return (struct block_options){ .format = x->m->format ? x->m->format : "qcow2", .flags = flags,
				       .secret_file = x->m->c.encrypt ? key_file(x->key) : NULL };
}

/* --- beside the guest's writes --- */

static struct change *change_start(struct crash *x, enum kind kind, uint64_t value)
{
	struct change *c = &x->change[x->nchanges++];

	if (x->nchanges == sizeof(x->change) / sizeof(x->change[0]))
		die("too many changes");
	*c = (struct change){ .kind = kind, .start = x->r.nev, .end = UINT32_MAX, .value = value };
	return c;
}

static void snapshot_take(struct crash *x)
{
	struct error e = { 0 };
	struct change *c;
	char name[16];

	if (x->nsaved == SNAPSHOTS)
		return;
	if (x->nsaved) {	/* one at a time */
		snprintf(name, sizeof(name), "s%u", x->nsaved - 1);
		c = change_start(x, GONE, x->nsaved - 1);
		if (block_snapshot_delete(x->d.b, name, &e))
			die("snapshot: %s", e.why);
		c->end = x->r.nev;
	}
	x->saved_size[x->nsaved] = x->r.size;
	x->saved[x->nsaved] = calloc(1, DISK_BYTES);
	if (disk_read(&x->d, 0, x->saved[x->nsaved], x->r.size))
		die("read");
	c = change_start(x, MADE, x->nsaved);
	snprintf(name, sizeof(name), "s%u", x->nsaved++);
	if (block_snapshot_create(x->d.b, name, &e))
		die("snapshot: %s", e.why);
	c->end = x->r.nev;
}

/* What is cut off is zeroes from then on. */
static void resize(struct crash *x)
{
	uint64_t size = (DISK_BYTES / 4 + below(DISK_BYTES * 3 / 4)) / SECTOR * SECTOR;
	struct change *c = change_start(x, SIZE, size);
	struct error e = { 0 };
	unsigned from = x->r.nev;

	for (uint64_t i = size / SECTOR; i < x->r.size / SECTOR; i++)
		version_add(&x->r, i, 0);
	if (block_resize(x->d.b, size, BLOCK_SHRINK, &e))
		die("resize: %s", e.why);
	c->end = x->r.nev;
	for (uint64_t i = size / SECTOR; i < x->r.size / SECTOR; i++)
		for (struct version *v = x->r.sector[i]; v; v = v->next)
			if (v->submitted == from && !v->completed)
				v->completed = c->end;
	x->r.size = size;
}

static void key_change(struct crash *x)
{
	struct block_key k = { BLOCK_KEY_CHANGE, key_file(x->key), key_file(!x->key), 10 };
	struct change *c = change_start(x, KEY, !x->key);
	struct error e = { 0 };

	if (block_key_change(x->d.b, &k, &e))
		die("key: %s", e.why);
	c->end = x->r.nev;
	x->key = !x->key;
}

/* --- what a cut left --- */

/* The last that had ended, or one that was being made. */
static bool value_good(const struct crash *x, const struct cut *c, enum kind kind, uint64_t first, uint64_t got)
{
	uint64_t value = first;

	for (unsigned i = 0; i < x->nchanges && x->change[i].start < c->at; i++) {
		if (x->change[i].kind != kind)
			continue;
		if (x->change[i].end > c->at && x->change[i].value == got)
			return true;
		if (x->change[i].end <= c->at)
			value = x->change[i].value;
	}
	return value == got;
}

static void bitmap_covers(const struct crash *x, struct disk *d, const uint8_t *disk, const struct cut *c)
{
	const struct qcow2 *q = block_root(d->b)->impl;
	const struct bitmap *m = q->nbitmaps == 1 ? q->bitmap[0] : NULL;

	if (!m)
		die("cut %u: the bitmap is lost", c->at);
	for (unsigned i = 0; i < block_size(d->b) / SECTOR; i++)
		if (memcmp(disk + i * SECTOR, x->before + i * SECTOR, SECTOR) && !dirty_all_set(&m->bits, i * SECTOR, SECTOR))
			die("cut %u: sector %u has changed, and the bitmap does not say so", c->at, i);
}

static bool has_snapshot(struct disk *d, unsigned i)
{
	struct block_snapshot *list;
	struct error e = { 0 };
	char name[16];
	bool there = false;
	unsigned n;

	snprintf(name, sizeof(name), "s%u", i);
	if (block_snapshot_list(d->b, &list, &n, &e))
		die("snapshots: %s", e.why);
	for (unsigned k = 0; k < n; k++)
		there |= !strcmp(list[k].name, name);
	free(list);
	return there;
}

/* Overwrites some of the disk, goes back to the snapshot, and looks. */
static void snapshot_good(const struct crash *x, struct disk *d, const struct cut *c, unsigned i)
{
	static uint8_t bytes[DISK_BYTES];
	struct error e = { 0 };
	char name[16];

	for (unsigned k = 0; k < 12; k++) {
		memset(bytes, 0xaa, 8192);
		if (disk_write(d, below(block_size(d->b) / 8192) * 8192, bytes, 8192))
			die("cut %u: writing", c->at);
	}
	snprintf(name, sizeof(name), "s%u", i);
	if (block_snapshot_apply(d->b, name, &e) || block_size(d->b) != x->saved_size[i] ||
	    disk_read(d, 0, bytes, x->saved_size[i]))
		die("cut %u: snapshot %u: %s", c->at, i, e.why);
	if (memcmp(bytes, x->saved[i], x->saved_size[i]))
		die("cut %u: snapshot %u is not what it was taken of", c->at, i);
}

static void snapshots_good(const struct crash *x, struct disk *d, const struct cut *c)
{
	for (unsigned i = 0; i < x->nsaved; i++) {
		bool made = false, may_go = false, there = has_snapshot(d, i);

		for (unsigned k = 0; k < x->nchanges; k++) {
			const struct change *g = &x->change[k];

			made |= g->kind == MADE && g->value == i && g->end <= c->at;
			may_go |= g->kind == GONE && g->value == i && g->start < c->at;
		}
		if (made && !may_go && !there)
			die("cut %u: snapshot %u is lost", c->at, i);
		if (there && c->n % 7 == 0) {
			snapshot_good(x, d, c, i);
			return;
		}
	}
}

static void open_cut(const struct crash *x, struct disk *d, const struct cut *c, unsigned flags)
{
	const char *path = x->m->format ? "cut/image.luks" : "cut/image.qcow2";
	struct block_options o = options(x, flags);
	struct error e = { 0 };

	if (!x->m->c.encrypt) {
		disk_open(d, path, &o);
		return;
	}
	d->loop = d->loop ? d->loop : loop_new();
	for (uint64_t key = 0; key < 2; key++) {
		o.secret_file = key_file(key);
		if (value_good(x, c, KEY, 0, key) && !block_open_with(&d->b, d->loop, path, &o, &e))
			return;
	}
	die("cut %u: no passphrase opens it: %s", c->at, e.why);
}

/* Version 2 has no dirty bit: what the middle of a snapshot leaves is to be repaired by hand. */
static bool torn(const struct crash *x)
{
	return x->m->c.version == 2 && x->m->snapshot;
}

/* false: it has to be repaired. */
static bool errors_good(const struct crash *x, struct disk *d, const struct cut *c)
{
	struct block_check check = { 0 };
	struct error e = { 0 };
	struct block_info info;

	block_info(d->b, 0, &info);
	if (block_check(d->b, 0, &check, &e))
		die("cut %u: %s", c->at, e.why);
	if (check.corruptions && !info.unclean && !torn(x))
		die("cut %u: %lu errors", c->at, check.corruptions);
	return !info.unclean && !check.corruptions;
}

static void qemu_good(const struct crash *x, const struct cut *c, bool repair)
{
	int ret;

	if ((repair && !torn(x)) || x->m->c.encrypt || c->n % QEMU_EVERY)
		return;
	ret = system(repair ? "qemu-img check -r all -f qcow2 cut/image.qcow2 >shell.out 2>&1"
			    : "qemu-img check -f qcow2 cut/image.qcow2 >shell.out 2>&1");
	if (ret && ret >> 8 != 3 && ret >> 8 != 127)
		die("cut %u: qemu-img check says %d", c->at, ret >> 8);
}

static void check_again(struct disk *d, const struct cut *c, bool by_hand)
{
	struct block_check check = { 0 };
	struct error e = { 0 };

	if (by_hand && block_check(d->b, BLOCK_REPAIR_LEAKS | BLOCK_REPAIR_ERRORS, &check, &e))
		die("cut %u: %s", c->at, e.why);
	check = (struct block_check){ 0 };
	if (block_check(d->b, 0, &check, &e) || check.corruptions)
		die("cut %u: errors after the repair", c->at);
}

static void check_cut(void *opaque, const struct cut *c)
{
	static uint8_t bytes[DISK_BYTES];
	const struct crash *x = opaque;
	struct disk d = { 0 };
	bool repair = false;

	if (x->m->c.encrypt && c->n % 4)	/* passphrases take their time */
		return;
	if (!x->m->format) {
		open_cut(x, &d, c, BLOCK_READONLY);
		repair = !errors_good(x, &d, c);
		disk_close(&d);
		qemu_good(x, c, repair);
	}
	open_cut(x, &d, c, 0);
	if (x->m->resize && !value_good(x, c, SIZE, x->size, block_size(d.b)))
		die("cut %u: its size is %lu", c->at, block_size(d.b));
	if (disk_read(&d, 0, bytes, block_size(d.b)))
		die("cut %u: reading", c->at);
	cut_content(c, bytes, x->before, block_size(d.b));
	if (x->m->bitmap)
		bitmap_covers(x, &d, bytes, c);
	if (x->m->snapshot && c->n % 2)
		snapshots_good(x, &d, c);
	if (repair)
		check_again(&d, c, torn(x));
	if (x->m->snapshot && !(c->n % 2))
		snapshots_good(x, &d, c);
	disk_close(&d);
	loop_free(d.loop);
}

/* --- rounds --- */

/* The clean start of a round: nothing has changed. */
static void bitmap_reset(struct crash *x)
{
	struct error e = { 0 };
	struct block_options o = options(x, 0);

	disk_open(&x->d, "image.qcow2", &o);
	block_bitmap_remove(x->d.b, "b", &e);
	if (block_bitmap_add(x->d.b, "b", x->m->bitmap, &e))
		die("%s: %s", e.what, e.why);
	disk_close(&x->d);
}

static void make(struct crash *x)
{
	const struct mix *m = x->m;
	struct block_create c = m->c;
	static uint8_t bytes[DISK_BYTES / 2];

	if (shell("rm -rf image.* cut; mkdir cut; printf first >key0; printf second >key1"))
		die("an empty folder");
	for (unsigned i = 0; i < sizeof(bytes); i++)
		bytes[i] = (uint8_t)(i >> 8);
	file_write("cut/base.raw", bytes, sizeof(bytes));
	file_write("base.raw", bytes, sizeof(bytes));
	c.size_bytes = m->resize ? DISK_BYTES / 2 : DISK_BYTES;
	c.backing_path = m->backing ? "base.raw" : NULL;
	c.backing_format = m->backing ? "raw" : NULL;
	c.secret_file = m->c.encrypt ? "key0" : NULL;
	c.kdf_ms = 10;
	disk_create(&x->d, m->format ? "image.luks" : "image.qcow2", m->format ? m->format : "qcow2", &c);
}

static void start(struct crash *x)
{
	const char *path = x->m->format ? "image.luks" : "image.qcow2";
	struct block_options o = options(x, BLOCK_NO_IO_URING);

	x->r = (struct record){ 0 };
	disk_open(&x->d, path, &o);
	record_add(&x->r, block_root(x->d.b), path);
	x->r.size = x->size = block_size(x->d.b);
	memset(x->before, 0, sizeof(x->before));
	if (disk_read(&x->d, 0, x->before, x->r.size))
		die("read");
}

static void end(struct crash *x)
{
	x->nchanges = 0;
	record_fini(&x->r);
}

static void one_round(struct crash *x, unsigned operations)
{
	if (x->m->bitmap)
		bitmap_reset(x);
	start(x);
	for (unsigned i = 0; i < operations; i += 8) {
		guest_batch(&x->d, &x->r, &x->tag);
		if (x->m->snapshot && !below(3) && disk_wait(&x->d) == 0)
			snapshot_take(x);
		else if (x->m->resize && !below(2) && disk_wait(&x->d) == 0)
			resize(x);
		else if (x->m->c.encrypt && !below(2) && disk_wait(&x->d) == 0)
			key_change(x);
	}
	disk_wait(&x->d);
	disk_close(&x->d);
}

/* Two rounds: on an empty image, and on one that has data already, which the second may not lose. */
static void run_mix(const struct mix *m, unsigned seed, unsigned operations)
{
	struct crash *x = calloc(1, sizeof(*x));
	unsigned n;

	printf("%s, seed %u: ", m->name, seed);
	fflush(stdout);
	srandom(seed);
	x->m = m;
	x->tag = 1ull << 40;
	make(x);
	one_round(x, m->c.encrypt ? operations / 4 : operations);
	n = record_cuts(&x->r, check_cut, x);
	if (!m->resize && !m->c.encrypt) {
		end(x);
		one_round(x, operations);
		n += record_cuts(&x->r, check_cut, x);
	}
	end(x);
	for (unsigned i = 0; i < x->nsaved; i++)
		free(x->saved[i]);
	loop_free(x->d.loop);
	free(x);
	printf("%u cuts\n", n);
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
