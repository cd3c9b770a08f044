#include "vmm/gdb/registers.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { X87_FCTRL, X87_FSTAT, X87_FTAG, X87_FISEG, X87_FIOFF, X87_FOSEG, X87_FOOFF, X87_FOP };
enum reg_kind { GPR, RIP, FLAGS, SEG, ST, X87, XMM, MXCSR, YMMH, BASE, SYSTEM, CR8 };

struct reg { const char *name, *type; uint16_t index; uint8_t bytes, kind; };

static const struct reg regs[] = {
#define FEATURE(name)
#define REG(name, bytes, type, kind, index) { name, type, index, bytes, kind },
#include "vmm/gdb/registers.def"
#undef FEATURE
#undef REG
};
#define REGS (sizeof regs / sizeof *regs)

unsigned gdb_reg_count(void) { return REGS; }
const char *gdb_reg_name(unsigned reg) { return regs[reg].name; }
unsigned gdb_reg_bytes(unsigned reg) { return regs[reg].bytes; }

/* --- x87: the state keeps FXSAVE64's form, with a tag of one bit for each register --- */

static unsigned tags_whole(uint8_t abridged)
{
	unsigned tags = 0;

	for (unsigned i = 0; i < 8; i++)
		tags |= abridged >> i & 1 ? 0 : 3u << 2 * i;
	return tags;
}

static uint8_t tags_abridge(unsigned tags)
{
	unsigned abridged = 0;

	for (unsigned i = 0; i < 8; i++)
		abridged |= (tags >> 2 * i & 3) != 3 ? 1u << i : 0;
	return (uint8_t)abridged;
}

static uint32_t x87_get(const struct x86_xsave *f, unsigned index)
{
	switch (index) {
	case X87_FCTRL: return f->fcw;
	case X87_FSTAT: return f->fsw;
	case X87_FTAG: return tags_whole(f->ftw_abridged);
	case X87_FISEG: return (uint32_t)(f->fip >> 32);
	case X87_FIOFF: return (uint32_t)f->fip;
	case X87_FOSEG: return (uint32_t)(f->fdp >> 32);
	case X87_FOOFF: return (uint32_t)f->fdp;
	default: return f->fop;
	}
}

static void x87_set(struct x86_xsave *f, unsigned index, uint32_t v)
{
	switch (index) {
	case X87_FCTRL: f->fcw = (uint16_t)v; break;
	case X87_FSTAT: f->fsw = (uint16_t)v; break;
	case X87_FTAG: f->ftw_abridged = tags_abridge(v); break;
	case X87_FISEG: f->fip = (f->fip & 0xffffffff) | (uint64_t)v << 32; break;
	case X87_FIOFF: f->fip = (f->fip & ~0xffffffffull) | v; break;
	case X87_FOSEG: f->fdp = (f->fdp & 0xffffffff) | (uint64_t)v << 32; break;
	case X87_FOOFF: f->fdp = (f->fdp & ~0xffffffffull) | v; break;
	case X87_FOP: f->fop = (uint16_t)(v & 0x7ff); break;
	}
}

/* --- one register --- */

/* Where it lies in the state as its bytes; NULL: it has to be worked out. */
static uint8_t *reg_place(struct gdb_cpu *c, const struct reg *r)
{
	struct x86_state *s = &c->s;

	switch ((enum reg_kind)r->kind) {
	case GPR: return (uint8_t *)&s->gpr[r->index];
	case RIP: return (uint8_t *)&s->rip;
	case ST: return s->fpu.st[r->index].b;
	case XMM: return s->fpu.xmm[r->index].b;
	case MXCSR: return (uint8_t *)&s->fpu.mxcsr;
	case YMMH: return s->fpu.ymmh[r->index].b;
	case BASE: return (uint8_t *)&s->seg[r->index].base;
	case SYSTEM: return (uint8_t *)s + r->index;
	default: return NULL;
	}
}

void gdb_reg_get(const struct gdb_cpu *c, unsigned reg, uint8_t *out)
{
	const struct reg *r = &regs[reg];
	const uint8_t *place = reg_place((struct gdb_cpu *)(uintptr_t)c, r);
	uint64_t v = 0;

	if (place) {
		memcpy(out, place, r->bytes);
		return;
	}
	switch ((enum reg_kind)r->kind) {
	case FLAGS: v = c->s.rflags; break;
	case SEG: v = c->s.seg[r->index].selector; break;
	case X87: v = x87_get(&c->s.fpu, r->index); break;
	case CR8: v = c->cr8; break;
	default: break;
	}
	memcpy(out, &v, r->bytes);
}

/* A selector is only that: base, limit and attributes stay. */
void gdb_reg_set(struct gdb_cpu *c, unsigned reg, const uint8_t *in)
{
	const struct reg *r = &regs[reg];
	uint8_t *place = reg_place(c, r);
	uint64_t v = 0;

	if (place) {
		memcpy(place, in, r->bytes);
		if (r->kind == YMMH)
			c->s.fpu.xstate_bv |= 4;
		if (r->kind == MXCSR)
			c->s.fpu.mxcsr &= 0xffff;
		return;
	}
	memcpy(&v, in, r->bytes);
	switch ((enum reg_kind)r->kind) {
	case FLAGS: c->s.rflags = (v & 0x3f7fd7) | FLAG_FIXED; break;
	case SEG: c->s.seg[r->index].selector = (uint16_t)v; break;
	case X87: x87_set(&c->s.fpu, r->index, (uint32_t)v); break;
	case CR8: c->cr8 = v & 15; break;
	default: break;
	}
}

/* --- the description --- */

struct bit { const char *name; uint8_t at; };
#define BITS(...) (const struct bit[]){ __VA_ARGS__, { NULL, 0 } }

static void put_flags(FILE *f, const char *id, unsigned bytes, const struct bit *bits)
{
	fprintf(f, "<flags id=\"%s\" size=\"%u\">", id, bytes);
	for (; bits->name; bits++)
		fprintf(f, "<field name=\"%s\" start=\"%u\" end=\"%u\"/>", bits->name, bits->at, bits->at);
	fprintf(f, "</flags>");
}

static void put_core_types(FILE *f)
{
	put_flags(f, "x86_eflags", 4, BITS({ "CF", 0 }, { "", 1 }, { "PF", 2 }, { "AF", 4 }, { "ZF", 6 }, { "SF", 7 },
					   { "TF", 8 }, { "IF", 9 }, { "DF", 10 }, { "OF", 11 }, { "NT", 14 },
					   { "RF", 16 }, { "VM", 17 }, { "AC", 18 }, { "VIF", 19 }, { "VIP", 20 },
					   { "ID", 21 }));
}

static void put_sse_types(FILE *f)
{
	static const struct { const char *id, *type; unsigned n; } vectors[] = {
		{ "v4f", "ieee_single", 4 }, { "v2d", "ieee_double", 2 }, { "v16i8", "int8", 16 },
		{ "v8i16", "int16", 8 }, { "v4i32", "int32", 4 }, { "v2i64", "int64", 2 },
	};
	static const char *const fields[] = { "v4_float", "v2_double", "v16_int8", "v8_int16", "v4_int32", "v2_int64" };

	for (unsigned i = 0; i < 6; i++)
		fprintf(f, "<vector id=\"%s\" type=\"%s\" count=\"%u\"/>", vectors[i].id, vectors[i].type, vectors[i].n);
	fprintf(f, "<union id=\"vec128\">");
	for (unsigned i = 0; i < 6; i++)
		fprintf(f, "<field name=\"%s\" type=\"%s\"/>", fields[i], vectors[i].id);
	fprintf(f, "<field name=\"uint128\" type=\"uint128\"/></union>");
	put_flags(f, "x86_mxcsr", 4, BITS({ "IE", 0 }, { "DE", 1 }, { "ZE", 2 }, { "OE", 3 }, { "UE", 4 }, { "PE", 5 },
					  { "DAZ", 6 }, { "IM", 7 }, { "DM", 8 }, { "ZM", 9 }, { "OM", 10 },
					  { "UM", 11 }, { "PM", 12 }, { "FZ", 15 }));
}

static void put_system_types(FILE *f)
{
	put_flags(f, "x86_cr0", 8, BITS({ "PE", 0 }, { "MP", 1 }, { "EM", 2 }, { "TS", 3 }, { "ET", 4 }, { "NE", 5 },
					{ "WP", 16 }, { "AM", 18 }, { "NW", 29 }, { "CD", 30 }, { "PG", 31 }));
	put_flags(f, "x86_cr4", 8, BITS({ "VME", 0 }, { "PVI", 1 }, { "TSD", 2 }, { "DE", 3 }, { "PSE", 4 }, { "PAE", 5 },
					{ "MCE", 6 }, { "PGE", 7 }, { "PCE", 8 }, { "OSFXSR", 9 },
					{ "OSXMMEXCPT", 10 }, { "UMIP", 11 }, { "LA57", 12 }, { "FSGSBASE", 16 },
					{ "PCIDE", 17 }, { "OSXSAVE", 18 }, { "SMEP", 20 }, { "SMAP", 21 },
					{ "PKE", 22 }));
	put_flags(f, "x86_efer", 8, BITS({ "SCE", 0 }, { "LME", 8 }, { "LMA", 10 }, { "NXE", 11 }));
}

static void put_feature(FILE *f, const char *name, unsigned *features)
{
	fprintf(f, "%s<feature name=\"%s\">", (*features)++ ? "</feature>" : "", name);
	if (strstr(name, ".core"))
		put_core_types(f);
	if (strstr(name, ".sse"))
		put_sse_types(f);
	if (strstr(name, ".system"))
		put_system_types(f);
}

static void put_reg(FILE *f, const char *name, unsigned bytes, const char *type)
{
	fprintf(f, "<reg name=\"%s\" bitsize=\"%u\" type=\"%s\"/>", name, 8 * bytes, type);
}

char *gdb_reg_xml(void)
{
	unsigned features = 0;
	size_t len;
	char *text = NULL;
	FILE *f = open_memstream(&text, &len);

	if (!f)
		return NULL;
	fprintf(f, "<?xml version=\"1.0\"?><!DOCTYPE target SYSTEM \"gdb-target.dtd\"><target version=\"1.0\">"
		   "<architecture>i386:x86-64</architecture>");
#define FEATURE(name) put_feature(f, name, &features);
#define REG(name, bytes, type, kind, index) put_reg(f, name, bytes, type);
#include "vmm/gdb/registers.def"
#undef FEATURE
#undef REG
	fprintf(f, "</feature></target>");
	if (fclose(f)) {
		free(text);
		return NULL;
	}
	return text;
}
