/*
 * The KVM engine: life cycle. The calls are described in Linux' Documentation/virt/kvm/api.rst.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include "engine/kvm/kick.h"
#include "engine/kvm/kvm_private.h"
#include "host/loop.h"

static int fail(struct error *e, const char *what)
{
	return error_errno(e, errno, "use --engine soft", "%s", what);
}

static int vm_open(struct engine *en, struct error *e)
{
	int run_bytes;

	en->dev_fd = open("/dev/kvm", O_RDWR | O_CLOEXEC);
	if (en->dev_fd < 0)
		return error_errno(e, errno, "join the group 'kvm', or use --engine soft", "open /dev/kvm");
	if (ioctl(en->dev_fd, KVM_GET_API_VERSION, 0) != KVM_API_VERSION)
		return error_set(e, ENOTSUP, "use --engine soft", "use /dev/kvm", "it speaks another API version");
	run_bytes = ioctl(en->dev_fd, KVM_GET_VCPU_MMAP_SIZE, 0);
	if (run_bytes < (int)sizeof(struct kvm_run))
		return fail(e, "ask KVM for its run area");
	en->run_bytes = (size_t)run_bytes;
	en->vm_fd = ioctl(en->dev_fd, KVM_CREATE_VM, 0);
	if (en->vm_fd < 0)
		return fail(e, "create a KVM machine");
	struct kvm_enable_cap cap = { .cap = KVM_CAP_EXIT_ON_EMULATION_FAILURE, .args[0] = 1 };
	en->fails_to_us = ioctl(en->vm_fd, KVM_ENABLE_CAP, &cap) == 0;
	return 0;
}

/* The TSS and identity map lie below the BIOS, where no RAM is. */
static int vm_chips(struct engine *en, struct error *e)
{
	uint64_t identity = 0xfeffc000;
	struct kvm_pit_config pit = { .flags = KVM_PIT_SPEAKER_DUMMY };	/* port 61H too */

	if (ioctl(en->vm_fd, KVM_SET_IDENTITY_MAP_ADDR, &identity) < 0 ||
	    ioctl(en->vm_fd, KVM_SET_TSS_ADDR, 0xfeffd000ul) < 0)
		return fail(e, "place KVM's own pages");
	if (ioctl(en->vm_fd, KVM_CREATE_IRQCHIP, 0) < 0)
		return fail(e, "create KVM's interrupt controllers");
	if (ioctl(en->vm_fd, KVM_CREATE_PIT2, &pit) < 0)
		return fail(e, "create KVM's timer");
	int ret = kvm_routes_commit(en);
	return ret < 0 ? error_errno(e, -ret, "use --engine soft", "route KVM's interrupts") : 0;
}

void kvm_engine_destroy(struct engine *en)
{
	if (en->soft)
		engine_soft.destroy(en->soft);
	if (en->vm_fd >= 0)
		close(en->vm_fd);
	if (en->dev_fd >= 0)
		close(en->dev_fd);
	pthread_mutex_destroy(&en->route_lock);
	pthread_mutex_destroy(&en->soft_lock);
	pthread_mutex_destroy(&en->slot_lock);
	free(en);
}

int kvm_engine_create(struct engine **out, const struct engine_config *cfg, bool user_only, struct error *e)
{
	struct engine *en = calloc(1, sizeof(*en));
	struct engine_config soft;
	int ret;

	if (!en)
		return error_set(e, ENOMEM, NULL, "create the KVM engine", "out of memory");
	en->dev_fd = en->vm_fd = -1;
	en->cfg = *cfg;
	en->user_only = en->logging = user_only;
	en->start_ns = clock_now_ns();
	pthread_mutex_init(&en->route_lock, NULL);
	pthread_mutex_init(&en->soft_lock, NULL);
	pthread_mutex_init(&en->slot_lock, NULL);
	kick_prepare();
	ret = vm_open(en, e);
	if (!ret && !user_only)
		ret = vm_chips(en, e);
	if (!ret && (ret = kvm_slots_update(en)) < 0)
		ret = error_errno(e, -ret, "use --engine soft", "give KVM the guest's memory");
	soft = *cfg;
	soft.interpret_only |= !user_only;
	soft.host_tsc = user_only;
	if (!ret)
		ret = engine_soft.create(&en->soft, &soft, e);
	if (ret) {
		kvm_engine_destroy(en);
		return ret;
	}
	kvm_listen(en);
	*out = en;
	return 0;
}

static int kvm_create(struct engine **out, const struct engine_config *cfg, struct error *e)
{
	return kvm_engine_create(out, cfg, false, e);
}

uint64_t kvm_tsc_base(const struct engine *en)
{
	uint64_t hz = en->tsc_hz ? en->tsc_hz : en->cfg.tsc_hz;
	return (uint64_t)((unsigned __int128)(clock_now_ns() - en->start_ns) * hz / 1000000000u);
}

static uint64_t kvm_tsc(struct vcpu *v) { return kvm_tsc_base(v->en) + v->tsc_offset; }

/* If the guest has a kvmclock. Of a host that is suspended KVM tells it by itself. */
static void kvm_stood_still(struct vcpu *v) { ioctl(v->fd, KVM_KVMCLOCK_CTRL, 0); }

const struct engine_ops engine_kvm = {
	.name = "kvm",
	.create = kvm_create,
	.destroy = kvm_engine_destroy,
	.vcpu_create = kvm_vcpu_create,
	.vcpu_destroy = kvm_vcpu_destroy,
	.run = kvm_vcpu_run,
	.kick = kvm_vcpu_kick,
	.get_state = kvm_get_state,
	.set_state = kvm_set_state,
	.tsc = kvm_tsc,
	.stood_still = kvm_stood_still,
	.get_cr8 = kvm_get_cr8,
	.set_cr8 = kvm_set_cr8,
	.debug_set = kvm_debug_set,
	.debug_get = kvm_debug_get,
	.counters = kvm_counters,
	.irqchip = &kvm_irqchip_ops,
};
