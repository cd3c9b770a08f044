/* Sectors encrypted as dm-crypt does it, by OpenSSL. */
#ifndef VIXEN_LUKS_CIPHER_H
#define VIXEN_LUKS_CIPHER_H

#include <stddef.h>
#include <stdint.h>

struct block_env;
struct cipher;

/* "aes", "xts-plain64", a key (copied; OpenSSL's own schedules of it are wiped when freed).  sector_bytes: 512 to 4096.
 * -ENOTSUP: not a cipher that is known; -EINVAL: the key does not fit it; -ENOMEM. */
int cipher_new(struct cipher **out, const char *name, const char *mode, const uint8_t *key, size_t key_len,
	       unsigned sector_bytes);
/* 0, or what cipher_new() would say. */
int cipher_known(const char *name, const char *mode, size_t key_len);
void cipher_free(struct cipher *c);		/* NULL is fine */
const uint8_t *cipher_key(const struct cipher *c, size_t *len);

/* In place.  first: number of the first sector, in units of 512 bytes whatever the sector size; len: whole sectors.
 * From any thread.  0, -ENOMEM, -EIO. */
int cipher_encrypt(struct cipher *c, uint64_t first, uint8_t *buf, size_t len);
int cipher_decrypt(struct cipher *c, uint64_t first, uint8_t *buf, size_t len);
/* The same in a coroutine: what takes long is done on threads of env. */
int cipher_co_encrypt(struct cipher *c, struct block_env *env, uint64_t first, uint8_t *buf, size_t len);
int cipher_co_decrypt(struct cipher *c, struct block_env *env, uint64_t first, uint8_t *buf, size_t len);

#endif
