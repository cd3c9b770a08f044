/*
 * Saved state as a byte stream: little-endian fields in named, versioned sections.
 *
 *   section:  name_len u8 | name | version u16 | body_len u32 | body ...
 *
 * Owner: the caller.  A stream being written grows; one being read is checked:
 * any short or wrong read sets `failed`, yields zeroes and stays failed, so a
 * device reads all its fields and looks at the flag once.
 */
#ifndef VIXEN_BASE_STREAM_H
#define VIXEN_BASE_STREAM_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct stream {
	uint8_t *data;
	size_t len, cap;	/* bytes valid, bytes allocated (0: data is borrowed) */
	size_t pos;		/* of the next read */
	bool failed;
};

void stream_init(struct stream *s);
void stream_init_read(struct stream *s, const void *data, size_t len);	/* data must outlive s */
void stream_fini(struct stream *s);

void stream_put(struct stream *s, const void *buf, size_t len);
void stream_put_u8(struct stream *s, uint8_t v);
void stream_put_u16(struct stream *s, uint16_t v);
void stream_put_u32(struct stream *s, uint32_t v);
void stream_put_u64(struct stream *s, uint64_t v);
/* Starts a section, returns a mark for stream_end(); sections may nest. */
size_t stream_begin(struct stream *s, const char *name, uint16_t version);
void stream_end(struct stream *s, size_t mark);

bool stream_get(struct stream *s, void *buf, size_t len);
uint8_t stream_get_u8(struct stream *s);
uint16_t stream_get_u16(struct stream *s);
uint32_t stream_get_u32(struct stream *s);
uint64_t stream_get_u64(struct stream *s);
/* Enters the next section, which must have this name; returns its version (0: failed) and its end. */
uint16_t stream_enter(struct stream *s, const char *name, size_t *end);
void stream_leave(struct stream *s, size_t end);	/* skips what was not read; failed if past it */

#endif
