/*
 * A hostile guest: garbage into every port, register, MSR, configuration byte and virtqueue.
 *
 * It must not be able to hurt the machine; it avoids only what would rightly end or derail itself: power-off,
 * reset, INIT and NMI to its own vCPU, and DMA onto its own code (it lives from 1 to 8 MiB).  Reaching "done"
 * after the last operation means that the machine is still there.
 *
 * Command line: seed=N ops=N
 */
#include "guest.h"

#define FREE_RAM 0x2000000u	/* 32 MiB: garbage DMA may land from here on */

static uint64_t rng_state;
static uint64_t rnd(void)
{
	rng_state ^= rng_state << 13;
	rng_state ^= rng_state >> 7;
	rng_state ^= rng_state << 17;
	return rng_state * 0x2545f4914f6cdd1dull;
}

/* Values that devices trip over: edges, sizes, flags, addresses in and out of RAM. */
static uint64_t value(void)
{
	uint64_t r = rnd();
	switch (r & 15) {
	case 0: return 0;
	case 1: return ~0ull;
	case 2: return 1ull << (r >> 8 & 63);
	case 3: return (1ull << (r >> 8 & 63)) - 1;
	case 4: return r >> 8 & 0xff;
	case 5: return r >> 8 & 0xfff;
	case 6: return FREE_RAM + (r >> 8 & 0xffffff);
	case 7: return (r >> 8 & 0xf) << 60 | FREE_RAM;
	case 8: return 0xfffff000u + (r >> 8 & 0xfff);
	case 9: return FREE_RAM + (r >> 8 & 0xff0);
	case 10: return 0x100000000ull - (r >> 8 & 0xff);
	default: return r >> 8 | (r >> 8 & 0xff) << 56 | FREE_RAM;
	}
}

static bool port_ends_us(uint32_t port, unsigned size)
{
	for (uint32_t p = port; p < port + size; p++)
		if ((p >= 0x600 && p < 0x680) || p == 0xcf9 || p == 0x64 || p == 0x60 || p == 0x92 || p == 0xb2 ||
		    p == 0xf4 || p == 0x501 || p == 0x3f8 || p == 0xe9 || p == 0x402 || (p >= 0xcf8 && p <= 0xcff))
			return true;
	return false;
}

static void fuzz_port(void)
{
	static const uint16_t hot[] = { 0x20, 0x40, 0x61, 0x70, 0x80, 0xa0, 0x2f8, 0x3f9, 0x4d0, 0x510, 0x514, 0x608, 0xcf8 };
	uint64_t r = rnd();
	uint32_t port = r & 1 ? hot[(r >> 8) % (sizeof hot / 2)] + (r >> 16 & 7) : r >> 8 & 0xffff;
	unsigned size = 1u << (r >> 32 & 3);
	uint32_t v = (uint32_t)value();
	if (size == 8 || port + size > 0x10000)
		return;
	if (r >> 40 & 1) {
		if (size == 1)
			inb((uint16_t)port);
		else if (size == 2)
			inw((uint16_t)port);
		else
			inl((uint16_t)port);
		return;
	}
	if (port_ends_us(port, size))
		return;
	if (size == 1)
		outb((uint16_t)port, (uint8_t)v);
	else if (size == 2)
		outw((uint16_t)port, (uint16_t)v);
	else
		outl((uint16_t)port, v);
}

struct access { uint64_t gpa, v; unsigned size; bool write; };
static void touch(void *p)
{
	struct access *a = p;
	switch (a->size | a->write << 4) {
	case 1: (void)*(volatile uint8_t *)a->gpa; break;
	case 2: (void)*(volatile uint16_t *)a->gpa; break;
	case 4: (void)*(volatile uint32_t *)a->gpa; break;
	case 8: (void)*(volatile uint64_t *)a->gpa; break;
	case 17: *(volatile uint8_t *)a->gpa = (uint8_t)a->v; break;
	case 18: *(volatile uint16_t *)a->gpa = (uint16_t)a->v; break;
	case 20: *(volatile uint32_t *)a->gpa = (uint32_t)a->v; break;
	default: *(volatile uint64_t *)a->gpa = a->v; break;
	}
}

static void fuzz_mmio(void)
{
	static const uint32_t base[] = { 0xfec00000, 0xfed00000, 0xfee00000, 0xb0000000, 0xc0000000, 0xffff0000, 0xf0000000 };
	uint64_t r = rnd();
	uint64_t gpa = base[(r >> 8) % 7] + (r >> 16 & 0xfff);
	if (r & 1)
		gpa &= ~0xfull;
	struct access a = { gpa, value(), 1u << (r >> 36 & 3), r >> 40 & 1 };
	if (gpa >> 20 == 0xfee) {	/* no INIT, NMI or SMI to ourselves: not ICR, and LVTs stay masked */
		a.gpa &= ~0xfull;
		a.size = 4;
		uint32_t off = a.gpa & 0xff0;
		if (off == 0x300 || off == 0x310)
			a.v &= ~0x700ull;
		if (off >= 0x320 && off <= 0x370)
			a.v |= 0x10000;
	}
	if (gpa >> 20 == 0xfec)
		a.v |= 0x10000;
	if (gpa >> 28 == 0xb) {		/* configuration space: BARs stay away from RAM */
		a.gpa = ECAM | (r >> 16 & 31) << 15 | (r >> 44 & 0xff);
		if ((a.gpa & 0xff) >= 0x0d && (a.gpa & 0xff) < 0x28)
			return;
	}
	try(touch, &a);
}

static void msr_read(void *p) { rdmsr((uint32_t)((struct access *)p)->gpa); }
static void msr_write(void *p) { wrmsr((uint32_t)((struct access *)p)->gpa, ((struct access *)p)->v); }
static void fuzz_msr(void)
{
	static const uint32_t base[] = { 0, 0x100, 0x170, 0x200, 0x400, 0x800, 0xc0000080, 0xc0010000, 0x4b564d00, 0x40000000, 0xd90 };
	uint64_t r = rnd();
	struct access a = { base[(r >> 8) % 11] + (r >> 16 & 0x7f), value(), 0, false };
	if (r & 1) {
		try(msr_read, &a);
		return;
	}
	/* EFER, APIC base, FS/GS are ours; x2APIC ICR could reset us */
	if (a.gpa == 0x1b || a.gpa == 0xc0000080 || a.gpa == 0x830 || a.gpa == 0xda0)
		return;
	try(msr_write, &a);
}

static unsigned bars;
static struct { uint64_t gpa; uint32_t size; } bar[64];

static uint32_t volatile *cfg(unsigned dev, unsigned off) { return (uint32_t volatile *)(ECAM | dev << 15 | off); }
static void bars_find(void)
{
	for (unsigned dev = 1; dev < 31; dev++) {
		if (*cfg(dev, 0) == 0xffffffff)
			continue;
		*cfg(dev, 4) |= 6;
		for (unsigned i = 0; i < 6 && bars < 64; i++) {
			uint32_t old = *cfg(dev, 0x10 + 4 * i);
			if (!old || old & 1)
				continue;
			bool wide = (old & 6) == 4;
			*cfg(dev, 0x10 + 4 * i) = ~0u;
			uint32_t mask = *cfg(dev, 0x10 + 4 * i) & ~15u;
			*cfg(dev, 0x10 + 4 * i) = old;
			uint64_t gpa = (old & ~15u) | (wide ? (uint64_t)*cfg(dev, 0x14 + 4 * i) << 32 : 0);
			uint32_t size = -mask > 0x4000 ? 0x4000 : -mask;
			for (uint64_t p = gpa; p < gpa + size && gpa >> 32; p += 4096) {
				*page_entry(p, true) = p | 0x13;
				invlpg(p);
			}
			bar[bars].gpa = gpa;
			bar[bars++].size = size;
			i += wide;
		}
	}
}

/* Device registers, and rings full of garbage where the queues may have been pointed. */
static void fuzz_virtio(void)
{
	uint64_t r = rnd();
	if (!bars)
		return;
	unsigned b = (r >> 8) % bars;
	uint32_t off = (uint32_t)(r >> 16) % bar[b].size;
	if (r & 1)
		off &= 0x3c;
	struct access a = { bar[b].gpa + off, value(), 1u << (r >> 44 & 3), r >> 50 & 3 };
	if (r & 2)
		a.gpa &= ~(uint64_t)(a.size - 1);
	a.write = r >> 50 & 3;
	try(touch, &a);
	if ((r >> 52 & 7) == 0) {
		volatile uint64_t *ring = (volatile uint64_t *)(uint64_t)(FREE_RAM + (r >> 20 & 0xff0));
		for (unsigned i = 0; i < 16; i++)
			ring[i] = i & 1 ? value() & 0xffff0007ffffffffull : value();
	}
}

/* A device brought up as a driver would, so that garbage reaches the queues and not only the registers. */
static void virtio_start(void)
{
	unsigned b = (unsigned)(rnd() % (bars ? bars : 1));
	if (!bars || bar[b].size < 64)
		return;
	volatile uint8_t *c = (volatile uint8_t *)bar[b].gpa;
	c[20] = 0;
	c[20] = 3;
	*(volatile uint32_t *)(c + 8) = 1;
	*(volatile uint32_t *)(c + 12) = 1;
	*(volatile uint32_t *)(c + 8) = 0;
	*(volatile uint32_t *)(c + 12) = (uint32_t)rnd();
	c[20] = 0xb;
	for (unsigned q = 0; q < 3; q++) {
		*(volatile uint16_t *)(c + 22) = (uint16_t)q;
		*(volatile uint16_t *)(c + 24) = 16;
		*(volatile uint32_t *)(c + 32) = FREE_RAM + 0x1000 * q;
		*(volatile uint32_t *)(c + 36) = 0;
		*(volatile uint32_t *)(c + 40) = FREE_RAM + 0x1000 * q + 0x400;
		*(volatile uint32_t *)(c + 44) = 0;
		*(volatile uint32_t *)(c + 48) = FREE_RAM + 0x1000 * q + 0x800;
		*(volatile uint32_t *)(c + 52) = 0;
		*(volatile uint16_t *)(c + 28) = 1;
		volatile uint64_t *ring = (volatile uint64_t *)(uint64_t)(FREE_RAM + 0x1000 * q);
		for (unsigned i = 0; i < 32; i += 2) {
			ring[i] = rnd() & 1 ? FREE_RAM + 0x10000 + (rnd() & 0xffff) : value();
			ring[i + 1] = (rnd() & 0x1fff) | (rnd() & 7) << 32 | (rnd() & 15) << 48;
		}
		volatile uint16_t *avail = (volatile uint16_t *)(uint64_t)(FREE_RAM + 0x1000 * q + 0x400);
		avail[0] = 0;
		for (unsigned i = 0; i < 16; i++)
			avail[2 + i] = (uint16_t)(rnd() & (rnd() & 7 ? 15 : 0xffff));
		avail[1] = (uint16_t)(rnd() & 31);
	}
	c[20] = 0xf;
	for (unsigned q = 0; q < 3; q++)
		for (unsigned off = 0x1000; off < bar[b].size; off += 0x1000)
			*(volatile uint16_t *)(c + off + 4 * q) = (uint16_t)q;
}

static uint64_t option(const char *name, uint64_t other)
{
	const uint32_t *mb = (const uint32_t *)multiboot_info;
	const char *s = mb && mb[0] & 4 ? (const char *)(uint64_t)mb[4] : "";
	for (; *s; s++) {
		unsigned n = 0;
		while (name[n] && s[n] == name[n])
			n++;
		if (name[n])
			continue;
		uint64_t v = 0;
		for (s += n; *s >= '0' && *s <= '9'; s++)
			v = v * 10 + (uint64_t)(*s - '0');
		return v;
	}
	return other;
}

int main(void)
{
	trap_init();
	rng_state = option("seed=", 1) * 0x9e3779b97f4a7c15ull | 1;
	uint64_t ops = option("ops=", 200000);
	mmio_write32(LAPIC + 0xf0, 0x1ff);
	bars_find();
	print("fuzz: %lu operations, %u BARs\n", ops, bars);
	for (uint64_t i = 0; i < ops; i++) {
		switch (rnd() % 16) {
		case 0: case 1: case 2: fuzz_port(); break;
		case 3: case 4: case 5: fuzz_mmio(); break;
		case 6: case 7: fuzz_msr(); break;
		case 8: if (rnd() % 32 == 0) virtio_start(); break;
		default: fuzz_virtio(); break;
		}
	}
	*cfg(31, 0x40) = 0x601;			/* PMBASE and its enable, so that power-off works */
	*cfg(31, 0x44) = 0x80;
	outb(0x3fb, 3);
	outb(0x3f9, 0);
	outb(0x3fc, 3);
	outb(0x3fa, 7);
	check(true, "still here", "");
	return 0;
}
