#include "vmm/vm.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <unistd.h>

#include "host/loop.h"
#include "host/sandbox.h"
#include "machine/board.h"
#include "vmm/console.h"
#include "vmm/control.h"
#include "vmm/counters.h"
#include "vmm/disks.h"
#include "vmm/engine_choice.h"
#include "vmm/gdb/server.h"
#include "vmm/signals.h"
#include "vmm/text_sink.h"
#include "vmm/vm_private.h"

void vm_interrupt(struct vm *vm)
{
	vm->interrupted = true;
	limits_end(vm);		/* nothing that waits for the host's disk shall hold it up */
	if (vm->board)
		board_stop(vm->board);
}

static void on_signal(void *opaque, uint32_t events)
{
	struct vm *vm = opaque;
	switch (signals_next(vm->signals)) {
	case SIGNAL_NONE: break;
	case SIGNAL_POWER_BUTTON:
		if (vm->board)
			board_power_button(vm->board);
		break;
	case SIGNAL_STOP: vm_interrupt(vm); break;
	}
}

static void on_kill(void *opaque) { vm_interrupt(opaque); }

static int gdb_init(struct vm *vm, struct error *e)
{
	return vm->config->gdb ? gdb_server_new(&vm->gdb, vm->loop, vm->config->gdb, on_kill, vm, e) : 0;
}

static int signals_init(struct vm *vm, struct error *e)
{
	vm->signals = signals_open();
	if (vm->signals < 0)
		return error_errno(e, -vm->signals, "raise the limit on open files", "watch for signals");
	vm->signal_watch = loop_fd_add(vm->loop, vm->signals, EPOLLIN, on_signal, vm);
	return vm->signal_watch ? 0 : error_errno(e, errno, "raise the limit on open files", "watch for signals");
}

static int console_init(struct vm *vm, int fd, struct error *e)
{
	const struct vm_config *c = vm->config;
	if (c->console == VM_CONSOLE_NONE)
		fd = -1;
	if (c->console == VM_CONSOLE_FILE) {
		fd = vm->console_file = open(c->console_path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC | O_NOCTTY, 0644);
		if (fd < 0)
			return error_errno(e, errno, "check the path and its permissions", "open console file '%s'",
					   c->console_path);
	}
	return console_new(&vm->console, vm->loop, fd, c->console == VM_CONSOLE_STDIO, e);
}

/* What a guest can make a host's disk hold is bounded, and a terminal stays readable. */
static int sinks_open(struct vm *vm, struct error *e)
{
	const struct vm_config *c = vm->config;
	const struct text_sink_limits trace = { .bytes_max = 1ull << 30, .lines_per_s = c->trace_path ? 200000 : 2000 },
				      map = { .bytes_max = 256ull << 20 };
	int ret = 0;

	if (c->trace && vm->engine != &engine_soft)
		return error_set(e, ENOTSUP, "add --engine soft", "trace the guest", "KVM shows no instructions");
	if (c->trace)
		ret = text_sink_open(&vm->trace, c->trace_path, &trace, "trace", e);
	if (!ret && c->perf_map)
		ret = text_sink_open_perf(&vm->perf_map, &map, e);
	return ret;
}

/* A board as after power-on, with everything plugged in. */
static int board_build(struct vm *vm, struct error *e)
{
	const struct vm_config *c = vm->config;
	const struct board_config bc = {
		.engine = vm->engine, .cpu_model = c->cpu_model, .vcpus = c->cpus, .ram_bytes = c->memory_bytes,
		.interpret_only = c->interpret_only,
		.trace = vm->trace ? text_sink_line : NULL, .trace_opaque = vm->trace,
		.code_made = vm->perf_map ? text_sink_line : NULL, .code_opaque = vm->perf_map,
		.console_write = console_write, .console_room = console_room, .console_opaque = vm->console,
	};
	const struct boot_files files = { c->kernel, c->initrd, c->append ? c->append : "" };
	int ret = board_new(&vm->board, vm->loop, &bc, e);
	if (!ret)
		ret = disks_plug(vm, e);
	for (unsigned i = 0; i < c->nnets && !ret; i++)
		ret = board_net_user(vm->board, c->net[i].forward, (int)c->net[i].nforwards, e);
	return ret ? ret : board_boot(vm->board, &files, e);
}

/* After a reset the board reads its boot files and binds its forwarded ports again; nothing else is opened later. */
static int confine(const struct vm *vm, struct error *e)
{
	const struct vm_config *c = vm->config;
	struct sandbox s = { .readable = { c->kernel, c->initrd }, .kvm = strcmp(vm->engine->name, "soft") };

	for (unsigned i = 0; i < c->nnets; i++)
		for (unsigned j = 0; j < c->net[i].nforwards; j++)
			s.low_ports |= c->net[i].forward[j].host_port < 1024;
	return sandbox_enter(&s, e);
}

static size_t console_to_board(void *opaque, const uint8_t *bytes, size_t n)
{
	return board_console_input(((struct vm *)opaque)->board, bytes, n);
}

int vm_new(struct vm **out, const struct vm_config *c, int console_fd, int control_fd, struct error *e)
{
	struct vm *vm = calloc(1, sizeof *vm);
	int ret;
	if (!vm)
		return error_set(e, ENOMEM, NULL, "start the VM", "out of memory");
	vm->config = c;
	vm->folder = getcwd(NULL, 0);
	vm->console_file = vm->signals = -1;
	vm->watch_space = control_fd >= 0;
	if (!(vm->loop = loop_new())) {
		ret = error_errno(e, errno, "raise the limit on open files", "make an event loop");
		goto fail;
	}
	const char *engine = (c->interpret_only || c->trace) && !strcmp(c->engine, "auto") ? "soft" : c->engine;
	if ((ret = engine_choose(&vm->engine, engine, e)) || (ret = signals_init(vm, e)) ||
	    (ret = console_init(vm, console_fd, e)) || (ret = disks_open(vm, e)) || (ret = sinks_open(vm, e)) ||
	    (ret = board_build(vm, e)) ||
	    (control_fd >= 0 && (ret = control_new(&vm->control, vm->loop, control_fd, vm, e))) ||
	    (ret = gdb_init(vm, e)) || (ret = confine(vm, e)))
		goto fail;
	vm->start_ns = clock_now_ns();
	*out = vm;
	return 0;
fail:
	vm_free(vm);
	return ret;
}

static int exit_code(struct vm *vm, enum board_end end, struct error *e)
{
	switch (end) {
	case BOARD_POWER_OFF:
	case BOARD_RESET: return VM_EXIT_OFF;
	case BOARD_STOPPED: return VM_EXIT_INTERRUPTED;
	case BOARD_CRASHED:
		error_set(e, EFAULT, "look at the guest's last console output", "run the guest",
			  "a CPU shut down on a triple fault");
		return VM_EXIT_CRASHED;
	case BOARD_FAILED: break;
	}
	return VM_EXIT_FAILED;
}

int vm_run(struct vm *vm, struct error *e)
{
	enum board_end end = BOARD_STOPPED;
	int ret = 0;
	for (;;) {
		console_connect(vm->console, console_to_board, vm);
		gdb_server_board(vm->gdb, vm->board);
		if (!vm->interrupted)
			end = board_run(vm->board, e);
		gdb_server_board(vm->gdb, NULL);
		if (vm->config->counters)
			counters_print(vm->board, vm->config->json, stderr);
		console_connect(vm->console, NULL, NULL);
		if (end != BOARD_RESET || vm->config->no_reboot || vm->interrupted)
			break;
		board_free(vm->board);
		vm->board = NULL;
		if ((ret = board_build(vm, e)))
			break;
		board_pause(vm->board, vm->paused);
	}
	if (!vm->interrupted)
		gdb_server_exited(vm->gdb, end == BOARD_CRASHED, end == BOARD_FAILED ? VM_EXIT_FAILED : VM_EXIT_OFF);
	disks_flush(vm);
	console_drain(vm->console);
	return ret ? VM_EXIT_FAILED : vm->interrupted ? VM_EXIT_INTERRUPTED : exit_code(vm, end, e);
}

void vm_free(struct vm *vm)
{
	if (!vm)
		return;
	control_free(vm->control);
	board_free(vm->board);
	disks_close(vm);
	console_free(vm->console);
	gdb_server_free(vm->gdb);
	text_sink_close(vm->trace);
	text_sink_close(vm->perf_map);
	if (vm->signal_watch)
		loop_fd_del(vm->signal_watch);
	if (vm->signals >= 0)
		close(vm->signals);
	if (vm->console_file >= 0)
		close(vm->console_file);
	if (vm->loop)
		loop_free(vm->loop);
	free(vm->folder);
	free(vm);
}
