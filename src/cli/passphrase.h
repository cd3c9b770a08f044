/* Passphrases of disks: from files, descriptors, or typed on the terminal; never on the command line. */
#ifndef VIXEN_CLI_PASSPHRASE_H
#define VIXEN_CLI_PASSPHRASE_H

#include <stdbool.h>

#include "base/error.h"

#define KEY_PATH_BYTES 32

/* What --key-file says, as a path: FILE, fd:N, or - for stdin.  buf may hold the answer. */
const char *key_path(const char *value, char buf[KEY_PATH_BYTES]);
/* Asks on the terminal, without echo; `twice` for a new one.  out: the path of an anonymous file that holds it, which
 * programs that are started inherit.  -ENOKEY without a terminal. */
int passphrase_ask(const char *what, bool twice, char out[KEY_PATH_BYTES], struct error *e);
/* --key-file, which may be given for each encrypted layer of a chain, from the top; the last goes on for the rest. */
#define KEYS_MAX 16
struct key_list {
	const char *path[KEYS_MAX];
	unsigned n;
	char buf[KEYS_MAX][KEY_PATH_BYTES];
};
bool key_list_add(struct key_list *l, const char *verb, const char *value);

/* Either of the two. */
int key_or_ask(const char **path, const char *value, const char *what, bool twice, char buf[KEY_PATH_BYTES],
	       struct error *e);

#endif
