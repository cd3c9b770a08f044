/* Paging as the SDM, vol. 3 chapter 4 has it: permissions, A/D bits, error codes, sizes, invalidation. */
#include "guest.h"

#define AREA 0x40000000ull	/* 1 GiB: plain RAM may be absent, so every page here is mapped by hand */
#define NX (1ull << 63)
#define G (1ull << 8)

static uint64_t page_a, page_b;

static void load(void *p) { (void)*(volatile uint8_t *)p; }
static void store(void *p) { *(volatile uint8_t *)p = 1; }
static void store_wide(void *p) { *(volatile uint64_t *)p = 0x1122334455667788ull; }
static void fetch(void *p) { ((void (*)(void))p)(); }
static void rmw_zero(void *p) { __asm__ volatile("lock orl $0, (%0)" : : "r"(p) : "memory"); }
static void cmpxchg_miss(void *p)
{
	__asm__ volatile("movl $99, %%eax; lock cmpxchgl %%ecx, (%0)" : : "r"(p) : "eax", "memory");
}

static void map(uint64_t gva, uint64_t entry)
{
	*page_entry(gva, true) = entry;
	invlpg(gva);
}

/* Says whether fn at gva under `entry` ends in #PF with exactly this code (-1: no fault). */
static void expect(const char *name, int64_t (*run)(void (*)(void *), void *), void (*fn)(void *),
		   uint64_t entry, int64_t error)
{
	map(AREA, entry);
	int64_t got = run(fn, (void *)AREA);
	if (error < 0)
		check(got == -1, name, "expected no fault, got %ld", got);
	else
		check(got == 14 && (int64_t)caught.error == error && caught.cr2 == AREA, name,
		      "expected #PF %lx", error);
}

static void permissions(void)
{
	*(uint8_t *)page_a = 0xc3;	/* ret */
	expect("kernel read of a present page", try, load, page_a | 3, -1);
	expect("not present, kernel read", try, load, page_a | 2, 0);
	expect("not present, kernel write", try, store, page_a | 2, 2);
	expect("not present, user read", try_user, load, page_a | 6, 4);
	expect("not present, user write", try_user, store, page_a | 6, 6);
	expect("user reads supervisor page", try_user, load, page_a | 3, 5);
	expect("user writes supervisor page", try_user, store, page_a | 3, 7);
	expect("user writes read-only page", try_user, store, page_a | 5, 7);
	expect("user reads read-only page", try_user, load, page_a | 5, -1);
	expect("kernel writes read-only page, WP", try, store, page_a | 1, 3);
	WRITE_CR(0, READ_CR(0) & ~0x10000ull);
	expect("kernel writes read-only page, no WP", try, store, page_a | 1, -1);
	WRITE_CR(0, READ_CR(0) | 0x10000);
	*(uint8_t *)page_a = 0xc3;
	expect("fetch from NX page", try, fetch, page_a | 3 | NX, 0x11);
	expect("user fetch from NX page", try_user, fetch, page_a | 7 | NX, 0x15);
	expect("fetch from plain page", try, fetch, page_a | 3, -1);
	expect("user fetch from supervisor page", try_user, fetch, page_a | 3, 0x15);
	expect("reserved bit set", try, load, page_a | 3 | 1ull << 51, 9);
	expect("cmpxchg without match still writes", try, cmpxchg_miss, page_a | 1, 3);
	expect("user atomic on read-only page", try_user, rmw_zero, page_a | 5, 7);
}

/* The harness lives in user pages so that try_user can run it; SMEP and SMAP need it elsewhere. */
static void harness_user(bool user)
{
	for (uint64_t p = 0; p < 0x800000; p += 4096) {
		uint64_t *pd = &boot_pd[0][p >> 21];
		*pd = user ? *pd | 4 : *pd & ~4ull;
		if (!(*pd & 0x80)) {
			uint64_t *e = page_entry(p, false);
			*e = user ? *e | 4 : *e & ~4ull;
		}
	}
	WRITE_CR(3, READ_CR(3));
}

static void smep_smap(void)
{
	harness_user(false);
	*(uint8_t *)page_a = 0xc3;
	if (cpu_has(7, 1, 7)) {
		WRITE_CR(4, READ_CR(4) | 1 << 20);
		expect("SMEP: kernel fetches user page", try, fetch, page_a | 7, 0x11);
		expect("SMEP: kernel fetches own page", try, fetch, page_a | 3, -1);
		WRITE_CR(4, READ_CR(4) & ~(1ull << 20));
	}
	if (cpu_has(7, 1, 20)) {
		map(AREA, page_a | 7);
		WRITE_CR(4, READ_CR(4) | 1 << 21);
		check(try(load, (void *)AREA) == 14 && caught.error == 1, "SMAP: kernel reads user page", "");
		check(try(store, (void *)AREA) == 14 && caught.error == 3, "SMAP: kernel writes user page", "");
		__asm__ volatile("stac");
		check(try(load, (void *)AREA) == -1, "SMAP: allowed with AC", "");
		__asm__ volatile("clac");
		check(try(load, (void *)AREA) == 14, "SMAP: forbidden again after CLAC", "");
		WRITE_CR(4, READ_CR(4) & ~(1ull << 21));
	}
	harness_user(true);
}

static void accessed_dirty(void)
{
	uint64_t *e = page_entry(AREA, true);
	map(AREA, page_a | 3);
	CHECK((*e & 0x60) == 0, "A and D start clear");
	load((void *)AREA);
	CHECK((*e & 0x60) == 0x20, "read sets A only");
	store((void *)AREA);
	CHECK((*e & 0x60) == 0x60, "write sets D");
	*e &= ~0x60ull;
	invlpg(AREA);
	rmw_zero((void *)AREA);
	CHECK((*e & 0x60) == 0x60, "atomic sets A and D");
	map(AREA, page_a | 3);
	load((void *)AREA);
	*e &= ~0x40ull;
	store((void *)AREA);
	CHECK(*e & 0x40, "write after cached read sets D");
}

static void crossing(void)
{
	map(AREA, page_a | 3);
	map(AREA + 4096, page_b | 3);
	store_wide((void *)(AREA + 4092));
	CHECK(*(uint32_t *)(page_a + 4092) == 0x55667788 && *(uint32_t *)page_b == 0x11223344,
	      "store crosses into an unrelated page");
	CHECK(*(volatile uint64_t *)(AREA + 4092) == 0x1122334455667788ull, "load crosses pages");
	map(AREA + 4096, 0);
	*(uint32_t *)(page_a + 4092) = 7;
	check(try(store_wide, (void *)(AREA + 4092)) == 14 && caught.cr2 == AREA + 4096 && caught.error == 2,
	      "split store faults on the second page", "");
	CHECK(*(uint32_t *)(page_a + 4092) == 7, "a split store that faults writes nothing");
	check(try(load, (void *)0x0000800000000000ull) == 13, "non-canonical load is #GP", "");
	check(try(load, (void *)0xffff7fffffffffffull) == 13, "non-canonical load, high, is #GP", "");
	check(try(store_wide, (void *)0x00007ffffffffffcull) != -1, "store across the canonical hole faults", "");
}

static void invalidation(void)
{
	*(uint8_t *)page_a = 0xaa;
	*(uint8_t *)page_b = 0xbb;
	map(AREA, page_a | 3);
	load((void *)AREA);
	*page_entry(AREA, true) = page_b | 3;
	invlpg(AREA);
	CHECK(*(volatile uint8_t *)AREA == 0xbb, "invlpg forgets the page");
	*page_entry(AREA, true) = page_a | 3;
	WRITE_CR(3, READ_CR(3));
	CHECK(*(volatile uint8_t *)AREA == 0xaa, "CR3 load forgets a page");
	*page_entry(AREA, true) = page_a | 3 | G;
	WRITE_CR(4, READ_CR(4) & ~0x80ull);
	WRITE_CR(4, READ_CR(4) | 0x80);
	load((void *)AREA);
	*page_entry(AREA, true) = page_b | 3 | G;
	WRITE_CR(4, READ_CR(4) ^ 0x80);
	WRITE_CR(4, READ_CR(4) ^ 0x80);
	CHECK(*(volatile uint8_t *)AREA == 0xbb, "toggling PGE forgets global pages");
}

static void pcid(void)
{
	if (!cpu_has(1, 2, 17))
		return;
	uint64_t cr3 = READ_CR(3);
	uint64_t *other = page_alloc();
	for (int i = 0; i < 512; i++)
		other[i] = boot_pml4[i];
	/* In the second space, 512 GiB up maps page_b; in the first page_a. */
	uint64_t gva = 512ull << 30;
	map(gva, page_a | 3);
	other[1] = 0;
	WRITE_CR(4, READ_CR(4) | 1 << 17);
	WRITE_CR(3, cr3 | 1);
	*(uint8_t *)page_a = 1;
	*(uint8_t *)page_b = 2;
	CHECK(*(volatile uint8_t *)gva == 1, "PCID 1 sees its page");
	WRITE_CR(3, (uint64_t)other | 2);
	*page_entry(gva, true) = page_b | 3;
	CHECK(*(volatile uint8_t *)gva == 2, "PCID 2 sees another page at the same address");
	WRITE_CR(3, cr3 | 1 | 1ull << 63);
	CHECK(*(volatile uint8_t *)gva == 1, "back in PCID 1 without a flush");
	if (cpu_has(7, 1, 10)) {
		struct { uint64_t pcid, gva; } d = { 1, gva };
		*page_entry(gva, true) = page_b | 3;
		__asm__ volatile("invpcid %0, %1" : : "m"(d), "r"(0ull) : "memory");
		CHECK(*(volatile uint8_t *)gva == 2, "invpcid forgets one address");
	}
	WRITE_CR(3, cr3);
	WRITE_CR(4, READ_CR(4) & ~(1ull << 17));
}

/* --- PCIDs: two address spaces that differ in one page --- */

#define PCIDE (1ull << 17)
#define KEEP (1ull << 63)

static struct { uint64_t cr3, gva; uint64_t *pte; } space[2];

static void cr3_write(void *p) { WRITE_CR(3, *(uint64_t *)p); }
static void pcide_on(void *p) { WRITE_CR(4, READ_CR(4) | PCIDE); }
static void invpcid(uint64_t type, uint64_t pcid, uint64_t gva)
{
	struct { uint64_t pcid, gva; } d = { pcid, gva };
	__asm__ volatile("invpcid %0, %1" : : "m"(d), "r"(type) : "memory");
}
static void invpcid_bad_type(void *p) { invpcid(4, 0, 0); }
static void invpcid_bad_pcid(void *p) { invpcid(0, 0x1000, 0); }
static void invpcid_bad_address(void *p) { invpcid(0, 0, 1ull << 47); }

static unsigned see(uint64_t gva) { return *(volatile uint8_t *)gva; }
static unsigned call(uint64_t gva) { return ((unsigned (*)(void))gva)(); }
/* To space 0 or 1, keeping what it knows. */
static void go(int n) { WRITE_CR(3, space[n].cr3 | KEEP); }

/* Both pages: the byte 1 or 2, at 16 a function that returns it, at 32 one that stores it. */
static void page_fill(uint64_t page, uint8_t value)
{
	const uint8_t code[] = { 0xb8, value, 0, 0, 0, 0xc3 };
	const uint8_t user_code[] = { 0xc6, 0x07, value, 0xc3 };	/* movb $value, (%rdi) */
	*(uint8_t *)page = value;
	memcpy((void *)(page + 16), code, sizeof code);
	memcpy((void *)(page + 32), user_code, sizeof user_code);
}

/* Space 0 has PCID 1 and shows page_a at gva; space 1 has PCID 2 and shows page_b. */
static void spaces_make(uint64_t gva)
{
	uint64_t old = READ_CR(3);
	page_fill(page_a, 1);
	page_fill(page_b, 2);
	for (int n = 0; n < 2; n++) {
		uint64_t *pml4 = page_alloc();
		for (int i = 0; i < 512; i++)
			pml4[i] = boot_pml4[i];
		pml4[gva >> 39 & 511] = 0;
		WRITE_CR(3, pml4);
		space[n].gva = gva;
		space[n].pte = page_entry(gva, true);
		*space[n].pte = (n ? page_b : page_a) | 3;
		space[n].cr3 = (uint64_t)pml4 | (n + 1u);
	}
	WRITE_CR(3, old);
}

/* In space 0: gva is known as page_a; then, from space 1, its entry says page_b and `forget` runs. */
static void forgets(const char *name, uint64_t flags, void (*forget)(void), bool keep)
{
	uint64_t gva = space[0].gva;
	*space[0].pte = page_a | 3 | flags;
	WRITE_CR(3, space[0].cr3);
	invlpg(gva);
	unsigned before = see(gva), code = call(gva + 16);
	go(1);
	*space[0].pte = page_b | 3 | flags;
	forget();
	WRITE_CR(3, space[0].cr3 | (keep ? KEEP : 0));
	check(before == 1 && code == 1 && see(gva) == 2 && call(gva + 16) == 2, name, "%u %u", before, code);
	*space[0].pte = page_a | 3;
	invlpg(gva);
	go(1);
	invlpg(gva);
}

static void forget_none(void) { }
static void forget_pge(void) { WRITE_CR(4, READ_CR(4) ^ 0x80); WRITE_CR(4, READ_CR(4) ^ 0x80); }
static void forget_pcide(void)
{
	WRITE_CR(4, READ_CR(4) & ~PCIDE);
	uint64_t cr3 = READ_CR(3);
	WRITE_CR(3, cr3 & ~0xfffull);
	WRITE_CR(4, READ_CR(4) | PCIDE);
	WRITE_CR(3, cr3);
}
static void forget_invlpg(void) { invlpg(space[0].gva); }
static void forget_inv0(void) { invpcid(0, 1, space[0].gva); }
static void forget_inv1(void) { invpcid(1, 1, 0); }
static void forget_inv2(void) { invpcid(2, 0, 0); }
static void forget_inv3(void) { invpcid(3, 0, 0); }
static void forget_wp(void) { WRITE_CR(0, READ_CR(0) ^ 0x10000); WRITE_CR(0, READ_CR(0) ^ 0x10000); }

static void invpage_both(uint64_t gva)
{
	go(0);
	invlpg(gva);
	go(1);
	invlpg(gva);
}

static void pcid_alternate(void)
{
	uint64_t gva = space[0].gva;
	unsigned wrong = 0;

	for (unsigned i = 0; i < 200; i++) {
		go(i & 1);
		wrong += see(gva) != (i & 1) + 1;
		wrong += call(gva + 16) != (i & 1) + 1;
	}
	CHECK(wrong == 0, "data and code follow the address space, without flushes");
	*space[0].pte = page_a | 7;
	*space[1].pte = page_b | 7;
	wrong = 0;
	for (unsigned i = 0; i < 100; i++) {
		volatile uint8_t seen = 0;
		go(i & 1);
		wrong += try_user((void (*)(void *))(gva + 32), (void *)&seen) != -1;
		wrong += seen != (i & 1) + 1;
	}
	CHECK(wrong == 0, "user code does, too");
	*space[0].pte = page_a | 3;
	*space[1].pte = page_b | 3;
	invpage_both(gva);
	go(0);
	*(volatile uint8_t *)(gva + 8) = 0x55;
	go(1);
	CHECK(*(uint8_t *)(page_a + 8) == 0x55 && *(uint8_t *)(page_b + 8) != 0x55, "and so do stores");
	*space[0].pte = page_a | 3;
	WRITE_CR(3, space[0].cr3);
	(void)see(gva);
	go(1);
	go(0);
	*(volatile uint8_t *)gva = 1;
	CHECK((*space[0].pte & 0x60) == 0x60, "a write through a kept clean translation sets D");
	*space[0].pte = page_a | 1;
	WRITE_CR(3, space[0].cr3);
	(void)see(gva);
	go(1);
	go(0);
	check(try(store, (void *)gva) == 14 && caught.error == 3, "a kept read-only translation refuses writes", "");
	*space[0].pte = page_a | 3;
	check(try(store, (void *)gva) == -1, "more rights need no invalidation", "");
	check(try_user(load, (void *)gva) == 14 && caught.error == 5, "nor does it serve the user", "");
}

static void pcid_spaces(void)
{
	uint64_t old = READ_CR(3), v;

	if (!cpu_has(1, 2, 17))
		return;
	v = old | KEEP;
	check(try(cr3_write, &v) == 13, "CR3 bit 63 without CR4.PCIDE is #GP", "");
	WRITE_CR(3, old | 8);
	check(try(pcide_on, 0) == 13, "CR4.PCIDE with a PCID in CR3 is #GP", "");
	WRITE_CR(3, old);
	spaces_make(5ull << 39);
	WRITE_CR(4, READ_CR(4) | PCIDE);
	go(1);
	CHECK(READ_CR(3) == space[1].cr3, "CR3 reads without bit 63");
	pcid_alternate();
	go(1);
	forgets("CR3 load without bit 63 forgets that PCID", 0, forget_none, false);
	forgets("toggling PGE forgets all PCIDs", 0, forget_pge, true);
	forgets("toggling PGE forgets global pages", G, forget_pge, true);
	forgets("clearing PCIDE forgets all PCIDs", 0, forget_pcide, true);
	forgets("INVLPG forgets global pages of other PCIDs", G, forget_invlpg, true);
	forgets("toggling WP forgets nothing wrong", 0, forget_wp, false);
	if (cpu_has(7, 1, 10)) {
		forgets("INVPCID 0 forgets an address of another PCID", 0, forget_inv0, true);
		forgets("INVPCID 1 forgets another PCID", 0, forget_inv1, true);
		forgets("INVPCID 2 forgets everything", 0, forget_inv2, true);
		forgets("INVPCID 2 forgets global pages", G, forget_inv2, true);
		forgets("INVPCID 3 forgets all PCIDs", 0, forget_inv3, true);
		check(try(invpcid_bad_type, 0) == 13, "INVPCID of type 4 is #GP", "");
		check(try(invpcid_bad_pcid, 0) == 13, "INVPCID of PCID 4096 is #GP", "");
		check(try(invpcid_bad_address, 0) == 13, "INVPCID of a non-canonical address is #GP", "");
	}
	WRITE_CR(3, old);
	WRITE_CR(4, READ_CR(4) & ~PCIDE);
}

/* One INVLPG takes a whole large page along, whatever pieces of it were used. */
static void large_invalidation(void)
{
	uint64_t *pd = page_alloc(), *pdpt = page_alloc(), gva = 6ull << 39;

	pdpt[0] = (uint64_t)pd | 7;
	boot_pml4[6] = (uint64_t)pdpt | 7;
	pd[0] = 0x400000 | 0x83;
	page_fill(0x400000 + 0x5000, 1);
	page_fill(0x600000 + 0x5000, 2);
	CHECK(see(gva + 0x5000) == 1 && call(gva + 0x5010) == 1, "2 MiB page, some way in");
	(void)see(gva);
	pd[0] = 0x600000 | 0x83;
	invlpg(gva + 0x1ff000);
	CHECK(see(gva + 0x5000) == 2 && call(gva + 0x5010) == 2, "invlpg forgets all of a 2 MiB page");
	boot_pml4[6] = 0;
	WRITE_CR(3, READ_CR(3));
}

static void sizes(void)
{
	boot_pd[0][6] = 0x400000 | 0x87;	/* 12 MiB shows 4 MiB */
	invlpg(6 << 21);
	*(uint32_t *)0x400010 = 0x2bad;
	CHECK(*(volatile uint32_t *)((6 << 21) + 0x10) == 0x2bad, "2 MiB page");
	CHECK(boot_pd[0][6] & 0x20, "2 MiB page gets A");
	if (cpu_has(0x80000001, 3, 26)) {
		boot_pml4[2] = (uint64_t)page_alloc() | 7;
		((uint64_t *)(boot_pml4[2] & ~0xfffull))[0] = 0x87;
		CHECK(*(volatile uint32_t *)((1024ull << 30) + 0x400010) == 0x2bad, "1 GiB page");
	}
	uint64_t *self = page_alloc();
	self[0] = (uint64_t)self | 7;		/* a table that maps itself must not confuse the walker */
	boot_pml4[3] = (uint64_t)self | 7;
	uint64_t loop = 3ull << 39;
	CHECK(*(volatile uint64_t *)loop == ((uint64_t)self | 0x27), "recursive page table");
	boot_pml4[4] = 0x000ff00000000000ull | 7;	/* a table where there is no RAM */
	int64_t r = try(load, (void *)(4ull << 39));
	CHECK(r == 14 || r == -1, "page table outside RAM does no harm");
	boot_pml4[4] = 0;
}

/* Runs of PUSH and POP: where they fault, and what they have done by then. */
static void push_run(void *p)
{
	__asm__ volatile("movq %%rsp, %%rbx; movq %0, %%rsp; movl $0x11, %%eax; movl $0x22, %%ecx; movl $0x33, %%edx\n"
			 "pushq %%rax; pushq %%rcx; pushq %%rdx; pushq %%r15; pushq %%rax; movq %%rbx, %%rsp"
			 : : "r"(p) : "rax", "rbx", "rcx", "rdx", "memory");
}
static uint64_t popped[3];
static void pop_run(void *p)
{
	__asm__ volatile("movq %%rsp, %%rbx; movq %3, %%rsp; popq %0; popq %1; popq %2; movq %%rbx, %%rsp"
			 : "=&r"(popped[0]), "=&r"(popped[1]), "=&r"(popped[2]) : "r"(p) : "rbx", "memory");
}

/* At CPL 3, where a fault has a stack of its own. */
static void stack_runs(void)
{
	uint64_t *a = (uint64_t *)page_a, *b = (uint64_t *)page_b;

	map(AREA, page_a | 7);
	map(AREA + 4096, page_b | 7);
	for (unsigned i = 0; i < 512; i++)
		a[i] = b[i] = 100 + i;
	check(try_user(push_run, (void *)(AREA + 4096 + 16)) == -1 && b[1] == 0x11 && b[0] == 0x22 && a[511] == 0x33 &&
	      a[509] == 0x11 && a[508] == 608, "pushes across two pages", "");
	map(AREA, 0);
	b[1] = b[0] = 0;
	check(try_user(push_run, (void *)(AREA + 4096 + 16)) == 14 && caught.cr2 == AREA + 4096 - 8 && caught.error == 6 &&
	      b[1] == 0x11 && b[0] == 0x22, "the third push faults", "");
	map(AREA + 4096, page_b | 5);
	check(try_user(push_run, (void *)(AREA + 8192)) == 14 && caught.cr2 == AREA + 8192 - 8 && caught.error == 7,
	      "the first push faults", "%lx", caught.cr2);
	map(AREA, page_a | 7);
	check(try_user(pop_run, (void *)(AREA + 4096 - 8)) == -1 && popped[0] == a[511] && popped[1] == b[0] &&
	      popped[2] == b[1], "pops across two pages", "");
	map(AREA + 4096, 0);
	check(try_user(pop_run, (void *)(AREA + 4096 - 16)) == 14 && caught.cr2 == AREA + 4096 && caught.error == 4,
	      "the third pop faults", "");
	map(AREA, 0);
	check(try_user(pop_run, (void *)(AREA + 128)) == 14 && caught.cr2 == AREA + 128, "the first pop faults", "");
	check(try_user(push_run, (void *)0x0000800000000010ull) == 12 && try_user(pop_run, (void *)0x0000800000000000ull) == 12,
	      "non-canonical stacks are #SS", "");
}

/* A jump as far as they go: 2 GiB less one byte behind its end, which is in the page's last part. */
static void far_jump(void)
{
	uint64_t from = (7ull << 39) + 0xff8, to = from + 5 + 0x7fffffff;
	const uint8_t jump[] = { 0xe9, 0xff, 0xff, 0xff, 0x7f };

	memcpy((void *)(page_a + 0xff8), jump, sizeof jump);
	*(uint8_t *)(page_b + (to & 0xfff)) = 0xc3;
	map(from & ~0xfffull, page_a | 3);
	map(to & ~0xfffull, page_b | 3);
	check(try((void (*)(void *))from, 0) == -1, "a jump over 2 GiB", "");
}

int main(void)
{
	trap_init();
	page_a = (uint64_t)page_alloc();
	page_b = (uint64_t)page_alloc();
	permissions();
	accessed_dirty();
	crossing();
	invalidation();
	smep_smap();
	pcid();
	pcid_spaces();
	sizes();
	large_invalidation();
	far_jump();
	stack_runs();
	return 0;
}
