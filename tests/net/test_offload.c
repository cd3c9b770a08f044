#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "net/offload.h"

struct sink {
	unsigned frames;
	size_t bytes, last;
	uint32_t next_seq;
	unsigned hdr, l4;
	bool ip6;
	uint8_t flags_or;
};

/* An independent, slow check. */
static uint16_t slow_sum(const uint8_t *p, size_t n, uint32_t sum)
{
	for (size_t i = 0; i < n; i++)
		sum += i & 1 ? p[i] : (uint32_t)p[i] << 8;
	while (sum >> 16)
		sum = (sum & 0xffff) + (sum >> 16);
	return (uint16_t)sum;
}

static void check_segment(void *opaque, const void *frame, size_t len)
{
	struct sink *s = opaque;
	const uint8_t *f = frame;
	uint32_t pseudo = 6 + (uint32_t)(len - s->l4), seq;

	if (!s->ip6) {
		assert_int_equal(slow_sum(f + 14, 20, 0), 0xffff);
		assert_int_equal(f[16] << 8 | f[17], len - 14);
		assert_int_equal(f[18] << 8 | f[19], (100 + s->frames) & 0xffff);
		pseudo += slow_sum(f + 26, 8, 0);
	} else {
		assert_int_equal(f[18] << 8 | f[19], len - 54);
		pseudo += slow_sum(f + 22, 32, 0);
	}
	assert_int_equal(slow_sum(f + s->l4, len - s->l4, pseudo), 0xffff);
	seq = (uint32_t)f[s->l4 + 4] << 24 | f[s->l4 + 5] << 16 | f[s->l4 + 6] << 8 | f[s->l4 + 7];
	assert_int_equal(seq, s->next_seq);
	s->next_seq += (uint32_t)(len - s->hdr);
	for (size_t i = s->hdr; i < len; i++)
		assert_int_equal(f[i], (uint8_t)(s->bytes + i - s->hdr));
	s->bytes += len - s->hdr;
	s->last = len;
	s->frames++;
	s->flags_or |= f[s->l4 + 13];
}

static size_t tcp_frame(uint8_t *f, bool ip6, size_t payload)
{
	unsigned l4 = ip6 ? 54 : 34;

	memset(f, 0x11, 12);
	f[12] = ip6 ? 0x86 : 0x08;
	f[13] = ip6 ? 0xdd : 0x00;
	memset(f + 14, 0, 80);
	if (ip6) {
		f[14] = 0x60;
		f[20] = 6;
		memset(f + 22, 0xfe, 32);
	} else {
		f[14] = 0x45;
		f[19] = 100;
		f[23] = 6;
		memset(f + 26, 10, 8);
	}
	f[l4 + 12] = 8 << 4;	/* 32 bytes with options */
	f[l4 + 13] = 0x19;	/* ACK, PSH, FIN */
	f[l4 + 4] = 0xff;	/* the sequence number wraps */
	f[l4 + 5] = 0xff;
	f[l4 + 6] = 0xff;
	for (size_t i = 0; i < payload; i++)
		f[l4 + 32 + i] = (uint8_t)i;
	return l4 + 32 + payload;
}

static void tso(bool ip6, size_t payload, uint16_t gso_size)
{
	static uint8_t f[FRAME_MAX];
	size_t len = tcp_frame(f, ip6, payload);
	struct sink s = { .next_seq = 0xffffff00, .l4 = ip6 ? 54 : 34, .hdr = ip6 ? 86 : 66, .ip6 = ip6 };
	struct offload o = { .needs_csum = true, .csum_start = (uint16_t)s.l4, .csum_offset = 16,
			     .gso = ip6 ? OFFLOAD_TCP6 : OFFLOAD_TCP4, .gso_size = gso_size };

	assert_true(offload_send(&o, f, len, check_segment, &s));
	assert_int_equal(s.bytes, payload);
	assert_int_equal(s.frames, (payload + gso_size - 1) / gso_size);
	assert_true(s.flags_or & 1);
}

static void test_tso(void **state)
{
	tso(false, 60000, 1448);
	tso(true, 60000, 1428);
	tso(false, 1448, 1448);
	tso(false, 1449, 1448);
	tso(true, 1, 1428);
}

static void keep(void *opaque, const void *frame, size_t len)
{
	memcpy(opaque, frame, len);
}

static void test_csum(void **state)
{
	uint8_t f[64] = {0}, out[64];
	struct offload o = { .needs_csum = true, .csum_start = 34, .csum_offset = 6 };

	for (unsigned i = 34; i < 63; i++)
		f[i] = (uint8_t)(i * 7);
	assert_true(offload_send(&o, f, 63, keep, out));
	f[40] = out[40];
	f[41] = out[41];
	/* Summing again over data and checksum, less the old field, gives all ones. */
	out[40] = (uint8_t)(40 * 7);
	out[41] = (uint8_t)(41 * 7);
	assert_int_equal((uint16_t)~slow_sum(out + 34, 29, 0), f[40] << 8 | f[41]);
	o.csum_start = 62;
	assert_false(offload_send(&o, f, 63, keep, out));
	o.csum_start = 0xffff;
	o.csum_offset = 0xffff;
	assert_false(offload_send(&o, f, 63, keep, out));
	assert_false(offload_send(&o, f, 13, keep, out));
}

static void count(void *opaque, const void *frame, size_t len)
{
	assert_true(len >= 14 && len <= FRAME_MAX);
	++*(unsigned *)opaque;
}

static void test_hostile(void **state)
{
	uint8_t *f = malloc(FRAME_MAX);

	srandom(1);
	for (unsigned i = 0; i < 200000; i++) {
		size_t len = (size_t)random() % (i % 100 ? 200 : FRAME_MAX + 1);
		uint8_t *exact = malloc(len + 1);
		unsigned frames = 0;
		struct offload o = { .needs_csum = random() & 1, .csum_start = (uint16_t)(random() % 120),
				     .csum_offset = (uint16_t)(random() % 40), .gso = random() % 3,
				     .gso_size = (uint16_t)random() };

		for (size_t j = 0; j < len && j < 200; j++)
			f[j] = (uint8_t)random();
		if (random() & 1 && len > 120)
			tcp_frame(f, o.gso == OFFLOAD_TCP6, 0);
		memcpy(exact, f, len);
		offload_send(&o, exact, len, count, &frames);
		assert_true(frames <= FRAME_MAX / 48 + 1);
		free(exact);
	}
	free(f);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_tso), cmocka_unit_test(test_csum), cmocka_unit_test(test_hostile),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
