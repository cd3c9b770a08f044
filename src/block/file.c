/* The file protocol: a node on a regular file or block device of the host. */
#include <errno.h>
#include <fcntl.h>
#include <linux/fs.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "block/node.h"

struct file {
	int fd;
	bool can_zero[2];	/* by fallocate: keeping the blocks; releasing them */
	bool sparse;		/* SEEK_DATA works */
	struct file_req *idle;
};

struct file_req {
	struct aio_req aio;
	struct node *n;
	bool hint;		/* may fail to have an effect */
	block_done_fn *done;
	void *opaque;
	struct file_req *next;
};

/* --- requests --- */

static bool unsupported(int ret)
{
	return ret == -EOPNOTSUPP || ret == -ENOSYS || ret == -EINVAL || ret == -ENODEV;
}

static int falloc_result(const struct file_req *r, int ret)
{
	struct file *f = r->n->impl;

	if (!unsupported(ret))
		return ret;
	if (r->hint) {
		r->n->limits.can_discard = false;
		return 0;
	}
	f->can_zero[r->aio.mode & FALLOC_FL_PUNCH_HOLE ? 1 : 0] = false;
	return -EOPNOTSUPP;
}

int file_sync_result(int ret)
{
	return ret == -ENOSPC || ret == -EDQUOT || ret == -EFBIG ? -EIO : ret;
}

static void req_done(void *opaque, int ret)
{
	struct file_req *r = opaque;
	struct file *f = r->n->impl;
	block_done_fn *done = r->done;

	opaque = r->opaque;
	if (r->aio.op == AIO_FALLOCATE)
		ret = falloc_result(r, ret);
	else if (r->aio.op == AIO_SYNC)
		ret = file_sync_result(ret);
	r->next = f->idle;
	f->idle = r;
	done(opaque, ret);
}

static struct file_req *req_new(struct node *n, enum aio_op op, block_done_fn *done, void *opaque)
{
	struct file *f = n->impl;
	struct file_req *r = f->idle;

	if (r)
		f->idle = r->next;
	else
		r = malloc(sizeof(*r));
	if (!r) {
		done(opaque, -ENOMEM);
		return NULL;
	}
	r->n = n;
	r->done = done;
	r->opaque = opaque;
	r->aio = (struct aio_req){ .op = op, .fd = f->fd, .done = req_done, .opaque = r };
	return r;
}

static void file_readv(struct node *n, uint64_t offset, const struct iovec *iov, int iovcnt, block_done_fn *done,
		       void *opaque)
{
	struct file_req *r = req_new(n, AIO_READV, done, opaque);

	if (!r)
		return;
	r->aio.offset = offset;
	r->aio.iov = iov;
	r->aio.iovcnt = iovcnt;
	r->aio.zero_past_end = n->zero_past_end;
	aio_submit(n->env->aio, &r->aio);
}

static void file_writev(struct node *n, uint64_t offset, const struct iovec *iov, int iovcnt, block_done_fn *done,
			void *opaque)
{
	struct file_req *r = req_new(n, AIO_WRITEV, done, opaque);

	if (!r)
		return;
	if (n->limits.grows) {
		uint64_t end = offset + iov_bytes(iov, iovcnt);

		if (end > n->size_bytes)
			n->size_bytes = end;
	}
	r->aio.offset = offset;
	r->aio.iov = iov;
	r->aio.iovcnt = iovcnt;
	aio_submit(n->env->aio, &r->aio);
}

static void file_flush(struct node *n, block_done_fn *done, void *opaque)
{
	struct file_req *r = n->readonly ? NULL : req_new(n, AIO_SYNC, done, opaque);

	if (r)
		aio_submit(n->env->aio, &r->aio);
	else if (n->readonly)
		done(opaque, 0);
}

static void file_writeback(struct node *n, block_done_fn *done, void *opaque)
{
	struct file_req *r = n->readonly ? NULL : req_new(n, AIO_WRITEBACK, done, opaque);

	if (r)
		aio_submit(n->env->aio, &r->aio);
	else if (n->readonly)
		done(opaque, 0);
}

static void fallocate_start(struct node *n, int mode, uint64_t offset, uint64_t len, bool hint, block_done_fn *done,
			    void *opaque)
{
	struct file_req *r = req_new(n, AIO_FALLOCATE, done, opaque);

	if (!r)
		return;
	r->aio.mode = mode | FALLOC_FL_KEEP_SIZE;
	r->aio.offset = offset;
	r->aio.len = len;
	r->hint = hint;
	aio_submit(n->env->aio, &r->aio);
}

static void file_discard(struct node *n, uint64_t offset, uint64_t len, block_done_fn *done, void *opaque)
{
	if (n->limits.can_discard && len)
		fallocate_start(n, FALLOC_FL_PUNCH_HOLE, offset, len, true, done, opaque);
	else
		done(opaque, 0);
}

static void file_write_zeroes(struct node *n, uint64_t offset, uint64_t len, unsigned flags, block_done_fn *done,
			      void *opaque)
{
	struct file *f = n->impl;
	bool unmap = flags & NODE_ZERO_MAY_UNMAP;

	if (!f->can_zero[unmap] || !len)
		done(opaque, len ? -EOPNOTSUPP : 0);
	else
		fallocate_start(n, unmap ? FALLOC_FL_PUNCH_HOLE : FALLOC_FL_ZERO_RANGE, offset, len, false, done,
				opaque);
}

/* The kernel answers from the inode: no waiting for the disk worth a thread. */
static int file_status(struct node *n, uint64_t offset, uint64_t len, struct block_status *out)
{
	struct file *f = n->impl;
	off_t at;

	out->flags |= BLOCK_STATUS_OFFSET;
	out->host_offset = offset;
	if (!f->sparse)
		return 0;
	at = lseek(f->fd, (off_t)offset, SEEK_DATA);
	if (at < 0 && errno != ENXIO) {
		f->sparse = false;
		return 0;
	}
	if (at < 0 || (uint64_t)at > offset) {
		out->flags = BLOCK_STATUS_ZERO | BLOCK_STATUS_ALLOCATED;
		if (at > 0 && (uint64_t)at - offset < len)
			out->len = (uint64_t)at - offset;
		return 0;
	}
	at = lseek(f->fd, (off_t)offset, SEEK_HOLE);
	if (at > 0 && (uint64_t)at > offset && (uint64_t)at - offset < len)
		out->len = (uint64_t)at - offset;
	return 0;
}

static int file_resize(struct node *n, uint64_t size_bytes, unsigned flags, struct error *e)
{
	struct file *f = n->impl;

	if (size_bytes > INT64_MAX)
		return error_errno(e, EFBIG, NULL, "resize '%s'", n->path);
	if (ftruncate(f->fd, (off_t)size_bytes) < 0)
		return error_errno(e, errno, "is there space on the host's disk?", "resize '%s'", n->path);
	n->size_bytes = size_bytes;
	return 0;
}

static int file_info(struct node *n, struct block_info *out)
{
	struct file *f = n->impl;
	struct stat st;

	if (fstat(f->fd, &st) < 0)
		return -errno;
	out->host_bytes = (uint64_t)st.st_blocks * 512;
	return 0;
}

/* --- life --- */

static int file_close(struct node *n)
{
	struct file *f = n->impl;

	while (f->idle) {
		struct file_req *r = f->idle;

		f->idle = r->next;
		free(r);
	}
	if (f->fd >= 0)
		close(f->fd);
	free(f);
	n->impl = NULL;
	return 0;
}

static int file_set_readonly(struct node *n, bool readonly, const struct block_options *fds, struct error *e);

static const struct node_ops file_ops = {
	.name = "file", .readv = file_readv, .writev = file_writev, .flush = file_flush, .writeback = file_writeback,
	.discard = file_discard,
	.write_zeroes = file_write_zeroes, .co_status = file_status, .co_resize = file_resize, .info = file_info,
	.co_set_readonly = file_set_readonly, .co_close = file_close,
};

static int open_fd(const char *path, bool write, struct error *e)
{
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

/* One writer or many readers, across processes and within one.  tries: 10 ms apart. */
static int lock_fd(int fd, const char *path, bool write, unsigned tries, struct error *e)
{
	struct flock lock = { .l_type = write ? F_WRLCK : F_RDLCK, .l_whence = SEEK_SET };
	char what[192];
	int ret;

	while ((ret = fcntl(fd, F_OFD_SETLK, &lock)) != 0 && (errno == EAGAIN || errno == EACCES) && --tries)
		nanosleep(&(struct timespec){ .tv_nsec = 10000000 }, NULL);
	if (!ret)
		return 0;
	snprintf(what, sizeof(what), "open disk '%.150s'", path);
	if (errno == EAGAIN || errno == EACCES)
		return error_set(e, EBUSY, "stop the other VM first, or give this one a copy of the image",
				 what, "image is in use by another VM");
	return error_errno(e, errno, "put the image on a file system with locks", "lock disk '%s'", path);
}

/* Somebody who was killed keeps his locks for as long as the kernel needs to end what he had under way. */
static int lock_new(int fd, const char *path, bool write, struct error *e)
{
	return lock_fd(fd, path, write, 100, e);
}

/* A writer's lock on fd, or on what is open if there is none, in place of the reader's lock that we have ourselves. */
static int relock(struct file *f, int fd, const char *path, struct error *e)
{
	struct flock none = { .l_type = F_UNLCK, .l_whence = SEEK_SET };
	int ret;

	if (fd < 0)
		return lock_fd(f->fd, path, true, 1, e);
	fcntl(f->fd, F_OFD_SETLK, &none);
	ret = lock_fd(fd, path, true, 1, e);
	if (ret)
		lock_fd(f->fd, path, false, 1, NULL);
	return ret;
}

/* Who reads here still may have one of the file's readers beside him: then it cannot be written. */
static int file_set_readonly(struct node *n, bool readonly, const struct block_options *fds, struct error *e)
{
	struct file *f = n->impl;
	int fd = readonly ? -1 : node_given_fd(fds, n->path), flags, ret;

	if (readonly)
		return lock_fd(f->fd, n->path, false, 1, e);
	flags = fcntl(fd >= 0 ? fd : f->fd, F_GETFL);
	if (flags < 0 || (flags & O_ACCMODE) != O_RDWR)
		ret = error_set(e, EACCES, "make it writable", "write to the backing file", "'%.150s' is open for reading only",
				n->path);
	else
		ret = relock(f, fd, n->path, e);
	if (ret && fd >= 0)
		close(fd);
	if (ret || fd < 0)
		return ret;
	close(f->fd);
	f->fd = fd;
	return 0;
}

static int measure(struct node *n, struct error *e)
{
	struct file *f = n->impl;
	char what[192];
	struct stat st;

	if (fstat(f->fd, &st) < 0)
		return error_errno(e, errno, NULL, "open disk '%s'", n->path);
	if (S_ISREG(st.st_mode)) {
		n->size_bytes = (uint64_t)st.st_size;
		n->limits.grows = true;
		f->sparse = true;
		return 0;
	}
	if (S_ISBLK(st.st_mode)) {
		if (ioctl(f->fd, BLKGETSIZE64, &n->size_bytes) < 0)
			return error_errno(e, errno, NULL, "measure disk '%s'", n->path);
		return 0;
	}
	snprintf(what, sizeof(what), "open disk '%.150s'", n->path);
	return error_set(e, EINVAL, "give a disk image", what, "it is neither a file nor a block device");
}

/* Takes fd over, also when it fails. */
static int attach(struct node *n, int fd, struct error *e)
{
	struct file *f = calloc(1, sizeof(*f));

	if (!f) {
		close(fd);
		return error_errno(e, ENOMEM, NULL, "open disk '%s'", n->path);
	}
	f->fd = fd;
	f->can_zero[0] = f->can_zero[1] = true;
	n->impl = f;
	n->limits.align = 1;
	n->limits.can_discard = n->limits.can_zero = true;
	return measure(n, e);
}

/* A descriptor from outside comes locked; -1: there is none for the path. */
int node_given_fd(const struct block_options *o, const char *path)
{
	for (unsigned i = 0; i < o->nfds; i++)
		if (!strcmp(o->fds[i].path, path))
			return fcntl(o->fds[i].fd, F_DUPFD_CLOEXEC, 0);
	return -1;
}

static int file_open(struct node *n, const struct node_open *how, struct error *e)
{
	int fd = node_given_fd(how->o, n->path), ret = 0;

	if (fd < 0 && how->o->flags & BLOCK_FDS_ONLY)
		return error_set(e, ENOENT, "is it named otherwise in the image that needs it?", "open a disk",
				 "the file '%.150s' was not handed over", n->path);
	if (fd < 0) {
		fd = open_fd(n->path, !how->readonly, e);
		if (fd < 0)
			return fd;
		if (!(how->o->flags & BLOCK_SHARE))
			ret = lock_new(fd, n->path, !how->readonly, e);
	}
	if (ret) {
		close(fd);
		return ret;
	}
	return attach(n, fd, e);
}

int block_file_open(const char *path, bool write, struct error *e)
{
	int fd = open_fd(path, write, e), ret = fd < 0 ? fd : lock_new(fd, path, write, e);

	if (fd >= 0 && ret)
		close(fd);
	return ret ? ret : fd;
}

static void files_add(const struct node *n, bool backing, struct block_file *out, unsigned max, unsigned *count)
{
	if (!n)
		return;
	if (n->ops == &file_ops && (*count)++ < max)
		out[*count - 1] = (struct block_file){ n->path, backing };
	for (int i = 0; i < NODE_CHILDREN; i++)
		files_add(n->child[i], backing || i == NODE_BACKING, out, max, count);
}

unsigned block_files(const struct block *b, struct block_file *out, unsigned max)
{
	unsigned count = 0;

	files_add(block_root((struct block *)b), false, out, max, &count);
	return count;
}

int file_node_from_fd(struct node **out, struct block_env *env, int fd, const char *path, struct error *e)
{
	struct node *n = node_new(env, &file_ops, path);
	int ret;

	if (!n) {
		close(fd);
		return error_errno(e, ENOMEM, NULL, "open disk '%s'", path);
	}
	ret = attach(n, fd, e);
	if (ret) {
		node_co_close(n);
		return ret;
	}
	*out = n;
	return 0;
}

/* What is replaced is emptied only when it is known that nobody has it open. */
static int empty_out(int fd, const char *path, struct error *e)
{
	struct stat st;
	int ret = lock_new(fd, path, true, e);

	if (ret)
		return ret;
	if (fstat(fd, &st) < 0 || (S_ISREG(st.st_mode) && ftruncate(fd, 0) < 0))
		return error_errno(e, errno, "check the path and its permissions", "create disk '%s'", path);
	if (!S_ISREG(st.st_mode) && !S_ISBLK(st.st_mode))
		return error_errno(e, ENOTSUP, "remove it first", "create disk '%s', which is neither a file nor a block device", path);
	return 0;
}

static int file_make(const char *path, bool overwrite, struct error *e)
{
	int fd = open(path, O_RDWR | O_CREAT | (overwrite ? 0 : O_EXCL) | O_CLOEXEC | O_NOCTTY | O_NONBLOCK, 0644), ret;

	if (fd < 0 && errno == EEXIST)
		return error_errno(e, EEXIST, "choose another name, or remove the file", "create disk '%s'", path);
	if (fd < 0)
		return error_errno(e, errno, "check the path and its permissions", "create disk '%s'", path);
	ret = overwrite ? empty_out(fd, path, e) : 0;
	close(fd);
	return ret;
}

const struct driver file_driver = { .name = "file", .ops = &file_ops, .co_open = file_open, .co_make = file_make };
