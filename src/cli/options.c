#include "cli/options.h"

#include <ctype.h>
#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/checked.h"
#include "cli/verb.h"

#define WORD_MAX 32u
#define OPTIONS_MAX 32

bool usage_error(const char *verb, const char *why_fmt, ...)
{
	char why[512];
	va_list ap;
	va_start(ap, why_fmt);
	vsnprintf(why, sizeof why, why_fmt, ap);
	va_end(ap);
	fprintf(stderr, "vixen: %s failed: %s; see vixen %s --help\n", verb, why, verb);
	return false;
}

/* Levenshtein's distance, for words under WORD_MAX. */
static unsigned distance(const char *a, const char *b)
{
	size_t la = strlen(a), lb = strlen(b);
	unsigned row[WORD_MAX + 1];
	if (la > WORD_MAX || lb > WORD_MAX)
		return UINT16_MAX;
	for (unsigned j = 0; j <= lb; j++)
		row[j] = j;
	for (unsigned i = 1; i <= la; i++) {
		unsigned diagonal = row[0];
		row[0] = i;
		for (unsigned j = 1; j <= lb; j++) {
			unsigned best = diagonal + (a[i - 1] != b[j - 1]);
			diagonal = row[j];
			if (row[j] + 1 < best)
				best = row[j] + 1;
			if (row[j - 1] + 1 < best)
				best = row[j - 1] + 1;
			row[j] = best;
		}
	}
	return row[lb];
}

const char *nearest(const char *typed, const char *const *candidates)
{
	const char *best = NULL;
	unsigned least = 4;
	for (; *candidates; candidates++) {
		unsigned d = distance(typed, *candidates);
		if (d < least && d < strlen(*candidates)) {
			least = d;
			best = *candidates;
		}
	}
	return best;
}

static const struct option_row *option_find(const struct command *c, const char *name, size_t len)
{
	for (const struct option_row *o = c->options; o && o->name; o++)
		if (strlen(o->name) == len && !memcmp(o->name, name, len))
			return o;
	return NULL;
}

static void unknown_option(const struct command *c, const char *arg)
{
	const char *names[OPTIONS_MAX + 2];
	char typed[WORD_MAX + 1];
	unsigned n = 0;
	for (const struct option_row *o = c->options; o && o->name && n < OPTIONS_MAX; o++)
		names[n++] = o->name;
	names[n++] = "help";
	names[n] = NULL;
	snprintf(typed, sizeof typed, "%.*s", (int)strcspn(arg, "="), arg);
	const char *word = typed + strspn(typed, "-"), *near = nearest(word, names);
	if (near)
		usage_error(c->verb, "unknown option '%s', did you mean --%s?", typed, near);
	else
		usage_error(c->verb, "unknown option '%s'", typed);
}

/* Returns how many arguments were used, 0 on error. */
static int option_take(const struct command *c, void *opaque, int argc, char **argv)
{
	const char *name = argv[0] + 2, *equals = strchr(name, '=');
	const struct option_row *o = option_find(c, name, equals ? (size_t)(equals - name) : strlen(name));
	if (argv[0][1] != '-' || !o) {
		unknown_option(c, argv[0]);
		return 0;
	}
	if (!o->value && equals) {
		usage_error(c->verb, "--%s takes no value", o->name);
		return 0;
	}
	if (!o->value || equals || *o->value == '[')
		return o->set(opaque, equals ? equals + 1 : NULL) ? 1 : 0;
	if (argc < 2) {
		usage_error(c->verb, "--%s needs a value (%s)", o->name, o->value);
		return 0;
	}
	return o->set(opaque, argv[1]) ? 2 : 0;
}

int options_parse(const struct command *c, void *opaque, int argc, char **argv)
{
	bool options = true;
	for (int i = 1; i < argc;) {
		if (options && (!strcmp(argv[i], "--help") || !strcmp(argv[i], "-h"))) {
			command_help(c);
			return EXIT_OK;
		}
		if (options && !strcmp(argv[i], "--")) {
			options = false;
			i++;
		} else if (options && argv[i][0] == '-' && argv[i][1]) {
			int used = option_take(c, opaque, argc - i, argv + i);
			if (!used)
				return EXIT_USAGE;
			i += used;
		} else {
			if (!c->argument) {
				usage_error(c->verb, "unexpected argument '%s'", argv[i]);
				return EXIT_USAGE;
			}
			if (!c->argument(opaque, argv[i]))
				return EXIT_USAGE;
			i++;
		}
	}
	return -1;
}

void command_help(const struct command *c)
{
	printf("usage: vixen %s\n\n%s\n", c->usage, c->about);
	if (c->options && c->options->name)
		printf("\noptions:\n");
	for (const struct option_row *o = c->options; o && o->name; o++) {
		char left[64];
		snprintf(left, sizeof left, "--%s%s%s", o->name, o->value && *o->value != '[' ? " " : "",
			 o->value ? o->value : "");
		if (strlen(left) > 26)
			printf("  %s\n  %-26s %s\n", left, "", o->help);
		else
			printf("  %-26s %s\n", left, o->help);
	}
	if (c->more)
		printf("\n%s\n", c->more);
}

bool number_parse(const char *text, uint64_t max, uint64_t *out)
{
	char *end;
	if (!isdigit((unsigned char)*text))
		return false;
	errno = 0;
	unsigned long long v = strtoull(text, &end, 10);
	if (errno || *end || v > max)
		return false;
	*out = v;
	return true;
}

bool size_parse(const char *text, uint64_t *bytes)
{
	static const char units[] = "KMGT";
	char digits[24];
	size_t n = strspn(text, "0123456789");
	uint64_t v;
	if (!n || n >= sizeof digits)
		return false;
	memcpy(digits, text, n);
	digits[n] = 0;
	if (!number_parse(digits, UINT64_MAX, &v))
		return false;
	unsigned shift = 0;
	if (text[n]) {
		const char *unit = strchr(units, toupper((unsigned char)text[n]));
		if (!unit || !*unit)
			return false;
		shift = 10 * (unsigned)(unit - units + 1);
		text += n + 1;
		if (strcmp(text, "") && strcasecmp(text, "B") && strcasecmp(text, "iB"))
			return false;
	}
	if (shift && v >> (64 - shift))
		return false;
	*bytes = v << shift;
	return true;
}

bool json_parse(const char *verb, const char *v, bool *json)
{
	*json = !strcmp(v, "json");
	return *json || !strcmp(v, "table") || usage_error(verb, "--format '%s' is not table or json", v);
}

void json_print(json_t *j)
{
	json_dumpf(j, stdout, JSON_INDENT(2));
	putchar('\n');
	json_decref(j);
}
