/* The bare guests' small runtime. */
#include "guest.h"
#include <stdarg.h>

volatile struct caught caught;
static irq_fn *handlers[256];
static unsigned checks, failures;
static struct { uint16_t off0, sel, attr, off1; uint32_t off2, zero; } __attribute__((packed)) idt[256];
static struct { uint32_t r0; uint64_t rsp[3], r1, ist[7], r2; uint16_t r3, iomap; }
	__attribute__((packed, aligned(16))) tss;
static uint8_t trap_stack[16384] __attribute__((aligned(16)));
static uint8_t fault_stack[16384] __attribute__((aligned(16)));
static uint8_t user_stack[16384] __attribute__((aligned(16)));
static uint8_t pool[512 * 4096] __attribute__((aligned(4096)));
static unsigned pool_used;
extern char trap_stubs[], user_back[], ap_start[], ap_end[];

void *memset(void *p, int c, size_t n) { for (uint8_t *b = p; n--; ) *b++ = (uint8_t)c; return p; }
void *memcpy(void *d, const void *s, size_t n)
{
	uint8_t *a = d;
	const uint8_t *b = s;
	while (n--)
		*a++ = *b++;
	return d;
}
int memcmp(const void *x, const void *y, size_t n)
{
	const uint8_t *a = x, *b = y;
	for (; n--; a++, b++)
		if (*a != *b)
			return *a - *b;
	return 0;
}

void put_char(char c)
{
	while (!(inb(0x3fd) & 0x20))
		;
	outb(0x3f8, (uint8_t)c);
}

static void put_number(uint64_t v, unsigned base)
{
	char buf[24];
	unsigned n = 0;
	do {
		buf[n++] = "0123456789abcdef"[v % base];
	} while (v /= base);
	while (n)
		put_char(buf[--n]);
}

static void vprint(const char *fmt, va_list ap)
{
	for (; *fmt; fmt++) {
		if (*fmt != '%') {
			put_char(*fmt);
			continue;
		}
		bool wide = *++fmt == 'l';
		fmt += wide;
		if (*fmt == 's') {
			for (const char *s = va_arg(ap, const char *); *s; s++)
				put_char(*s);
		} else {
			uint64_t v = wide ? va_arg(ap, uint64_t) : va_arg(ap, unsigned);
			if (*fmt == 'd' && (int64_t)(wide ? v : (uint64_t)(int32_t)v) < 0) {
				put_char('-');
				v = wide ? -v : (uint32_t)-(int32_t)v;
			}
			put_number(v, *fmt == 'x' ? 16 : 10);
		}
	}
}

void print(const char *fmt, ...)
{
	va_list ap;
	va_start(ap, fmt);
	vprint(fmt, ap);
	va_end(ap);
}

void check(bool ok, const char *name, const char *fmt, ...)
{
	checks++;
	failures += !ok;
	print(ok ? "ok %s" : "not ok %s: ", name);
	if (!ok) {
		va_list ap;
		va_start(ap, fmt);
		vprint(fmt, ap);
		va_end(ap);
		print(" (caught %ld error %lx rip %lx cr2 %lx)", caught.vector, caught.error, caught.rip, caught.cr2);
	}
	print("\n");
}

_Noreturn void guest_exit(int failed)
{
	(void)failed;
	print("done %u checks, %u failed\n", checks, failures);
	for (;;) {
		outw(0x604, 0x2000 | 0 << 10);	/* SLP_EN, S5's SLP_TYP 0 as on q35 */
		__asm__ volatile("cli; hlt");
	}
}

void trap_handle(struct trap_frame *f);
void trap_handle(struct trap_frame *f)
{
	if (handlers[f->vector]) {
		handlers[f->vector](f);
		return;
	}
	if (f->vector == 0x80) {		/* user_call's way back */
		f->cs = 8;
		f->ss = 0x10;
		f->rip = (uint64_t)user_back;
		f->rflags &= ~0x200ull;
		return;
	}
	caught.vector = (int64_t)f->vector;
	caught.error = f->error;
	caught.rip = f->rip;
	caught.rflags = f->rflags;
	caught.cr2 = READ_CR(2);
	if (!try_rip) {
		print("not ok unexpected trap %u error %lx rip %lx rsp %lx cr2 %lx\n", (unsigned)f->vector,
		      f->error, f->rip, f->rsp, caught.cr2);
		failures++;
		guest_exit(1);
	}
	f->rip = try_rip;
	f->cs = 8;
	f->ss = 0x10;
	f->rsp = try_rsp;
	f->rflags &= ~0x40700ull;		/* AC, TF, DF, IF */
}

int64_t try(void (*fn)(void *), void *arg)
{
	caught.vector = -1;
	try_call(fn, arg);
	return caught.vector;
}

struct user_job { void (*fn)(void *); void *arg; };
static void user_enter(void *p)
{
	struct user_job *j = p;
	user_call(j->fn, j->arg, user_stack + sizeof user_stack - 64);
}
int64_t try_user(void (*fn)(void *), void *arg)
{
	struct user_job j = { fn, arg };
	return try(user_enter, &j);
}

void irq_set_handler(unsigned vector, irq_fn *fn) { handlers[vector] = fn; }

static void idt_load(void)
{
	struct { uint16_t limit; uint64_t base; } __attribute__((packed)) p = { sizeof idt - 1, (uint64_t)idt };
	__asm__ volatile("lidt %0" : : "m"(p));
}

void trap_init(void)
{
	for (unsigned i = 0; i < 256; i++) {
		uint64_t a = (uint64_t)trap_stubs + 16 * i;
		idt[i].off0 = (uint16_t)a;
		idt[i].sel = 8;
		idt[i].attr = (uint16_t)(0x8e00 | (i == 0x80 || i == 3 ? 0x6000 : 0) | (i == 8 || i == 2 ? 1 : 0));
		idt[i].off1 = (uint16_t)(a >> 16);
		idt[i].off2 = (uint32_t)(a >> 32);
	}
	idt_load();
	tss.rsp[0] = (uint64_t)(trap_stack + sizeof trap_stack);
	tss.ist[0] = (uint64_t)(fault_stack + sizeof fault_stack);
	tss.iomap = sizeof tss;
	uint64_t base = (uint64_t)&tss;
	boot_tss_desc[0] = (sizeof tss - 1) | (base & 0xffffff) << 16 | 0x89ull << 40 | (base >> 24 & 0xff) << 56;
	boot_tss_desc[1] = base >> 32;
	__asm__ volatile("ltr %w0" : : "r"(0x40));
	outb(0x21, 0xff);
	outb(0xa1, 0xff);
}

void *page_alloc(void)
{
	if (pool_used >= sizeof pool / 4096) {
		print("not ok out of pages\n");
		guest_exit(1);
	}
	return memset(pool + 4096 * pool_used++, 0, 4096);
}

uint64_t *page_entry(uint64_t gva, bool make)
{
	uint64_t *table = (uint64_t *)(READ_CR(3) & ~0xfffull);
	for (int shift = 39; shift > 12; shift -= 9) {
		uint64_t *e = &table[gva >> shift & 511];
		if (*e & 0x80) {			/* split a large page */
			uint64_t *t = page_alloc(), old = *e;
			uint64_t step = 1ull << (shift - 9);
			for (unsigned i = 0; i < 512; i++)
				t[i] = ((old & ~0x80ull) + i * step) | (shift > 21 ? 0x80 : 0);
			*e = (uint64_t)t | 7;
			WRITE_CR(3, READ_CR(3));
		} else if (!(*e & 1)) {
			if (!make)
				return NULL;
			*e = (uint64_t)page_alloc() | 7;
		}
		table = (uint64_t *)(*e & 0x000ffffffffff000ull);
	}
	return &table[gva >> 12 & 511];
}

bool cpu_has(uint32_t leaf, unsigned reg, unsigned bit)
{
	uint32_t r[4];
	__asm__ volatile("cpuid" : "=a"(r[0]), "=b"(r[1]), "=c"(r[2]), "=d"(r[3]) : "0"(leaf), "2"(0));
	return r[reg] >> bit & 1;
}

void ap_run(unsigned apic_id, void (*fn)(void))
{
	memcpy((void *)0x8000, ap_start, (size_t)(ap_end - ap_start));
	ap_stack = (uint64_t)page_alloc() + 4096 - 16;
	ap_entry = (uint64_t)fn;
	mmio_write32(LAPIC + 0x310, apic_id << 24);
	mmio_write32(LAPIC + 0x300, 0x4500);
	for (unsigned i = 0; i < 100000; i++)
		inb(0x80);
	mmio_write32(LAPIC + 0x310, apic_id << 24);
	mmio_write32(LAPIC + 0x300, 0x4608);
}
