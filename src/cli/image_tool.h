/* What the commands on disk images share: a loop, opening, progress, Ctrl-C, words for the end. */
#ifndef VIXEN_CLI_IMAGE_TOOL_H
#define VIXEN_CLI_IMAGE_TOOL_H

#include <jansson.h>
#include <limits.h>
#include <stdbool.h>
#include <stdint.h>

#include "base/error.h"
#include "block/job.h"

struct image;
struct key_list;
struct loop;
struct loop_fd;

/* The commands: argv[0] is the command's name; an exit code. */
int image_info(int argc, char **argv);
int image_map(int argc, char **argv);
int image_convert(int argc, char **argv);
int image_compare(int argc, char **argv);
int image_clone(int argc, char **argv);
int image_resize(int argc, char **argv);
int image_check(int argc, char **argv);
int image_commit(int argc, char **argv);
int image_rebase(int argc, char **argv);
int image_snapshot(int argc, char **argv);
int image_bitmap(int argc, char **argv);
int image_restore(int argc, char **argv);
int image_key(int argc, char **argv);
int image_partitions(int argc, char **argv);

enum {
	EXIT_NO = 3,			/* it was done, and the answer is no: they differ, it is damaged */
	EXIT_INTERRUPTED = 130,
	TOOL_DISKS = 4,
};

/* A bar on stderr, if that is a terminal. */
struct progress {
	bool tty;
	int percent;			/* last shown; -1: none */
};
void progress_begin(struct progress *p);
void progress_step(struct progress *p, uint64_t done, uint64_t total);
void progress_end(struct progress *p);		/* the line after the bar */

/* From here on SIGINT, SIGTERM and SIGHUP do not kill the program but can be read here; before any thread starts.  The
 * caller's; -errno. */
int stop_signals_open(void);

struct tool {
	const char *verb;		/* "image convert" */
	struct loop *loop;
	struct error e;
	const struct key_list *keys;	/* --key-file of what is opened next; NULL or empty: asked for when needed */
	struct block_job job;		/* cancel is set by SIGINT, SIGTERM and SIGHUP while the tool changes things */
	struct block *open[TOOL_DISKS];	/* interrupted by these signals, too; NULL: free */
	int signal_fd;
	struct loop_fd *watch;
	struct progress progress;
};

/* changes: signals do not kill the program from here on, but set job.cancel.  -errno with t->e set. */
int tool_init(struct tool *t, const char *verb, bool changes);
/* Prints what went wrong if ret < 0; the exit code. */
int tool_fini(struct tool *t, int ret);

/* A disk file: a path, or a name in the catalog.  The file must be there. */
int tool_path(struct tool *t, const char *ref, char out[PATH_MAX]);
/* As path, the passphrases by t->keys or asked for.  format NULL: as block_open; errors speak
 * of the option that gives the format: "--disk-format". */
int tool_open(struct tool *t, struct block **out, const char *path, const char *format, unsigned flags,
	      const char *format_option);
int tool_close(struct tool *t, struct block *b, int ret);	/* ret, or what the closing says */

/* Says so, on stderr, if b is encrypted in any layer, and `to` is not. */
void tool_warn_plain(struct block *b, const char *to);

bool same_file(const char *a, const char *b);
/* Refuses path if it is one of b's chain, whose `role` it would be. */
int tool_not_in_chain(struct tool *t, struct block *b, const char *path, const char *what);

/* Options that several have. */
bool tool_format_parse(const char *verb, const char *option, const char *v);
bool tool_create_format_parse(const char *verb, const char *option, const char *v);	/* that can be made */
bool tool_encrypt_parse(const char *verb, const char *v, enum block_encryption *out);
bool tool_kdf_parse(const char *verb, const char *v, unsigned *ms);
/* NULL is fine. */
bool tool_subformat_good(const char *verb, const char *format, const char *subformat);
/* What a new file's name says it shall be: "qcow2", "luks", "vmdk", "vhdx", "vdi", else "raw". */
const char *tool_format_named(const char *path);
/* Refuses a name for an image with a backing file, which is qcow2, if nobody would take it for that. */
int tool_overlay_named(const char *what, const char *path, struct error *e);
bool tool_argument(const char *verb, const char *v, const char **slot, unsigned n);	/* the next of n */

void image_describe(const struct image *img, bool json);	/* of the catalog (image.c) */

/* Text from an image, safe on a terminal; out holds size bytes. */
const char *plain(char *out, size_t size, const char *text);
json_t *json_text(const char *text);		/* NULL, and what is no UTF-8, are fine */
void size_words(char out[64], uint64_t bytes);	/* "10.0 GiB (10737418240 bytes)" */

#endif
