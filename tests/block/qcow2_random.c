/*
 * qcow2_random [SEED [OPERATIONS [MIX]]]: random operations on qcow2 images of all mixes of features, by us and by
 * qemu-io in turn, held against a model in memory.  After each round qemu-img check must be content and qemu-img
 * convert must see the model's bytes.  Without MIX: all of them, OPERATIONS each.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "disk.h"
#include "host/loop.h"

#define SNAPSHOTS 3u
#define BATCH 12u

struct mix {
	const char *name;
	struct block_create c;
	const char *qemu;		/* options: created by qemu-img */
	uint64_t size;
	bool snapshots, compress, backing;
};

#define MIB (1ull << 20)

static const struct mix mixes[] = {
	{ "default", { 0 }, NULL, 24 * MIB, true, true, false },
	{ "backing", { 0 }, NULL, 24 * MIB, true, true, true },
	{ "512", { .cluster_bytes = 512 }, NULL, 4 * MIB, true, true, true },
	{ "512-1bit", { .cluster_bytes = 512, .refcount_bits = 1 }, NULL, 4 * MIB, false, true, true },
	{ "512-64bit", { .cluster_bytes = 512, .refcount_bits = 64 }, NULL, 6 * MIB, true, true, false },
	{ "4k-2bit", { .cluster_bytes = 4096, .refcount_bits = 2 }, NULL, 8 * MIB, false, true, true },
	{ "4k-8bit", { .cluster_bytes = 4096, .refcount_bits = 8 }, NULL, 8 * MIB, true, false, true },
	{ "2m", { .cluster_bytes = 2 << 20 }, NULL, 64 * MIB, true, true, true },
	{ "v2", { .version = 2 }, NULL, 16 * MIB, true, true, false },
	{ "v2-backing", { .version = 2, .cluster_bytes = 4096 }, NULL, 8 * MIB, true, true, true },
	{ "extended", { .extended_l2 = true }, NULL, 24 * MIB, true, true, true },
	{ "extended-16k", { .extended_l2 = true, .cluster_bytes = 16384, .zstd = true }, NULL, 16 * MIB, true, true, true },
	{ "extended-plain", { .extended_l2 = true, .cluster_bytes = 32768 }, NULL, 16 * MIB, false, true, false },
	{ "zstd", { .zstd = true }, NULL, 24 * MIB, true, true, true },
	{ "lazy", { .lazy_refcounts = true, .cluster_bytes = 4096 }, NULL, 8 * MIB, true, true, true },
	{ "data-file", { .data_path = "image.data" }, NULL, 24 * MIB, false, false, false },
	{ "data-file-backing", { .data_path = "image.data", .cluster_bytes = 4096 }, NULL, 8 * MIB, false, false, true },
	{ "data-raw", { .data_path = "image.data", .data_raw = true }, NULL, 16 * MIB, false, false, false },
	{ "data-extended", { .data_path = "image.data", .extended_l2 = true }, NULL, 16 * MIB, false, false, true },
	{ "qemu-default", { 0 }, "compat=1.1", 24 * MIB, true, true, true },
	{ "qemu-v2", { 0 }, "compat=0.10", 16 * MIB, true, true, true },
	{ "qemu-meta", { 0 }, "preallocation=metadata", 16 * MIB, true, true, false },
	{ "qemu-extended", { 0 }, "extended_l2=on,cluster_size=128k", 24 * MIB, true, true, true },
	{ "qemu-extended-meta", { 0 }, "extended_l2=on,preallocation=metadata", 16 * MIB, true, true, false },
	{ "qemu-lazy", { 0 }, "lazy_refcounts=on,cluster_size=1k", 8 * MIB, true, true, true },
	{ "qemu-data", { 0 }, "data_file=image.data", 16 * MIB, false, false, true },
};

struct state {
	struct disk d;
	const struct mix *mix;
	uint64_t size, capacity;
	uint8_t *model, *saved[SNAPSHOTS], *buf;
	uint64_t saved_size[SNAPSHOTS];
	unsigned op;
};

static uint64_t below(uint64_t n)
{
	return ((uint64_t)random() << 31 | (uint64_t)random()) % n;
}

static void fill(uint8_t *p, size_t len, bool packs)
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

/* A discarded sector is what it was, or zeroes. */
static void after_discard(struct state *s, const struct op *o)
{
	static const uint8_t zero[512];

	if (disk_read(&s->d, o->offset, s->buf, o->len))
		die("read after discard");
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
	case 0: memcpy(s->model + o->offset, o->buf, o->len); break;
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
	case 3: memset(s->model + o->offset, 0, o->len); break;
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
	s->op++;
}

static void snapshot(struct state *s)
{
	unsigned i = (unsigned)below(SNAPSHOTS);
	struct error e = { 0 };
	char name[16];
	int ret;

	snprintf(name, sizeof(name), "snap%u", i);
	if (!s->saved[i]) {
		ret = block_snapshot_create(s->d.b, name, &e);
		s->saved[i] = malloc(s->capacity);
		memcpy(s->saved[i], s->model, s->capacity);
		s->saved_size[i] = s->size;
	} else if (below(2)) {
		ret = block_snapshot_apply(s->d.b, name, &e);
		memcpy(s->model, s->saved[i], s->capacity);
		s->size = s->saved_size[i];
	} else {
		ret = block_snapshot_delete(s->d.b, name, &e);
		free(s->saved[i]);
		s->saved[i] = NULL;
	}
	if (ret)
		die("snapshot: %s: %s", e.what, e.why);
	if (s->size != block_size(s->d.b))
		die("a snapshot changed the size to %lu", block_size(s->d.b));
	s->op++;
}

static void resize(struct state *s)
{
	uint64_t size = s->size + (below(512 * 1024) & ~511ull);
	struct error e = { 0 };

	if (below(2) && s->size > 1 * MIB)
		size = s->size - below(256 * 1024) / 512 * 512;
	if (size > s->capacity)
		return;
	if (size < s->size)
		memset(s->model + size, 0, s->size - size);
	if (block_resize(s->d.b, size, BLOCK_SHRINK, &e))
		die("resize: %s: %s", e.what, e.why);
	s->size = size;
	s->op++;
}

/* --- QEMU's turn, on the closed image --- */

static void compare_by_qemu(struct state *s)
{
	struct stat st;
	int fd;

	if (shell("qemu-img check -f qcow2 image.qcow2"))
		die("seed: operation %u: qemu-img check", s->op);
	if (shell("qemu-img convert -f qcow2 -O raw image.qcow2 out.raw"))
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
	char command[1500] = "qemu-io -f qcow2 -d unmap";
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
	}
	if (shell("%s image.qcow2", command))
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

static void reopen(struct state *s)
{
	struct block_options o = { .format = "qcow2", .flags = below(3) ? 0 : BLOCK_NO_IO_URING };

	disk_open(&s->d, "image.qcow2", &o);
	if (block_size(s->d.b) != s->size)
		die("the size is %lu, not %lu", block_size(s->d.b), s->size);
}

static void make_backing(struct state *s)
{
	uint64_t size = s->size / 2 + 512 * 7;
	int fd = open("base.raw", O_RDWR | O_CREAT | O_TRUNC, 0644);

	fill(s->model, size, false);
	for (unsigned i = 0; i < 8; i++) {
		uint64_t at = below(size / 512) * 512, len = below(200) * 512;

		memset(s->model + at, 0, len < size - at ? len : size - at);
	}
	if (write(fd, s->model, size) != (ssize_t)size)
		die("write base.raw");
	close(fd);
	if (random() & 1 && shell("qemu-img convert -f raw -O qcow2 -c base.raw base.qcow2"))
		die("convert base");
}

static void make(struct state *s)
{
	struct block_create c = s->mix->c;
	const char *base = "base.raw", *format = "raw";

	unlink("image.qcow2");
	unlink("image.data");
	unlink("base.qcow2");
	if (s->mix->backing)
		make_backing(s);
	if (s->mix->backing && !access("base.qcow2", R_OK)) {
		base = "base.qcow2";
		format = "qcow2";
	}
	if (s->mix->qemu) {
		char backing[64] = "";

		if (s->mix->backing)
			snprintf(backing, sizeof(backing), "-b %s -F %s", base, format);
		if (shell("qemu-img create -f qcow2 -o %s %s image.qcow2 %lu", s->mix->qemu, backing, s->size))
			die("qemu-img create");
		return;
	}
	c.size_bytes = s->size;
	c.backing_path = s->mix->backing ? base : NULL;
	c.backing_format = s->mix->backing ? format : NULL;
	disk_create(&s->d, "image.qcow2", "qcow2", &c);
}

static void round_do(struct state *s)
{
	reopen(s);
	for (unsigned i = 0; i < 12; i++) {
		batch(s);
		if (s->mix->compress && !below(2))
			compress(s);
		if (s->mix->snapshots && !below(4))
			snapshot(s);
		if (!below(8) && !s->mix->c.data_path && !(s->mix->qemu && strstr(s->mix->qemu, "data_file")))
			resize(s);
	}
	own_check(s);
	disk_close(&s->d);
	compare_by_qemu(s);
	change_by_qemu(s);
}

static void run_mix(const struct mix *m, unsigned long seed, unsigned operations)
{
	struct state s = { .mix = m, .size = m->size, .capacity = m->size + MIB };

	printf("%s, seed %lu\n", m->name, seed);
	fflush(stdout);
	srandom((unsigned)seed);
	s.model = calloc(1, s.capacity);
	s.buf = malloc(s.capacity);
	make(&s);
	while (s.op < operations)
		round_do(&s);
	compare_by_qemu(&s);
	for (unsigned i = 0; i < SNAPSHOTS; i++)
		free(s.saved[i]);
	free(s.model);
	free(s.buf);
	loop_free(s.d.loop);
}

int main(int argc, char **argv)
{
	unsigned long seed = argc > 1 ? strtoul(argv[1], NULL, 10) : 1;
	unsigned operations = argc > 2 ? (unsigned)strtoul(argv[2], NULL, 10) : 400;
	char dir[64];

	if (!have_qemu()) {
		puts("qemu-img is not installed");
		return 77;
	}
	go_to_folder(dir);
	for (unsigned i = 0; i < sizeof(mixes) / sizeof(mixes[0]); i++)
		if (argc < 4 || !strcmp(argv[3], mixes[i].name))
			run_mix(&mixes[i], seed, operations);
	return shell("rm -r %s", dir);
}
