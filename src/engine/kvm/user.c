/*
 * The engine where KVM emulates guest kernels: the software engine, which sends long-running user code to KVM.
 *
 *   run: software ----- a tick finds user code -----> visit to KVM ---- exception, SYSCALL, kick ----> software
 *
 * Interrupt controllers, kernels, devices and time are the software engine's and the board's, and exact; KVM only
 * ever holds user code. A visit costs what hundreds of thousands of instructions do, so ticks come seldom where
 * visits did not pay: 0.1 ms apart at best, 0.4 s at worst.
 *
 * Kicks: `kicked` is set before the software vCPU is asked, so that a kick on the way into KVM is seen there.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include "engine/kvm/user.h"
#include "host/loop.h"

#define WAIT_MIN_NS 100000u
#define WAIT_BUSY_NS 2000000u	/* while ticks find no user code */
#define WAIT_MAX_NS 400000000u
#define VISIT_MIN_NS 300000u	/* a shorter visit does not pay */
#define VISIT_MAX_NS 10000000u	/* then software looks at what was written, code above all */
#define EXIT_NS 80000u		/* nor one with an exit to KVM per so much time, for shadow page tables mostly */

/* --- does it pay? --- */

/* Where among KVM's counters that of the exits lies; 0: nowhere. */
static uint64_t exits_find(int fd)
{
	struct kvm_stats_header h;
	char *d = NULL;
	uint64_t at = 0;
	size_t size;

	if (fd < 0 || pread(fd, &h, sizeof(h), 0) != (ssize_t)sizeof(h))
		return 0;
	size = sizeof(struct kvm_stats_desc) + h.name_size;
	if (h.num_desc < 4096 && h.name_size < 4096)
		d = malloc(size * h.num_desc);
	if (d && pread(fd, d, size * h.num_desc, h.desc_offset) == (ssize_t)(size * h.num_desc))
		for (unsigned i = 0; i < h.num_desc && !at; i++) {
			const struct kvm_stats_desc *s = (const void *)(d + size * i);
			if (!strncmp(s->name, "exits", h.name_size))
				at = h.data_offset + s->offset;
		}
	free(d);
	return at;
}

static uint64_t exits_now(const struct user_cpu *u)
{
	uint64_t n = 0;

	if (u->stats_at && pread(u->stats_fd, &n, sizeof(n), (off_t)u->stats_at) != sizeof(n))
		n = 0;
	return n;
}

static void judge(struct user_cpu *u, uint64_t ns, uint64_t exits)
{
	if (ns >= VISIT_MIN_NS && exits * EXIT_NS <= ns)
		u->wait_ns = WAIT_MIN_NS;
	else if (u->wait_ns < WAIT_MAX_NS)
		u->wait_ns *= 2;
}

/* --- ticks --- */

static void tick(void *opaque)
{
	struct user_cpu *u = opaque;

	atomic_store(&u->tick, true);
	atomic_store(&u->armed, false);
	__atomic_store_n(&u->v->run->immediate_exit, 1, __ATOMIC_SEQ_CST);
	engine_soft.kick(u->v->soft);
}

static void tick_arm(struct user_cpu *u)
{
	if (u->off || atomic_exchange(&u->armed, true))
		return;
	if (!u->timer_made) {
		u->timer = (struct kick_timer){ .fn = tick, .opaque = u };
		u->timer_made = kick_timer_init(&u->timer) == 0;
	}
	if (u->timer_made)
		kick_timer_set(&u->timer, u->wait_ns);
	else
		u->off = true;
}

/* --- run --- */

static enum exit_reason visit(struct vcpu *v, struct error *e)
{
	struct user_cpu *u = v->user;
	struct x86_state *s = soft_state(v->soft);
	uint64_t start, exits;
	bool good;

	if (!user_visit_possible(u, s) || (v->w.irq_pending && v->w.irq_pending(v->w.opaque))) {
		if (u->wait_ns < WAIT_BUSY_NS)
			u->wait_ns *= 2;
		return EXIT_KICKED;
	}
	start = clock_now_ns();
	exits = exits_now(u);
	u->trap = false;
	atomic_store(&u->armed, true);
	kick_timer_set(&u->timer, VISIT_MAX_NS);
	good = user_visit(u, s, e);
	atomic_store(&u->armed, false);
	atomic_store(&u->tick, false);
	soft_state_changed(v->soft, u->trap);
	judge(u, clock_now_ns() - start, exits_now(u) - exits);
	return good ? EXIT_KICKED : EXIT_FAILED;
}

static enum exit_reason user_run(struct vcpu *v, struct error *e)
{
	enum exit_reason why;

	atomic_store(&v->kicked, false);
	tick_arm(v->user);
	why = engine_soft.run(v->soft, e);
	if (why != EXIT_KICKED || v->plan.step || v->plan.count || !atomic_exchange(&v->user->tick, false) || atomic_load(&v->kicked))
		return why;
	return visit(v, e);
}

static void user_kick(struct vcpu *v)
{
	kvm_vcpu_kick(v);
	engine_soft.kick(v->soft);
}

/* --- life cycle --- */

static void user_vcpu_destroy(struct vcpu *v)
{
	struct user_cpu *u = v->user;

	if (u->timer_made)
		kick_timer_fini(&u->timer);
	if (u->stats_fd >= 0)
		close(u->stats_fd);
	user_pages_fini(u);
	free(u);
	kvm_vcpu_destroy(v);
}

static int user_cpu_init(struct vcpu *v, struct error *e)
{
	struct user_cpu *u = calloc(1, sizeof(*u));
	int ret;

	if (!u)
		return error_set(e, ENOMEM, NULL, "create a virtual CPU", "out of memory");
	u->v = v;
	u->wait_ns = WAIT_MIN_NS;
	u->stats_fd = ioctl(v->fd, KVM_GET_STATS_FD, 0);
	u->stats_at = exits_find(u->stats_fd);
	ret = user_pages_init(u);
	if (!ret)
		ret = user_visit_init(u);
	v->user = u;
	return ret ? error_errno(e, -ret, "use --engine soft", "prepare KVM for user code") : 0;
}

static int user_vcpu_create(struct vcpu **out, struct engine *en, const struct vcpu_wiring *w, struct error *e)
{
	struct vcpu *v;
	int ret = kvm_vcpu_create(&v, en, w, e);

	if (ret)
		return ret;
	ret = engine_soft.vcpu_create(&v->soft, en->soft, w, e);
	if (!ret)
		ret = user_cpu_init(v, e);
	if (!ret)
		*out = v;
	else if (v->user)
		user_vcpu_destroy(v);
	else
		kvm_vcpu_destroy(v);
	return ret;
}

static int user_create(struct engine **out, const struct engine_config *cfg, struct error *e)
{
	return kvm_engine_create(out, cfg, true, e);
}

static void user_get_state(struct vcpu *v, struct x86_state *out) { engine_soft.get_state(v->soft, out); }
static void user_set_state(struct vcpu *v, const struct x86_state *in) { engine_soft.set_state(v->soft, in); }
static uint64_t user_tsc(struct vcpu *v) { return engine_soft.tsc(v->soft); }

uint64_t kvm_user_visits(struct vcpu *v) { return atomic_load(&v->user->visits); }

static uint8_t user_get_cr8(struct vcpu *v) { return engine_soft.get_cr8(v->soft); }
static void user_set_cr8(struct vcpu *v, uint8_t cr8) { engine_soft.set_cr8(v->soft, cr8); }
static void user_debug_get(struct vcpu *v, struct debug_stop *out) { engine_soft.debug_get(v->soft, out); }

static void user_counters(struct vcpu *v, counter_fn *each, void *opaque)
{
	each(opaque, "user code in KVM", "visits", kvm_user_visits(v));
	engine_soft.counters(v->soft, each, opaque);
}

/* While there is a plan, user code runs in software too. */
static int user_debug_set(struct vcpu *v, const struct debug_plan *p)
{
	int ret = engine_soft.debug_set(v->soft, p);

	if (!ret)
		v->plan = *p;
	return ret;
}

const struct engine_ops engine_kvm_user = {
	.name = "kvm",
	.create = user_create,
	.destroy = kvm_engine_destroy,
	.vcpu_create = user_vcpu_create,
	.vcpu_destroy = user_vcpu_destroy,
	.run = user_run,
	.kick = user_kick,
	.get_state = user_get_state,
	.set_state = user_set_state,
	.tsc = user_tsc,
	.get_cr8 = user_get_cr8,
	.set_cr8 = user_set_cr8,
	.debug_set = user_debug_set,
	.debug_get = user_debug_get,
	.counters = user_counters,
};
