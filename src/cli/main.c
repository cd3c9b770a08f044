/* vixen: finds the verb and hands over. */
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "cli/options.h"
#include "cli/verb.h"

struct verb {
	const char *name, *summary;
	int (*run)(int argc, char **argv);
};

#define VERB_ROW(name, summary) { #name, summary, verb_##name },
static const struct verb verbs[] = { CLI_VERBS(VERB_ROW) };
#undef VERB_ROW
#define VERB_COUNT (sizeof verbs / sizeof *verbs)

static const struct verb *verb_find(const char *name)
{
	for (size_t i = 0; i < VERB_COUNT; i++)
		if (!strcmp(verbs[i].name, name))
			return &verbs[i];
	return NULL;
}

static int unknown_verb(const char *name)
{
	const char *names[VERB_COUNT + 1] = { 0 };
	for (size_t i = 0; i < VERB_COUNT; i++)
		names[i] = verbs[i].name;
	const char *near = nearest(name, names);
	if (near)
		fprintf(stderr, "vixen: '%s' failed: no such verb, did you mean '%s'?; see vixen help\n", name, near);
	else
		fprintf(stderr, "vixen: '%s' failed: no such verb; see vixen help\n", name);
	return EXIT_USAGE;
}

static void overview(FILE *to)
{
	fprintf(to, "usage: vixen VERB [OPTIONS]\n\nRuns virtual machines, with or without /dev/kvm.\n\nverbs:\n");
	for (size_t i = 0; i < VERB_COUNT; i++)
		fprintf(to, "  %-10s %s\n", verbs[i].name, verbs[i].summary);
	fprintf(to, "\nFirst steps:\n  vixen image build debian-12\n  vixen run debian-12\n"
		    "\n'vixen VERB --help' explains a verb; so does man vixen.\n");
}

int verb_help(int argc, char **argv)
{
	if (argc < 2 || argv[1][0] == '-' || !strcmp(argv[1], "help")) {
		overview(stdout);
		return EXIT_OK;
	}
	const struct verb *v = verb_find(argv[1]);
	char help[] = "--help";
	char *args[] = { argv[1], help, NULL };
	return v ? v->run(2, args) : unknown_verb(argv[1]);
}

int verb_version(int argc, char **argv)
{
	static const struct command c = { "version", "version", "Prints the version of vixen.", NULL, NULL, NULL };
	int ret = options_parse(&c, NULL, argc, argv);
	if (ret >= 0)
		return ret;
	printf("vixen %s\n", VIXEN_VERSION);
	return EXIT_OK;
}

/* Descriptors 0 to 2 that the caller closed would be given to files of ours. */
static void standard_files(void)
{
	int fd;
	while ((fd = open("/dev/null", O_RDWR)) >= 0 && fd <= STDERR_FILENO)
		;
	if (fd >= 0)
		close(fd);
}

int main(int argc, char **argv)
{
	standard_files();
	if (argc < 2) {
		overview(stderr);
		return EXIT_USAGE;
	}
	if (!strcmp(argv[1], "--help") || !strcmp(argv[1], "-h"))
		return verb_help(1, argv + 1);
	if (!strcmp(argv[1], "--version"))
		return verb_version(1, argv + 1);
	const struct verb *v = verb_find(argv[1]);
	return v ? v->run(argc - 1, argv + 1) : unknown_verb(argv[1]);
}
