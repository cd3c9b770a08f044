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
#define SEG_MAX 254u
#define RANGE_MAX_SECTORS (64u << 11)		/* 64 MiB of discard or zeroes in one segment */
#define RANGES_MAX 16u
#define ERASE_STEP (4u << 20)			/* bytes overwritten by one write */
#define ZERO_BYTES (64u << 10)
#define SIZE_MAX_BYTES (4u << 20)		/* of one segment: a request then is at most about 1 GiB */
#define BATCH 256u

static const uint8_t zero_bytes[ZERO_BYTES];

struct virtio_blk {
	struct virtio *v;
	struct block *block;
	unsigned queues;
	void (*gone)(void *opaque);	/* the disk is being taken out */
	void *gone_opaque;
	unsigned batch;			/* > 0: kick() is running and will signal */
	uint8_t serial[DISK_SERIAL_MAX];
	struct disk_traits traits;	/* without serial */
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
	uint32_t type;
	uint64_t erase_offset, erase_left;	/* bytes of the range being erased */
	struct iovec *erase;		/* ERASE_STEP of zeroes; NULL: nothing is erased */
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
	free(r->erase);
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

/* --- discard, write zeroes, secure erase: a list of ranges, one after the other --- */

static void range_next(void *opaque, int ret);

static void erase_flushed(void *opaque, int ret)
{
	struct blk_request *r = opaque;
	const struct virtio_blk_discard_write_zeroes *g = &r->range[r->range_next - 1];

	if (ret)
		request_done(r, ret);
	else
		block_discard(r->d->block, le64toh(g->sector) << SECTOR_SHIFT,
			      (uint64_t)le32toh(g->num_sectors) << SECTOR_SHIFT, range_next, r);
}

/* Zeroes are written out, since giving space back or noting "zero" would leave the old bytes on the host's disk. */
static void erase_next(void *opaque, int ret)
{
	struct blk_request *r = opaque;
	uint64_t offset = r->erase_offset, n = r->erase_left < ERASE_STEP ? r->erase_left : ERASE_STEP;
	int niov = 0;

	if (!ret && !block_overwrites(r->d->block))
		ret = -EOPNOTSUPP;	/* it may change its image between any two steps */
	if (ret) {
		request_done(r, ret);
		return;
	}
	if (!n) {
		block_flush(r->d->block, erase_flushed, r);
		return;
	}
	r->erase_offset += n;
	r->erase_left -= n;
	for (uint64_t left = n; left; left -= r->erase[niov++].iov_len)
		r->erase[niov] = (struct iovec){ (void *)zero_bytes, left < ZERO_BYTES ? left : ZERO_BYTES };
	block_writev(r->d->block, offset, r->erase, niov, erase_next, r);
}

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
	if (r->erase) {
		r->erase_offset = offset;
		r->erase_left = len;
		erase_next(r, 0);
	} else if (r->type == VIRTIO_BLK_T_WRITE_ZEROES) {
		block_write_zeroes(b, offset, len, le32toh(g->flags) & VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP,
				   range_next, r);
	} else {
		block_discard(b, offset, len, range_next, r);
	}
}

static bool range_good(const struct blk_request *r, const struct virtio_blk_discard_write_zeroes *g)
{
	uint32_t flags = le32toh(g->flags);

	return le32toh(g->num_sectors) <= RANGE_MAX_SECTORS && le64toh(g->sector) < 1ull << 54 &&
	       !(flags & ~(uint32_t)(r->type == VIRTIO_BLK_T_WRITE_ZEROES ? VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP : 0));
}

/* Linux chooses a buffer's direction by the type's lowest bit, so it gives the ranges of a secure erase (14) as
 * device-writable ones.  2.7.5.1 lets a device read those. */
static uint64_t ranges_get(struct blk_request *r, const struct virtq_chain *c, size_t header)
{
	bool in = r->type == VIRTIO_BLK_T_SECURE_ERASE && c->out_len == header;
	uint64_t len = in ? c->in_len - 1 : c->out_len - header;

	if (!len || len % sizeof(r->range[0]) || len > sizeof(r->range))
		return 0;
	if (in)
		iov_get(c->in, c->nin, 0, r->range, len);
	else
		iov_get(c->out, c->nout, header, r->range, len);
	return len;
}

static void ranges_start(struct blk_request *r, const struct virtq_chain *c, size_t header)
{
	uint64_t len = ranges_get(r, c, header);

	if (!len) {
		request_end(r, -EINVAL);
		return;
	}
	r->ranges = (unsigned)(len / sizeof(r->range[0]));
	for (unsigned i = 0; i < r->ranges; i++) {
		if (!range_good(r, &r->range[i])) {
			request_end(r, -EOPNOTSUPP);
			return;
		}
	}
	if (r->type == VIRTIO_BLK_T_SECURE_ERASE && !(r->erase = calloc(ERASE_STEP / ZERO_BYTES, sizeof(*r->erase)))) {
		request_end(r, -ENOMEM);
		return;
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

	r->written = (uint32_t)iov_put(r->iov, r->niov, 0, d->serial, sizeof(d->serial));
	request_end(r, 0);
}

static void dispatch(struct blk_request *r, const struct virtq_chain *c, uint64_t sector, size_t header)
{
	struct virtio_blk *d = r->d;
	uint64_t offset = sector << SECTOR_SHIFT;

	if (sector >> 54) {
		request_end(r, -EINVAL);
		return;
	}
	switch (r->type) {
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
	case VIRTIO_BLK_T_SECURE_ERASE:
		if (virtio_has(d->v, VIRTIO_BLK_F_SECURE_ERASE) && block_overwrites(d->block))
			ranges_start(r, c, header);
		else
			request_end(r, -EOPNOTSUPP);
		break;
	case VIRTIO_BLK_T_WRITE_ZEROES:
		r->flush_after = write_through(d);
		ranges_start(r, c, header);
		break;
	default:
		request_end(r, -EOPNOTSUPP);
	}
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
		r->niov = iov_drop(r->iov, n, header);
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
	r->type = type;
	dispatch(r, c, le64toh(h.sector), sizeof(h));
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

/* 5.2.5.2: without FLUSH nothing is ever cached, and the field says so. */
static void blk_start(void *opaque)
{
	struct virtio_blk *d = opaque;
	const uint8_t off = 0;

	if (virtio_has(d->v, VIRTIO_BLK_F_CONFIG_WCE) && !virtio_has(d->v, VIRTIO_BLK_F_FLUSH))
		virtio_config_set(d->v, offsetof(struct virtio_blk_config, wce), &off, 1, false);
}

static void blk_withdrawn(void *opaque)
{
	struct virtio_blk *d = opaque;

	d->block = NULL;
	d->gone(d->gone_opaque);
}

static void blk_free(void *opaque)
{
	free(opaque);
}

static const struct virtio_class blk_class = {
	.name = "virtio-blk", .id = VIRTIO_ID_BLOCK, .class_code = 0x010000,
	.start = blk_start, .kick = blk_kick, .withdrawn = blk_withdrawn,
	.free = blk_free,
};

/* --- what it shows --- */

static uint64_t features(const struct block *b, unsigned queues)
{
	uint64_t f = 1ull << VIRTIO_BLK_F_SIZE_MAX | 1ull << VIRTIO_BLK_F_SEG_MAX | 1ull << VIRTIO_BLK_F_BLK_SIZE |
		     1ull << VIRTIO_BLK_F_FLUSH | 1ull << VIRTIO_BLK_F_CONFIG_WCE | 1ull << VIRTIO_BLK_F_TOPOLOGY |
		     1ull << VIRTIO_BLK_F_GEOMETRY;

	if (queues > 1)
		f |= 1ull << VIRTIO_BLK_F_MQ;
	if (block_readonly(b))
		return f | 1ull << VIRTIO_BLK_F_RO;
	f |= 1ull << VIRTIO_BLK_F_WRITE_ZEROES;
	if (block_can_discard(b))
		f |= 1ull << VIRTIO_BLK_F_DISCARD;
	if (block_overwrites(b))
		f |= 1ull << VIRTIO_BLK_F_SECURE_ERASE;
	return f;
}

/* Capacity, and the usual translation of large disks: 16 heads, 63 sectors. */
static void capacity(struct virtio_blk_config *c, const struct block *b)
{
	uint64_t sectors = block_size(b) >> SECTOR_SHIFT, cylinders = sectors / (16 * 63);

	c->capacity = htole64(sectors);
	c->geometry.cylinders = htole16((uint16_t)(cylinders > 16383 ? 16383 : cylinders));
	c->geometry.heads = 16;
	c->geometry.sectors = 63;
}

/* Sizes in logical blocks.  Whole clusters of a format are written best, and given back at all. */
static void topology(struct virtio_blk_config *c, const struct block *b, const struct disk_traits *t)
{
	uint32_t logical = disk_logical(t), physical = disk_physical(t), cluster = block_cluster(b);
	uint32_t give_back = cluster > 4096 ? cluster : 4096;

	c->blk_size = htole32(logical);
	c->physical_block_exp = (uint8_t)__builtin_ctz(physical / logical);
	c->min_io_size = htole16((uint16_t)(physical / logical));
	if (cluster > physical)
		c->opt_io_size = htole32(cluster / logical);
	c->discard_sector_alignment = htole32(give_back >> SECTOR_SHIFT);
}

static void config_fill(struct virtio_blk_config *c, const struct block *b, const struct disk_traits *t,
			unsigned queues)
{
	memset(c, 0, sizeof(*c));
	capacity(c, b);
	topology(c, b, t);
	c->size_max = htole32(SIZE_MAX_BYTES);
	c->seg_max = htole32(SEG_MAX);
	c->wce = !t->write_through;
	c->num_queues = htole16((uint16_t)queues);
	c->max_discard_sectors = htole32(RANGE_MAX_SECTORS);
	c->max_discard_seg = htole32(RANGES_MAX);
	c->max_write_zeroes_sectors = htole32(RANGE_MAX_SECTORS);
	c->max_write_zeroes_seg = htole32(RANGES_MAX);
	c->write_zeroes_may_unmap = block_can_discard(b);
	c->max_secure_erase_sectors = htole32(RANGE_MAX_SECTORS);
	c->max_secure_erase_seg = htole32(RANGES_MAX);
	c->secure_erase_sector_alignment = c->discard_sector_alignment;
}

void virtio_blk_resized(struct virtio_blk *d)
{
	struct virtio_blk_config c;

	capacity(&c, d->block);
	virtio_config_set(d->v, offsetof(struct virtio_blk_config, geometry), &c.geometry, sizeof(c.geometry), false);
	virtio_config_set(d->v, offsetof(struct virtio_blk_config, capacity), &c.capacity, sizeof(c.capacity), true);
}

void virtio_blk_changed(struct virtio_blk *d)
{
	struct virtio_blk_config c;
	size_t from = offsetof(struct virtio_blk_config, physical_block_exp), to = offsetof(struct virtio_blk_config, wce);

	virtio_offer(d->v, VIRTIO_BLK_F_SECURE_ERASE, block_overwrites(d->block));
	virtio_offer(d->v, VIRTIO_BLK_F_DISCARD, block_can_discard(d->block));
	config_fill(&c, d->block, &d->traits, d->queues);
	virtio_config_set(d->v, (unsigned)from, (char *)&c + from, (unsigned)(to - from), false);
	from = offsetof(struct virtio_blk_config, max_discard_sectors);
	virtio_config_set(d->v, (unsigned)from, (char *)&c + from, (unsigned)(sizeof(c) - from), true);
}

static void disk_take(struct virtio_blk *d, struct block *b, const struct disk_traits *t)
{
	d->block = b;
	d->traits = *t;
	d->traits.serial = NULL;
	memset(d->serial, 0, sizeof(d->serial));
	if (t->serial)
		memcpy(d->serial, t->serial, strnlen(t->serial, sizeof(d->serial)));
}

void virtio_blk_remove(struct virtio_blk *d, void (*gone)(void *opaque), void *opaque)
{
	d->gone = gone;
	d->gone_opaque = opaque;
	virtio_withdraw(d->v);
}

void virtio_blk_insert(struct virtio_blk *d, struct block *b, const struct disk_traits *t)
{
	struct virtio_blk_config config;

	disk_take(d, b, t);
	config_fill(&config, b, t, d->queues);
	virtio_present(d->v, features(b, d->queues), &config);
}

int virtio_blk_new(struct virtio_blk **out, struct pci_bus *bus, struct map *m, struct loop *l,
		   struct block *b, const struct disk_traits *t, unsigned queues, struct error *e)
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
	d->queues = queues;
	disk_take(d, b, t);
	config_fill(&config, b, t, queues);
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
