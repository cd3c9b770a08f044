/* What the control socket's verbs do. */
#include "base/error.h"
#include "block/block.h"
#include "engine/engine.h"
#include "host/loop.h"
#include "machine/board.h"
#include "vmm/control.h"
#include "vmm/vm_private.h"

#include <unistd.h>

static json_t *reason_json(const struct vm *vm)
{
	return vm->full ? json_sprintf("the host has no space left for %s, %s", vm->full->name, block_path(vm->full->block)) : NULL;
}

/* {"state": "running"|"paused", "pid", "engine", "cpus", "memory_bytes", "uptime_s", "reason": why it is paused, if not by request, "disks": [...]} */
static void verb_status(struct vm *vm, struct control_call *call, json_t *arguments)
{
	const struct vm_config *c = vm->config;

	control_reply(call, json_pack("{s:o*, s:s, s:i, s:s, s:i, s:I, s:I, s:o}", "reason", reason_json(vm), "state", vm->paused ? "paused" : "running",
				      "pid", (int)getpid(), "engine", vm->engine->name, "cpus", (int)c->cpus,
				      "memory_bytes", (json_int_t)c->memory_bytes, "uptime_s",
				      (json_int_t)((clock_now_ns() - vm->start_ns) / 1000000000u), "disks",
				      disks_json(vm)));
}

static void pause_set(struct vm *vm, struct control_call *call, bool paused)
{
	vm->paused = paused;
	if (vm->board)
		board_pause(vm->board, paused);
	if (!paused)
		space_retry(vm);	/* which may pause it again */
	control_reply(call, NULL);
}
static void verb_pause(struct vm *vm, struct control_call *call, json_t *arguments) { pause_set(vm, call, true); }
static void verb_resume(struct vm *vm, struct control_call *call, json_t *arguments) { pause_set(vm, call, false); }

static void verb_power_button(struct vm *vm, struct control_call *call, json_t *arguments)
{
	if (vm->board)
		board_power_button(vm->board);
	control_reply(call, NULL);
}

static void verb_quit(struct vm *vm, struct control_call *call, json_t *arguments)
{
	control_reply(call, NULL);
	vm_interrupt(vm);
}

control_handler_fn *const control_handlers[CONTROL_VERBS] = {
#define CONTROL(name, summary) [CONTROL_##name] = verb_##name,
#include "proto/control.def"
#undef CONTROL
};
