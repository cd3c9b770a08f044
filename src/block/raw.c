/* Raw images: opening, locking, measuring. */
#include <errno.h>
#include <fcntl.h>
#include <linux/fs.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <unistd.h>

#include "block/node.h"

static int open_file(const char *path, unsigned flags, struct error *e)
{
	bool write = !(flags & (BLOCK_READONLY | BLOCK_EPHEMERAL));
	int fd = open(path, (write ? O_RDWR : O_RDONLY) | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
	const char *todo = "check the path and its permissions";

	if (fd >= 0)
		return fd;
	if (write && (errno == EACCES || errno == EROFS || errno == EPERM))
		todo = "make the file writable, or add ,readonly or ,ephemeral to the disk";
	else if (errno == EMFILE || errno == ENFILE)
		todo = "raise the limit of open files (ulimit -n)";
	return error_errno(e, errno, todo, "open disk '%s'", path);
}

/* One writer or many readers, across processes and within one. */
static int lock_file(int fd, const char *path, unsigned flags, struct error *e)
{
	bool write = !(flags & (BLOCK_READONLY | BLOCK_EPHEMERAL));
	struct flock lock = { .l_type = write ? F_WRLCK : F_RDLCK, .l_whence = SEEK_SET };
	char what[192];

	if (fcntl(fd, F_OFD_SETLK, &lock) == 0)
		return 0;
	snprintf(what, sizeof(what), "open disk '%.150s'", path);
	if (errno == EAGAIN || errno == EACCES)
		return error_set(e, EBUSY, "stop the other VM first, or give this one a copy of the image",
				 what, "image is in use by another VM");
	return error_errno(e, errno, "put the image on a file system with locks", "lock disk '%s'", path);
}

static int measure(struct block *b, const char *path, struct error *e)
{
	char what[192];
	struct stat st;

	snprintf(what, sizeof(what), "open disk '%.150s'", path);
	if (fstat(b->fd, &st) < 0)
		return error_errno(e, errno, NULL, "open disk '%s'", path);
	if (S_ISBLK(st.st_mode)) {
		if (ioctl(b->fd, BLKGETSIZE64, &b->size_bytes) < 0)
			return error_errno(e, errno, NULL, "measure disk '%s'", path);
	} else if (S_ISREG(st.st_mode)) {
		b->size_bytes = (uint64_t)st.st_size;
	} else {
		return error_set(e, EINVAL, "give a disk image", what,
				 "it is neither a file nor a block device");
	}
	if (!b->size_bytes)
		return error_set(e, EINVAL, "make it larger: truncate -s 8G FILE", what,
				 "the image is empty");
	if (b->size_bytes % SECTOR)
		return error_set(e, EINVAL, "is it a disk image? if so, round it up: truncate -s %512 FILE",
				 what, "its size of %llu bytes is not a multiple of 512",
				 (unsigned long long)b->size_bytes);
	return 0;
}

/* A guest must not be able to turn a raw image into a qcow2 by what it writes, so a format that was not
 * given is only ever raw, and what looks like something else is refused. */
static int probe(struct block *b, const char *path, const char *format, struct error *e)
{
	uint8_t magic[4] = {0};
	char what[192];

	snprintf(what, sizeof(what), "open disk '%.150s'", path);
	if (format && strcmp(format, "raw"))
		return error_set(e, EINVAL, "use format=raw, after qemu-img convert -O raw if need be", what,
				 "format '%s' is not supported", format);
	if (format)
		return 0;
	if (pread(b->fd, magic, sizeof(magic), 0) != sizeof(magic))
		return error_errno(e, errno ? errno : EIO, NULL, "read disk '%s'", path);
	if (!memcmp(magic, "QFI\xfb", 4))
		return error_set(e, EINVAL, "convert it with qemu-img convert -O raw, or add ,format=raw if "
				 "the guest itself shall see the qcow2 file as its disk", what,
				 "it is a qcow2 image, not a raw one");
	return 0;
}

int raw_open(struct block *b, const char *path, const char *format, unsigned flags, struct error *e)
{
	int ret;

	b->fd = open_file(path, flags, e);
	if (b->fd < 0)
		return b->fd;
	ret = lock_file(b->fd, path, flags, e);
	if (!ret)
		ret = measure(b, path, e);
	if (!ret)
		ret = probe(b, path, format, e);
	b->readonly = flags & BLOCK_READONLY;
	return ret;
}
