#include "cli/disk_option.h"

#include <stdio.h>
#include <string.h>

#include "block/block.h"
#include "cli/options.h"
#include "cli/passphrase.h"
#include "vmm/vm_config.h"

#define LIMIT_MAX (1ull << 40)

/* set: false when the value is none of those in `value`, which is also what the help and the error say. */
struct disk_option {
	const char *name, *value;	/* value NULL: a flag */
	bool (*set)(struct vm_disk *d, const char *value);
};

static bool set_readonly(struct vm_disk *d, const char *v) { return d->readonly = true; }
static bool set_ephemeral(struct vm_disk *d, const char *v) { return d->ephemeral = true; }

static bool set_format(struct vm_disk *d, const char *v)
{
	d->format = v;
	return block_format_known(v, false);
}

/* Lives as long as the program. */
static bool key_add(struct vm_disk *d, const char *path)
{
	d->key_file[d->nkeys] = strdup(path);
	return *path && d->key_file[d->nkeys++];
}

static bool set_key(struct vm_disk *d, const char *v)
{
	char buf[KEY_PATH_BYTES];

	return d->nkeys < VM_KEYS_MAX && key_add(d, key_path(v, buf));
}

/* Says itself what went wrong. */
static bool ask_key(struct vm_disk *d, const char *v)
{
	char buf[KEY_PATH_BYTES];
	struct error e = { "ask for a passphrase", "there are too many", "" };

	if (d->nkeys < VM_KEYS_MAX && !passphrase_ask(d->path, false, buf, &e))
		return key_add(d, buf);
	error_print(&e);
	return false;
}

static bool set_bus(struct vm_disk *d, const char *v)
{
	for (int i = 0; i < DISK_BUSES; i++) {
		d->bus = (enum disk_bus)i;
		if (!strcmp(v, vm_bus_names[i]))
			return true;
	}
	return false;
}

static bool set_serial(struct vm_disk *d, const char *v)
{
	d->serial = v;
	return *v;
}

static bool set_cache(struct vm_disk *d, const char *v)
{
	d->write_through = !strcmp(v, "writethrough");
	return d->write_through || !strcmp(v, "writeback");
}

static bool set_bytes(uint32_t *out, const char *v)
{
	uint64_t n;

	if (!size_parse(v, &n) || !n || n > UINT32_MAX)
		return false;
	*out = (uint32_t)n;
	return true;
}
static bool set_block_size(struct vm_disk *d, const char *v) { return set_bytes(&d->logical_bytes, v); }
static bool set_physical(struct vm_disk *d, const char *v) { return set_bytes(&d->physical_bytes, v); }

bool disk_limit_parse(uint64_t *out, const char *v, bool bytes)
{
	return (bytes ? size_parse(v, out) : number_parse(v, LIMIT_MAX, out)) && *out <= LIMIT_MAX;
}
static bool set_number(uint64_t *out, const char *v, bool bytes) { return disk_limit_parse(out, v, bytes) && *out; }
static bool set_iops(struct vm_disk *d, const char *v) { return set_number(&d->limits.iops, v, false); }
static bool set_bps(struct vm_disk *d, const char *v) { return set_number(&d->limits.bps, v, true); }
static bool set_iops_burst(struct vm_disk *d, const char *v) { return set_number(&d->limits.iops_burst, v, false); }
static bool set_bps_burst(struct vm_disk *d, const char *v) { return set_number(&d->limits.bps_burst, v, true); }

static bool set_group(struct vm_disk *d, const char *v)
{
	d->group = v;
	return *v;
}

static const struct disk_option rows[] = {
	{ "format", "raw|qcow2|luks|vmdk|vhdx|vdi", set_format },
	{ "readonly", NULL, set_readonly },
	{ "ephemeral", NULL, set_ephemeral },
	{ "key-file", "FILE", set_key },
	{ "ask-key", NULL, ask_key },
	{ "bus", "virtio|scsi|nvme", set_bus },
	{ "serial", "TEXT", set_serial },
	{ "cache", "writeback|writethrough", set_cache },
	{ "block-size", "512|4096", set_block_size },
	{ "physical-block-size", "BYTES", set_physical },
	{ "iops", "NUMBER", set_iops },
	{ "bps", "BYTES", set_bps },
	{ "iops-burst", "NUMBER", set_iops_burst },
	{ "bps-burst", "BYTES", set_bps_burst },
	{ "group", "NAME", set_group },
};
#define ROWS (sizeof rows / sizeof *rows)

static bool unknown(const char *verb, const char *option, const char *word)
{
	const char *names[ROWS + 1] = { 0 }, *near;
	char list[320] = "", name[32];

	for (unsigned i = 0; i < ROWS; i++) {
		names[i] = rows[i].name;
		strcat(strcat(strcat(list, i ? ", " : ""), rows[i].name), rows[i].value ? "=" : "");
	}
	snprintf(name, sizeof name, "%.*s", (int)strcspn(word, "="), word);
	near = nearest(name, names);
	if (near && strcmp(near, name))
		return usage_error(verb, "%s: '%s' is not known, did you mean '%s'?", option, word, near);
	return usage_error(verb, "%s: '%s' is not known (%s)", option, word, list);
}

static bool word_apply(const char *verb, const char *option, struct vm_disk *d, char *word)
{
	char *value = strchr(word, '=');
	size_t len = value ? (size_t)(value - word) : strlen(word);

	for (unsigned i = 0; i < ROWS; i++) {
		const struct disk_option *o = &rows[i];

		if (strlen(o->name) != len || strncmp(o->name, word, len) || !o->value != !value)
			continue;
		if (o->set(d, value ? value + 1 : NULL))
			return true;
		return value && usage_error(verb, "%s: %s '%s' is not %s", option, o->name, value + 1, o->value);
	}
	return unknown(verb, option, word);
}

bool disk_option_parse(const char *verb, const char *option, char *text, struct vm_disk *d)
{
	bool nameless = *text == ',' || !*text;
	char *save = NULL;
	struct error e = { 0 };

	*d = (struct vm_disk){ .path = strtok_r(text, ",", &save) };
	if (nameless)
		return usage_error(verb, "%s names no file", option);
	for (char *word; (word = strtok_r(NULL, ",", &save));)
		if (!word_apply(verb, option, d, word))
			return false;
	return !vm_disk_check(d, &e) || usage_error(verb, "%s: %s", option, e.why);
}
