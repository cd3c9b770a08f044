/* GDB's protocol against a target of two vCPUs and 64 KiB that is nothing but arrays; and any bytes at all. */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "vmm/gdb/session.h"

#define CPUS 2
#define MEMORY 65536u

struct fake {
	struct gdb_cpu cpu[CPUS];
	uint8_t memory[MEMORY];
	struct debug_point point[DEBUG_POINTS];
	unsigned points;
	enum debug_go go[CPUS];
	bool running, killed, asked;
	int points_answer;
	struct gdb_session *g;
};

static unsigned fake_cpus(void *opaque) { return CPUS; }

static void fake_get(void *opaque, unsigned cpu, struct gdb_cpu *out)
{
	struct fake *f = opaque;
	assert_true(cpu < CPUS && !f->running);
	*out = f->cpu[cpu];
}

static void fake_set(void *opaque, unsigned cpu, const struct gdb_cpu *in)
{
	struct fake *f = opaque;
	assert_true(cpu < CPUS && !f->running);
	f->cpu[cpu] = *in;
}

static bool fake_memory(void *opaque, const struct gdb_cpu *c, bool physical, uint64_t at, void *buf, size_t n, bool write)
{
	struct fake *f = opaque;
	assert_true(!f->running && n <= GDB_PACKET_MAX);
	if (at >= MEMORY || n > MEMORY - at)
		return false;
	if (write)
		memcpy(f->memory + at, buf, n);
	else
		memcpy(buf, f->memory + at, n);
	return true;
}

static int fake_points(void *opaque, const struct debug_point *p, unsigned n)
{
	struct fake *f = opaque;
	assert_true(n <= DEBUG_POINTS && !f->running);
	for (unsigned i = 0; i < n; i++)
		assert_true(p[i].kind <= DEBUG_ACCESS && p[i].bytes <= DEBUG_WATCH_BYTES);
	if (f->points_answer)
		return f->points_answer;
	memcpy(f->point, p, n * sizeof *p);
	f->points = n;
	return 0;
}

static void fake_resume(void *opaque, const enum debug_go *go)
{
	struct fake *f = opaque;
	assert_false(f->running);
	for (unsigned i = 0; i < CPUS; i++) {
		assert_true(go[i] <= DEBUG_STEP);
		f->go[i] = go[i];
	}
	f->running = true;
}

static void fake_stop(void *opaque) { ((struct fake *)opaque)->asked = true; }
static void fake_kill(void *opaque) { ((struct fake *)opaque)->killed = true; }

static bool fake_monitor(void *opaque, unsigned cpu, const char *command, FILE *out)
{
	fprintf(out, "%u:%s", cpu, command);
	return strcmp(command, "no") != 0;
}

static const struct gdb_target target = {
	fake_cpus, fake_get, fake_set, fake_memory, fake_points, fake_resume, fake_stop, fake_kill, fake_monitor,
};

static int setup(void **state)
{
	struct fake *f = aligned_alloc(64, (sizeof *f + 63) & ~63ul);
	assert_non_null(f);
	memset(f, 0, sizeof *f);
	f->g = gdb_session_new(&target, f);
	assert_non_null(f->g);
	gdb_session_begin(f->g);
	*state = f;
	return 0;
}

static int teardown(void **state)
{
	struct fake *f = *state;
	gdb_session_free(f->g);
	free(f);
	return 0;
}

static void stopped(struct fake *f, const struct board_stop *s)
{
	f->running = f->asked = false;
	gdb_session_stopped(f->g, s);
}

/* Sends a body, framed, and checks the whole answer: text between acknowledgement and checksum. NULL: none. */
static void ask_bytes(struct fake *f, const void *body, size_t n, const char *answer)
{
	struct gdb_out *o = gdb_session_out(f->g);
	uint8_t sum = 0;
	char tail[4];

	for (size_t i = 0; i < n; i++)
		sum = (uint8_t)(sum + ((const uint8_t *)body)[i]);
	snprintf(tail, sizeof tail, "#%02x", sum);
	gdb_session_take(f->g, (const uint8_t *)"$", 1);
	gdb_session_take(f->g, body, n);
	gdb_session_take(f->g, (const uint8_t *)tail, 3);
	assert_int_equal(o->bytes[0], '+');
	if (!answer) {
		assert_int_equal(o->len, 1);
	} else {
		assert_int_equal(o->len, strlen(answer) + 5);
		assert_int_equal(o->bytes[1], '$');
		assert_memory_equal(o->bytes + 2, answer, strlen(answer));
	}
	o->len = 0;
}

static void ask(struct fake *f, const char *body, const char *answer) { ask_bytes(f, body, strlen(body), answer); }

static void test_frames(void **state)
{
	struct fake *f = *state;
	struct gdb_out *o = gdb_session_out(f->g);

	gdb_session_take(f->g, (const uint8_t *)"junk$?#00", 9);	/* a wrong checksum */
	assert_int_equal(o->len, 1);
	assert_int_equal(o->bytes[0], '-');
	o->len = 0;
	gdb_session_take(f->g, (const uint8_t *)"$never ends$vCont?#49", 21);	/* begins anew */
	assert_memory_equal(o->bytes, "+$vCont;c;C;s;S#", 16);
	o->len = 0;
	ask(f, "QStartNoAckMode", "OK");
	gdb_session_take(f->g, (const uint8_t *)"$!#21", 5);
	assert_memory_equal(o->bytes, "$#00", 4);
	assert_int_equal(o->len, 4);
}

static void test_too_long(void **state)
{
	struct fake *f = *state;
	uint8_t *body = malloc(GDB_PACKET_MAX + 10);

	memset(body, 'm', GDB_PACKET_MAX + 10);
	ask_bytes(f, body, GDB_PACKET_MAX + 10, "");
	ask_bytes(f, body, GDB_PACKET_MAX, "E01");
	free(body);
}

static void test_registers(void **state)
{
	struct fake *f = *state;

	f->cpu[0].s.gpr[REG_RAX] = 0x1122334455667788;
	f->cpu[1].s.gpr[REG_RAX] = 0x99;
	f->cpu[0].s.fpu.ftw_abridged = 0x81;
	ask(f, "p0", "8877665544332211");
	ask(f, "Hg2", "OK");
	ask(f, "p0", "9900000000000000");
	ask(f, "P0=0102030405060708", "OK");
	assert_int_equal(f->cpu[1].s.gpr[REG_RAX], 0x0807060504030201);
	assert_int_equal(f->cpu[0].s.gpr[REG_RAX], 0x1122334455667788);
	ask(f, "P0=01", "E01");
	ask(f, "pffff", "E01");
	ask(f, "Hg3", "E01");
	ask(f, "Hg1", "OK");
	ask(f, "p22", "fc3f0000");		/* ftag: 0 and 7 valid */
	ask(f, "P22=ffff0000", "OK");
	assert_int_equal(f->cpu[0].s.fpu.ftw_abridged, 0);
	ask(f, "P11=ffffffff", "OK");		/* eflags: what is reserved stays so */
	assert_int_equal(f->cpu[0].s.rflags, 0x3f7fd7);
}

static void test_all_registers(void **state)
{
	struct fake *f = *state;
	struct gdb_out *o = gdb_session_out(f->g);
	char *body;

	for (unsigned i = 0; i < REG_COUNT; i++)
		f->cpu[0].s.gpr[i] = 0x0101010101010101ull * (i + 1);
	f->cpu[0].cr8 = 5;
	f->cpu[0].s.fpu.xmm[15].q[1] = 0x77;
	gdb_session_take(f->g, (const uint8_t *)"$g#67", 5);
	body = calloc(1, o->len);
	memcpy(body + 1, o->bytes + 2, o->len - 5);
	body[0] = 'G';
	o->len = 0;
	struct gdb_cpu before = f->cpu[0];
	before.s.rflags = FLAG_FIXED;
	before.s.fpu.xstate_bv = 4;		/* the upper halves have been written */
	memset(&f->cpu[0], 0, sizeof f->cpu[0]);
	ask(f, body, "OK");
	assert_memory_equal(&f->cpu[0], &before, sizeof before);
	body[strlen(body) - 1] = 0;
	ask(f, body, "E01");
	free(body);
}

static void test_memory(void **state)
{
	struct fake *f = *state;

	memcpy(f->memory + 0x100, "\x12\x34\x7d", 3);
	ask(f, "m100,3", "12347d");
	ask(f, "mfffe,4", "0000");		/* as far as there is some */
	ask(f, "m10000,1", "E0e");
	ask(f, "mffffffffffffffff,8", "E0e");
	ask(f, "m0,ffffffff", "E01");
	ask(f, "m0,11112222333344445", "E01");
	ask(f, "M200,2:abcd", "OK");
	assert_memory_equal(f->memory + 0x200, "\xab\xcd", 2);
	ask(f, "M200,3:abcd", "E01");
	ask(f, "Mffff,2:abcd", "E0e");
	ask_bytes(f, "X300,4:a}\x03}\x04z", 13, "OK");	/* '#', '$' */
	assert_memory_equal(f->memory + 0x300, "a#$z", 4);
	ask(f, "X300,0:", "OK");
}

static void test_points(void **state)
{
	struct fake *f = *state;

	ask(f, "Z0,1000,1", "OK");
	ask(f, "Z0,1000,1", "OK");
	assert_int_equal(f->points, 1);
	ask(f, "Z2,2000,8", "OK");
	assert_int_equal(f->point[1].kind, DEBUG_WRITE);
	assert_int_equal(f->point[1].bytes, 8);
	ask(f, "Z5,0,1", "");
	ask(f, "Z2,0,1001", "");
	ask(f, "z0,1000,1", "OK");
	assert_int_equal(f->points, 1);
	f->points_answer = -ENOTSUP;
	ask(f, "Z3,3000,1", "");
	f->points_answer = -ENOSPC;
	ask(f, "Z1,3000,1", "E1c");
	f->points_answer = 0;
	for (unsigned i = 1; i < DEBUG_POINTS; i++) {
		char body[32];
		snprintf(body, sizeof body, "Z1,%x,1", 0x4000 + i);
		ask(f, body, "OK");
	}
	ask(f, "Z1,3000,1", "E1c");
	assert_int_equal(f->points, DEBUG_POINTS);
}

static void test_going(void **state)
{
	struct fake *f = *state;

	ask(f, "qSupported:swbreak+;hwbreak+", "PacketSize=4000;qXfer:features:read+;vContSupported+;QStartNoAckMode+;"
					       "swbreak+;hwbreak+");
	ask(f, "?", "T02thread:1;");
	ask(f, "Z0,1000,1", "OK");
	ask(f, "vCont;s:2;c", NULL);
	assert_int_equal(f->go[0], DEBUG_RUN);
	assert_int_equal(f->go[1], DEBUG_STEP);
	ask(f, "g", NULL);			/* it runs: not now */
	gdb_session_take(f->g, (const uint8_t *)"\3", 1);
	assert_true(f->asked);
	stopped(f, &(struct board_stop){ .why = BOARD_AT_BREAK, .cpu = 1, .point = { 0x1000, 1, DEBUG_BREAK } });
	struct gdb_out *o = gdb_session_out(f->g);
	assert_memory_equal(o->bytes, "$T05thread:2;swbreak:;#", 23);
	o->len = 0;
	ask(f, "qC", "QC2");
	ask(f, "vCont;s:1", NULL);
	assert_int_equal(f->go[1], DEBUG_PARK);
	stopped(f, &(struct board_stop){ .why = BOARD_WATCHED, .cpu = 0, .point = { 0xfffff000, 4, DEBUG_ACCESS } });
	assert_memory_equal(o->bytes, "$T05thread:1;awatch:fffff000;#", 30);
	o->len = 0;
	ask(f, "vCont;x", "E01");
	ask(f, "vCont;c:3", "E01");
	ask(f, "s500", NULL);
	assert_int_equal(f->cpu[0].s.rip, 0x500);
	assert_int_equal(f->go[0], DEBUG_STEP);
	stopped(f, &(struct board_stop){ .why = BOARD_TRIPLE_FAULT, .cpu = 0 });
	o->len = 0;
	ask(f, "D", "OK");
	assert_true(f->running);
	assert_int_equal(f->points, 0);
}

static void test_queries(void **state)
{
	struct fake *f = *state;

	ask(f, "qfThreadInfo", "m1,2");
	ask(f, "qsThreadInfo", "l");
	ask(f, "T2", "OK");
	ask(f, "T3", "E01");
	ask(f, "T0", "E01");
	ask(f, "qAttached", "1");
	ask(f, "qCRC:0,10", "");
	ask(f, "vMustReplyEmpty", "");
	ask(f, "qThreadExtraInfo,1", "43505520302c2072756e6e696e67");
	ask(f, "qXfer:features:read:target.xml:0,5", "m<?xml");
	ask(f, "qXfer:features:read:target.xml:fffff,5", "l");
	ask(f, "qXfer:features:read:other.xml:0,5", "E01");
	ask(f, "qRcmd,6e6f", "");
}

static void test_monitor(void **state)
{
	struct fake *f = *state;
	struct gdb_out *o = gdb_session_out(f->g);

	gdb_session_take(f->g, (const uint8_t *)"$qRcmd,6869#00", 14);
	assert_memory_equal(o->bytes, "+$O303a6869#", 12);
	assert_memory_equal(o->bytes + o->len - 6, "$OK#9a", 6);
}

/* --- any bytes --- */

static uint64_t next(uint64_t *seed)
{
	*seed ^= *seed << 13;
	*seed ^= *seed >> 7;
	*seed ^= *seed << 17;
	return *seed;
}

static const char *const seeds[] = {
	"qSupported:swbreak+;xmlRegisters=i386", "?", "g", "p10", "P10=0011223344556677", "m1000,40", "M1000,4:00112233",
	"X1000,3:abc", "Z0,1000,1", "Z2,2000,8", "z0,1000,1", "vCont;s:1;c", "vCont;C05:-1", "c", "s1000", "Hg1", "Hc-1",
	"T1", "qfThreadInfo", "qThreadExtraInfo,2", "qXfer:features:read:target.xml:0,fff", "qRcmd,68656c70", "k", "D",
	"Qqemu.PhyMemMode:1", "QStartNoAckMode",
};

/* A request of the list with some bytes changed, cut or repeated, mostly in a right frame. */
static size_t mutate(uint64_t *seed, uint8_t *out)
{
	const char *s = seeds[next(seed) % (sizeof seeds / sizeof *seeds)];
	size_t n = strlen(s), len = 1;
	uint8_t sum = 0;

	out[0] = '$';
	for (size_t i = 0; i < n && len < 400; i++) {
		unsigned what = next(seed) % 40;
		uint8_t c = what == 0 ? (uint8_t)next(seed) : what == 1 ? 'f' : (uint8_t)s[i];
		if (what == 2)
			continue;
		for (unsigned k = what == 3 ? next(seed) % 20 : 1; k; k--)
			out[len++] = c;
	}
	for (size_t i = 1; i < len; i++)
		sum = (uint8_t)(sum + out[i]);
	if (next(seed) % 16 == 0)
		sum++;
	return len + (size_t)sprintf((char *)out + len, "#%02x", sum);
}

static void test_any_bytes(void **state)
{
	struct fake *f = *state;
	uint64_t seed = 0x9e3779b97f4a7c15;
	uint8_t bytes[512];

	for (unsigned i = 0; i < 200000; i++) {
		size_t n = 0;
		if (next(&seed) % 8)
			n = mutate(&seed, bytes);
		else
			for (n = 0; n < next(&seed) % 64; n++)
				bytes[n] = (uint8_t)next(&seed);
		gdb_session_take(f->g, bytes, n);
		assert_true(gdb_session_out(f->g)->len < GDB_OUT_MAX);
		gdb_session_out(f->g)->len = 0;
		assert_int_equal(f->running, gdb_session_running(f->g));
		if (f->running && next(&seed) % 4 == 0)
			stopped(f, &(struct board_stop){ .why = next(&seed) % 5, .cpu = next(&seed) % CPUS,
							 .point = { next(&seed), 1, next(&seed) % 4 } });
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(test_frames, setup, teardown),
		cmocka_unit_test_setup_teardown(test_too_long, setup, teardown),
		cmocka_unit_test_setup_teardown(test_registers, setup, teardown),
		cmocka_unit_test_setup_teardown(test_all_registers, setup, teardown),
		cmocka_unit_test_setup_teardown(test_memory, setup, teardown),
		cmocka_unit_test_setup_teardown(test_points, setup, teardown),
		cmocka_unit_test_setup_teardown(test_going, setup, teardown),
		cmocka_unit_test_setup_teardown(test_queries, setup, teardown),
		cmocka_unit_test_setup_teardown(test_monitor, setup, teardown),
		cmocka_unit_test_setup_teardown(test_any_bytes, setup, teardown),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
