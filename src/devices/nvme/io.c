/* Commands on the namespace (NVMe 1.4, chapter 6): flush, read, write, write zeroes, dataset management. */
#include <errno.h>
#include <stdlib.h>

#include "block/block.h"
#include "devices/iov.h"
#include "devices/nvme/private.h"
#include "memory/map.h"

enum { IO_FLUSH = 0x00, IO_WRITE = 0x01, IO_READ = 0x02, IO_WRITE_ZEROES = 0x08, IO_DATASET = 0x09 };
enum { DW12_FUA = 1 << 30, DW12_DEALLOCATE = 1 << 25, DW12_PROTECTION = 0xf << 26, DW11_DEALLOCATE = 4 };

static uint16_t status_of(const struct request *r, int ret)
{
	switch (ret) {
	case 0: return OK;
	case -ENOSPC: return CAPACITY;
	case -EROFS: return READ_ONLY;
	case -ENOMEM: return INTERNAL;
	}
	return r->writes ? WRITE_FAULT : READ_ERROR;
}

static void done(void *opaque, int ret)
{
	struct request *r = opaque;

	if (!ret && r->force) {
		r->force = false;
		block_flush(r->n->block, done, r);
		return;
	}
	for (unsigned i = 0; !ret && !r->writes && i < r->nseg; i++)
		map_wrote(r->n->map, r->gpa[i], r->iov[i].iov_len);
	request_end(r, status_of(r, ret), 0);
}

static uint16_t range_check(const struct nvme *n, uint64_t lba, uint64_t blocks)
{
	uint64_t size = block_size(n->block) >> n->shift;

	return lba > size || blocks > size - lba ? LBA_RANGE : OK;
}

static void transfer(struct request *r, bool writes)
{
	struct nvme *n = r->n;
	uint64_t lba = r->c.dw10 | (uint64_t)r->c.dw11 << 32, blocks = (r->c.dw12 & 0xffff) + 1;
	uint16_t status = r->c.dw12 & DW12_PROTECTION ? BAD_FIELD : range_check(n, lba, blocks);

	r->writes = writes;
	if (!status)
		status = prp_map(r, blocks << n->shift, !writes);
	if (status) {
		request_end(r, status, 0);
		return;
	}
	if (writes) {
		r->force = r->c.dw12 & DW12_FUA || !n->feature[FEATURE_CACHE];
		n->writes++;
		n->written_units += blocks << n->shift >> 9;
		block_writev(n->block, lba << n->shift, r->iov, (int)r->nseg, done, r);
	} else {
		n->reads++;
		n->read_units += blocks << n->shift >> 9;
		block_readv(n->block, lba << n->shift, r->iov, (int)r->nseg, done, r);
	}
}

static void write_zeroes(struct request *r)
{
	struct nvme *n = r->n;
	uint64_t lba = r->c.dw10 | (uint64_t)r->c.dw11 << 32, blocks = (r->c.dw12 & 0xffff) + 1;
	uint16_t status = r->c.dw12 & DW12_PROTECTION ? BAD_FIELD : range_check(n, lba, blocks);

	r->writes = true;
	r->force = r->c.dw12 & DW12_FUA || !n->feature[FEATURE_CACHE];
	if (status)
		request_end(r, status, 0);
	else
		block_write_zeroes(n->block, lba << n->shift, blocks << n->shift, r->c.dw12 & DW12_DEALLOCATE, done, r);
}

/* --- dataset management: ranges of { attributes u32 | blocks u32 | lba u64 } --- */

static void dataset_next(void *opaque, int ret)
{
	struct request *r = opaque;
	struct nvme *n = r->n;
	const uint8_t *g;

	if (ret || r->range == r->ranges) {
		done(r, ret);
		return;
	}
	g = r->list + 16 * r->range++;
	block_discard(n->block, load_le64(g + 8) << n->shift, (uint64_t)load_le32(g + 4) << n->shift, dataset_next, r);
}

static uint16_t dataset_get(struct request *r)
{
	uint16_t status;

	r->ranges = (r->c.dw10 & 0xff) + 1;
	r->list = calloc(RANGES_MAX, 16);
	if (!r->list)
		return INTERNAL;
	status = prp_map(r, 16u * r->ranges, false);
	if (status)
		return status;
	iov_get(r->iov, r->nseg, 0, r->list, 16u * r->ranges);
	for (unsigned i = 0; i < r->ranges && !status; i++)
		status = range_check(r->n, load_le64(r->list + 16 * i + 8), load_le32(r->list + 16 * i + 4));
	return status;
}

static void dataset(struct request *r)
{
	uint16_t status = dataset_get(r);

	r->writes = true;
	if (status || !(r->c.dw11 & DW11_DEALLOCATE))	/* the other attributes are hints that help nothing here */
		request_end(r, status, 0);
	else
		dataset_next(r, 0);
}

void io_command(struct request *r)
{
	if (r->c.opcode == IO_FLUSH && (r->c.nsid == NSID || r->c.nsid == UINT32_MAX)) {
		r->writes = true;
		block_flush(r->n->block, done, r);
		return;
	}
	if (r->c.nsid != NSID) {
		request_end(r, BAD_NAMESPACE, 0);
		return;
	}
	switch (r->c.opcode) {
	case IO_READ: transfer(r, false); break;
	case IO_WRITE: transfer(r, true); break;
	case IO_WRITE_ZEROES: write_zeroes(r); break;
	case IO_DATASET: dataset(r); break;
	default: request_end(r, BAD_OPCODE, 0);
	}
}
