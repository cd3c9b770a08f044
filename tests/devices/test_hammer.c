/* 200,000 random accesses to every port and window of the chipset: none may crash or hang it. */
#include "chipset.h"

static uint64_t random_next(uint64_t *s)
{
	*s ^= *s << 13;
	*s ^= *s >> 7;
	return *s ^= *s << 17;
}

static void hammer_pio(struct chipset *c, uint64_t r, uint64_t v)
{
	static const struct { uint16_t port, count; } where[] = { { 0x20, 2 }, { 0xa0, 2 }, { 0x4d0, 2 }, { 0x40, 4 },
		{ 0x60, 5 }, { 0x70, 2 }, { 0x92, 1 }, { 0xb2, 2 }, { 0x3f8, 8 }, { 0xcf9, 1 }, { 0x510, 12 },
		{ ACPI_PM_BASE, 0x80 } };
	unsigned i = r % (sizeof where / sizeof *where), size = 1u << (r >> 8) % 3;
	uint16_t port = (uint16_t)(where[i].port + (r >> 16) % where[i].count);
	if (r >> 40 & 1)
		pio_store(c->map, port, size, (uint32_t)v);
	else
		pio_load(c->map, port, size);
}

static void hammer_mmio(struct chipset *c, uint64_t r, uint64_t v)
{
	static const uint64_t where[] = { LAPIC_GPA, IOAPIC_GPA, HPET_GPA };
	unsigned size = 1u << (r >> 8) % 4;
	uint64_t at = (r >> 16) % (r >> 41 & 1 ? 0x1000 : 0x200), gpa = where[r % 3] + (at & (r >> 42 & 1 ? ~3ull : ~15ull));
	c->current = r >> 44 & 3;
	if ((gpa & 0xfff) + size > 0x1000)
		return;
	if (r >> 40 & 1)
		map_store(c->map, gpa, size, v);
	else
		map_load(c->map, gpa, size);
}

static void test_hammer(void **state)
{
	struct chipset *c = *state;
	uint64_t s = 0x9e3779b97f4a7c15ull, v;
	uint8_t junk[64] = { 0 };
	for (unsigned i = 0; i < 200000; i++) {
		uint64_t r = random_next(&s), value = random_next(&s) >> random_next(&s) % 64;
		(r >> 60 & 1 ? hammer_pio : hammer_mmio)(c, r, value);
		if (i % 16 == 0)
			lapic_ack(c->lapics, r >> 50 & 3);
		if (i % 64 == 0) {
			ioapic_set(c->ioapic, r >> 52 & 31, r >> 59);
			pic_set(c->pic, r >> 52 & 15, r >> 59);
			uart_receive(c->uart, junk, r >> 52 & 63);
			lapic_msi(c->lapics, 0xfee00000 | (value & 0xfffff), (uint32_t)r);
			uint32_t msr = r >> 57 & 1 ? 0x800 + (r >> 48 & 0x3f) : r >> 56 & 1 ? 0x1b : 0x6e0;
			lapic_msr_write(c->lapics, r >> 50 & 3, msr, value);
			lapic_msr_read(c->lapics, r >> 50 & 3, msr, &v);
		}
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(test_hammer, chipset_setup, chipset_teardown),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
