/* Interrupts and timers: 8259, 8254, IO-APIC, LAPIC (xAPIC, x2APIC, three timer modes), RTC, HPET, PM timer. */
#include "guest.h"

static volatile unsigned hits[256];
static volatile bool level_mode;

static void eoi_pic(struct trap_frame *f)
{
	hits[f->vector]++;
	if (f->vector >= 0x28)
		outb(0xa0, 0x20);
	outb(0x20, 0x20);
}
static void eoi_lapic(struct trap_frame *f)
{
	hits[f->vector]++;
	mmio_write32(LAPIC + 0xb0, 0);
}
static void eoi_x2(struct trap_frame *f)
{
	hits[f->vector]++;
	wrmsr(0x80b, 0);
}

/* Waits for `count` interrupts on a vector, asleep; gives up only after very many wake-ups elsewhere. */
static bool wait_hits(unsigned vector, unsigned count)
{
	unsigned start = hits[vector];
	for (unsigned spins = 0; spins < 2000; spins++) {
		__asm__ volatile("cli");
		if (hits[vector] - start >= count) {
			__asm__ volatile("sti; nop; cli");
			return true;
		}
		__asm__ volatile("sti; hlt; cli");
	}
	return false;
}

static void pic_init(void)
{
	static const uint8_t icw[4] = { 0x11, 0x20, 4, 1 }, icw2[4] = { 0x11, 0x28, 2, 1 };
	for (int i = 0; i < 4; i++) {
		outb(i ? 0x21 : 0x20, icw[i]);
		outb(i ? 0xa1 : 0xa0, icw2[i]);
	}
	outb(0x21, 0xff);
	outb(0xa1, 0xff);
}

static void pit_periodic(unsigned divisor)
{
	outb(0x43, 0x34);
	outb(0x40, (uint8_t)divisor);
	outb(0x40, (uint8_t)(divisor >> 8));
}

static void test_pic(void)
{
	pic_init();
	irq_set_handler(0x20, eoi_pic);
	mmio_write32(LAPIC + 0xf0, 0x1ff);
	mmio_write32(LAPIC + 0x350, 0x700);	/* LINT0: ExtINT */
	pit_periodic(1193);
	outb(0x21, 0xfe);
	check(wait_hits(0x20, 5), "PIT through the 8259", "%u hits", hits[0x20]);
	outb(0x21, 0xff);
	unsigned n = hits[0x20];
	for (int i = 0; i < 20000; i++)
		inb(0x80);
	__asm__ volatile("sti; nop; nop; cli");
	CHECK(hits[0x20] == n, "masked in the 8259");
	irq_set_handler(0x28, eoi_pic);
	outb(0x70, 0x0a);
	outb(0x71, 0x26);
	outb(0x70, 0x0b);
	uint8_t b = inb(0x71);
	outb(0x70, 0x0b);
	outb(0x71, b | 0x40);
	outb(0x70, 0x0c);
	inb(0x71);
	outb(0x21, 0xfb);
	outb(0xa1, 0xfe);
	__asm__ volatile("sti");
	unsigned got = 0;
	for (unsigned spins = 0; spins < 200000000 && got < 3; spins++) {
		if (hits[0x28] != got) {
			got = hits[0x28];
			outb(0x70, 0x0c);
			inb(0x71);
		}
		__asm__ volatile("pause");
	}
	__asm__ volatile("cli");
	check(got >= 3, "RTC periodic interrupt through both 8259s", "%u", got);
	outb(0x70, 0x0b);
	outb(0x71, b);
	outb(0x21, 0xff);
	outb(0xa1, 0xff);
	mmio_write32(LAPIC + 0x350, 0x10000);
}

static void ioapic_write(unsigned reg, uint32_t v)
{
	mmio_write32(IOAPIC, reg);
	mmio_write32(IOAPIC + 0x10, v);
}
static uint32_t ioapic_read(unsigned reg)
{
	mmio_write32(IOAPIC, reg);
	return mmio_read32(IOAPIC + 0x10);
}

static void test_ioapic(void)
{
	CHECK((ioapic_read(1) >> 16 & 0xff) == 23, "IO-APIC has 24 pins");
	irq_set_handler(0x40, eoi_lapic);
	ioapic_write(0x10 + 2 * 2 + 1, 0);
	ioapic_write(0x10 + 2 * 2, 0x40);	/* ISA IRQ 0 is pin 2 */
	pit_periodic(1193);
	check(wait_hits(0x40, 5), "PIT through the IO-APIC", "%u hits", hits[0x40]);
	ioapic_write(0x10 + 2 * 2, 0x10040);
	__asm__ volatile("sti; nop; cli");
	unsigned n = hits[0x40];
	for (int i = 0; i < 20000; i++)
		inb(0x80);
	__asm__ volatile("sti; nop; nop; cli");
	CHECK(hits[0x40] == n, "masked in the IO-APIC");
}

static void test_priority(void)
{
	irq_set_handler(0x50, eoi_lapic);
	irq_set_handler(0x70, eoi_lapic);
	__asm__ volatile("cli");
	WRITE_CR(8, 6);
	mmio_write32(LAPIC + 0x300, 0x40050);	/* self IPIs */
	mmio_write32(LAPIC + 0x300, 0x40070);
	CHECK(mmio_read32(LAPIC + 0x80) == 0x60, "CR8 shows in TPR");
	__asm__ volatile("sti; nop; nop; cli");
	CHECK(hits[0x70] == 1 && hits[0x50] == 0, "TPR holds back the lower class");
	WRITE_CR(8, 0);
	__asm__ volatile("sti; nop; nop; cli");
	CHECK(hits[0x50] == 1, "released by TPR 0");
	/* STI's shadow: the interrupt waits for one more instruction */
	uint64_t shadow = 0;
	mmio_write32(LAPIC + 0x300, 0x40050);
	__asm__ volatile("sti; movl hits + 4 * 0x50, %k0; nop; nop; cli" : "=&r"(shadow));
	CHECK(shadow == 1 && hits[0x50] == 2, "STI shadow lasts one instruction");
}

/* Takes what is still pending on the vector: after this a hit is of what is started next. */
static void drain(unsigned vector)
{
	while (mmio_read32(LAPIC + 0x200 + vector / 32 * 0x10) >> vector % 32 & 1)
		__asm__ volatile("sti; nop; nop; cli");
}

static void test_lapic_timer(void)
{
	irq_set_handler(0x60, eoi_lapic);
	mmio_write32(LAPIC + 0x3e0, 0xb);
	mmio_write32(LAPIC + 0x320, 0x60);
	mmio_write32(LAPIC + 0x380, 200000);
	check(wait_hits(0x60, 1), "LAPIC timer one-shot", "%u", hits[0x60]);
	CHECK(mmio_read32(LAPIC + 0x390) == 0, "one-shot count stays zero");
	mmio_write32(LAPIC + 0x320, 0x20060);
	mmio_write32(LAPIC + 0x380, 200000);
	check(wait_hits(0x60, 5), "LAPIC timer periodic", "%u", hits[0x60]);
	mmio_write32(LAPIC + 0x320, 0x10060);
	mmio_write32(LAPIC + 0x380, 0);
	drain(0x60);
	if (cpu_has(1, 2, 24)) {
		mmio_write32(LAPIC + 0x320, 0x40060);
		unsigned n = hits[0x60];
		wrmsr(0x6e0, rdtsc() + 2000000);
		check(wait_hits(0x60, 1), "TSC deadline", "%u", hits[0x60] - n);
		CHECK(rdmsr(0x6e0) == 0, "TSC deadline disarms itself");
		wrmsr(0x6e0, 1);
		check(wait_hits(0x60, 1), "TSC deadline in the past fires at once", "");
		mmio_write32(LAPIC + 0x320, 0x10060);
	}
}

/* Between one-shot and periodic the count goes on (SDM vol. 3, 11.5.4). */
static void test_timer_modes(void)
{
	mmio_write32(LAPIC + 0x3e0, 0xa);		/* by 128: nine minutes */
	mmio_write32(LAPIC + 0x320, 0x10060);
	mmio_write32(LAPIC + 0x380, ~0u);
	uint32_t before = mmio_read32(LAPIC + 0x390);
	mmio_write32(LAPIC + 0x320, 0x30060);
	uint32_t after = mmio_read32(LAPIC + 0x390);
	check(after && after <= before && mmio_read32(LAPIC + 0x380) == ~0u, "one-shot to periodic counts on", "%x %x", before, after);
	mmio_write32(LAPIC + 0x320, 0x10060);
	check(mmio_read32(LAPIC + 0x390) - 1 < after, "periodic to one-shot counts on", "%x", after);
	mmio_write32(LAPIC + 0x380, 1);
	while (mmio_read32(LAPIC + 0x390))
		__asm__ volatile("pause");
	mmio_write32(LAPIC + 0x320, 0x30060);
	CHECK(!mmio_read32(LAPIC + 0x390), "what has run out stays so when it becomes periodic");
	mmio_write32(LAPIC + 0x320, 0x10060);
	mmio_write32(LAPIC + 0x380, ~0u);
	mmio_write32(LAPIC + 0x320, 0x50060);
	CHECK(!mmio_read32(LAPIC + 0x390) && !mmio_read32(LAPIC + 0x380), "TSC deadlines disarm it");
	mmio_write32(LAPIC + 0x320, 0x10060);
	mmio_write32(LAPIC + 0x3e0, 0xb);
}

#define ELSEWHERE 0xfed40000ull
static void test_base(void)
{
	uint64_t base = rdmsr(0x1b);
	uint32_t version = mmio_read32(LAPIC + 0x30);
	wrmsr(0x1b, (base & 0xfff) | ELSEWHERE);
	CHECK(mmio_read32(ELSEWHERE + 0x30) == version, "the LAPIC's registers move");
	CHECK(mmio_read32(LAPIC + 0x30) == ~0u, "and are not where they were");
	mmio_write32(ELSEWHERE + 0x300, 0x40050);
	__asm__ volatile("sti; nop; nop; cli");
	CHECK(mmio_read32(ELSEWHERE + 0x120) & 1u << 16, "they work there");
	mmio_write32(ELSEWHERE + 0xb0, 0);
	wrmsr(0x1b, base);
	CHECK(mmio_read32(LAPIC + 0x30) == version, "and move back");
}

static volatile unsigned nmis;
static volatile bool nmi_held, nmi_sent;
static void on_nmi_again(struct trap_frame *f)
{
	if (++nmis == 1)
		for (unsigned i = 0; i < 10; i++)
			mmio_write32(LAPIC + 0x300, 0x4400);
}
static void on_nmi_wait(struct trap_frame *f)
{
	if (++nmis > 1)
		return;
	nmi_held = true;
	while (!nmi_sent)
		__asm__ volatile("pause");
}
static void send_nmis(void)
{
	while (!nmi_held)
		__asm__ volatile("pause");
	for (unsigned i = 0; i < 3; i++)
		mmio_write32(LAPIC + 0x300, 0x4400);	/* to CPU 0 */
	nmi_sent = true;
}
static void test_nmi(void)
{
	irq_set_handler(2, on_nmi_again);
	mmio_write32(LAPIC + 0x310, 0);
	mmio_write32(LAPIC + 0x300, 0x4400);
	for (unsigned spins = 0; spins < 1000000; spins++)
		__asm__ volatile("pause");
	check(nmis == 2, "of ten NMIs while one is handled one is kept", "%u", nmis);
	nmis = 0;
	irq_set_handler(2, on_nmi_wait);
	ap_run(1, send_nmis);
	mmio_write32(LAPIC + 0x310, 0);
	mmio_write32(LAPIC + 0x300, 0x4400);
	for (unsigned spins = 0; spins < 1000000; spins++)
		__asm__ volatile("pause");
	check(nmis == 2, "and of three that another CPU sends", "%u", nmis);
	irq_set_handler(2, NULL);
}

static void on_50_elsewhere(struct trap_frame *f) { hits[f->vector]++; }

static void test_x2apic(void)
{
	if (!cpu_has(1, 2, 21))
		return;
	uint32_t id = mmio_read32(LAPIC + 0x20) >> 24;
	wrmsr(0x1b, rdmsr(0x1b) | 0xc00);
	CHECK(rdmsr(0x802) == id, "x2APIC ID");
	irq_set_handler(0x61, eoi_x2);
	wrmsr(0x80f, 0x1ff);
	wrmsr(0x83f, 0x61);
	__asm__ volatile("sti; nop; nop; cli");
	CHECK(hits[0x61] == 1, "x2APIC self IPI");
	wrmsr(0x830, (uint64_t)id << 32 | 0x4061);
	__asm__ volatile("sti; nop; nop; cli");
	CHECK(hits[0x61] == 2, "x2APIC ICR");
	wrmsr(0x1b, rdmsr(0x1b) & ~0xc00ull);
	CHECK(!cpu_has(1, 3, 9), "CPUID says that the APIC is off");
	wrmsr(0x1b, rdmsr(0x1b) | 0x800);
	CHECK(cpu_has(1, 3, 9), "CPUID says that the APIC is on");
	mmio_write32(LAPIC + 0xf0, 0x1ff);
}

static void test_clocks(void)
{
	/* Every clock moves forward, and they agree to within a factor of two over the same stretch. */
	uint32_t p0 = inl(0x608) & 0xffffff, p1;
	uint64_t t0 = rdtsc(), h0 = 0;
	bool hpet = mmio_read32(0xfed00000) >> 16 == 0x8086 && mmio_read32(0xfed00004);
	if (hpet) {
		mmio_write32(0xfed00010, 1);
		h0 = mmio_read32(0xfed000f0);
	}
	do {
		p1 = inl(0x608) & 0xffffff;
	} while (((p1 - p0) & 0xffffff) < 357954);	/* 0.1 s */
	uint64_t t1 = rdtsc();
	CHECK(t1 > t0, "TSC runs");
	if (hpet) {
		uint64_t fs = mmio_read32(0xfed00004);
		uint64_t ms = (uint64_t)(uint32_t)(mmio_read32(0xfed000f0) - h0) * fs / 1000000000000ull;
		check(ms >= 95 && ms < 1000, "HPET agrees with the PM timer", "%lu ms", ms);
		irq_set_handler(0x62, eoi_lapic);
		ioapic_write(0x10 + 2 * 20 + 1, 0);
		ioapic_write(0x10 + 2 * 20, 0x62);
		mmio_write32(0xfed00100 + 4, 0);
		uint32_t cap = mmio_read32(0xfed00104);
		check(hpet, "HPET comparator present", "%x", cap);
	}
	for (int i = 0; i < 4; i++) {
		outb(0x70, 0x0a);
		while (inb(0x71) & 0x80)
			;
	}
	outb(0x70, 0x32);
	uint8_t century = inb(0x71);
	outb(0x70, 9);
	uint8_t year = inb(0x71);
	check(century == 0x20 && year >= 0x24 && year <= 0x99, "RTC shows this century", "%x%x", century, year);
}

int main(void)
{
	trap_init();
	test_pic();
	test_ioapic();
	test_priority();
	test_lapic_timer();
	test_timer_modes();
	irq_set_handler(0x50, on_50_elsewhere);
	test_base();
	test_nmi();
	test_x2apic();
	test_clocks();
	return 0;
}
