/* What the map's files share: layout (map.c) and access (access.c). */
#ifndef VIXEN_MEMORY_MAP_PRIVATE_H
#define VIXEN_MEMORY_MAP_PRIVATE_H

#include <pthread.h>
#include <stdatomic.h>

#include "memory/map.h"

#define VIEW_RANGES 256
#define MAP_LISTENERS 4
#define MAP_DOORBELLS 64

enum region_kind { REGION_RAM, REGION_ROM, REGION_MMIO, REGION_PIO };

struct region {
	enum region_kind kind;
	uint64_t start, size;
	bool enabled;
	uint8_t *rw, *ro;		/* RAM, ROM */
	uint64_t fd_offset;
	uint32_t first_page;		/* RAM: index of its first page */
	const struct io_ops *ops;
	void *opaque;
	const char *name;
	struct region *next;
};

struct range { uint64_t start, end; struct region *region; };
struct view { unsigned count, largest /* the largest range of RAM */; struct range range[VIEW_RANGES]; };

struct map {
	pthread_mutex_t lock;
	struct region *regions;
	atomic_uint sequence;
	struct view view[2];
	_Atomic(struct region *) *pio;		/* 65536 */
	int ram_fd;
	uint64_t ram_fd_bytes, ram_bytes, ram_pages;
	_Atomic uint64_t *dirty, *code;		/* a bit for each RAM page */
	unsigned listeners;
	struct map_listener listener[MAP_LISTENERS];
	struct { uint64_t gpa; unsigned size; int fd; } doorbell[MAP_DOORBELLS];
};

/* The range that holds gpa; region NULL in a hole. */
struct range map_find(struct map *m, uint64_t gpa);

#endif
