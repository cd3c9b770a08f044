/* Inside a LUKS header: for header.c, keys.c and create.c. */
#ifndef VIXEN_LUKS_HEADER_PRIVATE_H
#define VIXEN_LUKS_HEADER_PRIVATE_H

#include <libcryptsetup.h>

#include "block/luks/luks.h"
#include "block/luks/secret.h"

#define LUKS_MAGIC "LUKS\xba\xbe"
#define LUKS_MAGIC_BYTES 6u
#define LUKS_FIRST_BYTES (8u << 20)	/* both copies of any LUKS2 header */
#define LUKS_AREA_MAX (160u << 20)	/* header and key slots */

struct luks_header {
	struct crypt_device *cd;
	struct block_env *env;
	struct node *file;		/* NULL: not yet */
	uint64_t at;
	int fd;				/* the copy */
	char path[40], said[224];	/* of fd; libcryptsetup's last words */
	struct luks_info info;
};

struct luks_header *luks_header_alloc(struct block_env *env, uint64_t bytes, struct error *e);
int luks_info_fill(struct luks_header *h, const char *path, struct error *e);
/* Runs fn(arg) on a thread; what it returns. */
int luks_call(struct block_env *env, int (*fn)(void *arg), void *arg);
/* With libcryptsetup's reason. */
int luks_failed(const struct luks_header *h, struct error *e, int ret, const char *todo, const char *what);

#endif
