/*
 * What one side of TLS has in files, in memory: read by whoever may open them, and handed, in an anonymous file, to a
 * process that may not.
 *
 *	| struct lengths | CA certificates | own certificates | own key | pre-shared keys |
 */
#ifndef VIXEN_BLOCK_NBD_TLS_FILES_H
#define VIXEN_BLOCK_NBD_TLS_FILES_H

#include <stdint.h>

#include "block/nbd/tls.h"

enum tls_part { TLS_CA, TLS_CERT, TLS_KEY, TLS_PSK, TLS_PARTS };

struct tls_files {
	uint32_t len[TLS_PARTS];	/* 0: there is none */
	uint8_t *bytes[TLS_PARTS];	/* a NUL after len */
};

/* Those that the options name.  store: the host's CAs, too, where they name none; else these are left to OpenSSL. */
int tls_files_read(struct tls_files *f, const struct nbd_tls_options *o, bool store, struct error *e);
void tls_files_free(struct tls_files *f);	/* zeroed memory is fine */
int tls_files_get(struct tls_files *f, int fd);	/* from what nbd_tls_export() gave */

#endif
