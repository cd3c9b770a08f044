/* Code that changes: in the running block, through an alias, across pages, by string stores and by remapping. */
#include "guest.h"

static uint8_t page[2 * 4096] __attribute__((aligned(4096)));
typedef uint32_t fn_t(void);

/* mov eax, v; ret at p */
static void emit(uint8_t *p, uint32_t v)
{
	p[0] = 0xb8;
	*(volatile uint32_t *)(p + 1) = v;
	p[5] = 0xc3;
}
static uint32_t run(void *p) { return ((fn_t *)p)(); }

static void rewrite(void)
{
	bool ok = true;
	for (uint32_t i = 0; i < 1000; i++) {
		emit(page + 16, i);
		ok &= run(page + 16) == i;
	}
	CHECK(ok, "rewritten function runs anew each time");
	ok = true;
	for (uint32_t i = 0; i < 1000; i++) {
		page[17] = (uint8_t)i;
		ok &= (uint8_t)run(page + 16) == (uint8_t)i;
	}
	CHECK(ok, "one byte changed");
}

static void alias(void)
{
	uint64_t gva = 0x60000000;
	*page_entry(gva, true) = (uint64_t)page | 3;
	invlpg(gva);
	emit(page + 64, 1);
	run(page + 64);
	bool ok = true;
	for (uint32_t i = 0; i < 200; i++) {
		*(volatile uint32_t *)(gva + 65) = i;
		ok &= run(page + 64) == i && run((void *)(gva + 64)) == i;
	}
	CHECK(ok, "changed through another linear address");
}

static void crossing(void)
{
	uint8_t *p = page + 4096 - 3;		/* the immediate lies on both pages */
	bool ok = true;
	for (uint32_t i = 0; i < 300; i++) {
		emit(p, 0x01010101u * (i & 0xff));
		ok &= run(p) == 0x01010101u * (i & 0xff);
	}
	for (uint32_t i = 0; i < 300; i++) {
		page[4096] = (uint8_t)i;	/* only the second page changes */
		ok &= (run(p) >> 16 & 0xff) == (uint8_t)i;
	}
	CHECK(ok, "instruction across two pages");
}

/* An instruction that overwrites the next one, in the same basic block. */
static void inside(void)
{
	static const uint8_t code[] = {
		0x40, 0x88, 0x3d, 0x01, 0x00, 0x00, 0x00,	/* mov [rip+1], dil: the byte after b8 below */
		0xb8, 0x00, 0x00, 0x00, 0x00,			/* mov eax, imm32 */
		0xc3,
	};
	memcpy(page + 256, code, sizeof code);
	bool ok = true;
	for (uint32_t i = 0; i < 200; i++)
		ok &= ((uint32_t (*)(uint32_t))(void *)(page + 256))(i) == i;
	CHECK(ok, "an instruction changes the next one");
}

static void strings(void)
{
	uint8_t src[16];
	bool ok = true;
	for (uint32_t i = 0; i < 200; i++) {
		emit(src, i * 3);
		void *d = page + 512;
		const void *s = src;
		uint64_t n = 6;
		__asm__ volatile("cld; rep movsb" : "+D"(d), "+S"(s), "+c"(n) : : "memory");
		ok &= run(page + 512) == i * 3;
	}
	CHECK(ok, "code written by rep movsb");
}

static void remap(void)
{
	uint64_t gva = 0x61000000;
	uint8_t *a = page_alloc(), *b = page_alloc();
	emit(a, 1);
	emit(b, 2);
	bool ok = true;
	for (int i = 0; i < 100; i++) {
		*page_entry(gva, true) = (uint64_t)(i & 1 ? a : b) | 3;
		invlpg(gva);
		ok &= run((void *)gva) == (i & 1 ? 1 : 2);
	}
	CHECK(ok, "code page remapped");
	/* a jump between two pages whose second is remapped */
	uint8_t *c = page_alloc();
	c[0] = 0xe9;
	*(uint32_t *)(c + 1) = 4096 - 5;
	*page_entry(gva - 4096, true) = (uint64_t)c | 3;
	invlpg(gva - 4096);
	for (int i = 0; i < 100; i++) {
		*page_entry(gva, true) = (uint64_t)(i & 1 ? a : b) | 3;
		invlpg(gva);
		ok &= run((void *)(gva - 4096)) == (i & 1 ? 1 : 2);
	}
	CHECK(ok, "jump into a remapped page");
	*page_entry(gva, true) = (uint64_t)a | 3 | 1ull << 63;
	invlpg(gva);
	check(try((void (*)(void *))(void *)(gva - 4096), NULL) == 14 && caught.error == 0x11, "jump into a page made NX", "");
}

static void data_beside_code(void)
{
	emit(page + 1024, 77);
	bool ok = true;
	volatile uint64_t *cell = (volatile uint64_t *)(page + 2048);
	for (uint64_t i = 0; i < 20000; i++) {
		*cell = i;
		ok &= run(page + 1024) == 77 && *cell == i;
	}
	CHECK(ok, "data beside code");
}

int main(void)
{
	trap_init();
	rewrite();
	alias();
	crossing();
	inside();
	strings();
	remap();
	data_beside_code();
	return 0;
}
