/*
 * The metadata region of a VHDX file.
 *
 *	"metadata" | count | entries: GUID, offset, length, flags |   64 KiB
 *	items
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#include "block/vhdx/vhdx.h"

#define TABLE_BYTES KIB64
#define ENTRIES_MAX 2047u
#define ENTRY_REQUIRED 4u
#define LOCATOR_HEAD 20u
#define LOCATOR_ENTRY 12u

const uint8_t vhdx_item_guid[VHDX_ITEMS][GUID_BYTES] = {
	[ITEM_PARAMETERS] = { 0x37, 0x67, 0xa1, 0xca, 0x36, 0xfa, 0x43, 0x4d,
			     0xb3, 0xb6, 0x33, 0xf0, 0xaa, 0x44, 0xe7, 0x6b },
	[ITEM_SIZE] = { 0x24, 0x42, 0xa5, 0x2f, 0x1b, 0xcd, 0x76, 0x48,
			     0xb2, 0x11, 0x5d, 0xbe, 0xd8, 0x3b, 0xf4, 0xb8 },
	[ITEM_SECTOR] = { 0x1d, 0xbf, 0x41, 0x81, 0x6f, 0xa9, 0x09, 0x47,
			     0xba, 0x47, 0xf2, 0x33, 0xa8, 0xfa, 0xab, 0x5f },
	[ITEM_PHYSICAL] = { 0xc7, 0x48, 0xa3, 0xcd, 0x5d, 0x44, 0x71, 0x44,
			     0x9c, 0xc9, 0xe9, 0x88, 0x52, 0x51, 0xc5, 0x56 },
	[ITEM_ID] = { 0xab, 0x12, 0xca, 0xbe, 0xe6, 0xb2, 0x23, 0x45,
			     0x93, 0xef, 0xc3, 0x09, 0xe0, 0x00, 0xc7, 0x46 },
	[ITEM_LOCATOR] = { 0x2d, 0x5f, 0xd3, 0xa8, 0x0b, 0xb3, 0x4d, 0x45,
			     0xab, 0xf7, 0xd3, 0xd8, 0x48, 0x34, 0xab, 0x0c },
};

static const uint32_t item_bytes[VHDX_ITEMS] = {	/* 0: any */
	[ITEM_PARAMETERS] = 8, [ITEM_SIZE] = 8, [ITEM_SECTOR] = 4, [ITEM_PHYSICAL] = 4,
	[ITEM_ID] = 16, [ITEM_LOCATOR] = 0,
};

void vhdx_guid_text(char out[40], const uint8_t *g)
{
	snprintf(out, 40, "{%08x-%04x-%04x-%02x%02x-%02x%02x%02x%02x%02x%02x}", load_le32(g), load_le16(g + 4),
		 load_le16(g + 6), g[8], g[9], g[10], g[11], g[12], g[13], g[14], g[15]);
}

/* --- the parent's name --- */

static size_t utf8_put(char *out, uint32_t c)
{
	if (c < 0x80) {
		out[0] = (char)c;
		return 1;
	}
	if (c < 0x800) {
		out[0] = (char)(0xc0 | c >> 6);
		out[1] = (char)(0x80 | (c & 0x3f));
		return 2;
	}
	if (c < 0x10000) {
		out[0] = (char)(0xe0 | c >> 12);
		out[1] = (char)(0x80 | (c >> 6 & 0x3f));
		out[2] = (char)(0x80 | (c & 0x3f));
		return 3;
	}
	out[0] = (char)(0xf0 | c >> 18);
	out[1] = (char)(0x80 | (c >> 12 & 0x3f));
	out[2] = (char)(0x80 | (c >> 6 & 0x3f));
	out[3] = (char)(0x80 | (c & 0x3f));
	return 4;
}

/* UTF-16 to UTF-8; NULL: it has zeroes, or memory ran out. */
static char *text(const uint8_t *p, size_t len)
{
	char *out = malloc(len * 2 + 1);
	size_t n = 0;

	for (size_t i = 0; out && i + 2 <= len; i += 2) {
		uint32_t c = load_le16(p + i);

		if (!c) {
			free(out);
			return NULL;
		}
		if (c >> 10 == 0x36 && i + 4 <= len && load_le16(p + i + 2) >> 10 == 0x37) {
			c = 0x10000 + ((c & 0x3ff) << 10 | (load_le16(p + i + 2) & 0x3ff));
			i += 2;
		}
		n += utf8_put(out + n, c);
	}
	if (out)
		out[n] = 0;
	return out;
}

/* value becomes ours.  Windows' paths: a relative one is taken as it is, of others only the name. */
static void locator_pair(struct vhdx *v, const char *key, char *value)
{
	char *slash;

	if (!strcasecmp(key, "parent_linkage")) {
		free(v->linkage);
		v->linkage = value;
		return;
	}
	if (strcasecmp(key, "relative_path") && (strcasecmp(key, "absolute_win32_path") || v->parent)) {
		free(value);
		return;
	}
	for (char *c = value; *c; c++)
		*c = *c == '\\' ? '/' : *c;
	slash = strcasecmp(key, "relative_path") ? strrchr(value, '/') : NULL;
	if (slash)
		memmove(value, slash + 1, strlen(slash));
	free(v->parent);
	v->parent = value;
}

static int locator(struct node *n, const uint8_t *p, uint32_t len, struct error *e)
{
	struct vhdx *v = n->impl;
	uint32_t count = len >= LOCATOR_HEAD ? load_le16(p + 18) : 0;

	if (len < LOCATOR_HEAD + count * LOCATOR_ENTRY)
		return mapped_bad(n, e, "names its parent in a way that cannot be");
	for (uint32_t i = 0; i < count; i++) {
		const uint8_t *q = p + LOCATOR_HEAD + i * LOCATOR_ENTRY;
		uint32_t key_at = load_le32(q), value_at = load_le32(q + 4);
		uint16_t key_len = load_le16(q + 8), value_len = load_le16(q + 10);
		char *key, *value;

		if (!range_inside(key_at, key_len, len) || !range_inside(value_at, value_len, len))
			return mapped_bad(n, e, "names its parent in a way that cannot be");
		key = text(p + key_at, key_len);
		value = text(p + value_at, value_len);
		if (key && value)
			locator_pair(v, key, value);
		else
			free(value);
		free(key);
	}
	return 0;
}

/* --- items --- */

static int item(struct node *n, enum vhdx_item i, const uint8_t *p, uint32_t len, struct error *e)
{
	struct vhdx *v = n->impl;

	switch (i) {
	case ITEM_PARAMETERS:
		v->block_bytes = load_le32(p);
		v->fixed = load_le32(p + 4) & VHDX_FIXED;
		v->has_parent = load_le32(p + 4) & VHDX_PARENT;
		return 0;
	case ITEM_SIZE: v->size_bytes = load_le64(p); return 0;
	case ITEM_SECTOR: v->sector_bytes = load_le32(p); return 0;
	case ITEM_PHYSICAL: v->physical_bytes = load_le32(p); return 0;
	case ITEM_LOCATOR: return locator(n, p, len, e);
	default: return 0;
	}
}

static int entry(struct node *n, const uint8_t *q, struct error *e)
{
	const struct vhdx *v = n->impl;
	uint32_t at = load_le32(q + 16), len = load_le32(q + 20);
	enum vhdx_item i = 0;
	uint8_t *p;
	int ret;

	while (i < VHDX_ITEMS && memcmp(q, vhdx_item_guid[i], GUID_BYTES))
		i++;
	if (i == VHDX_ITEMS)
		return load_le32(q + 24) & ENTRY_REQUIRED ? mapped_bad(n, e, "needs metadata that is not known") : 0;
	if (at < TABLE_BYTES || !range_inside(at, len, v->meta_bytes) || len > VHDX_LOCATOR_MAX ||
	    (item_bytes[i] && len != item_bytes[i]))
		return mapped_bad(n, e, "has metadata outside of its place");
	p = malloc(len ? len : 1);
	ret = p ? node_co_read(n->child[NODE_FILE], v->meta_at + at, p, len) : -ENOMEM;
	ret = ret ? error_errno(e, -ret, NULL, "read disk '%s'", n->path) : item(n, i, p, len, e);
	free(p);
	return ret;
}

static int values_good(struct node *n, struct error *e)
{
	const struct vhdx *v = n->impl;

	if (v->block_bytes < MIB || v->block_bytes > 256 * MIB || v->block_bytes & (v->block_bytes - 1))
		return mapped_bad(n, e, "gives a block size that cannot be");
	if (v->sector_bytes != 512 && v->sector_bytes != 4096)
		return mapped_bad(n, e, "gives a sector size that cannot be");
	if (!v->size_bytes || v->size_bytes > VHDX_SIZE_MAX || v->size_bytes % v->sector_bytes)
		return mapped_bad(n, e, "gives a disk size that cannot be");
	return 0;
}

static int table_parse(struct node *n, const uint8_t *p, struct error *e)
{
	uint32_t count = load_le16(p + 10);
	int ret = 0;

	if (memcmp(p, "metadata", 8) || count > ENTRIES_MAX)
		return mapped_bad(n, e, "has no metadata");
	for (uint32_t i = 0; i < count && !ret; i++)
		ret = entry(n, p + VHDX_ENTRY_BYTES + i * VHDX_ENTRY_BYTES, e);
	return ret ? ret : values_good(n, e);
}

int vhdx_metadata_read(struct node *n, struct error *e)
{
	const struct vhdx *v = n->impl;
	uint8_t *p = v->meta_bytes < TABLE_BYTES ? NULL : malloc(TABLE_BYTES);
	int ret;

	if (!p)
		return v->meta_bytes < TABLE_BYTES ? mapped_bad(n, e, "has too little metadata") :
		       error_errno(e, ENOMEM, NULL, "open disk '%s'", n->path);
	ret = node_co_read(n->child[NODE_FILE], v->meta_at, p, TABLE_BYTES);
	ret = ret ? error_errno(e, -ret, NULL, "read disk '%s'", n->path) : table_parse(n, p, e);
	free(p);
	return ret;
}
