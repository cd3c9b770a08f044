/* The instruction trace of one vCPU (trace.c). Called only while soft_engine.trace is set, on the vCPU's thread. */
#ifndef VIXEN_ENGINE_SOFT_TRACE_H
#define VIXEN_ENGINE_SOFT_TRACE_H

#include <stdbool.h>
#include <stdint.h>

struct insn;
struct vcpu;

void trace_insn(struct vcpu *v, const struct insn *in);	/* before it executes */
void trace_exception(struct vcpu *v, uint8_t vector, bool has_error, uint32_t error);	/* before it is delivered */
void trace_interrupt(struct vcpu *v, uint8_t vector);
void trace_end(struct vcpu *v);		/* the last line, and what the trace holds; also without a trace */

#endif
