/* New LUKS volumes: aes-xts-plain64 with 512 bits, as cryptsetup and QEMU make them. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "block/job.h"
#include "block/luks/header_private.h"

#define KEY_BYTES 64u
#define COPY_BYTES (64u << 10)

struct making {
	struct luks_header *h;
	const struct secret *secret;
	unsigned version, kdf_ms;
};

static int format(struct making *m)
{
	struct crypt_params_luks1 one = { .hash = "sha256" };
	struct crypt_params_luks2 two = { .sector_size = SECTOR };

	if (m->version == 1)
		return crypt_format(m->h->cd, CRYPT_LUKS1, "aes", "xts-plain64", NULL, NULL, KEY_BYTES, &one);
	return crypt_format(m->h->cd, CRYPT_LUKS2, "aes", "xts-plain64", NULL, NULL, KEY_BYTES, &two);
}

static int make(void *opaque)
{
	struct making *m = opaque;
	int ret;

	if (m->kdf_ms)
		crypt_set_iteration_time(m->h->cd, m->kdf_ms);
	ret = format(m);
	if (!ret)
		ret = crypt_keyslot_add_by_volume_key(m->h->cd, CRYPT_ANY_SLOT, NULL, 0, m->secret->bytes, m->secret->len);
	return ret < 0 ? ret : 0;
}

static int secret_for(const struct block_create *c, struct secret *s, struct error *e)
{
	if (!c->secret_file)
		return error_set(e, ENOKEY, "give a file with it: --key-file FILE", "create an encrypted disk",
				 "it needs a passphrase");
	return secret_read(s, c->secret_file, e);
}

int luks_header_new(struct luks_header **out, struct block_env *env, const struct block_create *c, bool inside,
		    struct error *e)
{
	struct secret s;
	struct making m = { .secret = &s, .version = c->encrypt == BLOCK_ENCRYPT_LUKS2 ? 2 : 1, .kdf_ms = c->kdf_ms };
	int ret;

	if (inside && m.version != 1)
		return error_set(e, EINVAL, "use luks1", "create an encrypted disk", "a qcow2 image has no room for LUKS2");
	ret = secret_for(c, &s, e);
	if (ret)
		return ret;
	m.h = luks_header_alloc(env, LUKS_AREA_MAX, e);
	ret = m.h ? luks_call(env, make, &m) : -ENOMEM;
	if (m.h && ret)
		luks_failed(m.h, e, ret, NULL, "create an encrypted disk");
	if (!ret)
		ret = luks_info_fill(m.h, "the new disk", e);
	secret_fini(&s);
	if (ret)
		luks_header_free(m.h);
	else
		*out = m.h;
	return ret;
}

int luks_header_store(struct luks_header *h, struct node *file, uint64_t at, struct error *e)
{
	uint8_t *b = malloc(COPY_BYTES);
	int ret = b ? 0 : -ENOMEM;

	h->file = file;
	h->at = at;
	for (uint64_t done = 0, len; done < h->info.data_at && !ret; done += len) {
		len = h->info.data_at - done < COPY_BYTES ? h->info.data_at - done : COPY_BYTES;
		if (pread(h->fd, b, len, (off_t)done) != (ssize_t)len)
			ret = -EIO;
		else if (!job_all_zero(b, len))
			ret = node_co_write(file, at + done, b, len);
	}
	free(b);
	return ret ? error_errno(e, -ret, "is there space on the host's disk?", "create disk '%s'", file->path) : 0;
}
