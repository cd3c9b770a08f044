/* Tells perf (or whoever listens) of translated code: one line for a block and one for its stubs, perf's map format. */
#include <inttypes.h>
#include <stdio.h>

#include "engine/soft/translate_private.h"

static void note(const struct block_build *b, const struct tblock *k, const uint8_t *from, const uint8_t *end,
		 const char *what)
{
	struct vcpu *v = b->v;
	uint64_t va = (v->s.rip & GUEST_PAGE_MASK) | k->offset;
	char line[128];
	int n = snprintf(line, sizeof line, "%" PRIxPTR " %" PRIxPTR " %c%u_%" PRIx64 "@%" PRIx64 "%s\n",
			 (uintptr_t)(b->t->mem.rx + (from - b->t->mem.rw)), (uintptr_t)(end - from),
			 TMODE_TLB(b->mode) == TLB_USER ? 'u' : 'k', b->wide ? 64u : 32u, va, k->gpa_page | k->offset, what);

	if (end > from)
		v->en->code_made(v->en->code_opaque, line, (size_t)n);
}

void perf_block(const struct block_build *b, const struct tblock *k, const uint8_t *from, const uint8_t *stubs,
		const uint8_t *stubs_end)
{
	note(b, k, from, b->e.p, "");
	note(b, k, stubs, stubs_end, "_stubs");
}
