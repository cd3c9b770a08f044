/* Passphrases: opening a LUKS volume with one, adding and removing them. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/endian.h"
#include "block/luks/header_private.h"

#define LUKS1_HEADER_BYTES 4096u
#define CHUNK_BYTES 65536u

/* --- opening --- */

struct unlock {
	struct luks_header *h;
	const struct secret *secret;
	char *key;
	size_t key_len;
};

static int key_get(void *opaque)
{
	struct unlock *u = opaque;
	int ret = crypt_volume_key_get(u->h->cd, CRYPT_ANY_SLOT, u->key, &u->key_len, u->secret->bytes, u->secret->len);

	return ret < 0 ? ret : 0;
}

static void disk_words(const struct luks_header *h, char what[192])
{
	snprintf(what, 192, "open disk '%.150s'", h->file->path);
}

static int cipher_failed(const struct luks_header *h, int ret, struct error *e)
{
	const struct luks_info *l = &h->info;
	char what[192];

	disk_words(h, what);
	if (ret == -ENOTSUP || ret == -EINVAL)
		return error_set(e, ENOTSUP, "copy its content with cryptsetup to a disk with aes-xts-plain64", what,
				 "its cipher %s-%s with %u bits is not supported", l->cipher, l->mode, l->key_bits);
	return ret ? error_errno(e, -ret, NULL, "%s", what) : 0;
}

static int cipher_make(const struct luks_header *h, const struct unlock *u, struct cipher **out, struct error *e)
{
	const struct luks_info *l = &h->info;

	return cipher_failed(h, cipher_new(out, l->cipher, l->mode, (const uint8_t *)u->key, u->key_len,
					   l->sector_bytes), e);
}

static int secret_given(const struct luks_header *h, const char *secret_file, struct secret *s, struct error *e)
{
	char what[192];

	disk_words(h, what);
	if (!secret_file)
		return error_set(e, ENOKEY, "give a file with it: key-file=FILE with --disk, --key-file FILE elsewhere", what,
				 "it is encrypted and needs its passphrase");
	return secret_read(s, secret_file, e);
}

static int wrong(const struct luks_header *h, int ret, struct error *e)
{
	char what[192];

	disk_words(h, what);
	if (ret == -EPERM)
		return error_set(e, EPERM, "check the passphrase, or give the file with the right one", what,
				 "the passphrase opens none of its key slots");
	if (ret == -ENOENT)
		return error_set(e, ENOENT, "restore its header from a copy", what, "it has no key slots in use");
	return luks_failed(h, e, ret, NULL, what);
}

/* The last of the passphrases is that of all further layers. */
static const char *secret_path(const struct node_open *how)
{
	const struct block_options *o = how->o;
	unsigned i = how->encrypted < o->nmore_secrets ? how->encrypted : o->nmore_secrets;

	return i ? o->more_secrets[i - 1] : o->secret_file;
}

/* Where it may come out of a pipe it is read once. */
static int secret_kept(const struct luks_header *h, const struct node_open *how, struct secret *s, struct error *e)
{
	const char *path = secret_path(how);

	if (s->bytes && s->path == path)
		return 0;
	secret_fini(s);
	return secret_given(h, path, s, e);
}

int luks_unlock(struct luks_header *h, const struct node_open *how, struct cipher **out, struct error *e)
{
	struct secret own = { 0 }, *s = how->secret ? how->secret : &own;
	struct unlock u = { .h = h, .secret = s, .key_len = h->info.key_bits / 8 };
	size_t room = u.key_len;
	int ret = cipher_failed(h, cipher_known(h->info.cipher, h->info.mode, u.key_len), e);

	if (!ret)
		ret = secret_kept(h, how, s, e);
	if (ret)
		return ret;
	u.key = secret_memory(room);
	ret = u.key ? luks_call(h->env, key_get, &u) : -ENOMEM;
	ret = ret ? wrong(h, ret, e) : cipher_make(h, &u, out, e);
	secret_memory_free(u.key, room);
	secret_fini(&own);
	return ret;
}

/* --- writing back what libcryptsetup changed --- */

static int write_chunk(struct luks_header *h, uint64_t at, uint64_t len, uint8_t *now, uint8_t *old, bool *changed)
{
	int ret;

	if (pread(h->fd, now, len, (off_t)at) != (ssize_t)len)
		return -EIO;
	ret = node_co_read(h->file, h->at + at, old, len);
	if (ret || !memcmp(now, old, len))
		return ret;
	*changed = true;
	return node_co_write(h->file, h->at + at, now, len);
}

static int write_back(struct luks_header *h, uint64_t from, uint64_t to)
{
	uint8_t *now = malloc(CHUNK_BYTES), *old = malloc(CHUNK_BYTES);
	bool changed = false;
	int ret = now && old ? 0 : -ENOMEM;

	for (uint64_t at = from, len; at < to && !ret; at += len) {
		len = to - at < CHUNK_BYTES ? to - at : CHUNK_BYTES;
		ret = write_chunk(h, at, len, now, old, &changed);
	}
	if (!ret && changed)
		ret = node_co_flush(h->file);
	free(now);
	free(old);
	return ret;
}

/* Key material first, then what refers to it; of LUKS2's two headers the second first: one is whole at any cut. */
static int store_changes(struct luks_header *h, struct error *e)
{
	uint64_t one = LUKS1_HEADER_BYTES, end = one;
	uint8_t b[16] = { 0 };
	int ret = pread(h->fd, b, sizeof(b), 0) == sizeof(b) ? 0 : -EIO;

	if (h->info.version == 2) {
		one = load_be64(b + 8);
		end = 2 * one;
	}
	if (end > h->info.data_at)
		ret = -EIO;
	if (!ret)
		ret = write_back(h, end, h->info.data_at);
	if (!ret)
		ret = write_back(h, one, end);
	if (!ret)
		ret = write_back(h, 0, one);
	return ret ? error_errno(e, -ret, "check the host's disk", "write the keys of disk '%s'", h->file->path) : 0;
}

/* --- adding and removing --- */

struct change {
	struct luks_header *h;
	const struct secret *old, *new;
	unsigned kdf_ms;
	int slot;			/* to be removed */
};

static int slot_find(void *opaque)
{
	struct change *c = opaque;

	c->slot = crypt_activate_by_passphrase(c->h->cd, NULL, CRYPT_ANY_SLOT, c->old->bytes, c->old->len, 0);
	return c->slot < 0 ? c->slot : 0;
}

static int slot_add(void *opaque)
{
	struct change *c = opaque;
	int ret;

	if (c->kdf_ms)
		crypt_set_iteration_time(c->h->cd, c->kdf_ms);
	ret = crypt_keyslot_add_by_passphrase(c->h->cd, CRYPT_ANY_SLOT, c->old->bytes, c->old->len, c->new->bytes,
					      c->new->len);
	return ret < 0 ? ret : 0;
}

static int slot_remove(void *opaque)
{
	struct change *c = opaque;

	return crypt_keyslot_destroy(c->h->cd, c->slot);
}

static int step(struct change *c, int (*fn)(void *arg), const char *what, struct error *e)
{
	int ret = luks_call(c->h->env, fn, c);

	return ret ? luks_failed(c->h, e, ret, NULL, what) : store_changes(c->h, e);
}

static int change(struct change *c, enum block_key_verb verb, struct error *e)
{
	const struct luks_info *l = &c->h->info;
	int ret = luks_call(c->h->env, slot_find, c);

	if (ret)
		return wrong(c->h, ret, e);
	if (verb == BLOCK_KEY_REMOVE && l->slots < 2)
		return error_set(e, EINVAL, "add another one first", "remove the passphrase",
				 "it is the last one: nothing could open the disk any more");
	if (verb != BLOCK_KEY_REMOVE && l->slots == l->slots_max)
		return error_set(e, ENOSPC, "remove one first", "add a passphrase", "all %u key slots are in use",
				 l->slots_max);
	if (verb != BLOCK_KEY_REMOVE)
		ret = step(c, slot_add, "add a passphrase", e);
	if (!ret && verb != BLOCK_KEY_ADD)
		ret = step(c, slot_remove, "remove the old passphrase", e);
	return ret ? ret : luks_info_fill(c->h, c->h->file->path, e);
}

int luks_keys_change(struct luks_header *h, const struct block_key *k, struct error *e)
{
	struct secret old, new = { 0 };
	struct change c = { h, &old, &new, k->kdf_ms, -1 };
	int ret;

	if (!h->cd)
		return error_set(e, ENOTSUP, "use vixen image key while no VM has it", "change the passphrases of a disk",
				 "its header is not at hand");
	ret = secret_given(h, k->secret_file, &old, e);
	if (ret)
		return ret;
	if (k->verb != BLOCK_KEY_REMOVE)
		ret = secret_given(h, k->new_secret_file, &new, e);
	if (!ret)
		ret = change(&c, k->verb, e);
	secret_fini(&old);
	if (new.bytes)
		secret_fini(&new);
	return ret;
}
