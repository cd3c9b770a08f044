#include "cli/catalog.h"

#include <dirent.h>
#include <errno.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/endian.h"
#include "block/block.h"

static bool path_join(char out[PATH_MAX], const char *dir, const char *name)
{
	return snprintf(out, PATH_MAX, "%s/%s", dir, name) < PATH_MAX;
}

int catalog_dir(char out[PATH_MAX], struct error *e)
{
	const char *data = getenv("XDG_DATA_HOME"), *home = getenv("HOME");
	int n;
	if (data && *data == '/')
		n = snprintf(out, PATH_MAX, "%s/vixen/images", data);
	else if (home && *home)
		n = snprintf(out, PATH_MAX, "%s/.local/share/vixen/images", home);
	else
		return error_set(e, ENOENT, "set HOME or XDG_DATA_HOME", "find the image catalog",
				 "there is no home directory");
	return n < PATH_MAX ? 0 : error_set(e, ENAMETOOLONG, NULL, "find the image catalog", "its path is too long");
}

static bool is_qcow2(const char *path)
{
	size_t n = strlen(path);
	return n > 6 && !strcmp(path + n - 6, ".qcow2");
}

static void copy_text(json_t *root, const char *key, char *out, size_t size)
{
	const char *s = json_string_value(json_object_get(root, key));
	snprintf(out, size, "%s", s ? s : "");
}

static void meta_read(struct image *img)
{
	char path[PATH_MAX];
	json_t *root = path_join(path, img->dir, "meta.json") ? json_load_file(path, 0, NULL) : NULL;
	copy_text(root, "append", img->append, sizeof img->append);
	copy_text(root, "os", img->os, sizeof img->os);
	copy_text(root, "arch", img->arch, sizeof img->arch);
	copy_text(root, "kernel", img->kernel_version, sizeof img->kernel_version);
	copy_text(root, "built", img->built, sizeof img->built);
	copy_text(root, "login", img->login, sizeof img->login);
	copy_text(root, "base", img->base, sizeof img->base);
	json_decref(root);
}

/* The size of the guest's disk; the catalog is no place for surprises, so a look at the header is enough. */
static bool disk_measure(struct image *img)
{
	struct stat st;
	uint8_t head[32];
	if (stat(img->disk, &st) || !S_ISREG(st.st_mode))
		return false;
	img->disk_bytes = (uint64_t)st.st_size;
	img->used_bytes = (uint64_t)st.st_blocks * 512;
	FILE *f = is_qcow2(img->disk) ? fopen(img->disk, "re") : NULL;
	if (f && fread(head, sizeof head, 1, f) == 1 && load_be32(head) == 0x514649fb)
		img->disk_bytes = load_be64(head + 24);
	if (f)
		fclose(f);
	return true;
}

static bool disk_find(struct image *img, const char *dir)
{
	return (path_join(img->disk, dir, "disk.raw") && disk_measure(img)) ||
	       (path_join(img->disk, dir, "disk.qcow2") && disk_measure(img));
}

static bool image_load(struct image *img, const char *dir)
{
	const char *slash = strrchr(dir, '/');
	*img = (struct image){ 0 };
	snprintf(img->name, sizeof img->name, "%s", slash ? slash + 1 : dir);
	if (snprintf(img->dir, sizeof img->dir, "%s", dir) >= PATH_MAX || !path_join(img->kernel, dir, "vmlinuz") ||
	    !path_join(img->initrd, dir, "initrd") || !disk_find(img, dir))
		return false;
	if (access(img->kernel, F_OK))
		img->kernel[0] = 0;
	if (access(img->initrd, F_OK))
		img->initrd[0] = 0;
	meta_read(img);
	return true;
}

static int find_path(struct image *img, const char *ref, struct error *e)
{
	struct stat st = { 0 };
	if (!block_path_remote(ref) && stat(ref, &st))
		return error_errno(e, errno, "check the path; vixen image list names the images", "open image '%s'", ref);
	if (S_ISDIR(st.st_mode)) {
		if (image_load(img, ref))
			return 0;
		return error_set(e, ENOENT, "give a directory made by vixen image build", "open the image",
				 "'%s' holds no disk.raw and no disk.qcow2", ref);
	}
	*img = (struct image){ 0 };
	snprintf(img->name, sizeof img->name, "%s", ref);
	snprintf(img->disk, sizeof img->disk, "%s", ref);
	return 0;
}

int catalog_find(struct image *img, const char *ref, struct error *e)
{
	char base[PATH_MAX], dir[PATH_MAX], todo[200];
	int ret;
	if (strchr(ref, '/'))
		return find_path(img, ref, e);
	if ((ret = catalog_dir(base, e)))
		return ret;
	if (*ref && ref[0] != '.' && path_join(dir, base, ref) && image_load(img, dir))
		return 0;
	if (!access(ref, F_OK))
		return find_path(img, ref, e);
	snprintf(todo, sizeof todo, "build it with vixen image build %.100s, or give a path", ref);
	return error_set(e, ENOENT, todo, "open the image", "there is no image '%s'", ref);
}

static int by_name(const struct dirent **a, const struct dirent **b)
{
	return strcmp((*a)->d_name, (*b)->d_name);
}

/* Hidden names, and what an interrupted build left (NAME.partial.PID), are no images. */
static int is_image_name(const struct dirent *d)
{
	return d->d_name[0] != '.' && !strstr(d->d_name, ".partial.") && !strstr(d->d_name, ".old.");
}

int catalog_each(bool (*fn)(void *opaque, const struct image *img), void *opaque, struct error *e)
{
	char base[PATH_MAX], dir[PATH_MAX];
	struct dirent **list;
	int ret = catalog_dir(base, e);
	if (ret)
		return ret;
	int n = scandir(base, &list, is_image_name, by_name);
	if (n < 0)
		return errno == ENOENT ? 0 : error_errno(e, errno, "check its permissions", "read '%s'", base);
	struct image *img = malloc(sizeof *img);
	bool more = img;
	for (int i = 0; i < n; i++) {
		if (more && path_join(dir, base, list[i]->d_name) && image_load(img, dir))
			more = fn(opaque, img);
		free(list[i]);
	}
	free(img);
	free(list);
	return 0;
}

int program_find(char out[PATH_MAX], const char *name, struct error *e)
{
	static const char *const places[] = { "", "/../tools", "/../libexec/vixen", "/../lib/vixen" };
	char exe[PATH_MAX];
	ssize_t n = readlink("/proc/self/exe", exe, sizeof exe - 1);
	if (n <= 0)
		return error_errno(e, errno, "mount /proc", "find '%s'", name);
	exe[n] = 0;
	*strrchr(exe, '/') = 0;
	for (size_t i = 0; i < sizeof places / sizeof *places; i++) {
		if (snprintf(out, PATH_MAX, "%s%s/%s", exe, places[i], name) < PATH_MAX && !access(out, X_OK))
			return 0;
	}
	return error_set(e, ENOENT, "install vixen again, whole", "find a part of vixen", "'%s' is not beside '%s/vixen'",
			 name, exe);
}
