/*
 * The framing of GDB's remote serial protocol (GDB's manual, appendix E.1): $body#checksum, acknowledgements, Ctrl-C.
 * Pure: bytes in, tokens out. Any bytes may come in.
 */
#ifndef VIXEN_VMM_GDB_PACKET_H
#define VIXEN_VMM_GDB_PACKET_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define GDB_PACKET_MAX 16384u	/* bytes of a body, as they travel */

enum gdb_token { GDB_NOTHING, GDB_PACKET, GDB_DAMAGED, GDB_INTERRUPT, GDB_ACK, GDB_NAK };

/* Zero-initialise. After GDB_PACKET the body, unescaped, is [body, body + len), with a NUL behind it. What is longer than
 * GDB_PACKET_MAX arrives empty: a request nobody knows. */
struct gdb_parser {
	enum { GDB_BETWEEN, GDB_BODY, GDB_SUM_HIGH, GDB_SUM_LOW } state;
	bool escape, long_body;
	uint8_t sum, sum_said;
	size_t len;
	uint8_t body[GDB_PACKET_MAX + 1];
};
enum gdb_token gdb_parse(struct gdb_parser *p, uint8_t byte);

/* What is to be sent. Zero-initialise; bytes that do not fit are dropped and `full` is set. */
#define GDB_OUT_MAX (8u * GDB_PACKET_MAX)
struct gdb_out {
	bool full;
	uint8_t sum;
	size_t len;
	uint8_t bytes[GDB_OUT_MAX];
};
void gdb_out_raw(struct gdb_out *o, uint8_t byte);
void gdb_out_begin(struct gdb_out *o);
void gdb_out_data(struct gdb_out *o, const void *data, size_t n);	/* escaped where needed */
void gdb_out_text(struct gdb_out *o, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
void gdb_out_hex(struct gdb_out *o, const void *data, size_t n);
void gdb_out_end(struct gdb_out *o);

/* Reads hexadecimal digits at *at, up to `end`; false: there is none, or more than 64 bits. */
bool gdb_hex_number(const uint8_t **at, const uint8_t *end, uint64_t *out);
/* Exactly n bytes, 2n digits. */
bool gdb_hex_bytes(const uint8_t **at, const uint8_t *end, uint8_t *out, size_t n);

#endif
