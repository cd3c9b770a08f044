/*
 * LUKS, versions 1 and 2: on a file by itself (luks.c), and inside qcow2 (qcow2/crypt.c).
 *
 *	| header | key slots | data |	the header at 0, or where qcow2 says
 *
 * libcryptsetup reads and changes headers; it works on a copy in memory (header.c), never on the file.  The data is
 * encrypted by OpenSSL (cipher.h).
 */
#ifndef VIXEN_LUKS_H
#define VIXEN_LUKS_H

#include "block/luks/cipher.h"
#include "block/node.h"

struct luks_header;

struct luks_info {
	unsigned version, key_bits, slots, slots_max;
	char cipher[32], mode[32], uuid[48], kdf[32];
	uint64_t data_at;		/* where the data begins, from the header's place on */
	uint64_t data_bytes;		/* LUKS2 may say; 0: up to the end of the file */
	unsigned sector_bytes;
	uint64_t iv_offset;		/* added to the sectors' numbers */
};

/* All in coroutines. */

/* The header that begins at `at`, with its key slots inside len bytes. */
int luks_header_open(struct luks_header **out, struct node *file, uint64_t at, uint64_t len, struct error *e);
void luks_header_free(struct luks_header *h);		/* NULL is fine */
const struct luks_info *luks_header_info(const struct luks_header *h);
void luks_info_extra(const struct luks_info *l, struct block_info *out);
/* The cipher with the key that the passphrase in the file opens; -EPERM: it opens none; NULL file: -ENOKEY. */
int luks_unlock(struct luks_header *h, const char *secret_file, struct cipher **out, struct error *e);
/* Key slots; written back in an order that leaves one of the passphrases valid at any cut. */
int luks_keys_change(struct luks_header *h, const struct block_key *k, struct error *e);

/* A new one, in memory alone; c says version and passphrase.  `inside` another format: of the smallest kind. */
int luks_header_new(struct luks_header **out, struct block_env *env, const struct block_create *c, bool inside,
		    struct error *e);
/* Writes the new header to the file; nothing is there yet. */
int luks_header_store(struct luks_header *h, struct node *file, uint64_t at, struct error *e);

#endif
