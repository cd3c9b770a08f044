/* Stubs for fp_native.c, kept per engine by the instruction's bytes. */
#ifndef VIXEN_ENGINE_SOFT_FP_STUB_H
#define VIXEN_ENGINE_SOFT_FP_STUB_H

#include <stdint.h>

#include "base/error.h"
#include "cpu/insn.h"

struct vcpu;

struct fp_frame { uint64_t rax, rcx, rdx; void *memory; uint64_t flags; };
#define FP_STUB_BYTES 64

struct fp_stubs;
int fp_stubs_new(struct fp_stubs **out, struct error *e);
void fp_stubs_free(struct fp_stubs *s);
/* The executable stub for `in`, made by `emit` (at most FP_STUB_BYTES) if it is new. On v's thread. The store
 * is bounded: past it a vCPU has one slot of its own, so the stub must be called before the next is asked for. */
const void *fp_stub(struct vcpu *v, const struct insn *in,
		    unsigned (*emit)(uint8_t *out, const struct insn *in));

#endif
