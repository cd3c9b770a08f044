/*
 * The key of a volume that one process has opened, for another one that can open neither header nor passphrase file: its
 * sandbox denies it, and deriving keys takes more memory than it should have.
 *
 *	| struct handed | volume key |		in an anonymous file
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "block/block_private.h"
#include "block/handover.h"
#include "block/luks/header_private.h"

#define KEY_MAX 512u
static const char magic[8] = "vixenkey";

struct handed {
	char magic[8];
	uint64_t bytes;			/* of this struct: both sides are of one version */
	struct luks_info info;
	uint64_t key_len;
};

/* --- giving --- */

int luks_key_export(const struct luks_header *h, const struct cipher *c)
{
	struct handed head = { .bytes = sizeof(head), .info = h->info };
	size_t len;
	const uint8_t *key = cipher_key(c, &len);

	memcpy(head.magic, magic, sizeof(magic));
	head.key_len = len;
	return handover_file("volume key", (struct iovec[]){ { &head, sizeof(head) }, { (void *)key, len } }, 2);
}

static int export_one(struct node *n, struct block_fd *out)
{
	return handover_name(out, LUKS_KEY_PREFIX, n->path, n->ops->key_export ? n->ops->key_export(n) : -ENOKEY);
}

int block_keys_export(struct block *b, struct block_fd *out, unsigned max, struct error *e)
{
	unsigned count = 0;
	int ret = 0;

	for (struct node *n = b->root; n && !ret; n = n->child[NODE_BACKING]) {
		n = node_below_filters(n);
		if (n->encrypted && count == max)
			ret = -E2BIG;
		else if (n->encrypted)
			ret = export_one(n, &out[count]);
		count += n->encrypted && !ret;
	}
	if (!ret)
		return (int)count;
	block_fds_free(out, count);
	return error_errno(e, -ret, NULL, "hand over the keys of '%s'", b->root->path);
}

/* --- taking --- */

int luks_key_given(const struct node *n, const struct node_open *how)
{
	return handover_given(n, how, LUKS_KEY_PREFIX);
}

/* It comes from this user's other process, but may have been cut short. */
static bool info_good(struct luks_info *i, uint64_t key_len, uint64_t file_bytes)
{
	i->cipher[sizeof(i->cipher) - 1] = i->mode[sizeof(i->mode) - 1] = 0;
	i->uuid[sizeof(i->uuid) - 1] = i->kdf[sizeof(i->kdf) - 1] = 0;
	return i->sector_bytes >= SECTOR && i->sector_bytes <= 4096 && !(i->sector_bytes & (i->sector_bytes - 1)) &&
	       key_len == i->key_bits / 8 && i->data_at % SECTOR == 0 && i->data_at <= file_bytes;
}

static int cipher_from(struct luks_header *h, struct cipher **cipher, uint64_t file_bytes, int fd)
{
	uint8_t *key = secret_memory(KEY_MAX);
	struct handed head;
	int ret = key ? 0 : -ENOMEM;

	if (!ret && (pread(fd, &head, sizeof(head), 0) != sizeof(head) || memcmp(head.magic, magic, sizeof(magic)) ||
		     head.bytes != sizeof(head) || head.key_len > KEY_MAX ||
		     pread(fd, key, head.key_len, sizeof(head)) != (ssize_t)head.key_len ||
		     !info_good(&head.info, head.key_len, file_bytes)))
		ret = -EBADMSG;
	if (!ret) {
		h->info = head.info;
		ret = cipher_new(cipher, head.info.cipher, head.info.mode, key, head.key_len, head.info.sector_bytes);
	}
	secret_memory_free(key, KEY_MAX);
	return ret;
}

int luks_header_given(struct luks_header **out, struct cipher **cipher, struct node *file, int fd, struct error *e)
{
	struct luks_header *h = calloc(1, sizeof(*h));
	int ret = h ? 0 : -ENOMEM;

	if (h) {
		h->env = file->env;
		h->file = file;
		h->fd = -1;
		*out = h;
		ret = cipher_from(h, cipher, file->size_bytes, fd);
	}
	close(fd);
	return ret ? error_errno(e, -ret, "both sides must be of one version of vixen", "open the encrypted disk '%s'",
				 file->path) : 0;
}
