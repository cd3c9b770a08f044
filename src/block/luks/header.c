/* Headers of LUKS volumes: a copy in an anonymous file, with libcryptsetup working on it. */
#include <errno.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "base/checked.h"
#include "base/endian.h"
#include "block/luks/header_private.h"
#include "host/workers.h"

#define COPY_BYTES (1u << 20)

/* --- calls that take long --- */

struct call {
	int (*fn)(void *arg);
	void *arg;
	int ret;
};

static void call_one(void *opaque)
{
	struct call *c = opaque;

	c->ret = c->fn(c->arg);
}

int luks_call(struct block_env *env, int (*fn)(void *arg), void *arg)
{
	struct call c = { fn, arg, 0 };

	workers_co_run(env->workers, call_one, &c);
	return c.ret;
}

/* --- libcryptsetup --- */

static void on_words(int level, const char *msg, void *opaque)
{
	struct luks_header *h = opaque;
	size_t n = strcspn(msg, "\n");

	if (level == CRYPT_LOG_ERROR && n)
		snprintf(h->said, sizeof(h->said), "%.*s", (int)(msg[n - 1] == '.' ? n - 1 : n), msg);
}

int luks_failed(const struct luks_header *h, struct error *e, int ret, const char *todo, const char *what)
{
	return error_set(e, -ret, todo, what, "%s", h->said[0] ? h->said : strerror(-ret));
}

struct luks_header *luks_header_alloc(struct block_env *env, uint64_t bytes, struct error *e)
{
	struct luks_header *h = calloc(1, sizeof(*h));
	int ret = h ? 0 : -ENOMEM;

	if (h) {
		h->env = env;
		h->fd = memfd_create("luks", MFD_CLOEXEC);
		if (h->fd < 0 || ftruncate(h->fd, (off_t)bytes) < 0)
			ret = -errno;
		snprintf(h->path, sizeof(h->path), "/proc/self/fd/%d", h->fd);
		crypt_metadata_locking(NULL, 0);	/* our own lock on the image is what counts */
	}
	if (!ret)
		ret = crypt_init(&h->cd, h->path);
	if (ret) {
		error_errno(e, -ret, "is /proc mounted?", "read a LUKS header");
		luks_header_free(h);
		return NULL;
	}
	crypt_set_log_callback(h->cd, on_words, h);
	return h;
}

void luks_header_free(struct luks_header *h)
{
	if (!h)
		return;
	crypt_free(h->cd);
	if (h->fd >= 0)
		close(h->fd);
	free(h);
}

const struct luks_info *luks_header_info(const struct luks_header *h)
{
	return &h->info;
}

void luks_info_extra(const struct luks_info *l, struct block_info *out)
{
	out->encrypted = true;
	block_info_extra(out, "encryption", "LUKS%u, %s-%s, %u bits", l->version, l->cipher, l->mode, l->key_bits);
	block_info_extra(out, "key slots", "%u of %u, %s", l->slots, l->slots_max, l->kdf);
	block_info_extra(out, "LUKS UUID", "%s", l->uuid);
}

/* --- what the header says --- */

static int bad(const char *path, struct error *e, const char *todo, const char *why)
{
	char what[192];

	snprintf(what, sizeof(what), "open disk '%.150s'", path);
	return error_set(e, ENOTSUP, todo, what, "%s", why);
}

/* One plain segment, to the end of the file or of a size given. */
static int segments_good(struct luks_header *h, const char *path, json_t *root, struct error *e)
{
	json_t *all = json_object_get(root, "segments"), *s = json_object_get(all, "0");
	const char *type = json_string_value(json_object_get(s, "type"));
	const char *size = json_string_value(json_object_get(s, "size"));

	if (json_object_size(all) != 1 || !type || strcmp(type, "crypt") || !size)
		return bad(path, e, "finish what changes its encryption: cryptsetup reencrypt --resume-only",
			   "it is not one encrypted area");
	if (json_object_get(s, "integrity"))
		return bad(path, e, "copy its content to a disk without", "it has authenticated encryption");
	h->info.data_bytes = strcmp(size, "dynamic") ? strtoull(size, NULL, 10) : 0;
	return 0;
}

static int luks2_good(struct luks_header *h, const char *path, struct error *e)
{
	const char *text;
	uint32_t flags = 0;
	json_t *root;
	int ret;

	if (crypt_persistent_flags_get(h->cd, CRYPT_FLAGS_REQUIREMENTS, &flags) || flags)
		return bad(path, e, "finish it: cryptsetup reencrypt --resume-only", "a change of its encryption is under way");
	if (crypt_dump_json(h->cd, &text, 0))
		return bad(path, e, "restore it from a copy", "its LUKS header cannot be read");
	root = json_loads(text, 0, NULL);
	ret = root ? segments_good(h, path, root, e) : bad(path, e, NULL, "its LUKS header cannot be read");
	json_decref(root);
	return ret;
}

static void slots_count(struct luks_header *h)
{
	struct luks_info *l = &h->info;
	struct crypt_pbkdf_type kdf;

	l->slots_max = (unsigned)crypt_keyslot_max(crypt_get_type(h->cd));
	for (unsigned i = 0; i < l->slots_max; i++) {
		crypt_keyslot_info state = crypt_keyslot_status(h->cd, (int)i);

		if (state != CRYPT_SLOT_ACTIVE && state != CRYPT_SLOT_ACTIVE_LAST)
			continue;
		if (!l->slots++ && !crypt_keyslot_get_pbkdf(h->cd, (int)i, &kdf))
			snprintf(l->kdf, sizeof(l->kdf), "%s", kdf.type);
	}
}

int luks_info_fill(struct luks_header *h, const char *path, struct error *e)
{
	struct luks_info *l = &h->info;
	const char *uuid = crypt_get_uuid(h->cd);
	int ret = 0;

	*l = (struct luks_info){ .version = strcmp(crypt_get_type(h->cd), CRYPT_LUKS1) ? 2 : 1 };
	snprintf(l->cipher, sizeof(l->cipher), "%s", crypt_get_cipher(h->cd));
	snprintf(l->mode, sizeof(l->mode), "%s", crypt_get_cipher_mode(h->cd));
	snprintf(l->uuid, sizeof(l->uuid), "%s", uuid ? uuid : "none");
	l->key_bits = (unsigned)crypt_get_volume_key_size(h->cd) * 8;
	l->data_at = crypt_get_data_offset(h->cd) * SECTOR;
	l->sector_bytes = (unsigned)crypt_get_sector_size(h->cd);
	l->iv_offset = crypt_get_iv_offset(h->cd);
	slots_count(h);
	if (l->version == 2)
		ret = luks2_good(h, path, e);
	if (!ret && (l->data_bytes % SECTOR || l->sector_bytes < SECTOR || l->sector_bytes > 4096))
		ret = bad(path, e, "restore it from a copy", "its LUKS header gives sizes that cannot be");
	return ret;
}

/* --- reading it --- */

static int copy_in(struct luks_header *h, uint64_t from, uint64_t to)
{
	uint8_t *b = malloc(COPY_BYTES);
	int ret = b ? 0 : -ENOMEM;

	for (uint64_t at = from, len; at < to && !ret; at += len) {
		len = to - at < COPY_BYTES ? to - at : COPY_BYTES;
		ret = node_co_read(h->file, h->at + at, b, len);
		if (!ret && pwrite(h->fd, b, len, (off_t)at) != (ssize_t)len)
			ret = -ENOMEM;
	}
	free(b);
	return ret;
}

static int load(void *opaque)
{
	struct luks_header *h = opaque;

	return crypt_load(h->cd, CRYPT_LUKS, NULL);
}

static int header_load(struct luks_header *h, uint64_t len, struct error *e)
{
	const char *path = h->file->path;
	uint64_t first = len < LUKS_FIRST_BYTES ? len : LUKS_FIRST_BYTES;
	char what[192];
	int ret = copy_in(h, 0, first);

	snprintf(what, sizeof(what), "open disk '%.150s'", path);
	if (ret)
		return error_errno(e, -ret, NULL, "read disk '%s'", path);
	if (luks_call(h->env, load, h))
		return luks_failed(h, e, -EINVAL, "restore its header from a copy; is it a LUKS volume at all?", what);
	ret = luks_info_fill(h, path, e);
	if (ret)
		return ret;
	if (h->info.data_at > LUKS_AREA_MAX)
		return bad(path, e, "use cryptsetup", "its LUKS header is larger than 160 MiB");
	if (h->info.data_at > len)
		return bad(path, e, "restore it from a copy", "it is cut short: its key slots lie past the end of the file");
	ret = h->info.data_at > first ? copy_in(h, first, h->info.data_at) : 0;
	return ret ? error_errno(e, -ret, NULL, "read disk '%s'", path) : 0;
}

int luks_header_open(struct luks_header **out, struct node *file, uint64_t at, uint64_t len, struct error *e)
{
	struct luks_header *h;
	uint8_t magic[8] = { 0 };
	int ret = 0;

	if (range_inside(at, sizeof(magic), file->size_bytes))
		ret = node_co_read(file, at, magic, sizeof(magic));
	if (ret)
		return ret;
	if (memcmp(magic, LUKS_MAGIC, LUKS_MAGIC_BYTES))
		return bad(file->path, e, "restore it from a copy", "it has no LUKS header");
	/* Larger than any area, so that what is missing is found by us. */
	h = luks_header_alloc(file->env, LUKS_AREA_MAX * 2ull, e);
	if (!h)
		return -ENOMEM;
	h->file = file;
	h->at = at;
	ret = header_load(h, len, e);
	if (ret) {
		luks_header_free(h);
		return ret;
	}
	*out = h;
	return 0;
}
