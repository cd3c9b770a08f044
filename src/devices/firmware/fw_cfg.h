/*
 * The firmware configuration device: named items for the guest's firmware, at port 510h (selector), 511h (data)
 * and 514h (DMA) (QEMU docs/specs/fw_cfg; that interface's signature is part of it). Items are read-only.
 *
 * Thread: items are added before the guest runs.
 */
#ifndef VIXEN_DEVICES_FIRMWARE_FW_CFG_H
#define VIXEN_DEVICES_FIRMWARE_FW_CFG_H

#include <stddef.h>
#include <stdint.h>

struct fw_cfg;
struct map;

#define FW_CFG_PORT 0x510
#define FW_CFG_RAM_SIZE 0x03
#define FW_CFG_CPUS 0x05
#define FW_CFG_CPUS_MAX 0x0f

struct fw_cfg *fw_cfg_new(struct map *m);
void fw_cfg_free(struct fw_cfg *f);
void fw_cfg_reset(struct fw_cfg *f);
/* Both copy the data. -ENOSPC: no room for more; -EINVAL: a name longer than 55 bytes, or a bad key. */
int fw_cfg_item(struct fw_cfg *f, uint16_t key, const void *data, size_t len);
int fw_cfg_file(struct fw_cfg *f, const char *name, const void *data, size_t len);

#endif
