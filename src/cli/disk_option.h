/* FILE[,OPTION[=VALUE]]...: a disk as it is written on the command line. */
#ifndef VIXEN_CLI_DISK_OPTION_H
#define VIXEN_CLI_DISK_OPTION_H

#include <stdbool.h>

struct vm_disk;

#define DISK_OPTION_FORM "FILE[,OPTION[=VALUE]]..."

/* text is cut at its commas, and d points into it.  false: an error of `verb` was printed, about `option`. */
bool disk_option_parse(const char *verb, const char *option, char *text, struct vm_disk *d);

#endif
