#include "cli/image_ready.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "cli/options.h"

#define ALIGN_BYTES (1u << 20)		/* of the partition, and what is kept free at the end */
#define ARGS_MAX 12

/* What each tool is called, and how it is told the rest. */
static const struct fs {
	const char *name, *tool, *package, *options[2], *label, *content, *mbr_type, *gpt_type;
} filesystems[] = {
	{ "ext2", "mke2fs", "e2fsprogs", { "-q", "-Ftext2" }, "-L", "-d", "83", "linux" },
	{ "ext3", "mke2fs", "e2fsprogs", { "-q", "-Ftext3" }, "-L", "-d", "83", "linux" },
	{ "ext4", "mke2fs", "e2fsprogs", { "-q", "-Ftext4" }, "-L", "-d", "83", "linux" },
	{ "xfs", "mkfs.xfs", "xfsprogs", { "-q", "-f" }, "-L", NULL, "83", "linux" },
	{ "btrfs", "mkfs.btrfs", "btrfs-progs", { "-q", "-f" }, "-L", "-r", "83", "linux" },
	{ "vfat", "mkfs.vfat", "dosfstools", { NULL }, "-n", NULL, "c", "EBD0A0A2-B9E5-4433-87C0-68B6B72699C7" },
	{ "swap", "mkswap", "util-linux", { NULL }, "-L", NULL, "82", "swap" },
};

static const struct fs *fs_find(const char *name)
{
	for (size_t i = 0; name && i < sizeof filesystems / sizeof *filesystems; i++)
		if (!strcmp(filesystems[i].name, name))
			return &filesystems[i];
	return NULL;
}

bool ready_fs_parse(const char *v)
{
	return fs_find(v) ||
	       usage_error("image create", "--format '%s' is not ext2, ext3, ext4, xfs, btrfs, vfat or swap", v);
}

/* --- tools --- */

_Noreturn static void child(char *const argv[], int in)
{
	const char *path = getenv("PATH");
	char *wider = NULL;
	int null = open("/dev/null", O_RDWR);
	if (asprintf(&wider, "%s:/usr/sbin:/sbin", path ? path : "/usr/bin:/bin") > 0)
		setenv("PATH", wider, 1);
	dup2(in >= 0 ? in : null, STDIN_FILENO);
	dup2(null, STDOUT_FILENO);
	execvp(argv[0], argv);
	_exit(127);
}

static int tool_status(const char *tool, const char *package, int status, struct error *e)
{
	char what[192], todo[192];
	snprintf(what, sizeof what, "run %s", tool);
	snprintf(todo, sizeof todo, "install it: apt-get install %s", package);
	if (WIFEXITED(status) && WEXITSTATUS(status) == 127)
		return error_set(e, ENOENT, todo, what, "there is no such program");
	if (WIFEXITED(status) && !WEXITSTATUS(status))
		return 0;
	return error_set(e, EINVAL, "it says why above; is the disk large enough?", what, "it failed");
}

/* in: what it reads, -1 for nothing. */
static int tool_exec(char *const argv[], const char *package, int in, struct error *e)
{
	int status = 0;
	pid_t pid = fork();
	if (pid < 0)
		return error_errno(e, errno, "raise the limit of processes", "run %s", argv[0]);
	if (!pid)
		child(argv, in);
	while (waitpid(pid, &status, 0) < 0 && errno == EINTR)
		;
	return tool_status(argv[0], package, status, e);
}

/* --- the file system --- */

static int fs_make(const char *path, const struct ready *r, struct error *e)
{
	const struct fs *f = fs_find(r->fs);
	const char *argv[ARGS_MAX] = { f->tool };
	unsigned n = 1;
	for (unsigned i = 0; i < 2 && f->options[i]; i++)
		argv[n++] = f->options[i];
	if (r->label) {
		argv[n++] = f->label;
		argv[n++] = r->label;
	}
	if (r->content && !f->content)
		return error_set(e, EINVAL, "use ext4, or copy it in from a guest", "make the file system",
				 "%s cannot be made with content", f->name);
	if (r->content) {
		argv[n++] = f->content;
		argv[n++] = r->content;
	}
	argv[n++] = path;
	return tool_exec((char *const *)argv, f->package, -1, e);
}

/* --- the partition --- */

static int table_make(const char *path, uint64_t size_bytes, const struct ready *r, struct error *e)
{
	const struct fs *f = fs_find(r->fs);
	char *argv[] = { "sfdisk", "-q", "--no-reread", "--no-tell-kernel", (char *)path, NULL };
	bool gpt = !strcmp(r->partition, "gpt");
	FILE *script = tmpfile();
	if (!script)
		return error_errno(e, errno, "is there space in /tmp?", "make a partition table");
	fprintf(script, "label: %s\nstart=%u, size=%llu, type=%s\n", gpt ? "gpt" : "dos", ALIGN_BYTES / 512,
		(unsigned long long)(size_bytes - 2 * ALIGN_BYTES) / 512, gpt ? f ? f->gpt_type : "linux" : f ? f->mbr_type : "83");
	fflush(script);
	rewind(script);
	int ret = tool_exec(argv, "fdisk", fileno(script), e);
	fclose(script);
	return ret;
}

static int copy_range(int from, int to, off_t at, off_t len, off_t shift)
{
	char buf[65536];
	while (len > 0) {
		ssize_t n = pread(from, buf, len < (off_t)sizeof buf ? (size_t)len : sizeof buf, at);
		if (n <= 0)
			return n ? -errno : -EIO;
		if (pwrite(to, buf, (size_t)n, at + shift) != n)
			return errno ? -errno : -EIO;
		at += n;
		len -= n;
	}
	return 0;
}

/* Data only: holes stay holes. */
static int copy_into(const char *from_path, const char *to_path, off_t shift)
{
	int from = open(from_path, O_RDONLY | O_CLOEXEC), to = open(to_path, O_WRONLY | O_CLOEXEC);
	int ret = from < 0 || to < 0 ? -errno : 0;
	for (off_t at = 0, data; !ret && (data = lseek(from, at, SEEK_DATA)) >= 0; ) {
		at = lseek(from, data, SEEK_HOLE);
		ret = copy_range(from, to, data, at - data, shift);
	}
	if (from >= 0)
		close(from);
	if (to >= 0 && close(to) && !ret)
		ret = -errno;
	return ret;
}

static int empty_file(const char *path, uint64_t bytes, struct error *e)
{
	int fd = open(path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0644);
	int ret = fd < 0 || ftruncate(fd, (off_t)bytes) ? -errno : 0;
	if (fd >= 0)
		close(fd);
	return ret ? error_errno(e, -ret, "check the path and its permissions", "create '%s'", path) : 0;
}

/* The file system is made in a file of its own, as large as the partition, and moved into its place. */
static int partition_fill(const char *path, uint64_t size_bytes, const struct ready *r, struct error *e)
{
	char part[PATH_MAX];
	int ret;
	if (snprintf(part, sizeof part, "%s.fs", path) >= PATH_MAX)
		return error_set(e, ENAMETOOLONG, "choose a shorter name", "create a disk", "its path is too long");
	ret = empty_file(part, size_bytes - 2 * ALIGN_BYTES, e);
	if (!ret)
		ret = fs_make(part, r, e);
	if (!ret && (ret = copy_into(part, path, ALIGN_BYTES)))
		error_errno(e, -ret, "is there space on the host's disk?", "write '%s'", path);
	unlink(part);
	return ret;
}

int ready_make(const char *path, uint64_t size_bytes, const struct ready *r, struct error *e)
{
	int ret;
	if (r->partition && size_bytes < 4 * ALIGN_BYTES)
		return error_set(e, EINVAL, "give more", "create a disk", "4 MiB are the least for one with partitions");
	ret = empty_file(path, size_bytes, e);
	if (!ret && r->partition)
		ret = table_make(path, size_bytes, r, e);
	if (!ret && r->fs)
		ret = r->partition ? partition_fill(path, size_bytes, r, e) : fs_make(path, r, e);
	return ret;
}

/* --- into an image --- */

struct copy {
	struct block *src, *dst;
	struct error *e;
};

static int copy_job(void *opaque)
{
	struct copy *c = opaque;
	struct block_job job = { 0 };
	const struct job_convert how = { 0 };
	return job_convert(&job, c->src, c->dst, &how, c->e);
}

int ready_copy(struct loop *l, const char *raw, const char *path, const char *format, const char *secret_file,
	       struct error *e)
{
	const struct block_options o = { .format = format, .secret_file = secret_file, .flags = BLOCK_FRESH };
	struct copy c = { .e = e };
	int ret = block_open(&c.src, l, raw, "raw", BLOCK_READONLY, e), closed;
	if (!ret)
		ret = block_open_with(&c.dst, l, path, &o, e);
	if (!ret)
		ret = block_run(l, copy_job, &c);
	closed = block_close(c.dst);
	if (!ret && closed)
		ret = error_errno(e, -closed, "check the host's disk", "write '%s'", path);
	block_close(c.src);
	return ret;
}
