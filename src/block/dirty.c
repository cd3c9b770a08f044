#include "block/dirty.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/error.h"

static uint64_t bits_for(uint64_t size_bytes, unsigned gran_bits)
{
	return (size_bytes >> gran_bits) + (size_bytes & ((1ull << gran_bits) - 1) ? 1 : 0);
}

static uint64_t words_for(uint64_t nbits)
{
	return nbits / 64 + (nbits % 64 ? 1 : 0);
}

int dirty_init(struct dirty *d, uint64_t size_bytes, unsigned gran_bits)
{
	ASSERT(gran_bits >= DIRTY_BITS_MIN && gran_bits <= DIRTY_BITS_MAX);
	*d = (struct dirty){ .size_bytes = size_bytes, .gran_bits = gran_bits, .nbits = bits_for(size_bytes, gran_bits) };
	if (d->nbits > DIRTY_BYTES_MAX * 8)
		return -EFBIG;
	d->word = calloc(words_for(d->nbits) + 1, sizeof(*d->word));
	return d->word ? 0 : -ENOMEM;
}

int dirty_copy(struct dirty *d, const struct dirty *from)
{
	int ret = dirty_init(d, from->size_bytes, from->gran_bits);

	if (ret)
		return ret;
	memcpy(d->word, from->word, words_for(d->nbits) * sizeof(*d->word));
	d->count = from->count;
	return 0;
}

void dirty_assign(struct dirty *d, const struct dirty *from)
{
	ASSERT(d->nbits == from->nbits && d->gran_bits == from->gran_bits);
	memcpy(d->word, from->word, words_for(d->nbits) * sizeof(*d->word));
	d->count = from->count;
}

void dirty_fini(struct dirty *d)
{
	free(d->word);
	*d = (struct dirty){ 0 };
}

static bool bit(const struct dirty *d, uint64_t i)
{
	return d->word[i / 64] >> (i % 64) & 1;
}

int dirty_resize(struct dirty *d, uint64_t size_bytes)
{
	struct dirty n;
	int ret = dirty_init(&n, size_bytes, d->gran_bits);
	uint64_t both = n.nbits < d->nbits ? n.nbits : d->nbits;

	if (ret) {
		dirty_fini(&n);
		return ret;
	}
	memcpy(n.word, d->word, words_for(both) * sizeof(*n.word));
	if (both % 64)
		n.word[both / 64] &= (1ull << (both % 64)) - 1;
	for (uint64_t i = 0; i < words_for(both); i++)
		n.count += (uint64_t)__builtin_popcountll(n.word[i]);
	dirty_fini(d);
	*d = n;
	return 0;
}

/* --- ranges --- */

struct span { uint64_t first, end; };

static struct span span_of(const struct dirty *d, uint64_t offset, uint64_t len)
{
	struct span s = { offset >> d->gran_bits, 0 };

	if (!len || s.first >= d->nbits)
		return (struct span){ 0, 0 };
	s.end = len > UINT64_MAX - offset ? d->nbits : bits_for(offset + len, d->gran_bits);
	if (s.end > d->nbits)
		s.end = d->nbits;
	return s;
}

/* The bits of word i that lie in the span. */
static uint64_t mask_of(struct span s, uint64_t i)
{
	uint64_t m = UINT64_MAX;

	if (i == s.first / 64)
		m &= UINT64_MAX << (s.first % 64);
	if (i == s.end / 64)
		m &= (1ull << (s.end % 64)) - 1;
	return m;
}

static void change(struct dirty *d, struct span s, bool set)
{
	for (uint64_t i = s.first / 64; i < words_for(s.end); i++) {
		uint64_t old = d->word[i], m = mask_of(s, i);

		d->word[i] = set ? old | m : old & ~m;
		d->count += (uint64_t)__builtin_popcountll(d->word[i]);
		d->count -= (uint64_t)__builtin_popcountll(old);
	}
}

void dirty_set(struct dirty *d, uint64_t offset, uint64_t len)
{
	change(d, span_of(d, offset, len), true);
}

void dirty_clear(struct dirty *d, uint64_t offset, uint64_t len)
{
	change(d, span_of(d, offset, len), false);
}

void dirty_set_all(struct dirty *d)
{
	change(d, (struct span){ 0, d->nbits }, true);
}

void dirty_clear_all(struct dirty *d)
{
	change(d, (struct span){ 0, d->nbits }, false);
}

bool dirty_all_set(const struct dirty *d, uint64_t offset, uint64_t len)
{
	struct span s = span_of(d, offset, len);

	for (uint64_t i = s.first / 64; i < words_for(s.end); i++)
		if (~d->word[i] & mask_of(s, i))
			return false;
	return true;
}

bool dirty_any_set(const struct dirty *d, uint64_t offset, uint64_t len)
{
	struct span s = span_of(d, offset, len);

	for (uint64_t i = s.first / 64; i < words_for(s.end); i++)
		if (d->word[i] & mask_of(s, i))
			return true;
	return false;
}

/* The first bit at or after i that is as wanted; nbits if there is none. */
static uint64_t find(const struct dirty *d, uint64_t i, bool want)
{
	while (i < d->nbits) {
		uint64_t w = (want ? d->word[i / 64] : ~d->word[i / 64]) >> (i % 64);

		if (w) {
			i += (uint64_t)__builtin_ctzll(w);
			return i < d->nbits ? i : d->nbits;
		}
		i = (i / 64 + 1) * 64;
	}
	return d->nbits;
}

bool dirty_next(const struct dirty *d, uint64_t from, uint64_t *offset, uint64_t *len)
{
	uint64_t first, end;

	if (from >= d->size_bytes)
		return false;
	first = find(d, from >> d->gran_bits, true);
	if (first == d->nbits)
		return false;
	end = find(d, first, false) << d->gran_bits;
	*offset = first << d->gran_bits > from ? first << d->gran_bits : from;
	*len = (end < d->size_bytes ? end : d->size_bytes) - *offset;
	return true;
}

void dirty_merge(struct dirty *d, const struct dirty *from)
{
	for (uint64_t at = 0, len; dirty_next(from, at, &at, &len); at += len)
		dirty_set(d, at, len);
}

uint64_t dirty_bytes(const struct dirty *d)
{
	uint64_t all = d->count << d->gran_bits, over = (d->nbits << d->gran_bits) - d->size_bytes;

	return d->nbits && bit(d, d->nbits - 1) ? all - over : all;
}

/* --- as bytes; the host's order of bytes is the file's --- */

uint64_t dirty_file_bytes(const struct dirty *d)
{
	return d->nbits / 8 + (d->nbits % 8 ? 1 : 0);
}

void dirty_export(const struct dirty *d, uint64_t at, void *buf, uint64_t len)
{
	uint64_t all = dirty_file_bytes(d), there = at < all ? all - at : 0;

	there = there < len ? there : len;
	memcpy(buf, (const uint8_t *)d->word + at, there);
	memset((uint8_t *)buf + there, 0, len - there);
}

void dirty_import(struct dirty *d, uint64_t at, const void *buf, uint64_t len)
{
	uint64_t all = dirty_file_bytes(d), there = at < all ? all - at : 0, last = words_for(d->nbits);

	memcpy((uint8_t *)d->word + at, buf, there < len ? there : len);
	if (d->nbits % 64)
		d->word[last - 1] &= (1ull << (d->nbits % 64)) - 1;
	d->count = 0;
	for (uint64_t i = 0; i < last; i++)
		d->count += (uint64_t)__builtin_popcountll(d->word[i]);
}
