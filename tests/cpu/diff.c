/*
 * diff [-n count] [-s seed] [-m MNEMONIC] [-e interp,trans] [-b 32|64] [-q | -1] [-x limit] [-c]
 *   -n cases   -s seed   -m only this mnemonic   -e engines compared with native   -b only code of so many bits
 *   -q sequences only   -1 single instructions only   -x stop after this many differences (default 10)
 *   -c say which rows of the opcode table are exempt and why; any other that was not tried is a failure
 * Exit code 0: no difference.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "cpu/format.h"
#include "diff.h"

enum { INTERP, TRANS, ENGINES };
static const char *const engine_names[] = { "interp", "trans" };

struct session {
	struct native *native;
	struct diff_shared *sh;
	struct soft *engine[ENGINES];
	struct gen gen;
	unsigned differences, limit;
	bool replayed;
	bool loose;		/* a case of the batch has left memory that may differ */
	bool silent;		/* only look whether there is a difference */
	unsigned bits;		/* 32, 64; 0: both */
	uint64_t cases, ended, faulted;
	struct diff_case c[DIFF_CASES];
	uint8_t start[DATA_BYTES + PLAIN_BYTES + DEVICE_BYTES + 2 * END_BYTES + STACK_BYTES + WRITABLE_BYTES];	/* the areas at the batch's start */
};

/* jmp EXIT_VA; from 32-bit code to the segment of 64-bit code. */
static void exit_put(uint8_t *at, uint64_t va, bool wide)
{
	uint32_t to = (uint32_t)(wide ? EXIT_VA - va - 5 : EXIT_VA);
	uint16_t selector = SEL_CODE64;
	at[0] = wide ? 0xe9 : 0xea;
	memcpy(at + 1, &to, 4);
	if (!wide)
		memcpy(at + 5, &selector, 2);
}

static uint8_t *native_area(const struct session *d, unsigned i) { return (uint8_t *)d->sh + diff_areas[i].offset; }

static void area_put(struct session *d, unsigned e, unsigned i, const uint8_t *from)
{
	uint8_t *to = soft_area(d->engine[e], i);
	if (i == AREA_CODE && !memcmp(to, from, diff_areas[i].bytes))
		return;
	memcpy(to, from, diff_areas[i].bytes);
	if (i == AREA_CODE)
		soft_code_changed(d->engine[e]);
}

static void memory_load(struct session *d)
{
	const uint8_t *from = d->start;
	for (unsigned i = 0; i < AREAS; from += diff_areas[i++].bytes) {
		memcpy(native_area(d, i), from, diff_areas[i].bytes);
		for (unsigned e = 0; e < ENGINES; e++)
			if (d->engine[e])
				area_put(d, e, i, from);
	}
}

/* The engine's memory becomes the host's. */
static void memory_follow(struct session *d, unsigned e)
{
	for (unsigned i = 0; i < AREAS; i++)
		area_put(d, e, i, native_area(d, i));
}

static void code_build(struct session *d, int mode)
{
	for (unsigned i = 0; i < DIFF_CASES; i++) {
		uint8_t *slot = d->sh->code + i * SLOT_BYTES;
		bool wide = d->bits ? d->bits == 64 : i % 4 < 2;
		gen_case(&d->gen, i, mode == 'q' || (mode == 'b' && i % 2), wide, &d->c[i], &d->sh->in[i]);
		d->sh->wide[i] = wide;
		memcpy(slot, d->c[i].code, SLOT_BYTES);
		exit_put(slot + SLOT_START + d->c[i].len, d->sh->in[i].rip + d->c[i].len, wide);
	}
	for (unsigned e = 0; e < ENGINES; e++) {
		if (!d->engine[e])
			continue;
		memcpy(soft_code(d->engine[e]), d->sh->code, CODE_BYTES);
		soft_code_changed(d->engine[e]);
	}
}

static void batch_build(struct session *d, int mode)
{
	uint8_t *to = d->start;
	gen_values(&d->gen);
	code_build(d, mode);
	for (unsigned i = 0; i < AREAS; to += diff_areas[i++].bytes)
		if (i == AREA_CODE)
			memcpy(to, native_area(d, i), WRITABLE_BYTES);
		else if (i == AREA_STACK)
			gen_stack(&d->gen, to);
		else
			gen_memory(&d->gen, to, diff_areas[i].bytes);
	memory_load(d);
}

/* --- comparison --- */

static void registers_cut(struct diff_state *s)
{
	for (unsigned i = 0; i < 8; i++)
		s->gpr[i] = (uint32_t)s->gpr[i];
	memset(s->gpr + 8, 0, 8 * sizeof *s->gpr);
}

static void normalise(struct diff_state *s, bool wide, bool native)
{
	struct x86_xsave *f = (struct x86_xsave *)s->fpu;
	if (!native && s->vector == EXC_PF && s->rip == native_exit())
		s->vector = VECTOR_EXIT;
	if (s->vector == VECTOR_EXIT)
		s->rip = EXIT_VA;
	if (!wide)
		registers_cut(s);		/* what 64-bit code sees of them is the CPU's choice */
	if (s->vector != EXC_PF)
		s->cr2 = 0;
	if (s->vector == EXC_PF && (s->cr2 < CODE_VA || s->cr2 > STACK_VA + STACK_BYTES))
		s->error &= ~1u;		/* kernel addresses: the host's are not the guest's */
	if (s->vector != EXC_PF && s->vector != EXC_GP)
		s->error = 0;
	f->fop = 0;
	f->fip = f->fdp = 0;
	f->mxcsr_mask = 0;
	memset(f->rsvd1, 0, sizeof f->rsvd1);
	if (!(f->xstate_bv & 1)) {
		f->fcw = 0x37f;
		f->fsw = 0;
		f->ftw_abridged = 0;
		memset(f->st, 0, sizeof f->st);
	}
	for (unsigned i = 0; i < 8; i++)
		memset(f->st[i].b + 10, 0, 6);
	if (!(f->xstate_bv & 2))
		memset(f->xmm, 0, sizeof f->xmm);
	if (!(f->xstate_bv & 4))
		memset(f->ymmh, 0, sizeof f->ymmh);
	if (!(f->xstate_bv & 0x20))
		memset(f->opmask, 0, sizeof f->opmask);
	if (!(f->xstate_bv & 0x40))
		memset(f->zmmh, 0, sizeof f->zmmh);
	if (!(f->xstate_bv & 0x80))
		memset(f->zmm16, 0, sizeof f->zmm16);
	f->xstate_bv = 0;
}

static bool same(const struct diff_state *a, const struct diff_state *b, uint64_t flags)
{
	return !memcmp(a->gpr, b->gpr, sizeof a->gpr) && a->rip == b->rip && !((a->rflags ^ b->rflags) & flags) &&
	       a->vector == b->vector && a->error == b->error && a->cr2 == b->cr2 && !memcmp(a->fpu, b->fpu, 416) &&
	       !memcmp(a->fpu + 576, b->fpu + 576, 256) && !memcmp(a->fpu + 1088, b->fpu + 1088, XSAVE_BYTES - 1088);
}

static bool memory_same(struct session *d, struct soft *s)
{
	for (unsigned i = 0; i < AREAS; i++)
		if (memcmp(native_area(d, i), soft_area(s, i), diff_areas[i].bytes))
			return false;
	return true;
}

/* --- reproducers --- */

static void print_code(const struct session *d, unsigned i)
{
	const uint8_t *p = d->c[i].code + SLOT_START;
	uint64_t va = d->sh->in[i].rip;
	for (unsigned at = 0; at < d->c[i].len;) {
		struct insn in;
		char text[96] = "(bad)";
		unsigned len = d->c[i].len - at;
		if (insn_decode(&in, p + at, len, d->c[i].wide ? INSN_64 : INSN_32) == DECODE_OK) {
			len = in.len;
			insn_format(text, sizeof text, &in, va + at, SYNTAX_INTEL);
		}
		printf("  %llx ", (unsigned long long)va + at);
		for (unsigned b = 0; b < len; b++)
			printf("%02x", p[at + b]);
		printf("  %s\n", text);
		at += len;
	}
}

static void print_q(const char *name, uint64_t in, uint64_t native, uint64_t soft)
{
	if (native != soft)
		printf("  %-6s in %016llx native %016llx got %016llx\n", name, (unsigned long long)in,
		       (unsigned long long)native, (unsigned long long)soft);
}

static void print_bytes(const char *name, unsigned i, const uint8_t *in, const uint8_t *native, const uint8_t *soft)
{
	const uint8_t *all[] = { in, native, soft };
	if (!memcmp(native, soft, 16))
		return;
	printf("  %s%u", name, i);
	for (unsigned k = 0; k < 3; k++) {
		printf(k == 0 ? " in " : k == 1 ? " native " : " got ");
		for (int b = 15; b >= 0; b--)
			printf("%02x", all[k][b]);
	}
	printf("\n");
}

static void print_states(const struct diff_state *in, const struct diff_state *n, const struct diff_state *s)
{
	static const char *const names[] = { "rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi", "r8", "r9", "r10",
					     "r11", "r12", "r13", "r14", "r15" };
	const struct x86_xsave *fi = (const void *)in->fpu, *fn = (const void *)n->fpu, *fs = (const void *)s->fpu;
	for (unsigned i = 0; i < 16; i++)
		print_q(names[i], in->gpr[i], n->gpr[i], s->gpr[i]);
	print_q("rip", in->rip, n->rip, s->rip);
	print_q("rflags", in->rflags, n->rflags, s->rflags);
	print_q("vector", 0, n->vector, s->vector);
	print_q("error", 0, n->error, s->error);
	print_q("cr2", 0, n->cr2, s->cr2);
	print_q("fcw", fi->fcw, fn->fcw, fs->fcw);
	print_q("fsw", fi->fsw, fn->fsw, fs->fsw);
	print_q("ftw", fi->ftw_abridged, fn->ftw_abridged, fs->ftw_abridged);
	print_q("mxcsr", fi->mxcsr, fn->mxcsr, fs->mxcsr);
	for (unsigned i = 0; i < 8; i++)
		print_bytes("st", i, fi->st[i].b, fn->st[i].b, fs->st[i].b);
	for (unsigned i = 0; i < 16; i++)
		print_bytes("xmm", i, fi->xmm[i].b, fn->xmm[i].b, fs->xmm[i].b);
	for (unsigned i = 0; i < 16; i++)
		print_bytes("ymmh", i, fi->ymmh[i].b, fn->ymmh[i].b, fs->ymmh[i].b);
	for (unsigned i = 0; i < 8; i++) {
		char name[3] = { 'k', (char)('0' + i), 0 };
		print_q(name, fi->opmask[i], fn->opmask[i], fs->opmask[i]);
	}
	for (unsigned i = 0; i < 32; i++)
		print_bytes("zmmh, halves: ", i, fi->zmmh[i / 2].b + i % 2 * 16, fn->zmmh[i / 2].b + i % 2 * 16,
			    fs->zmmh[i / 2].b + i % 2 * 16);
	for (unsigned i = 0; i < 64; i++)
		print_bytes("zmm16.., quarters: ", i, fi->zmm16[i / 4].b + i % 4 * 16, fn->zmm16[i / 4].b + i % 4 * 16,
			    fs->zmm16[i / 4].b + i % 4 * 16);
}

static void print_memory(struct session *d, unsigned e)
{
	static const char *const names[AREAS] = { "data", "plain", "device", "next", "high", "stack", "code" };
	unsigned shown = 0;
	for (unsigned a = 0; a < AREAS; a++) {
		const uint8_t *native = native_area(d, a), *soft = soft_area(d->engine[e], a);
		for (unsigned i = 0; i < diff_areas[a].bytes && shown < 16; i++)
			if (native[i] != soft[i]) {
				printf("  %s %llx native %02x got %02x\n", names[a], (unsigned long long)diff_areas[a].va + i,
				       native[i], soft[i]);
				shown++;
			}
	}
}

static void print_context(const struct diff_state *in)
{
	const struct x86_xsave *f = (const void *)in->fpu;
	for (unsigned i = 0; i < 8; i++)
		printf("%s k%u=%llx", i ? "" : " ", i, (unsigned long long)f->opmask[i]);
	printf("  mxcsr %x fcw %x fsw %x ftw %x rflags %llx", f->mxcsr, f->fcw, f->fsw, f->ftw_abridged,
	       (unsigned long long)in->rflags);
	for (unsigned i = 0; i < 16; i++)
		printf("%s r%u=%llx", i % 4 ? "" : "\n ", i, (unsigned long long)in->gpr[i]);
	printf("\n");
}

static void report(struct session *d, unsigned e, unsigned i, const struct diff_state *native,
		   const struct diff_state *soft, bool memory)
{
	d->differences++;
	if (d->silent)
		return;
	printf("%s differs from native:\n", engine_names[e]);
	print_code(d, i);
	print_states(&d->sh->in[i], native, soft);
	if (memory)
		print_memory(d, e);
	print_context(&d->sh->in[i]);
	fflush(stdout);
}

/* --- running --- */

/* MXCSR.MM, which AMD has and our models do not: they raise #GP. */
static bool loaded_mm(const struct diff_state *native)
{
	return ((const struct x86_xsave *)native->fpu)->mxcsr >> 16;
}

/* Memory that a faulting instruction may have written: here as on the host. As long as a batch runs through, the host's
 * memory is that of its end, so only what is known can be stored; the rest is seen when the cases run one by one. */
static void choice_store(struct session *d, unsigned e, const struct choice *ch, bool memory)
{
	for (unsigned i = 0; i < ch->bytes; i++)
		for (unsigned a = 0; a < AREAS; a++) {
			uint64_t at = ch->va + i - diff_areas[a].va;
			if (at >= diff_areas[a].bytes)
				continue;
			if (ch->known)
				soft_area(d->engine[e], a)[at] = (uint8_t)(ch->value >> 8 * i);
			else if (memory)
				soft_area(d->engine[e], a)[at] = native_area(d, a)[at];
			d->loose |= !ch->known;
		}
}

static void case_check(struct session *d, unsigned e, unsigned i, bool memory)
{
	const struct diff_case *c = &d->c[i];
	struct diff_state native = d->sh->out[i], soft;
	struct choice ch;
	uint64_t flags = ~(native.vector == VECTOR_EXIT || d->c[i].insns == 1 ? d->c[i].flags_undefined : 0);
	if (loaded_mm(&native))
		return;
	if (e == TRANS && native.vector != VECTOR_EXIT)
		flags &= ~(uint64_t)FLAGS_ARITH;	/* dead ones may be stale: docs/cpu-soft.md, Precision */
	if (!soft_run_case(d->engine[e], c->wide, &d->sh->in[i], &soft)) {
		d->differences++;
		if (!d->silent) {
			printf("%s: shut down\n", engine_names[e]);
			print_code(d, i);
		}
		return;
	}
	if (soft.rip >> 12 == VSYSCALL_VA >> 12)
		return;		/* a jump into the page that Linux emulates for its processes */
	normalise(&native, c->wide, true);
	normalise(&soft, c->wide, false);
	if (!choice_apply(c, &d->sh->in[i], &native, &soft, &ch)) {
		d->loose = true;
		return;
	}
	choice_store(d, e, &ch, memory);
	flags &= ~ch.flags;
	if (!same(&native, &soft, flags) || (memory && !memory_same(d, d->engine[e])))
		report(d, e, i, &native, &soft, memory);
}

static bool native_go(struct session *d, unsigned first, unsigned count)
{
	unsigned at;
	if (native_run(d->native, first, count, &at))
		return true;
	printf("native: no answer\n");
	print_code(d, at);
	print_context(&d->sh->in[at]);
	d->differences++;
	return false;
}

/* Some case of the batch differs, maybe only because one before it left other memory: run them one by one. */
static void batch_replay(struct session *d, unsigned e)
{
	memory_load(d);
	for (unsigned i = 0; i < DIFF_CASES && d->differences < d->limit; i++) {
		if (!native_go(d, i, 1))
			return;
		case_check(d, e, i, true);
		memory_follow(d, e);
	}
}

/* No case differs by itself: one changes how a later one runs. Shows the later ones. */
static void batch_show(struct session *d, unsigned e)
{
	unsigned before = d->differences;
	printf("%s: differs, but not when run one by one:\n", engine_names[e]);
	memory_load(d);
	if (!native_go(d, 0, DIFF_CASES))
		return;
	for (unsigned i = 0; i < DIFF_CASES && d->differences < before + 2; i++)
		case_check(d, e, i, false);
	if (d->differences == before) {
		printf("%s: and not in the same order again\n", engine_names[e]);
		print_memory(d, e);
		d->differences++;
	}
}

static void batch_run(struct session *d)
{
	bool skips = false;
	if (!native_go(d, 0, DIFF_CASES))
		return;
	for (unsigned i = 0; i < DIFF_CASES; i++) {
		skips |= loaded_mm(&d->sh->out[i]);
		if (d->sh->out[i].vector == VECTOR_EXIT)
			d->ended++;
		else
			d->faulted++;
	}
	for (unsigned e = 0; e < ENGINES; e++) {
		unsigned before = d->differences;
		if (!d->engine[e])
			continue;
		if (d->replayed) {	/* the engine before: the batch's start once more */
			memory_load(d);
			if (!native_go(d, 0, DIFF_CASES))
				return;
			d->replayed = false;
		}
		d->silent = true;
		d->loose = false;
		for (unsigned i = 0; i < DIFF_CASES; i++)
			case_check(d, e, i, false);
		d->silent = false;
		if (!skips && d->differences == before && memory_same(d, d->engine[e]))
			continue;
		d->differences = before;
		batch_replay(d, e);
		if (d->differences == before && !skips && !d->loose)
			batch_show(d, e);
		d->replayed = true;
	}
	d->cases += DIFF_CASES;
}

static void usage(void)
{
	fprintf(stderr, "usage: diff [-n count] [-s seed] [-m MNEMONIC] [-e interp,trans] [-b 32|64] [-q | -1] [-x limit] [-c]\n");
	exit(2);
}

static void session_init(struct session *d, const char *engines, struct cpu_model *model)
{
	d->native = native_new(cpu_model_xcr0_mask(model) & 0xe7);
	if (!d->native) {
		perror("diff: start the native child");
		exit(2);
	}
	d->sh = native_shared(d->native);
	for (unsigned e = 0; e < ENGINES; e++)
		if (strstr(engines, engine_names[e]))
			d->engine[e] = soft_new(model, e == INTERP);
	d->gen.model = model;
	gen_init(&d->gen);
	if (!(d->gen.rows[0].n + d->gen.rows[1].n)) {
		fprintf(stderr, "diff: no row of the table has this mnemonic, or user mode cannot run it\n");
		exit(2);
	}
	if (!d->gen.rows[0].n || !d->gen.rows[1].n)
		d->bits = d->gen.rows[0].n ? 32 : 64;
	gen_values(&d->gen);
	gen_memory(&d->gen, d->sh->rom, ROM_BYTES);
	for (unsigned e = 0; e < ENGINES; e++)
		if (d->engine[e]) {
			memcpy(soft_rom(d->engine[e]), d->sh->rom, ROM_BYTES);
			memcpy(soft_exit(d->engine[e]), d->sh->exit, EXIT_PAGE_BYTES);
		}
}

int main(int argc, char **argv)
{
	struct cpu_model_config mc = { .name = "max", .tsc_hz = 1000000000 };
	struct session *d = aligned_alloc(64, (sizeof *d + 63) & ~63ul);
	const char *engines = "interp,trans";
	struct cpu_model *model;
	struct error err;
	uint64_t count = 100000;
	int mode = 'b', opt;
	bool coverage = false;
	memset(d, 0, sizeof *d);
	d->limit = 10;
	d->gen.seed = 1;
	while ((opt = getopt(argc, argv, "n:s:m:e:x:b:q1c")) != -1)
		switch (opt) {
		case 'n': count = strtoull(optarg, NULL, 0); break;
		case 's': d->gen.seed = strtoull(optarg, NULL, 0); break;
		case 'm': d->gen.filter = optarg; break;
		case 'e': engines = optarg; break;
		case 'x': d->limit = (unsigned)strtoul(optarg, NULL, 0); break;
		case 'b': d->bits = (unsigned)strtoul(optarg, NULL, 0); break;
		case 'c': coverage = true; break;
		case 'q': case '1': mode = opt; break;
		default: usage();
		}
	if (cpu_model_new(&model, &mc, &err) < 0)
		exit(2);
	session_init(d, engines, model);
	while (d->cases < count && d->differences < d->limit) {
		batch_build(d, mode);
		batch_run(d);
	}
	unsigned found = d->differences;
	if (coverage)
		found += rows_report(&d->gen, true);
	printf("%llu cases over %u and %u rows: %llu ran, %llu faulted; %u differences\n", (unsigned long long)d->cases,
	       d->gen.rows[0].n, d->gen.rows[1].n, (unsigned long long)d->ended, (unsigned long long)d->faulted, d->differences);
	native_free(d->native);
	for (unsigned e = 0; e < ENGINES; e++)
		if (d->engine[e])
			soft_free(d->engine[e]);
	cpu_model_free(model);
	free(d);
	return found != 0;
}
