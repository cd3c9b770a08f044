/*
 * test386_run interp|trans ROM [PORT]: runs test386.asm's ROM (64 or 128 KiB) from the reset vector.
 *
 * The ROM ends at 1 MiB and again at 4 GiB. It writes the number of each test to port 0x190 and halts where one fails;
 * 0xff: all passed. What it writes to PORT (0: nothing) is text and goes to stdout; the verdict goes to stderr.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "bare.h"

#define POST_PORT 0x190

struct run { struct bare b; unsigned post, text_port; };

static void port_out(void *opaque, uint16_t port, unsigned size, uint32_t value)
{
	struct run *r = opaque;
	if (port == POST_PORT && size == 1)
		r->post = value;
	if (port == r->text_port && port)
		putchar((int)value & 0xff);
	if (r->post == 0xff)
		bare_stop(&r->b);
}

static bool rom_load(struct bare *b, const char *path)
{
	static uint8_t rom[128 << 10];
	struct error e;
	FILE *f = fopen(path, "rb");
	size_t n = f ? fread(rom, 1, sizeof rom, f) : 0;
	if (f)
		fclose(f);
	if (n != 64 << 10 && n != 128 << 10)
		return false;
	memcpy(bare_ram(b, (1 << 20) - n), rom, n);
	return map_add_rom(b->map, (1ull << 32) - n, rom, n, &e) >= 0;
}

int main(int argc, char **argv)
{
	struct run r = { .post = 0x100 };
	struct x86_state s;
	struct error e;
	enum exit_reason why = EXIT_KICKED;
	if (argc < 3 || !bare_init(&r.b, argv[1], 16 << 20, &e) || !rom_load(&r.b, argv[2])) {
		fprintf(stderr, "usage: test386_run interp|trans ROM [PORT]\n");
		return 2;
	}
	r.b.out = port_out;
	r.b.opaque = &r;
	r.text_port = argc > 3 ? (unsigned)strtoul(argv[3], NULL, 0) : 0;
	while (why == EXIT_KICKED && r.post != 0xff)
		why = bare_run(&r.b);
	r.b.ops->get_state(r.b.v, &s);
	fprintf(stderr, "%s: POST %02x%s, at %04x:%08llx\n", argv[1], r.post,
		r.post == 0xff ? ", passed" : why == EXIT_HALT ? ", halted" : ", shut down", s.seg[SEG_CS].selector,
		(unsigned long long)s.rip);
	bare_fini(&r.b);
	return r.post != 0xff;
}
