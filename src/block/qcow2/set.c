/* A set of numbers: open addressing, at most three quarters full. */
#include <stdlib.h>

#include "block/qcow2/qcow2.h"

static size_t slot_of(const struct set *s, uint64_t key)
{
	return (size_t)(key * 0x9e3779b97f4a7c15ull >> 20) & (s->cap - 1);
}

static void put(struct set *s, uint64_t key)
{
	size_t i = slot_of(s, key);

	while (s->slot[i] && s->slot[i] != key)
		i = (i + 1) & (s->cap - 1);
	if (!s->slot[i])
		s->n++;
	s->slot[i] = key;
}

static bool grow(struct set *s)
{
	struct set bigger = { .cap = s->cap ? s->cap * 2 : 64 };

	bigger.slot = calloc(bigger.cap, sizeof(*bigger.slot));
	if (!bigger.slot)
		return false;
	for (size_t i = 0; i < s->cap; i++)
		if (s->slot[i])
			put(&bigger, s->slot[i]);
	free(s->slot);
	*s = bigger;
	return true;
}

bool set_add(struct set *s, uint64_t v)
{
	if ((s->n + 1) * 4 > s->cap * 3 && !grow(s))
		return false;
	put(s, v + 1);
	return true;
}

bool set_has(const struct set *s, uint64_t v)
{
	if (!s->cap)
		return false;
	for (size_t i = slot_of(s, v + 1); s->slot[i]; i = (i + 1) & (s->cap - 1))
		if (s->slot[i] == v + 1)
			return true;
	return false;
}

/* What follows in the same run of slots is put again, so that no search ends too early. */
void set_del(struct set *s, uint64_t v)
{
	size_t i = s->cap ? slot_of(s, v + 1) : 0;

	if (!set_has(s, v))
		return;
	while (s->slot[i] != v + 1)
		i = (i + 1) & (s->cap - 1);
	s->slot[i] = 0;
	s->n--;
	for (i = (i + 1) & (s->cap - 1); s->slot[i]; i = (i + 1) & (s->cap - 1)) {
		uint64_t key = s->slot[i];

		s->slot[i] = 0;
		s->n--;
		put(s, key);
	}
}

void set_fini(struct set *s)
{
	free(s->slot);
	*s = (struct set){ 0 };
}
