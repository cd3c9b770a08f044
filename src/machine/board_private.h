/* Inside of struct board: wiring (board.c) and vCPU threads (run.c). */
#ifndef VIXEN_MACHINE_BOARD_PRIVATE_H
#define VIXEN_MACHINE_BOARD_PRIVATE_H

#include <pthread.h>
#include <stdatomic.h>

#include "devices/irq/line.h"
#include "machine/board.h"
#include "machine/debug.h"

enum { EVENT_INIT = 1, EVENT_SIPI = 2 };
#define NMIS_MAX 2u	/* one that is about to be taken, and one behind it */

/* A vCPU's thread. `lock` covers wake, events and sipi_vector; `wake` is set by whoever has news for it. */
struct cpu_thread {
	struct board *board;
	unsigned index;
	struct vcpu *vcpu;
	pthread_t thread;
	bool started;
	pthread_mutex_t lock;
	pthread_cond_t cond;
	atomic_bool wake;		/* atomic for halt_wait(), which looks without the lock */
	uint32_t events;
	uint8_t sipi_vector;
	atomic_uint nmis;		/* that came and were not taken; at most NMIS_MAX */
	bool halt_looks;		/* the vCPU's thread alone: see halt.c */
	uint32_t halt_window_ns;
	/* The debugger's; covered by board_debug.lock. */
	enum debug_go go;
	bool has_met;			/* `met` is still to be told */
	bool crash_told;		/* vCPU's thread */
	struct board_stop met;
};

/* `lock` covers the vCPUs' go and met, parked, and changes of board.paused. */
struct board_debug {
	void (*stopped)(void *opaque);	/* NULL: no debugger */
	void *opaque;
	pthread_mutex_t lock;
	pthread_cond_t cond;
	unsigned parked;		/* vCPUs that wait in gate_pass() */
	struct debug_plan plan;		/* loop thread */
};

/* An ISA or PCI interrupt reaches both the 8259s and the IO-APIC. */
struct board {
	struct board_config config;
	struct loop *loop;
	struct map *map;
	struct engine *engine;
	const struct engine_irqchip_ops *irqchip;	/* NULL: lapics, ioapic, pic and pit are the board's */
	struct cpu_model *model;
	uint64_t tsc_hz;
	struct boot_layout layout;

	struct lapic_bus *lapics;
	struct ioapic *ioapic;
	struct pic *pic;
	struct pit *pit;
	struct rtc *rtc;
	struct hpet *hpet;
	atomic_bool hpet_legacy;	/* it stands in for pit and rtc */
	struct uart *uart;
	struct i8042 *i8042;
	struct acpi_pm *pm;
	struct fw_cfg *fw_cfg;
	struct pci_bus *pci;
	struct lpc *lpc;
	struct board_disk *disks;
	struct acpi_hotplug *hotplug;
	uint32_t hot_slots;		/* for hot plug; 0 until the board is booted */
	struct loop_timer *ejects;	/* runs when a vCPU has set one of these, a bit for each slot */
	atomic_uint ejected, refused;
	struct virtio_scsi *scsi;	/* NULL: no SCSI disk was there at the start */
	unsigned nics;

	struct cpu_thread cpu[BOARD_VCPUS_MAX];
	atomic_bool paused;		/* changed with debug.lock */
	struct board_debug debug;
	atomic_bool stopping;
	atomic_int end;			/* enum board_end, once stopping */
	pthread_mutex_t error_lock;
	struct error error;
};

/* run.c */
void cpu_news(struct cpu_thread *c);			/* wakes a halted vCPU, makes a running one look */
void board_finish(struct board *b, enum board_end end);	/* first caller wins; any thread */
unsigned current_vcpu(void *board);

/* debug.c, for the vCPUs' threads. */
void gate_pass(struct cpu_thread *c);		/* waits while the debugger has the vCPU stopped, or the board is paused */
void debug_met(struct cpu_thread *c);		/* after EXIT_DEBUG */
bool debug_crashed(struct cpu_thread *c);	/* true: the debugger looks at it first */
void gate_changed(struct board *b);		/* paused or stopping is another: those who wait look */

/* disks.c */
int disks_init(struct board *b, struct error *e);
uint32_t disks_hot_slots(struct board *b);	/* from here on disks are hot-plugged */
void disks_free(struct board *b);		/* after the bus */

extern const struct vcpu_wiring cpu_wiring_template;

#endif
