#include "cli/disk_files.h"

#include <errno.h>
#include <string.h>
#include <unistd.h>

#include "cli/image_tool.h"

static int room(const struct disk_files *f, unsigned n, struct error *e)
{
	return f->n + n > CONTROL_FDS_MAX ? error_errno(e, E2BIG, NULL, "hand over what the disk needs") : 0;
}

int disk_files_add(struct disk_files *f, const char *name, int fd, struct error *e)
{
	char *copy = fd < 0 ? NULL : strdup(name);
	int ret = fd < 0 ? fd : copy ? room(f, 1, e) : error_errno(e, ENOMEM, NULL, "name a file");

	if (!ret) {
		f->file[f->n++] = (struct block_fd){ copy, fd };
		return 0;
	}
	free(copy);
	if (fd >= 0)
		close(fd);
	return ret;
}

static int taken(struct disk_files *f, int n)
{
	f->n += n < 0 ? 0 : (unsigned)n;
	return n < 0 ? n : 0;
}

int disk_files_dial(struct disk_files *f, const char *address, struct error *e)
{
	int ret = room(f, BLOCK_DIAL_MAX, e);

	return ret ? ret : taken(f, block_dial(address, f->file + f->n, e));
}

int disk_files_keys(struct disk_files *f, struct block *b, struct error *e)
{
	return taken(f, block_keys_export(b, f->file + f->n, CONTROL_FDS_MAX - f->n, e));
}

json_t *disk_files_names(const struct disk_files *f, int fds[CONTROL_FDS_MAX])
{
	json_t *names = json_array();

	for (unsigned i = 0; i < f->n; i++) {
		fds[i] = f->file[i].fd;
		json_array_append_new(names, json_text(f->file[i].path));
	}
	return names;
}

void disk_files_free(struct disk_files *f)
{
	block_fds_free(f->file, f->n);
	f->n = 0;
}
