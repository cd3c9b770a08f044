/* Linux' x86 boot protocol (Documentation/arch/x86/boot.rst): the protected-mode kernel is loaded by us. */
#include <errno.h>
#include <string.h>

#include "base/endian.h"
#include "machine/boot.h"
#include "memory/map.h"

/* Offsets in the setup header, which are also those in the zero page */
enum { SETUP_SECTS = 0x1f1, SYSSIZE = 0x1f4, HEADER = 0x202, VERSION = 0x206, TYPE_OF_LOADER = 0x210,
       LOADFLAGS = 0x211, CODE32_START = 0x214, RAMDISK_IMAGE = 0x218, RAMDISK_SIZE = 0x21c, CMD_LINE_PTR = 0x228,
       INITRD_ADDR_MAX = 0x22c, KERNEL_ALIGNMENT = 0x230, RELOCATABLE = 0x234, XLOADFLAGS = 0x236,
       CMDLINE_SIZE = 0x238, PREF_ADDRESS = 0x258, INIT_SIZE = 0x260 };
enum { ZP_RSDP = 0x70, ZP_E820_ENTRIES = 0x1e8, ZP_E820 = 0x2d0 };
#define XLF_KERNEL_64 1u
#define LOADED_HIGH 1u

static int refuse(struct error *e, const char *path, const char *why)
{
	return error_set(e, ENOEXEC, "get the kernel file again", "load the kernel", "'%s' %s", path, why);
}

static void zero_page(uint8_t *zp, const struct boot_image *k, const struct boot_layout *l)
{
	struct boot_e820 map[4];
	unsigned n = boot_memory_map(l, map), end = 0x202u + k->bytes[0x201];
	memset(zp, 0, 4096);
	memcpy(zp + SETUP_SECTS, k->bytes + SETUP_SECTS, (end < 0x290 ? end : 0x290) - SETUP_SECTS);
	store_le64(zp + ZP_RSDP, BOOT_ACPI);
	zp[ZP_E820_ENTRIES] = (uint8_t)n;
	memcpy(zp + ZP_E820, map, n * sizeof *map);
	zp[TYPE_OF_LOADER] = 0xff;
	zp[LOADFLAGS] &= 0x7f;
	store_le32(zp + CMD_LINE_PTR, BOOT_CMDLINE);
}

int boot_bzimage(struct map *m, const struct boot_layout *l, const struct boot_files *f, const struct boot_image *k,
		 struct x86_state *bsp, struct error *e)
{
	const uint8_t *h = k->bytes;
	if (k->size < 0x270)
		return refuse(e, k->path, "is truncated: its setup header is not whole");
	uint16_t version = load_le16(h + VERSION);
	uint64_t setup = (h[SETUP_SECTS] ? h[SETUP_SECTS] + 1u : 5u) * 512ull;
	uint64_t system = (uint64_t)load_le32(h + SYSSIZE) * 16;
	if (version < 0x206 || !(h[LOADFLAGS] & LOADED_HIGH))
		return refuse(e, k->path, "speaks a boot protocol older than 2.06 or is not a bzImage");
	if (setup >= k->size || system > k->size - setup + 15)
		return refuse(e, k->path, "is truncated: the kernel is longer than the file");
	if (system > k->size - setup)
		system = k->size - setup;
	bool long64 = version >= 0x20c && load_le16(h + XLOADFLAGS) & XLF_KERNEL_64;
	uint64_t at = version >= 0x20a ? load_le64(h + PREF_ADDRESS) : load_le32(h + CODE32_START);
	uint64_t init = version >= 0x20a ? load_le32(h + INIT_SIZE) : system * 4;
	if (init < system)		/* so that the initrd stays clear of the kernel */
		init = system;
	if (at < 0x100000 || at >= l->low_ram || init > l->low_ram - at)
		return error_set(e, ENOMEM, "give the guest more memory with --memory", "load the kernel",
				 "it needs %llu MiB from %#llx on", (unsigned long long)init >> 20, (unsigned long long)at);
	int ret = boot_place(m, at, h + setup, system, "the kernel", e);
	if (ret)
		return ret;
	uint8_t zp[4096];
	zero_page(zp, k, l);
	uint64_t initrd, initrd_len, max = version >= 0x206 ? load_le32(h + CMDLINE_SIZE) + 1ull : 256;
	if ((ret = boot_initrd(m, l, f, (uint64_t)load_le32(h + INITRD_ADDR_MAX) + 1, at + init, &initrd, &initrd_len, e)) ||
	    (ret = boot_cmdline(m, f, max, e)))
		return ret;
	store_le32(zp + RAMDISK_IMAGE, (uint32_t)initrd);
	store_le32(zp + RAMDISK_SIZE, (uint32_t)initrd_len);
	store_le32(zp + CODE32_START, (uint32_t)at);
	if ((ret = boot_place(m, BOOT_INFO, zp, sizeof zp, "the zero page", e)))
		return ret;
	if (long64)
		boot_long(m, bsp, at + 0x200);
	else
		boot_flat32(m, bsp, (uint32_t)at);
	bsp->gpr[REG_RSI] = BOOT_INFO;
	return 0;
}
