/*
 * VHDX, Hyper-V's format (MS-VHDX), version 1; read only.
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
#include "block/mapped.h"

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

/* --- header.c --- */
uint32_t crc32c(uint32_t crc, const uint8_t *p, size_t len);	/* begin with 0 */
/* The checksum of p, whose own field at 4 counts as zeroes, is the one given there. */
bool vhdx_sum_good(const uint8_t *p, size_t len);
int vhdx_headers_read(struct node *n, struct error *e);		/* impl->h */
int vhdx_regions_read(struct node *n, struct error *e);

/* --- metadata.c --- */
int vhdx_metadata_read(struct node *n, struct error *e);
void vhdx_guid_text(char out[40], const uint8_t *guid);		/* "{...}" */

/* --- log.c --- */
/* Puts a node with the log's content over n's NODE_FILE, if there is any. */
int vhdx_log_replay(struct node *n, struct error *e);

#endif
