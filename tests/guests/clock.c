/* kvmclock: its CPUID leaf, its two MSRs, the version protocol, several vCPUs, addresses that are none. */
#include "guest.h"

#define WALL_CLOCK 0x4b564d00u
#define SYSTEM_TIME 0x4b564d01u
#define TSC_ADJUST 0x3bu
#define RAM_END (128ull << 20)
#define HPET 0xfed00000ull
#define ROUNDS 20000

struct record {
	uint32_t version, pad;
	uint64_t tsc_timestamp, system_time;
	uint32_t mul;
	int8_t shift;
	uint8_t flags, pad2[2];
};

static struct record *record[2];
static volatile uint32_t lock, alive, done, back;
static uint64_t last_ns;

static void write_msr(void *p) { wrmsr(((uint64_t *)p)[0], ((uint64_t *)p)[1]); }
static int64_t try_write(uint32_t msr, uint64_t value)
{
	uint64_t a[2] = { msr, value };
	return try(write_msr, a);
}

static uint64_t ns_of(const volatile struct record *r, uint64_t tsc)
{
	uint64_t d = tsc - r->tsc_timestamp;
	d = r->shift < 0 ? d >> -r->shift : d << r->shift;
	return r->system_time + (uint64_t)((unsigned __int128)d * r->mul >> 32);
}

static uint64_t now_ns(const volatile struct record *r)
{
	uint64_t ns;
	uint32_t version;
	do {
		version = r->version;
		__asm__ volatile("lfence" : : : "memory");
		ns = ns_of(r, rdtsc());
		__asm__ volatile("lfence" : : : "memory");
	} while (version & 1 || version != r->version);
	return ns;
}

/* Turn by turn on two vCPUs: no reading lies before one that was made before it. */
static void take_turns(unsigned cpu)
{
	for (unsigned i = 0; i < ROUNDS; i++) {
		while (__atomic_exchange_n(&lock, 1, __ATOMIC_ACQUIRE))
			__builtin_ia32_pause();
		uint64_t ns = now_ns(record[cpu]);
		if (ns < last_ns)
			back = back + 1;
		last_ns = ns;
		__atomic_store_n(&lock, 0, __ATOMIC_RELEASE);
	}
}

static void ap_main(void)
{
	wrmsr(SYSTEM_TIME, (uint64_t)record[1] | 1);
	alive = 1;
	take_turns(1);
	__atomic_store_n(&done, 1, __ATOMIC_SEQ_CST);
	for (;;)
		__asm__ volatile("cli; hlt");
}

static void test_record(void)
{
	struct record *r = record[0] = page_alloc();
	wrmsr(SYSTEM_TIME, (uint64_t)r | 1);
	CHECK(r->version && !(r->version & 1), "the record is written");
	CHECK(r->mul >> 31, "its factor has all its bits");
	CHECK(r->flags == 1, "TSC_STABLE and no more");
	CHECK(rdmsr(SYSTEM_TIME) == ((uint64_t)r | 1), "the MSR reads as written");
	uint32_t before = r->version;
	wrmsr(SYSTEM_TIME, (uint64_t)r | 1);
	CHECK(r->version != before && !(r->version & 1), "each writing is another version");
}

/* Both by turns, and no reading of the HPET outside of what the clock says. */
static void test_rate(void)
{
	uint64_t fs = mmio_read32(HPET + 4), before[2], after[2];
	uint32_t hpet[2];
	mmio_write32(HPET + 0x10, 1);
	for (int i = 0; i < 2; i++) {
		before[i] = now_ns(record[0]);
		hpet[i] = mmio_read32(HPET + 0xf0);
		after[i] = now_ns(record[0]);
		for (unsigned n = 0; !i && n < 20000; n++)
			inb(0x80);
	}
	uint64_t ns = (uint64_t)(hpet[1] - hpet[0]) * fs / 1000000, slack = 1000 + ns / 1000;
	check(after[1] - before[0] + slack >= ns && before[1] - after[0] <= ns + slack, "as fast as the HPET",
	      "%lx to %lx, %lx", before[1] - after[0], after[1] - before[0], ns);
}

static void test_wall_clock(void)
{
	volatile uint32_t *w = page_alloc();
	w[0] = 7;
	wrmsr(WALL_CLOCK, (uint64_t)w);
	check(w[0] == 10, "the wall clock's version", "%u", w[0]);
	CHECK(w[1] > 1700000000 && w[2] < 1000000000 && !w[3], "a time of day");
	CHECK(rdmsr(WALL_CLOCK) == (uint64_t)w, "its MSR reads as written");
}

static void test_vcpus(void)
{
	record[1] = (struct record *)((uint8_t *)page_alloc() + 0xfe0);	/* the page's last bytes */
	ap_run(1, ap_main);
	for (uint64_t spins = 0; !alive && spins < 2000000000; spins++)
		__builtin_ia32_pause();
	CHECK(alive, "second vCPU has its clock");
	take_turns(0);
	while (!done)
		__builtin_ia32_pause();
	check(!back, "the clock never goes back across vCPUs", "%u times", back);
	CHECK(record[0]->mul == record[1]->mul && record[0]->shift == record[1]->shift, "one scale for all");
}

/* What cannot hold a record is left alone, and the write is accepted. */
static void test_addresses(void)
{
	static const uint64_t none[] = { LAPIC, IOAPIC, ECAM, HPET + 0xf0, 0xfeff0000, RAM_END, RAM_END + 0x5000,
		1ull << 32, 1ull << 51, 1ull << 52, 1ull << 63, -2ull, -32ull, -4096ull, 0xfffffff0 };
	uint8_t *two = page_alloc();
	bool fine = true, second = page_alloc() == two + 4096;
	for (unsigned i = 0; i < sizeof none / sizeof *none; i++) {
		fine &= try_write(SYSTEM_TIME, none[i] | 1) == -1 && rdmsr(SYSTEM_TIME) == (none[i] | 1);
		fine &= try_write(WALL_CLOCK, none[i]) == -1 && rdmsr(WALL_CLOCK) == none[i];
	}
	CHECK(fine, "addresses that are not RAM");
	memset(two, 0x5a, 8192);
	for (unsigned at = 4096 - 30; at < 4096; at += 2)
		wrmsr(SYSTEM_TIME, (uint64_t)(two + at) | 1);
	wrmsr(WALL_CLOCK, (uint64_t)(two + 4096 - 4));
	wrmsr(WALL_CLOCK, 0);
	wrmsr(SYSTEM_TIME, (uint64_t)two);
	for (unsigned i = 0; i < 8192; i++)
		fine &= two[i] == 0x5a;
	CHECK(fine && second, "nothing across pages, nothing when it is off");
	wrmsr(SYSTEM_TIME, (uint64_t)(two + 6) | 1);
	CHECK(two[5] == 0x5a && two[6 + 32] == 0x5a, "a record at an odd place");
	CHECK(two[6 + 29] == 3, "GUEST_STOPPED is the guest's to clear");
	wrmsr(SYSTEM_TIME, (RAM_END - 32) | 1);
	wrmsr(SYSTEM_TIME, 0);
}

/* mov rax, version; ret: the record's time stamp is the offset of the TSC, where this engine's is, and can be RET. */
static void test_code(void)
{
	uint8_t *at = (uint8_t *)page_alloc() + 0x102;
	struct record *r = (struct record *)at;
	wrmsr(TSC_ADJUST, rdmsr(TSC_ADJUST) + 0xc3);
	wrmsr(SYSTEM_TIME, (uint64_t)at | 1);
	if (r->tsc_timestamp == 0xc3) {
		bool fine = true;
		at[-2] = 0x48;
		at[-1] = 0xb8;
		for (int i = 0; i < 100; i++) {
			uint32_t got = ((uint32_t (*)(void))(at - 2))();
			fine &= got == r->version;
			wrmsr(SYSTEM_TIME, (uint64_t)at | 1);
			fine &= got != r->version;
		}
		CHECK(fine, "a record in code that runs");
		CHECK(!(r->flags & 1) && !(record[1]->flags & 1), "not TSC_STABLE with TSCs apart");
	}
	wrmsr(SYSTEM_TIME, 0);
}

int main(void)
{
	trap_init();
	CHECK(cpu_has(1, 2, 31), "there is a hypervisor");
	for (unsigned bit = 4; bit < 24; bit++)
		check(!cpu_has(0x40000001, 0, bit), "a feature that is not there", "%u", bit);
	if (!cpu_has(0x40000001, 0, 3)) {
		CHECK(!cpu_has(0x40000001, 0, 24), "no clock, no flag of it");
		return 0;
	}
	CHECK(cpu_has(0x40000001, 0, 24), "TSC_STABLE is trusted");
	test_record();
	test_rate();
	test_wall_clock();
	test_vcpus();
	test_addresses();
	test_code();
	return 0;
}
