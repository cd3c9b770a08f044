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
/* The cipher with the key that the passphrase opens which the options give for this layer; -EPERM: it opens none;
 * -ENOKEY: they give none. */
int luks_unlock(struct luks_header *h, const struct node_open *how, struct cipher **out, struct error *e);
/* Header and cipher as luks_key_export() wrote them; h: without libcryptsetup, to be looked at alone. */
int luks_header_given(struct luks_header **h, struct cipher **cipher, struct node *file, int fd, struct error *e);
/* What block_keys_export() gives: a descriptor, or -errno. */
int luks_key_export(const struct luks_header *h, const struct cipher *c);
/* A copy of the descriptor that the options give for n's key; -1: none. */
int luks_key_given(const struct node *n, const struct node_open *how);
#define LUKS_KEY_PREFIX "key:"		/* before the path of the image */
/* Key slots; written back in an order that leaves one of the passphrases valid at any cut. */
int luks_keys_change(struct luks_header *h, const struct block_key *k, struct error *e);

/* A new one, in memory alone; c says version and passphrase.  `inside` another format: of the smallest kind. */
int luks_header_new(struct luks_header **out, struct block_env *env, const struct block_create *c, bool inside,
		    struct error *e);
/* Writes the new header to the file; nothing is there yet. */
int luks_header_store(struct luks_header *h, struct node *file, uint64_t at, struct error *e);

#endif
