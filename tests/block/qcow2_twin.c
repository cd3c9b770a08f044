/*
 * The twin: an image of the same features on which QEMU alone does what is done to ours.  A round's sequence is put down
 * as a script of the shell while we do it, and carried out at the end of the round.
 */
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include "qcow2_random.h"

void twin_make(struct state *s)
{
	char options[400], backing[80] = "";

	if (!s->twin.on)
		return;
	mix_qemu(s->mix, "twin", options);
	if (*s->base) {
		if (shell("cp %s twin-%s", s->base, s->base))
			die("the twin's backing file");
		snprintf(backing, sizeof(backing), "-b twin-%s -F %s", s->base, s->base_format);
	}
	if (shell("rm -f twin.data; qemu-img create -f qcow2 %s -o %s %s twin.qcow2 %lu",
		  s->mix->luks ? "--object secret,id=k,file=key" : "", options, backing, s->size))
		die("the twin");
}

static FILE *script(struct state *s)
{
	if (!s->twin.script) {
		s->twin.script = fopen("twin.sh", "w");
		fputs("set -e\n", s->twin.script);
	}
	return s->twin.script;
}

static void io_end(struct state *s)
{
	if (s->twin.in_io)
		fputs("END\n", script(s));
	s->twin.in_io = false;
}

static void io_begin(struct state *s)
{
	char opts[256];

	if (!s->twin.in_io)
		fprintf(script(s), "qemu-io -d unmap %s <<'END'\n", image(s, "twin.qcow2", opts));
	s->twin.in_io = true;
}

void twin_io(struct state *s, const char *fmt, ...)
{
	va_list args;

	if (!s->twin.on)
		return;
	io_begin(s);
	va_start(args, fmt);
	vfprintf(script(s), fmt, args);
	va_end(args);
	fputc('\n', script(s));
}

void twin_command(struct state *s, const char *fmt, ...)
{
	va_list args;

	if (!s->twin.on)
		return;
	io_end(s);
	va_start(args, fmt);
	vfprintf(script(s), fmt, args);
	va_end(args);
	fputc('\n', script(s));
}

void twin_write(struct state *s, uint64_t offset, const void *buf, size_t len, bool compressed)
{
	char name[32];

	if (!s->twin.on)
		return;
	snprintf(name, sizeof(name), "blob%u", s->twin.blobs++);
	file_write(name, buf, len);
	compressed &= !mix_old(s->mix);
	/* QEMU does not write them over what is there, and with version 2 a discard leaves that.  And it goes on to pack
	 * them into a cluster that was freed and used again meanwhile, unless it has been started anew. */
	if (compressed) {
		io_end(s);
		twin_io(s, "discard -q %lu %zu", offset, len);
	}
	twin_io(s, "write -q %s -s %s %lu %zu", compressed ? "-c" : "", name, offset, len);
	if (compressed)
		io_end(s);
}

void twin_zero(struct state *s, uint64_t offset, uint64_t len, bool unmap)
{
	twin_io(s, "write -q -z %s %lu %lu", unmap ? "-u" : "", offset, len);
}

void twin_compare(struct state *s)
{
	const char *luks = s->mix->luks ? "--object secret,id=k,file=key --image-opts" : "-f qcow2 -F qcow2";
	const char *open = s->mix->luks ? "driver=qcow2,encrypt.key-secret=k,file.filename=" : "";
	char opts[256];

	if (!s->twin.on)
		return;
	io_end(s);
	if (s->twin.script && (fclose(s->twin.script) || shell("sh twin.sh && rm -f blob*")))
		die("operation %u: QEMU's twin", s->op);
	s->twin.script = NULL;
	s->twin.blobs = 0;
	if (shell("qemu-img check %s", image(s, "twin.qcow2", opts)))
		die("operation %u: qemu-img check of the twin", s->op);
	if (shell("qemu-img compare %s %simage.qcow2 %stwin.qcow2", luks, open, open))
		die("operation %u: ours and QEMU's differ", s->op);
}
