/* FILE[,OPTION[=VALUE]]...: a disk as it is written on the command line. */
#ifndef VIXEN_CLI_DISK_OPTION_H
#define VIXEN_CLI_DISK_OPTION_H

#include <stdbool.h>
#include <stdint.h>

struct vm_disk;

#define DISK_OPTION_FORM "FILE[,OPTION[=VALUE]]..."

/* text is cut at its commas, and d points into it.  false: an error of `verb` was printed, about `option`. */
bool disk_option_parse(const char *verb, const char *option, char *text, struct vm_disk *d);
/* A limit for a second: a number of requests, or bytes; 0 is none.  false: v is no such. */
bool disk_limit_parse(uint64_t *out, const char *v, bool bytes);

#endif
