/*
 * A KVM vCPU: its run loop.
 *
 *   KVM_RUN -> I/O or MMIO exit: carried out here, completed on the next entry
 *           -> emulation failure: one instruction by the interpreter, again
 *           -> EINTR: kicked
 *
 * Kicks: `kicked` and immediate_exit are set before the signal is sent, so a kick is seen whether it comes
 * before, during or after KVM_RUN.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

#include "engine/kvm/kick.h"
#include "engine/kvm/kvm_private.h"

/* --- life cycle --- */

static void tsc_start(struct vcpu *v)
{
	struct engine *en = v->en;
	int khz;

	if (en->cfg.tsc_hz && !en->user_only)
		ioctl(v->fd, KVM_SET_TSC_KHZ, (unsigned long)(en->cfg.tsc_hz / 1000));
	khz = ioctl(v->fd, KVM_GET_TSC_KHZ, 0);
	if (khz > 0 && !en->tsc_hz)
		en->tsc_hz = (uint64_t)khz * 1000;
}

int kvm_vcpu_create(struct vcpu **out, struct engine *en, const struct vcpu_wiring *w, struct error *e)
{
	struct vcpu *v = calloc(1, sizeof(*v));
	struct x86_state *s = aligned_alloc(64, sizeof(*s));
	int ret = -ENOMEM;

	if (!v || !s)
		goto fail;
	*v = (struct vcpu){ .en = en, .w = *w, .run = MAP_FAILED };
	v->fd = ioctl(en->vm_fd, KVM_CREATE_VCPU, (unsigned long)w->index);
	if (v->fd < 0)
		goto fail_errno;
	v->run = mmap(NULL, en->run_bytes, PROT_READ | PROT_WRITE, MAP_SHARED, v->fd, 0);
	if (v->run == MAP_FAILED)
		goto fail_errno;
	ret = kvm_cpuid_set(v);
	if (ret < 0)
		goto fail;
	if (!en->nmsrs)
		kvm_msrs_find(en, v->fd);
	tsc_start(v);
	state_reset(s, w->index == 0);
	v->tsc_offset = ~s->tsc_offset;		/* the first set_state writes the TSC */
	kvm_set_state(v, s);
	free(s);
	*out = v;
	return 0;
fail_errno:
	ret = -errno;
fail:
	free(s);
	if (v && v->run && v->run != MAP_FAILED)
		munmap(v->run, en->run_bytes);
	if (v && v->fd > 0)
		close(v->fd);
	free(v);
	return error_errno(e, -ret, "use --engine soft", "create virtual CPU %u with KVM", w->index);
}

void kvm_vcpu_destroy(struct vcpu *v)
{
	kvm_fallback_free(v);
	munmap(v->run, v->en->run_bytes);
	close(v->fd);
	free(v);
}

void kvm_vcpu_kick(struct vcpu *v)
{
	int tid;

	atomic_store(&v->kicked, true);
	__atomic_store_n(&v->run->immediate_exit, 1, __ATOMIC_SEQ_CST);
	tid = atomic_load(&v->tid);
	if (tid)
		kick_send(tid);
}

/* --- exits --- */

static void exit_io(struct vcpu *v)
{
	struct kvm_run *r = v->run;
	uint8_t *data = (uint8_t *)r + r->io.data_offset;

	for (uint32_t i = 0; i < r->io.count; i++, data += r->io.size) {
		uint32_t value = 0;
		if (r->io.direction == KVM_EXIT_IO_OUT) {
			memcpy(&value, data, r->io.size);
			pio_store(v->en->cfg.map, r->io.port, r->io.size, value);
		} else {
			value = pio_load(v->en->cfg.map, r->io.port, r->io.size);
			memcpy(data, &value, r->io.size);
		}
	}
	v->unfinished = true;
}

/* KVM may hand over any length up to 8: split into what the map takes. */
static void exit_mmio(struct vcpu *v)
{
	struct kvm_run *r = v->run;

	for (unsigned at = 0, size; at < r->mmio.len; at += size) {
		uint64_t value = 0, gpa = r->mmio.phys_addr + at;
		for (size = 8; size > r->mmio.len - at || (size > 1 && (gpa & 0xfff) + size > 0x1000); size /= 2) { }
		if (r->mmio.is_write) {
			memcpy(&value, r->mmio.data + at, size);
			map_store(v->en->cfg.map, gpa, size, value);
		} else {
			value = map_load(v->en->cfg.map, gpa, size);
			memcpy(r->mmio.data + at, &value, size);
		}
	}
	v->unfinished = true;
}

void kvm_exit_device(struct vcpu *v)
{
	do {
		if (v->run->exit_reason == KVM_EXIT_IO)
			exit_io(v);
		else
			exit_mmio(v);
		v->unfinished = false;
		__atomic_store_n(&v->run->immediate_exit, 1, __ATOMIC_SEQ_CST);
	} while (ioctl(v->fd, KVM_RUN, 0) == 0 &&
		 (v->run->exit_reason == KVM_EXIT_IO || v->run->exit_reason == KVM_EXIT_MMIO));
}

/* True: run() returns *why. */
static bool exit_emulation(struct vcpu *v, enum exit_reason *why, struct error *e)
{
	int ret = kvm_fallback_step(v, e);

	if (!ret && !v->plan.step)
		return false;
	v->stop.why = DEBUG_STEPPED;
	*why = ret < 0 ? EXIT_FAILED : ret ? EXIT_SHUTDOWN : EXIT_DEBUG;
	return true;
}

/* Likewise. */
static bool handle_exit(struct vcpu *v, enum exit_reason *why, struct error *e)
{
	struct kvm_run *r = v->run;

	v->exits[r->exit_reason < KVM_EXITS ? r->exit_reason : 0]++;
	switch (r->exit_reason) {
	case KVM_EXIT_IO: exit_io(v); return false;
	case KVM_EXIT_MMIO: exit_mmio(v); return false;
	case KVM_EXIT_INTR: case KVM_EXIT_IRQ_WINDOW_OPEN: case KVM_EXIT_SET_TPR: return false;
	case KVM_EXIT_DEBUG:
		kvm_debug_note(v);
		*why = EXIT_DEBUG;
		return true;
	case KVM_EXIT_HLT: *why = EXIT_HALT; return true;
	case KVM_EXIT_SHUTDOWN: *why = EXIT_SHUTDOWN; return true;
	case KVM_EXIT_SYSTEM_EVENT: *why = EXIT_SHUTDOWN; return true;
	case KVM_EXIT_INTERNAL_ERROR:
		if (r->internal.suberror == KVM_INTERNAL_ERROR_EMULATION)
			return exit_emulation(v, why, e);
		break;
	default:
		break;
	}
	error_set(e, EIO, "use --engine soft", "run the guest on KVM", "exit reason %u, detail %u",
		  r->exit_reason, r->exit_reason == KVM_EXIT_INTERNAL_ERROR ? r->internal.suberror : 0);
	*why = EXIT_FAILED;
	return true;
}

/* Lets KVM complete the last I/O instruction, so that the state is whole at an instruction's end. */
static bool finish_io(struct vcpu *v, enum exit_reason *why, struct error *e)
{
	while (v->unfinished) {
		v->unfinished = false;
		__atomic_store_n(&v->run->immediate_exit, 1, __ATOMIC_SEQ_CST);
		if (ioctl(v->fd, KVM_RUN, 0) == 0 && handle_exit(v, why, e))
			return true;
	}
	return false;
}

/* immediate_exit is cleared before `kicked` is looked at: see kvm_vcpu_kick(). */
static enum exit_reason run_loop(struct vcpu *v, struct error *e)
{
	enum exit_reason why = EXIT_KICKED;

	for (;;) {
		__atomic_store_n(&v->run->immediate_exit, 0, __ATOMIC_SEQ_CST);
		if (atomic_exchange(&v->kicked, false)) {
			finish_io(v, &why, e);
			return why;
		}
		v->unfinished = false;
		if (ioctl(v->fd, KVM_RUN, 0) < 0) {
			if (errno == EINTR || errno == EAGAIN)
				continue;
			error_errno(e, errno, "use --engine soft", "run the guest on KVM");
			return EXIT_FAILED;
		}
		if (handle_exit(v, &why, e))
			return why;
	}
}

enum exit_reason kvm_vcpu_run(struct vcpu *v, struct error *e)
{
	enum exit_reason why;

	atomic_store(&v->tid, kick_accept());
	why = run_loop(v, e);
	atomic_store(&v->tid, 0);
	return why;
}
