/*
 * qcow2_random [SEED [OPERATIONS [MIX [COUNT]]]]: random operations on qcow2 images of all mixes of features, by us and by
 * qemu-io in turn, held against a model in memory.  After each round qemu-img check must be content and qemu-img
 * convert must see the model's bytes.  With every other seed QEMU does the same sequence on an image of its own, and both
 * must compare equal.  Without MIX: all that have names, OPERATIONS each, and some that have none; "random": COUNT of
 * the latter.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "host/loop.h"
#include "qcow2_random.h"

#define BATCH 12u

uint64_t below(uint64_t n)
{
	return ((uint64_t)random() << 31 | (uint64_t)random()) % n;
}

void fill(uint8_t *p, size_t len, bool packs)
{
	uint64_t x = below(1ull << 60) | 1;

	if (packs) {
		memset(p, (int)x, len);
		for (size_t i = 0; i < len; i += 512)
			memcpy(p + i, &x, 8), x += 3;
		return;
	}
	for (size_t i = 0; i + 8 <= len; i += 8) {
		x ^= x << 13, x ^= x >> 7, x ^= x << 17;
		memcpy(p + i, &x, 8);
	}
}

static void pick(struct state *s, uint64_t *offset, uint64_t *len)
{
	uint64_t most = below(8) ? 64 : below(4) ? 600 : 6000, cluster = block_cluster(s->d.b);

	*offset = below(s->size / 512) * 512;
	*len = (1 + below(most)) * 512;
	if (!below(4)) {
		*offset -= *offset % cluster;
		*len += cluster - *len % cluster;
	}
	if (*len > s->size - *offset)
		*len = s->size - *offset;
}

/* --- operations of ours, several at a time where they do not overlap --- */

struct op {
	int kind;
	uint64_t offset, len;
	struct iovec iov[3];
	int n;
	uint8_t *buf;
};

static void cut3(struct op *o)
{
	size_t a = below(o->len / 512 + 1) * 512, b = below((o->len - a) / 512 + 1) * 512;
	size_t part[3] = { a, b, o->len - a - b }, at = 0;

	o->n = 0;
	for (unsigned i = 0; i < 3; i++) {
		if (part[i])
			o->iov[o->n++] = (struct iovec){ o->buf + at, part[i] };
		at += part[i];
	}
}

static void start(struct state *s, struct op *o)
{
	s->d.pending++;
	switch (o->kind) {
	case 0: block_writev(s->d.b, o->offset, o->iov, o->n, disk_done, &s->d); break;
	case 1: block_readv(s->d.b, o->offset, o->iov, o->n, disk_done, &s->d); break;
	case 2:
	case 3: block_write_zeroes(s->d.b, o->offset, o->len, o->kind == 3, disk_done, &s->d); break;
	case 4: block_discard(s->d.b, o->offset, o->len, disk_done, &s->d); break;
	}
}

/* A discarded sector is what it was, or zeroes.  QEMU's choice may be another: where all is zeroes, its twin is told to. */
static void after_discard(struct state *s, const struct op *o)
{
	static const uint8_t zero[512];

	if (disk_read(&s->d, o->offset, s->buf, o->len))
		die("read after discard");
	if (s->buf[0] == 0 && !memcmp(s->buf, s->buf + 1, o->len - 1))
		twin_zero(s, o->offset, o->len, true);
	else
		twin_write(s, o->offset, s->buf, o->len, false);
	for (uint64_t i = 0; i < o->len; i += 512) {
		if (!memcmp(s->buf + i, zero, 512))
			memset(s->model + o->offset + i, 0, 512);
		else if (memcmp(s->buf + i, s->model + o->offset + i, 512))
			die("discard at %#lx changed the data", o->offset + i);
	}
}

static void finish(struct state *s, struct op *o)
{
	switch (o->kind) {
	case 0:
		memcpy(s->model + o->offset, o->buf, o->len);
		twin_write(s, o->offset, o->buf, o->len, false);
		break;
	case 1:
		if (memcmp(o->buf, s->model + o->offset, o->len)) {
			uint64_t i = 0;

			while (o->buf[i] == s->model[o->offset + i])
				i++;
			die("operation %u: reading %#lx+%#lx: wrong from %#lx on", s->op, o->offset, o->len,
			    o->offset + i);
		}
		break;
	case 2:
	case 3:
		memset(s->model + o->offset, 0, o->len);
		twin_zero(s, o->offset, o->len, o->kind == 3);
		break;
	case 4: after_discard(s, o); break;
	}
	free(o->buf);
}

static bool overlaps(const struct op *o, unsigned n, uint64_t offset, uint64_t len)
{
	for (unsigned i = 0; i < n; i++)
		if (offset < o[i].offset + o[i].len && o[i].offset < offset + len)
			return true;
	return false;
}

static void batch(struct state *s)
{
	struct op o[BATCH];
	unsigned n = 0;
	int ret;

	block_plug(s->d.b);
	for (unsigned tries = 0; tries < BATCH; tries++) {
		uint64_t offset, len;

		pick(s, &offset, &len);
		if (overlaps(o, n, offset, len))
			continue;
		o[n] = (struct op){ (int)below(10), offset, len, .buf = malloc(len) };
		o[n].kind = o[n].kind < 5 ? 0 : o[n].kind < 7 ? 1 : o[n].kind - 5;
		fill(o[n].buf, len, below(2));
		cut3(&o[n]);
		n++;
	}
	for (unsigned i = 0; i < n; i++)
		start(s, &o[i]);
	block_unplug(s->d.b);
	if (!below(3)) {
		s->d.pending++;
		block_flush(s->d.b, disk_done, &s->d);
	}
	ret = disk_wait(&s->d);
	if (ret)
		die("operation %u: %s", s->op, strerror(-ret));
	for (unsigned i = 0; i < n; i++)
		finish(s, &o[i]);
	s->op += n;
}

static void compress(struct state *s)
{
	uint64_t cluster = block_cluster(s->d.b), offset = below(s->size / 512) * 512 / cluster * cluster;
	uint64_t len = s->size - offset < cluster ? s->size - offset : cluster;
	int ret;

	fill(s->buf, len, below(4));
	ret = disk_compress(&s->d, offset, s->buf, len);
	if (ret)
		die("compressed write at %#lx: %s", offset, strerror(-ret));
	memcpy(s->model + offset, s->buf, len);
	twin_write(s, offset, s->buf, len, true);
	s->op++;
}

static void snapshot(struct state *s)
{
	unsigned i = (unsigned)below(SNAPSHOTS);
	struct error e = { 0 };
	char name[16], opts[256];
	int ret, verb = 'c';

	snprintf(name, sizeof(name), "snap%u", i);
	if (!s->saved[i]) {
		ret = block_snapshot_create(s->d.b, name, &e);
		s->saved[i] = malloc(s->capacity);
		memcpy(s->saved[i], s->model, s->capacity);
		s->saved_size[i] = s->size;
	} else if (below(2)) {
		verb = 'a';
		ret = block_snapshot_apply(s->d.b, name, &e);
		memcpy(s->model, s->saved[i], s->capacity);
		s->size = s->saved_size[i];
	} else {
		verb = 'd';
		ret = block_snapshot_delete(s->d.b, name, &e);
		free(s->saved[i]);
		s->saved[i] = NULL;
	}
	if (ret)
		die("snapshot: %s: %s", e.what, e.why);
	twin_command(s, "qemu-img snapshot -q -%c %s %s", verb, name, image(s, "twin.qcow2", opts));
	if (s->size != block_size(s->d.b))
		die("a snapshot changed the size to %lu", block_size(s->d.b));
	s->op++;
}

/* It does not resize images of version 2 with snapshots, nor, at times, with a backing file. */
static bool qemu_keeps_size(const struct state *s)
{
	return mix_old(s->mix) && (*s->base || s->saved[0] || s->saved[1] || s->saved[2]);
}

static void resize(struct state *s)
{
	uint64_t size = s->size + (below(512 * 1024) & ~511ull);
	struct error e = { 0 };
	char opts[256];

	if (below(2) && s->size > 1 * MIB)
		size = s->size - below(256 * 1024) / 512 * 512;
	if (size > s->capacity || (s->twin.on && qemu_keeps_size(s)))
		return;
	if (size < s->size)
		memset(s->model + size, 0, s->size - size);
	if (block_resize(s->d.b, size, BLOCK_SHRINK, &e))
		die("resize: %s: %s", e.what, e.why);
	if (size < s->size)	/* QEMU leaves what it cuts off within a cluster, and it is there again when the disk grows */
		twin_zero(s, size, s->size - size, false);
	twin_command(s, "qemu-img resize -q --shrink %s %lu", image(s, "twin.qcow2", opts), size);
	s->size = size;
	s->op++;
}

/* --- QEMU's turn, on the closed image --- */

static void compare_by_qemu(struct state *s)
{
	struct stat st;
	char opts[256];
	int fd;

	image(s, "image.qcow2", opts);
	if (shell("qemu-img check %s", opts))
		die("seed: operation %u: qemu-img check", s->op);
	if (shell("qemu-img convert %s -O raw out.raw", opts))
		die("qemu-img convert");
	fd = open("out.raw", O_RDONLY);
	if (fd < 0 || fstat(fd, &st) || (uint64_t)st.st_size != s->size || read(fd, s->buf, s->size) != (ssize_t)s->size)
		die("out.raw has another size");
	close(fd);
	for (uint64_t i = 0; i < s->size; i++)
		if (s->buf[i] != s->model[i])
			die("operation %u: QEMU sees other data at %#lx", s->op, i);
}

static void change_by_qemu(struct state *s)
{
	char command[1500] = "", opts[256];
	bool zeroes;

	for (unsigned i = 0; i < 6; i++) {
		uint64_t offset = below(s->size / 512) * 512, len = (1 + below(300)) * 512;
		unsigned pattern = (unsigned)below(256);

		len = len < s->size - offset ? len : s->size - offset;
		zeroes = !below(4);
		if (zeroes)
			snprintf(command + strlen(command), 100, " -c 'write -z %s %lu %lu'", below(2) ? "-u" : "",
				 offset, len);
		else
			snprintf(command + strlen(command), 100, " -c 'write -P %u %lu %lu'", pattern, offset, len);
		memset(s->model + offset, zeroes ? 0 : (int)pattern, len);
		if (zeroes)
			twin_zero(s, offset, len, false);
		else
			twin_io(s, "write -q -P %u %lu %lu", pattern, offset, len);
	}
	if (shell("qemu-io -d unmap %s %s", command, image(s, "image.qcow2", opts)))
		die("qemu-io");
	s->op += 6;
}

/* --- rounds --- */

static void own_check(struct state *s)
{
	struct block_check c = { 0 };
	struct error e = { 0 };

	if (block_check(s->d.b, 0, &c, &e))
		die("check: %s: %s", e.what, e.why);
	if (c.corruptions || c.leaks)
		die("operation %u: our check finds %lu errors, %lu leaks", s->op, c.corruptions, c.leaks);
}

struct block_options options(const struct state *s)
{
	return (struct block_options){ .format = "qcow2", .flags = below(3) ? 0 : BLOCK_NO_IO_URING,
				       .secret_file = s->mix->luks ? "key" : NULL };
}

void reopen(struct state *s)
{
	struct block_options o = options(s);

	disk_open(&s->d, "image.qcow2", &o);
	if (block_size(s->d.b) != s->size)
		die("the size is %lu, not %lu", block_size(s->d.b), s->size);
}

static void make_by_qemu(struct state *s)
{
	char backing[80] = "";

	if (*s->base)
		snprintf(backing, sizeof(backing), "-b %s -F %s", s->base, s->base_format);
	if (shell("qemu-img create -f qcow2 %s -o %s %s image.qcow2 %lu",
		  s->mix->luks ? "--object secret,id=k,file=key" : "", s->mix->qemu, backing, s->size))
		die("qemu-img create");
}

static void make(struct state *s)
{
	struct block_create c = s->mix->c;

	if (shell("rm -f *; printf secret >key"))
		die("an empty folder");
	base_make(s);
	c.size_bytes = s->size;
	c.backing_path = *s->base ? s->base : NULL;
	c.backing_format = *s->base ? s->base_format : NULL;
	c.secret_file = s->mix->luks ? "key" : NULL;
	c.kdf_ms = 10;
	if (s->mix->qemu)
		make_by_qemu(s);
	else
		disk_create(&s->d, "image.qcow2", "qcow2", &c);
	twin_make(s);
}

static void round_do(struct state *s)
{
	reopen(s);
	for (unsigned i = 0; i < s->batches; i++) {
		if (s->mix->bitmap && !below(s->marked ? 16 : 2))
			bitmap_begin(s);
		batch(s);
		if (s->mix->compress && !below(2))
			compress(s);
		if (s->mix->snapshots && !below(4))
			snapshot(s);
		if (!below(8) && !s->mix->c.data_path && !(s->mix->qemu && strstr(s->mix->qemu, "data_file")))
			resize(s);
	}
	own_check(s);
	bitmap_check(s);
	disk_close(&s->d);
	compare_by_qemu(s);
	twin_compare(s);
	change_by_qemu(s);
	chain_change(s);
}

static unsigned long run_mix(const struct mix *m, unsigned long seed, unsigned operations)
{
	struct state s = { .mix = m, .size = m->size, .capacity = m->size + MIB, .twin.on = seed % 2,
			   .batches = operations < 1000 ? 12 : 40 };

	printf("%s, seed %lu: ", m->name, seed);
	fflush(stdout);
	s.model = calloc(1, s.capacity);
	s.buf = malloc(s.capacity);
	make(&s);
	while (s.op < operations)
		round_do(&s);
	compare_by_qemu(&s);
	twin_compare(&s);
	printf("%u operations%s\n", s.op, s.twin.on ? ", and by QEMU" : "");
	for (unsigned i = 0; i < SNAPSHOTS; i++)
		free(s.saved[i]);
	free(s.marked);
	free(s.model);
	free(s.buf);
	loop_free(s.d.loop);
	return s.op;
}

static unsigned long run_random(unsigned long seed, unsigned operations, unsigned count)
{
	unsigned long done = 0;

	for (unsigned i = 0; i < count; i++) {
		struct mix m;
		char text[256];

		srandom((unsigned)(seed + i));
		mix_random(&m, text);
		done += run_mix(&m, seed + i, operations);
	}
	return done;
}

int main(int argc, char **argv)
{
	unsigned long seed = argc > 1 ? strtoul(argv[1], NULL, 10) : 1, done = 0;
	unsigned operations = argc > 2 ? (unsigned)strtoul(argv[2], NULL, 10) : 400;
	unsigned count = argc > 4 ? (unsigned)strtoul(argv[4], NULL, 10) : 6;
	char dir[64];

	if (!have_qemu()) {
		puts("qemu-img is not installed");
		return 77;
	}
	go_to_folder(dir);
	for (unsigned i = 0; i < nmixes; i++) {
		srandom((unsigned)seed);
		if (argc < 4 || !strcmp(argv[3], mixes[i].name))
			done += run_mix(&mixes[i], seed + i, operations);
	}
	if (argc < 4 || !strcmp(argv[3], "random"))
		done += run_random(seed, operations, count);
	printf("done %lu operations\n", done);
	return shell("rm -r %s", dir);
}
