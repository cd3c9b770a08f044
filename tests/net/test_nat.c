/* A guest in a hundred lines: ARP, DHCP and UDP and TCP against the NAT, on the loop's own thread. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <arpa/inet.h>
#include <cmocka.h>
#include <errno.h>
#include <pthread.h>
#include <sys/socket.h>

#include "host/loop.h"
#include "net/offload.h"
#include "net/port.h"

struct guest {
	struct loop *loop;
	struct net_backend be;
	struct net_sink sink;
	struct loop_timer *deadline;
	bool buffers;
	uint8_t last[2048];
	size_t last_len;
	unsigned frames;
	uint16_t want_type;
	uint8_t want_proto;
	bool found;
};

static bool can_receive(void *opaque)
{
	return ((struct guest *)opaque)->buffers;
}

static void receive(void *opaque, const void *frame, size_t len)
{
	struct guest *g = opaque;
	const uint8_t *f = frame;

	g->frames++;
	if (len > sizeof(g->last) || (f[12] << 8 | f[13]) != g->want_type)
		return;
	if (g->want_type == 0x0800 && f[23] != g->want_proto)
		return;
	memcpy(g->last, frame, len);
	g->last_len = len;
	g->found = true;
	loop_stop(g->loop);
}

static void too_late(void *opaque)
{
	loop_stop(((struct guest *)opaque)->loop);
}

static bool wait_frame(struct guest *g, uint16_t type, uint8_t proto)
{
	g->want_type = type;
	g->want_proto = proto;
	g->found = false;
	loop_timer_set(g->deadline, clock_now_ns() + 3000000000ull);
	loop_run(g->loop);
	return g->found;
}

static int setup(void **state)
{
	struct guest *g = calloc(1, sizeof(*g));

	g->loop = loop_new();
	g->sink = (struct net_sink){ can_receive, receive, g };
	g->deadline = loop_timer_new(g->loop, too_late, g);
	g->buffers = true;
	*state = g;
	return 0;
}

static int teardown(void **state)
{
	struct guest *g = *state;

	if (g->be.ops)
		g->be.ops->free(g->be.opaque);
	loop_timer_free(g->deadline);
	loop_free(g->loop);
	free(g);
	return 0;
}

static void send_frame(struct guest *g, const void *f, size_t len)
{
	struct iovec iov[2] = { { (void *)f, 10 }, { (uint8_t *)f + 10, len - 10 } };

	g->be.ops->send(g->be.opaque, iov, 2);
}

static const uint8_t me[6] = { 0x52, 0x54, 0, 1, 2, 3 };

static void arp_gateway(struct guest *g)
{
	uint8_t f[42] = {0};

	memset(f, 0xff, 6);
	memcpy(f + 6, me, 6);
	memcpy(f + 12, "\x08\x06\x00\x01\x08\x00\x06\x04\x00\x01", 10);
	memcpy(f + 22, me, 6);
	memcpy(f + 28, "\x0a\x00\x02\x0f", 4);
	memcpy(f + 38, "\x0a\x00\x02\x02", 4);
	send_frame(g, f, sizeof(f));
}

static void fix_sum(uint8_t *f)
{
	uint16_t sum;

	f[24] = f[25] = 0;
	sum = (uint16_t)~csum_add(0, f + 14, 20);
	f[24] = (uint8_t)(sum >> 8);
	f[25] = (uint8_t)sum;
}

static size_t udp_frame(uint8_t *f, uint16_t port, const void *data, size_t len)
{
	memset(f, 0, 42);
	memcpy(f, "\x52\x55\x0a\x00\x02\x02", 6);
	memcpy(f + 6, me, 6);
	f[12] = 8;
	f[14] = 0x45;
	f[16] = (uint8_t)((28 + len) >> 8);
	f[17] = (uint8_t)(28 + len);
	f[22] = 64;
	f[23] = 17;
	memcpy(f + 26, "\x0a\x00\x02\x0f\x0a\x00\x02\x02", 8);
	f[34] = 0x30;
	f[36] = (uint8_t)(port >> 8);
	f[37] = (uint8_t)port;
	f[38] = (uint8_t)((8 + len) >> 8);
	f[39] = (uint8_t)(8 + len);
	memcpy(f + 42, data, len);
	fix_sum(f);
	return 42 + len;
}

static int host_socket(int type, struct sockaddr_in *a)
{
	socklen_t n = sizeof(*a);
	int s = socket(AF_INET, type, 0);

	*a = (struct sockaddr_in){ .sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
	assert_int_equal(bind(s, (struct sockaddr *)a, sizeof(*a)), 0);
	getsockname(s, (struct sockaddr *)a, &n);
	return s;
}

static void test_arp(void **state)
{
	struct guest *g = *state;

	assert_int_equal(nat_open(&g->be, g->loop, &g->sink, NULL, 0, NULL), 0);
	arp_gateway(g);
	assert_true(g->found || wait_frame(g, 0x0806, 0) || g->frames);
}

static void test_udp_both_ways(void **state)
{
	struct guest *g = *state;
	struct sockaddr_in a, from;
	socklen_t n = sizeof(from);
	uint8_t f[200];
	char buf[64];
	int s = host_socket(SOCK_DGRAM, &a);

	assert_int_equal(nat_open(&g->be, g->loop, &g->sink, NULL, 0, NULL), 0);
	arp_gateway(g);
	send_frame(g, f, udp_frame(f, ntohs(a.sin_port), "ping", 4));
	assert_int_equal(recvfrom(s, buf, sizeof(buf), 0, (struct sockaddr *)&from, &n), 4);
	assert_int_equal(sendto(s, "pong!", 5, 0, (struct sockaddr *)&from, n), 5);
	assert_true(wait_frame(g, 0x0800, 17));
	assert_memory_equal(g->last + 42, "pong!", 5);
	close(s);
}

static void test_no_buffers_then_poke(void **state)
{
	struct guest *g = *state;
	struct sockaddr_in a, from;
	socklen_t n = sizeof(from);
	uint8_t f[200];
	char buf[64];
	int s = host_socket(SOCK_DGRAM, &a);

	assert_int_equal(nat_open(&g->be, g->loop, &g->sink, NULL, 0, NULL), 0);
	arp_gateway(g);
	send_frame(g, f, udp_frame(f, ntohs(a.sin_port), "ping", 4));
	assert_int_equal(recvfrom(s, buf, sizeof(buf), 0, (struct sockaddr *)&from, &n), 4);
	g->buffers = false;
	for (unsigned i = 0; i < 3; i++)
		sendto(s, "pong!", 5, 0, (struct sockaddr *)&from, n);
	assert_false(wait_frame(g, 0x0800, 99));
	g->buffers = true;
	g->frames = 0;
	g->be.ops->poke(g->be.opaque);
	assert_int_equal(g->frames, 3);
	close(s);
}

static void test_forward(void **state)
{
	struct guest *g = *state;
	struct net_forward fwd = { .host_port = 0, .guest_port = 22 };
	struct sockaddr_in a;
	struct error e = {0};
	int s = host_socket(SOCK_STREAM, &a), c;

	fwd.host_port = ntohs(a.sin_port);
	listen(s, 1);
	assert_true(nat_open(&g->be, g->loop, &g->sink, &fwd, 1, &e) < 0);	/* taken */
	assert_non_null(strstr(e.todo, "another host port"));
	close(s);
	strcpy(fwd.host_addr, "nonsense");
	assert_int_equal(nat_open(&g->be, g->loop, &g->sink, &fwd, 1, &e), -EINVAL);
	strcpy(fwd.host_addr, "127.0.0.1");
	assert_int_equal(nat_open(&g->be, g->loop, &g->sink, &fwd, 1, &e), 0);
	arp_gateway(g);
	c = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
	connect(c, (struct sockaddr *)&a, sizeof(a));
	assert_true(wait_frame(g, 0x0800, 6));		/* the SYN */
	assert_int_equal(g->last[36] << 8 | g->last[37], 22);
	assert_int_equal(g->last[47] & 0x12, 2);
	close(c);
}

static void test_hostile_frames(void **state)
{
	struct guest *g = *state;
	uint8_t f[1600], *exact;

	assert_int_equal(nat_open(&g->be, g->loop, &g->sink, NULL, 0, NULL), 0);
	srandom(2);
	for (unsigned i = 0; i < 200000; i++) {
		size_t len = 10 + (size_t)random() % 1590;

		for (unsigned j = 0; j < 100; j++)
			f[j] = (uint8_t)random();
		if (random() & 3) {
			udp_frame(f, (uint16_t)(random() | 1024), "x", 1);
			f[23] = (uint8_t)(random() & 1 ? 6 : 1);
			f[14 + random() % 28] = (uint8_t)random();
			memcpy(f + 30, "\x0a\x00\x02\x02", 4);	/* never out to the world */
			fix_sum(f);
		} else {
			f[12] = 8;
			f[13] = 6;
		}
		exact = malloc(len);
		memcpy(exact, f, len);
		send_frame(g, exact, len);
		free(exact);
	}
	loop_timer_set(g->deadline, clock_now_ns() + 200000000ull);
	loop_run(g->loop);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(test_arp, setup, teardown),
		cmocka_unit_test_setup_teardown(test_udp_both_ways, setup, teardown),
		cmocka_unit_test_setup_teardown(test_no_buffers_then_poke, setup, teardown),
		cmocka_unit_test_setup_teardown(test_forward, setup, teardown),
		cmocka_unit_test_setup_teardown(test_hostile_frames, setup, teardown),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
