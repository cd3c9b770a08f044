#include "vmm/vm_config.h"

#include <errno.h>
#include <jansson.h>
#include <stdlib.h>
#include <string.h>

#include "devices/disk.h"

static const char *const console_names[VM_CONSOLE_KINDS] = { "stdio", "none", "file" };

const char *const vm_bus_names[DISK_BUSES + 1] = { [DISK_VIRTIO] = "virtio", [DISK_SCSI] = "scsi",
						  [DISK_NVME] = "nvme" };

json_t *vm_limits_encode(const struct vm_limits *l)
{
	return json_pack("{s:I, s:I, s:I, s:I}", "iops", (json_int_t)l->iops, "bps", (json_int_t)l->bps, "iops_burst",
			 (json_int_t)l->iops_burst, "bps_burst", (json_int_t)l->bps_burst);
}

static json_t *encode_keys(const struct vm_disk *d)
{
	json_t *list = json_array();
	for (unsigned i = 0; i < d->nkeys; i++)
		json_array_append_new(list, json_string(d->key_file[i]));
	return list;
}

json_t *vm_disk_encode(const struct vm_disk *d)
{
	return json_pack("{s:s, s:b, s:s, s:s*, s:o, s:b, s:b, s:s*, s:b, s:i, s:i, s:s*, s:o}", "bus", vm_bus_names[d->bus],
			 "cdrom", d->cdrom, "path", d->path, "format", d->format, "key_files", encode_keys(d), "readonly",
			 d->readonly, "ephemeral", d->ephemeral, "serial", d->serial, "write_through", d->write_through,
			 "logical_bytes", (int)d->logical_bytes, "physical_bytes", (int)d->physical_bytes, "group", d->group,
			 "limits", vm_limits_encode(&d->limits));
}

static json_t *encode_disks(const struct vm_config *c)
{
	json_t *list = json_array();
	for (unsigned i = 0; i < c->ndisks; i++) {
		if (json_array_append_new(list, vm_disk_encode(&c->disk[i]))) {
			json_decref(list);
			return NULL;
		}
	}
	return list;
}

static json_t *encode_nets(const struct vm_config *c)
{
	json_t *list = json_array();
	for (unsigned i = 0; i < c->nnets; i++) {
		json_t *forwards = json_array();
		for (unsigned j = 0; j < c->net[i].nforwards; j++) {
			const struct net_forward *f = &c->net[i].forward[j];
			json_array_append_new(forwards,
					      json_pack("{s:b, s:s, s:i, s:i}", "udp", f->udp, "host_addr", f->host_addr,
							"host_port", f->host_port, "guest_port", f->guest_port));
		}
		json_array_append_new(list, json_pack("{s:s, s:o}", "mode", "user", "forwards", forwards));
	}
	return list;
}

char *vm_config_encode(const struct vm_config *c)
{
	json_t *root = json_pack("{s:s*, s:s*, s:s, s:s*, s:s*, s:s*, s:s, s:s, s:s*, s:i, s:I, s:b, s:b, s:b, s:b,"
				 "s:b, s:b, s:s*, s:o, s:o}",
				 "gdb", c->gdb, "name", c->name, "engine", c->engine, "cpu_model", c->cpu_model,
				 "kernel", c->kernel, "initrd", c->initrd, "append", c->append,
				 "console", console_names[c->console], "console_path", c->console_path,
				 "cpus", (int)c->cpus, "memory_bytes", (json_int_t)c->memory_bytes,
				 "no_reboot", c->no_reboot, "interpret_only", c->interpret_only, "counters", c->counters,
				 "json", c->json,
				 "trace", c->trace, "perf_map", c->perf_map, "trace_path", c->trace_path,
				 "disks", encode_disks(c), "nets", encode_nets(c));
	char *out = root ? json_dumps(root, JSON_INDENT(2)) : NULL;
	json_decref(root);
	return out;
}

static int refuse(struct error *e, const char *why)
{
	return error_set(e, EINVAL, "start it through vixen run", "read the VM's configuration", "%s", why);
}

static bool printable(const char *s)
{
	while (*s >= ' ' && *s <= '~')
		s++;
	return !*s;
}

int vm_disk_check(const struct vm_disk *d, struct error *e)
{
	const char *what = "plug in a disk";
	uint32_t logical = d->logical_bytes ? d->logical_bytes : 512, physical = d->physical_bytes;
	if (d->serial && (!*d->serial || strlen(d->serial) > DISK_SERIAL_MAX || !printable(d->serial)))
		return error_set(e, EINVAL, "shorten it", what, "serial '%.40s' is not 1 to %u printable ASCII characters",
				 d->serial, DISK_SERIAL_MAX);
	if (d->group && (!*d->group || strlen(d->group) > VM_GROUP_NAME_MAX || !printable(d->group)))
		return error_set(e, EINVAL, "shorten it", what, "group '%.40s' is not 1 to %d printable ASCII characters",
				 d->group, VM_GROUP_NAME_MAX);
	if (logical != 512 && logical != 4096)
		return error_set(e, EINVAL, "leave it out", what, "a logical block size of %u is neither 512 nor 4096",
				 logical);
	if (physical && (physical & (physical - 1) || physical < logical || physical > DISK_BLOCK_MAX))
		return error_set(e, EINVAL, "leave it out", what, "a physical block size of %u is no power of two from "
				 "the logical one to %u", physical, DISK_BLOCK_MAX);
	return 0;
}

int vm_limits_decode(struct vm_limits *l, json_t *j, struct error *e)
{
	json_int_t v[4] = { 0 };
	if (j && json_unpack(j, "{s?I, s?I, s?I, s?I}", "iops", &v[0], "bps", &v[1], "iops_burst", &v[2], "bps_burst", &v[3]))
		return refuse(e, "a limit is no number");
	for (unsigned i = 0; i < 4; i++)
		if (v[i] < 0 || v[i] > 1ll << 48)
			return refuse(e, "a limit is out of range");
	*l = (struct vm_limits){ (uint64_t)v[0], (uint64_t)v[1], (uint64_t)v[2], (uint64_t)v[3] };
	return 0;
}

static int decode_bus(struct vm_disk *d, const char *name, struct error *e)
{
	for (int i = 0; i < DISK_BUSES; i++) {
		if (!strcmp(name, vm_bus_names[i])) {
			d->bus = (enum disk_bus)i;
			return d->cdrom && d->bus != DISK_SCSI ? refuse(e, "a CD-ROM drive is not on SCSI") : 0;
		}
	}
	return refuse(e, "a disk is on an unknown bus");
}

static int decode_keys(struct vm_disk *d, json_t *list, struct error *e)
{
	size_t n = json_array_size(list);
	if (n > VM_KEYS_MAX)
		return refuse(e, "a disk has too many key files");
	for (d->nkeys = 0; d->nkeys < n; d->nkeys++) {
		d->key_file[d->nkeys] = json_string_value(json_array_get(list, d->nkeys));
		if (!d->key_file[d->nkeys])
			return refuse(e, "a key file has no name");
	}
	return 0;
}

int vm_disk_decode(struct vm_disk *d, json_t *j, struct error *e)
{
	const char *bus = "virtio";
	int cdrom = 0, readonly = 0, ephemeral = 0, write_through = 0, logical = 0, physical = 0;
	json_t *limits = NULL, *keys = NULL;
	if (json_unpack(j, "{s?s, s?o, s?s, s?b, s:s, s?s, s?o, s?b, s?b, s?s, s?b, s?i, s?i}", "group", &d->group, "limits",
			&limits, "bus", &bus, "cdrom", &cdrom, "path", &d->path, "format", &d->format, "key_files", &keys,
			"readonly", &readonly, "ephemeral", &ephemeral, "serial", &d->serial, "write_through",
			&write_through, "logical_bytes", &logical, "physical_bytes", &physical) || logical < 0 || physical < 0)
		return refuse(e, "a disk has no path, or a field of the wrong type");
	d->cdrom = cdrom;
	d->readonly = readonly;
	d->ephemeral = ephemeral;
	d->write_through = write_through;
	d->logical_bytes = (uint32_t)logical;
	d->physical_bytes = (uint32_t)physical;
	int ret = decode_bus(d, bus, e);
	if (!ret)
		ret = decode_keys(d, keys, e);
	if (!ret)
		ret = vm_limits_decode(&d->limits, limits, e);
	return ret ? ret : vm_disk_check(d, e);
}

static int decode_forward(struct net_forward *f, json_t *j, struct error *e)
{
	int udp = 0, host = 0, guest = 0;
	const char *addr = NULL;
	if (json_unpack(j, "{s:b, s:s, s:i, s:i}", "udp", &udp, "host_addr", &addr, "host_port", &host, "guest_port",
			&guest) || strlen(addr) >= sizeof f->host_addr || host < 1 || host > 65535 || guest < 1 ||
	    guest > 65535)
		return refuse(e, "a port forward is malformed");
	*f = (struct net_forward){ .udp = udp, .host_port = (uint16_t)host, .guest_port = (uint16_t)guest };
	strcpy(f->host_addr, addr);
	return 0;
}

static int decode_net(struct vm_net *n, json_t *j, struct error *e)
{
	json_t *forwards = json_object_get(j, "forwards"), *one;
	size_t i;
	if (json_array_size(forwards) > VM_FORWARDS_MAX)
		return refuse(e, "too many port forwards");
	json_array_foreach(forwards, i, one) {
		int ret = decode_forward(&n->forward[n->nforwards++], one, e);
		if (ret)
			return ret;
	}
	return 0;
}

static int decode_lists(struct vm_config *c, json_t *disks, json_t *nets, struct error *e)
{
	json_t *one;
	size_t i;
	int ret;
	if (json_array_size(disks) > VM_DISKS_MAX || json_array_size(nets) > VM_NETS_MAX)
		return refuse(e, "too many disks or network cards");
	json_array_foreach(disks, i, one) {
		if ((ret = vm_disk_decode(&c->disk[c->ndisks++], one, e)))
			return ret;
	}
	json_array_foreach(nets, i, one) {
		if ((ret = decode_net(&c->net[c->nnets++], one, e)))
			return ret;
	}
	return 0;
}

static int decode_console(struct vm_config *c, const char *name, struct error *e)
{
	for (int i = 0; i < VM_CONSOLE_KINDS; i++) {
		if (!strcmp(name, console_names[i])) {
			c->console = (enum vm_console)i;
			return c->console == VM_CONSOLE_FILE && !c->console_path ? refuse(e, "the console has no file") : 0;
		}
	}
	return refuse(e, "the console is of an unknown kind");
}

int vm_config_decode(struct vm_config *c, const char *json, size_t len, struct error *e)
{
	json_error_t je;
	json_t *root = json_loadb(json, len, JSON_REJECT_DUPLICATES, &je), *disks = NULL, *nets = NULL;
	json_int_t memory = 0;
	int cpus = 0, no_reboot = 0, interpret_only = 0, counters = 0, as_json = 0,
	    trace = 0, perf_map = 0, ret;
	const char *console = "";
	*c = (struct vm_config){ .owner = root };
	if (!root)
		return refuse(e, je.text);
	if (json_unpack_ex(root, &je, 0, "{s?s, s?s, s:s, s?s, s?s, s?s, s:s, s:s, s?s, s:i, s:I, s?b, s?b, s?b, s?b,"
			   "s?b, s?b, s?s, s:o, s:o}",
			   "gdb", &c->gdb, "name", &c->name, "engine", &c->engine, "cpu_model", &c->cpu_model, "kernel", &c->kernel,
			   "initrd", &c->initrd, "append", &c->append, "console", &console, "console_path",
			   &c->console_path, "cpus", &cpus, "memory_bytes", &memory, "no_reboot", &no_reboot,
			   "interpret_only", &interpret_only, "counters", &counters,
			   "json", &as_json, "trace", &trace, "perf_map", &perf_map, "trace_path", &c->trace_path, "disks", &disks, "nets", &nets))
		ret = refuse(e, je.text);
	else if (cpus < 1 || cpus > VM_CPUS_MAX)
		ret = refuse(e, "the number of CPUs is not in 1..16");
	else if (memory < (json_int_t)VM_MEMORY_MIN || memory % 4096)
		ret = refuse(e, "the memory size is under 64 MiB or no multiple of 4 KiB");
	else if (!(ret = decode_console(c, console, e)))
		ret = decode_lists(c, disks, nets, e);
	c->cpus = (unsigned)cpus;
	c->memory_bytes = (uint64_t)memory;
	c->no_reboot = no_reboot;
	c->interpret_only = interpret_only;
	c->counters = counters;
	c->json = as_json;
	c->trace = trace;
	c->perf_map = perf_map;
	if (ret)
		vm_config_fini(c);
	return ret;
}

void vm_config_fini(struct vm_config *c)
{
	json_decref(c->owner);
	*c = (struct vm_config){ 0 };
}
