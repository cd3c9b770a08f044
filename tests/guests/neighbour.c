/*
 * One of two virtual machines that must not see each other's memory.
 *
 * Command line: role=1 fills its free memory with a pattern, again and again, until it is ended from outside;
 * role=2 looks through its own, which nobody wrote to: it must read zero, pass after pass.
 */
#include "guest.h"

#define FREE_RAM 0x2000000ull	/* 32 MiB; the guest lives below 8 MiB */
#define RAM_END 0x7f00000ull	/* of 128 MiB, without what the firmware tables use */
#define PATTERN 0x5ec7e75ec7e75ec7ull

static unsigned role(void)
{
	const uint32_t *mb = (const uint32_t *)multiboot_info;
	const char *s = mb && mb[0] & 4 ? (const char *)(uint64_t)mb[4] : "";
	for (; *s; s++)
		if (s[0] == 'r' && s[1] == 'o' && s[2] == 'l' && s[3] == 'e' && s[4] == '=')
			return (unsigned)(s[5] - '0');
	return 0;
}

static _Noreturn void fill(void)
{
	for (uint64_t pass = 0;; pass++) {
		for (uint64_t at = FREE_RAM; at < RAM_END; at += 8)
			*(volatile uint64_t *)at = PATTERN;
		if (pass < 2)
			print("filled\n");
	}
}

static void look(void)
{
	for (unsigned pass = 0; pass < 4; pass++) {
		uint64_t seen = 0, where = 0;
		for (uint64_t at = FREE_RAM; at < RAM_END; at += 8) {
			uint64_t v = *(volatile uint64_t *)at;
			if (v && !seen) {
				seen = v;
				where = at;
			}
		}
		check(!seen, "own memory is untouched", "%lx at %lx", seen, where);
	}
}

int main(void)
{
	trap_init();
	if (role() == 1)
		fill();
	look();
	return 0;
}
