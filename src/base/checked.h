/* Arithmetic that says when it does not fit. */
#ifndef VIXEN_BASE_CHECKED_H
#define VIXEN_BASE_CHECKED_H

#include <stdbool.h>
#include <stdint.h>

static inline bool checked_add(uint64_t a, uint64_t b, uint64_t *sum)
{
	return !__builtin_add_overflow(a, b, sum);
}
static inline bool checked_mul(uint64_t a, uint64_t b, uint64_t *product)
{
	return !__builtin_mul_overflow(a, b, product);
}
/* Is [start, start + len) inside [0, size)? */
static inline bool range_inside(uint64_t start, uint64_t len, uint64_t size)
{
	return start <= size && len <= size - start;
}

#endif
