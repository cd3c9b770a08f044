/* PCI Express by ECAM and by ports, BAR sizing, MSI-X, and a virtio device driven by hand (virtio 1.2, 4.1). */
#include "guest.h"

static volatile uint32_t *cfg(unsigned dev, unsigned off) { return (uint32_t *)(ECAM | dev << 15 | (off & ~3u)); }
static uint32_t cfg_port(unsigned dev, unsigned off)
{
	outl(0xcf8, 0x80000000u | dev << 11 | (off & 0xfc));
	return inl(0xcfc);
}
static uint8_t cfg8(unsigned dev, unsigned off) { return (uint8_t)(*cfg(dev, off) >> 8 * (off & 3)); }

struct virtio_common {
	uint32_t device_feature_select, device_feature, driver_feature_select, driver_feature;
	uint16_t msix_config, num_queues;
	uint8_t status, generation;
	uint16_t queue_select, queue_size, queue_msix, queue_enable, queue_notify_off;
	uint32_t desc_lo, desc_hi, avail_lo, avail_hi, used_lo, used_hi;
} __attribute__((packed));

struct desc { uint64_t gpa; uint32_t len; uint16_t flags, next; };
struct avail { uint16_t flags, idx, ring[64]; };
struct used { uint16_t flags, idx; struct { uint32_t id, len; } ring[64]; };

static volatile unsigned msix_hits;
static void on_msix(struct trap_frame *f)
{
	msix_hits = msix_hits + 1;
	mmio_write32(LAPIC + 0xb0, 0);
}

static uint64_t bar_gpa(unsigned dev, unsigned bar)
{
	uint32_t lo = *cfg(dev, 0x10 + 4 * bar);
	uint64_t hi = (lo & 6) == 4 ? *cfg(dev, 0x14 + 4 * bar) : 0;
	return (lo & ~15u) | hi << 32;
}

/* 64-bit BARs may lie above the 4 GiB that start.S maps. */
static volatile void *map_gpa(uint64_t gpa)
{
	if (gpa >= 1ull << 32)
		for (unsigned i = 0; i < 16; i++) {
			*page_entry((gpa & ~0xfffull) + 4096 * i, true) = ((gpa & ~0xfffull) + 4096 * i) | 0x13;
			invlpg((gpa & ~0xfffull) + 4096 * i);
		}
	return (volatile void *)gpa;
}

static void drive_rng(unsigned dev)
{
	volatile struct virtio_common *common = NULL;
	volatile uint16_t *notify = NULL;
	uint32_t notify_mul = 0;
	unsigned msix = 0;
	*cfg(dev, 4) |= 6;
	for (unsigned p = cfg8(dev, 0x34); p; p = cfg8(dev, p + 1)) {
		if (cfg8(dev, p) == 0x11)
			msix = p;
		if (cfg8(dev, p) != 9)
			continue;
		volatile uint8_t *at = map_gpa(bar_gpa(dev, cfg8(dev, p + 4)) + *cfg(dev, p + 8));
		if (cfg8(dev, p + 3) == 1)
			common = (volatile struct virtio_common *)at;
		if (cfg8(dev, p + 3) == 2) {
			notify = (volatile uint16_t *)at;
			notify_mul = *cfg(dev, p + 16);
		}
	}
	CHECK(common && notify && msix, "virtio capabilities and MSI-X");
	if (!common || !notify || !msix)
		return;
	uint32_t table = *cfg(dev, msix + 4);
	volatile uint32_t *entry = (volatile uint32_t *)((volatile uint8_t *)map_gpa(bar_gpa(dev, table & 7)) + (table & ~7u));
	common->status = 0;
	while (common->status)
		;
	common->status = 1;
	common->status = 3;
	common->device_feature_select = 1;
	CHECK(common->device_feature & 1, "VIRTIO_F_VERSION_1 offered");
	common->driver_feature_select = 1;
	common->driver_feature = 1;
	common->driver_feature_select = 0;
	common->driver_feature = 0;
	common->status = 0xb;
	CHECK(common->status == 0xb, "FEATURES_OK stays");
	*cfg(dev, msix) |= 0x80000000u;
	entry[0] = 0xfee00000;
	entry[1] = 0;
	entry[2] = 0x58;
	entry[3] = 0;
	irq_set_handler(0x58, on_msix);
	common->msix_config = 0xffff;
	common->queue_select = 0;
	common->queue_size = 8;
	common->queue_msix = 0;
	CHECK(common->queue_msix == 0, "vector accepted");
	struct desc *d = page_alloc();
	volatile struct avail *a = page_alloc();
	volatile struct used *u = page_alloc();
	uint8_t *buf = page_alloc();
	common->desc_lo = (uint32_t)(uint64_t)d;
	common->desc_hi = 0;
	common->avail_lo = (uint32_t)(uint64_t)a;
	common->avail_hi = 0;
	common->used_lo = (uint32_t)(uint64_t)u;
	common->used_hi = 0;
	volatile uint16_t *bell = notify + common->queue_notify_off * notify_mul / 2;
	common->queue_enable = 1;
	common->status = 0xf;
	for (unsigned round = 0; round < 20; round++) {
		d[round % 8] = (struct desc){ (uint64_t)buf + 64 * round, 64, 2, 0 };
		a->ring[round % 8] = round % 8;
		__atomic_thread_fence(__ATOMIC_SEQ_CST);
		a->idx = (uint16_t)(round + 1);
		__atomic_thread_fence(__ATOMIC_SEQ_CST);
		*bell = 0;
		/* a busy host may take its time: the limit only ends a test that is lost (minutes) */
		uint64_t start = rdtsc();
		while (u->idx != (uint16_t)(round + 1) && rdtsc() - start < 1ull << 37)
			__asm__ volatile("sti; pause; cli");
		if (u->idx != (uint16_t)(round + 1))
			break;
	}
	check(u->idx == 20, "20 requests come back used", "idx %u", u->idx);
	for (unsigned i = 0; !msix_hits && i < 100000; i++)
		__asm__ volatile("sti; pause; cli");
	CHECK(msix_hits > 0, "MSI-X interrupt arrives");
	unsigned zero = 0;
	for (unsigned i = 0; i < 64 * 20; i++)
		zero += buf[i] == 0;
	check(zero < 64, "the bytes look random", "%u zero", zero);
	/* a descriptor that points outside RAM must break the queue or be refused, never the machine */
	d[0] = (struct desc){ 0xfffffffffffff000ull, 0xffffffff, 2, 0 };
	a->ring[20 % 8] = 0;
	a->idx = 21;
	*bell = 0;
	for (int i = 0; i < 1000; i++)
		inb(0x80);
	common->status = 0;
	for (unsigned i = 0; common->status && i < 100000; i++)
		;
	CHECK(common->status == 0, "reset after a hostile descriptor");
}

int main(void)
{
	trap_init();
	mmio_write32(LAPIC + 0xf0, 0x1ff);
	CHECK(*cfg(0, 0) == 0x29c08086, "host bridge by ECAM");
	CHECK(cfg_port(0, 0) == 0x29c08086, "host bridge by ports");
	CHECK(cfg_port(31, 0) == 0x29188086, "ICH9 LPC at 1f.0");
	CHECK(*cfg(30, 0) == 0xffffffff || (*cfg(30, 0) & 0xffff) != 0, "empty slot reads ones");
	bool rng = false;
	for (unsigned dev = 0; dev < 32; dev++) {
		if (*cfg(dev, 0) == 0xffffffff)
			continue;
		CHECK(*cfg(dev, 0) == cfg_port(dev, 0), "ECAM and ports agree");
		for (unsigned bar = 0; dev && dev < 31 && bar < 6; bar++) {
			uint32_t old = *cfg(dev, 0x10 + 4 * bar);
			bool wide = (old & 7) == 4;
			*cfg(dev, 0x10 + 4 * bar) = 0xffffffff;
			uint32_t mask = *cfg(dev, 0x10 + 4 * bar) & (old & 1 ? ~3u : ~15u);
			*cfg(dev, 0x10 + 4 * bar) = old;
			if (mask && (mask & -mask) < 0x80000000u)
				check((mask | ((mask & -mask) - 1)) == 0xffffffffu || (old & 1), "BAR size is a power of two", "%x", mask);
			bar += wide;
		}
		if (*cfg(dev, 0) == 0x10441af4) {
			rng = true;
			drive_rng(dev);
		}
	}
	CHECK(rng, "a virtio-rng function is there");
	return 0;
}
