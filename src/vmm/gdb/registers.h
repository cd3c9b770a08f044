/* Registers by GDB's numbers, and the target description that names them. */
#ifndef VIXEN_VMM_GDB_REGISTERS_H
#define VIXEN_VMM_GDB_REGISTERS_H

#include <stddef.h>

#include "cpu/state.h"

#define GDB_REG_BYTES_MAX 16

/* What a debugger reads and writes of a vCPU. */
struct gdb_cpu {
	struct x86_state s;
	uint8_t cr8;
};

unsigned gdb_reg_count(void);
const char *gdb_reg_name(unsigned reg);
unsigned gdb_reg_bytes(unsigned reg);
/* Little-endian, gdb_reg_bytes() of them. */
void gdb_reg_get(const struct gdb_cpu *c, unsigned reg, uint8_t *out);
void gdb_reg_set(struct gdb_cpu *c, unsigned reg, const uint8_t *in);
/* target.xml, to be freed with free(); NULL when memory is short. */
char *gdb_reg_xml(void);

#endif
