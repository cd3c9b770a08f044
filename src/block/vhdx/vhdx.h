/*
 * VHDX, Hyper-V's format (MS-VHDX), version 1; read, and made whole.
 *
 *	0     "vhdxfile"     64K, 128K  two headers, the later one counts     192K, 256K  two region tables
 *	headers ──▶ log: what of the metadata has to be written again
 *	regions ──▶ metadata: block size, disk size, parent
 *	        └─▶ block allocation table: 64 bits for each block; with a parent, bitmaps of sectors as well
 *
 * A log that was not written back is replayed in memory: a node between the image and its file shows the file as it
 * would be (log.c).
 */
#ifndef VIXEN_VHDX_H
#define VIXEN_VHDX_H

#include "base/checked.h"
#include "base/endian.h"
#include "block/fresh.h"

#define MIB (1ull << 20)
#define KIB64 65536u
#define GUID_BYTES 16u
#define VHDX_LOG_MAX (16u << 20)
#define VHDX_LOCATOR_MAX KIB64

struct vhdx_header {
	uint64_t sequence, log_at;
	uint32_t log_bytes;
	uint8_t log_guid[GUID_BYTES], data_guid[GUID_BYTES];
};

struct vhdx {
	struct mapped mapped;
	struct vhdx_header h;
	uint64_t bat_at, meta_at, size_bytes;
	uint32_t bat_bytes, meta_bytes, block_bytes, sector_bytes, physical_bytes;
	bool fixed, has_parent, replayed;
	uint64_t chunk;			/* blocks that share a bitmap */
	char *parent, *linkage;		/* path; the parent's data GUID in words */
	struct pages pages;
};

/* Fixed places, and what region and metadata tables call their parts. */
#define VHDX_HEADER_AT(i) (KIB64 * (1u + (i)))
#define VHDX_HEADER_BYTES 4096u
#define VHDX_REGIONS_AT(i) (KIB64 * (3u + (i)))
#define VHDX_ENTRY_BYTES 32u	/* of both tables */
#define VHDX_SIZE_MAX (64ull << 40)
#define VHDX_CHUNK_SECTORS (1ull << 23)
#define VHDX_BLOCK_FULL 6u	/* state in the block allocation table */
enum vhdx_item { ITEM_PARAMETERS, ITEM_SIZE, ITEM_SECTOR, ITEM_PHYSICAL, ITEM_ID, ITEM_LOCATOR, VHDX_ITEMS };
#define VHDX_FIXED 1u		/* flags of ITEM_PARAMETERS */
#define VHDX_PARENT 2u

/* --- header.c --- */
extern const uint8_t vhdx_bat_guid[GUID_BYTES], vhdx_meta_guid[GUID_BYTES];
uint32_t vhdx_sum(const uint8_t *p, size_t len);		/* of p, whose own field for it counts as zeroes */
uint32_t crc32c(uint32_t crc, const uint8_t *p, size_t len);	/* begin with 0 */
/* The checksum of p, whose own field at 4 counts as zeroes, is the one given there. */
bool vhdx_sum_good(const uint8_t *p, size_t len);
int vhdx_headers_read(struct node *n, struct error *e);		/* impl->h */
int vhdx_regions_read(struct node *n, struct error *e);

/* --- metadata.c --- */
extern const uint8_t vhdx_item_guid[VHDX_ITEMS][GUID_BYTES];
int vhdx_metadata_read(struct node *n, struct error *e);
void vhdx_guid_text(char out[40], const uint8_t *guid);		/* "{...}" */

/* --- create.c --- */
int vhdx_create(struct node *file, const struct block_create *c, struct error *e);
int vhdx_fill_begin(struct node *n, struct error *e);

/* --- log.c --- */
/* Puts a node with the log's content over n's NODE_FILE, if there is any. */
int vhdx_log_replay(struct node *n, struct error *e);

#endif
