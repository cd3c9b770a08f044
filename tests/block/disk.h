/* What tests of disks share: calls that wait, and QEMU's tools to compare with. */
#ifndef VIXEN_TESTS_DISK_H
#define VIXEN_TESTS_DISK_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "block/block.h"

struct loop;

struct disk {
	struct loop *loop;
	struct block *b;
	int pending, ret;	/* of calls under way; the first error */
};

void disk_done(void *opaque, int ret);
int disk_wait(struct disk *d);		/* until nothing is pending; the first error since the last wait */
int disk_read(struct disk *d, uint64_t offset, void *buf, size_t len);
int disk_write(struct disk *d, uint64_t offset, const void *buf, size_t len);
int disk_zero(struct disk *d, uint64_t offset, uint64_t len, bool unmap);
int disk_discard(struct disk *d, uint64_t offset, uint64_t len);
int disk_flush(struct disk *d);
int disk_compress(struct disk *d, uint64_t offset, const void *buf, size_t len);
int disk_status(struct disk *d, uint64_t offset, uint64_t len, unsigned depth_max, struct block_status *st);
/* Print what went wrong and end the process. */
void disk_open(struct disk *d, const char *path, const struct block_options *o);
void disk_close(struct disk *d);
void disk_create(struct disk *d, const char *path, const char *format, const struct block_create *c);

/* Makes an empty folder and goes there: in memory if the host has such a place, since the tests sync a lot. */
void go_to_folder(char path[64]);
/* A file whole; malloc'd. */
uint8_t *file_read(const char *path, size_t *len);
void file_write(const char *path, const void *p, size_t len);
bool have_qemu(void);
/* Runs a command of the shell; its exit status.  Output goes to the file `out` of the folder, shown when it fails. */
int shell(const char *fmt, ...) __attribute__((format(printf, 1, 2)));
_Noreturn void die(const char *fmt, ...) __attribute__((format(printf, 1, 2)));

#endif
