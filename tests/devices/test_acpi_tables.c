/* The ACPI tables: checksums and pointers, and ACPICA's opinion of each where iasl is installed. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/endian.h"
#include "devices/firmware/acpi_tables.h"

#define AT 0xe0000u

static uint8_t sum(const uint8_t *p, size_t n)
{
	uint8_t s = 0;
	while (n--)
		s = (uint8_t)(s + *p++);
	return s;
}

static size_t build(uint8_t *out, size_t size, unsigned vcpus)
{
	const struct acpi_config c = {
		.vcpus = vcpus, .ecam_gpa = 0xb0000000, .last_bus = 255, .mmio32_gpa = 0xc0000000,
		.mmio32_end = 0xfec00000, .mmio64_gpa = 1ull << 36, .mmio64_size = 1ull << 36, .pm_base = 0x600,
		.sci_irq = 9, .hpet = true, .hot_slots = 0x7ffffffe,
	};
	return acpi_tables_build(&c, AT, out, size);
}

/* Disassembles a table and, if it holds code, compiles it again: no error may come of either. */
static void ask_iasl(const char *dir, const char *name, const uint8_t *table, size_t len)
{
	char path[128], command[320];
	snprintf(path, sizeof path, "%s/%.4s.dat", dir, name);
	FILE *f = fopen(path, "wb");
	assert_non_null(f);
	assert_int_equal(fwrite(table, 1, len, f), len);
	fclose(f);
	snprintf(command, sizeof command, "cd %s && { iasl -d %.4s.dat && iasl -p out %.4s.dsl; } >log 2>&1 && "
		 "! grep -iE 'invalid|unknown' log && grep -q ' 0 Errors' log || { cat log; false; }", dir, name, name);
	assert_int_equal(system(command), 0);
}

static void check_table(const char *dir, const uint8_t *tables, size_t used, uint64_t gpa)
{
	assert_true(gpa >= AT && gpa + 36 <= AT + used);
	const uint8_t *t = tables + (gpa - AT);
	uint32_t len = load_le32(t + 4);
	assert_true(gpa + len <= AT + used);
	assert_int_equal(sum(t, len), 0);
	if (dir)
		ask_iasl(dir, (const char *)t, t, len);
	if (!memcmp(t, "FACP", 4))
		check_table(dir, tables, used, load_le64(t + 140));
}

static void test_tables(void **state)
{
	static uint8_t out[65536];
	char dir[] = "/tmp/vixen-acpi-XXXXXX", command[64];
	bool iasl = !system("command -v iasl >/dev/null 2>&1");
	(void)state;
	if (!iasl)
		print_message("iasl is not installed (acpica-tools): only checksums and pointers are tested\n");
	assert_non_null(mkdtemp(dir));
	for (unsigned vcpus = 1; vcpus <= 16; vcpus += 15) {
		size_t used = build(out, sizeof out, vcpus);
		assert_true(used);
		assert_memory_equal(out, "RSD PTR ", 8);
		assert_int_equal(sum(out, 20), 0);
		assert_int_equal(sum(out, 36), 0);
		const uint8_t *xsdt = out + (load_le64(out + 24) - AT);
		check_table(NULL, out, used, load_le64(out + 24));
		assert_int_equal(load_le32(xsdt + 4), 36 + 8 * 4);
		for (unsigned i = 0; i < 4; i++)
			check_table(iasl ? dir : NULL, out, used, load_le64(xsdt + 36 + 8 * i));
	}
	snprintf(command, sizeof command, "rm -rf %s", dir);
	assert_int_equal(system(command), 0);
}

static void test_too_small(void **state)
{
	static uint8_t out[65536 + 1];
	(void)state;
	size_t used = build(out, 65536, 16);
	for (size_t size = 0; size < used; size += 61) {
		out[size] = 0xa5;
		assert_int_equal(build(out, size, 16), 0);
		assert_int_equal(out[size], 0xa5);
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = { cmocka_unit_test(test_tables), cmocka_unit_test(test_too_small) };
	return cmocka_run_group_tests(tests, NULL, NULL);
}
