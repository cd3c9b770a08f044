/* Copying a disk into a new file, which gets its name when it is whole: for image convert and image restore. */
#ifndef VIXEN_CLI_CONVERT_H
#define VIXEN_CLI_CONVERT_H

#include "cli/convert_resume.h"
#include "cli/image_tool.h"
#include "cli/passphrase.h"

struct convert {
	const char *file[2];		/* SRC, DST */
	const char *from, *to;
	struct block_create create;
	struct job_convert how;
	struct key_list keys, new_keys;
	const char *new_key_file;
	unsigned parallel;
	bool force, plain, resume, verify;	/* verify: read the copy again, and compare */
	/* while it runs */
	struct resume journal;
	char src_path[PATH_MAX], partial[PATH_MAX];
	struct block *src, *dst;
	struct tool *t;
	char key_buf[KEY_PATH_BYTES];
	int held_fd;			/* the old DST, locked; -1: none */
};

/* Zeroed memory, with t, is the defaults; -errno with t->e set. */
int convert_run(struct convert *c);

#endif
