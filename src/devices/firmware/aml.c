/*
 * Terms with a PkgLength are built at the end of the buffer with four bytes kept for the length; closing one
 * writes the length into them in its four-byte form, so that nothing ever has to move.
 */
#include "devices/firmware/aml.h"

#include <stdbool.h>
#include <stdio.h>
#include <string.h>

#include "base/endian.h"
#include "devices/firmware/acpi_hotplug.h"
#include "devices/firmware/acpi_tables.h"

struct aml { uint8_t *out; size_t size, used; bool full; };

static void put(struct aml *a, const void *bytes, size_t n)
{
	if (a->full || a->used + n > a->size) {
		a->full = true;
		return;
	}
	memcpy(a->out + a->used, bytes, n);
	a->used += n;
}
static void put8(struct aml *a, uint8_t v) { put(a, &v, 1); }
static void name(struct aml *a, const char *n) { put(a, n, strlen(n)); }

static size_t open_length(struct aml *a)
{
	size_t at = a->used;
	put(a, "\0\0\0\0", 4);
	return at;
}
static void close_length(struct aml *a, size_t at)
{
	size_t len = a->used - at;
	if (a->full)
		return;
	a->out[at] = (uint8_t)(0xc0 | (len & 15));
	a->out[at + 1] = (uint8_t)(len >> 4);
	a->out[at + 2] = (uint8_t)(len >> 12);
	a->out[at + 3] = (uint8_t)(len >> 20);
}

static void integer(struct aml *a, uint64_t v)
{
	uint8_t b[9] = { 0x0c };
	if (v <= 1) {
		put8(a, (uint8_t)v);
	} else if (v >> 32) {
		b[0] = 0x0e;
		store_le64(b + 1, v);
		put(a, b, 9);
	} else {
		store_le32(b + 1, (uint32_t)v);
		put(a, b, 5);
	}
}
static void eisa_id(struct aml *a, const char *id)
{
	unsigned v = (unsigned)(id[0] - '@') << 26 | (unsigned)(id[1] - '@') << 21 | (unsigned)(id[2] - '@') << 16, hex;
	if (sscanf(id + 3, "%4x", &hex) == 1)
		v |= hex;
	integer(a, __builtin_bswap32(v));
}
static void name_op(struct aml *a, const char *n)
{
	put8(a, 0x08);
	name(a, n);
}
static size_t scope_open(struct aml *a, const char *n)
{
	put8(a, 0x10);
	size_t at = open_length(a);
	name(a, n);
	return at;
}
static size_t device_open(struct aml *a, const char *n, const char *hid)
{
	put(a, "\x5b\x82", 2);
	size_t at = open_length(a);
	name(a, n);
	if (hid) {
		name_op(a, "_HID");
		eisa_id(a, hid);
	}
	return at;
}

/* A resource template: a buffer whose size is patched at the end. */
struct template { size_t package, length, start; };
static struct template template_open(struct aml *a)
{
	struct template t;
	name_op(a, "_CRS");
	put8(a, 0x11);
	t.package = open_length(a);
	t.length = a->used;
	put(a, "\x0b\0\0", 3);
	t.start = a->used;
	return t;
}
static void template_close(struct aml *a, struct template t)
{
	put(a, "\x79\0", 2);
	if (!a->full)
		store_le16(a->out + t.length + 1, (uint16_t)(a->used - t.start));
	close_length(a, t.package);
}
static void res_io(struct aml *a, uint16_t port, uint8_t len)
{
	uint8_t b[8] = { 0x47, 1, (uint8_t)port, (uint8_t)(port >> 8), (uint8_t)port, (uint8_t)(port >> 8), 1, len };
	put(a, b, 8);
}
static void res_irq(struct aml *a, unsigned irq)
{
	uint8_t b[3] = { 0x22, (uint8_t)(1u << irq), (uint8_t)((1u << irq) >> 8) };
	put(a, b, 3);
}
/* Bus numbers 0..last, word form (6.4.3.5.3) */
static void res_bus(struct aml *a, uint8_t last)
{
	uint8_t b[16] = { 0x88, 13, 0, 2, 0x0c, 0 };
	b[10] = last;
	store_le16(b + 14, (uint16_t)(last + 1));
	put(a, b, sizeof b);
}
/* kind: 0 memory, 1 I/O (6.4.3.5.1) */
static void res_window(struct aml *a, uint8_t kind, uint8_t specific, uint64_t first, uint64_t last)
{
	uint8_t b[46] = { 0x8a, 43, 0, kind, 0x0c, specific };
	store_le64(b + 14, first);
	store_le64(b + 22, last);
	store_le64(b + 38, last - first + 1);
	put(a, b, sizeof b);
}

static void isa_device(struct aml *a, const char *n, const char *hid, uint16_t port, uint8_t len, unsigned irq)
{
	size_t d = device_open(a, n, hid);
	struct template t = template_open(a);
	res_io(a, port, len);
	if (irq)
		res_irq(a, irq);
	template_close(a, t);
	close_length(a, d);
}

static void keyboard(struct aml *a)
{
	size_t d = device_open(a, "KBD_", "PNP0303");
	struct template t = template_open(a);
	res_io(a, 0x60, 1);
	res_io(a, 0x64, 1);
	res_irq(a, 1);
	template_close(a, t);
	close_length(a, d);
}

static void firmware_config(struct aml *a)
{
	size_t d = device_open(a, "FWCF", NULL);
	name_op(a, "_HID");
	put8(a, 0x0d);
	put(a, "QEMU0002", 9);		/* the name that drivers of this interface look for */
	struct template t = template_open(a);
	res_io(a, 0x510, 12);
	template_close(a, t);
	close_length(a, d);
}

/* Package { address, pin, 0, GSI } for every slot and pin: PIRQ (slot + pin) % 4 is GSI 16 + that. */
static void routing(struct aml *a)
{
	name_op(a, "_PRT");
	put8(a, 0x12);
	size_t outer = open_length(a);
	put8(a, 31 * 4);
	for (unsigned slot = 1; slot < 32; slot++) {
		for (unsigned pin = 0; pin < 4; pin++) {
			put8(a, 0x12);
			size_t p = open_length(a);
			put8(a, 4);
			integer(a, slot << 16 | 0xffff);
			integer(a, pin);
			integer(a, 0);
			integer(a, 16 + (slot + pin) % 4);
			close_length(a, p);
		}
	}
	close_length(a, outer);
}

static size_t method_open(struct aml *a, const char *n, uint8_t flags)
{
	put8(a, 0x14);
	size_t at = open_length(a);
	name(a, n);
	put8(a, flags);
	return at;
}

static void region_registers(struct aml *a)
{
	put(a, "\x5b\x80HPRG\x01", 7);	/* OperationRegion (HPRG, SystemIO, ...) */
	integer(a, ACPI_HOTPLUG_PORT);
	integer(a, 16);
	put(a, "\x5b\x81", 2);		/* Field (HPRG, DWordAcc, NoLock, WriteAsZeros) */
	size_t f = open_length(a);
	put(a, "HPRG\x43HPUP\x20HPDN\x20HPEJ\x20HPOS\x20", 25);
	close_length(a, f);
}

/* Device (Snn) { _ADR, _SUN; _EJ0: HPEJ = slot; _OST: HPOS = slot << 24 | event << 16 | status } */
static void slot_device(struct aml *a, unsigned slot)
{
	char n[8];
	snprintf(n, sizeof n, "S%03u", slot & 0xff);
	size_t d = device_open(a, n, NULL), m;
	name_op(a, "_ADR");
	integer(a, slot << 16);
	name_op(a, "_SUN");
	integer(a, slot);
	m = method_open(a, "_EJ0", 1);
	put8(a, 0x70);
	integer(a, 1u << slot);
	name(a, "HPEJ");
	close_length(a, m);
	m = method_open(a, "_OST", 3);
	put(a, "\x7d\x7d\x79\x7b\x68", 5);	/* Or (Or (ShiftLeft (And (Arg0, */
	integer(a, 0xff);
	put8(a, 0);
	integer(a, 16);
	put(a, "\0\x7b\x69", 3);
	integer(a, 0xffff);
	put(a, "\0\0", 2);
	integer(a, (uint64_t)slot << 24);
	name(a, "HPOS");
	close_length(a, m);
	close_length(a, d);
}

/* Local0 = field; field = Local0, which clears it; Notify (Snn, value) for each slot in it. */
static void slots_notify(struct aml *a, uint32_t slots, const char *field, uint8_t value)
{
	put8(a, 0x70);
	name(a, field);
	put(a, "\x60\x70\x60", 3);
	name(a, field);
	for (unsigned slot = 0; slot < 32; slot++) {
		char n[8];
		if (!(slots >> slot & 1))
			continue;
		put8(a, 0xa0);
		size_t i = open_length(a);
		put(a, "\x7b\x60", 2);
		integer(a, 1u << slot);
		put8(a, 0);
		put8(a, 0x86);
		snprintf(n, sizeof n, "S%03u", slot & 0xff);
		name(a, n);
		integer(a, value);
		close_length(a, i);
	}
}

static void hot_plug(struct aml *a, uint32_t slots)
{
	region_registers(a);
	for (unsigned slot = 0; slot < 32; slot++)
		if (slots >> slot & 1)
			slot_device(a, slot);
	size_t m = method_open(a, "HPNT", 8);
	slots_notify(a, slots, "HPUP", 1);	/* device check */
	slots_notify(a, slots, "HPDN", 3);	/* eject request */
	close_length(a, m);
}

static void hot_plug_event(struct aml *a)
{
	size_t s = scope_open(a, "\\_GPE"), m;
	char n[8];
	snprintf(n, sizeof n, "_E%02X", ACPI_HOTPLUG_GPE);
	m = method_open(a, n, 0);
	put(a, "\\\x2f\x03_SB_PCI0HPNT", 15);
	close_length(a, m);
	close_length(a, s);
}

static void pci_root(struct aml *a, const struct acpi_config *c)
{
	size_t d = device_open(a, "PCI0", "PNP0A08");
	name_op(a, "_CID");
	eisa_id(a, "PNP0A03");
	name_op(a, "_UID");
	integer(a, 0);
	name_op(a, "_CCA");
	integer(a, 1);
	struct template t = template_open(a);
	res_bus(a, c->last_bus);
	res_io(a, 0xcf8, 8);
	res_window(a, 1, 3, 0x1000, 0xffff);
	res_window(a, 0, 0, c->mmio32_gpa, c->mmio32_end - 1);
	if (c->mmio64_size)
		res_window(a, 0, 0, c->mmio64_gpa, c->mmio64_gpa + c->mmio64_size - 1);
	template_close(a, t);
	routing(a);
	if (c->hot_slots)
		hot_plug(a, c->hot_slots);
	close_length(a, d);
	/* ECAM is reserved by a motherboard resource, as Linux wants it (PCI firmware 4.1.2) */
	d = device_open(a, "MCFG", "PNP0C02");
	name_op(a, "_UID");
	integer(a, 1);
	t = template_open(a);
	res_window(a, 0, 0, c->ecam_gpa, c->ecam_gpa + ((uint64_t)(c->last_bus + 1) << 20) - 1);
	template_close(a, t);
	close_length(a, d);
}

static void processors(struct aml *a, unsigned n)
{
	for (unsigned i = 0; i < n; i++) {
		char path[8];
		snprintf(path, sizeof path, "C%03X", i & 0xfff);
		put(a, "\x5b\x82", 2);
		size_t d = open_length(a);
		name(a, path);
		name_op(a, "_HID");
		put8(a, 0x0d);
		put(a, "ACPI0007", 9);
		name_op(a, "_UID");
		integer(a, i);
		close_length(a, d);
	}
}

size_t dsdt_build(const struct acpi_config *c, uint8_t *out, size_t size)
{
	struct aml a = { .out = out, .size = size };
	size_t s = scope_open(&a, "\\_SB_");
	processors(&a, c->vcpus);
	pci_root(&a, c);
	isa_device(&a, "RTC_", "PNP0B00", 0x70, 2, 8);
	keyboard(&a);
	firmware_config(&a);
	isa_device(&a, "COM1", "PNP0501", 0x3f8, 8, 4);
	close_length(&a, s);
	if (c->hot_slots)
		hot_plug_event(&a);
	name_op(&a, "\\_S5_");
	put8(&a, 0x12);
	size_t p = open_length(&a);
	put8(&a, 4);
	for (int i = 0; i < 4; i++)
		integer(&a, 0);
	close_length(&a, p);
	return a.full ? 0 : a.used;
}
