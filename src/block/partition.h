/*
 * Partition tables, MBR and GPT, of any disk.  What they say was written by a guest: all of it is checked, and bounded.
 */
#ifndef VIXEN_BLOCK_PARTITION_H
#define VIXEN_BLOCK_PARTITION_H

#include "block/block.h"

#define PARTITIONS_MAX 1024u

enum partition_scheme { PARTITION_NONE, PARTITION_MBR, PARTITION_GPT };

struct partition {
	unsigned number;		/* as Linux counts them; logical ones from 5 */
	uint64_t offset, bytes;
	char type[40], name[112], uuid[40];	/* MBR: "0x83", no name, no UUID */
	bool bootable, outside;		/* outside: not inside the disk, or not at all in order */
};

struct partition_table {
	enum partition_scheme scheme;
	char id[40];
	bool second;			/* GPT: the first copy is damaged, this is the one at the end */
	bool cut;			/* a chain of logical partitions that goes nowhere, or on without end */
	unsigned n;
	struct partition *list;		/* free() */
};

/* In a coroutine, or run like block_open_with.  0: none, or one that was understood; -errno of reading. */
int block_partitions(struct block *b, struct partition_table *out);
/* "Linux filesystem"; NULL: not known. */
const char *partition_type_name(enum partition_scheme s, const char *type);

#endif
