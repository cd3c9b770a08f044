#include "block/handover.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

static int put(int fd, const struct iovec *part)
{
	const char *p = part->iov_base;
	size_t len = part->iov_len;

	for (ssize_t n; len; p += n, len -= (size_t)n) {
		n = write(fd, p, len);
		if (n <= 0)
			return n ? -errno : -EIO;
	}
	return 0;
}

int handover_file(const char *name, const struct iovec *parts, int count)
{
	int fd = memfd_create(name, MFD_CLOEXEC), ret = fd < 0 ? -errno : 0;

	for (int i = 0; i < count && !ret; i++)
		ret = put(fd, &parts[i]);
	if (ret && fd >= 0)
		close(fd);
	return ret ? ret : fd;
}

int handover_name(struct block_fd *out, const char *prefix, const char *path, int fd)
{
	char *name = NULL;

	if (fd < 0)
		return fd;
	if (asprintf(&name, "%s%s", prefix, path) < 0) {
		close(fd);
		return -ENOMEM;
	}
	*out = (struct block_fd){ name, fd };
	return 0;
}

void block_fds_free(struct block_fd *list, unsigned n)
{
	while (n--) {
		close(list[n].fd);
		free((char *)list[n].path);
	}
}

int handover_given(const struct node *n, const struct node_open *how, const char *prefix)
{
	char *name = NULL;
	int fd = -1;

	if (how->o->nfds && asprintf(&name, "%s%s", prefix, n->path) >= 0)
		fd = node_given_fd(how->o, name);
	free(name);
	return fd;
}
