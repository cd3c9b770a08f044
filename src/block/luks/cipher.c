/*
 * AES in the modes that LUKS volumes have: XTS and CBC, with the initialisation vectors
 *
 *	plain64		the sector's number, little-endian
 *	plain		its lower 32 bits
 *	essiv:sha256	plain64 encrypted by AES with the key's SHA-256
 *
 * Each thread takes a context with the key already expanded from a list, so that a sector costs only its vector.
 */
#include "block/luks/cipher.h"

#include <errno.h>
#include <openssl/evp.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include "base/endian.h"
#include "block/luks/secret.h"
#include "block/node.h"
#include "host/workers.h"

#define IV_BYTES 16
#define INLINE_BYTES (32u << 10)	/* about what a handover to a thread costs */

enum iv { IV_PLAIN, IV_PLAIN64, IV_ESSIV };

struct context {
	EVP_CIPHER_CTX *data, *iv;
	struct context *next;
};

struct cipher {
	const EVP_CIPHER *type;
	enum iv iv;
	unsigned sector_bytes;
	size_t key_len;
	uint8_t *key, essiv[32];
	pthread_mutex_t lock;		/* of the lists */
	struct context *idle[2];	/* decrypting, encrypting */
};

/* --- contexts --- */

static void context_free(struct context *x)
{
	if (!x)
		return;
	EVP_CIPHER_CTX_free(x->data);
	EVP_CIPHER_CTX_free(x->iv);
	free(x);
}

static struct context *context_new(const struct cipher *c, bool encrypt)
{
	struct context *x = calloc(1, sizeof(*x));
	bool good = x;

	if (good) {
		x->data = EVP_CIPHER_CTX_new();
		good = x->data && EVP_CipherInit_ex(x->data, c->type, NULL, c->key, NULL, encrypt) &&
		       EVP_CIPHER_CTX_set_padding(x->data, 0);
	}
	if (good && c->iv == IV_ESSIV) {
		x->iv = EVP_CIPHER_CTX_new();
		good = x->iv && EVP_CipherInit_ex(x->iv, EVP_aes_256_ecb(), NULL, c->essiv, NULL, 1) &&
		       EVP_CIPHER_CTX_set_padding(x->iv, 0);
	}
	if (good)
		return x;
	context_free(x);
	return NULL;
}

static struct context *context_get(struct cipher *c, bool encrypt)
{
	struct context *x;

	pthread_mutex_lock(&c->lock);
	x = c->idle[encrypt];
	if (x)
		c->idle[encrypt] = x->next;
	pthread_mutex_unlock(&c->lock);
	return x ? x : context_new(c, encrypt);
}

static void context_put(struct cipher *c, bool encrypt, struct context *x)
{
	pthread_mutex_lock(&c->lock);
	x->next = c->idle[encrypt];
	c->idle[encrypt] = x;
	pthread_mutex_unlock(&c->lock);
}

/* --- sectors --- */

static bool vector(const struct cipher *c, const struct context *x, uint64_t number, uint8_t iv[IV_BYTES])
{
	int n;

	memset(iv, 0, IV_BYTES);
	store_le64(iv, c->iv == IV_PLAIN ? (uint32_t)number : number);
	return c->iv != IV_ESSIV || EVP_CipherUpdate(x->iv, iv, &n, iv, IV_BYTES);
}

static int run(struct cipher *c, bool encrypt, uint64_t first, uint8_t *buf, size_t len)
{
	struct context *x = context_get(c, encrypt);
	bool good = true;

	if (!x)
		return -ENOMEM;
	for (size_t at = 0; at < len && good; at += c->sector_bytes) {
		uint8_t iv[IV_BYTES];
		int n;

		good = vector(c, x, first + at / SECTOR, iv) && EVP_CipherInit_ex(x->data, NULL, NULL, NULL, iv, -1) &&
		       EVP_CipherUpdate(x->data, buf + at, &n, buf + at, (int)c->sector_bytes);
	}
	context_put(c, encrypt, x);
	return good ? 0 : -EIO;
}

int cipher_encrypt(struct cipher *c, uint64_t first, uint8_t *buf, size_t len)
{
	return run(c, true, first, buf, len);
}

int cipher_decrypt(struct cipher *c, uint64_t first, uint8_t *buf, size_t len)
{
	return run(c, false, first, buf, len);
}

/* --- on threads --- */

struct job {
	struct cipher *c;
	bool encrypt;
	uint64_t first;
	uint8_t *buf;
	size_t len;
	int ret;
};

static void job_main(void *opaque)
{
	struct job *j = opaque;

	j->ret = run(j->c, j->encrypt, j->first, j->buf, j->len);
}

static int co_run_there(struct cipher *c, struct block_env *env, bool encrypt, uint64_t first, uint8_t *buf, size_t len)
{
	struct job j = { c, encrypt, first, buf, len, 0 };

	if (len <= INLINE_BYTES)
		return run(c, encrypt, first, buf, len);
	workers_co_run(env->workers, job_main, &j);
	return j.ret;
}

int cipher_co_encrypt(struct cipher *c, struct block_env *env, uint64_t first, uint8_t *buf, size_t len)
{
	return co_run_there(c, env, true, first, buf, len);
}

int cipher_co_decrypt(struct cipher *c, struct block_env *env, uint64_t first, uint8_t *buf, size_t len)
{
	return co_run_there(c, env, false, first, buf, len);
}

/* --- life --- */

static const struct { const char *mode; size_t key_len; bool xts; enum iv iv; } modes[] = {
	{ "xts-plain64", 32, true, IV_PLAIN64 }, { "xts-plain64", 64, true, IV_PLAIN64 },
	{ "xts-plain", 32, true, IV_PLAIN }, { "xts-plain", 64, true, IV_PLAIN },
	{ "cbc-essiv:sha256", 16, false, IV_ESSIV }, { "cbc-essiv:sha256", 24, false, IV_ESSIV },
	{ "cbc-essiv:sha256", 32, false, IV_ESSIV },
	{ "cbc-plain64", 16, false, IV_PLAIN64 }, { "cbc-plain64", 32, false, IV_PLAIN64 },
	{ "cbc-plain", 16, false, IV_PLAIN }, { "cbc-plain", 32, false, IV_PLAIN },
};

static const EVP_CIPHER *type_of(bool xts, size_t key_len)
{
	if (xts)
		return key_len == 32 ? EVP_aes_128_xts() : EVP_aes_256_xts();
	return key_len == 16 ? EVP_aes_128_cbc() : key_len == 24 ? EVP_aes_192_cbc() : EVP_aes_256_cbc();
}

static int choose(struct cipher *c, const char *name, const char *mode, size_t key_len)
{
	bool known = false;

	if (strcmp(name, "aes"))
		return -ENOTSUP;
	for (unsigned i = 0; i < sizeof(modes) / sizeof(modes[0]); i++) {
		if (strcmp(modes[i].mode, mode))
			continue;
		known = true;
		if (modes[i].key_len != key_len)
			continue;
		c->type = type_of(modes[i].xts, key_len);
		c->iv = modes[i].iv;
		return 0;
	}
	return known ? -EINVAL : -ENOTSUP;
}

int cipher_known(const char *name, const char *mode, size_t key_len)
{
	struct cipher none;

	return choose(&none, name, mode, key_len);
}

int cipher_new(struct cipher **out, const char *name, const char *mode, const uint8_t *key, size_t key_len,
	       unsigned sector_bytes)
{
	struct cipher *c = calloc(1, sizeof(*c));
	struct context *x;
	unsigned n = 32;
	int ret = c ? choose(c, name, mode, key_len) : -ENOMEM;

	if (ret) {
		free(c);
		return ret;
	}
	pthread_mutex_init(&c->lock, NULL);
	c->sector_bytes = sector_bytes;
	c->key_len = key_len;
	c->key = secret_memory(key_len);
	if (c->key)
		memcpy(c->key, key, key_len);
	if (c->key && c->iv == IV_ESSIV && !EVP_Digest(key, key_len, c->essiv, &n, EVP_sha256(), NULL))
		ret = -EIO;
	x = c->key && !ret ? context_new(c, true) : NULL;	/* XTS refuses keys of two equal halves */
	if (!x) {
		ret = c->key ? -EINVAL : -ENOMEM;
		cipher_free(c);
		return ret;
	}
	context_put(c, true, x);
	*out = c;
	return 0;
}

const uint8_t *cipher_key(const struct cipher *c, size_t *len)
{
	*len = c->key_len;
	return c->key;
}

void cipher_free(struct cipher *c)
{
	if (!c)
		return;
	for (unsigned i = 0; i < 2; i++)
		while (c->idle[i]) {
			struct context *x = c->idle[i];

			c->idle[i] = x->next;
			context_free(x);
		}
	if (c->key)
		secret_memory_free(c->key, c->key_len);
	OPENSSL_cleanse(c->essiv, sizeof(c->essiv));
	pthread_mutex_destroy(&c->lock);
	free(c);
}
