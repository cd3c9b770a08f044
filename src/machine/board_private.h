/* Inside of struct board: wiring (board.c) and vCPU threads (run.c). */
#ifndef VIXEN_MACHINE_BOARD_PRIVATE_H
#define VIXEN_MACHINE_BOARD_PRIVATE_H

#include <pthread.h>
#include <stdatomic.h>

#include "devices/irq/line.h"
#include "machine/board.h"

enum { EVENT_INIT = 1, EVENT_SIPI = 2 };

/* A vCPU's thread. `lock` covers wake, events and sipi_vector; `wake` is set by whoever has news for it. */
struct cpu_thread {
	struct board *board;
	unsigned index;
	struct vcpu *vcpu;
	pthread_t thread;
	bool started;
	pthread_mutex_t lock;
	pthread_cond_t cond;
	bool wake;
	uint32_t events;
	uint8_t sipi_vector;
	atomic_bool nmi;
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
	unsigned disks, nics;

	struct cpu_thread cpu[BOARD_VCPUS_MAX];
	/* A paused vCPU waits in pause_gate() for pause_cond; pause_lock covers changes of paused and stopping. */
	atomic_bool paused;
	pthread_mutex_t pause_lock;
	pthread_cond_t pause_cond;
	atomic_bool stopping;
	atomic_int end;			/* enum board_end, once stopping */
	pthread_mutex_t error_lock;
	struct error error;
};

/* run.c */
void cpu_news(struct cpu_thread *c);			/* wakes a halted vCPU, makes a running one look */
void board_finish(struct board *b, enum board_end end);	/* first caller wins; any thread */
unsigned current_vcpu(void *board);
extern const struct vcpu_wiring cpu_wiring_template;

#endif
