/* Disks with partitions and file systems on them, made by the host's own tools, without root. */
#ifndef VIXEN_CLI_IMAGE_READY_H
#define VIXEN_CLI_IMAGE_READY_H

#include "cli/image_tool.h"

struct ready {
	const char *partition;		/* "gpt", "mbr"; NULL: no table */
	const char *fs;			/* "ext4" ...; NULL: none */
	const char *label, *content;	/* of the file system; a folder that it begins with */
};

bool ready_fs_parse(const char *v);		/* says so when it is none */
/* Makes the raw file `path` of size_bytes, which is not there yet. */
int ready_make(const char *path, uint64_t size_bytes, const struct ready *r, struct error *e);

/* Copies it into the new disk. */
int ready_copy(struct loop *l, const char *raw, const char *path, const char *format, const char *secret_file,
	       struct error *e);

#endif
