/* The verbs of vixen: each in its own file, listed once, here. */
#ifndef VIXEN_CLI_VERB_H
#define VIXEN_CLI_VERB_H

#define VIXEN_VERSION "0.1.0"

enum { EXIT_OK = 0, EXIT_FAILED = 1, EXIT_USAGE = 2 };

/* name, summary; the function is verb_NAME(argc, argv) with argv[0] the verb, and returns an exit code. */
#define CLI_VERBS(V) \
	V(run,     "start a virtual machine on this terminal") \
	V(list,    "list the virtual machines that run") \
	V(status,  "describe one that runs") \
	V(stop,    "shut one down") \
	V(pause,   "stop its CPUs where they are") \
	V(resume,  "let them go on") \
	V(disk,    "attach, list, copy, resize disks of one that runs") \
	V(image,   "build and list guest images") \
	V(doctor,  "say what this host offers, and what to do about it") \
	V(help,    "explain vixen, or a verb") \
	V(version, "print the version")

#define CLI_VERB_DECLARE(name, summary) int verb_##name(int argc, char **argv);
CLI_VERBS(CLI_VERB_DECLARE)
#undef CLI_VERB_DECLARE

#endif
