/* What the vCPUs of a board did, as text. */
#ifndef VIXEN_VMM_COUNTERS_H
#define VIXEN_VMM_COUNTERS_H

#include <stdbool.h>
#include <stdio.h>

struct board;

/* The board is stopped. A table, or one line of JSON: {"cpus": [{GROUP: {NAME: N, ...}, ...}, ...]}. */
void counters_print(struct board *b, bool json, FILE *out);

#endif
