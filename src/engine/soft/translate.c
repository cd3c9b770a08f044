/*
 * The translator's run loop: finds or makes a block, enters it, handles what it left for.
 */
#include "engine/soft/translate_private.h"

#include <cpuid.h>
#include <errno.h>
#include <stdlib.h>
#include <sys/auxv.h>
#include <sys/mman.h>
#include <sys/random.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "cpu/model.h"
#include "engine/soft/fp.h"
#include "engine/soft/mem.h"

#define HWCAP2_FSGSBASE_BIT 2ul
#define ARCH_SET_GS_CODE 0x1001

/* --- what this host offers --- */

static unsigned host_fp_level(void)
{
	unsigned a, b, c, d, lo, hi;

	if (!__get_cpuid(1, &a, &b, &c, &d) || !(c & bit_OSXSAVE))
		return FP_NONE;
	__asm__("xgetbv" : "=a"(lo), "=d"(hi) : "c"(0));
	if ((lo & 7) != 7)
		return FP_NONE;
	return __builtin_cpu_supports("avx") ? FP_AVX : FP_NONE;
}

struct translator *translator_new(struct soft_engine *en, struct error *e)
{
	struct translator *t = calloc(1, sizeof *t);

	if (!t) {
		error_set(e, ENOMEM, "free some memory on the host, or raise ulimit -v", "create the translator", "out of memory");
		return NULL;
	}
	t->fp_level = host_fp_level();
	t->bmi2 = __builtin_cpu_supports("bmi2");
	return t;
}

void translator_free(struct translator *t) { free(t); }

/* Nothing a guest can guess, and not canonical. */
static uint64_t secret_address(void)
{
	uint64_t secret;

	memcpy(&secret, (const void *)getauxval(AT_RANDOM), sizeof secret);
	(void)!getrandom(&secret, sizeof secret, GRND_NONBLOCK);
	return (secret | 1ull << 63) & ~(1ull << 62);
}

static uint32_t code_bytes(const struct vcpu *v)
{
	uint32_t bytes = CODE_BYTES_ALL / v->en->vcpu_total;

	return bytes > CODE_BYTES_MAX ? CODE_BYTES_MAX : bytes < CODE_BYTES_MIN ? CODE_BYTES_MIN : bytes;
}

static uint32_t low_address(const struct vcpu *v)
{
	uint64_t end = (uint64_t)(uintptr_t)(v + 1);

	return end <= INT32_MAX ? (uint32_t)(uintptr_t)v : 0;
}

int translator_vcpu_init(struct vcpu *v, struct error *e)
{
	struct trans_vcpu *t = calloc(1, sizeof *t);
	struct emitter em;
	int r = -ENOMEM;

	if (!t)
		goto fail;
	t->build = calloc(1, sizeof *t->build);
	t->block_max = code_bytes(v) / TBLOCK_BYTES;
	t->blocks = calloc(t->block_max, sizeof *t->blocks);
	if (!t->build || !t->blocks)
		goto fail_parts;
	r = execmem_init(&t->mem, code_bytes(v), e);
	if (r < 0)
		goto fail_parts;
	pthread_mutex_init(&t->inbox_lock, NULL);
	v->trans = t;
	em = t->build->e = (struct emitter){ t->mem.rw, low_address(v) };
	trans_emit_trampolines(v, &em);
	system_emit_visits(v, &em);
	mem_emit_refills(v, &em);
	t->used = t->used_base = (uint32_t)(em.p - t->mem.rw + 63) & ~63u;
	t->cold_used = (uint32_t)CODE_COLD_START(t->mem.size_bytes);
	r = return_stacks_init(v);
	if (r < 0)
		goto fail_code;
	cells_init(v, secret_address());
	v->hot.return_limit = RETURN_LIMIT;
	return 0;
fail_code:
	v->trans = NULL;
	execmem_fini(&t->mem);
fail_parts:
	free(t->blocks);
	free(t->build);
	free(t);
fail:
	return r == -ENOMEM ? error_set(e, ENOMEM, "free some memory on the host, or raise ulimit -v", "create the translator", "out of memory") : r;
}

void translator_vcpu_fini(struct vcpu *v)
{
	struct trans_vcpu *t = trans_of(v);

	if (!t)
		return;
	for (unsigned i = 0; i < TRANSLATE_MODES; i++)
		if (v->hot.jump[i])
			munmap(v->hot.jump[i], JUMP_CACHE_ENTRIES * sizeof(struct jump_slot));
	memset(&v->hot, 0, sizeof v->hot);
	v->trans = NULL;
	pthread_mutex_destroy(&t->inbox_lock);
	return_stacks_fini(t);
	execmem_fini(&t->mem);
	free(t->blocks);
	free(t->build);
	free(t);
}

/* Points GS at the vCPU; the C library uses FS alone. */
void translate_begin(struct vcpu *v)
{
	if (getauxval(AT_HWCAP2) & HWCAP2_FSGSBASE_BIT)
		__asm__ volatile("wrgsbase %0" :: "r"(v));
	else
		syscall(SYS_arch_prctl, ARCH_SET_GS_CODE, v);
}

void translate_counters(const struct vcpu *v, counter_fn *each, void *opaque)
{
	static const char *const names[TEXIT_COUNT] = {
		[TEXIT_MISS] = "TLB miss", [TEXIT_STEP] = "step", [TEXIT_CHAIN] = "link", [TEXIT_LOOKUP] = "look-up",
		[TEXIT_POLL] = "poll", [TEXIT_FPU] = "FPU", [TEXIT_IRET] = "IRET", [TEXIT_FAR] = "far link",
		[TEXIT_SITE] = "return link", [TEXIT_TARGET] = "call target",
	};
	const struct trans_vcpu *t = v->trans;

	if (!t)
		return;
	each(opaque, "translated code", "blocks translated", t->count_blocks);
	each(opaque, "translated code", "cache emptied", t->count_flushes);
	each(opaque, "translated code", "pages written to", t->count_stale);
	each(opaque, "translated code", "look-ups answered in place", t->count_quick);
	each(opaque, "translated code", "instructions answered in place", t->count_visits);
	for (unsigned i = 1; i < TEXIT_COUNT; i++)
		each(opaque, "exits from translated code", names[i], t->count_exit[i]);
}

/* --- modes --- */

/* AVX-512's components, if the guest has them enabled; the host has them then (cpu/model.c). */
static uint32_t fpu_high(const struct vcpu *v)
{
	if (likely((v->s.xcr0 & XSTATE_AVX512) != XSTATE_AVX512))
		return 0;
	return cpu_model_xcr0_mask(v->en->model) & XSTATE_AVX512;
}

static unsigned fp_level(const struct vcpu *v)
{
	const struct x86_state *s = &v->s;
	unsigned host = v->en->translator->fp_level;
	uint64_t avx = 6;

	if (!host || (s->cr0 & (CR0_TS | CR0_EM)) || !(s->cr4 & CR4_OSFXSR))
		return FP_NONE;
	/* Unmasked exceptions would be signals of the host. */
	if ((s->fpu.mxcsr & 0x1f80) != 0x1f80 || (s->fpu.fcw & 0x3f) != 0x3f || (s->fpu.fsw & 0x80))
		return FP_NONE;
	if (host < FP_AVX || !(s->cr4 & CR4_OSXSAVE) || (s->xcr0 & avx) != avx)
		return FP_SSE;
	return fpu_high(v) ? FP_AVX512 : FP_AVX;
}

/* Writable, expand-up, 4 GiB. */
static bool segment_whole(const struct x86_segment *sg) { return (sg->attr & 0x9e) == 0x92 && sg->limit == ~0u; }

/* 32-bit code runs as host code if CS, SS, DS and ES do nothing. FS and GS are looked at where they are used. */
static bool segments_flat(struct vcpu *v)
{
	const struct x86_segment *sg = v->s.seg;

	if ((v->s.rflags & FLAG_VM) || !(v->s.cr0 & CR0_PE) || sg[SEG_CS].base || sg[SEG_CS].limit != ~0u ||
	    (sg[SEG_CS].attr & 0x9a) != 0x9a || !(sg[SEG_SS].attr & SEG_ATTR_DB))
		return false;
	v->hot.segment_flat[0] = segment_whole(&sg[SEG_FS]);
	v->hot.segment_flat[1] = segment_whole(&sg[SEG_GS]);
	return segment_whole(&sg[SEG_SS]) && segment_whole(&sg[SEG_DS]) && segment_whole(&sg[SEG_ES]) &&
	       !sg[SEG_SS].base && !sg[SEG_DS].base && !sg[SEG_ES].base;
}

bool translate_usable(struct vcpu *v)
{
	const struct interp *ip = interp_of(v);
	unsigned cpl = state_cpl(&v->s);

	return (v->insn_mode == INSN_64 || (v->insn_mode == INSN_32 && segments_flat(v))) && (cpl == 0 || cpl == 3) && !(v->s.rflags & FLAG_TF) &&
	       !v->s.shadow && !ip->slow && !ip->db_pending && !ip->ac_check && !ip->data_bps && !ip->exec_bps &&
	       !debugger_marks(ip, (unsigned)v->s.rip);
}

static unsigned current_mode(const struct vcpu *v)
{
	return TMODE(v->tlb_mode, fp_level(v)) | (v->insn_mode == INSN_32 ? TMODE_CODE32 : 0);
}

/* --- entering --- */

/* Makes s.fpu something XRSTOR accepts; the guest may have put anything into the header's padding. */
static void fpu_prepare(struct vcpu *v)
{
	struct x86_xsave *f = &v->s.fpu;

	f->mxcsr &= 0xffff;
	f->xstate_bv &= 7 | (cpu_model_xcr0_mask(v->en->model) & XSTATE_AVX512);
	f->xcomp_bv = 0;
	memset(f->hdr_rsvd, 0, sizeof f->hdr_rsvd);
}

static const struct exit_data *code_run(struct vcpu *v, const uint8_t *target, bool fpu)
{
	struct trans_vcpu *t = trans_of(v);
	bool live;

	if (fpu) {
		fpu_prepare(v);
		v->hot.fpu_high = fpu_high(v);
	}
	v->hot.save_flags = (v->s.rflags & 0xff) << 8 | (v->s.rflags >> 11 & 1);	/* parked as well as in RFLAGS */
	v->hot.fpu_want = fpu;
	t->enter(v, target);
	live = v->hot.fpu_live;
	v->hot.fpu_live = 0;
	v->hot.fpu_want = live;
	if (live)
		v->s.fpu.fip = v->s.fpu.fdp = v->s.fpu.fop = 0;	/* they would tell the guest host addresses */
	t->count_exit[v->hot.exit_reason]++;
	return (const struct exit_data *)(uintptr_t)v->hot.exit_ptr;
}

/* --- exits --- */

/* The temporaries are as the check left them: T0 less the tag, T1 the entry's offset. */
static uint64_t missed_address(const struct vcpu *v, unsigned mode, bool write)
{
	unsigned index = (unsigned)v->hot.t1 / sizeof(struct tlb_entry) % TLB_ENTRIES;

	return v->hot.t0 + v->tlb[TMODE_TLB(mode)][write][index].tag;
}

/* Fills the TLB for the access that missed; false: the interpreter has to do it. */
static bool miss_fill(struct vcpu *v, const struct exit_data *d, unsigned mode)
{
	bool write = d->flags & EXIT_WRITE;
	uint64_t va = missed_address(v, mode, write);

	if ((d->flags & EXIT_ALIGNED) && (va & (d->size > 16 ? d->size - 1u : 15)))
		return false;
	if (!va_canonical(v, va) || (va & ~GUEST_PAGE_MASK) + d->size > GUEST_PAGE_SIZE)
		return false;
	return d->flags & EXIT_MASKED ? mem_fill_quiet(v, va, write) : mem_fill(v, va, write);
}

/* A group's check failed: fills the TLB if no fault and nothing else that the guest could see comes of it, or goes to
 * the plain block, where each access is looked at by itself. Its jump lies before the call that brought us here. */
static const uint8_t *group_exit(struct vcpu *v, const struct exit_data *d, unsigned mode)
{
	bool write = d->flags & EXIT_WRITE;

	if (mem_fill_quiet(v, missed_address(v, mode, write), write))
		return (const uint8_t *)d + d->rel;
	return link_chain(v, d, -9, mode | TMODE_PLAIN);
}

/* What must be known before any host code is entered from C. */
static bool boundary(struct vcpu *v)
{
	struct trans_vcpu *t = trans_of(v);
	struct interp *ip = interp_of(v);

	return_stack_check(v);
	cache_inbox(v);
	if (t->fetch_epoch != ip->fetch_epoch)
		jump_cache_sync(v);
	/* Interrupts that came without a kick: after EOI, or a lower task priority. */
	if (unlikely(!(++t->polls & 63)) && (v->s.rflags & FLAG_IF) && v->w.irq_pending(v->w.opaque))
		ip->check_events = true;
	return !atomic_load(&v->request) && !ip->check_events &&
	       v->s.activity == ACTIVITY_RUNNING && translate_usable(v);
}

/* A near branch to a non-canonical address faults as if it had not begun: then it is the interpreter's. */
static bool branch_undo(struct vcpu *v, uint32_t info)
{
	if (!info || v->insn_mode != INSN_64 || va_canonical(v, v->s.rip))
		return false;
	v->s.rip = v->hot.page + BRANCH_OFFSET(info);
	v->s.gpr[REG_RSP] -= BRANCH_POPPED(info);
	if (info & BRANCH_COUNTED)
		v->s.gpr[REG_RCX]++;
	if (info & BRANCH_CALLED) {
		v->s.gpr[REG_RSP] += 8;
		return_stack_pop(v);
	}
	return true;
}

static bool lookup_undo(struct vcpu *v, const struct exit_data *d)
{
	uint32_t info = d->flags & EXIT_SHARED ? v->hot.branch_info : d->flags & EXIT_BRANCH ? (uint32_t)d->rel : 0;

	v->s.rip = v->hot.t0;
	return branch_undo(v, info);
}

/* Handles one exit; returns where to go on in host code, or NULL: at s.rip, by `step` in the interpreter. */
static const uint8_t *exit_handle(struct vcpu *v, const struct exit_data *d, unsigned mode, bool *step, bool *fpu)
{
	*step = false;
	*fpu = v->hot.fpu_want;
	v->s.rip = v->hot.page + d->offset;
	switch (v->hot.exit_reason) {
	case TEXIT_LOOKUP:
		*step = lookup_undo(v, d);
		return NULL;
	case TEXIT_FAR:
		v->s.rip = v->hot.t0;
		*step = branch_undo(v, (uint32_t)v->hot.t1);
		return *step ? NULL : link_far(v, d, mode);
	case TEXIT_SITE:
		link_site(v, d, mode);
		v->s.rip = v->hot.t0;
		*step = branch_undo(v, (uint32_t)v->hot.t1);
		return NULL;
	case TEXIT_MISS:
		if (d->flags & EXIT_GROUP) {
			uint32_t generation = trans_of(v)->generation;
			const uint8_t *host = group_exit(v, d, mode);
			/* All code gone: stepped here, as behind STI nothing may come between the two instructions. */
			*step = !host || generation != trans_of(v)->generation;
			return *step ? NULL : host;
		}
		if (miss_fill(v, d, mode))
			return (const uint8_t *)d + d->rel;
		*step = true;
		return NULL;
	case TEXIT_FPU:
		*fpu = true;
		return (const uint8_t *)d + d->rel;
	case TEXIT_CHAIN:
		return link_chain(v, d, d->rel, mode);
	case TEXIT_IRET:
		*step = !iret_quick(v);
		return NULL;
	case TEXIT_STEP: case TEXIT_TARGET:
		*step = true;
		return NULL;
	default:
		return NULL;
	}
}

/*
 * RF is clear once an instruction is complete. Nothing here looks at it, as there are no instruction breakpoints, but
 * a frame may be pushed before that one instruction. from: RIP on entry.
 */
static void rf_settle(struct vcpu *v, const struct exit_data *d, uint64_t from)
{
	unsigned why = v->hot.exit_reason;

	if (why == TEXIT_LOOKUP || why == TEXIT_CHAIN || why == TEXIT_FAR || why == TEXIT_SITE || v->hot.page + d->offset != from)
		v->s.rflags &= ~(uint64_t)FLAG_RF;
}

/* By the interpreter; an indirect call as one of translated code, so that its RET finds back. */
static void step_one(struct vcpu *v, const struct exit_data *d)
{
	const uint8_t *site = d && v->hot.exit_reason == TEXIT_TARGET ? (const uint8_t *)d + d->rel : NULL;
	struct interp *ip = interp_of(v);

	ip->keep_rf = false;
	interp_one(v);
	if (unlikely(v->s.rflags & FLAG_RF) && !ip->keep_rf)
		v->s.rflags &= ~(uint64_t)FLAG_RF;
	if (site)
		return_stack_push(v, site);
}

/* The exit was that of a jump. Requests may keep jumps from being linked, and what is not linked does not poll: they are
 * looked at now. After other exits the same instruction goes on, and behind STI nothing may come between. */
static bool jumped(const struct vcpu *v)
{
	return v->hot.exit_reason == TEXIT_CHAIN || v->hot.exit_reason == TEXIT_FAR;
}

void translate_run(struct vcpu *v)
{
	struct trans_vcpu *t = trans_of(v);
	bool step = false, fpu = false;

	while (boundary(v)) {
		unsigned mode = current_mode(v);
		const uint8_t *host = link_lookup(v, mode);
		const struct exit_data *d = NULL;

		step = !host;
		while (host) {
			uint32_t generation = t->generation;
			uint64_t from = v->s.rip;
			return_stack_select(v, mode);
			d = code_run(v, host, fpu);
			if (unlikely(v->s.rflags & FLAG_RF))
				rf_settle(v, d, from);
			mode = tmode_now(v, mode);
			t->return_mode = mode;
			host = exit_handle(v, d, mode, &step, &fpu);
			if (!step && (generation != t->generation || (jumped(v) && atomic_load(&v->request))))
				break;
		}
		if (step) {
			fpu = false;
			step_one(v, d);
		}
	}
}
