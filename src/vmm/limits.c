/* What a disk may take of the host: its limits, those of its group, and what happens when the host has no space left. */
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "block/block.h"
#include "host/loop.h"
#include "machine/board.h"
#include "vmm/control.h"
#include "vmm/vm_private.h"

/* --- groups: there are as many at most as disks --- */

static struct vm_group *group_find(struct vm *vm, const char *name)
{
	for (unsigned i = 0; i < VM_DISKS_MAX; i++)
		if (vm->group[i].shared && !strcmp(vm->group[i].name, name))
			return &vm->group[i];
	return NULL;
}

static struct vm_group *group_get(struct vm *vm, const char *name)
{
	struct vm_group *g = group_find(vm, name);

	for (unsigned i = 0; !g && i < VM_DISKS_MAX; i++)
		g = vm->group[i].shared ? NULL : &vm->group[i];
	if (g && !g->shared) {
		g->shared = block_group_new(vm->loop);
		if (!g->shared)
			return NULL;
		snprintf(g->name, sizeof g->name, "%s", name);
	}
	if (g)
		g->disks++;
	return g;
}

void limits_drop(struct vm_slot *s)
{
	block_group_put(s->own);
	s->own = NULL;
	if (s->group && !--s->group->disks) {
		block_group_put(s->group->shared);
		*s->group = (struct vm_group){ 0 };
	}
	s->group = NULL;
}

/* --- limits --- */

static bool any(const struct vm_limits *l)
{
	return l->iops || l->bps || l->iops_burst || l->bps_burst;
}

static void limit(struct block_group *g, struct vm_limits *kept, const struct vm_limits *l)
{
	*kept = *l;
	block_group_limit(g, &(struct block_limits){ l->iops, l->bps, l->iops_burst, l->bps_burst });
}

/* Alone, or together with those of the group, whose limits a member may leave to others. */
static int own_limit(struct vm_slot *s, const struct vm_limits *l, struct error *e)
{
	if (!s->own && !(s->own = block_group_new(s->vm->loop)))
		return error_errno(e, ENOMEM, NULL, "limit a disk");
	limit(s->own, &s->limits, l);
	return block_throttle(s->block, any(l) ? s->own : NULL, s->group ? s->group->shared : NULL)
		? error_errno(e, ENOMEM, NULL, "limit a disk") : 0;
}

int limits_start(struct vm_slot *s, struct error *e)
{
	const struct vm_disk *d = &s->spec;

	if (!d->group)
		return any(&d->limits) ? own_limit(s, &d->limits, e) : 0;
	s->group = group_get(s->vm, d->group);
	if (!s->group)
		return error_errno(e, ENOMEM, NULL, "limit a disk");
	if (any(&d->limits) && any(&s->group->limits) && memcmp(&d->limits, &s->group->limits, sizeof d->limits))
		return error_set(e, EINVAL, "give them with one of its disks", "limit a disk",
				 "group '%s' has other limits already", d->group);
	if (any(&d->limits))
		limit(s->group->shared, &s->group->limits, &d->limits);
	return block_throttle(s->block, NULL, s->group->shared) ? error_errno(e, ENOMEM, NULL, "limit a disk") : 0;
}

static void limits_put(json_t *j, const char *prefix, const struct vm_limits *l)
{
	const struct { const char *name; uint64_t value; } all[] = {
		{ "iops", l->iops }, { "bps", l->bps }, { "iops_burst", l->iops_burst }, { "bps_burst", l->bps_burst } };

	for (unsigned i = 0; i < 4; i++) {
		char key[32];
		snprintf(key, sizeof key, "%s%s", prefix, all[i].name);
		if (all[i].value)
			json_object_set_new(j, key, json_integer((json_int_t)all[i].value));
	}
}

void limits_json(const struct vm_slot *s, json_t *j)
{
	limits_put(j, "", &s->limits);
	if (!s->group)
		return;
	json_object_set_new(j, "group", json_string(s->group->name));
	limits_put(j, "group_", &s->group->limits);
}

/* {"name": of a disk, as for disk_lookup(), or "group": its name, "limits": as in the configuration} */
void verb_disk_throttle(struct vm *vm, struct control_call *call, json_t *arguments)
{
	const char *name = NULL, *group = NULL;
	struct error e = { 0 };
	struct vm_limits l = { 0 };
	struct vm_slot *s = NULL;
	struct vm_group *g;
	int ret;

	json_unpack(arguments, "{s?s, s?s}", "name", &name, "group", &group);
	g = group ? group_find(vm, group) : NULL;
	ret = vm_limits_decode(&l, json_object_get(arguments, "limits"), &e);
	if (!ret && name)
		ret = disk_lookup(vm, name, &s, &e);
	if (!ret && !s && !g)
		ret = error_set(&e, ENOENT, "see vixen disk list", "limit a disk", "there is no group '%s'", group ? group : "");
	if (!ret && s)
		ret = own_limit(s, &l, &e);
	else if (!ret)
		limit(g->shared, &g->limits, &l);
	if (ret)
		control_fail(call, ret, &e);
	else
		control_reply(call, NULL);
}

/* --- no space left on the host --- */

static void on_full(void *opaque)
{
	struct vm_slot *s = opaque;

	s->vm->full = s;
	s->vm->paused = true;
	if (s->vm->board)
		board_pause(s->vm->board, true);
}

/* A VM that nobody could resume sees errors instead. */
void space_watch(struct vm_slot *s)
{
	if (s->vm->watch_space)
		block_on_full(s->block, on_full, s);
}

void space_retry(struct vm *vm)
{
	vm->full = NULL;
	for (unsigned i = 0; i < VM_DISKS_MAX; i++)
		if (vm->disk[i].block)
			block_retry(vm->disk[i].block);
}

void limits_let_go(struct vm_slot *s)
{
	if (s->vm->full == s)
		s->vm->full = NULL;
	block_on_full(s->block, NULL, NULL);
	block_throttle(s->block, NULL, NULL);
}

void limits_end(struct vm *vm)
{
	for (unsigned i = 0; i < VM_DISKS_MAX; i++)
		if (vm->disk[i].block)
			limits_let_go(&vm->disk[i]);
}
