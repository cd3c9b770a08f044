/*
 * The software engine behind engine_ops: life cycle, the run loop, state, time.
 *
 *   run: requests -> interrupts -> one block (interpreted or translated) -> again
 *             ^------- longjmp: fault raised, or vcpu_exit_insn() ------'
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>

#include "cpu/model.h"
#include "engine/soft/fp_stub.h"
#include "engine/soft/kvmclock.h"
#include "engine/soft/operand.h"
#include "engine/soft/trace.h"
#include "engine/soft/translate.h"
#include "host/loop.h"

struct engine { struct soft_engine soft; };

enum { JUMP_NONE, JUMP_FAULT, JUMP_EXIT };

/* --- raising --- */

void vcpu_raise(struct vcpu *v, uint8_t vector)
{
	v->fault.vector = vector;
	v->fault.has_error = false;
	v->fault.error = 0;
	_longjmp(v->fault_jmp, JUMP_FAULT);
}

void vcpu_raise_error(struct vcpu *v, uint8_t vector, uint32_t error)
{
	v->fault.vector = vector;
	v->fault.has_error = true;
	v->fault.error = error;
	_longjmp(v->fault_jmp, JUMP_FAULT);
}

void vcpu_raise_pf(struct vcpu *v, uint64_t gva, uint32_t error)
{
	v->fault.cr2 = gva;
	vcpu_raise_error(v, EXC_PF, error);
}

void vcpu_exit_insn(struct vcpu *v)
{
	_longjmp(v->fault_jmp, JUMP_EXIT);
}

static uint64_t flat_rest(unsigned selector, uint16_t attr)
{
	return 0xffffffffull | (uint64_t)(selector & 0xffff) << 32 | (uint64_t)attr << 48;
}

/* What translated SYSCALL and SYSRET need: see interp_event.c for the same in full. */
void vcpu_update_system(struct vcpu *v)
{
	const struct x86_state *s = &v->s;
	struct vcpu_hot *h = &v->hot;
	unsigned in = (unsigned)(s->star >> 32) & 0xfffc, out = (unsigned)(s->star >> 48);

	h->cr3_refused = (~0ull << cpu_model_phys_bits(v->en->model)) & ~(s->cr4 & CR4_PCIDE ? CR3_KEEP : 0);
	h->smap = !!(s->cr4 & CR4_SMAP);
	h->fsgsbase = s->cr4 & CR4_FSGSBASE ? (s->cr4 & CR4_LA57 ? FSGSBASE_LA57 : FSGSBASE_LA48) : 0;
	h->syscall_mode = 0;
	if (!(s->efer & EFER_SCE) || !state_long(s) || (h->smap && !(s->sfmask & FLAG_AC)))
		return;
	h->syscall_mode = (h->smap ? TLB_KERNEL : TLB_KERNEL_AC) | (s->cr4 & CR4_LA57 ? SYSCALL_LA57 : 0);
	h->syscall_cs = flat_rest(in, 0xa09b);
	h->syscall_ss = flat_rest(in + 8, 0xc093);
	h->sysret_cs = flat_rest((out + 16) | 3, 0xa0fb);
	h->sysret_ss = flat_rest((out + 8) | 3, 0xc0f3);
}

void vcpu_update_mode(struct vcpu *v)
{
	const struct x86_state *s = &v->s;
	struct interp *ip = interp_of(v);
	bool user = state_cpl(s) == 3, ac = s->rflags & FLAG_AC;

	if (state_code64(s))
		v->insn_mode = INSN_64;
	else
		v->insn_mode = s->seg[SEG_CS].attr & SEG_ATTR_DB ? INSN_32 : INSN_16;
	v->tlb_mode = user ? TLB_USER : (s->cr4 & CR4_SMAP) && !ac ? TLB_KERNEL : TLB_KERNEL_AC;
	ip->ac_check = user && ac && (s->cr0 & CR0_AM);
	ip->stop_block = true;
}

/* --- double and triple faults, SDM vol. 3 table 6-5 --- */

static bool contributory(uint8_t vector)
{
	return vector == EXC_DE || (vector >= EXC_TS && vector <= EXC_GP);
}

static bool doubles(uint8_t first, uint8_t second)
{
	if (contributory(first))
		return contributory(second);
	return first == EXC_PF && (contributory(second) || second == EXC_PF);
}

bool vcpu_deliver_fault(struct vcpu *v)
{
	struct interp *ip = interp_of(v);
	uint8_t vector = v->fault.vector;
	bool has_error = v->fault.has_error;
	uint32_t error = v->fault.error;

	split_unlock(v);
	ip->rmw_code = false;
	ip->slow = debug_active(ip);
	if (vector == EXC_PF)
		v->s.cr2 = v->fault.cr2;
	if (ip->in_delivery && ip->delivery_vector == EXC_DF) {
		ip->in_delivery = false;
		v->s.activity = ACTIVITY_SHUTDOWN;
		return false;
	}
	if (ip->in_delivery && doubles(ip->delivery_vector, vector)) {
		vector = EXC_DF;
		has_error = true;
		error = 0;
	}
	ip->in_delivery = true;
	ip->delivery_vector = vector;
	/* Real mode pushes no error codes. */
	v->counters.fault[vector & 31]++;
	if (unlikely(v->en->trace != NULL))
		trace_exception(v, vector, has_error, error);
	v->s.activity = ACTIVITY_RUNNING;	/* HLT with TF */
	event_deliver(v, vector, EVENT_EXCEPTION, has_error && (v->s.cr0 & CR0_PE), error);
	ip->in_delivery = false;
	ip->db_pending = 0;
	return true;
}

void split_lock(struct vcpu *v)
{
	pthread_mutex_lock(&v->en->split_lock);
	interp_of(v)->split_held = true;
}

void split_unlock(struct vcpu *v)
{
	if (!interp_of(v)->split_held)
		return;
	interp_of(v)->split_held = false;
	pthread_mutex_unlock(&v->en->split_lock);
}

/* --- requests --- */

void vcpu_request(struct vcpu *v, uint32_t bits)
{
	/* In this order: translated code looks at the limit, whoever resets that looks at the request afterwards. */
	atomic_fetch_or(&v->request, bits);
	atomic_store(&v->hot.return_limit, UINT16_MAX);
}

void vcpu_service(struct vcpu *v)
{
	if (!(atomic_load(&v->request) & REQUEST_DROP_WRITES))
		return;
	tlb_drop_writes(v, NULL, PLACE_MANY);
	/* Only now: who waits for the bit to go may rely on what it asked for. */
	atomic_fetch_and(&v->request, ~(uint32_t)REQUEST_DROP_WRITES);
}

/* Between two blocks, where vcpu_service() may come within one: decoded code goes too. */
static void layout_service(struct vcpu *v)
{
	if (!(atomic_fetch_and(&v->request, ~(uint32_t)REQUEST_LAYOUT) & REQUEST_LAYOUT))
		return;
	tlb_flush_all(v);
	interp_drop_all(v);
}

/* --- interrupts --- */

/* One NMI waits while another is handled, and more are lost. Two that come before the vCPU has looked are two: a CPU
 * would have begun with the first before the second came. */
void nmi_latch(struct vcpu *v)
{
	unsigned most = v->s.nmi_blocked ? 1 : 2;

	while (v->w.nmi_take && v->w.nmi_take(v->w.opaque))
		if (v->s.nmi_pending < most)
			v->s.nmi_pending++;
}

/* Delivers what is pending and allowed now. Faults on the way longjmp. */
static void take_events(struct vcpu *v)
{
	struct interp *ip = interp_of(v);
	struct x86_state *s = &v->s;
	int vector;

	ip->check_events = false;
	if (s->shadow) {
		ip->check_events = true;
		return;
	}
	nmi_latch(v);
	if (!s->nmi_blocked && s->nmi_pending) {
		s->nmi_pending--;
		s->activity = ACTIVITY_RUNNING;
		if (unlikely(v->en->trace != NULL))
			trace_interrupt(v, EXC_NMI);
		event_deliver(v, EXC_NMI, EVENT_NMI, false, 0);
	}
	if (!(s->rflags & FLAG_IF)) {	/* after EOI, or a lower task priority: no kick tells of it */
		if (!v->hot.irq_hint)
			v->hot.irq_hint = v->w.irq_pending(v->w.opaque);
		return;
	}
	if (!v->w.irq_pending(v->w.opaque)) {
		v->hot.irq_hint = false;
		return;
	}
	vector = v->w.irq_ack(v->w.opaque);
	if (vector < 0)
		return;
	s->activity = ACTIVITY_RUNNING;
	v->counters.interrupts++;
	if (unlikely(v->en->trace != NULL))
		trace_interrupt(v, (uint8_t)vector);
	event_deliver(v, (uint8_t)vector, EVENT_INTERRUPT, false, 0);
	ip->check_events = true;
}

/* --- single steps --- */

/* One instruction with everything looked at: TF, RF, shadows, breakpoints. */
static void step_slow(struct vcpu *v)
{
	struct interp *ip = interp_of(v);
	struct x86_state *s = &v->s;
	bool tf = s->rflags & FLAG_TF;
	uint8_t shadow = s->shadow;

	if (ip->exec_bps && !(s->rflags & FLAG_RF) && !(shadow & SHADOW_MOV_SS))
		debug_check_fetch(v);
	ip->keep_rf = ip->no_trap = false;
	interp_one(v);
	if (!ip->keep_rf)
		s->rflags &= ~(uint64_t)FLAG_RF;
	if (s->shadow == shadow)
		s->shadow = 0;
	ip->check_events = true;
	if (s->shadow & SHADOW_MOV_SS)
		return;			/* breakpoints wait, a single step does not happen (SDM vol. 3, 6.8.3) */
	if (tf && !ip->no_trap)
		ip->db_pending |= 1u << 14;
	if (ip->db_pending) {
		debug_show(v);
		vcpu_raise(v, EXC_DB);
	}
}

static bool needs_slow(const struct vcpu *v)
{
	const struct interp *ip = v->interp;

	return (v->s.rflags & (FLAG_TF | FLAG_RF)) || v->s.shadow || ip->slow || ip->db_pending;
}

static void step_fast_or_slow(struct vcpu *v)
{
	struct interp *ip = interp_of(v);

	if (unlikely(needs_slow(v))) {
		ip->slow = true;	/* REP: one iteration */
		step_slow(v);
		ip->slow = debug_active(ip);
	} else if (unlikely(v->en->trace != NULL)) {
		interp_one(v);
	} else {
		interp_block(v);
	}
}

bool interp_step(struct vcpu *v)
{
	jmp_buf outer;

	memcpy(&outer, &v->fault_jmp, sizeof(outer));
	switch (_setjmp(v->fault_jmp)) {
	case JUMP_NONE:
		if (needs_slow(v))
			step_fast_or_slow(v);
		else
			interp_one(v);
		break;
	case JUMP_FAULT:
		vcpu_deliver_fault(v);
		break;
	default:
		break;
	}
	memcpy(&v->fault_jmp, &outer, sizeof(outer));
	return v->s.activity == ACTIVITY_RUNNING;
}

/* --- the run loop --- */

#define POLL_BLOCKS 256	/* blocks between two looks at the interrupt controller without a kick */

/* False: *why says what run() returns. */
static bool run_prepare(struct vcpu *v, enum exit_reason *why)
{
	struct interp *ip = interp_of(v);

	if (unlikely(atomic_load_explicit(&v->request, memory_order_relaxed))) {
		uint32_t old;
		vcpu_service(v);
		layout_service(v);
		old = atomic_fetch_and(&v->request, ~(uint32_t)(REQUEST_KICK | REQUEST_EXIT));
		ip->check_events = true;
		v->hot.irq_hint = true;
		if (old & (REQUEST_KICK | REQUEST_EXIT)) {
			*why = EXIT_KICKED;
			return false;
		}
	}
	if (unlikely((ip->check_events || ++ip->polls >= POLL_BLOCKS) && v->s.activity <= ACTIVITY_HALTED)) {
		ip->polls = 0;
		take_events(v);
	}
	if (unlikely(v->s.activity != ACTIVITY_RUNNING)) {
		*why = v->s.activity == ACTIVITY_SHUTDOWN ? EXIT_SHUTDOWN : EXIT_HALT;
		ip->check_events = true;
		return false;
	}
	return true;
}

/* One instruction for the debugger; where the vCPU was halted, the interrupt that wakes it. */
static enum exit_reason run_step(struct vcpu *v)
{
	struct interp *ip = interp_of(v);
	enum exit_reason why = EXIT_DEBUG;

	switch (_setjmp(v->fault_jmp)) {
	case JUMP_NONE:
		if (v->s.activity != ACTIVITY_RUNNING) {
			if (!run_prepare(v, &why))
				return why;
			break;
		}
		ip->slow = true;	/* REP: one iteration */
		step_slow(v);
		break;
	case JUMP_FAULT:
		if (!vcpu_deliver_fault(v))
			return EXIT_SHUTDOWN;
		break;
	}
	ip->slow = debug_active(ip);
	if (ip->stop.why == DEBUG_NOTHING)
		ip->stop.why = DEBUG_STEPPED;
	return EXIT_DEBUG;
}

static enum exit_reason run_loop(struct vcpu *v)
{
	struct interp *ip = interp_of(v);
	enum exit_reason why = EXIT_KICKED;

	if (_setjmp(v->fault_jmp) == JUMP_FAULT) {
		if (!vcpu_deliver_fault(v))
			return EXIT_SHUTDOWN;
	}
	while (run_prepare(v, &why)) {
		if (debugger_marks(ip, (unsigned)(v->s.seg[SEG_CS].base + v->s.rip)) && debugger_at_break(v))
			return EXIT_DEBUG;
		if (v->trans && translate_usable(v))
			translate_run(v);
		else
			step_fast_or_slow(v);
	}
	return why;
}

static enum exit_reason soft_run(struct vcpu *v, struct error *e)
{
	struct interp *ip = interp_of(v);
	enum exit_reason why;

	atomic_store(&ip->running, true);
	atomic_thread_fence(memory_order_seq_cst);
	vcpu_service(v);
	layout_service(v);
	ip->check_events = true;
	if (v->trans)
		translate_begin(v);
	debugger_apply(v);
	why = ip->plan.step ? run_step(v) : run_loop(v);
	if (ip->stop.why == DEBUG_WATCHED && why != EXIT_SHUTDOWN)
		why = EXIT_DEBUG;
	atomic_store(&ip->running, false);
	return why;
}

/* --- life cycle --- */

static void layout_changed(void *opaque)
{
	struct soft_engine *en = opaque;

	for (unsigned i = 0; i < SOFT_MAX_VCPUS; i++) {
		struct vcpu *v = en->vcpu[i];
		if (v)
			vcpu_request(v, REQUEST_LAYOUT);
	}
}

/* A write entry stands for a page marked dirty. The marks are gone: so must the entries be, before the log's
 * reader goes on. */
static void dirty_taken(void *opaque)
{
	struct soft_engine *en = opaque;

	for (unsigned i = 0; i < SOFT_MAX_VCPUS; i++)
		if (en->vcpu[i])
			vcpu_drop_writes(en->vcpu[i]);
}

static void code_written(void *opaque, uint32_t ram_page, uint32_t first, uint32_t last)
{
	code_wrote(opaque, ram_page, first, last);
}

static int soft_create(struct engine **out, const struct engine_config *cfg, struct error *e)
{
	struct engine *eng = calloc(1, sizeof(*eng));
	struct soft_engine *en;
	struct map_listener l = { .layout_changed = layout_changed, .code_written = code_written,
				  .dirty_taken = dirty_taken };
	size_t bytes;

	if (!eng)
		return error_set(e, ENOMEM, NULL, "create the software CPU", "out of memory");
	en = &eng->soft;
	en->map = cfg->map;
	en->model = cfg->model;
	en->vcpu_total = cfg->vcpus ? cfg->vcpus : 1;
	en->interpret_only = cfg->interpret_only || cfg->trace;
	en->trace = cfg->trace;
	en->trace_opaque = cfg->trace_opaque;
	en->code_made = cfg->code_made;
	en->code_opaque = cfg->code_opaque;
	en->tsc_hz = cfg->tsc_hz ? cfg->tsc_hz : 1000000000;
	en->tsc_scale = (uint64_t)(((unsigned __int128)en->tsc_hz << TSC_SHIFT) / 1000000000u);
	en->tsc_start_ns = clock_now_ns();
	en->host_tsc = cfg->host_tsc;
	en->ram_pages = map_ram_pages(cfg->map);
	bytes = (en->ram_pages + 1) * sizeof(*en->code);
	en->code = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	if (en->code == MAP_FAILED) {
		free(eng);
		return error_errno(e, ENOMEM, NULL, "allocate the code page table");
	}
	int ret = fp_stubs_new(&en->fp_stubs, e);
	if (ret) {
		munmap(en->code, bytes);
		free(eng);
		return ret;
	}
	kvmclock_init(en);
	pthread_mutex_init(&en->split_lock, NULL);
	pthread_mutex_init(&en->watch_lock, NULL);
	if (!en->interpret_only) {
		en->translator = translator_new(en, e);
		en->code_invalidated = translate_invalidate;
	}
	l.opaque = en;
	map_listen(cfg->map, &l);
	*out = eng;
	return 0;
}

static void soft_destroy(struct engine *eng)
{
	struct soft_engine *en = &eng->soft;

	translator_free(en->translator);
	pthread_mutex_destroy(&en->watch_lock);
	pthread_mutex_destroy(&en->split_lock);
	kvmclock_fini(en);
	fp_stubs_free(en->fp_stubs);
	munmap(en->code, (en->ram_pages + 1) * sizeof(*en->code));
	free(eng);
}

/* Zeroed; its TLB takes memory only as it is used. Below 2 GiB if there is room: see struct emitter. */
static struct vcpu *vcpu_alloc(void)
{
	int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;
	void *p = mmap(NULL, sizeof(struct vcpu), PROT_READ | PROT_WRITE, flags | MAP_32BIT, -1, 0);

	if (p == MAP_FAILED)
		p = mmap(NULL, sizeof(struct vcpu), PROT_READ | PROT_WRITE, flags, -1, 0);
	return p == MAP_FAILED ? NULL : p;
}

static void vcpu_free(struct vcpu *v) { munmap(v, sizeof *v); }

static int soft_vcpu_create(struct vcpu **out, struct engine *eng, const struct vcpu_wiring *w, struct error *e)
{
	struct vcpu *v;
	int r;

	if (w->index >= SOFT_MAX_VCPUS)
		return error_set(e, EINVAL, "use fewer CPUs", "create a virtual CPU", "at most %d", SOFT_MAX_VCPUS);
	v = vcpu_alloc();
	if (!v)
		return error_set(e, ENOMEM, "free some memory on the host, or raise ulimit -v", "create a virtual CPU", "out of memory");
	v->en = &eng->soft;
	v->w = *w;
	r = interp_init(v);
	if (r < 0) {
		vcpu_free(v);
		return error_set(e, -r, "free some memory on the host, or raise ulimit -v", "create a virtual CPU", "out of memory");
	}
	interp_of(v)->amd = cpu_model_amd(eng->soft.model);
	state_reset(&v->s, w->index == 0);
	tlb_init(v);
	vcpu_update_mode(v);
	vcpu_update_system(v);
	if (v->en->translator) {
		r = translator_vcpu_init(v, e);
		if (r < 0) {
			interp_fini(v);
			vcpu_free(v);
			return r;
		}
	}
	eng->soft.vcpu[w->index] = v;
	*out = v;
	return 0;
}

static void soft_vcpu_destroy(struct vcpu *v)
{
	v->en->vcpu[v->w.index] = NULL;
	translator_vcpu_fini(v);
	interp_fini(v);
	vcpu_free(v);
}

static uint8_t soft_get_cr8(struct vcpu *v) { return v->w.get_tpr ? v->w.get_tpr(v->w.opaque) : 0; }

static void soft_set_cr8(struct vcpu *v, uint8_t cr8)
{
	if (v->w.set_tpr)
		v->w.set_tpr(v->w.opaque, cr8 & 15);
}

static void soft_kick(struct vcpu *v) { vcpu_request(v, REQUEST_KICK); }

static void soft_get_state(struct vcpu *v, struct x86_state *out) { *out = v->s; }

static void soft_set_state(struct vcpu *v, const struct x86_state *in)
{
	v->s = *in;
	kvmclock_state_set(v);
	interp_of(v)->in_delivery = false;
	interp_of(v)->db_pending = 0;
	tlb_flush_all(v);
	debug_update(v);
	vcpu_update_mode(v);
	vcpu_update_system(v);
	interp_of(v)->check_events = true;
}

/* The guest TSC runs at tsc_hz from the engine's creation, or is the host's; plus the vCPU's offset. clock_gettime() is
 * the vDSO's, or a system call: neither touches vector registers (tests/engine/translate_test.c holds it to that). */
__attribute__((target("general-regs-only"))) uint64_t soft_tsc(struct vcpu *v)
{
	const struct soft_engine *en = v->en;
	struct timespec t;
	uint64_t ns;

	if (en->host_tsc)
		return __builtin_ia32_rdtsc() + v->s.tsc_offset;
	clock_gettime(CLOCK_BOOTTIME, &t);		/* as clock_now_ns() */
	ns = (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec - en->tsc_start_ns;
	return (uint64_t)((unsigned __int128)ns * en->tsc_scale >> TSC_SHIFT) + v->s.tsc_offset;
}

const struct engine_ops engine_soft = {
	.name = "soft",
	.create = soft_create,
	.destroy = soft_destroy,
	.vcpu_create = soft_vcpu_create,
	.vcpu_destroy = soft_vcpu_destroy,
	.run = soft_run,
	.kick = soft_kick,
	.get_state = soft_get_state,
	.set_state = soft_set_state,
	.tsc = soft_tsc,
	.stood_still = kvmclock_stood_still,
	.get_cr8 = soft_get_cr8,
	.set_cr8 = soft_set_cr8,
	.debug_set = soft_debug_set,
	.debug_get = soft_debug_get,
	.counters = soft_counters,
};
