/* vixen list, status, stop, pause, resume: virtual machines that run. */
#include <stdio.h>
#include <string.h>

#include "cli/control_client.h"
#include "cli/options.h"
#include "cli/runtime.h"
#include "cli/verb.h"

#define STOP_SECONDS 90u

struct ask { const char *verb, *name; bool json, now; unsigned seconds; json_t *list; };

static bool set_format(void *opaque, const char *v)
{
	struct ask *a = opaque;
	return json_parse(a->verb, v, &a->json);
}
static bool set_name(void *opaque, const char *v)
{
	struct ask *a = opaque;
	if (a->name)
		return usage_error(a->verb, "more than one VM given");
	a->name = v;
	return true;
}
static bool set_now(void *opaque, const char *v) { return ((struct ask *)opaque)->now = true; }
static bool set_timeout(void *opaque, const char *v)
{
	struct ask *a = opaque;
	uint64_t n;
	if (!number_parse(v, 86400, &n) || !n)
		return usage_error(a->verb, "--timeout '%s' is not a number of seconds from 1 to 86400", v);
	a->seconds = (unsigned)n;
	return true;
}

static const struct option_row format_options[] = {
	{ "format", "table|json", "default table", set_format },
	{ 0 },
};
static const struct option_row stop_options[] = {
	{ "now", NULL, "do not ask the guest: end it, its disks flushed as they are", set_now },
	{ "timeout", "SECONDS", "how long the guest may take to shut down (default 90)", set_timeout },
	{ 0 },
};

/* --- list and status --- */

static void row_show(const char *name, json_t *s)
{
	const char *state = "?", *engine = "?";
	json_int_t memory = 0, uptime = 0;
	int cpus = 0, pid = 0;

	json_unpack(s, "{s:s, s:s, s:i, s:I, s:I, s:i}", "state", &state, "engine", &engine, "cpus", &cpus, "memory_bytes",
		    &memory, "uptime_s", &uptime, "pid", &pid);
	printf("%-20s %-8s %-6s %4d %6lld MiB %8lld s %8d\n", name, state, engine, cpus, (long long)memory >> 20,
	       (long long)uptime, pid);
}

static bool list_one(void *opaque, const char *name)
{
	struct ask *a = opaque;
	json_t *s = NULL;

	if (control_ask(name, CONTROL_status, NULL, NULL, NULL, &s, NULL))
		return true;	/* starting or ending */
	json_object_set_new(s, "name", json_string(name));
	if (a->json)
		json_array_append(a->list, s);
	else
		row_show(name, s);
	json_decref(s);
	return true;
}

static int failed(const struct error *e)
{
	error_print(e);
	return EXIT_FAILED;
}

int verb_list(int argc, char **argv)
{
	static const struct command c = { .verb = "list", .usage = "list [--format table|json]",
		.about = "Lists the virtual machines of this user that run.", .options = format_options };
	struct ask a = { .verb = "list" };
	struct error e = { 0 };
	int ret = options_parse(&c, &a, argc, argv);

	if (ret >= 0)
		return ret;
	if (a.json)
		a.list = json_array();
	else
		printf("%-20s %-8s %-6s %4s %10s %10s %8s\n", "NAME", "STATE", "ENGINE", "CPUS", "MEMORY", "UPTIME", "PID");
	ret = runtime_each(list_one, &a, &e);
	if (a.json)
		json_print(a.list);
	return ret < 0 ? failed(&e) : EXIT_OK;
}

/* -1: go on, with a name; else an exit code. */
static int name_parse(const struct command *c, struct ask *a, int argc, char **argv)
{
	int ret = options_parse(c, a, argc, argv);

	if (ret >= 0 || a->name)
		return ret;
	usage_error(a->verb, "no VM given, vixen list names them");
	return EXIT_USAGE;
}

static void disks_show(json_t *status)
{
	json_t *d;
	size_t i;

	json_array_foreach(json_object_get(status, "disks"), i, d) {
		const char *path = "?";
		json_int_t bytes = 0;
		int readonly = 0, ephemeral = 0;
		json_unpack(d, "{s:s, s:I, s:b, s:b}", "path", &path, "size_bytes", &bytes, "readonly", &readonly, "ephemeral",
			    &ephemeral);
		printf("disk    %s, %.2f GiB%s%s\n", path, (double)bytes / (1 << 30), readonly ? ", readonly" : "",
		       ephemeral ? ", ephemeral" : "");
	}
}

int verb_status(int argc, char **argv)
{
	static const struct command c = { .verb = "status", .usage = "status NAME [--format table|json]",
		.about = "Describes a virtual machine that runs.", .options = format_options, .argument = set_name };
	struct ask a = { .verb = "status" };
	struct error e = { 0 };
	const char *state = "?", *engine = "?";
	json_int_t memory = 0, uptime = 0;
	int cpus = 0, pid = 0, ret = name_parse(&c, &a, argc, argv);
	json_t *s;

	if (ret >= 0)
		return ret;
	if (control_ask(a.name, CONTROL_status, NULL, NULL, NULL, &s, &e))
		return failed(&e);
	json_object_set_new(s, "name", json_string(a.name));
	if (a.json) {
		json_print(s);
		return EXIT_OK;
	}
	json_unpack(s, "{s:s, s:s, s:i, s:I, s:I, s:i}", "state", &state, "engine", &engine, "cpus", &cpus, "memory_bytes",
		    &memory, "uptime_s", &uptime, "pid", &pid);
	const char *reason = json_string_value(json_object_get(s, "reason"));
	if (reason)
		printf("paused  %s; make space there, then: vixen resume %s\n", reason, a.name);
	printf("name    %s\nstate   %s, for %lld s\nengine  %s\nCPUs    %d\nmemory  %lld MiB\nprocess %d\n", a.name, state,
	       (long long)uptime, engine, cpus, (long long)memory >> 20, pid);
	disks_show(s);
	json_decref(s);
	return EXIT_OK;
}

/* --- stop, pause, resume --- */

int verb_stop(int argc, char **argv)
{
	static const struct command c = { .verb = "stop", .usage = "stop NAME [--now] [--timeout SECONDS]",
		.about = "Presses a virtual machine's power button and waits until the guest has shut down.",
		.options = stop_options, .argument = set_name };
	struct ask a = { .verb = "stop", .seconds = STOP_SECONDS };
	struct error e = { 0 };
	int ret = name_parse(&c, &a, argc, argv);

	if (ret >= 0)
		return ret;
	if (control_ask(a.name, a.now ? CONTROL_quit : CONTROL_power_button, NULL, NULL, NULL, NULL, &e))
		return failed(&e);
	if (control_wait_end(a.name, a.seconds))
		return EXIT_OK;
	error_set(&e, 0, "wait longer with --timeout, or end it with --now", "stop the VM",
		  "the guest did not shut down within %u seconds", a.seconds);
	return failed(&e);
}

static int plain(const struct command *c, enum control_verb verb, int argc, char **argv)
{
	struct ask a = { .verb = c->verb };
	struct error e = { 0 };
	int ret = name_parse(c, &a, argc, argv);

	if (ret >= 0)
		return ret;
	return control_ask(a.name, verb, NULL, NULL, NULL, NULL, &e) ? failed(&e) : EXIT_OK;
}

int verb_pause(int argc, char **argv)
{
	static const struct command c = { .verb = "pause", .usage = "pause NAME",
		.about = "Stops a virtual machine's CPUs where they are. Its clock goes on.", .argument = set_name };
	return plain(&c, CONTROL_pause, argc, argv);
}

int verb_resume(int argc, char **argv)
{
	static const struct command c = { .verb = "resume", .usage = "resume NAME",
		.about = "Lets a paused virtual machine go on.", .argument = set_name };
	return plain(&c, CONTROL_resume, argc, argv);
}
