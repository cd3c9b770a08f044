/* ELF images: PVH (Xen's x86/HVM direct boot ABI, note 18) and multiboot 1 (specification 0.6.96). */
#include <elf.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/checked.h"
#include "base/endian.h"
#include "machine/boot.h"
#include "memory/map.h"

#define NOTE_PHYS32_ENTRY 18u
#define PVH_MAGIC 0x336ec578u

struct segment { uint64_t offset, gpa, file_size, memory_size; uint32_t type; };

static int refuse(struct error *e, const char *path, const char *why)
{
	return error_set(e, ENOEXEC, "get the kernel file again", "load the kernel", "'%s' %s", path, why);
}

static unsigned segment_count(const struct boot_image *k)
{
	bool wide = k->bytes[EI_CLASS] == ELFCLASS64;
	return k->size < sizeof(Elf64_Ehdr) ? 0 : load_le16(k->bytes + (wide ? 56 : 44));
}

/* Program header i, checked against the file. */
static bool segment_get(const struct boot_image *k, unsigned i, struct segment *s)
{
	bool wide = k->bytes[EI_CLASS] == ELFCLASS64;
	uint64_t table = wide ? load_le64(k->bytes + 32) : load_le32(k->bytes + 28);
	uint64_t entry = load_le16(k->bytes + (wide ? 54 : 42)), at;
	if (entry < (wide ? 56u : 32u) || !checked_add(table, entry * i, &at) || !range_inside(at, entry, k->size))
		return false;
	const uint8_t *p = k->bytes + at;
	if (wide)
		*s = (struct segment){ load_le64(p + 8), load_le64(p + 24), load_le64(p + 32), load_le64(p + 40), load_le32(p) };
	else
		*s = (struct segment){ load_le32(p + 4), load_le32(p + 12), load_le32(p + 16), load_le32(p + 20), load_le32(p) };
	return range_inside(s->offset, s->file_size, k->size) && s->memory_size >= s->file_size;
}

static int load_segments(struct map *m, const struct boot_image *k, uint64_t *end, struct error *e)
{
	*end = 0;
	for (unsigned i = 0; i < segment_count(k); i++) {
		struct segment s;
		if (!segment_get(k, i, &s))
			return refuse(e, k->path, "is truncated or has a bad program header");
		if (s.type != PT_LOAD || !s.memory_size)
			continue;
		if (s.gpa + s.memory_size < s.gpa || !map_ptr(m, s.gpa, s.memory_size, true))
			return error_set(e, ENOMEM, "give the guest more memory with --memory", "load the kernel",
					 "a segment at %#llx does not fit", (unsigned long long)s.gpa);
		map_write(m, s.gpa, k->bytes + s.offset, s.file_size);
		if (s.gpa + s.memory_size > *end)
			*end = s.gpa + s.memory_size;
	}
	return *end ? 0 : refuse(e, k->path, "has nothing to load");
}

static bool pvh_entry(const struct boot_image *k, uint32_t *entry)
{
	for (unsigned i = 0; i < segment_count(k); i++) {
		struct segment s;
		if (!segment_get(k, i, &s) || s.type != PT_NOTE)
			continue;
		for (uint64_t at = 0; at + 12 <= s.file_size;) {
			const uint8_t *n = k->bytes + s.offset + at;
			uint64_t name = (load_le32(n) + 3ull) & ~3ull, desc = load_le32(n + 4), next = 12 + name + ((desc + 3) & ~3ull);
			if (next > s.file_size - at)
				break;
			if (load_le32(n + 8) == NOTE_PHYS32_ENTRY && load_le32(n) == 4 && !memcmp(n + 12, "Xen", 4) && desc >= 4) {
				*entry = load_le32(n + 12 + name);
				return true;
			}
			at += next;
		}
	}
	return false;
}

int boot_elf_pvh(struct map *m, const struct boot_layout *l, const struct boot_files *f, const struct boot_image *k,
		 struct x86_state *bsp, struct error *e)
{
	uint32_t entry = 0;
	uint64_t end, initrd, initrd_len;
	int ret;
	if (!pvh_entry(k, &entry))
		return refuse(e, k->path, "has no PVH entry note");
	if ((ret = load_segments(m, k, &end, e)) || (ret = boot_cmdline(m, f, BOOT_CMDLINE_MAX, e)) ||
	    (ret = boot_initrd(m, l, f, 1ull << 32, end, &initrd, &initrd_len, e)))
		return ret;
	/* hvm_start_info, a module list behind it, then the memory map */
	uint8_t info[256] = { 0 };
	struct boot_e820 map[4];
	unsigned n = boot_memory_map(l, map);
	store_le32(info, PVH_MAGIC);
	store_le32(info + 4, 1);
	store_le32(info + 12, initrd_len ? 1 : 0);
	store_le64(info + 16, BOOT_INFO + 64);
	store_le64(info + 24, BOOT_CMDLINE);
	store_le64(info + 32, BOOT_ACPI);
	store_le64(info + 40, BOOT_INFO + 96);
	store_le32(info + 48, n);
	store_le64(info + 64, initrd);
	store_le64(info + 72, initrd_len);
	for (unsigned i = 0; i < n; i++) {
		store_le64(info + 96 + 24 * i, map[i].gpa);
		store_le64(info + 104 + 24 * i, map[i].size);
		store_le32(info + 112 + 24 * i, map[i].type);
	}
	if ((ret = boot_place(m, BOOT_INFO, info, sizeof info, "the start info", e)))
		return ret;
	boot_flat32(m, bsp, entry);
	bsp->gpr[REG_RBX] = BOOT_INFO;
	return 0;
}

/* The a.out fields of a multiboot header (flag 16): load a flat part of the file. */
static int load_flat(struct map *m, const struct boot_image *k, uint32_t header, uint32_t *entry, uint64_t *load_end,
		     struct error *e)
{
	const uint8_t *h = k->bytes + header;
	if (header + 32ull > k->size)
		return refuse(e, k->path, "has a truncated multiboot header");
	uint32_t header_gpa = load_le32(h + 12), start = load_le32(h + 16), end = load_le32(h + 20), bss = load_le32(h + 24);
	uint64_t offset = (uint64_t)header - (header_gpa - start);
	uint64_t len = end ? end - start : k->size - offset;
	if (header_gpa < start || header_gpa - start > header || (end && end < start) || !range_inside(offset, len, k->size))
		return refuse(e, k->path, "has a multiboot header that does not fit the file");
	if (bss > start + len && !map_ptr(m, start, bss - start, true))
		return error_set(e, ENOMEM, "give the guest more memory with --memory", "load the kernel", "its bss does not fit");
	*entry = load_le32(h + 28);
	*load_end = bss > start + len ? bss : start + len;
	return boot_place(m, start, k->bytes + offset, len, "the kernel", e);
}

int boot_multiboot(struct map *m, const struct boot_layout *l, const struct boot_files *f, const struct boot_image *k,
		   uint32_t header, struct x86_state *bsp, struct error *e)
{
	uint64_t end = 0, initrd, initrd_len;
	uint32_t entry = 0;
	int ret;
	if (load_le32(k->bytes + header + 4) >> 16 & 1) {
		ret = load_flat(m, k, header, &entry, &end, e);
	} else if (k->size > 64 && !memcmp(k->bytes, "\177ELF", 4)) {
		entry = load_le32(k->bytes + 24);
		ret = load_segments(m, k, &end, e);
	} else {
		ret = refuse(e, k->path, "is a multiboot image, but neither ELF nor with load addresses");
	}
	if (ret || (ret = boot_cmdline(m, f, BOOT_CMDLINE_MAX, e)) ||
	    (ret = boot_initrd(m, l, f, 1ull << 32, end, &initrd, &initrd_len, e)))
		return ret;
	/* information structure, 3.3: flags, mem_lower/upper KiB, cmdline, modules, memory map */
	uint8_t info[384] = { 0 };
	struct boot_e820 map[4];
	unsigned n = boot_memory_map(l, map);
	store_le32(info, 1 | 1 << 2 | (initrd_len ? 1 << 3 : 0) | 1 << 6);
	store_le32(info + 4, 640);
	store_le32(info + 8, (uint32_t)((l->low_ram - 0x100000) >> 10));
	store_le32(info + 16, BOOT_CMDLINE);
	store_le32(info + 20, initrd_len ? 1 : 0);
	store_le32(info + 24, BOOT_INFO + 128);
	store_le32(info + 44, 24 * n);
	store_le32(info + 48, BOOT_INFO + 160);
	store_le32(info + 128, (uint32_t)initrd);
	store_le32(info + 132, (uint32_t)(initrd + initrd_len));
	for (unsigned i = 0; i < n; i++) {
		store_le32(info + 160 + 24 * i, 20);
		memcpy(info + 164 + 24 * i, &map[i], sizeof *map);
	}
	if ((ret = boot_place(m, BOOT_INFO, info, sizeof info, "the boot information", e)))
		return ret;
	boot_flat32(m, bsp, entry);
	bsp->gpr[REG_RAX] = 0x2badb002;
	bsp->gpr[REG_RBX] = BOOT_INFO;
	return 0;
}
