/*
 * One board: a q35-compatible PC, wired from its parts, and its vCPUs.
 *
 *   board_new -> board_disk_add/board_net_user/... -> board_boot -> board_run -> board_free
 *
 * Thread: all on the I/O thread (the caller's) but board_stop(). The vCPU threads live inside board_run().
 */
#ifndef VIXEN_MACHINE_BOARD_H
#define VIXEN_MACHINE_BOARD_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/error.h"
#include "devices/disk.h"
#include "engine/engine.h"
#include "machine/boot.h"
#include "net/port.h"

#define BOARD_VCPUS_MAX 16
#define BOARD_RAM_MIN (64ull << 20)
#define BOARD_LOW_RAM_MAX 0xb0000000ull	/* ECAM begins here; the rest of RAM lies above 4 GiB */

struct board;
struct loop;
struct block;

struct board_config {
	const struct engine_ops *engine;
	const char *cpu_model;		/* "x86-64-v2" to "-v4", "host" */
	unsigned vcpus;			/* 1..16 */
	uint64_t ram_bytes;		/* multiple of 4 KiB, from BOARD_RAM_MIN */
	bool interpret_only;
	void (*trace)(void *opaque, const char *line, size_t n);	/* as in engine_config, as all four */
	void *trace_opaque;
	void (*code_made)(void *opaque, const char *line, size_t n);
	void *code_opaque;
	/* The first serial port. write: on a vCPU thread. */
	void (*console_write)(void *opaque, uint8_t byte);
	void (*console_room)(void *opaque);	/* takes input again; any thread; may be NULL */
	void *console_opaque;
};

enum board_end { BOARD_POWER_OFF, BOARD_RESET, BOARD_CRASHED, BOARD_FAILED, BOARD_STOPPED };

int board_new(struct board **out, struct loop *l, const struct board_config *c, struct error *e);
/* Stops nothing: the board must not be running. Frees its devices; block nodes stay the caller's. */
void board_free(struct board *b);

struct board_disk_config {
	enum disk_bus bus;
	bool cdrom;			/* SCSI only */
	struct disk_traits traits;
};

struct board_disk;	/* a disk in its place; the board's, for as long as the board lives */
int board_disk_add(struct board *b, struct block *disk, const struct board_disk_config *c, struct board_disk **out,
		   struct error *e);
/* While the guest runs, board_disk_add() tells it of the disk, and this asks it to give one up: `removed` runs with 0 when
 * it has, or -EBUSY when it refuses; a guest that does neither can be waited for no longer by cancelling. Then the disk
 * is done with and may be closed, from the loop, not in the callback. board_free() drops the callback. */
void board_disk_remove(struct board_disk *d, void (*removed)(void *opaque, int ret), void *opaque);
void board_disk_remove_cancel(struct board_disk *d);
/* block_size() of its disk has changed: the guest is told.  The loop's thread. */
void board_disk_resized(struct board_disk *d);
/* Its block stands on another image now. */
void board_disk_changed(struct board_disk *d);
/* User-mode NAT with port forwards. */
int board_net_user(struct board *b, const struct net_forward *fwd, int nfwd, struct error *e);

/* Loads the kernel, fills in the tables and resets all parts. */
int board_boot(struct board *b, const struct boot_files *f, struct error *e);
/* Starts the vCPU threads and runs the loop until the guest ends or board_stop(). e: for BOARD_FAILED. */
enum board_end board_run(struct board *b, struct error *e);
void board_stop(struct board *b);		/* any thread, async-signal-safe */
/* Stops the vCPUs where they are, soon, or lets them go on; timers and the guest's clock run meanwhile. Before or inside
 * board_run(), on the I/O thread. */
void board_pause(struct board *b, bool on);
void board_power_button(struct board *b);	/* asks the guest to shut down; any thread */
size_t board_console_input(struct board *b, const uint8_t *bytes, size_t n);

#endif
