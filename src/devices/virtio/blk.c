/*
 * virtio-blk (virtio 1.2, 5.2).
 *
 *   request:  out: { type u32 | reserved u32 | sector u64 } [data]     in: [data] { status u8 }
 *
 * The framing is the driver's choice (2.7.4): header, data and status are found by byte position, not by
 * descriptor.  Writes complete into the host's page cache; FLUSH makes them durable.  A driver that has not
 * negotiated FLUSH, or that chose write-through, gets a flush after each write.
 */
#include "devices/virtio/blk.h"

#include <endian.h>
#include <errno.h>
#include <linux/virtio_blk.h>
#include <linux/virtio_ids.h>
#include <stdlib.h>
#include <string.h>

#include "block/block.h"
#include "devices/virtio/virtio.h"
#include "memory/map.h"

#define SECTOR_SHIFT 9
#define SERIAL_LEN 20u
#define SEG_MAX 254u
#define RANGE_MAX_SECTORS (64u << 11)		/* 64 MiB of discard or zeroes in one segment */
#define RANGES_MAX 16u
#define BATCH 256u

struct virtio_blk {
	struct virtio *v;
	struct block *block;
	unsigned queues;
	unsigned batch;			/* > 0: kick() is running and will signal */
	uint8_t serial[SERIAL_LEN];
};

struct blk_request {
	struct virtio_blk *d;
	unsigned queue;
	uint16_t head;
	bool flush_after;
	uint32_t written;		/* data bytes for the guest, without the status */
	uint8_t *status;
	uint64_t status_gpa;
	struct virtio_blk_discard_write_zeroes range[RANGES_MAX];
	unsigned ranges, range_next;
	bool zeroes;
	unsigned niov;
	uint64_t *gpa;			/* of iov[], behind it; reads only */
	struct iovec iov[];
};

/* --- completion --- */

static uint8_t status_of(int ret)
{
	return ret == 0 ? VIRTIO_BLK_S_OK : ret == -EOPNOTSUPP ? VIRTIO_BLK_S_UNSUPP : VIRTIO_BLK_S_IOERR;
}

static void request_end(struct blk_request *r, int ret)
{
	struct virtio_blk *d = r->d;
	struct map *m = virtio_map(d->v);

	if (r->gpa)
		virtq_wrote(m, r->iov, r->gpa, r->niov, r->written);
	*r->status = status_of(ret);
	map_wrote(m, r->status_gpa, 1);
	virtq_push(virtio_queue(d->v, r->queue), r->head, r->written + 1);
	if (!d->batch)
		virtio_signal(d->v, r->queue);
	free(r);
	virtio_put(d->v);
}

static void request_done(void *opaque, int ret)
{
	struct blk_request *r = opaque;

	if (ret)
		r->written = 0;
	if (!ret && r->flush_after) {
		r->flush_after = false;
		block_flush(r->d->block, request_done, r);
		return;
	}
	request_end(r, ret);
}

/* --- discard and write zeroes: a list of ranges, one after the other --- */

static void range_next(void *opaque, int ret)
{
	struct blk_request *r = opaque;
	struct block *b = r->d->block;
	const struct virtio_blk_discard_write_zeroes *g;
	uint64_t offset, len;

	if (ret || r->range_next == r->ranges) {
		request_done(r, ret);
		return;
	}
	g = &r->range[r->range_next++];
	offset = le64toh(g->sector) << SECTOR_SHIFT;
	len = (uint64_t)le32toh(g->num_sectors) << SECTOR_SHIFT;
	if (r->zeroes)
		block_write_zeroes(b, offset, len, le32toh(g->flags) & VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP,
				   range_next, r);
	else
		block_discard(b, offset, len, range_next, r);
}

static bool range_good(const struct blk_request *r, const struct virtio_blk_discard_write_zeroes *g)
{
	uint32_t flags = le32toh(g->flags);

	return le32toh(g->num_sectors) <= RANGE_MAX_SECTORS && le64toh(g->sector) < 1ull << 54 &&
	       !(flags & ~(uint32_t)(r->zeroes ? VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP : 0));
}

static void ranges_start(struct blk_request *r, const struct virtq_chain *c, size_t header)
{
	uint64_t len = c->out_len - header;

	if (!len || len % sizeof(r->range[0]) || len > sizeof(r->range)) {
		request_end(r, -EINVAL);
		return;
	}
	iov_get(c->out, c->nout, header, r->range, len);
	r->ranges = (unsigned)(len / sizeof(r->range[0]));
	for (unsigned i = 0; i < r->ranges; i++) {
		if (!range_good(r, &r->range[i])) {
			request_end(r, -EOPNOTSUPP);
			return;
		}
	}
	range_next(r, 0);
}

/* --- dispatch --- */

static bool write_through(struct virtio_blk *d)
{
	uint8_t wce = 1;

	if (!virtio_has(d->v, VIRTIO_BLK_F_FLUSH))
		return true;
	if (virtio_has(d->v, VIRTIO_BLK_F_CONFIG_WCE))
		virtio_config_get(d->v, offsetof(struct virtio_blk_config, wce), &wce, 1);
	return !wce;
}

static void get_id(struct blk_request *r)
{
	struct virtio_blk *d = r->d;

	r->written = (uint32_t)iov_put(r->iov, r->niov, 0, d->serial, SERIAL_LEN);
	request_end(r, 0);
}

static void dispatch(struct blk_request *r, const struct virtq_chain *c, uint32_t type, uint64_t sector,
		     size_t header)
{
	struct virtio_blk *d = r->d;
	uint64_t offset = sector << SECTOR_SHIFT;

	if (sector >> 54) {
		request_end(r, -EINVAL);
		return;
	}
	switch (type) {
	case VIRTIO_BLK_T_IN:
		r->written = (uint32_t)(c->in_len - 1);
		block_readv(d->block, offset, r->iov, (int)r->niov, request_done, r);
		break;
	case VIRTIO_BLK_T_OUT:
		r->flush_after = write_through(d);
		block_writev(d->block, offset, r->iov, (int)r->niov, request_done, r);
		break;
	case VIRTIO_BLK_T_FLUSH:
		block_flush(d->block, request_done, r);
		break;
	case VIRTIO_BLK_T_GET_ID:
		get_id(r);
		break;
	case VIRTIO_BLK_T_DISCARD:
		ranges_start(r, c, header);
		break;
	case VIRTIO_BLK_T_WRITE_ZEROES:
		r->zeroes = true;
		r->flush_after = write_through(d);
		ranges_start(r, c, header);
		break;
	default:
		request_end(r, -EOPNOTSUPP);
	}
}

/* Drops n bytes from the front of a vector. */
static unsigned iov_skip(struct iovec *iov, unsigned n, size_t bytes)
{
	unsigned i = 0;

	while (i < n && bytes >= iov[i].iov_len)
		bytes -= iov[i++].iov_len;
	memmove(iov, iov + i, sizeof(*iov) * (n - i));
	n -= i;
	if (n) {
		iov[0].iov_base = (uint8_t *)iov[0].iov_base + bytes;
		iov[0].iov_len -= bytes;
	}
	return n;
}

/* Takes the last byte of the in[] buffers off for the status. */
static void take_status(struct blk_request *r, const struct virtq_chain *c)
{
	const struct iovec *last = &c->in[c->nin - 1];

	r->status = (uint8_t *)last->iov_base + last->iov_len - 1;
	r->status_gpa = c->in_gpa[c->nin - 1] + last->iov_len - 1;
}

static struct blk_request *request_new(struct virtio_blk *d, unsigned queue, const struct virtq_chain *c,
				       bool in, size_t header)
{
	unsigned n = in ? c->nin : c->nout;
	struct blk_request *r = malloc(sizeof(*r) + n * (sizeof(struct iovec) + sizeof(uint64_t)));

	if (!r)
		return NULL;
	memset(r, 0, sizeof(*r));
	r->d = d;
	r->queue = queue;
	r->head = c->head;
	take_status(r, c);
	if (in) {
		r->gpa = (uint64_t *)&r->iov[n];
		memcpy(r->iov, c->in, n * sizeof(struct iovec));
		memcpy(r->gpa, c->in_gpa, n * sizeof(uint64_t));
		r->niov = --r->iov[n - 1].iov_len ? n : n - 1;
	} else {
		memcpy(r->iov, c->out, n * sizeof(struct iovec));
		r->niov = iov_skip(r->iov, n, header);
	}
	return r;
}

/* false: the chain is not even a request. */
static bool request_start(struct virtio_blk *d, unsigned queue, const struct virtq_chain *c)
{
	struct virtio_blk_outhdr h;
	struct blk_request *r;
	uint32_t type;

	if (!c->nin || iov_get(c->out, c->nout, 0, &h, sizeof(h)) != sizeof(h) || c->in_len > UINT32_MAX)
		return false;
	type = le32toh(h.type);
	r = request_new(d, queue, c, type == VIRTIO_BLK_T_IN || type == VIRTIO_BLK_T_GET_ID, sizeof(h));
	virtio_get(d->v);
	if (!r) {	/* no memory: the request fails, not the VM */
		uint8_t status = VIRTIO_BLK_S_IOERR;

		iov_put(c->in, c->nin, c->in_len - 1, &status, 1);
		virtq_push(virtio_queue(d->v, queue), c->head, 1);
		virtio_put(d->v);
		return true;
	}
	dispatch(r, c, type, le64toh(h.sector), sizeof(h));
	return true;
}

static void blk_kick(void *opaque, unsigned queue)
{
	struct virtio_blk *d = opaque;
	struct virtq *q = virtio_queue(d->v, queue);
	struct virtq_chain c;
	unsigned n = 0;

	virtio_get(d->v);
	d->batch++;
	block_plug(d->block);
	do {
		virtq_ignore_kicks(q);
		while (n < BATCH && virtq_pop(q, &c)) {
			if (!request_start(d, queue, &c))
				q->broken = true;
			n++;
		}
	} while (n < BATCH && virtq_listen(q));
	block_unplug(d->block);
	d->batch--;
	/* Completions inside the batch may belong to any queue. */
	for (unsigned i = 0; i < d->queues; i++)
		virtio_signal(d->v, i);
	if (n == BATCH)
		virtio_again(d->v, queue);
	virtio_put(d->v);
}

static void blk_free(void *opaque)
{
	free(opaque);
}

static const struct virtio_class blk_class = {
	.name = "virtio-blk", .id = VIRTIO_ID_BLOCK, .class_code = 0x010000,
	.kick = blk_kick, .free = blk_free,
};

static uint64_t features(const struct block *b, unsigned queues)
{
	uint64_t f = 1ull << VIRTIO_BLK_F_SEG_MAX | 1ull << VIRTIO_BLK_F_BLK_SIZE |
		     1ull << VIRTIO_BLK_F_FLUSH | 1ull << VIRTIO_BLK_F_CONFIG_WCE | 1ull << VIRTIO_BLK_F_TOPOLOGY |
		     1ull << VIRTIO_BLK_F_GEOMETRY;

	if (queues > 1)
		f |= 1ull << VIRTIO_BLK_F_MQ;
	if (block_readonly(b))
		return f | 1ull << VIRTIO_BLK_F_RO;
	f |= 1ull << VIRTIO_BLK_F_WRITE_ZEROES;
	if (block_can_discard(b))
		f |= 1ull << VIRTIO_BLK_F_DISCARD;
	return f;
}

/* The usual translation of large disks: 16 heads, 63 sectors. */
static void geometry(struct virtio_blk_config *c, uint64_t sectors)
{
	uint64_t cylinders = sectors / (16 * 63);

	c->geometry.cylinders = htole16((uint16_t)(cylinders > 16383 ? 16383 : cylinders));
	c->geometry.heads = 16;
	c->geometry.sectors = 63;
}

static void config_fill(struct virtio_blk_config *c, const struct block *b, unsigned queues)
{
	uint64_t sectors = block_size(b) >> SECTOR_SHIFT;

	memset(c, 0, sizeof(*c));
	c->capacity = htole64(sectors);
	c->seg_max = htole32(SEG_MAX);
	geometry(c, sectors);
	c->blk_size = htole32(512);
	c->physical_block_exp = 3;	/* 4 KiB: the host's pages */
	c->min_io_size = htole16(8);
	c->wce = 1;
	c->num_queues = htole16((uint16_t)queues);
	c->max_discard_sectors = htole32(RANGE_MAX_SECTORS);
	c->max_discard_seg = htole32(RANGES_MAX);
	c->discard_sector_alignment = htole32(8);
	c->max_write_zeroes_sectors = htole32(RANGE_MAX_SECTORS);
	c->max_write_zeroes_seg = htole32(RANGES_MAX);
	c->write_zeroes_may_unmap = block_can_discard(b);
}

int virtio_blk_new(struct virtio_blk **out, struct pci_bus *bus, struct map *m, struct loop *l,
		   struct block *b, const char *serial, unsigned queues, struct error *e)
{
	struct virtio_blk *d = calloc(1, sizeof(*d));
	uint8_t wmask[VIRTIO_CONFIG_MAX] = {0};
	struct virtio_blk_config config;
	struct virtio_params p = { .queues = queues, .features = features(b, queues), .config = &config,
				   .config_len = sizeof(config), .config_wmask = wmask };
	int ret;

	ASSERT(queues && queues <= 16);
	_Static_assert(sizeof(config) <= VIRTIO_CONFIG_MAX, "configuration fits");
	if (!d)
		return error_errno(e, ENOMEM, NULL, "create virtio-blk");
	d->block = b;
	d->queues = queues;
	if (serial)
		memcpy(d->serial, serial, strnlen(serial, SERIAL_LEN));
	config_fill(&config, b, queues);
	wmask[offsetof(struct virtio_blk_config, wce)] = 1;
	ret = virtio_new(&d->v, &blk_class, &p, bus, m, l, d, e);
	if (ret) {
		free(d);
		return ret;
	}
	*out = d;
	return 0;
}

unsigned virtio_blk_slot(const struct virtio_blk *d)
{
	return virtio_slot(d->v);
}
