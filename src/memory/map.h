/*
 * The guest-physical map: RAM, ROM, MMIO and port I/O of one VM.
 *
 *   GPA 0 ........ low RAM ....... | hole (PCI, ECAM, APICs, ROM) | 4 GiB: high RAM ...
 *
 * RAM is one memfd, mapped twice in the VMM: writable (rw_hva) and read-only
 * (ro_hva); translated code points clean, shared and code pages at the latter.
 * A page is only committed by the host when somebody touches it.
 *
 * Threads: map changes (map_add_*, map_remove, pci BAR moves) happen under the
 * map's own write lock and bump map_generation(); look-ups are lock-free (RCU
 * style: a new table is published, the old one freed when all vCPUs passed a
 * safe point; the listeners are called after publishing).  Reads and writes may
 * be called from any thread.
 */
#ifndef VIXEN_MEMORY_MAP_H
#define VIXEN_MEMORY_MAP_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/error.h"

#define GUEST_PAGE_SHIFT 12
#define GUEST_PAGE_SIZE  4096u
#define GUEST_PAGE_MASK  (~(uint64_t)0xfff)

struct map;
struct region;

/* A device window. size is 1, 2, 4 or 8 (PIO: 1, 2, 4); offset is from the region's start.
 * Accesses never cross the region's end. Reads of nothing return all ones.
 * Called on the vCPU thread that made the access: the device takes its own lock. */
struct io_ops {
	uint64_t (*read)(void *opaque, uint64_t offset, unsigned size);
	void (*write)(void *opaque, uint64_t offset, unsigned size, uint64_t value);
	uint8_t min_size, max_size;	/* what the device implements; the map splits/merges. 0 = 1/8 */
};

struct map *map_new(void);
void map_free(struct map *m);

/* RAM: size in bytes, page multiple. Backed by the map's memfd. -ENOMEM etc. with e filled. */
int map_add_ram(struct map *m, uint64_t gpa, uint64_t size_bytes, struct error *e);
/* ROM: `data` is copied; writes by the guest are dropped. */
int map_add_rom(struct map *m, uint64_t gpa, const void *data, uint64_t size_bytes, struct error *e);
/* The region stays owned by the map; name is for traces and must outlive it. Higher priority wins overlaps. */
struct region *map_add_mmio(struct map *m, uint64_t gpa, uint64_t size_bytes, const struct io_ops *ops,
			    void *opaque, const char *name);
/* The same, not there until region_enable(). */
struct region *map_add_mmio_off(struct map *m, uint64_t gpa, uint64_t size_bytes, const struct io_ops *ops,
				void *opaque, const char *name);
struct region *map_add_pio(struct map *m, uint16_t port, uint32_t count, const struct io_ops *ops,
			   void *opaque, const char *name);
/* Moves or (un)plugs a device window: BARs, PAM, A20. */
void region_move(struct map *m, struct region *r, uint64_t start);
void region_enable(struct map *m, struct region *r, bool on);
void map_remove(struct map *m, struct region *r);

/* What lies at a page: the one question the CPU engines ask. */
struct page_info {
	uint8_t *rw_hva;	/* page in the writable mapping; NULL: not RAM, or ROM */
	uint8_t *ro_hva;	/* page in the read-only mapping; NULL: MMIO or hole */
	uint32_t ram_page;	/* index into RAM pages (dirty log, code bitmap) if rw_hva */
};
struct page_info map_page(struct map *m, uint64_t gpa);
uint64_t map_ram_pages(const struct map *m);	/* number of RAM page indices */
uint64_t map_ram_bytes(const struct map *m);
int map_ram_fd(const struct map *m);
/* Walks RAM regions (for KVM slots, e820): fn returns non-zero to stop. */
struct ram_slot { uint64_t gpa, size_bytes; uint8_t *rw_hva; uint64_t fd_offset; bool rom; };
int map_each_ram(const struct map *m, int (*fn)(void *opaque, const struct ram_slot *s), void *opaque);

/* Devices: checked copies. false: some byte is not RAM (nothing/partial is copied; reads fill 0xff).
 * Writes mark pages dirty and invalidate translated code through the listener. */
bool map_read(struct map *m, uint64_t gpa, void *buf, size_t len);
bool map_write(struct map *m, uint64_t gpa, const void *buf, size_t len);
/* A direct pointer to RAM of exactly len bytes inside one RAM region, or NULL. For writing, call
 * map_wrote() after the data has landed. Valid for the life of the VM (RAM is never unmapped). */
void *map_ptr(struct map *m, uint64_t gpa, size_t len, bool write);
void map_wrote(struct map *m, uint64_t gpa, size_t len);

/* The vCPU's slow path: any access, RAM or device; size 1..8, may not cross a page. */
uint64_t map_load(struct map *m, uint64_t gpa, unsigned size);
void map_store(struct map *m, uint64_t gpa, unsigned size, uint64_t value);
uint32_t pio_load(struct map *m, uint16_t port, unsigned size);
void pio_store(struct map *m, uint16_t port, unsigned size, uint32_t value);

/*
 * Dirty log: one bit per RAM page. mark is lock-free; any thread.
 *
 *	fetch: dirty_collect --> bits taken and cleared --> dirty_taken --> return: read the pages
 *
 * A write that lands after the fetch returned is in the next fetch: engines that let the guest write without
 * marking (a TLB, a KVM slot) take that permission back in dirty_taken, and wait until every vCPU did. So a
 * fetch waits for running vCPUs: never call it on a vCPU's thread, nor with a lock that a device's ops take.
 */
void map_mark_dirty(struct map *m, uint32_t ram_page);
/* Starts over: everything clean. */
void map_dirty_reset(struct map *m);
/* Copies and clears; bits[] has map_ram_pages() bits. */
void map_dirty_fetch(struct map *m, uint64_t *bits);

/* An engine listens: layout changed, or somebody other than a vCPU wrote RAM that may hold code.
 * code_written is only called for pages flagged with map_code_set(). Any thread.
 * dirty_collect marks what the engine knows to be dirty and the log does not; dirty_taken re-arms (above). */
struct map_listener {
	void (*layout_changed)(void *opaque);
	void (*code_written)(void *opaque, uint32_t ram_page, uint32_t first, uint32_t last);
	void (*dirty_collect)(void *opaque);
	void (*dirty_taken)(void *opaque);
	/* A doorbell was hung up (on) or taken down; under the map's lock. */
	void (*doorbell_changed)(void *opaque, uint64_t gpa, unsigned size, int eventfd, bool on);
	void *opaque;
};
void map_listen(struct map *m, const struct map_listener *l);	/* at most 4, kept by copy */
void map_code_set(struct map *m, uint32_t ram_page, bool has_code);
bool map_code_test(const struct map *m, uint32_t ram_page);

/* A fast path for doorbells: when the guest writes [gpa, gpa+size) the eventfd is signalled instead of
 * the region's op (KVM: ioeventfd). data match as KVM. fd -1 removes. */
void map_doorbell(struct map *m, uint64_t gpa, unsigned size, int eventfd);

#endif
