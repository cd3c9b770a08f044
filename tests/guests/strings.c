/* REP MOVS and REP STOS both ways: sizes, overlaps, pages that share a slot of the TLB, faults in the middle. */
#include "guest.h"

#define AREA 0x40000000ull
#define FAR 0x40400000ull	/* 1,024 pages on */
#define SPAN 4096u

struct run { uint64_t count, from, to, value; unsigned size; bool down; };

static void movs(void *p)
{
	struct run *r = p;

	if (r->down)
		__asm__ volatile("std");
	switch (r->size) {
	case 1: __asm__ volatile("rep movsb" : "+S"(r->from), "+D"(r->to), "+c"(r->count) : : "memory"); break;
	case 2: __asm__ volatile("rep movsw" : "+S"(r->from), "+D"(r->to), "+c"(r->count) : : "memory"); break;
	case 4: __asm__ volatile("rep movsl" : "+S"(r->from), "+D"(r->to), "+c"(r->count) : : "memory"); break;
	default: __asm__ volatile("rep movsq" : "+S"(r->from), "+D"(r->to), "+c"(r->count) : : "memory"); break;
	}
	__asm__ volatile("cld");
}

static void stos(void *p)
{
	struct run *r = p;

	if (r->down)
		__asm__ volatile("std");
	switch (r->size) {
	case 1: __asm__ volatile("rep stosb" : "+D"(r->to), "+c"(r->count) : "a"(r->value) : "memory"); break;
	case 2: __asm__ volatile("rep stosw" : "+D"(r->to), "+c"(r->count) : "a"(r->value) : "memory"); break;
	case 4: __asm__ volatile("rep stosl" : "+D"(r->to), "+c"(r->count) : "a"(r->value) : "memory"); break;
	default: __asm__ volatile("rep stosq" : "+D"(r->to), "+c"(r->count) : "a"(r->value) : "memory"); break;
	}
	__asm__ volatile("cld");
}

static uint8_t model[4 * SPAN];
static void model_fill(uint8_t *real)
{
	for (unsigned i = 0; i < sizeof model; i++)
		model[i] = real[i] = (uint8_t)(i * 7 + (i >> 8));
}

static bool model_same(const uint8_t *real)
{
	for (unsigned i = 0; i < sizeof model; i++)
		if (((volatile const uint8_t *)real)[i] != model[i])
			return false;
	return true;
}

/* What the architecture says: element by element. A negative distance is a copy to lower addresses. */
static bool movs_case(unsigned size, bool down, unsigned start, int distance, unsigned count)
{
	uint8_t *real = (uint8_t *)AREA;
	struct run r = { count, AREA + start, AREA + start + (uint64_t)(int64_t)distance, 0, size, down };
	uint64_t step = down ? -(uint64_t)size : size, from = r.from, to = r.to;

	model_fill(real);
	for (unsigned i = 0; i < count; i++) {
		uint8_t element[8];
		for (unsigned k = 0; k < size; k++)
			element[k] = model[start + i * step + k];
		for (unsigned k = 0; k < size; k++)
			model[start + (uint64_t)(int64_t)distance + i * step + k] = element[k];
	}
	movs(&r);
	return model_same(real) && !r.count && r.from == from + count * step && r.to == to + count * step;
}

static bool stos_case(unsigned size, bool down, unsigned start, unsigned count)
{
	uint8_t *real = (uint8_t *)AREA;
	struct run r = { count, 0, AREA + start, 0x1122334455667788ull, size, down };
	uint64_t step = down ? -(uint64_t)size : size, to = r.to;

	model_fill(real);
	for (unsigned i = 0; i < count; i++)
		for (unsigned k = 0; k < size; k++)
			model[start + i * step + k] = (uint8_t)(r.value >> 8 * k);
	stos(&r);
	return model_same(real) && !r.count && r.to == to + count * step;
}

static void overlaps(void)
{
	static const int distances[] = { 0, 1, -1, 3, -3, 8, -8, 100, -100, 4096, -4096 };
	static const unsigned counts[] = { 1, 2, 5, 300 };
	bool moves = true, stores = true;

	for (unsigned size = 1; size <= 8; size *= 2)
		for (unsigned down = 0; down < 2; down++)
			for (unsigned at = 0; at < 9; at++)
				for (unsigned c = 0; c < 4; c++) {
					unsigned start = 2 * SPAN - 4 + at;
					stores &= stos_case(size, down, start, counts[c]);
					for (unsigned d = 0; d < 11; d++)
						moves &= movs_case(size, down, start, distances[d], counts[c]);
				}
	check(moves, "REP MOVS as element by element", "");
	check(stores, "REP STOS as element by element", "");
}

/* Source and destination whose pages compete for one entry of the TLB. */
static void same_slot(void)
{
	struct run r = { SPAN / 8, FAR + SPAN - 8, AREA + SPAN - 8, 0, 8, true };
	volatile uint64_t *a = (void *)AREA, *b = (void *)FAR;
	bool ok = true;

	for (unsigned i = 0; i < SPAN / 8; i++) {
		a[i] = 0;
		b[i] = i * 0x0101010101010101ull;
	}
	movs(&r);
	for (unsigned i = 0; i < SPAN / 8; i++)
		ok &= a[i] == i * 0x0101010101010101ull;
	check(ok && r.from == FAR - 8 && r.to == AREA - 8, "pages that share a TLB entry", "");
}

/* Registers in the frame of a fault in the middle. */
static volatile uint64_t left, at_from, at_to;
static void on_fault(struct trap_frame *f)
{
	left = f->rcx;
	at_from = f->rsi;
	at_to = f->rdi;
	f->rcx = 0;		/* the rest is not done */
}

static void faults(void)
{
	struct run r = { 100, AREA + SPAN + 96, AREA + 2 * SPAN + 200, 0, 8, true };

	irq_set_handler(14, on_fault);
	*page_entry(AREA, true) &= ~1ull;
	invlpg(AREA);
	movs(&r);
	CHECK(left == 100 - 13 && at_from == AREA + SPAN - 8, "a fault at the source, going down");
	r = (struct run){ 600, AREA + SPAN + 4000, AREA + 2 * SPAN - 4, 0, 2, true };
	*page_entry(AREA, true) |= 1ull;
	*page_entry(AREA + SPAN, true) &= ~2ull;
	invlpg(AREA);
	invlpg(AREA + SPAN);
	movs(&r);
	CHECK(left == 600 && at_to == AREA + 2 * SPAN - 4, "a fault at the destination comes first");
	r = (struct run){ 600, AREA + 3 * SPAN, AREA + SPAN - 40, 0, 4, false };
	movs(&r);
	CHECK(left == 590 && at_to == AREA + SPAN && at_from == AREA + 3 * SPAN + 40, "and going up");
	r = (struct run){ 600, 0, AREA + 2 * SPAN + 6, 0, 4, true };
	stos(&r);
	CHECK(left == 598 && at_to == AREA + 2 * SPAN - 2, "STOS stops at an element that crosses into the page");
	*page_entry(AREA + SPAN, true) |= 2ull;
	invlpg(AREA + SPAN);
	irq_set_handler(14, NULL);
}

int main(void)
{
	trap_init();
	for (unsigned i = 0; i < 4; i++) {
		*page_entry(AREA + i * SPAN, true) = (uint64_t)page_alloc() | 3;
		*page_entry(FAR + i * SPAN, true) = (uint64_t)page_alloc() | 3;
		invlpg(AREA + i * SPAN);
		invlpg(FAR + i * SPAN);
	}
	overlaps();
	same_slot();
	faults();
	return 0;
}
