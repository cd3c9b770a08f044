/* Instructions as text, from the opcode table: traces and `vixen` debugging aids. */
#ifndef VIXEN_CPU_FORMAT_H
#define VIXEN_CPU_FORMAT_H

#include <stddef.h>

#include "cpu/insn.h"

enum insn_syntax { SYNTAX_INTEL, SYNTAX_ATT };

/* Writes a NUL-terminated line without newline, cut if it does not fit. rip is the instruction's own address:
 * branch targets and RIP-relative operands are shown absolute. 96 bytes always suffice. */
void insn_format(char *buf, size_t size, const struct insn *in, uint64_t rip, enum insn_syntax syntax);

#endif
