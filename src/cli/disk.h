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

#endif
