/*
 * Return stacks: where translated code's own CALLs and RETs keep their return addresses.
 *
 *   guest CALL   pushes the guest's return address on the guest's stack, then is a host CALL
 *   guest RET    pops an address into T0, then is a host RET, to the site behind some host CALL
 *   site         jumps to the verify entry of the block there: is T0 its linear address now? If not, T0 is looked up
 *
 * So a host return address is a guess that the host's CPU predicts well, never a decision: whatever the guest does to its
 * stack, the verify entry decides. Which host addresses lie here is decided by the translator alone.
 *
 *	64 KiB, aligned   |  room for C  | <- RETURN_LIMIT   returns <- rsp   | sentinel |
 *
 * There is one for each translation mode, since a block is good for its mode only: a RET in another mode than the CALL finds
 * a site of its own mode, or the sentinel. That looks T0 up, and stays. Dropped code stays in place until the whole cache is
 * flushed, and its verify entries fail; a flush empties the stacks.
 *
 * Calls compare SP with hot.return_limit. A request from another thread makes the limit higher than any stack: so one
 * compare sees to both. A full stack loses its older half.
 */
#include <errno.h>
#include <sys/mman.h>

#include "engine/soft/translate_private.h"

static uint8_t *stack_of(struct trans_vcpu *t, unsigned mode) { return t->return_stacks + (size_t)mode * RETURN_BYTES; }

static uint64_t top_of(struct trans_vcpu *t, unsigned mode) { return (uint64_t)(uintptr_t)stack_of(t, mode) + RETURN_TOP; }

int return_stacks_init(struct vcpu *v)
{
	struct trans_vcpu *t = trans_of(v);
	size_t bytes = (TRANSLATE_MODES + 1) * (size_t)RETURN_BYTES;

	t->return_map = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	if (t->return_map == MAP_FAILED) {
		t->return_map = NULL;
		return -ENOMEM;
	}
	t->return_stacks = (uint8_t *)(((uintptr_t)t->return_map + RETURN_BYTES - 1) & ~((uintptr_t)RETURN_BYTES - 1));
	for (unsigned mode = 0; mode < TRANSLATE_MODES; mode++) {
		const uint8_t *sentinel = t->mem.rx + (t->sentinel[mode] - t->mem.rw);
		memcpy(stack_of(t, mode) + RETURN_TOP, &sentinel, sizeof sentinel);
	}
	return_stacks_reset(v);
	return 0;
}

void return_stacks_fini(struct trans_vcpu *t)
{
	if (t->return_map)
		munmap(t->return_map, (TRANSLATE_MODES + 1) * (size_t)RETURN_BYTES);
}

void return_stacks_reset(struct vcpu *v)
{
	struct trans_vcpu *t = trans_of(v);

	for (unsigned mode = 0; mode < TRANSLATE_MODES; mode++)
		v->hot.return_sp[mode] = top_of(t, mode);
	v->hot.rsp = top_of(t, t->return_mode);
}

/* There is room: below the limit. */
void return_stack_push(struct vcpu *v, const uint8_t *site)
{
	struct trans_vcpu *t = trans_of(v);

	v->hot.rsp -= sizeof site;
	memcpy(stack_of(t, t->return_mode) + (v->hot.rsp & (RETURN_BYTES - 1)), &site, sizeof site);
}

void return_stack_pop(struct vcpu *v) { v->hot.rsp += sizeof(uint8_t *); }

void return_stack_select(struct vcpu *v, unsigned mode)
{
	struct trans_vcpu *t = trans_of(v);

	if (t->return_mode == mode)
		return;
	v->hot.return_sp[t->return_mode] = v->hot.rsp;
	v->hot.rsp = v->hot.return_sp[mode];
	t->return_mode = mode;
}

/* Moves the newer half of what is on the stack to its top. */
static void compact(struct vcpu *v)
{
	struct trans_vcpu *t = trans_of(v);
	uint64_t top = top_of(t, t->return_mode), keep = (top - v->hot.rsp) / 2 & ~7ull;
	uint8_t *from = stack_of(t, t->return_mode) + (v->hot.rsp & (RETURN_BYTES - 1));

	memmove(stack_of(t, t->return_mode) + RETURN_TOP - keep, from, keep);
	v->hot.rsp = top - keep;
}

void return_stack_check(struct vcpu *v)
{
	if ((uint16_t)v->hot.rsp < RETURN_LIMIT)
		compact(v);
	if (atomic_load_explicit(&v->hot.return_limit, memory_order_relaxed) != RETURN_LIMIT)
		atomic_store(&v->hot.return_limit, RETURN_LIMIT);
}
