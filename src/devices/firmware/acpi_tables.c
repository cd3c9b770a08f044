#include "devices/firmware/acpi_tables.h"

#include <string.h>

#include "base/endian.h"
#include "devices/firmware/aml.h"

#define LAPIC_GPA32 0xfee00000u
#define IOAPIC_GPA32 0xfec00000u
#define HPET_GPA32 0xfed00000u
#define HEADER 36u

struct tables {
	uint8_t *out;
	size_t size, used;
	uint64_t gpa;
	bool full;
};

static uint8_t checksum(const uint8_t *p, size_t n)
{
	uint8_t sum = 0;
	while (n--)
		sum = (uint8_t)(sum + *p++);
	return (uint8_t)-sum;
}

/* Room for n bytes, aligned; NULL when full. */
static uint8_t *take(struct tables *t, size_t n, size_t align, uint64_t *gpa)
{
	size_t at = (t->used + align - 1) & ~(align - 1);
	if (t->full || at + n > t->size) {
		t->full = true;
		return NULL;
	}
	t->used = at + n;
	*gpa = t->gpa + at;
	return memset(t->out + at, 0, n);
}

/* Places a table: standard header (5.2.6), body, checksum. Returns its GPA. */
static uint64_t table_add(struct tables *t, const char *signature, uint8_t revision, const void *body, size_t len)
{
	uint64_t gpa = 0;
	uint8_t *p = take(t, HEADER + len, 64, &gpa);
	if (!p)
		return 0;
	memcpy(p, signature, 4);
	store_le32(p + 4, (uint32_t)(HEADER + len));
	p[8] = revision;
	memcpy(p + 10, "VIXEN ", 6);
	memcpy(p + 16, "VIXENQ35", 8);
	store_le32(p + 24, 1);
	memcpy(p + 28, "VIXN", 4);
	store_le32(p + 32, 1);
	memcpy(p + HEADER, body, len);
	p[9] = checksum(p, HEADER + len);
	return gpa;
}

/* Generic address structure (5.2.3.2) in I/O space */
static void gas_io(uint8_t *p, uint8_t bits, uint8_t access, uint64_t port)
{
	p[0] = 1;
	p[1] = bits;
	p[3] = access;
	store_le64(p + 4, port);
}

static uint64_t fadt_add(struct tables *t, const struct acpi_config *c, uint64_t facs, uint64_t dsdt)
{
	uint8_t b[276 - HEADER] = { 0 };
#define AT(offset) (b + (offset) - HEADER)
	store_le32(AT(36), (uint32_t)facs);
	store_le32(AT(40), (uint32_t)dsdt);
	store_le16(AT(46), (uint16_t)c->sci_irq);
	store_le32(AT(56), c->pm_base);
	store_le32(AT(64), c->pm_base + 4);
	store_le32(AT(76), c->pm_base + 8);
	store_le32(AT(80), c->pm_base + 0x20);
	*AT(88) = 4;
	*AT(89) = 2;
	*AT(91) = 4;
	*AT(92) = 16;
	store_le16(AT(96), 0xfff);		/* no C2 */
	store_le16(AT(98), 0xfff);		/* no C3 */
	*AT(108) = 0x32;			/* CMOS century */
	store_le16(AT(109), 0x1 | 0x2 | 0x4);	/* legacy devices, 8042, no VGA */
	store_le32(AT(112), 1 | 1 << 2 | 1 << 5 | 1 << 10);	/* WBINVD, C1, sleep button none, RESET_REG */
	gas_io(AT(116), 8, 1, 0xcf9);
	*AT(128) = 6;
	*AT(131) = 3;
	store_le64(AT(132), facs);
	store_le64(AT(140), dsdt);
	gas_io(AT(148), 32, 2, c->pm_base);
	gas_io(AT(172), 16, 2, c->pm_base + 4);
	gas_io(AT(208), 32, 3, c->pm_base + 8);
	gas_io(AT(220), 128, 1, c->pm_base + 0x20);
#undef AT
	return table_add(t, "FACP", 6, b, sizeof b);
}

static uint64_t facs_add(struct tables *t)
{
	uint64_t gpa = 0;
	uint8_t *p = take(t, 64, 64, &gpa);
	if (p) {
		memcpy(p, "FACS", 4);
		store_le32(p + 4, 64);
		p[32] = 2;
	}
	return gpa;
}

static uint8_t *madt_override(uint8_t *p, uint8_t irq, uint32_t gsi, uint16_t flags)
{
	p[0] = 2;
	p[1] = 10;
	p[3] = irq;
	store_le32(p + 4, gsi);
	store_le16(p + 8, flags);
	return p + 10;
}

static uint64_t madt_add(struct tables *t, const struct acpi_config *c)
{
	uint8_t b[8 + 16 * 8 + 12 + 2 * 10 + 6] = { 0 }, *p = b;
	store_le32(p, LAPIC_GPA32);
	store_le32(p + 4, 1);			/* 8259s present */
	p += 8;
	for (unsigned i = 0; i < c->vcpus && i < 16; i++, p += 8) {
		p[1] = 8;
		p[2] = p[3] = (uint8_t)i;
		p[4] = 1;
	}
	p[0] = 1;
	p[1] = 12;
	store_le32(p + 4, IOAPIC_GPA32);
	p += 12;
	p = madt_override(p, 0, 2, 0);
	p = madt_override(p, (uint8_t)c->sci_irq, c->sci_irq, 0xd);	/* level, active high */
	p[0] = 4;				/* LINT1 is NMI everywhere */
	p[1] = 6;
	p[2] = 0xff;
	p[5] = 1;
	p += 6;
	return table_add(t, "APIC", 4, b, (size_t)(p - b));
}

static uint64_t mcfg_add(struct tables *t, const struct acpi_config *c)
{
	uint8_t b[24] = { 0 };
	store_le64(b + 8, c->ecam_gpa);
	b[19] = c->last_bus;
	return table_add(t, "MCFG", 1, b, sizeof b);
}

static uint64_t hpet_add(struct tables *t)
{
	uint8_t b[20] = { 0 };
	store_le32(b, 0x8086a201);
	b[5] = 64;
	store_le64(b + 8, HPET_GPA32);
	return table_add(t, "HPET", 1, b, sizeof b);
}

size_t acpi_tables_build(const struct acpi_config *c, uint64_t gpa, uint8_t *out, size_t size)
{
	struct tables t = { .out = out, .size = size, .gpa = gpa };
	static uint8_t const empty[1];
	uint8_t aml[16384], xsdt[8 * 4];
	uint64_t rsdp_gpa = 0;
	uint8_t *rsdp = take(&t, 36, 64, &rsdp_gpa);
	size_t aml_len = dsdt_build(c, aml, sizeof aml), n = 0;
	uint64_t dsdt = table_add(&t, "DSDT", 2, aml_len ? aml : empty, aml_len);
	store_le64(xsdt + 8 * n++, fadt_add(&t, c, facs_add(&t), dsdt));
	store_le64(xsdt + 8 * n++, madt_add(&t, c));
	store_le64(xsdt + 8 * n++, mcfg_add(&t, c));
	if (c->hpet)
		store_le64(xsdt + 8 * n++, hpet_add(&t));
	uint64_t xsdt_gpa = table_add(&t, "XSDT", 1, xsdt, 8 * n);
	if (t.full || !rsdp || !aml_len)
		return 0;
	memcpy(rsdp, "RSD PTR ", 8);
	memcpy(rsdp + 9, "VIXEN ", 6);
	rsdp[8] = 0;
	rsdp[15] = 2;
	store_le32(rsdp + 20, 36);
	store_le64(rsdp + 24, xsdt_gpa);
	rsdp[8] = checksum(rsdp, 20);
	rsdp[32] = checksum(rsdp, 36);
	return t.used;
}
