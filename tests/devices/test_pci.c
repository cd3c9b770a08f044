#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/stream.h"
#include "devices/pci/lpc.h"
#include "driver.h"

struct world {
	struct bench b;
	struct pci_dev *dev;
	struct lpc *lpc;
	uint64_t reg;
	int isa[16];
	uint16_t pm_port;
	bool pm_on;
	unsigned resets, cap;
};

static uint64_t reg_read(void *opaque, uint64_t offset, unsigned size)
{
	return ((struct world *)opaque)->reg + offset;
}

static void reg_write(void *opaque, uint64_t offset, unsigned size, uint64_t value)
{
	((struct world *)opaque)->reg = value;
}

static const struct io_ops reg_ops = { reg_read, reg_write, 4, 4 };

static void isa_set(void *opaque, unsigned pin, bool level)
{
	((struct world *)opaque)->isa[pin] = level;
}

static void pm_moved(void *opaque, uint16_t port, bool on)
{
	struct world *w = opaque;

	w->pm_port = port;
	w->pm_on = on;
}

static void on_reset(void *opaque, bool hard)
{
	((struct world *)opaque)->resets++;
}

static int setup(void **state)
{
	struct world *w = calloc(1, sizeof(*w));
	const struct pci_ids ids = { 0x1234, 0x5678, 1, 2, 0x020000, 3 };
	struct lpc_wiring wiring = { .pm_moved = pm_moved, .opaque = w };

	for (unsigned i = 0; i < 16; i++)
		wiring.isa[i] = (struct irq_line){ isa_set, w, i };
	bench_init(&w->b);
	w->lpc = lpc_new(w->b.bus, &wiring);
	assert_non_null(w->lpc);
	w->dev = pci_dev_add(w->b.bus, 5, &ids, w);
	pci_dev_bar(w->dev, 0, 0x10000, true, true, &reg_ops, "test");
	pci_dev_msix(w->dev, 3, 2);
	w->cap = 0x40;
	pci_dev_use_intx(w->dev);
	pci_bus_on_reset_request(w->b.bus, on_reset, w);
	pci_bus_assign(w->b.bus);
	*state = w;
	return 0;
}

static int teardown(void **state)
{
	struct world *w = *state;

	bench_fini(&w->b);
	bench_free(&w->b);
	free(w);
	return 0;
}

static void test_ways_in(void **state)
{
	struct world *w = *state;
	struct map *m = w->b.map;

	assert_int_equal(cfg_read(&w->b, 0, 0, 4), 0x29c08086);
	assert_int_equal(cfg_read(&w->b, 31, 0, 4), 0x29188086);
	assert_int_equal(cfg_read(&w->b, 5, 0, 4), 0x56781234);
	assert_int_equal(cfg_read(&w->b, 6, 0, 4), 0xffffffff);
	assert_int_equal(map_load(m, PCI_ECAM_GPA + (1 << 20), 4), 0xffffffff);	/* bus 1 */
	pio_store(m, 0xcf8, 4, 0x80000000 | 5 << 11 | 8);
	assert_int_equal(pio_load(m, 0xcf8, 4), 0x80000000 | 5 << 11 | 8);
	assert_int_equal(pio_load(m, 0xcfc, 4), 0x02000003);
	assert_int_equal(pio_load(m, 0xcff, 1), 2);
	assert_int_equal(pio_load(m, 0xcfe, 2), 0x0200);
	pio_store(m, 0xcf8, 4, 5 << 11);
	assert_int_equal(pio_load(m, 0xcfc, 4), 0xffffffff);
	cfg_write(&w->b, 5, 0, 4, 0);
	assert_int_equal(cfg_read(&w->b, 5, 0, 4), 0x56781234);
}

static void test_ecam_moves(void **state)
{
	struct world *w = *state;
	struct map *m = w->b.map;

	cfg_write(&w->b, 0, 0x60, 4, 0xe0000001);
	assert_int_equal(map_load(m, 0xe0000000, 4), 0x29c08086);
	assert_int_equal(map_load(m, PCI_ECAM_GPA, 4), 0xffffffff);
	map_store(m, 0xe0000060, 4, 0);
	assert_int_equal(map_load(m, 0xe0000000, 4), 0xffffffff);
}

static void test_bars(void **state)
{
	struct world *w = *state;
	struct map *m = w->b.map;
	uint64_t gpa = pci_dev_bar_gpa(w->dev, 0);

	assert_true(gpa >= PCI_MMIO32_GPA && !(gpa & 0xffff));
	map_store(m, gpa + 8, 4, 77);
	assert_int_equal(map_load(m, gpa + 8, 4), 85);
	/* Sizing, with decoding on. */
	cfg_write(&w->b, 5, 0x10, 4, 0xffffffff);
	cfg_write(&w->b, 5, 0x14, 4, 0xffffffff);
	assert_int_equal(cfg_read(&w->b, 5, 0x10, 4), 0xffff000c);
	assert_int_equal(cfg_read(&w->b, 5, 0x14, 4), 0xffffffff);
	assert_int_equal(map_load(m, gpa + 8, 4), 0xffffffff);
	/* Above 4 GiB. */
	cfg_write(&w->b, 5, 0x10, 4, 0x00010000);
	cfg_write(&w->b, 5, 0x14, 4, 2);
	assert_int_equal(map_load(m, 0x200010008, 4), 85);
	/* On top of RAM: not decoded, and RAM stays. */
	cfg_write(&w->b, 5, 0x14, 4, 0);
	map_store(m, 0x10008, 4, 0x1234);
	assert_int_equal(map_load(m, 0x10008, 4), 0x1234);
	assert_int_equal(w->reg, 77);
	/* Memory decoding off and on again. */
	cfg_write(&w->b, 5, 0x10, 4, 0xd0000000);
	assert_int_equal(map_load(m, 0xd0000008, 4), 85);
	cfg_write(&w->b, 5, 4, 2, 4);
	assert_int_equal(map_load(m, 0xd0000008, 4), 0xffffffff);
	cfg_write(&w->b, 5, 4, 2, 6);
	assert_int_equal(map_load(m, 0xd0000008, 4), 85);
}

static uint64_t table(struct world *w)
{
	return pci_dev_bar_gpa(w->dev, 2);
}

static void test_msix(void **state)
{
	struct world *w = *state;
	struct map *m = w->b.map;

	assert_int_equal(cfg_read(&w->b, 5, w->cap, 1), 0x11);
	assert_int_equal(cfg_read(&w->b, 5, w->cap + 2, 2), 2);
	pci_msix_notify(w->dev, 1);			/* off: lost */
	cfg_write(&w->b, 5, w->cap + 2, 2, 0x8000);
	assert_true(pci_msix_enabled(w->dev));
	map_store(m, table(w) + 16, 4, 0xfee00000);
	map_store(m, table(w) + 24, 4, 33);
	assert_int_equal(map_load(m, table(w) + 28, 4), 1);
	pci_msix_notify(w->dev, 1);			/* vector masked: pending */
	assert_int_equal(atomic_load(&w->b.msi[33]), 0);
	assert_int_equal(map_load(m, table(w) + 0x800, 4), 2);
	map_store(m, table(w) + 28, 4, 0);
	assert_int_equal(atomic_load(&w->b.msi[33]), 1);
	assert_int_equal(map_load(m, table(w) + 0x800, 4), 0);
	cfg_write(&w->b, 5, w->cap + 2, 2, 0xc000);	/* function masked */
	pci_msix_notify(w->dev, 1);
	pci_msix_notify(w->dev, 1);
	assert_int_equal(atomic_load(&w->b.msi[33]), 1);
	cfg_write(&w->b, 5, w->cap + 2, 2, 0x8000);
	assert_int_equal(atomic_load(&w->b.msi[33]), 2);
	cfg_write(&w->b, 5, 4, 2, 2);			/* no bus master */
	pci_msix_notify(w->dev, 1);
	assert_int_equal(atomic_load(&w->b.msi[33]), 2);
	cfg_write(&w->b, 5, 4, 2, 6);
	assert_int_equal(atomic_load(&w->b.msi[33]), 3);
	pci_msix_notify(w->dev, 99);
}

static void test_intx(void **state)
{
	struct world *w = *state;

	lpc_assign(w->lpc);
	assert_int_equal(w->pm_port, 0x600);
	assert_true(w->pm_on);
	pci_intx(w->dev, true);				/* slot 5: PIRQ B, IRQ 11 */
	assert_int_equal(atomic_load(&w->b.line[1]), 1);
	assert_int_equal(w->isa[11], 1);
	assert_int_equal(cfg_read(&w->b, 5, 6, 2) & 8, 8);
	cfg_write(&w->b, 31, 0x61, 1, 5);		/* rerouted while up */
	assert_int_equal(w->isa[11], 0);
	assert_int_equal(w->isa[5], 1);
	cfg_write(&w->b, 31, 0x61, 1, 0x80);
	assert_int_equal(w->isa[5], 0);
	cfg_write(&w->b, 5, 4, 2, 0x406);
	assert_int_equal(atomic_load(&w->b.line[1]), 0);
	cfg_write(&w->b, 5, 4, 2, 6);
	assert_int_equal(atomic_load(&w->b.line[1]), 1);
	pci_intx(w->dev, false);
	assert_int_equal(atomic_load(&w->b.line[1]), 0);
}

static void test_reset(void **state)
{
	struct world *w = *state;

	pio_store(w->b.map, 0xcf9, 1, 2);
	assert_int_equal(w->resets, 0);
	pio_store(w->b.map, 0xcf9, 1, 6);
	assert_int_equal(w->resets, 1);
	pci_bus_reset(w->b.bus);
	assert_int_equal(pci_dev_bar_gpa(w->dev, 0), 0);
	assert_int_equal(map_load(w->b.map, PCI_ECAM_GPA, 4), 0xffffffff);
	pci_bus_assign(w->b.bus);
	assert_int_equal(cfg_read(&w->b, 0, 0, 4), 0x29c08086);
	assert_int_equal(cfg_read(&w->b, 5, 4, 2), 7);
}

static void test_save_load(void **state)
{
	struct world *w = *state;
	struct stream s, in;
	uint64_t gpa;

	cfg_write(&w->b, 5, w->cap + 2, 2, 0x8000);
	map_store(w->b.map, table(w) + 24, 4, 42);
	gpa = pci_dev_bar_gpa(w->dev, 0);
	stream_init(&s);
	pci_bus_save(w->b.bus, &s);
	pci_bus_reset(w->b.bus);
	for (size_t n = 0; n < s.len; n += 97) {	/* truncated anywhere: refused */
		stream_init_read(&in, s.data, n);
		assert_true(pci_bus_load(w->b.bus, &in) < 0);
	}
	stream_init_read(&in, s.data, s.len);
	assert_int_equal(pci_bus_load(w->b.bus, &in), 0);
	assert_int_equal(pci_dev_bar_gpa(w->dev, 0), gpa);
	assert_true(pci_msix_enabled(w->dev));
	assert_int_equal(map_load(w->b.map, table(w) + 24, 4), 42);
	stream_fini(&s);
}

static void test_slots(void **state)
{
	struct world *w = *state;
	const struct pci_ids ids = { 1, 2, 3, 4, 5, 6 };

	for (unsigned i = 1; i < 31; i++)
		if (i != 5)
			assert_int_equal(pci_dev_slot(pci_dev_add(w->b.bus, -1, &ids, NULL)), i);
	assert_null(pci_dev_add(w->b.bus, -1, &ids, NULL));
	assert_null(pci_dev_add(w->b.bus, 5, &ids, NULL));
}

#define T(name) cmocka_unit_test_setup_teardown(name, setup, teardown)

int main(void)
{
	const struct CMUnitTest tests[] = {
		T(test_ways_in), T(test_ecam_moves), T(test_bars), T(test_msix), T(test_intx), T(test_reset),
		T(test_save_load), T(test_slots),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
