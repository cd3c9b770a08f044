#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>
#include <linux/virtio_config.h>
#include <linux/virtio_net.h>

#include "devices/virtio/console.h"
#include "devices/virtio/net.h"
#include "devices/virtio/rng.h"
#include "driver.h"

#define ALL (~0ull)
enum { RX, TX, CTRL };

struct nic {
	struct bench b;
	struct drv d, rng, con;
	struct virtio_net *net;
	struct virtio_console *console;
	const struct net_sink *sink;
	uint64_t page;
	uint8_t sent[65536], to_guest[65536], printed[64];
	size_t sent_len, to_guest_len;
	atomic_uint frames, pokes, received, prints, inputs;
	bool got;
	size_t taken;
};

static void be_send(void *opaque, const struct iovec *iov, int n)
{
	struct nic *k = opaque;

	k->sent_len = 0;
	for (int i = 0; i < n; i++) {
		memcpy(k->sent + k->sent_len, iov[i].iov_base, iov[i].iov_len);
		k->sent_len += iov[i].iov_len;
	}
	atomic_fetch_add(&k->frames, 1);
}

static void be_poke(void *opaque)
{
	atomic_fetch_add(&((struct nic *)opaque)->pokes, 1);
}

static void be_free(void *opaque)
{
}

static const struct net_ops be_ops = { be_send, be_poke, be_free };

static void print(void *opaque, const void *buf, size_t len)
{
	struct nic *k = opaque;

	memcpy(k->printed, buf, len < 63 ? len : 63);
	atomic_fetch_add(&k->prints, 1);
}

static int setup(void **state)
{
	struct nic *k = calloc(1, sizeof(*k));
	static const uint8_t mac[6] = { 0x52, 0x54, 0, 1, 2, 3 };
	struct console_sink sink = { print, NULL, k };
	struct virtio_rng *rng;

	bench_init(&k->b);
	assert_int_equal(virtio_net_new(&k->net, k->b.bus, k->b.map, k->b.loop, mac, NULL), 0);
	assert_int_equal(virtio_rng_new(&rng, k->b.bus, k->b.map, k->b.loop, NULL), 0);
	assert_int_equal(virtio_console_new(&k->console, k->b.bus, k->b.map, k->b.loop, &sink, NULL), 0);
	k->sink = virtio_net_sink(k->net);
	virtio_net_attach(k->net, &(struct net_backend){ &be_ops, k });
	bench_run(&k->b);
	drv_find(&k->d, &k->b, 1);
	drv_find(&k->rng, &k->b, 2);
	drv_find(&k->con, &k->b, 3);
	k->page = bench_alloc(&k->b, 1 << 20);
	*state = k;
	return 0;
}

static int teardown(void **state)
{
	struct nic *k = *state;

	bench_fini(&k->b);
	bench_free(&k->b);
	free(k);
	return 0;
}

static uint8_t *ptr(struct nic *k, uint64_t gpa, size_t len)
{
	return map_ptr(k->b.map, gpa, len, true);
}

static void receive_on_loop(void *opaque)
{
	struct nic *k = opaque;

	k->got = k->sink->can_receive(k->sink->opaque);
	if (k->got)
		k->sink->receive(k->sink->opaque, k->to_guest, k->to_guest_len);
	atomic_fetch_add(&k->received, 1);
}

static bool to_guest(struct nic *k, size_t len)
{
	unsigned n = atomic_load(&k->received);

	for (size_t i = 0; i < len; i++)
		k->to_guest[i] = (uint8_t)(i * 3);
	memcpy(k->to_guest, "\x52\x54\x00\x01\x02\x03", 6);
	k->to_guest_len = len;
	loop_post(k->b.loop, receive_on_loop, k);
	assert_true(wait_for(&k->received, n + 1));
	return k->got;
}

static void test_config(void **state)
{
	struct nic *k = *state;

	drv_start(&k->d, ALL);
	assert_int_equal(map_load(k->b.map, k->d.config, 4), 0x01005452);
	assert_int_equal(map_load(k->b.map, k->d.config + 6, 2), VIRTIO_NET_S_LINK_UP);
	virtio_net_set_link(k->net, false);
	assert_int_equal(map_load(k->b.map, k->d.config + 6, 2), 0);
	assert_true(wait_for(&k->b.msi[0], 1));
}

static void test_send(void **state)
{
	struct nic *k = *state;
	uint8_t *p = ptr(k, k->page, 4096);
	struct buf bufs[2] = { { k->page, 12, false }, { k->page + 2048, 60, false } };

	drv_start(&k->d, ALL);
	memset(p, 0, 12);
	for (unsigned i = 0; i < 60; i++)
		p[2048 + i] = (uint8_t)i;
	assert_int_equal(drv_request(&k->d, TX, bufs, 2), 0);
	assert_true(wait_for(&k->frames, 1));
	assert_int_equal(k->sent_len, 60);
	assert_memory_equal(k->sent, p + 2048, 60);
	/* Header and frame in one buffer; then a frame without a header, which is dropped. */
	memcpy(p + 12, p + 2048, 60);
	assert_int_equal(drv_request(&k->d, TX, &(struct buf){ k->page, 72, false }, 1), 0);
	assert_int_equal(atomic_load(&k->frames), 2);
	assert_int_equal(drv_request(&k->d, TX, &(struct buf){ k->page, 5, false }, 1), 0);
	assert_int_equal(atomic_load(&k->frames), 2);
}

static void test_receive_merged(void **state)
{
	struct nic *k = *state;
	struct virtio_net_hdr_mrg_rxbuf h;
	uint32_t len, id, sum = 0;
	uint8_t frame[4096];

	drv_start(&k->d, ALL);
	assert_false(to_guest(k, 1000));		/* no buffers yet */
	for (unsigned i = 0; i < 8; i++)
		drv_add(&k->d, RX, i, &(struct buf){ k->page + 512 * i, 512, true }, 1);
	drv_kick(&k->d, RX);
	assert_true(wait_for(&k->pokes, 1));
	assert_true(to_guest(k, 1200));
	for (unsigned i = 0; i < 3; i++) {
		assert_true(drv_wait(&k->d, RX, &id, &len));
		assert_int_equal(id, i);
		memcpy(frame + sum, ptr(k, k->page + 512 * i, 512), len);
		sum += len;
	}
	assert_int_equal(sum, 1212);
	memcpy(&h, frame, 12);
	assert_int_equal(h.num_buffers, 3);
	assert_int_equal(h.hdr.flags, VIRTIO_NET_HDR_F_DATA_VALID);
	assert_memory_equal(frame + 12, k->to_guest, 1200);
	/* Five buffers are left; what needs more is dropped and leaves them in place. */
	assert_true(to_guest(k, 4000));
	assert_true(to_guest(k, 100));
	assert_true(drv_wait(&k->d, RX, &id, &len));
	assert_int_equal(id, 3);
	assert_int_equal(len, 112);
}

static void test_receive_whole(void **state)
{
	struct nic *k = *state;
	uint32_t len;

	drv_start(&k->d, 0);
	drv_add(&k->d, RX, 0, &(struct buf){ k->page, 256, true }, 1);
	drv_add(&k->d, RX, 1, &(struct buf){ k->page + 256, 256, true }, 1);
	assert_true(to_guest(k, 400));		/* too large for one buffer: dropped */
	assert_true(to_guest(k, 244));
	assert_true(drv_wait(&k->d, RX, NULL, &len));
	assert_int_equal(len, 256);
	assert_memory_equal(ptr(k, k->page + 12, 244), k->to_guest, 244);
}

static uint8_t ctrl(struct nic *k, uint8_t class, uint8_t command, const void *data, uint32_t len)
{
	uint8_t *p = ptr(k, k->page + 65536, 4096);
	struct buf bufs[3] = { { k->page + 65536, 2, false }, { k->page + 65536 + 2, len, false },
			       { k->page + 65536 + 2048, 1, true } };

	p[0] = class;
	p[1] = command;
	memcpy(p + 2, data, len);
	p[2048] = 0xee;
	assert_int_equal(drv_request(&k->d, CTRL, bufs, 3), 1);
	return p[2048];
}

static void test_control(void **state)
{
	struct nic *k = *state;
	uint8_t tables[] = { 0, 0, 0, 0, 1, 0, 0, 0, 1, 0, 0x5e, 1, 2, 3 };
	uint32_t id, len;

	drv_start(&k->d, ALL);
	for (unsigned i = 0; i < 8; i++)
		drv_add(&k->d, RX, i, &(struct buf){ k->page + 2048 * i, 2048, true }, 1);
	assert_int_equal(ctrl(k, VIRTIO_NET_CTRL_RX, VIRTIO_NET_CTRL_RX_PROMISC, "\0", 1), VIRTIO_NET_OK);
	assert_int_equal(ctrl(k, VIRTIO_NET_CTRL_MAC, VIRTIO_NET_CTRL_MAC_TABLE_SET, tables, sizeof(tables)),
			 VIRTIO_NET_OK);
	assert_int_equal(ctrl(k, VIRTIO_NET_CTRL_MAC, VIRTIO_NET_CTRL_MAC_ADDR_SET, "\x52\x54\0\1\2\4", 6),
			 VIRTIO_NET_OK);
	assert_int_equal(ctrl(k, 77, 0, "\0", 1), VIRTIO_NET_ERR);
	tables[0] = 0xff;
	assert_int_equal(ctrl(k, VIRTIO_NET_CTRL_MAC, VIRTIO_NET_CTRL_MAC_TABLE_SET, tables, sizeof(tables)),
			 VIRTIO_NET_ERR);
	assert_true(to_guest(k, 100));		/* to the old address: not ours any more */
	assert_int_equal(ctrl(k, VIRTIO_NET_CTRL_MAC, VIRTIO_NET_CTRL_MAC_ADDR_SET, "\x52\x54\0\1\2\3", 6),
			 VIRTIO_NET_OK);
	assert_true(to_guest(k, 101));
	assert_true(drv_wait(&k->d, RX, &id, &len));
	assert_int_equal(id, 0);
	assert_int_equal(len, 113);
}

static void test_rng(void **state)
{
	struct nic *k = *state;
	uint8_t *p = ptr(k, k->page, 4096), sum = 0;

	drv_start(&k->rng, ALL);
	assert_int_equal(drv_request(&k->rng, 0, &(struct buf){ k->page, 256, true }, 1), 256);
	for (unsigned i = 0; i < 256; i++)
		sum |= p[i];
	assert_int_not_equal(sum, 0);
	assert_int_equal(drv_request(&k->rng, 0, &(struct buf){ k->page, 1 << 20, true }, 1), 4096);
}

static void input_on_loop(void *opaque)
{
	struct nic *k = opaque;

	k->taken = virtio_console_input(k->console, "hello guest", 11);
	atomic_fetch_add(&k->inputs, 1);
}

static void test_console(void **state)
{
	struct nic *k = *state;
	uint32_t len;

	drv_start(&k->con, ALL);
	assert_int_equal(map_load(k->b.map, k->con.config, 2), 80);
	virtio_console_resize(k->console, 132, 50);
	assert_int_equal(map_load(k->b.map, k->con.config, 2), 132);
	strcpy((char *)ptr(k, k->page, 32), "hello world");
	assert_int_equal(drv_request(&k->con, 1, &(struct buf){ k->page, 12, false }, 1), 0);
	assert_true(wait_for(&k->prints, 1));
	assert_string_equal((char *)k->printed, "hello world");
	loop_post(k->b.loop, input_on_loop, k);
	assert_true(wait_for(&k->inputs, 1));
	assert_int_equal(k->taken, 0);
	drv_add(&k->con, 0, 0, &(struct buf){ k->page, 8, true }, 1);
	loop_post(k->b.loop, input_on_loop, k);
	assert_true(drv_wait(&k->con, 0, NULL, &len));
	assert_int_equal(len, 8);
	assert_memory_equal(ptr(k, k->page, 8), "hello gu", 8);
}

#define T(name) cmocka_unit_test_setup_teardown(name, setup, teardown)

int main(void)
{
	const struct CMUnitTest tests[] = {
		T(test_config), T(test_send), T(test_receive_merged), T(test_receive_whole), T(test_control),
		T(test_rng), T(test_console),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
