/*
 * What a bare test guest stands on: console, traps, vCPUs, pages.
 *
 * A guest prints "ok NAME" or "not ok NAME: why" for each check on COM1, then
 * "done N checks, M failed" and powers off by ACPI (PM1a at 0x604).  Nothing in
 * it depends on how fast it runs.
 */
#ifndef GUEST_H
#define GUEST_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct trap_frame {
	uint64_t r15, r14, r13, r12, r11, r10, r9, r8, rdi, rsi, rbp, rbx, rdx, rcx, rax;
	uint64_t vector, error, rip, cs, rflags, rsp, ss;
};

/* The last trap taken inside try(); vector -1: none. */
struct caught { int64_t vector; uint64_t error, rip, cr2, rflags; };
extern volatile struct caught caught;
extern uint64_t try_rip, try_rsp, ap_stack, ap_entry;
extern uint64_t boot_pml4[512], boot_pdpt[512], boot_pd[4][512];
extern uint64_t boot_gdt[], boot_tss_desc[2];
extern uint64_t multiboot_info;

void try_call(void (*fn)(void *), void *arg);
void user_call(void (*fn)(void *), void *arg, void *stack_top);

void put_char(char c);
void print(const char *fmt, ...);	/* %s %d %u %x %lx */
void check(bool ok, const char *name, const char *fmt, ...);
#define CHECK(cond, name) check((cond), (name), "%s", #cond)
_Noreturn void guest_exit(int failed);

/* Runs fn(arg) and says which exception stopped it: -1 none. */
int64_t try(void (*fn)(void *), void *arg);
int64_t try_user(void (*fn)(void *), void *arg);	/* the same at CPL 3 */

typedef void irq_fn(struct trap_frame *f);
void irq_set_handler(unsigned vector, irq_fn *fn);
void trap_init(void);

uint64_t *page_entry(uint64_t gva, bool make);	/* 4 KiB PTE of gva, splitting the 2 MiB page */
void *page_alloc(void);				/* zeroed, 4 KiB, below 4 GiB */

void *memcpy(void *d, const void *s, size_t n);
void *memset(void *p, int c, size_t n);

bool cpu_has(uint32_t leaf, unsigned reg, unsigned bit);	/* reg: 0 eax .. 3 edx */
void ap_run(unsigned apic_id, void (*fn)(void));

static inline void outb(uint16_t p, uint8_t v) { __asm__ volatile("outb %0, %1" : : "a"(v), "Nd"(p)); }
static inline void outw(uint16_t p, uint16_t v) { __asm__ volatile("outw %0, %1" : : "a"(v), "Nd"(p)); }
static inline void outl(uint16_t p, uint32_t v) { __asm__ volatile("outl %0, %1" : : "a"(v), "Nd"(p)); }
static inline uint8_t inb(uint16_t p) { uint8_t v; __asm__ volatile("inb %1, %0" : "=a"(v) : "Nd"(p)); return v; }
static inline uint16_t inw(uint16_t p) { uint16_t v; __asm__ volatile("inw %1, %0" : "=a"(v) : "Nd"(p)); return v; }
static inline uint32_t inl(uint16_t p) { uint32_t v; __asm__ volatile("inl %1, %0" : "=a"(v) : "Nd"(p)); return v; }
static inline uint64_t rdmsr(uint32_t m)
{
	uint32_t a, d;
	__asm__ volatile("rdmsr" : "=a"(a), "=d"(d) : "c"(m));
	return a | (uint64_t)d << 32;
}
static inline void wrmsr(uint32_t m, uint64_t v)
{
	__asm__ volatile("wrmsr" : : "c"(m), "a"((uint32_t)v), "d"((uint32_t)(v >> 32)) : "memory");
}
static inline uint64_t rdtsc(void)
{
	uint32_t a, d;
	__asm__ volatile("rdtsc" : "=a"(a), "=d"(d));
	return a | (uint64_t)d << 32;
}
#define READ_CR(n) ({ uint64_t v_; __asm__ volatile("mov %%cr" #n ", %0" : "=r"(v_)); v_; })
#define WRITE_CR(n, v) __asm__ volatile("mov %0, %%cr" #n : : "r"((uint64_t)(v)) : "memory")
static inline void invlpg(uint64_t gva) { __asm__ volatile("invlpg (%0)" : : "r"(gva) : "memory"); }
static inline uint32_t mmio_read32(uint64_t a) { return *(volatile uint32_t *)a; }
static inline void mmio_write32(uint64_t a, uint32_t v) { *(volatile uint32_t *)a = v; }
#define LAPIC 0xfee00000ull
#define IOAPIC 0xfec00000ull
#define ECAM 0xb0000000ull

#endif
