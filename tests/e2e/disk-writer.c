/*
 * A disk's contents that can be told from its bytes alone.
 *
 * disk-writer write DISK BYTES TAIL STOP	in a guest: workers write and zero sectors of DISK's first BYTES, and read
 *						them back, until the file STOP is there; one more does so in the TAIL bytes
 *						behind, as soon as the disk has them.  Prints "fine", or what was wrong.
 * disk-writer check FILE BYTES TAIL		anywhere: is FILE what the disk was at one moment?  Prints how far each
 *						worker had come.
 *
 * What worker w does in its turn n follows from w and n, and it waits for each turn's end.  So at any moment a disk
 * holds what the first so many turns of each worker left, and perhaps part of the next: check finds the last that
 * left a trace and does all before it again.
 *
 *	strips of 20 KiB:  0 1 2 3 0 1 2 3 ...   of the workers in turn, so that they meet in clusters and granules
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/fs.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#define WORKERS 4u
#define STRIP 40u		/* sectors */
#define SECTOR 512u
#define MAGIC 0x7669786e64697363ull

/* The part of the disk where every `step`th strip, from strip `first` on, is a worker's. */
struct part {
	unsigned worker;
	uint64_t first, step, strips;
};

struct turn {
	uint64_t sector;
	unsigned count;
	bool zero;		/* only in even turns: each is followed by one that leaves a trace */
};

static _Noreturn void bad(const char *fmt, ...)
{
	va_list args;

	va_start(args, fmt);
	printf("not ok: ");
	vprintf(fmt, args);
	printf("\n");
	va_end(args);
	exit(1);
}

static uint64_t mix(uint64_t x)
{
	x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9ull;
	x = (x ^ x >> 27) * 0x94d049bb133111ebull;
	return x ^ x >> 31;
}

static struct part part_of(unsigned worker, uint64_t bytes, uint64_t tail)
{
	uint64_t strips = bytes / SECTOR / STRIP;

	if (worker == WORKERS)
		return (struct part){ worker, strips, 1, tail / SECTOR / STRIP };
	return (struct part){ worker, worker, WORKERS, strips / WORKERS };
}

static uint64_t sector_of(const struct part *p, uint64_t i)	/* the i-th of the worker's sectors */
{
	return (p->first + i / STRIP * p->step) * STRIP + i % STRIP;
}

static uint64_t index_of(const struct part *p, uint64_t sector)
{
	return (sector / STRIP - p->first) / p->step * STRIP + sector % STRIP;
}

static struct turn turn_of(const struct part *p, uint64_t n)
{
	uint64_t r = mix(n * 16 + p->worker + 1), strip = r % p->strips, at = r >> 32 & 0xff;
	struct turn t = { .zero = n % 2 == 0 && r >> 40 & 1 };

	at %= STRIP;
	t.sector = sector_of(p, strip * STRIP + at);
	t.count = 1 + (unsigned)((r >> 48) % (STRIP - at));
	return t;
}

/* n is 0: nothing was written, or zeroes. */
static void sector_fill(uint64_t *buf, const struct part *p, uint64_t sector, uint64_t n)
{
	memset(buf, 0, SECTOR);
	if (!n)
		return;
	buf[0] = MAGIC;
	buf[1] = p->worker;
	buf[2] = n;
	for (unsigned i = 3; i < SECTOR / 8; i++)
		buf[i] = mix(n << 24 ^ sector << 6 ^ i);
}

static bool sector_is(const void *bytes, const struct part *p, uint64_t sector, uint64_t n)
{
	uint64_t want[SECTOR / 8];

	sector_fill(want, p, sector, n);
	return !memcmp(bytes, want, SECTOR);
}

/* --- in the guest --- */

struct worker {
	struct part p;
	int fd;
	uint64_t *buf;		/* of a strip */
	uint64_t *last;		/* for each of the worker's sectors: the turn that wrote it */
	uint64_t looked;
};

static void do_turn(struct worker *w, uint64_t n)
{
	struct turn t = turn_of(&w->p, n);
	uint64_t range[2] = { t.sector * SECTOR, (uint64_t)t.count * SECTOR };

	for (unsigned i = 0; i < t.count; i++) {
		sector_fill(w->buf + i * (SECTOR / 8), &w->p, t.sector + i, n);
		w->last[index_of(&w->p, t.sector + i)] = t.zero ? 0 : n;
	}
	if (t.zero ? ioctl(w->fd, BLKZEROOUT, range) : pwrite(w->fd, w->buf, range[1], (off_t)range[0]) != (ssize_t)range[1])
		bad("turn %lu of worker %u: %s", n, w->p.worker, strerror(errno));
}

static void look(struct worker *w, uint64_t index, unsigned count)
{
	uint64_t sector = sector_of(&w->p, index);

	if (pread(w->fd, w->buf, count * SECTOR, (off_t)(sector * SECTOR)) != (ssize_t)(count * SECTOR))
		bad("reading sector %lu: %s", sector, strerror(errno));
	for (unsigned i = 0; i < count; i++)
		if (!sector_is(w->buf + i * (SECTOR / 8), &w->p, sector + i, w->last[index + i]))
			bad("sector %lu of worker %u: not what turn %lu wrote, but of turn %lu", sector + i, w->p.worker,
			    w->last[index + i], w->buf[i * (SECTOR / 8) + 2]);
}

static void look_somewhere(struct worker *w)
{
	uint64_t r = mix(++w->looked * 7919), at = (r >> 32) % STRIP;

	look(w, r % w->p.strips * STRIP + at, 1 + (unsigned)((r >> 48) % (STRIP - at)));
}

static void wait_for_size(int fd, uint64_t bytes, const char *stop)
{
	uint64_t now = 0;

	while (access(stop, F_OK) && !ioctl(fd, BLKGETSIZE64, &now) && now < bytes)
		usleep(100000);
	if (now < bytes)
		exit(0);
}

static void work(const char *disk, struct part p, uint64_t end, const char *stop)
{
	struct worker w = { .p = p, .fd = open(disk, O_RDWR | O_DIRECT) };

	if (w.fd < 0 || posix_memalign((void **)&w.buf, 4096, STRIP * SECTOR))
		bad("%s: %s", disk, strerror(errno));
	w.last = calloc(p.strips * STRIP, sizeof(*w.last));
	wait_for_size(w.fd, end, stop);
	for (uint64_t n = 1; access(stop, F_OK); n++) {
		do_turn(&w, n);
		if (n % 3 == 0)
			look_somewhere(&w);
		if (n % 32 == 0 && fdatasync(w.fd))
			bad("flush: %s", strerror(errno));
	}
	for (uint64_t strip = 0; strip < p.strips; strip++)
		look(&w, strip * STRIP, STRIP);
	exit(0);
}

static int write_main(const char *disk, uint64_t bytes, uint64_t tail, const char *stop)
{
	int status, failed = 0;

	for (unsigned i = 0; i <= WORKERS; i++) {
		struct part p = part_of(i, bytes, tail);

		if (p.strips && !fork())
			work(disk, p, i == WORKERS ? bytes + tail : bytes, stop);
	}
	while (wait(&status) > 0)
		failed |= status;
	if (!failed)
		puts("fine");
	return failed != 0;
}

/* --- anywhere --- */

/* The last turn of which something is to be seen. */
static uint64_t last_turn(const uint8_t *disk, const struct part *p)
{
	uint64_t last = 0;

	for (uint64_t i = 0; i < p->strips * STRIP; i++) {
		uint64_t sector = sector_of(p, i), head[3];

		memcpy(head, disk + sector * SECTOR, sizeof(head));
		if (head[2] > last && sector_is(disk + sector * SECTOR, p, sector, head[2]))
			last = head[2];
	}
	return last;
}

static bool within(const struct turn *t, uint64_t sector)
{
	return sector >= t->sector && sector < t->sector + t->count;
}

/* What the worker's first n turns leave. */
static void replay(uint64_t *last, const struct part *p, uint64_t n)
{
	memset(last, 0, p->strips * STRIP * sizeof(*last));
	for (uint64_t i = 1; i <= n; i++) {
		struct turn t = turn_of(p, i);

		for (unsigned k = 0; k < t.count; k++)
			last[index_of(p, t.sector + k)] = t.zero ? 0 : i;
	}
}

/* Is it what n - 1 turns left, with any part of turn n, and of turn n + 1 if that leaves no trace?  The first sector that
 * is not, or UINT64_MAX. */
static uint64_t differs(const uint8_t *disk, const struct part *p, uint64_t n, uint64_t *last)
{
	struct turn now = turn_of(p, n), next = turn_of(p, n + 1);

	replay(last, p, n ? n - 1 : 0);
	for (uint64_t i = 0; i < p->strips * STRIP; i++) {
		uint64_t sector = sector_of(p, i);
		const uint8_t *got = disk + sector * SECTOR;

		if (!sector_is(got, p, sector, last[i]) &&
		    !(n && within(&now, sector) && sector_is(got, p, sector, now.zero ? 0 : n)) &&
		    !(next.zero && within(&next, sector) && sector_is(got, p, sector, 0)))
			return sector;
	}
	return UINT64_MAX;
}

static void check_part(const uint8_t *disk, const struct part *p)
{
	uint64_t n = last_turn(disk, p), *last = calloc(p->strips * STRIP, sizeof(*last)), sector;

	sector = differs(disk, p, n, last);
	/* All of the last trace may be zeroed again. */
	for (unsigned i = 1; sector != UINT64_MAX && i <= 2; i++)
		sector = differs(disk, p, n + i, last) == UINT64_MAX ? UINT64_MAX : sector;
	if (sector != UINT64_MAX)
		bad("worker %u had come to turn %lu, but sector %lu is not what that left", p->worker, n, sector);
	printf("%lu ", n);
	free(last);
}

static int check_main(const char *path, uint64_t bytes, uint64_t tail)
{
	int fd = open(path, O_RDONLY);
	const uint8_t *disk;
	struct stat st;

	if (fd < 0 || fstat(fd, &st) || (uint64_t)st.st_size < bytes)
		bad("%s: it is not there, or too short", path);
	disk = mmap(NULL, (size_t)st.st_size, PROT_READ, MAP_PRIVATE, fd, 0);
	if (disk == MAP_FAILED)
		bad("%s: %s", path, strerror(errno));
	for (unsigned i = 0; i <= WORKERS; i++) {
		struct part p = part_of(i, bytes, (uint64_t)st.st_size < bytes + tail ? 0 : tail);

		if (p.strips)
			check_part(disk, &p);
	}
	puts("");
	return 0;
}

int main(int argc, char **argv)
{
	if (argc == 6 && !strcmp(argv[1], "write"))
		return write_main(argv[2], strtoull(argv[3], NULL, 0), strtoull(argv[4], NULL, 0), argv[5]);
	if (argc == 5 && !strcmp(argv[1], "check"))
		return check_main(argv[2], strtoull(argv[3], NULL, 0), strtoull(argv[4], NULL, 0));
	fprintf(stderr, "usage: disk-writer write DISK BYTES TAIL STOP | check FILE BYTES TAIL\n");
	return 2;
}
