/* Passphrases and keys: memory that is locked, in no core dump, and wiped. */
#ifndef VIXEN_LUKS_SECRET_H
#define VIXEN_LUKS_SECRET_H

#include <stddef.h>

#include "base/error.h"

#define SECRET_MAX 65536u		/* bytes of a passphrase */

/* Zeroed; not locked where the limit of locked memory is used up.  NULL: no memory. */
void *secret_memory(size_t len);
void secret_memory_free(void *p, size_t len);		/* NULL is fine */

struct secret {
	char *bytes;
	size_t len;
	const char *path;		/* where it was read: the caller's string */
};
/* Reads a file whole, without one newline at its end. */
int secret_read(struct secret *s, const char *path, struct error *e);
void secret_fini(struct secret *s);

#endif
