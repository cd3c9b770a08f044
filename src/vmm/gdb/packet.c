#include "vmm/gdb/packet.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

static int digit(uint8_t c)
{
	if (c >= '0' && c <= '9')
		return c - '0';
	c |= 0x20;
	return c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
}

/* --- in --- */

static void body_begin(struct gdb_parser *p)
{
	p->state = GDB_BODY;
	p->escape = p->long_body = false;
	p->sum = 0;
	p->len = 0;
}

static void body_byte(struct gdb_parser *p, uint8_t byte)
{
	p->sum = (uint8_t)(p->sum + byte);
	if (byte == '}' && !p->escape) {
		p->escape = true;
		return;
	}
	if (p->len == GDB_PACKET_MAX)
		p->long_body = true;
	else
		p->body[p->len++] = p->escape ? byte ^ 0x20 : byte;
	p->escape = false;
}

static enum gdb_token body_end(struct gdb_parser *p, uint8_t byte)
{
	int low = digit(byte);

	p->state = GDB_BETWEEN;
	if (low < 0 || (p->sum_said | low) != p->sum)
		return GDB_DAMAGED;
	if (p->long_body)
		p->len = 0;
	p->body[p->len] = 0;
	return GDB_PACKET;
}

static enum gdb_token between(struct gdb_parser *p, uint8_t byte)
{
	switch (byte) {
	case '$': body_begin(p); return GDB_NOTHING;
	case '+': return GDB_ACK;
	case '-': return GDB_NAK;
	case 3: return GDB_INTERRUPT;
	default: return GDB_NOTHING;
	}
}

/* An unescaped $ begins a packet anew, wherever it comes. */
enum gdb_token gdb_parse(struct gdb_parser *p, uint8_t byte)
{
	int high;

	switch (p->state) {
	case GDB_BETWEEN:
		return between(p, byte);
	case GDB_BODY:
		if (byte == '$')
			body_begin(p);
		else if (byte == '#')
			p->state = GDB_SUM_HIGH;
		else
			body_byte(p, byte);
		return GDB_NOTHING;
	case GDB_SUM_HIGH:
		high = digit(byte);
		p->state = high < 0 ? GDB_BETWEEN : GDB_SUM_LOW;
		if (high < 0)
			return GDB_DAMAGED;
		p->sum_said = (uint8_t)(high << 4);
		return GDB_NOTHING;
	case GDB_SUM_LOW:
		return body_end(p, byte);
	}
	return GDB_NOTHING;
}

bool gdb_hex_number(const uint8_t **at, const uint8_t *end, uint64_t *out)
{
	const uint8_t *p = *at;
	uint64_t v = 0;
	int d;

	for (; p < end && (d = digit(*p)) >= 0; p++) {
		if (v >> 60)
			return false;
		v = v << 4 | (unsigned)d;
	}
	if (p == *at)
		return false;
	*at = p;
	*out = v;
	return true;
}

bool gdb_hex_bytes(const uint8_t **at, const uint8_t *end, uint8_t *out, size_t n)
{
	if ((size_t)(end - *at) < 2 * n)
		return false;
	for (size_t i = 0; i < n; i++) {
		int high = digit((*at)[0]), low = digit((*at)[1]);
		if (high < 0 || low < 0)
			return false;
		out[i] = (uint8_t)(high << 4 | low);
		*at += 2;
	}
	return true;
}

/* --- out --- */

void gdb_out_raw(struct gdb_out *o, uint8_t byte)
{
	if (o->len == GDB_OUT_MAX)
		o->full = true;
	else
		o->bytes[o->len++] = byte;
}

static void out_byte(struct gdb_out *o, uint8_t byte)
{
	o->sum = (uint8_t)(o->sum + byte);
	gdb_out_raw(o, byte);
}

void gdb_out_begin(struct gdb_out *o)
{
	gdb_out_raw(o, '$');
	o->sum = 0;
}

void gdb_out_data(struct gdb_out *o, const void *data, size_t n)
{
	const uint8_t *p = data;

	for (size_t i = 0; i < n; i++) {
		bool special = p[i] == '$' || p[i] == '#' || p[i] == '}' || p[i] == '*';
		if (special)
			out_byte(o, '}');
		out_byte(o, special ? p[i] ^ 0x20 : p[i]);
	}
}

void gdb_out_text(struct gdb_out *o, const char *fmt, ...)
{
	char text[256];
	va_list ap;
	int n;

	va_start(ap, fmt);
	n = vsnprintf(text, sizeof text, fmt, ap);
	va_end(ap);
	gdb_out_data(o, text, n < 0 ? 0 : (size_t)n < sizeof text ? (size_t)n : sizeof text - 1);
}

void gdb_out_hex(struct gdb_out *o, const void *data, size_t n)
{
	static const char digits[] = "0123456789abcdef";
	const uint8_t *p = data;

	for (size_t i = 0; i < n; i++) {
		out_byte(o, (uint8_t)digits[p[i] >> 4]);
		out_byte(o, (uint8_t)digits[p[i] & 15]);
	}
}

void gdb_out_end(struct gdb_out *o)
{
	static const char digits[] = "0123456789abcdef";
	uint8_t sum = o->sum;

	gdb_out_raw(o, '#');
	gdb_out_raw(o, (uint8_t)digits[sum >> 4]);
	gdb_out_raw(o, (uint8_t)digits[sum & 15]);
}
