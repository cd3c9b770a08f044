#include "machine/boot.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/checked.h"
#include "base/endian.h"
#include "memory/map.h"

#define FILE_MAX (2ull << 30)

int file_load(struct boot_image *img, const char *path, const char *what, struct error *e)
{
	struct stat st;
	int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);	/* no wait for a FIFO's writer */
	if (fd < 0 || fstat(fd, &st) < 0) {
		int err = errno;
		if (fd >= 0)
			close(fd);
		return error_errno(e, err, "check the path and its permissions", "open %s '%s'", what, path);
	}
	*img = (struct boot_image){ .size = (uint64_t)st.st_size, .path = path };
	if (!S_ISREG(st.st_mode) || !img->size || img->size > FILE_MAX) {
		close(fd);
		return error_set(e, EINVAL, "give a regular file", "load the kernel or initrd", "'%s' is %s", path,
				 S_ISREG(st.st_mode) ? img->size ? "over 2 GiB" : "empty" : "not a regular file");
	}
	img->bytes = malloc(img->size);
	if (!img->bytes) {
		close(fd);
		return error_set(e, ENOMEM, "free some memory on the host, or raise ulimit -v", "load the kernel or initrd",
				 "no memory for the %llu MiB of '%s'", (unsigned long long)img->size >> 20, path);
	}
	uint64_t got = 0;
	while (got < img->size) {
		ssize_t n = read(fd, img->bytes + got, img->size - got);
		if (n <= 0)
			break;
		got += (uint64_t)n;
	}
	close(fd);
	if (got == img->size)
		return 0;
	free(img->bytes);
	return error_set(e, EIO, "check the disk it is on", "read the kernel or initrd", "'%s' ended after %llu bytes", path,
			 (unsigned long long)got);
}

int boot_place(struct map *m, uint64_t gpa, const void *bytes, uint64_t len, const char *what, struct error *e)
{
	if (map_ptr(m, gpa, len, true) && map_write(m, gpa, bytes, len))
		return 0;
	return error_set(e, ENOMEM, "give the guest more memory with --memory", "load the kernel",
			 "%s (%llu KiB at %#llx) does not fit into guest memory", what, (unsigned long long)len >> 10,
			 (unsigned long long)gpa);
}

int boot_initrd(struct map *m, const struct boot_layout *l, const struct boot_files *f, uint64_t limit,
		uint64_t floor, uint64_t *gpa, uint64_t *len, struct error *e)
{
	struct boot_image img;
	*gpa = *len = 0;
	if (!f->initrd)
		return 0;
	int ret = file_load(&img, f->initrd, "initrd", e);
	if (ret)
		return ret;
	uint64_t top = limit < l->low_ram ? limit : l->low_ram;
	uint64_t at = img.size <= top ? (top - img.size) & GUEST_PAGE_MASK : 0;
	if (at < floor)
		ret = error_set(e, ENOMEM, "give the guest more memory with --memory", "load the initrd",
				"%llu MiB do not fit beside the kernel", (unsigned long long)img.size >> 20);
	else
		ret = boot_place(m, at, img.bytes, img.size, "the initrd", e);
	*gpa = at;
	*len = img.size;
	free(img.bytes);
	return ret;
}

int boot_cmdline(struct map *m, const struct boot_files *f, uint64_t max, struct error *e)
{
	size_t len = strlen(f->cmdline);
	if (len >= max || len >= BOOT_CMDLINE_MAX)
		return error_set(e, E2BIG, "shorten --append", "pass the kernel command line",
				 "%zu characters, but this kernel takes %llu", len, (unsigned long long)max - 1);
	return boot_place(m, BOOT_CMDLINE, f->cmdline, len + 1, "the command line", e);
}

unsigned boot_memory_map(const struct boot_layout *l, struct boot_e820 out[4])
{
	unsigned n = 0;
	out[n++] = (struct boot_e820){ 0, 0xa0000, 1 };
	out[n++] = (struct boot_e820){ 0xa0000, 0x60000, 2 };
	out[n++] = (struct boot_e820){ 0x100000, l->low_ram - 0x100000, 1 };
	if (l->high_ram)
		out[n++] = (struct boot_e820){ 1ull << 32, l->high_ram, 1 };
	return n;
}

static void put_gdt(struct map *m, struct x86_state *s)
{
	static const uint64_t gdt[4] = { 0, 0, 0x00cf9b000000ffff, 0x00cf93000000ffff };
	map_write(m, BOOT_GDT, gdt, sizeof gdt);
	s->gdtr = (struct x86_table){ BOOT_GDT, sizeof gdt - 1 };
	s->idtr = (struct x86_table){ 0, 0 };
}

static void flat_segments(struct x86_state *s, uint16_t code_attr)
{
	struct x86_segment data = { .limit = UINT32_MAX, .selector = 0x18, .attr = 0xc093 };
	for (int i = 0; i < SEG_COUNT; i++)
		s->seg[i] = data;
	s->seg[SEG_CS] = (struct x86_segment){ .limit = UINT32_MAX, .selector = 0x10, .attr = code_attr };
	s->tr = (struct x86_segment){ .limit = 0xffff, .attr = 0x8b };
	s->ldtr = (struct x86_segment){ .limit = 0xffff, .attr = 0x82 };
	s->rflags = FLAG_FIXED;
}

void boot_flat32(struct map *m, struct x86_state *s, uint32_t eip)
{
	put_gdt(m, s);
	flat_segments(s, 0xc09b);
	s->cr0 = CR0_PE | CR0_ET;
	s->cr4 = 0;
	s->efer = 0;
	s->rip = eip;
}

/* PML4, one PDPT, four page directories of 2 MiB pages */
void boot_long(struct map *m, struct x86_state *s, uint64_t rip)
{
	uint64_t table[512] = { BOOT_PAGES + 0x1003 };
	map_write(m, BOOT_PAGES, table, sizeof table);
	for (unsigned i = 0; i < 512; i++)
		table[i] = i < 4 ? BOOT_PAGES + 0x2003 + 0x1000 * i : 0;
	map_write(m, BOOT_PAGES + 0x1000, table, sizeof table);
	for (uint64_t dir = 0; dir < 4; dir++) {
		for (uint64_t i = 0; i < 512; i++)
			table[i] = (dir * 512 + i) << 21 | 0x83;
		map_write(m, BOOT_PAGES + 0x2000 + 0x1000 * dir, table, sizeof table);
	}
	put_gdt(m, s);
	flat_segments(s, 0xa09b);
	s->cr0 = CR0_PE | CR0_ET | CR0_PG;
	s->cr3 = BOOT_PAGES;
	s->cr4 = CR4_PAE;
	s->efer = EFER_LME | EFER_LMA;
	s->rip = rip;
}

static int multiboot_header(const struct boot_image *k, uint32_t *at)
{
	for (uint32_t i = 0; i + 12 <= k->size && i < 8192; i += 4) {
		uint32_t magic = load_le32(k->bytes + i), flags = load_le32(k->bytes + i + 4);
		if (magic == 0x1badb002 && magic + flags + load_le32(k->bytes + i + 8) == 0) {
			*at = i;
			return 1;
		}
	}
	return 0;
}

int boot_load(struct map *m, const struct boot_layout *l, const struct boot_files *f, struct x86_state *bsp,
	      struct error *e)
{
	struct boot_image k;
	uint32_t header;
	int ret = file_load(&k, f->kernel, "kernel", e);
	if (ret)
		return ret;
	if (k.size > 0x206 && !memcmp(k.bytes + 0x202, "HdrS", 4))
		ret = boot_bzimage(m, l, f, &k, bsp, e);
	else if (multiboot_header(&k, &header))
		ret = boot_multiboot(m, l, f, &k, header, bsp, e);
	else if (k.size > 64 && !memcmp(k.bytes, "\177ELF", 4))
		ret = boot_elf_pvh(m, l, f, &k, bsp, e);
	else
		ret = error_set(e, ENOEXEC, "give a bzImage, a PVH ELF vmlinux or a multiboot image", "load the kernel",
				"'%s' is none of these", f->kernel);
	free(k.bytes);
	return ret;
}
