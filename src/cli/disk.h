/* What the commands of `vixen disk` share (disk.c has their table). */
#ifndef VIXEN_CLI_DISK_H
#define VIXEN_CLI_DISK_H

#include <stdbool.h>

struct command;

struct disk_ask {
	const char *verb;		/* "disk list" */
	const char *takes_disk;		/* what the second argument is called; NULL: there is none */
	const char *vm, *disk;
	bool json;
	unsigned seconds;
};

bool disk_argument(struct disk_ask *a, const char *v);	/* VM, then DISK */
/* -1: go on, with all arguments; else an exit code. c's opaque is a. */
int disk_parse(const struct command *c, struct disk_ask *a, int argc, char **argv);

/* Jobs on a disk (disk_job.c): disk_backup(argc, argv) and so on. */
#define DISK_JOBS \
	DISK_JOB(backup,   "copy what one holds now, or what has changed") \
	DISK_JOB(bitmap,   "keep dirty bitmaps in its image") \
	DISK_JOB(cancel,   "end the job on it") \
	DISK_JOB(commit,   "write its overlay into the backing file") \
	DISK_JOB(complete, "let a mirror that follows come to its end") \
	DISK_JOB(mirror,   "copy one until both hold the same, perhaps change over") \
	DISK_JOB(resize,   "give one another size, and tell the guest") \
	DISK_JOB(snapshot, "go on in a new overlay") \
	DISK_JOB(stream,   "bring what its backing files hold into it")
#define DISK_JOB(name, summary) int disk_##name(int argc, char **argv);
DISK_JOBS
#undef DISK_JOB

#endif
