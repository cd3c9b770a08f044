/* Declarations of all instruction handlers, from the one list. */
#ifndef VIXEN_ENGINE_SOFT_HANDLERS_H
#define VIXEN_ENGINE_SOFT_HANDLERS_H

#include "engine/soft/operand.h"

#define HANDLER(op, fn, flags) INTERP_HANDLER(fn);
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wredundant-decls"
#include "engine/soft/handlers.def"
#pragma GCC diagnostic pop
#undef HANDLER

/* Picks a handler made for the instruction's exact operands, or returns the general one. */
interp_fn *interp_specialise(const struct insn *in, interp_fn *general);
INTERP_HANDLER(op_jcc_z);
INTERP_HANDLER(op_jcc_nz);
INTERP_HANDLER(op_jcc_c);
INTERP_HANDLER(op_jcc_nc);

#endif
