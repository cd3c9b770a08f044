#include "disk.h"

#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "host/loop.h"

void die(const char *fmt, ...)
{
	va_list args;

	va_start(args, fmt);
	vfprintf(stderr, fmt, args);
	va_end(args);
	fputc('\n', stderr);
	abort();
}

void disk_done(void *opaque, int ret)
{
	struct disk *d = opaque;

	if (ret && !d->ret)
		d->ret = ret;
	d->pending--;
}

int disk_wait(struct disk *d)
{
	int ret;

	while (d->pending)
		if (loop_step(d->loop))
			die("the loop failed");
	ret = d->ret;
	d->ret = 0;
	return ret;
}

int disk_read(struct disk *d, uint64_t offset, void *buf, size_t len)
{
	struct iovec iov = { buf, len };

	d->pending++;
	block_readv(d->b, offset, &iov, 1, disk_done, d);
	return disk_wait(d);
}

int disk_write(struct disk *d, uint64_t offset, const void *buf, size_t len)
{
	struct iovec iov = { (void *)buf, len };

	d->pending++;
	block_writev(d->b, offset, &iov, 1, disk_done, d);
	return disk_wait(d);
}

int disk_zero(struct disk *d, uint64_t offset, uint64_t len, bool unmap)
{
	d->pending++;
	block_write_zeroes(d->b, offset, len, unmap, disk_done, d);
	return disk_wait(d);
}

int disk_discard(struct disk *d, uint64_t offset, uint64_t len)
{
	d->pending++;
	block_discard(d->b, offset, len, disk_done, d);
	return disk_wait(d);
}

int disk_flush(struct disk *d)
{
	d->pending++;
	block_flush(d->b, disk_done, d);
	return disk_wait(d);
}

int disk_status(struct disk *d, uint64_t offset, uint64_t len, unsigned depth_max, struct block_status *st)
{
	d->pending++;
	block_status(d->b, offset, len, depth_max, st, disk_done, d);
	return disk_wait(d);
}

struct compress {
	struct disk *d;
	uint64_t offset;
	const void *buf;
	size_t len;
};

static int compress_main(void *opaque)
{
	struct compress *c = opaque;

	return block_co_write_compressed(c->d->b, c->offset, c->buf, c->len);
}

int disk_compress(struct disk *d, uint64_t offset, const void *buf, size_t len)
{
	return block_run(d->loop, compress_main, &(struct compress){ d, offset, buf, len });
}

void disk_open(struct disk *d, const char *path, const struct block_options *o)
{
	struct error e = { 0 };

	if (!d->loop)
		d->loop = loop_new();
	if (block_open_with(&d->b, d->loop, path, o, &e))
		die("%s: %s; %s", e.what, e.why, e.todo);
}

void disk_close(struct disk *d)
{
	int ret = block_close(d->b);

	d->b = NULL;
	if (ret)
		die("closing: %s", strerror(-ret));
}

void disk_create(struct disk *d, const char *path, const char *format, const struct block_create *c)
{
	struct error e = { 0 };

	if (!d->loop)
		d->loop = loop_new();
	if (block_create(d->loop, path, format, c, &e))
		die("%s: %s; %s", e.what, e.why, e.todo);
}

int shell(const char *fmt, ...)
{
	char command[2048], line[2200];
	va_list args;
	int ret;

	va_start(args, fmt);
	vsnprintf(command, sizeof(command), fmt, args);
	va_end(args);
	snprintf(line, sizeof(line), "{ %s; } >shell.out 2>&1", command);
	ret = system(line);
	ret = WIFEXITED(ret) ? WEXITSTATUS(ret) : 128;
	if (ret) {
		fprintf(stderr, "%s: exit status %d\n", command, ret);
		ret = system("tail -n 30 shell.out >&2") ? ret : ret;
	}
	return ret;
}

uint8_t *file_read(const char *path, size_t *len)
{
	int fd = open(path, O_RDONLY);
	uint8_t *p;

	*len = (size_t)lseek(fd, 0, SEEK_END);
	p = malloc(*len);
	if (!p || pread(fd, p, *len, 0) != (ssize_t)*len)
		die("read '%s'", path);
	close(fd);
	return p;
}

void file_write(const char *path, const void *p, size_t len)
{
	int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC, 0644);

	if (write(fd, p, len) != (ssize_t)len)
		die("write '%s'", path);
	close(fd);
}

void go_to_folder(char path[64])
{
	strcpy(path, access("/dev/shm", W_OK) ? "/tmp/vixen-disk-XXXXXX" : "/dev/shm/vixen-disk-XXXXXX");
	if (!mkdtemp(path) || chdir(path))
		die("%s: %s", path, strerror(errno));
}

bool have_qemu(void)
{
	return !system("qemu-img --version >/dev/null 2>&1 && qemu-io --version >/dev/null 2>&1");
}
