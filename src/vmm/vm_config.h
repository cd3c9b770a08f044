/*
 * What one VM is made of, as `vixen run` asks for it: plain data, and its JSON form.
 *
 * The JSON goes over an inherited file descriptor to vixen-vmm. Strings belong to whoever filled the struct
 * in; after vm_config_decode() they belong to `owner`.
 */
#ifndef VIXEN_VMM_VM_CONFIG_H
#define VIXEN_VMM_VM_CONFIG_H

#include <jansson.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/error.h"
#include "devices/disk.h"
#include "net/port.h"

#define VM_DISKS_MAX 16
#define VM_NETS_MAX 8
#define VM_FORWARDS_MAX 32
#define VM_CPUS_MAX 16
#define VM_MEMORY_MIN (64ull << 20)

enum vm_console { VM_CONSOLE_STDIO, VM_CONSOLE_NONE, VM_CONSOLE_FILE, VM_CONSOLE_KINDS };

#define VM_GROUP_NAME_MAX 31
#define VM_KEYS_MAX 16

struct vm_limits { uint64_t iops, bps, iops_burst, bps_burst; };	/* as struct block_limits */

struct vm_disk {
	const char *path, *format;	/* format NULL: probe */
	const char *key_file[VM_KEYS_MAX];	/* with the passphrases of its encrypted layers, from the top (block.h) */
	unsigned nkeys;
	bool readonly, ephemeral;
	enum disk_bus bus;
	bool cdrom;			/* a drive, on SCSI */
	const char *serial;		/* NULL: one by its place */
	bool write_through;
	uint32_t logical_bytes, physical_bytes;	/* 0: default */
	struct vm_limits limits;	/* of the group, if there is one, else its own */
	const char *group;		/* NULL: none */
};
struct vm_net {
	unsigned nforwards;
	struct net_forward forward[VM_FORWARDS_MAX];
};

struct vm_config {
	const char *name;		/* may be NULL, as all strings below but engine and append */
	const char *engine;		/* "auto", "soft", "kvm" */
	const char *cpu_model;
	const char *kernel, *initrd, *append;
	const char *console_path;
	const char *gdb;		/* where GDB may connect: "PORT" or "unix:PATH" */
	enum vm_console console;
	unsigned cpus;
	uint64_t memory_bytes;
	bool no_reboot, interpret_only, counters;
	bool trace, perf_map;
	const char *trace_path;	/* NULL: stderr */
	bool json;		/* how counters are printed */
	unsigned ndisks, nnets;
	struct vm_disk disk[VM_DISKS_MAX];
	struct vm_net net[VM_NETS_MAX];
	void *owner;
};

/* To be freed with free(); NULL when memory is short. */
char *vm_config_encode(const struct vm_config *c);
/* Checks all that can be checked without opening files. */
int vm_config_decode(struct vm_config *c, const char *json, size_t len, struct error *e);
void vm_config_fini(struct vm_config *c);	/* after vm_config_decode() */
extern const char *const vm_bus_names[DISK_BUSES + 1];	/* "virtio", ...; NULL at the end */
/* One disk alone. j: borrowed, and owns d's strings. */
json_t *vm_disk_encode(const struct vm_disk *d);		/* NULL: no memory, or strings that are no UTF-8 */
int vm_disk_decode(struct vm_disk *d, json_t *j, struct error *e);
json_t *vm_limits_encode(const struct vm_limits *l);
int vm_limits_decode(struct vm_limits *l, json_t *j, struct error *e);		/* NULL: no limits */
/* What a disk's own values allow; todo is for the option's user. */
int vm_disk_check(const struct vm_disk *d, struct error *e);

#endif
