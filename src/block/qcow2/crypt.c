/*
 * Encryption inside qcow2: a LUKS1 header in clusters of its own; sectors are numbered by their place in the file, not
 * on the disk.  What is below in the chain has its own encryption, or none.
 */
#include <errno.h>
#include <stdio.h>

#include "block/luks/luks.h"
#include "block/qcow2/qcow2.h"

int crypt_decrypt(struct qcow2 *q, uint64_t host, uint8_t *buf, size_t len)
{
	return q->cipher ? cipher_co_decrypt(q->cipher, q->n->env, host / SECTOR, buf, len) : -ENOKEY;
}

int crypt_encrypt(struct qcow2 *q, uint64_t host, uint8_t *buf, size_t len)
{
	return q->cipher ? cipher_co_encrypt(q->cipher, q->n->env, host / SECTOR, buf, len) : -ENOKEY;
}

static int refuse(const struct qcow2 *q, struct error *e, const char *todo, const char *why)
{
	char what[192];

	snprintf(what, sizeof(what), "open disk '%.150s'", q->n->path);
	return error_set(e, ENOTSUP, todo, what, "%s", why);
}

int crypt_open(struct qcow2 *q, const struct node_open *how, struct error *e)
{
	const struct header *h = &q->h;
	const struct luks_info *l;
	int ret, fd;

	if (h->crypt_method == CRYPT_METHOD_NONE)
		return 0;
	if (h->crypt_method != CRYPT_METHOD_LUKS)
		return refuse(q, e, "decrypt it with: qemu-img convert", "it is encrypted by qcow2's old, weak method");
	if (!h->crypt_offset || in_cluster(q, h->crypt_offset) || h->crypt_bytes > CRYPT_BYTES_MAX ||
	    !inside_file(q, h->crypt_offset, h->crypt_bytes))
		return refuse(q, e, "restore it from a copy", "its encryption header lies where it cannot");
	q->encrypted = q->n->encrypted = true;
	fd = luks_key_given(q->n, how);
	ret = fd >= 0 ? luks_header_given(&q->luks, &q->cipher, q->file, fd, e)
		      : luks_header_open(&q->luks, q->file, h->crypt_offset, h->crypt_bytes, e);
	if (ret)
		return ret;
	l = luks_header_info(q->luks);
	if (l->version != 1 || l->sector_bytes != SECTOR || l->iv_offset)
		return refuse(q, e, "restore it from a copy", "its encryption header is none of LUKS1");
	return q->cipher || how->o->flags & BLOCK_LOCKED ? 0 : luks_unlock(q->luks, how, &q->cipher, e);
}

int qcow2_key_export(struct node *n)
{
	const struct qcow2 *q = n->impl;

	return q->cipher ? luks_key_export(q->luks, q->cipher) : -ENOKEY;
}

void crypt_close(struct qcow2 *q)
{
	cipher_free(q->cipher);
	luks_header_free(q->luks);
}

int qcow2_key(struct node *n, const struct block_key *k, struct error *e)
{
	struct qcow2 *q = n->impl;

	if (!q->encrypted)
		return error_set(e, EOPNOTSUPP, "convert it with --encrypt", "change the passphrases of a disk",
				 "it is not encrypted");
	return luks_keys_change(q->luks, k, e);
}

void crypt_info(const struct qcow2 *q, struct block_info *out)
{
	if (q->luks)
		luks_info_extra(luks_header_info(q->luks), out);
}
