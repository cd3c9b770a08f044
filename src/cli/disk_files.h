/* Descriptors that go along with a request to a VM, which may open no file by itself, with the names by which it knows them. */
#ifndef VIXEN_CLI_DISK_FILES_H
#define VIXEN_CLI_DISK_FILES_H

#include <jansson.h>

#include "block/block.h"
#include "proto/control.h"

struct disk_files {
	struct block_fd file[CONTROL_FDS_MAX];	/* ours */
	unsigned n;
};

/* Takes fd over; one below 0 is an error that was told.  Copies name.  -errno with e set; so do the others. */
int disk_files_add(struct disk_files *f, const char *name, int fd, struct error *e);
int disk_files_dial(struct disk_files *f, const char *address, struct error *e);	/* a server, and what TLS needs for it */
int disk_files_keys(struct disk_files *f, struct block *b, struct error *e);	/* of what is encrypted, instead of passphrases */
/* The names, in the order of the descriptors, which go to fds. */
json_t *disk_files_names(const struct disk_files *f, int fds[CONTROL_FDS_MAX]);
void disk_files_free(struct disk_files *f);

#endif
