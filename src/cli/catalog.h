/*
 * The image catalog: ${XDG_DATA_HOME:-~/.local/share}/vixen/images/NAME/{disk.raw or disk.qcow2,vmlinuz,
 * initrd,meta.json}
 * and the places where programs of this installation lie.
 */
#ifndef VIXEN_CLI_CATALOG_H
#define VIXEN_CLI_CATALOG_H

#include <limits.h>
#include <stdbool.h>
#include <stdint.h>

#include "base/error.h"

struct image {
	char name[128];
	char dir[PATH_MAX], disk[PATH_MAX], kernel[PATH_MAX], initrd[PATH_MAX];	/* kernel, initrd: "" if none */
	char append[1024], os[64], arch[16], kernel_version[64], built[32], login[64];
	char base[128];		/* the image that this is a clone of, or "" */
	uint64_t disk_bytes, used_bytes;
};

/* The directory of images; it may not exist yet. */
int catalog_dir(char out[PATH_MAX], struct error *e);
/* ref: a name in the catalog, or a path (with a slash) to an image's directory or a disk file, or the
 * address of a server, which is not asked anything yet. */
int catalog_find(struct image *img, const char *ref, struct error *e);
/* Calls fn for each image, by name. fn returns false to stop. */
int catalog_each(bool (*fn)(void *opaque, const struct image *img), void *opaque, struct error *e);

/* A program that belongs to vixen: beside it, or in tools, libexec/vixen. */
int program_find(char out[PATH_MAX], const char *name, struct error *e);

#endif
