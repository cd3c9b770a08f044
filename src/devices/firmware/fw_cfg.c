#include "devices/firmware/fw_cfg.h"

#include <errno.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "memory/map.h"

enum { KEY_SIGNATURE = 0x00, KEY_ID = 0x01, KEY_DIRECTORY = 0x19, KEY_FILES = 0x20 };
#define FILES_MAX 32u
#define KEYS (KEY_FILES + FILES_MAX)
#define DIRECTORY_ENTRY 64u
#define NAME_MAX_BYTES 56u

/* DMA control word */
#define DMA_ERROR 1u
#define DMA_READ 2u
#define DMA_SKIP 4u
#define DMA_SELECT 8u
#define DMA_WRITE 16u
#define DMA_SIGNATURE 0x51454d5520434647ull	/* "QEMU CFG" */
#define DMA_CHUNK 4096u
#define DMA_PADDING_MAX 65536u	/* zeros that a read past an item's end may ask for */

struct item { uint8_t *data; uint32_t len; };

struct fw_cfg {
	pthread_mutex_t lock;
	struct map *map;
	struct item item[KEYS];
	unsigned files;
	uint16_t key;
	uint32_t offset;	/* of the next byte; may lie past the end */
	uint32_t dma_high;
};

static void put_be32(uint8_t *p, uint32_t v)
{
	v = __builtin_bswap32(v);
	memcpy(p, &v, 4);
}
static uint32_t get_be32(const uint8_t *p)
{
	uint32_t v;
	memcpy(&v, p, 4);
	return __builtin_bswap32(v);
}

static const struct item *selected(const struct fw_cfg *f)
{
	static const struct item none;
	return f->key < KEYS ? &f->item[f->key] : &none;
}

static void select_key(struct fw_cfg *f, uint16_t key)
{
	f->key = key & 0x3fff;		/* bit 14: write, bit 15: of the architecture's own; neither changes reads */
	if (key & 0x8000)
		f->key = KEYS;
	f->offset = 0;
}

static uint8_t next_byte(struct fw_cfg *f)
{
	const struct item *i = selected(f);
	return f->offset < i->len ? i->data[f->offset++] : 0;
}

static uint32_t left(const struct fw_cfg *f)
{
	const struct item *i = selected(f);
	return f->offset < i->len ? i->len - f->offset : 0;
}

static bool dma_read(struct fw_cfg *f, uint64_t gpa, uint32_t len)
{
	uint32_t have = left(f);
	if (len > have && len - have > DMA_PADDING_MAX)
		return false;
	while (len) {
		uint8_t chunk[DMA_CHUNK];
		uint32_t n = len < DMA_CHUNK ? len : DMA_CHUNK;
		for (uint32_t i = 0; i < n; i++)
			chunk[i] = next_byte(f);
		if (gpa + n < gpa || !map_write(f->map, gpa, chunk, n))
			return false;
		gpa += n;
		len -= n;
	}
	return true;
}

/* The descriptor is copied once: control, length, address, all big-endian. */
static void dma_run(struct fw_cfg *f, uint64_t gpa)
{
	uint8_t d[16], status[4];
	if (gpa + sizeof d < gpa || !map_read(f->map, gpa, d, sizeof d))
		return;
	uint32_t control = get_be32(d), len = get_be32(d + 4);
	uint64_t buffer = (uint64_t)get_be32(d + 8) << 32 | get_be32(d + 12);
	bool ok = true;
	if (control & DMA_SELECT)
		select_key(f, (uint16_t)(control >> 16));
	if (control & DMA_READ) {
		ok = dma_read(f, buffer, len);
	} else if (control & DMA_WRITE) {
		ok = false;
	} else if (control & DMA_SKIP) {
		f->offset += len < left(f) ? len : left(f);
	}
	put_be32(status, ok ? 0 : DMA_ERROR);
	map_write(f->map, gpa, status, sizeof status);
}

/* 510h: selector, 16 bits; 511h: data, a byte at a time. */
static uint64_t port_read(void *opaque, uint64_t offset, unsigned size)
{
	struct fw_cfg *f = opaque;
	if (offset != 1 || size != 1)
		return 0;
	pthread_mutex_lock(&f->lock);
	uint8_t v = next_byte(f);
	pthread_mutex_unlock(&f->lock);
	return v;
}

static void port_write(void *opaque, uint64_t offset, unsigned size, uint64_t value)
{
	struct fw_cfg *f = opaque;
	if (offset || size != 2)
		return;
	pthread_mutex_lock(&f->lock);
	select_key(f, (uint16_t)value);
	pthread_mutex_unlock(&f->lock);
}

/* 514h: the descriptor's address, big-endian, high half first; the low half starts the transfer. */
static uint64_t dma_port_read(void *opaque, uint64_t offset, unsigned size)
{
	uint8_t b[8];
	uint64_t v = 0;
	(void)opaque;
	put_be32(b, DMA_SIGNATURE >> 32);
	put_be32(b + 4, (uint32_t)DMA_SIGNATURE);
	for (unsigned i = 0; i < size && offset + i < sizeof b; i++)
		v |= (uint64_t)b[offset + i] << 8 * i;
	return v;
}

static void dma_port_write(void *opaque, uint64_t offset, unsigned size, uint64_t value)
{
	struct fw_cfg *f = opaque;
	if (size != 4 || (offset & 3))
		return;
	uint32_t v = __builtin_bswap32((uint32_t)value);
	pthread_mutex_lock(&f->lock);
	if (offset == 0) {
		f->dma_high = v;
	} else {
		uint64_t gpa = (uint64_t)f->dma_high << 32 | v;
		f->dma_high = 0;
		dma_run(f, gpa);
	}
	pthread_mutex_unlock(&f->lock);
}

static const struct io_ops port_ops = { port_read, port_write, 1, 2 };
static const struct io_ops dma_ops = { dma_port_read, dma_port_write, 1, 4 };

int fw_cfg_item(struct fw_cfg *f, uint16_t key, const void *data, size_t len)
{
	if (key >= KEYS || len > UINT32_MAX / 2)
		return -EINVAL;
	uint8_t *copy = malloc(len ? len : 1);
	if (!copy)
		return -ENOMEM;
	memcpy(copy, data, len);
	free(f->item[key].data);
	f->item[key] = (struct item){ copy, (uint32_t)len };
	return 0;
}

/* The directory: a count, then size, key, 16 bits of nothing and the name of each file. */
static int directory_add(struct fw_cfg *f, const char *name, uint16_t key, uint32_t len)
{
	size_t size = 4 + (size_t)DIRECTORY_ENTRY * (f->files + 1);
	uint8_t *d = calloc(1, size);
	if (!d)
		return -ENOMEM;
	struct item *i = &f->item[KEY_DIRECTORY];
	memcpy(d, i->data, i->len);
	uint8_t *entry = d + size - DIRECTORY_ENTRY;
	put_be32(d, f->files + 1);
	put_be32(entry, len);
	put_be32(entry + 4, (uint32_t)key << 16);
	memcpy(entry + 8, name, strlen(name));
	free(i->data);
	*i = (struct item){ d, (uint32_t)size };
	return 0;
}

int fw_cfg_file(struct fw_cfg *f, const char *name, const void *data, size_t len)
{
	if (strlen(name) >= NAME_MAX_BYTES)
		return -EINVAL;
	if (f->files == FILES_MAX)
		return -ENOSPC;
	uint16_t key = (uint16_t)(KEY_FILES + f->files);
	int ret = fw_cfg_item(f, key, data, len);
	if (!ret)
		ret = directory_add(f, name, key, (uint32_t)len);
	if (!ret)
		f->files++;
	return ret;
}

void fw_cfg_reset(struct fw_cfg *f)
{
	pthread_mutex_lock(&f->lock);
	select_key(f, 0);
	f->dma_high = 0;
	pthread_mutex_unlock(&f->lock);
}

struct fw_cfg *fw_cfg_new(struct map *m)
{
	struct fw_cfg *f = calloc(1, sizeof *f);
	ASSERT(f);
	pthread_mutex_init(&f->lock, NULL);
	f->map = m;
	static const uint8_t id[4] = { 3 };	/* the ports, and DMA */
	ASSERT(!fw_cfg_item(f, KEY_SIGNATURE, "QEMU", 4) && !fw_cfg_item(f, KEY_ID, id, 4) &&
	       !fw_cfg_item(f, KEY_DIRECTORY, "\0\0\0", 4));
	map_add_pio(m, FW_CFG_PORT, 2, &port_ops, f, "fw-cfg");
	map_add_pio(m, FW_CFG_PORT + 4, 8, &dma_ops, f, "fw-cfg-dma");
	return f;
}

void fw_cfg_free(struct fw_cfg *f)
{
	if (!f)
		return;
	for (unsigned i = 0; i < KEYS; i++)
		free(f->item[i].data);
	pthread_mutex_destroy(&f->lock);
	free(f);
}
