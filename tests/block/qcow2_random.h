/* The random tester's parts: qcow2_random.c, qcow2_mixes.c, qcow2_chain.c, qcow2_twin.c. */
#ifndef VIXEN_TESTS_QCOW2_RANDOM_H
#define VIXEN_TESTS_QCOW2_RANDOM_H

#include <stdio.h>

#include "disk.h"

#define SNAPSHOTS 3u
#define MIB (1ull << 20)
#define SECTOR 512u

struct mix {
	const char *name;
	struct block_create c;
	const char *qemu;		/* options: created by qemu-img */
	uint64_t size;
	bool snapshots, compress, backing, chain, bitmap, luks;
};

struct twin {
	bool on;
	FILE *script;			/* what of this round QEMU still has to do */
	bool in_io;			/* commands for qemu-io are being written */
	unsigned blobs;			/* files with data for them */
};

struct state {
	struct disk d;
	const struct mix *mix;
	uint64_t size, capacity;
	uint8_t *model, *saved[SNAPSHOTS], *buf;
	uint64_t saved_size[SNAPSHOTS];
	uint8_t *marked;		/* the model when the bitmap was cleared; NULL: there is none */
	char base[32], base_format[8];	/* "": none */
	unsigned bases, op, batches;
	struct twin twin;
};

uint64_t below(uint64_t n);
void fill(uint8_t *p, size_t len, bool packs);

/* --- qcow2_mixes.c --- */
extern const struct mix mixes[];
extern const unsigned nmixes;
/* One of all that go together, as random() has it; names and strings are in `text`. */
void mix_random(struct mix *m, char text[256]);
bool mix_old(const struct mix *m);		/* version 2 */
/* The options of qemu-img create for the same image; its data file is called NAME.data. */
void mix_qemu(const struct mix *m, const char *name, char out[400]);
/* How QEMU's tools are told of the image `name`: options, and the name. */
const char *image(const struct state *s, const char *name, char out[256]);

/* --- qcow2_random.c --- */
void reopen(struct state *s);
struct block_options options(const struct state *s);

/* --- qcow2_chain.c --- */
void base_make(struct state *s);
void chain_change(struct state *s);	/* commits or rebases, by us or by QEMU, where that is allowed */
void bitmap_begin(struct state *s);
void bitmap_check(struct state *s);	/* every sector that differs from then is marked */

/* --- qcow2_twin.c: the same sequence, by QEMU alone, on twin.qcow2 --- */
void twin_make(struct state *s);
void twin_write(struct state *s, uint64_t offset, const void *buf, size_t len, bool compressed);
void twin_zero(struct state *s, uint64_t offset, uint64_t len, bool unmap);
void twin_command(struct state *s, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
void twin_io(struct state *s, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
void twin_compare(struct state *s);	/* does what was put down, and holds the twin against image.qcow2, which is closed */

#endif
