/* Command-line flags, driven by a const table; errors on stderr as every error of vixen. */
#ifndef VIXEN_CLI_OPTIONS_H
#define VIXEN_CLI_OPTIONS_H

#include <jansson.h>
#include <stdbool.h>
#include <stdint.h>

struct option_row {
	const char *name;	/* "memory", without the dashes; NULL ends the table */
	const char *value;	/* what it takes, for the help: "SIZE"; NULL: nothing; "[=FILE]": perhaps, after = */
	const char *help;
	/* false: an error was printed. value is NULL for flags that take none. */
	bool (*set)(void *opaque, const char *value);
};

struct command {
	const char *verb, *usage, *about;
	const struct option_row *options;
	bool (*argument)(void *opaque, const char *value);	/* NULL: takes none */
	const char *more;	/* printed at the end of the help; may be NULL */
};

/* -1: go on; else an exit code (help printed, usage error). --help and -h are always known. */
int options_parse(const struct command *c, void *opaque, int argc, char **argv);
void command_help(const struct command *c);

/* "vixen: VERB failed: WHY; see vixen VERB --help". Returns false. */
bool usage_error(const char *verb, const char *why_fmt, ...) __attribute__((format(printf, 2, 3)));
/* The candidate nearest to what was typed, or NULL when none is near. */
const char *nearest(const char *typed, const char *const *candidates);

/* "512M", "2G", "1073741824": false when malformed or out of range. */
bool size_parse(const char *text, uint64_t *bytes);
bool number_parse(const char *text, uint64_t max, uint64_t *out);

/* --format table|json: false when it is neither, and said so. */
bool json_parse(const char *verb, const char *v, bool *json);
void json_print(json_t *j);	/* to stdout, and drops it */

#endif
