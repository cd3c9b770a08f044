/* vixen run: flags to a VM's configuration, and the VM to its end. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/log.h"
#include "cli/catalog.h"
#include "cli/disk_option.h"
#include "cli/options.h"
#include "cli/runtime.h"
#include "cli/verb.h"
#include "cli/vmm_process.h"
#include "vmm/vm_config.h"

#define APPEND_DEFAULT "console=ttyS0"

struct run {
	struct vm_config c;
	const char *image, *append;
	bool nets_given;
	struct image catalog;
	char append_text[4096];
	char *copies[VM_DISKS_MAX];	/* of --disk values, cut at their commas */
	unsigned ncopies;
};

static bool one_of(const char *option, const char *value, const char *const *names)
{
	char list[128] = "";
	for (unsigned i = 0; names[i]; i++) {
		if (!strcmp(names[i], value))
			return true;
		strcat(strcat(list, i ? ", " : ""), names[i]);
	}
	const char *near = nearest(value, names);
	if (near)
		return usage_error("run", "--%s '%s' is not known, did you mean '%s'?", option, value, near);
	return usage_error("run", "--%s '%s' is not known (%s)", option, value, list);
}

static bool set_name(void *r, const char *v)
{
	((struct run *)r)->c.name = v;
	return runtime_name_valid(v) ||
	       usage_error("run", "--name '%s' is not 1 to %d letters, digits, '.', '_' or '-'", v, RUNTIME_NAME_MAX);
}
static bool set_kernel(void *r, const char *v) { ((struct run *)r)->c.kernel = v; return true; }
static bool set_initrd(void *r, const char *v) { ((struct run *)r)->c.initrd = v; return true; }
static bool set_append(void *r, const char *v) { ((struct run *)r)->append = v; return true; }
static bool set_no_reboot(void *r, const char *v) { (void)v; return ((struct run *)r)->c.no_reboot = true; }
static bool set_interpret(void *r, const char *v) { (void)v; return ((struct run *)r)->c.interpret_only = true; }

static bool set_counters(void *r, const char *v) { (void)v; return ((struct run *)r)->c.counters = true; }

static bool set_perf_map(void *r, const char *v) { (void)v; return ((struct run *)r)->c.perf_map = true; }

static bool set_trace(void *opaque, const char *v)
{
	struct run *r = opaque;
	r->c.trace_path = v;
	return (r->c.trace = !v || *v) || usage_error("run", "--trace= names no file");
}

static bool set_format(void *opaque, const char *v)
{
	static const char *const names[] = { "table", "json", NULL };
	((struct run *)opaque)->c.json = !strcmp(v, "json");
	return one_of("format", v, names);
}

static bool set_engine(void *opaque, const char *v)
{
	static const char *const names[] = { "auto", "soft", "kvm", NULL };
	((struct run *)opaque)->c.engine = v;
	return one_of("engine", v, names);
}

static bool set_cpu(void *opaque, const char *v)
{
	static const char *const names[] = { "host", "x86-64-v2", "x86-64-v3", "x86-64-v4", NULL };
	((struct run *)opaque)->c.cpu_model = v;
	return one_of("cpu", v, names);
}

static bool set_cpus(void *opaque, const char *v)
{
	uint64_t n;
	if (!number_parse(v, VM_CPUS_MAX, &n) || !n)
		return usage_error("run", "--cpus '%s' is not a number from 1 to %d", v, VM_CPUS_MAX);
	((struct run *)opaque)->c.cpus = (unsigned)n;
	return true;
}

static bool set_memory(void *opaque, const char *v)
{
	struct run *r = opaque;
	if (!size_parse(v, &r->c.memory_bytes) || r->c.memory_bytes > 1ull << 42)
		return usage_error("run", "--memory '%s' is not a size such as 512M or 2G", v);
	if (r->c.memory_bytes < VM_MEMORY_MIN || r->c.memory_bytes % 4096)
		return usage_error("run", "--memory '%s' is under 64M or no multiple of 4K", v);
	return true;
}

static bool set_firmware(void *opaque, const char *v)
{
	(void)opaque;
	return usage_error("run", "--firmware '%s' is not in this version, give the guest's kernel with --kernel", v);
}

static bool disk_add(struct run *r, const struct vm_disk *d)
{
	if (r->c.ndisks == VM_DISKS_MAX)
		return usage_error("run", "more than %d disks", VM_DISKS_MAX);
	r->c.disk[r->c.ndisks++] = *d;
	return true;
}

static bool set_cdrom(void *r, const char *v)
{
	return disk_add(r, &(struct vm_disk){ .path = v, .format = "raw", .bus = DISK_SCSI, .cdrom = true, .readonly = true });
}

static bool set_gdb(void *opaque, const char *v)
{
	uint64_t port;
	((struct run *)opaque)->c.gdb = v;
	if (number_parse(v, 65535, &port) || (!strncmp(v, "unix:", 5) && v[5]))
		return true;
	return usage_error("run", "--gdb '%s' is neither a port nor unix:PATH", v);
}

static bool set_disk(void *opaque, const char *v)
{
	struct run *r = opaque;
	struct vm_disk d;
	if (r->ncopies == VM_DISKS_MAX)
		return usage_error("run", "more than %d disks", VM_DISKS_MAX);
	char *s = r->copies[r->ncopies++] = strdup(v);
	if (!s)
		return usage_error("run", "out of memory");
	return disk_option_parse("run", "--disk", s, &d) && disk_add(r, &d);
}

/* [tcp:|udp:][ADDRESS:]HOST:GUEST; IPv4 addresses. Without one, only this host can connect. */
static bool forward_parse(struct net_forward *f, const char *v)
{
	char text[64], *part[3];
	unsigned n = 0;
	*f = (struct net_forward){ .host_addr = "127.0.0.1" };
	if (!strncmp(v, "udp:", 4) || !strncmp(v, "tcp:", 4)) {
		f->udp = *v == 'u';
		v += 4;
	}
	if (strlen(v) >= sizeof text)
		return false;
	strcpy(text, v);
	char *at = text;
	for (char *word; (word = strsep(&at, ":"));) {
		if (n == 3)
			return false;
		part[n++] = word;
	}
	uint64_t host, guest;
	if (n < 2 || !number_parse(part[n - 2], 65535, &host) || !number_parse(part[n - 1], 65535, &guest) || !host ||
	    !guest)
		return false;
	if (n == 3)
		snprintf(f->host_addr, sizeof f->host_addr, "%s", part[0]);
	f->host_port = (uint16_t)host;
	f->guest_port = (uint16_t)guest;
	return true;
}

static bool net_user(struct run *r, char *options)
{
	if (r->c.nnets == VM_NETS_MAX)
		return usage_error("run", "more than %d network cards", VM_NETS_MAX);
	struct vm_net *n = &r->c.net[r->c.nnets++];
	for (char *word; (word = strsep(&options, ","));) {
		if (strncmp(word, "forward=", 8))
			return usage_error("run", "--net user: '%s' is not known (forward=HOST:GUEST)", word);
		if (n->nforwards == VM_FORWARDS_MAX)
			return usage_error("run", "more than %d forwards", VM_FORWARDS_MAX);
		if (!forward_parse(&n->forward[n->nforwards++], word + 8))
			return usage_error("run", "--net user: '%s' is not forward=[udp:][ADDRESS:]HOST:GUEST", word);
	}
	return true;
}

static bool set_net(void *opaque, const char *v)
{
	static const char *const names[] = { "user", "none", NULL };
	struct run *r = opaque;
	char text[2048];
	r->nets_given = true;
	if (!strcmp(v, "none"))
		return true;
	if (!strncmp(v, "switch=", 7))
		return usage_error("run", "--net switch= is not in this version, use --net user or none");
	if (strlen(v) >= sizeof text)
		return usage_error("run", "--net is too long");
	strcpy(text, v);
	char *options = text, *mode = strsep(&options, ",");
	return one_of("net", mode, names) && (!strcmp(mode, "user") ? net_user(r, options)
				: usage_error("run", "--net none takes no options"));
}

static bool set_console(void *opaque, const char *v)
{
	static const char *const names[] = { "stdio", "none", "file:PATH", NULL };
	struct run *r = opaque;
	if (!strncmp(v, "file:", 5) && v[5]) {
		r->c.console = VM_CONSOLE_FILE;
		r->c.console_path = v + 5;
		return true;
	}
	r->c.console = !strcmp(v, "none") ? VM_CONSOLE_NONE : VM_CONSOLE_STDIO;
	return strcmp(v, "file:PATH") ? one_of("console", v, names) : true;
}

static bool set_image(void *opaque, const char *v)
{
	struct run *r = opaque;
	if (r->image)
		return usage_error("run", "two images given, '%s' and '%s'; add a second disk with --disk", r->image, v);
	r->image = v;
	return true;
}

static const struct option_row options[] = {
	{ "name", "NAME", "what the machine is called", set_name },
	{ "engine", "auto|soft|kvm", "how guest code is run (auto: what is best here)", set_engine },
	{ "cpu", "MODEL", "x86-64-v2, -v3, -v4 or host (default host)", set_cpu },
	{ "cpus", "N", "virtual CPUs, 1 to 16 (default 1)", set_cpus },
	{ "memory", "SIZE", "memory, from 64M on (default 1G)", set_memory },
	{ "kernel", "FILE", "boot this bzImage, PVH ELF or multiboot file", set_kernel },
	{ "initrd", "FILE", "initial RAM disk for --kernel", set_initrd },
	{ "append", "STR", "kernel command line (default " APPEND_DEFAULT "); with an image: added to its own",
	  set_append },
	{ "firmware", "bios|uefi|FILE", "boot through firmware (not in this version)", set_firmware },
	{ "disk", DISK_OPTION_FORM, "a disk, with format=FORMAT, readonly, ephemeral (writes are forgotten at the end), key-file=FILE,\n"
	  "bus=virtio|scsi|nvme, serial=TEXT, cache=writeback|writethrough, block-size=512|4096, physical-block-size=BYTES;\n"
	  "limits for a second: iops=NUMBER, bps=BYTES, iops-burst=, bps-burst=, group=NAME shares them", set_disk },
	{ "cdrom", "FILE", "a CD-ROM drive with this ISO image in it", set_cdrom },
	{ "net", "user[,forward=HOST:GUEST]...|none", "a network card on NAT, with port forwards (default user)", set_net },
	{ "console", "stdio|none|file:PATH", "where the first serial port goes (default stdio)", set_console },
	{ "no-reboot", NULL, "end, with exit code 0, when the guest resets", set_no_reboot },
	{ "gdb", "PORT|unix:PATH", "wait, before the first instruction, for GDB to connect", set_gdb },
	{ "counters", NULL, "say on stderr, at the end, what each CPU did", set_counters },
	{ "format", "table|json", "how --counters says it (default table)", set_format },
	{ "trace", "[=FILE]", "write each instruction and what it changed to stderr or a file", set_trace },
	{ "perf-map", NULL, "name translated code in /tmp/perf-PID.map, for perf", set_perf_map },
	{ "interpret", NULL, "soft engine: interpret only, for tests", set_interpret },
	{ 0 },
};

static const struct command run_command = {
	.verb = "run",
	.usage = "run [IMAGE] [OPTIONS]",
	.about = "Starts a virtual machine in the foreground. IMAGE is a name from 'vixen image list', a directory\n"
		 "made by 'vixen image build', or a disk file.",
	.options = options,
	.argument = set_image,
	.more = "On the console: Ctrl-A x quits, Ctrl-A p presses the power button, Ctrl-A h helps.\n\n"
		"exit codes: 0 the guest powered off, 1 vixen failed, 2 usage, 3 the guest crashed (triple fault),\n"
		"130 interrupted (signal, Ctrl-A x, terminal closed).",
};

/* The image gives a disk, and the kernel unless --kernel does. */
static int image_apply(struct run *r, struct error *e)
{
	int ret = catalog_find(&r->catalog, r->image, e);
	if (ret)
		return ret;
	if (r->c.ndisks == VM_DISKS_MAX)
		return error_set(e, 22, "leave one out", "plug in the image", "more than %d disks", VM_DISKS_MAX);
	memmove(r->c.disk + 1, r->c.disk, r->c.ndisks * sizeof *r->c.disk);
	r->c.disk[0] = (struct vm_disk){ .path = r->catalog.disk };
	r->c.ndisks++;
	if (!r->c.kernel && r->catalog.kernel[0]) {
		r->c.kernel = r->catalog.kernel;
		if (!r->c.initrd && r->catalog.initrd[0])
			r->c.initrd = r->catalog.initrd;
	}
	if (!r->c.kernel)
		return error_set(e, 22, "give its kernel with --kernel", "boot the image",
				 "'%s' comes without a kernel, and firmware is not in this version", r->image);
	return 0;
}

static void append_apply(struct run *r)
{
	const char *own = r->catalog.append;
	if (*own && r->append)
		snprintf(r->append_text, sizeof r->append_text, "%s %s", own, r->append);
	else
		snprintf(r->append_text, sizeof r->append_text, "%s", *own ? own : r->append ? r->append : APPEND_DEFAULT);
	r->c.append = r->append_text;
}

/* A VM that nobody named runs also where there is no place for its socket. */
static int name_apply(struct run *r, struct runtime *rt, struct error *e)
{
	const char *slash = r->c.kernel ? strrchr(r->c.kernel, '/') : NULL;
	const char *hint = r->image ? r->catalog.name : slash ? slash + 1 : r->c.kernel;
	int ret = runtime_claim(rt, r->c.name, hint, e);

	if (ret && !r->c.name) {
		log_warn("vixen list will not show this VM: %s", e->why);
		return 0;
	}
	r->c.name = rt->name;
	return ret;
}

static int run_start(struct run *r)
{
	struct error e = { 0 };
	struct runtime rt = { .lock = -1, .listen = -1 };
	int code = r->image ? image_apply(r, &e) : 0;
	if (!code)
		code = name_apply(r, &rt, &e);
	if (!code) {
		append_apply(r);
		if (!r->nets_given)
			r->c.nnets = 1;
		code = vmm_run(&r->c, rt.listen, &e);
	}
	runtime_release(&rt);
	if (code < 0) {
		error_print(&e);
		code = EXIT_FAILED;
	}
	return code;
}

int verb_run(int argc, char **argv)
{
	struct run *r = calloc(1, sizeof *r);
	ASSERT(r);
	r->c = (struct vm_config){ .engine = "auto", .cpu_model = "host", .cpus = 1, .memory_bytes = 1ull << 30 };
	int ret = options_parse(&run_command, r, argc, argv);
	if (ret < 0 && !r->image && !r->c.kernel) {
		usage_error("run", "no IMAGE and no --kernel given, try 'vixen image build debian-12' and "
				   "'vixen run debian-12'");
		ret = EXIT_USAGE;
	}
	if (ret < 0 && r->append && strlen(r->append) > 3000) {
		usage_error("run", "--append is longer than 3000 characters");
		ret = EXIT_USAGE;
	}
	if (ret < 0)
		ret = run_start(r);
	for (unsigned i = 0; i < r->ncopies; i++)
		free(r->copies[i]);
	free(r);
	return ret;
}
