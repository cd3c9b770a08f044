/* qcow2: what its files look like from outside. */
#include <string.h>

#include "block/node.h"

static bool qcow2_probe(const uint8_t *head, size_t len, uint64_t file_bytes)
{
	return len >= 8 && !memcmp(head, "QFI\xfb", 4);
}

const struct driver qcow2_driver = { .name = "qcow2", .suffix = ".qcow2", .probe = qcow2_probe };
