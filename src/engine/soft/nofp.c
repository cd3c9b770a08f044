/* A CPU without floating point or SIMD: every such instruction is undefined. Built only when fp_*.c is not there. */
#include "engine/soft/vcpu.h"

bool fp_execute(struct vcpu *v, const struct insn *in) { return false; }
