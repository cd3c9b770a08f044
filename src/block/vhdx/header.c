/* What lies at fixed places of a VHDX file: headers and region tables. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "block/vhdx/vhdx.h"

#define REGIONS_MAX 2047u
#define REQUIRED 1u
#define CRC32C_POLY 0x82f63b78u

const uint8_t vhdx_bat_guid[GUID_BYTES] = { 0x66, 0x77, 0xc2, 0x2d, 0x23, 0xf6, 0x00, 0x42,
					    0x9d, 0x64, 0x11, 0x5e, 0x9b, 0xfd, 0x4a, 0x08 };
const uint8_t vhdx_meta_guid[GUID_BYTES] = { 0x06, 0xa2, 0x7c, 0x8b, 0x90, 0x47, 0x9a, 0x4b,
					     0xb8, 0xfe, 0x57, 0x5f, 0x05, 0x0f, 0x88, 0x6e };

uint32_t crc32c(uint32_t crc, const uint8_t *p, size_t len)
{
	crc = ~crc;
	while (len--) {
		crc ^= *p++;
		for (int bit = 0; bit < 8; bit++)
			crc = crc >> 1 ^ (crc & 1 ? CRC32C_POLY : 0);
	}
	return ~crc;
}

uint32_t vhdx_sum(const uint8_t *p, size_t len)
{
	static const uint8_t none[4];
	uint32_t crc = crc32c(0, p, 4);

	crc = crc32c(crc, none, 4);
	return crc32c(crc, p + 8, len - 8);
}

bool vhdx_sum_good(const uint8_t *p, size_t len)
{
	return vhdx_sum(p, len) == load_le32(p + 4);
}

/* --- headers --- */

static int header_one(struct node *n, unsigned i, struct vhdx_header *h, bool *good)
{
	struct node *file = n->child[NODE_FILE];
	uint8_t *p = malloc(VHDX_HEADER_BYTES);
	int ret = p ? 0 : -ENOMEM;

	*good = false;
	if (!ret && range_inside(VHDX_HEADER_AT(i), VHDX_HEADER_BYTES, file->size_bytes)) {
		ret = node_co_read(file, VHDX_HEADER_AT(i), p, VHDX_HEADER_BYTES);
		*good = !ret && !memcmp(p, "head", 4) && load_le16(p + 66) == 1 && vhdx_sum_good(p, VHDX_HEADER_BYTES);
	}
	if (*good) {
		h->sequence = load_le64(p + 8);
		memcpy(h->data_guid, p + 32, GUID_BYTES);
		memcpy(h->log_guid, p + 48, GUID_BYTES);
		h->log_bytes = load_le32(p + 68);
		h->log_at = load_le64(p + 72);
	}
	free(p);
	return ret;
}

int vhdx_headers_read(struct node *n, struct error *e)
{
	struct vhdx *v = n->impl;
	struct vhdx_header h[2];
	bool good[2];

	for (unsigned i = 0; i < 2; i++) {
		int ret = header_one(n, i, &h[i], &good[i]);

		if (ret)
			return error_errno(e, -ret, NULL, "read disk '%s'", n->path);
	}
	if (!good[0] && !good[1])
		return mapped_bad(n, e, "has no good header");
	v->h = !good[1] || (good[0] && h[0].sequence >= h[1].sequence) ? h[0] : h[1];
	return 0;
}

/* --- regions --- */

static int region(struct node *n, const uint8_t *p, struct error *e)
{
	struct vhdx *v = n->impl;
	uint64_t at = load_le64(p + 16);
	uint32_t len = load_le32(p + 24);
	bool bat = !memcmp(p, vhdx_bat_guid, GUID_BYTES), meta = !memcmp(p, vhdx_meta_guid, GUID_BYTES);

	if (!bat && !meta)
		return load_le32(p + 28) & REQUIRED ? mapped_bad(n, e, "needs a region that is not known") : 0;
	if (at % MIB || at < MIB || !len || !range_inside(at, len, n->child[NODE_FILE]->size_bytes))
		return mapped_bad(n, e, "is cut short: a region lies past the end of the file");
	if (bat ? v->bat_at : v->meta_at)
		return mapped_bad(n, e, "has a region twice");
	*(bat ? &v->bat_at : &v->meta_at) = at;
	*(bat ? &v->bat_bytes : &v->meta_bytes) = len;
	return 0;
}

static int regions_parse(struct node *n, const uint8_t *p, struct error *e)
{
	const struct vhdx *v = n->impl;
	uint32_t count = load_le32(p + 8);
	int ret = 0;

	for (uint32_t i = 0; i < count && !ret; i++)
		ret = region(n, p + 16 + i * VHDX_ENTRY_BYTES, e);
	if (!ret && (!v->bat_at || !v->meta_at))
		ret = mapped_bad(n, e, "has no block allocation table or no metadata");
	return ret;
}

static bool regions_good(const uint8_t *p)
{
	return !memcmp(p, "regi", 4) && load_le32(p + 8) <= REGIONS_MAX && vhdx_sum_good(p, KIB64);
}

int vhdx_regions_read(struct node *n, struct error *e)
{
	struct node *file = n->child[NODE_FILE];
	uint8_t *p = malloc(KIB64);
	int ret = p ? 0 : -ENOMEM;
	bool good = false;

	for (unsigned i = 0; i < 2 && !good && !ret; i++) {
		if (!range_inside(VHDX_REGIONS_AT(i), KIB64, file->size_bytes))
			continue;
		ret = node_co_read(file, VHDX_REGIONS_AT(i), p, KIB64);
		good = !ret && regions_good(p);
	}
	if (ret)
		error_errno(e, -ret, NULL, "read disk '%s'", n->path);
	else
		ret = good ? regions_parse(n, p, e) : mapped_bad(n, e, "has no good region table");
	free(p);
	return ret;
}
