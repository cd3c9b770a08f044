/* Is this host's /dev/kvm worth using? Some are nested and emulate guest kernels, slowly and not in full. */
#ifndef VIXEN_ENGINE_KVM_PROBE_H
#define VIXEN_ENGINE_KVM_PROBE_H

#include <stdbool.h>

struct kvm_probe {
	bool good;		/* --engine auto takes it */
	bool emulates;		/* kernels, rather than run them: engine_kvm_user is for such */
	char found[160];	/* in words, for vixen doctor */
};

/* Runs guest code in real, protected and long mode; takes under a second. Any thread. */
void kvm_probe(struct kvm_probe *out);

#endif
