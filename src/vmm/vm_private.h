/* Inside of struct vm: its life (vm.c), and what the control socket reaches (control_verbs.c). */
#ifndef VIXEN_VMM_VM_PRIVATE_H
#define VIXEN_VMM_VM_PRIVATE_H

#include "vmm/disks.h"
#include "vmm/vm.h"
#include "vmm/vm_config.h"

struct vm {
	const struct vm_config *config;
	const struct engine_ops *engine;
	struct loop *loop;
	struct vm_slot disk[VM_DISKS_MAX];
	struct vm_group group[VM_DISKS_MAX];
	struct vm_slot *full;		/* it is paused because the host has no space for this one; NULL: it is not */
	bool watch_space;		/* pause rather than give the guest errors: there is a control socket to resume it by */
	struct console *console;
	int console_file, signals;
	struct loop_fd *signal_watch;
	struct control *control;	/* NULL: none */
	struct text_sink *trace, *perf_map;	/* NULL: none asked for */
	struct gdb_server *gdb;		/* NULL: no --gdb */
	struct board *board;
	uint64_t start_ns;
	char *folder;		/* where relative paths begin; NULL: unknown */
	bool interrupted, paused;
	unsigned flushes;	/* under way */
	unsigned disk_jobs;	/* coroutines and what will become one */
};

/* Ends the VM as a signal does: 130, disks flushed. */
void vm_interrupt(struct vm *vm);

#endif
