/* What a disk shows of itself, on whichever bus it stands. */
#ifndef VIXEN_DEVICES_DISK_H
#define VIXEN_DEVICES_DISK_H

#include <stdbool.h>
#include <stdint.h>

#define DISK_SERIAL_MAX 20u		/* bytes; what all buses can carry */
#define DISK_BLOCK_MAX (64u << 10)	/* of physical_bytes */

enum disk_bus { DISK_VIRTIO, DISK_SCSI, DISK_NVME, DISK_BUSES };

/* Zeroed memory is the defaults.  Read while the device is made; strings stay the caller's. */
struct disk_traits {
	const char *serial;		/* printable ASCII; NULL: none */
	uint32_t logical_bytes;		/* 512 (default) or 4096, which divides the disk's size */
	uint32_t physical_bytes;	/* a power of two from logical_bytes to DISK_BLOCK_MAX; default 4096 */
	bool write_through;		/* what is written is durable when it completes, until the guest chooses otherwise */
};

static inline uint32_t disk_logical(const struct disk_traits *t)
{
	return t->logical_bytes ? t->logical_bytes : 512;
}

static inline uint32_t disk_physical(const struct disk_traits *t)
{
	return t->physical_bytes ? t->physical_bytes : 4096;
}

#endif
