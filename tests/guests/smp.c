/* Several vCPUs: INIT/SIPI, atomics, IPIs, memory order, remote invalidation, code written for another. */
#include "guest.h"

#define ROUNDS 20000
static volatile uint32_t alive, counter, plain, lock, go, done;
static volatile uint32_t x, y, r1, r2, turn, reordered, broken;
static volatile uint32_t ipis;
static uint8_t code_page[64] __attribute__((aligned(64)));
static volatile uint64_t cell16[2] __attribute__((aligned(16)));

static void lock_take(void)
{
	while (__atomic_exchange_n(&lock, 1, __ATOMIC_ACQUIRE))
		__builtin_ia32_pause();
}
static void lock_drop(void) { __atomic_store_n(&lock, 0, __ATOMIC_RELEASE); }

static void work(void)
{
	for (unsigned i = 0; i < ROUNDS; i++) {
		__atomic_fetch_add(&counter, 1, __ATOMIC_SEQ_CST);
		lock_take();
		plain = plain + 1;
		lock_drop();
		uint64_t lo = cell16[0], hi = cell16[1];
		bool ok;
		do {
			__asm__ volatile("lock cmpxchg16b %1" : "=@ccz"(ok), "+m"(cell16), "+a"(lo), "+d"(hi)
					 : "b"(lo + 1), "c"(hi + 2));
		} while (!ok);
	}
}

static void ap_main(void)
{
	__atomic_fetch_add(&alive, 1, __ATOMIC_SEQ_CST);
	while (!go)
		__builtin_ia32_pause();
	work();
	__atomic_fetch_add(&done, 1, __ATOMIC_SEQ_CST);
	/* message passing: x before y, under TSO never the other way round */
	for (unsigned i = 1; i <= ROUNDS; i++) {
		x = i;
		y = i;
	}
	__atomic_fetch_add(&done, 1, __ATOMIC_SEQ_CST);
	/* run what the other vCPU keeps rewriting */
	for (uint32_t seen = 0; seen < 200; ) {
		uint32_t v = ((uint32_t (*)(void))code_page)();
		if (v < seen)
			broken = 1;
		seen = v;
		turn = v;
	}
	__atomic_fetch_add(&done, 1, __ATOMIC_SEQ_CST);
	mmio_write32(LAPIC + 0xf0, 0x1ff);
	mmio_write32(LAPIC + 0x310, 0);
	mmio_write32(LAPIC + 0x300, 0x4048);
	__asm__ volatile("cli; hlt");
}

static void on_ipi(struct trap_frame *f)
{
	ipis = ipis + 1;
	mmio_write32(LAPIC + 0xb0, 0);
}

static void code_set(uint32_t v)
{
	/* mov eax, imm32; ret: the immediate changes while the other vCPU runs it */
	__atomic_store_n((uint32_t *)(code_page + 4), v, __ATOMIC_SEQ_CST);
}

int main(void)
{
	trap_init();
	mmio_write32(LAPIC + 0xf0, 0x1ff);
	irq_set_handler(0x48, on_ipi);
	code_page[3] = 0xb8;
	code_page[8] = 0xc3;
	code_page[0] = code_page[1] = code_page[2] = 0x90;
	ap_run(1, ap_main);
	for (uint64_t spins = 0; !alive && spins < 2000000000; spins++)
		__builtin_ia32_pause();
	CHECK(alive == 1, "second vCPU answers INIT and SIPI");
	if (!alive)
		return 0;
	go = 1;
	work();
	while (done < 1)
		__builtin_ia32_pause();
	CHECK(counter == 2 * ROUNDS, "locked add loses nothing");
	CHECK(plain == 2 * ROUNDS, "a lock excludes");
	CHECK(cell16[0] == 2 * ROUNDS && cell16[1] == 4 * ROUNDS, "cmpxchg16b loses nothing");
	while (done < 2) {
		uint32_t b = y, a = x;
		if (a < b)
			reordered = 1;
	}
	CHECK(!reordered, "stores are seen in order");
	for (uint32_t v = 1; v <= 200; v++) {
		code_set(v);
		while (turn < v)
			__builtin_ia32_pause();
	}
	while (done < 3)
		__builtin_ia32_pause();
	CHECK(!broken, "code rewritten under another vCPU");
	for (int i = 0; !ipis && i < 1000; i++)
		__asm__ volatile("sti; hlt; cli");
	CHECK(ipis == 1, "IPI wakes a halted vCPU");
	return 0;
}
