/*
 * Direct boot: a kernel file into guest RAM, and the first vCPU's state to enter it.
 *
 *   GPA  0x0500 GDT | 0x7000 zero page / start_info | 0x9000 page tables | 0x20000 command line | 0xe0000 ACPI
 *        kernel at its preferred address | initrd as high as the kernel allows
 *
 * The file's type is found by its contents: bzImage (Linux boot protocol 2.06 and later), ELF with a PVH note,
 * multiboot 1. Everything in the file is checked before it is used.
 */
#ifndef VIXEN_MACHINE_BOOT_H
#define VIXEN_MACHINE_BOOT_H

#include <stdint.h>

#include "base/error.h"
#include "cpu/state.h"

struct map;

#define BOOT_GDT 0x500u
#define BOOT_INFO 0x7000u
#define BOOT_PAGES 0x9000u
#define BOOT_CMDLINE 0x20000u
#define BOOT_CMDLINE_MAX 0x10000u
#define BOOT_ACPI 0xe0000u
#define BOOT_ACPI_SIZE 0x20000u

struct boot_files {
	const char *kernel, *initrd;	/* paths; initrd may be NULL */
	const char *cmdline;		/* never NULL */
};

/* Loads the files and sets the BSP's state. low_ram: bytes of RAM from GPA 0; high_ram: from 4 GiB. */
struct boot_layout { uint64_t low_ram, high_ram; };
int boot_load(struct map *m, const struct boot_layout *l, const struct boot_files *f, struct x86_state *bsp,
	      struct error *e);

/* --- between boot*.c --- */
struct boot_image { uint8_t *bytes; uint64_t size; const char *path; };
int file_load(struct boot_image *img, const char *path, const char *what, struct error *e);
int boot_bzimage(struct map *m, const struct boot_layout *l, const struct boot_files *f, const struct boot_image *k,
		 struct x86_state *bsp, struct error *e);
int boot_elf_pvh(struct map *m, const struct boot_layout *l, const struct boot_files *f, const struct boot_image *k,
		 struct x86_state *bsp, struct error *e);
int boot_multiboot(struct map *m, const struct boot_layout *l, const struct boot_files *f, const struct boot_image *k,
		   uint32_t header, struct x86_state *bsp, struct error *e);
/* Copies into RAM or says that it does not fit. */
int boot_place(struct map *m, uint64_t gpa, const void *bytes, uint64_t len, const char *what, struct error *e);
/* Places the initrd page-aligned, ending below limit. */
int boot_initrd(struct map *m, const struct boot_layout *l, const struct boot_files *f, uint64_t limit,
		uint64_t floor, uint64_t *gpa, uint64_t *len, struct error *e);
int boot_cmdline(struct map *m, const struct boot_files *f, uint64_t max, struct error *e);
/* The memory map: at most 4 entries, {gpa, bytes, type}. */
struct boot_e820 { uint64_t gpa, size; uint32_t type; } __attribute__((packed));
unsigned boot_memory_map(const struct boot_layout *l, struct boot_e820 out[4]);
/* Flat 32-bit protected mode, paging off, interrupts off. */
void boot_flat32(struct map *m, struct x86_state *bsp, uint32_t eip);
/* Long mode with the first 4 GiB mapped one to one. */
void boot_long(struct map *m, struct x86_state *bsp, uint64_t rip);

#endif
