#include "base/stream.h"

#include <stdlib.h>
#include <string.h>

#include "base/error.h"

void stream_init(struct stream *s)
{
	memset(s, 0, sizeof(*s));
}

void stream_init_read(struct stream *s, const void *data, size_t len)
{
	memset(s, 0, sizeof(*s));
	s->data = (uint8_t *)data;
	s->len = len;
}

void stream_fini(struct stream *s)
{
	if (s->cap)
		free(s->data);
	memset(s, 0, sizeof(*s));
}

void stream_put(struct stream *s, const void *buf, size_t len)
{
	if (s->failed)
		return;
	if (s->len + len > s->cap) {
		size_t cap = s->cap ? s->cap : 256;
		uint8_t *p;

		while (cap < s->len + len)
			cap *= 2;
		p = realloc(s->data, cap);
		if (!p) {
			s->failed = true;
			return;
		}
		s->data = p;
		s->cap = cap;
	}
	if (len)
		memcpy(s->data + s->len, buf, len);
	s->len += len;
}

static void put_le(struct stream *s, uint64_t v, unsigned bytes)
{
	uint8_t b[8];

	for (unsigned i = 0; i < bytes; i++)
		b[i] = (uint8_t)(v >> (8 * i));
	stream_put(s, b, bytes);
}

void stream_put_u8(struct stream *s, uint8_t v)
{
	put_le(s, v, 1);
}

void stream_put_u16(struct stream *s, uint16_t v)
{
	put_le(s, v, 2);
}

void stream_put_u32(struct stream *s, uint32_t v)
{
	put_le(s, v, 4);
}

void stream_put_u64(struct stream *s, uint64_t v)
{
	put_le(s, v, 8);
}

size_t stream_begin(struct stream *s, const char *name, uint16_t version)
{
	size_t n = strlen(name);

	ASSERT(n < 256);
	stream_put_u8(s, (uint8_t)n);
	stream_put(s, name, n);
	stream_put_u16(s, version);
	stream_put_u32(s, 0);
	return s->len;
}

void stream_end(struct stream *s, size_t mark)
{
	size_t body = s->len - mark;

	if (s->failed)
		return;
	for (unsigned i = 0; i < 4; i++)
		s->data[mark - 4 + i] = (uint8_t)(body >> (8 * i));
}

bool stream_get(struct stream *s, void *buf, size_t len)
{
	if (s->failed || len > s->len - s->pos) {
		s->failed = true;
		memset(buf, 0, len);
		return false;
	}
	if (len)
		memcpy(buf, s->data + s->pos, len);
	s->pos += len;
	return true;
}

static uint64_t get_le(struct stream *s, unsigned bytes)
{
	uint8_t b[8];
	uint64_t v = 0;

	stream_get(s, b, bytes);
	for (unsigned i = 0; i < bytes; i++)
		v |= (uint64_t)b[i] << (8 * i);
	return v;
}

uint8_t stream_get_u8(struct stream *s)
{
	return (uint8_t)get_le(s, 1);
}

uint16_t stream_get_u16(struct stream *s)
{
	return (uint16_t)get_le(s, 2);
}

uint32_t stream_get_u32(struct stream *s)
{
	return (uint32_t)get_le(s, 4);
}

uint64_t stream_get_u64(struct stream *s)
{
	return get_le(s, 8);
}

uint16_t stream_enter(struct stream *s, const char *name, size_t *end)
{
	char got[256] = {0};
	uint8_t n = stream_get_u8(s);
	uint16_t version;
	uint32_t body;

	stream_get(s, got, n);
	version = stream_get_u16(s);
	body = stream_get_u32(s);
	if (!s->failed && (strcmp(got, name) || body > s->len - s->pos))
		s->failed = true;
	*end = s->failed ? s->pos : s->pos + body;
	return s->failed ? 0 : version;
}

void stream_leave(struct stream *s, size_t end)
{
	if (s->failed)
		return;
	if (s->pos > end)
		s->failed = true;
	else
		s->pos = end;
}
